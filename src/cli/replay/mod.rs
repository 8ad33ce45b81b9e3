//! `tidegate replay`: a version on recorded requests, in this process or at a server.

mod arguments;
mod golden;
mod page;
mod server;

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    app::{self, SystemClock},
    config::Config,
    drift::{self, Newcomer, PROFILE_FILE, Profile},
    monitor::Monitor,
    rollout::subject,
    serve::Version,
    source::{Folder, ListedModel},
    validation::{
        ValidationError,
        replay::{Pick, Replay, ReplayReport, ReplayRequest},
    },
};

use super::{
    Outcome, print, print_json,
    recorded::{Recorded, Wanted},
    validate,
};

pub(super) use arguments::ReplayArguments;

/// Runs between two looks of the progress bar.
const RUNS_SHOWN: u64 = 64;

pub(super) fn run(arguments: &ReplayArguments, json: bool) -> anyhow::Result<Outcome> {
    let config = crate::config::load(arguments.sources())?;
    let recorded = Recorded::open(&arguments.data, Wanted::Model(arguments.model.as_str()))?;
    if let Some(url) = &arguments.server {
        let request = request(arguments, &config, recorded.path(), Vec::new());
        let (report, _) = server::run(arguments, request, url)?;
        return told(arguments, report, json);
    }
    let listing = Folder::new(config.source.clone())
        .list()
        .map_err(|error| anyhow!("{}; name the folder with --repository", error.chain()))?;
    let name = &arguments.model;
    let listed = validate::of_name(&listing, name)?;
    let decisions = validate::decisions(&config.state.path, name)?;
    let own = validate::named(listed, &decisions, &arguments.version)?;
    let other = arguments.against.as_deref();
    let other = other.map(|other| validate::named(listed, &decisions, other)).transpose()?;
    if other == Some(own) {
        bail!("version {own} would be compared with itself; name another with --against");
    }
    let folder = listed.versions.get(&own).and_then(|version| version.folder());
    let golden = golden::place(arguments, folder)?;
    let monitor = Arc::new(Monitor::new(1, Arc::new(SystemClock)));
    let loader = app::loader(&config, 1, monitor)?;
    let mut versions = Vec::new();
    for id in std::iter::once(own).chain(other) {
        match validate::load(&loader, name, listed, id) {
            Ok(version) => versions.push(version),
            Err(error) => {
                anstream::eprintln!("tidegate: version {id} of {name} cannot be loaded: {error:#}");
                return Ok(Outcome::No);
            }
        }
    }
    let features = versions.iter().map(|version| names(version, listed)).collect();
    let request = request(arguments, &config, recorded.path(), features);
    let mut subjects =
        versions.iter().map(|version| subject(version, version.rows_max(&config.serve)));
    let own = subjects.next().context("the version is loaded first")?;
    let replay = Replay::open(request, own, subjects.next())?;
    let (report, picks) = in_process(replay)?;
    let outcome = told(arguments, report, json)?;
    if let Some(path) = golden {
        let done = golden::write(arguments, &path, &versions[0], picks)?;
        anstream::eprintln!("tidegate: {done}");
    }
    Ok(outcome)
}

/// Prints the report, which names the data as the command did.
fn told(
    arguments: &ReplayArguments,
    mut report: ReplayReport,
    json: bool,
) -> anyhow::Result<Outcome> {
    report.data = arguments.data.display().to_string();
    if json {
        print_json(&report)?;
    } else {
        print(&page::shown(&report))?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::No })
}

fn request(
    arguments: &ReplayArguments,
    config: &Config,
    data: &Path,
    names: Vec<Vec<Option<Vec<String>>>>,
) -> ReplayRequest {
    ReplayRequest {
        data: data.to_owned(),
        ignored: arguments.ignore.clone(),
        batch_rows: usize::try_from(arguments.batch).unwrap_or(usize::MAX),
        rows_max: arguments.limit,
        tolerance: arguments.tolerance,
        worst_max: usize::try_from(arguments.worst).unwrap_or(usize::MAX),
        picks: arguments.golden.map_or(0, |golden| golden as usize),
        names,
        settings: config.validation,
    }
}

/// Names of the features of each input, as the table of predictions has them.
fn names(version: &Version, listed: &ListedModel) -> Vec<Option<Vec<String>>> {
    let folder = listed.versions.get(&version.id()).and_then(|version| version.folder());
    let profile = folder.and_then(|folder| fs::read(folder.join(PROFILE_FILE)).ok());
    let profile = profile.and_then(|file| Profile::read(&file).ok());
    let parts = version.parts();
    let newcomer = Newcomer {
        model: &parts.model,
        version: version.id(),
        signature: version.signature(),
        is_batched: version.is_batched(),
        names: &parts.description.feature_names(),
        identity: &parts.digest,
        profile: profile.map(Ok),
    };
    // Without a profile that fits, columns are found by the names of the inputs, or in their order.
    let bound = drift::fit(&newcomer, &drift::Settings::default()).unwrap_or_default();
    bound.into_iter().map(|input| Some(input.features)).collect()
}

/// Runs all rows in this process.
fn in_process(mut replay: Replay<'_>) -> Result<(ReplayReport, Vec<Pick>), ValidationError> {
    let bar = Bar::new();
    let mut runs = 0_u64;
    while let Some(job) = replay.next_job()? {
        replay.run(job);
        if runs.is_multiple_of(RUNS_SHOWN) {
            bar.show(replay.progress());
        }
        runs += 1;
    }
    drop(bar);
    replay.finish()
}

/// Progress, shown on terminals only.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} rows {eta}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style))
    }

    fn show(&self, (done, total): (u64, Option<u64>)) {
        if let Some(total) = total {
            self.0.set_length(total);
        }
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
