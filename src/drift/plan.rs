//! What is counted where: a layout made ready for the path.

use super::{
    binner::{Column, Keys, Real, TextColumn, cell},
    layout::{Layout, Reading},
    profile::Bins,
};

/// The columns of one tensor, ready to count.
#[derive(Debug)]
pub(super) enum Counting {
    /// Nothing is counted.
    Skipped,
    /// A number in each column, in either precision: the tensor's own is used.
    Numbers { single: Box<[Column<f32>]>, double: Box<[Column<f64>]> },
    /// A text in each column.
    Texts(Box<[TextColumn]>),
    /// Length and share of known words of a text.
    Words { columns: Box<[Column<f64>; 2]>, words: Keys },
    /// Five measures of a row.
    Summary(Box<[Column<f64>; 5]>),
    /// The nearest centre and the length of a row.
    Clusters { centres: Box<[f32]>, width: usize, first: u32, norm: Box<Column<f64>> },
}

impl Counting {
    /// Values of a row that are looked at, as far as that is known beforehand; work for sampling.
    pub(super) fn work(&self) -> usize {
        match self {
            Self::Skipped => 0,
            Self::Numbers { single, .. } => single.len(),
            Self::Texts(columns) => columns.len() * 4,
            Self::Words { .. } | Self::Summary(_) => 256,
            Self::Clusters { centres, .. } => centres.len() / 8 + 1,
        }
    }
}

/// Everything that is counted of a version.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) inputs: Box<[Counting]>,
    pub(super) outputs: Box<[Counting]>,
    /// Work of a row of inputs, and of outputs.
    pub(super) work: [usize; 2],
    /// By feature: its first cell and the number of its bins; none where there is no reference yet.
    pub(super) cells: Box<[Option<(usize, usize)>]>,
    /// Cells of a shard.
    pub(super) len: usize,
}

impl Plan {
    /// The plan of a layout. The first cell takes what nothing is compared with.
    pub(super) fn new(layout: &Layout) -> Self {
        let mut len = 1;
        let cells = layout.features.iter().map(|known| {
            let reference = known.reference.as_ref()?;
            let first = len;
            len += reference.bins.len();
            Some((first, reference.bins.len()))
        });
        let cells: Box<[_]> = cells.collect();
        let place = Placing { layout, cells: &cells };
        let all = |readings: &[Reading]| -> Box<[Counting]> {
            readings.iter().map(|reading| place.counting(reading)).collect()
        };
        let (inputs, outputs) = (all(&layout.inputs), all(&layout.outputs));
        let work = [&inputs, &outputs].map(|all| all.iter().map(Counting::work).sum());
        Self { inputs, outputs, work, cells, len }
    }
}

struct Placing<'a> {
    layout: &'a Layout,
    cells: &'a [Option<(usize, usize)>],
}

impl Placing<'_> {
    fn bins(&self, feature: usize) -> Option<(&Bins, u32)> {
        let (first, _) = self.cells[feature]?;
        let reference = self.layout.features[feature].reference.as_ref()?;
        Some((&reference.bins, cell(first)))
    }

    fn column<T: Real>(&self, feature: usize) -> Column<T> {
        self.bins(feature).map_or_else(|| Column::sink(0), |(bins, first)| Column::new(bins, first))
    }

    fn text(&self, feature: usize) -> TextColumn {
        let column = self.bins(feature).and_then(|(bins, first)| TextColumn::new(bins, first));
        column.unwrap_or_else(|| TextColumn::sink(0))
    }

    fn is_known(&self, features: std::ops::Range<usize>) -> bool {
        self.cells[features].iter().any(Option::is_some)
    }

    fn counting(&self, reading: &Reading) -> Counting {
        match reading {
            Reading::Numbers { first, width } if self.is_known(*first..first + width) => {
                let features = *first..first + width;
                let single = features.clone().map(|feature| self.column(feature)).collect();
                let double = features.map(|feature| self.column(feature)).collect();
                Counting::Numbers { single, double }
            }
            Reading::Texts { first, width } if self.is_known(*first..first + width) => {
                Counting::Texts((*first..first + width).map(|feature| self.text(feature)).collect())
            }
            Reading::Words { first, words } if self.is_known(*first..first + 2) => {
                Counting::Words {
                    columns: Box::new([self.column(*first), self.column(first + 1)]),
                    words: Keys::new(words.iter().map(|word| (*word, 1)), 0),
                }
            }
            Reading::Summary { first } if self.is_known(*first..first + 5) => {
                Counting::Summary(Box::new(std::array::from_fn(|measure| {
                    self.column(first + measure)
                })))
            }
            Reading::Clusters { first, centres } if self.is_known(*first..first + 2) => {
                Counting::Clusters {
                    width: centres.first().map_or(0, Vec::len),
                    centres: centres.iter().flatten().copied().collect(),
                    // Categories of clusters are their numbers, in order.
                    first: self.bins(*first).map_or(0, |(_, first)| first),
                    norm: Box::new(self.column(first + 1)),
                }
            }
            _ => Counting::Skipped,
        }
    }
}
