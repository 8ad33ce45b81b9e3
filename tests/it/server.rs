//! A running `tidegate`: started on free ports, listened to, killed when dropped.
//!
//! Always true: a [`Server`] that a test holds has said that it is ready, and its output is being drained, so
//! that it can never block on a full pipe. Whatever goes wrong on the way prints what the server said.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, PipeReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    http::{Connection, Request, Response},
    repository::Repository,
};

/// How long anything may take that should take moments; generous, for busy machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the server that a test needs.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    program: PathBuf,
    repository: Repository,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    /// Where the repository is, if not in its folder.
    root: Option<PathBuf>,
    /// Where it runs, if not where the tests do.
    folder: Option<PathBuf>,
    bare: bool,
    remembers: bool,
    descriptors: Option<u64>,
}

/// A server that is running.
#[derive(Debug)]
pub(crate) struct Server {
    /// The data plane.
    pub(crate) http: SocketAddr,
    /// The admin plane.
    pub(crate) admin: SocketAddr,
    child: Child,
    said: Said,
    may_crash: bool,
    /// Kept as long as the server may look at it.
    _repository: Repository,
}

/// Everything that a server has written, line by line.
#[derive(Debug, Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Launch {
    /// Serves this repository.
    pub(crate) fn of(repository: &Repository) -> Self {
        Self {
            program: env!("CARGO_BIN_EXE_tidegate").into(),
            repository: repository.clone(),
            environment: Vec::new(),
            arguments: Vec::new(),
            root: None,
            folder: None,
            bare: false,
            remembers: false,
            descriptors: None,
        }
    }

    /// Lets it have so many file descriptors at most.
    pub(crate) fn descriptors(mut self, most: u64) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// Keeps its state where the next server over this repository finds it.
    pub(crate) fn remembering(mut self) -> Self {
        self.remembers = true;
        self
    }

    /// Sets `TIDEGATE__<SECTION>__<KEY>`.
    pub(crate) fn set(mut self, section_and_key: &str, value: &str) -> Self {
        self.environment.push((format!("TIDEGATE__{section_and_key}"), value.to_owned()));
        self
    }

    /// Serves a repository in an object store, with the folder for its state only.
    #[cfg(feature = "s3")]
    pub(crate) fn root(mut self, address: &str) -> Self {
        self.root = Some(address.into());
        self
    }

    /// Sets any variable of the environment.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it in this folder.
    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Adds arguments to `serve`.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Runs another program file, without any library in reach.
    pub(crate) fn bare(mut self, program: PathBuf) -> Self {
        self.program = program;
        self.bare = true;
        self
    }

    /// Starts it and waits until it says that it is ready.
    pub(crate) fn start(self) -> Server {
        self.start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts it with this address of the data plane and waits until it says that it is ready.
    pub(crate) fn start_at(self, http: SocketAddr) -> Server {
        let repository = self.repository.clone();
        let (mut child, said) = self.spawn(&http.to_string(), "127.0.0.1:0");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((http, admin)) = said.ready() {
                return Server {
                    http,
                    admin,
                    child,
                    said,
                    may_crash: false,
                    _repository: repository,
                };
            }
            if let Some(status) = child.try_wait().unwrap() {
                thread::park_timeout(Duration::from_millis(100)); // its last lines
                panic!("the server ended with {status} before it was ready:\n{}", said.text());
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("the server was not ready within {PATIENCE:?}:\n{}", said.text());
            }
            thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Starts it on ports chosen here and waits only until it is alive: for servers that do not get ready.
    pub(crate) fn start_until_alive(self) -> Server {
        let (http, admin) = (free_address(), free_address());
        let repository = self.repository.clone();
        let (child, said) = self.spawn(&http.to_string(), &admin.to_string());
        let server = Server { http, admin, child, said, may_crash: false, _repository: repository };
        eventually("the server is alive", || {
            let answered = Connection::try_open(admin)?.try_ask(&Request::get("/livez")).ok()?;
            (answered.status == 200).then_some(())
        });
        server
    }

    /// Starts it with its output, errors included, in a pipe that nobody reads but the caller; waits until it is alive.
    pub(crate) fn start_unread(self) -> (Server, PipeReader) {
        let (http, admin) = (free_address(), free_address());
        let repository = self.repository.clone();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = self.command(&http.to_string(), &admin.to_string());
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let child = command.spawn().unwrap();
        let said = Said::default();
        let server = Server { http, admin, child, said, may_crash: false, _repository: repository };
        eventually("the server is alive", || {
            let answered = Connection::try_open(admin)?.try_ask(&Request::get("/livez")).ok()?;
            (answered.status == 200).then_some(())
        });
        (server, reader)
    }

    /// Starts it where it must refuse to start: its exit status and all it said.
    pub(crate) fn fail(self) -> (ExitStatus, String) {
        self.fail_at("127.0.0.1:0", "127.0.0.1:0")
    }

    /// The same at these addresses.
    pub(crate) fn fail_at(self, http: &str, admin: &str) -> (ExitStatus, String) {
        let (mut child, said) = self.spawn(http, admin);
        let status = exit_of(&mut child, PATIENCE)
            .unwrap_or_else(|| panic!("the server should not run:\n{}", said.text()));
        eventually("its last words", || (!said.text().is_empty()).then_some(()));
        (status, said.text())
    }

    fn command(&self, http: &str, admin: &str) -> Command {
        let mut command = Command::new(&self.program);
        if self.bare {
            command.env_remove("ORT_DYLIB_PATH").env_remove("LD_LIBRARY_PATH");
        } else {
            assert_library_is_there();
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let place = if self.remembers { "state".to_owned() } else { format!("state-{}", serial()) };
        command.env("TIDEGATE__STATE__PATH", self.repository.beside(&place));
        // Each row is counted, however quickly a test sends.
        command.env("TIDEGATE__DRIFT__VALUES_PER_SECOND", "1000000000");
        command
            .args(["serve", "--http", http, "--admin", admin, "--repository"])
            .arg(self.root.as_deref().unwrap_or(self.repository.path()))
            .args(&self.arguments)
            .envs(self.environment.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(most) = self.descriptors {
            command = limited(&command, most);
        }
        command
    }

    fn spawn(self, http: &str, admin: &str) -> (Child, Said) {
        let mut child = self
            .command(http, admin)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.program.display()));
        let said = Said::default();
        said.listen(child.stdout.take().unwrap());
        said.listen(child.stderr.take().unwrap());
        (child, said)
    }
}

impl Server {
    /// Starts a server over these models, with default settings.
    pub(crate) fn over(repository: &Repository) -> Self {
        Launch::of(repository).start()
    }

    /// A new connection to the data plane.
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.http)
    }

    /// Asks the data plane on a connection of its own.
    pub(crate) fn ask(&self, request: &Request) -> Response {
        self.connect().ask(request)
    }

    /// `GET` on the data plane.
    pub(crate) fn get(&self, path: &str) -> Response {
        self.ask(&Request::get(path))
    }

    /// `POST` with a JSON body on the data plane.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.ask(&Request::post_json(path, body))
    }

    /// `GET` on the admin plane.
    pub(crate) fn admin(&self, path: &str) -> Response {
        Connection::open(self.admin).ask(&Request::get(path))
    }

    /// The repository index, whatever state the versions are in.
    pub(crate) fn index(&self) -> Vec<Value> {
        let response = self.post("/v2/repository/index", &serde_json::json!({}));
        assert_eq!(response.status, 200, "{response:?}");
        response.json().as_array().expect("the index is an array").clone()
    }

    /// The entry of one version in the index.
    pub(crate) fn indexed(&self, model: &str, version: &str) -> Option<Value> {
        let of_version = |entry: &&Value| {
            entry["name"] == model && entry.get("version").is_none_or(|v| v == version)
        };
        self.index().iter().find(of_version).cloned()
    }

    /// Waits until a version is in this state; gives the index entry.
    pub(crate) fn wait_for_state(&self, model: &str, version: &str, state: &str) -> Value {
        eventually(&format!("{model}/{version} is {state}"), || {
            self.indexed(model, version).filter(|entry| entry["state"] == state)
        })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server has written this: it writes what it logs a moment later.
    pub(crate) fn wait_until_said(&self, what: &str) {
        eventually(&format!("`{what}` is said"), || self.said().contains(what).then_some(()));
    }

    /// All lines that the server has written so far.
    pub(crate) fn said(&self) -> String {
        self.said.text()
    }

    /// Asks it to stop, as an orchestrator does.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Its exit code, once it has ended.
    pub(crate) fn exit_code(&mut self, patience: Duration) -> i32 {
        let status = exit_of(&mut self.child, patience)
            .unwrap_or_else(|| panic!("still running after {patience:?}:\n{}", self.said.text()));
        status.code().unwrap_or_else(|| panic!("ended by {status}:\n{}", self.said.text()))
    }

    /// The signal that ended it, once it has ended: here a crash is what a test is about.
    pub(crate) fn ended_by(mut self, patience: Duration) -> i32 {
        let status = exit_of(&mut self.child, patience)
            .unwrap_or_else(|| panic!("still running after {patience:?}:\n{}", self.said.text()));
        self.may_crash = true;
        status.signal().unwrap_or_else(|| panic!("ended by {status}:\n{}", self.said.text()))
    }

    /// Whether the process still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let crashed = matches!(self.child.try_wait(), Ok(Some(status)) if status.code().is_none());
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the server said:\n{}", self.said.text());
        } else {
            assert!(!crashed || self.may_crash, "the server crashed:\n{}", self.said.text());
        }
    }
}

