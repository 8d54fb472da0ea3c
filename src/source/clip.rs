//! WAV and FLAC files, mixed to mono.

use std::io::{ErrorKind, Read};
use std::path::Path;

use super::{Audio, MAX_VALUES, RATES_HZ, SourceError};

const CURE: &str = "convert it to 16-bit PCM WAV, for example with `ffmpeg -i IN -c:a pcm_s16le OUT.wav`";

/// Reads a WAV file: integers of 8 (unsigned), 16, 24 and 32 bits, or floats of 32.
pub(super) fn read_wav(path: &Path, file: impl Read, file_bytes: u64) -> Result<Audio, SourceError> {
    let malformed =
        |problem: String| SourceError::Malformed { path: path.to_path_buf(), format: "WAV", problem, cure: CURE };
    let mut reader = hound::WavReader::new(file).map_err(|error| malformed(wav_problem(&error)))?;
    let spec = reader.spec();
    let promised = reader.len() as u64;
    check_rate(spec.sample_rate).map_err(&malformed)?;
    if promised.saturating_mul(u64::from(spec.bits_per_sample / 8)) > file_bytes {
        return Err(malformed(format!(
            "the header promises {promised} samples of {} bits, the file has {file_bytes} bytes",
            spec.bits_per_sample
        )));
    }
    let mut mono = Mono::new(path, spec.channels.into(), promised)?;
    let mut taken = 0u64;
    let cut_short = |error: hound::Error, taken: u64| match &error {
        hound::Error::IoError(_) => {
            malformed(format!("the header promises {promised} samples, the file ends after {taken}"))
        }
        _ => malformed(wav_problem(&error)),
    };
    match spec.sample_format {
        hound::SampleFormat::Float => {
            for value in reader.samples::<f32>() {
                mono.push(value.map_err(|error| cut_short(error, taken))?)?;
                taken += 1;
            }
        }
        hound::SampleFormat::Int => {
            let scale = full_scale(spec.bits_per_sample.into()).map_err(&malformed)?;
            for value in reader.samples::<i32>() {
                mono.push((f64::from(value.map_err(|error| cut_short(error, taken))?) * scale) as f32)?;
                taken += 1;
            }
        }
    }
    mono.finish(spec.sample_rate).map_err(malformed)
}

/// Reads a FLAC file of any depth.
pub(super) fn read_flac(path: &Path, file: impl Read) -> Result<Audio, SourceError> {
    let malformed =
        |problem: String| SourceError::Malformed { path: path.to_path_buf(), format: "FLAC", problem, cure: CURE };
    // Tags may claim any length and are not needed.
    let options = claxon::FlacReaderOptions { metadata_only: false, read_vorbis_comment: false };
    let mut reader = claxon::FlacReader::new_ext(file, options).map_err(|error| malformed(error.to_string()))?;
    let info = reader.streaminfo();
    check_rate(info.sample_rate).map_err(&malformed)?;
    let scale = full_scale(info.bits_per_sample).map_err(&malformed)?;
    let channels = info.channels as usize;
    let mut mono = Mono::new(path, channels, 0)?;
    let mut frames = 0u64;
    let mut blocks = reader.blocks();
    let mut buffer = Vec::new();
    loop {
        let block = match blocks.read_next_or_eof(std::mem::take(&mut buffer)) {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(claxon::Error::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(malformed(format!("the file ends inside a block after {frames} samples a channel")));
            }
            Err(error) => {
                return Err(malformed(format!("{error} after {frames} samples a channel")));
            }
        };
        if block.channels() as usize != channels {
            return Err(malformed(format!("the header says {channels} channels, a block has {}", block.channels())));
        }
        for at in 0..block.duration() {
            for channel in 0..block.channels() {
                mono.push((f64::from(block.sample(channel, at)) * scale) as f32)?;
            }
        }
        frames += u64::from(block.duration());
        buffer = block.into_buffer();
    }
    match info.samples {
        Some(promised) if promised != frames => {
            Err(malformed(format!("the header promises {promised} samples a channel, the file has {frames}")))
        }
        _ => mono.finish(info.sample_rate).map_err(malformed),
    }
}

/// 2^(1-bits), which brings integers of that many bits to -1..1.
fn full_scale(bits: u32) -> Result<f64, String> {
    if (1..=32).contains(&bits) {
        Ok(1.0 / (1u64 << (bits - 1)) as f64)
    } else {
        Err(format!("expected 1 to 32 bits a sample, found {bits}"))
    }
}

