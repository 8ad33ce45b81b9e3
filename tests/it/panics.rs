//! A bug in the control plane: it is seen by whoever watches the process, and costs no prediction.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc};

use axum::{body::Body, response::Response};
use tidegate::{
    admin::Admin,
    app::SystemClock,
    drift::Drift,
    engine::{self, Engines},
    feedback::{self, Joining},
    lifecycle::{Lifecycle, Loader, Operation, OperationError},
    model::{ModelName, PredictionKey, VersionSelector},
    monitor::Monitor,
    notify::{self, Notifier},
    registry::{Cause, Entry, Journal, Registry, Unrecorded},
    rollout,
    serve::{self, Serving},
    source,
};
use tower::ServiceExt as _;

use crate::repository::Repository;

/// A journal with a bug.
#[derive(Debug)]
struct Broken;

impl Journal for Broken {
    fn write(&mut self, _: &[Entry]) -> Result<(), Unrecorded> {
        panic!("a bug")
    }
}

async fn ask(admin: &Admin, path: &str) -> (u16, String) {
    let request = http::Request::get(path).header("host", "127.0.0.1").body(Body::empty());
    let answer: Response = admin.clone().router(true).oneshot(request.unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// The control plane over a repository, without sockets.
pub(crate) struct Plane {
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) serving: Arc<Serving>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) joining: Joining,
    pub(crate) rollouts: rollout::Running,
}

impl Plane {
    pub(crate) async fn over(repository: &Repository, registry: Registry) -> Self {
        let monitor = Arc::new(Monitor::new(1, Arc::new(SystemClock)));
        let clock = Arc::clone(monitor.clock());
        let serving = Arc::new(Serving::new(serve::Settings::default(), clock));
        let loader = Loader {
            blame: None,
            drift: None,
            samples: None,
            engines: Engines::open(&engine::Settings::default()).unwrap(),
            monitor: Arc::clone(&monitor),
            sessions: 1,
            intra_op_threads: 1,
            run_memory_max: 1 << 30,
            warmup_runs: 1,
            chosen: BTreeMap::new(),
            answers: BTreeMap::new(),
            spare_prover: false,
            loads_at_once: NonZeroUsize::MIN,
            loads_at_start: NonZeroUsize::MIN,
            prover: None,
            store: None,
            artifact_bytes_max: 1 << 30,
            body_bytes_max: 1 << 26,
        };
        let mut lifecycle = Lifecycle::start(
            source::Settings::new(repository.path()),
            loader,
            Arc::clone(&serving),
            registry,
            BTreeMap::new(),
            (None, false),
        )
        .unwrap();
        lifecycle.first_pass().await;
        let joining = Joining::start(feedback::Parts {
            serving: Arc::clone(&serving),
            monitor: Arc::clone(&monitor),
            state: None,
            key: PredictionKey::new([1, 2]),
            workers: 1,
            settings: feedback::Settings::default(),
            policies: BTreeMap::new(),
            samples: None,
        })
        .unwrap();
        let rollouts = rollout::Running::start(rollout::Parts {
            lifecycle: lifecycle.handle(),
            serving: Arc::clone(&serving),
            monitor: Arc::clone(&monitor),
            feedback: joining.handle(),
            state: None,
            records: Vec::new(),
            drafts: BTreeMap::new(),
            blamed: Vec::new(),
            validation: tidegate::validation::Settings::default(),
            workers: 1,
            random: || 7,
        })
        .unwrap();
        Self { monitor, serving, lifecycle, joining, rollouts }
    }
}

#[tokio::test]
async fn a_panic_of_the_keeper_fails_livez_and_no_prediction() {
    let repository = Repository::of(&["add_sub"]);
    let registry = Registry::replay([], Some(Box::new(Broken)));
    let Plane { monitor, serving, lifecycle, joining, rollouts: running } =
        Plane::over(&repository, registry).await;
    let handle = lifecycle.handle();
    let notifier = Notifier::start(notify::Parts {
        settings: notify::Settings::default(),
        monitor: Arc::clone(&monitor),
        state: None,
        rollouts: running.handle(),
        version: Box::new(|_, _| None),
        variables: |_| None,
        random: || 7,
    })
    .unwrap();
    let admin = Admin {
        serving: Arc::clone(&serving),
        drift: Drift::plain(&monitor),
        monitor,
        lifecycle: handle.clone(),
        rollouts: running.handle(),
        feedback: joining.handle(),
        notifications: notifier.handle(),
        samples: None,
        random: || 7,
    };
    assert_eq!(ask(&admin, "/livez").await, (200, "ok\n".to_owned()));

    let unload = || {
        let model = ModelName::parse("add_sub").unwrap();
        handle.operate(model, Operation::Unload, false, Cause::by("test"))
    };
    // The one who meets the bug may be told before the thread has ended.
    assert!(unload().await.is_err());
    let (status, text) = loop {
        let live = ask(&admin, "/livez").await;
        if live.0 != 200 {
            break live;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(status, 503);
    assert!(text.contains("ended in a panic") && text.contains("restart"), "{text}");
    assert_eq!(unload().await, Err(OperationError::Broken));
    assert!(ask(&admin, "/readyz?verbose").await.1.contains("ended in a panic"));
    assert!(serving.table().route("add_sub", VersionSelector::Default).is_ok());
}
