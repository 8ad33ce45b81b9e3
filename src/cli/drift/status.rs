//! A version's drift as lines: what it is, its alarms, its features with the worst first.
//!
//! Pure: a report in, lines out; at 80 columns every column is still there.

use std::time::Duration;

use unicode_width::UnicodeWidthStr as _;

use crate::{
    drift::{Alarm, DriftReport, FeatureReport, NamedBy, SegmentName, Status, Tier},
    rollout::words::{count, digits, plain, seconds, share, short_count, time},
};

use super::{
    super::terminal::{Line, Style, bar, shortened, wrapped},
    words::{
        evidence, index, is_conspicuous, means, percent, quoted, since, sparkline, spelled, style,
        tier, widest, worst_first,
    },
};

/// Columns from which on there is room for more digits and longer sparklines.
const WIDE: usize = 110;

/// Columns of the words before the texts of the headline.
const KEY: usize = 10;

/// The page of one version, with so many features at most.
pub(super) fn frame(
    report: &DriftReport,
    now: Duration,
    columns: usize,
    features_max: usize,
) -> Vec<Line> {
    let mut lines = headline(report, columns);
    let is_open = |alarm: &&Alarm| alarm.cleared_at.is_none();
    let open: Vec<&Alarm> = report.alarms.iter().filter(is_open).collect();
    let heads = [
        (Tier::Page, "alarms"),
        (
            Tier::Warn,
            "warnings: a hundredth of the evidence, without a promise; they trigger nothing",
        ),
    ];
    for (tier, head) in heads {
        let own: Vec<&Alarm> = open.iter().copied().filter(|alarm| alarm.tier == tier).collect();
        if !own.is_empty() {
            lines.extend([Line::default(), Line::of(Style::Faint, head)]);
            lines.extend(alarms(&own, now, columns));
        }
    }
    let over: Vec<&Alarm> = report.alarms.iter().filter(|alarm| !is_open(alarm)).collect();
    if features_max == usize::MAX && !over.is_empty() {
        lines
            .extend([Line::default(), Line::of(Style::Faint, "alarms and warnings that are over")]);
        lines.extend(alarms(&over, now, columns));
    }
    let broken = broken(report, columns);
    if !broken.is_empty() {
        lines.extend([
            Line::default(),
            Line::of(Style::Faint, "contract, since the version was loaded"),
        ]);
        lines.extend(broken);
    }
    if !report.segments.is_empty() {
        lines.extend([
            Line::default(),
            Line::of(Style::Faint, "segments, each against its own reference"),
        ]);
        lines.extend(segments(report, columns));
    }
    if !report.features.is_empty() {
        lines.push(Line::default());
        lines.extend(table(report, columns, features_max));
    }
    lines.push(Line::default());
    let drifting = report.segments.iter().find(|segment| segment.status == Status::Drifting);
    let of_segment = drifting.map(|segment| {
        let (model, value) = (quoted(&report.model), quoted(&segment.value));
        format!("the segment that drifts: tidegate drift status {model} --segment {value}")
    });
    for text in of_segment.into_iter().chain(next(report)) {
        lines.extend(wrapped(&text, columns).into_iter().map(|text| Line::of(Style::Faint, text)));
    }
    lines
}

