//! Which features a version has, and where in its tensors they are.

use std::collections::BTreeMap;

use crate::{
    model::{Signature, TensorSpec},
    tensor::DataType,
};

use super::{
    binner,
    profile::{Bins, Derivation, Feature, Profile},
    summary::Summary,
};

/// A feature of a version.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Its name.
    pub(super) name: String,
    /// Where it comes from.
    pub(super) source: Source,
    /// True if its values are texts.
    pub(super) is_text: bool,
    /// True if its values are whole numbers or truth values.
    pub(super) is_whole: bool,
    /// Reference, in the precision of its tensor.
    pub(super) reference: Option<Feature>,
}

/// Origin of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A column of an input.
    Input,
    /// A column of an output, or worked out from one.
    Output,
    /// Worked out from a whole input.
    Derived,
}

impl Source {
    /// The word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Derived => "derived",
        }
    }
}

/// Values that are read from one tensor.
#[derive(Debug, Clone)]
pub(super) enum Reading {
    /// Nothing.
    Skipped,
    /// A number in each column; the features of the columns begin here.
    Numbers { first: usize, width: usize },
    /// A text in each column; the features of the columns begin here.
    Texts { first: usize, width: usize },
    /// One text a row: its length and its share of known words.
    Words { first: usize, words: Vec<u64> },
    /// Mean, spread, extremes and share of zeros of a row.
    Summary { first: usize },
    /// The nearest centre to a row, and the row's length.
    Clusters { first: usize, centres: Vec<Vec<f32>> },
}

impl Reading {
    /// The number of its features.
    pub(super) fn features(&self) -> usize {
        match self {
            Self::Skipped => 0,
            Self::Numbers { width, .. } | Self::Texts { width, .. } => *width,
            Self::Words { .. } | Self::Clusters { .. } => 2,
            Self::Summary { .. } => Summary::NAMES.len(),
        }
    }

    /// The index of its first feature.
    fn first(&mut self) -> Option<&mut usize> {
        match self {
            Self::Skipped => None,
            Self::Numbers { first, .. }
            | Self::Texts { first, .. }
            | Self::Words { first, .. }
            | Self::Summary { first }
            | Self::Clusters { first, .. } => Some(first),
        }
    }

    /// Moves its features: from behind `before` others to behind `now` others.
    fn shift(&mut self, now: usize, before: usize) {
        if let Some(first) = self.first() {
            *first = *first + now - before;
        }
    }
}

/// The features of a version.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    pub(super) features: Vec<Known>,
    /// By the index of the input among those that a request must bring.
    pub(super) inputs: Vec<Reading>,
    /// By the index of the output.
    pub(super) outputs: Vec<Reading>,
}

/// Knowledge of a model's features beside its signature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hints<'a> {
    /// Columns of a wide input, where a description names them.
    pub(super) names: &'a [String],
    /// True if the first dimension counts rows.
    pub(super) is_batched: bool,
    /// Values per row up to which each is a feature.
    pub(super) features_max: usize,
}

impl Layout {
    /// The features of a signature, as a profile names them, with its references.
    ///
    /// Returns as well how the profile does not fit; nothing of one that does not fit is used.
    pub(super) fn new(
        signature: &Signature,
        profile: Option<&Profile>,
        hints: Hints<'_>,
    ) -> (Self, Option<String>) {
        match profile.map(|profile| Binding::new(signature, profile, hints)) {
            None => (Self::arrange(signature, hints, &Binding::default()), None),
            Some(Ok(binding)) => (Self::arrange(signature, hints, &binding), None),
            Some(Err(wrong)) => (Self::arrange(signature, hints, &Binding::default()), Some(wrong)),
        }
    }

    fn arrange(signature: &Signature, hints: Hints<'_>, binding: &Binding<'_>) -> Self {
        let mut layout = Self::default();
        for spec in &signature.inputs {
            let reading = layout.read(spec, Source::Input, hints, binding);
            layout.inputs.push(reading);
        }
        for spec in &signature.outputs {
            let reading = layout.read(spec, Source::Output, hints, &binding.of_outputs());
            layout.outputs.push(reading);
        }
        layout
    }

