//! Versions on a real file system, at rest and while somebody publishes.

use std::{fs, os::unix::fs::symlink, path::Path};

use super::{
    super::{Folder, Settings},
    *,
};

fn list(folder: &Path, bytes_max: u64) -> ListedVersion {
    let place = Place {
        root: folder.to_owned(),
        folder: folder.to_owned(),
        within: "1".to_owned(),
        shown: "m/1".to_owned(),
        filename: FileName::default(),
        bytes_max,
        hard_links: true,
    };
    let fingerprint = place.fingerprint().unwrap();
    FolderVersion { fingerprint, place, described: Arc::default() }.listed()
}

fn version(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.onnx"), model).unwrap();
    folder
}

fn refusal(listed: &ListedVersion) -> String {
    listed.read().unwrap_err().chain()
}

#[test]
fn a_version_is_read_and_hashed() {
    let folder = version("abc");
    let artifact = list(folder.path(), 100).read().unwrap();
    assert_eq!(&artifact.model[..], b"abc");
    // The digest of `abc` in FIPS 180-2.
    assert_eq!(artifact.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(artifact.golden, None);
}

#[test]
fn golden_outputs_are_read() {
    let folder = version("abc");
    fs::write(folder.path().join("golden.json"), "{}").unwrap();
    let artifact = list(folder.path(), 100).read().unwrap();
    assert_eq!(artifact.golden.as_deref(), Some(&b"{}"[..]));
}

#[test]
fn links_to_models_are_followed() {
    let (target, folder) = (version("abc"), tempfile::tempdir().unwrap());
    symlink(target.path().join("model.onnx"), folder.path().join("model.onnx")).unwrap();
    let artifact = list(folder.path(), 100).read().unwrap();
    assert_eq!(&artifact.model[..], b"abc");
}

/// A version whose files are all links to a folder beside it, which holds them as `0`, `1` and so on.
fn linked(files: &[(&str, &str)]) -> (tempfile::TempDir, std::path::PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("snapshots/1");
    fs::create_dir(outer.path().join("blobs")).unwrap();
    for (number, (path, content)) in files.iter().enumerate() {
        let blob = outer.path().join(format!("blobs/{number}"));
        fs::write(&blob, content).unwrap();
        fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
        symlink(blob, folder.join(path)).unwrap();
    }
    (outer, folder)
}

#[test]
fn every_file_of_a_version_may_be_a_link() {
    let digests: String = [("model.onnx", "abc"), ("weights", "w"), ("golden.json", "{}")]
        .map(|(path, content)| format!("{}  {path}\n", Digest::of(content.as_bytes())))
        .concat();
    let (outer, folder) = linked(&[
        ("model.onnx", "abc"),
        ("weights", "w"),
        ("golden.json", "{}"),
        ("SHA256SUMS", &digests),
    ]);
    let listed = list(&folder, 100);
    let artifact = listed.read().unwrap();
    assert_eq!(artifact.golden.as_deref(), Some(&b"{}"[..]));
    assert_eq!(&artifact.read_beside("weights").unwrap().memory().unwrap()[..], b"w");
    artifact.confirm().unwrap();
    let (model, beside) = listed.folder_bytes();
    assert_eq!(model + beside, 6 + digests.len() as u64);
    // The bytes behind the link, and the link.
    fs::write(outer.path().join("blobs/1"), "W").unwrap();
    assert!(matches!(artifact.confirm(), Err(SourceError::Changed(_))));
    let artifact = list(&folder, 100).read().unwrap();
    assert!(artifact.read_beside("weights").unwrap_err().chain().contains("`SHA256SUMS` lists"));
    fs::remove_file(folder.join("weights")).unwrap();
    symlink("nowhere", folder.join("weights")).unwrap();
    assert!(refusal(&list(&folder, 100)).contains("2 of 3 files of `SHA256SUMS` are there"));
}

#[test]
fn a_model_folder_may_hold_links_and_be_one() {
    let (outer, folder) = linked(&[("model.onnx/model.onnx", "abc"), ("model.onnx/sub/w", "w")]);
    let read = |folder: &Path| {
        let artifact = list(folder, 100).read()?;
        assert_eq!(&artifact.model[..], b"abc");
        let data = artifact.read_beside("sub/w")?;
        artifact.confirm()?;
        Ok::<_, SourceError>(data)
    };
    assert_eq!(&read(&folder).unwrap().memory().unwrap()[..], b"w");
    let version = outer.path().join("version");
    fs::create_dir(&version).unwrap();
    symlink(folder.join("model.onnx"), version.join("model.onnx")).unwrap();
    assert_eq!(&read(&version).unwrap().memory().unwrap()[..], b"w");
    // What lies behind the folder's link is part of the version.
    let before = list(&version, 100).fingerprint;
    fs::write(outer.path().join("blobs/1"), "W").unwrap();
    assert_ne!(list(&version, 100).fingerprint, before);
}

#[test]
fn links_to_folders_are_followed_where_they_are_the_models_own() {
    let folder = version("abc");
    fs::create_dir_all(folder.path().join("..data/weights")).unwrap();
    fs::write(folder.path().join("..data/weights/w"), "w").unwrap();
    symlink("..data/weights", folder.path().join("weights")).unwrap();
    symlink("/etc", folder.path().join("elsewhere")).unwrap();
    let artifact = list(folder.path(), 100).read().unwrap();
    assert_eq!(&artifact.read_beside("weights/w").unwrap().memory().unwrap()[..], b"w");
    let refused = artifact.read_beside("elsewhere/hostname").unwrap_err().chain();
    assert!(refused.contains("is or passes a symbolic link that leads elsewhere"), "{refused}");
    artifact.confirm().unwrap();
    fs::write(folder.path().join("..data/weights/w"), "ww").unwrap();
    assert!(matches!(artifact.confirm(), Err(SourceError::Changed(_))));
}

#[test]
fn a_model_may_be_a_folder_with_its_data() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("model.onnx")).unwrap();
    fs::write(folder.path().join("model.onnx/model.onnx"), "abc").unwrap();
    fs::write(folder.path().join("model.onnx/weights"), "w").unwrap();
    let artifact = list(folder.path(), 100).read().unwrap();
    assert_eq!(&artifact.model[..], b"abc");
    assert_eq!(&artifact.read_beside("weights").unwrap().memory().unwrap()[..], b"w");
}

