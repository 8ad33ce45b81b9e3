//! A pre-flight reader of ONNX files: what a model is, asks for and points to, before any engine sees it.
//!
//! Loading a model is the most dangerous thing an engine does: two kilobytes can occupy it for ever, a flipped
//! bit can end the process, a path can lead anywhere. This reader walks the file's protobuf itself, refuses
//! what no sound model holds, and lists what the rest of tidegate must know: operators, signature, external
//! data. Always true:
//! - It never panics, whatever the bytes; time is linear in the file, and memory in what the limits allow.
//! - Where parsers of protobuf may differ (a part given twice, groups, a field of another type), it refuses.
//! - What it accepts may still be refused by an engine: operators' own rules are the engine's.
//!
//! Not here: opening external data, running anything, the sandbox in which a version is proven.

mod classes;
mod complete;
mod declared;
mod division;
mod expansion;
mod external;
mod growth;
mod killers;
mod misread;
mod rounds;
mod walk;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

pub use classes::Classes;
pub use declared::{Declared, Dim, ElementType, ValueType};
pub use division::{check_operators, quotients};
pub use external::{Carrier, ExternalTensor};
pub use growth::growth;
pub use killers::{Hazard, KILLERS, Killer, Remedy};
pub use misread::{Misread, misread};

/// What a model holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// The version of the file format.
    pub ir_version: i64,
    /// What wrote the file, shortened; empty if it does not say.
    pub producer: String,
    /// The operator sets that the model imports: domain (empty for ONNX's own) and version.
    pub opsets: Vec<(String, i64)>,
    /// The domains of all nodes, calls of the model's own functions included.
    pub domains_used: BTreeSet<String>,
    /// Domain and name of every operator that an engine must bring; the model's own functions are none.
    pub operators: BTreeSet<(String, String)>,
    /// The tensors whose bytes lie in other files.
    pub external_data: Vec<ExternalTensor>,
    /// The inputs, in the model's order, those with an initializer included.
    pub inputs: Vec<Declared>,
    /// The outputs, in the model's order.
    pub outputs: Vec<Declared>,
    /// The inputs that an initializer gives a value: a default that a request may replace, or, before version 4 of the
    /// format, a constant.
    pub initializers: BTreeSet<String>,
    /// The classes of each `ZipMap` in the main graph, by the name of its output.
    pub classes: BTreeMap<String, Classes>,
    /// The nodes in the file, those of subgraphs and functions included.
    pub nodes: usize,
    /// The nodes of the graphs once every function call is replaced by the function's body, calls included.
    pub expanded_nodes: u64,
    /// The functions that the model brings.
    pub functions: usize,
    /// Levels of graphs in graphs once function calls are replaced; 1 where no node has a subgraph.
    pub depth: usize,
}

/// How much a model may hold.
///
/// The defaults lie well above what exporters write and well below what hurts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file; protobuf itself ends at 2 GiB.
    pub file_bytes: u64,
    /// Nodes in the file.
    pub nodes: usize,
    /// Nodes once function calls are replaced.
    pub expanded_nodes: u64,
    /// Levels of graphs in graphs; the reader's stack grows with it.
    pub graph_levels: usize,
    /// Levels of functions that call functions.
    pub call_levels: usize,
    /// Levels of types in types.
    pub type_levels: usize,
    /// Functions, and as many training graphs.
    pub functions: usize,
    /// Tensors in the file: initializers and attributes.
    pub tensors: usize,
    /// Elements of a sparse tensor once it is dense.
    pub sparse_elements: u64,
    /// Tensors whose bytes lie in other files.
    pub external_tensors: usize,
    /// Inputs, and as many outputs.
    pub inputs: usize,
    /// Classes that maps of scores name, all together.
    pub classes: usize,
    /// Dimensions of an input or output.
    pub rank: usize,
    /// Different operators.
    pub operators: usize,
    /// Imported operator sets, and domains.
    pub opsets: usize,
    /// Bytes of one name.
    pub name_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: i32::MAX.unsigned_abs().into(),
            nodes: 200_000,
            expanded_nodes: 1_000_000,
            graph_levels: 32,
            call_levels: 64,
            type_levels: 8,
            functions: 1_000,
            tensors: 200_000,
            sparse_elements: 1 << 30,
            external_tensors: 100_000,
            inputs: 10_000,
            classes: 1_000_000,
            rank: 64,
            operators: 10_000,
            opsets: 256,
            name_bytes: 4_096,
        }
    }
}

