//! The page about a rollout: why it ended as it did, for people who were not there.
//!
//! Markdown for a terminal or a ticket, HTML as one file with nothing to fetch. Both are made from a [`Report`] alone,
//! the HTML's plots from a [`Trace`]. Always true: whatever a person or a repository named or wrote is escaped.
//!
//! Not here: plots (`plot`), the words for numbers (`words`), sending a page.

use std::fmt::Write as _;

use super::{
    plot::{STYLE, Size, drawing},
    policy::Gate,
    report::{Counts, GateReport, Point, Report, Why, as_f64, as_u64},
    state::State,
    trace::{GateTrace, Trace},
    words::{self, code, count, counts, digits, markdown as escape, percent, seconds, share, time},
};

/// A table of text, escaped already.
struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// The page in Markdown (`CommonMark` with tables); it reads well unrendered.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# {}\n\n", headline(report, &code));
    let _ = writeln!(text, "{}\n", summary(report, &escape, &code));
    for (name, value) in facts(report, &code) {
        let _ = writeln!(text, "- {name}: {value}");
    }
    if let Some(why) = &report.why
        && let Some(line) = sparkline(why)
    {
        let _ = writeln!(text, "\n    evidence {line} {}", reached(why));
    }
    text.push_str("\n## Gates\n\n");
    gates(report, &code).markdown(&mut text);
    if let Some(idle) = idle(report, &code) {
        let _ = writeln!(text, "\n{idle}");
    }
    if let Some((line, bins)) = outputs(report, &escape) {
        let _ = writeln!(text, "\n## Outputs\n\n{line}\n");
        bins.markdown(&mut text);
    }
    if let Some(why) = &report.why {
        if !why.worst.is_empty() {
            let _ = writeln!(text, "\n## {}\n", worst_title(why));
            for prediction in &why.worst {
                let _ = writeln!(text, "- {}", code(prediction));
            }
        }
        if !why.elsewhere.is_empty() {
            let _ = writeln!(text, "\n## At the other steps\n\n{ELSEWHERE}\n");
            elsewhere(why).markdown(&mut text);
        }
    }
    text.push_str("\n## Course\n\n");
    course(report, &escape).markdown(&mut text);
    let _ = writeln!(text, "\n## How to read this\n\n{}", reading(report, &code));
    text
}

/// The page in HTML: one file, without scripts, light or dark as the reader's screen is.
pub fn html(report: &Report, trace: &Trace) -> String {
    let named = |text: &str| format!("<code>{}</code>", words::html(text));
    let escape = words::html;
    let plain = headline(report, &|text: &str| words::html(text));
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{plain}</title>\n<style>\n{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n\
         <header class=\"{}\">\n<h1>{}</h1>\n<p>{}</p>\n</header>\n<dl>\n",
        report.state.name(),
        plain,
        summary(report, &escape, &named)
    );
    for (name, value) in facts(report, &named) {
        let _ = writeln!(text, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    text.push_str("</dl>\n");
    plots(&mut text, report, trace);
    text.push_str("<h2>Gates</h2>\n");
    gates(report, &named).html(&mut text);
    if let Some(idle) = idle(report, &named) {
        let _ = writeln!(text, "<p class=\"note\">{idle}</p>");
    }
    if let Some((line, bins)) = outputs(report, &escape) {
        let _ = writeln!(text, "<h2>Outputs</h2>\n<p>{line}</p>");
        bins.html(&mut text);
    }
    if let Some(why) = &report.why {
        if !why.worst.is_empty() {
            let _ = writeln!(text, "<h2>{}</h2>\n<ul class=\"ids\">", worst_title(why));
            for prediction in &why.worst {
                let _ = writeln!(text, "<li>{}</li>", named(prediction));
            }
            text.push_str("</ul>\n");
        }
        if !why.elsewhere.is_empty() {
            let _ = writeln!(text, "<h2>At the other steps</h2>\n<p>{ELSEWHERE}</p>");
            elsewhere(why).html(&mut text);
        }
    }
    text.push_str("<h2>Course</h2>\n");
    course(report, &escape).html(&mut text);
    let policy = serde_json::to_string_pretty(&report.policy).unwrap_or_default();
    let policy: Vec<_> = policy.lines().map(words::html).collect();
    let _ = writeln!(
        text,
        "<h2>How to read this</h2>\n<p>{}</p>\n<details><summary>Policy</summary><pre>{}</pre></details>\n\
         </body>\n</html>",
        reading(report, &named),
        policy.join("\n")
    );
    text
}

const PAGE_STYLE: &str = "\
:root{--back:#fff;--ink:#1f2328;--faint:#5b6470;--edge:#d9dee4;--code:#f3f5f7;--bad:#b42318;--good:#1a7f37;--calm:#1f5fbf}
@media(prefers-color-scheme:dark){:root{--back:#0e1116;--ink:#e6edf3;--faint:#9aa4b0;--edge:#2d333b;--code:#1a1f26;\
--bad:#ff7b72;--good:#57c96f;--calm:#6cb0ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:62rem;background:var(--back);color:var(--ink);\
font:16px/1.5 system-ui,sans-serif}
header{border-left:6px solid var(--calm);padding:.2rem 0 .2rem 1rem}
header.rolled_back,header.failed{border-color:var(--bad)}header.promoted{border-color:var(--good)}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .4rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
p{margin:.4rem 0;max-width:50rem}code,pre{font-family:ui-monospace,monospace;font-size:.9em}
code{background:var(--code);border-radius:4px;padding:.1em .3em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.8rem 1.2rem;margin:1.4rem 0}
dt{color:var(--faint);font-size:.85rem}dd{margin:0;overflow-wrap:anywhere}dd code{font-size:.8em}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--edge)}
.note{color:var(--faint);font-size:.9rem}th{color:var(--faint);font-weight:500}td:first-child,td:nth-child(2){white-space:nowrap}
figure{margin:0}.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(26rem,100%),1fr));gap:1.2rem}
svg{max-width:100%;height:auto;display:block}
.ids{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.3rem;list-style:none;padding:0;margin:0}
pre{background:var(--code);padding:.8rem;border-radius:6px;overflow-x:auto}summary{cursor:pointer;color:var(--faint)}
@media print{details{display:none}}
";

