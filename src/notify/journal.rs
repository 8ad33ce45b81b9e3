//! The outbox on disk: a record for each message that is queued, and one for each delivery that ended.
//!
//! Always true: what was recorded as queued is delivered or given up, by this process or a later one; only the record
//! of the end takes it out. Where nothing can be written, messages are sent from memory alone, and the log says so
//! once.
//!
//! Not here: what is sent when (`outbox`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    monitor::EventKind,
    state::{NewRecord, Record, State, StateError},
};

use super::{
    message::Message,
    outbox::{Outbox, Settled},
};

/// Records of the outbox.
#[derive(Debug)]
pub(super) struct Journal {
    state: Option<State>,
    /// True if a record could not be written; told once.
    troubled: bool,
}

/// The kind of records of what is queued.
const QUEUED: &str = "notification.queued";
/// The kind of records of what was delivered or given up.
const SETTLED: &str = "notification.settled";
/// The author of both.
const ACTOR: &str = "tidegate";

#[derive(Debug, Serialize, Deserialize)]
struct Queued {
    id: String,
    event: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    webhooks: Vec<String>,
    /// The bytes that are sent, as text.
    body: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ended {
    id: String,
    webhook: String,
    outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    attempts: u32,
}

/// A message that has not left all its lanes.
#[derive(Debug)]
struct Pending {
    sequence: u64,
    message: Arc<Message>,
    webhooks: Vec<String>,
}

impl Journal {
    pub(super) fn new(state: Option<State>) -> Self {
        Self { state, troubled: false }
    }

    /// True if what is queued outlives the process.
    pub(super) fn is_durable(&self) -> bool {
        self.state.is_some() && !self.troubled
    }

    /// Puts what earlier processes queued back into the outbox, with the cool-downs that still hold; returns messages
    /// of webhooks that are no longer configured.
    pub(super) fn recall(
        &self,
        outbox: &mut Outbox,
        now: Duration,
    ) -> Result<Vec<(Arc<Message>, String)>, StateError> {
        let Some(state) = &self.state else { return Ok(Vec::new()) };
        let mut pending: HashMap<String, Pending> = HashMap::new();
        let mut topics: BTreeMap<String, (&'static str, Duration)> = BTreeMap::new();
        state.replay(|record| match record.kind.as_str() {
            QUEUED => {
                if let Some(one) = Pending::of(record) {
                    if let Some(topic) = &one.message.topic {
                        topics.insert(topic.clone(), (one.message.kind, one.message.at));
                    }
                    pending.insert(one.message.id.clone(), one);
                }
            }
            SETTLED => {
                let Ok(ended) = serde_json::from_value::<Ended>(record.body) else { return };
                if let Some(one) = pending.get_mut(&ended.id) {
                    one.webhooks.retain(|name| *name != ended.webhook);
                    if one.webhooks.is_empty() {
                        pending.remove(&ended.id);
                    }
                }
            }
            _ => {}
        })?;
        for (topic, (kind, at)) in topics {
            // One from the future was written by a clock that ran ahead.
            outbox.told(&topic, kind, at.min(now));
        }
        let mut pending: Vec<Pending> = pending.into_values().collect();
        pending.sort_by_key(|one| one.sequence);
        let mut homeless = Vec::new();
        for one in pending {
            for name in one.webhooks {
                match outbox.lanes.iter().position(|lane| lane.name == name) {
                    // Queued under an earlier bound: nothing that was promised is dropped.
                    Some(lane) => outbox.push(lane, Arc::clone(&one.message)),
                    None => homeless.push((Arc::clone(&one.message), name)),
                }
            }
        }
        Ok(homeless)
    }

    /// Records that a message is queued for these webhooks.
    pub(super) fn queued(&mut self, message: &Message, webhooks: Vec<String>) {
        let body = Queued {
            id: message.id.clone(),
            event: message.kind.to_owned(),
            topic: message.topic.clone(),
            webhooks,
            body: message.body.clone(),
        };
        let record = record(QUEUED, message, message.at, serde_json::to_value(body));
        self.append(record);
    }

    /// Records that a message left a lane.
    pub(super) fn settled(&mut self, settled: &Settled, webhook: &str, now: Duration) {
        let outcome = if settled.delivered { "delivered" } else { "given_up" };
        let body = Ended {
            id: settled.message.id.clone(),
            webhook: webhook.to_owned(),
            outcome: outcome.to_owned(),
            status: settled.status,
            attempts: settled.attempts,
        };
        let mut record = record(SETTLED, &settled.message, now, serde_json::to_value(body));
        record.reason.clone_from(&settled.why);
        self.append(record);
    }

    fn append(&mut self, record: NewRecord) {
        let Some(state) = &self.state else { return };
        match state.append(record) {
            Ok(_) => self.troubled = false,
            Err(error) => {
                if !std::mem::replace(&mut self.troubled, true) {
                    let error = chain(&error);
                    tracing::warn!(
                        "notifications are not written down, and those that wait are lost if this process ends: {error}; \
                         make room below state.path"
                    );
                }
            }
        }
    }
}

fn record(
    kind: &str,
    message: &Message,
    at: Duration,
    body: Result<serde_json::Value, serde_json::Error>,
) -> NewRecord {
    NewRecord {
        unix_nanos: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        actor: ACTOR.to_owned(),
        kind: kind.to_owned(),
        model: Some(message.model.clone()),
        version: message.version,
        reason: String::new(),
        body: body.expect("plain texts and numbers"),
    }
}

impl Pending {
    /// Reads a record; one that a newer tidegate wrote otherwise is passed over.
    fn of(record: Record) -> Option<Self> {
        let queued: Queued = serde_json::from_value(record.body).ok()?;
        let kind = EventKind::ALL.iter().find(|kind| kind.name() == queued.event)?.name();
        let message = Message {
            id: queued.id,
            kind,
            model: record.model?,
            version: record.version,
            topic: queued.topic,
            at: Duration::from_nanos(record.unix_nanos),
            body: queued.body,
        };
        let (sequence, webhooks) = (record.sequence, queued.webhooks);
        Some(Self { sequence, message: Arc::new(message), webhooks })
    }
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{ModelName, VersionId},
        notify::{Settings, Webhook, outbox::Attempt, webhook::WebhookDraft},
        state,
    };

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn outbox(names: &[&str]) -> Outbox {
        let hook = |name: &&str| WebhookDraft {
            name: (*name).to_owned(),
            url: "http://h/".to_owned(),
            ..WebhookDraft::default()
        };
        let drafts: Vec<_> = names.iter().map(hook).collect();
        let webhooks = Webhook::read(&drafts).unwrap();
        Outbox::new(&Settings { webhooks, ..Settings::default() })
    }

