//! Evidence for a rollout from requests: one small entry each, in the order in which they were assigned.
//!
//! Counting at completion would be biased where the arms fail at different speeds: in an incident that both share, the
//! one that fails faster would be seen to fail more. So every assigned request draws a ticket, and entries are handed
//! out only behind a watermark: once everything that was assigned before has ended. Always true:
//! - An entry is handed out once, in the order of the tickets, and only when no earlier ticket can still come.
//! - Workers wait for nothing: an entry for which there is no room is lost, whatever its arm, and counted.
//! - The valve acts at once: once it is shut, the next assignment goes to the baseline.
//!
//! Not here: what entries mean (`rollout`), how requests are assigned (`traffic`).

use std::{
    collections::BinaryHeap,
    sync::{
        OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::Thread,
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use serde::{Deserialize, Serialize};

use crate::{
    model::{PredictionId, VersionId},
    monitor::{ShadowSample, WorkerId},
};

use super::{PredictError, Predicted, PredictedKind};

/// Evidence about the two arms of one model, from all workers.
#[derive(Debug)]
pub struct Evidence {
    next: AtomicU64,
    lanes: Box<[Lane]>,
    /// Nanoseconds above which a request is slow, by the index of the quantile; the maximum before they are known.
    slow: [AtomicU64; SLOW_MAX],
    lost: AtomicU64,
    compared: ArrayQueue<Compared>,
    copies_dropped: AtomicU64,
    /// Texts of the first classes by their hashes, in the order of their appearance.
    texts: [OnceLock<(u64, Box<str>)>; TEXTS_MAX],
    shut: AtomicBool,
    /// Thread that reads the evidence.
    reader: OnceLock<Thread>,
    is_reader_asleep: AtomicBool,
}

/// Quantiles whose exceedances are counted.
pub const SLOW_MAX: usize = 4;

/// Entries of one worker that may wait to be read.
const WAITING_MAX: usize = 1 << 14;

/// Comparisons that may wait to be read.
const COMPARED_MAX: usize = 1 << 12;

/// Classes whose texts are kept.
const TEXTS_MAX: usize = 32;

/// No ticket is open.
const IDLE: u64 = u64::MAX;

/// A worker's own part.
#[derive(Debug)]
#[repr(align(128))]
struct Lane {
    /// The ticket of the worker's request, or an earlier one; [`IDLE`] if it has none.
    open: AtomicU64,
    /// The assignment of the open ticket, for a worker that never closes it.
    key: AtomicU64,
    share_bits: AtomicU64,
    is_sticky: AtomicBool,
    is_candidate: AtomicBool,
    entries: ArrayQueue<Entry>,
}

/// Records how a request was assigned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Assignment {
    pub(super) share: f64,
    pub(super) key: u64,
    pub(super) is_sticky: bool,
    pub(super) is_candidate: bool,
}

/// A request that was assigned and has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Its place in the order of assignment.
    pub ticket: u64,
    /// The candidate's weight among the two arms, as of assignment.
    pub share: f64,
    /// The hash of the key that assigned it.
    pub key: u64,
    /// True if the key is the client's, so that more requests of it go the same way.
    pub is_sticky: bool,
    /// True if it was assigned to the candidate.
    pub is_candidate: bool,
    /// The time of assignment, since 1970.
    pub at: Duration,
    /// The prediction's name.
    pub prediction: PredictionId,
    /// Result of the request.
    pub marks: Marks,
    /// Answer of the assigned arm to the request's first row.
    pub output: Output,
}

/// What a row was answered with, as far as it can be counted.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Nothing that is known: the arm gave no answer, or one that is not read as a prediction.
    #[default]
    Nothing,
    /// A class by its number.
    Class(i64),
    /// A class by the hash of its text.
    Text(u64),
    /// A number.
    Value(f64),
}

impl From<Predicted> for Output {
    fn from(predicted: Predicted) -> Self {
        match predicted.kind {
            PredictedKind::Nothing => Self::Nothing,
            PredictedKind::Number => Self::Class(predicted.bits.cast_signed()),
            PredictedKind::Text => Self::Text(predicted.bits),
            PredictedKind::Value => Self::Value(f64::from_bits(predicted.bits)),
        }
    }
}

/// A copy of a request that a shadow ran, beside the answer that the client got.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// The end of the comparison, since 1970.
    pub at: Duration,
    /// The version that ran the copy.
    pub version: VersionId,
    /// The prediction's name.
    pub prediction: PredictionId,
    /// Differences of the answers; of a copy that failed, nothing but the failure.
    pub sample: ShadowSample,
    /// True if the answers have outputs of other datatypes or shapes, so that no tolerance makes them agree.
    pub shape_differs: bool,
}

