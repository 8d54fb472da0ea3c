//! Logits, loss, every adapter gradient and ten training losses against what PyTorch recorded in f64.
//!
//! `cargo test --release --test gradients -- --nocapture` prints the worst figures of each network.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::excessive_precision)]

mod recording;

use accentor::train::Loss;
use recording::{Recorded, Recording, batch, largest_error, loss_error, losses, norm, relative_error};

/// Relative, f32 against f64: of a gradient by its norm, of logits by their largest, of a loss by itself.
const TOLERANCE: f64 = 1e-4;
/// A smaller gradient would say nothing about its relative error.
const LEAST_NORM: f64 = 1e-3;
const STEPS: usize = 10;

/// The worst figures of a recording.
#[derive(Clone, Default)]
struct Worst {
    logits: f64,
    loss: f64,
    gradient: f64,
    tensor: String,
    sgd: f64,
    adamw: f64,
}

impl Worst {
    fn line(&self, name: &str) -> String {
        let Worst { logits, loss, gradient, tensor, sgd, adamw } = self;
        format!("{name:32} {logits:9.1e} {loss:9.1e} {gradient:9.1e} {sgd:9.1e} {adamw:9.1e}  {tensor}")
    }

    fn failures(&self) -> impl Iterator<Item = &'static str> {
        let figures = [
            ("logits", self.logits),
            ("loss", self.loss),
            ("gradient", self.gradient),
            ("sgd losses", self.sgd),
            ("adamw losses", self.adamw),
        ];
        // A NaN is a failure too.
        figures
            .into_iter()
            .filter(|(_, error)| !matches!(error.partial_cmp(&TOLERANCE), Some(o) if o.is_le()))
            .map(|f| f.0)
    }
}

/// `threads` changes no byte; the tests use both.
fn compare(recording: &Recording, threads: usize) -> Option<Worst> {
    let model = recording.open(&recording.onnx()?);
    let start = recording.start(&model);
    let mut trainer = model.trainer(start.clone(), threads).unwrap_or_else(|e| panic!("{}: {e}", recording.name));
    assert!(
        matches!(
            (recording.meta.loss.as_str(), Loss::for_scores(trainer.classes(), 0.0)),
            ("cross_entropy", Loss::CrossEntropy { .. }) | ("bce_with_logits", Loss::BinaryCrossEntropy { .. })
        ),
        "{}: {} with {} scores",
        recording.name,
        recording.meta.loss,
        trainer.classes()
    );
    let cached = trainer.cache(&recording.examples()).unwrap();
    let clips = batch(&cached);
    let mut worst = Worst::default();

    let logits: Vec<f32> = clips.iter().flat_map(|(x, _)| trainer.logits(x).unwrap()).collect();
    worst.logits = largest_error(&logits, recording.tensor("logits"));

    worst.loss = largest_error(&[trainer.gradient(&clips).unwrap()], recording.tensor("loss"));
    let gradients = trainer.gradients();
    for (site, recorded) in gradients.sites.iter().zip(&recording.meta.sites) {
        for (found, (name, expected)) in site.delta.tensors().into_iter().zip(recording.gradients(recorded)) {
            let size = norm(&expected.iter().map(|e| *e as f64).collect::<Vec<_>>());
            assert!(size > LEAST_NORM, "{}: the norm of {name} is only {size:e}", recording.name);
            let error = relative_error(found, expected);
            // A NaN counts as the worst.
            if error.is_nan() || error > worst.gradient {
                (worst.gradient, worst.tensor) = (error, name);
            }
        }
    }

    for which in [Recorded::Sgd, Recorded::AdamW] {
        let (kind, rate, expected) = recording.training(which);
        let mut trainer = model.trainer(start.clone(), threads).unwrap();
        let error = loss_error(&losses(&mut trainer, &clips, kind, rate, STEPS), expected);
        match which {
            Recorded::Sgd => worst.sgd = error,
            Recorded::AdamW => worst.adamw = error,
        }
    }
    Some(worst)
}

fn check(shared: bool) {
    println!("{:32} {:>9} {:>9} {:>9} {:>9} {:>9}  worst gradient", "", "logits", "loss", "gradient", "sgd", "adamw");
    let mut failures = Vec::new();
    let mut compared = 0;
    let recordings = recording::names().into_iter().map(|name| Recording::read(&name));
    for recording in recordings.filter(|r| r.meta.shared == shared) {
        let Some(worst) = compare(&recording, if recording.meta.batch > 3 { 2 } else { 1 }) else {
            println!("{:32} not here", recording.name);
            continue;
        };
        println!("{}", worst.line(&recording.name));
        failures.extend(worst.failures().map(|what| format!("{}: {what}\n{}", recording.name, worst.line(""))));
        compared += 1;
    }
    assert!(shared || compared > 0, "no recordings in tests/data/reference");
    assert!(failures.is_empty(), "beyond {TOLERANCE:e}:\n{}", failures.join("\n"));
}

#[test]
fn small_networks_agree_with_pytorch() {
    check(false);
}

#[test]
fn shared_models_agree_with_pytorch() {
    check(true);
}

#[test]
fn the_generator_gives_the_documented_numbers() {
    let x = recording::generate("x", 1, 3, 1.0, 0.0);
    assert_eq!(x, [-0.188_269_138_336_181_64, 0.954_031_229_019_165, 0.375_962_495_803_833]);
    let a = recording::generate("fc.A", 7, 3, 0.5, 1.0);
    assert_eq!(a, [1.335_626_840_591_430_7, 1.341_893_672_943_115_2, 1.218_214_035_034_179_7]);
}
