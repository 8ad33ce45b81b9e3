//! The report of a replay for people.

use crate::{rollout::words, validation::replay::ReplayReport};

use super::super::tables::{table, text as drawn};

pub(super) fn shown(report: &ReplayReport) -> String {
    let with = report
        .against
        .map_or_else(|| "the recorded outputs".to_owned(), |version| format!("version {version}"));
    let count = words::count;
    let mut text = format!("{} version {} against {with}\n", report.model, report.version);
    let (rows, requests) = (count(report.rows), count(report.requests));
    text += &format!("{rows} rows in {requests} requests of {}\n", report.data);
    for (code, rows) in &report.left_out {
        text += &format!("{} rows answered with {code} are left out\n", count(*rows));
    }
    if !report.outputs.is_empty() {
        let mut all =
            table(["output", "rows", "exact", "within", "other class", "largest difference"]);
        for output in &report.outputs {
            let share = |rows: u64| percent(rows, output.rows);
            let flips = output.flips.map(|flips| match flips {
                0 => "0".to_owned(),
                flips => format!("{} ({})", count(flips), share(flips)),
            });
            all.add_row([
                output.output.clone(),
                count(output.rows),
                share(output.exact),
                share(output.within),
                flips.unwrap_or_else(|| "-".to_owned()),
                output.largest.map_or_else(|| "-".to_owned(), |largest| words::digits(largest, 3)),
            ]);
        }
        let tolerance = report.tolerance;
        text += &format!(
            "{}within: {} of the expected number, plus {}\n",
            drawn(&all),
            tolerance.relative,
            tolerance.absolute
        );
    }
    text += &worst(report);
    for failed in &report.failures {
        let requests = count(failed.requests);
        text += &format!("version {} failed {requests} times: {}\n", failed.version, failed.reason);
    }
    for output in &report.missing {
        let output = words::plain(output);
        text += &format!("version {} has no output `{output}`\n", report.version);
    }
    for output in report.outputs.iter().filter(|output| output.unrecorded > 0) {
        let rows = count(output.unrecorded);
        text += &format!("note: {rows} rows have no output `{}` to compare with\n", output.output);
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    let within = count(report.within);
    text + &match (report.passed, report.outputs.is_empty()) {
        (true, true) => "nothing was compared\n".to_owned(),
        (true, false) => "equal within the tolerance\n".to_owned(),
        (false, _) => format!("differs: {within} of {rows} rows are within the tolerance\n"),
    }
}

/// A share that is 100 % or 0 % only where it is so exactly.
fn percent(part: u64, of: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
    let share = part as f64 * 100.0 / of.max(1) as f64;
    match part {
        0 => "0 %".to_owned(),
        part if part == of => "100 %".to_owned(),
        _ => format!("{:.2} %", share.clamp(0.01, 99.99)),
    }
}

fn worst(report: &ReplayReport) -> String {
    if report.worst.is_empty() {
        return String::new();
    }
    let several = report.worst.iter().any(|row| row.file != report.worst[0].file);
    let expected = report.against.map(|version| format!("version {version}"));
    let expected = expected.unwrap_or_else(|| "recorded".to_owned());
    let own = format!("version {}", report.version);
    let mut rows = table(["row", "prediction", "output", &expected, &own]);
    for row in &report.worst {
        let file = row.file.rsplit('/').next().unwrap_or_default();
        let place = if several { format!("{} of {file}", row.row) } else { row.row.to_string() };
        let is_class = row.expected.starts_with("class ");
        let element =
            if row.element > 0 && !is_class { format!("[{}]", row.element) } else { String::new() };
        rows.add_row([
            place,
            row.prediction_id.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{}{element}", row.output),
            row.expected.clone(),
            row.actual.clone(),
        ]);
    }
    format!("rows that differ most:\n{}", drawn(&rows))
}
