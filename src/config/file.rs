//! The configuration file as a user may write it: every key, with its bounds, its default and its reason.
//!
//! The one place where keys are documented. The JSON Schema, the example file, the names of environment variables
//! and the refusal of unknown keys all follow from these types; comments of keys are written for the user who
//! reads them there. The defaults come from the rooms' own `Settings`.
//!
//! Not here: what keys mean together and how they become `Settings` (`check`).

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    LogFormat, Logs, Reserved, Uploads,
    value::{
        Class, Collector, DAY, Decimal, EventSource, GIB, HOUR, KIB, LogFilter, MIB, Objective,
        RepositoryApi, RepositoryRoot, RetrainRule, RolloutPolicy, SECOND, Segments, Size, Switch,
        TIB, Table, Text, Texts, Time, UploadTo, Webhooks, Whole,
    },
};
use crate::{
    drift,
    edge::{self, AccessSettings, AccessTarget},
    engine, feedback, lifecycle,
    lifecycle::OnNewVersion,
    model::EngineChoice,
    model::ModelName,
    monitor, notify, predictions,
    rollout::PolicyDraft,
    serve, source, state, validation,
};

/// The configuration of tidegate. Every key may be left out.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) limits: Limits,
    pub(super) repository: RepositorySection,
    pub(super) engine: Engine,
    pub(super) proof: Proof,
    pub(super) serve: Serve,
    pub(super) validation: Validation,
    pub(super) drift: Drift,
    pub(super) feedback: Feedback,
    pub(super) predictions: Predictions,
    pub(super) logs: LogsSection,
    pub(super) metrics: Metrics,
    pub(super) tracing: Tracing,
    pub(super) state: State,
    pub(super) notify: Notify,
    /// Rules for one model; its name stands in the head of the section. The model's own files describe it,
    /// but never decide any of this.
    pub(super) models: BTreeMap<String, Model>,
}

/// Where tidegate listens, on how many threads, and how it stops.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    /// The data plane's address, HTTP/1.1 and HTTP/2. Loopback, so that nothing is open to the network before
    /// somebody decides so. Port 0 takes a free one; the ready line says which.
    pub(super) http: Text<SocketAddr>,
    /// Reserved for gRPC: accepted, but this version does not listen there.
    pub(super) grpc: Text<SocketAddr>,
    /// The admin plane's address: metrics, health, admin API. On any address but loopback it answers only
    /// `/metrics`, `/livez` and `/readyz`.
    pub(super) admin: Text<SocketAddr>,
    /// Most connections to the admin plane at once, never more than a quarter of the file-descriptor limit. When all
    /// are taken, one that asks nothing makes room for the next, or else one that does not read. Half are for streams
    /// of events and operations, which get 503 beyond that; probes find a place at any time. `limits.header_timeout`,
    /// `idle_timeout` and `write_timeout` hold there, too.
    pub(super) admin_connections: Whole<2, 100_000>,
    /// Threads that serve connections. 0: as many as the process may use CPUs, by cgroup quota and affinity,
    /// which on a shared host is less than it has.
    pub(super) workers: Whole<0, 1024>,
    /// After SIGTERM: how long new connections are still accepted while `/readyz` already fails. Load balancers need
    /// to see that before they stop sending; one second covers those that watch closely and keeps restarts
    /// short. Must be shorter than `grace`.
    pub(super) drain_delay: Time<0, HOUR>,
    /// Lets web pages of other sites ask for predictions. "auto" does so where `http` is not on loopback: any
    /// page that a browser on this machine shows can reach loopback. "on" is for a proxy on this machine that serves
    /// browsers. Programs may always ask.
    pub(super) web_pages: Text<RepositoryApi>,
    /// After SIGTERM: when whatever still runs is cut off. Below the 30 s after which Kubernetes kills.
    pub(super) grace: Time<1, DAY>,
}

