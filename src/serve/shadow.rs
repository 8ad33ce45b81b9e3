//! Shadows: copies of answered requests are run on another version, whose answers are compared and never returned.
//!
//! Once a worker has counted an answer, it moves the request's inputs and the model's outputs into one bounded queue;
//! one thread of the lowest priority runs them on the shadow's version and compares. Always true:
//! - A worker waits for nothing and copies no tensor; a copy for which there is no room is dropped, the newest first.
//! - Each copy is counted once: as a request of the shadow, or as dropped.
//! - A copy that waits keeps no version loaded: it runs on what the live table has then, or is dropped.
//! - A copy is run with the checks, the deadline and the watchdog that requests are run with. One that never ends stops
//!   the shadows of this process, and nothing else.
//!
//! An arm answered, so a shadow that does not, for whatever reason but room, disagrees: it *failed*.
//!
//! Not here: the request's own run (`call`), how answers differ (`compare`), what follows from it (`rollout`).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{JoinHandle, Thread},
    time::{Duration, Instant},
};

use crossbeam_queue::ArrayQueue;
use smallvec::SmallVec;

use crate::{
    drift::SegmentId,
    model::{InferRequest, Input, ModelName, PredictionId, RequestedOutput, VersionId},
    monitor::{ShadowSample, ShadowTotals, VersionRecorder},
    tensor::Tensor,
};

use super::{
    Compared, Evidence, PredictError, Prediction, Run, Serving, Settings, Table, Version, Watch,
    compare,
};

/// The largest relative difference at which two answers agree, where no rollout has its own.
const TOLERANCE: f64 = 0.001;

/// More than all priorities there are: the lowest one, whatever that of the process is.
const NICE: i32 = 40;

/// The pause between two looks for copies, or for a free session.
const TICK: Duration = Duration::from_millis(1);

/// After so many looks without a copy the thread sleeps: whoever offers the next one has to wake it, which costs more
/// than the offer.
const QUIET_LOOKS: u32 = 1000;

/// A version that gets copies of a model's requests.
#[derive(Debug)]
pub struct Shadow {
    model: ModelName,
    id: VersionId,
    slots: u32,
    serial: u64,
    recorder: Arc<VersionRecorder>,
    evidence: Option<Arc<Evidence>>,
    /// The versions whose answers it is compared with.
    answering: Box<[Answering]>,
}

/// A version that answers requests: its serial number, and the names of its outputs.
#[derive(Debug)]
struct Answering {
    serial: u64,
    outputs: Box<[String]>,
}

/// Inputs and outputs of a request that has a copy.
#[derive(Debug)]
pub(super) struct Copied {
    inputs: Vec<Input>,
    outputs: Vec<Tensor>,
    /// Indexes into the answering version's outputs.
    wanted: SmallVec<[usize; 8]>,
    /// The index of the version that answered.
    answering: usize,
    /// Bytes that it keeps in memory.
    bytes: usize,
}

/// Copies on their way to the thread that runs them.
#[derive(Debug)]
pub(super) struct Shadows {
    queue: ArrayQueue<Copy>,
    /// Copies in the queue, and the one that is run.
    waiting: AtomicUsize,
    /// Bytes of these copies.
    bytes: AtomicUsize,
    waiting_max: usize,
    bytes_max: usize,
    thread: OnceLock<Thread>,
    is_asleep: AtomicBool,
    stop: AtomicBool,
    /// True while a run does not end that was given up.
    is_stuck: AtomicBool,
    /// The copy in a run.
    running: Mutex<Option<(Arc<Shadow>, PredictionId)>>,
}

#[derive(Debug)]
struct Copy {
    shadow: Arc<Shadow>,
    prediction: PredictionId,
    copied: Copied,
}

/// The thread that runs shadows; it ends when this is dropped, and with it every run of the process.
#[derive(Debug)]
pub struct Shadowing {
    serving: Arc<Serving>,
    thread: Option<JoinHandle<()>>,
}

