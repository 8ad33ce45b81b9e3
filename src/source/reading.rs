//! Opening and reading files that others wrote: nothing blocks, nothing escapes, nothing is endless.
//!
//! Two ways to open. [`follow`] is for files that we name ourselves (`model.onnx`, `config.pbtxt`): links are
//! followed. [`open_resolved`] is for files that the untrusted content names (external data, class names): the
//! location must stay below its folder and meet no link on the way; `links` judges those that do.
//!
//! Files are opened without waiting, and looked at before a byte is read.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use sha2::Digest as _;

use super::{Digest, StoreError};

/// Why a location is not opened.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Nothing is named.
    #[error("it is empty; name a file relative to the model's folder")]
    Empty,
    /// Longer than any honest location.
    #[error("it is longer than {LOCATION_BYTES_MAX} bytes")]
    TooLong,
    /// Begins at the root of the file system.
    #[error("it is absolute; name a file relative to the model's folder")]
    Absolute,
    /// Climbs, or has empty or `.` parts.
    #[error("it has a part that is empty, `.` or `..`; name a file below the model's folder")]
    Part,
    /// Characters that mean something else elsewhere.
    #[error("it holds a backslash or a control character; separate folders with `/`")]
    Character,
    /// A link, on the way or at its end, that leads to no place of the model's own.
    #[error(
        "it is or passes a symbolic link that leads elsewhere; put the file itself there, or link to one in the \
         model's folder, below the repository's root or beside the real file that names it"
    )]
    Link,
    /// Links that lead nowhere.
    #[error("its symbolic links lead in a circle, or the system does not follow them")]
    LinkLoop,
    /// A file with a second name, which may lie anywhere.
    #[error("it is a hard link; put a copy there, or allow them (`repository.hard_links`)")]
    HardLink,
    /// It leaves the folder.
    #[error("it leads out of the model's folder")]
    Escape,
    /// Something else stands where a file should be.
    #[error("it is a {0}; it must be a regular file")]
    NotAFile(&'static str),
    /// Nothing is there.
    #[error("there is no such file")]
    Missing,
    /// With the rest of the version it is over the limit.
    #[error(
        "the model with its external data has more than {bytes_max} bytes, the most that is read"
    )]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// It does not fit into memory now.
    #[error("there is no memory for its {bytes} bytes")]
    NoMemory {
        /// Its size.
        bytes: u64,
    },
    /// It changed while it was read.
    #[error("it changed while it was read; try again once it is at rest")]
    Changed,
    /// The publisher's `SHA256SUMS` lists it with another digest.
    #[error("its bytes are not those that `SHA256SUMS` lists; publish both again")]
    WrongDigest,
    /// The publisher's `SHA256SUMS` does not list it.
    #[error("`SHA256SUMS` does not list it; list every file of the version there")]
    NotListed,
    /// The content store did not keep or give it.
    #[error("the content store did not keep or give it")]
    Store(#[source] Box<StoreError>),
    /// The system refused.
    #[error("the system refused")]
    Io(#[source] io::Error),
}

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum ReadFault {
    Missing,
    NotAFile(&'static str),
    HardLink,
    TooLarge { bytes_max: u64 },
    NoMemory { bytes: u64 },
    Changed,
    WrongDigest,
    NotListed,
    Store(Box<StoreError>),
    Io(io::Error),
}

/// The longest location, in bytes.
pub(super) const LOCATION_BYTES_MAX: usize = 1024;

/// Opens a folder, through links too.
pub(super) fn folder(path: &Path) -> Result<OwnedFd, ReadFault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a folder inside a folder, through links too.
pub(super) fn folder_in(folder: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd, ReadFault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?)
}

/// Opens a file that we name ourselves; links are followed, the file must be a regular one.
pub(super) fn follow(folder: BorrowedFd<'_>, name: &str) -> Result<File, ReadFault> {
    let file = File::from(rustix::fs::openat(folder, name, FILE_FLAGS, Mode::empty())?);
    match kind(&file.metadata()?) {
        None => Ok(file),
        Some(kind) => Err(ReadFault::NotAFile(kind)),
    }
}

/// Reads a whole file of at most `bytes_max` bytes that stays the same while it is read.
pub(super) fn read(mut file: File, bytes_max: u64) -> Result<Vec<u8>, ReadFault> {
    let before = file.metadata()?;
    let bytes = read_as_it_is(&mut file, bytes_max)?;
    let after = file.metadata()?;
    let same = |field: fn(&Metadata) -> i64| field(&before) == field(&after);
    let at_rest = u64::try_from(bytes.len()) == Ok(before.len())
        && after.len() == before.len()
        && same(Metadata::mtime)
        && same(Metadata::mtime_nsec);
    if at_rest { Ok(bytes) } else { Err(ReadFault::Changed) }
}

/// Reads a whole file of at most `bytes_max` bytes, for whoever knows by other means that it is the right one.
pub(super) fn read_as_it_is(file: &mut File, bytes_max: u64) -> Result<Vec<u8>, ReadFault> {
    let length = file.metadata()?.len();
    if length > bytes_max {
        return Err(ReadFault::TooLarge { bytes_max });
    }
    let no_memory = || ReadFault::NoMemory { bytes: length };
    let capacity = usize::try_from(length).map_err(|_| no_memory())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(capacity).map_err(|_| no_memory())?;
    // Never more than there was: what grows has changed, and the caller sees that.
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Hashes a whole file of at most `bytes_max` bytes, without keeping them; gives its size too.
pub(super) fn hash(mut file: File, bytes_max: u64) -> Result<(Digest, u64), ReadFault> {
    let mut hash = sha2::Sha256::new();
    let mut chunk = vec![0; 1 << 16];
    let mut total = 0_u64;
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) => return Ok((hash.into(), total)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        total = total.saturating_add(read as u64);
        if total > bytes_max {
            return Err(ReadFault::TooLarge { bytes_max });
        }
        hash.update(&chunk[..read]);
    }
}

/// `O_NONBLOCK` opens a pipe without waiting for its writer, so that it can be looked at and refused.
pub(super) const FILE_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Whether untrusted content may name this.
pub(super) fn check_location(location: &str) -> Result<(), Refusal> {
    if location.len() > LOCATION_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    check_parts(location)
}

/// Whether a path is relative, goes down only, and has one spelling.
pub(super) fn check_parts(location: &str) -> Result<(), Refusal> {
    if location.is_empty() {
        return Err(Refusal::Empty);
    }
    if location.contains('\\') || location.contains(char::is_control) {
        return Err(Refusal::Character);
    }
    if location.starts_with('/') {
        return Err(Refusal::Absolute);
    }
    if location.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Refusal::Part);
    }
    Ok(())
}

