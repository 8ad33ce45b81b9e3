//! Who counts what: one shard per worker, for each version, each model and the server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::model::{ArmName, ModelName, VersionId};

use super::{
    Clock, Events, Latencies, Pace, Reason, Settings, ShadowRecorder, ShadowTotals, Spread, Upkeep,
};

/// The index of a worker: the only thread that writes the shards of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerId(pub usize);

/// The status of an answer, as the few codes that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(usize);

/// The codes that have a counter of their own, all that the data plane answers with among them; others count as the
/// first of their class.
const CODES: [u16; 16] =
    [200, 400, 403, 404, 405, 408, 413, 414, 415, 422, 431, 499, 500, 501, 503, 504];

impl Code {
    /// The counter for an HTTP status.
    #[must_use]
    pub fn from_status(status: u16) -> Self {
        let found = CODES.iter().position(|code| *code == status);
        let other = || CODES.iter().position(|code| *code / 100 == status / 100);
        let internal = CODES.len() - 4;
        Self(found.or_else(other).unwrap_or(internal))
    }

    /// The HTTP status that is counted.
    #[must_use]
    pub fn status(self) -> u16 {
        CODES[self.0]
    }
}

/// One inference request, as it went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// Rows in it: the first dimension of a batch, else 1.
    pub rows: u64,
    /// Reading the request's tensors.
    pub decode: Duration,
    /// Waiting for the engine.
    pub queue: Duration,
    /// In the engine.
    pub run: Duration,
    /// Writing the response.
    pub encode: Duration,
    /// From the last byte of the request to the finished response.
    pub total: Duration,
    /// The trace that it belongs to, where somebody keeps that one.
    pub trace: Option<u128>,
}

/// A part of a request's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Reading the request's tensors.
    Decode,
    /// Waiting for the engine.
    Queue,
    /// In the engine.
    Run,
    /// Writing the response.
    Encode,
}

impl Part {
    /// All parts, as they follow each other.
    pub const ALL: [Self; 4] = [Self::Queue, Self::Decode, Self::Run, Self::Encode];

    /// The name of the part.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Queue => "queue",
            Self::Run => "run",
            Self::Encode => "encode",
        }
    }
}

impl Sample {
    /// Time that a part took.
    #[must_use]
    pub fn part(&self, part: Part) -> Duration {
        match part {
            Part::Decode => self.decode,
            Part::Queue => self.queue,
            Part::Run => self.run,
            Part::Encode => self.encode,
        }
    }
}

/// A request that can be looked up in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traced {
    /// The trace's number, as W3C Trace Context has it.
    pub trace: u128,
    /// Time from the last byte of the request to the finished response.
    pub took: Duration,
    /// When it was answered, since 1970.
    pub at: Duration,
}

/// All recorders of a process.
#[derive(Debug)]
pub struct Monitor {
    workers: usize,
    clock: Arc<dyn Clock>,
    server: Arc<ServerRecorder>,
    upkeep: Upkeep,
    events: Events,
    settings: Settings,
    models: Mutex<BTreeMap<ModelName, Arc<ModelRecorder>>>,
}

/// Counts of everything that was answered on the data plane.
#[derive(Debug)]
pub struct ServerRecorder {
    shards: Box<[Padded<ServerShard>]>,
    workers_lost: AtomicU64,
    turned_away: AtomicU64,
}

/// Counts of one model: requests that reached no version, and its versions.
#[derive(Debug)]
pub struct ModelRecorder {
    name: ModelName,
    shards: Box<[Padded<Codes>]>,
    /// By worker; made with the first refusal.
    refusals: OnceLock<Box<[Padded<Refusals>]>>,
    versions: Mutex<Versions>,
}

/// The versions of a model: those that are counted apart, and the sum of the others.
#[derive(Debug, Default)]
struct Versions {
    apart: BTreeMap<VersionId, Apart>,
    retired: Option<Box<Retired>>,
}

/// A version that is counted apart.
#[derive(Debug)]
struct Apart {
    recorder: Arc<VersionRecorder>,
    /// The first look at which nobody served it, since 1970.
    left: Option<Duration>,
}

/// Counts of versions that are no longer counted apart.
#[derive(Debug, Clone, Default)]
pub struct Retired {
    /// What they answered.
    pub totals: VersionTotals,
    /// Requests that the baseline answered in their place.
    pub fallbacks: u64,
    /// Copies that they got as shadows.
    pub shadow: ShadowTotals,
}

