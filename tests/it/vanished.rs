//! A lost volume is not a wish: what serves goes on serving, says so, and keeps its files; a wish is done.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request},
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{add_sub, identity, infer},
};

const IDENTITY: &str = "identity_fp32";

fn serve(repository: &Repository) -> Launch {
    Launch::of(repository).set("REPOSITORY__POLL_INTERVAL", "100ms").remembering()
}

fn two_models() -> Repository {
    Repository::of(&["add_sub", IDENTITY])
}

fn both_answer(server: &Server) {
    server.post(&infer("add_sub"), &add_sub()).ok();
    server.post(&infer(IDENTITY), &identity("FP32", &json!([1.0]))).ok();
}

/// Waits until what is wrong is said to whoever looks, and more looks at the repository have passed.
fn said(server: &Server, what: &str) {
    eventually(&format!("`{what}` is said"), || {
        let ready = server.admin("/readyz?verbose");
        assert_eq!(ready.status, 200, "{ready:?}");
        ready.text().contains(what).then_some(())
    });
    server.wait_until_said(what);
    let metric = "tidegate_repository_readable 0";
    assert!(server.admin("/metrics").text().contains(metric));
}

fn problem(server: &Server, model: &str) -> Value {
    server.admin(&format!("/api/v1/models/{model}")).ok().json()["problem"].clone()
}