fn headline(report: &DriftReport, columns: usize) -> Vec<Line> {
    let mut head = Line::of(Style::Bold, plain(&report.model));
    if !report.version.is_empty() {
        head.add(Style::Plain, format!("  version {}", plain(&report.version)));
    }
    if let Some(SegmentName { by, value }) = &report.segment {
        head.add(Style::Plain, format!("  {} {}", plain(by), plain(value)));
    }
    head.add(Style::Plain, "  ");
    head.add(style(report.status), report.status.name());
    let mut lines = vec![head];
    let mut say = |key: &str, text: &str| {
        for (number, text) in wrapped(text, columns.saturating_sub(KEY + 1)).iter().enumerate() {
            let mut line = Line::default();
            line.cell(Style::Faint, if number == 0 { key } else { "" }, KEY);
            line.add(Style::Plain, text);
            lines.push(line);
        }
    };
    let digest: String = plain(&report.reference.digest).chars().take(12).collect();
    let digest = if digest.is_empty() { digest } else { format!(" (sha256 {digest}…)") };
    say("reference", &format!("{}{digest}", plain(&report.detail)));
    if report.false_alarm_every_seconds > 0.0 {
        let every = spelled(report.false_alarm_every_seconds);
        say(
            "promise",
            &format!("at most one false alarm in {every}, on average, over all features"),
        );
    }
    if report.window_seconds > 0.0 {
        let rows = count(report.rows);
        let counted = if report.rows_counted < report.rows {
            format!(", {} of them counted", count(report.rows_counted))
        } else {
            String::new()
        };
        say("window", &format!("{}, {rows} rows{counted}", spelled(report.window_seconds)));
    }
    let mut measure = |key: &str, part: f64, text: String, style: Style| {
        let mut line = Line::default();
        line.cell(Style::Faint, key, KEY);
        bar(&mut line, part, if columns >= WIDE { 48 } else { 28 }, style);
        line.add(Style::Plain, format!("  {text}"));
        lines.push(line);
    };
    if report.status == Status::Learning {
        let progress = report.reference.progress;
        measure("learned", progress, share(progress), Style::Calm);
    }
    if report.log_m_threshold > 0.0 && report.status != Status::Learning {
        let log_m = evidence(report.log_m);
        let anew = match report.status {
            Status::Drifting => ", anew since the alarm",
            _ => "",
        };
        let text = format!("{log_m:.1} of {:.1}{anew}", report.log_m_threshold);
        let part = log_m / report.log_m_threshold;
        measure("evidence", part, text, if part < 1.0 { Style::Calm } else { Style::Bad });
    }
    lines
}

/// Alarms, a line each.
fn alarms(alarms: &[&Alarm], now: Duration, columns: usize) -> Vec<Line> {
    let names: Vec<String> = alarms.iter().map(|alarm| plain(&alarm.feature)).collect();
    let kinds: Vec<String> = alarms.iter().map(|alarm| kind(alarm)).collect();
    let ends: Vec<String> = alarms.iter().map(|alarm| much(alarm, now)).collect();
    let end_width = widest(ends.iter().map(String::as_str), 0, usize::MAX);
    // What the tier and the spaces between leave.
    let room = columns.saturating_sub(end_width + 8);
    let kind_width = widest(kinds.iter().map(String::as_str), 4, (room / 2).clamp(8, 20));
    let room = room.saturating_sub(kind_width).max(8);
    let name_width = widest(names.iter().map(String::as_str), 7, room);
    let mut lines = Vec::new();
    for (((alarm, name), kind), end) in alarms.iter().zip(names).zip(kinds).zip(ends) {
        let (word, style) = tier(alarm.tier);
        let style = if alarm.cleared_at.is_some() { Style::Faint } else { style };
        let mut line = Line::of(Style::Plain, " ");
        line.cell(style, word, 4);
        line.cell(Style::Bold, shortened(&name, name_width), name_width);
        line.cell(style, shortened(&kind, kind_width), kind_width);
        line.add(Style::Plain, end);
        // What a narrow terminal has no room for.
        let more = ", the likeliest of all";
        if alarm.named_by == NamedBy::Likeliest && line.width() + more.len() <= columns {
            line.add(Style::Faint, more);
        }
        lines.push(line);
    }
    lines
}

/// When an alarm's drift began, and how large it was; how long it lasted, where it is over.
fn much(alarm: &Alarm, now: Duration) -> String {
    let (psi, js) = (index(Some(alarm.psi), false), index(Some(alarm.js), false));
    let when = match alarm.cleared_at {
        None => since(alarm.since, now),
        Some(cleared) => {
            let lasted = cleared.since_1970().saturating_sub(alarm.since.since_1970());
            format!("{} for {}", time(alarm.since), seconds(lasted.as_secs_f64()))
        }
    };
    format!("since {when}, PSI {psi} JS {js}")
}

