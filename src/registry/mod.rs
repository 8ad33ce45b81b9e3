//! What operators decided about models, and what served last: decisions that outlive the process.
//!
//! A decision is written down before (or, where waiting would hurt, at once after) it takes effect, and holds
//! until another one replaces it: it beats what the repository says. Always true:
//! - What [`Registry::record`] acknowledged is in the journal; where there is no journal, it holds until the
//!   process ends, and [`Registry::is_durable`] says so.
//! - Reading never touches the journal.
//!
//! Not here: how records are kept (`state`), how decisions are carried out (`lifecycle`).

mod journal;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use journal::RegistryError;

use crate::model::{Alias, ModelName, TrafficSpec, VersionId};

/// What is decided about every model.
#[derive(Debug, Default)]
pub struct Registry {
    journal: Option<Box<dyn Journal>>,
    models: BTreeMap<ModelName, Decisions>,
    /// Writes to the journal that failed.
    failures: u64,
    /// Why the last write failed, if it did.
    problem: Option<String>,
    /// Last record of each rollout, by its name; names ascend in time.
    rollouts: BTreeMap<String, RolloutRecord>,
}

/// Rollouts that are remembered; the oldest are forgotten here, and stay in the log.
const ROLLOUTS_MAX: usize = 200;

/// Last record of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutRecord {
    /// Its model.
    pub model: ModelName,
    /// Complete record, in the words of the room that runs it.
    pub record: Value,
}

/// What is decided about one model; the default decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decisions {
    /// Taken out of service until it is loaded again.
    pub unloaded: bool,
    /// The version that answers by default; newer ones stay out of service.
    pub pinned: Option<VersionId>,
    /// Where new versions are held back: the newest that was let into service.
    pub level: Option<VersionId>,
    /// Names for versions.
    pub aliases: BTreeMap<Alias, VersionId>,
    /// What a request brought in place of what the repository has.
    pub uploaded: Option<Uploaded>,
    /// What served last, and the identity of its files.
    pub served: BTreeMap<VersionId, String>,
    /// What was let go last, and what was let go and is pinned or has an alias: a way back.
    pub released: BTreeMap<VersionId, String>,
    /// What was let go last.
    pub previous: Option<VersionId>,
    /// Split of requests, if anything was decided.
    pub traffic: Option<TrafficSpec>,
    /// Counts changes of the split.
    pub traffic_revision: u64,
}

/// What a request brought, by the digests under which the content store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// The description.
    pub config: String,
    /// The versions' manifests; none where the repository's versions are served with the description.
    pub versions: BTreeMap<VersionId, String>,
}

/// A decision, or a fact worth remembering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Into service from the repository, where versions are held back up to this one.
    Load {
        /// The newest version that may serve.
        level: Option<u64>,
    },
    /// Out of service.
    Unload,
    /// This version answers, newer ones are held back.
    Pin {
        /// The version.
        version: u64,
    },
    /// The repository decides again.
    Unpin,
    /// What a request brought is served in place of what the repository has, until a load or an unload.
    Upload {
        /// The digest of the description.
        config: String,
        /// The digests of the versions' manifests, by the version's number as JSON has keys: as text.
        versions: BTreeMap<String, String>,
    },
    /// A name for a version.
    SetAlias {
        /// The name.
        alias: String,
        /// The version.
        version: u64,
    },
    /// A name less.
    RemoveAlias {
        /// The name.
        alias: String,
    },
    /// Requests are split like this.
    Split {
        /// The split; `None` for everything to the baseline.
        traffic: Option<TrafficSpec>,
    },
    /// A rollout began, went on or ended.
    Rollout {
        /// Its name.
        id: String,
        /// The version that it tries.
        version: u64,
        /// Complete record of the rollout, for the room that runs it.
        record: Value,
        /// Change of the split.
        traffic: TrafficChange,
        /// The version that answers by default from now on, where the rollout decided that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serve: Option<u64>,
        /// True if that version must be pinned, since the repository has others that would answer.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pin: bool,
    },
    /// A version was swapped in.
    Serve {
        /// The version.
        version: u64,
        /// The identity of its files.
        digest: String,
    },
    /// A version was let go.
    Retire {
        /// The version.
        version: u64,
    },
}

/// Change of a model's split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficChange {
    /// Keeps the split.
    Keep,
    /// Sends everything to the baseline.
    Clear,
    /// Sets this split.
    Set(TrafficSpec),
}

