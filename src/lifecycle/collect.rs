//! Keeps the content store from growing: what no version needs any more is collected, on a thread of its own.
//!
//! The files of these versions stay: what serves, or served last, by the registry; what is loaded, whatever the
//! registry says; what was uploaded; the version that was let go last, and any that is pinned or has an alias, as the
//! way back. A rollback to an older version takes its files from the repository again. Always true:
//! - What is being fetched is not collected: each load holds what it puts until it is written down as served.
//! - A process that ends in the middle leaves a good store: each blob is there or not, and a manifest that is no
//!   longer needed may be left without its files, which nobody asks for.
//!
//! Not here: how blobs vanish ([`Store::collect`]), which manifests are needed
//! ([`crate::registry::Decisions::manifests`]).

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    monitor::Monitor,
    source::{Collected, Digest, Hold, SourceError, Store, StoreError},
};

/// When to collect, and whether it is being done.
#[derive(Debug)]
pub(super) struct Collector {
    /// What may have left something to collect, since the last time.
    happened: usize,
    /// After how much of it the next one is due.
    due_after: usize,
    running: Arc<AtomicBool>,
}

/// Loads that ended and versions that were let go between two collections, at least; where more versions are kept, the
/// work of looking through them is spread over more.
const DUE_AFTER: usize = 8;

/// As those who load, and not below: for moments it holds what they wait for, the store's gate.
const NICE: i32 = 5;

impl Default for Collector {
    fn default() -> Self {
        // The first complete pass is due at once.
        Self { happened: 1, due_after: 1, running: Arc::default() }
    }
}

impl Collector {
    /// Something happened that may have left something to collect.
    pub(super) fn count(&mut self) {
        self.happened += 1;
    }

    pub(super) fn is_due(&self) -> bool {
        self.happened >= self.due_after && !self.running.load(Ordering::Acquire)
    }

    /// Collects all but the blobs of these manifests. The hold was taken before they were worked out.
    pub(super) fn start(&mut self, hold: Hold, store: Store, needed: Needed) {
        self.happened = 0;
        self.due_after = DUE_AFTER.max(needed.manifests.len() / 4);
        self.running.store(true, Ordering::Release);
        let running = Running(Arc::clone(&self.running));
        let thread = std::thread::Builder::new().name("collect".to_owned());
        let started = thread.spawn(move || {
            // Where it fails, it is only less polite.
            let _ = rustix::process::nice(NICE);
            // The next one may go well; what this one missed is still there.
            if catch_unwind(AssertUnwindSafe(|| needed.collect(&store))).is_err() {
                needed.monitor.upkeep().collected(None);
                tracing::error!("collecting the content store ended in a panic; it is tried again");
            }
            drop((hold, running));
        });
        if let Err(error) = started {
            tracing::warn!(
                "the content store is not collected: the system gives no thread: {error}"
            );
        }
    }
}

/// What must stay, and who is told.
pub(super) struct Needed {
    pub(super) manifests: BTreeSet<Digest>,
    /// What stays that is no version's.
    pub(super) blobs: BTreeSet<Digest>,
    pub(super) monitor: Arc<Monitor>,
}

impl Needed {
    fn collect(&self, store: &Store) {
        let collected =
            self.blobs(store).and_then(|keep| Ok(store.collect(&keep, Duration::ZERO)?));
        self.monitor.upkeep().collected(collected.as_ref().ok().map(|collected| collected.bytes));
        match collected {
            Ok(Collected { blobs: 0, .. }) => {}
            Ok(Collected { blobs, bytes }) => {
                tracing::info!(
                    blobs,
                    bytes,
                    "removed from the content store: no version needs them"
                );
            }
            Err(error) => tracing::warn!("the content store is not collected: {}", error.reason()),
        }
    }

    /// The blobs of all manifests. One that is gone or damaged speaks for none; one that cannot be read now stops it.
    fn blobs(&self, store: &Store) -> Result<BTreeSet<Digest>, CollectError> {
        let mut keep = self.blobs.clone();
        for manifest in &self.manifests {
            keep.insert(*manifest);
            match store.blobs(manifest) {
                Ok(blobs) => keep.extend(blobs),
                Err(SourceError::Store { source, .. }) if is_lost(&source) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(keep)
    }
}

fn is_lost(error: &StoreError) -> bool {
    matches!(error, StoreError::Missing(_) | StoreError::Damaged(_))
}

#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error("a manifest cannot be read")]
    Manifest(#[from] SourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CollectError {
    fn reason(&self) -> String {
        match self {
            Self::Manifest(error) => error.chain(),
            Self::Store(error) => error.to_string(),
        }
    }
}

/// Until it is dropped, also by a panic or where there was no thread.
struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
