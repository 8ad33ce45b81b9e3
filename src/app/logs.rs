//! The log's way out: a bounded buffer that one thread writes to standard output.
//!
//! Whoever logs never waits for whoever reads: a pipe that nobody reads would otherwise stop, one after the other,
//! every thread that has something to say. Always true:
//! - To log is to copy a line into memory. Where the buffer is full, the newest line is dropped and counted.
//! - While the lines are read, none is lost, and none at the end of the process either.
//! - Once a reader that stalled is back, a line says how many were dropped. A reader that is gone costs its lines.
//! - The end waits for a stalled reader at most [`CLOSE_MAX`].
//!
//! Panics are lines of the log, too, and never wait for standard error.
//!
//! Not here: what is logged.

use std::{
    io::{self, IsTerminal as _, Write},
    os::fd::AsFd as _,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};

use crate::config::{self, LogFormat};

/// The running log; closed when it is dropped.
#[derive(Debug)]
pub(super) struct Logs {
    lines: Arc<Lines>,
    json: bool,
}

/// Lines on their way to the one thread that writes them.
#[derive(Debug)]
struct Lines {
    waiting: Mutex<Waiting>,
    /// Something waits, or nothing ever will.
    filled: Condvar,
    /// Everything was written.
    written: Condvar,
    bytes_max: usize,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// True if what was taken from here is being written.
    writes: bool,
    closed: bool,
    /// Lines that were dropped and not told yet.
    untold: u64,
}

/// Longest time that the end waits for a reader that stalls.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// After a burst no more than this is kept for the next.
const BYTES_KEPT: usize = 64 << 10;

impl Logs {
    /// Starts to log: as text on a terminal, as JSON elsewhere.
    pub(super) fn start(logs: &config::Logs) -> anyhow::Result<Self> {
        let terminal = io::stdout().is_terminal();
        let json = match logs.format {
            LogFormat::Auto => !terminal,
            LogFormat::Text => false,
            LogFormat::Json => true,
        };
        let lines = Arc::new(Lines::new(logs.buffer_bytes_max));
        // The file watcher tells of every watch that it lets go; who wants that can ask for it.
        let filter = format!("notify=warn,{}", logs.filter);
        let filter = tracing_subscriber::EnvFilter::try_new(filter).context("logs.level")?;
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(Arc::clone(&lines));
        let started = if json {
            let builder = builder.json().flatten_event(true);
            builder.with_current_span(false).with_span_list(false).try_init()
        } else {
            let colour = terminal && std::env::var_os("NO_COLOR").is_none();
            builder.compact().with_target(false).with_ansi(colour).try_init()
        };
        started.map_err(|error| anyhow::anyhow!("logs cannot start: {error}"))?;
        let own = Arc::clone(&lines);
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || own.write_out(write_to_stdout))
            .context("the log has no thread")?;
        std::panic::set_hook(Box::new(log_panic));
        Ok(Self { lines, json })
    }

    /// True if lines are JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Lines that were dropped so far.
    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lines.dropped)
    }

    /// Says something that is no log line.
    pub(super) fn say(&self, text: &str) {
        self.lines.put(text.as_bytes());
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.lines.close(CLOSE_MAX);
    }
}