/// Who did something, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cause {
    /// Who, such as `repository API`.
    pub actor: String,
    /// Why, in their words; may be empty.
    pub reason: String,
}

/// An action on a model, as it is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When, since 1970.
    pub at: Duration,
    /// The model.
    pub model: ModelName,
    /// What was done.
    pub action: Action,
    /// Who did it and why.
    pub cause: Cause,
}

/// Where entries are kept. Returns once they cannot be lost.
pub trait Journal: std::fmt::Debug + Send {
    /// Writes entries, all or none.
    fn write(&mut self, entries: &[Entry]) -> Result<(), Unrecorded>;
}

/// Something could not be written down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it could not be recorded: {reason}")]
pub struct Unrecorded {
    /// Why, with the next step.
    pub reason: String,
}

impl Cause {
    /// A cause without a reason of its own.
    pub fn by(actor: &str) -> Self {
        Self { actor: actor.to_owned(), reason: String::new() }
    }
}

impl Action {
    /// Its name in records, such as `pin`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Load { .. } => "load",
            Self::Unload => "unload",
            Self::Pin { .. } => "pin",
            Self::Unpin => "unpin",
            Self::Upload { .. } => "upload",
            Self::SetAlias { .. } => "set_alias",
            Self::RemoveAlias { .. } => "remove_alias",
            Self::Split { .. } => "split",
            Self::Rollout { .. } => "rollout",
            Self::Serve { .. } => "serve",
            Self::Retire { .. } => "retire",
        }
    }

    /// True if it says which version answers, whatever a split said before.
    fn is_about_default(&self) -> bool {
        matches!(
            self,
            Self::Load { .. } | Self::Unload | Self::Pin { .. } | Self::Unpin | Self::Upload { .. }
        )
    }

    /// The version that it is about.
    pub fn version(&self) -> Option<VersionId> {
        match self {
            Self::Pin { version }
            | Self::SetAlias { version, .. }
            | Self::Rollout { version, .. }
            | Self::Serve { version, .. }
            | Self::Retire { version } => Some(VersionId::new(*version)),
            Self::Load { level } => level.map(VersionId::new),
            Self::Unload
            | Self::Unpin
            | Self::Upload { .. }
            | Self::Split { .. }
            | Self::RemoveAlias { .. } => None,
        }
    }
}

impl Decisions {
    /// Whether anything beats the repository.
    pub fn is_pinned(&self) -> bool {
        self.unloaded || self.pinned.is_some()
    }

    /// Identities of versions whose files must stay as long as the repository has the model: what served last, and
    /// the way back.
    pub fn manifests(&self) -> impl Iterator<Item = &str> {
        self.needed().chain(self.released.values().map(String::as_str))
    }

    /// Of these, those that must stay although the repository has no such model, or cannot be read.
    pub fn needed(&self) -> impl Iterator<Item = &str> {
        let uploaded = self.uploaded.iter().flat_map(|uploaded| uploaded.versions.values());
        self.served.values().chain(uploaded).map(String::as_str)
    }

    /// What they become with one more.
    #[must_use]
    pub fn after(&self, action: &Action) -> Self {
        let mut after = self.clone();
        after.apply(action);
        after
    }

    fn apply(&mut self, action: &Action) {
        self.change(action);
        let (previous, pinned, aliases) = (self.previous, self.pinned, &self.aliases);
        self.released.retain(|id, _| {
            let id = Some(*id);
            id == previous || id == pinned || aliases.values().any(|aliased| Some(*aliased) == id)
        });
    }

    fn set_traffic(&mut self, traffic: Option<TrafficSpec>) {
        if self.traffic != traffic {
            self.traffic = traffic;
            self.traffic_revision += 1;
        }
    }

