//! Memory that engines allocate: ONNX Runtime takes it from the C library's allocator.

/// Gives memory that is free back to the system, as far as the C library can.
///
/// glibc keeps freed pages in its arenas, so that a retired version would count as resident until the next
/// one happens to fit in. Takes milliseconds after a large model; not for a thread that answers requests.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a C function of glibc")]
pub fn hand_back_memory() {
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
pub fn hand_back_memory() {}
