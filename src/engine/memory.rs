//! Memory that engines allocate, ONNX Runtime from the C library's allocator, and that models are read into, from Rust's.

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

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a C function of glibc")]
fn trim() {
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
fn trim() {}
