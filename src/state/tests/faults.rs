//! A disk on which any call may fail: what was acknowledged stays, what was not goes, and it works again.

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::*;

/// Fails the calls from `first` to `last`, counted from 1, and knows what is durable.
#[derive(Debug, Default)]
struct Faults {
    calls: AtomicU64,
    first: u64,
    last: u64,
    full: bool,
    /// Fails by a panic.
    panics: bool,
    durable: Mutex<Vec<u8>>,
}

#[derive(Debug, Default, Clone)]
struct FaultyDisk(Arc<Faults>);

#[derive(Debug)]
struct FaultyFile {
    file: File,
    path: PathBuf,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    fn failing(first: u64, last: u64, full: bool) -> Self {
        Self(Arc::new(Faults { first, last, full, ..Faults::default() }))
    }

    fn wrap(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Box::new(FaultyFile { file, path: path.to_owned(), faults: Arc::clone(&self.0) }))
    }
}

impl Faults {
    fn call(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let errno = if self.full { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
        let fails = (self.first..=self.last).contains(&call);
        assert!(!(fails && self.panics), "a bug");
        if fails { Err(errno.into()) } else { Ok(()) }
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.wrap(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.0.call()?;
        fs::write(path, b"")?;
        self.wrap(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call()?;
        fs::rename(from, to)
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        self.0.call()
    }
}

impl LogFile for FaultyFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let called = self.faults.call();
        let bytes = if called.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        LogFile::write_all_at(&self.file, bytes, offset)?;
        called
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.call()?;
        *self.faults.durable.lock().unwrap() = fs::read(&self.path)?;
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.faults.call()?;
        self.file.set_len(bytes)
    }
}

/// Appends on a failing disk; gives the number of calls. The log holds what was acknowledged and nothing else, and
/// so does what a power cut would leave at any acknowledgement.
fn append_on(disk: &FaultyDisk) -> u64 {
    let folder = Folder::new();
    let open = || State::open_on(Arc::new(disk.clone()), folder.settings());
    let mut opened = open();
    for _ in 0..8 {
        if opened.is_err() {
            opened = open();
        }
    }
    let (state, _) = opened.expect("the disk works again");
    let mut kept = Vec::new();
    let mut number = 0;
    let mut failed = false;
    // A disk that fails for the last append is given another.
    while number < 9 || failed {
        number += 1;
        assert!(number < 50, "the disk works again");
        let records =
            if number % 4 == 0 { vec![decision(number); 3] } else { vec![decision(number)] };
        let count = records.len();
        let head = state.head();
        let result = state.append_many(records);
        failed = result.is_err();
        match result {
            Ok(receipts) => {
                assert_eq!(receipts.len(), count);
                kept.extend(receipts);
                let durable = verify_bytes(&disk.0.durable.lock().unwrap()).unwrap();
                assert!(durable.records >= kept.len() as u64, "acknowledged and not durable");
            }
            Err(error) => {
                assert!(
                    matches!(
                        error,
                        StateError::Full { .. } | StateError::Io { .. } | StateError::Sealed(_)
                    ),
                    "{error}"
                );
                assert_eq!(state.head(), head);
            }
        }
    }
    assert!(kept.len() >= 5, "appends succeed once the disk works again");
    let hashes = |receipts: &[Receipt]| receipts.iter().map(|r| r.hash).collect::<Vec<_>>();
    let mut found = Vec::new();
    let mut collect = |entry: log::Entry| {
        found.push(Receipt { sequence: entry.head.sequence, hash: entry.head.hash });
        Ok(())
    };
    let reading = scan(&folder.log(), Head::start(), None, &mut collect).unwrap();
    assert_eq!(hashes(&found), hashes(&kept));
    assert_eq!((reading.head, reading.tail_bytes), (state.head(), 0));
    let records = state.records(&Filter::default()).unwrap();
    assert_eq!(
        records.iter().map(|r| r.sequence).collect::<Vec<_>>(),
        (1..=kept.len() as u64).collect::<Vec<_>>()
    );
    disk.0.calls.load(Ordering::SeqCst)
}

#[test]
fn whatever_call_fails_acknowledged_records_stay_and_others_go() {
    let calls = append_on(&FaultyDisk::default());
    assert!(calls > 20, "{calls}");
    for full in [false, true] {
        for length in [1, 2, 3] {
            for first in 1..=calls {
                append_on(&FaultyDisk::failing(first, first + length - 1, full));
            }
        }
    }
}

#[test]
fn a_full_disk_is_told_and_passes() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    state.append(decision(1)).unwrap();
    drop(state);
    // Opening syncs once; then the write fails, and what it left can be cut off.
    let disk = FaultyDisk::failing(2, 2, true);
    let (state, _) = State::open_on(Arc::new(disk), folder.settings()).unwrap();
    let error = state.append(decision(2)).unwrap_err();
    assert!(matches!(error, StateError::Full { .. }), "{error}");
    assert_eq!(fs::metadata(folder.log()).unwrap().len(), state.head().bytes);
    assert_eq!(state.append(decision(2)).unwrap().sequence, 2);
}

