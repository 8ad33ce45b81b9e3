//! Parquet through the `parquet` crate, column by column, one page of each in memory.
//!
//! Fields of structures are columns named `structure.field`; lists of plain values are columns of lists; lists of other
//! things and maps cannot be read. The index that pandas writes beside a table (`__index_level_0__`) is left out. Dates
//! and times are whole numbers in the file's own unit.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use parquet::{
    basic::{ConvertedType, LogicalType, Repetition, Type as Physical},
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{self, ByteArray},
    errors::ParquetError,
    file::reader::{FileReader as _, SerializedFileReader},
    schema::types::{ColumnDescriptor, Type},
};

use super::{Cells, Column, Kind, Limits, Texts, Trouble, error::shown};

/// The longest description of row groups and columns that is read.
const FOOTER_BYTES_MAX: u64 = 64 << 20;

pub(super) struct ParquetReader {
    file: SerializedFileReader<File>,
    /// One for each column.
    leaves: Vec<Leaf>,
    group: usize,
    /// Rows of the group that are not read yet.
    left: usize,
    /// A reader for each selected column, within the group.
    readers: Vec<(usize, ColumnReader)>,
    rows: u64,
    limits: Limits,
}

/// A leaf of the schema.
#[derive(Debug, Clone, Copy)]
struct Leaf {
    /// Its position among all leaves.
    index: usize,
    form: Form,
    /// The definition level of a value that is there; 0 where none may be missing.
    level: i16,
    /// The definition level of an element of a list, whether it is null or not; `None` if it is no list.
    element: Option<i16>,
}

/// Forms of stored values, each of which becomes cells in its own way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Boolean,
    Signed,
    Unsigned,
    Float,
    Half,
    /// Whole numbers, or big-endian bytes, to be divided by this.
    Decimal(f64),
    Text,
    Other,
}

impl Form {
    fn of(leaf: &ColumnDescriptor) -> Self {
        let logical = leaf.logical_type_ref();
        let is_decimal = matches!(logical, Some(LogicalType::Decimal(_)))
            || leaf.converted_type() == ConvertedType::DECIMAL;
        let is_unsigned = match logical {
            Some(LogicalType::Integer(integer)) => !integer.is_signed,
            _ => matches!(
                leaf.converted_type(),
                ConvertedType::UINT_8
                    | ConvertedType::UINT_16
                    | ConvertedType::UINT_32
                    | ConvertedType::UINT_64
            ),
        };
        match leaf.physical_type() {
            Physical::INT96 => Self::Other,
            _ if is_decimal => Self::Decimal(10f64.powi(leaf.type_scale())),
            Physical::BOOLEAN => Self::Boolean,
            Physical::INT32 | Physical::INT64 if is_unsigned => Self::Unsigned,
            Physical::INT32 | Physical::INT64 => Self::Signed,
            Physical::FLOAT | Physical::DOUBLE => Self::Float,
            Physical::BYTE_ARRAY => Self::Text,
            Physical::FIXED_LEN_BYTE_ARRAY if logical == Some(&LogicalType::Float16) => Self::Half,
            Physical::FIXED_LEN_BYTE_ARRAY => Self::Other,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Boolean => Kind::Boolean,
            Self::Signed | Self::Unsigned => Kind::Integer,
            Self::Float | Self::Half | Self::Decimal(_) => Kind::Float,
            Self::Text => Kind::Text,
            Self::Other => Kind::Other,
        }
    }
}

impl std::fmt::Debug for ParquetReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetReader").field("leaves", &self.leaves).finish_non_exhaustive()
    }
}

impl From<ParquetError> for Trouble {
    fn from(error: ParquetError) -> Self {
        let text = error.to_string();
        let advice = if text.contains("Disabled feature") || text.contains("not supported") {
            "; write it again with compression=\"zstd\" or \"snappy\""
        } else {
            ""
        };
        Self::Malformed(format!("{}{advice}", shown_whole(&text)))
    }
}

