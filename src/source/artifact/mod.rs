//! One version in a repository, and its bytes once they are read.
//!
//! Bytes come from a folder, or from the content store when a version that was kept is taken again. Either way
//! they are hashed as they are read, and what is used afterwards is what was hashed.

mod size;
mod stored;

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use crate::model::FileName;

use super::{
    Content, Digest, Manifest, ManifestFile, SourceError, Store,
    content::LARGE_BYTES,
    error::shown,
    files::{Files, StoredFolder, below},
    fingerprint::{self, Extent, Fingerprint},
    links::OpenFolder,
    manifest::{MANIFEST_BYTES_MAX, SUMS_FILENAME, Sums},
    reading::{self, ReadFault, Refusal},
};

pub(super) use stored::ShelfVersion;
pub use stored::Stored;

/// A version as it was listed: where it is and what it looked like.
#[derive(Debug, Clone)]
pub struct ListedVersion {
    /// Differs after every change of the version's files, also after half of a copy.
    pub fingerprint: Fingerprint,
    pub(super) lies: Lies,
}

/// Where a version's files are.
#[derive(Debug, Clone)]
pub(super) enum Lies {
    Folder(FolderVersion),
    Shelf(ShelfVersion),
}

/// A version in a folder.
#[derive(Debug, Clone)]
pub(super) struct FolderVersion {
    /// As in [`ListedVersion`].
    pub(super) fingerprint: Fingerprint,
    pub(super) place: Place,
    pub(super) described: Arc<Described>,
}

/// The files that describe a model, by their path in its folder, as they were when it was listed.
pub(super) type Described = BTreeMap<String, Bytes>;

/// Where a version lies, for us and for people.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The repository's root.
    pub(super) root: PathBuf,
    /// The version's folder, there or below.
    pub(super) folder: PathBuf,
    /// The same relative to the model's folder; empty where they are one.
    pub(super) within: String,
    /// The same relative to the root; empty for the root itself.
    pub(super) shown: String,
    /// The model's file in it.
    pub(super) filename: FileName,
    /// The most bytes of the version.
    pub(super) bytes_max: u64,
    /// True if files with a second name are read.
    pub(super) hard_links: bool,
}

/// A version's bytes, all from one state of its folder as long as [`Artifact::confirm`] says so.
#[derive(Debug)]
pub struct Artifact {
    /// The model file.
    pub model: Bytes,
    /// SHA-256 of the model file, lower-case hexadecimal.
    pub sha256: String,
    /// `golden.json`: inputs with the outputs that the model must give, where the publisher left one.
    pub golden: Option<Vec<u8>>,
    /// `profile.json`: how the model's features were distributed where it was trained, where the publisher left one.
    pub profile: Option<Vec<u8>>,
    origin: Origin,
    external: Mutex<External>,
}

/// Where the bytes come from.
#[derive(Debug)]
enum Origin {
    Folder(Box<Opened>),
    /// The folder that external data is relative to.
    Store(StoredFolder),
}

/// A version's folder, being read.
#[derive(Debug)]
struct Opened {
    listed: FolderVersion,
    store: Option<Store>,
    folder: OpenFolder,
    /// The model's own folder, where it is another.
    inner: Option<OpenFolder>,
    /// The publisher's list of files.
    sums: Option<Sums>,
    /// Whether the files that are listed and not used were hashed too.
    rest_is_right: AtomicBool,
}

/// External data read so far: models name one file many times.
#[derive(Debug)]
struct External {
    files: BTreeMap<String, Part>,
    bytes_left: u64,
}

/// The bytes of one file, and their digest where it is known already; it is known of those in a file.
#[derive(Debug, Clone)]
struct Part {
    content: Content,
    sha256: Option<Digest>,
}

/// Bytes that were read, with their digest where they were hashed.
type Taken = (Bytes, Option<Digest>);

/// The most bytes of `golden.json`.
const GOLDEN_BYTES_MAX: u64 = 16 << 20;
const GOLDEN: &str = "golden.json";

/// The most bytes of `profile.json`.
const PROFILE_BYTES_MAX: u64 = 64 << 20;
const PROFILE: &str = "profile.json";

/// The name of the model in a model folder, as Triton has it: `<version>/model.onnx/model.onnx`.
pub(super) const INNER_FILENAME: &str = "model.onnx";

