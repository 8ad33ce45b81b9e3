//! From a listed version to one that can answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    engine::{
        Engine, Engines, LoadError, ModelFile, Session, SessionOptions,
        onnx::{self, OnnxError},
    },
    model::{EngineChoice, Input, ModelDescription, ModelName, Signature, TensorSpec, VersionId},
    monitor::Monitor,
    serve::{Version, VersionParts},
    source::{Artifact, ListedVersion, SourceError},
    tensor::{Data, DataType, Shape, Strings, Tensor},
};

use super::{Golden, GoldenError};

/// Loads versions.
#[derive(Debug)]
pub struct Loader {
    /// The engines of this process.
    pub engines: Engines,
    /// Where versions are counted.
    pub monitor: Arc<Monitor>,
    /// Sessions of each version.
    pub sessions: usize,
    /// Threads within one run, where a description says nothing.
    pub intra_op_threads: usize,
    /// Runs before a version answers.
    pub warmup_runs: u32,
    /// Engines that the operator chose; they win over what a repository says.
    pub chosen: BTreeMap<ModelName, EngineChoice>,
}

/// Why a version cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// Its files cannot be read.
    #[error("{0}")]
    Source(String, #[source] SourceError),
    /// Its file is not a model that may be given to an engine.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// It needs operators that are not there.
    #[error("{0}")]
    Operators(String),
    /// External data are shorter than the model says.
    #[error(
        "tensor `{tensor}` needs {needed} bytes of `{location}`, which has {actual}; export the model again"
    )]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// The file, as the model names it.
        location: String,
        /// Bytes that the tensor needs from the file's start.
        needed: u64,
        /// Bytes that the file has.
        actual: u64,
    },
    /// The engine refuses it.
    #[error(transparent)]
    Engine(#[from] LoadError),
    /// It is not what its description says.
    #[error("the description and the model disagree: {0}")]
    Description(String),
    /// Loading it ran into a mistake of ours.
    #[error("loading it ended in a panic, which is a bug of tidegate; the log has it")]
    Panicked,
    /// It does not give the outputs that it should.
    #[error(transparent)]
    Golden(#[from] GoldenError),
}

impl LoadFailure {
    /// Whether trying again may help although the folder looks the same.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Source(_, cause) if cause.retry_helps())
    }
}

impl From<SourceError> for LoadFailure {
    fn from(error: SourceError) -> Self {
        Self::Source(error.chain(), error)
    }
}

impl Loader {
    /// Threads within one run of a model.
    pub(super) fn intra_op_threads(&self, description: &ModelDescription) -> usize {
        let declared = description.intra_op_threads.and_then(|n| usize::try_from(n).ok());
        declared.unwrap_or(self.intra_op_threads)
    }

    /// Reads, checks, loads and warms a version. May take long; not for a thread that answers requests.
    ///
    /// A panic on the way costs this version only.
    pub fn load(
        &self,
        model: &ModelName,
        id: VersionId,
        listed: &ListedVersion,
        description: &Arc<ModelDescription>,
    ) -> Result<Version, LoadFailure> {
        let load = std::panic::AssertUnwindSafe(|| self.try_load(model, id, listed, description));
        std::panic::catch_unwind(load).unwrap_or(Err(LoadFailure::Panicked))
    }

