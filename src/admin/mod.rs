//! The control plane's faces over HTTP: health, metrics and the admin API on a listener of its own, and the
//! protocol's repository API as a service that `app` mounts on the data plane.
//!
//! Always true:
//! - On an address other than loopback, without authentication, only `/metrics`, `/livez` and `/readyz` answer.
//! - An answered load or unload is done.
//! - A web page of another site changes nothing, and reaches nothing that listens on loopback by a name of its own.
//!
//! Not here: predictions (`edge`), what load and unload do (`lifecycle`).

mod api;
mod drift;
mod events;
mod metrics;
mod notifications;
mod operations;
mod outcomes;
mod repository;
mod request;
mod rollouts;
mod server;
mod traffic;

use std::{fmt::Write as _, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

pub use api::{ArmReport, LoadedReport, ModelList, ModelReport, Quantiles, VersionReport};
pub use notifications::TestList;
pub use operations::{OperationReport, OperationRequest};
#[doc(hidden)]
pub use outcomes::check_outcomes;
pub use outcomes::with_outcomes;
pub use repository::{RepositoryApi, UploadLimits, repository_service};
pub use rollouts::{FreezeReport, RolloutList};
pub use server::{Limits, serve};

use crate::{
    drift::Drift,
    feedback::Feedback,
    lifecycle::Handle,
    model::VersionState,
    monitor::{Monitor, told},
    notify::Notifications,
    rollout::Rollouts,
    serve::{Samples, Serving},
    wire::stranger,
};

/// The admin listener's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens.
    pub address: SocketAddr,
}

/// What the admin plane looks at.
#[derive(Debug, Clone)]
pub struct Admin {
    /// What is served.
    pub serving: Arc<Serving>,
    /// What was counted.
    pub monitor: Arc<Monitor>,
    /// Watches drift.
    pub drift: Drift,
    /// Who loads, unloads and rolls back.
    pub lifecycle: Handle,
    /// Runs rollouts.
    pub rollouts: Rollouts,
    /// Takes outcomes of predictions.
    pub feedback: Feedback,
    /// Sends events to webhooks.
    pub notifications: Notifications,
    /// The queue for the table of predictions, where some are sampled.
    pub samples: Option<Arc<Samples>>,
    /// Gives random bits, for the keys of hashes.
    pub random: fn() -> u64,
}

impl Admin {
    /// A fresh key for the hash of a split.
    fn salt(&self) -> [u64; 2] {
        [(self.random)(), (self.random)()]
    }

    /// The admin plane's routes; `trusted` where only this machine can reach them.
    pub fn router(self, trusted: bool) -> Router {
        let open =
            Router::new().route("/livez", get(live)).route("/metrics", get(metrics::metrics));
        let guarded = if trusted {
            let api = api::router().merge(operations::router()).merge(events::router());
            let api = api.merge(traffic::router()).merge(rollouts::router()).merge(drift::router());
            let api = api.merge(outcomes::router());
            let api = api.merge(notifications::router());
            api.route("/readyz", get(ready_in_words))
        } else {
            Router::new().route("/readyz", get(ready)).fallback(forbidden)
        };
        let guard = move |request: Request, next: Next| keep_out(trusted, request, next);
        open.merge(guarded).fallback(not_found).layer(from_fn(guard)).with_state(self)
    }
}

/// Refuses what a web page of another site asks.
async fn keep_out(trusted: bool, request: Request, next: Next) -> Response {
    let (uri, headers) = (request.uri(), request.headers());
    let named = if trusted { stranger::check_name(uri, headers) } else { Ok(()) };
    let asked =
        if request.method().is_safe() { Ok(()) } else { stranger::check_page(uri, headers) };
    match named.and(asked) {
        Ok(()) => next.run(request).await,
        Err(stranger) => Problem::new(StatusCode::FORBIDDEN, stranger.to_string()).into_response(),
    }
}

/// Fails where only a new start helps; a model that is stuck in a run is no reason as long as others are served.
async fn live(State(admin): State<Admin>) -> Response {
    let mut broken = admin.monitor.upkeep().broken();
    broken.extend(admin.serving.watchdog().ailment());
    if broken.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, broken.join("\n") + "\n").into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    let obstacles = admin.serving.obstacles();
    if obstacles.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, obstacles.join("\n") + "\n").into_response()
}

/// With `?verbose`, also what is wrong and does not make the server unready.
async fn ready_in_words(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let obstacles = admin.serving.obstacles();
    let (status, mut text) = if obstacles.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, obstacles.join("\n") + "\n")
    };
    let mut asked = query.as_deref().unwrap_or_default().split('&');
    if asked.any(|word| word == "verbose" || word.starts_with("verbose=")) {
        let notes = admin.monitor.upkeep().notes();
        for note in notes.into_iter().chain(told(not_served(&admin.serving))) {
            let _ = writeln!(text, "note: {note}");
        }
    }
    (status, text).into_response()
}

/// Versions that nobody decided against and that do not answer, each with its reason.
fn not_served(serving: &Serving) -> Vec<String> {
    let table = serving.table();
    let mut told = Vec::new();
    for model in table.models() {
        let name = &model.name;
        if let Some(problem) = &model.problem {
            told.push(format!("{name}: {problem}"));
        } else if model.versions.is_empty() {
            told.push(format!("{name}: it has no version"));
        }
        let silent = model.versions.iter().filter(|entry| {
            entry.state == VersionState::Unavailable && !entry.on_demand && !entry.decided
        });
        told.extend(
            silent.map(|entry| {
                format!("{name} version {} is not served: {}", entry.id, entry.reason)
            }),
        );
    }
    told
}

async fn forbidden() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "the admin API answers on a loopback address only; set server.admin to one, for example 127.0.0.1:8002",
    )
}

async fn not_found(path: Uri) -> Problem {
    let detail = if path.path().starts_with("/v2") {
        "this port is for operators; predictions go to another (`server.http`, 8000)"
    } else {
        "there is nothing here; see /api/v1/models, /api/v1/events, /metrics, /livez, /readyz"
    };
    Problem::new(StatusCode::NOT_FOUND, detail)
}

/// An error as RFC 9457 writes it.
#[derive(Debug, Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// Errors, where there is more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
    /// Present state of what was to be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<serde_json::Value>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            r#type: "about:blank",
            title,
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            current: None,
        }
    }

    /// A malformed request.
    fn of(request::Errors(errors): request::Errors) -> Self {
        let problem = Self::new(StatusCode::BAD_REQUEST, errors.join("; "));
        if errors.len() > 1 { Self { errors, ..problem } } else { problem }
    }

    fn unknown_model() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no such model; see /api/v1/models")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
            .headers_mut()
            .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}
