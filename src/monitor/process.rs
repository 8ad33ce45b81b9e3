//! What the kernel says about this process, under the names that Prometheus' client libraries gave it.

use std::{fs, num::NonZeroU64};

use rustix::param::{clock_ticks_per_second, page_size};

/// Resources of this process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Process {
    /// Processor time of all threads, in user and kernel mode, in seconds.
    pub(super) cpu: f64,
    /// Resident memory in bytes.
    pub(super) resident: u64,
    /// Address space in bytes.
    pub(super) virtual_memory: u64,
    /// When it was started, in seconds since 1970.
    pub(super) started: f64,
    /// Threads.
    pub(super) threads: u64,
    /// Open file descriptors.
    pub(super) descriptors: u64,
    /// Most file descriptors that it may have; `None` for no limit.
    pub(super) descriptors_max: Option<u64>,
}

impl Process {
    /// Reads `/proc`; `None` where there is none.
    pub(super) fn read() -> Option<Self> {
        let text = |path| fs::read_to_string(path).ok();
        let process = Self::parse(
            &text("/proc/self/stat")?,
            &text("/proc/stat")?,
            &text("/proc/self/limits")?,
            NonZeroU64::new(clock_ticks_per_second())?,
            page_size() as u64,
        )?;
        // The folder itself is open while it is read.
        let descriptors = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64;
        Some(Self { descriptors, ..process })
    }

    /// Reads the files of proc(5) that these texts are.
    fn parse(
        stat: &str,
        machine: &str,
        limits: &str,
        ticks: NonZeroU64,
        page: u64,
    ) -> Option<Self> {
        // The name in parentheses may hold anything; the third field follows it.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        #[expect(clippy::cast_precision_loss, reason = "ticks since the start, below 2^53")]
        let seconds = |ticked: u64| ticked as f64 / ticks.get() as f64;
        let boot: f64 =
            machine.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
        let most = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        Some(Self {
            cpu: seconds(field(14)? + field(15)?),
            resident: field(24)? * page,
            virtual_memory: field(23)?,
            started: boot + seconds(field(22)?),
            threads: field(20)?,
            descriptors: 0,
            descriptors_max: most.split_ascii_whitespace().next()?.parse().ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 0 1 0 0 0 250 50 0 0 20 0 9 0 1000 8192 3 18446744073709551615";
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        let ticks = NonZeroU64::new(100).unwrap();
        let parse =
            |limits| Process::parse(stat, "cpu 1\nbtime 500\n", limits, ticks, 4096).unwrap();
        let expected = Process {
            cpu: 3.0,
            resident: 12_288,
            virtual_memory: 8192,
            started: 510.0,
            threads: 9,
            descriptors: 0,
            descriptors_max: Some(1024),
        };
        assert_eq!(parse(limits), expected);
        assert_eq!(parse("Max open files  unlimited unlimited files").descriptors_max, None);
        assert_eq!(Process::parse("", "", "", ticks, 4096), None);
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let process = Process::read().unwrap();
        assert!(process.resident > 1 << 20 && process.descriptors >= 3, "{process:?}");
        assert!(process.started > 1e9 && process.threads >= 1, "{process:?}");
    }
}
