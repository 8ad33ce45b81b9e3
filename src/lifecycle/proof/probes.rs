//! Probes: runs with sizes that no sample has, in the process that proves a version, which may end by them.
//!
//! Engines end the process on legal sizes, most often on a dimension of 0. So after a version has shown what it must,
//! it is run with each open dimension, each name of dimensions, the first dimensions and all open dimensions at 0, 3, 1
//! and 2. What the runs give does not matter, only that the process goes on: before each run the child says which it
//! is, so that its parent knows what ended it. Where no run with certain dimensions at 0 went well, usual sizes beside
//! them are tried, and other ranks where none is declared. Always true:
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

/// Usual sizes of what a model leaves open, most of them powers of two; tried beside a dimension of 0 where no other
/// run with it went well.
const USUAL: [i64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 224, 256, 512, 1024];

/// Ranks that are tried of inputs without a declared one, beside the sample's.
const RANKS: [u32; 4] = [2, 3, 4, 1];

/// Elements of one input that is made up of usual sizes: what is slow then says nothing.
const USUAL_ELEMENTS_MAX: usize = 1 << 16;

/// A run with other sizes than the sample's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Probe {
    /// The inputs without a declared rank, each with a rank other than the sample's; all their sizes are 1.
    ranks: Vec<(u32, u32)>,
    /// The dimensions that are changed, each with the sample's size.
    places: Vec<(Place, i64)>,
    /// Their size in this run.
    size: i64,
    /// The other open dimensions, where they are changed to one size meanwhile.
    rest: Vec<Place>,
    /// That size.
    rest_size: i64,
    /// Every dimension that is 0 in it.
    empty: Vec<Place>,
    /// True if it is run only where no other one with these dimensions at 0 went well.
    is_spare: bool,
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
    let base = Base::of(sample);
    let mut probes = Vec::new();
    if !base.empty.is_empty() {
        // A dimension that is declared to be 0.
        probes.push(base.probe(Vec::new(), 0));
    }
    let (common, single) = base.groups(summary, signature);
    let open: Group = single.iter().flatten().copied().collect();
    let mut seen = BTreeSet::new();
    for (groups, sizes) in [(&common, SIZES), (&single, SIZES)] {
        for size in sizes {
            for group in groups {
                let changed = group.iter().copied().filter(|(_, usual)| *usual != size);
                let places: Vec<_> = changed.collect();
                if places.is_empty() || !seen.insert((size, places.clone())) {
                    continue;
                }
                let probe = base.probe(places, size);
                // What an engine makes of nothing depends on how many nothings there are.
                let other = if size == 0 { probe.beside(&open, ODD) } else { None };
                probes.extend([probe].into_iter().chain(other));
            }
        }
    }
    probes.extend(spares(&base, &common, &single));
    for base in base.of_other_ranks(signature) {
        let (common, single) = base.groups(summary, signature);
        let open: Group = single.iter().flatten().copied().collect();
        for group in common.iter().chain(&single).filter(|group| !group.is_empty()) {
            let probe = base.probe(group.clone(), 0);
            let other = probe.beside(&open, ODD);
            probes.extend([probe].into_iter().chain(other));
        }
        probes.extend(spares(&base, &common, &single));
    }
    let mut seen = BTreeSet::new();
    probes.retain(|probe| seen.insert(probe.clone()));
    probes.truncate(PROBES_MAX);
    probes
}

/// Probes that find out with which sizes beside it a dimension of 0 runs well.
fn spares(base: &Base, common: &[Group], single: &[Group]) -> Vec<Probe> {
    let open: Group = single.iter().flatten().copied().collect();
    let groups = common.iter().chain(single).filter(|group| !group.is_empty());
    let of_group = |group: &Group| {
        let probe = base.probe(group.clone(), 0);
        let all = USUAL.map(|size| probe.beside(&open, size));
        all.into_iter().flatten().map(|probe| Probe { is_spare: true, ..probe }).collect::<Vec<_>>()
    };
    groups.flat_map(of_group).collect()
}

type Group = Vec<(Place, i64)>;

/// The shapes that probes begin with: the sample's, but for some inputs without a declared rank.
struct Base {
    shapes: Vec<Vec<i64>>,
    ranks: Vec<(u32, u32)>,
    /// The dimensions that are 0.
    empty: Vec<Place>,
}

impl Base {
    fn of(sample: &[Input]) -> Self {
        let shapes = sample.iter().map(|input| input.tensor.shape().to_vec()).collect();
        Self { shapes, ranks: Vec::new(), empty: Place::empty(sample) }
    }

