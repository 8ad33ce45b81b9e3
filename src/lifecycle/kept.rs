//! A model as the keeper has it: what is there, what should be, what is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use crate::{
    model::{ModelDescription, ModelName, Signature, TrafficSpec, VersionId, VersionState},
    registry::Decisions,
    serve::{Entry, Evidence, Traffic, Version},
    source::{Fingerprint, ListedVersion},
};

use super::{OnNewVersion, Policy, plan::Plan};

/// A model.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) description: Option<Arc<ModelDescription>>,
    pub(super) problem: Option<String>,
    /// What the repository had at the last look.
    pub(super) listed: BTreeMap<VersionId, ListedVersion>,
    pub(super) plan: Plan,
    pub(super) versions: BTreeMap<VersionId, KeptVersion>,
    /// What answers on demand until the plan's default is proven.
    pub(super) stand_in: Option<VersionId>,
    /// What answered by default last.
    pub(super) answered: Option<VersionId>,
    /// True if the version that should answer has done so since the start.
    pub(super) settled: bool,
    /// The version that was decided for, whatever its signature.
    pub(super) accepted: Option<VersionId>,
    /// Why the version that should answer does not.
    pub(super) withheld: Option<String>,
    /// Since when its folder is there without any version.
    pub(super) emptied: Option<Instant>,
    /// Versions that stay loaded until something is decided about them.
    pub(super) prepared: BTreeSet<VersionId>,
}

/// A version.
#[derive(Debug)]
pub(super) struct KeptVersion {
    pub(super) state: VersionState,
    pub(super) reason: String,
    pub(super) version: Option<Arc<Version>>,
    /// What the folder looked like when it was last tried.
    tried: Option<Fingerprint>,
    /// What the folder looks like that is being loaded.
    pub(super) loading: Option<Fingerprint>,
    /// What it looked like at the last look, and since when.
    seen: Option<(Fingerprint, Instant)>,
    /// When a failure that may pass is tried again, and how long was waited for it.
    retry: Option<(Instant, Duration)>,
    /// Its folder's fingerprint at the time it was held back for ending this server.
    blamed: Option<Fingerprint>,
    /// Whether requests for it have it loaded, while it is not.
    on_demand: bool,
    /// Its inputs and outputs, kept while it sleeps: what takes its place must suit the same clients.
    signature: Option<Signature>,
    /// When it was loaded last, since 1970.
    pub(super) loaded_at: Duration,
    /// The bytes of its model when it was loaded last, and what the folder looked like then.
    cost: Option<(Option<Fingerprint>, u64)>,
}

/// Whether a version should be loaded now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing to do.
    No,
    /// Later; ask again then.
    At(Instant),
    /// Now.
    Now,
}

/// Why a version is not loaded that could be.
pub(super) const ON_DEMAND: &str = "not loaded: loads on demand";

const ON_TRIAL: &str = "loaded: serves once that is recorded";

/// How long a new folder must look the same before it is loaded.
const SETTLE: Duration = Duration::from_millis(200);
/// Pauses between tries of what failed and may pass.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_mins(1);

impl KeptVersion {
    pub(super) fn unavailable(reason: impl Into<String>) -> Self {
        Self {
            state: VersionState::Unavailable,
            reason: reason.into(),
            version: None,
            tried: None,
            loading: None,
            seen: None,
            retry: None,
            blamed: None,
            on_demand: false,
            signature: None,
            loaded_at: Duration::ZERO,
            cost: None,
        }
    }

    /// One that appeared and has not been tried.
    pub(super) fn discovered() -> Self {
        Self { state: VersionState::Loading, ..Self::unavailable("discovered") }
    }

    /// Forgets that it was tried.
    pub(super) fn forget(&mut self) {
        self.tried = None;
        self.retry = None;
        self.blamed = None;
    }

