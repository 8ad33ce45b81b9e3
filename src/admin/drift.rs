//! `/api/v1/models/{model}/drift`: live features and outputs against their reference.

use std::time::Duration;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    drift::{DriftReport, Status, TestRequest},
    model::{ModelName, VersionId},
    rollout::Span,
};

use super::{
    Admin, Problem,
    request::{Errors, Fields},
    traffic::{named_version, parse, version_of},
};

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/v1/models/{model}/drift", get(show))
        .route("/api/v1/models/{model}/drift/test", post(test))
}

/// The longest window.
const WINDOW_MAX: Duration = Duration::from_hours(24);
const WINDOW_RULE: &str = "must be from 1m to 24h; up to 1h it counts minutes, above that hours";

/// Parameters of the page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    version: Option<String>,
    segment: Option<String>,
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
        let text = format!("`window` {WINDOW_RULE}");
        return Problem::new(StatusCode::BAD_REQUEST, text).into_response();
    }
    let of = (asked.version.as_deref(), asked.segment.as_deref());
    match report(&admin, &model, of, window) {
        Ok(report) => Json(report).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Tests a window against the reference.
async fn test(State(admin): State<Admin>, Path(model): Path<String>, body: Bytes) -> Response {
    let body =
        if body.is_empty() { Ok(Value::Object(serde_json::Map::new())) } else { parse(&body) };
    let body = match body {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let table = admin.serving.table();
    let (Some(known), Ok(name)) = (table.model(&model), ModelName::parse(&model)) else {
        return Problem::unknown_model().into_response();
    };
    let mut errors = Errors::default();
    let wanted = ["version", "segment", "window", "p_value", "correction", "drift_type", "include"];
    let (mut asked, mut version, mut segment) = (TestRequest::default(), None, None::<String>);
    if let Some(fields) = Fields::of(&body, "", &wanted, &mut errors) {
        if fields.get("version").is_some() {
            version = version_of(known, &fields, "version", &mut errors);
        }
        segment = word(&fields, "segment", "must be a text", &mut errors);
        asked.window = word(&fields, "window", "must be a duration such as \"1h\"", &mut errors)
            .map(|Span(window)| window);
        if asked.window.is_some_and(|window| window.is_zero() || window > WINDOW_MAX) {
            errors.add(format!("`window` {WINDOW_RULE}"));
        }
        let level = "must be a number between 0 and 1";
        asked.p_value = word(&fields, "p_value", level, &mut errors).unwrap_or(asked.p_value);
        if !(asked.p_value > 0.0 && asked.p_value < 1.0) {
            errors.add(format!("`p_value` {level}"));
        }
        let rule = "must be bonferroni or fdr";
        asked.correction = word(&fields, "correction", rule, &mut errors).unwrap_or_default();
        let rule = "must be feature or batch";
        asked.scope = word(&fields, "drift_type", rule, &mut errors).unwrap_or_default();
        let rule = "must be inputs, outputs or all";
        asked.include = word(&fields, "include", rule, &mut errors).unwrap_or_default();
    }
    if !errors.0.is_empty() {
        return Problem::of(errors).into_response();
    }
    if let Some(unknown) = unknown_segment(&admin, &name, segment.as_deref()) {
        return unknown.into_response();
    }
    if let Some(report) = admin.drift.test(&name, (version, segment.as_deref()), &asked) {
        return Json(report).into_response();
    }
    let text = "no version of the model is watched: none is loaded, or drift is off";
    Problem::new(StatusCode::CONFLICT, text).into_response()
}

/// A field of few words or one number.
fn word<T: serde::de::DeserializeOwned>(
    fields: &Fields<'_>,
    field: &str,
    rule: &str,
    errors: &mut Errors,
) -> Option<T> {
    let read = serde_json::from_value(fields.get(field)?.clone()).ok();
    if read.is_none() {
        errors.add(format!("`{field}` {rule}"));
    }
    read
}

/// The refusal of a segment that a model does not have.
fn unknown_segment(admin: &Admin, model: &ModelName, segment: Option<&str>) -> Option<Problem> {
    let segment = segment?;
    let text = match admin.drift.segments(model) {
        None => format!("no segments are declared for `{model}`: set [models.{model}.segments]"),
        Some(known) if known.iter().any(|known| known == segment) => return None,
        Some(known) => {
            let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
            format!("model `{model}` has no segment `{segment}`; there are {known}")
        }
    };
    Some(Problem::new(StatusCode::NOT_FOUND, text))
}

/// The page of a version, or of the one that had rows last; of a segment of its rows, if one is named.
fn report(
    admin: &Admin,
    model: &str,
    (version, segment): (Option<&str>, Option<&str>),
    window: Option<Duration>,
) -> Result<DriftReport, Problem> {
    let table = admin.serving.table();
    let (Some(known), Ok(name)) = (table.model(model), ModelName::parse(model)) else {
        return Err(Problem::unknown_model());
    };
    let is_known = |id: &VersionId| known.versions.iter().any(|entry| entry.id == *id);
    let version = match version {
        None => None,
        Some(version) => Some(named_version(known, version).filter(is_known).ok_or_else(|| {
            let text = format!("model `{name}` has no version `{version}`");
            Problem::new(StatusCode::NOT_FOUND, text)
        })?),
    };
    if let Some(unknown) = unknown_segment(admin, &name, segment) {
        return Err(unknown);
    }
    if let Some(report) = admin.drift.report(&name, (version, segment), window) {
        return Ok(report);
    }
    let (status, detail) = if admin.drift.settings(&name).enabled {
        let detail = match segment {
            Some(_) => "no rows of this segment came yet",
            None => "no version is loaded; its drift is watched while it serves",
        };
        (Status::Unmonitorable, detail)
    } else {
        (Status::Off, "drift is not watched: `drift.enabled = false`")
    };
    let version = version.map(|version| version.number().to_string()).unwrap_or_default();
    Ok(DriftReport::empty(model, version, status, detail))
}