/// All counts of a model, as of one look; no count is in two of its parts.
#[derive(Debug)]
pub struct ModelTotals {
    /// Requests that no version answered, by status.
    pub unanswered: Vec<(Code, u64)>,
    /// The sum of versions that are no longer counted apart.
    pub retired: Option<Retired>,
    /// The versions that are.
    pub versions: Vec<(VersionId, Arc<VersionRecorder>)>,
}

/// Counts of one version, by the arm that its answers came through.
#[derive(Debug)]
pub struct VersionRecorder {
    workers: usize,
    arms: Mutex<BTreeMap<ArmName, Arc<ArmRecorder>>>,
    fallbacks: AtomicU64,
    shadow: ShadowRecorder,
}

/// Counts of one version on one arm.
#[derive(Debug)]
pub struct ArmRecorder {
    /// Tells it from every other arm's of this process.
    place: u32,
    shards: Box<[Padded<VersionShard>]>,
}

/// A version's counts, merged at one look.
#[derive(Debug, Clone, Default)]
pub struct VersionTotals {
    /// Requests by status.
    pub codes: Vec<(Code, u64)>,
    /// Requests answered with success.
    pub success: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Rows answered with success.
    pub rows: u64,
    /// Runs of the engine that ended with success.
    pub executions: u64,
    /// Time spent on successful requests, by phase.
    pub phases: Sample,
    /// Time spent on failed requests.
    pub failed_time: Duration,
    /// When the last request was answered, since 1970; `None` before the first.
    pub last: Option<Duration>,
    /// Latencies of all requests, from the last byte in to the finished response, in nanoseconds.
    pub total: Spread,
    /// Latencies of the parts of successful requests, in nanoseconds, in the order of [`Part::ALL`].
    pub parts: [Spread; Part::ALL.len()],
    /// The last request that belongs to a trace that somebody keeps.
    pub traced: Option<Traced>,
}

/// Keeps shards of different workers off each other's cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// A count with one writer.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    fn add_time(&self, duration: Duration) {
        self.add(nanoseconds(duration));
    }

    fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
struct Codes([Count; CODES.len()]);

#[derive(Debug, Default)]
struct Refusals([Count; Reason::ALL.len()]);

#[derive(Debug, Default)]
struct ServerShard {
    answers: Codes,
    refusals: Refusals,
    refused_heads: Count,
    connections: Count,
    closed: Count,
    /// Bits of the busy share and of the answers per second, smoothed.
    pace: [AtomicU64; 2],
    /// Not a plain count: a worker that was given up may still let go of its requests.
    in_flight: AtomicU64,
}

/// A request that is being answered, until it is dropped.
#[derive(Debug)]
pub struct InFlight<'a>(&'a AtomicU64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug, Default)]
struct VersionShard {
    codes: Codes,
    success: Count,
    failed: Count,
    rows: Count,
    executions: Count,
    decode: Count,
    queue: Count,
    run: Count,
    encode: Count,
    total: Count,
    failed_time: Count,
    last_unix_ns: Count,
    /// Made with the first request.
    latencies: OnceLock<Box<PartLatencies>>,
}

#[derive(Debug, Default)]
struct PartLatencies {
    total: Latencies,
    /// In the order of [`Part::ALL`].
    parts: [Latencies; Part::ALL.len()],
    /// Its writer does not wait for it.
    traced: Mutex<Option<Traced>>,
}

impl Monitor {
    /// Recorders for this many workers.
    #[must_use]
    pub fn new(workers: usize, clock: Arc<dyn Clock>) -> Self {
        let server = Arc::new(ServerRecorder {
            shards: shards(workers),
            workers_lost: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
        });
        Self {
            workers,
            clock,
            server,
            upkeep: Upkeep::default(),
            events: Events::default(),
            settings: Settings::default(),
            models: Mutex::default(),
        }
    }

