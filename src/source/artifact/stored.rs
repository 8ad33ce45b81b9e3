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
        files::{Files, StoredFolder},
        manifest::MANIFEST_BYTES_MAX,
        reading::ReadFault,
    },
    Artifact, External, GOLDEN, GOLDEN_BYTES_MAX, Origin,
};

/// A version that was kept in the content store.
#[derive(Debug)]
pub struct Stored {
    /// What the repository said about the model when the version was kept.
    pub description: ModelDescription,
    /// The version's bytes; external data come from the store as well.
    pub artifact: Artifact,
}

impl Store {
    /// Takes a version that [`Artifact::keep`] kept, of at most `bytes_max` bytes; no repository is needed.
    pub fn version(&self, manifest: &Digest, bytes_max: u64) -> Result<Stored, SourceError> {
        let name = name(manifest);
        let manifest = Arc::new(self.manifest(manifest)?);
        let folder = |folder: &str| StoredFolder {
            store: self.clone(),
            manifest: Arc::clone(&manifest),
            folder: folder.to_owned(),
        };
        let whole = folder("");
        let description = describe(&whole, "")?;
        let fault =
            |path: &str, fault| SourceError::from_read(&format!("{path}` of `{name}"), fault);
        let model = manifest.model();
        let bytes = whole.own(model, bytes_max).map_err(|error| fault(model, error))?;
        let golden = match folder(manifest.folder()).own(GOLDEN, GOLDEN_BYTES_MAX) {
            Ok(golden) => Some(golden.into()),
            Err(ReadFault::Missing) => None,
            Err(error) => return Err(fault(GOLDEN, error)),
        };
        let sha256 = manifest.files()[model].sha256.to_string();
        let beside = folder(model.rsplit_once('/').map_or("", |(folder, _)| folder));
        let bytes_left = bytes_max.saturating_sub(bytes.len() as u64);
        let external = Mutex::new(External { files: BTreeMap::new(), bytes_left });
        let artifact =
            Artifact { model: bytes, sha256, golden, origin: Origin::Store(beside), external };
        Ok(Stored { description, artifact })
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
