//! Operators that tract computes otherwise than ONNX Runtime without an error: which, when, and what comes out.
//!
//! Each row was found by running tract 0.23.9 and ONNX Runtime 1.32 side by side: on ONNX's own cases of single
//! operators, and on classifiers and recurrent networks as exporters write them. Always true:
//! - A row is found wherever the operator stands: in the main graph, in subgraphs, in functions.
//! - What tract refuses or fails on has no row: that does no harm.
//!
//! Not here: what is done about it (`lifecycle::load`): such a version is refused unless golden outputs show that the
//! model is one of those that come out right.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Limits, OnnxError, shown, walk::default_domain, wire::Fields};

/// An operator of a model that tract computes otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misread {
    /// The operator's name.
    pub operator: &'static str,
    /// The name of the first output that it gives.
    pub output: String,
    /// The fault, and when it shows.
    pub reason: &'static str,
    /// True if the answers are wrong; otherwise runs fail, and the model may be served with a note.
    pub is_wrong: bool,
}

/// A row: domain, operator and what is wrong with a node of it, if anything is.
type Row = (&'static str, &'static str, fn(&Node<'_>) -> Option<&'static str>);

const TABLE: &[Row] = &[
    ("ai.onnx.ml", "TreeEnsembleClassifier", tree_ensemble),
    ("ai.onnx.ml", "LinearClassifier", linear_classifier),
    ("ai.onnx.ml", "LinearRegressor", linear_regressor),
    ("ai.onnx.ml", "Normalizer", normalizer),
    ("ai.onnx.ml", "ArrayFeatureExtractor", feature_extractor),
    ("", "LSTM", recurrent),
    ("", "GRU", recurrent),
    ("", "RNN", recurrent),
    ("", "Attention", attention),
    ("", "SpaceToDepth", space_to_depth),
    ("", "Add", old_broadcast),
    ("", "Sub", old_broadcast),
    ("", "Mul", old_broadcast),
    ("", "Div", old_broadcast),
    ("", "Pow", old_broadcast),
    ("", "And", old_broadcast),
    ("", "Or", old_broadcast),
    ("", "Xor", old_broadcast),
    ("", "Equal", old_broadcast),
    ("", "Greater", old_broadcast),
    ("", "Less", old_broadcast),
];

/// The reason of the row that only makes runs fail.
const BATCH_OF_ONE: &str = "without initial states, and where its last cell is asked for, it runs a batch of 1 only; others are answered with 400";

/// Finds the operators that tract computes otherwise, each kind of wrong once.
///
/// `bytes` were accepted by [`super::summarize`].
pub fn misread(bytes: &[u8], limits: &Limits) -> Result<Vec<Misread>, OnnxError> {
    let mut found = Vec::new();
    let mut fields = Fields::new(bytes);
    while let Some(field) = fields.advance()? {
        match field.number {
            7 => graph(field.message()?, limits, &mut found)?,
            25 => nodes(field.message()?, 7, &HashSet::new(), limits, &mut found)?,
            _ => {}
        }
    }
    Ok(found)
}

/// The nodes of a `GraphProto`.
fn graph(fields: Fields<'_>, limits: &Limits, found: &mut Vec<Misread>) -> Result<(), OnnxError> {
    let mut scalars = HashSet::new();
    let mut all = fields;
    while let Some(field) = all.advance()? {
        if field.number == 5 {
            let (mut name, mut is_scalar) = ("", true);
            let mut tensor = field.message()?;
            while let Some(part) = tensor.advance()? {
                match part.number {
                    1 => part.integers(|_| is_scalar = false)?,
                    8 => name = part.text(limits.name_bytes)?,
                    _ => {}
                }
            }
            if is_scalar {
                scalars.insert(name);
            }
        }
    }
    nodes(fields, 1, &scalars, limits, found)
}

/// The nodes of a graph or a function, which lie in the fields of this number.
fn nodes<'a>(
    mut fields: Fields<'a>,
    number: u32,
    scalars: &HashSet<&'a str>,
    limits: &Limits,
    found: &mut Vec<Misread>,
) -> Result<(), OnnxError> {
    while let Some(field) = fields.advance()? {
        if field.number != number {
            continue;
        }
        let node = Node::read(field.message()?, scalars, limits)?;
        let row =
            TABLE.iter().find(|(domain, name, _)| (*domain, *name) == (node.domain, node.operator));
        if let Some((_, operator, judge)) = row
            && let Some(reason) = judge(&node)
            && !found.iter().any(|known| (known.operator, known.reason) == (operator, reason))
        {
            let output = node.outputs.iter().find(|name| !name.is_empty());
            let (output, is_wrong) = (shown(output.unwrap_or(&"")), reason != BATCH_OF_ONE);
            found.push(Misread { operator, output, reason, is_wrong });
        }
        for subgraph in &node.graphs {
            graph(*subgraph, limits, found)?;
        }
    }
    Ok(())
}

