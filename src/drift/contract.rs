//! A model's contract: which values its inputs may have, and what happens to a request that breaks it.
//!
//! The operator writes it (`[models.NAME.contract]`); rules are checked on every row before the model runs. Always
//! true:
//! - A rule that counts costs no client anything; one that flags adds a parameter to the answer; one that refuses
//!   answers
//!   400 and names the rule. In a dry run all rules only count.
//! - A model without a contract pays nothing.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};

use crate::{model::Input, monitor::WorkerId, tensor::Tensor};

use super::{
    binner::{Keys, Real, number_key},
    layout::{Layout, Reading},
    profile::category_key,
    reader::{Items, Visit, visit},
    segments::{RowSegments, SegmentId},
};

/// Demands of an operator on a model's inputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Contract {
    /// Who is asked about it.
    pub owner: String,
    /// Action where a rule has none of its own.
    pub action: Action,
    /// True if nothing is flagged or refused, only counted.
    pub is_dry_run: bool,
    /// By feature.
    pub features: BTreeMap<String, Rule>,
}

/// Bounds of one feature's values.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rule {
    /// The smallest number.
    pub min: Option<f64>,
    /// The largest number.
    pub max: Option<f64>,
    /// The only values.
    pub categories: Option<Vec<String>>,
    /// The largest share of missing values, from 0 to 1; 0 makes a single one a breach.
    pub missing_max: Option<f64>,
    /// Action; `None`: that of the contract.
    pub action: Option<Action>,
}

/// Treatment of a request that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is counted.
    #[default]
    Count,
    /// It is answered, and the answer says so.
    Flag,
    /// It is refused.
    Refuse,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Count, Self::Flag, Self::Refuse];

    /// The word for it in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Flag => "flag",
            Self::Refuse => "refuse",
        }
    }
}

/// Ways to break a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    /// Below the smallest.
    Min,
    /// Above the largest.
    Max,
    /// None of the categories.
    Category,
    /// Missing, where no value, or no such share, may be.
    Missing,
    /// Infinite.
    NonFinite,
}

impl Breach {
    const ALL: [Self; 5] = [Self::Min, Self::Max, Self::Category, Self::Missing, Self::NonFinite];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Min => "min",
            Self::Max => "max",
            Self::Category => "categories",
            Self::Missing => "missing_max",
            Self::NonFinite => "finite",
        }
    }
}

/// A contract made ready for a version's inputs.
#[derive(Debug)]
pub struct Terms {
    owner: String,
    is_dry_run: bool,
    /// By input: its width, and the terms of its columns.
    inputs: Box<[(usize, Box<[Term]>)]>,
    /// Terms of all inputs.
    len: usize,
    shards: Box<[Shard]>,
}

/// The rule of one column.
#[derive(Debug)]
struct Term {
    column: usize,
    feature: String,
    rule: Rule,
    keys: Option<Keys>,
    action: Action,
    /// Its place among all terms.
    place: usize,
}

/// One worker's counts: for each term its values, then its breaches by kind; of all rows, then by segment.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    counts: Box<[AtomicU64]>,
    terms: usize,
}

/// Counts of a term.
const COUNTS: usize = 1 + Breach::ALL.len();

/// Rules that a request broke.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Broken {
    /// Text for the answer, if it is flagged.
    pub flag: Option<Box<str>>,
    /// Why it is refused, if it is.
    pub refusal: Option<Box<str>>,
}

/// Counts of one term so far.
#[derive(Debug, Clone, PartialEq)]
pub struct TermCounts {
    /// The feature.
    pub feature: String,
    /// Treatment of a request that breaks it.
    pub action: Action,
    /// Values checked.
    pub values: u64,
    /// The share of missing values that it allows.
    pub missing_max: Option<f64>,
    /// Values that broke it, by kind.
    pub breaches: Vec<(Breach, u64)>,
}

/// Breaches that are named in an answer; the others are counted.
const NAMED_MAX: usize = 8;

