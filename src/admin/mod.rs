//! The control plane's faces over HTTP: health, metrics and the admin API on a listener of its own, and the
//! protocol's repository API as a service that `app` mounts on the data plane.
//!
//! Always true:
//! - On an address other than loopback, without authentication, only `/metrics`, `/livez` and `/readyz` answer.
//! - An answered load or unload is done.
//!
//! Not here: predictions (`edge`), what load and unload do (`lifecycle`).

mod api;
mod events;
mod operations;
mod repository;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

pub use api::{LoadedReport, ModelList, ModelReport, Quantiles, VersionReport};
pub use operations::{OperationReport, OperationRequest};
pub use repository::{RepositoryApi, repository_service};

use crate::{
    lifecycle::Handle,
    monitor::{Exposition, Monitor},
    serve::Serving,
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
    /// Who loads, unloads and rolls back.
    pub lifecycle: Handle,
}

impl Admin {
    /// The admin plane's routes; `trusted` where only this machine can reach them.
    pub fn router(self, trusted: bool) -> Router {
        let open = Router::new()
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics));
        let guarded = if trusted {
            api::router().merge(operations::router()).merge(events::router())
        } else {
            Router::new().fallback(forbidden)
        };
        open.merge(guarded).fallback(not_found).with_state(self)
    }
}

async fn live() -> &'static str {
    "ok\n"
}

async fn ready(State(admin): State<Admin>) -> Response {
    let obstacles = admin.serving.obstacles();
    if obstacles.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, obstacles.join("\n") + "\n").into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut page = Exposition::of(&admin.monitor);
    state_of_versions(&admin.serving, &mut page);
    match page.write() {
        Ok(text) => ([(header::CONTENT_TYPE, Exposition::content_type())], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written")
                .into_response()
        }
    }
}

fn state_of_versions(serving: &Serving, page: &mut Exposition) {
    let table = serving.table();
    let (mut ready, mut sizes) = (Vec::new(), Vec::new());
    for model in table.models() {
        for entry in &model.versions {
            let is_ready = entry.version.is_some();
            ready.push((
                model.name.to_string(),
                entry.id.to_string(),
                f64::from(u8::from(is_ready)),
            ));
            if let Some(version) = &entry.version {
                #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
                let bytes = version.parts().size_bytes as f64;
                sizes.push((model.name.to_string(), entry.id.to_string(), bytes));
            }
        }
    }
    page.gauges("tidegate_version_ready", "Whether a version answers requests.", &labelled(&ready));
    page.gauges(
        "tidegate_version_size_bytes",
        "Size of a loaded version's files.",
        &labelled(&sizes),
    );
    let is_ready = f64::from(u8::from(serving.obstacles().is_empty()));
    page.gauges("tidegate_ready", "Whether the server takes requests.", &[(vec![], is_ready)]);
    let info = vec![("version", env!("CARGO_PKG_VERSION"))];
    page.gauges("tidegate_build_info", "The build that runs.", &[(info, 1.0)]);
}

/// Gauges with the labels `model` and `version`.
fn labelled(values: &[(String, String, f64)]) -> Vec<(Vec<(&str, &str)>, f64)> {
    let mut gauges = Vec::with_capacity(values.len());
    for (model, version, value) in values {
        gauges.push((vec![("model", model.as_str()), ("version", version.as_str())], *value));
    }
    gauges
}

async fn forbidden() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "the admin API answers on a loopback address only; set server.admin to one, for example 127.0.0.1:8002",
    )
}

async fn not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "there is nothing here; see /api/v1/models, /api/v1/events, /metrics, /livez, /readyz",
    )
}

/// An error as RFC 9457 writes it.
#[derive(Debug, Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { r#type: "about:blank", title, status: status.as_u16(), detail: detail.into() }
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
