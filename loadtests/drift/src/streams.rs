//! Streams with a change: what is drawn before it and after.

use std::f64::consts::PI;

use drift::stats::Random;
use libm::{cos, log};

/// A distribution to draw from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    Normal {
        mean: f64,
        deviation: f64,
    },
    /// Student's t with 3 degrees of freedom, scaled to a standard deviation of 1, moved.
    HeavyTailed {
        mean: f64,
    },
    Exponential {
        scale: f64,
    },
    /// Normal values, of which a share lies around 3.
    Polluted {
        share: f64,
    },
    /// Categories by their shares.
    Category([f64; 4]),
}

/// Pseudo-random numbers of the usual distributions.
pub(crate) struct Draw(Random);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// From 0 up to, and without, 1.
    fn unit(&mut self) -> f64 {
        self.0.below(1 << 53) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * log(1.0 - self.unit())).sqrt();
        radius * cos(2.0 * PI * self.unit())
    }

    pub(crate) fn from(&mut self, source: &Source) -> f64 {
        match source {
            Source::Normal { mean, deviation } => mean + deviation * self.normal(),
            Source::HeavyTailed { mean } => {
                let square: f64 = (0..3).map(|_| self.normal().powi(2)).sum();
                // The variance of t with 3 degrees of freedom is 3.
                mean + self.normal() / (square / 3.0).sqrt() / 3.0_f64.sqrt()
            }
            Source::Exponential { scale } => -scale * log(1.0 - self.unit()),
            Source::Polluted { share } => {
                let is_polluted = self.unit() < *share;
                if is_polluted { 3.0 } else { self.normal() }
            }
            Source::Category(shares) => {
                let mut rest = self.unit();
                let place = shares.iter().position(|share| {
                    rest -= share;
                    rest < 0.0
                });
                place.unwrap_or(shares.len() - 1) as f64
            }
        }
    }
}

/// A change that detectors are tried on.
pub(crate) struct Change {
    pub(crate) name: &'static str,
    pub(crate) before: Source,
    pub(crate) after: Source,
}

const STANDARD: Source = Source::Normal { mean: 0.0, deviation: 1.0 };

/// Changes that some alternative is made for, and changes that none is.
pub(crate) fn changes() -> Vec<Change> {
    let normal = |name, mean, deviation| Change {
        name,
        before: STANDARD,
        after: Source::Normal { mean, deviation },
    };
    let category = |name, before, after| Change {
        name,
        before: Source::Category(before),
        after: Source::Category(after),
    };
    vec![
        normal("mean +.25", 0.25, 1.0),
        normal("mean +.5", 0.5, 1.0),
        normal("mean +1", 1.0, 1.0),
        normal("sd 1.5", 0.0, 1.5),
        category("share .2 to .3", [0.8, 0.2, 0.0, 0.0], [0.7, 0.3, 0.0, 0.0]),
        category("4 categories", [0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2]),
        normal("mean +.35", 0.35, 1.0),
        normal("mean +.7", 0.7, 1.0),
        normal("sd 1.3", 0.0, 1.3),
        normal("sd .7", 0.0, 0.7),
        Change {
            name: "t3, mean +.4 sd",
            before: Source::HeavyTailed { mean: 0.0 },
            after: Source::HeavyTailed { mean: 0.4 },
        },
        Change {
            name: "exponential x1.4",
            before: Source::Exponential { scale: 1.0 },
            after: Source::Exponential { scale: 1.4 },
        },
        Change { name: "10 % become 3", before: STANDARD, after: Source::Polluted { share: 0.1 } },
    ]
}
