//! README's walk, as a newcomer takes it: every command and program in it runs, and gives what README shows.

use std::{
    env, fs, iter,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{
    clients::{assert_success, python},
    repository::{Repository, SAMPLES},
    server::Launch,
};

/// The sample models, as `make serve` serves them.
fn samples() -> Repository {
    let repository = Repository::empty();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(format!("{SAMPLES}/."))
        .arg(repository.path())
        .status()
        .unwrap();
    assert!(copied.success());
    repository
}

#[test]
fn readme_shows_what_its_commands_give() {
    let repository = samples();
    let server =
        Launch::of(&repository).remembering().set("LOGS__FORMAT", "text").start_until_alive();
    server.wait_until_said("tidegate ready");
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(repository.path(), folder.path().join("models")).unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tidegate"));
    let paths = env::var_os("PATH").unwrap_or_default();
    let paths = iter::once(program.parent().unwrap().to_owned()).chain(env::split_paths(&paths));
    let (log, next) = (folder.path().join("log"), folder.path().join("log.next"));
    let over = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                fs::write(&next, server.said()).unwrap();
                fs::rename(&next, &log).unwrap();
                thread::park_timeout(Duration::from_millis(20));
            }
        });
        let output = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/readme.py"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
            .args([server.http.to_string(), server.admin.to_string()])
            .arg(&log)
            .env("PATH", env::join_paths(paths).unwrap())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(folder.path())
            .output();
        over.store(true, Relaxed);
        output.unwrap()
    });
    assert_success("readme.py", &output);
    let told = String::from_utf8_lossy(&output.stdout);
    let compared: u32 = told.split(' ').next().unwrap().parse().unwrap();
    assert!(compared >= 7, "README still has outputs to compare: {told}");
}
