//! One object, downloaded into a file: ranged, resumed where it broke, and all of one state.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use futures_util::StreamExt;
use object_store::{GetOptions, GetRange};

use super::{
    MirrorError,
    remote::{Object, Remote},
};

/// Tries that a download may take beyond one for each [`BYTES_PER_TRY`].
const TRIES_MIN: u64 = 10;
const BYTES_PER_TRY: u64 = 1 << 20;
/// Time that a download may take beyond one second for each [`BYTES_PER_SECOND`].
const TIME_MIN: Duration = Duration::from_mins(2);
const BYTES_PER_SECOND: u64 = 64 << 10;
/// The pause after a broken try doubles up to this.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Remote {
    /// Downloads an object into a new file, of which the folders are made; the file is synced.
    pub(super) async fn fetch(&self, object: &Object, to: &Path) -> Result<(), MirrorError> {
        let time = TIME_MIN + Duration::from_secs(object.bytes / BYTES_PER_SECOND);
        match tokio::time::timeout(time, self.fetch_whole(object, to)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(MirrorError::Remote(format!(
                "`{}` took more than {} s for {} bytes; it is tried again later",
                object.path,
                time.as_secs(),
                object.bytes
            ))),
        }
    }

    async fn fetch_whole(&self, object: &Object, to: &Path) -> Result<(), MirrorError> {
        let refused = |source| MirrorError::Folder { folder: to.to_owned(), source };
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(refused)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(refused)?;
        let mut at = 0;
        let mut tries_left = TRIES_MIN + object.bytes / BYTES_PER_TRY;
        let mut pause = PAUSE_MIN;
        while at < object.bytes {
            let before = at;
            match self.fetch_on(object, &mut file, &mut at, to).await {
                Ok(()) => {}
                Err(Broken::ForGood(error)) => return Err(error),
                Err(Broken::ForNow(error)) => {
                    tries_left = tries_left.checked_sub(1).ok_or(error)?;
                    pause = if at > before { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
                    tokio::time::sleep(pause).await;
                }
            }
        }
        file.sync_all().map_err(refused)
    }

    /// Downloads from `at` on, as far as it goes.
    async fn fetch_on(
        &self,
        object: &Object,
        file: &mut File,
        at: &mut u64,
        to: &Path,
    ) -> Result<(), Broken> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(*at..object.bytes)),
            if_match: object.e_tag.clone(),
            ..GetOptions::default()
        };
        let changed = || Broken::ForGood(MirrorError::Changed(object.path.clone()));
        let response =
            self.store.get_opts(&object.key, options).await.map_err(|error| match error {
                object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. } => {
                    changed()
                }
                error => Broken::ForNow(self.refused(&error)),
            })?;
        let same = response.meta.size == object.bytes
            && response.meta.e_tag == object.e_tag
            && response.range == (*at..object.bytes);
        if !same {
            return Err(changed());
        }
        let mut chunks = response.into_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Broken::ForNow(self.refused(&error)))?;
            let next = at.saturating_add(chunk.len() as u64);
            if next > object.bytes {
                return Err(changed());
            }
            file.write_all(&chunk).map_err(|source| {
                Broken::ForGood(MirrorError::Folder { folder: to.to_owned(), source })
            })?;
            *at = next;
        }
        if *at < object.bytes {
            let what = format!("`{}` ended after {at} of {} bytes", object.path, object.bytes);
            return Err(Broken::ForNow(MirrorError::Remote(what)));
        }
        Ok(())
    }
}

/// Whether another try may go on.
enum Broken {
    ForNow(MirrorError),
    ForGood(MirrorError),
}
