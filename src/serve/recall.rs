//! Predictions on their way to whoever joins outcomes to them: one ring per worker, of entries of 64 bytes.
//!
//! A worker stages an entry for each row of an answer and shows them once the answer is counted, so that whoever has
//! the answer finds its prediction remembered. Always true:
//! - A ring has one writer, its worker, and one reader; neither waits for the other.
//! - The reader is woken where a ring fills, so that it may rest while little comes.
//! - Once all is read, a ring begins again at its first slot: slots that were just used are still in the caches.
//! - Where a ring is full, or a request has more than [`ROWS_MAX`] rows, the rest is not remembered, and counted.
//!
//! Not here: what becomes of entries (`feedback`), which outputs are the prediction (`answer`).

use std::{
    sync::{
        OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread::Thread,
    time::Duration,
};

use crate::{model::PredictionId, monitor::WorkerId};

use super::{Assignment, Predicted, PredictedKind};

/// Rings of all workers.
#[derive(Debug)]
pub struct Recall {
    lanes: Box<[Lane]>,
    reader: OnceLock<Thread>,
}

/// Rows of one request that are remembered.
pub(super) const ROWS_MAX: usize = 1024;

/// Entries of one worker that may wait to be read; a power of two.
const WAITING_MAX: usize = 1 << 14;

/// Entries that wait in a ring when the reader is woken; much less than there is room for while it gets there.
const WAKE_AT: u64 = (WAITING_MAX / 8) as u64;

/// Words of an entry, [`Recalled::to_words`].
pub const WORDS: usize = 8;

/// Looks at a ring in which more may have come since.
const LOOKS: usize = 4;

#[derive(Debug)]
#[repr(align(128))]
struct Lane {
    /// Entries shown so far; written by the worker.
    head: AtomicU64,
    /// The entry that lies in the first slot; written by the worker while nothing waits to be read.
    first: AtomicU64,
    /// Rows that were not remembered.
    lost: AtomicU64,
    slots: Box<[[AtomicU64; WORDS]]>,
    tail: Tail,
}

/// Entries taken so far; written by the reader.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Tail(AtomicU64);

/// A row's prediction, and what it takes to join an outcome to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recalled {
    /// The prediction's name.
    pub prediction: PredictionId,
    /// The row in its request.
    pub row: u16,
    /// Rows of its request.
    pub rows: u32,
    /// The place of the version's arm that answered ([`crate::monitor::ArmRecorder::place`]).
    pub place: u32,
    /// The time of assignment, since 1970.
    pub at: Duration,
    /// What was predicted.
    pub predicted: Predicted,
    /// The segment of the row; 0 where it has none.
    pub segment: u8,
    /// True if each row of the request has a segment of its own, so that none stands for the others.
    pub is_apart: bool,
    /// How a rollout assigned the request to the arm that answered it.
    pub assigned: Option<Assigned>,
}

/// How a rollout assigned a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Assigned {
    /// The candidate's weight among the two arms, as of assignment.
    pub share: f64,
    /// The hash of the key that assigned it.
    pub key: u64,
    /// True if the key is the client's, so that more requests of it go the same way.
    pub is_sticky: bool,
    /// True if it was assigned to the candidate.
    pub is_candidate: bool,
}

impl From<Assignment> for Assigned {
    fn from(assignment: Assignment) -> Self {
        let Assignment { share, key, is_sticky, is_candidate } = assignment;
        Self { share, key, is_sticky, is_candidate }
    }
}

const ASSIGNED: u64 = 1 << 2;
const STICKY: u64 = 1 << 3;
const CANDIDATE: u64 = 1 << 4;
const POSITIVES: u64 = 1 << 5;
const APART: u64 = 1 << 6;

impl Recalled {
    /// Its 64 bytes, in words.
    #[must_use]
    pub fn to_words(&self) -> [u64; WORDS] {
        let bits = self.prediction.bits();
        let kind = match self.predicted.kind {
            PredictedKind::Nothing => 0,
            PredictedKind::Number => 1,
            PredictedKind::Text => 2,
            PredictedKind::Value => 3,
        };
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let assigned = self.assigned.map_or([0; 3], |assigned| {
            let flags = ASSIGNED
                | flag(assigned.is_sticky, STICKY)
                | flag(assigned.is_candidate, CANDIDATE);
            [flags, assigned.share.to_bits(), assigned.key]
        });
        let is_positives = flag(self.predicted.is_positives, POSITIVES);
        let flags = kind
            | is_positives
            | flag(self.is_apart, APART)
            | assigned[0]
            | u64::from(self.segment) << 8
            | u64::from(self.row) << 16;
        #[expect(clippy::cast_possible_truncation, reason = "the halves; nanoseconds until 2554")]
        let (head, tail, at) = ((bits >> 64) as u64, bits as u64, self.at.as_nanos() as u64);
        [
            head,
            tail,
            self.predicted.bits,
            at,
            assigned[1],
            assigned[2],
            u64::from(self.place) << 32 | u64::from(self.rows),
            u64::from(self.predicted.score.to_bits()) << 32 | flags,
        ]
    }

