//! Memory that engines allocate, ONNX Runtime from the C library's allocator, and that models are read into, from
//! Rust's.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};

use mimalloc::MiMalloc;

/// Rust's allocator, which remembers that memory ran out: the abort that follows is no version's fault.
#[derive(Debug)]
pub struct Allocator;

thread_local! {
    // Without a destructor, so that an allocator may use it at any time.
    static STARVED: Cell<bool> = const { Cell::new(false) };
}

/// True if an allocation of this thread has failed since it was last fed; also for a handler of signals.
pub(super) fn is_starved() -> bool {
    STARVED.get()
}

/// Forgets allocations that failed before.
#[inline]
pub(super) fn feed() {
    STARVED.set(false);
}

fn checked(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        STARVED.set(true);
    }
    memory
}

#[expect(unsafe_code, reason = "an allocator's interface")]
// SAFETY: each function hands its arguments on to mimalloc's as they are, whose contract is the same, and gives what
// that gives; a flag is all that is added.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this very function.
        checked(unsafe { MiMalloc.alloc(layout) })
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { MiMalloc.alloc_zeroed(layout) })
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        checked(unsafe { MiMalloc.realloc(memory, layout, size) })
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }
}

/// Gives memory that is free back to the system, as far as both allocators can.
///
/// glibc keeps freed pages in its arenas, and mimalloc purges them only when it is next used: a retired version, or the
/// bytes that one was loaded from, would count as resident until then. Takes milliseconds after a large model; not for
/// a thread that answers requests.
pub fn hand_back_memory() {
    collect();
    trim();
}

#[expect(unsafe_code, reason = "a C function of mimalloc")]
fn collect() {
    // SAFETY: it may be called at any time from any thread, and touches only what is free.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Returns to the system what is free in the C library's allocator, one of its arenas after the other; a thread that
/// allocates in one waits while that one is looked through.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a C function of glibc")]
pub(super) fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: the declaration is glibc's own (malloc.h); it takes any value, locks its arenas itself and touches
    // nothing that is allocated.
    unsafe {
        malloc_trim(0);
    }
}

/// Other C libraries give memory back by themselves, or have no way to be asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "an allocator is called")]
    fn an_allocation_that_fails_is_remembered() {
        let layout = Layout::from_size_align(64, 8).unwrap();
        // SAFETY: the layout has a size, and what is allocated is freed with it.
        unsafe {
            let memory = Allocator.alloc(layout);
            assert!(!memory.is_null());
            Allocator.dealloc(memory, layout);
        }
        let layout = Layout::from_size_align(1 << 60, 8).unwrap();
        // SAFETY: as above; nobody has as much memory, so that there is nothing to free.
        assert!(unsafe { Allocator.alloc(layout) }.is_null() && is_starved());
        feed();
        assert!(!is_starved());
    }
}
