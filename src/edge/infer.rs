//! The path of a prediction, from the head of its request to its response.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE, VARY},
    request::Parts,
};
use http_body_util::Full;
use hyper::body::Incoming;
use smallvec::SmallVec;

use crate::{
    model::{InferRequest, InferResponse, RequestedOutput, ResponseOutput, VersionSelector},
    monitor::{Code, Sample},
    serve::{Prediction, RouteError, Version},
    wire::v2,
};

use super::{
    body::{Deadline, Unread},
    compression::Encoding,
    demand::Patience,
    identity::Name,
    refusal::Refusal,
    service::Worker,
};

const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static PREDICTION_ID: HeaderName = HeaderName::from_static("x-tidegate-prediction-id");
const VERSION: HeaderName = HeaderName::from_static("x-tidegate-version");
const ARM: HeaderName = HeaderName::from_static("x-tidegate-arm");

/// The longest request id of a client that is echoed.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Answers an inference request, and counts it.
pub(super) async fn infer(
    worker: &Worker,
    head: &Parts,
    body: Incoming,
    model: &str,
    selector: VersionSelector<'_>,
) -> Response<Full<Bytes>> {
    let name = worker.names().next();
    let mut response = match arrive(worker, head, body).await {
        Ok(arrived) => match predict(worker, head, arrived, model, selector, &name) {
            Ok(response) => response,
            // Boxed, so that requests that need not wait carry no room for it.
            Err(asleep) => {
                Box::pin(predict_later(worker, head, *asleep, model, selector, &name)).await
            }
        },
        Err(unread) => {
            let (code, refusal) = match unread {
                Unread::Refused(refusal) => (refusal.status.as_u16(), refusal),
                // Nobody reads this answer; it only has a code to be counted by.
                Unread::Gone => (499, Refusal::bad_request("the body ended early").closing()),
            };
            count_unanswered(worker, model, code);
            refusal.into_response()
        }
    };
    let headers = response.headers_mut();
    // Two values of their own: a clone would have to share one between them, with a count.
    let id =
        || HeaderValue::from_str(name.as_str()).expect("hexadecimal digits are a header's value");
    let given = head.headers.get(REQUEST_ID);
    let given = given.filter(|id| id.len() <= REQUEST_ID_BYTES_MAX && !id.is_empty());
    headers.insert(REQUEST_ID, given.cloned().unwrap_or_else(id));
    headers.insert(&PREDICTION_ID, id());
    response
}

/// A request whose last byte is here.
struct Arrived {
    body: Bytes,
    /// The length of the JSON before binary tensors, if the client gave it.
    json_bytes: Option<usize>,
    at: Instant,
    /// How long it waited for its version to be loaded.
    waited: Duration,
    timeout: Duration,
    /// Whether a client asked for the timeout: then a late answer is no answer.
    deadline: Deadline,
}

async fn arrive(worker: &Worker, head: &Parts, body: Incoming) -> Result<Arrived, Unread> {
    let json_bytes = number(&head.headers, &JSON_LENGTH, "a number of bytes")?;
    let asked = number(&head.headers, &TIMEOUT, "a number of milliseconds")?;
    let timeout_max = worker.serving().settings().request_timeout;
    let asked = asked.map(|milliseconds| Duration::from_millis(milliseconds as u64));
    let timeout = asked.filter(|asked| !asked.is_zero()).unwrap_or(timeout_max).min(timeout_max);
    let body = worker.read_body(&head.headers, body, json_bytes.unwrap_or(0), timeout).await?;
    let at = worker.clock().now();
    let deadline = Deadline(asked.filter(|asked| !asked.is_zero()).map(|asked| at + asked));
    Ok(Arrived { body, json_bytes, at, waited: Duration::ZERO, timeout, deadline })
}

fn number(headers: &HeaderMap, name: &HeaderName, what: &str) -> Result<Option<usize>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.any(|other| other != value) {
        let text = format!("header `{name}` is there twice, with different values; send it once");
        return Err(Refusal::bad_request(text).closing());
    }
    let text = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = text.and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| Refusal::bad_request(format!("header `{name}` must be {what}")).closing())
}

/// A request whose version loads on demand.
struct Asleep {
    arrived: Arrived,
    error: RouteError,
}

/// Waits until the version is loaded, then predicts; the table is looked at again after every wait.
async fn predict_later(
    worker: &Worker,
    head: &Parts,
    asleep: Asleep,
    model: &str,
    selector: VersionSelector<'_>,
    name: &Name,
) -> Response<Full<Bytes>> {
    let Asleep { mut arrived, mut error } = asleep;
    let refused = |refusal: Refusal| {
        count_unanswered(worker, model, refusal.status.as_u16());
        refusal.into_response()
    };
    // Bodies that wait count as much as bodies that arrive.
    let _bytes = match worker.hold(arrived.body.len()) {
        Ok(bytes) => bytes,
        Err(refusal) => return refused(refusal),
    };
    let asked = arrived.deadline.0.map(|at| at.saturating_duration_since(arrived.at));
    let mut patience = Patience::new(worker, asked.unwrap_or(arrived.timeout));
    loop {
        // Held until the request is answered: so long the version stays.
        let _lease = match patience.wait(worker, error).await {
            Ok(lease) => lease,
            Err(refusal) => return refused(refusal),
        };
        arrived.waited = worker.clock().now().saturating_duration_since(arrived.at);
        match predict(worker, head, arrived, model, selector, name) {
            Ok(response) => return response,
            Err(asleep) => Asleep { arrived, error } = *asleep,
        }
    }
}

