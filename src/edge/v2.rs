//! The Open Inference Protocol's predictions over HTTP: the body in, decode, call, encode, the response out.
//!
//! Not here: choosing, running and counting (`serve`), bytes (`wire`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE, VARY},
    request::Parts,
};
use hyper::body::Incoming;
use smallvec::SmallVec;

use crate::{
    model::{
        ArmName, InferRequest, InferResponse, PredictionId, RequestedOutput, ResponseOutput,
        VersionSelector,
    },
    monitor::{Code, Outcome, Reason},
    serve::{Asked, Call, Model, NotRouted, PredictError, Prediction, RouteError, Version},
    wire::v2,
};

use super::{
    body::Unread,
    budget::Held,
    compression::Encoding,
    demand::Patience,
    refusal::Refusal,
    sticky,
    visit::{CLIENT_GONE, Visit},
    worker::Worker,
};

const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The parameter of an answer that says how the inputs break the model's contract.
const CONTRACT: &str = "contract";
static PREDICTION_ID: HeaderName = HeaderName::from_static("x-tidegate-prediction-id");
const VERSION_NUMBER: HeaderName = HeaderName::from_static("x-tidegate-version");
const ARM: HeaderName = HeaderName::from_static("x-tidegate-arm");
const FALLBACK: HeaderName = HeaderName::from_static("x-tidegate-fallback");
const ROUTE: HeaderName = HeaderName::from_static("x-tidegate-route");

/// The longest request id of a client that is echoed.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Answers an inference request, and counts it.
pub(super) async fn infer(
    worker: &Worker,
    head: &Parts,
    body: Incoming,
    visit: &Visit<'_>,
    (model, selector): (&str, VersionSelector<'_>),
) -> Response<Bytes> {
    let arrived = arrive(worker, head, body, visit).await;
    let at = arrived.as_ref().map_or_else(|_| worker.now(), |arrived| arrived.at);
    let asked = Wanted { model, selector, visit, id: worker.names().next(at) };
    visit.note_prediction(asked.id);
    let mut response = match arrived {
        Ok(arrived) => match predict(worker, head, arrived, &asked) {
            Ok(response) => response,
            // Boxed, so that requests that need not wait carry no room for it.
            Err(later) => Box::pin(predict_later(worker, head, *later, &asked)).await,
        },
        Err(unread) => {
            let (code, refusal) = match unread {
                Unread::Refused(refusal) => (refusal.status.as_u16(), refusal),
                Unread::Gone => {
                    visit.note_gone();
                    (CLIENT_GONE, Refusal::gone())
                }
            };
            count_unanswered(worker, model, code);
            refusal.into_response()
        }
    };
    let headers = response.headers_mut();
    // Two values of their own: a clone would have to share one between them, with a count.
    let id = || {
        HeaderValue::from_bytes(asked.id.digits()).expect("hexadecimal digits are a header's value")
    };
    let given = visit.request_id().filter(|id| id.len() <= REQUEST_ID_BYTES_MAX && !id.is_empty());
    headers.insert(REQUEST_ID, given.cloned().unwrap_or_else(id));
    headers.insert(&PREDICTION_ID, id());
    response
}

/// The model and version that a path names, and who asks.
struct Wanted<'a> {
    model: &'a str,
    selector: VersionSelector<'a>,
    visit: &'a Visit<'a>,
    id: PredictionId,
}

/// A request whose last byte is here.
struct Arrived<'w> {
    body: Bytes,
    /// Counts the body against the budget until the call has ended.
    _held: Held<'w>,
    /// The length of the JSON before binary tensors, if the client gave it.
    json_bytes: Option<usize>,
    at: Instant,
    /// Time spent waiting for its version or a session.
    waited: Duration,
    /// The deadline of the answer.
    deadline: Instant,
}