impl Terms {
    /// The terms of a contract for a layout's inputs, and the rules that are about no input. `segments` are counted
    /// apart at most.
    pub(super) fn new(
        contract: &Contract,
        layout: &Layout,
        (workers, segments): (usize, usize),
    ) -> (Self, Vec<String>) {
        let mut left: Vec<&str> = contract.features.keys().map(String::as_str).collect();
        let mut place = 0;
        let mut inputs = Vec::new();
        for reading in &layout.inputs {
            let (Reading::Numbers { first, width } | Reading::Texts { first, width }) = reading
            else {
                inputs.push((0, Box::default()));
                continue;
            };
            let mut terms = Vec::new();
            for column in 0..*width {
                let feature = &layout.features[first + column].name;
                let Some(rule) = contract.features.get(feature) else { continue };
                left.retain(|name| name != feature);
                let keys = rule.categories.as_ref().map(|categories| {
                    let key = |text: &String| (category_key(text.as_bytes()), 1);
                    Keys::new(categories.iter().map(key), 0)
                });
                let action = rule.action.unwrap_or(contract.action);
                let (feature, rule) = (feature.clone(), rule.clone());
                terms.push(Term { column, feature, rule, keys, action, place });
                place += 1;
            }
            inputs.push((*width, terms.into_boxed_slice()));
        }
        let cells = place * COUNTS * (1 + segments);
        let shard =
            || Shard { counts: (0..cells).map(|_| AtomicU64::new(0)).collect(), terms: place };
        let known = layout.features[..layout.inputs_end()].iter().take(8);
        let known = known.map(|known| format!("`{}`", known.name)).collect::<Vec<_>>().join(", ");
        let unknown = left.into_iter().map(|name| {
            format!(
                "the contract names `{name}`, which is no feature of the inputs; they have {known}"
            )
        });
        let unknown = unknown.collect();
        let terms = Self {
            owner: contract.owner.clone(),
            is_dry_run: contract.is_dry_run,
            inputs: inputs.into_boxed_slice(),
            len: place,
            shards: (0..workers).map(|_| shard()).collect(),
        };
        (terms, unknown)
    }

    /// Checks all rows of a request, and counts.
    pub fn check(
        &self,
        worker: WorkerId,
        inputs: &[Input],
        rows: usize,
        split: &RowSegments,
    ) -> Broken {
        let mut found = Found::default();
        // A shadow runs copies of what was checked.
        let Some(shard) = self.shards.get(worker.0) else { return Broken::default() };
        for (input, (width, terms)) in inputs.iter().zip(&self.inputs) {
            if !terms.is_empty() {
                check_input(&input.tensor, (*width, rows), terms, (shard, split), &mut found);
            }
        }
        if found.is_empty() || self.is_dry_run {
            Broken::default()
        } else {
            found.said(&self.owner)
        }
    }

    /// True if nothing is flagged or refused.
    pub fn is_dry_run(&self) -> bool {
        self.is_dry_run
    }

    /// Who is asked about it.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Counts of all terms: of all rows, or of those of a segment.
    pub fn counts(&self, segment: SegmentId) -> Vec<TermCounts> {
        let terms = self.inputs.iter().flat_map(|(_, terms)| terms);
        let of = |shard: &Shard, at: usize| shard.counts.get(at).map_or(0, |sum| sum.load(Relaxed));
        let sum = |at: usize| self.shards.iter().map(|shard| of(shard, at)).sum();
        let counts = |term: &Term| {
            let first = (usize::from(segment.0) * self.len + term.place) * COUNTS;
            let breaches = Breach::ALL.iter().enumerate();
            TermCounts {
                feature: term.feature.clone(),
                action: term.action,
                values: sum(first),
                missing_max: term.rule.missing_max,
                breaches: breaches.map(|(at, breach)| (*breach, sum(first + 1 + at))).collect(),
            }
        };
        terms.map(counts).collect()
    }
}

fn check_input(
    tensor: &Tensor,
    (width, rows): (usize, usize),
    terms: &[Term],
    (shard, split): (&Shard, &RowSegments),
    found: &mut Found,
) {
    if let Some(strings) = tensor.strings() {
        if strings.len() != rows * width {
            return;
        }
        for term in terms {
            shard.seen(term, rows, split);
            for row in 0..rows {
                let text = strings.get(row * width + term.column).unwrap_or_default();
                if let Some(breach) = term.of_text(text) {
                    shard.count(term, breach, split.of(row));
                    found.add(term, breach, row, &String::from_utf8_lossy(text));
                }
            }
        }
        return;
    }
    visit(tensor, &mut Checking { width, rows, terms, shard, split, found });
}

impl Shard {
    /// Adds to a term's count of all rows, or of those of a segment.
    fn add(&self, (term, segment): (&Term, SegmentId), offset: usize, n: u64) {
        let at = (usize::from(segment.0) * self.terms + term.place) * COUNTS + offset;
        // There is no place for what is no segment of its own.
        if let Some(count) = self.counts.get(at) {
            count.store(count.load(Relaxed).wrapping_add(n), Relaxed);
        }
    }

