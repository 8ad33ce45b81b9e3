//! `tidegate drift watch`: the page of a version, redrawn each second; a line per change where there is no terminal.
//!
//! Leaving the view, by Ctrl-C too, changes nothing. It ends when nobody reads it any more.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::Context as _;
use http::Method;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    app::SystemClock,
    drift::{Alarm, DriftReport, Status},
    model::Moment,
    monitor::Clock as _,
    rollout::words::{digits, plain},
};

use super::{
    super::{
        Outcome, client, print,
        terminal::{Line, Screen, Style, is_left},
    },
    FEATURES_SHOWN, parse, refused, status,
    words::{evidence, index, tier},
};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest time without an answer of the server, while it restarts for example.
const PATIENCE: Duration = Duration::from_secs(30);

/// `tidegate drift watch`.
pub(super) fn run(admin: &str, path: &str, json: bool) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch(&format!("{}{path}", admin.trim_end_matches('/')), json))
}

async fn watch(url: &str, json: bool) -> anyhow::Result<Outcome> {
    let mut left = signal(SignalKind::interrupt()).context("Ctrl-C cannot be heard")?;
    let mut ended = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
    let mut view = View::new(json);
    let mut heard = None;
    loop {
        let answer = tokio::select! {
            answer = client::ask(&Method::GET, url, Vec::new()) => answer,
            _ = left.recv() => return Ok(Outcome::Done),
            _ = ended.recv() => return Ok(Outcome::Done),
        };
        let now = SystemClock.now();
        match answer.and_then(|(status, body)| client::answered(status, &body)) {
            Ok(body) => {
                view.show(&parse(&body)?, &body)?;
                heard = Some(now);
            }
            Err(error) if error.is::<client::Refused>() => return Err(refused(error)),
            Err(_) if heard.is_some_and(|heard| now.duration_since(heard) <= PATIENCE) => {
                view.note("no answer from the server; asking again")?;
            }
            Err(error) => return Err(error),
        }
        if is_left() {
            return Ok(Outcome::Done);
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            _ = left.recv() => return Ok(Outcome::Done),
            _ = ended.recv() => return Ok(Outcome::Done),
        }
    }
}

/// Output on which drift is shown.
enum View {
    /// Redrawn in place.
    Screen(Screen),
    /// A line per change, or the whole page as JSON.
    Changes { json: bool, last: Option<Told>, noted: bool },
}

/// State and alarms as they were told last.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    version: String,
    status: Status,
    /// Each alarm, with the time when it was over.
    alarms: Vec<(String, Option<Moment>)>,
}

impl Told {
    pub(super) fn of(report: &DriftReport) -> Self {
        let alarms = report.alarms.iter().map(|alarm| (alarm.id.clone(), alarm.cleared_at));
        Self { version: report.version.clone(), status: report.status, alarms: alarms.collect() }
    }

    /// True if this was told of the alarm.
    fn has(&self, alarm: &Alarm) -> bool {
        self.alarms.iter().any(|(id, cleared)| *id == alarm.id && *cleared == alarm.cleared_at)
    }
}

impl View {
    fn new(json: bool) -> Self {
        if !json && io::stdout().is_terminal() {
            Self::Screen(Screen::new())
        } else {
            Self::Changes { json, last: None, noted: false }
        }
    }

    fn show(&mut self, report: &DriftReport, body: &str) -> anyhow::Result<()> {
        match self {
            Self::Screen(screen) => {
                screen.draw(|columns, rows| frame(report, SystemClock.unix(), columns, rows))?;
            }
            Self::Changes { json, last, noted } => {
                *noted = false;
                let now = Told::of(report);
                if last.as_ref() != Some(&now) {
                    let at = Moment::at(SystemClock.unix());
                    let text = if *json {
                        format!("{}\n", body.trim_end())
                    } else {
                        news(last.as_ref(), report, at)
                    };
                    print(&text)?;
                    *last = Some(now);
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, note: &str) -> anyhow::Result<()> {
        match self {
            Self::Screen(screen) => screen.note(note)?,
            Self::Changes { json: false, noted, .. } if !*noted => {
                anstream::eprintln!("tidegate: {note}");
                *noted = true;
            }
            Self::Changes { .. } => {}
        }
        Ok(())
    }
}

/// The page, with as many features as the terminal has room for.
pub(super) fn frame(report: &DriftReport, now: Duration, columns: usize, rows: usize) -> Vec<Line> {
    // The steps that are next make room for the one that ends this.
    let page = |features| {
        let mut lines = status::frame(report, now, columns, features);
        let is_blank = |line: &Line| line.width() == 0;
        let end = lines.iter().rposition(is_blank).unwrap_or(lines.len());
        lines.truncate(end + 1);
        lines.push(Line::of(
            Style::Faint,
            format!(
                "Ctrl-C ends this; one feature: tidegate drift show {} FEATURE",
                plain(&report.model)
            ),
        ));
        lines
    };
    let shown = FEATURES_SHOWN.min(report.features.len());
    let lines = page(shown);
    // One row is the cursor's; one more says how many features are left out.
    let beyond = (lines.len() + 2).saturating_sub(rows);
    if beyond == 0 || shown == 0 { lines } else { page(shown.saturating_sub(beyond).max(1)) }
}

/// Changes since the last look, a line each.
pub(super) fn news(last: Option<&Told>, report: &DriftReport, at: Moment) -> String {
    let mut text = String::new();
    let (version, state) = (plain(&report.version), report.status.name());
    if last.is_none_or(|last| last.status != report.status || last.version != report.version) {
        let _ = write!(text, "{at} {} version {version}: {state}", plain(&report.model));
        let _ = match report.status {
            Status::Watching | Status::Drifting => writeln!(
                text,
                ", evidence {} of {}, {}",
                digits(evidence(report.log_m), 3),
                digits(report.log_m_threshold, 3),
                plain(&report.detail)
            ),
            _ => writeln!(text, ", {}", plain(&report.detail)),
        };
    }
    // The oldest first, as it happened.
    for alarm in report.alarms.iter().rev() {
        let is_new = last.is_none_or(|last| !last.has(alarm));
        if !is_new || (last.is_none() && alarm.cleared_at.is_some()) {
            continue;
        }
        let (feature, kind) = (plain(&alarm.feature), plain(&alarm.kind));
        let word = tier(alarm.tier).0;
        let _ = match alarm.cleared_at {
            Some(cleared) => {
                writeln!(text, "{cleared} {word}: {feature} is back ({kind} since {})", alarm.since)
            }
            None => writeln!(
                text,
                "{} {word}: {feature} {kind} since {}, PSI {}, JS {}",
                alarm.raised_at,
                alarm.since,
                index(Some(alarm.psi), true),
                index(Some(alarm.js), true)
            ),
        };
    }
    text
}
