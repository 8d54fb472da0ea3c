//! Log mel spectra and cepstra: frames → windowed FFT → mel bands → logarithm → DCT.
//!
//! With the defaults, `X` is the FFT of 512 of 480 samples under a periodic Hann window, every 320 samples;
//! `mel[b] = Σ_k w[b,k]·|X[k]|` with triangles that are linear in mel, `m = 1127·ln(1 + f/700)`, from 20 to 4000 Hz, not normalised; the logarithm
//! is `ln(max(mel, log_floor) + log_offset)`; the cepstrum `c[i] = 2·Σ_b log[b]·cos(π·i·(b + ½)/bands) / √(2·bands)`. These are
//! `tf.signal.linear_to_mel_weight_matrix` and `tf.signal.mfccs_from_log_mel_spectrograms`. The FFT runs in f64, bands and cepstra in f32.

use std::f64::consts::PI;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use serde::{Deserialize, Serialize};

use super::{Clip, FeatureError, setting};
use crate::source::dot;

/// The weights of a frame's samples; periodic, as spectra use them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Window {
    /// `0.5 − 0.5·cos(2πn/N)`
    #[default]
    Hann,
    /// `0.54 − 0.46·cos(2πn/N)`
    Hamming,
    /// Every sample as it is.
    None,
}

/// What of a frequency's complex value is summed into bands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpectrumKind {
    /// `|X|`
    #[default]
    Magnitude,
    /// `|X|²`
    Power,
}

/// The mel scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MelScale {
    /// `1127·ln(1 + f/700)`, as HTK, TensorFlow and torchaudio.
    #[default]
    Htk,
    /// Linear below 1000 Hz, logarithmic above, as Slaney's toolbox and librosa.
    Slaney,
}

/// What the sides of the bands' triangles are straight lines of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Triangles {
    /// Mel, as TensorFlow.
    #[default]
    Mel,
    /// Hz, as librosa and torchaudio.
    Hz,
}

/// How bands of different widths are weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MelNorm {
    /// Every triangle has the height 1.
    #[default]
    None,
    /// Every triangle has the area 1 over Hz, as librosa.
    Slaney,
}

/// How the DCT-II is scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DctNorm {
    /// `2·Σ / √(2·bands)`: orthonormal but for the first coefficient, as TensorFlow.
    #[default]
    OrthoFirstUnscaled,
    /// Orthonormal, as librosa and torchaudio.
    Ortho,
    /// `2·Σ`
    None,
}

/// Frames, FFT, mel bands and logarithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogMelBands {
    /// Samples a frame.
    pub frame_samples: usize,
    /// Samples from one frame to the next.
    pub hop_samples: usize,
    /// The length of the FFT; a frame is filled up with zeros.
    pub fft: usize,
    /// The weights of a frame's samples.
    pub window: Window,
    /// Magnitude or power.
    pub spectrum: SpectrumKind,
    /// The number of bands.
    pub mels: usize,
    /// The lower edge of the lowest band.
    pub low_hz: f64,
    /// The upper edge of the highest band.
    pub high_hz: f64,
    /// The mel scale.
    pub mel_scale: MelScale,
    /// What the triangles' sides are straight lines of.
    pub triangles: Triangles,
    /// How bands of different widths are weighted.
    pub mel_norm: MelNorm,
    /// Bands below it count as it, before the logarithm.
    pub log_floor: f64,
    /// Added to every band before the logarithm.
    pub log_offset: f64,
}

impl Default for LogMelBands {
    fn default() -> Self {
        Self {
            frame_samples: 480,
            hop_samples: 320,
            fft: 512,
            window: Window::Hann,
            spectrum: SpectrumKind::Magnitude,
            mels: 40,
            low_hz: 20.0,
            high_hz: 4000.0,
            mel_scale: MelScale::Htk,
            triangles: Triangles::Mel,
            mel_norm: MelNorm::None,
            log_floor: 0.0,
            log_offset: 1e-6,
        }
    }
}

/// Log mel bands of each frame, `[frames, mels]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogMel {
    /// The clip.
    #[serde(flatten)]
    pub clip: Clip,
    /// Frames, bands and logarithm.
    #[serde(flatten)]
    pub bands: LogMelBands,
    /// Every logarithm is multiplied by it: 0.4343 makes ln log10, 4.343 decibels of power.
    pub scale: f64,
    /// Then this is added.
    pub offset: f64,
}

