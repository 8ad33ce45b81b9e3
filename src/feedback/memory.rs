//! Predictions of a model that an outcome may still be joined to, the newest, by name.
//!
//! Always true: what does not fit, or is older than the model's `ttl`, is dropped, the oldest first.
//!
//! Not here: what is written down of it (`journal`).

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{
    model::PredictionId,
    serve::{RECALLED_WORDS, Recalled},
};

use super::tally::Truth;

/// Bytes that a prediction is taken to occupy: its entry, and its share of the index.
pub(super) const ENTRY_BYTES: u64 = 144;

/// Predictions in the order in which their requests ended.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The position of the first that is kept; positions count all there ever were.
    first: u64,
    entries: VecDeque<Kept>,
    /// First rows by the origin of their names: names of one origin count up, so that they need no hash table, whose
    /// every insertion would miss the caches.
    places: HashMap<u32, Places>,
}

/// First rows of the names of one origin, in the order of their counts, which is almost that in which they come.
#[derive(Debug, Default)]
struct Places {
    /// Count, as a number that does not wrap around, and position.
    rows: VecDeque<(i64, u64)>,
    /// The newest count as the name has it, and as a number that does not wrap around.
    newest: (u32, i64),
}

impl Places {
    /// A count as a number that does not wrap around; names that are kept lie closer than half a turn.
    fn unwrapped(&self, count: u32) -> i64 {
        self.newest.1 + i64::from(count.wrapping_sub(self.newest.0).cast_signed())
    }

    fn insert(&mut self, count: u32, position: u64) {
        let order = self.unwrapped(count);
        if self.rows.back().is_none_or(|(last, _)| *last < order) {
            self.rows.push_back((order, position));
            self.newest = (count, order);
            return;
        }
        match self.rows.binary_search_by_key(&order, |(order, _)| *order) {
            Ok(at) => self.rows[at].1 = position,
            Err(at) => self.rows.insert(at, (order, position)),
        }
    }

    fn find(&self, count: u32) -> Option<u64> {
        let order = self.unwrapped(count);
        let at = self.rows.binary_search_by_key(&order, |(order, _)| *order).ok()?;
        Some(self.rows[at].1)
    }
}

/// A prediction, and the outcome that was joined to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    words: [u64; RECALLED_WORDS],
    truth: u64,
    kind: u8,
    /// True on the first row once an outcome of any row has spoken for a rollout.
    has_spoken: bool,
}

impl Kept {
    /// The prediction; its place is the index of the model's series.
    pub(super) fn recalled(&self) -> Recalled {
        Recalled::from_words(self.words)
    }

    /// The prediction's words, [`Recalled::to_words`].
    pub(super) fn words(&self) -> &[u64; RECALLED_WORDS] {
        &self.words
    }

    fn name(&self) -> u128 {
        Recalled::name_in(&self.words)
    }

    fn at(&self) -> Duration {
        Recalled::time_in(&self.words)
    }

    /// The outcome that was joined to it.
    pub(super) fn joined(&self) -> Option<Truth> {
        match self.kind {
            1 => Some(Truth::Class(self.truth)),
            2 => Some(Truth::Value(f64::from_bits(self.truth))),
            3 => Some(Truth::Reward(f64::from_bits(self.truth))),
            _ => None,
        }
    }

    pub(super) fn join(&mut self, truth: Option<Truth>) {
        (self.kind, self.truth) = match truth {
            None => (0, 0),
            Some(Truth::Class(bits)) => (1, bits),
            Some(Truth::Value(value)) => (2, value.to_bits()),
            Some(Truth::Reward(value)) => (3, value.to_bits()),
        };
    }
}

impl Memory {
    /// Keeps a prediction; rows of a request come one after the other.
    pub(super) fn push(&mut self, entry: &Recalled) {
        let position = self.end();
        if entry.row == 0 {
            let name = entry.prediction;
            self.places.entry(name.origin()).or_default().insert(name.count(), position);
        }
        let words = entry.to_words();
        self.entries.push_back(Kept { words, truth: 0, kind: 0, has_spoken: false });
    }

    /// The position of a prediction's first row, if that is kept.
    fn place(&self, name: PredictionId) -> Option<u64> {
        let position = self.places.get(&name.origin())?.find(name.count())?;
        (self.at(position)?.name() == name.bits()).then_some(position)
    }

