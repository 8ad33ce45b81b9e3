//! The thread that hears events, keeps the outbox, and sends what is due.
//!
//! It follows the stream of events, asks the rule of retraining, records what is queued before it sends it, and what
//! came of that. Deliveries run beside each other on this thread's own runtime, one for each webhook at most. Always
//! true: nothing on the path of a prediction waits for any of this; an event that the thread was too late for is
//! counted and told.
//!
//! Not here: decisions (`outbox`, `retrain`), the exchange itself (`client`).

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;
use tokio::{
    runtime,
    sync::{
        broadcast::{Receiver, error::RecvError},
        mpsc, oneshot, watch,
    },
    task::{Id, JoinError, JoinSet},
};

use crate::{
    model::{ModelName, VersionId},
    monitor::{Clock, Event, EventKind, Monitor},
    rollout::Rollouts,
    state::{NewRecord, State},
};

use super::{
    client::{self, Client, Parcel},
    handle::{Command, Notifications, NotifyError},
    journal::Journal,
    message::{self, CONTENT_TYPE, Message, TYPE_PREFIX},
    outbox::{Attempt, Outbox, Settled},
    report::{Shared, TestReport},
    retrain::{Request, Retraining},
    settings::Settings,
    signature,
    webhook::{Variables, Webhook},
};

/// Looks up the version meant, or the one that serves, with the digest of its file.
pub type VersionOf =
    Box<dyn Fn(&ModelName, Option<VersionId>) -> Option<(VersionId, String)> + Send>;

/// Parts that notifications need.
pub struct Parts {
    /// Webhooks, limits and rules.
    pub settings: Settings,
    /// Its events are followed; its clock is asked.
    pub monitor: Arc<Monitor>,
    /// Where the outbox is kept; `None` for memory only.
    pub state: Option<State>,
    /// Tells which models have an open rollout.
    pub rollouts: Rollouts,
    /// Describes versions, for requests to train.
    pub version: VersionOf,
    /// Looks up the environment, for secrets.
    pub variables: Variables,
    /// Source of random bits, for pauses and ids.
    pub random: fn() -> u64,
}

/// Running notifications; ends with it, once what is under way has ended or half a second later.
#[derive(Debug)]
pub struct Notifier {
    handle: Notifications,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

struct Driver {
    settings: Settings,
    webhooks: Arc<[Webhook]>,
    client: Arc<Client>,
    monitor: Arc<Monitor>,
    state: Option<State>,
    rollouts: Rollouts,
    version: VersionOf,
    variables: Variables,
    random: fn() -> u64,
    shared: Arc<Shared>,
    outbox: Outbox,
    journal: Journal,
    retraining: Retraining,
    /// Tells this process's ids from those of others.
    run: u64,
    /// The last event that was taken in.
    seen: u64,
    deliveries: JoinSet<Attempt>,
    /// Lanes by their delivery.
    lanes: HashMap<Id, usize>,
    tests: JoinSet<()>,
}

/// Commands that wait, and tests that run at once.
const COMMANDS_MAX: usize = 8;
/// The longest time between two looks at what is due or too old.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The time after which an open rollout is looked at again.
const ROLLOUT_EVERY: Duration = Duration::from_secs(1);
/// The time that deliveries get at the end of the process.
const LAST_MAX: Duration = Duration::from_millis(500);
/// The kind of records of requests to train anew.
const RETRAIN: &str = "retrain.requested";

impl Notifier {
    /// Starts the thread.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared::default());
        let handle = Notifications { commands, shared: Arc::clone(&shared) };
        // Before the thread runs, so that nothing told meanwhile is missed.
        let (recent, later) = parts.monitor.events().follow();
        let thread = thread::Builder::new().name("notify".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let mut driver = Driver::new(parts, shared);
                driver.recall();
                for event in &recent {
                    driver.take(event);
                }
                driver.run(later, asked, stopped).await;
            });
            // A name that is still being resolved must not keep the process from ending.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop, thread: Some(thread) })
    }

    /// A handle for those who ask.
    pub fn handle(&self) -> Notifications {
        self.handle.clone()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed already
        }
    }
}

