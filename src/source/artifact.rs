//! One version in a repository, and its bytes once they are read.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::model::FileName;

use super::{
    SourceError,
    error::shown,
    fingerprint::{self, Extent, Fingerprint},
    reading::{self, ReadFault, Refusal},
};

/// A version as it was listed: where it is and what it looked like.
#[derive(Debug, Clone)]
pub struct ListedVersion {
    /// Differs after every change in the version's folder, also after half of a copy.
    pub fingerprint: Fingerprint,
    pub(super) place: Place,
}

/// Where a version lies, for us and for people.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The version's folder.
    pub(super) folder: PathBuf,
    /// The same relative to the root; empty for the root itself.
    pub(super) shown: String,
    /// The model's file in it.
    pub(super) filename: FileName,
    /// The most bytes of the version.
    pub(super) bytes_max: u64,
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
    listed: ListedVersion,
    /// The folder that external data is relative to.
    beside: OwnedFd,
    external: Mutex<External>,
}

/// External data read so far: models name one file many times.
#[derive(Debug)]
struct External {
    files: BTreeMap<String, Bytes>,
    bytes_left: u64,
}

/// The most bytes of `golden.json`.
const GOLDEN_BYTES_MAX: u64 = 16 << 20;

/// The name of the model in a model folder, as Triton has it: `<version>/model.onnx/model.onnx`.
const INNER_FILENAME: &str = "model.onnx";

impl ListedVersion {
    /// Reads the version's model, hashing what was read.
    ///
    /// Blocks while it reads. Where the folder changed since it was listed, it is [`SourceError::Changed`].
    pub fn read(&self) -> Result<Artifact, SourceError> {
        let place = &self.place;
        let fault = |fault| SourceError::from_read(&place.file(), fault);
        let mut beside = reading::folder(&place.folder)
            .map_err(|fault| SourceError::from_read(&place.name(), fault))?;
        let golden = Self::golden(place, &beside)?;
        let file = match reading::follow(beside.as_fd(), &place.filename) {
            Err(ReadFault::NotAFile("folder")) => {
                beside = reading::folder_in(beside.as_fd(), &place.filename).map_err(fault)?;
                reading::follow(beside.as_fd(), INNER_FILENAME)
            }
            opened => opened,
        };
        let model =
            Bytes::from(reading::read(file.map_err(fault)?, place.bytes_max).map_err(fault)?);
        let model_bytes = u64::try_from(model.len()).unwrap_or(u64::MAX);
        let artifact = Artifact {
            sha256: sha256(&model),
            model,
            golden,
            listed: self.clone(),
            beside,
            external: Mutex::new(External {
                files: BTreeMap::new(),
                bytes_left: place.bytes_max.saturating_sub(model_bytes),
            }),
        };
        artifact.confirm()?;
        Ok(artifact)
    }

    fn golden(place: &Place, folder: &OwnedFd) -> Result<Option<Vec<u8>>, SourceError> {
        let path = place.path("golden.json");
        let read = reading::follow(folder.as_fd(), "golden.json")
            .and_then(|file| reading::read(file, GOLDEN_BYTES_MAX));
        match read {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadFault::Missing) => Ok(None),
            Err(fault) => Err(SourceError::from_read(&path, fault)),
        }
    }
}

impl Artifact {
    /// Reads a file that the model names as external data, relative to the model's own file.
    ///
    /// The location is not trusted: it must lead to a regular file below the model's folder, through no
    /// link, and the file must have no second name. A location is read once and then remembered.
    pub fn read_beside(&self, location: &str) -> Result<Bytes, SourceError> {
        let place = &self.listed.place;
        self.read_external(location, place.bytes_max).map_err(|source| SourceError::Beside {
            folder: place.name(),
            location: shown(location),
            source,
        })
    }

    /// Whether the folder is still as it was listed; ask once all external data is read.
    pub fn confirm(&self) -> Result<(), SourceError> {
        let place = &self.listed.place;
        match place.fingerprint() {
            Ok(now) if now == self.listed.fingerprint => Ok(()),
            Ok(_) => Err(SourceError::Changed(place.name())),
            Err(error) => Err(error),
        }
    }

