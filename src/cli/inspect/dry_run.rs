//! Some steps on random input: what training takes on this machine.

use std::time::Instant;

use serde::Serialize;

use crate::cli::memory;
use crate::train::{Clip, PARTS, Trainer};
use crate::{CacheOptions, Model};

/// A step is timed this often at least, and until they took so long together, or many were made; the least counts.
const REPEATS: usize = 2;
const REPEATS_MS: f64 = 200.0;
const MOST_REPEATS: usize = 20;

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
    cache: &CacheOptions,
) -> anyhow::Result<DryRun> {
    let mut rng = fastrand::Rng::with_seed(0);
    let mut random = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.f32() * 2.0 - 1.0).collect() };
    let mut examples = model.new_examples(1);
    let input_len = examples.input_len();
    examples.push(&random(input_len), 0)?;
    let started = Instant::now();
    let cached = trainer.cache_as(&examples, cache)?;
    let prefix_ms = if trainer.prefix().is_some() { started.elapsed().as_secs_f64() * 1e3 } else { 0.0 };
    let clip: Clip = (cached.input(0, 0), 0);
    let clips = vec![clip; batch];
    let step_ms = least(|| trainer.step(&clips, 0.0).map(|_| ()))?;
    let held = |bytes: usize| (inputs * bytes) as u64;
    let read = held(input_len * size_of::<f32>());
    // Where nothing is frozen the cache has what was read, if it is to hold it as it is.
    let shared = trainer.prefix().is_none() && *cache == CacheOptions::default();
    let kept = if shared || cache.folder.is_some() { 0 } else { held(trainer.cached_bytes(cache.format)) };
    let arenas =
        threads.clamp(1, PARTS) * (trainer.arena_bytes() + trainer.plan().accumulators_len() * size_of::<f32>());
    // Each evaluation counts labels against labels: the one before is there all along, the one after at the end.
    let confusion = (model.labels().len().pow(2) * size_of::<usize>()) as u64;
    let now = memory::rss_bytes();
    // While the prefix runs, no arena of a step has been touched.
    let caching = now.saturating_sub(arenas as u64) + read + kept + confusion;
    let training = now + read + kept + confusion;
    let evaluating = now + read + 2 * confusion;
    let peak_rss_bytes = [caching, training, evaluating].into_iter().fold(memory::peak_rss_bytes(), u64::max);
    Ok(DryRun { peak_rss_bytes, step_ms, prefix_ms })
}

fn least<E>(mut f: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let (mut best, mut total) = (f64::INFINITY, 0.0);
    for repeat in 0..MOST_REPEATS {
        if repeat >= REPEATS && total > REPEATS_MS {
            break;
        }
        let started = Instant::now();
        f()?;
        let took = started.elapsed().as_secs_f64() * 1e3;
        best = best.min(took);
        total += took;
    }
    Ok(best)
}
