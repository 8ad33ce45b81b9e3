//! One look at the object store, and what follows from it for the folder.
//!
//! Beside its files, each folder that was mirrored holds a hidden file with the objects it was made from; so what is
//! up to date is known without reading it, also after a restart. Descriptions and versions are fetched aside
//! and take their place by renaming.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags};

use crate::model::{FileName, ModelName, VersionId, VersionPolicy, WarmupData};

use super::{
    super::{
        Settings,
        describe::{DESCRIPTION_BYTES_MAX, WARMUP_FOLDER},
        error::shown,
        files::below,
        fingerprint::FILES_MAX,
        mlflow, model_toml, pbtxt,
    },
    MirrorError,
    remote::{Object, Remote},
};

/// The mirror's own side of it.
#[derive(Debug)]
pub(super) struct Pass {
    remote: Remote,
    /// What is being fetched, and what is being removed.
    aside: PathBuf,
    /// The mirror.
    root: PathBuf,
    settings: Settings,
    serial: u64,
}

/// A model as the store has it.
#[derive(Debug, Default)]
struct RemoteModel<'a> {
    /// Objects beside the versions, by their path in the model's folder.
    files: BTreeMap<&'a str, &'a Object>,
    versions: BTreeMap<VersionId, Vec<&'a Object>>,
}

/// Says from which objects a folder was made.
const MARKER: &str = ".mirrored";
/// The files that describe a model by themselves.
const DESCRIPTIONS: [&str; 2] = ["model.toml", pbtxt::FILENAME];

impl Pass {
    pub(super) fn new(remote: Remote, base: &Path, root: PathBuf, settings: Settings) -> Self {
        Self { remote, aside: base.join("aside"), root, settings, serial: 0 }
    }

    /// Brings the folder up to date; gives what could not be mirrored. `on_change` is called when a model came.
    pub(super) async fn run(
        &mut self,
        on_change: &dyn Fn(),
    ) -> Result<Vec<MirrorError>, MirrorError> {
        self.clear_aside()?;
        let objects = self.remote.list("").await?;
        if objects.is_empty() {
            return Err(MirrorError::Empty);
        }
        let is_file = |name: &str| objects.iter().any(|object| object.path == name);
        if is_file(mlflow::FILENAME) || is_file(&FileName::default()) {
            self.whole(&objects).await?;
            return Ok(Vec::new());
        }
        if marker(&self.root).is_some() {
            // It was a single model before.
            self.replace(&self.root.clone(), None)?;
        }
        let mut problems = Vec::new();
        let models = self.models(&objects, &mut problems);
        for (name, model) in &models {
            match self.model(name, model, &mut problems).await {
                Ok(false) => {}
                Ok(true) => on_change(),
                Err(error @ MirrorError::Folder { .. }) => return Err(error),
                Err(error) => problems.push(error),
            }
        }
        self.remove_except(&self.root.clone(), |name| models.contains_key(name))?;
        Ok(problems)
    }

    /// The store holds one model without versions: all of it is one folder.
    async fn whole(&mut self, objects: &[Object]) -> Result<(), MirrorError> {
        let all: Vec<&Object> = objects.iter().collect();
        if marker(&self.root).as_deref() == Some(&*made_from("", &all)) {
            return Ok(());
        }
        let folder = self.fetch_folder("", &all).await?;
        if self.remote.list("").await? != *objects {
            return Err(MirrorError::Changed(".".to_owned()));
        }
        self.replace(&self.root.clone(), Some(&folder))
    }

