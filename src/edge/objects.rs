//! The protocol's objects: health, metadata, configuration, statistics. Read from the live table, never hot.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use serde::Serialize;

use crate::{
    model::{TensorSpec, VersionId, VersionPolicy},
    monitor::Reason,
    serve::{Entry, Model, RouteError, Serving, Table, Version},
    wire::v2::objects::{
        ConfigInput, ConfigOutput, ConfigParameter, DurationStatistic, DynamicBatching, Health,
        InferenceStatistics, InstanceGroup, MemoryUsage, ModelConfig, ModelMetadata, ModelReady,
        ModelStatistics, ServerMetadata, Statistics, TensorMetadata,
        VersionPolicy as WireVersionPolicy,
    },
};

use super::{
    refusal::Refusal,
    route::{Part, Route, selector},
};

type Answer = Response<Bytes>;

/// What this server can do beyond the protocol's core.
const EXTENSIONS: [&str; 7] = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
];

/// Answers everything but inference and the repository API.
pub(super) fn answer(
    serving: &Serving,
    table: &Table,
    route: &Route<'_>,
) -> Result<Answer, Refusal> {
    match route {
        Route::ServerMetadata => json(&ServerMetadata {
            name: "tidegate",
            version: env!("CARGO_PKG_VERSION"),
            extensions: &EXTENSIONS,
        }),
        Route::Live => match serving.watchdog().ailment() {
            None => json(&Health { live: true, ready: serving.obstacles().is_empty() }),
            Some(ailment) => Err(Refusal::unavailable(Reason::NotReady, ailment)),
        },
        Route::Ready => ready(serving),
        Route::Models => models(table),
        Route::AllStatistics => json(&all_statistics(table)),
        Route::Model { model, version, part } => {
            of_model(serving, table, model, version.as_deref(), *part)
        }
        Route::SharedMemoryStatus => json::<[(); 0]>(&[]),
        Route::SharedMemory => Err(unsupported("shared memory; send tensors in the request")),
        Route::Tracing => Err(unsupported("trace settings")),
        Route::Logging => {
            Err(unsupported("log settings at run time; set logs.level in tidegate.toml"))
        }
        Route::Repository => Err(Refusal::nothing_here()),
    }
}

fn unsupported(what: &str) -> Refusal {
    let text = format!("tidegate does not offer {what}");
    Refusal::new(Reason::Unsupported, StatusCode::NOT_IMPLEMENTED, text)
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<Answer, Refusal> {
    let body = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "an object could not be written");
        Refusal::internal("the answer could not be written")
    })?;
    let mut response = Response::new(Bytes::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn ready(serving: &Serving) -> Result<Answer, Refusal> {
    let obstacles = serving.obstacles();
    if obstacles.is_empty() {
        return json(&Health { live: true, ready: true });
    }
    Err(Refusal::unavailable(Reason::NotReady, obstacles.join("; ")))
}

/// KServe's list of models.
fn models(table: &Table) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Models<'a> {
        models: Vec<&'a str>,
    }
    json(&Models { models: table.models().iter().map(|model| model.name.as_str()).collect() })
}

fn of_model(
    serving: &Serving,
    table: &Table,
    name: &str,
    asked: Option<&str>,
    part: Part,
) -> Result<Answer, Refusal> {
    let model = table.model(name).ok_or_else(|| table.missing(name))?;
    match part {
        Part::Statistics => json(&statistics_of(model, asked)?),
        Part::Tracing => Err(unsupported("trace settings")),
        Part::Generate => Err(unsupported("text generation")),
        Part::Feedback => Err(Refusal::nothing_here()),
        Part::Ready | Part::Metadata | Part::Config | Part::Infer => {
            let version = match model.route(selector(asked)) {
                // A request for it is answered; who waits until it is ready would wait for ever.
                Err(RouteError::Asleep { .. }) if part == Part::Ready => {
                    return json(&ModelReady { name: &model.name, ready: true });
                }
                routed => routed?,
            };
            match part {
                Part::Ready => json(&ModelReady { name: &model.name, ready: true }),
                Part::Metadata => json(&metadata(model, version, asked.is_some())),
                _ => json(&config(version, serving)),
            }
        }
    }
}

fn metadata<'a>(model: &'a Model, version: &'a Version, asked: bool) -> ModelMetadata<'a> {
    let versions = if asked {
        vec![version.id()]
    } else {
        model.ready().map(|version| version.id()).collect()
    };
    let signature = version.signature();
    ModelMetadata {
        name: &model.name,
        versions,
        platform: platform(version),
        inputs: signature.inputs.iter().map(TensorMetadata::from).collect(),
        outputs: signature.outputs.iter().map(TensorMetadata::from).collect(),
    }
}

