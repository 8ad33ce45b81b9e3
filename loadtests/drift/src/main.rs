//! Simulates drifts before tidegate's detectors, and runs them on streams from files.
//!
//! - `drift simulate [RUNS]` prints, as JSON, expected times to a false alarm and delays. All follows from seeds.
//! - `drift length KIND REFERENCE RUNS SETTINGS` prints, for each setting, the mean time to a false alarm and its
//!   standard error, on normal values or on two categories, with references of so many rows.
//! - `drift detect KIND FEATURES REFERENCE SETTINGS FILE...` runs on files of little-endian numbers, row by row: first
//!   the rows of the reference, then those of the stream. KIND is `number` or `category`, SETTINGS are
//!   `threshold:kappa:tolerance`, separated by commas. Prints a line per file and setting: the rows of the stream at
//!   which there was an alarm, counted from 1; the evidence of all features starts anew after each.

mod feature;
mod streams;

use std::{env, fs, process::ExitCode, sync::Mutex, thread};

use drift::stats::mean_log;
use feature::{Feature, Kind, Setting};
use libm::log;
use streams::{Change, Draw, Source, changes};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["simulate"] => simulate(400),
        ["simulate", runs] => {
            runs.parse().map_err(|_| format!("`{runs}` is no number")).and_then(simulate)
        }
        ["length", kind, reference, runs, settings] => length(kind, reference, runs, settings),
        ["detect", kind, features, reference, settings, files @ ..] => {
            detect(kind, features, reference, settings, files)
        }
        _ => Err(
            "usage: drift simulate [RUNS] | length KIND REFERENCE RUNS SETTINGS | detect KIND FEATURES REFERENCE SETTINGS FILE..."
                .into(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

fn detect(
    kind: &str,
    features: &str,
    reference: &str,
    settings: &str,
    files: &[&str],
) -> Result<(), String> {
    let kind = if kind == "number" { Kind::Number } else { Kind::Category };
    let (features, reference): (usize, usize) = (number(features)?, number(reference)?);
    let settings: Vec<Setting> = settings.split(',').map(parse).collect::<Result<_, _>>()?;
    for file in files {
        let bytes = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        let values: Vec<f64> = bytes
            .chunks_exact(8)
            .map(|chunk| f64::from_le_bytes(chunk.try_into().expect("eight bytes")))
            .collect();
        if values.len() < features * reference {
            return Err(format!("{file} has no {reference} rows of {features} numbers"));
        }
        let (sample, stream) = values.split_at(features * reference);
        for setting in &settings {
            let alarms = alarms(sample, stream, features, kind, *setting);
            let alarms: Vec<String> = alarms.iter().map(usize::to_string).collect();
            println!("{}", alarms.join(" "));
        }
    }
    Ok(())
}

fn length(kind: &str, reference: &str, runs: &str, settings: &str) -> Result<(), String> {
    let (reference, runs) = (Reference::Rows(number(reference)?), number(runs)?);
    let source = match kind {
        "number" => Source::Normal { mean: 0.0, deviation: 1.0 },
        _ => Source::Category([0.8, 0.2, 0.0, 0.0]),
    };
    for setting in settings.split(',') {
        let [mean, error, _] = run_length(&source, reference, parse(setting)?, runs, 60.0);
        println!("{mean:.1} {error:.1}");
    }
    Ok(())
}

fn parse(setting: &str) -> Result<Setting, String> {
    let parts: Vec<f64> = setting.split(':').map(number).collect::<Result<_, _>>()?;
    let [threshold, kappa, tolerance] = parts[..] else {
        return Err(format!("`{setting}` is not threshold:kappa:tolerance"));
    };
    Ok(Setting { threshold, kappa, tolerance })
}

/// Rows with an alarm: the mean evidence of all features reached the threshold.
fn alarms(
    sample: &[f64],
    stream: &[f64],
    features: usize,
    kind: Kind,
    setting: Setting,
) -> Vec<usize> {
    let column = |index: usize| -> Vec<f64> {
        sample.iter().skip(index).step_by(features).copied().collect()
    };
    let mut watched: Vec<Feature> =
        (0..features).map(|index| Feature::sampled(&column(index), kind, setting)).collect();
    let log_a = log(setting.threshold);
    let mut alarms = Vec::new();
    for (row, values) in stream.chunks_exact(features).enumerate() {
        for (feature, value) in watched.iter_mut().zip(values) {
            feature.push(*value);
        }
        let evidence: Vec<f64> = watched.iter().map(Feature::log_m).collect();
        if mean_log(&evidence) >= log_a {
            alarms.push(row + 1);
            watched.iter_mut().for_each(Feature::reset);
        }
    }
    alarms
}

/// What a reference is made of.
#[derive(Debug, Clone, Copy)]
enum Reference {
    Exact,
    Rows(usize),
}

/// A feature with a reference for the source.
fn watched(draw: &mut Draw, source: &Source, reference: Reference, setting: Setting) -> Feature {
    match (reference, source) {
        (Reference::Exact, Source::Category(shares)) => {
            let shares: Vec<f64> = shares.iter().copied().filter(|share| *share > 0.0).collect();
            Feature::exact_category(&shares, setting)
        }
        (Reference::Exact, _) => Feature::exact_number(exact_edges(*source), setting),
        (Reference::Rows(rows), _) => {
            let kind =
                if matches!(source, Source::Category(_)) { Kind::Category } else { Kind::Number };
            let sample: Vec<f64> = (0..rows).map(|_| draw.from(source)).collect();
            Feature::sampled(&sample, kind, setting)
        }
    }
}

/// Edges of sixteen equal shares, of a million draws where there is no formula at hand.
fn exact_edges(source: Source) -> Vec<f64> {
    static KNOWN: Mutex<Vec<(String, Vec<f64>)>> = Mutex::new(Vec::new());
    let name = format!("{source:?}");
    let mut known = KNOWN.lock().expect("no thread panics with the lock");
    if let Some((_, edges)) = known.iter().find(|(known, _)| *known == name) {
        return edges.clone();
    }
    let mut draw = Draw::new(0xed6e);
    let mut sample: Vec<f64> = (0..4_000_000).map(|_| draw.from(&source)).collect();
    sample.sort_unstable_by(f64::total_cmp);
    let edges = drift::stats::quantile_edges(&sample, 16);
    known.push((name, edges.clone()));
    edges
}

/// The mean time to a false alarm, each cut at `cut` times the threshold, its standard error, and the share cut.
fn run_length(
    source: &Source,
    reference: Reference,
    setting: Setting,
    runs: u64,
    cut: f64,
) -> [f64; 3] {
    let most = (cut * setting.threshold) as u64;
    let log_a = log(setting.threshold);
    let lengths = in_parallel(runs, |seed| {
        let mut draw = Draw::new(seed);
        let mut feature = watched(&mut draw, source, reference, setting);
        for row in 1..=most {
            feature.push(draw.from(source));
            if feature.log_m() >= log_a {
                return row as f64;
            }
        }
        f64::INFINITY
    });
    let cut_off = lengths.iter().filter(|length| length.is_infinite()).count() as f64 / runs as f64;
    let lengths: Vec<f64> = lengths.iter().map(|length| length.min(most as f64)).collect();
    let (mean, error) = mean_and_error(&lengths);
    [mean, error, cut_off]
}

/// The mean delay from a change after 300 values (60 for thresholds below 1,000), over streams without an alarm before;
/// its standard error, and the share without an alarm within 20,000 values, which enters as that.
fn delay(change: &Change, reference: Reference, setting: Setting, runs: u64) -> [f64; 3] {
    const AFTER: u32 = 20_000;
    let log_a = log(setting.threshold);
    let before = if setting.threshold < 1000.0 { 60 } else { 300 };
    let delays = in_parallel(runs, |seed| {
        let mut draw = Draw::new(seed + 1_000_000);
        let mut feature = watched(&mut draw, &change.before, reference, setting);
        for _ in 0..before {
            feature.push(draw.from(&change.before));
            if feature.log_m() >= log_a {
                return f64::NAN;
            }
        }
        for row in 1..=AFTER {
            feature.push(draw.from(&change.after));
            if feature.log_m() >= log_a {
                return f64::from(row);
            }
        }
        f64::INFINITY
    });
    let delays: Vec<f64> = delays.into_iter().filter(|delay| !delay.is_nan()).collect();
    let missed =
        delays.iter().filter(|delay| delay.is_infinite()).count() as f64 / delays.len() as f64;
    let delays: Vec<f64> = delays.iter().map(|delay| delay.min(f64::from(AFTER))).collect();
    let (mean, error) = mean_and_error(&delays);
    [mean, error, missed]
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

fn in_parallel(runs: u64, run: impl Fn(u64) -> f64 + Sync) -> Vec<f64> {
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    thread::scope(|scope| {
        let run = &run;
        let part = |first| {
            scope
                .spawn(move || (first..runs).step_by(threads as usize).map(run).collect::<Vec<_>>())
        };
        let parts: Vec<_> = (0..threads).map(part).collect();
        parts.into_iter().flat_map(|part| part.join().expect("a run does not panic")).collect()
    })
}

/// References and corrections that are compared: name, reference, kappa, tolerance.
const SETTINGS: [(&str, Reference, f64, f64); 6] = [
    ("exact", Reference::Exact, 0.0, 0.0),
    ("1,000 rows, kappa 0", Reference::Rows(1000), 0.0, 0.0),
    ("1,000 rows, kappa 2", Reference::Rows(1000), 2.0, 0.0),
    ("1,000 rows, kappa 2, tolerance .02", Reference::Rows(1000), 2.0, 0.02),
    ("10,000 rows, kappa 2", Reference::Rows(10_000), 2.0, 0.0),
    ("10,000 rows, kappa 2, tolerance .02", Reference::Rows(10_000), 2.0, 0.02),
];

fn simulate(runs: u64) -> Result<(), String> {
    if runs < 2 {
        return Err("a mean needs two runs or more".into());
    }
    let changes = changes();
    let mut rows = Vec::new();
    for (name, reference, kappa, tolerance) in SETTINGS {
        for threshold in [200.0, 1000.0, 10_000.0] {
            let setting = Setting { threshold, kappa, tolerance };
            let runs = if threshold > 5000.0 { runs.div_ceil(2) } else { runs };
            let [mean, error, cut] = run_length(&changes[0].before, reference, setting, runs, 20.0);
            rows.push(format!(
                r#"{{"table": "run length", "setting": "{name}", "threshold": {threshold}, "runs": {runs}, "mean": {mean:.1}, "error": {error:.1}, "cut": {cut:.4}}}"#
            ));
        }
        for threshold in [200.0, 1000.0, 10_000.0, 1_000_000.0] {
            let setting = Setting { threshold, kappa, tolerance };
            for change in &changes {
                let [mean, error, missed] = delay(change, reference, setting, runs);
                rows.push(format!(
                    r#"{{"table": "delay", "setting": "{name}", "threshold": {threshold}, "change": "{}", "runs": {runs}, "mean": {mean:.2}, "error": {error:.2}, "missed": {missed:.4}}}"#,
                    change.name
                ));
            }
        }
    }
    println!("[\n{}\n]", rows.join(",\n"));
    Ok(())
}
