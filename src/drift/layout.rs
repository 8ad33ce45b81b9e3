//! Which features a version has, and where in its tensors they are.

use std::collections::BTreeMap;

use crate::{
    model::{Signature, TensorSpec},
    tensor::DataType,
};

use super::{
    binner,
    profile::{Bins, Derivation, Feature, Profile, shown},
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
        let bound = profile.map(|profile| {
            let binding = Binding::new(signature, profile, hints)?;
            let layout = Self::arrange(signature, hints, &binding);
            layout.check_room(signature, hints).map(|()| layout)
        });
        match bound {
            Some(Ok(layout)) => (layout, None),
            Some(Err(wrong)) => (Self::arrange(signature, hints, &Binding::default()), Some(wrong)),
            None => (Self::arrange(signature, hints, &Binding::default()), None),
        }
    }

    /// Checks that each input's columns in the profile are watched one by one.
    fn check_room(&self, signature: &Signature, hints: Hints<'_>) -> Result<(), String> {
        let mut features = self.features.iter();
        for (spec, reading) in signature.inputs.iter().zip(&self.inputs) {
            let mut own = features.by_ref().take(reading.features());
            if own.any(|known| known.reference.is_none()) {
                let name = &spec.name;
                return Err(format!(
                    "`{name}` has more values a row than are watched one by one (`drift.features_max` = {}); make the \
                     profile with `--wide {name}=FIRST..LAST`, or raise the limit",
                    hints.features_max
                ));
            }
            own.for_each(drop);
        }
        Ok(())
    }

    /// Names of each input's features, in the order of the inputs.
    pub(super) fn names(&self) -> Vec<Vec<&str>> {
        let mut names = self.features.iter().map(|known| known.name.as_str());
        self.inputs
            .iter()
            .map(|reading| names.by_ref().take(reading.features()).collect())
            .collect()
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
        let wide = binding.wide.get(spec.name.as_str()).copied();
        match (width, is_text) {
            (Some(width @ 1..), true) if width <= room => {
                self.columns(&base, width, source, spec, binding);
                Reading::Texts { first, width }
            }
            (_, true) | (Some(0), _) => Reading::Skipped,
            (Some(width), false) if width <= room && wide.is_none() => {
                self.columns(&base, width, source, spec, binding);
                Reading::Numbers { first, width }
            }
            _ => {
                for measure in Summary::NAMES {
                    let bound = format!("{}.{measure}", wide.unwrap_or(&base));
                    self.add(
                        (format!("{base}.{measure}"), bound),
                        derived,
                        DataType::Fp32,
                        binding,
                    );
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
pub fn width(spec: &TensorSpec, is_batched: bool) -> Option<usize> {
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
    /// By input that is summed up: the name in the profile.
    wide: BTreeMap<&'p str, &'p str>,
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
        binding.derive(signature, profile, &mut left, hints)?;
        binding.sum_up(signature, &mut left, hints);
        let mut unnamed = Vec::new();
        for spec in &signature.inputs {
            let name = spec.name.as_str();
            if binding.derived.contains_key(name) || binding.wide.contains_key(name) {
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
        left: &mut Vec<&'p Feature>,
        hints: Hints<'_>,
    ) -> Result<(), String> {
        for derivation in &profile.derived {
            let name = derivation.input();
            let of_text = matches!(derivation, Derivation::Text { .. });
            let Some((spec, _)) = input_of(signature, name, of_text) else {
                return Err(format!(
                    "the profile derives features from `{}`, and the model has no such input; leave the columns out \
                     with `--exclude`, or name the input as the model does",
                    shown(name)
                ));
            };
            let (wanted, what) = match derivation {
                Derivation::Text { .. } => (1, "texts"),
                Derivation::Clusters { centres, .. } => {
                    (centres.first().map_or(0, Vec::len), "numbers")
                }
            };
            // Rows of an open shape are looked at as they come.
            if let Some(width) = width(spec, hints.is_batched).filter(|width| *width != wanted) {
                return Err(format!(
                    "`{}` has {wanted} {what} a row in the profile, and input `{}` takes {width}; make it from the columns \
                     that the model takes",
                    shown(name),
                    spec.name
                ));
            }
            if self.derived.insert(&spec.name, (name, derivation)).is_some() {
                return Err(format!(
                    "the profile derives features from input `{}` twice",
                    spec.name
                ));
            }
            let prefix = format!("{name}.");
            left.retain(|feature| !feature.name.starts_with(&prefix));
        }
        Ok(())
    }

    /// Finds the inputs that the profile sums up, of any width.
    fn sum_up(&mut self, signature: &'p Signature, left: &mut Vec<&'p Feature>, hints: Hints<'_>) {
        let measures = |name: &str| Summary::NAMES.map(|measure| format!("{name}.{measure}"));
        let is_whole = |name: &&str| {
            measures(name).iter().all(|measure| {
                let feature = self.features.get(measure.as_str());
                feature.is_some_and(|feature| matches!(feature.bins, Bins::Numeric { .. }))
            })
        };
        let names: Vec<&'p str> = left
            .iter()
            .filter_map(|feature| feature.name.strip_suffix(".mean"))
            .filter(is_whole)
            .collect();
        for name in names {
            let Some((spec, is_named)) = input_of(signature, name, false) else { continue };
            let width = width(spec, hints.is_batched);
            // Columns may have such names by themselves.
            let is_sure =
                if is_named { width != Some(1) } else { width != Some(Summary::NAMES.len()) };
            let own = spec.name.as_str();
            if is_sure && !self.derived.contains_key(own) && !self.wide.contains_key(own) {
                self.wide.insert(own, name);
                let measures = measures(name);
                left.retain(|feature| !measures.contains(&feature.name));
            }
        }
    }

    /// Names of an input's columns, where the profile has them all by a name of their own.
    fn named(&self, spec: &TensorSpec, hints: Hints<'p>) -> Vec<&'p str> {
        let own = |name: &str| self.features.get_key_value(name).map(|(name, _)| *name);
        let width = width(spec, hints.is_batched).unwrap_or(usize::MAX);
        let indexed = (0..width).map(|column| own(&format!("{}[{column}]", spec.name)));
        let described = || hints.names.iter().map(|name| own(name)).collect::<Option<Vec<_>>>();
        match width {
            1 => own(&spec.name).into_iter().collect(),
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
            return Err(mismatch(unnamed, wanted, left, hints));
        }
        let mut names = left.iter().map(|feature| feature.name.as_str());
        for (spec, width) in unnamed.iter().zip(widths) {
            let own = names.by_ref().take(width.unwrap_or(0)).collect();
            self.columns.insert(&spec.name, own);
        }
        Ok(())
    }

    /// Checks that texts are compared with categories, and numbers not with texts.
    fn check_types(&self, signature: &Signature) -> Result<(), String> {
        for spec in &signature.inputs {
            let is_text = spec.datatype == DataType::Bytes;
            for name in self.columns.get(spec.name.as_str()).into_iter().flatten() {
                match &self.features[name].bins {
                    Bins::Numeric { .. } if is_text => {
                        return Err(format!(
                            "feature `{0}` is numeric in the profile, and input `{1}` takes text; make it with \
                             `--categorical {0}`",
                            shown(name),
                            spec.name
                        ));
                    }
                    Bins::Categorical { categories, .. } if !is_text => {
                        let is_word = |category: &&String| category.parse::<f64>().is_err();
                        if let Some(word) = categories.iter().find(is_word) {
                            return Err(format!(
                                "feature `{}` has texts in the profile, such as `{}`, and input `{}` takes {}; \
                                 make it from the columns that the model takes, encoded as the model gets them",
                                shown(name),
                                shown(word),
                                spec.name,
                                spec.datatype
                            ));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The input of this name, with true, or the only one of its kind: texts or numbers.
fn input_of<'s>(
    signature: &'s Signature,
    name: &str,
    of_text: bool,
) -> Option<(&'s TensorSpec, bool)> {
    let mut fitting =
        signature.inputs.iter().filter(|spec| (spec.datatype == DataType::Bytes) == of_text);
    let named = fitting.clone().find(|spec| spec.name == name);
    let only = fitting.next().filter(|_| fitting.next().is_none());
    named.map(|spec| (spec, true)).or(only.map(|spec| (spec, false)))
}

/// The first three of some names.
fn some(names: &[&str]) -> String {
    let shown = names.iter().take(3).map(|name| format!("`{}`", shown(name))).collect::<Vec<_>>();
    let more = if names.len() > 3 { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// How what is left of a profile does not fit what is left of the inputs.
fn mismatch(
    unnamed: &[&TensorSpec],
    wanted: Option<usize>,
    left: &[&Feature],
    hints: Hints<'_>,
) -> String {
    let inputs: Vec<_> = unnamed.iter().map(|spec| spec.name.as_str()).collect();
    let features: Vec<_> = left.iter().map(|feature| feature.name.as_str()).collect();
    match (unnamed.is_empty(), wanted) {
        (true, _) => format!(
            "{} features of the profile are of no input: {}; leave them out with `--exclude`",
            left.len(),
            some(&features)
        ),
        (false, Some(wanted)) => format!(
            "the model takes {wanted} values a row in {}, and the profile has {} features for them{}; {}",
            some(&inputs),
            left.len(),
            if left.is_empty() { String::new() } else { format!(": {}", some(&features)) },
            advice(unnamed, wanted, left, hints)
        ),
        (false, None) => format!(
            "the shape of {} is open, so that columns cannot be told; make the profile with `--wide {}`",
            some(&inputs),
            inputs.first().copied().unwrap_or("NAME")
        ),
    }
}

/// Columns that would fit, or the way to them.
fn advice(unnamed: &[&TensorSpec], wanted: usize, left: &[&Feature], hints: Hints<'_>) -> String {
    const ALIKE: f64 = 0.85;
    let likeness = |a: &str, b: &str| strsim::jaro_winkler(&a.to_lowercase(), &b.to_lowercase());
    let inputs = unnamed.iter().map(|spec| spec.name.as_str());
    let alike = inputs.chain(hints.names.iter().map(String::as_str)).find_map(|name| {
        let others = left.iter().map(|feature| (likeness(name, &feature.name), feature));
        let nearest = others.max_by(|a, b| a.0.total_cmp(&b.0))?;
        (nearest.0 >= ALIKE && nearest.1.name != name).then_some((name, nearest.1.name.as_str()))
    });
    if let Some((name, column)) = alike {
        let column = shown(column);
        return format!("is `{column}` the model's `{name}`? then name the data's column so");
    }
    let is_number = |feature: &&&Feature| matches!(feature.bins, Bins::Numeric { .. });
    let takes_numbers = unnamed.iter().all(|spec| spec.datatype != DataType::Bytes);
    if left.len() > wanted {
        let others: Vec<_> = left.iter().filter(|feature| !is_number(feature)).collect();
        if takes_numbers && left.len() - others.len() == wanted {
            let others: Vec<_> = others.iter().map(|feature| feature.name.as_str()).collect();
            return format!("the numbers would fit: leave out {} with `--exclude`", some(&others));
        }
        return "leave out what the model does not get with `--label` or `--exclude`".to_owned();
    }
    "make it from the columns that the model takes, in their order".to_owned()
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

    fn measured(name: &str) -> Profile {
        let names = Summary::NAMES.map(|measure| format!("{name}.{measure}"));
        profile(&names.each_ref().map(String::as_str))
    }

    #[test]
    fn inputs_of_any_width_are_summed_up_where_the_profile_does_so() {
        for (dims, name) in [(vec![-1, 3], "x"), (vec![-1, 64], "pixels"), (vec![-1, -1], "x")] {
            let signature = signature(vec![spec("x", DataType::Fp32, &dims)]);
            let (layout, wrong) = Layout::new(&signature, Some(&measured(name)), HINTS);
            assert_eq!(wrong, None, "{dims:?}");
            let expected = ["x.mean+", "x.sd+", "x.min+", "x.max+", "x.zeros+"];
            assert_eq!(names(&layout)[..5], expected, "{dims:?}");
            assert!(matches!(layout.inputs[0], Reading::Summary { first: 0 }), "{dims:?}");
        }
        // Five columns may be named so.
        let signature = signature(vec![spec("x", DataType::Fp32, &[-1, 5])]);
        let (layout, _) = Layout::new(&signature, Some(&measured("cell")), HINTS);
        assert!(matches!(layout.inputs[0], Reading::Numbers { first: 0, width: 5 }));
    }

    #[test]
    fn mismatches_say_what_would_fit() {
        let three = signature(vec![spec("x", DataType::Fp32, &[-1, 3])]);
        let check = |profile: &Profile, hints, words: &str| {
            let (layout, wrong) = Layout::new(&three, Some(profile), hints);
            let wrong = wrong.unwrap_or_else(|| panic!("it fits; {words}"));
            assert!(wrong.contains(words), "{wrong}");
            assert!(layout.lacks_inputs());
        };
        let mut mixed = profile(&["a", "b", "c", "kind"]);
        let words = vec!["red".to_owned(), "blue".to_owned()];
        mixed.features[3].bins = Bins::Categorical { categories: words, others: Vec::new() };
        check(&mixed, HINTS, "the numbers would fit: leave out `kind` with `--exclude`");
        mixed.features.remove(0);
        check(&mixed, HINTS, "has texts in the profile, such as `red`, and input `x` takes FP32");
        let names = ["age".to_owned(), "Income".to_owned(), "zip".to_owned()];
        let hints = Hints { names: &names, ..HINTS };
        check(
            &profile(&["age", "income", "zip", "id"]),
            hints,
            "is `income` the model's `Income`?",
        );
        check(&profile(&["a", "b", "c", "d"]), HINTS, "`--label` or `--exclude`");
        let narrow = Hints { features_max: 2, ..HINTS };
        check(&profile(&["a", "b", "c"]), narrow, "`drift.features_max` = 2");
        let mut cells = profile(&["x.cluster", "x.norm"]);
        let centres = vec![vec![0.0; 4]];
        cells.derived = vec![Derivation::Clusters { input: "x".to_owned(), centres }];
        check(&cells, HINTS, "`x` has 4 numbers a row in the profile, and input `x` takes 3");
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