impl Driver {
    fn new(parts: Parts, shared: Arc<Shared>) -> Self {
        let Parts { settings, monitor, state, rollouts, version, variables, random } = parts;
        let https = settings.webhooks.iter().any(|webhook| webhook.target.tls);
        let listed = settings.private_addresses.clone();
        let client = Client::new(https, settings.ca_file.as_deref(), listed);
        for problem in settings.problems(variables) {
            tracing::warn!("notifications wait until this is put right: {problem}");
        }
        if state.is_none() && !settings.webhooks.is_empty() {
            tracing::warn!(
                "notifications that wait are lost when this process ends, as no state is kept; set state.path"
            );
        }
        Self {
            webhooks: settings.webhooks.clone().into(),
            client: Arc::new(client),
            outbox: Outbox::new(&settings),
            journal: Journal::new(state.clone()),
            retraining: Retraining::default(),
            run: random(),
            seen: 0,
            deliveries: JoinSet::new(),
            lanes: HashMap::new(),
            tests: JoinSet::new(),
            settings,
            monitor,
            state,
            rollouts,
            version,
            variables,
            random,
            shared,
        }
    }

    fn now(&self) -> Duration {
        self.monitor.clock().unix()
    }

    /// Takes up what earlier processes left.
    fn recall(&mut self) {
        let now = self.now();
        match self.journal.recall(&mut self.outbox, now) {
            Ok(homeless) => {
                for (message, webhook) in homeless {
                    let why = "the webhook is no longer configured".to_owned();
                    let (lane, attempts) = (usize::MAX, 0);
                    let settled =
                        Settled { message, lane, delivered: false, status: None, attempts, why };
                    self.note(&settled, &webhook);
                }
            }
            Err(error) => {
                let error = super::journal::chain(&error);
                tracing::error!("notifications of earlier processes are not sent: {error}");
            }
        }
        if let Some(state) = &self.state {
            for model in self.settings.retrain.keys() {
                let filter = crate::state::Filter {
                    model: Some(model.clone()),
                    kind: Some(RETRAIN.to_owned()),
                    newest: true,
                    limit: 1,
                    ..crate::state::Filter::default()
                };
                if let Some(last) = state.records(&filter).ok().and_then(|mut last| last.pop()) {
                    self.retraining.asked(model, Duration::from_nanos(last.unix_nanos).min(now));
                }
            }
        }
    }

