//! Verdicts that outlive the process: what was proven before need not be proven again at the next start.
//!
//! `<state path>/proofs/<key>` holds the answer of the process that proved a version. The key is a digest over all
//! that the answer depends on: the version's files by the digest of their manifest, what was asked and within which
//! limits, this build, the engine's library byte by byte, every program file that is mapped into this process by
//! size and time, the kernel, the CPU. Always true:
//! - Only what was proven *and* loaded for service is kept; a refusal never is.
//! - A verdict is taken from the disk while its version is being loaded, and put back after. So a version that ends
//!   the process in spite of its proof is proven again by the next one.
//! - An entry that is damaged, too large or of another key counts for nothing: the version is proven.
//! - The number of entries and their size are bounded; the oldest go first.
//!
//! Whoever may write below the state path may forge a verdict. The folder is for the server's user alone, as the
//! log of decisions beside it is; who shares it turns `proof.remember` off.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::OFlags;

use crate::source::Digest;

/// The verdicts of a state path.
#[derive(Debug)]
pub struct Verdicts {
    folder: PathBuf,
    /// What this process runs on; a digest.
    surroundings: Digest,
    /// About how many there are; whoever holds it writes.
    count: Arc<Mutex<usize>>,
}

/// A verdict about a version that is being loaded; forgotten unless it is kept.
#[derive(Debug, Clone)]
pub(in crate::lifecycle) struct Verdict {
    folder: PathBuf,
    key: Digest,
    answer: Vec<u8>,
    count: Arc<Mutex<usize>>,
}

/// More versions than a repository has at its limits are not remembered.
const ENTRIES_MAX: usize = 20_000;
/// An answer holds a signature and notes.
const ENTRY_BYTES_MAX: u64 = 1 << 20;
/// The digest of the rest, and a line's end.
const HEAD_BYTES: usize = 65;

impl Verdicts {
    /// Opens those below the state path; `library` is the engine's, where one is loaded.
    ///
    /// # Errors
    /// If the folder cannot be used, or if it cannot be found out what this process runs on.
    pub fn open(state: &Path, library: Option<&Path>) -> io::Result<Self> {
        let folder = state.join("proofs");
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if fs::symlink_metadata(&folder)?.mode() & 0o170_077 != 0o040_000 {
            let text =
                "`proofs` below the state path must be a folder that only its owner may enter";
            return Err(io::Error::other(text));
        }
        let count = Arc::new(Mutex::new(fs::read_dir(&folder)?.count()));
        Ok(Self { folder, surroundings: surroundings(library)?, count })
    }

    /// What these bytes of a request ask about this version stands for.
    pub(super) fn key(&self, identity: &str, request: &[u8]) -> Digest {
        let (surroundings, request) = (self.surroundings, Digest::of(request));
        let version = env!("CARGO_PKG_VERSION");
        Digest::of(
            format!("verdict 1\n{version}\n{surroundings}\n{identity}\n{request}").as_bytes(),
        )
    }

    /// A verdict for the answer that was just given.
    pub(super) fn of(&self, key: Digest, answer: Vec<u8>) -> Verdict {
        Verdict { folder: self.folder.clone(), key, answer, count: Arc::clone(&self.count) }
    }

    /// Takes the answer of an earlier proof off the disk, if there is one that is whole.
    pub(super) fn take(&self, key: &Digest) -> Option<Vec<u8>> {
        let path = self.folder.join(key.to_string());
        let found = read(&path).ok()?;
        // If it cannot be removed, a version that ends the process would be believed for ever.
        fs::remove_file(&path).ok()?;
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_sub(1);
        drop(count);
        let (head, answer) = found.split_at_checked(HEAD_BYTES)?;
        (head == seal(key, answer).as_bytes()).then(|| answer.to_vec())
    }
}

impl Verdict {
    /// Writes it down: the version was loaded after it. A failure costs a proof at the next start.
    pub(in crate::lifecycle) fn keep(&self) {
        if let Err(error) = self.write() {
            tracing::warn!(
                "a version's proof is not remembered and is made again at the next start: {error}"
            );
        }
    }

    fn write(&self) -> io::Result<()> {
        if self.answer.len() as u64 + HEAD_BYTES as u64 > ENTRY_BYTES_MAX {
            return Ok(());
        }
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *count >= ENTRIES_MAX {
            *count = remove_oldest(&self.folder, ENTRIES_MAX / 4 * 3)?;
        }
        let path = self.folder.join(self.key.to_string());
        // One process has the state path, and of its threads one writes at a time.
        let aside = self.folder.join("incoming");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(seal(&self.key, &self.answer).as_bytes())?;
        file.write_all(&self.answer)?;
        // Not synced: one that a crash damages counts for nothing.
        fs::rename(&aside, &path)?;
        *count += 1;
        Ok(())
    }
}

/// The first line of an entry: whether the rest is what was written under this key.
fn seal(key: &Digest, answer: &[u8]) -> String {
    let sealed = Digest::of(format!("{key}\n{}", Digest::of(answer)).as_bytes());
    format!("{sealed}\n")
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    // One that is cut off here does not fit its seal.
    file.take(ENTRY_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Leaves this many; gives how many are left.
fn remove_oldest(folder: &Path, leave: usize) -> io::Result<usize> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        entries.push((entry.metadata()?.modified()?, entry.path()));
    }
    entries.sort_unstable();
    let surplus = entries.len().saturating_sub(leave);
    for (_, path) in &entries[..surplus] {
        fs::remove_file(path)?;
    }
    Ok(entries.len() - surplus)
}

