//! Wires the rooms together, runs them, and drains them in reverse.
//!
//! Order of the start: engines, lifecycle (which begins to load at once), data plane, admin plane, ready line.
//! Order of the end: readiness fails, accepting goes on for the drain delay, requests in flight finish, the
//! admin plane stops last of the listeners so that it can still be asked, final totals are logged.

mod logs;

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch};

use crate::{
    admin::{self, Admin, RepositoryApi, UploadLimits, repository_service, with_outcomes},
    config::{self, Config},
    drift::{Drift, Watching},
    edge::{self, AccessLog, AccessTarget, Listener, Plane},
    engine::{self, Engines},
    feedback::{self, Feedback, Joining},
    lifecycle::{Blame, Lifecycle, Loader, OnNewVersion, Policy, Prover, Verdicts},
    model::{ModelName, PredictionKey, TensorSpec, VersionId},
    monitor::{Clock, Code, Monitor, VersionTotals},
    notify::{self, Notifier},
    predictions::{self, Recording, Uploading},
    registry::Registry,
    rollout::{self, PolicyDraft},
    serve::{AnswerRule, Naming, Samples, Serving, Shadowing, Version, Watchdog},
    source::{self, Store},
    state::{State, StateError},
    tensor::{DataType, Shape},
};

use logs::Logs;

/// The machine's clock; the only place that asks it.
#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// Serves until a signal asks to stop.
pub fn serve(config: Config) -> anyhow::Result<()> {
    let logs = Logs::start(&config.logs)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control plane cannot start")?;
    let outcome = runtime.block_on(run(config, &logs));
    // A load that hangs must not keep the process from ending.
    runtime.shutdown_background();
    outcome
}

/// A loader as the configuration asks for it; also what `tidegate check` loads with.
pub fn loader(config: &Config, sessions: usize, monitor: Arc<Monitor>) -> anyhow::Result<Loader> {
    let engines = Engines::open(&config.engine)?;
    let chosen =
        config.models.iter().filter_map(|(name, policy)| Some((name.clone(), policy.engine?)));
    let prover = config.proof.enabled.then(|| {
        let program = Prover::own_program().context("the program's own file is not known")?;
        // What was found here: it looks from another folder. Where the system found it by its name, it looks again.
        let library = engines.library().filter(|path| path.is_absolute()).map(Path::to_owned);
        let clock = Arc::clone(monitor.clock());
        anyhow::Ok(Prover::new(program, config.proof.limits, library, clock))
    });
    Ok(Loader {
        engines,
        prover: prover.transpose()?,
        spare_prover: config.proof.spare,
        loads_at_once: config.proof.at_once,
        loads_at_start: config.proof.at_start(cpu_budget()),
        monitor,
        sessions,
        intra_op_threads: config.engine.intra_op_threads.get(),
        run_memory_max: (config.engine.run_memory_max)
            .map_or_else(edge::share_of_memory, NonZeroU64::get),
        warmup_runs: config.engine.warmup_runs,
        chosen: chosen.collect::<BTreeMap<_, _>>(),
        answers: answers(config),
        blame: None,
        drift: None,
        samples: None,
        store: None,
        artifact_bytes_max: config.source.artifact_bytes_max,
        body_bytes_max: config.edge.limits.body_bytes_max,
    })
}

/// Opens what outlives the process: the log of decisions and the content store. Where the folder cannot be written,
/// the server does without and says so.
fn remember(config: &Config, loader: &mut Loader) -> anyhow::Result<(Registry, Option<State>)> {
    let path = &config.state.path;
    let (state, opened) = match State::open(config.state.clone()) {
        Ok(opened) => opened,
        Err(error @ (StateError::Io { .. } | StateError::Full { .. })) => {
            let error = anyhow::Error::from(error);
            tracing::warn!(
                "no state is kept, decisions of operators end with this process: {error:#}; make `{}` writable, or set \
                 state.path",
                path.display()
            );
            return Ok((Registry::default(), None));
        }
        Err(error) => return Err(error.into()),
    };
    for note in &opened.notes {
        tracing::warn!("{note}");
    }
    match Store::open(path) {
        Ok(store) => loader.store = Some(store),
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::warn!("versions are not kept, a start needs the repository: {error:#}");
        }
    }
    if let Some(prover) = loader.prover.as_mut().filter(|_| config.proof.remember) {
        match Verdicts::open(path, loader.engines.library()) {
            Ok(verdicts) => prover.remember(verdicts),
            Err(error) => {
                tracing::info!("proofs are not remembered, each start makes them: {error}");
            }
        }
    }
    let blame = Blame::open(path, loader.monitor.clock().unix());
    match blame.and_then(|(blame, crashes)| {
        engine::write_crashes_to(crashes)?;
        Ok(blame)
    }) {
        Ok(blame) => loader.blame = Some(blame),
        Err(error) => tracing::warn!(
            "a version that ends this process will not be held back: {error}; make the files `crashes` and `blamed` below \
             state.path writable"
        ),
    }
    Ok((Registry::open(state.clone())?, Some(state)))
}

