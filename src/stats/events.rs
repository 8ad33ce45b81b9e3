//! Two arms compared by their events: an e-process for the verdict, limits of the ratio for the promotion.
//!
//! A request goes to the candidate with a known probability, its share, whatever happens later. So if both arms
//! have the same chance of an event, an event is the candidate's with exactly that probability, however the
//! common rate moves, and if the candidate's chance is `r` times the baseline's, with `q(r) = s r / (s r + 1 - s)`.
//! Only events are counted; the share may change at any time; incidents that hit both arms cancel. The idea is
//! that of Lindon, Sanden & Shirikian, "Rapid Regression Detection in Software Deployments through Sequential
//! Testing" (arXiv 2205.14762).
//!
//! The caller sees to two things: units are assigned at random and independently of their outcome, and events are
//! admitted in an order that does not depend on the arm (that of assignment, not of completion).

use libm::{exp, log, log1p};

use super::{
    likelihood::Likelihood,
    special::{log_sum_exp, mean_log_e, number},
};

/// Alternatives on one side of 1.
const ALTERNATIVES: usize = 16;

/// The ratios that are looked for: 1.1 to 20 in equal steps of their logarithm, and none that a rate cannot reach.
fn alternatives(ratio_max: f64) -> [f64; ALTERNATIVES] {
    let (first, last) = (log(1.1), log(20.0));
    let step = (last - first) / 15.0;
    std::array::from_fn(|index| exp(first + step * number(index as u64)).min(ratio_max))
}

/// The largest ratio worth looking for where the baseline's event has this probability.
fn ratio_max(base_probability: Option<f64>) -> f64 {
    base_probability.filter(|p| *p > 0.0).map_or(f64::INFINITY, |p| 0.95 / p)
}

/// The direction that is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// More events, such as errors.
    More,
    /// Fewer events, such as answers that lead to an outcome.
    Fewer,
}

/// Evidence that the candidate's rate of events is worse than the baseline's by more than a tolerance.
///
/// The null hypothesis is a ratio of at most `1 + delta` ([`Direction::More`]) or at least `1 / (1 + delta)`
/// ([`Direction::Fewer`]). The e-process is the mean, over 16 alternatives `r`, of the likelihood ratio
/// `product of q(r) / q(1 + delta)` for events of the candidate and `(1 - q(r)) / (1 - q(1 + delta))` for those of
/// the baseline. As each factor grows with the true ratio, it covers every ratio of the null hypothesis:
/// `P(it ever reaches 1/alpha) <= alpha`, looked at after every event and with any shares.
///
/// Events at one share may come in any order and in any batches: the result is the same, bit for bit.
#[derive(Debug, Clone, PartialEq)]
pub struct EventProcess {
    /// Ratios of the alternatives, and of the null hypothesis.
    ratios: [f64; ALTERNATIVES],
    null: f64,
    /// `ln(r / null)` of each alternative: what an event of the candidate adds at any share.
    gains: [f64; ALTERNATIVES],
    /// Events of the candidate, at all shares.
    candidate: u64,
    /// The share of the last event, 0 before any, and the events of both arms at it.
    share: f64,
    events: u64,
    /// Amount that each event of either arm adds at this share.
    costs: [f64; ALTERNATIVES],
    /// The sum of these at the shares before.
    settled: [f64; ALTERNATIVES],
}

impl EventProcess {
    /// A process without events. `delta` is the tolerated excess of the ratio, at least 0. `base_probability` is
    /// the probability of an event on the baseline, where it is known: a ratio beyond `0.95 / base_probability` is
    /// not looked for. It only shifts power, and is not used for [`Direction::Fewer`].
    ///
    /// # Panics
    ///
    /// If `delta` is negative or not finite.
    pub fn new(direction: Direction, delta: f64, base_probability: Option<f64>) -> Self {
        assert!(delta >= 0.0 && delta.is_finite(), "a tolerance of {delta}");
        // An alternative inside the null hypothesis would gain while it holds: none may come below.
        let least = 1.0 + delta + 0.05;
        let (null, ratios) = match direction {
            Direction::More => {
                let alternatives = alternatives(ratio_max(base_probability));
                (1.0 + delta, alternatives.map(|ratio| ratio.max(least)))
            }
            Direction::Fewer => {
                let least = least.max(1.15);
                let alternatives = alternatives(f64::INFINITY);
                (1.0 / (1.0 + delta), alternatives.map(|ratio| 1.0 / ratio.max(least)))
            }
        };
        Self {
            ratios,
            null,
            gains: ratios.map(|ratio| log(ratio / null)),
            candidate: 0,
            share: 0.0,
            events: 0,
            costs: [0.0; ALTERNATIVES],
            settled: [0.0; ALTERNATIVES],
        }
    }

