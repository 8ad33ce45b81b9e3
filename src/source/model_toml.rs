//! `model.toml`: our own description of a model, for those who do not come from Triton.
//!
//! ```toml
//! engine = "auto"                        # or "onnxruntime", "tract"
//! max_batch_size = 32                    # 0: the model has no batch dimension
//! versions = { latest = 2 }              # or "all", or [1, 3]
//! filename = "model.onnx"
//! sessions = 2                           # copies that run at the same time
//! intra_op_threads = 1                   # threads that share one run
//! class_names = { label = "labels.txt", kind = ["cat", "dog"] }
//! ```
//!
//! Not here: policy and security, which a description never sets (`[models.NAME]` of `tidegate.toml`).

use std::{collections::BTreeMap, num::NonZeroU32};

use serde::Deserialize;

use crate::model::{
    DeclaredTensor, EngineChoice, FileName, ModelDescription, VersionId, VersionPolicy,
};

use super::error::line_and_column;

/// The name of the file.
pub(super) const FILENAME: &str = "model.toml";

/// Why a `model.toml` cannot be used.
#[derive(Debug)]
pub(super) struct TomlFault {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) what: String,
}

/// What may be written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    engine: Engine,
    max_batch_size: Option<u32>,
    versions: Option<Versions>,
    filename: Option<String>,
    sessions: Option<NonZeroU32>,
    intra_op_threads: Option<NonZeroU32>,
    class_names: BTreeMap<String, ClassNames>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Engine {
    #[default]
    Auto,
    OnnxRuntime,
    Tract,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "`versions` must be \"all\", { latest = 2 } or a list such as [1, 3]"
)]
enum Versions {
    All(All),
    // First: serde would read a list of one number as the fields of `Latest`, in their order.
    Specific(Vec<u64>),
    Latest(Latest),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum All {
    All,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Latest {
    latest: NonZeroU32,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "class names must be a list such as [\"cat\", \"dog\"] or the name of a file with one a line"
)]
enum ClassNames {
    Listed(Vec<String>),
    File(String),
}

/// Sessions, and threads of one run.
const PARALLEL_MAX: u32 = 1_024;

/// Reads a `model.toml`.
pub(super) fn read(bytes: &[u8]) -> Result<ModelDescription, TomlFault> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        fault(&before, before.len(), "this is not UTF-8 text".to_owned())
    })?;
    let written: Written = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        fault(text, at, error.message().trim().replace('\n', ", "))
    })?;
    written.describe().map_err(|(key, what)| {
        // The key's own line; a key in quotes is not worth a parser.
        let at = text.lines().position(|line| line.trim_start().starts_with(key));
        TomlFault { line: at.map_or(1, |line| line + 1), column: 1, what }
    })
}

impl Written {
    /// The description, or the key that is wrong and why.
    fn describe(self) -> Result<ModelDescription, (&'static str, String)> {
        let version_policy = match self.versions {
            None => VersionPolicy::default(),
            Some(Versions::All(All::All)) => VersionPolicy::All,
            Some(Versions::Latest(Latest { latest })) => VersionPolicy::Latest(latest.get()),
            Some(Versions::Specific(versions)) if versions.is_empty() => {
                return Err(("versions", "`versions` is empty; name at least one".to_owned()));
            }
            Some(Versions::Specific(versions)) => {
                VersionPolicy::Specific(versions.into_iter().map(VersionId::new).collect())
            }
        };
        let default_model_filename = match self.filename {
            None => FileName::default(),
            Some(name) => FileName::parse(&name)
                .map_err(|error| ("filename", format!("`filename`: {error}")))?,
        };
        let mut description = ModelDescription {
            engine: match self.engine {
                Engine::Auto => EngineChoice::Auto,
                Engine::OnnxRuntime => EngineChoice::OnnxRuntime,
                Engine::Tract => EngineChoice::Tract,
            },
            max_batch_size: self.max_batch_size,
            version_policy,
            default_model_filename,
            instance_count: parallel("sessions", self.sessions)?,
            intra_op_threads: parallel("intra_op_threads", self.intra_op_threads)?,
            ..ModelDescription::default()
        };
        for (output, names) in self.class_names {
            match names {
                ClassNames::Listed(names) => {
                    description.class_names.insert(output, names);
                }
                ClassNames::File(file) => description.outputs.push(DeclaredTensor {
                    name: output,
                    label_filename: Some(file),
                    ..DeclaredTensor::default()
                }),
            }
        }
        Ok(description)
    }
}

