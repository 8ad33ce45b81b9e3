//! When a model should be trained anew: a pure rule over what happened to it.
//!
//! A request is made once there was, without a pause, for `windows` windows of length `window`: drift of important
//! features (the sum of `weight * psi` over the features that drift reaches `min_psi`), or a drop of performance; and
//! no rollout of the model is open, as one may be the answer already; and none was made within `cooldown`. Always true:
//! the request carries what it was decided by. After a restart, reasons that last are told again by those who found
//! them, with the time at which they began, and count from there; the cool-down is kept.
//!
//! Not here: who hears of it (`outbox`), operators' own requests (`driver`), how drift and drops are found.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    model::{ModelName, Moment, VersionId},
    monitor::{Event, EventKind},
    rollout::Span,
};

use super::message;

/// The rule of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrainSettings {
    /// Windows for which a reason must last.
    pub windows: u32,
    /// Length of one window.
    pub window: Duration,
    /// The least sum of `weight * psi` over the features that drift.
    pub min_psi: f64,
    /// Importance of features by name, 0 or more; 1 for those not named.
    pub weights: BTreeMap<String, f64>,
    /// Time after a request in which no other is made.
    pub cooldown: Duration,
}

/// When this model should be trained anew: drift of important features, or a drop of performance, that lasts.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetrainDraft {
    /// False turns the rule off. Left out: true, as the section is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Windows for which the reason must last without a pause. Left out: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<u32>,
    /// Length of a window. Left out: `"1h"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// The least sum of weight times PSI over the features that drift. Left out: 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_psi: Option<f64>,
    /// Importance of features by name, 0 or more. Left out: 1, for every feature not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
    /// Time after a request in which no other is made. Left out: `"1d"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown: Option<Span>,
}

/// Memory of the rule, of all models.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Retraining {
    models: BTreeMap<ModelName, Course>,
}

/// Memory of the rule about one model.
#[derive(Debug, Default, Clone, PartialEq)]
struct Course {
    /// Drifting features by version, feature and segment.
    drifts: BTreeMap<String, Drift>,
    /// Versions whose performance dropped, with the object that said so.
    drops: BTreeMap<u64, Drop>,
    /// Since when there is a reason.
    since: Option<Duration>,
    /// When the last request was made.
    asked: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
struct Drift {
    version: u64,
    feature: String,
    kind: Option<String>,
    psi: Option<f64>,
    js: Option<f64>,
    log_m: Option<f64>,
    since: Option<Value>,
    at: Duration,
}

#[derive(Debug, Clone, PartialEq)]
struct Drop {
    at: Duration,
    object: Value,
}

/// A model that should be trained anew.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    pub(super) model: ModelName,
    pub(super) version: Option<VersionId>,
    pub(super) detail: String,
    pub(super) object: Value,
}

/// The most features that are remembered of a model.
const FEATURES_MAX: usize = 1024;
/// The most features in a request.
const SHOWN_MAX: usize = 50;
/// The most ids of predictions in a request.
const IDS_MAX: usize = 100;

impl Default for RetrainSettings {
    fn default() -> Self {
        Self {
            windows: 3,
            window: Duration::from_hours(1),
            min_psi: 0.1,
            weights: BTreeMap::new(),
            cooldown: Duration::from_hours(24),
        }
    }
}

impl RetrainDraft {
    /// Reads the rule, `None` where it is off; gives everything that is wrong with it.
    pub fn read(&self) -> Result<Option<RetrainSettings>, Vec<String>> {
        let default = RetrainSettings::default();
        let rule = RetrainSettings {
            windows: self.windows.unwrap_or(default.windows),
            window: self.window.map_or(default.window, |span| span.0),
            min_psi: self.min_psi.unwrap_or(default.min_psi),
            weights: self.weights.clone(),
            cooldown: self.cooldown.map_or(default.cooldown, |span| span.0),
        };
        let mut wrong = Vec::new();
        let longest = Duration::from_hours(24 * 365);
        if !(1..=1000).contains(&rule.windows) {
            wrong.push("`windows` must lie between 1 and 1000".to_owned());
        }
        if rule.window < Duration::from_secs(1) || rule.window > longest {
            wrong.push("`window` must lie between \"1s\" and \"365d\"".to_owned());
        }
        if rule.cooldown > longest {
            wrong.push("`cooldown` must be at most \"365d\"".to_owned());
        }
        if !(0.0..=100.0).contains(&rule.min_psi) {
            wrong.push("`min_psi` must lie between 0 and 100".to_owned());
        }
        if rule.weights.len() > FEATURES_MAX {
            wrong.push(format!("`weights` may name {FEATURES_MAX} features"));
        }
        for (feature, _) in rule.weights.iter().filter(|(_, w)| !(0.0..=1e6).contains(*w)) {
            let feature: String = feature.chars().take(64).flat_map(char::escape_debug).collect();
            wrong.push(format!("`weights.{feature}` must lie between 0 and 1000000"));
        }
        let is_on = self.enabled.unwrap_or(true);
        if wrong.is_empty() { Ok(is_on.then_some(rule)) } else { Err(wrong) }
    }
}