fn check_rate(rate_hz: u32) -> Result<(), String> {
    if RATES_HZ.contains(&rate_hz) {
        Ok(())
    } else {
        Err(format!("expected a rate of {} to {} Hz, found {rate_hz} Hz", RATES_HZ.start(), RATES_HZ.end()))
    }
}

fn wav_problem(error: &hound::Error) -> String {
    match error {
        hound::Error::IoError(_) => "the file ends inside its header".to_string(),
        hound::Error::Unsupported => {
            "expected PCM of 8, 16, 24 or 32 bits or floats of 32, found another coding".to_string()
        }
        hound::Error::TooWide => "expected at most 32 bits a sample, found more".to_string(),
        other => other.to_string(),
    }
}

/// A WAV file of 16 bits; what is beyond -1 to 1 is cut off.
///
/// # Errors
/// A clip of more than 2 GiB.
pub fn wav_bytes(audio: &Audio) -> std::io::Result<Vec<u8>> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: audio.rate_hz,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut file = std::io::Cursor::new(Vec::new());
    let write = |file: &mut std::io::Cursor<Vec<u8>>| {
        let mut writer = hound::WavWriter::new(file, spec)?;
        for sample in &audio.samples {
            writer.write_sample((sample * 32768.0).round().clamp(-32768.0, 32767.0) as i16)?;
        }
        writer.finalize()
    };
    write(&mut file).map_err(std::io::Error::other)?;
    Ok(file.into_inner())
}

/// Averages interleaved channels as they come.
struct Mono<'a> {
    path: &'a Path,
    samples: Vec<f32>,
    channels: usize,
    sum: f32,
    in_frame: usize,
}

impl<'a> Mono<'a> {
    fn new(path: &'a Path, channels: usize, promised_values: u64) -> Result<Self, SourceError> {
        let channels = channels.max(1);
        let promised = promised_values / channels as u64;
        match usize::try_from(promised) {
            Ok(capacity) if capacity <= MAX_VALUES => {
                Ok(Self { path, samples: Vec::with_capacity(capacity), channels, sum: 0.0, in_frame: 0 })
            }
            _ => Err(SourceError::TooLarge { path: path.to_path_buf(), limit: MAX_VALUES }),
        }
    }

    fn push(&mut self, value: f32) -> Result<(), SourceError> {
        if !value.is_finite() {
            let index = self.samples.len() * self.channels + self.in_frame;
            return Err(SourceError::NotFinite { path: self.path.to_path_buf(), found: value, index });
        }
        // Divided first: the mean of finite values is then finite.
        self.sum += value / self.channels as f32;
        self.in_frame += 1;
        if self.in_frame == self.channels {
            if self.samples.len() == MAX_VALUES {
                return Err(SourceError::TooLarge { path: self.path.to_path_buf(), limit: MAX_VALUES });
            }
            self.samples.push(self.sum);
            (self.sum, self.in_frame) = (0.0, 0);
        }
        Ok(())
    }

