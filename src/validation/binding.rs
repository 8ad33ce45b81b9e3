//! Columns of data become inputs of a model.
//!
//! By name, where every input has its column (`amount`) or its columns (`features[0]`, `features[1]`, ...); else, for
//! a model of one input, by the names that its description gives, or all columns in the order of the file.

use half::{bf16, f16};

use crate::{
    dataset::{Batch, Cells, Dataset, Wrong},
    model::{Input, TensorSpec},
    tensor::{Data, DataType, Element, Shape, Strings, Tensor},
};

use super::{Subject, ValidationError};

/// The columns of each input.
#[derive(Debug)]
pub(super) struct Binding {
    slots: Vec<Slot>,
    /// True if the first dimension of the inputs counts rows.
    has_rows: bool,
    /// True if a run has one row.
    one_row: bool,
}

#[derive(Debug)]
struct Slot {
    name: String,
    datatype: DataType,
    /// The dimensions of one row.
    dims: Vec<i64>,
    /// Columns of the data, in the order of the elements.
    columns: Vec<usize>,
}

impl Binding {
    pub(super) fn new(
        subject: &Subject<'_>,
        data: &Dataset,
        features: &[usize],
    ) -> Result<Self, ValidationError> {
        let inputs = &subject.signature.inputs;
        let (has_rows, one_row) = rows_of(subject);
        let by_name: Option<Vec<Vec<usize>>> =
            inputs.iter().map(|spec| columns_named(&spec.name, data, features)).collect();
        let columns = match (by_name, inputs.as_slice()) {
            (Some(columns), _) if !inputs.is_empty() => columns,
            (_, [_]) if !subject.feature_names.is_empty() => {
                let names = subject.feature_names.iter();
                vec![names.map(|name| data.column(name)).collect::<Result<_, _>>()?]
            }
            (_, [spec]) => vec![only_input(subject, spec, data, features, has_rows)?],
            _ => return Err(unnamed(subject, data, features)),
        };
        let mut slots = Vec::with_capacity(inputs.len());
        for (spec, columns) in inputs.iter().zip(columns) {
            let dims = row_dims(spec, columns.len(), has_rows)
                .map_err(|why| misfit(subject, spec, &columns, data, &why))?;
            slots.push(Slot { name: spec.name.clone(), datatype: spec.datatype, dims, columns });
        }
        Ok(Self { slots, has_rows, one_row })
    }

    /// The columns that are needed.
    pub(super) fn columns(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().flat_map(|slot| slot.columns.iter().copied())
    }

    /// True if a run has one row.
    pub(super) fn is_one_row(&self) -> bool {
        self.one_row
    }

    /// The inputs for a batch, in the signature's order.
    pub(super) fn inputs(
        &self,
        data: &Dataset,
        batch: &Batch,
    ) -> Result<Vec<Input>, ValidationError> {
        let input = |slot: &Slot| {
            let place = |column: &usize| data.place(*column).expect("needed columns are selected");
            let cells: Vec<&Cells> =
                slot.columns.iter().map(|column| &batch.cells[place(column)]).collect();
            let filled = fill(slot.datatype, &cells, batch.rows);
            let data = filled.map_err(|(row, column, wrong)| {
                data.wrong_cell(batch.first_row + row as u64, slot.columns[column], wrong)
            })?;
            let leading =
                self.has_rows.then(|| i64::try_from(batch.rows).expect("a batch is small"));
            let dims: Vec<i64> = leading.into_iter().chain(slot.dims.iter().copied()).collect();
            let shape = Shape::new(&dims).expect("dimensions are not negative");
            let tensor = match data {
                Data::Raw(raw) => Tensor::from_raw(slot.datatype, shape, raw),
                data => Tensor::new(shape, data),
            };
            let tensor = tensor.expect("columns were counted against the dimensions");
            Ok(Input { name: slot.name.clone(), tensor })
        };
        self.slots.iter().map(input).collect()
    }
}

/// Tells whether a first dimension counts rows, and whether a run must have one row.
fn rows_of(subject: &Subject<'_>) -> (bool, bool) {
    if subject.rows_max > 0 {
        return (true, false);
    }
    let inputs = &subject.signature.inputs;
    let first = |spec: &TensorSpec| spec.dims.as_ref().and_then(|dims| dims.first().copied());
    let common = inputs.first().and_then(first);
    let same = inputs.iter().chain(&subject.signature.outputs).all(|spec| first(spec) == common);
    match common {
        Some(1) if same => (true, true),
        Some(-1) if inputs.iter().all(|spec| first(spec) == Some(-1)) => (true, true),
        _ => (false, true),
    }
}

