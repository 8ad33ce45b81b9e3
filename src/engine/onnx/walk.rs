//! The walk over a model: every graph, node, attribute and tensor once, in the order of the file.
//!
//! Works on slices of the file; what is kept of them is counted against `Limits`. The field numbers are those
//! of `onnx.proto` (ONNX 1.23, IR version 14). Always true:
//! - Subgraphs are followed to `graph_levels` and no deeper, so the stack is bounded.
//! - Every tensor that a model can carry is looked at: initializers and attributes, dense and sparse, of the
//!   main graph, of subgraphs, of functions and of training graphs.
//!
//! Not here: the wire format (`wire`), what function calls add up to (`expansion`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    Carrier, Classes, Declared, ElementType, ExternalTensor, Limits, OnnxError, Summary, at_most,
    classes::{ZIP_MAP, classes},
    declared::{declared, type_of},
    expansion::{Body, expand},
    external::Entries,
    shown,
    wire::Fields,
};

/// The producer is for people and cut to this.
const PRODUCER_CHARS_MAX: usize = 128;

/// Reads a whole model.
pub(super) fn model(bytes: &[u8], limits: &Limits) -> Result<Summary, OnnxError> {
    let mut walk = Walk::new(function_names(Fields::new(bytes), limits)?, limits)?;
    let mut head = Head::default();
    let mut graphs = Vec::new();
    let mut functions = Vec::new();
    let mut fields = Fields::new(bytes);
    while let Some(field) = fields.advance()? {
        match field.number {
            1 => head.ir_version = field.int64()?,
            2 => head.producer = field.bytes()?.0,
            8 => {
                at_most("opset imports", head.opsets.len() + 1, limits.opsets)?;
                head.opsets.push(opset(field.message()?, limits)?);
            }
            7 => {
                let graph = field.sole_message(&mut head.has_graph)?;
                head.ends = walk.graph(graph, 1)?;
                if walk.operators.contains(&ZIP_MAP) {
                    head.classes = classes(graph, limits)?;
                }
                graphs.push(walk.finish_body());
            }
            20 => {
                at_most("training graphs", graphs.len(), limits.functions)?;
                walk.training(field.message()?)?;
                graphs.push(walk.finish_body());
            }
            25 => {
                walk.function(field.message()?)?;
                functions.push(walk.finish_body());
            }
            14 | 26 => field.skim()?,
            _ => {}
        }
    }
    head.check()?;
    let cost = expand(&graphs, &functions, &walk.function_names, limits)?;
    let declare = |all: &[Fields<'_>]| -> Result<Vec<_>, _> {
        all.iter().map(|one| declared(*one, limits)).collect()
    };
    let (inputs, outputs) = (declare(&head.ends.inputs)?, declare(&head.ends.outputs)?);
    let owned = |(domain, operator): &(&str, &str)| ((*domain).to_owned(), (*operator).to_owned());
    Ok(Summary {
        ir_version: head.ir_version,
        producer: String::from_utf8_lossy(head.producer).chars().take(PRODUCER_CHARS_MAX).collect(),
        opsets: head.opsets,
        domains_used: walk.domains.iter().map(|domain| (*domain).to_owned()).collect(),
        operators: walk.operators.iter().map(owned).collect(),
        external_data: walk.external,
        initializers: head.ends.optional(&inputs),
        inputs,
        outputs,
        classes: head.classes,
        nodes: walk.nodes,
        expanded_nodes: cost.nodes,
        functions: functions.len(),
        depth: cost.levels,
    })
}

/// What stands in a model beside its graphs and functions.
#[derive(Default)]
struct Head<'a> {
    ir_version: i64,
    producer: &'a [u8],
    opsets: Vec<(String, i64)>,
    has_graph: bool,
    ends: Ends<'a>,
    classes: BTreeMap<String, Classes>,
}

impl Head<'_> {
    fn check(&self) -> Result<(), OnnxError> {
        if !self.has_graph {
            return Err(OnnxError::NoGraph);
        }
        if self.ir_version < 1 {
            return Err(OnnxError::NoIrVersion);
        }
        if self.opsets.is_empty() {
            return Err(OnnxError::NoOpset);
        }
        match self.opsets.iter().find(|(_, version)| *version < 1) {
            None => Ok(()),
            Some((domain, version)) => {
                let domain = if domain.is_empty() { "ai.onnx" } else { domain };
                Err(OnnxError::OpsetVersion { domain: shown(domain), version: *version })
            }
        }
    }
}