impl Compared {
    /// True if an element differs by more than `tolerance` (relative, such as 0.001), a label or a shape differs, or
    /// the shadow gave no answer.
    #[must_use]
    pub fn disagrees(&self, tolerance: f64) -> bool {
        let ShadowSample { failed, label_flips, max_relative, .. } = self.sample;
        failed || self.shape_differs || label_flips > 0 || max_relative > tolerance
    }
}

/// Result of a request on its assigned arm: a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks(u16);

impl Marks {
    /// The arm gave an answer.
    pub const ANSWERED: Self = Self(1);
    /// The arm gave no valid answer to inputs that fit the signature, whatever the code, or the deadline passed.
    pub const ERROR: Self = Self(1 << 1);
    /// A floating-point output holds NaN or an infinity.
    pub const INVALID: Self = Self(1 << 2);
    /// The engine failed, not on the request's values, or the arm crashed. Comes with [`Self::ERROR`].
    pub const FAULT: Self = Self(1 << 3);
    /// Refused for want of capacity: neither an error nor an answer of this arm.
    pub const CAPACITY: Self = Self(1 << 4);
    /// The client left before the answer.
    pub const ABANDONED: Self = Self(1 << 5);

    /// The answer's class is known.
    pub const CLASSED: Self = Self(1 << 6);
    /// A row of the answer is of the positive class. Comes with [`Self::CLASSED`].
    pub const POSITIVE: Self = Self(1 << 7);

    /// Slower than the frozen quantile at this place of the policy's list, below [`SLOW_MAX`].
    #[must_use]
    pub const fn slow(index: usize) -> Self {
        Self(1 << (8 + index))
    }

