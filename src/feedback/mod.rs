//! Outcomes come back: they are joined to the predictions that they are about, and show how good a version is.
//!
//! Workers leave each prediction in a ring (`serve`); one thread, `feedback`, keeps the newest of every model for the
//! outcomes that come later, writes both down, and sums them by version, arm and time of the prediction. Always true:
//! - An outcome is on disk before it is called joined, and counts once, however often it is sent.
//! - No worker waits for anything here; what comes too fast is counted, and not remembered.
//! - What is remembered is bounded by bytes and by age, what is summed by the number of spans and classes.
//!
//! In reading order: `ledger` is a model's part, made of `memory`, `journal`, `windows` of `tally`s and `calibration`;
//! `quality` is what is shown, `watch` tells when it drops; `joiner` is the thread.
//!
//! Not here: HTTP (`admin`), what a rollout makes of outcomes (`rollout`).

mod calibration;
mod drops;
mod joiner;
mod journal;
mod ledger;
mod memory;
mod quality;
mod secret;
mod tally;
mod watch;
mod windows;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread::{JoinHandle, Thread},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    model::{ModelName, PredictionId, PredictionKey, VersionId},
    monitor::Monitor,
    serve::{AnswerRule, Assigned, ClassName, Recall, SampledOutcome, Samples, Serving},
};

pub use quality::{Delays, Metric, QualityReport, SegmentQuality, VersionQuality};
pub use secret::secret;

/// Limits of joining.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Bytes that the remembered predictions of all models may occupy.
    pub memory_max: u64,
}

/// The operator's word about outcomes of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Which predictions are remembered, and what of an answer is one.
    pub rule: AnswerRule,
    /// The age from which on an outcome comes too late.
    pub ttl: Duration,
    /// Bytes that the model's remembered predictions may occupy.
    pub memory_max: u64,
    /// The accuracy below which a version is told to have dropped, 0 to 1.
    pub accuracy_min: Option<f64>,
    /// Time after a drop was told in which none is told of the same version.
    pub cooldown: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory_max: 256 << 20 }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let ttl = Duration::from_hours(7 * 24);
        Self {
            rule: AnswerRule::default(),
            ttl,
            memory_max: 64 << 20,
            accuracy_min: None,
            cooldown: Duration::from_hours(1),
        }
    }
}

/// A prediction's fate.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The prediction.
    pub prediction: PredictionId,
    /// The row of its request, from 0.
    pub row: u32,
    /// The right prediction, or what this one brought.
    pub truth: Actual,
    /// The prediction as the client remembers it.
    pub echo: Option<Echo>,
    /// When it was known, since 1970; now if `None`.
    pub at: Option<Duration>,
}

/// The right prediction, or what one brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Actual {
    /// The class.
    Label(ClassName),
    /// The number; finite.
    Value(f64),
    /// The reward; finite.
    Reward(f64),
}

/// A prediction, as a client remembers it.
#[derive(Debug, Clone, PartialEq)]
pub enum Echo {
    /// A class's number, or a number.
    Number(f64),
    /// A class's text.
    Text(String),
}

/// Result for an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It counts, and is on disk.
    Joined,
    /// The prediction is ours, and too old or forgotten.
    Late,
    /// The prediction is not ours.
    Unknown,
    /// The prediction has an outcome.
    Duplicate,
    /// The outcome makes no sense.
    Invalid,
}

impl Outcome {
    /// It as a row of the table of outcomes; known at `now` if nothing else is said.
    fn sampled(&self, model: &ModelName, now: Duration) -> SampledOutcome {
        let (label, value, reward) = match &self.truth {
            Actual::Label(ClassName::Number(number)) => (Some(number.to_string()), None, None),
            Actual::Label(ClassName::Text(text)) => (Some(text.clone()), None, None),
            Actual::Value(value) => (None, Some(*value), None),
            Actual::Reward(reward) => (None, None, Some(*reward)),
        };
        let (id, row, at) = (self.prediction, self.row, self.at.unwrap_or(now));
        SampledOutcome { model: model.clone(), id, row, at, label, value, reward }
    }
}

impl Status {
    /// All of them, in the order of the protocol.
    pub const ALL: [Self; 5] =
        [Self::Joined, Self::Late, Self::Unknown, Self::Duplicate, Self::Invalid];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Late => "late",
            Self::Unknown => "unknown",
            Self::Duplicate => "duplicate",
            Self::Invalid => "invalid",
        }
    }
}

/// The answer about an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its result.
    pub status: Status,
    /// More about it, for people.
    pub detail: Option<String>,
    /// The version and arm that predicted, where that is known.
    pub of: Option<(VersionId, String)>,
}

/// An outcome, as the rollout that assigned its request hears of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// The prediction.
    pub prediction: PredictionId,
    /// The time of assignment, since 1970.
    pub at: Duration,
    /// Its assignment.
    pub assigned: Assigned,
    /// The news.
    pub told: Told,
}

/// News of an outcome for a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// True if it is one that should come as often on either arm: any label or value, a reward above 0.
    pub happened: bool,
    /// True if another class was predicted; `None` without a label or a prediction.
    pub wrong: Option<bool>,
}

/// Why outcomes were not taken.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    /// There is no such model.
    #[error("Request for unknown model: '{0}' is not found")]
    UnknownModel(String),
    /// The model's predictions are not remembered.
    #[error("feedback is off for model `{0}`; set enabled = true in [models.{0}.feedback]")]
    Off(ModelName),
    /// Too many requests wait; worth retrying.
    #[error("too many outcomes wait to be joined; try again")]
    Busy,
    /// They could not be written down; nothing was joined.
    #[error("outcomes of model `{model}` could not be written down, so none was joined; try again")]
    Unwritten {
        /// The model.
        model: ModelName,
        /// The error of the disk.
        source: std::io::Error,
    },
    /// The thread that joins has ended.
    #[error("outcomes are not joined any more: the server is shutting down")]
    Gone,
}

