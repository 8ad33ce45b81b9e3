//! Manifests: of which files a version consists, each with its digest.
//!
//! Two kinds, both in the format of `sha256sum`, so that people can check them with `sha256sum -c`:
//! - [`Manifest`] is ours: what a version was made of when it was fetched, with the files that describe its
//!   model. It has exactly one spelling, so its own digest is the version's identity.
//! - [`Sums`] is the publisher's: a file `SHA256SUMS` in a version's folder that says when the version is
//!   complete.
//!
//! Paths are relative, separated with `/`, and have no part that is empty, `.` or `..`.

use std::{collections::BTreeMap, fmt};

use super::{
    Digest,
    error::shown,
    fingerprint::FILES_MAX,
    reading::{self, LOCATION_BYTES_MAX},
};

/// The files of one version, relative to its model's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The version's folder; empty where it is the model's own.
    folder: String,
    /// The model's file.
    model: String,
    files: BTreeMap<String, ManifestFile>,
}

/// A file in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A line that cannot be understood.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        what: String,
    },
    /// More text than an honest manifest has.
    #[error("it has more than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
    /// More files than a version has.
    #[error("it lists more than {FILES_MAX} files")]
    TooManyFiles,
    /// Not what we write: sorted, complete, with one spelling for everything.
    #[error("it is not as it was written; fetch the version again")]
    Spelling,
    /// The model's file is not listed.
    #[error("it does not list the model's file")]
    NoModel,
}

/// A publisher's `SHA256SUMS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) files: BTreeMap<String, Digest>,
}

/// The publisher's list of a version's files.
pub(super) const SUMS_FILENAME: &str = "SHA256SUMS";
/// The most bytes of a manifest of either kind.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// A location, behind a version's number and the folder of its model.
const PATH_BYTES_MAX: usize = 2 * LOCATION_BYTES_MAX;
const HEAD: &str = "# tidegate manifest 1; `sha256sum -c` in the model's folder checks it";

impl Manifest {
    /// A manifest of these files; the model must be among them.
    pub(super) fn new(
        folder: &str,
        model: &str,
        files: BTreeMap<String, ManifestFile>,
    ) -> Result<Self, ManifestError> {
        let manifest = Self { folder: folder.to_owned(), model: model.to_owned(), files };
        if manifest.files.len() > FILES_MAX {
            return Err(ManifestError::TooManyFiles);
        }
        if !manifest.files.contains_key(&manifest.model) {
            return Err(ManifestError::NoModel);
        }
        let paths = manifest.files.keys().map(String::as_str);
        for path in paths.chain((!folder.is_empty()).then_some(folder)) {
            check_path(path).map_err(|what| ManifestError::Line { line: 1, what })?;
        }
        if manifest.to_string().len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        Ok(manifest)
    }

    /// Reads a manifest; only what [`Manifest::to_string`] writes is one.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        if text.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        let text = std::str::from_utf8(text).map_err(|_| ManifestError::Spelling)?;
        let mut lines = text.lines();
        let mut next = || lines.next().ok_or(ManifestError::Spelling);
        if next()? != HEAD {
            return Err(ManifestError::Spelling);
        }
        let folder = next()?.strip_prefix("# version ").ok_or(ManifestError::Spelling)?;
        let folder = if folder == "." { "" } else { folder };
        let model = next()?.strip_prefix("# model ").ok_or(ManifestError::Spelling)?;
        let mut files = BTreeMap::new();
        let mut at = 3;
        while let Some(size) = lines.next() {
            at += 2;
            let size = size.strip_prefix("# ").and_then(|size| size.strip_suffix(" bytes"));
            let bytes = size.and_then(|size| size.parse().ok()).ok_or(ManifestError::Spelling)?;
            let line = lines.next().ok_or(ManifestError::Spelling)?;
            let (sha256, path) =
                entry(line).map_err(|what| ManifestError::Line { line: at, what })?;
            files.insert(path.to_owned(), ManifestFile { bytes, sha256 });
        }
        let manifest = Self::new(folder, model, files)?;
        if manifest.to_string() == text { Ok(manifest) } else { Err(ManifestError::Spelling) }
    }

    /// The version's identity: SHA-256 of the manifest's text.
    pub fn digest(&self) -> Digest {
        Digest::of(self.to_string().as_bytes())
    }

    /// The files by path, relative to the model's folder.
    pub fn files(&self) -> &BTreeMap<String, ManifestFile> {
        &self.files
    }

    /// Bytes of the model's file, and of all others.
    pub fn model_bytes(&self) -> (u64, u64) {
        let all = self.files().values().map(|file| file.bytes).fold(0, u64::saturating_add);
        let model = self.files().get(self.model()).map_or(0, |file| file.bytes);
        (model, all.saturating_sub(model))
    }

    /// The version's folder, relative to the model's; empty where it is the same.
    pub(super) fn folder(&self) -> &str {
        &self.folder
    }

    /// The model's file, relative to the model's folder.
    pub(super) fn model(&self) -> &str {
        &self.model
    }
}

