//! An event as it is sent: a `CloudEvent` with a stable id, and a key that says which news it is.
//!
//! Source: `CloudEvents` 1.0.2, JSON format, structured content mode of the HTTP binding. Always true: a message's
//! bytes are made once; every attempt and every webhook gets the same.
//!
//! Not here: when it is sent (`outbox`), how (`client`).

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    model::{ModelName, Moment, VersionId},
    monitor::{Event, EventKind},
};

/// An event, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// The same for every attempt and webhook, and no other event's.
    pub(super) id: String,
    /// The kind's name, such as `drift.detected`.
    pub(super) kind: &'static str,
    pub(super) model: ModelName,
    pub(super) version: Option<VersionId>,
    /// The news that a cool-down is about; `None` where each event is news.
    pub(super) topic: Option<String>,
    /// When it happened, since 1970.
    pub(super) at: Duration,
    /// The `CloudEvent` as JSON.
    pub(super) body: String,
}

/// Names of events' types begin with this.
pub(super) const TYPE_PREFIX: &str = "tidegate.";
/// The media type of a body.
pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// Fields of an event's object that tell one alarm from another of the same kind and version.
const PARTS: [&str; 8] =
    ["feature", "kind", "tier", "rule", "metric", "segment", "segment_value", "arm"];

/// Words for how bad it is.
const SEVERITIES: [&str; 3] = ["info", "warning", "critical"];
/// Words of an alarm for the size of its shift, in the same order.
const SIZES: [&str; 3] = ["low", "medium", "high"];
/// The most names of features in a key.
const NAMES_MAX: usize = 8;

/// Population stability index from which a drift is `warning`, and `critical` (Siddiqi, Credit Risk Scorecards, 2006:
/// below 0.1 none, above 0.25 major).
const PSI: [f64; 2] = [0.1, 0.25];

impl Message {
    /// Makes the message of an event. `suppressed` counts the same news held back since the last message about it.
    pub(super) fn of(
        event: &Event,
        (id, source): (String, &str),
        suppressed: u64,
        bytes_max: usize,
    ) -> Self {
        let at = Moment::at(event.at).to_string();
        let mut cloud = json!({
            "specversion": "1.0",
            "id": id,
            "source": source,
            "type": format!("{TYPE_PREFIX}{}", event.kind.name()),
            "subject": event.model.as_str(),
            "time": at,
            "datacontenttype": "application/json",
            "dedupekey": dedupe_key(event),
            "severity": severity(event),
        });
        if suppressed > 0 {
            cloud["suppressed"] = suppressed.into();
        }
        cloud["data"] = event.to_json();
        let mut body = cloud.to_string();
        if body.len() > bytes_max {
            let bare = Event { object: None, ..event.clone() };
            cloud["data"] = bare.to_json();
            cloud["data"]["truncated"] = true.into();
            body = cloud.to_string();
        }
        let (model, version, topic) = (event.model.clone(), event.version, topic(event));
        Self { id, kind: event.kind.name(), model, version, topic, at: event.at, body }
    }

    /// A message that says nothing, to see whether a webhook takes it.
    pub(super) fn test(id: &str, source: &str, webhook: &str, now: Duration) -> String {
        let at = Moment::at(now).to_string();
        let data =
            json!({ "event": "test", "at": at, "detail": "a test, asked for by an operator" });
        let cloud = json!({
            "specversion": "1.0",
            "id": id,
            "source": source,
            "type": format!("{TYPE_PREFIX}test"),
            "subject": webhook,
            "time": at,
            "datacontenttype": "application/json",
            "severity": "info",
            "data": data,
        });
        cloud.to_string()
    }
}

/// Names the news, for receivers that want each only once: kind, model, version and what it is about.
fn dedupe_key(event: &Event) -> String {
    let over = event.kind == EventKind::PerformanceDropped && is_over(event);
    let mut key = format!("{}/{}", event.kind.name(), about(event));
    if over {
        key += "/over";
    }
    if topic(event).is_none() {
        let object = event.object.as_deref();
        let part = |name: &str| object.and_then(|object| object.get(name)).and_then(word);
        match (part("id"), part("revision")) {
            (Some(id), Some(revision)) => key += &format!("/{id}/{revision}"),
            (Some(id), None) => key += &format!("/{id}"),
            _ => key += &format!("/{}", event.at.as_millis()),
        }
    }
    key
}

