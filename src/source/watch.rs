//! Notices that a repository may have changed, and tells its owner.
//!
//! Two ears: file events, and a look at every poll interval whatever the events say. Mounted volumes lose
//! events, watches run out, folders are replaced: polling hears all of that later, but surely. Always true:
//! - While the watcher lives, its owner is told at least once per poll interval, and whether there is a sign of a
//!   change. No error ends it.
//! - A burst of events is one call; calls never overlap and are at least [`QUIET`] apart.
//! - Dropping the watcher ends its thread, after the call that may be running.
//!
//! Not here: what changed; that is for [`Folder::list`](super::Folder::list) and its fingerprints.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use notify::{
    Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};

/// Watches a repository until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// A reason to look at the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchCause {
    /// A file event came, or none can come.
    Change,
    /// The poll interval is over, without a file event in it.
    Poll,
}

/// The watcher's thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the repository's watcher could not be started")]
pub struct WatchError(#[source] io::Error);

/// A call waits until no event came for so long.
const QUIET: Duration = Duration::from_millis(100);
/// But after so many times `QUIET`, it comes in the midst of events.
const QUIET_TRIES: usize = 10;
/// Polling more often would be a busy loop.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// So many polls pass before file events are tried again after they failed.
const POLLS_BEFORE_RETRY: u32 = 12;

impl Watcher {
    /// Starts to watch; `on_change` is called from a thread of its own, at once for the first time.
    ///
    /// The root need not be there yet.
    pub fn start(
        root: impl Into<PathBuf>,
        poll_interval: Duration,
        on_change: impl Fn(WatchCause) + Send + 'static,
    ) -> Result<Self, WatchError> {
        let bell = Arc::new(Bell::default());
        let mut ears = Ears::new(root.into(), Arc::clone(&bell));
        let poll_interval = poll_interval.max(POLL_INTERVAL_MIN);
        let thread = thread::Builder::new()
            .name("repository-watch".to_owned())
            .spawn(move || {
                let mut listen = || ears.listen(poll_interval, &on_change);
                while catch_unwind(AssertUnwindSafe(&mut listen)).is_err() {
                    tracing::error!("watching the repository ended in a panic; it begins anew");
                    thread::sleep(POLL_INTERVAL_MIN);
                }
            })
            .map_err(WatchError)?;
        Ok(Self { bell, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.bell.ring(|rung| rung.stop = true);
        if let Some(thread) = self.thread.take()
            // Dropped from within `on_change`: the thread ends when that returns.
            && thread.thread().id() != thread::current().id()
        {
            // It catches what `on_change` throws, so there is nothing to hear of here.
            let _ = thread.join();
        }
    }
}

/// What wakes the watcher's thread.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<Rung>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Rung {
    stop: bool,
    changed: bool,
    /// File events no longer come, and why.
    deaf: Option<String>,
}

impl Bell {
    fn ring(&self, how: impl FnOnce(&mut Rung)) {
        how(&mut self.lock());
        self.wake.notify_all();
    }

    /// Waits until something is heard, `time` is over, or the watcher is dropped.
    fn wait(&self, time: Duration) -> MutexGuard<'_, Rung> {
        let waited = self.wake.wait_timeout_while(self.lock(), time, |rung| {
            !rung.stop && !rung.changed && rung.deaf.is_none()
        });
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own: the file events, and which folder they are of.
struct Ears {
    root: PathBuf,
    bell: Arc<Bell>,
    events: Option<(RecommendedWatcher, Identity)>,
    polls_before_retry: u32,
    /// Warn once for each time the events fail.
    warned: bool,
}

/// Device and inode: a folder that was replaced is another one.
type Identity = (u64, u64);

impl Ears {
    fn new(root: PathBuf, bell: Arc<Bell>) -> Self {
        Self { root, bell, events: None, polls_before_retry: 0, warned: false }
    }

    fn listen(&mut self, poll_interval: Duration, on_change: &dyn Fn(WatchCause)) {
        let mut heard = true;
        loop {
            let was = self.events.as_ref().map(|(_, of)| *of);
            self.open();
            let of = self.events.as_ref().map(|(_, of)| *of);
            let is_quiet = !heard && of.is_some() && of == was;
            let cause = if is_quiet { WatchCause::Poll } else { WatchCause::Change };
            // A repository is only partly known if its reader fails; the next change may mend it.
            if catch_unwind(AssertUnwindSafe(|| on_change(cause))).is_err() {
                tracing::error!("looking at the repository failed; it is tried again");
            }
            let rung = self.bell.wait(poll_interval);
            if rung.stop {
                return;
            }
            heard = rung.changed;
            drop(rung);
            if heard && !self.settle() {
                return;
            }
        }
    }

    /// Waits until the events pause; `false` if the watcher is dropped meanwhile.
    fn settle(&self) -> bool {
        for _ in 0..QUIET_TRIES {
            self.bell.lock().changed = false;
            let deadline =
                self.bell.wake.wait_timeout_while(self.bell.lock(), QUIET, |rung| !rung.stop);
            let rung = deadline.unwrap_or_else(PoisonError::into_inner).0;
            if rung.stop {
                return false;
            }
            if !rung.changed {
                return true;
            }
        }
        self.bell.lock().changed = false;
        true
    }

    /// Makes sure that file events come, of the folder that is there now.
    fn open(&mut self) {
        let deaf = self.bell.lock().deaf.take();
        if let Some(reason) = deaf {
            self.polls_before_retry = POLLS_BEFORE_RETRY;
            self.close(&reason);
        }
        let identity = match identity(&self.root) {
            Ok(identity) => identity,
            Err(error) => return self.close(&error.to_string()),
        };
        if self.events.as_ref().is_some_and(|(_, of)| *of == identity) {
            return;
        }
        self.events = None;
        if self.polls_before_retry > 0 {
            self.polls_before_retry -= 1;
            return;
        }
        match self.watch() {
            Ok(watcher) => {
                self.events = Some((watcher, identity));
                self.warned = false;
            }
            Err(error) => {
                self.polls_before_retry = POLLS_BEFORE_RETRY;
                self.close(&error.to_string());
            }
        }
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let bell = Arc::clone(&self.bell);
        // A link in the repository may lead anywhere: what lies behind it is polled, not watched.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(
            move |event: notify::Result<Event>| match event {
                Ok(event) if is_change(&event) => bell.ring(|rung| rung.changed = true),
                Ok(_) => {}
                // Something came and went before it could be watched.
                Err(error) if is_gone(&error) => bell.ring(|rung| rung.changed = true),
                Err(error) => bell.ring(|rung| rung.deaf = Some(error.to_string())),
            },
            config,
        )?;
        watcher.watch(&fs::canonicalize(&self.root)?, RecursiveMode::Recursive)?;
        Ok(watcher)
    }

    fn close(&mut self, reason: &str) {
        self.events = None;
        if !self.warned {
            self.warned = true;
            tracing::warn!(
                root = %self.root.display(),
                reason,
                "no file events from the repository; it is polled"
            );
        }
    }
}

/// Whether an event may mean other contents: reading alone must not wake the reader again.
fn is_change(event: &Event) -> bool {
    event.need_rescan()
        || match event.kind {
            EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
            _ => true,
        }
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

fn identity(root: &Path) -> io::Result<Identity> {
    let metadata = fs::metadata(root)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

    use super::*;

    const LONG: Duration = Duration::from_hours(1);
    /// Longer than any of this takes, however busy the machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn watch(root: &Path, poll_interval: Duration) -> (Watcher, Receiver<()>) {
        let (sender, calls) = mpsc::channel();
        let watcher = Watcher::start(root, poll_interval, move |_| {
            let _ = sender.send(());
        })
        .unwrap();
        (watcher, calls)
    }

    /// Changes something until the watcher says so: what was just created is watched a moment later only.
    fn heard(calls: &Receiver<()>, mut change: impl FnMut()) -> bool {
        calls.try_iter().for_each(drop);
        (0..30).any(|_| {
            change();
            calls.recv_timeout(Duration::from_secs(1)).is_ok()
        })
    }

    #[test]
    fn file_events_are_heard_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let (_watcher, calls) = watch(root.path(), LONG);
        calls.recv_timeout(PATIENCE).expect("told at the start");
        let version = root.path().join("m/1");
        let file = version.join("model.onnx");
        assert!(heard(&calls, || fs::create_dir_all(&version).unwrap()), "folders");
        assert!(heard(&calls, || fs::write(&file, "x").unwrap()), "files");
        let next = version.join("next");
        let publish = || {
            fs::write(&next, "y").unwrap();
            fs::rename(&next, &file).unwrap();
        };
        assert!(heard(&calls, publish), "moves");
        assert!(heard(&calls, || drop(fs::remove_dir_all(&version))), "removals");
    }

    #[test]
    fn reading_the_repository_is_no_change() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("model.onnx"), "x").unwrap();
        let (sender, calls) = mpsc::channel();
        let file = root.path().join("model.onnx");
        let _watcher = Watcher::start(root.path(), LONG, move |_| {
            fs::read(&file).unwrap();
            let _ = sender.send(());
        });
        calls.recv_timeout(PATIENCE).expect("told at the start");
        // Silence has no event to wait for: ten times the pause after which a call would come.
        assert_eq!(calls.recv_timeout(QUIET * 10), Err(RecvTimeoutError::Timeout));
    }

    #[test]
    fn a_missing_root_is_polled_until_it_comes() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("models");
        let (_watcher, calls) = watch(&root, POLL_INTERVAL_MIN);
        for _ in 0..3 {
            calls.recv_timeout(PATIENCE).expect("told at every poll");
        }
        fs::create_dir(&root).unwrap();
        calls.recv_timeout(PATIENCE).expect("and after it came");
        fs::remove_dir(&root).unwrap();
        for _ in 0..3 {
            calls.recv_timeout(PATIENCE).expect("and after it went");
        }
    }

    #[test]
    fn a_poll_without_an_event_is_told_as_one() {
        let root = tempfile::tempdir().unwrap();
        let (sender, calls) = mpsc::channel();
        let tell = move |cause| {
            let _ = sender.send(cause);
        };
        let _watcher = Watcher::start(root.path(), POLL_INTERVAL_MIN, tell).unwrap();
        let next = || calls.recv_timeout(PATIENCE).expect("told at every poll");
        assert_eq!(next(), WatchCause::Change, "at the start");
        assert_eq!([next(), next()], [WatchCause::Poll; 2]);
        fs::write(root.path().join("x"), "x").unwrap();
        while next() == WatchCause::Poll {}
        fs::remove_dir_all(root.path()).unwrap();
        while next() == WatchCause::Poll {}
        let (first, second) = (next(), next());
        assert_eq!([first, second], [WatchCause::Change; 2], "no event can come");
    }

    #[test]
    fn a_root_that_was_replaced_is_watched_anew() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("models");
        fs::create_dir(&root).unwrap();
        let bell = Arc::new(Bell::default());
        let mut ears = Ears::new(root.clone(), bell);
        ears.open();
        let first = ears.events.as_ref().unwrap().1;
        fs::rename(&root, outer.path().join("old")).unwrap();
        ears.open();
        assert!(ears.events.is_none() && ears.warned);
        fs::create_dir(&root).unwrap();
        ears.open();
        assert!(ears.events.as_ref().is_some_and(|(_, of)| *of != first) && !ears.warned);
    }

    #[test]
    fn a_reader_that_fails_does_not_end_the_watch() {
        let root = tempfile::tempdir().unwrap();
        let (sender, calls) = mpsc::channel();
        let _watcher = Watcher::start(root.path(), POLL_INTERVAL_MIN, move |_| {
            let _ = sender.send(());
            panic!("on purpose");
        });
        for _ in 0..3 {
            calls.recv_timeout(PATIENCE).expect("told in spite of it");
        }
    }

    #[test]
    fn dropping_ends_the_thread() {
        let root = tempfile::tempdir().unwrap();
        let (watcher, calls) = watch(root.path(), LONG);
        drop(watcher);
        let heard = calls.try_iter().count();
        assert!(heard <= 1, "{heard}");
        assert_eq!(calls.recv(), Err(mpsc::RecvError), "its thread is gone with the sender");
    }
}