impl ListedVersion {
    /// Reads the version's model, hashing what was read; [`ListedVersion::fetch`] without a store.
    pub fn read(&self) -> Result<Artifact, SourceError> {
        self.fetch(None)
    }

    /// Reads the version's model, hashing what was read and keeping it in the store.
    ///
    /// Blocks while it reads. Where the folder changed since it was listed, it is [`SourceError::Changed`].
    pub fn fetch(&self, store: Option<&Store>) -> Result<Artifact, SourceError> {
        match &self.lies {
            Lies::Folder(version) => version.fetch(store),
            Lies::Shelf(version) => version.fetch(store),
        }
    }

    /// The version's folder; `None` where it was fetched from elsewhere.
    pub fn folder(&self) -> Option<&Path> {
        match &self.lies {
            Lies::Folder(version) => Some(&version.place.folder),
            Lies::Shelf(_) => None,
        }
    }
}

impl FolderVersion {
    /// The same for whoever does not care where it lies.
    pub(super) fn listed(self) -> ListedVersion {
        ListedVersion { fingerprint: self.fingerprint, lies: Lies::Folder(self) }
    }

    fn fetch(&self, store: Option<&Store>) -> Result<Artifact, SourceError> {
        let artifact = self.fetch_as_it_is(store).map_err(|error| self.blame(error))?;
        self.unchanged()?;
        Ok(artifact)
    }

    fn fetch_as_it_is(&self, store: Option<&Store>) -> Result<Artifact, SourceError> {
        let place = &self.place;
        let folder = OpenFolder::below(&place.root, &place.folder, place.hard_links)
            .map_err(|fault| SourceError::from_read(&place.name(), fault))?;
        let mut opened = Opened {
            listed: self.clone(),
            store: store.cloned(),
            sums: place.sums(&folder)?,
            folder,
            inner: None,
            rest_is_right: AtomicBool::new(false),
        };
        let beside = |name: &str, bytes_max| match opened.read(name, bytes_max) {
            Ok((bytes, _)) => Ok(Some(bytes.into())),
            Err(ReadFault::Missing) => Ok(None),
            Err(fault) => Err(SourceError::from_read(&place.path(name), fault)),
        };
        let golden = beside(GOLDEN, GOLDEN_BYTES_MAX)?;
        let profile = beside(PROFILE, PROFILE_BYTES_MAX)?;
        let fault = |fault| SourceError::from_read(&place.path(&place.filename), fault);
        let model = match opened.read(&place.filename, place.bytes_max) {
            Err(ReadFault::NotAFile("folder")) => {
                let inner = opened.folder.inside(&*place.filename);
                opened.inner = Some(inner.map_err(fault)?);
                opened.read_inner(place.bytes_max)
            }
            read => read,
        };
        let (model, digest) = match model {
            Err(ReadFault::Missing) => return Err(place.missing()),
            read => read.map_err(fault)?,
        };
        let sha256 = digest.unwrap_or_else(|| Digest::of(&model));
        let model_bytes = model.len() as u64;
        Ok(Artifact {
            model,
            sha256: sha256.to_string(),
            golden,
            profile,
            origin: Origin::Folder(Box::new(opened)),
            external: Mutex::new(External {
                files: BTreeMap::new(),
                bytes_left: place.bytes_max.saturating_sub(model_bytes),
            }),
        })
    }

    fn unchanged(&self) -> Result<(), SourceError> {
        if self.place.fingerprint()? == self.fingerprint {
            return Ok(());
        }
        Err(SourceError::Changed(self.place.name()))
    }

    /// What seems wrong while a folder changes, or goes, is its change.
    fn blame(&self, error: SourceError) -> SourceError {
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match self.unchanged() {
            Err(SourceError::Io { source, .. }) if gone(&source) => {
                SourceError::Changed(self.place.name())
            }
            Err(changed @ SourceError::Changed(_)) => changed,
            _ => error,
        }
    }
}

impl Artifact {
    /// Reads a file that the model names as external data, relative to the model's own file.
    ///
    /// The location is not trusted: it must lead to a regular file below the model's folder, or through links to
    /// another of the model's own places. A location is read once and then remembered.
    pub fn read_beside(&self, location: &str) -> Result<Content, SourceError> {
        self.read_external(location).map_err(|source| {
            let error =
                SourceError::Beside { folder: self.name(), location: shown(location), source };
            match &self.origin {
                Origin::Folder(opened) => opened.listed.blame(error),
                Origin::Store(_) => error,
            }
        })
    }

