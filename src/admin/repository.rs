//! The protocol's repository API: index, load, unload.
//!
//! Source: Triton's model repository extension; load and unload answer 503 where the API is off, as Triton
//! does outside its explicit mode.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde::Serialize;
use tower::util::BoxCloneSyncService;

use crate::{
    lifecycle::{Done, Handle, Operation, OperationError},
    model::ModelName,
    registry::Cause,
    serve::Serving,
    wire::v2::objects::{ErrorBody, IndexEntry, IndexRequest, LoadRequest, UnloadRequest},
};

/// What the repository API works on.
#[derive(Debug, Clone)]
pub struct RepositoryApi {
    /// What is served.
    pub serving: Arc<Serving>,
    /// Who loads and unloads.
    pub lifecycle: Handle,
    /// Whether load and unload are allowed.
    pub enabled: bool,
}

type Answer = Response<Bytes>;

/// The API as a service over whole requests.
pub fn repository_service(
    api: RepositoryApi,
) -> BoxCloneSyncService<Request<Bytes>, Answer, Infallible> {
    BoxCloneSyncService::new(tower::service_fn(move |request: Request<Bytes>| {
        let api = api.clone();
        async move { Ok(api.answer(&request).await) }
    }))
}

impl RepositoryApi {
    async fn answer(&self, request: &Request<Bytes>) -> Answer {
        let path = request.uri().path().strip_prefix("/v2/repository/").unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        debug_assert_eq!(request.method(), Method::POST, "the data plane lets only POST through");
        match parts[..] {
            ["index"] | [_, "index"] => self.index(request.body()),
            ["models", model, "load"] => self.load(model, request.body()).await,
            ["models", model, "unload"] => self.unload(model, request.body()).await,
            [_, "models", _, "load" | "unload"] => error(
                StatusCode::NOT_IMPLEMENTED,
                "naming a repository is not supported; leave it out",
            ),
            _ => error(StatusCode::NOT_FOUND, "Not Found"),
        }
    }

    fn index(&self, body: &[u8]) -> Answer {
        let request = match IndexRequest::decode(body) {
            Ok(request) => request,
            Err(problem) => return error(StatusCode::BAD_REQUEST, problem.to_string()),
        };
        let table = self.serving.table();
        let mut entries = Vec::new();
        for model in table.models() {
            for version in &model.versions {
                if !request.ready || version.version.is_some() {
                    entries.push(IndexEntry {
                        name: &model.name,
                        version: Some(version.id),
                        state: Some(version.state),
                        reason: Some(&version.reason),
                    });
                }
            }
            if model.versions.is_empty() && !request.ready {
                let reason = model.problem.as_deref();
                entries.push(IndexEntry { name: &model.name, version: None, state: None, reason });
            }
        }
        json(StatusCode::OK, &entries)
    }

    async fn load(&self, model: &str, body: &[u8]) -> Answer {
        let request = match LoadRequest::decode(body) {
            Ok(request) => request,
            Err(problem) => return error(StatusCode::BAD_REQUEST, problem.to_string()),
        };
        if request.config.is_some() || !request.files.is_empty() {
            return error(
                StatusCode::SERVICE_UNAVAILABLE,
                "models from requests are switched off; put the model into the repository",
            );
        }
        match self.named(model) {
            Ok(model) => done(self.operate(model, Operation::Load).await),
            Err(answer) => answer,
        }
    }

    async fn unload(&self, model: &str, body: &[u8]) -> Answer {
        if let Err(problem) = UnloadRequest::decode(body) {
            return error(StatusCode::BAD_REQUEST, problem.to_string());
        }
        match self.named(model) {
            Ok(model) => done(self.operate(model, Operation::Unload).await),
            Err(answer) => answer,
        }
    }

    async fn operate(
        &self,
        model: ModelName,
        operation: Operation,
    ) -> Result<Done, OperationError> {
        self.lifecycle.operate(model, operation, Cause::by("repository API")).await
    }

    #[expect(clippy::result_large_err, reason = "an answer is what the caller needs")]
    fn named(&self, model: &str) -> Result<ModelName, Answer> {
        if !self.enabled {
            return Err(error(
                StatusCode::SERVICE_UNAVAILABLE,
                "explicit model load / unload is not allowed; set repository.api = \"on\"",
            ));
        }
        ModelName::parse(model)
            .map_err(|problem| error(StatusCode::BAD_REQUEST, problem.to_string()))
    }
}

fn done(result: Result<Done, OperationError>) -> Answer {
    match result {
        Ok(_) => json(StatusCode::OK, &serde_json::json!({})),
        Err(problem) => error(status_of(&problem), problem.to_string()),
    }
}

/// The status for an operation that was not done.
pub(super) fn status_of(problem: &OperationError) -> StatusCode {
    match problem {
        OperationError::Unknown(_)
        | OperationError::UnknownVersion { .. }
        | OperationError::UnknownAlias { .. } => StatusCode::NOT_FOUND,
        OperationError::Failed { .. } => StatusCode::BAD_REQUEST,
        OperationError::NothingOlder { .. } => StatusCode::CONFLICT,
        OperationError::Unrecorded(_) | OperationError::NotDurable { .. } => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        OperationError::Busy => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn error(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = json(status, &ErrorBody { error: text.into().into() });
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let body = serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer could not be written");
        Vec::new()
    });
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
