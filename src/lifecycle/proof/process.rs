//! The processes that prove versions, as the server sees them: templates, and copies of them.
//!
//! A template (`child`) has loaded the engine's library and sees no model; a copy of it sees one, and is gone when that
//! is proven. The template is the copy's parent: it ends and reaps the copy at the server's word, so that nothing is
//! left of it, and the copy ends with its template. Always true:
//! - A template has one copy at a time.
//! - Whatever a copy does, its template can make the next one. A template that does not answer is ended.
//! - Nothing here waits without an end: each word of a template is waited for so long.
//!
//! Not here: what is asked of a copy and what its answers mean (`super`).

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::File,
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};
use serde::de::DeserializeOwned;

use super::{
    ANSWER, Heard, Trouble,
    child::{STREAMS, Word},
    message,
};
use crate::monitor::Clock;

/// The command under which the program proves versions.
const COMMAND: &str = "prove-version";

/// The last words of a process that are shown to people.
const LAST_WORDS: usize = 4096;

/// Longest time that a process may take to end after it closed its output.
const LAST_MOMENTS: Duration = Duration::from_millis(300);

/// Longest time that a template may take to end a copy: the system frees its memory meanwhile.
const ENDING_MAX: Duration = Duration::from_mins(1);

/// The variables that the engine's library may need; no others are passed on.
const VARIABLES: [&str; 5] = ["ORT_DYLIB_PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LOCPATH"];

/// A process that has loaded the engine and is copied for each version; gone when dropped.
#[derive(Debug)]
pub(super) struct Template {
    child: Child,
    /// A socket, so that open files can be handed over.
    control: UnixStream,
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    heard: Vec<u8>,
    words: Words,
    clock: Arc<dyn Clock>,
    /// True if it waits for the next version when one is proven.
    pub(super) is_kept: bool,
}

/// Why a template has no copy.
pub(super) enum NoCopy {
    /// The system gives no pipes.
    Refused(std::io::Error),
    /// The template does not say what it should.
    Trouble(Trouble),
    /// The template has ended; how, and its last words.
    Ended(Option<ExitStatus>, String),
}

/// A running copy with the server's ends of its pipes; gone when dropped.
#[derive(Debug)]
pub(super) struct Process {
    /// `None` once it has ended.
    template: Option<Template>,
    number: u32,
    /// A socket, so that open files can be handed over.
    input: Option<UnixStream>,
    output: Option<File>,
    errors: Option<File>,
    heard: Vec<u8>,
    words: Words,
    clock: Arc<dyn Clock>,
}

/// The parts that follow a request's head.
#[derive(Debug, Default)]
pub(super) struct Parts<'a> {
    pub(super) blobs: Vec<&'a [u8]>,
    /// Open files, which are handed over as they are.
    pub(super) files: Vec<&'a File>,
}

/// The next part to write.
pub(super) enum Part<'a> {
    Bytes(&'a [u8]),
    Files(&'a [&'a File]),
}

impl Template {
    /// Starts one, which then loads the engine; `preparation` is a whole message.
    pub(super) fn start(
        program: &Path,
        preparation: &[u8],
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let kept = VARIABLES.iter().filter_map(|name| Some((name, passed_on(name)?)));
        let (control, theirs) = UnixStream::pair()?;
        let mut child = Command::new(program)
            .arg(COMMAND)
            .env_clear()
            .envs(kept)
            // Once, not again in each copy.
            .env("LD_BIND_NOW", "1")
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let (heard, words) = (Vec::new(), Words::default());
        let mut template =
            Self { child, control, output, errors, heard, words, clock, is_kept: false };
        // A socket takes this much at once; where nobody reads, the end of the process says more.
        let _ = template.control.write_all(preparation);
        never_wait(template.output.as_ref())?;
        never_wait(template.errors.as_ref())?;
        Ok(template)
    }