/// Where the repository is for this process: its folder, or one that mirrors an object store as long as the second
/// value lives.
#[cfg(feature = "mirror")]
async fn repository(
    config: &Config,
    monitor: &Arc<Monitor>,
) -> anyhow::Result<(source::Settings, Option<source::Mirror>)> {
    let settings = config.source.clone();
    if !source::Mirror::is_for(&settings.root) {
        return Ok((settings, None));
    }
    let looked = Arc::new(tokio::sync::Notify::new());
    let (told, monitor) = (Arc::clone(&looked), Arc::clone(monitor));
    let mirror =
        source::Mirror::start(settings, Some(&config.state.path), environment(), move |news| {
            if let source::MirrorNews::Looked(problem) = news {
                monitor.upkeep().mirrored(monitor.clock().unix(), problem);
            }
            told.notify_one();
        })?;
    // An empty mirror is not an empty repository: readiness must not say so.
    if tokio::time::timeout(FIRST_LOOK_MAX, looked.notified()).await.is_err() {
        tracing::warn!(
            "the object store has not answered yet; going on with what was mirrored before"
        );
    }
    if let Some(problem) = mirror.problem() {
        tracing::warn!("the object store: {problem}");
    }
    Ok((mirror.settings().clone(), Some(mirror)))
}

/// Where clients of object stores find credentials and endpoints.
#[cfg(feature = "mirror")]
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

/// How long the start waits for the object store's first answer.
#[cfg(feature = "mirror")]
const FIRST_LOOK_MAX: Duration = Duration::from_mins(1);

/// Where the repository is; this build reads folders only.
#[cfg(not(feature = "mirror"))]
#[expect(clippy::unused_async, reason = "with object stores it waits for one")]
async fn repository(
    config: &Config,
    _: &Arc<Monitor>,
) -> anyhow::Result<(source::Settings, Option<()>)> {
    Ok((config.source.clone(), None))
}

/// The operator's policy of each model's rollouts, and whether a new version starts one by itself.
fn drafts(config: &Config) -> BTreeMap<ModelName, (PolicyDraft, bool)> {
    let draft = |policy: &config::ModelPolicy| {
        let by_itself = policy.on_new_version == OnNewVersion::Rollout;
        (policy.rollout.clone().unwrap_or_default(), by_itself)
    };
    config.models.iter().map(|(name, model)| (name.clone(), draft(model))).collect()
}

/// Watches the drift of what is served; what it learns is kept where state is kept.
pub(crate) fn watch_drift(
    config: &Config,
    monitor: &Arc<Monitor>,
    workers: usize,
    kept: bool,
) -> Drift {
    let own = |(name, model): (&ModelName, &config::ModelPolicy)| {
        Some((name.clone(), model.drift.clone()?))
    };
    let models = config.models.iter().filter_map(own).collect();
    let folder = kept.then(|| config.state.path.join("references"));
    Drift::new(Arc::clone(monitor), workers, config.drift.clone(), models, folder)
}

/// The operator's word about which outputs are predictions.
fn answers(config: &Config) -> BTreeMap<ModelName, AnswerRule> {
    let rule = |policy: &config::ModelPolicy| policy.feedback.rule.clone();
    config.models.iter().map(|(name, model)| (name.clone(), rule(model))).collect()
}

