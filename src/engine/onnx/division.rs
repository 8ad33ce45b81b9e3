//! Division: whether a model can divide the smallest integer by -1, which ends the process that runs it.
//!
//! The processor raises a signal for that division in 32 and 64 bits, and ONNX Runtime does not look first; dividing by
//! 0 it does look for. So a `Div` is let through only where one of these is certain: it does not divide integers of
//! those widths, its divisor never is -1, or its dividend never is the smallest integer. What is not certain counts as
//! possible. Certain are
//! - the declared types of inputs and of values outside functions: engines refuse a model whose types turn out
//!   otherwise;
//! - the elements of constants: of initializers that are no inputs, and of `Constant`;
//! - the outputs of operators listed here; an unlisted operator may give anything.
//!
//! Both operands of a `Div` and its result have one type, so it is enough to know one of them. Function calls are
//! followed with what is known of their arguments. The work is bounded by a number of steps.
//!
//! In the main graph a `Div` is let through as well where an operand has no other elements than an input of the model:
//! requests are then kept from bringing the numbers (`model::Quotient`).
//!
//! On the same walk each node is compared with the table of other operators that end the process (`killers`), which
//! needs to know of an operand whether its elements, or its shape, follow from the values of a request; and so does the
//! table of those whose output may be of any size (`growth`).
//!
//! Not here: divisions inside of other operators, which ONNX Runtime guards.

use std::collections::{HashMap, HashSet};

use crate::model::{Operand, Quotient};

use super::{
    Limits, OnnxError, ValueType,
    declared::{Declared, Dim, ElementType, declared},
    growth::grows_by_values,
    has_defaults,
    killers::{Hazard, Judged, Sizes},
    shown,
    walk::default_domain,
    wire::Fields,
};

/// What may be true of a value; a bit that is not set is certainly not true.
pub(super) type Facts = u8;
/// Its elements are integers of 32 or 64 bits.
const INTEGER: Facts = 1;
/// One of them is -1.
const MINUS_ONE: Facts = 2;
/// One of them is the smallest of its type.
const SMALLEST: Facts = 4;
/// One of them is 0 or less.
pub(super) const LOW: Facts = 8;
/// Its elements follow from the values of a request.
pub(super) const VARIES: Facts = 16;
/// Its shape follows from the values of a request, so that it may be empty although no input is.
pub(super) const SHAPED: Facts = 32;
/// Transposed value whose first dimension was another.
pub(super) const MOVED: Facts = 64;
/// Of another type, with any elements.
const OTHER: Facts = MINUS_ONE | SMALLEST | LOW;
const ANYTHING: Facts = INTEGER | OTHER;
const RUNTIME: Facts = VARIES | SHAPED;
const UNKNOWN: Facts = ANYTHING | RUNTIME;

/// Inputs and outputs of nodes that are looked at, function calls followed.
const STEPS_MAX: u64 = 20_000_000;

/// Different divisions that requests are kept from; a model with more is refused.
const QUOTIENTS_MAX: usize = 100;

/// Refuses a model with an operator that could end the process on an ordinary request; gives those that do so only on
/// empty inputs.
///
/// `bytes` were accepted by [`super::summarize`].
pub fn check_operators(bytes: &[u8], limits: &Limits) -> Result<Vec<Hazard>, OnnxError> {
    Ok(judged(bytes, limits)?.hazards)
}

/// True if the size of what an operator gives follows from a request's values.
pub(super) fn grows(bytes: &[u8], limits: &Limits) -> Result<bool, OnnxError> {
    Ok(judged(bytes, limits)?.grows)
}

/// The divisions whose operands requests must be kept from.
///
/// `bytes` were accepted by [`super::summarize`].
pub fn quotients(bytes: &[u8], limits: &Limits) -> Result<Vec<Quotient>, OnnxError> {
    Ok(judged(bytes, limits)?.quotients)
}

/// Findings of the walk.
#[derive(Default)]
struct Found {
    hazards: Vec<Hazard>,
    /// An output has a size that follows from a request's values.
    grows: bool,
    quotients: Vec<Quotient>,
}

