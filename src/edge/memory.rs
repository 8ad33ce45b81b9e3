//! Memory that this process may use: the machine's, or less where a cgroup says so.

use std::path::{Path, PathBuf};

/// A quarter of the memory that this process may use, 1 GiB at most: for what many requests, or one run, may take.
pub fn share_of_memory() -> u64 {
    share(limit()) as u64
}

/// The bytes that bodies and answers may take together, of the memory that the process may use: a quarter, 1 GiB at
/// most.
pub(super) fn share(limit: Option<u64>) -> usize {
    const MAX: u64 = 1 << 30;
    let share = limit.map_or(MAX, |limit| (limit / 4).min(MAX));
    usize::try_from(share).unwrap_or(usize::MAX)
}

/// The bytes of memory that this process may use; `None` where the system does not tell.
pub(super) fn limit() -> Option<u64> {
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = limit_of_groups(Path::new("/sys/fs/cgroup"), &group);
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    [groups, machine].into_iter().flatten().min()
}

/// The smallest limit of a process's control groups and those above them, as cgroups(7) lists them.
fn limit_of_groups(root: &Path, groups: &str) -> Option<u64> {
    let mut smallest = None::<u64>;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        // Version 2 has one hierarchy and no names, version 1 one for memory.
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let inner = root.join(path.trim_start_matches('/'));
        // In a container the path may be of the host: then only the root is there.
        let above = inner.ancestors().take_while(|folder| folder.starts_with(&root));
        for folder in above.map(PathBuf::from).chain([root.clone()]) {
            let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            // "max" is no number.
            if let Ok(limit) = text.trim().parse() {
                smallest = Some(smallest.map_or(limit, |smallest| smallest.min(limit)));
            }
        }
    }
    smallest
}

/// The machine's memory, of the text of `proc_meminfo(5)`.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_quarter_of_a_small_machine_and_never_more_than_a_gibibyte() {
        assert_eq!(share(Some(1 << 30)), 1 << 28);
        assert_eq!(share(Some(1 << 40)), 1 << 30);
        assert_eq!(share(None), 1 << 30);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("memory.max", "max\n");
        write("pod/memory.max", "1073741824\n");
        write("pod/container/memory.max", "max\n");
        let limit = |groups: &str| limit_of_groups(root.path(), groups);
        assert_eq!(limit("0::/pod/container\n"), Some(1 << 30));
        assert_eq!(limit("0::/\n"), None);
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/docker/memory.limit_in_bytes", "536870912\n");
        assert_eq!(limit("4:cpu,cpuacct:/x\n3:memory:/docker\n"), Some(1 << 29));
        // In a container: the path is the host's.
        write("memory.max", "268435456\n");
        assert_eq!(limit("0::/host/only\n"), Some(1 << 28));
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24628060 kB\n"), Some(24_628_060 * 1024));
        assert_eq!(total("MemTotal: lots\n"), None);
    }
}
