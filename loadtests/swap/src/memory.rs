//! What the server holds: memory, threads, descriptors and mappings, read from `/proc`, and whether it grows.
//!
//! Not here: when to look.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What a process holds at one moment; sizes in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    pub(crate) swaps: usize,
    /// Since the load began.
    pub(crate) seconds: f64,
    pub(crate) rss: u64,
    pub(crate) pss: u64,
    pub(crate) private: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: usize,
    pub(crate) mappings: usize,
}

/// Where a process tells what it holds.
#[derive(Debug, Clone)]
pub(crate) struct Process(PathBuf);

impl Process {
    pub(crate) fn new(id: u32) -> Self {
        Self(PathBuf::from(format!("/proc/{id}")))
    }

    pub(crate) fn sample(&self, swaps: usize, seconds: f64) -> Result<Sample> {
        let rollup = self.read("smaps_rollup")?;
        let kib = |key: &str| number_after(&rollup, key).unwrap_or(0) * 1024;
        Ok(Sample {
            swaps,
            seconds,
            rss: kib("Rss:"),
            pss: kib("Pss:"),
            private: kib("Private_Clean:") + kib("Private_Dirty:"),
            threads: number_after(&self.read("status")?, "Threads:").unwrap_or(0),
            descriptors: fs::read_dir(self.0.join("fd"))?.count(),
            mappings: self.read("maps")?.lines().count(),
        })
    }

    /// Resident memory in bytes, cheaply.
    pub(crate) fn resident(&self) -> Option<u64> {
        let pages: u64 = self.read("statm").ok()?.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    /// The most that was ever resident, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        let status = self.read("status").unwrap_or_default();
        number_after(&status, "VmHWM:").unwrap_or(0) * 1024
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))
    }
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The median of the slopes between all pairs of points (Theil and Sen): a few outliers do not move it.
pub(crate) fn theil_sen(points: &[(f64, f64)]) -> Option<f64> {
    let mut slopes = Vec::new();
    for (index, (x, y)) in points.iter().enumerate() {
        for (other_x, other_y) in &points[index + 1..] {
            if (other_x - x).abs() > f64::EPSILON {
                slopes.push((other_y - y) / (other_x - x));
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    let middle = slopes.len() / 2;
    let upper = *slopes.get(middle)?;
    Some(if slopes.len() % 2 == 1 { upper } else { f64::midpoint(slopes[middle - 1], upper) })
}

#[cfg(test)]
mod tests {
    use super::{Process, number_after, theil_sen};

    #[test]
    fn the_slope_is_that_of_a_line_also_with_outliers() {
        let line = |x: i32| (f64::from(x), 3.0 * f64::from(x) + 7.0);
        let mut points: Vec<_> = (0..20).map(line).collect();
        points[4].1 = 1e9;
        points[11].1 = -1e9;
        let slope = theil_sen(&points).unwrap();
        assert!((slope - 3.0).abs() < 0.2, "{slope}");
        let flat: Vec<_> = (0..9).map(|x| (f64::from(x), 5.0)).collect();
        assert_eq!(theil_sen(&flat), Some(0.0));
    }

    #[test]
    fn one_point_has_no_slope() {
        assert_eq!(theil_sen(&[]), None);
        assert_eq!(theil_sen(&[(1.0, 1.0)]), None);
        assert_eq!(theil_sen(&[(1.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(theil_sen(&[(1.0, 1.0), (3.0, 2.0)]), Some(0.5));
    }

    #[test]
    fn this_process_holds_something() {
        let sample = Process::new(std::process::id()).sample(0, 0.0).unwrap();
        assert!(sample.rss > 100_000 && sample.pss > 0 && sample.private > 0, "{sample:?}");
        assert!(sample.threads > 0 && sample.descriptors > 0 && sample.mappings > 0, "{sample:?}");
        assert_eq!(number_after("Rss:     12 kB\n", "Rss:"), Some(12));
    }
}
