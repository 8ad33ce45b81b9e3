//! The access log: a line of JSON for each request, written by a thread of its own.
//!
//! Workers write lines into outboxes of their own; the thread looks at them a few times a second, or at once where one
//! fills, and hands them to the file as they are. Always true:
//! - No request waits for the log: where the outbox of its worker is full, its line is dropped and counted.
//! - A line is written whole, or cut off again where the disk is full.
//! - A file that was moved away is opened anew under its name with the next lines, without a signal; one that reaches
//!   its maximum is moved to `PATH.1`, in place of the one before.
//! - The end waits for a reader that stalls at most [`CLOSE_MAX`].
//!
//! Not here: the content of lines (`line`), what is noted on the path (`visit`), spans (`otlp`).

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
        mpsc,
    },
    thread::{self, Thread},
    time::Duration,
};

use crate::monitor::WorkerId;

use super::{entry::Entry, lane::Lane, outbox::Outbox};

/// Where requests are told, and how many of them.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessSettings {
    /// Where lines go.
    pub target: AccessTarget,
    /// The share of requests that have a line, 0 to 1; chosen at random.
    pub share: f64,
    /// Bytes of lines of one worker that may wait to be written.
    pub buffer_bytes_max: usize,
    /// The largest file; with the one before it, twice as much lies on the disk.
    pub file_bytes_max: u64,
    /// The collector that spans of sampled requests are sent to.
    pub spans_to: Option<Endpoint>,
}

/// The place of a collector that speaks OTLP over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The name or address of its host; that of version 6 in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path that spans are sent to.
    pub path: String,
}

impl Endpoint {
    /// The port and the path that OTLP over HTTP has by default.
    const PORT: u16 = 4318;
    const PATH: &str = "/v1/traces";

    /// Reads `http://HOST[:PORT][/PATH]`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uri: http::Uri = text.parse().ok()?;
        let is_plain = uri.scheme_str() == Some("http") && uri.query().is_none();
        let authority = uri.authority().filter(|it| is_plain && !it.as_str().contains('@'))?;
        let path = if uri.path() == "/" { Self::PATH } else { uri.path() };
        let port = authority.port_u16().unwrap_or(Self::PORT);
        Some(Self { host: authority.host().to_owned(), port, path: path.to_owned() })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Where lines of the access log go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessTarget {
    /// Nowhere: requests are not noted.
    Off,
    /// To standard output, between the lines of the log.
    Stdout,
    /// To the end of this file.
    File(PathBuf),
}

/// The access log could not start.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Its file cannot be opened.
    #[error(
        "the access log `{}` cannot be written: {source}; set logs.access to a file in a folder that is there and can be \
         written, to \"stdout\" or to \"off\"",
        path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It has no thread.
    #[error("the access log has no thread: {0}")]
    Thread(io::Error),
}

/// Entries on their way to the log.
#[derive(Debug)]
pub struct Access {
    /// Lines of each worker, and bytes of them that wake the writer.
    outboxes: Box<[Outbox]>,
    wake_bytes: usize,
    /// Entries of each worker whose spans are sent.
    lanes: Box<[Lane]>,
    /// Requests whose random number is not above this have a line.
    threshold: u64,
    dropped: Arc<AtomicU64>,
    /// True if sampled requests have spans.
    exports: bool,
    /// Sampled requests whose spans were dropped.
    spans_dropped: Arc<AtomicU64>,
    closed: AtomicBool,
    writer: OnceLock<Thread>,
}

/// The running access log; closed when it is dropped.
#[derive(Debug)]
pub struct AccessLog {
    access: Arc<Access>,
    ended: mpsc::Receiver<()>,
}

/// Longest time that the end waits for a reader that stalls.
const CLOSE_MAX: Duration = Duration::from_millis(900);

/// Pauses between two looks at the outboxes: while requests come, and while none do.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(160);

/// Bytes of lines that are written at once, and that wake the writer. A wake costs as much as a dozen lines, and pages
/// of a file cost less the more of them are written together: a megabyte takes a third off the cost of 64 KiB.
const BATCH_BYTES: usize = 1 << 20;

/// Bytes of one worker's entries that wait for the exporter of spans, and the share of them that wakes the writer.
const SPANS_BYTES: usize = 256 << 10;
const FULL: f32 = 0.25;

/// Batches between two words about lines that were dropped.
const TOLD_EVERY: u32 = 256;

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            target: AccessTarget::Off,
            share: 1.0,
            // Some 9,000 requests: what a busy worker answers in a tenth of a second.
            buffer_bytes_max: 4 << 20,
            file_bytes_max: 1 << 30,
            spans_to: None,
        }
    }
}

