//! A prediction's life: routed once, run, finished; counted exactly once.
//!
//! A protocol's face asks for a [`Call`], decodes for its version, runs it, writes the answer and finishes it.
//! Always true:
//! - A call is counted before its answer can be seen, with one [`Outcome`]; one that is dropped counts as abandoned.
//! - It borrows its version from the table that was loaded for it: nothing shared is written.
//! - One that was assigned to another arm than the baseline falls back to that where its own version cannot answer, and
//!   is evidence about the arm that it was assigned to.
//!
//! Not here: bytes and protocols (`wire`, `edge`), the choice of the version (`routing`).

use std::{
    os::fd::RawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    drift::SegmentId,
    model::{ArmName, InferRequest, PredictionId, Signature, Trace, VersionId, VersionSelector},
    monitor::{ArmRecorder, Code, Outcome, Sample, WorkerId},
};

use super::{
    Assignment, Evidence, Hashed, Marks, Output, PredictError, Predicted, Prediction, Recalled,
    RouteError, Run, Serving, Shadow, Table, Tensors, Version, Watch, evidence, recall::ROWS_MAX,
    routing::Routed, sampling::Ended, shadow::Copied, version::Taken,
};

/// A request whose last byte is here, before it is decoded.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The worker that runs it.
    pub watch: &'a Watch,
    /// The socket of the client that waits, where it may be asked whether that is still there.
    pub client: Option<RawFd>,
    /// The model's name, as the client spelled it.
    pub model: &'a str,
    /// The version or alias, if the path names one.
    pub selector: VersionSelector<'a>,
    /// The arm or version that a header asks for; followed only where the model's policy allows it.
    pub route: Option<&'a str>,
    /// The hash of what keeps the client in its arm, by the model's [`Traffic`](super::Traffic) in the same table;
    /// without it, the prediction's name is the key.
    pub key: Option<Hashed>,
    /// The prediction's own name.
    pub id: PredictionId,
    /// Its place in a trace, where it has one.
    pub trace: Option<Trace>,
    /// The arrival of its last byte.
    pub arrived: Instant,
    /// Time spent waiting since for its version to be loaded, or for a session.
    pub waited: Duration,
    /// The deadline of its answer.
    pub deadline: Instant,
}

/// A request that has no call.
#[derive(Debug)]
pub enum NotRouted {
    /// No version answers it.
    Route(RouteError),
    /// The first pass over the repository is not done, and may still bring what it asks for; wait until it has.
    Settling,
    /// All sessions of its version are in a run; wait for one, then look at the table again.
    Busy(Arc<Version>),
}

/// A request on its way through a version.
pub struct Call<'t> {
    serving: &'t Serving,
    version: &'t Arc<Version>,
    session: Taken<'t>,
    arm: ArmName,
    recorder: &'t ArmRecorder,
    /// The baseline's version, where another arm's may fall back to it.
    spare: Option<&'t Arc<Version>>,
    /// The arm whose version could not answer.
    fallback: Option<ArmName>,
    ticket: Option<Ticket<'t>>,
    run: Run<'t>,
    /// Rows that are remembered once the answer is counted, and rows for which there was no room.
    staged: (u64, u64),
    /// The shadow that gets a copy of the request, and what that is.
    shadow: Option<&'t Arc<Shadow>>,
    copied: Option<Copied>,
    /// True if it goes to the table of predictions, and what that gets.
    is_sampled: bool,
    sampled: Option<Tensors>,
    id: PredictionId,
    trace: Option<Trace>,
    arrived: Instant,
    sample: Sample,
    is_finished: bool,
}

/// A call's place in the evidence of a rollout.
struct Ticket<'t> {
    evidence: &'t Evidence,
    number: u64,
    assignment: Assignment,
    /// Marks of its result so far on its assigned arm.
    marks: Marks,
    /// Its answer to the first row.
    output: Output,
}

/// The prediction's name, version and arm, as clients are told them.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    /// The prediction's own name.
    pub id: PredictionId,
    /// The version that answered.
    pub version: VersionId,
    /// The arm that answered.
    pub arm: ArmName,
    /// The arm that it was assigned to, where that could not answer.
    pub fallback: Option<ArmName>,
    /// The time of counting.
    pub at: Instant,
    /// The same, since 1970.
    pub unix: Duration,
    /// Its rows, and its time by phase.
    pub sample: Sample,
}

