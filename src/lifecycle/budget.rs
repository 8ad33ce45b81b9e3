//! The budget for loaded models: who is loaded, who waits until a request asks for it, and who has to go.
//!
//! Off unless the operator sets one; then nothing here does anything. Always true with a budget:
//! - What is loaded, what is being loaded and what still drains cost no more than the budget together. The one
//!   exception is a version that takes the place of another: the one that it replaces is not counted while it is being
//!   loaded.
//! - A version is loaded once for all requests that wait for it, and stays until they have been answered.
//! - The one that was used longest ago goes first; never one that answers a request at this moment, nor one of a
//!   required model, nor one that an operator pinned.
//! - A load that nobody asked for evicts nothing.
//!
//! Not here: what a version costs (`serve`), how requests wait (`serve::Demand`), loading and freeing (`keeper`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    model::{ModelName, TrafficSpec, VersionId, VersionState},
    monitor::EventKind,
    registry::Action,
    serve::{self, Lease, Version, Wish},
    source::Digest,
};

use super::{
    Origin,
    crew::Job,
    keeper::Keeper,
    kept::{Kept, KeptVersion, ON_DEMAND},
    reclaim::Retired,
};

/// Why a version is not served: a word for programs, a reason for people, whether it may pass.
pub(super) type Refused = (&'static str, String, bool);

/// A version of a model.
type Key = (ModelName, VersionId);

/// What the keeper knows about memory; starts empty.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// The most that loaded versions may cost; `None` if there is no budget.
    bytes_max: Option<u64>,
    /// Requests that wait, in the order in which they came.
    wishes: Vec<Wish>,
    /// One for each version that was loaded for requests, until they have been answered.
    leases: BTreeMap<Key, Lease>,
    /// What versions cost that left the table and are not freed yet.
    draining: u64,
    /// What the load that runs is going to cost.
    loading: u64,
    /// When to look again whether there is room, unasked.
    pub(super) retry_at: Option<Instant>,
}

/// Whether a job may begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Now.
    Now,
    /// Once there is room; room is being made.
    Later,
    /// No; the version says why.
    No,
}

/// A loaded version that might have to go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    key: Key,
    bytes: u64,
    /// When it was used last, since 1970; one that runs goes after all that do not.
    used: Duration,
    /// Whether it must stay for the moment: somebody waits for it.
    busy: bool,
}

/// How there may be room for a version.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    /// There is.
    There,
    /// These have to go.
    Evict(Vec<Key>),
    /// There will be, once what drains or is busy has let go.
    Soon,
    /// What may not go takes it.
    Taken,
}

/// How often it is looked again whether there is room.
const RETRY: Duration = Duration::from_millis(10);

/// How to have room for a version: the least recently used go first, and none if that would not be enough.
///
/// `taken` is the cost of everything that is loaded or being loaded, candidates included; `draining` comes on top of
/// it.
fn room(
    needed: u64,
    bytes_max: u64,
    taken: u64,
    draining: u64,
    mut candidates: Vec<Candidate>,
) -> Room {
    let fits = |taken: u64| taken.saturating_add(needed) <= bytes_max;
    if fits(taken.saturating_add(draining)) {
        return Room::There;
    }
    if fits(taken) {
        return Room::Soon;
    }
    candidates.sort_by(|a, b| (a.used, &a.key).cmp(&(b.used, &b.key)));
    let (mut left, mut victims) = (taken, Vec::new());
    for idle in candidates.iter().filter(|candidate| !candidate.busy) {
        left = left.saturating_sub(idle.bytes);
        victims.push(idle.key.clone());
        if fits(left) {
            return Room::Evict(victims);
        }
    }
    let busy =
        candidates.iter().filter(|candidate| candidate.busy).map(|candidate| candidate.bytes);
    if fits(left.saturating_sub(busy.sum())) { Room::Soon } else { Room::Taken }
}

