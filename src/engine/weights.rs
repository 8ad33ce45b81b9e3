//! Weights beside a model's file: mapped, not read, and lent to sessions where they lie.
//!
//! A tensor of the model's main graph becomes a value of the runtime that points into the mapping, shared by all
//! sessions of a version: none keeps a copy of its own, and its size has no limit but the machine's. What kernels pack
//! of it for themselves the sessions share as well. (The runtime copies it once while a session is made, and lets go of
//! that.) What lies deeper (attributes, sparse tensors) it takes only as whole files, which it copies. Always true:
//! - A mapping lives as long as a session that was lent it: [`Lent`] is held beside the session and let go of after it.
//! - Only files that nobody changes are mapped; whoever cuts one off ends the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs::File,
    io,
    ptr::null_mut,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use ort::{
    AsPointer as _,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::builder::{PrepackedWeights, SessionBuilder},
    sys::ONNXTensorElementDataType as Element,
};

use super::{
    ModelFile,
    onnx::{Carrier, ElementType, ExternalTensor},
};

/// A file with external data.
#[derive(Debug, Clone)]
pub struct ExternalFile {
    /// The location that the model gives.
    pub location: String,
    /// Its bytes.
    pub bytes: Bytes,
    /// The file that they are mapped from, for another process to map as well.
    pub file: Option<Arc<File>>,
}

impl ExternalFile {
    /// Maps a file of this length that nobody changes.
    #[expect(unsafe_code, reason = "another process could change the file meanwhile")]
    pub fn map(location: String, file: Arc<File>, length: u64) -> io::Result<Self> {
        if file.metadata()?.len() < length {
            return Err(io::Error::other("the file is shorter than it should be"));
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: the file is one of the content store, which is written before it gets its name and never after, in a
        // folder that only this user enters; it stays on the disk while it is open, also where it is collected.
        let mapped = unsafe { memmap2::MmapOptions::new().len(length).map(&*file)? };
        Ok(Self { location, bytes: Bytes::from_owner(mapped), file: Some(file) })
    }
}

/// Weights as kernels packed them, shared by the sessions of a version.
#[derive(Debug, Clone, Default)]
pub struct Packed(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kernels: OnceLock<PrepackedWeights>,
    /// Files in memory of their own, for tensors that cannot be lent.
    files: Mutex<BTreeMap<String, Arc<[u8]>>>,
}

impl Shared {
    fn file(&self, from: &ExternalFile) -> Arc<[u8]> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = files.entry(from.location.clone()).or_insert_with(|| Arc::from(&*from.bytes));
        Arc::clone(copy)
    }
}

/// The loan of a session; to be dropped after the session.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// Before what they point to.
    _values: Values,
    _bytes: Vec<Bytes>,
}

/// Adds the model's external data to a session's options.
pub(super) fn lend(
    mut builder: SessionBuilder,
    file: &ModelFile,
) -> ort::Result<(SessionBuilder, Lent)> {
    let mut lent = Vec::new();
    let mut rest = BTreeSet::new();
    for tensor in &file.summary.external_data {
        let from = file.external.iter().find(|from| from.location == tensor.location);
        match from.and_then(|from| Piece::of(tensor, from)) {
            Some(piece) => lent.push(piece),
            None => drop(rest.insert(&*tensor.location)),
        }
    }
    // Where our own look at the file is missing, all of them.
    let is_known = !file.summary.external_data.is_empty();
    for from in &file.external {
        if !is_known || rest.contains(&*from.location) {
            let copy = file.packed.0.file(from);
            builder = builder.with_external_initializer_file_in_memory(&from.location, copy)?;
        }
    }
    if lent.is_empty() {
        return Ok((builder, Lent::default()));
    }
    let builder =
        builder.with_prepacked_weights(file.packed.0.kernels.get_or_init(PrepackedWeights::new))?;
    let values = add(&builder, &lent)?;
    let bytes = lent.into_iter().map(|piece| piece.bytes).collect();
    Ok((builder, Lent { _values: values, _bytes: bytes }))
}

