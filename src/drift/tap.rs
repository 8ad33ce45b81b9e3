//! A sample of raw rows: for references that are learned, and for exact tests on demand.

use crate::tensor::{Strings, Tensor};

use super::{
    binner::{Keys, Real},
    layout::Reading,
    reader::{Items, Visit, visit},
    recorder,
};

/// Bytes of a text that are sampled.
const TEXT_BYTES_MAX: usize = 256;

/// Bytes of texts that one sample holds.
const TEXTS_BYTES_MAX: usize = 256 << 10;

/// Rows, each with a value for every feature of one side (inputs or outputs) of a layout.
#[derive(Debug, Default)]
pub(super) struct Tap {
    rows_max: usize,
    rows: usize,
    /// Row by row; NaN where a value is missing, the index of a text where a feature is one.
    pub(super) numbers: Vec<f64>,
    pub(super) texts: Strings,
}

impl Tap {
    /// A sample of at most this many rows.
    pub(super) fn new(rows_max: usize) -> Self {
        Self { rows_max, ..Self::default() }
    }

    /// Rows in it.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn has_room(&self) -> bool {
        self.rows < self.rows_max && self.texts.byte_len() < TEXTS_BYTES_MAX
    }

    pub(super) fn end_row(&mut self) {
        self.rows += 1;
    }

    /// The most rows that it holds.
    pub(super) fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// Forgets its rows and keeps their memory, for at most so many others.
    pub(super) fn clear(&mut self, rows_max: usize) {
        self.rows_max = rows_max;
        self.rows = 0;
        self.numbers.clear();
        self.texts.clear();
    }

    /// Appends the values of one tensor's features in one row.
    pub(super) fn read(
        &mut self,
        reading: &Reading,
        tensor: Option<&Tensor>,
        row: usize,
        rows: usize,
    ) {
        let end = self.numbers.len() + reading.features();
        if let Some(tensor) = tensor {
            self.read_some(reading, tensor, row, rows);
        }
        // What is not there, or not as it should be, is missing.
        self.numbers.resize(end, f64::NAN);
    }

    fn read_some(&mut self, reading: &Reading, tensor: &Tensor, row: usize, rows: usize) {
        match reading {
            Reading::Skipped => {}
            Reading::Numbers { width, .. } => {
                let numbers = &mut self.numbers;
                visit(tensor, &mut Copying { numbers, width: *width, row, rows });
            }
            Reading::Texts { width, .. } => {
                let Some(strings) = tensor.strings().filter(|all| all.len() == rows * width) else {
                    return;
                };
                for text in (row * width..(row + 1) * width).filter_map(|index| strings.get(index))
                {
                    #[expect(clippy::cast_precision_loss, reason = "a sample holds some thousand")]
                    self.numbers.push(self.texts.len() as f64);
                    self.texts.push(&text[..text.len().min(TEXT_BYTES_MAX)]);
                }
            }
            Reading::Words { words, .. } => {
                let Some(strings) = tensor.strings().filter(|all| all.len() == rows) else {
                    return;
                };
                let known = Keys::new(words.iter().map(|word| (*word, 1)), 0);
                self.numbers
                    .extend(recorder::measure_words(strings.get(row).unwrap_or_default(), &known));
            }
            Reading::Summary { .. } => {
                let numbers = &mut self.numbers;
                visit(tensor, &mut Measuring { numbers, row, rows });
            }
            Reading::Clusters { centres, .. } => {
                let numbers = &mut self.numbers;
                visit(tensor, &mut Clustering { numbers, centres, row, rows });
            }
        }
    }
}

struct Copying<'a> {
    numbers: &'a mut Vec<f64>,
    width: usize,
    row: usize,
    rows: usize,
}

impl Visit for Copying<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        if items.len() == self.rows * self.width {
            let row = items.row(self.row * self.width, self.width);
            row.each(|item| self.numbers.push(real(item).wide()));
        }
    }
}

struct Measuring<'a> {
    numbers: &'a mut Vec<f64>,
    row: usize,
    rows: usize,
}

impl Visit for Measuring<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        self.numbers.extend(recorder::measure_row(items, real, (self.row, self.rows)));
    }
}

struct Clustering<'a> {
    numbers: &'a mut Vec<f64>,
    centres: &'a [Vec<f32>],
    row: usize,
    rows: usize,
}

impl Visit for Clustering<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        let width = self.centres.first().map_or(0, Vec::len);
        if items.len() != self.rows * width {
            return;
        }
        let centres: Vec<f32> = self.centres.iter().flatten().copied().collect();
        let row = items.row(self.row * width, width);
        let (cluster, length) = recorder::nearest(row, real, &centres, width);
        #[expect(clippy::cast_precision_loss, reason = "there are few centres")]
        let cluster = cluster.map_or(f64::NAN, |cluster| cluster as f64);
        self.numbers.extend([cluster, length]);
    }
}
