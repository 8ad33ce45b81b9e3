//! Blame: versions that ended this server before, and what is done about them at the next start.
//!
//! `<state path>/crashes` is written by the handler of fatal signals (`engine::write_crashes_to`): one line for the
//! version that the thread was running. The next start moves these lines into `<state path>/blamed`, with the time of
//! the crash. Always true:
//! - A version that is blamed once is proven anew, whatever was remembered of it.
//! - One that is blamed twice within an hour is held back until its files change or an operator loads its model.
//! - A version is who its files are: a changed file is another version.
//! - What cannot be read blames nobody; the numbers of lines and of entries are bounded.
//!
//! Not here: finding out who it was (`engine::blame`).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::model::{ModelName, VersionId};

/// Two crashes within this time hold a version back.
const WITHIN: Duration = Duration::from_hours(1);
/// Versions that are remembered; the oldest go first.
const ENTRIES_MAX: usize = 1_000;
/// A crash writes one line; a file that grew beyond this is not believed.
const CRASHES_BYTES_MAX: u64 = 64 << 10;
const LEDGER_BYTES_MAX: u64 = 4 << 20;

/// Versions that ended the server.
#[derive(Debug)]
pub struct Blame {
    path: PathBuf,
    entries: Mutex<Vec<Blamed>>,
}

/// A version that ended the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Blamed {
    model: String,
    version: u64,
    /// Of its files.
    digest: String,
    /// The last signal, such as `SIGSEGV`.
    signal: String,
    /// When the last crash was, in milliseconds since 1970.
    at: u64,
    /// It is not loaded any more.
    held: bool,
}

/// The suspicion against a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// It ended nothing.
    None,
    /// It ended the server lately.
    Once,
    /// It ended the server twice within an hour, the last time by this signal.
    Held(String),
}

impl Blame {
    /// Reads what the process before this one left; gives the file that crashes of this one are to be written to.
    ///
    /// # Errors
    /// If the files below the state path cannot be used.
    pub fn open(state: &Path, now: Duration) -> io::Result<(Self, File)> {
        let (path, crashes) = (state.join("blamed"), state.join("crashes"));
        let mut entries = read_ledger(&path)?;
        let mut recent = millis(now.saturating_sub(WITHIN));
        // Empty where the process before this one did not crash.
        let left = read_crashes(&crashes)?.filter(|(lines, _)| !lines.is_empty());
        if let Some((lines, at)) = &left {
            for line in lines.lines().filter_map(Blamed::parse) {
                note(&mut entries, Blamed { at: *at, ..line });
            }
            // Also what has crashed long ago is proven anew, once.
            recent = recent.min(*at);
        }
        entries.retain(|entry| entry.held || entry.at >= recent);
        let blame = Self { path, entries: Mutex::default() };
        if left.is_some() {
            blame.write(&entries)?;
            fs::remove_file(&crashes)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&crashes)?;
        Ok((Self { entries: Mutex::new(entries), ..blame }, file))
    }

    /// The versions that ended the server lately: model, version, digest.
    pub fn blamed(&self) -> Vec<(String, VersionId, String)> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let version = |entry: &Blamed| {
            (entry.model.clone(), VersionId::new(entry.version), entry.digest.clone())
        };
        entries.iter().map(version).collect()
    }

    /// The suspicion against a version.
    pub(super) fn suspicion(&self, model: &ModelName, id: VersionId, digest: &str) -> Suspicion {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |entry: &&Blamed| {
            (entry.model.as_str(), entry.version, entry.digest.as_str())
                == (model.as_str(), id.number(), digest)
        };
        match entries.iter().find(is_it) {
            None => Suspicion::None,
            Some(entry) if entry.held => Suspicion::Held(entry.signal.clone()),
            Some(_) => Suspicion::Once,
        }
    }

    /// Forgets what is held against a model's versions: an operator wants it so.
    pub(super) fn forgive(&self, model: &ModelName) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entries.len();
        entries.retain(|entry| entry.model != model.as_str());
        if entries.len() < before
            && let Err(error) = self.write(&entries)
        {
            tracing::warn!(%model, "what was forgiven is blamed again at the next start: {error}");
        }
    }

    fn write(&self, entries: &[Blamed]) -> io::Result<()> {
        let aside = self.path.with_extension("incoming");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(entries)?)?;
        file.sync_all()?;
        fs::rename(&aside, &self.path)
    }
}

impl Blamed {
    /// A line of the handler: signal, model, version and digest.
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split('\t');
        let (signal, model) = (parts.next()?.to_owned(), ModelName::parse(parts.next()?).ok()?);
        let (version, digest) = (VersionId::parse(parts.next()?)?, parts.next()?.to_owned());
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_whole = parts.next().is_none() && signal.starts_with("SIG") && signal.len() < 10;
        (is_digest && is_whole).then(|| Self {
            model: model.as_str().to_owned(),
            version: version.number(),
            digest,
            signal,
            at: 0,
            held: false,
        })
    }
}

