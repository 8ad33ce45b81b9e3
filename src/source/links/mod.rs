//! Links among a model's own files: where they may lead, decided on what was opened.
//!
//! Caches, mounted volumes and data version control publish the files of a model as links. A file that untrusted
//! content names (external data, class names) may be a symbolic link, or lie behind one, if its real folder
//! - is, or lies below, a folder that led here: the repository's root, the model's folder, the version's. Whoever may
//!   place one of these, also as a link, publishes everything below it; or
//! - is the real folder of the file that names it, and the location itself stands in the model's folder as a link:
//!   caches keep the files of one model side by side, under other names. A folder that is shared as `/tmp` is does
//!   not count.
//!
//! Nothing here trusts the text of a path, and nothing is decided twice. The way is walked folder by folder on open
//! descriptors, each link is read and never followed by the system, and the place is judged by device and inode of the
//! folder that was reached, before the file is opened in it. A publisher who swaps links meanwhile gains nothing.

use std::{
    collections::BTreeMap,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat, openat, statat},
    io::Errno,
};

use super::reading::{self, FILE_FLAGS, ReadFault, Refusal};

/// A folder in a repository, opened, with what links in it may lead to.
#[derive(Debug)]
pub(super) struct OpenFolder {
    folder: OwnedFd,
    /// The folders that led here, from the repository's root to this one.
    line: Vec<Inode>,
    /// Files with a second name are read too.
    hard_links: bool,
    /// The files that were opened under names of our own; what such a file names may lie beside it.
    referrers: Mutex<BTreeMap<String, Inode>>,
}

/// A file or folder, whatever its names are: equal by device and number.
#[derive(Debug, Clone, Copy)]
struct Inode(Stat);

/// A way through links, as far as it was walked.
struct Walk {
    /// The folder that was reached.
    at: OwnedFd,
    /// Links that were passed.
    links: usize,
    /// Links that were passed on the way to the folder of the location's last part.
    links_to_folder: Option<usize>,
}

/// As many as Linux follows.
const LINKS_MAX: usize = 40;
/// Folders above a file; deeper ones are in no repository.
const DEPTH_MAX: usize = 4096;

/// Opens a folder only to go on from there; it need not be readable.
#[cfg(target_os = "linux")]
const STEP_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const STEP_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl OpenFolder {
    /// Opens a folder at or below a repository's root, step by step and through links too.
    ///
    /// Each step starts from what the last one opened, so that the folders are one line, whatever is renamed meanwhile.
    pub(super) fn below(root: &Path, folder: &Path, hard_links: bool) -> Result<Self, ReadFault> {
        let (root, way) = match folder.strip_prefix(root) {
            Ok(way) => (root, way),
            Err(_) => (folder, Path::new("")),
        };
        let mut opened = Self::of(reading::folder(root)?, Vec::new(), hard_links)?;
        for part in way {
            opened = opened.inside(part)?;
        }
        Ok(opened)
    }

    /// Opens a folder in this one, through links too; what lies below it is the model's own as well.
    pub(super) fn inside(&self, name: impl AsRef<Path>) -> Result<Self, ReadFault> {
        let folder = reading::folder_in(self.folder.as_fd(), name.as_ref())?;
        Self::of(folder, self.line.clone(), self.hard_links)
    }

    fn of(folder: OwnedFd, mut line: Vec<Inode>, hard_links: bool) -> Result<Self, ReadFault> {
        line.push(Inode::of(&folder)?);
        Ok(Self { folder, line, hard_links, referrers: Mutex::default() })
    }

    /// Opens a file that we name ourselves, wherever links lead.
    pub(super) fn follow(&self, name: &str) -> Result<File, ReadFault> {
        let file = reading::follow(self.folder.as_fd(), name)?;
        if file.metadata()?.nlink() > 1 && !self.hard_links {
            return Err(ReadFault::HardLink);
        }
        let mut referrers = self.referrers.lock().unwrap_or_else(PoisonError::into_inner);
        referrers.insert(name.to_owned(), Inode::of(&file)?);
        Ok(file)
    }

    /// True if something stands at a path, through links too.
    pub(super) fn is_there(&self, path: &str) -> bool {
        statat(&self.folder, path, AtFlags::empty()).is_ok()
    }

    /// Opens a file that untrusted content names; `referrer` is the file with that content, read from this folder.
    pub(super) fn beneath(&self, referrer: &str, location: &str) -> Result<File, Refusal> {
        reading::check_location(location)?;
        let file = match reading::open_resolved(self.folder.as_fd(), location) {
            // There are links; or the system has no `openat2`, or a sandbox forbids what it does not know.
            Err(Errno::LOOP | Errno::NOSYS | Errno::PERM) => {
                self.open_by_hand(referrer, location)?
            }
            opened => File::from(opened?),
        };
        let metadata = file.metadata().map_err(Refusal::Io)?;
        if let Some(kind) = reading::kind(&metadata) {
            return Err(Refusal::NotAFile(kind));
        }
        match metadata.nlink() {
            0 => Err(Refusal::Changed),
            2.. if !self.hard_links => Err(Refusal::HardLink),
            _ => Ok(file),
        }
    }

    /// Opens a file at the end of a way that was walked and judged.
    fn open_by_hand(&self, referrer: &str, location: &str) -> Result<File, Refusal> {
        let mut walk = Walk::from(self.folder.as_fd()).map_err(Refusal::Io)?;
        let name = match walk.to(location) {
            // What is there and what is not is told of the model's own folders only.
            Err(_) if walk.links > 0 && !self.is_own(walk.at.as_fd()) => return Err(Refusal::Link),
            walked => walked?,
        };
        if walk.links > 0 && !self.is_own(walk.at.as_fd()) && !self.is_beside(referrer, &walk)? {
            return Err(Refusal::Link);
        }
        let flags = FILE_FLAGS | OFlags::NOFOLLOW;
        let file = File::from(openat(&walk.at, &*name, flags, Mode::empty())?);
        // The system has its own rules for links (`protected_symlinks`, `nosymfollow`): it must come to the same file.
        let seen = Inode(statat(&self.folder, location, AtFlags::empty())?);
        if seen == Inode::of(&file)? { Ok(file) } else { Err(Refusal::Changed) }
    }

    /// True if a folder is, or lies below, one that led here.
    pub(super) fn is_own(&self, folder: BorrowedFd<'_>) -> bool {
        self.climb(folder).unwrap_or(false)
    }

    fn climb(&self, folder: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mut at = openat(folder, ".", STEP_FLAGS, Mode::empty())?;
        let mut here = Inode::of(&at)?;
        for _ in 0..DEPTH_MAX {
            if self.line.contains(&here) {
                return Ok(true);
            }
            at = openat(&at, "..", STEP_FLAGS, Mode::empty())?;
            let above = Inode::of(&at)?;
            if above == here {
                break;
            }
            here = above;
        }
        Ok(false)
    }

    /// True if a link of the location's own name led to the real folder of the file that names it.
    fn is_beside(&self, referrer: &str, walked: &Walk) -> Result<bool, Refusal> {
        let referrers = self.referrers.lock().unwrap_or_else(PoisonError::into_inner);
        let read = referrers.get(referrer).copied();
        let (Some(read), Some(0)) = (read, walked.links_to_folder) else { return Ok(false) };
        let mut walk = Walk::from(self.folder.as_fd()).map_err(Refusal::Io)?;
        let Ok(name) = walk.to(referrer) else { return Ok(false) };
        // The place of the file that was read, not of what stands in its place by now.
        if Inode(statat(&walk.at, &*name, AtFlags::SYMLINK_NOFOLLOW)?) != read {
            return Err(Refusal::Changed);
        }
        let folder = Inode::of(&walk.at)?;
        let is_shared = Mode::from_raw_mode(folder.0.st_mode).contains(Mode::SVTX | Mode::WOTH);
        Ok(!is_shared && folder == Inode::of(&walked.at)?)
    }
}

