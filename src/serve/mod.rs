//! The live table and the run of a prediction: name in, version chosen, engine run, tensors out.
//!
//! The table is a snapshot that is never changed: the control plane builds the next one aside and publishes
//! it with one store. A request loads it once, after its last byte has arrived, and keeps the version it
//! found to its end. Always true:
//! - No request that was sent after a publish returned meets an older table.
//! - A request's inputs fit the version's signature before an engine sees them.
//! - A version that left the table is freed when its last request lets go.
//! - A call that was given a version is counted exactly once.
//!
//! Not here: HTTP (`edge`), bytes (`wire`), what should be served (`lifecycle`).

mod answer;
mod call;
mod compare;
mod demand;
mod evidence;
mod names;
mod recall;
mod routing;
mod sampling;
mod settings;
mod shadow;
mod spare;
mod table;
mod traffic;
mod version;
mod watchdog;

use std::{
    borrow::Cow,
    os::fd::RawFd,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use smallvec::SmallVec;
use tokio::sync::Notify;

pub use answer::{AnswerReading, AnswerRule, ClassName, Predicted, PredictedKind, text_bits};
pub use call::{Asked, Call, NotRouted, Receipt};
pub use compare::{Difference, compare, non_finite};
pub use demand::{Demand, DemandError, Lease, Wish};
pub use evidence::{Compared, Entry as Evident, Evidence, Marks, Output, Reading, SLOW_MAX};
pub use names::{Names, Naming};
pub use recall::{Assigned, Recall, Recalled, WORDS as RECALLED_WORDS};
pub use sampling::{
    SampleCounts, SampleSettings, Sampled, SampledOutcome, Samples, Sampling, Tensors,
};
pub use settings::Settings;
pub use shadow::{Shadow, Shadowing};
pub use spare::{Spare, is_awaited, is_spare_missing};
pub use table::{Entry, Model, RouteError, Table};
pub use traffic::{Arm, Hashed, Traffic};
pub use version::{Version, VersionParts, cost_bytes};
pub use watchdog::{Listed, Watch, Watchdog, Watching};

pub use crate::engine::hand_back_memory;
use crate::{
    drift::{Broken, RowSegments, SegmentId},
    engine::{RunError, Session},
    model::{GrowthError, GuardError, InferRequest, Signature, SignatureError, VersionId},
    monitor::{Clock, Outcome, Sample, WorkerId},
    tensor::Tensor,
};
use evidence::Assignment;
use shadow::Shadows;
use watchdog::Reason;

/// What is served now, and how predictions are run.
#[derive(Debug)]
pub struct Serving {
    table: ArcSwap<Table>,
    demand: Demand,
    draining: AtomicBool,
    /// Told of every new table.
    published: Notify,
    watchdog: Watchdog,
    shadows: Arc<Shadows>,
    /// Where predictions are remembered for outcomes, once somebody joins them.
    recall: OnceLock<Arc<Recall>>,
    clock: Arc<dyn Clock>,
    begin: Instant,
    /// Time since 1970 at `begin`.
    unix_begin: Duration,
    settings: Settings,
}

/// The outcome of a prediction.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// One tensor for each of `wanted`.
    pub outputs: Vec<Tensor>,
    /// Indexes into the signature's outputs, ascending.
    pub wanted: SmallVec<[usize; 8]>,
    /// Rows that were predicted.
    pub rows: u64,
    /// The segments of the rows.
    pub split: RowSegments,
    /// How the inputs break the model's contract, where the answer is to say so.
    pub flag: Option<Box<str>>,
    /// When the engine began.
    pub started: Instant,
    /// When it had ended.
    pub finished: Instant,
}

/// Why a prediction was not made.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The inputs or requested outputs do not fit the model; the caller's mistake.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The engine would end the process on such inputs; the caller's mistake.
    #[error(transparent)]
    Guarded(#[from] GuardError),
    /// A run of them would allocate too much; the caller's mistake.
    #[error(transparent)]
    Oversized(#[from] GrowthError),
    /// More rows than one request may bring; the caller's mistake.
    #[error("{rows} rows are more than the {rows_max} that one request may bring; split the batch")]
    Rows {
        /// Rows in the request.
        rows: u64,
        /// Rows allowed.
        rows_max: u64,
    },
    /// They break the operator's contract; the caller's mistake.
    #[error("{0}")]
    Contract(Box<str>),
    /// The model cannot run on these values; the caller's mistake.
    #[error("the model cannot run on these inputs: {0}")]
    Inputs(String),
    /// Other runs have the memory that it needs; worth retrying.
    #[error("{0}")]
    Crowded(String),
    /// The engine failed; our fault or the model's, details stay in the log.
    #[error("the engine failed on this request")]
    Engine(#[source] RunError),
    /// It was not done by its deadline.
    #[error("the request's deadline has passed")]
    Deadline,
    /// Its client is gone, so it was ended; nobody reads the answer.
    #[error("the client has gone")]
    Gone,
    /// The version had to go before it was done; worth retrying.
    #[error("version {0} was unloaded while this request ran; try again")]
    Leaving(VersionId),
    /// The process had to end before it was done.
    #[error("the server is stopping and could not wait for this request; try again")]
    Stopping,
    /// The worker was given up: another stands in its place, and this one must do nothing any more.
    #[error("the worker was given up")]
    Lost,
}

impl From<RunError> for PredictError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Inputs(reason) => Self::Inputs(reason),
            RunError::Oversized { .. } => Self::Inputs(error.to_string()),
            RunError::Crowded { .. } => Self::Crowded(error.to_string()),
            RunError::Failed(_) | RunError::Output { .. } | RunError::Ended => Self::Engine(error),
        }
    }
}

