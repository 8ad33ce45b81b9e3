//! Layouts on a real file system.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use super::*;
use crate::model::{EngineChoice, VersionPolicy};

/// A folder `models` with these files: path and content.
fn repository(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("models");
    fs::create_dir(&root).unwrap();
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    (outer, root)
}

fn list(root: &Path) -> Listing {
    Folder::new(Settings::new(root)).list().unwrap()
}

/// `model: version version`, by line.
fn summary(listing: &Listing) -> Vec<String> {
    let versions = |model: &ListedModel| -> Vec<_> {
        model.versions.keys().map(|version| format!(" {version}")).collect()
    };
    let line =
        |(name, model): (&ModelName, &ListedModel)| format!("{name}:{}", versions(model).concat());
    listing.models.iter().map(line).collect()
}

fn problems(listing: &Listing) -> Vec<String> {
    let line = |problem: &Problem| format!("{}: {}", problem.what, problem.reason);
    listing.problems.iter().map(line).collect()
}

fn description(listing: &Listing, name: &str) -> Result<ModelDescription, String> {
    listing.models[name].description.clone().map_err(|error| error.chain())
}

#[test]
fn triton_repositories_are_listed() {
    let (_outer, root) = repository(&[
        ("resnet/1/model.onnx", "a"),
        ("resnet/3/model.onnx", "c"),
        ("resnet/02/model.onnx", "ignored"),
        ("resnet/0/model.onnx", "ignored"),
        ("resnet/next/model.onnx", "ignored"),
        ("resnet/.4/model.onnx", "ignored"),
        ("resnet/7", "a file"),
        ("resnet/labels.txt", "cat\ndog\n"),
        (
            "resnet/config.pbtxt",
            "name: \"resnet\" output [ { name: \"p\" label_filename: \"labels.txt\" } ]",
        ),
        ("iris/1/model.onnx", "b"),
        (".git/1/model.onnx", "hidden"),
        ("README.md", "a file"),
    ]);
    let listing = list(&root);
    assert_eq!(summary(&listing), ["iris: 1", "resnet: 1 3"]);
    assert_eq!(problems(&listing), [""; 0]);
    let resnet = description(&listing, "resnet").unwrap();
    assert_eq!(resnet.class_names["p"], ["cat", "dog"]);
    assert_eq!(description(&listing, "iris").unwrap(), ModelDescription::default());
    let artifact = listing.models["resnet"].versions[&VersionId::new(3)].read().unwrap();
    assert_eq!(&artifact.model[..], b"c");
}

#[test]
fn what_the_server_writes_into_the_root_is_no_model() {
    let (outer, root) = repository(&[
        ("good/1/model.onnx", "a"),
        ("state/log", ""),
        ("table/predictions/good/1/x.parquet", ""),
        ("elsewhere/1/model.onnx", "a"),
    ]);
    // However the same folder is spelled; one of this name that lies elsewhere is another.
    let same = outer.path().join("models/../models/state");
    let own_folders =
        vec![same, root.join("table"), outer.path().join("elsewhere"), "gone/x".into()];
    let settings = Settings { own_folders, ..Settings::new(&root) };
    let listing = Folder::new(settings).list().unwrap();
    assert_eq!(summary(&listing), ["elsewhere: 1", "good: 1"]);
    assert_eq!(problems(&listing), [""; 0]);
}

#[test]
fn what_cannot_be_used_is_a_problem_and_hides_nothing() {
    let (_outer, root) = repository(&[
        ("good/1/model.onnx", "a"),
        ("bad name/1/model.onnx", "a"),
        ("..bad/1/model.onnx", "hidden"),
        ("_private/1/model.onnx", "a"),
        ("empty/README", ""),
        ("lost+found/x", ""),
    ]);
    let listing = list(&root);
    assert_eq!(summary(&listing), ["empty:", "good: 1"]);
    let [bad, private, empty] = &problems(&listing)[..] else { panic!("{listing:?}") };
    assert!(bad.starts_with("_private: `_private` is not a model name"), "{bad}");
    assert!(private.starts_with("bad name: `bad name` is not a model name"), "{private}");
    assert_eq!(empty, "empty: it has no version; put the model at `empty/1/model.onnx`");
}

