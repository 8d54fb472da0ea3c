//! Sound as it comes: blocks of mono samples, with every gap in them named.

use std::io::{ErrorKind, Read};

use super::{Audio, RATES_HZ, SourceError};

/// What a read of live sound gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// So many samples stand at the front of the block, and they follow those before them.
    Samples(usize),
    /// Sound was lost here: what comes next does not follow what came before.
    Gap {
        /// How many samples, as far as that is known; 0 where it is not.
        lost_samples: u64,
    },
    /// Nothing came in time.
    Nothing,
    /// There is no more.
    End,
}

/// A stream of mono samples.
pub trait Sound {
    /// Samples a second.
    fn rate_hz(&self) -> u32;

    /// Writes samples to the front of `block`, waiting a little while where none are there yet.
    ///
    /// # Errors
    /// A stream that failed.
    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError>;
}

/// A clip from a file, as fast as it is taken.
#[derive(Debug)]
pub struct ClipSound {
    clip: Audio,
    at: usize,
}

impl ClipSound {
    /// The whole clip.
    pub fn new(clip: Audio) -> Self {
        Self { clip, at: 0 }
    }
}

impl Sound for ClipSound {
    fn rate_hz(&self) -> u32 {
        self.clip.rate_hz
    }

    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError> {
        let count = block.len().min(self.clip.samples.len() - self.at);
        if count == 0 {
            return Ok(Heard::End);
        }
        block[..count].copy_from_slice(&self.clip.samples[self.at..self.at + count]);
        self.at += count;
        Ok(Heard::Samples(count))
    }
}

/// Bytes that a read of raw samples asks for at most.
const PCM_BYTES: usize = 4096;

/// Raw samples of 16 bits, little-endian, from a pipe or a socket; channels are averaged.
#[derive(Debug)]
pub struct PcmSound<R> {
    from: R,
    rate_hz: u32,
    channels: usize,
    bytes: Box<[u8]>,
    /// Bytes of a frame that is not whole yet.
    left: usize,
}

impl<R: Read> PcmSound<R> {
    /// Interleaved frames of `channels` samples.
    ///
    /// # Errors
    /// A rate outside [`RATES_HZ`]; no channels, or more than 64.
    pub fn new(from: R, rate_hz: u32, channels: u16) -> Result<Self, SourceError> {
        if !RATES_HZ.contains(&rate_hz) {
            return Err(SourceError::Rate { rate_hz });
        }
        if !(1..=64).contains(&channels) {
            return Err(SourceError::Channels { channels });
        }
        Ok(Self { from, rate_hz, channels: channels.into(), bytes: vec![0; PCM_BYTES].into(), left: 0 })
    }
}

impl<R: Read> Sound for PcmSound<R> {
    fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    fn read(&mut self, block: &mut [f32]) -> Result<Heard, SourceError> {
        let frame = 2 * self.channels;
        let most = self.bytes.len().min(block.len() * frame);
        let count = match self.from.read(&mut self.bytes[self.left..most.max(self.left)]) {
            Ok(0) => return Ok(Heard::End),
            Ok(count) => self.left + count,
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                return Ok(Heard::Nothing);
            }
            Err(source) => return Err(SourceError::Stream { source }),
        };
        let scale = 1.0 / (32768.0 * self.channels as f32);
        for (value, frame) in block.iter_mut().zip(self.bytes[..count].chunks_exact(frame)) {
            let sum: i32 = frame.chunks_exact(2).map(|two| i32::from(i16::from_le_bytes([two[0], two[1]]))).sum();
            *value = sum as f32 * scale;
        }
        let whole = count / frame;
        self.bytes.copy_within(whole * frame..count, 0);
        self.left = count - whole * frame;
        Ok(if whole == 0 { Heard::Nothing } else { Heard::Samples(whole) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of the sizes named, and says in between that it was interrupted.
    struct Pieces(Vec<u8>, Vec<usize>, bool);

    impl Read for Pieces {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(ErrorKind::Interrupted.into());
            }
            let size = self.1.pop().unwrap_or(usize::MAX).min(to.len()).min(self.0.len());
            let rest = self.0.split_off(size);
            to[..size].copy_from_slice(&std::mem::replace(&mut self.0, rest));
            Ok(size)
        }
    }

    fn all(sound: &mut impl Sound, block: usize) -> Vec<f32> {
        let (mut block, mut found) = (vec![0.0; block], Vec::new());
        loop {
            match sound.read(&mut block).unwrap() {
                Heard::Samples(count) => found.extend_from_slice(&block[..count]),
                Heard::End => return found,
                Heard::Nothing => {}
                gap => panic!("{gap:?}"),
            }
        }
    }

    #[test]
    fn raw_samples_come_in_pieces_of_any_size() {
        let values: Vec<i16> = (0..3001).map(|n| (n * 997 % 65536 - 32768) as i16).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut rng = fastrand::Rng::with_seed(1);
        for block in [1, 7, 5000] {
            let sizes = (0..4000).map(|_| rng.usize(1..=9)).collect();
            let mut sound = PcmSound::new(Pieces(bytes.clone(), sizes, false), 16_000, 1).unwrap();
            let expected: Vec<f32> = values.iter().map(|&v| f32::from(v) / 32768.0).collect();
            assert_eq!(all(&mut sound, block), expected);
            let mut stereo = PcmSound::new(bytes.as_slice(), 48_000, 2).unwrap();
            let expected: Vec<f32> =
                values.chunks_exact(2).map(|v| (i32::from(v[0]) + i32::from(v[1])) as f32 / 65536.0).collect();
            assert_eq!(all(&mut stereo, block), expected);
        }
        assert!(matches!(PcmSound::new(&[][..], 0, 1), Err(SourceError::Rate { .. })));
        assert!(matches!(PcmSound::new(&[][..], 16_000, 0), Err(SourceError::Channels { .. })));
    }

    #[test]
    fn a_clip_comes_whole() {
        let clip = Audio { samples: (0..100).map(|n| n as f32).collect(), rate_hz: 8000 };
        let mut sound = ClipSound::new(clip.clone());
        assert_eq!((sound.rate_hz(), all(&mut sound, 33)), (8000, clip.samples));
    }
}
