//! The access log: a line of JSON for each request, written by a thread of its own.
//!
//! Workers leave notes in outboxes of their own; the thread looks at them a few times a second, or at once where one
//! fills, and writes their lines, many at a time. Always true:
//! - No request waits for the log: where the outbox of its worker is full, its line is dropped and counted.
//! - Lines are written whole, and whole ones are lost.
//! - The end waits for a reader that stalls at most [`CLOSE_MAX`].
//!
//! Not here: the content of lines (`line`), their file (`rolling`), what is noted on the path (`visit`), spans
//! (`otlp`).

use std::{
    io,
    path::PathBuf,
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

use crate::{model::Trace, monitor::WorkerId};

use super::{
    batch::{BATCH_BYTES, Batch},
    entry::Entry,
    line::Lines,
    note::{Note, Texts, Use},
    outbox::{Outbox, Room},
    rolling::Rolling,
};

/// Where requests are told, and how many of them.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessSettings {
    /// Where lines go.
    pub target: AccessTarget,
    /// The share of requests that have a line, 0 to 1; chosen at random.
    pub share: f64,
    /// Bytes of one worker's requests that may wait for their lines.
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
    /// It has no memory for lines.
    #[error(
        "the access log has no memory for lines: {0}; give the process more, or set logs.access to \"off\""
    )]
    Memory(io::Error),
    /// It has no thread.
    #[error("the access log has no thread: {0}")]
    Thread(io::Error),
}

