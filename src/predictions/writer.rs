//! The thread that writes the table: it takes sampled predictions, gathers rows by version and ends files in time.
//!
//! Rows wait in memory until they make a group; a version whose rows make none gets its file only when it is due. Not
//! here: columns (`columns`), names and places of files (`files`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parquet::errors::ParquetError;

use crate::{
    model::{ModelName, VersionId},
    monitor::Monitor,
    serve::{SampleCounts, Sampled, SampledOutcome, Samples, Sampling},
};

use super::{
    Parts, Policy, Settings,
    columns::Columns,
    files::{FileError, Folder, Open},
    upload::Waker,
};

/// Time between two looks at the queue.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes of rows that make a group of a file.
const GROUP_BYTES: usize = 8 << 20;

/// Bytes of rows of all versions that wait to make a group.
const GATHERED_MAX: usize = 64 << 20;

/// Time after a failure in which nothing is tried: rows are dropped.
const PAUSE: Duration = Duration::from_secs(1);

/// Time between two words in the log about failures.
const QUIET: Duration = Duration::from_mins(1);

/// Below what answers requests.
pub(super) const NICE: i32 = 10;

pub(super) struct Writer {
    samples: Arc<Samples>,
    monitor: Arc<Monitor>,
    root: PathBuf,
    process: u64,
    settings: Settings,
    policies: BTreeMap<ModelName, Policy>,
    folder: Option<Folder>,
    tables: HashMap<Key, Table>,
    trouble: Option<Trouble>,
    /// Versions whose redacted names were checked.
    checked: HashSet<(ModelName, VersionId)>,
    waker: Option<Waker>,
}

/// Tables that are apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The predictions of a version: the address of their choice, which the table holds.
    Version(usize),
    /// The outcomes of a model.
    Outcomes(ModelName),
}

/// Rows on their way to a file.
struct Table {
    /// Its folder: the kind of table, the model and the version, or nothing and the model.
    place: Place,
    counts: Arc<SampleCounts>,
    _sampling: Option<Arc<Sampling>>,
    columns: Columns,
    file: Option<Open>,
    since: Duration,
}

