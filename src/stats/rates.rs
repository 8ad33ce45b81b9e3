//! The rate of one arm: limits and evidence that hold whenever somebody looks.
//!
//! All come from Beta mixtures of the binomial likelihood (the method of mixtures: Robbins, "Statistical Methods
//! Related to the Law of the Iterated Logarithm", 1970). With `k` events in `n` trials and a prior Beta(a, b),
//! `B(a + k, b + n - k) / (B(a, b) p^k (1-p)^(n-k))` is an e-process against the rate `p`; rates against which it
//! has not reached 1/alpha form an interval. The caller sees to it that each trial, given the past, has the same
//! probability of an event.

use libm::{acos, exp, log, log1p};

use super::{
    likelihood::Likelihood,
    special::{beta_fraction, ln_beta, logistic, number},
};

/// The upper limit of a rate that holds at all times at once with probability `1 - alpha`; 1 where nothing is
/// excluded.
///
/// The prior is Beta(1, 4/`scale`): tightest where the rate is a fraction of `scale`, the rate that the limit
/// is to be compared with.
///
/// # Panics
///
/// If there are more events than trials, `alpha` does not lie strictly between 0 and 1, or `scale` is not positive.
pub fn rate_upper_limit(trials: u64, events: u64, alpha: f64, scale: f64) -> f64 {
    assert!(scale > 0.0, "a rate of {scale} to compare with");
    limits(trials, events, alpha, [1.0, 4.0 / scale]).1
}

/// The limits of a rate, lower and upper, that hold at all times at once with probability `1 - alpha`; 0 and 1
/// where nothing is excluded. The prior is Beta(1/2, 1/2).
///
/// # Panics
///
/// If there are more events than trials, or `alpha` does not lie strictly between 0 and 1.
pub fn rate_limits(trials: u64, events: u64, alpha: f64) -> (f64, f64) {
    limits(trials, events, alpha, [0.5, 0.5])
}

fn limits(trials: u64, events: u64, alpha: f64, [a, b]: [f64; 2]) -> (f64, f64) {
    assert!(alpha > 0.0 && alpha < 1.0, "an error probability of {alpha}");
    let rest = trials.checked_sub(events).expect("an event is one of the trials");
    if trials == 0 {
        return (0.0, 1.0);
    }
    // A rate's odds are a ratio at share 1/2.
    let likelihood = Likelihood::new(std::iter::once((0.0, events, rest)));
    let mixture = ln_beta(a + number(events), b + number(rest)) - ln_beta(a, b);
    let (lower, upper) = likelihood.interval(likelihood.mode(), log(alpha) + mixture);
    (logistic(lower), logistic(upper))
}

