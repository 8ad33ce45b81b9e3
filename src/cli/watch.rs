//! `tidegate rollout watch`: a rollout as it goes on, redrawn in place; one line per change where there is no terminal.
//!
//! [`frame`] is pure: a report in, lines out. Leaving the view, by Ctrl-C too, leaves the rollout as it is.
//!
//! Not here: deciding anything; numbers in words (`rollout::words`); drawing in place (`terminal`).

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::Method;
use tokio::signal::unix::{SignalKind, signal};
use unicode_width::UnicodeWidthStr as _;

use crate::{
    app::SystemClock,
    model::Moment,
    monitor::Clock as _,
    rollout::{Change, GateReport, Report, State, Verdict, words},
};

use super::{
    client,
    terminal::{Line, Screen, Style, bar, is_left},
};

/// Time between two looks at the rollout.
const PERIOD: Duration = Duration::from_millis(200);
/// Longest time without an answer of the server, while it restarts for example.
const PATIENCE: Duration = Duration::from_secs(30);
/// From this width on there is room for modes, rates and long bars.
const WIDE: usize = 116;

/// Last report seen.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) report: Report,
}

/// Shows a rollout until it is over, the time has passed or the user leaves; if `waits`, to the end though nobody reads
/// it any more.
pub(super) fn run(
    admin: &str,
    id: &str,
    (waits, timeout): (bool, Option<Duration>),
    json: bool,
) -> anyhow::Result<Watched> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch(admin, id, (waits, timeout), json))
}

async fn watch(
    admin: &str,
    id: &str,
    (waits, timeout): (bool, Option<Duration>),
    json: bool,
) -> anyhow::Result<Watched> {
    let url = format!("{}/api/v1/rollouts/{id}", admin.trim_end_matches('/'));
    let mut left = signal(SignalKind::interrupt()).context("Ctrl-C cannot be heard")?;
    let mut ended = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
    let mut view = View::new(json);
    let began = SystemClock.now();
    let mut heard = began;
    let mut last: Option<Report> = None;
    loop {
        let answer = tokio::select! {
            answer = client::ask(&Method::GET, &url, Vec::new()) => Some(answer),
            _ = left.recv() => None,
            _ = ended.recv() => None,
        };
        let now = SystemClock.now();
        match answer.map(|answer| answer.and_then(|(status, body)| client::answered(status, &body)))
        {
            None => return leave(view, last, "left"),
            Some(Ok(body)) => {
                let report: Report =
                    serde_json::from_str(&body).context("the server's answer is not understood")?;
                heard = now;
                view.show(&report, &body)?;
                if report.state.is_over() {
                    view.end();
                    return Ok(Watched { report });
                }
                last = Some(report);
            }
            Some(Err(error)) if error.is::<client::Refused>() => return Err(error),
            Some(Err(error)) if last.is_none() || now.duration_since(heard) > PATIENCE => {
                view.end();
                return Err(error);
            }
            Some(Err(_)) => view.note("no answer from the server; asking again")?,
        }
        if timeout.is_some_and(|timeout| now.duration_since(began) >= timeout) {
            return leave(view, last, "not over at the timeout");
        }
        if !waits && is_left() {
            return leave(view, last, "nobody reads this");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = left.recv() => return leave(view, last, "left"),
            _ = ended.recv() => return leave(view, last, "left"),
        }
    }
}

/// Ends the view of a rollout that is not over, and says that it goes on.
fn leave(view: View, last: Option<Report>, how: &str) -> anyhow::Result<Watched> {
    view.end();
    let Some(report) = last else { bail!("left before the server answered") };
    let (model, state) = (&report.model, words::state(report.state));
    anstream::eprintln!(
        "{how}; the rollout goes on ({state}): `tidegate rollout watch {model}` shows it again, \
         `tidegate rollout abort {model}` rolls it back"
    );
    Ok(Watched { report })
}

