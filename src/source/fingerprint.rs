//! Fingerprints of folders: cheap to take, different after every change, also after half of one.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use sha2::{Digest, Sha256};

/// Stands for names, sizes, times and inodes of the files in a folder, not for their bytes.
///
/// Two equal fingerprints of one folder mean that nothing was written between them, as far as the file
/// system tells. Hidden files do not count.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// Files and folders of one version; more cannot be followed cheaply.
pub(super) const FILES_MAX: usize = 10_000;
/// Folders deeper than this count by their own times only.
const DEPTH_MAX: usize = 8;

pub(super) enum Fault {
    TooManyFiles,
    Io(io::Error),
}

/// How far below the folder files count.
#[derive(Clone, Copy)]
pub(super) enum Extent<'a> {
    /// Files of the folder itself.
    Shallow,
    /// Files of the folders in it too.
    Deep {
        /// True if files are read through a link to a folder: then they count as well.
        is_ours: &'a dyn Fn(&Path) -> bool,
    },
}

/// Takes the fingerprint of a folder; `salt` is whatever else must make a difference.
pub(super) fn take(folder: &Path, extent: Extent<'_>, salt: &[u8]) -> Result<Fingerprint, Fault> {
    let (hash, seen) = (Sha256::new(), BTreeSet::new());
    let mut walk = Walk { hash, extent, files_left: FILES_MAX, seen };
    walk.bytes(salt);
    let own = fs::metadata(folder)?;
    walk.hash.update(own.ino().to_le_bytes());
    walk.seen.insert((own.dev(), own.ino()));
    walk.folder(folder, 0)?;
    Ok(Fingerprint(walk.hash.finalize().into()))
}

impl Fingerprint {
    /// Of content that never changes.
    pub(super) fn of_content(digest: &super::Digest) -> Self {
        Self(*digest.bytes())
    }
}

