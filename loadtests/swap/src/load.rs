//! The load: many connections that ask all the time, or at a given rate, and judge every answer.
//!
//! Always true:
//! - What was acknowledged is read before a request's first byte is handed to the connection, so a late answer is late.
//! - At a rate, latency counts from when a request was due, also where every connection was busy then.
//! - A request is counted once: as right, failed, dropped, mixed or late.
//!
//! Not here: the swaps (`swapping`), what a right answer is (`truth`).

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, client::conn, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::Notify, task::LocalSet};

use crate::truth::{self, Answer, Question, Verdict};

/// Width of a step of the latency plot.
pub(crate) const STEP: Duration = Duration::from_millis(100);
/// How long after an acknowledgement latencies still count as those of a swap.
pub(crate) const SWAP_TAIL: Duration = Duration::from_millis(100);
/// How long an answer may take before it counts as dropped.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Requests on one HTTP/2 connection at a time.
const STREAMS: usize = 8;
const EXAMPLES_MAX: usize = 10;
const JSON_LENGTH: &str = "inference-header-content-length";

/// How requests are sent.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    pub(crate) connections: usize,
    pub(crate) h2_connections: usize,
    pub(crate) threads: usize,
    /// Requests per second; `None`: each connection asks again as soon as it has its answer.
    pub(crate) rate: Option<f64>,
    /// Out of 1.
    pub(crate) binary_share: f64,
    pub(crate) weights: u64,
}

/// What a moment's latencies count towards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing.
    WarmUp = 0,
    /// The steady state before any swap.
    Before = 1,
    /// Swap windows and what lies between.
    Swapping = 2,
}

/// What load and swaps tell each other.
#[derive(Debug)]
pub(crate) struct Scene {
    /// Times count from here.
    pub(crate) began: Instant,
    address: SocketAddr,
    acknowledged: AtomicU64,
    newest: AtomicU64,
    phase: AtomicU8,
    /// When the last swap window ends, in nanoseconds; the largest number while a swap is under way.
    window_end: AtomicU64,
    stop: AtomicBool,
    pub(crate) answered: AtomicU64,
    pub(crate) wrong: AtomicU64,
}

/// What came of the requests.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) right: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    pub(crate) mixed: u64,
    pub(crate) late: u64,
    /// Requests that were due and for which no connection was free until the end.
    pub(crate) unsent: u64,
    /// Latencies in nanoseconds.
    pub(crate) before: Histogram<u64>,
    pub(crate) steady: Histogram<u64>,
    pub(crate) swap: Histogram<u64>,
    /// By when a request was due, from `Scene::began` on.
    pub(crate) steps: Vec<Histogram<u32>>,
    /// The first few things that went wrong.
    pub(crate) examples: Vec<String>,
}

