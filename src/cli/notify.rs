//! `tidegate notify`: webhooks as they stand, and tests of them; `tidegate retrain`.

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};

use crate::{
    admin::TestList,
    model::ModelName,
    notify::{Report, WebhookReport},
};

use super::{
    Outcome, client,
    commands::{NotifyCommand, Why},
    print, print_json,
    tables::table,
};

pub(super) fn run(command: NotifyCommand, json: bool) -> anyhow::Result<Outcome> {
    match command {
        NotifyCommand::List { limit, server } => list(&server.admin, limit, json),
        NotifyCommand::Test { webhook, server } => test(&server.admin, webhook.as_deref(), json),
    }
}

fn list(admin: &str, limit: u32, json: bool) -> anyhow::Result<Outcome> {
    let path = format!("/api/v1/notifications?limit={limit}");
    let answer = client::admin(&Method::GET, admin, &path, Vec::new())?;
    let report: Report =
        serde_json::from_str(&answer).context("the server's answer is not understood")?;
    if json {
        return print_json(&report);
    }
    if report.webhooks.is_empty() {
        return print("no webhooks; add one as [[notify.webhook]] to the configuration\n");
    }
    let mut webhooks =
        table(["webhook", "host", "events", "signed", "circuit", "waiting", "state"]);
    for hook in &report.webhooks {
        webhooks.add_row(vec![
            hook.name.clone(),
            hook.host.clone(),
            hook.events.join(", "),
            if hook.signed { "yes" } else { "no" }.to_owned(),
            hook.circuit.clone(),
            hook.waiting.to_string(),
            state(hook),
        ]);
    }
    let mut text = format!("{webhooks}\n");
    if !report.notifications.is_empty() {
        let mut last =
            table(["at", "kind", "model", "version", "webhook", "outcome", "attempts", "detail"]);
        for one in &report.notifications {
            last.add_row(vec![
                one.at.to_string(),
                one.kind.clone(),
                one.model.clone(),
                one.version.clone().unwrap_or_else(|| "-".to_owned()),
                one.webhook.clone(),
                one.outcome.clone(),
                one.attempts.to_string(),
                one.detail.clone(),
            ]);
        }
        text += &format!("{last}\n");
    }
    if !report.durable {
        anstream::eprintln!(
            "notice: the server keeps no state; what waits is lost if it stops (set state.path)"
        );
    }
    print(&text)
}

/// The last failure, or the last success.
fn state(hook: &WebhookReport) -> String {
    match (&hook.last_error, hook.delivered_at) {
        (Some(error), _) => {
            let next = hook.next_at.map(|at| format!("; next attempt at {at}"));
            format!("{error}{}", next.unwrap_or_default())
        }
        (None, Some(at)) => format!("delivered at {at}"),
        (None, None) => "nothing sent yet".to_owned(),
    }
}

fn test(admin: &str, webhook: Option<&str>, json: bool) -> anyhow::Result<Outcome> {
    let body = serde_json::to_vec(&json!({ "webhook": webhook }))?;
    let answer = client::admin(&Method::POST, admin, "/api/v1/notifications/test", body)?;
    let list: TestList =
        serde_json::from_str(&answer).context("the server's answer is not understood")?;
    let all = list.results.iter().all(|result| result.delivered);
    if json {
        print_json(&list)?;
    } else {
        let mut text = String::new();
        for result in &list.results {
            text += &match (result.delivered, result.status) {
                (true, Some(status)) => format!("{}: delivered ({status})\n", result.webhook),
                _ => format!("{}: not delivered: {}\n", result.webhook, result.detail),
            };
        }
        print(&text)?;
    }
    Ok(if all { Outcome::Done } else { Outcome::No })
}

pub(super) fn retrain(
    admin: &str,
    model: &ModelName,
    why: &Why,
    json: bool,
) -> anyhow::Result<Outcome> {
    let said = json!({ "actor": why.who(), "reason": why.reason });
    let path = format!("/api/v1/models/{model}/retrain");
    let answer = client::admin(&Method::POST, admin, &path, serde_json::to_vec(&said)?)?;
    let object: Value =
        serde_json::from_str(&answer).context("the server's answer is not understood")?;
    if json {
        return print_json(&object);
    }
    let id = object["id"].as_str().unwrap_or_default();
    print(&format!("{model} is to be trained anew: retrain.requested {id}\n"))
}
