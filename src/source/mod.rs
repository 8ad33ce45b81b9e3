//! Where models lie: lists a folder and what was uploaded in its place, reads descriptions, fetches and keeps
//! artifacts, notices changes.
//!
//! A repository is written by others and not trusted. Always true:
//! - Every read has a limit, and no read waits: pipes and devices are refused, not opened and hoped for.
//! - Bytes are hashed as they are read; whoever holds an [`Artifact`] never goes back to the folder for the
//!   same file. A folder that changes meanwhile makes the read fail, to be tried again.
//! - Files that a model or a description names (external data, class names) are opened below the folder they
//!   belong to. They may be links, as the model's file itself: mounted volumes, caches and data version control
//!   publish them so; but only links whose end is the model's own (`links`).
//! - A version that was kept in the [`Store`] can be taken again from there alone, by the digest of its [`Manifest`].
//! - Messages name files relative to the repository's root.
//!
//! Not here: which versions are loaded (`lifecycle`), what the bytes mean (`engine`).

mod artifact;
mod content;
mod describe;
mod digest;
mod error;
mod files;
mod fingerprint;
mod folder;
mod links;
mod manifest;
#[cfg(feature = "mirror")]
mod mirror;
mod mlflow;
mod model_toml;
#[doc(hidden)]
pub mod pbtxt;
mod reading;
mod store;
mod upload;
mod watch;

use std::{path::PathBuf, time::Duration};

use crate::model::ModelName;

pub use artifact::{Artifact, ListedVersion, Stored};
pub use content::Content;
pub use digest::Digest;
pub use error::SourceError;
pub use fingerprint::Fingerprint;
pub use folder::{Folder, ListedModel, Listing, Problem, RootId};
pub use manifest::{Manifest, ManifestError, ManifestFile};
#[cfg(feature = "mirror")]
pub use mirror::{Bucket, BucketError, BucketFile, Mirror, MirrorError, MirrorNews};
pub use reading::Refusal;
pub use store::{Collected, Hold, Store, StoreError};
pub use upload::{Override, UploadError};
pub use watch::{WatchCause, WatchError, Watcher};

/// Where the repository is, and how much of it is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The repository's folder, relative to the current directory or absolute; or an object store's address, which has
    /// `://`.
    pub root: PathBuf,
    /// How often the folder is looked at, whether or not file events came.
    pub poll_interval: Duration,
    /// The name of the model where the folder holds just one.
    pub model_name: Option<ModelName>,
    /// The most bytes of one version: the model with all its external data.
    pub artifact_bytes_max: u64,
    /// The most models; the first by name count.
    pub models_max: usize,
    /// The most versions of one model; the highest count.
    pub versions_max: usize,
    /// True if files with a second name are read.
    pub hard_links: bool,
    /// How long a repository without any of its models is taken for a lost volume.
    pub vanished_grace: Duration,
    /// Folders that are written by the server, and no models where they lie in the root.
    pub own_folders: Vec<PathBuf>,
}

impl Settings {
    /// The defaults for a folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..Self::default() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root: "./models".into(),
            poll_interval: Duration::from_secs(2),
            model_name: None,
            artifact_bytes_max: 4 << 30,
            models_max: 10_000,
            versions_max: 1_000,
            hard_links: true,
            vanished_grace: Duration::from_mins(10),
            own_folders: Vec::new(),
        }
    }
}
