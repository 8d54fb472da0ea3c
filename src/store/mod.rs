//! Files that are there whole or not at all, and what a device has learnt of its owner.
//!
//! What is written goes to a temporary name in the same folder, is flushed to the disk (fsync), renamed to its name,
//! and the folder is flushed. Whenever power is cut, the old content or the new one is there.

mod disk;
mod personal;

pub use disk::{Disk, SystemDisk};
pub use personal::{Example, ExampleInfo, Forget, Generation, Life, Number, Personal, Retention};

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file that makes a folder an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The file with an adapter's tensors.
pub const ADAPTER_TENSORS: &str = "adapter_model.safetensors";

/// What an adapter folder may hold beside the files that are written to it: what PEFT puts there.
const PEFT_FILES: [&str; 4] = [ADAPTER_CONFIG, ADAPTER_TENSORS, "adapter_model.bin", "README.md"];

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}; {}", cure(.source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The target is not a file, or not a folder.
    #[error("cannot write {path}: it is there and is not a {expected}; choose another path")]
    Kind {
        /// Target.
        path: PathBuf,
        /// What would be replaced.
        expected: &'static str,
    },
    /// The folder holds something that is not part of an adapter.
    #[error(
        "will not replace {path}: it holds `{found}`, which is no part of an adapter; choose a new folder, or empty this one"
    )]
    Foreign {
        /// Target.
        path: PathBuf,
        /// First such entry.
        found: String,
    },
    /// A step in an adapter's life that there is not.
    #[error(
        "adapter {number} is {from}, which {to} does not follow: candidate, trial, confirmed is the way, and rolled back its end"
    )]
    Life {
        /// Which adapter.
        number: Number,
        /// Where it is.
        from: Life,
        /// Where it was to go.
        to: Life,
    },
    /// What is known of a thing cannot be written as JSON.
    #[error("cannot write the header of a file: {source}")]
    Header {
        /// Why.
        source: serde_json::Error,
    },
    /// A file name that leads out of the folder.
    #[error("`{name}` is not a plain file name")]
    Name {
        /// The name.
        name: String,
    },
}

fn cure(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space and try again: nothing was changed"
        }
        io::ErrorKind::PermissionDenied => "make the folder writable for this user, or choose another path",
        io::ErrorKind::ReadOnlyFilesystem => "mount it writable, or choose another path",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a part of the path is a file: choose another path"
        }
        io::ErrorKind::FileTooLarge => "raise the limit on file sizes (ulimit -f): nothing was changed",
        io::ErrorKind::NotFound => "choose another path",
        _ => "nothing was changed",
    }
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { action, path: path.to_owned(), source }
}

/// Whether [`write_folder`] could write `dir`, as far as can be known before; nothing is made.
///
/// # Errors
/// As [`write_folder`].
pub fn check_folder(dir: &Path) -> Result<(), StoreError> {
    let target = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    check_replaceable(&target, &[])?;
    check_writable(&target)
}

/// Whether [`write_file`] could write `path`, as far as can be known before; nothing is made.
///
/// # Errors
/// As [`write_file`].
pub fn check_file(path: &Path) -> Result<(), StoreError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    check_is_file(&target)?;
    check_writable(&target)
}

/// Writes and removes a small file in the nearest folder above `target` that exists.
fn check_writable(target: &Path) -> Result<(), StoreError> {
    let name = file_name(target)?;
    let above = target.ancestors().skip(1).map(|a| if a.as_os_str().is_empty() { Path::new(".") } else { a });
    let nearest = above.into_iter().find(|a| fs::symlink_metadata(a).is_ok()).unwrap_or(Path::new("."));
    if !nearest.is_dir() {
        return Err(io_error("make a folder below", nearest)(io::ErrorKind::NotADirectory.into()));
    }
    let trial = tempfile::Builder::new().prefix(&format!(".{name}.")).tempfile_in(nearest);
    let written = trial.and_then(|mut file| file.write_all(&[0; 4096]).and_then(|()| file.as_file().sync_all()));
    written.map_err(io_error("write to the folder", nearest))
}

