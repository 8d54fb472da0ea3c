//! Loss, optimiser, schedule, trainer, runs that rest and resume, their budgets, evaluation.

mod cache;
mod checkpoint;
mod evaluate;
mod examples;
mod fit;
mod governor;
mod loss;
mod optimiser;
mod run;
mod schedule;
mod sensors;
mod trainer;

pub use cache::{CacheFormat, CacheOptions, Cached, CachedInput, ClipInput};
pub use checkpoint::{Checkpoint, CheckpointError, Fingerprint};
pub(crate) use evaluate::predicted;
pub use evaluate::{ClassCount, Evaluation};
pub use examples::Examples;
pub(crate) use examples::row_major;
pub use fit::{FitReport, Progress, Splits, TrainConfig};
pub use governor::{Governor, Limits, OnBattery, Reason, Verdict};
pub use loss::{CustomLoss, Loss};
pub use optimiser::{Optimiser, OptimiserKind};
pub use run::{RateTrial, Run};
pub use schedule::Schedule;
pub use sensors::{Battery, Readings, Sensors, SystemSensors};
#[cfg(feature = "cli")]
pub(crate) use trainer::PARTS;
pub use trainer::{CacheWriter, Clip, Trainer};

use std::path::PathBuf;

use crate::plan::PlanError;

/// Why training cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The network cannot be trained as asked.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No site fits the choice.
    #[error("no layer to adapt: {0}; `accentor inspect` lists the sites")]
    NoSite(String),
    /// Rank zero.
    #[error("rank 0 has nothing to train; use --rank 1 or more (8 is the default)")]
    RankZero,
    /// A setting that makes no sense.
    #[error("{what} = {found} is not possible: {cure}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        cure: &'static str,
    },
    /// Nothing to learn from.
    #[error("no examples to train on")]
    Empty,
    /// One class only teaches the model to say that class always.
    #[error(
        "all {count} examples have the label `{label}`: add other labels, or clips of the other words with --replay"
    )]
    OneClass {
        /// The label.
        label: String,
        /// How many.
        count: usize,
    },
    /// A NaN or infinity in the data.
    #[error("example {index} holds a value that is not finite")]
    NotFinite {
        /// Which example.
        index: usize,
    },
    /// Feature count does not fit.
    #[error("an example has {found} values, the model takes {expected}")]
    Length {
        /// What the model takes.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// Room for another number of scores.
    #[error("the model has {expected} scores, there is room for {found}: give a slice of `Session::classes` values")]
    Scores {
        /// What the model has.
        expected: usize,
        /// Length of the slice.
        found: usize,
    },
    /// An array that is not in the shape of the model's input.
    #[error("expected an array of shape {expected:?} (dimensions of 1 may be left out), found {found:?}")]
    Shape {
        /// What the model takes.
        expected: Vec<usize>,
        /// What came.
        found: Vec<usize>,
    },
    /// A step was given something else than what the frozen prefix gives.
    #[error("a clip has {found} values, a step takes {expected}: give it what `Trainer::cache` returns")]
    Uncached {
        /// What a step takes.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// Parameters of another trainer.
    #[error(
        "found {found} parameters, the adapter has {expected}: restore what `Trainer::snapshot` of the same trainer gave"
    )]
    Parameters {
        /// What the adapter has.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A label index beyond the scores.
    #[error("label index {found} is beyond the {classes} scores of the model")]
    Target {
        /// The index.
        found: usize,
        /// Scores.
        classes: usize,
    },
    /// The loss is not finite any more.
    #[error("training diverged at step {step} with learning rate {rate:e}: lower --lr, or leave it to `--lr auto`")]
    Diverged {
        /// Optimiser step.
        step: usize,
        /// Rate.
        rate: f32,
    },
    /// A value that the format of the cache does not reach.
    #[error(
        "example {index}: the frozen layers give {found:e}, which a cache in {format} cannot hold; use f32 (--cache f32)"
    )]
    CacheRange {
        /// Which example.
        index: usize,
        /// The value.
        found: f32,
        /// The format.
        format: CacheFormat,
    },
    /// The system has not the memory that the cache needs.
    #[error(
        "the cache needs {} MiB of memory, more than this system gives; take a smaller format (--cache int8), or a file \
         (--cache-file)",
        .bytes >> 20
    )]
    CacheMemory {
        /// Bytes of all clips.
        bytes: usize,
    },
    /// The cache's file could not be made or written.
    #[error(
        "cannot write a cache of {} MiB in {}: {source}; free that much, name another folder, or take a smaller format \
         (--cache int8)",
        .bytes.div_ceil(1 << 20), .folder.display()
    )]
    CacheWrite {
        /// Its folder.
        folder: PathBuf,
        /// Bytes of all clips.
        bytes: usize,
        /// The system's word.
        source: std::io::Error,
    },
    /// The cache's file could not be read again.
    #[error("cannot read the cache in {}: {source}; name a folder on another disk", .folder.display())]
    CacheRead {
        /// Its folder.
        folder: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Threads could not be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many.
        threads: usize,
        /// Why.
        reason: String,
    },
}