#[test]
fn what_cannot_be_read_says_why() {
    let empty = tempfile::tempdir().unwrap();
    assert!(refusal(&list(empty.path(), 9)).starts_with("`m/1/model.onnx` is missing; put"));
    let large = version("0123456789");
    assert_eq!(
        refusal(&list(large.path(), 9)),
        "`m/1/model.onnx` has more than 9 bytes, the most that is read"
    );
    let pipe = tempfile::tempdir().unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        pipe.path().join("model.onnx"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(
        refusal(&list(pipe.path(), 9)),
        "`m/1/model.onnx` is a pipe; it must be a regular file"
    );
}

#[test]
fn a_folder_that_changed_is_not_read_as_if_it_had_not() {
    let folder = version("abc");
    let listed = list(folder.path(), 100);
    fs::write(folder.path().join("model.onnx"), "abcd").unwrap();
    let error = listed.read().unwrap_err();
    assert!(matches!(error, SourceError::Changed(_)) && error.retry_helps(), "{error}");

    let artifact = list(folder.path(), 100).read().unwrap();
    artifact.confirm().unwrap();
    fs::write(folder.path().join("weights"), "late").unwrap();
    assert!(matches!(artifact.confirm(), Err(SourceError::Changed(_))));
}

#[test]
fn external_data_counts_with_the_model_and_is_read_once() {
    let folder = version("abc");
    fs::write(folder.path().join("weights"), "weights").unwrap();
    fs::write(folder.path().join("more"), "x").unwrap();
    let artifact = list(folder.path(), 10).read().unwrap();
    for _ in 0..3 {
        assert_eq!(&artifact.read_beside("weights").unwrap().memory().unwrap()[..], b"weights");
    }
    assert_eq!(
        artifact.read_beside("more").unwrap_err().chain(),
        "`more`, named by the model in `m/1`, is refused: the model with its external data has more than 10 \
         bytes, the most that is read"
    );
}

#[test]
fn models_replaced_under_the_reader_are_never_mixed() {
    let folder = version("0");
    let model = folder.path().join("model.onnx");
    let publish = |round: usize| {
        let next = folder.path().join(".next");
        fs::write(&next, format!("{round}").repeat(4096)).unwrap();
        fs::rename(&next, &model).unwrap();
    };
    publish(0);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| (1..500).map(|round| round % 10).for_each(publish));
        while !publisher.is_finished() {
            match list(folder.path(), 1 << 20).read() {
                Ok(artifact) => {
                    assert_eq!(artifact.sha256, Digest::of(&artifact.model).to_string());
                    assert_eq!(artifact.model.len(), 4096);
                    assert!(artifact.model.iter().all(|byte| *byte == artifact.model[0]));
                }
                Err(error) => assert!(error.retry_helps(), "{error}"),
            }
        }
    });
    list(folder.path(), 1 << 20).read().unwrap();
}

