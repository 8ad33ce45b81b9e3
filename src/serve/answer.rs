//! Outputs read as predictions: the class, the number and the score that an outcome is held against later.
//!
//! Not here: remembering them (`recall`), what an outcome says about them (`feedback`).

use std::{borrow::Cow, hash::Hasher as _};

use siphasher::sip::SipHasher13;

use crate::{
    model::{Signature, TensorSpec},
    tensor::{DataType, Strings, Tensor},
};

use super::Prediction;

/// The operator's word about a model's predictions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerRule {
    /// True if predictions are remembered for outcomes that come later.
    pub enabled: bool,
    /// The output that holds the prediction. `None`: the only INT64 or BYTES output with one value per row, else the
    /// only floating one.
    pub output: Option<String>,
    /// The class whose precision and recall matter. `None`: 1 where there are two.
    pub positive: Option<ClassName>,
}

/// A class, as an operator or a client writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassName {
    /// By its number.
    Number(i64),
    /// By its text.
    Text(String),
}

/// What was predicted for a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Predicted {
    /// The kind.
    pub kind: PredictedKind,
    /// A class's number, the hash of its text ([`text_bits`]), or the bits of a number.
    pub bits: u64,
    /// With one or two scores a row, the positive class's; with more the largest; NaN without any.
    pub score: f32,
    /// True if the score is the positive class's, and not the largest of several.
    pub is_positives: bool,
}

/// Kinds of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictedKind {
    /// The answer held no output that is read as one.
    Nothing,
    /// A class by its number.
    Number,
    /// A class by its text.
    Text,
    /// A number, which may be a probability.
    Value,
}

/// How a version's outputs are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerReading {
    enabled: bool,
    output: Option<usize>,
    scores: Option<usize>,
    /// The positive class's bits.
    positive: Option<u64>,
    /// True if the operator named it.
    is_positive_named: bool,
    /// Names of the classes that the output's numbers stand for.
    names: Vec<String>,
}

/// Names of classes that are kept at most.
const NAMES_MAX: usize = 4096;

/// Scores of a row that are read as those of classes; more are an image or an embedding.
const SCORES_MAX: usize = 4096;

/// Bytes of a text that is read as a class; what is longer is prose.
const TEXT_BYTES_MAX: usize = 256;

impl Default for AnswerRule {
    fn default() -> Self {
        Self { enabled: true, output: None, positive: None }
    }
}

/// The bits that stand for a class's text: SipHash-1-3 without a key.
#[must_use]
pub fn text_bits(text: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(text);
    hasher.finish()
}

impl AnswerRule {
    /// Finds the outputs in a signature; `class_names` are by the index of the output.
    ///
    /// # Errors
    /// What is wrong with the rule for this signature; the second value is the reading that is used nevertheless.
    pub fn resolve(
        &self,
        signature: &Signature,
        class_names: &[Option<Vec<String>>],
    ) -> Result<AnswerReading, (String, AnswerReading)> {
        let outputs = &signature.outputs;
        let of = |test: &dyn Fn(&TensorSpec) -> bool| -> Vec<usize> {
            (0..outputs.len()).filter(|index| test(&outputs[*index])).collect()
        };
        let floating = of(&|spec| is_floating(spec.datatype));
        let labels = of(&|spec| {
            matches!(spec.datatype, DataType::Int64 | DataType::Bytes) && may_be_one(spec)
        });
        let chosen = self.output.as_deref();
        let found = chosen.and_then(|name| outputs.iter().position(|spec| spec.name == name));
        let output = match (chosen, &*labels, &*floating) {
            (Some(_), ..) => found.filter(|index| is_readable(outputs[*index].datatype)),
            (None, [label], _) => Some(*label),
            (None, [], [scores]) => Some(*scores),
            _ => None,
        };
        let is_score = |index: usize| is_floating(outputs[index].datatype);
        let scores = match (output, &*floating) {
            (Some(output), _) if is_score(output) => Some(output),
            (Some(_), [scores]) => Some(*scores),
            _ => None,
        };
        let mut read = [output, scores].into_iter().flatten();
        let names = read.find_map(|index| class_names.get(index)?.as_ref());
        let names: Vec<String> =
            names.map(|names| names.iter().take(NAMES_MAX).cloned().collect()).unwrap_or_default();
        let is_text = output.is_some_and(|index| outputs[index].datatype == DataType::Bytes);
        let reading = AnswerReading {
            enabled: self.enabled,
            output,
            scores,
            positive: match &self.positive {
                Some(class) => class.bits(is_text, &names),
                None => (!is_text).then_some(1),
            },
            is_positive_named: self.positive.is_some(),
            names,
        };
        match self.complain(output, &reading, outputs) {
            Some(problem) => Err((problem, reading)),
            None => Ok(reading),
        }
    }

