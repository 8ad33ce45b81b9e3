//! Whole configurations; the corpus of the fuzzer holds more of them.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    model::{
        DeclaredTensor, DynamicBatching, FileName, VersionId, VersionPolicy, Warmup, WarmupData,
        WarmupInput,
    },
    tensor::DataType,
};

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/config_pbtxt");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| {
            let file = file.unwrap();
            (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn good(name: &str) -> ModelDescription {
    let (_, bytes) = corpus().into_iter().find(|(file, _)| file == name).expect(name);
    read(&bytes).expect(name)
}

fn tensor(name: &str, datatype: DataType, dims: &[i64]) -> DeclaredTensor {
    DeclaredTensor {
        name: name.to_owned(),
        datatype: Some(datatype),
        dims: Some(dims.to_vec()),
        ..DeclaredTensor::default()
    }
}

#[test]
fn the_corpus_is_read_or_refused_as_its_names_say() {
    let files = corpus();
    for kind in ["good-", "refused-"] {
        assert!(files.iter().filter(|(name, _)| name.starts_with(kind)).count() >= 9, "{kind}");
    }
    for (name, bytes) in files {
        check_text(&bytes);
        match read(&bytes) {
            Ok(_) => assert!(!name.starts_with("refused-"), "{name} is read"),
            Err(error) => assert!(!name.starts_with("good-"), "{name}:{error}"),
        }
    }
}

#[test]
fn an_image_classifier_is_read() {
    let expected = ModelDescription {
        name: Some("resnet50".to_owned()),
        max_batch_size: Some(128),
        version_policy: VersionPolicy::Latest(2),
        inputs: vec![tensor("data", DataType::Fp32, &[3, 224, 224])],
        outputs: vec![DeclaredTensor {
            label_filename: Some("labels.txt".to_owned()),
            ..tensor("resnetv24_dense0_fwd", DataType::Fp32, &[1000])
        }],
        instance_count: Some(2),
        dynamic_batching: Some(DynamicBatching {
            preferred_batch_size: vec![4, 8],
            queue_delay_max: Duration::from_micros(100),
            ..DynamicBatching::default()
        }),
        ..ModelDescription::default()
    };
    assert_eq!(good("good-resnet.pbtxt"), expected);
}

#[test]
fn a_reshape_is_kept_beside_the_dimensions() {
    let densenet = good("good-densenet.pbtxt");
    assert_eq!(densenet.max_batch_size, Some(0));
    assert_eq!(densenet.inputs[0].dims.as_deref(), Some(&[3, 224, 224][..]));
    assert_eq!(densenet.inputs[0].reshape.as_deref(), Some(&[1, 3, 224, 224][..]));
    assert_eq!(good("good-tabular.pbtxt").outputs[0].reshape.as_deref(), Some(&[][..]));
}

#[test]
fn a_tabular_pipeline_is_read() {
    let tabular = good("good-tabular.pbtxt");
    assert_eq!(tabular.default_model_filename, FileName::parse("pipeline.onnx").unwrap());
    assert_eq!(
        tabular.version_policy,
        VersionPolicy::Specific([1, 3].map(VersionId::new).to_vec())
    );
    assert_eq!(tabular.inputs[1], tensor("country", DataType::Bytes, &[1]));
    assert!(tabular.inputs[2].optional);
    assert_eq!(tabular.intra_op_threads, Some(2));
    assert_eq!(tabular.parameters["execution_mode"], "0");
    assert_eq!(
        tabular.notes,
        [
            "`metric_tags` is not used: metrics carry the model's name and version only",
            "`allow_ragged_batch` of `hints` is not used: rows of one shape are joined",
        ]
    );
}

#[test]
fn warm_up_requests_are_read() {
    let input = |datatype, data| WarmupInput { datatype, dims: vec![8], data };
    let zeros = Warmup {
        name: "zeros".to_owned(),
        batch_size: 1,
        count: 3,
        inputs: BTreeMap::from([("x".to_owned(), input(DataType::Fp32, WarmupData::Zero))]),
    };
    let mask = WarmupData::File("mask.raw".to_owned(), None);
    let any = Warmup {
        name: "any".to_owned(),
        batch_size: 16,
        count: 1,
        inputs: BTreeMap::from([
            ("mask".to_owned(), input(DataType::Bool, mask)),
            ("x".to_owned(), input(DataType::Fp32, WarmupData::Random)),
        ]),
    };
    let ranker = good("good-warmup.pbtxt");
    assert_eq!(ranker.warmup, [zeros, any]);
    assert_eq!(ranker.version_policy, VersionPolicy::All);
}

#[test]
fn what_is_passed_over_is_noted() {
    let busy = good("good-everything-passed-over.pbtxt");
    assert_eq!(busy.instance_count, Some(4));
    assert_eq!(
        busy.dynamic_batching,
        Some(DynamicBatching {
            preserve_ordering: true,
            queue_size_max: Some(64),
            queue_timeout: Some(Duration::from_millis(1)),
            ..DynamicBatching::default()
        })
    );
    let begins = |start: &str| busy.notes.iter().filter(|note| note.starts_with(start)).count();
    for name in ["optimization", "runtime", "cc_model_filenames", "model_metrics", "response_cache"]
    {
        assert_eq!(begins(&format!("`{name}` is not used")), 1, "{name}: {:?}", busy.notes);
    }
    assert_eq!(begins("`instance_group` asks for a GPU: the model runs on the CPU"), 1);
    assert_eq!(busy.notes.len(), 6);
}

#[test]
fn every_spelling_is_understood() {
    let spelled = good("good-spellings.pbtxt");
    assert_eq!(spelled.name.as_deref(), Some("spelled_out_"));
    assert_eq!(spelled.max_batch_size, Some(16));
    let names: Vec<_> = spelled.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["a", "b's \"c\"", "ä😀"]);
    assert_eq!(spelled.inputs[0].dims.as_deref(), Some(&[1, 2, -1][..]));
    assert_eq!(spelled.inputs[1].dims.as_deref(), Some(&[4, 5][..]));
    assert_eq!(spelled.outputs.len(), 2);
    assert_eq!(good("good-empty.pbtxt"), ModelDescription::default());
}

