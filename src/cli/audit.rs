//! `tidegate audit`: what was decided, and whether the log that says so is whole.
//!
//! Reads the log itself, not its projection, and needs no lock: it may be asked while a server writes.

use std::path::Path;

use serde_json::json;

use crate::{
    model::ModelName,
    state::{self, Filter, Record, StateError, Verified},
};

use super::{
    Outcome,
    models::{size, table},
    print, print_json,
};

/// `tidegate audit list`.
pub(super) fn list(
    path: &Path,
    model: Option<ModelName>,
    limit: usize,
    json: bool,
) -> anyhow::Result<Outcome> {
    let filter = Filter { model, limit, newest: true, ..Filter::default() };
    let (records, damage) = state::read(path, &filter)?;
    if json {
        print_json(&records)?;
    } else if records.is_empty() {
        print("no records\n")?;
    } else {
        let mut table = table(["sequence", "time", "who", "what", "model", "version", "why"]);
        for record in &records {
            table.add_row(row(record));
        }
        print(&format!("{table}\n"))?;
    }
    let Some(damage) = damage else { return Ok(Outcome::Done) };
    anstream::eprintln!("tidegate: only the records before a damage are shown: {}", damage.chain());
    Ok(Outcome::No)
}

fn row(record: &Record) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        record.sequence.to_string(),
        rfc_3339(record.unix_nanos),
        printable(&record.actor),
        printable(&record.kind),
        record.model.as_ref().map_or_else(dash, ToString::to_string),
        record.version.map_or_else(dash, |version| version.to_string()),
        printable(&record.reason),
    ]
}

/// What somebody wrote must not steer the reader's terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(shown).collect()
}

/// `tidegate audit verify`.
pub(super) fn verify(path: &Path, json: bool) -> anyhow::Result<Outcome> {
    match state::verify(path) {
        Ok(verified) if json => print_json(&told(&verified)),
        Ok(verified) => print(&format!(
            "{} records verified, {}\nhead {}\n",
            verified.records,
            size(verified.bytes),
            verified.head_hash
        )),
        Err(StateError::Damaged { path, damage }) => {
            let next = "keep the file, and bring a backup back with `tidegate state restore FILE`; what stands \
                        before the damage is shown by `tidegate audit list`";
            if json {
                print_json(&json!({
                    "ok": false,
                    "path": path,
                    "offset": damage.offset,
                    "sequence": damage.sequence,
                    "what": damage.what,
                    "next": next,
                }))?;
            } else {
                print(&format!("{} is damaged {damage}\nnext: {next}\n", path.display()))?;
            }
            Ok(Outcome::No)
        }
        Err(error) => Err(error.into()),
    }
}

/// A verified log for machines.
pub(super) fn told(verified: &Verified) -> serde_json::Value {
    json!({
        "ok": true,
        "records": verified.records,
        "head": verified.head_hash.to_string(),
        "bytes": verified.bytes,
        "tail_bytes": verified.tail_bytes,
    })
}

/// A time in UTC, to the millisecond: `2026-01-31T08:05:09.042Z`.
fn rfc_3339(unix_nanos: u64) -> String {
    let (days, in_day) = (unix_nanos / 86_400_000_000_000, unix_nanos % 86_400_000_000_000);
    let milliseconds = in_day / 1_000_000;
    let [hours, minutes, seconds, fraction] = [
        milliseconds / 3_600_000,
        milliseconds / 60_000 % 60,
        milliseconds / 1000 % 60,
        milliseconds % 1000,
    ];
    // Years that begin in March have their leap day at the end; 719468 days lie between 0000-03-01 and 1970.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{fraction:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc_3339(seconds * 1_000_000_000), expected);
        }
        assert_eq!(rfc_3339(42_000_000), "1970-01-01T00:00:00.042Z");
        assert!(rfc_3339(u64::MAX).starts_with("2554-07-21T"));
    }
}