    /// True if all of these are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets these, too.
    pub fn set(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl std::ops::BitOr for Marks {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Returns what a failed run says about the version that it was assigned to.
///
/// An engine's refusal of values is an error, whatever its code: another version may take them. What does not fit the
/// signature is the caller's mistake, a passed deadline is seen at the end, and nobody is to blame for the rest.
pub(super) fn marks_of(error: &PredictError) -> Marks {
    match error {
        PredictError::Guarded(_) | PredictError::Oversized(_) | PredictError::Inputs(_) => {
            Marks::ERROR
        }
        PredictError::Engine(_) => Marks::ERROR | Marks::FAULT,
        PredictError::Crowded(_) | PredictError::Leaving(_) | PredictError::Stopping => {
            Marks::CAPACITY
        }
        PredictError::Signature(_)
        | PredictError::Contract(_)
        | PredictError::Rows { .. }
        | PredictError::Deadline
        | PredictError::Gone
        | PredictError::Lost => Marks::default(),
    }
}

/// Entries of all workers on their way into one order.
#[derive(Debug, Default)]
pub struct Reading {
    waiting: BinaryHeap<Waiting>,
    batch: Vec<Entry>,
}

#[derive(Debug)]
struct Waiting(Entry);

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.0.ticket == other.0.ticket
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The earliest ticket is the greatest, for the heap.
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.ticket.cmp(&self.0.ticket)
    }
}

impl Reading {
    /// True if entries wait for what was assigned before them.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Evidence {
    /// No evidence yet, from this many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let lane = || Lane {
            open: AtomicU64::new(IDLE),
            key: AtomicU64::new(0),
            share_bits: AtomicU64::new(0),
            is_sticky: AtomicBool::new(false),
            is_candidate: AtomicBool::new(false),
            entries: ArrayQueue::new(WAITING_MAX),
        };
        Self {
            next: AtomicU64::new(0),
            lanes: (0..workers.max(1)).map(|_| lane()).collect(),
            slow: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
            lost: AtomicU64::new(0),
            compared: ArrayQueue::new(COMPARED_MAX),
            copies_dropped: AtomicU64::new(0),
            texts: [const { OnceLock::new() }; TEXTS_MAX],
            shut: AtomicBool::new(false),
            reader: OnceLock::new(),
            is_reader_asleep: AtomicBool::new(false),
        }
    }

    /// Takes the next ticket for the worker's request.
    pub(super) fn open(&self, worker: WorkerId, assignment: Assignment) -> u64 {
        let lane = &self.lanes[worker.0];
        lane.key.store(assignment.key, Relaxed);
        lane.share_bits.store(assignment.share.to_bits(), Relaxed);
        lane.is_sticky.store(assignment.is_sticky, Relaxed);
        lane.is_candidate.store(assignment.is_candidate, Relaxed);
        // Announced before it is drawn: a reader that sees the ticket gone sees that it is open.
        lane.open.store(self.next.load(SeqCst), SeqCst);
        let ticket = self.next.fetch_add(1, SeqCst);
        lane.open.store(ticket, SeqCst);
        ticket
    }

    /// Hands the entry of the worker's request on; `urgent` wakes whoever reads.
    pub(super) fn close(&self, worker: WorkerId, entry: Entry, urgent: bool) {
        let lane = &self.lanes[worker.0];
        if lane.entries.push(entry).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
        lane.open.store(IDLE, SeqCst);
        if urgent && self.is_reader_asleep.swap(false, SeqCst) {
            self.reader.get().into_iter().for_each(Thread::unpark);
        }
    }

    /// Ends the open ticket of a worker that was given up in its run: its deadline has passed.
    pub(super) fn lose(&self, worker: WorkerId, at: Duration) {
        let lane = &self.lanes[worker.0];
        let ticket = lane.open.load(SeqCst);
        if ticket == IDLE {
            return;
        }
        let entry = Entry {
            ticket,
            share: f64::from_bits(lane.share_bits.load(Relaxed)),
            key: lane.key.load(Relaxed),
            is_sticky: lane.is_sticky.load(Relaxed),
            is_candidate: lane.is_candidate.load(Relaxed),
            at,
            prediction: PredictionId::UNKNOWN,
            marks: Marks::ERROR,
            output: Output::Nothing,
        };
        self.close(worker, entry, true);
    }

    /// Sets the latencies above which a request is slow.
    pub fn freeze(&self, thresholds: &[Duration]) {
        for (slow, threshold) in self.slow.iter().zip(thresholds) {
            slow.store(u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        }
    }

    /// The marks of a request that took so long.
    pub(super) fn slowness(&self, took: Duration) -> Marks {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mut marks = Marks::default();
        for (index, threshold) in self.slow.iter().enumerate() {
            if took > threshold.load(Relaxed) {
                marks.set(Marks::slow(index));
            }
        }
        marks
    }

    /// Keeps the text of a class, the first time that it comes; without room, not.
    pub(super) fn name(&self, hash: u64, text: &[u8]) {
        let mut slots = self.texts.iter();
        let name = || (hash, String::from_utf8_lossy(text).into());
        slots.any(|slot| slot.get_or_init(name).0 == hash);
    }

    /// Texts of classes by their hashes, in the order of their appearance; those of every entry that was read, while
    /// there is room.
    pub fn texts(&self) -> impl Iterator<Item = (u64, &str)> {
        let known = self.texts.iter().map_while(OnceLock::get);
        known.map(|(hash, text)| (*hash, &**text))
    }

    /// Turns all requests that are assigned from now on to the baseline, for good.
    pub fn shut(&self) {
        self.shut.store(true, SeqCst);
    }

    /// True once the valve is shut.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Relaxed)
    }

    /// Hands on what came of a copy; without room for it, it counts as dropped.
    pub(super) fn compare(&self, compared: Compared) {
        if self.compared.push(compared).is_err() {
            self.drop_copy();
        }
    }

    /// Counts a copy of which nothing is known.
    pub(super) fn drop_copy(&self) {
        self.copies_dropped.fetch_add(1, Relaxed);
    }

    /// Copies since the last time of which nothing is known: they were not run, or nobody took the comparison in time.
    pub fn copies_dropped(&self) -> u64 {
        self.copies_dropped.swap(0, Relaxed)
    }

    /// Takes the comparisons since the last time, in the order in which they were made; those of several shadows in
    /// one.
    pub fn compared(&self) -> impl Iterator<Item = Compared> {
        std::iter::from_fn(|| self.compared.pop()).take(COMPARED_MAX)
    }

    /// Entries that were lost because nobody read them in time.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Has urgent entries wake this thread, which is going to park.
    pub fn sleep(&self, reader: Thread) {
        // One thread reads, from the first to the last.
        let _ = self.reader.set(reader);
        self.is_reader_asleep.store(true, SeqCst);
    }

    /// True if an entry waits to be read.
    pub fn is_waiting(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.entries.is_empty())
    }

    /// Entries that were handed on since the last reading and that no open ticket precedes, in the order of their
    /// tickets.
    pub fn read<'r>(&self, reading: &'r mut Reading) -> &'r [Entry] {
        let next = self.next.load(SeqCst);
        let open = self.lanes.iter().map(|lane| lane.open.load(SeqCst)).min().unwrap_or(IDLE);
        let watermark = next.min(open);
        for lane in &self.lanes {
            // What comes meanwhile is for the next reading.
            for _ in 0..WAITING_MAX {
                let Some(entry) = lane.entries.pop() else { break };
                reading.waiting.push(Waiting(entry));
            }
        }
        reading.batch.clear();
        while let Some(first) = reading.waiting.peek()
            && first.0.ticket < watermark
        {
            reading.batch.extend(reading.waiting.pop().map(|waiting| waiting.0));
        }
        &reading.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSIGNED: Assignment =
        Assignment { share: 0.1, key: 7, is_sticky: false, is_candidate: true };

    fn entry(ticket: u64, is_candidate: bool) -> Entry {
        Entry {
            ticket,
            share: 0.1,
            key: ticket,
            is_sticky: false,
            is_candidate,
            at: Duration::from_secs(ticket),
            prediction: PredictionId::from_bits(ticket.into()),
            marks: Marks::ANSWERED,
            output: Output::Class(1),
        }
    }

    #[test]
    fn texts_of_classes_are_kept_once_and_while_there_is_room() {
        let evidence = Evidence::new(1);
        for hash in [7, 8, 7].into_iter().chain(100..200) {
            evidence.name(hash, format!("class {hash}").as_bytes());
        }
        let texts: Vec<_> = evidence.texts().collect();
        assert_eq!(texts[..3], [(7, "class 7"), (8, "class 8"), (100, "class 100")]);
        assert_eq!(texts.len(), TEXTS_MAX);
    }

    fn tickets(evidence: &Evidence, reading: &mut Reading) -> Vec<u64> {
        evidence.read(reading).iter().map(|entry| entry.ticket).collect()
    }

    #[test]
    fn entries_come_in_the_order_of_assignment_behind_the_watermark() {
        let (evidence, mut reading) = (Evidence::new(2), Reading::default());
        let slow = evidence.open(WorkerId(0), ASSIGNED);
        for _ in 0..3 {
            let ticket = evidence.open(WorkerId(1), ASSIGNED);
            evidence.close(WorkerId(1), entry(ticket, false), false);
        }
        assert_eq!(tickets(&evidence, &mut reading), [0u64; 0], "the first has not ended");
        evidence.close(WorkerId(0), entry(slow, true), false);
        assert_eq!(tickets(&evidence, &mut reading), [0, 1, 2, 3]);
        assert_eq!(tickets(&evidence, &mut reading), [0u64; 0]);
    }

    #[test]
    fn a_worker_that_never_comes_back_holds_nothing_up() {
        let (evidence, mut reading) = (Evidence::new(2), Reading::default());
        evidence.open(WorkerId(0), ASSIGNED);
        let ticket = evidence.open(WorkerId(1), ASSIGNED);
        evidence.close(WorkerId(1), entry(ticket, false), false);
        evidence.lose(WorkerId(0), Duration::ZERO);
        let read = evidence.read(&mut reading);
        assert_eq!(read.iter().map(|entry| entry.ticket).collect::<Vec<_>>(), [0, 1]);
        assert!(read[0].marks.has(Marks::ERROR) && read[0].is_candidate);
    }

    #[test]
    fn what_has_no_room_is_lost_and_counted() {
        let (evidence, mut reading) = (Evidence::new(1), Reading::default());
        for _ in 0..WAITING_MAX + 5 {
            let ticket = evidence.open(WorkerId(0), ASSIGNED);
            evidence.close(WorkerId(0), entry(ticket, false), false);
        }
        assert_eq!((evidence.lost(), tickets(&evidence, &mut reading).len()), (5, WAITING_MAX));
    }

    #[test]
    fn slow_is_slower_than_a_frozen_quantile() {
        let evidence = Evidence::new(1);
        assert_eq!(evidence.slowness(Duration::from_hours(1)), Marks::default());
        evidence.freeze(&[Duration::from_millis(1), Duration::from_millis(5)]);
        let marks = evidence.slowness(Duration::from_millis(2));
        assert!(marks.has(Marks::slow(0)) && !marks.has(Marks::slow(1)));
    }

    #[test]
    fn many_workers_lose_no_entry_and_keep_the_order() {
        let evidence = Evidence::new(4);
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let evidence = &evidence;
                    scope.spawn(move || {
                        for _ in 0..2000 {
                            let ticket = evidence.open(WorkerId(worker), ASSIGNED);
                            evidence.close(WorkerId(worker), entry(ticket, false), false);
                        }
                    })
                })
                .collect();
            let mut reading = Reading::default();
            while workers.iter().any(|worker| !worker.is_finished()) || evidence.is_waiting() {
                seen.extend(tickets(&evidence, &mut reading));
            }
            seen.extend(tickets(&evidence, &mut reading));
        });
        assert_eq!(seen, (0..8000).collect::<Vec<_>>());
    }
}
