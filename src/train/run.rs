//! A whole run as a row of single steps: the search for the rate where it is asked for, epochs over shuffled batches, early
//! stop. Between two steps it may rest, or be written down and go on in another process: it ends with the same bytes.
//!
//! The search (`--lr auto`) is short runs on cached features; the rate with the lowest validation loss wins, the lower one
//! of two that are equal. Without validation data the examples are cut into folds by index within each class, and each fold is
//! the validation data once. A rate that diverges just loses.

use std::collections::HashMap;

use serde::Serialize;

use super::checkpoint::{Checkpoint, Fingerprint, Position, SearchPosition};
use super::{CheckpointError, Clip, FitReport, Progress, Splits, TrainConfig, TrainError, Trainer};

/// Rates that are tried.
const RATES: [f32; 4] = [2e-3, 5e-3, 1e-2, 2e-2];
/// Folds of the cross-validation where there is no validation data.
const FOLDS: usize = 3;
/// Epochs of a trial, at most.
const EPOCHS: usize = 12;
/// Replayed examples for each training example, where those are of one class.
const CONTRAST: usize = 4;
/// Replayed examples an epoch, where the training examples are of one class.
const LEAST_CONTRAST: usize = 32;

/// What a rate gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RateTrial {
    /// The rate.
    pub rate: f32,
    /// Mean validation loss; infinite where it diverged.
    pub loss: f64,
    /// Validation accuracy.
    pub accuracy: f64,
}

/// A run on a trainer that the caller holds; the caller decides when the next step comes.
///
/// ```no_run
/// # fn f(trainer: &mut accentor::Trainer, splits: accentor::Splits) -> Result<(), accentor::train::TrainError> {
/// let mut run = accentor::train::Run::new(trainer, &accentor::TrainConfig::default(), false, splits)?;
/// while run.step(trainer)? {
///     // Rest, look at the clock, write `run.checkpoint(…)`.
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Run<'a> {
    config: TrainConfig,
    automatic: bool,
    splits: Splits<'a>,
    /// The parameters before the first step.
    start: Vec<f32>,
    search: Option<Search>,
    trials: Vec<RateTrial>,
    fit: Fit<'a>,
    done: bool,
}

/// A search that is not at its end.
#[derive(Debug)]
struct Search {
    folds: Vec<Fold>,
    at: SearchPosition,
}

/// Indices of training examples.
#[derive(Debug)]
struct Fold {
    train: Vec<usize>,
    /// Without, the validation data of the run.
    valid: Option<Vec<usize>>,
}

/// One training at one rate.
#[derive(Debug)]
struct Fit<'a> {
    config: TrainConfig,
    splits: Splits<'a>,
    /// The training examples in use, by index.
    members: Vec<usize>,
    /// Replayed examples an epoch.
    replayed: usize,
    steps: usize,
    /// (from replay, index, variant) of the epoch at hand.
    order: Vec<(bool, usize, usize)>,
    clips: Vec<Clip<'a>>,
    rng: fastrand::Rng,
    /// State of `rng` before the epoch at hand.
    epoch_seed: u64,
    /// Steps of the epoch at hand.
    batch: usize,
    /// Sum of their losses.
    sum: f32,
    since_best: usize,
    best: Option<(f64, Vec<f32>)>,
    progress: Progress,
    report: FitReport,
}

impl<'a> Run<'a> {
    /// For `trainer` as it stands. If `automatic`, the rate of `config` is found by trials first.
    ///
    /// # Errors
    /// A setting that makes no sense, no examples.
    pub fn new(
        trainer: &mut Trainer,
        config: &TrainConfig,
        automatic: bool,
        splits: Splits<'a>,
    ) -> Result<Self, TrainError> {
        config.check()?;
        if splits.train.is_empty() {
            return Err(TrainError::Empty);
        }
        let mut run = Self {
            config: config.clone(),
            automatic,
            splits,
            start: trainer.snapshot(),
            search: automatic.then(|| Search { folds: folds(splits), at: SearchPosition::default() }),
            trials: Vec::new(),
            fit: Fit::new(config, splits, (0..splits.train.len()).collect()),
            done: false,
        };
        run.begin(trainer)?;
        Ok(run)
    }

