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

mod calibrate;
mod examine;
mod judge;
mod likeness;
mod paired;
mod trial;

pub use calibrate::Calibration;
pub use examine::{Counts, Evidence, Examined, Figures, GateError, GateSettings, Verdict, examine};
pub use likeness::Likeness;
pub use paired::Paired;
pub use trial::{Observation, Outcome, Rate, Tally, Thresholds, Trial, TrialSettings};
