//! Messages that wait to be delivered, and when each is tried again: a pure function of events, outcomes and time.
//!
//! Each webhook has a lane: its messages in the order of events, one under way at a time. A lane whose receiver fails
//! pauses, longer after each failure; after `breaker_failures` in a row its circuit opens: nothing is tried for
//! `backoff_max`, then one message is, and the answer to that closes the circuit or opens it again. Always true:
//! - A message leaves its lane when it was delivered or given up, and both are told to the caller.
//! - A lane never holds more than `queue_max` messages; the newest finds no room and is counted.
//! - The same news is taken once in a `cooldown`; what is held back is counted, and the next message says how many.
//!
//! Times are since 1970, so that they mean the same after a restart. Not here: records (`journal`), sockets (`client`).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{message::Message, settings::Settings};

/// Everything that waits.
#[derive(Debug)]
pub(super) struct Outbox {
    limits: Limits,
    pub(super) lanes: Vec<Lane>,
    topics: HashMap<String, Topic>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    cooldown: Duration,
    backoff: Duration,
    backoff_max: Duration,
    breaker_failures: u32,
    attempts_max: u32,
    give_up_after: Duration,
    queue_max: usize,
}

/// Queue of one webhook.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) name: String,
    waiting: VecDeque<Waiting>,
    under_way: bool,
    /// Failed attempts in a row, over all messages.
    pub(super) failures: u32,
    /// The end of the pause.
    pub(super) next_at: Duration,
    /// True if the receiver said that it wants nothing any more.
    pub(super) gone: bool,
    pub(super) last_error: Option<String>,
    pub(super) delivered_at: Option<Duration>,
    /// True if the newest message found no room; told once.
    pub(super) full: bool,
}

#[derive(Debug)]
struct Waiting {
    message: Arc<Message>,
    attempts: u32,
}

/// The last message about some news.
#[derive(Debug, Clone)]
struct Topic {
    kind: &'static str,
    at: Duration,
    suppressed: u64,
}

/// State of a webhook's circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Circuit {
    Closed,
    Open,
    HalfOpen,
    Gone,
}

/// Outcome of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    /// The receiver has it.
    Delivered { status: u16 },
    /// Worth trying again, not before `after` if that is said.
    Failed { status: Option<u16>, why: String, after: Option<Duration> },
    /// The receiver understood it and does not want it.
    Refused { status: u16, why: String },
    /// The receiver wants nothing any more.
    Gone { why: String },
}

/// A message that left its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) message: Arc<Message>,
    pub(super) lane: usize,
    pub(super) delivered: bool,
    pub(super) status: Option<u16>,
    pub(super) attempts: u32,
    pub(super) why: String,
}

/// The most topics that are remembered; the oldest go.
const TOPICS_MAX: usize = 10_000;
/// The longest pause that a receiver may ask for by `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

impl Outbox {
    /// Makes an empty lane for each webhook.
    pub(super) fn new(settings: &Settings) -> Self {
        let limits = Limits {
            cooldown: settings.cooldown,
            backoff: settings.backoff,
            backoff_max: settings.backoff_max.max(settings.backoff),
            breaker_failures: settings.breaker_failures,
            attempts_max: settings.attempts_max,
            give_up_after: settings.give_up_after,
            queue_max: settings.queue_max,
        };
        let lanes = settings.webhooks.iter().map(|webhook| Lane::new(&webhook.name)).collect();
        Self { limits, lanes, topics: HashMap::new() }
    }

    /// True if news may be sent now; else it is counted.
    pub(super) fn is_news(&mut self, topic: &str, kind: &'static str, now: Duration) -> bool {
        let Some(known) = self.topics.get_mut(topic) else { return true };
        // A clock that was set back must not silence anything for long.
        let age = now.checked_sub(known.at).unwrap_or(self.limits.cooldown);
        let fresh = known.kind != kind || age >= self.limits.cooldown;
        if !fresh {
            known.suppressed += 1;
        }
        fresh
    }

    /// True if the last message about some news was of this kind, however long ago.
    pub(super) fn was_told(&self, topic: &str, kind: &'static str) -> bool {
        self.topics.get(topic).is_some_and(|known| known.kind == kind)
    }

