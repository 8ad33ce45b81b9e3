//! `/api/v1/models/{model}/traffic`: how a model's requests are split between its versions.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::Value;

use crate::{
    lifecycle::{ArmChange, Operation, OperationError, SplitChange},
    model::{Alias, ArmName, ModelName, SLOTS, ShadowSpec, Split, StickyBy, VersionId, slots_of},
    monitor::EventKind,
    registry::Cause,
    rollout::TrafficReport,
    serve::Model,
};

use super::{
    Admin, Problem,
    operations::{cause_of, refused_operation},
    request::{Errors, Fields, slots},
};

pub(super) fn router() -> Router<Admin> {
    Router::new().route("/api/v1/models/{model}/traffic", get(show).put(change).delete(reset))
}

async fn show(State(admin): State<Admin>, Path(model): Path<String>) -> Response {
    match report(&admin, &model) {
        Some(report) => answer(&report),
        None => Problem::unknown_model().into_response(),
    }
}

async fn reset(
    State(admin): State<Admin>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut errors = Errors::default();
    let body =
        if body.is_empty() { Ok(Value::Object(serde_json::Map::new())) } else { parse(&body) };
    let body = match body {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let fields = Fields::of(&body, "", &["actor", "reason"], &mut errors);
    let cause = fields.map_or_else(Cause::default, |fields| cause_of(&fields, &mut errors));
    let change = SplitChange { reset: true, ..SplitChange::default() };
    operate(&admin, &model, (change, false), &headers, cause, errors).await
}

async fn change(
    State(admin): State<Admin>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = match parse(&body) {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let table = admin.serving.table();
    let Some(known) = table.model(&model) else { return Problem::unknown_model().into_response() };
    let mut errors = Errors::default();
    let wanted = ["sticky", "arms", "shadow", "actor", "reason", "signature_may_change"];
    let (mut change, mut cause) = (SplitChange::default(), Cause::default());
    let mut may_change = false;
    if let Some(fields) = Fields::of(&body, "", &wanted, &mut errors) {
        cause = cause_of(&fields, &mut errors);
        change.sticky = sticky(&fields, &mut errors);
        change.arms = arms(known, &fields, &mut errors);
        change.shadow = shadow(known, &fields, &mut errors);
        may_change = fields.truth("signature_may_change", &mut errors).unwrap_or(false);
        let none = change.sticky.is_none() && change.arms.is_none() && change.shadow.is_none();
        if none && errors.0.is_empty() {
            errors.add("nothing is to be changed: give `arms`, `sticky` or `shadow`");
        }
    }
    drop(table);
    operate(&admin, &model, (change, may_change), &headers, cause, errors).await
}

fn sticky(fields: &Fields<'_>, errors: &mut Errors) -> Option<StickyBy> {
    let value = fields.get("sticky")?;
    let fields = Fields::of(value, "sticky.", &["by", "name"], errors)?;
    let name = fields.text("name", errors);
    let by = fields.text("by", errors);
    let mut named = |what: &str, valid: bool| {
        let name = name.filter(|name| !name.is_empty() && name.len() <= 256 && valid);
        if name.is_none() {
            errors.add(format!("`sticky.name` must be the {what}'s name, of 256 bytes at most"));
        }
        name.map(str::to_owned)
    };
    let token = name.is_some_and(|name| HeaderName::try_from(name).is_ok());
    match by {
        Some("header") if name.is_none() => Some(StickyBy::default()),
        Some("header") => {
            named("header", token).map(|name| StickyBy::Header(name.to_ascii_lowercase()))
        }
        Some("cookie") => named("cookie", token).map(StickyBy::Cookie),
        Some("parameter") => {
            // Parameters hold no objects that could be pointed into.
            let flat = name.is_some_and(|name| !name.trim_start_matches('/').contains('/'));
            named("parameter (without a second `/`: parameters hold no objects)", flat)
                .map(StickyBy::Parameter)
        }
        Some("request_id") => Some(StickyBy::RequestId),
        Some("none") => Some(StickyBy::None),
        _ => {
            errors.add("`sticky.by` must be header, cookie, parameter, request_id or none");
            None
        }
    }
}

/// A version by its number or alias.
pub(super) fn version_of(
    model: &Model,
    fields: &Fields<'_>,
    field: &str,
    errors: &mut Errors,
) -> Option<VersionId> {
    let Some(named) = fields.version(field, errors) else {
        if fields.get(field).is_none() {
            errors.add(format!("{} is missing: a version's number or alias", fields.name(field)));
        }
        return None;
    };
    let found = named_version(model, &named);
    if found.is_none() {
        let named: String = named.chars().take(64).flat_map(char::escape_debug).collect();
        let field = fields.name(field);
        errors.add(format!("{field} is `{named}`, neither a number nor an alias of the model"));
    }
    found
}

/// A version by its number or alias, as text.
pub(super) fn named_version(model: &Model, named: &str) -> Option<VersionId> {
    let aliased = || model.aliases.get(named).copied();
    let stable = || model.standing().filter(|_| named == Alias::STABLE).map(|entry| entry.id);
    VersionId::parse(named).or_else(aliased).or_else(stable)
}

fn arms(model: &Model, fields: &Fields<'_>, errors: &mut Errors) -> Option<Vec<ArmChange>> {
    let list = fields.list("arms", errors)?;
    if list.is_empty() || list.len() > Split::ARMS_MAX {
        errors.add(format!("`arms` must be 1 to {} arms", Split::ARMS_MAX));
        return None;
    }
    let mut arms: Vec<(ArmName, VersionId, f64)> = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let place = format!("arms[{index}].");
        let Some(fields) = Fields::of(value, &place, &["name", "version", "weight"], errors) else {
            continue;
        };
        let name = match fields.text("name", errors).map(ArmName::parse) {
            Some(Ok(ArmName::DIRECT)) => {
                errors.add("`direct` is no arm's name: it stands for requests that name a version");
                None
            }
            Some(Ok(name)) => Some(name),
            Some(Err(error)) => {
                errors.add(error.to_string());
                None
            }
            None => {
                errors.add(format!("{} is missing", fields.name("name")));
                None
            }
        };
        let weight = fields.share("weight", errors);
        if weight.is_none() && fields.get("weight").is_none() {
            errors.add(format!("{} is missing", fields.name("weight")));
        }
        let version = version_of(model, &fields, "version", errors);
        if let (Some(name), Some(version), Some(weight)) = (name, version, weight) {
            if arms.iter().any(|arm| arm.0 == name) {
                errors.add(format!("arm `{name}` is there twice"));
            }
            arms.push((name, version, weight));
        }
    }
    if arms.len() != list.len() {
        return None;
    }
    let sum: f64 = arms.iter().map(|arm| arm.2).sum();
    if (sum - 1.0).abs() > 1e-6 {
        errors.add(format!("the weights of `arms` must sum to 1, not {sum}"));
    }
    let Some(baseline) = arms.iter().position(|arm| arm.0 == ArmName::BASELINE) else {
        errors.add("one of `arms` must be named `baseline`: it answers where another arm cannot");
        return None;
    };
    arms[..=baseline].rotate_right(1);
    let weights: Vec<_> = arms.iter().map(|arm| arm.2).collect();
    let arm = |((name, version, _), slots): (&(ArmName, VersionId, f64), u32)| ArmChange {
        name: *name,
        version: *version,
        slots,
    };
    Some(arms.iter().zip(slots(&weights)).map(arm).collect())
}

fn shadow(model: &Model, fields: &Fields<'_>, errors: &mut Errors) -> Option<Vec<ShadowSpec>> {
    let list = fields.list("shadow", errors)?;
    if list.len() > SHADOWS_MAX {
        errors.add(format!("`shadow` may name {SHADOWS_MAX} version at most"));
    }
    let mut shadows = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let place = format!("shadow[{index}].");
        let Some(fields) = Fields::of(value, &place, &["version", "share"], errors) else {
            continue;
        };
        let share = fields.share("share", errors).unwrap_or(1.0);
        if let Some(version) = version_of(model, &fields, "version", errors) {
            shadows.push(ShadowSpec { version: version.number(), slots: slots_of(share) });
        }
    }
    Some(shadows)
}

