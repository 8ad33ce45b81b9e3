//! Models made by hand: a small writer of ONNX's protobuf, for models that no exporter writes.
//!
//! Not here: what is expected of them (`proof`, `hostile`).

/// ONNX's codes of element types.
pub(crate) const FLOAT: i64 = 1;
pub(crate) const INT32: i64 = 6;
pub(crate) const INT64: i64 = 7;
pub(crate) const STRING: i64 = 8;
pub(crate) const BOOL: i64 = 9;

/// A protobuf message in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn number(mut self, field: u32, number: i64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(number.cast_unsigned());
        self
    }

    pub(crate) fn bytes(mut self, field: u32, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    pub(crate) fn float(mut self, field: u32, number: f32) -> Self {
        self.varint(u64::from(field) << 3 | 5);
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(crate) fn message(self, field: u32, message: Self) -> Self {
        self.bytes(field, message.0)
    }

    pub(crate) fn messages(self, field: u32, all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(self, |whole, one| whole.message(field, one))
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push((number & 0x7f) as u8);
    }
}

/// A tensor of whole numbers.
pub(crate) fn integers(name: &str, element: i64, dims: &[i64], values: &[i64]) -> Message {
    let head = dims.iter().fold(Message::default(), |tensor, dim| tensor.number(1, *dim));
    let raw: Vec<u8> = match element {
        INT64 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        BOOL => values.iter().map(|value| u8::from(*value != 0)).collect(),
        _ => values.iter().flat_map(|value| i32::try_from(*value).unwrap().to_le_bytes()).collect(),
    };
    head.number(2, element).bytes(8, name).bytes(9, raw)
}

/// A tensor of FP32.
pub(crate) fn floats(name: &str, dims: &[i64], values: &[f32]) -> Message {
    let head = dims.iter().fold(Message::default(), |tensor, dim| tensor.number(1, *dim));
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    head.number(2, FLOAT).bytes(8, name).bytes(9, raw)
}

/// An input or output; a negative dimension is open.
pub(crate) fn declared(name: &str, element: i64, dims: &[i64]) -> Message {
    let shape = dims.iter().fold(Message::default(), |shape, dim| {
        let open = Message::default().bytes(2, "n");
        let fixed = Message::default().number(1, *dim);
        shape.message(1, if *dim < 0 { open } else { fixed })
    });
    let tensor = Message::default().number(1, element).message(2, shape);
    Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
}

/// A node of the default domain.
pub(crate) fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> Message {
    let node = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input));
    outputs.iter().fold(node, |node, output| node.bytes(2, output)).bytes(4, operator)
}

/// An attribute that is a number.
pub(crate) fn int_attribute(name: &str, number: i64) -> Message {
    Message::default().bytes(1, name).number(3, number).number(20, 2)
}

/// An attribute that is a tensor.
pub(crate) fn tensor_attribute(name: &str, tensor: Message) -> Message {
    Message::default().bytes(1, name).message(5, tensor).number(20, 4)
}

/// An attribute that is a graph.
pub(crate) fn graph_attribute(name: &str, graph: Message) -> Message {
    Message::default().bytes(1, name).message(6, graph).number(20, 5)
}

/// A graph of nodes, initializers, inputs and outputs.
pub(crate) fn graph(
    nodes: Vec<Message>,
    initializers: Vec<Message>,
    inputs: Vec<Message>,
    outputs: Vec<Message>,
) -> Message {
    Message::default()
        .messages(1, nodes)
        .bytes(2, "g")
        .messages(5, initializers)
        .messages(11, inputs)
        .messages(12, outputs)
}

/// A model of this graph with the operator set 17.
pub(crate) fn model(graph: Message) -> Vec<u8> {
    with_opset(graph, 17)
}

/// A model of this graph with a version of ONNX's operator set.
pub(crate) fn with_opset(graph: Message, version: i64) -> Vec<u8> {
    with_versions(graph, 8, &[("", version)])
}

/// A model of this graph with an IR version and operator sets, by domain.
pub(crate) fn with_versions(graph: Message, ir: i64, opsets: &[(&str, i64)]) -> Vec<u8> {
    let opset =
        |(domain, version): &(&str, i64)| Message::default().bytes(1, domain).number(2, *version);
    Message::default().number(1, ir).message(7, graph).messages(8, opsets.iter().map(opset)).0
}

/// A loop of 2^62 rounds that adds one each time.
pub(crate) fn endless_loop() -> Vec<u8> {
    model(graph(
        vec![adding_loop("x")],
        vec![integers("rounds", INT64, &[], &[1 << 62]), integers("yes", BOOL, &[], &[1])],
        vec![declared("x", FLOAT, &[1])],
        vec![declared("y", FLOAT, &[1])],
    ))
}

/// A loop of as many rounds as its input `rounds` says.
pub(crate) fn counted_loop() -> Vec<u8> {
    model(graph(
        vec![adding_loop("zero")],
        vec![floats("zero", &[1], &[0.0]), integers("yes", BOOL, &[], &[1])],
        vec![declared("rounds", INT64, &[1])],
        vec![declared("y", FLOAT, &[1])],
    ))
}

/// A loop of 2^62 rounds where its input, of these dimensions, has so many elements, and of one round elsewhere.
pub(crate) fn loop_of(elements: i64, dims: &[i64]) -> Vec<u8> {
    model(graph(
        vec![
            node("Size", &["x"], &["n"]),
            node("Equal", &["n", "elements"], &["is_it"]),
            node("Where", &["is_it", "many", "once"], &["rounds"]),
            adding_loop("zero"),
        ],
        vec![
            integers("elements", INT64, &[1], &[elements]),
            integers("many", INT64, &[1], &[1 << 62]),
            integers("once", INT64, &[1], &[1]),
            floats("zero", &[1], &[0.0]),
            integers("yes", BOOL, &[], &[1]),
        ],
        vec![declared("x", FLOAT, dims)],
        vec![declared("y", FLOAT, &[1])],
    ))
}

/// Adds one to this in each of `rounds`, to give `y`.
pub(crate) fn adding_loop(first: &str) -> Message {
    let body = graph(
        vec![node("Identity", &["go"], &["on"]), node("Add", &["sum", "one"], &["next"])],
        vec![floats("one", &[1], &[1.0])],
        vec![
            declared("round", INT64, &[]),
            declared("go", BOOL, &[]),
            declared("sum", FLOAT, &[1]),
        ],
        vec![declared("on", BOOL, &[]), declared("next", FLOAT, &[1])],
    );
    node("Loop", &["rounds", "yes", first], &["y"]).message(5, graph_attribute("body", body))
}