    /// Sorts objects by model and version; the limits are those of a listed folder.
    fn models<'a>(
        &self,
        objects: &'a [Object],
        problems: &mut Vec<MirrorError>,
    ) -> BTreeMap<String, RemoteModel<'a>> {
        let mut models: BTreeMap<String, RemoteModel<'_>> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        for object in objects {
            let Some((name, path)) = object.path.split_once('/') else { continue };
            if let Err(error) = ModelName::parse(name) {
                if refused.insert(name) {
                    problems.push(unfit(name, error.to_string()));
                }
                continue;
            }
            let model = models.entry(name.to_owned()).or_default();
            let version = path.split_once('/').and_then(|(first, rest)| {
                Some((VersionId::parse(first).filter(|_| !first.starts_with('0'))?, rest))
            });
            match version {
                Some((version, _)) => model.versions.entry(version).or_default().push(object),
                None => {
                    model.files.insert(path, object);
                }
            }
        }
        let surplus = models.len().saturating_sub(self.settings.models_max);
        for _ in 0..surplus {
            models.pop_last();
        }
        if surplus > 0 {
            let models_max = self.settings.models_max;
            problems.push(unfit(".", format!("{surplus} models, at most {models_max} are served")));
        }
        for model in models.values_mut() {
            // What is left out here is named when the folder is listed by its versions.
            while model.versions.len() > self.settings.versions_max {
                model.versions.pop_first();
            }
        }
        models
    }

    /// Brings one model up to date; `true` if anything changed.
    async fn model(
        &mut self,
        name: &str,
        model: &RemoteModel<'_>,
        problems: &mut Vec<MirrorError>,
    ) -> Result<bool, MirrorError> {
        let local = self.root.join(name);
        make_folder(&local)?;
        let (description, policy) = self.description(name, model, &local).await?;
        let kept = model.versions.keys().copied();
        // Without a description that can be read nobody knows which are wanted: what is there stays.
        let wanted = policy.map(|policy| policy.select(kept));
        let mut fetched = Vec::new();
        for version in wanted.iter().flatten() {
            let path = format!("{name}/{version}");
            let objects = &model.versions[version];
            let there = marker(&local.join(version.to_string()));
            if there.as_deref() == Some(&*made_from(&path, objects)) {
                continue;
            }
            match self.fetch_folder(&path, objects).await {
                Ok(folder) => fetched.push((*version, folder)),
                Err(error @ MirrorError::Folder { .. }) => return Err(error),
                Err(error) => problems.push(error),
            }
        }
        let changed = description.is_some() || !fetched.is_empty();
        if changed {
            self.compare(name, model).await?;
        }
        // First, so that a new version never stands there without what describes it.
        if let Some(folder) = description {
            take_description(&local, &folder)?;
        }
        for (version, folder) in &fetched {
            self.replace(&local.join(version.to_string()), Some(folder))?;
        }
        // What is no longer wanted goes a look later, when what replaces it had time to be loaded.
        let stays = |version: VersionId| match &wanted {
            Some(wanted) if !changed => wanted.contains(&version),
            _ => model.versions.contains_key(&version),
        };
        let removed =
            self.remove_except(&local, |folder| VersionId::parse(folder).is_none_or(stays))?;
        Ok(changed || removed)
    }

    /// Fetches the files that describe a model, if they are not those that are here; gives the folder that they are
    /// in, and which versions are wanted.
    async fn description(
        &mut self,
        name: &str,
        model: &RemoteModel<'_>,
        local: &Path,
    ) -> Result<(Option<PathBuf>, Option<VersionPolicy>), MirrorError> {
        let object = |path: &str| model.files.get(path).copied();
        let objects: Vec<&Object> = DESCRIPTIONS.into_iter().filter_map(object).collect();
        let there = marker(local).unwrap_or_default();
        let here: Vec<&str> = there.lines().collect();
        if objects.iter().all(|object| here.contains(&&*line(name, object)))
            && let Some((policy, labels)) = outline(local)
        {
            let all = with_labels(&objects, &labels, object);
            if made_from(name, &all) == there {
                return Ok((None, Some(policy)));
            }
        }
        let folder = self.aside();
        make_folder(&folder)?;
        for object in &objects {
            self.fetch_or_copy(name, object, (&there, local), &folder).await?;
        }
        let outline = outline(&folder);
        let (policy, labels) = match outline {
            Some((policy, labels)) => (Some(policy), labels),
            None => (None, BTreeSet::new()),
        };
        let all = with_labels(&objects, &labels, object);
        for label in all.iter().filter(|object| !objects.contains(object)) {
            self.fetch_or_copy(name, label, (&there, local), &folder).await?;
        }
        let from = made_from(name, &all);
        if from == there {
            return Ok((None, policy));
        }
        write(&folder.join(MARKER), &from)?;
        Ok((Some(folder), policy))
    }

    /// A small file of a model: from here if it is the same object, else from the store.
    async fn fetch_or_copy(
        &self,
        name: &str,
        object: &Object,
        (there, local): (&str, &Path),
        folder: &Path,
    ) -> Result<(), MirrorError> {
        let path = object.path.strip_prefix(name).unwrap_or(&object.path).trim_start_matches('/');
        if object.bytes > DESCRIPTION_BYTES_MAX {
            let what = format!("it has more than {DESCRIPTION_BYTES_MAX} bytes");
            return Err(unfit(&object.path, what));
        }
        let (from, to) = (local.join(path), folder.join(path));
        if there.lines().any(|line| line == self::line(name, object)) {
            if let Some(folder) = to.parent() {
                make_folder(folder)?;
            }
            if fs::copy(&from, &to).is_ok_and(|bytes| bytes == object.bytes) {
                return Ok(());
            }
            let _ = fs::remove_file(&to);
        }
        self.remote.fetch(object, &to).await
    }

    /// Fetches all objects of a folder; gives the folder aside that they are in.
    async fn fetch_folder(
        &mut self,
        path: &str,
        objects: &[&Object],
    ) -> Result<PathBuf, MirrorError> {
        let bytes_max = self.settings.artifact_bytes_max;
        let bytes = objects.iter().fold(0_u64, |sum, object| sum.saturating_add(object.bytes));
        if bytes > bytes_max {
            return Err(unfit(path, format!("it has {bytes} bytes, at most {bytes_max} are read")));
        }
        if objects.len() > FILES_MAX {
            return Err(unfit(path, format!("it holds more than {FILES_MAX} objects")));
        }
        let folder = self.aside();
        make_folder(&folder)?;
        for object in objects {
            let inner = object.path.strip_prefix(path).unwrap_or(&object.path);
            self.remote.fetch(object, &folder.join(inner.trim_start_matches('/'))).await?;
        }
        write(&folder.join(MARKER), &made_from(path, objects))?;
        Ok(folder)
    }

    /// Whether the model is still as it was when the pass began: else half of the next may have been fetched.
    async fn compare(&self, name: &str, model: &RemoteModel<'_>) -> Result<(), MirrorError> {
        let now = self.remote.list(name).await?;
        let mut now: BTreeMap<&str, &Object> =
            now.iter().map(|object| (object.path.as_str(), object)).collect();
        let before = model.files.values().chain(model.versions.values().flatten());
        let mut same = true;
        for object in before {
            same &= now.remove(object.path.as_str()) == Some(object);
        }
        // Only versions beyond the limit were left out before.
        let versions_max = self.settings.versions_max;
        same &= now.is_empty() || model.versions.len() >= versions_max;
        if same { Ok(()) } else { Err(MirrorError::Changed(name.to_owned())) }
    }

    /// Puts a folder in the place of another, in one step where there was one; `None` leaves it empty.
    fn replace(&mut self, place: &Path, with: Option<&Path>) -> Result<(), MirrorError> {
        let with = match with {
            Some(with) => with.to_owned(),
            None => self.aside(),
        };
        make_folder(&with)?;
        let moved = match rustix::fs::renameat_with(CWD, &with, CWD, place, RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::NOENT) => fs::rename(&with, place),
            // A file system without exchange: for a moment the version is not there.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                let old = self.aside();
                fs::rename(place, old).and_then(|()| fs::rename(&with, place))
            }
            exchanged => exchanged.map_err(io::Error::from),
        };
        moved.map_err(|source| folder_error(place, source))?;
        if let Some(parent) = place.parent() {
            sync_folder(parent)?;
        }
        // What was replaced lies aside now and is removed with the rest of it.
        Ok(())
    }

    /// Removes folders that nothing speaks for; `true` if there were any.
    fn remove_except(
        &mut self,
        folder: &Path,
        stays: impl Fn(&str) -> bool,
    ) -> Result<bool, MirrorError> {
        let refused = |source| folder_error(folder, source);
        let mut removed = false;
        for entry in fs::read_dir(folder).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if !stays(name) && entry.file_type().map_err(refused)?.is_dir() {
                let aside = self.aside();
                fs::rename(entry.path(), aside).map_err(refused)?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// Removes what the last pass left, also one that was cut off.
    fn clear_aside(&self) -> Result<(), MirrorError> {
        match fs::remove_dir_all(&self.aside) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(folder_error(&self.aside, source));
            }
            _ => {}
        }
        make_folder(&self.aside)?;
        make_folder(&self.root)
    }

    /// A name that nothing has yet.
    fn aside(&mut self) -> PathBuf {
        self.serial += 1;
        self.aside.join(self.serial.to_string())
    }
}

