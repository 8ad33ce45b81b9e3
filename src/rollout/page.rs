//! The page about a rollback: why it happened, to send to people, as Markdown and as HTML with a plot.
//!
//! Both say the same and need nothing else: no style sheet, no script, no picture. Words of operators and of models
//! are set as text, whatever they contain.
//!
//! Not here: what is said (`report`).

use std::fmt::Write as _;

use super::{
    policy::Gate,
    report::{Point, Report, Why, as_f64},
};

/// Width and height of the plot, and its margins.
const SIZE: (f64, f64) = (720.0, 240.0);
const MARGIN: f64 = 30.0;
/// Columns of the plot in Markdown.
const COLUMNS: usize = 60;

/// A table: its head and its rows.
type Table = (Vec<String>, Vec<Vec<String>>);

impl Report {
    /// Why the candidate was rolled back, as Markdown; none if it was not.
    pub fn why_markdown(&self) -> Option<String> {
        let why = self.why.as_ref()?;
        let mut page = format!("# {}\n\n{}\n\n", self.headline(), plain(&why.text));
        let table = |page: &mut String, (head, rows): Table| {
            let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
            page.push_str(&line(&head));
            page.push_str(&line(&vec!["---".to_owned(); head.len()]));
            for row in rows {
                page.push_str(&line(&row));
            }
            page.push('\n');
        };
        table(&mut page, self.arms(why));
        for fact in self.facts(why) {
            writeln!(page, "- {fact}").expect("writing to a string succeeds");
        }
        if why.path.len() > 1 {
            let bars = bars(&why.path, why.log_e_threshold);
            write!(page, "\nThe evidence, from the first request to the rollback:\n\n`{bars}`\n")
                .expect("writing to a string succeeds");
        }
        if !why.elsewhere.is_empty() {
            page.push_str(
                "\nHad all traffic been at one weight, the same rates would have led to:\n\n",
            );
            table(&mut page, elsewhere(why));
        }
        if !why.worst.is_empty() {
            page.push_str("Predictions of the canary that show it:\n\n");
            for id in &why.worst {
                writeln!(page, "- `{}`", plain(id)).expect("writing to a string succeeds");
            }
        }
        Some(page)
    }

