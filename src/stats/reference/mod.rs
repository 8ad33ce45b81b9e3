//! Everything here against other libraries: numpy 2.2.6, scipy 1.17.1, river 0.26.1 and alibi-detect 0.13.0.
//!
//! `cases.json` holds what they answered, `arrays.f64` their inputs, one array after the other as little-endian
//! numbers; each array's entry says how numpy made it. Results agree to a relative error of 1e-9 or an absolute one of
//! 1e-14, those of alibi-detect, which computes with 32 bits, to 1e-6. Cases without a counterpart here are named with
//! the reason.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small counts"
)]

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Adwin, AsymptoticSequence, BoundedMean, Correction, Direction, Divergence, EventProcess,
    ExpectedConfusion, Method, NormalMixture, PageHinkley, PlugIn, Sample, SampleError,
    SampleRatio, Side, benjamini_hochberg, benjamini_yekutieli, binned_kolmogorov,
    bonferroni_threshold, cramer_von_mises, energy_distance, fisher_exact, hellinger, independence,
    jensen_shannon, kolmogorov_sf, kolmogorov_smirnov, kolmogorov_two_sided_sf, kullback_leibler,
    largest_difference, mann_whitney, normed_wasserstein, population_stability, quantile_edges,
    rate_limits, smoothed_shares, special::chi_square_sf, step_up_threshold, total_variation,
    wasserstein,
};

/// Cases without a counterpart, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("welch_t", "a test of means: locations are compared by ranks, and drift by bins"),
    ("anderson_ksamp", "covered by Cramér-von Mises, with a p-value that scipy cuts at .001"),
    ("barnard_exact", "covered by Fisher's exact test"),
    ("river KSWIN detections", "draws from numpy's random numbers"),
    ("river DDM detections", "covered by ADWIN"),
    ("two-sided normal mixture (sub-Gaussian, x in [0,1])", "covered by the tighter `BoundedMean`"),
    ("log Dirichlet-multinomial Bayes factor alpha=1/2", "not an e-value"),
];

/// Single cases of tests that have a counterpart otherwise.
const LEFT_OUT_CASES: &[(u64, &str)] = &[
    (263, "an e-value below 1 excludes nothing, so there is no limit to compare"),
    (264, "an e-value below 1 excludes nothing, so there is no limit to compare"),
    (271, "four arms: a split is checked one arm against the rest"),
];

struct Case<'a> {
    id: u64,
    test: &'a str,
    params: &'a Value,
    inputs: &'a Value,
    result: &'a Value,
    arrays: &'a BTreeMap<String, Vec<f64>>,
}

impl Case<'_> {
    fn array(&self, key: &str) -> &[f64] {
        &self.arrays[self.inputs[key].as_str().unwrap()]
    }

    fn sample(&self, key: &str) -> Sample {
        Sample::new(self.array(key))
    }

    fn samples(&self) -> (Sample, Sample) {
        (self.sample("x"), self.sample("y"))
    }

    fn number(&self, key: &str) -> f64 {
        self.inputs[key].as_f64().unwrap()
    }

    /// Counts as shares.
    fn shares(&self, key: &str) -> Vec<f64> {
        let counts = numbers(&self.inputs[key]);
        let sum: f64 = counts.iter().sum();
        counts.iter().map(|count| count / sum).collect()
    }

    fn table(&self) -> Vec<Vec<u64>> {
        serde_json::from_value(self.inputs["table"].clone()).unwrap()
    }

    fn side(&self) -> Side {
        match self.params["alternative"].as_str().unwrap() {
            "two-sided" => Side::TwoSided,
            "less" => Side::Less,
            _ => Side::Greater,
        }
    }

    fn method(&self) -> Method {
        if self.params["method"] == "exact" { Method::Exact } else { Method::Asymptotic }
    }

    #[track_caller]
    fn agrees(&self, key: &str, got: f64) {
        self.is_close(key, got, expected(&self.result[key]), 1e-9, 1e-14);
    }

    #[track_caller]
    fn all_agree(&self, key: &str, got: &[f64], relative: f64) {
        let expected = numbers(&self.result[key]);
        assert_eq!(got.len(), expected.len(), "case {}: {key}", self.id);
        for (got, expected) in got.iter().zip(expected) {
            self.is_close(key, *got, expected, relative, 1e-14);
        }
    }

    #[track_caller]
    fn is_close(&self, key: &str, got: f64, expected: f64, relative: f64, absolute: f64) {
        let apart = (got - expected).abs();
        let is_close = apart <= relative * expected.abs() || apart <= absolute;
        assert!(is_close, "case {} ({}): {key} {got:e}, not {expected:e}", self.id, self.test);
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(expected).collect()
}

