//! Labels: where they stand, and a first pass over all of them.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use crate::dataset::{Batch, Cells, Dataset, Wrong};

use super::{DataReport, Request, Surroundings, Task, ValidationError};

/// Names that a column of labels usually has.
const USUAL: [&str; 4] = ["label", "target", "class", "y"];

/// Rows of labels that are read at a time.
const ROWS: usize = 4096;

/// Place of the labels.
#[derive(Debug)]
pub(super) enum Labels {
    /// A column of the data.
    Column(usize),
    /// The only column of another file.
    File(Box<Dataset>),
}

/// Kinds of labels, the narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LabelKind {
    /// Only 0 and 1, or truth values.
    Binary,
    /// Whole numbers.
    Whole,
    /// Numbers.
    Number,
    /// Text that is no number.
    Text,
}

/// Findings of a pass over the labels.
#[derive(Debug)]
pub(super) struct Survey {
    /// Rows to go through.
    pub(super) rows: u64,
    /// Rows without a label.
    pub(super) unlabelled: u64,
    pub(super) kind: LabelKind,
    /// The different labels, in order; `None` if there are more than `classes_max`.
    pub(super) classes: Option<Vec<String>>,
}

/// The labels of a batch; `None` where there is none.
#[derive(Debug)]
pub(super) enum Truth {
    Classes(Vec<Option<String>>),
    Numbers(Vec<Option<f64>>),
}

impl Labels {
    pub(super) fn find(request: &Request, data: &Dataset) -> Result<Self, ValidationError> {
        if let Some(path) = &request.labels {
            let labels = Dataset::open(path, request.settings.limits())?;
            if labels.columns().len() != 1 {
                let (path, columns) = (path.display(), labels.columns().len());
                return Err(ValidationError::Columns(format!(
                    "`{path}` has {columns} columns; a file of labels has one"
                )));
            }
            if let (Some(rows), Some(others)) = (data.rows(), labels.rows())
                && rows != others
            {
                return Err(unequal(data, rows, &labels, others));
            }
            return Ok(Self::File(Box::new(labels)));
        }
        let columns = data.columns();
        match request.label.as_deref() {
            Some("last") if columns.iter().all(|column| column.name != "last") => {
                Ok(Self::Column(columns.len() - 1))
            }
            Some(name) => Ok(Self::Column(data.column(name)?)),
            None => {
                let usual = |name: &str| USUAL.iter().any(|usual| name.eq_ignore_ascii_case(usual));
                let mut found = (0..columns.len()).filter(|index| usual(&columns[*index].name));
                match (found.next(), found.next()) {
                    (Some(column), None) => Ok(Self::Column(column)),
                    _ => Err(ValidationError::Columns(format!(
                        "`{}` does not say which column has the labels; name it with --label, or a file of labels with \
                         --labels",
                        data.path().display()
                    ))),
                }
            }
        }
    }

    /// The column of the data that they stand in.
    pub(super) fn column(&self) -> Option<usize> {
        match self {
            Self::Column(column) => Some(*column),
            Self::File(_) => None,
        }
    }

    /// The columns that are neither label nor ignored.
    pub(super) fn features(
        &self,
        request: &Request,
        data: &Dataset,
    ) -> Result<Vec<usize>, ValidationError> {
        let ignored = request.ignored.iter().map(|name| data.column(name));
        let ignored: Vec<usize> = ignored.collect::<Result<_, _>>()?;
        let all = 0..data.columns().len();
        Ok(all.filter(|c| Some(*c) != self.column() && !ignored.contains(c)).collect())
    }

    /// The labels of the rows of a batch, which must come in order.
    pub(super) fn of(
        &mut self,
        data: &Dataset,
        batch: &Batch,
        task: Task,
    ) -> Result<Truth, ValidationError> {
        let mut truth = match task {
            Task::Classification => Truth::Classes(Vec::with_capacity(batch.rows)),
            Task::Regression => Truth::Numbers(Vec::with_capacity(batch.rows)),
        };
        match self {
            Self::Column(column) => {
                let place = data.place(*column).expect("the column of labels is selected");
                truth.extend(&batch.cells[place]).map_err(|(row, wrong)| {
                    data.wrong_cell(batch.first_row + row as u64, *column, wrong)
                })?;
            }
            Self::File(labels) => {
                while truth.len() < batch.rows {
                    let Some(more) = labels.next(batch.rows - truth.len())? else {
                        let rows = batch.first_row - 1 + truth.len() as u64;
                        let last = batch.first_row - 1 + batch.rows as u64;
                        return Err(unequal(data, last, labels, rows));
                    };
                    truth.extend(&more.cells[0]).map_err(|(row, wrong)| {
                        labels.wrong_cell(more.first_row + row as u64, 0, wrong)
                    })?;
                }
            }
        }
        Ok(truth)
    }

    /// Checks, after so many rows, that data and labels end together.
    pub(super) fn check_end(
        &self,
        data: &mut Dataset,
        rows: u64,
        survey: &Survey,
        rows_max: Option<u64>,
    ) -> Result<(), ValidationError> {
        let Self::File(labels) = self else { return Ok(()) };
        if rows < survey.rows {
            return Err(unequal(data, rows, labels, survey.rows));
        }
        if rows_max.is_none_or(|max| rows < max) && data.next(1)?.is_some() {
            return Err(unequal(data, rows + 1, labels, rows));
        }
        Ok(())
    }
}

fn unequal(data: &Dataset, rows: u64, labels: &Dataset, others: u64) -> ValidationError {
    ValidationError::Columns(format!(
        "`{}` has {rows} rows and `{}` has {others} labels; they must be equal in number",
        data.path().display(),
        labels.path().display()
    ))
}