/// Results of a copy.
enum Ran {
    /// Difference between its answer and the client's; true if their shapes differ.
    Compared(ShadowSample, bool),
    Dropped,
    /// Its run was counted when it was given up.
    Lost,
}

impl Shadow {
    /// A shadow that gets this share of requests, compared with the answers of other versions than itself.
    pub(super) fn new<'v>(
        slots: u32,
        version: &Version,
        evidence: Option<Arc<Evidence>>,
        answering: impl Iterator<Item = &'v Version>,
    ) -> Self {
        let others = answering.filter(|other| other.serial() != version.serial());
        let answering = others.map(|other| {
            let outputs = other.signature().outputs.iter().map(|output| output.name.clone());
            Answering { serial: other.serial(), outputs: outputs.collect() }
        });
        Self {
            model: version.parts().model.clone(),
            id: version.id(),
            slots,
            serial: version.serial(),
            recorder: Arc::clone(&version.parts().recorder),
            evidence,
            answering: answering.collect(),
        }
    }

    /// Its version's number.
    pub fn id(&self) -> VersionId {
        self.id
    }

    /// Totals of its version's copies since the process started, whatever they were compared with.
    pub fn totals(&self) -> ShadowTotals {
        self.recorder.shadow().totals()
    }

    /// Its share of requests, in slots.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// The serial number of its version.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Its version, if that is still the model's shadow in this table.
    fn version(&self, table: &Table) -> Option<Arc<Version>> {
        let model = table.model(self.model.as_str())?;
        let shadow = model.traffic.as_deref()?.shadow()?;
        let mut ready = model.versions.iter().filter_map(|entry| entry.version.as_ref());
        let version = ready.find(|version| version.serial() == self.serial)?;
        (shadow.serial == self.serial).then(|| Arc::clone(version))
    }

    /// Counts a copy that is not run.
    fn drop_copy(&self) {
        self.recorder.shadow().dropped();
        if let Some(evidence) = &self.evidence {
            evidence.drop_copy();
        }
    }

    fn count(&self, prediction: PredictionId, at: Duration, ran: &Ran) {
        match *ran {
            Ran::Compared(mut sample, shape_differs) => {
                let version = self.id;
                let compared = Compared { at, version, prediction, sample, shape_differs };
                sample.disagrees = compared.disagrees(TOLERANCE);
                self.recorder.shadow().compared(&sample);
                if let Some(evidence) = &self.evidence {
                    evidence.compare(compared);
                }
            }
            Ran::Dropped => self.drop_copy(),
            Ran::Lost => {}
        }
    }
}

impl Copied {
    /// Takes a version's inputs and answer for a shadow; `None` if the shadow is not compared with this version.
    pub(super) fn new(
        shadow: &Shadow,
        version: &Version,
        inputs: Vec<Input>,
        prediction: Prediction,
        body_bytes: usize,
    ) -> Option<Self> {
        let serial = version.serial();
        let answering = shadow.answering.iter().position(|other| other.serial == serial)?;
        let Prediction { outputs, wanted, .. } = prediction;
        let bytes = bytes_of(&inputs, &outputs, body_bytes);
        Some(Self { inputs, outputs, wanted, answering, bytes })
    }
}

/// Bytes that inputs and outputs keep in memory.
pub(super) fn bytes_of(inputs: &[Input], outputs: &[Tensor], body_bytes: usize) -> usize {
    // Slices keep the whole body.
    let slices = inputs.iter().any(|input| is_slice(&input.tensor));
    let own = inputs.iter().map(|input| &input.tensor).filter(|tensor| !is_slice(tensor));
    let bytes = own.chain(outputs).map(held).sum::<usize>();
    bytes + if slices { body_bytes } else { 0 }
}

fn is_slice(tensor: &Tensor) -> bool {
    matches!(tensor.data(), crate::tensor::Data::Raw(_))
}