    /// Adds the features of one tensor.
    fn read(
        &mut self,
        spec: &TensorSpec,
        source: Source,
        hints: Hints<'_>,
        binding: &Binding<'_>,
    ) -> Reading {
        let first = self.features.len();
        let prefix = if source == Source::Output { "output:" } else { "" };
        let base = format!("{prefix}{}", spec.name);
        let derived = if source == Source::Output { source } else { Source::Derived };
        let is_text = spec.datatype == DataType::Bytes;
        let width = width(spec, hints.is_batched);
        match (binding.derivation(&spec.name), is_text) {
            (Some((name, text @ Derivation::Text { .. })), true) if width == Some(1) => {
                for measure in ["length", "known"] {
                    let names = (format!("{base}.{measure}"), format!("{name}.{measure}"));
                    self.add(names, derived, spec.datatype, binding);
                }
                return Reading::Words { first, words: text.word_keys() };
            }
            (Some((name, Derivation::Clusters { centres, .. })), false) => {
                for measure in ["cluster", "norm"] {
                    let names = (format!("{base}.{measure}"), format!("{name}.{measure}"));
                    self.add(names, derived, spec.datatype, binding);
                }
                return Reading::Clusters { first, centres: centres.clone() };
            }
            _ => {}
        }
        let room = hints.features_max.saturating_sub(first);
        match (width, is_text) {
            (Some(width @ 1..), true) if width <= room => {
                self.columns(&base, width, source, spec, binding);
                Reading::Texts { first, width }
            }
            (_, true) | (Some(0), _) => Reading::Skipped,
            (Some(width), false) if width <= room => {
                self.columns(&base, width, source, spec, binding);
                Reading::Numbers { first, width }
            }
            _ => {
                for measure in Summary::NAMES {
                    let name = format!("{base}.{measure}");
                    self.add((name.clone(), name), derived, DataType::Fp32, binding);
                }
                Reading::Summary { first }
            }
        }
    }

    fn columns(
        &mut self,
        base: &str,
        width: usize,
        source: Source,
        spec: &TensorSpec,
        binding: &Binding<'_>,
    ) {
        for column in 0..width {
            let name = if width == 1 { base.to_owned() } else { format!("{base}[{column}]") };
            let bound = binding.column(&spec.name, column).unwrap_or(&name).to_owned();
            let shown = if source == Source::Input { bound.clone() } else { name };
            self.add((shown, bound), source, spec.datatype, binding);
        }
    }

    /// Adds a feature: its name, and its name in the profile.
    fn add(
        &mut self,
        (name, bound): (String, String),
        source: Source,
        datatype: DataType,
        binding: &Binding<'_>,
    ) {
        let is_single = !matches!(
            datatype,
            DataType::Fp64
                | DataType::Int32
                | DataType::Int64
                | DataType::Uint32
                | DataType::Uint64
                | DataType::Bytes
        );
        let is_whole = !matches!(
            datatype,
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 | DataType::Bytes
        );
        let reference = binding.features.get(bound.as_str());
        let reference = reference
            .map(|feature| if is_single { binner::rounded(feature) } else { (*feature).clone() });
        let is_text = datatype == DataType::Bytes && source != Source::Derived;
        self.features.push(Known { name, source, is_text, is_whole, reference });
    }

    /// True if a feature of an input has no reference.
    pub(super) fn lacks_inputs(&self) -> bool {
        self.features[..self.inputs_end()].iter().any(|known| known.reference.is_none())
    }

    /// The number of features of inputs; those of outputs follow them.
    pub(super) fn inputs_end(&self) -> usize {
        self.inputs.iter().map(Reading::features).sum()
    }