impl Serving {
    /// Finds the version for a request; `table` must have been loaded after the request's last byte.
    ///
    /// Counts a request that reaches no version of a known model, unless that may be waited for.
    pub fn call<'t>(&'t self, table: &'t Table, asked: &Asked<'t>) -> Result<Call<'t>, NotRouted> {
        let mut routed = table.assign(asked).map_err(|error| {
            if table.is_settling(asked.model) {
                return NotRouted::Settling;
            }
            self.count_unrouted(table, asked, &error);
            NotRouted::Route(error)
        })?;
        let worker = asked.watch.worker();
        let mut fallback = routed.missed.take();
        let session = match (routed.version.session(worker), routed.spare) {
            (None, Some(spare)) => {
                let session = spare.session(worker);
                if session.is_some() {
                    routed.version.parts().recorder.fell_back();
                }
                fallback = Some(routed.arm);
                routed.turn_to(spare);
                session
            }
            (session, _) => session,
        };
        let Routed { version, arm, recorder, spare, assignment, shadow, .. } = routed;
        let session = session.ok_or_else(|| NotRouted::Busy(Arc::clone(version)))?;
        let sampling = version.parts().sampling.as_deref();
        let is_sampled = sampling.is_some_and(|sampling| sampling.takes(asked.id));
        let ticket = assignment.map(|(evidence, assignment)| Ticket {
            evidence,
            number: evidence.open(worker, assignment),
            assignment,
            marks: if fallback.is_some() { Marks::CAPACITY } else { Marks::default() },
            output: Output::Nothing,
        });
        Ok(Call {
            serving: self,
            version,
            session,
            arm,
            recorder,
            spare,
            fallback,
            ticket,
            run: Run {
                watch: asked.watch,
                arrived: asked.arrived,
                deadline: asked.deadline,
                client: asked.client,
                keeps_inputs: shadow.is_some() || is_sampled,
                segment: SegmentId::NONE,
            },
            staged: (0, 0),
            shadow,
            copied: None,
            is_sampled,
            sampled: None,
            id: asked.id,
            trace: asked.trace,
            arrived: asked.arrived,
            sample: Sample {
                queue: asked.waited,
                trace: asked.trace.filter(|trace| trace.is_sampled).map(|trace| trace.id),
                ..Sample::default()
            },
            is_finished: false,
        })
    }

    fn count_unrouted(&self, table: &Table, asked: &Asked<'_>, error: &RouteError) {
        let status = match error {
            RouteError::UnknownModel(_) | RouteError::Unlisted(_) | RouteError::Asleep { .. } => {
                return;
            }
            RouteError::UnknownVersion { .. } | RouteError::UnknownArm { .. } => 404,
            RouteError::NotReady { .. } => 503,
        };
        let (worker, code) = (asked.watch.worker(), Code::from_status(status));
        self.unanswered(table, worker, asked.model, code);
    }

    /// Counts a request that reached no version, if its model is a registered one.
    pub fn unanswered(&self, table: &Table, worker: WorkerId, model: &str, code: Code) {
        if let Some(model) = table.model(model) {
            model.recorder.unanswered(worker, code);
        }
    }
}

