//! Versions that were kept in the content store, taken again from there alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use crate::model::ModelDescription;

use super::{
    super::{
        Digest, Manifest, SourceError, Store,
        describe::describe,
        files::{Files, Shelf, StoredFolder},
        fingerprint::Fingerprint,
        manifest::MANIFEST_BYTES_MAX,
        reading::ReadFault,
    },
    Artifact, External, GOLDEN, GOLDEN_BYTES_MAX, Lies, ListedVersion, Origin, PROFILE,
    PROFILE_BYTES_MAX,
};

/// A version that was kept in the content store.
#[derive(Debug)]
pub struct Stored {
    /// What the repository said about the model when the version was kept.
    pub description: ModelDescription,
    /// The version's bytes; external data come from the store as well.
    pub artifact: Artifact,
}

/// A version whose files are known by their digests.
#[derive(Debug, Clone)]
pub(in crate::source) struct ShelfVersion {
    pub(in crate::source) shelf: Shelf,
    pub(in crate::source) manifest: Arc<Manifest>,
    /// The most bytes of the version.
    pub(in crate::source) bytes_max: u64,
}

impl ShelfVersion {
    /// The same for whoever does not care where it lies.
    pub(in crate::source) fn listed(self) -> ListedVersion {
        let fingerprint = Fingerprint::of_content(&self.manifest.digest());
        ListedVersion { fingerprint, lies: Lies::Shelf(self) }
    }

    /// A folder of the model, empty for its own.
    pub(in crate::source) fn folder(&self, folder: &str) -> StoredFolder {
        StoredFolder {
            shelf: self.shelf.clone(),
            manifest: Arc::clone(&self.manifest),
            folder: folder.to_owned(),
        }
    }

    /// Takes the version's bytes; what is not in the store yet is put there.
    pub(super) fn fetch(&self, store: Option<&Store>) -> Result<Artifact, SourceError> {
        let name = name(&self.manifest.digest());
        if let (Shelf::Memory(_), Some(store)) = (&self.shelf, store) {
            for (path, file) in self.manifest.files() {
                let kept = (self.shelf.read(&file.sha256, file.bytes))
                    .and_then(|bytes| store.put_known(&bytes, &file.sha256));
                kept.map_err(|source| SourceError::Store {
                    path: path.clone(),
                    source: Box::new(source),
                })?;
            }
        }
        let fault =
            |path: &str, fault| SourceError::from_read(&format!("{path}` of `{name}"), fault);
        let (model, bytes_max) = (self.manifest.model(), self.bytes_max);
        let bytes = self.folder("").own(model, bytes_max).map_err(|error| fault(model, error))?;
        let folder = self.folder(self.manifest.folder());
        let own = |name: &str, bytes_max| match folder.own(name, bytes_max) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(ReadFault::Missing) => Ok(None),
            Err(error) => Err(fault(name, error)),
        };
        let golden = own(GOLDEN, GOLDEN_BYTES_MAX)?;
        let profile = own(PROFILE, PROFILE_BYTES_MAX)?;
        let sha256 = self.manifest.files()[model].sha256.to_string();
        let beside = self.folder(model.rsplit_once('/').map_or("", |(folder, _)| folder));
        let bytes_left = bytes_max.saturating_sub(bytes.len() as u64);
        let external = Mutex::new(External { files: BTreeMap::new(), bytes_left });
        Ok(Artifact {
            model: bytes,
            sha256,
            golden,
            profile,
            origin: Origin::Store(beside),
            external,
        })
    }
}

impl Store {
    /// Takes a version that [`Artifact::keep`] kept, of at most `bytes_max` bytes; no repository is needed.
    pub fn version(&self, manifest: &Digest, bytes_max: u64) -> Result<Stored, SourceError> {
        let version = self.kept(manifest, bytes_max)?;
        let description = describe(&version.folder(""), "")?;
        Ok(Stored { description, artifact: version.fetch(None)? })
    }

    /// A version that was kept; only its manifest is read.
    pub(in crate::source) fn kept(
        &self,
        manifest: &Digest,
        bytes_max: u64,
    ) -> Result<ShelfVersion, SourceError> {
        let manifest = Arc::new(self.manifest(manifest)?);
        Ok(ShelfVersion { shelf: Shelf::Store(self.clone()), manifest, bytes_max })
    }

    /// The `golden.json` of a version that was kept, if it has one; its model is not read.
    pub fn golden(&self, manifest: &Digest) -> Result<Option<Vec<u8>>, SourceError> {
        let version = self.kept(manifest, 0)?;
        match version.folder(version.manifest.folder()).own(GOLDEN, GOLDEN_BYTES_MAX) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(ReadFault::Missing) => Ok(None),
            Err(fault) => Err(SourceError::from_read(GOLDEN, fault)),
        }
    }

    /// The blobs of a version that was kept, its manifest among them: what [`Store::collect`] must leave.
    pub fn blobs(&self, manifest: &Digest) -> Result<BTreeSet<Digest>, SourceError> {
        let files = self.manifest(manifest)?;
        let files = files.files().values().map(|file| file.sha256);
        Ok(files.chain([*manifest]).collect())
    }

    /// The manifest of a version that was kept.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, SourceError> {
        let text = self.read(digest, MANIFEST_BYTES_MAX).map_err(|source| SourceError::Store {
            path: name(digest),
            source: Box::new(source),
        })?;
        Manifest::parse(&text)
            .map_err(|source| SourceError::Manifest { path: name(digest), source })
    }
}

/// A kept version for people: enough of the digest to find it.
pub(super) fn name(manifest: &Digest) -> String {
    format!("version {}", &manifest.to_string()[..12])
}
