//! Damage, cuts and rebuilding: what was acknowledged is there, and nothing else.
//!
//! Not here: disks that fail (`faults`), processes that are killed (the integration tests).

mod faults;

use std::{collections::BTreeSet, path::PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::model::{ModelName, VersionId};

const SECOND: u64 = 1_000_000_000;

/// The `number`-th decision, a second after the one before.
fn decision(number: u64) -> NewRecord {
    let model = ModelName::parse(if number.is_multiple_of(2) { "fraud" } else { "digits" });
    NewRecord {
        unix_nanos: number * SECOND,
        actor: format!("ana-{number}"),
        kind: if number.is_multiple_of(3) { "promote" } else { "load" }.to_owned(),
        model: (!number.is_multiple_of(5)).then(|| model.unwrap()),
        version: number.is_multiple_of(4).then(|| VersionId::new(u64::MAX - number)),
        reason: "weil es \"besser\" ist\n\u{1F980}".to_owned(),
        body: json!({"to": number, "share": 0.25, "nested": {"z": [null, true], "a": "é"}}),
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn log(&self) -> PathBuf {
        self.path().join(LOG)
    }

    fn projection(&self) -> PathBuf {
        self.path().join(projection::PROJECTION)
    }

    fn settings(&self) -> Settings {
        Settings { path: self.path(), ..Settings::default() }
    }

    fn open(&self) -> (State, Opened) {
        State::open(self.settings()).unwrap()
    }

    /// With this as its log.
    fn holding(log: &[u8]) -> Self {
        let folder = Self::new();
        make_folder(&folder.path()).unwrap();
        fs::write(folder.log(), log).unwrap();
        folder
    }
}

/// A log of singles and groups, and every place at which something was acknowledged.
fn sample(records: u64) -> (Vec<u8>, Vec<Head>) {
    let folder = Folder::new();
    let (state, opened) = folder.open();
    let mut heads = vec![opened.head];
    let mut next = 1;
    while next <= records {
        let group = if next.is_multiple_of(3) { (next + 2).min(records) } else { next };
        state.append_many((next..=group).map(decision).collect()).unwrap();
        heads.push(state.head());
        next = group + 1;
    }
    (fs::read(folder.log()).unwrap(), heads)
}

#[test]
fn records_come_back_as_they_were_appended() {
    let folder = Folder::new();
    let (state, opened) = folder.open();
    assert_eq!(opened.notes, []);
    let first = state.append(decision(1)).unwrap();
    assert_eq!(first.sequence, 1);
    let receipts = state.append_many((2..=20).map(decision).collect()).unwrap();
    assert_eq!(
        receipts.iter().map(|r| r.sequence).collect::<Vec<_>>(),
        (2..=20).collect::<Vec<_>>()
    );
    let all: Vec<_> = (1..=20).map(|n| Record::new(n, decision(n))).collect();
    assert_eq!(state.records(&Filter::default()).unwrap(), all);
    let head = state.head();
    assert_eq!(head.hash, receipts[18].hash);
    drop(state);

    let (state, opened) = folder.open();
    assert_eq!(opened, Opened { head, notes: Vec::new() });
    let mut replayed = Vec::new();
    assert_eq!(state.replay(|record| replayed.push(record)).unwrap(), head);
    assert_eq!(replayed, all);
    let verified = verify(&folder.path()).unwrap();
    assert_eq!((verified.records, verified.head_hash, verified.bytes), (20, head.hash, head.bytes));
}

#[test]
fn questions_are_answered_alike_by_projection_and_log() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    state.append_many((1..=40).map(decision).collect()).unwrap();
    let model = ModelName::parse("fraud").ok();
    let mut counts = BTreeSet::new();
    for newest in [false, true] {
        for (model, kind) in [(None, None), (model.clone(), None), (model.clone(), Some("promote"))]
        {
            for (after, limit) in [(0, 3), (17, 100), (40, 1), (u64::MAX, usize::MAX), (0, 0)] {
                let (model, kind) = (model.clone(), kind.map(str::to_owned));
                let filter = Filter { model, kind, after, limit, newest };
                let records = state.records(&filter).unwrap();
                assert_eq!(read(&folder.path(), &filter).unwrap().0, records, "{filter:?}");
                assert!(records.iter().all(|record| filter.accepts(record)));
                counts.insert(records.len());
            }
        }
    }
    assert!(counts.len() > 3, "{counts:?}");
}

#[test]
fn every_flipped_byte_is_found_where_it_is() {
    let (log, heads) = sample(20);
    let ends: Vec<u64> = {
        let mut ends = vec![heads[0].bytes];
        let mut collect = |entry: log::Entry| {
            ends.push(entry.head.bytes);
            Ok(())
        };
        log::scan_bytes(&log[..], Head::start(), &mut collect).unwrap();
        ends
    };
    assert_eq!(ends.len(), 21);
    let mut changed = log.clone();
    for at in 0..log.len() {
        let sequence = ends.iter().filter(|end| **end <= at as u64).count() as u64;
        let other = u8::try_from(at.wrapping_mul(0x9e37_79b9) >> 7 & 0xff).unwrap();
        // To find a byte of a head takes a thousand hashes.
        let flips = [other.max(2), 1];
        for change in &flips[..if sequence < 4 || at % 5 == 0 { 2 } else { 1 }] {
            changed[at] = log[at] ^ change;
            let damage = verify_bytes(&changed).expect_err("a flipped byte");
            assert_eq!((damage.offset, damage.sequence), (at as u64, sequence), "{damage}");
        }
        changed[at] = log[at];
    }
    assert_eq!(verify_bytes(&changed).unwrap().records, 20);
}

#[test]
fn every_cut_leaves_what_was_acknowledged_before_it() {
    let (log, heads) = sample(12);
    for cut in 0..=log.len() {
        let result = verify_bytes(&log[..cut]);
        let Some(head) = heads.iter().rev().find(|head| head.bytes <= cut as u64) else {
            let damage = result.expect_err("a log is never there without its header");
            assert_eq!((damage.offset, damage.sequence), (cut as u64, 0));
            continue;
        };
        let verified = result.unwrap();
        assert_eq!((verified.records, verified.head_hash), (head.sequence, head.hash), "{cut}");
        assert_eq!(verified.bytes + verified.tail_bytes, cut as u64);
        // As some file systems leave it: the new length, and not the new bytes.
        let mut grown = log[..cut].to_vec();
        grown.resize(cut + 700, 0);
        assert_eq!(verify_bytes(&grown).unwrap().head_hash, head.hash, "{cut}");
    }
}

#[test]
fn a_torn_tail_is_cut_off_and_told() {
    let (log, heads) = sample(7);
    let [.., before, end] = heads[..] else { panic!("a few heads") };
    for cut in [before.bytes + 1, before.bytes + 100, end.bytes - 1] {
        let folder = Folder::holding(&log[..usize::try_from(cut).unwrap()]);
        let (state, opened) = folder.open();
        assert_eq!(opened.head, before);
        assert!(opened.notes.contains(&Note::TornTail { bytes: cut - before.bytes }));
        assert_eq!(fs::metadata(folder.log()).unwrap().len(), before.bytes);
        let receipt = state.append(decision(99)).unwrap();
        assert_eq!(receipt.sequence, before.sequence + 1);
        drop(state);
        assert_eq!(folder.open().1.notes, []);
    }
}

#[test]
fn a_damaged_log_is_not_opened_but_read_up_to_the_damage() {
    let (mut log, heads) = sample(9);
    let at = usize::try_from(heads[3].bytes).unwrap() + 150;
    log[at] ^= 0x40;
    let folder = Folder::holding(&log);
    let error = State::open(folder.settings()).unwrap_err();
    assert!(error.chain().contains(&format!("at byte {at}, in record {}", heads[3].sequence + 1)));
    assert!(error.chain().contains("tidegate state restore"), "{}", error.chain());
    assert_eq!(fs::read(folder.log()).unwrap(), log, "nothing is touched");
    let (records, damage) = read(&folder.path(), &Filter::default()).unwrap();
    assert_eq!(records.len() as u64, heads[3].sequence);
    assert!(matches!(damage, Some(StateError::Damaged { .. })));
}

#[test]
fn a_folder_has_one_writer_and_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let (state, _) = folder.open();
    let error = State::open(folder.settings()).unwrap_err();
    assert!(matches!(error, StateError::Locked(_)), "{error}");
    assert!(error.to_string().contains("in use by another tidegate"));
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.path()), 0o700);
    assert_eq!([mode(folder.log()), mode(folder.projection())], [0o600; 2]);
    let other = state.clone();
    drop(state);
    assert!(State::open(folder.settings()).is_err(), "a handle is left");
    drop(other);
    folder.open();
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_no_trace() {
    let folder = Folder::new();
    let (state, _) = State::open(Settings { log_bytes_max: 2 << 20, ..folder.settings() }).unwrap();
    let large = |bytes| NewRecord { reason: "x".repeat(bytes), ..decision(1) };
    let deep = (0..200).fold(Value::Null, |inner, _| json!([inner]));
    let refused = |records| state.append_many(records).unwrap_err();
    let error = refused(vec![decision(1), large(1 << 20)]);
    assert!(matches!(error, StateError::TooLarge { .. }), "{error}");
    let error = refused(vec![decision(1), NewRecord { body: deep, ..decision(1) }]);
    assert!(matches!(error, StateError::Unfit(_)), "{error}");
    let error = refused(vec![NewRecord { unix_nanos: u64::MAX, ..decision(1) }]);
    assert!(matches!(error, StateError::Unfit(_)), "{error}");
    let error = refused(vec![large(900_000), large(900_000), large(900_000)]);
    assert!(matches!(error, StateError::LogLimit { bytes_max: 2_097_152 }), "{error}");
    assert_eq!(state.head(), Head { bytes: HEADER.len() as u64, ..Head::start() });
    assert_eq!(state.append_many(Vec::new()).unwrap(), []);
    assert_eq!(state.append(decision(1)).unwrap().sequence, 1);
}

