//! A corpus of models that mean harm, made when the test runs: the same ones every time.
//!
//! Not here: proving them and what must hold meanwhile (`hostile`).

use std::{fs, path::Path};

use tidegate::lifecycle::Code;

use crate::{
    models::{
        BOOL, FLOAT, INT32, INT64, Message, declared, endless_loop, floats, graph, graph_attribute,
        int_attribute, integers, model, node, tensor_attribute, with_opset,
    },
    repository::{SAMPLES, source},
};

/// A model, what lies beside it, and what its refusal may be called.
#[derive(Debug, Default)]
pub(crate) struct Hostile {
    pub(crate) name: String,
    pub(crate) model: Vec<u8>,
    pub(crate) external: Vec<(&'static str, Vec<u8>)>,
    pub(crate) golden: Option<Vec<u8>>,
    /// Empty: it may turn out to be sound.
    pub(crate) codes: &'static [Code],
}

/// All of them.
pub(crate) fn all() -> Vec<Hostile> {
    let parts = [
        truncations(),
        flips(),
        noise(),
        fixtures(),
        mistyped(),
        bombs(),
        hangs(),
        not_numbers(),
        wrong_golden(),
        strangers(),
        divisions(),
        outside(),
    ];
    parts.into_iter().flatten().collect()
}

fn hostile(name: impl Into<String>, model: Vec<u8>, codes: &'static [Code]) -> Hostile {
    Hostile { name: name.into(), model, codes, ..Hostile::default() }
}

/// A model of one input `x` and one output `y`.
fn single(element: i64, nodes: Vec<Message>, initializers: Vec<Message>) -> Vec<u8> {
    let input = declared("x", element, &[2]);
    model(graph(nodes, initializers, vec![input], vec![declared("y", element, &[2])]))
}

fn truncations() -> Vec<Hostile> {
    let whole = fs::read(source("breast_cancer", "2")).unwrap();
    let cut = |part: usize| {
        let length = whole.len() * part / 60;
        let codes = &[Code::Malformed, Code::EngineRefused, Code::Golden];
        hostile(format!("cut at {length}"), whole[..length].to_vec(), codes)
    };
    (0..60).map(cut).collect()
}

fn flips() -> Vec<Hostile> {
    let whole = fs::read(source("iris", "1")).unwrap();
    let flip = |number: usize| {
        let mut bytes = whole.clone();
        // A prime step meets every part of the file.
        let bit = number * 7_919 * 13 % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        hostile(format!("bit {bit} flipped"), bytes, &[])
    };
    (0..60).map(flip).collect()
}

fn noise() -> Vec<Hostile> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut byte = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    let mut noise = |length: usize| (0..length).map(|_| byte()).collect();
    (0..20)
        .map(|n| hostile(format!("noise {n}"), noise(16 << (n % 8)), &[Code::Malformed]))
        .collect()
}

/// The files of the fixtures that are harmful by themselves.
fn fixtures() -> Vec<Hostile> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile/models");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let harmful = files.filter(|path| {
        let harmless = ["huge_input", "integer_division", "nested_32"];
        !harmless.contains(&path.file_stem().unwrap().to_str().unwrap())
    });
    let codes = &[
        Code::Malformed,
        Code::Limits,
        Code::UnsupportedOperator,
        Code::ExternalData,
        Code::Division,
        Code::EngineRefused,
        Code::Memory,
    ];
    harmful
        .map(|path| hostile(path.display().to_string(), fs::read(path).unwrap(), codes))
        .collect()
}

/// Operators on types or shapes that they do not take.
fn mistyped() -> Vec<Hostile> {
    let refused: &[Code] = &[Code::EngineRefused];
    let operators = [
        "Sqrt",
        "Exp",
        "Log",
        "Softmax",
        "Sigmoid",
        "Tanh",
        "Erf",
        "Elu",
        "Ceil",
        "Floor",
        "Round",
        "Sin",
        "Cos",
        "Acos",
        "Asin",
        "HardSigmoid",
        "Softplus",
        "Reciprocal",
        "Neg",
        "Abs",
    ];
    let on_switches = operators.map(|operator| {
        let bytes = single(BOOL, vec![node(operator, &["x"], &["y"])], vec![]);
        hostile(format!("{operator} of switches"), bytes, refused)
    });
    let mixed = ["Add", "Sub", "Mul", "Max", "MatMul"].map(|operator| {
        let bytes = single(
            FLOAT,
            vec![node(operator, &["x", "n"], &["y"])],
            vec![integers("n", INT64, &[2], &[1, 2])],
        );
        hostile(format!("{operator} of two types"), bytes, refused)
    });
    let misfit = [3, 5, 7].map(|rows| {
        let rows = usize::try_from(rows).unwrap();
        let weights = floats("w", &[i64::try_from(rows).unwrap()], &vec![1.0; rows]);
        let bytes = single(FLOAT, vec![node("Add", &["x", "w"], &["y"])], vec![weights]);
        hostile(format!("{rows} and 2 elements"), bytes, refused)
    });
    // The engine cannot tell before it runs.
    let shape = vec![node("Reshape", &["x", "s"], &["y"])];
    let output = declared("y", FLOAT, &[5]);
    let inputs = vec![declared("x", FLOAT, &[-1]), declared("s", INT64, &[-1])];
    let lying = hostile(
        "another shape than declared",
        model(graph(shape, vec![], inputs, vec![output])),
        &[],
    );
    on_switches.into_iter().chain(mixed).chain(misfit).chain([lying]).collect()
}

