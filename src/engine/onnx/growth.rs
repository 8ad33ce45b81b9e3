//! Growth: which outputs have a size that a request's values choose, and how it follows from them.
//!
//! Two answers about a model. Whether any operator, also in subgraphs and functions, makes an output whose size follows
//! from values: such a version runs with bounded memory. And, for operators of the main graph, a program
//! (`model::Growth`) that works the size out of a request's inputs: an oversized request is then refused before it
//! runs. Always true:
//! - A loop counts always, and its collected rows are followed where its count is its only end (`rounds`).
//! - An operator that is not in the table, or whose operands are fixed or follow from shapes alone, does not count.
//! - A program is written only where each step is certain: numbers in vectors and scalars, one after the other.
//!
//! Not here: the arithmetic (`model::Growth`), outputs that grow with the shapes of inputs, which a request pays for in
//! bytes, memory that kernels use for themselves.

use std::collections::{BTreeSet, HashMap};

use crate::{
    model::{Grown, Growth, Numbers, Operation, Step},
    tensor::DataType,
};

use super::{
    Limits, OnnxError, Summary, ValueType,
    declared::{Dim, ElementType, declared},
    division::{Facts, SHAPED, VARIES, grows},
    has_defaults,
    rounds::{self, Body},
    shown,
    walk::default_domain,
    wire::Fields,
};

/// Operators whose output may be far larger than their operands, by the values of the operands at these positions.
const GROWS: &[(&str, &[usize])] = &[
    ("AffineGrid", &[1]),
    ("BeamSearch", &[1, 2, 3, 4]),
    ("BlackmanWindow", &[0]),
    ("CenterCropPad", &[1]),
    ("Col2Im", &[1]),
    ("ConstantOfShape", &[0]),
    ("CropAndResize", &[3]),
    ("DFT", &[1]),
    ("Expand", &[1]),
    ("GreedySearch", &[1, 2]),
    ("GroupQueryAttention", &[5, 6]),
    ("HammingWindow", &[0]),
    ("HannWindow", &[0]),
    ("ImageDecoder", &[0]),
    ("MaxUnpool", &[2]),
    ("MelWeightMatrix", &[0, 1]),
    ("OneHot", &[1]),
    ("Pad", &[1]),
    ("Range", &[0, 1, 2]),
    ("Resize", &[1, 2, 3]),
    ("STFT", &[1, 3]),
    ("Sampling", &[1, 2]),
    ("StringSplit", &[0]),
    ("Tile", &[1, 2]),
    ("Tokenizer", &[0]),
    ("Upsample", &[1]),
    ("WhisperBeamSearch", &[1, 2, 3, 4]),
];

/// Rounds of a loop may collect without end, and a condition or a count that is fixed may mean for ever.
const LOOP: &str = "Loop";

/// Steps beyond which no program is written.
const STEPS_MAX: usize = 100_000;

/// What each round of a loop costs for each value that it collects, however small that is: a pointer to it, one to what
/// counts its users, and one to its type.
const HANDLE_BYTES: u64 = 24;

/// The most numbers of a constant that are of use.
const NUMBERS_MAX: usize = 64;

/// True if the size of what this operator gives follows from a request's values.
pub(super) fn grows_by_values(operator: &str, operands: &[Facts]) -> bool {
    let varies = |position: &usize| {
        operands.get(*position).is_some_and(|facts| facts & (VARIES | SHAPED) != 0)
    };
    operator == LOOP
        || GROWS.iter().any(|(name, positions)| *name == operator && positions.iter().any(varies))
}

