//! Columns of a version's table: their names and types from its signature, their cells from tensors.
//!
//! First come the columns of every table (`time` to `milliseconds`), then the inputs, then the outputs. A value of an
//! input is named as drift names the feature, one of an output `output:NAME`; a tensor of too many values a row is one
//! column of lists. A name that is taken gets the prefix `input:`.
//!
//! Whole numbers and truth values keep their type; FP16 and BF16 become 32-bit floats, which hold them exactly. Texts
//! are UTF-8: bytes that are not become U+FFFD. A tensor that a request left out, did not ask for or did not get is
//! null.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parquet::{
    basic::{LogicalType, Repetition, TimeUnit, Type as Physical},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type},
    errors::ParquetError,
    file::writer::{SerializedColumnWriter, SerializedFileWriter},
    schema::types::{Type, TypePtr},
};

use crate::{
    drift,
    model::Signature,
    serve::{Sampled, SampledOutcome, Sampling},
    tensor::{DataType, Tensor},
};

/// Names of the columns that every table has.
const COMMON: [(&str, Kind); 9] = [
    ("time", Kind::Time),
    ("prediction_id", Kind::Text),
    ("row", Kind::Whole(32, true)),
    ("model", Kind::Text),
    ("version", Kind::Whole(64, true)),
    ("arm", Kind::Text),
    ("digest", Kind::Text),
    ("code", Kind::Whole(32, true)),
    ("milliseconds", Kind::Double),
];

/// Columns of the table of outcomes.
const OUTCOMES: [(&str, Kind, Presence); 7] = [
    ("time", Kind::Time, Presence::Required),
    ("prediction_id", Kind::Text, Presence::Required),
    ("row", Kind::Whole(32, true), Presence::Required),
    ("model", Kind::Text, Presence::Required),
    ("label", Kind::Text, Presence::Optional),
    ("value", Kind::Double, Presence::Optional),
    ("reward", Kind::Double, Presence::Optional),
];

/// Bytes of a row beside its tensors, about.
const ROW_BYTES: usize = 128;

/// Types of cells.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Truth,
    /// Bits, and true if it has a sign.
    Whole(i8, bool),
    Single,
    Double,
    Text,
    Time,
}

/// Presence of cells.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Presence {
    Required,
    Optional,
    List,
}

/// Tensor whose values are a group of columns.
#[derive(Debug)]
struct Group {
    /// The name of the input, or the index of the output.
    tensor: Result<String, usize>,
    /// Its columns.
    first: usize,
    count: usize,
}

/// Rows of a version that are not in a file yet.
#[derive(Debug)]
pub(super) struct Columns {
    schema: TypePtr,
    groups: Vec<Group>,
    all: Vec<Column>,
    rows: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Column {
    name: String,
    kind: Kind,
    presence: Presence,
    is_redacted: bool,
    values: Values,
    /// Levels of each cell that are there; empty if it is required.
    levels: Vec<i16>,
    /// 0 where a list begins; empty if it is none.
    repeats: Vec<i16>,
}

#[derive(Debug)]
enum Values {
    Truths(Vec<bool>),
    Wholes(Vec<i32>),
    Longs(Vec<i64>),
    Singles(Vec<f32>),
    Doubles(Vec<f64>),
    Texts(Vec<ByteArray>),
}

impl Kind {
    fn of(datatype: DataType) -> Self {
        match datatype {
            DataType::Bool => Self::Truth,
            DataType::Uint8 => Self::Whole(8, false),
            DataType::Uint16 => Self::Whole(16, false),
            DataType::Uint32 => Self::Whole(32, false),
            DataType::Uint64 => Self::Whole(64, false),
            DataType::Int8 => Self::Whole(8, true),
            DataType::Int16 => Self::Whole(16, true),
            DataType::Int32 => Self::Whole(32, true),
            DataType::Int64 => Self::Whole(64, true),
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 => Self::Single,
            DataType::Fp64 => Self::Double,
            DataType::Bytes => Self::Text,
        }
    }

