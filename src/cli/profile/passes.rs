//! Two passes over the files: one thread reads, another hashes, and this one measures.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::mpsc::sync_channel,
    thread,
};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::Digest as _;

use super::columns::{Choice, Form, Source};
use crate::{
    dataset::{Batch, Dataset, DatasetError, Wrong},
    drift::{Profile, Profiler, Values, written},
    source::Digest,
};

/// Rows of a batch, unless their bytes are too many before.
const BATCH_ROWS: usize = 16_384;

/// Batches that wait for being measured.
const BATCHES_AHEAD: usize = 2;

/// Runs both passes.
pub(super) fn run(
    files: &[Dataset],
    choice: &Choice,
    mut profiler: Profiler,
) -> anyhow::Result<Profile> {
    let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
    let total = files.iter().map(Dataset::rows).sum();
    thread::scope(|scope| {
        let digest = scope.spawn(|| digest(&paths));
        let bar = Bar::new(total, "first of two passes");
        let all: Vec<usize> = (0..choice.sources.len()).collect();
        let take = |column: usize, values: Values<'_>| Ok(profiler.push(column, values)?);
        pass(files, choice, &all, &bar, take)?;
        let mut counter = profiler.settle()?;
        let wanted: Vec<usize> = all.into_iter().filter(|column| counter.needs(*column)).collect();
        if !wanted.is_empty() {
            let bar = Bar::new(Some(counter.rows()), "second of two passes");
            let take = |column: usize, values: Values<'_>| {
                counter.push(column, values);
                Ok(())
            };
            pass(files, choice, &wanted, &bar, take)?;
        }
        let digest = digest.join().map_err(|_| anyhow!("the data cannot be hashed"))??;
        let names = paths.iter().filter_map(|path| path.file_name());
        let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        Ok(counter.finish(digest.to_string(), names.join(", "))?)
    })
}

/// The digest of the files, one after the other.
fn digest(paths: &[PathBuf]) -> anyhow::Result<Digest> {
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in paths {
        let unread = || format!("`{}` cannot be read", path.display());
        let mut file = File::open(path).with_context(unread)?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hash.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(unread),
            }
        }
    }
    Ok(hash.into())
}

/// Reads some columns of all files and hands them over, batch by batch.
fn pass(
    files: &[Dataset],
    choice: &Choice,
    wanted: &[usize],
    bar: &Bar,
    mut take: impl FnMut(usize, Values<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let places = choice.places(|column| wanted.contains(&column));
    let mut numbers = Vec::new();
    for data in files {
        let mut reader = data.again()?;
        reader.select(places.iter().copied())?;
        let shape = data.again().and_then(|mut shape| {
            shape.select(places.iter().copied())?;
            Ok(shape)
        })?;
        thread::scope(|scope| {
            let (ahead, batches) = sync_channel(BATCHES_AHEAD);
            scope.spawn(move || {
                loop {
                    let batch = reader.next(BATCH_ROWS).transpose();
                    let is_last = !matches!(batch, Some(Ok(_)));
                    // Nobody takes it after an error on the other side.
                    if batch.is_some_and(|batch| ahead.send(batch).is_err()) || is_last {
                        break;
                    }
                }
            });
            for batch in batches {
                let batch: Batch = batch?;
                for column in wanted {
                    let source = &choice.sources[*column];
                    feed(&shape, &batch, source, &mut numbers, |values| take(*column, values))?;
                }
                bar.0.inc(batch.rows as u64);
            }
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

/// Returns the values of one column of the profile.
fn feed(
    data: &Dataset,
    batch: &Batch,
    source: &Source,
    numbers: &mut Vec<f64>,
    take: impl FnOnce(Values<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cells: Vec<_> = source.places.iter().filter_map(|place| data.place(*place)).collect();
    let cells: Vec<_> = cells.into_iter().map(|place| &batch.cells[place]).collect();
    if source.form == Form::Numbers {
        numbers.clear();
        numbers.reserve(batch.rows * cells.len());
        for row in 0..batch.rows {
            for (cells, place) in cells.iter().zip(&source.places) {
                let number = cells.float(row);
                numbers.push(number.map_err(|wrong| no_number(data, batch, row, *place, wrong))?);
            }
        }
        return take(Values::Numbers(numbers));
    }
    let Some(cells) = cells.first() else { return Ok(()) };
    let text = |row: usize| match cells.text(row) {
        _ if cells.is_missing(row) => Cow::Borrowed(&[][..]),
        Some(text) if source.form == Form::Texts => text,
        _ => match cells.float(row) {
            Ok(number) => Cow::Owned(written(number).into_bytes()),
            Err(_) => cells.text(row).unwrap_or_default(),
        },
    };
    let texts: Vec<_> = (0..batch.rows).map(text).collect();
    take(Values::Texts(&texts))
}

/// A cell that is no number in a column whose first rows have numbers only.
fn no_number(
    data: &Dataset,
    batch: &Batch,
    row: usize,
    place: usize,
    wrong: Wrong,
) -> DatasetError {
    let name = &data.columns()[place].name;
    let wanted = format!(
        "{}, as in the rows before; mend it, or take the column as texts with --categorical '{name}', or leave it out with \
         --exclude '{name}'",
        wrong.wanted
    );
    data.wrong_cell(batch.first_row + row as u64, place, Wrong { wanted, ..wrong })
}

/// Progress for people, on terminals only.
struct Bar(ProgressBar);

impl Bar {
    fn new(total: Option<u64>, message: &'static str) -> Self {
        let template = match total {
            Some(_) => "{bar:30} {human_pos}/{human_len} rows, {msg} {eta}",
            None => "{spinner} {human_pos} rows, {msg} {elapsed}",
        };
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        Self(bar.with_style(style).with_message(message))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
