//! `/api/v1`: what is served, for operators and the command line.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};

use crate::{
    model::{ArmName, TensorSpec, VersionId},
    monitor::{Part, Spread, VersionTotals},
    serve::{Entry, Model, Version},
};

use super::{Admin, Problem};

/// Every model.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelList {
    /// By name.
    pub models: Vec<ModelReport>,
    /// What is wrong with the server as a whole and stops nothing.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A model and its versions.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelReport {
    /// Its name.
    pub name: String,
    /// Why the model as a whole cannot be served, if so.
    pub problem: Option<String>,
    /// The version that a request without one gets, if any answers.
    pub answering: Option<u64>,
    /// What an operator decided that beats the repository.
    pub pinned: Option<String>,
    /// Names that stand for a version.
    pub aliases: BTreeMap<String, u64>,
    /// Its versions, ascending.
    pub versions: Vec<VersionReport>,
}

/// A version.
#[derive(Debug, Serialize, Deserialize)]
pub struct VersionReport {
    /// Its number.
    pub version: u64,
    /// `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
    pub state: String,
    /// Why, for people; empty if there is nothing to say.
    pub reason: String,
    /// More about a loaded version.
    pub loaded: Option<LoadedReport>,
}

/// A loaded version.
#[derive(Debug, Serialize, Deserialize)]
pub struct LoadedReport {
    /// The engine that runs it.
    pub engine: String,
    /// SHA-256 of the model file.
    pub digest: String,
    /// Size of its files in bytes.
    pub size_bytes: u64,
    /// What it is taken to occupy in memory, in bytes; what the budget counts.
    pub cost_bytes: u64,
    /// How many sessions it has.
    pub sessions: usize,
    /// Whether the first dimension of its tensors counts rows.
    pub batched: bool,
    /// Time to make its sessions, in milliseconds.
    pub load_ms: f64,
    /// Time of its warm-up runs, in milliseconds.
    pub warmup_ms: f64,
    /// Its fastest warm-up run, in microseconds.
    pub run_us: Option<f64>,
    /// Its inputs, such as `input FP32[-1,30]`.
    pub inputs: Vec<String>,
    /// Inputs that a request may leave out, in the same form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub optional_inputs: Vec<String>,
    /// Its outputs, likewise.
    pub outputs: Vec<String>,
    /// What an operator should know.
    pub notes: Vec<String>,
    /// Requests so far by status.
    pub requests: Vec<(u16, u64)>,
    /// Latency of all requests, from the last byte in to the finished response, in microseconds.
    pub latency_us: Quantiles,
    /// The parts of it that requests answered with success spent in each phase: `queue`, `decode`, `run`, `encode`.
    #[serde(default)]
    pub phases_us: BTreeMap<String, Quantiles>,
    /// The same by arm, of arms that have answered.
    #[serde(default)]
    pub arms: Vec<ArmReport>,
}

/// Requests that a version answered on one arm.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArmReport {
    /// The arm: `baseline`, `direct` where the path names the version, or one of a split.
    pub arm: String,
    /// Requests so far by status.
    pub requests: Vec<(u16, u64)>,
    /// Rows predicted.
    pub rows: u64,
    /// Latency of all requests, from the last byte in to the finished response, in microseconds.
    pub latency_us: Quantiles,
    /// The parts of it that requests answered with success spent in each phase: `queue`, `decode`, `run`, `encode`.
    pub phases_us: BTreeMap<String, Quantiles>,
}

/// Quantiles of a latency in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half are faster.
    pub p50: f64,
    /// 90 % are faster.
    pub p90: f64,
    /// 99 % are faster.
    pub p99: f64,
    /// 99.9 % are faster.
    #[serde(default)]
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/v1/models", get(list))
        .route("/api/v1/models/{model}", get(show))
        .route("/api/v1/models/{model}/versions/{version}/golden", get(golden))
}

async fn list(State(admin): State<Admin>) -> Json<ModelList> {
    let table = admin.serving.table();
    let models = table.models().into_iter().map(model_report).collect();
    Json(ModelList { models, notes: admin.monitor.upkeep().notes() })
}

