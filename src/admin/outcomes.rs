//! Outcomes of predictions: a service that `app` mounts on the data plane, and how good versions were by them.
//!
//! A body is read item by item and never held as a whole document, so that it costs no more memory than its outcomes.
//! Not here: joining (`feedback`).

use std::{convert::Infallible, fmt, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    response::{IntoResponse as _, Response as Page},
    routing::get,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use serde::{
    Deserialize, Serialize,
    de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use crate::{
    feedback::{Actual, Echo, Feedback, FeedbackError, Outcome, Status},
    model::{Moment, PredictionId},
    rollout::Span,
    serve::ClassName,
};

use super::{
    Admin, Problem,
    repository::{error, json},
    request::{Errors, Fields},
};

type Answer = Response<Bytes>;
type Control = BoxCloneSyncService<Request<Bytes>, Answer, Infallible>;

/// Outcomes of one request.
const OUTCOMES_MAX: usize = 10_000;
/// Bytes of one outcome.
const OUTCOME_BYTES_MAX: usize = 4096;
/// Larger bodies than this are read on another thread than the one that answers requests.
const READ_HERE_MAX: usize = 16 << 10;
/// The longest window that sums are kept for.
const WINDOW_MAX: Duration = Duration::from_hours(32 * 24);

/// Takes outcomes of predictions for `feedback`; whatever else comes goes to `rest`.
pub fn with_outcomes(rest: Control, feedback: Feedback) -> Control {
    BoxCloneSyncService::new(tower::service_fn(move |request: Request<Bytes>| {
        let (rest, feedback) = (rest.clone(), feedback.clone());
        async move {
            match model_of(request.uri().path()) {
                Some(model) if request.method() == Method::POST => {
                    let answer = join(&feedback, &model, request.body()).await;
                    Ok(answer.unwrap_or_else(|refused| refused))
                }
                _ => rest.oneshot(request).await,
            }
        }
    }))
}

/// The model of `/v2/models/{model}/feedback`.
fn model_of(path: &str) -> Option<String> {
    let model = path.strip_prefix("/v2/models/")?.strip_suffix("/feedback")?;
    (!model.contains('/')).then(|| model.to_owned())
}

async fn join(feedback: &Feedback, model: &str, body: &Bytes) -> Result<Answer, Answer> {
    let items = if body.len() > READ_HERE_MAX {
        let body = body.clone();
        let read = tokio::task::spawn_blocking(move || read(&body)).await;
        read.map_err(|_| {
            error(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be read; the log has more")
        })?
    } else {
        read(body)
    };
    let items = items.map_err(|problem| error(StatusCode::BAD_REQUEST, problem))?;
    let outcomes = items.iter().filter_map(|item| item.as_ref().ok()).cloned().collect();
    let answers = feedback.join(model, outcomes).await.map_err(|problem| {
        let status = match &problem {
            FeedbackError::UnknownModel(_) => StatusCode::NOT_FOUND,
            FeedbackError::Off(_) => StatusCode::BAD_REQUEST,
            FeedbackError::Busy | FeedbackError::Gone => StatusCode::SERVICE_UNAVAILABLE,
            FeedbackError::Unwritten { .. } => StatusCode::INSUFFICIENT_STORAGE,
        };
        error(status, problem.to_string())
    })?;
    let mut answers = answers.into_iter();
    let mut report = Report::default();
    for item in items {
        if let Err(detail) = item {
            report.add(Status::Invalid, Some(detail));
        } else if let Some(answer) = answers.next() {
            report.add(answer.status, answer.detail);
        }
    }
    Ok(json(StatusCode::OK, &report))
}

/// The answer to outcomes.
#[derive(Default, Serialize)]
struct Report {
    results: Vec<Said>,
    joined: u64,
    late: u64,
    unknown: u64,
    duplicate: u64,
    invalid: u64,
}

#[derive(Serialize)]
struct Said {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Report {
    fn add(&mut self, status: Status, detail: Option<String>) {
        let count = match status {
            Status::Joined => &mut self.joined,
            Status::Late => &mut self.late,
            Status::Unknown => &mut self.unknown,
            Status::Duplicate => &mut self.duplicate,
            Status::Invalid => &mut self.invalid,
        };
        *count += 1;
        self.results.push(Said { status: status.name(), detail });
    }
}

/// Reads a body: each outcome, or what is wrong with it. Fails as a whole on what is no list of outcomes, and on fields
/// that no outcome has.
fn read(body: &[u8]) -> Result<Vec<Result<Outcome, String>>, String> {
    let Body(items) = serde_json::from_slice(body)
        .map_err(|problem| format!("the body must be {{\"outcomes\": [...]}}: {problem}"))?;
    let mut unknown = Errors::default();
    let mut outcomes = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        if item.get().len() > OUTCOME_BYTES_MAX {
            outcomes.push(Err(format!("longer than {OUTCOME_BYTES_MAX} bytes")));
            continue;
        }
        let value: Value = serde_json::from_str(item.get())
            .map_err(|problem| format!("outcomes[{index}]: {problem}"))?;
        let known = ["prediction_id", "row", "label", "value", "reward", "prediction", "at"];
        if value.is_object()
            && Fields::of(&value, &format!("outcomes[{index}]."), &known, &mut unknown).is_none()
        {
            unreachable!("it is an object");
        }
        outcomes.push(outcome(&value));
    }
    if unknown.0.is_empty() {
        return Ok(outcomes);
    }
    unknown.0.truncate(10);
    Err(unknown.0.join("; "))
}

/// Any bytes as a body of outcomes, for fuzzing: no panic, and what is told is short and printable.
#[doc(hidden)]
pub fn check_outcomes(body: &[u8]) {
    let printable = |told: &str| {
        assert!(told.len() < 2_000, "{told}");
        assert!(!told.chars().any(char::is_control), "{told:?}");
    };
    match read(body) {
        Ok(items) => {
            assert!(items.len() <= OUTCOMES_MAX);
            for item in &items {
                match item {
                    Ok(outcome) => {
                        let is_finite = match &outcome.truth {
                            Actual::Label(_) => true,
                            Actual::Value(number) | Actual::Reward(number) => number.is_finite(),
                        };
                        assert!(is_finite, "{outcome:?}");
                    }
                    Err(told) => printable(told),
                }
            }
        }
        Err(told) => printable(&told),
    }
}

fn outcome(value: &Value) -> Result<Outcome, String> {
    let object = value.as_object().ok_or("must be an object with prediction_id and an outcome")?;
    let field = |name: &str| object.get(name).filter(|value| !value.is_null());
    let name = field("prediction_id").ok_or("`prediction_id` is missing")?;
    let prediction = name.as_str().and_then(PredictionId::parse);
    // Whatever is no name of ours is unknown, not wrong.
    let prediction = match (prediction, name.is_string()) {
        (Some(prediction), _) => prediction,
        (None, true) => PredictionId::UNKNOWN,
        (None, false) => return Err("`prediction_id` must be a text".to_owned()),
    };
    let row = match field("row") {
        None => 0,
        Some(row) => row
            .as_u64()
            .and_then(|row| u32::try_from(row).ok())
            .ok_or("`row` must be the row of the request, counted from 0")?,
    };
    let finite = |name: &str, value: &Value| {
        value.as_f64().filter(|value| value.is_finite()).ok_or(format!("`{name}` must be a number"))
    };
    let truth = match (field("label"), field("value"), field("reward")) {
        (Some(label), None, None) => Actual::Label(class(label)?),
        (None, Some(value), None) => Actual::Value(finite("value", value)?),
        (None, None, Some(reward)) => Actual::Reward(finite("reward", reward)?),
        _ => return Err("give one of `label`, `value` and `reward`".to_owned()),
    };
    let echo = match field("prediction") {
        None => None,
        Some(Value::String(text)) => Some(Echo::Text(text.clone())),
        Some(Value::Bool(yes)) => Some(Echo::Number(f64::from(u8::from(*yes)))),
        Some(value) => Some(Echo::Number(
            value.as_f64().ok_or("`prediction` must be a class or a number, as it was answered")?,
        )),
    };
    let at = match field("at") {
        None => None,
        Some(at) => {
            let moment: Moment = serde_json::from_value(at.clone())
                .map_err(|_| "`at` must be a time such as \"2026-11-28T22:29:00Z\"".to_owned())?;
            Some(moment.since_1970())
        }
    };
    Ok(Outcome { prediction, row, truth, echo, at })
}

/// A class: a whole number, a text, or a truth value for 0 and 1.
fn class(value: &Value) -> Result<ClassName, String> {
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers of 53 bits")]
    let whole = |value: f64| {
        (value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0).then_some(value as i64)
    };
    match value {
        Value::String(text) => Ok(ClassName::Text(text.clone())),
        Value::Bool(yes) => Ok(ClassName::Number(i64::from(*yes))),
        Value::Number(number) => {
            let number = number.as_i64().or_else(|| number.as_f64().and_then(whole));
            number.map(ClassName::Number).ok_or_else(|| {
                "`label` must be a whole number or a text; for a measured number send `value`"
                    .to_owned()
            })
        }
        _ => Err("`label` must be a whole number or a text".to_owned()),
    }
}

/// The items of `{"outcomes": [...]}`, unread.
struct Body(Vec<Box<RawValue>>);

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BodyVisitor).map(Self)
    }
}

