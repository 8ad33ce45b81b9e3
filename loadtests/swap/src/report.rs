//! What came of a run: a table for people, JSON for programs, and whether all is well.
//!
//! Not here: the drawing (`plot`).

use std::fmt;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{
    Options,
    memory::{Sample, theil_sen},
    swapping::Findings,
};

/// Swaps until memory is expected to have settled; the slope is taken over those after.
const SETTLED: usize = 200;

/// A judged run.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    findings: &'a Findings,
    options: &'a Options,
}

impl<'a> Report<'a> {
    pub(crate) fn new(findings: &'a Findings, options: &'a Options) -> Self {
        Self { findings, options }
    }

    /// Whether every answer was right and every swap was done.
    pub(crate) fn is_good(&self) -> bool {
        let fast = self.options.p99_max.is_none_or(|max| self.p99_ratio() <= max);
        self.findings.tally.wrong() == 0 && self.findings.problems.is_empty() && fast
    }

    /// The p99 of swap windows over the p99 before any swap.
    fn p99_ratio(&self) -> f64 {
        let tally = &self.findings.tally;
        tally.swap.value_at_quantile(0.99) as f64 / tally.before.value_at_quantile(0.99) as f64
    }

    /// Growth per swap of something that was sampled, once memory has settled.
    fn slope(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let samples = &self.findings.samples;
        // The first and the last are without load.
        let loaded = samples.get(1..samples.len().saturating_sub(1))?;
        let most = loaded.last()?.swaps;
        let from = if most >= 2 * SETTLED { SETTLED } else { most / 2 };
        let late = loaded.iter().filter(|sample| sample.swaps >= from);
        theil_sen(&late.map(|sample| (sample.swaps as f64, of(sample))).collect::<Vec<_>>())
    }

    /// Milliseconds from being put up to being acknowledged, ascending.
    fn swap_ms(&self) -> Vec<f64> {
        let swaps = &self.findings.swaps;
        let mut took: Vec<f64> =
            swaps.iter().map(|swap| (swap.acknowledged - swap.put_up) * 1e3).collect();
        took.sort_by(f64::total_cmp);
        took
    }

    /// Milliseconds from the acknowledgement until most of an old version's weights were given back, ascending;
    /// 0 where that was earlier.
    fn freed_ms(&self) -> Vec<f64> {
        let weights = self.options.weights_mb * 1_000_000;
        if weights == 0 || self.options.bad.is_some() {
            return Vec::new();
        }
        let mut freed = Vec::new();
        for (index, swap) in self.findings.swaps.iter().enumerate() {
            let end = self.findings.swaps.get(index + 1).map_or(f64::MAX, |next| next.put_up);
            let within = |from: f64| {
                let points = self.findings.resident.iter();
                points.filter(move |(at, _)| *at >= from && *at < end)
            };
            let highest = within(swap.put_up).map(|(_, bytes)| *bytes).max().unwrap_or(0);
            let low = highest.saturating_sub(weights / 2);
            if let Some((at, _)) = within(swap.acknowledged).find(|(_, bytes)| *bytes <= low) {
                freed.push((at - swap.acknowledged) * 1e3);
            }
        }
        freed.sort_by(f64::total_cmp);
        freed
    }

    /// All figures.
    pub(crate) fn json(&self) -> Value {
        let (findings, tally) = (self.findings, &self.findings.tally);
        let (swaps, freed) = (self.swap_ms(), self.freed_ms());
        json!({
            "good": self.is_good(),
            "options": format!("{:?}", self.options),
            "answers": {
                "right": tally.right, "failed": tally.failed, "dropped": tally.dropped,
                "mixed": tally.mixed, "late": tally.late, "unsent": tally.unsent,
                "examples": tally.examples,
            },
            "swaps": {
                "done": findings.swaps.len(), "problems": findings.problems,
                "p50_ms": middle(&swaps), "max_ms": swaps.last(),
                "freed": freed.len(), "freed_p50_ms": middle(&freed), "freed_max_ms": freed.last(),
            },
            "throughput": {
                "per_second": findings.throughput, "peak": findings.peak, "rate": findings.rate,
            },
            "latency_us": {
                "before": quantiles(&tally.before), "steady": quantiles(&tally.steady),
                "swap": quantiles(&tally.swap), "p99_ratio": self.p99_ratio(),
            },
            "memory": {
                "rss_slope_bytes_per_swap": self.slope(|sample| sample.rss as f64),
                "private_slope_bytes_per_swap": self.slope(|sample| sample.private as f64),
                "mappings_slope_per_swap": self.slope(|sample| sample.mappings as f64),
                "peak_bytes": findings.peak_bytes,
                "samples": findings.samples,
            },
        })
    }

    fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.findings.tally;
        writeln!(f, "\nlatency, us          p50      p99    p99.9      max    requests")?;
        let windows = if self.options.bad.is_some() { "around candidates" } else { "swap windows" };
        let rows = [
            ("before any swap", &tally.before),
            ("between swaps", &tally.steady),
            (windows, &tally.swap),
        ];
        for (name, histogram) in rows {
            let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
            let (p50, p99, p999) = (us(0.5), us(0.99), us(0.999));
            let (max, count) = (histogram.max() as f64 / 1e3, histogram.len());
            writeln!(f, "{name:<17}{p50:>7.0}{p99:>9.0}{p999:>9.0}{max:>9.0}{count:>12}")?;
        }
        let ratio = self.p99_ratio();
        let (to_steady, promised) = (
            tally.swap.value_at_quantile(0.99) as f64
                / tally.steady.value_at_quantile(0.99).max(1) as f64,
            if self.options.bad.is_some() { 1.2 } else { 1.5 },
        );
        writeln!(
            f,
            "p99 of the windows: {ratio:.2} x before, {to_steady:.2} x between; promised: {promised}"
        )
    }

    fn write_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let samples = &self.findings.samples;
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Ok(()) };
        writeln!(f, "\nmemory, MB           rss      pss  private  threads  files  mappings")?;
        for (name, sample) in [("before", first), ("after", last)] {
            let [rss, pss, private] = [sample.rss, sample.pss, sample.private].map(megabytes);
            let Sample { threads, descriptors, mappings, .. } = sample;
            writeln!(
                f,
                "{name:<17}{rss:>7.1}{pss:>9.1}{private:>9.1}{threads:>9}{descriptors:>7}{mappings:>10}"
            )?;
        }
        writeln!(f, "peak of rss      {:>7.1}", megabytes(self.findings.peak_bytes))?;
        if let Some(slope) = self.slope(|sample| sample.rss as f64) {
            let mappings = self.slope(|sample| sample.mappings as f64).unwrap_or(0.0);
            writeln!(
                f,
                "growth a swap: {slope:.0} bytes of rss, {mappings:.3} mappings (Theil-Sen)"
            )?;
        }
        let freed = self.freed_ms();
        if let (Some(half), Some(most)) = (middle(&freed), freed.last()) {
            let count = freed.len();
            writeln!(
                f,
                "old weights freed: {count} seen, {half:.0} ms after the swap, at most {most:.0}"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (findings, tally) = (self.findings, &self.findings.tally);
        let what = self
            .options
            .bad
            .map_or("swaps".to_owned(), |bad| format!("candidates of the kind `{}`", bad.name()));
        let (count, took) = (findings.swaps.len(), self.swap_ms());
        let (half, most) = (middle(&took).unwrap_or(0.0), took.last().copied().unwrap_or(0.0));
        writeln!(f, "{count} {what}, each {half:.1} ms (median), at most {most:.1}")?;
        write!(f, "{:.0} requests a second", findings.throughput)?;
        if let Some(rate) = findings.rate {
            write!(f, ", asked for {rate:.0}")?;
        }
        if let Some(peak) = findings.peak {
            write!(f, ", at most {peak:.0}")?;
        }
        writeln!(f, "\n\nright       {:>12}", tally.right)?;
        for (name, count) in [
            ("failed", tally.failed),
            ("dropped", tally.dropped),
            ("mixed", tally.mixed),
            ("late", tally.late),
        ] {
            writeln!(f, "{name:<12}{count:>12}")?;
        }
        if tally.unsent > 0 {
            writeln!(f, "not sent    {:>12}  (the rate is too high)", tally.unsent)?;
        }
        self.write_latencies(f)?;
        self.write_memory(f)?;
        for problem in findings.problems.iter().chain(&tally.examples).take(20) {
            writeln!(f, "! {problem}")?;
        }
        writeln!(f, "\n{}", if self.is_good() { "good" } else { "NOT GOOD" })
    }
}

fn quantiles(histogram: &Histogram<u64>) -> Value {
    let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    json!({
        "count": histogram.len(), "p50": us(0.5), "p90": us(0.9), "p99": us(0.99), "p999": us(0.999),
        "max": histogram.max() as f64 / 1e3,
    })
}

fn middle(ascending: &[f64]) -> Option<f64> {
    ascending.get(ascending.len() / 2).copied()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
