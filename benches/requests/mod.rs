//! What the benchmarks send and serve: the same bytes and the same path for clocks and for instruction counts.

#![allow(dead_code, reason = "each benchmark uses a part")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on must stop")]

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use smallvec::SmallVec;
use tidegate::{
    engine::{RunError, Session},
    model::{
        InferResponse, Input, ModelName, PredictionKey, ResponseOutput, Signature, TensorSpec,
        VersionId, VersionSelector, VersionState,
    },
    monitor::{Clock, Monitor, Outcome, WorkerId},
    serve::{
        AnswerReading, AnswerRule, Asked, Entry, Model, Names, Naming, Recall, Serving, Settings,
        Table, Version, VersionParts, Watch,
    },
    tensor::{Data, DataType, Shape, Tensor},
    wire::v2,
};

/// Thirty features of a tabular model.
pub(crate) const FEATURES: &str = r#"{"inputs":[{"name":"input","shape":[1,30],"datatype":"FP32","data":[17.08,27.15,111.2,930.9,0.09898,0.111,0.1007,0.06431,0.1793,0.06281,0.9291,1.152,6.051,115.2,0.00874,0.02219,0.02721,0.01458,0.02045,0.004417,22.96,34.49,152.1,1648.0,0.16,0.2444,0.2639,0.1555,0.301,0.0906]}]}"#;

/// An image of 1x3x224x224 whose numbers have this many digits behind the point.
pub(crate) fn image(digits: usize) -> Bytes {
    let mut body = String::from(
        r#"{"inputs":[{"name":"input","shape":[1,3,224,224],"datatype":"FP32","data":["#,
    );
    let mut state = 1u64;
    for index in 0..3 * 224 * 224 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let digits_shown = state / 7 % 10u64.pow(u32::try_from(digits).unwrap());
        let comma = if index > 0 { "," } else { "" };
        write!(body, "{comma}0.{digits_shown:0digits$}").unwrap();
    }
    body += "]}]}";
    body.into()
}

/// The same image in binary form, and the length of its JSON.
pub(crate) fn binary_image() -> (Bytes, usize) {
    let count = 3 * 224 * 224 * 4;
    let json = format!(
        r#"{{"inputs":[{{"name":"input","shape":[1,3,224,224],"datatype":"FP32","parameters":{{"binary_data_size":{count}}}}}]}}"#
    );
    let mut body = json.clone().into_bytes();
    body.resize(json.len() + count, 7);
    (body.into(), json.len())
}

/// A label and two probabilities, as a classifier gives them.
pub(crate) fn answer() -> Vec<Tensor> {
    let shape = |dims: &[i64]| Shape::new(dims).unwrap();
    vec![
        Tensor::new(shape(&[1]), Data::Int64(vec![0])).unwrap(),
        Tensor::new(shape(&[1, 2]), Data::Fp32(vec![0.999_998_03, 1.977_455e-6])).unwrap(),
    ]
}

/// A version that is served, and everything around it but sockets.
pub(crate) struct Served {
    serving: Serving,
    watch: Arc<Watch>,
    pub(crate) version: Arc<Version>,
    names: Names,
    clock: Arc<dyn Clock>,
    limits: v2::Limits,
}

impl Served {
    /// One whose runs this session makes.
    pub(crate) fn by(session: Box<dyn Session>) -> Self {
        Self::new(session, AnswerReading::default(), Recall::new(1))
    }

    fn new(session: Box<dyn Session>, answers: AnswerReading, recall: Recall) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let monitor = Monitor::new(1, Arc::clone(&clock));
        let model = ModelName::parse("breast_cancer").unwrap();
        let id = VersionId::parse("1").unwrap();
        let recorder = monitor.version(&model, id);
        let mut parts = VersionParts::new(model, id, session.signature().clone(), recorder);
        parts.answers = answers;
        let name = parts.model.clone();
        let version = Arc::new(Version::new(parts, vec![session]));
        let entry = Entry {
            id,
            state: VersionState::Ready,
            reason: String::new(),
            version: Some(Arc::clone(&version)),
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
        let serving = Serving::new(Settings::default(), Arc::clone(&clock));
        let models = HashMap::from([(name, Arc::new(model))]);
        drop(serving.publish(Table::new(models, true, Arc::default())));
        let watch = serving.watchdog().watch(WorkerId(0));
        let naming = Naming { key: PredictionKey::new([1, 2]), process: 0 };
        let names = serving.names(naming, WorkerId(0), 0);
        let recall = Arc::new(recall);
        serving.remember(Arc::clone(&recall));
        drain(&recall);
        let limits = v2::Limits::default();
        Self { serving, watch, version, names, clock, limits }
    }