impl Call<'_> {
    /// The version that answers.
    pub fn version(&self) -> &Version {
        self.version
    }

    /// The prediction's own name.
    pub fn id(&self) -> PredictionId {
        self.id
    }

    /// Its place in a trace, where it has one.
    pub fn trace(&self) -> Option<Trace> {
        self.trace
    }

    /// Brings the deadline forward.
    pub fn due(&mut self, deadline: Instant) {
        self.run.deadline = self.run.deadline.min(deadline);
    }

    /// The header that says which segment the request is of, if one does.
    pub fn segment_header(&self) -> Option<&str> {
        self.version.parts().splitter.as_deref()?.header()
    }

    /// Counts the request in the segment of this value, that of the header.
    pub fn in_segment(&mut self, value: &[u8]) {
        if let Some(splitter) = &self.version.parts().splitter {
            self.run.segment = splitter.by_header(value);
        }
    }

    /// Leaves the inputs in the request when it runs, for a run on another version; they take memory until the request
    /// is dropped.
    pub fn keep_inputs(&mut self) {
        self.run.keeps_inputs = true;
    }

    /// Runs the request on the calling thread, the worker's own; where its arm's version cannot answer, on the
    /// baseline's.
    ///
    /// Takes `request.inputs`, unless [`Call::keep_inputs`] was called; then they stay, in the signature's order.
    pub fn run(&mut self, request: &mut InferRequest) -> Result<Prediction, PredictError> {
        // What fails on this version may run on the baseline's.
        let run = Run { keeps_inputs: self.run.keeps_inputs || self.spare.is_some(), ..self.run };
        let ran = self.serving.run(self.version, &mut *self.session, run, request);
        let ran = ran.or_else(|error| self.failed(error, request));
        if matches!(ran, Err(PredictError::Lost)) {
            // It was counted when the worker was given up, and this worker's shard is another's now.
            self.is_finished = true;
        }
        let prediction = match ran {
            Ok(prediction) => prediction,
            Err(error) => return Err(self.sample_failed(error, request)),
        };
        if !self.run.keeps_inputs {
            // The answer may need their room.
            request.inputs = Vec::new();
        }
        if let Some(ticket) = self.ticket.as_mut().filter(|_| self.fallback.is_none())
            && super::non_finite(&prediction.outputs)
        {
            ticket.marks.set(Marks::INVALID);
        }
        self.remember(&prediction);
        let decoded = prediction.started.saturating_duration_since(self.arrived);
        self.sample.rows = prediction.rows;
        self.sample.decode = decoded.saturating_sub(self.sample.queue);
        self.sample.run = prediction.finished.saturating_duration_since(prediction.started);
        Ok(prediction)
    }

    /// Takes the inputs of a request that failed although they fit the model, if it is sampled.
    fn sample_failed(&mut self, error: PredictError, request: &mut InferRequest) -> PredictError {
        use PredictError::{Contract, Deadline, Engine, Inputs};
        let fits = matches!(error, Contract(_) | Deadline | Engine(_) | Inputs(_));
        if self.is_sampled && fits && self.run.keeps_inputs {
            let inputs = std::mem::take(&mut request.inputs);
            let required = self.version.signature().inputs.len().min(inputs.len());
            let rows =
                Signature::rows_of(&inputs[..required]).filter(|_| self.version.is_batched());
            let rows = rows.and_then(|rows| u64::try_from(rows).ok()).unwrap_or(1);
            self.sampled = Some(Tensors::failed(inputs, rows));
        }
        error
    }

    /// Stages what was predicted, and notes the first row's and whether any is positive.
    fn remember(&mut self, prediction: &Prediction) {
        let answers = &self.version.parts().answers;
        let recall = self.serving.recall.get();
        if !answers.is_on() || recall.is_none() && self.ticket.is_none() {
            return;
        }
        let is_own = self.fallback.is_none();
        let (mut row, mut staged) = (0, 0);
        let (mut is_known, mut is_positive) = (false, false);
        let mut first = Output::Nothing;
        let assigned = self.ticket.as_ref().filter(|_| is_own).map(|it| it.assignment.into());
        let worker = self.run.watch.worker();
        let mut entry = Recalled {
            prediction: self.id,
            row,
            rows: u32::try_from(prediction.rows).unwrap_or(u32::MAX),
            place: self.recorder.place(),
            at: self.serving.unix_at(self.arrived + self.sample.queue),
            predicted: Predicted::NOTHING,
            segment: 0,
            is_apart: prediction.split.is_apart(),
            assigned,
        };
        answers.read(prediction, ROWS_MAX, |predicted| {
            if let Some(positive) = answers.is_positive(&predicted) {
                is_known = true;
                is_positive |= positive;
            }
            if row == 0 {
                first = predicted.into();
            }
            (entry.row, entry.predicted) = (row, predicted);
            entry.segment = prediction.split.of(usize::from(row)).0;
            row += 1;
            staged += u64::from(recall.is_some_and(|recall| recall.stage(worker, staged, &entry)));
        });
        if let Some(ticket) = self.ticket.as_mut().filter(|_| is_own) {
            ticket.output = first;
            if let Output::Text(hash) = first
                && let Some(text) = answers.text(prediction)
            {
                ticket.evidence.name(hash, text);
            }
            if is_known {
                ticket.marks.set(Marks::CLASSED);
            }
            if is_positive {
                ticket.marks.set(Marks::POSITIVE);
            }
        }
        self.staged = (staged, prediction.rows.max(1).saturating_sub(staged));
    }

    /// Notes what a failed run says about the arm, and has the baseline answer where it may.
    fn failed(
        &mut self,
        error: PredictError,
        request: &mut InferRequest,
    ) -> Result<Prediction, PredictError> {
        let marks = evidence::marks_of(&error);
        if let Some(ticket) = &mut self.ticket {
            ticket.marks.set(marks);
        }
        let is_over = matches!(
            error,
            PredictError::Deadline
                | PredictError::Contract(_)
                | PredictError::Gone
                | PredictError::Leaving(_)
                | PredictError::Stopping
                | PredictError::Lost
        );
        let worker = self.run.watch.worker();
        let Some(spare) = self.spare.filter(|_| !is_over) else { return Err(error) };
        let Some(mut session) = spare.session(worker) else { return Err(error) };
        let second = self.serving.run(spare, &mut *session, self.run, request);
        let prediction = match second {
            Ok(prediction) => prediction,
            // The worker's shard is another's now, and its time is over.
            Err(PredictError::Lost) => return Err(PredictError::Lost),
            Err(_) => return Err(error),
        };
        if let Some(ticket) = self.ticket.as_mut().filter(|_| marks == Marks::default()) {
            // The baseline takes what this version refuses.
            ticket.marks.set(Marks::ERROR);
        }
        self.version.parts().recorder.fell_back();
        self.fallback = Some(self.arm);
        self.arm = ArmName::BASELINE;
        (self.version, self.recorder, self.session) = (spare, spare.baseline(), session);
        Ok(prediction)
    }

    /// Takes inputs and outputs for a shadow or the table of predictions, if one of them gets the request: the inputs
    /// that the run has left in the request, and the outputs as the model gave them. Only where both get it, tensors
    /// are copied. They are handed on once the call is finished.
    ///
    /// `body_bytes` is the length of the body that the inputs may be slices of.
    pub fn copy(&mut self, request: &mut InferRequest, prediction: Prediction, body_bytes: usize) {
        if self.shadow.is_none() && !self.is_sampled {
            return;
        }
        let inputs = std::mem::take(&mut request.inputs);
        let Some(shadow) = self.shadow else {
            self.sampled = Some(Tensors::answered(inputs, prediction, body_bytes));
            return;
        };
        if self.is_sampled {
            self.sampled = Some(Tensors::answered(inputs.clone(), prediction.clone(), body_bytes));
        }
        self.copied = Copied::new(shadow, self.version, inputs, prediction, body_bytes);
    }

    /// Counts the call, whose answer may be seen from now on.
    pub fn finish(mut self, outcome: Outcome) -> Receipt {
        if outcome == Outcome::Ok
            && let Some(recall) = self.serving.recall.get()
            && self.staged != (0, 0)
        {
            recall.show(self.run.watch.worker(), self.staged.0, self.staged.1);
        }
        let (at, unix) = self.record(outcome);
        if let (Some(shadow), Some(copied)) = (self.shadow, self.copied.take())
            && outcome == Outcome::Ok
        {
            self.serving.shadows.offer(shadow, self.id, copied);
        }
        self.offer_sample(outcome);
        let (version, arm, fallback) = (self.version.id(), self.arm, self.fallback);
        Receipt { id: self.id, version, arm, fallback, at, unix, sample: self.sample }
    }

    /// Hands a sampled request on.
    fn offer_sample(&mut self, outcome: Outcome) {
        let Some(tensors) = self.sampled.take() else { return };
        let Some(sampling) = &self.version.parts().sampling else { return };
        let at = self.serving.unix_at(self.arrived);
        let (id, arm, code, took) = (self.id, self.arm, outcome.code(), self.sample.total);
        sampling.offer(&Ended { id, at, arm, code, took }, tensors);
    }

    /// Counts the call; returns the time of it, and the same since 1970.
    fn record(&mut self, outcome: Outcome) -> (Instant, Duration) {
        self.is_finished = true;
        let now = self.serving.clock.now();
        let sample = &mut self.sample;
        sample.total = now.saturating_duration_since(self.arrived);
        sample.encode = sample.total.saturating_sub(sample.queue + sample.decode + sample.run);
        let took = sample.total;
        let (unix, worker) = (self.serving.unix_at(now), self.run.watch.worker());
        self.recorder.record(worker, outcome.code(), sample, unix);
        if let Some(ticket) = self.ticket.take() {
            let is_own = self.fallback.is_none();
            let assigned = self.serving.unix_at(self.arrived + self.sample.queue);
            ticket.close(worker, (outcome, is_own), took, (assigned, self.id));
        }
        (now, unix)
    }
}