    /// Takes the references of another layout's inputs, if it has the same features or measures the same texts; returns
    /// true if it did.
    pub(super) fn adopt_inputs(&mut self, before: &Self) -> bool {
        let (own, end) = (self.inputs_end(), before.inputs_end());
        let is_alike = |(own, other): (&Reading, &Reading)| match (own, other) {
            (Reading::Texts { width: 1, .. }, Reading::Words { .. }) => true,
            _ => own.features() == other.features(),
        };
        let fits = self.inputs.len() == before.inputs.len()
            && self.inputs.iter().zip(&before.inputs).all(is_alike)
            && before.features[..end].iter().any(|known| known.reference.is_some());
        if !fits {
            return false;
        }
        let names_agree = own != end
            || self.features[..own].iter().zip(&before.features).all(|(own, other)| {
                own.is_text == other.is_text
                    && own.reference.as_ref().is_none_or(|_| own.name == other.name)
            });
        if !names_agree {
            return false;
        }
        let outputs = self.features.split_off(own);
        self.features = before.features[..end].to_vec();
        self.features.extend(outputs);
        self.inputs.clone_from(&before.inputs);
        for reading in &mut self.outputs {
            reading.shift(end, own);
        }
        true
    }

    /// A copy without references, for rows that are compared with others of their own kind.
    pub(super) fn blank(&self) -> Self {
        let mut layout = self.clone();
        layout.features.iter_mut().for_each(|known| known.reference = None);
        layout
    }

    /// A copy with the references that were learned of features that have none.
    pub(super) fn recalling(&self, learned: &Profile) -> Self {
        let mut found = BTreeMap::new();
        for (index, known) in self.features.iter().enumerate() {
            if known.reference.is_some() {
                continue;
            }
            if let Some(feature) = learned.feature(&known.name) {
                found.insert(index, Learned::Feature(feature.clone()));
            } else if let Some(words) = learned.words(&known.name).filter(|_| known.is_text)
                && let [Some(length), Some(share)] = ["length", "known"]
                    .map(|measure| learned.feature(&format!("{}.{measure}", known.name)))
            {
                let measures = Box::new([length.clone(), share.clone()]);
                found.insert(index, Learned::Words(measures, words));
            }
        }
        self.with(found)
    }

    /// The number of centres, for a feature that names the nearest one.
    pub(super) fn centres(&self, feature: usize) -> Option<usize> {
        let mut readings = self.inputs.iter().chain(&self.outputs);
        readings.find_map(|reading| match reading {
            Reading::Clusters { first, centres } if *first == feature => Some(centres.len()),
            _ => None,
        })
    }

    /// A copy in which these features have references; a column of texts may become one of measured text.
    pub(super) fn with(&self, learned: BTreeMap<usize, Learned>) -> Self {
        let mut layout = self.clone();
        let mut words = Vec::new();
        for (index, learned) in learned {
            match learned {
                Learned::Feature(feature) => layout.features[index].reference = Some(feature),
                Learned::Words(measures, known) => words.push((index, measures, known)),
            }
        }
        // From the last one on, so that the places of those before stay as they are.
        for (index, measures, known) in words.into_iter().rev() {
            layout.measure_words(index, *measures, &known);
        }
        layout
    }

    /// Puts the two measures of a text in place of the text itself.
    fn measure_words(&mut self, index: usize, measures: [Feature; 2], words: &[u64]) {
        let text = self.features.remove(index);
        let source = if text.source == Source::Output { text.source } else { Source::Derived };
        for (offset, feature) in measures.into_iter().enumerate() {
            let known = Known {
                name: format!("{}.{}", text.name, ["length", "known"][offset]),
                source,
                is_text: false,
                is_whole: false,
                reference: Some(feature),
            };
            self.features.insert(index + offset, known);
        }
        for reading in self.inputs.iter_mut().chain(&mut self.outputs) {
            match reading {
                Reading::Texts { first, width: 1 } if *first == index => {
                    *reading = Reading::Words { first: *first, words: words.to_vec() };
                }
                _ => {
                    if let Some(first) = reading.first().filter(|first| **first > index) {
                        *first += 1;
                    }
                }
            }
        }
    }
}

