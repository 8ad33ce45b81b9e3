//! Everyday operating: what is said is true, names the next step, and nothing happens that nobody asked for.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    cli::tidegate,
    http::{Connection, Request},
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{add_sub, identity, infer},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A sound model, a broken version of it, one of another framework, one without versions, and a name that is none.
fn messy() -> Repository {
    let repository = Repository::of(&["add_sub"]);
    repository.add_bytes("add_sub", "2", b"no model");
    for folder in ["pickled/1", "empty", "two words/1"] {
        fs::create_dir_all(repository.path().join(folder)).unwrap();
    }
    fs::write(repository.path().join("pickled/1/model.pkl"), b"\x80\x04.").unwrap();
    repository
}

#[test]
fn everything_left_out_is_named_where_people_look() {
    let server = Server::over(&messy());
    let ready = server.admin("/readyz?verbose").ok().text();
    let listed = tidegate(&["models", "list", "--admin", &server.admin.to_string()], "");
    for (what, told) in [("readyz", ready), ("models list", text(&listed.stdout))] {
        for named in ["add_sub", "not an ONNX model", "pickled", "empty", "two words"] {
            assert!(told.contains(named), "{what} names {named}: {told}");
        }
        assert!(told.contains("found `model.pkl`: convert it to ONNX"), "{what}: {told}");
        assert!(told.contains("it has no version"), "{what}: {told}");
    }
    assert_eq!(
        server.admin("/readyz").ok().text(),
        "ok\n",
        "what stops nothing makes nobody unready"
    );
}

#[test]
fn check_says_each_thing_once() {
    let repository = messy();
    let folder = repository.path().display().to_string();
    let checked = tidegate(&["check", "--repository", &folder], "");
    assert_eq!(checked.status.code(), Some(1));
    let told = text(&checked.stdout);
    for once in ["not an ONNX model", "found `model.pkl`", "no version", "not a model name"] {
        assert_eq!(told.matches(once).count(), 1, "{once}: {told}");
    }
    assert!(told.contains("4 problems"), "{told}");
}

