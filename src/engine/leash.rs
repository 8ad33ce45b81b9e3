//! Ending a run from another thread, and nothing but that run.
//!
//! The thread that runs notes a generation and the run's options; whoever ends it claims that generation first, so that
//! the next run with the same options is safe from it. Always true:
//! - The options are touched by another thread only between its claim and its word that it is done, for which the
//!   running thread waits before it lets go of them.
//! - A run is abandoned or has ended, never both: whoever comes second learns of it.
//! - A run that nobody ends pays two atomic operations on a cache line of its own.
//!
//! ONNX Runtime looks at the flag between kernels: a run within one kernel, or of tract, ends when it ends.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicPtr, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, SeqCst},
        },
    },
    thread::Thread,
};

use ort::sys::OrtRunOptions;

/// Holds a run; belongs to one running thread at a time.
#[derive(Debug, Default)]
pub struct Leash {
    /// A generation, and in the lowest three bits where its run stands.
    state: AtomicU64,
    options: AtomicPtr<OrtRunOptions>,
    bell: Arc<Bell>,
}

/// Wakes the thread that looks after leashes, where it sleeps because nothing ran.
#[derive(Debug, Default)]
pub struct Bell {
    sleeper: OnceLock<Thread>,
    is_asleep: AtomicBool,
}

/// A run, told from every other on the same leash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u64);

const PHASES: u64 = 7;
/// Nothing runs.
const IDLE: u64 = 0;
/// A run goes on.
const RUNNING: u64 = 1;
/// Somebody is about to end it.
const ENDING: u64 = 2;
/// It was told to end.
const ENDED: u64 = 3;
/// The run did not end, and nobody waits for it any more.
const ABANDONED: u64 = 4;

impl Bell {
    /// Sleeps until a run begins or [`Bell::ring`] is called, unless `is_awake` sees one; the calling thread is always
    /// the same.
    pub fn sleep_unless(&self, is_awake: impl FnOnce() -> bool) {
        // The first to sleep is the only one.
        let _ = self.sleeper.set(std::thread::current());
        // A run that begins after this store rings; one that began before it is seen.
        self.is_asleep.store(true, SeqCst);
        if !is_awake() {
            std::thread::park();
        }
        self.is_asleep.store(false, SeqCst);
    }

    /// Wakes the thread, if it sleeps.
    pub fn ring(&self) {
        if self.is_asleep.load(SeqCst)
            && let Some(sleeper) = self.sleeper.get()
        {
            sleeper.unpark();
        }
    }
}

impl Leash {
    /// A leash whose runs ring this bell when they begin.
    pub fn new(bell: Arc<Bell>) -> Self {
        Self { bell, ..Self::default() }
    }

    /// The run that goes on now, told to end or not.
    pub fn running(&self) -> Option<Generation> {
        let state = self.state.load(SeqCst);
        (state & PHASES != IDLE).then_some(Generation(state & !PHASES))
    }

    /// Tells a run to end; false if it has ended or was told before.
    pub fn pull(&self, run: Generation) -> bool {
        if self.state.compare_exchange(run.0 | RUNNING, run.0 | ENDING, AcqRel, Relaxed).is_err() {
            return false;
        }
        set_terminate(self.options.load(Acquire), true);
        self.state.store(run.0 | ENDED, SeqCst);
        true
    }

    /// Gives up a run that was told to end; false if it has ended all the same.
    pub fn abandon(&self, run: Generation) -> bool {
        self.state.compare_exchange(run.0 | ENDED, run.0 | ABANDONED, SeqCst, Relaxed).is_ok()
    }

    /// True if its last run was given up.
    pub fn is_abandoned(&self) -> bool {
        self.state.load(SeqCst) & PHASES == ABANDONED
    }

    /// Begins a run that these options can end; null where nothing can.
    pub(super) fn begin(&self, options: *mut OrtRunOptions) -> Running<'_> {
        let run = (self.state.load(Relaxed) | PHASES) + 1;
        self.options.store(options, Relaxed);
        // Also publishes what the owner noted for those who watch.
        self.state.swap(run | RUNNING, SeqCst);
        self.bell.ring();
        Running { leash: self, run }
    }
}