/// A reference that was learned.
#[derive(Debug, Clone)]
pub(super) enum Learned {
    /// Of the feature itself.
    Feature(Feature),
    /// Of the two measures of a text, with the words that are known.
    Words(Box<[Feature; 2]>, Vec<u64>),
}

/// Values of one row; `None` where that differs from request to request.
pub(super) fn width(spec: &TensorSpec, is_batched: bool) -> Option<usize> {
    let dims = spec.dims.as_deref()?;
    let own = if is_batched { dims.get(1..).unwrap_or(&[]) } else { dims };
    own.iter().try_fold(1_usize, |width, dim| width.checked_mul(usize::try_from(*dim).ok()?))
}

/// Which of a profile's features is which column.
#[derive(Debug, Default)]
struct Binding<'p> {
    features: BTreeMap<&'p str, &'p Feature>,
    /// Names of an input's columns.
    columns: BTreeMap<&'p str, Vec<&'p str>>,
    /// By input: the name in the profile, and the derivation.
    derived: BTreeMap<&'p str, (&'p str, &'p Derivation)>,
}

impl<'p> Binding<'p> {
    fn column(&self, input: &str, column: usize) -> Option<&str> {
        self.columns.get(input)?.get(column).copied()
    }

    fn derivation(&self, input: &str) -> Option<(&'p str, &'p Derivation)> {
        self.derived.get(input).copied()
    }

    /// The same without what names inputs: an output may have an input's name.
    fn of_outputs(&self) -> Self {
        Self { features: self.features.clone(), ..Self::default() }
    }

    /// Finds each input's columns in the profile: by the input's name where it has one value a row, else by
    /// `<input>[i]`, by described names, or, for the one input that is left, in the profile's order.
    fn new(
        signature: &'p Signature,
        profile: &'p Profile,
        hints: Hints<'p>,
    ) -> Result<Self, String> {
        let features: BTreeMap<_, _> =
            profile.features.iter().map(|feature| (feature.name.as_str(), feature)).collect();
        let mut binding = Self { features, ..Self::default() };
        let mut left: Vec<&Feature> = profile.features.iter().collect();
        left.retain(|feature| !feature.name.starts_with("output:"));
        binding.derive(signature, profile, &mut left)?;
        let mut unnamed = Vec::new();
        for spec in &signature.inputs {
            if binding.derived.contains_key(spec.name.as_str()) {
                continue;
            }
            let names = binding.named(spec, hints);
            left.retain(|feature| !names.contains(&feature.name.as_str()));
            if names.is_empty() {
                unnamed.push(spec);
            }
            binding.columns.insert(&spec.name, names);
        }
        binding.in_order(&unnamed, &left, hints)?;
        binding.check_types(signature)?;
        Ok(binding)
    }

    fn derive(
        &mut self,
        signature: &'p Signature,
        profile: &'p Profile,
        left: &mut Vec<&Feature>,
    ) -> Result<(), String> {
        for derivation in &profile.derived {
            let name = derivation.input();
            let of_text = matches!(derivation, Derivation::Text { .. });
            let fits = |spec: &&TensorSpec| (spec.datatype == DataType::Bytes) == of_text;
            let named = signature.inputs.iter().find(|spec| spec.name == name).filter(fits);
            let mut others = signature.inputs.iter().filter(fits);
            let only = others.next().filter(|_| others.next().is_none());
            let Some(spec) = named.or(only) else {
                return Err(format!(
                    "the profile derives features from `{name}`, and the model has no such input"
                ));
            };
            self.derived.insert(&spec.name, (name, derivation));
            let prefix = format!("{name}.");
            left.retain(|feature| !feature.name.starts_with(&prefix));
        }
        Ok(())
    }

