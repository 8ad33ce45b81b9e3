//! Sums by the time of the prediction: minutes while they are young, then hours, then days.
//!
//! Always true: a prediction is counted in one span; a minute that grows old becomes part of its hour, an hour of its
//! day, and the oldest days are dropped.
//!
//! Not here: the sums (`tally`).

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::tally::Tally;

/// Spans of one length, by number since 1970.
type Spans = BTreeMap<u64, Tally>;

/// Sums of spans.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Windows {
    minutes: Spans,
    hours: Spans,
    days: Spans,
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Age up to which minutes are told apart, in seconds.
const MINUTES_KEPT: u64 = 2 * HOUR;
/// Age up to which hours are told apart, in seconds.
const HOURS_KEPT: u64 = 2 * DAY;
/// Age up to which days are kept, in seconds.
const DAYS_KEPT: u64 = 32 * DAY;

/// The age at which the last span is dropped.
pub(super) const AGE_MAX: Duration = Duration::from_secs(DAYS_KEPT + DAY);

impl Windows {
    /// The sums that a prediction of this time belongs to; `None` if it is too old.
    pub(super) fn of(&mut self, at: Duration, now: Duration) -> Option<&mut Tally> {
        let (at, now) = (at.as_secs(), now.as_secs());
        // A span goes as a whole, once its end is old.
        let is_young = |length: u64, kept: u64| (at / length + 1) * length + kept > now;
        if is_young(MINUTE, MINUTES_KEPT) {
            Some(self.minutes.entry(at / MINUTE).or_default())
        } else if is_young(HOUR, HOURS_KEPT) {
            Some(self.hours.entry(at / HOUR).or_default())
        } else if is_young(DAY, DAYS_KEPT) {
            Some(self.days.entry(at / DAY).or_default())
        } else {
            None
        }
    }

    /// Lets what has grown old become part of longer spans, and drops the oldest.
    pub(super) fn age(&mut self, now: Duration) {
        let now = now.as_secs();
        let is_old = |length: u64, kept: u64| move |span: u64| (span + 1) * length + kept <= now;
        hand_up(&mut self.minutes, is_old(MINUTE, MINUTES_KEPT), &mut self.hours, HOUR / MINUTE);
        hand_up(&mut self.hours, is_old(HOUR, HOURS_KEPT), &mut self.days, DAY / HOUR);
        let is_old = is_old(DAY, DAYS_KEPT);
        self.days.retain(|day, _| !is_old(*day));
    }

    /// Sums of the predictions since a time; spans that began before it are left out.
    pub(super) fn since(&self, begin: Duration) -> Tally {
        let mut sums = Tally::default();
        let begin = begin.as_secs();
        for (spans, length) in [(&self.minutes, MINUTE), (&self.hours, HOUR), (&self.days, DAY)] {
            let first = begin.div_ceil(length);
            spans.range(first..).for_each(|(_, tally)| sums.merge(tally));
        }
        sums
    }

    pub(super) fn is_empty(&self) -> bool {
        self.minutes.is_empty() && self.hours.is_empty() && self.days.is_empty()
    }
}

/// Moves old spans into the longer ones that they are part of.
fn hand_up(spans: &mut Spans, is_old: impl Fn(u64) -> bool, longer: &mut Spans, parts: u64) {
    while let Some(first) = spans.first_entry()
        && is_old(*first.key())
    {
        let (span, tally) = first.remove_entry();
        longer.entry(span / parts).or_default().merge(&tally);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_grow_longer_with_age_and_nothing_is_counted_twice() {
        let mut windows = Windows::default();
        let start = Duration::from_secs(100 * DAY);
        for minute in 0..3 * 24 * 60 {
            let now = start + Duration::from_mins(minute);
            windows.of(now, now).unwrap().served += 1;
            windows.age(now);
        }
        let now = start + Duration::from_hours(72);
        let spans = (windows.minutes.len(), windows.hours.len(), windows.days.len());
        assert!(spans.0 <= 122 && spans.1 <= 50 && spans.2 <= 2, "{spans:?}");
        assert_eq!(windows.since(Duration::ZERO).served, 3 * 24 * 60);
        assert_eq!(windows.since(now.saturating_sub(Duration::from_hours(1))).served, 60);
        assert_eq!(windows.since(now.saturating_sub(Duration::from_hours(24))).served, 24 * 60);
        // An outcome to a prediction of two hours ago counts where that was.
        windows.of(now.saturating_sub(Duration::from_hours(30)), now).unwrap().labelled += 1;
        assert_eq!(windows.since(now.saturating_sub(Duration::from_hours(29))).labelled, 0);
        assert_eq!(windows.since(now.saturating_sub(Duration::from_hours(31))).labelled, 1);
        windows.age(now + Duration::from_hours(24 * 40));
        assert!(windows.is_empty());
        assert_eq!(windows.of(Duration::ZERO, now), None);
    }
}