/// Files in the content store.
fn blobs(repository: &Repository) -> usize {
    files(&repository.beside("state/blobs"))
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[test]
fn an_unmounted_volume_costs_neither_service_nor_files_nor_a_restart() {
    let repository = two_models();
    let server = serve(&repository).set("REPOSITORY__VANISHED_GRACE", "0s").start();
    let kept = blobs(&repository);
    let volume = repository.beside("volume");
    fs::rename(repository.path(), &volume).unwrap();
    fs::create_dir(repository.path()).unwrap();
    said(&server, "taken for a lost volume");
    both_answer(&server);
    let shown = problem(&server, "add_sub");
    assert!(shown.as_str().is_some_and(|text| text.contains("mount it again")), "{shown}");
    // A restart meanwhile serves the same, from what was kept.
    drop(server);
    let server = serve(&repository).set("REPOSITORY__VANISHED_GRACE", "0s").start();
    both_answer(&server);
    said(&server, "taken for a lost volume");
    assert_eq!(blobs(&repository), kept);
    // An operator can still take a model out of service.
    let unload = Request::post_json("/api/v1/models/add_sub/unload", &json!({}));
    Connection::open(server.admin).ask(&unload).ok();
    assert_eq!(server.post(&infer("add_sub"), &add_sub()).status, 503);

    fs::remove_dir(repository.path()).unwrap();
    fs::rename(&volume, repository.path()).unwrap();
    repository.add_bytes(IDENTITY, "2", &fs::read(source("doubled_fp32", "1")).unwrap());
    server.wait_for_state(IDENTITY, "2", "READY");
    assert_eq!(server.admin("/readyz?verbose").text(), "ok\n");
    assert_eq!(problem(&server, IDENTITY), Value::Null);
}

#[test]
fn another_folder_with_other_models_takes_nothing_out_of_service() {
    let repository = two_models();
    let server = serve(&repository).start();
    let kept = blobs(&repository);
    let volume = repository.beside("volume");
    fs::rename(repository.path(), &volume).unwrap();
    fs::create_dir(repository.path()).unwrap();
    repository.add("iris", "1");
    said(&server, "none of the 2 known ones: taken for a lost volume");
    both_answer(&server);
    assert_eq!(blobs(&repository), kept);
    assert_eq!(server.get("/v2/models/iris").status, 404);

    fs::remove_dir_all(repository.path()).unwrap();
    fs::rename(&volume, repository.path()).unwrap();
    eventually("the repository is back", || {
        (server.admin("/readyz?verbose").text() == "ok\n").then_some(())
    });
    // One after the other is a wish, also where others come meanwhile.
    repository.add("iris", "1");
    server.wait_for_state("iris", "1", "READY");
    for model in ["add_sub", IDENTITY] {
        fs::remove_dir_all(repository.path().join(model)).unwrap();
        eventually(&format!("{model} is gone"), || {
            (server.get(&format!("/v2/models/{model}")).status == 404).then_some(())
        });
    }
}

#[test]
fn the_only_model_may_be_renamed_and_is_missed_in_another_folder() {
    let repository = Repository::of(&[IDENTITY]);
    let server = serve(&repository).set("REPOSITORY__VANISHED_GRACE", "4s").start();
    fs::rename(repository.path().join(IDENTITY), repository.path().join("renamed")).unwrap();
    server.wait_for_state("renamed", "1", "READY");
    eventually("the old name is gone", || server.indexed(IDENTITY, "1").is_none().then_some(()));

    fs::rename(repository.path(), repository.beside("volume")).unwrap();
    fs::create_dir(repository.path()).unwrap();
    repository.add("add_sub", "1");
    said(&server, "none of the 1 known ones: taken for a lost volume");
    server.post(&infer("renamed"), &identity("FP32", &json!([1.0]))).ok();
    eventually("then it is believed", || {
        (server.get("/v2/models/renamed").status == 404).then_some(())
    });
    server.wait_for_state("add_sub", "1", "READY");
    // A start over other models is a wish.
    drop(server);
    fs::rename(repository.path().join("add_sub"), repository.beside("add_sub")).unwrap();
    repository.add("iris", "1");
    let server = serve(&repository).start();
    server.wait_for_state("iris", "1", "READY");
}

#[test]
fn a_rollback_to_the_version_before_needs_no_repository() {
    let repository = Repository::of(&[IDENTITY]);
    let server = serve(&repository).start();
    repository.add_bytes(IDENTITY, "2", &fs::read(source("doubled_fp32", "1")).unwrap());
    server.wait_for_state(IDENTITY, "2", "READY");
    eventually("version 1 is let go", || server.indexed(IDENTITY, "1").is_none().then_some(()));
    let volume = repository.beside("volume");
    fs::rename(repository.path(), &volume).unwrap();
    said(&server, "the repository cannot be read");
    let rollback = Request::post_json(&format!("/api/v1/models/{IDENTITY}/rollback"), &json!({}));
    Connection::open(server.admin).ask(&rollback).ok();
    let answer = || server.post(&infer(IDENTITY), &identity("FP32", &json!([1.0]))).ok();
    assert_eq!(answer().header("x-tidegate-version"), Some("1"));
    fs::rename(&volume, repository.path()).unwrap();
    eventually("the repository is back", || {
        (server.admin("/readyz?verbose").text() == "ok\n").then_some(())
    });
    assert_eq!(answer().header("x-tidegate-version"), Some("1"));
}

#[test]
fn the_last_model_is_removed_once_the_grace_period_has_passed() {
    let repository = two_models();
    let server = serve(&repository).set("REPOSITORY__VANISHED_GRACE", "4s").start();
    fs::remove_dir_all(repository.path().join("add_sub")).unwrap();
    eventually("one of two is a wish", || {
        (server.get("/v2/models/add_sub").status == 404).then_some(())
    });
    fs::remove_dir_all(repository.path().join(IDENTITY)).unwrap();
    said(&server, "or wait until repository.vanished_grace has passed");
    server.post(&infer(IDENTITY), &identity("FP32", &json!([1.0]))).ok();
    eventually("then it is believed", || {
        (server.get(&format!("/v2/models/{IDENTITY}")).status == 404).then_some(())
    });
    assert_eq!(server.admin("/readyz?verbose").text(), "ok\n");
    // Nor does a restart bring it back.
    drop(server);
    let server = serve(&repository).start();
    assert_eq!(server.index(), Vec::<Value>::new());
}

#[test]
fn a_model_whose_folder_is_emptied_or_leads_nowhere_goes_on() {
    let repository = two_models();
    let server = serve(&repository).start();
    repository.remove("add_sub", "1");
    eventually("it says why", || {
        let text = problem(&server, "add_sub");
        text.as_str().filter(|text| text.contains("its folder has no version any more")).map(|_| ())
    });
    fs::rename(repository.path().join(IDENTITY), repository.beside("elsewhere")).unwrap();
    symlink("nowhere", repository.path().join("link")).unwrap();
    fs::rename(repository.path().join("link"), repository.path().join(IDENTITY)).unwrap();
    eventually("so does the other", || {
        let text = problem(&server, IDENTITY);
        text.as_str().filter(|text| text.contains("cannot be read")).map(|_| ())
    });
    both_answer(&server);
    repository.add("add_sub", "1");
    eventually("it is in order", || problem(&server, "add_sub").is_null().then_some(()));
    fs::remove_dir_all(repository.path().join("add_sub")).unwrap();
    eventually("to remove the folder is a wish", || {
        (server.get("/v2/models/add_sub").status == 404).then_some(())
    });
}

#[test]
fn a_root_that_is_wrong_from_the_start_is_not_ready_and_says_why() {
    let repository = Repository::empty();
    fs::remove_dir(repository.path()).unwrap();
    let not_ready = |server: &Server, why: &str| {
        eventually("it is not ready and says why", || {
            let ready = server.admin("/readyz");
            (ready.status == 503 && ready.text().contains(why)).then_some(())
        });
        assert_eq!(server.get("/v2/health/ready").status, 503);
    };
    let server = serve(&repository).start_until_alive();
    not_ready(&server, "the repository cannot be read");
    // A folder that comes later is served, and one without models is in order.
    fs::create_dir(repository.path()).unwrap();
    eventually("an empty folder is ready", || {
        (server.admin("/readyz").status == 200).then_some(())
    });
    repository.add("add_sub", "1");
    server.wait_for_state("add_sub", "1", "READY");
    drop(server);

    let circle = Repository::empty();
    fs::remove_dir(circle.path()).unwrap();
    symlink(circle.path(), circle.path()).unwrap();
    not_ready(&serve(&circle).start_until_alive(), "the repository cannot be read");
}
