//! Recorded requests, one after the other: the files of a table of predictions, or any file of rows.
//!
//! Rows of one prediction come together, as they were sent; other rows come in runs of as many as are asked for. Runs
//! are shorter where a version takes fewer rows, where the lists of rows are not equally long, and where the rows of
//! one prediction are more than a batch holds.

use std::{
    collections::{BTreeSet, VecDeque},
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    dataset::{Batch, Cells, Dataset, DatasetError, Limits, Trouble},
    model::Input,
    tensor::Tensor,
};

use super::super::{
    Subject, ValidationError,
    binding::{Binding, Slot},
};

/// Rows that are read at a time.
const ROWS: usize = 1024;

/// Folders below the one that is named: those of a model and of a version.
const DEPTH_MAX: usize = 3;

/// Columns that a table of predictions has beside inputs and outputs.
const COMMON: [&str; 9] =
    ["time", "prediction_id", "row", "model", "version", "arm", "digest", "code", "milliseconds"];

/// Requests of files.
pub(super) struct Recorded {
    files: VecDeque<PathBuf>,
    reading: Reading,
    open: Option<Open>,
    rows_read: u64,
    rows_total: Option<u64>,
}

/// Choices about reading.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) limits: Limits,
    /// Columns that are neither inputs nor outputs.
    pub(super) ignored: Vec<String>,
    /// Rows of a run, where they do not belong to predictions.
    pub(super) batch_rows: usize,
    /// By subject: names of the features of each input.
    pub(super) names: Vec<Vec<Option<Vec<String>>>>,
    /// False if outputs are not compared with recorded ones.
    pub(super) wants_outputs: bool,
}

/// Rows of one run.
pub(super) struct Run {
    pub(super) file: PathBuf,
    /// The first row in the file, counted from 1.
    pub(super) row: u64,
    pub(super) rows: usize,
    pub(super) prediction: Option<String>,
    /// The arrival of the request, since 1970.
    pub(super) at: Option<Duration>,
    /// By subject.
    pub(super) inputs: Vec<Vec<Input>>,
    /// By the place of the output; `None` if it was not recorded.
    pub(super) outputs: Vec<Option<Tensor>>,
}

/// A run, or rows that are left out.
pub(super) enum Next {
    Run(Box<Run>),
    /// Rows of a prediction that had this code.
    LeftOut(i64, u64),
}

/// The file that is being read.
struct Open {
    data: Dataset,
    table: Option<Table>,
    bindings: Vec<Binding>,
    outputs: Vec<Option<Slot>>,
    /// Outputs that have columns and that the version does not have.
    foreign: Vec<String>,
    batch: Batch,
    /// The next row of the batch.
    next: usize,
    rows_max: usize,
}

/// Columns of a table of predictions.
struct Table {
    time: usize,
    prediction: usize,
    code: usize,
    ahead: Ahead,
}

/// Reads the names of predictions ahead of their rows, so that no batch ends within a prediction.
struct Ahead {
    data: Dataset,
    /// Rows of each prediction that is known as a whole.
    whole: VecDeque<usize>,
    /// The last name, and rows of it so far.
    last: (Vec<u8>, usize),
    is_at_end: bool,
}

impl Recorded {
    /// Finds the files.
    pub(super) fn find(
        path: &Path,
        model: &str,
        reading: Reading,
    ) -> Result<Self, ValidationError> {
        let wrap = |error: io::Error| DatasetError { path: path.to_owned(), trouble: error.into() };
        let files = files(path, model).map_err(wrap)?;
        if files.is_empty() {
            return Err(ValidationError::Columns(format!(
                "there is no .parquet file below `{}`; a server completes its first file after predictions.rotate_every, or \
                 when it ends",
                path.display()
            )));
        }
        let mut rows_total = Some(0);
        for file in &files {
            let rows = match Dataset::open(file, reading.limits) {
                Ok(data) => data.rows(),
                Err(error) if is_gone(&error) && files.len() > 1 => Some(0),
                Err(error) => return Err(error.into()),
            };
            rows_total = rows_total.zip(rows).map(|(all, own)| all + own);
        }
        Ok(Self { files: files.into(), reading, open: None, rows_read: 0, rows_total })
    }