/// A node, as far as the table asks about it.
#[derive(Default)]
struct Node<'a> {
    domain: &'a str,
    operator: &'a str,
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    /// By name.
    attributes: HashMap<&'a str, Attribute<'a>>,
    graphs: Vec<Fields<'a>>,
    /// True if its second operand is a constant without dimensions.
    has_scalar: bool,
}

/// An attribute; what it repeats is read anew where it is asked for.
#[derive(Clone, Copy)]
struct Attribute<'a> {
    number: Option<i64>,
    text: &'a [u8],
    all: Fields<'a>,
}

impl<'a> Node<'a> {
    fn read(
        mut fields: Fields<'a>,
        scalars: &HashSet<&'a str>,
        limits: &Limits,
    ) -> Result<Self, OnnxError> {
        let mut node = Self::default();
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => node.inputs.push(field.text(limits.name_bytes)?),
                2 => node.outputs.push(field.text(limits.name_bytes)?),
                4 => node.operator = field.text(limits.name_bytes)?,
                5 => node.attribute(field.message()?, limits)?,
                7 => node.domain = default_domain(field.text(limits.name_bytes)?),
                _ => {}
            }
        }
        node.has_scalar = node.inputs.get(1).is_some_and(|name| scalars.contains(name));
        Ok(node)
    }

    fn attribute(&mut self, fields: Fields<'a>, limits: &Limits) -> Result<(), OnnxError> {
        let (mut name, mut own) = ("", Attribute { number: None, text: b"", all: fields });
        let mut rest = fields;
        while let Some(field) = rest.advance()? {
            match field.number {
                1 => name = field.text(limits.name_bytes)?,
                3 => own.number = Some(field.int64()?),
                4 => own.text = field.bytes()?.0,
                6 | 11 => self.graphs.push(field.message()?),
                _ => {}
            }
        }
        self.attributes.insert(name, own);
        Ok(())
    }

    fn has_input(&self, position: usize) -> bool {
        self.inputs.get(position).is_some_and(|name| !name.is_empty())
    }

    fn has_output(&self, position: usize) -> bool {
        self.outputs.get(position).is_some_and(|name| !name.is_empty())
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.attributes.get(name).and_then(|own| own.number)
    }

    /// A text, in capitals; empty where there is none.
    fn text(&self, name: &str) -> String {
        let text = self.attributes.get(name).map_or(&b""[..], |own| own.text);
        String::from_utf8_lossy(text).to_ascii_uppercase()
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let mut found = Vec::new();
        let mut fields = self.attributes.get(name).map(|own| own.all);
        while let Some(Ok(Some(field))) = fields.as_mut().map(Fields::advance) {
            if field.number == 8 {
                drop(field.integers(|number| found.push(number)));
            }
        }
        found
    }

    /// Count of the numbers of floating point of an attribute, packed or not.
    fn floats(&self, name: &str) -> usize {
        let mut count = 0;
        let mut fields = self.attributes.get(name).map(|own| own.all);
        while let Some(Ok(Some(field))) = fields.as_mut().map(Fields::advance) {
            if field.number == 7 {
                count += field.bytes().map_or(1, |(packed, _)| packed.len() / 4);
            }
        }
        count
    }

    fn texts(&self, name: &str) -> Vec<&'a [u8]> {
        let mut found = Vec::new();
        let mut fields = self.attributes.get(name).map(|own| own.all);
        while let Some(Ok(Some(field))) = fields.as_mut().map(Fields::advance) {
            if field.number == 9
                && let Ok((bytes, _)) = field.bytes()
            {
                found.push(bytes);
            }
        }
        found
    }

    /// Count of the classes, by labels of both kinds.
    fn classes(&self, numbers: &str) -> usize {
        self.integers(numbers).len() + self.texts("classlabels_strings").len()
    }
}

