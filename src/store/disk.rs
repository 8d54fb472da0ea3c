//! The few things that the store asks of a file system, so that a test can let each of them fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// File operations. Those that change something are on the disk when they return, but a new name only with [`Disk::sync`] of its
/// folder.
pub trait Disk {
    /// Makes the folder and those above it, for the owner alone.
    ///
    /// # Errors
    /// The system's.
    fn make_folder(&mut self, folder: &Path) -> io::Result<()>;
    /// Writes a file that only the owner can read; one that is there is written over, in its place.
    ///
    /// # Errors
    /// The system's.
    fn write(&mut self, file: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file another name; what had it is gone.
    ///
    /// # Errors
    /// The system's.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// The system's.
    fn remove(&mut self, file: &Path) -> io::Result<()>;
    /// Brings the names in a folder to the disk.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self, folder: &Path) -> io::Result<()>;
    /// Reads a file.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, file: &Path) -> io::Result<Vec<u8>>;
    /// Files in a folder, in no order.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
}

/// The system's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn make_folder(&mut self, folder: &Path) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(folder)
    }

    fn write(&mut self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(file)?;
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&mut self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    fn sync(&mut self, folder: &Path) -> io::Result<()> {
        // Elsewhere than on Unix a folder cannot be flushed.
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }

    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        fs::read(file)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push(entry.path());
            }
        }
        Ok(files)
    }
}