fn parallel(
    key: &'static str,
    count: Option<NonZeroU32>,
) -> Result<Option<u32>, (&'static str, String)> {
    match count.map(NonZeroU32::get) {
        Some(count) if count > PARALLEL_MAX => {
            Err((key, format!("`{key}` is {count}; it must be from 1 to {PARALLEL_MAX}")))
        }
        count => Ok(count),
    }
}

fn fault(text: &str, at: usize, what: String) -> TomlFault {
    let (line, column) = line_and_column(text, at);
    TomlFault { line, column, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_read() {
        let description = read(
            br#"
engine = "tract"
max_batch_size = 32
versions = [1, 3]
filename = "net.onnx"
sessions = 2
intra_op_threads = 4
[class_names]
kind = ["cat", "dog"]
label = "labels.txt"
"#,
        )
        .unwrap();
        let expected = ModelDescription {
            engine: EngineChoice::Tract,
            max_batch_size: Some(32),
            version_policy: VersionPolicy::Specific([1, 3].map(VersionId::new).to_vec()),
            default_model_filename: FileName::parse("net.onnx").unwrap(),
            instance_count: Some(2),
            intra_op_threads: Some(4),
            class_names: BTreeMap::from([(
                "kind".to_owned(),
                vec!["cat".to_owned(), "dog".to_owned()],
            )]),
            outputs: vec![DeclaredTensor {
                name: "label".to_owned(),
                label_filename: Some("labels.txt".to_owned()),
                ..DeclaredTensor::default()
            }],
            ..ModelDescription::default()
        };
        assert_eq!(description, expected);
        assert_eq!(read(b"").unwrap(), ModelDescription::default());
    }

    #[test]
    fn versions_are_all_latest_or_listed() {
        let policy = |text: &str| read(text.as_bytes()).unwrap().version_policy;
        assert_eq!(policy("versions = 'all'"), VersionPolicy::All);
        assert_eq!(policy("versions = { latest = 2 }"), VersionPolicy::Latest(2));
        assert_eq!(policy("versions = [3]"), VersionPolicy::Specific(vec![VersionId::new(3)]));
    }

    #[test]
    fn mistakes_say_where_and_what() {
        let check = |text: &str, line: usize, expected: &str| {
            let TomlFault { line: found, what, .. } = read(text.as_bytes()).expect_err(text);
            assert!(found == line && what.contains(expected), "{text}: {found}: {what}");
        };
        check("\nmax_batch = 3", 2, "unknown field `max_batch`, expected one of");
        check("rollout = 1", 1, "unknown field `rollout`");
        check("versions = 'some'", 1, "`versions` must be \"all\"");
        check("versions = { latest = 0 }", 1, "`versions` must be \"all\"");
        check("#\nversions = []", 2, "name at least one");
        check("#\nfilename = '../x'", 2, "is not a plain file name");
        check("engine = 'torch'", 1, "unknown variant `torch`");
        check("sessions = 0", 1, "nonzero");
        check("sessions = 9999", 1, "from 1 to 1024");
        check("class_names = { a = 1 }", 1, "class names must be a list");
        check("a = ", 1, "");
        let not_text = read(b"\n\xff").unwrap_err();
        assert_eq!((not_text.line, not_text.column), (2, 1));
    }
}
