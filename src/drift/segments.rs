//! Segments of a model's traffic: rows that are also counted apart, by the value of a header or of a feature.
//!
//! An operator declares where the value stands and how many values there may be ([`SegmentRule`]). Always true:
//! - A value that was declared is a segment of its own; of others the first that come are, as long as there is room.
//!   What finds none belongs to one more segment, `other`, so that clients cannot make segments without end.
//! - A row has one segment, or none where the value is missing. All rows are counted together as well.
//! - Once a value is known, finding its segment takes no lock and allocates nothing.
//!
//! Not here: what is counted (`recorder`, `contract`), what is told (`watch`).

use std::{
    ops::Range,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use arc_swap::ArcSwap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{model::Input, monitor::WorkerId, tensor::Tensor};

use super::{
    binner::{Real, number_key},
    layout::{Layout, Reading},
    profile::{category_key, written},
    reader::{Items, Visit, visit},
    recorder::{Block, Recorder},
};

/// Values that are segments of their own, at most.
pub const SEGMENTS_MAX: usize = 32;

/// Bytes of a value that is a segment of its own.
pub const SEGMENT_BYTES_MAX: usize = 64;

/// What a segment of all further values is called; no value may be declared by this name.
pub const OTHER: &str = "other";

/// The operator's word about a model's segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRule {
    /// Where the value stands.
    pub by: SegmentBy,
    /// Values that are known from the beginning.
    pub values: Vec<String>,
    /// Values that are segments of their own, at most: 1 to [`SEGMENTS_MAX`].
    pub limit: usize,
}

/// Place of a segment's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentBy {
    /// A header of the request: all its rows are of one segment.
    Header(String),
    /// A feature of the inputs: each row has its own.
    Feature(String),
}

/// How a configuration declares segments: by `header` or by `feature`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentDraft {
    /// The header whose value names a request's segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The feature of the inputs whose value names a row's segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// Values that are known beforehand, each of 1 to 64 bytes; only these get gauges of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Values that are segments of their own: 1 to 32. Default 8, or as many as `values` has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Headers that hold secrets.
const SECRET: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "set-cookie"];

/// Values that are segments of their own, unless a rule says how many.
const LIMIT: usize = 8;

impl SegmentDraft {
    /// The rule that it means.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(&self) -> Result<SegmentRule, Vec<String>> {
        let mut wrong = Vec::new();
        let by = match (&self.header, &self.feature) {
            (Some(header), None) => {
                let header = header.to_ascii_lowercase();
                if SECRET.contains(&&*header) {
                    wrong.push(format!("header = \"{header}\": must be one that holds no secret"));
                } else if http::HeaderName::from_bytes(header.as_bytes()).is_err() {
                    wrong.push(format!("header = {header:?}: must be the name of a header"));
                }
                SegmentBy::Header(header)
            }
            (None, Some(feature)) => SegmentBy::Feature(feature.clone()),
            _ => {
                wrong.push("must have either `header` or `feature`".to_owned());
                SegmentBy::Feature(String::new())
            }
        };
        let limit = self.limit.unwrap_or_else(|| LIMIT.max(self.values.len()));
        if !(1..=SEGMENTS_MAX).contains(&limit) || self.values.len() > limit {
            wrong.push(format!(
                "limit = {limit}: must be from 1 to {SEGMENTS_MAX}, and at least the number of `values`, {}",
                self.values.len()
            ));
        }
        for (index, value) in self.values.iter().enumerate() {
            if !is_fit(value) || self.values[..index].contains(value) {
                wrong.push(format!(
                    "values has {value:?}: must be 1 to {SEGMENT_BYTES_MAX} bytes of text, not \"{OTHER}\", and stand there once"
                ));
            }
        }
        let values = self.values.clone();
        if wrong.is_empty() { Ok(SegmentRule { by, values, limit }) } else { Err(wrong) }
    }
}

/// True for a value that can be a segment of its own.
fn is_fit(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= SEGMENT_BYTES_MAX
        && name != OTHER
        && !name.chars().any(char::is_control)
        && name.trim() == name
}

impl SegmentBy {
    /// The name of the header or feature.
    pub fn name(&self) -> &str {
        match self {
            Self::Header(name) | Self::Feature(name) => name,
        }
    }
}

/// A segment of a model, by number: it holds as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u8);

impl SegmentId {
    /// No segment.
    pub const NONE: Self = Self(0);
    /// All values that are no segments of their own.
    pub const OTHER: Self = Self(u8::MAX);

