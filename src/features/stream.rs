//! Sound as it comes → the model's input of a window that slides over it.
//!
//! The k-th window begins `k · hop` samples after the first one; its features are bit for bit those of [`Extractor::features`] on a clip of just its samples.
//! Where a frame depends on its own samples only (no `normalise`) and the hop is a whole number of the front end's hops, each
//! frame is computed once, when its last sample is in; else all frames of a window are, when it is full.

use std::sync::Arc;

use super::extractor::Stage;
use super::spectrum::Scratch;
use super::{Extractor, FeatureError, Normalise};

/// Why the features of one window are not those of the last, moved on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoOverlap {
    /// Every sample is divided by what is loudest in the window: another window, another divisor.
    #[error(
        "`normalise` levels each window as a whole, so that all its features are new; set `normalise = \"none\"` for a model that was trained so"
    )]
    Normalised,
    /// Frames begin elsewhere in each window.
    #[error(
        "the hop of {hop_samples} samples is no multiple of the front end's {frame_hop_samples}; choose one that is"
    )]
    Hop {
        /// Samples from one window to the next.
        hop_samples: usize,
        /// Samples from one frame to the next.
        frame_hop_samples: usize,
    },
    /// Frames are the inner dimension of the input.
    #[error("the model's input has bands before frames: a frame does not stand in one piece")]
    Transposed,
    /// Two windows have no frame in common.
    #[error("a hop of {hop_samples} samples leaves no frame of a window in the next; choose a shorter one")]
    Apart {
        /// Samples from one window to the next.
        hop_samples: usize,
    },
}

/// A front end that is fed blocks of samples of any size. Nothing is allocated after it is made.
///
/// ```
/// # use accentor::features::{FrontEnd, Mfcc, Stream};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let extractor = FrontEnd::Mfcc(Mfcc::default()).build(&[1, 49, 10, 1])?;
/// let mut stream = Stream::new(extractor, 1600)?;
/// let mut windows = 0;
/// for block in [0.25; 20_000].chunks(512) {
///     let mut rest = block;
///     while let Some(features) = stream.next(&mut rest)? {
///         assert_eq!(features.len(), 490);
///         windows += 1;
///     }
/// }
/// assert_eq!(windows, 3); // after 16000, 17600 and 19200 samples
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Stream {
    extractor: Arc<Extractor>,
    rate_hz: u32,
    hop_samples: usize,
    /// The window, `[window_samples]`, of which `filled` are in.
    samples: Vec<f32>,
    filled: usize,
    /// Samples to pass over, where windows have gaps between them.
    skip: usize,
    /// The window is full and was given out.
    given: bool,
    /// Frames that the next window has in common with this one; none where every frame depends on the whole window.
    moved: Option<usize>,
    /// `[frames, width]`, of which `computed` are in.
    frames: Vec<f32>,
    computed: usize,
    scratch: Option<Scratch>,
    levelled: Vec<f32>,
    features: Vec<f32>,
}

impl Stream {
    /// A window of features every `hop_samples`.
    ///
    /// # Errors
    /// A front end of pictures or tensors; a hop of 0.
    pub fn new(extractor: impl Into<Arc<Extractor>>, hop_samples: usize) -> Result<Self, FeatureError> {
        let extractor = extractor.into();
        let (clip, frames, spectrum) = match &extractor.stage {
            Stage::Spectrum(clip, spectrum) => (clip, extractor.values, Some(spectrum)),
            Stage::Waveform(settings) => (&settings.clip, 0, None),
            Stage::Pixels(_) => return Err(other_kind(&extractor, "pictures (.png, .jpg)")),
            Stage::Tensor(_) => return Err(other_kind(&extractor, "tensors (.npy)")),
        };
        if hop_samples == 0 {
            return Err(FeatureError::StreamHop);
        }
        let normalised = clip.normalise != Normalise::None;
        let moved = spectrum.filter(|s| !normalised && hop_samples.is_multiple_of(s.hop_samples()));
        Ok(Self {
            rate_hz: clip.rate_hz,
            hop_samples,
            samples: vec![0.0; clip.window_samples],
            filled: 0,
            skip: 0,
            given: false,
            moved: moved.map(|s| hop_samples / s.hop_samples()),
            frames: vec![0.0; frames],
            computed: 0,
            scratch: spectrum.map(super::spectrum::Spectrum::scratch),
            levelled: vec![0.0; if normalised { clip.window_samples } else { 0 }],
            features: vec![0.0; extractor.values],
            extractor,
        })
    }