    /// The same recorders, shown as these settings say.
    #[must_use]
    pub fn shown(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// The way in which recorders are shown.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The clock that everything measures with.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The server's own recorder.
    pub fn server(&self) -> &Arc<ServerRecorder> {
        &self.server
    }

    /// The control plane's recorder.
    pub fn upkeep(&self) -> &Upkeep {
        &self.upkeep
    }

    /// The stream of what happens to models.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The recorder of a model; made when it is first asked for.
    pub fn model(&self, name: &ModelName) -> Arc<ModelRecorder> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = models.entry(name.clone()).or_insert_with(|| {
            Arc::new(ModelRecorder {
                name: name.clone(),
                shards: shards(self.workers),
                refusals: OnceLock::new(),
                versions: Mutex::default(),
            })
        });
        Arc::clone(recorder)
    }

    /// The recorder of a version; made when it is first asked for, kept when the version comes again.
    pub fn version(&self, name: &ModelName, version: VersionId) -> Arc<VersionRecorder> {
        let model = self.model(name);
        let mut versions = model.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if !versions.apart.contains_key(&version) {
            versions.make_room();
        }
        let apart = versions.apart.entry(version).or_insert_with(|| Apart {
            recorder: Arc::new(VersionRecorder::new(self.workers)),
            left: None,
        });
        apart.left = None;
        Arc::clone(&apart.recorder)
    }

    /// The model, version and arm of a recorder's place, if it is still counted apart.
    pub fn placed(&self, place: u32) -> Option<(ModelName, VersionId, ArmName)> {
        self.models().iter().find_map(|model| {
            model.versions().iter().find_map(|(version, recorder)| {
                let arms = recorder.arms();
                let (arm, _) = arms.iter().find(|(_, recorder)| recorder.place == place)?;
                Some((model.name().clone(), *version, *arm))
            })
        })
    }

    /// Every model's recorder, by name.
    pub fn models(&self) -> Vec<Arc<ModelRecorder>> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.values().cloned().collect()
    }
}

/// Counts recorders of arms, for their places.
static PLACES: AtomicU32 = AtomicU32::new(0);

/// Versions of a model that are counted apart: those that serve, and the last ones that did.
const VERSIONS_MAX: usize = 16;

/// Time for which a version that has left is still counted apart.
const LEFT_FOR: Duration = Duration::from_mins(10);

impl Versions {
    /// Adds the longest idle of the versions that nobody serves to the sum, so that an age of swaps costs no memory and
    /// no series.
    fn make_room(&mut self) {
        while self.apart.len() >= VERSIONS_MAX {
            let idle = self.apart.iter().filter(|(_, apart)| !apart.is_held());
            let idle = idle.min_by_key(|(_, apart)| apart.recorder.last()).map(|(id, _)| *id);
            let Some(id) = idle else { return };
            self.retire(id);
        }
    }

    /// Adds the versions to the sum that left long ago.
    fn retire_old(&mut self, now: Duration) {
        let mut old = Vec::new();
        for (id, apart) in self.apart.iter_mut().filter(|(_, apart)| !apart.is_held()) {
            let left = *apart.left.get_or_insert(now);
            if now.saturating_sub(left) >= LEFT_FOR {
                old.push(*id);
            }
        }
        for id in old {
            self.retire(id);
        }
    }

    fn retire(&mut self, id: VersionId) {
        let Some(Apart { recorder, .. }) = self.apart.remove(&id) else { return };
        let retired = self.retired.get_or_insert_default();
        retired.totals.add(&recorder.totals());
        retired.fallbacks += recorder.fallbacks();
        retired.shadow.add(&recorder.shadow().totals());
    }
}

impl Apart {
    /// True if somebody may count there: whoever serves a version holds its recorder, or one of its arms'.
    fn is_held(&self) -> bool {
        let arms = self.recorder.arms.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::strong_count(&self.recorder) > 1 || arms.values().any(|arm| Arc::strong_count(arm) > 1)
    }
}

fn add_codes(sums: &mut Vec<(Code, u64)>, codes: &[(Code, u64)]) {
    for (code, count) in codes {
        match sums.iter_mut().find(|(known, _)| known == code) {
            Some((_, sum)) => *sum += count,
            None => sums.push((*code, *count)),
        }
    }
}

impl ServerRecorder {
    /// Counts an answer on the data plane.
    pub fn answered(&self, worker: WorkerId, code: Code) {
        self.shards[worker.0].0.answers.0[code.0].add(1);
    }

    /// Counts a request that was refused, and is not for a registered model.
    pub fn refused(&self, worker: WorkerId, reason: Reason) {
        self.shards[worker.0].0.refusals.0[reason as usize].add(1);
    }