    fn seen(&self, term: &Term, rows: usize, split: &RowSegments) {
        self.add((term, SegmentId::NONE), 0, rows as u64);
        for (segment, rows) in split.runs(rows) {
            self.add((term, segment), 0, rows.len() as u64);
        }
    }

    fn count(&self, term: &Term, breach: Breach, segment: SegmentId) {
        self.add((term, SegmentId::NONE), 1 + breach as usize, 1);
        if segment != SegmentId::NONE {
            self.add((term, segment), 1 + breach as usize, 1);
        }
    }
}

impl Term {
    fn of_number(&self, value: f64) -> Option<Breach> {
        if value.is_nan() {
            return self.rule.missing_max.map(|_| Breach::Missing);
        }
        let is_bounded = self.rule.min.is_some() || self.rule.max.is_some();
        if value.is_infinite() && is_bounded {
            return Some(Breach::NonFinite);
        }
        if self.rule.min.is_some_and(|min| value < min) {
            return Some(Breach::Min);
        }
        if self.rule.max.is_some_and(|max| value > max) {
            return Some(Breach::Max);
        }
        let is_known = |keys: &Keys| keys.find(number_key(value)) == 1;
        (!self.keys.as_ref().is_none_or(is_known)).then_some(Breach::Category)
    }

    fn of_text(&self, text: &[u8]) -> Option<Breach> {
        if text.is_empty() {
            return self.rule.missing_max.map(|_| Breach::Missing);
        }
        let is_known = |keys: &Keys| keys.find(category_key(text)) == 1;
        (!self.keys.as_ref().is_none_or(is_known)).then_some(Breach::Category)
    }

    /// Returns the treatment of this request: a share of missing values is nothing that a single one breaks.
    fn acts(&self, breach: Breach) -> Action {
        let is_share = breach == Breach::Missing && self.rule.missing_max > Some(0.0);
        if is_share { Action::Count } else { self.action }
    }

    /// A breach in words.
    fn said(&self, breach: Breach, row: usize, value: &str) -> String {
        let value: String = value.chars().take(32).flat_map(char::escape_debug).collect();
        let feature = &self.feature;
        let number = |number: Option<f64>| number.unwrap_or_default();
        match breach {
            Breach::Min => {
                format!("row {row}: `{feature}` is {value}, below min = {}", number(self.rule.min))
            }
            Breach::Max => {
                format!("row {row}: `{feature}` is {value}, above max = {}", number(self.rule.max))
            }
            Breach::Category => {
                let known = self.rule.categories.as_deref().unwrap_or(&[]);
                let mut shown = known.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
                if known.len() > 8 {
                    shown.push_str(", ...");
                }
                format!("row {row}: `{feature}` is `{value}`, not in categories = [{shown}]")
            }
            Breach::Missing => format!("row {row}: `{feature}` is missing, and missing_max = 0"),
            Breach::NonFinite => format!("row {row}: `{feature}` is {value}, not a finite number"),
        }
    }
}

/// Breaches of one request.
#[derive(Debug, Default)]
struct Found {
    flagged: Vec<String>,
    refused: Vec<String>,
    more: [usize; 2],
}

impl Found {
    fn is_empty(&self) -> bool {
        self.flagged.is_empty() && self.refused.is_empty()
    }

    fn add(&mut self, term: &Term, breach: Breach, row: usize, value: &str) {
        let (named, more) = match term.acts(breach) {
            Action::Count => return,
            Action::Flag => (&mut self.flagged, &mut self.more[0]),
            Action::Refuse => (&mut self.refused, &mut self.more[1]),
        };
        if named.len() < NAMED_MAX {
            named.push(term.said(breach, row, value));
        } else {
            *more += 1;
        }
    }

    fn said(self, owner: &str) -> Broken {
        let text = |named: Vec<String>, more: usize| {
            let mut text = named.join("; ");
            if more > 0 {
                let _ = write!(text, "; and {more} more");
            }
            (!text.is_empty()).then_some(text)
        };
        let refusal = text(self.refused, self.more[1]).map(|mut text| {
            if !owner.is_empty() {
                let _ = write!(text, "; ask {owner} about the model's contract");
            }
            format!("the inputs break the model's contract: {text}").into_boxed_str()
        });
        Broken { flag: text(self.flagged, self.more[0]).map(String::into_boxed_str), refusal }
    }
}

struct Checking<'a> {
    width: usize,
    rows: usize,
    terms: &'a [Term],
    shard: &'a Shard,
    split: &'a RowSegments,
    found: &'a mut Found,
}

