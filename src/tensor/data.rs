//! Elements and the tensor that owns them.

use std::borrow::Cow;

use bytes::Bytes;

use super::{DataType, Shape};

/// A tensor: datatype, shape, and as many elements as the shape says.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    datatype: DataType,
    shape: Shape,
    data: Data,
}

/// The elements of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// BOOL.
    Bool(Vec<bool>),
    /// UINT8.
    Uint8(Vec<u8>),
    /// UINT16.
    Uint16(Vec<u16>),
    /// UINT32.
    Uint32(Vec<u32>),
    /// UINT64.
    Uint64(Vec<u64>),
    /// INT8.
    Int8(Vec<i8>),
    /// INT16.
    Int16(Vec<i16>),
    /// INT32.
    Int32(Vec<i32>),
    /// INT64.
    Int64(Vec<i64>),
    /// FP32.
    Fp32(Vec<f32>),
    /// FP64.
    Fp64(Vec<f64>),
    /// BYTES.
    Bytes(Strings),
    /// Any datatype but BYTES, as little-endian bytes shared with the message they came in.
    Raw(Bytes),
}

/// Byte strings one after the other in one buffer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// Why elements and shape do not make a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The product of the dimensions does not fit into memory's address range.
    #[error("shape {0} has too many elements")]
    TooLarge(Shape),
    /// The shape promises another number of elements.
    #[error("shape {shape} needs {expected} elements, got {actual}")]
    Count {
        /// The shape.
        shape: Shape,
        /// Elements that it needs.
        expected: usize,
        /// Elements that are there.
        actual: usize,
    },
    /// The raw bytes are too few or too many.
    #[error("shape {shape} of {datatype} needs {expected} bytes, got {actual}")]
    Size {
        /// The shape.
        shape: Shape,
        /// The datatype.
        datatype: DataType,
        /// Bytes that are needed.
        expected: usize,
        /// Bytes that are there.
        actual: usize,
    },
    /// A raw BOOL is neither 0 nor 1.
    #[error("element {index} of BOOL is the byte {byte}; only 0 and 1 are allowed")]
    Bool {
        /// Index of the element.
        index: usize,
        /// The byte found.
        byte: u8,
    },
    /// The datatype asked for is not the tensor's.
    #[error("the tensor holds {actual}, not {expected}")]
    DataType {
        /// The datatype asked for.
        expected: DataType,
        /// The tensor's own.
        actual: DataType,
    },
}

impl Tensor {
    /// A tensor of typed elements; the datatype follows from them (`Data::Raw` needs [`Tensor::from_raw`]).
    ///
    /// # Panics
    /// If `data` is `Data::Raw`, whose datatype is unknown here.
    pub fn new(shape: Shape, data: Data) -> Result<Self, TensorError> {
        let datatype = data.datatype().expect("raw data comes with its datatype through from_raw");
        let expected = shape.element_count().ok_or_else(|| TensorError::TooLarge(shape.clone()))?;
        let actual = data.len();
        if expected != actual {
            return Err(TensorError::Count { shape, expected, actual });
        }
        Ok(Self { datatype, shape, data })
    }

    /// A tensor over little-endian, row-major bytes.
    ///
    /// # Panics
    /// If `datatype` is BYTES, whose binary form has length prefixes and is decoded in `wire`.
    pub fn from_raw(datatype: DataType, shape: Shape, raw: Bytes) -> Result<Self, TensorError> {
        let size = datatype.size().expect("BYTES has no raw form");
        let count = shape.element_count().ok_or_else(|| TensorError::TooLarge(shape.clone()))?;
        let expected =
            count.checked_mul(size).ok_or_else(|| TensorError::TooLarge(shape.clone()))?;
        let actual = raw.len();
        if expected != actual {
            return Err(TensorError::Size { shape, datatype, expected, actual });
        }
        if datatype == DataType::Bool
            && let Some(index) = raw.iter().position(|byte| *byte > 1)
        {
            return Err(TensorError::Bool { index, byte: raw[index] });
        }
        Ok(Self { datatype, shape, data: Data::Raw(raw) })
    }