    /// The same with other ranks, where some are not declared.
    fn of_other_ranks(&self, signature: &Signature) -> Vec<Self> {
        let is_open =
            |index: &usize| signature.inputs.get(*index).is_some_and(|s| s.dims.is_none());
        let open: Vec<usize> = (0..self.shapes.len()).filter(is_open).collect();
        let of = |rank: u32| {
            let mut shapes = self.shapes.clone();
            for index in &open {
                shapes[*index] = vec![1; rank as usize];
            }
            let mut empty = self.empty.clone();
            empty.retain(|place| !open.contains(&(place.input as usize)));
            let ranks = open.iter().filter_map(|index| Some((u32::try_from(*index).ok()?, rank)));
            (shapes != self.shapes).then(|| Self { shapes, ranks: ranks.collect(), empty })
        };
        RANKS.into_iter().filter_map(of).collect()
    }

    /// Open dimensions that are likely to change together, and each alone.
    fn groups(&self, summary: &Summary, signature: &Signature) -> (Vec<Group>, Vec<Group>) {
        let (mut first, mut all) = (Group::new(), Group::new());
        let mut symbols: BTreeMap<&str, Group> = BTreeMap::new();
        for (index, (spec, shape)) in signature.inputs.iter().zip(&self.shapes).enumerate() {
            let declared = summary.inputs.iter().find(|declared| declared.name == spec.name);
            let names = declared.and_then(|declared| match &declared.value_type {
                ValueType::Tensor { dims, .. } => dims.as_deref(),
                _ => None,
            });
            for (axis, usual) in shape.iter().enumerate() {
                // Where the rank is open, so is every dimension.
                if spec
                    .dims
                    .as_ref()
                    .is_some_and(|dims| dims.get(axis).is_some_and(|dim| *dim >= 0))
                {
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

    /// A run with this size in these dimensions.
    fn probe(&self, places: Group, size: i64) -> Probe {
        let mut empty = self.empty.clone();
        empty.retain(|place| places.iter().all(|(changed, _)| changed != place));
        empty.extend(places.iter().filter(|_| size == 0).map(|(place, _)| *place));
        empty.sort_unstable();
        let (ranks, rest) = (self.ranks.clone(), Vec::new());
        Probe { ranks, places, size, rest, rest_size: 0, empty, is_spare: false }
    }
}

impl Probe {
    /// The same with another size in the other open dimensions; `None` where all of them have it.
    fn beside(&self, open: &Group, size: i64) -> Option<Self> {
        let is_rest = |(place, usual): &&(Place, i64)| {
            *usual != size && self.places.iter().all(|(changed, _)| changed != place)
        };
        let rest: Vec<_> = open.iter().filter(is_rest).map(|(place, _)| *place).collect();
        (!rest.is_empty()).then(|| Self { rest, rest_size: size, ..self.clone() })
    }

    /// True if it need not be run once these dimensions went well at 0.
    pub(super) fn is_settled_by(&self, well: &BTreeSet<Vec<Place>>) -> bool {
        self.is_spare && well.contains(&self.empty)
    }

    /// Every dimension that is 0 in it.
    pub(super) fn empty(&self) -> &[Place] {
        &self.empty
    }

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
            let rank = self.ranks.iter().find(|(input, _)| *input as usize == index);
            let mut dims = match rank {
                Some((_, rank)) => vec![1; *rank as usize],
                None => input.tensor.shape().to_vec(),
            };
            for (place, _) in self.places.iter().filter(|(place, _)| place.input as usize == index)
            {
                *dims.get_mut(place.axis as usize)? = self.size;
            }
            for place in self.rest.iter().filter(|place| place.input as usize == index) {
                *dims.get_mut(place.axis as usize)? = self.rest_size;
            }
            let count_max = if self.is_spare { USUAL_ELEMENTS_MAX } else { ELEMENTS_MAX };
            let tensor = repeated(&input.tensor, &Shape::new(&dims)?, count_max)?;
            inputs.push(Input { name: input.name.clone(), tensor });
        }
        Some(inputs)
    }
}

/// A tensor of another shape that repeats the elements of this one, or ones where it has none.
fn repeated(tensor: &Tensor, shape: &Shape, count_max: usize) -> Option<Tensor> {
    if tensor.shape() == shape {
        return Some(tensor.clone());
    }
    let count = shape.element_count().filter(|count| *count <= count_max)?;
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
