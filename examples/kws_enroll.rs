//! A new wake word in three clips: checked, taught to a model that lacks it, tried on what it must not wake up at.
//!
//!     cargo run --release --example kws_enroll -- computer my-word one.wav two.wav three.wav
//!     cargo run --release --features mic --example kws_enroll -- computer my-word
//!
//! The word, the adapter folder to write, and the clips; without clips, and built with `mic`, they are recorded.
//! `accentor listen --model models/kws-commands --adapter my-word` hears it then.

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::path::{Path, PathBuf};

use accentor::features::likeness::{self, Spoken};
use accentor::source::{Audio, Sample, dataset, quality};
use accentor::{AdapterSpec, Augment, Model, Splits, TrainConfig};

/// The base that is taught: ten words, none of them the new one.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kws-commands");
const CLIPS: usize = 3;
/// Versions of each clip: itself, and copies that are moved a little.
const VARIANTS: usize = 8;
const SEED: u64 = 0;

type Error = Box<dyn std::error::Error>;

/// Two seconds after the word "now", until a clip is good.
#[cfg(feature = "mic")]
fn recorded(word: &str) -> Result<Vec<Audio>, Error> {
    use accentor::source::microphone::{Microphone, beep};
    use accentor::source::{Heard, Sound};

    let mut microphone = Microphone::open(None, 16_000, None)?;
    let mut clips = Vec::new();
    while clips.len() < CLIPS {
        println!("{} of {CLIPS}: say \"{word}\" now", clips.len() + 1);
        // Without an output the line above has to do.
        let _ = beep();
        microphone.skip();
        let rate_hz = microphone.rate_hz();
        let (mut samples, mut filled, mut whole) = (vec![0.0; 2 * rate_hz as usize], 0, true);
        while filled < samples.len() && whole {
            match microphone.read(&mut samples[filled..])? {
                Heard::Samples(count) => filled += count,
                Heard::Nothing => {}
                Heard::Gap { .. } | Heard::End => whole = false,
            }
        }
        let clip = Audio { samples, rate_hz };
        match quality::problems(&clip).first() {
            None if whole => clips.push(clip),
            None => println!("sound was lost, again"),
            Some(problem) => println!("{problem}"),
        }
    }
    Ok(clips)
}

#[cfg(not(feature = "mic"))]
fn recorded(word: &str) -> Result<Vec<Audio>, Error> {
    Err(format!("name {CLIPS} clips of \"{word}\", or build with --features mic to record them").into())
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [word, out, files @ ..] = arguments.as_slice() else {
        return Err("usage: kws_enroll WORD OUT [CLIP...]".into());
    };
    let mut clips = Vec::new();
    for file in files {
        match accentor::source::read(Path::new(file))? {
            Sample::Audio(clip) => clips.push(clip),
            other => return Err(format!("{file} is {}, not sound", other.kind()).into()),
        }
    }
    if clips.is_empty() {
        clips = recorded(word)?;
    }

    // Is each one a word, and all of them the same one? Files may be cut closely; what is recorded may not.
    let mut spoken = Vec::new();
    for (clip, number) in clips.iter().zip(1..) {
        for problem in quality::problems(clip).iter().filter(|p| **p != quality::Problem::CutOff) {
            println!("clip {number}: {problem}");
        }
        spoken.push(Spoken::of(clip)?);
    }
    if let Some((place, ratio)) = likeness::unlike(&spoken) {
        println!("clip {}: {}", place + 1, quality::Problem::Unlike { ratio });
    }

    // The model with one more class; the file stays as it is, the adapter brings the row.
    let base = Model::open(MODEL)?;
    let model = base.extended(std::slice::from_ref(word))?;
    let target = model.label_index(word).ok_or("the new label")?;
    let moved = Augment { shift_ms: 60.0, ..Augment::default() };
    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut train = model.new_examples(VARIANTS);
    for clip in &clips {
        let sample = Sample::Audio(quality::trimmed(clip));
        let mut inputs = model.features(&sample)?;
        for _ in 1..VARIANTS {
            inputs.extend(model.extractor().augmented(&sample, &moved, &mut rng)?);
        }
        train.push(&inputs, target)?;
    }
    // What it must go on hearing, and must not take for the new word.
    let demo = PathBuf::from(MODEL).join("demo");
    let replay = model.examples(&dataset(&demo.join("us/replay"))?, &moved, VARIANTS, SEED)?;
    let test = model.examples(&dataset(&demo.join("us/test"))?, &Augment::default(), 1, SEED)?;

    let mut adapter = model.new_adapter(&AdapterSpec::default(), SEED)?;
    // The new row begins at the mean of its clips, not at random.
    model.start_head(&mut adapter, &[&train, &replay])?;
    let mut trainer = model.trainer(adapter, 1)?;
    let (train, replay) = (trainer.cache(&train)?, trainer.cache(&replay)?);
    let splits = Splits { train: &train, replay: Some(&replay), valid: None };
    let report = trainer.fit(&TrainConfig { seed: SEED, ..TrainConfig::default() }, splits, &mut |_| true)?;
    let adapter = trainer.adapter();
    model.write_adapter(Path::new(out), &adapter)?;

    let session = model.session(Some(&adapter))?;
    let mut heard = 0;
    for clip in &clips {
        let scores = session.scores(&model.features(&Sample::Audio(quality::trimmed(clip)))?)?;
        println!("\"{word}\" scores {:.3} on its clip", scores[target]);
        heard += usize::from(scores.iter().all(|score| *score <= scores[target]));
    }
    let (before, after) = (base.session(None)?, session.evaluate(model.labels(), &test)?);
    let old = base.examples(&dataset(&demo.join("us/test"))?, &Augment::default(), 1, SEED)?;
    let before = before.evaluate(base.labels(), &old)?;
    println!("{} steps; {heard} of {} clips found", report.steps, clips.len());
    println!("the other words: {:.3} before, {:.3} after ({} clips)", before.accuracy, after.accuracy, after.samples);
    println!("{out}: accentor listen --model models/kws-commands --adapter {out}");
    Ok(())
}