impl Ticket<'_> {
    /// Hands the entry on; `is_own` is true if the assigned arm answered, or nobody.
    fn close(
        mut self,
        worker: WorkerId,
        (outcome, is_own): (Outcome, bool),
        took: Duration,
        (at, prediction): (Duration, PredictionId),
    ) {
        let slow = self.evidence.slowness(took);
        match outcome {
            _ if !is_own => {}
            Outcome::Ok => {
                self.marks.set(Marks::ANSWERED);
                self.marks.set(slow);
            }
            Outcome::Deadline => self.marks.set(Marks::ERROR),
            Outcome::Engine => self.marks.set(Marks::ERROR | Marks::FAULT),
            Outcome::Capacity => self.marks.set(Marks::CAPACITY),
            Outcome::Abandoned => {
                self.marks.set(Marks::ABANDONED);
                self.marks.set(slow);
            }
            // What the engine refused was noted; the rest does not fit the signature.
            Outcome::Caller => {}
        }
        let Assignment { share, key, is_sticky, is_candidate } = self.assignment;
        let (ticket, marks, output) = (self.number, self.marks, self.output);
        let entry = evidence::Entry {
            ticket,
            share,
            key,
            is_sticky,
            is_candidate,
            at,
            prediction,
            marks,
            output,
        };
        let is_bad = marks.has(Marks::ERROR) || marks.has(Marks::INVALID);
        self.evidence.close(worker, entry, is_bad && is_candidate);
    }
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("version", &self.version)
            .field("arm", &self.arm)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.record(Outcome::Abandoned);
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
        model::{Input, ModelName, Signature, TensorSpec, VersionState},
        monitor::{Clock, Monitor},
        serve::{Entry, Model, Settings, VersionParts},
        tensor::{Data, DataType, Shape, Tensor},
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

    /// Answers 7, or fails.
    struct Seven {
        signature: Signature,
        fails: bool,
    }

    impl Session for Seven {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&mut self, _: Cow<'_, [Input]>, _: &[usize]) -> Result<Vec<Tensor>, RunError> {
            if self.fails {
                return Err(RunError::Failed("broken".to_owned()));
            }
            Ok(vec![Tensor::new(Shape::new(&[1]).unwrap(), Data::Int64(vec![7])).unwrap()])
        }
    }

    struct House {
        serving: Serving,
        monitor: Monitor,
        watch: Arc<Watch>,
        begin: Instant,
    }

    impl House {
        /// Serves `m`, version 1, which takes nothing.
        fn new(fails: bool) -> Self {
            Self::taking(Vec::new(), fails)
        }

        fn taking(inputs: Vec<TensorSpec>, fails: bool) -> Self {
            let begin = Instant::now();
            let clock: Arc<dyn Clock> = Arc::new(StoppedClock(begin));
            let monitor = Monitor::new(1, Arc::clone(&clock));
            let serving = Serving::new(Settings::default(), clock);
            let (name, id) = (ModelName::parse("m").unwrap(), VersionId::new(1));
            let output = TensorSpec {
                name: "seven".to_owned(),
                datatype: DataType::Int64,
                dims: Some(vec![1]),
                view: None,
            };
            let signature = Signature { inputs, outputs: vec![output], ..Signature::default() };
            let recorder = monitor.version(&name, id);
            let parts = VersionParts::new(name.clone(), id, signature.clone(), recorder);
            let version = Version::new(parts, vec![Box::new(Seven { signature, fails })]);
            let entry = Entry {
                id,
                state: VersionState::Ready,
                reason: String::new(),
                version: Some(Arc::new(version)),
                on_demand: false,
                decided: false,
            };
            let model = Model {
                recorder: monitor.model(&name),
                name: name.clone(),
                versions: vec![entry],
                default: Some(id),
                aliases: BTreeMap::new(),
                pinned: None,
                problem: None,
                traffic: None,
                traffic_revision: 0,
                route_override: false,
                held_back: None,
            };
            let models = HashMap::from([(name, Arc::new(model))]);
            serving.publish(Table::new(models, true, Arc::default()));
            let watch = serving.watchdog().watch(WorkerId(0));
            Self { serving, monitor, watch, begin }
        }

        fn asked<'a>(&'a self, model: &'a str, selector: VersionSelector<'a>) -> Asked<'a> {
            Asked {
                watch: &self.watch,
                client: None,
                model,
                selector,
                route: None,
                key: None,
                id: PredictionId::from_bits(7),
                trace: None,
                arrived: self.begin,
                waited: Duration::ZERO,
                deadline: self.begin,
            }
        }

        /// Codes of the version, and of requests that reached none.
        fn codes(&self) -> [Vec<(u16, u64)>; 2] {
            let name = ModelName::parse("m").unwrap();
            let plain = |codes: Vec<(Code, u64)>| {
                codes.into_iter().map(|(code, count)| (code.status(), count)).collect()
            };
            let version = self.monitor.version(&name, VersionId::new(1)).totals();
            [plain(version.codes), plain(self.monitor.model(&name).unanswered_codes())]
        }
    }

    #[test]
    fn a_call_is_counted_once_wherever_it_ends() {
        let check = |fails: bool, live: fn(Call<'_>), code: u16| {
            let house = House::new(fails);
            let table = house.serving.table();
            live(house.serving.call(&table, &house.asked("m", VersionSelector::Default)).unwrap());
            assert_eq!(house.codes(), [vec![(code, 1)], vec![]]);
        };
        check(false, |call| drop(call), 499);
        check(false, |mut call| drop(call.run(&mut InferRequest::default()).unwrap()), 499);
        check(
            true,
            |mut call| {
                let error = call.run(&mut InferRequest::default()).unwrap_err();
                assert!(matches!(error, PredictError::Engine(_)), "{error}");
                call.finish(Outcome::Engine);
            },
            500,
        );
        check(
            false,
            |mut call| {
                let prediction = call.run(&mut InferRequest::default()).unwrap();
                assert_eq!(prediction.outputs[0].data(), &Data::Int64(vec![7]));
                let receipt = call.finish(Outcome::Ok);
                assert_eq!(
                    (receipt.version, receipt.arm.as_str()),
                    (VersionId::new(1), "baseline")
                );
            },
            200,
        );
    }

    #[test]
    fn inputs_stay_in_the_request_only_where_they_are_kept() {
        let check = |fails, keeps, left: &[&str]| {
            let spec = |name: &str| {
                let (name, dims) = (name.to_owned(), Some(vec![1]));
                TensorSpec { name, datatype: DataType::Int64, dims, view: None }
            };
            let house = House::taking(vec![spec("a"), spec("b")], fails);
            let tensor = || Tensor::new(Shape::new(&[1]).unwrap(), Data::Int64(vec![7])).unwrap();
            let given = ["b", "a"].map(|name| Input { name: name.to_owned(), tensor: tensor() });
            let mut request = InferRequest { inputs: given.into(), ..Default::default() };
            let table = house.serving.table();
            let asked = house.asked("m", VersionSelector::Default);
            let mut call = house.serving.call(&table, &asked).unwrap();
            if keeps {
                call.keep_inputs();
            }
            assert_eq!(call.run(&mut request).is_err(), fails);
            let names: Vec<&str> = request.inputs.iter().map(|input| &*input.name).collect();
            assert_eq!(names, left);
        };
        check(false, false, &[]);
        check(false, true, &["a", "b"]);
        check(true, true, &["a", "b"]);
    }

    #[test]
    fn a_request_that_reaches_no_version_counts_with_its_model() {
        let house = House::new(false);
        let table = house.serving.table();
        let refused = |model, selector| {
            house.serving.call(&table, &house.asked(model, selector)).unwrap_err();
        };
        refused("m", VersionSelector::Number(VersionId::new(2)));
        refused("m", VersionSelector::Alias("canary"));
        refused("n", VersionSelector::Default);
        assert_eq!(house.codes(), [vec![], vec![(404, 2)]]);
    }
}
