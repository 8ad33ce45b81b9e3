//! The live table and the run of a prediction: name in, version chosen, engine run, tensors out.
//!
//! The table is a snapshot that is never changed: the control plane builds the next one aside and publishes
//! it with one store. A request loads it once, after its last byte has arrived, and keeps the version it
//! found to its end. Always true:
//! - No request that was sent after a publish returned meets an older table.
//! - A request's inputs fit the version's signature before an engine sees them.
//! - A version that left the table is freed when its last request lets go.
//!
//! Not here: HTTP (`edge`), bytes (`wire`), what should be served (`lifecycle`).

mod demand;
mod settings;
mod table;
mod version;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::{ArcSwap, Guard};
use smallvec::SmallVec;

pub use demand::{Demand, DemandError, Lease, Wish};
pub use settings::Settings;
pub use table::{Entry, Model, RouteError, Table};
pub use version::{Version, VersionParts, cost_bytes};

use crate::{
    engine::RunError,
    model::{GuardError, InferRequest, SignatureError},
    monitor::{Clock, WorkerId},
    tensor::Tensor,
};

/// What is served now, and how predictions are run.
#[derive(Debug)]
pub struct Serving {
    table: ArcSwap<Table>,
    demand: Demand,
    draining: AtomicBool,
    clock: Arc<dyn Clock>,
    settings: Settings,
}

/// The outcome of a prediction.
#[derive(Debug)]
pub struct Prediction {
    /// One tensor for each of `wanted`.
    pub outputs: Vec<Tensor>,
    /// Indexes into the signature's outputs, ascending.
    pub wanted: SmallVec<[usize; 8]>,
    /// Rows that were predicted.
    pub rows: u64,
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
    /// More rows than one request may bring; the caller's mistake.
    #[error("{rows} rows are more than the {rows_max} that one request may bring; split the batch")]
    Rows {
        /// Rows in the request.
        rows: u64,
        /// Rows allowed.
        rows_max: u64,
    },
    /// The model cannot run on these values; the caller's mistake.
    #[error("the model cannot run on these inputs: {0}")]
    Inputs(String),
    /// The engine failed; our fault or the model's, details stay in the log.
    #[error("the engine failed on this request")]
    Engine(#[source] RunError),
}

impl From<RunError> for PredictError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Inputs(reason) => Self::Inputs(reason),
            RunError::Failed(_) | RunError::Output { .. } => Self::Engine(error),
        }
    }
}

impl Serving {
    /// An empty table.
    #[must_use]
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::default()),
            demand: Demand::new(settings.demand_waiting_max),
            draining: AtomicBool::new(false),
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
        self.table.swap(Arc::new(table))
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

    /// Runs a request on a version, on the calling thread.
    ///
    /// Takes `request.inputs`.
    pub fn predict(
        &self,
        version: &Version,
        worker: WorkerId,
        request: &mut InferRequest,
    ) -> Result<Prediction, PredictError> {
        let wanted = wanted_outputs(version, request)?;
        version.signature().arrange(&mut request.inputs, version.is_batched())?;
        version.parts().guards.check(&request.inputs)?;
        let rows = self.check_rows(version, request)?;
        let mut session = version.session(worker);
        let started = self.clock.now();
        let inputs = std::mem::take(&mut request.inputs);
        let outputs = version.tag().during(|| session.run(inputs, &wanted))?;
        let finished = self.clock.now();
        Ok(Prediction { outputs, wanted, rows, started, finished })
    }

    fn check_rows(&self, version: &Version, request: &InferRequest) -> Result<u64, PredictError> {
        if !version.is_batched() {
            return Ok(1);
        }
        let first = request.inputs.first().and_then(|input| input.tensor.shape().first().copied());
        let rows = first.and_then(|rows| u64::try_from(rows).ok()).unwrap_or(1);
        let rows_max = version.rows_max(&self.settings);
        if rows > rows_max { Err(PredictError::Rows { rows, rows_max }) } else { Ok(rows) }
    }
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
