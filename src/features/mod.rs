//! Samples → the model's input: MFCC, log mel bands, a waveform, a picture, or a tensor as it is.
//!
//! A [`FrontEnd`] is the description from the model's manifest, all numbers with the defaults of the DS-CNN keyword models. Built for an
//! input shape it is an [`Extractor`], which holds the tables and gives the values of one sample in the model's own layout.

mod augment;
mod clip;
mod extractor;
mod image;
pub mod likeness;
mod settings;
mod spectrum;
mod stream;

use serde::{Deserialize, Serialize};

use crate::source::SourceError;

pub use augment::Augment;
pub use clip::{Align, Clip, Normalise};
pub use extractor::Extractor;
pub use image::{ChannelOrder, Fit, Image, Layout, PerChannel};
pub(crate) use settings::nearest;
pub use spectrum::{DctNorm, LogMel, LogMelBands, MelNorm, MelScale, Mfcc, SpectrumKind, Triangles, Window};
pub use stream::{NoOverlap, Stream};

use extractor::Stage;
use image::Pixels;
use spectrum::Spectrum;

/// How a model's input is made of samples; in a manifest, the table `[front_end]` with its `kind`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FrontEnd {
    /// Cepstral coefficients, `[frames, coefficients]`.
    Mfcc(Mfcc),
    /// Log mel bands, `[frames, mels]`.
    LogMel(LogMel),
    /// The samples themselves, `[window_samples]`.
    Waveform(Waveform),
    /// A picture.
    Image(Image),
    /// Numbers from a `.npy` file.
    Tensor(TensorInput),
}

/// A clip's samples, `[window_samples]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waveform {
    /// The clip.
    #[serde(flatten)]
    pub clip: Clip,
    /// Every sample is multiplied by it; 32768 for models that expect 16-bit integers.
    pub scale: f64,
}

impl Default for Waveform {
    fn default() -> Self {
        Self { clip: Clip::default(), scale: 1.0 }
    }
}

/// A tensor of the model's input shape, dimensions of 1 aside; every value is `value · scale + offset`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TensorInput {
    /// What values are multiplied by.
    pub scale: f64,
    /// What is then added.
    pub offset: f64,
}

impl Default for TensorInput {
    fn default() -> Self {
        Self { scale: 1.0, offset: 0.0 }
    }
}