    /// Whether the folder is still as it was listed; ask once all external data is read.
    ///
    /// Where the publisher left `SHA256SUMS`, listed files that the model did not need are hashed here too.
    pub fn confirm(&self) -> Result<(), SourceError> {
        let Origin::Folder(opened) = &self.origin else { return Ok(()) };
        if !opened.rest_is_right.load(Ordering::Acquire) {
            let external = self.external.lock().unwrap_or_else(PoisonError::into_inner);
            let checked = opened.check_rest(&external.files);
            checked.map_err(|error| opened.listed.blame(error))?;
            opened.rest_is_right.store(true, Ordering::Release);
        }
        opened.listed.unchanged()
    }

    /// Of which files the version consists: the model, what was read beside it, and what describes it.
    ///
    /// Ask once all external data is read and [`Artifact::confirm`]ed.
    pub fn manifest(&self) -> Result<Manifest, SourceError> {
        self.manifest_of(|_, part| Ok(part.digest()))
    }

    /// Keeps the version in the store, with the files that describe its model; gives its manifest's digest.
    ///
    /// The folder is not looked at again. A version that came from the store is there already.
    pub fn keep(&self, store: &Store) -> Result<Digest, SourceError> {
        let refused = |path: &str, source| SourceError::Store {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let manifest = self.manifest_of(|path, part| {
            let kept = match (&part.content, part.sha256) {
                (Content::Memory(bytes), Some(digest)) => {
                    store.put_known(bytes, &digest).map(|()| digest)
                }
                (Content::Memory(bytes), None) => store.put(bytes),
                (content @ Content::File(..), _) => {
                    let digest = part.digest();
                    store.keep_put(&digest, content.len()).map(|()| digest)
                }
            };
            kept.map_err(|error| refused(path, error))
        })?;
        store.put(manifest.to_string().as_bytes()).map_err(|error| refused("the manifest", error))
    }

    fn manifest_of(
        &self,
        digest: impl Fn(&str, &Part) -> Result<Digest, SourceError>,
    ) -> Result<Manifest, SourceError> {
        let opened = match &self.origin {
            Origin::Folder(opened) => opened,
            Origin::Store(beside) => return Ok((*beside.manifest).clone()),
        };
        let mut files: BTreeMap<String, ManifestFile> = BTreeMap::new();
        for (path, part) in self.parts(opened) {
            let sha256 = digest(&path, &part)?;
            let file = ManifestFile { bytes: part.content.len(), sha256 };
            // One path may be read twice, for the model and for its description.
            if files.insert(path, file).is_some_and(|other| other != file) {
                return Err(SourceError::Changed(self.name()));
            }
        }
        let within = &opened.listed.place.within;
        Manifest::new(within, &below(within, &opened.model()), files)
            .map_err(|source| SourceError::Manifest { path: self.name(), source })
    }

    /// All files by their path in the model's folder.
    fn parts(&self, opened: &Opened) -> Vec<(String, Part)> {
        let within = |path: &str| below(&opened.listed.place.within, path);
        let new = |bytes: &Bytes, sha256| Part { content: Content::Memory(bytes.clone()), sha256 };
        let model = new(&self.model, Digest::parse(&self.sha256));
        let mut parts = vec![(within(&opened.model()), model)];
        for (name, bytes) in [(GOLDEN, &self.golden), (PROFILE, &self.profile)] {
            if let Some(bytes) = bytes {
                parts.push((within(name), new(&Bytes::copy_from_slice(bytes), None)));
            }
        }
        let external = self.external.lock().unwrap_or_else(PoisonError::into_inner);
        for (location, part) in &external.files {
            parts.push((within(&opened.beside(location)), part.clone()));
        }
        let described = opened.listed.described.iter();
        parts.extend(described.map(|(path, bytes)| (path.clone(), new(bytes, None))));
        parts
    }

    /// The version's folder for people.
    fn name(&self) -> String {
        match &self.origin {
            Origin::Folder(opened) => opened.listed.place.name(),
            Origin::Store(beside) => stored::name(&beside.manifest.digest()),
        }
    }

    fn read_external(&self, location: &str) -> Result<Content, Refusal> {
        let mut external = self.external.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = external.files.get(location) {
            return Ok(part.content.clone());
        }
        let part = match &self.origin {
            Origin::Folder(opened) => opened.read_beside(location, external.bytes_left),
            Origin::Store(beside) => beside
                .beside(location, external.bytes_left)
                .map(|content| Part { content, sha256: None }),
        };
        let part = part.map_err(|refusal| match refusal {
            // Said of the version as a whole: what is left of its limit means nothing to people.
            Refusal::TooLarge { .. } => {
                let read = external.files.values().map(|part| part.content.len()).sum::<u64>();
                let read = read.saturating_add(self.model.len() as u64);
                Refusal::TooLarge { bytes_max: external.bytes_left.saturating_add(read) }
            }
            refusal => refusal,
        })?;
        let content = part.content.clone();
        external.bytes_left = external.bytes_left.saturating_sub(content.len());
        external.files.insert(location.to_owned(), part);
        Ok(content)
    }
}

impl Opened {
    /// The model's path in the version's folder.
    fn model(&self) -> String {
        let filename = &self.listed.place.filename;
        if self.inner.is_some() { below(filename, INNER_FILENAME) } else { filename.to_string() }
    }

