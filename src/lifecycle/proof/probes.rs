//! Probes: runs with sizes that no sample has, in the process that proves a version, which may end by them.
//!
//! Engines end the process on legal sizes, most often on a dimension of 0. So after a version has shown what it must,
//! it is run with each open dimension, each name of dimensions, the first dimensions and all open dimensions at 0, 3, 1
//! and 2. What the runs give does not matter, only that the process goes on: before each run the child says which it
//! is, so that its parent knows what ended it. Always true:
//! - A probe never refuses a version: what it finds becomes [`Guards`].
//! - The number of probes, their elements and their time are bounded; what was not run with a dimension of 0 is not
//!   allowed.
//!
//! Not here: the runs that a version must pass (`trial`), the processes (`super`).

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        Session,
        onnx::{Dim, Summary, ValueType},
    },
    model::{Empty, Guards, Input, Place, Signature, SizeGuard},
    tensor::{Data, Shape, Strings, Tensor},
};

use super::samples::one;

/// Sizes beside those of the sample, worst first.
const SIZES: [i64; 4] = [0, ODD, 1, 2];
/// A size that is neither a power of two nor a multiple of anything usual.
const ODD: i64 = 3;

/// Runs with other sizes, of one version.
pub(super) const PROBES_MAX: usize = 128;

/// Elements of one input of a probe.
const ELEMENTS_MAX: usize = 1 << 22;

/// A run with other sizes than the sample's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probe {
    /// The dimensions that are changed, each with the sample's size.
    places: Vec<(Place, i64)>,
    /// Their size in this run.
    size: i64,
    /// The other open dimensions, where they are changed to an odd size meanwhile.
    rest: Vec<Place>,
    /// Every dimension that is 0 in it.
    empty: Vec<Place>,
}

/// The outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The process was running it when it ended, or did not come back.
    Fatal,
    /// The engine gave outputs.
    Well,
    /// The engine gave an error, or it was passed over.
    Error,
}

/// The probes of a version, worst first.
pub(super) fn plan(summary: &Summary, signature: &Signature, sample: &[Input]) -> Vec<Probe> {
    let mut probes = Vec::new();
    let empty = Place::empty(sample);
    if !empty.is_empty() {
        // A dimension that is declared to be 0.
        probes.push(Probe { places: Vec::new(), size: 0, rest: Vec::new(), empty });
    }
    let (common, single) = groups(summary, signature, sample);
    let open: Group = single.iter().flatten().copied().collect();
    let mut seen = BTreeSet::new();
    for (groups, sizes) in [(common, SIZES), (single, SIZES)] {
        for size in sizes {
            for group in &groups {
                let changed = group.iter().copied().filter(|(_, usual)| *usual != size);
                let places: Vec<_> = changed.collect();
                if places.is_empty() || !seen.insert((size, places.clone())) {
                    continue;
                }
                let mut empty = Place::empty(sample);
                empty.retain(|place| places.iter().all(|(changed, _)| changed != place));
                empty.extend(places.iter().filter(|_| size == 0).map(|(place, _)| *place));
                empty.sort_unstable();
                let is_rest = |(place, usual): &&(Place, i64)| {
                    *usual != ODD && places.iter().all(|(changed, _)| changed != place)
                };
                let rest: Vec<_> = open.iter().filter(is_rest).map(|(place, _)| *place).collect();
                let probe = Probe { places, size, rest: Vec::new(), empty };
                // What an engine makes of nothing depends on how many nothings there are.
                let other =
                    (size == 0 && !rest.is_empty()).then(|| Probe { rest, ..probe.clone() });
                probes.extend([probe].into_iter().chain(other));
            }
        }
    }
    probes.truncate(PROBES_MAX);
    probes
}

type Group = Vec<(Place, i64)>;

/// Open dimensions that are likely to change together, and each alone.
fn groups(summary: &Summary, signature: &Signature, sample: &[Input]) -> (Vec<Group>, Vec<Group>) {
    let (mut first, mut all) = (Group::new(), Group::new());
    let mut symbols: BTreeMap<&str, Group> = BTreeMap::new();
    for (index, (spec, input)) in signature.inputs.iter().zip(sample).enumerate() {
        let declared = summary.inputs.iter().find(|declared| declared.name == spec.name);
        let names = declared.and_then(|declared| match &declared.value_type {
            ValueType::Tensor { dims, .. } => dims.as_deref(),
            _ => None,
        });
        let shape = input.tensor.shape();
        for (axis, usual) in shape.iter().enumerate() {
            // Where the rank is open, so is every dimension.
            if spec.dims.as_ref().is_some_and(|dims| dims.get(axis).is_some_and(|dim| *dim >= 0)) {
                continue;
            }
            let place = (Place::of(index, axis, shape.len()), *usual);
            all.push(place);
            if axis == 0 {
                first.push(place);
            }
            if let Some(Dim::Named(name)) = names.and_then(|names| names.get(axis)) {
                symbols.entry(name).or_default().push(place);
            }
        }
    }
    let single = all.iter().map(|place| vec![*place]).collect();
    let common = [first, all].into_iter().chain(symbols.into_values()).collect();
    (common, single)
}