/// What of a model's outputs grows by the values of a request; `None` if nothing does.
///
/// `bytes` were accepted by [`super::summarize`], which gave `summary`, and by [`super::check_operators`].
///
/// # Errors
/// As [`super::check_operators`].
pub fn growth(
    bytes: &[u8],
    summary: &Summary,
    limits: &Limits,
) -> Result<Option<Growth>, OnnxError> {
    let may_grow = |(_, operator): &(String, String)| {
        operator == LOOP || GROWS.iter().any(|(name, _)| name == operator)
    };
    if !summary.operators.iter().any(may_grow) || !grows(bytes, limits)? {
        return Ok(None);
    }
    let fixed = if has_defaults(bytes)? { &BTreeSet::new() } else { &summary.initializers };
    let mut fields = Fields::new(bytes);
    let mut written = Growth::NONE;
    while let Some(field) = fields.advance()? {
        match field.number {
            7 => written = Writer::new(limits, fixed).graph(field.message()?)?,
            // Which of two the engine takes where a function has the name of an operator is not certain.
            25 if is_followed(function_domain(field.message()?, limits)?) => {
                return Ok(Some(Growth::NONE));
            }
            _ => {}
        }
    }
    Ok(Some(written))
}

/// True if operators of this domain are followed.
fn is_followed(domain: &str) -> bool {
    matches!(domain, "" | "com.microsoft")
}

fn function_domain<'a>(mut fields: Fields<'a>, limits: &Limits) -> Result<&'a str, OnnxError> {
    let mut domain = "";
    while let Some(field) = fields.advance()? {
        if field.number == 10 {
            domain = default_domain(field.text(limits.name_bytes)?);
        }
    }
    Ok(domain)
}

/// Numbers that are known as a step.
#[derive(Debug, Clone, Copy)]
struct Known {
    step: usize,
    /// 0 for a scalar, 1 for a vector.
    rank: usize,
}

/// Attributes that matter here.
#[derive(Debug, Default)]
struct Attributes<'a> {
    integers: HashMap<&'a str, i64>,
    /// The element type, the dimensions and the numbers of a tensor.
    tensor: Option<Constant>,
    /// The body of a loop.
    body: Option<Body>,
    /// All that it was told.
    names: Vec<&'a str>,
}

#[derive(Debug, Clone, Default)]
struct Constant {
    element: i32,
    dims: Vec<i64>,
    /// `None` where they are too many or of another kind.
    numbers: Option<Numbers>,
}

#[derive(Debug, Default)]
struct Node<'a> {
    domain: &'a str,
    operator: &'a str,
    inputs: Vec<&'a str>,
    outputs: Vec<&'a str>,
    attributes: Attributes<'a>,
}

/// Writes the program of a main graph.
struct Writer<'a, 'l> {
    limits: &'l Limits,
    /// Inputs that an initializer fixes for good.
    fixed: &'l BTreeSet<String>,
    inputs: Vec<String>,
    steps: Vec<Step>,
    /// Initializers that no step has used yet.
    constants: HashMap<&'a str, Constant>,
    /// True if a step follows from the elements of an input.
    by_values: Vec<bool>,
    values: HashMap<&'a str, Known>,
    shapes: HashMap<&'a str, usize>,
    elements: HashMap<&'a str, i32>,
    /// The bytes of strings that an input brought.
    texts: HashMap<&'a str, usize>,
    outputs: Vec<Grown>,
}

impl<'a, 'l> Writer<'a, 'l> {
    fn new(limits: &'l Limits, fixed: &'l BTreeSet<String>) -> Self {
        Self {
            limits,
            fixed,
            inputs: Vec::new(),
            steps: Vec::new(),
            constants: HashMap::new(),
            by_values: Vec::new(),
            values: HashMap::new(),
            shapes: HashMap::new(),
            elements: HashMap::new(),
            texts: HashMap::new(),
            outputs: Vec::new(),
        }
    }

