//! A model's predictions and outcomes on disk: segments that are appended to, and a snapshot of the sums.
//!
//! Below `feedback/<model>/` in the state's folder. A segment is a magic word and frames: length, a SipHash-1-3 of the
//! payload, the payload. A payload is a series (JSON), predictions of 64 bytes, or outcomes of 48. The snapshot is
//! JSON: the sums, and the segment and byte up to which they hold. Always true:
//! - Outcomes are synced before anybody hears that they are joined; predictions are written each second, unsynced.
//! - What a process that died left half written ends a segment; whoever reads it stops there.
//! - A segment is removed once none of its predictions is remembered and the snapshot holds its sums.
//!
//! Not here: what payloads mean for a model (`ledger`).

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    hash::Hasher as _,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use siphasher::sip::SipHasher13;

use crate::{
    model::PredictionId,
    serve::{RECALLED_WORDS as WORDS, Recalled},
};

use super::tally::Truth;

const MAGIC: &[u8; 8] = b"tgfeed01";
/// Bytes of a frame before its payload.
const HEAD: usize = 12;
/// From this size on, another segment is begun.
const SEGMENT_BYTES: u64 = 4 << 20;
/// The longest payload; what is longer was never written.
const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// Predictions and outcomes in one frame at most: few enough that a frame stays in a core's cache while it is built.
pub(super) const FRAME_MAX: usize = 1 << 12;

const SERIES: u8 = 1;
const PREDICTIONS: u8 = 2;
const OUTCOMES: u8 = 3;

/// The files of a model.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    /// The segment that is appended to.
    number: u64,
    /// Its bytes that were written well; `None` while it is not there yet.
    bytes: Option<u64>,
    /// Older segments, and the position behind their last prediction.
    older: VecDeque<(u64, u64)>,
}

/// The place up to which something was read: segment and byte.
pub(super) type Mark = (u64, u64);

/// A part of a segment.
#[derive(Debug)]
pub(super) enum Frame {
    /// A series, by its index.
    Series(serde_json::Value),
    Predictions(Vec<Recalled>),
    Outcomes(Vec<Joined>),
}

/// An outcome as it is written down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Joined {
    pub(super) prediction: PredictionId,
    pub(super) row: u32,
    pub(super) truth: Truth,
    /// The class or number that the client says was predicted, where it is not remembered; its bits.
    pub(super) echo: Option<Truth>,
    /// Nanoseconds between prediction and outcome.
    pub(super) delay: Duration,
}

/// Writes to come: frames one after the other.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<u8>);

impl Joined {
    fn write(&self, out: &mut Vec<u8>) {
        let kind = |truth: &Truth| match truth {
            Truth::Class(bits) => (1u32, *bits),
            Truth::Value(value) => (2, value.to_bits()),
            Truth::Reward(value) => (3, value.to_bits()),
        };
        let (truth, bits) = kind(&self.truth);
        let (echo, echo_bits) = self.echo.as_ref().map_or((0, 0), kind);
        out.extend_from_slice(&self.prediction.bits().to_le_bytes());
        out.extend_from_slice(&self.row.to_le_bytes());
        out.extend_from_slice(&(truth | echo << 8).to_le_bytes());
        out.extend_from_slice(&bits.to_le_bytes());
        out.extend_from_slice(&echo_bits.to_le_bytes());
        let delay = u64::try_from(self.delay.as_nanos()).unwrap_or(u64::MAX);
        out.extend_from_slice(&delay.to_le_bytes());
    }

    const BYTES: usize = 48;

    fn read(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let name = u128::from(word(8)) << 64 | u128::from(word(0));
        let kinds = word(16) >> 32;
        let truth = |kind: u64, bits: u64| match kind & 0xff {
            1 => Some(Truth::Class(bits)),
            2 => Some(Truth::Value(f64::from_bits(bits))),
            3 => Some(Truth::Reward(f64::from_bits(bits))),
            _ => None,
        };
        Some(Self {
            prediction: PredictionId::from_bits(name),
            row: u32::try_from(word(16) & 0xffff_ffff).ok()?,
            truth: truth(kinds, word(24))?,
            echo: truth(kinds >> 8, word(32)),
            delay: Duration::from_nanos(word(40)),
        })
    }
}

impl Frames {
    pub(super) fn series(&mut self, series: &serde_json::Value) {
        let text = series.to_string();
        self.frame(SERIES, |out| out.extend_from_slice(text.as_bytes()));
    }

