//! The thread that moves complete files to a store outside of the machine: the oldest first, each removed here once it
//! is there.
//!
//! The folder is the queue: what a killed process left is uploaded by the next one. A file has a lock while it is
//! uploaded, so that servers that share a folder do not do it twice; one that is uploaded again, as its process was
//! killed before it was removed, replaces its own equal. Not here: the client (`source`).

use std::{
    fmt::Debug,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::monitor::Monitor;

use super::{
    files::{FileError, at, collect, note_columns_of},
    writer::NICE,
};

/// Time between two looks at a folder in which no file was completed by this process.
const LOOK: Duration = Duration::from_mins(1);

/// Time after a failure in which nothing is tried; doubles up to the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// A place outside of the machine that keeps files.
pub trait Store: Debug + Send {
    /// Puts a file there, in place of what has this key, whole or not at all; `/` stands between the key's parts.
    ///
    /// # Errors
    /// With words for the operator, if it is not there.
    fn put(&self, key: &str, file: &Path) -> Result<(), String>;
}

/// Wakes the thread that uploads; once all are dropped, it looks once more and ends.
#[derive(Debug, Clone)]
pub struct Waker(SyncSender<()>);

/// The thread that uploads complete files. It ends by itself once this is dropped.
#[derive(Debug)]
pub struct Uploading {
    waker: Option<Waker>,
    thread: Option<JoinHandle<()>>,
}

struct Uploader {
    store: Box<dyn Store>,
    monitor: Arc<Monitor>,
    root: PathBuf,
    /// Looks that failed since the last one that did not.
    failures: u32,
    /// The time before which nothing is tried.
    rests_until: Instant,
}

/// Why a file is still here.
enum Failure {
    File(FileError),
    Store(String),
}

impl Waker {
    /// Says that a file is complete.
    pub(super) fn wake(&self) {
        match self.0.try_send(()) {
            // Full: it looks already. Gone: a panic has been told.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

impl Uploading {
    /// Starts the thread for the complete files of a folder.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        store: Box<dyn Store>,
        monitor: Arc<Monitor>,
        folder: PathBuf,
    ) -> io::Result<Self> {
        let (waker, woken) = sync_channel(1);
        let told = Arc::clone(&monitor);
        let mut uploader =
            Uploader { store, monitor, root: folder, failures: 0, rests_until: told.clock().now() };
        let run = move || {
            let run = std::panic::AssertUnwindSafe(|| uploader.run(&woken));
            if std::panic::catch_unwind(run).is_err() {
                told.upkeep().broke("the thread that uploads the table of predictions");
            }
        };
        let thread = std::thread::Builder::new().name("uploads".to_owned()).spawn(run)?;
        Ok(Self { waker: Some(Waker(waker)), thread: Some(thread) })
    }

    /// Handle that wakes the thread.
    pub fn waker(&self) -> Option<Waker> {
        self.waker.clone()
    }

    /// Has the thread look once more, and waits until it has.
    pub fn end(mut self) {
        drop(self.waker.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been told already
        }
    }
}

impl Uploader {
    fn run(&mut self, woken: &Receiver<()>) {
        // What answers clients goes first; where that fails, the thread is only less polite.
        let _ = rustix::process::nice(NICE);
        loop {
            self.look();
            loop {
                let rest = self.rests_until.saturating_duration_since(self.now());
                let wait = if rest.is_zero() { LOOK } else { rest };
                if woken.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                    return self.look();
                }
                if self.now() >= self.rests_until {
                    break;
                }
            }
        }
    }

    fn now(&self) -> Instant {
        self.monitor.clock().now()
    }

    /// Uploads what is complete, until the store refuses.
    fn look(&mut self) {
        let mut files = Vec::new();
        let mut problem = match collect(&self.root, 3, &mut files) {
            Ok(()) => None,
            // It is made with the first file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(at(&self.root)(error).to_string()),
        };
        // Their names begin with the time.
        files.sort();
        let sum = files.iter().map(|(.., bytes)| bytes).sum();
        let upkeep = self.monitor.upkeep();
        upkeep.uploads(|it| (it.files, it.bytes) = (files.len() as u64, sum));
        for (_, path, bytes) in files {
            let failure = match self.upload(&path) {
                Ok(is_ours) => {
                    let (files, uploaded) = (u64::from(is_ours), if is_ours { bytes } else { 0 });
                    upkeep.uploads(|it| {
                        (it.files, it.bytes) =
                            (it.files.saturating_sub(1), it.bytes.saturating_sub(bytes));
                        (it.uploaded, it.uploaded_bytes) =
                            (it.uploaded + files, it.uploaded_bytes + uploaded);
                    });
                    continue;
                }
                Err(failure) => failure,
            };
            upkeep.uploads(|it| it.failed += 1);
            match failure {
                // The others can still go.
                Failure::File(error) => problem = Some(error.to_string()),
                Failure::Store(what) => {
                    problem = Some(what);
                    break;
                }
            }
        }
        self.end_look(problem);
    }

    /// Uploads a file and removes it here; false if another process does it.
    fn upload(&self, path: &Path) -> Result<bool, Failure> {
        let refused = |error| Failure::File(at(path)(error));
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(refused(error)),
        };
        // It may have been removed by whoever had the lock before.
        if file.try_lock().is_err() || !path.try_exists().map_err(refused)? {
            return Ok(false);
        }
        let Some(key) = key(&self.root, path) else { return Ok(false) };
        self.store.put(&key, path).map_err(Failure::Store)?;
        note_columns_of(&self.root, path).map_err(Failure::File)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(error)),
            _ => Ok(true),
        }
    }

    /// Says what is wrong once it is and once it is not any more, and chooses when to try again.
    fn end_look(&mut self, problem: Option<String>) {
        let was_well = self.failures == 0;
        // Before it is logged: whoever reads the line finds it at /readyz.
        self.monitor.upkeep().uploads(|it| it.problem.clone_from(&problem));
        if let Some(problem) = problem {
            let doublings = self.failures.min(16);
            let pause = PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
            self.rests_until = self.now() + pause;
            self.failures = self.failures.saturating_add(1);
            if was_well {
                tracing::warn!(
                    problem,
                    "files of predictions are not uploaded; they stay in their folder and are tried again, at least once a minute"
                );
            }
        } else {
            self.failures = 0;
            if !was_well {
                tracing::info!("files of predictions are uploaded again");
            }
        }
    }
}

