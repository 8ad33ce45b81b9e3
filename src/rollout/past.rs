//! The past of two versions from the table of predictions: their requests, and the outcomes that came.
//!
//! An outcome's label is compared with what was answered: with the only output of one whole number or text a row, else
//! with the place of the largest of several scores. Where the label is a name and the answer a number, names come from
//! whoever asks.
//!
//! Always true: what is read is bounded by a number of predictions, of which the oldest are taken.
//!
//! Not here: what follows from it (`backtest`), the form of the table (`predictions`).

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    dataset::{Batch, Cells, Dataset, DatasetError, Kind, Limits},
    model::PredictionId,
};

use super::backtest::{Past, PastOutcome, PastRequest};

/// Rows that are read at a time.
const ROWS: usize = 4096;

/// Place of a past.
#[derive(Debug, Clone)]
pub struct PastSource {
    /// The folder of the table.
    pub folder: PathBuf,
    /// The model.
    pub model: String,
    /// The version that served.
    pub baseline: u64,
    /// The version that wanted to.
    pub candidate: u64,
    /// The output with the prediction; `None` for the only one that can be it.
    pub output: Option<String>,
    /// Names of the classes by their number; empty where labels are numbers.
    pub classes: Vec<String>,
    /// Predictions of each version to take, the oldest first.
    pub requests_max: usize,
    /// True if the candidate's are moved in time so that both begin together.
    pub shift: bool,
}

/// A past that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// A folder.
    #[error(
        "`{}` cannot be read: {source}; name the table's folder with --path, the value of predictions.path",
        path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] DatasetError),
}

/// An outcome before its prediction is known.
struct Joined {
    known_at: Duration,
    label: Option<String>,
    reward: Option<f64>,
}

/// Outcomes by prediction and row.
type Joins = HashMap<(u128, i64), Joined>;

/// Reads a past; the second says what was left out, for people.
///
/// # Errors
/// If the folder or a file cannot be read.
pub fn past(source: &PastSource) -> Result<(Past, Vec<String>), PastError> {
    let mut notes = Vec::new();
    let mut past = Past::default();
    let joins = joins(source)?;
    let mut unlabelled = 0;
    for version in [source.baseline, source.candidate] {
        let mut reader = Reader {
            source,
            joins: &joins,
            requests: Vec::new(),
            outcomes: &mut past.outcomes,
            unlabelled: 0,
        };
        let is_cut = reader.read(version)?;
        unlabelled += reader.unlabelled;
        let mut requests = reader.requests;
        requests.sort_by_key(|request| (request.at, request.prediction));
        if is_cut {
            notes.push(format!(
                "only the oldest {} predictions of version {version} are taken; --limit takes more",
                requests.len()
            ));
        }
        if version == source.baseline {
            past.baseline = requests;
        } else {
            past.candidate = requests;
        }
    }
    if unlabelled > 0 {
        notes.push(format!(
            "{unlabelled} labels cannot be compared with an answer; name the output with --output, and classes with --classes"
        ));
    }
    if source.shift {
        shift(&mut past);
    }
    Ok((past, notes))
}

/// Moves the candidate's predictions and their outcomes so that both versions begin together.
fn shift(past: &mut Past) {
    let (Some(own), Some(other)) = (past.candidate.first(), past.baseline.first()) else { return };
    let (own, other) = (own.at, other.at);
    let moved = |at: Duration| (at + other).saturating_sub(own);
    for request in &mut past.candidate {
        request.at = moved(request.at);
        for outcome in past.outcomes.get_mut(&request.prediction).into_iter().flatten() {
            outcome.known_at = moved(outcome.known_at);
        }
    }
}

/// The complete files of these folders, in the order of their names, which begin with a time.
fn files(folders: &[PathBuf]) -> Result<Vec<PathBuf>, PastError> {
    let mut files = Vec::new();
    for path in folders {
        let wrap = |source| PastError::Folder { path: path.clone(), source };
        for entry in fs::read_dir(path).map_err(wrap)? {
            let file = entry.map_err(wrap)?.path();
            if file.extension().is_some_and(|ending| ending == "parquet") {
                files.push(file);
            }
        }
    }
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(files)
}

fn joins(source: &PastSource) -> Result<Joins, PastError> {
    let folder = source.folder.join("outcomes").join(&source.model);
    let mut joins = Joins::new();
    if !folder.is_dir() {
        return Ok(joins);
    }
    for file in files(&[folder])? {
        let mut data = Dataset::open(&file, Limits::default())?;
        let names = ["time", "prediction_id", "row", "label", "reward"];
        let columns = names.map(|name| data.column(name));
        let [time, prediction, row, label, reward] = columns;
        let all = [time?, prediction?, row?, label?, reward?];
        data.select(all)?;
        while let Some(batch) = data.next(ROWS)? {
            let [time, prediction, row, label, reward] = all.map(|at| cells(&data, &batch, at));
            for at in 0..batch.rows {
                let Some(id) = name(prediction, at) else { continue };
                let place = row.integer(at).ok().flatten().unwrap_or(0);
                let label = label.text(at).map(|text| String::from_utf8_lossy(&text).into_owned());
                let reward = reward.float(at).ok().filter(|reward| !reward.is_nan());
                joins.insert((id, place), Joined { known_at: moment(time, at), label, reward });
                if joins.len() >= source.requests_max.saturating_mul(2) {
                    return Ok(joins);
                }
            }
        }
    }
    Ok(joins)
}

