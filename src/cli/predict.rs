//! `tidegate predict`: one request to a running server.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    admin::ModelReport,
    lifecycle::Golden,
    model::{ModelName, VersionId},
};

use super::{Outcome, client, commands::PredictArguments, print, tables::table};

/// Elements of an output that are shown to people.
const SHOWN_MAX: usize = 12;

pub(super) fn run(arguments: &PredictArguments, json: bool) -> anyhow::Result<Outcome> {
    let model = ModelName::parse(&arguments.model)?;
    if arguments.golden {
        return golden(arguments, &model, json);
    }
    let Some(input) = &arguments.input else {
        bail!(
            "name a FILE with the request (`-` for standard input), or --golden for the model's golden inputs"
        );
    };
    let mut body = Vec::new();
    if input.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut body).context("standard input cannot be read")?;
    } else {
        body = std::fs::read(input)
            .with_context(|| format!("`{}` cannot be read", input.display()))?;
    }
    let answer = ask(arguments, &model, arguments.version.as_deref(), body, json)?;
    Ok(if answer.is_some() { Outcome::Done } else { Outcome::No })
}

/// Sends a request and shows its answer; gives that where it is a prediction.
fn ask(
    arguments: &PredictArguments,
    model: &ModelName,
    version: Option<&str>,
    body: Vec<u8>,
    json: bool,
) -> anyhow::Result<Option<String>> {
    let version = version.map_or_else(String::new, |version| format!("/versions/{version}"));
    let url = format!("{}/v2/models/{model}{version}/infer", arguments.url.trim_end_matches('/'));
    let (status, answer) = client::send(&Method::POST, &url, body)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    if json {
        print(&format!("{}\n", text.trim_end()))?;
    } else if status == StatusCode::OK {
        print(&shown(&text)?)?;
    } else {
        let refused = client::answered(status, &answer).err();
        anstream::eprintln!("{}", refused.map_or_else(String::new, |error| error.to_string()));
    }
    Ok((status == StatusCode::OK).then_some(text))
}

/// Sends golden inputs and compares what comes with the golden outputs.
fn golden(arguments: &PredictArguments, model: &ModelName, json: bool) -> anyhow::Result<Outcome> {
    let wanted = arguments.version.as_deref();
    let (version, file) = match &arguments.repository {
        Some(repository) => (wanted.map(str::to_owned), golden_in(repository, model, wanted)?),
        None => golden_of(&arguments.server.admin, model, wanted)?,
    };
    let golden = Golden::parse(&file)?;
    let mut failed = Vec::new();
    for (case, body) in requests(&file)?.into_iter().enumerate() {
        match ask(arguments, model, version.as_deref(), body, json)? {
            Some(answer) => {
                failed.extend(golden.compare(case, &unmarked(outputs(&answer)?.get())).err());
            }
            None => return Ok(Outcome::No),
        }
    }
    for error in &failed {
        anstream::eprintln!("{error}");
    }
    if !json && failed.is_empty() {
        let cases = match golden.len() {
            1 => "1 golden case, as expected\n".to_owned(),
            count => format!("{count} golden cases, all as expected\n"),
        };
        print(&cases)?;
    }
    Ok(if failed.is_empty() { Outcome::Done } else { Outcome::No })
}

/// The golden file of a version that a server has loaded, and its number: of the one that answers, if none is named.
fn golden_of(
    admin: &str,
    model: &ModelName,
    version: Option<&str>,
) -> anyhow::Result<(Option<String>, Vec<u8>)> {
    let report =
        client::admin(&Method::GET, admin, &format!("/api/v1/models/{model}"), Vec::new())?;
    let report: ModelReport =
        serde_json::from_str(&report).context("the server's answer is not understood")?;
    let number = match version {
        Some(version) => match report.aliases.get(version) {
            Some(aliased) => aliased.to_string(),
            None => version.to_owned(),
        },
        None => report.answering.context("no version of the model answers")?.to_string(),
    };
    let path = format!("/api/v1/models/{model}/versions/{number}/golden");
    let file = client::admin(&Method::GET, admin, &path, Vec::new())?;
    Ok((Some(number), file.into_bytes()))
}

