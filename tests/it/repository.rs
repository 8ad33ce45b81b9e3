//! Model repositories in temporary folders, filled from the sample models and the fixtures.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use tempfile::TempDir;

/// Where the trained sample models lie, each with golden outputs.
pub(crate) const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
/// Where the fixture models lie.
/// The models that tests are made with.
pub(crate) const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models");

/// A repository of its own, gone with the last server over it.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    root: Arc<TempDir>,
    models: PathBuf,
}

/// Inputs and the outputs that the training library gave for them.
#[derive(Debug)]
pub(crate) struct Golden {
    /// Relative tolerance of floating-point outputs.
    pub(crate) relative: f64,
    /// Absolute tolerance of floating-point outputs.
    pub(crate) absolute: f64,
    /// Pairs of inputs and outputs as the protocol writes them.
    pub(crate) cases: Vec<(Value, Value)>,
}

impl Repository {
    /// An empty one.
    pub(crate) fn empty() -> Self {
        let root = tempfile::Builder::new().prefix("tidegate-it-").tempdir().unwrap();
        let models = root.path().join("models");
        fs::create_dir(&models).unwrap();
        Self { root: Arc::new(root), models }
    }

    /// One with these models, written `name` for version 1 or `name/version`.
    pub(crate) fn of(models: &[&str]) -> Self {
        let repository = Self::empty();
        for model in models {
            let (name, version) = model.split_once('/').unwrap_or((model, "1"));
            repository.add(name, version);
        }
        repository
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.models
    }

    /// A folder beside it, gone with it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Adds a version from the samples or the fixtures.
    pub(crate) fn add(&self, name: &str, version: &str) {
        self.add_as(name, version, &source(name, version));
    }

    /// Adds a version whose model is this file. It appears complete, by a rename.
    pub(crate) fn add_as(&self, name: &str, version: &str, model: &Path) {
        let content = fs::read(model).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        self.add_bytes(name, version, &content);
    }

    /// Adds a version whose model has this content. It appears complete, by a rename.
    pub(crate) fn add_bytes(&self, name: &str, version: &str, content: &[u8]) {
        let staging = tempfile::Builder::new().prefix("staging-").tempdir().unwrap();
        fs::write(staging.path().join("model.onnx"), content).unwrap();
        let folder = self.version(name, version);
        fs::create_dir_all(folder.parent().unwrap()).unwrap();
        fs::rename(staging.keep(), folder).unwrap();
    }

    /// Replaces a version's model in one step.
    pub(crate) fn replace(&self, name: &str, version: &str, content: &[u8]) {
        let folder = self.version(name, version);
        let aside = folder.join(".model.onnx.new");
        fs::write(&aside, content).unwrap();
        fs::rename(aside, folder.join("model.onnx")).unwrap();
    }

    /// Writes a file beside a model's versions.
    pub(crate) fn describe(&self, name: &str, file: &str, content: &str) {
        fs::create_dir_all(self.path().join(name)).unwrap();
        fs::write(self.path().join(name).join(file), content).unwrap();
    }

    /// Removes a version.
    pub(crate) fn remove(&self, name: &str, version: &str) {
        fs::remove_dir_all(self.version(name, version)).unwrap();
    }

    fn version(&self, name: &str, version: &str) -> PathBuf {
        self.path().join(name).join(version)
    }
}

impl Golden {
    /// The recorded cases of a sample model.
    pub(crate) fn of(name: &str, version: &str) -> Self {
        let path = Path::new(SAMPLES).join(name).join(version).join("golden.json");
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let golden: Value = serde_json::from_slice(&text).unwrap();
        let tolerance = |kind: &str| golden["tolerance"][kind].as_f64().unwrap_or(0.0);
        let cases = golden["cases"].as_array().expect("golden.json has cases");
        Self {
            relative: tolerance("relative"),
            absolute: tolerance("absolute"),
            cases: cases.iter().map(|c| (c["inputs"].clone(), c["outputs"].clone())).collect(),
        }
    }

    /// Fails unless the outputs are the recorded ones, in any order.
    pub(crate) fn assert_close(&self, actual: &Value, expected: &Value) {
        for expected in expected.as_array().unwrap() {
            let name = &expected["name"];
            let actual = actual.as_array().unwrap().iter().find(|output| output["name"] == *name);
            let actual = actual.unwrap_or_else(|| panic!("output {name} is missing"));
            assert_eq!(actual["datatype"], expected["datatype"], "{name}");
            assert_eq!(actual["shape"], expected["shape"], "{name}");
            let (actual, expected) = (flat(&actual["data"]), flat(&expected["data"]));
            assert_eq!(actual.len(), expected.len(), "{name}");
            for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
                assert!(
                    self.is_close(actual, expected),
                    "{name}[{index}]: {actual}, not {expected}"
                );
            }
        }
    }

    fn is_close(&self, actual: &Value, expected: &Value) -> bool {
        match (actual.as_f64(), expected.as_f64()) {
            (Some(actual), Some(expected)) => {
                (actual - expected).abs() <= self.absolute + self.relative * expected.abs()
            }
            _ => actual == expected,
        }
    }
}

/// The file of a sample or fixture.
pub(crate) fn source(name: &str, version: &str) -> PathBuf {
    let inside = Path::new(name).join(version).join("model.onnx");
    let fixture = Path::new(FIXTURES).join(&inside);
    if fixture.exists() { fixture } else { Path::new(SAMPLES).join(inside) }
}

/// The elements of nested arrays in order.
pub(crate) fn flat(data: &Value) -> Vec<Value> {
    match data {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        other => vec![other.clone()],
    }
}
