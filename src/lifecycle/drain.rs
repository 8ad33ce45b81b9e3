//! Waits until what left the table is used by nobody, then has it freed.
//!
//! Always true:
//! - What is freed is found by no request any more, and the last request that found it has let go.
//! - It is freed once, and by the one who waits here: no request ever is the last to hold it.
//!
//! Not here: the thread that waits and what else is done with what is freed (`reclaim`).

use std::sync::Arc;

/// A handle of something that others may use, too.
pub(super) trait Handle {
    /// Whether it is the last one. Once it is, it stays the last: nobody can make another from nothing.
    fn is_unused(&self) -> bool;
}

/// What comes in.
pub(super) enum Next<T> {
    /// This left the table.
    Retired(T),
    /// Nothing left it for a while.
    Nothing,
    /// Nothing will leave it any more.
    End,
}

impl<T> Handle for Arc<T> {
    fn is_unused(&self) -> bool {
        Self::strong_count(self) == 1
    }
}

/// Takes what `next` gives and hands it to `free` once nobody uses it; what is still used at the end, its users free.
///
/// `next` is told whether anything waits: if so, it must come back soon, with or without something new.
pub(super) fn drain<T: Handle>(
    mut next: impl FnMut(bool) -> Next<T>,
    mut free: impl FnMut(Vec<T>),
) {
    let mut waiting: Vec<T> = Vec::new();
    loop {
        match next(!waiting.is_empty()) {
            Next::Retired(retired) => waiting.push(retired),
            Next::Nothing => {}
            Next::End => return,
        }
        let (unused, used): (Vec<_>, Vec<_>) = waiting.into_iter().partition(Handle::is_unused);
        waiting = used;
        if !unused.is_empty() {
            free(unused);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Every order in which requests, publishes and the freeing thread can get in each other's way, as far as a seeded
    //! search gets: the real table, the real look-up and run, the real drain, on threads that `shuttle` schedules.

    use std::{
        borrow::Cow,
        collections::{BTreeMap, HashMap},
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering::SeqCst},
        },
        time::{Duration, Instant},
    };

    use shuttle::{
        future::block_on,
        sync::mpsc::{self, Receiver, TryRecvError},
        thread,
    };

    use crate::{
        engine::{RunError, Session},
        model::{
            InferRequest, Input, ModelDescription, ModelName, PredictionId, Signature, TensorSpec,
            VersionId, VersionSelector, VersionState,
        },
        monitor::{Clock, Monitor, Outcome, WorkerId},
        serve::{
            Asked, Entry, Lease, Model, NotRouted, RouteError, Serving, Settings, Table, Version,
            VersionParts, Watch, Wish,
        },
        tensor::{Data, DataType, Shape, Tensor},
    };

    use super::*;

    /// Threads that send requests.
    const CLIENTS: usize = 2;
    /// Requests of each.
    const REQUESTS: usize = 2;
    /// Publishes after the first.
    const SWAPS: u64 = 2;
    /// Schedules that are tried.
    const SCHEDULES: usize = 3_000;

    /// Answers with the version's number, after others had their turn; tells who freed it.
    struct Numbered {
        signature: Signature,
        id: u64,
        freed: Arc<Freed>,
    }

    /// Which threads freed sessions of which versions.
    #[derive(Default)]
    struct Freed(Mutex<Vec<(u64, thread::ThreadId)>>);

    #[derive(Debug)]
    struct StoppedClock;

    impl Session for Numbered {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn run(&mut self, _: Cow<'_, [Input]>, _: &[usize]) -> Result<Vec<Tensor>, RunError> {
            thread::yield_now();
            let answer = Data::Int64(vec![self.id.cast_signed()]);
            Ok(vec![Tensor::new(Shape::new(&[1]).unwrap(), answer).unwrap()])
        }
    }

    impl Drop for Numbered {
        fn drop(&mut self) {
            self.freed.0.lock().unwrap().push((self.id, thread::current().id()));
        }
    }

    impl Clock for StoppedClock {
        fn now(&self) -> Instant {
            Instant::now()
        }

        fn unix(&self) -> Duration {
            Duration::ZERO
        }
    }

    struct House {
        serving: Serving,
        watches: Vec<Arc<Watch>>,
        monitor: Arc<Monitor>,
        freed: Arc<Freed>,
    }

    impl House {
        fn new() -> Arc<Self> {
            let clock: Arc<dyn Clock> = Arc::new(StoppedClock);
            let serving = Serving::new(Settings::default(), Arc::clone(&clock));
            let watch = |client| serving.watchdog().watch(WorkerId(client));
            Arc::new(Self {
                watches: (0..CLIENTS).map(watch).collect(),
                serving,
                monitor: Arc::new(Monitor::new(CLIENTS, clock)),
                freed: Arc::default(),
            })
        }

        fn version(&self, id: u64) -> Arc<Version> {
            let label = TensorSpec {
                name: "label".to_owned(),
                datatype: DataType::Int64,
                dims: Some(vec![1]),
                view: None,
            };
            let signature =
                Signature { inputs: Vec::new(), outputs: vec![label], ..Signature::default() };
            let id = VersionId::new(id);
            let recorder = self.monitor.version(&name(), id);
            let description = ModelDescription { max_batch_size: Some(0), ..Default::default() };
            let parts = VersionParts {
                description: Arc::new(description),
                ..VersionParts::new(name(), id, signature.clone(), recorder)
            };
            let id = id.number();
            let session = || -> Box<dyn Session> {
                let freed = Arc::clone(&self.freed);
                Box::new(Numbered { signature: signature.clone(), id, freed })
            };
            Arc::new(Version::new(parts, (0..CLIENTS).map(|_| session()).collect()))
        }

        /// Publishes a table with this version, or with one that is loaded on demand; gives the table before it.
        fn publish(&self, id: u64, version: Option<Arc<Version>>) -> Arc<Table> {
            let entry = Entry {
                id: VersionId::new(id),
                state: VersionState::Ready,
                reason: String::new(),
                on_demand: version.is_none(),
                decided: false,
                version,
            };
            let model = Model {
                name: name(),
                recorder: self.monitor.model(&name()),
                versions: vec![entry],
                default: Some(VersionId::new(id)),
                aliases: BTreeMap::new(),
                pinned: None,
                problem: None,
                traffic: None,
                traffic_revision: 0,
                route_override: false,
                held_back: None,
            };
            let models = HashMap::from([(name(), Arc::new(model))]);
            self.serving.publish(Table::new(models, true, Arc::default()))
        }

        /// Looks up and runs as a worker does: the version that answered.
        fn answer(&self, client: usize) -> Result<u64, RouteError> {
            let table = self.serving.table();
            thread::yield_now();
            let now = StoppedClock.now();
            let asked = Asked {
                trace: None,
                watch: &self.watches[client],
                client: None,
                model: "m",
                selector: VersionSelector::Default,
                route: None,
                key: None,
                id: PredictionId::from_bits(client as u128),
                arrived: now,
                waited: Duration::ZERO,
                deadline: now + Duration::from_mins(1),
            };
            let mut call = match self.serving.call(&table, &asked) {
                Ok(call) => call,
                Err(NotRouted::Route(error)) => return Err(error),
                Err(NotRouted::Busy(_) | NotRouted::Settling) => panic!("all is there"),
            };
            thread::yield_now();
            let done = call.run(&mut InferRequest::default()).unwrap();
            let Data::Int64(answer) = done.outputs[0].data() else { panic!("an INT64") };
            thread::yield_now();
            let version = call.finish(Outcome::Ok).version.number();
            assert_eq!(answer[0].cast_unsigned(), version, "never a mixed answer");
            Ok(version)
        }
    }

    fn name() -> ModelName {
        ModelName::parse("m").unwrap()
    }

    enum Retired {
        Table(Arc<Table>),
        Version(Arc<Version>),
    }

    impl Handle for Retired {
        fn is_unused(&self) -> bool {
            match self {
                Self::Table(table) => table.is_unused(),
                Self::Version(version) => version.is_unused(),
            }
        }
    }

    /// Drains until everything has been freed: the end comes when nothing comes in and nothing waits.
    fn drain_all(incoming: &Receiver<Retired>) {
        let next = |waits: bool| {
            if !waits {
                return incoming.recv().map_or(Next::End, Next::Retired);
            }
            thread::yield_now();
            match incoming.try_recv() {
                Ok(retired) => Next::Retired(retired),
                // Whoever holds what waits lets go of it.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => Next::Nothing,
            }
        };
        drain(next, drop);
    }

    #[test]
    fn a_swap_is_seen_by_all_that_follows_and_frees_after_the_last_request() {
        let check = || {
            let house = House::new();
            drop(house.publish(1, Some(house.version(1))));
            let published = Arc::new(AtomicU64::new(1));
            let (retire, retired) = mpsc::channel();
            let drains = thread::spawn(move || {
                drain_all(&retired);
                thread::current().id()
            });
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (house, published) = (Arc::clone(&house), Arc::clone(&published));
                    thread::spawn(move || {
                        for _ in 0..REQUESTS {
                            let acknowledged = published.load(SeqCst);
                            thread::yield_now();
                            let answered = house.answer(client).unwrap();
                            assert!(
                                answered >= acknowledged,
                                "sent after {acknowledged} was acknowledged, answered by {answered}"
                            );
                        }
                    })
                })
                .collect();
            for id in 2..2 + SWAPS {
                let old = {
                    let table = house.serving.table();
                    Arc::clone(table.route("m", VersionSelector::Default).unwrap())
                };
                let before = house.publish(id, Some(house.version(id)));
                published.store(id, SeqCst);
                thread::yield_now();
                retire.send(Retired::Table(before)).unwrap();
                retire.send(Retired::Version(old)).unwrap();
            }
            for client in clients {
                client.join().unwrap();
            }
            drop(retire);
            let reclaim = drains.join().unwrap();
            let freed = house.freed.0.lock().unwrap();
            let expected: Vec<_> = (1..=SWAPS).flat_map(|id| [(id, reclaim); CLIENTS]).collect();
            let mut sorted = freed.clone();
            sorted.sort_by_key(|(id, _)| *id);
            assert_eq!(sorted, expected, "each old session once, by the thread that frees");
        };
        shuttle::check_random(check, SCHEDULES);
        shuttle::check_pct(check, SCHEDULES, 3);
    }

    #[test]
    fn who_waits_for_a_version_is_woken_and_finds_it() {
        let check = || {
            let house = House::new();
            drop(house.publish(1, None));
            let (wish, wishes) = mpsc::channel::<Wish>();
            let wish = Mutex::new(wish);
            house.serving.demand().grant_by(move |wanted| {
                let wish = wish.lock().unwrap().clone();
                thread::yield_now();
                wish.send(wanted).unwrap();
            });
            let (retire, retired) = mpsc::channel();
            let drains = thread::spawn(move || drain_all(&retired));
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let house = Arc::clone(&house);
                    thread::spawn(move || {
                        let (model, id) = (name(), VersionId::new(1));
                        // Loaded by another's wish, perhaps.
                        let Err(asleep) = house.answer(client) else { return };
                        assert!(matches!(asleep, RouteError::Asleep { .. }), "{asleep}");
                        thread::yield_now();
                        let lease = block_on(house.serving.demand().wait(&model, id)).unwrap();
                        thread::yield_now();
                        let found = house.answer(client);
                        drop(lease);
                        assert_eq!(found.unwrap(), 1, "a lease keeps it in the table");
                    })
                })
                .collect();
            // Each wish is granted with the version in the table; it is evicted as soon as nobody holds a lease.
            let keeper = Arc::clone(&house);
            let keeps = thread::spawn(move || {
                let lease = Lease::default();
                let mut loaded = false;
                loop {
                    match wishes.try_recv() {
                        Ok(wish) => {
                            if !loaded {
                                retire
                                    .send(Retired::Table(
                                        keeper.publish(1, Some(keeper.version(1))),
                                    ))
                                    .unwrap();
                                loaded = true;
                            }
                            wish.grant(lease.clone());
                        }
                        Err(TryRecvError::Empty) if loaded && !lease.is_held() => {
                            let version = {
                                let table = keeper.serving.table();
                                Arc::clone(table.route("m", VersionSelector::Default).unwrap())
                            };
                            retire.send(Retired::Table(keeper.publish(1, None))).unwrap();
                            retire.send(Retired::Version(version)).unwrap();
                            loaded = false;
                        }
                        Err(TryRecvError::Empty) => {}
                        Err(TryRecvError::Disconnected) => return,
                    }
                    thread::yield_now();
                    if Arc::strong_count(&keeper) == 2 && !loaded {
                        return;
                    }
                }
            });
            for client in clients {
                client.join().unwrap();
            }
            keeps.join().unwrap();
            drains.join().unwrap();
            assert_eq!(house.serving.demand().waiting(), 0);
        };
        shuttle::check_random(check, SCHEDULES);
        shuttle::check_pct(check, SCHEDULES, 3);
    }
}