    /// Keeps it from the plan, so that an older version serves, until its folder changes or it is forgotten.
    pub(super) fn hold_back(&mut self) {
        self.blamed = self.tried;
    }

    /// Whether it should be loaded, as its folder looks now. With `at_once`, the folder need not settle.
    pub(super) fn due(&mut self, listed: Fingerprint, now: Instant, at_once: bool) -> Due {
        if self.loading == Some(listed) || (self.tried == Some(listed) && self.retry.is_none()) {
            return Due::No;
        }
        if let Some((at, _)) = self.retry
            && self.tried == Some(listed)
        {
            return if at <= now || at_once { Due::Now } else { Due::At(at) };
        }
        let since = match self.seen {
            Some((seen, since)) if seen == listed => since,
            _ => now,
        };
        self.seen = Some((listed, since));
        let settled = since + SETTLE;
        if at_once || settled <= now { Due::Now } else { Due::At(settled) }
    }

    /// It is going to be loaded as it looks now.
    pub(super) fn begin(&mut self, listed: Option<Fingerprint>) {
        self.loading = listed;
        self.seen = None;
        if self.version.is_none() {
            self.state = VersionState::Loading;
            "waits to be loaded".clone_into(&mut self.reason);
        }
    }

    /// It answers; gives what answered before under its number.
    pub(super) fn succeed(
        &mut self,
        tried: Option<Fingerprint>,
        version: Version,
    ) -> Option<Arc<Version>> {
        self.tried = tried;
        self.loading = self.loading.filter(|loading| Some(*loading) != tried);
        self.retry = None;
        self.on_demand = false;
        self.signature = None;
        self.cost = Some((tried, version.cost_bytes()));
        self.state = VersionState::Ready;
        self.reason = String::new();
        self.version.replace(Arc::new(version))
    }

    /// Borrows the loaded version without keeping it.
    pub(super) fn lent(&self) -> Option<Weak<Version>> {
        self.version.as_ref().map(Arc::downgrade)
    }

    /// Its folder was touched, and what it holds is what serves.
    pub(super) fn unchanged(&mut self, tried: Option<Fingerprint>) {
        self.loading = self.loading.filter(|loading| Some(*loading) != tried);
        // One that left meanwhile is loaded after all.
        self.tried = tried.filter(|_| self.version.is_some());
        self.retry = None;
        if self.version.is_some() {
            // It may have been broken in between.
            self.reason = String::new();
        }
    }

    /// It cannot be loaded; gives whether that is news.
    pub(super) fn fail(
        &mut self,
        tried: Option<Fingerprint>,
        reason: String,
        retry_from: Option<Instant>,
    ) -> bool {
        let news = self.reason != reason || self.tried != tried;
        self.tried = tried;
        self.loading = self.loading.filter(|loading| Some(*loading) != tried);
        self.retry = retry_from.map(|now| {
            let pause = self.retry.map_or(RETRY_FIRST, |(_, pause)| (pause * 2).min(RETRY_LAST));
            (now + pause, pause)
        });
        self.reason = reason;
        self.on_demand = false;
        if self.version.is_none() {
            self.state = VersionState::Unavailable;
        }
        news
    }

    /// It is not loaded until a request asks for it.
    pub(super) fn defer(&mut self, tried: Option<Fingerprint>, reason: &str) {
        self.tried = tried;
        self.loading = None;
        self.retry = None;
        if self.version.is_none() {
            self.on_demand = true;
            self.state = VersionState::Unavailable;
            reason.clone_into(&mut self.reason);
        }
    }

    /// Takes it from the table until a request asks for it; gives the version that must be freed.
    pub(super) fn evict(&mut self) -> Option<Arc<Version>> {
        let version = self.version.take()?;
        self.state = VersionState::Unloading;
        "evicted, its last requests finish: loads on demand".clone_into(&mut self.reason);
        self.on_demand = true;
        self.signature = Some(version.signature().clone());
        Some(version)
    }