impl Budget {
    pub(super) fn new(bytes_max: Option<u64>) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.bytes_max.is_some()
    }

    /// A version left the table and is freed some time.
    pub(super) fn drains(&mut self, version: &Version) {
        self.draining = self.draining.saturating_add(version.cost_bytes());
    }

    /// A version that left the table is freed.
    pub(super) fn freed(&mut self, cost_bytes: u64) {
        // Without a budget nothing was counted.
        self.draining = self.draining.saturating_sub(cost_bytes);
    }

    /// The load that ran has ended.
    pub(super) fn load_ended(&mut self) {
        self.loading = 0;
    }

    pub(super) fn wishes_for(&self, model: &str, id: VersionId) -> bool {
        self.wishes
            .iter()
            .any(|wish| wish.id == id && wish.model.as_str() == model && !wish.is_abandoned())
    }

    fn is_leased(&self, key: &Key) -> bool {
        self.leases.get(key).is_some_and(Lease::is_held)
    }
}

impl Keeper {
    /// A request waits for a version: has it loaded, if it is not being loaded already.
    pub(super) fn wish(&mut self, wish: Wish) {
        let (name, id) = (wish.model.clone(), wish.id);
        self.budget.wishes.retain(|wish| !wish.is_abandoned());
        self.budget.wishes.push(wish);
        if self.is_pending(&name, id) {
            return;
        }
        // What stands in for a version that is not proven yet is wanted again.
        if self.reconcile(&name, false) {
            self.publish();
        }
        let Some(origin) = self.origin(&name, id) else { return };
        let Some(kept) = self.state.models.get_mut(&name) else { return };
        let wanted = kept.plan.wanted.contains(&id);
        let asleep = |version: &&mut KeptVersion| version.is_asleep();
        let Some(version) = kept.versions.get_mut(&id).filter(asleep).filter(|_| wanted) else {
            return;
        };
        let job = Job::new(&name, id, origin);
        version.begin(job.fingerprint());
        self.state.jobs.push(job);
        if self.refresh(&name) {
            self.publish();
        }
    }

    /// Where a version is loaded from: the repository, or the content store where the repository cannot be read.
    fn origin(&self, model: &ModelName, id: VersionId) -> Option<Origin> {
        let kept = self.state.models.get(model)?;
        let stored = || {
            let served = &self.registry.decisions(model)?.served;
            Some(Origin::Store(Digest::parse(served.get(&id)?)?))
        };
        let lost = self.state.unreadable.is_some() && self.loader.store.is_some();
        if let Some(stored) = stored().filter(|_| lost) {
            return Some(stored);
        }
        if let (Some(listed), Some(description)) = (kept.listed.get(&id), &kept.description) {
            return Some(Origin::Repository(listed.clone(), Arc::clone(description)));
        }
        stored()
    }

    /// Answers requests whose version was loaded, or will not be.
    pub(super) fn grant(&mut self) {
        if self.budget.wishes.is_empty() {
            return;
        }
        let queued = self.state.jobs.iter().map(|job| (job.model.clone(), job.id));
        // Who waits for what was decided against meanwhile is told at once.
        let wanted = |(name, id): &Key| {
            self.state.models.get(name).is_some_and(|kept| kept.plan.wanted.contains(id))
        };
        let running = self.state.running.iter();
        let running = running.map(|running| (running.model.clone(), running.id));
        let pending: BTreeSet<Key> = queued.chain(running).filter(wanted).collect();
        self.budget.leases.retain(|_, lease| lease.is_held());
        for wish in std::mem::take(&mut self.budget.wishes) {
            let key = (wish.model.clone(), wish.id);
            if pending.contains(&key) {
                self.budget.wishes.push(wish);
                continue;
            }
            // Also for what failed: the table says why.
            let lease = self.budget.leases.entry(key).or_default().clone();
            wish.grant(lease);
        }
    }

    /// Whether others may have to go for a version.
    pub(super) fn is_pressing(&self, model: &ModelName, id: VersionId) -> bool {
        let awaited = self.state.waiting.iter().any(|waiting| waiting.model == *model);
        let takes_over = self.state.models.get(model).is_some_and(|kept| takes_over(kept, id));
        takes_over || awaited || self.policy(model).required || self.budget.wishes_for(model, id)
    }

