//! Configuration: flags, environment and file become every room's settings, or all findings at once.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. A file is read only
//! where one is named. What leaves this room is complete: nothing optional that has a default, nothing unparsed,
//! nothing contradictory. What is wrong is told with its place and with what would be right.
//!
//! In reading order: `file` is what may be written, `value` how single values read, `draft` lays the layers over
//! each other, `check` turns the result into settings, `findings` tells what is wrong.
//!
//! Not here: defaults (each room's `Settings`), flags' syntax (`cli`), the machine's CPUs and file descriptors
//! (`app` resolves a `None` that means "as many as fit").

mod check;
mod draft;
mod example;
mod file;
mod findings;
mod keys;
mod value;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

pub use crate::model::EngineChoice;
pub use findings::{Finding, Findings, Origin};

use crate::{
    drift, edge, engine, feedback,
    lifecycle::{self, OnNewVersion},
    model::ModelName,
    monitor, notify, predictions,
    rollout::PolicyDraft,
    serve, source, state, validation,
};
use draft::Draft;

/// Beginning of the names of environment variables. Single underscores are left alone: Kubernetes sets
/// `TIDEGATE_PORT` and its like for a service of that name.
const VARIABLE_PREFIX: &str = "TIDEGATE__";

/// The largest configuration file in bytes.
const FILE_BYTES_MAX: u64 = 4 * value::MIB;

/// Everything tidegate was told, complete and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The data plane's listener and limits.
    pub edge: edge::Settings,
    /// The admin plane's listener.
    pub admin: Admin,
    /// Repository of the models, and its limits.
    pub source: source::Settings,
    /// The most that loaded versions may cost in bytes. `None`: everything is loaded.
    pub loaded_bytes_max: Option<u64>,
    /// True if the repository API is served on the data plane.
    pub repository_api: bool,
    /// Limits of what a load may bring.
    pub uploads: Uploads,
    /// Engines and sessions.
    pub engine: engine::Settings,
    /// The proof of versions before they are loaded.
    pub proof: lifecycle::ProofSettings,
    /// Bounds of one prediction.
    pub serve: serve::Settings,
    /// Bounds of labelled data.
    pub validation: validation::Settings,
    /// The watch over drift.
    pub drift: drift::Settings,
    /// Bounds of what is remembered for outcomes.
    pub feedback: feedback::Settings,
    /// The table of predictions.
    pub predictions: predictions::Settings,
    /// Where durable records lie.
    pub state: state::Settings,
    /// Webhooks, and when models should be trained anew.
    pub notify: notify::Settings,
    /// The page of metrics.
    pub metrics: monitor::Settings,
    /// The log.
    pub logs: Logs,
    /// Rules for single models.
    pub models: BTreeMap<ModelName, ModelPolicy>,
    /// Keys of the public contract that have no effect in this version.
    pub reserved: Reserved,
}

/// The admin plane's listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens; port 0 takes any free one.
    pub address: SocketAddr,
    /// Most connections at once.
    pub connections_max: usize,
}

/// Limits of what a request to load a model may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploads {
    /// True if it may bring anything.
    pub allowed: bool,
    /// Bytes of all files together.
    pub bytes_max: usize,
    /// Files.
    pub files_max: usize,
}

/// Content and form of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// Levels in the syntax of `tracing_subscriber::EnvFilter`, which accepts it.
    pub filter: String,
    /// Form of a line.
    pub format: LogFormat,
    /// Bytes of lines that wait to be read.
    pub buffer_bytes_max: usize,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Rules for one model, by the operator's word.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelPolicy {
    /// The engine. `None`: the one that [`engine::Settings`] names.
    pub engine: Option<EngineChoice>,
    /// True if readiness waits until the model is served.
    pub required: bool,
    /// Treatment of versions that appear.
    pub on_new_version: OnNewVersion,
    /// True if a version may have other inputs and outputs than the one that it replaces.
    pub signature_may_change: bool,
    /// True if a header of a request may choose the arm or version.
    pub route_override: bool,
    /// Policy of the model's rollouts.
    pub rollout: Option<PolicyDraft>,
    /// The watch over the model's drift. `None`: as [`Config::drift`] says.
    pub drift: Option<drift::Settings>,
    /// Outcomes of its predictions.
    pub feedback: feedback::Policy,
    /// Part of the model in the table of predictions.
    pub predictions: predictions::Policy,
}

/// Keys that are accepted because they belong to the public contract, and have no effect in this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// `server.grpc`: where gRPC will be served.
    pub grpc: SocketAddr,
}

/// Where configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources<E> {
    /// The file to read. `None`: none, wherever tidegate is started.
    pub file: Option<PathBuf>,
    /// Names and values of environment variables; those without the prefix `TIDEGATE__` are passed over.
    pub environment: E,
    /// Values of the command line.
    pub flags: Flags,
}

