//! The examples in `deploy/`, with the programs that they are for: balancers in front that do their part of a canary.
//!
//! A file is taken as it is; only addresses, paths of the machine and, where a test says so, shares are replaced.
//! No gateway runs the route of the Gateway API here: it is checked against its schema, and its paths are asked for.
//! `scripts/prepare-tests.sh` installs nginx, `HAProxy` and what reads the schema.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    clients::python,
    http::{Connection, Request, Response},
    proxies::Proxy,
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::add_sub,
};

/// Clients that are asked for; enough to tell a share of a tenth from one of a half.
const CLIENTS: usize = 300;

/// A server of model `fraud` with versions 1 and 2.
fn serve() -> (Repository, Server) {
    let repository = Repository::empty();
    repository.describe("fraud", "model.toml", "versions = \"all\"\n");
    for version in ["1", "2"] {
        repository.add_as("fraud", version, &source("add_sub", "1"));
    }
    let server = Server::over(&repository);
    server.wait_for_state("fraud", "1", "READY");
    server.wait_for_state("fraud", "2", "READY");
    (repository, server)
}

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// An example with other words in it, each of which must be there.
fn adapted(path: &str, replaced: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(example(path)).unwrap();
    for (word, other) in replaced {
        assert!(text.contains(word), "{path} has no `{word}`");
        text = text.replace(word, other);
    }
    text
}

/// `share` is the line of the canary's share.
fn nginx(server: SocketAddr, share: &str) -> Proxy {
    let main = "daemon off; master_process off; pid FOLDER/pid;";
    let arguments = ["-e", "stderr", "-p", "FOLDER", "-g", main, "-c", "FILE"];
    Proxy::start("nginx", &arguments, |address, folder| {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"));
        adapted(
            "nginx/canary.conf",
            &[
                ("http {", &format!("http {{\naccess_log off;\n{}", temporary.concat())),
                ("listen 8080;", &format!("listen {address};")),
                ("127.0.0.1:8000", &server.to_string()),
                ("10%     canary;", share),
            ],
        )
    })
}

/// Also the socket for its operator.
fn haproxy(server: SocketAddr) -> (Proxy, PathBuf) {
    let mut socket = PathBuf::new();
    let proxy = Proxy::start("haproxy", &["-db", "-f", "FILE"], |address, folder| {
        fs::copy(example("haproxy/routes.map"), Path::new(folder).join("routes.map")).unwrap();
        let (sockets, port) = (format!("{folder}/operator"), address.port());
        adapted(
            "haproxy/canary.cfg",
            &[
                ("bind :8080", &format!("bind {address}")),
                ("127.0.0.1:8000", &server.to_string()),
                ("/run/haproxy/tidegate.sock", &sockets),
                // Names that no other test on this machine has.
                ("abns@tidegate-", &format!("abns@tidegate-{port}-")),
            ],
        )
    });
    socket.push(proxy.folder.path());
    socket.push("operator");
    (proxy, socket)
}

/// Asks for a prediction of `fraud` with these headers.
fn ask(connection: &mut Connection, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request::post_json(&format!("/v2/models/fraud/{path}"), &add_sub());
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    connection.ask(&request)
}

/// The version that answered well.
fn version(response: &Response) -> String {
    assert_eq!(response.status, 200, "{response:?}");
    response.header("x-tidegate-version").expect("the version").to_owned()
}

/// The clients whose key gets version 2.
fn canaries(proxy: &Proxy) -> BTreeSet<usize> {
    let mut connection = Connection::open(proxy.address);
    let mut gets_canary = |client: &usize| {
        let key = format!("client {client}");
        let headers = [("x-tidegate-key", &*key)];
        let versions = [(); 2].map(|()| version(&ask(&mut connection, "infer", &headers)));
        assert_eq!(versions[0], versions[1], "{key} moved");
        versions[0] == "2"
    };
    (0..CLIENTS).filter(|client| gets_canary(client)).collect()
}

/// Checks what every example must do, whatever its shares are.
fn routes(proxy: &Proxy) {
    let mut connection = Connection::open(proxy.address);
    let cases = [
        ("infer", "baseline", "1"),
        ("infer", "canary", "2"),
        ("versions/1/infer", "canary", "1"),
        ("versions/2/infer", "baseline", "2"),
    ];
    for (path, route, expected) in cases {
        for client in 0..20 {
            let key = format!("client {client}");
            let headers = [("x-tidegate-route", route), ("x-tidegate-key", &*key)];
            let response = ask(&mut connection, path, &headers);
            assert_eq!(version(&response), expected, "{path} by {route}");
        }
    }
    let metadata = connection.ask(&Request::get("/v2/models/fraud")).ok().json();
    assert_eq!(metadata["versions"], json!(["1", "2"]));
}

#[test]
fn nginx_splits_by_key_and_falls_back_to_the_baseline() {
    let (repository, server) = serve();
    let small = nginx(server.http, "10% canary;");
    let tenth = canaries(&small);
    assert!((15..=45).contains(&tenth.len()), "{} of {CLIENTS}", tenth.len());
    let half = canaries(&nginx(server.http, "50% canary;"));
    assert!((120..=180).contains(&half.len()), "{} of {CLIENTS}", half.len());
    assert!(tenth.is_subset(&half), "a larger share moves nobody out");
    assert!(canaries(&nginx(server.http, "")).is_empty());
    routes(&small);

    repository.remove("fraud", "2");
    eventually("version 2 is gone", || server.indexed("fraud", "2").is_none().then_some(()));
    let mut connection = Connection::open(small.address);
    let response = ask(&mut connection, "infer", &[("x-tidegate-route", "canary")]);
    assert_eq!(version(&response), "1");
    assert_eq!(response.header("x-tidegate-fallback"), Some("canary"));
    assert!(canaries(&small).is_empty());
    // Asked for by its number, it is gone.
    assert_eq!(ask(&mut connection, "versions/2/infer", &[]).status, 404);
}

