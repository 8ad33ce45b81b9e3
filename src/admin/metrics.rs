//! `/metrics`: what the recorders hold, and the live table beside it.

use std::{collections::BTreeMap, io::Write as _, sync::atomic::Ordering::Relaxed, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use flate2::{Compression, write::GzEncoder};

use crate::{
    drift::Gauges,
    feedback::Status,
    model::{ModelName, SLOTS, VersionState},
    monitor::{Exposition, Format, Monitor},
    rollout,
    serve::Serving,
};

use super::Admin;

pub(super) async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let mut page = Exposition::of(&admin.monitor);
    versions(&admin.serving, &admin.monitor, &mut page);
    weights(&admin.serving, &mut page);
    rollouts(&admin, &mut page);
    outcomes(&admin, &mut page).await;
    drift(&admin, &mut page);
    notifications(&admin, &mut page);
    predictions(&admin, &mut page);
    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    let waiting = admin.serving.demand().waiting() as f64;
    let help = "Requests that wait for versions that load on demand.";
    page.gauges("tidegate_demand_waiting", help, &[(vec![], waiting)]);
    let ready = yes(admin.serving.obstacles().is_empty());
    page.gauges("tidegate_ready", "Whether the server takes requests.", &[(vec![], ready)]);
    let info = [("version", env!("CARGO_PKG_VERSION"))];
    page.info("tidegate_build_info", "The build that runs.", &info);
    answer(page, &headers)
}

/// The page in the format that the scraper likes best, compressed where it likes that.
fn answer(page: Exposition, headers: &HeaderMap) -> Response {
    let values = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let format = Format::accepted(values(header::ACCEPT));
    let mut body = page.write(format);
    let mut answer = HeaderMap::new();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    answer.insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    if takes_gzip(values(header::ACCEPT_ENCODING)) {
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
        encoder.write_all(&body).expect("memory takes every byte");
        body = encoder.finish().expect("memory takes every byte");
        answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    (answer, body).into_response()
}

/// True if these values of `Accept-Encoding` name gzip and do not refuse it.
fn takes_gzip<'a>(values: impl Iterator<Item = &'a str>) -> bool {
    values.flat_map(|value| value.split(',')).any(|item| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let weight = weight.trim().strip_prefix("q=").map(|weight| weight.trim().parse::<f64>());
        name.trim().eq_ignore_ascii_case("gzip") && weight.is_none_or(|q| q.is_ok_and(|q| q > 0.0))
    })
}

/// A version's gauge: its model, its number, the value.
type OfVersion = (String, String, f64);

