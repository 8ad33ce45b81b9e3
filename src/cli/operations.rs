//! `tidegate rollback` and those of `tidegate models` that change something.

use anyhow::Context as _;
use http::Method;

use crate::admin::{OperationReport, OperationRequest};

use super::{Outcome, client, commands::Target, print, print_json};

pub(super) fn load(target: &Target, json: bool) -> anyhow::Result<Outcome> {
    let report = ask(&Method::POST, target, "load", None)?;
    let said = version(&report).map_or_else(String::new, |id| format!(", version {id} answers"));
    tell(&report, &format!("{} is loaded{said}", target.model), json)
}

pub(super) fn unload(target: &Target, json: bool) -> anyhow::Result<Outcome> {
    let report = ask(&Method::POST, target, "unload", None)?;
    let model = &target.model;
    tell(
        &report,
        &format!("{model} is unloaded; `tidegate models load {model}` brings it back"),
        json,
    )
}

pub(super) fn unpin(target: &Target, json: bool) -> anyhow::Result<Outcome> {
    let report = ask(&Method::POST, target, "unpin", None)?;
    let said = version(&report).map_or_else(String::new, |id| format!("; version {id} answers"));
    tell(&report, &format!("the repository decides about {} again{said}", target.model), json)
}

pub(super) fn rollback(target: &Target, to: Option<u64>, json: bool) -> anyhow::Result<Outcome> {
    let report = ask(&Method::POST, target, "rollback", to)?;
    let (model, id) = (&target.model, version(&report).unwrap_or_default());
    let text = format!(
        "{model} is back at version {id} and stays there; `tidegate models unpin {model}` lets newer ones in"
    );
    tell(&report, &text, json)
}

pub(super) fn alias(
    target: &Target,
    alias: &str,
    to: Option<u64>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let method = if to.is_some() { Method::PUT } else { Method::DELETE };
    let report = ask(&method, target, &format!("aliases/{alias}"), to)?;
    let model = &target.model;
    let text = match to {
        Some(id) => format!("{model}/{alias} is version {id}"),
        None => format!("{model}/{alias} is gone"),
    };
    tell(&report, &text, json)
}

fn version(report: &OperationReport) -> Option<u64> {
    report.version
}

fn tell(report: &OperationReport, text: &str, json: bool) -> anyhow::Result<Outcome> {
    if json {
        return print_json(report);
    }
    if !report.durable {
        anstream::eprintln!(
            "notice: the server keeps no state; a restart undoes this (set state.path)"
        );
    }
    let note = report.note.as_ref().map(|note| format!("note: {note}\n"));
    print(&format!("{text}\n{}", note.unwrap_or_default()))
}

fn ask(
    method: &Method,
    target: &Target,
    what: &str,
    version: Option<u64>,
) -> anyhow::Result<OperationReport> {
    let said = OperationRequest {
        version,
        actor: target.why.who(),
        reason: target.why.reason.clone(),
        signature_may_change: target.consent.signature_may_change,
    };
    let path = format!("/api/v1/models/{}/{what}", target.model);
    let body = serde_json::to_vec(&said)?;
    let answer = client::admin(method, &target.server.admin, &path, body)?;
    serde_json::from_str(&answer).context("the server's answer is not understood")
}