    fn stored(self) -> (Physical, Option<LogicalType>) {
        match self {
            Self::Truth => (Physical::BOOLEAN, None),
            Self::Whole(bits @ 64, signed) => {
                (Physical::INT64, Some(LogicalType::integer(bits, signed)))
            }
            Self::Whole(bits, signed) => {
                (Physical::INT32, Some(LogicalType::integer(bits, signed)))
            }
            Self::Single => (Physical::FLOAT, None),
            Self::Double => (Physical::DOUBLE, None),
            Self::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Self::Time => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MICROS))),
        }
    }

    fn empty(self) -> Values {
        match self.stored().0 {
            Physical::BOOLEAN => Values::Truths(Vec::new()),
            Physical::INT32 => Values::Wholes(Vec::new()),
            Physical::INT64 => Values::Longs(Vec::new()),
            Physical::FLOAT => Values::Singles(Vec::new()),
            Physical::DOUBLE => Values::Doubles(Vec::new()),
            _ => Values::Texts(Vec::new()),
        }
    }
}

impl Column {
    fn new(name: String, kind: Kind, presence: Presence, is_redacted: bool) -> Self {
        let (levels, repeats) = (Vec::new(), Vec::new());
        Self { name, kind, presence, is_redacted, values: kind.empty(), levels, repeats }
    }

    fn schema(&self) -> Result<TypePtr, ParquetError> {
        let (physical, logical) = self.kind.stored();
        let leaf = |name: &str, repetition| {
            let leaf = Type::primitive_type_builder(name, physical).with_repetition(repetition);
            leaf.with_logical_type(logical.clone()).build().map(Arc::new)
        };
        match self.presence {
            Presence::Required => leaf(&self.name, Repetition::REQUIRED),
            Presence::Optional => leaf(&self.name, Repetition::OPTIONAL),
            Presence::List => {
                let list = Type::group_type_builder("list")
                    .with_repetition(Repetition::REPEATED)
                    .with_fields(vec![leaf("element", Repetition::REQUIRED)?]);
                let all = Type::group_type_builder(&self.name)
                    .with_repetition(Repetition::OPTIONAL)
                    .with_logical_type(Some(LogicalType::List))
                    .with_fields(vec![Arc::new(list.build()?)]);
                Ok(Arc::new(all.build()?))
            }
        }
    }

    /// Adds so many cells without a value.
    fn skip(&mut self, cells: usize) {
        self.levels.resize(self.levels.len() + cells, 0);
        if self.presence == Presence::List {
            self.repeats.resize(self.repeats.len() + cells, 0);
        }
    }

    /// Adds cells with these values, of so many each.
    fn fill<T: Copy>(&mut self, values: &[T], each: usize, push: impl Fn(&mut Values, &[T])) {
        if self.is_redacted {
            self.skip(values.len() / each.max(1));
            return;
        }
        push(&mut self.values, values);
        match self.presence {
            Presence::Required => {}
            Presence::Optional => self.levels.resize(self.levels.len() + values.len(), 1),
            Presence::List => {
                self.levels.resize(self.levels.len() + values.len(), 2);
                self.repeats.extend((0..values.len()).map(|at| i16::from(at % each != 0)));
            }
        }
    }

    fn write(&self, writer: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let levels = (self.presence != Presence::Required).then_some(&self.levels[..]);
        let repeats = (self.presence == Presence::List).then_some(&self.repeats[..]);
        match &self.values {
            Values::Truths(all) => writer.typed::<BoolType>().write_batch(all, levels, repeats),
            Values::Wholes(all) => writer.typed::<Int32Type>().write_batch(all, levels, repeats),
            Values::Longs(all) => writer.typed::<Int64Type>().write_batch(all, levels, repeats),
            Values::Singles(all) => writer.typed::<FloatType>().write_batch(all, levels, repeats),
            Values::Doubles(all) => writer.typed::<DoubleType>().write_batch(all, levels, repeats),
            Values::Texts(all) => writer.typed::<ByteArrayType>().write_batch(all, levels, repeats),
        }
        .map(drop)
    }

    fn clear(&mut self) {
        self.values = self.kind.empty();
        self.levels.clear();
        self.repeats.clear();
    }
}

/// Names that are not taken yet; those that differ in case only are one, as in SQL.
struct Names(HashSet<String>);

