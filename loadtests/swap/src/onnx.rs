//! A writer of ONNX files, just large enough for the models of the load test: they are made when they are needed,
//! a thousand in a moment, without any other program.
//!
//! Field numbers are those of `onnx.proto`. Nothing is checked: whoever writes a wrong graph gets a wrong file,
//! which for some of these models is the point.
//!
//! Not here: which models there are.

/// Element types, by their numbers in `onnx.proto`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Element {
    Float = 1,
    Int32 = 6,
    Int64 = 7,
    Bool = 9,
}

/// A graph being written.
#[derive(Debug)]
pub(crate) struct Graph(Message);

/// A protobuf message being written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

const IR_VERSION: u64 = 8;
const OPSET: u64 = 17;

impl Graph {
    pub(crate) fn new(name: &str) -> Self {
        let mut graph = Message::default();
        graph.bytes(2, name.as_bytes());
        Self(graph)
    }

    /// Adds an input; `None` is an open dimension.
    pub(crate) fn input(mut self, name: &str, element: Element, dims: &[Option<u64>]) -> Self {
        self.0.message(11, &value_info(name, element, dims));
        self
    }

    /// Adds an output; `None` is an open dimension.
    pub(crate) fn output(mut self, name: &str, element: Element, dims: &[Option<u64>]) -> Self {
        self.0.message(12, &value_info(name, element, dims));
        self
    }

    /// Adds a constant of these little-endian bytes.
    pub(crate) fn constant(mut self, name: &str, of: Element, dims: &[u64], raw: &[u8]) -> Self {
        let mut tensor = Message::default();
        for dim in dims {
            tensor.varint(1, *dim);
        }
        tensor.varint(2, of as u64);
        tensor.bytes(8, name.as_bytes());
        tensor.bytes(9, raw);
        self.0.message(5, &tensor);
        self
    }

    /// Adds a constant of floats.
    pub(crate) fn floats(self, name: &str, dims: &[u64], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, Element::Float, dims, &raw)
    }

    /// Adds an operator.
    pub(crate) fn node(self, operator: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.write_node(operator, inputs, outputs, None)
    }

    /// Adds an operator that runs a graph of its own, such as `Loop`.
    pub(crate) fn node_with_body(
        self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        body: &Graph,
    ) -> Self {
        self.write_node(operator, inputs, outputs, Some(body))
    }

    /// The file.
    pub(crate) fn into_model(self) -> Vec<u8> {
        let (mut model, mut opset) = (Message::default(), Message::default());
        opset.varint(2, OPSET);
        model.varint(1, IR_VERSION);
        model.bytes(2, b"tidegate load test");
        model.message(8, &opset);
        model.message(7, &self.0);
        model.0
    }

    fn write_node(
        mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        body: Option<&Graph>,
    ) -> Self {
        let mut node = Message::default();
        for input in inputs {
            node.bytes(1, input.as_bytes());
        }
        for output in outputs {
            node.bytes(2, output.as_bytes());
        }
        node.bytes(4, operator.as_bytes());
        if let Some(body) = body {
            const GRAPH: u64 = 5;
            let mut attribute = Message::default();
            attribute.bytes(1, b"body");
            attribute.message(6, &body.0);
            attribute.varint(20, GRAPH);
            node.message(5, &attribute);
        }
        self.0.message(1, &node);
        self
    }
}

fn value_info(name: &str, element: Element, dims: &[Option<u64>]) -> Message {
    let (mut shape, mut tensor) = (Message::default(), Message::default());
    for dim in dims {
        let mut written = Message::default();
        match dim {
            Some(length) => written.varint(1, *length),
            None => written.bytes(2, b"n"),
        }
        shape.message(1, &written);
    }
    tensor.varint(1, element as u64);
    tensor.message(2, &shape);
    let (mut kind, mut info) = (Message::default(), Message::default());
    kind.message(1, &tensor);
    info.bytes(1, name.as_bytes());
    info.message(2, &kind);
    info
}

impl Message {
    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn message(&mut self, field: u64, value: &Message) {
        self.bytes(field, &value.0);
    }

    fn raw_varint(&mut self, mut value: u64) {
        loop {
            let low = value.to_le_bytes()[0] & 0x7f;
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Element, Graph, Message};

    #[test]
    fn varints_take_seven_bits_a_byte() {
        let mut message = Message::default();
        message.varint(1, 150); // the example of protobuf's own documentation
        message.varint(20, u64::MAX);
        let all_ones = [0xff; 9].into_iter().chain([1]);
        let expected: Vec<u8> =
            [0x08, 0x96, 0x01, 0xa0, 0x01].into_iter().chain(all_ones).collect();
        assert_eq!(message.0, expected);
    }

    #[test]
    fn fields_carry_their_length() {
        let mut inner = Message::default();
        inner.bytes(2, b"testing");
        let mut outer = Message::default();
        outer.message(3, &inner);
        assert_eq!(outer.0, b"\x1a\x09\x12\x07testing");
    }

    #[test]
    fn a_constant_keeps_its_bytes() {
        let model = Graph::new("g")
            .floats("a", &[2], &[1.0, -2.5])
            .constant("i", Element::Int32, &[], &i32::MIN.to_le_bytes())
            .into_model();
        let raw = [1.0_f32.to_le_bytes(), (-2.5_f32).to_le_bytes()].concat();
        assert!(model.windows(8).any(|bytes| bytes == raw));
        assert!(model.windows(6).any(|bytes| bytes == b"\x4a\x04\x00\x00\x00\x80"));
    }
}