    /// One frame of at most [`FRAME_MAX`] predictions.
    pub(super) fn predictions<'a>(&mut self, entries: impl Iterator<Item = &'a [u64; WORDS]>) {
        self.frame(PREDICTIONS, |out| {
            for word in entries.take(FRAME_MAX).flatten() {
                out.extend_from_slice(&word.to_le_bytes());
            }
        });
    }

    /// Empties it; its room stays.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn outcomes(&mut self, outcomes: &[Joined]) {
        for outcomes in outcomes.chunks(FRAME_MAX) {
            self.frame(OUTCOMES, |out| outcomes.iter().for_each(|joined| joined.write(out)));
        }
    }

    fn frame(&mut self, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
        let begin = self.0.len();
        self.0.extend_from_slice(&[0; HEAD]);
        self.0.push(kind);
        payload(&mut self.0);
        let (head, payload) = self.0[begin..].split_at_mut(HEAD);
        let length = u32::try_from(payload.len()).expect("frames are short");
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&sum(payload).to_le_bytes());
    }
}

fn sum(payload: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(payload);
    hasher.finish()
}

/// Takes the first frame off; `None` where there is no whole one.
fn take_frame(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?);
    let length = usize::try_from(length).ok().filter(|length| *length <= PAYLOAD_BYTES_MAX)?;
    let (payload, rest) = rest.split_at_checked(length)?;
    if sum(payload).to_le_bytes() != head[4..] {
        return None;
    }
    let (kind, payload) = payload.split_first()?;
    let frame = match *kind {
        SERIES => Frame::Series(serde_json::from_slice(payload).ok()?),
        PREDICTIONS => {
            let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
            let entry = |bytes: &[u8; 64]| {
                let words = bytes.as_chunks().0;
                Recalled::from_words(std::array::from_fn(|index| word(&words[index])))
            };
            Frame::Predictions(payload.as_chunks().0.iter().map(entry).collect())
        }
        OUTCOMES => {
            let outcomes = payload.as_chunks().0.iter().map(Joined::read);
            Frame::Outcomes(outcomes.collect::<Option<_>>()?)
        }
        _ => return None,
    };
    Some((frame, rest))
}