/// Flags that stand for keys. Their text is read here, so that mistakes in them are told with all others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flags {
    /// `--http`: `server.http`.
    pub http: Option<String>,
    /// `--grpc`: `server.grpc`.
    pub grpc: Option<String>,
    /// `--admin`: `server.admin`.
    pub admin: Option<String>,
    /// `--workers`: `server.workers`.
    pub workers: Option<String>,
    /// `--repository`: `repository.root`.
    pub repository: Option<PathBuf>,
    /// `--model-name`: `repository.model_name`.
    pub model_name: Option<String>,
    /// `--onnxruntime`: `engine.onnxruntime`.
    pub onnxruntime: Option<PathBuf>,
    /// `--log-level`: `logs.level`.
    pub log_level: Option<String>,
    /// `--log-format`: `logs.format`.
    pub log_format: Option<String>,
}

/// Reads and checks the configuration; the only I/O is reading the file.
pub fn load<E>(sources: Sources<E>) -> Result<Config, Findings>
where
    E: IntoIterator<Item = (String, String)>,
{
    let mut draft = Draft::new(&schema(), sources.file.as_deref());
    if let Some(path) = &sources.file {
        match read(path) {
            Ok(text) => draft.lay_file(&text),
            Err(advice) => draft.refuse_file(path, advice),
        }
    }
    draft.lay_environment(sources.environment);
    sources.flags.lay_over(&mut draft);
    finish(draft)
}

/// Describes the configuration file as JSON Schema (2020-12), with defaults and bounds.
pub fn schema() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<file::File>();
    schema.insert("title".to_owned(), "tidegate.toml".into());
    schema.to_value()
}

/// Writes a configuration file with every key, its default and the reason for it.
pub fn example() -> String {
    example::example(&schema())
}

/// Reads and checks the text of a file alone, for fuzzing.
#[doc(hidden)]
pub fn check_text(text: &str) -> Result<Config, Findings> {
    let mut draft = Draft::new(&schema(), Some(Path::new("tidegate.toml")));
    draft.lay_file(text);
    finish(draft)
}

fn finish(draft: Draft) -> Result<Config, Findings> {
    let (file, places, mut findings) = draft.finish();
    let config = check::check(file, &places, &mut findings);
    if findings.findings.is_empty() {
        return Ok(config);
    }
    findings.sort();
    Err(findings)
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| format!("can't be opened: {error}"))?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("can't be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is too large for a configuration: above {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|b| *b == b'\n');
        format!("must be UTF-8 text, which line {} is not", line.count())
    })
}

impl Flags {
    fn lay_over(self, draft: &mut Draft) {
        let texts = [
            ("--http", ["server", "http"], self.http),
            ("--grpc", ["server", "grpc"], self.grpc),
            ("--admin", ["server", "admin"], self.admin),
            ("--workers", ["server", "workers"], self.workers),
            ("--model-name", ["repository", "model_name"], self.model_name),
            ("--log-level", ["logs", "level"], self.log_level),
            ("--log-format", ["logs", "format"], self.log_format),
        ];
        for (flag, path, text) in texts {
            if let Some(text) = text {
                draft.lay_flag(flag, path, &text);
            }
        }
        let paths = [
            ("--repository", ["repository", "root"], self.repository),
            ("--onnxruntime", ["engine", "onnxruntime"], self.onnxruntime),
        ];
        for (flag, path, value) in paths {
            match value.as_deref().map(Path::to_str) {
                Some(Some(text)) => draft.lay_flag(flag, path, text),
                Some(None) => draft.refuse_flag(flag, &path.join("."), "must be a path in UTF-8"),
                None => {}
            }
        }
    }
}

impl LogFormat {
    /// The word for it in configuration: `auto`, `text` or `json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Default for Config {
    fn default() -> Self {
        let edge = edge::Settings::default();
        Self {
            repository_api: edge.http.ip().is_loopback(),
            uploads: Uploads::default(),
            edge,
            admin: Admin::default(),
            source: source::Settings {
                own_folders: vec![state::Settings::default().path],
                ..source::Settings::default()
            },
            loaded_bytes_max: None,
            engine: engine::Settings::default(),
            proof: lifecycle::ProofSettings::default(),
            serve: serve::Settings::default(),
            validation: validation::Settings::default(),
            drift: drift::Settings::default(),
            feedback: feedback::Settings::default(),
            predictions: predictions::Settings::default(),
            state: state::Settings::default(),
            notify: notify::Settings::default(),
            metrics: monitor::Settings::default(),
            logs: Logs::default(),
            models: BTreeMap::new(),
            reserved: Reserved::default(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8002)),
            // Probes, metrics and a few who follow events.
            connections_max: 64,
        }
    }
}

impl Default for Uploads {
    fn default() -> Self {
        Self { allowed: false, bytes_max: 256 << 20, files_max: 1000 }
    }
}

impl Default for Logs {
    fn default() -> Self {
        let (filter, format) = ("info".to_owned(), LogFormat::default());
        Self { filter, format, buffer_bytes_max: 1 << 20 }
    }
}

impl Default for Reserved {
    fn default() -> Self {
        Self { grpc: SocketAddr::from((Ipv4Addr::LOCALHOST, 8001)) }
    }
}
