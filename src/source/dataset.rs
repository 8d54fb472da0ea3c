//! Labelled sets: a folder with a folder a label, or a CSV file with `path,label`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Format, SourceError, io_error};

const LAYOUT: &str =
    "expected a folder with a folder a label that holds its files, or a CSV file with the header `path,label`";

/// One labelled file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The file, as it can be opened.
    pub path: PathBuf,
    /// Its label.
    pub label: String,
}

/// Labelled files, those of a folder sorted by path, those of a CSV file in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The files, at least one.
    pub examples: Vec<Example>,
}

impl Dataset {
    /// The labels that occur, sorted, each once.
    pub fn labels(&self) -> Vec<String> {
        let labels: BTreeSet<&str> = self.examples.iter().map(|example| example.label.as_str()).collect();
        labels.into_iter().map(str::to_string).collect()
    }
}

/// Lists a labelled set; no file of it is opened.
///
/// A folder: each folder in it is a label, each file in that one an example. Hidden files and files whose extension is none that
/// [`read`](super::read) knows (notes, licences) are skipped. A CSV file: columns `path` (relative to the CSV file) and `label`, in any order among others.
///
/// # Errors
/// What is not laid out so: no label folder, a label folder without a file to read, a data file or a folder where none belongs, a missing
/// column, an empty cell, a file that is not there.
pub fn dataset(path: &Path) -> Result<Dataset, SourceError> {
    let about = fs::metadata(path).map_err(|source| io_error(path, source))?;
    let examples = if about.is_dir() {
        from_folder(path)?
    } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
        from_csv(path)?
    } else {
        return Err(layout(
            path,
            format!("{LAYOUT}, found a file that ends otherwise"),
            "give the folder or the CSV file",
        ));
    };
    Ok(Dataset { examples })
}

fn from_folder(root: &Path) -> Result<Vec<Example>, SourceError> {
    let mut examples = Vec::new();
    for entry in listed(root)? {
        if !entry.is_dir() {
            if Format::of(&entry).is_some() {
                let problem = format!("{LAYOUT}; {} lies beside the label folders", name_of(&entry));
                return Err(layout(root, problem, "move the file into the folder of its label"));
            }
            continue;
        }
        let Some(label) = entry.file_name().and_then(|name| name.to_str()) else {
            return Err(layout(
                &entry,
                "the folder's name is a label and must be UTF-8".to_string(),
                "rename the folder",
            ));
        };
        let before = examples.len();
        for file in listed(&entry)? {
            if file.is_dir() {
                let problem = format!("expected files under the label {label:?}, found the folder {}", name_of(&file));
                return Err(layout(
                    &entry,
                    problem,
                    "put the files right into their label's folder, or give the folder one deeper",
                ));
            }
            if Format::of(&file).is_some() {
                examples.push(Example { path: file, label: label.to_string() });
            }
        }
        if examples.len() == before {
            let problem = format!("the label {label:?} has no .wav, .flac, .png, .jpg, .jpeg or .npy file");
            return Err(layout(&entry, problem, "put files into it or remove the folder"));
        }
    }
    if examples.is_empty() {
        return Err(layout(
            root,
            format!("{LAYOUT}, found no label folder"),
            "make a folder a label and put its files there",
        ));
    }
    Ok(examples)
}

/// What a folder holds, sorted, without hidden entries.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let entry = entry.map_err(|source| io_error(folder, source))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.push(entry.path());
        }
    }
    entries.sort();
    Ok(entries)
}