    fn graph(mut self, fields: Fields<'a>) -> Result<Growth, OnnxError> {
        // Nodes may come before what they use in the file.
        let mut all = fields;
        while let Some(field) = all.advance()? {
            if field.number == 11 {
                self.input(field.message()?)?;
            }
        }
        let mut all = fields;
        while let Some(field) = all.advance()? {
            if field.number == 5 {
                let (name, constant) = self.tensor(field.message()?)?;
                // What an input can replace is no constant.
                if !self.elements.contains_key(name) {
                    self.elements.insert(name, constant.element);
                    self.constants.insert(name, constant);
                }
            }
        }
        let mut all = fields;
        while let Some(field) = all.advance()? {
            if field.number == 1 && self.steps.len() < STEPS_MAX {
                let node = self.node(field.message()?)?;
                if is_followed(node.domain) {
                    self.write(&node);
                }
            }
        }
        Ok(self.finished())
    }

    /// Leaves out the steps that no output needs.
    fn finished(self) -> Growth {
        let mut needed = vec![false; self.steps.len()];
        for grown in &self.outputs {
            needed[grown.shape] = true;
            grown.text.iter().for_each(|text| needed[*text] = true);
        }
        for index in (0..needed.len()).rev() {
            if needed[index] {
                self.steps[index].uses().iter().for_each(|used| needed[*used] = true);
            }
        }
        let mut places = Vec::with_capacity(needed.len());
        let mut next = 0;
        for is_needed in &needed {
            places.push(next);
            next += usize::from(*is_needed);
        }
        let kept = self.steps.into_iter().zip(needed).filter(|(_, is_needed)| *is_needed);
        let steps = kept.map(|(step, _)| step.moved(&places)).collect();
        let moved = |grown: Grown| {
            let (shape, text) = (places[grown.shape], grown.text.map(|text| places[text]));
            Grown { shape, text, ..grown }
        };
        Growth::new(self.inputs, steps, self.outputs.into_iter().map(moved).collect())
    }

    fn input(&mut self, fields: Fields<'a>) -> Result<(), OnnxError> {
        let value = declared(fields, self.limits)?;
        let mut name = "";
        let mut parts = fields;
        while let Some(field) = parts.advance()? {
            if field.number == 1 {
                name = field.text(self.limits.name_bytes)?;
            }
        }
        let ValueType::Tensor { element: ElementType(element), dims } = value.value_type else {
            return Ok(());
        };
        if self.fixed.contains(name) {
            return Ok(());
        }
        let index = self.inputs.len();
        self.inputs.push(name.to_owned());
        self.elements.insert(name, element);
        let shape = self.step(Step::Shape(index));
        self.shapes.insert(name, shape);
        if ElementType(element) == ElementType::STRING {
            let text = self.step(Step::Text(index));
            self.texts.insert(name, text);
        }
        if let Some(rank @ 0..=1) = dims.as_ref().map(Vec::<Dim>::len) {
            let step = self.step(Step::Elements(index));
            self.values.insert(name, Known { step, rank });
        }
        Ok(())
    }

    /// Makes steps of the initializers among a node's operands, but not of weights.
    fn take_constants(&mut self, node: &Node<'a>) {
        let is_grown = GROWS.iter().any(|(name, _)| *name == node.operator);
        for name in &node.inputs {
            let is_of_use = |constant: &Constant| is_grown || constant.numbers.is_some();
            if self.constants.get(name).is_some_and(is_of_use)
                && let Some(constant) = self.constants.remove(name)
            {
                self.constant(name, &constant);
            }
        }
    }

    fn constant(&mut self, name: &'a str, constant: &Constant) {
        let shape = self.step(Step::Constant(Numbers::whole_of(constant.dims.iter().copied())));
        self.shapes.insert(name, shape);
        if let (Some(numbers), rank @ 0..=1) = (&constant.numbers, constant.dims.len()) {
            let step = self.step(Step::Constant(numbers.clone()));
            self.values.insert(name, Known { step, rank });
        }
    }

    fn step(&mut self, step: Step) -> usize {
        let by_values = matches!(step, Step::Elements(_))
            || step.uses().iter().any(|used| self.by_values[*used]);
        self.steps.push(step);
        self.by_values.push(by_values);
        self.steps.len() - 1
    }

