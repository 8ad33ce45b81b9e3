//! `tidegate audit`: what was decided, and whether the log that says so is whole.
//!
//! Reads the log itself, not its projection, and needs no lock: it may be asked while a server writes.

use std::{path::Path, time::Duration};

use serde_json::json;

use crate::{
    model::{ModelName, Moment},
    state::{self, Filter, Record, StateError, Verified},
};

use super::{
    Outcome,
    models::size,
    print, print_json,
    tables::{self, table},
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
        print(&tables::text(&table))?;
    }
    let Some(damage) = damage else { return Ok(Outcome::Done) };
    anstream::eprintln!("tidegate: only the records before a damage are shown: {}", damage.chain());
    Ok(Outcome::No)
}

fn row(record: &Record) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        record.sequence.to_string(),
        Moment::at(Duration::from_nanos(record.unix_nanos)).to_string(),
        printable(&record.actor),
        printable(&record.kind),
        record.model.as_ref().map_or_else(dash, ToString::to_string),
        record.version.map_or_else(dash, |version| version.to_string()),
        printable(&record.reason),
    ]
}

/// Text of others must not steer the reader's terminal.
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