    /// Notes that a message about some news is queued; returns how many were held back before it.
    pub(super) fn told(&mut self, topic: &str, kind: &'static str, now: Duration) -> u64 {
        if self.topics.len() >= TOPICS_MAX && !self.topics.contains_key(topic) {
            let cooldown = self.limits.cooldown;
            self.topics.retain(|_, known| now.saturating_sub(known.at) < cooldown);
            if self.topics.len() >= TOPICS_MAX {
                let oldest = self.topics.iter().min_by_key(|(_, known)| known.at);
                let oldest = oldest.map(|(topic, _)| topic.clone());
                oldest.map(|topic| self.topics.remove(&topic));
            }
        }
        let before = self.topics.insert(topic.to_owned(), Topic { kind, at: now, suppressed: 0 });
        before.map_or(0, |before| before.suppressed)
    }

    /// True if a lane takes one more message.
    pub(super) fn has_room(&self, lane: usize) -> bool {
        let lane = &self.lanes[lane];
        !lane.gone && lane.waiting.len() < self.limits.queue_max
    }

    /// Puts a message at the end of a lane.
    pub(super) fn push(&mut self, lane: usize, message: Arc<Message>) {
        let lane = &mut self.lanes[lane];
        lane.full = false;
        lane.waiting.push_back(Waiting { message, attempts: 0 });
    }

    /// Messages that are to be sent now, each with its lane and the number of the attempt; they are under way until
    /// [`Outbox::settle`].
    pub(super) fn due(&mut self, now: Duration) -> Vec<(usize, Arc<Message>, u32)> {
        let longest = self.limits.backoff_max.max(RETRY_AFTER_MAX);
        let mut due = Vec::new();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            // Longer than the longest pause: the clock was set back.
            let left = lane.next_at.saturating_sub(now);
            let waits = !left.is_zero() && left <= longest;
            if lane.under_way || waits || lane.gone {
                continue;
            }
            if let Some(first) = lane.waiting.front_mut() {
                first.attempts += 1;
                lane.under_way = true;
                due.push((index, Arc::clone(&first.message), first.attempts));
            }
        }
        due
    }

    /// Takes the outcome of an attempt; returns the messages that left the lane.
    pub(super) fn settle(
        &mut self,
        index: usize,
        attempt: Attempt,
        now: Duration,
        random: u64,
    ) -> Vec<Settled> {
        let limits = self.limits;
        let lane = &mut self.lanes[index];
        lane.under_way = false;
        match attempt {
            Attempt::Delivered { status } => {
                (lane.failures, lane.last_error) = (0, None);
                (lane.next_at, lane.delivered_at) = (Duration::ZERO, Some(now));
                lane.leave(index, true, Some(status), String::new()).into_iter().collect()
            }
            // It answers: its circuit closes, only this message is lost.
            Attempt::Refused { status, why } => {
                (lane.failures, lane.next_at) = (0, Duration::ZERO);
                lane.last_error = Some(why.clone());
                lane.leave(index, false, Some(status), why).into_iter().collect()
            }
            Attempt::Gone { why } => {
                lane.gone = true;
                lane.last_error = Some(why.clone());
                let mut settled = Vec::new();
                while let Some(one) = lane.leave(index, false, Some(410), why.clone()) {
                    settled.push(one);
                }
                settled
            }
            Attempt::Failed { status, why, after } => {
                lane.failures = lane.failures.saturating_add(1);
                let after = after.unwrap_or_default().min(RETRY_AFTER_MAX);
                lane.next_at = now + limits.pause(lane.failures, random).max(after);
                lane.last_error = Some(why.clone());
                let attempts = lane.waiting.front().map_or(0, |first| first.attempts);
                if attempts >= limits.attempts_max {
                    let why = format!("{attempts} attempts failed, at last: {why}");
                    return lane.leave(index, false, status, why).into_iter().collect();
                }
                Vec::new()
            }
        }
    }

    /// Drops what waited for too long; returns it.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<Settled> {
        let age = self.limits.give_up_after;
        let mut settled = Vec::new();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let is_old = |first: &Waiting| now.saturating_sub(first.message.at) > age;
            while !lane.under_way && lane.waiting.front().is_some_and(is_old) {
                let last = lane.last_error.as_deref().unwrap_or("it was never tried");
                let why = format!("older than {} s; {last}", age.as_secs());
                settled.extend(lane.leave(index, false, None, why));
            }
        }
        settled
    }

    /// The time at which something is due next. `None`: nothing waits, or all is under way.
    pub(super) fn next_at(&self) -> Option<Duration> {
        let waits = |lane: &&Lane| !lane.under_way && !lane.gone && !lane.waiting.is_empty();
        self.lanes.iter().filter(waits).map(|lane| lane.next_at).min()
    }

    /// State of a webhook's circuit.
    pub(super) fn circuit(&self, lane: &Lane, now: Duration) -> Circuit {
        match lane {
            Lane { gone: true, .. } => Circuit::Gone,
            lane if lane.failures < self.limits.breaker_failures => Circuit::Closed,
            lane if lane.under_way || lane.next_at <= now => Circuit::HalfOpen,
            _ => Circuit::Open,
        }
    }

    /// The kind of the message that is under way in a lane.
    pub(super) fn kind_under_way(&self, lane: usize) -> Option<&'static str> {
        let lane = &self.lanes[lane];
        lane.waiting.front().filter(|_| lane.under_way).map(|first| first.message.kind)
    }

    /// Messages that wait, in all lanes.
    pub(super) fn waiting(&self) -> usize {
        self.lanes.iter().map(Lane::len).sum()
    }
}