impl Journal {
    /// The files of a model in its folder, which is made where it is missing. What is there is read with
    /// [`Journal::replay`].
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".segment"));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        let number = numbers.last().map_or(1, |last| last + 1);
        let older = numbers.into_iter().map(|number| (number, 0)).collect();
        Ok(Self { folder, number, bytes: None, older })
    }

    /// Hands out what older segments hold, in order: each frame with the mark behind it. `end` gives the position
    /// behind the last prediction, at the end of each segment.
    pub(super) fn replay<T>(
        &mut self,
        into: &mut T,
        mut each: impl FnMut(&mut T, Frame, Mark),
        end: impl Fn(&T) -> u64,
    ) -> io::Result<()> {
        for index in 0..self.older.len() {
            let number = self.older[index].0;
            let bytes = fs::read(self.path(number))?;
            let mut rest = bytes.strip_prefix(MAGIC).unwrap_or_default();
            while let Some((frame, after)) = take_frame(rest) {
                rest = after;
                each(into, frame, (number, (bytes.len() - rest.len()) as u64));
            }
            if !rest.is_empty() && index + 1 < self.older.len() {
                let (path, left) = (self.path(number), rest.len());
                tracing::warn!("{left} bytes at the end of {} are passed over", path.display());
            }
            self.older[index].1 = end(into);
        }
        Ok(())
    }

    /// Appends frames, synced if somebody relies on them. `head` are the series, for the beginning of a segment;
    /// `position` is behind the last prediction that was written before.
    ///
    /// After an error nothing of it counts as written.
    pub(super) fn append(
        &mut self,
        frames: &Frames,
        synced: bool,
        head: impl FnOnce() -> Frames,
        position: u64,
    ) -> io::Result<()> {
        if self.bytes.is_some_and(|bytes| bytes >= SEGMENT_BYTES) {
            self.older.push_back((self.number, position));
            (self.number, self.bytes) = (self.number + 1, None);
        }
        let path = self.path(self.number);
        let is_new = self.bytes.is_none();
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600);
        let mut file = options.open(&path)?;
        // What a failed write left behind goes first.
        file.set_len(self.bytes.unwrap_or(0))?;
        std::io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        let mut written = 0;
        if is_new {
            let head = head();
            file.write_all(MAGIC)?;
            file.write_all(&head.0)?;
            written += (MAGIC.len() + head.0.len()) as u64;
        }
        file.write_all(&frames.0)?;
        written += frames.0.len() as u64;
        if synced {
            file.sync_data()?;
            if is_new {
                File::open(&self.folder)?.sync_all()?;
            }
        }
        self.bytes = Some(self.bytes.unwrap_or(0) + written);
        Ok(())
    }

    /// The place behind what was written.
    pub(super) fn mark(&self) -> Mark {
        (self.number, self.bytes.unwrap_or(0))
    }

    /// True if a segment could go once a snapshot holds its sums: no prediction before `first` is remembered.
    pub(super) fn has_old(&self, first: u64) -> bool {
        self.older.front().is_some_and(|(_, end)| *end <= first)
    }

    /// Replaces the snapshot, and removes segments of which nothing is remembered; everything up to the mark must be
    /// part of it.
    pub(super) fn snapshot(&mut self, snapshot: &serde_json::Value, first: u64) -> io::Result<()> {
        if self.bytes.is_some() {
            File::open(self.path(self.number))?.sync_data()?;
        }
        let aside = self.folder.join("sums.incoming");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&aside)?;
        file.write_all(snapshot.to_string().as_bytes())?;
        file.sync_data()?;
        fs::rename(&aside, self.folder.join("sums.json"))?;
        File::open(&self.folder)?.sync_all()?;
        while self.has_old(first)
            && let Some((number, _)) = self.older.pop_front()
        {
            fs::remove_file(self.path(number))?;
        }
        Ok(())
    }

    /// The snapshot, if there is one that can be read.
    pub(super) fn sums(&self) -> Option<serde_json::Value> {
        let text = fs::read(self.folder.join("sums.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Removes all of it.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!("not removed: {}: {error}", self.folder.display());
        }
    }

    /// Its folder, for messages.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:08}.segment"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Predicted;

    fn recalled(name: u128) -> Recalled {
        Recalled {
            prediction: PredictionId::from_bits(name),
            row: 0,
            rows: 1,
            place: 0,
            at: Duration::from_secs(5),
            predicted: Predicted::NOTHING,
            segment: 0,
            is_apart: false,
            assigned: None,
        }
    }

    fn joined(name: u128) -> Joined {
        Joined {
            prediction: PredictionId::from_bits(name << 70 | 3),
            row: 70_000,
            truth: Truth::Reward(-1.5),
            echo: Some(Truth::Class(u64::MAX)),
            delay: Duration::from_nanos(u64::MAX),
        }
    }

    /// Names of predictions and outcomes that are read from a folder, and the marks behind them.
    fn read(folder: &Path) -> (Vec<Joined>, Vec<PredictionId>, Vec<Mark>) {
        let mut journal = Journal::open(folder.to_owned()).unwrap();
        let mut found = (Vec::new(), Vec::new(), Vec::new());
        let each = |found: &mut (Vec<_>, Vec<_>, Vec<_>), frame, mark| {
            match frame {
                Frame::Series(series) => assert_eq!(series, "s"),
                Frame::Outcomes(outcomes) => found.0.extend(outcomes),
                Frame::Predictions(entries) => {
                    found.1.extend(entries.iter().map(|entry: &Recalled| entry.prediction));
                }
            }
            found.2.push(mark);
        };
        journal.replay(&mut found, each, |_| 0).unwrap();
        found
    }

    #[test]
    fn what_was_written_is_read_and_a_torn_end_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("m");
        let mut journal = Journal::open(folder.clone()).unwrap();
        let head = || {
            let mut head = Frames::default();
            head.series(&"s".into());
            head
        };
        let mut frames = Frames::default();
        frames.predictions([1, 2].map(|name| recalled(name).to_words()).iter());
        frames.outcomes(&[joined(1)]);
        journal.append(&frames, true, head, 0).unwrap();
        let mark = journal.mark();
        let (outcomes, names, marks) = read(&folder);
        assert_eq!(outcomes, [joined(1)]);
        assert_eq!(names, [1, 2].map(PredictionId::from_bits));
        assert_eq!((marks.len(), marks[2]), (3, mark));
        journal.append(&frames, false, Frames::default, 2).unwrap();
        let path = journal.path(1);
        let whole = fs::read(&path).unwrap();
        for cut in mark.1..whole.len() as u64 {
            fs::write(&path, &whole[..usize::try_from(cut).unwrap()]).unwrap();
            let (outcomes, ..) = read(&folder);
            assert_eq!(outcomes.len(), 1, "cut at {cut}");
        }
        // Whoever goes on begins a segment of its own.
        let mut next = Journal::open(folder.clone()).unwrap();
        next.append(&frames, true, Frames::default, 4).unwrap();
        assert_eq!(read(&folder).1.len(), 6);
        let _ = next.replay(&mut (), |(), _, _| {}, |()| 4);
        next.snapshot(&serde_json::json!({"sums": 1}), 3).unwrap();
        assert!(fs::exists(&path).unwrap(), "a prediction of it is remembered");
        next.snapshot(&serde_json::json!({"sums": 2}), 4).unwrap();
        assert!(!fs::exists(&path).unwrap());
        assert_eq!(next.sums().unwrap()["sums"], 2);
    }
}