    /// Why the candidate was rolled back, as one HTML page with a plot; none if it was not.
    pub fn why_html(&self) -> Option<String> {
        let why = self.why.as_ref()?;
        let title = escaped(&self.headline());
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>\
             body{{font:16px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em}}\
             table{{border-collapse:collapse}}td,th{{padding:.2em 1em .2em 0;text-align:left}}\
             code{{font-size:90%}}</style></head>\n<body><h1>{title}</h1>\n<p>{}</p>\n",
            escaped(&why.text)
        );
        let table = |page: &mut String, (head, rows): Table| {
            let line = |tag: &str, cells: &[String]| {
                let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
                format!("<tr>{}</tr>\n", cells.collect::<String>())
            };
            page.push_str("<table>\n");
            page.push_str(&line("th", &head));
            for row in rows {
                page.push_str(&line("td", &row));
            }
            page.push_str("</table>\n");
        };
        table(&mut page, self.arms(why));
        let facts =
            self.facts(why).into_iter().map(|fact| format!("<li>{}</li>\n", escaped(&fact)));
        page.push_str(&format!("<ul>\n{}</ul>\n", facts.collect::<String>()));
        if why.path.len() > 1 {
            page.push_str("<h2>The evidence</h2>\n");
            page.push_str(&plot(&why.path, why.log_e_threshold));
        }
        if !why.elsewhere.is_empty() {
            page.push_str("<h2>At other weights</h2>\n<p>Had all traffic been at one weight, the ");
            page.push_str("same rates would have led to:</p>\n");
            table(&mut page, elsewhere(why));
        }
        if !why.worst.is_empty() {
            let ids = why.worst.iter().map(|id| format!("<li><code>{}</code></li>\n", escaped(id)));
            page.push_str("<h2>Predictions that show it</h2>\n");
            page.push_str(&format!("<ul>\n{}</ul>\n", ids.collect::<String>()));
        }
        page.push_str("</body></html>\n");
        Some(page)
    }

    fn headline(&self) -> String {
        format!("{}: version {} was rolled back", self.model, self.candidate)
    }

    fn arms(&self, why: &Why) -> Table {
        let rate = |events: u64, requests: u64| {
            format!("{:.3} %", 100.0 * as_f64(events) / as_f64(requests.max(1)))
        };
        let (baseline, candidate) = (why.baseline, why.candidate);
        let row = |name: &str, left: String, right: String| vec![name.to_owned(), left, right];
        let events = why.gate.unwrap_or(Gate::Errors).name();
        let head =
            row("", format!("baseline {}", self.baseline), format!("canary {}", self.candidate));
        let units = if self.keys.is_some() { "users" } else { "requests" };
        let rows = vec![
            row(units, baseline.requests.to_string(), candidate.requests.to_string()),
            row(events, baseline.events.to_string(), candidate.events.to_string()),
            row(
                "rate",
                rate(baseline.events, baseline.requests),
                rate(candidate.events, candidate.requests),
            ),
        ];
        (head, rows)
    }

    /// What else is known, a sentence each.
    fn facts(&self, why: &Why) -> Vec<String> {
        let units = if self.keys.is_some() { "users" } else { "requests" };
        let mut facts = vec![
            format!(
                "Decided at {}, in step {} of {}, with {:.2} % of the traffic on the canary.",
                why.at,
                why.step + 1,
                self.steps,
                100.0 * why.weight
            ),
            format!(
                "{} {units} met it, {:.3} % of all that were judged.",
                why.users_met,
                100.0 * why.users_met_share
            ),
        ];
        if why.gate.is_some() {
            facts.push(format!(
                "Were the canary no worse, evidence like this would turn up in fewer than one of {:.0} rollouts \
                 (log_e {:.2}, threshold {:.2}).",
                why.log_e_threshold.exp(),
                why.log_e,
                why.log_e_threshold
            ));
        }
        let gate = self.gates.iter().find(|gate| Some(gate.gate) == why.gate);
        if let Some((ratio, gate)) = gate.and_then(|gate| Some((gate.ratio?, gate))) {
            let upper =
                gate.ratio_upper.map_or("no limit".to_owned(), |upper| format!("{upper:.2}"));
            let lower = gate.ratio_lower.unwrap_or(0.0);
            facts.push(format!(
                "The rate is {ratio:.2} times the baseline's ({lower:.2} to {upper})."
            ));
        }
        facts.push(format!(
            "Anybody can repeat the verdict from the evidence of rollout {}.",
            self.id
        ));
        facts
    }
}

fn elsewhere(why: &Why) -> Table {
    let head = ["step", "weight", "requests of the canary", "requests in all", "met it"];
    let number = |number: Option<u64>| number.map_or("no rollback".to_owned(), |n| n.to_string());
    let rows = why.elsewhere.iter().map(|step| {
        vec![
            (step.step + 1).to_string(),
            format!("{:.2} %", 100.0 * step.weight),
            number(step.canary_requests),
            number(step.requests),
            number(step.users_met),
        ]
    });
    (head.map(str::to_owned).to_vec(), rows.collect())
}

/// One line for Markdown: what could be read as markup is set off.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => plain.push(' '),
            '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' | '#' | '!' => plain.extend(['\\', c]),
            c => plain.push(c),
        }
    }
    plain
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The lowest and highest values that a plot shows.
fn range(path: &[Point], threshold: f64) -> (f64, f64) {
    let values = path.iter().map(|point| point.log_e);
    let (low, high) =
        values.fold((0.0_f64, threshold), |(low, high), value| (low.min(value), high.max(value)));
    (low, high.max(low + 1e-9))
}