/// The thread that joins outcomes to predictions, and the key of predictions' names.
fn joining(
    config: &Config,
    serving: &Arc<Serving>,
    monitor: &Arc<Monitor>,
    workers: usize,
    keeps_state: bool,
    samples: Option<Arc<Samples>>,
) -> anyhow::Result<(Joining, PredictionKey)> {
    let state = keeps_state.then(|| config.state.path.clone());
    if state.is_none() {
        tracing::warn!(
            "outcomes are joined to predictions in memory only, and forgotten with them when this process ends, as no \
             state is kept; set state.path to a folder that can be written"
        );
    }
    let fresh = [random(), random()];
    let key = state
        .as_ref()
        .map_or(Ok(PredictionKey::new(fresh)), |state| feedback::secret(state, fresh));
    let key = key.unwrap_or_else(|error| {
        tracing::warn!(
            "outcomes are joined until this process ends: the key of predictions: {error}"
        );
        PredictionKey::new(fresh)
    });
    let policies = config.models.iter().map(|(name, model)| (name.clone(), model.feedback.clone()));
    let joining = Joining::start(feedback::Parts {
        serving: Arc::clone(serving),
        monitor: Arc::clone(monitor),
        state,
        key,
        workers,
        settings: config.feedback.clone(),
        policies: policies.collect(),
        samples,
    });
    Ok((joining.context("outcomes have no thread")?, key))
}

/// The object store for files of predictions.
#[cfg(feature = "mirror")]
impl predictions::Store for source::Bucket {
    fn put(&self, key: &str, file: &std::path::Path) -> Result<(), String> {
        source::Bucket::put(self, key, file).map_err(|error| error.to_string())
    }
}

/// The thread that uploads files of predictions, if they are to be.
#[cfg(feature = "mirror")]
fn uploading(config: &Config, monitor: &Arc<Monitor>) -> anyhow::Result<Option<Uploading>> {
    let Some(address) = &config.predictions.upload else { return Ok(None) };
    let bucket = source::Bucket::open(address, environment()).context("predictions.upload")?;
    let folder = config.predictions.folder(&config.state.path);
    let uploading = Uploading::start(Box::new(bucket), Arc::clone(monitor), folder);
    Ok(Some(uploading.context("uploads have no thread")?))
}

/// Nothing: the configuration names no store for which this build has no client.
#[cfg(not(feature = "mirror"))]
#[expect(clippy::unnecessary_wraps, reason = "with object stores it may fail")]
fn uploading(_: &Config, _: &Arc<Monitor>) -> anyhow::Result<Option<Uploading>> {
    Ok(None)
}

/// The threads that write sampled predictions and upload them, and the queue for the loader's versions, where some are
/// sampled.
fn recording(
    config: &Config,
    monitor: &Arc<Monitor>,
    loader: &mut Loader,
) -> anyhow::Result<(Option<Recording>, Option<Uploading>)> {
    let uploading = uploading(config, monitor)?;
    let policy = |policy: &config::ModelPolicy| policy.predictions.clone();
    let policies =
        config.models.iter().map(|(name, model)| (name.clone(), policy(model))).collect();
    let settings = config.predictions.clone();
    let Some(samples) = settings.samples(&policies) else { return Ok((None, uploading)) };
    let parts = predictions::Parts {
        samples: Arc::clone(&samples),
        monitor: Arc::clone(monitor),
        folder: settings.folder(&config.state.path),
        settings,
        policies,
        process: random(),
        waker: uploading.as_ref().and_then(Uploading::waker),
    };
    loader.samples = Some(samples);
    let recording = Recording::start(parts).context("predictions have no thread")?;
    Ok((Some(recording), uploading))
}

/// What the operator says about models.
fn policies(config: &Config) -> BTreeMap<ModelName, Policy> {
    let policy = |policy: &config::ModelPolicy| Policy {
        required: policy.required,
        on_new_version: policy.on_new_version,
        signature_may_change: policy.signature_may_change,
        route_override: policy.route_override,
        ..Policy::default()
    };
    config.models.iter().map(|(name, model)| (name.clone(), policy(model))).collect()
}

/// Says which engine is missing.
fn tell_of_engines(loader: &Loader) {
    if let Some(notice) = loader.engines.notice() {
        tracing::warn!("{notice}; until then only models that tract can run are served");
    }
}