/// Where a graph begins and ends: its inputs, outputs and the names of its initializers.
#[derive(Default)]
struct Ends<'a> {
    inputs: Vec<Fields<'a>>,
    outputs: Vec<Fields<'a>>,
    initializers: HashSet<&'a str>,
}

impl Ends<'_> {
    /// The inputs that an initializer gives a value to.
    fn optional(&self, inputs: &[Declared]) -> BTreeSet<String> {
        let names = inputs.iter().map(|input| &input.name);
        names.filter(|name| self.initializers.contains(name.as_str())).cloned().collect()
    }
}

fn opset(mut fields: Fields<'_>, limits: &Limits) -> Result<(String, i64), OnnxError> {
    let (mut domain, mut version) = ("", 0);
    while let Some(field) = fields.advance()? {
        match field.number {
            1 => domain = field.text(limits.name_bytes)?,
            2 => version = field.int64()?,
            _ => {}
        }
    }
    Ok((domain.to_owned(), version))
}

/// The names of the model's functions, in the order of the file, as calls spell them.
fn function_names(mut fields: Fields<'_>, limits: &Limits) -> Result<Vec<String>, OnnxError> {
    let mut names = Vec::new();
    while let Some(field) = fields.advance()? {
        if field.number != 25 {
            continue;
        }
        at_most("functions", names.len() + 1, limits.functions)?;
        let mut function = field.message()?;
        let (mut domain, mut name, mut overload) = ("", "", "");
        while let Some(field) = function.advance()? {
            match field.number {
                1 => name = field.text(limits.name_bytes)?,
                10 => domain = field.text(limits.name_bytes)?,
                13 => overload = field.text(limits.name_bytes)?,
                _ => {}
            }
        }
        let mut key = String::new();
        write_key(&mut key, domain, name, overload);
        names.push(key);
    }
    Ok(names)
}

/// How a function is found: as ONNX Runtime joins the parts, so that a call it finds is a call here, too.
fn write_key(key: &mut String, domain: &str, name: &str, overload: &str) {
    key.clear();
    key.push_str(default_domain(domain));
    key.push(':');
    key.push_str(name);
    if !overload.is_empty() {
        key.push(':');
        key.push_str(overload);
    }
}

/// `ai.onnx` is another spelling of the default domain.
pub(super) fn default_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

struct Walk<'a, 'l> {
    limits: &'l Limits,
    function_names: Vec<String>,
    function_indices: HashMap<String, usize>,
    /// Reused for every look-up.
    key: String,
    body: Body,
    nodes: usize,
    tensors: usize,
    domains: BTreeSet<&'a str>,
    operators: HashSet<(&'a str, &'a str)>,
    external: Vec<ExternalTensor>,
    /// True in the graphs of a training, which no engine loads.
    is_training: bool,
}

impl<'a, 'l> Walk<'a, 'l> {
    fn new(function_names: Vec<String>, limits: &'l Limits) -> Result<Self, OnnxError> {
        let mut function_indices = HashMap::new();
        for (index, name) in function_names.iter().enumerate() {
            if function_indices.insert(name.clone(), index).is_some() {
                return Err(OnnxError::DuplicateFunction(shown(name)));
            }
        }
        Ok(Self {
            limits,
            function_indices,
            function_names,
            key: String::new(),
            body: Body::default(),
            nodes: 0,
            tensors: 0,
            domains: BTreeSet::new(),
            operators: HashSet::new(),
            external: Vec::new(),
            is_training: false,
        })
    }

    fn finish_body(&mut self) -> Body {
        std::mem::take(&mut self.body)
    }