/// Requests on their way to the log.
#[derive(Debug)]
pub struct Access {
    /// Notes of each worker.
    outboxes: Box<[Outbox]>,
    /// Bytes of one worker's notes that wake the writer, and those that tell of a disk that stalls.
    wake_bytes: usize,
    late_bytes: usize,
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

/// Most looks, each after [`PAUSE_MIN`] or sooner, for which a line waits until more make up a batch: however few they
/// are, to write them costs as much as some hundred lines.
const LOOKS_MAX: u32 = 16;

/// Bytes of one worker's notes that wake the writer. A wake costs as much as a dozen lines; of more bytes, the first
/// have left the processor's nearest caches when they are taken.
const WAKE_BYTES: usize = 128 << 10;

/// Bytes of one worker's notes that wait where there are no lines, only spans.
const SPANS_BYTES: usize = 256 << 10;

/// Batches between two words about lines that were dropped.
const TOLD_EVERY: u32 = 256;

impl Default for AccessSettings {
    fn default() -> Self {
        Self {
            target: AccessTarget::Off,
            share: 1.0,
            // Some 20,000 requests: what a busy worker answers in half a second.
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
        let exports = settings.spans_to.is_some();
        let most = match (threshold, exports) {
            (0, false) => 0,
            (0, true) => SPANS_BYTES,
            _ => settings.buffer_bytes_max,
        };
        Self {
            outboxes: (0..workers).map(|_| Outbox::new(most)).collect(),
            wake_bytes: WAKE_BYTES.min(most / 4),
            late_bytes: most / 2,
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

    /// Takes the note of a worker's request, for its uses.
    #[inline]
    pub(super) fn tell(
        &self,
        worker: WorkerId,
        note: &mut Note,
        texts: Texts<'_>,
        trace: Option<Trace>,
    ) {
        let outbox = self.outboxes.get(worker.0);
        let added = outbox.and_then(|outbox| outbox.add(note, texts, trace));
        let wakes = |(before, bytes)| before < self.wake_bytes && self.wake_bytes <= bytes;
        if added.is_none_or(wakes) {
            self.wake(note.wanted, added.is_none());
        }
    }

    /// Wakes the writer; counts a note that was dropped.
    #[cold]
    fn wake(&self, wanted: Use, is_dropped: bool) {
        if is_dropped {
            self.dropped.fetch_add(wanted.is_line.into(), Relaxed);
            self.spans_dropped.fetch_add(wanted.has_spans.into(), Relaxed);
        }
        if let Some(writer) = self.writer.get() {
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
        let batch = Batch::new().map_err(AccessError::Memory)?;
        let spans = Spans::start(settings, &access, end.clone()).map_err(AccessError::Thread)?;
        let own = Arc::clone(&access);
        let thread = thread::Builder::new().name("access".to_owned()).spawn(move || {
            write_out(&own, Writer::new(&own, sink, batch), &spans);
            // Nobody hears it once the end has waited long enough.
            let _ = end.try_send(());
        });
        let _ = access.writer.set(thread.map_err(AccessError::Thread)?.thread().clone());
        Ok(Some(Self { access, ended }))
    }

    /// Where workers put their notes.
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
    let mut pause = PAUSE_MIN;
    loop {
        // Before the look: what was told before the end is found by it.
        let closed = access.closed.load(Acquire);
        let mut most = 0;
        for outbox in &access.outboxes {
            outbox.take(&mut spare, |room| {
                most = most.max(room.bytes());
                tell(room, &mut writer, spans);
            });
        }
        writer.is_late |= most > access.late_bytes;
        writer.looks += 1;
        let is_idle = most == 0;
        // Where one came, more may be there soon.
        if is_idle || writer.looks >= LOOKS_MAX || closed {
            writer.flush();
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

/// Tells of all requests in this room.
fn tell(room: &Room, writer: &mut Writer<'_>, spans: &Spans) {
    for (note, texts, trace) in room.all() {
        if note.wanted.has_spans {
            spans.take(note, texts, trace);
        }
        if note.wanted.is_line {
            writer.add(&Entry::of(note, texts, trace));
        }
    }
}

/// Where lines end, and what is said of those that do not.
struct Writer<'a> {
    access: &'a Access,
    sink: Sink,
    lines: Lines,
    batch: Batch,
    /// Bytes of lines that are written at once, unless one is longer.
    batch_max: usize,
    /// Looks at the outboxes since the last batch.
    looks: u32,
    /// True if an outbox was more than half full since the last batch.
    is_late: bool,
    /// False after a failure, until lines were written again.
    works: bool,
    /// Dropped lines that were spoken of, and batches since then.
    told: u64,
    batches: u32,
}

impl<'a> Writer<'a> {
    fn new(access: &'a Access, sink: Sink, mut batch: Batch) -> Self {
        batch.begin(sink.phase());
        Self {
            access,
            batch_max: sink.batch_max(),
            sink,
            lines: Lines::default(),
            batch,
            looks: 0,
            is_late: false,
            works: true,
            told: 0,
            batches: TOLD_EVERY,
        }
    }

    /// Takes an entry; writes the lines of those before it where both are too many.
    fn add(&mut self, entry: &Entry<'_>) {
        let before = self.batch.lines().len();
        let line = self.lines.line(entry);
        if before > 0 && before + line.len() > self.batch_max {
            self.flush();
        }
        self.batch.put(self.lines.last());
    }

    /// Writes what was taken.
    fn flush(&mut self) {
        self.looks = 0;
        let lines = self.batch.lines();
        if lines.is_empty() {
            return;
        }
        let (sink, dropped) = (&mut self.sink, &self.access.dropped);
        match sink.write(lines, std::mem::take(&mut self.is_late)) {
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
        self.batch.begin(self.sink.phase());
    }
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

    fn take(&self, note: &Note, texts: Texts<'_>, trace: Option<Trace>) {
        if let Some(exporter) = &self.0 {
            exporter.take(note, texts, trace);
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
    fn take(&self, _: &Note, _: Texts<'_>, _: Option<Trace>) {}
}

/// Where lines are written.
enum Sink {
    Nowhere,
    Stdout(fn(&[u8]) -> io::Result<()>),
    File(Rolling),
}

impl Sink {
    /// Most bytes that are written at once.
    fn batch_max(&self) -> usize {
        let Self::File(file) = self else { return BATCH_BYTES };
        usize::try_from(file.bytes_max()).unwrap_or(BATCH_BYTES).min(BATCH_BYTES)
    }

    /// The place in a page of memory where the next batch is best.
    fn phase(&self) -> usize {
        if let Self::File(file) = self { file.phase() } else { 0 }
    }

    fn write(&mut self, lines: &[u8], is_late: bool) -> io::Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Stdout(write) => write(lines),
            Self::File(file) => file.write(lines, is_late),
        }
    }
}

impl std::fmt::Display for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nowhere => f.write_str("nothing"),
            Self::Stdout(_) => f.write_str("standard output"),
            Self::File(file) => write!(f, "`{}`", file.path().display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::entry;

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
    fn batches_are_whole_lines_that_fit_unless_a_line_is_longer() {
        let written = |file_bytes_max: u64| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("access.log");
            let file = Rolling::open(&path, file_bytes_max).unwrap();
            let access = Access::new(&AccessSettings::default(), 1);
            let mut writer = Writer::new(&access, Sink::File(file), Batch::new().unwrap());
            for path in ["/1", "/2", "/3"] {
                writer.add(&entry::tests::of_path(path));
            }
            writer.flush();
            let lines = |name: &str| {
                let text = std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
                assert!(text.is_empty() || text.ends_with('\n'));
                text.lines().count()
            };
            (lines("access.log.1"), lines("access.log"))
        };
        let bytes = Lines::default().line(&entry::tests::of_path("/1")).len() as u64;
        assert_eq!([written(3 * bytes), written(2 * bytes), written(1)], [(0, 3), (2, 1), (1, 1)]);
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