async fn run(config: Config, logs: &Logs) -> anyhow::Result<()> {
    // Before anything is written.
    let mut stop = Signals::listen()?;
    let workers = config.edge.workers.map_or_else(cpu_budget, NonZeroUsize::get);
    let monitor = monitor(&config, workers, logs);
    let serving = Arc::new(Serving::new(config.serve.clone(), Arc::clone(monitor.clock())));
    let _watching = Watchdog::start(&serving).context("the watchdog cannot start")?;
    let shadowing =
        Shadowing::start(&serving).context("the thread that runs shadows cannot start")?;
    let sessions = config.engine.sessions.map_or(workers, |sessions| sessions.get().min(workers));
    let mut loader = loader(&config, sessions, Arc::clone(&monitor))?;
    let (registry, state) = remember(&config, &mut loader)?;
    let drift = watch_drift(&config, &monitor, workers, state.is_some());
    loader.drift = Some(drift.clone());
    let recording = recording(&config, &monitor, &mut loader)?;
    let samples = loader.samples.clone();
    let _drifting = Watching::start(&drift).context("drift has no thread")?;
    let blamed = loader.blame.as_ref().map(Blame::blamed).unwrap_or_default();
    let records = registry.rollouts().map(|(id, it)| (id.to_owned(), it.clone())).collect();
    tell_of_engines(&loader);
    let (settings, _mirror) = repository(&config, &monitor).await?;
    let mut lifecycle = Lifecycle::start(
        settings,
        loader,
        Arc::clone(&serving),
        registry,
        policies(&config),
        (config.loaded_bytes_max, state.as_ref().is_some_and(rollout::is_frozen)),
    )?;
    let (joining, key) =
        joining(&config, &serving, &monitor, workers, state.is_some(), samples.clone())?;
    let judge = judge(&config, &joining.handle(), &serving, &monitor, &lifecycle, workers);
    let alerts = (config.notify.clone(), state.clone());
    let state = state.map(|state| (state, config.state.path.clone()));
    let rollouts = rollout::Running::start(rollout::Parts { state, records, blamed, ..judge })
        .context("rollouts have no thread")?;
    let notifier = notifier(alerts, &serving, &monitor, &rollouts)?;
    let (drain_delay, grace) = (config.edge.drain_delay, config.edge.grace);
    let (admin_at, admin_limits) = (config.admin.address, admin_limits(&config));
    let access = access(&config, &monitor, workers)?;
    let plane = plane(config, &serving, &monitor, &lifecycle, (&joining, key), access.as_ref());
    let listener = Listener::start(Arc::new(plane), workers).await?;
    let admin = Admin {
        serving: Arc::clone(&serving),
        monitor: Arc::clone(&monitor),
        drift,
        lifecycle: lifecycle.handle(),
        rollouts: rollouts.handle(),
        feedback: joining.handle(),
        notifications: notifier.handle(),
        samples,
        random,
    };
    let (admin_address, admin) = start_admin(admin_at, admin, admin_limits).await?;
    let ready = || announce(&serving, listener.address(), admin_address, logs);
    let signal = told_to_end(&mut lifecycle, &mut stop, ready).await;
    // In reverse, each part before those that it stands on.
    tracing::info!(signal = signal.name(), "shutting down");
    serving.drain();
    shadowing.stop();
    listener.leave();
    stop.wait_before_refusing(signal, drain_delay).await;
    let complete = listener.drain(grace.saturating_sub(drain_delay)).await;
    end(shadowing, "a shadow's run did not end").await;
    end(access, "lines of the access log were still being written").await;
    admin.stop().await;
    end_control(recording, rollouts, joining, lifecycle, notifier).await;
    log_totals(&monitor, complete);
    Ok(())
}

/// The access log, if there is one.
fn access(config: &Config, monitor: &Monitor, workers: usize) -> anyhow::Result<Option<AccessLog>> {
    let access = AccessLog::start(&config.edge.access, workers, logs::write_to_stdout)?;
    if let Some(access) = &access {
        let settings = &config.edge.access;
        if settings.target != AccessTarget::Off {
            monitor.upkeep().drops_access_lines(access.dropped());
        }
        if settings.spans_to.is_some() {
            monitor.upkeep().drops_traces(access.spans_dropped());
        }
    }
    Ok(access)
}

/// Says that the server is ready once it is, and waits for the signal that ends it.
async fn told_to_end(
    lifecycle: &mut Lifecycle,
    stop: &mut Signals,
    ready: impl FnOnce(),
) -> Signal {
    tokio::select! {
        () = lifecycle.first_pass() => {
            ready();
            stop.wait().await
        }
        signal = stop.wait() => signal,
    }
}