/// The golden file of a version in a folder, or of the newest one that has any.
fn golden_in(
    repository: &Path,
    model: &ModelName,
    version: Option<&str>,
) -> anyhow::Result<Vec<u8>> {
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
    let path = |id: &VersionId| folder.join(id.to_string()).join("golden.json");
    let found = versions.iter().rev().find_map(|id| std::fs::read(path(id)).ok());
    found.with_context(|| {
        format!("no version of `{model}` in `{}` has a golden.json", folder.display())
    })
}

/// The requests of a golden file's cases.
fn requests(file: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        inputs: Box<RawValue>,
    }
    let text = marked(&String::from_utf8_lossy(file));
    let file: File = serde_json::from_str(&text).context("golden.json is malformed")?;
    let body = |case: &Case| format!("{{\"inputs\":{}}}", unmarked(case.inputs.get())).into_bytes();
    Ok(file.cases.iter().map(body).collect())
}

/// The outputs of an answer, as they are written there.
fn outputs(answer: &str) -> anyhow::Result<Box<RawValue>> {
    #[derive(Deserialize)]
    struct Answer {
        outputs: Box<RawValue>,
    }
    let answer: Answer =
        serde_json::from_str(&marked(answer)).context("the answer is no prediction")?;
    Ok(answer.outputs)
}

/// Numbers that the protocol writes and JSON does not know.
const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// A word as a string that no text is.
fn mark(word: &str) -> String {
    format!("\"\\u0001{word}\"")
}

/// JSON of a document with such numbers, which become marked strings.
fn marked(text: &str) -> String {
    let (mut json, mut rest, mut in_string) = (String::with_capacity(text.len()), text, false);
    while let Some(next) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !in_string && rest.starts_with(**word));
        if let Some(word) = word {
            json += &mark(word);
            rest = &rest[word.len()..];
            continue;
        }
        // What follows a backslash ends no string.
        let escaped = rest
            .get(1..)
            .and_then(|rest| rest.chars().next())
            .filter(|_| in_string && next == '\\');
        let length = next.len_utf8() + escaped.map_or(0, char::len_utf8);
        in_string ^= next == '"';
        json += &rest[..length];
        rest = &rest[length..];
    }
    json
}

/// The document again with the numbers themselves.
fn unmarked(json: &str) -> String {
    WORDS.iter().fold(json.to_owned(), |json, word| json.replace(&mark(word), word))
}

/// The answer as a table: an output a row.
fn shown(text: &str) -> anyhow::Result<String> {
    let answer: Value = serde_json::from_str(&marked(text)).context("the answer is not JSON")?;
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut rows = table(["output", "datatype", "shape", "values"]);
    for output in answer["outputs"].as_array().into_iter().flatten() {
        let data = output["data"].as_array().map_or(&[][..], Vec::as_slice);
        let mut values: Vec<String> =
            data.iter().take(SHOWN_MAX).map(|value| unmarked(&value.to_string())).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_are_read_and_written() {
        let text = r#"{"data":[NaN, 1.5,-Infinity,Infinity],"text":["NaN","a\"NaN\\"],"é":[NaN]}"#;
        let value: Value = serde_json::from_str(&marked(text)).unwrap();
        assert_eq!(value["data"][0], "\u{1}NaN");
        assert_eq!(value["text"], serde_json::json!(["NaN", "a\"NaN\\"]));
        assert_eq!(unmarked(&marked(text)), text);
        let answer = r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[NaN,-Infinity]}]}"#;
        assert!(shown(answer).unwrap().contains("NaN -Infinity"), "{}", shown(answer).unwrap());
    }
}
