//! What happened to models, as a stream: the last of it for who asks late, the rest as it comes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::broadcast;

use crate::model::{ModelName, Moment, VersionId};

/// Something that happened to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Counts events from the start of the process.
    pub sequence: u64,
    /// When, since 1970.
    pub at: Duration,
    /// The model.
    pub model: ModelName,
    /// The version, where one is meant.
    pub version: Option<VersionId>,
    /// What, in a word.
    pub kind: EventKind,
    /// More about it, for people; may be empty.
    pub detail: String,
    /// What it is about, as the admin API gives it.
    pub object: Option<Arc<Value>>,
}

/// What may happen to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A version appeared or changed in the repository.
    Discovered,
    /// A version waits for an operator.
    Held,
    /// A version is being fetched, proven, loaded and warmed.
    Loading,
    /// A version answers from now on.
    Ready,
    /// A version cannot be served.
    Failed,
    /// A version was taken from the table; its last requests finish.
    Retired,
    /// The last request let a version go; its memory is given back.
    Freed,
    /// A version was taken from the table to make room for another; it loads on demand.
    Evicted,
    /// A version is not loaded until a request asks for it.
    Deferred,
    /// The model left the repository.
    Removed,
    /// An operator decided something.
    Decided,
    /// Requests are split another way.
    TrafficChanged,
    /// A rollout began.
    RolloutStarted,
    /// A rollout's candidate gets another share.
    RolloutStep,
    /// A rollout waits.
    RolloutHeld,
    /// A rollout's candidate took over.
    RolloutPromoted,
    /// A rollout's candidate was taken out.
    RolloutRolledBack,
    /// A rollout could not go on.
    RolloutFailed,
    /// Features of requests, or outputs, are no longer distributed as in the version's reference.
    DriftDetected,
    /// Features that had drifted are back where the reference has them.
    DriftCleared,
    /// Requests break the model's contract, or too many of their values are missing.
    QualityViolated,
    /// Outcomes, or estimates where there are none, say that predictions became worse.
    PerformanceDropped,
    /// A model should be trained anew.
    RetrainRequested,
}

impl Event {
    /// Writes the event as streams and webhooks give it.
    pub fn to_json(&self) -> Value {
        let mut json = serde_json::json!({
            "id": self.sequence.to_string(),
            "at": Moment::at(self.at).to_string(),
            "sequence": self.sequence,
            "unix_ms": u64::try_from(self.at.as_millis()).unwrap_or(u64::MAX),
            "model": self.model.as_str(),
            "version": self.version.map(VersionId::number),
            "event": self.kind.name(),
            "detail": self.detail,
        });
        if let Some(object) = &self.object {
            json[self.kind.subject()] = Value::clone(object);
        }
        json
    }
}

/// The stream; cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Event>,
    recent: Arc<Mutex<VecDeque<Event>>>,
}

/// Events kept for who asks late, and events that a slow listener may be behind.
const RECENT_MAX: usize = 1024;

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 23] = [
        Self::Discovered,
        Self::Held,
        Self::Loading,
        Self::Ready,
        Self::Failed,
        Self::Retired,
        Self::Freed,
        Self::Evicted,
        Self::Deferred,
        Self::Removed,
        Self::Decided,
        Self::TrafficChanged,
        Self::RolloutStarted,
        Self::RolloutStep,
        Self::RolloutHeld,
        Self::RolloutPromoted,
        Self::RolloutRolledBack,
        Self::RolloutFailed,
        Self::DriftDetected,
        Self::DriftCleared,
        Self::QualityViolated,
        Self::PerformanceDropped,
        Self::RetrainRequested,
    ];

    /// The field that holds the object of an event of this kind, such as `drift`.
    pub const fn subject(self) -> &'static str {
        match self {
            Self::TrafficChanged => "traffic",
            Self::DriftDetected | Self::DriftCleared => "drift",
            Self::QualityViolated => "quality",
            Self::PerformanceDropped => "performance",
            Self::RetrainRequested => "retrain",
            _ => "rollout",
        }
    }

    /// The word for it, such as `ready`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Held => "held",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Retired => "retired",
            Self::Freed => "freed",
            Self::Evicted => "evicted",
            Self::Deferred => "deferred",
            Self::Removed => "removed",
            Self::Decided => "decided",
            Self::TrafficChanged => "traffic.changed",
            Self::RolloutStarted => "rollout.started",
            Self::RolloutStep => "rollout.step",
            Self::RolloutHeld => "rollout.held",
            Self::RolloutPromoted => "rollout.promoted",
            Self::RolloutRolledBack => "rollout.rolled_back",
            Self::RolloutFailed => "rollout.failed",
            Self::DriftDetected => "drift.detected",
            Self::DriftCleared => "drift.cleared",
            Self::QualityViolated => "quality.violated",
            Self::PerformanceDropped => "performance.dropped",
            Self::RetrainRequested => "retrain.requested",
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(RECENT_MAX), recent: Arc::default() }
    }
}

impl Events {
    /// What happened lately, and a receiver that gets everything after it.
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        (recent.iter().cloned().collect(), self.sender.subscribe())
    }

    /// Tells everybody who follows, and whoever asks late.
    pub fn tell(
        &self,
        at: Duration,
        model: &ModelName,
        version: Option<VersionId>,
        kind: EventKind,
        detail: impl Into<String>,
    ) {
        self.tell_about(at, (model, version), kind, detail, None);
    }

    /// Tells as [`Events::tell`] does, with what it is about.
    pub fn tell_about(
        &self,
        at: Duration,
        (model, version): (&ModelName, Option<VersionId>),
        kind: EventKind,
        detail: impl Into<String>,
        object: Option<Value>,
    ) {
        let object = object.map(Arc::new);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = recent.back().map_or(1, |event| event.sequence + 1);
        let model = model.clone();
        let event = Event { sequence, at, model, version, kind, detail: detail.into(), object };
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(event.clone());
        // Nobody may be listening.
        let _ = self.sender.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_listeners_get_what_happened_lately_once() {
        let events = Events::default();
        let model = ModelName::parse("m").unwrap();
        let tell = || events.tell(Duration::ZERO, &model, None, EventKind::Removed, "");
        (0..RECENT_MAX + 5).for_each(|_| tell());
        let (recent, mut later) = events.follow();
        assert_eq!(recent.len(), RECENT_MAX);
        assert_eq!(recent[0].sequence, 6);
        tell();
        assert_eq!(later.try_recv().unwrap().sequence, recent.last().unwrap().sequence + 1);
    }
}