/// Ends the threads of the control plane, each before those that it stands on.
async fn end_control(
    (recording, uploading): (Option<Recording>, Option<Uploading>),
    rollouts: rollout::Running,
    joining: Joining,
    lifecycle: Lifecycle,
    notifier: Notifier,
) {
    let late = "predictions were still being written; those in no complete file are lost";
    end_within(FILES_MAX, move || drop(recording), late).await;
    let late = "files of predictions were still being uploaded; those in the folder are uploaded after the next start";
    end_within(UPLOAD_MAX, move || uploading.into_iter().for_each(Uploading::end), late).await;
    end(rollouts, "a rollout was still being carried out; it goes on at the next start").await;
    end(joining, "outcomes were still being written").await;
    end(lifecycle, "a version was still being loaded").await;
    end(notifier, "a notification was still being sent; it is sent again after the next start")
        .await;
}

/// Ends what waits for its thread; one that takes longer than a second is left, with a word in the log.
async fn end(part: impl Send + 'static, late: &str) {
    end_within(Duration::from_secs(1), move || drop(part), late).await;
}

/// How long the end waits for files that are being completed.
const FILES_MAX: Duration = Duration::from_secs(5);

/// Longest time that the end waits for files to be uploaded.
const UPLOAD_MAX: Duration = Duration::from_secs(10);

async fn end_within(wait_max: Duration, end: impl FnOnce() + Send + 'static, late: &str) {
    let ended = tokio::task::spawn_blocking(end);
    if tokio::time::timeout(wait_max, ended).await.is_err() {
        tracing::warn!("{late}");
    }
}

/// Parts for rollouts in a process that remembers none.
fn judge(
    config: &Config,
    feedback: &Feedback,
    serving: &Arc<Serving>,
    monitor: &Arc<Monitor>,
    lifecycle: &Lifecycle,
    workers: usize,
) -> rollout::Parts {
    rollout::Parts {
        lifecycle: lifecycle.handle(),
        serving: Arc::clone(serving),
        monitor: Arc::clone(monitor),
        feedback: feedback.clone(),
        state: None,
        records: Vec::new(),
        drafts: drafts(config),
        blamed: Vec::new(),
        validation: config.validation,
        workers,
        random,
    }
}

/// Starts what sends events to webhooks.
fn notifier(
    (settings, state): (notify::Settings, Option<State>),
    serving: &Arc<Serving>,
    monitor: &Arc<Monitor>,
    rollouts: &rollout::Running,
) -> anyhow::Result<Notifier> {
    let serving = Arc::clone(serving);
    let version = move |model: &ModelName, version: Option<VersionId>| {
        let table = serving.table();
        let model = table.model(model)?;
        let is_meant = |found: &&Arc<Version>| version.is_none_or(|id| found.id() == id);
        let found = model.ready().find(is_meant).filter(|_| version.is_some());
        let found = found.or_else(|| model.answering().filter(is_meant))?;
        Some((found.id(), found.parts().digest.clone()))
    };
    let parts = notify::Parts {
        settings,
        monitor: Arc::clone(monitor),
        state,
        rollouts: rollouts.handle(),
        version: Box::new(version),
        variables: |name| std::env::var(name).ok(),
        random,
    };
    Notifier::start(parts).context("notifications have no thread")
}

/// The data plane, as the configuration wants it.
fn plane(
    config: Config,
    serving: &Arc<Serving>,
    monitor: &Arc<Monitor>,
    lifecycle: &Lifecycle,
    (joining, key): (&Joining, PredictionKey),
    access: Option<&AccessLog>,
) -> Plane {
    let repository = repository_api(&config, serving, lifecycle);
    let plane = Plane::new(
        config.edge,
        Arc::clone(serving),
        Arc::clone(monitor),
        with_outcomes(repository_service(repository), joining.handle()),
        Naming { key, process: random() },
    );
    plane.telling(access.map(AccessLog::access))
}

/// The protocol's repository API, as the configuration allows it.
fn repository_api(config: &Config, serving: &Arc<Serving>, lifecycle: &Lifecycle) -> RepositoryApi {
    RepositoryApi {
        serving: Arc::clone(serving),
        lifecycle: lifecycle.handle(),
        enabled: config.repository_api,
        local: config.edge.http.ip().is_loopback(),
        uploads: config.uploads.allowed.then_some(UploadLimits {
            bytes_max: config.uploads.bytes_max,
            files_max: config.uploads.files_max,
        }),
    }
}