    /// Rows that were read, and how many there are where that is known.
    pub(super) fn progress(&self) -> (u64, Option<u64>) {
        (self.rows_read, self.rows_total)
    }

    /// Outputs of the open file that the first subject does not have.
    pub(super) fn foreign(&self) -> &[String] {
        self.open.as_ref().map_or(&[], |open| &open.foreign)
    }

    /// The next run, or rows that are left out; `None` after the last.
    pub(super) fn next(
        &mut self,
        subjects: &[Subject<'_>],
    ) -> Result<Option<Next>, ValidationError> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(file) = self.files.pop_front() else { return Ok(None) };
                match Open::new(&file, &self.reading, subjects) {
                    Ok(open) => self.open = Some(open),
                    // The oldest files of a table are removed meanwhile.
                    Err(ValidationError::Data(error))
                        if is_gone(&error) && self.rows_total.is_some() => {}
                    Err(error) => return Err(error),
                }
                continue;
            };
            if open.next < open.batch.rows {
                let next = open.run()?;
                self.rows_read += match &next {
                    Next::Run(run) => run.rows as u64,
                    Next::LeftOut(_, rows) => *rows,
                };
                return Ok(Some(next));
            }
            if !open.read()? {
                self.open = None;
            }
        }
    }
}

fn is_gone(error: &DatasetError) -> bool {
    matches!(&error.trouble, Trouble::Io(error) if error.kind() == io::ErrorKind::NotFound)
}

/// The file itself, or the complete files below a folder, in the order of their names, which begin with a time.
///
/// Of the folder of a table, those of the model.
pub(super) fn files(path: &Path, model: &str) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let of_table = [path.join("predictions").join(model), path.join(model)];
    let folder = of_table.into_iter().find(|folder| folder.is_dir());
    let mut files = Vec::new();
    let mut open = vec![(folder.unwrap_or_else(|| path.to_owned()), 1)];
    while let Some((folder, depth)) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type()?.is_dir() && depth < DEPTH_MAX {
                open.push((path, depth + 1));
            } else if path.extension().is_some_and(|ending| ending == "parquet") {
                files.push(path);
            }
        }
    }
    files.sort_by(|a, b| (a.file_name(), a).cmp(&(b.file_name(), b)));
    Ok(files)
}