impl Retraining {
    /// Takes in what happened.
    pub(super) fn hear(&mut self, event: &Event, rules: &BTreeMap<ModelName, RetrainSettings>) {
        let Some(rule) = rules.get(&event.model) else { return };
        let course = self.models.entry(event.model.clone()).or_default();
        course.hear(event);
        course.weigh(rule);
    }

    /// Makes the requests that are due; `is_open` says whether a rollout of a model is.
    pub(super) fn due(
        &mut self,
        rules: &BTreeMap<ModelName, RetrainSettings>,
        now: Duration,
        is_open: impl Fn(&ModelName) -> bool,
    ) -> Vec<Request> {
        let mut requests = Vec::new();
        for (model, rule) in rules {
            let Some(course) = self.models.get_mut(model) else { continue };
            if course.due_at(rule).is_none_or(|at| now < at) || is_open(model) {
                continue;
            }
            requests.push(course.request(model, rule, now));
            course.asked = Some(now);
        }
        requests
    }

    /// The earliest time at which a request may be due.
    pub(super) fn next_at(&self, rules: &BTreeMap<ModelName, RetrainSettings>) -> Option<Duration> {
        let at =
            |(model, rule): (&ModelName, &RetrainSettings)| self.models.get(model)?.due_at(rule);
        rules.iter().filter_map(at).min()
    }

    /// Notes when it was asked for, by the rule or an operator.
    pub(super) fn asked(&mut self, model: &ModelName, now: Duration) {
        self.models.entry(model.clone()).or_default().asked = Some(now);
    }

    /// Returns what is known about a model, for a request that an operator makes.
    pub(super) fn evidence(
        &self,
        model: &ModelName,
        rules: &BTreeMap<ModelName, RetrainSettings>,
        now: Duration,
    ) -> Value {
        let course = self.models.get(model).cloned().unwrap_or_default();
        let rule = rules.get(model).cloned().unwrap_or_default();
        course.request(model, &rule, now).object
    }
}

impl Course {
    fn hear(&mut self, event: &Event) {
        let version = event.version.map_or(0, VersionId::number);
        let object = event.object.as_deref();
        let at = began(event);
        match event.kind {
            EventKind::DriftDetected => {
                // The warn tier has no guarantee and triggers nothing.
                if object.and_then(|object| object.get("tier")).is_some_and(|tier| tier == "warn") {
                    return;
                }
                for drift in drifts(version, at, object.unwrap_or(&Value::Null)) {
                    let key = drift.key();
                    if self.drifts.len() < FEATURES_MAX || self.drifts.contains_key(&key) {
                        self.drifts.insert(key, drift);
                    }
                }
            }
            EventKind::DriftCleared => {
                let cleared = drifts(version, at, object.unwrap_or(&Value::Null));
                if cleared.iter().all(|drift| drift.feature.is_empty()) {
                    self.drifts.retain(|_, drift| drift.version != version);
                }
                for drift in cleared {
                    self.drifts.remove(&drift.key());
                }
            }
            EventKind::PerformanceDropped => {
                let object = object.cloned().unwrap_or_default();
                if object.get("cleared_at").is_some_and(|at| !at.is_null()) {
                    self.drops.remove(&version);
                } else {
                    self.drops.insert(version, Drop { at, object });
                }
            }
            // What was said about a version ends with it.
            EventKind::Retired => {
                self.drifts.retain(|_, drift| drift.version != version);
                self.drops.remove(&version);
            }
            EventKind::Removed => {
                self.drifts.clear();
                self.drops.clear();
            }
            _ => {}
        }
    }

    /// Notes since when there is a reason, or that there is none.
    fn weigh(&mut self, rule: &RetrainSettings) {
        // Earlier than what stands now began, where one reason took over from another.
        let enough = self.enough_since(rule);
        self.since = enough.map(|enough| self.since.map_or(enough, |since| since.min(enough)));
    }

