//! Links of every kind around a secret, and the layouts that are published as links.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use super::*;

/// A folder `inside` with every trap, beside a secret that must not be reached.
fn traps() -> tempfile::TempDir {
    let outside = tempfile::tempdir().unwrap();
    let inside = outside.path().join("inside");
    fs::create_dir_all(inside.join("sub/deep")).unwrap();
    fs::create_dir(outside.path().join("other")).unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::write(outside.path().join("other/secret"), "secret").unwrap();
    fs::write(inside.join("weights"), "good").unwrap();
    fs::write(inside.join("sub/deep/weights"), "good").unwrap();
    symlink("../secret", inside.join("link")).unwrap();
    symlink("weights", inside.join("link_within")).unwrap();
    symlink("../other", inside.join("linked_folder")).unwrap();
    symlink("sub", inside.join("linked_sub")).unwrap();
    symlink("/proc/self/fd", inside.join("magic")).unwrap();
    symlink("/proc/self/cwd/secret", inside.join("magic_way")).unwrap();
    symlink("/etc/passwd", inside.join("passwd")).unwrap();
    symlink("/dev/null", inside.join("null")).unwrap();
    symlink("../absent", inside.join("absent_elsewhere")).unwrap();
    symlink("absent", inside.join("absent_here")).unwrap();
    symlink("round_b", inside.join("round_a")).unwrap();
    symlink("round_a", inside.join("round_b")).unwrap();
    symlink("sub", inside.join("link_to_folder")).unwrap();
    symlink("/", inside.join("top")).unwrap();
    symlink("weights/", inside.join("slash")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    symlink("../inside/weights", inside.join("out_and_back")).unwrap();
    symlink(inside.join("weights"), inside.join("absolute_within")).unwrap();
    symlink("chain_b", inside.join("chain_a")).unwrap();
    symlink("linked_sub/deep/../deep/./weights", inside.join("chain_b")).unwrap();
    symlink("../../secret", inside.join("sub/chain_end")).unwrap();
    symlink("sub/chain_end", inside.join("chain_to_secret")).unwrap();
    fs::hard_link(outside.path().join("secret"), inside.join("hard")).unwrap();
    let pipe = inside.join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    drop(std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap());
    outside
}

const LINKED: &str = "it is or passes a symbolic link that leads elsewhere";

/// A folder that is its own repository.
fn open(folder: &Path) -> OpenFolder {
    OpenFolder::below(folder, folder, true).unwrap_or_else(|fault| panic!("{fault:?}"))
}

fn content(file: Result<File, Refusal>) -> Result<String, Refusal> {
    Ok(String::from_utf8(reading::read(file?, 1 << 20)?).unwrap())
}

/// Both ways to open, with the kernel's help and by hand alone.
fn open_both(folder: &OpenFolder, location: &str) -> [Result<String, Refusal>; 2] {
    let by_hand = || {
        reading::check_location(location)?;
        let file = folder.open_by_hand("model", location)?;
        match reading::kind(&file.metadata().map_err(Refusal::Io)?) {
            Some(kind) => Err(Refusal::NotAFile(kind)),
            None => Ok(file),
        }
    };
    [folder.beneath("model", location), by_hand()].map(content)
}

#[test]
fn files_below_the_folder_are_read() {
    let outside = traps();
    let inside = open(&outside.path().join("inside"));
    for location in [
        "weights",
        "sub/deep/weights",
        "link_within",
        "absolute_within",
        "linked_sub/deep/weights",
        "out_and_back",
        "chain_a",
        "up/inside/weights",
    ] {
        for read in open_both(&inside, location) {
            assert_eq!(read.unwrap(), "good", "{location}");
        }
    }
}

#[test]
fn nothing_else_is_reached() {
    let outside = traps();
    let inside = open(&outside.path().join("inside"));
    let absolute = outside.path().join("secret");
    let long = "x/".repeat(600) + "x";
    let long_part = "x".repeat(300);
    let table: &[(&str, &str)] = &[
        ("", "it is empty"),
        (absolute.to_str().unwrap(), "it is absolute"),
        ("//etc/passwd", "it is absolute"),
        ("../secret", "it has a part"),
        ("sub/../../secret", "it has a part"),
        ("./../secret", "it has a part"),
        ("sub//deep/weights", "it has a part"),
        ("weights/", "it has a part"),
        (".", "it has a part"),
        ("file:///etc/passwd", "it has a part"),
        ("..\\secret", "it holds a backslash"),
        ("weights\0.txt", "it holds a backslash or a control"),
        ("weights\n", "it holds a backslash or a control"),
        ("%2e%2e/secret", "there is no such file"),
        ("link", LINKED),
        ("linked_folder/secret", LINKED),
        ("linked_folder/absent", LINKED),
        ("magic/0", LINKED),
        ("magic_way", LINKED),
        ("passwd", LINKED),
        ("null", LINKED),
        ("absent_elsewhere", LINKED),
        ("chain_to_secret", LINKED),
        ("top", LINKED),
        ("top/etc/passwd", LINKED),
        ("up/secret", LINKED),
        ("absent_here", "there is no such file"),
        ("slash", "there is no such file"),
        ("link_to_folder", "it is a folder"),
        ("round_a", "its symbolic links lead in a circle"),
        ("pipe", "it is a pipe"),
        ("socket", "it is a socket or device"),
        ("sub", "it is a folder"),
        ("absent", "there is no such file"),
        ("weights/below", "there is no such file"),
        (&long, "it is longer"),
        (&long_part, "it is longer"),
    ];
    for (location, expected) in table {
        for opened in open_both(&inside, location) {
            let refusal = opened.expect_err(location).to_string();
            assert!(refusal.starts_with(expected), "{location:?}: {refusal}");
        }
    }
}

#[test]
fn devices_are_refused() {
    let devices = open(Path::new("/dev"));
    for opened in open_both(&devices, "null") {
        assert!(matches!(opened, Err(Refusal::NotAFile("device"))), "{opened:?}");
    }
    let null = devices.follow("null");
    assert!(matches!(null, Err(ReadFault::NotAFile("device"))), "{null:?}");
}

/// A model's folder in a cache: files are links to a folder that holds them under other names.
fn cache() -> (tempfile::TempDir, std::path::PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let snapshot = outer.path().join("snapshots/main");
    fs::create_dir_all(snapshot.join("sub")).unwrap();
    fs::create_dir(outer.path().join("blobs")).unwrap();
    for (name, blob) in [("model", "aa"), ("weights", "bb"), ("sub/weights", "cc")] {
        fs::write(outer.path().join("blobs").join(blob), blob).unwrap();
        let up = "../".repeat(2 + name.matches('/').count());
        symlink(format!("{up}blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    (outer, snapshot)
}

#[test]
fn links_may_lead_to_where_the_real_model_file_lies() {
    let (outer, snapshot) = cache();
    let folder = open(&snapshot);
    folder.follow("model").unwrap();
    for (location, blob) in [("weights", "bb"), ("sub/weights", "cc")] {
        for read in open_both(&folder, location) {
            assert_eq!(read.unwrap(), blob, "{location}");
        }
    }
    // By a link of the location's own name, nothing else.
    symlink("../../blobs", snapshot.join("blobs")).unwrap();
    symlink("../../other", snapshot.join("other")).unwrap();
    fs::create_dir_all(outer.path().join("blobs/below")).unwrap();
    fs::write(outer.path().join("blobs/below/dd"), "dd").unwrap();
    symlink("../../blobs/below/dd", snapshot.join("below")).unwrap();
    let missing = "there is no such file";
    for (location, expected) in
        [("bb", missing), ("blobs/bb", LINKED), ("other", LINKED), ("below", LINKED)]
    {
        for opened in open_both(&folder, location) {
            let refusal = opened.expect_err(location).to_string();
            assert!(refusal.starts_with(expected), "{location}: {refusal}");
        }
    }
}

#[test]
fn only_the_file_that_was_read_says_where_it_lies() {
    let (outer, snapshot) = cache();
    let folder = open(&snapshot);
    // Nothing was read that could name it.
    assert!(matches!(folder.beneath("model", "weights"), Err(Refusal::Link)));
    folder.follow("model").unwrap();
    fs::create_dir(outer.path().join("secrets")).unwrap();
    for name in ["model", "weights"] {
        fs::write(outer.path().join("secrets").join(name), "secret").unwrap();
        fs::remove_file(snapshot.join(name)).unwrap();
        symlink(format!("../../secrets/{name}"), snapshot.join(name)).unwrap();
    }
    // The model's link was swapped after it was read: its new place counts for nothing.
    for opened in open_both(&folder, "weights") {
        assert!(matches!(opened, Err(Refusal::Changed)), "{opened:?}");
    }
}

#[test]
fn folders_that_all_may_write_to_are_nobodys_own() {
    let (outer, snapshot) = cache();
    let blobs = outer.path().join("blobs");
    let folder = open(&snapshot);
    folder.follow("model").unwrap();
    fs::set_permissions(&blobs, fs::Permissions::from_mode(0o1777)).unwrap();
    for opened in open_both(&folder, "weights") {
        assert!(matches!(opened, Err(Refusal::Link)), "{opened:?}");
    }
    fs::set_permissions(&blobs, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(content(folder.beneath("model", "weights")).unwrap(), "bb");
}

#[test]
fn folders_that_led_here_are_the_models_own() {
    let outer = tempfile::tempdir().unwrap();
    let (root, elsewhere) = (outer.path().join("models"), outer.path().join("elsewhere"));
    fs::create_dir_all(root.join(".cache/objects/a1")).unwrap();
    fs::create_dir_all(elsewhere.join("1")).unwrap();
    fs::create_dir(elsewhere.join("shared")).unwrap();
    fs::write(root.join(".cache/objects/a1/weights"), "cached").unwrap();
    fs::write(elsewhere.join("shared/weights"), "shared").unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    symlink("../elsewhere", root.join("m")).unwrap();
    symlink(root.join(".cache/objects/a1/weights"), elsewhere.join("1/cached")).unwrap();
    symlink("../shared/weights", elsewhere.join("1/shared")).unwrap();
    symlink("../../secret", elsewhere.join("1/secret")).unwrap();
    let version = OpenFolder::below(&root, &root.join("m/1"), true).unwrap();
    for location in ["cached", "shared"] {
        for read in open_both(&version, location) {
            assert_eq!(read.unwrap(), location);
        }
    }
    for opened in open_both(&version, "secret") {
        assert!(matches!(opened, Err(Refusal::Link)), "{opened:?}");
    }
    // The version's folder alone led here: what lies beside it is not its own.
    let version = OpenFolder::below(&root, &elsewhere.join("1"), true).unwrap();
    assert!(matches!(version.beneath("model", "shared"), Err(Refusal::Link)));
}

#[test]
fn hard_links_are_read_unless_they_are_refused() {
    let outside = traps();
    let inside = outside.path().join("inside");
    symlink("hard", inside.join("link_to_hard")).unwrap();
    for location in ["hard", "link_to_hard"] {
        assert_eq!(content(open(&inside).beneath("model", location)).unwrap(), "secret");
        let strict = OpenFolder::below(&inside, &inside, false).unwrap();
        let refusal = strict.beneath("model", location).unwrap_err().to_string();
        assert!(refusal.starts_with("it is a hard link"), "{location}: {refusal}");
        assert!(matches!(strict.follow(location), Err(ReadFault::HardLink)));
        strict.follow("weights").unwrap();
    }
}

#[test]
fn links_that_are_swapped_meanwhile_never_lead_elsewhere() {
    let outside = traps();
    let inside = outside.path().join("inside");
    let folder = open(&inside);
    let swap = |target: &str| {
        symlink(target, inside.join("next")).unwrap();
        fs::rename(inside.join("next"), inside.join("swapped")).unwrap();
    };
    swap("weights");
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            for _ in 0..5_000 {
                ["../secret", "weights", "sub", "../other"].into_iter().for_each(swap);
            }
        });
        let mut read = 0;
        while !swapper.is_finished() {
            for location in ["swapped", "swapped/secret", "swapped/deep/weights"] {
                for content in open_both(&folder, location).into_iter().flatten() {
                    assert_eq!(content, "good", "{location}");
                    read += 1;
                }
            }
        }
        assert!(read > 0);
    });
}