/// Adds a crash to what is known.
fn note(entries: &mut Vec<Blamed>, crash: Blamed) {
    let (model, version, signal) = (&crash.model, crash.version, &crash.signal);
    let same = |entry: &Blamed| {
        (&entry.model, entry.version, &entry.digest) == (model, version, &crash.digest)
    };
    let before = entries.iter().position(same).map(|index| entries.remove(index));
    // The very same one where the last start was cut off before it had removed the file.
    let again = before.as_ref().is_some_and(|before| {
        before.held || crash.at != before.at && crash.at.abs_diff(before.at) <= millis(WITHIN)
    });
    if again {
        tracing::error!(
            %model, version, signal,
            "ended the server for the second time within an hour and is held back; mend the version and publish it again, or \
             let it in with `tidegate models load {model}`"
        );
    } else {
        tracing::warn!(
            %model, version, signal,
            "ended the server that ran before and is proven anew; a second time within an hour holds it back"
        );
    }
    entries.push(Blamed { held: again, ..crash });
    let surplus = entries.len().saturating_sub(ENTRIES_MAX);
    entries.drain(..surplus);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn read_ledger(path: &Path) -> io::Result<Vec<Blamed>> {
    let Some((text, _)) = read(path, LEDGER_BYTES_MAX)? else { return Ok(Vec::new()) };
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(
            "what was held against versions is forgotten, the record is damaged: {error}"
        );
        Vec::new()
    }))
}

/// The lines that the handler wrote, and when.
fn read_crashes(path: &Path) -> io::Result<Option<(String, u64)>> {
    let found = read(path, CRASHES_BYTES_MAX)?;
    Ok(found.map(|(text, modified)| {
        let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (text, millis(since))
    }))
}

/// A file's text and when it was written last; `None` if it is not there, and an empty line if it is too long.
fn read(path: &Path, bytes_max: u64) -> io::Result<Option<(String, SystemTime)>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let modified = file.metadata()?.modified()?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        bytes = b"\n".to_vec();
    }
    Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), modified)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A state path that processes crash over.
    struct Crashes(tempfile::TempDir);

    impl Crashes {
        /// A start at this second, over what a process left that crashed thus at another.
        fn start(&self, now: u64, crash: Option<(&str, u64)>) -> Blame {
            if let Some((line, at)) = crash {
                let path = self.0.path().join("crashes");
                fs::write(&path, line).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at)).unwrap();
            }
            Blame::open(self.0.path(), Duration::from_secs(now)).unwrap().0
        }
    }

    fn suspicion(blame: &Blame, digest: &str) -> Suspicion {
        blame.suspicion(&ModelName::parse("m").unwrap(), VersionId::new(2), digest)
    }

    fn line(signal: &str) -> String {
        format!("{signal}\tm\t2\t{DIGEST}\n")
    }

    #[test]
    fn blamed_once_it_is_suspect_and_twice_within_an_hour_it_is_held() {
        let state = Crashes(tempfile::tempdir().unwrap());
        assert_eq!(suspicion(&state.start(10_000, None), DIGEST), Suspicion::None);
        let once = state.start(10_100, Some((&line("SIGFPE"), 10_090)));
        assert_eq!(suspicion(&once, DIGEST), Suspicion::Once);
        assert_eq!(suspicion(&once, &DIGEST.replace('0', "f")), Suspicion::None, "other files");
        let other = once.suspicion(&ModelName::parse("n").unwrap(), VersionId::new(2), DIGEST);
        assert_eq!(other, Suspicion::None, "another model of the same files");
        let twice = state.start(12_000, Some((&line("SIGSEGV"), 11_000)));
        assert_eq!(suspicion(&twice, DIGEST), Suspicion::Held("SIGSEGV".to_owned()));
        let later = state.start(1_000_000, None);
        assert_eq!(suspicion(&later, DIGEST), Suspicion::Held("SIGSEGV".to_owned()));
        later.forgive(&ModelName::parse("m").unwrap());
        assert_eq!(suspicion(&later, DIGEST), Suspicion::None);
        assert_eq!(suspicion(&state.start(1_000_001, None), DIGEST), Suspicion::None);
    }

    #[test]
    fn crashes_that_lie_apart_hold_nothing_back() {
        let state = Crashes(tempfile::tempdir().unwrap());
        state.start(10_000, Some((&line("SIGFPE"), 9_999)));
        let again = state.start(20_000, Some((&line("SIGFPE"), 19_999)));
        assert_eq!(suspicion(&again, DIGEST), Suspicion::Once);
        assert_eq!(suspicion(&state.start(30_000, None), DIGEST), Suspicion::None);
    }

    #[test]
    fn what_cannot_be_read_blames_nobody() {
        let state = Crashes(tempfile::tempdir().unwrap());
        let long = line("SIGFPE").repeat(10_000);
        let cut = &line("SIGFPE")[..40];
        let odd = ["", "\n\n", "SIGFPE\tm\t2", cut, "SIGFPE\t../m\t2\tx\n", "\u{0}\u{0}", &long];
        for crash in odd {
            let blame = state.start(10_000, Some((crash, 9_999)));
            assert_eq!(suspicion(&blame, DIGEST), Suspicion::None, "{crash:.50}");
            let left = fs::metadata(state.0.path().join("crashes")).unwrap().len();
            assert_eq!(left, 0, "{crash:.50}");
        }
        // One start that was cut off, and the next.
        state.start(10_000, Some((&line("SIGFPE"), 9_999)));
        let same = state.start(10_001, Some((&line("SIGFPE"), 9_999)));
        assert_eq!(suspicion(&same, DIGEST), Suspicion::Once);
        fs::write(state.0.path().join("blamed"), "{").unwrap();
        assert_eq!(suspicion(&state.start(10_000, None), DIGEST), Suspicion::None);
    }
}
