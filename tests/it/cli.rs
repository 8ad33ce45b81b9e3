//! The commands, as people and scripts type them: what they print and how they exit.

use std::{
    io::Write as _,
    net::SocketAddr,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::{
    http::Request,
    repository::{Repository, SAMPLES, source},
    server::{Launch, Server},
    tensors::infer,
};

/// Runs a command to its end.
pub(crate) fn tidegate(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that takes no input may have ended before.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

#[test]
fn health_takes_a_url_or_an_address_and_its_exit_code_is_the_answer() {
    let server = Server::over(&Repository::of(&["iris"]));
    for admin in [url(server.admin), server.admin.to_string()] {
        let healthy = tidegate(&["health", "--admin", &admin], "");
        assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
        assert_eq!(healthy.stdout, b"ready\n");
    }
    let unready = Launch::of(&Repository::of(&["iris"]))
        .set("MODELS__OTHER__REQUIRED", "true")
        .start_until_alive();
    let no = tidegate(&["health", "--json", "--admin", &url(unready.admin)], "");
    assert_eq!(no.status.code(), Some(1));
    assert_eq!(json(&no)["ready"], false);
    drop(unready);
    let gone = tidegate(&["health", "--admin", "127.0.0.1:1"], "");
    assert_eq!(gone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("is `tidegate serve` running there?"));
}

#[test]
fn predict_sends_golden_inputs_files_and_standard_input() {
    let server = Server::over(&Repository::of(&["iris"]));
    let to = url(server.http);
    let golden = ["predict", "iris", "--golden", "--json", "--url", &to, "--repository", SAMPLES];
    let golden = tidegate(&golden, "");
    assert_eq!(golden.status.code(), Some(0), "{golden:?}");
    // One line for each golden request.
    let lines = String::from_utf8(golden.stdout).unwrap();
    assert!(lines.lines().count() > 1);
    for line in lines.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["model_name"], "iris");
    }
    let request =
        r#"{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}"#;
    let piped = tidegate(&["predict", "iris", "-", "--json", "--url", &to], request);
    assert_eq!(json(&piped)["outputs"][0]["data"][0], 0, "{piped:?}");
    let wrong = tidegate(&["predict", "nobody", "-", "--url", &to], request);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("nobody"), "{wrong:?}");
}

#[test]
fn models_and_check_tell_people_and_machines_the_same() {
    let repository = Repository::of(&["iris"]);
    let server = Server::over(&repository);
    let admin = url(server.admin);
    let listed = tidegate(&["models", "list", "--json", "--admin", &admin], "");
    assert_eq!(json(&listed)["models"][0]["versions"][0]["state"], "READY");
    let shown = tidegate(&["models", "show", "iris", "--admin", &admin], "");
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("input FP32[-1,4]") && !text.contains('\x1b'), "{text}");
    assert!(!text.contains("p99"), "nobody has asked yet: {text}");
    let request =
        r#"{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}"#;
    for path in ["iris", "iris", "iris/versions/1"] {
        server.ask(&Request::post(&infer(path), request)).ok();
    }
    let shown = tidegate(&["models", "show", "iris", "--admin", &admin], "");
    let text = String::from_utf8(shown.stdout).unwrap();
    let row = |first: &str| {
        let row = text.lines().find(|line| line.contains(first));
        row.unwrap_or_else(|| panic!("no {first} in {text}"))
            .split_whitespace()
            .filter(|cell| *cell != "│")
            .collect()
    };
    let cells: Vec<&str> = row("p99.9");
    assert_eq!(cells, "arm requests phase p50 p90 p99 p99.9 max".split(' ').collect::<Vec<_>>());
    let (baseline, direct): (Vec<_>, Vec<_>) = (row("baseline"), row("direct"));
    assert_eq!(
        (&baseline[..3], &direct[..3]),
        (&["baseline", "2", "total"][..], &["direct", "1", "total"][..])
    );
    let decode: Vec<&str> = row("decode");
    assert!(decode.iter().any(|cell| ["us", "ms"].contains(cell)), "{text}");
    let shown = json(&tidegate(&["models", "show", "iris", "--json", "--admin", &admin], ""));
    let arms = &shown["versions"][0]["loaded"]["arms"];
    assert_eq!((&arms[0]["rows"], &arms[1]["rows"]), (&Value::from(2), &Value::from(1)), "{shown}");
    let unknown = tidegate(&["models", "show", "nobody", "--admin", &admin], "");
    assert_eq!(unknown.status.code(), Some(1));
    let folder = repository.path().display().to_string();
    let sound = tidegate(&["check", "--repository", &folder], "");
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    repository.add_bytes("iris", "2", b"not a model");
    let broken = tidegate(&["check", "--json", "--repository", &folder], "");
    assert_eq!(broken.status.code(), Some(1));
    assert!(json(&broken).to_string().contains("not an ONNX model"), "{broken:?}");
}