/// Requests that may wait for the thread.
const WAITING_MAX: usize = 256;

/// Outcomes of a model that may wait for its rollout.
const JUDGED_MAX: usize = 1 << 16;

type Reply<T> = oneshot::Sender<Result<T, FeedbackError>>;

enum Command {
    Join { model: String, outcomes: Vec<Outcome>, reply: Reply<Vec<Answer>> },
    Quality { model: Option<String>, window: Duration, reply: Reply<Vec<QualityReport>> },
    Stop,
}

/// Counts of outcomes: model, version and arm where they are known, status.
type Counts = BTreeMap<(ModelName, String, String, Status), u64>;

#[derive(Debug, Default)]
struct Shared {
    counts: Mutex<Counts>,
    judged: Mutex<BTreeMap<ModelName, VecDeque<Judged>>>,
    /// The thread that joins, which looks for commands when it is woken.
    thread: OnceLock<Thread>,
}

impl Shared {
    fn wake(&self) {
        self.thread.get().inspect(|thread| thread.unpark());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes outcomes; cheap to clone.
#[derive(Debug, Clone)]
pub struct Feedback {
    commands: mpsc::SyncSender<Command>,
    shared: Arc<Shared>,
    recall: Arc<Recall>,
}

/// The thread that joins outcomes, until it is dropped.
#[derive(Debug)]
pub struct Joining {
    feedback: Feedback,
    thread: Option<JoinHandle<()>>,
}

/// Parts of the process that outcomes need.
pub struct Parts {
    /// The versions that predict.
    pub serving: Arc<Serving>,
    /// Counters, which know the place of an arm.
    pub monitor: Arc<Monitor>,
    /// The state's folder, if state is kept.
    pub state: Option<PathBuf>,
    /// The key of predictions' names.
    pub key: PredictionKey,
    /// Threads that serve.
    pub workers: usize,
    /// Bounds.
    pub settings: Settings,
    /// The operator's word about each model; the default for those that are not there.
    pub policies: BTreeMap<ModelName, Policy>,
    /// Where outcomes of sampled predictions go, if some are sampled.
    pub samples: Option<Arc<Samples>>,
}

impl Joining {
    /// Starts the thread; predictions are remembered from now on.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let (sender, commands) = mpsc::sync_channel(WAITING_MAX);
        let shared = Arc::new(Shared::default());
        let recall = Arc::new(Recall::new(parts.workers));
        parts.serving.remember(Arc::clone(&recall));
        let feedback =
            Feedback { commands: sender, shared: Arc::clone(&shared), recall: Arc::clone(&recall) };
        let monitor = Arc::clone(&parts.monitor);
        let joiner = joiner::Joiner::new(parts, commands, shared, recall);
        let thread = std::thread::Builder::new().name("feedback".to_owned()).spawn(move || {
            let run = || joiner.run();
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                monitor.upkeep().broke("the thread that joins outcomes");
            }
        })?;
        Ok(Self { feedback, thread: Some(thread) })
    }

    /// Takes outcomes.
    #[must_use]
    pub fn handle(&self) -> Feedback {
        self.feedback.clone()
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        // A full queue is emptied by the thread.
        let _ = self.feedback.commands.send(Command::Stop);
        self.feedback.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been told already
        }
    }
}

impl Feedback {
    /// Joins outcomes to a model's predictions: an answer for each, in order, once what joined is on disk.
    ///
    /// # Errors
    /// If none was joined.
    ///
    /// # Cancel safety
    /// The request is carried out all the same; the same outcomes may be sent again.
    pub async fn join(
        &self,
        model: &str,
        outcomes: Vec<Outcome>,
    ) -> Result<Vec<Answer>, FeedbackError> {
        let model = model.to_owned();
        self.ask(|reply| Command::Join { model, outcomes, reply }).await
    }

    /// Reports the quality of a model's versions in the window before now; for all models if `model` is `None`.
    ///
    /// # Errors
    /// If there is no such model.
    pub async fn quality(
        &self,
        model: Option<&str>,
        window: Duration,
    ) -> Result<Vec<QualityReport>, FeedbackError> {
        let model = model.map(str::to_owned);
        self.ask(|reply| Command::Quality { model, window, reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, FeedbackError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => FeedbackError::Busy,
            mpsc::TrySendError::Disconnected(_) => FeedbackError::Gone,
        })?;
        self.shared.wake();
        answer.await.unwrap_or(Err(FeedbackError::Gone))
    }

    /// Outcomes so far: model, version and arm (empty where they are not known), status, number.
    #[must_use]
    pub fn counts(&self) -> Vec<(ModelName, String, String, Status, u64)> {
        let counts = lock(&self.shared.counts);
        let count =
            |((model, version, arm, status), count): (&(_, String, String, Status), &u64)| {
                let model: &ModelName = model;
                (model.clone(), version.clone(), arm.clone(), *status, *count)
            };
        counts.iter().map(count).collect()
    }

    /// Predicted rows so far that are not remembered: they came faster than they were taken, or with too many others.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.recall.lost()
    }

    /// Takes the outcomes of requests that a rollout of this model assigned, in the order in which they came; one for
    /// each request.
    #[must_use]
    pub fn judged(&self, model: &ModelName) -> Vec<Judged> {
        let mut judged = lock(&self.shared.judged);
        judged.get_mut(model).map(|waiting| waiting.drain(..).collect()).unwrap_or_default()
    }
}
