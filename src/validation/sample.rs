//! A sample of bounded size from rows of any number: every row has the same chance to be in it.

/// Up to `max` rows of `width` numbers each, and a mark for each row.
#[derive(Debug)]
pub(super) struct Sample {
    width: usize,
    max: usize,
    values: Vec<f64>,
    marks: Vec<u32>,
    seen: u64,
    state: u64,
}

impl Sample {
    pub(super) fn new(width: usize, max: usize) -> Self {
        Self { width, max: max.max(1), values: Vec::new(), marks: Vec::new(), seen: 0, state: 1 }
    }

    /// Offers a row: kept while there is room, afterwards in the place of another with the chance that keeps all
    /// chances equal (Vitter's algorithm R).
    pub(super) fn add(&mut self, values: &[f64], mark: u32) {
        debug_assert_eq!(values.len(), self.width, "rows have one width");
        self.seen += 1;
        if self.marks.len() < self.max {
            self.values.extend_from_slice(values);
            self.marks.push(mark);
            return;
        }
        let place = usize::try_from(self.below(self.seen)).unwrap_or(usize::MAX);
        if place < self.max {
            self.values[place * self.width..][..self.width].copy_from_slice(values);
            self.marks[place] = mark;
        }
    }

    /// Rows that were offered.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// True if not every row that was offered is in it.
    pub(super) fn is_partial(&self) -> bool {
        self.seen > self.marks.len() as u64
    }

    /// The number of rows that it holds.
    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    /// All values, row after row.
    pub(super) fn values(&self) -> &[f64] {
        &self.values
    }

    /// Each row's value of one column, and its mark.
    pub(super) fn column(&self, column: usize) -> impl Iterator<Item = (f64, u32)> + '_ {
        let rows = self.values.chunks(self.width.max(1)).zip(&self.marks);
        rows.map(move |(values, mark)| (values[column], *mark))
    }

    /// A number below `bound`, from `SplitMix64` (Steele, Lea & Flood, 2014); the bias is below bound / 2^64.
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let wide = u128::from(mixed) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the upper half of 128 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_the_same_chance() {
        let mut sample = Sample::new(1, 1000);
        for row in 0..100_000u32 {
            sample.add(&[f64::from(row)], row);
        }
        assert!(sample.is_partial() && sample.len() == 1000 && sample.seen() == 100_000);
        let mean = sample.values().iter().sum::<f64>() / 1000.0;
        // Three standard errors of a mean of 1,000 uniform numbers.
        assert!((mean - 50_000.0).abs() < 3.0 * 28_868.0 / 31.6, "{mean}");
        assert!(sample.column(0).all(|(value, mark)| (value - f64::from(mark)).abs() < 0.5));
    }
}
