//! The order of loads: what somebody waits for, then what serves already, then the rest.
//!
//! Proofs of what nobody uses yet may be slow; they never take the last place, so that a new version of a model that
//! serves, or what an operator or a request waits for, begins at once. Always true:
//! - Within a rank, versions are loaded in the order in which they were noticed.
//! - A version is not loaded twice at the same time.
//! - With a budget for loaded models one version is loaded at a time: what is being loaded cannot make room.
//!
//! Not here: whether there is room (`budget`), the threads (`crew`).

use std::collections::VecDeque;

use crate::{
    model::{ModelName, VersionId},
    source::Hold,
};

use super::{crew::Job, keeper::Keeper};

/// Loads to come.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    queue: VecDeque<Job>,
    /// True if the order may have changed.
    unranked: bool,
}

/// A load that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) model: ModelName,
    pub(super) id: VersionId,
    /// The change that it is loaded aside for, if it is.
    pub(super) staged: Option<u64>,
    pub(super) rank: Rank,
    /// Keeps what it puts into the content store, until it is known what serves.
    pub(super) hold: Option<Hold>,
}

/// The order of loads, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// An operator or a request waits for it.
    Awaited,
    /// Its model serves already, or must.
    InUse,
    /// Nobody uses it yet.
    New,
}

impl Jobs {
    pub(super) fn push(&mut self, job: Job) {
        self.extend([job]);
    }

    pub(super) fn extend(&mut self, jobs: impl IntoIterator<Item = Job>) {
        let before = self.queue.len();
        self.queue.extend(jobs);
        self.unranked |= self.queue.len() > before;
    }

    /// Gives back the one that was taken last.
    pub(super) fn put_back(&mut self, job: Job) {
        self.queue.push_front(job);
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Job) -> bool) {
        self.queue.retain(keep);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.queue.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Somebody waits now who did not before.
    pub(super) fn rank_again(&mut self) {
        self.unranked = true;
    }
}

impl Running {
    pub(super) fn is_of(&self, job: &Job) -> bool {
        self.model == job.model && self.id == job.id && self.staged == job.staged
    }
}

impl Keeper {
    /// How many versions may be loaded at a time.
    pub(super) fn at_once(&self) -> usize {
        if self.budget.is_on() {
            return 1;
        }
        // At the start nothing serves yet that could be held up.
        let (at_once, at_start) = (self.loader.loads_at_once, self.loader.loads_at_start);
        if self.state.complete { at_once.get() } else { at_start.get() }
    }

    /// The next job, if it may begin beside those that run.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        if std::mem::take(&mut self.state.jobs.unranked) {
            let mut jobs: Vec<_> = std::mem::take(&mut self.state.jobs.queue).into();
            jobs.sort_by_cached_key(|job| self.rank(job));
            self.state.jobs.queue = jobs.into();
        }
        let state = &self.state;
        let runs = |job: &Job| {
            let mut running = state.running.iter();
            running.any(|running| running.model == job.model && running.id == job.id)
        };
        let next = state.jobs.iter().position(|job| !runs(job))?;
        let new = state.running.iter().filter(|running| running.rank == Rank::New).count();
        let full = state.complete && self.at_once() > 1 && new + 1 >= self.at_once();
        if full && self.rank(&state.jobs.queue[next]) == Rank::New {
            return None;
        }
        self.state.jobs.queue.remove(next)
    }

    /// The urgency of a load.
    pub(super) fn rank(&self, job: &Job) -> Rank {
        let (model, id) = (&job.model, job.id);
        let awaited = self.state.waiting.iter().any(|waiting| waiting.model == *model);
        if awaited || job.staged.is_some() || self.budget.wishes_for(model, id) {
            return Rank::Awaited;
        }
        let kept = self.state.models.get(model);
        let serves = kept.is_some_and(|kept| kept.loaded().next().is_some());
        if serves || self.is_pressing(model, id) { Rank::InUse } else { Rank::New }
    }

    /// True if a version of a model is being loaded, or will be.
    pub(super) fn is_busy(&self, model: &ModelName) -> bool {
        self.state.running.iter().any(|running| running.model == *model)
            || self.state.jobs.iter().any(|job| job.model == *model)
    }

    /// True if this version is being loaded, or will be.
    pub(super) fn is_pending(&self, model: &ModelName, id: VersionId) -> bool {
        let mut running = self.state.running.iter();
        running.any(|running| running.model == *model && running.id == id)
            || self.state.jobs.iter().any(|job| job.model == *model && job.id == id)
    }
}