    /// The path in the version's folder of what the model names.
    fn beside(&self, location: &str) -> String {
        if self.inner.is_some() {
            below(&self.listed.place.filename, location)
        } else {
            location.to_owned()
        }
    }

    /// Reads a file that we name ourselves.
    fn read(&self, path: &str, bytes_max: u64) -> Result<Taken, ReadFault> {
        let bytes = self.folder.own(path, bytes_max)?;
        self.take(path, bytes)
    }

    /// Reads the model in its own folder.
    fn read_inner(&self, bytes_max: u64) -> Result<Taken, ReadFault> {
        let inner = self.inner.as_ref().ok_or(ReadFault::Missing)?;
        self.take(&self.model(), inner.own(INNER_FILENAME, bytes_max)?)
    }

    fn read_beside(&self, location: &str, bytes_max: u64) -> Result<Part, Refusal> {
        let (folder, model) = match &self.inner {
            Some(inner) => (inner, INNER_FILENAME),
            None => (&self.folder, &*self.listed.place.filename),
        };
        let mut file = folder.beneath(model, location)?;
        let path = self.beside(location);
        let large = file.metadata().map_err(Refusal::Io)?.len() >= LARGE_BYTES;
        let Some(store) = self.store.as_ref().filter(|_| large) else {
            let (bytes, sha256) = self.take(&path, reading::read(file, bytes_max)?.into())?;
            return Ok(Part { content: Content::Memory(bytes), sha256 });
        };
        let (digest, kept) = store.put_file(&mut file, bytes_max)?;
        self.check_listed(&path, &digest)?;
        let length = kept.metadata().map_err(Refusal::Io)?.len();
        Ok(Part { content: Content::File(Arc::new(kept), length), sha256: Some(digest) })
    }

    /// Compares a digest with what the publisher listed.
    fn check_listed(&self, path: &str, digest: &Digest) -> Result<(), ReadFault> {
        match self.sums.as_ref().map(|sums| sums.files.get(path)) {
            Some(None) => Err(ReadFault::NotListed),
            Some(Some(listed)) if listed != digest => Err(ReadFault::WrongDigest),
            _ => Ok(()),
        }
    }

    /// Compares bytes with what the publisher listed, and keeps them; from here on they are what is used.
    fn take(&self, path: &str, bytes: Bytes) -> Result<Taken, ReadFault> {
        if self.sums.is_none() && self.store.is_none() {
            return Ok((bytes, None));
        }
        let digest = Digest::of(&bytes);
        self.check_listed(path, &digest)?;
        if let Some(store) = &self.store {
            store.put_known(&bytes, &digest).map_err(|error| ReadFault::Store(error.into()))?;
        }
        Ok((bytes, Some(digest)))
    }

