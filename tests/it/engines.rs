//! Starting: which engine is found, what a server logs, and what it says that cannot start.

use std::{borrow::Cow, fs, path::PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{
    engine::{self, Engines, ModelFile, SessionOptions, onnx},
    model::{EngineChoice, Input},
    tensor::{Data, DataType, Shape, Tensor},
};

use crate::{
    http::Request,
    models::{FLOAT, INT64, declared, graph, int_attribute, integers, node, with_versions},
    repository::{Golden, Repository},
    server::{Launch, Server, installed_library},
    tensors::{infer, outputs},
};

/// The program in a folder of its own, where no library lies beside it.
pub(crate) fn program_alone() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = folder.path().join("tidegate");
    let built = env!("CARGO_BIN_EXE_tidegate");
    if fs::hard_link(built, &program).is_err() {
        fs::copy(built, &program).unwrap();
    }
    (folder, program)
}

#[test]
fn without_onnxruntimes_library_tract_serves_or_the_reason_is_told() {
    let repository = Repository::of(&["digits", "add_sub"]);
    let (_folder, program) = program_alone();
    let launch = Launch::of(&repository).bare(program);
    let is_ready = cfg!(feature = "tract");
    let server = if is_ready { launch.start() } else { launch.start_until_alive() };
    if is_ready {
        server.wait_for_state("digits", "1", "READY");
        let golden = Golden::of("digits", "1");
        for (inputs, expected) in &golden.cases {
            let response = server.post(&infer("digits"), &json!({"inputs": inputs}));
            golden.assert_close(&outputs(&response).into(), expected);
        }
    } else {
        let entry = server.wait_for_state("digits", "1", "UNAVAILABLE");
        let reason = entry["reason"].as_str().expect("a reason").to_lowercase();
        assert!(reason.contains("onnx runtime") || reason.contains("onnxruntime"), "`{reason}`");
        assert_eq!(server.post(&infer("digits"), &json!({"inputs": []})).status, 503);
    }
    server.ask(&Request::get("/v2/health/live")).ok();
}

/// Versions are proven by a process that runs in another folder.
#[test]
fn a_relative_path_to_the_library_means_the_folder_of_the_server() {
    let repository = Repository::of(&["add_sub"]);
    let (folder, program) = program_alone();
    fs::create_dir(folder.path().join("own")).unwrap();
    let library = folder.path().join("own/libonnxruntime.so");
    fs::copy(installed_library(), library).unwrap();
    for (variable, value) in [
        ("TIDEGATE__ENGINE__ONNXRUNTIME", "own/libonnxruntime.so"),
        ("ORT_DYLIB_PATH", "own/libonnxruntime.so"),
        ("LD_LIBRARY_PATH", "/nowhere:own"),
    ] {
        let launch = Launch::of(&repository).bare(program.clone()).within(folder.path());
        let launch = launch.set("ENGINE__DEFAULT", "onnxruntime").variable(variable, value);
        launch.start_until_alive().wait_for_state("add_sub", "1", "READY");
    }
}

/// What a new `onnx` writes; ONNX Runtime 1.31 reads IR 13, and gives the shape of the input.
#[test]
fn a_model_of_ir_14_is_served_and_sums_over_an_empty_axis() {
    let repository = Repository::of(&["add_sub"]);
    let sum = node("ReduceSum", &["x", "axis"], &["y"]).message(5, int_attribute("keepdims", 0));
    let sum = graph(
        vec![sum],
        vec![integers("axis", INT64, &[1], &[-1])],
        vec![declared("x", FLOAT, &[-1, -1, 4])],
        vec![declared("y", FLOAT, &[-1, -1])],
    );
    repository.add_bytes("sum", "1", &with_versions(sum, 14, &[("", 21)]));
    repository.describe("sum", "model.toml", "max_batch_size = 0\nengine = \"onnxruntime\"\n");
    let server = Launch::of(&repository).start();
    server.wait_for_state("sum", "1", "READY");
    for (shape, sums) in [([2, 0, 4], json!([])), ([2, 1, 4], json!([4.0, 4.0]))] {
        let ones = vec![1; shape.iter().product()];
        let x = json!({"name": "x", "datatype": "FP32", "shape": shape, "data": ones});
        let output = &server.post(&infer("sum"), &json!({"inputs": [x]})).json()["outputs"][0];
        assert_eq!((&output["shape"], &output["data"]), (&json!(shape[..2]), &sums));
    }
}

