//! The inference request: envelope, inputs, requested outputs.
//!
//! One pass in the order of the text. An input's `data` is read at once if its datatype and shape came
//! before it; otherwise its place is kept, and it is read when the input is complete. Optional keys may be
//! `null`, as clients write that serialise every field.
//!
//! Source: Open Inference Protocol, REST, "Inference Request JSON Object"; Triton's binary tensor extension.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{
    model::{InferRequest, Input, RequestedOutput},
    tensor::{Data, DataType, Shape, Strings, Tensor},
    wire::json::{Cursor, number},
};

use super::{
    DecodeError, Limits,
    elements::{self, Fault},
    error::shown,
    parameters::{self, key_limited, unsigned},
};

/// Reads an inference request.
///
/// `json_bytes` is the header `Inference-Header-Content-Length`: the JSON is so long, and the binary tensors
/// follow it; `None` if all of the body is JSON. A length of 0 announces a raw request, which is for
/// [`decode_raw_infer`](super::decode_raw_infer).
pub fn decode_infer(
    body: &Bytes,
    json_bytes: Option<usize>,
    limits: &Limits,
) -> Result<InferRequest, DecodeError> {
    let json_end = json_bytes.unwrap_or(body.len());
    if json_bytes == Some(0) {
        return Err(DecodeError::Request("the JSON is 0 bytes long; it must hold inputs".into()));
    }
    let Some(json) = body.get(..json_end) else {
        return Err(DecodeError::Request(format!(
            "the JSON cannot be {json_end} bytes long in a body of {} bytes",
            body.len()
        )));
    };
    let mut reader = Reader {
        cursor: Cursor::new(json, limits.json_depth_max),
        limits,
        body,
        binary_at: json_end,
        has_binary: json_bytes.is_some(),
    };
    let request = reader.request()?;
    reader.cursor.finish()?;
    match body.len() - reader.binary_at {
        0 => Ok(request),
        left_over => Err(DecodeError::LeftOver(left_over)),
    }
}

/// Reads the outputs of a response, as a client of a server does; what they may hold is bounded by their bytes.
pub fn decode_outputs(body: &Bytes, json_bytes: Option<usize>) -> Result<Vec<Input>, DecodeError> {
    let json_end = json_bytes.unwrap_or(body.len());
    let Some(json) = body.get(..json_end) else {
        return Err(DecodeError::Request(format!(
            "the JSON cannot be {json_end} bytes long in a body of {} bytes",
            body.len()
        )));
    };
    // A model may have more than requests usually hold.
    let limits = Limits {
        inputs_max: usize::MAX,
        name_bytes_max: usize::MAX,
        rank_max: usize::MAX,
        ..Limits::default()
    };
    let mut reader = Reader {
        cursor: Cursor::new(json, limits.json_depth_max),
        limits: &limits,
        body,
        binary_at: json_end,
        has_binary: json_bytes.is_some(),
    };
    let mut outputs = Vec::new();
    reader.cursor.open(b'{')?;
    let mut first = true;
    while let Some(key) = reader.cursor.next_key(&mut first)? {
        if *key == *"outputs" && outputs.is_empty() {
            reader.list(&mut outputs, "`outputs`")?;
        } else {
            reader.cursor.skip_value()?;
        }
    }
    reader.cursor.finish()?;
    match body.len() - reader.binary_at {
        0 => Ok(outputs),
        left_over => Err(DecodeError::LeftOver(left_over)),
    }
}

/// What is kept while a request is read.
struct Reader<'a> {
    cursor: Cursor<'a>,
    limits: &'a Limits,
    body: &'a Bytes,
    /// Where the next binary tensor begins.
    binary_at: usize,
    /// Whether a header told the JSON from the binary tensors.
    has_binary: bool,
}

/// The keys of one object that were there already.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    /// Notes the key of this number; whether it is new.
    fn insert(&mut self, number: u8) -> bool {
        let before = self.0;
        self.0 |= 1 << number;
        before != self.0
    }
}

/// An input before all of its keys are known.
#[derive(Default)]
struct Draft<'a> {
    position: usize,
    name: Option<Cow<'a, str>>,
    shape: Option<Shape>,
    datatype: Option<DataType>,
    binary_bytes: Option<usize>,
    data: Given,
}