/// The admin plane keeps its clients to the data plane's times.
fn admin_limits(config: &Config) -> admin::Limits {
    let limits = &config.edge.limits;
    admin::Limits {
        connections_max: config.admin.connections_max,
        header_timeout: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        write_timeout: limits.write_timeout,
    }
}

/// CPUs that this process may use: its affinity and its cgroup's quota.
fn cpu_budget() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Random bits; not a secret.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    // The keys of a new hasher are random.
    std::hash::RandomState::new().build_hasher().finish()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Signal {
    Terminate,
    Interrupt,
    Hangup,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        }
    }
}

struct Signals {
    /// Heard and passed over: a limit on the size of files is a failed write, not the end of the process.
    _file_size: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
    /// True if a hangup means that the terminal is gone, and with it whoever started the server by hand.
    terminal: bool,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let signal = |kind| tokio::signal::unix::signal(kind).context("signals cannot be handled");
        Ok(Self {
            _file_size: signal(SignalKind::from_raw(libc::SIGXFSZ))?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            terminal: std::io::stdin().is_terminal() || std::io::stdout().is_terminal(),
        })
    }

    /// Waits for load balancers, which must see readiness fail before connections are refused; a second signal ends
    /// the wait.
    async fn wait_before_refusing(&mut self, first: Signal, wait_max: Duration) {
        if first == Signal::Terminate {
            let _ = tokio::time::timeout(wait_max, self.wait()).await;
        }
    }

    /// The next signal that asks to stop. Those by which daemons are asked to read something again are told and passed
    /// over: by default they would end the process with its requests.
    async fn wait(&mut self) -> Signal {
        loop {
            let passed_over = tokio::select! {
                _ = self.terminate.recv() => return Signal::Terminate,
                _ = self.interrupt.recv() => return Signal::Interrupt,
                _ = self.hangup.recv() => "SIGHUP",
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
            };
            if passed_over == "SIGHUP" && self.terminal {
                return Signal::Hangup;
            }
            tracing::warn!(
                signal = passed_over,
                "passed over: the configuration is read at the start only; to change it, restart the server"
            );
        }
    }
}