fn judged(bytes: &[u8], limits: &Limits) -> Result<Found, OnnxError> {
    let mut fields = Fields::new(bytes);
    let (mut main, mut functions) = (None, HashMap::new());
    let mut reader = Reader { limits, steps: 0, has_defaults: has_defaults(bytes)? };
    while let Some(field) = fields.advance()? {
        match field.number {
            7 => main = Some(reader.graph(field.message()?)?),
            25 => {
                let (key, body) = reader.function(field.message()?)?;
                functions.insert(key, body);
            }
            _ => {}
        }
    }
    let Some(main) = main else { return Ok(Found::default()) };
    let inputs = vec![ANYTHING | VARIES; main.inputs.len()];
    let sizes = main.inputs.iter().map(|input| main.sizes_of(input)).fold(Sizes::Fixed, Sizes::max);
    let mut judge = Judge {
        functions: &functions,
        sizes,
        main: &main,
        origins: main.inputs.iter().map(|input| (*input, *input)).collect(),
        found: Found::default(),
        calls: 0,
        steps: 0,
    };
    judge.graph(&main, Some(&inputs), &mut Scopes::default())?;
    Ok(judge.found)
}

/// Domain, name and overload.
type Key<'a> = (&'a str, &'a str, &'a str);

/// A graph, or the body of a function.
#[derive(Default)]
struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    constants: Vec<(&'a str, Facts)>,
    /// Constants that an input can replace.
    defaults: HashMap<&'a str, Facts>,
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    /// Values that are declared to be of another type than integers of 32 or 64 bits.
    others: HashSet<String>,
    /// Inputs with open dimensions.
    open: HashMap<&'a str, Sizes>,
    /// Inputs whose last two dimensions are declared and equal.
    squares: HashSet<&'a str>,
}

impl Graph<'_> {
    /// The sizes of an input that a request can choose.
    fn sizes_of(&self, input: &str) -> Sizes {
        self.open.get(input).copied().unwrap_or(Sizes::Fixed)
    }
}

#[derive(Default)]
struct Node<'a> {
    key: Key<'a>,
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    has_axis: bool,
    /// The dimension that a transposition makes the first, where it says it.
    first_axis: Option<i64>,
    /// The dimensions of a kernel, where an attribute says it.
    kernel_rank: Option<usize>,
    /// The element type that it is told to give.
    to: Option<i64>,
    /// Of the tensor that it is told to give.
    value: Option<Facts>,
    /// It was told something that is not understood here.
    is_opaque: bool,
    graphs: Vec<Graph<'a>>,
}

/// Reads graphs out of the file.
struct Reader<'l> {
    limits: &'l Limits,
    steps: u64,
    /// True if initializers of inputs are defaults, not constants.
    has_defaults: bool,
}

