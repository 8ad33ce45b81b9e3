//! `/api/v1/rollouts` and `/api/v1/freeze`: starting, watching and steering rollouts.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    model::{ModelName, Moment},
    rollout::{Frozen, Order, PolicyDraft, Report, RolloutError, Wanted, page},
};

use super::{
    Admin, Problem,
    operations::{cause_of, refused_operation},
    request::{Errors, Fields},
    traffic::{etag, if_match, parse, version_of},
};

/// Rollouts, the newest first.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolloutList {
    /// The rollouts.
    pub rollouts: Vec<Report>,
}

/// State of the freeze of all automation.
#[derive(Debug, Serialize, Deserialize)]
pub struct FreezeReport {
    /// True if all automation is stopped.
    pub frozen: bool,
    /// Since when.
    pub since: Option<Moment>,
    /// By whom.
    pub by: Option<String>,
    /// Reason, in their words.
    pub reason: Option<String>,
}

/// Rollouts of one answer, if the request does not say.
const LIMIT: usize = 100;
/// The most rollouts of one answer.
const LIMIT_MAX: usize = 200;

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/v1/rollouts", get(list).post(start))
        .route("/api/v1/rollouts/plan", post(plan))
        .route("/api/v1/rollouts/{id}", get(show))
        .route("/api/v1/rollouts/{id}/evidence", get(evidence))
        .route("/api/v1/rollouts/{id}/why", get(why))
        .route("/api/v1/rollouts/{id}/{order}", post(order))
        .route("/api/v1/freeze", get(frozen).post(freeze).delete(thaw))
}

/// Part of a list that is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    model: Option<String>,
    before: Option<String>,
    limit: Option<usize>,
}

async fn list(State(admin): State<Admin>, part: Result<Query<Part>, QueryRejection>) -> Response {
    let part = match part {
        Ok(Query(part)) => part,
        Err(error) => {
            return Problem::new(StatusCode::BAD_REQUEST, error.body_text()).into_response();
        }
    };
    let limit = part.limit.unwrap_or(LIMIT).min(LIMIT_MAX);
    match admin.rollouts.list(part.model, part.before, limit).await {
        Ok(rollouts) => Json(RolloutList { rollouts }).into_response(),
        Err(error) => refused(error),
    }
}

async fn show(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    answer(admin.rollouts.show(&id).await, StatusCode::OK)
}

async fn evidence(State(admin): State<Admin>, Path(id): Path<String>) -> Response {
    match admin.rollouts.evidence(&id).await {
        Ok(bundle) => Json(bundle).into_response(),
        Err(error) => refused(error),
    }
}

/// The page about a rollout: HTML where that is asked for, else Markdown.
async fn why(State(admin): State<Admin>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let report = match admin.rollouts.show(&id).await {
        Ok(report) => report,
        Err(error) => return refused(error),
    };
    let accepted = headers.get_all(header::ACCEPT).iter();
    let is_html = accepted
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains("text/html"));
    let (kind, text) = if is_html {
        match admin.rollouts.evidence(&id).await {
            Ok(bundle) => ("text/html; charset=utf-8", page::html(&report, &bundle.trace())),
            Err(error) => return refused(error),
        }
    } else {
        ("text/markdown; charset=utf-8", page::markdown(&report))
    };
    ([(header::CONTENT_TYPE, kind), (header::VARY, "accept")], text).into_response()
}