/// The text that `sha256sum -c` reads, sorted by path; sizes stand in comments.
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = if self.folder.is_empty() { "." } else { &self.folder };
        write!(f, "{HEAD}\n# version {folder}\n# model {}\n", self.model)?;
        self.files.iter().try_for_each(|(path, file)| {
            write!(f, "# {} bytes\n{}  {path}\n", file.bytes, file.sha256)
        })
    }
}

impl Sums {
    /// Reads what `sha256sum` writes, in any order; comments and a leading `./` are passed over.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        if text.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        let fault = |line, what: &str| ManifestError::Line { line, what: what.to_owned() };
        let text = std::str::from_utf8(text).map_err(|_| fault(1, "this is not UTF-8 text"))?;
        let mut files = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (digest, path) =
                entry(line).map_err(|what| ManifestError::Line { line: number, what })?;
            // `sha256sum * > SHA256SUMS` lists its own output, which can never be right.
            if path == SUMS_FILENAME {
                continue;
            }
            if files.insert(path.to_owned(), digest).is_some() {
                return Err(fault(number, "this file is listed twice; list it once"));
            }
            if files.len() > FILES_MAX {
                return Err(ManifestError::TooManyFiles);
            }
        }
        Ok(Self { files })
    }
}

/// Digest and path of a line.
fn entry(line: &str) -> Result<(Digest, &str), String> {
    let shape =
        || "this is not `<64 hexadecimal digits>  <path>`, as `sha256sum` writes it".to_owned();
    let (digest, path) = line.split_at_checked(64).ok_or_else(shape)?;
    let digest = Digest::parse(digest).ok_or_else(shape)?;
    let path = path.strip_prefix("  ").or_else(|| path.strip_prefix(" *")).ok_or_else(shape)?;
    let path = path.strip_prefix("./").unwrap_or(path);
    check_path(path)?;
    Ok((digest, path))
}

