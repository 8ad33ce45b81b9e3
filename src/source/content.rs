//! The bytes of a file of a version: in memory, or, where they are many, in a file that nobody changes.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use sha2::Digest as _;

use super::{Digest, reading::ReadFault};

/// The bytes of a file of a version.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Memory(Bytes),
    /// In a file of the content store, with its length. Map it: reading it is what this spares.
    File(Arc<File>, u64),
}

/// Files from so many bytes on are not read into memory where there is a content store.
pub(super) const LARGE_BYTES: u64 = 16 << 20;

/// Bytes that are read, written and hashed at a time, and how many such parts may wait for the hash.
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_MAX: usize = 8;

impl Content {
    /// The count of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, length) => *length,
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they are in memory.
    pub fn memory(&self) -> Option<&Bytes> {
        match self {
            Self::Memory(bytes) => Some(bytes),
            Self::File(..) => None,
        }
    }
}

/// Hashes a file while it is read, once, and written to another one if there is one; gives its length too.
///
/// A blob's time may change meanwhile, when it is put again; its digest tells whether it is right.
///
/// # Errors
/// [`ReadFault::Changed`] where the file does not stay the same meanwhile; an error of writing is the inner one.
pub(super) fn digest(
    from: &mut File,
    mut to: Option<&mut File>,
    bytes_max: u64,
    is_blob: bool,
) -> Result<io::Result<(Digest, u64)>, ReadFault> {
    let before = from.metadata()?;
    if before.len() > bytes_max {
        return Err(ReadFault::TooLarge { bytes_max });
    }
    from.rewind()?;
    let (filled, to_hash) = mpsc::sync_channel::<Vec<u8>>(CHUNKS_MAX);
    let (emptied, free) = mpsc::channel::<Vec<u8>>();
    let (hash, length, written) = thread::scope(|scope| {
        let hashing = scope.spawn(move || {
            let mut hash = sha2::Sha256::new();
            for chunk in to_hash {
                hash.update(&chunk);
                // Nobody takes it once all is read.
                let _ = emptied.send(chunk);
            }
            Digest::from(hash)
        });
        let mut length = 0_u64;
        let mut written = Ok(());
        loop {
            let mut chunk = free.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK_BYTES));
            chunk.clear();
            let read = (&*from).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
            length += read as u64;
            if read == 0 || length > before.len() {
                break;
            }
            if let (Some(to), Ok(())) = (&mut to, &written) {
                written = to.write_all(&chunk);
            }
            // The thread ends only when this side is let go of.
            let _ = filled.send(chunk);
        }
        drop(filled);
        let hash = hashing.join().map_err(|_| io::Error::other("hashing ended in a panic"))?;
        Ok::<_, ReadFault>((hash, length, written))
    })?;
    let after = from.metadata()?;
    let is_at_rest = length == before.len()
        && after.len() == before.len()
        && (is_blob
            || (before.mtime(), before.mtime_nsec()) == (after.mtime(), after.mtime_nsec()));
    if !is_at_rest {
        return Err(ReadFault::Changed);
    }
    Ok(written.map(|()| (hash, length)))
}