/// Opens below the folder and through no link: the kernel resolves and refuses in one step.
#[cfg(target_os = "linux")]
pub(super) fn open_resolved(folder: BorrowedFd<'_>, location: &str) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;

    const TRIES: usize = 8;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut opened = Err(Errno::AGAIN);
    // A rename elsewhere can make the kernel unsure: it then asks to be asked again.
    for _ in 0..TRIES {
        opened = rustix::fs::openat2(folder, location, FILE_FLAGS, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    opened
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open_resolved(_: BorrowedFd<'_>, _: &str) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// What stands there instead of a regular file.
pub(super) fn kind(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("folder"),
        () if kind.is_fifo() => Some("pipe"),
        () if kind.is_socket() => Some("socket"),
        () => Some("device"),
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Missing,
            Errno::LOOP => Self::LinkLoop,
            Errno::XDEV => Self::Escape,
            Errno::NXIO | Errno::NODEV => Self::NotAFile("socket or device"),
            Errno::NAMETOOLONG => Self::TooLong,
            Errno::AGAIN => Self::Changed,
            other => Self::Io(other.into()),
        }
    }
}

impl From<ReadFault> for Refusal {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Missing => Self::Missing,
            ReadFault::NotAFile(kind) => Self::NotAFile(kind),
            ReadFault::HardLink => Self::HardLink,
            ReadFault::TooLarge { bytes_max } => Self::TooLarge { bytes_max },
            ReadFault::NoMemory { bytes } => Self::NoMemory { bytes },
            ReadFault::Changed => Self::Changed,
            ReadFault::WrongDigest => Self::WrongDigest,
            ReadFault::NotListed => Self::NotListed,
            ReadFault::Store(error) => Self::Store(error),
            ReadFault::Io(error) => Self::Io(error),
        }
    }
}

impl From<Errno> for ReadFault {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Missing,
            Errno::NXIO | Errno::NODEV => Self::NotAFile("socket or device"),
            other => Self::Io(other.into()),
        }
    }
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use super::*;

    #[test]
    fn reads_end_at_the_limit() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let open = || File::open(outside.path().join("secret")).unwrap();
        assert_eq!(read(open(), 6).unwrap(), b"secret");
        assert!(matches!(read(open(), 5), Err(ReadFault::TooLarge { bytes_max: 5 })));
    }

    #[test]
    fn endless_files_of_no_size_give_nothing() {
        // The kernel reports no size for these and no end either.
        let processes = folder(Path::new("/proc/self")).unwrap();
        if let Ok(file) = follow(processes.as_fd(), "status") {
            assert!(read(file, 1 << 20).unwrap().is_empty());
        }
    }
}
