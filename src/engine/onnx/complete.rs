//! Declarations of a file that engines do not tell: that a tensor has no shape, and that dimensions have names.
//!
//! To an engine, no shape is the shape of a scalar.

use std::collections::BTreeSet;

use crate::model::{Rows, Signature, TensorSpec};

use super::{Declared, Dim, Summary, ValueType};

impl Summary {
    /// The signature that an engine told, with what else the file declares; as it is where the file was not read.
    pub fn complete(&self, mut signature: Signature) -> Signature {
        let inputs = signature.inputs.iter_mut().chain(&mut signature.optional);
        inputs.for_each(|spec| without_shape(spec, &self.inputs));
        signature.outputs.iter_mut().for_each(|spec| without_shape(spec, &self.outputs));
        signature.rows = self.rows(&signature);
        signature
    }

    /// Relation of the first dimensions to each other: those of one name are one size.
    fn rows(&self, signature: &Signature) -> Rows {
        let first = |spec: &TensorSpec, all: &[Declared]| match dims(&spec.name, all)?.first()? {
            Dim::Named(name) => Some(name.clone()),
            Dim::Fixed(_) | Dim::Open => None,
        };
        let inputs = signature.inputs.iter().map(|spec| first(spec, &self.inputs));
        let outputs = signature.outputs.iter().map(|spec| first(spec, &self.outputs));
        let names: Vec<_> = inputs.chain(outputs).collect();
        match names.iter().flatten().collect::<BTreeSet<_>>().len() {
            1 if names.iter().all(Option::is_some) => Rows::Same,
            0 | 1 => Rows::Unsaid,
            _ => Rows::Apart,
        }
    }
}

/// Opens the rank of what an engine takes for a scalar and the file does not declare to be one.
fn without_shape(spec: &mut TensorSpec, all: &[Declared]) {
    let is_declared = all.iter().any(|declared| declared.name == spec.name);
    let is_scalar = dims(&spec.name, all).is_some_and(<[Dim]>::is_empty);
    if is_declared && !is_scalar && spec.dims.as_deref() == Some(&[]) {
        spec.dims = None;
    }
}

/// The dimensions that a file declares for a tensor.
fn dims<'a>(name: &str, all: &'a [Declared]) -> Option<&'a [Dim]> {
    let declared = all.iter().find(|declared| declared.name == name)?;
    match &declared.value_type {
        ValueType::Tensor { dims, .. } => dims.as_deref(),
        _ => None,
    }
}
