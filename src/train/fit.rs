//! A whole run: epochs over shuffled batches, early stop, the best adapter kept.

use serde::Serialize;

use super::{Cached, Clip, Loss, OptimiserKind, Schedule, TrainError, Trainer};

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
#[derive(Clone, Debug, Default, Serialize)]
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

/// Replayed examples for each training example, where those are of one class.
const CONTRAST: usize = 4;
/// Replayed examples an epoch, where the training examples are of one class.
const LEAST_CONTRAST: usize = 32;

/// Weights of target 0 and 1 with which both weigh the same in an epoch.
fn balance(train: &Cached, replay: Option<&Cached>, replayed: usize) -> [f32; 2] {
    let ones = |examples: &Cached| examples.targets().iter().filter(|t| **t == 1).count() as f32;
    let share = replay.map_or(0.0, |r| ones(r) / r.len().max(1) as f32);
    let all = (train.len() + replayed) as f32;
    let one = ones(train) + share * replayed as f32;
    if one > 0.0 && one < all { [all / (2.0 * (all - one)), all / (2.0 * one)] } else { [1.0; 2] }
}

impl Trainer {
    /// Trains; `observer` is called after each step and ends the run by returning false. With validation data the
    /// adapter of the best epoch stays (lowest loss), else the last.
    ///
    /// Replay examples are mixed in evenly: each epoch draws [`TrainConfig::replay`] of them for each training example,
    /// or all if there are fewer. Training examples of one class alone (a wake word) get four replayed ones each, at
    /// least 32, for all that the class is told from comes from there.
    ///
    /// # Errors
    /// A setting that makes no sense, a loss that is not finite any more, an operator that fails.
    pub fn fit(
        &mut self,
        config: &TrainConfig,
        splits: Splits,
        observer: &mut (dyn FnMut(&Progress) -> bool + Send),
    ) -> Result<FitReport, TrainError> {
        config.check()?;
        self.on_own_threads(|trainer| trainer.epochs(config, splits, observer))
    }

    fn epochs(
        &mut self,
        config: &TrainConfig,
        splits: Splits,
        observer: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<FitReport, TrainError> {
        let Splits { train, replay, valid } = splits;
        if train.is_empty() {
            return Err(TrainError::Empty);
        }
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let one_class = train.targets().iter().all(|t| *t == train.target(0));
        let wanted = (train.len() as f32 * config.replay).ceil() as usize;
        let wanted = if one_class { wanted.max(CONTRAST * train.len()).max(LEAST_CONTRAST) } else { wanted };
        let replayed = replay.map_or(0, |r| r.len().min(wanted));
        config.apply(self, balance(train, replay, replayed));
        let per_epoch = (train.len() + replayed).div_ceil(config.batch);
        let steps = per_epoch * config.epochs;
        let mut report = FitReport::default();
        let mut best: Option<(f64, Vec<f32>)> = None;
        let mut since_best = 0;
        let mut progress =
            Progress { epoch: 1, epochs: config.epochs, step: 0, steps, loss: 0.0, valid_accuracy: None };

        let mut clips: Vec<Clip> = Vec::with_capacity(config.batch.min(train.len() + replayed));
        for epoch in 0..config.epochs {
            // (from replay, index, variant), shuffled anew each epoch.
            let mut order: Vec<(bool, usize, usize)> =
                (0..train.len()).map(|i| (false, i, rng.usize(0..train.variants()))).collect();
            if let Some(replay) = replay {
                let mut indices: Vec<usize> = (0..replay.len()).collect();
                rng.shuffle(&mut indices);
                order.extend(indices[..replayed].iter().map(|i| (true, *i, rng.usize(0..replay.variants()))));
            }
            rng.shuffle(&mut order);
            let mut sum = 0.0;
            for (index, part) in order.chunks(config.batch).enumerate() {
                clips.clear();
                clips.extend(part.iter().map(|(old, i, v)| {
                    let from = if *old { replay.unwrap_or(train) } else { train };
                    (from.input(*i, *v), from.target(*i))
                }));
                let rate = config.rate * config.schedule.factor(report.steps, steps);
                let loss = self.step(&clips, rate)?;
                if !loss.is_finite() {
                    return Err(TrainError::Diverged { step: report.steps + 1, rate });
                }
                report.steps += 1;
                sum += loss;
                progress.epoch = epoch + 1;
                progress.step = report.steps;
                progress.loss = sum / (index + 1) as f32;
                if !observer(&progress) {
                    report.cancelled = true;
                    break;
                }
            }
            report.losses.push(progress.loss);
            if !report.cancelled {
                report.epochs = epoch + 1;
            }
            report.kept_epoch = epoch + 1;
            if let Some(valid) = valid.filter(|v| !v.is_empty()) {
                let (correct, loss) = self.evaluate(valid)?;
                let accuracy = correct as f64 / valid.len() as f64;
                progress.valid_accuracy = Some(accuracy);
                if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                    best = Some((loss, self.snapshot()));
                    report.valid_accuracy = Some(accuracy);
                    since_best = 0;
                    report.kept_epoch = epoch + 1;
                } else {
                    since_best += 1;
                    report.kept_epoch = epoch + 1 - since_best;
                }
                if config.patience.is_some_and(|p| since_best >= p) {
                    break;
                }
            }
            if report.cancelled {
                break;
            }
        }
        if let Some((_, params)) = best {
            self.restore(&params)?;
        }
        if self.snapshot().iter().any(|p| !p.is_finite()) {
            return Err(TrainError::Diverged { step: report.steps, rate: config.rate });
        }
        self.describe(train.len(), report.steps);
        Ok(report)
    }
}