/// Clients choose by these words; for tract, which runs the same format, there is no other.
fn platform(version: &Version) -> &'static str {
    match version.parts().engine {
        "onnxruntime" => "onnxruntime_onnx",
        _ => "tract_onnx",
    }
}

fn config<'a>(version: &'a Version, serving: &Serving) -> ModelConfig<'a> {
    let (signature, parts) = (version.signature(), version.parts());
    let batched = version.is_batched();
    let outputs = signature.outputs.iter().map(|spec| {
        let declared = parts.description.outputs.iter().find(|declared| declared.name == spec.name);
        let label_filename =
            declared.and_then(|declared| declared.label_filename.as_deref()).unwrap_or("");
        ConfigOutput { label_filename, ..ConfigOutput::new(spec, batched) }
    });
    let required = signature.inputs.iter().map(|spec| ConfigInput::new(spec, batched));
    let optional = signature.optional.iter();
    let optional = optional.map(|spec| ConfigInput {
        optional: true,
        ..ConfigInput::new(spec, begins_open(spec) && batched)
    });
    let batching = parts.description.dynamic_batching.as_ref().map(|batching| DynamicBatching {
        preferred_batch_size: batching.preferred_batch_size.clone(),
        max_queue_delay_microseconds: u64::try_from(batching.queue_delay_max.as_micros())
            .unwrap_or(u64::MAX),
    });
    let parameters = parts.description.parameters.iter();
    ModelConfig {
        name: &parts.model,
        platform: platform(version),
        backend: parts.engine,
        version_policy: match &parts.description.version_policy {
            VersionPolicy::Latest(n) => WireVersionPolicy::Latest { num_versions: *n },
            VersionPolicy::All => WireVersionPolicy::All {},
            VersionPolicy::Specific(ids) => WireVersionPolicy::Specific {
                versions: ids.iter().map(|id| VersionId::number(*id)).collect(),
            },
        },
        max_batch_size: u32::try_from(version.rows_max(serving.settings())).unwrap_or(u32::MAX),
        input: required.chain(optional).collect(),
        output: outputs.collect(),
        instance_group: vec![InstanceGroup {
            name: &parts.model,
            kind: "KIND_CPU",
            count: u32::try_from(version.sessions()).unwrap_or(u32::MAX),
        }],
        dynamic_batching: batching,
        parameters: parameters
            .map(|(key, value)| (key.as_str(), ConfigParameter { string_value: value }))
            .collect(),
        model_warmup: [],
    }
}

/// True if the first dimension is open, as that of a batch is.
fn begins_open(spec: &TensorSpec) -> bool {
    spec.client_dims().is_some_and(|dims| dims.first() == Some(&-1))
}

fn all_statistics(table: &Table) -> Statistics {
    let versions = table.models().into_iter().flat_map(Model::ready);
    Statistics { model_stats: versions.map(|version| statistics(version)).collect() }
}

fn statistics_of(model: &Model, asked: Option<&str>) -> Result<Statistics, Refusal> {
    if asked.is_some() {
        let version = model.route(selector(asked))?;
        return Ok(Statistics { model_stats: vec![statistics(version)] });
    }
    if !model.versions.iter().any(Entry::stands) {
        model.route(selector(None))?;
    }
    Ok(Statistics { model_stats: model.ready().map(|version| statistics(version)).collect() })
}

fn statistics(version: &Version) -> ModelStatistics {
    let (parts, totals) = (version.parts(), version.parts().recorder.totals());
    let statistic = |count: u64, duration: std::time::Duration| DurationStatistic {
        count,
        ns: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
    };
    let last = totals.last.map_or(0, |last| u64::try_from(last.as_millis()).unwrap_or(u64::MAX));
    ModelStatistics {
        name: parts.model.to_string(),
        version: parts.id.to_string(),
        last_inference: last,
        inference_count: totals.rows,
        execution_count: totals.executions,
        inference_stats: InferenceStatistics {
            success: statistic(totals.success, totals.phases.total),
            fail: statistic(totals.failed, totals.failed_time),
            queue: statistic(totals.success, totals.phases.queue),
            compute_input: statistic(totals.success, totals.phases.decode),
            compute_infer: statistic(totals.success, totals.phases.run),
            compute_output: statistic(totals.success, totals.phases.encode),
            ..InferenceStatistics::default()
        },
        batch_stats: Vec::new(),
        memory_usage: vec![MemoryUsage {
            kind: "CPU".to_owned(),
            id: 0,
            byte_size: parts.size_bytes,
        }],
    }
}
