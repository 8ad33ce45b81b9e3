//! The detector by hand-made values, and by simulations of its promise and of its delays.

use std::cell::Cell;

use super::{
    super::{
        alternatives::{BinRole, Correction, ShiftKind, masses},
        random::Random,
        special::{normal_quantile, normal_sf, tests::assert_close},
    },
    plug_in::DECAYS,
    *,
};

/// Sixteen bins that a normal variable falls into equally often.
const BINS: usize = 16;

/// The shares of those bins under another mean and standard deviation.
fn normal_shares(mean: f64, deviation: f64) -> Vec<f64> {
    let above = |edge: usize| match edge {
        0 => 1.0,
        BINS => 0.0,
        _ => {
            let quantile = normal_quantile(number(edge as u64) / number(BINS as u64));
            normal_sf((quantile - mean) / deviation)
        }
    };
    (0..BINS).map(|bin| above(bin) - above(bin + 1)).collect()
}

/// A bin drawn by the shares.
fn draw(random: &mut Random, shares: &[f64]) -> usize {
    let mut rest = random.unit();
    for (bin, share) in shares.iter().enumerate() {
        rest -= share;
        if rest < 0.0 {
            return bin;
        }
    }
    shares.len() - 1
}

fn sample(random: &mut Random, shares: &[f64], rows: u64) -> Vec<u64> {
    let mut counts = vec![0; shares.len()];
    for _ in 0..rows {
        counts[draw(random, shares)] += 1;
    }
    counts
}

fn one(bin: usize, bins: usize) -> Vec<u64> {
    let mut counts = vec![0; bins];
    counts[bin] = 1;
    counts
}

/// A stream of one value per second, and the number of values until the alarm, at most `values_max`.
fn run_length(
    random: &mut Random,
    made: &Alternatives,
    shares: &[f64],
    detector: &mut ShiryaevRoberts,
    (threshold, values_max): (f64, u64),
) -> u64 {
    let log_a = log(threshold);
    for value in 1..=values_max {
        detector.advance(made, &one(draw(random, shares), shares.len()), 1.0, number(value));
        if detector.log_m() >= log_a {
            return value;
        }
    }
    values_max
}

/// The mean run length to a false alarm, each cut at four times the threshold, which only lowers it.
fn false_alarms(threshold: u32, runs: u64, reference: Option<u64>) -> f64 {
    let shares = vec![1.0 / 16.0; BINS];
    let roles = [BinRole::Ordered; BINS];
    let run = |seed: u64| {
        let mut random = Random::new(seed);
        let (masses, correction) = match reference {
            None => (shares.clone(), Correction::NONE),
            Some(rows) => {
                let counts = sample(&mut random, &shares, rows);
                let rows = Some(number(rows));
                (masses(&counts), Correction { kappa: 2.0, tolerance: 0.0, rows })
            }
        };
        let made = Alternatives::numeric(&masses, &roles, correction);
        let mut detector = ShiryaevRoberts::new(made.len());
        let limits = (f64::from(threshold), 4 * u64::from(threshold));
        number(run_length(&mut random, &made, &shares, &mut detector, limits))
    };
    (0..runs).map(run).sum::<f64>() / number(runs)
}

#[test]
fn expected_time_to_a_false_alarm_is_at_least_the_threshold() {
    // The mean of n runs is off by about A / sqrt(n); a detector at exactly A would pass with two of these.
    let check = |threshold: u32, runs, reference| {
        let mean = false_alarms(threshold, runs, reference);
        let least = f64::from(threshold) * (1.0 - 2.0 / number(runs).sqrt());
        assert!(mean >= least, "{mean} at {threshold} with a reference of {reference:?}");
    };
    check(200, 400, None);
    check(1000, 120, None);
    check(200, 120, Some(1000));
    check(1000, 50, Some(1000));
}