async fn arrive<'w>(
    worker: &'w Worker,
    head: &Parts,
    body: Incoming,
    visit: &Visit<'_>,
) -> Result<Arrived<'w>, Unread> {
    let json_bytes = number(&head.headers, &JSON_LENGTH, "a number of bytes")?;
    let asked = number(&head.headers, &TIMEOUT, "a number of milliseconds")?;
    let timeout_max = worker.serving().settings().request_timeout;
    let asked = asked.map(|milliseconds| Duration::from_millis(milliseconds as u64));
    let timeout = asked.filter(|asked| !asked.is_zero()).unwrap_or(timeout_max).min(timeout_max);
    let (body, budget) =
        worker.read_body((&head.headers, visit), body, json_bytes.unwrap_or(0), timeout).await?;
    let at = worker.clock().now();
    visit.note_arrival(at);
    let (waited, deadline) = (Duration::ZERO, at + timeout);
    Ok(Arrived { body, _held: budget, json_bytes, at, waited, deadline })
}

fn number(headers: &HeaderMap, name: &HeaderName, what: &str) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    if headers.get_all(name).iter().any(|other| other != value) {
        let text = format!("header `{name}` is there twice, with different values; send it once");
        return Err(Refusal::malformed(text).closing());
    }
    let text = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = text.and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| Refusal::malformed(format!("header `{name}` must be {what}")).closing())
}

/// A reason to answer a request later.
enum Later<'w> {
    /// Its version loads on demand.
    Asleep(Arrived<'w>, RouteError),
    /// Its model may still come with the first pass over the repository.
    Settling(Arrived<'w>),
    /// All sessions of its version are in a run.
    Busy(Arrived<'w>, Arc<Version>),
    /// This worker was given up: its connections are shut down, and nobody waits for it.
    Lost,
}

/// Waits until the version is loaded or a session free, then predicts; the table is looked at again after every wait.
async fn predict_later(
    worker: &Worker,
    head: &Parts,
    mut later: Later<'_>,
    wanted: &Wanted<'_>,
) -> Response<Bytes> {
    let refused = |refusal: Refusal| {
        count_unanswered(worker, wanted.model, refusal.status.as_u16());
        refusal.into_response()
    };
    let mut patience = None;
    // Held until the request is answered: so long the version stays.
    let mut _lease = None;
    loop {
        let mut arrived = match later {
            Later::Asleep(arrived, error) => {
                let left = || arrived.deadline.saturating_duration_since(worker.clock().now());
                let patience = patience.get_or_insert_with(|| Patience::new(worker, left()));
                match patience.wait(worker, error).await {
                    Ok(lease) => _lease = Some(lease),
                    Err(refusal) => return refused(refusal),
                }
                arrived
            }
            Later::Settling(arrived) => {
                let left = arrived.deadline.saturating_duration_since(worker.clock().now());
                let left = left.min(worker.serving().settings().demand_timeout);
                let settled = worker.serving().settled(wanted.model);
                if tokio::time::timeout(left, settled).await.is_err() {
                    let text = "models are being loaded; try again";
                    return refused(Refusal::unavailable(Reason::NotReady, text));
                }
                arrived
            }
            Later::Busy(arrived, version) => {
                let left = arrived.deadline.saturating_duration_since(worker.clock().now());
                // With the next table another version may answer.
                let freed = std::pin::pin!(version.session_freed());
                let published = std::pin::pin!(worker.serving().published());
                let either = futures_util::future::select(freed, published);
                if tokio::time::timeout(left, either).await.is_err() {
                    return refused(Refusal::deadline());
                }
                arrived
            }
            Later::Lost => {
                worker.give_up();
                return std::future::pending().await;
            }
        };
        arrived.waited = worker.clock().now().saturating_duration_since(arrived.at);
        later = match predict(worker, head, arrived, wanted) {
            Ok(response) => return response,
            Err(later) => *later,
        }
    }
}

/// Everything from the last byte in to the response: no await, so no other request comes between.
fn predict<'w>(
    worker: &'w Worker,
    head: &Parts,
    arrived: Arrived<'w>,
    wanted: &Wanted<'_>,
) -> Result<Response<Bytes>, Box<Later<'w>>> {
    let serving = worker.serving();
    let table = serving.table();
    let traffic = table.traffic(wanted.model, wanted.selector);
    let early = traffic.filter(|traffic| sticky::needs_body(traffic, &head.headers));
    // A body that cannot be decoded is refused once it is known who counts that; a raw one has no parameters.
    let early = early.filter(|_| arrived.json_bytes != Some(0)).map(|_| {
        let model = table.model(wanted.model).and_then(Model::extent);
        let limits = worker.decode_limits();
        let limits = model.map_or_else(|| limits.clone(), |extent| limits.fitting(extent));
        v2::decode_infer(&arrived.body, arrived.json_bytes, &limits)
    });
    let key = traffic.and_then(|traffic| {
        let decoded = early.as_ref().and_then(|early| early.as_ref().ok());
        sticky::key(traffic, &head.headers, decoded).map(|key| traffic.hash(&key))
    });
    let asked = Asked {
        watch: worker.watch(),
        client: Some(wanted.visit.socket()),
        model: wanted.model,
        selector: wanted.selector,
        route: head.headers.get(ROUTE).and_then(|route| route.to_str().ok()),
        key,
        id: wanted.id,
        trace: wanted.visit.trace(),
        arrived: arrived.at,
        waited: arrived.waited,
        deadline: arrived.deadline,
    };
    let mut call = match serving.call(&table, &asked) {
        Ok(call) => call,
        Err(NotRouted::Route(error @ RouteError::Asleep { .. })) => {
            return Err(Box::new(Later::Asleep(arrived, error)));
        }
        Err(NotRouted::Route(error)) => return Ok(Refusal::from(error).into_response()),
        Err(NotRouted::Settling) => return Err(Box::new(Later::Settling(arrived))),
        Err(NotRouted::Busy(version)) => return Err(Box::new(Later::Busy(arrived, version))),
    };
    tell_segment(&mut call, head);
    let answer = worker.budget().reserve(call.version().answer_bytes()).and_then(|room| {
        let encoded = answer(worker, &mut call, arrived, early)?;
        let (kind, bytes) = (encoded.json_bytes, encoded.body.len());
        let encoding = Encoding::of_answer(&head.headers, bytes, worker.limits());
        let body = compress(encoding, encoded.body)?;
        let body = worker.budget().count(body, room)?;
        call.version().note_answer(body.len());
        Ok(respond(body, kind, encoding))
    });
    if worker.watch().is_lost() {
        return Err(Box::new(Later::Lost));
    }
    let outcome = answer.as_ref().map_or_else(Refusal::outcome, |_| Outcome::Ok);
    let mut response = answer.unwrap_or_else(Refusal::into_response);
    let headers = response.headers_mut();
    let receipt = call.finish(outcome);
    worker.note(receipt.at);
    wanted.visit.note_receipt(&receipt);
    headers.insert(VERSION_NUMBER, decimal(receipt.version.number()));
    headers.insert(ARM, arm_value(receipt.arm));
    if let Some(arm) = receipt.fallback {
        headers.insert(FALLBACK, arm_value(arm));
    }
    Ok(response)
}