/// Limits of what one client, one connection and one request may use. Whoever asks for more is refused with a clear
/// answer.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    /// Largest request body, also after decompression. A 1x3x224x224 image as JSON is about 1 MiB.
    pub(super) body: Size<1, { 2 * GIB }>,
    /// Slowest body per second, on average, once `body_grace` has passed: a client that trickles holds memory.
    pub(super) body_rate_min: Size<1, GIB>,
    /// Time for which a body may be slower than `body_rate_min`.
    pub(super) body_grace: Time<0, HOUR>,
    /// Time that a request's head may take to arrive; heads are small, so only a stalled client needs this long.
    pub(super) header_timeout: Time<1, HOUR>,
    /// Most header lines of one request. Clients and the proxies before them send a few dozen.
    pub(super) headers: Whole<1, 1024>,
    /// Largest header block of one request.
    pub(super) header_bytes: Size<{ 8 * KIB }, { 1024 * KIB }>,
    /// Longest request target. Not above `header_bytes`, which holds it.
    pub(super) uri_bytes: Size<1, { 32 * KIB }>,
    /// Time that a connection may stay open without a request.
    pub(super) idle_timeout: Time<1, DAY>,
    /// Time that a client may stall while an answer is written to it.
    pub(super) write_timeout: Time<1, HOUR>,
    /// Time for which a connection is still read from after its last answer, so that a client which is sending
    /// meanwhile gets to read it. Also how long a connection must have been quiet to be closed while the server stops:
    /// a client that asks more often than this loses nothing.
    pub(super) linger: Time<1, HOUR>,
    /// Most connections at once. 0: half of the file-descriptor limit, so that models and logs can still be opened.
    pub(super) connections: Whole<0, 1_000_000>,
    /// Most connections at once from one address. 0: no cap, as many clients may share a proxy's address.
    pub(super) connections_per_ip: Whole<0, 1_000_000>,
    /// Most bytes of request bodies and of answers that are not read yet, all connections together; beyond it requests
    /// get 503. At least `body`, or the largest request could never be served. 0: a quarter of the memory that the
    /// process may use, of its control group's or of the machine's, and 1 GiB at most.
    pub(super) in_flight_bytes: Size<0, TIB>,
    /// Most concurrent streams of one HTTP/2 connection.
    pub(super) http2_streams: Whole<1, 10_000>,
    /// Deepest nesting of a JSON body. A tensor needs as many levels as it has dimensions, and three more.
    pub(super) json_depth: Whole<4, 256>,
    /// Most input tensors of one request.
    pub(super) inputs: Whole<1, 65_536>,
    /// Most outputs that one request may ask for.
    pub(super) outputs: Whole<1, 65_536>,
    /// Most parameters of one request, or of one of its tensors.
    pub(super) parameters: Whole<0, 65_536>,
    /// Longest name of a tensor or parameter, in bytes.
    pub(super) name_bytes: Whole<1, 4096>,
    /// Smallest answer that is compressed for a client that accepts it. Below it, compressing costs more time than the
    /// bytes would take.
    pub(super) compress_min: Size<0, GIB>,
    /// Number of times its compressed size that a body may grow to. Numbers as text shrink a few times, a bomb a
    /// thousand times.
    pub(super) inflate_ratio: Whole<1, 10_000>,
    /// Most members of a gzip body. Tools that compress in parallel make one for some 64 KiB, a bomb one for nothing.
    pub(super) gzip_members: Whole<1, 1_000_000>,
}

/// Where models are found: `<root>/<model>/<version>/model.onnx`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RepositorySection {
    /// The folder; a relative path is resolved against the directory tidegate is started in. Builds with object
    /// stores also take `s3://bucket/prefix`, `gs://`, `az://` and `http(s)://`, with credentials from the environment.
    pub(super) root: Text<RepositoryRoot>,
    /// Time after which the folder is read again. Soon enough for a person who waits for a new version, rare enough to
    /// cost nothing: where file events come, a folder of thousands of models is read less often without one, so that
    /// this takes no more than 0.2 % of a core, but once a minute.
    pub(super) poll_interval: Time<1, DAY>,
    /// The name of the model if `root` is itself the model's folder. Not set: the folder's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Text<ModelName>")]
    pub(super) model_name: Option<Text<ModelName>>,
    /// True if the protocol's repository API may load and unload on the data plane's address; its index only reads
    /// and always answers. "auto" allows it only where that address is on loopback.
    pub(super) api: Text<RepositoryApi>,
    /// Lets a load bring a configuration and files of its own, which then serve instead of the repository's.
    /// Off: whoever may load could have this server run any model.
    pub(super) uploads: Switch,
    /// Most bytes of one upload's files together. `limits.body` bounds the request that carries them, which is a
    /// third larger.
    pub(super) upload_bytes: Size<1, { 2 * GIB }>,
    /// Most files of one upload.
    pub(super) upload_files: Whole<1, 10_000>,
    /// Largest file of a model that is read.
    pub(super) artifact_bytes: Size<1, TIB>,
    /// Most models that are listed.
    pub(super) models: Whole<1, 1_000_000>,
    /// Most versions of one model that are listed.
    pub(super) versions: Whole<1, 1_000_000>,
    /// Reads files of models that have a second name (hard links), as `cp -al`, caches and data version control make
    /// them. False refuses them: each file of a model must then have one name. That is for repositories whose writers
    /// are not trusted, on systems that let them link a secret file which this server may read; no path shows that.
    /// Linux does not let them, by `fs.protected_hardlinks` (on in most distributions): only a file that one owns, or
    /// may read and write, can be linked.
    pub(super) hard_links: Switch,
    /// Time for which a repository whose models are gone all at once, or a model whose versions are, is taken for a
    /// lost volume, whatever else lies there: what serves goes on, nothing new is taken, and nothing that was kept is
    /// removed. Long enough for somebody to mount it again. A root that cannot be read, or is another folder and empty,
    /// is never taken for a wish.
    pub(super) vanished_grace: Time<0, { 30 * DAY }>,
    /// The most that loaded models may take in memory, together. "0B": all models are loaded, whatever they take.
    /// With a budget, what does not fit loads on demand: the first request for it waits, and the models that were
    /// used longest ago make room. Required models and versions that an operator pinned stay. A version counts with
    /// 1.5 times the bytes of its model file and 256 KiB for each of its sessions, and with twice the bytes of its
    /// external data, which its sessions share.
    pub(super) loaded_bytes: Size<0, { 1024 * TIB }>,
    /// Time that a request may wait for a model that loads on demand, at most its own deadline; then it gets 503.
    pub(super) demand_timeout: Time<1, HOUR>,
    /// Most requests that wait for models that load on demand; more get 503 at once.
    pub(super) demand_waiting: Whole<1, 1_000_000>,
}