/// Why a file is not a model that can be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    /// The bytes are not what ONNX writes: cut off, damaged or something else.
    #[error("not an ONNX model: {reason} at byte {offset}")]
    Malformed {
        /// What was met.
        reason: &'static str,
        /// Where, from the start of the file.
        offset: usize,
    },
    /// The file is empty.
    #[error("not an ONNX model: the file is empty")]
    Empty,
    /// ONNX Runtime would take the file for one in its own format, which is not checked here.
    #[error("not an ONNX model but one in ONNX Runtime's own format; export it as `.onnx`")]
    OrtFormat,
    /// There is no graph.
    #[error("not an ONNX model: it has no graph")]
    NoGraph,
    /// The version of the format is missing.
    #[error("not an ONNX model: it does not say its IR version")]
    NoIrVersion,
    /// No operator set is imported.
    #[error("the model imports no operator set; export it with an `opset_import`")]
    NoOpset,
    /// An operator set is imported in a version that cannot be.
    #[error("the model imports version {version} of operator set `{domain}`; versions start at 1")]
    OpsetVersion {
        /// The operator set's domain.
        domain: String,
        /// The version.
        version: i64,
    },
    /// There is more of something than `Limits` allow.
    #[error("too many {what}: at least {count}, at most {max} are allowed")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many were met when the reader gave up.
        count: u64,
        /// How many there may be.
        max: u64,
    },
    /// Function calls make the model too large.
    #[error("function calls expand the model to {nodes} nodes, at most {max} are allowed")]
    Expansion {
        /// The nodes with all calls replaced; `u64::MAX` stands for that and more.
        nodes: u64,
        /// How many there may be.
        max: u64,
    },
    /// A function is defined in terms of itself.
    #[error(
        "function `{function}` calls itself, perhaps through others; ONNX functions cannot be recursive"
    )]
    FunctionCycle {
        /// Domain and name of one of the functions.
        function: String,
    },
    /// A function is there twice.
    #[error("function `{0}` is defined more than once")]
    DuplicateFunction(String),
    /// A tensor's bytes lie where they must not.
    #[error(
        "external data of `{tensor}`: location `{location}` is refused because {problem}; give a relative \
         path below the model's folder"
    )]
    Location {
        /// The tensor.
        tensor: String,
        /// The location, shortened.
        location: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A tensor's bytes lie at numbers that are none.
    #[error(
        "external data of `{tensor}`: {key} `{value}` {problem}; give byte counts within the file"
    )]
    Range {
        /// The tensor.
        tensor: String,
        /// Which number.
        key: &'static str,
        /// The number as the file spells it, shortened.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Text cannot lie in another file.
    #[error("external data of `{tensor}`: strings must lie in the model file")]
    ExternalText {
        /// The tensor.
        tensor: String,
    },
    /// A tensor's bytes lie at an unknown kind of place.
    #[error("tensor `{tensor}` has an unknown data location; known are DEFAULT and EXTERNAL")]
    DataLocation {
        /// The tensor.
        tensor: String,
    },
    /// A tensor's dimensions make no sense.
    #[error("tensor `{tensor}` has an impossible shape: {problem}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It may divide the smallest integer by -1.
    #[error(
        "the `Div` that gives `{output}` may divide integers of 32 or 64 bits by -1, which ends the process for the \
         smallest one; divide by a constant without -1 or by an input, or cast to floating point first"
    )]
    Division {
        /// What it gives.
        output: String,
    },
    /// It has an operator that ends the process on ordinary requests.
    #[error("the `{operator}` that gives `{output}` may end the process: {reason}; {advice}")]
    Killer {
        /// The operator.
        operator: &'static str,
        /// The name of its first output.
        output: String,
        /// The harm it does, and when.
        reason: &'static str,
        /// The change that would make it right.
        advice: &'static str,
    },
    /// A tensor has more or fewer bytes than its shape asks for.
    #[error("tensor `{tensor}` has {actual} bytes of data where its shape needs {expected}")]
    RawData {
        /// The tensor.
        tensor: String,
        /// The bytes by datatype and shape.
        expected: u64,
        /// The bytes that are there.
        actual: usize,
    },
}

impl OnnxError {
    fn malformed(reason: &'static str, offset: usize) -> Self {
        Self::Malformed { reason, offset }
    }
}

/// Reads a model without running, resolving or opening anything.
pub fn summarize(bytes: &[u8], limits: &Limits) -> Result<Summary, OnnxError> {
    if bytes.is_empty() {
        return Err(OnnxError::Empty);
    }
    let count = bytes.len() as u64;
    if count > limits.file_bytes {
        let (what, max) = ("bytes in the file", limits.file_bytes);
        return Err(OnnxError::Limit { what, count, max });
    }
    // ONNX Runtime decides by these four bytes, and a file can be made that is both.
    if bytes.get(4..8) == Some(b"ORTM") {
        return Err(OnnxError::OrtFormat);
    }
    walk::model(bytes, limits)
}