    /// Whether it is not loaded, and a request for it has it loaded.
    pub(super) fn is_asleep(&self) -> bool {
        self.on_demand && self.version.is_none()
    }

    /// Whether it sleeps for no other reason than that nobody asks for it.
    pub(super) fn rests(&self) -> bool {
        self.is_asleep() && (self.state == VersionState::Unloading || self.reason == ON_DEMAND)
    }

    /// The bytes of its model, where it was loaded as its folder looks now.
    pub(super) fn cost_as(&self, listed: Option<Fingerprint>) -> Option<u64> {
        self.cost.filter(|(loaded, _)| *loaded == listed).map(|(_, bytes)| bytes)
    }

    /// Takes it out of service; gives the version that must be freed.
    pub(super) fn retire(&mut self) -> Option<Arc<Version>> {
        self.on_demand = false;
        let version = self.version.take()?;
        self.state = VersionState::Unloading;
        "its last requests finish".clone_into(&mut self.reason);
        self.forget();
        Some(version)
    }
}

impl Kept {
    /// True if all its versions are gone at once, and that is not to be believed yet.
    pub(super) fn is_emptied(
        &mut self,
        there: &BTreeMap<VersionId, ListedVersion>,
        now: Instant,
        grace: Duration,
    ) -> bool {
        if !there.is_empty() || self.listed.is_empty() {
            self.emptied = None;
            return false;
        }
        let since = *self.emptied.get_or_insert(now);
        now.saturating_duration_since(since) < grace
    }

    /// The version that answers by default now.
    pub(super) fn answering(&self) -> Option<(VersionId, &Arc<Version>)> {
        let ready = || {
            self.versions.iter().rev().filter_map(|(id, kept)| Some((*id, kept.version.as_ref()?)))
        };
        let default = self.meant();
        ready()
            .find(|(id, _)| default.is_none_or(|default| *id <= default))
            .or_else(|| ready().next())
    }

    /// The version that serves now and that one of this number is to follow, unless an operator let that in.
    pub(super) fn before(&self, id: VersionId) -> Option<Weak<Version>> {
        let (answering, version) = self.answering()?;
        let follows = answering <= id && self.accepted != Some(id);
        follows.then(|| Arc::downgrade(version))
    }

    /// The version that answers by default, or would: the plan's, once it can; until then what answered before.
    pub(super) fn meant(&self) -> Option<VersionId> {
        let stands = |id: &VersionId| {
            self.versions.get(id).is_some_and(|kept| kept.version.is_some() || kept.is_asleep())
        };
        let before = self.answered.filter(|id| self.is_ready(*id));
        let planned = self.plan.default.filter(stands).or(self.plan.fallback.filter(stands));
        planned.or(before).or(self.plan.default)
    }

    /// The versions that are loaded, ascending.
    pub(super) fn loaded(&self) -> impl Iterator<Item = (VersionId, &Arc<Version>)> {
        self.versions.iter().filter_map(|(id, kept)| Some((*id, kept.version.as_ref()?)))
    }

    /// What the clients of this model rely on: the version that answers them, be it on demand.
    pub(super) fn relied_on(&self) -> Option<(VersionId, &Signature)> {
        let stand_in = || {
            let id = self.stand_in?;
            Some((id, self.versions.get(&id)?.signature.as_ref()?))
        };
        self.answering().map(|(id, version)| (id, version.signature())).or_else(stand_in)
    }

    /// What a version takes and gives, where it is loaded or was evicted.
    pub(super) fn signature(&self, id: VersionId) -> Option<&Signature> {
        let kept = self.versions.get(&id)?;
        kept.version.as_ref().map(|version| version.signature()).or(kept.signature.as_ref())
    }