    fn read_external(&self, location: &str, bytes_max: u64) -> Result<Bytes, Refusal> {
        let mut external = self.external.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = external.files.get(location) {
            return Ok(bytes.clone());
        }
        let file = reading::beneath(self.beside.as_fd(), location)?;
        let bytes = match reading::read(file, external.bytes_left) {
            Err(ReadFault::TooLarge { .. }) => return Err(Refusal::TooLarge { bytes_max }),
            read => Bytes::from(read?),
        };
        let read_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        external.bytes_left = external.bytes_left.saturating_sub(read_bytes);
        external.files.insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

impl Place {
    /// The folder's name for people.
    pub(super) fn name(&self) -> String {
        if self.shown.is_empty() { ".".to_owned() } else { self.shown.clone() }
    }

    pub(super) fn fingerprint(&self) -> Result<Fingerprint, SourceError> {
        fingerprint::take(&self.folder, Extent::Deep, self.filename.as_bytes()).map_err(|fault| {
            match fault {
                fingerprint::Fault::TooManyFiles => SourceError::TooManyFiles {
                    path: self.name(),
                    files_max: fingerprint::FILES_MAX,
                },
                fingerprint::Fault::Io(source) => SourceError::Io { path: self.name(), source },
            }
        })
    }

    /// The model's file for people.
    fn file(&self) -> String {
        self.path(&self.filename)
    }

    fn path(&self, name: &str) -> String {
        if self.shown.is_empty() { name.to_owned() } else { format!("{}/{name}", self.shown) }
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    fn list(folder: &Path, bytes_max: u64) -> ListedVersion {
        let place = Place {
            folder: folder.to_owned(),
            shown: "m/1".to_owned(),
            filename: FileName::default(),
            bytes_max,
        };
        ListedVersion { fingerprint: place.fingerprint().unwrap(), place }
    }

    fn version(model: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.onnx"), model).unwrap();
        folder
    }

    fn refusal(listed: &ListedVersion) -> String {
        listed.read().unwrap_err().chain()
    }

    #[test]
    fn a_version_is_read_and_hashed() {
        let folder = version("abc");
        let artifact = list(folder.path(), 100).read().unwrap();
        assert_eq!(&artifact.model[..], b"abc");
        // The digest of `abc` in FIPS 180-2.
        assert_eq!(
            artifact.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(artifact.golden, None);
    }

    #[test]
    fn golden_outputs_are_read() {
        let folder = version("abc");
        fs::write(folder.path().join("golden.json"), "{}").unwrap();
        let artifact = list(folder.path(), 100).read().unwrap();
        assert_eq!(artifact.golden.as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn links_to_models_are_followed() {
        let (target, folder) = (version("abc"), tempfile::tempdir().unwrap());
        symlink(target.path().join("model.onnx"), folder.path().join("model.onnx")).unwrap();
        let artifact = list(folder.path(), 100).read().unwrap();
        assert_eq!(&artifact.model[..], b"abc");
    }

    #[test]
    fn a_model_may_be_a_folder_with_its_data() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model.onnx")).unwrap();
        fs::write(folder.path().join("model.onnx/model.onnx"), "abc").unwrap();
        fs::write(folder.path().join("model.onnx/weights"), "w").unwrap();
        let artifact = list(folder.path(), 100).read().unwrap();
        assert_eq!(&artifact.model[..], b"abc");
        assert_eq!(&artifact.read_beside("weights").unwrap()[..], b"w");
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let empty = tempfile::tempdir().unwrap();
        assert!(refusal(&list(empty.path(), 9)).starts_with("`m/1/model.onnx` is missing; put"));
        let large = version("0123456789");
        assert_eq!(
            refusal(&list(large.path(), 9)),
            "`m/1/model.onnx` has more than 9 bytes, the most that is read"
        );
        let pipe = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            pipe.path().join("model.onnx"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(
            refusal(&list(pipe.path(), 9)),
            "`m/1/model.onnx` is a pipe; it must be a regular file"
        );
    }

    #[test]
    fn a_folder_that_changed_is_not_read_as_if_it_had_not() {
        let folder = version("abc");
        let listed = list(folder.path(), 100);
        fs::write(folder.path().join("model.onnx"), "abcd").unwrap();
        let error = listed.read().unwrap_err();
        assert!(matches!(error, SourceError::Changed(_)) && error.retry_helps(), "{error}");

        let artifact = list(folder.path(), 100).read().unwrap();
        artifact.confirm().unwrap();
        fs::write(folder.path().join("weights"), "late").unwrap();
        assert!(matches!(artifact.confirm(), Err(SourceError::Changed(_))));
    }

    #[test]
    fn external_data_counts_with_the_model_and_is_read_once() {
        let folder = version("abc");
        fs::write(folder.path().join("weights"), "weights").unwrap();
        fs::write(folder.path().join("more"), "x").unwrap();
        let artifact = list(folder.path(), 10).read().unwrap();
        for _ in 0..3 {
            assert_eq!(&artifact.read_beside("weights").unwrap()[..], b"weights");
        }
        assert_eq!(
            artifact.read_beside("more").unwrap_err().chain(),
            "`more`, named by the model in `m/1`, is refused: the model with its external data has more than 10 \
             bytes, the most that is read"
        );
    }

    #[test]
    fn models_replaced_under_the_reader_are_never_mixed() {
        let folder = version("0");
        let model = folder.path().join("model.onnx");
        let publish = |round: usize| {
            let next = folder.path().join(".next");
            fs::write(&next, format!("{round}").repeat(4096)).unwrap();
            fs::rename(&next, &model).unwrap();
        };
        publish(0);
        std::thread::scope(|scope| {
            let publisher = scope.spawn(|| (1..500).map(|round| round % 10).for_each(publish));
            while !publisher.is_finished() {
                match list(folder.path(), 1 << 20).read() {
                    Ok(artifact) => {
                        assert_eq!(artifact.sha256, sha256(&artifact.model));
                        assert_eq!(artifact.model.len(), 4096);
                        assert!(artifact.model.iter().all(|byte| *byte == artifact.model[0]));
                    }
                    Err(error) => assert!(error.retry_helps(), "{error}"),
                }
            }
        });
        list(folder.path(), 1 << 20).read().unwrap();
    }

    #[test]
    fn external_data_stays_in_the_folder() {
        let folder = version("abc");
        symlink("/etc/passwd", folder.path().join("link")).unwrap();
        let artifact = list(folder.path(), 1 << 20).read().unwrap();
        for location in ["link", "../1/model.onnx", "/etc/passwd", "..\\x", "", "a\0", "."] {
            let error = artifact.read_beside(location).unwrap_err();
            assert!(matches!(error, SourceError::Beside { .. }), "{location:?}: {error}");
        }
    }
}