    fn whole(&mut self, numbers: &[i64]) -> usize {
        self.step(Step::Constant(Numbers::whole_of(numbers.iter().copied())))
    }

    fn write(&mut self, node: &Node<'a>) {
        let Some(output) = node.outputs.first().copied() else { return };
        self.take_constants(node);
        if let Some(element) = self.element(node) {
            self.elements.insert(output, element);
        }
        if matches!(
            node.operator,
            "Identity"
                | "Reshape"
                | "Unsqueeze"
                | "Squeeze"
                | "Flatten"
                | "Transpose"
                | "Expand"
                | "Tile"
        ) && let Some(text) = node.inputs.first().and_then(|name| self.texts.get(name)).copied()
        {
            self.texts.insert(output, text);
        }
        if let Some(known) = self.value(node) {
            self.values.insert(output, known);
        }
        if node.operator == LOOP {
            self.rounds(node);
        }
        let Some(shape) = self.shape(node) else { return };
        self.shapes.insert(output, shape);
        let is_grown = GROWS.iter().any(|(name, _)| *name == node.operator);
        if is_grown && self.by_values[shape] {
            let element_bytes = self.elements.get(output).map_or(1, |element| size(*element));
            self.grown(node, output, shape, element_bytes);
        }
    }

    fn grown(&mut self, node: &Node<'a>, output: &str, shape: usize, element_bytes: u64) {
        let text = self.texts.get(output).copied();
        let (operator, output) = (node.operator.to_owned(), shown(output));
        self.outputs.push(Grown { operator, output, shape, element_bytes, text });
    }

    /// What a loop collects that always goes on, with a count of rounds that follows from values.
    fn rounds(&mut self, node: &Node<'a>) {
        let Some(body) = node.attributes.body.as_ref().filter(|body| body.goes_on) else { return };
        let known = |position: usize| {
            let name = node.inputs.get(position).filter(|name| !name.is_empty());
            name.map(|name| self.values.get(name).copied())
        };
        let begins = match known(1) {
            None => true,
            Some(None) => false,
            Some(Some(Known { step, .. })) => {
                self.steps[step] == Step::Constant(Numbers::whole_of([1]))
            }
        };
        let Some(Some(Known { step: count, .. })) = known(0) else { return };
        if !begins || !self.by_values[count] {
            return;
        }
        for (index, row) in body.collected.iter().enumerate() {
            let output = node.outputs.get(body.carried + index).copied().unwrap_or("");
            let element_bytes = size(row.element);
            let dims = row.dims.as_deref().unwrap_or_default();
            let bytes = dims
                .iter()
                .fold(element_bytes, |bytes, dim| bytes.saturating_mul(dim.unsigned_abs()));
            if row.dims.is_some() && bytes >= HANDLE_BYTES {
                let row = self.whole(dims);
                let shape = self.step(Step::Join(vec![count, row]));
                self.grown(node, output, shape, element_bytes);
            } else {
                let shape = self.step(Step::Join(vec![count]));
                self.grown(node, output, shape, HANDLE_BYTES);
            }
        }
    }

    /// The element type of what a node gives.
    fn element(&self, node: &Node<'a>) -> Option<i32> {
        let of = |position: usize| self.elements.get(node.inputs.get(position)?).copied();
        match node.operator {
            "Constant" => node.attributes.tensor.as_ref().map(|tensor| tensor.element),
            "ConstantOfShape" => {
                Some(node.attributes.tensor.as_ref().map_or(1, |tensor| tensor.element))
            }
            "Cast" => i32::try_from(*node.attributes.integers.get("to")?).ok(),
            "OneHot" => of(2),
            "Shape" | "Size" => Some(7),
            "Identity" | "Expand" | "Tile" | "Range" | "Pad" | "Resize" | "Upsample" | "Add"
            | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Neg" | "Abs" | "Relu" | "Unsqueeze"
            | "Squeeze" | "Reshape" | "Gather" | "Concat" | "Slice" => of(0),
            _ => None,
        }
    }