struct BodyVisitor;

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = Vec<Box<RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `outcomes`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error as _;
        let mut items = None;
        while let Some(field) = map.next_key::<String>()? {
            if field != "outcomes" {
                let field: String = field.chars().take(64).flat_map(char::escape_debug).collect();
                return Err(A::Error::custom(format!(
                    "unknown field `{field}`: did you mean `outcomes`?"
                )));
            }
            if items.is_some() {
                return Err(A::Error::custom("`outcomes` is there twice"));
            }
            items = Some(map.next_value::<Items>()?.0);
        }
        items.ok_or_else(|| A::Error::custom("`outcomes` is missing"))
    }
}

struct Items(Vec<Box<RawValue>>);

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor).map(Self)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Vec<Box<RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of outcomes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error as _;
        let mut items = Vec::new();
        while items.len() < OUTCOMES_MAX {
            match list.next_element()? {
                Some(item) => items.push(item),
                None => return Ok(items),
            }
        }
        match list.next_element::<IgnoredAny>()? {
            None => Ok(items),
            Some(_) => Err(A::Error::custom(format!(
                "more than {OUTCOMES_MAX} outcomes; send them in several requests"
            ))),
        }
    }
}

pub(super) fn router() -> Router<Admin> {
    Router::new().route("/api/v1/models/{model}/quality", get(quality))
}