    /// The position behind the last.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The position of the first.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.len() as u64 * ENTRY_BYTES
    }

    /// Rows of a prediction, if its first is kept.
    pub(super) fn rows(&self, name: PredictionId) -> Option<u32> {
        Some(self.at(self.place(name)?)?.recalled().rows)
    }

    /// The position of a row of a prediction.
    pub(super) fn find(&self, name: PredictionId, row: u32) -> Option<u64> {
        let position = self.place(name)? + u64::from(row);
        let recalled = self.at(position)?.recalled();
        (recalled.prediction == name && u32::from(recalled.row) == row).then_some(position)
    }

    pub(super) fn at(&self, position: u64) -> Option<&Kept> {
        self.entries.get(usize::try_from(position.checked_sub(self.first)?).ok()?)
    }

    pub(super) fn at_mut(&mut self, position: u64) -> Option<&mut Kept> {
        self.entries.get_mut(usize::try_from(position.checked_sub(self.first)?).ok()?)
    }

    /// True the first time that an outcome of a prediction asks to speak for it.
    pub(super) fn may_speak(&mut self, name: PredictionId) -> bool {
        let Some(place) = self.place(name) else { return false };
        self.at_mut(place).is_some_and(|kept| !std::mem::replace(&mut kept.has_spoken, true))
    }

    /// Drops what was predicted before a time, and what does not fit.
    pub(super) fn trim(&mut self, oldest: Duration, bytes_max: u64) {
        while let Some(first) = self.entries.front()
            && (self.bytes() > bytes_max || first.at() < oldest)
        {
            self.entries.pop_front();
            self.first += 1;
        }
        let first = self.first;
        self.places.retain(|_, places| {
            while places.rows.front().is_some_and(|(_, position)| *position < first) {
                places.rows.pop_front();
            }
            !places.rows.is_empty()
        });
        // After a burst the room is given back.
        if self.entries.capacity() > 4 * self.entries.len().max(1024) {
            self.entries.shrink_to(2 * self.entries.len());
            self.places
                .values_mut()
                .for_each(|places| places.rows.shrink_to(2 * places.rows.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Predicted;

    fn entry(name: u128, row: u16, rows: u32, seconds: u64) -> Recalled {
        Recalled {
            prediction: PredictionId::from_bits(name),
            row,
            rows,
            place: 0,
            at: Duration::from_secs(seconds),
            predicted: Predicted::NOTHING,
            segment: 0,
            is_apart: false,
            assigned: None,
        }
    }

    /// A name as a worker of this origin counts it.
    fn name(origin: u32, count: u32) -> u128 {
        u128::from(origin) << 64 | u128::from(count) << 32 | 5
    }

    #[test]
    fn names_are_found_whatever_their_order_and_where_they_wrap_around() {
        let mut memory = Memory::default();
        let counts = [u32::MAX - 1, u32::MAX, 1, 0, 3, 2, 7];
        for count in counts {
            for origin in [1, 2] {
                memory.push(&entry(name(origin, count), 0, 1, 10));
            }
        }
        let find = |memory: &Memory, name| memory.find(PredictionId::from_bits(name), 0);
        for (place, count) in (0_u64..).zip(counts) {
            assert_eq!(find(&memory, name(1, count)), Some(2 * place), "{count}");
            assert_eq!(find(&memory, name(2, count)), Some(2 * place + 1), "{count}");
            // Another name with the same count: another second, or other check bits.
            assert_eq!(find(&memory, name(1, count) ^ 1 << 96), None);
            assert_eq!(find(&memory, name(1, count) ^ 1), None);
        }
        assert_eq!([find(&memory, name(3, 0)), find(&memory, name(1, 4))], [None, None]);
        memory.trim(Duration::ZERO, 7 * ENTRY_BYTES);
        let kept: Vec<u32> =
            counts.into_iter().filter(|count| find(&memory, name(2, *count)).is_some()).collect();
        assert_eq!(kept, [0, 3, 2, 7]);
    }

    #[test]
    fn rows_are_found_until_they_do_not_fit_or_are_too_old() {
        let mut memory = Memory::default();
        let named = |count| PredictionId::from_bits(name(1, count));
        memory.push(&entry(name(1, 7), 0, 2, 10));
        memory.push(&entry(name(1, 7), 1, 2, 10));
        memory.push(&entry(name(1, 8), 0, 1, 20));
        let find = |memory: &Memory, count, row| memory.find(named(count), row);
        assert_eq!([find(&memory, 7, 1), find(&memory, 8, 0)], [Some(1), Some(2)]);
        assert_eq!([find(&memory, 7, 2), find(&memory, 9, 0)], [None, None]);
        assert_eq!(memory.rows(named(7)), Some(2));
        memory.at_mut(1).unwrap().join(Some(Truth::Class(3)));
        assert_eq!(memory.at(1).unwrap().joined(), Some(Truth::Class(3)));
        assert!(memory.may_speak(named(7)));
        assert!(!memory.may_speak(named(7)));
        memory.trim(Duration::ZERO, 2 * ENTRY_BYTES);
        assert_eq!([find(&memory, 7, 0), find(&memory, 7, 1)], [None, None], "row 0 leads to it");
        memory.trim(Duration::from_secs(21), u64::MAX);
        assert_eq!((find(&memory, 8, 0), memory.first(), memory.end()), (None, 3, 3));
        assert!(memory.places.is_empty());
    }
}