#[test]
fn external_data_stays_in_the_folder() {
    let folder = version("abc");
    symlink("/etc/passwd", folder.path().join("link")).unwrap();
    let artifact = list(folder.path(), 1 << 20).read().unwrap();
    for location in ["link", "../1/model.onnx", "/etc/passwd", "..\\x", "", "a\0", "."] {
        let error = artifact.read_beside(location).unwrap_err();
        assert!(matches!(error, SourceError::Beside { .. }), "{location:?}: {error}");
    }
}

fn publish_sums(folder: &Path, files: &[&str]) {
    let line = |path: &&str| {
        let digest = Digest::of(&fs::read(folder.join(path)).unwrap());
        format!("{digest}  {path}\n")
    };
    let text: String = files.iter().map(line).collect();
    fs::write(folder.join("SHA256SUMS.next"), text).unwrap();
    fs::rename(folder.join("SHA256SUMS.next"), folder.join("SHA256SUMS")).unwrap();
}

#[test]
fn a_listed_version_is_complete_when_every_file_is_there() {
    let folder = version("abc");
    for name in ["weights", "notes"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    publish_sums(folder.path(), &["model.onnx", "weights", "notes"]);
    let artifact = list(folder.path(), 100).read().unwrap();
    artifact.read_beside("weights").unwrap();
    artifact.confirm().unwrap();

    fs::remove_file(folder.path().join("notes")).unwrap();
    let error = list(folder.path(), 100).read().unwrap_err();
    assert_eq!(
        error.to_string(),
        "`m/1` is still being copied: 2 of 3 files of `SHA256SUMS` are there"
    );
    assert!(error.retry_helps());

    // Not used by the model, and wrong all the same.
    fs::write(folder.path().join("notes"), "half").unwrap();
    let error = list(folder.path(), 100).read().unwrap().confirm().unwrap_err();
    let expected =
        "the bytes of `m/1/notes` are not those that `SHA256SUMS` lists; publish both again";
    assert_eq!(error.to_string(), expected);
    assert!(!error.retry_helps());
}

#[test]
fn files_that_are_not_as_listed_are_refused() {
    let folder = version("abc");
    fs::write(folder.path().join("weights"), "weights").unwrap();
    publish_sums(folder.path(), &["weights"]);
    assert!(
        refusal(&list(folder.path(), 100))
            .starts_with("`m/1/model.onnx` is refused: `SHA256SUMS` does not")
    );
    publish_sums(folder.path(), &["model.onnx"]);
    let artifact = list(folder.path(), 100).read().unwrap();
    assert_eq!(
        artifact.read_beside("weights").unwrap_err().chain(),
        "`weights`, named by the model in `m/1`, is refused: `SHA256SUMS` does not list it; list every file of \
         the version there"
    );
    publish_sums(folder.path(), &["model.onnx", "weights"]);
    fs::write(folder.path().join("weights"), "WEIGHTS").unwrap();
    let artifact = list(folder.path(), 100).read().unwrap();
    let error = artifact.read_beside("weights").unwrap_err();
    assert!(error.chain().contains("`weights`") && error.chain().contains("not those"), "{error}");
    fs::write(folder.path().join("model.onnx"), "abd").unwrap();
    assert!(
        refusal(&list(folder.path(), 100)).starts_with("the bytes of `m/1/model.onnx` are not")
    );
    fs::write(folder.path().join("SHA256SUMS"), "abc  model.onnx").unwrap();
    assert!(
        refusal(&list(folder.path(), 100))
            .starts_with("`m/1/SHA256SUMS` cannot be used: line 1: this is not")
    );
}

/// A model `m` with everything that a version may have, and where it is.
fn repository() -> (tempfile::TempDir, std::path::PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("m");
    fs::create_dir_all(model.join("3/data")).unwrap();
    fs::write(model.join("model.toml"), "max_batch_size = 7\nclass_names = { y = 'names/y.txt' }")
        .unwrap();
    fs::create_dir(model.join("names")).unwrap();
    fs::write(model.join("names/y.txt"), "cat\ndog\n").unwrap();
    fs::write(model.join("3/model.onnx"), "abc").unwrap();
    fs::write(model.join("3/golden.json"), "{}").unwrap();
    fs::write(model.join("3/data/weights"), "weights").unwrap();
    (root, model)
}

fn list_only(root: &Path) -> (crate::model::ModelDescription, ListedVersion) {
    let mut listing = Folder::new(Settings::new(root)).list().unwrap();
    let (_, mut model) = listing.models.pop_first().unwrap();
    let (_, version) = model.versions.pop_last().unwrap();
    (model.description.unwrap(), version)
}

#[test]
fn a_version_that_was_kept_needs_no_repository() {
    let (root, model) = repository();
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let (description, listed) = list_only(root.path());
    let artifact = listed.fetch(Some(&store)).unwrap();
    artifact.read_beside("data/weights").unwrap();
    artifact.confirm().unwrap();
    // Nothing goes back to the folder from here on.
    fs::remove_dir_all(&model).unwrap();
    let digest = artifact.keep(&store).unwrap();
    let manifest = artifact.manifest().unwrap();
    assert_eq!(manifest.digest(), digest);
    assert_eq!(
        manifest.files().keys().collect::<Vec<_>>(),
        ["3/data/weights", "3/golden.json", "3/model.onnx", "model.toml", "names/y.txt"]
    );

    let store = Store::open(state.path()).unwrap();
    store.collect(&store.blobs(&digest).unwrap(), std::time::Duration::ZERO).unwrap();
    let stored = store.version(&digest, 100).unwrap();
    assert_eq!(stored.description, description);
    assert_eq!(stored.description.class_names["y"], ["cat", "dog"]);
    let again = stored.artifact;
    assert_eq!(again.model, artifact.model);
    assert_eq!(again.sha256, artifact.sha256);
    assert_eq!(again.golden, artifact.golden);
    assert_eq!(&again.read_beside("data/weights").unwrap().memory().unwrap()[..], b"weights");
    again.confirm().unwrap();
    assert_eq!(again.manifest().unwrap(), manifest);
    assert_eq!(again.keep(&store).unwrap(), digest);
    for location in ["absent", "../model.toml", "/etc/passwd", "", "data/../data/weights"] {
        assert!(again.read_beside(location).is_err(), "{location}");
    }
    let error = store.version(&digest, 9).unwrap().artifact.read_beside("data/weights");
    assert!(error.unwrap_err().chain().contains("more than 9 bytes"));
    assert!(store.version(&digest, 2).is_err());

    store.collect(&[digest].into(), std::time::Duration::ZERO).unwrap();
    let error = store.version(&digest, 100).unwrap_err();
    assert!(
        error.chain().contains("the content store has no bytes of digest"),
        "{}",
        error.chain()
    );
    assert!(store.version(&Digest::of(b"other"), 100).is_err());
}

#[test]
fn every_layout_can_be_kept() {
    let check = |files: &[(&str, &str)], beside: &str, expected: &[&str]| {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("models");
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let store = Store::open(outer.path()).unwrap();
        let (description, listed) = list_only(&root);
        let artifact = listed.fetch(None).unwrap();
        artifact.read_beside(beside).unwrap();
        let digest = artifact.keep(&store).unwrap();
        assert_eq!(store.manifest(&digest).unwrap().files().keys().collect::<Vec<_>>(), expected);
        let stored = store.version(&digest, 100).unwrap();
        assert_eq!(stored.description, description);
        assert_eq!(stored.artifact.model, artifact.model);
        assert_eq!(&stored.artifact.read_beside(beside).unwrap().memory().unwrap()[..], b"w");
    };
    check(
        &[("model.onnx", "a"), ("w", "w"), ("model.toml", "")],
        "w",
        &["model.onnx", "model.toml", "w"],
    );
    check(
        &[("MLmodel", "flavors: {onnx: {data: net.onnx}}"), ("net.onnx", "a"), ("w", "w")],
        "w",
        &["MLmodel", "net.onnx", "w"],
    );
    check(
        &[("m/2/model.onnx/model.onnx", "a"), ("m/2/model.onnx/d/w", "w"), ("m/config.pbtxt", "")],
        "d/w",
        &["2/model.onnx/d/w", "2/model.onnx/model.onnx", "config.pbtxt"],
    );
}

/// Bytes of one round that no other round has, at any place.
fn content(round: usize, length: usize) -> String {
    char::from(b'a' + u8::try_from(round % 26).unwrap()).to_string().repeat(length)
}

/// Fetches while `publish` replaces the version 1,000 times; `whole` says whether bytes are those of one round.
fn race(publish: impl Fn(&Path, usize) + Sync, whole: impl Fn(&Artifact)) {
    let (root, model) = repository();
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let folder = model.join("3");
    publish(&folder, 0);
    let mut fetched = 0;
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| (1..=1000).for_each(|round| publish(&folder, round)));
        let mut last = false;
        // Once more after the last round, so that at least one fetch meets a folder at rest.
        while !last {
            last = publisher.is_finished();
            let fetch = || {
                let listing = Folder::new(Settings::new(root.path())).list()?;
                let mut versions =
                    listing.models.values().flat_map(|model| model.versions.values());
                let Some(version) = versions.next() else { return Ok(None) };
                let artifact = version.fetch(Some(&store))?;
                artifact.read_beside("data/weights")?;
                artifact.confirm()?;
                Ok::<_, SourceError>(Some(artifact))
            };
            match fetch() {
                Ok(None) => assert!(!last),
                Ok(Some(artifact)) => {
                    fetched += 1;
                    let digest = artifact.keep(&store).unwrap();
                    let stored = store.version(&digest, 1 << 20).unwrap().artifact;
                    assert_eq!(stored.model, artifact.model);
                    assert_eq!(stored.sha256, Digest::of(&artifact.model).to_string());
                    whole(&artifact);
                    whole(&stored);
                }
                Err(error) => {
                    // A file may be caught half written at rest: then its digest tells.
                    let told = matches!(error, SourceError::WrongDigest(_))
                        || error.chain().contains("not those that `SHA256SUMS` lists");
                    assert!(error.retry_helps() || told && !last, "{}", error.chain());
                }
            }
        }
    });
    assert!(fetched > 0);
}