/// The golden inputs and outputs that a version has reproduced.
async fn golden(
    State(admin): State<Admin>,
    Path((model, version)): Path<(String, String)>,
) -> Response {
    let table = admin.serving.table();
    let Some(found) = table.model(&model) else { return Problem::unknown_model().into_response() };
    let id = VersionId::parse(&version);
    let loaded = found.versions.iter().find(|entry| Some(entry.id) == id);
    let Some(loaded) = loaded.and_then(|entry| entry.version.clone()) else {
        let detail = format!("version {version} of `{model}` is not loaded");
        return Problem::new(StatusCode::NOT_FOUND, detail).into_response();
    };
    let lifecycle = admin.lifecycle.clone();
    let read = tokio::task::spawn_blocking(move || lifecycle.golden(&loaded)).await;
    match read.unwrap_or_else(|_| Err("it could not be read".to_owned())) {
        Ok(Some(golden)) => ([(CONTENT_TYPE, "application/json")], golden).into_response(),
        Ok(None) => {
            let detail = format!("version {version} of `{model}` has no golden.json");
            Problem::new(StatusCode::NOT_FOUND, detail).into_response()
        }
        Err(detail) => Problem::new(StatusCode::CONFLICT, detail).into_response(),
    }
}

async fn show(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    match admin.serving.table().model(&name) {
        Some(model) => Json(model_report(model)).into_response(),
        None => Problem::unknown_model().into_response(),
    }
}

fn model_report(model: &Model) -> ModelReport {
    ModelReport {
        name: model.name.to_string(),
        problem: model.problem.clone().or_else(|| {
            let nothing =
                || format!("it has no version; put the model at `{}/1/model.onnx`", model.name);
            model.versions.is_empty().then(nothing)
        }),
        answering: model.answering().map(|version| version.id().number()),
        pinned: model.pinned.clone(),
        aliases: (model.aliases.iter())
            .map(|(alias, version)| (alias.to_string(), version.number()))
            .collect(),
        versions: model.versions.iter().map(version_report).collect(),
    }
}

fn version_report(entry: &Entry) -> VersionReport {
    VersionReport {
        version: entry.id.number(),
        state: entry.state.to_string(),
        reason: entry.reason.clone(),
        loaded: entry.version.as_deref().map(LoadedReport::of),
    }
}

impl Quantiles {
    fn of(spread: &Spread) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "microseconds for people")]
        let quantile = |q: f64| spread.quantile(q) as f64 / 1e3;
        Self {
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
        }
    }
}

impl LoadedReport {
    /// What is known about a loaded version.
    pub fn of(version: &Version) -> Self {
        let (parts, signature) = (version.parts(), version.signature());
        // Read once, so that the parts add up to the whole.
        let mut totals = VersionTotals::default();
        let mut arms = Vec::new();
        for (arm, recorder) in parts.recorder.arms() {
            let own = recorder.totals();
            totals.add(&own);
            arms.extend(ArmReport::of(arm, &own));
        }
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        Self {
            engine: parts.engine.to_owned(),
            digest: parts.digest.clone(),
            size_bytes: parts.size_bytes,
            cost_bytes: version.cost_bytes(),
            sessions: version.sessions(),
            batched: version.is_batched(),
            load_ms: milliseconds(parts.load),
            warmup_ms: milliseconds(parts.warmup),
            run_us: parts.run.map(|run| run.as_secs_f64() * 1e6),
            inputs: signature.inputs.iter().map(TensorSpec::summary).collect(),
            optional_inputs: signature.optional.iter().map(TensorSpec::summary).collect(),
            outputs: signature.outputs.iter().map(TensorSpec::summary).collect(),
            notes: parts.notes.clone(),
            requests: by_status(&totals),
            latency_us: Quantiles::of(&totals.total),
            phases_us: by_phase(&totals),
            arms,
        }
    }
}

impl ArmReport {
    fn of(arm: ArmName, totals: &VersionTotals) -> Option<Self> {
        (!totals.codes.is_empty()).then(|| Self {
            arm: arm.as_str().to_owned(),
            requests: by_status(totals),
            rows: totals.rows,
            latency_us: Quantiles::of(&totals.total),
            phases_us: by_phase(totals),
        })
    }
}

fn by_status(totals: &VersionTotals) -> Vec<(u16, u64)> {
    totals.codes.iter().map(|(code, count)| (code.status(), *count)).collect()
}

fn by_phase(totals: &VersionTotals) -> BTreeMap<String, Quantiles> {
    let phases = Part::ALL.into_iter().zip(&totals.parts);
    phases.map(|(part, spread)| (part.name().to_owned(), Quantiles::of(spread))).collect()
}
