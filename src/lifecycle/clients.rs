//! One rule for whatever changes which version answers: it must suit the clients of the one that answers now.
//!
//! A new version, an upload, a load, an unpin, a rollback, an alias that moves, a version that is removed: each is held
//! against what its clients rely on, by [`misfit`]. The ways round it are explicit: `signature_may_change` of the
//! model, or of the one operation. Two more are not refused:
//! - A plain rollback, to a version that served before: in an emergency the way back must be open. The log names what
//!   changes for clients.
//! - What lies there at the start: nobody relies on this process yet.
//!
//! Not here: what two signatures have in common (`model`).

use crate::{
    model::{Alias, ModelName, Signature, VersionId},
    registry::{Action, TrafficChange},
    serve::Version,
};

use super::{Policy, keeper::Keeper, kept::Kept, plan::Plan};

/// A version and what its clients may send.
type Side<'a> = (VersionId, &'a Signature);

/// Why the clients of one version could not use another in its place, and what to do; `way` is the command that lets it
/// in all the same.
fn misfit(model: &ModelName, before: Side<'_>, after: Side<'_>, way: &str) -> Option<String> {
    let broken = after.1.breaks_clients_of(before.1)?;
    Some(format!(
        "its signature does not fit the clients of version {}, which serves: {broken}; export it with the same inputs and \
         outputs, or, once all clients are ready for it, let it in by {way}signature_may_change = true in [models.{model}]",
        before.0
    ))
}

/// Reason that clients of what serves could not use a version in its place, if that matters; `by_load` where a load can
/// let it in.
pub(super) fn breaks_clients(
    kept: &Kept,
    default: Option<VersionId>,
    version: &Version,
    policy: Policy,
    by_load: bool,
) -> Option<String> {
    if policy.signature_may_change || default != Some(version.id()) {
        return None;
    }
    let model = &version.parts().model;
    let way = if by_load {
        format!("`tidegate models load {model} --signature-may-change`, or by ")
    } else {
        String::new()
    };
    misfit(model, kept.relied_on()?, (version.id(), version.signature()), &way)
}

impl Keeper {
    /// Why clients could not use what answers once this is decided: the version, and what to do.
    pub(super) fn decision_breaks(
        &self,
        model: &ModelName,
        action: &Action,
    ) -> Option<(VersionId, String)> {
        let (policy, decided) = (self.policy(model), self.decisions(model));
        let kept = self.state.models.get(model)?;
        if policy.signature_may_change {
            return None;
        }
        let of = |id: VersionId| Some((id, kept.signature(id)?));
        let (before, after) = match action {
            Action::SetAlias { alias, version } => {
                let stable = || kept.relied_on().filter(|_| alias == Alias::STABLE);
                let before = decided.aliases.get(alias.as_str()).and_then(|id| of(*id));
                (before.or_else(stable)?, of(VersionId::new(*version))?)
            }
            Action::RemoveAlias { alias } if alias == Alias::STABLE => {
                (of(*decided.aliases.get(alias.as_str())?)?, kept.relied_on()?)
            }
            Action::RemoveAlias { .. } => return None,
            Action::Split { traffic: Some(traffic) }
            | Action::Rollout { traffic: TrafficChange::Set(traffic), .. } => {
                let before = kept.relied_on()?;
                let unfit = |after: &Side<'_>| misfit(model, before, *after, "").is_some();
                (before, traffic.versions().filter_map(of).find(unfit)?)
            }
            _ => {
                let default = kept.plan_for(decided.after(action), policy)?.default?;
                (kept.relied_on()?, of(default)?)
            }
        };
        let way = "the same operation with `--signature-may-change`, or by ";
        Some((after.0, misfit(model, before, after, way)?))
    }
}

impl Kept {
    /// Keeps the version that answers where a plan would have another one answer that its clients cannot use, and that
    /// nobody decided for; gives why.
    pub(super) fn withhold(
        &self,
        model: &ModelName,
        plan: &mut Plan,
        pinned: Option<VersionId>,
    ) -> Option<String> {
        let default =
            plan.default.filter(|id| pinned != Some(*id) && self.accepted != Some(*id))?;
        let (before, answering) = self.answering()?;
        let after = self.versions.get(&default)?.version.as_ref()?;
        let way =
            format!("`tidegate rollback {model} --to {default} --signature-may-change`, or by ");
        let sides = ((before, answering.signature()), (default, after.signature()));
        let reason = misfit(model, sides.0, sides.1, &way)?;
        plan.default = Some(before);
        plan.wanted.insert(before);
        Some(format!("version {default} does not take over: {reason}"))
    }
}