#[test]
fn many_threads_append_to_one_chain() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let state = state.clone();
            let append = move |n| state.append(decision(thread * 100 + n)).unwrap().sequence;
            thread::spawn(move || (0..25).map(append).collect::<Vec<_>>())
        })
        .collect();
    let mut all = BTreeSet::new();
    for thread in threads {
        let own = thread.join().unwrap();
        assert!(own.is_sorted());
        all.extend(own);
    }
    assert_eq!(all, (1..=100).collect());
    assert_eq!(verify(&folder.path()).unwrap().records, 100);
}

// The projection.

#[test]
fn a_projection_that_is_of_no_use_is_made_anew() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    state.append_many((1..=9).map(decision).collect()).unwrap();
    let all = state.records(&Filter::default()).unwrap();
    drop(state);
    let path = folder.projection();
    let spoil: [(&str, &dyn Fn()); 5] = [
        ("missing", &|| projection::remove(&path).unwrap()),
        ("no database", &|| fs::write(&path, vec![b'x'; 8192]).unwrap()),
        ("a newer schema", &|| sql(&path, "PRAGMA user_version = 99")),
        ("contradictory", &|| sql(&path, "UPDATE meta SET sequence = 4000")),
        ("of another log", &|| {
            sql(
                &path,
                "UPDATE record SET hash = replace(hash, '0', '1'); UPDATE meta SET hash = \
                 (SELECT hash FROM record WHERE sequence = 9)",
            );
        }),
    ];
    for (what, spoil) in spoil {
        spoil();
        let (state, opened) = folder.open();
        assert!(matches!(opened.notes[..], [Note::Rebuilt { .. }]), "{what}: {:?}", opened.notes);
        assert_eq!(state.records(&Filter::default()).unwrap(), all, "{what}");
        drop(state);
        assert_eq!(folder.open().1.notes, [], "{what}");
    }
}

