//! The server under test: the real program over a repository of its own, started on a free port.
//!
//! Always true: a version appears in the repository complete, by one rename. Whoever drops the server ends it, and
//! its folder is gone with it.
//!
//! Not here: load, and what swaps mean.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::truth;

const READY_MAX: Duration = Duration::from_mins(1);
const STOP_MAX: Duration = Duration::from_secs(30);
const ANSWER_MAX: Duration = Duration::from_mins(1);

/// How the server is started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) onnxruntime: Option<PathBuf>,
    /// The core it is bound to.
    pub(crate) core: Option<usize>,
    pub(crate) arguments: Vec<String>,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    home: Home,
}

/// A temporary folder.
#[derive(Debug)]
struct Home(PathBuf);

impl Launch {
    /// Starts it over one version with these files and waits until it is ready.
    pub(crate) fn start(&self, files: &[(&str, Vec<u8>)]) -> Result<Server> {
        let home = Home::make()?;
        fs::create_dir_all(home.0.join("repository").join(truth::MODEL))?;
        home.put(1, files)?;
        let mut child = self.spawn(&home)?;
        match ready(&mut child, &home) {
            Ok(address) => Ok(Server { address, child, home }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    fn spawn(&self, home: &Home) -> Result<Child> {
        // The server must not depend on the current folder, nor the program's path.
        let program = std::path::absolute(&self.program)?;
        let mut command = if let Some(core) = self.core {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command.args(["serve", "--log-format", "json", "--http", "127.0.0.1:0"]);
        command.args(["--admin", "127.0.0.1:0", "--repository"]).arg(home.0.join("repository"));
        if let Some(library) = &self.onnxruntime {
            command.arg("--onnxruntime").arg(std::path::absolute(library)?);
        }
        // What an earlier run proved and decided must not make this one easier.
        command.env("TIDEGATE__STATE__PATH", home.0.join("state"));
        let log = File::create(home.log())?;
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("{} does not start", program.display()))
    }
}

fn ready(child: &mut Child, home: &Home) -> Result<SocketAddr> {
    let deadline = Instant::now() + READY_MAX;
    loop {
        let said = fs::read_to_string(home.log())?;
        if let Some(address) = said.lines().find_map(address_of_ready_line) {
            return Ok(address);
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended with {status} and said:\n{said}");
        }
        if Instant::now() > deadline {
            bail!("the server is not ready after {READY_MAX:?}; it said:\n{said}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn address_of_ready_line(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    fields["message"].as_str()?.starts_with("ready").then_some(())?;
    fields["http"].as_str()?.strip_prefix("http://")?.trim_end_matches('/').parse().ok()
}

impl Server {
    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a version aside; [`Server::put_up`] makes it appear.
    pub(crate) fn stage(&self, version: u64, files: &[(&str, Vec<u8>)]) -> Result<()> {
        self.home.stage(version, files)
    }

    /// Makes a staged version appear.
    pub(crate) fn put_up(&self, version: u64) -> Result<()> {
        self.home.put_up(version)
    }

    /// Removes a version's folder.
    pub(crate) fn take_down(&self, version: u64) -> Result<()> {
        Ok(fs::remove_dir_all(self.home.version(version))?)
    }

    /// `POST` with a JSON body on a connection of its own: status and body, read to the end.
    pub(crate) fn post(&self, path: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_nodelay(true)?;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("an answer without a status")?, body.to_owned()))
    }

    /// Whether the index shows a version as ready.
    pub(crate) fn is_ready(&self, version: u64) -> Result<bool> {
        let (status, body) = self.post("/v2/repository/index", "{}")?;
        anyhow::ensure!(status == 200, "the index answers {status}: {body}");
        let index: Value = serde_json::from_str(&body)?;
        let version = version.to_string();
        Ok(index.as_array().into_iter().flatten().any(|entry| {
            entry["name"] == truth::MODEL
                && entry["version"] == version
                && entry["state"] == "READY"
        }))
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The last lines that it wrote.
    pub(crate) fn last_words(&self) -> String {
        let said = fs::read(self.home.log()).unwrap_or_default();
        String::from_utf8_lossy(&said[said.len().saturating_sub(2_000)..]).into_owned()
    }

    /// Asks it to stop, as an orchestrator does, and waits.
    pub(crate) fn stop(mut self) -> Result<ExitStatus> {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let id = id.context("a process has an id above 0")?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + STOP_MAX;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the server still runs {STOP_MAX:?} after SIGTERM");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Home {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tidegate-swap-{}", std::process::id()));
        fs::create_dir_all(path.join("staging"))
            .with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }

    fn log(&self) -> PathBuf {
        self.0.join("server.log")
    }

    fn version(&self, version: u64) -> PathBuf {
        self.0.join("repository").join(truth::MODEL).join(version.to_string())
    }

    fn staged(&self, version: u64) -> PathBuf {
        self.0.join("staging").join(version.to_string())
    }

    fn stage(&self, version: u64, files: &[(&str, Vec<u8>)]) -> Result<()> {
        let folder = self.staged(version);
        fs::create_dir_all(&folder)?;
        for (name, content) in files {
            fs::write(folder.join(name), content)?;
        }
        Ok(())
    }

    fn put_up(&self, version: u64) -> Result<()> {
        let (from, to): (PathBuf, PathBuf) = (self.staged(version), self.version(version));
        fs::rename(&from, &to).with_context(|| format!("{} cannot be put up", Path::display(&to)))
    }

    fn put(&self, version: u64, files: &[(&str, Vec<u8>)]) -> Result<()> {
        self.stage(version, files)?;
        self.put_up(version)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
