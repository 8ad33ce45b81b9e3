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
    lifecycle::{Done, Handle, Operation, OperationError, UploadPlace},
    model::ModelName,
    registry::Cause,
    serve::Serving,
    wire::{
        stranger::{self, Stranger},
        v2::{
            LoadRequest,
            objects::{BodyError, ErrorBody, IndexEntry, IndexRequest, UnloadRequest},
        },
    },
};

pub use crate::wire::v2::UploadLimits;

/// What the repository API works on.
#[derive(Debug, Clone)]
pub struct RepositoryApi {
    /// What is served.
    pub serving: Arc<Serving>,
    /// Who loads and unloads.
    pub lifecycle: Handle,
    /// Whether load and unload are allowed.
    pub enabled: bool,
    /// Whether only this machine can reach the data plane.
    pub local: bool,
    /// What a load may bring; `None` where it may bring nothing.
    pub uploads: Option<UploadLimits>,
}

/// Larger bodies than this are read on another thread than the one that answers requests.
const READ_HERE_MAX: usize = 16 << 10;

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
        if let [.., "load" | "unload"] = parts[..]
            && let Err(stranger) = self.keep_out(request)
        {
            return error(StatusCode::FORBIDDEN, stranger.to_string());
        }
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

    /// Refuses what a web page of another site asks.
    fn keep_out(&self, request: &Request<Bytes>) -> Result<(), Stranger> {
        let (uri, headers) = (request.uri(), request.headers());
        if self.local {
            stranger::check_name(uri, headers)?;
        }
        stranger::check_page(uri, headers)
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

    async fn load(&self, model: &str, body: &Bytes) -> Answer {
        let loaded = match self.named(model) {
            Ok(model) => self.load_named(model, body).await,
            Err(answer) => Err(answer),
        };
        loaded.unwrap_or_else(|answer| answer)
    }

    async fn load_named(&self, model: ModelName, body: &Bytes) -> Result<Answer, Answer> {
        let (mut place, limits) = (None, self.uploads);
        let request = if body.len() > READ_HERE_MAX && limits.is_some() {
            place = Some(self.upload_place()?);
            let body = body.clone();
            let read = move || LoadRequest::decode(&body, limits.as_ref());
            tokio::task::spawn_blocking(read).await.map_err(|_| {
                error(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the body could not be read; the log has more",
                )
            })?
        } else {
            LoadRequest::decode(body, limits.as_ref())
        };
        let request = request.map_err(|problem| match problem {
            BodyError::UploadsOff => error(
                StatusCode::SERVICE_UNAVAILABLE,
                "models from requests are switched off; set repository.uploads = true, or put the model into the repository",
            ),
            problem => error(StatusCode::BAD_REQUEST, problem.to_string()),
        })?;
        let LoadRequest { config: Some(config), files } = request else {
            return Ok(done(self.operate(model, Operation::Load).await));
        };
        let place = match place {
            Some(place) => place,
            None => self.upload_place()?,
        };
        let files = files.into_iter().map(|file| (file.path, file.bytes.into())).collect();
        let cause = Cause::by("repository API");
        Ok(done(self.lifecycle.upload(place, model, (config, files), cause).await))
    }

    #[expect(clippy::result_large_err, reason = "an answer is what the caller needs")]
    fn upload_place(&self) -> Result<UploadPlace, Answer> {
        let busy =
            || error(StatusCode::SERVICE_UNAVAILABLE, "another model is being uploaded; try again");
        self.lifecycle.upload_place().ok_or_else(busy)
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
        self.lifecycle.operate(model, operation, false, Cause::by("repository API")).await
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
        OperationError::Failed { .. } | OperationError::Unfit { .. } => StatusCode::BAD_REQUEST,
        OperationError::NothingOlder { .. }
        | OperationError::Unloaded(_)
        | OperationError::InRollout { .. } => StatusCode::CONFLICT,
        OperationError::Revision { .. } => StatusCode::PRECONDITION_FAILED,
        OperationError::Unrecorded(_)
        | OperationError::NotKept { .. }
        | OperationError::NotDurable { .. } => StatusCode::INSUFFICIENT_STORAGE,
        OperationError::Busy | OperationError::Broken => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// An answer on the data plane that says why not.
pub(super) fn error(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = json(status, &ErrorBody { error: text.into().into() });
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

/// An answer on the data plane.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let body = serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer could not be written");
        Vec::new()
    });
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
