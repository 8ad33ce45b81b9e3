//! The test of Page and Hinkley: a cumulative sum that rises when a mean does.

use super::special::number;

/// Share of the sum that is kept from one value to the next.
const FORGETTING: f64 = 0.9999;

/// Values before the first alarm.
const VALUES_MIN: u64 = 30;

/// The test of Page ("Continuous inspection schemes", 1954) and Hinkley (1971) for a change of the mean, in both
/// directions: with `m_t` the sum of `x - mean so far - delta`, an alarm once `m_t - min m` exceeds the threshold,
/// and the mirror image. Earlier parts of the sum count less, by a factor of .9999 per value, and the first 30
/// values raise no alarm, as in river.
///
/// Without a promise: how often it is wrong depends on the stream. For parity with other tools; sees changes of the
/// mean only.
#[derive(Debug, Clone, PartialEq)]
pub struct PageHinkley {
    delta: f64,
    threshold: f64,
    values: u64,
    mean: f64,
    rise: f64,
    rise_min: f64,
    fall: f64,
    fall_max: f64,
}

impl PageHinkley {
    /// A test without values. `delta` is the tolerated change of the mean, half the change worth finding; `threshold`
    /// trades delay for false alarms (river: .005 and 50). Both in the unit of the values.
    ///
    /// # Panics
    ///
    /// If one of both is negative or not finite.
    pub fn new(delta: f64, threshold: f64) -> Self {
        for value in [delta, threshold] {
            assert!(value >= 0.0 && value.is_finite(), "a tolerance or threshold of {value}");
        }
        Self {
            delta,
            threshold,
            values: 0,
            mean: 0.0,
            rise: 0.0,
            rise_min: f64::INFINITY,
            fall: 0.0,
            fall_max: f64::NEG_INFINITY,
        }
    }

    /// Adds a value; true if the mean has changed: then all values before are forgotten. A value that is not finite
    /// is passed over.
    pub fn update(&mut self, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        self.values += 1;
        self.mean += (value - self.mean) / number(self.values);
        let deviation = value - self.mean;
        self.rise = FORGETTING * self.rise + deviation - self.delta;
        self.fall = FORGETTING * self.fall + deviation + self.delta;
        self.rise_min = self.rise_min.min(self.rise);
        self.fall_max = self.fall_max.max(self.fall);
        let apart = (self.rise - self.rise_min).max(self.fall_max - self.fall);
        let has_changed = self.values >= VALUES_MIN && apart > self.threshold;
        if has_changed {
            *self = Self::new(self.delta, self.threshold);
        }
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_raise_an_alarm_in_both_directions() {
        for direction in [1.0, -1.0] {
            let mut test = PageHinkley::new(0.005, 10.0);
            assert!((0..1000).all(|_| !test.update(0.0) && !test.update(f64::NAN)));
            let found = (1..100).find(|_| test.update(direction)).unwrap();
            assert_eq!(found, 11);
            assert_eq!(test, PageHinkley::new(0.005, 10.0));
        }
    }
}