    /// True if it lives and has said nothing, so that it can be copied.
    pub(super) fn is_waiting(&self) -> bool {
        let Some(output) = &self.output else { return false };
        // The end of a process closes its pipes; one that lives and has said nothing has nothing to be read.
        matches!(poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&Timespec::default())), Ok(0))
    }

    /// Has it copied, for one version; it may take so long to be ready.
    pub(super) fn copied(mut self, time_max: Duration) -> Result<Process, NoCopy> {
        let (input, theirs) = self.hand_over().map_err(NoCopy::Refused)?;
        let [output, errors] = theirs;
        match self.hear(time_max) {
            Ok(Some(Word::Copied(number))) => Ok(Process {
                number,
                input: Some(input),
                output: Some(output),
                errors: Some(errors),
                heard: Vec::new(),
                words: Words::default(),
                clock: Arc::clone(&self.clock),
                template: Some(self),
            }),
            Ok(Some(Word::Ended(_))) => {
                Err(NoCopy::Trouble(Trouble::Answer("it ends what it did not begin".to_owned())))
            }
            Ok(None) => {
                wait_for_end(self.child.id(), LAST_MOMENTS);
                let status = self.end();
                Err(NoCopy::Ended(status, self.words.text()))
            }
            Err(trouble) => Err(NoCopy::Trouble(trouble)),
        }
    }

    /// Makes the streams of a copy and hands the template its ends; gives the server's: what it is asked through, what
    /// it says, its errors.
    fn hand_over(&self) -> std::io::Result<(UnixStream, [File; STREAMS - 1])> {
        let (input, their_input) = UnixStream::pair()?;
        let (output, their_output) = std::io::pipe()?;
        let (errors, their_errors) = std::io::pipe()?;
        input.set_nonblocking(true)?;
        let ours = [File::from(OwnedFd::from(output)), File::from(OwnedFd::from(errors))];
        // Only this side's ends: those of the copy are other open files.
        ours.iter().try_for_each(|pipe| never_wait(Some(pipe)))?;
        let theirs = [their_input.into(), their_output.into(), OwnedFd::from(their_errors)];
        let theirs = theirs.map(File::from);
        // One that has ended says so with its pipes.
        let _ = message::send_files(&self.control, &theirs.each_ref());
        Ok((input, ours))
    }

    /// Its next word; `None` if it has ended.
    fn hear(&mut self, time_max: Duration) -> Result<Option<Word>, Trouble> {
        let deadline = self.clock.now() + time_max;
        loop {
            let left = deadline.saturating_duration_since(self.clock.now());
            if left.is_zero() {
                return Err(Trouble::Deadline);
            }
            let pipes = [readable(self.output.as_ref()), readable(self.errors.as_ref())];
            wait(pipes.into_iter().flatten(), left)?;
            read(&mut self.errors, |bytes| self.words.hear(bytes));
            let ended = read(&mut self.output, |bytes| self.heard.extend_from_slice(bytes));
            if let Some(word) = next(&mut self.heard)? {
                return Ok(Some(word));
            }
            if ended {
                return Ok(None);
            }
        }
    }

    /// Has its copy ended and reaped; `None` if it does not do that.
    fn end_copy(&mut self) -> Option<ExitStatus> {
        self.control.write_all(&[0]).ok()?;
        match self.hear(ENDING_MAX) {
            Ok(Some(Word::Ended(status))) => Some(ExitStatus::from_raw(status)),
            _ => None,
        }
    }

    /// Ends it, whatever it does, and waits until it is gone; its copy goes with it.
    fn end(&mut self) -> Option<ExitStatus> {
        // It may have ended by itself: then this changes nothing, not even how it ended.
        let _ = self.child.kill();
        let status = self.child.wait().ok();
        // A pipe holds a little; a process that inherited it could hold it open for ever.
        for _ in 0..16 {
            read(&mut self.errors, |bytes| self.words.hear(bytes));
        }
        status
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // On every way out, also that of a panic.
        self.end();
    }
}

