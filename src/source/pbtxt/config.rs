//! From the fields of `inference.ModelConfig` to a description.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    model::{
        DeclaredTensor, DynamicBatching, FileName, ModelDescription, VersionId, VersionPolicy,
        Warmup, WarmupData, WarmupInput,
    },
    source::error::shown,
    tensor::DataType,
};

use super::{
    schema::{Schema, many, nearest, one},
    text::{Fault, Field},
};

const MODEL: Schema = Schema {
    place: "a model",
    single: &[
        "name",
        "platform",
        "backend",
        "runtime",
        "version_policy",
        "max_batch_size",
        "optimization",
        "default_model_filename",
        "model_operations",
        "model_transaction_policy",
        "model_repository_agents",
        "response_cache",
        "model_metrics",
    ],
    repeated: &[
        "input",
        "output",
        "batch_input",
        "batch_output",
        "instance_group",
        "cc_model_filenames",
        "metric_tags",
        "parameters",
        "model_warmup",
    ],
    choice: &["dynamic_batching", "sequence_batching", "ensemble_scheduling"],
};

/// What a model may ask for and is not served here: serving it without would give other answers.
const REFUSED: [(&str, &str); 6] = [
    ("ensemble_scheduling", "pipelines of models are not served; call the models one by one"),
    ("sequence_batching", "models that keep state between requests are not served"),
    ("model_repository_agents", "repository agents are not run; publish the model as it shall be"),
    ("model_operations", "libraries of custom operators are not loaded; use the standard ones"),
    ("batch_input", "inputs made from the batch are not filled; give the model plain inputs"),
    ("batch_output", "outputs are not scattered over a batch; give the model plain outputs"),
];

/// What a model may ask for and does not need for the same answers; said in a note.
const PASSED_OVER: [(&str, &str); 5] = [
    ("optimization", "not used: the engine optimises on its own"),
    ("runtime", "not used: no backend library is loaded"),
    ("cc_model_filenames", "not used: models run on the CPU"),
    ("metric_tags", "not used: metrics carry the model's name and version only"),
    ("model_metrics", "not used: histograms have buckets of their own"),
];

/// Inputs, and outputs; real models have few.
const TENSORS_MAX: usize = 1_024;
/// Dimensions of one tensor.
const RANK_MAX: usize = 32;
/// Instances of one model, and threads of one instance.
const PARALLEL_MAX: u32 = 1_024;