impl Names {
    fn free(&mut self, name: String, side: &str) -> String {
        let prefixed = format!("{side}:{name}");
        let numbered = (2..).map(|number| format!("{prefixed} {number}"));
        let mut all = [name, prefixed.clone()].into_iter().chain(numbered);
        let free = all.find(|name| self.0.insert(name.to_lowercase()));
        free.expect("numbers do not end")
    }
}

impl Columns {
    /// The columns of a version, without rows.
    pub(super) fn new(
        sampling: &Sampling,
        redacted: &[String],
        columns_max: usize,
    ) -> Result<Self, ParquetError> {
        let mut names = Names(HashSet::new());
        let common = COMMON.map(|(name, kind)| {
            Column::new(names.free(name.to_owned(), ""), kind, Presence::Required, false)
        });
        let (mut columns, mut groups) = (Vec::from(common), Vec::new());
        let signature = &sampling.signature;
        let inputs = signature.inputs.iter().chain(&signature.optional).map(|spec| (spec, None));
        let outputs = signature.outputs.iter().enumerate().map(|(at, spec)| (spec, Some(at)));
        for (place, (spec, output)) in inputs.chain(outputs).enumerate() {
            let (side, base) = match output {
                Some(_) => ("output", format!("output:{}", spec.name)),
                None => ("input", spec.name.clone()),
            };
            let first = columns.len();
            let room = columns_max.saturating_sub(first - COMMON.len());
            let width = drift::width(spec, sampling.is_batched);
            let own = match width {
                Some(1) => vec![base.clone()],
                Some(width @ 2..) if width <= room => {
                    (0..width).map(|at| format!("{base}[{at}]")).collect()
                }
                _ => Vec::new(),
            };
            let given = sampling.names.get(place).and_then(Option::as_ref);
            let given = given.filter(|given| output.is_none() && given.len() == own.len());
            let is_hidden = |name: &String| {
                redacted.contains(name) || redacted.contains(&base) || redacted.contains(&spec.name)
            };
            let kind = Kind::of(spec.datatype);
            for name in given.cloned().unwrap_or(own) {
                let is_redacted = is_hidden(&name);
                let name = names.free(name, side);
                columns.push(Column::new(name, kind, Presence::Optional, is_redacted));
            }
            if columns.len() == first {
                let is_redacted = is_hidden(&base);
                let name = names.free(base, side);
                columns.push(Column::new(name, kind, Presence::List, is_redacted));
            }
            let tensor = output.map_or_else(|| Ok(spec.name.clone()), Err);
            groups.push(Group { tensor, first, count: columns.len() - first });
        }
        Self::of(groups, columns)
    }