/// The rules of the contract that values broke, a line each.
fn broken(report: &DriftReport, columns: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for rule in &report.contract {
        for (name, times) in rule.broken.iter().filter(|(_, times)| **times > 0) {
            let (times, values) = (count(*times), count(rule.values));
            let dry = if rule.dry_run { ", dry run" } else { "" };
            let end = format!(
                "{} broken by {times} of {values} values ({}{dry})",
                plain(name),
                rule.action.name()
            );
            let room = columns.saturating_sub(end.width() + 2).max(8);
            let mut line = Line::of(Style::Plain, " ");
            line.add(Style::Bold, shortened(&plain(&rule.feature), room));
            line.add(Style::Plain, format!(" {end}"));
            lines.push(line);
        }
    }
    lines
}

/// The segments, a line each.
fn segments(report: &DriftReport, columns: usize) -> Vec<Line> {
    let names: Vec<String> = report.segments.iter().map(|one| plain(&one.value)).collect();
    let width = widest(names.iter().map(String::as_str), 5, columns / 3);
    let mut lines = Vec::new();
    for (segment, name) in report.segments.iter().zip(names) {
        let mut line = Line::of(Style::Plain, " ");
        line.cell(Style::Bold, shortened(&name, width), width);
        line.cell(style(segment.status), segment.status.name(), 8);
        line.cell(Style::Plain, format!("{} rows", short_count(segment.rows)), 11);
        let text = match segment.status {
            Status::Learning => format!("learned {}", share(segment.progress)),
            Status::Drifting => {
                segment.drifting.iter().map(|it| plain(it)).collect::<Vec<_>>().join(", ")
            }
            Status::Watching => {
                format!("evidence {:.1} of {:.1}", evidence(segment.log_m), report.log_m_threshold)
            }
            Status::Off | Status::Unmonitorable => String::new(),
        };
        let room = columns.saturating_sub(line.width()).max(4);
        line.add(Style::Plain, shortened(&text, room));
        lines.push(line);
    }
    lines
}

fn kind(alarm: &Alarm) -> String {
    match &alarm.category {
        Some(category) => format!("`{}`", plain(category)),
        None => plain(&alarm.kind),
    }
}

/// Columns of the table: feature, moves, PSI, noise, JS, KS, missing, means, evidence, sparkline.
type Widths = [usize; 10];

/// The features, the worst first, and what their columns mean.
fn table(report: &DriftReport, columns: usize, features_max: usize) -> Vec<Line> {
    let sorted = worst_first(report);
    let shown = &sorted[..sorted.len().min(features_max)];
    let names: Vec<String> = shown.iter().map(|feature| plain(&feature.name)).collect();
    let is_wide = columns >= WIDE;
    let mut widths: Widths =
        if is_wide { [0, 9, 5, 5, 5, 5, 7, 17, 8, 20] } else { [0, 8, 4, 5, 4, 4, 5, 11, 5, 10] };
    let taken: usize = widths.iter().sum::<usize>() + 9;
    let room = columns.saturating_sub(taken).max(8);
    widths[0] = widest(names.iter().map(String::as_str), 7, room);
    let heads = if is_wide {
        [
            "feature",
            "moves",
            "PSI",
            "noise",
            "JS",
            "KS",
            "missing",
            "mean",
            "evidence",
            "PSI, last hour",
        ]
    } else {
        ["feature", "moves", "PSI", "noise", "JS", "KS", "miss.", "mean", "evid.", "last hour"]
    };
    let mut head = Line::default();
    for (name, width) in heads.into_iter().zip(widths).take(9) {
        head.cell(Style::Faint, name, width);
    }
    head.add(Style::Faint, heads[9]);
    let mut lines = vec![head];
    lines.extend(
        shown.iter().zip(&names).map(|(feature, name)| row(report, feature, name, &widths)),
    );
    let rest = &sorted[shown.len()..];
    if !rest.is_empty() {
        let loud = rest.iter().filter(|feature| is_conspicuous(feature)).count();
        let what = if loud > 0 {
            format!("{loud} of them conspicuous")
        } else {
            "inconspicuous".to_owned()
        };
        lines.push(Line::of(
            Style::Faint,
            format!("and {} more, {what} (--all shows them)", rest.len()),
        ));
    }
    let legend = "noise: PSI to expect without drift; mean: the reference's→the window's";
    lines.extend(wrapped(legend, columns).into_iter().map(|text| Line::of(Style::Faint, text)));
    lines
}