    fn change(&mut self, action: &Action) {
        if action.is_about_default() {
            self.set_traffic(None);
        }
        match action {
            Action::Split { traffic } => self.set_traffic(traffic.clone()),
            Action::Rollout { traffic, serve, pin, .. } => {
                match traffic {
                    TrafficChange::Keep => {}
                    TrafficChange::Clear => self.set_traffic(None),
                    TrafficChange::Set(traffic) => self.set_traffic(Some(traffic.clone())),
                }
                if let Some(version) = serve.map(VersionId::new) {
                    self.level = Some(version);
                    self.pinned = (*pin || self.pinned.is_some()).then_some(version);
                }
            }
            Action::Load { level } => {
                self.unloaded = false;
                self.uploaded = None;
                self.level = level.map(VersionId::new).or(self.level);
            }
            Action::Unload => {
                self.unloaded = true;
                self.uploaded = None;
            }
            Action::Pin { version } => {
                self.unloaded = false;
                self.pinned = Some(VersionId::new(*version));
            }
            Action::Unpin => {
                self.unloaded = false;
                self.pinned = None;
            }
            Action::Upload { config, versions } => {
                let version = |(id, digest): (&String, &String)| {
                    Some((VersionId::parse(id)?, digest.clone()))
                };
                let versions = versions.iter().filter_map(version).collect();
                self.unloaded = false;
                self.uploaded = Some(Uploaded { config: config.clone(), versions });
            }
            Action::SetAlias { alias, version } => {
                if let Ok(alias) = Alias::parse(alias) {
                    self.aliases.insert(alias, VersionId::new(*version));
                }
            }
            Action::RemoveAlias { alias } => {
                self.aliases.remove(alias.as_str());
            }
            Action::Serve { version, digest } => {
                self.released.remove(&VersionId::new(*version));
                self.served.insert(VersionId::new(*version), digest.clone());
            }
            Action::Retire { version } => {
                let id = VersionId::new(*version);
                if let Some(digest) = self.served.remove(&id) {
                    self.released.insert(id, digest);
                    self.previous = Some(id);
                }
            }
        }
    }
}

impl Registry {
    /// What these entries, in their order, come to; further ones go to the journal.
    pub fn replay(
        entries: impl IntoIterator<Item = Entry>,
        journal: Option<Box<dyn Journal>>,
    ) -> Self {
        let mut registry = Self { journal, ..Self::default() };
        for entry in entries {
            registry.apply(&entry);
        }
        registry
    }

    /// Whether decisions outlive the process.
    pub fn is_durable(&self) -> bool {
        self.journal.is_some()
    }

    /// What is decided about a model.
    pub fn decisions(&self, model: &str) -> Option<&Decisions> {
        self.models.get(model)
    }

    /// Every model about which anything is decided.
    pub fn models(&self) -> impl Iterator<Item = (&ModelName, &Decisions)> {
        self.models.iter()
    }

    /// Writes down what is done, then takes it over; on an error nothing is taken over.
    pub fn record(&mut self, entries: &[Entry]) -> Result<(), Unrecorded> {
        if let Some(journal) = &mut self.journal
            && !entries.is_empty()
        {
            let written = journal.write(entries);
            self.note(written)?;
        }
        for entry in entries {
            self.apply(entry);
        }
        Ok(())
    }

    /// Takes over what must not wait, then writes it down; an error means that a restart would undo it.
    pub fn act(&mut self, entry: &Entry) -> Result<(), Unrecorded> {
        self.apply(entry);
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let written = journal.write(std::slice::from_ref(entry));
        self.note(written)
    }

    /// How many writes failed, and why the last one did, if it did.
    pub fn failures(&self) -> (u64, Option<&str>) {
        (self.failures, self.problem.as_deref())
    }

    fn note(&mut self, written: Result<(), Unrecorded>) -> Result<(), Unrecorded> {
        self.failures += u64::from(written.is_err());
        self.problem = written.as_ref().err().map(|error| error.reason.clone());
        written
    }

    /// Returns the last record of each rollout, the oldest first.
    pub fn rollouts(&self) -> impl Iterator<Item = (&str, &RolloutRecord)> {
        self.rollouts.iter().map(|(id, rollout)| (id.as_str(), rollout))
    }

