//! The content-addressed store: bytes by their SHA-256, in a folder that is ours alone.
//!
//! `<state path>/blobs/ab/cd/<digest>` holds the bytes of that digest. Always true:
//! - A blob appears whole or not at all: it is written aside, synced, renamed, and what names it is synced.
//! - What is read was hashed while it was read. A damaged blob is never given out: it is moved to `damaged/`, so
//!   that the next fetch writes it again.
//! - A blob that was asked for to be put is kept for the grace of [`Store::collect`] from then on, whether it was
//!   written or had been there.
//! - Nothing that was put while a [`Hold`] lives is collected before it is let go: whoever takes one, puts, writes down
//!   what is needed and lets go cannot lose it to a collection that began meanwhile or before.
//! - What a crash left half written is removed when the store is opened; what another process is just writing
//!   is not.
//!
//! Not here: what blobs mean ([`Manifest`](super::Manifest)), which of them are still needed (the caller).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rustix::fs::{AtFlags, OFlags, Timespec, Timestamps, UTIME_NOW};

use super::{
    Digest, content,
    reading::{self, ReadFault},
};

/// A content-addressed store; clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Why the store did not keep or give something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room for more.
    #[error("the disk of the content store is full; make room below `{}`", folder.display())]
    Full {
        /// The store's folder.
        folder: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The system refused.
    #[error(
        "the content store in `{}` cannot be used; check that its folder may be read and written",
        folder.display()
    )]
    Io {
        /// The store's folder.
        folder: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// No such blob.
    #[error("the content store has no bytes of digest {0}; fetch them from the repository again")]
    Missing(Digest),
    /// A blob whose bytes are no longer those that were written.
    #[error(
        "the content store's bytes of digest {0} are damaged and were moved to `damaged`; check the disk, and \
         fetch them from the repository again"
    )]
    Damaged(Digest),
    /// A blob is larger than its reader takes.
    #[error("the bytes of digest {digest} are more than {bytes_max}, the most that is read")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// The limit.
        bytes_max: u64,
    },
    /// A blob does not fit into memory now.
    #[error("there is no memory for the {bytes} bytes of digest {digest}")]
    NoMemory {
        /// The blob.
        digest: Digest,
        /// Its size.
        bytes: u64,
    },
}

/// What [`Store::collect`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs.
    pub blobs: usize,
    /// Their size.
    pub bytes: u64,
}

/// As long as it lives, nothing that was put since it was taken is collected, nor anything that others held then.
#[derive(Debug)]
pub struct Hold {
    store: Store,
}

/// What holds keep from being collected.
#[derive(Debug, Default)]
struct Held {
    /// Holds that live.
    alive: usize,
    /// Blobs that were put since there has been one.
    put: BTreeSet<Digest>,
}

/// Which names a crash would not take back.
#[derive(Debug, Default)]
struct Names {
    /// Folders that are in their parents for good, by their inodes: one may be removed and made again.
    folders: BTreeMap<PathBuf, u64>,
    /// Blobs that have a name which is not for good yet.
    fresh: BTreeSet<Digest>,
}

#[derive(Debug)]
struct Inner {
    /// `<state path>/blobs`.
    folder: PathBuf,
    /// Whoever makes a blob appear or vanish holds it, in this process and, by the file's lock, in others.
    gate: Mutex<File>,
    held: Mutex<Held>,
    names: Mutex<Names>,
    /// Makes names of files that are being written.
    serial: AtomicU64,
}

/// Files that are being written.
const INCOMING: &str = "incoming";
/// Blobs that lost their bytes.
const DAMAGED: &str = "damaged";