    /// The version that goes on answering on demand until the default of a new plan is proven, if one is needed.
    pub(super) fn stand_in_for(&self, plan: &Plan) -> Option<VersionId> {
        let default = self.versions.get(&plan.default?);
        if default.is_some_and(|kept| kept.version.is_some() || kept.is_asleep()) {
            return None;
        }
        let mut asleep = self.versions.iter().rev().filter(|(_, kept)| kept.is_asleep());
        asleep.find(|(id, _)| self.listed.contains_key(id)).map(|(id, _)| *id)
    }

    /// What should be, decided thus; `None` before the model is described.
    pub(super) fn plan_for(&self, mut decisions: Decisions, policy: Policy) -> Option<Plan> {
        let mut on_new = policy.on_new_version;
        if policy.frozen {
            let served = || decisions.served.keys().next_back().copied();
            let level = self.answering().map(|(id, _)| id).or_else(served).or(decisions.level);
            (on_new, decisions.level) = (OnNewVersion::Hold, level);
        }
        if on_new != OnNewVersion::Serve && decisions.level.is_none() {
            // What serves now is what was let in.
            decisions.level = self.answering().map(|(id, _)| id);
        }
        let (blamed, mut there): (BTreeSet<_>, BTreeSet<_>) =
            self.listed.keys().copied().partition(|id| self.is_blamed(*id));
        // What a split names stays as long as it is loaded, be its folder gone.
        let split = decisions.traffic.iter().flat_map(TrafficSpec::versions);
        there.extend(split.filter(|id| self.is_ready(*id)));
        let versions = &self.description.as_ref()?.version_policy;
        let mut plan = Plan::of(&there, versions, &decisions, on_new);
        // What failed stays wanted: it says why, and is tried again once it looks otherwise.
        let mut failed = plan.default.filter(|default| self.has_failed(*default));
        while let Some(id) = failed {
            there.remove(&id);
            plan.fallback = Plan::of(&there, versions, &decisions, on_new).default;
            plan.wanted.extend(plan.fallback);
            failed = plan.fallback.filter(|fallback| self.has_failed(*fallback));
        }
        plan.fallback = plan.fallback.filter(|fallback| !self.has_failed(*fallback));
        plan.held.retain(|id| !plan.wanted.contains(id));
        if !decisions.unloaded {
            plan.held.extend(blamed);
        }
        Some(plan)
    }

    /// True if a version could not be loaded as its folder looks now.
    fn has_failed(&self, id: VersionId) -> bool {
        let Some(listed) = self.listed.get(&id) else { return false };
        self.versions.get(&id).is_some_and(|kept| {
            kept.version.is_none() && !kept.on_demand && kept.tried == Some(listed.fingerprint)
        })
    }

    /// True if a version is held back for ending this server.
    fn is_blamed(&self, id: VersionId) -> bool {
        let blamed = self.versions.get(&id).and_then(|kept| kept.blamed);
        blamed.is_some() && blamed == self.listed.get(&id).map(|listed| listed.fingerprint)
    }

    pub(super) fn is_ready(&self, id: VersionId) -> bool {
        self.versions.get(&id).is_some_and(|version| version.version.is_some())
    }

