//! The listener: one acceptor, a worker per CPU of the budget, and the drain.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    os::fd::AsRawFd as _,
    pin::pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
};

use crate::{
    monitor::WorkerId,
    serve::{Listed, Serving, Spare, Watch, is_spare_missing},
};

use super::{
    connection::{self, Watched},
    worker::{Plane, Worker},
};

/// The data plane, listening.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    workers: Threads,
    stage: watch::Sender<Stage>,
    serving: Arc<Serving>,
}

/// The threads of the workers, by their number.
type Threads = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// The data plane could not listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}; choose another address with --http, or port 0 for any free one"
)]
pub struct ListenerError {
    address: SocketAddr,
    source: std::io::Error,
}

/// How far the shutdown is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// Connections are still accepted; answers end theirs.
    Leaving,
    /// No new connections; requests in flight finish, connections that have been quiet for a while close.
    Draining,
    /// Whatever is left is cut off.
    Ending,
}

/// A worker as the acceptor sees it.
struct Seat {
    /// `None` once nothing is accepted any more: the worker ends when it has no connection left.
    sockets: Option<mpsc::Sender<Socket>>,
    open: Arc<AtomicUsize>,
    /// Connections by address; goes with the seat, so that a lost worker's count no more.
    addresses: Arc<PerAddress>,
    watch: Arc<Watch>,
}

/// An accepted socket on its way to a worker.
struct Socket {
    /// First, so that it is off the list when the socket closes.
    listed: Listed,
    stream: std::net::TcpStream,
    seat: Place,
}

/// A connection's place in the counts, given back when it ends.
struct Place {
    open: Arc<AtomicUsize>,
    address: Option<(IpAddr, Arc<PerAddress>)>,
}

type PerAddress = Mutex<HashMap<IpAddr, usize>>;

/// The pause between two looks at whether a worker has come back, or has ended.
const LOOK: Duration = Duration::from_millis(5);

/// Sockets that may wait for a worker; it takes them as fast as it can turn.
const HANDOFF_MAX: usize = 1024;

impl Listener {
    /// Binds, starts the workers, and accepts on the current tokio runtime.
    pub async fn start(plane: Arc<Plane>, workers: usize) -> Result<Self, ListenerError> {
        let address = plane.settings().http;
        let failed = |source| ListenerError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stage, stages) = watch::channel(Stage::Serving);
        let serving = Arc::clone(plane.serving());
        // As many as may be lost before anybody reads of them; more would be lost twice.
        let (losses, lost) = mpsc::channel(workers.max(1));
        let told = losses.clone();
        serving.watchdog().on_loss(move |worker| {
            if told.try_send(worker).is_err() {
                tracing::error!(worker = worker.0, "nobody takes the place of a worker");
            }
        });
        let start = Start { plane: Arc::clone(&plane), workers, stages: stages.clone() };
        let (mut seats, mut threads) = (Vec::new(), Vec::new());
        for id in 0..workers {
            let (seat, thread) = start.worker(WorkerId(id), 0).map_err(failed)?;
            threads.push(thread);
            seats.push(seat);
        }
        let threads = Arc::new(Mutex::new(threads));
        let limits = &plane.settings().limits;
        let acceptor = Acceptor {
            seats,
            start,
            threads: Arc::clone(&threads),
            losses,
            connections_max: limits
                .connections_max
                .map_or_else(connections_by_descriptors, Into::into),
            per_address_max: limits.connections_per_ip_max,
        };
        tokio::spawn(acceptor.run(listener, stages, lost));
        Ok(Self { address, workers: threads, stage, serving })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes every answer from now on the last of its connection, while new ones are still accepted.
    pub fn leave(&self) {
        self.stage.send_replace(Stage::Leaving);
    }

    /// Stops accepting, lets requests in flight finish until `grace` has passed, and ends the workers.
    ///
    /// Gives whether everything finished in time.
    pub async fn drain(self, grace: Duration) -> bool {
        self.stage.send_replace(Stage::Draining);
        // Looked at and not joined: one that is lost meanwhile may never end, and another takes its place in the list.
        let ended = async || {
            while !lock(&self.workers).iter().all(JoinHandle::is_finished) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(grace, ended()).await.is_ok() {
            return true;
        }
        // A worker in the midst of a run hears of the stage when that has ended.
        self.serving.watchdog().end_all();
        self.stage.send_replace(Stage::Ending);
        let _ = tokio::time::timeout(Duration::from_millis(500), ended()).await;
        false
    }
}

/// Half of the file descriptors: the rest is for models, state and the admin plane.
fn connections_by_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(16 * 1024)
}