struct Walk<'a> {
    hash: Sha256,
    extent: Extent<'a>,
    files_left: usize,
    /// Folders that count already, by device and inode: links lead to one folder many times, or in circles.
    seen: BTreeSet<(u64, u64)>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, depth: usize) -> Result<(), Fault> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            self.files_left = self.files_left.checked_sub(1).ok_or(Fault::TooManyFiles)?;
            names.push(name);
        }
        names.sort_unstable();
        for name in names {
            let path = folder.join(&name);
            let own = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // Gone since it was listed: its absence is the fingerprint.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            if own.is_dir() && matches!(self.extent, Extent::Shallow) {
                continue;
            }
            self.bytes(name.as_bytes());
            self.file(&own);
            // What a link leads to counts as well; a link to nowhere is known by itself.
            let target = if own.is_symlink() { fs::metadata(&path).ok() } else { None };
            if let Some(target) = &target {
                self.file(target);
            }
            if depth < DEPTH_MAX && self.counts(&path, &own, target.as_ref()) {
                self.bytes(b"{");
                self.folder(&path, depth + 1)?;
                self.bytes(b"}");
            }
        }
        Ok(())
    }

    /// True if the files in it count: it is a folder, or a link to one of ours that does not count already.
    fn counts(&mut self, path: &Path, own: &Metadata, target: Option<&Metadata>) -> bool {
        let Extent::Deep { is_ours } = self.extent else { return false };
        match target {
            Some(target) if target.is_dir() => {
                is_ours(path) && self.seen.insert((target.dev(), target.ino()))
            }
            None if own.is_dir() => {
                self.seen.insert((own.dev(), own.ino()));
                true
            }
            _ => false,
        }
    }

    fn file(&mut self, metadata: &Metadata) {
        // A folder's size and times change with hidden files too; what is in it speaks for it.
        let (bytes, times) = if metadata.is_dir() {
            (0, [0; 4])
        } else {
            let modified = [metadata.mtime(), metadata.mtime_nsec()];
            let changed = [metadata.ctime(), metadata.ctime_nsec()];
            (metadata.len(), [modified[0], modified[1], changed[0], changed[1]])
        };
        self.hash.update(metadata.ino().to_le_bytes());
        self.hash.update(metadata.mode().to_le_bytes());
        self.hash.update(bytes.to_le_bytes());
        for time in times {
            self.hash.update(time.to_le_bytes());
        }
    }

    /// Length first, so that no two sequences look the same.
    fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(bytes.len().to_le_bytes());
        self.hash.update(bytes);
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The first bytes, enough to tell two apart in a log.
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::FileTimes, os::unix::fs::symlink, time::SystemTime};

    use super::*;

    fn of(folder: &Path) -> Fingerprint {
        let is_ours = |path: &Path| !path.ends_with("foreign");
        take(folder, Extent::Deep { is_ours: &is_ours }, b"")
            .unwrap_or_else(|_| panic!("{}", folder.display()))
    }

    #[test]
    fn every_change_makes_a_difference() {
        let temp = tempfile::tempdir().unwrap();
        let (folder, model) = (temp.path(), temp.path().join("model.onnx"));
        let mut seen = vec![of(folder)];
        let mut check = |what: &str| {
            let now = of(folder);
            assert!(!seen.contains(&now), "{what}");
            assert_eq!(now, of(folder), "{what}, twice");
            seen.push(now);
        };
        fs::write(&model, "half").unwrap();
        check("a new file");
        fs::write(&model, "half and half").unwrap();
        check("more bytes");
        let old = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        fs::File::options().write(true).open(&model).unwrap().set_times(old).unwrap();
        check("another time");
        fs::write(folder.join("next"), "half and half").unwrap();
        fs::File::options().write(true).open(folder.join("next")).unwrap().set_times(old).unwrap();
        fs::rename(folder.join("next"), &model).unwrap();
        check("another file of the same size and time");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        check("a folder");
        fs::write(folder.join("a/b/weights"), "w").unwrap();
        check("a file deep inside");
        fs::write(temp.path().join("a/target"), "t").unwrap();
        check("a target");
        symlink("a/target", folder.join("link")).unwrap();
        check("a link");
        // Hidden, so that only links tell of it, as in a mounted volume.
        fs::create_dir_all(folder.join("..first/data")).unwrap();
        fs::create_dir_all(folder.join("..second/data")).unwrap();
        symlink("..first", folder.join("..data")).unwrap();
        symlink("..data/data", folder.join("data")).unwrap();
        check("a link to a folder");
        fs::write(folder.join("..first/data/weights"), "w").unwrap();
        check("a file behind a link to its folder");
        fs::write(folder.join("..first/data/weights"), "ww").unwrap();
        check("its bytes");
        fs::write(folder.join("..second/data/weights"), "ww").unwrap();
        symlink("..second", folder.join("..next")).unwrap();
        fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
        check("another folder behind a link that stayed");
        symlink("nowhere", folder.join("dangling")).unwrap();
        check("a link to nowhere");
        fs::write(folder.join("nowhere"), "now").unwrap();
        check("its end");
    }

    #[test]
    fn what_lies_behind_links_to_foreign_folders_makes_none() {
        let (temp, foreign) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(foreign.path(), temp.path().join("foreign")).unwrap();
        let before = of(temp.path());
        fs::write(foreign.path().join("file"), "f").unwrap();
        assert_eq!(before, of(temp.path()));
    }

    #[test]
    fn hidden_files_make_none() {
        let temp = tempfile::tempdir().unwrap();
        let before = of(temp.path());
        fs::write(temp.path().join(".model.onnx.part"), "half").unwrap();
        assert_eq!(before, of(temp.path()));
    }

    #[test]
    fn link_loops_end() {
        let outer = tempfile::tempdir().unwrap();
        let temp = tempfile::tempdir_in(outer.path()).unwrap();
        symlink(".", temp.path().join("self")).unwrap();
        symlink("loop", temp.path().join("loop")).unwrap();
        // Without a memory of what was seen, these are more ways than files are counted.
        for name in 0..9 {
            symlink("..", temp.path().join(format!("{name}"))).unwrap();
        }
        assert_eq!(of(temp.path()), of(temp.path()));
    }
}
