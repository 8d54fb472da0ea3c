//! Mutations of committed models and adapters through the loader, the planner and the adapter reader: the same entry points as
//! `fuzz/`, with a fixed seed and for a few seconds. `ACCENTOR_FUZZ_SECONDS` makes it longer.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod fuzz_entry;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// No case takes longer: a hang fails instead of stopping the test run.
const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers at the edges of what fields hold.
const EDGES: [u64; 10] = [0, 1, 2, 127, 128, 255, 1 << 16, 1 << 31, 1 << 62, u64::MAX];

fn seconds() -> u64 {
    std::env::var("ACCENTOR_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4)
}

/// A few changes: bytes, numbers, pieces cut, doubled, moved, or taken from another file.
fn mutate(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.usize(1..6) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.usize(..bytes.len());
        let piece = |rng: &mut fastrand::Rng, len: usize| {
            let from = rng.usize(..len);
            from..(from + 1 + rng.usize(..64)).min(len)
        };
        match rng.u8(..8) {
            0 => bytes[at] ^= 1 << rng.u8(..8),
            1 => bytes[at] = rng.u8(..),
            2 => bytes[at] = rng.choice(EDGES).unwrap() as u8,
            3 => {
                let edge = rng.choice(EDGES).unwrap().to_le_bytes();
                let width = rng.usize(1..9).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => drop(bytes.drain(piece(rng, bytes.len()))),
            5 => {
                let copy = bytes[piece(rng, bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
            6 if !other.is_empty() => {
                let copy = other[piece(rng, other.len())].to_vec();
                bytes.splice(at..(at + copy.len()).min(bytes.len()), copy);
            }
            _ => bytes.truncate(at + 1),
        }
    }
}

/// Runs mutations of `seeds` until the time is over; what made the project panic, with the bytes that did.
fn search(name: &str, seeds: &[Vec<u8>], run: impl Fn(&[u8])) {
    static OURS: AtomicBool = AtomicBool::new(false);
    std::panic::set_hook(Box::new(|panic| {
        if fuzz_entry::is_ours(panic) && !OURS.swap(true, Ordering::Relaxed) {
            let _ = std::fs::write(std::env::temp_dir().join("accentor-fuzz-panic"), panic.to_string());
        }
    }));
    let mut rng = fastrand::Rng::with_seed(11);
    let started = Instant::now();
    let mut cases = 0;
    while started.elapsed().as_secs() < seconds() {
        let mut bytes = rng.choice(seeds).unwrap().clone();
        let other = rng.choice(seeds).unwrap();
        mutate(&mut rng, &mut bytes, other);
        let began = Instant::now();
        let stopped = catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err();
        if stopped || OURS.swap(false, Ordering::Relaxed) || began.elapsed() > PATIENCE {
            let path = std::env::temp_dir().join(format!("accentor-fuzz-{name}"));
            std::fs::write(&path, &bytes).unwrap();
            let _ = std::panic::take_hook();
            let why = std::fs::read_to_string(std::env::temp_dir().join("accentor-fuzz-panic")).unwrap_or_default();
            panic!("case {cases}, written to {}, took {:?}: {why}", path.display(), began.elapsed());
        }
        cases += 1;
    }
    let _ = std::panic::take_hook();
    assert!(cases > 20, "only {cases} cases");
}

#[test]
fn mutated_files_are_read_or_refused() {
    let models: Vec<Vec<u8>> = fuzz_entry::models().into_iter().map(|(_, bytes)| bytes).collect();
    models.iter().for_each(|bytes| fuzz_entry::onnx(bytes));
    search("onnx", &models, fuzz_entry::onnx);
    let base = fuzz_entry::base();
    let folder = tempfile::tempdir().unwrap();
    search("adapter", &fuzz_entry::adapters(&base), |bytes| fuzz_entry::adapter(&base, folder.path(), bytes));
}