    /// Adds events of units that went to the candidate with probability `share`, strictly between 0 and 1; at any
    /// other share every event's arm was certain, and nothing is added.
    pub fn add(&mut self, share: f64, candidate: u64, baseline: u64) {
        if !(share > 0.0 && share < 1.0) || candidate | baseline == 0 {
            return;
        }
        if share.to_bits() != self.share.to_bits() {
            self.move_to(share);
        }
        self.candidate = self.candidate.saturating_add(candidate);
        self.events = self.events.saturating_add(candidate).saturating_add(baseline);
    }

    /// The natural logarithm of the e-value: 0 before any event, and finite. Rises only with an event of the candidate,
    /// or of the baseline for [`Direction::Fewer`]: after another one there is no need to look.
    pub fn log_e(&self) -> f64 {
        let (candidate, events) = (number(self.candidate), number(self.events));
        let logs: [f64; ALTERNATIVES] = std::array::from_fn(|index| {
            candidate * self.gains[index] + self.settled[index] + events * self.costs[index]
        });
        mean_log_e(&logs)
    }

    /// Closes the account of the last share. With `q(r) = s r / (1 + s (r - 1))` an event of the baseline adds
    /// `ln((1 + s (null - 1)) / (1 + s (r - 1)))`, one of the candidate `ln(r / null)` more.
    fn move_to(&mut self, share: f64) {
        let events = number(self.events);
        let null = log1p(share * (self.null - 1.0));
        for index in 0..ALTERNATIVES {
            self.settled[index] += events * self.costs[index];
            self.costs[index] = null - log1p(share * (self.ratios[index] - 1.0));
        }
        (self.share, self.events) = (share, 0);
    }
}

/// Events at one share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stratum {
    /// The probability of the candidate, strictly between 0 and 1; other strata are left out.
    pub share: f64,
    /// Events of the candidate.
    pub candidate: u64,
    /// Events of the baseline.
    pub baseline: u64,
}

/// The ratio of the candidate's rate of events to the baseline's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RatioLimits {
    /// The likeliest ratio; 0 if only the baseline had events, `None` if it had none.
    pub ratio: Option<f64>,
    /// The lower limit; 0 where no small ratio is excluded.
    pub lower: f64,
    /// The upper limit; infinite where no large ratio is excluded.
    pub upper: f64,
}

/// Limits that hold at all times at once with probability `1 - alpha`, whatever the shares were.
///
/// A ratio is excluded when its likelihood is at most `alpha` times a mixture of fixed alternatives: half of the
/// prior on ratio 1, the other half spread evenly over 16 ratios from 1.1 to 20, in equal steps of their logarithm,
/// and their inverses (the method of mixtures: Robbins, "Statistical Methods Related to the Law of the Iterated
/// Logarithm", 1970). What is left is an interval, as the likelihood is log-concave in the logarithm of the ratio.
/// `base_probability` is that of [`EventProcess::new`]; `None` for events of which fewer are bad.
///
/// Takes some 2 us per stratum.
///
/// # Panics
///
/// If `alpha` does not lie strictly between 0 and 1.
pub fn ratio_limits(strata: &[Stratum], alpha: f64, base_probability: Option<f64>) -> RatioLimits {
    assert!(alpha > 0.0 && alpha < 1.0, "an error probability of {alpha}");
    let strata = strata.iter().filter(|stratum| stratum.share > 0.0 && stratum.share < 1.0);
    let likelihood = Likelihood::new(strata.map(|stratum| {
        let odds = log(stratum.share) - log1p(-stratum.share);
        (odds, stratum.candidate, stratum.baseline)
    }));
    if likelihood.is_empty() {
        return RatioLimits { ratio: None, lower: 0.0, upper: f64::INFINITY };
    }
    let level = log(alpha) + log_mixture(&likelihood, ratio_max(base_probability));
    let mode = likelihood.mode();
    let (lower, upper) = likelihood.interval(mode, level);
    let ratio = (mode < f64::INFINITY).then(|| exp(mode));
    RatioLimits { ratio, lower: exp(lower), upper: exp(upper) }
}

