//! Models that mean harm: each is refused with its reason, and the sound ones beside them go on answering.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use tidegate::lifecycle::{Code, ProofLimits};

use crate::{
    corpus::{self, Hostile},
    proof::{children, prove_with, prover},
    repository::Repository,
    server::{Launch, Server},
    tensors::{add_sub, infer},
};

const HOSTILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile");

/// Models that are accepted because they do no harm within the limits of a proof.
const HARMLESS_TO_LOAD: [&str; 4] = ["huge_input", "integer_division", "memory_bomb", "nested_32"];

/// Adds every `.onnx` of a folder as a model named after it, with `beside` called for the version's folder.
fn add_all(repository: &Repository, folder: &str, beside: impl Fn(&Path)) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(Path::new(HOSTILE).join(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "onnx") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let version = repository.path().join(&name).join("1");
            fs::create_dir_all(&version).unwrap();
            beside(&version);
            fs::copy(&path, version.join("model.onnx")).unwrap();
            names.push(name);
        }
    }
    assert!(!names.is_empty(), "{folder} has models");
    names
}

fn still_answers(server: &Server) {
    server.post(&infer("add_sub"), &add_sub()).ok();
}

#[test]
fn hostile_models_are_refused_with_a_reason_and_harm_nobody() {
    let repository = Repository::of(&["add_sub"]);
    let names = add_all(&repository, "models", |_| {});
    let server = Server::over(&repository);
    still_answers(&server);
    for name in names {
        let entry = server.indexed(&name, "1").unwrap_or_else(|| panic!("{name} is listed"));
        if HARMLESS_TO_LOAD.contains(&name.as_str()) {
            continue;
        }
        assert_eq!(entry["state"], "UNAVAILABLE", "{name}: {entry}");
        let reason = entry["reason"].as_str().unwrap_or_default();
        assert!(reason.len() > 10, "{name}: {entry}");
        assert!(
            !reason.contains(repository.path().to_str().unwrap()),
            "{name} tells a path: {entry}"
        );
    }
    still_answers(&server);
}

#[test]
fn external_data_stays_in_its_folder_whatever_the_spelling() {
    let repository = Repository::of(&["add_sub"]);
    let weights =
        fs::read(Path::new(HOSTILE).join("external/weights.bin")).unwrap_or_else(|_| vec![0; 4096]);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("weights.bin"), &weights).unwrap();
    let names = add_all(&repository, "external", |version| {
        let model = version.parent().unwrap();
        fs::write(version.join("weights.bin"), &weights).unwrap();
        fs::write(model.join("outside.bin"), &weights).unwrap();
        symlink(outside.path().join("weights.bin"), version.join("symlink.bin")).unwrap();
        symlink(outside.path(), version.join("folder")).unwrap();
        fs::hard_link(model.join("outside.bin"), version.join("hard_link.bin")).unwrap();
    });
    let server = Launch::of(&repository).set("REPOSITORY__HARD_LINKS", "false").start();
    let mut inside = 0;
    for name in names {
        let entry = server.indexed(&name, "1").unwrap_or_else(|| panic!("{name} is listed"));
        // Only what lies in the folder is read; ONNX Runtime takes it for initializers and constants.
        if name.ends_with("-inside") {
            inside += usize::from(entry["state"] == "READY");
            continue;
        }
        assert_eq!(entry["state"], "UNAVAILABLE", "{name}: {entry}");
    }
    assert!(inside > 0, "external data in the model's own folder is served");
    still_answers(&server);
}

#[test]
fn truncated_models_are_refused() {
    let repository = Repository::of(&["add_sub"]);
    let whole = fs::read(crate::repository::source("breast_cancer", "2")).unwrap();
    for length in (0..whole.len()).step_by(64) {
        repository.add_bytes(&format!("cut_{length}"), "1", &whole[..length]);
    }
    let server = Server::over(&repository);
    for length in (0..whole.len()).step_by(64) {
        let entry = server.indexed(&format!("cut_{length}"), "1").unwrap();
        assert_eq!(entry["state"], "UNAVAILABLE", "{length} bytes: {entry}");
    }
    still_answers(&server);
}

#[test]
fn check_reports_what_cannot_be_served() {
    let repository = Repository::of(&["add_sub"]);
    repository.add_bytes("garbage", "1", b"this is no model");
    let check = |json: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["check", "--repository"]).arg(repository.path());
        if json {
            command.arg("--json");
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = check(false);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("add_sub") && text.contains("not an ONNX model"), "{text}");
    let (code, json) = check(true);
    let found: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(code, Some(1));
    assert_eq!(found.len(), 2);
    repository.remove("garbage", "1");
    fs::remove_dir_all(repository.path().join("garbage")).unwrap();
    assert_eq!(check(false).0, Some(0));
}

/// One of the corpus, within small limits; what was wrong with its proof.
fn verdict(hostile: &Hostile) -> Option<String> {
    let time_max = Duration::from_secs(if hostile.codes.contains(&Code::Timeout) { 1 } else { 10 });
    let limits = ProofLimits { memory_max: 512 << 20, time_max, ..ProofLimits::default() };
    let external: Vec<(&str, &[u8])> =
        hostile.external.iter().map(|(name, bytes)| (*name, &**bytes)).collect();
    let begin = Instant::now();
    let outcome = prove_with(&prover(limits), &hostile.model, &external, hostile.golden.as_deref());
    let name = &hostile.name;
    if begin.elapsed() > time_max + Duration::from_secs(2) {
        return Some(format!("{name}: took {:?}", begin.elapsed()));
    }
    match outcome {
        Ok(_) if hostile.codes.is_empty() => None,
        Ok(proof) => Some(format!("{name}: proven, {:?}", proof.notes)),
        Err(failure) if hostile.codes.is_empty() || hostile.codes.contains(&failure.code) => None,
        Err(failure) => Some(format!("{name}: {failure}")),
    }
}

#[test]
fn a_corpus_of_hostile_models_is_refused_in_time_and_harms_nobody() {
    let all = corpus::all();
    assert!(all.iter().filter(|hostile| !hostile.codes.is_empty()).count() >= 200);
    let rest = Mutex::new(all.iter());
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(hostile) = { rest.lock().unwrap().next() } {
                    wrong.lock().unwrap().extend(verdict(hostile));
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    assert!(children().is_empty(), "a process is left");
}

#[test]
fn a_version_that_hangs_is_refused_by_a_server_that_goes_on_answering() {
    let repository = Repository::of(&["add_sub"]);
    let server = Launch::of(&repository).set("PROOF__TIME_MAX", "1s").start();
    repository.add_bytes("endless", "1", &crate::models::endless_loop());
    let entry = server.wait_for_state("endless", "1", "UNAVAILABLE");
    let reason = entry["reason"].as_str().unwrap();
    assert!(reason.starts_with("proof failed (timeout)"), "{reason}");
    assert!(reason.contains("proof.time_max"), "{reason}");
    still_answers(&server);

    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["check", "--repository"]).arg(repository.path());
    let output = command.env("TIDEGATE__PROOF__TIME_MAX", "1s").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("(timeout)"), "{text}");
}