    /// The rate of the samples that it takes.
    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Samples of a window.
    pub fn window_samples(&self) -> usize {
        self.samples.len()
    }

    /// Samples from one window to the next.
    pub fn hop_samples(&self) -> usize {
        self.hop_samples
    }

    /// Whether each frame is computed once, not anew for every window that it is in.
    pub fn keeps_frames(&self) -> bool {
        self.moved.is_some()
    }

    /// Rows of a window in memory (frames, or samples of a waveform) and rows by which the next one is moved on, where the
    /// rows that two have in common are the same values.
    ///
    /// # Errors
    /// A front end, or a hop, with which windows have nothing in common.
    pub fn overlap(&self) -> Result<[usize; 2], NoOverlap> {
        let hop_samples = self.hop_samples;
        if !self.levelled.is_empty() {
            return Err(NoOverlap::Normalised);
        }
        let overlap = match (&self.extractor.stage, self.moved) {
            (Stage::Spectrum(..), _) if self.extractor.transposed => return Err(NoOverlap::Transposed),
            (Stage::Spectrum(_, spectrum), None) => {
                return Err(NoOverlap::Hop { hop_samples, frame_hop_samples: spectrum.hop_samples() });
            }
            (Stage::Spectrum(_, spectrum), Some(moved)) => [self.frames.len() / spectrum.width(), moved],
            _ => [self.samples.len(), hop_samples],
        };
        if overlap[1] < overlap[0] { Ok(overlap) } else { Err(NoOverlap::Apart { hop_samples }) }
    }

    /// The samples of the window that [`Stream::next`] has just given, or what is in of the next one and stale samples behind.
    pub fn window(&self) -> &[f32] {
        &self.samples
    }

    /// What [`Stream::next`] has given last.
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    /// Forgets what came so far: after a gap in the sound.
    pub fn reset(&mut self) {
        (self.filled, self.skip, self.computed, self.given) = (0, 0, 0, false);
    }

