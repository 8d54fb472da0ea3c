//! Teaches a keyword model an accent that it never heard: the library from one end to the other.
//!
//!     cargo run --release --example keyword_accent             # the demo's clips
//!     cargo run --release --example keyword_accent my.wav      # and labels this clip at the end
//!
//! Files in, adapter folder out: what `accentor adapt` and `accentor predict` do, from a program of one's own.

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use accentor::source::{dataset, read};
use accentor::{AdapterSpec, Augment, Model, ModelError, Splits, TrainConfig};

/// The manifest names the ONNX file, its labels and how clips become its input.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kws-commands");
/// Versions of each training clip: itself, and copies that are moved a little.
const VARIANTS: usize = 8;
const SEED: u64 = 0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let demo = PathBuf::from(MODEL).join("demo");
    let clip = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => demo.join("caribbean/test/stop").read_dir()?.next().ok_or("no clip")??.path(),
    };

    // A folder is labelled data: a folder a label, WAV or FLAC at any rate.
    let model = Model::open(MODEL)?;
    let moved = Augment { shift_ms: 60.0, ..Augment::default() };
    let read_set = |folder: &str, augment: &Augment, variants: usize| -> Result<_, ModelError> {
        model.examples(&dataset(&demo.join(folder))?, augment, variants, SEED)
    };
    let train = read_set("caribbean/adapt", &moved, VARIANTS)?;
    // What the model must not forget is mixed into training.
    let replay = read_set("us/replay", &moved, VARIANTS)?;
    // Other voices than those of the training clips.
    let heard = [
        ("caribbean", read_set("caribbean/test", &Augment::default(), 1)?),
        ("us", read_set("us/test", &Augment::default(), 1)?),
    ];

    // Low-rank pairs on the layers that `Choice::Auto` takes; the weights of the file stay as they are.
    let spec = AdapterSpec { rank: 8, ..AdapterSpec::default() };
    let mut trainer = model.trainer(model.new_adapter(&spec, SEED)?, 1)?;
    println!(
        "{} clips, {} trained values, {} KiB to train in",
        train.len(),
        trainer.parameters(),
        trainer.arena_bytes() >> 10
    );

    // What lies below the lowest adapted layer is computed once a clip; every epoch then costs the rest alone.
    let (train, replay) = (trainer.cache(&train)?, trainer.cache(&replay)?);
    let splits = Splits { train: &train, replay: Some(&replay), valid: None };

    // The observer sees every step. A button or a signal handler would set `stop` from another thread; training then
    // ends after the step at hand and the adapter is good as it is.
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let mut shown = 0;
    let report = trainer.fit(&TrainConfig { seed: SEED, ..TrainConfig::default() }, splits, &mut |progress| {
        if progress.epoch % 10 == 0 && progress.epoch != shown {
            shown = progress.epoch;
            println!(
                "epoch {:2} of {}, step {:3}, loss {:.4}",
                progress.epoch, progress.epochs, progress.step, progress.loss
            );
        }
        !stop.load(Ordering::Relaxed) && started.elapsed().as_secs() < 60
    })?;
    println!(
        "{} steps in {:.2} s{}",
        report.steps,
        started.elapsed().as_secs_f64(),
        if report.cancelled { ", stopped" } else { "" }
    );

    // An adapter is a PEFT folder of some kilobytes, written whole or not at all, and bound to this ONNX file.
    let scratch = tempfile::tempdir()?;
    let folder = scratch.path().join("caribbean");
    model.write_adapter(&folder, &trainer.adapter())?;
    let adapter = model.read_adapter(&folder)?;
    assert_eq!(adapter, trainer.adapter(), "a folder gives back what was written");

    // A session is Send + Sync: one for all threads.
    let (frozen, adapted) = (model.session(None)?, model.session(Some(&adapter))?);
    for (voices, clips) in &heard {
        let before = frozen.evaluate(model.labels(), clips)?;
        let after = adapted.evaluate(model.labels(), clips)?;
        println!("{voices:10} {} clips: {:.3} -> {:.3}", before.samples, before.accuracy, after.accuracy);
    }

    let input = model.features(&read(&clip)?)?;
    let scores = adapted.scores(&input)?;
    let mut ranked: Vec<_> = model.labels().iter().zip(&scores).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(a.1));
    println!("{}:", clip.display());
    ranked.iter().take(3).for_each(|(label, score)| println!("  {label:8} {score:.3}"));
    Ok(())
}
