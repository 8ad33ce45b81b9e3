//! State of notifications for others to see: webhooks with their circuits, the last deliveries, counts.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::model::Moment;

use super::{
    message::Message,
    outbox::{Outbox, Settled},
    webhook::Webhook,
};

/// Notifications as they stand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// True if what is queued outlives the process.
    pub durable: bool,
    /// Webhooks, in the order of the configuration.
    pub webhooks: Vec<WebhookReport>,
    /// The last notifications, the newest first.
    pub notifications: Vec<NotificationReport>,
}

/// A webhook as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WebhookReport {
    /// Its name.
    pub name: String,
    /// Scheme, host and port of its URL.
    pub host: String,
    /// Kinds of events that it gets, or their beginnings.
    pub events: Vec<String>,
    /// Models whose events it gets; empty for all.
    pub models: Vec<String>,
    /// True if deliveries are signed.
    pub signed: bool,
    /// State of its circuit: `closed`, `open`, `half_open`, or `gone` after 410.
    pub circuit: String,
    /// Notifications that wait for it.
    pub waiting: usize,
    /// Failed deliveries in a row.
    pub failures: u32,
    /// Reason of the last failure, until a delivery succeeds.
    pub last_error: Option<String>,
    /// Time of the last delivery.
    pub delivered_at: Option<Moment>,
    /// Time of the next attempt, where one waits.
    pub next_at: Option<Moment>,
}

/// One event for one webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotificationReport {
    /// Its id, the same in every attempt.
    pub id: String,
    /// Time of the event.
    pub at: Moment,
    /// Kind of the event.
    pub kind: String,
    /// Its model.
    pub model: String,
    /// Its version.
    pub version: Option<String>,
    /// The webhook.
    pub webhook: String,
    /// `waiting`, `delivered`, `given_up`, or `dropped` where there was no room.
    pub outcome: String,
    /// Attempts so far.
    pub attempts: u32,
    /// Status of the last answer.
    pub status: Option<u16>,
    /// Reason where it was not delivered.
    pub detail: String,
}

/// Outcome of a test of a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestReport {
    /// The webhook.
    pub webhook: String,
    /// True if it took the test.
    pub delivered: bool,
    /// Status of its answer.
    pub status: Option<u16>,
    /// Reason where it did not.
    pub detail: String,
}

/// Counts by the kind of events and what became of them.
pub(super) type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// State that the driver publishes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    durable: bool,
    webhooks: Vec<WebhookReport>,
    waiting: usize,
    recent: VecDeque<NotificationReport>,
    counts: Counts,
}

/// Notifications that are kept to be shown.
const RECENT_MAX: usize = 200;

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self, limit: usize) -> Report {
        let seen = self.seen();
        Report {
            durable: seen.durable,
            webhooks: seen.webhooks.clone(),
            notifications: seen.recent.iter().rev().take(limit).cloned().collect(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.seen().counts.clone()
    }

    pub(super) fn waiting(&self) -> usize {
        self.seen().waiting
    }

    pub(super) fn count(&self, kind: &'static str, outcome: &'static str, by: u64) {
        *self.seen().counts.entry((kind, outcome)).or_default() += by;
    }

    /// Shows a message that was queued, or found no room.
    pub(super) fn add(&self, message: &Message, webhook: &str, outcome: &str) {
        let mut seen = self.seen();
        if seen.recent.len() == RECENT_MAX {
            seen.recent.pop_front();
        }
        seen.recent.push_back(NotificationReport {
            id: message.id.clone(),
            at: Moment::at(message.at),
            kind: message.kind.to_owned(),
            model: message.model.to_string(),
            version: message.version.map(|version| version.to_string()),
            webhook: webhook.to_owned(),
            outcome: outcome.to_owned(),
            attempts: 0,
            status: None,
            detail: String::new(),
        });
    }

    /// Shows what became of a message.
    pub(super) fn settled(&self, settled: &Settled, webhook: &str, outcome: &str) {
        let mut seen = self.seen();
        let is_it =
            |one: &&mut NotificationReport| one.id == settled.message.id && one.webhook == webhook;
        if let Some(one) = seen.recent.iter_mut().rev().find(is_it) {
            outcome.clone_into(&mut one.outcome);
            (one.attempts, one.status) = (settled.attempts, settled.status);
            one.detail.clone_from(&settled.why);
        }
    }

    /// Shows the lanes as they stand.
    pub(super) fn publish(
        &self,
        webhooks: &[Webhook],
        outbox: &Outbox,
        durable: bool,
        now: Duration,
    ) {
        let reports = webhooks.iter().zip(&outbox.lanes).map(|(webhook, lane)| WebhookReport {
            name: webhook.name.clone(),
            host: webhook.target.to_string(),
            events: webhook.events.clone(),
            models: webhook.models.iter().map(ToString::to_string).collect(),
            signed: webhook.secret.is_some(),
            circuit: outbox.circuit(lane, now).name().to_owned(),
            waiting: lane.len(),
            failures: lane.failures,
            last_error: lane.last_error.clone(),
            delivered_at: lane.delivered_at.map(Moment::at),
            next_at: Some(lane.next_at).filter(|at| lane.len() > 0 && *at > now).map(Moment::at),
        });
        let (webhooks, waiting) = (reports.collect(), outbox.waiting());
        let mut seen = self.seen();
        (seen.durable, seen.webhooks, seen.waiting) = (durable, webhooks, waiting);
    }
}