fn tree_ensemble(node: &Node<'_>) -> Option<&'static str> {
    let classes = node.classes("classlabels_int64s");
    if classes <= 2 {
        return Some(
            "with two classes its labels are those of the wrong class, or always the first, and scores may differ, too",
        );
    }
    if node.texts("nodes_modes").contains(&&b"BRANCH_GTE"[..]) {
        return Some("it takes nodes of the mode BRANCH_GTE for leaves");
    }
    let is_class = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < classes);
    let is_sound = node.integers("class_ids").iter().all(is_class) && is_dense(node);
    (!is_sound).then_some(
        "it reads beyond its trees where their nodes are not numbered from 0 without a gap",
    )
}

/// True if each tree numbers its nodes from 0 without a gap, and branches lead to nodes of it.
fn is_dense(node: &Node<'_>) -> bool {
    let (trees, ids) = (node.integers("nodes_treeids"), node.integers("nodes_nodeids"));
    let mut numbers: HashMap<i64, BTreeSet<i64>> = HashMap::new();
    for (tree, id) in trees.iter().zip(&ids) {
        numbers.entry(*tree).or_default().insert(*id);
    }
    let leads_within = |name| {
        let leads = node.integers(name);
        trees.iter().zip(&leads).all(|(tree, id)| numbers[tree].contains(id))
    };
    let has_gap = |ids: &BTreeSet<i64>| ids.iter().zip(0..).any(|(id, place)| *id != place);
    let count: usize = numbers.values().map(BTreeSet::len).sum();
    trees.len() == ids.len()
        && count == ids.len()
        && !numbers.values().any(has_gap)
        && leads_within("nodes_truenodeids")
        && leads_within("nodes_falsenodeids")
}

fn linear_classifier(node: &Node<'_>) -> Option<&'static str> {
    let is_one_row = node.classes("classlabels_ints") == 2 && node.floats("intercepts") < 2;
    (is_one_row && node.text("post_transform") != "LOGISTIC")
        .then_some("with one row of coefficients for two classes its scores differ")
}

fn linear_regressor(node: &Node<'_>) -> Option<&'static str> {
    let is_plain = matches!(&*node.text("post_transform"), "" | "NONE");
    let is_one = node.number("targets").unwrap_or(1) == 1;
    (is_one && !is_plain)
        .then_some("its post_transform gives other numbers where it has one target")
}

fn normalizer(node: &Node<'_>) -> Option<&'static str> {
    matches!(&*node.text("norm"), "" | "MAX").then_some(
        "with the norm MAX it divides by the largest absolute value instead of the largest",
    )
}

fn feature_extractor(node: &Node<'_>) -> Option<&'static str> {
    node.has_scalar.then_some("an index without dimensions makes its output lose one")
}

fn recurrent(node: &Node<'_>) -> Option<&'static str> {
    if node.text("direction") == "REVERSE" {
        return Some("it runs forward, whatever `direction` says");
    }
    if node.attributes.contains_key("clip") || node.number("input_forget").unwrap_or(0) != 0 {
        return Some("it does not heed `clip` and `input_forget`");
    }
    let usual: &[&[u8]] = match node.operator {
        "LSTM" => &[b"SIGMOID", b"TANH", b"TANH"],
        "GRU" => &[b"SIGMOID", b"TANH"],
        _ => &[b"TANH"],
    };
    let given = node.texts("activations");
    let is_usual =
        given.iter().zip(usual.iter().cycle()).all(|(own, usual)| own.eq_ignore_ascii_case(usual));
    if !is_usual {
        return Some("it does not heed `activations`");
    }
    let gives_cell = node.has_output(2) && (node.has_output(0) || node.has_output(1));
    let is_stateless = !node.has_input(5) && !node.has_input(6);
    let is_single = node.operator == "LSTM" && node.text("direction") != "BIDIRECTIONAL";
    (is_single && gives_cell && is_stateless).then_some(BATCH_OF_ONE)
}

fn attention(node: &Node<'_>) -> Option<&'static str> {
    let is_windowed = |name| node.number(name).is_some_and(|size| size >= 0);
    if is_windowed("left_window_size") || is_windowed("right_window_size") {
        return Some("it does not heed the window of attention");
    }
    let is_causal = node.number("is_causal").unwrap_or(0) != 0;
    (is_causal && node.has_input(4))
        .then_some("with `is_causal` and a past key it masks other positions")
}

fn space_to_depth(node: &Node<'_>) -> Option<&'static str> {
    (node.text("mode") == "CRD").then_some("it does not heed the mode CRD")
}

/// Source: ONNX, "Operators": up to opset 6, `axis` says where the second operand is broadcast.
fn old_broadcast(node: &Node<'_>) -> Option<&'static str> {
    node.attributes
        .contains_key("axis")
        .then_some("it does not heed the `axis` of operators up to opset 6")
}
