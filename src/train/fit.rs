//! What a run is told and what it says.

use serde::Serialize;

use super::{Cached, Loss, OptimiserKind, Run, Schedule, TrainError, Trainer};

/// Settings of a run; the defaults are the recipe of the README.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// Passes over the data.
    pub epochs: usize,
    /// Clips a step.
    pub batch: usize,
    /// Peak learning rate.
    pub rate: f32,
    /// How it moves.
    pub schedule: Schedule,
    /// Optimiser.
    pub optimiser: OptimiserKind,
    /// Largest norm of the gradient.
    pub clip_norm: Option<f32>,
    /// Label smoothing.
    pub smoothing: f32,
    /// Weights of target 0 and 1 where the model has one score; without them, those with which the two weigh the same in an
    /// epoch.
    pub class_weights: Option<[f32; 2]>,
    /// A loss of the caller's in place of cross-entropy.
    pub loss: Option<super::CustomLoss>,
    /// Epochs without a better validation loss after which the run ends; needs validation data.
    pub patience: Option<usize>,
    /// Seed of the shuffling.
    pub seed: u64,
    /// Replayed examples for each training example, as far as there are.
    pub replay: f32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch: 16,
            rate: 5e-3,
            schedule: Schedule::default(),
            optimiser: OptimiserKind::default(),
            clip_norm: None,
            smoothing: 0.0,
            class_weights: None,
            loss: None,
            patience: Some(10),
            seed: 0,
            replay: 0.5,
        }
    }
}

impl TrainConfig {
    /// # Errors
    /// A setting that makes no sense, with what would do.
    pub fn check(&self) -> Result<(), TrainError> {
        let wrong = |what, found: String, cure| Err(TrainError::Setting { what, found, cure });
        if self.epochs == 0 {
            return wrong("epochs", self.epochs.to_string(), "use 1 or more");
        }
        if self.batch == 0 {
            return wrong("batch", self.batch.to_string(), "use 1 or more");
        }
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return wrong("lr", self.rate.to_string(), "use a positive number such as 5e-3, or auto");
        }
        if !(0.0..1.0).contains(&self.smoothing) {
            return wrong("label smoothing", self.smoothing.to_string(), "use a value from 0 to below 1");
        }
        if let Schedule::Cosine { warmup } | Schedule::OneCycle { warmup } = self.schedule
            && !(0.0..=1.0).contains(&warmup)
        {
            return wrong("warmup", warmup.to_string(), "use a share of the steps from 0 to 1");
        }
        if let Some(norm) = self.clip_norm.filter(|n| !(*n > 0.0 && n.is_finite())) {
            return wrong("clip norm", norm.to_string(), "use a positive number such as 1");
        }
        if let Some(weight) = self.class_weights.iter().flatten().find(|w| !(**w >= 0.0 && w.is_finite())) {
            return wrong("class weight", weight.to_string(), "use a number of 0 or more");
        }
        if !(self.replay >= 0.0 && self.replay.is_finite()) {
            return wrong("replay", self.replay.to_string(), "use a number of 0 or more, such as 0.5");
        }
        let (OptimiserKind::AdamW { weight_decay, .. } | OptimiserKind::Sgd { weight_decay, .. }) = self.optimiser;
        if !(weight_decay >= 0.0 && weight_decay.is_finite()) {
            return wrong("weight decay", weight_decay.to_string(), "use a number of 0 or more, such as 0.01");
        }
        if let OptimiserKind::Sgd { momentum, .. } = self.optimiser
            && !(0.0..1.0).contains(&momentum)
        {
            return wrong("momentum", momentum.to_string(), "use a value from 0 to below 1");
        }
        Ok(())
    }

    /// `weights` are those of target 0 and 1 where none are set.
    pub(crate) fn apply(&self, trainer: &mut Trainer, weights: [f32; 2]) {
        trainer.set_optimiser(self.optimiser);
        trainer.set_clip_norm(self.clip_norm);
        trainer.set_loss(match &self.loss {
            Some(custom) => Loss::Custom(custom.clone()),
            None => match Loss::for_scores(trainer.classes(), self.smoothing) {
                Loss::BinaryCrossEntropy { .. } => {
                    Loss::BinaryCrossEntropy { weights: self.class_weights.unwrap_or(weights) }
                }
                other => other,
            },
        });
    }
}

/// What a run is at.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Progress {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Epochs asked for.
    pub epochs: usize,
    /// Steps done.
    pub step: usize,
    /// Steps that the run will take at most.
    pub steps: usize,
    /// Mean loss of the epoch so far.
    pub loss: f32,
    /// Validation accuracy after the last epoch, with validation data.
    pub valid_accuracy: Option<f64>,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FitReport {
    /// Optimiser steps.
    pub steps: usize,
    /// Epochs finished.
    pub epochs: usize,
    /// Mean loss of each epoch.
    pub losses: Vec<f32>,
    /// Whether the caller stopped it.
    pub cancelled: bool,
    /// The epoch whose adapter was kept, from 1.
    pub kept_epoch: usize,
    /// Validation accuracy of the kept adapter.
    pub valid_accuracy: Option<f64>,
}

/// What a run learns from, cached by [`Trainer::cache`].
#[derive(Clone, Copy, Debug)]
pub struct Splits<'a> {
    /// Training examples.
    pub train: &'a Cached,
    /// Mixed into training.
    pub replay: Option<&'a Cached>,
    /// For early stop.
    pub valid: Option<&'a Cached>,
}

impl Trainer {
    /// Trains; `observer` is called after each step and ends the run by returning false. With validation data the
    /// adapter of the best epoch stays (lowest loss), else the last.
    ///
    /// Replay examples are mixed in evenly: each epoch draws [`TrainConfig::replay`] of them for each training example,
    /// or all if there are fewer. Training examples of one class alone (a wake word) get four replayed ones each, at
    /// least 32, for all that the class is told from comes from there.
    ///
    /// A [`Run`] does the same step by step.
    ///
    /// # Errors
    /// A setting that makes no sense, a loss that is not finite any more, an operator that fails.
    pub fn fit(
        &mut self,
        config: &TrainConfig,
        splits: Splits,
        observer: &mut (dyn FnMut(&Progress) -> bool + Send),
    ) -> Result<FitReport, TrainError> {
        let mut run = Run::new(self, config, false, splits)?;
        self.on_own_threads(|trainer| {
            while run.step(trainer)? {
                if !observer(&run.progress()) {
                    run.end(trainer)?;
                    return Ok(run.report().clone());
                }
            }
            // Behind the last step there is nothing left to end.
            observer(&run.progress());
            Ok(run.report().clone())
        })
    }
}
