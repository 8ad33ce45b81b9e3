//! Columns of data become inputs of a model.
//!
//! By name, where every input has its column (`amount`) or its columns (`features[0]`, `features[1]`, ...); else, for
//! a model of one input, by the names that its description gives, or all columns in the order of the file. A column of
//! lists fills an input by itself, with the values of a row.
//!
//! Recorded rows name their columns by features: by the version's own names, else in the order of the signature, which
//! is the order in which they were written.

use std::ops::Range;

use half::{bf16, f16};

use crate::{
    dataset::{Batch, Cells, Dataset, DatasetError, Kind, Wrong},
    model::{Input, TensorSpec},
    tensor::{Data, DataType, Element, Shape, Strings, Tensor},
};

use super::{Subject, ValidationError};

/// The columns of each input.
#[derive(Debug)]
pub(super) struct Binding {
    /// Those that must be there come first.
    slots: Vec<Slot>,
    required: usize,
    /// True if the first dimension of the inputs counts rows.
    has_rows: bool,
    /// True if a run has one row.
    one_row: bool,
}

/// A tensor and its columns.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    spec: TensorSpec,
    /// The dimensions of one row; `None` where each list says them.
    dims: Option<Vec<i64>>,
    /// Columns of the data, in the order of the elements.
    columns: Vec<usize>,
    /// True if the first dimension counts rows.
    has_rows: bool,
}

impl Binding {
    pub(super) fn new(
        subject: &Subject<'_>,
        data: &Dataset,
        features: &[usize],
    ) -> Result<Self, ValidationError> {
        let inputs = &subject.signature.inputs;
        let by_name: Option<Vec<Vec<usize>>> =
            inputs.iter().map(|spec| columns_named(&spec.name, data, features)).collect();
        let columns = match (by_name, inputs.as_slice()) {
            (Some(columns), _) if !inputs.is_empty() => columns,
            (_, [_]) if !subject.feature_names.is_empty() => {
                let names = subject.feature_names.iter();
                vec![names.map(|name| data.column(name)).collect::<Result<_, _>>()?]
            }
            (_, [spec]) => vec![only_input(subject, spec, data, features)?],
            _ => return Err(unnamed(subject, data, features)),
        };
        Self::of(subject, data, columns.into_iter().map(Some).collect())
    }

    /// Binds columns as the table of predictions names them; `names` are those of each input's features.
    pub(super) fn recorded(
        subject: &Subject<'_>,
        data: &Dataset,
        features: &[usize],
        names: &[Option<Vec<String>>],
    ) -> Result<Self, ValidationError> {
        let signature = subject.signature;
        let (has_rows, _) = rows_of(subject);
        let described = [Some(subject.feature_names.clone()).filter(|names| !names.is_empty())];
        let described: &[_] = if signature.inputs.len() == 1 { &described } else { &[] };
        let columns_of = |(place, spec): (usize, &TensorSpec)| {
            let own = [names, described].into_iter().filter_map(|names| names.get(place)?.as_ref());
            let all = |names: &Vec<String>| {
                names.iter().map(|name| feature_named(name, data, features)).collect()
            };
            own.map(all).find_map(|found: Option<Vec<usize>>| found).or_else(|| {
                columns_named(&spec.name, data, features)
                    .or_else(|| columns_named(&format!("input:{}", spec.name), data, features))
            })
        };
        let all = signature.inputs.iter().chain(&signature.optional).enumerate();
        let mut columns: Vec<Option<Vec<usize>>> = all.map(columns_of).collect();
        let taken: Vec<usize> = columns.iter().flatten().flatten().copied().collect();
        let mut left = features.iter().copied().filter(|column| !taken.contains(column));
        let mut is_in_order = false;
        for (place, spec) in signature.inputs.iter().enumerate() {
            if columns[place].is_none() {
                let width = width_of(spec, has_rows).unwrap_or(usize::MAX);
                columns[place] = Some(next_columns(&mut left, width, data));
                is_in_order = true;
            }
        }
        let surplus = left.count();
        if is_in_order && surplus > 0 {
            let names: Vec<_> =
                features.iter().map(|at| data.columns()[*at].name.clone()).collect();
            return Err(ValidationError::Columns(format!(
                "`{}` has {surplus} columns more than the inputs of version {} have values a row; leave out what is no input \
                 with --ignore: it has {}",
                data.path().display(),
                subject.version,
                super::listed(&names)
            )));
        }
        Self::of(subject, data, columns)
    }

    /// Binds the required inputs, then those that may be left out and have columns.
    fn of(
        subject: &Subject<'_>,
        data: &Dataset,
        columns: Vec<Option<Vec<usize>>>,
    ) -> Result<Self, ValidationError> {
        let (has_rows, one_row) = rows_of(subject);
        let inputs = subject.signature.inputs.iter().chain(&subject.signature.optional);
        let mut slots = Vec::with_capacity(columns.len());
        for (spec, columns) in inputs.zip(columns) {
            let Some(columns) = columns else { continue };
            slots.push(
                Slot::new(spec, &columns, data, has_rows)
                    .map_err(|why| misfit(subject, spec, &columns, data, &why))?,
            );
        }
        let required = subject.signature.inputs.len().min(slots.len());
        Ok(Self { slots, required, has_rows, one_row })
    }