#[test]
fn refusals_say_where_what_and_what_would_be_right() {
    let check = |text: &str, expected: &str| {
        let error = read(text.as_bytes()).expect_err(text).to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    };
    check("name: 'm'\nensemble_scheduling { }", "2:1: `ensemble_scheduling` is not supported: pip");
    check("sequence_batching { }", "1:1: `sequence_batching` is not supported: models that keep");
    check("model_repository_agents { }", "1:1: `model_repository_agents` is not supported: rep");
    check("model_operations { }", "1:1: `model_operations` is not supported: libraries of custom");
    check("batch_input [ { } ]", "1:1: `batch_input` is not supported");
    check(
        "platform: 'tensorrt_plan'",
        "1:11: platform `tensorrt_plan` is not served here; only `onnxruntime_onnx` is",
    );
    check("backend: 'python'", "1:10: backend `python` is not served here; only `onnxruntime` is");
    check("model_transaction_policy { decoupled: t }", "1:28: `decoupled` models are not served");
    check("nmae: 'm'", "1:1: a model has no field `nmae`; did you mean `name`?");
    check("entirely_else: 1", "1:1: a model has no field `entirely_else`; it has `name`, ");
    check(
        "input { name: 'x' datatype: TYPE_FP32 }",
        "1:19: an input has no field `datatype`; did you mean `data_type`?",
    );
    check("version_policy { all { x: 1 } }", "1:24: `all` has no fields, not `x` either");
    check(
        "input { name: 'x' data_type: TYPE_BYTES }",
        "1:30: `TYPE_BYTES` is not a data type; did you mean `TYPE_STRING`?",
    );
    check(
        "input { name: 'x' data_type: TYPE_FLOAT32 }",
        "1:30: `TYPE_FLOAT32` is not a data type, such",
    );
    check(
        "input { name: 'x' data_type: FP32 }",
        "1:30: `FP32` is not a data type, such as `TYPE_FP32`",
    );
    check(
        "input { name: 'x' data_type: 'TYPE_FP32' }",
        "1:30: `data_type` must be a name such as `TYPE_FP32`, without quotes",
    );
    check("input { dims: 1 }", "1:7: an input needs a `name`");
    check("input { name: 'x' } input { name: 'x' }", "1:21: input `x` is declared twice");
    check(
        "input { name: 'x' dims: [ 1, 0 ] }",
        "1:30: a dimension is 0; it must be at least 1, or -1",
    );
    check("input { name: 'x' dims: 1.5 }", "1:25: `dims` must be a whole number");
    check("input { name: 'x' is_shape_tensor: true }", "1:19: `is_shape_tensor` is not supported");
    check("max_batch_size: -1", "1:17: `max_batch_size` is -1; it must be at least 0");
    check("max_batch_size: 3000000000", "1:17: `max_batch_size` is out of bounds: 3000000000");
    check(
        "max_batch_size: 1\n\tmax_batch_size: 2",
        "2:2: `max_batch_size` stands here for the second time",
    );
    check("name: 1", "1:7: `name` must be text in quotes");
    check("name: '\\377'", "1:7: `name` must be UTF-8 text");
    check("input: 1", "1:8: `input` must be a message in `{ }`");
    check("version_policy { latest { } all { } }", "1:29: `all` and `latest` exclude each other");
    check(
        "version_policy { latest { num_versions: 0 } }",
        "1:18: `num_versions` is 0; it must be at",
    );
    check("version_policy { specific { } }", "1:18: `specific` names no versions");
    check(
        "dynamic_batching { }\nsequence_batching { }",
        "2:1: `sequence_batching` and `dynamic_batching` exclude",
    );
    check("dynamic_batching { preferred_batch_size: 0 }", "1:42: `preferred_batch_size` is 0");
    check("instance_group { kind: KIND_TPU }", "1:24: `KIND_TPU` is not a kind of instance");
    check("instance_group { count: 99999 }", "1:1: there are more than 1024 instances");
    check("default_model_filename: 'a/b'", "1:25: `default_model_filename`: `a/b` is not a plain");
    check(
        "name: 'x'\nparameters { key: 'intra_op_thread_count' value { string_value: 'all' } }",
        "2:1: parameter `intra_op_thread_count` is `all`; it must be a number",
    );
    check("model_warmup { inputs { key: 'x' } }", "1:16: a warm-up input needs a `value`");
    check(
        "model_warmup { inputs { key: 'x' value { } } }",
        "1:16: a warm-up input needs a `data_type`",
    );
    check("# ä\n\"ä\" ä", "2:1: expected the name of a field");
    check("a: 'ä' ä", "1:8: expected the name of a field, found `ä`");
}