fn sql(path: &Path, text: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(text).unwrap();
}

#[test]
fn a_projection_that_is_behind_catches_up() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    state.append_many((1..=3).map(decision).collect()).unwrap();
    drop(state);
    let behind = fs::read(folder.projection()).unwrap();
    let (state, _) = folder.open();
    state.append_many((4..=9).map(decision).collect()).unwrap();
    drop(state);
    projection::remove(&folder.projection()).unwrap();
    fs::write(folder.projection(), behind).unwrap();
    let (state, opened) = folder.open();
    assert_eq!(opened.notes, []);
    assert_eq!(state.records(&Filter::default()).unwrap().len(), 9);
}

#[test]
fn a_log_that_lost_acknowledged_records_is_noticed() {
    let (log, heads) = sample(9);
    for kept in [None, Some(heads[2].bytes)] {
        let folder = Folder::holding(&log);
        drop(folder.open());
        match kept {
            Some(bytes) => {
                fs::write(folder.log(), &log[..usize::try_from(bytes).unwrap()]).unwrap();
            }
            None => fs::remove_file(folder.log()).unwrap(),
        }
        let error = State::open(folder.settings()).unwrap_err();
        assert!(matches!(error, StateError::Behind { projected: 9, .. }), "{error}");
    }
}

#[test]
fn trouble_with_the_projection_fails_nothing() {
    let folder = Folder::new();
    fs::create_dir_all(folder.projection().join("in the way")).unwrap();
    let (state, opened) = folder.open();
    assert!(matches!(opened.notes[..], [Note::NoProjection { .. }]), "{:?}", opened.notes);
    for number in 1..=3 {
        state.append(decision(number)).unwrap();
    }
    assert_eq!(state.records(&Filter::default()).unwrap().len(), 3);
    assert!(state.projection_trouble().is_some());
    fs::remove_dir_all(folder.projection()).unwrap();
    state.append(decision(4)).unwrap();
    state.append(decision(5)).unwrap(); // by now the writer has followed the one before
    assert_eq!(state.records(&Filter::default()).unwrap().len(), 5);
    assert_eq!(state.projection_trouble(), None);
}

