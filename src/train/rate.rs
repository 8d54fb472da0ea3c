//! `--lr auto`: short runs on cached features, the rate with the lowest validation loss.

use serde::Serialize;

use super::{Cached, Splits, TrainConfig, TrainError, Trainer};

/// Rates that are tried.
const RATES: [f32; 4] = [2e-3, 5e-3, 1e-2, 2e-2];
/// Folds of the cross-validation where there is no validation data.
const FOLDS: usize = 3;
/// Epochs of a trial, at most.
const EPOCHS: usize = 12;

/// What a rate gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RateTrial {
    /// The rate.
    pub rate: f32,
    /// Mean validation loss; infinite where it diverged.
    pub loss: f64,
    /// Validation accuracy.
    pub accuracy: f64,
}

/// Tries each rate from the present parameters and returns the best with all trials; the parameters are put back.
///
/// Without `valid` the examples are cut into folds by index within each class, and each fold is the validation data
/// once. A tie goes to the lower rate.
///
/// # Errors
/// As [`Trainer::fit`], but a rate that diverges just loses.
pub fn sweep(
    trainer: &mut Trainer,
    config: &TrainConfig,
    splits: Splits,
    go_on: &mut (dyn FnMut() -> bool + Send),
) -> Result<(f32, Vec<RateTrial>), TrainError> {
    let start = trainer.snapshot();
    let folds: Vec<(Cached, Cached)> = match splits.valid {
        Some(valid) => vec![(splits.train.clone(), valid.clone())],
        None => folds(splits.train),
    };
    let mut trials = Vec::new();
    for rate in RATES {
        let (mut correct, mut samples, mut sum) = (0, 0, 0.0);
        for (train, valid) in &folds {
            trainer.restore(&start)?;
            let short = TrainConfig { rate, epochs: config.epochs.min(EPOCHS), patience: None, ..config.clone() };
            let parts = Splits { train, replay: splits.replay, valid: None };
            match trainer.fit(&short, parts, &mut |_| go_on()) {
                Ok(_) => {
                    let (c, loss) = trainer.evaluate(valid)?;
                    correct += c;
                    sum += loss * valid.len() as f64;
                }
                Err(TrainError::Diverged { .. }) => sum = f64::INFINITY,
                Err(e) => return Err(e),
            }
            samples += valid.len();
        }
        let n = samples.max(1) as f64;
        trials.push(RateTrial { rate, loss: sum / n, accuracy: correct as f64 / n });
    }
    trainer.restore(&start)?;
    let mut best = trials[0];
    for trial in &trials {
        if trial.loss < best.loss {
            best = *trial;
        }
    }
    Ok((best.rate, trials))
}

/// `(train, valid)` for each fold; the k-th example of a class goes to fold k modulo the number of folds.
fn folds(examples: &Cached) -> Vec<(Cached, Cached)> {
    let mut seen = std::collections::HashMap::new();
    let fold: Vec<usize> = examples
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
            let of = |inside: bool| -> Vec<usize> { (0..fold.len()).filter(|i| (fold[*i] == f) == inside).collect() };
            (examples.subset(&of(false)), examples.subset(&of(true)))
        })
        .filter(|(train, valid)| !train.is_empty() && !valid.is_empty())
        .collect()
}
