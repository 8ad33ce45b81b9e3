//! The sandbox of a process that looks at a model nobody trusts yet.
//!
//! It is put on by the process itself, before the first byte of the model is read, and cannot be taken off. Files are
//! closed first, by the template, because landlock holds for a thread and those it starts, and the engine's library may
//! start some; a copy inherits that, and puts the rest on itself. What is left: memory up to a limit, threads, reading
//! libraries and locales, and the pipes that the process was given. Always true:
//! - The process ends when its parent does, never dumps core, and is the first that the system ends when memory is
//!   short.
//! - A layer that the kernel lacks is reported, never passed over in silence.
//!
//! Resource limits bound what it uses, landlock what files it reaches, seccomp which system calls it makes: only
//! those on a list. Each refuses with an error that the engine reports, none kills.
//!
//! Not here: deadlines (the parent kills), what is done inside (`child`).

#[cfg(not(target_os = "linux"))]
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ProofLimits;

/// What protects the rest of the machine from a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Which files can be reached.
    pub landlock: Layer,
    /// Which system calls can be made.
    pub seccomp: Layer,
    /// How much memory and CPU time can be used.
    pub rlimits: Layer,
}

/// One layer of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// It holds.
    Applied,
    /// The kernel does not have it, or forbids it; with what was said.
    Unsupported(String),
}

impl Sandbox {
    /// The layers that are off, for people; `None` if none is.
    pub fn gaps(&self) -> Option<String> {
        let layers =
            [("landlock", &self.landlock), ("seccomp", &self.seccomp), ("rlimits", &self.rlimits)];
        let gaps: Vec<_> = layers
            .into_iter()
            .filter_map(|(name, layer)| match layer {
                Layer::Applied => None,
                Layer::Unsupported(reason) => Some(format!("{name} ({reason})")),
            })
            .collect();
        (!gaps.is_empty()).then(|| gaps.join(", "))
    }
}

impl Layer {
    #[cfg(target_os = "linux")]
    fn of<E: std::fmt::Display>(outcome: Result<(), E>) -> Self {
        match outcome {
            Ok(()) => Self::Applied,
            Err(error) => Self::Unsupported(error.to_string()),
        }
    }
}

/// A sandbox that is half on: files are closed.
#[derive(Debug)]
pub(super) struct Begun {
    landlock: Layer,
}

/// Where there is no sandbox to put on.
#[cfg(not(target_os = "linux"))]
pub(super) fn begin(_parent: u32, _library: Option<&Path>) -> Result<Begun, String> {
    Ok(Begun { landlock: Layer::Unsupported("only Linux has it".to_owned()) })
}

#[cfg(not(target_os = "linux"))]
impl Begun {
    /// Nothing more to put on.
    pub(super) fn complete(
        self,
        _status: Option<&std::fs::File>,
        _limits: &ProofLimits,
    ) -> Sandbox {
        let missing = self.landlock;
        Sandbox { landlock: missing.clone(), seccomp: missing.clone(), rlimits: missing }
    }
}

/// Where the system does not tell, the parent ends the process.
#[cfg(not(target_os = "linux"))]
pub(super) fn end_with(_parent: u32) -> Result<(), String> {
    Ok(())
}

