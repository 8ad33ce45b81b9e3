//! One arena for the sessions of a version whose runs may need any amount of memory.
//!
//! Where a request's values choose how much a run allocates and nothing can tell before how much that is (rounds of a
//! loop that collect rows), the sessions of the version share an arena of ONNX Runtime with a maximum: a run beyond it
//! fails between two allocations, and the next one is right. Always true:
//! - What sessions keep (weights, packed for their kernels) is measured on a session of its own and comes on top of the
//!   maximum, so that it takes nothing from runs. An arena that keeps more than its maximum bounds nothing any more.
//! - Only sessions that ask for it see the arena, and only while the [`Arena`] is held; they keep it alive themselves.
//! - A run that ends gives back what is free. What its own answers take is given back by the next run of the version.
//! - Whether a failed run was alone in the arena is known: only then is the request itself to blame.
//!
//! Not here: which versions need it (`onnx::growth`), memory that kernels take from elsewhere: handles of values,
//! strings.

use std::{
    ffi::CStr,
    ptr::null_mut,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use ort::{
    AsPointer as _,
    environment::Environment,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
};

use super::RunError;

/// The environment has one place for an arena.
static PLACE: Mutex<()> = Mutex::new(());

/// An arena into which sessions can be loaded; those that were loaded keep it when this is dropped.
pub struct Arena {
    environment: Environment,
    device: MemoryInfo<'static>,
    crowd: Arc<Crowd>,
    _alone: MutexGuard<'static, ()>,
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Arena").field(&self.crowd).finish()
    }
}

/// The runs that share an arena.
#[derive(Debug)]
pub(super) struct Crowd {
    run_memory_max: u64,
    running: AtomicUsize,
    started: AtomicU64,
}

/// A run in an arena.
pub(super) struct Visit<'c> {
    crowd: &'c Crowd,
    /// Runs that had started, this one included; `None` if another was running.
    started: Option<u64>,
}

impl Arena {
    /// Makes an arena of this maximum.
    ///
    /// Waits for the arena of another version to be dropped.
    pub(super) fn new(
        environment: &Environment,
        bytes_max: u64,
        run_memory_max: u64,
    ) -> ort::Result<Self> {
        let alone = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
        let device =
            MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
        register(environment, &device, usize::try_from(bytes_max).unwrap_or(usize::MAX))?;
        let crowd =
            Crowd { run_memory_max, running: AtomicUsize::new(0), started: AtomicU64::new(0) };
        let environment = environment.clone();
        Ok(Self { environment, device, crowd: Arc::new(crowd), _alone: alone })
    }

    /// The runs of its sessions.
    pub(super) fn crowd(&self) -> Arc<Crowd> {
        Arc::clone(&self.crowd)
    }

    /// The bytes that are allocated in it; `None` if the library does not tell.
    pub(super) fn in_use(&self) -> Option<u64> {
        in_use(&self.environment, &self.device)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        unregister(&self.environment, &self.device);
    }
}

impl Crowd {
    /// Begins a run; it ends when the visit is dropped.
    pub(super) fn enter(&self) -> Visit<'_> {
        let others = self.running.fetch_add(1, SeqCst);
        let started = self.started.fetch_add(1, SeqCst) + 1;
        Visit { crowd: self, started: Some(started).filter(|_| others == 0) }
    }
}

impl Visit<'_> {
    /// True if no other run was in the arena since this one began.
    fn was_alone(&self) -> bool {
        self.started == Some(self.crowd.started.load(SeqCst))
    }

    /// Whose fault it is that the arena was full.
    pub(super) fn full(&self) -> RunError {
        let run_memory_max = self.crowd.run_memory_max;
        if self.was_alone() {
            RunError::Oversized { run_memory_max }
        } else {
            RunError::Crowded { run_memory_max }
        }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.crowd.running.fetch_sub(1, SeqCst);
    }
}

