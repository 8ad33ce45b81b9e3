//! Files put into an object store, whole or not at all, in parts where they are large; and files taken from one.

use std::{
    fs::File,
    future::Future,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use object_store::{ObjectStoreExt as _, PutPayload, path::Path as Key};

use super::{
    MirrorError,
    remote::{Object, Remote},
};

/// Bytes above which a file is put in parts, and of each part. Stores ask for 5 MiB at least.
const PART_BYTES: u64 = 8 << 20;
/// Stores take 10,000 parts of an object.
const PARTS_MAX: u64 = 9_000;
/// Time that a file may take beyond one second for each [`BYTES_PER_SECOND`].
const TIME_MIN: Duration = Duration::from_mins(2);
const BYTES_PER_SECOND: u64 = 64 << 10;

/// Prefix of an object store that files are put into or taken from.
#[derive(Debug)]
pub struct Bucket {
    remote: Remote,
    runtime: tokio::runtime::Runtime,
}

/// A file that lies there.
#[derive(Debug)]
pub struct BucketFile(Object);

impl BucketFile {
    /// Its path below the address: parts that are not empty, `.`, `..` or hidden.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// The time at which it was put, since 1970, to the second.
    #[must_use]
    pub fn changed(&self) -> Duration {
        self.0.changed
    }
}

/// Why a file was not put or taken.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The address cannot be written to.
    #[error("`{address}` cannot be used: {what}")]
    Address {
        /// As it was configured, without what may be secret.
        address: String,
        /// The fault, and what would be right.
        what: String,
    },
    /// The file cannot be read or written.
    #[error("`{}`: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The store did not answer, or said no. Secrets are left out.
    #[error("{0}")]
    Store(String),
}

impl From<MirrorError> for BucketError {
    fn from(error: MirrorError) -> Self {
        match error {
            MirrorError::Root { root: address, what } => Self::Address { address, what },
            MirrorError::Folder { folder: file, source } => Self::File { file, source },
            error => Self::Store(error.to_string()),
        }
    }
}

impl Bucket {
    /// A client for `s3://bucket/prefix`, `gs://` or `az://`; nothing is asked yet.
    ///
    /// The environment has the credentials and, for `s3://`, the endpoint, under the names that the provider's own
    /// tools use.
    ///
    /// # Errors
    /// If the address is none of these, this build has no client for it, or the environment contradicts itself.
    pub fn open(
        address: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, BucketError> {
        let remote = Remote::open(address, &environment.into_iter().collect())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| BucketError::Store(format!("its client has no runtime: {error}")))?;
        Ok(Self { remote, runtime })
    }

    /// Puts a file there, in place of what has this key; `/` stands between the key's parts. Blocks, for a few tries
    /// and at most two minutes beyond what 64 KiB a second take.
    ///
    /// # Errors
    /// If the file cannot be read, or the store does not take it; it is not there then, or as it was before.
    pub fn put(&self, key: &str, file: &Path) -> Result<(), BucketError> {
        let refused = |source| BucketError::File { file: file.to_owned(), source };
        let mut content = File::open(file).map_err(refused)?;
        let bytes = content.metadata().map_err(refused)?.len();
        let key = self.remote.key(key).map_err(|what| BucketError::Store(what.to_string()))?;
        self.runtime.block_on(async {
            if bytes <= PART_BYTES {
                let part = part(&mut content, bytes).map_err(refused)?;
                return within(bytes, self.remote.store.put(&key, part))
                    .await?
                    .map(drop)
                    .map_err(|error| self.refused(&error));
            }
            within(bytes, self.put_parts(&key, &mut content, bytes, refused)).await?
        })
    }

    async fn put_parts(
        &self,
        key: &Key,
        content: &mut File,
        bytes: u64,
        refused: impl Fn(io::Error) -> BucketError,
    ) -> Result<(), BucketError> {
        let each = PART_BYTES.max(bytes.div_ceil(PARTS_MAX));
        let begun = self.remote.store.put_multipart(key).await;
        let mut upload = begun.map_err(|error| self.refused(&error))?;
        let mut at = 0;
        let put = loop {
            if at == bytes {
                break upload.complete().await.map(drop).map_err(|error| self.refused(&error));
            }
            let next = each.min(bytes - at);
            let part = match part(content, next).map_err(&refused) {
                Ok(part) => part,
                Err(error) => break Err(error),
            };
            if let Err(error) = upload.put_part(part).await {
                break Err(self.refused(&error));
            }
            at += next;
        };
        if put.is_err() {
            // Parts that stay cost money until the bucket's own rule removes them.
            let _ = upload.abort().await;
        }
        put
    }

    /// All files below the address, by path; hidden ones and those that no folder can hold are passed over. Blocks.
    ///
    /// # Errors
    /// If the store does not answer or says no, or there are more than 200,000.
    pub fn list(&self) -> Result<Vec<BucketFile>, BucketError> {
        let listed = self.runtime.block_on(self.remote.list(""))?;
        Ok(listed.into_iter().map(BucketFile).collect())
    }

    /// Takes a file into a new one, piece by piece; `progress` hears the length of each. Blocks as [`Bucket::put`]
    /// does.
    ///
    /// # Errors
    /// If the store does not give it, or the new file cannot be written; a part of it may be there then.
    pub fn take(
        &self,
        file: &BucketFile,
        target: &Path,
        progress: impl Fn(u64),
    ) -> Result<(), BucketError> {
        let refused = |source| BucketError::File { file: target.to_owned(), source };
        let mut written = File::create_new(target).map_err(refused)?;
        let taken = async {
            let got = self.remote.store.get(&file.0.key).await;
            let mut pieces = got.map_err(|error| self.refused(&error))?.into_stream();
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| self.refused(&error))?;
                written.write_all(&piece).map_err(refused)?;
                progress(piece.len() as u64);
            }
            Ok(())
        };
        self.runtime.block_on(async { within(file.bytes(), taken).await? })
    }

    fn refused(&self, error: &object_store::Error) -> BucketError {
        BucketError::Store(self.remote.refused(error).to_string())
    }
}

/// The next bytes of a file.
fn part(content: &mut File, bytes: u64) -> io::Result<PutPayload> {
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let mut part = vec![0; length];
    content.read_exact(&mut part)?;
    Ok(part.into())
}

/// Awaits what so many bytes may take.
async fn within<T>(bytes: u64, work: impl Future<Output = T>) -> Result<T, BucketError> {
    let time = TIME_MIN + Duration::from_secs(bytes / BYTES_PER_SECOND);
    tokio::time::timeout(time, work).await.map_err(|_| {
        BucketError::Store(format!("it took more than {} s for {bytes} bytes", time.as_secs()))
    })
}