/// Tells the call in which segment its header puts it, if one does.
fn tell_segment(call: &mut Call<'_>, head: &Parts) {
    if let Some(name) = call.segment_header() {
        let value = head.headers.get(name).map(HeaderValue::as_bytes);
        // Borrowed from the call, which is told.
        let value = value.unwrap_or_default();
        call.in_segment(value);
    }
}

/// Decodes for the version that was found, runs it, and writes what it gave.
fn answer(
    worker: &Worker,
    call: &mut Call<'_>,
    arrived: Arrived<'_>,
    decoded: Option<Result<InferRequest, v2::DecodeError>>,
) -> Result<v2::Encoded, Refusal> {
    let version = call.version();
    let mut request = match (decoded, arrived.json_bytes) {
        (Some(decoded), _) => decoded,
        (None, Some(0)) => {
            v2::decode_raw_infer(&arrived.body, version.signature(), version.is_batched())
        }
        (None, json_bytes) => {
            let limits = worker.decode_limits().fitting(version.extent());
            v2::decode_infer(&arrived.body, json_bytes, &limits)
        }
    }?;
    let body_bytes = arrived.body.len();
    drop(arrived.body);
    if let Some(deadline) = request.timeout.and_then(|timeout| arrived.at.checked_add(timeout)) {
        call.due(deadline);
    }
    run(call, &mut request, body_bytes).map_err(|mut refusal| {
        if let Some(id) = &request.id {
            refusal.text = format!("[request id: {id}] {}", refusal.text);
        }
        refusal
    })
}

