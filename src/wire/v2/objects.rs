//! The bodies of the control plane: metadata, configuration, statistics, repository, health, errors.
//!
//! Small and rare, so serde reads and writes them. What is read refuses unknown keys: a misspelt one would
//! otherwise be a wish that nobody hears.
//!
//! Source: Open Inference Protocol, REST; Triton's extensions for model configuration, statistics and
//! the model repository. Clients of Triton rely on the names here, also on those that never change their value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{
    model::{TensorSpec, VersionId, VersionState},
    tensor::DataType,
};

use super::error::shown;

/// `GET /v2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerMetadata<'a> {
    /// The server's name.
    pub name: &'a str,
    /// The server's version.
    pub version: &'a str,
    /// The extensions that it speaks.
    pub extensions: &'a [&'a str],
}

/// `GET /v2/models/{model}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelMetadata<'a> {
    /// The model.
    pub name: &'a str,
    /// The versions that can be asked.
    #[serde(serialize_with = "version_texts")]
    pub versions: Vec<VersionId>,
    /// The platform, such as `onnxruntime_onnx`.
    pub platform: &'a str,
    /// What a request brings.
    pub inputs: Vec<TensorMetadata<'a>>,
    /// What a response holds.
    pub outputs: Vec<TensorMetadata<'a>>,
}

/// An input or output in the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorMetadata<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its datatype, such as `FP32`.
    #[serde(serialize_with = "protocol_name")]
    pub datatype: DataType,
    /// Its dimensions, -1 where open.
    pub shape: &'a [i64],
}

impl<'a> From<&'a TensorSpec> for TensorMetadata<'a> {
    fn from(spec: &'a TensorSpec) -> Self {
        Self { name: &spec.name, datatype: spec.datatype, shape: spec.protocol_dims() }
    }
}

/// `GET /v2/models/{model}/config`, in the names of Triton's `ModelConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig<'a> {
    /// The model.
    pub name: &'a str,
    /// The platform, such as `onnxruntime_onnx`.
    pub platform: &'a str,
    /// The backend, such as `onnxruntime`.
    pub backend: &'a str,
    /// Which versions are served.
    pub version_policy: VersionPolicy,
    /// Rows in a batch at most; 0 for a model that takes none, whose dims are whole.
    pub max_batch_size: u32,
    /// What a request brings.
    pub input: Vec<ConfigInput<'a>>,
    /// What a response holds.
    pub output: Vec<ConfigOutput<'a>>,
    /// How many sessions.
    pub instance_group: Vec<InstanceGroup<'a>>,
    /// Batching of requests; left out if they are not batched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_batching: Option<DynamicBatching>,
    /// Free parameters.
    pub parameters: BTreeMap<&'a str, ConfigParameter<'a>>,
    /// Requests for warming up; always empty, warming is not configured here.
    pub model_warmup: [(); 0],
}

/// Which versions are served; one of the three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionPolicy {
    /// The newest ones.
    Latest {
        /// How many.
        num_versions: u32,
    },
    /// All.
    All {},
    /// These.
    Specific {
        /// Their numbers.
        versions: Vec<u64>,
    },
}

/// An input in the configuration; `dims` leaves out the batch's dimension where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigInput<'a> {
    /// Its name.
    pub name: &'a str,
    /// Such as `TYPE_FP32`.
    #[serde(serialize_with = "config_name")]
    pub data_type: DataType,
    /// Always `FORMAT_NONE`.
    pub format: &'static str,
    /// Its dimensions, -1 where open.
    pub dims: &'a [i64],
    /// Whether its values are a shape; never here.
    pub is_shape_tensor: bool,
    /// True if a request may leave it out.
    pub optional: bool,
}

impl<'a> ConfigInput<'a> {
    /// The entry for `spec`; with `batched`, without its first dimension.
    pub fn new(spec: &'a TensorSpec, batched: bool) -> Self {
        Self {
            name: &spec.name,
            data_type: spec.datatype,
            format: "FORMAT_NONE",
            dims: config_dims(spec, batched),
            is_shape_tensor: false,
            optional: false,
        }
    }
}

