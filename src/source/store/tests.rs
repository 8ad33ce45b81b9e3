//! The store on a real file system, with damage, crashes and a full disk.

use std::{sync::Barrier, thread};

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    (state, store)
}

/// Every file below a folder, relative to it.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn age(path: &Path) {
    let old = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
    File::options().write(true).open(path).unwrap().set_times(old).unwrap();
}

#[test]
fn bytes_are_kept_by_their_digest() {
    let (state, store) = store();
    let digest = store.put(b"abc").unwrap();
    assert_eq!(digest, Digest::of(b"abc"));
    assert_eq!(&store.read(&digest, 3).unwrap()[..], b"abc");
    assert_eq!(
        files(state.path()),
        [
            "blobs/ba/78/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "blobs/gate"
        ]
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&store.blob(&digest)), 0o600);
    let mut folder = store.blob(&digest);
    for _ in 0..3 {
        folder.pop();
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
    }
    assert_eq!(&store.read(&store.put(b"").unwrap(), 0).unwrap()[..], b"");
    let again = Store::open(state.path()).unwrap();
    assert_eq!(&again.read(&digest, 3).unwrap()[..], b"abc");
}

#[test]
fn a_blob_that_is_there_is_not_written_again() {
    let (_state, store) = store();
    let path = store.blob(&store.put(b"abc").unwrap());
    let before = fs::metadata(&path).unwrap().ino();
    store.put(b"abc").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
}

#[test]
fn what_is_not_there_or_too_large_is_an_error() {
    let (_state, store) = store();
    let digest = store.put(b"abc").unwrap();
    assert!(matches!(store.read(&Digest::of(b"x"), 9), Err(StoreError::Missing(_))));
    assert!(matches!(store.read(&digest, 2), Err(StoreError::TooLarge { bytes_max: 2, .. })));
}

#[test]
fn a_damaged_blob_is_moved_aside_and_can_be_put_again() {
    let (state, store) = store();
    for damage in [&b"abd"[..], b"ab", b"", b"abcd"] {
        let digest = store.put(b"abc").unwrap();
        fs::write(store.blob(&digest), damage).unwrap();
        let error = store.read(&digest, 100).unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)) && error.retry_helps(), "{error}");
        assert!(matches!(store.read(&digest, 100), Err(StoreError::Missing(_))));
        assert!(files(state.path()).contains(&format!("blobs/damaged/{digest}")));
        store.put(b"abc").unwrap();
        assert_eq!(&store.read(&digest, 100).unwrap()[..], b"abc");
    }
}