    fn try_load(
        &self,
        model: &ModelName,
        id: VersionId,
        listed: &ListedVersion,
        description: &Arc<ModelDescription>,
    ) -> Result<Version, LoadFailure> {
        let artifact = listed.read()?;
        let file = checked(&artifact)?;
        let golden = artifact.golden.as_deref().map(Golden::parse).transpose()?;
        let choice = self.chosen.get(model).copied().unwrap_or(description.engine);
        let engine = self.engines.choose(choice)?;
        let clock = self.monitor.clock();
        let begin = clock.now();
        let options = SessionOptions { intra_op_threads: self.intra_op_threads(description) };
        let mut first = engine.load(&file, options)?;
        let signature = first.signature().clone();
        agree(description, &signature)?;
        let mut load = clock.now() - begin;
        let mut notes = description.notes.clone();
        if !description.warmup.is_empty() {
            notes.push(
                "model_warmup is not run; golden.json beside the model warms it up".to_owned(),
            );
        }
        let warmed = self.prove(engine, &mut *first, golden.as_ref(), &mut notes)?;
        let begin = clock.now();
        let mut sessions = vec![first];
        // Fewer than one per worker would make requests wait for each other: a repository's count is not followed.
        for _ in 1..self.sessions {
            sessions.push(engine.load(&file, options)?);
        }
        load += clock.now() - begin;
        let external: usize = file.external.iter().map(|(_, bytes)| bytes.len()).sum();
        let parts = VersionParts {
            model: model.clone(),
            id,
            class_names: class_names(description, &signature),
            signature,
            description: Arc::clone(description),
            recorder: self.monitor.version(model, id),
            engine: engine.name(),
            digest: artifact.sha256.clone(),
            size_bytes: (file.bytes.len() + external) as u64,
            load,
            warmup: warmed.total,
            run: warmed.fastest,
            notes,
        };
        Ok(Version::new(parts, sessions))
    }

    /// Golden outputs, then warm-up.
    fn prove(
        &self,
        engine: &dyn Engine,
        session: &mut dyn Session,
        golden: Option<&Golden>,
        notes: &mut Vec<String>,
    ) -> Result<Warmed, LoadFailure> {
        match golden {
            Some(golden) => golden.check(session)?,
            None if engine.name() == "tract" => notes.push(
                "tract runs this version unproven: add golden.json beside the model (tract gives wrong labels for some \
                 two-class forests)"
                    .to_owned(),
            ),
            None => {}
        }
        let signature = session.signature();
        let real = golden.and_then(|golden| golden.first_inputs(signature));
        let made_up = real.is_none();
        let Some(inputs) = real.or_else(|| signature.inputs.iter().map(made_up_input).collect())
        else {
            notes.push(
                "not warmed: its smallest input is too large to make up; add golden.json"
                    .to_owned(),
            );
            return Ok(Warmed::default());
        };
        let wanted: Vec<usize> = (0..signature.outputs.len()).collect();
        let mut warmed = Warmed::default();
        for _ in 0..self.warmup_runs {
            let inputs = inputs.clone();
            let begin = self.monitor.clock().now();
            if let Err(error) = session.run(inputs, &wanted) {
                // Zeros are not a request that the model must be able to answer.
                let what = if made_up { "made-up" } else { "golden" };
                notes.push(format!(
                    "not warmed: it does not run on {what} inputs ({error}); add golden.json"
                ));
                return Ok(Warmed::default());
            }
            let took = self.monitor.clock().now() - begin;
            warmed.total += took;
            warmed.fastest = Some(warmed.fastest.map_or(took, |fastest| fastest.min(took)));
        }
        Ok(warmed)
    }
}

#[derive(Debug, Default)]
struct Warmed {
    total: Duration,
    fastest: Option<Duration>,
}

/// The bytes for the engine, after our own look at them; external data are resolved here, never by an engine.
fn checked(artifact: &Artifact) -> Result<ModelFile, LoadFailure> {
    let summary = onnx::summarize(&artifact.model, &onnx::Limits::default())?;
    let foreign = onnx::unsupported_domains(&summary);
    if !foreign.is_empty() {
        return Err(LoadFailure::Operators(foreign.join("; ")));
    }
    let mut files: BTreeMap<String, Arc<[u8]>> = BTreeMap::new();
    for tensor in &summary.external_data {
        if !files.contains_key(&tensor.location) {
            let bytes = artifact.read_beside(&tensor.location)?;
            files.insert(tensor.location.clone(), Arc::from(&*bytes));
        }
        let actual = files[&tensor.location].len() as u64;
        let length = tensor.length.or(tensor.bytes_needed).unwrap_or(0);
        let needed = tensor.offset.saturating_add(length);
        if needed > actual {
            return Err(LoadFailure::ExternalData {
                tensor: tensor.tensor.clone(),
                location: tensor.location.clone(),
                needed,
                actual,
            });
        }
    }
    // All of it from one state of the folder.
    artifact.confirm()?;
    Ok(ModelFile { bytes: artifact.model.clone(), external: files.into_iter().collect() })
}

