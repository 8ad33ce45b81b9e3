//! A prediction's life: routed once, run, finished; counted exactly once.
//!
//! Whoever speaks a protocol asks for a [`Call`], decodes for its version, runs it, writes the answer and finishes it.
//! Always true:
//! - A call is counted before its answer can be seen, with one [`Outcome`]; one that is dropped counts as abandoned.
//! - It borrows its version from the table that was loaded for it: nothing shared is written.
//!
//! Not here: bytes and protocols (`wire`, `edge`), the choice of the version (`table`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    model::{InferRequest, VersionId, VersionSelector},
    monitor::{Code, Outcome, Sample, WorkerId},
};

use super::{PredictError, Prediction, PredictionId, RouteError, Serving, Table, Version};

/// What a request asks for, as soon as its last byte is here.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The worker that runs it.
    pub worker: WorkerId,
    /// The model's name, as the client spelled it.
    pub model: &'a str,
    /// Which of its versions.
    pub selector: VersionSelector<'a>,
    /// The prediction's own name.
    pub id: PredictionId,
    /// When its last byte had come.
    pub arrived: Instant,
    /// How long it waited since for its version to be loaded.
    pub waited: Duration,
}

/// A request on its way through a version.
#[derive(Debug)]
pub struct Call<'t> {
    serving: &'t Serving,
    version: &'t Arc<Version>,
    worker: WorkerId,
    id: PredictionId,
    arrived: Instant,
    sample: Sample,
    is_finished: bool,
}

/// The name of an arm of a model's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArmName(&'static str);

/// What a client is told of its prediction, whatever came of it.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    /// The prediction's own name.
    pub id: PredictionId,
    /// The version that it was assigned to.
    pub version: VersionId,
    /// The arm that it was assigned to.
    pub arm: ArmName,
}

impl ArmName {
    /// The arm of what serves.
    pub const BASELINE: Self = Self("baseline");

    /// The name as text.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl Serving {
    /// Finds the version for a request; `table` must have been loaded after the request's last byte.
    ///
    /// Counts a request that reaches no version of a known model, unless its version may be waited for.
    pub fn call<'t>(&'t self, table: &'t Table, asked: &Asked<'_>) -> Result<Call<'t>, RouteError> {
        let version = table.route(asked.model, asked.selector).inspect_err(|error| {
            let status = match error {
                RouteError::UnknownModel(_) | RouteError::Asleep { .. } => return,
                RouteError::UnknownVersion { .. } => 404,
                RouteError::NotReady { .. } => 503,
            };
            self.unanswered(table, asked.worker, asked.model, Code::from_status(status));
        })?;
        Ok(Call {
            serving: self,
            version,
            worker: asked.worker,
            id: asked.id,
            arrived: asked.arrived,
            sample: Sample { queue: asked.waited, ..Sample::default() },
            is_finished: false,
        })
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

    /// Runs the request on the calling thread, the worker's own.
    ///
    /// Takes `request.inputs`.
    pub fn run(&mut self, request: &mut InferRequest) -> Result<Prediction, PredictError> {
        let prediction = self.serving.predict(self.version, self.worker, request)?;
        // The answer may need their room.
        request.inputs = Vec::new();
        let decoded = prediction.started.saturating_duration_since(self.arrived);
        self.sample.rows = prediction.rows;
        self.sample.decode = decoded.saturating_sub(self.sample.queue);
        self.sample.run = prediction.finished.saturating_duration_since(prediction.started);
        Ok(prediction)
    }

    /// Counts the call, whose answer may be seen from now on.
    pub fn finish(mut self, outcome: Outcome) -> Receipt {
        self.record(outcome);
        Receipt { id: self.id, version: self.version.id(), arm: ArmName::BASELINE }
    }

    fn record(&mut self, outcome: Outcome) {
        self.is_finished = true;
        let now = self.serving.clock.now();
        let sample = &mut self.sample;
        sample.total = now.saturating_duration_since(self.arrived);
        sample.encode = sample.total.saturating_sub(sample.queue + sample.decode + sample.run);
        let unix = self.serving.unix_at(now);
        self.version.parts().recorder.record(self.worker, outcome.code(), sample, unix);
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
    use std::collections::{BTreeMap, HashMap};

    use super::*;
    use crate::{
        engine::{RunError, Session},
        model::{Input, ModelDescription, ModelName, Signature, TensorSpec, VersionState},
        monitor::{Clock, Monitor},
        serve::{Entry, Model, Names, Settings, VersionParts},
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

        fn run(&mut self, _: Vec<Input>, _: &[usize]) -> Result<Vec<Tensor>, RunError> {
            if self.fails {
                return Err(RunError::Failed("broken".to_owned()));
            }
            Ok(vec![Tensor::new(Shape::new(&[1]).unwrap(), Data::Int64(vec![7])).unwrap()])
        }
    }

    struct House {
        serving: Serving,
        monitor: Monitor,
        begin: Instant,
    }

    impl House {
        /// Serves `m`, version 1.
        fn new(fails: bool) -> Self {
            let begin = Instant::now();
            let clock: Arc<dyn Clock> = Arc::new(StoppedClock(begin));
            let monitor = Monitor::new(1, Arc::clone(&clock));
            let serving = Serving::new(Settings::default(), clock);
            let (name, id) = (ModelName::parse("m").unwrap(), VersionId::new(1));
            let output = TensorSpec {
                name: "seven".to_owned(),
                datatype: DataType::Int64,
                dims: Some(vec![1]),
            };
            let signature = Signature { inputs: Vec::new(), outputs: vec![output] };
            let parts = VersionParts {
                recorder: monitor.version(&name, id),
                model: name.clone(),
                id,
                signature: signature.clone(),
                description: Arc::new(ModelDescription::default()),
                class_names: Vec::new(),
                engine: "test",
                digest: String::new(),
                identity: None,
                size_bytes: 0,
                load: Duration::ZERO,
                warmup: Duration::ZERO,
                run: None,
                notes: Vec::new(),
            };
            let version = Version::new(parts, vec![Box::new(Seven { signature, fails })]);
            let entry = Entry {
                id,
                state: VersionState::Ready,
                reason: String::new(),
                version: Some(Arc::new(version)),
                on_demand: false,
            };
            let model = Model {
                recorder: monitor.model(&name),
                name: name.clone(),
                versions: vec![entry],
                default: Some(id),
                aliases: BTreeMap::new(),
                pinned: None,
                problem: None,
            };
            let models = HashMap::from([(name, Arc::new(model))]);
            serving.publish(Table::new(models, true, Arc::default()));
            Self { serving, monitor, begin }
        }

        fn asked<'a>(&self, model: &'a str, selector: VersionSelector<'a>) -> Asked<'a> {
            Asked {
                worker: WorkerId(0),
                model,
                selector,
                id: Names::new(0, WorkerId(0)).next(),
                arrived: self.begin,
                waited: Duration::ZERO,
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
