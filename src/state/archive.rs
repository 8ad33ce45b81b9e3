//! Backups: a copy of the log's whole records, and a log made from one.
//!
//! A backup is itself a log and can be verified, listed and restored. Nothing that was there is overwritten unless told
//! so: a log that a restore replaces is kept beside it.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{
    disk::{Disk as _, Machine},
    error::StateError,
    lock,
    log::{LOG, Verified, log_at, verify},
    make_folder,
    projection::{self, PROJECTION},
};

/// What a restore has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What the log holds now.
    pub verified: Verified,
    /// The log that was there before, kept under this name.
    pub replaced: Option<PathBuf>,
}

/// Most logs that restores have put aside in one folder.
const REPLACED_MAX: usize = 10_000;

/// Copies the log of a state folder, also while a server writes to it, up to its last whole record.
pub fn backup(path: &Path, to: &Path, replace: bool) -> Result<Verified, StateError> {
    if !replace && fs::symlink_metadata(to).is_ok() {
        return Err(StateError::Exists(to.to_owned()));
    }
    let log = log_at(path);
    if same_file(&log, to) {
        return Err(StateError::Exists(to.to_owned()));
    }
    let verified = verify(&log)?;
    let partial = beside(to, ".partial");
    let copied = copy_whole(&log, &partial, verified.bytes).and_then(|copy| {
        let folder = folder_of(to);
        let moved = Machine.rename(&partial, to).and_then(|()| Machine.sync_folder(&folder));
        moved.map_err(|error| StateError::io("name", to, error))?;
        Ok(copy)
    });
    if copied.is_err() {
        let _ = fs::remove_file(&partial); // the reason is told; this file is in nobody's way
    }
    copied
}

/// Makes a backup the log of a state folder that no server uses. The log that is there is kept.
pub fn restore(from: &Path, path: &Path) -> Result<Restored, StateError> {
    let from = &log_at(from);
    let bytes = verify(from)?.bytes;
    make_folder(path)?;
    let _lock = lock(path)?;
    let log = path.join(LOG);
    if same_file(from, &log) {
        return Err(StateError::Exists(log));
    }
    let partial = beside(&log, ".new");
    let verified = copy_whole(from, &partial, bytes)?;
    let replaced = put_aside(&log)?;
    // First what knows of later records, so that a restore that ends here leaves the log as it was.
    let projection = path.join(PROJECTION);
    projection::remove(&projection)
        .map_err(|error| StateError::io("remove", &projection, error))?;
    let moved = Machine.rename(&partial, &log).and_then(|()| Machine.sync_folder(path));
    moved.map_err(|error| StateError::io("name", &log, error))?;
    Ok(Restored { verified, replaced })
}

/// Copies the first bytes of a log into a new file, and verifies that from the disk.
fn copy_whole(from: &Path, to: &Path, bytes: u64) -> Result<Verified, StateError> {
    let written = |error| StateError::io("write", to, error);
    let source = File::open(from).map_err(|error| StateError::io("read", from, error))?;
    let target = Machine.create(to).map_err(written)?;
    let mut source = source.take(bytes);
    let (mut buffer, mut at) = (vec![0; 1 << 16], 0);
    loop {
        let got = source.read(&mut buffer).map_err(|error| StateError::io("read", from, error))?;
        if got == 0 {
            break;
        }
        target.write_all_at(&buffer[..got], at).map_err(written)?;
        at += got as u64;
    }
    target.sync().map_err(written)?;
    let copy = verify(to)?;
    if copy.bytes != bytes {
        let error = io::Error::other("it changed while it was copied; try again");
        return Err(StateError::io("copy", from, error));
    }
    Ok(copy)
}

/// Gives a log a second name, so that at no moment there is none.
fn put_aside(log: &Path) -> Result<Option<PathBuf>, StateError> {
    if fs::symlink_metadata(log).is_err() {
        return Ok(None);
    }
    for number in 1..=REPLACED_MAX {
        let aside = beside(log, &format!(".replaced-{number}"));
        match fs::hard_link(log, &aside) {
            Ok(()) => {
                let synced = Machine.sync_folder(&folder_of(log));
                synced.map_err(|error| StateError::io("keep", &aside, error))?;
                return Ok(Some(aside));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StateError::io("keep", log, error)),
        }
    }
    Err(StateError::Exists(beside(log, &format!(".replaced-{REPLACED_MAX}"))))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