#[cfg(target_os = "linux")]
pub(super) use linux::{begin, end_with};

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        fs::{self, File},
        os::unix::fs::FileExt as _,
        path::{Path, PathBuf},
    };

    use landlock::{
        ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
        RulesetStatus, Scope, path_beneath_rules,
    };
    use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    use super::{Begun, Layer, ProofLimits, Sandbox};

    /// Libraries, what the C library reads of locales and of the machine. Nothing in them is a secret; places that are
    /// not there are passed over.
    const READABLE: [&str; 9] = [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/share/locale",
        "/etc/ld.so.cache",
        "/proc/cpuinfo",
        "/sys/devices/system",
    ];

    /// Files that may be open at once: its pipes, and locale files.
    const FILES_MAX: u64 = 32;

    /// The calls that a loaded engine needs to load and run a model, whatever they are given.
    const PLAIN: &[libc::c_long] = &[
        // Its pipes and its socket, files that landlock lets it open, and those that it is handed.
        libc::SYS_read,
        libc::SYS_recvmsg,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_getdents64,
        libc::SYS_fcntl,
        libc::SYS_ppoll,
        // Memory.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_mincore,
        libc::SYS_membarrier,
        libc::SYS_get_mempolicy,
        // Threads and signals within the process.
        libc::SYS_clone3,
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_getcpu,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
        // Time, chance and the machine.
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
        libc::SYS_getrusage,
        libc::SYS_sysinfo,
        libc::SYS_uname,
        // Older forms of these.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_time,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_getrlimit,
    ];

    type Failure = Box<dyn std::error::Error + Send + Sync>;

    /// Has the process end when its parent does.
    ///
    /// # Errors
    /// If the process could outlive it.
    pub(in super::super) fn end_with(parent: u32) -> Result<(), String> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| format!("the end of its parent cannot be heard of: {error}"))?;
        // The parent may have ended before that was set up.
        let current = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        if current.and_then(|pid| u32::try_from(pid).ok()) != Some(parent) {
            return Err("its parent has ended".to_owned());
        }
        Ok(())
    }

    /// Closes files; `parent` is the process that started this one, `library` the engine's where it was named.
    ///
    /// # Errors
    /// If the process could outlive its parent.
    pub(in super::super) fn begin(parent: u32, library: Option<&Path>) -> Result<Begun, String> {
        end_with(parent)?;
        // What fails here only makes the process a worse neighbour: it has no more rights for it.
        let _ = fs::write("/proc/self/oom_score_adj", "1000");
        let _ = rustix::process::setpriority_process(None, 10);
        let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        Ok(Begun { landlock: Layer::of(close_files(library)) })
    }

    impl Begun {
        /// Bounds what can be used, and which calls can be made; `status` is `/proc/self/status` of this process or
        /// the one that it is a copy of, opened before files were closed.
        pub(in super::super) fn complete(
            self,
            status: Option<&File>,
            limits: &ProofLimits,
        ) -> Sandbox {
            Sandbox {
                rlimits: Layer::of(bound(status, limits)),
                landlock: self.landlock,
                seccomp: Layer::of(filter_calls()),
            }
        }
    }

    fn bound(status: Option<&File>, limits: &ProofLimits) -> Result<(), Failure> {
        // What is mapped by now is the program and its libraries, not the model's.
        let mapped = status_now(status)
            .and_then(|status| status_bytes(&status, "VmSize:"))
            .ok_or("/proc/self/status does not say what is mapped")?;
        let seconds = limits.cpu_time_max.as_millis().div_ceil(1000);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX).max(1);
        let bounds = [
            (Resource::As, mapped.saturating_add(limits.memory_max), 0),
            // The first limit is told by SIGXCPU, the second one kills.
            (Resource::Cpu, seconds, 1),
            (Resource::Nofile, FILES_MAX, 0),
            (Resource::Fsize, 0, 0),
            (Resource::Core, 0, 0),
        ];
        for (resource, wanted, spare) in bounds {
            let ceiling = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let maximum = wanted.saturating_add(spare).min(ceiling);
            let limit = Rlimit { current: Some(wanted.min(maximum)), maximum: Some(maximum) };
            rustix::process::setrlimit(resource, limit)?;
        }
        Ok(())
    }

    fn close_files(library: Option<&Path>) -> Result<(), Failure> {
        // Landlock holds for a thread and those it starts.
        let threads = fs::read_dir("/proc/self/task")?.count();
        if threads != 1 {
            return Err(format!("{threads} threads run already").into());
        }
        let abi = ABI::V7;
        let named = |name| std::env::var(name).unwrap_or_default();
        let listed = format!("{}:{}", named("LD_LIBRARY_PATH"), named("LOCPATH"));
        let listed = listed.split(':').map(PathBuf::from);
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("lib")));
        let variable = PathBuf::from(named("ORT_DYLIB_PATH"));
        let readable = READABLE.iter().map(PathBuf::from).chain(listed).chain(beside);
        let readable = readable.chain([variable]).chain(library.map(Path::to_owned));
        let readable = readable.filter(|path| path.is_absolute());
        let status = Ruleset::default()
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?
            .add_rules(path_beneath_rules(readable, AccessFs::ReadFile | AccessFs::ReadDir))?
            .restrict_self()?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err("the kernel has no landlock".into()),
            RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
        }
    }

    fn filter_calls() -> Result<(), Failure> {
        // The C library asks for `clone3` first and takes `clone` where there is none; what `clone3` would start
        // stands in memory that a filter cannot read.
        let absent = filter(
            [(libc::SYS_clone3, vec![])],
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        )?;
        let listed = filter(
            permitted()?,
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            SeccompAction::Allow,
        )?;
        // The second filter allows neither setting a filter nor anything else that would be needed for it.
        seccompiler::apply_filter_all_threads(&absent)?;
        seccompiler::apply_filter_all_threads(&listed)?;
        Ok(())
    }

    fn filter(
        rules: impl IntoIterator<Item = (libc::c_long, Vec<SeccompRule>)>,
        otherwise: SeccompAction,
        then: SeccompAction,
    ) -> Result<BpfProgram, Failure> {
        let arch = std::env::consts::ARCH.try_into()?;
        let rules = rules.into_iter().collect();
        Ok(SeccompFilter::new(rules, otherwise, then, arch)?.try_into()?)
    }

    /// All calls that are allowed, some only with certain arguments.
    fn permitted() -> Result<Vec<(libc::c_long, Vec<SeccompRule>)>, Failure> {
        let mut calls: Vec<_> = PLAIN.iter().map(|call| (*call, vec![])).collect();
        let own = u64::from(std::process::id());
        let is = |index, value| condition(index, SeccompCmpOp::Eq, value);
        let read_only = |index| {
            let mask = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
            let mask = u64::from(mask.unsigned_abs());
            condition(index, SeccompCmpOp::MaskedEq(mask), 0)
        };
        let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
        let only = |conditions: Vec<_>| -> Result<_, Failure> {
            let conditions = conditions.into_iter().collect::<Result<Vec<_>, Failure>>()?;
            Ok(SeccompRule::new(conditions)?)
        };
        let named = u64::from(libc::PR_SET_NAME.unsigned_abs());
        let memory_named = u64::from(libc::PR_SET_VMA.unsigned_abs());
        calls.extend([
            (
                libc::SYS_clone,
                vec![only(vec![condition(0, SeccompCmpOp::MaskedEq(thread), thread)])?],
            ),
            (libc::SYS_openat, vec![only(vec![read_only(2)])?]),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_open, vec![only(vec![read_only(1)])?]),
            (libc::SYS_tgkill, vec![only(vec![is(0, own)])?]),
            // Reading its own limits, not setting any.
            (libc::SYS_prlimit64, vec![only(vec![is(0, 0), wide(2, 0)])?]),
            (libc::SYS_prctl, vec![only(vec![is(0, named)])?, only(vec![is(0, memory_named)])?]),
        ]);
        Ok(calls)
    }

    fn condition(
        index: u8,
        compare: SeccompCmpOp,
        value: u64,
    ) -> Result<SeccompCondition, Failure> {
        Ok(SeccompCondition::new(index, SeccompCmpArgLen::Dword, compare, value)?)
    }

    /// A pointer is compared with all its bits.
    fn wide(index: u8, value: u64) -> Result<SeccompCondition, Failure> {
        Ok(SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)?)
    }

    fn status_now(status: Option<&File>) -> Option<String> {
        let mut text = [0; 8192];
        let length = status?.read_at(&mut text, 0).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    fn status_bytes(status: &str, key: &str) -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }
}
