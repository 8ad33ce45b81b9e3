//! Frees what left the table: on a thread of its own, once the last request has let go.
//!
//! A worker that answers the last request of a large model must not be the one that frees it, nor the one
//! that drops a table of ten thousand models.

use std::{
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

/// Below what answers requests.
const NICE: i32 = 5;

/// How often it is looked whether requests have let go.
const LOOK: Duration = Duration::from_millis(5);

impl Reclaim {
    /// Starts the thread; `freed` is called after a version is gone.
    pub(super) fn start(
        monitor: Arc<Monitor>,
        freed: impl Fn(ModelName, VersionId) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (retired, incoming) = mpsc::channel();
        let counted = Arc::clone(&monitor);
        let thread = std::thread::Builder::new().name("reclaim".to_owned()).spawn(move || {
            // Freeing can wait, answers cannot; where it fails, it is only less polite.
            let _ = rustix::process::nice(NICE);
            run(&incoming, &counted, &freed);
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

fn run(
    incoming: &mpsc::Receiver<Retired>,
    monitor: &Monitor,
    freed: &dyn Fn(ModelName, VersionId),
) {
    let mut waiting: Vec<Retired> = Vec::new();
    loop {
        let next = if waiting.is_empty() {
            incoming.recv().map_err(mpsc::RecvTimeoutError::from)
        } else {
            incoming.recv_timeout(LOOK)
        };
        match next {
            Ok(retired) => waiting.push(retired),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // The process ends: what requests still hold, they free.
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let (unused, used): (Vec<_>, Vec<_>) = waiting.into_iter().partition(Retired::is_unused);
        waiting = used;
        let mut gone = Vec::new();
        for retired in unused {
            if let Retired::Version(version) = &retired {
                let parts = version.parts();
                gone.push((parts.model.clone(), version.id(), parts.size_bytes));
            }
            drop(retired);
        }
        if !gone.is_empty() {
            engine::hand_back_memory();
        }
        for (model, id, bytes) in gone {
            monitor.upkeep().freed(bytes);
            freed(model, id);
        }
    }
}

impl Retired {
    /// Whether this is the last handle: nobody can make another one from nothing.
    fn is_unused(&self) -> bool {
        match self {
            Self::Table(table) => Arc::strong_count(table) == 1,
            Self::Version(version) => Arc::strong_count(version) == 1,
        }
    }
}
