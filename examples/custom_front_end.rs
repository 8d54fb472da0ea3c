//! Feeds a model from a front end of the caller's own: numbers in, no file format and no manifest's front end between.
//!
//!     cargo run --release --example custom_front_end
//!
//! A sensor, a DSP that has the spectrum already, a training pipeline that must be matched to the digit: whoever
//! computes the model's input pushes arrays ([`accentor::Examples::push_array`]) or slices (`push`). Here the MFCC of the
//! keyword model are three matrix products of `ndarray`, and training masks bands and frames (SpecAugment, Park et al.
//! 2019, arXiv 1904.08779), which is no augmentation of the library's.

#![allow(clippy::print_stdout, reason = "an example shows its results")]

use std::f32::consts::{PI, TAU};
use std::path::Path;

use accentor::ndarray::{Array2, Array3, Axis};
use accentor::source::{Sample, dataset, read};
use accentor::{AdapterSpec, Examples, Model, Splits, TrainConfig};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kws-commands");
const RATE_HZ: f32 = 16_000.0;
const CLIP: usize = 16_000;
const FRAME: usize = 480;
const HOP: usize = 320;
const FRAMES: usize = (CLIP - FRAME) / HOP + 1;
const FFT: usize = 512;
const BINS: usize = FFT / 2 + 1;
const MELS: usize = 40;
const COEFFICIENTS: usize = 10;
/// Copies of each training clip with a band and some frames masked, and the clip itself.
const VARIANTS: usize = 8;
/// f32 sums of 480 products against the library's FFT in f64, on coefficients of up to 100.
const TOLERANCE: f32 = 1e-2;

/// The tables of the front end, each a matrix.
struct FrontEnd {
    /// Windowed DFT, real and imaginary part, `[FRAME, BINS]`.
    dft: [Array2<f32>; 2],
    /// Triangles on the mel scale, `[BINS, MELS]`.
    mel: Array2<f32>,
    /// DCT-II, `[MELS, COEFFICIENTS]`.
    dct: Array2<f32>,
}

impl FrontEnd {
    fn new() -> Self {
        let hann = |n: usize| 0.5 - 0.5 * (TAU * n as f32 / FRAME as f32).cos();
        // n·k modulo the period keeps the angle exact in f32.
        let angle = |n: usize, k: usize| TAU * (n * k % FFT) as f32 / FFT as f32;
        let to_mel = |hz: f32| 1127.0 * (1.0 + hz / 700.0).ln();
        let (low, high) = (to_mel(20.0), to_mel(4000.0));
        let edge = |m: usize| low + (high - low) * m as f32 / (MELS + 1) as f32;
        Self {
            dft: [
                Array2::from_shape_fn((FRAME, BINS), |(n, k)| hann(n) * angle(n, k).cos()),
                Array2::from_shape_fn((FRAME, BINS), |(n, k)| hann(n) * angle(n, k).sin()),
            ],
            mel: Array2::from_shape_fn((BINS, MELS), |(k, m)| {
                let at = to_mel(k as f32 * RATE_HZ / FFT as f32);
                let rising = (at - edge(m)) / (edge(m + 1) - edge(m));
                let falling = (edge(m + 2) - at) / (edge(m + 2) - edge(m + 1));
                if k == 0 { 0.0 } else { rising.min(falling).max(0.0) }
            }),
            dct: Array2::from_shape_fn((MELS, COEFFICIENTS), |(m, c)| {
                let cosine = (PI * c as f32 * (2 * m + 1) as f32 / (2 * MELS) as f32).cos();
                2.0 * cosine / (2.0 * MELS as f32).sqrt()
            }),
        }
    }