/// What an input's `data` has been so far.
#[derive(Default)]
enum Given {
    #[default]
    Nothing,
    /// From this offset to that one, not checked yet: datatype or shape are to come.
    Later(usize, usize),
    Read(Data),
}

/// Consumes the bracket of something that has a name, which the message then tells.
pub(super) fn open(cursor: &mut Cursor<'_>, bracket: u8, what: &str) -> Result<(), DecodeError> {
    if cursor.peek() == bracket || cursor.offset() >= cursor.bytes().len() {
        return Ok(cursor.open(bracket)?);
    }
    let kind = if bracket == b'{' { "an object" } else { "an array" };
    Err(DecodeError::Request(format!("{what} must be {kind}, at byte {}", cursor.offset())))
}

/// Reads tensors that another document than a request lists, with all of their data.
pub(super) fn tensors(
    cursor: &mut Cursor<'_>,
    what: &str,
    limits: &Limits,
) -> Result<Vec<Input>, DecodeError> {
    let (body, mut tensors) = (Bytes::new(), Vec::new());
    let here = cursor.clone();
    let mut reader = Reader { cursor: here, limits, body: &body, binary_at: 0, has_binary: false };
    reader.list(&mut tensors, &format!("`{what}`"))?;
    cursor.follow(&reader.cursor);
    Ok(tensors)
}

impl<'a> Reader<'a> {
    fn request(&mut self) -> Result<InferRequest, DecodeError> {
        let mut request = InferRequest::default();
        let mut seen = Seen::default();
        self.cursor.open(b'{')?;
        let mut first = true;
        while let Some(key) = self.cursor.next_key(&mut first)? {
            let number = match &*key {
                "id" => 0,
                "parameters" => 1,
                "inputs" => 2,
                "outputs" => 3,
                _ => {
                    self.cursor.skip_value()?;
                    continue;
                }
            };
            if !seen.insert(number) {
                return Err(DecodeError::Request(format!("the request has two keys `{key}`")));
            }
            if number != 2 && self.cursor.null()? {
                continue;
            }
            match number {
                0 => request.id = Some(self.id()?),
                1 => parameters::read_request(&mut self.cursor, self.limits, &mut request)?,
                2 => self.list(&mut request.inputs, "`inputs`")?,
                _ => self.outputs(&mut request.outputs)?,
            }
        }
        if request.inputs.len() < self.limits.inputs_min {
            return Err(DecodeError::Request("the request needs at least one of `inputs`".into()));
        }
        Ok(request)
    }

    fn id(&mut self) -> Result<String, DecodeError> {
        let id = self.cursor.string()?;
        if id.len() > self.limits.id_bytes_max {
            return Err(DecodeError::Limit {
                what: "bytes of an `id`",
                max: self.limits.id_bytes_max,
            });
        }
        Ok(id.into_owned())
    }

    /// The inputs, under whatever name they are listed.
    fn list(&mut self, inputs: &mut Vec<Input>, what: &str) -> Result<(), DecodeError> {
        open(&mut self.cursor, b'[', what)?;
        let mut first = true;
        while self.cursor.next_item(&mut first)? {
            if inputs.len() == self.limits.inputs_max {
                return Err(DecodeError::Limit { what: "`inputs`", max: self.limits.inputs_max });
            }
            let input = self.input(inputs.len())?;
            inputs.push(input);
        }
        Ok(())
    }

    fn input(&mut self, position: usize) -> Result<Input, DecodeError> {
        let mut draft = Draft { position, ..Draft::default() };
        let mut seen = Seen::default();
        self.cursor.open(b'{')?;
        let mut first = true;
        while let Some(key) = self.cursor.next_key(&mut first)? {
            let number = match &*key {
                "name" => 0,
                "shape" => 1,
                "datatype" => 2,
                "parameters" => 3,
                "data" => 4,
                _ => {
                    self.cursor.skip_value()?;
                    continue;
                }
            };
            if !seen.insert(number) {
                return Err(draft.wrong(format!("has two keys `{key}`")));
            }
            match number {
                0 => draft.name = Some(self.name()?),
                1 => draft.shape = Some(self.shape(&draft)?),
                2 => draft.datatype = Some(self.datatype(&draft)?),
                _ if self.cursor.null()? => (),
                3 => self.input_parameters(&mut draft)?,
                _ => self.data(&mut draft)?,
            }
        }
        self.complete(draft)
    }

