//! `tidegate traffic`: how a model's requests are split between versions.

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::{Value, json};

use crate::rollout::TrafficReport;

use super::{
    Outcome, client,
    commands::{TrafficSet, Why},
    print,
    tables::table,
};

/// `tidegate traffic show`.
pub(super) fn show(admin: &str, model: &str, json: bool) -> anyhow::Result<Outcome> {
    tell(client::admin(&Method::GET, admin, &path(model), Vec::new())?, json)
}

/// `tidegate traffic set`.
pub(super) fn set(set: &TrafficSet, json: bool) -> anyhow::Result<Outcome> {
    let mut body = said(&set.why);
    if !set.arms.is_empty() {
        body["arms"] = arms(&set.arms)?;
    }
    if let Some(by) = &set.sticky {
        body["sticky"] = sticky(by)?;
    }
    if let Some(version) = &set.shadow {
        body["shadow"] = shadow(version)?;
    }
    if set.consent.signature_may_change {
        body["signature_may_change"] = true.into();
    }
    let body = serde_json::to_vec(&body)?;
    tell(client::admin(&Method::PUT, &set.server.admin, &path(&set.model), body)?, json)
}

/// `tidegate traffic reset`.
pub(super) fn reset(admin: &str, model: &str, why: &Why, json: bool) -> anyhow::Result<Outcome> {
    let body = serde_json::to_vec(&said(why))?;
    tell(client::admin(&Method::DELETE, admin, &path(model), body)?, json)
}

fn path(model: &str) -> String {
    format!("/api/v1/models/{model}/traffic")
}

/// A body with who asks and why.
pub(super) fn said(why: &Why) -> Value {
    let mut body = json!({});
    for (field, value) in [("actor", why.who()), ("reason", why.reason.clone())] {
        if let Some(value) = value {
            body[field] = value.into();
        }
    }
    body
}

/// Reads `baseline=3 canary=4:10%`: the baseline has the rest if no share is given.
fn arms(said: &[String]) -> anyhow::Result<Value> {
    let mut arms = Vec::new();
    let (mut others, mut open) = (0.0, None);
    for arm in said {
        let Some((name, rest)) = arm.split_once('=') else {
            bail!("`{arm}` is no arm; name its version, such as baseline=3 or canary=4:10%");
        };
        let (version, weight) = share_of(rest)?;
        match weight {
            Some(weight) => others += weight,
            None if name == "baseline" && open.is_none() => open = Some(arms.len()),
            None => {
                bail!("arm `{arm}` has no share; only the baseline takes the rest: {arm}:10%")
            }
        }
        arms.push(json!({"name": name, "version": version, "weight": weight}));
    }
    if let Some(open) = open {
        if others > 1.0 {
            bail!("the shares sum to {others}, which leave nothing for the baseline");
        }
        arms[open]["weight"] = (1.0 - others).into();
    }
    Ok(arms.into())
}

/// Reads `VERSION` or `VERSION:SHARE`.
fn share_of(text: &str) -> anyhow::Result<(&str, Option<f64>)> {
    match text.rsplit_once(':') {
        Some((version, weight)) => Ok((version, Some(share(weight)?))),
        None => Ok((text, None)),
    }
}

/// Reads a share, such as `0.1` or `10%`.
fn share(text: &str) -> anyhow::Result<f64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    match share {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => bail!("`{text}` is no share; use a number from 0 to 1, or a percentage such as 10%"),
    }
}

/// Reads `header:NAME` and the like.
fn sticky(text: &str) -> anyhow::Result<Value> {
    match text.split_once(':') {
        Some((by @ ("header" | "cookie" | "parameter"), name)) if !name.is_empty() => {
            Ok(json!({"by": by, "name": name}))
        }
        None if matches!(text, "request_id" | "none") => Ok(json!({"by": text})),
        _ => bail!(
            "`{text}` keeps nobody; use header:NAME, cookie:NAME, parameter:NAME, request_id or none"
        ),
    }
}

/// Reads `VERSION:SHARE` or `none`.
fn shadow(text: &str) -> anyhow::Result<Value> {
    if text == "none" {
        return Ok(json!([]));
    }
    let (version, share) = share_of(text)?;
    Ok(json!([{"version": version, "share": share.unwrap_or(1.0)}]))
}

/// Shows a split.
fn tell(body: String, json: bool) -> anyhow::Result<Outcome> {
    if json {
        return print(&(body + "\n"));
    }
    let report: TrafficReport =
        serde_json::from_str(&body).context("the server's answer is not understood")?;
    let source = match (report.source.as_str(), &report.rollout) {
        (_, Some(rollout)) => format!("set by rollout {rollout}"),
        ("operator", None) => "set by an operator".to_owned(),
        _ => "not split".to_owned(),
    };
    let sticky = match (report.sticky.by.as_str(), &report.sticky.name) {
        ("none", _) => "no request; each is assigned by itself".to_owned(),
        ("request_id", _) => "requests with the same id".to_owned(),
        (by, Some(name)) => format!("requests with the same {by} `{name}`"),
        (by, None) => format!("requests with the same {by}"),
    };
    let mut table = table(["arm", "version", "share"]);
    for arm in &report.arms {
        table.add_row([arm.name.clone(), arm.version.clone(), percent(arm.weight)]);
    }
    for shadow in &report.shadow {
        let mut share = format!("{} copied", percent(shadow.share));
        if let Some(rate) = shadow.rate {
            let [rate, lower, upper] = [rate, shadow.rate_lower, shadow.rate_upper].map(percent);
            share += &format!("; {rate} disagree ({lower} to {upper})");
        }
        if shadow.dropped > 0 {
            share += &format!("; {} dropped", shadow.dropped);
        }
        table.add_row(["(shadow)".to_owned(), shadow.version.clone(), share]);
    }
    let (model, revision) = (&report.model, report.revision);
    print(&format!("{model}: {source}, revision {revision}\n{table}\nkeeps together: {sticky}\n"))
}

/// A share for people.
pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
