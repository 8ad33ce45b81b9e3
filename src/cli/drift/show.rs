//! One feature: where its values fall, beside where the reference's fell.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use serde_json::json;
use unicode_width::UnicodeWidthStr as _;

use crate::{
    app::SystemClock,
    drift::{DriftReport, FeatureReport, Status},
    monitor::Clock as _,
    rollout::words::{count, digits, percent, plain},
};

use super::{
    super::{
        Outcome, print, print_json,
        terminal::{self, Line, Style, bar, shortened, wrapped},
    },
    draw, plot,
    status::open_alarms,
    words::{Bin, brief, evidence, index, is_conspicuous, quoted, spelled, style, widest},
};

/// Least likeness of a name that was probably meant.
const LIKENESS_MIN: f64 = 0.75;

/// Widest bars, in columns.
const BAR_MAX: usize = 40;

/// `tidegate drift show`.
pub(super) fn run(
    report: &DriftReport,
    name: &str,
    file: Option<&Path>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let feature = find(report, name)?;
    if let Some(file) = file {
        if Bin::of(feature).is_empty() {
            bail!(
                "`{}` has neither a reference nor values to plot; {}",
                plain(name),
                report.detail
            );
        }
        std::fs::write(file, plot::svg(report, feature))
            .with_context(|| format!("`{}` cannot be written", file.display()))?;
    }
    if json {
        let alarms = report.alarms.iter().filter(|alarm| alarm.feature == name);
        return print_json(&json!({
            "model": report.model, "version": report.version, "window_seconds": report.window_seconds,
            "feature": feature, "alarms": alarms.collect::<Vec<_>>(),
        }));
    }
    if let Some(file) = file {
        return print(&format!("{}: {}\n", plain(name), file.display()));
    }
    draw(&frame(report, feature, SystemClock.unix(), terminal::columns()))
}

/// The feature of this name; its error knows the nearest one.
pub(super) fn find<'a>(report: &'a DriftReport, name: &str) -> anyhow::Result<&'a FeatureReport> {
    if let Some(found) = report.features.iter().find(|feature| feature.name == name) {
        return Ok(found);
    }
    let model = &report.model;
    if report.features.is_empty() {
        bail!("no feature of `{model}` is watched: {}", plain(&report.detail));
    }
    let likeness = |feature: &&FeatureReport| strsim::jaro_winkler(&feature.name, name);
    let near = report.features.iter().filter(|feature| likeness(feature) >= LIKENESS_MIN);
    let near = near.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let meant =
        near.map_or_else(String::new, |near| format!("did you mean `{}`? ", plain(&near.name)));
    bail!(
        "`{model}` has no feature `{}`; {meant}`tidegate drift status {} --all` lists them",
        plain(name),
        quoted(model)
    )
}

/// The feature as lines.
pub(super) fn frame(
    report: &DriftReport,
    feature: &FeatureReport,
    now: Duration,
    columns: usize,
) -> Vec<Line> {
    let mut head = Line::of(Style::Bold, plain(&feature.name));
    let (kind, source) = (plain(&feature.kind), plain(&feature.source));
    // A derived feature of text is named so already.
    let source = if source == "derived" { "feature".to_owned() } else { source };
    let (model, version) = (plain(&report.model), plain(&report.version));
    head.add(Style::Plain, format!("  {kind} {source} of {model}, version {version}  "));
    head.add(style(feature.status), feature.status.name());
    let mut lines = vec![head];
    lines.extend(open_alarms(report, &feature.name, now));
    lines.push(Line::default());
    lines.extend(numbers(report, feature).iter().flat_map(|text| {
        wrapped(text, columns).into_iter().map(|text| Line::of(Style::Plain, text))
    }));
    let bins = Bin::of(feature);
    if bins.is_empty() {
        let why = match feature.status {
            Status::Learning => {
                format!("its reference is being learned: {}", plain(&report.detail))
            }
            _ => "neither the reference nor the window has values".to_owned(),
        };
        lines.extend(wrapped(&why, columns).into_iter().map(|text| Line::of(Style::Faint, text)));
        return lines;
    }
    lines.push(Line::default());
    lines.extend(histogram(report, feature, &bins, columns));
    lines.push(Line::default());
    let (model, name) = (quoted(&report.model), quoted(&feature.name));
    lines.push(Line::of(
        Style::Faint,
        format!("as a picture: tidegate drift show {model} {name} --plot drift.svg"),
    ));
    lines
}

/// The statistics of the window in two sentences.
fn numbers(report: &DriftReport, feature: &FeatureReport) -> [String; 2] {
    let noise = feature.psi_noise.map_or_else(String::new, |noise| {
        format!(" ({} to expect without drift)", index(Some(noise), true))
    });
    let mut distances =
        format!("PSI {}{noise}, JS {}", index(feature.psi, true), index(feature.js, true));
    if feature.ks.is_some() {
        distances += &format!(", KS {}", index(feature.ks, true));
    }
    if let Some(wasserstein) = feature.wasserstein {
        distances += &format!(", Wasserstein {}", brief(wasserstein, 8));
    }
    distances += &format!("; evidence {:.1}", evidence(feature.log_m));
    if let Some(tendency) = &feature.tendency {
        distances += &format!(", for {}", plain(tendency));
    }
    let mut values =
        format!("{} values in {}", count(feature.rows), spelled(report.window_seconds));
    let mean = |mean: Option<f64>| mean.map_or_else(|| "?".to_owned(), |mean| digits(mean, 4));
    if feature.mean.is_some() || feature.reference_mean.is_some() {
        values += &format!(
            ", mean {} where the reference has {}",
            mean(feature.mean),
            mean(feature.reference_mean)
        );
    }
    values +=
        &format!(", missing {}, unseen {}", percent(feature.missing), percent(feature.unseen));
    [distances, values]
}

/// A line for each bin: the reference's share, the window's, and their ratio.
fn histogram(
    report: &DriftReport,
    feature: &FeatureReport,
    bins: &[Bin],
    columns: usize,
) -> Vec<Line> {
    let label_width = widest(bins.iter().map(|bin| bin.label.as_str()), 5, (columns / 3).max(8));
    // Two shares of seven columns, the ratio of eight, and the spaces between.
    let bar_width = (columns.saturating_sub(label_width + 28) / 2).clamp(4, BAR_MAX);
    let most = bins.iter().map(|bin| bin.reference.max(bin.current)).fold(1e-9, f64::max);
    let loud = if is_conspicuous(feature) { Style::Bad } else { Style::Calm };
    let side = bar_width + 8;
    let mut head = Line::default();
    head.cell(Style::Faint, "values", label_width);
    head.cell(Style::Faint, shortened("reference", side), side);
    let window = spelled(report.window_seconds);
    head.cell(Style::Faint, shortened(&format!("last {window}"), side), side);
    head.add(Style::Faint, "ratio");
    let mut lines = vec![head];
    for bin in bins {
        let mut line = Line::default();
        let label = shortened(&bin.label, label_width);
        line.cell(Style::Plain, label, label_width);
        for (share, style) in [(bin.reference, Style::Plain), (bin.current, loud)] {
            bar(&mut line, share / most, bar_width, style);
            let share = if share > 0.0 { percent(share) } else { "-".to_owned() };
            let missing = 8_usize.saturating_sub(share.width());
            line.add(Style::Plain, format!("{:missing$}{share} ", ""));
        }
        line.add(Style::Plain, bin.ratio());
        lines.push(line);
    }
    lines
}