/// Versions that get copies at the same time.
const SHADOWS_MAX: usize = 1;

/// Carries out a change, and answers with the split that is in effect.
async fn operate(
    admin: &Admin,
    model: &str,
    (mut change, signature_may_change): (SplitChange, bool),
    headers: &HeaderMap,
    cause: Cause,
    mut errors: Errors,
) -> Response {
    let name = match ModelName::parse(model) {
        Ok(name) if admin.serving.table().model(model).is_some() => name,
        _ => return Problem::unknown_model().into_response(),
    };
    change.if_revision = if_match(headers, &mut errors);
    if !errors.0.is_empty() {
        return Problem::of(errors).into_response();
    }
    change.salt = admin.salt();
    let weighed = match while_in_rollout(admin, model, &mut change).await {
        Ok(weighed) => weighed,
        Err(problem) => return problem.into_response(),
    };
    let operation = Operation::Split(Box::new(change));
    let told = name.clone();
    match admin.lifecycle.operate(name, operation, signature_may_change, cause).await {
        Ok(_) => match report(admin, model) {
            Some(report) => {
                if let Some((id, weight)) = weighed {
                    // A driver that is gone has nothing to be told.
                    let _ = admin.rollouts.weighed(id, weight);
                }
                let (events, now) = (admin.monitor.events(), admin.monitor.clock().unix());
                let object = serde_json::to_value(&report).ok();
                let (kind, about) = (EventKind::TrafficChanged, (&told, None));
                events.tell_about(now, about, kind, "by an operator", object);
                answer(&report)
            }
            None => Problem::unknown_model().into_response(),
        },
        Err(error) => {
            let current = report(admin, model).and_then(|report| serde_json::to_value(report).ok());
            if let OperationError::Failed { .. } = error {
                let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
                return Problem { current, ..problem }.into_response();
            }
            refused_operation(&error, current)
        }
    }
}