impl Walk {
    fn from(folder: BorrowedFd<'_>) -> std::io::Result<Self> {
        Ok(Self { at: folder.try_clone_to_owned()?, links: 0, links_to_folder: None })
    }

    /// Goes to the folder in which a file really lies; gives the file's name there.
    fn to(&mut self, location: &str) -> Result<Box<[u8]>, Refusal> {
        let mut left = parts(location.as_bytes());
        while let Some(part) = left.pop() {
            let is_last = left.is_empty();
            if is_last {
                self.links_to_folder.get_or_insert(self.links);
            }
            let text = if *part == *b".." { None } else { target(self.at.as_fd(), &part)? };
            match text {
                Some(text) => {
                    self.links += 1;
                    if self.links > LINKS_MAX {
                        return Err(Refusal::LinkLoop);
                    }
                    if text.starts_with(b"/") {
                        self.at = rustix::fs::open("/", STEP_FLAGS, Mode::empty())?;
                    }
                    left.extend(parts(&text));
                }
                None if is_last && *part != *b".." => return Ok(part),
                None => {
                    let flags = STEP_FLAGS | OFlags::NOFOLLOW;
                    self.at = openat(&self.at, &*part, flags, Mode::empty())?;
                }
            }
        }
        Err(Refusal::NotAFile("folder"))
    }
}

/// The parts of a path, the first one last.
fn parts(path: &[u8]) -> Vec<Box<[u8]>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.rev().map(Box::from).collect()
}

/// The text of a link; `None` for what is none. Links of `/proc` are none of a model's: some lead where no path does.
fn target(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    match rustix::fs::readlinkat(folder, name, Vec::new()) {
        Ok(_) if is_in_proc(folder) => Err(Refusal::Link),
        Ok(text) => Ok(Some(text.into_bytes())),
        Err(Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(target_os = "linux")]
fn is_in_proc(folder: BorrowedFd<'_>) -> bool {
    // Where the system does not say, it is taken for the worst.
    rustix::fs::fstatfs(folder).map_or(true, |system| system.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_in_proc(_: BorrowedFd<'_>) -> bool {
    false
}

impl Inode {
    fn of(file: impl AsFd) -> Result<Self, Errno> {
        Ok(Self(rustix::fs::fstat(file)?))
    }
}

impl PartialEq for Inode {
    fn eq(&self, other: &Self) -> bool {
        (self.0.st_dev, self.0.st_ino) == (other.0.st_dev, other.0.st_ino)
    }
}

#[cfg(test)]
mod tests;