impl Scene {
    pub(crate) fn new(address: SocketAddr, began: Instant) -> Arc<Self> {
        Arc::new(Self {
            began,
            address,
            acknowledged: AtomicU64::new(1),
            newest: AtomicU64::new(1),
            phase: AtomicU8::new(Phase::WarmUp as u8),
            window_end: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
        })
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, SeqCst);
    }

    /// A swap window begins; from now on this version may answer, if one is given.
    pub(crate) fn swap_begins(&self, newest: Option<u64>) {
        self.window_end.store(u64::MAX, SeqCst);
        if let Some(newest) = newest {
            self.newest.store(newest, SeqCst);
        }
    }

    /// It is acknowledged: from now on no older version may answer what is sent.
    pub(crate) fn acknowledge(&self, version: u64) {
        self.acknowledged.store(version, SeqCst);
    }

    /// The swap is over, and so its window is soon.
    pub(crate) fn swap_ends(&self) {
        self.window_end.store(self.now() + nanoseconds(SWAP_TAIL), SeqCst);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, SeqCst);
    }

    fn now(&self) -> u64 {
        nanoseconds(self.began.elapsed())
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            right: 0,
            failed: 0,
            dropped: 0,
            mixed: 0,
            late: 0,
            unsent: 0,
            before: histogram(),
            steady: histogram(),
            swap: histogram(),
            steps: Vec::new(),
            examples: Vec::new(),
        }
    }

    /// Requests that did not go as they should.
    pub(crate) fn wrong(&self) -> u64 {
        self.failed + self.dropped + self.mixed + self.late
    }

    fn count(&mut self, scene: &Scene, due: u64, outcome: Outcome) {
        scene.answered.fetch_add(1, SeqCst);
        let (count, example) = match outcome {
            Outcome::Judged(Verdict::Right) => (&mut self.right, None),
            Outcome::Judged(Verdict::Mixed(what)) => (&mut self.mixed, Some(("mixed", what))),
            Outcome::Judged(Verdict::Late(what)) => (&mut self.late, Some(("late", what))),
            Outcome::Failed(what) => (&mut self.failed, Some(("failed", what))),
            Outcome::Dropped(what) => (&mut self.dropped, Some(("dropped", what))),
        };
        *count += 1;
        let now = scene.now();
        if let Some((kind, what)) = example {
            scene.wrong.fetch_add(1, SeqCst);
            if self.examples.len() < EXAMPLES_MAX {
                self.examples.push(format!("{:.3} s: {kind}: {what}", now as f64 / 1e9));
            }
        }
        self.time(scene, due, now);
    }

    fn time(&mut self, scene: &Scene, due: u64, now: u64) {
        let latency = now.saturating_sub(due).max(1);
        let phase = scene.phase.load(SeqCst);
        if phase == Phase::Before as u8 {
            self.before.saturating_record(latency);
        } else if phase == Phase::Swapping as u8 {
            // Windows come one after another: what was due before the last one ended met it, or one before it.
            let met_swap = due <= scene.window_end.load(SeqCst);
            let histogram = if met_swap { &mut self.swap } else { &mut self.steady };
            histogram.saturating_record(latency);
        } else {
            return;
        }
        let step = usize::try_from(u128::from(due) / STEP.as_nanos()).unwrap_or(usize::MAX);
        // A week of load; more would be a mistake.
        if step < 6_048_000 {
            while self.steps.len() <= step {
                self.steps.push(step_histogram());
            }
            self.steps[step].saturating_record(latency);
        }
    }

    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.failed += other.failed;
        self.dropped += other.dropped;
        self.mixed += other.mixed;
        self.late += other.late;
        self.unsent += other.unsent;
        let same = "all histograms have the same bounds";
        self.before.add(other.before).expect(same);
        self.steady.add(other.steady).expect(same);
        self.swap.add(other.swap).expect(same);
        while self.steps.len() < other.steps.len() {
            self.steps.push(step_histogram());
        }
        for (step, other) in self.steps.iter_mut().zip(other.steps) {
            step.add(other).expect(same);
        }
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 120_000_000_000, 3).expect("the bounds are valid constants")
}