    fn complain(
        &self,
        output: Option<usize>,
        reading: &AnswerReading,
        outputs: &[TensorSpec],
    ) -> Option<String> {
        if let (Some(name), None) = (&self.output, output) {
            let readable = outputs.iter().filter(|spec| is_readable(spec.datatype));
            let readable: Vec<_> = readable.map(TensorSpec::summary).collect();
            return Some(format!(
                "feedback.output is `{name}`, which is none of {}: outcomes are joined, and no prediction is held \
                 against them",
                readable.join(", ")
            ));
        }
        let positive = self.positive.as_ref().filter(|_| reading.positive.is_none())?;
        let (ClassName::Text(positive), names) = (positive, &reading.names) else { return None };
        Some(format!(
            "feedback.positive is `{positive}`, which is none of the classes {}; use a number, or name it in the \
             model's labels",
            names.join(", ")
        ))
    }
}

impl std::fmt::Display for ClassName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => {
                let text: String = text.chars().take(64).flat_map(char::escape_debug).collect();
                write!(f, "\"{text}\"")
            }
        }
    }
}

impl ClassName {
    /// The bits that stand for the class, by numbers or by text as the model gives it; `None` if there is no such
    /// class.
    #[must_use]
    pub fn bits(&self, is_text: bool, names: &[String]) -> Option<u64> {
        match self {
            Self::Number(number) if is_text => Some(text_bits(number.to_string().as_bytes())),
            Self::Number(number) => Some(number.cast_unsigned()),
            Self::Text(text) if is_text => Some(text_bits(text.trim().as_bytes())),
            Self::Text(text) => {
                let text = text.trim();
                let index = names.iter().position(|name| name == text);
                let index = index.and_then(|index| u64::try_from(index).ok());
                index.or_else(|| Some(text.parse::<i64>().ok()?.cast_unsigned()))
            }
        }
    }
}

impl AnswerReading {
    /// True if predictions are remembered.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.enabled
    }

    /// The positive class's bits.
    #[must_use]
    pub fn positive(&self) -> Option<u64> {
        self.positive
    }

    /// True if the operator named the positive class.
    #[must_use]
    pub fn is_positive_named(&self) -> bool {
        self.is_positive_named
    }

    /// Names of the classes that numbers stand for; may be empty.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// True if a row's prediction is the positive class; `None` if that is not known.
    pub(super) fn is_positive(&self, row: &Predicted) -> Option<bool> {
        match row.kind {
            PredictedKind::Nothing => None,
            PredictedKind::Number | PredictedKind::Text => Some(row.bits == self.positive?),
            PredictedKind::Value if !self.is_positive_named => None,
            PredictedKind::Value => Some(f64::from_bits(row.bits) >= 0.5),
        }
    }

    /// The text of the first row's class; `None` if the output holds no texts.
    pub(super) fn text<'p>(&self, prediction: &'p Prediction) -> Option<&'p [u8]> {
        let place = prediction.wanted.iter().position(|wanted| Some(*wanted) == self.output)?;
        prediction.outputs.get(place)?.strings()?.get(0).map(<[u8]>::trim_ascii)
    }

    /// Reads the first `rows_max` rows of an answer, in order.
    pub(super) fn read(
        &self,
        prediction: &Prediction,
        rows_max: usize,
        mut each: impl FnMut(Predicted),
    ) {
        let of = |index: Option<usize>| {
            let place = prediction.wanted.iter().position(|wanted| Some(*wanted) == index)?;
            prediction.outputs.get(place)
        };
        let rows = usize::try_from(prediction.rows).unwrap_or(usize::MAX).max(1);
        let scores = of(self.scores).and_then(|tensor| Scores::of(tensor, rows));
        let is_own = self.output != self.scores;
        let classes = of(self.output).filter(|_| is_own);
        let classes = classes.and_then(|tensor| Classes::of(tensor, rows));
        for row in 0..rows.min(rows_max) {
            let by_score = scores.as_ref().map(|scores| scores.of_row(row, self.positive));
            each(match &classes {
                Some(classes) => {
                    let beside = by_score.unwrap_or(Predicted::NOTHING);
                    let Predicted { score, is_positives, .. } = beside;
                    Predicted { score, is_positives, ..classes.of_row(row) }
                }
                None if is_own => Predicted::NOTHING,
                None => by_score.unwrap_or(Predicted::NOTHING),
            });
        }
    }
}

impl Predicted {
    /// No prediction.
    pub const NOTHING: Self =
        Self { kind: PredictedKind::Nothing, bits: 0, score: f32::NAN, is_positives: false };
}

