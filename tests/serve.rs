//! The daemon: sound and feedback in, adapters through gate and trial, nothing lost on the way.
#![cfg(all(feature = "serve", unix))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod daemon;
mod recording;

use std::path::{Path, PathBuf};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use accentor::features::{Clip, FrontEnd, Mfcc, Normalise};
use accentor::serve::AudioPath;
use accentor::serve::protocol::{Event, Request};
use accentor::source::Audio;
use accentor::{AdapterSpec, Model, Session};

use daemon::{Running, clips, config, heard, teach};

/// The digits' model on FSDD, where the shared folder is beside: the folder of the model, and the clips' folder.
fn digits(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let models = recording::shared_models()?;
    let data = models.parent()?.join("data/fsdd");
    let onnx = models.join("dscnn_digits_us.onnx");
    if !onnx.is_file() || !data.is_dir() {
        println!("skipped: no shared folder (set ACCENTOR_SHARED to it)");
        return None;
    }
    let model = folder.join("model");
    std::fs::create_dir_all(&model).unwrap();
    let manifest = include_str!("../models/dscnn-digits-us/model.toml");
    let replay = fsdd(&data, &["jackson", "theo"], 5..15);
    let guard = fsdd(&data, &["jackson", "theo"], 0..5);
    let table = |clips: &[(PathBuf, String)]| {
        clips.iter().fold(String::from("path,label\n"), |all, (path, label)| format!("{all}{},{label}\n", path.display()))
    };
    std::fs::write(model.join("replay.csv"), table(&replay)).unwrap();
    std::fs::write(model.join("guard.csv"), table(&guard)).unwrap();
    let data_lines = "replay = \"replay.csv\"\nguard = \"guard.csv\"\n";
    std::fs::write(model.join("model.toml"), manifest.replace("[front_end]", &format!("{data_lines}[front_end]"))).unwrap();
    std::fs::copy(onnx, model.join("dscnn_digits_us.onnx")).unwrap();
    Some((model, data))
}

fn fsdd(data: &Path, speakers: &[&str], indices: std::ops::Range<usize>) -> Vec<(PathBuf, String)> {
    const DIGITS: [&str; 10] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let mut found = Vec::new();
    for speaker in speakers {
        for (digit, label) in DIGITS.iter().enumerate() {
            for index in indices.clone() {
                found.push((data.join(format!("{digit}_{speaker}_{index}.wav")), (*label).to_owned()));
            }
        }
    }
    found
}

fn read(clips: &[(PathBuf, String)]) -> Vec<(Audio, String)> {
    let read = |path: &Path| match accentor::source::read(path).unwrap() {
        accentor::source::Sample::Audio(clip) => clip,
        other => panic!("{other:?}"),
    };
    clips.iter().map(|(path, label)| (read(path), label.clone())).collect()
}

/// A session with an adapter that changes every score.
fn other_session(model: &Model, seed: u64) -> Arc<Session> {
    let adapter = model.new_adapter(&AdapterSpec::default(), seed).unwrap();
    let mut trainer = model.trainer(adapter, 1).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..20 {
        let input: Vec<f32> = (0..model.extractor().values()).map(|_| rng.f32() * 4.0 - 2.0).collect();
        trainer.step(&[(&input[..], rng.usize(0..model.labels().len()))], 2e-2).unwrap();
    }
    Arc::new(model.session(Some(&trainer.adapter())).unwrap())
}

/// What one window was.
#[derive(Clone, PartialEq)]
struct Window {
    features: Vec<u32>,
    scores: Vec<u32>,
    tag: u64,
}

/// Windows of endless sound, block by block, until `done`.
fn listened(path: &mut AudioPath, mut done: impl FnMut(usize) -> bool) -> Vec<Window> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut windows: Vec<Window> = Vec::new();
    while !done(windows.len()) {
        let block: Vec<f32> = (0..800).map(|_| rng.f32() - 0.5).collect();
        let before = path.windows();
        path.hear(&block);
        if path.windows() > before {
            assert_eq!(path.windows(), before + 1);
            windows.push(Window { features: bits(path.features()), scores: bits(path.scores()), tag: path.tag() });
        }
    }
    windows
}

