//! Blame: which version a thread was running when the process was ended by a signal.
//!
//! Nothing inside a process can outlive a crash of an engine's library. What can be kept is its cause: each thread
//! notes what it runs, and a handler of the signals that end a process writes that down, to a file that was opened
//! before. Always true:
//! - The handler calls only what POSIX lists as safe in one, takes no lock, allocates nothing, and reads only what the
//!   thread that was interrupted has noted.
//! - The process ends by the same signal as without the handler.
//! - A run costs three stores to variables of its thread.
//!
//! A thread of the library's own notes nothing, so with more than one thread within a run nobody may be blamed. Nobody
//! is blamed either for an abort after an allocation of the thread's has failed: memory was short, and our own code
//! ends then.
//!
//! Not here: what is done about it at the next start (`lifecycle::blame`).

use std::{
    cell::Cell,
    fs::File,
    io,
    os::fd::{AsRawFd as _, IntoRawFd as _},
    ptr,
    sync::atomic::{AtomicBool, AtomicI32, Ordering, compiler_fence},
};

use super::memory::{feed, is_starved};

/// The signals by which a fault ends a process, with the words that are written.
const SIGNALS: [(libc::c_int, &str); 5] = [
    (libc::SIGSEGV, "SIGSEGV\t"),
    (libc::SIGABRT, "SIGABRT\t"),
    (libc::SIGFPE, "SIGFPE\t"),
    (libc::SIGBUS, "SIGBUS\t"),
    (libc::SIGILL, "SIGILL\t"),
];

/// The file descriptor for crashes; negative before it is known.
static FILE: AtomicI32 = AtomicI32::new(-1);
/// The first crash of a process is its only one.
static WRITTEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static RUNNING: Cell<*const Tag> = const { Cell::new(ptr::null()) };
}

/// The name of a version, as it is written after a crash.
#[derive(Debug)]
pub struct Tag(Box<[u8]>);

impl Tag {
    /// The tag of a version of a model, of which `digest` tells the files.
    #[must_use]
    pub fn new(model: &str, version: u64, digest: &str) -> Self {
        Self(format!("{model}\t{version}\t{digest}\n").into_bytes().into())
    }

    /// Does something that an engine may crash in, in this version's name.
    #[inline]
    pub fn during<T>(&self, run: impl FnOnce() -> T) -> T {
        feed();
        let _before = Before(RUNNING.replace(self));
        // The handler runs on this thread: only the compiler could move the store.
        compiler_fence(Ordering::SeqCst);
        run()
    }
}

/// The tag that the thread had before, put back when dropped: also when the run panics.
struct Before(*const Tag);

impl Drop for Before {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        RUNNING.set(self.0);
    }
}

/// Has crashes of this process written to the end of a file: one line of signal, model, version and digest.
///
/// The file stays open as long as the process.
///
/// # Errors
/// If the system does not take a handler.
pub fn write_crashes_to(file: File) -> io::Result<()> {
    FILE.store(file.as_raw_fd(), Ordering::SeqCst);
    for (signal, _) in SIGNALS {
        handle(signal, Some(crashed))?;
    }
    // Now it belongs to the handler.
    let _ = file.into_raw_fd();
    Ok(())
}

#[expect(unsafe_code, reason = "no safe interface handles signals of faults")]
fn handle(signal: libc::c_int, handler: Option<extern "C" fn(libc::c_int)>) -> io::Result<()> {
    // SAFETY: `sigaction` is a plain C struct for which zeros are valid (no flags, an empty mask, the default action);
    // the calls get pointers to it that live as long as they do, and no place to write the old action. The handler has
    // the type that goes without `SA_SIGINFO`, and does only what its own comment says is safe. `SA_ONSTACK` makes it
    // run on the stack that the standard library gives its threads for overflows of the usual one.
    let status = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction =
            handler.map_or(libc::SIG_DFL, |handler| handler as libc::sighandler_t);
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, ptr::null_mut())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes whom to blame, and lets the process end by the signal.
#[expect(unsafe_code, reason = "a handler of signals calls C and reads what the thread noted")]
extern "C" fn crashed(signal: libc::c_int) {
    let running = RUNNING.get();
    let starved = signal == libc::SIGABRT && is_starved();
    if !running.is_null() && !starved && !WRITTEN.swap(true, Ordering::SeqCst) {
        let word =
            SIGNALS.iter().find(|(known, _)| *known == signal).map_or("?\t", |(_, word)| word);
        // SAFETY: `running` was noted by this very thread in `Tag::during`, whose caller lends the tag until the note
        // is taken back; the thread is still within that call, so the tag lives and is not changed. `writev` is safe in
        // a handler and reads the two buffers only, of the lengths that they have.
        unsafe {
            let tag = &*running;
            let parts = [
                libc::iovec { iov_base: word.as_ptr().cast_mut().cast(), iov_len: word.len() },
                libc::iovec { iov_base: tag.0.as_ptr().cast_mut().cast(), iov_len: tag.0.len() },
            ];
            // Where it fails there is nobody to tell.
            let _ = libc::writev(FILE.load(Ordering::SeqCst), parts.as_ptr(), 2);
        }
    }
    let _ = handle(signal, None);
    // SAFETY: `raise` is safe in a handler and takes any signal. It is held back until this handler returns, and then
    // takes the default action, which ends the process.
    unsafe {
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_what_was_noted_last_and_nothing_after() {
        let (outer, inner) = (Tag::new("a", 1, "d"), Tag::new("b", 2, "e"));
        assert_eq!(&*outer.0, b"a\t1\td\n");
        let running = || RUNNING.get();
        outer.during(|| {
            assert!(ptr::eq(running(), &raw const outer));
            inner.during(|| assert!(ptr::eq(running(), &raw const inner)));
            assert!(ptr::eq(running(), &raw const outer));
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(running().is_null())).join().unwrap();
            });
        });
        assert!(running().is_null());
        let panic = std::panic::catch_unwind(|| inner.during(|| panic!("a run panics")));
        assert!(panic.is_err() && running().is_null());
    }
}
