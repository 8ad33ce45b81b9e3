//! The log of decisions from outside: listed, verified, saved and restored by the real program.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{
    model::{ModelName, VersionId},
    state::{NewRecord, Settings, State},
};

/// A state folder with seven decisions in it.
struct Kept {
    folder: TempDir,
}

impl Kept {
    fn new() -> Self {
        let kept = Self { folder: TempDir::new().unwrap() };
        let state = kept.open();
        for number in 1..=7 {
            state.append(decision(number)).unwrap();
        }
        kept
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn log(&self) -> PathBuf {
        self.path().join("records.log")
    }

    fn open(&self) -> State {
        State::open(Settings { path: self.path(), ..Settings::default() }).unwrap().0
    }

    /// Runs `tidegate` with the folder in its environment.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(arguments)
            .env_remove("TIDEGATE_CONFIG")
            .env("TIDEGATE__STATE__PATH", self.path())
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// What a command that ends with `code` writes.
    #[track_caller]
    fn says(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}{errors}");
        text + &errors
    }

    #[track_caller]
    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        let text = self.says(code, &arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn decision(number: u64) -> NewRecord {
    NewRecord {
        unix_nanos: 1_767_225_600_000_000_000 + number * 1_500_000_000,
        actor: "ana".to_owned(),
        kind: "promote".to_owned(),
        model: ModelName::parse(if number < 6 { "fraud" } else { "digits" }).ok(),
        version: Some(VersionId::new(number)),
        reason: format!("better by {number} points \u{1b}[31m"),
        body: json!({"stage": "production"}),
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn decisions_are_listed_for_people_and_machines() {
    let kept = Kept::new();
    let _running = kept.open(); // whoever reads needs no lock
    let text = kept.says(0, &["audit", "list", "--model", "fraud", "--limit", "2"]);
    for expected in ["2026-01-01T00:00:07.500Z", "ana", "promote", "fraud", "better by 5 points"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("digits") && !text.contains("better by 3"), "{text}");
    assert!(!text.contains('\u{1b}'), "what was recorded must not steer a terminal: {text:?}");
    let list = kept.json(0, &["audit", "list"]);
    let sequences: Vec<_> =
        list.as_array().unwrap().iter().map(|r| r["sequence"].as_u64()).collect();
    assert_eq!(sequences, (1..=7).map(Some).collect::<Vec<_>>());
    assert_eq!(list[6]["model"], "digits");
    assert_eq!(list[6]["body"], json!({"stage": "production"}));
}

#[test]
fn a_log_is_verified_and_a_changed_byte_named() {
    let kept = Kept::new();
    let text = kept.says(0, &["audit", "verify"]);
    assert!(text.contains("7 records verified"), "{text}");
    let head = kept.open().head();
    let verified = kept.json(0, &["audit", "verify"]);
    assert_eq!(verified["head"], head.hash.to_string());
    assert_eq!(verified["bytes"], head.bytes);
    let length = fs::metadata(kept.log()).unwrap().len();
    let last = usize::try_from(length).unwrap() - 1;
    for (at, sequence) in [(3, 0), (15, 1), (300, 1), (last, 7)] {
        flip(&kept.log(), at);
        let damage = kept.json(1, &["audit", "verify"]);
        assert_eq!((&damage["offset"], &damage["sequence"]), (&json!(at), &json!(sequence)));
        let text = kept.says(1, &["audit", "verify"]);
        assert!(text.contains(&format!("at byte {at}, in record {sequence}")), "{text}");
        assert!(text.contains("tidegate state restore"), "{text}");
        flip(&kept.log(), at);
    }
    flip(&kept.log(), last);
    let text = kept.says(1, &["audit", "list"]);
    assert!(text.contains("better by 6") && text.contains("only the records before"), "{text}");
}

#[test]
fn a_log_is_saved_while_it_is_in_use_and_restored_when_it_is_not() {
    let kept = Kept::new();
    let state = kept.open();
    assert!(kept.says(0, &["state", "backup", "saved"]).contains("7 records saved"));
    assert!(kept.says(2, &["state", "backup", "saved"]).contains("exists"));
    assert_eq!(kept.json(0, &["audit", "verify", "--state", "saved"])["records"], 7);
    state.append(decision(8)).unwrap();
    assert!(kept.says(2, &["state", "restore", "saved"]).contains("in use by another tidegate"));
    drop(state);
    flip(&kept.log(), 400);
    let restored = kept.json(0, &["state", "restore", "saved"]);
    assert_eq!(restored["records"], 7);
    let aside = PathBuf::from(restored["replaced"].as_str().unwrap());
    assert_eq!(aside.file_name().unwrap(), "records.log.replaced-1");
    assert_eq!(kept.says(0, &["audit", "verify"]).lines().count(), 2);
    assert_eq!(kept.open().append(decision(9)).unwrap().sequence, 8);
    flip(&kept.folder.path().join("saved"), 400);
    assert!(kept.says(2, &["state", "restore", "saved"]).contains("at byte 400"));
}

#[test]
fn a_folder_without_a_log_is_said_to_be_one() {
    let kept = Kept { folder: TempDir::new().unwrap() };
    for arguments in [["audit", "list"], ["audit", "verify"]] {
        assert!(kept.says(2, &arguments).contains("there is no log at"));
    }
    assert!(kept.says(2, &["state", "restore", "nothing"]).contains("there is no log at"));
    assert!(!kept.path().try_exists().unwrap(), "a reader makes nothing");
}

/// Names the folder to [`appends_until_it_is_killed`].
const VICTIM: &str = "TIDEGATE_TEST_STATE";

#[test]
fn what_was_acknowledged_before_a_kill_is_there() {
    let kept = Kept::new();
    let mut acknowledged = 7;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "audit::appends_until_it_is_killed", "--nocapture"])
            .env(VICTIM, kept.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut hear = |line: String| line.strip_prefix("kept ")?.parse::<u64>().ok();
        for _ in 0..=round * 3 {
            acknowledged = lines.by_ref().find_map(&mut hear).unwrap();
        }
        child.kill().unwrap();
        acknowledged = lines.filter_map(hear).last().unwrap_or(acknowledged);
        child.wait().unwrap();
        assert!(kept.says(0, &["audit", "verify"]).contains("records verified"));
        let records = kept.open().head().sequence;
        assert!(records >= acknowledged, "round {round}: {records} of {acknowledged}");
        assert_eq!((records - 7) % 3, 0, "round {round}: what belongs together came apart");
    }
}

/// Not a test of its own: the process that the one above kills.
#[test]
fn appends_until_it_is_killed() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let settings = Settings { path: path.into(), ..Settings::default() };
    let (state, _) = State::open(settings).unwrap();
    let mut out = std::io::stdout().lock();
    for number in 0.. {
        let group = (0..3).map(|more| decision(number * 3 + more)).collect();
        let receipts = state.append_many(group).unwrap();
        writeln!(out, "\nkept {}", receipts[2].sequence).unwrap();
    }
}
