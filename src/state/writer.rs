//! The writer: one thread that owns the log's end. What waits is written together and synced once.
//!
//! Always true:
//! - Whoever was acknowledged is on the disk, in this order, and stays.
//! - A write that fails is taken back: cut off, and that made durable, before anybody is told.
//! - After a failed sync nobody trusts the file or the cache: the log is sealed. An append at least
//!   [`Settings::reopen_after`](super::Settings) later, by the records' own time, has it verified from the disk up to
//!   the last acknowledged record, and cut off there.
//! - The projection hears of records after their callers do, and never fails an append.
//!
//! Not here: reading (`log`), SQL (`projection`).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender},
    },
    time::Duration,
};

use super::{
    disk::{Disk, LogFile, forget_cached},
    error::{Damage, StateError},
    frame::{self, PAYLOAD_BYTES_MAX},
    log::{Entry, Head, scan},
    projection::Projection,
    record::{NewRecord, Receipt, Record},
};

/// Most appends that are written together.
const BATCH_JOBS_MAX: usize = 1024;

/// A batch that has reached this takes no more.
const BATCH_BYTES: usize = 4 << 20;

/// Most bytes of the records of one append.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// An append that waits for its answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) records: Vec<NewRecord>,
    pub(super) reply: SyncSender<Result<Vec<Receipt>, StateError>>,
}

/// What readers share with the writer.
#[derive(Debug)]
pub(super) struct Shared {
    /// Behind the last acknowledged record.
    head: Mutex<Head>,
    pub(super) projection: Mutex<Projection>,
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn LogFile>,
    pub(super) shared: Arc<Shared>,
    pub(super) log_bytes_max: u64,
    pub(super) reopen_after: Duration,
    pub(super) seal: Option<Seal>,
}

/// Why nothing is written.
#[derive(Debug)]
pub(super) struct Seal {
    /// The time of the record that met the failure, or tried last.
    unix_nanos: u64,
    why: StateError,
}

/// What is written together.
struct Batch {
    bytes: Vec<u8>,
    /// Behind what was acknowledged before.
    start: Head,
    head: Head,
    entries: Vec<Entry>,
    waiting: Vec<(Job, Vec<Receipt>)>,
    unix_nanos: u64,
}

impl Shared {
    pub(super) fn new(head: Head, projection: Projection) -> Self {
        Self { head: Mutex::new(head), projection: Mutex::new(projection) }
    }

    /// Where the log ends.
    pub(super) fn head(&self) -> Head {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Writes until nobody can append any more. A panic seals the log: it is verified before anything else is written.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while catch_unwind(AssertUnwindSafe(|| self.write_all(jobs))).is_err() {
            tracing::error!(
                "writing down decisions ended in a panic, a bug of tidegate; it begins anew"
            );
            let why = std::io::Error::other("writing ended in a panic, which the log has");
            // Not older than any record: the next one has it verified.
            self.seal(0, why);
        }
    }