/// Loading and running of models.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Engine {
    /// ONNX Runtime's library. Not set: `ORT_DYLIB_PATH`, then `lib/` beside the executable, then the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Text<PathBuf>")]
    pub(super) onnxruntime: Option<Text<PathBuf>>,
    /// The engine of models that name none: "onnxruntime", "tract", or "auto", which is the first where its library
    /// is found and the second elsewhere.
    pub(super) default: Text<EngineChoice>,
    /// Sessions per version. 0: one per worker, so that no request waits for another.
    pub(super) sessions: Whole<0, 1024>,
    /// Threads that one run of a model uses. The workers already fill the CPUs; more helps only a large model under
    /// few requests.
    pub(super) intra_op_threads: Whole<1, 256>,
    /// Most bytes that one run may allocate where the values of a request choose how many: a size to fill, repeats,
    /// rounds of a loop. Beyond it requests get 400. Runs of one version at the same time share it where the size
    /// cannot be worked out before, and get 503 beyond it. 0: a quarter of the memory that the process may use, of its
    /// control group's or of the machine's, and 1 GiB at most.
    pub(super) run_memory: Size<0, TIB>,
    /// Runs on made-up input before a version takes traffic: the first runs of a session are slow. 0 skips them.
    pub(super) warmup_runs: Whole<0, 10_000>,
}

/// Every version is loaded and run in a sandboxed process of its own before the server touches it: a model can hang,
/// starve or end the process that loads it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Proof {
    /// Off only where no second process can be started and the repository is trusted like the program itself.
    pub(super) enabled: Switch,
    /// Remembers a proof below `state.path`, so that a restart does not make it again: of the same files,
    /// by the same build, engine's library, kernel, CPU and limits. Turn it off where others may write below that path.
    pub(super) remember: Switch,
    /// True if a process waits with its engine loaded, to be copied for each proof: a new version is then served
    /// several times sooner, for some 20 MB of memory.
    pub(super) spare: Switch,
    /// Number of versions that are proven at a time, so that a slow one does not hold up the next; each may take
    /// `memory_max`. Versions of models that serve and what an operator asked for go first. One at a time with a budget
    /// for loaded models.
    pub(super) at_once: Whole<1, 64>,
    /// The same for the start, as long as not every version that is there has been tried: nothing serves yet that
    /// could be held up. 0: two more than the process may use CPUs, because some wait for the disk, at most 8 and no
    /// fewer than `at_once`; where that is 1, so is this.
    pub(super) at_start: Whole<0, 64>,
    /// Most memory that a version may take in that process, its file included; beyond it the version is refused. In a
    /// container with a memory limit, leave room for it beside what is served.
    pub(super) memory_max: Size<{ 64 * MIB }, TIB>,
    /// The time that a proof may take by the clock from when its process has the version; then it is ended and the
    /// version refused. It gives way to threads that serve, so under full load it takes longer than alone. A twentieth
    /// of it may go to runs with sizes of 0 to 3; requests with sizes that end the proving process are refused.
    pub(super) time_max: Time<100, HOUR>,
    /// Time on CPUs that it may take, all threads together, counted in whole seconds.
    pub(super) cpu_time_max: Time<SECOND, DAY>,
}

/// Bounds of one prediction.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Serve {
    /// Most rows of one request: larger ones hold a worker for too long.
    pub(super) batch_rows_max: Whole<1, 16_777_216>,
    /// Longest time that a prediction may take. A client may ask for less (`x-request-timeout-ms`), never for more. A
    /// run that is not done by then is ended, where its engine can end it.
    pub(super) request_timeout: Time<1, DAY>,
    /// Time for which a run may go on after it was told to end. Then its worker is given up, the worker's connections
    /// are closed, and a fresh worker takes its place.
    pub(super) stuck_after: Time<100, HOUR>,
    /// Most copies of requests that wait for the thread that runs shadows, over all models. What does not fit is
    /// dropped and counted (`tidegate_shadow_dropped_total`); answers never wait for it.
    pub(super) shadow_waiting: Whole<1, 65_536>,
    /// Most bytes of inputs and outputs that these copies hold together.
    pub(super) shadow_bytes: Size<{ 64 * KIB }, TIB>,
}

/// The most that labelled data may ask for, of `tidegate validate` and of rollouts that validate first.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Validation {
    /// Most columns of a file.
    pub(super) columns: Whole<1, 1_000_000>,
    /// Longest text, and longest cell of a CSV file.
    pub(super) text_bytes: Size<1, GIB>,
    /// Longest line of a CSV file. What is longer mostly lacks a quote.
    pub(super) row_bytes: Size<1, GIB>,
    /// Bytes of rows that are read at a time.
    pub(super) batch_bytes: Size<KIB, GIB>,
    /// Most classes of labels and predictions together. Takes 8 bytes for each pair of them.
    pub(super) classes: Whole<2, 10_000>,
}