/// Little to read, much to hold.
fn bombs() -> Vec<Hostile> {
    let filled = |power: i64| {
        let value = tensor_attribute("value", floats("v", &[1], &[1.0]));
        let fill = node("ConstantOfShape", &["s"], &["big"]).message(5, value);
        let sum = node("ReduceSum", &["big"], &["one"]).message(5, int_attribute("keepdims", 0));
        let nodes = vec![fill, sum, node("Add", &["x", "one"], &["y"])];
        let bytes = single(FLOAT, nodes, vec![integers("s", INT64, &[1], &[1 << power])]);
        hostile(format!("2^{power} elements made"), bytes, &[Code::Memory, Code::EngineRefused])
    };
    let declared_only = |power: i64| {
        let tensor = floats("w", &[1 << power], &[1.0]);
        let bytes = single(FLOAT, vec![node("Add", &["x", "w"], &["y"])], vec![tensor]);
        hostile(format!("2^{power} elements said to be there"), bytes, &[Code::Malformed])
    };
    (28..=38).map(filled).chain((40..45).map(declared_only)).collect()
}

fn hangs() -> Vec<Hostile> {
    let looped = |n: u32| hostile(format!("endless {n}"), endless_loop(), &[Code::Timeout]);
    let names: Vec<String> = (0..100_000).map(|n| format!("v{n}")).collect();
    let step = |pair: &[String]| node("Sigmoid", &[&pair[0]], &[&pair[1]]);
    let mut nodes = vec![node("Identity", &["x"], &["v0"])];
    nodes.extend(names.windows(2).map(step));
    nodes.push(node("Identity", &["v99999"], &["y"]));
    let chain = hostile("100,000 nodes", single(FLOAT, nodes, vec![]), &[Code::Timeout]);
    (0..6).map(looped).chain([chain]).collect()
}

fn not_numbers() -> Vec<Hostile> {
    let shifted = |operator: &str, by: f32| {
        let nodes = vec![node("Add", &["x", "by"], &["s"]), node(operator, &["s"], &["y"])];
        let bytes = single(FLOAT, nodes, vec![floats("by", &[1], &[by])]);
        hostile(format!("{operator}({by})"), bytes, &[])
    };
    let nothing = single(FLOAT, vec![node("Div", &["x", "x"], &["y"])], vec![]);
    let all = [
        ("Log", -1.0),
        ("Sqrt", -1.0),
        ("Asin", 2.0),
        ("Acos", 2.0),
        ("Atanh", 2.0),
        ("Acosh", 0.0),
    ];
    let all = all.into_iter().map(|(operator, by)| shifted(operator, by));
    all.chain([hostile("0 / 0", nothing, &[])]).collect()
}

fn wrong_golden() -> Vec<Hostile> {
    let mut all = Vec::new();
    for name in ["iris", "digits", "breast_cancer"] {
        let golden = fs::read(Path::new(SAMPLES).join(name).join("1/golden.json")).unwrap();
        let mut parsed: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        parsed["cases"][0]["outputs"][0]["data"][0] = 77.into();
        let renamed =
            String::from_utf8(golden.clone()).unwrap().replacen("\"name\":\"", "\"name\":\"z", 1);
        let other = [
            parsed.to_string().into_bytes(),
            renamed.replace("\"name\": \"", "\"name\": \"z").into_bytes(),
            golden[..golden.len() / 2].to_vec(),
            golden[..golden.len() - 2].to_vec(),
            b"[]".to_vec(),
        ];
        for (index, golden) in other.into_iter().enumerate() {
            let model = fs::read(source(name, "1")).unwrap();
            let refused = hostile(format!("{name}, wrong golden {index}"), model, &[Code::Golden]);
            all.push(Hostile { golden: Some(golden), ..refused });
        }
    }
    all
}

/// Operators and operator sets that nobody has.
fn strangers() -> Vec<Hostile> {
    let of_domain = |n: u32| {
        let stranger = node("Frobnicate", &["x"], &["y"]).bytes(7, format!("domain.{n}"));
        hostile(
            format!("custom {n}"),
            single(FLOAT, vec![stranger], vec![]),
            &[Code::UnsupportedOperator],
        )
    };
    let unknown = |n: u32| {
        let nodes = vec![node(&format!("Frobnicate{n}"), &["x"], &["y"])];
        hostile(
            format!("unknown operator {n}"),
            single(FLOAT, nodes, vec![]),
            &[Code::EngineRefused],
        )
    };
    let of_version = |version: i64| {
        let ends = |name| vec![declared(name, FLOAT, &[2])];
        let inside = graph(vec![node("Identity", &["x"], &["y"])], vec![], ends("x"), ends("y"));
        let bytes = with_opset(inside, version);
        hostile(format!("opset {version}"), bytes, &[Code::EngineRefused, Code::Malformed])
    };
    let versions = [-1, 0, 99, 100, 999, 1 << 20, 1 << 31, i64::MAX, i64::MIN];
    let strangers = (0..10).map(of_domain).chain((0..10).map(unknown));
    strangers.chain(versions.into_iter().map(of_version)).collect()
}

