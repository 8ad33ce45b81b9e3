//! A folder as repository: which models and versions are in it.
//!
//! Three layouts, told apart by what lies in the root:
//! - `MLmodel`: the root is one `MLflow` model, as version 1.
//! - `model.onnx`: the root is one bare model, as version 1.
//! - anything else: `<model>/<version>/model.onnx`, as Triton has it. Version folders are numbers without a
//!   leading 0; other folders and hidden ones are passed over.
//!
//! Listing reads descriptions and looks at files, it reads no model.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;

use crate::model::{FileName, ModelDescription, ModelName, VersionId};

use super::{
    Settings, SourceError,
    artifact::{Described, FolderVersion, ListedVersion, Place},
    describe::{DESCRIPTION_BYTES_MAX, describe},
    error::shown,
    files::{Files, Recorded, Redescribed},
    fingerprint::{self, Extent, Fingerprint},
    links::OpenFolder,
    mlflow, pbtxt,
    upload::Override,
};

/// A repository in a folder.
#[derive(Debug, Clone)]
pub struct Folder {
    settings: Settings,
    /// What is served in place of what lies there.
    overrides: BTreeMap<ModelName, Override>,
}

/// What is in a repository now.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The models by name.
    pub models: BTreeMap<ModelName, ListedModel>,
    /// What was passed over, and why; for people.
    pub problems: Vec<Problem>,
    /// Which folder the root was.
    pub root: RootId,
}

/// A folder's device and inode: a volume that is mounted or unmounted, or a folder that was replaced, is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RootId {
    /// The device that it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// Something that is in the repository and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file or folder, relative to the root.
    pub what: String,
    /// Why, and what would be right.
    pub reason: String,
}

/// A model in the repository.
#[derive(Debug, Clone)]
pub struct ListedModel {
    /// What the repository says about it; an error leaves the versions listed under the defaults.
    pub description: Result<ModelDescription, Arc<SourceError>>,
    /// Differs after every change of the files that describe the model.
    pub description_fingerprint: Fingerprint,
    /// Every version that is there, wanted by the description's policy or not.
    pub versions: BTreeMap<VersionId, ListedVersion>,
    /// The files that the description was read from.
    pub(super) described: Arc<Described>,
}

/// The most problems that are kept; more are counted.
const PROBLEMS_MAX: usize = 1_000;
/// A model whose folder changes so often while it is listed is left for the next time.
const LISTING_TRIES: usize = 4;
/// Every file system of the ext family has it.
const RECOVERED_FILES: &[u8] = b"lost+found";