impl Serving {
    /// An empty table.
    #[must_use]
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Self {
        let begin = clock.now();
        Self {
            table: ArcSwap::from_pointee(Table::default()),
            demand: Demand::new(settings.demand_waiting_max),
            draining: AtomicBool::new(false),
            published: Notify::new(),
            watchdog: Watchdog::new(Arc::clone(&clock), begin, settings.stuck_after),
            shadows: Arc::new(Shadows::new(&settings)),
            recall: OnceLock::new(),
            begin,
            unix_begin: clock.unix(),
            clock,
            settings,
        }
    }

    /// The table of this moment; cheap, and not to be held across an await.
    pub fn table(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Where requests wait for versions that load on demand.
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Makes this the table for every request whose last byte arrives from now on.
    ///
    /// Gives the table before it: to be let go where nobody waits, for requests may still hold it.
    pub fn publish(&self, table: Table) -> Arc<Table> {
        let before = self.table.swap(Arc::new(table));
        self.published.notify_waiters();
        before
    }

    /// Waits for the next table.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn published(&self) {
        self.published.notified().await;
    }

    /// Waits until a request for a model that came during the first pass over the repository can be answered, or cannot
    /// be; look at the table again.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn settled(&self, model: &str) {
        loop {
            let mut published = pin!(self.published.notified());
            published.as_mut().enable();
            if !self.table.load().is_settling(model) {
                return;
            }
            published.await;
        }
    }

    /// True if a model, or versions of it, may still come with the first pass over the repository.
    pub fn is_settling(&self, model: &str) -> bool {
        self.table.load().is_settling(model)
    }

    /// Why the server should get no new requests; empty if it is ready.
    pub fn obstacles(&self) -> Vec<String> {
        if self.draining.load(Relaxed) {
            return vec!["the server is shutting down".to_owned()];
        }
        self.table.load().obstacles()
    }

    /// Makes the server not ready for good: it is going to stop.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The time since 1970 of an instant, without asking the clock again.
    pub fn unix_at(&self, now: Instant) -> Duration {
        self.unix_begin + now.saturating_duration_since(self.begin)
    }

    /// The time since 1970, by the clock that requests are timed with: it never goes back.
    pub fn unix_now(&self) -> Duration {
        self.unix_at(self.clock.now())
    }

    /// Makes the names of a worker's predictions; `before` workers had its number before it.
    pub fn names(&self, naming: Naming, worker: WorkerId, before: u64) -> Names {
        Names::new(naming, worker, before, (self.begin, self.unix_begin))
    }

    /// Has predictions remembered from now on; for one reader.
    pub fn remember(&self, recall: Arc<Recall>) {
        // Whoever comes second reads nothing.
        let _ = self.recall.set(recall);
    }

    /// Ends runs at their deadlines, and tells of workers that do not come back.
    pub fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    /// Counts the request of a worker that was given up, once another is about to take its place.
    pub fn replaced(&self, lost: &Watch) {
        self.watchdog.replaced();
        let table = self.table();
        for traffic in table.models().into_iter().filter_map(|model| model.traffic.as_deref()) {
            let now = self.unix_at(self.clock.now());
            traffic.evidence().into_iter().for_each(|evidence| evidence.lose(lost.worker(), now));
        }
        let versions = table.models().into_iter().flat_map(Model::ready);
        // One that has left the table meanwhile is not counted any more.
        for version in versions.filter(|version| version.serial() == lost.version()) {
            let (parts, now) = (version.parts(), self.clock.now());
            let (code, unix) = (Outcome::Deadline.code(), self.unix_at(now));
            let took = self.watchdog.nanoseconds(now).saturating_sub(lost.arrived());
            let sample = Sample { total: Duration::from_nanos(took), ..Sample::default() };
            version.baseline().record(lost.worker(), code, &sample, unix);
            tracing::error!(
                model = %parts.model,
                version = %parts.id,
                "a run does not end although its deadline has passed; unload this version, or mend its model"
            );
        }
    }

    /// The error of a session's run.
    fn failed(&self, version: &Version, watch: &Watch, error: RunError) -> PredictError {
        if watch.is_lost() {
            self.watchdog.came_back(watch);
            return PredictError::Lost;
        }
        if !matches!(error, RunError::Ended) {
            return error.into();
        }
        match watch.reason() {
            Some(Reason::Gone) => PredictError::Gone,
            Some(Reason::Leaving) => PredictError::Leaving(version.id()),
            Some(Reason::Stopping) => PredictError::Stopping,
            Some(Reason::Deadline) | None => PredictError::Deadline,
        }
    }

    /// Runs a request on a session of a version, on the calling thread.
    ///
    /// Takes `request.inputs`, unless they are kept; then they stay, in the signature's order.
    fn run(
        &self,
        version: &Version,
        session: &mut dyn Session,
        on: Run<'_>,
        request: &mut InferRequest,
    ) -> Result<Prediction, PredictError> {
        let wanted = wanted_outputs(version, request)?;
        version.signature().arrange(&mut request.inputs, version.has_common_rows())?;
        let ran = self.run_arranged(version, session, on, request, wanted);
        if on.keeps_inputs {
            // Another version may see them otherwise.
            version.signature().restore(&mut request.inputs);
        }
        ran
    }

    fn run_arranged(
        &self,
        version: &Version,
        session: &mut dyn Session,
        on: Run<'_>,
        request: &mut InferRequest,
        wanted: SmallVec<[usize; 8]>,
    ) -> Result<Prediction, PredictError> {
        version.parts().guards.check(&request.inputs)?;
        version.parts().growth.check(&request.inputs)?;
        let rows = self.check_rows(version, request)?;
        let started = self.clock.now();
        if started > on.deadline {
            return Err(PredictError::Deadline);
        }
        let watch = on.watch;
        let since = |at| self.watchdog.nanoseconds(at);
        watch.note(since(on.arrived), since(on.deadline), version.serial(), on.client);
        let inputs = if on.keeps_inputs {
            Cow::Borrowed(&*request.inputs)
        } else {
            Cow::Owned(std::mem::take(&mut request.inputs))
        };
        let parts = version.parts();
        let drift = parts.drift.as_deref().filter(|_| rows > 0);
        let counted = usize::try_from(rows).unwrap_or(usize::MAX);
        let splitter = parts.splitter.as_deref().filter(|_| rows > 0);
        let split = splitter.map(|splitter| splitter.split(on.segment, &inputs, counted));
        let split = split.unwrap_or_default();
        if let Some(drift) = drift {
            drift.inputs(watch.worker(), &inputs, counted);
        }
        if let Some(splitter) = splitter {
            splitter.inputs(watch.worker(), &inputs, counted, &split);
        }
        let mut broken = Broken::default();
        if let Some(terms) = parts.terms.as_deref().filter(|_| rows > 0) {
            broken = terms.check(watch.worker(), &inputs, counted, &split);
        }
        if let Some(refusal) = broken.refusal {
            return Err(PredictError::Contract(refusal));
        }
        let run = || session.run_leashed(inputs, &wanted, &watch.leash);
        let outputs = version.tag().during(run);
        let mut outputs = outputs.map_err(|error| self.failed(version, watch, error))?;
        version.signature().present(&mut outputs, &wanted);
        if watch.is_lost() {
            self.watchdog.came_back(watch);
            return Err(PredictError::Lost);
        }
        if let Some(drift) = drift {
            drift.outputs(watch.worker(), &outputs, &wanted, counted);
        }
        if let Some(splitter) = splitter {
            splitter.outputs(watch.worker(), (&outputs, &wanted), counted, &split);
        }
        let finished = self.clock.now();
        if finished > on.deadline {
            return Err(PredictError::Deadline);
        }
        Ok(Prediction { outputs, wanted, rows, split, flag: broken.flag, started, finished })
    }

    fn check_rows(&self, version: &Version, request: &InferRequest) -> Result<u64, PredictError> {
        if !version.is_batched() {
            return Ok(1);
        }
        let required = version.signature().inputs.len();
        let rows = Signature::rows_of(&request.inputs[..required]);
        let rows = rows.and_then(|rows| u64::try_from(rows).ok()).unwrap_or(1);
        let rows_max = version.rows_max(&self.settings);
        if rows > rows_max { Err(PredictError::Rows { rows, rows_max }) } else { Ok(rows) }
    }
}

/// Under what a run stands.
#[derive(Debug, Clone, Copy)]
struct Run<'a> {
    watch: &'a Watch,
    arrived: Instant,
    deadline: Instant,
    /// The socket of the client that waits for it, where that may be asked for the client's end.
    client: Option<RawFd>,
    /// True if the inputs are needed after the run.
    keeps_inputs: bool,
    /// The segment of all its rows, where a header says it.
    segment: SegmentId,
}

/// Indexes of the outputs that a request wants, ascending; all if it names none.
fn wanted_outputs(
    version: &Version,
    request: &InferRequest,
) -> Result<SmallVec<[usize; 8]>, SignatureError> {
    let signature = version.signature();
    if request.outputs.is_empty() {
        return Ok((0..signature.outputs.len()).collect());
    }
    let mut wanted = SmallVec::new();
    for output in &request.outputs {
        let index = signature.output(&output.name)?;
        if wanted.contains(&index) {
            return Err(SignatureError::DuplicateOutput(output.name.clone()));
        }
        wanted.push(index);
    }
    wanted.sort_unstable();
    Ok(wanted)
}