impl Reader<'_> {
    fn text<'a>(&mut self, field: &super::wire::Field<'a>) -> Result<&'a str, OnnxError> {
        step(&mut self.steps, 1)?;
        field.text(self.limits.name_bytes)
    }

    fn graph<'a>(&mut self, mut fields: Fields<'a>) -> Result<Graph<'a>, OnnxError> {
        let mut graph = Graph::default();
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => graph.nodes.push(self.node(field.message()?)?),
                5 => graph.constants.push(self.tensor(field.message()?)?),
                11..=13 => {
                    let value = declared(field.message()?, self.limits)?;
                    let is_other = matches!(
                        value.value_type,
                        ValueType::Tensor { element: ElementType(code @ 1..), .. } if !matches!(code, 6 | 7)
                    );
                    if is_other {
                        graph.others.insert(value.name.clone());
                    }
                    let name = self.name(field.message()?)?;
                    match field.number {
                        11 => {
                            graph.inputs.push(name);
                            let (sizes, is_square) = sizes(&value);
                            graph.open.insert(name, sizes);
                            if is_square {
                                graph.squares.insert(name);
                            }
                        }
                        12 => graph.outputs.push(name),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        // What an input can replace is no constant.
        if self.has_defaults {
            let inputs: HashSet<&str> = graph.inputs.iter().copied().collect();
            let replaced = graph.constants.extract_if(.., |(name, _)| inputs.contains(name));
            for (name, facts) in replaced {
                *graph.defaults.entry(name).or_insert(0) |= facts;
            }
        } else {
            let constants: HashSet<&str> = graph.constants.iter().map(|(name, _)| *name).collect();
            graph.inputs.retain(|name| !constants.contains(name));
        }
        Ok(graph)
    }

    fn name<'a>(&mut self, mut fields: Fields<'a>) -> Result<&'a str, OnnxError> {
        let mut name = "";
        while let Some(field) = fields.advance()? {
            if field.number == 1 {
                name = self.text(&field)?;
            }
        }
        Ok(name)
    }

    fn function<'a>(&mut self, mut fields: Fields<'a>) -> Result<(Key<'a>, Graph<'a>), OnnxError> {
        let (mut key, mut graph) = (Key::default(), Graph::default());
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => key.1 = self.text(&field)?,
                4 => graph.inputs.push(self.text(&field)?),
                5 => graph.outputs.push(self.text(&field)?),
                7 => graph.nodes.push(self.node(field.message()?)?),
                10 => key.0 = default_domain(self.text(&field)?),
                13 => key.2 = self.text(&field)?,
                _ => {}
            }
        }
        Ok((key, graph))
    }

    fn node<'a>(&mut self, mut fields: Fields<'a>) -> Result<Node<'a>, OnnxError> {
        let mut node = Node::default();
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => node.inputs.push(self.text(&field)?),
                2 => node.outputs.push(self.text(&field)?),
                4 => node.key.1 = self.text(&field)?,
                5 => self.attribute(field.message()?, &mut node)?,
                7 => node.key.0 = default_domain(self.text(&field)?),
                8 => node.key.2 = self.text(&field)?,
                _ => {}
            }
        }
        Ok(node)
    }

    fn attribute<'a>(
        &mut self,
        mut fields: Fields<'a>,
        node: &mut Node<'a>,
    ) -> Result<(), OnnxError> {
        let (mut name, mut number, mut tensor, mut other) = ("", None, None, false);
        let (mut count, mut first_number) = (0, None);
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => name = self.text(&field)?,
                3 => number = Some(field.int64()?),
                5 => tensor = Some(self.tensor(field.message()?)?.1),
                8 => field.integers(|number| {
                    count += 1;
                    first_number.get_or_insert(number);
                })?,
                6 | 11 => node.graphs.push(self.graph(field.message()?)?),
                // A name that only the caller of a function gives a value, or data of another kind.
                21 | 22 => other = true,
                _ => {}
            }
        }
        match name {
            "to" | "dtype" => node.to = number,
            "value" => node.value = tensor,
            "value_int" => node.value = number.map(|number| INTEGER | of_number(number, i64::MIN)),
            "value_float" | "value_floats" | "value_string" | "value_strings" => {
                node.value = Some(OTHER);
            }
            "value_ints" | "sparse_value" => other = true,
            "axis" => node.has_axis = true,
            "perm" => node.first_axis = first_number.filter(|_| !other),
            "kernel_shape" => node.kernel_rank = Some(count).filter(|_| !other),
            _ => {}
        }
        node.is_opaque |= other;
        Ok(())
    }

    /// The name of a tensor and what its elements are.
    fn tensor<'a>(&mut self, mut fields: Fields<'a>) -> Result<(&'a str, Facts), OnnxError> {
        let (mut name, mut element, mut found, mut raw) = ("", 0, 0, &[][..]);
        while let Some(field) = fields.advance()? {
            match field.number {
                2 => element = field.int32()?,
                5 => field.integers(|number| found |= of_number(number, i32::MIN.into()))?,
                7 => field.integers(|number| found |= of_number(number, i64::MIN))?,
                8 => name = self.text(&field)?,
                9 => raw = field.bytes()?.0,
                // Its bytes lie elsewhere.
                14 if field.int32()? != 0 => found = OTHER,
                _ => {}
            }
        }
        let facts = match element {
            6 => raw.as_chunks().0.iter().fold(found, |found, bytes| {
                found | of_number(i32::from_le_bytes(*bytes).into(), i32::MIN.into())
            }),
            7 => raw.as_chunks().0.iter().fold(found, |found, bytes| {
                found | of_number(i64::from_le_bytes(*bytes), i64::MIN)
            }),
            0 => return Ok((name, ANYTHING)),
            _ => return Ok((name, OTHER)),
        };
        Ok((name, INTEGER | facts))
    }
}

