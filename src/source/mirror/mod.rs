//! A repository in an object store, mirrored into a folder that everything else reads.
//!
//! A thread of its own looks at the store every poll interval and makes the folder equal to it: descriptions
//! first, then the versions that a description wants. Always true:
//! - A version appears whole or not at all: it is fetched aside, compared with the store once more, and renamed.
//! - A store that cannot be listed to its end, or lists nothing, changes nothing: what was mirrored stays.
//! - Broken downloads go on where they broke, of the same object (by its `ETag`); sizes, tries and time are bounded.
//! - Credentials and endpoints come from the operator's environment alone. No redirect is followed. No
//!   credential is in a message.
//!
//! Beside it, `bucket` puts files into a store.
//!
//! Not here: what a repository means ([`Folder`]), when it is read again (`lifecycle`).

mod bucket;
mod fetch;
mod pass;
mod remote;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::{Digest, Folder, Settings};

pub use bucket::{Bucket, BucketError, BucketFile};

use pass::Pass;
use remote::Remote;

/// Keeps a folder equal to a repository in an object store, until it is dropped.
#[derive(Debug)]
pub struct Mirror {
    settings: Settings,
    problem: Arc<Mutex<Option<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// The folder to remove in the end, where there is no state path.
    temporary: Option<PathBuf>,
}

/// What a mirror tells while it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorNews<'a> {
    /// A model or a version came; the look at the store goes on.
    Came,
    /// A look at the store has ended, with this problem.
    Looked(Option<&'a str>),
}

/// Why a mirror cannot be kept, or could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The root is not an address that can be mirrored.
    #[error("`{root}` cannot be mirrored: {what}")]
    Root {
        /// As it was configured, without what may be secret.
        root: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// The local folder is not usable.
    #[error("the folder for the mirror cannot be used; check that `{}` may be written", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The store did not answer, or said no. Secrets are left out.
    #[error("the object store failed: {0}")]
    Remote(String),
    /// Nothing is there.
    #[error(
        "the object store has nothing below the repository's address; check it, or put a model there (what was \
         mirrored stays)"
    )]
    Empty,
    /// More objects than a repository has.
    #[error("the object store has more than {objects_max} objects below the repository's address")]
    TooManyObjects {
        /// The limit.
        objects_max: usize,
    },
    /// Somebody publishes.
    #[error("`{0}` changed while it was fetched; it is fetched again once it is at rest")]
    Changed(String),
    /// It cannot be mirrored as it is.
    #[error("`{path}` is left out: {what}")]
    Unfit {
        /// The object or folder, relative to the repository.
        path: String,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// Polling more often would be a busy loop, and costs money.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);

impl Mirror {
    /// Whether a repository's root is an address for a mirror, not a folder.
    pub fn is_for(root: &Path) -> bool {
        root.to_str().is_some_and(|root| root.contains("://"))
    }

    /// Starts to mirror `settings.root`; `tell` is called from the mirror's thread, after each look at the store and
    /// whenever a model came.
    ///
    /// The folder lies below the state path; where there is none, in a temporary folder that goes with the mirror.
    /// The environment has the credentials and, for `s3://`, the endpoint, under the names that the provider's own
    /// tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
    pub fn start(
        settings: Settings,
        state: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        tell: impl Fn(MirrorNews<'_>) + Send + 'static,
    ) -> Result<Self, MirrorError> {
        let address = settings.root.to_string_lossy();
        let remote = Remote::open(&address, &environment.into_iter().collect())?;
        let temporary = state.is_none().then(temporary_folder);
        let base =
            temporary.clone().or(state.map(|state| state.join("mirror"))).unwrap_or_default();
        // What was mirrored from one address must never be taken for what another has.
        let root = base.join(&Digest::of(address.as_bytes()).to_string()[..16]).join(remote.name());
        let folder_error = |source| MirrorError::Folder { folder: base.clone(), source };
        // A temporary folder must be new: others may write beside it.
        let private = |new: bool| DirBuilder::new().mode(0o700).recursive(!new).create(&base);
        private(temporary.is_some()).map_err(folder_error)?;
        fs::create_dir_all(&root).map_err(folder_error)?;
        let mut pass = Pass::new(remote, &base, root.clone(), settings.clone());
        let problem = Arc::new(Mutex::new(None));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(folder_error)?;
        let poll_interval = settings.poll_interval.max(POLL_INTERVAL_MIN);
        let known = Arc::clone(&problem);
        let thread = thread::Builder::new()
            .name("repository-mirror".to_owned())
            .spawn(move || {
                let keep = async {
                    loop {
                        // A panic costs this look, not the mirror.
                        let came = || tell(MirrorNews::Came);
                        let run = AssertUnwindSafe(pass.run(&came));
                        let panicked = |_| {
                            let what =
                                "looking at it ended in a panic, a bug of tidegate; the log has it";
                            Err(MirrorError::Remote(what.to_owned()))
                        };
                        let outcome = run.catch_unwind().await.unwrap_or_else(panicked);
                        note(&known, outcome, |problem| tell(MirrorNews::Looked(problem)));
                        tokio::time::sleep(poll_interval).await;
                    }
                };
                // Dropped at any `await`: what is half fetched lies aside and is removed by the next start.
                runtime.block_on(async {
                    tokio::select! {
                        () = keep => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(folder_error)?;
        let settings = Settings { root, ..settings };
        Ok(Self { settings, problem, stop: Some(stop), thread: Some(thread), temporary })
    }

    /// The mirror as a repository.
    pub fn folder(&self) -> Folder {
        Folder::new(self.settings.clone())
    }

    /// How the mirror is listed: the settings that it was started with, but with the local folder as root.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Why the mirror is not equal to the store; `None` if it is, or was never compared.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // Its thread may have ended, and then there is nobody to tell.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the repository's mirror ended in a panic, which is a bug of tidegate");
        }
        if let Some(folder) = &self.temporary {
            // What is left is the system's to remove, as all of its temporary files.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Says what is wrong, once for each time it changes, and gives it.
fn note(
    problem: &Mutex<Option<String>>,
    outcome: Result<Vec<MirrorError>, MirrorError>,
    tell: impl FnOnce(Option<&str>),
) {
    const SHOWN_MAX: usize = 8;
    let problems = outcome.unwrap_or_else(|error| vec![error]);
    let mut texts: Vec<String> = problems.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    if problems.len() > SHOWN_MAX {
        texts.push(format!("and {} more", problems.len() - SHOWN_MAX));
    }
    let text = (!texts.is_empty()).then(|| texts.join("; "));
    let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
    let before = std::mem::replace(&mut *problem, text.clone());
    drop(problem);
    // Before it is logged: whoever reads the line finds the same elsewhere.
    tell(text.as_deref());
    match text {
        Some(text) if before.as_ref() != Some(&text) => {
            tracing::warn!(problem = text, "the repository's mirror is behind its object store");
        }
        None if before.is_some() => tracing::info!("the repository's mirror is up to date again"),
        _ => {}
    }
}

fn temporary_folder() -> PathBuf {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tidegate-mirror-{}-{serial}", process::id()))
}