    /// Takes samples from the front of `block` until a window is full; its features, in the model's own layout. None when
    /// the block is used up.
    ///
    /// # Errors
    /// Samples so large that a feature is not finite; the window is passed over.
    pub fn next(&mut self, block: &mut &[f32]) -> Result<Option<&[f32]>, FeatureError> {
        if self.given {
            self.slide();
        }
        let skipped = self.skip.min(block.len());
        self.skip -= skipped;
        *block = &block[skipped..];
        let count = block.len().min(self.samples.len() - self.filled);
        let (taken, rest) = block.split_at(count);
        self.samples[self.filled..][..count].copy_from_slice(taken);
        self.filled += count;
        *block = rest;
        if self.moved.is_some() {
            self.frames_of(false)?;
        }
        if self.filled < self.samples.len() {
            return Ok(None);
        }
        self.given = true;
        self.finish()?;
        match self.features.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(FeatureError::NotFinite { index, found: self.features[index] }),
            None => Ok(Some(&self.features)),
        }
    }

    /// Moves the window on by a hop.
    fn slide(&mut self) {
        self.given = false;
        let hop = self.hop_samples.min(self.samples.len());
        self.samples.copy_within(hop.., 0);
        self.filled = self.samples.len() - hop;
        self.skip = self.hop_samples - hop;
        let values = self.moved.map_or(self.frames.len(), |frames| frames * self.width()).min(self.frames.len());
        self.frames.copy_within(values.., 0);
        self.computed = (self.frames.len() - values) / self.width();
    }

    /// Values a frame; 1 of a waveform.
    fn width(&self) -> usize {
        match &self.extractor.stage {
            Stage::Spectrum(_, spectrum) => spectrum.width(),
            _ => 1,
        }
    }

    /// Computes the frames whose samples are in.
    fn frames_of(&mut self, levelled: bool) -> Result<(), FeatureError> {
        let (Stage::Spectrum(_, spectrum), Some(scratch)) = (&self.extractor.stage, &mut self.scratch) else {
            return Ok(());
        };
        let samples = if levelled { &self.levelled } else { &self.samples[..self.filled] };
        let (hop, length) = (spectrum.hop_samples(), spectrum.frame_samples());
        for features in self.frames.chunks_exact_mut(spectrum.width()).skip(self.computed) {
            let Some(frame) = samples.get(self.computed * hop..self.computed * hop + length) else { break };
            spectrum.frame(frame, scratch, features)?;
            self.computed += 1;
        }
        Ok(())
    }

    /// The features of the full window.
    fn finish(&mut self) -> Result<(), FeatureError> {
        let levelled = !self.levelled.is_empty();
        if levelled {
            self.levelled.copy_from_slice(&self.samples);
            match &self.extractor.stage {
                Stage::Spectrum(clip, _) => clip.level(&mut self.levelled),
                Stage::Waveform(settings) => settings.clip.level(&mut self.levelled),
                Stage::Pixels(_) | Stage::Tensor(_) => {}
            }
        }
        if self.moved.is_none() {
            self.computed = 0;
            self.frames_of(levelled)?;
        }
        match &self.extractor.stage {
            Stage::Waveform(settings) => {
                let samples = if levelled { &self.levelled } else { &self.samples };
                let scaled = samples.iter().map(|value| value * settings.scale as f32);
                self.features.iter_mut().zip(scaled).for_each(|(to, value)| *to = value);
            }
            Stage::Spectrum(_, spectrum) if self.extractor.transposed => {
                let width = spectrum.width();
                for (column, row) in self.features.chunks_exact_mut(self.frames.len() / width).enumerate() {
                    row.iter_mut().zip(self.frames.iter().skip(column).step_by(width)).for_each(|(to, v)| *to = *v);
                }
            }
            _ => self.features.copy_from_slice(&self.frames),
        }
        Ok(())
    }
}

fn other_kind(extractor: &Extractor, expected: &'static str) -> FeatureError {
    FeatureError::Kind { kind: extractor.kind, expected, found: "a stream of sound" }
}

#[cfg(test)]
mod tests {
    use super::super::{Clip, FrontEnd, Image, LogMel, LogMelBands, Mfcc, Waveform};
    use super::*;
    use crate::source::{Audio, Sample};

    fn noise(len: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(1);
        (0..len).map(|i| (rng.f32() - 0.5) * (0.1 + (i as f32 / 3000.0).sin().abs())).collect()
    }

    fn clip(normalise: Normalise, window_samples: usize) -> Clip {
        Clip { normalise, window_samples, ..Clip::default() }
    }

    /// Every window of `samples` as the whole-clip front end has it.
    fn whole(extractor: &Extractor, samples: &[f32], window: usize, hop: usize) -> Vec<Vec<u32>> {
        let features = |samples: &[f32]| {
            let audio = Audio { samples: samples.to_vec(), rate_hz: 16_000 };
            extractor.features(&Sample::Audio(audio)).unwrap().iter().map(|v| v.to_bits()).collect()
        };
        (0..)
            .map(|k| k * hop)
            .take_while(|start| start + window <= samples.len())
            .map(|s| features(&samples[s..s + window]))
            .collect()
    }

    fn streamed(stream: &mut Stream, samples: &[f32], rng: &mut fastrand::Rng, longest: usize) -> Vec<Vec<u32>> {
        let (mut at, mut windows) = (0, Vec::new());
        while at < samples.len() {
            let end = samples.len().min(at + rng.usize(0..=longest));
            let mut block = &samples[at..end];
            while let Some(features) = stream.next(&mut block).unwrap() {
                windows.push(features.iter().map(|v| v.to_bits()).collect());
            }
            assert!(block.is_empty());
            at = end;
        }
        windows
    }

