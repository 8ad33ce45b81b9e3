//! `tidegate drift test`: the batch test of a window against the reference, on raw rows.

use anyhow::{Context as _, bail};
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    drift::{Drifts, TestReport},
    rollout::words::{count, digits, plain},
};

use super::{
    super::{
        Outcome, client,
        commands::DriftTest,
        print,
        rollout::segment,
        terminal::{self, Line, Style, shortened, wrapped},
    },
    draw, parse, refused, verdict,
    words::{brief, index, quoted, widest},
};

/// `tidegate drift test`.
pub(super) fn run(test: &DriftTest, json: bool) -> anyhow::Result<Outcome> {
    let path = format!("/api/v1/models/{}/drift/test", segment(&test.model));
    let body = serde_json::to_vec(&wanted(test)?)?;
    let body = client::admin(&Method::POST, &test.of.server.admin, &path, body).map_err(refused)?;
    let report: TestReport = parse(&body)?;
    if report.features.is_empty() {
        bail!(
            "nothing to test: no feature has both values in the window and a reference; `tidegate drift status {}` says \
             why, or choose a longer --window",
            quoted(&test.model)
        );
    }
    if json {
        print(&(body + "\n"))?;
    } else {
        draw(&frame(test, &report, terminal::columns()))?;
    }
    Ok(verdict(is_drift(&report)))
}

/// The request: what was not said is left to the server.
fn wanted(test: &DriftTest) -> anyhow::Result<Value> {
    fn name<T: Serialize>(value: Option<T>) -> anyhow::Result<Value> {
        serde_json::to_value(value).context("a value that is no JSON")
    }
    let fields = [
        ("version", name(test.of.version.as_ref())?),
        ("segment", name(test.of.segment.as_ref())?),
        ("window", name(test.of.window.as_ref())?),
        ("p_value", name(test.p_value)?),
        ("correction", name(test.correction)?),
        ("drift_type", name(test.drift_type)?),
        ("include", name(test.include)?),
    ];
    let mut body = json!({});
    for (field, value) in fields.into_iter().filter(|(_, value)| !value.is_null()) {
        body[field] = value;
    }
    Ok(body)
}

fn is_drift(report: &TestReport) -> bool {
    match &report.data.is_drift {
        Drifts::All(verdict) => *verdict != 0,
        Drifts::Each(verdicts) => verdicts.iter().any(|verdict| *verdict != 0),
    }
}

/// The answer as lines, the smallest p-value first.
fn frame(test: &DriftTest, report: &TestReport, columns: usize) -> Vec<Line> {
    let threshold = report.data.threshold;
    let mut head = Line::of(Style::Bold, plain(&test.model));
    let rows =
        format!("  {} rows of the window against the reference  ", count(report.rows as u64));
    head.add(Style::Plain, rows);
    let (style, word) =
        if is_drift(report) { (Style::Bad, "drift") } else { (Style::Good, "no drift") };
    head.add(style, word);
    let mut lines = vec![head];
    let mut say = |text: &str| {
        lines.extend(wrapped(text, columns).into_iter().map(|text| Line::of(Style::Plain, text)));
    };
    let (all, threshold) = (report.features.len(), brief(threshold, 8));
    match &report.data.is_drift {
        Drifts::All(_) => say(&format!(
            "{all} features together: drift if a p-value is below {threshold}, which is corrected for their number"
        )),
        Drifts::Each(verdicts) => {
            let drifted = verdicts.iter().filter(|verdict| **verdict != 0).count();
            #[expect(clippy::cast_precision_loss, reason = "few features")]
            let chance = digits(all as f64 * report.data.threshold, 2);
            say(&format!(
                "{drifted} of {all} features differ, each by itself at p < {threshold}; without drift {chance} of {all} \
                 would, by chance"
            ));
        }
    }
    if !report.skipped.is_empty() {
        let names: Vec<String> = report.skipped.iter().take(5).map(|name| plain(name)).collect();
        let more = report.skipped.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        say(&format!("left out, without values or reference: {}{more}", names.join(", ")));
    }
    lines.push(Line::default());
    lines.extend(table(report, columns));
    lines.push(Line::default());
    let model = quoted(&test.model);
    let note = format!(
        "This is one look: who tests again and again finds drift where there is none. The alarm holds at every look: \
         tidegate drift status {model}"
    );
    lines.extend(wrapped(&note, columns).into_iter().map(|text| Line::of(Style::Faint, text)));
    lines
}