#[test]
fn links_to_models_and_versions_are_followed() {
    let (outer, root) = repository(&[("..data/m/1/model.onnx", "a")]);
    fs::create_dir_all(outer.path().join("elsewhere/v")).unwrap();
    fs::write(outer.path().join("elsewhere/v/model.onnx"), "b").unwrap();
    symlink("..data/m", root.join("mounted")).unwrap();
    fs::create_dir(root.join("tracked")).unwrap();
    symlink(outer.path().join("elsewhere/v"), root.join("tracked/5")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let listing = list(&root);
    assert_eq!(summary(&listing), ["mounted: 1", "tracked: 5"]);
    let artifact = listing.models["tracked"].versions[&VersionId::new(5)].read().unwrap();
    assert_eq!(&artifact.model[..], b"b");
}

#[test]
fn a_bare_model_takes_the_name_given_or_its_folders() {
    let (_outer, root) = repository(&[("model.onnx", "a"), ("model.toml", "engine = 'tract'")]);
    let listing = list(&root);
    assert_eq!(summary(&listing), ["models: 1"]);
    assert_eq!(description(&listing, "models").unwrap().engine, EngineChoice::Tract);
    let version = &listing.models["models"].versions[&VersionId::new(1)];
    assert_eq!(&version.read().unwrap().model[..], b"a");

    let name = ModelName::parse("named").unwrap();
    let settings = Settings { model_name: Some(name), ..Settings::new(&root) };
    assert_eq!(summary(&Folder::new(settings).list().unwrap()), ["named: 1"]);

    let awkward = root.parent().unwrap().join("my models");
    fs::rename(&root, &awkward).unwrap();
    let error = Folder::new(Settings::new(&awkward)).list().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the folder's own name `my models` is not a model name; give one with `--model-name`"
    );
}

#[test]
fn an_mlflow_model_is_version_1() {
    let (_outer, root) = repository(&[
        ("MLmodel", "flavors:\n  onnx:\n    data: net.onnx\n  python_function: {}\n"),
        ("net.onnx", "a"),
        ("conda.yaml", ""),
    ]);
    let listing = list(&root);
    assert_eq!(summary(&listing), ["models: 1"]);
    let version = &listing.models["models"].versions[&VersionId::new(1)];
    assert_eq!(&version.read().unwrap().model[..], b"a");

    fs::write(root.join("MLmodel"), "flavors: {sklearn: {}}").unwrap();
    let error = Folder::new(Settings::new(&root)).list().unwrap_err();
    assert!(matches!(error, SourceError::NoOnnxFlavor { .. }), "{error}");
}

#[test]
fn a_name_for_the_repository_is_that_of_its_only_model() {
    let (_outer, root) = repository(&[("resnet/1/model.onnx", "a")]);
    let name = ModelName::parse("named").unwrap();
    let folder = Folder::new(Settings { model_name: Some(name), ..Settings::new(&root) });
    assert_eq!(summary(&folder.list().unwrap()), ["named: 1"]);
    fs::create_dir_all(root.join("second/1")).unwrap();
    let listing = folder.list().unwrap();
    assert_eq!(summary(&listing), ["resnet: 1", "second: 1"]);
    assert!(problems(&listing)[0].contains("is for a repository of one model"), "{listing:?}");
}

#[test]
fn descriptions_that_cannot_be_used_leave_the_versions() {
    let check = |files: &[(&str, &str)], expected: &str| {
        let (_outer, root) = repository(files);
        fs::create_dir_all(root.join("m/1")).unwrap();
        let listing = list(&root);
        assert_eq!(summary(&listing), ["m: 1"]);
        let error = description(&listing, "m").expect_err(expected);
        assert!(error.contains(expected), "{error}");
    };
    let large = "#".repeat(1 << 20) + "#";
    check(
        &[("m/config.pbtxt", "max_batch_size: 8\n  instance_groups [ { count: 2 } ]")],
        "m/config.pbtxt:2:3: a model has no field `instance_groups`; did you mean `instance_group`?",
    );
    check(&[("m/model.toml", "\nbatch = 1")], "m/model.toml:2:1: unknown field `batch`");
    check(
        &[("m/model.toml", ""), ("m/config.pbtxt", "")],
        "only one can be right; remove `config.pbtxt`",
    );
    check(
        &[("m/config.pbtxt", "name: \"other\"")],
        "`m/config.pbtxt` names the model `other`, but its folder is `m`; make them the same",
    );
    check(&[("m/config.pbtxt", &large)], "`m/config.pbtxt` has more than 1048576 bytes");
    check(&[("m/config.pbtxt/x", "")], "`m/config.pbtxt` is a folder");
}