fn run(
    call: &mut Call<'_>,
    request: &mut InferRequest,
    body_bytes: usize,
) -> Result<v2::Encoded, Refusal> {
    let prediction = call.run(request).inspect_err(|error| log_failure(call, error))?;
    let encoded = encode(call, request, &prediction)?;
    call.copy(request, prediction, body_bytes);
    Ok(encoded)
}

/// Logs what is not the client's to know.
fn log_failure(call: &Call<'_>, error: &PredictError) {
    if let PredictError::Engine(cause) = error {
        let version = call.version();
        tracing::error!(
            %cause,
            model = %version.parts().model,
            version = %version.id(),
            prediction_id = call.id().as_str(),
            trace_id = call.trace().map(|trace| trace.id_text()),
            "a run failed"
        );
    }
}

fn encode(
    call: &Call<'_>,
    request: &InferRequest,
    prediction: &Prediction,
) -> Result<v2::Encoded, Refusal> {
    let (version, id) = (call.version(), call.id());
    let signature = version.signature();
    let asked = |index: usize| -> Option<&RequestedOutput> {
        request.outputs.iter().find(|output| output.name == signature.outputs[index].name)
    };
    // Beside the outputs, which a shadow's are compared with.
    let mut classified = Vec::new();
    for (tensor, index) in prediction.outputs.iter().zip(&prediction.wanted) {
        if let Some(classes) = asked(*index).and_then(|output| output.classification) {
            let names = version.parts().class_names.get(*index).and_then(Option::as_deref);
            let best = v2::classify(tensor, classes, version.is_batched(), names)?;
            classified.push((*index, best));
        }
    }
    let given = |(tensor, index)| {
        let best = classified.iter().find(|(classified, _)| classified == index);
        (best.map_or(tensor, |(_, best)| best), index)
    };
    let output = |(tensor, index): (_, &usize)| -> ResponseOutput<'_> {
        let binary =
            asked(*index).and_then(|output| output.binary).unwrap_or(request.binary_output);
        ResponseOutput { name: &signature.outputs[*index].name, tensor, binary }
    };
    let given: SmallVec<[_; 4]> =
        prediction.outputs.iter().zip(&prediction.wanted).map(given).collect();
    // In the order asked for; the model's own order if nothing was.
    let place = |asked: &RequestedOutput| {
        given.iter().find(|(_, index)| signature.outputs[**index].name == asked.name).copied()
    };
    let ordered: SmallVec<[_; 4]> = if request.outputs.is_empty() {
        given
    } else {
        request.outputs.iter().filter_map(place).collect()
    };
    let mut parameters = SmallVec::from_slice(&[(PREDICTION_ID.as_str(), id.as_str())]);
    parameters.extend(prediction.flag.as_deref().map(|flag| (CONTRACT, flag)));
    let response = InferResponse {
        model: &version.parts().model,
        version: version.id(),
        id: request.id.as_deref(),
        parameters,
        outputs: ordered.into_iter().map(output).collect(),
    };
    Ok(v2::encode_infer(&response)?)
}

fn compress(encoding: Encoding, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    encoding.deflate(body).map_err(|error| {
        tracing::error!(%error, "a response could not be compressed");
        Refusal::internal("the response could not be compressed")
    })
}

/// A response of these bytes, of which so many are JSON if others follow.
fn respond(body: Bytes, json_bytes: Option<usize>, encoding: Encoding) -> Response<Bytes> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.reserve(8);
    let kind = match json_bytes {
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
    response
}

/// An arm's name as a header.
fn arm_value(arm: ArmName) -> HeaderValue {
    if arm == ArmName::BASELINE {
        return HeaderValue::from_static("baseline");
    }
    HeaderValue::from_str(arm.as_str()).expect("an arm's name is a header's value")
}

/// A number as a header: its own conversion allocates twice.
fn decimal(number: impl itoa::Integer) -> HeaderValue {
    let mut digits = itoa::Buffer::new();
    HeaderValue::from_str(digits.format(number)).expect("digits are a header's value")
}

/// Counts an inference request that no version answered.
pub(super) fn count_unanswered(worker: &Worker, model: &str, code: u16) {
    let serving = worker.serving();
    serving.unanswered(&serving.table(), worker.id(), model, Code::from_status(code));
}
