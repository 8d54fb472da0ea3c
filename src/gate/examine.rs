//! A candidate before it is used: what it does on the owner's clips that it did not learn from, and on what it must not break.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::calibrate::{Calibration, Heard, Targets, calibrate};
use super::judge::judge;
use super::likeness::Likeness;
use super::paired::Paired;
use crate::listen::DetectorSettings;
use crate::lora::Adapter;
use crate::model::{Model, ModelError};
use crate::session::Session;
use crate::train::{Examples, TrainError};

/// What a candidate is judged on: features as the model takes them, targets as indices of its labels.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The owner's clips that the candidate learns from, the earlier ones first. The first variant of each is the clip as it
    /// was; only that is judged.
    pub owner: &'a Examples,
    /// How many of them are earlier ones, which a confirmed adapter learnt from; those behind are fresh.
    pub earlier: usize,
    /// Clips of others with their labels, which must not get worse, and which training did not see.
    pub guard: &'a Examples,
    /// Windows of the device's own surroundings in which no word was said; targets are not read.
    pub ambient: &'a Examples,
}

/// When a candidate is admitted to a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// Parts that the owner's clips are cut into, at least 2: as many candidates are trained, each without one part, to be
    /// judged on it.
    pub folds: usize,
    /// A margin between a word and the next above this is no better for being larger, 0 to 1.
    pub enough_margin: f32,
    /// Largest chance that the gain on the fresh clips is luck, 0 to 1. It may be large: what is let in here is tried, not
    /// trusted.
    pub gain_chance: f32,
    /// Least share of the fresh clips that candidates find which did not learn from them, 0 to 1.
    pub least_found: f32,
    /// A clip that is taken for another word with such a margin contradicts its label, 0 to 1.
    pub firm_margin: f32,
    /// Share of an honest batch whose labels are contradicted by the way, 0 to 1 …
    pub slip_share: f32,
    /// … and the chance of as many as there are, below which it is not believed that they are slips, 0 to 1.
    pub slip_chance: f32,
    /// Largest distance of the fresh clips from the earlier ones, as a share of the distance of other people's clips.
    pub stranger_share: f32,
    /// Largest share of the earlier clips, and of the guard, that may be lost beyond those that are won, 0 to 1 …
    pub lost_share: f32,
    /// … unless the chance of so many lost among those that changed is above this, 0 to 1.
    pub lost_chance: f32,
    /// Largest share of the windows without a word that may be taken for one in addition, 0 to 1.
    pub false_accept_share: f32,
    /// Lowest threshold to listen with, above 0.
    pub lowest_threshold: f32,
    /// Highest threshold to listen with, at most 1.
    pub highest_threshold: f32,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            folds: 5,
            enough_margin: 0.5,
            gain_chance: 0.25,
            least_found: 0.5,
            firm_margin: 0.4,
            slip_share: 0.05,
            slip_chance: 0.05,
            stranger_share: 0.7,
            lost_share: 0.05,
            lost_chance: 0.1,
            false_accept_share: 0.02,
            lowest_threshold: 0.4,
            highest_threshold: 0.75,
        }
    }
}

/// Why a candidate cannot be judged; `E` is the error of the training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError<E: std::error::Error + 'static> {
    /// A training failed or was stopped.
    #[error(transparent)]
    Training(E),
    /// The model or an adapter.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A clip that does not fit the model.
    #[error(transparent)]
    Clip(#[from] TrainError),
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
    /// No fresh clips.
    #[error("no fresh clips to judge by: {owner} clips of the owner, of which {earlier} are earlier ones")]
    Nothing {
        /// Clips of the owner.
        owner: usize,
        /// Earlier ones among them.
        earlier: usize,
    },
}

/// A candidate, and what was found about it.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Trained on all of the owner's clips.
    pub adapter: Adapter,
    /// What was found.
    pub verdict: Verdict,
}

/// What was found about a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it may go on trial.
    pub admitted: bool,
    /// Why, or why not: sentences with figures, one a check.
    pub reasons: Vec<String>,
    /// All figures.
    pub figures: Figures,
    /// Thresholds to listen with: those of [`crate::listen::DetectorSettings`].
    pub calibration: Calibration,
}

