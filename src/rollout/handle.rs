//! Asks the driver for something, and waits for its answer.
//!
//! Not here: what becomes of it (`driver`, `course`).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread::Thread,
};

use serde_json::Value;
use tokio::sync::oneshot;

use crate::{
    lifecycle::{self, Operation, OperationError},
    model::{ModelName, VersionId},
    registry::Cause,
};

use super::{
    plan::{Plan, plan},
    policy::{Policy, PolicyDraft},
    replay::Bundle,
    report::Report,
    state::{Order, State},
    store::Frozen,
};

/// Asks for rollouts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Rollouts {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) thread: Thread,
    pub(super) lifecycle: lifecycle::Handle,
    pub(super) shared: Arc<Shared>,
}

/// Request for a new rollout.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The model.
    pub model: ModelName,
    /// The version that should take over.
    pub candidate: VersionId,
    /// The version that it is held against; what serves if `None`.
    pub baseline: Option<VersionId>,
    /// Differences from the model's policy.
    pub policy: PolicyDraft,
    /// True to start although the same files were rolled back lately.
    pub force: bool,
    /// Actor, and reason.
    pub cause: Cause,
    /// True if nobody asked for it.
    pub by_itself: bool,
}

/// Reason that something was not done.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The request is wrong, in all these ways.
    #[error("{}", .0.join("; "))]
    Malformed(Vec<String>),
    /// Names something that does not exist.
    #[error("{0}")]
    Unknown(String),
    /// Not possible as things stand.
    #[error("{why}")]
    Conflict {
        /// Reason, and what would help.
        why: String,
        /// The rollout as it stands.
        current: Option<Box<Report>>,
    },
    /// Another revision was meant.
    #[error("the rollout is at revision {} by now; look at it, and try again with that", current.revision)]
    Revision {
        /// The rollout as it stands.
        current: Box<Report>,
    },
    /// The candidate cannot be served.
    #[error(transparent)]
    Unservable(OperationError),
    /// Recording failed.
    #[error("{0}")]
    Unrecorded(String),
    /// Holds, but recording failed.
    #[error(
        "it holds, but is not recorded yet, so that a restart would undo it: {0}; it is tried again each second"
    )]
    NotYetRecorded(String),
    /// The driver has stopped.
    #[error(
        "rollouts are not run any more: the server is shutting down, or its log says what went wrong"
    )]
    Gone,
}

/// The same plan for the same question.
const SEED: u64 = 1;

/// An answer to come.
pub(super) type Reply<T> = oneshot::Sender<Result<T, RolloutError>>;

/// Requests to the driver.
pub(super) enum Command {
    /// Checks whether a rollout may start, and keeps the place for it; gives the versions that must be loaded.
    Reserve(Box<Wanted>, Reply<Vec<VersionId>>),
    /// Starts it: its versions are loaded.
    Begin(Box<Wanted>, Reply<Report>),
    /// Gives the place back; a rollout that began by itself is recorded as failed.
    Release(Box<Wanted>, String),
    Order {
        id: String,
        order: Order,
        cause: Cause,
        revision: Option<u64>,
        reply: Reply<Report>,
    },
    Show {
        id: String,
        reply: Reply<Report>,
    },
    List {
        model: Option<String>,
        before: Option<String>,
        limit: usize,
        reply: Reply<Vec<Report>>,
    },
    Evidence {
        id: String,
        reply: Reply<Bundle>,
    },
    Plan {
        model: ModelName,
        policy: Box<PolicyDraft>,
        rate: Option<f64>,
        base: Option<f64>,
        reply: Reply<(Policy, f64, f64)>,
    },
    Freeze {
        freeze: bool,
        cause: Cause,
        reply: Reply<Option<Frozen>>,
    },
    IsFrozen(Reply<Option<Frozen>>),
    /// A validation ended.
    Validated {
        id: String,
        report: Value,
        pass: bool,
        why: String,
    },
    /// An operator gave a paused rollout's candidate another share.
    Weighed {
        id: String,
        weight: f64,
    },
    Stop,
}

/// State that others read without asking.
#[derive(Debug, Default)]
pub(super) struct Shared {
    standings: Mutex<Vec<Report>>,
    outcomes: Mutex<BTreeMap<(ModelName, &'static str), u64>>,
    starter: OnceLock<Starter>,
}

/// Starts rollouts that nobody asked for, where loads may be waited for.
struct Starter(Box<dyn Fn(Wanted) + Send + Sync>);

impl std::fmt::Debug for Starter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Starter")
    }
}

impl Shared {
    pub(super) fn publish(&self, standings: Vec<Report>) {
        *self.standings.lock().unwrap_or_else(PoisonError::into_inner) = standings;
    }

    pub(super) fn ended(&self, model: &ModelName, state: State) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        *outcomes.entry((model.clone(), state.name())).or_default() += 1;
    }

    pub(super) fn start_by(&self, start: impl Fn(Wanted) + Send + Sync + 'static) {
        // There is one driver, and it is started once.
        let _ = self.starter.set(Starter(Box::new(start)));
    }

    pub(super) fn start_by_itself(&self, model: ModelName, candidate: VersionId) {
        let wanted = Wanted {
            model,
            candidate,
            baseline: None,
            policy: PolicyDraft::default(),
            force: false,
            cause: Cause {
                actor: "tidegate".to_owned(),
                reason: "a new version appeared".to_owned(),
            },
            by_itself: true,
        };
        if let Some(Starter(start)) = self.starter.get() {
            start(wanted);
        }
    }
}