    /// The outputs that were recorded, by their place in the signature: columns `output:NAME`.
    pub(super) fn outputs(
        subject: &Subject<'_>,
        data: &Dataset,
    ) -> Result<Vec<Option<Slot>>, ValidationError> {
        let (has_rows, _) = rows_of(subject);
        let all: Vec<usize> = (0..data.columns().len()).collect();
        let slot = |spec: &TensorSpec| {
            let Some(columns) = columns_named(&format!("output:{}", spec.name), data, &all) else {
                return Ok(None);
            };
            let slot = Slot::new(spec, &columns, data, has_rows);
            slot.map(Some).map_err(|why| {
                ValidationError::Columns(format!(
                    "output `{}` of version {} cannot be compared with columns `output:{0}`: {why}",
                    spec.name, subject.version
                ))
            })
        };
        subject.signature.outputs.iter().map(slot).collect()
    }

    /// The tensors and their columns.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Those that must be there.
    pub(super) fn required(&self) -> &[Slot] {
        &self.slots[..self.required]
    }

    /// The columns that are needed.
    pub(super) fn columns(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().flat_map(|slot| slot.columns.iter().copied())
    }

    /// True if a run has one row.
    pub(super) fn is_one_row(&self) -> bool {
        self.one_row
    }

    /// The inputs for rows of a batch, in the signature's order; those that hold nothing and may be left out are.
    pub(super) fn inputs(
        &self,
        data: &Dataset,
        batch: &Batch,
        rows: Range<usize>,
    ) -> Result<Vec<Input>, ValidationError> {
        debug_assert!(self.has_rows || rows.len() == 1, "a run without rows is one row");
        let (required, optional) = self.slots.split_at(self.required);
        let given = optional.iter().filter(|slot| slot.lack(data, batch, rows.clone()).is_none());
        let input = |slot: &Slot| {
            let tensor = slot.tensor(data, batch, rows.clone())?;
            Ok(Input { name: slot.spec.name.clone(), tensor })
        };
        required.iter().chain(given).map(input).collect()
    }
}

impl Slot {
    fn new(
        spec: &TensorSpec,
        columns: &[usize],
        data: &Dataset,
        has_rows: bool,
    ) -> Result<Self, String> {
        let is_list = |column: &usize| data.columns()[*column].kind == Kind::List;
        let dims = match columns {
            [one] if is_list(one) => None,
            _ if columns.iter().any(is_list) => {
                return Err("one of them holds lists, which fill an input alone".to_owned());
            }
            _ => Some(row_dims(spec, columns.len(), has_rows)?),
        };
        Ok(Self { spec: spec.clone(), dims, columns: columns.to_vec(), has_rows })
    }

    /// Its columns.
    pub(super) fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Values of a row, where lists say it; `None` where columns do, or nothing is there.
    pub(super) fn length(&self, data: &Dataset, batch: &Batch, row: usize) -> Option<usize> {
        let cells = self.cells(data, batch);
        cells.first()?.list(row).map(|(_, own)| own.len())
    }

    /// The columns without a value in any of these rows.
    pub(super) fn empty_columns(
        &self,
        data: &Dataset,
        batch: &Batch,
        rows: &[usize],
    ) -> impl Iterator<Item = usize> {
        let cells = self.cells(data, batch).into_iter().zip(&self.columns);
        let empty = cells.filter(|(cells, _)| rows.iter().all(|row| cells.is_null(*row)));
        empty.map(|(_, column)| *column)
    }

    /// The first of these rows that lacks a value, and the column.
    pub(super) fn lack(
        &self,
        data: &Dataset,
        batch: &Batch,
        rows: Range<usize>,
    ) -> Option<(usize, usize)> {
        let cells = self.cells(data, batch);
        let lacks = |row: usize| {
            let mut cells = cells.iter().zip(&self.columns);
            cells.find(|(cells, _)| cells.is_null(row)).map(|(_, column)| (row, *column))
        };
        rows.into_iter().find_map(lacks)
    }

