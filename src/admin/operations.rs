//! `/api/v1/models/{model}/...`: what operators may do to a model.

use axum::{
    Json, Router,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{post, put},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    lifecycle::{Operation, OperationError},
    model::{Alias, ModelName, VersionId},
    registry::Cause,
};

use super::{
    Admin, Problem,
    repository::status_of,
    request::{Errors, Fields},
};

/// What may be said with an operation; all of it may be left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OperationRequest {
    /// The version that is meant; a rollback may also call it `to`.
    #[serde(alias = "to", skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Who asks; `admin API` if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Why, for the audit trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// True if a version may answer from then on that the clients of the one before cannot use.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub signature_may_change: bool,
}

/// An operation that was carried out.
#[derive(Debug, Serialize, Deserialize)]
pub struct OperationReport {
    /// The model.
    pub model: String,
    /// The version that it came to, where one is meant.
    pub version: Option<u64>,
    /// Whether it outlives the process.
    pub durable: bool,
    /// Why it came to no newer version, where one cannot be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The most characters of an actor or a reason.
const WORDS_MAX: usize = 1000;

pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/api/v1/models/{model}/load", post(load))
        .route("/api/v1/models/{model}/unload", post(unload))
        .route("/api/v1/models/{model}/rollback", post(rollback))
        .route("/api/v1/models/{model}/unpin", post(unpin))
        .route("/api/v1/models/{model}/aliases/{alias}", put(set_alias).delete(remove_alias))
}

type Said = Result<Json<OperationRequest>, JsonRejection>;

async fn load(State(admin): State<Admin>, Path(model): Path<String>, said: Said) -> Response {
    operate(&admin, &model, said, |_| Ok(Operation::Load)).await
}

async fn unload(State(admin): State<Admin>, Path(model): Path<String>, said: Said) -> Response {
    operate(&admin, &model, said, |_| Ok(Operation::Unload)).await
}

async fn rollback(State(admin): State<Admin>, Path(model): Path<String>, said: Said) -> Response {
    operate(&admin, &model, said, |version| Ok(Operation::Rollback { to: version })).await
}

async fn unpin(State(admin): State<Admin>, Path(model): Path<String>, said: Said) -> Response {
    operate(&admin, &model, said, |_| Ok(Operation::Unpin)).await
}

async fn set_alias(
    State(admin): State<Admin>,
    Path((model, alias)): Path<(String, String)>,
    said: Said,
) -> Response {
    let operation = |version: Option<VersionId>| {
        let version =
            version.ok_or("`version` is missing: the number that the alias stands for")?;
        let alias = Alias::parse(&alias).map_err(|error| error.to_string())?;
        Ok(Operation::SetAlias { alias, version })
    };
    operate(&admin, &model, said, operation).await
}

async fn remove_alias(
    State(admin): State<Admin>,
    Path((model, alias)): Path<(String, String)>,
    said: Said,
) -> Response {
    let operation = |_| {
        let alias = Alias::parse(&alias).map_err(|error| error.to_string())?;
        Ok(Operation::RemoveAlias { alias })
    };
    operate(&admin, &model, said, operation).await
}

async fn operate(
    admin: &Admin,
    model: &str,
    said: Said,
    operation: impl FnOnce(Option<VersionId>) -> Result<Operation, String>,
) -> Response {
    let said = match said {
        Ok(Json(said)) => said,
        // Nothing need be said.
        Err(JsonRejection::MissingJsonContentType(_)) => OperationRequest::default(),
        // Well-formed JSON of another shape is as malformed as no JSON.
        Err(JsonRejection::JsonDataError(error)) => {
            return Problem::new(StatusCode::BAD_REQUEST, error.body_text()).into_response();
        }
        Err(error) => return Problem::new(error.status(), error.body_text()).into_response(),
    };
    let long =
        |text: &Option<String>| text.as_ref().is_some_and(|text| text.chars().count() > WORDS_MAX);
    if long(&said.actor) || long(&said.reason) {
        let detail = format!("`actor` and `reason` may have {WORDS_MAX} characters each");
        return Problem::new(StatusCode::BAD_REQUEST, detail).into_response();
    }
    let refused = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail).into_response();
    let operation = match operation(said.version.map(VersionId::new)) {
        Ok(operation) => operation,
        Err(detail) => return refused(detail),
    };
    let model = match ModelName::parse(model) {
        Ok(model) => model,
        Err(error) => return refused(error.to_string()),
    };
    let cause = Cause {
        actor: said.actor.unwrap_or_else(|| "admin API".to_owned()),
        reason: said.reason.unwrap_or_default(),
    };
    match admin.lifecycle.operate(model.clone(), operation, said.signature_may_change, cause).await
    {
        Ok(done) => Json(OperationReport {
            model: model.to_string(),
            version: done.version.map(VersionId::number),
            durable: done.durable,
            note: done.note,
        })
        .into_response(),
        Err(error) => refused_operation(&error, None),
    }
}

/// The answer to a change that was not made; `current` is what was to be changed, as it stands.
pub(super) fn refused_operation(error: &OperationError, current: Option<Value>) -> Response {
    let problem = Problem::new(status_of(error), error.to_string());
    Problem { current, ..problem }.into_response()
}

/// Reads who asks for a change, and why.
pub(super) fn cause_of(fields: &Fields<'_>, errors: &mut Errors) -> Cause {
    let mut words = |field: &str| {
        let text = fields.text(field, errors).unwrap_or_default();
        if text.chars().count() > WORDS_MAX {
            errors.add(format!("`{field}` may have {WORDS_MAX} characters"));
        }
        text.to_owned()
    };
    let (actor, reason) = (words("actor"), words("reason"));
    let actor = if actor.is_empty() { "admin API".to_owned() } else { actor };
    Cause { actor, reason }
}