impl Folder {
    /// A repository; nothing is read yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, overrides: BTreeMap::new() }
    }

    /// Lists something else for a model from now on, or what lies there again.
    pub fn put_over(&mut self, model: &ModelName, instead: Option<Override>) {
        match instead {
            Some(instead) => drop(self.overrides.insert(model.clone(), instead)),
            None => drop(self.overrides.remove(model)),
        }
    }

    /// How it is read, and how much of it.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Lists the models. Blocks while it reads.
    ///
    /// What cannot be used is a problem of its own and hides nothing else.
    pub fn list(&self) -> Result<Listing, SourceError> {
        let mut listed = self.list_as_it_is();
        for _ in 1..LISTING_TRIES {
            if !matches!(listed, Err(SourceError::Changed(_))) {
                break;
            }
            listed = self.list_as_it_is();
        }
        listed
    }

    fn list_as_it_is(&self) -> Result<Listing, SourceError> {
        let root = &self.settings.root;
        let files = fs::read_dir(root).map_err(SourceError::Root)?;
        drop(files);
        let place = fs::metadata(root).map_err(SourceError::Root)?;
        let is_file = |name: &str| fs::metadata(root.join(name)).is_ok_and(|file| file.is_file());
        let place = RootId { device: place.dev(), inode: place.ino() };
        let mut listing = Listing { root: place, ..Listing::default() };
        if is_file(mlflow::FILENAME) {
            self.list_single(Some(self.mlflow_filename()?), &mut listing)?;
        } else if is_file(&FileName::default()) {
            self.list_single(None, &mut listing)?;
        } else {
            self.list_models(&mut listing)?;
        }
        for (name, instead) in &self.overrides {
            if let Override::Model(model) = instead {
                let inside = |what: &str| {
                    what.strip_prefix(name.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                };
                listing.problems.retain(|problem| !inside(&problem.what));
                listing.models.insert(name.clone(), (**model).clone());
            }
        }
        listing.problems.sort();
        let surplus = listing.problems.len().saturating_sub(PROBLEMS_MAX);
        if surplus > 0 {
            listing.problems.truncate(PROBLEMS_MAX);
            listing.problem(".", format!("there are {surplus} more problems"));
        }
        Ok(listing)
    }

    /// The description that was uploaded for a model whose versions lie here.
    fn config_over(&self, model: &ModelName) -> Option<&str> {
        match self.overrides.get(model) {
            Some(Override::Config(config)) => Some(config),
            _ => None,
        }
    }

    /// A model without versions yet; `shown` is its folder for people, empty for the root, and `config` what is to
    /// be read instead of its description.
    fn describe(&self, shown: &str, config: Option<&str>) -> Result<ListedModel, SourceError> {
        let Settings { root, hard_links, .. } = &self.settings;
        let (name, folder) =
            if shown.is_empty() { (".", root.clone()) } else { (shown, root.join(shown)) };
        let description_fingerprint = description_fingerprint(&folder, shown)?;
        let opened = OpenFolder::below(root, &folder, *hard_links)
            .map_err(|fault| SourceError::from_read(name, fault));
        let mut described = Described::new();
        let description = opened.and_then(|folder| {
            let redescribed = config.map(|config| Redescribed { files: &folder, config });
            let files: &dyn Files = match &redescribed {
                Some(redescribed) => redescribed,
                None => &folder,
            };
            let files = Recorded { files, read: RefCell::default() };
            let description = describe(&files, shown);
            described = files.read.into_inner();
            description
        });
        Ok(ListedModel {
            description: description.map_err(Arc::new),
            description_fingerprint,
            versions: BTreeMap::new(),
            described: Arc::new(described),
        })
    }

    /// The model's file, and the description that names it.
    fn mlflow_filename(&self) -> Result<(FileName, Bytes), SourceError> {
        let Settings { root, hard_links, .. } = &self.settings;
        let bytes = OpenFolder::below(root, root, *hard_links)
            .and_then(|folder| folder.own(mlflow::FILENAME, DESCRIPTION_BYTES_MAX));
        let bytes = bytes.map_err(|fault| SourceError::from_read(mlflow::FILENAME, fault))?;
        Ok((mlflow::read(&bytes)?, bytes))
    }

    /// The root is the model, and its version 1.
    fn list_single(
        &self,
        filename: Option<(FileName, Bytes)>,
        listing: &mut Listing,
    ) -> Result<(), SourceError> {
        let root = &self.settings.root;
        let name = match &self.settings.model_name {
            Some(name) => name.clone(),
            None => own_name(root)?,
        };
        let mut model = self.describe("", self.config_over(&name))?;
        let filename = match filename {
            Some((filename, bytes)) => {
                let described = Arc::make_mut(&mut model.described);
                described.insert(mlflow::FILENAME.to_owned(), bytes);
                filename
            }
            None => model.filename(),
        };
        let version = self.version(root, ("", ""), filename, &model.described)?;
        if description_fingerprint(root, "")? != model.description_fingerprint {
            return Err(SourceError::Changed(".".to_owned()));
        }
        model.versions.insert(VersionId::new(1), version);
        listing.models.insert(name, model);
        Ok(())
    }

    fn list_models(&self, listing: &mut Listing) -> Result<(), SourceError> {
        let root = &self.settings.root;
        let mut names = BTreeSet::new();
        let mut surplus = 0_usize;
        let own_names = self.own_names();
        for entry in fs::read_dir(root).map_err(SourceError::Root)? {
            let entry = entry.map_err(SourceError::Root)?;
            let name = entry.file_name();
            let is_hidden = name.as_bytes().starts_with(b".") || name.as_bytes() == RECOVERED_FILES;
            if is_hidden || own_names.contains(&name.as_os_str()) {
                continue;
            }
            let text = name.to_string_lossy();
            let unread = match is_folder(&entry) {
                Ok(false) => continue,
                Ok(true) => None,
                // What cannot be read is not gone.
                Err(source) => Some(SourceError::Io { path: text.to_string(), source }),
            };
            if let Some(error) = unread {
                if ModelName::parse(&text).is_ok() && listing.problems.len() < PROBLEMS_MAX {
                    listing.problem(&text, error.chain());
                }
                continue;
            }
            match ModelName::parse(&text) {
                Err(error) if listing.problems.len() < PROBLEMS_MAX => {
                    listing.problem(&shown(&text), error.to_string());
                }
                Err(_) => {}
                Ok(name) => {
                    names.insert(name);
                }
            }
            if names.len() > self.settings.models_max {
                names.pop_last();
                surplus += 1;
            }
        }
        if surplus > 0 {
            let models_max = self.settings.models_max;
            let reason = format!(
                "{surplus} models are left out: at most {models_max} are served, the first by name"
            );
            listing.problem(".", reason);
        }
        for name in names {
            match self.model(&name, listing) {
                Ok(model) => {
                    listing.models.insert(name, model);
                }
                // Gone since the root was listed.
                Err(SourceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                }
                Err(error) => listing.problem(&name, error.chain()),
            }
        }
        self.rename_only_model(listing);
        Ok(())
    }

    /// Names of what the server itself writes into the root.
    fn own_names(&self) -> Vec<&OsStr> {
        let identity = |folder: &Path| {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            fs::metadata(folder).ok().map(|about| (about.dev(), about.ino()))
        };
        let root = identity(&self.settings.root);
        let own = self.settings.own_folders.iter();
        let own = own.filter(|folder| root.is_some() && folder.parent().and_then(identity) == root);
        own.filter_map(|folder| folder.file_name()).collect()
    }

    /// A name given for the repository is the name of its model, where it has just one.
    fn rename_only_model(&self, listing: &mut Listing) {
        let Some(name) = &self.settings.model_name else { return };
        if listing.models.len() > 1 {
            if !listing.models.contains_key(name) {
                let reason = format!(
                    "`--model-name {name}` is for a repository of one model; this one has {}, which keep \
                     the names of their folders",
                    listing.models.len()
                );
                listing.problem(".", reason);
            }
            return;
        }
        if let Some((_, model)) = listing.models.pop_first() {
            listing.models.insert(name.clone(), model);
        }
    }

    /// Lists a model, its description and its versions from one state of its folder.
    fn model(&self, name: &ModelName, listing: &mut Listing) -> Result<ListedModel, SourceError> {
        let folder = self.settings.root.join(name.as_str());
        for _ in 0..LISTING_TRIES {
            let problems = listing.problems.len();
            let model = self.model_as_it_is(&folder, name, listing)?;
            if description_fingerprint(&folder, name)? == model.description_fingerprint {
                return Ok(model);
            }
            // Where a mounted volume is switched over, the description may be of one state and the versions
            // of the next.
            listing.problems.truncate(problems);
        }
        Err(SourceError::Changed(name.to_string()))
    }

    fn model_as_it_is(
        &self,
        folder: &Path,
        name: &ModelName,
        listing: &mut Listing,
    ) -> Result<ListedModel, SourceError> {
        let mut model = self.describe(name, self.config_over(name))?;
        if let Ok(ModelDescription { name: Some(declared), .. }) = &model.description
            && **declared != **name
        {
            model.description = Err(Arc::new(SourceError::NameDiffers {
                path: format!("{name}/{}", pbtxt::FILENAME),
                name: shown(declared),
                folder: name.to_string(),
            }));
        }
        for version in self.versions(folder, name, listing)? {
            let number = version.to_string();
            let shown = format!("{name}/{number}");
            let listed = self.version(
                &folder.join(&number),
                (&number, &shown),
                model.filename(),
                &model.described,
            );
            match listed {
                Ok(listed) => {
                    model.versions.insert(version, listed);
                }
                Err(error) => listing.problem(&shown, error.chain()),
            }
        }
        if model.versions.is_empty() {
            let filename = model.filename();
            let reason = format!("it has no version; put the model at `{name}/1/{filename}`");
            listing.problem(name, reason);
        }
        Ok(model)
    }

    /// The version folders of a model, the highest where there are too many.
    fn versions(
        &self,
        folder: &Path,
        name: &ModelName,
        listing: &mut Listing,
    ) -> Result<BTreeSet<VersionId>, SourceError> {
        let io_fault = |source| SourceError::Io { path: name.to_string(), source };
        let mut versions = BTreeSet::new();
        let mut surplus = 0_usize;
        for entry in fs::read_dir(folder).map_err(io_fault)? {
            let entry = entry.map_err(io_fault)?;
            let file = entry.file_name();
            let version = file.to_str().filter(|text| !text.starts_with('0'));
            let Some(version) = version.and_then(VersionId::parse) else { continue };
            match is_folder(&entry) {
                Ok(true) => {
                    versions.insert(version);
                }
                Ok(false) => {}
                // What cannot be read is not gone.
                Err(source) => {
                    let path = format!("{name}/{version}");
                    let reason = SourceError::Io { path: path.clone(), source }.chain();
                    listing.problem(&path, reason);
                }
            }
            if versions.len() > self.settings.versions_max {
                versions.pop_first();
                surplus += 1;
            }
        }
        if surplus > 0 {
            let versions_max = self.settings.versions_max;
            let reason =
                format!("{surplus} versions are left out: at most {versions_max}, the highest");
            listing.problem(name, reason);
        }
        Ok(versions)
    }

    fn version(
        &self,
        folder: &Path,
        (within, shown): (&str, &str),
        filename: FileName,
        described: &Arc<Described>,
    ) -> Result<ListedVersion, SourceError> {
        let place = Place {
            root: self.settings.root.clone(),
            folder: folder.to_owned(),
            within: within.to_owned(),
            shown: shown.to_owned(),
            filename,
            bytes_max: self.settings.artifact_bytes_max,
            hard_links: self.settings.hard_links,
        };
        let fingerprint = place.fingerprint()?;
        Ok(FolderVersion { fingerprint, place, described: Arc::clone(described) }.listed())
    }
}

