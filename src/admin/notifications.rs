//! `/api/v1/notifications`: webhooks as they stand, and tests of them; and an operator's request to train a model anew.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    model::ModelName,
    notify::{NotifyError, TestReport},
};

use super::{
    Admin, Problem,
    operations::cause_of,
    request::{Errors, Fields},
    traffic::parse,
};

/// Results of a test of webhooks.
#[derive(Debug, Serialize, Deserialize)]
pub struct TestList {
    /// One for each webhook that was tested.
    pub results: Vec<TestReport>,
}

/// Notifications of one answer, if the request does not say.
const LIMIT: usize = 100;

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/v1/notifications", get(list))
        .route("/api/v1/notifications/test", post(test))
        .route("/api/v1/models/{model}/retrain", post(retrain))
}

/// Part of a list that is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    limit: Option<usize>,
}

async fn list(State(admin): State<Admin>, part: Result<Query<Part>, QueryRejection>) -> Response {
    match part {
        Ok(Query(part)) => {
            Json(admin.notifications.report(part.limit.unwrap_or(LIMIT))).into_response()
        }
        Err(error) => Problem::new(StatusCode::BAD_REQUEST, error.body_text()).into_response(),
    }
}

async fn test(State(admin): State<Admin>, body: Bytes) -> Response {
    let body = match parse_or_empty(&body) {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let mut errors = Errors::default();
    let fields = Fields::of(&body, "", &["webhook"], &mut errors);
    let webhook = fields.and_then(|fields| fields.text("webhook", &mut errors)).map(str::to_owned);
    if !errors.0.is_empty() {
        return Problem::of(errors).into_response();
    }
    match admin.notifications.test(webhook).await {
        Ok(results) => Json(TestList { results }).into_response(),
        Err(error) => refused(&error),
    }
}

async fn retrain(State(admin): State<Admin>, Path(model): Path<String>, body: Bytes) -> Response {
    let name = match ModelName::parse(&model) {
        Ok(name) if admin.serving.table().model(&model).is_some() => name,
        _ => return Problem::unknown_model().into_response(),
    };
    let body = match parse_or_empty(&body) {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let mut errors = Errors::default();
    let fields = Fields::of(&body, "", &["actor", "reason"], &mut errors);
    let cause = fields.map(|fields| cause_of(&fields, &mut errors)).unwrap_or_default();
    if !errors.0.is_empty() {
        return Problem::of(errors).into_response();
    }
    match admin.notifications.retrain(name, cause.actor, cause.reason).await {
        Ok(object) => (StatusCode::ACCEPTED, Json(object)).into_response(),
        Err(error) => refused(&error),
    }
}

fn parse_or_empty(body: &Bytes) -> Result<Value, Problem> {
    if body.is_empty() { Ok(Value::Object(serde_json::Map::new())) } else { parse(body) }
}

fn refused(error: &NotifyError) -> Response {
    let status = match error {
        NotifyError::None => StatusCode::CONFLICT,
        NotifyError::Unknown { .. } => StatusCode::NOT_FOUND,
        NotifyError::Busy | NotifyError::Gone => StatusCode::SERVICE_UNAVAILABLE,
    };
    Problem::new(status, error.to_string()).into_response()
}