/// Starts workers.
struct Start {
    plane: Arc<Plane>,
    workers: usize,
    stages: watch::Receiver<Stage>,
}

impl Start {
    /// Starts a worker; `lost` connections of the one before it are counted as closed.
    fn worker(&self, id: WorkerId, lost: usize) -> std::io::Result<(Seat, JoinHandle<()>)> {
        let (sockets, incoming) = mpsc::channel(HANDOFF_MAX);
        let watch = self.plane.serving().watchdog().watch(id);
        let (plane, stages, workers) = (Arc::clone(&self.plane), self.stages.clone(), self.workers);
        let (open, addresses) = (Arc::default(), Arc::default());
        let seat = Seat { sockets: Some(sockets), open, addresses, watch: Arc::clone(&watch) };
        let thread = std::thread::Builder::new()
            .name(format!("worker-{}", id.0))
            .spawn(move || work(Worker::new(plane, watch, workers), lost, incoming, stages))?;
        Ok((seat, thread))
    }
}

/// Lets no connection begin on a listener from now on. The client's kernel tries again after a second, and is refused
/// then; it never takes a connection for made that nobody accepts.
#[cfg(target_os = "linux")]
fn refuse_to_begin(listener: &TcpListener) {
    use socket2::SockFilter;
    /// Where TCP's flags stand in its header (RFC 9293, 3.1); the first segment has SYN and not ACK.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    // Classic BPF (linux/filter.h): load the flags, keep these two, drop what has SYN alone, take the rest.
    let filter = [
        SockFilter::new(0x30, 0, 0, FLAGS),
        SockFilter::new(0x54, 0, 0, SYN | ACK),
        SockFilter::new(0x15, 0, 1, SYN),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    if let Err(error) = socket2::SockRef::from(listener).attach_filter(&filter) {
        // Then a few clients may be reset that connect in this very moment.
        tracing::debug!(%error, "the listener takes no filter");
    }
}

/// Elsewhere there is no such filter; a few clients may be reset that connect in the last moment.
#[cfg(not(target_os = "linux"))]
fn refuse_to_begin(_: &TcpListener) {}

struct Acceptor {
    seats: Vec<Seat>,
    start: Start,
    threads: Threads,
    /// Tells itself once more of a worker whose place could not be taken.
    losses: mpsc::Sender<WorkerId>,
    connections_max: usize,
    per_address_max: Option<NonZeroUsize>,
}

impl Acceptor {
    async fn run(
        mut self,
        listener: TcpListener,
        mut stages: watch::Receiver<Stage>,
        mut lost: mpsc::Receiver<WorkerId>,
    ) {
        let mut spare = Spare::of("the data plane");
        loop {
            spare.take_back();
            let accepted = tokio::select! {
                // Those whom no worker could answer wait in the kernel.
                accepted = listener.accept(), if self.has_room() => accepted,
                () = tokio::time::sleep(LOOK), if !self.has_room() => continue,
                Some(worker) = lost.recv() => {
                    self.replace(worker);
                    continue;
                }
                _ = stages.wait_for(|stage| *stage >= Stage::Draining) => break,
            };
            match accepted {
                Ok((stream, peer)) if !is_spare_missing() => self.seat(stream, peer.ip()),
                Ok((stream, _)) => self.refuse(stream),
                // Out of descriptors, most likely: those in use must close before another fits.
                Err(error) => {
                    if let Some(stream) = spare.accept(&listener, &error).await {
                        self.refuse(stream);
                    }
                }
            }
        }
        self.accept_the_last(&listener).await;
        drop(listener);
        // Workers may be lost until the last of them has ended.
        loop {
            self.seats.iter_mut().for_each(|seat| seat.sockets = None);
            tokio::select! {
                Some(worker) = lost.recv() => self.replace(worker),
                _ = stages.wait_for(|stage| *stage >= Stage::Ending) => return,
            }
        }
    }

    /// True if a worker takes connections that is not stuck in a run.
    fn has_room(&self) -> bool {
        self.seats.iter().any(|seat| !seat.watch.is_overdue())
    }

    /// Accepts whoever is connected already: closing the listener would reset them, perhaps with a request on its way.
    async fn accept_the_last(&self, listener: &TcpListener) {
        /// A handshake that has begun ends within a round trip.
        const HANDSHAKE: Duration = Duration::from_millis(20);
        refuse_to_begin(listener);
        let deadline = tokio::time::sleep(HANDSHAKE);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.seat(stream, peer.ip()),
                    Err(_) => return,
                },
                () = &mut deadline => return,
            }
        }
    }

    /// Lets a fresh worker take the place of one that does not come back.
    fn replace(&mut self, id: WorkerId) {
        let Some(seat) = self.seats.get_mut(id.0) else { return };
        let lost = seat.watch.open();
        let (fresh, thread) = match self.start.worker(id, lost) {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(worker = id.0, %error, "the place of a worker cannot be taken yet");
                let again = self.losses.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    // Nobody hears it once the server stops.
                    let _ = again.send(id).await;
                });
                return;
            }
        };
        // Also those that were on their way to it.
        seat.watch.shut_down();
        self.start.plane.serving().replaced(&seat.watch);
        self.start.plane.monitor().server().worker_lost();
        tracing::error!(
            worker = id.0,
            connections = lost,
            "a worker did not come back from a run and was given up with its connections; another takes its place"
        );
        *seat = fresh;
        let mut threads = lock(&self.threads);
        if let Some(place) = threads.get_mut(id.0) {
            // The thread that was there ends when its run does, if ever.
            drop(std::mem::replace(place, thread));
        }
    }

    /// Hands a socket to the worker with the fewest, of those that are not stuck in a run.
    fn seat(&self, stream: TcpStream, address: IpAddr) {
        let Ok(stream) = stream.into_std() else { return };
        let total: usize = self.seats.iter().map(|seat| seat.open.load(Relaxed)).sum();
        if total >= self.connections_max {
            return self.turn_away(&stream);
        }
        if self.per_address_max.is_some_and(|max| self.of_address(address) >= max.get()) {
            return self.turn_away(&stream);
        }
        let load = |seat: &&Seat| (seat.watch.is_overdue(), seat.open.load(Relaxed));
        let Some(seat) = self.seats.iter().min_by_key(load) else { return };
        let Some(sockets) = &seat.sockets else { return self.turn_away(&stream) };
        seat.open.fetch_add(1, Relaxed);
        let address = self.per_address_max.is_some().then(|| {
            *lock(&seat.addresses).entry(address).or_default() += 1;
            (address, Arc::clone(&seat.addresses))
        });
        let place = Place { open: Arc::clone(&seat.open), address };
        let listed = seat.watch.list(stream.as_raw_fd());
        if let Err(refused) = sockets.try_send(Socket { listed, stream, seat: place }) {
            self.turn_away(&refused.into_inner().stream);
        }
    }

    fn refuse(&self, stream: TcpStream) {
        if let Ok(stream) = stream.into_std() {
            self.turn_away(&stream);
        }
    }

    /// Counts the connection, says why in one write, without waiting; it ends when it is dropped.
    fn turn_away(&self, mut stream: &std::net::TcpStream) {
        use std::io::Write as _;
        self.start.plane.monitor().server().turned_away();
        let body = r#"{"error":"too many connections; try again"}"#;
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // The client may be gone; there is nobody else to tell.
        let _ = stream.write(answer.as_bytes());
    }

    /// Connections of this address.
    fn of_address(&self, address: IpAddr) -> usize {
        let of = |seat: &Seat| lock(&seat.addresses).get(&address).copied().unwrap_or(0);
        self.seats.iter().map(of).sum()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        let Some((address, counts)) = &self.address else { return };
        let mut counts = lock(counts);
        if let Some(count) = counts.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(address);
            }
        }
    }
}

