//! A front end built for one model.

use super::augment::{Augment, Draw, PictureDraw};
use super::image::Pixels;
use super::spectrum::Spectrum;
use super::{Clip, FeatureError, TensorInput, Waveform, squeezed};
use crate::source::Sample;

/// A front end built for one model: samples → the values of its input. It may be shared between threads.
pub struct Extractor {
    pub(super) kind: &'static str,
    pub(super) stage: Stage,
    pub(super) shape: Vec<usize>,
    pub(super) values: usize,
    /// `[frames, bands]` is turned into `[bands, frames]`.
    pub(super) transposed: bool,
}

/// What a sample of the right kind goes through.
pub(super) enum Stage {
    Spectrum(Clip, Spectrum),
    Waveform(Waveform),
    Pixels(Pixels),
    Tensor(TensorInput),
}

impl std::fmt::Debug for Extractor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Extractor")
            .field("kind", &self.kind)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl Extractor {
    /// The model's input shape for one sample, batch 1 first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many values one sample becomes: the product of [`shape`](Self::shape).
    pub fn values(&self) -> usize {
        self.values
    }

    /// Samples a second and samples of the window that a front end of sound hears; none of pictures and tensors.
    pub fn sound(&self) -> Option<(u32, usize)> {
        match &self.stage {
            Stage::Spectrum(clip, _) => Some((clip.rate_hz, clip.window_samples)),
            Stage::Waveform(settings) => Some((settings.clip.rate_hz, settings.clip.window_samples)),
            Stage::Pixels(_) | Stage::Tensor(_) => None,
        }
    }

    /// The model's input for one sample, `[values]` in the model's own row-major layout.
    ///
    /// # Errors
    /// A sample of the wrong kind or shape, or values so large that a feature is not finite.
    pub fn features(&self, sample: &Sample) -> Result<Vec<f32>, FeatureError> {
        self.run(sample, None)
    }

    /// The same with the sample changed at random first. The same generator state gives the same values.
    ///
    /// # Errors
    /// As [`features`](Self::features), and a setting of `augment` out of its range.
    pub fn augmented(
        &self,
        sample: &Sample,
        augment: &Augment,
        rng: &mut fastrand::Rng,
    ) -> Result<Vec<f32>, FeatureError> {
        augment.check()?;
        self.run(sample, Some((augment, rng)))
    }

    fn run(&self, sample: &Sample, change: Option<(&Augment, &mut fastrand::Rng)>) -> Result<Vec<f32>, FeatureError> {
        let features = match (&self.stage, sample) {
            (Stage::Spectrum(clip, spectrum), Sample::Audio(audio)) => {
                let features = spectrum.of(&clip.window(audio, drawn(change))?)?;
                if self.transposed { transpose(&features, spectrum.width()) } else { features }
            }
            (Stage::Waveform(settings), Sample::Audio(audio)) => {
                let mut samples = settings.clip.window(audio, drawn(change))?;
                samples.iter_mut().for_each(|value| *value *= settings.scale as f32);
                samples
            }
            (Stage::Pixels(pixels), Sample::Picture(picture)) => {
                let draw = change.map(|(augment, rng)| PictureDraw::new(augment, rng)).unwrap_or_default();
                pixels.of(picture, draw)?
            }
            (Stage::Tensor(settings), Sample::Tensor(tensor)) => {
                let fits = squeezed(&tensor.shape) == squeezed(&self.shape) && tensor.values.len() == self.values;
                if !fits {
                    return Err(FeatureError::Tensor { expected: self.shape.clone(), found: tensor.shape.clone() });
                }
                let (scale, offset) = (settings.scale as f32, settings.offset as f32);
                tensor.values.iter().map(|value| value * scale + offset).collect()
            }
            (stage, sample) => {
                let expected = match stage {
                    Stage::Spectrum(..) | Stage::Waveform(_) => "sound clips (.wav, .flac)",
                    Stage::Pixels(_) => "pictures (.png, .jpg)",
                    Stage::Tensor(_) => "tensors (.npy)",
                };
                return Err(FeatureError::Kind { kind: self.kind, expected, found: sample.kind() });
            }
        };
        match features.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(FeatureError::NotFinite { index, found: features[index] }),
            None => Ok(features),
        }
    }
}

fn drawn<'a>(change: Option<(&Augment, &'a mut fastrand::Rng)>) -> Option<Draw<'a>> {
    change.map(|(augment, rng)| Draw::new(augment, rng))
}

/// `[rows, width]` → `[width, rows]`
fn transpose(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}