/// The mean number of values from a change, 300 seconds after the start, to the alarm, over streams without one before.
fn delay(made: &Alternatives, before: &[f64], after: &[f64], threshold: f64) -> f64 {
    let (mut sum, mut runs) = (0.0, 0.0);
    for seed in 0..400 {
        let mut random = Random::new(1000 + seed);
        let mut detector = ShiryaevRoberts::new(made.len());
        if run_length(&mut random, made, before, &mut detector, (threshold, 300)) < 300 {
            continue;
        }
        let limits = (threshold, 5000);
        sum += number(run_length(&mut random, made, after, &mut detector, limits));
        runs += 1.0;
    }
    sum / runs
}

/// Delays published for this detector, with the standard error of both simulations allowed for.
#[test]
fn delays_are_as_short_as_published() {
    let shares = vec![1.0 / 16.0; BINS];
    let made = Alternatives::numeric(&shares, &[BinRole::Ordered; BINS], Correction::NONE);
    for (mean, deviation, published) in
        [(0.25, 1.0, 118.0), (0.5, 1.0, 41.0), (1.0, 1.0, 14.0), (0.0, 1.5, 38.0)]
    {
        let delay = delay(&made, &shares, &normal_shares(mean, deviation), 1000.0);
        assert!(delay <= 1.08 * published, "{mean} {deviation}: {delay} after {published}");
    }
    let check = |before: &[f64], after: &[f64], threshold, published: f64| {
        let roles = vec![BinRole::Category; before.len()];
        let made = Alternatives::categorical(before, &roles, Correction::NONE);
        let delay = delay(&made, before, after, threshold);
        assert!(delay <= 1.08 * published, "{after:?}: {delay} after {published}");
    };
    check(&[0.8, 0.2], &[0.7, 0.3], 1000.0, 110.0);
    check(&[0.4, 0.3, 0.2, 0.1], &[0.3, 0.3, 0.2, 0.2], 1000.0, 92.0);
}

#[test]
fn evidence_follows_the_recursion() {
    let masses = [0.5, 0.3, 0.2];
    let roles = [BinRole::Category; 3];
    let made = Alternatives::categorical(&masses, &roles, Correction::NONE);
    let mut detector = ShiryaevRoberts::new(made.len());
    assert_close(detector.log_m(), LOG_FLOOR);
    let mut expected = vec![0.0; made.len()];
    for (counts, dt) in [([1, 0, 2], 1.0), ([0, 0, 0], 1.0), ([7, 3, 1], 2.0), ([0, 40, 0], 0.5)] {
        detector.advance(&made, &counts, dt, 0.0);
        if counts.iter().sum::<u64>() > 0 {
            for (j, value) in expected.iter_mut().enumerate() {
                let power = |bin: usize| exp(number(counts[bin]) * made.log_ratio(bin, j));
                *value = (*value + made.weight(j) * dt) * power(0) * power(1) * power(2);
            }
        }
    }
    assert_close(detector.log_m(), log(expected.iter().sum::<f64>() / number(made.len() as u64)));
    let (likeliest, log_m, _) = detector.likeliest();
    assert_eq!((made.kind(likeliest), made.bin(likeliest)), (ShiftKind::Category, Some(1)));
    assert_close(log_m, log(expected[likeliest]));
}

