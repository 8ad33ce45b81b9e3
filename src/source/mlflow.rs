//! `MLmodel`, the file that makes a folder an `MLflow` model: where in it the ONNX file lies.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::FileName;

use super::{SourceError, error::shown};

/// The file by which an `MLflow` model is known.
pub(super) const FILENAME: &str = "MLmodel";

/// The part of the file that counts here; others may write more into it at any time.
#[derive(Debug, Deserialize)]
struct Written {
    flavors: BTreeMap<String, serde_json::Value>,
}

/// Reads an `MLmodel`: the name of the ONNX file beside it.
pub(super) fn read(bytes: &[u8]) -> Result<FileName, SourceError> {
    let fault = |line: u64, column: u64, what: String| SourceError::Description {
        path: FILENAME.to_owned(),
        line: usize::try_from(line.max(1)).unwrap_or(usize::MAX),
        column: usize::try_from(column.max(1)).unwrap_or(usize::MAX),
        what,
    };
    let text =
        std::str::from_utf8(bytes).map_err(|_| fault(1, 1, "this is not UTF-8 text".to_owned()))?;
    let options = serde_saphyr::options! {
        // Real files have some fifty nodes and no alias at all.
        budget: serde_saphyr::budget! {
            max_nodes: 10_000,
            max_events: 40_000,
            max_depth: 32,
            max_documents: 1,
            max_aliases: 0,
            max_anchors: 0,
            max_merge_keys: 0,
        },
        with_snippet: false,
    };
    let written: Written = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, column) =
            error.location().map_or((1, 1), |location| (location.line(), location.column()));
        let what = error.to_string().lines().next().unwrap_or("not YAML").trim().to_owned();
        fault(line, column, what)
    })?;
    let Some(onnx) = written.flavors.get("onnx") else {
        let flavors: Vec<_> =
            written.flavors.keys().take(16).map(|name| format!("`{}`", shown(name))).collect();
        let flavors = if flavors.is_empty() { "none".to_owned() } else { flavors.join(", ") };
        return Err(SourceError::NoOnnxFlavor { path: FILENAME.to_owned(), flavors });
    };
    let data = onnx.get("data").and_then(serde_json::Value::as_str);
    let data = data.ok_or_else(|| {
        fault(
            1,
            1,
            "`flavors.onnx.data` must name the model's file, such as `model.onnx`".to_owned(),
        )
    })?;
    FileName::parse(data).map_err(|error| fault(1, 1, format!("`flavors.onnx.data`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `MLflow` writes it when an ONNX model is logged.
    const LOGGED: &str = "\
artifact_path: model
flavors:
  onnx:
    code: null
    data: net.onnx
    onnx_version: 1.19.0
    providers:
    - CUDAExecutionProvider
    - CPUExecutionProvider
  python_function:
    data: net.onnx
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.onnx
    python_version: 3.11.2
is_signature_from_type_hint: false
mlflow_version: 3.17.2
model_id: m-0123456789abcdef
model_size_bytes: 1234
run_id: null
signature:
  inputs: '[{\"type\": \"tensor\", \"tensor-spec\": {\"dtype\": \"float32\", \"shape\": [-1, 4]}}]'
  params: null
utc_time_created: '2026-11-23 10:00:00.000000'
";

    #[test]
    fn logged_models_name_their_file() {
        assert_eq!(read(LOGGED.as_bytes()).unwrap().as_str(), "net.onnx");
    }

    #[test]
    fn other_files_say_what_is_missing() {
        let check = |text: &str, expected: &str| {
            let error = read(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check(
            "flavors: {sklearn: {}, python_function: {data: x}}",
            "`MLmodel` has no flavor `onnx`, only `python_function`, `sklearn`; log the model with `mlflow.onnx`",
        );
        check("flavors: {}", "only none");
        check("flavors: {onnx: {}}", "`flavors.onnx.data` must name");
        check("flavors: {onnx: {data: 3}}", "`flavors.onnx.data` must name");
        check("flavors: {onnx: {data: ../x}}", "is not a plain file name");
        check("a: 1", "flavors");
        check("flavors:\n  - [", "MLmodel:");
        check("", "MLmodel:1:1");
        check("flavors: &a {onnx: {data: x}}\nb: *a", "MLmodel:");
        check(&"[".repeat(100_000), "MLmodel:");
    }
}