    /// Since when what stands now has been enough.
    fn enough_since(&self, rule: &RetrainSettings) -> Option<Duration> {
        let mut drifts: Vec<&Drift> = self.drifts.values().collect();
        drifts.sort_by_key(|drift| drift.at);
        let mut sum = 0.0;
        let reached = drifts.into_iter().find(|drift| {
            sum += drift.score(rule);
            sum >= rule.min_psi
        });
        let dropped = self.drops.values().map(|drop| drop.at);
        dropped.chain(reached.map(|drift| drift.at)).min()
    }

    fn score(&self, rule: &RetrainSettings) -> f64 {
        if self.drifts.is_empty() {
            return f64::NEG_INFINITY;
        }
        self.drifts.values().map(|drift| drift.score(rule)).sum()
    }

    fn due_at(&self, rule: &RetrainSettings) -> Option<Duration> {
        let lasted = self.since? + rule.window * rule.windows;
        Some(self.asked.map_or(lasted, |asked| lasted.max(asked + rule.cooldown)))
    }

    fn request(&self, model: &ModelName, rule: &RetrainSettings, now: Duration) -> Request {
        let score = self.score(rule);
        let mut worst: Vec<&Drift> = self.drifts.values().collect();
        worst.sort_by(|a, b| b.score(rule).total_cmp(&a.score(rule)));
        let has_drift = score >= rule.min_psi;
        let trigger = match (has_drift, self.drops.is_empty()) {
            (true, true) => "drift",
            (true, false) => "drift and performance",
            (false, _) => "performance",
        };
        let newest = self.drops.keys().chain(worst.iter().map(|drift| &drift.version)).max();
        let version = newest.copied().filter(|version| *version > 0).map(VersionId::new);
        let names: Vec<&str> = worst.iter().take(3).map(|drift| drift.feature.as_str()).collect();
        let mut detail = format!("{trigger} lasts for {} windows", rule.windows);
        if has_drift {
            detail +=
                &format!(" (weighted PSI {score:.2} of {}: {})", rule.min_psi, names.join(", "));
        }
        let moment = |at: Duration| Moment::at(at).to_string();
        let start = self.since.unwrap_or(now);
        let features: Vec<Value> =
            worst.iter().take(SHOWN_MAX).map(|drift| drift.shown(rule)).collect();
        let drops: Vec<&Value> = self.drops.values().map(|drop| &drop.object).collect();
        let object = json!({
            "model": model.as_str(),
            "version": version.map(|version| version.to_string()),
            "trigger": trigger,
            "reason": detail,
            "windows": rule.windows,
            "window_seconds": rule.window.as_secs(),
            "window_start": moment(start),
            "window_end": moment(now),
            "weighted_psi": if has_drift { Some(score) } else { None },
            "min_psi": rule.min_psi,
            "features": features,
            "features_more": worst.len().saturating_sub(SHOWN_MAX),
            "performance": drops,
            "prediction_ids": prediction_ids(&drops),
        });
        Request { model: model.clone(), version, detail, object }
    }
}

impl Drift {
    fn key(&self) -> String {
        format!("{}/{}", self.version, self.feature)
    }

    /// Importance times size; what was not measured counts as just enough.
    fn score(&self, rule: &RetrainSettings) -> f64 {
        let weight = rule.weights.get(&self.feature).copied().unwrap_or(1.0);
        weight * self.psi.unwrap_or(rule.min_psi)
    }

    fn shown(&self, rule: &RetrainSettings) -> Value {
        json!({
            "name": self.feature,
            "version": self.version.to_string(),
            "kind": self.kind,
            "psi": self.psi,
            "js": self.js,
            "log_m": self.log_m,
            "since": self.since,
            "weight": rule.weights.get(&self.feature).copied().unwrap_or(1.0),
        })
    }
}

/// When what an event tells of began: earlier than the event, where it stands since before a restart.
fn began(event: &Event) -> Duration {
    let told = event.object.as_deref().filter(|_| message::is_standing(event));
    let at = told.and_then(|object| object.get("raised_at")).cloned();
    let at = at.and_then(|at| serde_json::from_value::<Moment>(at).ok());
    at.map_or(event.at, |at| at.since_1970().min(event.at))
}

