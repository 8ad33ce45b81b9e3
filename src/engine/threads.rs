//! What a thread that must disturb nobody asks of the operating system.

/// Lets the calling thread, and those it starts, run only while a CPU has nothing else to do.
///
/// Linux' `SCHED_IDLE`, sched(7): whatever else wakes up on the CPU runs at once, where a low priority would let this
/// thread finish its slice, up to a whole tick. There is no way back without privileges. True if the system does it.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a C function of the system")]
pub fn run_when_idle() -> bool {
    // SAFETY: zeros are a valid value of this plain C structure.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread, and the structure lives until the call returns.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) == 0 }
}

/// Elsewhere there is no such class.
#[cfg(not(target_os = "linux"))]
pub fn run_when_idle() -> bool {
    false
}