fn row(report: &DriftReport, feature: &FeatureReport, name: &str, widths: &Widths) -> Line {
    let is_wide = widths[9] > 10;
    let is_open = |alarm: &&Alarm| alarm.cleared_at.is_none() && alarm.feature == feature.name;
    let alarm = report.alarms.iter().find(is_open);
    let conspicuous = is_conspicuous(feature);
    let mark = match alarm {
        Some(alarm) => tier(alarm.tier).1,
        None if conspicuous => Style::Warn,
        None => Style::Plain,
    };
    let mut line = Line::default();
    line.cell(
        if alarm.is_some() { Style::Bold } else { Style::Plain },
        shortened(name, widths[0]),
        widths[0],
    );
    let moves = alarm.map(|alarm| &alarm.kind).or(feature.tendency.as_ref());
    let moves = moves.map_or_else(|| "-".to_owned(), |moves| shortened(&plain(moves), widths[1]));
    let unwatched = match feature.status {
        Status::Learning => Some("learning"),
        Status::Unmonitorable => Some("nothing"),
        Status::Off => Some("off"),
        Status::Watching | Status::Drifting => None,
    };
    match unwatched {
        Some(word) => line.cell(Style::Faint, word, widths[1]),
        None => line.cell(if alarm.is_some() { mark } else { Style::Faint }, moves, widths[1]),
    }
    line.cell(mark, index(feature.psi, is_wide), widths[2]);
    line.cell(Style::Faint, index(feature.psi_noise, is_wide), widths[3]);
    line.cell(Style::Plain, index(feature.js, is_wide), widths[4]);
    line.cell(Style::Plain, index(feature.ks, is_wide), widths[5]);
    line.cell(Style::Plain, percent(feature.missing), widths[6]);
    line.cell(Style::Plain, means(feature, widths[7]), widths[7]);
    let log_m = if unwatched.is_some() {
        "-".to_owned()
    } else {
        format!("{:.1}", evidence(feature.log_m))
    };
    line.cell(Style::Plain, log_m, widths[8]);
    line.add(
        if mark == Style::Plain { Style::Calm } else { mark },
        sparkline(&feature.psi_minutes, widths[9]),
    );
    line
}

/// Next steps, by the state.
fn next(report: &DriftReport) -> Vec<String> {
    let mut model = quoted(&report.model);
    if let Some(SegmentName { value, .. }) = &report.segment {
        model.push_str(&format!(" --segment {}", quoted(value)));
    }
    match report.status {
        Status::Drifting => {
            let worst =
                worst_first(report).first().map_or("FEATURE".to_owned(), |own| quoted(&own.name));
            vec![
                format!("which values moved: tidegate drift show {model} {worst}"),
                format!("exact tests of the same rows: tidegate drift test {model}"),
                "if this is how data are from now on: train anew, and put a profile.json of the new training data beside \
                 the new version (`tidegate profile`)"
                    .to_owned(),
            ]
        }
        Status::Watching => vec![format!(
            "one feature: tidegate drift show {model} FEATURE; live: tidegate drift watch {model}"
        )],
        Status::Learning => vec![format!(
            "nothing is compared until the reference is learned; progress: tidegate drift watch {model}"
        )],
        Status::Off => vec![format!(
            "to watch it, remove `enabled = false` from [models.{model}.drift] or [drift] and start the server again"
        )],
        Status::Unmonitorable if report.false_alarm_every_seconds <= 0.0 => {
            vec![format!("what is loaded: tidegate models show {model}")]
        }
        Status::Unmonitorable => vec![format!(
            "next: tidegate profile DATA -o models/{model}/{}/profile.json",
            if report.version.is_empty() { "VERSION" } else { &report.version }
        )],
    }
}

