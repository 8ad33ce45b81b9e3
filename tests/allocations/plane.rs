//! The data plane in this process, with one worker, and a client that allocates nothing while it is measured.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant, SystemTime},
};

use tidegate::{
    drift::Drift,
    edge::{self, ControlService, Listener, Plane},
    engine::{self, Engines},
    lifecycle::{Loader, Origin},
    model::{ModelName, PredictionKey, VersionState},
    monitor::{Clock, Monitor},
    serve::{self, Entry, Model, Naming, Recall, Serving, Table},
    source::{self, Folder},
};

use crate::allocator;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The limit that hostile requests are measured against.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

/// A running data plane.
pub(crate) struct Running {
    listener: Listener,
    _runtime: tokio::runtime::Runtime,
}

/// One connection, with a buffer that is large enough for every answer.
pub(crate) struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

/// The one data plane of the process (ONNX Runtime is opened once), with every model that the tests use.
pub(crate) static RUNNING: LazyLock<Running> = LazyLock::new(|| {
    Running::start(&[
        "models/breast_cancer",
        "tests/fixtures/models/identity_bytes",
        "tests/fixtures/models/identity_fp32",
        "tests/fixtures/models/identity_fp32_2d",
        "tests/fixtures/models/identity_fp64",
        "tests/fixtures/models/identity_int64",
        "tests/fixtures/models/identity_uint8",
        "tests/fixtures/models/add_sub",
    ])
});

impl Running {
    fn start(models: &[&str]) -> Self {
        let monitor = Arc::new(Monitor::new(1, Arc::new(WatchingClock)));
        let settings = serve::Settings {
            // Of the limits only that of the body shall count here.
            batch_rows_max: (1 << 30).try_into().unwrap(),
            ..serve::Settings::default()
        };
        let serving = Arc::new(Serving::new(settings, Arc::clone(monitor.clock())));
        let loader = Loader {
            engines: Engines::open(&engine::Settings::default()).unwrap(),
            monitor: Arc::clone(&monitor),
            sessions: 1,
            intra_op_threads: 1,
            run_memory_max: 1 << 30,
            warmup_runs: 1,
            chosen: BTreeMap::new(),
            answers: BTreeMap::new(),
            spare_prover: false,
            loads_at_once: std::num::NonZeroUsize::MIN,
            loads_at_start: std::num::NonZeroUsize::MIN,
            prover: None,
            blame: None,
            drift: Some(Drift::plain(&monitor)),
            samples: None,
            store: None,
            artifact_bytes_max: 1 << 30,
            body_bytes_max: 1 << 26,
        };
        let models = models.iter().map(|path| model(&loader, path));
        let models = models.map(|model| (model.name.clone(), Arc::new(model))).collect();
        serving.publish(Table::new(models, true, [].into()));
        let limits = edge::Limits { body_bytes_max: BODY_BYTES_MAX, ..edge::Limits::default() };
        let http = (Ipv4Addr::LOCALHOST, 0).into();
        let settings = edge::Settings { http, limits, ..edge::Settings::default() };
        let control = ControlService::new(tower::service_fn(|_| async {
            Ok(http::Response::new(bytes::Bytes::from_static(b"{}")))
        }));
        serving.remember(Arc::new(Recall::new(1)));
        let naming = Naming { key: PredictionKey::new([1, 2]), process: 7 };
        let plane = Arc::new(Plane::new(settings, serving, monitor, control, naming));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(Listener::start(plane, 1)).unwrap();
        Self { listener, _runtime: runtime }
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.listener.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client { stream, answer: vec![0; 1 << 24] }
    }
}

/// A model with its versions, loaded from a folder below the project's root.
fn model(loader: &Loader, path: &str) -> Model {
    let path = Path::new(ROOT).join(path);
    let name = ModelName::parse(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let listing = Folder::new(source::Settings::new(path.parent().unwrap())).list().unwrap();
    let listed = &listing.models[&name];
    let description = Arc::new(listed.description.clone().unwrap());
    let entries = listed.versions.iter().map(|(id, version)| {
        let origin = Origin::Repository(version.clone(), Arc::clone(&description));
        let version = loader.load(&name, *id, &origin, None, None).unwrap_or_else(|error| {
            panic!("{name}: {error}; `make engine` fetches the engine's library")
        });
        Entry {
            id: *id,
            state: VersionState::Ready,
            reason: String::new(),
            version: Some(Arc::new(version)),
            on_demand: false,
            decided: false,
        }
    });
    let versions = entries.collect();
    Model {
        recorder: loader.monitor.model(&name),
        name,
        versions,
        default: None,
        aliases: BTreeMap::new(),
        pinned: None,
        problem: None,
        traffic: None,
        traffic_revision: 0,
        route_override: false,
        held_back: None,
    }
}

impl Client {
    /// Sends a request and reads its answer: the status, and the answer's bytes.
    pub(crate) fn ask(&mut self, request: &[u8]) -> (u16, &[u8]) {
        // Who is refused early may find the connection closed before all is written; the answer says why.
        let _ = self.stream.write_all(request);
        let mut filled = 0;
        loop {
            match self.stream.read(&mut self.answer[filled..]) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
            if whole(&self.answer[..filled]) {
                break;
            }
        }
        let answer = &self.answer[..filled];
        let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        (status.and_then(|digits| digits.parse().ok()).unwrap_or(0), answer)
    }
}

/// Whether all bytes of the answer are there.
fn whole(answer: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    let name = b"\r\ncontent-length: ";
    let Some(length) = memchr::memmem::find(&answer[..head + 2], name) else { return false };
    let digits = answer[length + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |length, digit| 10 * length + usize::from(digit - b'0'));
    answer.len() >= head + 4 + length
}

/// A clock whose worker is watched: the one way to run code of a test on the data plane's thread.
#[derive(Debug)]
struct WatchingClock;

impl Clock for WatchingClock {
    fn now(&self) -> Instant {
        if std::thread::current().name() == Some("worker-0") {
            allocator::watch_this_thread();
        }
        Instant::now()
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
    }
}
