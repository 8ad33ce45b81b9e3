//! What a repository says about a model: its description, as value.
//!
//! Descriptions come with the model and are not trusted: they may shape how a model is run, never who may use
//! it or how it is rolled out. `Default` is "nothing said".

use std::{collections::BTreeMap, fmt, ops::Deref, time::Duration};

use bytes::Bytes;

use crate::tensor::DataType;

use super::VersionId;

/// What a repository says about a model; the default says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelDescription {
    /// The model's name, where the description gives one; the folder's name is what counts.
    pub name: Option<String>,
    /// The engine that runs the model.
    pub engine: EngineChoice,
    /// The most rows of one run; `None` if not said, 0 for a model that has no batch dimension.
    pub max_batch_size: Option<u32>,
    /// Which of the versions in the repository are wanted.
    pub version_policy: VersionPolicy,
    /// The model's file inside its version folder.
    pub default_model_filename: FileName,
    /// The inputs as declared; empty if not said. Where rows are batched (`max_batch_size` above 0), the
    /// dimensions leave the batch out.
    pub inputs: Vec<DeclaredTensor>,
    /// The outputs as declared, in the same manner.
    pub outputs: Vec<DeclaredTensor>,
    /// By output name: the name of each class, by index.
    pub class_names: BTreeMap<String, Vec<String>>,
    /// How many copies of the model run at the same time.
    pub instance_count: Option<u32>,
    /// Threads that share the work of one run.
    pub intra_op_threads: Option<u32>,
    /// How requests are joined into batches; `None` if not said.
    pub dynamic_batching: Option<DynamicBatching>,
    /// Requests to run before the model takes traffic.
    pub warmup: Vec<Warmup>,
    /// Parameters for the engine, as text.
    pub parameters: BTreeMap<String, String>,
    /// What the description asks for and does not get; for people.
    pub notes: Vec<String>,
}

impl ModelDescription {
    /// Names of the columns of a wide input: the parameter `feature_names`, separated by commas.
    pub fn feature_names(&self) -> Vec<String> {
        let names = self.parameters.get("feature_names");
        let names = names.into_iter().flat_map(|names| names.split(','));
        names.map(|name| name.trim().to_owned()).collect()
    }
}

/// Which engine runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineChoice {
    /// ONNX Runtime where its library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime or none.
    OnnxRuntime,
    /// tract or none.
    Tract,
}

impl EngineChoice {
    /// The word for it in configuration: `auto`, `onnxruntime` or `tract`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::OnnxRuntime => "onnxruntime",
            Self::Tract => "tract",
        }
    }
}

/// Which versions of a model are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionPolicy {
    /// The so many highest, at least 1.
    Latest(u32),
    /// Every one.
    All,
    /// These, where they are there.
    Specific(Vec<VersionId>),
}

/// An input or output as a description declares it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeclaredTensor {
    /// The tensor's name in the model.
    pub name: String,
    /// The element type, where said.
    pub datatype: Option<DataType>,
    /// The dimensions that clients use, -1 for an open one; `None` if not said.
    pub dims: Option<Vec<i64>>,
    /// The dimensions that the model itself uses, where they differ; may be empty.
    pub reshape: Option<Vec<i64>>,
    /// Whether requests may leave an input out.
    pub optional: bool,
    /// The file with an output's class names, one a line, relative to the model's folder.
    pub label_filename: Option<String>,
}

/// How requests are joined into batches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DynamicBatching {
    /// Batch sizes to aim at, in rows.
    pub preferred_batch_size: Vec<u32>,
    /// How long a request may wait for others.
    pub queue_delay_max: Duration,
    /// Whether answers leave in the order of the requests.
    pub preserve_ordering: bool,
    /// The most requests that wait; `None` if not said.
    pub queue_size_max: Option<u32>,
    /// How long a request may wait before it is given up; `None` if not said.
    pub queue_timeout: Option<Duration>,
}

/// A request to run before the model takes traffic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Warmup {
    /// Its name, for logs.
    pub name: String,
    /// Rows; 0 for a model without a batch dimension.
    pub batch_size: u32,
    /// How often it runs, at least 1.
    pub count: u32,
    /// By input name: what it is given.
    pub inputs: BTreeMap<String, WarmupInput>,
}

/// One input of a warm-up request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmupInput {
    /// The element type.
    pub datatype: DataType,
    /// The dimensions without the batch.
    pub dims: Vec<i64>,
    /// The elements.
    pub data: WarmupData,
}

/// The elements of a warm-up input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarmupData {
    /// All zero, or empty strings.
    Zero,
    /// Any values.
    Random,
    /// The bytes of this file in the model's folder `warmup`; without them, it cannot be read.
    File(String, Option<Bytes>),
}

/// A plain file name: 1 to 255 bytes without `/`, `\` or control characters, and neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(Box<str>);

/// A text that is no plain file name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a plain file name, such as `model.onnx`, without any folder", name.escape_debug())]
pub struct FileNameError {
    name: String,
}

impl VersionPolicy {
    /// The wanted ones among the versions that are there, in ascending order.
    pub fn select(&self, versions: impl IntoIterator<Item = VersionId>) -> Vec<VersionId> {
        let mut versions: Vec<_> = versions.into_iter().collect();
        versions.sort_unstable();
        versions.dedup();
        match self {
            Self::All => {}
            Self::Latest(count) => {
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                versions.drain(..versions.len().saturating_sub(count));
            }
            Self::Specific(wanted) => versions.retain(|version| wanted.contains(version)),
        }
        versions
    }
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::Latest(1)
    }
}

impl FileName {
    /// The longest name, in bytes: what file systems take.
    pub const LENGTH_MAX: usize = 255;

    /// Reads a name.
    pub fn parse(name: &str) -> Result<Self, FileNameError> {
        let plain = (1..=Self::LENGTH_MAX).contains(&name.len())
            && !name.contains(['/', '\\'])
            && !name.contains(char::is_control)
            && !matches!(name, "." | "..");
        if plain {
            return Ok(Self(name.into()));
        }
        Err(FileNameError { name: name.chars().take(64).collect() })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for FileName {
    fn default() -> Self {
        Self("model.onnx".into())
    }
}

impl Deref for FileName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_select_among_what_is_there() {
        let select = |policy: VersionPolicy| -> Vec<u64> {
            let versions = [4, 1, 3, 2].map(VersionId::new);
            policy.select(versions).into_iter().map(VersionId::number).collect()
        };
        assert_eq!(select(VersionPolicy::default()), [4]);
        assert_eq!(select(VersionPolicy::Latest(2)), [3, 4]);
        assert_eq!(select(VersionPolicy::Latest(u32::MAX)), [1, 2, 3, 4]);
        assert_eq!(select(VersionPolicy::All), [1, 2, 3, 4]);
        let specific = VersionPolicy::Specific([9, 3, 1].map(VersionId::new).to_vec());
        assert_eq!(select(specific), [1, 3]);
    }

    #[test]
    fn only_plain_file_names_are_taken() {
        for good in ["model.onnx", "m", "..m", "mödel.onnx", &"x".repeat(255)] {
            assert!(FileName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/a", "a\\b", "a\0", "a\n", &"x".repeat(256)] {
            assert!(FileName::parse(bad).is_err(), "{bad}");
        }
    }
}
