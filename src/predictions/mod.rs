//! The table of predictions: sampled predictions as Parquet files that any tool reads.
//!
//! Workers leave sampled predictions in a queue (`serve`); one thread, `predictions`, turns each row into one row of
//! the table of its version and writes files. Always true:
//! - A file with the ending `.parquet` is complete: it was written elsewhere, synced and then renamed.
//! - Files of one folder have the same columns: a folder is a model's version.
//! - What cannot be written is dropped and counted; memory and files are bounded. A process that is killed loses what
//!   is not in a complete file.
//!
//! In reading order: `columns` turns tensors into columns, `files` is the folder, `writer` is the thread; `upload`
//! moves complete files to an object store; `find` looks a prediction up.
//!
//! Not here: which predictions are sampled (`serve`).

mod columns;
mod files;
mod find;
mod upload;
mod writer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

pub use files::{FileError, is_begun_by, stamp};
pub use find::{Cells, Found, find};
pub use upload::{Store, Uploading, Waker};

use crate::{
    model::ModelName,
    monitor::Monitor,
    serve::{SampleSettings, Samples},
};

/// Limits of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Share of the predictions of models that say nothing else, 0 to 1.
    pub share: f64,
    /// The folder; `None` for `predictions` below the state's.
    pub path: Option<PathBuf>,
    /// The address in an object store that complete files are moved to.
    pub upload: Option<String>,
    /// Bytes of a file, about.
    pub rotate_bytes: u64,
    /// Time for which rows go to the same file.
    pub rotate_every: Duration,
    /// Bytes of all files together, beyond which the oldest are removed.
    pub keep_bytes: u64,
    /// Predictions that wait for the thread.
    pub waiting_max: usize,
    /// Bytes of their inputs and outputs.
    pub waiting_bytes_max: usize,
    /// Values per row of a version up to which each has a column of its own.
    pub columns_max: usize,
}

/// The operator's word about one model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// Share of its predictions, 0 to 1; `None` for that of [`Settings`].
    pub share: Option<f64>,
    /// Features, inputs and outputs whose values are not written.
    pub redacted: Vec<String>,
}

impl Default for Settings {
    /// Nothing is sampled.
    fn default() -> Self {
        Self {
            share: 0.0,
            path: None,
            upload: None,
            rotate_bytes: 64 << 20,
            rotate_every: Duration::from_mins(15),
            keep_bytes: 10 << 30,
            waiting_max: 4096,
            waiting_bytes_max: 64 << 20,
            columns_max: 256,
        }
    }
}

impl Settings {
    /// The folder of the table, for a server whose state is there.
    #[must_use]
    pub fn folder(&self, state: &Path) -> PathBuf {
        self.path.clone().unwrap_or_else(|| state.join("predictions"))
    }

    /// The queue for predictions; `None` if none is sampled.
    #[must_use]
    pub fn samples(&self, policies: &BTreeMap<ModelName, Policy>) -> Option<Arc<Samples>> {
        let share = |(name, policy): (&ModelName, &Policy)| Some((name.clone(), policy.share?));
        let shares: BTreeMap<_, _> = policies.iter().filter_map(share).collect();
        let is_on = self.share > 0.0 || shares.values().any(|share| *share > 0.0);
        is_on.then(|| {
            Arc::new(Samples::new(SampleSettings {
                share: self.share,
                shares,
                waiting_max: self.waiting_max,
                bytes_max: self.waiting_bytes_max,
            }))
        })
    }
}

/// Parts of the process that the table needs.
#[derive(Debug)]
pub struct Parts {
    /// The queue of sampled predictions.
    pub samples: Arc<Samples>,
    /// The clock, and where a panic is told.
    pub monitor: Arc<Monitor>,
    /// The folder of the table.
    pub folder: PathBuf,
    /// Limits.
    pub settings: Settings,
    /// The operator's word about each model.
    pub policies: BTreeMap<ModelName, Policy>,
    /// Tells the files of this process from those of others in the same folder.
    pub process: u64,
    /// Told of complete files, where they are uploaded.
    pub waker: Option<Waker>,
}

/// The thread that writes the table; it completes its files when this is dropped.
#[derive(Debug)]
pub struct Recording {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recording {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("predictions".to_owned()).spawn(move || {
                let monitor = Arc::clone(&parts.monitor);
                let run = || writer::Writer::new(parts).run(&stopped);
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                    monitor.upkeep().broke("the thread that writes the table of predictions");
                }
            })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // a panic has been told already
        }
    }
}