/// All figures of a verdict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Trainings: one a fold, and the candidate.
    pub trainings: usize,
    /// Fresh clips: in use now, against candidates that did not learn from them.
    pub fresh: Paired,
    /// Earlier clips: in use now, against the candidate; both learnt from them.
    pub earlier: Paired,
    /// Clips of others: in use now, against the candidate.
    pub guard: Paired,
    /// Fresh clips that candidates which did not learn from them firmly take for another word.
    pub contradicted: usize,
    /// How far the fresh clips are from the earlier ones.
    pub likeness: Option<Likeness>,
    /// Windows without a word, and those that were taken for one.
    pub ambient: Counts,
}

/// Windows without a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Windows.
    pub windows: usize,
    /// Taken for a word with what is in use now, at the usual threshold.
    pub taken_before: usize,
    /// Taken for a word with the candidate, at the thresholds found for it.
    pub taken_after: usize,
}

/// Trains candidates and judges them. `before` is the adapter in use, none where the base is. `train` gets the indices of the
/// owner's clips to learn from, with whatever it replays beside them; it starts from the same point each time, and may rest
/// or fail.
///
/// # Errors
/// No fresh clips, settings that make no sense, a training that failed, clips that do not fit the model.
pub fn examine<E: std::error::Error + 'static>(
    model: &Model,
    before: Option<&Adapter>,
    evidence: &Evidence,
    settings: &GateSettings,
    train: &mut dyn FnMut(&[usize]) -> Result<Adapter, E>,
) -> Result<Examined, GateError<E>> {
    let Evidence { owner, earlier, guard, ambient } = *evidence;
    if earlier >= owner.len() {
        return Err(GateError::Nothing { owner: owner.len(), earlier });
    }
    check::<E>(settings)?;

    let all: Vec<usize> = (0..owner.len()).collect();
    let folds = folds(owner.targets(), earlier, settings.folds);
    let mut unseen = vec![Vec::new(); owner.len()];
    let parts = folds.iter().max().map_or(0, |last| last + 1);
    for part in 0..parts {
        let (without, of): (Vec<usize>, Vec<usize>) = all.iter().copied().partition(|i| folds[*i] == part);
        if of.is_empty() {
            continue;
        }
        let session = model.session(Some(&train(&of).map_err(GateError::Training)?))?;
        for index in without {
            unseen[index] = session.scores(owner.input(index, 0))?;
        }
    }
    let adapter = train(&all).map_err(GateError::Training)?;

    let now = model.session(before)?;
    let candidate = model.session(Some(&adapter))?;
    let (of_owner, of_owner_after) = (scores(&now, owner)?, scores(&candidate, owner)?);
    // A single clip in all has nothing to be learnt without it.
    for (unseen, now) in unseen.iter_mut().zip(&of_owner).filter(|(unseen, _)| unseen.is_empty()) {
        unseen.clone_from(now);
    }
    let fresh = earlier..owner.len();
    let paired = |before: &[Vec<f32>], after: &[Vec<f32>], targets: &[usize]| {
        Paired::of(&margins(before, targets), &margins(after, targets), settings.enough_margin)
    };
    let (known, new) = owner.targets().split_at(earlier);
    let (of_guard, of_guard_after) = (scores(&now, guard)?, scores(&candidate, guard)?);
    let (of_ambient, of_ambient_after) = (scores(&now, ambient)?, scores(&candidate, ambient)?);
    let after = Heard { owner: &unseen, guard: &of_guard_after, ambient: &of_ambient_after };
    let targets = Targets { owner: owner.targets(), guard: guard.targets() };
    let calibration = calibrate(model.labels(), &after, (&of_guard, &of_ambient), &targets, settings);
    let usual = Calibration { threshold: DetectorSettings::default().threshold, ..Calibration::default() };
    let taken =
        |by: &Calibration, scores: &[Vec<f32>]| scores.iter().filter(|s| by.takes(model.labels(), s).is_some()).count();
    let figures = Figures {
        trainings: parts + 1,
        fresh: paired(&of_owner[fresh.clone()], &unseen[fresh.clone()], new),
        earlier: paired(&of_owner[..earlier], &of_owner_after[..earlier], known),
        guard: paired(&of_guard, &of_guard_after, guard.targets()),
        contradicted: margins(&unseen[fresh.clone()], new).iter().filter(|m| **m <= -settings.firm_margin).count(),
        likeness: Likeness::of(owner, earlier, guard),
        ambient: Counts {
            windows: ambient.len(),
            taken_before: taken(&usual, &of_ambient),
            taken_after: taken(&calibration, &of_ambient_after),
        },
    };
    let (admitted, reasons) = judge(&figures, settings);
    Ok(Examined { adapter, verdict: Verdict { admitted, reasons, figures, calibration } })
}