fn one_round(artifact: &Artifact) {
    let weights = artifact.read_beside("data/weights").unwrap();
    let first = artifact.model[0];
    assert_eq!((artifact.model.len(), weights.len()), (3 << 14, 5 << 12));
    assert!(artifact.model.iter().chain(weights.memory().unwrap()).all(|byte| *byte == first));
}

#[test]
fn versions_replaced_by_rename_are_never_mixed() {
    let publish = |folder: &Path, round: usize| {
        let next = folder.with_file_name(".next");
        fs::create_dir_all(next.join("data")).unwrap();
        fs::write(next.join("model.onnx"), content(round, 3 << 14)).unwrap();
        fs::write(next.join("data/weights"), content(round, 5 << 12)).unwrap();
        let old = folder.with_file_name(".old");
        fs::rename(folder, &old).unwrap();
        fs::rename(&next, folder).unwrap();
        fs::remove_dir_all(old).unwrap();
    };
    race(publish, one_round);
}

#[test]
fn versions_written_in_place_are_never_mixed_where_their_digests_are_listed() {
    let publish = |folder: &Path, round: usize| {
        fs::write(folder.join("model.onnx"), content(round, 3 << 14)).unwrap();
        fs::write(folder.join("data/weights"), content(round, 5 << 12)).unwrap();
        publish_sums(folder, &["model.onnx", "data/weights"]);
    };
    let prepare = |folder: &Path, round: usize| {
        let _ = fs::remove_file(folder.join("golden.json"));
        publish(folder, round);
    };
    race(prepare, one_round);
}

