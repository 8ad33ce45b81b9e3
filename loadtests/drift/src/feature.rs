//! One watched feature: the bins of its reference, and the evidence against it.

use drift::stats::{Alternatives, BinRole, Correction, ShiryaevRoberts, masses, quantile_edges};

/// Inner bins of a number.
const BINS: usize = 16;

/// How a detector is set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// The evidence that raises an alarm: the expected time to a false one, in values.
    pub(crate) threshold: f64,
    pub(crate) kappa: f64,
    pub(crate) tolerance: f64,
}

/// What the values of a feature are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    /// Whole numbers from 0 on, each a category.
    Category,
}

pub(crate) struct Feature {
    bins: Bins,
    alternatives: Alternatives,
    state: ShiryaevRoberts,
    counts: Vec<u64>,
}

enum Bins {
    /// Inner edges, least and largest value. Bins: below, inner ones, above, missing.
    Number { edges: Vec<f64>, least: f64, largest: f64 },
    /// Number of known categories, and one bin more for others.
    Category(usize),
}

impl Bins {
    fn place(&self, value: f64) -> usize {
        match self {
            Self::Number { edges, least, largest } => {
                let inner = edges.len() + 1;
                match value {
                    _ if value.is_nan() => inner + 2,
                    _ if value < *least => 0,
                    _ if value > *largest => inner + 1,
                    _ => 1 + edges.partition_point(|edge| *edge <= value),
                }
            }
            Self::Category(known) => (value as usize).min(*known),
        }
    }

    fn roles(&self) -> Vec<BinRole> {
        match self {
            Self::Number { edges, .. } => {
                let inner = vec![BinRole::Ordered; edges.len() + 1];
                [&[BinRole::Below][..], &inner, &[BinRole::Above, BinRole::Missing]].concat()
            }
            Self::Category(known) => {
                [&vec![BinRole::Category; *known][..], &[BinRole::Unseen]].concat()
            }
        }
    }
}

impl Feature {
    /// A feature whose reference is a sample.
    pub(crate) fn sampled(reference: &[f64], kind: Kind, setting: Setting) -> Self {
        let bins = match kind {
            Kind::Number => {
                let mut sorted: Vec<f64> =
                    reference.iter().copied().filter(|value| value.is_finite()).collect();
                sorted.sort_unstable_by(f64::total_cmp);
                let least = sorted.first().copied().unwrap_or(0.0);
                let largest = sorted.last().copied().unwrap_or(0.0);
                Bins::Number { edges: quantile_edges(&sorted, BINS), least, largest }
            }
            Kind::Category => {
                let largest = reference.iter().copied().fold(0.0, f64::max);
                Bins::Category(largest as usize + 1)
            }
        };
        let mut counts = vec![0; bins.roles().len()];
        for value in reference {
            counts[bins.place(*value)] += 1;
        }
        let rows = Some(reference.len() as f64);
        Self::new(bins, &masses(&counts), rows, kind, setting)
    }

    /// A number whose distribution is known: equal shares between the edges.
    pub(crate) fn exact_number(edges: Vec<f64>, setting: Setting) -> Self {
        let share = 1.0 / (edges.len() + 1) as f64;
        let mut shares = vec![share; edges.len() + 1];
        let bins = Bins::Number { edges, least: f64::NEG_INFINITY, largest: f64::INFINITY };
        // What cannot happen has no share.
        shares.insert(0, 0.0);
        shares.extend([0.0, 0.0]);
        Self::new(bins, &shares, None, Kind::Number, setting)
    }

    /// Categories whose shares are known.
    pub(crate) fn exact_category(shares: &[f64], setting: Setting) -> Self {
        let mut shares = shares.to_vec();
        let bins = Bins::Category(shares.len());
        shares.push(0.0);
        Self::new(bins, &shares, None, Kind::Category, setting)
    }

    fn new(bins: Bins, shares: &[f64], rows: Option<f64>, kind: Kind, setting: Setting) -> Self {
        let correction = Correction { kappa: setting.kappa, tolerance: setting.tolerance, rows };
        let make = match kind {
            Kind::Number => Alternatives::numeric,
            Kind::Category => Alternatives::categorical,
        };
        let alternatives = make(shares, &bins.roles(), correction);
        let state = ShiryaevRoberts::new(alternatives.len());
        Self { counts: vec![0; shares.len()], bins, alternatives, state }
    }

    /// Takes in one value, one unit of time after the last.
    pub(crate) fn push(&mut self, value: f64) {
        let place = self.bins.place(value);
        self.counts[place] = 1;
        self.state.advance(&self.alternatives, &self.counts, 1.0, 0.0);
        self.counts[place] = 0;
    }

    pub(crate) fn log_m(&self) -> f64 {
        self.state.log_m()
    }

    pub(crate) fn reset(&mut self) {
        self.state.reset();
    }
}
