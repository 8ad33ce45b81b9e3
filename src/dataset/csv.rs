//! CSV (RFC 4180) through `csv-core`, so that no line can take more memory than it may.
//!
//! An unnamed column is the index that pandas writes beside a table, and is left out.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use csv_core::ReadRecordResult;

use super::{Cells, Column, Kind, Limits, Texts, Trouble, error::shown};

const BUFFER_BYTES: usize = 1 << 16;

pub(super) struct CsvReader {
    file: File,
    core: csv_core::Reader,
    buffer: Box<[u8]>,
    /// The part of the buffer that is not read yet.
    ahead: std::ops::Range<usize>,
    record: Vec<u8>,
    ends: Vec<usize>,
    /// The field of each column; unnamed ones have none.
    fields: Vec<usize>,
    /// Fields of the header.
    width: usize,
    limits: Limits,
}

impl std::fmt::Debug for CsvReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CsvReader").field("file", &self.file).finish_non_exhaustive()
    }
}

impl CsvReader {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<(Self, Vec<Column>), Trouble> {
        let mut reader = Self {
            file: File::open(path)?,
            core: csv_core::Reader::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            ahead: 0..0,
            record: vec![0; limits.row_bytes_max.min(1 << 12)],
            ends: vec![0; limits.columns_max],
            fields: Vec::new(),
            width: limits.columns_max,
            limits,
        };
        reader.fill()?;
        let delimiter = delimiter(&reader.buffer[reader.ahead.clone()]);
        reader.core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let (_, width) = reader.record()?.ok_or(Trouble::Empty)?;
        let columns = reader.header(width)?;
        Ok((reader, columns))
    }

    /// Reads rows: the texts of each selected column.
    pub(super) fn next(
        &mut self,
        columns: &[Column],
        selected: &[usize],
        first_row: u64,
        rows_max: usize,
    ) -> Result<Option<(usize, Vec<Cells>)>, Trouble> {
        let mut texts = vec![Texts::default(); selected.len()];
        let (mut rows, mut bytes) = (0, 0);
        while rows < rows_max && bytes < self.limits.batch_bytes_max {
            let Some((line, width)) = self.record()? else { break };
            if width != self.width {
                let (fields, header) = (plural(width), self.width);
                return Err(Trouble::Malformed(format!(
                    "line {line} has {fields}, the first line has {header}; text with a separator or a quote stands in \
                     quotes, and a quote within is doubled"
                )));
            }
            for (texts, column) in texts.iter_mut().zip(selected) {
                let cell = self.field(self.fields[*column]);
                if cell.len() > self.limits.text_bytes_max {
                    let (row, name) = (first_row + rows as u64, &columns[*column].name);
                    return Err(Trouble::Limit {
                        what: format!("bytes of text in row {row}, column `{}`", shown(name)),
                        actual: cell.len() as u64,
                        max: self.limits.text_bytes_max as u64,
                        advice: "is a quote missing?",
                    });
                }
                texts.push(cell);
                bytes += cell.len() + size_of::<usize>();
            }
            rows += 1;
        }
        let cells = texts.into_iter().map(Cells::written).collect();
        Ok((rows > 0).then_some((rows, cells)))
    }

    /// The names of the columns, from the first line.
    fn header(&mut self, width: usize) -> Result<Vec<Column>, Trouble> {
        self.width = width;
        let mut columns = Vec::with_capacity(width);
        let mut seen = BTreeSet::new();
        let mut numbers = 0;
        let mut fields = Vec::with_capacity(width);
        for field in 0..width {
            let name = std::str::from_utf8(self.field(field)).map(str::trim).map_err(|_| {
                Trouble::Malformed("its first line is not UTF-8; convert the file".to_owned())
            })?;
            if name.is_empty() {
                continue;
            }
            if !seen.insert(name) {
                return Err(Trouble::Malformed(format!(
                    "two columns are named `{}`; give each a name of its own",
                    shown(name)
                )));
            }
            numbers += usize::from(name.parse::<f64>().is_ok());
            columns.push(Column { name: name.to_owned(), kind: Kind::Written });
            fields.push(field);
        }
        self.fields = fields;
        if columns.is_empty() {
            return Err(Trouble::Empty);
        }
        if numbers == columns.len()
            && columns.iter().enumerate().any(|(i, c)| c.name != i.to_string())
        {
            return Err(Trouble::Malformed(
                "its first line is all numbers; put a line with the names of the columns above it"
                    .to_owned(),
            ));
        }
        Ok(columns)
    }

    fn field(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.record[start..self.ends[index]]
    }

    /// Reads one line, or several where a quoted text has line ends: its number, from 1, and its fields.
    fn record(&mut self) -> Result<Option<(u64, usize)>, Trouble> {
        if self.ahead.is_empty() {
            self.fill()?;
        }
        // What is left of the end of the line before, and empty lines, are passed over with this record.
        let ahead = self.buffer[self.ahead.clone()].iter();
        let passed = ahead.take_while(|byte| b"\r\n".contains(byte)).filter(|byte| **byte == b'\n');
        let line = self.core.line() + passed.count() as u64;
        let (mut length, mut fields) = (0, 0);
        loop {
            if self.ahead.is_empty() {
                self.fill()?;
            }
            let (result, read, written, ended) = self.core.read_record(
                &self.buffer[self.ahead.clone()],
                &mut self.record[length..],
                &mut self.ends[fields..],
            );
            self.ahead.start += read;
            length += written;
            fields += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::Record => return Ok(Some((line, fields))),
                ReadRecordResult::End => return Ok(None),
                ReadRecordResult::OutputFull if length < self.limits.row_bytes_max => {
                    let longer = (2 * self.record.len()).min(self.limits.row_bytes_max);
                    self.record.resize(longer, 0);
                }
                ReadRecordResult::OutputFull => {
                    return Err(Trouble::Limit {
                        what: format!("bytes in line {line}"),
                        actual: length as u64 + 1,
                        max: self.limits.row_bytes_max as u64,
                        advice: "is a quote missing?",
                    });
                }
                ReadRecordResult::OutputEndsFull => {
                    return Err(Trouble::Limit {
                        what: format!("columns in line {line}"),
                        actual: fields as u64 + 1,
                        max: self.limits.columns_max as u64,
                        advice: "write the columns that are needed only",
                    });
                }
            }
        }
    }

    fn fill(&mut self) -> Result<(), Trouble> {
        let read = loop {
            match self.file.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.ahead = 0..read;
        Ok(())
    }
}

