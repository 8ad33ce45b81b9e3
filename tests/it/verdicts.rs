//! What was proven before is not proven again, unless anything that the proof depends on has changed.

use std::{fs, io::Write as _, path::PathBuf};

use serde_json::json;

use crate::{
    repository::{Repository, source},
    server::{Launch, eventually, installed_library},
    tensors::{add_sub, body, infer, input},
};

/// A start over the same state: how often it proved, and how often it remembered.
fn proofs(launch: Launch) -> (u64, u64) {
    let server = launch.remembering().start();
    server.post(&infer("add_sub"), &add_sub()).ok();
    let page = server.admin("/metrics").text();
    (of(&page, "proven"), of(&page, "remembered"))
}

fn of(page: &str, outcome: &str) -> u64 {
    let name = format!("tidegate_proofs_total{{outcome=\"{outcome}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

/// The one verdict that is kept.
fn kept(repository: &Repository) -> PathBuf {
    let mut found: Vec<_> = fs::read_dir(repository.beside("state/proofs")).unwrap().collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.pop().unwrap().unwrap().path()
}

#[test]
fn the_second_start_proves_only_what_is_new_or_was_asked_otherwise() {
    let repository = Repository::of(&["add_sub"]);
    let launch = || Launch::of(&repository);
    assert_eq!(proofs(launch()), (1, 0));
    assert_eq!(proofs(launch()), (0, 1));
    assert_eq!(proofs(launch().set("PROOF__REMEMBER", "false")), (1, 0));
    assert_eq!(proofs(launch().set("PROOF__TIME_MAX", "59s")), (1, 0), "other limits");
    repository.add("scalar", "1");
    assert_eq!(proofs(launch()), (1, 1));
    assert_eq!(proofs(launch()), (0, 2));
    let mut other = fs::read(source("add_sub", "1")).unwrap();
    // Its documentation: other bytes of the same meaning.
    other.extend([0x32, 1, b'x']);
    repository.replace("add_sub", "1", &other);
    assert_eq!(proofs(launch()), (1, 1));
}

#[test]
fn a_damaged_verdict_counts_for_nothing() {
    let repository = Repository::of(&["add_sub"]);
    assert_eq!(proofs(Launch::of(&repository)), (1, 0));
    let path = kept(&repository);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(proofs(Launch::of(&repository)), (1, 0));
    assert_eq!(proofs(Launch::of(&repository)), (0, 1));
}

#[test]
fn another_library_proves_again() {
    let repository = Repository::of(&["add_sub"]);
    let library = repository.beside("libonnxruntime.so");
    fs::copy(installed_library(), &library).unwrap();
    let launch = || Launch::of(&repository).set("ENGINE__ONNXRUNTIME", library.to_str().unwrap());
    assert_eq!(proofs(launch()), (1, 0));
    assert_eq!(proofs(launch()), (0, 1));
    // Behind what the loader maps: other bytes that do the same.
    fs::File::options().append(true).open(&library).unwrap().write_all(b"x").unwrap();
    assert_eq!(proofs(launch()), (1, 0));
}

#[test]
fn what_fails_is_proven_at_each_start() {
    let repository = Repository::of(&["add_sub"]);
    repository.add_bytes("wrong", "1", &crate::models::endless_loop());
    let failed = || {
        let launch = Launch::of(&repository).set("PROOF__TIME_MAX", "1s").remembering();
        let server = launch.start();
        eventually("the proof has failed", || {
            let page = server.admin("/metrics").text();
            (of(&page, "failed") == 1).then(|| of(&page, "remembered"))
        })
    };
    assert_eq!(failed(), 0);
    assert_eq!(failed(), 1, "of the model that is right");
}

#[test]
fn guards_are_remembered_with_the_proof() {
    let repository = Repository::of(&["add_sub"]);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/killers");
    let name = "q_linear_average_pool_of_the_rest";
    repository.add_as(name, "1", &PathBuf::from(folder).join(name).with_extension("onnx"));
    let killing = body(&[input("x", "FP32", &[3], &json!([1, 1, 1]))]);
    for (proven, remembered) in [(2, 0), (0, 2)] {
        let server = Launch::of(&repository).remembering().start();
        let page = server.admin("/metrics").text();
        assert_eq!((of(&page, "proven"), of(&page, "remembered")), (proven, remembered));
        let response = server.post(&infer(name), &killing);
        assert_eq!(response.status, 400, "{response:?}");
        assert!(
            response.text().contains("ended the process that proved this version"),
            "{response:?}"
        );
    }
}