    fn write_all(&mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = Batch::behind(self.shared.head());
            batch.add(first, self.log_bytes_max);
            while batch.waiting.len() < BATCH_JOBS_MAX
                && batch.bytes.len() < BATCH_BYTES
                && let Ok(job) = jobs.try_recv()
            {
                batch.add(job, self.log_bytes_max);
            }
            if !batch.waiting.is_empty() {
                self.commit(batch);
            }
        }
    }

    fn commit(&mut self, batch: Batch) {
        let result = self.unseal(batch.unix_nanos).and_then(|()| self.write(&batch));
        let Batch { head, entries, waiting, .. } = batch;
        if let Err(error) = result {
            for (job, _) in waiting {
                job.answer(Err(error.clone()));
            }
            return;
        }
        *self.shared.head.lock().unwrap_or_else(PoisonError::into_inner) = head;
        for (job, receipts) in waiting {
            job.answer(Ok(receipts));
        }
        self.shared
            .projection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .follow(&entries, self.reopen_after);
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StateError> {
        let at = batch.start.bytes;
        if let Err(error) = self.file.write_all_at(&batch.bytes, at) {
            let taken_back = self.file.truncate(at).and_then(|()| self.file.sync());
            return Err(match taken_back {
                Ok(()) => StateError::io("write", &self.path, error),
                Err(error) => self.seal(batch.unix_nanos, error),
            });
        }
        self.file.sync().map_err(|error| self.seal(batch.unix_nanos, error))
    }

    fn seal(&mut self, unix_nanos: u64, error: std::io::Error) -> StateError {
        let why = StateError::Sealed(Arc::new(error));
        self.seal = Some(Seal { unix_nanos, why: why.clone() });
        why
    }

    /// Opens a sealed log again, if it is time.
    fn unseal(&mut self, unix_nanos: u64) -> Result<(), StateError> {
        let Some(seal) = &mut self.seal else { return Ok(()) };
        let since = Duration::from_nanos(unix_nanos.abs_diff(seal.unix_nanos));
        if since < self.reopen_after {
            return Err(seal.why.clone());
        }
        seal.unix_nanos = unix_nanos;
        match self.reopen() {
            Ok(file) => {
                (self.file, self.seal) = (file, None);
                Ok(())
            }
            Err(why) => {
                if let Some(seal) = &mut self.seal {
                    seal.why = why.clone();
                }
                Err(why)
            }
        }
    }

    fn reopen(&self) -> Result<Box<dyn LogFile>, StateError> {
        let sealed = |error| StateError::Sealed(Arc::new(error));
        let head = self.shared.head();
        forget_cached(&self.path).map_err(sealed)?;
        let reading = scan(&self.path, Head::start(), Some(head.bytes), &mut |_| Ok(()))?;
        if reading.head != head {
            let what = format!("record {} was acknowledged and is not there", head.sequence);
            let (offset, sequence) = (reading.head.bytes, reading.head.sequence + 1);
            let damage = Damage { offset, sequence, what };
            return Err(StateError::Damaged { path: self.path.clone(), damage });
        }
        let file = self.disk.open(&self.path).map_err(sealed)?;
        file.truncate(head.bytes).and_then(|()| file.sync()).map_err(sealed)?;
        Ok(file)
    }
}

impl Batch {
    fn behind(start: Head) -> Self {
        let (entries, waiting, bytes) = (Vec::new(), Vec::new(), Vec::new());
        Self { bytes, start, head: start, entries, waiting, unix_nanos: 0 }
    }

    /// Takes an append, or answers what cannot be written.
    fn add(&mut self, mut job: Job, log_bytes_max: u64) {
        let before = (self.bytes.len(), self.head, self.entries.len());
        let records = std::mem::take(&mut job.records);
        let unix_nanos = records.first().map_or(0, |record| record.unix_nanos);
        match self.encode(records, log_bytes_max) {
            Ok(receipts) => {
                self.unix_nanos = self.unix_nanos.max(unix_nanos);
                self.waiting.push((job, receipts));
            }
            Err(error) => {
                self.bytes.truncate(before.0);
                self.head = before.1;
                self.entries.truncate(before.2);
                job.answer(Err(error));
            }
        }
    }

    fn encode(
        &mut self,
        records: Vec<NewRecord>,
        log_bytes_max: u64,
    ) -> Result<Vec<Receipt>, StateError> {
        let (start, count) = (self.bytes.len(), records.len());
        let mut receipts = Vec::new();
        for (at, new) in records.into_iter().enumerate() {
            let sequence = self.head.sequence + 1;
            let record = Record::new(sequence, new);
            let payload = payload(&record, at + 1 < count)?;
            let hash = frame::write(self.head.hash, &payload, &mut self.bytes);
            let group = self.bytes.len() - start;
            if group > GROUP_BYTES_MAX {
                return Err(StateError::TooLarge { bytes: group, bytes_max: GROUP_BYTES_MAX });
            }
            let bytes = self.start.bytes.saturating_add(self.bytes.len() as u64);
            if bytes > log_bytes_max {
                return Err(StateError::LogLimit { bytes_max: log_bytes_max });
            }
            self.head = Head { sequence, hash, bytes };
            self.entries.push(Entry { record, head: self.head });
            receipts.push(Receipt { sequence, hash });
        }
        Ok(receipts)
    }
}

impl Job {
    /// Tells the caller, who may have gone.
    fn answer(self, result: Result<Vec<Receipt>, StateError>) {
        let _ = self.reply.send(result);
    }
}

/// The canonical bytes of a record that can be read again.
fn payload(record: &Record, more: bool) -> Result<Vec<u8>, StateError> {
    let unfit = |error: String| StateError::Unfit(error);
    if i64::try_from(record.unix_nanos).is_err() {
        return Err(unfit("its time lies after the year 2262".to_owned()));
    }
    let payload = record.written(more).map_err(|error| unfit(error.to_string()))?;
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(StateError::TooLarge { bytes: payload.len(), bytes_max: PAYLOAD_BYTES_MAX });
    }
    // A body may be nested deeper than any reader goes.
    Record::read(&payload).map_err(unfit)?;
    Ok(payload)
}