/// The news of an alarm: the same until the opposite happens. `None` for what happens once.
pub(super) fn topic(event: &Event) -> Option<String> {
    let family = match event.kind {
        EventKind::DriftDetected | EventKind::DriftCleared => "drift",
        // A kind of its own would be the opposite; so its topic is.
        EventKind::PerformanceDropped if is_over(event) => "performance.recovered",
        EventKind::QualityViolated | EventKind::PerformanceDropped | EventKind::Failed => {
            event.kind.name()
        }
        _ => return None,
    };
    Some(format!("{family}/{}", about(event)))
}

/// True if the event says that what was told before is over.
pub(super) fn is_over(event: &Event) -> bool {
    let object = event.object.as_deref();
    object.and_then(|object| object.get("cleared_at")).is_some_and(|at| !at.is_null())
}

/// Model, version and the parts of the object that tell alarms apart.
fn about(event: &Event) -> String {
    let version = event.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
    let mut about = format!("{}/{version}", event.model);
    let object = event.object.as_deref();
    let names = object.map(names).unwrap_or_default();
    // Of several features the first is only the one that moved most.
    let own = if names.is_empty() { &PARTS[..] } else { &PARTS[2..] };
    for part in own {
        if let Some(word) = object.and_then(|object| object.get(part)).and_then(word) {
            about += &format!("/{word}");
        }
    }
    if names.is_empty() { about } else { format!("{about}/{names}") }
}

/// True if an event tells again of what an earlier process told, as it still stands.
pub(super) fn is_standing(event: &Event) -> bool {
    let object = event.object.as_deref();
    object.and_then(|object| object.get("standing")).is_some_and(|it| *it == true)
}

/// The features that an alarm lists, as one word; empty where it lists none. One that stands lists among `alarms` those
/// that it came with.
fn names(object: &Value) -> String {
    let standing = object.get("standing").and_then(|_| object.get("alarms"));
    let (list, called) =
        standing.map_or((object.get("features"), "name"), |it| (Some(it), "feature"));
    let features = list.and_then(Value::as_array);
    let name = |feature: &Value| {
        let kind = feature
            .get("kind")
            .and_then(word)
            .map_or_else(String::new, |kind| "=".to_owned() + &kind);
        Some(word(feature.get(called)?)? + &kind)
    };
    let mut names: Vec<String> = features.into_iter().flatten().filter_map(name).collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    if more > 0 { format!("{}+{more} more", names.join("+")) } else { names.join("+") }
}

/// A short text, or a number as one.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.chars().take(128).collect()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// `info`, `warning` or `critical`: of drift by its size, never by how sure it is.
fn severity(event: &Event) -> &'static str {
    match event.kind {
        EventKind::DriftDetected => {
            let said = event.object.as_deref().and_then(|object| object.get("severity")?.as_str());
            let size = SIZES.iter().position(|size| Some(*size) == said);
            if let Some(size) = size {
                return SEVERITIES[size];
            }
            let psi = event.object.as_deref().map_or(0.0, largest_psi);
            let reached = PSI.iter().filter(|edge| psi >= **edge).count();
            SEVERITIES[reached]
        }
        EventKind::PerformanceDropped if is_over(event) => "info",
        EventKind::Failed
        | EventKind::QualityViolated
        | EventKind::PerformanceDropped
        | EventKind::RolloutHeld
        | EventKind::RolloutRolledBack
        | EventKind::RolloutFailed
        | EventKind::RetrainRequested => "warning",
        _ => "info",
    }
}

