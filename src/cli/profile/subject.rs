//! The version that a profile is for: its signature, and the folder where the profile belongs.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, anyhow};

use super::super::{commands::ProfileArguments, validate};
use crate::{
    app::{self, SystemClock},
    drift::{self, Newcomer, Profile},
    model::ModelName,
    monitor::Monitor,
    serve::Version,
    source::Folder,
};

/// A version, loaded.
pub(super) struct Subject {
    pub(super) model: ModelName,
    pub(super) version: Version,
    /// The folder of its files.
    pub(super) folder: PathBuf,
    /// Settings of the model's drift.
    pub(super) settings: drift::Settings,
}

impl Subject {
    /// Loads the version that is meant; `None`, with a message, if it cannot be loaded.
    pub(super) fn of(
        model: &ModelName,
        arguments: &ProfileArguments,
    ) -> anyhow::Result<Option<Self>> {
        let config = crate::config::load(arguments.sources())?;
        let listing = Folder::new(config.source.clone())
            .list()
            .map_err(|error| anyhow!("{}; name the folder with --repository", error.chain()))?;
        let listed = validate::of_name(&listing, model)?;
        let decisions = validate::decisions(&config.state.path, model)?;
        let wanted = arguments.version.as_deref().unwrap_or("latest");
        let id = validate::named(listed, &decisions, wanted)?;
        let folder = listed.versions.get(&id).and_then(|version| version.folder());
        let folder = folder.context("the version is in no folder; name the file with --output")?;
        let monitor = Arc::new(Monitor::new(1, Arc::new(SystemClock)));
        let loader = app::loader(&config, 1, monitor)?;
        let version = match validate::load(&loader, model, listed, id) {
            Ok(version) => version,
            Err(error) => {
                anstream::eprintln!(
                    "tidegate: version {id} of {model} cannot be loaded: {error:#}"
                );
                return Ok(None);
            }
        };
        let own = config.models.get(model).and_then(|policy| policy.drift.clone());
        let settings = own.unwrap_or(config.drift);
        Ok(Some(Self { model: model.clone(), version, folder: folder.to_owned(), settings }))
    }

    /// Notes about how the server will use the profile; an error says why it will not.
    pub(super) fn fit(&self, profile: &Profile) -> Result<Vec<String>, String> {
        let parts = self.version.parts();
        let names = parts.description.feature_names();
        let newcomer = Newcomer {
            model: &self.model,
            version: self.version.id(),
            signature: self.version.signature(),
            is_batched: self.version.is_batched(),
            names: &names,
            identity: &parts.digest,
            profile: Some(
                profile.check().map(|()| profile.clone()).map_err(|wrong| wrong.to_string()),
            ),
        };
        let bound = drift::fit(&newcomer, &self.settings).map_err(|wrong| {
            format!(
                "version {} of {} would not use the profile: {wrong}",
                self.version.id(),
                self.model
            )
        })?;
        let mut notes = Vec::new();
        for input in bound.into_iter().filter(|input| input.by_order) {
            let columns: Vec<_> =
                input.features.iter().take(4).map(|name| format!("`{name}`")).collect();
            let more = input.features.len() - columns.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let plural = if input.features.len() == 1 { "" } else { "s" };
            notes.push(format!(
                "input `{}` is compared with the column{plural} {}{more}: the order of the data must be the model's",
                input.input,
                columns.join(", ")
            ));
        }
        if !self.settings.enabled {
            notes.push(format!(
                "drift of `{}` is off, so that nothing will be compared with it; set `drift.enabled = true`",
                self.model
            ));
        }
        Ok(notes)
    }
}