fn expected(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

/// Cases by id, and arrays by name.
fn read() -> (Value, BTreeMap<String, Vec<f64>>) {
    let cases: Value = serde_json::from_str(include_str!("cases.json")).unwrap();
    let mut bytes = include_bytes!("arrays.f64").chunks_exact(8);
    let mut arrays = BTreeMap::new();
    for array in cases["arrays"].as_array().unwrap() {
        let length = usize::try_from(array["n"].as_u64().unwrap()).unwrap();
        let values = bytes.by_ref().take(length);
        let values = values.map(|value| f64::from_le_bytes(value.try_into().unwrap()));
        arrays.insert(array["name"].as_str().unwrap().to_owned(), values.collect());
    }
    assert_eq!(bytes.next(), None);
    (cases, arrays)
}

#[test]
fn results_agree_with_other_libraries() {
    let (cases, arrays) = read();
    let (mut agreed, mut left_out) = (0, 0);
    for case in cases["cases"].as_array().unwrap() {
        let case = Case {
            id: case["id"].as_u64().unwrap(),
            test: case["test"].as_str().unwrap(),
            params: &case["params"],
            inputs: &case["inputs"],
            result: &case["result"],
            arrays: &arrays,
        };
        let is_left_out = LEFT_OUT.iter().any(|(test, _)| *test == case.test)
            || LEFT_OUT_CASES.iter().any(|(id, _)| *id == case.id);
        if is_left_out {
            left_out += 1;
            continue;
        }
        let is_known = check_samples(&case)
            || check_tables(&case)
            || check_bins(&case)
            || check_functions(&case)
            || check_sequences(&case)
            || check_detectors(&case)
            || check_alibi(&case);
        assert!(is_known, "case {}: {}", case.id, case.test);
        agreed += 1;
    }
    assert_eq!((agreed, left_out), (271, 24));
}

fn check_samples(case: &Case<'_>) -> bool {
    match case.test {
        "ks_2samp" => {
            let (x, y) = case.samples();
            let got = kolmogorov_smirnov(&x, &y, case.side(), case.method()).unwrap();
            case.agrees("statistic", got.statistic);
            case.agrees("pvalue", got.p_value);
            case.agrees("location", got.location);
            assert_eq!(case.result["sign"] == 1, got.is_above, "case {}", case.id);
        }
        "ks_2samp NaN" => {
            let mut x = case.arrays["small7"].clone();
            x[2] = f64::NAN;
            let (x, y) = (Sample::new(&x), case.sample("y"));
            assert_eq!(x.missing(), 1);
            let got = kolmogorov_smirnov(&x, &y, Side::TwoSided, Method::Asymptotic).unwrap();
            // scipy's other policy answers NaN; here it is always left out.
            if case.params["nan_policy"] == "omit" {
                case.agrees("statistic", got.statistic);
                case.agrees("pvalue", got.p_value);
            }
        }
        "cramervonmises_2samp" => {
            let (x, y) = case.samples();
            let got = cramer_von_mises(&x, &y, case.method());
            if case.result["statistic"] == "nan" {
                let error = SampleError::TooFew { needed: 2, reference: x.len(), current: y.len() };
                assert_eq!(got, Err(error));
            } else {
                case.agrees("statistic", got.unwrap().statistic);
                case.agrees("pvalue", got.unwrap().p_value);
            }
        }
        "mannwhitneyu" => {
            let (x, y) = case.samples();
            let got = mann_whitney(&x, &y, case.side()).unwrap();
            case.agrees("statistic", got.statistic);
            case.agrees("pvalue", got.p_value);
        }
        "wasserstein_distance" => {
            let (x, y) = case.samples();
            case.agrees("statistic", wasserstein(&x, &y).unwrap());
        }
        "energy_distance" => {
            let (x, y) = case.samples();
            case.agrees("statistic", energy_distance(&x, &y).unwrap());
        }
        test if test.starts_with("wasserstein_normed") => {
            let (x, y) = case.samples();
            case.agrees("statistic", normed_wasserstein(&x, &y).unwrap());
        }
        _ => return false,
    }
    true
}

fn check_tables(case: &Case<'_>) -> bool {
    let shares = || (case.shares("p"), case.shares("q"));
    match case.test {
        "chi2_contingency" => {
            let table = case.table();
            let rows: Vec<&[u64]> = table.iter().map(Vec::as_slice).collect();
            let pearson = case.params["lambda_"] == "pearson";
            let divergence = if pearson { Divergence::Pearson } else { Divergence::LogLikelihood };
            let corrects = case.params["correction"] == true;
            let got = independence(&rows, divergence, corrects).unwrap();
            case.agrees("statistic", got.statistic);
            case.agrees("pvalue", got.p_value);
            assert_eq!(case.result["dof"], got.degrees);
        }
        "fisher_exact" => {
            let table = case.table();
            let table = [[table[0][0], table[0][1]], [table[1][0], table[1][1]]];
            let got = fisher_exact(table, case.side());
            case.agrees("statistic", got.odds_ratio.unwrap());
            case.agrees("pvalue", got.p_value);
        }
        "jensenshannon distance" => {
            let (p, q) = shares();
            let natural = if case.params["base"] == 2 { 1.0 } else { 2.0_f64.ln().sqrt() };
            case.agrees("statistic", natural * jensen_shannon(&p, &q));
        }
        "total variation" => {
            let (p, q) = shares();
            case.agrees("statistic", total_variation(&p, &q));
        }
        "Linf" => {
            let (p, q) = shares();
            case.agrees("statistic", largest_difference(&p, &q));
        }
        "hellinger" => {
            let (p, q) = shares();
            case.agrees("statistic", hellinger(&p, &q));
        }
        "kl(q||p) + 1e-4 for zero cells" => {
            let (p, q) = shares();
            let [p, q] = [p, q].map(|shares| -> Vec<f64> {
                shares.iter().map(|share| if *share == 0.0 { 1e-4 } else { *share }).collect()
            });
            case.agrees("statistic", kullback_leibler(&q, &p));
        }
        _ => return false,
    }
    true
}

/// Counts in bins `[e, f)` between inner edges.
fn counts(values: &[f64], edges: &[f64]) -> Vec<u64> {
    let mut counts = vec![0; edges.len() + 1];
    for value in values {
        counts[edges.partition_point(|edge| edge <= value)] += 1;
    }
    counts
}

fn as_shares(counts: &[u64]) -> Vec<f64> {
    let sum: u64 = counts.iter().sum();
    counts.iter().map(|count| *count as f64 / sum as f64).collect()
}

/// Shares of bins of equal width over both samples, as many as Sturges says, with Evidently's rule for empty ones.
fn sturges_shares(x: &Sample, y: &Sample) -> [Vec<f64>; 2] {
    let both: Vec<f64> = x.sorted().iter().chain(y.sorted()).copied().collect();
    let low = both.iter().copied().fold(f64::INFINITY, f64::min);
    let high = both.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let width = (high - low) / ((both.len() as f64).log2() + 1.0);
    let bins = ((high - low) / width).ceil() as usize;
    let step = (high - low) / bins as f64;
    let edges: Vec<f64> = (1..bins).map(|bin| low + step * bin as f64).collect();
    [x, y].map(|sample| {
        let mut shares = as_shares(&counts(sample.sorted(), &edges));
        let least = shares.iter().copied().filter(|share| *share > 0.0).fold(1.0, f64::min);
        let filling = if least <= 1e-4 { least / 1e6 } else { 1e-4 };
        shares.iter_mut().filter(|share| **share == 0.0).for_each(|share| *share = filling);
        shares
    })
}

fn check_bins(case: &Case<'_>) -> bool {
    if case.params["bins"] == "sturges" {
        let (x, y) = case.samples();
        let [p, q] = sturges_shares(&x, &y);
        let is_psi = case.test.starts_with("PSI");
        let got = if is_psi { population_stability(&p, &q) } else { jensen_shannon(&p, &q) };
        case.agrees("statistic", got);
        return true;
    }
    let Some(bins) = case.params["K"].as_u64() else { return false };
    let (x, y) = case.samples();
    let edges = quantile_edges(x.sorted(), usize::try_from(bins).unwrap());
    let [cx, cy] = [&x, &y].map(|sample| counts(sample.sorted(), &edges));
    let (p, q) = (smoothed_shares(&cx), smoothed_shares(&cy));
    match case.test.split(' ').next().unwrap() {
        "PSI" => {
            for (got, expected) in edges.iter().zip(numbers(&case.params["edges"])) {
                case.is_close("edge", *got, expected, 1e-9, 1e-14);
            }
            case.agrees("statistic", population_stability(&p, &q));
        }
        "chi2" => {
            let got = independence(&[&cx, &cy], Divergence::Pearson, false).unwrap();
            case.agrees("statistic", got.statistic);
            case.agrees("pvalue", got.p_value);
            assert_eq!(case.result["dof"], got.degrees);
        }
        "JS" => case.agrees("statistic", jensen_shannon(&p, &q)),
        "binned" => {
            let (p, q) = (as_shares(&cx), as_shares(&cy));
            let binned = binned_kolmogorov(&p, &q);
            let exact = kolmogorov_smirnov(&x, &y, Side::TwoSided, Method::Auto).unwrap().statistic;
            case.agrees("statistic", binned);
            case.agrees("exact_ks", exact);
            let most = p.iter().chain(&q).copied().fold(0.0, f64::max);
            case.agrees("max_mass", most);
            assert!((binned - 1e-12..=binned + most + 1e-12).contains(&exact));
        }
        _ => return false,
    }
    true
}

fn check_functions(case: &Case<'_>) -> bool {
    match case.test {
        "kstwo.sf(d,n)" => {
            let n = case.inputs["n"].as_u64().unwrap();
            case.agrees("statistic", kolmogorov_two_sided_sf(n, case.number("d")));
        }
        "chi2.sf" => case.agrees("statistic", chi_square_sf(case.number("df"), case.number("x"))),
        "BH adjusted" => {
            let adjusted = benjamini_hochberg(&numbers(&case.inputs["p"]));
            case.all_agree("adjusted", &adjusted, 1e-9);
        }
        "BY adjusted" => {
            let adjusted = benjamini_yekutieli(&numbers(&case.inputs["p"]));
            case.all_agree("adjusted", &adjusted, 1e-9);
        }
        "Bonferroni threshold" => {
            let p_values = numbers(&case.inputs["p"]);
            let threshold = bonferroni_threshold(0.05, p_values.len());
            case.agrees("threshold", threshold);
            let rejected = p_values.iter().filter(|p| **p < threshold).count();
            assert_eq!(case.result["rejects"], rejected);
        }
        test if test.starts_with("kolmogorov sf") => {
            case.agrees("statistic", kolmogorov_sf(case.number("x")));
        }
        test if test.starts_with("CBPE") => {
            let mut expected = ExpectedConfusion::new();
            for p in numbers(&case.inputs["p"]) {
                expected.add(p, p >= 0.5);
            }
            case.agrees("TP", expected.true_positives);
            case.agrees("FP", expected.false_positives);
            case.agrees("FN", expected.false_negatives);
            case.agrees("TN", expected.true_negatives);
            let (accuracy, deviation) = expected.accuracy().unwrap();
            case.agrees("accuracy", accuracy);
            case.agrees("sd_accuracy", deviation);
        }
        _ => return false,
    }
    true
}

fn check_sequences(case: &Case<'_>) -> bool {
    let count = || case.inputs["n"].as_u64().unwrap();
    match case.test {
        "asymptotic CS half width" => {
            let sequence = AsymptoticSequence::new(0.05, 1000);
            case.agrees("halfwidth", sequence.half_width(count(), 1.0));
        }
        "predictable plug-in empirical-Bernstein CS" => {
            for (at, (lower, upper)) in bounded_means(BoundedMean::new(0.05), case.array("x")) {
                case.agrees(&format!("centre_{at}"), lower.midpoint(upper));
                case.agrees(&format!("halfwidth_{at}"), (upper - lower) / 2.0);
            }
        }
        "sequential multinomial/SRM log e-value" => {
            let counts = numbers(&case.inputs["counts"]).into_iter().map(|count| count as u64);
            let counts: Vec<u64> = counts.collect();
            let mut ratio = SampleRatio::new();
            ratio.add(numbers(&case.inputs["theta0"])[1], counts[1], counts.iter().sum());
            case.agrees("log_e", ratio.log_e());
        }
        test if test.starts_with("empirical-Bernstein CS as confseq") => {
            let sequence = BoundedMean::with_raw_mean(0.05);
            for (at, (lower, upper)) in bounded_means(sequence, case.array("x")) {
                case.agrees(&format!("lower_{at}"), lower);
                case.agrees(&format!("upper_{at}"), upper);
            }
        }
        test if test.starts_with("mSPRT") => {
            let variances = [&case.params["sigma2"], &case.params["tau2"]].map(expected);
            let mixture = NormalMixture::new(variances[0], variances[1]);
            let e = libm::exp(mixture.log_e(count(), case.number("xbar")));
            case.agrees("Lambda", e);
            case.agrees("p", (1.0 / e).min(1.0));
            case.agrees("cs_halfwidth_alpha05", mixture.half_width(count(), 0.05));
        }
        test if test.starts_with("Beta(1/2,1/2)-mixture") => {
            // A rate is excluded at alpha once its e-value reaches 1 / alpha: this one is the limit at 1 / e.
            let events = case.inputs["k"].as_u64().unwrap();
            let (lower, _) = rate_limits(count(), events, 1.0 / expected(&case.result["e"]));
            case.is_close("limit", lower, case.number("p0"), 1e-9, 0.0);
        }
        test if test.starts_with("event e-process") => {
            let delta = expected(&case.params["delta"]);
            let mut process = EventProcess::new(Direction::More, delta, None);
            for step in case.inputs["steps"].as_array().unwrap() {
                let step = numbers(step);
                process.add(step[0], step[1] as u64, step[2] as u64);
            }
            case.agrees("log_e", process.log_e());
        }
        _ => return false,
    }
    true
}

/// Limits after 100 and after all 500 values.
fn bounded_means(mut sequence: BoundedMean, values: &[f64]) -> Vec<(usize, (f64, f64))> {
    let mut limits = Vec::new();
    for (index, value) in values.iter().enumerate() {
        sequence.push(*value);
        if [100, 500].contains(&(index + 1)) {
            limits.push((index + 1, sequence.limits()));
        }
    }
    limits
}

fn check_detectors(case: &Case<'_>) -> bool {
    match case.test {
        test if test.starts_with("SR e-detector") => {
            let edges = numbers(&case.params["edges"]);
            let bins = edges.len() + 1;
            let mut detector = PlugIn::new(vec![1.0 / bins as f64; bins], Correction::NONE);
            let mut reached = [None; 2];
            for (index, value) in case.array("x").iter().enumerate() {
                detector.advance(&counts(&[*value], &edges), 1.0);
                let evidence = libm::exp(detector.log_m());
                for (reached, threshold) in reached.iter_mut().zip([1e3, 1e4]) {
                    if evidence >= threshold && reached.is_none() {
                        *reached = Some(index + 1);
                    }
                }
                let key = format!("M_{}", index + 1);
                if case.result.get(&key).is_some() {
                    case.agrees(&key, evidence);
                }
            }
            assert_eq!(case.result["first_ge_1000"], reached[0].unwrap());
            assert_eq!(case.result["first_ge_10000"], reached[1].unwrap());
        }
        "river ADWIN detections (1-based)" => {
            let delta = case.params["delta"].as_f64().unwrap_or(0.002);
            let mut window = Adwin::new(delta, case.params["clock"].as_u64().unwrap_or(32));
            let mut found = Vec::new();
            for (index, value) in case.array("x").iter().enumerate() {
                // After a detection river starts anew with the next value.
                if found.last() == Some(&index) {
                    window.reset();
                }
                if window.update(*value) {
                    found.push(index + 1);
                }
            }
            assert_eq!(case.result["at"], Value::from(found), "case {}", case.id);
            case.agrees("width", window.width() as f64);
            case.agrees("estimation", window.mean().unwrap());
            case.agrees("variance", window.squares());
        }
        "river PageHinkley detections" => {
            let parameter = |key: &str, default| case.params[key].as_f64().unwrap_or(default);
            let mut test =
                PageHinkley::new(parameter("delta", 0.005), parameter("threshold", 50.0));
            let values = case.array("x").iter().enumerate();
            let found =
                values.filter(|(_, value)| test.update(**value)).map(|(index, _)| index + 1);
            assert_eq!(
                case.result["at"],
                Value::from(found.collect::<Vec<_>>()),
                "case {}",
                case.id
            );
        }
        _ => return false,
    }
    true
}

/// Values of one column of a matrix in C order.
fn column(matrix: &[f64], width: usize, column: usize) -> Vec<f64> {
    matrix.iter().skip(column).step_by(width).copied().collect()
}

fn check_alibi(case: &Case<'_>) -> bool {
    if !case.test.starts_with("alibi") {
        return false;
    }
    let (reference, current) = (case.array("x_ref"), case.array("x"));
    let width = if case.test.starts_with("alibi ChiSquareDrift") { 2 } else { 5 };
    let mut distances = Vec::new();
    let mut p_values = Vec::new();
    for feature in 0..width {
        let (x, y) = (column(reference, width, feature), column(current, width, feature));
        let samples = (Sample::new(&x), Sample::new(&y));
        let (distance, p_value) = match case.test {
            "alibi KSDrift" => {
                // That library asks for the limit.
                let method = Method::Asymptotic;
                let got =
                    kolmogorov_smirnov(&samples.0, &samples.1, Side::TwoSided, method).unwrap();
                (got.statistic, got.p_value)
            }
            "alibi CVMDrift" => {
                let got = cramer_von_mises(&samples.0, &samples.1, Method::Auto).unwrap();
                (got.statistic, got.p_value)
            }
            _ => {
                let edges = [0.5, 1.5, 2.5, 3.5];
                let (x, y) = (counts(&x, &edges), counts(&y, &edges));
                let got = independence(&[&x, &y], Divergence::Pearson, true).unwrap();
                (got.statistic, got.p_value)
            }
        };
        distances.push(distance);
        p_values.push(p_value);
    }
    case.all_agree("distance", &distances, 1e-6);
    case.all_agree("pvalue", &p_values, 1e-6);
    let threshold = match case.params["correction"].as_str().unwrap() {
        "fdr" => step_up_threshold(&p_values, 0.05).unwrap(),
        _ => bonferroni_threshold(0.05, width),
    };
    if case.result.get("threshold").is_some() {
        case.agrees("threshold", threshold);
    }
    assert!(p_values.iter().any(|p| *p < threshold));
    true
}