/// A line for each of several models.
pub(super) fn overview(reports: &[DriftReport], columns: usize) -> Vec<Line> {
    let names: Vec<String> = reports.iter().map(|report| plain(&report.model)).collect();
    let is_wide = columns >= WIDE;
    let (name_most, bar_width) = if is_wide { (40, 20) } else { (16, 6) };
    let name_width = widest(names.iter().map(String::as_str), 5, name_most);
    let mut head = Line::default();
    let heads = [
        ("model", name_width),
        ("version", 7),
        ("status", 13),
        ("evidence", bar_width + 10),
        ("rows", 6),
    ];
    for (name, width) in heads.into_iter().take(if is_wide { 5 } else { 4 }) {
        head.cell(Style::Faint, name, width);
    }
    head.add(Style::Faint, "worst");
    let mut lines = vec![head];
    for (report, name) in reports.iter().zip(names) {
        let mut line = Line::default();
        line.cell(Style::Bold, shortened(&name, name_width), name_width);
        let version = if report.version.is_empty() { "-" } else { &report.version };
        line.cell(Style::Plain, plain(version), 7);
        line.cell(style(report.status), report.status.name(), 13);
        let (part, text) = match report.status {
            Status::Learning => (report.reference.progress, share(report.reference.progress)),
            Status::Watching | Status::Drifting => {
                let log_m = evidence(report.log_m);
                let threshold = report.log_m_threshold;
                (log_m / threshold, format!("{log_m:.1}/{threshold:.1}"))
            }
            Status::Off | Status::Unmonitorable => (0.0, "-".to_owned()),
        };
        let is_drifting = report.status == Status::Drifting;
        bar(&mut line, part, bar_width, if is_drifting { Style::Bad } else { Style::Calm });
        line.cell(Style::Plain, format!(" {text}"), 10);
        if is_wide {
            line.cell(Style::Plain, short_count(report.rows), 6);
        }
        line.add(Style::Plain, worst(report, columns.saturating_sub(line.width())));
        lines.push(line);
    }
    lines.push(Line::default());
    let drifting = reports.iter().find(|report| report.status == Status::Drifting);
    let model = drifting.map_or_else(|| "MODEL".to_owned(), |report| quoted(&report.model));
    let next = format!("all about one: tidegate drift status {model}");
    lines.extend(wrapped(&next, columns).into_iter().map(|text| Line::of(Style::Faint, text)));
    lines
}

/// The feature that an alarm says moved furthest, and how many more there are; without alarms the worst one.
fn worst(report: &DriftReport, columns: usize) -> String {
    let is_page = |alarm: &&Alarm| alarm.cleared_at.is_none() && alarm.tier == Tier::Page;
    let pages = report.alarms.iter().filter(is_page);
    if let Some(furthest) = pages.clone().max_by(|a, b| a.js.total_cmp(&b.js)) {
        let end = match pages.count() {
            1 => format!(" {}", plain(&furthest.kind)),
            all => format!(" {}, {} more", plain(&furthest.kind), all - 1),
        };
        let room = columns.saturating_sub(end.width()).max(4);
        return shortened(&plain(&furthest.feature), room) + &end;
    }
    match worst_first(report).first() {
        Some(feature) if feature.psi.is_some() => {
            let psi = format!(" PSI {}", digits(feature.psi.unwrap_or(0.0), 2));
            shortened(&plain(&feature.name), columns.saturating_sub(psi.width()).max(4)) + &psi
        }
        _ => "-".to_owned(),
    }
}

/// The alarms of a feature that are open, in words.
pub(super) fn open_alarms(report: &DriftReport, feature: &str, now: Duration) -> Vec<Line> {
    let own =
        report.alarms.iter().filter(|alarm| alarm.feature == feature && alarm.cleared_at.is_none());
    own.map(|alarm| {
        let (word, style) = tier(alarm.tier);
        let promise = if alarm.tier == Tier::Warn { ", without a promise" } else { "" };
        let mut line = Line::of(style, format!("{word}: {}", kind(alarm)));
        line.add(Style::Plain, format!(" since {}{promise}", since(alarm.since, now)));
        line
    })
    .collect()
}