    /// Takes one step of the optimiser, and what comes behind it: an evaluation, the next trial. Says whether there is more to
    /// do; the trainer then has the adapter of the run.
    ///
    /// # Errors
    /// A loss that is not finite any more, an operator that fails.
    pub fn step(&mut self, trainer: &mut Trainer) -> Result<bool, TrainError> {
        if self.done {
            return Ok(false);
        }
        let ended = match self.fit.step(trainer) {
            Ok(true) => return Ok(true),
            Ok(false) => self.fit.finish(trainer),
            Err(error) => Err(error),
        };
        match (ended, self.search.is_some()) {
            (Err(TrainError::Diverged { .. }), true) => self.note_fold(trainer, true)?,
            (Err(error), _) => return Err(error),
            (Ok(()), true) => self.note_fold(trainer, false)?,
            (Ok(()), false) => {
                self.done = true;
                return Ok(false);
            }
        }
        self.begin(trainer)?;
        Ok(true)
    }

    /// Ends the run where it is: the trainer has the adapter of now, or with validation data the best one so far. During the
    /// search the best rate so far gets one step.
    ///
    /// # Errors
    /// As [`Run::step`].
    pub fn end(&mut self, trainer: &mut Trainer) -> Result<(), TrainError> {
        if self.done {
            return Ok(());
        }
        if self.search.take().is_some() {
            self.begin(trainer)?;
            self.fit.step(trainer)?;
        }
        self.fit.cancel(trainer)?;
        self.done = true;
        Ok(())
    }

    /// Where it is.
    pub fn progress(&self) -> Progress {
        self.fit.progress
    }

    /// During the search: the trial, from 1, and the number of trials.
    pub fn searching(&self) -> Option<(usize, usize)> {
        self.search.as_ref().map(|_| (self.trials.len() + 1, RATES.len()))
    }

    /// What the training did; of the trials nothing.
    pub fn report(&self) -> &FitReport {
        &self.fit.report
    }

    /// What the search found.
    pub fn trials(&self) -> &[RateTrial] {
        &self.trials
    }

    /// The peak rate in use.
    pub fn rate(&self) -> f32 {
        self.fit.config.rate
    }

    /// Starts the fit that is next.
    fn begin(&mut self, trainer: &mut Trainer) -> Result<(), TrainError> {
        if self.search.as_ref().is_some_and(|s| s.folds.is_empty()) {
            // Too few examples to judge any: all are equal.
            self.trials = RATES.map(|rate| RateTrial { rate, loss: 0.0, accuracy: 0.0 }).to_vec();
        }
        if self.trials.len() == RATES.len() {
            self.search = None;
        }
        self.fit = self.next();
        if self.automatic {
            trainer.restore(&self.start)?;
        }
        self.fit.apply(trainer);
        Ok(())
    }

