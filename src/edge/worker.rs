//! A worker's state, and what all workers share.
//!
//! A worker is a thread; its state never leaves it, so that plain cells do. Always true: once it is given up it counts
//! nothing and answers nothing, for another one counts in its shard.
//!
//! Not here: the thread itself (`listener`), who answers a request (`dispatch`).

use std::{
    cell::Cell,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use tokio::{runtime::RuntimeMetrics, sync::Notify};
use tower::util::BoxCloneSyncService;

use crate::{
    model::Trace,
    monitor::{Clock, Code, Monitor, Pace, Reason, WorkerId},
    serve::{self, Names, Naming, Serving, Watch},
    wire,
};

use super::{
    Access, Limits, Settings,
    budget::Budget,
    load::Load,
    memory,
    note::{Note, Texts},
};

/// A request for the control plane, read to its end; of its headers only `Host` and `Origin`.
pub type ControlRequest = Request<Bytes>;

/// Answers requests that change what is served, and takes outcomes: the protocol's repository API, and feedback.
pub type ControlService =
    BoxCloneSyncService<ControlRequest, Response<Bytes>, std::convert::Infallible>;

/// State that all workers of the data plane share.
pub struct Plane {
    settings: Settings,
    decode_limits: wire::v2::Limits,
    serving: Arc<Serving>,
    monitor: Arc<Monitor>,
    control: ControlService,
    /// Makes the names of predictions.
    naming: Naming,
    access: Option<Arc<Access>>,
    in_flight_bytes_max: usize,
}

impl Plane {
    /// The data plane over what is served; `naming` makes the names of predictions.
    #[must_use]
    pub fn new(
        settings: Settings,
        serving: Arc<Serving>,
        monitor: Arc<Monitor>,
        control: ControlService,
        naming: Naming,
    ) -> Self {
        let limits = &settings.limits;
        let decode_limits = wire::v2::Limits {
            json_depth_max: limits.json_depth_max,
            inputs_max: limits.inputs_max,
            outputs_max: limits.outputs_max,
            parameters_max: limits.parameters_max,
            name_bytes_max: limits.name_bytes_max,
            ..wire::v2::Limits::default()
        };
        let in_flight_bytes_max = limits
            .in_flight_bytes_max
            .map_or_else(|| memory::share(memory::limit()), NonZeroUsize::get);
        Self {
            settings,
            decode_limits,
            serving,
            monitor,
            control,
            naming,
            access: None,
            in_flight_bytes_max,
        }
    }

    /// Tells requests to this log.
    #[must_use]
    pub fn telling(self, access: Option<Arc<Access>>) -> Self {
        Self { access, ..self }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn serving(&self) -> &Arc<Serving> {
        &self.serving
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    pub(super) fn control(&self) -> &ControlService {
        &self.control
    }
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// One worker's state; never leaves its thread.
pub(super) struct Worker {
    plane: Arc<Plane>,
    id: WorkerId,
    watch: Arc<Watch>,
    /// True if another worker stands in its place: then it does nothing any more.
    given_up: Cell<bool>,
    /// Told when it was given up.
    ended: Notify,
    names: Names,
    budget: Budget,
    load: Load,
    /// The state of its random numbers.
    random: Cell<u64>,
    leaving: Cell<bool>,
    draining: Cell<bool>,
    begin: Instant,
    /// Milliseconds since `begin`, as of the last look at the clock.
    now_ms: Cell<u32>,
    pace: Cell<Pace>,
}

impl Worker {
    pub(super) fn new(plane: Arc<Plane>, watch: Arc<Watch>, workers: usize) -> Self {
        let id = watch.worker();
        let limits = &plane.settings.limits;
        let share = plane.in_flight_bytes_max / workers.max(1);
        let share = share.max(limits.body_bytes_max);
        let begin = plane.monitor.clock().now();
        Self {
            id,
            given_up: Cell::new(false),
            ended: Notify::new(),
            names: plane.serving.names(plane.naming, id, watch.before()),
            budget: Budget::new(share),
            load: Load::default(),
            random: Cell::new(plane.naming.process ^ (watch.before() << 32 | id.0 as u64)),
            watch,
            leaving: Cell::new(false),
            draining: Cell::new(false),
            begin,
            // 0 means "no write waits"; the count begins behind it.
            now_ms: Cell::new(1),
            pace: Cell::default(),
            plane,
        }
    }

    pub(super) fn plane(&self) -> &Plane {
        &self.plane
    }

    pub(super) fn id(&self) -> WorkerId {
        self.id
    }

    /// Its run, as the watchdog sees it.
    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Ends the worker: another stands in its place, which counts in its shard.
    pub(super) fn give_up(&self) {
        self.given_up.set(true);
        self.ended.notify_one();
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.get()
    }

    /// Waits until the worker is given up.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.plane.settings.limits
    }

    pub(super) fn decode_limits(&self) -> &wire::v2::Limits {
        &self.plane.decode_limits
    }

    pub(super) fn serving(&self) -> &Serving {
        &self.plane.serving
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &**self.plane.monitor.clock()
    }

    pub(super) fn now_ms(&self) -> u32 {
        self.now_ms.get()
    }

    /// The last time that the clock showed, to the millisecond.
    pub(super) fn now(&self) -> Instant {
        self.begin + Duration::from_millis(self.now_ms.get().into())
    }

    /// Looks at the clock for the sweeper's coarse time.
    pub(super) fn tick(&self) {
        self.note(self.clock().now());
    }

    /// Notes how busy this worker's runtime was since the last time.
    pub(super) fn pace(&self, runtime: &RuntimeMetrics) {
        let server = self.plane.monitor.server();
        let elapsed = Duration::from_millis(self.now_ms.get().into());
        let busy = runtime.worker_total_busy_duration(0);
        let pace = self.pace.get().next(elapsed, busy, server.answers_of(self.id));
        self.pace.set(pace);
        if !self.is_given_up() {
            server.paced(self.id, &pace);
        }
    }

    /// Takes an instant that the clock has just shown for the coarse time.
    pub(super) fn note(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.begin);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "wraps after 49 days, and differences wrap with it"
        )]
        self.now_ms.set((elapsed.as_millis() as u32).max(1));
    }

    /// The access log, if there is one.
    pub(super) fn access(&self) -> Option<&Access> {
        self.plane.access.as_deref()
    }

    /// Tells of a request that has a use.
    #[inline]
    pub(super) fn tell(&self, note: &mut Note, texts: Texts<'_>, trace: Option<Trace>) {
        if let Some(access) = self.access() {
            access.tell(self.id, note, texts.cut(), trace);
        }
    }

    /// Random bits, not secret: `SplitMix64` (Steele, Lea and Flood, 2014).
    pub(super) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(super) fn load(&self) -> &Load {
        &self.load
    }

    /// Hands memory back to the system where a burst is over; for the sweeper.
    pub(super) fn rest(&self) {
        if self.load.is_over(self.now_ms()) {
            serve::hand_back_memory();
            let before = self.now_ms();
            self.tick();
            let took_ms = self.now_ms().wrapping_sub(before);
            tracing::debug!(worker = self.id.0, took_ms, "handed memory back after a burst");
        }
    }

    /// True from the signal to stop on, also while connections are still accepted.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// True once no more connections are accepted.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    pub(super) fn leave(&self) {
        self.leaving.set(true);
    }

    pub(super) fn drain(&self) {
        self.leave();
        self.draining.set(true);
    }

    pub(super) fn connection_opened(&self) {
        self.watch.opened();
        self.plane.monitor.server().connection_opened(self.id);
    }

    pub(super) fn connection_closed(&self) {
        if self.is_given_up() {
            // Counted by the worker that took its place.
            return;
        }
        self.watch.closed();
        self.plane.monitor.server().connection_closed(self.id);
    }

    /// Counts connections as closed that a lost worker of the same number had open: nobody else counts in its shard.
    pub(super) fn inherit(&self, connections: usize) {
        (0..connections).for_each(|_| self.plane.monitor.server().connection_closed(self.id));
    }

    pub(super) fn answered(&self, code: u16) {
        self.plane.monitor.server().answered(self.id, Code::from_status(code));
    }

    /// Counts a connection that was ended because a head came too slowly.
    pub(super) fn slow_head(&self) {
        self.plane.monitor.server().refused(self.id, Reason::SlowHead);
    }

    pub(super) fn head_refused(&self) {
        self.plane.monitor.server().head_refused(self.id);
    }

    /// The budget of bodies and answers.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }
}