/// A floating output.
struct Scores<'t> {
    tensor: Floats<'t>,
    columns: usize,
}

enum Floats<'t> {
    Single(Cow<'t, [f32]>),
    Double(Cow<'t, [f64]>),
}

impl<'t> Scores<'t> {
    /// The scores of so many rows; `None` if they do not share the elements.
    fn of(tensor: &'t Tensor, rows: usize) -> Option<Self> {
        let columns = tensor.len() / rows;
        if !(1..=SCORES_MAX).contains(&columns) || columns * rows != tensor.len() {
            return None;
        }
        let tensor = match tensor.datatype() {
            DataType::Fp32 => Floats::Single(tensor.view().ok()?),
            DataType::Fp64 => Floats::Double(tensor.view().ok()?),
            DataType::Fp16 => {
                let halves = tensor.view::<half::f16>().ok()?;
                Floats::Single(halves.iter().map(|value| f32::from(*value)).collect())
            }
            DataType::Bf16 => {
                let halves = tensor.view::<half::bf16>().ok()?;
                Floats::Single(halves.iter().map(|value| f32::from(*value)).collect())
            }
            _ => return None,
        };
        Some(Self { tensor, columns })
    }

    fn at(&self, index: usize) -> f64 {
        match &self.tensor {
            Floats::Single(values) => f64::from(values[index]),
            Floats::Double(values) => values[index],
        }
    }

    fn of_row(&self, row: usize, positive: Option<u64>) -> Predicted {
        let first = row * self.columns;
        #[expect(clippy::cast_possible_truncation, reason = "a score is kept in 32 bits")]
        let short = |value: f64| value as f32;
        if self.columns == 1 {
            let value = self.at(first);
            let score = if (0.0..=1.0).contains(&value) { short(value) } else { f32::NAN };
            let (kind, bits) = (PredictedKind::Value, value.to_bits());
            return Predicted { kind, bits, score, is_positives: true };
        }
        let row = first..first + self.columns;
        let best = match &self.tensor {
            Floats::Single(values) => largest(&values[row]),
            Floats::Double(values) => largest(&values[row]),
        };
        let column = match (self.columns, positive) {
            (2, Some(0)) => 0,
            (2, _) => 1,
            _ => best,
        };
        let score = short(self.at(first + column));
        let (kind, bits) = (PredictedKind::Number, best as u64);
        let is_positives = self.columns == 2;
        Predicted { kind, bits, score, is_positives }
    }
}

/// The index of the first of the largest.
fn largest<T: PartialOrd + Copy>(values: &[T]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// An output with a class per row.
enum Classes<'t> {
    Int64(Cow<'t, [i64]>),
    Int32(Cow<'t, [i32]>),
    Uint8(Cow<'t, [u8]>),
    Bool(Cow<'t, [bool]>),
    Text(&'t Strings),
}

impl<'t> Classes<'t> {
    /// The classes of so many rows; `None` if there is not one for each.
    fn of(tensor: &'t Tensor, rows: usize) -> Option<Self> {
        if tensor.len() != rows {
            return None;
        }
        Some(match tensor.datatype() {
            DataType::Int64 => Self::Int64(tensor.view().ok()?),
            DataType::Int32 => Self::Int32(tensor.view().ok()?),
            DataType::Uint8 => Self::Uint8(tensor.view().ok()?),
            DataType::Bool => Self::Bool(tensor.view().ok()?),
            DataType::Bytes => Self::Text(tensor.strings()?),
            _ => return None,
        })
    }

    fn of_row(&self, row: usize) -> Predicted {
        let number = |number: i64| Predicted {
            kind: PredictedKind::Number,
            bits: number.cast_unsigned(),
            ..Predicted::NOTHING
        };
        match self {
            Self::Int64(all) => number(all[row]),
            Self::Int32(all) => number(all[row].into()),
            Self::Uint8(all) => number(all[row].into()),
            Self::Bool(all) => number(all[row].into()),
            Self::Text(all) => match all.get(row).map(<[u8]>::trim_ascii) {
                Some(text) if text.len() <= TEXT_BYTES_MAX => Predicted {
                    kind: PredictedKind::Text,
                    bits: text_bits(text),
                    ..Predicted::NOTHING
                },
                _ => Predicted::NOTHING,
            },
        }
    }
}

fn is_floating(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

fn is_readable(datatype: DataType) -> bool {
    use DataType::{Bool, Bytes, Int32, Int64, Uint8};
    is_floating(datatype) || matches!(datatype, Int64 | Int32 | Uint8 | Bool | Bytes)
}

/// True if an output may have one value per row, as far as its declaration says.
fn may_be_one(spec: &TensorSpec) -> bool {
    let Some(dims) = &spec.dims else { return true };
    dims.get(1..).unwrap_or_default().iter().all(|dim| *dim < 0 || *dim == 1)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        drift::RowSegments,
        tensor::{Data, Shape, Strings},
    };

    fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), datatype, dims: Some(dims.to_vec()), view: None }
    }

    fn tensor(dims: &[i64], data: Data) -> Tensor {
        Tensor::new(Shape::new(dims).unwrap(), data).unwrap()
    }

    fn read(rule: &AnswerRule, outputs: Vec<(TensorSpec, Tensor)>, rows: u64) -> Vec<Predicted> {
        let (outputs, tensors): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
        let signature = Signature { outputs, ..Signature::default() };
        let names = vec![Some(vec!["no".to_owned(), "yes".to_owned()]); signature.outputs.len()];
        let reading = rule.resolve(&signature, &names).unwrap();
        let now = Instant::now();
        let wanted = (0..tensors.len()).collect();
        let prediction = Prediction {
            outputs: tensors,
            wanted,
            rows,
            split: RowSegments::default(),
            flag: None,
            started: now,
            finished: now,
        };
        let mut read = Vec::new();
        reading.read(&prediction, 10, |row| read.push(row));
        read
    }

    fn labels() -> (TensorSpec, Tensor) {
        let data = Data::Int64(vec![1, 0]);
        (spec("label", DataType::Int64, &[-1]), tensor(&[2], data))
    }

    fn scores() -> (TensorSpec, Tensor) {
        let data = Data::Fp32(vec![0.25, 0.75, 0.5, 0.5]);
        (spec("probabilities", DataType::Fp32, &[-1, 2]), tensor(&[2, 2], data))
    }

    #[test]
    fn the_only_label_is_the_prediction_and_the_only_scores_go_with_it() {
        let number = |bits, score| Predicted {
            kind: PredictedKind::Number,
            bits,
            score,
            is_positives: true,
        };
        let rule = AnswerRule::default();
        let both = vec![labels(), scores()];
        assert_eq!(read(&rule, both.clone(), 2), [number(1, 0.75), number(0, 0.5)]);
        assert_eq!(read(&rule, vec![scores()], 2), [number(1, 0.75), number(0, 0.5)]);
        let no = AnswerRule { positive: Some(ClassName::Text("no".to_owned())), ..rule.clone() };
        assert_eq!(read(&no, both.clone(), 2), [number(1, 0.25), number(0, 0.5)]);
        let named = AnswerRule { output: Some("probabilities".to_owned()), ..rule.clone() };
        assert_eq!(read(&named, both, 2), [number(1, 0.75), number(0, 0.5)]);
        let wrong = AnswerRule { output: Some("label".to_owned()), ..rule };
        let (outputs, _) = scores();
        let signature = Signature { outputs: vec![outputs], ..Signature::default() };
        let (problem, _) = wrong.resolve(&signature, &[]).unwrap_err();
        assert!(problem.starts_with("feedback.output is `label`, which is none of"), "{problem}");
    }

    #[test]
    fn one_number_a_row_is_a_value_and_texts_are_classes() {
        let price =
            (spec("price", DataType::Fp64, &[-1, 1]), tensor(&[2, 1], Data::Fp64(vec![7.5, 0.5])));
        let read_price = read(&AnswerRule::default(), vec![price], 2);
        assert_eq!(read_price[0].kind, PredictedKind::Value);
        assert_eq!(f64::from_bits(read_price[0].bits).to_bits(), 7.5f64.to_bits());
        assert!(read_price[0].score.is_nan());
        assert_eq!(read_price[1].score.to_bits(), 0.5f32.to_bits());
        let mut words = Strings::default();
        words.push(b"yes ");
        let word = (spec("word", DataType::Bytes, &[-1]), tensor(&[1], Data::Bytes(words)));
        let word = read(&AnswerRule::default(), vec![word], 1)[0];
        assert_eq!((word.kind, word.bits), (PredictedKind::Text, text_bits(b"yes")));
        let wide = tensor(&[1, 5000], Data::Fp32(vec![0.0; 5000]));
        let image = (spec("image", DataType::Fp32, &[-1, 5000]), wide);
        assert_eq!(read(&AnswerRule::default(), vec![image], 1)[0].kind, PredictedKind::Nothing);
        // Two labels: none is the prediction.
        let none = read(&AnswerRule::default(), vec![labels(), labels()], 2);
        assert_eq!(
            none.iter().map(|row| row.kind).collect::<Vec<_>>(),
            [PredictedKind::Nothing; 2]
        );
    }
}