    /// The element type.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The dimensions.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Sets other dimensions for the same elements.
    ///
    /// # Panics
    /// If there would be more or fewer elements.
    pub fn set_shape(&mut self, shape: Shape) {
        let (before, now) = (self.shape.element_count(), shape.element_count());
        assert_eq!(before, now, "a tensor keeps its elements");
        self.shape = shape;
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match (&self.data, self.datatype.size()) {
            (Data::Raw(raw), Some(size)) => raw.len() / size,
            (data, _) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as a slice: borrowed where they lie aligned, copied where they do not.
    ///
    /// # Errors
    /// If the tensor's datatype is not `T`'s.
    pub fn view<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        if self.datatype != T::DATATYPE {
            return Err(TensorError::DataType { expected: T::DATATYPE, actual: self.datatype });
        }
        Ok(match &self.data {
            Data::Raw(raw) => match T::cast(raw) {
                Some(slice) => Cow::Borrowed(slice),
                None => Cow::Owned(T::copy(raw)),
            },
            data => Cow::Borrowed(T::typed(data).expect("typed data agrees with the datatype")),
        })
    }

    /// The strings of a BYTES tensor.
    pub fn strings(&self) -> Option<&Strings> {
        match &self.data {
            Data::Bytes(strings) => Some(strings),
            _ => None,
        }
    }

    /// The length of the binary form in bytes (length prefixes of BYTES included).
    pub fn raw_len(&self) -> usize {
        match (&self.data, self.datatype.size()) {
            (Data::Bytes(strings), _) => strings.bytes.len() + 4 * strings.len(),
            (_, Some(size)) => self.len() * size,
            (_, None) => unreachable!("only BYTES has no size"),
        }
    }

    /// Appends the binary form: little-endian and row-major; BYTES with a `u32` length before each element.
    ///
    /// Source: Triton's binary tensor extension.
    pub fn write_raw(&self, out: &mut Vec<u8>) {
        match &self.data {
            Data::Bool(values) => out.extend(values.iter().map(|value| u8::from(*value))),
            Data::Uint8(values) => out.extend_from_slice(values),
            Data::Uint16(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Uint32(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Uint64(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Int8(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Int16(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Int32(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Int64(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Fp32(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Fp64(values) => extend_le(out, values, |v| v.to_le_bytes()),
            Data::Bytes(strings) => {
                for string in strings.iter() {
                    let length =
                        u32::try_from(string.len()).expect("a string is shorter than 4 GiB");
                    out.extend_from_slice(&length.to_le_bytes());
                    out.extend_from_slice(string);
                }
            }
            Data::Raw(raw) => out.extend_from_slice(raw),
        }
    }
}

/// Appends each value's little-endian bytes; on a little-endian machine this is one copy.
fn extend_le<T: bytemuck::NoUninit, const N: usize>(
    out: &mut Vec<u8>,
    values: &[T],
    bytes: impl Fn(&T) -> [u8; N],
) {
    if cfg!(target_endian = "little") {
        out.extend_from_slice(bytemuck::cast_slice(values));
    } else {
        out.extend(values.iter().flat_map(bytes));
    }
}

impl Data {
    /// The datatype of typed elements; `None` for raw bytes.
    pub fn datatype(&self) -> Option<DataType> {
        Some(match self {
            Self::Bool(_) => DataType::Bool,
            Self::Uint8(_) => DataType::Uint8,
            Self::Uint16(_) => DataType::Uint16,
            Self::Uint32(_) => DataType::Uint32,
            Self::Uint64(_) => DataType::Uint64,
            Self::Int8(_) => DataType::Int8,
            Self::Int16(_) => DataType::Int16,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
            Self::Raw(_) => return None,
        })
    }

    /// The number of elements; of raw bytes, their length.
    fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Uint8(values) => values.len(),
            Self::Uint16(values) => values.len(),
            Self::Uint32(values) => values.len(),
            Self::Uint64(values) => values.len(),
            Self::Int8(values) => values.len(),
            Self::Int16(values) => values.len(),
            Self::Int32(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Fp32(values) => values.len(),
            Self::Fp64(values) => values.len(),
            Self::Bytes(strings) => strings.len(),
            Self::Raw(raw) => raw.len(),
        }
    }
}

impl Strings {
    /// Room for this many strings of this many bytes together.
    pub fn with_capacity(strings: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(strings) }
    }

    /// Strings that lie in `bytes`, each from where the one before ends; `None` if the ends are not ascending or
    /// the last is not the end of the bytes.
    pub fn from_ends(bytes: Vec<u8>, ends: Vec<usize>) -> Option<Self> {
        let ascending = ends.is_sorted() && ends.last().copied().unwrap_or(0) == bytes.len();
        ascending.then_some(Self { bytes, ends })
    }

    /// Appends a string.
    pub fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
    }

    /// Appends a string that is written piece by piece: `write` may only append to the buffer.
    pub fn push_with<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let result = write(&mut self.bytes);
        self.ends.push(self.bytes.len());
        result
    }

    /// Takes all strings out and keeps their memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// The number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string of this index.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let begin = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[begin..end])
    }

    /// The bytes of all of them.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        (0..self.ends.len()).map(|index| self.get(index).unwrap_or_default())
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut all = Self::default();
        for string in strings {
            all.push(string.as_ref());
        }
        all
    }
}

/// A Rust type that can be the element of a tensor.
pub trait Element: Copy + 'static {
    /// The datatype whose elements these are.
    const DATATYPE: DataType;

    /// The typed elements, if they are of this type.
    fn typed(data: &Data) -> Option<&[Self]>;

    /// Little-endian bytes seen as elements; `None` where alignment or byte order forbid it.
    fn cast(raw: &[u8]) -> Option<&[Self]>;

    /// Little-endian bytes copied into elements; what is left over at the end is ignored.
    fn copy(raw: &[u8]) -> Vec<Self>;

    /// Wraps elements as data.
    fn wrap(values: Vec<Self>) -> Data;
}

macro_rules! elements {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        impl Element for $rust {
            const DATATYPE: DataType = DataType::$variant;

            fn typed(data: &Data) -> Option<&[Self]> {
                match data {
                    Data::$variant(values) => Some(values),
                    _ => None,
                }
            }

            fn cast(raw: &[u8]) -> Option<&[Self]> {
                if cfg!(target_endian = "little") { bytemuck::try_cast_slice(raw).ok() } else { None }
            }

            fn copy(raw: &[u8]) -> Vec<Self> {
                if cfg!(target_endian = "little") {
                    let size = size_of::<Self>();
                    bytemuck::pod_collect_to_vec(&raw[..raw.len() / size * size])
                } else {
                    let (chunks, _) = raw.as_chunks();
                    chunks.iter().map(|chunk| <$rust>::from_le_bytes(*chunk)).collect()
                }
            }

            fn wrap(values: Vec<Self>) -> Data {
                Data::$variant(values)
            }
        }
    )*};
}