    fn message(id: &str) -> Arc<Message> {
        Arc::new(Message {
            id: id.to_owned(),
            kind: "drift.detected",
            model: ModelName::parse("m").unwrap(),
            version: Some(VersionId::new(2)),
            topic: Some(format!("drift/m/2/{id}")),
            at: NOW,
            body: "{\"a\":0.1}".to_owned(),
        })
    }

    #[test]
    fn what_was_queued_and_not_settled_comes_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let settings =
                state::Settings { path: folder.path().to_owned(), ..state::Settings::default() };
            Journal::new(Some(State::open(settings).unwrap().0))
        };
        let mut journal = open();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for id in ["1", "2", "3"] {
            journal.queued(&message(id), names(&["a", "b"]));
        }
        let settled = |id, lane| Settled {
            message: message(id),
            lane,
            delivered: true,
            status: Some(200),
            attempts: 1,
            why: String::new(),
        };
        journal.settled(&settled("1", 0), "a", NOW);
        journal.settled(&settled("1", 1), "b", NOW);
        journal.settled(&settled("2", 0), "a", NOW);
        drop(journal);

        let (journal, mut outbox) = (open(), outbox(&["a", "c"]));
        let homeless = journal.recall(&mut outbox, NOW).unwrap();
        let homeless: Vec<_> =
            homeless.iter().map(|(message, name)| (&*message.id, &**name)).collect();
        assert_eq!(homeless, [("2", "b"), ("3", "b")]);
        let due = outbox.due(NOW);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].1, message("3"));
        assert!(!outbox.is_news("drift/m/2/1", "drift.detected", NOW), "its cool-down holds");
        outbox.settle(0, Attempt::Delivered { status: 200 }, NOW, 0);
        assert_eq!(outbox.waiting(), 0);
    }
}