/// Turns the fields of a file into a description.
pub(super) fn describe(fields: &[Field<'_>]) -> Result<ModelDescription, Fault> {
    MODEL.check(fields)?;
    refuse(fields)?;
    let mut notes = Vec::new();
    for (name, what) in PASSED_OVER {
        if one(fields, name).is_some() {
            notes.push(format!("`{name}` is {what}"));
        }
    }
    passed_switches(fields, &mut notes)?;
    let parameters = parameters(fields)?;
    let text = |name| one(fields, name).map(Field::text).transpose();
    Ok(ModelDescription {
        name: text("name")?.filter(|name| !name.is_empty()).map(str::to_owned),
        max_batch_size: one(fields, "max_batch_size").map(max_batch_size).transpose()?,
        version_policy: one(fields, "version_policy")
            .map_or(Ok(VersionPolicy::default()), policy)?,
        default_model_filename: filename(fields)?,
        inputs: tensors(fields, "input", &INPUT, &mut notes)?,
        outputs: tensors(fields, "output", &OUTPUT, &mut notes)?,
        instance_count: instances(fields, &mut notes)?,
        intra_op_threads: intra_op_threads(fields, &parameters)?,
        dynamic_batching: one(fields, "dynamic_batching").map(batching).transpose()?,
        warmup: many(fields, "model_warmup").map(warmup).collect::<Result<_, _>>()?,
        parameters,
        notes,
        ..ModelDescription::default()
    })
}

/// Says no to what is not served here, by its name.
fn refuse(fields: &[Field<'_>]) -> Result<(), Fault> {
    for (name, why) in REFUSED {
        if let Some(field) = one(fields, name) {
            return Err(Fault::new(field.at, format!("`{name}` is not supported: {why}")));
        }
    }
    for (name, served) in [("platform", "onnxruntime_onnx"), ("backend", "onnxruntime")] {
        let Some(field) = one(fields, name) else { continue };
        let asked = field.text()?;
        if !asked.is_empty() && asked != served {
            let asked = shown(asked);
            let what = format!("{name} `{asked}` is not served here; only `{served}` is");
            return Err(Fault::new(field.value_at, what));
        }
    }
    if let Some(policy) = one(fields, "model_transaction_policy") {
        let fields = policy.block(&Schema::of("a transaction policy", &["decoupled"]))?;
        if let Some(decoupled) = one(fields, "decoupled")
            && decoupled.flag()?
        {
            let what = "`decoupled` models are not served; each request has one response here";
            return Err(Fault::new(decoupled.at, what));
        }
    }
    Ok(())
}

fn passed_switches(fields: &[Field<'_>], notes: &mut Vec<String>) -> Result<(), Fault> {
    if let Some(cache) = one(fields, "response_cache") {
        let fields = cache.block(&Schema::of("a response cache", &["enable"]))?;
        if one(fields, "enable").map_or(Ok(false), Field::flag)? {
            notes.push("`response_cache` is not used: every request is computed".to_owned());
        }
    }
    Ok(())
}

fn max_batch_size(field: &Field<'_>) -> Result<u32, Fault> {
    let rows: i32 = field.int()?;
    u32::try_from(rows).map_err(|_| {
        let what = format!("`max_batch_size` is {rows}; it must be at least 0");
        Fault::new(field.value_at, what)
    })
}

fn filename(fields: &[Field<'_>]) -> Result<FileName, Fault> {
    let Some(field) = one(fields, "default_model_filename") else {
        return Ok(FileName::default());
    };
    match field.text()? {
        "" => Ok(FileName::default()),
        name => FileName::parse(name).map_err(|error| {
            Fault::new(field.value_at, format!("`default_model_filename`: {error}"))
        }),
    }
}

fn policy(field: &Field<'_>) -> Result<VersionPolicy, Fault> {
    let schema = Schema {
        place: "a version policy",
        single: &[],
        repeated: &[],
        choice: &["latest", "all", "specific"],
    };
    let Some(choice) = field.block(&schema)?.first() else {
        return Ok(VersionPolicy::default());
    };
    match choice.name {
        "latest" => {
            let fields = choice.block(&Schema::of("`latest`", &["num_versions"]))?;
            match one(fields, "num_versions").map_or(Ok(1), Field::int)? {
                0 => Err(Fault::new(choice.at, "`num_versions` is 0; it must be at least 1")),
                count => Ok(VersionPolicy::Latest(count)),
            }
        }
        "all" => choice.block(&Schema::of("`all`", &[])).map(|_| VersionPolicy::All),
        _ => {
            let schema =
                Schema { place: "`specific`", single: &[], repeated: &["versions"], choice: &[] };
            let fields = choice.block(&schema)?;
            let versions: Vec<_> = many(fields, "versions")
                .map(|version| Ok(VersionId::new(version.int()?)))
                .collect::<Result<_, Fault>>()?;
            if versions.is_empty() {
                return Err(Fault::new(
                    choice.at,
                    "`specific` names no versions; name at least one",
                ));
            }
            Ok(VersionPolicy::Specific(versions))
        }
    }
}

const INPUT: Schema = Schema {
    place: "an input",
    single: &[
        "name",
        "data_type",
        "format",
        "reshape",
        "is_shape_tensor",
        "allow_ragged_batch",
        "optional",
        "is_non_linear_format_io",
    ],
    repeated: &["dims"],
    choice: &[],
};

const OUTPUT: Schema = Schema {
    place: "an output",
    single: &[
        "name",
        "data_type",
        "reshape",
        "label_filename",
        "is_shape_tensor",
        "is_non_linear_format_io",
    ],
    repeated: &["dims"],
    choice: &[],
};

fn tensors(
    fields: &[Field<'_>],
    kind: &'static str,
    schema: &Schema,
    notes: &mut Vec<String>,
) -> Result<Vec<DeclaredTensor>, Fault> {
    let mut tensors: Vec<DeclaredTensor> = Vec::new();
    for field in many(fields, kind) {
        let tensor = tensor(field, schema, notes)?;
        if tensors.iter().any(|before| before.name == tensor.name) {
            let what = format!("{kind} `{}` is declared twice; keep one", shown(&tensor.name));
            return Err(Fault::new(field.at, what));
        }
        if tensors.len() == TENSORS_MAX {
            return Err(Fault::new(field.at, format!("there are more than {TENSORS_MAX} {kind}s")));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn tensor(
    field: &Field<'_>,
    schema: &Schema,
    notes: &mut Vec<String>,
) -> Result<DeclaredTensor, Fault> {
    let fields = field.block(schema)?;
    let text = |name| one(fields, name).map_or(Ok(""), Field::text);
    let flag = |name| one(fields, name).map_or(Ok(false), Field::flag);
    let name = text("name")?;
    if name.is_empty() {
        return Err(Fault::new(field.value_at, format!("{} needs a `name`", schema.place)));
    }
    for special in ["is_shape_tensor", "is_non_linear_format_io"] {
        if flag(special)? {
            let what = format!("`{special}` is not supported: it is for TensorRT models only");
            return Err(Fault::new(one(fields, special).map_or(field.at, |flag| flag.at), what));
        }
    }
    if flag("allow_ragged_batch")? {
        let name = shown(name);
        notes.push(format!(
            "`allow_ragged_batch` of `{name}` is not used: rows of one shape are joined"
        ));
    }
    let reshape = one(fields, "reshape").map(|reshape| {
        let schema = Schema { place: "a reshape", single: &[], repeated: &["shape"], choice: &[] };
        dims(reshape.block(&schema)?, "shape")
    });
    let declared = one(fields, "dims").map(|_| dims(fields, "dims")).transpose()?;
    let labels = text("label_filename")?;
    Ok(DeclaredTensor {
        name: name.to_owned(),
        datatype: one(fields, "data_type").map(datatype).transpose()?,
        dims: declared,
        reshape: reshape.transpose()?,
        optional: flag("optional")?,
        label_filename: (!labels.is_empty()).then(|| labels.to_owned()),
    })
}

fn datatype(field: &Field<'_>) -> Result<DataType, Fault> {
    let name = field.word("TYPE_FP32")?;
    DataType::parse_config_name(name).ok_or_else(|| {
        let known = DataType::ALL.into_iter().map(DataType::config_name);
        let near = match (name, nearest(name, known)) {
            ("TYPE_BYTES", _) => "; did you mean `TYPE_STRING`?".to_owned(),
            (_, Some(near)) => format!("; did you mean `{near}`?"),
            (_, None) => ", such as `TYPE_FP32`".to_owned(),
        };
        Fault::new(field.value_at, format!("`{}` is not a data type{near}", shown(name)))
    })
}

fn dims(fields: &[Field<'_>], name: &'static str) -> Result<Vec<i64>, Fault> {
    let mut dims = Vec::new();
    for field in many(fields, name) {
        let dim: i64 = field.int()?;
        if dim == 0 || dim < -1 {
            let what =
                format!("a dimension is {dim}; it must be at least 1, or -1 for an open one");
            return Err(Fault::new(field.value_at, what));
        }
        if dims.len() == RANK_MAX {
            return Err(Fault::new(field.at, format!("there are more than {RANK_MAX} dimensions")));
        }
        dims.push(dim);
    }
    Ok(dims)
}

fn instances(fields: &[Field<'_>], notes: &mut Vec<String>) -> Result<Option<u32>, Fault> {
    let schema = Schema {
        place: "an instance group",
        single: &["name", "kind", "count", "rate_limiter", "passive", "host_policy"],
        repeated: &["gpus", "secondary_devices", "profile"],
        choice: &[],
    };
    let mut total = None;
    let mut wants_gpu = false;
    for group in many(fields, "instance_group") {
        let fields = group.block(&schema)?;
        wants_gpu |= one(fields, "gpus").is_some();
        if let Some(field) = one(fields, "kind") {
            const KINDS: [&str; 4] = ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"];
            let kind = field.word("KIND_CPU")?;
            if !KINDS.contains(&kind) {
                let what = format!("`{}` is not a kind of instance; use `KIND_CPU`", shown(kind));
                return Err(Fault::new(field.value_at, what));
            }
            wants_gpu |= kind == "KIND_GPU";
        }
        // 0 is what an unset count looks like: one instance.
        let count: u32 = one(fields, "count").map_or(Ok(1), Field::int)?;
        let sum = u64::from(total.unwrap_or(0)) + u64::from(count.max(1));
        let sum = u32::try_from(sum).ok().filter(|sum| *sum <= PARALLEL_MAX).ok_or_else(|| {
            Fault::new(group.at, format!("there are more than {PARALLEL_MAX} instances"))
        })?;
        total = Some(sum);
    }
    if wants_gpu {
        notes.push("`instance_group` asks for a GPU: the model runs on the CPU".to_owned());
    }
    Ok(total)
}

fn parameters(fields: &[Field<'_>]) -> Result<BTreeMap<String, String>, Fault> {
    let mut parameters = BTreeMap::new();
    for field in many(fields, "parameters") {
        let entry = field.block(&Schema::of("a parameter", &["key", "value"]))?;
        let key = one(entry, "key").map_or(Ok(""), Field::text)?;
        let value = match one(entry, "value") {
            Some(value) => {
                let value = value.block(&Schema::of("a parameter's value", &["string_value"]))?;
                one(value, "string_value").map_or(Ok(""), Field::text)?
            }
            None => "",
        };
        parameters.insert(key.to_owned(), value.to_owned());
    }
    Ok(parameters)
}

fn intra_op_threads(
    fields: &[Field<'_>],
    parameters: &BTreeMap<String, String>,
) -> Result<Option<u32>, Fault> {
    const KEY: &str = "intra_op_thread_count";
    let Some(value) = parameters.get(KEY).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    match value.trim().parse::<u32>() {
        // 0 leaves it to the engine, as if nothing were said.
        Ok(0) => Ok(None),
        Ok(threads) if threads <= PARALLEL_MAX => Ok(Some(threads)),
        _ => {
            // Of several entries, the last counts.
            let has_key = |field: &&Field<'_>| match &field.value {
                super::text::Value::Block(entry) => {
                    one(entry, "key").is_some_and(|key| key.text().is_ok_and(|key| key == KEY))
                }
                _ => false,
            };
            let at = many(fields, "parameters").filter(has_key).last().map_or(0, |field| field.at);
            let what = format!(
                "parameter `{KEY}` is `{}`; it must be a number from 0 to {PARALLEL_MAX}",
                shown(value)
            );
            Err(Fault::new(at, what))
        }
    }
}

fn batching(field: &Field<'_>) -> Result<DynamicBatching, Fault> {
    let schema = Schema {
        place: "dynamic batching",
        single: &[
            "max_queue_delay_microseconds",
            "preserve_ordering",
            "priority_levels",
            "default_priority_level",
            "default_queue_policy",
        ],
        repeated: &["preferred_batch_size", "priority_queue_policy"],
        choice: &[],
    };
    let fields = field.block(&schema)?;
    let mut batching = DynamicBatching::default();
    for size in many(fields, "preferred_batch_size") {
        match size.int()? {
            0 => {
                let what = "`preferred_batch_size` is 0; it must be at least 1";
                return Err(Fault::new(size.value_at, what));
            }
            rows => batching.preferred_batch_size.push(rows),
        }
    }
    let delay = one(fields, "max_queue_delay_microseconds").map_or(Ok(0), Field::int)?;
    batching.queue_delay_max = Duration::from_micros(delay);
    batching.preserve_ordering = one(fields, "preserve_ordering").map_or(Ok(false), Field::flag)?;
    if let Some(policy) = one(fields, "default_queue_policy") {
        let schema = Schema::of(
            "a queue policy",
            &[
                "timeout_action",
                "default_timeout_microseconds",
                "allow_timeout_override",
                "max_queue_size",
            ],
        );
        let fields = policy.block(&schema)?;
        let number = |name| one(fields, name).map_or(Ok(0), Field::int::<u64>);
        let timeout = number("default_timeout_microseconds")?;
        batching.queue_timeout = (timeout > 0).then(|| Duration::from_micros(timeout));
        let size: u32 = one(fields, "max_queue_size").map_or(Ok(0), Field::int)?;
        batching.queue_size_max = (size > 0).then_some(size);
    }
    Ok(batching)
}

fn warmup(field: &Field<'_>) -> Result<Warmup, Fault> {
    let schema = Schema {
        place: "a warm-up request",
        single: &["name", "batch_size", "count"],
        repeated: &["inputs"],
        choice: &[],
    };
    let fields = field.block(&schema)?;
    let mut inputs = BTreeMap::new();
    for entry in many(fields, "inputs") {
        let (key, input) = warmup_input(entry)?;
        inputs.insert(key, input);
    }
    Ok(Warmup {
        name: one(fields, "name").map_or(Ok(""), Field::text)?.to_owned(),
        batch_size: one(fields, "batch_size").map_or(Ok(0), Field::int)?,
        count: one(fields, "count").map_or(Ok(1), Field::int)?.max(1),
        inputs,
    })
}

fn warmup_input(field: &Field<'_>) -> Result<(String, WarmupInput), Fault> {
    let schema = Schema {
        place: "a warm-up input",
        single: &["data_type"],
        repeated: &["dims"],
        choice: &["zero_data", "random_data", "input_data_file"],
    };
    let entry = field.block(&Schema::of("a warm-up input", &["key", "value"]))?;
    let key = one(entry, "key").map_or(Ok(""), Field::text)?;
    let needs = |what: &str| Fault::new(field.at, format!("a warm-up input needs {what}"));
    let value = one(entry, "value").ok_or_else(|| needs("a `value`"))?;
    let fields = value.block(&schema)?;
    let datatype = one(fields, "data_type").ok_or_else(|| needs("a `data_type`"))?;
    let data = match (one(fields, "random_data"), one(fields, "input_data_file")) {
        (_, Some(file)) => WarmupData::File(file.text()?.to_owned(), None),
        (Some(random), None) if random.flag()? => WarmupData::Random,
        _ => WarmupData::Zero,
    };
    let input =
        WarmupInput { datatype: self::datatype(datatype)?, dims: dims(fields, "dims")?, data };
    Ok((key.to_owned(), input))
}
