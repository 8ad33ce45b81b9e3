//! A run: steady load, then one new version after the other under that load, then a look at what is left.
//!
//! A *swap window* lasts from the moment at which a version is put up to [`SWAP_TAIL`] after its acknowledgement.
//! What is due outside of the windows is steady. Always true:
//! - A version counts as acknowledged only once the server's whole answer has been read.
//! - Memory before and after is measured alike: one version loaded, no request under way, the connections closed.
//!
//! Not here: sending requests (`load`), showing what came of them (`report`).

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Options,
    load::{Load, Pattern, Phase, SWAP_TAIL, Scene, Tally},
    memory::{Process, Sample},
    server::Server,
    truth,
};

/// How long an unloaded server may settle before it is measured.
const REST: Duration = Duration::from_secs(2);
/// A swap that takes longer has failed.
const ACKNOWLEDGED_MAX: Duration = Duration::from_mins(1);

/// One swap, or one bad candidate; times in seconds since the load began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Swap {
    pub(crate) put_up: f64,
    pub(crate) acknowledged: f64,
}

/// All that a run found out.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Requests per second of a closed loop, where a rate was made of it.
    pub(crate) peak: Option<f64>,
    /// The rate that was asked for.
    pub(crate) rate: Option<f64>,
    /// Requests per second over the whole run.
    pub(crate) throughput: f64,
    pub(crate) tally: Tally,
    pub(crate) swaps: Vec<Swap>,
    /// Swaps that the server refused, or bad candidates that it took; why the run ended early.
    pub(crate) problems: Vec<String>,
    /// One version loaded, after a warm-up: the first. Then after every tenth swap, and at last without load.
    pub(crate) samples: Vec<Sample>,
    /// Resident bytes over time, in seconds.
    pub(crate) resident: Vec<(f64, u64)>,
    pub(crate) peak_bytes: u64,
}

/// Runs what the options say.
pub(crate) fn run(options: &Options) -> Result<Findings> {
    let weights = options.weights();
    let mut server = options.launch().start(&files(1, weights))?;
    let (pattern, peak) = warm_up(&server, options)?;
    let process = Process::new(server.id());
    thread::sleep(REST);

    let scene = Scene::new(server.address, Instant::now());
    let mut samples = vec![process.sample(0, 0.0)?];
    let every = Duration::from_millis(if weights > 0 { 5 } else { 50 });
    let watch = Watch::start(process.clone(), scene.began, every)?;
    let load = Load::start(&scene, &pattern)?;
    let progress = Progress::new(Arc::clone(&scene), options.swaps);
    hold(&progress, Duration::from_secs(1));
    scene.enter(Phase::Before);
    hold(&progress, Duration::from_secs_f64(options.steady));
    scene.enter(Phase::Swapping);
    let mut series = Series { swaps: Vec::new(), problems: Vec::new() };
    series.run(options, &mut server, &scene, |done| {
        progress.show(done);
        if done % 10 == 0
            && let Ok(sample) = process.sample(done, scene.began.elapsed().as_secs_f64())
        {
            samples.push(sample);
        }
    })?;
    hold(&progress, SWAP_TAIL);
    let took = scene.began.elapsed().as_secs_f64();
    scene.stop();
    let tally = load.finish()?;
    progress.done();
    thread::sleep(REST);
    if server.ended()?.is_none() {
        samples.push(process.sample(series.swaps.len(), scene.began.elapsed().as_secs_f64())?);
    }
    let (peak_bytes, resident) = (process.peak(), watch.finish()?);
    let Series { swaps, mut problems } = series;
    if server.ended()?.is_none() {
        let status = server.stop()?;
        if !status.success() {
            problems.push(format!("the server ended with {status} after SIGTERM"));
        }
    }
    let throughput = scene.answered.load(SeqCst) as f64 / took;
    let rate = pattern.rate;
    Ok(Findings { peak, rate, throughput, tally, swaps, problems, samples, resident, peak_bytes })
}

/// Loads the server before anything counts; the pattern of the run, with the rate worked out.
fn warm_up(server: &Server, options: &Options) -> Result<(Pattern, Option<f64>)> {
    let mut pattern = options.pattern();
    let seconds = if options.rate_share.is_some() { 5.0 } else { 2.0 };
    let scene = Scene::new(server.address, Instant::now());
    let load = Load::start(&scene, &pattern)?;
    thread::sleep(Duration::from_secs_f64(seconds));
    scene.stop();
    let tally = load.finish()?;
    ensure!(tally.wrong() == 0, "wrong before anything was swapped: {:?}", tally.examples);
    ensure!(tally.right > 0, "no request was answered; the server said:\n{}", server.last_words());
    let peak = options.rate_share.map(|_| tally.right as f64 / seconds);
    pattern.rate = options.rate.or(peak.zip(options.rate_share).map(|(peak, share)| peak * share));
    Ok((pattern, peak))
}

