//! `/api/v1/models/{model}/drift`: live features and outputs against their reference.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde::Deserialize;

use crate::{
    drift::{DriftReport, Status},
    model::ModelName,
    rollout::Span,
};

use super::{Admin, Problem, traffic::named_version};

pub(super) fn router() -> Router<Admin> {
    Router::new().route("/api/v1/models/{model}/drift", get(show))
}

/// The longest window.
const WINDOW_MAX: Duration = Duration::from_hours(24);

/// Parameters of the page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    version: Option<String>,
    window: Option<Span>,
}

async fn show(
    State(admin): State<Admin>,
    Path(model): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(wrong) => {
            return Problem::new(StatusCode::BAD_REQUEST, wrong.body_text()).into_response();
        }
    };
    let window = asked.window.map(|Span(window)| window);
    if window.is_some_and(|window| window.is_zero() || window > WINDOW_MAX) {
        let text = "`window` must be from 1m to 24h; up to 1h it counts minutes, above that hours";
        return Problem::new(StatusCode::BAD_REQUEST, text).into_response();
    }
    match report(&admin, &model, asked.version.as_deref(), window) {
        Ok(report) => Json(report).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// The page of a version, or of the one that had rows last.
fn report(
    admin: &Admin,
    model: &str,
    version: Option<&str>,
    window: Option<Duration>,
) -> Result<DriftReport, Problem> {
    let table = admin.serving.table();
    let (Some(known), Ok(name)) = (table.model(model), ModelName::parse(model)) else {
        return Err(Problem::unknown_model());
    };
    let version = match version {
        None => None,
        Some(version) => Some(named_version(known, version).ok_or_else(|| {
            let text = format!("model `{name}` has no version `{version}`");
            Problem::new(StatusCode::NOT_FOUND, text)
        })?),
    };
    if let Some(report) = admin.drift.report(&name, version, window) {
        return Ok(report);
    }
    let (status, detail) = if admin.drift.settings(&name).enabled {
        (Status::Unmonitorable, "no version is loaded; its drift is watched while it serves")
    } else {
        (Status::Off, "drift is not watched: `drift.enabled = false`")
    };
    let version = version.map(|version| version.number().to_string()).unwrap_or_default();
    Ok(DriftReport::empty(model, version, status, detail))
}
