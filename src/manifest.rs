//! A model's manifest, `model.toml`: which ONNX file, which of its tensors, what its scores are called and how its input is made.
//!
//! A model is one ONNX file, or several as `[[stage]]`, each fed what the one before it gives (see [`Stage`]).
//!
//! Every path is relative to the manifest's folder. A manifest that leaves `labels` empty calls the classes "0", "1", …

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::features::{FeatureError, FrontEnd};

/// The manifest's name in a model's folder.
pub const FILE_NAME: &str = "model.toml";
/// A manifest is some lines of text; a larger file is something else.
const MAX_BYTES: u64 = 4 << 20;

/// What `model.toml` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The licence of the weights, as an SPDX expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Where the ONNX file is to be had, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<String>,
    /// The ONNX file; empty where there are stages.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub onnx: PathBuf,
    /// The ONNX file's SHA-256 in hexadecimal; not checked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The input's name; the model's first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The input's shape for one sample, batch 1 first; fixes dimensions that the model leaves free. With stages: what the
    /// front end gives, where that is not just what the first stage takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_shape: Option<Vec<usize>>,
    /// The output with the scores; the model's first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The classes' names in the order of the scores; empty: "0", "1", …
    #[serde(default)]
    pub labels: Vec<String>,
    /// Labelled data that an update must not get worse on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<PathBuf>,
    /// Labelled data that is mixed into training, so that nothing is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<PathBuf>,
    /// How the input is made of samples; guessed from the input's shape when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_end: Option<FrontEnd>,
    /// ONNX files one behind the other, in place of `onnx`.
    #[serde(default, rename = "stage", skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

/// One ONNX file of a chain: it is fed what the stage before it gives, the first what the front end gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// The ONNX file.
    pub onnx: PathBuf,
    /// Its SHA-256 in hexadecimal; not checked when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The input's name; the file's first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The input's shape for one window, batch 1 first; free dimensions are what it is fed when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_shape: Option<Vec<usize>>,
    /// The output that goes on; the file's first when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// What it is fed is multiplied by this,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub scale: f64,
    /// then this is added.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: f64,
    /// It runs once for each window of this many frames; the outputs are stacked for the next stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Frames from one window to the next; as many as a window has when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<usize>,
    /// Whether no adapter may sit in it: a front end that computes a spectrum, say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            onnx: PathBuf::new(),
            sha256: None,
            input: None,
            input_shape: None,
            output: None,
            scale: 1.0,
            offset: 0.0,
            window: None,
            hop: None,
            frozen: false,
        }
    }
}

fn one() -> f64 {
    1.0
}

// serde asks for references.
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no manifest in TOML.
    #[error("{}: {source}correct it, or write a new one with `accentor init MODEL.onnx`", path.display())]
    Toml {
        /// The manifest.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A field's value is of no use.
    #[error("{}: `{field}`: {problem}", path.display())]
    Field {
        /// The manifest.
        path: PathBuf,
        /// The field.
        field: String,
        /// What was expected, what was found and the cure.
        problem: String,
    },
    /// A setting of the front end is of no use.
    #[error("{}: [front_end] {source}", path.display())]
    FrontEnd {
        /// The manifest.
        path: PathBuf,
        /// Which setting and why.
        source: FeatureError,
    },
    /// The ONNX file is not there.
    #[error("{}: there is no such file; {cure}", onnx.display())]
    Missing {
        /// The ONNX file.
        onnx: PathBuf,
        /// Where it is to be had.
        cure: String,
    },
    /// The ONNX file is another than the manifest describes.
    #[error("{}: expected SHA-256 {expected}, found {found}; fetch the file again, or correct `sha256` if you changed it", onnx.display())]
    Sha256 {
        /// The ONNX file.
        onnx: PathBuf,
        /// What the manifest says.
        expected: String,
        /// What it has.
        found: String,
    },
}

