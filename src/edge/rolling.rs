//! A file of lines that begins anew when it is moved away or full.
//!
//! The pages of a large batch go to the disk past the system's cache: to copy them there costs as much as all else of a
//! line. Always true:
//! - A line is written whole, or cut off again where the disk is full.
//! - No page of the file is written both past the cache and through it, so that neither waits for the other.
//! - A file system that knows no other way than its cache, or a disk that stalls, gets lines through the cache.
//!
//! Not here: when lines are written, and which are lost (`access`).

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Bytes of a page, and of the largest block of a disk: only whole ones are written past the cache, from whole ones of
/// memory.
pub(super) const PAGE: usize = 4096;

/// Fewest bytes that are worth it: a write costs the same however long it is.
const DIRECT_BYTES_MIN: usize = 64 << 10;

/// A file that begins anew when it is moved away or full.
#[derive(Debug)]
pub(super) struct Rolling {
    path: PathBuf,
    file: File,
    /// The same, past the system's cache.
    direct: Option<File>,
    /// Device and inode, by which a file is known after it was moved.
    identity: (u64, u64),
    bytes: u64,
    bytes_max: u64,
    /// False for pipes and terminals, which are never moved.
    is_regular: bool,
}

impl Rolling {
    /// Opens the file, for so many bytes at most.
    pub(super) fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        // Lines name clients: for the owner and the group that collects logs.
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let about = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            file,
            direct: about.is_file().then(|| direct(path)).flatten(),
            identity: (about.dev(), about.ino()),
            bytes: about.len(),
            bytes_max,
            is_regular: about.is_file(),
        })
    }

    /// Its name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The largest that it may be.
    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// The distance from the beginning of a page, in memory, at which the next lines are best written from.
    #[expect(clippy::cast_possible_truncation, reason = "less than a page")]
    pub(super) fn phase(&self) -> usize {
        (self.bytes % PAGE as u64) as usize
    }

    /// Writes whole lines to the end; through the cache where that may not wait for the disk.
    pub(super) fn write(&mut self, lines: &[u8], is_late: bool) -> io::Result<()> {
        let length = lines.len() as u64;
        if self.is_regular {
            let about = fs::metadata(&self.path);
            let is_same = about.as_ref().is_ok_and(|it| (it.dev(), it.ino()) == self.identity);
            let is_full = self.bytes > 0 && self.bytes + length > self.bytes_max;
            if is_same && is_full {
                let mut before = OsString::from(&self.path);
                before.push(".1");
                fs::rename(&self.path, before)?;
            }
            if !is_same || is_full {
                *self = Self::open(&self.path, self.bytes_max)?;
            } else if let Ok(about) = about {
                // Others may have cut it.
                self.bytes = about.len();
            }
        }
        let written = if is_late { self.file.write_all(lines) } else { self.append(lines) };
        if written.is_ok() {
            self.bytes += length;
        } else if self.is_regular {
            // Best effort: a line that was cut would make the next one unreadable, too.
            let _ = self.file.set_len(self.bytes);
        }
        written
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let pages = self.pages(lines);
        let Some(mut direct) = self.direct.as_ref().filter(|_| pages.len() >= DIRECT_BYTES_MIN)
        else {
            return self.file.write_all(lines);
        };
        self.file.write_all(&lines[..pages.start])?;
        let mut written = pages.start;
        match direct.write(&lines[pages]) {
            Ok(bytes) => written += bytes,
            // Through the cache it is tried again, and said again if it is no matter of the way.
            Err(_) => self.direct = None,
        }
        self.file.write_all(&lines[written..])
    }

    /// The whole pages of these lines, where they are pages of the file as well.
    fn pages(&self, lines: &[u8]) -> Range<usize> {
        let start = lines.as_ptr().align_offset(PAGE);
        let is_page = (self.phase() + start).is_multiple_of(PAGE);
        let length = lines.len().saturating_sub(start) / PAGE * PAGE;
        if is_page { start..start + length } else { 0..0 }
    }
}

/// The file, past the system's cache; `None` where the file system does not know that.
fn direct(path: &Path) -> Option<File> {
    #[cfg(target_os = "linux")]
    let flags = rustix::fs::OFlags::DIRECT.bits();
    #[cfg(not(target_os = "linux"))]
    let flags = return None;
    OpenOptions::new().append(true).custom_flags(flags.cast_signed()).open(path).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_that_is_full_or_moved_away_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let said = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        fs::write(&path, "old\n").unwrap();
        let mut file = Rolling::open(&path, 10).unwrap();
        file.write(b"one\n", false).unwrap();
        assert_eq!(said("access.log"), "old\none\n");
        file.write(b"two\n", false).unwrap();
        assert_eq!([said("access.log"), said("access.log.1")], ["two\n", "old\none\n"]);
        file.write(b"longer than a file may be\n", false).unwrap();
        assert_eq!(said("access.log.1"), "two\n");
        assert_eq!(said("access.log"), "longer than a file may be\n", "lines are never cut");
        fs::rename(&path, folder.path().join("moved")).unwrap();
        file.write(b"three\n", false).unwrap();
        assert_eq!(said("access.log"), "three\n");
        assert_eq!(said("moved"), "longer than a file may be\n");
        fs::write(&path, "").unwrap();
        file.write(b"four\n", false).unwrap();
        assert_eq!(said("access.log"), "four\n", "others may cut it");
        fs::remove_file(&path).unwrap();
        file.write(b"five\n", false).unwrap();
        assert_eq!(said("access.log"), "five\n");
    }

    /// Bytes at the same place in a page of memory as in one of the file.
    fn placed(phase: usize, bytes: &[u8]) -> (Vec<u8>, usize) {
        let mut memory: Vec<u8> = Vec::with_capacity(bytes.len() + 2 * PAGE);
        let start = memory.as_ptr().align_offset(PAGE) + phase;
        memory.resize(start, 0);
        memory.extend_from_slice(bytes);
        (memory, start)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_byte_is_there_once_whichever_way_it_went(
            writes in prop::collection::vec((0..300_000_usize, 0..3_u8), 1..8),
        ) {
            // Beside the build, as the folder of temporary files may be memory, which knows only its cache.
            let built = std::env::current_exe().unwrap();
            let folder = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
            let path = folder.path().join("access.log");
            let mut file = Rolling::open(&path, u64::MAX).unwrap();
            let mut all = Vec::new();
            for (number, (length, kind)) in writes.into_iter().enumerate() {
                let lines: Vec<u8> = (0..=250).cycle().skip(number).take(length).collect();
                if kind == 0 {
                    // Somebody else adds to it: the next lines are elsewhere in a page than was thought.
                    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"other").unwrap();
                    all.extend_from_slice(b"other");
                }
                let (memory, start) = placed(file.phase(), &lines);
                file.write(&memory[start..], kind == 1).unwrap();
                all.extend_from_slice(&lines);
                prop_assert!(fs::read(&path).unwrap() == all, "after the write {number}");
            }
        }
    }
}