    /// Names of an input's columns, where the profile has them all by a name of their own.
    fn named(&self, spec: &TensorSpec, hints: Hints<'p>) -> Vec<&'p str> {
        let own = |name: &str| self.features.get_key_value(name).map(|(name, _)| *name);
        let width = width(spec, hints.is_batched).unwrap_or(usize::MAX);
        let indexed = (0..width).map(|column| own(&format!("{}[{column}]", spec.name)));
        let described = || hints.names.iter().map(|name| own(name)).collect::<Option<Vec<_>>>();
        match width {
            1 => own(&spec.name).into_iter().collect(),
            _ if width > hints.features_max => Summary::NAMES
                .iter()
                .map(|measure| own(&format!("{}.{measure}", spec.name)))
                .collect::<Option<_>>()
                .unwrap_or_default(),
            _ => indexed
                .collect::<Option<Vec<_>>>()
                .or_else(|| described().filter(|names| names.len() == width))
                .unwrap_or_default(),
        }
    }

    /// Assigns the features that are left to the inputs that are left, in order, if they fit exactly.
    fn in_order(
        &mut self,
        unnamed: &[&'p TensorSpec],
        left: &[&'p Feature],
        hints: Hints<'_>,
    ) -> Result<(), String> {
        let widths: Vec<_> = unnamed.iter().map(|spec| width(spec, hints.is_batched)).collect();
        let wanted = widths.iter().try_fold(0, |sum: usize, width| Some(sum + (*width)?));
        if wanted != Some(left.len()) || left.is_empty() != unnamed.is_empty() {
            return Err(mismatch(unnamed, wanted, left));
        }
        let mut names = left.iter().map(|feature| feature.name.as_str());
        for (spec, width) in unnamed.iter().zip(widths) {
            let own = names.by_ref().take(width.unwrap_or(0)).collect();
            self.columns.insert(&spec.name, own);
        }
        Ok(())
    }

    /// Checks that texts are compared with categories.
    fn check_types(&self, signature: &Signature) -> Result<(), String> {
        for spec in signature.inputs.iter().filter(|spec| spec.datatype == DataType::Bytes) {
            for name in self.columns.get(spec.name.as_str()).into_iter().flatten() {
                if matches!(self.features[name].bins, Bins::Numeric { .. }) {
                    return Err(format!(
                        "feature `{name}` is numeric in the profile, and input `{}` takes text",
                        spec.name
                    ));
                }
            }
        }
        Ok(())
    }
}

/// How what is left of a profile does not fit what is left of the inputs.
fn mismatch(unnamed: &[&TensorSpec], wanted: Option<usize>, left: &[&Feature]) -> String {
    let some = |names: &[&str]| {
        let shown = names.iter().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>();
        let more = if names.len() > 3 { ", ..." } else { "" };
        format!("{}{more}", shown.join(", "))
    };
    let inputs = some(&unnamed.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>());
    let features = some(&left.iter().map(|feature| feature.name.as_str()).collect::<Vec<_>>());
    match (unnamed.is_empty(), wanted) {
        (true, _) => format!(
            "{} features of the profile are of no input: {features}; leave them out with `--exclude`",
            left.len()
        ),
        (false, Some(wanted)) => format!(
            "the model takes {wanted} values a row in {inputs}, and the profile has {} features for them{}; make it from \
             the columns that the model takes, in their order",
            left.len(),
            if left.is_empty() { String::new() } else { format!(": {features}") }
        ),
        (false, None) => format!(
            "the shape of {inputs} is open, so that columns cannot be told; make the profile with `--wide`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Rows;

    use super::*;

    fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), datatype, dims: Some(dims.to_vec()), view: None }
    }

    fn signature(inputs: Vec<TensorSpec>) -> Signature {
        let outputs = vec![
            spec("label", DataType::Int64, &[-1]),
            spec("probabilities", DataType::Fp32, &[-1, 2]),
        ];
        Signature { inputs, outputs, optional: Vec::new(), rows: Rows::Same }
    }

    fn profile(names: &[&str]) -> Profile {
        let feature = |name: &&str| Feature {
            name: (*name).to_owned(),
            bins: Bins::Numeric { edges: vec![0.0, 1.0] },
            counts: vec![0, 5, 0, 0, 0],
            moments: None,
            sample: Vec::new(),
        };
        Profile {
            schema: 1,
            rows: 5,
            digest: String::new(),
            source: String::new(),
            derived: Vec::new(),
            features: names.iter().map(feature).collect(),
        }
    }

    const HINTS: Hints<'_> = Hints { names: &[], is_batched: true, features_max: 8 };

    fn names(layout: &Layout) -> Vec<String> {
        let name = |known: &Known| {
            format!("{}{}", known.name, if known.reference.is_some() { "+" } else { "" })
        };
        layout.features.iter().map(name).collect()
    }

    #[test]
    fn columns_are_named_by_the_profile_in_its_order() {
        let signature = signature(vec![spec("x", DataType::Fp32, &[-1, 2])]);
        let (layout, wrong) = Layout::new(&signature, Some(&profile(&["age", "sex"])), HINTS);
        assert_eq!(wrong, None);
        let outputs = ["output:label", "output:probabilities[0]", "output:probabilities[1]"];
        assert_eq!(names(&layout), [&["age+", "sex+"], &outputs[..]].concat());
        let (layout, _) = Layout::new(&signature, None, HINTS);
        assert_eq!(names(&layout), [&["x[0]", "x[1]"], &outputs[..]].concat());
    }

    #[test]
    fn inputs_are_found_by_name_whatever_the_order() {
        let inputs = vec![
            spec("a", DataType::Fp32, &[-1]),
            spec("b", DataType::Int64, &[-1, 1]),
            spec("c", DataType::Fp32, &[-1, 2]),
        ];
        let signature = signature(inputs);
        let (layout, wrong) = Layout::new(&signature, Some(&profile(&["u", "b", "a", "v"])), HINTS);
        assert_eq!(wrong, None);
        assert_eq!(names(&layout)[..4], ["a+", "b+", "u+", "v+"]);
    }

    #[test]
    fn a_profile_that_does_not_fit_says_how_and_is_not_used() {
        let signature = signature(vec![spec("x", DataType::Fp32, &[-1, 3])]);
        let (layout, wrong) = Layout::new(&signature, Some(&profile(&["age", "sex"])), HINTS);
        let wrong = wrong.unwrap();
        assert!(wrong.contains("takes 3 values a row in `x`"), "{wrong}");
        assert!(wrong.contains("2 features"), "{wrong}");
        assert_eq!(names(&layout)[..3], ["x[0]", "x[1]", "x[2]"]);
        let (_, wrong) = Layout::new(&signature, Some(&profile(&["a", "b", "c", "d"])), HINTS);
        assert!(wrong.unwrap().contains("4 features"));
    }

    #[test]
    fn wide_and_open_inputs_are_summed_up() {
        let inputs =
            vec![spec("image", DataType::Fp32, &[-1, 3, 8]), spec("t", DataType::Bytes, &[-1, 2])];
        let (layout, _) = Layout::new(&signature(inputs), None, HINTS);
        let expected = ["image.mean", "image.sd", "image.min", "image.max", "image.zeros"];
        assert_eq!(names(&layout)[..5], expected);
        assert_eq!(names(&layout)[5..7], ["t[0]", "t[1]"]);
        assert!(matches!(layout.inputs[0], Reading::Summary { first: 0 }));
    }

    #[test]
    fn a_text_that_turns_out_to_be_prose_becomes_two_measures() {
        let inputs = vec![spec("text", DataType::Bytes, &[-1, 1])];
        let (layout, _) = Layout::new(&signature(inputs), None, HINTS);
        let measures = profile(&["text.length", "text.known"]).features;
        let measures: [Feature; 2] = measures.try_into().unwrap();
        let learned = BTreeMap::from([(0, Learned::Words(Box::new(measures), vec![7]))]);
        let layout = layout.with(learned);
        assert_eq!(names(&layout)[..3], ["text.length+", "text.known+", "output:label"]);
        assert!(matches!(&layout.inputs[0], Reading::Words { first: 0, words } if words == &[7]));
        assert!(matches!(layout.outputs[1], Reading::Numbers { first: 3, width: 2 }));
    }
}
