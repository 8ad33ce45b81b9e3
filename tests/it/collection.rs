//! The content store stays small however often versions change, and what is needed stays in it.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    repository::{Repository, source},
    server::{Launch, Server, eventually},
    tensors::{add_sub, infer},
};

/// A model that differs from others by its number and gives the same answers: the number is its documentation.
fn numbered(number: u64) -> Vec<u8> {
    let mut bytes = fs::read(source("add_sub", "1")).unwrap();
    let text = format!("{number:08}");
    bytes.extend([0x32, 8]);
    bytes.extend(text.as_bytes());
    bytes
}

fn remembering(repository: &Repository) -> Launch {
    // Proof is not what this is about, and takes most of the time.
    Launch::of(repository).remembering().set("PROOF__ENABLED", "false")
}

/// The files of the content store.
fn blobs(repository: &Repository) -> usize {
    let count = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
    let folders = |folder: &Path| -> Vec<_> {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        entries.filter(|entry| entry.file_name().len() == 2).map(|entry| entry.path()).collect()
    };
    let first = folders(&repository.beside("state/blobs"));
    first.iter().flat_map(|folder| folders(folder)).map(|folder| count(&folder)).sum()
}

fn swap(server: &Server, repository: &Repository, version: u64) {
    repository.add_bytes("counted", &version.to_string(), &numbered(version));
    server.post("/v2/repository/models/counted/load", &json!({})).ok();
}

fn answers(server: &Server, version: u64) {
    let response = server.post(&infer("counted"), &add_sub()).ok();
    assert_eq!(response.header("x-tidegate-version"), Some(&*version.to_string()));
}

#[test]
fn many_swaps_leave_a_small_store_that_serves_without_the_repository() {
    const SWAPS: u64 = 20;
    let repository = Repository::empty();
    repository.add_bytes("counted", "1", &numbered(1));
    let server = remembering(&repository).start();
    for version in 2..=SWAPS {
        swap(&server, &repository, version);
    }
    // A model and a manifest for each version: what serves, the one before, and what has come since the last
    // collection.
    eventually("the store is small", || (blobs(&repository) <= 2 * (2 + 4)).then_some(()));
    let page = server.admin("/metrics").text();
    assert!(page.contains("tidegate_store_collections_total{outcome=\"failed\"} 0"), "{page}");
    drop(server);

    // A start collects what the last process left.
    let server = remembering(&repository).start();
    eventually("only what serves and the one before are left", || {
        (blobs(&repository) == 4).then_some(())
    });
    answers(&server, SWAPS);
    drop(server);

    fs::rename(repository.path(), repository.beside("away")).unwrap();
    let server = remembering(&repository).start();
    answers(&server, SWAPS);
}

#[test]
fn a_process_killed_while_it_swaps_and_collects_leaves_a_good_store() {
    let repository = Repository::empty();
    repository.add_bytes("counted", "1", &numbered(1));
    let mut version = 1;
    for round in 0..3 {
        let server = remembering(&repository).start();
        for _ in 0..3 + round {
            version += 1;
            swap(&server, &repository, version);
        }
        // Dropping kills it, whatever it is doing.
        drop(server);
    }
    fs::rename(repository.path(), repository.beside("away")).unwrap();
    let server = remembering(&repository).start();
    answers(&server, version);
    let damaged = fs::read_dir(repository.beside("state/blobs/damaged")).unwrap().count();
    assert_eq!(damaged, 0);
}