#[test]
fn state_stays_finite_and_can_be_kept() {
    let counts: Vec<u64> = vec![0, 500, 500, 0, 0, 3];
    let roles = [
        BinRole::Below,
        BinRole::Ordered,
        BinRole::Ordered,
        BinRole::Above,
        BinRole::NonFinite,
        BinRole::Missing,
    ];
    let made = Alternatives::numeric(&masses(&counts), &roles, Correction::NONE);
    let mut detector = ShiryaevRoberts::new(made.len());
    for counts in [[u64::MAX; 6], [0, u64::MAX, 0, 0, 0, 0], [0, 0, 0, u64::MAX, 0, 0], [1; 6]] {
        for dt in [1.0, 0.0, -1.0, f64::NAN, 1e18] {
            detector.advance(&made, &counts, dt, 5.0);
            let (_, log_m, since) = detector.likeliest();
            let all = [detector.log_m(), log_m, since];
            assert!(all.iter().all(|value| value.is_finite()), "{all:?}");
            let parts = detector.parts().map(<[f64]>::to_vec);
            assert_eq!(ShiryaevRoberts::from_parts(parts).unwrap(), detector);
        }
    }
    detector.reset();
    assert_eq!(detector, ShiryaevRoberts::new(made.len()));
    let no = |parts| ShiryaevRoberts::from_parts(parts).is_none();
    assert!(no([vec![0.0], vec![0.0], vec![]]));
    assert!(no([vec![f64::NAN], vec![0.0], vec![0.0]]));
    assert!(no([vec![0.0], vec![-1.0], vec![0.0]]));
    let mut empty = ShiryaevRoberts::new(0);
    empty.advance(&Alternatives::numeric(&[], &[], Correction::NONE), &[], 1.0, 1.0);
    assert_eq!(empty.likeliest(), (0, LOG_FLOOR, 0.0));
}

/// Counts of 40 seconds with 50 values each; from second 20 on, those of `after`.
fn named(made: &Alternatives, before: &[f64], after: &[f64]) -> (ShiftKind, Option<usize>, f64) {
    let mut random = Random::new(7);
    let mut detector = ShiryaevRoberts::new(made.len());
    for second in 1..=40_u32 {
        let shares = if second <= 20 { before } else { after };
        detector.advance(made, &sample(&mut random, shares, 50), 1.0, f64::from(second));
    }
    let (likeliest, log_m, since) = detector.likeliest();
    assert!(log_m > log(1e6), "{log_m} for {after:?}");
    (made.kind(likeliest), made.bin(likeliest), since)
}

#[test]
fn likeliest_alternative_says_what_moved_and_since_when() {
    use BinRole::{Above, Below, Category, Missing, NonFinite, Ordered, Other, Unseen};

    let roles = [Below, Ordered, Ordered, Ordered, Ordered, Above, NonFinite, Missing];
    let counts = [0, 2500, 2500, 2500, 2500, 0, 0, 100];
    let reference = masses(&counts);
    let rows = Some(10_100.0);
    let correction = Correction { kappa: 2.0, tolerance: 0.02, rows };
    let made = Alternatives::numeric(&reference, &roles, correction);
    let check = |after: [f64; 8], kind: ShiftKind, bin: Option<usize>| {
        let (found, place, since) = named(&made, &reference, &after);
        assert_eq!((found, place), (kind, bin), "{after:?}");
        assert!((since - 20.0).abs() <= 2.0, "{after:?} since {since}");
    };
    check([0.0, 0.1, 0.2, 0.3, 0.39, 0.0, 0.0, 0.01], ShiftKind::Up, None);
    check([0.0, 0.39, 0.3, 0.2, 0.1, 0.0, 0.0, 0.01], ShiftKind::Down, None);
    check([0.0, 0.39, 0.11, 0.1, 0.39, 0.0, 0.0, 0.01], ShiftKind::Wider, None);
    check([0.0, 0.1, 0.4, 0.39, 0.1, 0.0, 0.0, 0.01], ShiftKind::Narrower, None);
    check([0.1, 0.2, 0.2, 0.2, 0.2, 0.09, 0.0, 0.01], ShiftKind::Tail, None);
    check([0.0, 0.22, 0.22, 0.23, 0.22, 0.0, 0.0, 0.11], ShiftKind::Missing, Some(7));
    check([0.0, 0.22, 0.23, 0.22, 0.22, 0.0, 0.1, 0.01], ShiftKind::Missing, Some(6));

    let roles = [Category, Category, Category, Other, Unseen, Missing];
    let reference = masses(&[500, 300, 150, 50, 0, 10]);
    let made = Alternatives::categorical(&reference, &roles, correction);
    let check = |after: [f64; 6], kind: ShiftKind, bin: usize| {
        let (found, place, since) = named(&made, &reference, &after);
        assert_eq!((found, place), (kind, Some(bin)), "{after:?}");
        assert!((since - 20.0).abs() <= 2.0, "{after:?} since {since}");
    };
    check([0.3, 0.2, 0.45, 0.04, 0.0, 0.01], ShiftKind::Category, 2);
    check([0.2, 0.5, 0.24, 0.05, 0.0, 0.01], ShiftKind::Category, 0);
    check([0.4, 0.24, 0.12, 0.23, 0.0, 0.01], ShiftKind::Category, 3);
    check([0.45, 0.27, 0.14, 0.04, 0.1, 0.0], ShiftKind::Unseen, 4);
    check([0.43, 0.25, 0.13, 0.04, 0.0, 0.15], ShiftKind::Missing, 5);
}

