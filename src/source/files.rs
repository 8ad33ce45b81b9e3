//! Reading named files below a folder, wherever that folder is: on a file system or in the content store.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    Content, Digest, Manifest, Store, StoreError,
    content::LARGE_BYTES,
    links::OpenFolder,
    model_toml, pbtxt,
    reading::{self, ReadFault, Refusal},
};

/// Files below a folder.
pub(super) trait Files {
    /// Reads a file that we name ourselves.
    fn own(&self, name: &str, bytes_max: u64) -> Result<Bytes, ReadFault>;

    /// Reads a file that untrusted content names, which is that of `referrer`, a file of our own name: only what is the
    /// model's own.
    fn named(&self, referrer: &str, location: &str, bytes_max: u64) -> Result<Bytes, Refusal>;
}

impl StoredFolder {
    /// Takes a file that the model names, as [`Files::named`] does; a large one is not taken into memory.
    pub(super) fn beside(&self, location: &str, bytes_max: u64) -> Result<Content, Refusal> {
        reading::check_location(location)?;
        let path = below(&self.folder, location);
        let listed = self.manifest.files().get(&path).filter(|file| file.bytes >= LARGE_BYTES);
        let (Some(listed), Shelf::Store(store)) = (listed, &self.shelf) else {
            return Ok(Content::Memory(self.own(location, bytes_max)?));
        };
        if listed.bytes > bytes_max {
            return Err(Refusal::TooLarge { bytes_max });
        }
        let file = store.file(&listed.sha256, listed.bytes);
        let file = file.map_err(|error| ReadFault::Store(error.into()))?;
        Ok(Content::File(Arc::new(file), listed.bytes))
    }
}

impl Files for OpenFolder {
    fn own(&self, name: &str, bytes_max: u64) -> Result<Bytes, ReadFault> {
        reading::read(self.follow(name)?, bytes_max).map(Bytes::from)
    }

    fn named(&self, referrer: &str, location: &str, bytes_max: u64) -> Result<Bytes, Refusal> {
        Ok(reading::read(self.beneath(referrer, location)?, bytes_max)?.into())
    }
}

/// Where blobs are.
#[derive(Debug, Clone)]
pub(super) enum Shelf {
    /// In the content store.
    Store(Store),
    /// In memory: they came with a request.
    Memory(Arc<BTreeMap<Digest, Bytes>>),
}

impl Shelf {
    /// Reads the bytes of a digest, at most `bytes_max`.
    pub(super) fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Bytes, StoreError> {
        match self {
            Self::Store(store) => store.read(digest, bytes_max),
            Self::Memory(blobs) => blobs.get(digest).cloned().ok_or(StoreError::Missing(*digest)),
        }
    }
}

/// A folder of a version whose files are known by their digests.
#[derive(Debug, Clone)]
pub(super) struct StoredFolder {
    pub(super) shelf: Shelf,
    pub(super) manifest: Arc<Manifest>,
    /// Relative to the model's folder; empty for that itself.
    pub(super) folder: String,
}

impl Files for StoredFolder {
    fn own(&self, name: &str, bytes_max: u64) -> Result<Bytes, ReadFault> {
        let path = below(&self.folder, name);
        let file = self.manifest.files().get(&path).ok_or(ReadFault::Missing)?;
        if file.bytes > bytes_max {
            return Err(ReadFault::TooLarge { bytes_max });
        }
        self.shelf.read(&file.sha256, file.bytes).map_err(|error| ReadFault::Store(error.into()))
    }

    fn named(&self, _: &str, location: &str, bytes_max: u64) -> Result<Bytes, Refusal> {
        reading::check_location(location)?;
        Ok(self.own(location, bytes_max)?)
    }
}

/// A model's folder with another `config.pbtxt` than lies there, and no `model.toml`.
pub(super) struct Redescribed<'a> {
    pub(super) files: &'a dyn Files,
    pub(super) config: &'a str,
}

impl Files for Redescribed<'_> {
    fn own(&self, name: &str, bytes_max: u64) -> Result<Bytes, ReadFault> {
        match name {
            pbtxt::FILENAME => Ok(Bytes::copy_from_slice(self.config.as_bytes())),
            model_toml::FILENAME => Err(ReadFault::Missing),
            _ => self.files.own(name, bytes_max),
        }
    }

    fn named(&self, referrer: &str, location: &str, bytes_max: u64) -> Result<Bytes, Refusal> {
        self.files.named(referrer, location, bytes_max)
    }
}

/// Remembers what was read.
pub(super) struct Recorded<'a> {
    pub(super) files: &'a dyn Files,
    pub(super) read: RefCell<BTreeMap<String, Bytes>>,
}

impl Recorded<'_> {
    fn remember(&self, name: &str, bytes: &Bytes) {
        self.read.borrow_mut().insert(name.to_owned(), bytes.clone());
    }
}

impl Files for Recorded<'_> {
    fn own(&self, name: &str, bytes_max: u64) -> Result<Bytes, ReadFault> {
        let bytes = self.files.own(name, bytes_max)?;
        self.remember(name, &bytes);
        Ok(bytes)
    }

    fn named(&self, referrer: &str, location: &str, bytes_max: u64) -> Result<Bytes, Refusal> {
        let bytes = self.files.named(referrer, location, bytes_max)?;
        self.remember(location, &bytes);
        Ok(bytes)
    }
}

/// The path of a file below a folder; an empty folder is none.
pub(super) fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}
