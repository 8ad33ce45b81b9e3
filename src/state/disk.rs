//! The calls that change the log's files, so that tests can let each of them fail.
//!
//! Not here: reading, which takes what it finds.

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// A file system, as far as the log changes it.
pub(super) trait Disk: Debug + Send + Sync {
    /// Opens a file to write to it.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;

    /// Makes a file that only its owner may read; one that is there is emptied.
    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;

    /// Gives a file another name, in place of whatever has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// A file that is written to.
pub(super) trait LogFile: Debug + Send {
    /// Writes all bytes at an offset; after an error some of them may be there.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when everything written is on the disk.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file off.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
}

/// The machine's own.
#[derive(Debug)]
pub(super) struct Machine;

impl Disk for Machine {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        Ok(Box::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl LogFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// Lets the system forget what it remembers of a file, so that the next reader sees the disk: after a failed sync
/// memory may hold what the disk does not.
pub(super) fn forget_cached(path: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    #[cfg(not(target_os = "linux"))]
    let _ = path;
    Ok(())
}
