//! Windows for people: counts of the last hour by the minute and of the last day by the hour.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

/// Minutes, and hours, that are kept.
const MINUTES: u64 = 60;
const HOURS: u64 = 24;

/// Counts by cell, in two rings of buckets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Windows {
    minutes: Ring,
    hours: Ring,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Ring {
    buckets: VecDeque<Bucket>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Bucket {
    /// Buckets since 1970.
    index: u64,
    /// Rows that ran, whether counted or not.
    rows: u64,
    counts: Box<[u32]>,
}

impl Windows {
    /// Adds the counts of an interval that ended at `now`, since 1970.
    pub(super) fn add(&mut self, now: Duration, rows: u64, counts: &[u64]) {
        self.minutes.add(now.as_secs() / 60, MINUTES, rows, counts);
        self.hours.add(now.as_secs() / 3600, HOURS, rows, counts);
    }

    /// Rows and counts of the last `window`, rounded up to whole minutes; above an hour, to whole hours.
    pub(super) fn over(&self, now: Duration, window: Duration, cells: usize) -> (u64, Vec<u64>) {
        let (ring, unit, most) = match window.as_secs() {
            0..=3600 => (&self.minutes, 60, MINUTES),
            _ => (&self.hours, 3600, HOURS),
        };
        let wanted = window.as_secs().div_ceil(unit).clamp(1, most);
        let after = (now.as_secs() / unit).saturating_sub(wanted);
        let (mut rows, mut counts) = (0, vec![0; cells]);
        for bucket in ring.buckets.iter().filter(|bucket| bucket.index > after) {
            rows += bucket.rows;
            for (sum, count) in counts.iter_mut().zip(&bucket.counts) {
                *sum += u64::from(*count);
            }
        }
        (rows, counts)
    }

    /// True if no bucket has more than this many cells, and there are no more buckets than are kept.
    pub(super) fn fits(&self, cells: usize) -> bool {
        let is_right = |ring: &Ring, most: u64| {
            ring.buckets.len() as u64 <= most
                && ring.buckets.iter().all(|bucket| bucket.counts.len() == cells)
        };
        is_right(&self.minutes, MINUTES) && is_right(&self.hours, HOURS)
    }

    /// Counts of the last hour, a minute at a time, oldest first; minutes without rows are left out.
    pub(super) fn minutes(&self) -> impl Iterator<Item = (Duration, &[u32])> {
        let at = |bucket: &Bucket| Duration::from_secs(bucket.index * 60);
        self.minutes.buckets.iter().map(move |bucket| (at(bucket), &*bucket.counts))
    }
}

impl Ring {
    fn add(&mut self, index: u64, most: u64, rows: u64, counts: &[u64]) {
        let is_new = self.buckets.back().is_none_or(|last| {
            // A clock that was set back goes on in the newest bucket.
            last.index < index || last.counts.len() != counts.len()
        });
        if is_new {
            let counts = vec![0; counts.len()].into_boxed_slice();
            self.buckets.push_back(Bucket { index, rows: 0, counts });
        }
        while self.buckets.front().is_some_and(|first| first.index + most <= index) {
            self.buckets.pop_front();
        }
        let Some(bucket) = self.buckets.back_mut() else { return };
        bucket.rows += rows;
        for (sum, count) in bucket.counts.iter_mut().zip(counts) {
            *sum = sum.saturating_add(u32::try_from(*count).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_what_they_say_and_forget_the_rest() {
        let mut windows = Windows::default();
        let at = |minutes: u64| Duration::from_secs(1_000_000 * 3600 + minutes * 60);
        for minute in 0..180 {
            windows.add(at(minute), 2, &[1, minute]);
        }
        let over = |minutes: u64| windows.over(at(179), Duration::from_mins(minutes), 2);
        assert_eq!(over(1), (2, vec![1, 179]));
        assert_eq!(over(3), (6, vec![3, 177 + 178 + 179]));
        assert_eq!(over(60), (120, vec![60, (120..180).sum()]));
        assert_eq!(over(180), (360, vec![180, (0..180).sum()]));
        assert_eq!(windows.minutes().count(), 60);
        let later = at(179) + Duration::from_hours(30);
        assert_eq!(windows.over(later, Duration::from_hours(24), 2), (0, vec![0, 0]));
    }
}
