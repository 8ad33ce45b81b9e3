//! `tidegate validate`: a version against labelled data, in this process, without a server.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context as _, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    app::{self, SystemClock},
    config::Config,
    dataset::Dataset,
    lifecycle::{Loader, Origin},
    model::{ModelName, VersionId},
    monitor::{Clock as _, Monitor},
    registry::{Decisions, Registry},
    rollout::subject,
    serve::Version,
    source::{Folder, ListedModel, Listing},
    state::{self, Filter},
    validation::{
        self, Latency, MetricReport, Report, Request, Subject, Surroundings, Task, ValidationError,
    },
};

use super::{
    Outcome,
    commands::{TaskName, ValidateArguments},
    models::microseconds,
    print, print_json,
    tables::table,
};

pub(super) fn run(arguments: &ValidateArguments, json: bool) -> anyhow::Result<Outcome> {
    let config = crate::config::load(arguments.sources())?;
    let data = Dataset::open(&arguments.data, config.validation.limits())?;
    let listing = Folder::new(config.source.clone())
        .list()
        .map_err(|error| anyhow!("{}; name the folder with --repository", error.chain()))?;
    let name = &arguments.model;
    let listed = of_name(&listing, name)?;
    let decisions = decisions(&config.state.path, name)?;
    let candidate = named(listed, &decisions, &arguments.version)?;
    let other = match &arguments.against {
        Some(version) => Some(named(listed, &decisions, version)?),
        None if arguments.compare => Some(serving(listed, &decisions, candidate)?),
        None => None,
    };
    if other == Some(candidate) {
        bail!("version {candidate} would be compared with itself; name another with --against");
    }
    let monitor = Arc::new(Monitor::new(1, Arc::new(SystemClock)));
    let loader = app::loader(&config, 1, monitor)?;
    let mut versions = Vec::new();
    for id in [Some(candidate), other].into_iter().flatten() {
        match load(&loader, name, listed, id) {
            Ok(version) => versions.push(version),
            Err(error) => {
                anstream::eprintln!("tidegate: version {id} of {name} cannot be loaded: {error:#}");
                return Ok(Outcome::No);
            }
        }
    }
    let request = request(arguments, &config);
    let mut subjects =
        versions.iter().map(|version| subject(version, version.rows_max(&config.serve)));
    let candidate = subjects.next().context("the candidate is loaded first")?;
    let report = match judged(&request, data, candidate, subjects.next()) {
        Err(error) if error.is_the_versions_fault() => {
            anstream::eprintln!("tidegate: {error}");
            return Ok(Outcome::No);
        }
        report => report?,
    };
    if let Some(path) = &arguments.report {
        fs::write(path, report.markdown())
            .with_context(|| format!("the report cannot be written to `{}`", path.display()))?;
    }
    if json {
        print_json(&report)?;
    } else {
        print(&shown(&report))?;
    }
    Ok(if report.passed { Outcome::Done } else { Outcome::No })
}

/// The model of a name.
pub(super) fn of_name<'l>(
    listing: &'l Listing,
    name: &ModelName,
) -> anyhow::Result<&'l ListedModel> {
    listing.models.get(name).ok_or_else(|| {
        let known: Vec<_> = listing.models.keys().map(|known| format!("`{known}`")).collect();
        anyhow!("the repository has no model `{name}`, only {}", known.join(", "))
    })
}

fn judged(
    request: &Request,
    data: Dataset,
    candidate: Subject<'_>,
    other: Option<Subject<'_>>,
) -> Result<Report, ValidationError> {
    let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} rows {msg} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    // Shown on terminals only.
    let bar = ProgressBar::new(0).with_style(style);
    let mut show = |done: u64, total: Option<u64>| {
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    };
    let around = Surroundings {
        clock: &|| SystemClock.now(),
        cancel: &AtomicBool::new(false),
        progress: &mut show,
    };
    let report = validation::validate(request, data, candidate, other, around);
    bar.finish_and_clear();
    report
}

fn request(arguments: &ValidateArguments, config: &Config) -> Request {
    Request {
        labels: arguments.labels.clone(),
        label: arguments.label.clone(),
        ignored: arguments.ignore.clone(),
        classes: arguments.classes.clone(),
        positive: arguments.positive.clone(),
        task: arguments.task.map(|task| match task {
            TaskName::Classification => Task::Classification,
            TaskName::Regression => Task::Regression,
        }),
        output: arguments.output.clone(),
        thresholds: arguments.thresholds.clone(),
        batch_rows: usize::try_from(arguments.batch).unwrap_or(usize::MAX),
        rows_max: arguments.limit,
        alpha: arguments.alpha,
        settings: config.validation,
    }
}