    /// Brings entries in line with the plan; gives the versions that left the table.
    ///
    /// What answers goes on until the plan's default answers in its place.
    pub(super) fn follow_plan(&mut self, unloaded: bool) -> Vec<Arc<Version>> {
        let replaced = self.plan.wanted.is_empty()
            || self.plan.default.is_none_or(|default| self.is_ready(default))
            || self.plan.fallback.is_some_and(|fallback| self.is_ready(fallback));
        let answering = self.answering().map(|(id, _)| id);
        let keep: BTreeSet<VersionId> =
            if replaced { BTreeSet::new() } else { answering.into_iter().collect() };
        let mut retired = Vec::new();
        for (id, kept) in &mut self.versions {
            if !self.plan.wanted.contains(id) && !keep.contains(id) {
                retired.extend(kept.retire());
                kept.loading = None;
            }
        }
        for id in self.listed.keys().copied() {
            if self.plan.wanted.contains(&id) {
                continue;
            }
            let idle = |kept: &KeptVersion| {
                kept.version.is_none() && kept.state != VersionState::Unloading
            };
            let reason = if unloaded {
                "unloaded"
            } else if self.plan.held.contains(&id) {
                self.plan.held_why
            } else {
                continue;
            };
            let kept = self.versions.entry(id).or_insert_with(|| KeptVersion::unavailable(reason));
            // One that is blamed says why it is held back.
            if idle(kept) && kept.blamed.is_none() {
                *kept = KeptVersion::unavailable(reason);
            }
        }
        let (plan, listed) = (&self.plan, &self.listed);
        self.versions.retain(|id, kept| {
            let shown = plan.wanted.contains(id)
                || listed.contains_key(id) && (unloaded || plan.held.contains(id));
            shown || kept.version.is_some() || kept.state == VersionState::Unloading
        });
        retired
    }

    /// The last request has let a version go.
    pub(super) fn freed(&mut self, id: VersionId, unloaded: bool) {
        let Some(kept) = self.versions.get_mut(&id) else { return };
        if kept.state != VersionState::Unloading {
            return;
        }
        if kept.on_demand {
            kept.state = VersionState::Unavailable;
            ON_DEMAND.clone_into(&mut kept.reason);
        } else {
            self.versions.remove(&id);
            // What is left of it is what the plan says.
            let none = self.follow_plan(unloaded);
            debug_assert!(none.is_empty(), "following the same plan twice retires nothing");
        }
    }

    /// Has versions that do not serve say what is wrong with the model; those that serve go on. False if nothing is
    /// wrong.
    pub(super) fn shows_problem(&mut self) -> bool {
        let Some(problem) = &self.problem else { return false };
        for id in self.listed.keys() {
            let version = self.versions.entry(*id).or_insert_with(|| KeptVersion::unavailable(""));
            if version.version.is_none() && version.loading.is_none() {
                version.reason.clone_from(problem);
                version.forget();
            }
        }
        true
    }

    /// Remembers why the version that should answer does not, and logs it once.
    pub(super) fn note_withheld(&mut self, name: &ModelName, withheld: Option<String>) {
        if withheld == self.withheld {
            return;
        }
        if let Some(reason) = &withheld {
            tracing::error!(model = %name, "{reason}");
        }
        self.withheld = withheld;
    }

    /// The split that was decided, resolved against what is loaded; nothing of a model that is unloaded answers.
    pub(super) fn traffic(
        &self,
        decided: &Decisions,
        evidence: Option<&(String, Arc<Evidence>)>,
    ) -> Option<Arc<Traffic>> {
        let spec = decided.traffic.as_ref().filter(|_| !decided.unloaded)?;
        let evidence = evidence.filter(|(id, _)| spec.rollout.as_ref() == Some(id));
        let evidence = evidence.map(|(_, evidence)| Arc::clone(evidence));
        let loaded = |id| self.versions.get(&id)?.version.clone();
        Some(Arc::new(Traffic::new(Arc::new(spec.clone()), evidence, loaded)))
    }

    /// What the table shows. Of a model that is unloaded nothing answers, not even what is loaded to be decided about.
    pub(super) fn entries(&self, unloaded: bool) -> Vec<Entry> {
        let entry = |(id, kept): (&VersionId, &KeptVersion)| {
            let on_trial = unloaded && kept.version.is_some();
            Entry {
                id: *id,
                state: if on_trial { VersionState::Loading } else { kept.state },
                reason: if on_trial { ON_TRIAL.to_owned() } else { kept.reason.clone() },
                version: kept.version.clone().filter(|_| !unloaded),
                on_demand: kept.is_asleep() && !unloaded,
                decided: unloaded || self.plan.held.contains(id) && kept.blamed.is_none(),
            }
        };
        self.versions.iter().map(entry).collect()
    }
}
