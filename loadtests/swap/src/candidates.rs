//! Candidates that must not take over: files that are broken, and files that harm whoever runs them.
//!
//! Each has the inputs and outputs of the truth, so that only trying it shows what it is.
//!
//! Not here: putting them into a repository.

use clap::ValueEnum;

use crate::{
    onnx::{Element, Graph},
    truth,
};

/// What is wrong with a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bad {
    /// The file ends early
    Truncated,
    /// A run goes on for ever
    Hangs,
    /// Loading it kills the process: the smallest 32-bit integer divided by -1
    Aborts,
    /// A run needs 10 GiB
    Memory,
    /// It answers NaN, where its golden.json expects numbers
    Nan,
}

impl Bad {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Hangs => "hangs",
            Self::Aborts => "aborts",
            Self::Memory => "memory",
            Self::Nan => "nan",
        }
    }

    /// The files of such a version: their names and contents.
    pub(crate) fn files(self, version: u64) -> Vec<(&'static str, Vec<u8>)> {
        let model = match self {
            Self::Truncated => {
                let mut whole = truth::model(version, 0);
                whole.truncate(whole.len() / 2);
                whole
            }
            Self::Hangs => hangs(),
            Self::Aborts => aborts(),
            Self::Memory => memory(),
            Self::Nan => nan(),
        };
        let mut files = vec![("model.onnx", model)];
        if self == Self::Nan {
            files.push(("golden.json", GOLDEN.into()));
        }
        files
    }
}

const GOLDEN: &str = r#"{"cases": [{
  "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]},
             {"name": "nonce", "shape": [1], "datatype": "INT64", "data": [1]}],
  "outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [2.0]},
              {"name": "echo", "shape": [1], "datatype": "INT64", "data": [1]}]
}]}"#;

fn frame() -> Graph {
    Graph::new("candidate")
        .input("x", Element::Float, &[None])
        .input("nonce", Element::Int64, &[Some(1)])
        .output("y", Element::Float, &[None])
        .output("echo", Element::Int64, &[Some(1)])
        .node("Identity", &["nonce"], &["echo"])
}

fn hangs() -> Vec<u8> {
    const TURNS: i64 = 1 << 62;
    let body = Graph::new("turn")
        .input("turn", Element::Int64, &[])
        .input("go_on", Element::Bool, &[])
        .input("before", Element::Float, &[None])
        .output("still_go_on", Element::Bool, &[])
        .output("after", Element::Float, &[None])
        .floats("one", &[1], &[1.0])
        .node("Identity", &["go_on"], &["still_go_on"])
        .node("Add", &["before", "one"], &["after"]);
    frame()
        .constant("turns", Element::Int64, &[], &TURNS.to_le_bytes())
        .constant("yes", Element::Bool, &[], &[1])
        .node_with_body("Loop", &["turns", "yes", "x"], &["y"], &body)
        .into_model()
}

fn aborts() -> Vec<u8> {
    Graph::new("candidate")
        .input("x", Element::Float, &[None])
        .input("nonce", Element::Int64, &[Some(1)])
        .output("y", Element::Float, &[None])
        .output("echo", Element::Int64, &[Some(1)])
        .output("quotient", Element::Int32, &[Some(1)])
        .constant("smallest", Element::Int32, &[1], &i32::MIN.to_le_bytes())
        .constant("minus_one", Element::Int32, &[1], &(-1_i32).to_le_bytes())
        .node("Identity", &["nonce"], &["echo"])
        .node("Identity", &["x"], &["y"])
        .node("Div", &["smallest", "minus_one"], &["quotient"])
        .into_model()
}

/// The length depends on an input, so that no engine can work it out while loading.
fn memory() -> Vec<u8> {
    const ELEMENTS: i64 = (10 << 30) / 4;
    frame()
        .constant("zero", Element::Int64, &[1], &0_i64.to_le_bytes())
        .constant("elements", Element::Int64, &[1], &ELEMENTS.to_le_bytes())
        .node("Mul", &["nonce", "zero"], &["nothing"])
        .node("Add", &["nothing", "elements"], &["length"])
        .node("ConstantOfShape", &["length"], &["large"])
        .node("ReduceMax", &["large"], &["most"])
        .node("Add", &["x", "most"], &["y"])
        .into_model()
}

fn nan() -> Vec<u8> {
    frame()
        .floats("zero", &[1], &[0.0])
        .node("Mul", &["x", "zero"], &["nothing"])
        .node("Div", &["nothing", "zero"], &["y"])
        .into_model()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::Bad;
    use crate::truth;

    #[test]
    fn every_kind_has_a_model_of_its_own() {
        let whole = truth::model(2, 0);
        let mut models: Vec<_> =
            Bad::value_variants().iter().map(|bad| bad.files(2)[0].1.clone()).collect();
        assert!(whole.starts_with(&models[0]) && models[0].len() < whole.len());
        models.push(whole);
        models.sort();
        models.dedup();
        assert_eq!(models.len(), Bad::value_variants().len() + 1);
    }
}
