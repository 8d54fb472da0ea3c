//! Samples in: clips, pictures and tensors from files, and labelled sets of them.
//!
//! A file's kind follows from its extension. What comes out is plain numbers with nothing of the file left: mono samples in
//! -1..1 at the file's own rate ([`Audio`]), RGB bytes ([`Picture`]) or values and a shape ([`Tensor`]). A file that lies about itself, is
//! cut short or holds numbers that are not finite is an error that names it.

#[cfg(feature = "audio-files")]
mod clip;
mod dataset;
mod live;
#[cfg(feature = "mic")]
pub mod microphone;
#[cfg(feature = "images")]
mod picture;
pub mod quality;
mod resample;
mod tensor;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use ndarray::{ArrayView, Dimension};

#[cfg(feature = "audio-files")]
pub use clip::wav_bytes;
pub use dataset::{Dataset, Example, dataset};
pub use live::{ClipSound, Heard, PcmSound, Sound};
pub use resample::{Resampler, resample};
pub(crate) use resample::{dot, resample_by};

/// The sampling rates that are believed, in Hz; outside them a header is taken for damaged.
pub const RATES_HZ: std::ops::RangeInclusive<u32> = 1_000..=768_000;

/// The most values one clip or tensor may hold, and the most samples a resampled clip may have: 64 Mi.
pub const MAX_VALUES: usize = 1 << 26;

/// One thing to learn from or to predict on.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// A sound clip.
    Audio(Audio),
    /// A picture.
    Picture(Picture),
    /// Numbers that are the model's input already.
    Tensor(Tensor),
}

impl Sample {
    /// What the sample is, in words, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Audio(_) => "a sound clip",
            Self::Picture(_) => "a picture",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// A mono clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    /// `[samples]`, -1..1 (files of floats may go beyond).
    pub samples: Vec<f32>,
    /// Samples a second.
    pub rate_hz: u32,
}

/// A picture of RGB bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// `[height, width, 3]`, red first.
    pub pixels: Vec<u8>,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// An array of numbers in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The length of each dimension; empty for a single number.
    pub shape: Vec<usize>,
    /// The values, the last dimension fastest.
    pub values: Vec<f32>,
}

impl<D: Dimension> From<ArrayView<'_, f32, D>> for Tensor {
    fn from(array: ArrayView<f32, D>) -> Self {
        Self { shape: array.shape().into(), values: array.iter().copied().collect() }
    }
}

/// Why samples could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds not one byte.
    #[error("{}: the file is empty; record or copy it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The extension is none that is read.
    #[error("{}: expected a file that ends in .wav, .flac, .png, .jpg, .jpeg or .npy, found {found}; convert it to one of these", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
        /// Its extension or what stands in its place.
        found: String,
    },
    /// This build leaves out the reader of such files.
    #[error("{}: this build reads no {what}; build with `--features {feature}`", path.display())]
    FeatureOff {
        /// The file.
        path: PathBuf,
        /// What kind of file it is.
        what: &'static str,
        /// The cargo feature that reads it.
        feature: &'static str,
    },
    /// The file's content is not what its extension says, is damaged or is cut short.
    #[error("{}: not a readable {format} file: {problem}; {cure}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// WAV, FLAC, image or npy.
        format: &'static str,
        /// What was expected and what was found.
        problem: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// A value is not a number or is infinite.
    #[error("{}: expected finite numbers, found {found} at value {index}; make the file again without it", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The value that was found.
        found: f32,
        /// Its position, counted from 0.
        index: usize,
    },
    /// More values than are taken in at once.
    #[error("{}: holds more than the {limit} values that are taken in at once; cut it into shorter files", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// [`MAX_VALUES`].
        limit: usize,
    },
    /// A stream of samples that the system stopped giving.
    #[error("cannot read samples: {source}")]
    Stream {
        /// What the system said.
        source: io::Error,
    },
    /// A rate that is not believed.
    #[error("expected a sampling rate of {} to {} Hz, found {rate_hz} Hz; give the clip's true rate", RATES_HZ.start(), RATES_HZ.end())]
    Rate {
        /// The rate.
        rate_hz: u32,
    },
    /// A device that gives no sound.
    #[error("{device}: {problem}; {cure}")]
    Device {
        /// Its name.
        device: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// A number of channels that is not believed.
    #[error("expected 1 to 64 channels, found {channels}; give the stream's true number")]
    Channels {
        /// The number.
        channels: u16,
    },
    /// A resampled clip would be too long.
    #[error(
        "{samples} samples at {from_hz} Hz are more than {MAX_VALUES} at {to_hz} Hz; cut the clip into shorter ones"
    )]
    TooLong {
        /// The samples before.
        samples: usize,
        /// The rate before.
        from_hz: u32,
        /// The rate asked for.
        to_hz: u32,
    },
    /// A labelled set whose folder or table is not laid out as expected.
    #[error("{}: {problem}; {cure}", path.display())]
    Dataset {
        /// The folder or the CSV file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
        /// What to do about it.
        cure: &'static str,
    },
}