#[test]
fn plug_in_follows_the_recursion() {
    // Two values into the first of two bins with decay d: factors 1 and 1 + .9 d.
    let mut detector = PlugIn::new(vec![0.5; 2], Correction::NONE);
    detector.advance(&[1, 0], 1.0);
    assert!(detector.log_m().abs() < 1e-15);
    assert_eq!(detector.likeliest(), 0);
    detector.advance(&[1, 0], 1.0);
    let mean = DECAYS.iter().map(|decay| 2.0 * (1.0 + 0.9 * decay)).sum::<f64>() / 3.0;
    assert_close(detector.log_m(), log(mean));
    let mut other = PlugIn::new(vec![0.5; 2], Correction::NONE);
    assert!(other.restore(&detector.parts()) && other == detector);
    assert!(!other.restore(&[0.0]) && !other.restore(&[f64::NAN; 9]));
    detector.reset();
    assert_close(detector.log_m(), LOG_FLOOR);
    detector.advance(&[u64::MAX, 1], f64::NAN);
    assert!(detector.log_m().is_finite());
}

#[test]
fn plug_in_keeps_the_promise_and_sees_a_moved_cell() {
    let shares = vec![0.125; 8];
    let runs = 60;
    let lengths = Cell::new(0.0);
    for seed in 0..runs {
        let mut random = Random::new(seed);
        let mut detector = PlugIn::new(shares.clone(), Correction::NONE);
        let mut length = 0;
        while detector.log_m() < log(200.0) && length < 800 {
            detector.advance(&one(draw(&mut random, &shares), 8), 1.0);
            length += 1;
        }
        lengths.set(lengths.get() + number(length));
        let moved = [0.44, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08];
        detector.reset();
        for _ in 0..10 {
            detector.advance(&sample(&mut random, &moved, 100), 1.0);
        }
        assert!(detector.log_m() > log(1e4) && detector.likeliest() == 0);
    }
    assert!(lengths.get() / number(runs) >= 200.0 * 0.75, "{}", lengths.get() / number(runs));
}

#[test]
fn e_d_bh_reports_the_largest_set_that_reaches_its_threshold() {
    let report = |log_m: &[f64]| e_d_bh(log_m, log(1000.0));
    assert!(report(&[]).is_empty());
    assert!(report(&[log(999.0)]).is_empty());
    assert_eq!(report(&[log(1000.1)]), [0]);
    // Four features: 4000 for one, 2000 for two, 1334 for three, 1000 for all.
    let logs = |values: [f64; 4]| values.map(log);
    assert!(report(&logs([3999.0, 1.0, 1.0, 1.0])).is_empty());
    assert_eq!(report(&logs([1.0, 4001.0, 1.0, 1.0])), [1]);
    assert_eq!(report(&logs([2001.0, 1.0, 2002.0, 1.0])), [2, 0]);
    assert_eq!(report(&logs([1001.0, 1002.0, 1001.0, 1003.0])), [3, 1, 0, 2]);
    assert!(report(&[LOG_FLOOR; 4]).is_empty());
    assert_close(mean_log(&logs([1.0, 3.0, 5.0, 7.0])), log(4.0));
    assert_close(mean_log(&[]), LOG_FLOOR);
}
