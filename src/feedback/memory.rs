//! Predictions of a model that an outcome may still be joined to, the newest, by name.
//!
//! Always true: what does not fit, or is older than the model's `ttl`, is dropped, the oldest first.
//!
//! Not here: what is written down of it (`journal`).

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use crate::{model::PredictionId, serve::Recalled};

use super::tally::Truth;

/// Bytes that a prediction is taken to occupy: its entry, and its share of the index.
pub(super) const ENTRY_BYTES: u64 = 144;

/// Predictions in the order in which their requests ended.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The position of the first that is kept; positions count all there ever were.
    first: u64,
    entries: VecDeque<Kept>,
    /// Positions of the first rows, by name.
    places: HashMap<(u64, u64), u64, BuildHasherDefault<ByTail>>,
}

/// A prediction, and the outcome that was joined to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    words: [u64; 8],
    truth: u64,
    kind: u8,
    /// True on the first row once an outcome of any row has spoken for a rollout.
    has_spoken: bool,
}

/// Names end in a count and check bits, which are as good as random: they are their own hash.
#[derive(Debug, Default)]
struct ByTail(u64);

impl Hasher for ByTail {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("names are words");
    }

    fn write_u64(&mut self, word: u64) {
        // The last word is the tail; the upper bits of a hash choose, too.
        self.0 = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Kept {
    /// The prediction; its place is the index of the model's series.
    pub(super) fn recalled(&self) -> Recalled {
        Recalled::from_words(self.words)
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

fn key_of(name: PredictionId) -> (u64, u64) {
    let bits = name.bits();
    #[expect(clippy::cast_possible_truncation, reason = "the halves")]
    let key = ((bits >> 64) as u64, bits as u64);
    key
}

impl Memory {
    /// Keeps a prediction; rows of a request come one after the other.
    pub(super) fn push(&mut self, entry: &Recalled) {
        let position = self.end();
        if entry.row == 0 {
            self.places.insert(key_of(entry.prediction), position);
        }
        let words = entry.to_words();
        self.entries.push_back(Kept { words, truth: 0, kind: 0, has_spoken: false });
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
        let place = *self.places.get(&key_of(name))?;
        Some(self.at(place)?.recalled().rows)
    }

    /// The position of a row of a prediction.
    pub(super) fn find(&self, name: PredictionId, row: u32) -> Option<u64> {
        let position = self.places.get(&key_of(name))? + u64::from(row);
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
        let Some(place) = self.places.get(&key_of(name)).copied() else { return false };
        self.at_mut(place).is_some_and(|kept| !std::mem::replace(&mut kept.has_spoken, true))
    }

    /// Drops what was predicted before a time, and what does not fit.
    pub(super) fn trim(&mut self, oldest: Duration, bytes_max: u64) {
        while let Some(first) = self.entries.front()
            && (self.bytes() > bytes_max || first.recalled().at < oldest)
        {
            self.drop_first();
        }
        // After a burst the room is given back.
        if self.entries.capacity() > 4 * self.entries.len().max(1024) {
            self.entries.shrink_to(2 * self.entries.len());
            self.places.shrink_to(2 * self.places.len());
        }
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.entries.pop_front() {
            let recalled = first.recalled();
            let key = key_of(recalled.prediction);
            if self.places.get(&key) == Some(&self.first) {
                self.places.remove(&key);
            }
            self.first += 1;
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

    #[test]
    fn rows_are_found_until_they_do_not_fit_or_are_too_old() {
        let mut memory = Memory::default();
        memory.push(&entry(7, 0, 2, 10));
        memory.push(&entry(7, 1, 2, 10));
        memory.push(&entry(8, 0, 1, 20));
        let find = |memory: &Memory, name, row| memory.find(PredictionId::from_bits(name), row);
        assert_eq!([find(&memory, 7, 1), find(&memory, 8, 0)], [Some(1), Some(2)]);
        assert_eq!([find(&memory, 7, 2), find(&memory, 9, 0)], [None, None]);
        assert_eq!(memory.rows(PredictionId::from_bits(7)), Some(2));
        memory.at_mut(1).unwrap().join(Some(Truth::Class(3)));
        assert_eq!(memory.at(1).unwrap().joined(), Some(Truth::Class(3)));
        assert!(memory.may_speak(PredictionId::from_bits(7)));
        assert!(!memory.may_speak(PredictionId::from_bits(7)));
        memory.trim(Duration::ZERO, 2 * ENTRY_BYTES);
        assert_eq!([find(&memory, 7, 0), find(&memory, 7, 1)], [None, None], "row 0 leads to it");
        memory.trim(Duration::from_secs(21), u64::MAX);
        assert_eq!((find(&memory, 8, 0), memory.first(), memory.end()), (None, 3, 3));
        assert!(memory.places.is_empty());
    }
}
