//! `tidegate quality`: how good a model's versions were, by the outcomes that came and by estimates.

use anyhow::Context as _;
use http::Method;

use crate::feedback::{Metric, QualityReport, VersionQuality};

use super::{Outcome, client, print, tables::table, traffic::percent};

/// `tidegate quality`.
pub(super) fn show(admin: &str, model: &str, window: &str, json: bool) -> anyhow::Result<Outcome> {
    let path = format!("/api/v1/models/{model}/quality?window={window}");
    let body = client::admin(&Method::GET, admin, &path, Vec::new())?;
    if json {
        return print(&(body + "\n"));
    }
    let report: QualityReport =
        serde_json::from_str(&body).context("the server's answer is not understood")?;
    let mut text = format!("{model}, predictions of the last {window}\n");
    if report.versions.is_empty() {
        text += "nothing was predicted in this time\n";
    }
    for version in &report.versions {
        let (labelled, served) = (version.labelled, version.served);
        text += &format!(
            "\nversion {}, arm {}: outcomes of {labelled} of {served} rows ({})",
            version.version,
            version.arm,
            percent(version.coverage)
        );
        if let (Some(half), Some(most)) = (version.delay_seconds.p50, version.delay_seconds.p99) {
            text += &format!(", half within {}, 99 % within {}", time(half), time(most));
        }
        text.push('\n');
        if version.metrics.is_empty() {
            continue;
        }
        let mut table = table(["metric", "by outcomes", "limits (95 %)", "estimated"]);
        for (name, metric) in &version.metrics {
            table.add_row([
                name.clone(),
                number(metric.value),
                limits(metric),
                metric.estimated.map_or_else(|| "-".to_owned(), |value| format!("~{value:.4}")),
            ]);
        }
        text += &format!("{table}\n");
        if !version.segments.is_empty() {
            text += &format!("{}\n", segments(version));
        }
    }
    if report.versions.iter().any(|it| it.metrics.values().any(|it| it.estimated.is_some())) {
        text += "\n~ estimated from scores alone: it cannot see that the same inputs mean something else by now\n";
    }
    print(&text)
}

/// The metrics of segments, a line each.
fn segments(version: &VersionQuality) -> String {
    let shown: Vec<&String> =
        version.metrics.keys().filter(|name| SEGMENT_METRICS.contains(&name.as_str())).collect();
    let heads = ["segment", "rows", "with outcome"].into_iter();
    let mut table = table(heads.chain(shown.iter().map(|name| name.as_str())).collect::<Vec<_>>());
    for segment in &version.segments {
        let own = [segment.segment.clone(), segment.served.to_string(), percent(segment.coverage)];
        let metric = |name: &&String| {
            let metric = segment.metrics.get(*name).copied().unwrap_or_default();
            match (metric.value, metric.estimated) {
                (Some(value), _) => format!("{value:.4}"),
                (None, Some(estimated)) => format!("~{estimated:.4}"),
                (None, None) => "-".to_owned(),
            }
        };
        table.add_row(own.into_iter().chain(shown.iter().map(metric)));
    }
    table.to_string()
}

/// Metrics that are shown by segment.
const SEGMENT_METRICS: [&str; 5] = ["accuracy", "f1", "brier", "mae", "reward"];

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

fn limits(metric: &Metric) -> String {
    match (metric.lower, metric.upper) {
        (Some(lower), Some(upper)) => format!("{lower:.4} to {upper:.4}"),
        _ => "-".to_owned(),
    }
}

/// A delay for people.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} d", seconds / 86_400.0),
    }
}