const ELSEWHERE: &str = "What both versions showed until then, had all traffic been at the weight of one step: requests until the \
     gate fires, and units of the candidate that meet the event.";

const LARGE: Size = Size { width: 960, height: 320 };
const SMALL: Size = Size { width: 460, height: 240 };

/// States the outcome in a line.
fn headline(report: &Report, name: &dyn Fn(&str) -> String) -> String {
    let what = match report.state {
        State::RolledBack => "was rolled back",
        State::Promoted => "took over",
        State::Failed => "could not start",
        State::Superseded => "was superseded",
        State::Held => "is held",
        State::Paused => "is paused",
        State::AwaitingApproval => "waits for approval",
        _ => "is being tried",
    };
    format!("{}: version {} {what}", name(&report.model), name(&report.candidate))
}

/// Explains the outcome in a few sentences.
fn summary(
    report: &Report,
    escape: &dyn Fn(&str) -> String,
    name: &dyn Fn(&str) -> String,
) -> String {
    let Some(why) = &report.why else { return sentence(&escape(&report.reason)) };
    let place = format!(
        "at step {} of {} ({} of the traffic), {} after the start",
        why.step + 1,
        report.steps,
        share(why.weight),
        seconds(between(report, why))
    );
    let Some(gate) = why.gate else {
        return format!("{} This was {place}.", sentence(&escape(&why.text)));
    };
    let unit = if report.keys.is_some() { "users" } else { "requests" };
    let event = words::event(gate);
    let of = |counts: Counts| {
        let rate =
            words::rate(counts).map_or(String::new(), |rate| format!(" ({})", percent(rate)));
        format!("{} of {} {unit}{rate}", count(counts.events), count(counts.requests))
    };
    let mut text = format!("Gate {} rolled it back {place}. ", name(gate.name()));
    let candidate = name(&report.candidate);
    let _ = write!(text, "{} of version {candidate} {event}", of(why.candidate));
    if gate != Gate::Disagreement {
        let baseline = name(&report.baseline);
        let _ = write!(text, ", against {} of version {baseline}", of(why.baseline));
    }
    if let Some(gate) = report.gates.iter().find(|other| other.gate == gate) {
        text.push_str(&times(gate));
    }
    let met = percent(why.users_met_share);
    let _ =
        write!(text, ". {} {unit} met it, {met} of all that were judged.", count(why.users_met));
    text
}

