//! Some steps on random input: what training takes on this machine.

use std::time::Instant;

use serde::Serialize;

use crate::Model;
use crate::cli::memory;
use crate::train::{Clip, PARTS, Trainer};

/// Timed this often; the least counts.
const REPEATS: usize = 3;
/// An example is held as it was read, as the copy that is cached, and as what the prefix gives for it.
const COPIES: usize = 2;

/// What a dry run says.
#[derive(Debug, Serialize)]
pub(super) struct DryRun {
    /// The most memory that `adapt` will hold.
    pub(super) peak_rss_bytes: u64,
    /// A step of the asked batch.
    pub(super) step_ms: f64,
    /// The frozen prefix, for one clip.
    pub(super) prefix_ms: f64,
}

/// `inputs` are all versions of all clips that adapt would hold.
pub(super) fn dry_run(
    model: &Model,
    trainer: &mut Trainer,
    batch: usize,
    threads: usize,
    inputs: usize,
) -> anyhow::Result<DryRun> {
    let mut rng = fastrand::Rng::with_seed(0);
    let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect() };
    let mut examples = model.new_examples(1);
    let input_len = examples.input_len();
    examples.push(&random(input_len), 0)?;
    let started = Instant::now();
    let cached = trainer.cache(&examples)?;
    let prefix_ms = if trainer.prefix().is_some() { started.elapsed().as_secs_f64() * 1e3 } else { 0.0 };
    // Where nothing is frozen the cached clip is the input itself.
    let clip: Clip = (cached.input(0, 0), 0);
    let one = least(|| trainer.gradient(&[clip]).map(|_| ()))?;
    let each = [clip; PARTS];
    let parts = least(|| trainer.gradient(&each[..PARTS.min(batch)]).map(|_| ()))?;
    // A round is a clip of each thread; what a step costs besides is there once.
    let workers = threads.clamp(1, PARTS);
    let rounds = PARTS.min(batch).div_ceil(workers);
    let a_round = if rounds > 1 { (parts - one).max(0.0) / (rounds - 1) as f64 } else { parts };
    let step_ms = (one - a_round).max(0.0) + a_round * rounds_of(batch, workers) as f64;
    let held = inputs * (COPIES * input_len + trainer.cached_len()) * size_of::<f32>();
    let peak_rss_bytes = memory::peak_rss_bytes().max(memory::rss_bytes() + held as u64);
    Ok(DryRun { peak_rss_bytes, step_ms, prefix_ms })
}

/// Clips that the busiest thread goes through, one after the other.
fn rounds_of(batch: usize, workers: usize) -> usize {
    let part = batch.div_ceil(PARTS);
    batch.div_ceil(part * workers) * part
}

fn least<E>(mut f: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let started = Instant::now();
        f()?;
        best = best.min(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}