fn of_number(number: i64, smallest: i64) -> Facts {
    let minus_one = if number == -1 { MINUS_ONE } else { 0 };
    let smallest = if number == smallest { SMALLEST } else { 0 };
    let low = if number <= 0 { LOW } else { 0 };
    minus_one | smallest | low
}

/// The sizes of an input that a request can choose, and true if its last two dimensions are declared and equal.
fn sizes(input: &Declared) -> (Sizes, bool) {
    let ValueType::Tensor { dims: Some(dims), .. } = &input.value_type else {
        return (Sizes::Open, false);
    };
    let open = dims.iter().rposition(|dim| !matches!(dim, Dim::Fixed(_)));
    let sizes = match open {
        None => Sizes::Fixed,
        Some(0) => Sizes::Rows,
        Some(_) => Sizes::Open,
    };
    let is_square = matches!(&dims[..], [.., Dim::Fixed(one), Dim::Fixed(other)] if one == other);
    (sizes, is_square)
}

fn step(steps: &mut u64, count: usize) -> Result<(), OnnxError> {
    *steps += count as u64;
    if *steps <= STEPS_MAX {
        return Ok(());
    }
    Err(OnnxError::Limit { what: "inputs and outputs of nodes", count: *steps, max: STEPS_MAX })
}

/// What is known of values, by name; the last scope is the innermost.
#[derive(Default)]
struct Scopes<'a>(Vec<HashMap<&'a str, Facts>>);

impl<'a> Scopes<'a> {
    /// What was not met is not known; a file may list nodes in another order than they run in.
    fn facts(&self, name: &str) -> Facts {
        // An operand that is left out.
        if name.is_empty() {
            return ANYTHING;
        }
        let found = self.0.iter().rev().find_map(|scope| scope.get(name));
        found.copied().unwrap_or(UNKNOWN)
    }

    fn note(&mut self, name: &'a str, facts: Facts) {
        if let Some(scope) = self.0.last_mut() {
            // A name that is given twice has both.
            *scope.entry(name).or_insert(0) |= facts;
        }
    }
}

struct Judge<'m, 'a> {
    functions: &'m HashMap<Key<'a>, Graph<'a>>,
    /// The sizes that a request can choose.
    sizes: Sizes,
    main: &'m Graph<'a>,
    /// Values of the main graph that have no other elements than this input of it.
    origins: HashMap<&'m str, &'m str>,
    found: Found,
    /// Functions that are being followed.
    calls: usize,
    steps: u64,
}

impl<'m, 'a> Judge<'m, 'a> {
    /// What is known of a graph's outputs; `arguments` are those of a function.
    fn graph(
        &mut self,
        graph: &'m Graph<'a>,
        arguments: Option<&[Facts]>,
        scopes: &mut Scopes<'m>,
    ) -> Result<Vec<Facts>, OnnxError> {
        scopes.0.push(HashMap::new());
        for (index, input) in graph.inputs.iter().enumerate() {
            let known = arguments.map_or(UNKNOWN, |all| all.get(index).copied().unwrap_or(UNKNOWN));
            scopes.note(input, narrowed(graph, input, known));
        }
        for (name, facts) in &graph.constants {
            scopes.note(name, *facts);
        }
        for node in &graph.nodes {
            self.node(graph, node, scopes)?;
        }
        let outputs = graph.outputs.iter().map(|output| scopes.facts(output)).collect();
        scopes.0.pop();
        Ok(outputs)
    }

