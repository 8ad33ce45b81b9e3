//! The `.npy` files of `numpy.save`, formats 1.0 to 3.0: numbers, truth values and fixed-length text.
//!
//! Source: `numpy.lib.format`. The first dimension counts rows; what is left of an array of more dimensions
//! is flattened to columns, which are named by their index.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use half::f16;

use super::{Cells, Column, Kind, Limits, Texts, Trouble, error::shown};

const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header; those of plain arrays have some hundred bytes.
const HEADER_BYTES_MAX: usize = 1 << 16;

/// Contents of a `.npy` file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    element: Element,
    is_big_endian: bool,
    /// Columns after each other instead of rows.
    is_fortran: bool,
    /// The dimensions, the first of which counts rows.
    pub shape: Vec<u64>,
    /// Bytes before the first element.
    pub length: usize,
}

/// Type of an element, with its size in bytes where that varies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Boolean,
    Signed(usize),
    Unsigned(usize),
    Float(usize),
    /// UTF-32, padded with zeros; so many characters.
    Unicode(usize),
    /// Bytes, padded with zeros.
    Bytes(usize),
}

impl Element {
    fn size(self) -> usize {
        match self {
            Self::Boolean => 1,
            Self::Signed(size) | Self::Unsigned(size) | Self::Float(size) | Self::Bytes(size) => {
                size
            }
            Self::Unicode(characters) => 4 * characters,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Boolean => Kind::Boolean,
            Self::Signed(_) | Self::Unsigned(_) => Kind::Integer,
            Self::Float(_) => Kind::Float,
            Self::Unicode(_) | Self::Bytes(_) => Kind::Text,
        }
    }
}

#[derive(Debug)]
pub(super) struct NpyReader {
    file: File,
    header: Header,
    columns: usize,
    next_row: u64,
    limits: Limits,
}

impl Header {
    /// Reads the header from the beginning of a file, which is enough with its first 64 KiB.
    pub fn parse(file: &[u8]) -> Result<Self, Trouble> {
        let wrong = |what: &str| Trouble::Malformed(format!("{what}; write it with numpy.save"));
        let rest = file.strip_prefix(MAGIC).ok_or_else(|| wrong("it is not a .npy file"))?;
        let (length, start) = match rest {
            [1, _, low, high, ..] => (usize::from(u16::from_le_bytes([*low, *high])), 10),
            [2 | 3, _, a, b, c, d, ..] => {
                let length = u32::from_le_bytes([*a, *b, *c, *d]);
                (usize::try_from(length).unwrap_or(usize::MAX), 12)
            }
            _ => return Err(wrong("it is of a format other than 1, 2 and 3, or cut off")),
        };
        if length > HEADER_BYTES_MAX {
            return Err(wrong("its header is longer than any of numbers or text"));
        }
        let text = file.get(start..start + length).ok_or_else(|| wrong("its header is cut off"))?;
        let text = std::str::from_utf8(text).map_err(|_| wrong("its header is not UTF-8"))?;
        let entries = entries(text).ok_or_else(|| wrong("its header is not what NumPy writes"))?;
        let (element, is_big_endian) = element(entries.descr)?;
        Ok(Self {
            element,
            is_big_endian,
            is_fortran: entries.fortran_order,
            shape: entries.shape,
            length: start + length,
        })
    }

    /// The number of rows, and the number of columns; `None` if they do not fit into memory's address range.
    pub fn rows_and_columns(&self) -> Option<(u64, u64)> {
        let columns = self.shape.iter().skip(1).try_fold(1u64, |all, dim| all.checked_mul(*dim))?;
        let rows = self.shape.first().copied().unwrap_or(1);
        let bytes = rows.checked_mul(columns)?.checked_mul(self.element.size() as u64)?;
        bytes.checked_add(self.length as u64)?;
        Some((rows, columns))
    }
}

/// The three entries of a header.
struct Entries<'a> {
    descr: &'a str,
    fortran_order: bool,
    shape: Vec<u64>,
}

