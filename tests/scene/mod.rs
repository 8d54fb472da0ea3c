//! A folder in which one case plays, and the binary run there.
// What a test reads is the project's own: a failure there is a failure of the test.
#![allow(clippy::unwrap_used)]
// Each test file uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// A run that has not ended by then went on to train where it should have failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The model of our own.
pub(crate) fn kws() -> PathBuf {
    Path::new(ROOT).join("models/kws-commands")
}

/// A folder in which one case plays.
pub(crate) struct Scene {
    pub(crate) folder: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// `count` clips of each word in `data/<word>`.
    pub(crate) fn clips(&self, words: &[&str], count: usize) {
        for word in words {
            clips_into(&self.path("data"), word, count);
        }
    }

    /// Every file below the folder with its content.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        collect(self.folder.path(), &mut found);
        found
    }

    /// Runs `accentor` here, split at spaces; it must fail with `code` and say `words`, and change no file.
    pub(crate) fn fails(&self, code: i32, line: &str, words: &[&str]) -> String {
        let before = self.snapshot();
        let text = says(&self.run(line), code, line, words);
        let after = self.snapshot();
        let names = |s: &BTreeMap<PathBuf, Vec<u8>>| s.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&before), names(&after), "{line}: other files than before");
        assert!(before == after, "{line}: a file was changed");
        text
    }

    /// Runs `accentor` here, split at spaces.
    pub(crate) fn run(&self, line: &str) -> Output {
        ended(self.start(line), line)
    }

    pub(crate) fn start(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// [`Scene::run`], which must succeed; the one object that `--json` prints.
    pub(crate) fn json(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "accentor {line}\n{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_accentor"));
        command.current_dir(self.folder.path()).args(arguments(line));
        command
    }

    /// The same by the shell's hand: `script` has the command as "$@".
    pub(crate) fn shell(&self, script: &str, line: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_accentor")]).args(arguments(line));
        command.current_dir(self.folder.path()).output().unwrap()
    }
}

/// What a run left when it ended, which it must do in time.
pub(crate) fn ended(mut child: Child, line: &str) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("accentor {line}: still running after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

/// `KWS` stands for our own model.
pub(crate) fn arguments(line: &str) -> Vec<String> {
    line.split_whitespace().map(|a| if a == "KWS" { kws().display().to_string() } else { a.to_owned() }).collect()
}

/// Whether a run failed with `code` and said `words`; what it said.
pub(crate) fn says(output: &Output, code: i32, line: &str, words: &[&str]) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "accentor {line}\n{text}");
    assert!(text.starts_with("error: "), "accentor {line}\n{text}");
    assert!(!text.contains("panicked"), "accentor {line}\n{text}");
    assert!(output.stdout.is_empty(), "accentor {line}: results on stdout of a run that failed");
    for word in words {
        assert!(text.contains(word), "accentor {line}\n`{word}` is not in: {text}");
    }
    text
}

fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.insert(path.join("."), Vec::new());
            collect(&path, found);
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
}

/// The first `count` clips of `word` in `data/<word>`.
pub(crate) fn clips_into(data: &Path, word: &str, count: usize) {
    let from = kws().join("demo/scotland/adapt").join(word);
    let mut files: Vec<PathBuf> = fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    fs::create_dir_all(data.join(word)).unwrap();
    for file in &files[..count] {
        fs::copy(file, data.join(word).join(file.file_name().unwrap())).unwrap();
    }
}

/// An array of f32; with no shape, one-dimensional.
pub(crate) fn npy(values: &[f32], shape: &[usize]) -> Vec<u8> {
    let shape = if shape.is_empty() { &[values.len()] } else { shape };
    let dims: String = shape.iter().map(|d| format!("{d},")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
    header += &" ".repeat(63 - (10 + header.len()) % 64);
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    out
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