    /// Counts a connection that no worker took.
    pub fn turned_away(&self) {
        self.turned_away.fetch_add(1, Relaxed);
    }

    /// Counts a request whose head the HTTP parser refused.
    pub fn head_refused(&self, worker: WorkerId) {
        self.shards[worker.0].0.refused_heads.add(1);
    }

    /// Counts a connection that a worker took.
    pub fn connection_opened(&self, worker: WorkerId) {
        self.shards[worker.0].0.connections.add(1);
    }

    /// Counts a connection that ended.
    pub fn connection_closed(&self, worker: WorkerId) {
        self.shards[worker.0].0.closed.add(1);
    }

    /// Counts a request as in flight as long as the value is held.
    pub fn begun(&self, worker: WorkerId) -> InFlight<'_> {
        let in_flight = &self.shards[worker.0].0.in_flight;
        in_flight.fetch_add(1, Relaxed);
        InFlight(in_flight)
    }

    /// Notes the pace of a worker.
    pub fn paced(&self, worker: WorkerId, pace: &Pace) {
        let [share, rate] = &self.shards[worker.0].0.pace;
        share.store(pace.share.to_bits(), Relaxed);
        rate.store(pace.rate.to_bits(), Relaxed);
    }

    /// Answers of a worker so far.
    pub fn answers_of(&self, worker: WorkerId) -> u64 {
        self.shards[worker.0].0.answers.0.iter().map(Count::load).sum()
    }

    /// Busy share and answers per second of the mean worker.
    #[expect(clippy::cast_precision_loss, reason = "few workers")]
    pub(super) fn pace(&self) -> (f64, f64) {
        let mean = |of: usize| {
            let values = self.shards.iter().map(|it| f64::from_bits(it.0.pace[of].load(Relaxed)));
            values.sum::<f64>() / self.shards.len().max(1) as f64
        };
        (mean(0), mean(1))
    }

    /// Requests in flight on the data plane.
    pub fn in_flight(&self) -> u64 {
        let sum = |sum: u64, shard: &Padded<ServerShard>| {
            sum.wrapping_add(shard.0.in_flight.load(Relaxed))
        };
        self.shards.iter().fold(0, sum)
    }

    /// Counts a worker that did not come back from a run.
    pub fn worker_lost(&self) {
        self.workers_lost.fetch_add(1, Relaxed);
    }

    /// Workers so far that did not come back from a run.
    pub fn workers_lost(&self) -> u64 {
        self.workers_lost.load(Relaxed)
    }

    /// Answers so far, by status.
    pub fn answers(&self) -> Vec<(Code, u64)> {
        merge_codes(self.shards.iter().map(|shard| &shard.0.answers))
    }

    /// Heads refused so far.
    pub fn heads_refused(&self) -> u64 {
        self.shards.iter().map(|shard| shard.0.refused_heads.load()).sum()
    }

    /// Refusals so far that no model counts, by reason.
    pub fn refusals(&self) -> Vec<(Reason, u64)> {
        let mut sums = merge_refusals(self.shards.iter().map(|shard| &shard.0.refusals));
        sums[Reason::Head as usize] += self.heads_refused();
        sums[Reason::Connections as usize] += self.turned_away.load(Relaxed);
        present(sums)
    }

    /// Connections open now, and taken so far.
    pub fn connections(&self) -> (u64, u64) {
        let closed: u64 = self.shards.iter().map(|shard| shard.0.closed.load()).sum();
        let opened: u64 = self.shards.iter().map(|shard| shard.0.connections.load()).sum();
        (opened.saturating_sub(closed), opened)
    }
}

impl ModelRecorder {
    /// The model's name.
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// Counts a request to the model that no version answered.
    pub fn unanswered(&self, worker: WorkerId, code: Code) {
        self.shards[worker.0].0.0[code.0].add(1);
    }

    /// Requests so far that no version answered, by status.
    pub fn unanswered_codes(&self) -> Vec<(Code, u64)> {
        merge_codes(self.shards.iter().map(|shard| &shard.0))
    }

    /// Counts a request to the model that was refused.
    pub fn refused(&self, worker: WorkerId, reason: Reason) {
        let refusals = self.refusals.get_or_init(|| shards(self.shards.len()));
        refusals[worker.0].0.0[reason as usize].add(1);
    }