    /// The numbers that a node gives.
    fn value(&mut self, node: &Node<'a>) -> Option<Known> {
        let of = |writer: &Self, position: usize| -> Option<Known> {
            writer.values.get(node.inputs.get(position)?).copied()
        };
        let told = &node.attributes;
        let (step, rank) = match node.operator {
            "Constant" => {
                let tensor = told.tensor.as_ref().filter(|tensor| tensor.dims.len() <= 1)?;
                (Step::Constant(tensor.numbers.clone()?), tensor.dims.len())
            }
            "Shape" => return self.dimensions(node),
            "Size" => (Step::Product(*self.shapes.get(node.inputs.first()?)?), 0),
            "Identity" => return of(self, 0),
            "Cast" => {
                let known = of(self, 0)?;
                match told.integers.get("to")? {
                    6 | 7 => (Step::Whole(known.step), known.rank),
                    1 | 11 => (Step::Real(known.step), known.rank),
                    _ => return None,
                }
            }
            "Concat" => {
                let parts = node.inputs.iter().map(|name| self.values.get(name));
                let parts: Vec<Known> =
                    parts.map(Option::<&Known>::copied).collect::<Option<_>>()?;
                let are_vectors = parts.iter().all(|part| part.rank == 1);
                let steps = parts.iter().map(|part| part.step).collect();
                (Step::Join(steps), if are_vectors { 1 } else { return None })
            }
            "Unsqueeze" => {
                let known = of(self, 0).filter(|known| known.rank == 0)?;
                return Some(Known { rank: 1, ..known });
            }
            "Squeeze" => (Step::Sole(of(self, 0)?.step), 0),
            "Reshape" => {
                let target = self.shapes_of_constant(node.inputs.get(1)?)?;
                (Step::Join(vec![of(self, 0)?.step]), target)
            }
            "Gather" => {
                let (from, at) = (of(self, 0).filter(|known| known.rank == 1)?, of(self, 1)?);
                (Step::Pick(from.step, at.step), at.rank)
            }
            "Slice" => {
                let from = of(self, 0).filter(|known| known.rank == 1)?;
                let (start, end) = (of(self, 1)?.step, of(self, 2)?.step);
                let is_given = |position: usize| {
                    node.inputs.get(position).is_some_and(|name| !name.is_empty())
                };
                let by = if is_given(4) { of(self, 4)?.step } else { self.whole(&[1]) };
                (Step::Slice([from.step, start, end, by]), 1)
            }
            "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" => {
                let operation = operation(node.operator);
                let (one, other) = (of(self, 0)?, of(self, 1).filter(|_| node.inputs.len() == 2)?);
                (Step::Pair(operation, one.step, other.step), one.rank.max(other.rank))
            }
            "ReduceProd" if !told.integers.contains_key("noop_with_empty_axes") => {
                let keeps = told.integers.get("keepdims").is_none_or(|keeps| *keeps != 0);
                let known = of(self, 0).filter(|known| known.rank == 1)?;
                (Step::Product(known.step), usize::from(keeps))
            }
            _ => return None,
        };
        Some(Known { step: self.step(step), rank })
    }

    /// The dimensions that a `Shape` gives, all or some.
    fn dimensions(&mut self, node: &Node<'a>) -> Option<Known> {
        let (shape, told) = (*self.shapes.get(node.inputs.first()?)?, &node.attributes);
        if told.names.is_empty() {
            return Some(Known { step: shape, rank: 1 });
        }
        let start = self.whole(&[told.integers.get("start").copied().unwrap_or(0)]);
        let end = self.whole(&[told.integers.get("end").copied().unwrap_or(i64::MAX)]);
        let one = self.whole(&[1]);
        Some(Known { step: self.step(Step::Slice([shape, start, end, one])), rank: 1 })
    }