/// Reads one file: `.wav`, `.flac`, `.png`, `.jpg`, `.jpeg` or `.npy`, in any case.
///
/// WAV: integers of 8, 16, 24 and 32 bits and floats of 32; FLAC: all; channels are averaged, the rate is kept. PNG and JPEG: any colour
/// type, made RGB of 8 bits (transparency is dropped). npy: f32, f64 and integers of 8 to 64 bits but u64, in either byte and memory order.
///
/// # Errors
/// Every way in which the file is missing, damaged, too large or holds a number that is not finite.
pub fn read(path: &Path) -> Result<Sample, SourceError> {
    let format = Format::of(path).ok_or_else(|| SourceError::Extension {
        path: path.to_path_buf(),
        found: match path.extension() {
            Some(extension) => format!(".{}", extension.to_string_lossy()),
            None => "no extension".to_string(),
        },
    })?;
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let about = std::fs::metadata(path).map_err(|source| io_error(path, source))?;
    if !about.is_file() {
        return Err(SourceError::Io {
            path: path.to_path_buf(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "expected a file, found something else"),
        });
    }
    if about.len() == 0 {
        return Err(SourceError::Empty { path: path.to_path_buf() });
    }
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    decode(format, path, BufReader::new(file), about.len())
}

fn decode(format: Format, path: &Path, file: BufReader<File>, file_bytes: u64) -> Result<Sample, SourceError> {
    match format {
        #[cfg(feature = "audio-files")]
        Format::Wav => clip::read_wav(path, file, file_bytes).map(Sample::Audio),
        #[cfg(feature = "audio-files")]
        Format::Flac => clip::read_flac(path, file).map(Sample::Audio),
        #[cfg(not(feature = "audio-files"))]
        Format::Wav | Format::Flac => {
            Err(SourceError::FeatureOff { path: path.to_path_buf(), what: "sound files", feature: "audio-files" })
        }
        #[cfg(feature = "images")]
        Format::Image => picture::read_image(path, file).map(Sample::Picture),
        #[cfg(not(feature = "images"))]
        Format::Image => Err(SourceError::FeatureOff { path: path.to_path_buf(), what: "pictures", feature: "images" }),
        Format::Npy => tensor::read_npy(path, file, file_bytes).map(Sample::Tensor),
    }
}

/// What a file is, by its extension.
#[derive(Clone, Copy)]
enum Format {
    Wav,
    Flac,
    Image,
    Npy,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        Some(match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "wav" => Self::Wav,
            "flac" => Self::Flac,
            "png" | "jpg" | "jpeg" => Self::Image,
            "npy" => Self::Npy,
            _ => return None,
        })
    }
}

fn io_error(path: &Path, source: io::Error) -> SourceError {
    SourceError::Io { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn unknown_extension_names_the_known_ones() {
        for (name, found) in [("a.mp3", ".mp3"), ("a", "no extension")] {
            let error = read(Path::new(name)).unwrap_err().to_string();
            assert!(error.contains(found) && error.contains(".flac") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn empty_missing_and_folder_are_errors() {
        let folder = folder();
        let path = folder.path().join("a.WAV");
        assert!(matches!(read(&path).unwrap_err(), SourceError::Io { .. }));
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(read(&path).unwrap_err(), SourceError::Empty { .. }));
        let path = folder.path().join("b.npy");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(read(&path).unwrap_err(), SourceError::Io { .. }));
    }

    #[cfg(not(feature = "audio-files"))]
    #[test]
    fn sound_files_say_the_feature_is_off() {
        let folder = folder();
        let path = folder.path().join("a.flac");
        std::fs::write(&path, b"fLaC").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("--features audio-files"));
    }

    #[cfg(not(feature = "images"))]
    #[test]
    fn pictures_say_the_feature_is_off() {
        let folder = folder();
        let path = folder.path().join("a.jpeg");
        std::fs::write(&path, b"x").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("--features images"));
    }
}