fn files(version: u64, weights: u64) -> Vec<(&'static str, Vec<u8>)> {
    vec![("model.onnx", truth::model(version, weights))]
}

fn hold(progress: &Progress, duration: Duration) {
    let end = Instant::now() + duration;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        progress.show(0);
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// One swap after the other.
struct Series {
    swaps: Vec<Swap>,
    problems: Vec<String>,
}

impl Series {
    fn run(
        &mut self,
        options: &Options,
        server: &mut Server,
        scene: &Scene,
        mut after_each: impl FnMut(usize),
    ) -> Result<()> {
        let weights = options.weights();
        for done in 0..options.swaps {
            let version = done as u64 + 2;
            let content =
                options.bad.map_or_else(|| files(version, weights), |bad| bad.files(version));
            server.stage(version, &content)?;
            drop(content);
            let begin = Instant::now();
            let put_up = scene.began.elapsed().as_secs_f64();
            let outcome = if options.bad.is_some() {
                refuse(server, scene, version)
            } else {
                swap(server, scene, version, options.watch)
            };
            scene.swap_ends();
            let acknowledged = scene.began.elapsed().as_secs_f64();
            self.swaps.push(Swap { put_up, acknowledged });
            if let Err(error) = outcome {
                self.problems.push(format!("version {version}: {error:#}"));
            }
            if let Some(status) = server.ended()? {
                let words = server.last_words();
                self.problems.push(format!("the server ended with {status} and said:\n{words}"));
                return Ok(());
            }
            let old = if options.bad.is_some() {
                Some(version)
            } else {
                version.checked_sub(options.keep).filter(|old| *old > 0)
            };
            if let Some(old) = old {
                server.take_down(old)?;
            }
            after_each(done + 1);
            thread::sleep(options.interval().saturating_sub(begin.elapsed()));
        }
        Ok(())
    }
}

/// Puts a version up and waits until it is acknowledged.
fn swap(server: &Server, scene: &Scene, version: u64, watch: bool) -> Result<()> {
    scene.swap_begins(Some(version));
    server.put_up(version)?;
    if watch {
        let deadline = Instant::now() + ACKNOWLEDGED_MAX;
        while !server.is_ready(version)? {
            ensure!(Instant::now() < deadline, "not ready after {ACKNOWLEDGED_MAX:?}");
            thread::sleep(Duration::from_millis(2));
        }
    } else {
        let (status, body) = load(server)?;
        ensure!(status == 200, "the load is answered with {status}: {body}");
    }
    scene.acknowledge(version);
    Ok(())
}

/// Puts a bad candidate up, which must not be taken.
fn refuse(server: &Server, scene: &Scene, version: u64) -> Result<()> {
    scene.swap_begins(None);
    server.put_up(version)?;
    let (status, body) = load(server)?;
    ensure!(status != 200, "the bad candidate was taken: {body}");
    Ok(())
}

fn load(server: &Server) -> Result<(u16, String)> {
    server.post(&format!("/v2/repository/models/{}/load", truth::MODEL), "{}")
}

/// A thread that follows resident memory.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(f64, u64)>>,
}

impl Watch {
    fn start(process: Process, began: Instant, every: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::Builder::new().name("memory".to_owned()).spawn(move || {
            let mut points = Vec::new();
            while !seen.load(SeqCst) {
                if let Some(resident) = process.resident() {
                    points.push((began.elapsed().as_secs_f64(), resident));
                }
                thread::sleep(every);
            }
            points
        })?;
        Ok(Self { stop, thread })
    }

    fn finish(self) -> Result<Vec<(f64, u64)>> {
        self.stop.store(true, SeqCst);
        self.thread.join().ok().context("the thread that watches memory panicked")
    }
}

/// One line on a terminal, nothing elsewhere.
struct Progress {
    scene: Arc<Scene>,
    swaps: usize,
    on_terminal: bool,
}

impl Progress {
    fn new(scene: Arc<Scene>, swaps: usize) -> Self {
        Self { scene, swaps, on_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, done: usize) {
        const WIDTH: usize = 30;
        if !self.on_terminal {
            return;
        }
        let filled = WIDTH * done / self.swaps.max(1);
        let bar = "#".repeat(filled) + &".".repeat(WIDTH - filled);
        let answered = self.scene.answered.load(SeqCst);
        let wrong = self.scene.wrong.load(SeqCst);
        let seconds = self.scene.began.elapsed().as_secs();
        let swaps = self.swaps;
        eprint!("\r[{bar}] {done}/{swaps} swaps, {seconds} s, {answered} answers, {wrong} wrong ");
        let _ = std::io::stderr().flush();
    }

    fn done(&self) {
        if self.on_terminal {
            eprint!("\r\x1b[2K");
        }
    }
}
