//! Clients that others wrote, unchanged: Triton's Python client, and curl as the README uses it.
//!
//! The Python half of these tests lies in `tests/clients`; each script speaks to one server and fails with a
//! traceback. Its packages are pinned in `tests/requirements.txt`; `make test` installs them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    repository::{FIXTURES, Golden, Repository, SAMPLES, source},
    server::{Launch, Server},
    tensors::add_sub,
};

/// The Python that has the client packages.
pub(crate) fn python() -> PathBuf {
    if let Some(named) = std::env::var_os("TIDEGATE_TEST_PYTHON") {
        return named.into();
    }
    let inside = "venv/bin/python";
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache").join(inside);
    // <target>/tmp is where cargo lets tests put their files.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name(inside);
    let found = [&cache, &target].into_iter().find(|path| path.exists());
    found.cloned().unwrap_or_else(|| {
        panic!(
            "no Python with the client packages at {} or {}, nor named by TIDEGATE_TEST_PYTHON: run `make test`",
            cache.display(),
            target.display()
        )
    })
}

/// Runs a script of `tests/clients` against a server.
fn run_script(script: &str, server: &Server, repository: &Repository) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let output = Command::new(python())
        .arg(path)
        .args(["--http", &server.http.to_string(), "--models", SAMPLES, "--fixtures", FIXTURES])
        .arg("--repository")
        .arg(repository.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert_success(script, &output);
}

pub(crate) fn assert_success(what: &str, output: &Output) {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{what} ended with {}:\n{stdout}\n{stderr}", output.status);
}

#[test]
fn tritonclient_finds_every_method_working() {
    let repository = Repository::of(&["add_sub", "scalar", "identity_fp32_2d"]);
    run_script("methods.py", &Server::over(&repository), &repository);
}

#[test]
fn tritonclient_uploads_models() {
    let repository = Repository::of(&["identity_fp32"]);
    let server = Launch::of(&repository).set("REPOSITORY__UPLOADS", "true").start();
    run_script("uploads.py", &server, &repository);
}

#[test]
fn tritonclient_loads_and_unloads_as_in_explicit_mode() {
    let repository = Repository::empty();
    repository.add_as("truth", "1", &source("identity_fp32", "1"));
    repository.add_as("steady", "1", &source("identity_fp32", "1"));
    run_script("explicit.py", &Server::over(&repository), &repository);
}

#[test]
fn tritonclient_sends_and_reads_every_datatype() {
    let datatypes = [
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "fp16",
        "bf16", "fp32", "fp64", "bytes",
    ];
    let models = datatypes.map(|datatype| format!("identity_{datatype}"));
    let repository = Repository::of(&models.each_ref().map(String::as_str));
    run_script("datatypes.py", &Server::over(&repository), &repository);
}

#[test]
fn tritonclient_gets_the_outputs_recorded_at_training() {
    let repository = Repository::of(&["sentiment", "digits", "breast_cancer/1"]);
    repository.add_as("breast_cancer_2", "1", &source("breast_cancer", "2"));
    run_script("golden.py", &Server::over(&repository), &repository);
}

/// Runs curl; its standard output.
fn curl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail-with-body", "--max-time", "20"])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("curl does not run ({error}): install it"));
    assert_success(&format!("curl {arguments:?}"), &output);
    output.stdout
}

#[test]
fn curl_works_as_people_type_it() {
    let server = Server::over(&Repository::of(&["breast_cancer/2", "add_sub"]));
    let base = format!("http://{}/v2/models", server.http);
    let json = |arguments: &[&str]| -> Value { serde_json::from_slice(&curl(arguments)).unwrap() };

    let about = json(&[&format!("{base}/breast_cancer")]);
    assert_eq!(about["name"], "breast_cancer");

    // `-d` says that this is a form; nobody changes that by hand.
    let golden = Golden::of("breast_cancer", "2");
    let (inputs, expected) = &golden.cases[0];
    let body = serde_json::json!({"inputs": inputs}).to_string();
    let infer = format!("{base}/breast_cancer/infer");
    golden.assert_close(&json(&[&infer, "-d", &body])["outputs"], expected);

    let body = add_sub().to_string();
    let infer = format!("{base}/add_sub/infer");
    let ways: [&[&str]; 5] = [
        &["-H", "Content-Type: application/json"],
        &["-H", "Transfer-Encoding: chunked"],
        &["-H", "Expect: 100-continue"],
        &["--compressed"],
        &["--http1.0"],
    ];
    for way in ways {
        let arguments = [&[&infer, "-d", &body], way].concat();
        assert_eq!(json(&arguments)["outputs"][0]["data"][15], 16, "{way:?}");
    }
    let head = curl(&["--head", &format!("http://{}/v2/health/ready", server.http)]);
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", head.escape_ascii());
}
