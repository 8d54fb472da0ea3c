//! How a model is trained where its user says nothing; ARCHITECTURE.md says how it was found.

use super::Model;
use crate::features::Augment;
use crate::graph::Choice;
use crate::train::TrainConfig;

/// Rate of models that one of 1e-2 would throw off, whatever their input. One score: two of four wake words taught to a
/// head's wide first layer came to accept every clip (tests/protocols/wakeword.py). LayerNormalization: KWT-1 forgets half
/// of the speakers that it knew, or fails (tests/protocols/fsdd_kwt1.py).
const CAREFUL_RATE: f32 = 3e-3;

/// Clips are moved by up to so much either way.
pub(crate) const SHIFT_MS: f32 = 60.0;

/// Settings of training for a kind of input.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Random changes to the examples.
    pub augment: Augment,
    /// Versions of each example where it is changed: itself, and this many less one with random changes.
    pub variants: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Peak learning rate.
    pub rate: f32,
    /// Label smoothing.
    pub smoothing: f32,
}

impl Recipe {
    /// For a front end's kind, see [`Model::front_end`].
    pub fn of(kind: &str) -> Self {
        let off = Augment::default();
        match kind {
            "mfcc" | "log-mel" | "waveform" => Self {
                augment: Augment { shift_ms: SHIFT_MS, ..off },
                variants: 8,
                epochs: 30,
                rate: 1e-2,
                smoothing: 0.1,
            },
            _ => Self { augment: off, variants: 8, epochs: 40, rate: 3e-3, smoothing: 0.0 },
        }
    }

    /// Versions of each example, 1 where none is changed.
    pub fn versions(&self) -> usize {
        if self.augment == Augment::default() { 1 } else { self.variants }
    }

    /// The recipe as a run takes it.
    pub fn config(&self, seed: u64) -> TrainConfig {
        TrainConfig { epochs: self.epochs, rate: self.rate, smoothing: self.smoothing, seed, ..TrainConfig::default() }
    }
}

impl Model {
    /// The recipe for this model and the layers that are adapted.
    pub fn recipe(&self, sites: &Choice) -> Recipe {
        let graph = self.graph();
        let normalised = |op: &str| op.ends_with("LayerNormalization") || op == "RMSNormalization";
        let one_score = graph.values[self.ending().logits].len() == 1;
        // The last layer alone is a linear model, which takes the higher rate well.
        let deep = graph.nodes.iter().any(|n| normalised(&n.op_type)) && !self.chosen_sites(sites).is_empty();
        let recipe = Recipe::of(self.front_end());
        let rate = if one_score || deep { recipe.rate.min(CAREFUL_RATE) } else { recipe.rate };
        Recipe { rate, ..recipe }
    }
}
