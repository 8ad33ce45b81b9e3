//! A loaded version: its signature, its sessions, and what is known about it.

use std::{
    ops::{Deref, DerefMut},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    drift::{Recorder, SegmentId, Splitter, Terms},
    engine::{Session, Tag},
    model::{
        ArmName, Extent, Growth, Guards, Input, ModelDescription, ModelName, Rows, Signature,
        TensorSpec, VersionId,
    },
    monitor::{ArmRecorder, VersionRecorder, WorkerId},
    tensor::Tensor,
};

use super::{AnswerReading, PredictError, Sampling, Settings};

/// A version that can answer.
pub struct Version {
    parts: VersionParts,
    slots: Box<[Slot]>,
    batched: bool,
    extent: Extent,
    /// Tells it from every other version of this process.
    serial: u64,
    /// Bytes of one row's outputs, as far as the signature says.
    answer_bytes_min: usize,
    /// Bytes of its largest answer so far.
    answer_bytes_max: AtomicUsize,
    /// Requests that wait for a session.
    waiting: AtomicUsize,
    freed: Notify,
    tag: Tag,
    /// Recorders of requests: those assigned to it by default (`baseline`), and those that name it (`direct`).
    baseline: Arc<ArmRecorder>,
    direct: Arc<ArmRecorder>,
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
    /// Sizes of outputs that follow from the values of a request.
    pub growth: Growth,
    /// What the repository says about the model.
    pub description: Arc<ModelDescription>,
    /// Names of classes, by the index of the output.
    pub class_names: Vec<Option<Vec<String>>>,
    /// How its outputs are read as predictions.
    pub answers: AnswerReading,
    /// Where its requests are counted.
    pub recorder: Arc<VersionRecorder>,
    /// Where its values are counted, if drift is watched.
    pub drift: Option<Arc<Recorder>>,
    /// What the operator demands of its inputs, if something.
    pub terms: Option<Arc<Terms>>,
    /// Tells its rows apart, where segments are declared.
    pub splitter: Option<Arc<Splitter>>,
    /// Which of its predictions go to the table of predictions, if some do.
    pub sampling: Option<Arc<Sampling>>,
    /// The engine that runs it.
    pub engine: &'static str,
    /// SHA-256 of the model file, in hexadecimal.
    pub digest: String,
    /// SHA-256 of the manifest of its files, where they are in the content store.
    pub identity: Option<String>,
    /// Size of the model file and its external data in bytes.
    pub size_bytes: u64,
    /// The part of that which its sessions share.
    pub shared_bytes: u64,
    /// Time to make its sessions.
    pub load: Duration,
    /// Time of the warm-up runs together.
    pub warmup: Duration,
    /// The fastest warm-up run; `None` if it was not warmed.
    pub run: Option<Duration>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

impl VersionParts {
    /// Only what every version has: nothing described, guarded, measured or noted.
    pub fn new(
        model: ModelName,
        id: VersionId,
        signature: Signature,
        recorder: Arc<VersionRecorder>,
    ) -> Self {
        Self {
            model,
            id,
            signature,
            description: Arc::default(),
            class_names: Vec::new(),
            answers: AnswerReading::default(),
            guards: Guards::NONE,
            growth: Growth::NONE,
            recorder,
            drift: None,
            terms: None,
            splitter: None,
            sampling: None,
            engine: "",
            digest: String::new(),
            identity: None,
            size_bytes: 0,
            shared_bytes: 0,
            load: Duration::ZERO,
            warmup: Duration::ZERO,
            run: None,
            notes: Vec::new(),
        }
    }

    /// True if the first dimension of its tensors counts rows.
    pub fn is_batched(&self) -> bool {
        self.signature.is_batchable()
            && self.signature.rows != Rows::Apart
            && self.description.max_batch_size != Some(0)
    }
}

/// A session per worker, each on cache lines of its own.
#[repr(align(128))]
struct Slot(Mutex<Box<dyn Session>>);

/// A session taken from its slot.
pub(super) struct Taken<'a> {
    session: MutexGuard<'a, Box<dyn Session>>,
    _told: Told<'a>,
}

/// Tells whoever waits that a session is free; dropped after the session's guard.
struct Told<'a>(&'a Version);

/// Counts versions, for their serial numbers.
static SERIALS: AtomicU64 = AtomicU64::new(1);

impl Version {
    /// The name of a segment of the model's rows, by its number; `None` for rows of none.
    pub fn segment_name(&self, segment: u8) -> Option<String> {
        self.parts.splitter.as_deref()?.name(SegmentId(segment))
    }

    /// A version with these sessions, at least one.
    ///
    /// # Panics
    /// If there is no session.
    #[must_use]
    pub fn new(parts: VersionParts, sessions: Vec<Box<dyn Session>>) -> Self {
        assert!(!sessions.is_empty(), "a version needs a session to answer");
        let slots = sessions.into_iter().map(|session| Slot(Mutex::new(session))).collect();
        let batched = parts.is_batched();
        let digest = parts.identity.as_deref().unwrap_or(&parts.digest);
        let baseline = parts.recorder.arm(ArmName::BASELINE);
        let direct = parts.recorder.arm(ArmName::DIRECT);
        let tag = Tag::new(parts.model.as_str(), parts.id.number(), digest);
        Self {
            extent: parts.signature.extent(),
            answer_bytes_min: parts.signature.outputs.iter().map(row_bytes).sum(),
            answer_bytes_max: AtomicUsize::new(0),
            parts,
            slots,
            batched,
            serial: SERIALS.fetch_add(1, Relaxed),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
            tag,
            baseline,
            direct,
        }
    }