/// Lets a split that a rollout decided be changed if that is over, or paused, and then only weights and shadow; gives
/// the rollout that must hear of the candidate's new weight.
async fn while_in_rollout(
    admin: &Admin,
    model: &str,
    change: &mut SplitChange,
) -> Result<Option<(String, f64)>, Problem> {
    let report = report(admin, model);
    let Some((current, id)) = report.and_then(|report| Some((report.clone(), report.rollout?)))
    else {
        return Ok(None);
    };
    let Ok(rollout) = admin.rollouts.show(&id).await else { return Ok(None) };
    if rollout.state.is_over() {
        (change.overrides, change.forgets_rollout) = (true, true);
        return Ok(None);
    }
    // What was looked at is what is changed.
    change.if_revision.get_or_insert(current.revision);
    let conflict = |detail: String| Problem {
        current: serde_json::to_value(&current).ok(),
        ..Problem::new(StatusCode::CONFLICT, detail)
    };
    if rollout.state != crate::rollout::State::Paused {
        return Err(conflict(format!(
            "rollout {id} decides about the traffic; pause it first (`tidegate rollout pause {id}`), or abort it"
        )));
    }
    let same = |arms: &Vec<ArmChange>| {
        let named = |arm: &ArmChange| (arm.name.to_string(), arm.version.to_string());
        let current = current.arms.iter().map(|arm| (arm.name.clone(), arm.version.clone()));
        arms.iter().map(named).eq(current)
    };
    if change.reset || change.sticky.is_some() || !change.arms.as_ref().is_none_or(same) {
        return Err(conflict(format!(
            "while rollout {id} is paused, only weights of its arms and the shadow can be changed"
        )));
    }
    let weight = change.arms.as_ref().and_then(|arms| arms.get(1)).map(|arm| arm.slots);
    if weight.is_some_and(|slots| slots > 0) && rollout.weight <= 0.0 {
        return Err(conflict(format!(
            "rollout {id} has not come to its first step; resume it first"
        )));
    }
    if weight.is_some_and(|slots| slots > SLOTS / 2) {
        return Err(conflict(format!(
            "the canary of rollout {id} may have half of the traffic at most"
        )));
    }
    change.overrides = true;
    let canary = change.arms.as_ref().and_then(|arms| arms.get(1));
    Ok(canary.map(|arm| (id, f64::from(arm.slots) / f64::from(SLOTS))))
}

/// The revision that a change is meant for.
pub(super) fn if_match(headers: &HeaderMap, errors: &mut Errors) -> Option<u64> {
    let value = headers.get(header::IF_MATCH)?;
    if value == "*" {
        return None;
    }
    let text = value.to_str().ok().map(|text| text.trim().trim_matches('"'));
    let revision = text.and_then(|text| text.parse().ok());
    if revision.is_none() {
        errors.add("If-Match must be a revision in quotes, as ETag gives it");
    }
    revision
}

/// A body as JSON.
pub(super) fn parse(body: &Bytes) -> Result<Value, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
    })
}

fn report(admin: &Admin, model: &str) -> Option<TrafficReport> {
    admin.serving.table().model(model).map(TrafficReport::of)
}

fn answer(report: &TrafficReport) -> Response {
    let mut response = Json(report).into_response();
    response.headers_mut().insert(header::ETAG, etag(report.revision));
    response
}

/// A revision as a header.
pub(super) fn etag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).expect("a quoted number is a header's value")
}