impl Access {
    fn new(settings: &AccessSettings, workers: usize) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of all numbers; ends at the largest"
        )]
        let threshold = match settings.target {
            AccessTarget::Off => 0,
            _ => (settings.share * u64::MAX as f64) as u64,
        };
        let most = if threshold > 0 { settings.buffer_bytes_max } else { 0 };
        let exports = settings.spans_to.is_some();
        let spans_bytes = if exports { SPANS_BYTES } else { 0 };
        Self {
            outboxes: (0..workers).map(|_| Outbox::new(most)).collect(),
            wake_bytes: BATCH_BYTES.min(most / 4),
            lanes: (0..workers).map(|_| Lane::new(spans_bytes)).collect(),
            threshold,
            dropped: Arc::default(),
            exports,
            spans_dropped: Arc::default(),
            closed: AtomicBool::new(false),
            writer: OnceLock::new(),
        }
    }

    /// True if a request with this random number has a line.
    pub(super) fn takes(&self, random: u64) -> bool {
        random <= self.threshold && self.threshold > 0
    }

    /// True if sampled requests have spans.
    pub(super) fn exports(&self) -> bool {
        self.exports
    }

    /// True if the entry's spans are sent.
    fn has_spans(&self, entry: &Entry<'_>) -> bool {
        self.exports && entry.trace.is_some_and(|trace| trace.is_sampled)
    }

    /// Takes the entry of a worker's request, for a line or for its spans alone; `words` is room for it.
    pub(super) fn tell(
        &self,
        worker: WorkerId,
        entry: &Entry<'_>,
        is_line: bool,
        words: &mut Vec<u64>,
    ) {
        let mut wakes = false;
        if is_line {
            let added = self.outboxes.get(worker.0).and_then(|outbox| outbox.add(entry));
            let full = self.wake_bytes;
            wakes = added.is_none_or(|(bytes, before)| before < full && full <= bytes);
            if added.is_none() {
                self.dropped.fetch_add(1, Relaxed);
            }
        }
        if self.has_spans(entry) {
            entry.write(words);
            let used = self.lanes.get(worker.0).and_then(|lane| lane.push(words));
            wakes |= used.is_none_or(|used| used >= FULL);
            if used.is_none() {
                self.spans_dropped.fetch_add(1, Relaxed);
            }
        }
        if wakes && let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }
}

impl AccessLog {
    /// Starts the log for so many workers; `stdout` writes to standard output. `None` if it is off.
    pub fn start(
        settings: &AccessSettings,
        workers: usize,
        stdout: fn(&[u8]) -> io::Result<()>,
    ) -> Result<Option<Self>, AccessError> {
        let sink = match &settings.target {
            AccessTarget::Off if settings.spans_to.is_none() => return Ok(None),
            AccessTarget::Off => Sink::Nowhere,
            AccessTarget::Stdout => Sink::Stdout(stdout),
            AccessTarget::File(path) => {
                let failed = |source| AccessError::File { path: path.clone(), source };
                Sink::File(Rolling::open(path, settings.file_bytes_max).map_err(failed)?)
            }
        };
        let access = Arc::new(Access::new(settings, workers));
        // Each of the threads says so when it has ended.
        let (end, ended) = mpsc::sync_channel(2);
        let spans = Spans::start(settings, &access, end.clone()).map_err(AccessError::Thread)?;
        let own = Arc::clone(&access);
        let thread = thread::Builder::new().name("access".to_owned()).spawn(move || {
            write_out(&own, Writer::new(&own, sink), &spans);
            // Nobody hears it once the end has waited long enough.
            let _ = end.try_send(());
        });
        let _ = access.writer.set(thread.map_err(AccessError::Thread)?.thread().clone());
        Ok(Some(Self { access, ended }))
    }

    /// Where workers put their entries.
    pub fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }

    /// Sampled requests whose spans were dropped so far.
    pub fn spans_dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.access.spans_dropped)
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.access.dropped)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // Of several threads the last one counts.
        self.access.closed.store(true, Release);
        if let Some(writer) = self.access.writer.get() {
            writer.unpark();
        }
        // Whether all was written or not: the process ends.
        while self.ended.recv_timeout(CLOSE_MAX).is_ok() {}
    }
}

/// Writes whatever comes, until the log is closed and all is written.
fn write_out(access: &Access, mut writer: Writer<'_>, spans: &Spans) {
    let mut spare = access.outboxes.first().map(Outbox::spare).unwrap_or_default();
    let (mut record, mut pause) = (Vec::new(), PAUSE_MIN);
    loop {
        // Before the look: what was told before the end is found by it.
        let closed = access.closed.load(Acquire);
        let mut is_idle = true;
        for lane in &access.lanes {
            lane.take(&mut record, |record| {
                is_idle = false;
                spans.take(record);
                true
            });
        }
        for outbox in &access.outboxes {
            outbox.take(&mut spare, |lines| {
                is_idle = false;
                writer.write(lines);
            });
        }
        if is_idle && closed {
            return;
        }
        if !closed {
            pause = if is_idle { (2 * pause).min(PAUSE_MAX) } else { PAUSE_MIN };
            thread::park_timeout(pause);
        }
    }
}