    /// Refusals so far of requests to the model, by reason.
    pub fn refusals(&self) -> Vec<(Reason, u64)> {
        let shards = self.refusals.get().into_iter().flatten();
        present(merge_refusals(shards.map(|shard| &shard.0)))
    }

    /// All counts so far; versions that left ten minutes before `now`, since 1970, are no longer apart.
    pub fn look(&self, now: Duration) -> ModelTotals {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.retire_old(now);
        let apart = versions.apart.iter();
        ModelTotals {
            unanswered: self.unanswered_codes(),
            retired: versions.retired.as_deref().cloned(),
            versions: apart.map(|(id, apart)| (*id, Arc::clone(&apart.recorder))).collect(),
        }
    }

    /// The recorders of its versions.
    pub fn versions(&self) -> Vec<(VersionId, Arc<VersionRecorder>)> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.apart.iter().map(|(id, apart)| (*id, Arc::clone(&apart.recorder))).collect()
    }
}

impl VersionRecorder {
    fn new(workers: usize) -> Self {
        Self {
            workers,
            arms: Mutex::default(),
            fallbacks: AtomicU64::new(0),
            shadow: ShadowRecorder::default(),
        }
    }

    /// The recorder of an arm; made when it is first asked for.
    pub fn arm(&self, name: ArmName) -> Arc<ArmRecorder> {
        let mut arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = arms.entry(name).or_insert_with(|| {
            let place = PLACES.fetch_add(1, Relaxed);
            Arc::new(ArmRecorder { place, shards: shards(self.workers) })
        });
        Arc::clone(recorder)
    }

    /// The recorders of its arms, by name.
    pub fn arms(&self) -> Vec<(ArmName, Arc<ArmRecorder>)> {
        let arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        arms.iter().map(|(name, recorder)| (*name, Arc::clone(recorder))).collect()
    }

    /// Counts a request that another version answered because this one could not.
    pub fn fell_back(&self) {
        self.fallbacks.fetch_add(1, Relaxed);
    }

    /// Requests so far that another version answered because this one could not.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Relaxed)
    }

    /// Recorder of copies of requests that it gets as a shadow.
    pub fn shadow(&self) -> &ShadowRecorder {
        &self.shadow
    }

    /// Time of the last answer, in nanoseconds since 1970; 0 before the first.
    fn last(&self) -> u64 {
        self.arms().iter().map(|(_, arm)| arm.last()).max().unwrap_or(0)
    }

    /// Time of the last answer, since 1970; zero before the first.
    pub fn last_answered(&self) -> Duration {
        Duration::from_nanos(self.last())
    }

    /// Totals so far, over all arms.
    pub fn totals(&self) -> VersionTotals {
        let mut totals = VersionTotals::default();
        self.arms().iter().for_each(|(_, arm)| totals.add(&arm.totals()));
        totals
    }
}

impl VersionTotals {
    /// Adds the counts of another arm or version.
    pub fn add(&mut self, other: &Self) {
        add_codes(&mut self.codes, &other.codes);
        self.success += other.success;
        self.failed += other.failed;
        self.rows += other.rows;
        self.executions += other.executions;
        let (phases, others) = (&mut self.phases, &other.phases);
        phases.decode += others.decode;
        phases.queue += others.queue;
        phases.run += others.run;
        phases.encode += others.encode;
        phases.total += others.total;
        self.failed_time += other.failed_time;
        self.last = self.last.max(other.last);
        self.total.add(&other.total);
        self.parts.iter_mut().zip(&other.parts).for_each(|(sum, part)| sum.add(part));
        self.traced = newer(self.traced, other.traced);
    }
}

impl ArmRecorder {
    /// The number that tells it from every other arm's of this process.
    pub fn place(&self) -> u32 {
        self.place
    }