    fn node(
        &mut self,
        graph: &'m Graph<'a>,
        node: &'m Node<'a>,
        scopes: &mut Scopes<'m>,
    ) -> Result<(), OnnxError> {
        step(&mut self.steps, 1 + node.inputs.len() + node.outputs.len())?;
        let inputs: Vec<Facts> = node.inputs.iter().map(|input| scopes.facts(input)).collect();
        let elements: Vec<Facts> = inputs.iter().map(|facts| facts & ANYTHING).collect();
        let is_main = scopes.0.len() == 1 && self.calls == 0;
        if may_overflow(graph, node, &elements) {
            self.divide(node, is_main)?;
        }
        if is_main {
            self.pass_on(node);
        }
        let judged = Judged {
            operator: (node.key.0, node.key.1),
            output: node.outputs.first().copied().unwrap_or(""),
            names: &node.inputs,
            operands: &inputs,
            has_axis: node.has_axis,
            kernel_rank: node.kernel_rank,
            is_square: is_main
                && node.inputs.first().is_some_and(|name| self.main.squares.contains(name)),
            sizes: self.sizes,
        };
        judged.judge(&mut self.found.hazards)?;
        self.found.grows |= grows_by_values(node.key.1, &inputs);
        let mut branches = Vec::new();
        for inner in &node.graphs {
            branches.push(self.graph(inner, None, scopes)?);
        }
        let results = match self.functions.get(&node.key) {
            Some(function) => {
                self.calls += 1;
                let results = self.graph(function, Some(&inputs), &mut Scopes::default())?;
                self.calls -= 1;
                // Which of two the engine takes where a function has the name of an operator is not certain.
                if node.key.0.is_empty() { Vec::new() } else { results }
            }
            None => (0..node.outputs.len())
                .map(|index| {
                    given(node, index, &elements, &branches) & ANYTHING
                        | origin(node, index, &inputs, &branches)
                })
                .collect(),
        };
        for (index, output) in node.outputs.iter().enumerate() {
            let facts = results.get(index).copied().unwrap_or(UNKNOWN);
            scopes.note(output, narrowed(graph, output, facts));
        }
        Ok(())
    }
}

impl<'m> Judge<'m, '_> {
    /// Notes a division by what requests must not bring; refuses one that no input of the model governs.
    fn divide(&mut self, node: &Node<'_>, is_main: bool) -> Result<(), OnnxError> {
        let operand = |position: usize, facts: Facts| {
            let input = *self.origins.get(node.inputs.get(position)?)?;
            let by_default = self.main.defaults.get(input).is_none_or(|all| all & facts != 0);
            Some(Operand { input: input.to_owned(), by_default })
        };
        let quotient = Quotient { dividend: operand(0, SMALLEST), divisor: operand(1, MINUS_ONE) };
        let is_governed = quotient.dividend.is_some() || quotient.divisor.is_some();
        if !is_main || !is_governed || self.found.quotients.len() == QUOTIENTS_MAX {
            let output = node.outputs.first().copied().unwrap_or("");
            return Err(OnnxError::Division { output: shown(output) });
        }
        if !self.found.quotients.contains(&quotient) {
            self.found.quotients.push(quotient);
        }
        Ok(())
    }

    /// Notes what has no other elements than an input, after a node of the main graph.
    fn pass_on(&mut self, node: &'m Node<'_>) {
        let passes = node.key.0.is_empty() && PASSES.contains(&node.key.1);
        // Which of two the engine takes where a function has the name of an operator is not certain.
        if passes
            && !self.functions.contains_key(&node.key)
            && let Some(origin) = node.inputs.first().and_then(|first| self.origins.get(first))
        {
            let origin = *origin;
            self.origins.extend(node.outputs.iter().map(|output| (*output, origin)));
        }
    }
}

/// What is known of a value, with its declared type.
fn narrowed(graph: &Graph<'_>, name: &str, facts: Facts) -> Facts {
    if graph.others.contains(name) { OTHER | facts & RUNTIME } else { facts }
}

/// True if it is a `Div` that may divide the smallest integer by -1.
fn may_overflow(graph: &Graph<'_>, node: &Node<'_>, inputs: &[Facts]) -> bool {
    let [dividend, divisor] = *inputs else { return false };
    let output = node.outputs.first().copied().unwrap_or("");
    let is_integer = dividend & divisor & narrowed(graph, output, ANYTHING) & INTEGER != 0;
    (node.key.0, node.key.1) == ("", "Div")
        && is_integer
        && divisor & MINUS_ONE != 0
        && dividend & SMALLEST != 0
}

