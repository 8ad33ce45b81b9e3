//! Sampled predictions on their way to the table of predictions: one bounded queue from all workers to one writer.
//!
//! A worker moves what it owns anyway, inputs and outputs of an answered request, into the queue once the answer is
//! counted. Always true:
//! - A worker waits for nothing; a prediction for which there is no room is dropped, the newest first, and counted.
//! - The choice follows from the prediction's name alone: who has the name knows whether it was sampled.
//! - A prediction that waits keeps no version loaded.
//!
//! Not here: files and their columns (`predictions`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use smallvec::SmallVec;

use crate::{
    drift::Recorder,
    model::{ArmName, Input, ModelName, PredictionId, Signature, VersionId},
    monitor::Code,
    tensor::Tensor,
};

use super::{Prediction, shadow};

/// The last 32 bits of a name are check bits under a secret key, so that they are as good as drawn.
const DRAWN: f64 = 4_294_967_296.0;

/// Limits of the queue, and the share of each model's predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSettings {
    /// Share of predictions of models that are not named below, 0 to 1.
    pub share: f64,
    /// Share by model.
    pub shares: BTreeMap<ModelName, f64>,
    /// Predictions that wait.
    pub waiting_max: usize,
    /// Bytes of the inputs and outputs of these.
    pub bytes_max: usize,
}

/// The queue, and counts of what became of sampled rows.
#[derive(Debug)]
pub struct Samples {
    queue: ArrayQueue<Sampled>,
    bytes: AtomicUsize,
    settings: SampleSettings,
    /// By model and table.
    counts: Mutex<Counts>,
    outcomes: ArrayQueue<SampledOutcome>,
}

type Counts = BTreeMap<(ModelName, &'static str), Arc<SampleCounts>>;

/// Counts of a model's rows of one table.
#[derive(Debug, Default)]
pub struct SampleCounts {
    /// In files that are complete.
    pub recorded: AtomicU64,
    /// Dropped, as the queue was full.
    pub crowded: AtomicU64,
    /// Dropped, as they could not be written.
    pub unwritten: AtomicU64,
}

/// Choice of a version's predictions, and what their table must know of the version.
#[derive(Debug)]
pub struct Sampling {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionId,
    /// SHA-256 of the model file, in hexadecimal.
    pub digest: String,
    /// Inputs and outputs.
    pub signature: Signature,
    /// True if the first dimension of tensors counts rows.
    pub is_batched: bool,
    /// By the index of the input: names of its columns, where each is a feature.
    pub names: Vec<Option<Vec<String>>>,
    /// Counts of the model's rows.
    pub counts: Arc<SampleCounts>,
    /// Predictions whose last 32 bits are below this are sampled.
    limit: u64,
    samples: Arc<Samples>,
}

/// A sampled prediction.
#[derive(Debug)]
pub struct Sampled {
    /// The version's.
    pub sampling: Arc<Sampling>,
    /// The prediction's name.
    pub id: PredictionId,
    /// The arrival of its request, since 1970.
    pub at: Duration,
    /// The arm that answered.
    pub arm: ArmName,
    /// The status of the answer.
    pub code: u16,
    /// From the last byte of the request to the answer.
    pub took: Duration,
    /// Inputs and outputs.
    pub tensors: Tensors,
}

/// Inputs and outputs of a prediction.
#[derive(Debug)]
pub struct Tensors {
    /// The number of rows.
    pub rows: u64,
    /// The inputs, by name.
    pub inputs: Vec<Input>,
    /// The outputs; none of a request that failed.
    pub outputs: Vec<Tensor>,
    /// The indexes of `outputs` in the signature.
    pub wanted: SmallVec<[usize; 8]>,
    /// Bytes that they keep in memory.
    bytes: usize,
}

/// The outcome of a sampled prediction.
#[derive(Debug)]
pub struct SampledOutcome {
    /// The model.
    pub model: ModelName,
    /// The prediction's name.
    pub id: PredictionId,
    /// The row of its request.
    pub row: u32,
    /// The time when the outcome was known, since 1970.
    pub at: Duration,
    /// The right class, as its number or text.
    pub label: Option<String>,
    /// The right number.
    pub value: Option<f64>,
    /// The reward.
    pub reward: Option<f64>,
}

/// Facts of a request, told once it is counted.
pub(super) struct Ended {
    pub(super) id: PredictionId,
    pub(super) at: Duration,
    pub(super) arm: ArmName,
    pub(super) code: Code,
    pub(super) took: Duration,
}

impl Samples {
    /// An empty queue.
    #[must_use]
    pub fn new(settings: SampleSettings) -> Self {
        Self {
            queue: ArrayQueue::new(settings.waiting_max.max(1)),
            outcomes: ArrayQueue::new(settings.waiting_max.max(1)),
            bytes: AtomicUsize::new(0),
            settings,
            counts: Mutex::default(),
        }
    }

    /// Chooses among the predictions of a version; `None` if none is sampled.
    ///
    /// `described` are the columns of the only input by the model's description.
    #[must_use]
    pub fn of(
        self: &Arc<Self>,
        (model, version, digest): (&ModelName, VersionId, &str),
        (signature, is_batched): (&Signature, bool),
        described: Vec<String>,
        drift: Option<&Recorder>,
    ) -> Option<Arc<Sampling>> {
        let limit = self.limit(model);
        if limit == 0 {
            return None;
        }
        let names = drift.map_or_else(
            || {
                let is_only = signature.inputs.len() == 1 && !described.is_empty();
                vec![Some(described).filter(|_| is_only)]
            },
            Recorder::columns,
        );
        let counts = self.counts_of(model, Self::PREDICTIONS);
        Some(Arc::new(Sampling {
            model: model.clone(),
            version,
            digest: digest.to_owned(),
            signature: signature.clone(),
            is_batched,
            names,
            counts,
            limit,
            samples: Arc::clone(self),
        }))
    }

    /// Takes the next prediction, in the order in which they were answered.
    pub fn take(&self) -> Option<Sampled> {
        let sampled = self.queue.pop()?;
        self.bytes.fetch_sub(sampled.tensors.bytes, SeqCst);
        Some(sampled)
    }

    /// Queues an outcome that was joined, if its prediction is sampled, or drops it.
    pub fn tell(&self, outcome: SampledOutcome) {
        if drawn(outcome.id) >= self.limit(&outcome.model) {
            return;
        }
        if let Err(dropped) = self.outcomes.push(outcome) {
            let counts = self.counts_of(&dropped.model, Self::OUTCOMES);
            counts.crowded.fetch_add(1, Relaxed);
        }
    }

    /// Takes the next outcome.
    pub fn take_outcome(&self) -> Option<SampledOutcome> {
        self.outcomes.pop()
    }

    /// The name of the table of predictions.
    pub const PREDICTIONS: &str = "predictions";
    /// The name of the table of outcomes.
    pub const OUTCOMES: &str = "outcomes";

    /// Counts of a model's rows of one table.
    pub fn counts_of(&self, model: &ModelName, table: &'static str) -> Arc<SampleCounts> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(counts.entry((model.clone(), table)).or_default())
    }

    /// Counts by model and table.
    pub fn counts(&self) -> Vec<(ModelName, &'static str, Arc<SampleCounts>)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let all = counts.iter();
        all.map(|((model, table), counts)| (model.clone(), *table, Arc::clone(counts))).collect()
    }

    /// Predictions of the model whose last 32 bits are below this are sampled.
    fn limit(&self, model: &ModelName) -> u64 {
        let share = self.settings.shares.get(model).copied().unwrap_or(self.settings.share);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share is 0 to 1"
        )]
        let limit = (share * DRAWN).ceil() as u64;
        limit
    }
}