/// The log, on standard output.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogsSection {
    /// A level (off, error, warn, info, debug, trace), or levels by module: `"info,tidegate::edge=debug"`.
    pub(super) level: Text<LogFilter>,
    /// "text" for people, "json" for machines, "auto" for text on a terminal and JSON elsewhere.
    pub(super) format: Text<LogFormat>,
    /// Most bytes of lines that wait for whoever reads standard output. A reader that stalls stops nothing: what does
    /// not fit is dropped and counted (`tidegate_log_lines_dropped_total`).
    pub(super) buffer: Size<{ 64 * KIB }, GIB>,
    /// The access log, a line of JSON for each request: "off", "stdout", or a file, which may be moved away at any
    /// time.
    pub(super) access: Text<AccessTarget>,
    /// The share of requests that have a line in the access log.
    pub(super) access_sample: Decimal<0, 1>,
    /// Most bytes of one worker's requests that wait for their lines in the access log, some 200 each. What does not
    /// fit is dropped and counted (`tidegate_access_lines_dropped_total`).
    pub(super) access_buffer: Size<{ 16 * KIB }, { 256 * MIB }>,
    /// Largest file of the access log; then it is moved to the same name with `.1`, in place of the one before.
    pub(super) access_bytes: Size<{ 64 * KIB }, TIB>,
}

/// Distributed traces, by W3C Trace Context.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tracing {
    /// The share of requests without a valid `traceparent` that begin a trace. Where a request brings one, its flag
    /// says whether it is recorded.
    pub(super) sample: Decimal<0, 1>,
    /// The collector that spans of recorded requests are sent to, over OTLP with HTTP and protobuf: "off", or an
    /// address such as `"http://localhost:4318"`. What it does not take is dropped and counted
    /// (`tidegate_traced_requests_dropped_total`).
    pub(super) otlp: Text<Collector>,
}

/// State that outlives a restart.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    /// The folder of the log of decisions, which `tidegate audit` reads. One process writes to it; nobody but its owner
    /// may look into it. A relative path is resolved against the directory tidegate is started in.
    pub(super) path: Text<PathBuf>,
    /// Largest log. It grows by some hundred bytes per decision and is never cut; what does not fit is refused.
    pub(super) log_bytes: Size<{ 64 * KIB }, TIB>,
}

/// Comparison of live features and outputs with a reference. `[models.NAME.drift]` changes it for one model.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Drift {
    /// True if drift is watched.
    pub(super) enabled: Switch,
    /// The promise: the expected time to a false alarm of one model is at least this, over all its features together,
    /// averaged over references. Longer finds drift a little later: the delay grows with the logarithm.
    pub(super) false_alarm_every: Time<{ 60 * SECOND }, { 3650 * DAY }>,
    /// Drift too small to matter: how much better than the reference an alternative must explain live values before it
    /// counts. 0 finds the smallest drift.
    pub(super) tolerance: Decimal<0, 1>,
    /// Caution for references of few rows, in standard deviations of their error. 0 takes a reference for exact.
    pub(super) caution: Decimal<0, 10>,
    /// Rows that teach a reference where no `profile.json` lies beside a model, and for outputs.
    pub(super) learn_rows: Whole<100, 10_000_000>,
    /// Time after an alarm in which none is raised.
    pub(super) cooldown: Time<SECOND, { 30 * DAY }>,
    /// The window of gauges, and the time for which a feature must have been inconspicuous before its alarm clears.
    pub(super) window: Time<{ 60 * SECOND }, DAY>,
    /// Values per row up to which each is a feature of its own; of wider inputs five measures are watched.
    pub(super) features: Whole<1, 4096>,
    /// Raw rows of the last hour that are kept for exact tests.
    pub(super) sample_rows: Whole<100, 1_000_000>,
    /// Values of one request that are counted; of a larger one, evenly spaced rows are.
    pub(super) values: Whole<16, 10_000_000>,
    /// Values of one version that are counted in a second, by all workers together; of more, random rows are. Counting
    /// costs some 20 ns a value in all.
    pub(super) values_per_second: Whole<1000, 1_000_000_000>,
    /// Features of a version that have gauges of their own on `/metrics`: the first ones. 0: none.
    pub(super) metric_features: Whole<0, 4096>,
}

/// Rules that requests to a model must keep.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelContract {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text<drift::Action>>")]
    pub(super) action: Option<Text<drift::Action>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dry_run: Option<Switch>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) features: BTreeMap<String, FeatureRule>,
}

/// Rules for a feature's values.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FeatureRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) categories: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) missing_max: Option<Decimal<0, 1>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Text<drift::Action>>")]
    pub(super) action: Option<Text<drift::Action>>,
}

/// The watch over one model's drift, where that differs from `[drift]`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelDrift {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enabled: Option<Switch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) false_alarm_every: Option<Time<{ 60 * SECOND }, { 3650 * DAY }>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tolerance: Option<Decimal<0, 1>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) learn_rows: Option<Whole<100, 10_000_000>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cooldown: Option<Time<SECOND, { 30 * DAY }>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window: Option<Time<{ 60 * SECOND }, DAY>>,
    /// Features that are not watched, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) ignore: Vec<String>,
}

/// The page of metrics, `/metrics` on the admin plane.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    /// Latencies that were promised to somebody, such as `["10ms", "100ms"]`, at most 16: edges of
    /// `tidegate_request_duration_seconds` beside the usual ones, so that the share of requests within them is known.
    pub(super) objectives: Texts<Objective>,
    /// Most series of a page; a classic histogram is one for each edge and three more. What does not fit is left
    /// out, and `tidegate_metrics_series_left_out` says how much that is.
    pub(super) series: Whole<100, 10_000_000>,
    /// Other servers whose names the page has too, for dashboards and autoscalers that know these: `["triton"]` adds
    /// `nv_inference_*`.
    pub(super) compat: Texts<monitor::Compat>,
}