/// A run that goes on; dropped when it has ended.
#[derive(Debug)]
pub(super) struct Running<'a> {
    leash: &'a Leash,
    run: u64,
}

impl Running<'_> {
    /// True if it was told to end.
    pub(super) fn was_ended(&self) -> bool {
        self.leash.state.load(Acquire) & PHASES >= ENDING
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let state = &self.leash.state;
        while let Err(seen) =
            state.compare_exchange(self.run | RUNNING, self.run | IDLE, AcqRel, Acquire)
        {
            if seen & PHASES >= ENDED {
                // The same options serve the next run.
                set_terminate(self.leash.options.load(Relaxed), false);
                // Where it was abandoned meanwhile, that stands.
                let idle = self.run | IDLE;
                let _ = state.compare_exchange(self.run | ENDED, idle, SeqCst, Relaxed);
                return;
            }
            // The other thread stands between two lines.
            std::thread::yield_now();
        }
    }
}

#[expect(unsafe_code, reason = "C functions of the library")]
fn set_terminate(options: *mut OrtRunOptions, end: bool) {
    if options.is_null() {
        return;
    }
    let api = ort::api();
    let set = if end { api.RunOptionsSetTerminate } else { api.RunOptionsUnsetTerminate };
    // SAFETY: the options belong to a session that is in a run, or whose `Running` is being dropped; that waits in
    // `drop` until the one who claimed this run is done here, so the options are alive. The function only stores a flag
    // that the library reads from the running thread.
    let status = unsafe { set(options) };
    // It has no way to fail; if it had, the run would go on as one that cannot be ended.
    // SAFETY: a status is null or ours to free, which this does.
    drop(unsafe { ort::Error::result_from_status(status) });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn only_the_run_that_is_meant_is_ended() {
        let leash = Leash::default();
        assert_eq!(leash.running(), None);
        let run = leash.begin(std::ptr::null_mut());
        let first = leash.running().unwrap();
        assert!(!run.was_ended());
        assert!(leash.pull(first) && run.was_ended());
        assert!(!leash.pull(first), "told once");
        assert_eq!(leash.running(), Some(first), "until it has ended");
        drop(run);
        let run = leash.begin(std::ptr::null_mut());
        assert_ne!(leash.running(), Some(first));
        assert!(!leash.pull(first) && !run.was_ended(), "the next run goes on");
        drop(run);
        assert_eq!(leash.running(), None);
    }

    #[test]
    fn a_run_is_abandoned_or_has_ended_never_both() {
        let leash = Leash::default();
        let run = leash.begin(std::ptr::null_mut());
        let generation = leash.running().unwrap();
        assert!(!leash.abandon(generation), "it must be told first");
        leash.pull(generation);
        drop(run);
        assert!(!leash.abandon(generation) && !leash.is_abandoned(), "it has ended");
        let run = leash.begin(std::ptr::null_mut());
        let generation = leash.running().unwrap();
        assert!(leash.pull(generation) && leash.abandon(generation));
        drop(run);
        assert!(leash.is_abandoned(), "also once it has come back");
    }

    #[test]
    fn pulls_at_any_moment_leave_it_in_order() {
        let (leash, stop) = (Leash::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let pulls = scope.spawn(|| {
                let mut pulls = 0;
                while !stop.load(Relaxed) {
                    pulls += u64::from(leash.running().is_some_and(|run| leash.pull(run)));
                }
                pulls
            });
            let mut ended = 0;
            for _ in 0..200_000 {
                let run = leash.begin(std::ptr::null_mut());
                std::hint::spin_loop();
                let leash = &leash;
                let generation = run.run;
                drop(run);
                // What the drop met is told by the state before it; count runs that were claimed.
                ended += u64::from(leash.state.load(Relaxed) == generation | IDLE);
            }
            stop.store(true, Relaxed);
            assert_eq!(ended, 200_000, "each run ends idle");
            assert!(pulls.join().unwrap() <= 200_000);
        });
    }
}