/// The definition level from which a list has an element; `None` if the leaf is no element of a plain list.
///
/// Source: Parquet's `LogicalTypes.md`, "Lists", with its rules for older files.
fn element_level(leaf: &ColumnDescriptor, root: &Type) -> Option<i16> {
    let basic = root.get_basic_info();
    let is_list = matches!(basic.logical_type_ref(), Some(LogicalType::List))
        || basic.converted_type() == ConvertedType::LIST;
    if !root.is_group() || !is_list || leaf.max_rep_level() != 1 {
        return None;
    }
    let [repeated] = root.get_fields() else { return None };
    let is_leaf = |field: &Type| field.is_primitive();
    let is_plain =
        is_leaf(repeated) || matches!(repeated.get_fields(), [element] if is_leaf(element));
    let is_optional = leaf.self_type().get_basic_info().repetition() == Repetition::OPTIONAL;
    is_plain.then(|| leaf.max_def_level() - i16::from(is_optional))
}

fn shown_whole(text: &str) -> String {
    const SHOWN_MAX: usize = 200;
    text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

/// Runs the decoder, which may give up on a damaged file with a panic.
fn decoded<T>(run: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Trouble::Malformed("it is damaged where its pages are decoded".to_owned()))
    })
}

impl ParquetReader {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<(Self, Vec<Column>), Trouble> {
        let mut file = File::open(path)?;
        check_footer(&mut file)?;
        let file = decoded(|| Ok(SerializedFileReader::new(file)?))?;
        let metadata = file.metadata().file_metadata();
        let schema = metadata.schema_descr();
        let (mut columns, mut leaves) = (Vec::new(), Vec::new());
        for (index, leaf) in schema.columns().iter().enumerate() {
            let name = leaf.path().string();
            if name.starts_with("__index_level_") {
                continue;
            }
            let (form, level) = (Form::of(leaf), leaf.max_def_level());
            let element = element_level(leaf, schema.get_column_root(index));
            let (name, kind) = match element {
                Some(_) if form != Form::Other => {
                    (schema.get_column_root(index).name().to_owned(), Kind::List)
                }
                None if leaf.max_rep_level() == 0 => (name, form.kind()),
                _ => (name, Kind::Other),
            };
            columns.push(Column { name, kind });
            leaves.push(Leaf { index, form, level, element });
        }
        if columns.len() > limits.columns_max {
            return Err(Trouble::Limit {
                what: "columns".to_owned(),
                actual: columns.len() as u64,
                max: limits.columns_max as u64,
                advice: "write the columns that are needed only",
            });
        }
        let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
        let readers = Vec::new();
        Ok((Self { file, leaves, group: 0, left: 0, readers, rows, limits }, columns))
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn next(
        &mut self,
        columns: &[Column],
        selected: &[usize],
        first_row: u64,
        rows_max: usize,
    ) -> Result<Option<(usize, Vec<Cells>)>, Trouble> {
        decoded(|| {
            while self.left == 0 {
                if self.group == self.file.num_row_groups() {
                    return Ok(None);
                }
                self.enter(selected)?;
            }
            let rows = rows_max.min(self.left).min(self.fitting(selected));
            let mut cells = Vec::with_capacity(selected.len());
            for (index, reader) in &mut self.readers {
                let read =
                    Reading { leaf: self.leaves[*index], rows, limits: self.limits }.cells(reader);
                let read = read.map_err(|flaw| {
                    let name = &columns[*index].name;
                    flaw.at(first_row, name, self.limits)
                })?;
                if read.len() != rows {
                    return Err(Trouble::Malformed(format!(
                        "column `{}` has fewer rows than the file",
                        shown(&columns[*index].name)
                    )));
                }
                cells.push(read);
            }
            self.left -= rows;
            Ok(Some((rows, cells)))
        })
    }

    /// Begins the next group of rows.
    fn enter(&mut self, selected: &[usize]) -> Result<(), Trouble> {
        let group = self.file.get_row_group(self.group)?;
        let rows = group.metadata().num_rows();
        self.left = usize::try_from(rows)
            .map_err(|_| Trouble::Malformed("a group has a negative number of rows".to_owned()))?;
        self.readers.clear();
        for column in selected {
            self.readers.push((*column, group.get_column_reader(self.leaves[*column].index)?));
        }
        self.group += 1;
        Ok(())
    }

