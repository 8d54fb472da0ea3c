//! Random changes to a clip or a picture before its features are taken, drawn from the caller's seed.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{FeatureError, setting};
use crate::source::resample_by;

/// Speeds are drawn in hundredths, so that their filter stays short.
const SPEED_STEPS: usize = 100;
/// Noise is drawn from the lowest allowed ratio up to this much above it.
const SNR_SPAN_DB: f32 = 30.0;

/// How far clips and pictures may be changed; everything is off by default.
///
/// Clips: speed, then place, then gain and noise, before the level is evened out. Pictures: flip, shift, brightness, at the model's size.
/// Tensors stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Clips move by up to this much, to either side.
    pub shift_ms: f32,
    /// Clips are played faster or slower by up to this fraction (0 to 0.5); the pitch moves with it.
    pub speed: f32,
    /// Clips become louder or softer by up to this much (0 to 60); of no effect where the front end evens the level out.
    pub gain_db: f32,
    /// White noise is added at a signal-to-noise ratio between this and 30 dB more.
    pub noise_snr_db: Option<f32>,
    /// Pictures are mirrored left to right. [`crate::Model::examples`] mirrors every other copy, so that each side is seen
    /// as often.
    pub flip: bool,
    /// Pictures move by up to this many pixels in each direction; the border is repeated.
    pub shift_pixels: usize,
    /// Pictures become brighter or darker by up to this fraction (0 to 1).
    pub brightness: f32,
}

impl Augment {
    /// Checks the ranges that the fields' lines name.
    ///
    /// # Errors
    /// The first field out of its range.
    pub fn check(&self) -> Result<(), FeatureError> {
        setting((0.0..=60_000.0).contains(&self.shift_ms), "shift_ms", "0 to 60000", self.shift_ms)?;
        setting((0.0..=0.5).contains(&self.speed), "speed", "0 to 0.5", self.speed)?;
        setting((0.0..=60.0).contains(&self.gain_db), "gain_db", "0 to 60", self.gain_db)?;
        let snr_db = self.noise_snr_db.unwrap_or(0.0);
        setting((-60.0..=120.0).contains(&snr_db), "noise_snr_db", "-60 to 120", snr_db)?;
        setting(self.shift_pixels <= 16_384, "shift_pixels", "0 to 16384", self.shift_pixels)?;
        setting((0.0..=1.0).contains(&self.brightness), "brightness", "0 to 1", self.brightness)
    }
}

/// What one clip gets. Every number is drawn whatever is off, so that one setting does not change another's draws.
pub(super) struct Draw<'a> {
    speed: f32,
    shift_ms: f32,
    gain_db: f32,
    snr_db: Option<f32>,
    rng: &'a mut fastrand::Rng,
}

impl<'a> Draw<'a> {
    pub(super) fn new(augment: &Augment, rng: &'a mut fastrand::Rng) -> Self {
        let speed = 1.0 + augment.speed * either_side(rng);
        let shift_ms = augment.shift_ms * either_side(rng);
        let gain_db = augment.gain_db * either_side(rng);
        let above = SNR_SPAN_DB * rng.f32();
        Self { speed, shift_ms, gain_db, snr_db: augment.noise_snr_db.map(|least| least + above), rng }
    }

    pub(super) fn at_speed<'b>(&self, samples: Cow<'b, [f32]>) -> Cow<'b, [f32]> {
        let steps = (self.speed * SPEED_STEPS as f32).round() as usize;
        if steps == SPEED_STEPS {
            return samples;
        }
        // Only a clip of the longest length can grow too long; it then keeps its speed.
        resample_by(&samples, SPEED_STEPS, steps).map_or(samples, Cow::Owned)
    }

    pub(super) fn shift_samples(&self, rate_hz: u32) -> isize {
        (self.shift_ms / 1000.0 * rate_hz as f32).round() as isize
    }

    /// Changes the window; `power` is the clip's mean square before.
    pub(super) fn gain_and_noise(self, window: &mut [f32], power: f64) {
        let gain = 10f32.powf(self.gain_db / 20.0);
        if gain != 1.0 {
            window.iter_mut().for_each(|value| *value *= gain);
        }
        if let Some(snr_db) = self.snr_db {
            let rms = power.sqrt() as f32 * gain * 10f32.powf(-snr_db / 20.0);
            for pair in window.chunks_mut(2) {
                for (value, normal) in pair.iter_mut().zip(two_normals(self.rng)) {
                    *value += rms * normal;
                }
            }
        }
    }
}

/// What one picture gets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PictureDraw {
    pub(super) flip: bool,
    pub(super) right: isize,
    pub(super) down: isize,
    /// What is added to 1 as the factor of every value.
    pub(super) brighter: f32,
}