/// Says how much worse the candidate is, if that is known.
fn times(gate: &GateReport) -> String {
    let limit = |limit: Option<f64>| limit.map(|limit| digits(limit, 2));
    match (gate.ratio, limit(gate.ratio_lower), limit(gate.ratio_upper)) {
        (Some(ratio), Some(lower), Some(upper)) => {
            format!(": {} times the rate (between {lower} and {upper})", digits(ratio, 3))
        }
        (Some(ratio), Some(lower), None) => {
            format!(": {} times the rate (at least {lower})", digits(ratio, 3))
        }
        (None, Some(lower), _) => format!(": at least {lower} times the rate"),
        (Some(ratio), ..) => format!(": {} times the rate", digits(ratio, 3)),
        (None, None, _) => String::new(),
    }
}

/// Ends what somebody wrote as a sentence.
fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() || text.ends_with(['.', '!', '?']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

fn between(report: &Report, why: &Why) -> f64 {
    why.at.since_1970().saturating_sub(report.started_at.since_1970()).as_secs_f64()
}

/// Facts that readers ask for first, with their labels.
fn facts(report: &Report, name: &dyn Fn(&str) -> String) -> Vec<(&'static str, String)> {
    let requests = report.requests;
    let mut facts = vec![
        ("Rollout", name(&report.id)),
        ("Versions", format!("{} against {}", name(&report.candidate), name(&report.baseline))),
        ("State", format!("{}, revision {}", words::state(report.state), report.revision)),
        ("Step", format!("{} of {}", report.step + 1, report.steps)),
        ("Share now", share(report.weight)),
        ("Judged requests", {
            format!("{} canary, {} baseline", count(requests.candidate), count(requests.baseline))
        }),
        ("Started", time(report.started_at)),
    ];
    if let Some(ended) = report.ended_at {
        let took = ended.since_1970().saturating_sub(report.started_at.since_1970());
        facts.push(("Ended", format!("{}, after {}", time(ended), seconds(took.as_secs_f64()))));
    }
    if let Some(keys) = &report.keys {
        let sampled = if keys.sampled < 1.0 {
            format!(" (of {} of all users)", percent(keys.sampled))
        } else {
            String::new()
        };
        facts.push(("Users", format!("{}{sampled}", count(keys.known as u64))));
    }
    if let Some(shadow) = &report.shadow {
        let (compared, differing) = (count(shadow.compared), count(shadow.differing));
        facts.push(("Shadow", format!("{differing} of {compared} copies differ")));
    }
    if report.sample_ratio.log_e >= report.sample_ratio.log_e_threshold {
        facts.push(("Assignment", "does not follow the weights: a fault in the split".to_owned()));
    }
    facts
}

/// Table of the evidence of every gate that is not idle.
fn gates(report: &Report, name: &dyn Fn(&str) -> String) -> Table {
    let head = vec!["gate", "mode", "evidence", "baseline", "canary", "ratio (limits)", "verdict"];
    let row = |gate: &GateReport| {
        let note = if gate.decides { "" } else { " (decides nothing)" };
        vec![
            name(gate.gate.name()),
            words::mode(gate.mode).to_owned(),
            format!("{}{note}", words::evidence(gate.log_e, gate.log_e_threshold)),
            counts(gate.baseline),
            counts(gate.candidate),
            words::ratio(gate.ratio, gate.ratio_lower, gate.ratio_upper),
            words::verdict(gate.verdict).to_owned(),
        ]
    };
    let shown = report.gates.iter().filter(|gate| !words::is_idle(gate));
    Table { head, rows: shown.map(row).collect() }
}

/// The gates that nothing came in for.
fn idle(report: &Report, name: &dyn Fn(&str) -> String) -> Option<String> {
    let gates = report.gates.iter().filter(|gate| words::is_idle(gate));
    let names: Vec<_> = gates.map(|gate| name(gate.gate.name())).collect();
    (!names.is_empty()).then(|| format!("Without data: {}.", names.join(", ")))
}

/// Answers of both arms by their outputs, with a line that says how far apart they are.
fn outputs(report: &Report, escape: &dyn Fn(&str) -> String) -> Option<(String, Table)> {
    let gate = report.gates.iter().find(|gate| gate.outputs.is_some())?;
    let outputs = gate.outputs.as_ref()?;
    let sums = outputs.bins.iter().fold((0, 0), |(baseline, candidate), bin| {
        (baseline + bin.baseline, candidate + bin.candidate)
    });
    let of = |events: u64, requests: u64| counts(Counts { requests, events });
    let rows = outputs.bins.iter().map(|bin| {
        vec![
            escape(&bin.bin),
            of(bin.baseline, sums.0),
            of(bin.candidate, sums.1),
            digits(bin.log_e, 3),
        ]
    });
    let moved =
        words::moved(gate).unwrap_or_else(|| "nothing proves that outputs moved".to_owned());
    let line = format!(
        "{} The total variation of the counts is {}.",
        sentence(&capital(&escape(&moved))),
        digits(outputs.total_variation, 2)
    );
    let head = vec!["answers", "baseline", "canary", "evidence"];
    Some((line, Table { head, rows: rows.collect() }))
}

/// Text that begins with a capital letter.
fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn worst_title(why: &Why) -> String {
    let gate = why.gate.unwrap_or(Gate::Errors);
    match why.worst.len() {
        1 => format!("The prediction of the candidate that {} last", words::event(gate)),
        many => format!("The last {many} predictions of the candidate that {}", words::event(gate)),
    }
}

fn elsewhere(why: &Why) -> Table {
    let head = vec!["step", "weight", "canary requests", "all requests", "meet the event"];
    let number = |number: Option<u64>| number.map_or("never".to_owned(), count);
    let rows = why.elsewhere.iter().map(|at| {
        let here = if at.step == why.step { " (here)" } else { "" };
        vec![
            format!("{}{here}", at.step + 1),
            share(at.weight),
            number(at.canary_requests),
            number(at.requests),
            number(at.users_met),
        ]
    });
    Table { head, rows: rows.collect() }
}

fn course(report: &Report, escape: &dyn Fn(&str) -> String) -> Table {
    let rows = report.history.iter().map(|change| {
        vec![
            time(change.at),
            words::state(change.to).to_owned(),
            (change.step + 1).to_string(),
            escape(&change.by),
            escape(&change.why),
        ]
    });
    Table { head: vec!["at", "state", "step", "by", "why"], rows: rows.collect() }
}

fn reading(report: &Report, name: &dyn Fn(&str) -> String) -> String {
    let gate = report.gates.iter().find(|gate| Some(gate.gate) == report.gate);
    let gate = gate.or_else(|| report.gates.iter().find(|gate| gate.decides));
    let odds = gate.map_or(String::new(), |gate| {
        let (of, gate) = (as_u64(gate.log_e_threshold.exp().min(1e15)), name(gate.gate.name()));
        format!(
            " Were the candidate no worse, {gate} would reach it in fewer than one of {} rollouts.",
            count(of)
        )
    });
    format!(
        "Evidence is the natural logarithm of a bet against the candidate being no worse: it is 0 at the start, and a \
         gate rolls back when it reaches its threshold, however often one looks.{odds} All gates together roll back a good \
         candidate with a probability of {} at most. Whoever doubts a verdict repeats it from its evidence alone: {}, \
         then {}.",
        digits(report.policy.alpha, 3),
        name(&format!("tidegate rollout evidence {} -o evidence.json", report.id)),
        name("tidegate rollout replay evidence.json")
    )
}

fn reached(why: &Why) -> String {
    format!("{} of {}", digits(why.log_e, 3), digits(why.log_e_threshold, 3))
}

/// The path of the evidence in a line of at most 40 blocks, each the highest of its part.
fn sparkline(why: &Why) -> Option<String> {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const WIDTH: usize = 40;
    if why.path.len() < 3 || why.log_e_threshold <= 0.0 {
        return None;
    }
    let part = why.path.len().div_ceil(WIDTH);
    let block = |points: &[Point]| {
        let highest = points.iter().map(|point| point.log_e).fold(0.0, f64::max);
        let eighths = as_u64((highest / why.log_e_threshold).min(1.0) * 7.0);
        BLOCKS[usize::try_from(eighths).unwrap_or(0).min(7)]
    };
    Some(why.path.chunks(part).map(block).collect())
}

/// The plots: that of the gate that decided, or else of the nearest to its threshold, large; the others small.
fn plots(text: &mut String, report: &Report, trace: &Trace) {
    let near = |gate: &GateTrace| {
        let last = gate.points.last().map_or(0.0, |point| point.log_e);
        let decided = as_f64(u64::from(report.gate == Some(gate.gate)));
        decided * 1e9 + as_f64(u64::from(gate.decides)) * 1e6 + last / gate.log_e_threshold
    };
    let mut gates: Vec<_> = trace.gates.iter().collect();
    gates.sort_by(|one, other| near(other).total_cmp(&near(one)));
    let Some((first, others)) = gates.split_first() else { return };
    let _ = writeln!(
        text,
        "<h2>How the evidence grew</h2>\n<figure>\n{}</figure>",
        drawing(trace, first, LARGE)
    );
    if !others.is_empty() {
        text.push_str("<div class=\"plots\">\n");
        for gate in others {
            let _ = writeln!(text, "<figure>\n{}</figure>", drawing(trace, gate, SMALL));
        }
        text.push_str("</div>\n");
    }
}

impl Table {
    /// The table with columns in line.
    fn markdown(&self, text: &mut String) {
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.chain([self.head[column].len(), 3]).max().unwrap_or(3)
            })
            .collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            text.push('|');
            for (cell, width) in cells.zip(&widths) {
                let _ = write!(text, " {cell:<width$} |");
            }
            text.push('\n');
        };
        line(&mut self.head.iter().copied());
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        line(&mut rules.iter().map(String::as_str));
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str));
        }
    }

    fn html(&self, text: &mut String) {
        text.push_str("<div class=\"wide\"><table>\n<tr>");
        for name in &self.head {
            let _ = write!(text, "<th>{name}</th>");
        }
        text.push_str("</tr>\n");
        for row in &self.rows {
            text.push_str("<tr>");
            for cell in row {
                let _ = write!(text, "<td>{cell}</td>");
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</table></div>\n");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{
            Event, Order,
            tests::{Stage, quick},
        },
        *,
    };

    /// A candidate that fails often and is rolled back for it.
    fn bad() -> Stage {
        let mut stage = Stage::new(quick(&json!({})));
        stage.play("loaded\n both 40\n both 90\n wait 2\n baseline 1 error\n wait 2\n canary 2 error\n wait 2\n canary 60 error");
        assert!(stage.rollout.state().is_over());
        stage
    }

    #[test]
    fn a_page_says_why_when_and_who_met_it() {
        let stage = bad();
        let report = stage.rollout.report(stage.now);
        let why = report.why.clone().unwrap();
        let markdown = markdown(&report);
        let trace = stage.rollout.bundle().trace();
        assert_eq!(trace.gates.len(), 1);
        let html = html(&report, &trace);
        let last = why.worst.last().unwrap().clone();
        for part in ["was rolled back", "at step 1 of 2 (10 % of the traffic)", &last] {
            assert!(markdown.contains(part), "{part} is not in\n{markdown}");
            assert!(html.contains(part), "{part} is not in\n{html}");
        }
        assert!(html.contains("class=\"plot fired\"") && html.contains("rolls back at"), "{html}");
        assert!(markdown.contains("    evidence ▁"), "{markdown}");
        // Every element that was opened is closed.
        for name in ["html", "head", "body", "header", "dl", "div", "table", "svg", "figure", "ul"]
        {
            let opened = html.matches(&format!("<{name}>")).count()
                + html.matches(&format!("<{name} ")).count();
            assert_eq!(opened, html.matches(&format!("</{name}>")).count(), "{name}\n{html}");
        }
    }

    #[test]
    fn reasons_and_names_can_do_nothing_on_a_page() {
        let mut stage = Stage::new(quick(&json!({})));
        stage.play("loaded");
        let reason = "<script>alert(1)</script>|**\n# x\u{1b}[2J";
        stage.hear(&Event::Order { order: Order::Abort, actor: "<b>", reason });
        let report = stage.rollout.report(stage.now);
        let html = html(&report, &Trace::default());
        assert!(!html.contains("<script") && !html.contains("<b>"), "{html}");
        let markdown = markdown(&report);
        assert!(!markdown.contains("<script") || markdown.contains("\\<script"), "{markdown}");
        assert!(!markdown.contains('\u{1b}') && !markdown.contains("\n# x"), "{markdown}");
    }
}