/// A tensor's part of a file.
struct Piece<'a> {
    name: CString,
    element: Element,
    dims: &'a [i64],
    bytes: Bytes,
}

impl<'a> Piece<'a> {
    /// The part that a tensor needs; `None` where it cannot be lent.
    fn of(tensor: &'a ExternalTensor, from: &ExternalFile) -> Option<Self> {
        let needed = tensor.bytes_needed?;
        let is_whole = tensor.length.is_none_or(|length| length == needed);
        let begin = usize::try_from(tensor.offset).ok()?;
        let end = begin.checked_add(usize::try_from(needed).ok()?)?;
        if tensor.carrier != Carrier::Initializer || !is_whole || end > from.bytes.len() {
            return None;
        }
        Some(Self {
            name: CString::new(&*tensor.tensor).ok()?,
            element: element(tensor.element)?,
            dims: &tensor.dims,
            bytes: from.bytes.slice(begin..end),
        })
    }
}

/// Adds values that point into `pieces` to a session's options.
#[expect(unsafe_code, reason = "the crate makes values only of slices of known types")]
fn add(builder: &SessionBuilder, pieces: &[Piece<'_>]) -> ort::Result<Values> {
    let memory =
        MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
    let mut values = Values(Vec::with_capacity(pieces.len()));
    for piece in pieces {
        let mut value = null_mut();
        // SAFETY: the pointer and the length are those of a live slice, which the caller keeps as long as any session
        // of these options; the runtime only reads weights. The shape is a live slice of so many numbers. The call
        // gives a value, or an error and none.
        unsafe {
            let status = (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                piece.bytes.as_ptr().cast_mut().cast(),
                piece.bytes.len(),
                piece.dims.as_ptr(),
                piece.dims.len(),
                piece.element,
                &raw mut value,
            );
            ort::Error::result_from_status(status)?;
        }
        values.0.push(value);
    }
    let names: Vec<_> = pieces.iter().map(|piece| piece.name.as_ptr()).collect();
    let all: Vec<_> = values.0.iter().map(|value| value.cast_const()).collect();
    let options = builder.ptr().cast_mut();
    // SAFETY: the options are alive, and nothing else uses them: the builder has not made a session. Both lists have as
    // many entries as the call is told; names end with a NUL. The first call says what stands for external data while
    // the graph is looked at, and copies names and values; the second one has the session share the values themselves,
    // which are given back to the caller, to be kept as long as it lives.
    unsafe {
        let status =
            (ort::api().AddExternalInitializers)(options, names.as_ptr(), all.as_ptr(), all.len());
        ort::Error::result_from_status(status)?;
        for (name, value) in names.iter().zip(&all) {
            let status = (ort::api().AddInitializer)(options, *name, *value);
            ort::Error::result_from_status(status)?;
        }
    }
    Ok(values)
}

/// Values of the runtime.
#[derive(Debug, Default)]
struct Values(Vec<*mut ort::sys::OrtValue>);

// SAFETY: a value is a counted pointer to a tensor that nobody writes to; the library lets any thread read and release
// it, and this is its only owner here.
#[expect(unsafe_code, reason = "raw pointers belong to one thread unless somebody says otherwise")]
unsafe impl Send for Values {}

impl Drop for Values {
    #[expect(unsafe_code, reason = "a C function of the library")]
    fn drop(&mut self) {
        for value in &self.0 {
            // SAFETY: each value was made by the library and is let go of once.
            unsafe { (ort::api().ReleaseValue)(*value) };
        }
    }
}

/// The runtime's word for ONNX's code of an element type; `None` where bytes alone do not make a tensor of it.
fn element(of: ElementType) -> Option<Element> {
    Some(match of.0 {
        1 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        2 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        3 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        4 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        5 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        6 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        7 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        9 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        10 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        11 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        12 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        13 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        17 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        18 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ,
        19 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
        20 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ,
        21 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4,
        22 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
        _ => return None,
    })
}
