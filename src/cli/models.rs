//! `tidegate models`: what a running server serves.

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets::UTF8_BORDERS_ONLY};
use http::Method;

use crate::admin::{ArmReport, LoadedReport, ModelList, ModelReport, Quantiles, VersionReport};

use super::{Outcome, client, print};

/// `tidegate models list`.
pub(super) fn list(admin: &str, json: bool) -> anyhow::Result<Outcome> {
    let body = client::admin(&Method::GET, admin, "/api/v1/models", Vec::new())?;
    if json {
        return print(&(body + "\n"));
    }
    let list: ModelList =
        serde_json::from_str(&body).context("the server's answer is not understood")?;
    let mut notes = String::new();
    for note in &list.notes {
        notes += &format!(
            "note: {note}
"
        );
    }
    if list.models.is_empty() {
        return print(&format!("{notes}no models; put one at <repository>/<model>/1/model.onnx\n"));
    }
    let mut table =
        table(["model", "version", "state", "engine", "requests", "p50", "p99", "note"]);
    for model in &list.models {
        for version in &model.versions {
            table.add_row(row(model, version));
        }
        if model.versions.is_empty() {
            let problem = model.problem.as_deref().unwrap_or("no versions");
            table.add_row(vec![&model.name, "-", "-", "-", "-", "-", "-", problem]);
        }
    }
    print(&format!("{table}\n{notes}"))
}

fn row(model: &ModelReport, version: &VersionReport) -> Vec<String> {
    let dash = || "-".to_owned();
    let loaded = version.loaded.as_ref();
    let requests =
        |loaded: &LoadedReport| loaded.requests.iter().map(|(_, count)| count).sum::<u64>();
    let answered = loaded.filter(|loaded| requests(loaded) > 0);
    let note = loaded.and_then(|loaded| loaded.notes.first()).unwrap_or(&version.reason);
    let mut notes: Vec<&str> = model
        .aliases
        .iter()
        .filter(|(_, aliased)| **aliased == version.version)
        .map(|(alias, _)| alias.as_str())
        .collect();
    if model.answering == Some(version.version) {
        notes.extend(model.pinned.as_deref());
    }
    notes.extend(Some(note.as_str()).filter(|note| !note.is_empty()));
    vec![
        model.name.clone(),
        version.version.to_string(),
        version.state.clone(),
        loaded.map_or_else(dash, |loaded| loaded.engine.clone()),
        loaded.map_or_else(dash, |loaded| requests(loaded).to_string()),
        answered.map_or_else(dash, |loaded| microseconds(loaded.latency_us.p50)),
        answered.map_or_else(dash, |loaded| microseconds(loaded.latency_us.p99)),
        notes.join("; "),
    ]
}

/// `tidegate models show`.
pub(super) fn show(admin: &str, model: &str, json: bool) -> anyhow::Result<Outcome> {
    let body = client::admin(&Method::GET, admin, &format!("/api/v1/models/{model}"), Vec::new())?;
    if json {
        return print(&(body + "\n"));
    }
    let report: ModelReport =
        serde_json::from_str(&body).context("the server's answer is not understood")?;
    let mut text = format!("{}\n", report.name);
    if let Some(problem) = &report.problem {
        text += &format!("  problem   {problem}\n");
    }
    if let Some(answering) = report.answering {
        text += &format!("  answers   version {answering}\n");
    }
    if let Some(pinned) = &report.pinned {
        text +=
            &format!("  pinned    {pinned}; `tidegate models unpin {}` clears it\n", report.name);
    }
    for (alias, version) in &report.aliases {
        text += &format!("  alias     {alias} is version {version}\n");
    }
    for version in &report.versions {
        text += &version_text(version);
    }
    print(&text)
}

fn version_text(version: &VersionReport) -> String {
    let mut text = format!("\n  version {}  {}\n", version.version, version.state);
    let mut line = |key: &str, value: &str| text += &format!("    {key:<10}{value}\n");
    if !version.reason.is_empty() {
        line("reason", &version.reason);
    }
    let Some(loaded) = &version.loaded else { return text };
    line("inputs", &loaded.inputs.join(", "));
    if !loaded.optional_inputs.is_empty() {
        line("optional", &loaded.optional_inputs.join(", "));
    }
    line("outputs", &loaded.outputs.join(", "));
    let rows = if loaded.batched { "rows in the first dimension" } else { "no rows" };
    line("engine", &format!("{}, {} sessions, {rows}", loaded.engine, loaded.sessions));
    line("size", &size(loaded.size_bytes));
    line("digest", &loaded.digest);
    let run = loaded
        .run_us
        .map_or_else(|| "not warmed".to_owned(), |run| format!("run {}", microseconds(run)));
    line(
        "loading",
        &format!("{:.1} ms, warm-up {:.1} ms, {run}", loaded.load_ms, loaded.warmup_ms),
    );
    let requests = loaded.requests.iter().map(|(code, count)| format!("{count} x {code}"));
    let requests = requests.collect::<Vec<_>>().join(", ");
    line("requests", if requests.is_empty() { "none yet" } else { &requests });
    for note in &loaded.notes {
        line("note", note);
    }
    if let Some(table) = latencies(loaded) {
        for row in table.lines() {
            text += &format!("    {row}\n");
        }
    }
    text
}

/// Quantiles of latencies by arm and phase; `None` where nothing was answered.
fn latencies(loaded: &LoadedReport) -> Option<Table> {
    let mut table = table(["arm", "requests", "phase", "p50", "p90", "p99", "p99.9", "max"]);
    for ArmReport { arm, requests, latency_us, phases_us, .. } in &loaded.arms {
        let requests = requests.iter().map(|(_, count)| count).sum::<u64>();
        table.add_row(quantiles([arm, &requests.to_string(), "total"], latency_us));
        let phases = ["queue", "decode", "run", "encode"];
        let phases = phases.into_iter().filter_map(|phase| Some((phase, phases_us.get(phase)?)));
        for (phase, latency) in phases.filter(|(_, latency)| latency.max > 0.0) {
            table.add_row(quantiles(["", "", phase], latency));
        }
    }
    (!loaded.arms.is_empty()).then_some(table)
}

fn quantiles(first: [&str; 3], latency: &Quantiles) -> Vec<String> {
    let all = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
    first.map(str::to_owned).into_iter().chain(all.map(microseconds)).collect()
}

/// A table as all commands draw it.
pub(super) fn table(head: impl Into<comfy_table::Row>) -> Table {
    let mut table = Table::new();
    // As wide as the terminal; elsewhere a line a row.
    let arrangement = ContentArrangement::Dynamic;
    table.load_style(UTF8_BORDERS_ONLY).set_content_arrangement(arrangement).set_header(head);
    table
}

/// A time for people.
pub(super) fn microseconds(microseconds: f64) -> String {
    match microseconds {
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    const KIB: f64 = 1024.0;
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let bytes = bytes as f64;
    match bytes {
        b if b < KIB => format!("{b} B"),
        b if b < KIB * KIB => format!("{:.1} KiB", b / KIB),
        b if b < KIB * KIB * KIB => format!("{:.1} MiB", b / KIB / KIB),
        b => format!("{:.1} GiB", b / KIB / KIB / KIB),
    }
}
