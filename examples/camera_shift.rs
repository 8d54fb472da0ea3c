//! Teaches a picture model another camera, from two folders of labelled pictures.
//!
//!     cargo run --release --example camera_shift MODEL TRAIN TEST
//!
//! MODEL is an `.onnx` file or a `model.toml`; TRAIN and TEST hold a folder of PNG or JPEG files for each label. A bare
//! `.onnx` file says neither its labels nor the range of its pixels: the names of TRAIN's folders, sorted, are then its
//! labels, and pixels are 0..1. `accentor init MODEL.onnx` writes a `model.toml` where both can be said;
//! `models/resnet8-cifar10` is one, and names where its ONNX file comes from.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows its results")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use accentor::source::{Dataset, dataset};
use accentor::{AdapterSpec, Augment, Model, ModelOptions, Splits, TrainConfig};

/// Versions of each training picture: itself, and mirrored and moved copies.
const VARIANTS: usize = 8;
const EPOCHS: usize = 20;
const SEEDS: u64 = 3;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, train, test] = arguments.as_slice() else {
        eprintln!(
            "usage: camera_shift MODEL TRAIN TEST   (an .onnx file or model.toml, two folders with a folder a label)"
        );
        eprintln!(
            "hint: no picture model comes with the sources; models/resnet8-cifar10/README.md says where to get one"
        );
        return ExitCode::from(2);
    };
    match run(model, train, test) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(model: &Path, train: &Path, test: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (train, test) = (dataset(train)?, dataset(test)?);
    let model = open(model, &train)?;
    if model.front_end() != "image" {
        return Err(format!("the model takes no pictures: its front end is `{}`", model.front_end()).into());
    }

    // Mirrored objects are the same objects, and so are objects a pixel further; both give more from few pictures.
    let augment = Augment { flip: true, shift_pixels: 1, ..Augment::default() };
    let seen = model.examples(&train, &augment, VARIANTS, 0)?;
    let unseen = model.examples(&test, &Augment::default(), 1, 0)?;
    let before = model.session(None)?.evaluate(model.labels(), &unseen)?;
    println!("{} pictures to learn from; on {} others: {:.3}", seen.len(), unseen.len(), before.accuracy);

    // A figure from one seed is luck: the spread belongs to it.
    let mut accuracies = Vec::new();
    for seed in 0..SEEDS {
        let started = Instant::now();
        let mut trainer = model.trainer(model.new_adapter(&AdapterSpec::default(), seed)?, 1)?;
        let cached = trainer.cache(&seen)?;
        let config = TrainConfig { epochs: EPOCHS, batch: 32, rate: 5e-3, seed, ..TrainConfig::default() };
        let splits = Splits { train: &cached, replay: None, valid: None };
        let report = trainer.fit(&config, splits, &mut |_| true)?;
        let after = model.session(Some(&trainer.adapter()))?.evaluate(model.labels(), &unseen)?;
        println!(
            "seed {seed}: {} values, {} steps, {:.1} s: {:.3}",
            trainer.parameters(),
            report.steps,
            started.elapsed().as_secs_f64(),
            after.accuracy
        );
        if seed + 1 == SEEDS {
            println!("by label, before -> after:");
            for (b, a) in before.per_class.iter().zip(&after.per_class) {
                println!("  {:16} {:3} of {:3} -> {:3}", b.label, b.correct, b.samples, a.correct);
            }
        }
        accuracies.push(after.accuracy);
    }
    let mean = accuracies.iter().sum::<f64>() / SEEDS as f64;
    let spread = accuracies.iter().map(|a| (a - mean).abs()).fold(0.0, f64::max);
    println!("{:.3} -> {mean:.3}, at most {spread:.3} away in {SEEDS} seeds", before.accuracy);
    Ok(())
}

fn open(path: &Path, train: &Dataset) -> Result<Model, accentor::ModelError> {
    let bare = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    let labels = if bare { train.labels() } else { Vec::new() };
    Model::open_with(path, &ModelOptions { labels, ..ModelOptions::default() })
}
