//! Labelled data from files: CSV, Parquet and `.npy`, as a stream of batches of typed columns.
//!
//! A [`Dataset`] knows the names of its columns at once and reads rows a batch at a time. Always true:
//! - Memory is bounded, whatever the size of the file: a batch holds at most as many rows as asked for and about
//!   [`Limits::batch_bytes_max`] bytes; beside it, Parquet holds one page and one dictionary of each column read.
//! - Text keeps its spelling: a cell of a CSV file becomes a number only where a number is asked for.
//! - Every error names the file, and the row and column where there is one, and says what would be right.
//!
//! Rows are counted from 1, without the header of a CSV file. Not here: the meaning of columns (`validation`).

mod column;
mod csv;
mod error;
mod npy;
mod parquet;

use std::path::{Path, PathBuf};

pub use column::{Cells, Column, Kind, Texts, Wrong};
pub use error::{DatasetError, Trouble};
pub use npy::Header;

use csv::CsvReader;
use npy::NpyReader;
use parquet::ParquetReader;

/// Formats of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Text with a line a row, and a first line with the names of the columns. The separator is a comma, a semicolon,
    /// a tab or a bar, whichever the first line has most of.
    Csv,
    /// Apache Parquet: columns of plain values or of lists of them, uncompressed or compressed with Snappy, zstd or
    /// gzip.
    Parquet,
    /// The `.npy` of `numpy.save`: an array whose first dimension counts rows. Columns are named by their index.
    Npy,
}

/// The most that a file may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Columns of a file.
    pub columns_max: usize,
    /// Bytes of one text, or of one cell of a CSV file.
    pub text_bytes_max: usize,
    /// Bytes of a line of a CSV file.
    pub row_bytes_max: usize,
    /// Bytes of a batch; it ends early where its texts are large.
    pub batch_bytes_max: usize,
}

/// A file of rows, open for reading from its first row on.
#[derive(Debug)]
pub struct Dataset {
    path: PathBuf,
    columns: Vec<Column>,
    /// The columns that batches hold, ascending.
    selected: Vec<usize>,
    limits: Limits,
    /// True if columns of lists may be selected.
    takes_lists: bool,
    reader: Reader,
    rows_read: u64,
    /// True after an error: where the reader stands is not known.
    is_broken: bool,
}

/// Some rows: the cells of the selected columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The first row, counted from 1.
    pub first_row: u64,
    /// The number of rows, at least 1.
    pub rows: usize,
    /// One for each selected column, in the order of the file.
    pub cells: Vec<Cells>,
}

#[derive(Debug)]
enum Reader {
    Csv(Box<CsvReader>),
    Parquet(Box<ParquetReader>),
    Npy(NpyReader),
}

impl Default for Limits {
    /// 16,384 columns, 1 MiB a text, 16 MiB a line, 8 MiB a batch.
    fn default() -> Self {
        Self {
            columns_max: 16_384,
            text_bytes_max: 1 << 20,
            row_bytes_max: 16 << 20,
            batch_bytes_max: 8 << 20,
        }
    }
}

impl Format {
    /// The format that the ending of a file's name says: `.csv`, `.tsv`, `.parquet`, `.pq` or `.npy`.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match ending.as_str() {
            "csv" | "tsv" => Self::Csv,
            "parquet" | "pq" => Self::Parquet,
            "npy" => Self::Npy,
            _ => return None,
        })
    }
}

