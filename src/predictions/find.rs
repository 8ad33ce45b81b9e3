//! Looks a prediction up in the folder of the table: its rows, and the outcomes that came.
//!
//! A name begins with the time of its prediction, so that the statistics of a file's row groups tell those that cannot
//! hold it; of the others, the names are read first, and all columns only where the name is. Files that vanish
//! meanwhile are passed over.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use parquet::{
    basic::Repetition,
    errors::ParquetError,
    file::{
        reader::{FileReader as _, RowGroupReader, SerializedFileReader},
        statistics::Statistics,
    },
    record::{Field, Row},
    schema::types::Type,
};
use serde_json::{Map, Value, json};

use crate::model::{Moment, PredictionId};

use super::files::{FileError, at, collect, in_file};

/// Cells of a row by the name of their column, in the order of the file.
pub type Cells = Map<String, Value>;

/// A prediction as the table has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// Its rows, in their order.
    pub rows: Vec<Cells>,
    /// The outcomes that were joined to its rows.
    pub outcomes: Vec<Cells>,
}

/// Looks a prediction up below the folder of the table; without rows if it is in no complete file.
///
/// # Errors
/// If the folder or a file cannot be read.
pub fn find(folder: &Path, id: PredictionId) -> Result<Found, FileError> {
    let mut found = Found::default();
    for (table, rows) in [("predictions", &mut found.rows), ("outcomes", &mut found.outcomes)] {
        let mut files = Vec::new();
        match collect(&folder.join(table), 2, &mut files) {
            Ok(()) => {}
            // No outcome may have come yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "outcomes" => {}
            Err(error) => return Err(at(&folder.join(table))(error)),
        }
        for (_, path, _) in files {
            if may_hold(&path, id) {
                search(&path, id, rows)?;
            }
        }
        rows.sort_by_key(|row| row.get("row").and_then(Value::as_i64));
    }
    Ok(found)
}

/// True unless a file was completed before the prediction was made.
fn may_hold(path: &Path, id: PredictionId) -> bool {
    let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
    let since_1970 = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
    changed.ok().and_then(since_1970).is_none_or(|changed| changed >= id.made_at())
}

fn search(path: &PathBuf, id: PredictionId, rows: &mut Vec<Cells>) -> Result<(), FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(path)(error)),
    };
    let reader = SerializedFileReader::new(file).map_err(in_file(path))?;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(in_file(path))?;
        if is_possible(&*group, id) {
            rows_of(&*group, id, rows).map_err(in_file(path))?;
        }
    }
    Ok(())
}

/// True unless the statistics of the names leave this one out.
fn is_possible(group: &dyn RowGroupReader, id: PredictionId) -> bool {
    let mut columns = group.metadata().columns().iter();
    let names = columns.find(|column| column.column_path().string() == "prediction_id");
    let Some(Statistics::ByteArray(names)) = names.and_then(|names| names.statistics()) else {
        return true;
    };
    let id = id.as_str().as_bytes();
    names.min_opt().is_none_or(|min| min.data() <= id)
        && names.max_opt().is_none_or(|max| max.data() >= id)
}

fn rows_of(
    group: &dyn RowGroupReader,
    id: PredictionId,
    rows: &mut Vec<Cells>,
) -> Result<(), ParquetError> {
    let is_it = |row: &Row, column: usize| {
        let field = row.get_column_iter().nth(column);
        matches!(field, Some((_, Field::Str(name))) if name == id.as_str())
    };
    let name = Type::primitive_type_builder("prediction_id", parquet::basic::Type::BYTE_ARRAY)
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(parquet::basic::LogicalType::String))
        .build()?;
    let names = Type::group_type_builder("schema").with_fields(vec![name.into()]).build()?;
    let mut places = Vec::new();
    for (place, row) in group.get_row_iter(Some(names))?.enumerate() {
        if is_it(&row?, 0) {
            places.push(place);
        }
    }
    let Some(last) = places.last() else { return Ok(()) };
    for (place, row) in group.get_row_iter(None)?.enumerate().take(last + 1) {
        let row = row?;
        if places.binary_search(&place).is_ok() {
            rows.push(
                row.get_column_iter().map(|(name, cell)| (name.clone(), value(cell))).collect(),
            );
        }
    }
    Ok(())
}

/// A cell as JSON: times as RFC 3339, numbers that are none as text.
fn value(cell: &Field) -> Value {
    match cell {
        Field::Bool(truth) => json!(truth),
        Field::Byte(number) => json!(number),
        Field::Short(number) => json!(number),
        Field::Int(number) => json!(number),
        Field::Long(number) => json!(number),
        Field::UByte(number) => json!(number),
        Field::UShort(number) => json!(number),
        Field::UInt(number) => json!(number),
        Field::ULong(number) => json!(number),
        // Its own digits, not those of the double.
        Field::Float(number) => {
            number.to_string().parse().map_or(Value::Null, |double: f64| float(double))
        }
        Field::Double(number) => float(*number),
        Field::Str(text) => json!(text),
        Field::TimestampMicros(time) => {
            let time = std::time::Duration::from_micros(u64::try_from(*time).unwrap_or(0));
            json!(Moment::at(time).to_string())
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::Null => Value::Null,
        other => json!(other.to_string()),
    }
}

fn float(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or_else(|| json!(number.to_string()), Value::Number)
}