/// An output in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigOutput<'a> {
    /// Its name.
    pub name: &'a str,
    /// Such as `TYPE_FP32`.
    #[serde(serialize_with = "config_name")]
    pub data_type: DataType,
    /// Its dimensions, -1 where open.
    pub dims: &'a [i64],
    /// The file with the names of the classes; empty if there is none.
    pub label_filename: &'a str,
    /// Whether its values are a shape; never here.
    pub is_shape_tensor: bool,
}

impl<'a> ConfigOutput<'a> {
    /// The entry for `spec`; with `batched`, without its first dimension.
    pub fn new(spec: &'a TensorSpec, batched: bool) -> Self {
        Self {
            name: &spec.name,
            data_type: spec.datatype,
            dims: config_dims(spec, batched),
            label_filename: "",
            is_shape_tensor: false,
        }
    }
}

fn config_dims(spec: &TensorSpec, batched: bool) -> &[i64] {
    let dims = spec.protocol_dims();
    if batched { dims.get(1..).unwrap_or_default() } else { dims }
}

/// Sessions of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstanceGroup<'a> {
    /// The group's name.
    pub name: &'a str,
    /// Such as `KIND_CPU`.
    pub kind: &'a str,
    /// How many.
    pub count: u32,
}

/// Batching of requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DynamicBatching {
    /// Sizes worth waiting for.
    pub preferred_batch_size: Vec<u32>,
    /// How long the first request waits for others, in microseconds.
    pub max_queue_delay_microseconds: u64,
}

/// The value of a free parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigParameter<'a> {
    /// Its text.
    pub string_value: &'a str,
}

/// `GET /v2/models/stats` and below.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// One entry per version.
    pub model_stats: Vec<ModelStatistics>,
}

/// The statistics of one version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelStatistics {
    /// The model.
    pub name: String,
    /// The version's number as text.
    pub version: String,
    /// When the last inference was asked for, in milliseconds since 1970; 0 if none was.
    pub last_inference: u64,
    /// Rows inferred.
    pub inference_count: u64,
    /// Runs of the engine.
    pub execution_count: u64,
    /// Where requests spent their time; clients read every key, so every key is always there.
    pub inference_stats: InferenceStatistics,
    /// By batch size.
    pub batch_stats: Vec<BatchStatistics>,
    /// Memory held.
    pub memory_usage: Vec<MemoryUsage>,
}

/// Where requests spent their time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InferenceStatistics {
    /// Requests answered, their whole time.
    pub success: DurationStatistic,
    /// Requests that failed, their whole time.
    pub fail: DurationStatistic,
    /// Waiting for a run.
    pub queue: DurationStatistic,
    /// Preparing inputs.
    pub compute_input: DurationStatistic,
    /// Running the model.
    pub compute_infer: DurationStatistic,
    /// Extracting outputs.
    pub compute_output: DurationStatistic,
    /// Answers from a cache.
    pub cache_hit: DurationStatistic,
    /// Fruitless looks into a cache.
    pub cache_miss: DurationStatistic,
}

/// How often and how long in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DurationStatistic {
    /// How often.
    pub count: u64,
    /// How long in all, in nanoseconds.
    pub ns: u64,
}

/// The runs of one batch size.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchStatistics {
    /// Rows per run.
    pub batch_size: u64,
    /// Preparing inputs.
    pub compute_input: DurationStatistic,
    /// Running the model.
    pub compute_infer: DurationStatistic,
    /// Extracting outputs.
    pub compute_output: DurationStatistic,
}

/// Memory that a version holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Such as `CPU`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of several devices, which.
    pub id: u64,
    /// Bytes.
    pub byte_size: u64,
}

/// `POST /v2/repository/index`; an empty body is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRequest {
    /// Whether to list only what is ready.
    #[serde(default)]
    pub ready: bool,
}

