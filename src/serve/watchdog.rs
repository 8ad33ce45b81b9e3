//! Watches every run: ends it at its deadline, when nobody waits for it any more, or when its version must go, and
//! tells which worker does not come back.
//!
//! Each worker notes what it runs in a [`Watch`] of its own, in plain stores; one thread looks at all of them every few
//! milliseconds, and sleeps once nothing has run for a while. Always true:
//! - A run that has ended is never taken for the next one (`engine::Leash`).
//! - A worker is given up once; from then on it records nothing, and whoever takes its place has a watch of its own.
//! - The clients of a worker that was given up see their connections end.
//!
//! Not here: starting the worker that takes the place (`edge`).

use std::{
    collections::HashSet,
    os::fd::RawFd,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Serving, Version};
use crate::{
    engine::{self, Bell, Generation, Leash},
    model::ModelName,
    monitor::{Clock, WorkerId},
};

/// The pause between two looks.
const TICK: Duration = Duration::from_millis(10);

/// After so many looks at which nothing ran it sleeps: whoever runs next has to wake it, which costs more than the run
/// of a small model.
const QUIET_LOOKS: u32 = 100;

/// From when on a run is long enough to ask whether its client still waits.
const LONG: Duration = Duration::from_millis(50);

/// Longest run that an unload waits for.
const LEAVING: Duration = Duration::from_secs(2);

/// Longest time that a worker's place stands empty before the process counts as ill.
const VACANT_MAX: Duration = Duration::from_secs(10);

/// A worker's run, as the watchdog sees it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Watch {
    worker: WorkerId,
    /// Workers that had this number before.
    before: u64,
    pub(super) leash: Leash,
    /// Arrival of the run's request, in nanoseconds since the watchdog's begin.
    arrived: AtomicU64,
    /// Deadline of the run, in nanoseconds since the watchdog's begin.
    deadline: AtomicU64,
    /// Serial number of the version that runs.
    version: AtomicU64,
    /// The socket of the client that waits for it; -1 if it is not known.
    client: AtomicI32,
    /// A [`Reason`], once the run was told to end.
    reason: AtomicU8,
    /// True if a run goes on although it was told to end.
    overdue: AtomicBool,
    /// Connections that the worker has opened and not closed.
    open: AtomicUsize,
    /// The sockets of the worker's clients, also those on their way to it.
    sockets: Mutex<HashSet<RawFd>>,
    /// Told when it is given up, where it is no worker's: then nobody takes its place.
    alone: Option<OnLoss>,
}

/// Keeps a socket on its worker's list; to be dropped before the socket is closed.
#[derive(Debug)]
pub struct Listed {
    watch: Arc<Watch>,
    socket: RawFd,
}

/// A reason to end a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    /// Its deadline has passed.
    Deadline = 1,
    /// Its client has gone.
    Gone = 2,
    /// Its version must go.
    Leaving = 3,
    /// The process must end.
    Stopping = 4,
}

/// Ends runs that must not go on, and tells of workers that do not come back.
#[derive(Debug)]
pub struct Watchdog {
    bell: Arc<Bell>,
    /// Watches that it has not met yet.
    new: Mutex<Vec<Weak<Watch>>>,
    clock: Arc<dyn Clock>,
    begin: Instant,
    /// Longest time that a run goes on after it was told to end.
    stuck_after: Duration,
    /// Versions that left the table and are still held by somebody.
    retired: Mutex<Vec<Retired>>,
    /// True if all runs must end.
    ending: AtomicBool,
    /// Workers that were given up and have not come back since.
    stuck: AtomicUsize,
    /// Watches so far, by the number of their worker.
    watches: Mutex<Vec<u64>>,
    /// Places of workers that were given up and that nobody has taken yet.
    vacant: AtomicUsize,
    /// The moment the last of them became empty, in nanoseconds since `begin`.
    vacant_since: AtomicU64,
    /// Told of a worker that is given up.
    on_loss: OnceLock<OnLoss>,
}

/// A version that left the table.
#[derive(Debug)]
struct Retired {
    /// Never upgraded: whoever frees a version must be the last that holds it.
    version: Weak<Version>,
    serial: u64,
    model: ModelName,
    /// True if its runs must end.
    must_end: bool,
}

struct OnLoss(Box<dyn Fn(WorkerId) + Send + Sync>);

impl std::fmt::Debug for OnLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnLoss")
    }
}

/// The watchdog's thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Watching {
    serving: Arc<Serving>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        self.serving.watchdog().bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by itself.
            let _ = thread.join();
        }
    }
}

/// A worker's run, as the watchdog remembers it between two looks.
struct Seen {
    run: Generation,
    since: Instant,
    /// The moment it was told to end.
    told: Option<Instant>,
}

impl Watchdog {
    pub(super) fn new(clock: Arc<dyn Clock>, begin: Instant, stuck_after: Duration) -> Self {
        Self {
            bell: Arc::default(),
            new: Mutex::default(),
            clock,
            begin,
            stuck_after,
            retired: Mutex::default(),
            ending: AtomicBool::new(false),
            stuck: AtomicUsize::new(0),
            watches: Mutex::default(),
            vacant: AtomicUsize::new(0),
            vacant_since: AtomicU64::new(0),
            on_loss: OnceLock::new(),
        }
    }

