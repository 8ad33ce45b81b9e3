//! A ring of records of varying length, from a worker to the one thread that reads them.
//!
//! Always true:
//! - It has one writer, its worker, and one reader; neither waits for the other.
//! - Where a record does not fit, it is not written, and the ring stays as it was.
//!
//! Not here: the content of records (`entry`), what becomes of them (`access`).

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// Records of one worker on their way.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Lane {
    /// Words written so far, by the worker.
    head: AtomicU64,
    /// A record is its length, then as many words.
    words: Box<[AtomicU64]>,
    tail: Tail,
}

/// Words read so far, by the reader.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Tail(AtomicU64);

impl Lane {
    /// An empty ring with room for at least so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let words = (bytes / size_of::<u64>()).next_power_of_two().max(2);
        Self {
            head: AtomicU64::new(0),
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            tail: Tail::default(),
        }
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits count")]
        let index = at as usize & (self.words.len() - 1);
        &self.words[index]
    }

    /// Writes a record, if there is room; returns the share of the ring that is in use with it.
    pub(super) fn push(&self, record: &[u64]) -> Option<f32> {
        let (head, tail) = (self.head.load(Relaxed), self.tail.0.load(Acquire));
        let (length, room) = (record.len() as u64, self.words.len() as u64);
        let used = head - tail + 1 + length;
        if used > room {
            return None;
        }
        self.word(head).store(length, Relaxed);
        for (at, word) in (head + 1..).zip(record) {
            self.word(at).store(*word, Relaxed);
        }
        self.head.store(head + 1 + length, Release);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = used as f32 / room as f32;
        Some(share)
    }

    /// Hands out what was written since the last time, until `each` wants no more; `record` is room for one. For one
    /// reader.
    pub(super) fn take(&self, record: &mut Vec<u64>, mut each: impl FnMut(&[u64]) -> bool) {
        let head = self.head.load(Acquire);
        let mut tail = self.tail.0.load(Relaxed);
        while tail < head {
            let end = (tail + 1 + self.word(tail).load(Relaxed)).min(head);
            record.clear();
            record.extend((tail + 1..end).map(|at| self.word(at).load(Relaxed)));
            tail = end;
            self.tail.0.store(tail, Release);
            if !each(record) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(lane: &Lane, most: usize) -> Vec<Vec<u64>> {
        let (mut record, mut taken) = (Vec::new(), Vec::new());
        lane.take(&mut record, |record| {
            taken.push(record.to_vec());
            taken.len() < most
        });
        taken
    }

    #[test]
    fn records_come_out_as_they_went_in_and_what_does_not_fit_is_refused() {
        let lane = Lane::new(64);
        assert_eq!(lane.push(&[1, 2]), Some(0.375));
        assert_eq!(lane.push(&[3, 4, 5, 6]), Some(1.0));
        assert_eq!(lane.push(&[]), None, "the ring is full");
        assert_eq!(taken(&lane, 1), [vec![1, 2]]);
        assert_eq!(lane.push(&[7, 8, 9]), None, "a length and three words are one too many");
        assert_eq!(lane.push(&[7, 8]), Some(1.0));
        assert_eq!(taken(&lane, 9), [vec![3, 4, 5, 6], vec![7, 8]]);
        assert!(taken(&lane, 9).is_empty());
        assert_eq!(lane.push(&[0; 8]), None, "it would never fit");
    }

    #[test]
    fn a_writer_and_a_reader_on_two_threads_lose_and_change_nothing() {
        const RECORDS: u64 = 20_000;
        let lane = Lane::new(512);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for number in 0..RECORDS {
                    let record = vec![number; usize::try_from(number % 7).unwrap()];
                    while lane.push(&record).is_none() {
                        std::thread::yield_now();
                    }
                }
            });
            let (mut record, mut next) = (Vec::new(), 0);
            while next < RECORDS {
                lane.take(&mut record, |record| {
                    assert_eq!(record, vec![next; usize::try_from(next % 7).unwrap()]);
                    next += 1;
                    true
                });
                std::thread::yield_now();
            }
        });
    }
}