/// True if an initializer of an input's name is a default that a request may replace; in older files it is a constant.
///
/// Source: ONNX, "IR", and ONNX Runtime: from IR version 4 on initializers need not be inputs.
fn has_defaults(bytes: &[u8]) -> Result<bool, OnnxError> {
    let mut fields = wire::Fields::new(bytes);
    let mut version = 0;
    while let Some(field) = fields.advance()? {
        if field.number == 1 {
            version = field.int64()?;
        }
    }
    Ok(version >= 4)
}

/// Domains whose operators ship with ONNX Runtime.
///
/// Not `com.microsoft.*` as a whole: `com.microsoft.extensions` is a library of custom operators.
const ENGINE_DOMAINS: [&str; 10] = [
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.training",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "com.microsoft",
    "com.microsoft.experimental",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
];

/// One message per operator of the model that only a custom operator library could bring.
pub fn unsupported_domains(summary: &Summary) -> Vec<String> {
    let custom = |(domain, _): &&(String, String)| !ENGINE_DOMAINS.contains(&domain.as_str());
    let message = |(domain, operator): &(String, String)| {
        let (domain, operator) = (shown(domain), shown(operator));
        format!(
            "operator `{operator}` of domain `{domain}` is not available: custom operators are not supported"
        )
    };
    summary.operators.iter().filter(custom).map(message).collect()
}

/// The inputs and outputs that are no tensors, such as the maps that `ZipMap` makes of probabilities.
pub fn not_tensors(summary: &Summary) -> impl Iterator<Item = &Declared> {
    let all = summary.inputs.iter().chain(&summary.outputs);
    all.filter(|declared| !matches!(declared.value_type, ValueType::Tensor { .. }))
}

/// One message per input or output that the protocol cannot carry, with what to do about it.
pub fn unservable(summary: &Summary) -> Vec<String> {
    let inputs = summary.inputs.iter().map(|declared| ("input", declared));
    let outputs = summary.outputs.iter().map(|declared| ("output", declared));
    let message = |(role, declared): (&str, &Declared)| {
        let advice = match &declared.value_type {
            ValueType::Tensor { element, .. } if element.datatype().is_some() => return None,
            ValueType::Tensor { .. } => "cast it in the model to a type of the protocol",
            ValueType::Sequence(of) if matches!(**of, ValueType::Map { .. }) => {
                "export the classifier without `ZipMap` (`options={'zipmap': False}`)"
            }
            _ => "export the model with tensors only",
        };
        let (name, value_type) = (shown(&declared.name), &declared.value_type);
        Some(format!(
            "{role} `{name}` is a {value_type}, which the protocol cannot carry; {advice}"
        ))
    };
    inputs.chain(outputs).filter_map(message).collect()
}

/// What fuzzing calls: everything here on arbitrary bytes, and what must hold of the answers.
#[doc(hidden)]
pub fn check_bytes(bytes: &[u8]) {
    let tight = Limits { nodes: 4, expanded_nodes: 16, graph_levels: 2, ..Limits::default() };
    for limits in [Limits::default(), tight] {
        match summarize(bytes, &limits) {
            Ok(summary) => {
                drop(check_operators(bytes, &limits));
                drop(quotients(bytes, &limits));
                drop(growth(bytes, &summary, &limits));
                drop(misread(bytes, &limits));
                assert!(summary.nodes <= limits.nodes && summary.depth <= limits.graph_levels);
                assert!(summary.expanded_nodes <= limits.expanded_nodes);
                assert!(!summary.opsets.is_empty());
                for message in unsupported_domains(&summary).iter().chain(&unservable(&summary)) {
                    assert!(!message.chars().any(char::is_control), "{message:?}");
                }
                assert!(not_tensors(&summary).count() <= unservable(&summary).len());
            }
            Err(error) => {
                let message = error.to_string();
                assert!(message.len() < 2_000, "{message}");
                assert!(!message.chars().any(char::is_control), "{message:?}");
            }
        }
    }
}

/// Refuses more than `max` of something.
fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), OnnxError> {
    if count <= max {
        return Ok(());
    }
    Err(OnnxError::Limit { what, count: count as u64, max: max as u64 })
}

/// Names from a file are cut to this many characters before they stand in a message.
const NAME_SHOWN_MAX: usize = 80;

fn shown(name: &str) -> String {
    name.chars().take(NAME_SHOWN_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