/// Reads the decisions of operators, where there is a log of them; a server may be writing to it.
pub(super) fn decisions(path: &Path, model: &ModelName) -> anyhow::Result<Decisions> {
    if !path.try_exists().unwrap_or(false) {
        return Ok(Decisions::default());
    }
    let filter = Filter {
        model: Some(model.clone()),
        limit: Filter::LIMIT_MAX,
        newest: true,
        ..Filter::default()
    };
    // A folder without a log decides nothing.
    let Ok((records, _)) = state::read(path, &filter) else { return Ok(Decisions::default()) };
    Ok(Registry::read(records)?.decisions(model.as_str()).cloned().unwrap_or_default())
}

/// The version that a number, an alias or `latest` means.
pub(super) fn named(
    listed: &ListedModel,
    decisions: &Decisions,
    version: &str,
) -> anyhow::Result<VersionId> {
    let there = || {
        let there: Vec<_> = listed.versions.keys().map(ToString::to_string).collect();
        if there.is_empty() { "none".to_owned() } else { there.join(", ") }
    };
    let id = match VersionId::parse(version) {
        Some(id) => Some(id),
        None if version == "latest" => listed.versions.keys().next_back().copied(),
        None => {
            let alias = decisions.aliases.iter().find(|(alias, _)| alias.as_str() == version);
            alias.map(|(_, id)| *id)
        }
    };
    id.filter(|id| listed.versions.contains_key(id)).ok_or_else(|| {
        anyhow!("the repository has no version `{version}` of the model; it has {}", there())
    })
}

/// The version that serves: by the log of decisions, else the next lower number.
fn serving(
    listed: &ListedModel,
    decisions: &Decisions,
    candidate: VersionId,
) -> anyhow::Result<VersionId> {
    let served = decisions.pinned.or(decisions.served.keys().next_back().copied());
    let other = served.filter(|id| *id != candidate && listed.versions.contains_key(id));
    let lower = || listed.versions.range(..candidate).next_back().map(|(id, _)| *id);
    other.or_else(lower).ok_or_else(|| {
        anyhow!("there is no version that serves beside {candidate}; name one with --against")
    })
}

pub(super) fn load(
    loader: &Loader,
    name: &ModelName,
    listed: &ListedModel,
    id: VersionId,
) -> anyhow::Result<Version> {
    let description = match &listed.description {
        Ok(description) => Arc::new(description.clone()),
        Err(error) => bail!("{}", error.chain()),
    };
    let version = listed.versions.get(&id).context("it is not in the repository")?;
    Ok(loader.load(name, id, &Origin::Repository(version.clone(), description), None, None)?)
}

/// The report for people.
fn shown(report: &Report) -> String {
    let mut text = format!("{} version {}, {}\n", report.model, report.version, report.task.name());
    let data = &report.data;
    text += &format!("{} rows of {}, labels from {}\n", data.rows, data.path, data.labels);
    if data.unlabelled > 0 {
        text += &format!("{} rows without a label are not judged\n", data.unlabelled);
    }
    let mut head = vec!["metric".to_owned(), "value".to_owned(), "threshold".to_owned()];
    head.extend(report.comparison.as_ref().map(|other| format!("version {}", other.version)));
    let mut rows = table([""; 0]);
    rows.set_header(head);
    for own in &report.metrics {
        let threshold = report.thresholds.iter().find(|threshold| threshold.metric == own.metric);
        let threshold = threshold.map(|threshold| {
            let sign = if own.metric.is_error() { "<=" } else { ">=" };
            let verdict = if threshold.passed { "reached" } else { "NOT REACHED" };
            format!("{sign} {} {verdict}", threshold.limit)
        });
        let mut row = vec![own.metric.to_string(), value(own), threshold.unwrap_or_default()];
        if let Some(other) = &report.comparison {
            let theirs = other.metrics.iter().find(|theirs| theirs.metric == own.metric);
            row.push(theirs.map(value).unwrap_or_default());
        }
        rows.add_row(row);
    }
    text += &format!("{rows}\n");
    if let Some(class) = &report.positive {
        text += &format!("precision, recall and f1 are about the class {class}\n");
    } else if !report.classes.is_empty() {
        text += "precision, recall and f1 are means over the classes\n";
    }
    text += &latency("latency", &report.latency);
    if let Some(other) = &report.comparison {
        text += &latency(&format!("latency of version {}", other.version), &other.latency);
        text += &format!("{}\n", other.sentence());
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    let verdict = if report.passed { "passed".to_owned() } else { report.failures.join("; ") };
    text + &format!("{}{verdict}\n", if report.passed { "" } else { "failed: " })
}

fn value(report: &MetricReport) -> String {
    report.value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

fn latency(name: &str, latency: &Latency) -> String {
    format!(
        "{name}: runs of up to {} rows p50 {}, p99 {}; a row p50 {}, p99 {}\n",
        latency.rows_of_run,
        microseconds(latency.run_p50_us),
        microseconds(latency.run_p99_us),
        microseconds(latency.row_p50_us),
        microseconds(latency.row_p99_us)
    )
}
