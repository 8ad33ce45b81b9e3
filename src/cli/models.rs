//! `tidegate models`: what a running server serves.

use anyhow::Context as _;
use http::Method;

use crate::admin::{ArmReport, LoadedReport, ModelList, ModelReport, Quantiles, VersionReport};

use super::{
    Outcome, client, print,
    tables::{plain, table, text},
};

/// `tidegate models list`.
pub(super) fn list(admin: &str, json: bool) -> anyhow::Result<Outcome> {
    let body = client::admin(&Method::GET, admin, "/api/v1/models", Vec::new())?;
    if json {
        return print(&(body + "\n"));
    }
    let list: ModelList =
        serde_json::from_str(&body).context("the server's answer is not understood")?;
    let mut notes = plain();
    if list.models.is_empty() {
        notes.add_rows(list.notes.iter().map(|note| ["note:", note]));
        let said = if notes.is_empty() { String::new() } else { format!("{notes}\n") };
        return print(&format!("{said}no models; put one at <repository>/<model>/1/model.onnx\n"));
    }
    let mut rows = table(["model", "version", "", "state", "requests", "p50", "p99"]);
    for model in &list.models {
        for version in &model.versions {
            rows.add_row(row(model, version));
            let said = said(model, version);
            if !said.is_empty() {
                notes.add_row([format!("{} {}", model.name, version.version), said]);
            }
        }
        if model.versions.is_empty() {
            rows.add_row([&*model.name, "-", "", "-", "-", "-", "-"]);
        }
        if let Some(problem) = &model.problem {
            notes.add_row([&model.name, problem]);
        }
    }
    notes.add_rows(list.notes.iter().map(|note| ["note:", note]));
    let notes = if notes.is_empty() { String::new() } else { format!("\n{notes}\n") };
    print(&format!("{}{notes}", text(&rows)))
}

fn row(model: &ModelReport, version: &VersionReport) -> Vec<String> {
    let dash = || "-".to_owned();
    let loaded = version.loaded.as_ref();
    let requests =
        |loaded: &LoadedReport| loaded.requests.iter().map(|(_, count)| count).sum::<u64>();
    let answered = loaded.filter(|loaded| requests(loaded) > 0);
    let answers = model.answering == Some(version.version);
    vec![
        model.name.clone(),
        version.version.to_string(),
        if answers { "answers".to_owned() } else { String::new() },
        version.state.clone(),
        loaded.map_or_else(dash, |loaded| requests(loaded).to_string()),
        answered.map_or_else(dash, |loaded| microseconds(loaded.latency_us.p50)),
        answered.map_or_else(dash, |loaded| microseconds(loaded.latency_us.p99)),
    ]
}

/// Aliases of a version, why it answers although a newer one is there, and why it does not.
fn said(model: &ModelReport, version: &VersionReport) -> String {
    let loaded = version.loaded.as_ref();
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
    notes.join("; ")
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
    for row in latencies(loaded).unwrap_or_default().lines() {
        text += &format!("    {row}\n");
    }
    text
}

/// Quantiles of latencies by arm and phase; `None` where nothing was answered.
fn latencies(loaded: &LoadedReport) -> Option<String> {
    let mut table = table(["arm", "requests", "phase", "p50", "p90", "p99", "p99.9", "max"]);
    for ArmReport { arm, requests, latency_us, phases_us, .. } in &loaded.arms {
        let requests = requests.iter().map(|(_, count)| count).sum::<u64>();
        table.add_row(quantiles([arm, &requests.to_string(), "total"], latency_us));
        let phases = ["queue", "decode", "run", "encode"];
        let phases = phases.into_iter().filter_map(|phase| Some((phase, phases_us.get(phase)?)));
        for (phase, latency) in phases.filter(|(_, latency)| latency.max > 0.0) {
            table.add_row(quantiles([arm, "", phase], latency));
        }
    }
    // It stands indented.
    if let Some(columns) = table.width() {
        table.set_width(columns.saturating_sub(4));
    }
    (!loaded.arms.is_empty()).then(|| text(&table))
}

fn quantiles(first: [&str; 3], latency: &Quantiles) -> Vec<String> {
    let all = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max];
    first.map(str::to_owned).into_iter().chain(all.map(microseconds)).collect()
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