/// The running admin listener.
struct AdminServer {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl AdminServer {
    async fn stop(self) {
        self.stop.send_replace(true);
        // Its last answers are health checks; nobody waits for a slow reader of them.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.task).await;
    }
}

async fn start_admin(
    address: SocketAddr,
    admin: Admin,
    limits: admin::Limits,
) -> anyhow::Result<(SocketAddr, AdminServer)> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address with --admin")
    })?;
    let address = listener.local_addr().context("the admin listener has no address")?;
    let router = admin.router(address.ip().is_loopback());
    let (stop, mut stopped) = watch::channel(false);
    let task = tokio::spawn(admin::serve(listener, router, limits, async move {
        // A sender that is gone asks to stop, too.
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    Ok((address, AdminServer { stop, task }))
}

/// The ready line: a log line where logs are JSON, and a request to paste where people look.
fn announce(serving: &Serving, http: SocketAddr, admin: SocketAddr, logs: &Logs) {
    let (http, admin) = (format!("http://{http}"), format!("http://{admin}"));
    let table = serving.table();
    let models = table.models();
    let ready: Vec<_> =
        models.iter().filter_map(|model| model.answering().map(|version| &**version)).collect();
    let example = ready
        .iter()
        .filter_map(|version| example_request(version))
        .min_by_key(|(elements, request)| (*elements, request.len()))
        .map(|(_, request)| request);
    let example = example.map_or_else(
        || format!("curl -s {http}/v2"),
        |request| {
            let (model, body) = request.split_once(' ').unwrap_or_default();
            format!("curl -s {http}/v2/models/{model}/infer -d '{body}'")
        },
    );
    let obstacles = serving.obstacles();
    if logs.is_json() {
        let (serving, known) = (ready.len(), models.len());
        if obstacles.is_empty() {
            tracing::info!(http, admin, models = serving, known, example, "ready");
        } else {
            tracing::warn!(
                http,
                admin,
                models = serving,
                known,
                reasons = obstacles.join("; "),
                "listening, not ready"
            );
        }
        return;
    }
    let state = if obstacles.is_empty() { "ready" } else { "listening, not ready" };
    let mut text = format!("\ntidegate {state}: {http} (Open Inference Protocol), admin {admin}\n");
    for obstacle in &obstacles {
        text += &format!("  not ready: {obstacle}\n");
    }
    for model in &models {
        text += &model_line(model);
    }
    if models.is_empty() && obstacles.is_empty() {
        text += "  no models yet: put one at <repository>/<model>/1/model.onnx, it is noticed at once\n";
    }
    text += &format!("\n  try: {example}\n\n");
    logs.say(&text);
}

fn model_line(model: &crate::serve::Model) -> String {
    let ready: Vec<_> = model.ready().map(|version| version.id().to_string()).collect();
    if ready.is_empty() {
        if model.standing().is_some() {
            return format!("  {:<24} loads on demand\n", model.name.as_str());
        }
        let reason = model.versions.last().map(|entry| entry.reason.as_str());
        let reason = model.problem.as_deref().or(reason).unwrap_or("it has no versions");
        return format!("  {:<24} not served: {reason}\n", model.name.as_str());
    }
    format!("  {:<24} version {}\n", model.name.as_str(), ready.join(", "))
}

/// Elements of a request that people would still paste.
const ELEMENTS_MAX: usize = 64;

/// A request that any shell can send: the number of elements in it, and `model body`.
fn example_request(version: &Version) -> Option<(usize, String)> {
    let mut elements = 0;
    let mut inputs = Vec::new();
    for spec in &version.signature().inputs {
        let (count, input) = example_input(spec)?;
        elements += count;
        inputs.push(input);
    }
    let body = format!("{{\"inputs\":[{}]}}", inputs.join(","));
    (elements <= ELEMENTS_MAX).then(|| (elements, format!("{} {body}", version.parts().model)))
}

fn example_input(spec: &TensorSpec) -> Option<(usize, String)> {
    let dims: Vec<i64> =
        spec.protocol_dims().iter().map(|dim| if *dim < 0 { 1 } else { *dim }).collect();
    let count = Shape::new(&dims)?.element_count().filter(|count| *count <= ELEMENTS_MAX)?;
    let value = match spec.datatype {
        DataType::Bytes => "\"what a wonderful day\"",
        DataType::Bool => "true",
        DataType::Fp16 | DataType::Bf16 => return None,
        _ => "1",
    };
    // A name that would need escaping in JSON or in the shell makes no good example.
    let plain = spec.name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:/".contains(c));
    let data = vec![value; count].join(",");
    let shape = dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    plain.then(|| {
        let text = format!(
            "{{\"name\":\"{}\",\"shape\":[{shape}],\"datatype\":\"{}\",\"data\":[{data}]}}",
            spec.name, spec.datatype
        );
        (count, text)
    })
}

fn monitor(config: &Config, workers: usize, logs: &Logs) -> Arc<Monitor> {
    let monitor = Monitor::new(workers, Arc::new(SystemClock)).shown(config.metrics.clone());
    monitor.upkeep().drops_lines(logs.dropped());
    Arc::new(monitor)
}

fn log_totals(monitor: &Monitor, complete: bool) {
    let log = |model: &ModelName, version: &str, arm: &str, totals: &VersionTotals| {
        tracing::info!(
            %model,
            version,
            arm,
            success = totals.success,
            failed = totals.failed,
            rows = totals.rows,
            codes = codes(&totals.codes),
            "final totals"
        );
    };
    for model in monitor.models() {
        let totals = model.look(monitor.clock().unix());
        for (version, recorder) in totals.versions {
            for (arm, recorder) in recorder.arms() {
                let totals = recorder.totals();
                // Every version has the arms that it might answer on.
                if !totals.codes.is_empty() {
                    log(model.name(), &version.to_string(), arm.as_str(), &totals);
                }
            }
        }
        if let Some(retired) = totals.retired {
            log(model.name(), "retired", "", &retired.totals);
        }
        if !totals.unanswered.is_empty() {
            let codes = codes(&totals.unanswered);
            tracing::info!(model = %model.name(), codes, "final totals of requests without a version");
        }
    }
    if complete {
        tracing::info!("stopped");
    } else {
        tracing::warn!("stopped; requests that outlived server.grace were cut off");
    }
}

/// `200=17 400=3`
fn codes(counts: &[(Code, u64)]) -> String {
    let each = counts.iter().map(|(code, count)| format!("{}={count}", code.status()));
    each.collect::<Vec<_>>().join(" ")
}