    /// The bits of the prediction's name in an entry's words.
    #[must_use]
    pub fn name_in([head, tail, ..]: &[u64; WORDS]) -> u128 {
        u128::from(*head) << 64 | u128::from(*tail)
    }

    /// The time of assignment in an entry's words.
    #[must_use]
    pub fn time_in([_, _, _, at, ..]: &[u64; WORDS]) -> Duration {
        Duration::from_nanos(*at)
    }

    /// The entry of these words.
    #[must_use]
    pub fn from_words(words: [u64; WORDS]) -> Self {
        let [_, _, bits, _, share, key, place, flags] = words;
        let is = |flag: u64| flags & flag != 0;
        #[expect(clippy::cast_possible_truncation, reason = "parts of words")]
        Self {
            prediction: PredictionId::from_bits(Self::name_in(&words)),
            row: (flags >> 16) as u16,
            rows: place as u32,
            place: (place >> 32) as u32,
            at: Self::time_in(&words),
            predicted: Predicted {
                kind: match flags & 3 {
                    0 => PredictedKind::Nothing,
                    1 => PredictedKind::Number,
                    2 => PredictedKind::Text,
                    _ => PredictedKind::Value,
                },
                bits,
                score: f32::from_bits((flags >> 32) as u32),
                is_positives: is(POSITIVES),
            },
            segment: (flags >> 8) as u8,
            is_apart: is(APART),
            assigned: is(ASSIGNED).then(|| Assigned {
                share: f64::from_bits(share),
                key,
                is_sticky: is(STICKY),
                is_candidate: is(CANDIDATE),
            }),
        }
    }
}

impl Lane {
    #[inline]
    fn slot(&self, at: u64) -> &[AtomicU64; WORDS] {
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits count")]
        let index = at.wrapping_sub(self.first.load(Relaxed)) as usize & (WAITING_MAX - 1);
        &self.slots[index]
    }
}

impl Recall {
    /// Empty rings for this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let slot = || std::array::from_fn(|_| AtomicU64::new(0));
        let lane = || Lane {
            head: AtomicU64::new(0),
            first: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            slots: (0..WAITING_MAX).map(|_| slot()).collect(),
            tail: Tail::default(),
        };
        let lanes = (0..workers.max(1)).map(|_| lane()).collect();
        Self { lanes, reader: OnceLock::new() }
    }

    /// Names the thread that reads, which is woken where a ring fills; counts for the first one.
    pub fn read_by(&self, reader: Thread) {
        let _ = self.reader.set(reader);
    }

    /// Writes an entry behind `staged` others that are not shown yet; false if there is no room for it.
    #[inline]
    pub(super) fn stage(&self, worker: WorkerId, staged: u64, entry: &Recalled) -> bool {
        let lane = &self.lanes[worker.0];
        let head = lane.head.load(Relaxed);
        let (at, tail) = (head + staged, lane.tail.0.load(Acquire));
        if at - tail >= WAITING_MAX as u64 {
            return false;
        }
        if staged == 0 && tail == head {
            // The reader has no business in the slots until it sees another head, and then it sees this, too.
            lane.first.store(head, Relaxed);
        }
        for (word, value) in lane.slot(at).iter().zip(entry.to_words()) {
            word.store(value, Relaxed);
        }
        true
    }

    /// Shows the worker's staged entries to the reader; `lost` rows of the request were not staged.
    #[inline]
    pub(super) fn show(&self, worker: WorkerId, staged: u64, lost: u64) {
        let lane = &self.lanes[worker.0];
        let (before, tail) = (lane.head.load(Relaxed), lane.tail.0.load(Relaxed));
        lane.head.store(before + staged, Release);
        if fills(before - tail, staged) {
            self.reader.get().inspect(|reader| reader.unpark());
        }
        if lost > 0 {
            lane.lost.fetch_add(lost, Relaxed);
        }
    }

    /// Hands out what was shown since the last time, each worker's in the order in which its requests ended. For one
    /// reader.
    pub fn take(&self, mut each: impl FnMut(Recalled)) -> usize {
        let mut taken = 0;
        for lane in &self.lanes {
            // Again, for what came in the meantime: a ring begins anew where nothing waits.
            for _ in 0..LOOKS {
                let head = lane.head.load(Acquire);
                let tail = lane.tail.0.load(Relaxed);
                if head == tail {
                    break;
                }
                for at in tail..head {
                    let slot = lane.slot(at);
                    each(Recalled::from_words(std::array::from_fn(|word| {
                        slot[word].load(Relaxed)
                    })));
                }
                lane.tail.0.store(head, Release);
                taken += usize::try_from(head - tail).unwrap_or(0);
            }
        }
        taken
    }

    /// Rows so far that were not remembered: they came faster than they were taken, or with too many others.
    pub fn lost(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.lost.load(Relaxed)).sum()
    }
}