    fn cells<'b>(&self, data: &Dataset, batch: &'b Batch) -> Vec<&'b Cells> {
        let place = |column: &usize| data.place(*column).expect("needed columns are selected");
        self.columns.iter().map(|column| &batch.cells[place(column)]).collect()
    }

    /// The tensor of rows of a batch.
    pub(super) fn tensor(
        &self,
        data: &Dataset,
        batch: &Batch,
        rows: Range<usize>,
    ) -> Result<Tensor, ValidationError> {
        let (cells, datatype) = (self.cells(data, batch), self.spec.datatype);
        let wrong = |row: usize, column: usize, wrong: Wrong| -> DatasetError {
            data.wrong_cell(batch.first_row + row as u64, self.columns[column], wrong)
        };
        let (filled, dims) = match &self.dims {
            Some(dims) => {
                let filled = fill(datatype, &cells, rows.clone());
                let filled = filled.map_err(|(row, column, why)| wrong(row, column, why))?;
                (filled, dims.clone())
            }
            None => {
                self.of_lists(cells[0], rows.clone()).map_err(|(row, why)| wrong(row, 0, why))?
            }
        };
        let leading = self.has_rows.then(|| i64::try_from(rows.len()).expect("a batch is small"));
        let dims: Vec<i64> = leading.into_iter().chain(dims).collect();
        let shape = Shape::new(&dims).expect("dimensions are not negative");
        let tensor = match filled {
            Data::Raw(raw) => Tensor::from_raw(datatype, shape, raw),
            data => Tensor::new(shape, data),
        };
        Ok(tensor.expect("columns were counted against the dimensions"))
    }

    /// The elements of lists, and the dimensions of one row.
    fn of_lists(
        &self,
        cells: &Cells,
        rows: Range<usize>,
    ) -> Result<(Data, Vec<i64>), (usize, Wrong)> {
        let (mut all, mut length) = (0..0, None);
        for row in rows.clone() {
            let wrong = |wanted: &str| (row, cells.wrong(row, wanted));
            let list = cells.list(row).filter(|_| !cells.is_null(row));
            let (_, own) = list.ok_or_else(|| wrong("the model's input has no missing values"))?;
            if *length.get_or_insert(own.len()) != own.len() {
                return Err(wrong("lists of one run are equally long; use --batch 1"));
            }
            all = if row == rows.start { own } else { all.start..own.end };
        }
        let first = rows.start;
        let dims = row_dims(&self.spec, length.unwrap_or(0), self.has_rows);
        let dims = dims.map_err(|why| (first, cells.wrong(first, &why)))?;
        let Some((elements, _)) = cells.list(first) else { return Ok((Data::Fp32(vec![]), dims)) };
        let row_of = |element: usize| {
            let has = |row: &usize| cells.list(*row).is_some_and(|(_, own)| own.contains(&element));
            rows.clone().find(has).unwrap_or(first)
        };
        let filled = fill(self.spec.datatype, &[elements], all);
        let filled = filled.map_err(|(element, _, why)| (row_of(element), why))?;
        Ok((filled, dims))
    }
}

/// Values of one row, where the signature says it.
fn width_of(spec: &TensorSpec, has_rows: bool) -> Option<usize> {
    let dims = spec.dims.as_deref()?;
    let own = if has_rows { dims.get(1..).unwrap_or_default() } else { dims };
    own.iter().try_fold(1_usize, |width, dim| width.checked_mul(usize::try_from(*dim).ok()?))
}

/// The next columns that nobody has: a column of lists, or so many others.
fn next_columns(
    left: &mut impl Iterator<Item = usize>,
    width: usize,
    data: &Dataset,
) -> Vec<usize> {
    let Some(first) = left.next() else { return Vec::new() };
    if data.columns()[first].kind == Kind::List {
        return vec![first];
    }
    std::iter::once(first).chain(left.take(width.saturating_sub(1))).collect()
}

/// The column of a feature; one whose name was taken has a prefix.
fn feature_named(name: &str, data: &Dataset, features: &[usize]) -> Option<usize> {
    let find =
        |name: &str| features.iter().copied().find(|column| data.columns()[*column].name == name);
    find(name).or_else(|| find(&format!("input:{name}")))
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
) -> Result<Vec<usize>, ValidationError> {
    if features.is_empty() {
        return Err(misfit(subject, spec, &[], data, "there is no column beside the labels"));
    }
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
fn fill(datatype: DataType, cells: &[&Cells], rows: Range<usize>) -> Result<Data, Misfit> {
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
            for row in rows {
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
    rows: Range<usize>,
    element: impl Fn(&Cells, usize) -> Result<T, Wrong>,
) -> Result<Vec<T>, Misfit> {
    let mut values = Vec::with_capacity(rows.len() * cells.len());
    for row in rows {
        for (column, cells) in cells.iter().enumerate() {
            values.push(element(cells, row).map_err(|wrong| (row, column, wrong))?);
        }
    }
    Ok(values)
}

/// Floating-point numbers; a missing one is NaN.
fn floats<T>(
    cells: &[&Cells],
    rows: Range<usize>,
    convert: impl Fn(f64) -> T,
) -> Result<Vec<T>, Misfit> {
    all(cells, rows, |cells, row| cells.float(row).map(&convert))
}

fn integers<T: TryFrom<i64>>(
    cells: &[&Cells],
    rows: Range<usize>,
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
        let fill = |datatype, rows| fill(datatype, &[&cells], 0..rows);
        assert_eq!(fill(DataType::Fp32, 2), Ok(Data::Fp32(vec![1.0, 300.0])));
        assert_eq!(fill(DataType::Int64, 2), Ok(Data::Int64(vec![1, 300])));
        let (row, _, wrong) = fill(DataType::Uint8, 2).unwrap_err();
        assert_eq!((row, wrong.wanted.as_str()), (1, "the model's input is UINT8"));
        let (row, _, wrong) = fill(DataType::Int64, 3).unwrap_err();
        assert!(row == 2 && wrong.wanted.contains("no missing values"));
    }
}