    /// The fit that the search, or its end, calls for.
    fn next(&self) -> Fit<'a> {
        match &self.search {
            Some(search) => {
                let rate = RATES[self.trials.len()];
                let epochs = self.config.epochs.min(EPOCHS);
                let short = TrainConfig { rate, epochs, patience: None, ..self.config.clone() };
                let members = search.folds[search.at.fold].train.clone();
                Fit::new(&short, Splits { valid: None, ..self.splits }, members)
            }
            None => {
                let rate = self.best_rate().unwrap_or(self.config.rate);
                let members = (0..self.splits.train.len()).collect();
                Fit::new(&TrainConfig { rate, ..self.config.clone() }, self.splits, members)
            }
        }
    }

    fn best_rate(&self) -> Option<f32> {
        let better = |best: RateTrial, trial: &RateTrial| if trial.loss < best.loss { *trial } else { best };
        let (first, rest) = self.trials.split_first()?;
        Some(rest.iter().fold(*first, better).rate)
    }

    /// Adds what the fold at hand gave, and goes to the next.
    fn note_fold(&mut self, trainer: &mut Trainer, diverged: bool) -> Result<(), TrainError> {
        let Some(Search { folds, at }) = &mut self.search else { return Ok(()) };
        let valid = match (&folds[at.fold].valid, self.splits.valid) {
            (Some(indices), _) => self.splits.train.subset(indices),
            (None, Some(valid)) => valid.clone(),
            (None, None) => return Err(TrainError::Empty),
        };
        if diverged {
            at.loss = f64::INFINITY;
        } else {
            let (correct, loss) = trainer.evaluate(&valid)?;
            at.correct += correct;
            at.loss += loss * valid.len() as f64;
        }
        at.samples += valid.len();
        at.fold += 1;
        if at.fold == folds.len() {
            let n = at.samples.max(1) as f64;
            let rate = RATES[self.trials.len()];
            self.trials.push(RateTrial { rate, loss: at.loss / n, accuracy: at.correct as f64 / n });
            *at = SearchPosition::default();
        }
        Ok(())
    }

    /// What another process must have in common with this run to go on with it: base, start, data, settings, version. All
    /// cached examples are read for it. A loss of the caller's own is not seen.
    ///
    /// # Errors
    /// A cache that cannot be read.
    pub fn fingerprint(&self, trainer: &Trainer) -> Result<Fingerprint, TrainError> {
        Fingerprint::new(trainer.given_adapter(), &self.start, &self.config, self.automatic, self.splits)
    }

    /// All that a process needs to go on from here, with the same model and data. `fingerprint` is [`Run::fingerprint`].
    pub fn checkpoint(&self, trainer: &Trainer, fingerprint: &Fingerprint) -> Checkpoint {
        let fit = &self.fit;
        let (first, second, optimiser_steps) = trainer.moments();
        Checkpoint {
            fingerprint: fingerprint.clone(),
            position: Position {
                trials: self.trials.clone(),
                search: self.search.as_ref().map(|s| s.at),
                done: self.done,
                batch: fit.batch,
                seed: if fit.batch == 0 { fit.rng.get_seed() } else { fit.epoch_seed },
                sum: fit.sum,
                loss: fit.progress.loss,
                valid_accuracy: fit.progress.valid_accuracy,
                since_best: fit.since_best,
                best_loss: fit.best.as_ref().map(|b| b.0),
                report: fit.report.clone(),
                optimiser_steps,
            },
            parameters: trainer.snapshot(),
            first: first.to_vec(),
            second: second.to_vec(),
            best: fit.best.as_ref().map_or(Vec::new(), |b| b.1.clone()),
        }
    }

    /// Goes to where `checkpoint` was made. `fingerprint` is [`Run::fingerprint`] of this run, which stands at its start.
    ///
    /// # Errors
    /// A checkpoint of another run, named by what differs; one that contradicts itself.
    pub fn resume(
        &mut self,
        trainer: &mut Trainer,
        checkpoint: &Checkpoint,
        fingerprint: &Fingerprint,
    ) -> Result<(), CheckpointError> {
        checkpoint.fingerprint.check(fingerprint)?;
        let at = &checkpoint.position;
        let folds = self.search.as_ref().map_or(0, |s| s.folds.len());
        let tried = at.trials.iter().map(|t| t.rate).eq(RATES[..at.trials.len().min(RATES.len())].iter().copied());
        let searching = at.search.is_none_or(|s| s.fold < folds && at.trials.len() < RATES.len());
        if !tried || !searching {
            return Err(CheckpointError::Contradiction);
        }
        self.trials.clone_from(&at.trials);
        match (at.search, &mut self.search) {
            (Some(found), Some(search)) => search.at = found,
            _ => self.search = None,
        }
        let mut fit = self.next();
        let best = if at.best_loss.is_some() { checkpoint.best.len() } else { self.start.len() };
        let (closed, epochs) = (at.report.losses.len(), fit.config.epochs);
        let fits = best == self.start.len()
            && at.batch < fit.per_epoch()
            && (closed < epochs || at.done && closed == epochs)
            && at.report.steps <= fit.steps;
        if !fits {
            return Err(CheckpointError::Contradiction);
        }
        fit.apply(trainer);
        trainer.go_on(&checkpoint.parameters, &checkpoint.first, &checkpoint.second, at.optimiser_steps)?;
        fit.rng = fastrand::Rng::with_seed(at.seed);
        fit.epoch_seed = at.seed;
        fit.batch = at.batch;
        if at.batch > 0 {
            fit.draw();
        }
        fit.sum = at.sum;
        fit.since_best = at.since_best;
        fit.best = at.best_loss.map(|loss| (loss, checkpoint.best.clone()));
        fit.report = at.report.clone();
        fit.progress = Progress {
            epoch: (closed + usize::from(at.batch > 0)).max(1),
            step: at.report.steps,
            loss: at.loss,
            valid_accuracy: at.valid_accuracy,
            ..fit.progress
        };
        self.fit = fit;
        self.done = at.done;
        Ok(())
    }
}