#[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
fn versions(serving: &Serving, monitor: &Monitor, page: &mut Exposition) {
    let table = serving.table();
    let (mut ready, mut sizes, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let mut cost = 0u64;
    let mut resident = monitor.upkeep().read().draining().1;
    for model in table.models() {
        for entry in &model.versions {
            let of = |value| (model.name.to_string(), entry.id.to_string(), value);
            ready.push(of(yes(entry.version.is_some())));
            states.push((of(1.0), state(entry.state)));
            if let Some(version) = &entry.version {
                let bytes = version.parts().size_bytes;
                resident = resident.saturating_add(bytes);
                cost = cost.saturating_add(version.cost_bytes());
                sizes.push(of(bytes as f64));
            }
        }
    }
    page.gauges("tidegate_version_ready", "Whether a version answers requests.", &labelled(&ready));
    let help = "Where a version stands: 1 for its state; there is no series for the others.";
    let mut gauges = Vec::with_capacity(states.len());
    for ((model, version, value), state) in &states {
        let labels = vec![("model", &**model), ("version", &**version), ("state", state)];
        gauges.push((labels, *value));
    }
    page.gauges("tidegate_version_state", help, &gauges);
    let help = "Size of a loaded version's files.";
    page.gauges("tidegate_version_size_bytes", help, &labelled(&sizes));
    let help = "Size of the files of all loaded versions, those included that were let go and are still held.";
    page.gauges("tidegate_resident_model_bytes", help, &[(vec![], resident as f64)]);
    let help =
        "What loaded versions are taken to occupy in memory: what repository.loaded_bytes bounds.";
    page.gauges("tidegate_loaded_cost_bytes", help, &[(vec![], cost as f64)]);
}

/// The arms of every split.
fn weights(serving: &Serving, page: &mut Exposition) {
    let table = serving.table();
    let mut weights = Vec::new();
    for model in table.models() {
        for arm in model.traffic.iter().flat_map(|traffic| traffic.arms()) {
            let weight = f64::from(arm.slots) / f64::from(SLOTS);
            weights.push((model.name.to_string(), arm.id.to_string(), arm.name, weight));
        }
    }
    let mut gauges = Vec::new();
    for (model, version, arm, weight) in &weights {
        let labels = vec![("model", &**model), ("version", &**version), ("arm", arm.as_str())];
        gauges.push((labels, *weight));
    }
    let help = "The share of a model's requests that an arm of its split gets.";
    page.gauges("tidegate_traffic_weight_ratio", help, &gauges);
}

/// Values that broke a rule of a model's contract.
fn breaches(all: &[Gauges], page: &mut Exposition) {
    let mut broken = Vec::new();
    for gauges in all {
        for term in &gauges.terms {
            for (breach, count) in term.breaches.iter().filter(|(_, count)| *count > 0) {
                let labels = vec![
                    ("model", gauges.model.to_string()),
                    ("version", gauges.version.to_string()),
                    ("feature", term.feature.clone()),
                    ("rule", breach.name().to_owned()),
                    ("action", term.action.name().to_owned()),
                ];
                broken.push((labels, *count));
            }
        }
    }
    let help = "Values that broke a rule of a model's contract.";
    page.counts("tidegate_contract_breaches_total", help, broken.into_iter());
}

/// Drift of each version, and of its features.
fn drift(admin: &Admin, page: &mut Exposition) {
    let all = admin.drift.gauges();
    let (mut evidence, mut thresholds, mut alarms) = (Vec::new(), Vec::new(), Vec::new());
    let mut features: [Vec<OfFeature>; 5] = Default::default();
    let mut raised: BTreeMap<(String, &str), u64> = BTreeMap::new();
    let (segments, all): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|gauges| gauges.segment.is_some());
    for gauges in &all {
        let of = |value| (gauges.model.to_string(), gauges.version.to_string(), value);
        evidence.push(of(gauges.log_m));
        thresholds.push(of(gauges.log_m_threshold));
        alarms.push(of(yes(gauges.is_drifting)));
        for (kind, count) in &gauges.alarms {
            *raised.entry((gauges.model.to_string(), kind)).or_default() += count;
        }
        for feature in &gauges.features {
            let values = [
                feature.psi,
                feature.js,
                feature.ks,
                (feature.rows > 0).then_some(feature.missing),
                Some(feature.log_m),
            ];
            for (series, value) in features.iter_mut().zip(values) {
                series.extend(value.map(|value| (of(value), feature.name.clone())));
            }
        }
    }
    let help = "Natural logarithm of the evidence that a version's features drifted.";
    page.gauges("tidegate_drift_log_m", help, &labelled(&evidence));
    let help = "The evidence at which an alarm is raised.";
    page.gauges("tidegate_drift_log_m_threshold", help, &labelled(&thresholds));
    let help = "Whether an alarm about a version's features was raised and has not cleared.";
    page.gauges("tidegate_drift_alarm", help, &labelled(&alarms));
    let versions: Vec<String> = segments.iter().map(|it| it.version.to_string()).collect();
    let mut apart = Vec::with_capacity(segments.len());
    for (gauges, version) in segments.iter().zip(&versions) {
        let (model, segment) = (gauges.model.as_str(), gauges.segment.as_deref());
        let labels =
            vec![("model", model), ("version", version), ("segment", segment.unwrap_or_default())];
        apart.push((labels, yes(gauges.is_drifting)));
    }
    let help = "The same for the rows of a segment, one that is declared by its value.";
    page.gauges("tidegate_drift_segment_alarm", help, &apart);
    let count = |((model, kind), count): (&(String, &str), &u64)| {
        (vec![("model", model.clone()), ("kind", (*kind).to_owned())], *count)
    };
    let help = "Alarms about features of the versions that serve, by kind of change.";
    page.counts("tidegate_drift_alarms_total", help, raised.iter().map(count));
    breaches(&all, page);
    of_features(&features, page);
}

/// A gauge of a feature: its version's, and the feature.
type OfFeature = (OfVersion, String);

