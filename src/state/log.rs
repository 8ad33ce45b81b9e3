//! Reading the log: every byte is verified, and only whole groups of records are given out.
//!
//! A log is `HEADER` and frames. What follows the last whole group is the tail: a frame with fewer bytes than its
//! proven head announces, a group whose last record is not there, or a rest of zeros, which some file systems leave
//! behind after a power cut. A tail was never acknowledged. Everything else that does not fit is damage.
//!
//! Not here: writing (`writer`), the layout of a frame (`frame`).

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    error::{Damage, StateError},
    frame::{self, HEAD_BYTES, Wrong},
    record::{Filter, Hash, Record},
};

/// The first bytes of every log, with the version of its format.
pub(super) const HEADER: &[u8] = b"tidegate-log 1\n";

/// The log's name in its folder.
pub(super) const LOG: &str = "records.log";

/// So many zeros at the end are no flipped byte.
const ZEROS_MIN: u64 = 16;

/// A server that runs may rewrite its tail under a reader's eyes; what is damaged stays so.
const LOOKS: usize = 3;

/// A place between two records, and what the chain is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last record; 0 for none.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
    /// Where it ends in the log.
    pub bytes: u64,
}

/// A log that is what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The number of records.
    pub records: u64,
    /// The hash over all of them.
    pub head_hash: Hash,
    /// The length of the whole records and the header.
    pub bytes: u64,
    /// Bytes behind them that were not acknowledged (yet).
    pub tail_bytes: u64,
}

/// A record with where it ends in the chain.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) head: Head,
}

/// How far a log could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// The end of the last whole group.
    pub(super) head: Head,
    /// Bytes behind it.
    pub(super) tail_bytes: u64,
}

/// Verifies a log: that of a state folder, also while a server writes to it, or a backup.
pub fn verify(path: &Path) -> Result<Verified, StateError> {
    let reading = look(&log_at(path), |_| Ok(()))?;
    Ok(reading.into())
}

/// Reads records straight from the log of a state folder, or from a backup, also while a server writes to it. The
/// records before a damage are given with it.
pub fn read(path: &Path, filter: &Filter) -> Result<(Vec<Record>, Option<StateError>), StateError> {
    let path = log_at(path);
    let mut chosen = Chosen::new(filter);
    match look(&path, |entry| chosen.offer(entry)) {
        Ok(_) => Ok((chosen.records.into(), None)),
        Err(damaged @ StateError::Damaged { .. }) => Ok((chosen.records.into(), Some(damaged))),
        Err(error) => Err(error),
    }
}

/// The records that a filter lets through.
pub(super) struct Chosen<'a> {
    filter: &'a Filter,
    limit: usize,
    last: u64,
    pub(super) records: VecDeque<Record>,
}

impl<'a> Chosen<'a> {
    pub(super) fn new(filter: &'a Filter) -> Self {
        let limit = filter.limit.min(Filter::LIMIT_MAX);
        Self { filter, limit, last: 0, records: VecDeque::new() }
    }

    /// Takes a record, or leaves it; those that an earlier look has seen are passed over.
    #[expect(clippy::unnecessary_wraps, reason = "the shape of a visitor")]
    pub(super) fn offer(&mut self, entry: Entry) -> Result<(), StateError> {
        let new = entry.record.sequence > self.last;
        self.last = self.last.max(entry.record.sequence);
        if new && self.filter.accepts(&entry.record) {
            if self.filter.newest && self.records.len() == self.limit {
                self.records.pop_front();
            }
            if self.records.len() < self.limit {
                self.records.push_back(entry.record);
            }
        }
        Ok(())
    }
}

/// Reads a log as often as damage may come from a server that is rewriting its tail. A visitor may see records twice.
fn look(
    path: &Path,
    mut visit: impl FnMut(Entry) -> Result<(), StateError>,
) -> Result<Reading, StateError> {
    let mut looks = 1;
    loop {
        match scan(path, Head::start(), None, &mut visit) {
            Err(StateError::Damaged { .. }) if looks < LOOKS => looks += 1,
            result => return result,
        }
    }
}

/// Reads a log from a place in it, to its end or to `until`.
pub(super) fn scan(
    path: &Path,
    from: Head,
    until: Option<u64>,
    visit: &mut dyn FnMut(Entry) -> Result<(), StateError>,
) -> Result<Reading, StateError> {
    let failed = |error| StateError::io("read", path, error);
    let mut file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StateError::Missing(path.to_owned()),
        _ => failed(error),
    })?;
    file.seek(SeekFrom::Start(from.bytes)).map_err(failed)?;
    let bytes = until.map_or(u64::MAX, |until| until.saturating_sub(from.bytes));
    let input = BufReader::with_capacity(1 << 16, file.take(bytes));
    scan_bytes(input, from, visit).map_err(|stop| match stop {
        Stop::Io(error) => failed(error),
        Stop::Damage(damage) => StateError::Damaged { path: path.to_owned(), damage },
        Stop::Visitor(error) => error,
    })
}