    pub(super) fn of(index: usize) -> Self {
        u8::try_from(index + 1).map_or(Self::OTHER, Self)
    }

    /// Its place among the values that are segments of their own.
    fn index(self) -> Option<usize> {
        (self != Self::OTHER).then(|| usize::from(self.0).checked_sub(1)).flatten()
    }
}

/// The segments of one model, which all its versions share.
#[derive(Debug)]
pub(super) struct Segments {
    rule: SegmentRule,
    known: ArcSwap<Known>,
    /// Held while a value is added.
    adding: Mutex<()>,
}

/// Values that are segments of their own.
#[derive(Debug, Clone, Default)]
struct Known {
    keys: Vec<u64>,
    names: Vec<String>,
}

impl Segments {
    /// The segments that were declared.
    pub(super) fn new(rule: SegmentRule) -> Self {
        let limit = rule.limit.clamp(1, SEGMENTS_MAX);
        let rule = SegmentRule { limit, ..rule };
        let names: Vec<String> = rule.values.iter().take(limit).cloned().collect();
        let keys = names.iter().map(|name| category_key(name.as_bytes())).collect();
        let known = ArcSwap::from_pointee(Known { keys, names });
        Self { rule, known, adding: Mutex::default() }
    }

    /// Values that are segments of their own by now, in the order of their numbers.
    pub(super) fn names(&self) -> Vec<String> {
        self.known.load().names.clone()
    }

    /// True if the operator declared this value.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.rule.values.iter().any(|value| value == name)
    }

    pub(super) fn rule(&self) -> &SegmentRule {
        &self.rule
    }

    /// The segment of a value; empty is missing.
    fn find(&self, value: &[u8]) -> SegmentId {
        if value.is_empty() {
            return SegmentId::NONE;
        }
        self.keyed(category_key(value), || std::str::from_utf8(value).ok().map(str::to_owned))
    }

    fn find_number(&self, value: f64) -> SegmentId {
        if value.is_nan() {
            return SegmentId::NONE;
        }
        self.keyed(number_key(value), || Some(written(value)))
    }

    fn keyed(&self, key: u64, name: impl FnOnce() -> Option<String>) -> SegmentId {
        let known = self.known.load();
        if let Some(index) = known.keys.iter().position(|known| *known == key) {
            return SegmentId::of(index);
        }
        if known.keys.len() >= self.rule.limit {
            return SegmentId::OTHER;
        }
        drop(known);
        name().filter(|name| is_fit(name)).map_or(SegmentId::OTHER, |name| self.add(key, name))
    }

    /// Adds a value, unless somebody else did meanwhile, or took the last room.
    #[cold]
    fn add(&self, key: u64, name: String) -> SegmentId {
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = Known::clone(&self.known.load());
        if let Some(index) = known.keys.iter().position(|known| *known == key) {
            return SegmentId::of(index);
        }
        if known.keys.len() >= self.rule.limit {
            return SegmentId::OTHER;
        }
        known.keys.push(key);
        known.names.push(name);
        let added = SegmentId::of(known.keys.len() - 1);
        self.known.store(Arc::new(known));
        added
    }
}

/// The segments of a request's rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowSegments {
    /// That of all rows, unless they have their own.
    all: SegmentId,
    /// By row.
    rows: Vec<SegmentId>,
}

impl RowSegments {
    /// The segment of a row.
    pub fn of(&self, row: usize) -> SegmentId {
        self.rows.get(row).copied().unwrap_or(self.all)
    }

    /// True if rows have segments of their own.
    pub fn is_apart(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Neighbouring rows of one segment, without those that have none.
    pub(super) fn runs(&self, rows: usize) -> impl Iterator<Item = (SegmentId, Range<usize>)> {
        let mut row = 0;
        std::iter::from_fn(move || {
            (row < rows).then(|| {
                let (start, segment) = (row, self.of(row));
                row = if self.rows.is_empty() { rows } else { row + 1 };
                while row < rows && self.of(row) == segment {
                    row += 1;
                }
                (segment, start..row)
            })
        })
        .filter(|(segment, _)| *segment != SegmentId::NONE)
    }
}

/// Tells the rows of a version's requests apart, and counts each where it belongs.
#[derive(Debug)]
pub struct Splitter {
    segments: Arc<Segments>,
    /// The column that holds the value; `None` where a header does, or where the version has no such column.
    column: Option<Place>,
    /// By the place of a value that is a segment of its own; made beside the path, soon after its first row.
    recorders: Box<[OnceLock<Arc<Recorder>>]>,
}

/// The column of an input.
#[derive(Debug, Clone, Copy)]
struct Place {
    input: usize,
    column: usize,
    width: usize,
}

impl Splitter {
    /// Tells rows of a version apart; also why that cannot be done.
    pub(super) fn new(segments: &Arc<Segments>, layout: &Layout) -> (Self, Option<String>) {
        let (column, note) = match &segments.rule.by {
            SegmentBy::Header(_) => (None, None),
            SegmentBy::Feature(name) => {
                let column = column_of(layout, name);
                (column, column.is_none().then(|| unknown(layout, name)))
            }
        };
        let recorders = (0..segments.rule.limit).map(|_| OnceLock::new()).collect();
        (Self { segments: Arc::clone(segments), column, recorders }, note)
    }