impl Listing {
    fn problem(&mut self, what: &str, reason: String) {
        self.problems.push(Problem { what: what.to_owned(), reason });
    }
}

impl ListedModel {
    fn filename(&self) -> FileName {
        let described = self.description.as_ref().ok();
        described.map(|described| described.default_model_filename.clone()).unwrap_or_default()
    }
}

/// The fingerprint of the files of a model's folder itself; `shown` is empty for the root.
fn description_fingerprint(folder: &Path, shown: &str) -> Result<Fingerprint, SourceError> {
    let path = || if shown.is_empty() { ".".to_owned() } else { shown.to_owned() };
    fingerprint::take(folder, Extent::Shallow, b"").map_err(|fault| match fault {
        fingerprint::Fault::TooManyFiles => {
            SourceError::TooManyFiles { path: path(), files_max: fingerprint::FILES_MAX }
        }
        fingerprint::Fault::Io(source) => SourceError::Io { path: path(), source },
    })
}

/// The root's own name, for a model that has no other.
fn own_name(root: &Path) -> Result<ModelName, SourceError> {
    let full = fs::canonicalize(root).map_err(SourceError::Root)?;
    let name = full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    ModelName::parse(&name).map_err(|_| SourceError::NameNeeded(shown(&name)))
}

/// True if an entry of a folder is a folder; an error where it is there and cannot be looked at, such as a mount that
/// failed or a link to nothing.
fn is_folder(entry: &fs::DirEntry) -> io::Result<bool> {
    // The list says it of most, so that nothing else is to be asked for.
    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
        return Ok(true);
    }
    let path = &entry.path();
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        // Gone since its folder was listed.
        Err(_)
            if fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