fn plural(fields: usize) -> String {
    if fields == 1 { "1 field".to_owned() } else { format!("{fields} fields") }
}

/// The separator that the first line has most of, outside of quotes; a comma if it has none.
fn delimiter(beginning: &[u8]) -> u8 {
    const KNOWN: [u8; 4] = *b",;\t|";
    let mut counts = [0usize; KNOWN.len()];
    let mut quoted = false;
    for byte in beginning {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => break,
            byte if !quoted => {
                if let Some(which) = KNOWN.iter().position(|known| known == byte) {
                    counts[which] += 1;
                }
            }
            _ => {}
        }
    }
    let most = (0..KNOWN.len()).rev().max_by_key(|which| counts[*which]);
    KNOWN[most.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Dataset, DatasetError};

    fn open(content: &[u8], limits: Limits) -> Result<Dataset, DatasetError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.csv");
        std::fs::write(&path, content).unwrap();
        Dataset::open(&path, limits)
    }

    /// Names, and the rows as text.
    fn read(content: &[u8], limits: Limits) -> Result<(Vec<String>, Vec<Vec<String>>), String> {
        let told = |error: DatasetError| error.trouble.to_string();
        let mut dataset = open(content, limits).map_err(told)?;
        let names = dataset.columns().iter().map(|column| column.name.clone()).collect();
        let mut rows = Vec::new();
        while let Some(batch) = dataset.next(2).map_err(told)? {
            assert_eq!(batch.first_row, rows.len() as u64 + 1);
            rows.extend((0..batch.rows).map(|row| {
                let text = |cells: &Cells| cells.utf8(row).unwrap().unwrap().into_owned();
                batch.cells.iter().map(text).collect()
            }));
        }
        Ok((names, rows))
    }

    fn check(content: &[u8], names: &[&str], rows: &[&[&str]]) {
        let read = read(content, Limits::default()).unwrap();
        assert_eq!(read.0, names);
        assert_eq!(read.1, rows, "{content:?}");
    }

    fn refused(content: &[u8], limits: Limits, expected: &str) {
        let error = read(content, limits).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn rows_are_read_as_rfc_4180_and_pandas_write_them() {
        check(b"a,b\n1,2\n3,4\n5,6\n", &["a", "b"], &[&["1", "2"], &["3", "4"], &["5", "6"]]);
        check(b"\xef\xbb\xbfa;\"b,c\"\r\n1;\"2;3\"\r\n", &["a", "b,c"], &[&["1", "2;3"]]);
        check(b"a\tb\n\"x\n\"\"y\"\"\"\t\n", &["a", "b"], &[&["x\n\"y\"", ""]]);
        check(b",a\n0,7\n1,8", &["a"], &[&["7"], &["8"]]);
        check(b"only\nx\n\ny\n", &["only"], &[&["x"], &["y"]]);
        check(b"a,b\n", &["a", "b"], &[]);
        check(b"0,1\n3,4\n", &["0", "1"], &[&["3", "4"]]);
    }

    #[test]
    fn what_is_no_table_is_told_with_its_place() {
        let limits = Limits::default();
        refused(b"", limits, "is empty");
        refused(b"a,b\n1,2\n3\n", limits, "line 3 has 1 field, the first line has 2");
        refused(b"a,b\r\n1,2\r\n\r\n1,2,3\r\n", limits, "line 4 has 3 fields");
        refused(b"a,a\n", limits, "two columns are named `a`");
        refused(b"1.5,2\n3,4\n", limits, "first line is all numbers");
        refused(b"a,\xff\n", limits, "not UTF-8");
    }

    #[test]
    fn nothing_takes_more_memory_than_it_may() {
        let small =
            Limits { columns_max: 3, text_bytes_max: 8, row_bytes_max: 16, batch_bytes_max: 20 };
        refused(b"a,b,c,d\n", small, "more than the 3");
        refused(b"a,b\n123456789,1\n", small, "has 9 bytes of text in row 1, column `a`");
        refused(b"a,b\n1,\"2\n3,4\n5,6\n7,8\n9,10\n11,12\n", small, "line 2");
        let mut dataset = open(b"a\n1234567\n1234567\n1234567\n", small).unwrap();
        assert_eq!(dataset.next(3).unwrap().unwrap().rows, 2, "a batch ends early");
    }

    #[test]
    fn columns_are_found_by_name_and_chosen() {
        let mut dataset = open(b"id,amount,label\n1,2,3\n", Limits::default()).unwrap();
        let error = dataset.column("Amuont").unwrap_err().to_string();
        assert!(error.contains("did you mean `amount`?"), "{error}");
        dataset.select([2, 1]).unwrap();
        assert_eq!((dataset.place(1), dataset.place(0)), (Some(0), None));
        let batch = dataset.next(10).unwrap().unwrap();
        assert_eq!(batch.cells[1].integer(0), Ok(Some(3)));
        assert!(dataset.next(10).unwrap().is_none());
    }
}