/// Why features could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeatureError {
    /// A setting out of its range.
    #[error("`{key}`: expected {expected}, found {found}; correct it in the manifest")]
    Setting {
        /// The key.
        key: &'static str,
        /// The values it may have.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// The front end and the model disagree.
    #[error("the `{kind}` front end yields {yields:?}, the model's input is {model:?}; {cure}")]
    Shape {
        /// The front end's kind.
        kind: &'static str,
        /// What it yields for one sample.
        yields: Vec<usize>,
        /// The model's input shape.
        model: Vec<usize>,
        /// Which settings to change.
        cure: &'static str,
    },
    /// A sample of a kind that the front end does not take.
    #[error(
        "the `{kind}` front end takes {expected}, found {found}; give other files or set another `kind` in the manifest's [front_end]"
    )]
    Kind {
        /// The front end's kind.
        kind: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What it got.
        found: &'static str,
    },
    /// A tensor of another shape than the model's input.
    #[error(
        "expected a tensor of shape {expected:?} (dimensions of 1 may be left out), found {found:?}; save it in the model's shape"
    )]
    Tensor {
        /// The model's input shape.
        expected: Vec<usize>,
        /// The tensor's.
        found: Vec<usize>,
    },
    /// A picture whose bytes are not width · height · 3.
    #[error(
        "expected {width} x {height} x 3 bytes and at least one pixel, found {bytes}; build the picture with all its pixels"
    )]
    Picture {
        /// Its columns.
        width: usize,
        /// Its rows.
        height: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// A value that is no number or infinite.
    #[error("feature {index} is {found}; the sample's values are too large: expected sound in -1..1")]
    NotFinite {
        /// Its position.
        index: usize,
        /// The value.
        found: f32,
    },
    /// The FFT refused.
    #[error("FFT: {problem}; report it with the manifest")]
    Fft {
        /// What it said.
        problem: String,
    },
    /// Windows that do not move.
    #[error("a stream's windows are 0 samples apart: give a hop of 1 or more, such as a tenth of the rate")]
    StreamHop,
    /// The clip could not be resampled.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The error of a setting, where its condition does not hold.
fn setting(holds: bool, key: &'static str, expected: &'static str, found: impl ToString) -> Result<(), FeatureError> {
    if holds { Ok(()) } else { Err(FeatureError::Setting { key, expected, found: found.to_string() }) }
}

impl FrontEnd {
    /// The kinds, as `kind` names them.
    pub const KINDS: [&'static str; 5] = ["mfcc", "log-mel", "waveform", "image", "tensor"];

    /// The front end's kind.
    pub fn kind(&self) -> &'static str {
        Self::KINDS[match self {
            Self::Mfcc(_) => 0,
            Self::LogMel(_) => 1,
            Self::Waveform(_) => 2,
            Self::Image(_) => 3,
            Self::Tensor(_) => 4,
        }]
    }

    /// Checks every setting that can be checked without the model.
    ///
    /// # Errors
    /// The first setting out of its range.
    pub fn check(&self) -> Result<(), FeatureError> {
        match self {
            Self::Mfcc(settings) => settings.check(),
            Self::LogMel(settings) => settings.check(),
            Self::Waveform(settings) => {
                settings.clip.check()?;
                setting(settings.scale.is_finite(), "scale", "a finite number", settings.scale)
            }
            Self::Image(settings) => settings.check(),
            Self::Tensor(settings) => {
                setting(settings.scale.is_finite(), "scale", "a finite number", settings.scale)?;
                setting(settings.offset.is_finite(), "offset", "a finite number", settings.offset)
            }
        }
    }

    /// The front end that an input shape suggests: pictures by their 3 channels, waveforms by their length, MFCC by the 49 x 10 of the keyword
    /// models; a tensor otherwise.
    pub fn default_for(input_shape: &[usize]) -> Self {
        match (input_shape, squeezed(input_shape).as_slice()) {
            ([_, height, width, 3], _) if *height > 3 && *width > 3 => Self::Image(Image::default()),
            ([_, 3, height, width], _) if *height > 3 && *width > 3 => {
                Self::Image(Image { layout: Layout::Nchw, ..Image::default() })
            }
            (_, [49, 10]) => Self::Mfcc(Mfcc::default()),
            (_, [samples]) if *samples >= 4_000 => {
                let clip = Clip { window_samples: *samples, normalise: Normalise::None, ..Clip::default() };
                Self::Waveform(Waveform { clip, scale: 1.0 })
            }
            _ => Self::Tensor(TensorInput::default()),
        }
    }

    /// What one sample becomes, where that does not depend on the model's input.
    #[cfg(feature = "onnx")]
    pub(crate) fn fixed_shape(&self) -> Option<Vec<usize>> {
        let fixed = matches!(self, Self::Mfcc(_) | Self::LogMel(_) | Self::Waveform(_)) && self.check().is_ok();
        fixed.then(|| self.yields(&[]))
    }

    /// What one sample becomes, before it is laid out as the model's input.
    fn yields(&self, input_shape: &[usize]) -> Vec<usize> {
        match self {
            Self::Mfcc(settings) => {
                vec![settings.bands.frames(&settings.clip), settings.coefficients]
            }
            Self::LogMel(settings) => {
                vec![settings.bands.frames(&settings.clip), settings.bands.mels]
            }
            Self::Waveform(settings) => vec![settings.clip.window_samples],
            Self::Image(settings) => settings.shape(input_shape).to_vec(),
            Self::Tensor(_) => input_shape.to_vec(),
        }
    }

    /// The extractor for a model whose input for one sample has this shape, batch 1 first: `[1, 49, 10, 1]`.
    ///
    /// Frames and bands go into `[frames, bands]` and, transposed, into `[bands, frames]` alike, wherever dimensions of 1 stand, and into one
    /// flat dimension of as many values; a picture's three dimensions must be those of its `layout`.
    ///
    /// # Errors
    /// A setting out of its range, or a front end that yields another shape than the model takes.
    pub fn build(&self, input_shape: &[usize]) -> Result<Extractor, FeatureError> {
        self.check()?;
        let yields = self.yields(input_shape);
        let (given, taken) = (squeezed(&yields), squeezed(input_shape));
        let count = |shape: &[usize]| shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length));
        let values = count(input_shape).filter(|&values| values > 0);
        let flat = taken.len() <= 1 && count(&given) == values;
        let transposed =
            given.len() == 2 && given != taken && taken == [given[1], given[0]] && !matches!(self, Self::Image(_));
        let fits = match self {
            Self::Image(_) => input_shape.len() == 4 && input_shape[0] == 1 && yields == input_shape[1..],
            _ => given == taken || flat || transposed,
        };
        let Some(values) = values.filter(|_| fits) else {
            let (kind, model) = (self.kind(), input_shape.to_vec());
            return Err(FeatureError::Shape { kind, yields, model, cure: self.cure() });
        };
        let stage = match self {
            Self::Mfcc(settings) => Stage::Spectrum(settings.clip.clone(), Spectrum::mfcc(settings)),
            Self::LogMel(settings) => Stage::Spectrum(settings.clip.clone(), Spectrum::log_mel(settings)),
            Self::Waveform(settings) => Stage::Waveform(settings.clone()),
            Self::Image(settings) => Stage::Pixels(Pixels::new(settings, input_shape)),
            Self::Tensor(settings) => Stage::Tensor(settings.clone()),
        };
        Ok(Extractor { kind: self.kind(), stage, shape: input_shape.to_vec(), values, transposed })
    }

    fn cure(&self) -> &'static str {
        match self {
            Self::Mfcc(_) => "set `window_samples`, `frame_samples`, `hop_samples` (frames) and `coefficients`",
            Self::LogMel(_) => "set `window_samples`, `frame_samples`, `hop_samples` (frames) and `mels`",
            Self::Waveform(_) => "set `window_samples`",
            Self::Image(_) => "set `layout`, `order`, `width` and `height`",
            Self::Tensor(_) => "fix the model's free dimensions with `input_shape`",
        }
    }
}