/// The columns with an input's name: one of that name, or `name[0]` and so on.
fn columns_named(name: &str, data: &Dataset, features: &[usize]) -> Option<Vec<usize>> {
    let find =
        |name: &str| features.iter().copied().find(|column| data.columns()[*column].name == name);
    if let Some(column) = find(name) {
        return Some(vec![column]);
    }
    let columns: Vec<usize> = (0..).map_while(|index| find(&format!("{name}[{index}]"))).collect();
    (!columns.is_empty()).then_some(columns)
}

/// The columns of a model's only input: all, or the only text if it takes one.
fn only_input(
    subject: &Subject<'_>,
    spec: &TensorSpec,
    data: &Dataset,
    features: &[usize],
    has_rows: bool,
) -> Result<Vec<usize>, ValidationError> {
    if features.is_empty() {
        return Err(misfit(subject, spec, &[], data, "there is no column beside the labels"));
    }
    row_dims(spec, features.len(), has_rows)
        .map_err(|why| misfit(subject, spec, features, data, &why))?;
    Ok(features.to_vec())
}

/// The dimensions of one row that has so many values.
fn row_dims(spec: &TensorSpec, values: usize, has_rows: bool) -> Result<Vec<i64>, String> {
    let count = i64::try_from(values).expect("columns are few");
    let Some(dims) = &spec.dims else { return Ok(vec![count]) };
    let dims = if has_rows { dims.get(1..).unwrap_or_default() } else { dims };
    let open = dims.iter().filter(|dim| **dim < 0).count();
    let fixed: i64 = dims.iter().filter(|dim| **dim >= 0).product();
    let mut dims = dims.to_vec();
    match open {
        0 if fixed == count => Ok(dims),
        0 => Err(format!("it takes {fixed} {} a row", plural(fixed))),
        1 if fixed > 0 && count % fixed == 0 => {
            for dim in dims.iter_mut().filter(|dim| **dim < 0) {
                *dim = count / fixed;
            }
            Ok(dims)
        }
        1 => Err(format!("it takes a multiple of {fixed} values a row")),
        _ => Err("more than one of its dimensions is open, so columns cannot fill it".to_owned()),
    }
}

fn plural(values: i64) -> &'static str {
    if values == 1 { "value" } else { "values" }
}