impl Store {
    /// Opens the store below the state path, or makes it; removes what a crash left half written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let folder = path.join("blobs");
        let refused = |source| StoreError::of(&folder, source);
        for part in ["", INCOMING, DAMAGED] {
            private_folder(&folder.join(part)).map_err(refused)?;
        }
        let gate = create(&folder.join("gate"), false).map_err(refused)?;
        let inner = Inner {
            folder: folder.clone(),
            gate: Mutex::new(gate),
            held: Mutex::default(),
            names: Mutex::default(),
            serial: AtomicU64::new(0),
        };
        let store = Self { inner: Arc::new(inner) };
        store.remove_leftovers().map_err(refused)?;
        Ok(store)
    }

    /// Keeps these bytes and gives their digest; bytes that are there already are not written again.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        self.put_hashed(bytes, &digest).map_err(|source| self.refused(source))?;
        Ok(digest)
    }

    /// Keeps bytes whose digest the caller computed from these very bytes.
    pub(super) fn put_known(&self, bytes: &[u8], digest: &Digest) -> Result<(), StoreError> {
        self.put_hashed(bytes, digest).map_err(|source| self.refused(source))
    }

    /// Keeps the bytes of a file of at most `bytes_max` bytes without taking them into memory, and hashes them as they
    /// are read; gives the file of the store.
    ///
    /// # Errors
    /// As of a file that is read, and of a store that does not keep it.
    pub(super) fn put_file(
        &self,
        from: &mut File,
        bytes_max: u64,
    ) -> Result<(Digest, File), ReadFault> {
        let refused = |source| ReadFault::Store(self.refused(source).into());
        let length = from.metadata()?.len();
        // One that was kept before is most likely this one: then nothing is written.
        if self.has_blob_of(length).map_err(refused)? {
            let (digest, _) = content::digest(from, None, bytes_max, false)?.map_err(refused)?;
            let is_there = self.keep_again(&digest, length).map_err(refused)?.is_some();
            // What is given out was hashed itself; what is damaged is written again.
            if is_there && let Ok(file) = self.file(&digest, length) {
                return Ok((digest, file));
            }
        }
        let mut incoming = self.incoming().map_err(refused)?;
        let copied = content::digest(from, Some(&mut incoming.file), bytes_max, false)?;
        let (digest, _) = copied.map_err(refused)?;
        let commit = || {
            incoming.file.sync_all()?;
            self.commit(incoming, &self.blob(&digest), &digest)?;
            self.open_blob(&digest)
        };
        Ok((digest, commit().map_err(refused)?))
    }

    /// Keeps a blob that is there from being collected for the grace; gives its file, `None` where it is not there.
    fn keep_again(&self, digest: &Digest, length: u64) -> io::Result<Option<File>> {
        let path = self.blob(digest);
        let gate = self.gate()?;
        if !is_blob(&path, length)? {
            return Ok(None);
        }
        self.held().note(digest);
        touch(&path)?;
        let file = self.open_blob(digest)?;
        drop(gate);
        self.sync_if_fresh(&path, digest)?;
        Ok(Some(file))
    }

    /// Keeps a blob that was put before from being collected for the grace.
    pub(super) fn keep_put(&self, digest: &Digest, length: u64) -> Result<(), StoreError> {
        let kept = self.keep_again(digest, length).map_err(|source| self.refused(source))?;
        kept.map(|_| ()).ok_or(StoreError::Missing(*digest))
    }

    /// Opens the blob of a digest once it was hashed; it is not taken into memory.
    pub(super) fn file(&self, digest: &Digest, bytes_max: u64) -> Result<File, StoreError> {
        let mut file = self.opened(digest)?;
        let metadata = file.metadata().map_err(|source| self.refused(source))?;
        match content::digest(&mut file, None, bytes_max, true) {
            Ok(Ok((found, _))) if found == *digest => return Ok(file),
            Err(ReadFault::TooLarge { bytes_max }) => {
                return Err(StoreError::TooLarge { digest: *digest, bytes_max });
            }
            Err(ReadFault::Io(source)) | Ok(Err(source)) => return Err(self.refused(source)),
            _ => {}
        }
        self.move_aside(digest, metadata.ino()).map_err(|source| self.refused(source))?;
        Err(StoreError::Damaged(*digest))
    }

    fn open_blob(&self, digest: &Digest) -> io::Result<File> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed()).open(self.blob(digest))
    }

    fn opened(&self, digest: &Digest) -> Result<File, StoreError> {
        self.open_blob(digest).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(*digest),
            _ => self.refused(error),
        })
    }

    /// True if some blob has this length.
    fn has_blob_of(&self, length: u64) -> io::Result<bool> {
        // What is just collected is none.
        let there = |error: io::Error| gone(error).map(|()| Vec::new());
        for first in subfolders(&self.inner.folder)? {
            for second in subfolders(&first).or_else(there)? {
                let blobs = match fs::read_dir(second) {
                    Ok(blobs) => blobs,
                    Err(error) => {
                        gone(error)?;
                        continue;
                    }
                };
                let is_it = |blob: io::Result<fs::DirEntry>| {
                    blob.and_then(|blob| blob.metadata()).is_ok_and(|found| found.len() == length)
                };
                if blobs.into_iter().any(is_it) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Reads the bytes of a digest, at most `bytes_max`, and hashes what it read.
    pub fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Bytes, StoreError> {
        let mut file = self.opened(digest)?;
        let metadata = file.metadata().map_err(|source| self.refused(source))?;
        // Its digest tells whether it is right; its time may change, when it is put again meanwhile.
        let bytes = match reading::read_as_it_is(&mut file, bytes_max) {
            Ok(bytes) => Some(bytes),
            Err(ReadFault::TooLarge { bytes_max }) => {
                return Err(StoreError::TooLarge { digest: *digest, bytes_max });
            }
            Err(ReadFault::NoMemory { bytes }) => {
                return Err(StoreError::NoMemory { digest: *digest, bytes });
            }
            Err(ReadFault::Io(source)) => return Err(self.refused(source)),
            // What stands there is no file.
            Err(_) => None,
        };
        if let Some(bytes) = bytes.filter(|bytes| Digest::of(bytes) == *digest) {
            return Ok(bytes.into());
        }
        self.move_aside(digest, metadata.ino()).map_err(|source| self.refused(source))?;
        Err(StoreError::Damaged(*digest))
    }

    /// Keeps what is put from now on from being collected, as long as the hold lives.
    ///
    /// Holds are of this process: of what others put, [`Store::collect`] knows only how old it is.
    pub fn hold(&self) -> Hold {
        self.held().alive += 1;
        Hold { store: self.clone() }
    }

    /// Removes all blobs that are not in `keep`, but none that was put within `grace` or is held.
    ///
    /// Take a hold before `keep` is worked out: what is put from then on is not in it.
    ///
    /// The clock is that of the file system, which also gave the blobs their times.
    pub fn collect(
        &self,
        keep: &BTreeSet<Digest>,
        grace: Duration,
    ) -> Result<Collected, StoreError> {
        self.collect_old(keep, grace).map_err(|source| self.refused(source))
    }

    fn put_hashed(&self, bytes: &[u8], digest: &Digest) -> io::Result<()> {
        let path = self.blob(digest);
        {
            let gate = self.gate()?;
            if is_blob(&path, bytes.len() as u64)? {
                self.held().note(digest);
                touch(&path)?;
                drop(gate);
                return self.sync_if_fresh(&path, digest);
            }
        }
        let mut incoming = self.incoming()?;
        incoming.file.write_all(bytes)?;
        incoming.file.sync_all()?;
        self.commit(incoming, &path, digest)
    }

    /// Gives a file that is completely written its name.
    fn commit(&self, incoming: Incoming, path: &Path, digest: &Digest) -> io::Result<()> {
        let gate = self.gate()?;
        self.held().note(digest);
        for folder in [parent(parent(path)), parent(path)] {
            private_folder(folder)?;
        }
        self.names().fresh.insert(*digest);
        incoming.rename(path)?;
        drop(gate);
        self.sync(path, digest)
    }

    /// Makes a blob's name one that no crash takes back. Not behind the gate: a disk syncs at once what many wait for.
    fn sync(&self, path: &Path, digest: &Digest) -> io::Result<()> {
        let leaf = parent(path);
        sync_folder(leaf)?;
        for folder in [leaf, parent(leaf)] {
            let inode = fs::metadata(folder)?.ino();
            if self.names().folders.get(folder) != Some(&inode) {
                sync_folder(parent(folder))?;
                self.names().folders.insert(folder.to_owned(), inode);
            }
        }
        self.names().fresh.remove(digest);
        Ok(())
    }

    /// The same for a blob that somebody else may just be putting.
    fn sync_if_fresh(&self, path: &Path, digest: &Digest) -> io::Result<()> {
        let is_fresh = self.names().fresh.contains(digest);
        if is_fresh { self.sync(path, digest) } else { Ok(()) }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.inner.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_aside(&self, digest: &Digest, inode: u64) -> io::Result<()> {
        let (_gate, path) = (self.gate()?, self.blob(digest));
        match fs::symlink_metadata(&path) {
            Ok(now) if now.ino() == inode => {
                fs::rename(&path, self.inner.folder.join(DAMAGED).join(digest.to_string()))
            }
            // Written again since, or gone.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn collect_old(&self, keep: &BTreeSet<Digest>, grace: Duration) -> io::Result<Collected> {
        self.remove_leftovers()?;
        let now = self.incoming()?.file.metadata()?.modified()?;
        let mut collected = Collected::default();
        for first in subfolders(&self.inner.folder)? {
            for second in subfolders(&first)? {
                self.collect_folder(&second, Some(keep), (now, grace), &mut collected)?;
                let _gate = self.gate()?;
                // Fails where blobs are left, and that is right.
                let _ = fs::remove_dir(&second);
            }
            let _gate = self.gate()?;
            let _ = fs::remove_dir(&first);
        }
        let damaged = self.inner.folder.join(DAMAGED);
        self.collect_folder(&damaged, None, (now, grace), &mut Collected::default())?;
        Ok(collected)
    }

    fn collect_folder(
        &self,
        folder: &Path,
        keep: Option<&BTreeSet<Digest>>,
        (now, grace): (SystemTime, Duration),
        collected: &mut Collected,
    ) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let digest = entry.file_name().to_str().and_then(Digest::parse);
            // What is not ours stays.
            let Some(digest) = digest else { continue };
            if keep.is_some_and(|keep| keep.contains(&digest)) {
                continue;
            }
            let _gate = self.gate()?;
            if keep.is_some() && self.held().put.contains(&digest) {
                continue;
            }
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if now.duration_since(metadata.modified()?).unwrap_or_default() < grace {
                continue;
            }
            fs::remove_file(entry.path())?;
            collected.blobs += 1;
            collected.bytes = collected.bytes.saturating_add(metadata.len());
        }
        Ok(())
    }

    /// Removes files that nobody is writing any more.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.inner.folder.join(INCOMING))? {
            let path = entry?.path();
            let Ok(file) = File::open(&path) else { continue };
            if file.try_lock().is_ok() {
                fs::remove_file(&path).or_else(gone)?;
            }
        }
        Ok(())
    }

    /// A new file to write to, removed if it is dropped before it is renamed.
    fn incoming(&self) -> io::Result<Incoming> {
        loop {
            let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{serial}", process::id());
            let path = self.inner.folder.join(INCOMING).join(name);
            let file = match create(&path, true) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            file.lock()?;
            // Between those two steps another process may have taken it for a leftover.
            if file.metadata()?.nlink() == 1 {
                return Ok(Incoming { path: Some(path), file });
            }
        }
    }

    fn gate(&self) -> io::Result<Gate<'_>> {
        let file = self.inner.gate.lock().unwrap_or_else(PoisonError::into_inner);
        file.lock()?;
        Ok(Gate { file })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.inner.folder.join(&name[..2]).join(&name[2..4]).join(&name)
    }

    fn refused(&self, source: io::Error) -> StoreError {
        StoreError::of(&self.inner.folder, source)
    }
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn retry_helps(&self) -> bool {
        !matches!(self, Self::TooLarge { .. })
    }

    fn of(folder: &Path, source: io::Error) -> Self {
        let folder = folder.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { folder, source }
            }
            _ => Self::Io { folder, source },
        }
    }
}

