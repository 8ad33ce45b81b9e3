//! Restarts behind a proxy: two servers, one of them told to stop and started again at a time, and no client notices.
//!
//! The proxies are nginx and `HAProxy` as Debian ships them, with what their manuals advise: connections to the servers
//! are kept, and a request is given to the other server only where no connection could be made.
//! `scripts/prepare-tests.sh` installs them.
//!
//! nginx asks no server whether it is ready, so one that has just been started says that it is not, and clients ask
//! again. That is an answer and no loss; whatever else is not an answer with 200 is one.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{
    http::{Connection, Request},
    repository::Repository,
    server::{Launch, Server, eventually, free_address},
    tensors::{add_sub, infer},
};

const CLIENTS: usize = 8;

/// A proxy that is running, with its files; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
}

impl Proxy {
    /// Starts a program with the configuration in a file, which `arguments` names as `FILE` and its folder as `FOLDER`.
    pub(crate) fn start(
        program: &str,
        arguments: &[&str],
        configuration: impl Fn(SocketAddr, &str) -> String,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let file = folder.path().join("proxy.conf");
        let path = folder.path().to_str().unwrap();
        fs::write(&file, configuration(address, path)).unwrap();
        let arguments = arguments.iter().map(|argument| {
            argument.replace("FILE", file.to_str().unwrap()).replace("FOLDER", path)
        });
        let said = fs::File::create(folder.path().join("said")).unwrap();
        let child = Command::new(find(program))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{program} does not run ({error}): run scripts/prepare-tests.sh")
            });
        let mut proxy = Self { child, address, folder };
        eventually("the proxy answers", || {
            if let Some(status) = proxy.child.try_wait().unwrap() {
                let said = fs::read_to_string(proxy.folder.path().join("said")).unwrap();
                panic!("{program} ended with {status}: {said}");
            }
            let answer = Connection::try_open(address)?.try_ask(&Request::get("/v2")).ok()?;
            (answer.status == 200).then_some(())
        });
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Programs for the administrator are in no user's path.
fn find(program: &str) -> PathBuf {
    let path = PathBuf::from("/usr/sbin").join(program);
    if path.exists() { path } else { program.into() }
}

/// Restarts two servers behind a proxy in turn, while clients ask.
fn restart_behind(start: impl FnOnce([SocketAddr; 2]) -> Proxy) {
    let repository = Repository::of(&["add_sub"]);
    let addresses = [free_address(), free_address()];
    let launch = || Launch::of(&repository).set("SERVER__DRAIN_DELAY", "300ms");
    let mut servers = addresses.map(|address| launch().start_at(address));
    let proxy = start(addresses);
    let answered: [AtomicUsize; CLIENTS] = Default::default();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let ask = |answers: &AtomicUsize| ask_until(proxy.address, answers, &done);
        let clients: Vec<_> =
            answered.iter().map(|answers| scope.spawn(move || ask(answers))).collect();
        let each_has_answers = || {
            let seen: Vec<usize> = answered.iter().map(|answers| answers.load(Relaxed)).collect();
            let went_on =
                || answered.iter().zip(&seen).all(|(now, seen)| now.load(Relaxed) > seen + 10);
            eventually("every client is answered", || {
                (went_on() || clients.iter().any(thread::ScopedJoinHandle::is_finished))
                    .then_some(())
            });
        };
        for restart in 0..10 {
            each_has_answers();
            let server: &mut Server = &mut servers[restart % 2];
            server.terminate();
            assert_eq!(server.exit_code(Duration::from_secs(20)), 0);
            each_has_answers();
            *server = launch().start_at(addresses[restart % 2]);
        }
        each_has_answers();
        done.store(true, Relaxed);
        let lost: Vec<String> =
            clients.into_iter().filter_map(|client| client.join().unwrap().err()).collect();
        assert!(lost.is_empty(), "{lost:?}");
    });
}

/// Asks on a kept connection, and opens another where the proxy ends it; what was lost first, if anything.
fn ask_until(proxy: SocketAddr, answers: &AtomicUsize, done: &AtomicBool) -> Result<(), String> {
    let request = Request::post_json(&infer("add_sub"), &add_sub());
    let mut kept: Option<Connection> = None;
    while !done.load(Relaxed) {
        let mut connection = kept.take().unwrap_or_else(|| Connection::open(proxy));
        let number = answers.load(Relaxed);
        let lost = |what: String| format!("after {number} answers: {what}");
        let answer = connection.try_ask(&request).map_err(|error| lost(error.to_string()))?;
        match answer.status {
            200 => _ = answers.fetch_add(1, Relaxed),
            _ => return Err(lost(format!("{answer:?}"))),
        }
        kept = (!answer.closes()).then_some(connection);
    }
    Ok(())
}

#[test]
fn restarts_behind_nginx_lose_nothing() {
    restart_behind(|[one, other]| {
        Proxy::start("nginx", &["-e", "stderr", "-p", "FOLDER", "-c", "FILE"], |address, folder| {
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
                .concat();
            format!(
                "daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n\
                 http {{\naccess_log off;\n{temporary}\
                 upstream tidegate {{ server {one} max_fails=0; server {other} max_fails=0; keepalive 16; }}\n\
                 server {{ listen {address};\nlocation / {{ proxy_pass http://tidegate;\n\
                 proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n"
            )
        })
    });
}

#[test]
fn restarts_behind_haproxy_lose_nothing() {
    restart_behind(|[one, other]| {
        Proxy::start("haproxy", &["-db", "-f", "FILE"], |address, _| {
            format!(
                "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n \
                 option redispatch 1\n\
                 frontend clients\n bind {address}\n default_backend tidegate\n\
                 backend tidegate\n option httpchk GET /v2/health/ready\n \
                 server one {one} check inter 100ms\n server other {other} check inter 100ms\n"
            )
        })
    });
}
