//! Models that are published as links: by caches, copies of links, mounted volumes and data version control.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    repository::Repository,
    server::{Launch, Server, eventually},
    tensors::{body, data, infer, input},
};

/// A model that multiplies with a 2 x 2 matrix, which lies in `weights.bin` beside it.
const MODEL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile/external/initializer-inside.onnx");

/// The matrix that multiplies with a number.
fn weights(factor: f32) -> Vec<u8> {
    [factor, 0.0, 0.0, factor].iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes the files of a model that multiplies with a number, under these names.
fn write(folder: &Path, model: &str, data: &str, factor: f32) {
    fs::create_dir_all(folder).unwrap();
    fs::copy(MODEL, folder.join(model)).unwrap();
    fs::write(folder.join(data), weights(factor)).unwrap();
}

/// What the model makes of `[1, 2]`; `None` where it does not serve.
fn answer(server: &Server, model: &str) -> Option<Value> {
    let asked = body(&[input("x", "FP32", &[1, 2], &json!([1.0, 2.0]))]);
    let response = server.post(&infer(model), &asked);
    (response.status == 200).then(|| data(&response, "y"))
}

fn multiplies(server: &Server, model: &str, factor: f32) {
    let expected = json!([factor, 2.0 * factor]);
    eventually(model, || (answer(server, model)? == expected).then_some(()));
}

/// A version's folder in a repository, made.
fn version(repository: &Repository, model: &str) -> PathBuf {
    let folder = repository.path().join(model).join("1");
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_snapshot_in_a_hugging_face_cache_is_served() {
    let repository = Repository::empty();
    let cache = repository.beside("hub").join("models--org--net");
    write(&cache.join("blobs"), "6e1f", "c0de", 3.0);
    write(&cache.join("blobs"), "6e1f", "c0df", 4.0);
    for (revision, blob) in [("first", "c0de"), ("second", "c0df")] {
        let snapshot = cache.join("snapshots").join(revision);
        fs::create_dir_all(&snapshot).unwrap();
        symlink("../../blobs/6e1f", snapshot.join("model.onnx")).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join("weights.bin")).unwrap();
    }
    // The whole cache in the repository's folder, or a link to a snapshot elsewhere.
    fs::create_dir(repository.path().join("net")).unwrap();
    let link_to = |revision: &str| {
        let next = repository.path().join("net/.next");
        symlink(cache.join("snapshots").join(revision), &next).unwrap();
        fs::rename(next, repository.path().join("net/1")).unwrap();
    };
    link_to("first");
    let server = Server::over(&repository);
    multiplies(&server, "net", 3.0);
    link_to("second");
    multiplies(&server, "net", 4.0);
}

#[test]
fn a_snapshot_itself_is_a_repository() {
    let repository = Repository::empty();
    let cache = repository.beside("hub");
    write(&cache.join("blobs"), "6e1f", "c0de", 3.0);
    // `models` is the snapshot, with the model's files as links to what lies beside it.
    symlink("../hub/blobs/6e1f", repository.path().join("model.onnx")).unwrap();
    symlink("../hub/blobs/c0de", repository.path().join("weights.bin")).unwrap();
    let server = Server::over(&repository);
    multiplies(&server, "models", 3.0);
}

#[test]
fn a_copy_of_hard_links_is_served_unless_they_are_refused() {
    let repository = Repository::of(&["add_sub"]);
    let original = repository.beside("original");
    write(&original, "model.onnx", "weights.bin", 3.0);
    // As `cp -al original models/net/1` makes it.
    let copy = version(&repository, "net");
    for name in ["model.onnx", "weights.bin"] {
        fs::hard_link(original.join(name), copy.join(name)).unwrap();
    }
    let data_only = version(&repository, "data_only");
    fs::copy(MODEL, data_only.join("model.onnx")).unwrap();
    fs::hard_link(original.join("weights.bin"), data_only.join("weights.bin")).unwrap();
    let server = Server::over(&repository);
    multiplies(&server, "net", 3.0);
    multiplies(&server, "data_only", 3.0);
    // A write through the other name is a change as well.
    fs::write(original.join("weights.bin"), weights(5.0)).unwrap();
    multiplies(&server, "net", 5.0);
    drop(server);

    let server = Launch::of(&repository).set("REPOSITORY__HARD_LINKS", "false").start();
    for (model, file) in [("net", "model.onnx"), ("data_only", "weights.bin")] {
        let entry = server.wait_for_state(model, "1", "UNAVAILABLE");
        let reason = entry["reason"].as_str().unwrap();
        assert!(reason.contains(file) && reason.contains("is a hard link; put a copy"), "{reason}");
        assert!(reason.contains("repository.hard_links"), "{reason}");
    }
}

/// Publishes a revision as the kubelet does: a new folder, and `..data` switched over to it in one step.
fn publish(volume: &Path, revision: &str, files: impl Fn(&Path)) {
    let stamped = volume.join(format!("..{revision}"));
    fs::create_dir_all(&stamped).unwrap();
    files(&stamped);
    symlink(format!("..{revision}"), volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[test]
fn a_mounted_volume_that_is_switched_over_is_served_anew() {
    let repository = Repository::empty();
    // A volume for the version, one for the model, and one for everything.
    let volume = version(&repository, "flat");
    let model = repository.path().join("nested");
    fs::create_dir_all(&model).unwrap();
    let deep = version(&repository, "deep");
    let publish_all = |revision: &str, factor: f32| {
        publish(&volume, revision, |at| write(at, "model.onnx", "weights.bin", factor));
        publish(&model, revision, |at| write(&at.join("1"), "model.onnx", "weights.bin", factor));
        publish(repository.path(), revision, |at| {
            write(&at.join("data"), "model.onnx", "weights.bin", factor);
        });
    };
    publish_all("2026_01", 2.0);
    for name in ["model.onnx", "weights.bin"] {
        symlink(format!("..data/{name}"), volume.join(name)).unwrap();
        symlink(format!("../../..data/data/{name}"), deep.join(name)).unwrap();
    }
    symlink("..data/1", model.join("1")).unwrap();
    let server = Server::over(&repository);
    for round in [3.0, 4.0] {
        for name in ["flat", "nested", "deep"] {
            multiplies(&server, name, round - 1.0);
        }
        publish_all(&format!("2026_0{round}"), round);
        for name in ["flat", "nested", "deep"] {
            multiplies(&server, name, round);
        }
    }
}

#[test]
fn a_checkout_whose_files_are_links_to_its_own_cache_is_served() {
    let repository = Repository::empty();
    // Each file in a folder of its own: relative links as git-annex makes them, absolute ones as DVC does.
    let annex = repository.path().join(".git/annex/objects");
    write(&annex.join("Kk/9p/SHA256E-s1--aa.onnx"), "SHA256E-s1--aa.onnx", "unused", 3.0);
    write(&annex.join("x1/Zz/SHA256E-s2--bb.bin"), "unused", "SHA256E-s2--bb.bin", 3.0);
    let annexed = version(&repository, "annexed");
    let up = "../../.git/annex/objects";
    for (name, key) in [
        ("model.onnx", "Kk/9p/SHA256E-s1--aa.onnx/SHA256E-s1--aa.onnx"),
        ("weights.bin", "x1/Zz/SHA256E-s2--bb.bin/SHA256E-s2--bb.bin"),
    ] {
        symlink(format!("{up}/{key}"), annexed.join(name)).unwrap();
    }
    let cache = repository.path().join(".dvc/cache/files/md5");
    write(&cache.join("6e"), "1f", "unused", 4.0);
    write(&cache.join("c0"), "unused", "de", 4.0);
    let tracked = version(&repository, "tracked");
    symlink(cache.join("6e/1f"), tracked.join("model.onnx")).unwrap();
    symlink(cache.join("c0/de"), tracked.join("weights.bin")).unwrap();
    let server = Server::over(&repository);
    multiplies(&server, "annexed", 3.0);
    multiplies(&server, "tracked", 4.0);
}

#[test]
fn links_that_lead_elsewhere_are_refused_with_the_places_that_are_right() {
    let repository = Repository::of(&["add_sub"]);
    let beside = repository.beside("beside");
    write(&beside, "model.onnx", "weights.bin", 3.0);
    let targets = [
        ("hostname", "/etc/hostname"),
        ("descriptor", "/proc/self/fd/0"),
        ("beside", "../../../beside/weights.bin"),
        ("absent", "/absent"),
    ];
    for (model, target) in targets {
        let folder = version(&repository, model);
        fs::copy(MODEL, folder.join("model.onnx")).unwrap();
        symlink(target, folder.join("weights.bin")).unwrap();
    }
    // The real model's neighbour, which nobody linked.
    let unlinked = version(&repository, "unlinked");
    symlink(beside.join("model.onnx"), unlinked.join("model.onnx")).unwrap();
    let server = Server::over(&repository);
    for (model, _) in targets {
        let entry = server.wait_for_state(model, "1", "UNAVAILABLE");
        let reason = entry["reason"].as_str().unwrap();
        for part in [
            "`weights.bin`, named by the model in",
            "symbolic link that leads elsewhere",
            "model's folder, below the repository's root or beside the real file that names it",
        ] {
            assert!(reason.contains(part), "{model}: {reason}");
        }
        assert!(!reason.contains("/etc") && !reason.contains("/proc"), "{model}: {reason}");
    }
    let entry = server.wait_for_state("unlinked", "1", "UNAVAILABLE");
    assert!(entry["reason"].as_str().unwrap().contains("there is no such file"), "{entry}");
    // Linked by that name, it is served.
    symlink(beside.join("weights.bin"), unlinked.join("weights.bin")).unwrap();
    multiplies(&server, "unlinked", 3.0);
}