/// Reads a Python dictionary of exactly `descr`, `fortran_order` and `shape`.
fn entries(text: &str) -> Option<Entries<'_>> {
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    let mut rest = text.trim().strip_prefix('{')?;
    loop {
        rest = rest.trim_start();
        if let Some(end) = rest.strip_prefix('}') {
            let whole = end.trim_matches(['\0', ' ', '\n']).is_empty();
            return whole.then_some(Entries {
                descr: descr?,
                fortran_order: fortran_order?,
                shape: shape?,
            });
        }
        let quote = rest.chars().next().filter(|quote| "'\"".contains(*quote))?;
        let (key, after) = rest[1..].split_once(quote)?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        rest = match key {
            "descr" if value.starts_with('[') => {
                // Fields of several types; shown as they stand in the complaint about them.
                let end = value.rfind(']')? + 1;
                descr = Some(&value[..end]);
                &value[end..]
            }
            "descr" => {
                let quote = value.chars().next().filter(|quote| "'\"".contains(*quote))?;
                let (text, after) = value[1..].split_once(quote)?;
                descr = Some(text);
                after
            }
            "fortran_order" => {
                let order = value.strip_prefix("True").map(|after| (true, after));
                let order = order.or(value.strip_prefix("False").map(|after| (false, after)));
                let (is_fortran, after) = order?;
                fortran_order = Some(is_fortran);
                after
            }
            "shape" => {
                let (dims, after) = value.strip_prefix('(')?.split_once(')')?;
                let dims = dims.split(',').map(str::trim).filter(|dim| !dim.is_empty());
                // Python 2 wrote `3L`.
                let dims = dims.map(|dim| dim.trim_end_matches('L').parse().ok());
                shape = Some(dims.collect::<Option<Vec<u64>>>()?);
                after
            }
            _ => return None,
        };
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// The element that a type such as `<f8` means, and whether its bytes are big-endian.
fn element(descr: &str) -> Result<(Element, bool), Trouble> {
    let unknown = || {
        Trouble::Malformed(format!(
            "its elements are `{}`; save numbers, truth values or fixed-length text, such as array.astype('float32')",
            shown(descr)
        ))
    };
    let order = descr.chars().next().filter(char::is_ascii).ok_or_else(unknown)?;
    let (order, kind) = if "<>|=".contains(order) { (order, &descr[1..]) } else { ('<', descr) };
    let letter = kind.chars().next().filter(char::is_ascii).ok_or_else(unknown)?;
    let size: usize = kind[1..].parse().map_err(|_| unknown())?;
    let element = match (letter, size) {
        ('b', 1) => Element::Boolean,
        ('i', 1 | 2 | 4 | 8) => Element::Signed(size),
        ('u', 1 | 2 | 4 | 8) => Element::Unsigned(size),
        ('f', 2 | 4 | 8) => Element::Float(size),
        ('U', 1..=0x40_0000) => Element::Unicode(size),
        ('S', 1..=0x100_0000) => Element::Bytes(size),
        _ => return Err(unknown()),
    };
    Ok((element, order == '>'))
}

impl NpyReader {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<(Self, Vec<Column>), Trouble> {
        let mut file = File::open(path)?;
        let mut beginning = Vec::new();
        file.by_ref().take(HEADER_BYTES_MAX as u64 + 12).read_to_end(&mut beginning)?;
        let header = Header::parse(&beginning)?;
        let huge = || Trouble::Malformed("its shape is too large for any file".to_owned());
        let (rows, columns) = header.rows_and_columns().ok_or_else(huge)?;
        let over = |what: &str, actual: u64, max: usize, advice| Trouble::Limit {
            what: what.to_owned(),
            actual,
            max: max as u64,
            advice,
        };
        if columns > limits.columns_max as u64 {
            let advice = "save the columns that are needed only";
            return Err(over("columns", columns, limits.columns_max, advice));
        }
        if header.element.size() > limits.text_bytes_max {
            let (size, max) = (header.element.size() as u64, limits.text_bytes_max);
            return Err(over("bytes in each text", size, max, "save shorter texts"));
        }
        let needed = header.length as u64 + rows * columns * header.element.size() as u64;
        let actual = file.metadata()?.len();
        if actual < needed {
            return Err(Trouble::Malformed(format!(
                "its shape needs {needed} bytes and it has {actual}; it was cut off"
            )));
        }
        let kind = header.element.kind();
        let columns = usize::try_from(columns).expect("columns were compared with their limit");
        let named = (0..columns).map(|index| Column { name: index.to_string(), kind }).collect();
        Ok((Self { file, header, columns, next_row: 0, limits }, named))
    }

    pub(super) fn rows(&self) -> u64 {
        self.header.shape.first().copied().unwrap_or(1)
    }

    pub(super) fn next(
        &mut self,
        selected: &[usize],
        rows_max: usize,
    ) -> Result<Option<(usize, Vec<Cells>)>, Trouble> {
        let size = self.header.element.size();
        let row_bytes = (self.columns * size).max(1);
        let fitting = (self.limits.batch_bytes_max / row_bytes).max(1);
        let left = usize::try_from(self.rows() - self.next_row).unwrap_or(usize::MAX);
        let rows = rows_max.min(fitting).min(left);
        if rows == 0 {
            return Ok(None);
        }
        let mut cells = Vec::with_capacity(selected.len());
        if self.header.is_fortran {
            let mut column = vec![0; rows * size];
            for index in selected {
                self.read(*index as u64 * self.rows() + self.next_row, &mut column)?;
                cells.push(self.cells(&column, 0, size, rows)?);
            }
        } else {
            let mut block = vec![0; rows * self.columns * size];
            self.read(self.next_row * self.columns as u64, &mut block)?;
            for index in selected {
                cells.push(self.cells(&block, index * size, row_bytes, rows)?);
            }
        }
        self.next_row += rows as u64;
        Ok(Some((rows, cells)))
    }

    /// Reads elements from this one on.
    fn read(&mut self, element: u64, bytes: &mut [u8]) -> Result<(), Trouble> {
        let at = self.header.length as u64 + element * self.header.element.size() as u64;
        self.file.seek(SeekFrom::Start(at))?;
        Ok(self.file.read_exact(bytes)?)
    }

    /// The elements that begin at `offset`, and then every `stride` bytes.
    fn cells(
        &self,
        bytes: &[u8],
        offset: usize,
        stride: usize,
        rows: usize,
    ) -> Result<Cells, Trouble> {
        let (element, is_big_endian) = (self.header.element, self.header.is_big_endian);
        let size = element.size();
        let all = (0..rows).map(|row| &bytes[offset + row * stride..][..size]);
        Ok(match element {
            Element::Boolean => Cells::booleans(all.map(|byte| byte[0] != 0).collect(), Vec::new()),
            Element::Signed(size) => {
                let signed = |bytes| {
                    let unused = 64 - 8 * u32::try_from(size).expect("at most 8");
                    (word(bytes, is_big_endian) << unused).cast_signed() >> unused
                };
                Cells::integers(all.map(signed).collect(), Vec::new())
            }
            Element::Unsigned(_) => {
                let large = |_| {
                    Trouble::Malformed(
                        "it has whole numbers above 9223372036854775807; save them as float64"
                            .to_owned(),
                    )
                };
                let unsigned = all.map(|bytes| i64::try_from(word(bytes, is_big_endian)));
                Cells::integers(unsigned.collect::<Result<_, _>>().map_err(large)?, Vec::new())
            }
            Element::Float(size) => {
                let float = |bytes| float(word(bytes, is_big_endian), size);
                Cells::floats(all.map(float).collect(), Vec::new())
            }
            Element::Bytes(_) => {
                let mut texts = Texts::default();
                all.for_each(|bytes| texts.push(trimmed(bytes)));
                Cells::texts(texts, Vec::new())
            }
            Element::Unicode(_) => {
                let mut texts = Texts::default();
                for bytes in all {
                    let (characters, _) = bytes.as_chunks::<4>();
                    let text = characters.iter().map(|c| {
                        let number = word(c, is_big_endian);
                        u32::try_from(number).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
                    });
                    let text: String = text.collect();
                    texts.push(text.trim_end_matches('\0').as_bytes());
                }
                Cells::texts(texts, Vec::new())
            }
        })
    }
}

/// Up to eight bytes as a number.
fn word(bytes: &[u8], is_big_endian: bool) -> u64 {
    let step = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if is_big_endian { bytes.iter().fold(0, step) } else { bytes.iter().rev().fold(0, step) }
}

fn float(bits: u64, size: usize) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "so many bytes were read")]
    match size {
        2 => f64::from(f16::from_bits(bits as u16)),
        4 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataset::{Dataset, DatasetError};

    fn file(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
        let padded = format!("{header:<117}\n");
        let length = u16::try_from(padded.len()).unwrap().to_le_bytes();
        [MAGIC, &[1, 0], &length, padded.as_bytes(), data].concat()
    }

    fn open(content: &[u8]) -> Result<Dataset, DatasetError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.npy");
        std::fs::write(&path, content).unwrap();
        Dataset::open(&path, Limits::default())
    }

    /// The rows as text, read two at a time.
    fn read(content: &[u8]) -> Result<Vec<Vec<String>>, String> {
        let mut dataset = open(content).map_err(|error| error.trouble.to_string())?;
        let mut rows = Vec::new();
        while let Some(batch) = dataset.next(2).map_err(|error| error.trouble.to_string())? {
            rows.extend((0..batch.rows).map(|row| {
                let text = |cells: &Cells| cells.utf8(row).unwrap().unwrap().into_owned();
                batch.cells.iter().map(text).collect()
            }));
        }
        Ok(rows)
    }

    #[test]
    fn rows_come_out_of_both_orders_and_every_type() {
        let check = |content: &[u8], rows: &[&[&str]]| assert_eq!(read(content).unwrap(), rows);
        let rows: &[&[&str]] = &[&["1", "2"], &["3", "4"], &["5", "6"]];
        check(&file("'|i1'", false, "(3, 2)", &[1, 2, 3, 4, 5, 6]), rows);
        check(&file("'|u1'", true, "(3L, 2L)", &[1, 3, 5, 2, 4, 6]), rows);
        check(&file("'<i2'", false, "(2,)", &[254, 255, 1, 0]), &[&["-2"], &["1"]]);
        check(&file("'>u4'", false, "(1, 1, 1)", &[0, 0, 1, 0]), &[&["256"]]);
        check(&file("'|b1'", false, "(2,)", &[0, 1]), &[&["false"], &["true"]]);
        check(&file("'<f2'", false, "(1,)", &[0, 0x3c]), &[&["1"]]);
        check(&file("'<f4'", false, "(1,)", &1.5f32.to_le_bytes()), &[&["1.5"]]);
        check(&file("'>f8'", false, "(1,)", &(-0.25f64).to_be_bytes()), &[&["-0.25"]]);
        check(&file("'|S3'", false, "(2,)", b"ab\0xyz"), &[&["ab"], &["xyz"]]);
        check(&file("'<U2'", false, "(1,)", &[0xe9, 0, 0, 0, 0, 0, 0, 0]), &[&["é"]]);
        check(&file("'<f8'", false, "(0, 4)", &[]), &[]);
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let refused = |content: &[u8], expected: &str| {
            let error = read(content).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refused(b"PK\x03\x04", "not a .npy file");
        refused(&file("'|O'", false, "(1,)", &[]), "its elements are `|O`");
        refused(&file("[('a', '<f8')]", false, "(1,)", &[]), "its elements are `[(");
        refused(&file("'<f4'", false, "(2, 2)", &[0; 15]), "needs 144 bytes and it has 143");
        refused(&file("'<f4'", false, "(1, 20000)", &[]), "has 20000 columns");
        refused(&file("'<f4'", false, "(4294967296, 4294967296)", &[]), "too large");
        refused(&file("'<u8'", false, "(1,)", &[255; 8]), "save them as float64");
        refused(&file("'<f4'", false, "(1", &[]), "not what NumPy writes");
    }

    proptest! {
        #[test]
        fn headers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[{}'a-z_:,()0-9<>|\\[\\] ]{0,60}") {
            let _ = Header::parse(&bytes);
            let framed = [MAGIC, &[1, 0, u8::try_from(text.len()).unwrap(), 0], text.as_bytes()].concat();
            let _ = Header::parse(&framed);
        }

        #[test]
        fn whatever_was_saved_is_read(rows in 1usize..6, columns in 1usize..5, fortran: bool, seed: u32) {
            let value = |row: usize, column: usize| u64::from(seed) + (row * columns + column) as u64;
            let mut data = Vec::new();
            for outer in 0..if fortran { columns } else { rows } {
                for inner in 0..if fortran { rows } else { columns } {
                    let (row, column) = if fortran { (inner, outer) } else { (outer, inner) };
                    data.extend(value(row, column).to_le_bytes());
                }
            }
            let read = read(&file("'<u8'", fortran, &format!("({rows}, {columns})"), &data)).unwrap();
            prop_assert_eq!(read.len(), rows);
            for (row, cells) in read.iter().enumerate() {
                for (column, cell) in cells.iter().enumerate() {
                    prop_assert_eq!(cell.parse::<u64>().unwrap(), value(row, column));
                }
            }
        }
    }
}