    /// Names of what is to be redacted that are none of a version's columns, inputs or outputs.
    pub(super) fn unknown<'r>(&self, sampling: &Sampling, redacted: &'r [String]) -> Vec<&'r str> {
        let Signature { inputs, optional, outputs, .. } = &sampling.signature;
        let is_tensor = |name: &str| {
            let name = name.strip_prefix("output:").unwrap_or(name);
            inputs.iter().chain(optional).chain(outputs).any(|spec| spec.name == name)
        };
        let is_column = |name: &str| {
            let mut columns = self.all.iter().filter(|column| column.is_redacted);
            columns.any(|column| column.name.strip_prefix("input:").unwrap_or(&column.name) == name)
        };
        let names = redacted.iter().map(String::as_str);
        names.filter(|name| !is_tensor(name) && !is_column(name)).collect()
    }

    /// The columns of outcomes, without rows.
    pub(super) fn outcomes() -> Result<Self, ParquetError> {
        let column = |(name, kind, presence): (&str, _, _)| {
            Column::new(name.to_owned(), kind, presence, false)
        };
        Self::of(Vec::new(), OUTCOMES.map(column).into())
    }

    fn of(groups: Vec<Group>, all: Vec<Column>) -> Result<Self, ParquetError> {
        let fields = all.iter().map(Column::schema).collect::<Result<_, _>>()?;
        let schema = Type::group_type_builder("schema").with_fields(fields).build()?;
        Ok(Self { schema: Arc::new(schema), groups, all, rows: 0, bytes: 0 })
    }

    /// The schema of a file.
    pub(super) fn schema(&self) -> &TypePtr {
        &self.schema
    }

    /// Rows that are not in a file yet.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of these, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the rows of a prediction.
    pub(super) fn add(&mut self, sampled: &Sampled) {
        let Ok(rows) = usize::try_from(sampled.tensors.rows) else { return };
        if rows == 0 {
            return;
        }
        self.add_common(sampled, rows);
        for Group { tensor, first, count } in &self.groups {
            let tensors = &sampled.tensors;
            let found = match tensor {
                Ok(name) => {
                    let mut inputs = tensors.inputs.iter();
                    inputs.find(|input| input.name == *name).map(|input| &input.tensor)
                }
                Err(output) => {
                    let place = tensors.wanted.iter().position(|wanted| wanted == output);
                    place.and_then(|place| tensors.outputs.get(place))
                }
            };
            spread(&mut self.all[*first..first + count], found, rows);
        }
        self.rows += rows as u64;
        self.bytes += sampled.tensors.bytes() + rows * (ROW_BYTES + 2 * self.all.len());
    }

    /// Adds an outcome.
    pub(super) fn add_outcome(&mut self, outcome: &SampledOutcome) {
        let SampledOutcome { model, id, row, at, label, value, reward } = outcome;
        let time = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
        let row = i32::try_from(*row).unwrap_or(i32::MAX);
        let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
        let cells = [
            Some(Values::Longs(vec![time])),
            Some(Values::Texts(vec![text(id.as_str())])),
            Some(Values::Wholes(vec![row])),
            Some(Values::Texts(vec![text(model.as_str())])),
            label.as_ref().map(|label| Values::Texts(vec![text(label)])),
            value.map(|value| Values::Doubles(vec![value])),
            reward.map(|reward| Values::Doubles(vec![reward])),
        ];
        for (column, cell) in self.all.iter_mut().zip(cells) {
            let level = i16::from(cell.is_some());
            match (&mut column.values, cell) {
                (Values::Longs(all), Some(Values::Longs(one))) => all.extend(one),
                (Values::Wholes(all), Some(Values::Wholes(one))) => all.extend(one),
                (Values::Doubles(all), Some(Values::Doubles(one))) => all.extend(one),
                (Values::Texts(all), Some(Values::Texts(one))) => all.extend(one),
                _ => {}
            }
            if column.presence == Presence::Optional {
                column.levels.push(level);
            }
        }
        self.rows += 1;
        self.bytes += ROW_BYTES + label.as_ref().map_or(0, String::len);
    }

    fn add_common(&mut self, sampled: &Sampled, rows: usize) {
        let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
        let Sampled { sampling, id, at, arm, code, took, .. } = sampled;
        let time = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
        let version = sampling.version.number().cast_signed();
        let constants = [
            Values::Longs(vec![time]),
            Values::Texts(vec![text(id.as_str())]),
            Values::Wholes(Vec::new()),
            Values::Texts(vec![text(sampling.model.as_str())]),
            Values::Longs(vec![version]),
            Values::Texts(vec![text(arm.as_str())]),
            Values::Texts(vec![text(&sampling.digest)]),
            Values::Wholes(vec![i32::from(*code)]),
            Values::Doubles(vec![milliseconds(*took)]),
        ];
        for (column, constant) in self.all.iter_mut().zip(constants) {
            match (&mut column.values, constant) {
                (Values::Longs(all), Values::Longs(one)) => all.resize(all.len() + rows, one[0]),
                (Values::Texts(all), Values::Texts(one)) => {
                    all.resize(all.len() + rows, one[0].clone());
                }
                (Values::Doubles(all), Values::Doubles(one)) => {
                    all.resize(all.len() + rows, one[0]);
                }
                (Values::Wholes(all), Values::Wholes(one)) => match one.first() {
                    Some(one) => all.resize(all.len() + rows, *one),
                    None => all.extend((0..rows).map(|row| i32::try_from(row).unwrap_or(i32::MAX))),
                },
                _ => unreachable!("the common columns have these types"),
            }
        }
    }

    /// Writes the rows as a row group, and begins anew.
    pub(super) fn write<W: std::io::Write + Send>(
        &mut self,
        file: &mut SerializedFileWriter<W>,
    ) -> Result<(), ParquetError> {
        let mut group = file.next_row_group()?;
        let mut columns = self.all.iter();
        while let Some(mut writer) = group.next_column()? {
            let column = columns.next().expect("the schema has these columns");
            column.write(&mut writer)?;
            writer.close()?;
        }
        group.close()?;
        self.clear();
        Ok(())
    }

    /// Forgets the rows.
    pub(super) fn clear(&mut self) {
        self.all.iter_mut().for_each(Column::clear);
        (self.rows, self.bytes) = (0, 0);
    }
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// Adds a tensor's values of so many rows to its columns.
fn spread(columns: &mut [Column], tensor: Option<&Tensor>, rows: usize) {
    macro_rules! numbers {
        ($element:ty, $variant:ident, $convert:expr) => {
            match tensor.map(Tensor::view::<$element>) {
                Some(Ok(values)) => lay(columns, Some(&*values), rows, |cells, values| {
                    if let Values::$variant(cells) = cells {
                        cells.extend(values.iter().copied().map($convert));
                    }
                }),
                _ => lay::<$element>(columns, None, rows, |_, _| {}),
            }
        };
    }
    let Some(datatype) = tensor.map(Tensor::datatype) else {
        return lay::<u8>(columns, None, rows, |_, _| {});
    };
    match datatype {
        DataType::Bool => numbers!(bool, Truths, |value| value),
        DataType::Uint8 => numbers!(u8, Wholes, i32::from),
        DataType::Uint16 => numbers!(u16, Wholes, i32::from),
        DataType::Uint32 => numbers!(u32, Wholes, u32::cast_signed),
        DataType::Uint64 => numbers!(u64, Longs, u64::cast_signed),
        DataType::Int8 => numbers!(i8, Wholes, i32::from),
        DataType::Int16 => numbers!(i16, Wholes, i32::from),
        DataType::Int32 => numbers!(i32, Wholes, |value| value),
        DataType::Int64 => numbers!(i64, Longs, |value| value),
        DataType::Fp16 => numbers!(half::f16, Singles, f32::from),
        DataType::Bf16 => numbers!(half::bf16, Singles, f32::from),
        DataType::Fp32 => numbers!(f32, Singles, |value| value),
        DataType::Fp64 => numbers!(f64, Doubles, |value| value),
        DataType::Bytes => {
            let strings = tensor.and_then(Tensor::strings);
            let texts: Vec<&[u8]> = strings.map(|all| all.iter().collect()).unwrap_or_default();
            lay(columns, Some(&texts), rows, |cells, texts| {
                if let Values::Texts(cells) = cells {
                    let text = |text: &&[u8]| String::from_utf8_lossy(text).into_owned();
                    cells.extend(texts.iter().map(|one| ByteArray::from(text(one).into_bytes())));
                }
            });
        }
    }
}

