//! Trains with a loss of the caller's own, in a loop of the caller's own.
//!
//!     cargo run --release --example custom_loss
//!
//! The focal loss (Lin et al. 2017, arXiv 1708.02002) counts clips less that are right already: with p the probability
//! of the clip's label, `-(1 - p)^γ · log p`. It stands beside cross-entropy here, on the demo's clips. The loop below
//! is the plain form of `Trainer::fit`: where a program learns a clip at a time, or takes its batches from elsewhere, it calls
//! `Trainer::step` itself.

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::path::Path;

use accentor::source::dataset;
use accentor::train::{Clip, CustomLoss, Loss, Schedule};
use accentor::{AdapterSpec, Augment, Cached, Examples, Model, ModelError, Trainer};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kws-commands");
const GAMMA: f64 = 2.0;
const EPOCHS: usize = 30;
const BATCH: usize = 16;
const RATE: f32 = 5e-3;
/// Of the central differences: a power of two, so that f32 divides by it without rounding.
const STEP: f32 = 0.007_812_5;
/// A loss of up to 16 is known to 1e-6 in f32, over two steps; the third derivative's share is ten times smaller.
const TOLERANCE: f32 = 1e-4;

/// The loss of one clip; `dlogits` comes zeroed and gets the gradient.
fn focal(logits: &[f32], target: usize, dlogits: &mut [f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let exp: Vec<f64> = logits.iter().map(|z| (*z as f64 - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    let log_p = logits[target] as f64 - max - sum.ln();
    let (p, wrong) = (log_p.exp(), -log_p.exp_m1());
    // d/dz_k = p·dL/dp · (1{k = target} - p_k)
    let slope = GAMMA * wrong.powf(GAMMA - 1.0) * p * log_p - wrong.powf(GAMMA);
    for (k, (d, e)) in dlogits.iter_mut().zip(&exp).enumerate() {
        *d = (slope * (f64::from(u8::from(k == target)) - e / sum)) as f32;
    }
    (-wrong.powf(GAMMA) * log_p) as f32
}

/// The gradient of a loss against central differences of its value, at the model's own logits: the first thing to do
/// with a loss of one's own. What lies behind the logits is the library's, and checked in its tests.
fn check(loss: &Loss, trainer: &mut Trainer, clips: &Cached) -> Result<f32, ModelError> {
    let mut apart = 0.0f32;
    for clip in 0..clips.len() {
        let (logits, target) = (trainer.logits(clips.input(clip, 0))?, clips.target(clip));
        let (mut gradient, mut scratch) = (vec![0.0; logits.len()], vec![0.0; logits.len()]);
        loss.value(&logits, target, 1.0, &mut gradient);
        for k in 0..logits.len() {
            let mut moved = |by: f32| {
                let mut logits = logits.clone();
                logits[k] += by;
                loss.value(&logits, target, 1.0, &mut scratch)
            };
            apart = apart.max(((moved(STEP) - moved(-STEP)) / (2.0 * STEP) - gradient[k]).abs());
        }
    }
    Ok(apart)
}

/// The plain form of `Trainer::fit`: shuffled batches of accent and replay, a rate for each step.
fn train(trainer: &mut Trainer, accent: &Cached, replay: &Cached) -> Result<f32, ModelError> {
    let mut rng = fastrand::Rng::with_seed(0);
    let mut clips: Vec<(&Cached, usize)> = (0..accent.len()).map(|i| (accent, i)).collect();
    clips.extend((0..replay.len()).map(|i| (replay, i)));
    let steps = EPOCHS * clips.len().div_ceil(BATCH);
    let (mut step, mut last) = (0, 0.0);
    for _ in 0..EPOCHS {
        rng.shuffle(&mut clips);
        for part in clips.chunks(BATCH) {
            let batch: Vec<Clip> =
                part.iter().map(|(from, i)| (from.input(*i, rng.usize(..from.variants())), from.target(*i))).collect();
            last = trainer.step(&batch, RATE * Schedule::default().factor(step, steps))?;
            step += 1;
        }
    }
    Ok(last)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open(MODEL)?;
    let moved = Augment { shift_ms: 60.0, ..Augment::default() };
    let clips = |folder: &str, augment: &Augment, variants| -> Result<Examples, ModelError> {
        model.examples(&dataset(&Path::new(MODEL).join("demo").join(folder))?, augment, variants, 0)
    };
    let (accent, replay) = (clips("west-midlands/adapt", &moved, 8)?, clips("us/replay", &moved, 8)?);
    let heard = [clips("west-midlands/test", &Augment::default(), 1)?, clips("us/test", &Augment::default(), 1)?];
    let accuracies = |session: accentor::Session| -> Result<String, ModelError> {
        let [accent, us] = [session.evaluate(model.labels(), &heard[0])?, session.evaluate(model.labels(), &heard[1])?];
        Ok(format!("west-midlands {:.3}, us {:.3}", accent.accuracy, us.accuracy))
    };
    println!("frozen:        {}", accuracies(model.session(None)?)?);

    let losses =
        [("cross-entropy", Loss::CrossEntropy { smoothing: 0.0 }), ("focal", Loss::Custom(CustomLoss::new(focal)))];
    for (name, loss) in losses {
        let mut trainer = model.trainer(model.new_adapter(&AdapterSpec::default(), 0)?, 1)?;
        let (accent, replay) = (trainer.cache(&accent)?, trainer.cache(&replay)?);
        let apart = check(&loss, &mut trainer, &accent)?;
        assert!(apart < TOLERANCE, "{name}: the gradient is {apart} away from central differences");
        trainer.set_loss(loss);
        let last = train(&mut trainer, &accent, &replay)?;
        let after = accuracies(model.session(Some(&trainer.adapter()))?)?;
        println!("{:14} {after}; last loss {last:.4}, gradient right to {apart:.0e}", format!("{name}:"));
    }
    Ok(())
}