    /// The header that says which segment a request is of.
    pub fn header(&self) -> Option<&str> {
        match &self.segments.rule.by {
            SegmentBy::Header(name) => Some(name),
            SegmentBy::Feature(_) => None,
        }
    }

    /// The segment of a request by the header's value.
    pub fn by_header(&self, value: &[u8]) -> SegmentId {
        self.segments.find(value.trim_ascii())
    }

    /// A segment's name; `None` for no segment.
    pub fn name(&self, segment: SegmentId) -> Option<String> {
        match segment.index() {
            None => (segment == SegmentId::OTHER).then(|| OTHER.to_owned()),
            Some(index) => self.segments.known.load().names.get(index).cloned(),
        }
    }

    /// The segments of a request's rows; `all` is that of the header.
    pub fn split(&self, all: SegmentId, inputs: &[Input], rows: usize) -> RowSegments {
        let mut split = RowSegments { all, rows: Vec::new() };
        let Some(Place { input, column, width }) = self.column else { return split };
        let Some(input) = inputs.get(input) else { return split };
        let segments = &*self.segments;
        if let Some(strings) = input.tensor.strings() {
            if strings.len() == rows * width {
                let text = |row| strings.get(row * width + column).unwrap_or_default();
                split.fill(rows, |row| segments.find(text(row)));
            }
            return split;
        }
        visit(&input.tensor, &mut Finding { segments, column, width, rows, split: &mut split });
        split
    }

    pub(super) fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// The place of a segment's recorder, by its number.
    pub(super) fn place(&self, index: usize) -> Option<&OnceLock<Arc<Recorder>>> {
        self.recorders.get(index)
    }

    /// Counts inputs by segment; see [`Recorder::inputs`].
    pub fn inputs(&self, worker: WorkerId, inputs: &[Input], rows: usize, split: &RowSegments) {
        self.each(rows, split, |recorder, block| recorder.inputs_of(worker, inputs, block));
    }

    /// Counts outputs by segment; see [`Recorder::outputs`].
    pub fn outputs(
        &self,
        worker: WorkerId,
        (outputs, wanted): (&[Tensor], &[usize]),
        rows: usize,
        split: &RowSegments,
    ) {
        self.each(rows, split, |recorder, block| {
            recorder.outputs_of(worker, (outputs, wanted), block);
        });
    }

    fn each(&self, rows: usize, split: &RowSegments, count: impl Fn(&Recorder, &Block)) {
        for (segment, range) in split.runs(rows) {
            let recorder = segment.index().and_then(|index| self.recorders.get(index)?.get());
            if let Some(recorder) = recorder {
                count(recorder, &Block { rows, range });
            }
        }
    }
}

impl RowSegments {
    fn fill(&mut self, rows: usize, segment: impl Fn(usize) -> SegmentId) {
        if rows == 1 {
            self.all = segment(0);
        } else {
            self.rows = (0..rows).map(segment).collect();
        }
    }
}

struct Finding<'a> {
    segments: &'a Segments,
    column: usize,
    width: usize,
    rows: usize,
    split: &'a mut RowSegments,
}

impl Visit for Finding<'_> {
    fn visit<I: bytemuck::AnyBitPattern, T: Real>(
        &mut self,
        items: Items<'_, I>,
        real: impl Fn(I) -> T + Copy,
    ) {
        if items.len() == self.rows * self.width {
            let value = |row| real(items.get(row * self.width + self.column)).wide();
            self.split.fill(self.rows, |row| self.segments.find_number(value(row)));
        }
    }
}

fn column_of(layout: &Layout, name: &str) -> Option<Place> {
    layout.inputs.iter().enumerate().find_map(|(input, reading)| {
        let (Reading::Numbers { first, width } | Reading::Texts { first, width }) = reading else {
            return None;
        };
        let columns = layout.features.get(*first..first + width)?;
        let column = columns.iter().position(|known| known.name == name)?;
        Some(Place { input, column, width: *width })
    })
}