impl Truth {
    fn len(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    /// Appends cells; an error says which of them is wrong.
    fn extend(&mut self, cells: &Cells) -> Result<(), (usize, Wrong)> {
        for row in 0..cells.len() {
            match self {
                Self::Classes(classes) => classes.push(key(cells, row).map_err(|w| (row, w))?),
                Self::Numbers(numbers) => {
                    let number = cells.float(row).map_err(|wrong| (row, wrong))?;
                    if number.is_infinite() {
                        return Err((row, cells.wrong(row, "a finite number belongs there")));
                    }
                    numbers.push(Some(number).filter(|number| !number.is_nan()));
                }
            }
        }
        Ok(())
    }
}

/// The spelling of a label by which classes are compared; `None` where there is none.
fn key(cells: &Cells, row: usize) -> Result<Option<String>, Wrong> {
    if cells.is_missing(row) {
        return Ok(None);
    }
    Ok(cells.utf8(row)?.map(|text| spelling(&text)).filter(|text| !text.is_empty()))
}

/// One spelling for each class: `1.0` is `1`, `True` is `true`; spaces around it do not count.
pub(super) fn spelling(text: &str) -> String {
    let text = text.trim();
    for truth in ["true", "false"] {
        if text.eq_ignore_ascii_case(truth) {
            return truth.to_owned();
        }
    }
    let is_float =
        text.contains(['.', 'e', 'E']) && text.starts_with(|c: char| "+-.0123456789".contains(c));
    if is_float
        && let Ok(number) = text.parse::<f64>()
        && number.fract() == 0.0
        && number.abs() < 1e15
    {
        return format!("{}", number + 0.0);
    }
    text.to_owned()
}

impl LabelKind {
    fn of(key: &str) -> Self {
        match key {
            "0" | "1" | "true" | "false" => Self::Binary,
            key if key.parse::<i64>().is_ok() => Self::Whole,
            key if key.parse::<f64>().is_ok() => Self::Number,
            _ => Self::Text,
        }
    }
}

impl Survey {
    /// Reads all labels.
    pub(super) fn of(
        labels: &Labels,
        data: &Dataset,
        request: &Request,
        around: &mut Surroundings<'_>,
    ) -> Result<Self, ValidationError> {
        let (mut reader, column) = match labels {
            Labels::Column(column) => (data.again()?, *column),
            Labels::File(labels) => (labels.again()?, 0),
        };
        reader.select([column])?;
        let (classes_max, rows_max) =
            (request.settings.classes_max, request.rows_max.unwrap_or(u64::MAX));
        let total = reader.rows().map(|rows| rows.min(rows_max));
        let (mut rows, mut unlabelled, mut kind) = (0, 0, LabelKind::Binary);
        let mut classes = BTreeSet::new();
        while rows < rows_max {
            if around.cancel.load(Ordering::Relaxed) {
                return Err(ValidationError::Cancelled);
            }
            let most = usize::try_from(rows_max - rows).unwrap_or(ROWS).min(ROWS);
            let Some(batch) = reader.next(most)? else { break };
            for row in 0..batch.rows {
                let key = key(&batch.cells[0], row);
                let key =
                    key.map_err(|wrong| reader.wrong_cell(rows + row as u64 + 1, column, wrong))?;
                let Some(key) = key else {
                    unlabelled += 1;
                    continue;
                };
                if !classes.contains(&key) && classes.len() <= classes_max {
                    kind = kind.max(LabelKind::of(&key));
                    classes.insert(key);
                } else if kind < LabelKind::Text && !classes.contains(&key) {
                    kind = kind.max(LabelKind::of(&key));
                }
            }
            rows += batch.rows as u64;
            (around.progress)(rows, total);
        }
        if rows == unlabelled {
            return Err(ValidationError::NoRows(reader.path().to_owned()));
        }
        let mut classes: Option<Vec<String>> =
            (classes.len() <= classes_max).then(|| classes.into_iter().collect());
        if let Some(classes) = &mut classes {
            in_order(classes);
        }
        Ok(Self { rows, unlabelled, kind, classes })
    }

    pub(super) fn report(&self, data: &Dataset, labels: &Labels) -> DataReport {
        DataReport {
            path: data.path().display().to_string(),
            labels: match labels {
                Labels::Column(column) => data.columns()[*column].name.clone(),
                Labels::File(labels) => labels.path().display().to_string(),
            },
            rows: self.rows,
            unlabelled: self.unlabelled,
        }
    }
}

/// Sorts classes by number where all are whole numbers, else by their bytes, as scikit-learn does.
pub(super) fn in_order(classes: &mut [String]) {
    let number = |class: &String| class.parse::<i64>().ok();
    if classes.iter().all(|class| number(class).is_some()) {
        classes.sort_by_key(|class| number(class));
    } else {
        classes.sort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_one_spelling() {
        let pairs = [
            ("1.0", "1"),
            ("1e2", "100"),
            ("-0.0", "0"),
            ("True", "true"),
            (" setosa ", "setosa"),
            ("007", "007"),
            ("0.5", "0.5"),
            ("e.g.", "e.g."),
        ];
        for (text, expected) in pairs {
            assert_eq!(spelling(text), expected);
        }
    }

    #[test]
    fn classes_are_in_scikit_learns_order() {
        let mut numbers = ["10", "9", "-1"].map(str::to_owned);
        in_order(&mut numbers);
        assert_eq!(numbers, ["-1", "9", "10"]);
        let mut texts = ["b", "a", "10", "9"].map(str::to_owned);
        in_order(&mut texts);
        assert_eq!(texts, ["10", "9", "a", "b"]);
    }
}