#[test]
fn a_failed_sync_seals_until_the_log_was_verified_again() {
    let folder = Folder::new();
    let (state, _) = folder.open();
    state.append(decision(1)).unwrap();
    drop(state);
    let disk = FaultyDisk::failing(3, 3, false);
    let (state, _) = State::open_on(Arc::new(disk), folder.settings()).unwrap();
    let at = |nanos| NewRecord { unix_nanos: nanos, ..decision(2) };
    for nanos in [SECOND, SECOND + 1, 2 * SECOND - 1] {
        let error = state.append(at(nanos)).unwrap_err();
        assert!(matches!(error, StateError::Sealed(_)), "{error}");
    }
    let whole = fs::read(folder.log()).unwrap();
    let mut damaged = whole.clone();
    damaged[200] ^= 1;
    fs::write(folder.log(), &damaged).unwrap();
    let error = state.append(at(2 * SECOND)).unwrap_err();
    assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    fs::write(folder.log(), &whole).unwrap();
    assert!(state.append(at(2 * SECOND + 1)).is_err(), "not before its time");
    assert_eq!(state.append(at(3 * SECOND)).unwrap().sequence, 2);
    assert_eq!(verify(&folder.path()).unwrap().records, 2);
}

#[test]
fn what_waits_together_is_synced_once() {
    let folder = Folder::holding(HEADER);
    let disk = Arc::new(FaultyDisk::default());
    let head = Head { bytes: HEADER.len() as u64, ..Head::start() };
    let (projection, _) = Projection::open(&folder.path(), &folder.log(), head, None);
    let writer = Writer {
        file: disk.open(&folder.log()).unwrap(),
        disk: Arc::clone(&disk) as Arc<dyn Disk>,
        path: folder.log(),
        shared: Arc::new(Shared::new(head, projection)),
        log_bytes_max: 1 << 20,
        reopen_after: Duration::ZERO,
        seal: None,
    };
    let (jobs, waiting) = sync_channel(10);
    let answers: Vec<_> = (1..=10)
        .map(|number| {
            let (reply, answer) = sync_channel(1);
            jobs.send(Job { records: vec![decision(number)], reply }).unwrap();
            answer
        })
        .collect();
    drop(jobs);
    let before = disk.0.calls.load(Ordering::SeqCst);
    writer.run(&waiting);
    assert_eq!(disk.0.calls.load(Ordering::SeqCst) - before, 2, "one write, one sync");
    for (answer, sequence) in answers.into_iter().zip(1..) {
        assert_eq!(answer.recv().unwrap().unwrap()[0].sequence, sequence);
    }
}

#[test]
fn a_panic_costs_an_append_and_not_the_writer() {
    let (folder, disk) = (Folder::new(), FaultyDisk::default());
    let (state, _) = State::open_on(Arc::new(disk.clone()), folder.settings()).unwrap();
    let first = disk.0.calls.load(Ordering::SeqCst) + 1;
    drop(state);
    let faults = Faults { first, last: first + 2, panics: true, ..Faults::default() };
    let disk = FaultyDisk(Arc::new(faults));
    let folder = Folder::new();
    let (state, _) = State::open_on(Arc::new(disk), folder.settings()).unwrap();
    let mut failed = 0;
    while state.append(decision(1)).is_err() {
        failed += 1;
        assert!(failed < 50, "it works again");
    }
    assert!(failed > 0);
    let head = state.head();
    drop(state);
    let (state, opened) = State::open(folder.settings()).unwrap();
    assert_eq!((opened.head, state.head().sequence), (head, 1));
}