    /// The rank to which a constant reshapes, if that is a vector's or a scalar's.
    fn shapes_of_constant(&self, name: &str) -> Option<usize> {
        match &self.steps[self.values.get(name)?.step] {
            Step::Constant(Numbers::Whole(dims)) if dims.len() <= 1 => Some(dims.len()),
            _ => None,
        }
    }

    /// True if an operand is left out, or a constant without elements.
    fn is_nothing(&self, name: &str) -> bool {
        let shape = self.shapes.get(name).map(|step| &self.steps[*step]);
        name.is_empty() || shape == Some(&Step::Constant(Numbers::whole_of([0])))
    }

    /// The shape of what a node gives.
    fn shape(&mut self, node: &Node<'a>) -> Option<usize> {
        let shape_of = |writer: &Self, position: usize| -> Option<usize> {
            writer.shapes.get(node.inputs.get(position)?).copied()
        };
        let value_of = |writer: &Self, position: usize| -> Option<usize> {
            writer.values.get(node.inputs.get(position)?).map(|known| known.step)
        };
        let told = |name: &str| node.attributes.names.contains(&name);
        let given = node.inputs.len();
        let step = match node.operator {
            "Identity" | "Cast" | "Relu" | "Neg" | "Abs" | "Sqrt" | "Exp" | "Sigmoid" | "Tanh" => {
                return shape_of(self, 0);
            }
            "ConstantOfShape" => return value_of(self, 0),
            "Expand" => {
                let target = value_of(self, 1)?;
                match shape_of(self, 0) {
                    Some(shape) => Step::Broadcast(shape, target),
                    // It is never less.
                    None => return Some(target),
                }
            }
            "Tile" if given == 2 => {
                Step::Pair(Operation::Multiply, shape_of(self, 0)?, value_of(self, 1)?)
            }
            "Range" if given == 3 => {
                Step::Count([value_of(self, 0)?, value_of(self, 1)?, value_of(self, 2)?])
            }
            "OneHot" => {
                let depth = value_of(self, 1)?;
                let depth = self.step(Step::Whole(depth));
                Step::Join(vec![shape_of(self, 0)?, depth])
            }
            // Other dimensions than all of them are not followed.
            "Pad" if given <= 3 => Step::Padded(shape_of(self, 0)?, value_of(self, 1)?),
            "Upsample" => Step::Scaled(shape_of(self, 0)?, value_of(self, 1)?),
            "Resize" if told("axes") || told("keep_aspect_ratio_policy") => return None,
            "Resize" if given == 4 && !node.inputs[3].is_empty() => return value_of(self, 3),
            // A region makes it smaller.
            "Resize" if given == 3 && !self.is_nothing(node.inputs[1]) => return None,
            "Resize" if given == 3 => Step::Scaled(shape_of(self, 0)?, value_of(self, 2)?),
            "Resize" if given == 2 => Step::Scaled(shape_of(self, 0)?, value_of(self, 1)?),
            _ => return None,
        };
        Some(self.step(step))
    }