    /// Hashes the files that are listed and were not read.
    fn check_rest(&self, external: &BTreeMap<String, Part>) -> Result<(), SourceError> {
        let Some(sums) = &self.sums else { return Ok(()) };
        let place = &self.listed.place;
        let mut read: Vec<String> = external.keys().map(|location| self.beside(location)).collect();
        read.extend([self.model(), GOLDEN.to_owned()]);
        let mut bytes_left = place.bytes_max;
        for (path, digest) in sums.files.iter().filter(|(path, _)| !read.contains(path)) {
            let hashed =
                (self.folder.follow(path)).and_then(|file| reading::hash(file, bytes_left));
            let (found, bytes) =
                hashed.map_err(|fault| SourceError::from_read(&place.path(path), fault))?;
            bytes_left = bytes_left.saturating_sub(bytes);
            if found != *digest {
                return Err(SourceError::WrongDigest(place.path(path)));
            }
        }
        Ok(())
    }
}

impl Part {
    fn digest(&self) -> Digest {
        let in_memory = || self.content.memory().map(|bytes| Digest::of(bytes));
        self.sha256.or_else(in_memory).expect("what is in a file was hashed as it was written")
    }
}

impl Place {
    /// The folder's name for people.
    pub(super) fn name(&self) -> String {
        if self.shown.is_empty() { ".".to_owned() } else { self.shown.clone() }
    }

    pub(super) fn fingerprint(&self) -> Result<Fingerprint, SourceError> {
        let is_ours = |folder: &Path| self.is_ours(folder);
        let extent = Extent::Deep { is_ours: &is_ours };
        fingerprint::take(&self.folder, extent, self.filename.as_bytes()).map_err(|fault| {
            match fault {
                fingerprint::Fault::TooManyFiles => SourceError::TooManyFiles {
                    path: self.name(),
                    files_max: fingerprint::FILES_MAX,
                },
                fingerprint::Fault::Io(source) => SourceError::Io { path: self.name(), source },
            }
        })
    }

    /// True if files are read through a link to a folder: it is the model's own folder, or leads to a place of ours.
    fn is_ours(&self, linked: &Path) -> bool {
        let open = || {
            let folder = OpenFolder::below(&self.root, &self.folder, self.hard_links)?;
            Ok::<_, ReadFault>(folder.is_own(reading::folder(linked)?.as_fd()))
        };
        *linked == self.folder.join(&*self.filename) || open().unwrap_or(false)
    }

    /// The publisher's list of files, once all of them are there.
    fn sums(&self, folder: &OpenFolder) -> Result<Option<Sums>, SourceError> {
        let path = self.path(SUMS_FILENAME);
        let text = match folder.own(SUMS_FILENAME, MANIFEST_BYTES_MAX) {
            Ok(text) => text,
            Err(ReadFault::Missing) => return Ok(None),
            Err(fault) => return Err(SourceError::from_read(&path, fault)),
        };
        let sums = Sums::parse(&text).map_err(|source| SourceError::Manifest { path, source })?;
        let listed = sums.files.len();
        let there = sums.files.keys().filter(|path| folder.is_there(path)).count();
        if there < listed {
            return Err(SourceError::Incomplete { path: self.name(), there, listed });
        }
        Ok(Some(sums))
    }

    fn path(&self, name: &str) -> String {
        below(&self.shown, name)
    }

    /// The model's file is not there; what is there says what would help.
    fn missing(&self) -> SourceError {
        let path = self.path(&self.filename);
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().take(FILES_LOOKED_AT);
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> =
            names.filter(|name| ![GOLDEN, PROFILE].contains(&name.as_str())).collect();
        names.sort();
        if names.is_empty() {
            return SourceError::Missing(path);
        }
        let is = |endings: &[&str]| {
            names.iter().any(|name| endings.iter().any(|end| name.ends_with(end)))
        };
        let advice = if is(&[".onnx"]) {
            "rename it, or name it in the model's description (`filename`)"
        } else if is(&[".pkl", ".joblib", ".pickle"]) {
            "convert it to ONNX, for example with skl2onnx"
        } else if is(&[".pt", ".pth", ".ckpt", ".safetensors"]) {
            "convert it to ONNX, for example with torch.onnx.export"
        } else if is(&[".pb", ".h5", ".keras", ".tflite"]) {
            "convert it to ONNX, for example with tf2onnx"
        } else {
            "put an ONNX model there"
        };
        let shown: Vec<_> = names
            .iter()
            .take(FILES_TOLD)
            .map(|name| format!("`{}`", name.escape_debug()))
            .collect();
        SourceError::OthersFound { path, found: shown.join(", "), advice }
    }
}

/// Files that are looked at, and that are told, where a model's file is missing.
const FILES_LOOKED_AT: usize = 1_000;
const FILES_TOLD: usize = 3;

#[cfg(test)]
mod tests;