/// Operators whose outputs are never integers of 32 or 64 bits.
const NEVER_INTEGER: &[&str] = &[
    "Acos",
    "Acosh",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BatchNormalization",
    "Ceil",
    "Celu",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "GRU",
    "Gelu",
    "GlobalAveragePool",
    "GlobalLpPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MeanVarianceNormalization",
    "Mish",
    "Not",
    "Or",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RNN",
    "Reciprocal",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "RMSNormalization",
    "RoiAlign",
    "Round",
    "Selu",
    "Sigmoid",
    "SimplifiedLayerNormalization",
    "Sin",
    "Sinh",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "StringNormalizer",
    "Swish",
    "Tan",
    "Tanh",
    "TfIdfVectorizer",
    "ThresholdedRelu",
    "Xor",
];
/// Those of `com.microsoft`, by their first output; exporters and optimisers of transformers write them.
const NEVER_INTEGER_MICROSOFT: &[&str] = &[
    "Attention",
    "BiasGelu",
    "EmbedLayerNormalization",
    "FastGelu",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "QLinearAdd",
    "QLinearMul",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];
/// Those of `ai.onnx.ml`.
const NEVER_INTEGER_ML: &[&str] = &[
    "FeatureVectorizer",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "SVMRegressor",
    "Scaler",
    "TreeEnsembleRegressor",
];
/// Their output has elements of the first input only.
const PASSES: &[&str] = &[
    "Compress",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Reshape",
    "ReverseSequence",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];
/// Their output has the type of the first input.
const LIKE_FIRST: &[&str] = &[
    "Abs",
    "CumSum",
    "GlobalMaxPool",
    "Neg",
    "Pad",
    "Pow",
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Resize",
    "ScatterElements",
    "ScatterND",
    "Sign",
    "Trilu",
    "Upsample",
];
/// Their output has the type of all inputs.
const LIKE_ALL: &[&str] = &[
    "Add", "Clip", "Div", "Einsum", "Gemm", "MatMul", "Mean", "Mod", "Mul", "PRelu", "Range",
    "Sub", "Sum",
];

/// Operators whose outputs have a shape that follows from the elements of these operands: from the one at this position
/// on.
const SHAPED_BY: &[(&str, usize)] = &[
    ("AffineGrid", 1),
    ("BlackmanWindow", 0),
    ("CenterCropPad", 1),
    ("Col2Im", 1),
    ("Compress", 1),
    ("ConstantOfShape", 0),
    ("CropAndResize", 3),
    ("DFT", 1),
    ("Expand", 1),
    ("ExpandDims", 1),
    ("HammingWindow", 0),
    ("HannWindow", 0),
    ("MaxUnpool", 2),
    ("MelWeightMatrix", 0),
    ("NonMaxSuppression", 0),
    ("NonZero", 0),
    ("OneHot", 1),
    ("Pad", 1),
    ("Range", 0),
    ("ReduceL1", 1),
    ("ReduceL2", 1),
    ("ReduceLogSum", 1),
    ("ReduceLogSumExp", 1),
    ("ReduceMax", 1),
    ("ReduceMean", 1),
    ("ReduceMin", 1),
    ("ReduceProd", 1),
    ("ReduceSum", 1),
    ("ReduceSumSquare", 1),
    ("Reshape", 1),
    ("Resize", 1),
    ("STFT", 1),
    ("SequenceAt", 1),
    ("Slice", 1),
    ("Split", 1),
    ("SplitToSequence", 1),
    ("Squeeze", 1),
    ("StringSplit", 0),
    ("Tile", 1),
    ("Tokenizer", 0),
    ("TopK", 1),
    ("Unique", 0),
    ("Unsqueeze", 1),
    ("Upsample", 1),
];