impl Rollouts {
    fn send(&self, command: Command) -> Result<(), RolloutError> {
        self.commands.send(command).map_err(|_| RolloutError::Gone)?;
        self.thread.unpark();
        Ok(())
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, RolloutError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.unwrap_or(Err(RolloutError::Gone))
    }

    /// Starts a rollout: its candidate is loaded when this returns.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it goes on.
    pub async fn start(&self, wanted: Wanted) -> Result<Report, RolloutError> {
        let own = self.clone();
        let started = tokio::spawn(async move { own.start_now(wanted).await });
        started.await.unwrap_or(Err(RolloutError::Gone))
    }

    async fn start_now(&self, wanted: Wanted) -> Result<Report, RolloutError> {
        let boxed = Box::new(wanted.clone());
        let versions = self.ask(|reply| Command::Reserve(boxed, reply)).await?;
        let (model, cause) = (wanted.model.clone(), wanted.cause.clone());
        let prepare = |versions| {
            let operation = Operation::Prepare { versions };
            self.lifecycle.operate(model.clone(), operation, false, cause.clone())
        };
        if let Err(error) = prepare(versions).await {
            self.send(Command::Release(Box::new(wanted), error.to_string()))?;
            return Err(match error {
                OperationError::Unknown(_) | OperationError::UnknownVersion { .. } => {
                    RolloutError::Unknown(error.to_string())
                }
                error => RolloutError::Unservable(error),
            });
        }
        let boxed = Box::new(wanted);
        let begun = self.ask(|reply| Command::Begin(boxed, reply)).await;
        if begun.is_err() {
            // The versions need not stay; a keeper that is gone has none.
            let _ = prepare(Vec::new()).await;
        }
        begun
    }

    /// Does what an operator asks of a rollout.
    pub async fn order(
        &self,
        id: &str,
        order: Order,
        cause: Cause,
        revision: Option<u64>,
    ) -> Result<Report, RolloutError> {
        let id = id.to_owned();
        self.ask(|reply| Command::Order { id, order, cause, revision, reply }).await
    }

    /// A rollout as it stands.
    pub async fn show(&self, id: &str) -> Result<Report, RolloutError> {
        let id = id.to_owned();
        self.ask(|reply| Command::Show { id, reply }).await
    }

    /// Rollouts, the newest first: of one model or all, older than `before`, `limit` at most.
    pub async fn list(
        &self,
        model: Option<String>,
        before: Option<String>,
        limit: usize,
    ) -> Result<Vec<Report>, RolloutError> {
        self.ask(|reply| Command::List { model, before, limit, reply }).await
    }

    /// Returns all that a decision was made from.
    pub async fn evidence(&self, id: &str) -> Result<Bundle, RolloutError> {
        let id = id.to_owned();
        self.ask(|reply| Command::Evidence { id, reply }).await
    }

    /// Returns what a policy will and will not see, at the traffic that there is or at this one.
    pub async fn plan(
        &self,
        model: ModelName,
        policy: PolicyDraft,
        (rate, base): (Option<f64>, Option<f64>),
    ) -> Result<Plan, RolloutError> {
        let asked =
            self.ask(|reply| Command::Plan { model, policy: Box::new(policy), rate, base, reply });
        let (policy, rate, base) = asked.await?;
        // A simulation of some hundred milliseconds: nothing for the thread that judges.
        let planned = tokio::task::spawn_blocking(move || plan(&policy, rate, base, SEED)).await;
        let planned = planned.map_err(|_| {
            RolloutError::Malformed(vec![
                "this cannot be planned, a bug of tidegate; the log has it".to_owned(),
            ])
        })?;
        planned.map_err(|error| RolloutError::Malformed(vec![error.to_string()]))
    }

    /// Stops all automation, or lets it go on.
    pub async fn freeze(&self, freeze: bool, cause: Cause) -> Result<Option<Frozen>, RolloutError> {
        self.ask(|reply| Command::Freeze { freeze, cause, reply }).await
    }

    /// Returns who stopped all automation, if somebody did.
    pub async fn frozen(&self) -> Result<Option<Frozen>, RolloutError> {
        self.ask(Command::IsFrozen).await
    }

    /// Tells a paused rollout that its candidate has another share.
    pub fn weighed(&self, id: String, weight: f64) -> Result<(), RolloutError> {
        self.send(Command::Weighed { id, weight })
    }

    pub(super) fn validated(&self, id: String, report: Value, pass: bool, why: String) {
        // A driver that is gone needs no report.
        let _ = self.send(Command::Validated { id, report, pass, why });
    }

    /// The newest rollout of each model, as it stood a moment ago.
    pub fn standings(&self) -> Vec<Report> {
        self.shared.standings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rollouts that ended, by model and the state that they ended in.
    pub fn outcomes(&self) -> Vec<((ModelName, &'static str), u64)> {
        let outcomes = self.shared.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.iter().map(|(key, count)| (key.clone(), *count)).collect()
    }

    pub(super) fn stop(&self) {
        let _ = self.send(Command::Stop);
    }
}