    /// Rows that make about a batch of bytes, by the sizes that the file gives.
    fn fitting(&self, selected: &[usize]) -> usize {
        let group = self.file.metadata().row_group(self.group - 1);
        let bytes = |column: &usize| {
            let (leaf, own) = (self.leaves[*column], group.column(self.leaves[*column].index));
            // Elements of lists take eight bytes each, however few in the file.
            let elements = if leaf.element.is_some() { own.num_values() } else { 0 };
            let size = own.uncompressed_size().max(elements.saturating_mul(8));
            usize::try_from(size).unwrap_or(usize::MAX)
        };
        let bytes = selected.iter().map(bytes).fold(0, usize::saturating_add);
        let rows = usize::try_from(group.num_rows()).unwrap_or(1).max(1);
        // Text from a dictionary is larger in memory than in the file, and so are small numbers.
        let a_row = (bytes / rows).max(8 * selected.len()).max(1);
        (self.limits.batch_bytes_max / a_row).max(1)
    }
}

/// Compares the length that the footer gives itself with its maximum.
fn check_footer(file: &mut File) -> Result<(), Trouble> {
    let no_parquet =
        || Trouble::Malformed("it is not a Parquet file, or it was cut off".to_owned());
    let length = file.metadata()?.len();
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(length.checked_sub(8).ok_or_else(no_parquet)?))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    match &magic {
        b"PAR1" => {}
        b"PARE" => {
            return Err(Trouble::Malformed(
                "it is encrypted; write it without encryption".to_owned(),
            ));
        }
        _ => return Err(no_parquet()),
    }
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    if footer > FOOTER_BYTES_MAX {
        return Err(Trouble::Limit {
            what: "bytes in its footer".to_owned(),
            actual: footer,
            max: FOOTER_BYTES_MAX,
            advice: "write fewer columns or larger row groups",
        });
    }
    Ok(())
}

/// Errors of a column.
enum Flaw {
    Decoder(ParquetError),
    /// A number does not fit, in this row of the batch.
    Large(usize),
    /// A text is so long, in this row of the batch.
    Long(usize, usize),
}

impl From<ParquetError> for Flaw {
    fn from(error: ParquetError) -> Self {
        Self::Decoder(error)
    }
}

impl Flaw {
    fn at(self, first_row: u64, column: &str, limits: Limits) -> Trouble {
        match self {
            Self::Decoder(error) => error.into(),
            Self::Large(row) => Trouble::Cell {
                row: first_row + row as u64,
                column: column.to_owned(),
                found: "a whole number above 9223372036854775807".to_owned(),
                wanted: "write the column as double".to_owned(),
            },
            Self::Long(row, bytes) => Trouble::Limit {
                what: format!(
                    "bytes of text in row {}, column `{}`",
                    first_row + row as u64,
                    shown(column)
                ),
                actual: bytes as u64,
                max: limits.text_bytes_max as u64,
                advice: "shorten it",
            },
        }
    }
}

/// Rows of a column to read.
#[derive(Clone, Copy)]
struct Reading {
    leaf: Leaf,
    rows: usize,
    limits: Limits,
}

/// Cells and the lists that they are elements of: where each ends, and true for each row without one.
struct Lists {
    ends: Vec<usize>,
    missing: Vec<bool>,
}