/// Where lines end, and what is said of those that do not.
struct Writer<'a> {
    access: &'a Access,
    sink: Sink,
    /// Bytes that are written at once.
    batch_max: usize,
    /// False after a failure, until lines were written again.
    works: bool,
    /// Dropped lines that were spoken of, and batches since then.
    told: u64,
    batches: u32,
}

impl<'a> Writer<'a> {
    fn new(access: &'a Access, sink: Sink) -> Self {
        let batch_max = match &sink {
            Sink::File(file) => usize::try_from(file.bytes_max).unwrap_or(BATCH_BYTES),
            _ => BATCH_BYTES,
        };
        let batch_max = batch_max.min(BATCH_BYTES);
        Self { access, sink, batch_max, works: true, told: 0, batches: TOLD_EVERY }
    }

    /// Writes whole lines, in batches.
    fn write(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            let (batch, rest) = lines.split_at(end_of_batch(lines, self.batch_max));
            self.write_batch(batch);
            lines = rest;
        }
    }

    fn write_batch(&mut self, lines: &[u8]) {
        let (sink, dropped) = (&mut self.sink, &self.access.dropped);
        match sink.write(lines) {
            Ok(()) => self.works = true,
            Err(error) => {
                let ends = lines.iter().filter(|byte| **byte == b'\n');
                dropped.fetch_add(ends.count() as u64, Relaxed);
                if std::mem::replace(&mut self.works, false) {
                    tracing::warn!(
                        %error,
                        "lines of the access log are dropped: {sink} cannot be written; it is tried again with every line"
                    );
                }
            }
        }
        self.batches += 1;
        let dropped = dropped.load(Relaxed);
        if self.works && dropped > self.told && self.batches >= TOLD_EVERY {
            tracing::warn!(
                lines = dropped - self.told,
                "lines of the access log were dropped: {sink} takes them slower than requests come; raise \
                 logs.access_buffer or lower logs.access_sample"
            );
            (self.told, self.batches) = (dropped, 0);
        }
    }
}

/// The end of the last line that fits a batch, or of the first one if that is longer.
fn end_of_batch(lines: &[u8], batch_max: usize) -> usize {
    let Some((fitting, rest)) = lines.split_at_checked(batch_max) else { return lines.len() };
    let is_end = |byte: &u8| *byte == b'\n';
    let last = fitting.iter().rposition(is_end).map(|end| end + 1);
    let next = || rest.iter().position(is_end).map(|end| batch_max + end + 1);
    last.or_else(next).unwrap_or(lines.len())
}

/// The way of sampled requests to a collector, where there is one.
#[cfg(feature = "otlp")]
struct Spans(Option<super::otlp::Exporter>);

#[cfg(feature = "otlp")]
impl Spans {
    fn start(
        settings: &AccessSettings,
        access: &Access,
        end: mpsc::SyncSender<()>,
    ) -> io::Result<Self> {
        let Some(endpoint) = settings.spans_to.clone() else { return Ok(Self(None)) };
        let dropped = Arc::clone(&access.spans_dropped);
        super::otlp::Exporter::start(endpoint, dropped, end).map(|exporter| Self(Some(exporter)))
    }

    fn take(&self, entry: &[u64]) {
        if let Some(exporter) = &self.0 {
            exporter.take(entry);
        }
    }
}

/// This build sends spans nowhere; its configuration cannot ask for it.
#[cfg(not(feature = "otlp"))]
struct Spans;

#[cfg(not(feature = "otlp"))]
impl Spans {
    #[expect(clippy::unnecessary_wraps, reason = "with an exporter it may fail")]
    fn start(_: &AccessSettings, _: &Access, _: mpsc::SyncSender<()>) -> io::Result<Self> {
        Ok(Self)
    }

    #[expect(clippy::unused_self, reason = "with an exporter it has a queue")]
    fn take(&self, _: &[u64]) {}
}

/// Where lines are written.
enum Sink {
    Nowhere,
    Stdout(fn(&[u8]) -> io::Result<()>),
    File(Rolling),
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Stdout(write) => write(lines),
            Self::File(file) => file.write(lines),
        }
    }
}

impl std::fmt::Display for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nowhere => f.write_str("nothing"),
            Self::Stdout(_) => f.write_str("standard output"),
            Self::File(file) => write!(f, "`{}`", file.path.display()),
        }
    }
}