/// Writes `bytes` to `path`, whole or not at all. Folders on the way to it are made.
///
/// # Errors
/// [`StoreError`]; `path` is then as it was.
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), StoreError> {
    // Through a symbolic link, the file that it names is replaced.
    let target = fs::canonicalize(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned());
    let old = check_is_file(&target)?;
    let parent = make_parent(&target)?;
    let mut builder = tempfile::Builder::new();
    let prefix = format!(".{}.", file_name(&target)?);
    builder.prefix(&prefix);
    let permissions = old.map(|m| m.permissions()).or_else(for_everyone);
    permissions.into_iter().for_each(|p| {
        builder.permissions(p);
    });
    let mut file = builder.tempfile_in(&parent).map_err(io_error("write to the folder", &parent))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io_error("write", &target))?;
    file.persist(&target).map_err(|e| io_error("replace", &target)(e.error))?;
    sync_folder(&parent)
}

/// Writes `files` (name, content) as the folder `dir`, whole or not at all. Folders on the way to it are made. A folder
/// that is there is replaced when the new one is complete, and only if it is empty or an adapter folder; the files of
/// the old one are gone then.
///
/// # Errors
/// [`StoreError`]; `dir` is then as it was.
pub fn write_folder(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), StoreError> {
    recover(dir)?;
    let target = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    if let Some(name) = names.iter().find(|n| Path::new(n).file_name().is_none_or(|f| f != **n)) {
        return Err(StoreError::Name { name: (*name).to_owned() });
    }
    check_replaceable(&target, &names)?;
    let parent = make_parent(&target)?;
    let new = tempfile::Builder::new()
        .prefix(&format!(".{}.", file_name(&target)?))
        .tempdir_in(&parent)
        .map_err(io_error("write to the folder", &parent))?;
    for (name, bytes) in files {
        let path = new.path().join(name);
        let written = File::create(&path).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
        written.map_err(io_error("write", &target.join(name)))?;
    }
    sync_folder(new.path())?;
    let aside = aside(&target)?;
    if fs::symlink_metadata(&aside).is_ok() {
        // Left by a crash after the new folder had taken its place.
        check_replaceable(&aside, &names)?;
        fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
    }
    let had_old = fs::symlink_metadata(&target).is_ok();
    if had_old {
        fs::rename(&target, &aside).map_err(io_error("replace", &target))?;
    }
    if let Err(source) = fs::rename(new.path(), &target) {
        if had_old {
            fs::rename(&aside, &target).map_err(io_error("put back", &target))?;
        }
        return Err(StoreError::Io { action: "replace", path: target, source });
    }
    // It has its own name now: nothing is left to clean up.
    let _ = new.keep();
    sync_folder(&parent)?;
    if had_old {
        fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
    }
    Ok(())
}

/// Puts the old folder back where power was cut between its removal and the new one's arrival.
///
/// # Errors
/// [`StoreError::Io`].
pub fn recover(dir: &Path) -> Result<(), StoreError> {
    let Ok(aside) = aside(dir) else { return Ok(()) };
    if fs::symlink_metadata(dir).is_err() && aside.join(ADAPTER_CONFIG).is_file() {
        fs::rename(&aside, dir).map_err(io_error("put back", dir))?;
    }
    Ok(())
}

/// Where a folder stands while it is replaced.
fn aside(target: &Path) -> Result<PathBuf, StoreError> {
    Ok(target.with_file_name(format!(".{}.previous", file_name(target)?)))
}

fn file_name(target: &Path) -> Result<String, StoreError> {
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned());
    name.ok_or_else(|| StoreError::Kind { path: target.to_owned(), expected: "file or folder with a name" })
}

/// What is there already.
fn check_is_file(target: &Path) -> Result<Option<fs::Metadata>, StoreError> {
    match fs::symlink_metadata(target).ok() {
        Some(old) if !old.is_file() => Err(StoreError::Kind { path: target.to_owned(), expected: "file" }),
        old => Ok(old),
    }
}

fn check_replaceable(target: &Path, names: &[&str]) -> Result<(), StoreError> {
    let Ok(metadata) = fs::symlink_metadata(target) else { return Ok(()) };
    if !metadata.is_dir() {
        return Err(StoreError::Kind { path: target.to_owned(), expected: "folder" });
    }
    for entry in fs::read_dir(target).map_err(io_error("read", target))? {
        let entry = entry.map_err(io_error("read", target))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = names.contains(&name.as_str()) || PEFT_FILES.contains(&name.as_str());
        if !known || !entry.file_type().is_ok_and(|t| t.is_file()) {
            return Err(StoreError::Foreign { path: target.to_owned(), found: name });
        }
    }
    Ok(())
}

fn make_parent(target: &Path) -> Result<PathBuf, StoreError> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(io_error("make the folder", &parent))?;
    Ok(parent)
}