    /// The name of an input or an output.
    fn name(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        let name = self.cursor.string()?;
        key_limited(&name, self.limits)?;
        Ok(name)
    }

    fn shape(&mut self, draft: &Draft<'_>) -> Result<Shape, DecodeError> {
        let mut shape = Shape::default();
        let mut first = true;
        if self.cursor.peek() != b'[' {
            return Err(draft.wrong("`shape` must be an array of whole numbers".into()));
        }
        self.cursor.open(b'[')?;
        while self.cursor.next_item(&mut first)? {
            if shape.len() == self.limits.rank_max {
                return Err(draft
                    .wrong(format!("`shape` has more than {} dimensions", self.limits.rank_max)));
            }
            self.cursor.peek();
            let (bytes, start) = (self.cursor.bytes(), self.cursor.offset());
            if let Some((dim, end)) = number::integer(bytes, start)
                && shape.push(dim)
            {
                self.cursor.jump(end);
                continue;
            }
            let token = self.cursor.number()?;
            match token.parse() {
                Ok(dim) if shape.push(dim) => (),
                _ => {
                    return Err(draft.wrong(format!(
                        "`shape` holds {}; a dimension is a whole number from 0 to {}",
                        shown(token),
                        i64::MAX
                    )));
                }
            }
        }
        Ok(shape)
    }

    fn datatype(&mut self, draft: &Draft<'_>) -> Result<DataType, DecodeError> {
        let name = self.cursor.string()?;
        DataType::parse(&name).ok_or_else(|| {
            let all = DataType::ALL.map(DataType::name).join(", ");
            draft.wrong(format!("{} is not a datatype; there are {all}", shown(&name)))
        })
    }