/// Why reading ended early.
#[derive(Debug)]
pub(super) enum Stop {
    Io(io::Error),
    Damage(Damage),
    Visitor(StateError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads a log's bytes from a place in it.
pub(super) fn scan_bytes(
    input: impl BufRead,
    from: Head,
    visit: &mut dyn FnMut(Entry) -> Result<(), StateError>,
) -> Result<Reading, Stop> {
    let mut frames = Frames { input, head: from, read: from.bytes, buffer: Vec::new() };
    if from == Head::start() {
        frames.skip_header()?;
    }
    let mut whole = frames.head;
    let mut group = Vec::new();
    while let Some((record, more)) = frames.next()? {
        group.push(Entry { record, head: frames.head });
        if !more {
            for entry in group.drain(..) {
                visit(entry).map_err(Stop::Visitor)?;
            }
            whole = frames.head;
        }
    }
    Ok(Reading { head: whole, tail_bytes: frames.read - whole.bytes })
}

/// The frames of a log, one after the other.
struct Frames<R> {
    input: R,
    /// Behind the last frame that was given.
    head: Head,
    /// Bytes of the log that were read, or stepped over.
    read: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Frames<R> {
    fn skip_header(&mut self) -> Result<(), Stop> {
        self.fill(0, HEADER.len())?;
        let wrong = (0..HEADER.len()).find(|&at| self.buffer.get(at) != HEADER.get(at));
        let Some(at) = wrong else {
            self.head.bytes = self.read;
            return Ok(());
        };
        let what = match self.buffer.get(at) {
            None => format!("the file ends after {at} bytes, inside its header"),
            Some(is) => format!(
                "{is:#04x} stands where {:#04x} must: this is no log of format 1, or its header was changed",
                HEADER[at]
            ),
        };
        Err(Stop::Damage(Damage { offset: at as u64, sequence: 0, what }))
    }

    /// The next record, and whether the one behind it belongs to it; `None` at the tail.
    fn next(&mut self) -> Result<Option<(Record, bool)>, Stop> {
        let previous = self.head.hash;
        if !self.fill(0, HEAD_BYTES)? {
            return Ok(None);
        }
        let head: &frame::Head =
            self.buffer[..].try_into().expect("the buffer was filled to a head's length");
        let announced = match frame::read_head(previous, head) {
            Ok(announced) => announced,
            Err(wrong) => return self.damaged(wrong),
        };
        if !self.fill(HEAD_BYTES, announced.length + 1)? {
            return Ok(None);
        }
        let rest = &self.buffer[HEAD_BYTES..];
        let hash = match announced.compare(previous, rest) {
            Ok(hash) => hash,
            Err(wrong) => return self.damaged(wrong),
        };
        let sequence = self.head.sequence + 1;
        let (record, more) =
            Record::read(&rest[..announced.length]).map_err(|error| self.unreadable(&error))?;
        if record.sequence != sequence {
            return Err(self.unreadable(&format!("it calls itself {}", record.sequence)));
        }
        self.head = Head { sequence, hash, bytes: self.read };
        Ok(Some((record, more)))
    }

    /// Reads so many bytes behind the first `keep` of the buffer; `false` if the log ends before.
    fn fill(&mut self, keep: usize, bytes: usize) -> io::Result<bool> {
        self.buffer.truncate(keep);
        let got = self.input.by_ref().take(bytes as u64).read_to_end(&mut self.buffer)?;
        self.read += got as u64;
        Ok(got == bytes)
    }

    /// What a frame that does not hold comes to: zeros up to the end were never written, all else is damage.
    fn damaged<T>(&mut self, wrong: Option<Wrong>) -> Result<Option<T>, Stop> {
        if self.buffer.last() == Some(&0) {
            let zeros = self.buffer.iter().rev().take_while(|&&byte| byte == 0).count();
            let mut rest = self.input.by_ref().bytes();
            let mut further = 0;
            let end = loop {
                match rest.next().transpose()? {
                    Some(0) => further += 1,
                    other => break other,
                }
            };
            if end.is_none() && zeros as u64 + further >= ZEROS_MIN {
                self.read += further;
                return Ok(None);
            }
        }
        let start = self.head.bytes;
        let (offset, what) = match wrong {
            Some(Wrong { at, is, was }) => {
                (start + at as u64, format!("the byte is {is:#04x} and was {was:#04x}"))
            }
            None => (start, "the record, which begins here, is not what was written".to_owned()),
        };
        Err(Stop::Damage(Damage { offset, sequence: self.head.sequence + 1, what }))
    }

    fn unreadable(&self, why: &str) -> Stop {
        let what = format!("the record, which begins here, is not one of format 1: {why}");
        Stop::Damage(Damage { offset: self.head.bytes, sequence: self.head.sequence + 1, what })
    }
}

impl Head {
    /// Before the header of a log.
    pub(super) const fn start() -> Self {
        Self { sequence: 0, hash: Hash([0; 32]), bytes: 0 }
    }
}

impl From<Reading> for Verified {
    fn from(Reading { head, tail_bytes }: Reading) -> Self {
        let Head { sequence, hash, bytes } = head;
        Self { records: sequence, head_hash: hash, bytes, tail_bytes }
    }
}

/// The log of a state folder, or the file itself.
pub(super) fn log_at(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(LOG) } else { path.to_owned() }
}

/// Any bytes as a log, for fuzzing: what they hold, or what is wrong with them.
#[doc(hidden)]
pub fn verify_bytes(bytes: &[u8]) -> Result<Verified, Damage> {
    match scan_bytes(bytes, Head::start(), &mut |_| Ok(())) {
        Ok(reading) => Ok(reading.into()),
        Err(Stop::Damage(damage)) => Err(damage),
        Err(Stop::Io(_) | Stop::Visitor(_)) => unreachable!("memory is read, and nobody objects"),
    }
}