/// Everything from the last byte in to the response: no await, so no other request comes between.
fn predict(
    worker: &Worker,
    head: &Parts,
    arrived: Arrived,
    model: &str,
    selector: VersionSelector<'_>,
    name: &Name,
) -> Result<Response<Full<Bytes>>, Box<Asleep>> {
    let table = worker.serving().table();
    let version = match table.route(model, selector) {
        Ok(version) => version,
        Err(error @ RouteError::Asleep { .. }) => return Err(Box::new(Asleep { arrived, error })),
        Err(error) => {
            let refusal = Refusal::from(error);
            count_unanswered(worker, model, refusal.status.as_u16());
            return Ok(refusal.into_response());
        }
    };
    let arrived_at = arrived.at;
    let mut sample = Sample { queue: arrived.waited, ..Sample::default() };
    let mut id = None;
    let response = answer(worker, version, arrived, &mut sample, &mut id, name)
        .and_then(|encoded| compress(head, encoded))
        .map_err(|mut refusal| {
            if let Some(id) = &id {
                refusal.text = format!("[request id: {id}] {}", refusal.text);
            }
            refusal
        });
    let mut response = response.unwrap_or_else(Refusal::into_response);
    let headers = response.headers_mut();
    headers.insert(VERSION, decimal(version.id().number()));
    headers.insert(ARM, HeaderValue::from_static("baseline"));
    let now = worker.clock().now();
    sample.total = now.saturating_duration_since(arrived_at);
    sample.encode = sample.total.saturating_sub(sample.queue + sample.decode + sample.run);
    let code = Code::from_status(response.status().as_u16());
    version.parts().recorder.record(worker.id(), code, &sample, worker.unix_at(now));
    Ok(response)
}

fn answer(
    worker: &Worker,
    version: &Version,
    arrived: Arrived,
    sample: &mut Sample,
    id: &mut Option<String>,
    name: &Name,
) -> Result<v2::Encoded, Refusal> {
    let (at, waited) = (arrived.at, arrived.waited);
    let mut request = match arrived.json_bytes {
        Some(0) => v2::decode_raw_infer(&arrived.body, version.signature(), version.is_batched()),
        json_bytes => v2::decode_infer(&arrived.body, json_bytes, worker.decode_limits()),
    }?;
    drop(arrived.body);
    id.clone_from(&request.id);
    let asked = request.timeout.map(|timeout| at + timeout.min(arrived.timeout));
    let deadline = Deadline([arrived.deadline.0, asked].into_iter().flatten().min());
    deadline.check(|| worker.clock().now())?;
    let prediction = worker.serving().predict(version, worker.id(), &mut request)?;
    // The answer may need their room.
    request.inputs = Vec::new();
    sample.rows = prediction.rows;
    sample.decode = prediction.started.saturating_duration_since(at).saturating_sub(waited);
    sample.run = prediction.finished.saturating_duration_since(prediction.started);
    deadline.check(|| prediction.finished)?;
    encode(version, &request, prediction, name)
}

fn encode(
    version: &Version,
    request: &InferRequest,
    mut prediction: Prediction,
    name: &Name,
) -> Result<v2::Encoded, Refusal> {
    let signature = version.signature();
    let asked = |index: usize| -> Option<&RequestedOutput> {
        request.outputs.iter().find(|output| output.name == signature.outputs[index].name)
    };
    for (tensor, index) in prediction.outputs.iter_mut().zip(&prediction.wanted) {
        if let Some(classes) = asked(*index).and_then(|output| output.classification) {
            let names = version.parts().class_names.get(*index).and_then(Option::as_deref);
            *tensor = v2::classify(tensor, classes, version.is_batched(), names)?;
        }
    }
    let output = |(tensor, index): (_, &usize)| -> ResponseOutput<'_> {
        let binary =
            asked(*index).and_then(|output| output.binary).unwrap_or(request.binary_output);
        ResponseOutput { name: &signature.outputs[*index].name, tensor, binary }
    };
    let given: SmallVec<[_; 4]> = prediction.outputs.iter().zip(&prediction.wanted).collect();
    // In the order asked for; the model's own order if nothing was.
    let place = |asked: &RequestedOutput| {
        given.iter().find(|(_, index)| signature.outputs[**index].name == asked.name).copied()
    };
    let ordered: SmallVec<[_; 4]> = if request.outputs.is_empty() {
        given
    } else {
        request.outputs.iter().filter_map(place).collect()
    };
    let response = InferResponse {
        model: &version.parts().model,
        version: version.id(),
        id: request.id.as_deref(),
        parameters: SmallVec::from_slice(&[(PREDICTION_ID.as_str(), name.as_str())]),
        outputs: ordered.into_iter().map(output).collect(),
    };
    Ok(v2::encode_infer(&response)?)
}

fn compress(head: &Parts, encoded: v2::Encoded) -> Result<Response<Full<Bytes>>, Refusal> {
    let encoding = Encoding::of_answer(&head.headers);
    let body = encoding.deflate(encoded.body).map_err(|error| {
        tracing::error!(%error, "a response could not be compressed");
        Refusal::new(
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "the response could not be compressed",
        )
    })?;
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.reserve(8);
    let kind = match encoded.json_bytes {
        Some(json_bytes) => {
            headers.insert(JSON_LENGTH, decimal(json_bytes));
            "application/octet-stream"
        }
        None => "application/json",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(encoding) = encoding.header() {
        headers.insert(CONTENT_ENCODING, encoding);
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    Ok(response)
}

/// A number as a header: its own conversion allocates twice.
fn decimal(number: impl itoa::Integer) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    HeaderValue::from_str(digits.format(number)).expect("digits are a header's value")
}

/// Counts a request that reached no version, if its model is a registered one.
fn count_unanswered(worker: &Worker, model: &str, code: u16) {
    if let Some(model) = worker.serving().table().model(model) {
        model.recorder.unanswered(worker.id(), Code::from_status(code));
    }
}
