//! The live table: every model with its versions and their states, as of one publish.

use std::{collections::HashMap, sync::Arc};

use crate::{
    model::{ModelName, VersionId, VersionSelector, VersionState},
    monitor::ModelRecorder,
};

use super::Version;

/// What is known and what is served.
#[derive(Debug, Clone, Default)]
pub struct Table {
    models: HashMap<ModelName, Model>,
    /// Whether every version that was there at the start has been tried.
    complete: bool,
    /// Models that must serve before the server calls itself ready.
    required: Arc<[ModelName]>,
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
    /// Why the model as a whole cannot be served, if so.
    pub problem: Option<String>,
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
}

/// Why a request reaches no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such model; the caller's mistake.
    #[error("Request for unknown model: '{0}' is not found")]
    UnknownModel(String),
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
}

impl Table {
    /// A table of these models; `complete` once every version that was there at the start has been tried.
    pub fn new(
        models: impl IntoIterator<Item = Model>,
        complete: bool,
        required: Arc<[ModelName]>,
    ) -> Self {
        let models = models.into_iter().map(|model| (model.name.clone(), model)).collect();
        Self { models, complete, required }
    }

    /// Why the server is not ready; empty if it is.
    ///
    /// It is ready when the first pass over the repository is done, every required model has a version that
    /// answers, and, if there are models at all, at least one does.
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
        if self.complete
            && known
            && self.models.values().all(|model| model.ready().next().is_none())
        {
            obstacles.push("no model has a version that is ready".to_owned());
        }
        obstacles
    }

    /// A model by name.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.get(name)
    }

    /// All models, by name.
    pub fn models(&self) -> Vec<&Model> {
        let mut models: Vec<_> = self.models.values().collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// The version that answers a request.
    pub fn route(
        &self,
        name: &str,
        selector: VersionSelector<'_>,
    ) -> Result<&Arc<Version>, RouteError> {
        let model = self.models.get(name).ok_or_else(|| unknown_model(name))?;
        model.route(selector)
    }
}

impl Model {
    /// The versions that answer, ascending.
    pub fn ready(&self) -> impl DoubleEndedIterator<Item = &Arc<Version>> {
        self.versions.iter().filter_map(|entry| entry.version.as_ref())
    }

    /// The version that answers a request.
    pub fn route(&self, selector: VersionSelector<'_>) -> Result<&Arc<Version>, RouteError> {
        match selector {
            VersionSelector::Default => {
                self.ready().next_back().ok_or_else(|| self.not_ready(None))
            }
            VersionSelector::Number(id) => {
                match self.versions.iter().find(|entry| entry.id == id) {
                    Some(Entry { version: Some(version), .. }) => Ok(version),
                    Some(entry) => Err(self.not_ready(Some(entry))),
                    None => Err(self.unknown_version(&id.to_string())),
                }
            }
            VersionSelector::Alias(alias) => Err(self.unknown_version(alias)),
        }
    }

    fn not_ready(&self, entry: Option<&Entry>) -> RouteError {
        let entry = entry.or(self.versions.last());
        let version = entry.map_or_else(|| "-".to_owned(), |entry| entry.id.to_string());
        let reason =
            entry.map(|entry| entry.reason.as_str()).or(self.problem.as_deref()).unwrap_or("");
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        RouteError::NotReady { model: self.name.clone(), version, reason }
    }

    fn unknown_version(&self, version: &str) -> RouteError {
        let ready: Vec<_> = self.ready().map(|version| version.id().to_string()).collect();
        let available =
            if ready.is_empty() { String::new() } else { format!("; ready: {}", ready.join(", ")) };
        let version = version.chars().take(64).flat_map(char::escape_debug).collect();
        RouteError::UnknownVersion { model: self.name.clone(), version, available }
    }
}

fn unknown_model(name: &str) -> RouteError {
    RouteError::UnknownModel(name.chars().take(128).flat_map(char::escape_debug).collect())
}
