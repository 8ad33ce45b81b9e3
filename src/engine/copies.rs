//! Copies of a process, with all that it has loaded.
//!
//! Loading an engine's library takes longer than proving a small model with it; a copy has it for the price of its page
//! tables. Always true: only a process with one thread is copied. What another thread held at that moment, such as an
//! allocator's lock, would be held for ever in the copy.
//!
//! Not here: what a copy does and what it gives up first (`lifecycle::proof`).

use std::{
    fs::File,
    io::{Error, Result},
    os::unix::fs::FileExt as _,
};

/// Which of the two a process is after it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The one that was there, with the number of its copy.
    Original(u32),
    /// The copy.
    Copy,
}

/// Copies this process.
#[derive(Debug)]
pub struct Copier {
    /// `/proc/self/status` of this process, opened while it may open files.
    status: File,
    process: u32,
}

impl Copier {
    /// To be called before the process gives up opening files.
    ///
    /// # Errors
    /// Where there is no `/proc`, which says how many threads there are.
    pub fn open() -> Result<Self> {
        Ok(Self { status: File::open("/proc/self/status")?, process: std::process::id() })
    }

    /// Copies the process. The copy has the calling thread, and none of the locks on its parent's end: it goes on when
    /// its parent is gone unless it asks for something else.
    ///
    /// # Errors
    /// Where the process has other threads, is a copy itself, or the system allows no more processes.
    #[expect(
        unsafe_code,
        reason = "a system call of which only the caller knows whether it is safe"
    )]
    pub fn copy(&self) -> Result<Copied> {
        // What was opened by the original goes on telling of the original.
        if self.process != std::process::id() {
            return Err(Error::other("a copy is not copied"));
        }
        let mut text = [0; 8192];
        let length = self.status.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let threads = text.lines().find_map(|line| line.strip_prefix("Threads:")).map(str::trim);
        if threads != Some("1") {
            return Err(Error::other(format!("it has {} threads", threads.unwrap_or("unknown"))));
        }
        // SAFETY: the kernel has just said that this process, which `status` tells of, has one thread, the calling one;
        // so nothing is held by another one, and the copy may go on as if it had been there from the start.
        match unsafe { libc::fork() } {
            0 => Ok(Copied::Copy),
            copy => u32::try_from(copy).map(Copied::Original).map_err(|_| Error::last_os_error()),
        }
    }
}

/// Most memory of this process that was resident, in bytes; for a copy, since it was made. `None` if it is not known.
#[must_use]
#[expect(unsafe_code, reason = "a C function")]
pub fn memory_peak() -> Option<u64> {
    // SAFETY: the type is plain numbers, for which zeros are values; the call writes such a value to where it is told.
    let (outcome, usage) = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        (libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), usage)
    };
    // Linux counts in KiB.
    let unit = if cfg!(target_os = "linux") { 1024 } else { 1 };
    let peak = u64::try_from(usage.ru_maxrss).ok().filter(|_| outcome == 0)?;
    peak.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The harness runs each test on a thread of its own.
        let refused = Copier::open().and_then(|copier| copier.copy()).unwrap_err();
        assert!(refused.to_string().contains("threads"), "{refused}");
        assert!(memory_peak().is_some_and(|bytes| bytes > 1 << 20));
    }
}
