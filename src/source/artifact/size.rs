//! How large a version is, before anything of it is read.

use std::{
    collections::BTreeSet,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::{INNER_FILENAME, Lies, ListedVersion};
use crate::source::fingerprint::FILES_MAX;

/// Folders deeper than this are passed over.
const DEPTH_MAX: usize = 8;

impl ListedVersion {
    /// Bytes of the model's file, and of all other files in the version's folder now: at least what its external data
    /// take.
    ///
    /// What cannot be read counts as nothing; reading the version says why.
    pub fn folder_bytes(&self) -> (u64, u64) {
        match &self.lies {
            Lies::Folder(version) => {
                let mut walk = Walk { files_left: FILES_MAX, seen: BTreeSet::new() };
                let all = walk.folder_bytes(&version.place.folder, DEPTH_MAX);
                let path = version.place.folder.join(&*version.place.filename);
                let path = if path.is_dir() { path.join(INNER_FILENAME) } else { path };
                let model = fs::metadata(path).map_or(0, |model| model.len()).min(all);
                (model, all - model)
            }
            Lies::Shelf(version) => version.manifest.model_bytes(),
        }
    }
}

struct Walk {
    files_left: usize,
    /// Folders that count already, by device and inode: links lead to one folder many times, or in circles.
    seen: BTreeSet<(u64, u64)>,
}

impl Walk {
    fn folder_bytes(&mut self, folder: &Path, depth_left: usize) -> u64 {
        let mut sum = 0u64;
        let is_new = |metadata: Metadata| self.seen.insert((metadata.dev(), metadata.ino()));
        if !fs::metadata(folder).is_ok_and(is_new) {
            return 0;
        }
        let Ok(entries) = fs::read_dir(folder) else { return 0 };
        for entry in entries.flatten() {
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if hidden || self.files_left == 0 {
                continue;
            }
            self.files_left -= 1;
            // Mounted volumes are links; what they lead to is what is read.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_file() {
                sum = sum.saturating_add(metadata.len());
            } else if metadata.is_dir() && depth_left > 0 {
                sum = sum.saturating_add(self.folder_bytes(&entry.path(), depth_left - 1));
            }
        }
        sum
    }
}