    /// Whether a job may begin, within the budget; makes room for it where it may.
    pub(super) fn admit(&mut self, job: &Job) -> Admission {
        self.budget.retry_at = None;
        let Some(bytes_max) = self.budget.bytes_max else { return Admission::Now };
        let needed = self.estimate(job);
        if needed > bytes_max {
            self.fail_too_large(job, needed, bytes_max);
            return Admission::No;
        }
        let pressing = self.is_pressing(&job.model, job.id);
        let taken = self.taken(Some((&job.model, job.id)));
        let draining = self.budget.draining;
        let candidates = if pressing { self.candidates(&job.model) } else { Vec::new() };
        match room(needed, bytes_max, taken, draining, candidates) {
            Room::There => {
                self.budget.loading = needed;
                Admission::Now
            }
            Room::Evict(victims) => {
                self.evict(&victims, job);
                self.soon()
            }
            Room::Soon => self.soon(),
            Room::Taken => {
                let reason = if pressing {
                    format!("not loaded: {}", no_room(needed, taken, bytes_max))
                } else {
                    ON_DEMAND.to_owned()
                };
                self.defer(job, &reason, pressing);
                Admission::No
            }
        }
    }

    /// Whether a version may be loaded aside now, beside others that cost `aside`; makes room for it.
    pub(super) fn admit_aside(&mut self, job: &Job, aside: u64) -> Result<bool, String> {
        self.budget.retry_at = None;
        let Some(bytes_max) = self.budget.bytes_max else { return Ok(true) };
        let needed = self.estimate(job);
        if needed > bytes_max {
            return Err(too_large(needed, bytes_max));
        }
        let taken = self.taken(Some((&job.model, job.id))).saturating_add(aside);
        let draining = self.budget.draining;
        match room(needed, bytes_max, taken, draining, self.candidates(&job.model)) {
            Room::There => self.budget.loading = needed,
            Room::Evict(victims) => {
                self.evict(&victims, job);
                self.soon();
                return Ok(false);
            }
            Room::Soon => {
                self.soon();
                return Ok(false);
            }
            Room::Taken => {
                return Err(no_room(needed, taken, bytes_max));
            }
        }
        Ok(true)
    }

    fn soon(&mut self) -> Admission {
        self.budget.retry_at = Some(self.now() + RETRY);
        Admission::Later
    }

    /// What a version is going to cost, by its files; all of them, as nobody knows which the model uses.
    fn estimate(&self, job: &Job) -> u64 {
        let known = self.state.models.get(&job.model).and_then(|kept| kept.versions.get(&job.id));
        let known = known.and_then(|version| version.cost_as(job.fingerprint()));
        let files = || match &job.origin {
            Origin::Repository(listed, _) => listed.folder_bytes(),
            Origin::Store(digest) => {
                let manifest = self.loader.store.as_ref().map(|store| store.manifest(digest));
                // What is not there fails when it is read.
                manifest.and_then(Result::ok).map_or((0, 0), |manifest| manifest.model_bytes())
            }
        };
        known.unwrap_or_else(|| {
            let (model, beside) = files();
            serve::cost_bytes(model, beside, self.loader.sessions)
        })
    }

    /// What is loaded and being loaded costs, without what `besides` takes the place of.
    fn taken(&self, besides: Option<(&ModelName, VersionId)>) -> u64 {
        let mut sum = self.budget.loading;
        for (name, kept) in &self.state.models {
            let successor = besides.filter(|(model, _)| *model == name).map(|(_, id)| id);
            for (id, version) in kept.loaded() {
                if !successor.is_some_and(|successor| replaces(kept, successor, id)) {
                    sum = sum.saturating_add(version.cost_bytes());
                }
            }
        }
        sum
    }

