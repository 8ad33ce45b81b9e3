//! The live table: every model with its versions and their states, as of one publish.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    model::{Alias, Extent, ModelName, VersionId, VersionSelector, VersionState},
    monitor::ModelRecorder,
};

use super::{Traffic, Version};

/// What is known and what is served.
#[derive(Debug, Clone, Default)]
pub struct Table {
    models: HashMap<ModelName, Arc<Model>>,
    /// Whether every version that was there at the start has been tried.
    complete: bool,
    /// Models that must serve before the server calls itself ready.
    required: Arc<[ModelName]>,
    /// Why the repository cannot be read, if so.
    unreadable: Option<String>,
}

/// A model.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its name.
    pub name: ModelName,
    /// Where requests are counted that reach no version.
    pub recorder: Arc<ModelRecorder>,
    /// Its versions, ascending.
    pub versions: Vec<Entry>,
    /// The version that a request without one gets, if it is ready; else the newest older one that is.
    pub default: Option<VersionId>,
    /// Names that stand for a version.
    pub aliases: BTreeMap<Alias, VersionId>,
    /// What an operator decided that beats the repository, for people.
    pub pinned: Option<String>,
    /// Why the model as a whole cannot be served, if so.
    pub problem: Option<String>,
    /// The split of its requests, where there is one.
    pub traffic: Option<Arc<Traffic>>,
    /// Counts changes of the split.
    pub traffic_revision: u64,
    /// True if a header may choose the arm or version.
    pub route_override: bool,
    /// The newest version that waits to be let in.
    pub held_back: Option<VersionId>,
}

/// A version of a model.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The version.
    pub id: VersionId,
    /// Where it stands.
    pub state: VersionState,
    /// Why it stands there, for people; empty if there is nothing to say.
    pub reason: String,
    /// The loaded version, if it is ready.
    pub version: Option<Arc<Version>>,
    /// Whether a request for it has it loaded, while it is not.
    pub on_demand: bool,
    /// True if it does not answer because that was decided: it is held back or unloaded.
    pub decided: bool,
}

impl Entry {
    /// Whether a request for it is answered, be it after its version was loaded.
    pub fn stands(&self) -> bool {
        self.version.is_some() || self.on_demand
    }
}

/// Two are equal if a table would look the same with either: the same loaded versions, not alike ones.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.version, &other.version) {
            (Some(own), Some(others)) => Arc::ptr_eq(own, others),
            (None, None) => true,
            _ => false,
        };
        same && self.id == other.id
            && self.state == other.state
            && self.reason == other.reason
            && self.on_demand == other.on_demand
            && self.decided == other.decided
    }
}

/// Two are equal if a table would look the same with either.
impl PartialEq for Model {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.versions == other.versions
            && self.default == other.default
            && self.aliases == other.aliases
            && self.pinned == other.pinned
            && self.problem == other.problem
            && self.traffic == other.traffic
            && self.traffic_revision == other.traffic_revision
            && self.route_override == other.route_override
            && self.held_back == other.held_back
    }
}

/// Why a request reaches no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such model; the caller's mistake.
    #[error("Request for unknown model: '{0}' is not found")]
    UnknownModel(String),
    /// The repository has not been listed yet, so that there may be such a model; worth retrying.
    #[error("Request for model '{0}' failed: the repository is not listed yet")]
    Unlisted(String),
    /// The model has no such version; the caller's mistake.
    #[error("Request for unknown model: '{model}' version {version} is not found{available}")]
    UnknownVersion {
        /// The model.
        model: ModelName,
        /// The version or alias asked for.
        version: String,
        /// What there is instead.
        available: String,
    },
    /// A header asks for an arm or version that the model has not; the caller's mistake.
    #[error(
        "Request for model '{model}' asks for arm or version '{wanted}', which it has not; it has {available}"
    )]
    UnknownArm {
        /// The model.
        model: ModelName,
        /// Value of the header.
        wanted: String,
        /// The arms, and the versions that are ready.
        available: String,
    },
    /// The version is known and does not answer now; worth retrying.
    #[error("Request for model '{model}' failed: version {version} is not at ready state{reason}")]
    NotReady {
        /// The model.
        model: ModelName,
        /// The version.
        version: String,
        /// Why.
        reason: String,
    },
    /// The version is loaded when a request asks for it; wait for it, then look at the table again.
    #[error("Request for model '{model}' failed: version {id} is not loaded: it loads on demand")]
    Asleep {
        /// The model.
        model: ModelName,
        /// The version.
        id: VersionId,
    },
}

impl Table {
    /// A table of these models; `complete` once every version that was there at the start has been tried.
    pub fn new(
        models: HashMap<ModelName, Arc<Model>>,
        complete: bool,
        required: Arc<[ModelName]>,
    ) -> Self {
        Self { models, complete, required, unreadable: None }
    }

    /// The same table where the repository cannot be read, for this reason.
    #[must_use]
    pub fn without_repository(mut self, reason: Option<String>) -> Self {
        self.unreadable = reason;
        self
    }