impl Sampling {
    /// True if the prediction of this name is sampled.
    #[inline]
    pub(super) fn takes(&self, id: PredictionId) -> bool {
        drawn(id) < self.limit
    }

    /// Queues a prediction, or drops it.
    pub(super) fn offer(self: &Arc<Self>, ended: &Ended, tensors: Tensors) {
        let (samples, bytes, rows) = (&self.samples, tensors.bytes, tensors.rows);
        let held = samples.bytes.fetch_add(bytes, SeqCst);
        let fits = held.saturating_add(bytes) <= samples.settings.bytes_max;
        let waiting = Sampled {
            sampling: Arc::clone(self),
            id: ended.id,
            at: ended.at,
            arm: ended.arm,
            code: ended.code.status(),
            took: ended.took,
            tensors,
        };
        if !fits || samples.queue.push(waiting).is_err() {
            samples.bytes.fetch_sub(bytes, SeqCst);
            self.counts.crowded.fetch_add(rows, Relaxed);
        }
    }
}

/// The check bits of a name.
#[inline]
fn drawn(id: PredictionId) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the last 32 bits")]
    let drawn = id.bits() as u32;
    u64::from(drawn)
}

impl Tensors {
    /// Inputs and outputs of an answer; `body_bytes` is the length of the body that inputs may be slices of.
    pub(super) fn answered(inputs: Vec<Input>, prediction: Prediction, body_bytes: usize) -> Self {
        let Prediction { outputs, wanted, rows, .. } = prediction;
        let bytes = shadow::bytes_of(&inputs, &outputs, body_bytes);
        Self { rows, inputs, outputs, wanted, bytes }
    }

    /// Inputs of a request that failed.
    pub(super) fn failed(inputs: Vec<Input>, rows: u64) -> Self {
        let own = inputs.iter().map(|input| input.tensor.raw_len()).sum();
        let bytes = shadow::bytes_of(&inputs, &[], own);
        Self { rows, inputs, outputs: Vec::new(), wanted: SmallVec::new(), bytes }
    }

    /// Bytes that they keep in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