/// Moves the files of a description into a model's folder, and removes those of the one before.
fn take_description(local: &Path, from: &Path) -> Result<(), MirrorError> {
    let read = |folder: &Path| {
        let marker = marker(folder).unwrap_or_default();
        let path = |line: &str| line.splitn(3, ' ').nth(2).map(str::to_owned);
        marker.lines().filter_map(path).collect::<BTreeSet<String>>()
    };
    let (before, now) = (read(local), read(from));
    for path in now.iter().map(String::as_str).chain([MARKER]) {
        let to = local.join(path);
        if let Some(folder) = to.parent() {
            make_folder(folder)?;
        }
        fs::rename(from.join(path), &to).map_err(|source| folder_error(&to, source))?;
    }
    for path in before.difference(&now) {
        let gone = local.join(path);
        match fs::remove_file(&gone) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(folder_error(&gone, source));
            }
            _ => {}
        }
    }
    sync_folder(local)
}

/// Which versions a description wants, and which files it names; `None` if it cannot be read.
fn outline(folder: &Path) -> Option<(VersionPolicy, BTreeSet<String>)> {
    let [toml, text] = DESCRIPTIONS.map(|name| fs::read(folder.join(name)).ok());
    let description = match (toml, text) {
        (None, None) => return Some((VersionPolicy::default(), BTreeSet::new())),
        (Some(toml), None) => model_toml::read(&toml).ok()?,
        (None, Some(text)) => pbtxt::read(&text).ok()?,
        (Some(_), Some(_)) => return None,
    };
    let labels = description.outputs.iter().filter_map(|output| output.label_filename.clone());
    let inputs = description.warmup.iter().flat_map(|request| request.inputs.values());
    let warmup = inputs.filter_map(|input| match &input.data {
        WarmupData::File(name, _) => Some(below(WARMUP_FOLDER, name)),
        WarmupData::Zero | WarmupData::Random => None,
    });
    Some((description.version_policy, labels.chain(warmup).collect()))
}