/// The permissions of an ordinary new file, before the umask; `tempfile` would make a file for its owner only.
#[cfg(unix)]
fn for_everyone() -> Option<fs::Permissions> {
    Some(std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

#[cfg(not(unix))]
fn for_everyone() -> Option<fs::Permissions> {
    None
}

/// A rename is on the disk once its folder is. Elsewhere than on Unix a folder cannot be flushed.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(io_error("flush", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn adapter(text: &str) -> Vec<(&'static str, Vec<u8>)> {
        vec![(ADAPTER_CONFIG, text.into()), (ADAPTER_TENSORS, b"tensors".to_vec())]
    }

    #[test]
    fn a_file_is_written_and_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/model.onnx");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(entries(path.parent().unwrap()), ["model.onnx"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_stay() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let root = tempfile::tempdir().unwrap();
        let (path, link) = (root.path().join("file"), root.path().join("link"));
        write_file(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o600, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        write_file(&link, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_folder_is_written_and_replaced() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("adapters/nicolas");
        write_folder(&dir, &adapter("one")).unwrap();
        fs::write(dir.join("README.md"), "PEFT's").unwrap();
        write_folder(&dir, &adapter("two")).unwrap();
        assert_eq!(fs::read(dir.join(ADAPTER_CONFIG)).unwrap(), b"two");
        assert_eq!(entries(&dir), [ADAPTER_CONFIG, ADAPTER_TENSORS]);
        assert_eq!(entries(&root.path().join("adapters")), ["nicolas"]);
    }

    #[test]
    fn a_folder_of_something_else_stays() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.txt"), "years").unwrap();
        let error = write_folder(root.path(), &adapter("one")).unwrap_err();
        assert!(error.to_string().contains("`thesis.txt`") && error.to_string().contains("choose"), "{error}");
        assert_eq!(entries(root.path()), ["thesis.txt"]);
        let nested = root.path().join("nested");
        fs::create_dir_all(nested.join(ADAPTER_CONFIG)).unwrap();
        assert!(matches!(write_folder(&nested, &adapter("one")), Err(StoreError::Foreign { .. })));
        let file = root.path().join("thesis.txt");
        assert!(matches!(write_folder(&file, &adapter("one")), Err(StoreError::Kind { .. })));
        assert!(matches!(write_file(&nested, b""), Err(StoreError::Kind { .. })));
        assert_eq!(fs::read(&file).unwrap(), b"years");
    }

    #[test]
    fn a_failure_leaves_the_old_content() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("adapter");
        write_folder(&dir, &adapter("one")).unwrap();
        // A file inside a file cannot be made.
        let impossible = [(ADAPTER_CONFIG, b"two".to_vec()), ("adapter_config.json/x", Vec::new())];
        assert!(write_folder(&dir, &impossible).is_err());
        let below_a_file = dir.join(ADAPTER_CONFIG).join("x/y");
        let error = write_file(&below_a_file, b"").unwrap_err().to_string();
        assert!(error.contains("adapter_config.json") && error.contains("choose another path"), "{error}");
        assert!(write_folder(&below_a_file, &adapter("two")).is_err());
        assert_eq!(fs::read(dir.join(ADAPTER_CONFIG)).unwrap(), b"one");
        assert_eq!(entries(root.path()), ["adapter"]);
    }

    #[test]
    fn a_crash_between_the_renames_is_mended() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("adapter");
        write_folder(&dir, &adapter("one")).unwrap();
        fs::rename(&dir, root.path().join(".adapter.previous")).unwrap();
        recover(&dir).unwrap();
        assert_eq!(fs::read(dir.join(ADAPTER_CONFIG)).unwrap(), b"one");
        // And a crash after them, before the old one was removed.
        write_folder(&root.path().join(".adapter.previous"), &adapter("zero")).unwrap();
        write_folder(&dir, &adapter("two")).unwrap();
        assert_eq!(fs::read(dir.join(ADAPTER_CONFIG)).unwrap(), b"two");
        assert_eq!(entries(root.path()), ["adapter"]);
    }

    #[test]
    fn causes_have_cures() {
        let full = StoreError::Io { action: "write", path: "x".into(), source: io::ErrorKind::StorageFull.into() };
        assert!(full.to_string().contains("free some space"), "{full}");
        let denied =
            StoreError::Io { action: "write", path: "x".into(), source: io::ErrorKind::PermissionDenied.into() };
        assert!(denied.to_string().contains("writable"), "{denied}");
    }
}