impl<'a> Fit<'a> {
    fn new(config: &TrainConfig, splits: Splits<'a>, members: Vec<usize>) -> Self {
        let Splits { train, replay, .. } = splits;
        let one_class = members.iter().all(|i| train.target(*i) == train.target(members[0]));
        let wanted = (members.len() as f32 * config.replay).ceil() as usize;
        let wanted = if one_class { wanted.max(CONTRAST * members.len()).max(LEAST_CONTRAST) } else { wanted };
        let replayed = replay.map_or(0, |r| r.len().min(wanted));
        let steps = (members.len() + replayed).div_ceil(config.batch) * config.epochs;
        Self {
            clips: Vec::with_capacity(config.batch.min(members.len() + replayed)),
            rng: fastrand::Rng::with_seed(config.seed),
            epoch_seed: config.seed,
            order: Vec::new(),
            batch: 0,
            sum: 0.0,
            since_best: 0,
            best: None,
            progress: Progress { epoch: 1, epochs: config.epochs, step: 0, steps, loss: 0.0, valid_accuracy: None },
            report: FitReport::default(),
            config: config.clone(),
            splits,
            members,
            replayed,
            steps,
        }
    }

    fn per_epoch(&self) -> usize {
        (self.members.len() + self.replayed).div_ceil(self.config.batch)
    }

    /// Gives the trainer optimiser and loss.
    fn apply(&self, trainer: &mut Trainer) {
        self.config.apply(trainer, self.balance());
    }

    /// Weights of target 0 and 1 with which both weigh the same in an epoch.
    fn balance(&self) -> [f32; 2] {
        let Splits { train, replay, .. } = self.splits;
        let share =
            replay.map_or(0.0, |r| r.targets().iter().filter(|t| **t == 1).count() as f32 / r.len().max(1) as f32);
        let all = (self.members.len() + self.replayed) as f32;
        let ones = self.members.iter().filter(|i| train.target(**i) == 1).count() as f32;
        let one = ones + share * self.replayed as f32;
        if one > 0.0 && one < all { [all / (2.0 * (all - one)), all / (2.0 * one)] } else { [1.0; 2] }
    }

    /// Shuffles anew, as each epoch does.
    fn draw(&mut self) {
        let Self { rng, order, members, splits, .. } = self;
        let train = splits.train;
        order.clear();
        order.extend(members.iter().map(|i| (false, *i, rng.usize(0..train.variants()))));
        if let Some(replay) = splits.replay {
            let mut indices: Vec<usize> = (0..replay.len()).collect();
            rng.shuffle(&mut indices);
            order.extend(indices[..self.replayed].iter().map(|i| (true, *i, rng.usize(0..replay.variants()))));
        }
        rng.shuffle(order);
    }