/// The life of a worker.
fn work(
    worker: Worker,
    lost: usize,
    sockets: mpsc::Receiver<Socket>,
    stages: watch::Receiver<Stage>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a worker cannot start"),
    };
    let worker = Rc::new(worker);
    worker.inherit(lost);
    tokio::task::LocalSet::new().block_on(&runtime, turn(worker, sockets, stages));
}

type Connections = Rc<Open>;

/// A worker's open connections.
#[derive(Default)]
struct Open {
    watched: RefCell<HashMap<u64, Rc<Watched>>>,
    /// Told when one ends.
    ended: Notify,
}

async fn turn(
    worker: Rc<Worker>,
    mut sockets: mpsc::Receiver<Socket>,
    mut stages: watch::Receiver<Stage>,
) {
    let connections: Connections = Rc::default();
    let runtime = tokio::runtime::Handle::current().metrics();
    // After a long run one look is enough, so that the next pause begins with the look.
    let mut sweep = pin!(tokio::time::sleep(Duration::ZERO));
    let (mut count, mut rests, mut ending, mut handed_over) = (0u64, false, false, false);
    loop {
        tokio::select! {
            // Whatever it still holds is dropped with the runtime.
            () = worker.ended() => return,
            socket = sockets.recv(), if !handed_over => match socket {
                // On its way to a worker that was given up: nobody counts it here any more.
                Some(_) if worker.is_given_up() => return,
                Some(socket) => {
                    if std::mem::take(&mut rests) {
                        sweep.set(tokio::time::sleep(sweep_interval(&worker)));
                    }
                    count += 1;
                    open(&worker, &connections, count, socket);
                }
                // Falls through: without a connection nothing else would wake this up before the next sweep.
                None => handed_over = true,
            },
            () = &mut sweep => {
                worker.tick();
                worker.pace(&runtime);
                let watched = connections.watched.borrow();
                watched.values().for_each(|watched| watched.sweep(&worker));
                worker.rest();
                rests = watched.is_empty();
                let pause = if rests { REST } else { sweep_interval(&worker) };
                sweep.set(tokio::time::sleep(pause));
            }
            () = connections.ended.notified(), if worker.is_draining() => {}
            changed = stages.changed(), if !ending => {
                let stage = if changed.is_err() { Stage::Ending } else { *stages.borrow_and_update() };
                ending = stage == Stage::Ending;
                if stage == Stage::Leaving { worker.leave() } else { worker.drain() }
                if ending {
                    sockets.close();
                }
                for watched in connections.watched.borrow().values() {
                    if ending { watched.end() } else { watched.wake() }
                }
            }
        }
        if worker.is_draining()
            && (handed_over || ending)
            && connections.watched.borrow().is_empty()
        {
            return;
        }
    }
}

