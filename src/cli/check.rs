//! `tidegate check`: the configuration and every model, without serving.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    admin::LoadedReport,
    app::{self, SystemClock},
    config::Config,
    lifecycle::{Loader, Origin},
    model::{ModelName, VersionId},
    monitor::Monitor,
    source::{Folder, ListedModel},
};

use super::{
    Outcome,
    models::{microseconds, size},
    print, print_json,
    tables::{self, plain, table},
};

/// Findings about a version, or about a model as a whole.
#[derive(Debug, serde::Serialize)]
struct Found {
    model: String,
    version: Option<u64>,
    loaded: Option<LoadedReport>,
    problem: Option<String>,
}

pub(super) fn run(config: &Config, json: bool) -> anyhow::Result<Outcome> {
    let monitor = Arc::new(Monitor::new(1, Arc::new(SystemClock)));
    let mut loader = app::loader(config, 1, Arc::clone(&monitor))?;
    loader.drift = Some(app::watch_drift(config, &monitor, 1, false));
    let listing = Folder::new(config.source.clone())
        .list()
        .map_err(|error| anyhow::anyhow!("{}; name the folder with --repository", error.chain()))?;
    let count: usize = listing.models.values().map(|model| model.versions.len()).sum();
    let progress = bar(count as u64);
    let mut found = Vec::new();
    for (name, model) in &listing.models {
        check_model(&loader, name, model, &progress, &mut found);
    }
    progress.finish_and_clear();
    found.extend(listing.problems.iter().map(|problem| Found {
        model: problem.what.clone(),
        version: None,
        loaded: None,
        problem: Some(problem.reason.clone()),
    }));
    let variables = |name: &str| std::env::var(name).ok();
    found.extend(config.notify.problems(variables).into_iter().map(|problem| Found {
        model: "[notify]".to_owned(),
        version: None,
        loaded: None,
        problem: Some(problem),
    }));
    for (name, _) in config.models.iter().filter(|(_, policy)| policy.required) {
        if !listing.models.contains_key(name) {
            let text = "it is required and not in the repository; the server would never be ready";
            found.push(problem(name, None, text.to_owned()));
        }
    }
    let problems = found.iter().filter(|found| found.problem.is_some()).count();
    if json {
        print_json(&found)?;
    } else {
        report(&found, &loader, problems)?;
    }
    Ok(if problems == 0 { Outcome::Done } else { Outcome::No })
}

/// Shown on terminals only.
fn bar(count: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    ProgressBar::new(count).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn check_model(
    loader: &Loader,
    name: &ModelName,
    model: &ListedModel,
    progress: &ProgressBar,
    found: &mut Vec<Found>,
) {
    let description = match &model.description {
        Ok(description) => Arc::new(description.clone()),
        Err(error) => return found.push(problem(name, None, error.chain())),
    };
    for (id, listed) in &model.versions {
        progress.set_message(format!("{name} {id}"));
        found.push(
            match loader.load(
                name,
                *id,
                &Origin::Repository(listed.clone(), Arc::clone(&description)),
                None,
                None,
            ) {
                Ok(version) => Found {
                    model: name.to_string(),
                    version: Some(id.number()),
                    loaded: Some(LoadedReport::of(&version)),
                    problem: None,
                },
                Err(error) => problem(name, Some(*id), error.to_string()),
            },
        );
        progress.inc(1);
    }
}

fn problem(name: &ModelName, version: Option<VersionId>, problem: String) -> Found {
    let version = version.map(VersionId::number);
    Found { model: name.to_string(), version, loaded: None, problem: Some(problem) }
}

fn report(found: &[Found], loader: &Loader, problems: usize) -> anyhow::Result<Outcome> {
    let engines =
        loader.engines.available().into_iter().map(|(name, version)| format!("{name} {version}"));
    let mut text = format!("engines: {}\n", engines.collect::<Vec<_>>().join(", "));
    if let Some(notice) = loader.engines.notice() {
        text += &format!("note: {notice}\n");
    }
    if found.is_empty() {
        return print(&(text + "no models; put one at <repository>/<model>/1/model.onnx\n"));
    }
    let mut rows = table(["model", "version", "engine", "size", "load", "a run"]);
    let (mut signatures, mut said) = (plain(), plain());
    for found in found {
        let version = found.version.map(|version| format!(" {version}")).unwrap_or_default();
        let name = format!("{}{version}", found.model);
        if let Some(loaded) = &found.loaded {
            rows.add_row(row(found, loaded));
            let signature =
                format!("{} -> {}", loaded.inputs.join(", "), loaded.outputs.join(", "));
            signatures.add_row([&name, &signature]);
        }
        let notes = found.loaded.iter().flat_map(|loaded| &loaded.notes);
        for note in notes {
            said.add_row([&name, &format!("note: {note}")]);
        }
        if let Some(problem) = &found.problem {
            said.add_row([&name, problem]);
        }
    }
    let verdict = match problems {
        0 => "all of it can be served".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    for part in [rows, signatures, said].iter().filter(|part| !part.is_empty()) {
        text += &(tables::text(part) + "\n");
    }
    print(&format!("{text}{verdict}\n"))
}

fn row(found: &Found, loaded: &LoadedReport) -> Vec<String> {
    vec![
        found.model.clone(),
        found.version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
        loaded.engine.clone(),
        size(loaded.size_bytes),
        format!("{:.1} ms", loaded.load_ms),
        loaded.run_us.map_or_else(|| "-".to_owned(), microseconds),
    ]
}