    async fn run(
        &mut self,
        mut events: Receiver<Event>,
        mut commands: mpsc::Receiver<Command>,
        mut stopped: watch::Receiver<bool>,
    ) {
        loop {
            self.proceed(&mut events);
            let pause = self.pause();
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => break,
                event = events.recv() => match event {
                    Ok(event) => self.take(&event),
                    // What is still known of what was missed is taken from there.
                    Err(RecvError::Lagged(_)) => {
                        let (recent, later) = self.monitor.events().follow();
                        events = later;
                        for event in &recent {
                            self.take(event);
                        }
                    }
                    Err(RecvError::Closed) => break,
                },
                Some(command) = commands.recv() => self.obey(command, &mut events),
                Some(ended) = self.deliveries.join_next_with_id() => self.ended(ended),
                Some(_) = self.tests.join_next() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.drain(&mut events);
        let last = async {
            while let Some(ended) = self.deliveries.join_next_with_id().await {
                self.ended(ended);
            }
        };
        let _ = tokio::time::timeout(LAST_MAX, last).await;
        let waiting = self.outbox.waiting();
        if waiting > 0 && self.journal.is_durable() {
            tracing::info!("{waiting} notifications wait; they are sent after the next start");
        } else if waiting > 0 {
            tracing::warn!("{waiting} notifications are lost, as no state is kept");
        }
    }

    /// Drops what is too old, sends what is due, asks for training where it is due, and publishes the state of all
    /// that.
    fn proceed(&mut self, events: &mut Receiver<Event>) {
        let now = self.now();
        for settled in self.outbox.expire(now) {
            self.settled(&settled);
        }
        for (lane, message, attempt) in self.outbox.due(now) {
            let id = self.deliveries.spawn(self.deliver(lane, message, attempt)).id();
            self.lanes.insert(id, lane);
        }
        let is_due = self.retraining.next_at(&self.settings.retrain).is_some_and(|at| at <= now);
        if is_due {
            let standings = self.rollouts.standings();
            let is_open = |model: &ModelName| {
                let of = |report: &&crate::rollout::Report| report.model == model.as_str();
                standings.iter().find(of).is_some_and(|report| !report.state.is_over())
            };
            for request in self.retraining.due(&self.settings.retrain, now, is_open) {
                self.request(request, None, events);
            }
        }
        self.publish(now);
    }

    fn publish(&self, now: Duration) {
        let durable = self.journal.is_durable();
        self.shared.publish(&self.webhooks, &self.outbox, durable, now);
    }

    /// The time until something is due.
    fn pause(&self) -> Duration {
        let now = self.now();
        let sending = self.outbox.next_at().map(|at| at.saturating_sub(now));
        let training = self.retraining.next_at(&self.settings.retrain);
        let training = training.map(|at| at.saturating_sub(now).max(ROLLOUT_EVERY));
        let soonest = sending.into_iter().chain(training).min().unwrap_or(LOOK_EVERY);
        soonest.clamp(Duration::from_millis(1), LOOK_EVERY)
    }

    /// Takes in all that was told so far.
    fn drain(&mut self, events: &mut Receiver<Event>) {
        while let Ok(event) = events.try_recv() {
            self.take(&event);
        }
    }

    /// Queues an event for the webhooks that want it.
    fn take(&mut self, event: &Event) {
        let Some(missed) = event.sequence.checked_sub(self.seen + 1) else { return };
        self.seen = event.sequence;
        if missed > 0 {
            self.shared.count("", "missed", missed);
            tracing::error!(
                "{missed} events came faster than notifications could be queued, and none was sent of them; see \
                 /api/v1/models for how things stand"
            );
        }
        self.retraining.hear(event, &self.settings.retrain);
        let wanted = (0..self.webhooks.len()).filter(|lane| self.webhooks[*lane].wants(event));
        let wanted: Vec<usize> = wanted.collect();
        if wanted.is_empty() {
            return;
        }
        let (kind, now, topic) = (event.kind.name(), self.now(), message::topic(event));
        let is_standing = message::is_standing(event);
        if topic.as_ref().is_some_and(|topic| is_standing && self.outbox.was_told(topic, kind)) {
            return;
        }
        if topic.as_ref().is_some_and(|topic| !self.outbox.is_news(topic, kind, now)) {
            self.shared.count(kind, "suppressed", 1);
            return;
        }
        let (room, full): (Vec<usize>, Vec<usize>) =
            wanted.into_iter().partition(|lane| self.outbox.has_room(*lane));
        let is_told = topic.as_ref().filter(|_| !room.is_empty());
        let suppressed = is_told.map_or(0, |topic| self.outbox.told(topic, kind, now));
        let id = format!("e-{:016x}-{}", self.run, event.sequence);
        let (source, bytes_max) = (&self.settings.source, self.settings.event_bytes_max);
        let message = Arc::new(Message::of(event, (id, source), suppressed, bytes_max));
        for lane in full {
            self.drop_one(lane, &message);
        }
        if room.is_empty() {
            return;
        }
        let names = room.iter().map(|lane| self.webhooks[*lane].name.clone()).collect();
        self.journal.queued(&message, names);
        for lane in room {
            self.shared.add(&message, &self.webhooks[lane].name, "waiting");
            self.outbox.push(lane, Arc::clone(&message));
        }
    }

    fn drop_one(&mut self, lane: usize, message: &Message) {
        let name = &self.webhooks[lane].name;
        self.shared.count(message.kind, "dropped", 1);
        self.shared.add(message, name, "dropped");
        let lane = &mut self.outbox.lanes[lane];
        if !std::mem::replace(&mut lane.full, true) {
            let why = lane.last_error.as_deref().unwrap_or("it is slow");
            tracing::warn!(
                "webhook `{name}` takes no more notifications ({} wait; {why}); see `tidegate notify list`",
                lane.len()
            );
        }
    }

    /// One attempt, as a task of its own.
    fn deliver(
        &self,
        lane: usize,
        message: Arc<Message>,
        attempt: u32,
    ) -> impl Future<Output = Attempt> + Send + 'static {
        let (webhooks, client) = (Arc::clone(&self.webhooks), Arc::clone(&self.client));
        let (clock, variables) = (Arc::clone(self.monitor.clock()), self.variables);
        async move {
            let letter =
                Letter { id: &message.id, kind: message.kind, body: &message.body, attempt };
            send(&client, &webhooks[lane], &letter, &*clock, variables).await
        }
    }