    fn finish(self, rate_hz: u32) -> Result<Audio, String> {
        if self.samples.is_empty() {
            Err("it holds no samples".to_string())
        } else {
            Ok(Audio { samples: self.samples, rate_hz })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Sample, read};
    use hound::{SampleFormat, WavSpec, WavWriter};
    use std::path::PathBuf;

    fn decoded(path: &Path) -> Result<Audio, SourceError> {
        match read(path)? {
            Sample::Audio(audio) => Ok(audio),
            other => panic!("{other:?}"),
        }
    }

    fn spec(channels: u16, bits_per_sample: u16, sample_format: SampleFormat) -> WavSpec {
        WavSpec { channels, sample_rate: 22_050, bits_per_sample, sample_format }
    }

    fn int_wav(folder: &tempfile::TempDir, channels: u16, bits: u16, values: &[i32]) -> PathBuf {
        let path = folder.path().join("clip.wav");
        let mut writer = WavWriter::create(&path, spec(channels, bits, SampleFormat::Int)).unwrap();
        values.iter().for_each(|&value| writer.write_sample(value).unwrap());
        writer.finalize().unwrap();
        path
    }

    fn float_wav(folder: &tempfile::TempDir, values: &[f32]) -> PathBuf {
        let path = folder.path().join("clip.wav");
        let mut writer = WavWriter::create(&path, spec(1, 32, SampleFormat::Float)).unwrap();
        values.iter().for_each(|&value| writer.write_sample(value).unwrap());
        writer.finalize().unwrap();
        path
    }

    #[test]
    fn every_depth_is_full_scale() {
        let folder = tempfile::tempdir().unwrap();
        for bits in [8u16, 16, 24, 32] {
            let half = 1i32 << (bits - 2);
            let path = int_wav(&folder, 1, bits, &[half, -half, i32::MIN >> (32 - bits), 0]);
            let audio = decoded(&path).unwrap();
            assert_eq!(
                (audio.samples.as_slice(), audio.rate_hz),
                ([0.5, -0.5, -1.0, 0.0].as_slice(), 22_050),
                "{bits} bits"
            );
        }
        let path = float_wav(&folder, &[0.25, -1.5]);
        assert_eq!(decoded(&path).unwrap().samples, [0.25, -1.5]);
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.wav");
        let clip = Audio { samples: vec![0.0, 0.5, -1.0, 2.0, -3.0], rate_hz: 16_000 };
        std::fs::write(&path, wav_bytes(&clip).unwrap()).unwrap();
        let read = decoded(&path).unwrap();
        assert_eq!((read.samples, read.rate_hz), (vec![0.0, 0.5, -1.0, 32767.0 / 32768.0, -1.0], 16_000));
    }

    #[test]
    fn channels_are_averaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = int_wav(&folder, 2, 16, &[16384, 0, -16384, -16384]);
        assert_eq!(decoded(&path).unwrap().samples, [0.25, -0.5]);
        let path = int_wav(&folder, 6, 16, &[16384; 12]);
        assert!(decoded(&path).unwrap().samples.iter().all(|value| (value - 0.5).abs() < 1e-6));
    }