    /// Says whether another step is to come.
    fn step(&mut self, trainer: &mut Trainer) -> Result<bool, TrainError> {
        if self.batch == 0 {
            self.epoch_seed = self.rng.get_seed();
            self.sum = 0.0;
            self.progress.epoch = self.report.losses.len() + 1;
            self.draw();
        }
        let Splits { train, replay, .. } = self.splits;
        let from = self.batch * self.config.batch;
        let part = &self.order[from..self.order.len().min(from + self.config.batch)];
        self.clips.clear();
        self.clips.extend(part.iter().map(|(old, i, v)| {
            let from = if *old { replay.unwrap_or(train) } else { train };
            (from.input(*i, *v), from.target(*i))
        }));
        let rate = self.config.rate * self.config.schedule.factor(self.report.steps, self.steps);
        let loss = trainer.step(&self.clips, rate)?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: self.report.steps + 1, rate });
        }
        self.report.steps += 1;
        self.batch += 1;
        self.sum += loss;
        self.progress.step = self.report.steps;
        self.progress.loss = self.sum / self.batch as f32;
        if self.batch < self.per_epoch() {
            return Ok(true);
        }
        self.report.epochs = self.progress.epoch;
        self.close_epoch(trainer)?;
        let patience = self.config.patience.filter(|_| self.best.is_some());
        Ok(patience.is_none_or(|p| self.since_best < p) && self.progress.epoch < self.config.epochs)
    }

    /// Loss and validation of the epoch at hand.
    fn close_epoch(&mut self, trainer: &mut Trainer) -> Result<(), TrainError> {
        let epoch = self.progress.epoch;
        self.batch = 0;
        self.report.losses.push(self.progress.loss);
        self.report.kept_epoch = epoch;
        let Some(valid) = self.splits.valid.filter(|v| !v.is_empty()) else { return Ok(()) };
        let (correct, loss) = trainer.evaluate(valid)?;
        let accuracy = correct as f64 / valid.len() as f64;
        self.progress.valid_accuracy = Some(accuracy);
        if self.best.as_ref().is_none_or(|(least, _)| loss < *least) {
            self.best = Some((loss, trainer.snapshot()));
            self.report.valid_accuracy = Some(accuracy);
            self.since_best = 0;
        } else {
            self.since_best += 1;
        }
        self.report.kept_epoch = epoch - self.since_best;
        Ok(())
    }

    fn cancel(&mut self, trainer: &mut Trainer) -> Result<(), TrainError> {
        self.report.cancelled = true;
        if self.batch > 0 {
            self.close_epoch(trainer)?;
        }
        self.finish(trainer)
    }

    /// The best adapter stays.
    fn finish(&mut self, trainer: &mut Trainer) -> Result<(), TrainError> {
        if let Some((_, params)) = &self.best {
            trainer.restore(params)?;
        }
        if trainer.snapshot().iter().any(|p| !p.is_finite()) {
            return Err(TrainError::Diverged { step: self.report.steps, rate: self.config.rate });
        }
        trainer.describe(self.members.len(), self.report.steps);
        Ok(())
    }
}

/// The k-th example of a class goes to fold k modulo the number of folds.
fn folds(splits: Splits) -> Vec<Fold> {
    if splits.valid.is_some() {
        return vec![Fold { train: (0..splits.train.len()).collect(), valid: None }];
    }
    let mut seen = HashMap::new();
    let fold: Vec<usize> = splits
        .train
        .targets()
        .iter()
        .map(|t| {
            let count = seen.entry(*t).or_insert(0);
            *count += 1;
            (*count - 1) % FOLDS
        })
        .collect();
    (0..FOLDS)
        .map(|f| {
            let (valid, train): (Vec<usize>, Vec<usize>) = (0..fold.len()).partition(|i| fold[*i] == f);
            (train, valid)
        })
        .filter(|(train, valid)| !train.is_empty() && !valid.is_empty())
        .map(|(train, valid)| Fold { train, valid: Some(valid) })
        .collect()
}
