//! An allocator that counts: what one thread asks for, and what the whole process holds.
//!
//! Counts go up by one for every `alloc` and every `realloc`. Live bytes are counted the way the product's
//! allocator works: while a block grows, old and new lie beside each other.

#![expect(unsafe_code, reason = "an allocator cannot be written without")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts, and leaves the work to the system.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static WATCHED_COUNT: AtomicU64 = AtomicU64::new(0);
static TRACING: AtomicBool = AtomicBool::new(false);
static TRACES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is just writing down a trace, which allocates.
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// From now on the allocations of the calling thread are counted.
pub(crate) fn watch_this_thread() {
    WATCHED.set(true);
}

/// Allocations of watched threads so far.
pub(crate) fn watched() -> u64 {
    WATCHED_COUNT.load(Relaxed)
}

/// Bytes that the process holds now.
pub(crate) fn live() -> usize {
    LIVE.load(Relaxed)
}

/// The most bytes held at once since [`reset_peak`].
pub(crate) fn peak() -> usize {
    PEAK.load(Relaxed)
}

/// Begins a new peak.
pub(crate) fn reset_peak() {
    PEAK.store(live(), Relaxed);
}

/// The stacks of the allocations that watched threads make during `work`, with how often each was there.
pub(crate) fn traced(work: impl FnOnce()) -> BTreeMap<String, u64> {
    TRACES.lock().unwrap().clear();
    TRACING.store(true, Relaxed);
    work();
    TRACING.store(false, Relaxed);
    std::mem::take(&mut *TRACES.lock().unwrap())
}

fn grew(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
    // A thread that is ending has no cells any more, and nobody watches it.
    if WATCHED.try_with(Cell::get).unwrap_or(false) && !WRITING.get() {
        WATCHED_COUNT.fetch_add(1, Relaxed);
        if TRACING.load(Relaxed) {
            WRITING.set(true);
            let trace = Backtrace::force_capture().to_string();
            *TRACES.lock().unwrap().entry(trace).or_default() += 1;
            WRITING.set(false);
        }
    }
}

fn shrank(bytes: usize) {
    LIVE.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call is handed to the system's allocator with the arguments it came with, and its answer is
// given back unchanged; the counting beside it touches atomics and cells only, and what it allocates itself
// while a trace is written comes back here with `WRITING` set, where it ends.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        shrank(layout.size());
        // SAFETY: as in `alloc`; `block` came from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grew(size);
        shrank(layout.size());
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(block, layout, size) }
    }
}