impl Reading {
    /// Reads the cells, one a row.
    #[expect(clippy::cast_precision_loss, reason = "decimals are read as floating-point numbers")]
    fn cells(self, reader: &mut ColumnReader) -> Result<Cells, Flaw> {
        let form = self.leaf.form;
        let (cells, lists) = match reader {
            ColumnReader::BoolColumnReader(reader) => {
                let (values, missing, lists) = self.read(reader)?;
                (Cells::booleans(spread(values, &missing, |value| value), missing), lists)
            }
            ColumnReader::Int32ColumnReader(reader) => {
                let (values, missing, lists) = self.read(reader)?;
                let cells = match form {
                    Form::Decimal(unit) => {
                        Cells::floats(spread(values, &missing, |n| f64::from(n) / unit), missing)
                    }
                    Form::Unsigned => Cells::integers(
                        spread(values, &missing, |n| i64::from(n.cast_unsigned())),
                        missing,
                    ),
                    _ => Cells::integers(spread(values, &missing, i64::from), missing),
                };
                (cells, lists)
            }
            ColumnReader::Int64ColumnReader(reader) => {
                let (values, missing, lists) = self.read(reader)?;
                if let Form::Decimal(unit) = form {
                    (Cells::floats(spread(values, &missing, |n| n as f64 / unit), missing), lists)
                } else {
                    let values = spread(values, &missing, |n| n);
                    let large = values.iter().position(|n| *n < 0);
                    if let Some(at) = large.filter(|_| form == Form::Unsigned) {
                        return Err(Flaw::Large(row_of(lists.as_ref(), at)));
                    }
                    (Cells::integers(values, missing), lists)
                }
            }
            ColumnReader::FloatColumnReader(reader) => {
                let (values, missing, lists) = self.read(reader)?;
                (Cells::floats(spread(values, &missing, f64::from), missing), lists)
            }
            ColumnReader::DoubleColumnReader(reader) => {
                let (values, missing, lists) = self.read(reader)?;
                (Cells::floats(spread(values, &missing, |n| n), missing), lists)
            }
            ColumnReader::ByteArrayColumnReader(reader) => self.texts(reader)?,
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                let (values, missing, lists) = self.read(reader)?;
                let number = |bytes: data_type::FixedLenByteArray| match (form, bytes.data()) {
                    (Form::Half, [low, high]) => f64::from(half::f16::from_le_bytes([*low, *high])),
                    (Form::Decimal(unit), bytes) => decimal(bytes) / unit,
                    _ => f64::NAN,
                };
                (Cells::floats(spread(values, &missing, number), missing), lists)
            }
            ColumnReader::Int96ColumnReader(_) => {
                let error = ParquetError::General("INT96 is not supported".to_owned());
                return Err(Flaw::Decoder(error));
            }
        };
        Ok(match lists {
            Some(Lists { ends, missing }) => Cells::lists(cells, ends, missing),
            None => cells,
        })
    }

    /// Reads texts, or decimals that are written as bytes.
    fn texts(
        self,
        reader: &mut ColumnReaderImpl<data_type::ByteArrayType>,
    ) -> Result<(Cells, Option<Lists>), Flaw> {
        let (values, missing, lists) = self.read(reader)?;
        if let Form::Decimal(unit) = self.leaf.form {
            let number = |n: ByteArray| decimal(n.data()) / unit;
            return Ok((Cells::floats(spread(values, &missing, number), missing), lists));
        }
        let elements = |lists: &Lists| lists.ends.last().copied().unwrap_or_default();
        let cells = lists.as_ref().map_or(self.rows, elements);
        let read = texts(&values, missing, cells, self.limits).map_err(|flaw| match flaw {
            Flaw::Long(at, bytes) => Flaw::Long(row_of(lists.as_ref(), at), bytes),
            other => other,
        });
        Ok((read?, lists))
    }

    /// The values that there are, and whether each cell has none; the latter is empty where all have one.
    #[expect(clippy::type_complexity, reason = "taken apart at once")]
    fn read<T: data_type::DataType>(
        self,
        reader: &mut ColumnReaderImpl<T>,
    ) -> Result<(Vec<T::T>, Vec<bool>, Option<Lists>), ParquetError> {
        let (rows, level) = (self.rows, self.leaf.level);
        let (mut values, mut levels) = (Vec::with_capacity(rows), Vec::new());
        let mut repeats = Vec::new();
        let mut done = 0;
        while done < rows {
            let of_lists = self.leaf.element.map(|_| &mut repeats);
            let (records, _, _) =
                reader.read_records(rows - done, Some(&mut levels), of_lists, &mut values)?;
            if records == 0 {
                break;
            }
            done += records;
        }
        let lists = self.leaf.element.map(|element| lists(&mut levels, &repeats, element));
        let all = level == 0 || levels.iter().all(|own| *own == level);
        let missing =
            if all { Vec::new() } else { levels.iter().map(|own| *own < level).collect() };
        Ok((values, missing, lists))
    }
}