async fn start(State(admin): State<Admin>, body: Bytes) -> Response {
    let body = match parse(&body) {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let mut errors = Errors::default();
    let known = ["model", "candidate", "baseline", "policy", "actor", "reason", "force"];
    let Some(fields) = Fields::of(&body, "", &known, &mut errors) else {
        return Problem::of(errors).into_response();
    };
    let cause = cause_of(&fields, &mut errors);
    let policy = policy(&fields, &mut errors);
    let force = fields.truth("force", &mut errors).unwrap_or(false);
    let model = model(&fields, &mut errors);
    let (mut candidate, mut baseline) = (None, None);
    if let Some(model) = &model {
        let table = admin.serving.table();
        let Some(known) = table.model(model) else {
            return Problem::unknown_model().into_response();
        };
        candidate = version_of(known, &fields, "candidate", &mut errors);
        if fields.get("baseline").is_some() {
            baseline = version_of(known, &fields, "baseline", &mut errors);
        }
    }
    match (model, candidate) {
        (Some(model), Some(candidate)) if errors.0.is_empty() => {
            let wanted =
                Wanted { model, candidate, baseline, policy, force, cause, by_itself: false };
            answer(admin.rollouts.start(wanted).await, StatusCode::CREATED)
        }
        _ => Problem::of(errors).into_response(),
    }
}

fn model(fields: &Fields<'_>, errors: &mut Errors) -> Option<ModelName> {
    let Some(name) = fields.text("model", errors) else {
        if fields.get("model").is_none() {
            errors.add("`model` is missing");
        }
        return None;
    };
    ModelName::parse(name).map_err(|error| errors.add(error.to_string())).ok()
}

fn policy(fields: &Fields<'_>, errors: &mut Errors) -> PolicyDraft {
    let Some(policy) = fields.get("policy") else { return PolicyDraft::default() };
    PolicyDraft::read(policy).unwrap_or_else(|wrong| {
        errors.0.extend(wrong);
        PolicyDraft::default()
    })
}

async fn plan(State(admin): State<Admin>, body: Bytes) -> Response {
    let body = match parse(&body) {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let mut errors = Errors::default();
    let known = ["model", "policy", "rate", "base"];
    let Some(fields) = Fields::of(&body, "", &known, &mut errors) else {
        return Problem::of(errors).into_response();
    };
    let policy = policy(&fields, &mut errors);
    let rate = fields.get("rate").map(Value::as_f64);
    if rate.is_some_and(|rate| !rate.is_some_and(|rate| (0.001..=1e9).contains(&rate))) {
        errors.add("`rate` must be a number of requests per second, at least 0.001");
    }
    let base = fields.share("base", &mut errors);
    match model(&fields, &mut errors) {
        Some(model) if errors.0.is_empty() => {
            match admin.rollouts.plan(model, policy, (rate.flatten(), base)).await {
                Ok(plan) => Json(plan).into_response(),
                Err(error) => refused(error),
            }
        }
        _ => Problem::of(errors).into_response(),
    }
}

async fn order(
    State(admin): State<Admin>,
    Path((id, order)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let order = match order.as_str() {
        "pause" => Order::Pause,
        "resume" => Order::Resume,
        "approve" => Order::Approve,
        "promote" => Order::Promote,
        "abort" => Order::Abort,
        _ => {
            let detail = "a rollout takes pause, resume, approve, promote and abort";
            return Problem::new(StatusCode::NOT_FOUND, detail).into_response();
        }
    };
    let (cause, mut errors) = match said(&body) {
        Ok(said) => said,
        Err(problem) => return problem.into_response(),
    };
    let revision = if_match(&headers, &mut errors);
    if !errors.0.is_empty() {
        return Problem::of(errors).into_response();
    }
    answer(admin.rollouts.order(&id, order, cause, revision).await, StatusCode::OK)
}

/// Reads who asks and why, where nothing else is said.
fn said(body: &Bytes) -> Result<(crate::registry::Cause, Errors), Problem> {
    let mut errors = Errors::default();
    let body = if body.is_empty() { Value::Object(serde_json::Map::new()) } else { parse(body)? };
    let fields = Fields::of(&body, "", &["actor", "reason"], &mut errors);
    let cause = fields.map(|fields| cause_of(&fields, &mut errors)).unwrap_or_default();
    Ok((cause, errors))
}

async fn frozen(State(admin): State<Admin>) -> Response {
    shown(admin.rollouts.frozen().await)
}

async fn freeze(State(admin): State<Admin>, body: Bytes) -> Response {
    set_frozen(&admin, true, &body).await
}

async fn thaw(State(admin): State<Admin>, body: Bytes) -> Response {
    set_frozen(&admin, false, &body).await
}

async fn set_frozen(admin: &Admin, freeze: bool, body: &Bytes) -> Response {
    match said(body) {
        Ok((cause, errors)) if errors.0.is_empty() => {
            shown(admin.rollouts.freeze(freeze, cause).await)
        }
        Ok((_, errors)) => Problem::of(errors).into_response(),
        Err(problem) => problem.into_response(),
    }
}

fn shown(frozen: Result<Option<Frozen>, RolloutError>) -> Response {
    match frozen {
        Ok(None) => Json(FreezeReport { frozen: false, since: None, by: None, reason: None })
            .into_response(),
        Ok(Some(Frozen { since, by, reason })) => {
            let (since, by, reason) = (Some(since), Some(by), Some(reason));
            Json(FreezeReport { frozen: true, since, by, reason }).into_response()
        }
        Err(error) => refused(error),
    }
}

fn answer(report: Result<Report, RolloutError>, status: StatusCode) -> Response {
    let report = match report {
        Ok(report) => report,
        Err(error) => return refused(error),
    };
    let (revision, place) = (report.revision, format!("/api/v1/rollouts/{}", report.id));
    let mut response = (status, Json(report)).into_response();
    response.headers_mut().insert(header::ETAG, etag(revision));
    if status == StatusCode::CREATED
        && let Ok(place) = HeaderValue::try_from(place)
    {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

fn refused(error: RolloutError) -> Response {
    let text = error.to_string();
    let value = |report: Box<Report>| serde_json::to_value(report).ok();
    let (status, current) = match error {
        RolloutError::Malformed(errors) => return Problem::of(Errors(errors)).into_response(),
        RolloutError::Unknown(_) => (StatusCode::NOT_FOUND, None),
        RolloutError::Conflict { current, .. } => (StatusCode::CONFLICT, current.and_then(value)),
        RolloutError::Revision { current } => (StatusCode::PRECONDITION_FAILED, value(current)),
        RolloutError::Unservable(error) => {
            let unservable = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text);
            return match error {
                crate::lifecycle::OperationError::Failed { .. } => unservable.into_response(),
                error => refused_operation(&error, None),
            };
        }
        RolloutError::Unrecorded(_) | RolloutError::NotYetRecorded(_) => {
            (StatusCode::INSUFFICIENT_STORAGE, None)
        }
        RolloutError::Gone => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    let problem = Problem::new(status, text);
    Problem { current, ..problem }.into_response()
}