impl Default for LogMel {
    fn default() -> Self {
        Self { clip: Clip::default(), bands: LogMelBands::default(), scale: 1.0, offset: 0.0 }
    }
}

/// Cepstral coefficients of each frame, `[frames, coefficients]`; the defaults are the front end of MLPerf Tiny's DS-CNN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mfcc {
    /// The clip.
    #[serde(flatten)]
    pub clip: Clip,
    /// Frames, bands and logarithm.
    #[serde(flatten)]
    pub bands: LogMelBands,
    /// How many coefficients are kept, from the first.
    pub coefficients: usize,
    /// How the DCT is scaled.
    pub dct_norm: DctNorm,
}

impl Default for Mfcc {
    fn default() -> Self {
        Self {
            clip: Clip::default(),
            bands: LogMelBands::default(),
            coefficients: 10,
            dct_norm: DctNorm::OrthoFirstUnscaled,
        }
    }
}

impl LogMelBands {
    pub(super) fn check(&self, clip: &Clip) -> Result<(), FeatureError> {
        let nyquist_hz = f64::from(clip.rate_hz) / 2.0;
        setting((2..=65_536).contains(&self.fft), "fft", "2 to 65536", self.fft)?;
        setting((1..=self.fft).contains(&self.frame_samples), "frame_samples", "1 to fft", self.frame_samples)?;
        setting(
            self.frame_samples <= clip.window_samples,
            "frame_samples",
            "at most window_samples",
            self.frame_samples,
        )?;
        setting(
            (1..=clip.window_samples).contains(&self.hop_samples),
            "hop_samples",
            "1 to window_samples",
            self.hop_samples,
        )?;
        setting((1..=4096).contains(&self.mels), "mels", "1 to 4096", self.mels)?;
        setting(self.low_hz >= 0.0 && self.low_hz < self.high_hz, "low_hz", "0 to less than high_hz", self.low_hz)?;
        setting(self.high_hz <= nyquist_hz, "high_hz", "at most half of rate_hz", self.high_hz)?;
        setting((0.0..1e30).contains(&self.log_floor), "log_floor", "0 or more", self.log_floor)?;
        setting((0.0..1e30).contains(&self.log_offset), "log_offset", "0 or more", self.log_offset)?;
        let least = (self.log_floor + self.log_offset) as f32;
        setting(
            least >= f32::MIN_POSITIVE,
            "log_offset",
            "more than 0 where log_floor is 0 (silence has no logarithm)",
            self.log_offset,
        )
    }

    pub(super) fn frames(&self, clip: &Clip) -> usize {
        (clip.window_samples - self.frame_samples) / self.hop_samples + 1
    }
}

impl Mfcc {
    pub(super) fn check(&self) -> Result<(), FeatureError> {
        self.clip.check()?;
        self.bands.check(&self.clip)?;
        setting((1..=self.bands.mels).contains(&self.coefficients), "coefficients", "1 to mels", self.coefficients)
    }
}

impl LogMel {
    pub(super) fn check(&self) -> Result<(), FeatureError> {
        self.clip.check()?;
        self.bands.check(&self.clip)?;
        setting(self.scale.is_finite(), "scale", "a finite number", self.scale)?;
        setting(self.offset.is_finite(), "offset", "a finite number", self.offset)
    }
}

/// One triangle: the weights of consecutive FFT bins.
struct Band {
    first_bin: usize,
    weights: Vec<f32>,
}

/// The tables of one front end, and the frames' way through them.
pub(super) struct Spectrum {
    /// In f64: the rounding of a loud frequency must not fill the quiet bands, nor differ between instruction sets.
    fft: Arc<dyn RealToComplex<f64>>,
    window: Vec<f64>,
    hop_samples: usize,
    kind: SpectrumKind,
    bands: Vec<Band>,
    /// The bins that some band reads.
    bins: std::ops::Range<usize>,
    log_floor: f32,
    log_offset: f32,
    output: Output,
}