/// The path as a line of blocks; the highest is at or above the threshold.
fn bars(path: &[Point], threshold: f64) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (low, _) = range(path, threshold);
    let stride = path.len().div_ceil(COLUMNS).max(1);
    let columns = path.chunks(stride).filter_map(<[Point]>::last);
    let column = |point: &Point| {
        let height = ((point.log_e - low) / (threshold - low).max(1e-9)).clamp(0.0, 1.0);
        let index = BLOCKS
            .iter()
            .enumerate()
            .rev()
            .find(|(index, _)| height >= as_f64(*index as u64) / 7.0);
        index.map_or(BLOCKS[0], |(_, block)| *block)
    };
    columns.map(column).collect()
}

/// The path as a picture, with the threshold as a dashed line.
fn plot(path: &[Point], threshold: f64) -> String {
    let (low, high) = range(path, threshold);
    let most = path.last().map_or(1, |point| point.requests.max(1));
    let x = |requests: u64| MARGIN + (SIZE.0 - 2.0 * MARGIN) * as_f64(requests) / as_f64(most);
    let y = |log_e: f64| SIZE.1 - MARGIN - (SIZE.1 - 2.0 * MARGIN) * (log_e - low) / (high - low);
    let points = path.iter().map(|point| format!("{:.1},{:.1}", x(point.requests), y(point.log_e)));
    let points = points.collect::<Vec<_>>().join(" ");
    let (right, limit, zero) = (SIZE.0 - MARGIN, y(threshold), y(0.0));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"evidence against the canary by its requests\" font-size=\"12\">\n\
         <line x1=\"{MARGIN}\" x2=\"{right}\" y1=\"{zero:.1}\" y2=\"{zero:.1}\" stroke=\"#999\"/>\n\
         <line x1=\"{MARGIN}\" x2=\"{right}\" y1=\"{limit:.1}\" y2=\"{limit:.1}\" stroke=\"#c00\" \
         stroke-dasharray=\"6 4\"/>\n\
         <text x=\"{MARGIN}\" y=\"{above:.1}\" fill=\"#c00\">threshold {threshold:.2}</text>\n\
         <polyline fill=\"none\" stroke=\"#06c\" stroke-width=\"2\" points=\"{points}\"/>\n\
         <text x=\"{right}\" y=\"{bottom}\" text-anchor=\"end\">{most} requests of the canary</text>\n</svg>\n",
        width = SIZE.0,
        height = SIZE.1,
        above = limit - 4.0,
        bottom = SIZE.1 - 8.0,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::rollout::{
        Event, GuardKind,
        tests::{Stage, quick},
    };

    #[test]
    fn page_says_why_in_both_forms() {
        let mut stage = Stage::new(quick(&json!({})));
        assert_eq!(stage.rollout.report(stage.now).why_markdown(), None);
        stage.play(
            "loaded\n both 40\n both 90\n wait 2\n baseline 1 error\n wait 2\n canary 60 error",
        );
        let report = stage.rollout.report(stage.now);
        let page = report.why_markdown().unwrap();
        for part in [
            "# fraud: version 4 was rolled back\n\ngate errors: ",
            "| errors | 1 | ",
            "in step 1 of 2, with 10.00 % of the traffic",
            "fewer than one of 200 rollouts",
            "█`",
            "| 2 | 25.00 % |",
            "- `0000000000000000",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let page = report.why_html().unwrap();
        assert!(page.contains("<polyline") && page.contains("threshold 5.30"), "{page}");
        assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
    }

    #[test]
    fn words_of_others_stay_text() {
        let mut stage = Stage::new(quick(&json!({})));
        stage.play("loaded");
        let why = "<script>alert(1)</script> | `x`\n# y";
        stage.hear(&Event::Guard { kind: GuardKind::Crash, why });
        let report = stage.rollout.report(stage.now);
        let html = report.why_html().unwrap();
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"), "{html}");
        let markdown = report.why_markdown().unwrap();
        assert!(markdown.contains("\\<script\\>") && !markdown.contains("\n# y"), "{markdown}");
    }
}