    fn ended(&mut self, ended: Result<(Id, Attempt), JoinError>) {
        let (id, attempt) = ended.unwrap_or_else(|error| {
            let why = "tidegate failed to send it; the log has more".to_owned();
            (error.id(), Attempt::Failed { status: None, why, after: None })
        });
        let Some(lane) = self.lanes.remove(&id) else { return };
        let (now, random) = (self.now(), (self.random)());
        if matches!(attempt, Attempt::Failed { .. }) {
            let kind = self.outbox.kind_under_way(lane).unwrap_or_default();
            self.shared.count(kind, "failed", 1);
        }
        let trouble = self.trouble(lane, &attempt);
        let is_gone = matches!(attempt, Attempt::Gone { .. });
        for settled in self.outbox.settle(lane, attempt, now, random) {
            self.settled(&settled);
        }
        // Before it is logged: whoever reads the line finds the same in the report.
        self.publish(now);
        match trouble {
            Some(trouble) if is_gone => tracing::error!("{trouble}"),
            Some(trouble) => tracing::warn!("{trouble}"),
            None => {}
        }
    }

    /// The trouble with a webhook that an attempt has shown, where that is not known already.
    fn trouble(&self, lane: usize, attempt: &Attempt) -> Option<String> {
        let name = &self.webhooks[lane].name;
        let failed = self.outbox.lanes[lane].failures + 1;
        match attempt {
            Attempt::Gone { why } => Some(format!(
                "webhook `{name}` wants nothing any more ({why}); set its `url` and restart"
            )),
            Attempt::Failed { why, .. } if failed == 1 => Some(format!(
                "webhook `{name}` did not take a notification: {why}; it is tried again"
            )),
            Attempt::Failed { why, .. } if failed == self.settings.breaker_failures => {
                Some(format!(
                    "webhook `{name}` is given a rest: {failed} deliveries failed, at last: {why}"
                ))
            }
            _ => None,
        }
    }

    fn settled(&mut self, settled: &Settled) {
        let name = self.webhooks[settled.lane].name.clone();
        self.note(settled, &name);
    }

    /// Records, counts and shows what became of a message.
    fn note(&mut self, settled: &Settled, webhook: &str) {
        let outcome = if settled.delivered { "delivered" } else { "given_up" };
        self.journal.settled(settled, webhook, self.now());
        self.shared.count(settled.message.kind, outcome, 1);
        self.shared.settled(settled, webhook, outcome);
        if !settled.delivered {
            let (id, kind, why) = (&settled.message.id, settled.message.kind, &settled.why);
            tracing::error!("webhook `{webhook}` never gets notification {id} ({kind}): {why}");
        }
    }

    fn obey(&mut self, command: Command, events: &mut Receiver<Event>) {
        match command {
            Command::Test { webhook, reply } => self.test(webhook, reply),
            Command::Retrain { model, cause, reply } => {
                let now = self.now();
                let object = self.retraining.evidence(&model, &self.settings.retrain, now);
                let version = (self.version)(&model, None).map(|(version, _)| version);
                let detail = format!("asked for by {}", cause.0);
                let request = Request { model, version, detail, object };
                let object = self.request(request, Some((&cause.0, &cause.1)), events);
                // First, so that whoever has the reply finds it in the report.
                self.publish(self.now());
                let _ = reply.send(object);
            }
        }
    }

    /// Tells that a model should be trained anew, with what is known about it; an operator who asks has a name and a
    /// reason.
    fn request(
        &mut self,
        request: Request,
        operator: Option<(&str, &str)>,
        events: &mut Receiver<Event>,
    ) -> Value {
        let Request { model, version, detail, mut object } = request;
        let now = self.now();
        object["id"] = format!("t-{:016x}", (self.random)()).into();
        if let Some((version, digest)) = (self.version)(&model, version) {
            object["version"] = version.to_string().into();
            object["digest"] = digest.into();
        }
        let actor = operator.map_or("tidegate", |(actor, _)| actor);
        object["by"] = actor.into();
        if let Some((_, reason)) = operator {
            object["trigger"] = "operator".into();
            object["reason"] = reason.into();
        }
        let reason = object["reason"].as_str().unwrap_or_default().to_owned();
        tracing::info!("model `{model}` should be trained anew: {detail}");
        let stream = self.monitor.events();
        let kind = EventKind::RetrainRequested;
        stream.tell_about(now, (&model, version), kind, detail, Some(object.clone()));
        // Queued before it counts as asked for.
        self.drain(events);
        self.retraining.asked(&model, now);
        let record = NewRecord {
            unix_nanos: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            actor: actor.to_owned(),
            kind: RETRAIN.to_owned(),
            model: Some(model),
            version,
            reason,
            body: object.clone(),
        };
        if let Some(Err(error)) = self.state.as_ref().map(|state| state.append(record)) {
            tracing::warn!(
                "a request to train is not written down: {}",
                super::journal::chain(&error)
            );
        }
        object
    }