impl Process {
    /// Writes the request and reads what it says, whichever is possible, until it is done or ends.
    pub(super) fn converse(
        &mut self,
        parts: &mut VecDeque<Part<'_>>,
        time_max: Duration,
        heard: &mut Heard,
    ) -> Result<(), Trouble> {
        let mut deadline = self.clock.now() + time_max;
        loop {
            let due = heard.probe_due.map_or(deadline, |due| due.min(deadline));
            let left = due.saturating_duration_since(self.clock.now());
            if left.is_zero() {
                return Err(Trouble::Deadline);
            }
            let pipes = [readable(self.output.as_ref()), readable(self.errors.as_ref())];
            let input = self.input.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT));
            wait(pipes.into_iter().flatten().chain(input), left)?;
            if self.write(parts) {
                // Its own work begins when it has all that it was asked.
                let now = self.clock.now();
                deadline = now + time_max;
                heard.begun = Some(now);
            }
            read(&mut self.errors, |bytes| self.words.hear(bytes));
            let ended = read(&mut self.output, |bytes| self.heard.extend_from_slice(bytes));
            while let Some(said) = next(&mut self.heard)? {
                heard.hear(said, self.clock.now())?;
            }
            if heard.done {
                return Ok(());
            }
            if ended {
                wait_for_end(self.number, left.min(LAST_MOMENTS));
                return Ok(());
            }
        }
    }

    /// Writes what the socket takes, and closes it at the end, or where nobody reads any more; true if anything went.
    fn write(&mut self, parts: &mut VecDeque<Part<'_>>) -> bool {
        let Some(input) = &mut self.input else { return false };
        let mut any = false;
        while let Some(part) = parts.front_mut() {
            let written = match part {
                Part::Bytes([]) => Ok(None),
                Part::Bytes(bytes) => input.write(bytes).map(|written| bytes.get(written..)),
                Part::Files(files) => message::send_files(input, files).map(|()| None),
            };
            match written {
                Ok(Some(rest)) => (*part, any) = (Part::Bytes(rest), true),
                Ok(None) => {
                    parts.pop_front();
                    any = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It refuses before it has read everything, or it has ended: its answer or its end says more.
                Err(_) => break,
            }
        }
        self.input = None;
        any
    }

    /// Ends the process, whatever it does, and waits until it is gone; gives how it ended, and its template if that can
    /// be copied again.
    pub(super) fn end(&mut self) -> (Option<ExitStatus>, Option<Template>) {
        let Some(mut template) = self.template.take() else { return (None, None) };
        // One that could not be copied proves in itself.
        let is_copy = template.child.id() != self.number;
        let status = if is_copy { template.end_copy() } else { None };
        let (status, template) = match status {
            Some(status) => (Some(status), Some(template)),
            None => (template.end(), None),
        };
        for _ in 0..16 {
            read(&mut self.errors, |bytes| self.words.hear(bytes));
        }
        (status, template)
    }

    pub(super) fn last_words(&self) -> String {
        self.words.text()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // On every way out, also that of a panic.
        self.end();
    }
}

/// The end of what a process says on standard error.
#[derive(Debug, Default)]
struct Words(VecDeque<u8>);

impl Words {
    fn hear(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(LAST_WORDS);
        self.0.drain(..surplus);
    }

    fn text(&self) -> String {
        let words: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&words);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The value of a variable for a process in another folder: paths are absolute.
fn passed_on(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    let here = std::env::current_dir().unwrap_or_default();
    match name {
        "ORT_DYLIB_PATH" => Some(here.join(value).into()),
        "LD_LIBRARY_PATH" | "LOCPATH" => {
            std::env::join_paths(std::env::split_paths(&value).map(|path| here.join(path))).ok()
        }
        _ => Some(value),
    }
}

fn never_wait(pipe: Option<&impl AsFd>) -> std::io::Result<()> {
    pipe.map_or(Ok(()), |pipe| Ok(rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?))
}

fn readable<P: AsFd>(pipe: Option<&P>) -> Option<PollFd<'_>> {
    pipe.map(|pipe| PollFd::new(pipe, PollFlags::IN))
}

/// Waits until something can be read or written, at most `left`.
fn wait<'a>(pipes: impl Iterator<Item = PollFd<'a>>, left: Duration) -> Result<(), Trouble> {
    let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    match poll(&mut pipes.collect::<Vec<_>>(), Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(Trouble::Answer(error.to_string())),
    }
}

/// The first whole message of what was read.
fn next<T: DeserializeOwned>(heard: &mut Vec<u8>) -> Result<Option<T>, Trouble> {
    if heard.is_empty() {
        return Ok(None);
    }
    let told = |error: &dyn std::fmt::Display| Trouble::Answer(error.to_string());
    // Looked at without being copied; what follows is left for the next look.
    let bytes = Bytes::from(std::mem::take(heard));
    let decoded = message::decode(&bytes, &ANSWER).map_err(|error| told(&error))?;
    let Some(message) = decoded else {
        *heard = bytes.into();
        return Ok(None);
    };
    *heard = bytes[message.encoded_bytes()..].to_vec();
    serde_json::from_slice(&message.head).map(Some).map_err(|error| told(&error))
}

/// A process that closed its output is about to end; how it does says more than that it was killed.
#[cfg(target_os = "linux")]
fn wait_for_end(number: u32, left: Duration) {
    use rustix::process::{Pid, PidfdFlags};
    let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else { return };
    let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    let left = Timespec::try_from(left).unwrap_or_default();
    // An interruption only makes it less patient.
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left));
}

/// Elsewhere there is nothing to wait on.
#[cfg(not(target_os = "linux"))]
fn wait_for_end(_number: u32, _left: Duration) {}

/// Reads what is there, once; true at the end of the pipe, which is then closed.
fn read<P: Read>(pipe: &mut Option<P>, mut each: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 << 10];
    let Some(open) = pipe else { return true };
    loop {
        match open.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                each(&buffer[..count]);
                return false;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    *pipe = None;
    true
}