/// The key of a file: its path below the folder.
fn key(root: &Path, path: &Path) -> Option<String> {
    let parts = path.strip_prefix(root).ok()?.components();
    let parts: Option<Vec<&str>> = parts.map(|part| part.as_os_str().to_str()).collect();
    Some(parts?.join("/"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    use super::*;
    use crate::monitor::Clock;

    /// A clock that stands still.
    #[derive(Debug)]
    struct StoppedClock(Instant);

    impl Clock for StoppedClock {
        fn now(&self) -> Instant {
            self.0
        }

        fn unix(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// A store in memory that refuses as often as it is told to.
    #[derive(Debug, Default, Clone)]
    struct Memory(Arc<Mutex<(u32, Vec<String>)>>);

    impl Store for Memory {
        fn put(&self, key: &str, file: &Path) -> Result<(), String> {
            let content = fs::read_to_string(file).unwrap();
            let mut inner = self.0.lock().unwrap();
            if let Some(less) = inner.0.checked_sub(1) {
                inner.0 = less;
                return Err("the store is down".to_owned());
            }
            inner.1.push(format!("{key}: {content}"));
            Ok(())
        }
    }

    fn uploader(root: &Path, store: &Memory) -> Uploader {
        let monitor = Arc::new(Monitor::new(1, Arc::new(StoppedClock(Instant::now()))));
        let rests_until = monitor.clock().now();
        let (store, root) = (Box::new(store.clone()), root.to_owned());
        Uploader { store, monitor, root, failures: 0, rests_until }
    }

    #[test]
    fn files_go_the_oldest_first_and_stay_until_the_store_has_them() {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in [("b/m/1/2.parquet", "two"), ("a/m/1.parquet", "one")] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
            // Known already; these are no Parquet files.
            let columns = root.path().join(".columns");
            fs::create_dir_all(columns.join("a/m")).unwrap();
            fs::create_dir_all(columns.join("b/m/1")).unwrap();
        }
        let store = Memory::default();
        store.0.lock().unwrap().0 = 1;
        let mut uploader = uploader(root.path(), &store);
        uploader.look();
        let counted = |uploader: &Uploader| {
            let mut found = None;
            uploader.monitor.upkeep().uploads(|it| {
                found = Some((it.files, it.uploaded, it.failed, it.problem.clone()));
            });
            found.unwrap()
        };
        assert_eq!(counted(&uploader), (2, 0, 1, Some("the store is down".to_owned())));
        assert!(uploader.rests_until > uploader.now());
        uploader.look();
        assert_eq!(counted(&uploader), (0, 2, 1, None));
        let stored = store.0.lock().unwrap().1.clone();
        assert_eq!(stored, ["a/m/1.parquet: one", "b/m/1/2.parquet: two"]);
        let mut left = Vec::new();
        collect(root.path(), 3, &mut left).unwrap();
        assert_eq!(left, []);
    }

    /// Notes that a reader of the log finds at the moment of each line.
    struct Reader(Arc<Monitor>, Arc<Mutex<Vec<Vec<String>>>>);

    impl<S: tracing::Subscriber> Layer<S> for Reader {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            self.1.lock().unwrap().push(self.0.upkeep().notes());
        }
    }

    #[test]
    fn who_reads_the_line_of_a_fault_finds_it_in_the_notes() {
        let root = tempfile::tempdir().unwrap();
        let mut uploader = uploader(root.path(), &Memory::default());
        let found = Arc::default();
        let reader = Reader(Arc::clone(&uploader.monitor), Arc::clone(&found));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(reader), || {
            uploader.end_look(Some("the store is down".to_owned()));
            uploader.end_look(None);
            uploader.monitor.upkeep().broke("the thread that uploads");
        });
        let [down, up, broken] = &found.lock().unwrap()[..] else { panic!("one line each") };
        assert!(down[0].contains("not uploaded, 0 wait: the store is down"), "{down:?}");
        assert!(up.is_empty(), "{up:?}");
        assert!(broken[0].contains("the thread that uploads ended in a panic"), "{broken:?}");
    }

    #[test]
    fn a_file_that_another_process_uploads_is_left_to_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("t/m/1.parquet");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "one").unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        let store = Memory::default();
        uploader(root.path(), &store).look();
        assert!(store.0.lock().unwrap().1.is_empty() && path.try_exists().unwrap());
    }
}
