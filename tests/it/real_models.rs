//! Real models, and the onnx package's own cases of every operator: served as the runtime itself answers.
//!
//! The Python half lies in `tests/real_models`: it makes the models, sends the requests and compares. Rows of its
//! tables name what is refused, each with its reason; `make test-models` checks many more models.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::{clients::python, repository::Repository, server::Launch};

/// Runs a script of `tests/real_models`; fails with all that it says.
fn run(script: &str, arguments: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_models").join(script);
    let mut command = Command::new(python());
    command.arg(path).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    // Both sides run the library of Python's package.
    command.env_remove("ORT_DYLIB_PATH").env("OMP_NUM_THREADS", "1");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (said, told) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{script} ended with {status}:\n{said}\n{told}");
}

#[test]
fn the_onnx_packages_cases_of_every_operator_are_served() {
    let repository = Repository::empty();
    // The script makes it anew.
    fs::remove_dir(repository.path()).unwrap();
    let folder = repository.path().parent().unwrap().to_str().unwrap().to_owned();
    run("node_cases.py", &["build", &folder]);
    let launch = Launch::of(&repository).set("ENGINE__SESSIONS", "1");
    let server = launch.start_until_alive();
    run("node_cases.py", &["run", &folder, &server.http.to_string()]);
}

#[test]
fn real_models_answer_as_the_runtime_does() {
    run("check.py", &["--subset", "--gateway", env!("CARGO_BIN_EXE_tidegate")]);
}