/// Distances of each feature, in the order of the names here.
fn of_features(features: &[Vec<OfFeature>; 5], page: &mut Exposition) {
    let names = [
        (
            "tidegate_feature_psi",
            "Population stability index of a feature's window against its reference.",
        ),
        (
            "tidegate_feature_js",
            "Jensen-Shannon distance, base 2, of a feature's window from its reference.",
        ),
        (
            "tidegate_feature_ks",
            "Kolmogorov-Smirnov distance of a feature's binned window from its reference.",
        ),
        (
            "tidegate_feature_missing_ratio",
            "Share of a feature's values in the window that are missing.",
        ),
        ("tidegate_feature_log_m", "Natural logarithm of the evidence that a feature drifted."),
    ];
    for ((name, help), series) in names.into_iter().zip(features) {
        let mut gauges = Vec::with_capacity(series.len());
        for ((model, version, value), feature) in series {
            let labels = vec![
                ("model", model.as_str()),
                ("version", version.as_str()),
                ("feature", feature.as_str()),
            ];
            gauges.push((labels, *value));
        }
        page.gauges(name, help, &gauges);
    }
}

/// The newest rollout of each model, and how many ended how.
#[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
fn rollouts(admin: &Admin, page: &mut Exposition) {
    let (mut states, mut steps) = (Vec::new(), Vec::new());
    let (mut evidence, mut thresholds) = (Vec::new(), Vec::new());
    let standings = admin.rollouts.standings();
    for report in &standings {
        let model = ("model", report.model.as_str());
        for state in rollout::State::ALL {
            let labels = vec![model, ("state", state.name())];
            states.push((labels, yes(state == report.state)));
        }
        steps.push((vec![model], report.step as f64));
        for gate in &report.gates {
            let labels = vec![model, ("gate", gate.gate.name())];
            evidence.push((labels.clone(), gate.log_e));
            thresholds.push((labels, gate.log_e_threshold));
        }
    }
    let help = "The state of a model's newest rollout: 1 for the one it is in, 0 for the others.";
    page.gauges("tidegate_rollout_state", help, &states);
    let help = "The step of a model's newest rollout, counted from 0.";
    page.gauges("tidegate_rollout_step", help, &steps);
    let help = "Natural logarithm of a gate's evidence that the candidate is worse.";
    page.gauges("tidegate_gate_log_e", help, &evidence);
    let help = "The evidence at which a gate rolls the candidate back.";
    page.gauges("tidegate_gate_log_e_threshold", help, &thresholds);
    let outcomes = admin.rollouts.outcomes();
    let outcome = |((model, outcome), count): &((ModelName, &'static str), u64)| {
        (vec![("model", model.to_string()), ("outcome", (*outcome).to_owned())], *count)
    };
    let help = "Rollouts that ended, by model and the state that they ended in.";
    page.counts("tidegate_rollouts_total", help, outcomes.iter().map(outcome));
}

/// Outcomes so far, and how good versions were in the last hour.
async fn outcomes(admin: &Admin, page: &mut Exposition) {
    let counts = admin.feedback.counts();
    let count =
        |(model, version, arm, status, count): &(ModelName, String, String, Status, u64)| {
            let labels = vec![
                ("model", model.to_string()),
                ("version", version.clone()),
                ("arm", arm.clone()),
                ("status", status.name().to_owned()),
            ];
            (labels, *count)
        };
    let help = "Outcomes of predictions, by model, version and arm (empty where the prediction is not known) and status.";
    page.counts("tidegate_feedback_total", help, counts.iter().map(count));
    let help = "Predicted rows that are not remembered for outcomes: they came too fast, or too many in a request.";
    let lost = std::iter::once((vec![], admin.feedback.lost()));
    page.counts("tidegate_feedback_rows_lost_total", help, lost);
    // A disk that stalls must not hide the other families.
    let asked = admin.feedback.quality(None, QUALITY_WINDOW);
    let reports = tokio::time::timeout(QUALITY_WAIT_MAX, asked).await;
    let reports = reports.ok().and_then(Result::ok).unwrap_or_default();
    let mut coverages = Vec::new();
    let [mut values, mut lower, mut upper, mut estimated] = [const { Vec::new() }; 4];
    for report in &reports {
        for version in &report.versions {
            let labels = vec![
                ("model", report.model.as_str()),
                ("version", version.version.as_str()),
                ("arm", version.arm.as_str()),
            ];
            for (name, metric) in &version.metrics {
                let labels = [&labels[..], &[("metric", name.as_str())]].concat();
                let gauge = |value: Option<f64>| value.map(|value| (labels.clone(), value));
                values.extend(gauge(metric.value));
                lower.extend(gauge(metric.lower));
                upper.extend(gauge(metric.upper));
                estimated.extend(gauge(metric.estimated));
            }
            coverages.push((labels, version.coverage));
        }
    }
    let help =
        "How good a version's predictions of the last hour were by their outcomes, by metric.";
    page.gauges("tidegate_quality", help, &values);
    page.gauges("tidegate_quality_lower", "The lower limit of tidegate_quality.", &lower);
    page.gauges("tidegate_quality_upper", "The upper limit of tidegate_quality.", &upper);
    let help = "How good a version's predictions of the last hour were as its scores alone tell, by metric.";
    page.gauges("tidegate_quality_estimated", help, &estimated);
    let help = "The share of a version's predictions of the last hour to which an outcome came.";
    page.gauges("tidegate_quality_coverage_ratio", help, &coverages);
}

/// How long a page of metrics waits for those about quality.
const QUALITY_WAIT_MAX: Duration = Duration::from_secs(1);

/// The window of the gauges about quality.
const QUALITY_WINDOW: Duration = Duration::from_hours(1);

/// Events sent to webhooks.
#[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
fn notifications(admin: &Admin, page: &mut Exposition) {
    let counts = admin.notifications.counts();
    let count = |((kind, outcome), count): &((&'static str, &'static str), u64)| {
        (vec![("kind", (*kind).to_owned()), ("outcome", (*outcome).to_owned())], *count)
    };
    let help = "Events for webhooks, by kind and what became of them.";
    page.counts("tidegate_notifications_total", help, counts.iter().map(count));
    let waiting = admin.notifications.waiting() as f64;
    let help = "Events that wait to be delivered, over all webhooks.";
    page.gauges("tidegate_notifications_waiting", help, &[(vec![], waiting)]);
}

/// Rows for the table of predictions.
fn predictions(admin: &Admin, page: &mut Exposition) {
    let all = admin.samples.as_ref().map(|samples| samples.counts()).unwrap_or_default();
    let (mut recorded, mut dropped) = (Vec::new(), Vec::new());
    for (model, table, counts) in &all {
        let labels = vec![("model", model.to_string()), ("table", (*table).to_owned())];
        recorded.push((labels, counts.recorded.load(Relaxed)));
        for (reason, count) in [("queue", &counts.crowded), ("write", &counts.unwritten)] {
            let labels = vec![
                ("model", model.to_string()),
                ("reason", reason.to_owned()),
                ("table", (*table).to_owned()),
            ];
            dropped.push((labels, count.load(Relaxed)));
        }
    }
    let help = "Sampled rows of predictions, and of their outcomes, in complete files.";
    page.counts("tidegate_predictions_recorded_total", help, recorded.into_iter());
    let help = "Sampled rows of predictions, and of their outcomes, that were dropped: the queue was full, or they could not be written.";
    page.counts("tidegate_predictions_dropped_total", help, dropped.into_iter());
}

/// Gauges with the labels `model` and `version`.
fn labelled(values: &[OfVersion]) -> Vec<(Vec<(&str, &str)>, f64)> {
    let mut gauges = Vec::with_capacity(values.len());
    for (model, version, value) in values {
        gauges.push((vec![("model", model.as_str()), ("version", version.as_str())], *value));
    }
    gauges
}

/// The name of a state.
fn state(state: VersionState) -> &'static str {
    match state {
        VersionState::Loading => "loading",
        VersionState::Ready => "ready",
        VersionState::Unloading => "unloading",
        VersionState::Unavailable => "unavailable",
    }
}

fn yes(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_where_it_is_asked_for() {
        for (values, expected) in [
            (&["gzip"][..], true),
            (&["identity", "GZIP;q=0.5"], true),
            (&["deflate, gzip;q=1.0, *;q=0.5"], true),
            (&["gzip;q=0"], false),
            (&["gzip;q=x"], false),
            (&["br"], false),
            (&[], false),
        ] {
            assert_eq!(takes_gzip(values.iter().copied()), expected, "{values:?}");
        }
    }
}