fn cells<'b>(data: &Dataset, batch: &'b Batch, column: usize) -> &'b Cells {
    &batch.cells[data.place(column).expect("needed columns are selected")]
}

/// The bits of a prediction's name.
fn name(cells: &Cells, row: usize) -> Option<u128> {
    let text = cells.text(row)?;
    PredictionId::parse(std::str::from_utf8(&text).ok()?).map(|id| id.bits())
}

fn moment(cells: &Cells, row: usize) -> Duration {
    let micros = cells.integer(row).ok().flatten().unwrap_or(0);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// Reads the predictions of a version.
struct Reader<'r> {
    source: &'r PastSource,
    joins: &'r Joins,
    requests: Vec<PastRequest>,
    outcomes: &'r mut BTreeMap<u128, Vec<PastOutcome>>,
    /// Labels that were compared with no answer.
    unlabelled: u64,
}

/// Columns with what a version answered.
enum Answer {
    None,
    Class(usize),
    /// A score a class, a column each.
    Scores(Vec<usize>),
}

impl Reader<'_> {
    /// Reads all files of a version; true if there are more predictions than are taken.
    fn read(&mut self, version: u64) -> Result<bool, PastError> {
        let folder = self.source.folder.join("predictions").join(&self.source.model);
        let wrap = |source| PastError::Folder { path: folder.clone(), source };
        // Files with other columns lie in `VERSION-2`, and so on.
        let (own, others) = (version.to_string(), format!("{version}-"));
        let mut folders = Vec::new();
        for entry in fs::read_dir(&folder).map_err(wrap)? {
            let entry = entry.map_err(wrap)?;
            let name = entry.file_name();
            let is_own = name.to_str().is_some_and(|name| name == own || name.starts_with(&others));
            folders.extend(is_own.then(|| entry.path()));
        }
        for file in files(&folders)? {
            if self.file(&file)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn file(&mut self, file: &Path) -> Result<bool, PastError> {
        let mut data = Dataset::open(file, Limits::default())?;
        let names = ["time", "prediction_id", "row", "code", "milliseconds"];
        let [time, prediction, row, code, took] = names.map(|name| data.column(name));
        let all = [time?, prediction?, row?, code?, took?];
        let answer = answer(&data, self.source.output.as_deref());
        let answers = match &answer {
            Answer::None => Vec::new(),
            Answer::Class(column) => vec![*column],
            Answer::Scores(columns) => columns.clone(),
        };
        data.take_lists();
        let floats = floats(&data);
        data.select(all.into_iter().chain(answers).chain(floats.iter().copied()))?;
        while let Some(batch) = data.next(ROWS)? {
            let [time, prediction, row, code, took] = all.map(|at| cells(&data, &batch, at));
            for at in 0..batch.rows {
                let Some(id) = name(prediction, at) else { continue };
                let place = row.integer(at).ok().flatten().unwrap_or(0);
                if place == 0 {
                    if self.requests.len() >= self.source.requests_max {
                        return Ok(true);
                    }
                    let code = code.integer(at).ok().flatten().unwrap_or(0);
                    let seconds = took.float(at).unwrap_or(0.0).max(0.0) / 1e3;
                    self.requests.push(PastRequest {
                        at: moment(time, at),
                        prediction: id,
                        code: u16::try_from(code).unwrap_or(0),
                        took: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
                        is_invalid: false,
                    });
                }
                // Rows of a request come one after the other.
                if let Some(request) = self.requests.last_mut().filter(|it| it.prediction == id) {
                    request.is_invalid |=
                        floats.iter().any(|column| is_invalid(cells(&data, &batch, *column), at));
                }
                if let Some(joined) = self.joins.get(&(id, place)) {
                    let said = said(&data, &batch, &answer, at);
                    self.join(id, joined, said.as_deref());
                }
            }
        }
        Ok(false)
    }

    /// Adds an outcome of a row that was answered with a class.
    fn join(&mut self, id: u128, joined: &Joined, said: Option<&str>) {
        let wrong = joined.label.as_deref().and_then(|label| {
            let wrong = said.and_then(|said| is_wrong(said, label, &self.source.classes));
            self.unlabelled += u64::from(wrong.is_none());
            wrong
        });
        let happened = joined.reward.is_none_or(|reward| reward > 0.0);
        let outcome = PastOutcome { known_at: joined.known_at, wrong, happened };
        self.outcomes.entry(id).or_default().push(outcome);
    }
}

/// Tells whether a class is another than a label; `None` where a number and a name cannot be compared.
fn is_wrong(said: &str, label: &str, classes: &[String]) -> Option<bool> {
    let is_number = |text: &str| text.parse::<i64>().is_ok();
    if said == label {
        return Some(false);
    }
    let named = said.parse::<usize>().ok().and_then(|class| classes.get(class));
    match (named, is_number(said) == is_number(label)) {
        (Some(named), false) => Some(named != label),
        (_, true) => Some(true),
        (None, false) => None,
    }
}

/// The columns of outputs that may hold NaN or an infinity.
fn floats(data: &Dataset) -> Vec<usize> {
    let columns = data.columns().iter().enumerate().filter(|(_, column)| {
        column.name.starts_with("output:") && matches!(column.kind, Kind::Float | Kind::List)
    });
    columns.map(|(at, _)| at).collect()
}

/// True if a cell, or an element of its list, is NaN or an infinity.
fn is_invalid(cells: &Cells, row: usize) -> bool {
    let is_wrong = |cells: &Cells, row: usize| {
        !cells.is_null(row) && cells.float(row).is_ok_and(|value| !value.is_finite())
    };
    match cells.list(row) {
        Some((elements, mut places)) => places.any(|place| is_wrong(elements, place)),
        None => is_wrong(cells, row),
    }
}

/// The columns with what a version answers.
fn answer(data: &Dataset, output: Option<&str>) -> Answer {
    let columns = data.columns();
    let is_wanted = |name: &str| match output {
        Some(output) => {
            name == output || name.strip_prefix(output).is_some_and(|rest| rest.starts_with('['))
        }
        None => true,
    };
    let outputs = columns.iter().enumerate().filter_map(|(at, column)| {
        let name = column.name.strip_prefix("output:")?;
        is_wanted(name).then_some((at, name, column.kind))
    });
    let outputs: Vec<(usize, &str, Kind)> = outputs.collect();
    let mut classes = outputs.iter().filter(|(_, name, kind)| {
        !name.contains('[') && matches!(kind, Kind::Integer | Kind::Text | Kind::Boolean)
    });
    if let (Some((column, ..)), None) = (classes.next(), classes.next()) {
        return Answer::Class(*column);
    }
    let base = |name: &str| name.split('[').next().map(str::to_owned);
    let is_score =
        |(_, name, kind): &&(usize, &str, Kind)| name.contains('[') && *kind == Kind::Float;
    let scores: Vec<_> = outputs.iter().filter(is_score).collect();
    let first = scores.first().and_then(|(_, name, _)| base(name));
    let is_one = scores.iter().all(|(_, name, _)| base(name) == first);
    if scores.is_empty() || !is_one {
        return Answer::None;
    }
    Answer::Scores(scores.into_iter().map(|(at, ..)| *at).collect())
}

/// The class that a row was answered with, as labels are spelled.
fn said(data: &Dataset, batch: &Batch, answer: &Answer, row: usize) -> Option<String> {
    match answer {
        Answer::None => None,
        Answer::Class(column) => {
            let text = cells(data, batch, *column).text(row)?;
            Some(String::from_utf8_lossy(&text).into_owned())
        }
        Answer::Scores(columns) => {
            let score = |column: &usize| cells(data, batch, *column).float(row).ok();
            let scores: Vec<f64> = columns.iter().map(score).collect::<Option<_>>()?;
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let class = scores.iter().position(|score| score.total_cmp(&largest).is_eq())?;
            Some(class.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_no_number_is_invalid_and_one_that_is_missing_is_not() {
        let numbers = Cells::floats(vec![1.5, f64::NAN, f64::NAN, f64::NEG_INFINITY], Vec::new());
        let found = |cells: &Cells| (0..4).map(|row| is_invalid(cells, row)).collect::<Vec<_>>();
        assert_eq!(found(&numbers), [false, true, true, true]);
        let missing = Cells::floats(vec![1.5, f64::NAN, 0.0, 0.0], vec![false, false, true, false]);
        assert_eq!(found(&missing), [false, true, false, false]);
        let lists = Cells::lists(numbers, vec![1, 1, 3, 4], Vec::new());
        assert_eq!(found(&lists), [false, false, true, true]);
        let texts =
            Cells::lists(Cells::integers(vec![1; 4], Vec::new()), vec![1, 2, 3, 4], Vec::new());
        assert_eq!(found(&texts), [false; 4]);
    }

    #[test]
    fn labels_are_compared_as_numbers_or_by_names() {
        let classes = ["benign", "malignant"].map(str::to_owned);
        assert_eq!(is_wrong("1", "1", &[]), Some(false));
        assert_eq!(is_wrong("1", "0", &[]), Some(true));
        assert_eq!(is_wrong("1", "malignant", &classes), Some(false));
        assert_eq!(is_wrong("1", "benign", &classes), Some(true));
        assert_eq!(is_wrong("cat", "dog", &[]), Some(true));
        assert_eq!(is_wrong("1", "malignant", &[]), None);
    }
}
