//! Words in sound as it comes: from a clip, a pipe or the microphone.
//!
//! ```text
//! Sound → resampled → window of features each hop → gate → scores → averaged → threshold → Detection
//! ```
//!
//! A [`Spotter`] does this for one stream; [`listen`] runs it on a [`Sound`] until that ends. A gap in the sound is counted,
//! handed on as an event, and never glued over.

mod detector;
mod spotter;

pub use detector::{Detection, Detector, DetectorSettings, NOT_WORDS};
pub use spotter::{Heard, ListenSettings, Prepared, Preparer, Spotter};

use crate::model::ModelError;
use crate::source::{self, Sound, SourceError};

/// Why sound cannot be listened to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The sound.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A setting out of range.
    #[error("`{what}`: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A threshold of a label that the model lacks.
    #[error("a threshold for `{label}`, which is no label of the model; it has {}", labels.join(", "))]
    Label {
        /// The label.
        label: String,
        /// What the model has.
        labels: Vec<String>,
    },
    /// A session of another model.
    #[error(
        "the session takes {found} values and gives {scores} scores, the model has {expected} values and {labels} labels; \
         make the session from the same model (with an adapter that has labels of its own: from `Model::for_adapter`)"
    )]
    Session {
        /// Values of the model's input.
        expected: usize,
        /// Values of the session's input.
        found: usize,
        /// Labels of the model.
        labels: usize,
        /// Scores of the session.
        scores: usize,
    },
}

/// What happened while listening.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A word was said.
    Detected(Detection),
    /// Sound was lost.
    Gap {
        /// How much, in seconds, as far as that is known; 0 where it is not.
        lost_seconds: f64,
        /// Where it begins, in seconds of sound from the beginning.
        at_seconds: f64,
    },
    /// A block was listened to, or none came in time: the moment to look for a reason to stop.
    Idle,
}

/// Samples that are asked of a sound at once.
const BLOCK: usize = 1024;

/// Listens to `sound` until it ends or `on_event` returns false; it is told what happened and how many seconds of sound
/// went by. After its end a window of silence is listened to, so that a word at the very end of a clip is heard in every
/// place of the window.
///
/// # Errors
/// A sound that failed; see [`Spotter::next`].
pub fn listen(
    sound: &mut dyn Sound,
    spotter: &mut Spotter,
    on_event: &mut dyn FnMut(Event, f64) -> bool,
) -> Result<(), ListenError> {
    let mut block = [0.0; BLOCK];
    loop {
        match sound.read(&mut block)? {
            source::Heard::Samples(count) => {
                if !hear(spotter, &block[..count], on_event)? {
                    return Ok(());
                }
            }
            source::Heard::Gap { lost_samples } => {
                let at_seconds = spotter.seconds();
                spotter.gap(lost_samples);
                let lost_seconds = lost_samples as f64 / f64::from(sound.rate_hz());
                if !on_event(Event::Gap { lost_seconds, at_seconds }, spotter.seconds()) {
                    return Ok(());
                }
            }
            source::Heard::Nothing => {}
            source::Heard::End => break,
        }
        if !on_event(Event::Idle, spotter.seconds()) {
            return Ok(());
        }
    }
    block.fill(0.0);
    let mut left = spotter.window_source_samples();
    while left > 0 {
        let count = left.min(BLOCK);
        if !hear(spotter, &block[..count], on_event)? {
            return Ok(());
        }
        left -= count;
    }
    Ok(())
}

fn hear(
    spotter: &mut Spotter,
    mut block: &[f32],
    on_event: &mut dyn FnMut(Event, f64) -> bool,
) -> Result<bool, ListenError> {
    while let Some(detection) = spotter.next(&mut block)? {
        if !on_event(Event::Detected(detection), spotter.seconds()) {
            return Ok(false);
        }
    }
    Ok(true)
}
