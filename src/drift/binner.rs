//! From a value to its bin: what the path does for each value.
//!
//! A number is compared with all edges of its column at once, without a branch; a category is found by its key in a
//! small table. Keys of categories whose texts are known are made here, eight bytes at a time, and never written
//! down; only what is none of them is looked up by the key that profiles have. Always true:
//! - A value falls into the bin that [`Bins`] names for it, rounded to the tensor's own precision: rounding keeps the
//!   order, and edges are rounded in the same way.
//! - Nothing here allocates after a column was made.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{
    profile::{Bins, Feature, category_key, written},
    waiting::Waiting,
};

/// Edges that a number is compared with: those of the most bins, filled up to whole vectors.
const LANES: usize = 20;

/// A number that edges can be compared with.
pub(super) trait Real: Copy + PartialOrd + std::fmt::Debug {
    /// Larger than every finite number.
    const INFINITY: Self;
    /// The nearest number to an edge.
    fn round(edge: f64) -> Self;
    /// The next larger number.
    fn above(self) -> Self;
    /// True for NaN.
    fn is_missing(self) -> bool;
    /// True for a number that is neither NaN nor an infinity.
    fn is_number(self) -> bool;
    /// The same number in double precision.
    fn wide(self) -> f64;
    /// A place where one thread leaves a number and others read it.
    type Slot: Default + std::fmt::Debug + Send + Sync;
    /// Leaves the number.
    fn put(self, slot: &Self::Slot);
    /// Reads what was left.
    fn get(slot: &Self::Slot) -> Self;
    /// Those of the columns that are for numbers of this type.
    fn of<'a>(single: &'a [Column<f32>], double: &'a [Column<f64>]) -> &'a [Column<Self>];
    /// Those of the rows that wait that have numbers of this type.
    fn waiting<'a>(single: &'a Waiting<f32>, double: &'a Waiting<f64>) -> &'a Waiting<Self>;
}

macro_rules! real {
    ($($real:ty: $place:tt, $slot:ty),*) => {$(
        impl Real for $real {
            const INFINITY: Self = <$real>::INFINITY;

            #[expect(clippy::allow_attributes, reason = "one of two types casts")]
            #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast, reason = "rounding is meant")]
            fn round(edge: f64) -> Self {
                edge as $real
            }

            fn above(self) -> Self {
                self.next_up()
            }

            #[inline]
            fn is_missing(self) -> bool {
                self.is_nan()
            }

            #[inline]
            fn is_number(self) -> bool {
                self.is_finite()
            }

            fn wide(self) -> f64 {
                self.into()
            }

            type Slot = $slot;

            #[inline]
            fn put(self, slot: &Self::Slot) {
                slot.store(self.to_bits(), Relaxed);
            }

            #[inline]
            fn get(slot: &Self::Slot) -> Self {
                Self::from_bits(slot.load(Relaxed))
            }

            fn of<'a>(single: &'a [Column<f32>], double: &'a [Column<f64>]) -> &'a [Column<Self>] {
                (single, double).$place
            }

            fn waiting<'a>(single: &'a Waiting<f32>, double: &'a Waiting<f64>) -> &'a Waiting<Self> {
                (single, double).$place
            }
        }
    )*};
}

real!(f32: 0, AtomicU32, f64: 1, AtomicU64);

/// The bins of one column of numbers.
#[derive(Debug, Clone)]
pub(super) struct Column<T> {
    thresholds: [T; LANES],
    /// Thresholds that a number may reach; the others fill up.
    used: usize,
    /// Where its categories are, if it has such.
    codes: Option<Categories>,
    /// The cell of its first bin.
    first: u32,
    /// The cell of infinities, and of missing values.
    non_finite: u32,
    missing: u32,
}

/// The bins of one column of texts.
#[derive(Debug, Clone)]
pub(super) struct TextColumn {
    categories: Categories,
    first: u32,
    missing: u32,
}

/// A table from the keys of categories to bins: open addressing, at most half full.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    slots: Box<[(u64, u32)]>,
    unseen: u32,
}