/// How good a model's versions were.
async fn quality(
    State(admin): State<Admin>,
    Path(model): Path<String>,
    RawQuery(query): RawQuery,
) -> Page {
    let window = match window(query.as_deref().unwrap_or_default()) {
        Ok(window) => window,
        Err(problem) => return Problem::new(StatusCode::BAD_REQUEST, problem).into_response(),
    };
    match admin.feedback.quality(Some(&model), window).await {
        Ok(reports) => Json(reports.into_iter().next()).into_response(),
        Err(FeedbackError::UnknownModel(_)) => Problem::unknown_model().into_response(),
        Err(error @ FeedbackError::Off(_)) => {
            Problem::new(StatusCode::CONFLICT, error.to_string()).into_response()
        }
        Err(error) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
        }
    }
}

/// The window of a query: `window=90m`, an hour if it says nothing.
fn window(query: &str) -> Result<Duration, String> {
    let mut window = Duration::from_hours(1);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name != "window" {
            let name: String = name.chars().take(64).flat_map(char::escape_debug).collect();
            return Err(format!("unknown parameter `{name}`: did you mean `window`?"));
        }
        let read = serde_json::from_value::<Span>(Value::String(value.to_owned()));
        let read = read.map(|span| span.0).map_err(|problem| format!("`window` {problem}"))?;
        if read.is_zero() || read > WINDOW_MAX {
            return Err("`window` must be 1us to 32d".to_owned());
        }
        window = read;
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(text: &str) -> Result<Outcome, String> {
        read(format!(r#"{{"outcomes": [{text}]}}"#).as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn outcomes_are_read_one_by_one() {
        let name = "0123456789abcdef0123456789abcdef";
        let read = |rest: &str| read_one(&format!(r#"{{"prediction_id": "{name}", {rest}}}"#));
        let outcome = read(r#""label": 1, "row": 2, "at": "2026-11-28T22:29:00Z""#).unwrap();
        assert_eq!(outcome.prediction.as_str(), name);
        assert_eq!((outcome.row, outcome.truth), (2, Actual::Label(ClassName::Number(1))));
        assert_eq!(outcome.at, Some(Duration::from_mins(29_931_749)));
        let truth = |rest: &str| read(rest).map(|outcome| outcome.truth);
        assert_eq!(truth(r#""label": "yes""#), Ok(Actual::Label(ClassName::Text("yes".into()))));
        assert_eq!(truth(r#""value": -1.5"#), Ok(Actual::Value(-1.5)));
        assert!(truth(r#""label": 0.5"#).is_err());
        for wrong in [r#""label": 1, "value": 2"#, r#""row": 1"#, r#""label": 1, "row": -1"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read_one("3").is_err());
        assert_eq!(
            read_one(r#"{"prediction_id": "x", "label": 1}"#).unwrap().prediction,
            PredictionId::UNKNOWN
        );
    }

    #[test]
    fn bodies_hold_over_the_corpus() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/outcomes");
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert!(seeds.len() >= 10, "only {} seeds", seeds.len());
        for seed in seeds {
            check_outcomes(&std::fs::read(seed.unwrap().path()).unwrap());
        }
    }

    #[test]
    fn a_body_is_refused_for_what_it_may_not_hold() {
        let check = |body: &str, part: &str| {
            let problem = read(body.as_bytes()).unwrap_err();
            assert!(problem.contains(part), "{body}: {problem}");
        };
        check("[]", "an object with `outcomes`");
        check("{}", "`outcomes` is missing");
        check(r#"{"outcome": []}"#, "did you mean `outcomes`?");
        check(
            r#"{"outcomes": [{"prediction_id": "x", "lable": 1}]}"#,
            "unknown field `outcomes[0].lable`: did you mean `label`?",
        );
        let many = vec!["0"; OUTCOMES_MAX + 1].join(",");
        check(&format!(r#"{{"outcomes": [{many}]}}"#), "more than 10000 outcomes");
        let long = format!(r#"{{"outcomes": ["{}"]}}"#, "x".repeat(OUTCOME_BYTES_MAX));
        assert!(read(long.as_bytes()).unwrap()[0].is_err());
    }

    #[test]
    fn windows_are_durations_with_a_unit() {
        assert_eq!(window(""), Ok(Duration::from_hours(1)));
        assert_eq!(window("window=90m"), Ok(Duration::from_mins(90)));
        for wrong in ["window=90", "window=0s", "window=40d", "windwo=1h"] {
            assert!(window(wrong).is_err(), "{wrong}");
        }
    }
}