fn skip_all(columns: &mut [Column], cells: usize) {
    for column in columns {
        column.skip(cells);
    }
}

/// Lays row-major values into columns: one of each row for each column, or all of a row as a list.
///
/// Values that no rows share are the list of the first row; values of another number than the columns are left out.
fn lay<T: Copy>(
    columns: &mut [Column],
    values: Option<&[T]>,
    rows: usize,
    push: impl Fn(&mut Values, &[T]),
) {
    let Some(values) = values else {
        skip_all(columns, rows);
        return;
    };
    if let [list] = &mut *columns
        && list.presence == Presence::List
    {
        if values.is_empty() {
            list.skip(rows);
            let level = i16::from(!list.is_redacted);
            list.levels.iter_mut().rev().take(rows).for_each(|it| *it = level);
        } else if values.len() % rows == 0 {
            list.fill(values, values.len() / rows, push);
        } else {
            list.fill(values, values.len(), push);
            list.skip(rows - 1);
        }
        return;
    }
    let width = columns.len();
    if values.len() != width * rows {
        skip_all(columns, rows);
        return;
    }
    for (at, column) in columns.iter_mut().enumerate() {
        if width == 1 {
            column.fill(values, 1, &push);
        } else {
            let own: Vec<T> = values.iter().skip(at).step_by(width).copied().collect();
            column.fill(&own, 1, &push);
        }
    }
}
