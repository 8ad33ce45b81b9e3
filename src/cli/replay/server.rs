//! A replay at a running server: as fast as it answers, or at the pace of the recorded requests.
//!
//! Each connection has one request at a time. What a server refuses is counted by its status and ends nothing.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::{
    app::SystemClock,
    model::{Input, Signature, TensorSpec},
    monitor::Clock as _,
    tensor::{DataType, Tensor},
    validation::{
        Subject,
        replay::{Answers, Job, Pick, Replay, ReplayReport, ReplayRequest},
    },
    wire::v2::{decode_outputs, encode_request},
};

use super::{
    super::client::{self, Line},
    Bar,
    arguments::{ReplayArguments, Speed},
};

/// A version at a server.
struct Remote {
    model: String,
    version: u64,
    signature: Signature,
    rows_max: u64,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    inputs: Vec<Described>,
    #[serde(default)]
    outputs: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    name: String,
    #[serde(alias = "data_type")]
    datatype: String,
    #[serde(alias = "dims")]
    shape: Vec<i64>,
    #[serde(default)]
    optional: bool,
}

#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    max_batch_size: i64,
    #[serde(default)]
    input: Vec<Described>,
}

/// Replays all rows at a server.
pub(super) fn run(
    arguments: &ReplayArguments,
    request: ReplayRequest,
    server: &str,
) -> anyhow::Result<(ReplayReport, Vec<Pick>)> {
    let server = server.trim_end_matches('/');
    let own = Remote::of(server, arguments, &arguments.version)?;
    let other = arguments.against.as_deref();
    let other = other.map(|other| Remote::of(server, arguments, other)).transpose()?;
    if other.as_ref().is_some_and(|other| other.version == own.version) {
        bail!("version {} would be compared with itself; name another with --against", own.version);
    }
    let paths: Vec<String> = std::iter::once(&own).chain(&other).map(Remote::path).collect();
    let replay = Replay::open(request, own.subject(), other.as_ref().map(Remote::subject))?;
    let signatures = std::iter::once(&own).chain(&other).map(|one| one.signature.clone());
    let asked = Asked { server: server.to_owned(), paths, outputs: signatures.collect() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(all(arguments, replay, asked))
}

impl Remote {
    fn of(server: &str, arguments: &ReplayArguments, version: &str) -> anyhow::Result<Self> {
        let model = &arguments.model;
        let get = |path: &str| -> anyhow::Result<Bytes> {
            let (status, body) =
                client::send(&Method::GET, &format!("{server}{path}"), Vec::new())?;
            if status != StatusCode::OK {
                let text = String::from_utf8_lossy(&body).into_owned();
                bail!("{server} has no version `{version}` of {model}: {status} {}", text.trim());
            }
            Ok(body)
        };
        let base = format!("/v2/models/{model}");
        let newest = |metadata: &Metadata| {
            metadata.versions.iter().filter_map(|version| version.parse::<u64>().ok()).max()
        };
        let version = match version.parse::<u64>() {
            Ok(version) => version,
            Err(_) if version == "latest" => {
                let metadata = serde_json::from_slice(&get(&base)?)?;
                newest(&metadata).context("the server does not say which versions it has")?
            }
            Err(_) => bail!("`{version}` is no number; at a server name the version by its number"),
        };
        let base = format!("{base}/versions/{version}");
        let metadata: Metadata = serde_json::from_slice(&get(&base)?)
            .with_context(|| format!("{server}{base} is no metadata of a model"))?;
        // Other servers may have none.
        let config: Configuration = get(&format!("{base}/config"))
            .ok()
            .and_then(|body| serde_json::from_slice(&body).ok())
            .unwrap_or_default();
        let specs = |all: Vec<Described>| {
            all.into_iter().map(Described::spec).collect::<anyhow::Result<Vec<_>>>()
        };
        let is_batched = config.max_batch_size > 0;
        let optional = config.input.into_iter().filter(|input| input.optional).map(|mut input| {
            if is_batched {
                input.shape.insert(0, -1);
            }
            input
        });
        let signature = Signature {
            inputs: specs(metadata.inputs)?,
            optional: specs(optional.collect())?,
            outputs: specs(metadata.outputs)?,
            ..Signature::default()
        };
        let rows_max = match u64::try_from(config.max_batch_size) {
            Ok(most @ 1..) => most,
            _ if signature.is_batchable() => u64::from(u32::MAX),
            _ => 0,
        };
        Ok(Self { model: model.to_string(), version, signature, rows_max })
    }

    fn path(&self) -> String {
        format!("/v2/models/{}/versions/{}/infer", self.model, self.version)
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            model: self.model.clone(),
            version: self.version,
            signature: &self.signature,
            rows_max: self.rows_max,
            class_names: &[],
            feature_names: Vec::new(),
            predict: Box::new(|_| Err("it is asked at a server".to_owned())),
        }
    }
}