/// Bytes that a tensor's elements occupy: strings have an end each beside their bytes.
fn held(tensor: &Tensor) -> usize {
    let ends = tensor.strings().map_or(0, |strings| strings.len() * size_of::<usize>());
    tensor.raw_len() + ends
}

impl Shadows {
    pub(super) fn new(settings: &Settings) -> Self {
        let waiting_max = settings.shadow_waiting_max.get();
        Self {
            queue: ArrayQueue::new(waiting_max),
            waiting: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            waiting_max,
            bytes_max: settings.shadow_bytes_max,
            thread: OnceLock::new(),
            is_asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
            running: Mutex::default(),
        }
    }

    /// Takes a copy to be run, or drops it.
    pub(super) fn offer(&self, shadow: &Arc<Shadow>, prediction: PredictionId, copied: Copied) {
        let bytes = copied.bytes;
        let copy = Copy { shadow: Arc::clone(shadow), prediction, copied };
        // There is a place for whatever has been reserved, and nobody else in it: to reserve is to push without
        // waiting.
        if self.is_stuck.load(Relaxed) || !self.reserve(bytes) {
            shadow.drop_copy();
        } else if self.queue.push(copy).is_err() {
            self.release(bytes);
            shadow.drop_copy();
        }
        if self.is_asleep.load(SeqCst) && self.is_asleep.swap(false, SeqCst) {
            self.wake();
        }
    }

    fn reserve(&self, bytes: usize) -> bool {
        let waiting = self.waiting.fetch_add(1, SeqCst);
        let held = self.bytes.fetch_add(bytes, Relaxed);
        let fits = waiting < self.waiting_max && held.saturating_add(bytes) <= self.bytes_max;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Relaxed);
        self.waiting.fetch_sub(1, SeqCst);
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// Runs copies until it is told to stop; the calling thread does nothing else.
    fn work(&self, serving: &Serving, watch: &Watch) {
        // The first to work is the only one.
        let _ = self.thread.set(std::thread::current());
        let mut quiet = 0;
        while !self.is_stopped() {
            if let Some(copy) = self.queue.pop() {
                quiet = 0;
                self.take(serving, watch, copy);
            } else if quiet < QUIET_LOOKS {
                quiet += 1;
                std::thread::sleep(TICK);
            } else {
                self.is_asleep.store(true, SeqCst);
                // What is reserved after this load is offered by somebody who sees the store before it.
                if self.waiting.load(SeqCst) == 0 && !self.is_stopped() {
                    std::thread::park();
                }
                self.is_asleep.store(false, SeqCst);
                quiet = 0;
            }
        }
        while let Some(copy) = self.queue.pop() {
            copy.shadow.drop_copy();
            self.release(copy.copied.bytes);
        }
    }

    /// Runs a copy and counts it.
    fn take(&self, serving: &Serving, watch: &Watch, copy: Copy) {
        let Copy { shadow, prediction, copied } = copy;
        let bytes = copied.bytes;
        *self.running() = Some((Arc::clone(&shadow), prediction));
        let ran = catch_unwind(AssertUnwindSafe(|| self.run(serving, watch, &shadow, copied)));
        let was_counted = self.running().take().is_none();
        let ran = match ran {
            Ok(_) if was_counted => Ran::Lost,
            // It came back in the very moment in which it was given up.
            Ok(Ran::Lost) => failed(),
            Ok(ran) => ran,
            Err(_) => {
                tracing::error!(
                    model = %shadow.model,
                    version = %shadow.id,
                    "the run of a shadow broke; please report this, and set no shadow on this version"
                );
                if was_counted { Ran::Lost } else { failed() }
            }
        };
        if was_counted {
            self.is_stuck.store(false, Relaxed);
            tracing::info!(
                model = %shadow.model,
                version = %shadow.id,
                "the run of a shadow that did not end has ended; requests are copied again"
            );
        }
        shadow.count(prediction, serving.unix_at(serving.clock.now()), &ran);
        self.release(bytes);
    }