/// Webhooks that get events as signed `CloudEvents`: drift, quality, performance, retraining, rollouts and failed
/// versions.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Notify {
    /// The attribute `source` of each event: a path or URL that names this server. Set it where several servers send to
    /// one receiver.
    pub(super) source: Text<EventSource>,
    /// Hosts that webhooks may name: `hooks.example.com`, `*.example.com` for all below it, or an address. Empty:
    /// those of the webhooks' own URLs.
    pub(super) hosts: Texts<notify::HostRule>,
    /// Addresses beyond the internet that deliveries may go to, each an address or a block such as `10.20.0.0/16`.
    /// Empty: none, so that no name, whatever it resolves to, leads to this machine, its network or a cloud's
    /// metadata.
    pub(super) private_addresses: Texts<notify::Block>,
    /// A file of certificates in PEM: the authorities by which receivers of `https://` are judged, instead of those
    /// that this machine trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Text<PathBuf>")]
    pub(super) ca_file: Option<Text<PathBuf>>,
    /// Time for which the same news is not sent again: the same kind for the same model, version and feature. What is
    /// held
    /// back is counted, and the next event about it says how often that was. The opposite (drift cleared) is sent at
    /// once.
    pub(super) cooldown: Time<0, { 30 * DAY }>,
    /// Pause after a failed delivery. It doubles with each further one, up to `backoff_max`; a random half of it is
    /// left out, so that many servers do not ask at once. A receiver's `Retry-After` is kept to, up to an hour.
    pub(super) backoff: Time<10, HOUR>,
    /// The longest pause, and how long a webhook whose circuit is open is left alone. Not below `backoff`.
    pub(super) backoff_max: Time<10, DAY>,
    /// Failed deliveries in a row that open a webhook's circuit; then one event is tried after each `backoff_max`.
    pub(super) breaker_failures: Whole<1, 1000>,
    /// Most attempts to deliver one event; then it is given up, which is recorded, counted and logged.
    pub(super) attempts: Whole<1, 1_000_000>,
    /// Age at which an event that could not be delivered is given up.
    pub(super) give_up_after: Time<SECOND, { 365 * DAY }>,
    /// Most events that wait for one webhook; further ones are dropped, counted and logged.
    pub(super) queue: Whole<1, 100_000>,
    /// Largest body of a delivery. A larger event is sent without the object that it is about.
    pub(super) event_bytes: Size<{ 4 * KIB }, MIB>,
    /// Receivers of events, up to 16. Each is a section of its own.
    pub(super) webhook: Webhooks,
}

/// Rules for one model.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Model {
    /// The engine of this model. Not set: `engine.default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Text<EngineChoice>")]
    pub(super) engine: Option<Text<EngineChoice>>,
    /// True if the server calls itself ready only while this model is served. Off, so that one broken model does
    /// not take the others out of service.
    pub(super) required: Switch,
    /// Treatment of a version that appears while an older one serves: "serve" proves it and lets it take over,
    /// "hold" waits for `tidegate models load`, "rollout" tries it on a growing share of requests and lets it take over
    /// if it is no worse.
    pub(super) on_new_version: Text<OnNewVersion>,
    /// True if a new version may have other inputs and outputs than the one it takes over from, whose clients might
    /// then fail. Off: such a version is refused.
    pub(super) signature_may_change: Switch,
    /// Lets the header `x-tidegate-route` of a request choose the arm or version that answers it. Off: it would
    /// let every client out of a split.
    pub(super) route_override: Switch,
    /// Trial of a version before it takes over: the policy of rollouts of this model, laid over the defaults field
    /// by field. With it, `on_new_version` is "rollout" where nothing else is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rollout: Option<RolloutPolicy>,
    /// The watch over drift of this model: `enabled`, `false_alarm_every`, `tolerance`, `learn_rows`, `cooldown` and
    /// `window` as in `[drift]`, and `ignore`, a list of features that are not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drift: Option<Table<ModelDrift>>,
    /// Rules that requests to this model must keep, checked on every row before the model runs: `owner` (who is asked
    /// about it), `action` ("count", "flag" the answer, or "refuse" with 400), `dry_run` (only count), and
    /// `features.NAME` with `min`, `max`, `categories`, `missing_max` and an `action` of its own. `tidegate profile
    /// --contract NAME` writes one from data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) contract: Option<Table<ModelContract>>,
    /// Outcomes of this model's predictions, which clients send to `/v2/models/NAME/feedback`: which of its outputs is
    /// the prediction, and how long outcomes may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) feedback: Option<Table<ModelFeedback>>,
    /// Part of this model in the table of predictions: `sample` as in `[predictions]`, and `redact`, a list of
    /// features, inputs or outputs (`output:NAME`) whose values are never written: their cells are null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predictions: Option<Table<ModelPredictions>>,
    /// Rows of this model that are also counted apart, by the value of a `header` or of a `feature` of the inputs:
    /// drift, the contract and outcomes are then told by segment as well. `values` are known beforehand; others are
    /// taken as they come, up to `limit` of all; further ones are the segment `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) segments: Option<Segments>,
    /// When this model should be trained anew (the event `retrain.requested`): drift of important features, or a drop
    /// of performance, that lasts. Not set: only when an operator asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retrain: Option<RetrainRule>,
}