    #[test]
    fn any_blocks_give_the_bits_of_the_whole_clip() {
        let window = 2000;
        let bands = LogMelBands { mels: 12, ..LogMelBands::default() };
        let mut fronts: Vec<(FrontEnd, Vec<usize>)> = Vec::new();
        for normalise in [Normalise::None, Normalise::Max, Normalise::Peak] {
            let clip = clip(normalise, window);
            let mfcc = Mfcc { clip: clip.clone(), bands: bands.clone(), ..Mfcc::default() };
            let log_mel = LogMel { clip: clip.clone(), bands: bands.clone(), scale: 4.3, offset: 1.0 };
            fronts.push((FrontEnd::Mfcc(mfcc), vec![1, 5, 10]));
            fronts.push((FrontEnd::LogMel(log_mel.clone()), vec![1, 5, 12, 1]));
            fronts.push((FrontEnd::LogMel(log_mel), vec![1, 1, 12, 5]));
            fronts.push((FrontEnd::Waveform(Waveform { clip, scale: 32768.0 }), vec![1, window]));
        }
        let samples = noise(9_001);
        let mut rng = fastrand::Rng::with_seed(2);
        for (front, shape) in fronts {
            // Whole numbers of the front end's hop of 320, others, and more than a window.
            for hop in [320, 640, 1600, 1, 100, 2000, 2240, 3201] {
                let hop = if hop == 1 && !matches!(front, FrontEnd::Waveform(_)) { 77 } else { hop };
                // A window each sample: some hundred of them are enough.
                let samples = if hop == 1 { &samples[..window + 300] } else { &samples[..] };
                let extractor = front.build(&shape).unwrap();
                let expected = whole(&extractor, samples, window, hop);
                let mut stream = Stream::new(extractor, hop).unwrap();
                for longest in [1, 37, 512, 9_001] {
                    stream.reset();
                    let found = streamed(&mut stream, samples, &mut rng, longest);
                    assert!(found == expected, "{front:?}, hop {hop}, blocks up to {longest}");
                }
            }
        }
    }

    #[test]
    fn frames_are_kept_where_they_can_be() {
        let keeps = |normalise, hop| {
            let front = FrontEnd::Mfcc(Mfcc { clip: clip(normalise, 16_000), ..Mfcc::default() });
            Stream::new(front.build(&[1, 49, 10, 1]).unwrap(), hop).unwrap().keeps_frames()
        };
        assert!(keeps(Normalise::None, 1600));
        assert!(!keeps(Normalise::None, 1000));
        assert!(!keeps(Normalise::Max, 1600));
    }

    #[test]
    fn what_cannot_stream_says_so() {
        let picture = Stream::new(FrontEnd::Image(Image::default()).build(&[1, 8, 8, 3]).unwrap(), 1);
        assert!(picture.unwrap_err().to_string().contains("a stream of sound"));
        let mfcc = FrontEnd::Mfcc(Mfcc::default()).build(&[1, 49, 10, 1]).unwrap();
        assert!(matches!(Stream::new(mfcc, 0), Err(FeatureError::StreamHop)));
    }

    #[test]
    fn a_window_that_is_not_finite_is_passed_over() {
        let front = FrontEnd::Waveform(Waveform { clip: clip(Normalise::None, 4), scale: 1.0 });
        let mut stream = Stream::new(front.build(&[1, 4]).unwrap(), 4).unwrap();
        let mut block: &[f32] = &[1.0, f32::NAN, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0];
        assert!(matches!(stream.next(&mut block), Err(FeatureError::NotFinite { index: 1, .. })));
        assert_eq!(stream.next(&mut block).unwrap(), Some(&[2.0; 4][..]));
        assert_eq!(stream.next(&mut block).unwrap(), None);
    }
}