/// The features that an alarm is about: each of `features`, or the one of `feature`, or the model as a whole.
fn drifts(version: u64, at: Duration, object: &Value) -> Vec<Drift> {
    let drift = |of: &Value, name: &str| {
        let text = |field: &str| of.get(field).and_then(Value::as_str).map(str::to_owned);
        let number =
            |field: &str| of.get(field).and_then(Value::as_f64).filter(|number| number.is_finite());
        Drift {
            version,
            feature: text(name).unwrap_or_default(),
            kind: text("kind"),
            psi: number("psi").filter(|psi| *psi >= 0.0),
            js: number("js"),
            log_m: number("log_m"),
            since: of.get("since").or_else(|| object.get("since")).cloned(),
            at,
        }
    };
    match object.get("features").and_then(Value::as_array).filter(|list| !list.is_empty()) {
        Some(features) => features.iter().map(|feature| drift(feature, "name")).collect(),
        None => vec![drift(object, "feature")],
    }
}

/// Ids of predictions that the objects name, as examples.
fn prediction_ids(objects: &[&Value]) -> Vec<Value> {
    let lists = objects.iter().filter_map(|object| object.get("prediction_ids")?.as_array());
    lists.flatten().filter(|id| id.is_string()).take(IDS_MAX).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const HOUR: u64 = 3600;

    fn event(at: u64, kind: EventKind, object: Value) -> Event {
        Event {
            sequence: 1,
            at: Duration::from_secs(at),
            model: ModelName::parse("fraud").unwrap(),
            version: Some(VersionId::new(3)),
            kind,
            detail: String::new(),
            object: Some(Arc::new(object)),
        }
    }

    fn alarm(feature: &str, psi: f64) -> Value {
        json!({ "feature": feature, "kind": "up", "tier": "page", "psi": psi, "js": 0.1 })
    }

    /// Hears events, and looks each quarter of an hour; gives when and what was asked for, in seconds.
    fn play(
        rule: &RetrainSettings,
        events: &[Event],
        until: u64,
        open: std::ops::Range<u64>,
    ) -> Vec<(u64, Request)> {
        let rules = BTreeMap::from([(ModelName::parse("fraud").unwrap(), rule.clone())]);
        let (mut retraining, mut asked) = (Retraining::default(), Vec::new());
        for now in (0..until).step_by(900) {
            for event in events.iter().filter(|event| event.at.as_secs() == now) {
                retraining.hear(event, &rules);
            }
            let due = retraining.due(&rules, Duration::from_secs(now), |_| open.contains(&now));
            asked.extend(due.into_iter().map(|request| (now, request)));
        }
        asked
    }

    fn times(asked: &[(u64, Request)]) -> Vec<u64> {
        asked.iter().map(|(at, _)| *at).collect()
    }

    #[test]
    fn drift_that_lasts_asks_once_in_a_cooldown() {
        let events = [event(HOUR, EventKind::DriftDetected, alarm("amount", 0.3))];
        let asked = play(&RetrainSettings::default(), &events, 40 * HOUR, 0..0);
        assert_eq!(times(&asked), [4 * HOUR, 28 * HOUR]);
        let object = &asked[0].1.object;
        assert_eq!(object["trigger"], "drift");
        assert_eq!(object["version"], "3");
        assert_eq!(object["window_start"], "1970-01-01T01:00:00.000Z");
        assert_eq!(object["window_end"], "1970-01-01T04:00:00.000Z");
        assert_eq!(object["features"][0]["name"], "amount");
        assert_eq!(object["features"][0]["psi"], 0.3);
    }

    #[test]
    fn drift_that_passes_or_is_small_or_unimportant_asks_for_nothing() {
        let cleared = [
            event(HOUR, EventKind::DriftDetected, alarm("amount", 0.3)),
            event(3 * HOUR, EventKind::DriftCleared, alarm("amount", 0.0)),
            event(4 * HOUR, EventKind::DriftDetected, alarm("amount", 0.3)),
            event(6 * HOUR, EventKind::DriftCleared, alarm("amount", 0.0)),
        ];
        assert!(play(&RetrainSettings::default(), &cleared, 40 * HOUR, 0..0).is_empty());
        let small = [event(HOUR, EventKind::DriftDetected, alarm("amount", 0.05))];
        assert!(play(&RetrainSettings::default(), &small, 40 * HOUR, 0..0).is_empty());
        let weights = BTreeMap::from([("amount".to_owned(), 0.1)]);
        let rule = RetrainSettings { weights, ..RetrainSettings::default() };
        let large = [event(HOUR, EventKind::DriftDetected, alarm("amount", 0.5))];
        assert!(play(&rule, &large, 40 * HOUR, 0..0).is_empty());
        let warned = [event(
            HOUR,
            EventKind::DriftDetected,
            json!({ "feature": "amount", "tier": "warn", "psi": 1.0 }),
        )];
        assert!(play(&rule, &warned, 40 * HOUR, 0..0).is_empty());
    }

    #[test]
    fn small_drifts_of_several_features_add_up() {
        let features = json!([
            { "name": "a", "psi": 0.06 }, { "name": "b", "psi": 0.03 }, { "name": "c", "psi": 0.02 }
        ]);
        let events = [event(0, EventKind::DriftDetected, json!({ "features": features }))];
        let asked = play(&RetrainSettings::default(), &events, 4 * HOUR, 0..0);
        assert_eq!(times(&asked), [3 * HOUR]);
        assert_eq!(asked[0].1.object["features"].as_array().unwrap().len(), 3);
        assert_eq!(asked[0].1.object["features"][0]["name"], "a");
    }

    #[test]
    fn an_open_rollout_is_waited_for() {
        let events = [event(0, EventKind::DriftDetected, alarm("amount", 0.3))];
        let asked = play(&RetrainSettings::default(), &events, 12 * HOUR, 2 * HOUR..6 * HOUR);
        assert_eq!(times(&asked), [6 * HOUR]);
        // The new version takes over: what was said about the old one is past.
        let events = [events[0].clone(), event(5 * HOUR, EventKind::Retired, Value::Null)];
        let asked = play(&RetrainSettings::default(), &events, 12 * HOUR, 2 * HOUR..6 * HOUR);
        assert!(asked.is_empty());
    }

    #[test]
    fn a_drop_of_performance_asks_with_its_object() {
        let object = json!({ "metric": "accuracy", "value": 0.7, "prediction_ids": ["a", "b", 3] });
        let events = [event(0, EventKind::PerformanceDropped, object.clone())];
        let asked = play(&RetrainSettings::default(), &events, 4 * HOUR, 0..0);
        assert_eq!(times(&asked), [3 * HOUR]);
        assert_eq!(asked[0].1.object["performance"], json!([object]));
        assert_eq!(asked[0].1.object["prediction_ids"], json!(["a", "b"]));
        assert_eq!(asked[0].1.object["weighted_psi"], Value::Null);
    }

    #[test]
    fn what_stands_since_before_a_restart_counts_from_its_beginning() {
        let standing = |hour: u64, feature: &str, psi: f64| {
            let features = json!([{ "name": feature, "psi": psi }]);
            let at = Moment::at(Duration::from_secs(hour * HOUR)).to_string();
            json!({ "standing": true, "raised_at": at, "features": features })
        };
        // Two versions are found in any order; the second reason makes it enough.
        let events = [
            event(10 * HOUR, EventKind::DriftDetected, standing(9, "b", 0.06)),
            event(10 * HOUR, EventKind::DriftDetected, standing(2, "a", 0.06)),
        ];
        let asked = play(&RetrainSettings::default(), &events, 20 * HOUR, 0..0);
        assert_eq!(times(&asked), [12 * HOUR]);
        assert_eq!(asked[0].1.object["window_start"], "1970-01-01T09:00:00.000Z");
        // One from the future was written by a clock that ran ahead.
        let events = [event(0, EventKind::PerformanceDropped, standing(5, "", 0.0))];
        let over = event(HOUR, EventKind::PerformanceDropped, json!({ "cleared_at": "now" }));
        let asked = play(&RetrainSettings::default(), &events, 4 * HOUR, 0..0);
        assert_eq!(times(&asked), [3 * HOUR]);
        let asked = play(&RetrainSettings::default(), &[events[0].clone(), over], 9 * HOUR, 0..0);
        assert!(asked.is_empty());
    }

    #[test]
    fn alarms_without_sizes_or_features_are_borne() {
        let events = [event(0, EventKind::DriftDetected, Value::Null)];
        let asked = play(&RetrainSettings::default(), &events, 4 * HOUR, 0..0);
        assert_eq!(times(&asked), [3 * HOUR]);
        let events = [events[0].clone(), event(HOUR, EventKind::DriftCleared, json!({}))];
        assert!(play(&RetrainSettings::default(), &events, 9 * HOUR, 0..0).is_empty());
    }
}