impl Described {
    fn spec(self) -> anyhow::Result<TensorSpec> {
        let datatype = DataType::parse(&self.datatype)
            .or_else(|| DataType::parse_config_name(&self.datatype))
            .with_context(|| format!("the server names a datatype `{}`", self.datatype))?;
        Ok(TensorSpec::new(self.name, datatype, Some(self.shape)))
    }
}

/// The versions as they are asked.
struct Asked {
    server: String,
    paths: Vec<String>,
    /// By version: its signature.
    outputs: Vec<Signature>,
}

/// Sends all requests, each connection one at a time.
async fn all(
    arguments: &ReplayArguments,
    mut replay: Replay<'_>,
    asked: Asked,
) -> anyhow::Result<(ReplayReport, Vec<Pick>)> {
    let asked = std::sync::Arc::new(asked);
    let bar = Bar::new();
    let lines = (0..arguments.connections).map(|_| Line::new(&asked.server));
    let mut idle: Vec<Line> = lines.collect::<anyhow::Result<_>>()?;
    let mut busy = JoinSet::new();
    let mut pace = Pace { speed: arguments.speed, first: None };
    let (mut waiting, mut is_over) = (None::<Job>, false);
    loop {
        if waiting.is_none() && !is_over && !idle.is_empty() {
            waiting = replay.next_job()?;
            is_over = waiting.is_none();
        }
        if waiting.is_none() && busy.is_empty() {
            break;
        }
        let rest = waiting.as_ref().map_or(Duration::MAX, |job| pace.rest(job));
        if rest.is_zero()
            && let Some(line) = idle.pop()
        {
            let Some(job) = waiting.take() else { continue };
            busy.spawn(ask(line, std::sync::Arc::clone(&asked), job));
            continue;
        }
        let pause = if idle.is_empty() { Duration::MAX } else { rest };
        tokio::select! {
            Some(done) = busy.join_next() => {
                let (line, job, answers) = done?;
                idle.push(line);
                replay.take(&job, answers);
                bar.show(replay.progress());
            }
            () = tokio::time::sleep(pause) => {}
        }
    }
    drop(bar);
    Ok(replay.finish()?)
}

/// The pace of the recorded requests.
struct Pace {
    speed: Speed,
    /// The first request: when it was recorded, and when it was sent.
    first: Option<(Duration, std::time::Instant)>,
}

impl Pace {
    /// Time until a request is due.
    fn rest(&mut self, job: &Job) -> Duration {
        let (Speed::Times(speed), Some(at)) = (self.speed, job.at) else { return Duration::ZERO };
        let now = SystemClock.now();
        let (recorded, sent) = *self.first.get_or_insert((at, now));
        let due = at.saturating_sub(recorded).div_f64(speed);
        due.saturating_sub(now.saturating_duration_since(sent))
    }
}

/// Asks each version for a run.
async fn ask(mut line: Line, asked: std::sync::Arc<Asked>, mut job: Job) -> (Line, Job, Answers) {
    let mut answers = Answers::new();
    let all = asked.paths.iter().zip(&asked.outputs).zip(std::mem::take(&mut job.inputs));
    for ((path, signature), inputs) in all {
        answers.push(answer(&mut line, path, signature, &inputs).await);
    }
    (line, job, answers)
}

async fn answer(
    line: &mut Line,
    path: &str,
    signature: &Signature,
    inputs: &[Input],
) -> Result<Vec<Tensor>, String> {
    let (body, json_bytes) = encode_request(inputs);
    let sent = line.infer(path, body, json_bytes).await;
    let (status, json_bytes, body) = sent.map_err(|_| "no answer".to_owned())?;
    if status != StatusCode::OK {
        return Err(status.to_string());
    }
    let outputs = decode_outputs(&body, json_bytes).map_err(|error| error.to_string())?;
    let find = |spec: &TensorSpec| {
        let found = outputs.iter().find(|output| output.name == spec.name);
        let found = found.map(|output| output.tensor.clone());
        found.ok_or_else(|| format!("an answer has no output `{}`", spec.name))
    };
    signature.outputs.iter().map(find).collect()
}