/// What a frame is worked out in.
#[derive(Debug)]
pub(super) struct Scratch {
    padded: Vec<f64>,
    bins: Vec<Complex<f64>>,
    fft: Vec<Complex<f64>>,
    spectrum: Vec<f32>,
    logs: Vec<f32>,
}

/// What a frame's logarithms become.
enum Output {
    Scaled {
        scale: f32,
        offset: f32,
    },
    /// `[coefficients, mels]`
    Cepstrum {
        dct: Vec<f32>,
        coefficients: usize,
    },
}

impl Spectrum {
    pub(super) fn log_mel(settings: &LogMel) -> Self {
        let output = Output::Scaled { scale: settings.scale as f32, offset: settings.offset as f32 };
        Self::new(&settings.bands, &settings.clip, output)
    }

    pub(super) fn mfcc(settings: &Mfcc) -> Self {
        let (mels, coefficients) = (settings.bands.mels, settings.coefficients);
        let scale = |i: usize| match settings.dct_norm {
            DctNorm::None => 2.0,
            DctNorm::Ortho if i == 0 => (1.0 / mels as f64).sqrt(),
            DctNorm::Ortho | DctNorm::OrthoFirstUnscaled => (2.0 / mels as f64).sqrt(),
        };
        let cosine = |i: usize, band: usize| (PI * i as f64 * (band as f64 + 0.5) / mels as f64).cos();
        let dct =
            (0..coefficients).flat_map(|i| (0..mels).map(move |band| (scale(i) * cosine(i, band)) as f32)).collect();
        Self::new(&settings.bands, &settings.clip, Output::Cepstrum { dct, coefficients })
    }

    fn new(settings: &LogMelBands, clip: &Clip, output: Output) -> Self {
        let bands = triangles(settings, clip.rate_hz);
        let used = bands.iter().filter(|band| !band.weights.is_empty());
        let first = used.clone().map(|band| band.first_bin).min().unwrap_or(0);
        let end = used.map(|band| band.first_bin + band.weights.len()).max().unwrap_or(0);
        Self {
            fft: RealFftPlanner::new().plan_fft_forward(settings.fft),
            window: window(settings.window, settings.frame_samples),
            hop_samples: settings.hop_samples,
            kind: settings.spectrum,
            bands,
            bins: first..end.max(first),
            log_floor: settings.log_floor as f32,
            log_offset: settings.log_offset as f32,
            output,
        }
    }

    /// Values a frame.
    pub(super) fn width(&self) -> usize {
        match &self.output {
            Output::Scaled { .. } => self.bands.len(),
            Output::Cepstrum { coefficients, .. } => *coefficients,
        }
    }

    /// Samples a frame.
    pub(super) fn frame_samples(&self) -> usize {
        self.window.len()
    }

    /// Samples from one frame to the next.
    pub(super) fn hop_samples(&self) -> usize {
        self.hop_samples
    }

    /// Room for [`Spectrum::frame`].
    pub(super) fn scratch(&self) -> Scratch {
        Scratch {
            padded: self.fft.make_input_vec(),
            bins: self.fft.make_output_vec(),
            fft: self.fft.make_scratch_vec(),
            spectrum: vec![0.0; self.bins.end],
            logs: vec![0.0; self.bands.len()],
        }
    }

    /// `[frames, width]` of a window of samples; nothing is allocated a frame.
    pub(super) fn of(&self, samples: &[f32]) -> Result<Vec<f32>, FeatureError> {
        let frames = samples.windows(self.window.len()).step_by(self.hop_samples);
        let mut features = vec![0.0; frames.len() * self.width()];
        let mut scratch = self.scratch();
        for (frame, features) in frames.zip(features.chunks_exact_mut(self.width())) {
            self.frame(frame, &mut scratch, features)?;
        }
        Ok(features)
    }

    /// `[width]` of a frame of samples.
    pub(super) fn frame(&self, frame: &[f32], scratch: &mut Scratch, features: &mut [f32]) -> Result<(), FeatureError> {
        let Scratch { padded, bins, fft, spectrum, logs } = scratch;
        let (weighted, zeros) = padded.split_at_mut(self.window.len());
        for ((to, sample), weight) in weighted.iter_mut().zip(frame).zip(&self.window) {
            *to = f64::from(*sample) * weight;
        }
        zeros.fill(0.0);
        let done = self.fft.process_with_scratch(padded, bins, fft);
        done.map_err(|error| FeatureError::Fft { problem: error.to_string() })?;
        self.bands_of(bins, spectrum, logs);
        match &self.output {
            Output::Scaled { scale, offset } => {
                features.iter_mut().zip(logs).for_each(|(to, log)| *to = *log * scale + offset);
            }
            Output::Cepstrum { dct, .. } => {
                let rows = dct.chunks_exact(logs.len());
                features.iter_mut().zip(rows).for_each(|(to, row)| *to = dot(row, logs));
            }
        }
        Ok(())
    }

