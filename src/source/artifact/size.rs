//! How large a version is, before anything of it is read.

use std::{fs, path::Path};

use super::{Lies, ListedVersion};
use crate::source::fingerprint::FILES_MAX;

/// Folders deeper than this are passed over.
const DEPTH_MAX: usize = 8;

impl ListedVersion {
    /// Bytes of all files in the version's folder now: at least what its model and external data take.
    ///
    /// What cannot be read counts as nothing; reading the version says why.
    pub fn folder_bytes(&self) -> u64 {
        match &self.lies {
            Lies::Folder(version) => {
                let mut files_left = FILES_MAX;
                folder_bytes(&version.place.folder, DEPTH_MAX, &mut files_left)
            }
            Lies::Shelf(version) => {
                let files = version.manifest.files().values();
                files.map(|file| file.bytes).fold(0, u64::saturating_add)
            }
        }
    }
}

fn folder_bytes(folder: &Path, depth_left: usize, files_left: &mut usize) -> u64 {
    let mut sum = 0u64;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    for entry in entries.flatten() {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden || *files_left == 0 {
            continue;
        }
        *files_left -= 1;
        // Mounted volumes are links; what they lead to is what is read.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_file() {
            sum = sum.saturating_add(metadata.len());
        } else if metadata.is_dir() && depth_left > 0 {
            sum = sum.saturating_add(folder_bytes(&entry.path(), depth_left - 1, files_left));
        }
    }
    sum
}
