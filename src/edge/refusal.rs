//! Errors as answers: the one place where a status and a public text are chosen.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
    },
};

use crate::{
    monitor::Outcome,
    serve::{DemandError, PredictError, RouteError},
    wire::v2::{ClassifyError, DecodeError, EncodeError},
};

/// A request that is not answered with what it asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
    extra: Extra,
    /// Whether the connection must end: something of the request was left unread.
    close: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Extra {
    None,
    Allow(&'static str),
    AcceptEncoding,
    RetryAfter,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), extra: Extra::None, close: false }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self { extra: Extra::RetryAfter, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, text) }
    }

    pub(super) fn method(allow: &'static str) -> Self {
        let text = format!("Method Not Allowed; use {allow}");
        Self { extra: Extra::Allow(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, text) }
    }

    pub(super) fn too_large(bytes_max: usize) -> Self {
        let text = format!(
            "the body is larger than the {bytes_max} bytes allowed; send fewer rows, or binary tensors, or raise \
             limits.body"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, text).closing()
    }

    pub(super) fn encoding() -> Self {
        let text = "unknown Content-Encoding; use gzip, deflate or identity";
        Self { extra: Extra::AcceptEncoding, ..Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text) }
            .closing()
    }

    pub(super) fn deadline() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "the request's deadline has passed")
    }

    /// The outcome of a call that is answered with this.
    pub(super) fn outcome(&self) -> Outcome {
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => Outcome::Capacity,
            StatusCode::GATEWAY_TIMEOUT => Outcome::Deadline,
            status if status == client_gone() => Outcome::Abandoned,
            status if status.is_client_error() => Outcome::Caller,
            _ => Outcome::Engine,
        }
    }

    /// Ends the connection after the answer.
    pub(super) fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    pub(super) fn into_response(self) -> Response<Bytes> {
        let body = serde_json::to_vec(&ErrorBody { error: &self.text }).unwrap_or_default();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        match self.extra {
            Extra::None => None,
            Extra::Allow(methods) => headers.insert(ALLOW, HeaderValue::from_static(methods)),
            Extra::AcceptEncoding => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"))
            }
            Extra::RetryAfter => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
        };
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// nginx's code for a client that has gone before its answer.
fn client_gone() -> StatusCode {
    StatusCode::from_u16(499).expect("three digits are a status")
}

#[derive(serde::Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<RouteError> for Refusal {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::UnknownModel(_)
            | RouteError::UnknownVersion { .. }
            | RouteError::UnknownArm { .. } => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            RouteError::Unlisted(_) | RouteError::NotReady { .. } | RouteError::Asleep { .. } => {
                Self::unavailable(error.to_string())
            }
        }
    }
}

impl From<DemandError> for Refusal {
    fn from(error: DemandError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<PredictError> for Refusal {
    fn from(error: PredictError) -> Self {
        match &error {
            PredictError::Signature(_)
            | PredictError::Guarded(_)
            | PredictError::Contract(_)
            | PredictError::Oversized(_)
            | PredictError::Rows { .. }
            | PredictError::Inputs(_) => Self::bad_request(error.to_string()),
            PredictError::Deadline => Self::deadline(),
            PredictError::Leaving(_) | PredictError::Stopping | PredictError::Crowded(_) => {
                Self::unavailable(error.to_string())
            }
            // Nobody reads this answer; it only has a code to be counted by.
            PredictError::Gone | PredictError::Lost => {
                Self::new(client_gone(), error.to_string()).closing()
            }
            PredictError::Engine(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
        }
    }
}

impl From<ClassifyError> for Refusal {
    fn from(error: ClassifyError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        Self::bad_request(error.to_string())
    }
}