impl Limits {
    /// The pause after so many failures in a row: `backoff` doubled each time, `backoff_max` once the circuit is open;
    /// of that, a random part between half and all.
    fn pause(self, failures: u32, random: u64) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << failures.saturating_sub(1).min(20));
        let open = failures >= self.breaker_failures;
        let pause = if open { self.backoff_max } else { doubled.min(self.backoff_max) };
        let part = u32::try_from(random % 1024).unwrap_or(0);
        pause / 2 + pause / 2 * part / 1024
    }
}

impl Lane {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            waiting: VecDeque::new(),
            under_way: false,
            failures: 0,
            next_at: Duration::ZERO,
            gone: false,
            last_error: None,
            delivered_at: None,
            full: false,
        }
    }

    /// Messages that wait, the one under way included.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn leave(
        &mut self,
        lane: usize,
        delivered: bool,
        status: Option<u16>,
        why: String,
    ) -> Option<Settled> {
        let Waiting { message, attempts } = self.waiting.pop_front()?;
        Some(Settled { message, lane, delivered, status, attempts, why })
    }
}

impl Circuit {
    /// The word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Gone => "gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ModelName,
        notify::{Webhook, webhook::WebhookDraft},
    };

    const KIND: &str = "drift.detected";

    fn settings() -> Settings {
        let hook = |name: &str| WebhookDraft {
            name: name.to_owned(),
            url: "http://h/".to_owned(),
            ..WebhookDraft::default()
        };
        let webhooks = Webhook::read(&[hook("a"), hook("b")]).unwrap();
        Settings { webhooks, queue_max: 3, ..Settings::default() }
    }

    fn message(id: &str) -> Arc<Message> {
        Arc::new(Message {
            id: id.to_owned(),
            kind: KIND,
            model: ModelName::parse("m").unwrap(),
            version: None,
            topic: None,
            at: at(0),
            body: String::new(),
        })
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000_000 + seconds)
    }

    fn failed() -> Attempt {
        Attempt::Failed { status: Some(500), why: "500".to_owned(), after: None }
    }

    fn ids(due: &[(usize, Arc<Message>, u32)]) -> Vec<(usize, &str, u32)> {
        due.iter().map(|(lane, message, attempt)| (*lane, &*message.id, *attempt)).collect()
    }

    #[test]
    fn a_lane_keeps_its_order_and_does_not_hold_up_the_other() {
        let mut outbox = Outbox::new(&settings());
        for id in ["1", "2"] {
            outbox.push(0, message(id));
            outbox.push(1, message(id));
        }
        assert_eq!(ids(&outbox.due(at(0))), [(0, "1", 1), (1, "1", 1)]);
        assert_eq!(outbox.due(at(0)), []);
        assert!(outbox.settle(0, failed(), at(0), 0).is_empty());
        let settled = outbox.settle(1, Attempt::Delivered { status: 200 }, at(0), 0);
        assert!(settled.len() == 1 && settled[0].delivered && &*settled[0].message.id == "1");
        assert_eq!(ids(&outbox.due(at(0))), [(1, "2", 1)]);
        assert_eq!(outbox.next_at(), Some(at(0) + Duration::from_millis(500)));
        assert_eq!(ids(&outbox.due(at(1))), [(0, "1", 2)], "the first stays first");
    }

    #[test]
    fn a_receiver_that_is_down_is_asked_at_most_sixty_times_in_ten_minutes() {
        for random in [0, 512, 1023] {
            let mut outbox = Outbox::new(&settings());
            outbox.push(0, message("1"));
            let (mut now, mut tries) = (at(0), 0);
            while now < at(600) {
                let due = outbox.due(now);
                assert_eq!(due.len(), 1);
                tries += 1;
                outbox.settle(0, failed(), now, random);
                let circuit = outbox.circuit(&outbox.lanes[0], now);
                assert_eq!(circuit == Circuit::Open, tries >= 5, "{tries}");
                now = outbox.next_at().unwrap();
            }
            assert!((14..=30).contains(&tries), "{tries}");
            assert_eq!(outbox.circuit(&outbox.lanes[0], now), Circuit::HalfOpen);
            outbox.due(now);
            outbox.settle(0, Attempt::Delivered { status: 204 }, now, 0);
            assert_eq!(outbox.circuit(&outbox.lanes[0], now), Circuit::Closed);
        }
    }

    #[test]
    fn a_receiver_says_when_to_come_back_and_is_believed_up_to_an_hour() {
        for (asked, expected) in [(10, 10), (100_000, 3600)] {
            let mut outbox = Outbox::new(&settings());
            outbox.push(0, message("1"));
            outbox.due(at(0));
            let after = Some(Duration::from_secs(asked));
            let why = "429".to_owned();
            outbox.settle(0, Attempt::Failed { status: Some(429), why, after }, at(0), 0);
            assert_eq!(outbox.next_at(), Some(at(expected)));
            assert_eq!(outbox.due(at(expected - 1)), []);
            assert_eq!(outbox.due(at(expected)).len(), 1);
        }
    }

    #[test]
    fn what_is_refused_or_too_old_or_tried_too_often_is_given_up() {
        let mut outbox = Outbox::new(&Settings { attempts_max: 2, ..settings() });
        for id in ["1", "2", "3"] {
            outbox.push(0, message(id));
        }
        outbox.due(at(0));
        let refused = Attempt::Refused { status: 422, why: "no".to_owned() };
        let settled = outbox.settle(0, refused, at(0), 0);
        assert_eq!((&*settled[0].message.id, settled[0].delivered), ("1", false));
        outbox.due(at(0));
        assert!(outbox.settle(0, failed(), at(0), 0).is_empty());
        outbox.due(at(60));
        let settled = outbox.settle(0, failed(), at(60), 0);
        assert_eq!((&*settled[0].message.id, settled[0].attempts), ("2", 2));
        assert!(outbox.expire(at(3600)).is_empty());
        let settled = outbox.expire(at(73 * 3600));
        assert!(settled[0].why.starts_with("older than 259200 s"), "{settled:?}");
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn a_receiver_that_is_gone_gets_nothing_any_more() {
        let mut outbox = Outbox::new(&settings());
        for id in ["1", "2"] {
            outbox.push(0, message(id));
        }
        outbox.due(at(0));
        let settled = outbox.settle(0, Attempt::Gone { why: "gone".to_owned() }, at(0), 0);
        assert_eq!(settled.len(), 2);
        assert!(!outbox.has_room(0) && outbox.has_room(1));
        assert_eq!(outbox.next_at(), None);
    }

    #[test]
    fn a_full_lane_takes_nothing() {
        let mut outbox = Outbox::new(&settings());
        for id in ["1", "2", "3"] {
            outbox.push(0, message(id));
        }
        assert!(!outbox.has_room(0));
        outbox.due(at(0));
        outbox.settle(0, Attempt::Delivered { status: 200 }, at(0), 0);
        assert!(outbox.has_room(0));
    }

    #[test]
    fn the_same_news_comes_once_in_a_cooldown_and_says_how_often_it_was_held_back() {
        let mut outbox = Outbox::new(&settings());
        let topic = "drift/m/1/amount";
        assert!(outbox.is_news(topic, KIND, at(0)));
        assert_eq!(outbox.told(topic, KIND, at(0)), 0);
        assert!(!outbox.is_news(topic, KIND, at(10)));
        assert!(!outbox.is_news(topic, KIND, at(599)));
        assert!(outbox.is_news("drift/m/1/other", KIND, at(10)));
        assert!(outbox.is_news(topic, "drift.cleared", at(20)), "the opposite is news");
        assert!(outbox.is_news(topic, KIND, at(600)));
        assert_eq!(outbox.told(topic, KIND, at(600)), 2);
        for n in 0..TOPICS_MAX + 5 {
            outbox.told(&n.to_string(), KIND, at(1000));
        }
        assert!(outbox.topics.len() <= TOPICS_MAX);
    }
}
