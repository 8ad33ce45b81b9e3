//! A loaded version: its signature, its sessions, and what is known about it.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

use crate::{
    engine::{Session, Tag},
    model::{Guards, ModelDescription, ModelName, Signature, VersionId},
    monitor::{VersionRecorder, WorkerId},
};

use super::Settings;

/// A version that can answer.
pub struct Version {
    parts: VersionParts,
    slots: Box<[Slot]>,
    batched: bool,
    tag: Tag,
}

/// What a version is made of.
#[derive(Debug)]
pub struct VersionParts {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub id: VersionId,
    /// Inputs and outputs.
    pub signature: Signature,
    /// The inputs that requests must not bring.
    pub guards: Guards,
    /// What the repository says about the model.
    pub description: Arc<ModelDescription>,
    /// Names of classes, by the index of the output.
    pub class_names: Vec<Option<Vec<String>>>,
    /// Where its requests are counted.
    pub recorder: Arc<VersionRecorder>,
    /// The engine that runs it.
    pub engine: &'static str,
    /// SHA-256 of the model file, in hexadecimal.
    pub digest: String,
    /// SHA-256 of the manifest of its files, where they are in the content store.
    pub identity: Option<String>,
    /// Size of the model file and its external data in bytes.
    pub size_bytes: u64,
    /// Time to make its sessions.
    pub load: Duration,
    /// Time of the warm-up runs together.
    pub warmup: Duration,
    /// The fastest warm-up run; `None` if it was not warmed.
    pub run: Option<Duration>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// A session per worker, each on cache lines of its own.
#[repr(align(128))]
struct Slot(Mutex<Box<dyn Session>>);

/// A session taken from its slot.
pub(super) struct Taken<'a>(MutexGuard<'a, Box<dyn Session>>);

impl Version {
    /// A version with these sessions, at least one.
    ///
    /// # Panics
    /// If there is no session.
    #[must_use]
    pub fn new(parts: VersionParts, sessions: Vec<Box<dyn Session>>) -> Self {
        assert!(!sessions.is_empty(), "a version needs a session to answer");
        let slots = sessions.into_iter().map(|session| Slot(Mutex::new(session))).collect();
        let batched = parts.signature.is_batchable() && parts.description.max_batch_size != Some(0);
        let digest = parts.identity.as_deref().unwrap_or(&parts.digest);
        let tag = Tag::new(parts.model.as_str(), parts.id.number(), digest);
        Self { parts, slots, batched, tag }
    }

    /// The version's number.
    pub fn id(&self) -> VersionId {
        self.parts.id
    }

    /// Whom a crash in its runs is blamed on.
    pub(super) fn tag(&self) -> &Tag {
        &self.tag
    }

    /// What it is made of.
    pub fn parts(&self) -> &VersionParts {
        &self.parts
    }

    /// Inputs and outputs.
    pub fn signature(&self) -> &Signature {
        &self.parts.signature
    }

    /// Whether the first dimension of its tensors counts rows.
    pub fn is_batched(&self) -> bool {
        self.batched
    }

    /// The number of sessions.
    pub fn sessions(&self) -> usize {
        self.slots.len()
    }

    /// What it is taken to occupy in memory, in bytes.
    pub fn cost_bytes(&self) -> u64 {
        cost_bytes(self.parts.size_bytes, self.slots.len())
    }

    /// Whether a session of it is in a run at this moment.
    pub fn is_running(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.0.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Most rows of one request; 0 if it has no rows.
    pub fn rows_max(&self, settings: &Settings) -> u64 {
        if !self.batched {
            return 0;
        }
        let declared = self.parts.description.max_batch_size.map(u64::from);
        declared.unwrap_or(settings.batch_rows_max.get() as u64)
    }

    /// The worker's own session, or any that is free where there are fewer sessions than workers.
    ///
    /// A session whose last run panicked is used on: engines keep no half-made state in it.
    pub(super) fn session(&self, worker: WorkerId) -> Taken<'_> {
        let count = self.slots.len();
        (0..count)
            .find_map(|offset| match self.slots[(worker.0 + offset) % count].0.try_lock() {
                Ok(guard) => Some(Taken(guard)),
                Err(TryLockError::Poisoned(poisoned)) => Some(Taken(poisoned.into_inner())),
                Err(TryLockError::WouldBlock) => None,
            })
            // All are in a run: the worker's turn comes when the first of its own slot has ended.
            .unwrap_or_else(|| {
                Taken(self.slots[worker.0 % count].0.lock().unwrap_or_else(PoisonError::into_inner))
            })
    }
}

/// What a version of these many bytes of files is taken to occupy with these many sessions, in bytes.
///
/// Each session has weights of its own. Measured with ONNX Runtime, a session takes 1.1 to 1.8 times the bytes of its
/// files, and some hundred kilobytes however small the model is.
pub fn cost_bytes(size_bytes: u64, sessions: usize) -> u64 {
    const SESSION_BYTES: u64 = 256 * 1024;
    let session = size_bytes.saturating_add(size_bytes / 2).saturating_add(SESSION_BYTES);
    session.saturating_mul(sessions as u64)
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl Deref for Taken<'_> {
    type Target = dyn Session;

    fn deref(&self) -> &Self::Target {
        &**self.0
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut **self.0
    }
}