/// Tells if the output at `index` of an operator, or its shape, follows from the values of a request.
fn origin(node: &Node<'_>, index: usize, inputs: &[Facts], branches: &[Vec<Facts>]) -> Facts {
    let (domain, operator, _) = node.key;
    let all = inputs.iter().fold(0, |found, facts| found | facts) & RUNTIME;
    let if_varies = |facts: Facts, then: Facts| if facts & RUNTIME == 0 { 0 } else { then };
    match (domain, operator) {
        ("", "Shape" | "Size") => {
            if all & SHAPED == 0 {
                0
            } else {
                VARIES
            }
        }
        ("", "Transpose") if node.first_axis != Some(0) => all | MOVED,
        ("", "If") => {
            let known = |branch: &Vec<Facts>| branch.get(index).copied().unwrap_or(UNKNOWN);
            let either = branches.iter().map(known).fold(0, |one, other| one | other) & RUNTIME;
            either | if_varies(all, RUNTIME)
        }
        // Other operators with graphs run them any number of times.
        _ if !node.graphs.is_empty() => RUNTIME,
        ("" | "ai.onnx.ml" | "com.microsoft", _) => {
            let by = SHAPED_BY.iter().find(|(name, _)| *name == operator);
            let by = by.and_then(|(_, from)| inputs.get(*from..)).unwrap_or_default();
            all | if_varies(by.iter().fold(0, |found, facts| found | facts), SHAPED)
        }
        _ => RUNTIME,
    }
}

/// What is known of the output at `index` of an operator.
fn given(node: &Node<'_>, index: usize, inputs: &[Facts], branches: &[Vec<Facts>]) -> Facts {
    let (domain, operator, _) = node.key;
    let first = inputs.first().copied().unwrap_or(ANYTHING);
    let integers = |all: &[Facts]| {
        let possible = !all.is_empty() && all.iter().all(|facts| facts & INTEGER != 0);
        if possible { ANYTHING } else { OTHER }
    };
    // One type, and elements of all of them.
    let mixed = |all: &[Facts]| {
        let elements = all.iter().fold(0, |found, facts| found | facts) & OTHER;
        if integers(all) == ANYTHING { INTEGER | elements } else { OTHER }
    };
    match (domain, operator) {
        ("ai.onnx.ml", _) if NEVER_INTEGER_ML.contains(&operator) => OTHER,
        ("ai.onnx.ml", "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier")
            if index == 1 =>
        {
            OTHER
        }
        ("ai.onnx.ml", "ArrayFeatureExtractor") => first,
        ("ai.onnx.ml", "Imputer" | "Binarizer") => integers(&[first]),
        ("com.microsoft", _) if index == 0 && NEVER_INTEGER_MICROSOFT.contains(&operator) => OTHER,
        ("", _) if NEVER_INTEGER.contains(&operator) => OTHER,
        // Never negative.
        ("", "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" | "NonMaxSuppression") => {
            INTEGER | LOW
        }
        ("", "Constant") if !node.is_opaque => node.value.unwrap_or(ANYTHING),
        ("", "ConstantOfShape") if !node.is_opaque => node.value.unwrap_or(OTHER),
        ("", "Cast") if !node.is_opaque => match node.to {
            // To 32 bits, any number may become any other.
            Some(6) | None => ANYTHING,
            Some(7) => INTEGER | first & OTHER,
            Some(_) => OTHER,
        },
        ("", "CastLike") => integers(inputs.get(1..).unwrap_or_default()),
        ("", _) if PASSES.contains(&operator) => first,
        ("", "Concat" | "Max" | "Min") => mixed(inputs),
        ("", "Where") => mixed(inputs.get(1..).unwrap_or_default()),
        ("", "OneHot") => inputs.get(2).copied().unwrap_or(ANYTHING),
        ("", "MaxPool" | "TopK" | "Dropout") if index == 0 => integers(&[first]),
        ("", _) if LIKE_FIRST.contains(&operator) => integers(&[first]),
        ("", _) if LIKE_ALL.contains(&operator) => integers(inputs),
        ("", "If") => {
            let known = |branch: &Vec<Facts>| branch.get(index).copied().unwrap_or(ANYTHING);
            branches.iter().map(known).reduce(|one, other| one | other).unwrap_or(ANYTHING)
        }
        _ => ANYTHING,
    }
}
