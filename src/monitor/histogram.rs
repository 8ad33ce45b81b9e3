//! Latency histograms with one writer: buckets as an HDR histogram's with two significant digits.
//!
//! A value falls into a magnitude (its leading bits) and one of 128 steps in it, which bounds the relative
//! error by 1/128. The 128 counts of a magnitude are allocated when the first value falls there, so that a
//! histogram that sees only 50-400 us holds three kilobytes. One thread writes, with relaxed stores; any
//! thread may read meanwhile and sees each count as it was at some instant.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use hdrhistogram::Histogram;

const STEP_BITS: u32 = 7;
const STEPS: usize = 1 << STEP_BITS;
/// Values from 2^42 ns (73 minutes) on count as the largest.
const VALUE_MAX: u64 = (1 << 42) - 1;
/// Magnitude 0 holds values below 128 exactly; each further one twice the range of the one before.
const MAGNITUDES: usize = 42 - STEP_BITS as usize + 1;

type Steps = [AtomicU64; STEPS];

/// Latencies in nanoseconds, recorded by one thread.
#[derive(Debug)]
pub struct Latencies {
    magnitudes: [OnceLock<Box<Steps>>; MAGNITUDES],
}

impl Default for Latencies {
    fn default() -> Self {
        Self { magnitudes: std::array::from_fn(|_| OnceLock::new()) }
    }
}

impl Latencies {
    /// Counts a latency. To be called from one thread only: a second one may lose counts.
    pub fn record(&self, nanoseconds: u64) {
        let (magnitude, step) = place(nanoseconds.min(VALUE_MAX));
        let steps = self.magnitudes[magnitude]
            .get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        let count = &steps[step];
        count.store(count.load(Relaxed) + 1, Relaxed);
    }

    /// Adds what was counted so far to a histogram made by [`Latencies::merged`].
    pub fn add_to(&self, histogram: &mut Histogram<u64>) {
        for (magnitude, steps) in self.magnitudes.iter().enumerate() {
            let Some(steps) = steps.get() else { continue };
            for (step, count) in steps.iter().enumerate() {
                let count = count.load(Relaxed);
                if count > 0 {
                    histogram
                        .record_n(highest(magnitude, step), count)
                        .expect("the histogram spans every value that a step can stand for");
                }
            }
        }
    }

    /// An empty histogram that takes every value recorded here.
    #[must_use]
    pub fn merged() -> Histogram<u64> {
        Histogram::new_with_bounds(1, VALUE_MAX, 2).expect("the bounds are a valid constant")
    }
}

/// Magnitude and step of a value.
fn place(value: u64) -> (usize, usize) {
    let leading = u64::BITS - value.leading_zeros();
    let shift = leading.saturating_sub(STEP_BITS);
    let magnitude = shift as usize;
    let step = usize::try_from(value >> shift).expect("a shifted value has seven bits");
    (magnitude, step)
}

/// The largest value that a step stands for.
fn highest(magnitude: usize, step: usize) -> u64 {
    let width = 1u64 << magnitude;
    step as u64 * width + (width - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_step_holds_its_value_within_one_part_in_64(value in 0..=VALUE_MAX) {
            let (magnitude, step) = place(value);
            let top = highest(magnitude, step);
            prop_assert!(top >= value);
            prop_assert!(top - value <= value / 64);
        }
    }

    #[test]
    fn quantiles_of_merged_shards_are_exact_to_two_digits() {
        let (one, two) = (Latencies::default(), Latencies::default());
        for microseconds in 1..=1000 {
            let shard = if microseconds % 2 == 0 { &one } else { &two };
            shard.record(microseconds * 1000);
        }
        let mut histogram = Latencies::merged();
        one.add_to(&mut histogram);
        two.add_to(&mut histogram);
        assert_eq!(histogram.len(), 1000);
        let median = histogram.value_at_quantile(0.5);
        assert!((495_000..=510_000).contains(&median), "{median}");
    }

    #[test]
    fn endless_latencies_count_as_the_largest() {
        let latencies = Latencies::default();
        latencies.record(u64::MAX);
        let mut histogram = Latencies::merged();
        latencies.add_to(&mut histogram);
        assert_eq!(histogram.len(), 1);
    }
}
