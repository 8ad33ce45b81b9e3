//! Pure mathematics of verdicts: which evidence counts for a decision, and how strong it is.
//!
//! Sequential tests come as e-processes: a number that begins at 1 and stays, on average, at or below 1 as long
//! as the null hypothesis holds, however often and whenever somebody looks. The chance that it ever reaches
//! 1/alpha is then at most alpha (Ville's inequality), so a verdict may be taken at any event. Confidence
//! sequences are the same read backwards: the values that such a test has not excluded. Always true:
//! - No clock, no randomness of its own, no I/O: the same calls give the same bits on every machine, because
//!   exponentials and logarithms are computed in Rust and not by the system's library.
//! - Results are never NaN; e-values are natural logarithms, finite.
//!
//! Not here: what counts as an event, thresholds and what follows from them (the rooms that decide).

mod assignment;
mod events;
mod likelihood;
#[cfg(test)]
mod random;
mod rates;
mod special;

pub use assignment::SampleRatio;
pub use events::{Direction, EventProcess, RatioLimits, Stratum, ratio_limits};
pub use rates::{rate_above_log_e, rate_limits, rate_upper_limit};
