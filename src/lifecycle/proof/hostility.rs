//! Attempts to break out of the sandbox, for its own test: each must be refused.
//!
//! Not here: what is expected of each attempt (the tests).

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{net::UnixStream, process::CommandExt as _},
    process::Command,
};

use serde::{Deserialize, Serialize};

use super::child::Preparation;

/// Something that a model must never be able to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was tried.
    pub what: String,
    /// How it was refused; `None` if it was not.
    pub refusal: Option<String>,
}

/// Tries all of it.
pub(super) fn attempts(prepared: &Preparation) -> Vec<Attempt> {
    let mut all = Vec::new();
    let mut attempt = |what: &str, outcome: std::io::Result<()>| {
        let refusal = outcome.err().map(|error| error.to_string());
        all.push(Attempt { what: what.to_owned(), refusal });
    };
    attempt("read a file", File::open("/etc/passwd").map(drop));
    attempt("read a variable", File::open("/proc/self/environ").map(drop));
    attempt("list a folder", fs::read_dir("/").map(drop));
    attempt("write a file", fs::write("/tmp/tidegate-self-test", b"x"));
    attempt("append to a file", File::options().append(true).open("/dev/null").map(drop));
    attempt("make a folder", fs::create_dir("/tmp/tidegate-self-test"));
    attempt("remove a file", fs::remove_file("/tmp/tidegate-self-test"));
    attempt("rename a file", fs::rename("/tmp/tidegate-self-test", "/tmp/tidegate"));
    attempt("connect", TcpStream::connect("127.0.0.1:9").map(drop));
    attempt("listen", TcpListener::bind("127.0.0.1:0").map(drop));
    attempt("send datagrams", UdpSocket::bind("127.0.0.1:0").map(drop));
    attempt("use a local socket", UnixStream::pair().map(drop));
    attempt("start a program", Command::new("/bin/true").spawn().map(drop));
    attempt("become a program", Err(Command::new("/bin/true").exec()));
    let parent = i32::try_from(prepared.parent).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(parent) = parent {
        let signal = rustix::process::test_kill_process(parent);
        attempt("send a signal", signal.map_err(Into::into));
    }
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    let dumped = rustix::process::set_dumpable_behavior(dumpable);
    attempt("be looked into", dumped.map_err(Into::into));
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let raised = rustix::process::setrlimit(rustix::process::Resource::Core, unlimited);
    attempt("raise a limit", raised.map_err(Into::into));
    let too_much = usize::try_from(prepared.limits.memory_max).unwrap_or(usize::MAX / 2);
    let mut memory = Vec::<u8>::new();
    let taken = memory.try_reserve_exact(too_much.saturating_add(1 << 20));
    attempt("take too much memory", taken.map_err(std::io::Error::other));
    all
}
