//! Frees what left the table: on a thread of its own, once the last request has let go.
//!
//! A worker that answers the last request of a large model must not be the one that frees it, nor the one
//! that drops a table of ten thousand models.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    engine,
    model::{ModelName, VersionId},
    monitor::Monitor,
    serve::{Table, Version},
};

use super::drain::{Handle, Next, drain};

/// The thread that frees.
#[derive(Debug)]
pub(super) struct Reclaim {
    retired: Option<mpsc::Sender<Retired>>,
    thread: Option<JoinHandle<()>>,
    monitor: Arc<Monitor>,
}

/// Something that left the table.
pub(super) enum Retired {
    Table(Arc<Table>),
    Version(Arc<Version>),
}

/// A version that is gone.
#[derive(Debug)]
pub(super) struct Freed {
    pub(super) model: ModelName,
    pub(super) id: VersionId,
    /// What it was taken to occupy, in bytes.
    pub(super) cost_bytes: u64,
}

/// Below what answers requests.
const NICE: i32 = 5;

/// How often it is looked whether requests have let go.
const LOOK: Duration = Duration::from_millis(5);

impl Reclaim {
    /// Starts the thread; `freed` is called after a version is gone.
    pub(super) fn start(
        monitor: Arc<Monitor>,
        freed: impl Fn(Freed) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (retired, incoming) = mpsc::channel();
        let counted = Arc::clone(&monitor);
        let thread = std::thread::Builder::new().name("reclaim".to_owned()).spawn(move || {
            // Freeing can wait, answers cannot; where it fails, it is only less polite.
            let _ = rustix::process::nice(NICE);
            let run = || run(&incoming, &counted, &freed);
            // What it held is freed by the panic; what comes is freed as before.
            while catch_unwind(AssertUnwindSafe(run)).is_err() {
                counted.upkeep().broke("the thread that frees versions");
            }
        })?;
        Ok(Self { retired: Some(retired), thread: Some(thread), monitor })
    }

    /// Takes something to be freed.
    pub(super) fn take(&self, retired: Retired) {
        if let Retired::Version(version) = &retired {
            self.monitor.upkeep().retired(version.parts().size_bytes);
        }
        if let Some(thread) = &self.retired {
            // Without the thread it is freed here.
            let _ = thread.send(retired);
        }
    }
}

impl Drop for Reclaim {
    fn drop(&mut self) {
        drop(self.retired.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(incoming: &mpsc::Receiver<Retired>, monitor: &Monitor, freed: &dyn Fn(Freed)) {
    let next = |waits: bool| {
        let next = if waits {
            incoming.recv_timeout(LOOK)
        } else {
            incoming.recv().map_err(mpsc::RecvTimeoutError::from)
        };
        match next {
            Ok(retired) => Next::Retired(retired),
            Err(mpsc::RecvTimeoutError::Timeout) => Next::Nothing,
            // The process ends.
            Err(mpsc::RecvTimeoutError::Disconnected) => Next::End,
        }
    };
    drain(next, |unused| {
        let versions = unused.iter().filter_map(Retired::version);
        let gone: Vec<_> =
            versions.map(|version| (Freed::of(version), version.parts().size_bytes)).collect();
        drop(unused);
        if !gone.is_empty() {
            engine::hand_back_memory();
        }
        for (version, bytes) in gone {
            monitor.upkeep().freed(bytes);
            freed(version);
        }
    });
}

impl Freed {
    fn of(version: &Version) -> Self {
        Self {
            model: version.parts().model.clone(),
            id: version.id(),
            cost_bytes: version.cost_bytes(),
        }
    }
}

impl Retired {
    fn version(&self) -> Option<&Version> {
        match self {
            Self::Table(_) => None,
            Self::Version(version) => Some(version),
        }
    }
}

impl Handle for Retired {
    fn is_unused(&self) -> bool {
        match self {
            Self::Table(table) => table.is_unused(),
            Self::Version(version) => version.is_unused(),
        }
    }
}