/// Evidence that a rate lies above `rate_max`: the natural logarithm of an e-value, 0 before any trial, and finite.
///
/// The mixture is Beta(1/2, 1/2) cut to rates above `rate_max`, against `rate_max` itself; as each of its
/// likelihood ratios grows with the true rate, it covers every rate up to `rate_max`:
/// `P(it ever reaches 1/alpha) <= alpha`. Always 0 for a `rate_max` of 1, as nothing lies above it; a `rate_max`
/// below 1e-9 counts as 1e-9.
///
/// # Panics
///
/// If there are more events than trials, or `rate_max` is not a number.
pub fn rate_above_log_e(trials: u64, events: u64, rate_max: f64) -> f64 {
    assert!(!rate_max.is_nan(), "no rate to compare with");
    let rest = trials.checked_sub(events).expect("an event is one of the trials");
    if trials == 0 || rate_max >= 1.0 {
        return 0.0;
    }
    let p = rate_max.max(1e-9);
    let (k, rest) = (number(events), number(rest));
    let (a, b) = (k + 0.5, rest + 0.5);
    // The integral of the likelihood over the prior above p, divided by the likelihood at p.
    let above = if p > (a + 1.0) / (a + b + 2.0) {
        0.5 * (log(p) + log1p(-p)) + log(beta_fraction(1.0 - p, b, a) / b)
    } else {
        let whole = ln_beta(a, b);
        let below = exp(a * log(p) + b * log1p(-p) - whole) * beta_fraction(p, a, b) / a;
        whole + log1p(-below) - k * log(p) - rest * log1p(-p)
    };
    // The prior's own integral above p.
    above - log(2.0 * acos(p.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, super::special::tests::assert_close, *};

    /// Reference values: roots found by Brent's method on the definition, with scipy.
    #[test]
    fn limits_agree_with_the_definition() {
        let check = |(events, trials), expected| {
            assert_close(rate_upper_limit(trials, events, 0.05, 0.005), expected);
        };
        check((0, 0), 1.0);
        check((0, 1000), 0.003_799_426_334_891_609_5);
        check((0, 1464), 0.002_753_040_153_785_256_2);
        check((3, 2000), 0.005_254_362_885_506_184);
        check((20, 4000), 0.009_916_359_196_402_451);
        check((7, 7), 1.0);

        let check = |(events, trials), (lower, upper)| {
            let limits = rate_limits(trials, events, 0.05);
            assert_close(limits.0, lower);
            assert_close(limits.1, upper);
        };
        check((0, 0), (0.0, 1.0));
        check((0, 50), (0.0, 0.104_642_477_104_505_56));
        check((3, 100), (0.001_879_060_632_407_685_4, 0.122_948_885_608_933_43));
        check((40, 1000), (0.021_311_293_102_017_397, 0.066_819_348_574_589_18));
        check((100, 100), (0.942_971_402_361_228_1, 1.0));
        check((5000, 100_000), (0.047_133_284_301_840_044, 0.052_974_442_181_376_244));
    }

    /// Reference values: the definition with 900 digits, by mpmath.
    #[test]
    fn evidence_of_a_high_rate_agrees_with_the_definition() {
        let check = |(events, trials), rate_max, expected| {
            assert_close(rate_above_log_e(trials, events, rate_max), expected);
        };
        check((0, 0), 0.05, 0.0);
        check((1, 1), 0.05, 2.452_733_581_679_553_4);
        check((0, 100), 0.05, -4.205_812_808_996_959);
        check((5, 100), 0.05, -3.021_475_912_308_832);
        check((12, 100), 0.05, 1.389_391_700_658_944_7);
        check((60, 500), 0.1, -2.127_148_801_209_693_1);
        check((30, 10_000), 0.001, 8.166_379_578_585_38);
        check((10, 10_000), 0.001, -5.466_362_480_102_588);
        check((2, 10_000), 0.05, -8.724_873_606_947_797);
        check((1000, 1000), 0.05, 2_991.860_884_335_827_4);
        check((600, 10_000), 0.05, 5.245_036_907_687_883);
        for rate_max in [-1.0, 0.0, 1e-300, 0.5, 1.0 - 1e-16, 1.0, 2.0] {
            for (trials, events) in [(1, 0), (1, 1), (1_000_000, 0), (1_000_000, 1_000_000)] {
                let log_e = rate_above_log_e(trials, events, rate_max);
                assert!(log_e.is_finite(), "{events} of {trials} against {rate_max}: {log_e}");
            }
        }
    }

    /// Published with the e-value 3449.688456 for 30 events in 10,000 trials against .001: the whole mixture.
    #[test]
    fn whole_mixture_excludes_a_rate_where_its_e_value_reaches_one_over_alpha() {
        for (k, n, p, e) in [
            (5_u64, 1000_u64, 0.001, 1.443_542_194_513_657_7_f64),
            (30, 10_000, 0.001, 3_449.688_456_270_043_4),
            (10, 10_000, 0.001, 0.007_945_589_480_805_457),
            (60, 500, 0.1, 0.101_996_746_231_004_95),
        ] {
            let rest = number(n - k);
            let whole = ln_beta(0.5 + number(k), 0.5 + rest) - ln_beta(0.5, 0.5);
            assert_close(exp(whole - number(k) * log(p) - rest * log1p(-p)), e);
            if e > 1.0 {
                // The rate is the lower limit exactly at this error probability.
                assert_close(rate_limits(n, k, 1.0 / e).0, p);
            }
        }
    }

    #[test]
    fn false_alarms_keep_to_alpha_with_a_look_at_every_trial() {
        let (alpha, rate) = (0.05, 0.05);
        let (mut fired, mut above, mut outside) = (0, 0, 0);
        for seed in 0..300 {
            let (mut random, mut events) = (Random::new(seed), 0);
            let (mut alarm, mut exceeds, mut leaves) = (false, false, false);
            for trials in 1..=600 {
                events += u64::from(random.unit() < rate);
                alarm |= rate_above_log_e(trials, events, rate) >= -log(alpha);
                exceeds |= rate_upper_limit(trials, events, alpha, rate) < rate;
                let (lower, upper) = rate_limits(trials, events, alpha);
                leaves |= !(lower..=upper).contains(&rate);
            }
            fired += u32::from(alarm);
            above += u32::from(exceeds);
            outside += u32::from(leaves);
        }
        assert!(fired <= 15 && above <= 15 && outside <= 15, "{fired} {above} {outside} of 300");
    }
}