/// True if these words of the engine mean that an arena is full.
pub(super) fn is_full(text: &str) -> bool {
    text.contains("is smaller than requested bytes of")
}

#[expect(unsafe_code, reason = "the crate has no arenas of the environment")]
fn register(environment: &Environment, device: &MemoryInfo<'_>, max: usize) -> ort::Result<()> {
    // Regions as large as what is asked for, so that they can be given back one by one.
    let keys = [c"max_mem", c"arena_extend_strategy"].map(CStr::as_ptr);
    let values = [max, 1];
    let mut options = null_mut();
    // SAFETY: the keys are constant strings that end with a NUL, as many as there are values, and only read. The second
    // call copies from the options that the first has made and from the description of the device, which `device` keeps
    // alive; the environment is alive, and its allocators are changed under `PLACE` only (sessions that do not ask
    // for them never look). The options are released once, whatever the second call says.
    unsafe {
        let api = ort::api();
        let made =
            (api.CreateArenaCfgV2)(keys.as_ptr(), values.as_ptr(), keys.len(), &raw mut options);
        ort::Error::result_from_status(made)?;
        let (environment, device) = (environment.ptr().cast_mut(), device.ptr());
        let status = (api.CreateAndRegisterAllocator)(environment, device, options);
        (api.ReleaseArenaCfg)(options);
        ort::Error::result_from_status(status)
    }
}

#[expect(unsafe_code, reason = "the crate has no arenas of the environment")]
fn unregister(environment: &Environment, device: &MemoryInfo<'_>) {
    // SAFETY: both are alive; the arena was registered for this device and is taken off the environment's list only.
    // Sessions and values share its ownership, so that it lives as long as they do.
    let result = unsafe {
        let status = (ort::api().UnregisterAllocator)(environment.ptr().cast_mut(), device.ptr());
        ort::Error::result_from_status(status)
    };
    if let Err(error) = result {
        tracing::error!("an arena stays registered: {error}");
    }
}

#[expect(unsafe_code, reason = "the crate has no arenas of the environment")]
fn in_use(environment: &Environment, device: &MemoryInfo<'_>) -> Option<u64> {
    let (mut allocator, mut facts) = (null_mut(), null_mut());
    // SAFETY: environment and device are alive. The allocator is the environment's own and lives until it is
    // unregistered, which needs `&mut` of the `Arena` that is borrowed here. The facts are made by the second call and
    // released once; the text belongs to them, ends with a NUL and is read before.
    unsafe {
        let api = ort::api();
        let found = (api.GetSharedAllocator)(
            environment.ptr().cast_mut(),
            device.ptr(),
            &raw mut allocator,
        );
        ort::Error::result_from_status(found).ok()?;
        if allocator.is_null() {
            return None;
        }
        let told = (api.AllocatorGetStats)(allocator, &raw mut facts);
        ort::Error::result_from_status(told).ok()?;
        let text = (api.GetKeyValue)(facts, c"InUse".as_ptr());
        let text = if text.is_null() { None } else { CStr::from_ptr(text).to_str().ok() };
        let bytes = text.and_then(|text| text.parse().ok());
        (api.ReleaseKeyValuePairs)(facts);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_alone_until_another_begins() {
        let crowd =
            Crowd { run_memory_max: 1, running: AtomicUsize::new(0), started: AtomicU64::new(0) };
        let first = crowd.enter();
        assert!(first.was_alone());
        let second = crowd.enter();
        assert!(!first.was_alone() && !second.was_alone());
        drop(second);
        assert!(!first.was_alone(), "what ended meanwhile counts, too");
        drop(first);
        assert!(crowd.enter().was_alone());
    }

    #[test]
    fn the_engines_words_are_known() {
        assert!(is_full("Available memory of 3328 is smaller than requested bytes of 4096"));
        assert!(!is_full("Failed to allocate memory for requested buffer of size 4096"));
    }
}