/// Output on which the rollout is shown.
enum View {
    /// Redrawn in place.
    Screen(Screen),
    /// A line per change.
    Lines { history: Vec<Change>, verdicts: Vec<(String, Verdict)>, noted: bool },
    /// A JSON object per change.
    Json { seen: Option<(u64, Vec<Verdict>)> },
}

impl View {
    fn new(json: bool) -> Self {
        if json {
            Self::Json { seen: None }
        } else if io::stdout().is_terminal() {
            Self::Screen(Screen::new())
        } else {
            Self::Lines { history: Vec::new(), verdicts: Vec::new(), noted: false }
        }
    }

    fn show(&mut self, report: &Report, body: &str) -> anyhow::Result<()> {
        match self {
            Self::Screen(screen) => {
                screen.draw(|columns, _| frame(report, SystemClock.unix(), columns))?;
            }
            Self::Lines { history, verdicts, noted } => {
                *noted = false;
                let now: Vec<_> = (report.gates.iter())
                    .map(|gate| (gate.gate.name().to_owned(), gate.verdict))
                    .collect();
                super::print(&news(history, verdicts, report))?;
                history.clone_from(&report.history);
                *verdicts = now;
            }
            Self::Json { seen } => {
                let verdicts: Vec<_> = report.gates.iter().map(|gate| gate.verdict).collect();
                let now = Some((report.revision, verdicts));
                if *seen != now {
                    super::print(&format!("{}\n", body.trim_end()))?;
                    *seen = now;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, note: &str) -> anyhow::Result<()> {
        match self {
            Self::Screen(screen) => screen.note(note)?,
            Self::Lines { noted, .. } if !*noted => {
                anstream::eprintln!("tidegate: {note}");
                *noted = true;
            }
            Self::Lines { .. } | Self::Json { .. } => {}
        }
        Ok(())
    }

    fn end(self) {
        drop(self);
    }
}

/// Lists the changes since the last look, each in a line.
fn news(history: &[Change], verdicts: &[(String, Verdict)], report: &Report) -> String {
    // The history is thinned in its middle, so the last change that was told tells what is new.
    let told = history.last().and_then(|last| report.history.iter().rposition(|it| it == last));
    let mut text = String::new();
    for change in &report.history[told.map_or(0, |told| told + 1)..] {
        let (state, step, why) = (words::state(change.to), change.step + 1, &change.why);
        let steps = report.steps;
        let _ = writeln!(
            text,
            "{} {state}, step {step} of {steps}: {} ({})",
            change.at,
            words::plain(why),
            words::plain(&change.by)
        );
    }
    for gate in &report.gates {
        let name = gate.gate.name();
        let before = verdicts.iter().find(|(other, _)| other == name);
        if before.is_some_and(|(_, verdict)| *verdict != gate.verdict) {
            let _ = writeln!(
                text,
                "  gate {name}: {}, evidence {}, canary {}, baseline {}",
                words::verdict(gate.verdict),
                words::evidence(gate.log_e, gate.log_e_threshold),
                words::counts(gate.candidate),
                words::counts(gate.baseline)
            );
            if let Some(moved) = words::moved(gate) {
                let _ = writeln!(text, "  {moved}");
            }
        }
    }
    text
}

/// A rollout as lines, at a time since 1970.
fn frame(report: &Report, now: Duration, columns: usize) -> Vec<Line> {
    let mut lines = vec![head(report, columns), standing(report, now)];
    lines.push(Line::of(Style::Faint, format!(" {}", words::plain(&report.reason))));
    lines.push(Line::default());
    lines.push(steps(report));
    if !report.state.is_over() {
        lines.extend(progress(report, columns));
    }
    lines.push(Line::default());
    lines.extend(gates(report, columns));
    lines.push(Line::default());
    let first = report.history.len().saturating_sub(4);
    for change in &report.history[first..] {
        lines.push(history(change));
    }
    lines.push(Line::default());
    let model = &report.model;
    lines.push(Line::of(
        Style::Faint,
        if report.state.is_over() {
            format!(" why: tidegate rollout show {model}")
        } else {
            format!(" Ctrl-C leaves it running; to roll back: tidegate rollout abort {model}")
        },
    ));
    lines
}

fn head(report: &Report, columns: usize) -> Line {
    let mut line = Line::of(Style::Bold, format!(" {}", report.model));
    line.add(Style::Plain, format!("  version {} against {}", report.candidate, report.baseline));
    let room = columns.saturating_sub(line.width() + report.id.width() + 1);
    if room > 0 {
        line.add(Style::Faint, format!("{:room$}{}", "", report.id));
    }
    line
}

fn standing(report: &Report, now: Duration) -> Line {
    let style = match report.state {
        State::Promoted | State::Promoting => Style::Good,
        State::RolledBack | State::Failed | State::Superseded => Style::Bad,
        State::Held | State::Paused | State::AwaitingApproval => Style::Bold,
        _ => Style::Calm,
    };
    let mut line = Line::of(style, format!(" {}", words::state(report.state)));
    if !report.state.is_over() {
        let (step, steps) = (report.step + 1, report.steps);
        line.add(
            Style::Plain,
            format!("  step {step} of {steps}, share {}", words::share(report.weight)),
        );
    }
    let until = report.ended_at.map_or(now, Moment::since_1970);
    let since = until.saturating_sub(report.started_at.since_1970());
    let after = if report.state.is_over() { "after" } else { "since" };
    line.add(Style::Faint, format!("  {after} {}", words::seconds(since.as_secs_f64())));
    line
}

/// All steps, with those that have passed and the one that counts.
fn steps(report: &Report) -> Line {
    let mut line = Line::of(Style::Faint, format!(" {:<9}", "steps"));
    let promoted = report.state == State::Promoted;
    let begun = !matches!(report.state, State::Pending | State::Validating | State::Shadow);
    for (index, step) in report.policy.steps.iter().enumerate() {
        let share = words::share(step.weight.0);
        let (style, mark) = match index {
            _ if promoted || index < report.step => (Style::Good, '✓'),
            _ if index > report.step || !begun => (Style::Faint, '·'),
            _ if report.state.is_over() => (Style::Bad, '✗'),
            _ => (Style::Calm, '▶'),
        };
        line.add(style, format!("{mark} {share}   "));
    }
    let (style, mark) = if promoted { (Style::Good, '✓') } else { (Style::Faint, '·') };
    line.add(style, format!("{mark} all"));
    line
}

/// Draws the progress of the step: its time and its requests.
fn progress(report: &Report, columns: usize) -> [Line; 2] {
    let progress = &report.progress;
    let width = if columns >= WIDE { 48 } else { 28 };
    let share = |of: f64, all: f64| if all > 0.0 { (of / all).clamp(0.0, 1.0) } else { 1.0 };
    let line = |name: &str, part: f64, text: String| {
        let mut line = Line::of(Style::Faint, format!(" {name:<9}"));
        bar(&mut line, part, width, if part < 1.0 { Style::Calm } else { Style::Good });
        line.add(Style::Plain, format!(" {text}"));
        line
    };
    let (elapsed, wanted) = (progress.elapsed_seconds, progress.min_duration_seconds);
    let (seen, needed) = (progress.requests, progress.min_requests);
    #[expect(clippy::cast_precision_loss, reason = "for a bar")]
    let requests = share(seen as f64, needed as f64);
    [
        line(
            "time",
            share(elapsed, wanted),
            format!("{} of {}", words::seconds(elapsed), words::seconds(wanted)),
        ),
        line("requests", requests, format!("{} of {}", words::count(seen), words::count(needed))),
    ]
}

/// The gates: evidence against its threshold, counts of both arms, the ratio and its limits.
fn gates(report: &Report, columns: usize) -> Vec<Line> {
    let wide = columns >= WIDE;
    let widths = if wide { [16, 10, 14, 10, 15, 15, 17] } else { [15, 0, 8, 9, 9, 8, 14] };
    let mut head = Line::of(Style::Faint, " ");
    let names = ["gate", "mode", "evidence", "", "baseline", "canary", "ratio"];
    for (name, width) in names.into_iter().zip(widths).filter(|(_, width)| *width > 0) {
        head.cell(Style::Faint, name, width);
    }
    head.add(Style::Faint, "verdict");
    let mut lines = vec![head];
    let (idle, shown): (Vec<_>, Vec<_>) =
        report.gates.iter().partition(|gate| words::is_idle(gate));
    lines.extend(shown.iter().map(|gate| row(gate, widths)));
    if !idle.is_empty() {
        let names: Vec<_> = idle.iter().map(|gate| gate.gate.name()).collect();
        lines.push(Line::of(Style::Faint, format!(" idle: {}", names.join(", "))));
    }
    lines.extend(
        report
            .gates
            .iter()
            .filter_map(words::moved)
            .map(|moved| Line::of(Style::Bold, format!(" {moved}"))),
    );
    if !wide && shown.iter().any(|gate| !gate.decides) {
        lines.push(Line::of(Style::Faint, " (in brackets: is shown, decides nothing)"));
    }
    lines
}

fn row(gate: &GateReport, widths: [usize; 7]) -> Line {
    let wide = widths[1] > 0;
    let text = if gate.decides { Style::Plain } else { Style::Faint };
    let mut line = Line::of(Style::Plain, " ");
    line.cell(text, gate.gate.name(), widths[0]);
    if wide {
        line.cell(text, words::mode(gate.mode), widths[1]);
    }
    let share = gate.log_e / gate.log_e_threshold;
    let style = match gate.verdict {
        _ if !gate.decides => Style::Faint,
        Verdict::Fail => Style::Bad,
        _ => Style::Calm,
    };
    bar(&mut line, share, widths[2], style);
    line.add(Style::Plain, " ");
    let threshold = gate.log_e_threshold;
    let evidence = if threshold > 1e6 {
        "-".to_owned()
    } else {
        format!("{:.1}/{threshold:.1}", gate.log_e + 0.0)
    };
    line.cell(text, evidence, widths[3]);
    for (counts, width) in [(gate.baseline, widths[4]), (gate.candidate, widths[5])] {
        let (events, units) =
            (words::short_count(counts.events), words::short_count(counts.requests));
        let rate = words::rate(counts).filter(|_| wide);
        let rate = rate.map_or(String::new(), |rate| format!(" {:.2}%", rate * 100.0));
        line.cell(text, format!("{events}/{units}{rate}"), width);
    }
    line.cell(text, ratio(gate), widths[6]);
    let verdict = words::verdict(gate.verdict);
    match gate.verdict {
        _ if !gate.decides => line.add(Style::Faint, format!("({verdict})")),
        Verdict::Pass => line.add(Style::Good, verdict),
        Verdict::Fail => line.add(Style::Bad, verdict),
        Verdict::NoData | Verdict::Collecting => line.add(Style::Faint, verdict),
    }
    line
}

/// The ratio and its interval in at most 14 columns: `1.18 0.2–5.9`.
fn ratio(gate: &GateReport) -> String {
    let limit = |limit: Option<f64>, open: &str| match limit {
        Some(limit) if limit >= 99.5 => words::digits(limit.round(), 3),
        Some(limit) => words::digits(limit, 2),
        None => open.to_owned(),
    };
    match (gate.ratio, gate.ratio_lower, gate.ratio_upper) {
        (None, None | Some(0.0), None) => "-".to_owned(),
        (None, lower, None) => format!("≥{}", limit(lower, "0")),
        (ratio, lower, upper) => {
            format!("{} {}–{}", limit(ratio, "?"), limit(lower, "0"), limit(upper, "∞"))
        }
    }
}

fn history(change: &Change) -> Line {
    // The date is on the page; here the time is enough.
    let at = change.at.to_string();
    let time = at.get(11..19).unwrap_or(&at).to_owned();
    let mut line = Line::of(Style::Faint, format!(" {time}  "));
    let step = match change.to {
        State::Canary => format!(", step {}", change.step + 1),
        _ => String::new(),
    };
    line.add(Style::Plain, format!("{}{step}  ", words::state(change.to)));
    line.add(Style::Faint, words::plain(&change.why));
    if change.by != "tidegate" {
        line.add(Style::Faint, format!(" ({})", words::plain(&change.by)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PredictionId;
    use crate::rollout::{
        Event, Marks, Order, Output, Policy, PolicyDraft, Rollout, Seen, Side, Start,
    };

    fn side(version: &str) -> Side {
        Side { version: version.to_owned(), digest: "d".to_owned() }
    }

    /// A rollout at its first step, with some errors of its candidate.
    fn running() -> (Rollout, Duration) {
        let draft = PolicyDraft::read(&serde_json::json!({"warmup_requests": 1})).unwrap();
        let mut now = Duration::from_secs(1_800_000_001);
        let start = Start {
            id: "r-01k0000000000000000000000".to_owned(),
            model: "fraud".to_owned(),
            baseline: side("3"),
            candidate: side("4"),
            policy: Policy::from_drafts(&[&draft]).unwrap(),
            salt: "00".repeat(16),
            actor: "anna",
            reason: "",
        };
        let (mut rollout, _) = Rollout::start(start, now);
        rollout.hear(&Event::Loaded, now);
        for number in 0..2_000_u64 {
            now += Duration::from_millis(10);
            let candidate = number % 100 == 0;
            let marks = if number % 300 == 7 { Marks::ERROR } else { Marks::ANSWERED };
            let seen = Seen {
                candidate,
                share: rollout.weight(),
                key: number,
                sticky: false,
                at: now,
                prediction: PredictionId::UNKNOWN,
                marks,
                output: Output::Class(i64::from(candidate && number % 400 != 0)),
            };
            rollout.hear(&Event::Requests(&[seen]), now);
        }
        (rollout, now)
    }

    fn text(lines: &[Line], columns: usize, coloured: bool) -> String {
        lines.iter().map(|line| line.fit(columns, coloured) + "\n").collect()
    }

    #[test]
    fn a_frame_has_everything_and_no_line_is_wider_than_the_terminal() {
        let (mut rollout, now) = running();
        // Wide characters, a text that is too long, and one that would move the cursor.
        let reason = "待って \x1b[2J".repeat(20);
        rollout.hear(&Event::Order { order: Order::Pause, actor: "anna", reason: &reason }, now);
        let report = rollout.report(now);
        for columns in [1, 20, 79, 80, 100, 120, 200] {
            let lines = frame(&report, now, columns);
            for line in text(&lines, columns, false).lines() {
                assert!(line.width() <= columns, "{columns}: {line:?}");
            }
            assert!(!text(&lines, columns, false).contains('\x1b'));
        }
        let whole = text(&frame(&report, now, 80), 80, false);
        for part in [
            "version 4 against 3",
            "r-01k0000000000000000000000",
            "paused  step 1 of 3, share 1 %",
            "▶ 1 %   · 10 %   · 25 %   · all",
            "20 s of 2 min",
            "errors",
            "collecting",
            "idle: disagreement",
            "tidegate rollout abort fraud",
        ] {
            assert!(whole.contains(part), "{part} is not in\n{whole}");
        }
        // In 80 columns nothing of the gates is cut off.
        let errors = whole.lines().find(|line| line.trim().starts_with("errors")).unwrap();
        assert!(!errors.ends_with('…'), "{whole}");
    }

    #[test]
    fn every_change_is_told_once() {
        let (mut rollout, now) = running();
        let first = rollout.report(now);
        let told = news(&[], &[], &first);
        assert_eq!(told.lines().count(), first.history.len(), "{told}");
        let verdicts: Vec<_> =
            first.gates.iter().map(|gate| (gate.gate.name().to_owned(), gate.verdict)).collect();
        assert_eq!(news(&first.history, &verdicts, &first), "");
        rollout.hear(&Event::Order { order: Order::Abort, actor: "anna", reason: "enough" }, now);
        let told = news(&first.history, &verdicts, &rollout.report(now));
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(
            told.contains("rolled back, step 1 of 3: operator: enough (anna) (anna)"),
            "{told}"
        );
    }
}