/// No category is here; a key that happens to be equal is another one.
const FREE: u64 = 0;

impl Keys {
    /// A table of keys and their bins; `unseen` for every other key.
    pub(super) fn new(entries: impl ExactSizeIterator<Item = (u64, u32)>, unseen: u32) -> Self {
        let size = (entries.len() * 2).next_power_of_two().max(4);
        let mut slots = vec![(FREE, unseen); size].into_boxed_slice();
        for (key, bin) in entries {
            let mut at = Self::start(key, size);
            while slots[at].0 != FREE {
                at = (at + 1) & (size - 1);
            }
            slots[at] = (key | 1, bin);
        }
        Self { slots, unseen }
    }

    fn start(key: u64, size: usize) -> usize {
        (key >> 32) as usize & (size - 1)
    }

    /// The bin of a key.
    #[inline]
    pub(super) fn find(&self, key: u64) -> u32 {
        let size = self.slots.len();
        let mut at = Self::start(key, size);
        loop {
            let (found, bin) = self.slots[at];
            if found == key | 1 {
                return bin;
            }
            if found == FREE {
                return self.unseen;
            }
            at = (at + 1) & (size - 1);
        }
    }
}

/// Categories of a column, and the others that its reference has beside them.
#[derive(Debug, Clone)]
struct Categories {
    known: Keys,
    /// By the keys of profiles, if there are others.
    others: Option<Keys>,
}

/// The cell of what is no known category, where there are others: there are never so many cells.
const NOT_KNOWN: u32 = u32::MAX;

impl Categories {
    /// Those of these bins, from the cell `first` on, by keys of texts; none for what no value is written as.
    fn new(
        categories: &[String],
        others: &[String],
        first: u32,
        key: impl Fn(&str) -> Option<u64>,
    ) -> Self {
        let other = first + cell(categories.len());
        let unseen = other + 1;
        let own = (first..).zip(categories);
        let known: Vec<_> = own.filter_map(|(bin, category)| Some((key(category)?, bin))).collect();
        let others = others.iter().filter_map(|other| u64::from_str_radix(other, 16).ok());
        let others: Vec<_> = others.map(|key| (key, other)).collect();
        if others.is_empty() {
            return Self { known: Keys::new(known.into_iter(), unseen), others: None };
        }
        let others = Some(Keys::new(others.into_iter(), unseen));
        Self { known: Keys::new(known.into_iter(), NOT_KNOWN), others }
    }

    /// The cell of a category: by its key here, else by the one that profiles have.
    #[inline]
    fn find(&self, key: u64, written: impl FnOnce() -> u64) -> u32 {
        match (self.known.find(key), &self.others) {
            (NOT_KNOWN, Some(others)) => others.find(written()),
            (cell, _) => cell,
        }
    }
}

/// Folds two words into one: the halves of their 128-bit product (wyhash, Wang Yi 2019).
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Odd words without a pattern, from the digits of pi.
const SALTS: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345];

/// The key of a text in tables of this process. Not a secret, as with [`category_key`].
#[inline]
fn text_key(text: &[u8]) -> u64 {
    let eight = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let four = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
    // Spread over all bits, or it meets those of the bytes.
    let length = (text.len() as u64).wrapping_mul(SALTS[1]);
    let (mut rest, mut state) = (text, length ^ SALTS[0]);
    while let Some((words, after)) = rest.split_first_chunk::<16>().filter(|(_, it)| !it.is_empty())
    {
        let [a, b] = [0, 8].map(|at| words[at..at + 8].first_chunk().map_or(0, eight));
        state = fold(a ^ SALTS[1], b ^ state);
        rest = after;
    }
    // The first and the last of up to sixteen bytes, which overlap.
    let ends = match rest {
        [] => (0, 0),
        [a] => (u64::from(*a), 0),
        [a, .., b] if rest.len() < 4 => {
            (u64::from(*a) << 8 | u64::from(*b), u64::from(rest[rest.len() / 2]))
        }
        _ if rest.len() < 8 => {
            (rest.first_chunk().map_or(0, four), rest.last_chunk().map_or(0, four))
        }
        _ => (rest.first_chunk().map_or(0, eight), rest.last_chunk().map_or(0, eight)),
    };
    fold(ends.0 ^ SALTS[1], ends.1 ^ state)
}