    /// A watch for a worker, also for one that takes the place of another.
    pub fn watch(&self, worker: WorkerId) -> Arc<Watch> {
        let mut watches = lock(&self.watches);
        if watches.len() <= worker.0 {
            watches.resize(worker.0 + 1, 0);
        }
        let before = watches[worker.0];
        watches[worker.0] += 1;
        drop(watches);
        self.watch_as(worker, before, None)
    }

    /// A watch for a thread that is no worker; `told` is called when a run of it is given up, after which it may come
    /// back.
    pub(super) fn watch_alone(&self, told: impl Fn() + Send + Sync + 'static) -> Arc<Watch> {
        let told = OnLoss(Box::new(move |_| told()));
        self.watch_as(WorkerId(usize::MAX), 0, Some(told))
    }

    fn watch_as(&self, worker: WorkerId, before: u64, alone: Option<OnLoss>) -> Arc<Watch> {
        let watch = Arc::new(Watch {
            worker,
            before,
            arrived: AtomicU64::new(0),
            leash: Leash::new(Arc::clone(&self.bell)),
            deadline: AtomicU64::new(0),
            version: AtomicU64::new(0),
            client: AtomicI32::new(-1),
            reason: AtomicU8::new(0),
            overdue: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            sockets: Mutex::default(),
            alone,
        });
        lock(&self.new).push(Arc::downgrade(&watch));
        watch
    }

    /// Says who is told of workers that are given up; the first to say so is.
    pub fn on_loss(&self, told: impl Fn(WorkerId) + Send + Sync + 'static) {
        // There is one listener.
        let _ = self.on_loss.set(OnLoss(Box::new(told)));
    }

    /// Takes note of a version that left the table, until it is freed.
    pub fn retire(&self, version: &Arc<Version>) {
        let mut retired = lock(&self.retired);
        retired.retain(|retired| retired.version.strong_count() > 0);
        retired.push(Retired {
            version: Arc::downgrade(version),
            serial: version.serial(),
            model: version.parts().model.clone(),
            must_end: false,
        });
    }

    /// Ends the runs of a model's versions that left the table, once they have taken too long to be waited for.
    pub fn end_runs(&self, model: &ModelName) {
        for retired in lock(&self.retired).iter_mut().filter(|retired| retired.model == *model) {
            retired.must_end = true;
        }
    }

    /// Ends every run, those that go on and those that begin: the process is about to end.
    pub fn end_all(&self) {
        self.ending.store(true, SeqCst);
        self.bell.ring();
    }

    /// A reason to start the process anew, if there is one: one stuck run is no reason, most of the workers are.
    pub fn ailment(&self) -> Option<String> {
        let (stuck, workers) = (self.stuck.load(Relaxed), lock(&self.watches).len());
        if stuck > workers / 2 {
            return Some(format!(
                "{stuck} threads do not come back from a model's run, where {workers} workers serve; start the server anew, \
                 and unload the model that the log names"
            ));
        }
        let since = self.vacant_since.load(Relaxed);
        let waited = Duration::from_nanos(self.nanoseconds(self.clock.now()).saturating_sub(since));
        (self.vacant.load(Relaxed) > 0 && waited > VACANT_MAX).then(|| {
            "no worker could take the place of one that is stuck; start the server anew, with more threads or memory"
                .to_owned()
        })
    }

    /// A worker took the place of one that was given up.
    pub(super) fn replaced(&self) {
        self.vacant.fetch_sub(1, Relaxed);
    }