    /// Samples → log mel bands `[FRAMES, MELS]`.
    fn log_mel(&self, samples: &[f32]) -> Array2<f32> {
        // In the middle of a second, its largest sample 1.
        let peak = samples.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let before = CLIP.saturating_sub(samples.len()) / 2;
        let skipped = samples.len().saturating_sub(CLIP) / 2;
        let at = |i: usize| i.checked_sub(before).and_then(|i| samples.get(i + skipped)).map_or(0.0, |v| v / peak);
        let frames = Array2::from_shape_fn((FRAMES, FRAME), |(frame, n)| at(frame * HOP + n));
        let [re, im] = self.dft.each_ref().map(|table| frames.dot(table));
        let magnitude = (&re * &re + &im * &im).mapv(f32::sqrt);
        magnitude.dot(&self.mel).mapv(|v| (v + 1e-6).ln())
    }
}

/// Sets a band of up to 8 mels and up to 10 frames to the clip's mean.
fn mask(bands: &mut Array2<f32>, rng: &mut fastrand::Rng) {
    let mean = bands.mean().unwrap_or_default();
    let (mels, frames) = (rng.usize(..=8), rng.usize(..=10));
    let (mel, frame) = (rng.usize(..=MELS - mels), rng.usize(..=FRAMES - frames));
    bands.slice_axis_mut(Axis(1), (mel..mel + mels).into()).fill(mean);
    bands.slice_axis_mut(Axis(0), (frame..frame + frames).into()).fill(mean);
}

/// Reads clips as raw samples and computes the inputs: the clip as it is, and `variants - 1` masked copies.
fn inputs(model: &Model, folder: &Path, variants: usize) -> Result<Examples, Box<dyn std::error::Error>> {
    let front_end = FrontEnd::new();
    let mut rng = fastrand::Rng::with_seed(0);
    let mut examples = model.new_examples(variants);
    for example in dataset(folder)?.examples {
        let target = model.label_index(&example.label).ok_or("the model lacks the label")?;
        let Sample::Audio(audio) = read(&example.path)? else { return Err("not a sound clip".into()) };
        let bands = front_end.log_mel(&audio.samples);
        let mut input = Array3::zeros((variants, FRAMES, COEFFICIENTS));
        for (variant, mut coefficients) in input.outer_iter_mut().enumerate() {
            let mut bands = bands.clone();
            if variant > 0 {
                mask(&mut bands, &mut rng);
            }
            coefficients.assign(&bands.dot(&front_end.dct));
        }
        // The shape is checked against the model's input, [1, 49, 10, 1]; dimensions of 1 may be left out.
        examples.push_array(input.view(), target)?;
    }
    Ok(examples)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open(MODEL)?;
    let demo = Path::new(MODEL).join("demo");
    println!("the model takes {:?}", model.input_shape());
    let train = inputs(&model, &demo.join("lancaster/adapt"), VARIANTS)?;
    let replay = inputs(&model, &demo.join("us/replay"), VARIANTS)?;
    let test = inputs(&model, &demo.join("lancaster/test"), 1)?;

    // The same front end as the manifest's? Then the base's accuracy holds for it.
    let clip = &dataset(&demo.join("lancaster/test"))?.examples[0];
    let theirs = model.features(&read(&clip.path)?)?;
    let apart = theirs.iter().zip(test.input(0, 0)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("largest difference from the manifest's front end: {apart:.1e}");
    assert!(apart < TOLERANCE, "this front end computes something else than the model was trained with");

    let before = model.session(None)?.evaluate(model.labels(), &test)?;
    let mut trainer = model.trainer(model.new_adapter(&AdapterSpec::default(), 0)?, 1)?;
    let (train, replay) = (trainer.cache(&train)?, trainer.cache(&replay)?);
    let splits = Splits { train: &train, replay: Some(&replay), valid: None };
    trainer.fit(&TrainConfig::default(), splits, &mut |_| true)?;
    let session = model.session(Some(&trainer.adapter()))?;
    let after = session.evaluate(model.labels(), &test)?;
    println!("lancaster, {} clips in unheard voices: {:.3} -> {:.3}", test.len(), before.accuracy, after.accuracy);

    // Live, the array goes straight into the session.
    let scores = session.predict(test.input_array(0, 0))?;
    let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or_default();
    println!("{}: {} ({:.3})", clip.label, model.labels()[best], scores[best]);
    Ok(())
}