    /// Counts a request that this version answered, before its answer is handed on; `unix` is the time now.
    pub fn record(&self, worker: WorkerId, code: Code, sample: &Sample, unix: Duration) {
        let shard = &self.shards[worker.0].0;
        let latencies = shard.latencies.get_or_init(Box::default);
        shard.codes.0[code.0].add(1);
        if code.status() == 200 {
            shard.success.add(1);
            shard.rows.add(sample.rows);
            shard.executions.add(1);
            shard.decode.add_time(sample.decode);
            shard.queue.add_time(sample.queue);
            shard.run.add_time(sample.run);
            shard.encode.add_time(sample.encode);
            shard.total.add_time(sample.total);
            for (part, latencies) in Part::ALL.into_iter().zip(&latencies.parts) {
                latencies.record(nanoseconds(sample.part(part)));
            }
        } else {
            shard.failed.add(1);
            shard.failed_time.add_time(sample.total);
        }
        shard.last_unix_ns.0.store(nanoseconds(unix), Relaxed);
        latencies.total.record(nanoseconds(sample.total));
        if let Some(trace) = sample.trace
            && let Ok(mut traced) = latencies.traced.try_lock()
        {
            *traced = Some(Traced { trace, took: sample.total, at: unix });
        }
    }

    /// When the last request was answered, in nanoseconds since 1970; 0 before the first.
    fn last(&self) -> u64 {
        self.shards.iter().map(|shard| shard.0.last_unix_ns.load()).max().unwrap_or(0)
    }

    /// What was counted so far.
    pub fn totals(&self) -> VersionTotals {
        let sum = |of: fn(&VersionShard) -> &Count| -> u64 {
            self.shards.iter().map(|shard| of(&shard.0).load()).sum()
        };
        let time = |of: fn(&VersionShard) -> &Count| Duration::from_nanos(sum(of));
        let (mut total, mut traced) = (Spread::default(), None);
        let mut parts: [Spread; Part::ALL.len()] = Default::default();
        for latencies in self.shards.iter().filter_map(|shard| shard.0.latencies.get()) {
            latencies.total.add_to(&mut total);
            for (part, latencies) in parts.iter_mut().zip(&latencies.parts) {
                latencies.add_to(part);
            }
            let own = *latencies.traced.lock().unwrap_or_else(PoisonError::into_inner);
            traced = newer(traced, own);
        }
        let last = self.last();
        VersionTotals {
            codes: merge_codes(self.shards.iter().map(|shard| &shard.0.codes)),
            success: sum(|shard| &shard.success),
            failed: sum(|shard| &shard.failed),
            rows: sum(|shard| &shard.rows),
            executions: sum(|shard| &shard.executions),
            phases: Sample {
                rows: 0,
                decode: time(|shard| &shard.decode),
                queue: time(|shard| &shard.queue),
                run: time(|shard| &shard.run),
                encode: time(|shard| &shard.encode),
                total: time(|shard| &shard.total),
                trace: None,
            },
            failed_time: time(|shard| &shard.failed_time),
            last: (last > 0).then(|| Duration::from_nanos(last)),
            total,
            parts,
            traced,
        }
    }
}

fn shards<T: Default>(workers: usize) -> Box<[Padded<T>]> {
    (0..workers).map(|_| Padded::default()).collect()
}

fn merge_codes<'a>(shards: impl Iterator<Item = &'a Codes>) -> Vec<(Code, u64)> {
    let mut sums = [0u64; CODES.len()];
    for shard in shards {
        for (sum, count) in sums.iter_mut().zip(&shard.0) {
            *sum += count.load();
        }
    }
    sums.into_iter()
        .enumerate()
        .filter(|(_, sum)| *sum > 0)
        .map(|(code, sum)| (Code(code), sum))
        .collect()
}

fn merge_refusals<'a>(shards: impl Iterator<Item = &'a Refusals>) -> [u64; Reason::ALL.len()] {
    let mut sums = [0; Reason::ALL.len()];
    for shard in shards {
        sums.iter_mut().zip(&shard.0).for_each(|(sum, count)| *sum += count.load());
    }
    sums
}

fn present(sums: [u64; Reason::ALL.len()]) -> Vec<(Reason, u64)> {
    Reason::ALL.into_iter().zip(sums).filter(|(_, sum)| *sum > 0).collect()
}