fn divisions() -> Vec<Hostile> {
    let by_constant = |element: i64, divisor: i64| {
        let nodes = vec![node("Neg", &["x"], &["m"]), node("Div", &["m", "d"], &["y"])];
        let bytes = single(element, nodes, vec![integers("d", element, &[1], &[divisor])]);
        hostile(format!("type {element} by {divisor}"), bytes, &[Code::Division])
    };
    let by_itself = |element: i64| {
        let nodes = vec![node("Neg", &["x"], &["m"]), node("Div", &["m", "m"], &["y"])];
        let bytes = single(element, nodes, vec![]);
        hostile(format!("type {element} by itself"), bytes, &[Code::Division])
    };
    let mut all =
        vec![by_constant(INT32, -1), by_constant(INT64, -1), by_itself(INT32), by_itself(INT64)];
    all.extend(lies());
    all
}

/// Integers that are declared to be numbers: what the look at divisions believes, the engine must check.
fn lies() -> Vec<Hostile> {
    let refused: &[Code] = &[Code::EngineRefused];
    let number = |name| declared(name, FLOAT, &[2]);
    let integer = |name| declared(name, INT64, &[2]);
    let quotient = || vec![node("Identity", &["x"], &["u"]), node("Div", &["u", "u"], &["y"])];
    let value = graph(quotient(), vec![], vec![integer("x")], vec![integer("y")]);
    let output = graph(
        vec![node("Identity", &["x"], &["u"]), node("Div", &["u", "u"], &["y"])],
        vec![],
        vec![integer("x")],
        vec![number("y")],
    );
    let looped = |state: Message, result: Message| {
        let body = graph(
            vec![node("Identity", &["go"], &["on"]), node("Div", &["s", "s"], &["t"])],
            vec![],
            vec![declared("round", INT64, &[]), declared("go", BOOL, &[]), state],
            vec![declared("on", BOOL, &[]), result],
        );
        let node = node("Loop", &["rounds", "yes", "x"], &["y"]);
        let constants =
            vec![integers("rounds", INT64, &[], &[2]), integers("yes", BOOL, &[], &[1])];
        let nodes = vec![node.message(5, graph_attribute("body", body))];
        graph(nodes, constants, vec![integer("x")], vec![integer("y")])
    };
    let branch =
        || graph(vec![node("Div", &["x", "x"], &["t"])], vec![], vec![], vec![number("t")]);
    let choice = node("If", &["yes"], &["y"])
        .message(5, graph_attribute("then_branch", branch()))
        .message(5, graph_attribute("else_branch", branch()));
    let yes = vec![integers("yes", BOOL, &[], &[1])];
    let chosen = graph(vec![choice], yes, vec![integer("x")], vec![integer("y")]);
    vec![
        hostile("a value lies", model(value.message(13, number("u"))), refused),
        hostile("an output lies", model(output), refused),
        hostile("a loop's state lies", model(looped(number("s"), integer("t"))), refused),
        hostile("a loop's result lies", model(looped(integer("s"), number("t"))), refused),
        hostile("a branch lies", model(chosen), refused),
    ]
}

/// A weight outside of the file.
fn outside() -> Vec<Hostile> {
    let weight = |entries: &[(&str, &str)]| {
        let tensor = Message::default().number(1, 2).number(2, FLOAT).bytes(8, "w").number(14, 1);
        let entry = |(key, value): &(&str, &str)| Message::default().bytes(1, key).bytes(2, value);
        let tensor = tensor.messages(13, entries.iter().map(entry));
        single(FLOAT, vec![node("Add", &["x", "w"], &["y"])], vec![tensor])
    };
    let spelled = [
        "",
        "/etc/passwd",
        "../w.bin",
        "a/../../w.bin",
        "..",
        "..\\w.bin",
        "C:\\w.bin",
        "a\0b",
        "./../w.bin",
        "missing.bin",
        "w.bin/..",
        "*/_ORT_MEM_ADDR_/*",
    ];
    let mut all: Vec<_> = spelled
        .iter()
        .map(|location| {
            let bytes = weight(&[("location", location)]);
            hostile(format!("weight at {location:?}"), bytes, &[Code::ExternalData])
        })
        .collect();
    for (offset, length) in
        [("0", "9"), ("4", "8"), ("9223372036854775807", "8"), ("-1", "8"), ("0", "x")]
    {
        let bytes = weight(&[("location", "w.bin"), ("offset", offset), ("length", length)]);
        let name = format!("weight at {offset}, {length} long");
        let refused = hostile(name, bytes, &[Code::ExternalData]);
        all.push(Hostile { external: vec![("w.bin", vec![0; 8])], ..refused });
    }
    all
}