/// A shape without its dimensions of 1.
fn squeezed(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&length| length != 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Audio, Picture, Sample, Tensor};

    fn parse(text: &str) -> Result<FrontEnd, String> {
        toml::from_str(text).map_err(|error| error.message().to_string())
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for text in [
            "rate_hz = 10",
            "window_samples = 0",
            "window_samples = 100",
            "hop_samples = 0",
            "fft = 1",
            "frame_samples = 0",
            "mels = 0",
            "low_hz = -1",
            "low_hz = nan",
            "high_hz = 9000",
            "high_hz = inf",
            "coefficients = 41",
            "coefficients = 0",
            "log_offset = 0",
            "log_floor = -1",
            "window_samples = 4000000000", // still a usize of 32 bits
        ] {
            let error = parse(&format!("kind = \"mfcc\"\n{text}")).unwrap().build(&[1, 49, 10, 1]).unwrap_err();
            assert!(matches!(error, FeatureError::Setting { .. }), "{text}: {error}");
        }
        assert!(parse("kind = \"waveform\"\nscale = inf").unwrap().check().is_err());
        assert!(parse("kind = \"image\"\nscale = [1, 2, nan]").unwrap().check().is_err());
    }

    #[test]
    fn another_shape_says_both() {
        let error = FrontEnd::Mfcc(Mfcc::default()).build(&[1, 98, 40]).unwrap_err().to_string();
        assert!(
            error.contains("[49, 10]") && error.contains("[1, 98, 40]") && error.contains("`coefficients`"),
            "{error}"
        );
        assert!(FrontEnd::Waveform(Waveform::default()).build(&[1, 1, 16000]).is_ok());
        assert!(FrontEnd::Waveform(Waveform::default()).build(&[1, 15999]).is_err());
        assert!(FrontEnd::Tensor(TensorInput::default()).build(&[1, 0]).is_err());
        assert!(FrontEnd::Tensor(TensorInput::default()).build(&[usize::MAX, 3]).is_err());
    }

    #[test]
    fn samples_of_another_kind() {
        let audio = Sample::Audio(Audio { samples: vec![0.1], rate_hz: 16_000 });
        let picture = Sample::Picture(Picture { pixels: vec![0; 3], width: 1, height: 1 });
        let tensor = Sample::Tensor(Tensor { shape: vec![49, 10], values: vec![1.0; 490] });
        let mfcc = FrontEnd::Mfcc(Mfcc::default()).build(&[1, 49, 10, 1]).unwrap();
        assert!(mfcc.features(&picture).unwrap_err().to_string().contains("found a picture"));
        assert!(mfcc.features(&tensor).unwrap_err().to_string().contains("sound clips"));
        assert_eq!(mfcc.features(&audio).unwrap().len(), mfcc.values());

        let passed = FrontEnd::Tensor(TensorInput { scale: 2.0, offset: 1.0 }).build(&[1, 49, 10, 1]).unwrap();
        assert_eq!(passed.features(&tensor).unwrap(), [3.0; 490]);
        let other = Sample::Tensor(Tensor { shape: vec![10, 49], values: vec![1.0; 490] });
        assert!(matches!(passed.features(&other), Err(FeatureError::Tensor { .. })));
        let lying = Sample::Tensor(Tensor { shape: vec![49, 10], values: vec![] });
        assert!(passed.features(&lying).is_err());
    }

    #[test]
    fn waveforms_are_scaled() {
        let clip = Clip { window_samples: 3, normalise: Normalise::None, ..Clip::default() };
        let extractor = FrontEnd::Waveform(Waveform { clip, scale: 32768.0 }).build(&[1, 3]).unwrap();
        let sample = |value| Sample::Audio(Audio { samples: vec![value, -0.5], rate_hz: 16_000 });
        assert_eq!(extractor.features(&sample(0.25)).unwrap(), [8192.0, -16384.0, 0.0]);
        assert!(matches!(extractor.features(&sample(1e38)), Err(FeatureError::NotFinite { index: 0, .. })));
        assert!(matches!(
            extractor.features(&Sample::Audio(Audio { samples: vec![1.0], rate_hz: 7 })),
            Err(FeatureError::Source(_))
        ));
    }

    #[test]
    fn guesses_by_shape() {
        for (shape, kind) in [
            (&[1, 49, 10, 1][..], "mfcc"),
            (&[1, 32, 32, 3], "image"),
            (&[1, 3, 224, 224], "image"),
            (&[1, 16000], "waveform"),
            (&[1, 1, 16000], "waveform"),
            (&[1, 76, 32, 1], "tensor"),
            (&[], "tensor"),
        ] {
            let front_end = FrontEnd::default_for(shape);
            assert_eq!(front_end.kind(), kind);
            assert!(shape.is_empty() || front_end.build(shape).is_ok());
        }
    }

    #[test]
    fn extractors_are_shared_between_threads() {
        fn shared<T: Send + Sync>(_: &T) {}
        shared(&FrontEnd::Mfcc(Mfcc::default()).build(&[1, 49, 10, 1]).unwrap());
    }
}
