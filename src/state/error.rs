//! What goes wrong with durable records, and what was noticed without going wrong.

use std::{fmt, io, path::PathBuf, sync::Arc};

/// Why something was not recorded, read, saved or restored.
///
/// Whoever gets an error from an append was not acknowledged; only after [`StateError::Sealed`] may the record
/// still be there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// Another process has the folder.
    #[error(
        "the state folder `{}` is in use by another tidegate; stop that one, or give this one its own `state.path`",
        .0.display()
    )]
    Locked(PathBuf),
    /// There is no log.
    #[error("there is no log at `{}`; check `state.path`, a server creates the log when it first starts", .0.display())]
    Missing(PathBuf),
    /// The log is not what was written.
    #[error(
        "the log `{}` is damaged; see `tidegate audit verify`, then bring a backup back with `tidegate state restore`",
        .path.display()
    )]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Where and how.
        #[source]
        damage: Damage,
    },
    /// The log ends before records that were acknowledged: it was cut off or put back.
    #[error(
        "the log `{}` ends with record {log}, but record {projected} was acknowledged; bring the log back with \
         `tidegate state restore`, or remove `records.sqlite` beside it to accept the loss",
        .path.display()
    )]
    Behind {
        /// The log.
        path: PathBuf,
        /// Its last record.
        log: u64,
        /// The last record that its projection knows.
        projected: u64,
    },
    /// No space is left; worth another try once there is some.
    #[error("no space is left for `{}`; free some, nothing needs a restart", .path.display())]
    Full {
        /// The log.
        path: PathBuf,
        /// The system's word.
        source: Arc<io::Error>,
    },
    /// The log has reached its bound.
    #[error("the log would exceed {bytes_max} bytes; raise `state.log_bytes`")]
    LogLimit {
        /// The bound.
        bytes_max: u64,
    },
    /// A record, or a group of them, beyond its bound.
    #[error("a record of {bytes} bytes is too large; at most {bytes_max} are kept")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// What cannot be written down.
    #[error("the record cannot be kept: {0}")]
    Unfit(String),
    /// The disk did not confirm a write, so what lies behind the last acknowledged record is unknown. The log
    /// is opened and verified again by itself, with a later append.
    #[error(
        "the log is sealed since the disk failed; it is verified and opened again with one of the next records"
    )]
    Sealed(#[source] Arc<io::Error>),
    /// The system refused something else.
    #[error("cannot {doing} `{}`", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's word.
        source: Arc<io::Error>,
    },
    /// A file is there already.
    #[error("`{}` exists; name another file, or say that it may be replaced", .0.display())]
    Exists(PathBuf),
    /// The writer has ended.
    #[error("the state is closed; restart the server, and look in its log for the reason")]
    Closed,
}

/// What is wrong with a log, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}, in record {sequence}: {what}")]
pub struct Damage {
    /// The wrong byte where it is known; else where the record begins.
    pub offset: u64,
    /// The record that it belongs to; 0 is the head of the file.
    pub sequence: u64,
    /// What was found.
    pub what: String,
}

/// What was noticed, and put right, when the state was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The process before died while writing: what it had not acknowledged was cut off.
    TornTail {
        /// How much was cut off.
        bytes: u64,
    },
    /// The projection was made anew from the log.
    Rebuilt {
        /// Why.
        why: String,
    },
    /// The projection cannot be used; queries read the log.
    NoProjection {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TornTail { bytes } => {
                write!(f, "{bytes} bytes that were never acknowledged were cut off the log's end")
            }
            Self::Rebuilt { why } => write!(f, "records.sqlite was made anew from the log: {why}"),
            Self::NoProjection { why } => {
                write!(f, "records.sqlite cannot be used, queries read the log: {why}")
            }
        }
    }
}

impl StateError {
    /// The text with all its causes.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }

    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        let path = path.into();
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::Full { path, source: Arc::new(error) },
            _ => Self::Io { doing, path, source: Arc::new(error) },
        }
    }
}