/// Coarser, because there are many.
fn step_histogram() -> Histogram<u32> {
    let mut histogram = Histogram::new(2).expect("two digits are valid");
    histogram.auto(true);
    histogram
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The clients at work.
#[derive(Debug)]
pub(crate) struct Load(Vec<JoinHandle<Result<Tally>>>);

impl Load {
    /// Starts the clients.
    pub(crate) fn start(scene: &Arc<Scene>, pattern: &Pattern) -> Result<Self> {
        let mut threads = Vec::new();
        for index in 0..pattern.threads {
            let (scene, share) = (Arc::clone(scene), pattern.of_thread(index));
            let thread = thread::Builder::new().name(format!("client-{index}"));
            threads.push(thread.spawn(move || client(&scene, &share, index))?);
        }
        Ok(Self(threads))
    }

    /// Waits until every request is answered, once the scene has stopped.
    pub(crate) fn finish(self) -> Result<Tally> {
        let mut whole = Tally::new();
        for thread in self.0 {
            whole.add(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(whole)
    }
}

impl Pattern {
    fn of_thread(&self, index: usize) -> Self {
        let part = |whole: usize| whole / self.threads + usize::from(index < whole % self.threads);
        let rate = self.rate.map(|rate| rate / self.threads as f64);
        let (connections, h2_connections) = (part(self.connections), part(self.h2_connections));
        Self { connections, h2_connections, rate, ..self.clone() }
    }
}

/// One thread of clients.
struct Client {
    scene: Arc<Scene>,
    pattern: Pattern,
    tally: RefCell<Tally>,
    numbers: RefCell<u64>,
    /// When requests are due that no connection has taken, in nanoseconds.
    due: RefCell<VecDeque<u64>>,
    more_due: Notify,
    path: String,
}

fn client(scene: &Arc<Scene>, pattern: &Pattern, index: usize) -> Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Rc::new(Client {
        scene: Arc::clone(scene),
        pattern: pattern.clone(),
        tally: RefCell::new(Tally::new()),
        numbers: RefCell::new((index as u64) << 48),
        due: RefCell::new(VecDeque::new()),
        more_due: Notify::new(),
        path: format!("/v2/models/{}/infer", truth::MODEL),
    });
    let tasks = LocalSet::new();
    let mut askers = Vec::new();
    for _ in 0..pattern.connections {
        askers.push(tasks.spawn_local(Rc::clone(&client).ask_all(None)));
    }
    for _ in 0..pattern.h2_connections {
        let shared = Rc::new(tokio::sync::Mutex::new(None));
        for _ in 0..STREAMS {
            askers.push(tasks.spawn_local(Rc::clone(&client).ask_all(Some(Rc::clone(&shared)))));
        }
    }
    tasks.block_on(&runtime, async {
        if let Some(rate) = pattern.rate {
            client.fall_due(rate).await;
        }
        for asker in askers {
            asker.await.context("a connection's task panicked")?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    drop(tasks);
    let client = Rc::into_inner(client).context("no task is left that holds the client")?;
    let mut tally = client.tally.into_inner();
    tally.unsent = client.due.borrow().len() as u64;
    Ok(tally)
}

/// A connection of either kind.
enum Sender {
    One(conn::http1::SendRequest<Full<Bytes>>),
    Two(conn::http2::SendRequest<Full<Bytes>>),
}

type Shared = Rc<tokio::sync::Mutex<Option<conn::http2::SendRequest<Full<Bytes>>>>>;

enum Outcome {
    Judged(Verdict),
    /// An answer other than 200, or a broken connection.
    Failed(String),
    /// No answer.
    Dropped(String),
}

impl Client {
    /// Says when requests are due. It looks at the clock all the time: timers are too coarse, so it needs a core.
    async fn fall_due(&self, rate: f64) {
        let begin = self.scene.now();
        let mut number = 0_u64;
        while !self.scene.stop.load(SeqCst) {
            let now = self.scene.now();
            loop {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a time"
                )]
                let due = begin + (number as f64 * 1e9 / rate) as u64;
                if due > now {
                    break;
                }
                self.due.borrow_mut().push_back(due);
                self.more_due.notify_one();
                number += 1;
            }
            tokio::task::yield_now().await;
        }
        self.more_due.notify_waiters();
    }

    /// When the next request of a connection is due; `None` at the end.
    async fn next_due(&self) -> Option<u64> {
        loop {
            if self.scene.stop.load(SeqCst) {
                return None;
            }
            if self.pattern.rate.is_none() {
                return Some(self.scene.now());
            }
            let woken = self.more_due.notified();
            if let Some(due) = self.due.borrow_mut().pop_front() {
                return Some(due);
            }
            woken.await;
        }
    }

    async fn ask_all(self: Rc<Self>, shared: Option<Shared>) {
        let mut sender = None;
        while let Some(due) = self.next_due().await {
            let outcome = match &mut sender {
                Some(connected) => self.ask(connected).await,
                none => match self.connect(shared.as_ref()).await {
                    Ok(connected) => self.ask(none.insert(connected)).await,
                    Err(error) => {
                        // Not to spin where nobody listens.
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        Outcome::Failed(format!("no connection: {error}"))
                    }
                },
            };
            if matches!(outcome, Outcome::Failed(_) | Outcome::Dropped(_)) {
                sender = None;
            }
            self.tally.borrow_mut().count(&self.scene, due, outcome);
        }
    }

    async fn connect(&self, shared: Option<&Shared>) -> Result<Sender> {
        let Some(shared) = shared else {
            let (sender, driver) = conn::http1::handshake(self.socket().await?).await?;
            tokio::task::spawn_local(driver);
            return Ok(Sender::One(sender));
        };
        let mut shared = shared.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(Sender::Two(sender.clone()));
        }
        let socket = self.socket().await?;
        let (sender, driver) = conn::http2::handshake(TokioExecutor::new(), socket).await?;
        tokio::task::spawn_local(driver);
        *shared = Some(sender.clone());
        Ok(Sender::Two(sender))
    }

    async fn socket(&self) -> Result<TokioIo<TcpStream>> {
        let socket = TcpStream::connect(self.scene.address).await?;
        socket.set_nodelay(true)?;
        Ok(TokioIo::new(socket))
    }

    async fn ask(&self, sender: &mut Sender) -> Outcome {
        let number = *self.numbers.borrow();
        *self.numbers.borrow_mut() += 1;
        let question = Question::new(number, self.pattern.weights);
        // By the low digits, so that shares are met exactly and not by chance.
        let binary = ((number % 100) as f64) < self.pattern.binary_share * 100.0;
        let request = match self.request(&question, binary, matches!(sender, Sender::Two(_))) {
            Ok(request) => request,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let is_ready = match sender {
            Sender::One(sender) => sender.ready().await,
            Sender::Two(sender) => sender.ready().await,
        };
        if let Err(error) = is_ready {
            return Outcome::Failed(format!("the connection was closed: {error}"));
        }
        // Before the first byte goes out.
        let acknowledged = self.scene.acknowledged.load(SeqCst);
        let answer = async {
            let response = match sender {
                Sender::One(sender) => sender.send_request(request).await?,
                Sender::Two(sender) => sender.send_request(request).await?,
            };
            let (head, body) = response.into_parts();
            Ok::<_, hyper::Error>(Response::from_parts(head, read(body).await?))
        };
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Err(_) => Outcome::Dropped(format!("no answer within {ANSWER_MAX:?}")),
            Ok(Err(error)) if error.is_incomplete_message() || error.is_canceled() => {
                Outcome::Dropped(format!("closed without an answer: {error}"))
            }
            Ok(Err(error)) => Outcome::Failed(error.to_string()),
            Ok(Ok(response)) => self.judge(&question, &response, acknowledged),
        }
    }

    fn request(&self, question: &Question, binary: bool, h2: bool) -> Result<Request<Full<Bytes>>> {
        let request = if h2 {
            Request::post(format!("http://{}{}", self.scene.address, self.path))
        } else {
            Request::post(&*self.path).header(header::HOST, "tidegate")
        };
        let (request, body) = if binary {
            let (body, json_bytes) = question.binary();
            (request.header(JSON_LENGTH, json_bytes), body)
        } else {
            (request, question.json().into_bytes())
        };
        Ok(request.body(Full::new(Bytes::from(body)))?)
    }

    fn judge(&self, question: &Question, response: &Response<Bytes>, acknowledged: u64) -> Outcome {
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        if response.status() != 200 {
            let body = String::from_utf8_lossy(response.body());
            return Outcome::Failed(format!("{}: {body}", response.status()));
        }
        let json_bytes = text(JSON_LENGTH).and_then(|length| length.parse().ok());
        let answer = match Answer::read(response.body(), json_bytes) {
            Ok(answer) => answer,
            Err(error) => {
                return Outcome::Failed(format!("an answer that cannot be read: {error}"));
            }
        };
        let newest = self.scene.newest.load(SeqCst);
        let header = text("x-tidegate-version");
        Outcome::Judged(question.judge(header, &answer, acknowledged, newest))
    }
}

async fn read(body: Incoming) -> hyper::Result<Bytes> {
    Ok(body.collect().await?.to_bytes())
}