fn unknown(layout: &Layout, name: &str) -> String {
    let columns = layout.features[..layout.inputs_end()].iter();
    let known = columns.filter(|known| column_of(layout, &known.name).is_some()).take(8);
    let known = known.map(|known| format!("`{}`", known.name)).collect::<Vec<_>>().join(", ");
    format!("segments are by `{name}`, which is no column of the inputs; they have {known}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Rows, Signature, TensorSpec},
        tensor::{Data, DataType, Shape, Strings},
    };

    use super::super::layout::Hints;

    fn segments(by: SegmentBy, values: &[&str], limit: usize) -> Arc<Segments> {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Arc::new(Segments::new(SegmentRule { by, values, limit }))
    }

    /// A version of two numbers and a text a row.
    fn layout() -> Layout {
        let spec = |name: &str, datatype, dims: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            dims: Some(dims.to_vec()),
            view: None,
        };
        let inputs =
            vec![spec("x", DataType::Fp32, &[-1, 2]), spec("country", DataType::Bytes, &[-1, 1])];
        let signature = Signature { inputs, rows: Rows::Same, ..Signature::default() };
        Layout::new(&signature, None, Hints { names: &[], is_batched: true, features_max: 8 }).0
    }

    fn inputs(x: &[f32], countries: &[&str]) -> Vec<Input> {
        let rows = i64::try_from(countries.len()).unwrap();
        let shape = |dims: &[i64]| Shape::new(dims).unwrap();
        let countries: Strings = countries.iter().collect();
        let x = Tensor::new(shape(&[rows, 2]), Data::Fp32(x.to_vec())).unwrap();
        let country = Tensor::new(shape(&[rows, 1]), Data::Bytes(countries)).unwrap();
        let input = |(name, tensor): (&str, Tensor)| Input { name: name.to_owned(), tensor };
        [("x", x), ("country", country)].map(input).to_vec()
    }

    #[test]
    fn declared_values_come_first_and_what_finds_no_room_is_other() {
        let segments = segments(SegmentBy::Header("x-region".to_owned()), &["eu"], 2);
        let long = "x".repeat(65);
        let (eu, us) = (SegmentId(1), SegmentId(2));
        for (value, expected) in [
            ("eu", eu),
            ("", SegmentId::NONE),
            (&long, SegmentId::OTHER),
            ("other", SegmentId::OTHER),
            ("a\u{7}", SegmentId::OTHER),
            ("us", us),
            ("asia", SegmentId::OTHER),
            ("us", us),
        ] {
            assert_eq!(segments.find(value.as_bytes()), expected, "{value}");
        }
        assert_eq!(segments.find(b"\xff"), SegmentId::OTHER);
        assert_eq!(segments.names(), ["eu", "us"]);
    }

    #[test]
    fn many_threads_that_bring_one_value_make_one_segment() {
        let segments = segments(SegmentBy::Header("x".to_owned()), &[], 32);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for value in 0..100_u8 {
                        segments.find(value.to_string().as_bytes());
                    }
                });
            }
        });
        let mut names = segments.names();
        assert_eq!(names.len(), 32);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 32);
    }

    #[test]
    fn rows_have_the_segment_of_their_own_value_whatever_its_type() {
        let by = |name: &str| segments(SegmentBy::Feature(name.to_owned()), &[], 2);
        let inputs = inputs(&[0.5, 3.0, 0.5, 4.5, 0.5, f32::NAN], &["de", "de", "fr"]);
        let names = |segments: &Arc<Segments>| {
            let (splitter, note) = Splitter::new(segments, &layout());
            assert_eq!(note, None);
            let split = splitter.split(SegmentId::NONE, &inputs, 3);
            assert!(split.is_apart());
            let runs = split.runs(3).map(|(segment, rows)| (splitter.name(segment), rows));
            runs.collect::<Vec<_>>()
        };
        let own = |name: &str, rows| (Some(name.to_owned()), rows);
        assert_eq!(names(&by("country")), [own("de", 0..2), own("fr", 2..3)]);
        assert_eq!(names(&by("x[1]")), [own("3", 0..1), own("4.5", 1..2)]);
        let (splitter, note) = Splitter::new(&by("colour"), &layout());
        assert!(note.unwrap().ends_with("they have `x[0]`, `x[1]`, `country`"));
        assert_eq!(splitter.split(SegmentId::NONE, &inputs, 3), RowSegments::default());
    }
}