    /// A frame's bins → the logarithms of its bands.
    fn bands_of(&self, bins: &[Complex<f64>], spectrum: &mut [f32], logs: &mut [f32]) {
        let used = self.bins.clone();
        for (to, bin) in spectrum[used.clone()].iter_mut().zip(&bins[used]) {
            let power = bin.re * bin.re + bin.im * bin.im;
            *to = match self.kind {
                SpectrumKind::Magnitude => power.sqrt() as f32,
                SpectrumKind::Power => power as f32,
            };
        }
        for (log, band) in logs.iter_mut().zip(&self.bands) {
            let mel = dot(&band.weights, &spectrum[band.first_bin..band.first_bin + band.weights.len()]);
            *log = (mel.max(self.log_floor) + self.log_offset).ln();
        }
    }
}

fn window(kind: Window, length: usize) -> Vec<f64> {
    let cosine = |n: usize| (2.0 * PI * n as f64 / length as f64).cos();
    let weight = |n: usize| match kind {
        Window::Hann => 0.5 - 0.5 * cosine(n),
        Window::Hamming => 0.54 - 0.46 * cosine(n),
        Window::None => 1.0,
    };
    (0..length).map(weight).collect()
}

fn triangles(settings: &LogMelBands, rate_hz: u32) -> Vec<Band> {
    let scale = settings.mel_scale;
    let (low, high) = (scale.mel(settings.low_hz), scale.mel(settings.high_hz));
    let edge = |i: usize| low + (high - low) * i as f64 / (settings.mels + 1) as f64;
    // Where on the line of the triangle's sides a frequency and an edge lie.
    let place = |hz: f64| match settings.triangles {
        Triangles::Mel => scale.mel(hz),
        Triangles::Hz => hz,
    };
    let edge_place = |i: usize| match settings.triangles {
        Triangles::Mel => edge(i),
        Triangles::Hz => scale.hz(edge(i)),
    };
    let bin_hz = |bin: usize| bin as f64 * f64::from(rate_hz) / settings.fft as f64;
    let places: Vec<f64> = (0..=settings.fft / 2).map(|bin| place(bin_hz(bin))).collect();
    let band = |b: usize| {
        let (left, centre, right) = (edge_place(b), edge_place(b + 1), edge_place(b + 2));
        let area = match settings.mel_norm {
            MelNorm::None => 1.0,
            MelNorm::Slaney => 2.0 / (scale.hz(edge(b + 2)) - scale.hz(edge(b))),
        };
        // The bin of 0 Hz belongs to no band.
        let first_bin = places.partition_point(|&place| place <= left).max(1);
        let end = places.partition_point(|&place| place < right).max(first_bin);
        let weight =
            |&place: &f64| (area * ((place - left) / (centre - left)).min((right - place) / (right - centre))) as f32;
        Band { first_bin, weights: places.get(first_bin..end).unwrap_or_default().iter().map(weight).collect() }
    };
    (0..settings.mels).map(band).collect()
}

impl MelScale {
    /// Hz a mel and mels at 1000 Hz of Slaney's linear part, and the logarithm of its step above.
    const SLANEY: (f64, f64, f64) = (200.0 / 3.0, 15.0, 0.068_751_777_420_949_12);

    fn mel(self, hz: f64) -> f64 {
        let (linear, knee, step) = Self::SLANEY;
        match self {
            Self::Htk => 1127.0 * (hz / 700.0).ln_1p(),
            Self::Slaney if hz < 1000.0 => hz / linear,
            Self::Slaney => knee + (hz / 1000.0).ln() / step,
        }
    }