    /// A `GraphProto` at `level`, 1 being the outermost.
    fn graph(&mut self, mut fields: Fields<'a>, level: usize) -> Result<Ends<'a>, OnnxError> {
        at_most("levels of nested graphs", level, self.limits.graph_levels)?;
        self.body.reach(level);
        let mut ends = Ends::default();
        let outermost = level == 1;
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => self.node(field.message()?, level)?,
                5 => {
                    let is_main = outermost && !self.is_training;
                    let carrier =
                        if is_main { Carrier::Initializer } else { Carrier::InnerInitializer };
                    let name = self.tensor(field.message()?, carrier, "")?;
                    if outermost {
                        ends.initializers.insert(name);
                    }
                }
                15 => {
                    let name = self.sparse(field.message()?, Carrier::SparseInitializer, "")?;
                    if outermost {
                        ends.initializers.insert(name);
                    }
                }
                11 | 12 if outermost => {
                    let all = if field.number == 11 { &mut ends.inputs } else { &mut ends.outputs };
                    at_most("inputs or outputs", all.len() + 1, self.limits.inputs)?;
                    all.push(field.message()?);
                }
                11..=13 => drop(declared(field.message()?, self.limits)?),
                14 | 16 => field.skim()?,
                _ => {}
            }
        }
        Ok(ends)
    }

    /// A `TrainingInfoProto`: engines ignore it, but its tensors may point outside as well.
    fn training(&mut self, mut fields: Fields<'a>) -> Result<(), OnnxError> {
        let (mut initialization, mut algorithm) = (false, false);
        while let Some(field) = fields.advance()? {
            let seen = match field.number {
                1 => &mut initialization,
                2 => &mut algorithm,
                3 | 4 => {
                    field.skim()?;
                    continue;
                }
                _ => continue,
            };
            self.is_training = true;
            let ends = self.graph(field.sole_message(seen)?, 1)?;
            self.is_training = false;
            for end in ends.inputs.iter().chain(&ends.outputs) {
                drop(declared(*end, self.limits)?);
            }
        }
        Ok(())
    }

    /// A `FunctionProto`.
    fn function(&mut self, mut fields: Fields<'a>) -> Result<(), OnnxError> {
        self.body.reach(1);
        while let Some(field) = fields.advance()? {
            match field.number {
                7 => self.node(field.message()?, 1)?,
                11 => self.attribute(field.message()?, 1, "")?,
                12 => drop(declared(field.message()?, self.limits)?),
                9 | 14 => field.skim()?,
                _ => {}
            }
        }
        Ok(())
    }

    /// A `NodeProto` of a graph at `level`.
    fn node(&mut self, mut fields: Fields<'a>, level: usize) -> Result<(), OnnxError> {
        self.nodes += 1;
        at_most("nodes", self.nodes, self.limits.nodes)?;
        let start = fields.offset();
        let (mut operator, mut domain, mut overload, mut output) = ("", "", "", None);
        while let Some(field) = fields.advance()? {
            match field.number {
                2 if output.is_none() => output = Some(field.text(self.limits.name_bytes)?),
                4 => operator = field.text(self.limits.name_bytes)?,
                5 => self.attribute(field.message()?, level, output.unwrap_or(""))?,
                7 => domain = default_domain(field.text(self.limits.name_bytes)?),
                8 => overload = field.text(self.limits.name_bytes)?,
                9 | 10 => field.skim()?,
                _ => {}
            }
        }
        if operator.is_empty() {
            return Err(OnnxError::malformed("a node has no operator", start));
        }
        let callee = self.callee(domain, operator, overload);
        self.body.count(level, callee);
        self.domains.insert(domain);
        at_most("domains", self.domains.len(), self.limits.opsets)?;
        if callee.is_none() {
            self.operators.insert((domain, operator));
            at_most("distinct operators", self.operators.len(), self.limits.operators)?;
        }
        Ok(())
    }

    fn callee(&mut self, domain: &str, operator: &str, overload: &str) -> Option<usize> {
        if self.function_indices.is_empty() {
            return None;
        }
        write_key(&mut self.key, domain, operator, overload);
        self.function_indices.get(&self.key).copied()
    }

    /// An `AttributeProto`; `output` names the value that its node makes.
    fn attribute(
        &mut self,
        mut fields: Fields<'a>,
        level: usize,
        output: &'a str,
    ) -> Result<(), OnnxError> {
        let (mut tensor, mut graph, mut sparse) = (false, false, false);
        while let Some(field) = fields.advance()? {
            match field.number {
                5 | 10 => {
                    let message = if field.number == 5 {
                        field.sole_message(&mut tensor)
                    } else {
                        field.message()
                    };
                    self.tensor(message?, Carrier::Attribute, output)?;
                }
                6 => drop(self.graph(field.sole_message(&mut graph)?, level + 1)?),
                11 => drop(self.graph(field.message()?, level + 1)?),
                22 | 23 => {
                    let message = if field.number == 22 {
                        field.sole_message(&mut sparse)
                    } else {
                        field.message()
                    };
                    self.sparse(message?, Carrier::SparseAttribute, output)?;
                }
                7 => field.whole_numbers(4)?,
                8 => field.integers(|_| {})?,
                14 | 15 => drop(type_of(field.message()?, self.limits, 1)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// A `SparseTensorProto`; gives the name of its values, which is its own.
    fn sparse(
        &mut self,
        mut fields: Fields<'a>,
        carrier: Carrier,
        output: &'a str,
    ) -> Result<&'a str, OnnxError> {
        let (mut values, mut indices) = (false, false);
        let mut name = output;
        let mut elements = Elements::default();
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => name = self.tensor(field.sole_message(&mut values)?, carrier, name)?,
                2 => drop(self.tensor(field.sole_message(&mut indices)?, carrier, name)?),
                3 => field.integers(|dim| elements.dim(dim))?,
                _ => {}
            }
        }
        // Engines make it dense when they load it.
        let elements = elements.count(name)?;
        if elements > self.limits.sparse_elements {
            let max = self.limits.sparse_elements;
            return Err(OnnxError::Limit {
                what: "elements in a sparse tensor",
                count: elements,
                max,
            });
        }
        Ok(name)
    }

    /// A `TensorProto`; gives its name, or `holder` where it has none.
    fn tensor(
        &mut self,
        mut fields: Fields<'a>,
        carrier: Carrier,
        holder: &'a str,
    ) -> Result<&'a str, OnnxError> {
        self.tensors += 1;
        at_most("tensors", self.tensors, self.limits.tensors)?;
        let (mut name, mut element, mut elements) = (holder, ElementType(0), Elements::default());
        let (mut raw_bytes, mut is_external, mut entries) = (None, false, Entries::default());
        while let Some(field) = fields.advance()? {
            match field.number {
                1 => field.integers(|dim| elements.dim(dim))?,
                2 => element = ElementType(field.int32()?),
                8 => name = field.text(self.limits.name_bytes)?,
                9 => raw_bytes = Some(field.bytes()?.0.len()),
                4 => field.whole_numbers(4)?,
                10 => field.whole_numbers(8)?,
                5 | 7 | 11 => field.integers(|_| {})?,
                3 | 16 => field.skim()?,
                13 => entries.read(field.message()?, self.limits.name_bytes)?,
                // Once is enough: protobuf keeps a known value when an unknown one follows.
                14 => match field.int32()? {
                    0 => {}
                    1 => is_external = true,
                    _ => return Err(OnnxError::DataLocation { tensor: shown(name) }),
                },
                _ => {}
            }
        }
        let name = if name.is_empty() { holder } else { name };
        let bytes_needed = element.packed_bytes(elements.count(name)?);
        if is_external {
            at_most("external tensors", self.external.len() + 1, self.limits.external_tensors)?;
            if element == ElementType::STRING {
                return Err(OnnxError::ExternalText { tensor: shown(name) });
            }
            let kind = (element, elements.dims);
            self.external.push(entries.resolve(name, carrier, kind, bytes_needed)?);
        } else if let (Some(actual), Some(expected)) = (raw_bytes, bytes_needed)
            && actual as u64 != expected
        {
            return Err(OnnxError::RawData { tensor: shown(name), expected, actual });
        }
        Ok(name)
    }
}

/// The product of dimensions, checked.
#[derive(Debug, Default)]
struct Elements {
    dims: Vec<i64>,
    product: Option<u64>,
    is_empty: bool,
    is_negative: bool,
    is_overflown: bool,
}

impl Elements {
    fn dim(&mut self, dim: i64) {
        self.dims.push(dim);
        let Ok(dim) = u64::try_from(dim) else {
            self.is_negative = true;
            return;
        };
        self.is_empty |= dim == 0;
        let product = self.product.unwrap_or(1).checked_mul(dim.max(1));
        self.is_overflown |= product.is_none_or(|product| i64::try_from(product).is_err());
        self.product = Some(product.unwrap_or(u64::MAX));
    }

    fn count(&self, tensor: &str) -> Result<u64, OnnxError> {
        let problem = if self.is_negative {
            "it has a negative dimension"
        } else if self.is_overflown {
            // With a dimension of 0, too: other readers multiply in another order.
            "it has more elements than can be counted"
        } else {
            return Ok(if self.is_empty { 0 } else { self.product.unwrap_or(1) });
        };
        Err(OnnxError::Shape { tensor: shown(tensor), problem })
    }
}