#[test]
fn a_link_in_the_stores_place_is_not_followed() {
    let (state, store) = store();
    let digest = store.put(b"abc").unwrap();
    let path = store.blob(&digest);
    fs::rename(&path, state.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(state.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(store.read(&digest, 9), Err(StoreError::Io { .. })));
    store.put(b"abc").unwrap();
    assert_eq!(&store.read(&digest, 9).unwrap()[..], b"abc");
}

#[test]
fn a_full_disk_is_an_error_of_its_own_and_leaves_nothing() {
    let (state, store) = store();
    // The device on which no write finds room.
    let mut incoming = store.incoming().unwrap();
    incoming.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = store.refused(incoming.file.write_all(b"abc").unwrap_err());
    drop(incoming);
    assert!(matches!(error, StoreError::Full { .. }) && error.retry_helps(), "{error}");
    assert!(error.to_string().contains("make room below"), "{error}");
    assert_eq!(files(state.path()), ["blobs/gate"]);
}

#[test]
fn leftovers_of_a_crash_are_removed_but_not_what_is_being_written() {
    let (state, store) = store();
    let mut incoming = store.incoming().unwrap();
    incoming.file.write_all(b"ab").unwrap();
    let written = incoming.path.clone().unwrap();
    fs::write(state.path().join("blobs/incoming/1-7"), "half").unwrap();
    let second = Store::open(state.path()).unwrap();
    assert_eq!(
        files(&state.path().join("blobs/incoming")),
        [written.file_name().unwrap().to_str().unwrap()]
    );
    second.collect(&BTreeSet::new(), Duration::ZERO).unwrap();
    let digest = Digest::of(b"ab");
    store.commit(incoming, &store.blob(&digest), &digest).unwrap();
    assert_eq!(&second.read(&digest, 9).unwrap()[..], b"ab");
}

#[test]
fn collecting_removes_what_is_old_and_not_kept() {
    let (state, store) = store();
    let [kept, old, young, touched] =
        ["kept", "old", "young", "touched"].map(|text| store.put(text.as_bytes()).unwrap());
    for digest in [kept, old, touched] {
        age(&store.blob(&digest));
    }
    store.put(b"touched").unwrap();
    fs::write(state.path().join("blobs/ab"), "not ours").unwrap();
    let collected = store.collect(&BTreeSet::from([kept]), Duration::from_hours(1)).unwrap();
    assert_eq!(collected, Collected { blobs: 1, bytes: 3 });
    assert!(matches!(store.read(&old, 9), Err(StoreError::Missing(_))));
    for digest in [kept, young, touched] {
        store.read(&digest, 9).unwrap();
    }
    let collected = store.collect(&BTreeSet::new(), Duration::ZERO).unwrap();
    assert_eq!(collected.blobs, 3);
    assert_eq!(files(state.path()), ["blobs/ab", "blobs/gate"]);
}

#[test]
fn many_may_put_read_and_collect_at_once() {
    let (state, store) = store();
    let texts: Vec<String> = (0..8).map(|number| format!("{number}").repeat(3000)).collect();
    let start = Barrier::new(9);
    thread::scope(|scope| {
        for writer in 0..8 {
            let (store, texts, start) = (store.clone(), &texts, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..16 {
                    let text = texts[(writer + round) % texts.len()].as_bytes();
                    let digest = store.put(text).unwrap();
                    // Within the grace: nobody removes it between those two lines.
                    assert_eq!(&store.read(&digest, 3000).unwrap()[..], text);
                }
            });
        }
        start.wait();
        for _ in 0..16 {
            store.collect(&BTreeSet::new(), Duration::from_hours(1)).unwrap();
        }
    });
    assert_eq!(files(state.path()).len(), texts.len() + 1);
}

#[test]
fn what_was_put_under_a_hold_is_collected_only_after_it() {
    let (_state, store) = store();
    let keep_nothing = || store.collect(&BTreeSet::new(), Duration::ZERO).unwrap().blobs;
    let before = store.put(b"before").unwrap();
    let first = store.hold();
    store.put(b"first").unwrap();
    // It was there, and is needed from now on.
    store.put(b"before").unwrap();
    let second = store.hold();
    store.put(b"second").unwrap();
    assert_eq!(keep_nothing(), 0);
    drop(first);
    assert_eq!(
        keep_nothing(),
        0,
        "a collection under the second hold may not know what the first was for"
    );
    store.read(&before, 10).unwrap();
    drop(second);
    assert_eq!(keep_nothing(), 3);
}

#[test]
fn a_blob_that_is_put_again_while_everything_is_collected_stays() {
    let (_state, store) = store();
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.collect(&BTreeSet::new(), Duration::ZERO).unwrap();
            }
        });
        for round in 0..200 {
            let hold = store.hold();
            let digest = store.put(b"the same bytes").unwrap();
            let found = store.read(&digest, 100);
            drop(hold);
            if found.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            assert!(found.is_ok(), "round {round}: {found:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_folder_that_was_removed_and_made_again_is_synced_again() {
    let (_state, store) = store();
    let known = || store.names().folders.clone();
    let digest = store.put(b"abc").unwrap();
    let first = known();
    assert_eq!(first.len(), 2, "both folders on the way to it");
    assert!(store.names().fresh.is_empty());
    // Something keeps the first inodes in use, so that the new folders have others.
    let open: Vec<_> = first.keys().map(|folder| File::open(folder).unwrap()).collect();
    store.collect(&BTreeSet::new(), Duration::ZERO).unwrap();
    assert_eq!(store.put(b"abc").unwrap(), digest);
    let second = known();
    assert!(first.keys().eq(second.keys()) && first.values().ne(second.values()), "{second:?}");
    drop(open);
    // Another thread has given it its name and not come further.
    store.names().fresh.insert(digest);
    store.put(b"abc").unwrap();
    assert!(store.names().fresh.is_empty());
}