/// A file that begins anew when it is moved away or full.
struct Rolling {
    path: PathBuf,
    file: File,
    /// Device and inode, by which a file is known after it was moved.
    identity: (u64, u64),
    bytes: u64,
    bytes_max: u64,
    /// False for pipes and terminals, which are never moved.
    is_regular: bool,
}

impl Rolling {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        // Lines name clients: for the owner and the group that collects logs.
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let about = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            file,
            identity: (about.dev(), about.ino()),
            bytes: about.len(),
            bytes_max,
            is_regular: about.is_file(),
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = lines.len() as u64;
        if self.is_regular {
            let about = fs::metadata(&self.path);
            let is_same = about.as_ref().is_ok_and(|it| (it.dev(), it.ino()) == self.identity);
            let is_full = self.bytes > 0 && self.bytes + length > self.bytes_max;
            if is_same && is_full {
                let mut before = OsString::from(&self.path);
                before.push(".1");
                fs::rename(&self.path, before)?;
            }
            if !is_same || is_full {
                *self = Self::open(&self.path, self.bytes_max)?;
            } else if let Ok(about) = about {
                // Others may have cut it.
                self.bytes = about.len();
            }
        }
        let written = self.file.write_all(lines);
        if written.is_ok() {
            self.bytes += length;
        } else if self.is_regular {
            // Best effort: a line that was cut would make the next one unreadable, too.
            let _ = self.file.set_len(self.bytes);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_requests_has_a_line() {
        let takes = |share: f64, random: u64| {
            let target = AccessTarget::Stdout;
            let settings = AccessSettings { target, share, ..AccessSettings::default() };
            Access::new(&settings, 1).takes(random)
        };
        assert!(takes(1.0, u64::MAX) && takes(1.0, 0));
        assert!(!takes(0.0, 0) && !takes(0.0, u64::MAX));
        assert!(takes(0.25, u64::MAX / 5) && !takes(0.25, u64::MAX / 3));
    }

    #[test]
    fn a_collector_is_named_by_its_url() {
        let check = |text: &str, expected: Option<&str>| {
            let endpoint = Endpoint::parse(text).map(|endpoint| endpoint.to_string());
            assert_eq!(endpoint.as_deref(), expected, "{text}");
        };
        check("http://localhost", Some("http://localhost:4318/v1/traces"));
        check("http://[::1]:9/otlp/v1/traces", Some("http://[::1]:9/otlp/v1/traces"));
        for bad in ["https://a", "a:1", "http://u:p@a", "http://a/?x=1", "grpc://a", "", "http://"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn a_file_that_is_full_or_moved_away_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let said = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
        fs::write(&path, "old\n").unwrap();
        let mut file = Rolling::open(&path, 10).unwrap();
        file.write(b"one\n").unwrap();
        assert_eq!(said("access.log"), "old\none\n");
        file.write(b"two\n").unwrap();
        assert_eq!([said("access.log"), said("access.log.1")], ["two\n", "old\none\n"]);
        file.write(b"longer than a file may be\n").unwrap();
        assert_eq!(said("access.log.1"), "two\n");
        assert_eq!(said("access.log"), "longer than a file may be\n", "lines are never cut");
        fs::rename(&path, folder.path().join("moved")).unwrap();
        file.write(b"three\n").unwrap();
        assert_eq!(said("access.log"), "three\n");
        assert_eq!(said("moved"), "longer than a file may be\n");
        fs::write(&path, "").unwrap();
        file.write(b"four\n").unwrap();
        assert_eq!(said("access.log"), "four\n", "others may cut it");
        fs::remove_file(&path).unwrap();
        file.write(b"five\n").unwrap();
        assert_eq!(said("access.log"), "five\n");
    }

    #[test]
    fn batches_end_with_a_line_and_fit_unless_a_line_is_longer() {
        let end = |text: &str, batch_max| end_of_batch(text.as_bytes(), batch_max);
        assert_eq!([end("ab\ncd\n", 9), end("ab\ncd\n", 6), end("ab\ncd\n", 5)], [6, 6, 3]);
        assert_eq!([end("abcd\ne\n", 2), end("abcd\n", 2), end("ab\n", 0)], [5, 5, 3]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_says_what_to_do() {
        let target = AccessTarget::File("/no/such/folder/access.log".into());
        let settings = AccessSettings { target, ..AccessSettings::default() };
        let error = AccessLog::start(&settings, 1, |_| Ok(())).unwrap_err().to_string();
        assert!(
            error.starts_with("the access log `/no/such/folder/access.log` cannot be written:"),
            "{error}"
        );
        assert!(error.contains("set logs.access"), "{error}");
    }
}
