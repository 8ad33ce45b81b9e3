//! Rollouts on disk: checkpoints of their evidence beside the log, and the log's record that all is frozen.
//!
//! The log has each change with its sums; `rollouts/<id>.jsonl` below the state's folder has a checkpoint for each
//! second, so that a process that dies loses a second of evidence at most. Always true: a file that cannot be read
//! costs the evidence since the last change, never the rollout.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    model::{Moment, VersionId},
    state::{Filter, NewRecord, State, StateError},
};

use super::state::{Checkpoint, Rollout};

/// Storage of rollouts.
#[derive(Debug, Default)]
pub(super) struct Store {
    folder: Option<PathBuf>,
    state: Option<State>,
    /// Bytes of each file that were written well by this process.
    good: BTreeMap<String, u64>,
    /// True if a checkpoint could not be written; told once.
    troubled: bool,
    /// Versions in whose runs the process before ended: model, version, digest.
    pub(super) blamed: BTreeSet<(String, VersionId, String)>,
}

/// Freeze of all automation: its time, author and reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frozen {
    /// Since when.
    pub since: Moment,
    /// Author of the freeze.
    pub by: String,
    /// Reason, in the author's words.
    pub reason: String,
}

/// From this size on, a file is written anew.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The kind of records about freezing.
const FREEZE: &str = "automation.freeze";

/// Returns the freeze that is in effect by the log, if there is one.
fn frozen(state: &State) -> Option<Frozen> {
    let filter =
        Filter { kind: Some(FREEZE.to_owned()), newest: true, limit: 1, ..Filter::default() };
    let last = state.records(&filter).ok()?.into_iter().next_back()?;
    serde_json::from_value(last.body).ok()?
}

fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    OpenOptions::new().append(true).create(true).open(path)?.write_all(line)
}

fn replace(path: &Path, line: &[u8]) -> std::io::Result<()> {
    let aside = path.with_extension("incoming");
    fs::write(&aside, line)?;
    fs::rename(&aside, path)
}

/// True if all automation is frozen, as the log says.
pub fn is_frozen(state: &State) -> bool {
    frozen(state).is_some()
}

impl Store {
    /// Keeps rollouts in this state; in memory only without one.
    pub(super) fn open(state: Option<(State, PathBuf)>) -> Self {
        let Some((state, path)) = state else { return Self::default() };
        let folder = path.join("rollouts");
        let made = fs::create_dir_all(&folder);
        if let Err(error) = &made {
            tracing::warn!(
                "evidence of rollouts is written at their changes only: {}: {error}; make it writable",
                folder.display()
            );
        }
        Self { folder: made.is_ok().then_some(folder), state: Some(state), ..Self::default() }
    }

    /// Appends the changes since the last checkpoint; writes the file anew if it is large or was not written well.
    pub(super) fn checkpoint(&mut self, rollout: &mut Rollout) {
        let Some(folder) = &self.folder else { return };
        let path = folder.join(format!("{}.jsonl", rollout.id()));
        let good = self.good.get(rollout.id()).copied().filter(|bytes| *bytes < FILE_BYTES_MAX);
        let checkpoint = rollout.checkpoint();
        let whole = good.is_none().then(|| rollout.whole());
        let written = serde_json::to_vec(whole.as_ref().unwrap_or(&checkpoint));
        let written = written.map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            match good {
                Some(good) => append(&path, &line).map(|()| good + line.len() as u64),
                None => replace(&path, &line).map(|()| line.len() as u64),
            }
        });
        match written {
            Ok(bytes) => {
                self.troubled = false;
                self.good.insert(rollout.id().to_owned(), bytes);
            }
            Err(error) => {
                // The next one writes all of it.
                self.good.remove(rollout.id());
                if !std::mem::replace(&mut self.troubled, true) {
                    tracing::warn!(
                        "evidence is not written down: {}: {error}; make room or make it writable",
                        path.display()
                    );
                }
            }
        }
        if rollout.state().is_over() {
            self.good.remove(rollout.id());
        }
    }

    /// A rollout as the log has it, with the evidence that was written since.
    pub(super) fn restore(&self, id: &str, record: &Value) -> Option<Rollout> {
        let recorded = Rollout::of(record);
        let mut rollout = recorded.clone()?;
        for checkpoint in self.checkpoints(id) {
            rollout.restore(checkpoint);
        }
        let recorded = recorded?;
        // The log is the truth about where it stands; the file may lack the last change.
        if rollout.revision() < recorded.revision() {
            rollout.lay(record);
        }
        Some(rollout)
    }

    fn checkpoints(&self, id: &str) -> Vec<Checkpoint> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let Ok(file) = File::open(folder.join(format!("{id}.jsonl"))) else { return Vec::new() };
        // A line that was torn by the end of the process ends what can be read.
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        lines.map_while(|line| serde_json::from_str(&line).ok()).collect()
    }

    /// Removes what is left of rollouts that nobody knows any more.
    pub(super) fn forget_others(&self, is_known: impl Fn(&str) -> bool) {
        let Some(entries) = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok())
        else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let id = path.file_stem().and_then(|stem| stem.to_str());
            if id.is_some_and(|id| !is_known(id))
                && let Err(error) = fs::remove_file(&path)
            {
                tracing::warn!("not removed: {}: {error}", path.display());
            }
        }
    }

    /// Returns the freeze that is in effect by the log, if there is one.
    pub(super) fn frozen(&self) -> Option<Frozen> {
        frozen(self.state.as_ref()?)
    }

    /// Writes down that all is frozen, or free again.
    pub(super) fn freeze(
        &self,
        frozen: Option<&Frozen>,
        (actor, reason): (&str, &str),
        now: Duration,
    ) -> Result<(), StateError> {
        let Some(state) = &self.state else { return Ok(()) };
        let record = NewRecord {
            unix_nanos: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            actor: actor.to_owned(),
            kind: FREEZE.to_owned(),
            model: None,
            version: None,
            reason: reason.to_owned(),
            body: serde_json::to_value(frozen).unwrap_or_default(),
        };
        state.append(record).map(|_| ())
    }
}