fn largest_psi(object: &Value) -> f64 {
    let psi = |value: &Value| value.get("psi").and_then(Value::as_f64).unwrap_or(0.0);
    let features = object.get("features").and_then(Value::as_array);
    features.into_iter().flatten().map(psi).fold(psi(object), f64::max)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn event(kind: EventKind, object: Value) -> Event {
        Event {
            sequence: 7,
            at: Duration::from_millis(1_700_000_000_123),
            model: ModelName::parse("fraud").unwrap(),
            version: Some(VersionId::new(3)),
            kind,
            detail: "moved".to_owned(),
            object: Some(Arc::new(object)),
        }
    }

    fn cloud(event: &Event, bytes_max: usize) -> Value {
        let message = Message::of(event, ("e-7".to_owned(), "/here"), 2, bytes_max);
        serde_json::from_str(&message.body).unwrap()
    }

    #[test]
    fn an_event_becomes_a_cloud_event_with_its_object() {
        let alarm =
            json!({ "id": "d-1", "feature": "amount", "kind": "up", "tier": "page", "psi": 0.3 });
        let drift = event(EventKind::DriftDetected, alarm.clone());
        let sent = cloud(&drift, 1 << 16);
        let expected = json!({
            "specversion": "1.0",
            "id": "e-7",
            "source": "/here",
            "type": "tidegate.drift.detected",
            "subject": "fraud",
            "time": "2023-11-14T22:13:20.123Z",
            "datacontenttype": "application/json",
            "dedupekey": "drift.detected/fraud/3/amount/up/page",
            "severity": "critical",
            "suppressed": 2,
            "data": {
                "id": "7",
                "at": "2023-11-14T22:13:20.123Z",
                "sequence": 7,
                "unix_ms": 1_700_000_000_123_u64,
                "model": "fraud",
                "version": 3,
                "event": "drift.detected",
                "detail": "moved",
                "drift": alarm,
            },
        });
        assert_eq!(sent, expected);
    }

    #[test]
    fn an_object_that_is_too_large_stays_away() {
        let drift = event(EventKind::DriftDetected, json!({ "text": "x".repeat(5000) }));
        let sent = cloud(&drift, 4096);
        assert_eq!(sent["data"]["truncated"], true);
        assert_eq!(sent["data"]["drift"], Value::Null);
        assert_eq!(sent["data"]["event"], "drift.detected");
    }

    #[test]
    fn what_is_told_again_is_the_same_news_though_a_part_of_it_is_over() {
        let features = json!([{ "name": "a", "kind": "up" }, { "name": "b", "kind": "wider" }]);
        let first = event(EventKind::DriftDetected, json!({ "features": features }));
        let again = json!({
            "standing": true, "features": [{ "name": "b", "kind": "wider" }],
            "alarms": [{ "feature": "b", "kind": "wider" }, { "feature": "a", "kind": "up" }],
        });
        assert_eq!(topic(&event(EventKind::DriftDetected, again)), topic(&first));
        let drop = |cleared| event(EventKind::PerformanceDropped, json!({ "cleared_at": cleared }));
        let (dropped, over) = (drop(Value::Null), drop("now".into()));
        assert_ne!(topic(&dropped), topic(&over));
        assert_ne!(dedupe_key(&dropped), dedupe_key(&over));
        assert_eq!([severity(&dropped), severity(&over)], ["warning", "info"]);
    }

    #[test]
    fn alarm_and_all_clear_are_one_topic_and_rollouts_have_none() {
        let alarm = json!({ "id": "d-1", "feature": "amount", "kind": "up" });
        let detected = topic(&event(EventKind::DriftDetected, alarm.clone()));
        assert_eq!(detected, topic(&event(EventKind::DriftCleared, alarm)));
        assert_eq!(detected.as_deref(), Some("drift/fraud/3/amount/up"));
        let several = json!({ "feature": "b", "tier": "page", "features": [{ "name": "b", "kind": "up" }, { "name": "a" }] });
        let several = topic(&event(EventKind::DriftDetected, several));
        assert_eq!(several.as_deref(), Some("drift/fraud/3/page/a+b=up"));
        let step = event(EventKind::RolloutStep, json!({ "id": "r-1", "revision": 4 }));
        assert_eq!(topic(&step), None);
        assert_eq!(dedupe_key(&step), "rollout.step/fraud/3/r-1/4");
    }

    #[test]
    fn severity_of_drift_is_its_size() {
        let of = |object| severity(&event(EventKind::DriftDetected, object));
        assert_eq!(of(json!({ "psi": 0.05, "log_m": 900.0 })), "info");
        assert_eq!(of(json!({ "psi": 0.1 })), "warning");
        assert_eq!(of(json!({ "features": [{ "psi": 0.01 }, { "psi": 0.4 }] })), "critical");
        assert_eq!(of(json!({})), "info");
        assert_eq!(of(json!({ "psi": 0.4, "severity": "medium" })), "warning");
    }
}