impl Held {
    /// A blob was put; to be called with the gate held, so that no collection is between looking and removing.
    fn note(&mut self, digest: &Digest) {
        if self.alive > 0 {
            self.put.insert(*digest);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.store.held();
        held.alive -= 1;
        // Not one hold's own blobs before: a collection that began under another one does not know that they are
        // needed.
        if held.alive == 0 {
            held.put.clear();
        }
    }
}

/// The gate, held.
struct Gate<'a> {
    file: MutexGuard<'a, File>,
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        // It fails only if the lock is not held.
        let _ = self.file.unlock();
    }
}

/// A file that is being written; its lock tells others that it is no leftover.
struct Incoming {
    path: Option<PathBuf>,
    file: File,
}

impl Incoming {
    fn rename(mut self, to: &Path) -> io::Result<()> {
        let from = self.path.as_deref().expect("it is taken only here, with `self`");
        fs::rename(from, to)?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What is left is removed when the store is opened.
            let _ = fs::remove_file(path);
        }
    }
}

/// The folder above a blob or above one of the two folders on the way to it.
fn parent(path: &Path) -> &Path {
    path.parent().expect("it lies in the store's folder")
}

/// Makes sure of a folder that only we may enter.
fn private_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().mode(0o700).recursive(true).create(path)?;
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if fs::metadata(path)?.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn create(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .create_new(new)
        .mode(0o600)
        .open(path)
}

/// A folder on the way to blobs: its name has two digits.
fn subfolders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().len() == 2 && entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_blob(path: &Path, length: u64) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_file() && found.len() == length),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets a blob's time to the file system's now.
fn touch(path: &Path) -> io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests;