    #[test]
    fn not_finite_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            let error = decoded(&float_wav(&folder, &[0.0, bad])).unwrap_err();
            assert!(matches!(error, SourceError::NotFinite { index: 1, .. }));
            assert!(error.to_string().contains("clip.wav"));
        }
    }

    /// The header of a canonical WAV file: channels at 22, rate at 24, bytes a second at 28, block at 32, bits at 34, data size at 40.
    fn canonical(channels: u16, rate: u32, bits: u16, data_bytes: u32, data: &[u8]) -> Vec<u8> {
        let block = channels.wrapping_mul(bits / 8);
        let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0".to_vec();
        bytes.extend(channels.to_le_bytes());
        bytes.extend(rate.to_le_bytes());
        bytes.extend(rate.wrapping_mul(block.into()).to_le_bytes());
        bytes.extend(block.to_le_bytes());
        bytes.extend(bits.to_le_bytes());
        bytes.extend(b"data");
        bytes.extend(data_bytes.to_le_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn lying_headers_are_errors_without_their_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.wav");
        let good = canonical(1, 16_000, 16, 4, &[0; 4]);
        std::fs::write(&path, &good).unwrap();
        assert_eq!(decoded(&path).unwrap().samples, [0.0, 0.0]);
        for (bytes, why) in [
            (canonical(1, 16_000, 16, 0xffff_fffe, &[0; 4]), "promises"),
            (canonical(1, 16_000, 16, 6, &[0; 4]), "ends after 2"),
            (canonical(0, 16_000, 16, 4, &[0; 4]), "zero channels"),
            (canonical(1, 0, 16, 4, &[0; 4]), "found 0 Hz"),
            (canonical(1, 1_000_000, 16, 4, &[0; 4]), "found 1000000 Hz"),
            (canonical(1, 16_000, 16, 0, &[]), "no samples"),
            (canonical(1, 16_000, 64, 8, &[0; 8]), "bits"),
            (canonical(1, 16_000, 16, 3, &[0; 3]), "multiple"),
            (canonical(2, 16_000, 16, 2, &[0; 2]), "data chunk"),
            (good[..20].to_vec(), "inside its header"),
            (good[..40].to_vec(), "inside its header"),
            (b"not a wav file".to_vec(), "RIFF"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = decoded(&path).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("clip.wav") && error.contains("ffmpeg"),
                "{error} does not say {why}"
            );
        }
    }

    /// A FLAC stream of verbatim blocks, so that the tests need no encoder: 16 bits, 1000 to 65535 Hz.
    mod flac {
        fn crc(bytes: &[u8], bits: u32, polynomial: u32) -> u32 {
            bytes.iter().fold(0, |sum, &byte| {
                (0..8).fold(sum ^ (u32::from(byte) << (bits - 8)), |sum, _| {
                    let shifted = sum << 1;
                    let reduced = if sum >> (bits - 1) & 1 == 1 { shifted ^ polynomial } else { shifted };
                    reduced & ((1u64 << bits) - 1) as u32
                })
            })
        }

        pub(super) fn stream(channels: u8, rate: u32, promised: u64, blocks: &[Vec<i16>]) -> Vec<u8> {
            let mut bytes = b"fLaC\x80\0\0\x22".to_vec();
            bytes.extend(16u16.to_be_bytes());
            bytes.extend(4096u16.to_be_bytes());
            bytes.extend([0; 6]);
            let packed = u64::from(rate) << 44 | u64::from(channels - 1) << 41 | 15 << 36 | promised;
            bytes.extend(packed.to_be_bytes());
            bytes.extend([0; 16]);
            for (number, block) in blocks.iter().enumerate() {
                let samples = block.len() / usize::from(channels);
                let mut frame = vec![0xff, 0xf8, 0x70, (channels - 1) << 4 | 0b1000, number as u8];
                frame.extend((samples as u16 - 1).to_be_bytes());
                frame.push(crc(&frame, 8, 0x07) as u8);
                for channel in 0..usize::from(channels) {
                    frame.push(0b10);
                    frame.extend(
                        block.iter().skip(channel).step_by(channels.into()).flat_map(|value| value.to_be_bytes()),
                    );
                }
                frame.extend((crc(&frame, 16, 0x8005) as u16).to_be_bytes());
                bytes.extend(frame);
            }
            bytes
        }
    }

    #[test]
    fn flac_is_decoded_and_mixed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.flac");
        let blocks = [(0..32).map(|n| n * 512).collect(), vec![-16384i16; 32]];
        std::fs::write(&path, flac::stream(1, 16_000, 64, &blocks)).unwrap();
        let audio = decoded(&path).unwrap();
        assert_eq!((audio.rate_hz, audio.samples.len()), (16_000, 64));
        assert_eq!((audio.samples[16], audio.samples[40]), (0.25, -0.5));
        let blocks = [[16384i16, 0].repeat(16)];
        std::fs::write(&path, flac::stream(2, 44_100, 16, &blocks)).unwrap();
        assert_eq!(decoded(&path).unwrap(), Audio { samples: vec![0.25; 16], rate_hz: 44_100 });
    }

    #[test]
    fn damaged_flac_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.flac");
        let good = flac::stream(1, 16_000, 32, &[vec![100i16; 32]]);
        let mut flipped = good.clone();
        flipped[70] ^= 1;
        for (bytes, why) in [
            (good[..good.len() - 9].to_vec(), "ends inside"),
            (flipped, "CRC"),
            (flac::stream(1, 16_000, 99, &[vec![100i16; 32]]), "promises 99"),
            (flac::stream(1, 0, 32, &[vec![100i16; 32]]), ""),
            (flac::stream(1, 16_000, 0, &[]), "no samples"),
            (b"fLaC".to_vec(), ""),
            (b"OggS but no FLAC".to_vec(), ""),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = decoded(&path).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("clip.flac") && error.contains("ffmpeg"),
                "{error} does not say {why}"
            );
        }
    }

    #[test]
    fn no_damage_panics() {
        let folder = tempfile::tempdir().unwrap();
        let wav = std::fs::read(int_wav(&folder, 2, 16, &[1000; 64])).unwrap();
        let flac = flac::stream(2, 16_000, 32, &[vec![100i16; 64]]);
        let mut rng = fastrand::Rng::with_seed(1);
        for (name, whole) in [("a.wav", wav), ("a.flac", flac)] {
            for _ in 0..300 {
                let mut bytes = whole.clone();
                for _ in 0..rng.usize(1..4) {
                    let at = rng.usize(..bytes.len());
                    bytes[at] = rng.u8(..);
                }
                bytes.truncate(rng.usize(1..=bytes.len()));
                let path = folder.path().join(name);
                std::fs::write(&path, bytes).unwrap();
                let _ = decoded(&path);
            }
        }
    }
}