    /// Sends a test to one webhook or all, beside the queue.
    fn test(
        &mut self,
        wanted: Option<String>,
        reply: oneshot::Sender<Result<Vec<TestReport>, NotifyError>>,
    ) {
        let is_wanted =
            |lane: &usize| wanted.as_ref().is_none_or(|name| *name == self.webhooks[*lane].name);
        let lanes: Vec<usize> = (0..self.webhooks.len()).filter(is_wanted).collect();
        if lanes.is_empty() || self.tests.len() >= COMMANDS_MAX {
            let error = match wanted {
                _ if self.webhooks.is_empty() => NotifyError::None,
                Some(name) if lanes.is_empty() => {
                    let known = self.webhooks.iter().map(|webhook| webhook.name.clone());
                    NotifyError::Unknown { name, known: known.collect() }
                }
                _ => NotifyError::Busy,
            };
            let _ = reply.send(Err(error));
            return;
        }
        let (webhooks, client) = (Arc::clone(&self.webhooks), Arc::clone(&self.client));
        let (clock, variables) = (Arc::clone(self.monitor.clock()), self.variables);
        let source = self.settings.source.clone();
        let ids: Vec<String> =
            lanes.iter().map(|_| format!("test-{:016x}", (self.random)())).collect();
        self.tests.spawn(async move {
            let mut reports = Vec::new();
            for (lane, id) in lanes.into_iter().zip(ids) {
                let webhook = &webhooks[lane];
                let body = Message::test(&id, &source, &webhook.name, clock.unix());
                let letter = Letter { id: &id, kind: "test", body: &body, attempt: 1 };
                let attempt = send(&client, webhook, &letter, &*clock, variables).await;
                reports.push(TestReport::of(&webhook.name, attempt));
            }
            let _ = reply.send(Ok(reports));
        });
    }
}

/// Content of one attempt.
struct Letter<'a> {
    id: &'a str,
    kind: &'a str,
    body: &'a str,
    attempt: u32,
}

/// Sends a message to a webhook, signed at this moment.
async fn send(
    client: &Client,
    webhook: &Webhook,
    letter: &Letter<'_>,
    clock: &dyn Clock,
    variables: Variables,
) -> Attempt {
    match headers(webhook, letter, clock.unix(), variables) {
        Ok(headers) => {
            let body = Bytes::from(letter.body.to_owned());
            let parcel = Parcel { headers, body, timeout: webhook.timeout };
            let answer = client.post(&webhook.target, parcel).await;
            client::judge(answer, clock.unix())
        }
        Err(why) => Attempt::Failed { status: None, why, after: None },
    }
}

fn headers(
    webhook: &Webhook,
    letter: &Letter<'_>,
    now: Duration,
    variables: Variables,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &webhook.headers {
        let text = value.reveal(variables)?;
        let mut value = HeaderValue::try_from(text)
            .map_err(|_| format!("`headers.{name}` holds what no header may"))?;
        value.set_sensitive(true);
        headers.insert(name.clone(), value);
    }
    let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut plain = |name: &'static str, text: String| {
        let value = HeaderValue::try_from(text).expect("digits, letters and dots");
        headers.insert(name, value);
    };
    plain("ce-id", letter.id.to_owned());
    plain("ce-type", format!("{TYPE_PREFIX}{}", letter.kind));
    plain("x-tidegate-attempt", letter.attempt.to_string());
    if let Some(secret) = &webhook.secret {
        let key = secret.key(variables)?;
        let signed = signature::signature(key.as_bytes(), now.as_secs(), letter.body.as_bytes());
        plain(signature::HEADER, signed);
    }
    Ok(headers)
}

impl TestReport {
    fn of(webhook: &str, attempt: Attempt) -> Self {
        let (delivered, status, detail) = match attempt {
            Attempt::Delivered { status } => (true, Some(status), String::new()),
            Attempt::Failed { status, why, .. } => (false, status, why),
            Attempt::Refused { status, why } => (false, Some(status), why),
            Attempt::Gone { why } => (false, Some(410), why),
        };
        Self { webhook: webhook.to_owned(), delivered, status, detail }
    }
}