/// The key of a number in tables of this process.
#[inline]
fn bits_key(value: f64) -> u64 {
    // Adding makes one zero of two.
    fold((value + 0.0).to_bits() ^ SALTS[0], SALTS[1])
}

/// The key of the number that a category stands for; `None` if no number is written so.
fn code_key(category: &str) -> Option<u64> {
    let value: f64 = category.parse().ok()?;
    (written(value) == category).then(|| bits_key(value))
}

/// The number of a cell.
pub(super) fn cell(index: usize) -> u32 {
    u32::try_from(index).expect("profiles are limited to some thousand features of some dozen bins")
}

impl<T: Real> Column<T> {
    /// A column whose bins begin at the cell `first`.
    pub(super) fn new(bins: &Bins, first: u32) -> Self {
        let last = first + cell(bins.len());
        let mut column = Self {
            thresholds: [T::INFINITY; LANES],
            used: 0,
            codes: None,
            first,
            non_finite: last - 2,
            missing: last - 1,
        };
        match bins {
            Bins::Numeric { edges } => {
                if let Some((largest, lower)) = edges.split_last() {
                    let lower = if lower.is_empty() { edges.as_slice() } else { lower };
                    for (threshold, edge) in column.thresholds.iter_mut().zip(lower) {
                        *threshold = T::round(*edge);
                    }
                    column.thresholds[lower.len()] = T::round(*largest).above();
                    column.used = lower.len() + 1;
                } else {
                    column.first += 1;
                }
            }
            Bins::Categorical { categories, others } => {
                column.codes = Some(Categories::new(categories, others, first, code_key));
            }
        }
        column
    }

    /// A column that nothing is compared with: each value counts in this cell.
    pub(super) fn sink(cell: u32) -> Self {
        let thresholds = [T::INFINITY; LANES];
        Self { thresholds, used: 0, codes: None, first: cell, non_finite: cell, missing: cell }
    }

    /// The cell of a value.
    #[inline]
    pub(super) fn cell(&self, value: T) -> u32 {
        if !value.is_number() {
            return if value.is_missing() { self.missing } else { self.non_finite };
        }
        if let Some(codes) = &self.codes {
            let value = value.wide();
            return codes.find(bits_key(value), || number_key(value));
        }
        self.first + self.reached(value)
    }

    /// The cells of several values, of which a processor compares some at a time.
    #[inline]
    pub(super) fn cells<const VALUES: usize>(&self, values: &[T; VALUES]) -> [u32; VALUES] {
        if self.codes.is_some() || !values.iter().fold(true, |all, value| all & value.is_number()) {
            return values.map(|value| self.cell(value));
        }
        let mut cells = [self.first; VALUES];
        for threshold in &self.thresholds[..self.used] {
            for (cell, value) in cells.iter_mut().zip(values) {
                *cell += u32::from(*value >= *threshold);
            }
        }
        cells
    }

    /// Thresholds that a value has reached.
    #[inline]
    fn reached(&self, value: T) -> u32 {
        let reached = |count, threshold: &T| count + u32::from(value >= *threshold);
        self.thresholds.iter().fold(0, reached)
    }
}

/// The key of a number that is a category.
pub(super) fn number_key(value: f64) -> u64 {
    /// Room for the longest number as text.
    struct Text([u8; 32], usize);
    impl std::fmt::Write for Text {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let end = self.1 + text.len();
            let room = self.0.get_mut(self.1..end).ok_or(std::fmt::Error)?;
            room.copy_from_slice(text.as_bytes());
            self.1 = end;
            Ok(())
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^53 only")]
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        return category_key(itoa::Buffer::new().format(value as i64).as_bytes());
    }
    let mut text = Text([0; 32], 0);
    if std::fmt::write(&mut text, format_args!("{value}")).is_ok() {
        return category_key(&text.0[..text.1]);
    }
    category_key(written(value).as_bytes())
}