#[test]
fn a_thousand_swaps_lose_no_frame_and_mix_no_adapters() {
    let kws = Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kws-commands")).unwrap();
    let config: accentor::serve::Config = toml::from_str("model = \"m\"\n[listen]\nhop_ms = 100").unwrap();
    // One whose windows are computed by their new rows too.
    let clip = Clip { normalise: Normalise::None, ..Clip::default() };
    let front_end = FrontEnd::Mfcc(Mfcc { clip, ..Mfcc::default() });
    let slides = Model::from_graph(kws.graph().clone(), kws.labels().to_vec(), Some(&front_end)).unwrap();
    for model in [&kws, &slides] {
        let sessions = [Arc::new(model.session(None).unwrap()), other_session(model, 1), other_session(model, 2)];
        let (mut path, swap) = AudioPath::new(model, sessions[0].clone(), 16_000, &config).unwrap();
        let over = AtomicBool::new(false);
        let windows = std::thread::scope(|scope| {
            scope.spawn(|| {
                for tag in 1..=1000u64 {
                    swap.to(sessions[tag as usize % 3].clone(), tag).unwrap();
                    while !swap.is_taken() {
                        std::thread::yield_now();
                    }
                }
                over.store(true, Ordering::Relaxed);
            });
            listened(&mut path, |_| over.load(Ordering::Relaxed))
        });
        // The same sound without a swap has the same windows.
        let (mut alone, _) = AudioPath::new(model, sessions[0].clone(), 16_000, &config).unwrap();
        let expected = listened(&mut alone, |found| found == windows.len());
        let mut tags: Vec<u64> = windows.iter().map(|w| w.tag).collect();
        let mut scores = vec![0.0; model.labels().len()];
        for (found, alone) in windows.iter().zip(&expected) {
            assert!(found.features == alone.features, "a frame was lost or doubled");
            let features: Vec<f32> = found.features.iter().map(|bits| f32::from_bits(*bits)).collect();
            sessions[found.tag as usize % 3].scores_into(&features, &mut scores).unwrap();
            assert!(found.scores.iter().zip(&scores).all(|(a, b)| *a == b.to_bits()), "scored by half an adapter");
        }
        assert!(tags.is_sorted());
        tags.dedup();
        println!("{} windows, {} adapters heard", windows.len(), tags.len());
        assert!(tags.len() > 200);
    }
}

#[test]
fn a_speaker_is_learnt_while_he_speaks() {
    let folder = tempfile::tempdir().unwrap();
    let Some((model, data)) = digits(folder.path()) else { return };
    let mut config = config(&model, folder.path());
    config.listen.detector.threshold = 0.5;
    let mut daemon = Running::start(config);
    let test = read(&fsdd(&data, &["nicolas"], 0..10));
    let before = heard(&mut daemon, &test);
    let kept = teach(&mut daemon, &read(&fsdd(&data, &["nicolas"], 45..50)));
    println!("kept {kept} of 50; {:?}", daemon.status());
    println!("{}", daemon.done(Request::Train {}));
    let trial = daemon.wait(|e| matches!(e, Event::Trial { .. } | Event::Refused { .. }));
    println!("{trial:?}");
    let after = heard(&mut daemon, &test);
    println!("{before} -> {after}; {:?}", daemon.status());
    daemon.stop();
}

#[test]
fn the_built_in_model_learns_an_accent() {
    let folder = tempfile::tempdir().unwrap();
    let kws = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kws-commands");
    let mut config = config(&kws, folder.path());
    config.listen.detector.threshold = 0.5;
    let mut daemon = Running::start(config);
    let test = clips(&kws.join("demo/lancaster/test"));
    let before = heard(&mut daemon, &test);
    // What the frozen model hears of others guards it.
    let us = clips(&kws.join("demo/us/replay"));
    println!("us {}", heard(&mut daemon, &us));
    let kept = teach(&mut daemon, &clips(&kws.join("demo/lancaster/adapt")));
    println!("kept {kept}; {:?}", daemon.status());
    println!("{}", daemon.done(Request::Train {}));
    let trial = daemon.wait(|e| matches!(e, Event::Trial { .. } | Event::Refused { .. }));
    println!("{trial:?}");
    let after = heard(&mut daemon, &test);
    println!("{before} -> {after}; {:?}", daemon.status());
    daemon.stop();
}
