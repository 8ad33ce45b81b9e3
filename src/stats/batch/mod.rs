//! Two samples compared once: tests with p-values, and distances.
//!
//! For reports and gates, one look at a fixed set of rows. On a stream a p-value is no promise: with a look at every
//! value, a test at level alpha raises an alarm after some 1/alpha looks, whatever the data. That is what `detector`
//! is for. Always true:
//! - NaN is left out and counted ([`Sample::missing`]); infinite values have their place in the order, and are left
//!   out where a distance would be infinite. Too few values are an error.
//! - Ties are allowed everywhere. Exact p-values assume that there are none and are too large with ties.
//!
//! Results agree with those of scipy 1.17 to 9 digits, which are checked case by case.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts that fit into memory, and numbers that stand for places among them"
)]
#![expect(clippy::many_single_char_names, reason = "formulas in the letters of their sources")]

mod contingency;
mod cramer_von_mises;
mod distances;
mod kolmogorov_smirnov;
mod mann_whitney;
mod multiplicity;
mod sample;

pub use contingency::{Contingency, Divergence, Fisher, fisher_exact, independence};
pub use cramer_von_mises::cramer_von_mises;
pub use distances::{
    binned_kolmogorov, binned_wasserstein, energy_distance, hellinger, jensen_shannon,
    kullback_leibler, largest_difference, normed_wasserstein, population_stability,
    population_stability_null, quantile_edges, smoothed_shares, total_variation, wasserstein,
};
pub use kolmogorov_smirnov::{
    KolmogorovSmirnov, kolmogorov_sf, kolmogorov_smirnov, kolmogorov_two_sided_sf,
};
pub use mann_whitney::mann_whitney;
pub use multiplicity::{
    benjamini_hochberg, benjamini_yekutieli, bonferroni_threshold, step_up_threshold,
};
pub use sample::{Method, Sample, SampleError, Side, TestResult};
