//! Rows of tensors as numbers, whatever their datatype, without a copy.

use half::{bf16, f16};

use crate::tensor::{Data, DataType, Element, Tensor};

use super::binner::Real;

/// The elements of a tensor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Items<'a, I> {
    /// In place.
    Typed(&'a [I]),
    /// As bytes that are not aligned.
    Bytes(&'a [u8]),
}

impl<I: bytemuck::AnyBitPattern> Items<'_, I> {
    /// The number of elements.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Typed(items) => items.len(),
            Self::Bytes(bytes) => bytes.len() / size_of::<I>(),
        }
    }

    /// The elements from `start` on, as many as `count`.
    #[inline]
    pub(super) fn row(self, start: usize, count: usize) -> Self {
        let size = size_of::<I>();
        match self {
            Self::Typed(items) => Self::Typed(&items[start..start + count]),
            Self::Bytes(bytes) => Self::Bytes(&bytes[start * size..(start + count) * size]),
        }
    }

    /// Calls `each` for every element.
    #[inline]
    pub(super) fn each(self, mut each: impl FnMut(I)) {
        match self {
            Self::Typed(items) => items.iter().for_each(|item| each(*item)),
            Self::Bytes(bytes) => {
                bytes.chunks_exact(size_of::<I>()).map(bytemuck::pod_read_unaligned).for_each(each);
            }
        }
    }

    /// One element.
    pub(super) fn get(self, index: usize) -> I {
        match self {
            Self::Typed(items) => items[index],
            Self::Bytes(bytes) => {
                let size = size_of::<I>();
                bytemuck::pod_read_unaligned(&bytes[index * size..(index + 1) * size])
            }
        }
    }
}

/// Work on the elements of a tensor of numbers.
pub(super) trait Visit {
    /// Does it, on elements that `real` makes numbers of.
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    );
}

/// Visits the elements of a tensor; does nothing for texts.
#[expect(clippy::cast_precision_loss, reason = "features are compared in double precision at most")]
pub(super) fn visit(tensor: &Tensor, visitor: &mut impl Visit) {
    match tensor.datatype() {
        DataType::Fp32 => visitor.visit(items::<f32>(tensor), |item| item),
        DataType::Fp64 => visitor.visit(items::<f64>(tensor), |item| item),
        DataType::Int64 => visitor.visit(items::<i64>(tensor), |item| item as f64),
        DataType::Int32 => visitor.visit(items::<i32>(tensor), f64::from),
        DataType::Int16 => visitor.visit(items::<i16>(tensor), f32::from),
        DataType::Int8 => visitor.visit(items::<i8>(tensor), f32::from),
        DataType::Uint64 => visitor.visit(items::<u64>(tensor), |item| item as f64),
        DataType::Uint32 => visitor.visit(items::<u32>(tensor), f64::from),
        DataType::Uint16 => visitor.visit(items::<u16>(tensor), f32::from),
        DataType::Uint8 => visitor.visit(items::<u8>(tensor), f32::from),
        DataType::Fp16 => visitor.visit(items::<u16>(tensor), |bits| f16::from_bits(bits).to_f32()),
        DataType::Bf16 => {
            visitor.visit(items::<u16>(tensor), |bits| bf16::from_bits(bits).to_f32());
        }
        DataType::Bool => {
            let truths = match tensor.data() {
                Data::Bool(values) => Items::Typed(bytemuck::cast_slice::<bool, u8>(values)),
                _ => items::<u8>(tensor),
            };
            visitor.visit(truths, f32::from);
        }
        DataType::Bytes => {}
    }
}

fn items<I: Element + bytemuck::AnyBitPattern>(tensor: &Tensor) -> Items<'_, I> {
    match tensor.data() {
        Data::Raw(raw) => I::cast(raw).map_or(Items::Bytes(raw), Items::Typed),
        data => Items::Typed(I::typed(data).unwrap_or(&[])),
    }
}