/// The lists that levels tell of; leaves the levels of their elements.
fn lists(levels: &mut Vec<i16>, repeats: &[i16], element: i16) -> Lists {
    let (mut ends, mut missing) = (Vec::new(), Vec::new());
    let mut elements = Vec::with_capacity(levels.len());
    for (level, repeat) in levels.iter().zip(repeats) {
        if *repeat == 0 {
            ends.push(elements.len());
            // Below an empty list there is no list.
            missing.push(*level < element - 1);
        }
        if *level >= element {
            elements.push(*level);
            if let Some(end) = ends.last_mut() {
                *end = elements.len();
            }
        }
    }
    *levels = elements;
    if !missing.contains(&true) {
        missing.clear();
    }
    Lists { ends, missing }
}

/// The row of a cell: its list's.
fn row_of(lists: Option<&Lists>, cell: usize) -> usize {
    lists.map_or(cell, |lists| lists.ends.partition_point(|end| *end <= cell))
}

/// One value a row: those that there are in order, and the default where one is missing.
fn spread<A, B: Default>(values: Vec<A>, missing: &[bool], convert: impl Fn(A) -> B) -> Vec<B> {
    let mut values = values.into_iter().map(convert);
    if missing.is_empty() {
        return values.collect();
    }
    let cell =
        |missing: &bool| if *missing { B::default() } else { values.next().unwrap_or_default() };
    missing.iter().map(cell).collect()
}

fn texts(
    values: &[ByteArray],
    missing: Vec<bool>,
    rows: usize,
    limits: Limits,
) -> Result<Cells, Flaw> {
    let mut texts = Texts::default();
    let mut values = values.iter();
    for row in 0..rows {
        let is_missing = missing.get(row).copied().unwrap_or(false);
        let value = if is_missing { None } else { values.next() };
        let text = value.map_or(&[][..], ByteArray::data);
        if text.len() > limits.text_bytes_max {
            return Err(Flaw::Long(row, text.len()));
        }
        texts.push(text);
    }
    Ok(Cells::texts(texts, missing))
}