    fn hz(self, mel: f64) -> f64 {
        let (linear, knee, step) = Self::SLANEY;
        match self {
            Self::Htk => 700.0 * (mel / 1127.0).exp_m1(),
            Self::Slaney if mel < knee => mel * linear,
            Self::Slaney => 1000.0 * ((mel - knee) * step).exp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{FrontEnd, Normalise};
    use crate::source::{Audio, Sample, Tensor, read};
    use std::path::Path;

    /// Bands and DCT in f32 against numpy's f64; the values go to about 100.
    const TOLERANCE: f32 = 1e-4;

    /// As in tests/data/front_end/make.py.
    fn signal() -> Sample {
        let mut state = 1u32;
        let mut sample = |n: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = f64::from(state) / 2f64.powi(32) - 0.5;
            let t = n as f64 / 16_000.0;
            (0.4 * (2.0 * PI * (100.0 * t + 2450.0 * t * t)).sin() + 0.05 * noise) as f32
        };
        Sample::Audio(Audio { samples: (0..16_000).map(&mut sample).collect(), rate_hz: 16_000 })
    }

    fn reference(name: &str) -> Tensor {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/front_end").join(name);
        match read(&path).unwrap() {
            Sample::Tensor(tensor) => tensor,
            other => panic!("{other:?}"),
        }
    }

    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (index, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() <= TOLERANCE, "value {index}: {got} is not {want}");
        }
    }

    fn librosa() -> (Clip, LogMelBands) {
        let clip = Clip { normalise: Normalise::None, ..Clip::default() };
        let bands = LogMelBands {
            frame_samples: 400,
            hop_samples: 800,
            fft: 400,
            window: Window::Hamming,
            spectrum: SpectrumKind::Power,
            mels: 16,
            low_hz: 50.0,
            high_hz: 7600.0,
            mel_scale: MelScale::Slaney,
            triangles: Triangles::Hz,
            mel_norm: MelNorm::Slaney,
            log_floor: 1e-5,
            log_offset: 0.0,
        };
        (clip, bands)
    }

    #[test]
    fn the_defaults_are_the_front_end_of_ds_cnn() {
        let extractor = FrontEnd::Mfcc(Mfcc::default()).build(&[1, 49, 10, 1]).unwrap();
        close(&extractor.features(&signal()).unwrap(), &reference("mfcc.npy").values);
    }

    #[test]
    fn librosa_s_way() {
        let (clip, bands) = librosa();
        let settings = LogMel { clip: clip.clone(), bands: bands.clone(), scale: 4.5, offset: -0.25 };
        let want = reference("log_mel.npy");
        let extractor = FrontEnd::LogMel(settings).build(&[1, 1, 20, 16]).unwrap();
        close(&extractor.features(&signal()).unwrap(), &want.values);
        let settings = Mfcc { clip, bands, coefficients: 13, dct_norm: DctNorm::Ortho };
        let extractor = FrontEnd::Mfcc(settings).build(&[1, 20, 13]).unwrap();
        close(&extractor.features(&signal()).unwrap(), &reference("cepstrum.npy").values);
    }

    #[test]
    fn bands_first_where_the_model_takes_them_so() {
        let (clip, bands) = librosa();
        let front_end = FrontEnd::LogMel(LogMel { clip, bands, ..LogMel::default() });
        let frames_first = front_end.build(&[1, 20, 16]).unwrap().features(&signal()).unwrap();
        let bands_first = front_end.build(&[1, 1, 16, 20]).unwrap().features(&signal()).unwrap();
        for frame in 0..20 {
            for band in 0..16 {
                assert_eq!(frames_first[frame * 16 + band], bands_first[band * 20 + frame]);
            }
        }
        assert_eq!(front_end.build(&[1, 320]).unwrap().features(&signal()).unwrap(), frames_first);
    }

    #[test]
    fn silence_and_narrow_bands_are_finite() {
        let silence = Sample::Audio(Audio { samples: vec![], rate_hz: 16_000 });
        let bands = LogMelBands { mels: 400, ..LogMelBands::default() };
        let front_end = FrontEnd::LogMel(LogMel { bands, ..LogMel::default() });
        let features = front_end.build(&[1, 49, 400]).unwrap().features(&silence).unwrap();
        assert!(features.iter().all(|&value| (value - 1e-6f32.ln()).abs() < 1e-4));
    }
}