    fn run(&self, serving: &Serving, watch: &Watch, shadow: &Shadow, copied: Copied) -> Ran {
        let begin = serving.clock.now();
        let deadline = |now: Instant| now + serving.settings.request_timeout;
        loop {
            let Some(version) = shadow.version(&serving.table()) else { return Ran::Dropped };
            let now = serving.clock.now();
            if let Some(mut session) = version.session_to_spare() {
                let run = Run {
                    watch,
                    arrived: now,
                    deadline: deadline(now),
                    client: None,
                    keeps_inputs: false,
                    segment: SegmentId::NONE,
                };
                let names = &shadow.answering[copied.answering].outputs;
                let names = copied.wanted.iter().map(|index| names[*index].as_str()).collect();
                let mut request = wants(copied.inputs, &names);
                let ran = serving.run(&version, &mut *session, run, &mut request);
                // Before the comparison: a request may wait for it.
                drop(session);
                return match ran {
                    Ok(prediction) => difference(&version, &names, prediction, &copied.outputs),
                    Err(error) => not_answered(&error),
                };
            }
            if self.is_stopped() || now > deadline(begin) {
                return Ran::Dropped;
            }
            drop(version);
            std::thread::sleep(TICK);
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<(Arc<Shadow>, PredictionId)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the run of this moment: it does not end.
    fn give_up(&self, at: Duration) {
        let mut running = self.running();
        let Some((shadow, prediction)) = running.take() else { return };
        // Still locked: whoever finds the copy taken finds this.
        self.is_stuck.store(true, Relaxed);
        drop(running);
        shadow.count(prediction, at, &failed());
        tracing::error!(
            model = %shadow.model,
            version = %shadow.id,
            "the run of a shadow does not end although its deadline has passed; copies of requests are dropped from now on: \
             set no shadow on this version, and restart the server to have others run again"
        );
    }
}

/// The request for these outputs.
fn wants(inputs: Vec<Input>, names: &SmallVec<[&str; 8]>) -> InferRequest {
    let output = |name: &&str| RequestedOutput {
        name: (*name).to_owned(),
        binary: None,
        classification: None,
    };
    let outputs = names.iter().map(output).collect();
    InferRequest { inputs, outputs, ..InferRequest::default() }
}

/// Compares what the shadow gave with the outputs of these names that the client got.
fn difference(
    version: &Version,
    names: &SmallVec<[&str; 8]>,
    prediction: Prediction,
    outputs: &[Tensor],
) -> Ran {
    let Prediction { outputs: own, wanted, .. } = prediction;
    let place = |name: &str| {
        let index = version.signature().output(name).ok()?;
        wanted.iter().position(|wanted| *wanted == index)
    };
    let mut own: Vec<_> = own.into_iter().map(Some).collect();
    let ordered = names.iter().filter_map(|name| own[place(name)?].take());
    let difference = compare(&ordered.collect::<Vec<_>>(), outputs);
    let sample = ShadowSample {
        disagrees: false,
        failed: false,
        argmax_flips: difference.argmax_flips,
        label_flips: difference.label_flips,
        max_absolute: difference.max_abs,
        max_relative: difference.max_relative,
    };
    Ran::Compared(sample, difference.shape.is_some())
}

fn failed() -> Ran {
    Ran::Compared(ShadowSample { failed: true, ..ShadowSample::default() }, false)
}

/// Result of a copy that got no answer where an arm gave one.
fn not_answered(error: &PredictError) -> Ran {
    match error {
        PredictError::Signature(_)
        | PredictError::Contract(_)
        | PredictError::Guarded(_)
        | PredictError::Oversized(_)
        | PredictError::Rows { .. }
        | PredictError::Inputs(_)
        | PredictError::Engine(_)
        | PredictError::Deadline => failed(),
        // Nobody's fault, and no answer that could be compared.
        PredictError::Crowded(_)
        | PredictError::Gone
        | PredictError::Leaving(_)
        | PredictError::Stopping => Ran::Dropped,
        PredictError::Lost => Ran::Lost,
    }
}

impl Shadowing {
    /// Runs shadows on a thread of its own as long as the value returned lives.
    pub fn start(serving: &Arc<Serving>) -> std::io::Result<Self> {
        let (shadows, clock) = (Arc::clone(&serving.shadows), Arc::clone(&serving.clock));
        let watch = serving.watchdog.watch_alone(move || shadows.give_up(clock.unix()));
        let served = Arc::clone(serving);
        let thread = std::thread::Builder::new().name("shadow".to_owned()).spawn(move || {
            // Where it fails, it is only less polite.
            let _ = rustix::process::nice(NICE);
            served.shadows.work(&served, &watch);
        })?;
        Ok(Self { serving: Arc::clone(serving), thread: Some(thread) })
    }

    /// Begins no further run; the one of this moment goes on.
    pub fn stop(&self) {
        self.serving.shadows.stop.store(true, SeqCst);
        self.serving.shadows.wake();
    }
}

impl Drop for Shadowing {
    fn drop(&mut self) {
        self.stop();
        self.serving.watchdog.end_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        borrow::Cow,
        collections::{BTreeMap, HashMap},
    };

    use super::*;
    use crate::{
        engine::{RunError, Session},
        model::{
            ArmSpec, PredictionKey, SLOTS, ShadowSpec, Signature, Split, StickyBy, TensorSpec,
            TrafficSource, TrafficSpec, VersionSelector, VersionState,
        },
        monitor::{Clock, Monitor, Outcome, WorkerId},
        serve::{Asked, Entry, Model, Names, Naming, Traffic, VersionParts},
        tensor::{Data, DataType, Shape},
    };

    #[derive(Debug)]
    struct StoppedClock(Instant);

    impl Clock for StoppedClock {
        fn now(&self) -> Instant {
            self.0
        }

        fn unix(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    /// Answers with these values, by output.
    struct Constant(Signature, Vec<i64>);

    impl Session for Constant {
        fn signature(&self) -> &Signature {
            &self.0
        }

        fn run(&mut self, _: Cow<'_, [Input]>, wanted: &[usize]) -> Result<Vec<Tensor>, RunError> {
            let value = |index: &usize| {
                let value = self.1.get(*index).ok_or(RunError::Failed("broken".to_owned()))?;
                Ok(Tensor::new(Shape::new(&[1]).unwrap(), Data::Int64(vec![*value])).unwrap())
            };
            wanted.iter().map(value).collect()
        }
    }

    struct House {
        serving: Serving,
        monitor: Monitor,
        watch: Arc<Watch>,
        begin: Instant,
        names: Names,
        evidence: Arc<Evidence>,
    }

    impl House {
        /// Serves `m` with versions of these outputs: version 1 answers, 2 is its shadow.
        fn new(settings: Settings, versions: [&[(&str, i64)]; 2]) -> Self {
            let begin = Instant::now();
            let clock: Arc<dyn Clock> = Arc::new(StoppedClock(begin));
            let monitor = Monitor::new(1, Arc::clone(&clock));
            let serving = Serving::new(settings, clock);
            let watch = serving.watchdog().watch(WorkerId(0));
            let naming = Naming { key: PredictionKey::new([1, 2]), process: 0 };
            let names = serving.names(naming, WorkerId(0), 0);
            let evidence = Arc::new(Evidence::new(1));
            let house = Self { serving, monitor, watch, begin, names, evidence };
            let version = |number, outputs| Arc::new(house.version(number, outputs));
            house.publish(&[version(1, versions[0]), version(2, versions[1])], &[2]);
            house
        }

        fn version(&self, number: u64, outputs: &[(&str, i64)]) -> Version {
            let spec = |name: &str| TensorSpec {
                name: name.to_owned(),
                datatype: DataType::Int64,
                dims: Some(vec![1]),
                view: None,
            };
            let specs = outputs.iter().map(|(name, _)| spec(name)).collect();
            let signature =
                Signature { inputs: vec![spec("x")], outputs: specs, ..Signature::default() };
            let (name, id) = (ModelName::parse("m").unwrap(), VersionId::new(number));
            let recorder = self.monitor.version(&name, id);
            let values = outputs.iter().map(|(_, value)| *value);
            let values = values.take_while(|value| *value >= 0).collect();
            let session = Constant(signature.clone(), values);
            Version::new(VersionParts::new(name, id, signature, recorder), vec![Box::new(session)])
        }

        fn publish(&self, versions: &[Arc<Version>], shadows: &[u64]) {
            let spec = TrafficSpec {
                source: TrafficSource::Operator,
                rollout: None,
                salt: [1, 2],
                sticky: StickyBy::default(),
                arms: vec![ArmSpec { name: "baseline".to_owned(), version: 1 }],
                runs: Split::whole().runs().collect(),
                shadow: shadows
                    .iter()
                    .map(|version| ShadowSpec { version: *version, slots: SLOTS / 2 })
                    .collect(),
                keep: Vec::new(),
            };
            let loaded = |id| versions.iter().find(|version| version.id() == id).cloned();
            let evidence = Some(Arc::clone(&self.evidence));
            let traffic = Traffic::new(Arc::new(spec), evidence, loaded);
            let entry = |version: &Arc<Version>| Entry {
                id: version.id(),
                state: VersionState::Ready,
                reason: String::new(),
                version: Some(Arc::clone(version)),
                on_demand: false,
                decided: false,
            };
            let name = ModelName::parse("m").unwrap();
            let model = Model {
                recorder: self.monitor.model(&name),
                name: name.clone(),
                versions: versions.iter().map(entry).collect(),
                default: Some(VersionId::new(1)),
                aliases: BTreeMap::new(),
                pinned: None,
                problem: None,
                traffic: Some(Arc::new(traffic)),
                traffic_revision: 1,
                route_override: false,
                held_back: None,
            };
            let models = HashMap::from([(name, Arc::new(model))]);
            self.serving.publish(Table::new(models, true, Arc::default()));
        }

        /// Has so many requests answered by version 1.
        fn answer(&self, requests: usize, selector: VersionSelector<'_>) {
            let table = self.serving.table();
            for _ in 0..requests {
                let asked = Asked {
                    trace: None,
                    watch: &self.watch,
                    client: None,
                    model: "m",
                    selector,
                    route: None,
                    key: None,
                    id: self.names.next(self.begin),
                    arrived: self.begin,
                    waited: Duration::ZERO,
                    deadline: self.begin,
                };
                let tensor = Tensor::new(Shape::new(&[1]).unwrap(), Data::Int64(vec![0])).unwrap();
                let inputs = vec![Input { name: "x".to_owned(), tensor }];
                let mut request = InferRequest { inputs, ..InferRequest::default() };
                let mut call = self.serving.call(&table, &asked).unwrap();
                let prediction = call.run(&mut request).unwrap();
                call.copy(&mut request, prediction, 0);
                call.finish(Outcome::Ok);
            }
        }

        /// Runs the copies that wait, as the thread does.
        fn run(&self) -> ShadowTotals {
            let shadows = &self.serving.shadows;
            let watch = self.serving.watchdog.watch_alone(|| {});
            while let Some(copy) = shadows.queue.pop() {
                shadows.take(&self.serving, &watch, copy);
            }
            assert_eq!((shadows.waiting.load(SeqCst), shadows.bytes.load(SeqCst)), (0, 0));
            self.totals()
        }

        fn totals(&self) -> ShadowTotals {
            let name = ModelName::parse("m").unwrap();
            self.monitor.version(&name, VersionId::new(2)).shadow().totals()
        }
    }

    const DEFAULT: VersionSelector<'_> = VersionSelector::Default;

    #[test]
    fn a_share_of_what_arms_answered_is_copied_and_outputs_are_compared_by_name() {
        let house = House::new(Settings::default(), [&[("a", 1), ("b", 2)], &[("b", 2), ("a", 1)]]);
        house.answer(200, DEFAULT);
        house.answer(50, VersionSelector::Number(VersionId::new(1)));
        let totals = house.run();
        // Half of 200, within four deviations.
        assert!((72..=128).contains(&totals.requests), "{totals:?}");
        let agree = ShadowTotals { requests: totals.requests, ..ShadowTotals::default() };
        assert_eq!(totals, agree);
        let compared: Vec<_> = house.evidence.compared().collect();
        assert_eq!(compared.len() as u64, totals.requests);
        assert!(compared.iter().all(|copy| !copy.disagrees(0.0)), "{compared:?}");
    }

    #[test]
    fn other_labels_disagree_and_so_does_a_shadow_that_gives_no_answer() {
        let check = |shadow: &[(&str, i64)], failed, label_flips| {
            let house = House::new(Settings::default(), [&[("a", 1)], shadow]);
            house.answer(20, DEFAULT);
            let totals = house.run();
            let all = totals.requests;
            assert!(all > 0 && totals.disagreements == all, "{totals:?}");
            let expected = (u64::from(failed) * all, label_flips * all);
            assert_eq!((totals.failed, totals.label_flips), expected);
            let mut compared = house.evidence.compared();
            assert!(compared.all(|copy| copy.disagrees(1e9) && copy.version == VersionId::new(2)));
        };
        check(&[("a", 3)], false, 1);
        // It fails in the engine, or has not the output.
        check(&[("a", -1)], true, 0);
        check(&[("b", 1)], true, 0);
    }

    #[test]
    fn what_has_no_room_is_dropped_the_newest_first() {
        let room = |waiting: usize, bytes| Settings {
            shadow_waiting_max: waiting.try_into().unwrap(),
            shadow_bytes_max: bytes,
            ..Settings::default()
        };
        // A copy of this model has one number in and one out.
        for settings in [room(3, 1 << 20), room(100, 3 * 16 + 15)] {
            let house = House::new(settings, [&[("a", 1)], &[("a", 1)]]);
            house.answer(200, DEFAULT);
            let first = house.serving.shadows.queue.pop().unwrap();
            assert!(first.prediction.bits() >> 32 & 0xffff_ffff < 15, "{first:?}");
            let dropped = house.totals().dropped;
            assert!((69..=125).contains(&dropped), "{dropped}");
            assert_eq!(house.evidence.copies_dropped(), dropped);
            house.serving.shadows.release(first.copied.bytes);
            let totals = house.run();
            assert_eq!((totals.requests, totals.dropped), (2, dropped));
        }
    }

    #[test]
    fn a_version_that_left_the_table_gets_no_more_copies_and_is_kept_by_none() {
        let house = House::new(Settings::default(), [&[("a", 1)], &[("a", 1)]]);
        house.answer(20, DEFAULT);
        let weak = {
            let table = house.serving.table();
            let model = table.model("m").unwrap();
            let version = model.versions[1].version.as_ref();
            version.map(Arc::downgrade).unwrap()
        };
        house.publish(&[Arc::new(house.version(1, &[("a", 1)]))], &[]);
        assert_eq!(weak.strong_count(), 0);
        let totals = house.run();
        assert!(totals.requests == 0 && totals.dropped > 0, "{totals:?}");
    }

    #[test]
    fn a_run_that_is_given_up_counts_once_and_stops_copies_until_it_has_ended() {
        let house = House::new(Settings::default(), [&[("a", 1)], &[("a", 1)]]);
        house.answer(20, DEFAULT);
        let shadows = &house.serving.shadows;
        let copy = shadows.queue.pop().unwrap();
        *shadows.running() = Some((Arc::clone(&copy.shadow), copy.prediction));
        shadows.give_up(Duration::ZERO);
        shadows.give_up(Duration::ZERO);
        let totals = house.totals();
        assert_eq!((totals.requests, totals.failed, totals.dropped), (1, 1, 0));
        house.answer(20, DEFAULT);
        assert!(house.totals().dropped > 0);
    }
}