impl Dataset {
    /// Opens a file, whose format follows from its name's ending, and reads the names of its columns.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, DatasetError> {
        let wrap = |trouble| DatasetError { path: path.to_owned(), trouble };
        let format = Format::of(path).ok_or_else(|| wrap(Trouble::Format))?;
        let opened = match format {
            Format::Csv => {
                CsvReader::open(path, limits).map(|(r, c)| (Reader::Csv(Box::new(r)), c))
            }
            Format::Parquet => {
                ParquetReader::open(path, limits).map(|(r, c)| (Reader::Parquet(Box::new(r)), c))
            }
            Format::Npy => NpyReader::open(path, limits).map(|(r, c)| (Reader::Npy(r), c)),
        };
        let (reader, columns) = opened.map_err(wrap)?;
        let selected = (0..columns.len()).collect();
        let path = path.to_owned();
        let (takes_lists, rows_read, is_broken) = (false, 0, false);
        Ok(Self { path, columns, selected, limits, takes_lists, reader, rows_read, is_broken })
    }

    /// Lets columns of lists be selected: their cells hold many values, as [`Cells::list`] gives them.
    pub fn take_lists(&mut self) {
        self.takes_lists = true;
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The columns, in the order of the file.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The index of the column of this name.
    pub fn column(&self, name: &str) -> Result<usize, DatasetError> {
        let found = self.columns.iter().position(|column| column.name == name);
        found.ok_or_else(|| {
            let names = || self.columns.iter().map(|column| column.name.as_str());
            self.error(Trouble::unknown_column(name, names()))
        })
    }

    /// The number of rows, where the format says it without reading them.
    pub fn rows(&self) -> Option<u64> {
        match &self.reader {
            Reader::Csv(_) => None,
            Reader::Parquet(reader) => Some(reader.rows()),
            Reader::Npy(reader) => Some(reader.rows()),
        }
    }

    /// Reads these columns only, from the next batch on; their order is that of the file.
    ///
    /// # Panics
    /// If there is no such column.
    pub fn select(&mut self, columns: impl IntoIterator<Item = usize>) -> Result<(), DatasetError> {
        self.selected = columns.into_iter().collect();
        self.selected.sort_unstable();
        self.selected.dedup();
        let last = self.selected.last();
        assert!(
            last.is_none_or(|last| *last < self.columns.len()),
            "columns are those of the file"
        );
        let is_nested = |column: &&usize| match self.columns[**column].kind {
            Kind::List => !self.takes_lists,
            kind => kind == Kind::Other,
        };
        let nested = self.selected.iter().find(is_nested);
        match nested {
            Some(column) => {
                Err(self.error(Trouble::Unreadable(self.columns[*column].name.clone())))
            }
            None => Ok(()),
        }
    }

    /// The position within a batch of a column of the file; `None` if it is not selected.
    pub fn place(&self, column: usize) -> Option<usize> {
        self.selected.binary_search(&column).ok()
    }

    /// Reads the next rows, at most `rows_max` of them; `None` after the last.
    ///
    /// After an error every further call fails, too.
    pub fn next(&mut self, rows_max: usize) -> Result<Option<Batch>, DatasetError> {
        if self.is_broken {
            return Err(self.error(Trouble::Malformed("it was not read to its end".to_owned())));
        }
        let (first_row, rows_max) = (self.rows_read + 1, rows_max.max(1));
        let read = match &mut self.reader {
            Reader::Csv(reader) => reader.next(&self.columns, &self.selected, first_row, rows_max),
            Reader::Parquet(reader) => {
                reader.next(&self.columns, &self.selected, first_row, rows_max)
            }
            Reader::Npy(reader) => reader.next(&self.selected, rows_max),
        };
        match read {
            Ok(None) => Ok(None),
            Ok(Some((rows, cells))) => {
                self.rows_read += rows as u64;
                Ok(Some(Batch { first_row, rows, cells }))
            }
            Err(trouble) => {
                self.is_broken = true;
                Err(self.error(trouble))
            }
        }
    }

    /// Opens the file once more, from its first row on, with the same columns selected.
    pub fn again(&self) -> Result<Self, DatasetError> {
        let mut again = Self::open(&self.path, self.limits)?;
        if again.columns != self.columns {
            return Err(self.error(Trouble::Changed));
        }
        again.selected.clone_from(&self.selected);
        Ok(again)
    }

    /// An error about a cell of this file: what stands there, and what would be right.
    pub fn wrong_cell(&self, row: u64, column: usize, wrong: Wrong) -> DatasetError {
        let column = self.columns[column].name.clone();
        self.error(Trouble::Cell { row, column, found: wrong.found, wanted: wrong.wanted })
    }

    fn error(&self, trouble: Trouble) -> DatasetError {
        DatasetError { path: self.path.clone(), trouble }
    }
}