    /// Notes that a thread came back after it was given up.
    pub(super) fn came_back(&self, watch: &Watch) {
        if watch.alone.is_none() {
            self.stuck.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn nanoseconds(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.begin).as_nanos();
        u64::try_from(since).unwrap_or(u64::MAX)
    }

    /// Watches on a thread of its own as long as the value returned lives.
    pub fn start(serving: &Arc<Serving>) -> std::io::Result<Watching> {
        let stop = Arc::new(AtomicBool::new(false));
        let (watched, stopped) = (Arc::clone(serving), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watched.watchdog().run(&stopped))?;
        Ok(Watching { serving: Arc::clone(serving), stop, thread: Some(thread) })
    }

    /// Watches until `stop` is true; the calling thread does nothing else. Ring after `stop` was set.
    fn run(&self, stop: &AtomicBool) {
        let (mut flock, mut quiet) = (Vec::new(), 0);
        while !stop.load(SeqCst) {
            quiet = if self.look(&mut flock) { 0 } else { quiet + 1 };
            if quiet < QUIET_LOOKS {
                std::thread::sleep(TICK);
            } else {
                self.bell.sleep_unless(|| self.look(&mut flock) || stop.load(SeqCst));
                quiet = 0;
            }
        }
    }

    /// Looks at every watch once; true if anything runs.
    fn look(&self, flock: &mut Vec<(Weak<Watch>, Option<Seen>)>) -> bool {
        flock.extend(lock(&self.new).drain(..).map(|watch| (watch, None)));
        let now = self.clock.now();
        let mut any = false;
        flock.retain_mut(|(watch, seen)| {
            let Some(watch) = watch.upgrade() else { return false };
            any |= self.look_at(&watch, seen, now);
            true
        });
        any
    }

    /// True if a run goes on that may have to be ended.
    fn look_at(&self, watch: &Watch, seen: &mut Option<Seen>, now: Instant) -> bool {
        let run = watch.leash.running();
        if let Some(before) = seen
            && run != Some(before.run)
        {
            if before.told.is_some() {
                watch.overdue.store(false, Relaxed);
            }
            *seen = None;
        }
        let Some(run) = run else { return false };
        let seen = seen.get_or_insert(Seen { run, since: now, told: None });
        if watch.is_lost() {
            return false;
        }
        self.judge(watch, seen, now);
        true
    }

    fn judge(&self, watch: &Watch, seen: &mut Seen, now: Instant) {
        match seen.told {
            None => {
                let Some(reason) = self.reason(watch, seen, now) else { return };
                // Only read by a worker whose run was ended, so a run that has just begun is not taken for it.
                watch.reason.store(reason as u8, Relaxed);
                if watch.leash.pull(seen.run) {
                    seen.told = Some(now);
                }
            }
            Some(told) => {
                // Listeners pass it over from now on.
                watch.overdue.store(true, Relaxed);
                let waited = now.saturating_duration_since(told);
                if waited >= self.stuck_after {
                    self.give_up(watch, seen.run);
                }
            }
        }
    }

    fn reason(&self, watch: &Watch, seen: &Seen, now: Instant) -> Option<Reason> {
        if self.nanoseconds(now) >= watch.deadline.load(Relaxed) {
            return Some(Reason::Deadline);
        }
        let took = now.saturating_duration_since(seen.since);
        if self.ending.load(Relaxed) {
            return Some(Reason::Stopping);
        }
        if took >= LEAVING && self.must_end(watch.version()) {
            return Some(Reason::Leaving);
        }
        // Only this worker closes the socket, and it is in a run.
        (took >= LONG && engine::peer_is_gone(watch.client.load(Relaxed))).then_some(Reason::Gone)
    }

    /// True if a version's runs must end; a lock, but only for what is long in a run.
    fn must_end(&self, serial: u64) -> bool {
        lock(&self.retired).iter().any(|retired| retired.must_end && retired.serial == serial)
    }

    fn give_up(&self, watch: &Watch, run: Generation) {
        if let Some(OnLoss(told)) = &watch.alone {
            if watch.leash.abandon(run) {
                told(watch.worker);
            }
            return;
        }
        // Before the worker can learn of it and come back.
        self.stuck.fetch_add(1, Relaxed);
        if !watch.leash.abandon(run) {
            // It has come back in this very moment.
            self.stuck.fetch_sub(1, Relaxed);
            return;
        }
        self.vacant_since.store(self.nanoseconds(self.clock.now()), Relaxed);
        self.vacant.fetch_add(1, Relaxed);
        watch.shut_down();
        if let Some(OnLoss(told)) = self.on_loss.get() {
            told(watch.worker);
        }
    }
}

impl Watch {
    /// The worker that runs under it.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Workers that had its worker's number before.
    pub fn before(&self) -> u64 {
        self.before
    }

    /// True if its worker was given up: whatever it does is done by another from now on.
    pub fn is_lost(&self) -> bool {
        self.leash.is_abandoned()
    }

    /// True if its worker should be given nothing new.
    pub fn is_overdue(&self) -> bool {
        self.overdue.load(Relaxed)
    }

    /// Puts a socket on the list of those that end with the worker.
    pub fn list(self: &Arc<Self>, socket: RawFd) -> Listed {
        lock(&self.sockets).insert(socket);
        Listed { watch: Arc::clone(self), socket }
    }

    /// Counts a connection that its worker opened.
    pub fn opened(&self) {
        self.open.fetch_add(1, Relaxed);
    }

    /// Counts a connection that its worker closed.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Connections that its worker has open.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Ends the connections of all sockets on the list.
    pub fn shut_down(&self) {
        for socket in &*lock(&self.sockets) {
            engine::shut_down(*socket);
        }
    }

    /// Serial number of the version that it runs, or ran last.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// Arrival of its last run's request, in nanoseconds since the watchdog's begin.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Relaxed)
    }

    /// Notes what the next run is.
    pub(super) fn note(&self, arrived: u64, deadline: u64, version: u64, client: Option<RawFd>) {
        self.arrived.store(arrived, Relaxed);
        self.deadline.store(deadline, Relaxed);
        self.version.store(version, Relaxed);
        self.client.store(client.unwrap_or(-1), Relaxed);
        self.reason.store(0, Relaxed);
    }

    /// The reason to end the last run, if it was told to.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self.reason.load(Relaxed) {
            1 => Some(Reason::Deadline),
            2 => Some(Reason::Gone),
            3 => Some(Reason::Leaving),
            4 => Some(Reason::Stopping),
            _ => None,
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.watch.sockets).remove(&self.socket);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
