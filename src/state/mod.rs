//! Durable records: an append-only log of what was decided, and its projection for questions.
//!
//! The log is the truth: one file, hash-chained, synced before anybody is told that a record is kept. Every byte of it
//! is verified when it is opened, and one that was changed is found with its place. `SQLite` is a projection of it that
//! may be deleted at any time. Always true:
//! - An acknowledged record survives the process and the machine, or its loss is noticed when the log is opened.
//! - What a process that died had not acknowledged is there as a whole append or not at all.
//! - A full or failing disk costs an error, never the log; nothing needs a restart once it works again.
//! - One process writes to a folder. Readers and backups need no lock and disturb nobody.
//!
//! The log is a single file, bounded by [`Settings::log_bytes_max`]: it is not rotated.
//!
//! In reading order: `record` is what is kept, `frame` how it lies in the file, `log` reads, `writer` writes,
//! `projection` answers questions, `archive` saves and restores, `disk` is what can fail.
//!
//! Not here: what records mean. Kinds and bodies belong to the rooms that record; nothing on the path of a prediction
//! asks this room anything.

mod archive;
mod disk;
mod error;
mod frame;
mod log;
mod projection;
mod record;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

pub use archive::{Restored, backup, restore};
pub use error::{Damage, Note, StateError};
pub use log::{Head, Verified, read, verify, verify_bytes};
pub use record::{Filter, Hash, NewRecord, Receipt, Record};

use disk::{Disk, LogFile, Machine};
use log::{HEADER, LOG, scan};
use projection::Projection;
use writer::{Job, Shared, Writer};

/// Whoever has the folder holds a lock on this file in it.
const LOCK: &str = "lock";

/// Appends that may wait in line; further ones wait to get in.
const WAITING_MAX: usize = 1024;

/// Where records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The folder; made if it is not there, closed to everybody but its owner.
    pub path: PathBuf,
    /// The largest log in bytes; a record that does not fit is refused.
    pub log_bytes_max: u64,
    /// How long after a failed sync the log is verified and opened again, and after trouble with the projection that
    /// is made again; by the times that records carry.
    pub reopen_after: Duration,
}

/// Keeps records. Clones are handles to the same log.
#[derive(Debug, Clone)]
pub struct State {
    inner: Arc<Inner>,
}

/// What was found when the state was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Where the log ends.
    pub head: Head,
    /// What was put right.
    pub notes: Vec<Note>,
}

#[derive(Debug)]
struct Inner {
    log: PathBuf,
    shared: Arc<Shared>,
    /// `None` once the last handle goes.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Held until the writer has ended.
    _lock: File,
}

impl State {
    /// Opens a state folder, or makes one: verifies the log, cuts off what was never acknowledged, brings the
    /// projection up to it.
    pub fn open(settings: Settings) -> Result<(Self, Opened), StateError> {
        Self::open_on(Arc::new(Machine), settings)
    }