impl GateSettings {
    /// # Errors
    /// A setting out of range: which, what it may be, and what it is.
    pub fn check(&self) -> Result<(), String> {
        self.wrong()
            .map_or(Ok(()), |(what, expected, found)| Err(format!("`{what}`: expected {expected}, found {found}")))
    }

    /// The first setting out of range.
    fn wrong(&self) -> Option<(&'static str, &'static str, String)> {
        let s = self;
        let wrong = |what, expected, found: String| Some((what, expected, found));
        if s.folds < 2 {
            return wrong("folds", "2 or more", s.folds.to_string());
        }
        let shares = [
            ("enough_margin", s.enough_margin),
            ("gain_chance", s.gain_chance),
            ("least_found", s.least_found),
            ("firm_margin", s.firm_margin),
            ("slip_share", s.slip_share),
            ("slip_chance", s.slip_chance),
            ("lost_share", s.lost_share),
            ("lost_chance", s.lost_chance),
            ("false_accept_share", s.false_accept_share),
        ];
        if let Some((what, found)) = shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return wrong(what, "0 to 1", found.to_string());
        }
        if !(s.stranger_share > 0.0 && s.stranger_share.is_finite()) {
            return wrong("stranger_share", "more than 0", s.stranger_share.to_string());
        }
        if !(s.lowest_threshold > 0.0 && s.lowest_threshold <= s.highest_threshold && s.highest_threshold <= 1.0) {
            let found = format!("{} and {}", s.lowest_threshold, s.highest_threshold);
            return wrong("lowest_threshold and highest_threshold", "more than 0, in this order, at most 1", found);
        }
        None
    }
}

fn check<E: std::error::Error + 'static>(settings: &GateSettings) -> Result<(), GateError<E>> {
    match settings.wrong() {
        Some((what, expected, found)) => Err(GateError::Setting { what, expected, found }),
        None => Ok(()),
    }
}

/// The fold of each clip: the k-th of a word, earlier and fresh ones counted apart, goes to fold k modulo their number.
fn folds(targets: &[usize], earlier: usize, most: usize) -> Vec<usize> {
    let mut seen: BTreeMap<(bool, usize), usize> = BTreeMap::new();
    let place = |(index, target): (usize, &usize)| {
        let count = seen.entry((index < earlier, *target)).or_default();
        *count += 1;
        (*count - 1) % most
    };
    targets.iter().enumerate().map(place).collect()
}

fn scores(session: &Session, examples: &Examples) -> Result<Vec<Vec<f32>>, TrainError> {
    (0..examples.len()).map(|i| session.scores(examples.input(i, 0))).collect()
}

/// Score of the label less the highest other one. A label that the scores lack has none.
fn margins(scores: &[Vec<f32>], targets: &[usize]) -> Vec<f32> {
    let margin = |(scores, target): (&Vec<f32>, &usize)| {
        let others = scores.iter().enumerate().filter(|(k, _)| k != target).map(|(_, s)| *s);
        scores.get(*target).copied().unwrap_or(0.0) - others.fold(0.0, f32::max)
    };
    scores.iter().zip(targets).map(margin).collect()
}

/// The label with the highest score.
pub(super) fn best(scores: &[f32]) -> usize {
    (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0)
}