impl TextColumn {
    /// A column whose bins begin at the cell `first`.
    pub(super) fn new(bins: &Bins, first: u32) -> Option<Self> {
        let Bins::Categorical { categories, others } = bins else { return None };
        let key = |text: &str| Some(text_key(text.as_bytes()));
        let categories = Categories::new(categories, others, first, key);
        Some(Self { categories, first, missing: first + cell(bins.len()) - 1 })
    }

    /// A column that nothing is compared with: each text counts in this cell.
    pub(super) fn sink(cell: u32) -> Self {
        let categories = Categories { known: Keys::new([].into_iter(), cell), others: None };
        Self { categories, first: cell, missing: cell }
    }

    /// The cell of a text.
    #[inline]
    pub(super) fn cell(&self, text: &[u8]) -> u32 {
        if text.is_empty() {
            return self.missing;
        }
        debug_assert!(self.first <= self.missing, "bins ascend");
        self.categories.find(text_key(text), || category_key(text))
    }
}

/// The same feature for values of single precision: edges that meet when they are rounded become one.
pub(super) fn rounded(feature: &Feature) -> Feature {
    let mut feature = feature.clone();
    #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
    feature.sample.iter_mut().for_each(|value| *value = f64::from(*value as f32));
    let Bins::Numeric { edges } = &feature.bins else { return feature };
    #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
    let round = |edge: f64| f64::from(edge as f32);
    let meets = |index: usize| round(edges[index]).to_bits() == round(edges[index + 1]).to_bits();
    if edges.len() < 2 || !(0..edges.len() - 1).any(meets) {
        return feature;
    }
    let (mut kept, mut counts) = (vec![edges[0]], vec![feature.counts[0]]);
    let mut pending = 0;
    for index in 0..edges.len() - 1 {
        pending += feature.counts[index + 1];
        if !meets(index) {
            kept.push(edges[index + 1]);
            counts.push(std::mem::take(&mut pending));
        }
    }
    // The last bin is closed above: what met its end belongs to it.
    match counts.len() {
        1 => counts.push(pending),
        _ => *counts.last_mut().expect("there is one") += pending,
    }
    counts.extend_from_slice(&feature.counts[edges.len()..]);
    Feature { bins: Bins::Numeric { edges: kept }, counts, ..feature }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(edges: &[f64], counts: &[u64]) -> Feature {
        Feature {
            name: "x".to_owned(),
            bins: Bins::Numeric { edges: edges.to_vec() },
            counts: counts.to_vec(),
            moments: None,
            sample: Vec::new(),
        }
    }

    #[test]
    fn columns_agree_with_bins() {
        let edge_sets: [&[f64]; 4] = [&[], &[3.0], &[0.0, 1.0], &[-2.0, -0.5, 0.0, 0.25, 7.0]];
        for edges in edge_sets {
            let bins = Bins::Numeric { edges: edges.to_vec() };
            let (single, double) = (Column::<f32>::new(&bins, 100), Column::<f64>::new(&bins, 100));
            for value in [-9.0, -2.0, -0.5, -0.1, 0.0, 0.25, 0.5, 1.0, 3.0, 3.5, 7.0, 8.0] {
                let expected = 100 + cell(bins.of_number(f64::from(value)));
                assert_eq!(single.cell(value), expected, "{value} in {edges:?}");
                assert_eq!(double.cell(value.into()), expected, "{value} in {edges:?}");
                assert_eq!(single.cells(&[value, -9.0]), [value, -9.0].map(|it| single.cell(it)));
            }
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert_eq!(double.cell(value), 100 + cell(bins.of_number(value)), "{value}");
                assert_eq!(double.cells(&[value, 0.5]), [value, 0.5].map(|it| double.cell(it)));
            }
        }
    }

    #[test]
    fn decimal_edges_count_the_values_that_they_were_made_of() {
        // 0.7 in single precision is below 0.7 in double precision.
        let bins = Bins::Numeric { edges: vec![0.1, 0.3, 0.7, 0.9] };
        let column = Column::<f32>::new(&bins, 0);
        assert_eq!([0.1_f32, 0.3, 0.7, 0.9].map(|value| column.cell(value)), [1, 2, 3, 3]);
    }

    #[test]
    fn edges_that_meet_in_single_precision_become_one() {
        let large = 16_777_216.0;
        let feature = numeric(&[0.0, large, large + 0.5, large + 2.0], &[1, 2, 3, 4, 5, 6, 7]);
        let feature = rounded(&feature);
        assert_eq!(feature.bins, Bins::Numeric { edges: vec![0.0, large, large + 2.0] });
        assert_eq!(feature.counts, [1, 2, 7, 5, 6, 7]);
        let constant = rounded(&numeric(&[large, large + 0.25], &[1, 2, 3, 4, 5]));
        assert_eq!(constant.bins, Bins::Numeric { edges: vec![large] });
        assert_eq!(constant.counts, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn keys_of_texts_differ_by_every_byte_and_by_the_length() {
        let mut keys = std::collections::BTreeSet::new();
        let mut texts = 0;
        for length in 0..70 {
            for changed in 0..=length {
                let mut text = vec![b'a'; length];
                if let Some(byte) = text.get_mut(changed) {
                    *byte = b'b';
                }
                keys.insert(text_key(&text) | 1);
                texts += 1;
            }
        }
        // Zeros are no padding, and order counts.
        let more: [&[u8]; 6] = [b"\0", b"\0\0", b"ab\0", b"abc", b"acb", b"cab"];
        keys.extend(more.map(|text| text_key(text) | 1));
        assert_eq!(keys.len(), texts + more.len());
        // High bits choose the slot: of a thousand short texts few share one of two thousand.
        let starts =
            (0..1000).map(|number: u32| Keys::start(text_key(number.to_string().as_bytes()), 2048));
        assert!(starts.collect::<std::collections::BTreeSet<_>>().len() > 740);
    }

    #[test]
    fn categories_agree_with_bins_for_any_text_and_number() {
        let numbers = ["0", "-1", "7", "1.5", "1e3", "07", "9007199254740993", "NaN"];
        let texts = ["a", "seven", "a much longer category than others", "ü", "7 "];
        let categories: Vec<String> =
            numbers.iter().chain(&texts).map(|text| (*text).to_owned()).collect();
        let others =
            ["b", "8", "2.5"].map(|text| format!("{:016x}", category_key(text.as_bytes())));
        for others in [Vec::new(), others.to_vec()] {
            let bins = Bins::Categorical { categories: categories.clone(), others };
            let (text, number) = (TextColumn::new(&bins, 5).unwrap(), Column::<f64>::new(&bins, 5));
            for value in numbers.iter().chain(&texts).chain(&["b", "8", "c", "", "2.5", "-0"]) {
                let expected = 5 + cell(bins.of_text(value.as_bytes()));
                assert_eq!(text.cell(value.as_bytes()), expected, "{value}");
            }
            for value in [0.0, -0.0, -1.0, 7.0, 1.5, 1e3, 8.0, 2.5, 3.5, 1e300, f64::NAN] {
                let expected = 5 + cell(bins.of_number(value));
                assert_eq!(number.cell(value), expected, "{value}");
            }
        }
    }

    #[test]
    fn categories_are_found_by_text_and_by_number() {
        let others = vec![format!("{:016x}", category_key(b"c"))];
        let categories = ["a", "7", "1.5", "true"].map(str::to_owned).to_vec();
        let bins = Bins::Categorical { categories, others };
        let texts = TextColumn::new(&bins, 10).unwrap();
        for text in ["a", "7", "1.5", "true", "c", "d", ""] {
            assert_eq!(texts.cell(text.as_bytes()), 10 + cell(bins.of_text(text.as_bytes())));
        }
        let numbers = Column::<f32>::new(&bins, 10);
        assert_eq!([7.0, 1.5, 8.0, f32::NAN].map(|value| numbers.cell(value)), [11, 12, 15, 16]);
    }
}
