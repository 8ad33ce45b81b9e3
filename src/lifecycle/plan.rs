//! Which versions of a model should serve: what the repository has, its policy, and what operators decided.

use std::collections::BTreeSet;

use crate::{
    model::{TrafficSpec, VersionId, VersionPolicy},
    registry::Decisions,
};

/// What happens to a version that is newer than all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnNewVersion {
    /// It is proven and then takes over.
    #[default]
    Serve,
    /// It waits until an operator loads the model.
    Hold,
    /// A rollout tries it, and lets it in if it is no worse.
    Rollout,
}

/// What should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// The versions that should be loaded.
    pub(super) wanted: BTreeSet<VersionId>,
    /// The versions that are held back until an operator lets them in.
    pub(super) held: BTreeSet<VersionId>,
    /// Why these are held back, and what lets them in.
    pub(super) held_why: &'static str,
    /// The version that answers by default.
    pub(super) default: Option<VersionId>,
    /// The version that answers as long as the default one cannot: it was tried and failed.
    pub(super) fallback: Option<VersionId>,
}

impl Plan {
    /// A plan for the versions that are there.
    pub(super) fn of(
        there: &BTreeSet<VersionId>,
        policy: &VersionPolicy,
        decisions: &Decisions,
        on_new: OnNewVersion,
    ) -> Self {
        if decisions.unloaded {
            return Self::default();
        }
        let level = decisions.level.filter(|_| on_new != OnNewVersion::Serve);
        // What is newer than a split's versions waits until that is over.
        let split = decisions.traffic.as_ref();
        let newest = split.and_then(|split| split.versions().max());
        let ceiling = newest.or(decisions.pinned).or(level);
        let is_there = |id: &VersionId| there.contains(id);
        let within = |id: &VersionId| ceiling.is_none_or(|ceiling| *id <= ceiling);
        let selected = policy.select(there.iter().copied().filter(within));
        let mut wanted: BTreeSet<_> = selected.iter().copied().collect();
        wanted.extend(
            decisions.aliases.values().chain(&decisions.pinned).filter(|id| there.contains(id)),
        );
        wanted.extend(split.into_iter().flat_map(TrafficSpec::versions).filter(is_there));
        let baseline = split.and_then(TrafficSpec::baseline).or(decisions.pinned);
        let default = baseline.filter(is_there).or(selected.last().copied());
        let would_serve = policy.select(there.iter().copied());
        let held =
            would_serve.into_iter().filter(|id| !within(id) && !wanted.contains(id)).collect();
        let held_why = if split.is_some() {
            "held back while the traffic is split; `tidegate traffic reset`, or the rollout's end, lets it in"
        } else if decisions.pinned.is_some() {
            "held back by the pin; `tidegate models unpin` clears it"
        } else {
            "held back; `tidegate models load` lets it in"
        };
        Self { wanted, held, held_why, default, fallback: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Alias;

    fn ids(numbers: &[u64]) -> BTreeSet<VersionId> {
        numbers.iter().map(|number| VersionId::new(*number)).collect()
    }

    fn plan(decisions: &Decisions, on_new: OnNewVersion) -> Plan {
        Plan::of(&ids(&[1, 2, 3]), &VersionPolicy::Latest(1), decisions, on_new)
    }

    #[test]
    fn without_decisions_the_policy_decides() {
        let free = plan(&Decisions::default(), OnNewVersion::Serve);
        assert_eq!(
            (free.wanted, free.held, free.default),
            (ids(&[3]), ids(&[]), Some(VersionId::new(3)))
        );
        let all = Plan::of(
            &ids(&[1, 2]),
            &VersionPolicy::All,
            &Decisions::default(),
            OnNewVersion::Serve,
        );
        assert_eq!((all.wanted, all.default), (ids(&[1, 2]), Some(VersionId::new(2))));
    }

    #[test]
    fn a_pin_beats_what_is_newer_and_an_alias_keeps_its_version() {
        let mut decisions = Decisions { pinned: Some(VersionId::new(2)), ..Decisions::default() };
        let pinned = plan(&decisions, OnNewVersion::Serve);
        assert_eq!(
            (pinned.wanted, pinned.held, pinned.default),
            (ids(&[2]), ids(&[3]), Some(VersionId::new(2)))
        );
        decisions.aliases.insert(Alias::parse("canary").unwrap(), VersionId::new(3));
        let with_canary = plan(&decisions, OnNewVersion::Serve);
        assert_eq!(
            (with_canary.wanted, with_canary.held, with_canary.default),
            (ids(&[2, 3]), ids(&[]), Some(VersionId::new(2)))
        );
        decisions.unloaded = true;
        assert_eq!(plan(&decisions, OnNewVersion::Serve), Plan::default());
    }

    #[test]
    fn a_pinned_version_that_is_gone_leaves_the_older_ones() {
        let decisions = Decisions { pinned: Some(VersionId::new(9)), ..Decisions::default() };
        assert_eq!(plan(&decisions, OnNewVersion::Serve).default, Some(VersionId::new(3)));
    }

    #[test]
    fn new_versions_are_held_where_the_operator_asks_for_it() {
        let decisions = Decisions { level: Some(VersionId::new(1)), ..Decisions::default() };
        let held = plan(&decisions, OnNewVersion::Hold);
        assert_eq!(
            (held.wanted, held.held, held.default),
            (ids(&[1]), ids(&[3]), Some(VersionId::new(1)))
        );
        let first = plan(&Decisions::default(), OnNewVersion::Hold);
        assert_eq!(first.wanted, ids(&[3]), "what is there at first serves");
        assert_eq!(plan(&decisions, OnNewVersion::Serve).wanted, ids(&[3]));
    }
}
