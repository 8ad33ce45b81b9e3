//! What a request brought, served in place of what lies in the repository.
//!
//! Either a configuration, with which the repository's own versions are served, or a whole model: a configuration
//! and the files of its versions. Always true:
//! - Paths go down only, have one spelling, and begin with a version's number.
//! - The files of a version have a [`Manifest`], as those of any version: they are used, kept and taken again by it.
//!
//! Not here: who may upload (`admin`), when an upload takes effect and how long (`lifecycle`).

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use crate::model::{FileName, ModelDescription, ModelName, VersionId};

use super::{
    Digest, Fingerprint, ListedModel, Manifest, ManifestError, ManifestFile, SourceError, Store,
    artifact::{INNER_FILENAME, Lies, ShelfVersion},
    describe::{DESCRIPTION_BYTES_MAX, describe},
    error::shown,
    files::{Recorded, Shelf, StoredFolder},
    pbtxt, reading,
};

/// What is served in place of what lies in the repository.
#[derive(Debug, Clone)]
pub enum Override {
    /// Another description of the repository's versions, as `config.pbtxt` has it.
    Config(Arc<str>),
    /// Another model.
    Model(Arc<ListedModel>),
}

/// Why what a request brought cannot be used; the caller's mistake.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The configuration cannot be understood.
    #[error("parameter `config`: {0}")]
    Config(String),
    /// The configuration is another model's.
    #[error(
        "parameter `config` names the model `{name}`, the request `{model}`; make them the same"
    )]
    NameDiffers {
        /// The configuration's name.
        name: String,
        /// The request's.
        model: ModelName,
    },
    /// A path that no file may have.
    #[error("parameter `file:{path}`: {what}")]
    Path {
        /// The path, shortened.
        path: String,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A version without its model.
    #[error("version {version} has no `{filename}`; add the parameter `file:{version}/{filename}`")]
    NoModel {
        /// The version.
        version: VersionId,
        /// The model's file.
        filename: FileName,
    },
    /// Its files cannot be listed.
    #[error("the files of version {version}: {source}")]
    Manifest {
        /// The version.
        version: VersionId,
        /// Why.
        source: ManifestError,
    },
    /// What the configuration names cannot be read.
    #[error("{}", .0.chain())]
    Source(#[from] SourceError),
}

/// Folders in folders, the version's among them.
const PARTS_MAX: usize = 16;

impl Override {
    /// What a request for a model brought: a configuration as JSON, and files by their path in the model's folder.
    pub fn brought(
        model: &ModelName,
        config: &str,
        files: Vec<(String, Bytes)>,
        bytes_max: u64,
    ) -> Result<Self, UploadError> {
        let (description, config) = pbtxt::read_json(config).map_err(UploadError::Config)?;
        if let Some(name) = description.name.filter(|name| **name != **model) {
            return Err(UploadError::NameDiffers { name: shown(&name), model: model.clone() });
        }
        if files.is_empty() {
            return Ok(Self::Config(config.into()));
        }
        Brought::sort(config, files)?.listed(bytes_max).map(|model| Self::Model(Arc::new(model)))
    }

    /// Takes from the store what was kept: the description of [`Override::config`], or versions by the digests of
    /// their manifests.
    pub fn kept(
        store: &Store,
        config: &Digest,
        versions: &BTreeMap<VersionId, Digest>,
        bytes_max: u64,
    ) -> Result<Self, SourceError> {
        let read = |digest: &Digest| {
            store.read(digest, DESCRIPTION_BYTES_MAX * 8).map_err(|source| SourceError::Store {
                path: pbtxt::FILENAME.to_owned(),
                source: Box::new(source),
            })
        };
        let Some((_, first)) = versions.first_key_value() else {
            let config = String::from_utf8_lossy(&read(config)?).into_owned();
            return Ok(Self::Config(config.into()));
        };
        let mut listed = BTreeMap::new();
        for (id, digest) in versions {
            listed.insert(*id, store.kept(digest, bytes_max)?.listed());
        }
        let folder = store.kept(first, bytes_max)?.folder("");
        let (description, described) = described(&folder);
        let description_fingerprint = Fingerprint::of_content(config);
        let described = Arc::new(described);
        Ok(Self::Model(Arc::new(ListedModel {
            description: description.map_err(Arc::new),
            description_fingerprint,
            versions: listed,
            described,
        })))
    }

    /// What was uploaded and cannot be taken again: a model that says why it does not serve.
    pub fn broken(error: SourceError) -> Self {
        Self::Model(Arc::new(ListedModel {
            description: Err(Arc::new(error)),
            description_fingerprint: Fingerprint::of_content(&Digest::of(b"")),
            versions: BTreeMap::new(),
            described: Arc::default(),
        }))
    }

    /// The description, as `config.pbtxt` has it.
    pub fn config(&self) -> Bytes {
        match self {
            Self::Config(config) => Bytes::copy_from_slice(config.as_bytes()),
            Self::Model(model) => model.described.get(pbtxt::FILENAME).cloned().unwrap_or_default(),
        }
    }

    /// The digests of the manifests of the versions that it brings.
    pub fn versions(&self) -> BTreeMap<VersionId, Digest> {
        let Self::Model(model) = self else { return BTreeMap::new() };
        let digest = |lies: &Lies| match lies {
            Lies::Shelf(version) => Some(version.manifest.digest()),
            Lies::Folder(_) => None,
        };
        let versions = model.versions.iter();
        versions.filter_map(|(id, version)| Some((*id, digest(&version.lies)?))).collect()
    }

    /// Takes files from the store from now on that the store has, and puts those there that it lacks.
    pub fn keep(&mut self, store: &Store) -> Result<(), SourceError> {
        let refused = |path: &str, source| SourceError::Store {
            path: path.to_owned(),
            source: Box::new(source),
        };
        store.put(&self.config()).map_err(|error| refused(pbtxt::FILENAME, error))?;
        let Self::Model(model) = self else { return Ok(()) };
        for version in Arc::make_mut(model).versions.values_mut() {
            version.fetch(Some(store))?.keep(store)?;
            if let Lies::Shelf(version) = &mut version.lies {
                version.shelf = Shelf::Store(store.clone());
            }
        }
        Ok(())
    }
}

/// The files of a model, by their path in its folder.
struct Brought {
    files: BTreeMap<String, ManifestFile>,
    blobs: BTreeMap<Digest, Bytes>,
    versions: BTreeSet<VersionId>,
}

impl Brought {
    fn sort(config: String, files: Vec<(String, Bytes)>) -> Result<Self, UploadError> {
        let mut brought =
            Self { files: BTreeMap::new(), blobs: BTreeMap::new(), versions: BTreeSet::new() };
        for (path, bytes) in files {
            let wrong =
                |what: &str| UploadError::Path { path: shown(&path), what: what.to_owned() };
            brought.versions.insert(version_of(&path).map_err(|what| wrong(&what))?);
            if brought.files.contains_key(&path) {
                return Err(wrong("it is given twice"));
            }
            brought.add(path, bytes);
        }
        for path in brought.files.keys() {
            let is_file = |end: usize| brought.files.contains_key(&path[..end]);
            if path.match_indices('/').any(|(end, _)| is_file(end)) {
                let what = "it lies in a folder that is a file of this upload too".to_owned();
                return Err(UploadError::Path { path: shown(path), what });
            }
        }
        brought.add(pbtxt::FILENAME.to_owned(), config.into());
        Ok(brought)
    }

    fn add(&mut self, path: String, bytes: Bytes) {
        let sha256 = Digest::of(&bytes);
        self.files.insert(path, ManifestFile { bytes: bytes.len() as u64, sha256 });
        self.blobs.insert(sha256, bytes);
    }

    fn listed(self, bytes_max: u64) -> Result<ListedModel, UploadError> {
        let Self { files, blobs, versions } = self;
        let memory = Shelf::Memory(Arc::new(blobs));
        let whole = |version, folder: &str, model: &str, files| {
            let manifest = Manifest::new(folder, model, files);
            let manifest = manifest.map_err(|source| UploadError::Manifest { version, source })?;
            let manifest = Arc::new(manifest);
            Ok::<_, UploadError>(ShelfVersion { shelf: memory.clone(), manifest, bytes_max })
        };
        let first = *versions.first().expect("every file has a version");
        // Class names may lie with one version and count for all.
        let everything = whole(first, "", pbtxt::FILENAME, files.clone())?;
        let (description, described) = described(&everything.folder(""));
        let description = description?;
        let mut listed = BTreeMap::new();
        for version in versions {
            let folder = version.to_string();
            let own = |path: &str| {
                path.strip_prefix(&folder).is_some_and(|rest| rest.starts_with('/'))
                    || described.contains_key(path)
            };
            let files: BTreeMap<_, _> =
                files.iter().filter(|(path, _)| own(path)).map(|(p, f)| (p.clone(), *f)).collect();
            let filename = &description.default_model_filename;
            let places =
                [format!("{folder}/{filename}"), format!("{folder}/{filename}/{INNER_FILENAME}")];
            let model = places
                .iter()
                .find(|path| files.contains_key(*path))
                .ok_or_else(|| UploadError::NoModel { version, filename: filename.clone() })?;
            listed.insert(version, whole(version, &folder, model, files.clone())?.listed());
        }
        let config = &described[pbtxt::FILENAME];
        Ok(ListedModel {
            description_fingerprint: Fingerprint::of_content(&Digest::of(config)),
            description: Ok(description),
            versions: listed,
            described: Arc::new(described),
        })
    }
}

/// The description in a folder, and the files that it was read from.
fn described(
    folder: &StoredFolder,
) -> (Result<ModelDescription, SourceError>, BTreeMap<String, Bytes>) {
    let files = Recorded { files: folder, read: RefCell::default() };
    let description = describe(&files, "");
    (description, files.read.into_inner())
}

/// The version that a file belongs to, if its path is one that a file may have.
fn version_of(path: &str) -> Result<VersionId, String> {
    reading::check_location(path).map_err(|refusal| refusal.to_string())?;
    if path.split('/').count() > PARTS_MAX {
        return Err(format!("it lies deeper than {PARTS_MAX} folders"));
    }
    let wanted = || "it must be `<version>/<path>`, such as `1/model.onnx`".to_owned();
    let (version, _) = path.split_once('/').ok_or_else(wanted)?;
    let version = VersionId::parse(version).filter(|version| version.number() > 0);
    version.ok_or_else(|| format!("{}, with a version from 1 on", wanted()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn brought(config: &str, files: &[(&str, &str)]) -> Result<Override, String> {
        let file = |(path, content): &(&str, &str)| {
            ((*path).to_owned(), Bytes::copy_from_slice(content.as_bytes()))
        };
        let files = files.iter().map(file).collect();
        Override::brought(&ModelName::parse("m").unwrap(), config, files, 1 << 20)
            .map_err(|error| error.to_string())
    }

    fn model(instead: Override) -> ListedModel {
        match instead {
            Override::Model(model) => Arc::unwrap_or_clone(model),
            Override::Config(config) => panic!("{config}"),
        }
    }

    const LABELLED: &str = r#"{"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2], "label_filename": "1/names"}]}"#;

    #[test]
    fn files_become_versions() {
        let files = [
            ("1/model.onnx", "one"),
            ("2/model.onnx/model.onnx", "two"),
            ("1/names", "a\nb"),
            ("2/golden.json", "g"),
        ];
        let model = model(brought(LABELLED, &files).unwrap());
        let names = &model.description.as_ref().unwrap().class_names["y"];
        assert_eq!(names, &["a", "b"]);
        let read = |id| model.versions[&VersionId::new(id)].read().unwrap();
        assert_eq!((&read(1).model[..], read(1).golden), (&b"one"[..], None));
        assert_eq!((&read(2).model[..], read(2).golden), (&b"two"[..], Some(b"g".to_vec())));
        let paths: Vec<_> = read(2).manifest().unwrap().files().keys().cloned().collect();
        assert_eq!(paths, ["1/names", "2/golden.json", "2/model.onnx/model.onnx", "config.pbtxt"]);
    }

    #[test]
    fn what_was_kept_is_the_same_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut first = brought(
            LABELLED,
            &[("3/model.onnx", "three"), ("1/names", "a"), ("1/model.onnx", "x")],
        )
        .unwrap();
        let before = (first.config(), first.versions());
        first.keep(&store).unwrap();
        assert_eq!((first.config(), first.versions()), before);
        let config = Digest::of(&first.config());
        let again = Override::kept(&store, &config, &first.versions(), 1 << 20).unwrap();
        assert_eq!((again.config(), again.versions()), before);
        let (first, again) = (model(first), model(again));
        assert_eq!(first.description.unwrap(), again.description.unwrap());
        for (id, version) in &again.versions {
            assert_eq!(version.fingerprint, first.versions[id].fingerprint);
            assert_eq!(version.read().unwrap().model, first.versions[id].read().unwrap().model);
        }
        let mut alone = brought(r#"{"max_batch_size": 0}"#, &[]).unwrap();
        alone.keep(&store).unwrap();
        let again =
            Override::kept(&store, &Digest::of(&alone.config()), &BTreeMap::new(), 1).unwrap();
        assert_eq!(again.config(), "max_batch_size: 0\n");
        let gone = Override::kept(&store, &Digest::of(b"gone"), &BTreeMap::new(), 1);
        assert!(matches!(gone, Err(SourceError::Store { .. })));
    }

    #[test]
    fn what_cannot_be_a_model_is_refused_with_its_reason() {
        let refused = |files: &[&str], expected: &str| {
            let files: Vec<_> = files.iter().map(|path| (*path, "")).collect();
            let error = brought("{}", &files).unwrap_err();
            assert!(error.contains(expected), "{files:?}: {error}");
        };
        for path in [
            "",
            "1",
            "model.onnx",
            "x/model.onnx",
            "0/model.onnx",
            "01/a",
            "-1/a",
            "+1/a",
            " 1/a",
            "99999999999999999999/a",
        ] {
            let error = brought("{}", &[(path, "")]).unwrap_err();
            assert!(error.starts_with(&format!("parameter `file:{path}`: ")), "{error}");
        }
        for path in
            ["1/../a", "../1/a", "/1/a", "1//a", "1/./a", "1/a/", "1\\a", "1/a\0b", "1/a\nb"]
        {
            assert!(brought("{}", &[(path, "")]).is_err(), "{path}");
        }
        refused(&[&format!("1/{}", "a".repeat(2000))], "longer than");
        refused(&[&format!("1/{}", "a/".repeat(20) + "a")], "deeper than 16");
        refused(&["1/a"], "version 1 has no `model.onnx`; add the parameter `file:1/model.onnx`");
        refused(&["1/model.onnx", "2/a"], "version 2 has no");
        refused(&["1/model.onnx", "1/model.onnx"], "given twice");
        refused(&["1/model.onnx", "1/model.onnx/model.onnx"], "that is a file of this upload too");
        assert_eq!(
            brought(r#"{"name": "n"}"#, &[]).unwrap_err(),
            "parameter `config` names the model `n`, the request `m`; make them the same"
        );
        assert!(brought("{", &[]).unwrap_err().starts_with("parameter `config`: "));
        assert!(brought(LABELLED, &[("1/model.onnx", "")]).unwrap_err().contains("1/names"));
    }

    proptest! {
        #[test]
        fn any_path_is_a_versions_or_refused(path in "[0-3./a\\\\\0-]{0,12}") {
            if let Ok(instead) = brought(r#"{"default_model_filename": "a"}"#, &[(&path, "x")]) {
                let listed = model(instead).versions;
                let version = listed.keys().next().unwrap().number();
                prop_assert_eq!(path, format!("{version}/a"));
                prop_assert!(version > 0);
            }
        }
    }
}