impl Manifest {
    /// Reads a manifest, or the [`FILE_NAME`] in a folder, checks it and makes its paths relative to where the program runs.
    ///
    /// The ONNX file is not looked at: see [`check_sha256`](Self::check_sha256).
    ///
    /// # Errors
    /// A file that cannot be read, is no TOML, has an unknown key or a value of no use.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let path = if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() };
        let io_error = |source| ManifestError::Io { path: path.clone(), source };
        let mut text = String::new();
        File::open(&path).map_err(io_error)?.take(MAX_BYTES).read_to_string(&mut text).map_err(io_error)?;
        let parsed = toml::from_str::<Self>(&text);
        let mut manifest =
            parsed.map_err(|source| ManifestError::Toml { path: path.clone(), source: Box::new(source) })?;
        manifest.check().map_err(|problem| match problem {
            Problem::Field(field, problem) => ManifestError::Field { path: path.clone(), field, problem },
            Problem::FrontEnd(source) => ManifestError::FrontEnd { path: path.clone(), source },
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let onnx = Some(&mut manifest.onnx).filter(|onnx| !onnx.as_os_str().is_empty());
        let named = [onnx, manifest.guard.as_mut(), manifest.replay.as_mut()].into_iter().flatten();
        for relative in named.chain(manifest.stages.iter_mut().map(|stage| &mut stage.onnx)) {
            *relative = folder.join(&*relative);
        }
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Problem> {
        let field = |name: &str, problem: String| Err(Problem::Field(name.to_owned(), problem));
        if self.stages.is_empty() {
            if self.onnx.as_os_str().is_empty() {
                return field("onnx", "missing field `onnx`; name the ONNX file, or several as [[stage]]".to_string());
            }
        } else {
            let given = [
                ("onnx", !self.onnx.as_os_str().is_empty()),
                ("sha256", self.sha256.is_some()),
                ("input", self.input.is_some()),
                ("output", self.output.is_some()),
            ];
            if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
                let (has, cure) = ("the manifest has [[stage]]", "say it in the stage that it is meant for");
                return field(name, format!("{has}; {cure}"));
            }
        }
        check_file("", self.sha256.as_deref(), self.input_shape.as_deref())?;
        for (index, stage) in self.stages.iter().enumerate() {
            stage.check(&format!("stage {}: ", index + 1))?;
        }
        let mut seen = BTreeSet::new();
        for (index, label) in self.labels.iter().enumerate() {
            if label.trim().is_empty() {
                return field("labels", format!("label {index} is empty; give every class a name, or none to any"));
            }
            if !seen.insert(label) {
                return field("labels", format!("label {index} repeats {label:?}; give every class its own name"));
            }
        }
        self.front_end.as_ref().map_or(Ok(()), |front_end| front_end.check().map_err(Problem::FrontEnd))
    }

    /// The names of that many classes: the manifest's labels, or "0", "1", … where it has none.
    ///
    /// `None` where it has another number of labels.
    pub fn class_names(&self, classes: usize) -> Option<Vec<String>> {
        match self.labels.len() {
            0 => Some((0..classes).map(|class| class.to_string()).collect()),
            given => (given == classes).then(|| self.labels.clone()),
        }
    }

    /// Every ONNX file with its SHA-256, where the manifest gives one.
    pub fn files(&self) -> impl Iterator<Item = (&Path, Option<&str>)> {
        let one = Some((self.onnx.as_path(), self.sha256.as_deref())).filter(|_| self.stages.is_empty());
        one.into_iter().chain(self.stages.iter().map(|stage| (stage.onnx.as_path(), stage.sha256.as_deref())))
    }

    /// Checks that each ONNX file is there and is the one that the manifest describes.
    ///
    /// # Errors
    /// A missing file, with where it is to be had; an unreadable one; another SHA-256.
    pub fn check_sha256(&self) -> Result<(), ManifestError> {
        self.files().try_for_each(|(onnx, expected)| self.check_sum(onnx, expected))
    }

    fn check_sum(&self, onnx: &Path, expected: Option<&str>) -> Result<(), ManifestError> {
        if !onnx.exists() {
            let cure = match &self.fetch {
                Some(fetch) => format!("put it there (to be had at: {fetch})"),
                None => "put it there, or correct `onnx` in the manifest".to_string(),
            };
            return Err(ManifestError::Missing { onnx: onnx.to_owned(), cure });
        }
        let Some(expected) = expected else {
            return Ok(());
        };
        let found = sha256_hex(onnx).map_err(|source| ManifestError::Io { path: onnx.to_owned(), source })?;
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(ManifestError::Sha256 { onnx: onnx.to_owned(), expected: expected.to_owned(), found })
    }

    /// The manifest as `accentor init` writes it: every field and setting with a comment, what is absent commented out.
    ///
    /// Paths are written as they are; give them relative to where the text goes. `classes` is the number of scores, for the labels' comment.
    pub fn to_commented_toml(&self, classes: Option<usize>) -> String {
        let mut text = String::from("# An accentor model. Paths are relative to this file.\n");
        let table = toml::Table::try_from(self).unwrap_or_default();
        let front_end = table.get("front_end").and_then(toml::Value::as_table);
        let count = classes.map_or(String::new(), |classes| format!("{classes} "));
        for (key, comment, example) in FIELDS {
            let _ = writeln!(text, "\n# {comment}");
            if *key == "labels" && self.labels.is_empty() {
                let _ = writeln!(
                    text,
                    "# Fill in the {count}names; while there are none, the classes are called \"0\", \"1\", …"
                );
            }
            if *key == "onnx" && !self.stages.is_empty() {
                text.push_str("# Given by the stages below.\n");
            }
            let _ = match table.get(*key) {
                Some(value) => writeln!(text, "{key} = {value}"),
                None => writeln!(text, "# {key} = {example}"),
            };
        }
        text.push_str(if self.stages.is_empty() {
            "\n# Several ONNX files one behind the other: [[stage]] for each, in place of onnx, sha256, input and output.\n"
        } else {
            "\n# The ONNX files, one behind the other: each is fed what the one before it gives.\n"
        });
        if self.stages.is_empty() {
            text.push_str("# [[stage]]\n");
            for (key, value, comment) in STAGE {
                let line = format!("{key} = {value}");
                let _ = writeln!(text, "# {line:<34} # {comment}");
            }
        }
        for stage in table.get("stage").and_then(toml::Value::as_array).into_iter().flatten() {
            text.push_str("[[stage]]\n");
            for (key, _, _) in STAGE {
                if let Some(value) = stage.get(*key) {
                    let _ = writeln!(text, "{key} = {value}");
                }
            }
        }
        text.push_str("\n# How the input is made of samples. kind: mfcc, log-mel, waveform, image or tensor (.npy files as they are).\n");
        let Some(front_end) = front_end else {
            text.push_str("# [front_end]\n# kind = \"mfcc\"\n");
            return text;
        };
        text.push_str("[front_end]\n");
        // `kind` first, then the settings in the order of the samples' way.
        for (key, comment) in SETTINGS {
            if let Some(value) = front_end.get(*key) {
                let line = format!("{key} = {value}");
                let _ = writeln!(text, "{line:<36} # {comment}");
            }
        }
        text
    }
}

/// The fields in the order of the file, what they are, and an example of a value for those that are absent.
const FIELDS: &[(&str, &str, &str)] = &[
    ("name", "The model's name.", "\"my-model\""),
    ("description", "What it does, in a sentence.", "\"ten spoken commands\""),
    ("licence", "The licence of the weights (SPDX).", "\"Apache-2.0\""),
    ("fetch", "Where the ONNX file is to be had, in words.", "\"https://…\""),
    ("onnx", "The ONNX file.", "\"model.onnx\""),
    ("sha256", "Its SHA-256; without it any file is taken.", "\"…\""),
    ("input", "The input's name; without it the model's first.", "\"input\""),
    (
        "input_shape",
        "The input's shape for one sample, batch 1 first; fixes dimensions that the model leaves free.",
        "[1, 49, 10, 1]",
    ),
    ("output", "The output with the scores; without it the model's first.", "\"logits\""),
    ("labels", "The classes' names, in the order of the scores.", "[]"),
    (
        "guard",
        "Labelled data that an update must not get worse on: a folder with a folder a label, or a CSV file `path,label`.",
        "\"guard\"",
    ),
    ("replay", "Labelled data that is mixed into training, so that nothing is forgotten.", "\"replay\""),
];

/// A stage with every key, as an example.
const STAGE: &[(&str, &str, &str)] = &[
    ("onnx", "\"model.onnx\"", "the ONNX file"),
    ("sha256", "\"…\"", "its SHA-256; without it any file is taken"),
    ("input", "\"input\"", "the input's name; without it the file's first"),
    ("input_shape", "[1, 76, 32, 1]", "its shape, batch 1 first; without it what the file says and what it is fed"),
    ("output", "\"embedding\"", "the output that goes on; without it the file's first"),
    ("scale", "0.1", "what it is fed is multiplied by it"),
    ("offset", "2", "then this is added"),
    ("window", "76", "it runs once for each window of so many frames; the outputs are stacked for the next stage"),
    ("hop", "8", "frames from one window to the next"),
    ("frozen", "true", "no adapter may sit in it"),
];

/// Every setting of every front end, in the order of the samples' way.
const SETTINGS: &[(&str, &str)] = &[
    ("kind", "mfcc, log-mel, waveform, image or tensor"),
    ("rate_hz", "the model's sampling rate; other files are resampled"),
    ("window_samples", "how many samples the model hears"),
    ("align", "start, centre or loudest: where the window lies on a shorter or longer clip"),
    ("normalise", "none, max (divide by the largest sample) or peak (by the largest magnitude)"),
    ("frame_samples", "samples a frame"),
    ("hop_samples", "samples from one frame to the next"),
    ("fft", "length of the FFT, at least frame_samples"),
    ("window", "hann, hamming or none (periodic)"),
    ("spectrum", "magnitude or power"),
    ("mels", "number of mel bands"),
    ("low_hz", "lower edge of the lowest band"),
    ("high_hz", "upper edge of the highest band"),
    ("mel_scale", "htk or slaney"),
    ("triangles", "mel (TensorFlow) or hz (librosa, torchaudio): what the bands' sides are straight lines of"),
    ("mel_norm", "none or slaney (equal areas)"),
    ("log_floor", "ln(max(mel, log_floor) + log_offset)"),
    ("log_offset", "more than 0 where log_floor is 0"),
    ("coefficients", "cepstral coefficients kept, from the first"),
    ("dct_norm", "ortho-first-unscaled (TensorFlow), ortho (librosa, torchaudio) or none"),
    ("width", "columns; 0: as the model's input says"),
    ("height", "rows; 0: as the model's input says"),
    ("fit", "stretch or crop (the middle), for pictures of another shape"),
    ("layout", "nhwc or nchw"),
    ("order", "rgb, bgr or grey"),
    ("scale", "every value is multiplied by it; a picture's: one number, or [red, green, blue]"),
    ("offset", "then this is added; a picture's pixels are 0..255 before"),
];

enum Problem {
    Field(String, String),
    FrontEnd(FeatureError),
}

/// What is said about an ONNX file; `of` comes before the field's name.
fn check_file(of: &str, sha256: Option<&str>, input_shape: Option<&[usize]>) -> Result<(), Problem> {
    if let Some(found) = sha256.filter(|sum| sum.len() != 64 || !sum.bytes().all(|c| c.is_ascii_hexdigit())) {
        let problem = format!("expected 64 hexadecimal digits, found {found:?}; take them from `sha256sum`");
        return Err(Problem::Field(format!("{of}sha256"), problem));
    }
    if let Some(shape) = input_shape.filter(|shape| shape.is_empty() || shape.contains(&0)) {
        let problem = format!("expected lengths of 1 or more, batch 1 first, found {shape:?}; see `accentor inspect`");
        return Err(Problem::Field(format!("{of}input_shape"), problem));
    }
    Ok(())
}

impl Stage {
    fn check(&self, of: &str) -> Result<(), Problem> {
        let field = |name: &str, problem: String| Err(Problem::Field(format!("{of}{name}"), problem));
        if self.onnx.as_os_str().is_empty() {
            return field("onnx", "expected the ONNX file's path, found nothing; name the file".to_string());
        }
        check_file(of, self.sha256.as_deref(), self.input_shape.as_deref())?;
        for (name, number) in [("scale", self.scale), ("offset", self.offset)] {
            if !(number as f32).is_finite() {
                return field(name, format!("expected a finite number, found {number}; correct it"));
            }
        }
        if self.scale == 0.0 {
            return field("scale", "expected a number other than 0, found 0; correct it".to_string());
        }
        match (self.window, self.hop) {
            (Some(0), _) => field("window", "expected 1 frame or more, found 0; correct it".to_string()),
            (_, Some(0)) => field("hop", "expected 1 frame or more, found 0; correct it".to_string()),
            (None, Some(hop)) => {
                field("hop", format!("expected a `window` with it, found hop = {hop} alone; set both"))
            }
            _ => Ok(()),
        }
    }
}

/// A file's SHA-256 in lower-case hexadecimal; the file is read in pieces.
///
/// # Errors
/// Whatever the system says when reading.
pub fn sha256_hex(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => hash.update(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The SHA-256 of bytes in memory in lower-case hexadecimal.
pub(crate) fn sha256_hex_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * digest.len());
    for byte in digest {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{Image, LogMel, Mfcc, TensorInput, Waveform};
    use std::fs;

    fn read(text: &str) -> Result<Manifest, ManifestError> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), text).unwrap();
        Manifest::read(folder.path())
    }

    #[test]
    fn paths_are_relative_to_the_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        fs::write(&path, "onnx = \"a.onnx\"\nguard = \"g\"\nreplay = \"/r\"\nlabels = [\"a\", \"b\"]").unwrap();
        let manifest = Manifest::read(&path).unwrap();
        assert_eq!(manifest.onnx, folder.path().join("a.onnx"));
        assert_eq!(manifest.guard.as_deref(), Some(folder.path().join("g").as_path()));
        assert_eq!(manifest.replay.as_deref(), Some(Path::new("/r")));
        assert_eq!(manifest.class_names(2).unwrap(), ["a", "b"]);
        assert!(manifest.class_names(3).is_none());
        assert_eq!(Manifest::default().class_names(2).unwrap(), ["0", "1"]);
    }

    #[test]
    fn bad_manifests_say_what_and_where() {
        for (text, why) in [
            ("", "missing field `onnx`"),
            ("onnx = \"a\"\n[[stage]]\nonnx = \"b\"", "`onnx`: the manifest has [[stage]]"),
            ("output = \"y\"\n[[stage]]\nonnx = \"b\"", "`output`: the manifest has [[stage]]"),
            ("[[stage]]", "missing field `onnx`"),
            ("[[stage]]\nonnx = \"\"", "`stage 1: onnx`"),
            ("[[stage]]\nonnx = \"a\"\n[[stage]]\nonnx = \"b\"\nsha256 = \"1\"", "`stage 2: sha256`"),
            ("[[stage]]\nonnx = \"a\"\ninput_shape = [0]", "`stage 1: input_shape`"),
            ("[[stage]]\nonnx = \"a\"\nhop = 8", "`stage 1: hop`: expected a `window`"),
            ("[[stage]]\nonnx = \"a\"\nwindow = 0", "`stage 1: window`"),
            ("[[stage]]\nonnx = \"a\"\nwindow = 3\nhop = 0", "`stage 1: hop`"),
            ("[[stage]]\nonnx = \"a\"\nscale = 0", "`stage 1: scale`"),
            ("[[stage]]\nonnx = \"a\"\noffset = inf", "`stage 1: offset`"),
            ("[[stage]]\nonnx = \"a\"\nwindows = 3", "unknown field `windows`"),
            ("[[stages]]\nonnx = \"a\"", "unknown field `stages`"),
            ("onnx = \"\"", "`onnx`"),
            ("onnx = \"a\"\nlables = []", "unknown field `lables`"),
            ("onnx = \"a\"\nlabels = [\"x\", \"y\", \"x\"]", "label 2 repeats \"x\""),
            ("onnx = \"a\"\nlabels = [\"x\", \" \"]", "label 1 is empty"),
            ("onnx = \"a\"\nsha256 = \"12\"", "64 hexadecimal"),
            ("onnx = \"a\"\ninput_shape = [1, 0]", "`input_shape`"),
            ("onnx = \"a\"\n[front_end]\nmels = 3", "no `kind`"),
            ("onnx = \"a\"\n[front_end]\nkind = \"mfc\"", "did you mean `mfcc`?"),
            ("onnx = \"a\"\n[front_end]\nkind = \"mfcc\"\nhop_sample = 3", "did you mean `hop_samples`?"),
            ("onnx = \"a\"\n[front_end]\nkind = \"image\"\nmels = 3", "unknown key `mels` in a `image`"),
            ("onnx = \"a\"\n[front_end]\nkind = \"mfcc\"\nmels = \"x\"", "`mels`"),
            ("onnx = \"a\"\n[front_end]\nkind = \"mfcc\"\nalign = \"center\"", "centre"),
            (
                "onnx = \"a\"\n[front_end]\nkind = \"mfcc\"\nfft = 256",
                "[front_end] `frame_samples`: expected 1 to fft, found 480",
            ),
            ("onnx = \"a", "model.toml"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(FILE_NAME), "{error} does not say {why}");
        }
        assert!(matches!(Manifest::read(Path::new("/no/such")), Err(ManifestError::Io { .. })));
    }

    #[test]
    fn commented_text_says_the_same() {
        for front_end in [
            Some(FrontEnd::Mfcc(Mfcc::default())),
            Some(FrontEnd::LogMel(LogMel::default())),
            Some(FrontEnd::Waveform(Waveform::default())),
            Some(FrontEnd::Image(Image::default())),
            Some(FrontEnd::Tensor(TensorInput::default())),
            None,
        ] {
            let manifest = Manifest {
                onnx: "a \"b\".onnx".into(),
                sha256: Some("0".repeat(64)),
                input_shape: Some(vec![1, 49, 10, 1]),
                labels: vec!["yes".into(), "no \\ \n".into()],
                front_end,
                ..Manifest::default()
            };
            let text = manifest.to_commented_toml(Some(2));
            assert_eq!(toml::from_str::<Manifest>(&text).unwrap(), manifest, "{text}");
        }
        let mel = Stage { onnx: "mel.onnx".into(), frozen: true, ..Stage::default() };
        let (onnx, sha256) = ("b.onnx".into(), Some("0".repeat(64)));
        let (window, hop, scale, offset) = (Some(76), Some(8), 0.1, 2.0);
        let shape = Some(vec![1, 76, 32, 1]);
        let embedding = Stage { onnx, sha256, input_shape: shape, window, hop, scale, offset, ..Stage::default() };
        let manifest = Manifest { stages: vec![mel, embedding], ..Manifest::default() };
        let text = manifest.to_commented_toml(Some(2));
        assert_eq!(toml::from_str::<Manifest>(&text).unwrap(), manifest, "{text}");
        let text = Manifest { onnx: "a.onnx".into(), ..Manifest::default() }.to_commented_toml(Some(12));
        let stage: String = text.lines().filter_map(|l| Some(l.strip_prefix("# ")?.to_owned() + "\n")).collect();
        let stage = &stage[stage.find("[[stage]]\n").unwrap()..stage.find("How the input").unwrap()];
        let example = toml::from_str::<Manifest>(stage).unwrap();
        let keys = toml::Table::try_from(&example.stages[0]).unwrap().len();
        assert_eq!(keys, STAGE.len(), "{text}");
        assert!(text.contains("Fill in the 12 names"), "{text}");
        assert!(text.contains("labels = []"), "{text}");
    }

    #[test]
    fn sha256_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let onnx = folder.path().join("a.onnx");
        let mut manifest = Manifest { onnx: onnx.clone(), fetch: Some("the shop".into()), ..Manifest::default() };
        assert!(manifest.check_sha256().unwrap_err().to_string().contains("the shop"));
        fs::write(&onnx, b"abc").unwrap();
        manifest.check_sha256().unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(&onnx).unwrap(), abc);
        manifest.sha256 = Some(abc.to_uppercase());
        manifest.check_sha256().unwrap();
        manifest.sha256 = Some("0".repeat(64));
        assert!(manifest.check_sha256().unwrap_err().to_string().contains(abc));
    }

    /// The models' folders with the shape that each front end must fit.
    const MODELS: &[(&str, usize, &[usize])] = &[
        ("dscnn-kws", 12, &[1, 49, 10, 1]),
        ("dscnn-digits-us", 10, &[1, 49, 10, 1]),
        ("kwt1", 12, &[1, 16000]),
        ("speech-embedding", 96, &[1, 32000]),
        ("resnet8-cifar10", 10, &[1, 32, 32, 3]),
        ("mobilenetv1-025-vww96", 2, &[1, 96, 96, 3]),
        ("efficientnet-lite0", 1000, &[1, 3, 224, 224]),
    ];

    #[test]
    fn the_models_manifests_fit_their_models() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let shared = root.join("../shared/models");
        for (name, classes, shape) in MODELS {
            let mut manifest = Manifest::read(&root.join("models").join(name)).unwrap();
            assert_eq!(manifest.name.as_deref(), Some(*name));
            assert_eq!(manifest.class_names(*classes).unwrap().len(), *classes, "{name}");
            if manifest.stages.is_empty() {
                assert_eq!(manifest.input_shape.as_deref(), Some(*shape), "{name}");
            }
            manifest.front_end.as_ref().unwrap().build(shape).unwrap();
            let onnx = Some(&mut manifest.onnx).filter(|onnx| !onnx.as_os_str().is_empty());
            let files = onnx.into_iter().chain(manifest.stages.iter_mut().map(|stage| &mut stage.onnx));
            files.for_each(|onnx| *onnx = shared.join(onnx.file_name().unwrap()));
            // The models themselves are not part of the repository.
            if manifest.files().all(|(onnx, _)| onnx.exists()) {
                manifest.check_sha256().unwrap();
            }
        }
    }
}