#[test]
fn versions_beyond_the_library_are_refused_with_a_way_out() {
    let abs = || {
        let ends = |name| vec![declared(name, FLOAT, &[-1])];
        graph(vec![node("Abs", &["x"], &["y"])], vec![], ends("x"), ends("y"))
    };
    let engines = Engines::open(&engine::Settings::default()).unwrap();
    let engine = engines.choose(EngineChoice::OnnxRuntime).unwrap();
    let library = format!("ONNX Runtime {}", engine.version());
    let refusal = |ir, opsets: &[(&str, i64)]| {
        let bytes: Bytes = with_versions(abs(), ir, opsets).into();
        let summary = onnx::summarize(&bytes, &onnx::Limits::default()).unwrap().into();
        let file = ModelFile {
            bytes,
            external: Vec::new(),
            summary,
            packed: tidegate::engine::Packed::default(),
        };
        let options = SessionOptions { intra_op_threads: 1, arena: None };
        engine.load(&file, options).map(drop).map_err(|error| error.to_string()).unwrap_err()
    };
    let highest = |text: &str| {
        let (_, number) = text.split_once("reads up to ").unwrap_or_else(|| panic!("{text}"));
        number.split_once(';').unwrap().0.parse::<i64>().unwrap()
    };
    let text = refusal(999, &[("", 17)]);
    let ir = highest(&text);
    assert!((13..999).contains(&ir), "{text}");
    assert_eq!(
        text,
        format!(
            "the model has IR version 999, and {library} reads up to {ir}; export it with an older `onnx`, or set \
             `model.ir_version = {ir}` and save it again, or name a newer library in ORT_DYLIB_PATH"
        )
    );
    let text = refusal(8, &[("", 999)]);
    let opset = highest(&text);
    assert_eq!(
        text,
        format!(
            "the model imports version 999 of operator set ai.onnx, and {library} reads up to {opset}; export it for \
             opset {opset}, or convert it (`onnx.version_converter.convert_version(model, {opset})`), or name a newer \
             library in ORT_DYLIB_PATH"
        )
    );
    let text = refusal(8, &[("", 17), ("ai.onnx.ml", 999)]);
    let opset = highest(&text);
    assert_eq!(
        text,
        format!(
            "the model imports version 999 of operator set ai.onnx.ml, and {library} reads up to {opset}; export it for \
             version {opset} of it (with skl2onnx: target_opset={{'ai.onnx.ml': {opset}}}), or name a newer library in \
             ORT_DYLIB_PATH"
        )
    );
    assert_eq!(
        refusal(3, &[("", 1)]),
        format!(
            "the model's `Abs` is one of opset 1 of ai.onnx, and {library} has kernels from opset 7 on; export it anew, \
             or convert it: `onnx.version_converter.convert_version(model, 17)`"
        )
    );
}

/// A request that fails on one version can be run on another, and its outputs compared: its inputs are as they were.
#[test]
fn borrowed_inputs_can_be_run_again_and_give_what_owned_ones_give() {
    let repository = Repository::of(&["add_sub"]);
    let bytes = fs::read(repository.path().join("add_sub/1/model.onnx")).unwrap().into();
    let file = ModelFile {
        bytes,
        external: Vec::new(),
        summary: std::sync::Arc::default(),
        packed: tidegate::engine::Packed::default(),
    };
    let engines = Engines::open(&engine::Settings::default()).unwrap();
    // Aligned, misaligned, and more than is held twice.
    let numbers: Vec<i32> = (0..1 << 16).collect();
    let shape = || Shape::new(&[1 << 12, 16]).unwrap();
    let mut raw = vec![0u8];
    raw.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    let raw = Bytes::from(raw).slice(1..);
    let inputs = [
        ("INPUT0", Tensor::new(shape(), Data::Int32(numbers)).unwrap()),
        ("INPUT1", Tensor::from_raw(DataType::Int32, shape(), raw).unwrap()),
    ];
    let inputs = inputs.map(|(name, tensor)| Input { name: name.to_owned(), tensor });
    for (name, _) in engines.available() {
        let choice = if name == "tract" { EngineChoice::Tract } else { EngineChoice::OnnxRuntime };
        let options = SessionOptions { intra_op_threads: 1, arena: None };
        let mut session = engines.choose(choice).unwrap().load(&file, options).unwrap();
        let mut run = |inputs| session.run(inputs, &[0, 1]).unwrap();
        let first = run(Cow::Borrowed(&inputs[..]));
        assert_eq!(first, run(Cow::Borrowed(&inputs[..])), "{name}");
        assert_eq!(first, run(Cow::Owned(inputs.to_vec())), "{name}");
    }
}

#[test]
fn what_cannot_work_is_refused_at_the_start_with_the_reason() {
    let repository = Repository::of(&["add_sub"]);
    let launch = || Launch::of(&repository);
    let missing = "/nonexistent/libonnxruntime.so";
    let cases = [
        ("a library that is not there", launch().set("ENGINE__ONNXRUNTIME", missing), missing),
        ("an unknown section", launch().set("NOSUCH__KEY", "1"), "nosuch"),
        ("an unknown key", launch().set("LIMITS__NOSUCH", "1"), "nosuch"),
        ("a time without a unit", launch().set("LIMITS__HEADER_TIMEOUT", "5"), "header_timeout"),
        ("no time", launch().set("LIMITS__HEADER_TIMEOUT", "soon"), "soon"),
        ("a flag that nobody knows", launch().arguments(&["--nosuch"]), "--nosuch"),
        (
            "a configuration that is not there",
            launch().arguments(&["--config", "/nonexistent/tidegate.toml"]),
            "/nonexistent/tidegate.toml",
        ),
    ];
    for (name, launch, says) in cases {
        let (status, said) = launch.fail();
        assert!(status.code().is_some_and(|code| code > 0), "{name}: {status}\n{said}");
        assert!(
            said.to_lowercase().contains(&says.to_lowercase()),
            "{name}: no `{says}` in\n{said}"
        );
        assert!(!said.contains("panicked"), "{name}:\n{said}");
    }
}

#[test]
fn what_is_logged_to_a_pipe_is_json_whatever_clients_send() {
    let repository = Repository::of(&["add_sub"]);
    let mut server: Server = Launch::of(&repository).set("LOGS__LEVEL", "debug").start();
    for path in
        ["/v2/models/%0d%0aforged%1b[2J/infer", "/v2/models/%22%7d%0aforged", "/nope?%0aforged"]
    {
        let request = Request::get(path).header("user-agent", "\u{1b}[31mforged");
        server.ask(&request.header("x-request-id", "\"}forged"));
    }
    server.terminate();
    assert_eq!(server.exit_code(crate::server::PATIENCE), 0);
    let said = server.said();
    assert!(said.lines().count() > 2, "{said}");
    for line in said.lines() {
        let line: Result<Value, _> = serde_json::from_str(line);
        assert!(line.is_ok_and(|line| line["level"].is_string()), "{said}");
    }
}
