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
    models::{microseconds, size, table},
    print, print_json,
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
    if model.versions.is_empty() {
        found.push(problem(
            name,
            None,
            "it has no versions; put the model into 1/model.onnx".to_owned(),
        ));
    }
    for (id, listed) in &model.versions {
        progress.set_message(format!("{name} {id}"));
        found.push(
            match loader.load(
                name,
                *id,
                &Origin::Repository(listed.clone(), Arc::clone(&description)),
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
    let mut rows = table([
        "model",
        "version",
        "engine",
        "inputs -> outputs",
        "size",
        "load",
        "warm-up",
        "problem",
    ]);
    for found in found {
        rows.add_row(row(found));
    }
    let verdict = match problems {
        0 => "all of it can be served".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    print(&format!("{text}{rows}\n{verdict}\n"))
}

fn row(found: &Found) -> Vec<String> {
    let loaded = found.loaded.as_ref();
    let shown =
        |show: &dyn Fn(&LoadedReport) -> String| loaded.map_or_else(|| "-".to_owned(), show);
    let notes = loaded.map(|loaded| loaded.notes.join("; ")).filter(|notes| !notes.is_empty());
    let run = |loaded: &LoadedReport| match loaded.run_us {
        Some(run) => format!("{} a run", microseconds(run)),
        None => "-".to_owned(),
    };
    vec![
        found.model.clone(),
        found.version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
        shown(&|loaded| loaded.engine.clone()),
        shown(&|loaded| {
            format!("{}\n-> {}", loaded.inputs.join("\n"), loaded.outputs.join("\n   "))
        }),
        shown(&|loaded| size(loaded.size_bytes)),
        shown(&|loaded| format!("{:.1} ms", loaded.load_ms)),
        shown(&run),
        found
            .problem
            .clone()
            .or_else(|| notes.map(|notes| format!("note: {notes}")))
            .unwrap_or_default(),
    ]
}