#[test]
fn class_names_come_from_the_models_own_folder() {
    let check = |location: &str, expected: Result<&[&str], &str>| {
        let (outer, root) = repository(&[
            ("m/1/model.onnx", ""),
            ("m/sub/labels.txt", "a\r\nb\n\nc"),
            ("m/bytes.txt", ""),
            ("m/model.toml", &format!("class_names = {{ y = '{location}' }}")),
        ]);
        fs::write(outer.path().join("secret"), "secret").unwrap();
        fs::write(root.join("m/bytes.txt"), b"\xff").unwrap();
        fs::write(root.join("m/many.txt"), "x\n".repeat(100_001)).unwrap();
        fs::write(root.join("m/large.txt"), "x".repeat((1 << 20) + 1)).unwrap();
        symlink(outer.path().join("secret"), root.join("m/link.txt")).unwrap();
        symlink("sub/labels.txt", root.join("m/own.txt")).unwrap();
        let listing = list(&root);
        match (description(&listing, "m"), expected) {
            (Ok(description), Ok(expected)) => assert_eq!(description.class_names["y"], expected),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            other => panic!("{location}: {other:?}"),
        }
    };
    check("sub/labels.txt", Ok(&["a", "b", "", "c"]));
    check("own.txt", Ok(&["a", "b", "", "c"]));
    check(
        "labels.txt",
        Err("`labels.txt`, named by the model in `m`, is refused: there is no such file"),
    );
    check("../../secret", Err("it has a part that is empty, `.` or `..`"));
    check("link.txt", Err("symbolic link"));
    check("/etc/passwd", Err("it is absolute"));
    check("bytes.txt", Err("class names in `bytes.txt`: they are not UTF-8"));
    check("many.txt", Err("there are more than 100000"));
    check("large.txt", Err("label files may have 1048576 bytes"));
}

#[test]
fn class_names_may_lie_beside_the_real_description() {
    let (outer, root) = repository(&[("m/1/model.onnx", "")]);
    let blobs = outer.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    fs::write(blobs.join("0"), "class_names = { y = 'names.txt' }").unwrap();
    fs::write(blobs.join("1"), "cat").unwrap();
    symlink("../../blobs/0", root.join("m/model.toml")).unwrap();
    symlink("../../blobs/1", root.join("m/names.txt")).unwrap();
    let before = list(&root);
    assert_eq!(description(&before, "m").unwrap().class_names["y"], ["cat"]);
    fs::write(blobs.join("1"), "horse").unwrap();
    let after = list(&root);
    assert_eq!(description(&after, "m").unwrap().class_names["y"], ["horse"]);
    let print = |listing: &Listing| listing.models["m"].description_fingerprint;
    assert_ne!(print(&before), print(&after));
}

#[test]
fn fingerprints_follow_versions_and_descriptions() {
    let (_outer, root) = repository(&[("m/1/model.onnx", "a"), ("m/2/model.onnx", "a")]);
    let take = || {
        let listing = list(&root);
        let model = &listing.models["m"];
        let version = |number| model.versions[&VersionId::new(number)].fingerprint;
        (model.description_fingerprint, version(1), version(2))
    };
    let before = take();
    assert_eq!(before, take());
    fs::write(root.join("m/2/model.onnx"), "ab").unwrap();
    let version = take();
    assert!(version.0 == before.0 && version.1 == before.1 && version.2 != before.2);
    fs::write(root.join("m/model.toml"), "versions = 'all'").unwrap();
    let described = take();
    assert!(described.0 != version.0 && described.1 == version.1 && described.2 == version.2);
    // Another file name means other models.
    fs::write(root.join("m/model.toml"), "filename = 'other.onnx'").unwrap();
    assert_ne!(take().1, described.1);
}

#[test]
fn models_and_versions_are_bounded() {
    let (_outer, root) = repository(&[
        ("a/1/model.onnx", ""),
        ("a/2/model.onnx", ""),
        ("a/3/model.onnx", ""),
        ("b/1/model.onnx", ""),
        ("c/1/model.onnx", ""),
    ]);
    let settings = Settings { models_max: 2, versions_max: 2, ..Settings::new(&root) };
    let listing = Folder::new(settings).list().unwrap();
    assert_eq!(summary(&listing), ["a: 2 3", "b: 1"]);
    assert_eq!(
        problems(&listing),
        [
            ".: 1 models are left out: at most 2 are served, the first by name",
            "a: 1 versions are left out: at most 2, the highest"
        ]
    );
    assert_eq!(description(&listing, "a").unwrap().version_policy, VersionPolicy::Latest(1));
}

#[test]
fn a_missing_root_is_an_error_without_its_path() {
    let (outer, _root) = repository(&[]);
    let error = Folder::new(Settings::new(outer.path().join("absent"))).list().unwrap_err();
    let text = error.chain();
    assert!(error.retry_helps() && text.starts_with("the repository cannot be listed"), "{text}");
    assert!(!text.contains(outer.path().to_str().unwrap()), "{text}");
}

#[test]
fn a_closed_folder_is_one_models_problem() {
    let (_outer, root) = repository(&[("a/1/model.onnx", ""), ("b/1/model.onnx", "")]);
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o0)).unwrap();
    // Whoever may read everything (root) sees no problem here, and that is right too.
    let closed = fs::read_dir(root.join("a")).is_err();
    let listing = list(&root);
    assert_eq!(listing.models.contains_key("a"), !closed);
    assert_eq!(problems(&listing).len(), usize::from(closed));
    assert!(listing.models.contains_key("b"));
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o700)).unwrap();
}
