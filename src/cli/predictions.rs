//! `tidegate predictions`: looks a prediction up in the table of predictions.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    model::PredictionId,
    predictions::{Cells, Found, find},
};

use super::{
    Outcome, print, print_json,
    recorded::{NothingThere, Recorded, Wanted},
    tables::table,
};

/// Elements of a list that are shown to people.
const SHOWN_MAX: usize = 12;

/// Columns that are told in the first line.
const COMMON: [&str; 9] =
    ["time", "prediction_id", "row", "model", "version", "arm", "digest", "code", "milliseconds"];

pub(super) fn show(places: &[PathBuf], id: &str, json: bool) -> anyhow::Result<Outcome> {
    let id = PredictionId::parse(id).with_context(|| {
        format!("`{id}` is no prediction's id; it is the 32 digits of `x-tidegate-prediction-id`")
    })?;
    let mut found = Found::default();
    for (at, place) in places.iter().enumerate() {
        let recorded = match Recorded::open(place, Wanted::Prediction(id)) {
            Ok(recorded) => recorded,
            Err(error) if error.is::<NothingThere>() => continue,
            Err(error) => return Err(error),
        };
        found = match find(recorded.path(), id) {
            Ok(found) => found,
            // Complete files have left it, or none was completed.
            Err(error) if error.is_not_found() && at + 1 < places.len() => continue,
            Err(error) => {
                return Err(anyhow::Error::new(error).context(
                    "the table of predictions cannot be read; name its folder with --path, the value of predictions.path",
                ));
            }
        };
        if !found.rows.is_empty() {
            break;
        }
    }
    if found.rows.is_empty() {
        let places: Vec<_> = places.iter().map(|place| format!("`{}`", place.display())).collect();
        anstream::eprintln!(
            "tidegate: prediction {} is in no complete file below {}: it was not sampled, its file is removed or uploaded \
             (see predictions.upload), or it is still being written (see predictions.rotate_every)",
            id.as_str(),
            places.join(" or ")
        );
        return Ok(Outcome::No);
    }
    if json {
        return print_json(&json!({"rows": found.rows, "outcomes": found.outcomes}));
    }
    print(&shown(&found))
}

/// The prediction for people.
fn shown(found: &Found) -> String {
    let word = |row: &Cells, name: &str| row.get(name).map(text).unwrap_or_default();
    let mut page = String::new();
    if let Some(first) = found.rows.first() {
        let took = first.get("milliseconds").and_then(Value::as_f64).unwrap_or_default();
        page += &format!(
            "{} version {}, arm {}: {} after {took:.3} ms, {}\n",
            word(first, "model"),
            word(first, "version"),
            word(first, "arm"),
            word(first, "code"),
            word(first, "time")
        );
    }
    let mut rows = table(["row", "", "name", "value"]);
    for row in &found.rows {
        let number = word(row, "row");
        for (name, cell) in row.iter().filter(|(name, _)| !COMMON.contains(&name.as_str())) {
            let (side, name) = match name.strip_prefix("output:") {
                Some(name) => ("output", name),
                None => ("input", name.as_str()),
            };
            rows.add_row([&number, side, name, &text(cell)]);
        }
        let is_its = |outcome: &&Cells| outcome.get("row") == row.get("row");
        for outcome in found.outcomes.iter().filter(is_its) {
            for name in ["label", "value", "reward"] {
                let cell = outcome.get(name).filter(|cell| !cell.is_null());
                let value = cell.map(|cell| format!("{} ({})", text(cell), word(outcome, "time")));
                if let Some(value) = value {
                    rows.add_row([&number, "outcome", name, &value]);
                }
            }
        }
    }
    page + &format!("{rows}\n")
}

fn text(cell: &Value) -> String {
    match cell {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(all) => {
            let shown = all.iter().take(SHOWN_MAX).map(text).collect::<Vec<_>>().join(" ");
            let more = if all.len() > SHOWN_MAX { " ..." } else { "" };
            format!("{shown}{more} ({} values)", all.len())
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_shown_with_its_outcome() {
        let cells = |value: Value| value.as_object().unwrap().clone();
        let row = json!({
            "time": "2026-11-29T02:41:07.123Z", "prediction_id": "0", "row": 0, "model": "m", "version": 3,
            "arm": "canary", "digest": "d", "code": 200, "milliseconds": 1.25, "age": 41, "pixels": vec![0; 20],
            "output:label": "yes", "output:score": null
        });
        let outcome =
            json!({"time": "later", "row": 0, "label": "no", "value": null, "reward": null});
        let found = Found { rows: vec![cells(row)], outcomes: vec![cells(outcome)] };
        let page = shown(&found);
        let wanted = [
            "m version 3, arm canary: 200 after 1.250 ms, 2026-11-29T02:41:07.123Z",
            "age",
            "41",
            "... (20 values)",
            "yes",
            "no (later)",
        ];
        for wanted in wanted {
            assert!(page.contains(wanted), "{wanted} in {page}");
        }
    }
}