    /// Why the server is not ready; empty if it is.
    ///
    /// It is ready when the first pass over the repository is done, every required model has a version that
    /// answers, and, if there are models at all, at least one does, or would on demand. Without any model it is
    /// ready where the repository is really empty, and not where it cannot be read.
    pub fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if !self.complete {
            obstacles.push("models are being loaded".to_owned());
        }
        for name in &*self.required {
            if self.model(name).is_none_or(|model| model.ready().next().is_none()) {
                obstacles.push(format!("required model `{name}` has no version that is ready"));
            }
        }
        let known = !self.models.is_empty();
        if self.complete && known && self.models.values().all(|model| model.standing().is_none()) {
            obstacles.push("no model has a version that is ready".to_owned());
        }
        obstacles.extend(self.unreadable.clone().filter(|_| self.complete && !known));
        obstacles
    }

    /// True if a request for a model must wait for the first pass over the repository: until that is done, a model that
    /// is not there may only be not there yet.
    pub(super) fn is_settling(&self, name: &str) -> bool {
        let loads =
            |model: &Model| model.versions.iter().any(|entry| entry.state == VersionState::Loading);
        !self.complete && self.model(name).is_none_or(loads)
    }

    /// A model by name.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.get(name).map(|model| &**model)
    }

    /// All models, by name.
    pub fn models(&self) -> Vec<&Model> {
        let mut models: Vec<_> = self.models.values().map(|model| &**model).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// The version that answers a request.
    pub fn route(
        &self,
        name: &str,
        selector: VersionSelector<'_>,
    ) -> Result<&Arc<Version>, RouteError> {
        self.models.get(name).ok_or_else(|| self.missing(name))?.route(selector)
    }

    /// The error for a name without a model.
    pub fn missing(&self, name: &str) -> RouteError {
        let name = name.chars().take(128).flat_map(char::escape_debug).collect();
        // Before the first listing nobody knows what there is.
        let unlisted = self.models.is_empty() && !self.complete;
        if unlisted { RouteError::Unlisted(name) } else { RouteError::UnknownModel(name) }
    }
}

impl Model {
    /// The versions that answer, ascending.
    pub fn ready(&self) -> impl DoubleEndedIterator<Item = &Arc<Version>> {
        self.versions.iter().filter_map(|entry| entry.version.as_ref())
    }

    /// The largest of what a request for any of its versions may hold; `None` where none answers.
    pub fn extent(&self) -> Option<Extent> {
        self.ready().map(|version| version.extent()).reduce(Extent::or)
    }

    /// The version that answers a request.
    pub fn route(&self, selector: VersionSelector<'_>) -> Result<&Arc<Version>, RouteError> {
        match selector {
            VersionSelector::Default => match self.standing() {
                Some(entry) => self.loaded(entry),
                None => Err(self.not_ready(None)),
            },
            VersionSelector::Number(id) => self.numbered(id),
            VersionSelector::Alias(alias) => match self.aliases.get(alias) {
                Some(id) => self.numbered(*id),
                None if alias == Alias::STABLE => self.route(VersionSelector::Default),
                None => Err(self.unknown_version(alias)),
            },
        }
    }

    /// The version that a request without one gets, if any is loaded for it.
    pub fn answering(&self) -> Option<&Arc<Version>> {
        self.standing()?.version.as_ref()
    }

    /// The entry whose version a request without one gets, at once or on demand.
    pub fn standing(&self) -> Option<&Entry> {
        let default = self.default;
        let standing = || self.versions.iter().rev().filter(|entry| entry.stands());
        // While the default is only being loaded, what served goes on, be it newer.
        standing()
            .find(|entry| default.is_none_or(|default| entry.id <= default))
            .or_else(|| standing().next())
    }

    fn loaded<'a>(&self, entry: &'a Entry) -> Result<&'a Arc<Version>, RouteError> {
        entry.version.as_ref().ok_or_else(|| {
            if entry.on_demand {
                RouteError::Asleep { model: self.name.clone(), id: entry.id }
            } else {
                self.not_ready(Some(entry.id))
            }
        })
    }

    fn numbered(&self, id: VersionId) -> Result<&Arc<Version>, RouteError> {
        match self.versions.binary_search_by_key(&id, |entry| entry.id) {
            Ok(index) => self.loaded(&self.versions[index]),
            Err(_) => Err(self.unknown_version(&id.to_string())),
        }
    }

    pub(super) fn not_ready(&self, id: Option<VersionId>) -> RouteError {
        let own = |id: VersionId| self.versions.iter().find(|entry| entry.id == id);
        let entry = id.map_or(self.versions.last(), own);
        let id = id.or(entry.map(|entry| entry.id));
        let version = id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        let reason =
            entry.map(|entry| entry.reason.as_str()).or(self.problem.as_deref()).unwrap_or("");
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        RouteError::NotReady { model: self.name.clone(), version, reason }
    }

    pub(super) fn unknown_arm(&self, wanted: &str) -> RouteError {
        let arms = self.traffic.as_ref().map_or_else(
            || "arm baseline".to_owned(),
            |traffic| {
                let names = traffic.arms().iter().map(|arm| arm.name.to_string());
                format!("arms {}", names.collect::<Vec<_>>().join(", "))
            },
        );
        let ready: Vec<_> = self.ready().map(|version| version.id().to_string()).collect();
        let available = format!("{arms} and versions {}", ready.join(", "));
        let wanted = wanted.chars().take(64).flat_map(char::escape_debug).collect();
        RouteError::UnknownArm { model: self.name.clone(), wanted, available }
    }

    fn unknown_version(&self, version: &str) -> RouteError {
        let ready: Vec<_> = self.ready().map(|version| version.id().to_string()).collect();
        let available =
            if ready.is_empty() { String::new() } else { format!("; ready: {}", ready.join(", ")) };
        let version = version.chars().take(64).flat_map(char::escape_debug).collect();
        RouteError::UnknownVersion { model: self.name.clone(), version, available }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_listing_no_model_is_unknown() {
        let missed = |table: &Table| table.route("m", VersionSelector::Default).map(|_| ());
        let unlisted = Table::default();
        assert_eq!(missed(&unlisted), Err(RouteError::Unlisted("m".to_owned())));
        let listed = Table { complete: true, ..Table::default() };
        assert_eq!(missed(&listed), Err(RouteError::UnknownModel("m".to_owned())));
    }
}
