//! Asks the driver for something, and waits for its answer.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::model::ModelName;

use super::report::{Report, Shared, TestReport};

/// Asks about notifications; cheap to clone.
#[derive(Debug, Clone)]
pub struct Notifications {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) shared: Arc<Shared>,
}

/// Reason that something was not done.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// There are no webhooks.
    #[error("no webhook is configured; add one as [[notify.webhook]] and restart")]
    None,
    /// There is no such webhook.
    #[error("no webhook is called `{name}`; there are {}", known.join(", "))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// Too many tests run; worth trying again.
    #[error("other tests are still running; try again in a moment")]
    Busy,
    /// The process is ending.
    #[error("notifications have stopped, as the server is stopping")]
    Gone,
}

#[derive(Debug)]
pub(super) enum Command {
    /// Sends a test to one webhook, or to all.
    Test { webhook: Option<String>, reply: oneshot::Sender<Result<Vec<TestReport>, NotifyError>> },
    /// Tells that a model should be trained anew: actor and reason.
    Retrain { model: ModelName, cause: (String, String), reply: oneshot::Sender<Value> },
}

impl Notifications {
    /// Webhooks as they stand, and so many of the last notifications.
    pub fn report(&self, limit: usize) -> Report {
        self.shared.report(limit)
    }

    /// Counts by kind of event and outcome.
    pub fn counts(&self) -> Vec<((&'static str, &'static str), u64)> {
        self.shared.counts().into_iter().collect()
    }

    /// Notifications that wait, over all webhooks.
    pub fn waiting(&self) -> usize {
        self.shared.waiting()
    }

    /// Sends a test to one webhook, or to all, and returns what they said.
    pub async fn test(&self, webhook: Option<String>) -> Result<Vec<TestReport>, NotifyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Test { webhook, reply })?;
        answer.await.map_err(|_| NotifyError::Gone)?
    }

    /// Tells that a model should be trained anew; returns the object of the event.
    pub async fn retrain(
        &self,
        model: ModelName,
        actor: String,
        reason: String,
    ) -> Result<Value, NotifyError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Retrain { model, cause: (actor, reason), reply })?;
        answer.await.map_err(|_| NotifyError::Gone)
    }

    fn send(&self, command: Command) -> Result<(), NotifyError> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotifyError::Busy,
            mpsc::error::TrySendError::Closed(_) => NotifyError::Gone,
        })
    }
}