#[test]
fn files_written_in_place_are_hashed_as_they_are_used() {
    let publish = |folder: &Path, round: usize| {
        fs::write(folder.join("model.onnx"), content(round, 3 << 14)).unwrap();
        fs::write(folder.join("data/weights"), content(round, 5 << 12)).unwrap();
    };
    // Which half of a copy is taken is for whoever waits until the folder is at rest; that it is hashed is ours.
    race(publish, |_| {});
}

#[test]
fn mounted_volumes_that_are_switched_over_are_read_from_one_state() {
    let outer = tempfile::tempdir().unwrap();
    let model = outer.path().join("models/m");
    fs::create_dir_all(&model).unwrap();
    // As a volume is mounted: everything is a link into `..data`, which is switched over in one step.
    let publish = |round: usize| {
        let state = model.join(format!("..{round}"));
        fs::create_dir_all(state.join("1")).unwrap();
        fs::write(state.join("model.toml"), format!("max_batch_size = {round}")).unwrap();
        fs::write(state.join("1/model.onnx"), format!("{round}")).unwrap();
        fs::write(state.join("1/golden.json"), format!("{round}")).unwrap();
        fs::write(state.join("1/weights"), format!("{round}")).unwrap();
        symlink(format!("..{round}"), model.join("..next")).unwrap();
        fs::rename(model.join("..next"), model.join("..data")).unwrap();
        if let Some(before) = round.checked_sub(1) {
            fs::remove_dir_all(model.join(format!("..{before}"))).unwrap();
        }
    };
    publish(0);
    for name in ["1", "model.toml"] {
        symlink(format!("..data/{name}"), model.join(name)).unwrap();
    }
    let root = outer.path().join("models");
    let mut fetched = 0;
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| (1..=1000).for_each(publish));
        let mut last = false;
        while !last {
            last = publisher.is_finished();
            let listing = Folder::new(Settings::new(&root)).list().unwrap();
            let Some(model) = listing.models.values().next() else {
                assert!(!last, "{listing:?}");
                continue;
            };
            for version in model.versions.values() {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let fetch = || {
                    let artifact = version.fetch(None)?;
                    let weights = artifact.read_beside("weights")?;
                    artifact.confirm()?;
                    Ok::<_, SourceError>((artifact, weights))
                };
                match fetch() {
                    Ok((artifact, weights)) => {
                        fetched += 1;
                        let round = text(&artifact.model);
                        assert_eq!(text(weights.memory().unwrap()), round);
                        assert_eq!(text(artifact.golden.as_ref().unwrap()), round);
                        let described = model.description.as_ref().unwrap().max_batch_size;
                        assert_eq!(described.unwrap().to_string(), round);
                    }
                    Err(error) => assert!(error.retry_helps() && !last, "{}", error.chain()),
                }
            }
        }
    });
    assert!(fetched > 0);
}
