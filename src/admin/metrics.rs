//! `/metrics`: what the recorders hold, and the live table beside it.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};

use crate::{
    model::{SLOTS, VersionState},
    monitor::{Exposition, Monitor},
    serve::Serving,
};

use super::{Admin, Problem};

pub(super) async fn metrics(State(admin): State<Admin>) -> Response {
    let mut page = Exposition::of(&admin.monitor);
    versions(&admin.serving, &admin.monitor, &mut page);
    weights(&admin.serving, &mut page);
    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    let waiting = admin.serving.demand().waiting() as f64;
    let help = "Requests that wait for versions that load on demand.";
    page.gauges("tidegate_demand_waiting", help, &[(vec![], waiting)]);
    let ready = yes(admin.serving.obstacles().is_empty());
    page.gauges("tidegate_ready", "Whether the server takes requests.", &[(vec![], ready)]);
    let info = vec![("version", env!("CARGO_PKG_VERSION"))];
    page.gauges("tidegate_build_info", "The build that runs.", &[(info, 1.0)]);
    match page.write() {
        Ok(text) => ([(header::CONTENT_TYPE, Exposition::content_type())], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written")
                .into_response()
        }
    }
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
            states.push((of(1.0), entry.state));
            if let Some(version) = &entry.version {
                let bytes = version.parts().size_bytes;
                resident = resident.saturating_add(bytes);
                cost = cost.saturating_add(version.cost_bytes());
                sizes.push(of(bytes as f64));
            }
        }
    }
    page.gauges("tidegate_version_ready", "Whether a version answers requests.", &labelled(&ready));
    let help = "Where a version stands: 1 for its state, 0 for the others.";
    page.gauges("tidegate_version_state", help, &state_sets(&states));
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

const STATES: [(VersionState, &str); 4] = [
    (VersionState::Loading, "loading"),
    (VersionState::Ready, "ready"),
    (VersionState::Unloading, "unloading"),
    (VersionState::Unavailable, "unavailable"),
];

/// One series for each state that a version may be in.
fn state_sets(versions: &[(OfVersion, VersionState)]) -> Vec<(Vec<(&str, &str)>, f64)> {
    let mut gauges = Vec::with_capacity(versions.len() * STATES.len());
    for ((model, version, _), is) in versions {
        for (state, name) in STATES {
            let labels = vec![("model", &**model), ("version", &**version), ("state", name)];
            gauges.push((labels, yes(state == *is)));
        }
    }
    gauges
}

/// Gauges with the labels `model` and `version`.
fn labelled(values: &[OfVersion]) -> Vec<(Vec<(&str, &str)>, f64)> {
    let mut gauges = Vec::with_capacity(values.len());
    for (model, version, value) in values {
        gauges.push((vec![("model", model.as_str()), ("version", version.as_str())], *value));
    }
    gauges
}

fn yes(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}
