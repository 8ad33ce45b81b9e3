//! Raw rows of the last hour, for exact tests: a bounded sample of each minute.

use std::{collections::VecDeque, time::Duration};

use crate::stats::Random;

use super::tap::Tap;

/// Rows of the last hour, evenly thinned when they are read.
#[derive(Debug)]
pub(super) struct Sample {
    minutes: VecDeque<Minute>,
    /// Features of a row.
    width: usize,
    rows_max: usize,
    random: Random,
}

#[derive(Debug)]
struct Minute {
    /// Minutes since 1970.
    index: u64,
    /// Rows that ran in it.
    seen: u64,
    rows: usize,
    /// Rows that were offered.
    offered: usize,
    /// Row by row.
    numbers: Vec<f64>,
}

/// Values that are kept of one hour.
const VALUES_MAX: usize = 2 << 20;

/// Minutes that are kept.
const MINUTES: u64 = 60;

impl Sample {
    /// No rows yet; at most `rows_max` for an hour, of `width` numbers each.
    pub(super) fn new(width: usize, rows_max: usize) -> Self {
        let rows_max = rows_max.min(VALUES_MAX / width.max(1));
        Self { minutes: VecDeque::new(), width, rows_max, random: Random::new(0) }
    }

    /// Rows that a minute keeps: more than its share of an hour, as traffic is not even.
    fn minute_rows(&self) -> usize {
        (self.rows_max / 30).max(32)
    }

    /// Adds sampled rows of an interval in which `seen` ran.
    pub(super) fn add(&mut self, now: Duration, seen: u64, tap: &Tap) {
        let index = now.as_secs() / 60;
        if self.minutes.back().is_none_or(|last| last.index < index) {
            self.minutes.push_back(Minute {
                index,
                seen: 0,
                rows: 0,
                offered: 0,
                numbers: Vec::new(),
            });
        }
        while self.minutes.front().is_some_and(|first| first.index + MINUTES <= index) {
            self.minutes.pop_front();
        }
        let room = self.minute_rows();
        let Some(minute) = self.minutes.back_mut() else { return };
        minute.seen += seen;
        let width = self.width;
        for row in tap.numbers.chunks_exact(width.max(1)) {
            minute.offered += 1;
            if minute.rows < room {
                minute.numbers.extend_from_slice(row);
                minute.rows += 1;
                continue;
            }
            // Algorithm R (Vitter, 1985): each row that was offered is as likely to be kept.
            let place = self.random.below(minute.offered);
            if place < room {
                minute.numbers[place * width..(place + 1) * width].copy_from_slice(row);
            }
        }
    }

    /// Values of one feature in the last `window`, missing ones left out: as many of each minute as its share of the
    /// rows that ran says.
    pub(super) fn values(&self, now: Duration, window: Duration, feature: usize) -> Vec<f64> {
        let wanted = window.as_secs().div_ceil(60).clamp(1, MINUTES);
        let after = (now.as_secs() / 60).saturating_sub(wanted);
        let minutes =
            || self.minutes.iter().filter(|minute| minute.index > after && minute.rows > 0);
        // The rarest sampled minute says how much of each can be taken.
        #[expect(clippy::cast_precision_loss, reason = "shares need no more digits")]
        let shares = minutes().map(|minute| minute.rows as f64 / minute.seen.max(1) as f64);
        let share = shares.fold(1.0, f64::min);
        let mut values = Vec::new();
        for minute in minutes() {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of the rows of a minute"
            )]
            let take = ((minute.seen as f64 * share).round() as usize).clamp(1, minute.rows);
            let rows = minute.numbers.chunks_exact(self.width.max(1)).take(take);
            values.extend(rows.map(|row| row[feature]).filter(|value| !value.is_nan()));
        }
        values.truncate(self.rows_max);
        values
    }
}
