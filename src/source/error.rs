//! What goes wrong between a repository and its reader.

use std::io;

use super::{
    ManifestError, StoreError,
    reading::{ReadFault, Refusal},
};

/// Why something in a repository cannot be used; paths are relative to the repository's root.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The root is not there or closed to us.
    #[error("the repository cannot be listed; check that its folder is there and may be read")]
    Root(#[source] io::Error),
    /// A folder that is itself a model needs a name, and its own is none.
    #[error("the folder's own name `{0}` is not a model name; give one with `--model-name`")]
    NameNeeded(String),
    /// The system refused.
    #[error("`{path}` cannot be read")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's word.
        source: io::Error,
    },
    /// The model's file is not there (yet).
    #[error("`{0}` is missing; put the model there, or name its file in the model's description")]
    Missing(String),
    /// The model's file is not there, but others are.
    #[error("`{path}` is missing; found {found}: {advice}")]
    OthersFound {
        /// The file.
        path: String,
        /// Names of files that are there.
        found: String,
        /// Next step.
        advice: &'static str,
    },
    /// Something else stands where a file should be.
    #[error("`{path}` is a {kind}; it must be a regular file")]
    NotAFile {
        /// What was looked at.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file with a second name, where those are refused.
    #[error("`{0}` is a hard link; put a copy there, or allow them (`repository.hard_links`)")]
    HardLink(String),
    /// A file is larger than its limit.
    #[error("`{path}` has more than {bytes_max} bytes, the most that is read")]
    TooLarge {
        /// The file.
        path: String,
        /// The limit.
        bytes_max: u64,
    },
    /// A version folder with so many files that changes in it cannot be followed.
    #[error("`{path}` holds more than {files_max} files; leave only the model's own there")]
    TooManyFiles {
        /// The folder.
        path: String,
        /// The limit.
        files_max: usize,
    },
    /// The file does not fit into memory now.
    #[error("there is no memory for the {bytes} bytes of `{path}`")]
    NoMemory {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// Files changed while they were read: someone is publishing.
    #[error("`{0}` changed while it was read; it is read again once it is at rest")]
    Changed(String),
    /// A description that cannot be understood.
    #[error("{path}:{line}:{column}: {what}")]
    Description {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What is wrong and what would be right.
        what: String,
    },
    /// Two descriptions of one model.
    #[error(
        "`{folder}` holds both `model.toml` and `config.pbtxt`, and only one can be right; remove \
         `config.pbtxt`, or `model.toml` if Triton reads the folder too"
    )]
    TwoDescriptions {
        /// The model's folder.
        folder: String,
    },
    /// The description gives the model another name than its folder.
    #[error("`{path}` names the model `{name}`, but its folder is `{folder}`; make them the same")]
    NameDiffers {
        /// The description.
        path: String,
        /// The name in it.
        name: String,
        /// The folder's.
        folder: String,
    },
    /// The names in a label file break a limit or are no text.
    #[error("class names in `{path}`: {what}")]
    ClassNames {
        /// The file.
        path: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// A file that a model or a description names, and that is not given out.
    #[error("`{location}`, named by the model in `{folder}`, is refused")]
    Beside {
        /// The folder that the location belongs to.
        folder: String,
        /// The location, shortened.
        location: String,
        /// Why.
        source: Refusal,
    },
    /// An `MLflow` model without the flavor that can be served.
    #[error("`{path}` has no flavor `onnx`, only {flavors}; log the model with `mlflow.onnx`")]
    NoOnnxFlavor {
        /// The `MLmodel` file.
        path: String,
        /// The flavors that are there.
        flavors: String,
    },
    /// Files of the publisher's `SHA256SUMS` are not there yet.
    #[error("`{path}` is still being copied: {there} of {listed} files of `SHA256SUMS` are there")]
    Incomplete {
        /// The version's folder.
        path: String,
        /// Files that are there.
        there: usize,
        /// Files that are listed.
        listed: usize,
    },
    /// A file is not the one that the publisher listed.
    #[error("the bytes of `{0}` are not those that `SHA256SUMS` lists; publish both again")]
    WrongDigest(String),
    /// A file of the version that the publisher did not list.
    #[error(
        "`{0}` is refused: `SHA256SUMS` does not list it; list every file of the version there"
    )]
    NotListed(String),
    /// A manifest cannot be used.
    #[error("`{path}` cannot be used")]
    Manifest {
        /// The manifest.
        path: String,
        /// Why.
        source: ManifestError,
    },
    /// The content store did not keep or give a file.
    #[error("`{path}` is not in the content store")]
    Store {
        /// The file.
        path: String,
        /// Why.
        source: Box<StoreError>,
    },
}

impl SourceError {
    /// True if the content store is to blame, not the repository.
    pub fn is_of_the_store(&self) -> bool {
        match self {
            Self::Store { .. } => true,
            Self::Beside { source, .. } => matches!(source, Refusal::Store(_)),
            _ => false,
        }
    }

    /// Whether the same read may succeed later without anyone touching the repository.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Root(_)
            | Self::Io { .. }
            | Self::NoMemory { .. }
            | Self::Changed(_)
            | Self::Incomplete { .. } => true,
            Self::Store { source, .. } => source.retry_helps(),
            Self::Beside { source, .. } => match source {
                Refusal::Changed | Refusal::NoMemory { .. } => true,
                Refusal::Store(source) => source.retry_helps(),
                _ => false,
            },
            _ => false,
        }
    }

    /// The message with its causes, for where no chain can be shown.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    pub(super) fn from_read(path: &str, fault: ReadFault) -> Self {
        let path = path.to_owned();
        match fault {
            ReadFault::Missing => Self::Missing(path),
            ReadFault::NotAFile(kind) => Self::NotAFile { path, kind },
            ReadFault::HardLink => Self::HardLink(path),
            ReadFault::TooLarge { bytes_max } => Self::TooLarge { path, bytes_max },
            ReadFault::NoMemory { bytes } => Self::NoMemory { path, bytes },
            ReadFault::Changed => Self::Changed(path),
            ReadFault::WrongDigest => Self::WrongDigest(path),
            ReadFault::NotListed => Self::NotListed(path),
            ReadFault::Store(source) => Self::Store { path, source },
            ReadFault::Io(source) => Self::Io { path, source },
        }
    }
}

/// Text from a repository, fit for a message: short and without control characters.
pub(super) fn shown(text: &str) -> String {
    const CHARACTERS_MAX: usize = 64;
    let mut shown: String =
        text.chars().take(CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Where a byte of a text stands: line and column, both counted from 1, the column in characters.
pub(super) fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line_at = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    // Bytes that continue a character do not count.
    let characters = before[line_at..].iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    (memchr::memchr_iter(b'\n', before).count() + 1, characters + 1)
}