#[test]
fn traffic_is_split_shown_and_reset() {
    let repository = Repository::empty();
    for (version, model) in [("1", "identity_fp32"), ("2", "doubled_fp32")] {
        repository.add_bytes("truth", version, &std::fs::read(source(model, "1")).unwrap());
    }
    let server = Server::over(&repository);
    let admin = url(server.admin);
    let traffic = |arguments: &[&str]| {
        let (head, rest) = arguments.split_at(1);
        tidegate(&[&["traffic"], head, &["truth", "--admin", &admin], rest].concat(), "")
    };
    let set = traffic(&["set", "baseline=1", "canary=2:10%", "--sticky", "cookie:session"]);
    let text = String::from_utf8_lossy(&set.stdout).into_owned();
    assert_eq!(set.status.code(), Some(0), "{set:?}");
    for part in ["baseline", "90.00 %", "10.00 %", "cookie `session`"] {
        assert!(text.contains(part) && !text.contains('\x1b'), "{part}: {text}");
    }
    // What is not said stays.
    let shadowed = json(&traffic(&["set", "--shadow", "2:0.5", "--json"]));
    let shadow = &shadowed["shadow"][0];
    assert_eq!((&shadow["version"], shadow["share"].as_f64()), (&"2".into(), Some(0.5)));
    assert_eq!(shadowed["arms"][1]["version"], "2");
    assert_eq!(shadowed["sticky"]["name"], "session");
    assert_eq!(json(&traffic(&["set", "--shadow", "none", "--json"]))["shadow"][0], Value::Null);
    for (arguments, code, said) in [
        (&["set", "canary=2"][..], 2, "canary=2:10%"),
        (&["set", "baseline=1", "canary=2:80%", "second=2:30%"], 2, "leave nothing"),
        (&["set", "baseline=1", "canary=2:110%"], 2, "0 to 1"),
        (&["set", "--sticky", "header"], 2, "header:NAME"),
        (&["set"], 2, "required"),
        (&["set", "canary=9:10%", "other=nobody:90%"], 1, "neither a number nor an alias"),
    ] {
        let refused = traffic(arguments);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
    assert_eq!(json(&traffic(&["show", "--json"]))["arms"][1]["name"], "canary");
    let reset = traffic(&["reset", "--reason", "enough"]);
    assert!(String::from_utf8_lossy(&reset.stdout).contains("100.00 %"), "{reset:?}");
}

#[test]
fn onnx_runtime_collects_no_telemetry() {
    let repository = Repository::of(&["iris"]);
    let home = repository.beside("home");
    std::fs::create_dir(&home).unwrap();
    let checked = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["check", "--repository", repository.path().to_str().unwrap()])
        .env("HOME", &home)
        .env_remove("XDG_CACHE_HOME")
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(std::fs::read_dir(&home).unwrap().count(), 0, "something is kept at home");
}
