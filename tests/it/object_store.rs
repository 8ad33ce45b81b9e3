//! Repositories in an object store: the real S3 API, spoken by moto's server, also over connections that break.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tidegate::{
    model::VersionId,
    source::{Mirror, Settings},
};

use crate::{
    clients::python,
    repository::{Repository, source},
    server::{Launch, eventually},
    tensors::{add_sub, infer},
};

/// Longer than any of this takes, however busy the machine.
const PATIENCE: Duration = Duration::from_mins(2);
pub(crate) const SECRET: &str = "canary-secret-canary";

/// An S3 server of its own; it ends with the test.
pub(crate) struct S3 {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl S3 {
    pub(crate) fn start() -> Self {
        Self::start_at(0)
    }

    /// Starts it at a port; 0: at any.
    pub(crate) fn start_at(port: u16) -> Self {
        let mut process = Command::new(python())
            .args(["-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            // Pages of a listing, so that few objects make many.
            .env("MOTO_S3_DEFAULT_MAX_KEYS", "3")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let running = lines.find_map(|line| {
            line.unwrap().split_once("Running on http://").map(|(_, address)| address.to_owned())
        });
        let running = running.expect("moto.server says where it listens: is it installed?");
        // It writes a line for each request, and must not wait until somebody reads them.
        thread::spawn(move || lines.for_each(drop));
        let s3 = Self { process, address: running.trim().parse().unwrap() };
        s3.ask("PUT", "/bucket", b"");
        s3
    }

    fn put(&self, key: &str, content: impl AsRef<[u8]>) {
        self.ask("PUT", &format!("/bucket/{key}"), content.as_ref());
    }

    fn delete(&self, key: &str) {
        self.ask("DELETE", &format!("/bucket/{key}"), b"");
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let host = self.address;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=publisher/20261123/us-east-1/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A proxy that cuts every connection after so many bytes of answers; counts the cuts.
fn cutting_proxy(to: SocketAddr, bytes_max: u64) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cuts);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let (mut requests, mut to_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut requests, &mut to_server));
            let cuts = Arc::clone(&counted);
            thread::spawn(move || {
                let sent = std::io::copy(&mut (&server).take(bytes_max), &mut client);
                if sent.is_ok_and(|sent| sent == bytes_max) {
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
                for stream in [&client, &server] {
                    // Whoever hung up first has done it already.
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
        }
    });
    (address, cuts)
}

/// Variables of a client.
pub(crate) fn environment(endpoint: SocketAddr) -> [(String, String); 4] {
    let environment = [
        ("AWS_ENDPOINT_URL", format!("http://{endpoint}")),
        ("AWS_ACCESS_KEY_ID", "operator".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ];
    environment.map(|(name, value)| (name.to_owned(), value))
}

fn mirror(root: &str, endpoint: SocketAddr, state: &Path) -> Mirror {
    let settings = Settings { poll_interval: Duration::from_millis(100), ..Settings::new(root) };
    Mirror::start(settings, Some(state), environment(endpoint), |_| {}).unwrap()
}

/// `model: version=content version=content`, by line.
fn summary(mirror: &Mirror) -> Vec<String> {
    let listing = match mirror.folder().list() {
        Ok(listing) => listing,
        // It is being exchanged.
        Err(error) => return vec![error.to_string()],
    };
    let mut lines = Vec::new();
    for (name, model) in &listing.models {
        let mut line = format!("{name}:");
        for (version, listed) in &model.versions {
            let content = match listed.read() {
                Ok(artifact) => String::from_utf8_lossy(&artifact.model).into_owned(),
                Err(error) => error.to_string(),
            };
            line.push_str(&format!(" {version}={content}"));
        }
        lines.push(line);
    }
    lines
}

#[track_caller]
fn wait_for(mirror: &Mirror, expected: &[&str]) {
    wait(mirror, || summary(mirror) == expected);
}

#[track_caller]
fn wait(mirror: &Mirror, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        let problem = mirror.problem();
        assert!(start.elapsed() < PATIENCE, "{:?}, {problem:?}", summary(mirror));
        thread::yield_now();
    }
}

#[test]
fn a_repository_in_an_object_store_is_mirrored() {
    let s3 = S3::start();
    let state = tempfile::tempdir().unwrap();
    // More than one page of a listing, before anything that counts.
    for number in 0..10 {
        s3.put(&format!("prod/models/a/notes/{number}"), "x");
    }
    s3.put("prod/models/a/1/model.onnx", "a1");
    s3.put("prod/models/fraud/1/model.onnx", "f1");
    s3.put("prod/models/fraud/2/model.onnx", "f2");
    s3.put("prod/models/fraud/2/data/weights", "w2");
    s3.put("prod/models/fraud/.3/model.onnx", "hidden");
    s3.put("prod/models/fraud/model.toml", "class_names = { y = 'names/y.txt' }");
    s3.put("prod/models/fraud/names/y.txt", "cat\ndog\n");
    s3.put("prod/models-old/other/1/model.onnx", "elsewhere");
    let mirror = mirror("s3://bucket/prod/models", s3.address, state.path());
    wait_for(&mirror, &["a: 1=a1", "fraud: 2=f2"]);
    let listing = mirror.folder().list().unwrap();
    let fraud = &listing.models["fraud"];
    assert_eq!(fraud.description.as_ref().unwrap().class_names["y"], ["cat", "dog"]);
    let artifact = fraud.versions[&VersionId::new(2)].read().unwrap();
    let weights = artifact.read_beside("data/weights").unwrap();
    assert_eq!(&weights.memory().unwrap()[..], b"w2");

    // A new version, another file of a version, another description, a model that goes.
    s3.put("prod/models/fraud/3/model.onnx", "f3");
    wait_for(&mirror, &["a: 1=a1", "fraud: 3=f3"]);
    s3.put("prod/models/fraud/3/model.onnx", "f3 again");
    wait_for(&mirror, &["a: 1=a1", "fraud: 3=f3 again"]);
    s3.put("prod/models/fraud/model.toml", "versions = 'all'");
    wait_for(&mirror, &["a: 1=a1", "fraud: 1=f1 2=f2 3=f3 again"]);
    s3.delete("prod/models/fraud/2/model.onnx");
    s3.delete("prod/models/fraud/2/data/weights");
    wait_for(&mirror, &["a: 1=a1", "fraud: 1=f1 3=f3 again"]);
    for number in 0..10 {
        s3.delete(&format!("prod/models/a/notes/{number}"));
    }
    s3.delete("prod/models/a/1/model.onnx");
    wait_for(&mirror, &["fraud: 1=f1 3=f3 again"]);
    wait(&mirror, || mirror.problem().is_none());

    // What was mirrored outlives the store, and a restart without it.
    let address = s3.address;
    drop(s3);
    wait(&mirror, || mirror.problem().is_some());
    let problem = mirror.problem().unwrap();
    assert!(
        problem.starts_with("the object store failed") && !problem.contains(SECRET),
        "{problem}"
    );
    assert_eq!(summary(&mirror), ["fraud: 1=f1 3=f3 again"]);
    drop(mirror);
    let mirror = self::mirror("s3://bucket/prod/models", address, state.path());
    assert_eq!(summary(&mirror), ["fraud: 1=f1 3=f3 again"]);
}

#[test]
fn a_prefix_that_is_a_model_is_mirrored_as_one() {
    let s3 = S3::start();
    let state = tempfile::tempdir().unwrap();
    s3.put("scoring/model.onnx", "one");
    s3.put("scoring/weights", "w");
    let mirror = mirror("s3://bucket/scoring/", s3.address, state.path());
    wait_for(&mirror, &["scoring: 1=one"]);
    s3.put("scoring/model.onnx", "two");
    wait_for(&mirror, &["scoring: 1=two"]);
    // An address below which there is nothing is a mistake, not an empty repository.
    s3.delete("scoring/model.onnx");
    s3.delete("scoring/weights");
    wait(&mirror, || mirror.problem().is_some_and(|problem| problem.contains("has nothing below")));
    assert_eq!(summary(&mirror), ["scoring: 1=two"]);
}

#[test]
fn broken_downloads_go_on_where_they_broke() {
    const BYTES: u32 = 2_000_000;
    const CUT: u64 = 300_000;
    let s3 = S3::start();
    let state = tempfile::tempdir().unwrap();
    let content: Vec<u8> =
        (0..BYTES).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    s3.put("models/large/1/model.onnx", &content);
    let (proxy, cuts) = cutting_proxy(s3.address, CUT);
    let mirror = mirror("s3://bucket/models", proxy, state.path());
    let read = || {
        let listing = mirror.folder().list().unwrap();
        let version = listing.models.get("large")?.versions.get(&VersionId::new(1))?;
        version.read().ok()
    };
    wait(&mirror, || read().is_some());
    assert!(read().unwrap().model == content, "other bytes than those of the store");
    let cuts = cuts.load(Ordering::Relaxed);
    // Each cut let some 300,000 bytes through: had it begun again each time, it would never have ended.
    assert!(cuts >= 6, "{cuts}");
    assert!(fs::read_dir(state.path().join("mirror")).unwrap().count() > 0);
}

#[test]
fn objects_replaced_while_they_are_fetched_are_never_mixed() {
    const BYTES: usize = 1_000_000;
    let s3 = S3::start();
    let state = tempfile::tempdir().unwrap();
    let key = "models/large/1/model.onnx";
    s3.put(key, vec![0; BYTES]);
    // Every download breaks, so that it goes on after the object was replaced.
    let (proxy, _) = cutting_proxy(s3.address, 300_000);
    let mirror = mirror("s3://bucket/models", proxy, state.path());
    let fetched = || {
        let listing = mirror.folder().list().unwrap();
        let artifact =
            listing.models.get("large")?.versions.get(&VersionId::new(1))?.read().ok()?;
        let first = artifact.model[0];
        assert!(artifact.model.len() == BYTES && artifact.model.iter().all(|byte| *byte == first));
        Some(first)
    };
    for round in 1..=30 {
        s3.put(key, vec![round; BYTES]);
        fetched();
    }
    wait(&mirror, || fetched() == Some(30));
}

#[test]
fn a_store_that_goes_away_is_told_and_makes_nothing_unready() {
    let s3 = S3::start();
    s3.put("models/add_sub/1/model.onnx", fs::read(source("add_sub", "1")).unwrap());
    let server = Launch::of(&Repository::empty())
        .root("s3://bucket/models")
        .set("REPOSITORY__POLL_INTERVAL", "200ms")
        .variable("AWS_ENDPOINT_URL", &format!("http://{}", s3.address))
        .variable("AWS_ACCESS_KEY_ID", "operator")
        .variable("AWS_SECRET_ACCESS_KEY", SECRET)
        .variable("AWS_REGION", "us-east-1")
        .start();
    let current = |value: &str| {
        eventually(&format!("tidegate_mirror_current is {value}"), || {
            let page = server.admin("/metrics").text();
            page.lines()
                .any(|line| line == format!("tidegate_mirror_current {value}"))
                .then_some(())
        });
    };
    server.wait_for_state("add_sub", "1", "READY");
    current("1");
    assert_eq!(server.admin("/readyz?verbose").text(), "ok\n");
    drop(s3);
    current("0");
    let ready = server.admin("/readyz?verbose");
    assert_eq!(ready.status, 200, "{ready:?}");
    let text = ready.text();
    assert!(text.contains("mirror is behind its object store") && !text.contains(SECRET), "{text}");
    assert!(server.admin("/api/v1/models").json()["notes"][0].is_string());
    server.post(&infer("add_sub"), &add_sub()).ok();
}