    fn apply(&mut self, entry: &Entry) {
        if let Action::Rollout { id, record, .. } = &entry.action {
            let (model, record) = (entry.model.clone(), record.clone());
            self.rollouts.insert(id.clone(), RolloutRecord { model, record });
        }
        self.models.entry(entry.model.clone()).or_default().apply(&entry.action);
        while self.rollouts.len() > ROLLOUTS_MAX {
            // One that decides about a split goes on.
            let decides = |id: &str, rollout: &RolloutRecord| {
                let traffic = self.models.get(&rollout.model).and_then(|own| own.traffic.as_ref());
                traffic.is_some_and(|traffic| traffic.rollout.as_deref() == Some(id))
            };
            let over = self.rollouts.iter().find(|(id, rollout)| !decides(id, rollout));
            let Some(id) = over.map(|(id, _)| id.clone()) else { break };
            self.rollouts.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Full;

    impl Journal for Full {
        fn write(&mut self, _: &[Entry]) -> Result<(), Unrecorded> {
            Err(Unrecorded { reason: "the disk is full".to_owned() })
        }
    }

    fn entry(action: Action) -> Entry {
        let model = ModelName::parse("m").unwrap();
        Entry { at: Duration::ZERO, model, action, cause: Cause::by("test") }
    }

    #[test]
    fn decisions_follow_from_the_entries_in_order() {
        let entries = [
            Action::Unload,
            Action::Pin { version: 2 },
            Action::SetAlias { alias: "canary".to_owned(), version: 3 },
            Action::Serve { version: 2, digest: "d".to_owned() },
        ];
        let mut registry = Registry::replay(entries.map(entry), None);
        let decided = registry.decisions("m").unwrap();
        assert!(!decided.unloaded && decided.is_pinned());
        assert_eq!(decided.pinned, Some(VersionId::new(2)));
        assert_eq!(decided.aliases.get("canary"), Some(&VersionId::new(3)));
        assert_eq!(decided.served.len(), 1);
        let undo = [
            entry(Action::Unpin),
            entry(Action::RemoveAlias { alias: "canary".to_owned() }),
            entry(Action::Retire { version: 2 }),
        ];
        registry.record(&undo).unwrap();
        let decided = registry.decisions("m").unwrap();
        assert!(!decided.is_pinned() && decided.aliases.is_empty() && decided.served.is_empty());
        assert_eq!(registry.decisions("other"), None);
    }

    #[test]
    fn the_files_of_what_serves_and_of_the_way_back_must_stay() {
        let serve = |version| Action::Serve { version, digest: format!("d{version}") };
        let retire = |version| Action::Retire { version };
        let mut registry = Registry::replay([], None);
        let mut after = |actions: Vec<Action>| {
            registry.record(&actions.into_iter().map(entry).collect::<Vec<_>>()).unwrap();
            registry.decisions("m").unwrap().manifests().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(after(vec![serve(1), serve(2), retire(1)]), "d2 d1");
        assert_eq!(after(vec![serve(3), retire(2)]), "d3 d2", "one step back");
        assert_eq!(after(vec![Action::Pin { version: 2 }, serve(2), retire(3)]), "d2 d3");
        // Out of service, and it will be asked for again by these names.
        let alias = Action::SetAlias { alias: "canary".to_owned(), version: 3 };
        assert_eq!(after(vec![alias, serve(3), retire(3), retire(2)]), "d2 d3");
        assert_eq!(after(vec![Action::Unpin, serve(4)]), "d4 d2 d3");
        let no_alias = Action::RemoveAlias { alias: "canary".to_owned() };
        assert_eq!(after(vec![no_alias, retire(4)]), "d4");
    }

    #[test]
    fn what_cannot_be_written_is_not_decided_unless_it_must_not_wait() {
        let mut registry = Registry::replay([], Some(Box::new(Full)));
        assert!(registry.record(&[entry(Action::Unload)]).is_err());
        assert_eq!(registry.decisions("m"), None);
        assert!(registry.act(&entry(Action::Pin { version: 1 })).is_err());
        assert_eq!(registry.decisions("m").unwrap().pinned, Some(VersionId::new(1)));
        assert_eq!(registry.failures(), (2, Some("the disk is full")));
    }

    #[test]
    fn an_upload_holds_until_a_load_or_an_unload() {
        let upload = || Action::Upload { config: "c".to_owned(), versions: BTreeMap::new() };
        for (action, holds) in [
            (Action::Pin { version: 1 }, true),
            (Action::Unpin, true),
            (Action::Load { level: None }, false),
            (Action::Unload, false),
        ] {
            let registry = Registry::replay([Action::Unload, upload(), action].map(entry), None);
            assert_eq!(registry.decisions("m").unwrap().uploaded.is_some(), holds);
        }
        let registry = Registry::replay([Action::Unload, upload()].map(entry), None);
        assert!(!registry.decisions("m").unwrap().unloaded, "an upload is a load");
    }

    #[test]
    fn actions_are_written_with_their_name() {
        let written = serde_json::to_value(Action::Pin { version: 7 }).unwrap();
        assert_eq!(written, serde_json::json!({"action": "pin", "version": 7}));
        let upload = Action::Upload {
            config: "c".to_owned(),
            versions: [("1".to_owned(), "d".to_owned())].into(),
        };
        for action in [Action::Unload, Action::Load { level: None }, Action::Unpin, upload] {
            let written = serde_json::to_value(&action).unwrap();
            assert_eq!(written["action"], action.name());
            assert_eq!(serde_json::from_value::<Action>(written).unwrap(), action);
        }
    }
}