impl Lines {
    fn new(bytes_max: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            bytes_max,
            dropped: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes.len() + line.len() > self.bytes_max {
            waiting.untold += 1;
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        self.filled.notify_one();
    }

    /// Writes whatever comes until it is closed and all is written.
    fn write_out(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        let mut bytes = Vec::new();
        let mut reads = true;
        loop {
            let mut waiting = self.lock();
            while waiting.bytes.is_empty() {
                if waiting.closed {
                    return;
                }
                waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            bytes.clear();
            bytes.shrink_to(BYTES_KEPT);
            std::mem::swap(&mut bytes, &mut waiting.bytes);
            waiting.writes = true;
            // Only to somebody who reads: else the line would be dropped as well, and told, without end.
            let untold = if reads { std::mem::take(&mut waiting.untold) } else { 0 };
            drop(waiting);
            if untold > 0 {
                tracing::warn!(
                    lines = untold,
                    "log lines were dropped: nobody read standard output"
                );
            }
            reads = write(&bytes).is_ok();
            let mut waiting = self.lock();
            if !reads {
                let lost = memchr::memchr_iter(b'\n', &bytes).count() as u64;
                waiting.untold += lost;
                self.dropped.fetch_add(lost, Relaxed);
            }
            waiting.writes = false;
            self.written.notify_all();
        }
    }

    /// Waits until all is written, or for so long.
    fn close(&self, wait_max: Duration) {
        let mut waiting = self.lock();
        waiting.closed = true;
        self.filled.notify_one();
        let unwritten = |waiting: &mut Waiting| waiting.writes || !waiting.bytes.is_empty();
        // Whether it was written or not: the process ends.
        drop(self.written.wait_timeout_while(waiting, wait_max, unwritten));
    }
}

/// A line at a time, as the subscriber writes them.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One batch of lines after the other, so that those of two threads do not mix.
static STDOUT: Mutex<()> = Mutex::new(());

/// Writes all of it, also where somebody made standard output non-blocking. For threads that may wait for its reader.
pub(super) fn write_to_stdout(mut bytes: &[u8]) -> io::Result<()> {
    let _alone = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    let stdout = io::stdout();
    let stdout = stdout.as_fd();
    while !bytes.is_empty() {
        match rustix::io::write(stdout, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                // Whatever comes of it, the write tells.
                let _ = poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let at = panic.location().map(ToString::to_string);
    let what = panic.payload_as_str().unwrap_or("no text");
    let trace = std::backtrace::Backtrace::capture();
    let captured = trace.status() == std::backtrace::BacktraceStatus::Captured;
    let trace = captured.then(|| trace.to_string());
    tracing::error!(thread, at, trace, "panic, a bug of tidegate: {what}");
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Writes out lines to a reader that takes a batch each time it is told to.
    fn read_by_hand(lines: &Arc<Lines>) -> (mpsc::Sender<io::Result<()>>, mpsc::Receiver<String>) {
        let (go, going) = mpsc::channel();
        let (sent, batches) = mpsc::channel();
        let own = Arc::clone(lines);
        std::thread::spawn(move || {
            own.write_out(|bytes| {
                sent.send(String::from_utf8(bytes.to_vec()).unwrap()).unwrap();
                going.recv().unwrap_or(Ok(()))
            });
        });
        (go, batches)
    }

    #[test]
    fn whoever_logs_never_waits_and_what_is_full_drops_the_newest() {
        let lines = Arc::new(Lines::new(10));
        let (go, batches) = read_by_hand(&lines);
        lines.put(b"first\n");
        assert_eq!(batches.recv_timeout(PATIENCE).unwrap(), "first\n");
        // It is being written; these wait, as many as there is room for.
        for line in ["a\n", "b\n", "c\n", "d\n", "e\n", "f\n", "g\n"] {
            lines.put(line.as_bytes());
        }
        assert_eq!(lines.dropped.load(Relaxed), 2);
        go.send(Ok(())).unwrap();
        assert_eq!(batches.recv_timeout(PATIENCE).unwrap(), "a\nb\nc\nd\ne\n");
        assert_eq!(lines.lock().untold, 0, "it was told");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_not_told_to_nobody() {
        let lines = Arc::new(Lines::new(100));
        let (go, batches) = read_by_hand(&lines);
        for count in 1..=3 {
            lines.put(b"lost\n");
            batches.recv_timeout(PATIENCE).unwrap();
            go.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
            let written = lines.written.wait_timeout_while(lines.lock(), PATIENCE, |w| w.writes);
            assert_eq!(written.unwrap().0.untold, count);
        }
        assert_eq!(lines.dropped.load(Relaxed), 3);
    }

    #[test]
    fn the_end_waits_for_the_last_line_and_not_for_a_reader_that_stalls() {
        let lines = Arc::new(Lines::new(100));
        let (go, batches) = read_by_hand(&lines);
        lines.put(b"last\n");
        lines.close(Duration::ZERO);
        assert!(lines.lock().writes || !lines.lock().bytes.is_empty());
        assert_eq!(batches.recv_timeout(PATIENCE).unwrap(), "last\n");
        go.send(Ok(())).unwrap();
        lines.close(PATIENCE);
        assert!(!lines.lock().writes && lines.lock().bytes.is_empty());
    }
}