impl Probe {
    /// True if it empties or changes all that a fatal one did.
    pub(super) fn is_as_bad_as(&self, fatal: &Self) -> bool {
        self.size == fatal.size && fatal.places.iter().all(|place| self.places.contains(place))
    }

    /// True if a dimension is 0 in it.
    pub(super) fn is_empty(&self) -> bool {
        !self.empty.is_empty()
    }

    /// Runs it; true if the engine gave outputs.
    pub(super) fn run(&self, session: &mut dyn Session, sample: &[Input]) -> bool {
        let Some(inputs) = self.inputs(sample) else { return false };
        let wanted: Vec<usize> = (0..session.signature().outputs.len()).collect();
        let run = AssertUnwindSafe(|| session.run(inputs.into(), &wanted).is_ok());
        // An engine that panics does in the serving process what it does here: it fails the run.
        catch_unwind(run).unwrap_or(false)
    }

    /// The sample's inputs with other sizes; `None` where they are too large to make up.
    fn inputs(&self, sample: &[Input]) -> Option<Vec<Input>> {
        let mut inputs = Vec::with_capacity(sample.len());
        for (index, input) in sample.iter().enumerate() {
            let mut dims = input.tensor.shape().to_vec();
            for (place, _) in self.places.iter().filter(|(place, _)| place.input as usize == index)
            {
                *dims.get_mut(place.axis as usize)? = self.size;
            }
            for place in self.rest.iter().filter(|place| place.input as usize == index) {
                *dims.get_mut(place.axis as usize)? = ODD;
            }
            let tensor = repeated(&input.tensor, &Shape::new(&dims)?)?;
            inputs.push(Input { name: input.name.clone(), tensor });
        }
        Some(inputs)
    }
}

/// A tensor of another shape that repeats the elements of this one, or ones where it has none.
fn repeated(tensor: &Tensor, shape: &Shape) -> Option<Tensor> {
    if tensor.shape() == shape {
        return Some(tensor.clone());
    }
    let count = shape.element_count().filter(|count| *count <= ELEMENTS_MAX)?;
    if let Some(strings) = tensor.strings() {
        let mut made = Strings::with_capacity(count, 0);
        let all: Vec<_> = strings.iter().collect();
        (0..count)
            .for_each(|index| made.push(all.get(index % all.len().max(1)).unwrap_or(&&b"1"[..])));
        return Tensor::new(shape.clone(), Data::Bytes(made)).ok();
    }
    let size = tensor.datatype().size()?;
    let mut element = Vec::new();
    tensor.write_raw(&mut element);
    if element.is_empty() {
        element = one(tensor.datatype());
    }
    let raw: Vec<u8> = element.iter().copied().cycle().take(count * size).collect();
    Tensor::from_raw(tensor.datatype(), shape.clone(), raw.into()).ok()
}

/// Makes guards of the outcomes of probes.
pub(super) fn guards(tried: &[(&Probe, Fate)]) -> Guards {
    let empty = |wanted: Fate| -> BTreeSet<Vec<Place>> {
        let probes = tried.iter().filter(|(probe, fate)| probe.is_empty() && *fate == wanted);
        probes.map(|(probe, _)| probe.empty.clone()).collect()
    };
    let fatal_empty = empty(Fate::Fatal);
    let well = empty(Fate::Well).difference(&fatal_empty).cloned().collect();
    let fatal = tried
        .iter()
        .filter(|(probe, fate)| probe.size > 0 && !probe.places.is_empty() && *fate == Fate::Fatal);
    let sizes = fatal.map(|(probe, _)| SizeGuard {
        places: probe.places.clone(),
        size: probe.size,
        and_above: probe.size == ODD,
    });
    Guards::new(Empty::Only { well, fatal: fatal_empty.into_iter().collect() }, sizes.collect())
}
