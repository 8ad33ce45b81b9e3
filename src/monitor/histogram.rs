//! Latency histograms with one writer: buckets as an HDR histogram's with two significant digits.
//!
//! A value falls into a magnitude (its leading bits) and one of 64 steps in it, which bounds the relative
//! error by 1/64. The 64 counts of a magnitude are allocated when the first value falls there, so that a
//! histogram that sees only 50-400 us holds two kilobytes. One thread writes, with relaxed stores; any
//! thread may read meanwhile and sees each count as it was at some instant.

use std::sync::{
    LazyLock, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::page::{Bucket, Native, SCHEMA};

const STEP_BITS: u32 = 6;
const STEPS: usize = 1 << STEP_BITS;
/// Values from 2^42 ns (73 minutes) on count as the largest.
const VALUE_MAX: u64 = (1 << 42) - 1;
/// Magnitudes 0 and 1 hold values below 128 exactly; each further one twice the range of the one before.
const MAGNITUDES: usize = 42 - STEP_BITS as usize + 1;

type Steps = [AtomicU64; STEPS];

/// Latencies in nanoseconds, recorded by one thread.
#[derive(Debug)]
pub struct Latencies {
    magnitudes: [OnceLock<Box<Steps>>; MAGNITUDES],
}

/// What histograms counted, merged at one look.
#[derive(Debug, Clone)]
pub struct Spread {
    magnitudes: [Option<Box<[u64; STEPS]>>; MAGNITUDES],
}

impl Default for Latencies {
    fn default() -> Self {
        Self { magnitudes: std::array::from_fn(|_| OnceLock::new()) }
    }
}

impl Default for Spread {
    fn default() -> Self {
        Self { magnitudes: [const { None }; MAGNITUDES] }
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

    /// Adds what was counted so far.
    pub fn add_to(&self, spread: &mut Spread) {
        for (sums, steps) in spread.magnitudes.iter_mut().zip(&self.magnitudes) {
            let Some(steps) = steps.get() else { continue };
            let sums = sums.get_or_insert_with(|| Box::new([0; STEPS]));
            sums.iter_mut().zip(&**steps).for_each(|(sum, count)| *sum += count.load(Relaxed));
        }
    }
}

impl Spread {
    /// Adds what another one holds.
    pub fn add(&mut self, other: &Self) {
        for (sums, counts) in self.magnitudes.iter_mut().zip(&other.magnitudes) {
            let Some(counts) = counts else { continue };
            let sums = sums.get_or_insert_with(|| Box::new([0; STEPS]));
            sums.iter_mut().zip(&**counts).for_each(|(sum, count)| *sum += count);
        }
    }

    /// Latencies that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.magnitudes.iter().flatten().flat_map(|counts| counts.iter()).sum()
    }

    /// The latency in nanoseconds that a share `q` of all does not exceed, at most 1/64 too large; 0 where nothing
    /// was counted. `q` lies in 0..=1.
    #[must_use]
    pub fn quantile(&self, q: f64) -> u64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among fewer than 2^53, not negative"
        )]
        let rank = ((q.clamp(0.0, 1.0) * self.count() as f64).ceil() as u64).max(1);
        let mut below = 0;
        let mut last = 0;
        for (magnitude, step, count) in self.filled() {
            below += count;
            last = highest(magnitude, step);
            if below >= rank {
                break;
            }
        }
        last
    }

    /// Latencies that may be as large as this one or larger: those of the step that holds it, and of all above.
    #[must_use]
    pub fn above(&self, nanoseconds: u64) -> u64 {
        let least = place(nanoseconds.min(VALUE_MAX));
        let above = self.filled().filter(|(magnitude, step, _)| (*magnitude, *step) >= least);
        above.map(|(.., count)| count).sum()
    }

    /// Counts up to each of these edges in seconds, which rise. A step counts where all that it stands for lies within,
    /// so that nothing slower than an edge is taken for faster.
    pub(super) fn classic(&self, edges: &[f64]) -> Vec<Bucket> {
        let mut buckets: Vec<Bucket> = Vec::with_capacity(edges.len());
        let mut below = 0;
        let mut edges = edges.iter().peekable();
        for (magnitude, step, count) in self.filled() {
            let top = seconds(highest(magnitude, step));
            while let Some(edge) = edges.next_if(|edge| **edge < top) {
                buckets.push(Bucket { edge: *edge, below });
            }
            below += count;
        }
        buckets.extend(edges.map(|edge| Bucket { edge: *edge, below }));
        buckets
    }

    /// The counts in exponential buckets of seconds. Each step counts by its upper end, as in [`Spread::quantile`].
    pub(super) fn native(&self) -> Native {
        let mut native = Native::default();
        for (magnitude, step, count) in self.filled() {
            if (magnitude, step) == (0, 0) {
                native.zero = count;
                continue;
            }
            let index = INDICES[magnitude * STEPS + step];
            match native.buckets.last_mut() {
                Some((last, sum)) if *last == index => *sum += count,
                _ => native.buckets.push((index, count)),
            }
        }
        native
    }

    /// Magnitude, step and count of each step that holds something, in rising order.
    fn filled(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        let steps =
            self.magnitudes.iter().enumerate().filter_map(|(magnitude, counts)| {
                counts.as_ref().map(|counts| (magnitude, counts))
            });
        steps.flat_map(|(magnitude, counts)| {
            let counts = counts.iter().enumerate().filter(|(_, count)| **count > 0);
            counts.map(move |(step, count)| (magnitude, step, *count))
        })
    }
}