    fn input_parameters(&mut self, draft: &mut Draft<'a>) -> Result<(), DecodeError> {
        let mut first = true;
        let mut count = 0;
        open(&mut self.cursor, b'{', "`parameters`")?;
        while let Some(key) = self.cursor.next_key(&mut first)? {
            parameters::count_limited(&mut count, self.limits)?;
            if key.starts_with("shared_memory_") {
                return Err(draft.wrong(NO_SHARED_MEMORY.to_owned()));
            }
            if key != "binary_data_size" {
                self.cursor.skip_value()?;
                continue;
            }
            let size = unsigned(&mut self.cursor)
                .map_err(|problem| problem.or(|text| draft.wrong(format!("`{key}` {text}"))))?;
            if draft.binary_bytes.is_some() {
                return Err(draft.wrong(format!("has two keys `{key}`")));
            }
            // A size beyond the address range is beyond the body, which is what the client will be told.
            draft.binary_bytes = Some(usize::try_from(size).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    /// Reads `data` now if that is possible, else keeps where it is.
    fn data(&mut self, draft: &mut Draft<'a>) -> Result<(), DecodeError> {
        if draft.datatype.is_some() && draft.shape.is_some() {
            draft.data = Given::Read(elements(&mut self.cursor, draft)?);
            return Ok(());
        }
        let next = self.cursor.peek();
        let start = self.cursor.offset();
        match next {
            b'[' => self.cursor.skip_array_loosely()?,
            // Words that JSON does not know, but floats do.
            b'N' | b'I' | b'-' => self.cursor.skip_number_loosely(),
            _ => self.cursor.skip_value()?,
        }
        draft.data = Given::Later(start, self.cursor.offset());
        Ok(())
    }

    fn complete(&mut self, mut draft: Draft<'a>) -> Result<Input, DecodeError> {
        if draft.name.is_none() {
            return Err(draft.wrong("has no `name`".to_owned()));
        }
        let (datatype, _, count) = match draft.kind() {
            Ok(kind) => kind,
            Err(error) => return Err(self.broken_data(&draft).unwrap_or(error)),
        };
        if let Given::Later(start, end) = draft.data {
            let mut cursor = self.cursor.back_inside(start);
            draft.data = Given::Read(elements(&mut cursor, &draft)?);
            // Skipping and reading agree on where a value ends, unless what was skipped is no JSON.
            if cursor.offset() != end {
                return Err(cursor.unexpected("expected `,` or `}`").into());
            }
        }
        let data = match (std::mem::take(&mut draft.data), draft.binary_bytes) {
            (Given::Nothing, Some(size)) => {
                let tensor = self.binary(&draft, size)?;
                return Ok(draft.into_input(tensor));
            }
            (Given::Read(data), None) => data,
            (Given::Nothing, None) if count == 0 => match datatype {
                DataType::Bytes => Data::Bytes(Strings::default()),
                _ => Data::Raw(Bytes::new()),
            },
            (Given::Nothing, None) => {
                return Err(draft.wrong(
                    "has no data; give `data`, or `binary_data_size` in its `parameters`"
                        .to_owned(),
                ));
            }
            (_, Some(_)) => {
                return Err(draft.wrong(
                    "has two sources of data; give either `data` or `binary_data_size`".to_owned(),
                ));
            }
            (Given::Later(..), None) => unreachable!("kept data was read above"),
        };
        let shape = draft.shape.take().expect("an input's kind includes its shape");
        let tensor = match data {
            Data::Raw(raw) => Tensor::from_raw(datatype, shape, raw),
            data => Tensor::new(shape, data),
        };
        let tensor = tensor.map_err(|error| draft.wrong(error.to_string()))?;
        Ok(draft.into_input(tensor))
    }

    /// What is wrong with the grammar of `data` that was kept: a bracket that is missing swallows the keys
    /// behind it, and their absence is not the mistake to tell of.
    #[cold]
    fn broken_data(&self, draft: &Draft<'_>) -> Option<DecodeError> {
        let Given::Later(start, _) = draft.data else { return None };
        let mut cursor = self.cursor.back_inside(start);
        match elements::read(&mut cursor, DataType::Fp64, None, usize::MAX) {
            Err(Fault::Json(error)) => Some(error.into()),
            _ => None,
        }
    }

    /// The next `size` bytes behind the JSON as a tensor.
    fn binary(&mut self, draft: &Draft<'_>, size: usize) -> Result<Tensor, DecodeError> {
        let (datatype, shape, count) = draft.kind()?;
        let wrong = |problem| DecodeError::Size { input: draft.label(), problem };
        if !self.has_binary && size > 0 {
            return Err(wrong(format!(
                "expecting {size} additional bytes, but without the header \
                 Inference-Header-Content-Length all of the body is JSON"
            )));
        }
        let left = self.body.len() - self.binary_at;
        if size > left {
            return Err(wrong(format!("expecting {size} additional bytes, got {left}")));
        }
        let raw = self.body.slice(self.binary_at..self.binary_at + size);
        self.binary_at += size;
        if datatype == DataType::Bytes {
            let strings = super::raw::strings(&raw, count).map_err(wrong)?;
            return Tensor::new(shape.clone(), Data::Bytes(strings))
                .map_err(|error| wrong(error.to_string()));
        }
        Tensor::from_raw(datatype, shape.clone(), raw).map_err(|error| wrong(error.to_string()))
    }

    fn outputs(&mut self, outputs: &mut Vec<RequestedOutput>) -> Result<(), DecodeError> {
        open(&mut self.cursor, b'[', "`outputs`")?;
        let mut first = true;
        while self.cursor.next_item(&mut first)? {
            if outputs.len() == self.limits.outputs_max {
                return Err(DecodeError::Limit { what: "`outputs`", max: self.limits.outputs_max });
            }
            let output = self.output(outputs.len())?;
            if outputs.iter().any(|before| before.name == output.name) {
                return Err(DecodeError::Output {
                    output: shown(&output.name),
                    problem: "is requested more than once".to_owned(),
                });
            }
            outputs.push(output);
        }
        Ok(())
    }

    fn output(&mut self, position: usize) -> Result<RequestedOutput, DecodeError> {
        let mut name = None;
        let mut wanted = (None, None);
        let mut seen = Seen::default();
        self.cursor.open(b'{')?;
        let mut first = true;
        while let Some(key) = self.cursor.next_key(&mut first)? {
            let number = match &*key {
                "name" => 0,
                "parameters" => 1,
                _ => {
                    self.cursor.skip_value()?;
                    continue;
                }
            };
            let label = || name.as_deref().map_or_else(|| position.to_string(), shown);
            let wrong = |problem| DecodeError::Output { output: label(), problem };
            if !seen.insert(number) {
                return Err(wrong(format!("has two keys `{key}`")));
            }
            if number == 0 {
                name = Some(self.name()?);
            } else if !self.cursor.null()? {
                wanted = self.output_parameters(wrong)?;
            }
        }
        let Some(name) = name else {
            return Err(DecodeError::Output {
                output: position.to_string(),
                problem: "has no `name`".to_owned(),
            });
        };
        let (binary, classification) = wanted;
        Ok(RequestedOutput { name: name.into_owned(), binary, classification })
    }

    /// `binary_data` and `classification`.
    fn output_parameters(
        &mut self,
        wrong: impl Fn(String) -> DecodeError,
    ) -> Result<(Option<bool>, Option<usize>), DecodeError> {
        let (mut binary, mut classification) = (None, None);
        let mut first = true;
        let mut count = 0;
        open(&mut self.cursor, b'{', "`parameters`")?;
        while let Some(key) = self.cursor.next_key(&mut first)? {
            parameters::count_limited(&mut count, self.limits)?;
            let twice = match &*key {
                "binary_data" => binary.is_some(),
                "classification" => classification.is_some(),
                _ => false,
            };
            if twice {
                return Err(wrong(format!("has two keys `{key}`")));
            }
            match &*key {
                "binary_data" => {
                    let value = parameters::boolean(&mut self.cursor);
                    binary =
                        Some(value.map_err(|e| e.or(|text| wrong(format!("`{key}` {text}"))))?);
                }
                "classification" => {
                    let classes = unsigned(&mut self.cursor)
                        .map_err(|e| e.or(|text| wrong(format!("`{key}` {text}"))))?;
                    if classes == 0 {
                        return Err(wrong(
                            "`classification` is 0; it must be at least 1".to_owned(),
                        ));
                    }
                    // More classes than there can be elements are all of them.
                    classification = Some(usize::try_from(classes).unwrap_or(usize::MAX));
                }
                key if key.starts_with("shared_memory_") => {
                    return Err(wrong(
                        "shared memory is not supported; leave it out to get the values in the \
                         response"
                            .to_owned(),
                    ));
                }
                _ => self.cursor.skip_value()?,
            }
        }
        Ok((binary, classification))
    }
}

/// The elements at the cursor.
fn elements(cursor: &mut Cursor<'_>, draft: &Draft<'_>) -> Result<Data, DecodeError> {
    let (datatype, shape, count) = draft.kind()?;
    elements::read(cursor, datatype, Some(shape), count).map_err(|fault| match fault {
        Fault::Json(error) => error.into(),
        Fault::Data(problem) => draft.wrong(problem),
        Fault::Element { index, problem } => {
            DecodeError::Element { input: draft.label(), index, problem }
        }
    })
}

const NO_SHARED_MEMORY: &str =
    "shared memory is not supported; send `data`, or `binary_data_size` and the bytes";

impl Draft<'_> {
    /// The name as messages show it; the position while there is none.
    fn label(&self) -> String {
        self.name.as_deref().map_or_else(|| self.position.to_string(), shown)
    }

    #[cold]
    fn wrong(&self, problem: String) -> DecodeError {
        DecodeError::Input { input: self.label(), problem }
    }

    /// Datatype, shape, and the number of elements that they ask for.
    fn kind(&self) -> Result<(DataType, &Shape, usize), DecodeError> {
        let missing = |key| self.wrong(format!("has no `{key}`"));
        let datatype = self.datatype.ok_or_else(|| missing("datatype"))?;
        let shape = self.shape.as_ref().ok_or_else(|| missing("shape"))?;
        let count = shape
            .element_count()
            .ok_or_else(|| self.wrong(format!("shape {shape} has too many elements")))?;
        Ok((datatype, shape, count))
    }

    fn into_input(self, tensor: Tensor) -> Input {
        let name = self.name.expect("a complete input has a name").into_owned();
        Input { name, tensor }
    }
}
