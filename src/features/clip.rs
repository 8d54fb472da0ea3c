//! A clip brought to the model's rate, length and level: what the audio front ends share.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::augment::Draw;
use super::{FeatureError, setting};
use crate::source::{self, Audio, MAX_VALUES, RATES_HZ};

/// Where the window lies on a clip of another length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Align {
    /// Shorter clips get zeros at the end, of longer ones the beginning is taken.
    #[default]
    Start,
    /// Shorter clips get zeros on both sides (the odd one behind), of longer ones the middle is taken.
    Centre,
    /// Shorter clips as `centre`, of longer ones the window of the most energy is taken, the first of equals.
    Loudest,
}

impl Align {
    /// The clip's index at which the window begins; negative where zeros come first.
    fn start(self, samples: &[f32], window: usize) -> isize {
        let extra = samples.len() as isize - window as isize;
        match self {
            Self::Start => 0,
            Self::Centre => extra / 2,
            Self::Loudest if extra <= 0 => Self::Centre.start(samples, window),
            Self::Loudest => {
                let square = |value: f32| f64::from(value) * f64::from(value);
                let mut energy: f64 = samples[..window].iter().map(|&value| square(value)).sum();
                let (mut most, mut start) = (energy, 0);
                for (at, (&left, &entered)) in samples.iter().zip(&samples[window..]).enumerate() {
                    energy += square(entered) - square(left);
                    if energy > most {
                        (most, start) = (energy, at + 1);
                    }
                }
                start as isize
            }
        }
    }
}

/// How the window is brought to one level, after it was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// Not at all.
    None,
    /// Divided by its largest sample where that is positive (the DS-CNN models of MLPerf Tiny were trained so).
    #[default]
    Max,
    /// Divided by its largest magnitude where that is not zero.
    Peak,
}

/// The clip as the model hears it: rate, length, place and level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clip {
    /// The model's sampling rate; files of another are resampled.
    pub rate_hz: u32,
    /// How many samples the model hears.
    pub window_samples: usize,
    /// Where the window lies on a shorter or longer clip.
    pub align: Align,
    /// How loudness is evened out.
    pub normalise: Normalise,
}

impl Default for Clip {
    fn default() -> Self {
        Self { rate_hz: 16_000, window_samples: 16_000, align: Align::Start, normalise: Normalise::Max }
    }
}

impl Clip {
    pub(super) fn check(&self) -> Result<(), FeatureError> {
        setting(RATES_HZ.contains(&self.rate_hz), "rate_hz", "1000 to 768000", self.rate_hz)?;
        setting((1..=MAX_VALUES).contains(&self.window_samples), "window_samples", "1 to 67108864", self.window_samples)
    }

    /// The window, `[window_samples]`, with what was drawn applied: speed, then place, then gain and noise, then level.
    pub(super) fn window(&self, audio: &Audio, draw: Option<Draw>) -> Result<Vec<f32>, FeatureError> {
        let mut samples = if audio.rate_hz == self.rate_hz {
            Cow::Borrowed(audio.samples.as_slice())
        } else {
            Cow::Owned(source::resample(audio, self.rate_hz)?.samples)
        };
        if let Some(draw) = &draw {
            samples = draw.at_speed(samples);
        }
        let shift = draw.as_ref().map_or(0, |draw| draw.shift_samples(self.rate_hz));
        let start = self.align.start(&samples, self.window_samples) - shift;

        let mut window = vec![0.0; self.window_samples];
        let before = start.min(0).unsigned_abs().min(window.len());
        let from = (start.max(0) as usize).min(samples.len());
        let count = (window.len() - before).min(samples.len() - from);
        let heard = &mut window[before..before + count];
        heard.copy_from_slice(&samples[from..from + count]);
        if let Some(draw) = draw {
            let power = mean_square(heard);
            draw.gain_and_noise(&mut window, power);
        }
        self.level(&mut window);
        Ok(window)
    }

    pub(super) fn level(&self, window: &mut [f32]) {
        let top = match self.normalise {
            Normalise::None => return,
            Normalise::Max => window.iter().fold(0.0f32, |top, &value| top.max(value)),
            Normalise::Peak => window.iter().fold(0.0f32, |top, &value| top.max(value.abs())),
        };
        if top > 0.0 {
            window.iter_mut().for_each(|value| *value /= top);
        }
    }
}

fn mean_square(samples: &[f32]) -> f64 {
    let sum: f64 = samples.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    sum / samples.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(align: Align, samples: &[f32], window_samples: usize) -> Vec<f32> {
        let clip = Clip { rate_hz: 16_000, window_samples, align, normalise: Normalise::None };
        clip.window(&Audio { samples: samples.to_vec(), rate_hz: 16_000 }, None).unwrap()
    }

    #[test]
    fn shorter_clips_are_padded() {
        assert_eq!(cut(Align::Start, &[1.0, 2.0], 5), [1.0, 2.0, 0.0, 0.0, 0.0]);
        for align in [Align::Centre, Align::Loudest] {
            assert_eq!(cut(align, &[1.0, 2.0], 5), [0.0, 1.0, 2.0, 0.0, 0.0]);
            assert_eq!(cut(align, &[1.0, 2.0], 4), [0.0, 1.0, 2.0, 0.0]);
            assert_eq!(cut(align, &[], 2), [0.0, 0.0]);
        }
    }

    #[test]
    fn longer_clips_are_cut_by_the_same_rule() {
        let clip = [0.0, 1.0, 2.0, 3.0, 9.0, -9.0, 1.0];
        assert_eq!(cut(Align::Start, &clip, 2), [0.0, 1.0]);
        assert_eq!(cut(Align::Centre, &clip, 2), [2.0, 3.0]);
        assert_eq!(cut(Align::Loudest, &clip, 2), [9.0, -9.0]);
        assert_eq!(cut(Align::Loudest, &[1.0, 1.0, 1.0], 2), [1.0, 1.0]);
        for align in [Align::Start, Align::Centre, Align::Loudest] {
            assert_eq!(cut(align, &clip, 7), clip);
        }
    }

    #[test]
    fn levels() {
        let level = |normalise, samples: &[f32]| {
            let mut samples = samples.to_vec();
            Clip { normalise, ..Clip::default() }.level(&mut samples);
            samples
        };
        assert_eq!(level(Normalise::None, &[0.5, -2.0]), [0.5, -2.0]);
        assert_eq!(level(Normalise::Max, &[0.5, -2.0]), [1.0, -4.0]);
        assert_eq!(level(Normalise::Peak, &[0.5, -2.0]), [0.25, -1.0]);
        assert_eq!(level(Normalise::Max, &[-1.0, -2.0]), [-1.0, -2.0]);
        assert_eq!(level(Normalise::Max, &[0.0]), [0.0]);
        assert_eq!(level(Normalise::Peak, &[0.0]), [0.0]);
    }

    #[test]
    fn other_rates_are_resampled() {
        let clip = Clip { window_samples: 100, normalise: Normalise::None, ..Clip::default() };
        let heard = clip.window(&Audio { samples: vec![0.5; 50], rate_hz: 8000 }, None).unwrap();
        assert!((heard[50] - 0.5).abs() < 1e-2);
    }
}
