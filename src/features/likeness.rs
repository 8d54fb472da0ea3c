//! How alike clips of one word are: the distance of their MFCCs under dynamic time warping.
//!
//! Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition" (1978), symmetric form: a diagonal step counts
//! twice, and the sum is divided by both lengths. The first coefficient (loudness) is left out and the mean of each of the others
//! (microphone and room) is taken off.

use super::{Clip, FeatureError, FrontEnd, Mfcc};
use crate::source::{Audio, Sample, quality};

/// Clips from which on one can be unlike the others.
pub const LEAST_CLIPS: usize = 3;

/// One clip of [`LEAST_CLIPS`] or four is unlike the others from this many times their distance on. Real digits of four speakers
/// (docs/microphone.md): 4 of 200 sets of three good clips have such a clip …
const LIMIT_OF_FEW: f32 = 1.8;

/// … and 5 of 200 sets of five with this one.
const LIMIT: f32 = 1.7;

/// A clip as a sequence of frames, for [`distance`].
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// `[frames, width]`
    frames: Vec<f32>,
    width: usize,
}

impl Spoken {
    /// The voiced part of a clip.
    ///
    /// # Errors
    /// A rate that is not believed; samples that are too large.
    pub fn of(clip: &Audio) -> Result<Self, FeatureError> {
        let trimmed = quality::trimmed(clip);
        let settings = Mfcc::default();
        let audio = crate::source::resample(&trimmed, settings.clip.rate_hz)?;
        let window_samples = audio.samples.len().max(settings.bands.frame_samples);
        let frames = 1 + (window_samples - settings.bands.frame_samples) / settings.bands.hop_samples;
        let width = settings.coefficients;
        let settings = Mfcc { clip: Clip { window_samples, ..settings.clip }, ..settings };
        let mfcc = FrontEnd::Mfcc(settings).build(&[1, frames, width])?.features(&Sample::Audio(audio))?;
        let mut frames: Vec<f32> = mfcc.chunks_exact(width).flat_map(|frame| frame[1..].iter().copied()).collect();
        let width = width - 1;
        for coefficient in 0..width {
            let mean = frames.iter().skip(coefficient).step_by(width).sum::<f32>() * width as f32 / frames.len() as f32;
            frames.iter_mut().skip(coefficient).step_by(width).for_each(|value| *value -= mean);
        }
        Ok(Self { frames, width })
    }
}

/// The distance of two clips: mean Euclidean distance of their frames along the best path.
pub fn distance(a: &Spoken, b: &Spoken) -> f32 {
    let (rows, columns) = (a.frames.len() / a.width, b.frames.len() / b.width);
    let mut above = vec![f32::INFINITY; columns + 1];
    above[0] = 0.0;
    for x in a.frames.chunks_exact(a.width) {
        let mut row = vec![f32::INFINITY; columns + 1];
        for (j, y) in b.frames.chunks_exact(b.width).enumerate() {
            let apart = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
            row[j + 1] = apart + (above[j] + apart).min(above[j + 1]).min(row[j]);
        }
        above = row;
    }
    above[columns] / (rows + columns) as f32
}

/// The clip that is least like the others: its place, and how many times as far from them as they are from each other
/// (medians). None below [`LEAST_CLIPS`].
pub fn oddest(clips: &[Spoken]) -> Option<(usize, f32)> {
    if clips.len() < LEAST_CLIPS {
        return None;
    }
    let apart: Vec<Vec<f32>> = clips.iter().map(|a| clips.iter().map(|b| distance(a, b)).collect()).collect();
    let ratio = |odd: usize| {
        let others = || (0..clips.len()).filter(move |i| *i != odd);
        let from = median(others().map(|i| apart[odd][i]).collect());
        let between = median(
            others()
                .flat_map(|i| others().filter(move |j| i < *j).map(move |j| (i, j)))
                .map(|(i, j)| apart[i][j])
                .collect(),
        );
        from / between.max(f32::MIN_POSITIVE)
    };
    (0..clips.len()).map(|i| (i, ratio(i))).max_by(|a, b| a.1.total_cmp(&b.1))
}

/// [`oddest`] where it is so far from the others that it may be another word.
pub fn unlike(clips: &[Spoken]) -> Option<(usize, f32)> {
    let limit = if clips.len() < 5 { LIMIT_OF_FEW } else { LIMIT };
    oddest(clips).filter(|(_, ratio)| *ratio > limit)
}

fn median(mut values: Vec<f32>) -> f32 {
    values.sort_by(f32::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rising or falling sweep with harmonics, of a length in samples.
    fn sweep(samples: usize, up: bool, seed: u64) -> Audio {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut phase = 0.0f32;
        let at = |n: usize| {
            let along = n as f32 / samples as f32;
            let hz = 200.0 + 1500.0 * if up { along } else { 1.0 - along };
            phase += std::f32::consts::TAU * hz / 16_000.0;
            0.3 * (phase.sin() + 0.5 * (2.0 * phase).sin()) + (rng.f32() - 0.5) * 0.01
        };
        Audio { samples: (0..samples).map(at).collect(), rate_hz: 16_000 }
    }

    #[test]
    fn pace_matters_little_and_the_word_much() {
        let of = |samples, up, seed| Spoken::of(&sweep(samples, up, seed)).unwrap();
        let (fast, slow, other) = (of(6_000, true, 1), of(9_000, true, 2), of(7_500, false, 3));
        assert_eq!(distance(&fast, &fast), 0.0);
        assert_eq!(distance(&fast, &slow), distance(&slow, &fast));
        assert!(distance(&fast, &slow) * 2.0 < distance(&fast, &other));
        let clips = [fast.clone(), other, slow.clone(), of(7_000, true, 4)];
        assert_eq!(unlike(&clips).map(|(place, _)| place), Some(1));
        assert_eq!(unlike(&[fast.clone(), slow.clone(), of(7_000, true, 4), of(8_000, true, 5)]), None);
        assert_eq!(oddest(&[fast, slow]), None);
    }

    #[test]
    fn a_clip_without_sound_is_one_frame() {
        let silent = Spoken::of(&Audio { samples: vec![], rate_hz: 8_000 }).unwrap();
        assert_eq!(silent.frames.len(), silent.width);
        assert!(distance(&silent, &silent).is_finite());
    }
}