#[test]
fn a_projection_that_somebody_holds_is_not_thrown_away() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    state.append(decision(1)).unwrap();
    assert_eq!(state.records(&Filter::default()).unwrap().len(), 1);
    let holder = rusqlite::Connection::open(folder.projection()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    state.append(decision(2)).unwrap();
    assert_eq!(state.records(&Filter::default()).unwrap().len(), 2, "the log answers");
    assert!(state.projection_trouble().is_some());
    holder.execute_batch("CREATE TABLE theirs (x); COMMIT").unwrap();
    state.append(decision(3)).unwrap();
    state.append(decision(4)).unwrap();
    assert_eq!(state.records(&Filter::default()).unwrap().len(), 4);
    assert_eq!(state.projection_trouble(), None);
    holder.execute_batch("DROP TABLE theirs").expect("it is still the same database");
}

// Backups.

#[test]
fn a_backup_is_taken_while_records_are_written_and_brought_back() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    state.append_many((1..=5).map(decision).collect()).unwrap();
    let file = folder.0.path().join("backup");
    let saved = backup(&folder.path(), &file, false).unwrap();
    assert_eq!((saved.records, saved.head_hash), (5, state.head().hash));
    assert!(matches!(backup(&folder.path(), &file, false), Err(StateError::Exists(_))));
    state.append(decision(6)).unwrap();
    assert_eq!(backup(&folder.path(), &file, true).unwrap().records, 6);
    state.append(decision(7)).unwrap();
    assert!(matches!(restore(&file, &folder.path()), Err(StateError::Locked(_))));
    drop(state);

    for number in 1..=2 {
        let restored = restore(&file, &folder.path()).unwrap();
        assert_eq!(restored.verified.records, 6);
        let aside = folder.path().join(format!("{LOG}.replaced-{number}"));
        assert_eq!(restored.replaced.as_ref(), Some(&aside));
        assert_eq!(verify(&aside).unwrap().records, 7);
        let (state, opened) = folder.open();
        assert_eq!(opened.head.sequence, 6);
        assert_eq!(state.append(decision(8)).unwrap().sequence, 7);
    }
    let mut bytes = fs::read(&file).unwrap();
    bytes[500] ^= 4;
    fs::write(&file, bytes).unwrap();
    assert!(matches!(restore(&file, &folder.path()), Err(StateError::Damaged { .. })));
    assert_eq!(verify(&folder.path()).unwrap().records, 7, "a bad backup replaces nothing");
    let fresh = Folder::new();
    assert_eq!(backup(&folder.path(), &file, true).unwrap().records, 7);
    assert_eq!(restore(&file, &fresh.path()).unwrap().replaced, None);
    assert_eq!(fresh.open().1.head.sequence, 7);
    assert!(matches!(verify(&fresh.path().join("other")), Err(StateError::Missing(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_records_survive_any_cut_as_a_prefix(
        groups in proptest::collection::vec(
            proptest::collection::vec((any::<u32>(), ".{0,40}", ".{0,40}", any::<Option<i64>>()), 1..4), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let folder = Folder::new();
        let (state, opened) = folder.open();
        let mut heads = vec![opened.head];
        let mut all = Vec::new();
        for group in groups {
            let group: Vec<_> = group.into_iter().map(|(at, actor, reason, body)| NewRecord {
                unix_nanos: at.into(), actor, reason, body: json!(body), ..decision(1)
            }).collect();
            all.extend(group.clone());
            state.append_many(group).unwrap();
            heads.push(state.head());
        }
        drop(state);
        let log = fs::read(folder.log()).unwrap();
        let header = HEADER.len();
        let cut = header + cut.index(log.len() - header + 1);
        let (state, opened) = Folder::holding(&log[..cut]).open();
        let expected = heads.iter().rev().find(|head| head.bytes <= cut as u64).unwrap();
        prop_assert_eq!(&opened.head, expected);
        let records = state.records(&Filter::default()).unwrap();
        let whole: Vec<_> = all.into_iter().zip(1..).map(|(new, n)| Record::new(n, new))
            .take(records.len()).collect();
        prop_assert_eq!(records.len() as u64, expected.sequence);
        prop_assert_eq!(records, whole);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        tail in proptest::collection::vec(any::<u8>(), 0..600), keep in any::<prop::sample::Index>(),
    ) {
        let (log, _) = sample(3);
        let mut bytes = log[..keep.index(log.len() + 1)].to_vec();
        bytes.extend(tail);
        let _ = verify_bytes(&bytes);
    }
}

/// The corpus was written by another program, from the description of the format.
#[test]
fn format_1_stays_what_it_is() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/state_log");
    let found = |name| verify_bytes(&fs::read(corpus.join(name)).unwrap());
    let counts = |name| found(name).map(|verified| (verified.records, verified.tail_bytes));
    let ends = [15, 283, 550, 775];
    let whole = found("whole.log").unwrap();
    assert_eq!((whole.records, whole.bytes, whole.tail_bytes), (3, ends[3], 0));
    assert_eq!(
        whole.head_hash.to_string(),
        "d52585b4821e17b605fed95b0f3ce4baa5bf94a8b98f6304b1dc52f285f007fc"
    );
    assert_eq!(counts("half-a-group.log"), Ok((1, ends[2] - ends[1])));
    assert_eq!(counts("torn.log"), Ok((1, ends[3] - ends[1] - 20)));
    assert_eq!(counts("zeros.log"), Ok((1, 64)));
    assert_eq!(found("length.log").unwrap_err().offset, ends[0] + 5);
    assert_eq!(found("payload.log").unwrap_err().offset, ends[3] - 30);
    let record = Record::new(
        1,
        NewRecord {
            unix_nanos: 1_767_225_601_500_000_000,
            actor: "ana".to_owned(),
            kind: "promote".to_owned(),
            model: ModelName::parse("fraud").ok(),
            version: Some(VersionId::new(3)),
            reason: "better".to_owned(),
            body: json!({"stage": "production"}),
        },
    );
    let mut written = HEADER.to_vec();
    frame::write(Hash::default(), &record.written(false).unwrap(), &mut written);
    let log = fs::read(corpus.join("whole.log")).unwrap();
    assert!(log.starts_with(&written), "what this program writes is what the format says");
}