    /// What may be evicted for a version of a model; never what answers for that model.
    fn candidates(&self, model: &ModelName) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (name, kept) in &self.state.models {
            if self.policy(name).required {
                continue;
            }
            let decided = self.registry.decisions(name);
            let pinned = decided.and_then(|decided| decided.pinned);
            // A split needs all its versions.
            let split = decided.and_then(|decided| decided.traffic.as_ref());
            let split: Vec<_> = split.into_iter().flat_map(TrafficSpec::versions).collect();
            let answering = kept.answering().map(|(id, _)| id).filter(|_| name == model);
            for (id, version) in kept.loaded() {
                // What could not be loaded again as it is stays.
                let own = kept.versions.get(&id);
                let replaced =
                    own.is_none_or(|own| own.loading.is_some() || !own.reason.is_empty());
                let lost = replaced || self.origin(name, id).is_none();
                if pinned == Some(id) || answering == Some(id) || lost || split.contains(&id) {
                    continue;
                }
                let key = (name.clone(), id);
                let busy = self.budget.is_leased(&key) || self.budget.wishes_for(name, id);
                let loaded = own.map(|own| own.loaded_at).unwrap_or_default();
                // What runs may go, its requests keep it to their end: to wait for a moment without a run would, for a
                // model in steady use, be to wait for ever, and all other loads with it.
                let used = if version.is_running() {
                    Duration::MAX
                } else {
                    version.parts().recorder.last_answered().max(loaded)
                };
                candidates.push(Candidate { key, bytes: version.cost_bytes(), used, busy });
            }
        }
        candidates
    }

    /// Takes versions from the table to make room.
    fn evict(&mut self, victims: &[Key], job: &Job) {
        let mut evicted = Vec::new();
        for (name, id) in victims {
            let kept = self.state.models.get_mut(name);
            let version = kept.and_then(|kept| kept.versions.get_mut(id));
            evicted.extend(version.and_then(KeptVersion::evict));
            self.refresh(name);
        }
        self.publish();
        for version in evicted {
            let detail = format!("makes room for {}/{}", job.model, job.id);
            tracing::info!(model = %version.parts().model, version = %version.id(), "evicted: {detail}");
            self.tell(&version.parts().model, Some(version.id()), EventKind::Evicted, &detail);
            self.let_go(version);
        }
    }

    /// Has a version freed that left the table, or never was in it.
    pub(super) fn let_go(&mut self, version: Arc<Version>) {
        if self.budget.is_on() {
            self.budget.drains(&version);
        }
        self.reclaim.take(Retired::Version(version));
    }

    /// A version is not loaded until a request asks for it again.
    fn defer(&mut self, job: &Job, reason: &str, told: bool) {
        let (name, id) = (&job.model, job.id);
        let Some(kept) = self.state.models.get_mut(name) else { return };
        let Some(version) = kept.versions.get_mut(&id) else { return };
        version.defer(job.fingerprint(), reason);
        if told {
            tracing::warn!(model = %name, version = %id, "{reason}");
        }
        for wish in std::mem::take(&mut self.budget.wishes) {
            if wish.model == *name && wish.id == id {
                wish.refuse(reason);
            } else {
                self.budget.wishes.push(wish);
            }
        }
        self.tell(name, Some(id), EventKind::Deferred, reason);
        self.refresh(name);
    }

    fn fail_too_large(&mut self, job: &Job, needed: u64, bytes_max: u64) {
        let (name, id) = (&job.model, job.id);
        let reason = too_large(needed, bytes_max);
        self.loader.monitor.upkeep().loaded(name, "budget");
        let Some(kept) = self.state.models.get_mut(name) else { return };
        let Some(version) = kept.versions.get_mut(&id) else { return };
        if version.fail(job.fingerprint(), reason.clone(), None) {
            tracing::error!(model = %name, version = %id, "not served: {reason}");
            self.tell(name, Some(id), EventKind::Failed, &reason);
        }
        self.refresh(name);
    }

    /// Holds a version that was loaded against the budget, now that its size is known; `aside` is what others cost that
    /// were loaded with it and are not in the table yet.
    ///
    /// It is larger than it looked where its folder has grown meanwhile. Then what may go for it goes, without being
    /// waited for.
    pub(super) fn check_loaded(
        &mut self,
        job: &Job,
        version: Version,
        aside: u64,
    ) -> Result<Version, Refused> {
        let Some(bytes_max) = self.budget.bytes_max else { return Ok(version) };
        let needed = version.cost_bytes();
        if needed > bytes_max {
            self.let_go(Arc::new(version));
            return Err(("budget", too_large(needed, bytes_max), false));
        }
        let pressing = job.staged.is_some() || self.is_pressing(&job.model, job.id);
        let taken = self.taken(Some((&job.model, job.id))).saturating_add(aside);
        let candidates = if pressing { self.candidates(&job.model) } else { Vec::new() };
        match room(needed, bytes_max, taken, 0, candidates) {
            Room::There | Room::Soon => Ok(version),
            Room::Evict(victims) => {
                self.evict(&victims, job);
                Ok(version)
            }
            Room::Taken => {
                self.let_go(Arc::new(version));
                // At the next look its folder tells its size.
                Err(("budget", no_room(needed, taken, bytes_max), true))
            }
        }
    }

    /// A version of a model was loaded: what stood in for it goes.
    pub(super) fn proven(&mut self, name: &ModelName) {
        if !self.budget.is_on() {
            return;
        }
        if self.reconcile(name, false) {
            self.publish();
        }
        self.forget_replaced(name);
    }

    /// Forgets what served and does no more: a start without the repository must not bring it back.
    fn forget_replaced(&mut self, name: &ModelName) {
        let Some(kept) = self.state.models.get(name) else { return };
        let stands = |id: &VersionId| {
            kept.versions.get(id).is_some_and(|kept| kept.version.is_some() || kept.is_asleep())
        };
        if kept.problem.is_some() || !kept.plan.default.is_some_and(|default| stands(&default)) {
            return;
        }
        let served = self.registry.decisions(name).map(|decided| decided.served.clone());
        let gone = served.unwrap_or_default().into_keys().filter(|id| {
            !kept.plan.wanted.contains(id)
                && kept.versions.get(id).is_none_or(|kept| {
                    kept.version.is_none() && kept.state != VersionState::Unloading
                })
        });
        for id in gone.collect::<Vec<_>>() {
            self.remember(name, Action::Retire { version: id.number() });
        }
    }
}