    /// The version's number.
    pub fn id(&self) -> VersionId {
        self.parts.id
    }

    /// Recorder of requests that it answers as the baseline.
    pub(super) fn baseline(&self) -> &ArmRecorder {
        &self.baseline
    }

    /// Recorder of requests that name it.
    pub(super) fn direct(&self) -> &ArmRecorder {
        &self.direct
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

    /// True if the first dimension of its tensors counts rows.
    pub fn is_batched(&self) -> bool {
        self.batched
    }

    /// True if all inputs of a request must have as many rows.
    pub fn has_common_rows(&self) -> bool {
        self.batched && self.signature().rows == Rows::Same
    }

    /// The largest of what a request may hold.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The number of sessions.
    pub fn sessions(&self) -> usize {
        self.slots.len()
    }

    /// What it is taken to occupy in memory, in bytes.
    pub fn cost_bytes(&self) -> u64 {
        let shared = self.parts.shared_bytes;
        cost_bytes(self.parts.size_bytes.saturating_sub(shared), shared, self.slots.len())
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

    /// Bytes to reserve for an answer before it is known: of its largest so far, or of one row where the signature
    /// says.
    pub fn answer_bytes(&self) -> usize {
        self.answer_bytes_min.max(self.answer_bytes_max.load(Relaxed))
    }

    /// Remembers the size of an answer.
    pub fn note_answer(&self, bytes: usize) {
        if bytes > self.answer_bytes_max.load(Relaxed) {
            self.answer_bytes_max.fetch_max(bytes, Relaxed);
        }
    }

    /// A number that no other version of this process has.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// The worker's own session, or any that is free where there are fewer sessions than workers; `None` if all are in
    /// a run.
    ///
    /// A session whose last run panicked is used on: engines keep no half-made state in it.
    pub(super) fn session(&self, worker: WorkerId) -> Option<Taken<'_>> {
        let count = self.slots.len();
        let session = (0..count).find_map(|offset| {
            match self.slots[(worker.0 + offset) % count].0.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        })?;
        Some(Taken { session, _told: Told(self) })
    }

    /// A session that no worker takes by itself as long as others are free; `None` if all are in a run, or a request
    /// waits for one.
    pub(super) fn session_to_spare(&self) -> Option<Taken<'_>> {
        if self.waiting.load(Relaxed) > 0 {
            return None;
        }
        // Workers look from their own session on.
        self.session(WorkerId(self.slots.len() - 1))
    }

    /// Runs inputs of people who measure the version, not of its clients: nothing is counted, and no deadline ends the
    /// run. Gives all outputs, in the signature's order.
    ///
    /// Waits for a session where all are in a run, and takes it from requests meanwhile; not for a thread that answers
    /// requests.
    pub fn evaluate(&self, mut inputs: Vec<Input>) -> Result<Vec<Tensor>, PredictError> {
        self.signature().arrange(&mut inputs, self.has_common_rows())?;
        self.parts.guards.check(&inputs)?;
        self.parts.growth.check(&inputs)?;
        let all: Vec<usize> = (0..self.signature().outputs.len()).collect();
        // The last worker's own, so that the others keep theirs.
        let slot = self.slots.last().expect("a version has a session");
        let session = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut session = Taken { session, _told: Told(self) };
        let mut outputs = self.tag.during(|| session.run(inputs.into(), &all))?;
        self.signature().present(&mut outputs, &all);
        Ok(outputs)
    }

    /// Waits until a session may be free.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn session_freed(&self) {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        let mut freed = pin!(self.freed.notified());
        freed.as_mut().enable();
        self.waiting.fetch_add(1, SeqCst);
        let _waiting = Waiting(&self.waiting);
        let is_free = |slot: &Slot| !matches!(slot.0.try_lock(), Err(TryLockError::WouldBlock));
        // One that was freed before anybody was seen to wait tells nobody.
        if !self.slots.iter().any(is_free) {
            freed.await;
        }
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        // After the session's lock was let go, and before whoever waits counts itself: then it sees the free session.
        fence(SeqCst);
        if self.0.waiting.load(Relaxed) > 0 {
            self.0.freed.notify_one();
        }
    }
}

/// Bytes of an output, its open dimensions taken for 1; 0 for text and where no shape is declared.
fn row_bytes(output: &TensorSpec) -> usize {
    let size = output.datatype.size().unwrap_or(0);
    let dims = output.dims.as_deref().unwrap_or(&[0]);
    let of = |dim: &i64| usize::try_from(*dim).unwrap_or(1);
    dims.iter().map(of).fold(size, usize::saturating_mul)
}

/// Estimate of the bytes that a version occupies with these many sessions, by the bytes of its model and those of
/// external data, which its sessions share.
///
/// Each session has the model's own weights for itself. Measured with ONNX Runtime, a session takes 1.1 to 1.8 times
/// the bytes of its file, and some hundred kilobytes however small the model is. External data are mapped once, and
/// packed for kernels once.
pub fn cost_bytes(model_bytes: u64, shared_bytes: u64, sessions: usize) -> u64 {
    const SESSION_BYTES: u64 = 256 * 1024;
    let session = model_bytes.saturating_add(model_bytes / 2).saturating_add(SESSION_BYTES);
    session.saturating_mul(sessions as u64).saturating_add(shared_bytes.saturating_mul(2))
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl Deref for Taken<'_> {
    type Target = dyn Session;

    fn deref(&self) -> &Self::Target {
        &**self.session
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut **self.session
    }
}
