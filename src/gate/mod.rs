//! Whether an update may be tried, and whether one on trial stays.
//!
//! ```text
//! owner's clips ─ folds ─┐
//! guard, ambient ────────┼→ Verdict: admitted to trial, or why not
//!                        ┘
//! wakes, feedback, time ──→ Trial: confirm, roll back, or go on
//! ```
//!
//! [`examine`] judges a candidate before it is used, from few clips; it admits to a trial only. A [`Trial`] judges it by what
//! happens in use, against the adapter before it, which hears the same windows. Nothing here reads a clock or a file.

mod examine;
mod trial;

pub use examine::{
    Calibration, Counts, Evidence, Examined, Figures, GateError, GateSettings, Likeness, Paired, Verdict, examine,
};
pub use trial::{Observation, Outcome, Rate, Thresholds, Trial, TrialSettings};
