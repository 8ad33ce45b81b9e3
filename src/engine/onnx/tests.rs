//! The reader against files: sound ones and what is known about them, hostile ones and what is said to each.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, sync::LazyLock};

use proptest::prelude::*;

use super::*;

fn hostile(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile").join(path)
}

fn read(path: &str) -> Vec<u8> {
    let path = hostile(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All models of a folder, by `folder/name.onnx`, in order.
fn models(folder: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(hostile(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut paths: Vec<_> = names
        .filter_map(|name| name.strip_suffix(".onnx").map(|stem| format!("{folder}/{stem}.onnx")))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

fn summary(bytes: &[u8]) -> Summary {
    summarize(bytes, &Limits::default()).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    summarize(bytes, &Limits::default()).unwrap_err().to_string()
}

/// All that an operator reads about a model.
fn verdict(bytes: &[u8]) -> String {
    match summarize(bytes, &Limits::default()) {
        Err(error) => error.to_string(),
        Ok(summary) => {
            let messages = [unsupported_domains(&summary), unservable(&summary)].concat();
            if messages.is_empty() { "accepted".to_owned() } else { messages.join("; ") }
        }
    }
}

/// The table of `README.md` is the expectation: file and verdict are the first two cells of a row.
#[test]
fn every_hostile_file_gets_the_verdict_that_its_page_states() {
    let readme = fs::read_to_string(hostile("README.md")).unwrap();
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let stated: BTreeMap<_, _> = rows
        .map(|row| {
            let mut cells = row.split(" | ");
            (cells.next().unwrap().trim_end_matches('`'), cells.next().unwrap_or("").trim())
        })
        .collect();
    let mut differences = String::new();
    let all = [models("models"), models("external"), models("sound")].concat();
    for (path, bytes) in &all {
        let actual = verdict(bytes);
        if stated.get(path.as_str()) != Some(&actual.as_str()) {
            writeln!(differences, "| `{path}` | {actual} |").unwrap();
        }
    }
    assert_eq!(differences, "", "rows that README.md lacks or states otherwise");
    assert_eq!(stated.len(), all.len(), "README.md has rows for files that are not there");
}

fn with_dims(value_type: &ValueType) -> String {
    match value_type {
        ValueType::Tensor { dims: Some(dims), .. }
        | ValueType::SparseTensor { dims: Some(dims), .. } => {
            let text = |dim: &Dim| match dim {
                Dim::Fixed(size) => size.to_string(),
                Dim::Named(name) => name.clone(),
                Dim::Open => "?".to_owned(),
            };
            let dims: Vec<_> = dims.iter().map(text).collect();
            format!("{value_type}[{}]", dims.join(","))
        }
        ValueType::Sequence(of) => format!("sequence of {}", with_dims(of)),
        ValueType::Map { key, value } => format!("map of {key} to {}", with_dims(value)),
        ValueType::Optional(of) => format!("optional {}", with_dims(of)),
        _ => value_type.to_string(),
    }
}

fn as_json(summary: &Summary) -> serde_json::Value {
    let ends = |all: &[Declared]| -> Vec<_> {
        all.iter().map(|one| (one.name.clone(), with_dims(&one.value_type))).collect()
    };
    let outside = |tensor: &ExternalTensor| {
        let carrier = match tensor.carrier {
            Carrier::Initializer | Carrier::InnerInitializer => "initializer",
            Carrier::Attribute => "attribute",
            Carrier::SparseInitializer => "sparse_initializer",
            Carrier::SparseAttribute => "sparse_attribute",
        };
        let ExternalTensor { tensor, location, offset, length, .. } = tensor;
        serde_json::json!([tensor, carrier, location, offset, length])
    };
    serde_json::json!({
        "ir_version": summary.ir_version,
        "producer": summary.producer,
        "opsets": summary.opsets,
        "domains_used": summary.domains_used,
        "operators": summary.operators,
        "external_data": summary.external_data.iter().map(outside).collect::<Vec<_>>(),
        "inputs": ends(&summary.inputs),
        "outputs": ends(&summary.outputs),
        "initializers": summary.initializers,
        "nodes": summary.nodes,
        "expanded_nodes": summary.expanded_nodes,
        "functions": summary.functions,
        "depth": summary.depth,
    })
}

/// The facts were worked out on what the `onnx` package parsed; its checker passed eight of them.
#[test]
fn sound_models_are_read_as_the_onnx_package_reads_them() {
    let facts: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&read("facts.json")).unwrap();
    assert!(facts.len() >= 6 && models("sound").len() <= facts.len());
    for (name, expected) in facts {
        let actual = as_json(&summary(&read(&format!("sound/{name}.onnx"))));
        assert_eq!(actual, expected, "{name}");
    }
}

#[test]
fn external_tensors_say_how_many_bytes_they_need() {
    for (path, bytes) in models("external") {
        let Ok(summary) = summarize(&bytes, &Limits::default()) else { continue };
        let [tensor] = &summary.external_data[..] else {
            panic!("{path}: one tensor lies outside")
        };
        let size = if path.contains("sparse") { 4 } else { 16 };
        assert_eq!((tensor.length, tensor.bytes_needed), (Some(size), Some(size)), "{path}");
    }
}

#[test]
fn a_classifier_with_zipmap_is_recognised() {
    let summary = summary(&read("sound/classifier.onnx"));
    let names: Vec<_> = not_tensors(&summary).map(|declared| declared.name.as_str()).collect();
    assert_eq!(names, ["probabilities"]);
    assert!(unservable(&summary)[0].contains("export the classifier without `ZipMap`"));
    let classes = Classes::Integers(vec![0, 1]);
    assert_eq!(summary.classes, [("probabilities".to_owned(), classes)].into());
}

/// Protobuf cannot tell where a file is cut: up to the end of a whole field it is a message, too.
#[test]
fn no_truncation_is_taken_for_the_whole() {
    for (path, bytes) in models("sound") {
        let whole = summary(&bytes);
        for length in 0..bytes.len() {
            match summarize(&bytes[..length], &Limits::default()) {
                Err(_) => {}
                // Only the operator sets, functions and training graphs follow the graph.
                Ok(cut) => assert!(cut != whole, "{path} cut to {length} bytes reads as if whole"),
            }
        }
    }
    let mlp = read("sound/mlp.onnx");
    for length in (0..mlp.len() - 8).step_by(64) {
        assert!(refusal(&mlp[..length]).starts_with("not an ONNX model: "), "at {length}");
    }
}

#[test]
fn every_flipped_bit_gets_an_answer() {
    for folder in ["sound", "models", "external"] {
        for (_, bytes) in models(folder).into_iter().filter(|(_, bytes)| bytes.len() < 200) {
            let mut flipped = bytes;
            for bit in 0..flipped.len() * 8 {
                flipped[bit / 8] ^= 1 << (bit % 8);
                check_bytes(&flipped);
                flipped[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}

/// A field of bytes, as protobuf writes it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 127 {
        out.push(u8::try_from(length & 127).unwrap() | 128);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap());
    out.extend_from_slice(bytes);
    out
}

/// A model of this graph with operator set 17.
fn model(graph: &[u8]) -> Vec<u8> {
    [vec![8, 8], field(7, graph), field(8, &[16, 17])].concat()
}

fn chain(nodes: usize) -> Vec<u8> {
    let node = |index: usize| {
        let (from, to) = (format!("v{index}"), format!("v{}", index + 1));
        [field(1, from.as_bytes()), field(2, to.as_bytes()), field(4, b"Relu")].concat()
    };
    model(&(0..nodes).flat_map(|index| field(1, &node(index))).collect::<Vec<_>>())
}

#[test]
fn a_long_chain_is_read_and_an_endless_one_refused() {
    assert_eq!(summary(&chain(100_000)).nodes, 100_000);
    assert_eq!(
        refusal(&chain(200_001)),
        "too many nodes: at least 200001, at most 200000 are allowed"
    );
}

#[test]
fn nesting_cannot_exhaust_the_stack() {
    let mut graph = Vec::new();
    for _ in 0..2_000 {
        let attribute = field(5, &field(6, &graph));
        graph = field(1, &[field(4, b"If"), attribute].concat());
    }
    let refused = "too many levels of nested graphs: at least 33, at most 32 are allowed";
    assert_eq!(refusal(&model(&graph)), refused);
    let mut sequence = field(1, &[8, 1]);
    for _ in 0..2_000 {
        sequence = field(4, &field(1, &sequence));
    }
    let refused = "too many levels of nested types: at least 9, at most 8 are allowed";
    assert_eq!(refusal(&model(&field(11, &field(2, &sequence)))), refused);
}

#[test]
fn every_limit_names_what_there_is_too_much_of() {
    let check = |limits: Limits, name: &str, expected: &str| {
        let error = summarize(&read(&format!("sound/{name}.onnx")), &limits).unwrap_err();
        assert_eq!(error.to_string(), format!("too many {expected} are allowed"));
    };
    let no = Limits::default;
    check(Limits { file_bytes: 9, ..no() }, "text", "bytes in the file: at least 123, at most 9");
    check(Limits { nodes: 3, ..no() }, "mlp", "nodes: at least 4, at most 3");
    check(
        Limits { graph_levels: 2, ..no() },
        "branches",
        "levels of nested graphs: at least 3, at most 2",
    );
    check(
        Limits { call_levels: 1, ..no() },
        "functions",
        "levels of nested function calls: at least 2, at most 1",
    );
    check(
        Limits { type_levels: 2, ..no() },
        "classifier",
        "levels of nested types: at least 3, at most 2",
    );
    check(Limits { functions: 1, ..no() }, "functions", "functions: at least 2, at most 1");
    check(Limits { tensors: 2, ..no() }, "mlp", "tensors: at least 3, at most 2");
    check(
        Limits { sparse_elements: 3, ..no() },
        "sparse",
        "elements in a sparse tensor: at least 4, at most 3",
    );
    check(
        Limits { external_tensors: 1, ..no() },
        "sparse_outside",
        "external tensors: at least 2, at most 1",
    );
    check(Limits { classes: 1, ..no() }, "classifier", "classes: at least 2, at most 1");
    check(Limits { inputs: 1, ..no() }, "branches", "inputs or outputs: at least 2, at most 1");
    check(Limits { rank: 2, ..no() }, "defaults", "dimensions: at least 3, at most 2");
    check(Limits { operators: 3, ..no() }, "mlp", "distinct operators: at least 4, at most 3");
    check(Limits { opsets: 1, ..no() }, "functions", "opset imports: at least 2, at most 1");
    check(Limits { name_bytes: 6, ..no() }, "mlp", "bytes in one name: at least 7, at most 6");
    let capped = Limits { expanded_nodes: 23, ..no() };
    let error = summarize(&read("sound/functions.onnx"), &capped).unwrap_err().to_string();
    assert_eq!(error, "function calls expand the model to 24 nodes, at most 23 are allowed");
}

/// Every accepted tensor of raw data has the bytes that its shape asks for.
#[test]
fn raw_data_is_measured_in_whole_bytes() {
    let tensor = |element: u8, dim: u8, bytes: usize| {
        let raw = vec![0; bytes];
        model(&field(5, &[vec![8, dim, 16, element], field(8, b"w"), field(9, &raw)].concat()))
    };
    for (element, dim, bytes) in
        [(1, 3, 12), (7, 3, 24), (9, 3, 3), (15, 2, 32), (22, 3, 2), (26, 5, 2), (22, 0, 0)]
    {
        assert_eq!(verdict(&tensor(element, dim, bytes)), "accepted", "{element}");
        let refused =
            format!("tensor `w` has {} bytes of data where its shape needs {bytes}", bytes + 1);
        assert_eq!(refusal(&tensor(element, dim, bytes + 1)), refused);
    }
    // Types whose packing is not known are the engine's to measure.
    assert_eq!(verdict(&tensor(27, 3, 5)), "accepted");
}

#[test]
fn known_domains_are_those_that_ship_with_the_engine() {
    let verdict_on = |domain: &str| {
        verdict(&model(&field(1, &[field(4, b"Op"), field(7, domain.as_bytes())].concat())))
    };
    for domain in ENGINE_DOMAINS {
        assert_eq!(verdict_on(domain), "accepted", "{domain}");
    }
    for domain in ["my.domain", "com.microsoft.extensions", "ai.onnx.contrib", "AI.ONNX", " "] {
        let expected = format!(
            "operator `Op` of domain `{domain}` is not available: custom operators are not supported"
        );
        assert_eq!(verdict_on(domain), expected);
    }
}

#[test]
fn what_must_hold_holds_over_the_corpus() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/onnx");
    let mut seeds = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        check_bytes(&std::fs::read(entry.unwrap().path()).unwrap());
        seeds += 1;
    }
    assert!(seeds >= 40, "only {seeds} seeds");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        check_bytes(&bytes);
    }

    #[test]
    fn mutated_models_never_panic(
        choice in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..8),
    ) {
        static ALL: LazyLock<Vec<(String, Vec<u8>)>> =
            LazyLock::new(|| ["sound", "models", "external"].into_iter().flat_map(models).collect());
        let mut bytes = choice.get(&ALL).1.clone();
        for (place, value, kind) in changes {
            let place = place.index(bytes.len() + 1);
            match kind {
                0 if place < bytes.len() => bytes[place] = value,
                1 if place < bytes.len() => drop(bytes.remove(place)),
                2 => bytes.insert(place, value),
                _ => bytes.truncate(place.max(1)),
            }
        }
        check_bytes(&bytes);
    }
}