    /// One with a classifier that has its answer ready: what is left is our own work.
    pub(crate) fn without_engine() -> Self {
        Self::by(Box::new(Ready(Self::signature())))
    }

    /// The same, and what it predicts is remembered for outcomes and taken, as by the thread that joins them.
    pub(crate) fn remembering() -> Self {
        let signature = Self::signature();
        let answers = AnswerRule::default().resolve(&signature, &[None, None]).unwrap();
        Self::new(Box::new(Ready(signature)), answers, Recall::new(1))
    }

    fn signature() -> Signature {
        let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: Some(dims.to_vec()),
            view: None,
        };
        Signature {
            inputs: vec![spec("input", DataType::Fp32, &[-1, 30])],
            outputs: vec![
                spec("label", DataType::Int64, &[-1]),
                spec("probabilities", DataType::Fp32, &[-1, 2]),
            ],
            ..Signature::default()
        }
    }

    /// The answer to a request.
    pub(crate) fn predict(&self, body: &Bytes) -> Vec<u8> {
        let (table, now) = (self.serving.table(), self.clock.now());
        let asked = Asked {
            trace: None,
            watch: &self.watch,
            client: None,
            model: "breast_cancer",
            selector: VersionSelector::Default,
            route: None,
            key: None,
            id: self.names.next(now),
            arrived: now,
            waited: Duration::ZERO,
            deadline: now + Duration::from_secs(30),
        };
        let mut call = self.serving.call(&table, &asked).unwrap();
        let mut request = v2::decode_infer(body, None, &self.limits).unwrap();
        let prediction = call.run(&mut request).unwrap();
        let answer = self.encode(&prediction.outputs);
        call.finish(Outcome::Ok);
        answer
    }

    /// The response with these outputs.
    pub(crate) fn encode(&self, outputs: &[Tensor]) -> Vec<u8> {
        let outputs = self.version.signature().outputs.iter().zip(outputs);
        let response = InferResponse {
            model: &self.version.parts().model,
            version: self.version.id(),
            id: None,
            parameters: SmallVec::from_slice(&[(
                "x-tidegate-prediction-id",
                "deadbeef0000000000000001",
            )]),
            outputs: outputs
                .map(|(spec, tensor)| ResponseOutput { name: &spec.name, tensor, binary: false })
                .collect(),
        };
        v2::encode_infer(&response).unwrap().body
    }

    /// A request of one row that the model takes.
    pub(crate) fn row(&self) -> Bytes {
        let spec = &self.version.signature().inputs[0];
        let width = spec.dims.as_ref().unwrap()[1];
        let data = vec!["0.1234567"; usize::try_from(width).unwrap()].join(",");
        let (name, datatype) = (&spec.name, spec.datatype);
        format!(
            r#"{{"inputs":[{{"name":"{name}","shape":[1,{width}],"datatype":"{datatype}","data":[{data}]}}]}}"#
        )
        .into()
    }
}

/// Takes what is remembered once a millisecond, on a thread of its own, as long as anybody remembers.
fn drain(recall: &Arc<Recall>) {
    let recall = Arc::downgrade(recall);
    std::thread::spawn(move || {
        while let Some(recall) = recall.upgrade() {
            recall.take(|entry| _ = std::hint::black_box(entry));
            drop(recall);
            std::thread::park_timeout(Duration::from_millis(1));
        }
    });
}

/// A session that only hands out what it has.
struct Ready(Signature);

impl Session for Ready {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn run(&mut self, _: Cow<'_, [Input]>, _: &[usize]) -> Result<Vec<Tensor>, RunError> {
        Ok(answer())
    }
}

/// The time of day.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}