#[test]
fn what_is_touched_is_not_loaded_again() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).remembering().start();
    let loads = || {
        let page = server.admin("/metrics").text();
        let line = page.lines().find(|line| {
            line.starts_with(r#"tidegate_loads_total{model="add_sub""#) && line.contains("ok")
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert_eq!(loads(), Some(1.0));
    let file = repository.path().join("add_sub/1/model.onnx");
    let later = SystemTime::now() + Duration::from_secs(100);
    fs::File::options().append(true).open(&file).unwrap().set_modified(later).unwrap();
    server.wait_until_said("touched: what serves is of the same bytes");
    assert_eq!(loads(), Some(1.0));
    assert_eq!(server.indexed("add_sub", "1").unwrap()["state"], "READY");
    // Other bytes are another matter.
    repository.replace("add_sub", "1", &fs::read(source("add_sub", "1")).unwrap());
    repository.describe("add_sub", "1/golden.json", r#"{"cases": []}"#);
    server.wait_until_said("golden.json has no cases");
}

#[test]
fn small_answers_are_not_compressed() {
    let server =
        Launch::of(&Repository::of(&["identity_fp32"])).set("LIMITS__COMPRESS_MIN", "2KiB").start();
    let encoding = |count: u16| {
        let numbers: Vec<f64> = (0..count).map(f64::from).collect();
        let body = identity("FP32", &json!(numbers));
        let request = Request::post_json(&infer("identity_fp32"), &body);
        let answer = server.ask(&request.header("accept-encoding", "gzip")).ok();
        answer.header("content-encoding").map(str::to_owned)
    };
    assert_eq!(encoding(10), None);
    assert_eq!(encoding(300), None, "below the limit that was set");
    assert_eq!(encoding(1000).as_deref(), Some("gzip"));
}

#[test]
fn the_wrong_port_says_which_is_right() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let (http, admin) = (server.http.to_string(), server.admin.to_string());
    let listed = tidegate(&["models", "list", "--admin", &http], "");
    assert_eq!(listed.status.code(), Some(1));
    assert!(text(&listed.stderr).contains("this port takes predictions"), "{listed:?}");
    let body = add_sub().to_string();
    let asked = tidegate(&["predict", "add_sub", "-", "--url", &admin], &body);
    assert_eq!(asked.status.code(), Some(1));
    assert!(text(&asked.stderr).contains("this port is for operators"), "{asked:?}");
    let scraped = server.get("/metrics");
    assert_eq!(scraped.status, 404);
    assert!(scraped.text().contains("`server.admin`"), "{}", scraped.text());
    let mut connection = Connection::open(server.admin);
    let lost = connection.ask(&Request::post_json(&infer("add_sub"), &add_sub()));
    assert!(lost.text().contains("`server.http`"), "{}", lost.text());
}

#[test]
fn errors_are_json_for_those_who_ask_for_json() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let admin = server.admin.to_string();
    let told = |arguments: &[&str], code: i32| -> Value {
        let output = tidegate(arguments, "");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    };
    let unknown = told(&["--json", "models", "show", "nobody", "--admin", &admin], 1);
    assert_eq!(unknown["status"], 404);
    assert!(unknown["error"].as_str().unwrap().contains("no such model"), "{unknown}");
    let gone = told(&["--json", "models", "list", "--admin", "127.0.0.1:1"], 2);
    assert!(gone["error"].as_str().unwrap().contains("is `tidegate serve` running"), "{gone}");
    let wrong = told(&["--json", "check", "--http", "nowhere"], 2);
    assert_eq!(wrong["findings"][0]["key"], "server.http", "{wrong}");
}

#[test]
fn an_address_in_use_is_said_once() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let repository = Repository::of(&["add_sub"]);
    let (http, admin, free) = (server.http.to_string(), server.admin.to_string(), "127.0.0.1:0");
    for (flag, taken, at) in
        [("--http", &http, (&*http, free)), ("--admin", &admin, (free, &admin))]
    {
        let (status, told) = Launch::of(&repository).fail_at(at.0, at.1);
        assert_eq!(status.code(), Some(2), "{told}");
        assert_eq!(told.matches("in use").count(), 1, "{told}");
        assert!(told.contains(flag) && told.contains(taken.as_str()), "{told}");
    }
}

#[test]
fn the_log_says_what_a_version_takes_over_from() {
    let repository = Repository::of(&["add_sub"]);
    let server = Server::over(&repository);
    repository.add_as("add_sub", "2", &source("add_sub", "1"));
    // It is ready a moment before that is said.
    let line = eventually("a line about it", || {
        let said = server.said();
        said.lines().find(|line| line.contains(r#""version":"2""#)).map(str::to_owned)
    });
    assert!(line.contains(r#""after":1"#), "{line}");
}

#[test]
fn golden_predictions_are_compared_with_what_the_server_loaded() {
    let file = source("iris", "1").with_file_name("golden.json");
    let file = fs::read_to_string(file).unwrap();
    let repository = Repository::of(&["iris"]);
    repository.describe("iris", "1/golden.json", &file);
    let server = Launch::of(&repository).remembering().start();
    let (http, admin) = (server.http.to_string(), server.admin.to_string());
    let golden = |more: &[&str]| {
        let arguments = ["predict", "iris", "--golden", "--url", &http, "--admin", &admin];
        tidegate(&[&arguments, more].concat(), "")
    };
    // The command's own folder has no models: the golden inputs are the server's.
    let right = golden(&[]);
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    assert!(text(&right.stdout).contains("as expected"), "{right:?}");

    // Another file than what was loaded does not agree.
    let mut other: Value = serde_json::from_str(&file).unwrap();
    other["cases"][0]["outputs"][0]["data"][0] = json!(99);
    let elsewhere = Repository::empty();
    elsewhere.add_as("iris", "1", &source("iris", "1"));
    elsewhere.describe("iris", "1/golden.json", &other.to_string());
    let folder = elsewhere.path().display().to_string();
    let wrong = golden(&["--repository", &folder]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    let told = text(&wrong.stderr);
    assert!(told.contains("golden case 0 is not reproduced: output `label`"), "{told}");

    let none = golden(&["--model-version", "7"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(text(&none.stderr).contains("version 7 of `iris` is not loaded"), "{none:?}");
    let nothing = tidegate(&["predict", "iris", "--url", &http], "");
    assert_eq!(nothing.status.code(), Some(2));
    assert!(text(&nothing.stderr).contains("--golden"), "{nothing:?}");
}