/// How often the sweeper looks while no connection's time could be over: only how busy the worker was fades meanwhile.
const REST: Duration = Duration::from_secs(4);

/// How often the sweeper looks: often enough that no timeout is late by more than a quarter.
fn sweep_interval(worker: &Worker) -> Duration {
    let limits = worker.limits();
    let shortest = limits.header_timeout.min(limits.idle_timeout);
    let shortest = shortest.min(limits.write_timeout).min(limits.linger);
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
}

/// Takes a connection out of the books when it ends, also by a panic.
struct Ending {
    worker: Rc<Worker>,
    connections: Connections,
    key: u64,
    _seat: Place,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.worker.connection_closed();
        self.connections.watched.borrow_mut().remove(&self.key);
        self.connections.ended.notify_one();
    }
}

fn open(worker: &Rc<Worker>, connections: &Connections, key: u64, socket: Socket) {
    let Socket { listed, stream, seat } = socket;
    let stream = match stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a connection was lost before it began"),
    };
    // It may have waited for the end of a long run, and is not to be blamed for that.
    worker.tick();
    let watched = Rc::new(Watched::new(worker.now_ms()));
    connections.watched.borrow_mut().insert(key, Rc::clone(&watched));
    let (worker, connections) = (Rc::clone(worker), Rc::clone(connections));
    worker.connection_opened();
    let socket = connection::Socket { _listed: listed, stream: TokioIo::new(stream) };
    let ending = Ending { worker: Rc::clone(&worker), connections, key, _seat: seat };
    tokio::task::spawn_local(async move {
        let _ending = ending;
        connection::serve(worker, socket, watched).await;
    });
}
