//! Entries in the durable log: how they are written, and how they are read back.

use std::time::Duration;

use crate::state::{NewRecord, Record, State, StateError};

use super::{Action, Cause, Entry, Journal, Registry, Unrecorded};

/// Why decisions cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The log cannot be read.
    #[error("decisions cannot be read back")]
    State(#[from] StateError),
    /// A record is not one of ours, or of a newer tidegate.
    #[error(
        "record {sequence} of the log, of kind `{kind}`, is not understood ({what}); a newer tidegate may have written \
         it: use that one, or bring an older log back with `tidegate state restore`"
    )]
    Unknown {
        /// Its place in the log.
        sequence: u64,
        /// Its kind.
        kind: String,
        /// What is wrong with it.
        what: String,
    },
}

/// The prefix of the kinds of records that belong to the registry.
const KIND: &str = "model.";

impl Registry {
    /// What the log says was decided; further decisions are written to it.
    pub fn open(state: State) -> Result<Self, RegistryError> {
        let mut entries = Vec::new();
        let mut unknown = None;
        state.replay(|record| {
            if record.kind.starts_with(KIND) && unknown.is_none() {
                match entry(record) {
                    Ok(entry) => entries.push(entry),
                    Err(error) => unknown = Some(error),
                }
            }
        })?;
        match unknown {
            Some(error) => Err(error),
            None => Ok(Self::replay(entries, Some(Box::new(state)))),
        }
    }
}

impl Registry {
    /// Reads decisions from records of the log; nothing more can be written.
    pub fn read(records: impl IntoIterator<Item = Record>) -> Result<Self, RegistryError> {
        let own = records.into_iter().filter(|record| record.kind.starts_with(KIND));
        let entries = own.map(entry).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::replay(entries, None))
    }
}

impl Journal for State {
    fn write(&mut self, entries: &[Entry]) -> Result<(), Unrecorded> {
        let unfit = |error: serde_json::Error| Unrecorded { reason: error.to_string() };
        let records = entries.iter().map(record).collect::<Result<Vec<_>, _>>().map_err(unfit)?;
        self.append_many(records).map(|_| ()).map_err(|error| Unrecorded { reason: chain(&error) })
    }
}

fn record(entry: &Entry) -> Result<NewRecord, serde_json::Error> {
    Ok(NewRecord {
        unix_nanos: u64::try_from(entry.at.as_nanos()).unwrap_or(u64::MAX),
        actor: entry.cause.actor.clone(),
        kind: format!("{KIND}{}", entry.action.name()),
        model: Some(entry.model.clone()),
        version: entry.action.version(),
        reason: entry.cause.reason.clone(),
        body: serde_json::to_value(&entry.action)?,
    })
}

fn entry(record: Record) -> Result<Entry, RegistryError> {
    let Record { sequence, kind, .. } = record;
    let unknown = |what: String| RegistryError::Unknown { sequence, kind: kind.clone(), what };
    let model = record.model.ok_or_else(|| unknown("it names no model".to_owned()))?;
    let action: Action =
        serde_json::from_value(record.body).map_err(|error| unknown(error.to_string()))?;
    let cause = Cause { actor: record.actor, reason: record.reason };
    Ok(Entry { at: Duration::from_nanos(record.unix_nanos), model, action, cause })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ModelName, VersionId},
        state::Settings,
    };

    fn open(folder: &std::path::Path) -> Registry {
        let settings = Settings { path: folder.to_owned(), ..Settings::default() };
        Registry::open(State::open(settings).unwrap().0).unwrap()
    }

    #[test]
    fn decisions_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |action| Entry {
            at: Duration::from_secs(1),
            model: ModelName::parse("m").unwrap(),
            action,
            cause: Cause { actor: "me".to_owned(), reason: "why".to_owned() },
        };
        let mut first = open(folder.path());
        first.record(&[entry(Action::Unload), entry(Action::Pin { version: 3 })]).unwrap();
        first.act(&entry(Action::SetAlias { alias: "a".to_owned(), version: 2 })).unwrap();
        drop(first);
        let second = open(folder.path());
        assert!(second.is_durable());
        let decided = second.decisions("m").unwrap();
        assert_eq!(decided.pinned, Some(VersionId::new(3)));
        assert_eq!(decided.aliases.len(), 1);
    }

    #[test]
    fn a_record_of_the_future_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { path: folder.path().to_owned(), ..Settings::default() };
        let (state, _) = State::open(settings).unwrap();
        let record = NewRecord {
            unix_nanos: 0,
            actor: String::new(),
            kind: "model.levitate".to_owned(),
            model: Some(ModelName::parse("m").unwrap()),
            version: None,
            reason: String::new(),
            body: serde_json::json!({"action": "levitate"}),
        };
        state.append(record.clone()).unwrap();
        let error = Registry::open(state.clone()).unwrap_err();
        assert!(error.to_string().starts_with("record 1 of the log, of kind `model.levitate`"));
        state.append(NewRecord { kind: "other.thing".to_owned(), ..record }).unwrap();
    }
}