    fn open_on(disk: Arc<dyn Disk>, settings: Settings) -> Result<(Self, Opened), StateError> {
        let Settings { path: folder, log_bytes_max, reopen_after } = settings;
        make_folder(&folder)?;
        let lock = lock(&folder)?;
        let path = folder.join(LOG);
        let applied = projection::applied(&folder).filter(|applied| applied.sequence > 0);
        let file = open_or_make(&*disk, &folder, &path, applied)?;

        let mut agrees = applied.is_none();
        let reading = scan(&path, Head::start(), None, &mut |entry| {
            agrees |= Some(entry.head) == applied;
            Ok(())
        })?;
        let head = reading.head;
        if let Some(applied) = applied.filter(|applied| applied.sequence > head.sequence) {
            let (log, projected) = (head.sequence, applied.sequence);
            return Err(StateError::Behind { path, log, projected });
        }
        let mut notes = Vec::new();
        if reading.tail_bytes > 0 {
            file.truncate(head.bytes).map_err(|error| StateError::io("cut off", &path, error))?;
            notes.push(Note::TornTail { bytes: reading.tail_bytes });
        }
        // The process before may have ended between writing and syncing.
        file.sync().map_err(|error| StateError::io("sync", &path, error))?;

        let distrust = (!agrees).then_some("it held other records than the log");
        let (projection, anew) = Projection::open(&folder, &path, head, distrust);
        notes.extend(match (projection.trouble().map(str::to_owned), anew) {
            (Some(why), _) => Some(Note::NoProjection { why }),
            (None, why) => why.map(|why| Note::Rebuilt { why }),
        });
        let shared = Arc::new(Shared::new(head, projection));
        let log = path.clone();
        let writer = Writer {
            disk,
            path,
            file,
            shared: Arc::clone(&shared),
            log_bytes_max,
            reopen_after,
            seal: None,
        };
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let thread = thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                // Below what answers requests: a decision can wait a moment for the projection, they cannot. Where it
                // fails, the thread is only less polite.
                let _ = rustix::process::nice(5);
                writer.run(&waiting);
            })
            .map_err(|error| StateError::io("start a thread for", &log, error))?;
        let inner = Inner { log, shared, jobs: Some(jobs), thread: Some(thread), _lock: lock };
        Ok((Self { inner: Arc::new(inner) }, Opened { head, notes }))
    }

    /// Keeps a record; returns when it is on the disk.
    pub fn append(&self, record: NewRecord) -> Result<Receipt, StateError> {
        let receipts = self.append_many(vec![record])?;
        receipts.into_iter().next().ok_or(StateError::Closed)
    }

    /// Keeps records that belong together: all of them, one behind the other, or none, whatever happens.
    pub fn append_many(&self, records: Vec<NewRecord>) -> Result<Vec<Receipt>, StateError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = sync_channel(1);
        let jobs = self.inner.jobs.as_ref().ok_or(StateError::Closed)?;
        jobs.send(Job { records, reply }).map_err(|_| StateError::Closed)?;
        answer.recv().map_err(|_| StateError::Closed)?
    }

    /// The end of what was acknowledged, from memory.
    pub fn head(&self) -> Head {
        self.inner.shared.head()
    }

    /// Records that were acknowledged before this call, from the projection, or from the log where that cannot be used.
    /// Reads the disk: not for the path of a prediction.
    pub fn records(&self, filter: &Filter) -> Result<Vec<Record>, StateError> {
        let head = self.head();
        let mut projection =
            self.inner.shared.projection.lock().unwrap_or_else(PoisonError::into_inner);
        projection.records(filter, head)
    }

    /// Why questions are answered by the log instead of the projection, if they are.
    pub fn projection_trouble(&self) -> Option<String> {
        let projection =
            self.inner.shared.projection.lock().unwrap_or_else(PoisonError::into_inner);
        projection.trouble().map(str::to_owned)
    }

    /// Gives every record from the first to the last, verified again: what a room makes its memory from.
    pub fn replay(&self, mut visit: impl FnMut(Record)) -> Result<Head, StateError> {
        let until = Some(self.head().bytes);
        let reading = scan(&self.inner.log, Head::start(), until, &mut |entry| {
            visit(entry.record);
            Ok(())
        })?;
        Ok(reading.head)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed already
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: "./state".into(),
            log_bytes_max: 1 << 30,
            reopen_after: Duration::from_secs(1),
        }
    }
}

/// Makes a folder for its owner alone, durable in its parent.
fn make_folder(path: &Path) -> Result<(), StateError> {
    if path.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path).and_then(|()| {
        let parent = fs::canonicalize(path)?.parent().map(Path::to_owned);
        parent.map_or(Ok(()), |parent| Machine.sync_folder(&parent))
    });
    made.map_err(|error| StateError::io("make the folder", path, error))
}

/// A process that was killed may leave one that it was just starting, which holds the folder until it has read its own
/// program: long enough for that, and short for whoever started tidegate twice.
const LOCK_ATTEMPTS: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Takes the folder for this process, for as long as the file is open.
fn lock(folder: &Path) -> Result<File, StateError> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| StateError::io("open", &path, error))?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(StateError::io("lock", &path, error)),
        }
    }
    Err(StateError::Locked(folder.to_owned()))
}

/// Opens the log; one that is new gets its name only once its header is on the disk.
fn open_or_make(
    disk: &dyn Disk,
    folder: &Path,
    path: &Path,
    applied: Option<Head>,
) -> Result<Box<dyn LogFile>, StateError> {
    if !path.try_exists().map_err(|error| StateError::io("look for", path, error))? {
        if let Some(applied) = applied {
            let (path, projected) = (path.to_owned(), applied.sequence);
            return Err(StateError::Behind { path, log: 0, projected });
        }
        let new = folder.join(format!("{LOG}.new"));
        let make = || {
            let file = disk.create(&new)?;
            file.write_all_at(HEADER, 0)?;
            file.sync()?;
            disk.rename(&new, path)?;
            disk.sync_folder(folder)
        };
        make().map_err(|error| StateError::io("make", path, error))?;
    }
    disk.open(path).map_err(|error| StateError::io("open", path, error))
}
