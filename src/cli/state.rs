//! `tidegate state`: saving the log of decisions, and bringing it back.

use std::path::Path;

use serde_json::json;

use crate::state;

use super::{Outcome, audit::told, models::size, print, print_json};

/// `tidegate state backup`.
pub(super) fn backup(path: &Path, to: &Path, replace: bool, json: bool) -> anyhow::Result<Outcome> {
    let saved = state::backup(path, to, replace)?;
    if json {
        return print_json(&told(&saved));
    }
    print(&format!(
        "{} records saved to {}, {}\nhead {}\n",
        saved.records,
        to.display(),
        size(saved.bytes),
        saved.head_hash
    ))
}

/// `tidegate state restore`.
pub(super) fn restore(from: &Path, path: &Path, json: bool) -> anyhow::Result<Outcome> {
    let restored = state::restore(from, path)?;
    if json {
        let mut report = told(&restored.verified);
        report["replaced"] = json!(restored.replaced);
        return print_json(&report);
    }
    let mut text =
        format!("{} records restored to {}\n", restored.verified.records, path.display());
    text += &format!("head {}\n", restored.verified.head_hash);
    if let Some(replaced) = restored.replaced {
        text += &format!("the log that was there is kept as {}\n", replaced.display());
    }
    print(&text)
}
