//! A candidate before it is used: what it does on the owner's clips that it did not learn from, and on what it must not break.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::lora::Adapter;
use crate::model::{Model, ModelError};
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

/// When a candidate is admitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// Parts that the owner's clips are cut into: as many candidates are trained, each without one part, to be judged on it.
    pub folds: usize,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self { folds: 5 }
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
    /// Fresh clips whose labels the other clips contradict.
    pub contradicted: usize,
    /// How far the fresh clips are from the earlier ones.
    pub likeness: Option<Likeness>,
    /// Windows without a word, and those that were taken for one.
    pub ambient: Counts,
}

/// The same clips before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Clips.
    pub clips: usize,
    /// Found with what is in use now.
    pub correct_before: usize,
    /// Found with the candidate.
    pub correct_after: usize,
    /// Mean margin with what is in use now: score of the label less the highest other score, -1 to 1.
    pub margin_before: f32,
    /// Mean margin with the candidate.
    pub margin_after: f32,
    /// Chance of such a gain in margin, or of a larger one, if the two were equal.
    pub chance: f32,
}

/// Windows without a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Windows.
    pub windows: usize,
    /// Taken for a word with what is in use now.
    pub taken_before: usize,
    /// Taken for a word with the candidate.
    pub taken_after: usize,
}

/// How far the fresh clips are from the owner's earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Likeness {
    /// Distance from the fresh to the earlier clips.
    pub fresh: f32,
    /// Distance from the clips of others to the earlier clips.
    pub others: f32,
}

/// Thresholds to listen with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Of all labels that have none of their own.
    pub threshold: f32,
    /// Of single labels.
    pub thresholds: BTreeMap<String, f32>,
    /// Windows without a word, and clips of others, that are taken for a word that was not said.
    pub false_accepts: usize,
    /// Owner's clips that are missed.
    pub misses: usize,
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
    let (owner, earlier) = (evidence.owner.len(), evidence.earlier);
    if earlier >= owner {
        return Err(GateError::Nothing { owner, earlier });
    }
    if settings.folds < 2 {
        let found = settings.folds.to_string();
        return Err(GateError::Setting { what: "folds", expected: "2 or more", found });
    }
    let _ = (model, before);
    let all: Vec<usize> = (0..owner).collect();
    let adapter = train(&all).map_err(GateError::Training)?;
    let verdict = Verdict {
        admitted: false,
        reasons: Vec::new(),
        figures: Figures::default(),
        calibration: Calibration::default(),
    };
    Ok(Examined { adapter, verdict })
}