/// Whether a version that is loaded leaves the table once another of its model is loaded.
fn replaces(kept: &Kept, successor: VersionId, id: VersionId) -> bool {
    id == successor || kept.plan.default == Some(successor) && !kept.plan.wanted.contains(&id)
}

/// Whether a version takes the place of one that answers, at once or on demand: then it must be proven.
fn takes_over(kept: &Kept, id: VersionId) -> bool {
    let stands_in = kept.stand_in.is_some() && kept.plan.default == Some(id);
    stands_in || kept.loaded().any(|(other, _)| replaces(kept, id, other))
}

fn too_large(needed: u64, bytes_max: u64) -> String {
    format!(
        "it needs {needed} bytes, more than the {bytes_max} of repository.loaded_bytes alone; raise it, or make the model \
         smaller"
    )
}

fn no_room(needed: u64, taken: u64, bytes_max: u64) -> String {
    format!(
        "it needs {needed} bytes, and what may not be evicted takes {taken} of the {bytes_max} of repository.loaded_bytes; \
         raise it, or require fewer models"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version of `model` that costs 10 and was used this many seconds after 1970.
    fn candidate(model: &str, used: u64, busy: bool) -> Candidate {
        let key = (ModelName::parse(model).unwrap(), VersionId::new(1));
        Candidate { key, bytes: 10, used: Duration::from_secs(used), busy }
    }

    fn evicted(room: Room) -> Vec<String> {
        let Room::Evict(victims) = room else { panic!("{room:?}") };
        victims.into_iter().map(|(model, _)| model.to_string()).collect()
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_needed() {
        let all =
            || vec![candidate("b", 7, false), candidate("a", 9, false), candidate("c", 5, false)];
        assert_eq!(evicted(room(10, 30, 30, 0, all())), ["c"]);
        assert_eq!(evicted(room(11, 30, 30, 0, all())), ["c", "b"]);
        assert_eq!(evicted(room(30, 30, 30, 0, all())), ["c", "b", "a"]);
        let tie = vec![candidate("y", 1, false), candidate("x", 1, false)];
        assert_eq!(evicted(room(10, 20, 20, 0, tie)), ["x"], "the same order every time");
    }

    #[test]
    fn what_is_busy_is_waited_for_and_never_evicted() {
        let all = || vec![candidate("a", 1, true), candidate("b", 2, false)];
        assert_eq!(evicted(room(10, 20, 20, 0, all())), ["b"]);
        assert_eq!(room(20, 20, 20, 0, all()), Room::Soon, "and nothing is evicted in vain");
    }

    #[test]
    fn what_drains_still_counts_and_is_waited_for() {
        assert_eq!(room(10, 30, 10, 10, Vec::new()), Room::There);
        assert_eq!(room(10, 30, 20, 10, vec![candidate("a", 1, false)]), Room::Soon);
    }

    #[test]
    fn where_what_may_not_go_takes_the_room_nothing_is_evicted() {
        assert_eq!(room(10, 30, 25, 0, Vec::new()), Room::Taken);
        assert_eq!(room(20, 30, 30, 0, vec![candidate("a", 1, false)]), Room::Taken);
    }
}