fn misfit(
    subject: &Subject<'_>,
    spec: &TensorSpec,
    columns: &[usize],
    data: &Dataset,
    why: &str,
) -> ValidationError {
    let names: Vec<_> =
        columns.iter().take(6).map(|c| format!("`{}`", data.columns()[*c].name)).collect();
    let more = columns.len().saturating_sub(names.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    ValidationError::Columns(format!(
        "input `{}` of version {} cannot be filled from {} columns ({}{more}): {why}; leave columns out with --ignore, or name \
         them `{0}[0]`, `{0}[1]` and so on",
        spec.name,
        subject.version,
        columns.len(),
        names.join(", ")
    ))
}

/// A model of several inputs, not all of which have columns of their name.
fn unnamed(subject: &Subject<'_>, data: &Dataset, features: &[usize]) -> ValidationError {
    let inputs = &subject.signature.inputs;
    let missing = inputs.iter().filter(|spec| columns_named(&spec.name, data, features).is_none());
    let missing: Vec<_> = missing.map(|spec| format!("`{}`", spec.name)).collect();
    let (path, missing) = (data.path().display(), missing.join(", "));
    ValidationError::Columns(format!(
        "`{path}` has no column for {missing}; a model of several inputs gets each from the column of its name, or from \
         `name[0]`, `name[1]` and so on"
    ))
}

/// A cell that does not fit: row, column, and what is wrong.
type Misfit = (usize, usize, Wrong);

/// The elements, row after row.
fn fill(datatype: DataType, cells: &[&Cells], rows: usize) -> Result<Data, Misfit> {
    match datatype {
        DataType::Fp32 => floats(cells, rows, |number| {
            #[expect(clippy::cast_possible_truncation, reason = "rounding is what the type means")]
            let rounded = number as f32;
            rounded
        })
        .map(Data::Fp32),
        DataType::Fp64 => floats(cells, rows, |number| number).map(Data::Fp64),
        DataType::Fp16 => floats(cells, rows, f16::from_f64).map(f16::wrap),
        DataType::Bf16 => floats(cells, rows, bf16::from_f64).map(bf16::wrap),
        DataType::Int8 => integers(cells, rows, "INT8").map(Data::Int8),
        DataType::Int16 => integers(cells, rows, "INT16").map(Data::Int16),
        DataType::Int32 => integers(cells, rows, "INT32").map(Data::Int32),
        DataType::Int64 => integers(cells, rows, "INT64").map(Data::Int64),
        DataType::Uint8 => integers(cells, rows, "UINT8").map(Data::Uint8),
        DataType::Uint16 => integers(cells, rows, "UINT16").map(Data::Uint16),
        DataType::Uint32 => integers(cells, rows, "UINT32").map(Data::Uint32),
        DataType::Uint64 => integers(cells, rows, "UINT64").map(Data::Uint64),
        DataType::Bool => all(cells, rows, |cells, row| {
            cells
                .boolean(row)?
                .ok_or_else(|| cells.wrong(row, "the model's input has no missing values"))
        })
        .map(Data::Bool),
        DataType::Bytes => {
            let mut strings = Strings::default();
            for row in 0..rows {
                for (column, cells) in cells.iter().enumerate() {
                    let text = cells.text(row).ok_or_else(|| {
                        (row, column, cells.wrong(row, "the model's input has no missing values"))
                    })?;
                    strings.push(&text);
                }
            }
            Ok(Data::Bytes(strings))
        }
    }
}

fn all<T>(
    cells: &[&Cells],
    rows: usize,
    element: impl Fn(&Cells, usize) -> Result<T, Wrong>,
) -> Result<Vec<T>, Misfit> {
    let mut values = Vec::with_capacity(rows * cells.len());
    for row in 0..rows {
        for (column, cells) in cells.iter().enumerate() {
            values.push(element(cells, row).map_err(|wrong| (row, column, wrong))?);
        }
    }
    Ok(values)
}

/// Floating-point numbers; a missing one is NaN.
fn floats<T>(cells: &[&Cells], rows: usize, convert: impl Fn(f64) -> T) -> Result<Vec<T>, Misfit> {
    all(cells, rows, |cells, row| cells.float(row).map(&convert))
}

fn integers<T: TryFrom<i64>>(
    cells: &[&Cells],
    rows: usize,
    datatype: &str,
) -> Result<Vec<T>, Misfit> {
    all(cells, rows, |cells, row| {
        let wrong = |wanted: &str| cells.wrong(row, wanted);
        let number = cells.integer(row)?;
        let number = number.ok_or_else(|| wrong("the model's input has no missing values"))?;
        T::try_from(number).map_err(|_| wrong(&format!("the model's input is {datatype}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dims: Option<&[i64]>) -> TensorSpec {
        let dims = dims.map(<[i64]>::to_vec);
        TensorSpec { name: "x".to_owned(), datatype: DataType::Fp32, dims, view: None }
    }

    #[test]
    fn columns_fill_the_dimensions_of_a_row() {
        let dims = |dims: Option<&[i64]>, values| row_dims(&spec(dims), values, true);
        assert_eq!(dims(Some(&[-1, 4]), 4), Ok(vec![4]));
        assert_eq!(dims(Some(&[-1, 1, 8, 8]), 64), Ok(vec![1, 8, 8]));
        assert_eq!(dims(Some(&[-1, -1, 3]), 12), Ok(vec![4, 3]));
        assert_eq!(dims(Some(&[-1]), 1), Ok(vec![]));
        assert_eq!(dims(None, 5), Ok(vec![5]));
        assert_eq!(dims(Some(&[-1, 4]), 5).unwrap_err(), "it takes 4 values a row");
        assert!(dims(Some(&[-1, -1, 3]), 4).unwrap_err().contains("multiple of 3"));
        assert!(dims(Some(&[-1, -1, -1]), 4).unwrap_err().contains("more than one"));
    }

    #[test]
    fn cells_become_elements_or_say_why_not() {
        let cells = Cells::floats(vec![1.0, 300.0, f64::NAN], Vec::new());
        let fill = |datatype, rows| fill(datatype, &[&cells], rows);
        assert_eq!(fill(DataType::Fp32, 2), Ok(Data::Fp32(vec![1.0, 300.0])));
        assert_eq!(fill(DataType::Int64, 2), Ok(Data::Int64(vec![1, 300])));
        let (row, _, wrong) = fill(DataType::Uint8, 2).unwrap_err();
        assert_eq!((row, wrong.wanted.as_str()), (1, "the model's input is UINT8"));
        let (row, _, wrong) = fill(DataType::Int64, 3).unwrap_err();
        assert!(row == 2 && wrong.wanted.contains("no missing values"));
    }
}