/// An entry of the repository's index. A model that was never loaded has a name and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IndexEntry<'a> {
    /// The model.
    pub name: &'a str,
    /// The version, written as text.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "version_text")]
    pub version: Option<VersionId>,
    /// How it is.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "state_name")]
    pub state: Option<VersionState>,
    /// Why it is so; empty if there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// `POST /v2/repository/models/{model}/unload`; an empty body is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnloadRequest {
    /// Whether models that only this one needs go too.
    pub unload_dependents: bool,
}

/// Why the body of a control request cannot be used; the caller's mistake.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Not the JSON that is due.
    #[error("the body is not what is expected here: {0}")]
    Json(String),
    /// A parameter that there is not.
    #[error("unknown parameter {name}; there are {known}")]
    UnknownParameter {
        /// Its name in backticks, shortened.
        name: String,
        /// Those that there are.
        known: &'static str,
    },
    /// A parameter of the wrong kind.
    #[error("parameter {name} must be {wanted}")]
    Kind {
        /// Its name in backticks, shortened.
        name: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A name that stands there more than once.
    #[error("parameter {name} is given twice")]
    Twice {
        /// The name in backticks, shortened.
        name: String,
    },
    /// Too many of something, or something too long.
    #[error("{what} are limited to {max}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// What is allowed.
        max: usize,
    },
    /// A file's content that is not Base64.
    #[error("parameter {name} is not Base64: it {problem}")]
    Base64 {
        /// The parameter in backticks, shortened.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// It brings something where that is not allowed.
    #[error("models from requests are switched off")]
    UploadsOff,
    /// Files without a configuration.
    #[error("parameters `file:...` need the parameter `config`")]
    FilesWithoutConfig,
}

impl IndexRequest {
    /// Reads the body.
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        decode(body)
    }
}

impl UnloadRequest {
    /// Reads the body.
    pub fn decode(body: &[u8]) -> Result<Self, BodyError> {
        let mut request = Self::default();
        for (name, value) in decode::<ParametersBody>(body)?.parameters.unwrap_or_default() {
            if name != "unload_dependents" {
                return Err(unknown(&name, "`unload_dependents`"));
            }
            let Value::Bool(flag) = value else {
                return Err(BodyError::Kind { name: shown(&name), wanted: "true or false" });
            };
            request.unload_dependents = flag;
        }
        Ok(request)
    }
}

/// The body of load and unload.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParametersBody {
    #[serde(default)]
    parameters: Option<BTreeMap<String, Value>>,
}

fn decode<T: for<'de> Deserialize<'de> + Default>(body: &[u8]) -> Result<T, BodyError> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body)
        .map_err(|error| BodyError::Json(cut(&error.to_string(), MESSAGE_CHARACTERS_MAX)))
}

fn unknown(name: &str, known: &'static str) -> BodyError {
    BodyError::UnknownParameter { name: shown(name), known }
}

/// Messages of serde quote what the client wrote.
const MESSAGE_CHARACTERS_MAX: usize = 200;

fn cut(text: &str, characters_max: usize) -> String {
    text.chars().take(characters_max).flat_map(char::escape_debug).collect()
}

/// `GET /v2/health/live` and `/v2/health/ready`: both keys, since clients look for either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether the server runs.
    pub live: bool,
    /// Whether it answers requests.
    pub ready: bool,
}

/// `GET /v2/models/{model}/ready`, and the answer to load and unload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ModelReady<'a> {
    /// The model.
    pub name: &'a str,
    /// Whether it answers requests.
    pub ready: bool,
}

/// The body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody<'a> {
    /// What was wrong, for people.
    pub error: std::borrow::Cow<'a, str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn protocol_name<S: Serializer>(datatype: &DataType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(datatype.name())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn config_name<S: Serializer>(datatype: &DataType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(datatype.config_name())
}