/// A big-endian number in two's complement of any length, as near as an `f64` comes to it.
fn decimal(bytes: &[u8]) -> f64 {
    let sign = if bytes.first().is_some_and(|byte| *byte >= 0x80) { -1.0 } else { 0.0 };
    bytes.iter().fold(sign, |number: f64, byte| number.mul_add(256.0, f64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use Kind::{Boolean, Float, Integer, Text};

    use super::*;
    use crate::dataset::Dataset;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");

    fn open(file: &str) -> Dataset {
        Dataset::open(&PathBuf::from(DATA).join(file), Limits::default()).unwrap()
    }

    /// All cells as text, `-` where one is missing, row by row.
    fn rows(mut dataset: Dataset, rows_max: usize) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        while let Some(batch) = dataset.next(rows_max).unwrap() {
            assert!(batch.rows <= rows_max && batch.first_row == rows.len() as u64 + 1);
            rows.extend((0..batch.rows).map(|row| {
                let text = |cells: &Cells| match cells.utf8(row).unwrap() {
                    Some(text) if !cells.is_missing(row) || text.is_empty() => text.into_owned(),
                    _ => "-".to_owned(),
                };
                batch.cells.iter().map(text).collect()
            }));
        }
        rows
    }

    #[test]
    fn pandas_polars_and_duckdb_write_the_same_table() {
        let long = "x".repeat(300);
        let expected = [
            ["1", "4611686018427387904", "4294967295", "0.5", "0.5", "true", "", "red"],
            ["-2", "1", "1", "-", "-", "false", "é", "blue"],
            ["-", "2", "2", "-2", "-2", "-", "-", "red"],
            ["4", "3", "3", "3.25", &f64::MAX.min(1e300).to_string(), "true", "a,b", "-"],
            ["5", "-", "4", "inf", "inf", "true", "\"", "red"],
            [
                "6",
                "-4611686018427387904",
                "-",
                &f64::from(0.1f32).to_string(),
                "0.1",
                "false",
                &long,
                "blue",
            ],
        ];
        for file in ["table_polars", "table_pandas", "table_gzip", "table_duckdb"] {
            let dataset = open(&format!("{file}.parquet"));
            assert_eq!(dataset.rows(), Some(6));
            let kinds: Vec<_> = dataset.columns().iter().map(|column| column.kind).collect();
            assert_eq!(kinds, [Integer, Integer, Integer, Float, Float, Boolean, Text, Text]);
            assert_eq!(rows(dataset, 4), expected, "{file}");
        }
    }

    #[test]
    fn long_files_are_read_page_by_page() {
        for rows_max in [7, 1000, 10_000] {
            let mut dataset = open("long.parquet");
            dataset.select([2, 0, 1]).unwrap();
            let rows = rows(dataset, rows_max);
            assert_eq!(rows.len(), 5000);
            for (number, row) in rows.iter().enumerate() {
                let half = f64::from(u32::try_from(number).unwrap()) / 2.0;
                let half = if number % 5 == 0 { "-".to_owned() } else { half.to_string() };
                let word =
                    if number % 11 == 0 { "-".to_owned() } else { format!("w{}", number % 7) };
                assert_eq!(row, &[number.to_string(), word, half]);
            }
        }
    }

    #[test]
    fn decimals_dates_structures_and_lists_are_read() {
        let mut dataset = open("kinds_duckdb.parquet");
        let names: Vec<_> = dataset.columns().iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["price", "wide", "day", "vector", "nested.a"]);
        let error = dataset.select([3]).unwrap_err().to_string();
        assert!(error.contains("one plain column for each value"), "{error}");
        dataset.take_lists();
        dataset.select([3]).unwrap();
        let batch = dataset.next(9).unwrap().unwrap();
        let (elements, own) = batch.cells[0].list(0).unwrap();
        let vector: Vec<_> = own.map(|at| elements.float(at).unwrap()).collect();
        assert_eq!(vector, [1.0, 2.0]);
        let mut dataset = open("kinds_duckdb.parquet");
        dataset.select([0, 1, 2, 4]).unwrap();
        assert_eq!(rows(dataset, 1), [["1234.56", "3", "2", "7"]]);
    }

    #[test]
    fn damaged_files_are_errors_wherever_the_damage_is() {
        let whole = std::fs::read(PathBuf::from(DATA).join("table_polars.parquet")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.parquet");
        let mut refused = 0;
        for at in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            let read = || -> Result<(), crate::dataset::DatasetError> {
                let mut dataset = Dataset::open(&path, Limits::default())?;
                while dataset.next(4)?.is_some() {}
                Ok(())
            };
            refused += usize::from(read().is_err());
        }
        assert!(refused > 10, "{refused}");
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let error = Dataset::open(&path, Limits::default()).unwrap_err().to_string();
        assert!(error.contains("not a Parquet file"), "{error}");
    }

    #[test]
    fn decimals_are_twos_complement() {
        assert!((decimal(&[0x30, 0x39]) - 12345.0).abs() < 1e-9);
        assert!((decimal(&[0xff]) - (-1.0)).abs() < 1e-9);
        assert!((decimal(&[0xcf, 0xc7]) - (-12345.0)).abs() < 1e-9);
        assert!((decimal(&[]) - 0.0).abs() < 1e-9);
    }

    #[test]
    fn missing_values_stand_where_they_were() {
        assert_eq!(spread(vec![1, 2], &[true, false, true, false], |n: i32| n), [0, 1, 0, 2]);
        assert_eq!(spread(vec![1, 2], &[], |n: i32| n), [1, 2]);
    }
}
