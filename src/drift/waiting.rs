//! Rows that are counted several at a time.
//!
//! Between two requests, the edges and counts of all columns leave the processor's nearest caches. A row that waits
//! costs a copy, and the rows of one turn fetch each column once. Always true:
//! - One worker writes; whoever merges finds the rows that wait beside the counts, at the latest with its next look.
//! - A value is never found twice: rows are taken back before their counts can be seen.
//!
//! Not here: where a value is counted (`binner`), requests of many rows, which are counted at once (`recorder`).

use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use super::{
    binner::{Column, Real},
    reader::Items,
};

/// Rows that wait, and the values that they may have: to count them takes a microsecond or two.
const ROWS: usize = 16;
const VALUES_MAX: usize = 1024;

/// Rows of one tensor.
#[derive(Debug)]
pub(super) struct Waiting<T: Real> {
    /// Row by row; empty where rows are wide.
    values: Box<[T::Slot]>,
    rows: AtomicUsize,
}

impl<T: Real> Waiting<T> {
    /// Room for rows of so many values; for none where rows are wide.
    pub(super) fn new(width: usize) -> Self {
        let values = if ROWS * width > VALUES_MAX { 0 } else { ROWS * width };
        let values = (0..values).map(|_| T::Slot::default()).collect();
        Self { values, rows: AtomicUsize::new(0) }
    }

    /// True if a request of so many rows waits.
    pub(super) fn takes(&self, rows: usize) -> bool {
        rows < ROWS && !self.values.is_empty()
    }

    /// Takes a row, and counts all that wait once there is no room for another; `count` counts in a cell.
    #[inline]
    pub(super) fn push<I: bytemuck::AnyBitPattern>(
        &self,
        row: Items<'_, I>,
        real: impl Fn(I) -> T,
        columns: &[Column<T>],
        count: impl Fn(u32),
    ) {
        let rows = self.rows.load(Relaxed);
        let mut slots = self.values[rows * columns.len()..].iter();
        row.each(|item| {
            if let Some(slot) = slots.next() {
                real(item).put(slot);
            }
        });
        if rows + 1 < ROWS {
            self.rows.store(rows + 1, Release);
        } else {
            self.count(columns, count);
        }
    }

    /// Counts as many rows as there is room for.
    #[inline(never)]
    fn count(&self, columns: &[Column<T>], count: impl Fn(u32)) {
        self.rows.store(0, Relaxed);
        // Whoever sees a count of these sees that they wait no more.
        fence(Release);
        let width = columns.len();
        for (index, column) in columns.iter().enumerate() {
            let values: [T; ROWS] =
                std::array::from_fn(|row| T::get(&self.values[row * width + index]));
            column.cells(&values).into_iter().for_each(&count);
        }
    }

    /// Hands out the cells of what waits, for a reader that has seen all counts before.
    pub(super) fn cells(&self, columns: &[Column<T>], mut each: impl FnMut(u32)) {
        let rows = self.rows.load(Acquire);
        for row in self.values.chunks_exact(columns.len().max(1)).take(rows) {
            for (value, column) in row.iter().zip(columns) {
                each(column.cell(T::get(value)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap};

    use proptest::prelude::*;

    use super::{super::profile::Bins, *};

    type Counts = BTreeMap<u32, u32>;

    fn columns<T: Real>() -> Vec<Column<T>> {
        let numbers = |edges: &[f64]| Bins::Numeric { edges: edges.to_vec() };
        let categories = ["1", "2"].map(str::to_owned).to_vec();
        let kinds = Bins::Categorical { categories, others: Vec::new() };
        let all = [numbers(&[0.0, 1.0, 2.0]), kinds, numbers(&[1.5])];
        all.iter().zip([0, 100, 200]).map(|(bins, first)| Column::new(bins, first)).collect()
    }

    /// Counts rows one by one; after each, what was counted and what waits are all rows so far.
    fn check<T: Real + bytemuck::AnyBitPattern>(rows: &[[T; 3]]) {
        let (columns, waiting) = (columns::<T>(), Waiting::<T>::new(3));
        let (counted, mut expected) = (RefCell::new(Counts::new()), Counts::new());
        for row in rows {
            assert!(waiting.takes(1));
            let count = |cell| *counted.borrow_mut().entry(cell).or_default() += 1;
            waiting.push(Items::Typed(&row[..]), |value| value, &columns, count);
            for (value, column) in row.iter().zip(&columns) {
                *expected.entry(column.cell(*value)).or_default() += 1;
            }
            let mut found = counted.borrow().clone();
            waiting.cells(&columns, |cell| *found.entry(cell).or_default() += 1);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn wide_rows_and_many_do_not_wait() {
        let takes = |width: usize, rows: usize| Waiting::<f32>::new(width).takes(rows);
        assert!(takes(1, 1) && takes(64, 1) && takes(3, ROWS - 1));
        assert!(!takes(0, 1) && !takes(65, 1) && !takes(3, ROWS));
    }

    proptest! {
        #[test]
        fn each_value_is_counted_once_now_or_later(
            rows in prop::collection::vec(
                prop::array::uniform3(prop_oneof![-1.0..4.0_f64, Just(f64::NAN), Just(f64::INFINITY), Just(1.0)]),
                0..50,
            )
        ) {
            check::<f64>(&rows);
            let single: Vec<_> = rows.iter().map(|row| row.map(<f32 as Real>::round)).collect();
            check::<f32>(&single);
        }
    }
}