/// The files that describe a model, with the label files that are there, by path.
fn with_labels<'a>(
    objects: &[&'a Object],
    labels: &BTreeSet<String>,
    object: impl Fn(&str) -> Option<&'a Object>,
) -> Vec<&'a Object> {
    let mut all = objects.to_vec();
    all.extend(labels.iter().filter_map(|label| object(label)));
    all.sort_by(|left, right| left.path.cmp(&right.path));
    all.dedup();
    all
}

/// The objects that a folder was made from, one a line: size, state, path in it.
fn made_from(folder: &str, objects: &[&Object]) -> String {
    objects.iter().map(|object| line(folder, object) + "\n").collect()
}

fn line(folder: &str, object: &Object) -> String {
    let path = object.path.strip_prefix(folder).unwrap_or(&object.path).trim_start_matches('/');
    format!("{} {} {path}", object.bytes, object.state.replace(' ', "+"))
}

fn marker(folder: &Path) -> Option<String> {
    fs::read_to_string(folder.join(MARKER)).ok()
}

fn write(path: &Path, text: &str) -> Result<(), MirrorError> {
    let written = fs::write(path, text).and_then(|()| fs::File::open(path)?.sync_all());
    written.map_err(|source| folder_error(path, source))
}

fn make_folder(folder: &Path) -> Result<(), MirrorError> {
    fs::create_dir_all(folder).map_err(|source| folder_error(folder, source))
}

fn sync_folder(folder: &Path) -> Result<(), MirrorError> {
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| folder_error(folder, source))
}

fn folder_error(folder: &Path, source: io::Error) -> MirrorError {
    MirrorError::Folder { folder: folder.to_owned(), source }
}

fn unfit(path: &str, what: String) -> MirrorError {
    MirrorError::Unfit { path: shown(path), what }
}
