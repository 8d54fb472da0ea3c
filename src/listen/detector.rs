//! Scores of windows → words that were said.
//!
//! Posterior handling as in Chen, Parada and Heigold, "Small-footprint keyword spotting using deep neural networks" (ICASSP 2014): scores are
//! averaged over the last windows, a word is there where its average reaches the threshold, and after it nothing is for a
//! while. A word that is still in the window then is not there a second time: its average must fall below the threshold first.

use serde::{Deserialize, Serialize};

use super::ListenError;

/// Labels that are no words: those that the public keyword models have for everything else.
pub const NOT_WORDS: [&str; 3] = ["_silence_", "_unknown_", "_other_"];

/// When a word counts as said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectorSettings {
    /// Windows that a score is averaged over; 1: none but the last. With a hop of 100 ms five of them take 20 of 20 digits of
    /// a speaker and nothing else; three take nine beginnings and ends of digits for others.
    pub smoothing_windows: usize,
    /// The average from which on a word is there, 0 to 1. Models that were trained with label smoothing, as `adapt` does, are
    /// seldom surer than .9 in the middle of a word.
    pub threshold: f32,
    /// Thresholds of single labels.
    pub thresholds: std::collections::BTreeMap<String, f32>,
    /// For so long after a word no other one is taken, in ms.
    pub refractory_ms: u32,
    /// Labels that are never events.
    pub ignored: Vec<String>,
}

impl Default for DetectorSettings {
    fn default() -> Self {
        Self {
            smoothing_windows: 5,
            threshold: 0.6,
            thresholds: std::collections::BTreeMap::new(),
            refractory_ms: 750,
            ignored: NOT_WORDS.map(String::from).into(),
        }
    }
}

impl DetectorSettings {
    /// The threshold of each label; infinite for those that are never events.
    ///
    /// # Errors
    /// As [`Detector::new`].
    pub(crate) fn of_labels(&self, labels: &[String]) -> Result<Vec<f32>, ListenError> {
        if !(1..=1000).contains(&self.smoothing_windows) {
            return Err(ListenError::Setting {
                what: "smoothing_windows",
                expected: "1 to 1000",
                found: self.smoothing_windows.to_string(),
            });
        }
        for threshold in self.thresholds.values().chain([&self.threshold]) {
            if !(*threshold > 0.0 && *threshold <= 1.0) {
                return Err(ListenError::Setting {
                    what: "threshold",
                    expected: "more than 0 and at most 1",
                    found: threshold.to_string(),
                });
            }
        }
        if let Some(label) = self.thresholds.keys().find(|label| !labels.contains(label)) {
            return Err(ListenError::Label { label: label.clone(), labels: labels.to_vec() });
        }
        let of = |label: &String| match self.thresholds.get(label) {
            Some(threshold) => *threshold,
            None if self.ignored.contains(label) => f32::INFINITY,
            None => self.threshold,
        };
        Ok(labels.iter().map(of).collect())
    }
}

/// A word that was said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Its index in the order of the labels.
    pub label: usize,
    /// The average score with which it was taken.
    pub score: f32,
    /// The end of the window in which it was taken, in seconds of sound from the beginning, lost sound included.
    pub at_seconds: f64,
}

/// Averages scores and decides. Nothing is allocated after it is made.
#[derive(Clone, Debug)]
pub struct Detector {
    /// Of each label; infinite for those that are never events.
    thresholds: Vec<f32>,
    refractory_seconds: f64,
    /// The last scores, `[smoothing_windows, labels]`; zeros where none came yet.
    scores: Vec<f32>,
    next: usize,
    averages: Vec<f32>,
    /// Whether the average was below the threshold since the last event.
    armed: Vec<bool>,
    last: Option<f64>,
}

impl Detector {
    /// For scores in the order of `labels`.
    ///
    /// # Errors
    /// No windows to average over, a threshold that is not within 0 and 1, a threshold of a label that is not there.
    pub fn new(labels: &[String], settings: &DetectorSettings) -> Result<Self, ListenError> {
        let thresholds = settings.of_labels(labels)?;
        Ok(Self {
            thresholds,
            refractory_seconds: f64::from(settings.refractory_ms) / 1000.0,
            scores: vec![0.0; settings.smoothing_windows * labels.len()],
            next: 0,
            averages: vec![0.0; labels.len()],
            armed: vec![true; labels.len()],
            last: None,
        })
    }

    /// Takes the scores of the next window, which ends at `at_seconds`: the word that is there with it, if one is.
    ///
    /// # Panics
    /// With another number of scores than labels.
    pub fn push(&mut self, scores: &[f32], at_seconds: f64) -> Option<Detection> {
        let labels = self.thresholds.len();
        assert_eq!(scores.len(), labels, "one score a label");
        self.scores[self.next * labels..][..labels].copy_from_slice(scores);
        let windows = self.scores.len() / labels.max(1);
        self.next = (self.next + 1) % windows.max(1);
        for (label, average) in self.averages.iter_mut().enumerate() {
            let sum: f32 = self.scores.iter().skip(label).step_by(labels).sum();
            *average = sum / windows as f32;
            self.armed[label] |= *average < self.thresholds[label];
        }
        if self.last.is_some_and(|last| at_seconds - last < self.refractory_seconds) {
            return None;
        }
        let there = |label: &usize| self.armed[*label] && self.averages[*label] >= self.thresholds[*label];
        let label = (0..labels).filter(there).max_by(|a, b| self.averages[*a].total_cmp(&self.averages[*b]))?;
        self.armed[label] = false;
        self.last = Some(at_seconds);
        Some(Detection { label, score: self.averages[label], at_seconds })
    }