impl Visit for Checking<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        if items.len() != self.rows * self.width {
            return;
        }
        for term in self.terms {
            self.shard.seen(term, self.rows, self.split);
            for row in 0..self.rows {
                let value = real(items.get(row * self.width + term.column));
                // A limit is meant in the tensor's own precision.
                let wide = value.wide();
                let Some(breach) = term.of_number(wide) else { continue };
                let limit = match breach {
                    Breach::Min => term.rule.min,
                    Breach::Max => term.rule.max,
                    _ => None,
                };
                let is_rounded =
                    limit.is_some_and(|limit| T::round(limit).wide().to_bits() == wide.to_bits());
                if !is_rounded {
                    self.shard.count(term, breach, self.split.of(row));
                    self.found.add(term, breach, row, &wide.to_string());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        model::{Rows, Signature, TensorSpec},
        tensor::{Data, DataType, Shape, Strings},
    };

    use super::{super::layout::Hints, *};

    fn terms(action: Action, is_dry_run: bool) -> (Terms, Vec<String>) {
        let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: Some(dims.to_vec()),
            view: None,
        };
        let inputs =
            vec![spec("x", DataType::Fp32, &[-1, 2]), spec("country", DataType::Bytes, &[-1, 1])];
        let signature = Signature { inputs, rows: Rows::Same, ..Signature::default() };
        let hints = Hints { names: &[], is_batched: true, features_max: 8 };
        let (layout, _) = Layout::new(&signature, None, hints);
        let range =
            Rule { min: Some(0.1), max: Some(0.7), missing_max: Some(0.0), ..Rule::default() };
        let known = Some(vec!["de".to_owned(), "fr".to_owned()]);
        let country = Rule { categories: known, action: Some(Action::Flag), ..Rule::default() };
        let features = [("x[1]", range), ("country", country), ("age", Rule::default())];
        let features = features.into_iter().map(|(name, rule)| (name.to_owned(), rule)).collect();
        let contract = Contract { owner: "the risk team".to_owned(), action, is_dry_run, features };
        Terms::new(&contract, &layout, (1, 0))
    }

    fn inputs(x: &[f32], countries: &[&str]) -> Vec<Input> {
        let rows = i64::try_from(countries.len()).unwrap();
        let shape = |dims: &[i64]| Shape::new(dims).unwrap();
        let countries: Strings = countries.iter().collect();
        let x = Tensor::new(shape(&[rows, 2]), Data::Fp32(x.to_vec())).unwrap();
        let country = Tensor::new(shape(&[rows, 1]), Data::Bytes(countries)).unwrap();
        [("x", x), ("country", country)]
            .map(|(name, tensor)| Input { name: name.to_owned(), tensor })
            .to_vec()
    }

    #[test]
    fn rules_are_named_in_the_refusal_and_limits_are_meant_as_the_tensor_rounds_them() {
        let (terms, unknown) = terms(Action::Refuse, false);
        assert!(unknown[0].contains("`age`"), "{unknown:?}");
        let fine = inputs(&[9.0, 0.1, 9.0, 0.7], &["de", "fr"]);
        assert_eq!(terms.check(WorkerId(0), &fine, 2, &RowSegments::default()), Broken::default());
        let bad = inputs(&[9.0, 0.75, 9.0, f32::NAN], &["de", "xx"]);
        let broken = terms.check(WorkerId(0), &bad, 2, &RowSegments::default());
        let refusal = broken.refusal.unwrap();
        assert!(refusal.contains("row 0: `x[1]` is 0.75, above max = 0.7"), "{refusal}");
        assert!(refusal.contains("row 1: `x[1]` is missing"), "{refusal}");
        assert!(refusal.ends_with("ask the risk team about the model's contract"), "{refusal}");
        let flag = broken.flag.unwrap();
        assert_eq!(&*flag, "row 1: `country` is `xx`, not in categories = [de, fr]");
        let counts = terms.counts(SegmentId::NONE);
        assert_eq!(counts[0].values, 4);
        assert_eq!(counts[0].breaches[1], (Breach::Max, 1));
        assert_eq!(counts[0].breaches[3], (Breach::Missing, 1));
        assert_eq!(counts[1].breaches[2], (Breach::Category, 1));
    }

    #[test]
    fn a_dry_run_counts_and_says_nothing() {
        let (terms, _) = terms(Action::Refuse, true);
        let bad = inputs(&[9.0, 7.0], &["xx"]);
        assert_eq!(terms.check(WorkerId(0), &bad, 1, &RowSegments::default()), Broken::default());
        assert_eq!(terms.counts(SegmentId::NONE)[0].breaches[1], (Breach::Max, 1));
    }
}