/// The logarithm of the likelihood's mean over the prior of [`ratio_limits`].
fn log_mixture(likelihood: &Likelihood, ratio_max: f64) -> f64 {
    let mut logs = [0.0; 2 * ALTERNATIVES + 1];
    let each = -log(4.0 * number(ALTERNATIVES as u64));
    let (inverse, ratios) = (alternatives(f64::INFINITY), alternatives(ratio_max));
    for index in 0..ALTERNATIVES {
        logs[index] = each + likelihood.log(-log(inverse[index]));
        logs[ALTERNATIVES + index] = each + likelihood.log(log(ratios[index]));
    }
    logs[2 * ALTERNATIVES] = log(0.5) + likelihood.log(0.0);
    log_sum_exp(&logs)
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, super::special::tests::assert_close, *};

    /// Share, events of the candidate, events of the baseline.
    type Counts = (f64, u64, u64);

    const STEPS: [Counts; 3] = [(0.01, 2, 150), (0.1, 30, 180), (0.25, 80, 170)];
    const COMMON: [Counts; 3] = [(0.01, 60, 5000), (0.1, 700, 5100), (0.25, 900, 2300)];
    const OUTCOMES: [Counts; 3] = [(0.01, 20, 5000), (0.1, 300, 5100), (0.25, 1000, 4300)];

    fn log_e(direction: Direction, delta: f64, base: Option<f64>, counts: &[Counts]) -> f64 {
        let mut process = EventProcess::new(direction, delta, base);
        for (share, candidate, baseline) in counts {
            process.add(*share, *candidate, *baseline);
        }
        process.log_e()
    }

    fn limits(base: Option<f64>, counts: &[Counts]) -> RatioLimits {
        let strata = counts.iter().map(|(share, candidate, baseline)| Stratum {
            share: *share,
            candidate: *candidate,
            baseline: *baseline,
        });
        ratio_limits(&strata.collect::<Vec<_>>(), 0.05, base)
    }

    /// Reference values: the definition evaluated with numpy.
    #[test]
    fn log_e_agrees_with_the_definition() {
        let check = |delta, base, counts: &[Counts], expected| {
            assert_close(log_e(Direction::More, delta, base, counts), expected);
        };
        check(0.0, None, &[(0.05, 12, 100)], 1.543_913_312_746_67);
        check(0.0, None, &[(0.05, 12, 100), (0.25, 40, 100)], -0.104_120_022_977_997_5);
        check(0.0, None, &[(0.05, 5, 100)], -1.879_568_607_515_567_8);
        check(0.2, None, &[(0.05, 12, 100)], 0.494_551_012_588_147_8);
        check(0.0, None, &[(0.01, 9, 100)], 10.129_057_264_941_089);
        check(0.2, Some(0.01), &STEPS, -0.887_404_858_675_254_3);
        check(0.0, Some(0.0), &STEPS, 2.625_500_730_600_712);
        check(0.2, Some(0.5), &COMMON, -3.762_763_886_093_449);
        check(0.2, Some(0.01), &[(0.1, 0, 40)], -2.251_424_946_943_841_7);
        check(0.2, Some(0.01), &[(0.1, 5, 0)], 7.190_914_069_775_154);
        let fewer = log_e(Direction::Fewer, 0.2, Some(0.3), &OUTCOMES);
        assert_close(fewer, 39.406_401_334_451_104);
    }

    /// Reference values: roots found by Brent's method on the definition, with scipy.
    #[test]
    fn limits_agree_with_the_definition() {
        let check = |base, counts: &[Counts], [ratio, lower, upper]: [f64; 3]| {
            let limits = limits(base, counts);
            assert_close(limits.ratio.unwrap_or(f64::INFINITY), ratio);
            assert_close(limits.lower, lower);
            assert_close(limits.upper, upper);
        };
        let steps = [1.436_032_688_790_651_8, 0.945_358_585_433_826_2, 2.124_755_031_442_327];
        check(Some(0.01), &STEPS, steps);
        let common = [1.202_521_970_965_034_5, 1.047_570_097_193_143_2, 1.375_234_512_640_338_8];
        check(Some(0.5), &COMMON, common);
        let outcomes = [0.638_523_692_993_664_2, 0.566_936_229_130_778_3, 0.716_772_403_168_122_9];
        check(None, &OUTCOMES, outcomes);
        check(Some(0.01), &[(0.1, 0, 40)], [0.0, 0.0, 1.258_287_877_157_895]);
        check(Some(0.01), &[(0.1, 5, 0)], [f64::INFINITY, 2.340_088_723_919_486_3, f64::INFINITY]);
        check(None, &[], [f64::INFINITY, 0.0, f64::INFINITY]);
        // Several shares, and no event of the candidate.
        let none = limits(None, &[(0.01, 0, 500), (0.25, 0, 20), (0.5, 0, 1)]);
        assert!(none.lower <= 0.0 && none.upper > 0.0 && none.upper < 2.0, "{none:?}");
    }

    #[test]
    fn batches_and_their_order_at_a_share_do_not_matter() {
        let mut one_by_one = EventProcess::new(Direction::More, 0.2, Some(0.01));
        let mut at_once = one_by_one.clone();
        assert_eq!(one_by_one.log_e().to_bits(), 0);
        for (share, candidate, baseline) in STEPS {
            at_once.add(share, candidate, baseline);
            for _ in 0..baseline {
                one_by_one.add(share, 0, 1);
            }
            for _ in 0..candidate {
                one_by_one.add(share, 1, 0);
            }
        }
        assert_eq!(one_by_one, at_once);
    }

    #[test]
    fn fewer_events_of_one_arm_are_more_of_the_other() {
        for (share, candidate, baseline) in STEPS {
            let fewer = log_e(Direction::Fewer, 0.2, None, &[(share, candidate, baseline)]);
            let more = log_e(Direction::More, 0.2, None, &[(1.0 - share, baseline, candidate)]);
            assert_close(fewer, more);
        }
    }

    #[test]
    fn certain_arms_and_huge_counts_stay_finite() {
        let mut process = EventProcess::new(Direction::More, 0.2, Some(0.01));
        for share in [0.0, 1.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            process.add(share, 1000, 1000);
        }
        assert_eq!(process.log_e().to_bits(), 0);
        process.add(1.0 / 65536.0, 0, u64::MAX);
        assert!(process.log_e().is_finite());
        process.add(0.5, u64::MAX, u64::MAX);
        assert!(process.log_e().is_finite());
        let limits =
            limits(None, &[(1.0 / 65536.0, u64::MAX, 1), (65535.0 / 65536.0, 1, u64::MAX)]);
        assert!(limits.lower <= limits.upper && limits.upper.is_finite(), "{limits:?}");
    }

    /// Checks a common event, for which the clamp could push alternatives into the null hypothesis.
    #[test]
    fn no_alternative_lies_in_the_null_hypothesis() {
        for base in [0.01, 0.5, 0.8, 0.95, 1.0] {
            let process = EventProcess::new(Direction::More, 0.2, Some(base));
            assert!(process.ratios.iter().all(|ratio| *ratio > 1.2), "{:?}", process.ratios);
        }
    }

    /// Runs with a look after every event, each at a share of its own; returns how many reach `1/alpha`, and how many
    /// times the limits ever exclude the true ratio.
    fn alarms(direction: Direction, delta: f64, ratio: f64, alpha: f64) -> (usize, usize) {
        let shares = [0.01, 0.1, 0.25, 0.5];
        let (mut fired, mut missed) = (0, 0);
        for seed in 0..400 {
            let mut random = Random::new(seed);
            let mut process = EventProcess::new(direction, delta, None);
            let mut strata = shares.map(|share| Stratum { share, candidate: 0, baseline: 0 });
            let (mut alarm, mut outside) = (false, false);
            for event in 0..400 {
                let stratum = &mut strata[random.below(4)];
                let odds = stratum.share * ratio;
                let is_candidate = random.unit() < odds / (odds + 1.0 - stratum.share);
                stratum.candidate += u64::from(is_candidate);
                stratum.baseline += u64::from(!is_candidate);
                process.add(stratum.share, u64::from(is_candidate), u64::from(!is_candidate));
                alarm |= process.log_e() >= -log(alpha);
                if event % 20 == 0 && !outside {
                    let limits = ratio_limits(&strata, alpha, None);
                    outside = !(limits.lower..=limits.upper).contains(&ratio);
                }
            }
            fired += usize::from(alarm);
            missed += usize::from(outside);
        }
        (fired, missed)
    }

    #[test]
    fn false_alarms_keep_to_alpha_with_a_look_at_every_event() {
        for (direction, delta, ratio) in [
            (Direction::More, 0.0, 1.0),
            (Direction::More, 0.2, 1.2),
            (Direction::More, 0.2, 0.8),
            (Direction::Fewer, 0.2, 1.0 / 1.2),
        ] {
            let (fired, missed) = alarms(direction, delta, ratio, 0.05);
            assert!(fired <= 20, "{fired} of 400 at ratio {ratio}, tolerance {delta}");
            assert!(missed <= 20, "{missed} of 400 intervals without the ratio {ratio}");
        }
    }

    #[test]
    fn a_bad_candidate_is_found_in_every_run() {
        assert_eq!(alarms(Direction::More, 0.2, 5.0, 0.002).0, 400);
        assert_eq!(alarms(Direction::Fewer, 0.2, 0.2, 0.002).0, 400);
    }
}