elements! {
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    f32 => Fp32, f64 => Fp64,
}

impl Element for bool {
    const DATATYPE: DataType = DataType::Bool;

    fn typed(data: &Data) -> Option<&[Self]> {
        match data {
            Data::Bool(values) => Some(values),
            _ => None,
        }
    }

    fn cast(raw: &[u8]) -> Option<&[Self]> {
        bytemuck::checked::try_cast_slice(raw).ok()
    }

    fn copy(raw: &[u8]) -> Vec<Self> {
        raw.iter().map(|byte| *byte != 0).collect()
    }

    fn wrap(values: Vec<Self>) -> Data {
        Data::Bool(values)
    }
}

macro_rules! half_elements {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        /// Has no typed form here: the protocol carries it as bytes only.
        impl Element for $rust {
            const DATATYPE: DataType = DataType::$variant;

            fn typed(_: &Data) -> Option<&[Self]> {
                None
            }

            fn cast(raw: &[u8]) -> Option<&[Self]> {
                use half::slice::HalfBitsSliceExt as _;
                Some(u16::cast(raw)?.reinterpret_cast())
            }

            fn copy(raw: &[u8]) -> Vec<Self> {
                u16::copy(raw).into_iter().map(Self::from_bits).collect()
            }

            fn wrap(values: Vec<Self>) -> Data {
                let mut raw = Vec::with_capacity(2 * values.len());
                raw.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                Data::Raw(raw.into())
            }
        }
    )*};
}

half_elements! { half::f16 => Fp16, half::bf16 => Bf16 }

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[i64]) -> Shape {
        Shape::new(dims).unwrap()
    }

    #[test]
    fn raw_bytes_are_seen_as_elements_aligned_or_not() {
        let mut bytes = vec![0u8; 1];
        bytes.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
        let bytes = Bytes::from(bytes).slice(1..);
        let tensor = Tensor::from_raw(DataType::Fp32, shape(&[2]), bytes).unwrap();
        assert_eq!(*tensor.view::<f32>().unwrap(), [1.5, -2.0]);
        assert!(tensor.view::<f64>().is_err());
    }

    #[test]
    fn wrong_sizes_and_bools_are_refused() {
        let raw = |datatype, dims: &[i64], bytes: &'static [u8]| {
            Tensor::from_raw(datatype, shape(dims), Bytes::from_static(bytes))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            raw(DataType::Int16, &[2], &[1, 2, 3]),
            "shape [2] of INT16 needs 4 bytes, got 3"
        );
        assert_eq!(
            raw(DataType::Bool, &[2], &[1, 2]),
            "element 1 of BOOL is the byte 2; only 0 and 1 are allowed"
        );
        let few = Tensor::new(shape(&[2, 2]), Data::Int64(vec![1])).unwrap_err();
        assert_eq!(few.to_string(), "shape [2,2] needs 4 elements, got 1");
    }

    #[test]
    fn raw_form_of_strings_has_length_prefixes() {
        let strings = Strings::from_iter(["hé", ""]);
        let tensor = Tensor::new(shape(&[2]), Data::Bytes(strings)).unwrap();
        let mut out = Vec::new();
        tensor.write_raw(&mut out);
        assert_eq!(out, b"\x03\0\0\0h\xc3\xa9\0\0\0\0");
        assert_eq!(tensor.raw_len(), out.len());
    }

    #[test]
    fn strings_from_ends_cover_their_bytes() {
        let strings = |ends: &[usize]| Strings::from_ends(b"abc".to_vec(), ends.to_vec());
        assert_eq!(strings(&[0, 2, 3]), Some(Strings::from_iter(["", "ab", "c"])));
        assert_eq!(Strings::from_ends(vec![], vec![]), Some(Strings::default()));
        for wrong in [&[][..], &[2], &[2, 1, 3], &[4]] {
            assert_eq!(strings(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn halves_round_trip() {
        let values = vec![half::f16::from_f32(0.5), half::f16::from_f32(-3.0)];
        let Data::Raw(raw) = half::f16::wrap(values.clone()) else { unreachable!() };
        let tensor = Tensor::from_raw(DataType::Fp16, shape(&[2]), raw).unwrap();
        assert_eq!(*tensor.view::<half::f16>().unwrap(), values[..]);
    }
}
