//! An adapter in use, watched.

use serde::{Deserialize, Serialize};

/// When a trial ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrialSettings {
    /// Chance that an adapter which is worse than the one before is confirmed, and that a better one is taken back.
    pub error_rate: f32,
    /// Share of its mistakes that the owner is assumed to correct, 0 to 1.
    pub corrected_share: f32,
    /// Utterances (wakes, and words that the owner says were missed) after which it is decided: without evidence for the trial,
    /// the adapter before it comes back.
    pub utterances: usize,
    /// After so long, in seconds, a wake that the owner said nothing to counts as right.
    pub feedback_seconds: f64,
}

impl Default for TrialSettings {
    fn default() -> Self {
        Self { error_rate: 0.05, corrected_share: 0.5, utterances: 50, feedback_seconds: 60.0 }
    }
}

/// From which score on a word counts as heard.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// With the adapter on trial.
    pub trial: f32,
    /// With the one before it.
    pub before: f32,
}

/// Wakes in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Wakes.
    pub wakes: u64,
    /// Time in which the device listened, in seconds.
    pub seconds: f64,
}

/// What happened. Scores are those of one window, in the order of the labels; the adapter before may have fewer labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observation<'a> {
    /// A word was taken.
    Wake {
        /// Scores of the adapter on trial.
        trial: &'a [f32],
        /// Scores of the adapter before it, in its shadow.
        before: &'a [f32],
    },
    /// The owner: the last wake was right.
    Confirmed,
    /// The owner: the last wake was this label.
    Corrected(usize),
    /// The owner: nothing was said at the last wake.
    FalseWake,
    /// The owner: a word was said and not taken.
    Missed {
        /// The word.
        label: usize,
        /// Scores of the adapter on trial where the word was said.
        trial: &'a [f32],
        /// Scores of the adapter before it.
        before: &'a [f32],
    },
    /// The device listened for so many seconds more.
    Listened(f64),
}

/// How a trial ends; the text explains it with figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It stays.
    Confirm(String),
    /// The adapter before it comes back.
    RollBack(String),
}

/// Watches an adapter in use. Serialised, it goes on after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    settings: TrialSettings,
    thresholds: Thresholds,
    rate_before: Rate,
    rate: Rate,
}

impl Trial {
    /// Begins. `rate_before` is how often the device woke with the adapter before.
    pub fn new(settings: &TrialSettings, thresholds: Thresholds, rate_before: Rate) -> Self {
        Self { settings: settings.clone(), thresholds, rate_before, rate: Rate::default() }
    }

    /// Takes what happened; says how the trial ends, once it does. Later observations change nothing.
    pub fn observe(&mut self, observation: Observation) -> Option<Outcome> {
        match observation {
            Observation::Wake { .. } => self.rate.wakes += 1,
            Observation::Listened(seconds) => self.rate.seconds += seconds,
            _ => {}
        }
        None
    }

    /// Where it stands: a sentence with figures.
    pub fn explain(&self) -> String {
        format!("{} wakes in {:.0} s", self.rate.wakes, self.rate.seconds)
    }
}