fn newer(one: Option<Traced>, other: Option<Traced>) -> Option<Traced> {
    one.into_iter().chain(other).max_by_key(|traced| traced.at)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_two_workers_are_summed() {
        let recorder = ArmRecorder { place: 0, shards: shards(2) };
        let sample = Sample {
            rows: 3,
            run: Duration::from_micros(5),
            total: Duration::from_micros(9),
            ..Sample::default()
        };
        recorder.record(WorkerId(0), Code::from_status(200), &sample, Duration::from_secs(1));
        recorder.record(WorkerId(1), Code::from_status(200), &sample, Duration::from_secs(2));
        recorder.record(WorkerId(1), Code::from_status(400), &sample, Duration::from_secs(3));
        let totals = recorder.totals();
        assert_eq!((totals.success, totals.failed, totals.rows), (2, 1, 6));
        assert_eq!(totals.total.count(), 3);
        assert_eq!(totals.phases.run, Duration::from_micros(10));
        assert_eq!(totals.last, Some(Duration::from_secs(3)));
        let run = Part::ALL.iter().position(|part| *part == Part::Run).unwrap();
        assert_eq!(totals.parts.each_ref().map(Spread::count), [2; 4], "of successes only");
        assert!((5_000..5_100).contains(&totals.parts[run].quantile(0.5)));
        assert_eq!(totals.traced, None);
    }

    #[test]
    fn the_newest_trace_is_the_exemplar() {
        let recorder = ArmRecorder { place: 0, shards: shards(2) };
        let ok = Code::from_status(200);
        let sample = |trace| Sample { trace, total: Duration::from_millis(3), ..Sample::default() };
        recorder.record(WorkerId(0), ok, &sample(Some(7)), Duration::from_secs(5));
        recorder.record(WorkerId(1), ok, &sample(Some(8)), Duration::from_secs(4));
        recorder.record(WorkerId(0), ok, &sample(None), Duration::from_secs(6));
        let (at, took) = (Duration::from_secs(5), Duration::from_millis(3));
        assert_eq!(recorder.totals().traced, Some(Traced { trace: 7, took, at }));
    }

    fn recorded(rows: u64, at: Duration) -> Arc<VersionRecorder> {
        let recorder = Arc::new(VersionRecorder::new(1));
        let sample = Sample { rows, ..Sample::default() };
        let ok = Code::from_status(200);
        recorder.arm(ArmName::BASELINE).record(WorkerId(0), ok, &sample, at);
        recorder
    }

    #[test]
    fn versions_long_gone_are_not_apart_and_their_counts_remain() {
        let mut versions = Versions::default();
        let mut serving = None;
        for number in 1..=100 {
            versions.make_room();
            let recorder = recorded(2, Duration::from_secs(number));
            serving.get_or_insert_with(|| Arc::clone(&recorder));
            versions.apart.insert(VersionId::new(number), Apart { recorder, left: None });
        }
        assert_eq!(versions.apart.len(), VERSIONS_MAX);
        assert!(versions.apart.contains_key(&VersionId::new(1)), "somebody serves it");
        let retired = versions.retired.unwrap();
        let gone = 100 - VERSIONS_MAX as u64;
        assert_eq!(retired.totals.codes, [(Code::from_status(200), gone)]);
        assert_eq!((retired.totals.rows, retired.totals.total.count()), (2 * gone, gone));
    }

    #[test]
    fn a_version_that_left_stays_ten_minutes() {
        let mut versions = Versions::default();
        let recorder = recorded(3, Duration::from_secs(1));
        recorder.fell_back();
        let (id, arm) = (VersionId::new(1), recorder.arm(ArmName::BASELINE));
        let served = Arc::clone(&recorder);
        versions.apart.insert(id, Apart { recorder, left: None });
        let mut apart_at = |seconds| {
            versions.retire_old(Duration::from_secs(seconds));
            versions.apart.contains_key(&id)
        };
        assert!(apart_at(0) && apart_at(10_000), "somebody serves it");
        drop(served);
        assert!(apart_at(20_000), "an arm is still held");
        drop(arm);
        assert!(apart_at(30_000) && apart_at(30_599));
        assert!(!apart_at(30_600));
        let retired = versions.retired.unwrap();
        assert_eq!((retired.totals.rows, retired.fallbacks), (3, 1));
    }

    #[test]
    fn unlisted_codes_count_with_their_class() {
        assert_eq!(Code::from_status(418).status(), 400);
        assert_eq!(Code::from_status(431).status(), 431);
        assert_eq!(Code::from_status(204).status(), 200);
        assert_eq!(Code::from_status(599).status(), 500);
        assert_eq!(Code::from_status(999).status(), 500);
    }
}