fn version_texts<S: Serializer>(versions: &[VersionId], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(versions.iter().map(ToString::to_string))
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn version_text<S: Serializer>(
    version: &Option<VersionId>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    version.map(|version| version.to_string()).serialize(serializer)
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn state_name<S: Serializer>(
    state: &Option<VersionState>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    state.map(VersionState::name).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> TensorSpec {
        TensorSpec {
            name: "x".into(),
            datatype: DataType::Fp32,
            dims: Some(vec![-1, 30]),
            view: None,
        }
    }

    #[test]
    fn metadata_and_configuration_have_the_names_that_clients_read() {
        let spec = spec();
        let metadata = ModelMetadata {
            name: "m",
            versions: vec![VersionId::new(2)],
            platform: "onnxruntime_onnx",
            inputs: vec![TensorMetadata::from(&spec)],
            outputs: vec![],
        };
        assert_eq!(
            serde_json::to_value(&metadata).unwrap(),
            json!({"name": "m", "versions": ["2"], "platform": "onnxruntime_onnx", "outputs": [],
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}]})
        );
        let config = ModelConfig {
            name: "m",
            platform: "onnxruntime_onnx",
            backend: "onnxruntime",
            version_policy: VersionPolicy::Latest { num_versions: 1 },
            max_batch_size: 8,
            input: vec![ConfigInput::new(&spec, true)],
            output: vec![ConfigOutput::new(&spec, false)],
            instance_group: vec![InstanceGroup { name: "m", kind: "KIND_CPU", count: 1 }],
            dynamic_batching: None,
            parameters: BTreeMap::from([("a", ConfigParameter { string_value: "b" })]),
            model_warmup: [],
        };
        assert_eq!(
            serde_json::to_value(&config).unwrap(),
            json!({"name": "m", "platform": "onnxruntime_onnx", "backend": "onnxruntime",
                "version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 8,
                "input": [{"name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [30],
                    "is_shape_tensor": false, "optional": false}],
                "output": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 30],
                    "label_filename": "", "is_shape_tensor": false}],
                "instance_group": [{"name": "m", "kind": "KIND_CPU", "count": 1}],
                "parameters": {"a": {"string_value": "b"}}, "model_warmup": []})
        );
    }

    #[test]
    fn statistics_always_have_all_eight_durations() {
        let stats = Statistics { model_stats: vec![ModelStatistics::default()] };
        let value = serde_json::to_value(&stats).unwrap();
        let durations = value["model_stats"][0]["inference_stats"].as_object().unwrap();
        let mut keys: Vec<_> = durations.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "cache_hit",
                "cache_miss",
                "compute_infer",
                "compute_input",
                "compute_output",
                "fail",
                "queue",
                "success"
            ]
        );
        assert_eq!(durations["queue"], json!({"count": 0, "ns": 0}));
    }

    #[test]
    fn an_index_entry_leaves_out_what_is_not_known() {
        let entry = IndexEntry { name: "m", version: None, state: None, reason: None };
        assert_eq!(serde_json::to_string(&entry).unwrap(), r#"{"name":"m"}"#);
        let entry = IndexEntry {
            version: Some(VersionId::new(1)),
            state: Some(VersionState::Ready),
            reason: Some(""),
            ..entry
        };
        assert_eq!(
            serde_json::to_string(&entry).unwrap(),
            r#"{"name":"m","version":"1","state":"READY","reason":""}"#
        );
    }

    #[test]
    fn control_requests_know_their_parameters_and_no_others() {
        assert_eq!(IndexRequest::decode(b"").unwrap(), IndexRequest { ready: false });
        assert!(IndexRequest::decode(br#"{"ready":true}"#).unwrap().ready);
        assert!(IndexRequest::decode(br#"{"raedy":true}"#).is_err());
        let unload = |body: &str| UnloadRequest::decode(body.as_bytes());
        assert!(unload(r#"{"parameters":{"unload_dependents":true}}"#).unwrap().unload_dependents);
        assert!(unload(r#"{"parameters":{"unload_dependents":1}}"#).is_err());
        assert!(unload(r#"{"parameters":{"x":true}}"#).is_err());
    }
}