#[test]
fn text_that_is_none_is_refused_where_it_begins() {
    let error = read(b"name: 'x'\n  \xc3\x28").unwrap_err();
    assert_eq!(error.to_string(), "2:3: this is not UTF-8 text");
}

#[test]
fn names_in_messages_are_short_and_escaped() {
    let text = format!("input {{ name: 'x' }} {}: 1", "y".repeat(100_000));
    assert!(read(text.as_bytes()).unwrap_err().what.len() < 1_000);
    let error = read(b"platform: '\\033[31m'").unwrap_err();
    assert!(!error.what.contains('\u{1b}'), "{error}");
}

/// Text made of the pieces of configurations: gets further than any text would.
fn pieces() -> impl Strategy<Value = String> {
    const PIECES: [&str; 40] = [
        "name",
        "input",
        "output",
        "dims",
        "data_type",
        "TYPE_FP32",
        "max_batch_size",
        "reshape",
        "shape",
        "version_policy",
        "latest",
        "all",
        "specific",
        "versions",
        "instance_group",
        "count",
        "kind",
        "KIND_CPU",
        "parameters",
        "key",
        "value",
        "string_value",
        "dynamic_batching",
        "model_warmup",
        "inputs",
        "optimization",
        "true",
        ":",
        ":",
        "{",
        "}",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\"x\"",
        "1",
        "-1",
        "#\n",
    ];
    let piece = (0..PIECES.len()).prop_map(|index| PIECES[index]);
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_text(&bytes);
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        check_text(text.as_bytes());
    }

    #[test]
    fn any_pieces_are_read_or_refused(text in pieces()) {
        check_text(text.as_bytes());
    }

    #[test]
    fn any_damage_to_a_configuration_is_survived(
        file in any::<proptest::sample::Index>(),
        at in any::<proptest::sample::Index>(),
        removed in 0_usize..8,
        put in proptest::collection::vec(any::<u8>(), 0..4),
    ) {
        let files = corpus();
        let mut bytes = files[file.index(files.len())].1.clone();
        let from = at.index(bytes.len() + 1);
        let to = (from + removed).min(bytes.len());
        bytes.splice(from..to, put);
        check_text(&bytes);
    }
}