/// True if it is time to wake the reader: with these entries, enough wait.
#[inline]
fn fills(waiting: u64, staged: u64) -> bool {
    waiting < WAKE_AT && waiting + staged >= WAKE_AT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(count: u32) -> Recalled {
        Recalled {
            prediction: PredictionId::from_bits(u128::from(count) << 40 | 5),
            row: 3,
            rows: 70_000,
            place: u32::MAX - 1,
            at: Duration::from_nanos(1_800_000_000_123_456_789),
            predicted: Predicted {
                kind: PredictedKind::Text,
                bits: u64::MAX,
                score: 0.25,
                is_positives: true,
            },
            segment: 200,
            is_apart: true,
            assigned: Some(Assigned { share: 0.1, key: 9, is_sticky: true, is_candidate: false }),
        }
    }

    #[test]
    fn the_reader_is_woken_where_a_ring_fills() {
        assert!(!fills(0, WAKE_AT - 1) && fills(WAKE_AT - 1, 1) && !fills(WAKE_AT, 1));
        assert!(fills(0, 2 * WAKE_AT));
        let (recall, (tell, told)) = (Recall::new(2), std::sync::mpsc::channel());
        std::thread::scope(|threads| {
            threads.spawn(|| {
                recall.read_by(std::thread::current());
                tell.send(()).unwrap();
                while recall.take(|_| {}) == 0 {
                    std::thread::park();
                }
            });
            told.recv().unwrap();
            assert!((0..WAKE_AT).all(|staged| recall.stage(WorkerId(1), staged, &entry(1))));
            recall.show(WorkerId(1), WAKE_AT, 0);
        });
    }

    #[test]
    fn entries_keep_all_that_they_hold() {
        let check = |entry: Recalled| assert_eq!(Recalled::from_words(entry.to_words()), entry);
        check(entry(1));
        check(Recalled { assigned: None, row: 1023, segment: 0, is_apart: false, ..entry(2) });
        let predicted = Predicted { bits: 7, score: -1.0, ..Predicted::NOTHING };
        check(Recalled { predicted, ..entry(3) });
    }

    #[test]
    fn entries_are_seen_once_shown_and_those_without_room_are_counted() {
        let recall = Recall::new(2);
        let taken = || {
            let mut names = Vec::new();
            recall.take(|entry| names.push(entry.prediction));
            names
        };
        assert!(recall.stage(WorkerId(1), 0, &entry(1)));
        assert_eq!(taken(), []);
        // Given up: the next one takes its place.
        assert!(recall.stage(WorkerId(1), 0, &entry(2)) && recall.stage(WorkerId(1), 1, &entry(3)));
        recall.show(WorkerId(1), 2, 0);
        assert_eq!(taken(), [entry(2).prediction, entry(3).prediction]);
        let room = WAITING_MAX as u64;
        assert!((0..room).all(|staged| recall.stage(WorkerId(0), staged, &entry(4))));
        assert!(!recall.stage(WorkerId(0), room, &entry(4)));
        recall.show(WorkerId(0), room, 5);
        assert!(!recall.stage(WorkerId(0), 0, &entry(5)));
        assert_eq!((taken().len(), recall.lost()), (WAITING_MAX, 5));
        assert!(recall.stage(WorkerId(0), 0, &entry(5)));
    }

    #[test]
    fn a_reader_beside_the_writer_sees_each_entry_once_and_in_order() {
        const ENTRIES: u32 = 200_000;
        let recall = Recall::new(1);
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for count in 0..ENTRIES {
                    while !recall.stage(WorkerId(0), 0, &entry(count)) {
                        std::thread::yield_now();
                    }
                    recall.show(WorkerId(0), 1, 0);
                }
            });
            while seen.len() < ENTRIES as usize {
                recall.take(|entry| seen.push(entry.prediction));
            }
        });
        let all: Vec<_> = (0..ENTRIES).map(|count| entry(count).prediction).collect();
        assert!(seen == all);
    }
}