#[test]
fn haproxy_splits_by_weight_and_keeps_clients_by_cookie() {
    let (repository, server) = serve();
    let (proxy, socket) = haproxy(server.http);
    let tell = |command: &str| {
        let mut socket = UnixStream::connect(&socket).unwrap();
        writeln!(socket, "{command}").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    let is_up = |server: &str| {
        let states = tell("show stat");
        let line = states.lines().find(|line| line.starts_with(&format!("fraud,{server},")));
        line.is_some_and(|line| line.contains(",UP,"))
    };
    eventually("both arms are up", || (is_up("baseline") && is_up("canary")).then_some(()));
    let mut connection = Connection::open(proxy.address);
    // A new client each time, with the cookie that it gets.
    let mut new_clients = |count: usize| -> Vec<(String, String)> {
        let new = |_| {
            let response = ask(&mut connection, "infer", &[]);
            let cookie = response.header("set-cookie").expect("a cookie");
            (version(&response), cookie.split(';').next().unwrap().to_owned())
        };
        (0..count).map(new).collect()
    };
    let share =
        |clients: &[(String, String)]| clients.iter().filter(|(version, _)| version == "2").count();
    let first = new_clients(CLIENTS);
    assert!((25..=35).contains(&share(&first)), "{} of {CLIENTS}", share(&first));
    assert_eq!(tell("set weight fraud/canary 90").trim(), "");
    let second = new_clients(CLIENTS);
    assert!((145..=155).contains(&share(&second)), "{} of {CLIENTS}", share(&second));
    let mut connection = Connection::open(proxy.address);
    for (expected, cookie) in &first {
        assert_eq!(version(&ask(&mut connection, "infer", &[("cookie", cookie)])), *expected);
        let headers = [("cookie", &**cookie), ("x-tidegate-route", "2")];
        assert_eq!(version(&ask(&mut connection, "infer", &headers)), "2", "the header wins");
    }
    routes(&proxy);

    let headers = [("cookie", "tidegate-arm=canary")];
    for (state, expected) in [("maint", "1"), ("ready", "2")] {
        assert_eq!(tell(&format!("set server fraud/canary state {state}")).trim(), "");
        eventually("the operator is heard", || {
            (version(&ask(&mut connection, "infer", &headers)) == expected).then_some(())
        });
    }

    repository.remove("fraud", "2");
    // Nobody is refused meanwhile, and once it is noticed nobody is sent there.
    eventually("the canary is out", || {
        version(&ask(&mut connection, "infer", &headers));
        (!is_up("canary")).then_some(())
    });
    for _ in 0..20 {
        assert_eq!(version(&ask(&mut connection, "infer", &headers)), "1");
    }
    assert_eq!(ask(&mut connection, "versions/2/infer", &[]).status, 404);
}

#[test]
fn the_httproute_fits_its_schema_and_leads_to_both_versions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python())
        .arg(root.join("tests/clients/httproute.py"))
        .arg(root.join("tests/fixtures/gateway-api/httproute.schema.json"))
        .arg(example("gateway-api/httproute.yaml"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let route: Value = serde_json::from_slice(&output.stdout).unwrap();

    // What the gateway would ask the server, by the route's rules.
    let (_repository, server) = serve();
    let mut connection = server.connect();
    let mut rewritten = |filters: &Value| {
        let rewrite = |filter: &Value| filter["type"] == "URLRewrite";
        let filter = filters.as_array().unwrap().iter().find(|filter| rewrite(filter)).unwrap();
        let path = filter["urlRewrite"]["path"]["replaceFullPath"].as_str().unwrap();
        version(&connection.ask(&Request::post_json(path, &add_sub())))
    };
    let rules = route["spec"]["rules"].as_array().unwrap();
    for (rule, arm, expected) in [(&rules[0], "baseline", "1"), (&rules[1], "canary", "2")] {
        assert_eq!(rule["matches"][0]["headers"][0]["value"], arm);
        assert_eq!(rewritten(&rule["filters"]), expected);
    }
    let split = rules[2]["backendRefs"].as_array().unwrap();
    let versions: Vec<String> = split.iter().map(|arm| rewritten(&arm["filters"])).collect();
    assert_eq!(versions, ["1", "2"]);
    let weights = split.iter().map(|arm| arm["weight"].as_u64().unwrap());
    assert_eq!(weights.sum::<u64>(), 100);
}

#[test]
fn the_systemd_unit_is_valid_and_starts_what_it_says() {
    let unit = fs::read_to_string(example("systemd/tidegate.service")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_tidegate");
    let installed = folder.path().join("tidegate.service");
    // systemd wants the program to be there.
    fs::write(&installed, unit.replace("/usr/local/bin/tidegate", program)).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&installed).output().unwrap();
    let told = String::from_utf8_lossy(&verified.stderr);
    let about_it: Vec<_> = told.lines().filter(|line| line.contains("tidegate.service")).collect();
    assert!(verified.status.success() && about_it.is_empty(), "{told}");

    // Its command, with the configuration that is installed beside it: every key, with its default.
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let mut words = command.split(' ').skip(1);
    assert_eq!(words.next(), Some("serve"));
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml");
    let repository = Repository::of(&["add_sub"]);
    let words: Vec<_> = words
        .map(|word| match word {
            "/etc/tidegate/tidegate.toml" => configuration.to_str().unwrap(),
            word => word,
        })
        .collect();
    let mut server = Launch::of(&repository).arguments(&words).start();
    server.terminate();
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let patience = Duration::from_secs(stop.parse().unwrap());
    assert_eq!(server.exit_code(patience), 0);
}
