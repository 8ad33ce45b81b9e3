//! Pure mathematics of verdicts: which evidence counts for a decision, and how strong it is.
//!
//! Sequential tests come as e-processes: a number that begins at 1 and stays, on average, at or below 1 as long
//! as the null hypothesis holds, however often and whenever somebody looks. The chance that it ever reaches
//! 1/alpha is then at most alpha (Ville's inequality), so a verdict may be taken at any event. Confidence
//! sequences are the same read backwards: the values that such a test has not excluded. Always true:
//! - No clock, no I/O, no randomness but from a seed: the same calls give the same bits on every machine, because
//!   exponentials and logarithms are computed in Rust and not by the system's library.
//! - E-values are natural logarithms, finite; finite input gives no NaN.
//!
//! Drift of a stream is found by e-detectors (`detector`): the same, for changes that may begin at any time. What they
//! promise is the expected time to a false alarm.
//!
//! Scores of predictions against labels stand here too, with the tests that compare two versions on the same rows.
//!
//! Not here: what counts as an event, thresholds and what follows from them (the rooms that decide).

mod adwin;
mod alternatives;
mod assignment;
mod batch;
mod calibration;
mod classification;
mod clusters;
mod detector;
mod events;
mod likelihood;
mod page_hinkley;
mod paired;
mod random;
mod rates;
#[cfg(test)]
mod reference;
mod regression;
mod sequences;
mod sketch;
mod special;

pub use adwin::Adwin;
pub use alternatives::{Alternatives, BinRole, Correction, ShiftKind, masses};
pub use assignment::SampleRatio;
pub use batch::{
    Contingency, Divergence, Fisher, KolmogorovSmirnov, Method, Sample, SampleError, Side,
    TestResult, benjamini_hochberg, benjamini_yekutieli, binned_kolmogorov, binned_wasserstein,
    bonferroni_threshold, cramer_von_mises, energy_distance, fisher_exact, hellinger, independence,
    jensen_shannon, kolmogorov_sf, kolmogorov_smirnov, kolmogorov_two_sided_sf, kullback_leibler,
    largest_difference, mann_whitney, normed_wasserstein, population_stability,
    population_stability_null, quantile_edges, smoothed_shares, step_up_threshold, total_variation,
    wasserstein,
};
pub use calibration::{
    Calibration, ExpectedConfusion, LabelledScores, STEPS as CALIBRATION_STEPS, isotonic,
    step as calibration_step,
};
pub use classification::{ClassScores, Confusion, LogLoss, roc_auc};
pub use clusters::KMeans;
pub use detector::{LOG_FLOOR, PlugIn, ShiryaevRoberts, e_d_bh, mean_log};
pub use events::{Direction, EventProcess, RatioLimits, Stratum, ratio_limits};
pub use page_hinkley::PageHinkley;
pub use paired::{MeanLimits, bootstrap_mean, mcnemar};
pub use random::Random;
pub use rates::{rate_above_log_e, rate_limits, rate_upper_limit};
pub use regression::RegressionErrors;
pub use sequences::{AsymptoticSequence, BoundedMean, NormalMixture};
pub use sketch::QuantileSketch;
pub use special::mean_log_e;
