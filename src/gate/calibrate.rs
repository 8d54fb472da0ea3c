//! Thresholds to listen with: false accepts first, then misses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::examine::{GateSettings, best};
use crate::listen::{DetectorSettings, NOT_WORDS};

/// Distance of the thresholds that are tried.
const STEP: f32 = 0.05;

/// Thresholds to listen with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Of all labels that have none of their own.
    pub threshold: f32,
    /// Of single labels, which other sounds are taken for more often.
    pub thresholds: BTreeMap<String, f32>,
    /// Windows without a word, and clips of others, that are taken for a word that was not said.
    pub false_accepts: usize,
    /// Owner's clips that are missed, by candidates that did not learn from them.
    pub misses: usize,
}

impl Calibration {
    /// The word that these scores are taken for.
    pub(super) fn takes(&self, labels: &[String], scores: &[f32]) -> Option<usize> {
        let label = best(scores);
        let name = labels.get(label)?;
        let threshold = self.thresholds.get(name).copied().unwrap_or(self.threshold);
        (!NOT_WORDS.contains(&name.as_str()) && scores[label] >= threshold).then_some(label)
    }
}

/// Scores clip by clip with the candidate; of the owner's, with candidates that did not learn from them.
pub(super) struct Heard<'a> {
    pub(super) owner: &'a [Vec<f32>],
    pub(super) guard: &'a [Vec<f32>],
    pub(super) ambient: &'a [Vec<f32>],
}

/// What was said.
pub(super) struct Targets<'a> {
    pub(super) owner: &'a [usize],
    pub(super) guard: &'a [usize],
}

/// The lowest threshold with which no more windows without a word and clips of others are taken for a word that was not said
/// than the settings allow, or than are taken now at the usual threshold; where there is none, the highest. Then the same
/// for each word. `now` has the scores of guard and ambient with what is in use.
pub(super) fn calibrate(
    labels: &[String],
    heard: &Heard,
    now: (&[Vec<f32>], &[Vec<f32>]),
    targets: &Targets,
    settings: &GateSettings,
) -> Calibration {
    let usual = DetectorSettings::default().threshold;
    let windows = heard.guard.len() + heard.ambient.len();
    // Each as the word that it would be taken for, with its score.
    let wrong = |guard: &[Vec<f32>], ambient: &[Vec<f32>]| -> Vec<(usize, f32)> {
        let said = targets.guard.iter().copied().map(Some).chain(std::iter::repeat(None));
        let as_word = |(scores, said): (&Vec<f32>, Option<usize>)| {
            let label = best(scores);
            let word = labels.get(label).is_some_and(|name| !NOT_WORDS.contains(&name.as_str()));
            (word && Some(label) != said).then(|| (label, scores[label]))
        };
        guard.iter().chain(ambient).zip(said).filter_map(as_word).collect()
    };
    let (then, now) = (wrong(heard.guard, heard.ambient), wrong(now.0, now.1));
    let count = |of: &[(usize, f32)], label: Option<usize>, threshold: f32| {
        of.iter().filter(|(l, score)| label.is_none_or(|label| label == *l) && *score >= threshold).count()
    };
    let allowed = (settings.false_accept_share * windows as f32).floor() as usize;
    let lowest = |label: Option<usize>, from: f32| {
        let most = allowed.max(count(&now, label, usual));
        let mut threshold = from;
        while count(&then, label, threshold) > most && threshold < settings.highest_threshold {
            threshold = (threshold + STEP).min(settings.highest_threshold);
        }
        threshold
    };
    // With fewer windows of the surroundings than the allowed share is one of, nothing speaks for less than the usual.
    let enough = settings.false_accept_share * heard.ambient.len() as f32 >= 1.0;
    let threshold = lowest(None, if enough { settings.lowest_threshold } else { usual });
    let own = labels.iter().enumerate().map(|(label, name)| (name.clone(), lowest(Some(label), threshold)));
    let thresholds = own.filter(|(_, own)| *own > threshold).collect();
    let mut calibration = Calibration { threshold, thresholds, ..Calibration::default() };
    let takes = |scores: &Vec<f32>| calibration.takes(labels, scores);
    let of_guard = heard.guard.iter().zip(targets.guard);
    let false_accepts = of_guard.filter(|(s, said)| takes(s).is_some_and(|label| label != **said)).count()
        + heard.ambient.iter().filter(|s| takes(s).is_some()).count();
    let misses = heard.owner.iter().zip(targets.owner).filter(|(s, said)| takes(s) != Some(**said)).count();
    (calibration.false_accepts, calibration.misses) = (false_accepts, misses);
    calibration
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second of silence.
    const QUIET: [f32; 3] = [0.8, 0.1, 0.1];

    fn of(ambient: &[[f32; 3]], now: &[[f32; 3]]) -> Calibration {
        let labels = ["_silence_", "stop", "go"].map(String::from);
        let rows = |all: &[[f32; 3]]| all.iter().map(|s| s.to_vec()).collect::<Vec<_>>();
        let owner = rows(&[[0.1, 0.7, 0.2], [0.1, 0.2, 0.7], [0.3, 0.45, 0.25]]);
        let (guard, ambient, now) = (rows(&[[0.0, 0.9, 0.1]]), rows(ambient), rows(now));
        let heard = Heard { owner: &owner, guard: &guard, ambient: &ambient };
        let targets = Targets { owner: &[1, 2, 1], guard: &[1] };
        calibrate(&labels, &heard, (&guard, &now), &targets, &GateSettings::default())
    }

    /// Many quiet windows and two others.
    fn and(two: [f32; 3]) -> Vec<[f32; 3]> {
        let mut all = vec![QUIET; 60];
        all.extend([two; 2]);
        all
    }

    #[test]
    fn false_accepts_come_first() {
        // Nothing is taken for a word: the lowest threshold misses least.
        let quiet = of(&and(QUIET), &[]);
        assert_eq!((quiet.threshold, quiet.false_accepts, quiet.misses), (0.4, 0, 0));
        // Two windows as `go` at .63, one too many: above that, and of the owner's three words the unsure one is missed.
        let loud = of(&and([0.0, 0.37, 0.63]), &[]);
        assert!((loud.threshold - 0.65).abs() < 1e-6, "{loud:?}");
        assert_eq!((loud.false_accepts, loud.misses), (0, 1));
        // What is taken now as well is no reason.
        assert_eq!(of(&and([0.0, 0.37, 0.63]), &and([0.0, 0.3, 0.7])).threshold, 0.4);
        // Silence is no word, however sure.
        assert_eq!(of(&and([1.0, 0.0, 0.0]), &[]).threshold, 0.4);
        // Where none will do, the highest.
        assert_eq!(of(&and([0.0, 0.0, 1.0]), &[]).threshold, GateSettings::default().highest_threshold);
        // With little evidence not below the usual one.
        assert_eq!(of(&[], &[]).threshold, DetectorSettings::default().threshold);
    }

    #[test]
    fn a_word_that_others_are_taken_for_has_its_own() {
        // Before, as many windows were taken for `stop` as are now for `go`.
        let found = of(&and([0.0, 0.37, 0.63]), &and([0.0, 0.9, 0.1]));
        assert_eq!(found.threshold, 0.4);
        assert!((found.thresholds["go"] - 0.65).abs() < 1e-6 && found.thresholds.len() == 1, "{found:?}");
        assert_eq!((found.false_accepts, found.misses), (0, 0));
    }
}
