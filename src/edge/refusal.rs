//! Errors as answers: the one place where a status and a public text are chosen.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
    },
};

use crate::{
    monitor::{Outcome, Reason},
    serve::{DemandError, PredictError, RouteError},
    wire::v2::{ClassifyError, DecodeError, EncodeError},
};

/// A request that is not answered with what it asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Reason that it is counted under, beside its status.
    reason: Reason,
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
    pub(super) fn new(reason: Reason, status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, reason, text: text.into(), extra: Extra::None, close: false }
    }

    pub(super) fn bad_request(reason: Reason, text: impl Into<String>) -> Self {
        Self::new(reason, StatusCode::BAD_REQUEST, text)
    }

    pub(super) fn malformed(text: impl Into<String>) -> Self {
        Self::bad_request(Reason::Malformed, text)
    }

    pub(super) fn unavailable(reason: Reason, text: impl Into<String>) -> Self {
        let extra = Extra::RetryAfter;
        Self { extra, ..Self::new(reason, StatusCode::SERVICE_UNAVAILABLE, text) }
    }

    pub(super) fn nothing_here() -> Self {
        Self::new(Reason::Path, StatusCode::NOT_FOUND, "Not Found")
    }

    /// The answer to a path that is not there; who asks for one of the admin plane took the wrong port.
    pub(super) fn nothing_at(path: &str) -> Self {
        let admin = ["/api/", "/metrics", "/livez", "/readyz"];
        if !admin.iter().any(|begin| path.starts_with(begin)) {
            return Self::nothing_here();
        }
        let text = "Not Found: this port takes predictions; the admin API, health and metrics are on another (`server.admin`, 8002)";
        Self::new(Reason::Path, StatusCode::NOT_FOUND, text)
    }

    pub(super) fn method(allow: &'static str) -> Self {
        let text = format!("Method Not Allowed; use {allow}");
        let extra = Extra::Allow(allow);
        Self { extra, ..Self::new(Reason::Method, StatusCode::METHOD_NOT_ALLOWED, text) }
    }

    pub(super) fn too_large(bytes_max: usize) -> Self {
        let text = format!(
            "the body is larger than the {bytes_max} bytes allowed; send fewer rows, or binary tensors, or raise \
             limits.body"
        );
        Self::new(Reason::BodySize, StatusCode::PAYLOAD_TOO_LARGE, text).closing()
    }

    pub(super) fn encoding() -> Self {
        let text = "unknown Content-Encoding; use gzip, deflate or identity";
        let extra = Extra::AcceptEncoding;
        Self { extra, ..Self::new(Reason::Encoding, StatusCode::UNSUPPORTED_MEDIA_TYPE, text) }
            .closing()
    }

    pub(super) fn deadline() -> Self {
        let text = "the request's deadline has passed";
        Self::new(Reason::Deadline, StatusCode::GATEWAY_TIMEOUT, text)
    }

    /// The client went away while it was sending; nobody reads this answer.
    pub(super) fn gone() -> Self {
        Self::bad_request(Reason::Gone, "the body ended early").closing()
    }

    pub(super) fn internal(text: impl Into<String>) -> Self {
        Self::new(Reason::Internal, StatusCode::INTERNAL_SERVER_ERROR, text)
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
        // Taken out and counted before the answer is on its way.
        response.extensions_mut().insert(self.reason);
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
        Self::malformed(error.to_string())
    }
}

impl From<RouteError> for Refusal {
    fn from(error: RouteError) -> Self {
        let text = error.to_string();
        match error {
            RouteError::UnknownModel(_) => {
                Self::new(Reason::UnknownModel, StatusCode::NOT_FOUND, text)
            }
            RouteError::UnknownVersion { .. } | RouteError::UnknownArm { .. } => {
                Self::new(Reason::UnknownVersion, StatusCode::NOT_FOUND, text)
            }
            RouteError::Unlisted(_) | RouteError::NotReady { .. } | RouteError::Asleep { .. } => {
                Self::unavailable(Reason::NotReady, text)
            }
        }
    }
}

impl From<DemandError> for Refusal {
    fn from(error: DemandError) -> Self {
        let reason = match &error {
            DemandError::Crowded { .. } => Reason::DemandWaiting,
            DemandError::Refused { .. } => Reason::NotReady,
        };
        Self::unavailable(reason, error.to_string())
    }
}

impl From<PredictError> for Refusal {
    fn from(error: PredictError) -> Self {
        let text = error.to_string();
        match error {
            PredictError::Signature(_) => Self::bad_request(Reason::Signature, text),
            PredictError::Contract(_) => Self::bad_request(Reason::Contract, text),
            PredictError::Rows { .. } => Self::bad_request(Reason::Rows, text),
            PredictError::Guarded(_) | PredictError::Oversized(_) | PredictError::Inputs(_) => {
                Self::bad_request(Reason::Inputs, text)
            }
            PredictError::Deadline => Self::deadline(),
            PredictError::Leaving(_) | PredictError::Stopping => {
                Self::unavailable(Reason::Stopping, text)
            }
            PredictError::Crowded(_) => Self::unavailable(Reason::Memory, text),
            // Nobody reads this answer; it only has a code to be counted by.
            PredictError::Gone | PredictError::Lost => {
                Self::new(Reason::Gone, client_gone(), text).closing()
            }
            PredictError::Engine(_) => {
                Self::new(Reason::Engine, StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        }
    }
}

impl From<ClassifyError> for Refusal {
    fn from(error: ClassifyError) -> Self {
        Self::bad_request(Reason::Outputs, error.to_string())
    }
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        Self::bad_request(Reason::Outputs, error.to_string())
    }
}