/// The index of the exponential bucket that holds a step's upper end, for all steps.
static INDICES: LazyLock<Vec<i32>> = LazyLock::new(|| {
    let index = |place: usize| {
        let value = seconds(highest(place / STEPS, place % STEPS));
        #[expect(clippy::cast_possible_truncation, reason = "between -300 and 100")]
        let index = (value.log2() * f64::from(1 << SCHEMA)).ceil() as i32;
        index
    };
    (0..MAGNITUDES * STEPS).map(index).collect()
});

#[expect(clippy::cast_precision_loss, reason = "below 2^42")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Magnitude and step of a value.
fn place(value: u64) -> (usize, usize) {
    let magnitude = (u64::BITS - value.leading_zeros()).saturating_sub(STEP_BITS);
    let shift = magnitude.saturating_sub(1);
    // From magnitude 1 on the leading bit is set and says nothing.
    let step = (value >> shift) % STEPS as u64;
    (magnitude as usize, usize::try_from(step).expect("one of few steps"))
}

/// The largest value that a step stands for.
fn highest(magnitude: usize, step: usize) -> u64 {
    let leading = if magnitude > 0 { STEPS } else { 0 };
    let shift = magnitude.saturating_sub(1);
    (((leading + step) as u64 + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spread(values: &[u64]) -> Spread {
        let (latencies, mut spread) = (Latencies::default(), Spread::default());
        for value in values {
            latencies.record(*value);
        }
        latencies.add_to(&mut spread);
        spread
    }

    proptest! {
        #[test]
        fn a_step_holds_its_value_within_one_part_in_64(value in 0..=VALUE_MAX) {
            let (magnitude, step) = place(value);
            let top = highest(magnitude, step);
            prop_assert!(top >= value);
            prop_assert!(top - value <= value / 64);
        }

        #[test]
        fn quantiles_agree_with_sorted_values(
            mut values in prop::collection::vec(0..10_000_000_000u64, 1..200),
            q in 0.0..=1.0f64,
        ) {
            let found = spread(&values).quantile(q);
            values.sort_unstable();
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss,
                reason = "a small rank")]
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let exact = values[rank - 1];
            prop_assert!(found >= exact && found - exact <= exact / 64, "{found} for {exact}");
        }

        #[test]
        fn classic_and_native_buckets_hold_all_and_take_nothing_for_faster(
            values in prop::collection::vec(0..30_000_000_000u64, 0..200),
            edges in prop::collection::btree_set(1..30_000_000u64, 0..8),
        ) {
            let spread = spread(&values);
            let edges: Vec<f64> = edges.into_iter().map(|edge| seconds(edge * 1000)).collect();
            let buckets = spread.classic(&edges);
            prop_assert_eq!(buckets.len(), edges.len());
            prop_assert!(buckets.is_sorted_by_key(|bucket| bucket.below));
            for bucket in &buckets {
                let within = |slack: f64| {
                    values.iter().filter(|value| seconds(**value) * slack <= bucket.edge).count() as u64
                };
                prop_assert!(within(65.0 / 64.0) <= bucket.below && bucket.below <= within(1.0));
            }
            let native = spread.native();
            let sum: u64 = native.buckets.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(native.zero + sum, values.len() as u64);
            prop_assert_eq!(spread.count(), values.len() as u64);
            prop_assert!(native.buckets.is_sorted_by(|a, b| a.0 < b.0));
        }

        #[test]
        fn a_native_bucket_holds_the_quantile(value in 1..=VALUE_MAX) {
            let spread = spread(&[value]);
            let (index, _) = spread.native().buckets[0];
            let top = 2f64.powf(f64::from(index) / 8.0);
            let quantile = seconds(spread.quantile(0.5));
            prop_assert!(quantile <= top * (1.0 + 1e-12) && quantile > top / 1.0906, "{quantile} {top}");
        }
    }

    #[test]
    fn quantiles_of_merged_shards_are_exact_to_two_digits() {
        let (one, two) = (Latencies::default(), Latencies::default());
        for microseconds in 1..=1000 {
            let shard = if microseconds % 2 == 0 { &one } else { &two };
            shard.record(microseconds * 1000);
        }
        let mut merged = Spread::default();
        one.add_to(&mut merged);
        two.add_to(&mut merged);
        let mut twice = merged.clone();
        twice.add(&merged);
        assert_eq!((merged.count(), twice.count()), (1000, 2000));
        for spread in [merged, twice] {
            let median = spread.quantile(0.5);
            assert!((495_000..=510_000).contains(&median), "{median}");
        }
    }

    #[test]
    fn endless_latencies_count_as_the_largest() {
        assert_eq!(spread(&[u64::MAX]).quantile(1.0), VALUE_MAX);
        assert_eq!(Spread::default().quantile(0.5), 0);
    }
}