    /// Takes other thresholds, `[labels]`, and gives its own; the scores so far stay.
    pub(super) fn swap_thresholds(&mut self, thresholds: &mut Vec<f32>) {
        std::mem::swap(&mut self.thresholds, thresholds);
    }

    /// The label whose average is closest to its threshold, and what share of it that is.
    pub fn closest(&self) -> Option<(usize, f32)> {
        let shares = self.averages.iter().zip(&self.thresholds).map(|(average, threshold)| average / threshold);
        shares.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, share)| *share > 0.0)
    }

    /// The averages of the last window, in the order of the labels.
    pub fn averages(&self) -> &[f32] {
        &self.averages
    }

    /// Forgets the scores so far, not the last word: after a gap in the sound.
    pub fn reset(&mut self) {
        self.scores.fill(0.0);
        self.averages.fill(0.0);
        self.armed.fill(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["_silence_", "stop", "go"].map(String::from).into()
    }

    fn detector(change: impl FnOnce(&mut DetectorSettings)) -> Result<Detector, ListenError> {
        let mut settings = DetectorSettings { threshold: 0.6, smoothing_windows: 3, ..DetectorSettings::default() };
        change(&mut settings);
        Detector::new(&labels(), &settings)
    }

    /// Label and window of every event for scores of `stop`, ten windows a second.
    fn events(detector: &mut Detector, stop: &[f32]) -> Vec<(usize, usize)> {
        let push = |(at, stop): (usize, &f32)| {
            let found = detector.push(&[1.0 - stop, *stop, 0.0], at as f64 / 10.0)?;
            Some((found.label, at))
        };
        stop.iter().enumerate().filter_map(push).collect()
    }

    #[test]
    fn one_high_window_is_no_word_and_three_are_one() {
        let mut one = detector(|_| {}).unwrap();
        assert_eq!(events(&mut one, &[0.0, 0.0, 1.0, 0.0, 0.0]), []);
        assert_eq!(events(&mut one, &[0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.0]), [(1, 3)]);
        let mut plain = detector(|s| s.smoothing_windows = 1).unwrap();
        assert_eq!(events(&mut plain, &[0.0, 0.0, 1.0, 0.0, 0.0]), [(1, 2)]);
    }

    #[test]
    fn a_word_that_stays_is_one_and_one_that_comes_again_is_two() {
        let mut plain = detector(|s| s.smoothing_windows = 1).unwrap();
        assert_eq!(events(&mut plain, &[0.9; 40]), [(1, 0)]);
        let mut twice = [0.9; 40];
        twice[3] = 0.0;
        twice[20] = 0.0;
        let mut plain = detector(|s| s.smoothing_windows = 1).unwrap();
        // The first fall is within the refractory time: the word is taken when that is over.
        assert_eq!(events(&mut plain, &twice), [(1, 0), (1, 8), (1, 21)]);
    }

    #[test]
    fn labels_have_thresholds_of_their_own_and_silence_none() {
        let mut two = detector(|s| {
            s.smoothing_windows = 1;
            s.thresholds.insert("go".into(), 0.3);
        })
        .unwrap();
        assert_eq!(two.push(&[0.99, 0.0, 0.01], 0.0), None);
        assert_eq!(two.push(&[0.1, 0.55, 0.35], 1.0).map(|d| d.label), Some(2));
        let mut silence = detector(|s| {
            s.smoothing_windows = 1;
            s.ignored.clear();
        })
        .unwrap();
        assert_eq!(silence.push(&[0.99, 0.0, 0.01], 0.0).map(|d| (d.label, d.score)), Some((0, 0.99)));
    }

    #[test]
    fn a_gap_forgets_scores() {
        let mut one = detector(|_| {}).unwrap();
        assert_eq!(events(&mut one, &[0.9, 0.8]), []);
        one.reset();
        assert_eq!(events(&mut one, &[0.9, 0.8]), []);
        assert!((one.averages()[1] - 1.7 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn settings_are_checked() {
        assert!(matches!(detector(|s| s.smoothing_windows = 0), Err(ListenError::Setting { .. })));
        for wrong in [0.0, -1.0, 1.1, f32::NAN] {
            assert!(matches!(detector(|s| s.threshold = wrong), Err(ListenError::Setting { .. })), "{wrong}");
        }
        let error = detector(|s| {
            s.thresholds.insert("stopp".into(), 0.5);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`stopp`") && error.contains("stop, go"), "{error}");
    }
}