/// Outcomes of one model's predictions.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelFeedback {
    /// True if predictions are remembered for outcomes that come later.
    pub(super) enabled: Switch,
    /// The output that holds the prediction. Not set: the only INT64 or BYTES output with one value per row, else the
    /// only floating one, whose largest value names the class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<String>,
    /// The class whose precision, recall and scores matter: its number, or its text. Not set: 1 where there are two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) positive: Option<Class>,
    /// Time that an outcome may take: what is older is `late`.
    pub(super) ttl: Time<SECOND, { 31 * DAY }>,
    /// Most memory of this model's predictions that wait for outcomes, some 144 bytes each, and about half as much on
    /// disk. The oldest are forgotten first.
    pub(super) memory: Size<{ 64 * KIB }, { 64 * GIB }>,
    /// Tells (event `performance.dropped`) when a version's accuracy over the last day is surely below this by its
    /// outcomes, or by its scores where no outcome came within the hour. Not set: only a rise of errors is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accuracy_min: Option<Decimal<0, 1>>,
    /// Time after such an event in which none is told of the same version.
    pub(super) cooldown: Time<SECOND, { 31 * DAY }>,
}

/// Memory for outcomes, of all models together.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Feedback {
    /// Most memory of predictions that wait for outcomes, over all models. The model that has most gives way.
    pub(super) memory: Size<{ 64 * KIB }, TIB>,
}

/// The table of predictions: sampled predictions with their inputs and outputs as Parquet files, one folder for each
/// version (`predictions/MODEL/VERSION/`). `[models.NAME.predictions]` changes it for one model.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Predictions {
    /// Share of predictions that are written, chosen by the prediction's id. 0: none. Inputs may be personal data: see
    /// `redact`.
    pub(super) sample: Decimal<0, 1>,
    /// The folder. Not set: `predictions` below `state.path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Text<PathBuf>")]
    pub(super) path: Option<Text<PathBuf>>,
    /// An object store to which complete files are moved, laid out as the folder; only in builds with the feature
    /// `object-store` (`s3`, `gcs`, `azure`), with credentials from the environment as for a repository there. Not set:
    /// they stay in the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Text<UploadTo>")]
    pub(super) upload: Option<Text<UploadTo>>,
    /// Size at which a file is completed and the next one begun.
    pub(super) rotate_bytes: Size<{ 64 * KIB }, TIB>,
    /// Time after which a file is completed. Shorter shows predictions sooner, and loses fewer if the process is
    /// killed: what is in no complete file is lost then.
    pub(super) rotate_every: Time<SECOND, { 7 * DAY }>,
    /// Most bytes of all files in the folder; beyond it the oldest are removed, uploaded or not.
    pub(super) keep_bytes: Size<MIB, { 1024 * TIB }>,
    /// Most predictions that wait for the thread that writes. What does not fit is dropped and counted
    /// (`tidegate_predictions_dropped_total`); answers never wait for it.
    pub(super) queue: Whole<1, 1_000_000>,
    /// Most bytes of inputs and outputs that these hold together.
    pub(super) queue_bytes: Size<{ 64 * KIB }, TIB>,
    /// Values per row of a version up to which each has a column of its own; a wider tensor is one column of lists.
    pub(super) columns: Whole<1, 4096>,
}

/// Part of one model in the table of predictions, where that differs from `[predictions]`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelPredictions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<Decimal<0, 1>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) redact: Vec<String>,
}

impl File {
    /// A file in which every key stands, optional ones with a made-up value, and one made-up model.
    pub(super) fn sample() -> Self {
        let name = |name| Text(ModelName::parse(name).expect("the sample is a model name"));
        let mut file = Self::default();
        file.repository.model_name = Some(name("fraud"));
        file.engine.onnxruntime = Some(Text("/opt/onnxruntime/lib/libonnxruntime.so".into()));
        let engine = Some(Text(EngineChoice::Tract));
        let policy = PolicyDraft { alpha: Some(0.01), ..PolicyDraft::default() };
        let rollout = Some(RolloutPolicy(policy));
        let watched = ModelDrift { tolerance: Some(Decimal(0.05)), ..ModelDrift::default() };
        let watched = Some(Table(watched));
        let owner = "risk team".to_owned();
        let contract = Some(Table(ModelContract { owner, ..ModelContract::default() }));
        let output = Some("label".to_owned());
        let feedback = Some(Table(ModelFeedback { output, ..ModelFeedback::default() }));
        let sampled =
            ModelPredictions { sample: Some(Decimal(0.1)), redact: vec!["name".to_owned()] };
        let rule =
            notify::RetrainDraft { windows: Some(3), min_psi: Some(0.1), ..Default::default() };
        let retrain = Some(RetrainRule(rule));
        let values = ["eu", "us"].map(str::to_owned).to_vec();
        let header = Some("x-region".to_owned());
        let segments = drift::SegmentDraft { header, values, ..Default::default() };
        let fraud = Model {
            engine,
            rollout,
            drift: watched,
            contract,
            feedback,
            predictions: Some(Table(sampled)),
            retrain,
            segments: Some(Segments(segments)),
            ..Model::default()
        };
        file.models.insert("fraud".to_owned(), fraud);
        file.predictions.path = Some(Text("/var/lib/tidegate/predictions".into()));
        file.predictions.upload = Some(Text(UploadTo("s3://company/predictions".to_owned())));
        file.notify.ca_file = Some(Text("/etc/ssl/certs/company.pem".into()));
        file.notify.webhook = Webhooks(vec![notify::WebhookDraft {
            name: "ops".to_owned(),
            url: "https://hooks.example.com/tidegate".to_owned(),
            events: Some(vec!["drift".to_owned(), "rollout.rolled_back".to_owned()]),
            models: Some(vec!["fraud".to_owned()]),
            secret_file: Some("/run/secrets/tidegate-hook".to_owned()),
            timeout: Some(crate::rollout::Span(std::time::Duration::from_secs(10))),
            ..Default::default()
        }]);
        file
    }
}