fn check_path(path: &str) -> Result<(), String> {
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("the path is longer than {PATH_BYTES_MAX} bytes"));
    }
    reading::check_parts(path).map_err(|refusal| format!("the path `{}`: {refusal}", shown(path)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(content: &str) -> ManifestFile {
        ManifestFile { bytes: content.len() as u64, sha256: Digest::of(content.as_bytes()) }
    }

    fn manifest() -> Manifest {
        let files = [("config.pbtxt", ""), ("3/weights", "w"), ("3/model.onnx", "abc")]
            .map(|(path, content)| (path.to_owned(), file(content)));
        Manifest::new("3", "3/model.onnx", BTreeMap::from(files)).unwrap()
    }

    #[test]
    fn manifests_are_what_sha256sum_checks() {
        let text = manifest().to_string();
        assert_eq!(
            text,
            "# tidegate manifest 1; `sha256sum -c` in the model's folder checks it\n\
             # version 3\n\
             # model 3/model.onnx\n\
             # 3 bytes\n\
             ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  3/model.onnx\n\
             # 1 bytes\n\
             50e721e49c013f00c62cf59f2163542a9d8df02464efeb615d31051b0fddc326  3/weights\n\
             # 0 bytes\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  config.pbtxt\n"
        );
        assert_eq!(manifest().digest(), Digest::of(text.as_bytes()));
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("3")).unwrap();
        for (path, content) in [("config.pbtxt", ""), ("3/weights", "w"), ("3/model.onnx", "abc")] {
            std::fs::write(folder.path().join(path), content).unwrap();
        }
        std::fs::write(folder.path().join("manifest"), &text).unwrap();
        let checked = std::process::Command::new("sha256sum")
            .args(["--strict", "-c", "manifest"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }

    #[test]
    fn only_what_was_written_is_read() {
        let text = manifest().to_string();
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(manifest()));
        let spoiled = [
            String::new(),
            text.trim_end().to_owned(),
            text.replace('\n', "\r\n"),
            text.replace("ba78", "BA78"),
            text.replace("manifest 1", "manifest 2"),
            text.replace("# version 3", "# version 3/"),
            text.replace("# version 3", "# version ../x"),
            text.replace("# version 3", "# version "),
            text.replace("# model 3/model.onnx", "# model 3/other.onnx"),
            text.replace("# 3 bytes", "# +3 bytes"),
            text.replace("# 3 bytes", "# 03 bytes"),
            text.replace("# 3 bytes", "# -3 bytes"),
            text.replace("# 3 bytes\n", ""),
            text.replace("  3/weights", " *3/weights"),
            text.replace("  3/weights", "  ./3/weights"),
            text.replace("  3/weights", "  /3/weights"),
            text.replace("  3/weights", "  3/../weights"),
            text.replace("  3/weights", "  3//weights"),
            text.replace("  3/weights", "  3\\weights"),
            text.replace("  3/weights", "  3/model.onnx"),
            text.replace("  3/weights", "  zz"),
            format!("{text}\n"),
            format!("{text}# comment\n"),
            " ".repeat((4 << 20) + 1),
        ];
        for text in spoiled {
            let error = Manifest::parse(text.as_bytes());
            assert!(error.is_err(), "{text:.200}");
        }
        assert!(Manifest::parse(b"\xff").is_err());
    }

    #[test]
    fn manifests_are_bounded() {
        let many = |count: usize| {
            let files = (0..count).map(|number| (format!("{number}"), file("")));
            Manifest::new("", "0", files.collect())
        };
        many(FILES_MAX).unwrap();
        assert_eq!(many(FILES_MAX + 1), Err(ManifestError::TooManyFiles));
        let long = (0..4096).map(|number| (format!("{number:01000}"), file("")));
        let first = format!("{:01000}", 0);
        assert_eq!(Manifest::new("", &first, long.collect()), Err(ManifestError::TooLong));
    }

    #[test]
    fn publishers_write_as_sha256sum_does() {
        let digest = Digest::of(b"abc");
        let check = |text: &str, expected: Result<&[&str], &str>| match (
            Sums::parse(text.as_bytes()),
            expected,
        ) {
            (Ok(sums), Ok(expected)) => {
                assert!(sums.files.keys().eq(expected), "{text}: {sums:?}");
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{text}: {error}");
            }
            (found, _) => panic!("{text}: {found:?}"),
        };
        check("", Ok(&[]));
        check(&format!("{digest}  b\n{digest} *a\n"), Ok(&["a", "b"]));
        check(&format!("# by hand\n\n{digest}  ./x/y"), Ok(&["x/y"]));
        check(&format!("{digest}  SHA256SUMS\n{digest}  a"), Ok(&["a"]));
        check(&format!("{digest}  a\n{digest}  ./a"), Err("line 2: this file is listed twice"));
        check(&format!("{digest}  ../a"), Err("line 1: the path `../a`: it has a part"));
        check(&format!("{digest}  /a"), Err("it is absolute"));
        check(&format!("{digest}  "), Err("it is empty"));
        check(&format!("\\{digest}  a\\nb"), Err("line 1: this is not `<64"));
        check(&format!("{digest} a"), Err("this is not"));
        check("0  a", Err("this is not"));
        check(&"é".repeat(60), Err("this is not"));
    }

    proptest! {
        #[test]
        fn manifests_survive_writing_and_reading(
            folder in "|[1-9][0-9]{0,3}",
            paths in prop::collection::btree_map("[a-zé .*#]{1,8}(/[a-z ]{1,8}){0,2}", any::<(u64, [u8; 4])>(), 1..20),
        ) {
            let files: BTreeMap<_, _> = paths
                .into_iter()
                .filter(|(path, _)| check_path(path).is_ok())
                .map(|(path, (bytes, seed))| (path, ManifestFile { bytes, sha256: Digest::of(&seed) }))
                .collect();
            prop_assume!(!files.is_empty());
            let model = files.keys().next().unwrap().clone();
            let manifest = Manifest::new(&folder, &model, files).unwrap();
            prop_assert_eq!(Manifest::parse(manifest.to_string().as_bytes()), Ok(manifest));
        }

        #[test]
        fn nothing_makes_the_reader_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&text);
            let _ = Sums::parse(&text);
            let _ = Manifest::parse(&[HEAD.as_bytes(), b"\n", &text].concat());
        }
    }
}