impl Open {
    fn new(
        file: &Path,
        reading: &Reading,
        subjects: &[Subject<'_>],
    ) -> Result<Self, ValidationError> {
        let mut data = Dataset::open(file, reading.limits)?;
        data.take_lists();
        let name = |column: usize| data.columns()[column].name.as_str();
        let all = 0..data.columns().len();
        let is_table = COMMON.iter().all(|wanted| all.clone().any(|at| name(at) == *wanted));
        let is_common = |at: usize| is_table && COMMON.contains(&name(at));
        let is_ignored = |at: usize| reading.ignored.iter().any(|ignored| ignored == name(at));
        let is_output = |at: usize| name(at).starts_with("output:");
        let features =
            all.clone().filter(|at| !is_common(*at) && !is_ignored(*at) && !is_output(*at));
        let features: Vec<usize> = features.collect();
        let mut bindings = Vec::new();
        for (subject, names) in subjects.iter().zip(&reading.names) {
            bindings.push(Binding::recorded(subject, &data, &features, names)?);
        }
        let first = &subjects[0];
        let outputs =
            if reading.wants_outputs { Binding::outputs(first, &data)? } else { Vec::new() };
        let known: Vec<usize> = outputs.iter().flatten().flat_map(Slot::columns).copied().collect();
        let mut foreign = BTreeSet::new();
        for at in all.filter(|at| is_output(*at) && !known.contains(at) && !is_ignored(*at)) {
            let output = name(at).trim_start_matches("output:");
            let base = output.rfind('[').map_or(output, |bracket| &output[..bracket]);
            foreign.insert(base.to_owned());
        }
        let foreign =
            if reading.wants_outputs { foreign.into_iter().collect() } else { Vec::new() };
        let table = if is_table { Some(Table::new(&data)?) } else { None };
        let needed = bindings.iter().flat_map(Binding::columns).chain(known);
        let common = table.iter().flat_map(|table| [table.time, table.prediction, table.code]);
        let needed: Vec<usize> = needed.chain(common).collect();
        data.select(needed)?;
        let rows_max = |(subject, binding): (&Subject<'_>, &Binding)| match subject.rows_max {
            _ if binding.is_one_row() => 1,
            0 => 1,
            most => usize::try_from(most).unwrap_or(usize::MAX),
        };
        let most = subjects.iter().zip(&bindings).map(rows_max).min().unwrap_or(1);
        let rows_max = if is_table { most } else { most.min(reading.batch_rows) };
        let batch = Batch { first_row: 1, rows: 0, cells: Vec::new() };
        Ok(Self { data, table, bindings, outputs, foreign, batch, next: 0, rows_max })
    }

    /// Reads the next batch; false after the last.
    fn read(&mut self) -> Result<bool, ValidationError> {
        let rows = match &mut self.table {
            Some(table) => table.ahead.rows()?,
            None => ROWS.max(self.rows_max.min(ROWS * 64)),
        };
        let Some(batch) = self.data.next(rows)? else { return Ok(false) };
        if let Some(table) = &mut self.table {
            table.ahead.taken(batch.rows);
        }
        (self.batch, self.next) = (batch, 0);
        self.check_redacted()?;
        Ok(true)
    }

    /// Refuses rows whose inputs are not there.
    fn check_redacted(&self) -> Result<(), ValidationError> {
        let Some(table) = &self.table else { return Ok(()) };
        let codes = self.cells(table.code);
        let is_success = |row: &usize| codes.integer(*row).ok().flatten().is_some_and(succeeds);
        let rows: Vec<usize> = (0..self.batch.rows).filter(is_success).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut columns = Vec::new();
        for slot in self.bindings.iter().flat_map(Binding::required) {
            for column in slot.empty_columns(&self.data, &self.batch, &rows) {
                let name = &self.data.columns()[column].name;
                if !columns.contains(name) {
                    columns.push(name.clone());
                }
            }
        }
        if columns.is_empty() {
            return Ok(());
        }
        Err(ValidationError::Redacted { path: self.data.path().to_owned(), columns })
    }

    fn cells(&self, column: usize) -> &Cells {
        &self.batch.cells[self.data.place(column).expect("needed columns are selected")]
    }

    /// The next run of the batch.
    fn run(&mut self) -> Result<Next, ValidationError> {
        let start = self.next;
        let (mut prediction, mut at) = (None, None);
        let mut end = self.batch.rows;
        if let Some(table) = &self.table {
            let names = self.cells(table.prediction);
            let name = names.text(start);
            let rest = start + 1..self.batch.rows;
            end = rest.into_iter().find(|row| names.text(*row) != name).unwrap_or(end);
            let code = self.cells(table.code).integer(start).ok().flatten().unwrap_or(0);
            if !succeeds(code) {
                self.next = end;
                return Ok(Next::LeftOut(code, (end - start) as u64));
            }
            prediction = name.map(|name| String::from_utf8_lossy(&name).into_owned());
            let micros = self.cells(table.time).integer(start).ok().flatten().unwrap_or(0);
            at = u64::try_from(micros).ok().map(Duration::from_micros);
        }
        let end = self.even(start, end.min(start.saturating_add(self.rows_max)));
        self.next = end;
        let (rows, row) = (start..end, self.batch.first_row + start as u64);
        let mut inputs = Vec::with_capacity(self.bindings.len());
        for binding in &self.bindings {
            self.check_whole(binding, rows.clone())?;
            inputs.push(binding.inputs(&self.data, &self.batch, rows.clone())?);
        }
        let output = |slot: &Option<Slot>| {
            let slot = slot.as_ref()?;
            let is_whole = slot.lack(&self.data, &self.batch, rows.clone()).is_none();
            is_whole.then(|| slot.tensor(&self.data, &self.batch, rows.clone()))
        };
        let outputs = self.outputs.iter().map(|slot| output(slot).transpose());
        let outputs = outputs.collect::<Result<_, _>>()?;
        let file = self.data.path().to_owned();
        Ok(Next::Run(Box::new(Run {
            file,
            row,
            rows: rows.len(),
            prediction,
            at,
            inputs,
            outputs,
        })))
    }

    /// The end of the rows whose lists are as long as the first's.
    fn even(&self, start: usize, end: usize) -> usize {
        let slots = self.bindings.iter().flat_map(Binding::slots);
        let slots: Vec<&Slot> = slots.chain(self.outputs.iter().flatten()).collect();
        let lengths = |row: usize| {
            slots.iter().map(|slot| slot.length(&self.data, &self.batch, row)).collect::<Vec<_>>()
        };
        let first = lengths(start);
        if first.iter().all(Option::is_none) {
            return end;
        }
        (start + 1..end).find(|row| lengths(*row) != first).unwrap_or(end)
    }

    /// Refuses a row of a table that lacks a value of an input.
    fn check_whole(&self, binding: &Binding, rows: Range<usize>) -> Result<(), ValidationError> {
        if self.table.is_none() {
            return Ok(());
        }
        for slot in binding.required() {
            if let Some((row, column)) = slot.lack(&self.data, &self.batch, rows.clone()) {
                let wrong =
                    self.cells(column).wrong(row, "the model's input has no missing values");
                let row = self.batch.first_row + row as u64;
                return Err(self.data.wrong_cell(row, column, wrong).into());
            }
        }
        Ok(())
    }
}

/// True for the status of an answer.
fn succeeds(code: i64) -> bool {
    (200..300).contains(&code)
}

impl Table {
    fn new(data: &Dataset) -> Result<Self, DatasetError> {
        let [time, prediction, code] =
            ["time", "prediction_id", "code"].map(|name| data.column(name));
        let (time, prediction, code) = (time?, prediction?, code?);
        let mut ahead = data.again()?;
        ahead.select([prediction])?;
        let (whole, last) = (VecDeque::new(), (Vec::new(), 0));
        let ahead = Ahead { data: ahead, whole, last, is_at_end: false };
        Ok(Self { time, prediction, code, ahead })
    }
}

impl Ahead {
    /// Rows of the next predictions: about a batch, and at least one prediction.
    fn rows(&mut self) -> Result<usize, DatasetError> {
        while !self.is_at_end && self.whole.iter().sum::<usize>() <= ROWS {
            let Some(batch) = self.data.next(ROWS)? else {
                self.is_at_end = true;
                self.whole.push_back(self.last.1);
                break;
            };
            for row in 0..batch.rows {
                let name = batch.cells[0].text(row).unwrap_or_default();
                if *name == *self.last.0 {
                    self.last.1 += 1;
                } else {
                    let before = std::mem::replace(&mut self.last, (name.into_owned(), 1));
                    self.whole.extend(Some(before.1).filter(|rows| *rows > 0));
                }
            }
        }
        let mut rows = self.whole.front().copied().unwrap_or(ROWS);
        for more in self.whole.iter().skip(1) {
            if rows + more > ROWS {
                break;
            }
            rows += more;
        }
        Ok(rows.max(1))
    }

    /// Forgets rows that were read.
    fn taken(&mut self, mut rows: usize) {
        while let Some(first) = self.whole.front_mut() {
            if *first > rows {
                *first -= rows;
                return;
            }
            rows -= *first;
            self.whole.pop_front();
            if rows == 0 {
                return;
            }
        }
    }
}
