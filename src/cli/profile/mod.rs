//! `tidegate profile`: how the features of a model are distributed in its training data, as a file beside the version.

mod columns;
mod page;
mod passes;
mod subject;

use std::path::PathBuf;

use anyhow::Context as _;

use super::{Outcome, commands::ProfileArguments, print, print_json, write_whole};
use crate::{
    dataset::{Dataset, Limits},
    drift::{self, PROFILE_BYTES_MAX, PROFILE_FILE, Profiler, ProfilerSettings},
};
use columns::Choice;
use subject::Subject;

/// Columns of a file: rows of pictures have many.
const COLUMNS_MAX: usize = 1 << 18;

pub(super) fn run(arguments: &ProfileArguments, json: bool) -> anyhow::Result<Outcome> {
    let limits = Limits { columns_max: COLUMNS_MAX, ..Limits::default() };
    let files = arguments.data.iter().map(|path| Dataset::open(path, limits));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let subject = match &arguments.model {
        Some(model) => match Subject::of(model, arguments)? {
            Some(subject) => Some(subject),
            None => return Ok(Outcome::No),
        },
        None => None,
    };
    let plain = drift::Settings::default();
    let watched = subject.as_ref().map_or(&plain, |subject| &subject.settings);
    let choice = Choice::of(&files, arguments, watched.features_max)?;
    let settings = ProfilerSettings {
        sample_rows: usize::try_from(arguments.sample_rows).unwrap_or(usize::MAX),
        seed: arguments.seed,
    };
    let profiler = Profiler::new(choice.columns.clone(), settings)?;
    let mut notes = choice.notes.clone();
    if profiler.sample_rows() < settings.sample_rows {
        notes.push(format!(
            "the profile holds {} values of each feature and not {}: so many features share the room",
            profiler.sample_rows(),
            settings.sample_rows
        ));
    }
    let profile = passes::run(&files, &choice, profiler)?;
    notes.extend(page::notes(&profile));
    match subject.as_ref().map_or(Ok(Vec::new()), |subject| subject.fit(&profile)) {
        Ok(found) => notes.extend(found),
        Err(wrong) => {
            anstream::eprintln!("tidegate: {wrong}; the profile is not written");
            return Ok(Outcome::No);
        }
    }
    let text = profile.to_json();
    anyhow::ensure!(
        text.len() as u64 <= PROFILE_BYTES_MAX,
        "the profile has {} bytes, more than the {PROFILE_BYTES_MAX} that are read; make it smaller with --sample-rows \
         or --exclude",
        text.len()
    );
    let beside = subject.as_ref().map(|subject| subject.folder.join(PROFILE_FILE));
    let path = arguments.output.clone().or(beside).unwrap_or_else(|| PathBuf::from(PROFILE_FILE));
    let path = path.as_path();
    write_whole(path, text.as_bytes())
        .with_context(|| format!("the profile cannot be written to `{}`", path.display()))?;
    if let Some(model) = &arguments.contract {
        return print(&page::contract(model.as_str(), &profile));
    }
    if json {
        return print_json(&page::Report::of(&profile, path, &notes));
    }
    print(&page::shown(&profile, path, text.len(), &notes))
}
