//! `tidegate drift`: how far live features and outputs are from their reference, for people and scripts.
//!
//! Exit codes: 0 inconspicuous, learning or not watched, 1 drift, 2 as everywhere, and also for a model that the server
//! does not know, so that a script never takes a misspelled name for drift.
//!
//! Not here: the verdict and the distances (`drift`), the model's own quality (`quality`).

mod exact;
mod plot;
mod show;
mod status;
mod watch;
mod words;

use anyhow::{Context as _, anyhow};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    admin::ModelList,
    app::SystemClock,
    drift::{DriftReport, Status},
    monitor::Clock as _,
};

use super::{
    Outcome, client,
    commands::{DriftCommand, DriftOf},
    print, print_json,
    rollout::segment,
    terminal::{self, Line},
};

/// Features that are shown unless all are asked for.
const FEATURES_SHOWN: usize = 20;

/// `tidegate drift`.
pub(super) fn run(command: DriftCommand, json: bool) -> anyhow::Result<Outcome> {
    match command {
        DriftCommand::Status { model: Some(model), all, of } => one(&model, &of, all, json),
        DriftCommand::Status { model: None, of, .. } => all_models(&of, json),
        DriftCommand::Watch { model, of } => watch::run(&of.server.admin, &path(&model, &of), json),
        DriftCommand::Show { model, feature, plot, of } => {
            let body = get(&of.server.admin, &path(&model, &of))?;
            show::run(&parse(&body)?, &feature, plot.as_deref(), json)
        }
        DriftCommand::Test(test) => exact::run(&test, json),
    }
}

/// The page of one model.
fn one(model: &str, of: &DriftOf, all: bool, json: bool) -> anyhow::Result<Outcome> {
    let body = get(&of.server.admin, &path(model, of))?;
    let report: DriftReport = parse(&body)?;
    if json {
        print(&(body + "\n"))?;
    } else {
        let shown = if all { usize::MAX } else { FEATURES_SHOWN };
        draw(&status::frame(&report, SystemClock.unix(), terminal::columns(), shown))?;
    }
    Ok(verdict(is_drifting(&report)))
}

/// A line for each model.
fn all_models(of: &DriftOf, json: bool) -> anyhow::Result<Outcome> {
    let admin = &of.server.admin;
    for (flag, value) in [("version", &of.version), ("segment", &of.segment)] {
        if let Some(value) = value {
            let value = words::quoted(value);
            return Err(anyhow!(
                "`--{flag}` needs a model: tidegate drift status MODEL --{flag} {value}"
            ));
        }
    }
    let list: ModelList = parse(&get(admin, "/api/v1/models")?)?;
    let mut bodies = Vec::new();
    for model in &list.models {
        bodies.push(get(admin, &path(&model.name, of))?);
    }
    let reports = bodies.iter().map(|body| parse(body));
    let reports = reports.collect::<anyhow::Result<Vec<DriftReport>>>()?;
    if json {
        print_json(&json!({"models": reports}))?;
    } else if reports.is_empty() {
        print("no models; put one at <repository>/<model>/1/model.onnx\n")?;
    } else {
        draw(&status::overview(&reports, terminal::columns()))?;
    }
    Ok(verdict(reports.iter().any(is_drifting)))
}

/// True if all rows drift, or those of a segment.
fn is_drifting(report: &DriftReport) -> bool {
    let segments = report.segments.iter().map(|segment| segment.status);
    segments.chain([report.status]).any(|status| status == Status::Drifting)
}

fn verdict(is_drift: bool) -> Outcome {
    if is_drift { Outcome::No } else { Outcome::Done }
}

/// Where the server has a model's drift.
fn path(model: &str, of: &DriftOf) -> String {
    let asked = [("version", &of.version), ("segment", &of.segment), ("window", &of.window)];
    let asked = asked
        .into_iter()
        .filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={}", segment(value))));
    let asked: Vec<String> = asked.collect();
    let mark = if asked.is_empty() { "" } else { "?" };
    format!("/api/v1/models/{}/drift{mark}{}", segment(model), asked.join("&"))
}

fn get(admin: &str, path: &str) -> anyhow::Result<String> {
    client::admin(&Method::GET, admin, path, Vec::new()).map_err(refused)
}

/// A refusal as an error of the command, which exits with 2: 1 means drift here.
fn refused(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<client::Refused>() {
        Ok(refused) if refused.status == StatusCode::NOT_FOUND => {
            anyhow!("{refused}; `tidegate models list` shows models and versions")
        }
        Ok(refused) => anyhow!("{refused}"),
        Err(error) => error,
    }
}

fn parse<T: DeserializeOwned>(body: &str) -> anyhow::Result<T> {
    serde_json::from_str(body).context("the server's answer is not understood")
}

/// Writes lines, in colour where the output takes it.
fn draw(lines: &[Line]) -> anyhow::Result<Outcome> {
    let columns = terminal::columns();
    print(&lines.iter().map(|line| line.fit(columns, true) + "\n").collect::<String>())
}

#[cfg(test)]
mod tests;