impl Said {
    fn listen(&self, stream: impl Read + Send + 'static) {
        let said = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                said.0.lock().unwrap().push(line);
            }
        });
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().iter().fold(String::new(), |mut text, line| {
            writeln!(text, "{line}").unwrap();
            text
        })
    }

    /// The addresses of the ready line, once it is there.
    fn ready(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.0.lock().unwrap().iter().find_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let fields = line.get("fields").unwrap_or(&line);
            fields["message"].as_str()?.starts_with("ready").then_some(())?;
            Some((address(&fields["http"])?, address(&fields["admin"])?))
        })
    }
}

fn address(url: &Value) -> Option<SocketAddr> {
    url.as_str()?.strip_prefix("http://")?.trim_end_matches('/').parse().ok()
}

/// Polls until `condition` gives something; fails with `what` after [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, condition)
}

/// Polls until `condition` gives something; fails with `what` after so long.
pub(crate) fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// The same command, started by a shell that lowers its limit of file descriptors first.
fn limited(command: &Command, descriptors: u64) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -n {descriptors} && exec \"$@\""), "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

/// A number that no other launch of this process has.
fn serial() -> usize {
    static LAUNCHES: AtomicUsize = AtomicUsize::new(0);
    LAUNCHES.fetch_add(1, Ordering::Relaxed)
}

/// A loopback address that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn exit_of(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::park_timeout(Duration::from_millis(5));
    }
    let _ = child.kill();
    None
}

/// Fails with the next step where ONNX Runtime's library is not where the server looks for it.
fn assert_library_is_there() {
    if std::env::var_os("ORT_DYLIB_PATH").is_some() {
        return;
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_tidegate")).with_file_name("lib");
    let found = std::fs::read_dir(&beside).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().contains("onnxruntime"))
        })
    });
    assert!(
        found,
        "ONNX Runtime's library is neither in {} nor named by ORT_DYLIB_PATH: run `make build` first",
        beside.display()
    );
}

/// The library that tests run with.
pub(crate) fn installed_library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return path.into();
    }
    PathBuf::from(env!("CARGO_BIN_EXE_tidegate")).with_file_name("lib").join("libonnxruntime.so")
}