impl Default for Server {
    fn default() -> Self {
        let edge::Settings {
            http,
            workers,
            drain_delay,
            grace,
            web_pages: _,
            traced_share: _,
            access: _,
            limits: _,
        } = edge::Settings::default();
        let admin = super::Admin::default();
        Self {
            http: Text(http),
            grpc: Text(Reserved::default().grpc),
            admin: Text(admin.address),
            admin_connections: Whole(count(admin.connections_max)),
            workers: Whole(count(workers.map_or(0, Into::into))),
            web_pages: Text(RepositoryApi::Auto),
            drain_delay: Time(drain_delay),
            grace: Time(grace),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let limits = edge::Limits::default();
        Self {
            body: Size(count(limits.body_bytes_max)),
            body_rate_min: Size(u64::from(limits.body_bytes_per_second_min.get())),
            body_grace: Time(limits.body_grace),
            header_timeout: Time(limits.header_timeout),
            headers: Whole(count(limits.headers_max)),
            header_bytes: Size(count(limits.header_bytes_max)),
            uri_bytes: Size(count(limits.uri_bytes_max)),
            idle_timeout: Time(limits.idle_timeout),
            write_timeout: Time(limits.write_timeout),
            linger: Time(limits.linger),
            connections: Whole(count(limits.connections_max.map_or(0, Into::into))),
            connections_per_ip: Whole(count(limits.connections_per_ip_max.map_or(0, Into::into))),
            in_flight_bytes: Size(count(limits.in_flight_bytes_max.map_or(0, Into::into))),
            http2_streams: Whole(u64::from(limits.http2_streams_max.get())),
            json_depth: Whole(count(limits.json_depth_max)),
            inputs: Whole(count(limits.inputs_max)),
            outputs: Whole(count(limits.outputs_max)),
            parameters: Whole(count(limits.parameters_max)),
            name_bytes: Whole(count(limits.name_bytes_max)),
            compress_min: Size(count(limits.compress_bytes_min)),
            inflate_ratio: Whole(u64::from(limits.inflate_ratio_max.get())),
            gzip_members: Whole(count(limits.gzip_members_max)),
        }
    }
}

impl Default for RepositorySection {
    fn default() -> Self {
        let source::Settings {
            root,
            poll_interval,
            model_name,
            artifact_bytes_max,
            models_max,
            versions_max,
            hard_links,
            vanished_grace,
            own_folders: _,
        } = source::Settings::default();
        let serve::Settings { demand_timeout, demand_waiting_max, .. } = serve::Settings::default();
        let uploads = Uploads::default();
        Self {
            root: Text(RepositoryRoot(root)),
            poll_interval: Time(poll_interval),
            model_name: model_name.map(Text),
            api: Text(RepositoryApi::Auto),
            uploads: Switch(uploads.allowed),
            upload_bytes: Size(count(uploads.bytes_max)),
            upload_files: Whole(count(uploads.files_max)),
            artifact_bytes: Size(artifact_bytes_max),
            models: Whole(count(models_max)),
            versions: Whole(count(versions_max)),
            hard_links: Switch(hard_links),
            vanished_grace: Time(vanished_grace),
            loaded_bytes: Size(0),
            demand_timeout: Time(demand_timeout),
            demand_waiting: Whole(count(demand_waiting_max)),
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        let engine::Settings {
            onnxruntime,
            default,
            sessions,
            intra_op_threads,
            run_memory_max,
            warmup_runs,
        } = engine::Settings::default();
        Self {
            onnxruntime: onnxruntime.map(Text),
            default: Text(default),
            sessions: Whole(count(sessions.map_or(0, Into::into))),
            intra_op_threads: Whole(count(intra_op_threads.get())),
            run_memory: Size(run_memory_max.map_or(0, Into::into)),
            warmup_runs: Whole(u64::from(warmup_runs)),
        }
    }
}

impl Default for Proof {
    fn default() -> Self {
        let lifecycle::ProofSettings { enabled, remember, spare, at_once, at_start, limits } =
            lifecycle::ProofSettings::default();
        Self {
            enabled: Switch(enabled),
            remember: Switch(remember),
            spare: Switch(spare),
            at_once: Whole(count(at_once.get())),
            at_start: Whole(count(at_start.map_or(0, Into::into))),
            memory_max: Size(limits.memory_max),
            time_max: Time(limits.time_max),
            cpu_time_max: Time(limits.cpu_time_max),
        }
    }
}

impl Default for Serve {
    fn default() -> Self {
        let serve::Settings {
            batch_rows_max,
            request_timeout,
            stuck_after,
            shadow_waiting_max,
            shadow_bytes_max,
            ..
        } = serve::Settings::default();
        Self {
            batch_rows_max: Whole(count(batch_rows_max.get())),
            request_timeout: Time(request_timeout),
            stuck_after: Time(stuck_after),
            shadow_waiting: Whole(count(shadow_waiting_max.get())),
            shadow_bytes: Size(count(shadow_bytes_max)),
        }
    }
}

impl Default for Validation {
    fn default() -> Self {
        let validation::Settings {
            columns_max,
            text_bytes_max,
            row_bytes_max,
            batch_bytes_max,
            classes_max,
        } = validation::Settings::default();
        Self {
            columns: Whole(count(columns_max)),
            text_bytes: Size(count(text_bytes_max)),
            row_bytes: Size(count(row_bytes_max)),
            batch_bytes: Size(count(batch_bytes_max)),
            classes: Whole(count(classes_max)),
        }
    }
}

impl Default for Drift {
    fn default() -> Self {
        let settings = drift::Settings::default();
        Self {
            enabled: Switch(settings.enabled),
            false_alarm_every: Time(settings.false_alarm_every),
            tolerance: Decimal(settings.tolerance),
            caution: Decimal(settings.caution),
            learn_rows: Whole(settings.learn_rows),
            cooldown: Time(settings.cooldown),
            window: Time(settings.window),
            features: Whole(count(settings.features_max)),
            sample_rows: Whole(count(settings.sample_rows)),
            values: Whole(count(settings.values_max)),
            values_per_second: Whole(count(settings.rate_max)),
            metric_features: Whole(count(settings.metric_features_max)),
        }
    }
}

impl Default for Feedback {
    fn default() -> Self {
        let feedback::Settings { memory_max } = feedback::Settings::default();
        Self { memory: Size(memory_max) }
    }
}

impl Default for Predictions {
    fn default() -> Self {
        let predictions::Settings {
            share,
            path,
            upload,
            rotate_bytes,
            rotate_every,
            keep_bytes,
            waiting_max,
            waiting_bytes_max,
            columns_max,
        } = predictions::Settings::default();
        Self {
            sample: Decimal(share),
            path: path.map(Text),
            upload: upload.map(|address| Text(UploadTo(address))),
            rotate_bytes: Size(rotate_bytes),
            rotate_every: Time(rotate_every),
            keep_bytes: Size(keep_bytes),
            queue: Whole(count(waiting_max)),
            queue_bytes: Size(count(waiting_bytes_max)),
            columns: Whole(count(columns_max)),
        }
    }
}

impl Default for ModelFeedback {
    fn default() -> Self {
        let feedback::Policy { rule, ttl, memory_max, accuracy_min, cooldown } =
            feedback::Policy::default();
        Self {
            enabled: Switch(rule.enabled),
            output: rule.output,
            positive: rule.positive.map(Class),
            ttl: Time(ttl),
            memory: Size(memory_max),
            accuracy_min: accuracy_min.map(Decimal),
            cooldown: Time(cooldown),
        }
    }
}

impl Default for LogsSection {
    fn default() -> Self {
        let Logs { filter, format, buffer_bytes_max } = Logs::default();
        let buffer = Size(count(buffer_bytes_max));
        let AccessSettings { target, share, buffer_bytes_max, file_bytes_max, spans_to: _ } =
            AccessSettings::default();
        Self {
            level: Text(LogFilter(filter)),
            format: Text(format),
            buffer,
            access: Text(target),
            access_sample: Decimal(share),
            access_buffer: Size(count(buffer_bytes_max)),
            access_bytes: Size(file_bytes_max),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let monitor::Settings { objectives, series_max, compat } = monitor::Settings::default();
        Self {
            objectives: Texts(objectives.into_iter().map(Objective).collect()),
            series: Whole(count(series_max)),
            compat: Texts(compat),
        }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        let edge::Settings { traced_share, access, .. } = edge::Settings::default();
        Self { sample: Decimal(traced_share), otlp: Text(Collector(access.spans_to)) }
    }
}

impl Default for State {
    fn default() -> Self {
        let state::Settings { path, log_bytes_max, reopen_after: _ } = state::Settings::default();
        Self { path: Text(path), log_bytes: Size(log_bytes_max) }
    }
}

impl Default for Notify {
    fn default() -> Self {
        let notify::Settings {
            source,
            webhooks: _,
            hosts,
            private_addresses,
            ca_file,
            cooldown,
            backoff,
            backoff_max,
            breaker_failures,
            attempts_max,
            give_up_after,
            queue_max,
            event_bytes_max,
            retrain: _,
        } = notify::Settings::default();
        Self {
            source: Text(EventSource(source)),
            hosts: Texts(hosts),
            private_addresses: Texts(private_addresses),
            ca_file: ca_file.map(Text),
            cooldown: Time(cooldown),
            backoff: Time(backoff),
            backoff_max: Time(backoff_max),
            breaker_failures: Whole(breaker_failures.into()),
            attempts: Whole(attempts_max.into()),
            give_up_after: Time(give_up_after),
            queue: Whole(count(queue_max)),
            event_bytes: Size(count(event_bytes_max)),
            webhook: Webhooks::default(),
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        let super::ModelPolicy {
            engine,
            required,
            on_new_version,
            signature_may_change,
            route_override,
            rollout,
            drift: _,
            feedback: _,
            predictions: _,
        } = super::ModelPolicy::default();
        Self {
            engine: engine.map(Text),
            required: Switch(required),
            on_new_version: Text(on_new_version),
            signature_may_change: Switch(signature_may_change),
            route_override: Switch(route_override),
            rollout: rollout.map(RolloutPolicy),
            drift: None,
            contract: None,
            feedback: None,
            predictions: None,
            segments: None,
            retrain: None,
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