    fn node(&self, mut fields: Fields<'a>) -> Result<Node<'a>, OnnxError> {
        let mut node = Node::default();
        let bytes_max = self.limits.name_bytes;
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => node.inputs.push(field.text(bytes_max)?),
                2 => node.outputs.push(field.text(bytes_max)?),
                4 => node.operator = field.text(bytes_max)?,
                5 => self.attribute(field.message()?, &mut node.attributes)?,
                7 => node.domain = default_domain(field.text(bytes_max)?),
                _ => {}
            }
        }
        Ok(node)
    }

    fn attribute(
        &self,
        mut fields: Fields<'a>,
        told: &mut Attributes<'a>,
    ) -> Result<(), OnnxError> {
        let (mut name, mut number, mut numbers) = ("", None, Vec::new());
        let (mut tensor, mut has_numbers) = (None, false);
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => name = field.text(self.limits.name_bytes)?,
                3 => number = Some(field.int64()?),
                5 => tensor = Some(self.tensor(field.message()?)?.1),
                6 if told.body.is_none() => {
                    told.body = Some(rounds::body(field.message()?, self.limits)?);
                }
                8 => {
                    has_numbers = true;
                    field.integers(|number| numbers.push(number))?;
                }
                _ => {}
            }
        }
        told.names.push(name);
        if let Some(number) = number {
            told.integers.insert(name, number);
        }
        let one = |numbers: &[i64], dims: Vec<i64>| Constant {
            element: 7,
            dims,
            numbers: Some(Numbers::whole_of(numbers.iter().copied())),
        };
        match (name, number) {
            ("value", _) => told.tensor = tensor,
            ("value_int", Some(number)) => told.tensor = Some(one(&[number], Vec::new())),
            ("value_ints", _) if has_numbers => {
                let dims = vec![i64::try_from(numbers.len()).unwrap_or(i64::MAX)];
                told.tensor = Some(one(&numbers, dims));
            }
            _ => {}
        }
        Ok(())
    }

    /// The name of a tensor, and what of it matters here.
    fn tensor(&self, mut fields: Fields<'a>) -> Result<(&'a str, Constant), OnnxError> {
        let (mut name, mut constant) = ("", Constant::default());
        let (mut whole, mut raw, mut is_outside) = (Vec::new(), None, false);
        let mut other = false;
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => field.integers(|dim| constant.dims.push(dim))?,
                2 => constant.element = field.int32()?,
                5 | 7 => field.integers(|number| {
                    if whole.len() <= NUMBERS_MAX {
                        whole.push(number);
                    }
                })?,
                4 | 10 => other = true,
                8 => name = field.text(self.limits.name_bytes)?,
                9 => raw = Some(field.bytes()?.0),
                14 => is_outside = field.int32()? != 0,
                _ => {}
            }
        }
        let numbers = match (constant.element, raw) {
            (7, Some(raw)) => Numbers::whole_of(first(raw).map(i64::from_le_bytes)),
            (6, Some(raw)) => {
                Numbers::whole_of(first(raw).map(|raw| i32::from_le_bytes(raw).into()))
            }
            (1, Some(raw)) => {
                Numbers::real_of(first(raw).map(|raw| f32::from_le_bytes(raw).into()))
            }
            (11, Some(raw)) => Numbers::real_of(first(raw).map(f64::from_le_bytes)),
            (9, Some(raw)) => Numbers::whole_of(first(raw).map(|[raw]| i64::from(raw))),
            (6 | 7 | 9, None) => Numbers::whole_of(whole),
            _ => return Ok((name, constant)),
        };
        let mut sizes = constant.dims.iter();
        let count =
            sizes.try_fold(1, |all: usize, dim| all.checked_mul(usize::try_from(*dim).ok()?));
        let is_small = count.is_some_and(|count| count <= NUMBERS_MAX);
        constant.numbers = Some(numbers).filter(|_| is_small && !is_outside && !other);
        Ok((name, constant))
    }
}

/// Bytes of an element, of a string without its text; 1 where its type has no size of its own.
fn size(element: i32) -> u64 {
    if ElementType(element) == ElementType::STRING {
        return 32;
    }
    let size = ElementType(element).datatype().and_then(DataType::size);
    size.map_or(1, |bytes| bytes as u64)
}

/// The first numbers of a tensor's bytes, one more than are of use.
fn first<const SIZE: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; SIZE]> {
    raw.as_chunks().0.iter().copied().take(NUMBERS_MAX + 1)
}

/// The operation of an operator on two numbers.
fn operation(operator: &str) -> Operation {
    match operator {
        "Add" => Operation::Add,
        "Sub" => Operation::Subtract,
        "Mul" => Operation::Multiply,
        "Div" => Operation::Divide,
        "Max" => Operation::Larger,
        _ => Operation::Smaller,
    }
}