/// A digest of what this process runs on, besides its own version.
fn surroundings(library: Option<&Path>) -> io::Result<Digest> {
    let mapped = mapped()?;
    let named = mapped.iter().map(|(path, _)| Path::new(path)).filter(|path| is_library(path));
    // Where the system found it by its name alone, it is among what is mapped.
    let libraries = named.chain(library.filter(|path| path.is_absolute()));
    let libraries: BTreeSet<PathBuf> =
        libraries.map(Path::canonicalize).collect::<Result<_, _>>()?;
    let mut text = String::new();
    for library in &libraries {
        text += &format!("library {}\n", digest_of(library)?);
    }
    for (path, metadata) in mapped {
        let (bytes, seconds, nanos) = (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        text += &format!("{path} {bytes} {seconds}.{nanos}\n");
    }
    text += &fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let first = cpu.split("\n\n").next().unwrap_or_default();
    let tells = ["model name", "microcode", "flags", "Features", "CPU part"];
    for line in first.lines().filter(|line| tells.iter().any(|word| line.starts_with(word))) {
        text += line;
        text.push('\n');
    }
    Ok(Digest::of(text.as_bytes()))
}

fn is_library(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("onnxruntime"))
}

/// The program files that are mapped into this process, as they lie on the disk now.
fn mapped() -> io::Result<Vec<(String, fs::Metadata)>> {
    let mut files = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let mut words = line.split_ascii_whitespace();
        let (rights, inode) = (words.nth(1).unwrap_or_default(), words.nth(2).unwrap_or_default());
        let Some(path) = line.find('/').map(|start| &line[start..]) else { continue };
        if rights.contains('x') {
            files.insert(path.to_owned(), inode.to_owned());
        }
    }
    let mut found = Vec::new();
    for (path, inode) in files {
        let metadata = fs::metadata(&path)?;
        if metadata.ino().to_string() != inode {
            return Err(io::Error::other(format!(
                "`{path}` was replaced since this process started"
            )));
        }
        found.push((path, metadata));
    }
    Ok(found)
}

fn digest_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(Digest::of(&bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(state: &Path) -> Verdicts {
        Verdicts::open(state, None).unwrap()
    }

    #[test]
    fn a_verdict_is_there_once_and_again_after_it_was_kept() {
        let state = tempfile::tempdir().unwrap();
        let key = open(state.path()).key("identity", b"request");
        assert_eq!(open(state.path()).take(&key), None);
        open(state.path()).of(key, b"answer".to_vec()).keep();
        let verdicts = open(state.path());
        assert_eq!(verdicts.take(&key).as_deref(), Some(&b"answer"[..]));
        assert_eq!(verdicts.take(&key), None, "what is being loaded is not on the disk");
        let others = [verdicts.key("other", b"request"), verdicts.key("identity", b"other")];
        verdicts.of(key, b"answer".to_vec()).keep();
        assert!(others.iter().all(|other| verdicts.take(other).is_none()));
    }

    /// As at a start, which loads several versions at a time.
    #[test]
    fn verdicts_that_are_kept_at_once_are_all_kept() {
        let state = tempfile::tempdir().unwrap();
        let verdicts = open(state.path());
        let keys: Vec<_> = (0..200).map(|at| verdicts.key(&at.to_string(), b"")).collect();
        std::thread::scope(|threads| {
            for keys in keys.chunks(50) {
                let verdicts = &verdicts;
                threads.spawn(move || {
                    for key in keys {
                        verdicts.of(*key, vec![b'x'; 10_000]).keep();
                    }
                });
            }
        });
        let lost: Vec<_> = keys.iter().filter(|key| verdicts.take(key).is_none()).collect();
        assert!(lost.is_empty(), "{} of {}", lost.len(), keys.len());
    }

    #[test]
    fn what_is_damaged_or_of_another_key_counts_for_nothing() {
        let state = tempfile::tempdir().unwrap();
        let verdicts = open(state.path());
        let (key, other) = (verdicts.key("a", b""), verdicts.key("b", b""));
        let path = |key: &Digest| state.path().join("proofs").join(key.to_string());
        verdicts.of(key, b"answer".to_vec()).keep();
        let whole = fs::read(path(&key)).unwrap();
        fs::rename(path(&key), path(&other)).unwrap();
        assert_eq!(verdicts.take(&other), None);
        for length in 0..whole.len() {
            fs::write(path(&key), &whole[..length]).unwrap();
            assert_eq!(verdicts.take(&key), None, "{length}");
            let mut changed = whole.clone();
            changed[length] ^= 1;
            fs::write(path(&key), changed).unwrap();
            assert_eq!(verdicts.take(&key), None, "{length}");
        }
        fs::write(path(&key), &whole).unwrap();
        assert!(verdicts.take(&key).is_some());
    }

    #[test]
    fn another_library_is_other_surroundings() {
        let state = tempfile::tempdir().unwrap();
        let library = state.path().join("library.so");
        let key = |content: &str| {
            fs::write(&library, content).unwrap();
            Verdicts::open(state.path(), Some(&library)).unwrap().key("identity", b"")
        };
        assert_eq!(key("one"), key("one"));
        assert_ne!(key("one"), key("two"));
        assert_ne!(key("one"), open(state.path()).key("identity", b""));
    }

    #[test]
    fn the_oldest_go_first() {
        let state = tempfile::tempdir().unwrap();
        let verdicts = open(state.path());
        let keys = ["a", "b", "c"].map(|identity| verdicts.key(identity, b""));
        for (age, key) in keys.iter().enumerate() {
            verdicts.of(*key, b"answer".to_vec()).keep();
            let file = File::options().write(true).open(verdicts.folder.join(key.to_string()));
            let time =
                std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            file.unwrap().set_modified(time).unwrap();
        }
        assert_eq!(remove_oldest(&verdicts.folder, 2).unwrap(), 2);
        assert_eq!(keys.map(|key| verdicts.take(&key).is_some()), [false, true, true]);
    }
}