fn from_csv(table: &Path) -> Result<Vec<Example>, SourceError> {
    let bad = |problem: String| layout(table, problem, "correct the CSV file");
    let text = fs::read(table).map_err(|source| io_error(table, source))?;
    // Spreadsheets put a byte order mark first.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let headers = reader.headers().map_err(|error| bad(error.to_string()))?.clone();
    let column = |name: &str| {
        let found = headers.iter().position(|header| header.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let found: Vec<&str> = headers.iter().collect();
            layout(
                table,
                format!("expected the columns path and label, found {found:?}"),
                "make `path,label` the first line",
            )
        })
    };
    let (path_column, label_column) = (column("path")?, column("label")?);
    let folder = table.parent().unwrap_or(Path::new(""));
    let mut examples = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| bad(error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |column: usize, name: &str| {
            let value = record.get(column).filter(|value| !value.is_empty());
            value.ok_or_else(|| bad(format!("line {line} has no {name}")))
        };
        let (path, label) = (folder.join(cell(path_column, "path")?), cell(label_column, "label")?.to_string());
        if Format::of(&path).is_none() {
            return Err(bad(format!(
                "line {line} names {}, which is no .wav, .flac, .png, .jpg, .jpeg or .npy file",
                path.display()
            )));
        }
        if !path.is_file() {
            return Err(bad(format!(
                "line {line} names {}, which does not exist (paths are relative to the CSV file)",
                path.display()
            )));
        }
        examples.push(Example { path, label });
    }
    if examples.is_empty() {
        return Err(layout(table, "the table has no line after its header".to_string(), "add a line a file"));
    }
    Ok(examples)
}

fn layout(path: &Path, problem: String, cure: &'static str) -> SourceError {
    SourceError::Dataset { path: path.to_path_buf(), problem, cure }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, b"x").unwrap();
            }
        }
        root
    }

    fn problem(root: &Path) -> String {
        dataset(root).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_a_label() {
        let root =
            tree(&["yes/b.wav", "yes/a.FLAC", "no/c.npy", "no/notes.txt", "no/.hidden.wav", ".git/x.wav", "README.md"]);
        let set = dataset(root.path()).unwrap();
        let found: Vec<_> = set.examples.iter().map(|e| (name_of(&e.path), e.label.as_str())).collect();
        assert_eq!(found, [("c.npy".to_string(), "no"), ("a.FLAC".to_string(), "yes"), ("b.wav".to_string(), "yes")]);
        assert_eq!(set.labels(), ["no", "yes"]);
    }

    #[test]
    fn folders_laid_out_otherwise() {
        assert!(problem(tree(&[]).path()).contains("found no label folder"));
        assert!(problem(tree(&["README.md"]).path()).contains("a folder a label"));
        assert!(problem(tree(&["a.wav"]).path()).contains("beside the label folders"));
        assert!(problem(tree(&["yes/a.wav", "no/"]).path()).contains("\"no\" has no"));
        assert!(problem(tree(&["yes/a.txt"]).path()).contains("\"yes\" has no"));
        assert!(problem(tree(&["train/yes/a.wav"]).path()).contains("one deeper"));
        assert!(matches!(dataset(Path::new("/no/such/folder")), Err(SourceError::Io { .. })));
    }

    #[test]
    fn csv_in_its_order_relative_to_itself() {
        let root = tree(&["clips/b.wav", "clips/a.wav"]);
        let table = root.path().join("set.csv");
        fs::write(&table, "\u{feff}label,path,speaker\nyes, clips/b.wav ,x\n\"no, thanks\",clips/a.wav,y\n").unwrap();
        let set = dataset(&table).unwrap();
        assert_eq!(set.examples[0], Example { path: root.path().join("clips/b.wav"), label: "yes".into() });
        assert_eq!(set.labels(), ["no, thanks", "yes"]);
    }

    #[test]
    fn bad_tables_say_the_line() {
        let root = tree(&["a.wav", "a.txt"]);
        let table = root.path().join("set.csv");
        for (text, why) in [
            ("", "expected the columns"),
            ("file,word\na.wav,yes\n", "found [\"file\", \"word\"]"),
            ("path,label\n", "no line after"),
            ("path,label\na.wav,yes\nb.wav,yes\n", "line 3 names"),
            ("path,label\na.txt,yes\n", "line 2 names"),
            ("path,label\na.wav,\n", "line 2 has no label"),
            ("path,label\n,yes\n", "line 2 has no path"),
            ("path,label\na.wav\n", "record"),
        ] {
            fs::write(&table, text).unwrap();
            let error = problem(&table);
            assert!(error.contains(why) && error.contains("set.csv"), "{error} does not say {why}");
        }
        fs::write(&table, b"path,label\n\xff\xfe,x\n").unwrap();
        assert!(problem(&table).contains("set.csv"));
        assert!(problem(&root.path().join("a.wav")).contains("ends otherwise"));
    }
}