/// A description may say less than the model, not something else.
fn agree(description: &ModelDescription, signature: &Signature) -> Result<(), LoadFailure> {
    let batched = description.max_batch_size.is_some_and(|rows| rows > 0);
    if batched && !signature.is_batchable() {
        return Err(LoadFailure::Description(
            "max_batch_size is above 0, but not every input and output of the model begins with an open dimension; \
             set it to 0"
                .to_owned(),
        ));
    }
    let roles = [
        ("input", &description.inputs, &signature.inputs),
        ("output", &description.outputs, &signature.outputs),
    ];
    for (role, declared, actual) in roles {
        for tensor in declared {
            let Some(spec) = actual.iter().find(|spec| spec.name == tensor.name) else {
                let names: Vec<_> = actual.iter().map(|spec| format!("`{}`", spec.name)).collect();
                let text =
                    format!("the model has no {role} `{}`, only {}", tensor.name, names.join(", "));
                return Err(LoadFailure::Description(text));
            };
            if tensor.datatype.is_some_and(|datatype| datatype != spec.datatype) {
                let declared = tensor.datatype.map_or("", DataType::name);
                let text = format!("{role} `{}` is {}, not {declared}", spec.name, spec.datatype);
                return Err(LoadFailure::Description(text));
            }
            if let (Some(dims), Some(reshape)) = (&tensor.dims, &tensor.reshape)
                && dims != reshape
                && !(reshape.is_empty() && dims[..] == [1])
            {
                let text = format!(
                    "{role} `{}` is reshaped from {dims:?} to {reshape:?}, which is not supported; declare the model's own \
                     shape",
                    spec.name
                );
                return Err(LoadFailure::Description(text));
            }
            if let Some(dims) = &tensor.dims
                && !dims_agree(dims, tensor.reshape.as_deref(), spec, batched)
            {
                let text = format!(
                    "{role} `{}` has the shape {:?} in the model, {dims:?} in the description{}",
                    spec.name,
                    spec.protocol_dims(),
                    if batched { " (which leaves the batch out)" } else { "" }
                );
                return Err(LoadFailure::Description(text));
            }
        }
    }
    Ok(())
}

fn dims_agree(dims: &[i64], reshape: Option<&[i64]>, spec: &TensorSpec, batched: bool) -> bool {
    let Some(actual) = &spec.dims else { return true };
    let dims = reshape.unwrap_or(dims);
    let actual = if batched { actual.get(1..).unwrap_or_default() } else { actual };
    // Triton lets a scalar per row be declared as one dimension of 1.
    let scalar = batched && actual.is_empty() && dims == [1];
    scalar
        || (dims.len() == actual.len()
            && dims
                .iter()
                .zip(actual)
                .all(|(declared, own)| declared == own || *declared < 0 || *own < 0))
}

fn class_names(description: &ModelDescription, signature: &Signature) -> Vec<Option<Vec<String>>> {
    signature.outputs.iter().map(|spec| description.class_names.get(&spec.name).cloned()).collect()
}

/// Zeros, or empty strings, with 1 for every open dimension; `None` if that is too much to make up.
fn made_up_input(spec: &TensorSpec) -> Option<Input> {
    const ELEMENTS_MAX: usize = 1 << 24;
    let dims: Vec<i64> =
        spec.protocol_dims().iter().map(|dim| if *dim < 0 { 1 } else { *dim }).collect();
    let shape = Shape::new(&dims)?;
    let count = shape.element_count().filter(|count| *count <= ELEMENTS_MAX)?;
    let tensor = if let Some(size) = spec.datatype.size() {
        Tensor::from_raw(spec.datatype, shape, vec![0; count * size].into())
    } else {
        let strings = std::iter::repeat_n("", count).collect::<Strings>();
        Tensor::new(shape, Data::Bytes(strings))
    };
    Some(Input { name: spec.name.clone(), tensor: tensor.ok()? })
}
