//! `tidegate predict`: one request to a running server.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::model::{ModelName, VersionId};

use super::{Outcome, client, commands::PredictArguments, models::table, print};

/// Elements of an output that are shown to people.
const SHOWN_MAX: usize = 12;

pub(super) fn run(arguments: &PredictArguments, json: bool) -> anyhow::Result<Outcome> {
    let model = ModelName::parse(&arguments.model)?;
    let version = arguments
        .version
        .as_ref()
        .map(|version| format!("/versions/{version}"))
        .unwrap_or_default();
    let url = format!("{}/v2/models/{model}{version}/infer", arguments.url.trim_end_matches('/'));
    let mut outcome = Outcome::Done;
    for body in bodies(arguments, &model)? {
        let (status, answer) = client::send(&Method::POST, &url, body)?;
        let text = String::from_utf8_lossy(&answer);
        if json {
            print(&format!("{}\n", text.trim_end()))?;
        } else if status == StatusCode::OK {
            print(&shown(&text)?)?;
        } else {
            let error: Value = serde_json::from_str(&text).unwrap_or_default();
            anstream::eprintln!("{status}: {}", error["error"].as_str().unwrap_or(text.trim()));
        }
        if status != StatusCode::OK {
            outcome = Outcome::No;
        }
    }
    Ok(outcome)
}

fn bodies(arguments: &PredictArguments, model: &ModelName) -> anyhow::Result<Vec<Vec<u8>>> {
    let Some(input) = &arguments.input else {
        return golden(&arguments.repository, model, arguments.version.as_deref());
    };
    let mut body = Vec::new();
    if input.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut body).context("standard input cannot be read")?;
    } else {
        body = std::fs::read(input)
            .with_context(|| format!("`{}` cannot be read", input.display()))?;
    }
    Ok(vec![body])
}

/// The golden inputs of a version, or of the newest one that has any.
fn golden(
    repository: &Path,
    model: &ModelName,
    version: Option<&str>,
) -> anyhow::Result<Vec<Vec<u8>>> {
    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        inputs: Box<RawValue>,
    }
    let folder = repository.join(model.as_str());
    let entries = std::fs::read_dir(&folder).with_context(|| {
        format!("`{}` cannot be read; name the folder with --repository", folder.display())
    })?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut versions: Vec<VersionId> = names.filter_map(|name| VersionId::parse(&name)).collect();
    if let Some(version) = version {
        versions.retain(|id| id.to_string() == version);
    }
    versions.sort();
    for id in versions.into_iter().rev() {
        let path = folder.join(id.to_string()).join("golden.json");
        let Ok(file) = std::fs::read(&path) else { continue };
        let golden: Golden = serde_json::from_slice(&file)
            .with_context(|| format!("`{}` is malformed", path.display()))?;
        let body = |case: &Case| format!("{{\"inputs\":{}}}", case.inputs.get()).into_bytes();
        return Ok(golden.cases.iter().map(body).collect());
    }
    bail!("no version of `{model}` in `{}` has a golden.json", folder.display())
}

/// The answer as a table: an output a row.
fn shown(text: &str) -> anyhow::Result<String> {
    let answer: Value = serde_json::from_str(text).context("the answer is not JSON")?;
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut rows = table(["output", "datatype", "shape", "values"]);
    for output in answer["outputs"].as_array().into_iter().flatten() {
        let data = output["data"].as_array().map_or(&[][..], Vec::as_slice);
        let mut values: Vec<String> =
            data.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
        if data.len() > SHOWN_MAX {
            values.push(format!("... {} in all", data.len()));
        }
        let shape = output["shape"].to_string();
        rows.add_row(vec![
            word(&output["name"]),
            word(&output["datatype"]),
            shape,
            values.join(" "),
        ]);
    }
    Ok(format!(
        "{} version {}\n{rows}\n",
        word(&answer["model_name"]),
        word(&answer["model_version"])
    ))
}