fn table(report: &TestReport, columns: usize) -> Vec<Line> {
    let data = &report.data;
    let names: Vec<String> = report.features.iter().map(|name| plain(name)).collect();
    let room = columns.saturating_sub(28).max(8);
    let name_width = widest(names.iter().map(String::as_str), 7, room);
    let mut head = Line::default();
    for (name, width) in [("feature", name_width), ("p-value", 9), ("distance", 8)] {
        head.cell(Style::Faint, name, width);
    }
    head.add(Style::Faint, "verdict");
    let tested = names.iter().zip(&data.p_val).zip(&data.distance).enumerate();
    let mut tested: Vec<_> = tested.collect();
    tested.sort_by(|(_, ((_, a), _)), (_, ((_, b), _))| a.total_cmp(b));
    let rows = tested.into_iter().map(|(number, ((name, p), distance))| {
        let differs = match &data.is_drift {
            // A threshold that depends on the p-values is one of them.
            Drifts::All(all) => *all != 0 && *p <= data.threshold,
            Drifts::Each(each) => each.get(number).is_some_and(|verdict| *verdict != 0),
        };
        let (style, word) = if differs { (Style::Bad, "drift") } else { (Style::Plain, "-") };
        let mut line = Line::default();
        line.cell(style, shortened(name, name_width), name_width);
        line.cell(style, brief(*p, 8), 9);
        line.cell(Style::Plain, index(Some(*distance), true), 8);
        line.add(style, word);
        line
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::commands::DriftCommand, tests::text},
        *,
    };

    /// The arguments of a command line.
    fn read(line: &str) -> DriftTest {
        let words = ["tidegate", "drift", "test"].into_iter().chain(line.split_whitespace());
        let cli = <super::super::super::commands::Cli as clap::Parser>::parse_from(words);
        match cli.command {
            super::super::super::commands::Command::Drift(DriftCommand::Test(test)) => test,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_said_is_asked() {
        assert_eq!(wanted(&read("iris")).unwrap(), json!({}));
        let all = read(
            "iris --version 3 --window 10m --p-value .01 --correction fdr --drift-type feature --include all",
        );
        assert_eq!(
            wanted(&all).unwrap(),
            json!({"version": "3", "window": "10m", "p_value": 0.01, "correction": "fdr", "drift_type": "feature",
                   "include": "all"})
        );
    }

    #[test]
    fn the_smallest_p_value_comes_first_and_verdicts_are_those_of_the_server() {
        let mut answer = json!({
            "data": {"is_drift": [0, 1, 0], "p_val": [0.42, 1.2e-9, 0.0731], "distance": [0.011, 0.31, 0.02],
                     "threshold": 0.05},
            "features": ["sepal_length", "petal_width", "a name that is longer than there is any room for in 80 columns"],
            "rows": 4211, "skipped": ["output:label"],
        });
        let shown = |answer: &Value| {
            let report: TestReport = serde_json::from_value(answer.clone()).unwrap();
            (is_drift(&report), text(&frame(&read("iris"), &report, 80), 80))
        };
        assert_eq!(
            shown(&answer),
            (
                true,
                "\
iris  4,211 rows of the window against the reference  drift
1 of 3 features differ, each by itself at p < 0.05; without drift 0.15 of 3
would, by chance
left out, without values or reference: output:label

feature                                              p-value   distance verdict
petal_width                                          1.20e-9   0.310    drift
a name that is longer than…ny room for in 80 columns 0.0731    0.020    -
sepal_length                                         0.42      0.011    -

This is one look: who tests again and again finds drift where there is none. The
alarm holds at every look: tidegate drift status iris
"
                .to_owned()
            )
        );
        answer["data"]["is_drift"] = 0.into();
        answer["data"]["threshold"] = 1e-10.into();
        let (is_drift, whole) = shown(&answer);
        assert!(!is_drift && whole.contains("no drift\n3 features together"), "{whole}");
    }
}
