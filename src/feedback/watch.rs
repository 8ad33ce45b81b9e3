//! Watches for predictions that become worse: each version's stream of errors.
//!
//! Not here: statistics (`stats`), who hears of it (`joiner`).

use std::time::Duration;

use crate::stats::Adwin;

/// The chance of a false change at each look.
const DELTA: f64 = 0.002;
/// Errors between two looks.
const CLOCK: u64 = 32;
/// Errors of a regression by whose mean its errors are measured.
const SCALED_BY: u64 = 100;
/// Errors of which a mean is believed.
const MEAN_OF: u64 = 100;

/// The errors of a version.
#[derive(Debug)]
pub(super) struct Watch {
    window: Adwin,
    /// Errors of a regression so far, until there are [`SCALED_BY`]: their number and sum.
    scale: (u64, f64),
    told_at: Option<Duration>,
}

/// An outcome as an error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Miss {
    /// True if another class was predicted.
    Class(bool),
    /// The distance of the number that was predicted.
    Value(f64),
}

/// The mean error rose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rise {
    /// Before, from 0 to 1.
    pub(super) before: f64,
    /// Since.
    pub(super) after: f64,
}

impl Default for Watch {
    fn default() -> Self {
        Self { window: Adwin::new(DELTA, CLOCK), scale: (0, 0.0), told_at: None }
    }
}

impl Watch {
    /// The errors of a version of which a drop was told by an earlier process; their mean is found anew.
    pub(super) fn resumed(told_at: Duration, scale: (u64, f64)) -> Self {
        Self { scale, told_at: Some(told_at), ..Self::default() }
    }

    /// By which errors of a regression are measured.
    pub(super) fn scale(&self) -> (u64, f64) {
        self.scale
    }

    /// The mean error since it last changed, from 0 to 1; `None` while it is of few.
    pub(super) fn mean(&self) -> Option<f64> {
        self.window.mean().filter(|_| self.window.width() >= MEAN_OF)
    }

    /// Adds an outcome; tells if errors rose.
    pub(super) fn add(&mut self, miss: Miss) -> Option<Rise> {
        let error = match miss {
            Miss::Class(is_wrong) => f64::from(u8::from(is_wrong)),
            Miss::Value(distance) => self.scaled(distance)?,
        };
        let before = self.window.mean();
        let has_changed = self.window.update(error);
        let (before, after) = before.zip(self.window.mean())?;
        (has_changed && after > before).then_some(Rise { before, after })
    }

    /// The distance between 0 and 1: 1/2 is the mean of the first ones.
    fn scaled(&mut self, distance: f64) -> Option<f64> {
        if !distance.is_finite() {
            return None;
        }
        let (count, sum) = &mut self.scale;
        if *count < SCALED_BY {
            (*count, *sum) = (*count + 1, *sum + distance.abs());
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a hundred")]
        let scale = (*sum / *count as f64).max(f64::MIN_POSITIVE);
        Some(distance.abs() / (distance.abs() + scale))
    }

    /// True if it may be told now; then not again before so much time has passed.
    pub(super) fn may_tell(&mut self, now: Duration, cooldown: Duration) -> bool {
        let is_due = self.told_at.is_none_or(|told| told + cooldown <= now);
        if is_due {
            self.told_at = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Random;

    fn unit(random: &mut Random) -> f64 {
        f64::from(u32::try_from(random.below(1 << 30)).unwrap()) / f64::from(1 << 30)
    }

    #[test]
    fn a_rise_of_errors_is_told_and_a_fall_is_not() {
        let mut random = Random::new(3);
        let mut rises = |watch: &mut Watch, rate: f64| {
            (0..2000).filter(|_| watch.add(Miss::Class(unit(&mut random) < rate)).is_some()).count()
        };
        let mut watch = Watch::default();
        assert_eq!([rises(&mut watch, 0.1), rises(&mut watch, 0.1)], [0, 0]);
        assert!(rises(&mut watch, 0.3) > 0);
        assert_eq!(rises(&mut watch, 0.1), 0);
        let hour = Duration::from_hours(1);
        let told = [0, 1800, 3600].map(|at| watch.may_tell(Duration::from_secs(at), hour));
        assert_eq!(told, [true, false, true]);
    }

    #[test]
    fn errors_of_numbers_are_measured_by_the_first_ones() {
        let (mut random, mut watch) = (Random::new(4), Watch::default());
        let mut rises = |watch: &mut Watch, size: f64| {
            let misses = (0..1000).map(|_| Miss::Value(size * (unit(&mut random) - 0.5)));
            misses.filter(|miss| watch.add(*miss).is_some()).count()
        };
        assert_eq!(rises(&mut watch, 1e6), 0);
        assert!(rises(&mut watch, 3e6) > 0);
        assert_eq!(watch.add(Miss::Value(f64::INFINITY)), None);
    }
}