type Place = (&'static str, String, String);
type Held = (Arc<SampleCounts>, Option<Arc<Sampling>>);
type Make<'a> = &'a dyn Fn() -> Result<Columns, ParquetError>;

/// A failure to write.
struct Trouble {
    until: Duration,
    told: Duration,
}

impl Table {
    /// Rows that are in no complete file.
    fn rows(&self) -> u64 {
        self.columns.rows() + self.file.as_ref().map_or(0, |file| file.rows)
    }

    fn bytes(&self) -> u64 {
        self.columns.bytes() as u64 + self.file.as_ref().map_or(0, Open::bytes)
    }

    /// Writes the gathered rows as a group.
    fn write(&mut self, folder: &mut Folder, now: Duration) -> Result<(), FileError> {
        let (table, model, name) = &self.place;
        if self.file.is_none() {
            self.file = Some(folder.begin((table, model, name), &self.columns, now)?);
        }
        let file = self.file.as_mut().expect("it was begun");
        if self.columns.rows() > 0 { file.write(&mut self.columns) } else { Ok(()) }
    }
}

impl Writer {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            samples: parts.samples,
            monitor: parts.monitor,
            root: parts.folder,
            process: parts.process,
            settings: parts.settings,
            policies: parts.policies,
            folder: None,
            tables: HashMap::new(),
            trouble: None,
            checked: HashSet::new(),
            waker: parts.waker,
        }
    }

    /// Writes until it is told to stop, and completes all files then.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        // What answers clients goes first; where that fails, the thread is only less polite.
        let _ = rustix::process::nice(NICE);
        let now = self.now();
        // Told at once, not with the first prediction.
        if let Err(error) = self.open_folder() {
            self.fail(&error, now);
        }
        loop {
            let is_last = stop.load(Relaxed);
            while let Some(sampled) = self.samples.take() {
                self.add(&sampled);
            }
            while let Some(outcome) = self.samples.take_outcome() {
                self.add_outcome(&outcome);
            }
            self.end_due(is_last);
            if is_last {
                return;
            }
            std::thread::park_timeout(LOOK);
        }
    }

    fn now(&self) -> Duration {
        self.monitor.clock().unix()
    }

    fn open_folder(&mut self) -> Result<&mut Folder, FileError> {
        if self.folder.is_none() {
            let (folder, lost) =
                Folder::open(self.root.clone(), self.process, self.waker.is_some())?;
            for path in lost {
                let path = path.display();
                tracing::warn!(
                    "`{path}` was not complete when its process was killed; its predictions are lost"
                );
            }
            self.folder = Some(folder);
        }
        Ok(self.folder.as_mut().expect("it was opened"))
    }

    fn add(&mut self, sampled: &Sampled) {
        let (sampling, rows) = (&sampled.sampling, sampled.tensors.rows);
        let key = Key::Version(Arc::as_ptr(sampling) as usize);
        let policy = self.policies.get(&sampling.model);
        let redacted = policy.map_or_else(Vec::new, |policy| policy.redacted.clone());
        let columns_max = self.settings.columns_max;
        let make = || Columns::new(sampling, &redacted, columns_max);
        self.check_redacted(sampling, &redacted);
        let (model, version) = (sampling.model.to_string(), sampling.version.to_string());
        let place = (Samples::PREDICTIONS, model, version);
        let held = (Arc::clone(&sampling.counts), Some(Arc::clone(sampling)));
        self.put(key, rows, (place, held, &make), |columns| columns.add(sampled));
    }

    /// Tells, once for each version, of names that redact nothing: a slip there would write what must not be written.
    fn check_redacted(&mut self, sampling: &Arc<Sampling>, redacted: &[String]) {
        let of = (sampling.model.clone(), sampling.version);
        if redacted.is_empty() || self.checked.contains(&of) {
            return;
        }
        self.checked.insert(of);
        let columns = Columns::new(sampling, redacted, self.settings.columns_max);
        let unknown = columns.as_ref().map(|columns| columns.unknown(sampling, redacted));
        for name in unknown.unwrap_or_default() {
            let Sampling { model, version, .. } = &**sampling;
            tracing::warn!(
                %model,
                %version,
                "models.{model}.predictions.redact names `{name}`, which is no column, input or output of this version, so it                  redacts nothing; `tidegate predictions show` prints the names"
            );
        }
    }

    fn add_outcome(&mut self, outcome: &SampledOutcome) {
        let model = &outcome.model;
        let counts = self.samples.counts_of(model, Samples::OUTCOMES);
        let place = (Samples::OUTCOMES, String::new(), model.to_string());
        let key = Key::Outcomes(model.clone());
        let how = (place, (counts, None), &Columns::outcomes as &dyn Fn() -> _);
        self.put(key, 1, how, |columns| columns.add_outcome(outcome));
    }

    /// Adds rows to a table, which is made where it is missing, and writes what is enough for a group or a file.
    fn put(
        &mut self,
        key: Key,
        rows: u64,
        (place, (counts, sampling), make): (Place, Held, Make<'_>),
        add: impl FnOnce(&mut Columns),
    ) {
        let now = self.now();
        if self.trouble.as_ref().is_some_and(|trouble| now < trouble.until) {
            counts.unwritten.fetch_add(rows, Relaxed);
            return;
        }
        if !self.tables.contains_key(&key) {
            match make() {
                Ok(columns) => {
                    let (file, since) = (None, now);
                    let table = Table { place, counts, _sampling: sampling, columns, file, since };
                    self.tables.insert(key.clone(), table);
                }
                Err(source) => {
                    counts.unwritten.fetch_add(rows, Relaxed);
                    let path = self.root.clone();
                    return self.fail(&FileError::Parquet { path, source }, now);
                }
            }
        }
        let Some(table) = self.tables.get_mut(&key) else { return };
        add(&mut table.columns);
        if table.bytes() >= self.settings.rotate_bytes {
            self.end(&key, now);
        } else if table.columns.bytes() >= GROUP_BYTES {
            let mut table = self.tables.remove(&key).expect("it was just there");
            let written = self.open_folder().and_then(|folder| table.write(folder, now));
            match written {
                Ok(()) => drop(self.tables.insert(key, table)),
                Err(error) => self.lose(&table, &error, now),
            }
        }
        self.bound(now);
    }

    /// Ends files of the versions that have most, until all have room.
    fn bound(&mut self, now: Duration) {
        let gathered = |table: &Table| table.columns.bytes();
        while self.tables.values().map(gathered).sum::<usize>() > GATHERED_MAX {
            let largest = self.tables.iter().max_by_key(|(_, table)| gathered(table));
            let Some((key, _)) = largest else { return };
            let key = key.clone();
            self.end(&key, now);
        }
    }

    /// Ends the files whose time has come, or all.
    fn end_due(&mut self, all: bool) {
        if self.tables.is_empty() {
            return;
        }
        let now = self.now();
        let is_due =
            |table: &Table| all || now.saturating_sub(table.since) >= self.settings.rotate_every;
        let due = self.tables.iter().filter(|(_, table)| is_due(table)).map(|(key, _)| key.clone());
        for key in due.collect::<Vec<_>>() {
            self.end(&key, now);
        }
    }

    /// Puts a version's rows into a complete file.
    fn end(&mut self, key: &Key, now: Duration) {
        let Some(mut table) = self.tables.remove(key) else { return };
        let written = self.open_folder().and_then(|folder| table.write(folder, now));
        if let Err(error) = written {
            return self.lose(&table, &error, now);
        }
        let Some(file) = table.file.take() else { return };
        let rows = file.rows;
        match file.complete() {
            Ok(rows) => {
                table.counts.recorded.fetch_add(rows, Relaxed);
                if self.trouble.take().is_some() {
                    tracing::info!("predictions are written again");
                }
            }
            Err(error) => {
                table.counts.unwritten.fetch_add(rows, Relaxed);
                return self.fail(&error, now);
            }
        }
        if let Some(waker) = &self.waker {
            waker.wake();
        }
        let bounded = self.folder.as_ref().map_or(Ok(0), |it| it.bound(self.settings.keep_bytes));
        match bounded {
            Ok(0) => {}
            Ok(files) if self.waker.is_some() => {
                self.monitor.upkeep().uploads(|it| it.lost += files);
                tracing::warn!(
                    files,
                    "removed the oldest files of predictions before they were uploaded; see to the object store, or give \
                     predictions.keep_bytes more"
                );
            }
            Ok(files) => tracing::info!(files, "removed the oldest files of predictions"),
            Err(error) => tracing::warn!("old files of predictions are not removed: {error}"),
        }
    }

    fn lose(&mut self, table: &Table, error: &FileError, now: Duration) {
        table.counts.unwritten.fetch_add(table.rows(), Relaxed);
        self.fail(error, now);
    }

    /// Says that rows are dropped, and tries nothing for a while.
    fn fail(&mut self, error: &FileError, now: Duration) {
        let told = self.trouble.as_ref().map(|trouble| trouble.told);
        let is_silent = told.is_some_and(|told| now < told + QUIET);
        if !is_silent {
            tracing::warn!(
                "predictions are dropped, as they cannot be written: {error}; make room there, or set predictions.path to a \
                 folder that can be written"
            );
        }
        let told = told.filter(|_| is_silent).unwrap_or(now);
        self.trouble = Some(Trouble { until: now + PAUSE, told });
    }
}