impl PictureDraw {
    pub(super) fn new(augment: &Augment, rng: &mut fastrand::Rng) -> Self {
        let shift = augment.shift_pixels as isize;
        let (right, down) = (rng.isize(-shift..=shift), rng.isize(-shift..=shift));
        Self { flip: augment.flip, right, down, brighter: augment.brightness * either_side(rng) }
    }
}

/// -1..1
fn either_side(rng: &mut fastrand::Rng) -> f32 {
    2.0 * rng.f32() - 1.0
}

/// Box and Muller's transform.
fn two_normals(rng: &mut fastrand::Rng) -> [f32; 2] {
    let radius = (-2.0 * (1.0 - rng.f32()).ln()).sqrt();
    let (sin, cos) = (std::f32::consts::TAU * rng.f32()).sin_cos();
    [radius * cos, radius * sin]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Clip, FrontEnd, Normalise, Waveform};
    use crate::source::{Audio, Sample};

    fn waveform(augment: &Augment, seed: u64) -> Vec<f32> {
        let clip = Clip { window_samples: 1600, normalise: Normalise::None, ..Clip::default() };
        let extractor = FrontEnd::Waveform(Waveform { clip, scale: 1.0 }).build(&[1, 1600]).unwrap();
        let samples = (0..1600).map(|n| (n as f32 * 0.2).sin() * 0.5).collect();
        let sample = Sample::Audio(Audio { samples, rate_hz: 16_000 });
        extractor.augmented(&sample, augment, &mut fastrand::Rng::with_seed(seed)).unwrap()
    }

    #[test]
    fn off_changes_nothing() {
        let clip = Clip { window_samples: 1600, normalise: Normalise::None, ..Clip::default() };
        let extractor = FrontEnd::Waveform(Waveform { clip, scale: 1.0 }).build(&[1, 1600]).unwrap();
        let samples: Vec<f32> = (0..1600).map(|n| (n as f32 * 0.2).sin() * 0.5).collect();
        let plain = extractor.features(&Sample::Audio(Audio { samples, rate_hz: 16_000 })).unwrap();
        assert_eq!(waveform(&Augment::default(), 1), plain);
    }

    #[test]
    fn the_seed_decides() {
        let all = Augment { shift_ms: 20.0, speed: 0.1, gain_db: 6.0, noise_snr_db: Some(10.0), ..Augment::default() };
        assert_eq!(waveform(&all, 7), waveform(&all, 7));
        assert_ne!(waveform(&all, 7), waveform(&all, 8));
    }

    #[test]
    fn each_does_its_own() {
        let plain = waveform(&Augment::default(), 1);
        let louder = waveform(&Augment { gain_db: 6.0, ..Augment::default() }, 3);
        let ratio = louder[10] / plain[10];
        assert!(ratio != 1.0 && (0.5..2.0).contains(&ratio) && (louder[700] / plain[700] - ratio).abs() < 1e-5);

        let moved = waveform(&Augment { shift_ms: 20.0, ..Augment::default() }, 3);
        let zeros =
            moved.iter().take_while(|v| **v == 0.0).count() + moved.iter().rev().take_while(|v| **v == 0.0).count();
        assert!((1..=322).contains(&zeros), "{zeros}");

        let noisy = waveform(&Augment { noise_snr_db: Some(0.0), ..Augment::default() }, 3);
        let noise: Vec<f32> = noisy.iter().zip(&plain).map(|(n, p)| n - p).collect();
        let power = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>();
        let snr_db = 10.0 * (power(&plain) / power(&noise)).log10();
        assert!((-1.0..31.0).contains(&snr_db), "{snr_db}");

        let speed = waveform(&Augment { speed: 0.2, ..Augment::default() }, 4);
        assert_ne!(speed, plain);
    }

    #[test]
    fn out_of_range_names_the_field() {
        for (augment, field) in [
            (Augment { speed: 0.6, ..Augment::default() }, "speed"),
            (Augment { shift_ms: f32::NAN, ..Augment::default() }, "shift_ms"),
            (Augment { gain_db: -1.0, ..Augment::default() }, "gain_db"),
            (Augment { noise_snr_db: Some(f32::INFINITY), ..Augment::default() }, "noise_snr_db"),
            (Augment { brightness: 2.0, ..Augment::default() }, "brightness"),
        ] {
            assert!(augment.check().unwrap_err().to_string().contains(field));
        }
        assert!(toml::from_str::<Augment>("shift = 3").is_err());
        assert_eq!(toml::from_str::<Augment>("shift_ms = 60").unwrap().shift_ms, 60.0);
    }
}
