//! The folder of the table: `predictions/MODEL/VERSION/*.parquet`, and `.open/` for files that are being written.
//!
//! A file is written in `.open/` under a lock, synced, and renamed to its place. A file in `.open/` without a lock was
//! left by a process that was killed: it has no footer, so it is removed. Where a version's folder holds other
//! columns, as of other files under the same number, rows go to `VERSION-2`, and so on. Where complete files leave the
//! folder, `.columns/` has an empty file for each version's folder that keeps its columns.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parquet::{
    basic::Compression,
    errors::ParquetError,
    file::{
        properties::{EnabledStatistics, WriterProperties},
        reader::{FileReader as _, SerializedFileReader},
        writer::SerializedFileWriter,
    },
    schema::types::{Type, TypePtr},
};

use crate::model::Moment;

use super::columns::Columns;

/// Folder of files that are being written.
const OPEN: &str = ".open";
/// Folder of the columns of folders that complete files leave.
const COLUMNS: &str = ".columns";

/// Folders of one version with different columns.
const FOLDERS_MAX: u32 = 1000;

/// Why rows are not in a file, or cannot be read from it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The format, or the system while it was written.
    #[error("`{}`: {source}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The error.
        source: ParquetError,
    },
}

impl FileError {
    /// True if the file or folder is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The folder.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    process: u64,
    files: u64,
    /// True if complete files leave it.
    is_passed: bool,
}

/// A file that is being written.
pub(super) struct Open {
    writer: Option<SerializedFileWriter<File>>,
    temporary: PathBuf,
    target: PathBuf,
    /// Rows in it.
    pub(super) rows: u64,
}

/// The time that the name of a file begins with: that at which the file was begun.
#[must_use]
pub fn stamp(begun: Duration) -> String {
    Moment::at(begun).to_string().chars().filter(|c| !"-:.".contains(*c)).collect()
}

/// False if a file of this name was begun after a time.
#[must_use]
pub fn is_begun_by(name: &str, time: Duration) -> bool {
    name.split('-').next().is_none_or(|begun| begun <= stamp(time).as_str())
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { path, source }
}

pub(super) fn in_file(path: &Path) -> impl FnOnce(ParquetError) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Parquet { path, source }
}

impl Folder {
    /// The folder at this path, made where it is not there; `process` tells its files from those of others. Complete
    /// files leave it if `is_passed`.
    ///
    /// Returns as well the files that were lost.
    pub(super) fn open(
        root: PathBuf,
        process: u64,
        is_passed: bool,
    ) -> Result<(Self, Vec<PathBuf>), FileError> {
        let folder = Self { root, process, files: 0, is_passed };
        let open = folder.being_written();
        fs::create_dir_all(&open).map_err(at(&open))?;
        let mut lost = Vec::new();
        for entry in fs::read_dir(&open).map_err(at(&open))?.flatten() {
            let path = entry.path();
            // Whoever writes it holds the lock, until the process ends.
            let is_left = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
            if is_left && fs::remove_file(&path).is_ok() && is_table(&path) {
                lost.push(path);
            }
        }
        Ok((folder, lost))
    }

    fn being_written(&self) -> PathBuf {
        self.root.join(OPEN)
    }

    /// Begins a file with these columns, in `table/MODEL/NAME`.
    pub(super) fn begin(
        &mut self,
        (table, model, name): (&str, &str, &str),
        columns: &Columns,
        now: Duration,
    ) -> Result<Open, FileError> {
        self.files += 1;
        let folder = self.fitting(&Path::new(table).join(model), name, columns.schema())?;
        let name = format!("{}-{:08x}-{}.parquet", stamp(now), self.process >> 32, self.files);
        let open = self.being_written();
        let temporary = open.join(&name);
        let file = File::create_new(&temporary).map_err(at(&temporary))?;
        file.lock().map_err(at(&temporary))?;
        let writer = begun(file, columns.schema()).map_err(in_file(&temporary))?;
        Ok(Open { writer: Some(writer), temporary, target: folder.join(name), rows: 0 })
    }

    /// Removes the oldest files until all together have at most so many bytes; returns the number removed.
    pub(super) fn bound(&self, bytes_max: u64) -> Result<u64, FileError> {
        let mut files = Vec::new();
        collect(&self.root, 3, &mut files).map_err(at(&self.root))?;
        let mut sum: u64 = files.iter().map(|(_, _, bytes)| bytes).sum();
        // Their names begin with the time.
        files.sort();
        let mut removed = 0;
        for (_, path, bytes) in files {
            if sum <= bytes_max {
                break;
            }
            match fs::remove_file(&path) {
                Ok(()) => removed += 1,
                // Somebody else has.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(&path)(error)),
            }
            sum -= bytes;
        }
        Ok(removed)
    }

    /// The folder for files with this schema: the first that has none, or one with the same columns.
    fn fitting(&self, base: &Path, name: &str, schema: &TypePtr) -> Result<PathBuf, FileError> {
        for number in 1..FOLDERS_MAX {
            let name = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
            let folder = self.root.join(base).join(&name);
            fs::create_dir_all(&folder).map_err(at(&folder))?;
            if !self.is_passed {
                if holds(&folder)?.is_none_or(|path| has_schema(&path, schema)) {
                    return Ok(folder);
                }
                continue;
            }
            let columns = self.root.join(COLUMNS).join(base).join(&name);
            let is_noted = columns.try_exists().map_err(at(&columns))?;
            let known = if is_noted { Some(columns.clone()) } else { holds(&folder)? };
            if known.is_none_or(|path| has_schema(&path, schema)) {
                if !is_noted {
                    let temporary = format!("{:08x}-{}.columns", self.process >> 32, self.files);
                    note(&columns, schema, &self.being_written().join(temporary))?;
                }
                return Ok(folder);
            }
        }
        let base = self.root.join(base);
        Err(at(&base)(io::Error::other("too many folders of one version; remove old ones")))
    }
}

/// Writes down the columns of the folder of a file that is about to leave it.
pub(super) fn note_columns_of(root: &Path, path: &Path) -> Result<(), FileError> {
    let (Ok(below), Some(name)) = (path.strip_prefix(root), path.file_name()) else {
        return Ok(());
    };
    let Some(folder) = below.parent() else { return Ok(()) };
    let columns = root.join(COLUMNS).join(folder);
    if columns.try_exists().map_err(at(&columns))? {
        return Ok(());
    }
    let file = File::open(path).map_err(at(path))?;
    let reader = SerializedFileReader::new(file).map_err(in_file(path))?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema_ptr();
    let temporary = root.join(OPEN).join(name).with_extension("columns");
    note(&columns, &schema, &temporary)
}

/// Writes down a schema, as a file without rows.
fn note(columns: &Path, schema: &TypePtr, temporary: &Path) -> Result<(), FileError> {
    if let Some(folder) = columns.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let file = File::create(temporary).map_err(at(temporary))?;
    file.lock().map_err(at(temporary))?;
    let file = begun(file, schema).and_then(SerializedFileWriter::into_inner);
    file.map_err(in_file(temporary))?.sync_all().map_err(at(temporary))?;
    fs::rename(temporary, columns).map_err(at(columns))
}

/// A file with these columns, without rows.
fn begun(file: File, schema: &TypePtr) -> Result<SerializedFileWriter<File>, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by(concat!("tidegate ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    SerializedFileWriter::new(file, Arc::clone(schema), Arc::new(properties))
}

/// Finds the complete files so many levels below a folder: name, path, bytes.
pub(super) fn collect(
    folder: &Path,
    levels: u32,
    found: &mut Vec<(std::ffi::OsString, PathBuf, u64)>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir()
            && levels > 0
            && !entry.file_name().as_encoded_bytes().starts_with(b".")
        {
            collect(&path, levels - 1, found)?;
        } else if metadata.is_file() && is_table(&path) {
            found.push((entry.file_name(), path, metadata.len()));
        }
    }
    Ok(())
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "parquet")
}

/// A complete file of a folder.
fn holds(folder: &Path) -> Result<Option<PathBuf>, FileError> {
    let mut entries = fs::read_dir(folder).map_err(at(folder))?.flatten();
    Ok(entries.find_map(|entry| Some(entry.path()).filter(|path| is_table(path))))
}

fn has_schema(path: &Path, schema: &Type) -> bool {
    let read = || {
        let reader = SerializedFileReader::new(File::open(path).ok()?).ok()?;
        let metadata = reader.metadata().file_metadata();
        Some(metadata.schema_descr().root_schema() == schema)
    };
    // One that is no table of ours has other columns.
    read().unwrap_or(false)
}

impl Open {
    /// Writes rows as a group, and takes them out of `columns`.
    pub(super) fn write(&mut self, columns: &mut Columns) -> Result<(), FileError> {
        let writer = self.writer.as_mut().expect("it is there until the file is complete");
        let rows = columns.rows();
        columns.write(writer).map_err(in_file(&self.temporary))?;
        self.rows += rows;
        Ok(())
    }

    /// Bytes of the file so far.
    pub(super) fn bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.bytes_written() as u64)
    }

    /// Ends the file and puts it in its place; returns the number of its rows.
    pub(super) fn complete(mut self) -> Result<u64, FileError> {
        let writer = self.writer.take().expect("it is there until the file is complete");
        let file = writer.into_inner().map_err(in_file(&self.temporary))?;
        file.sync_all().map_err(at(&self.temporary))?;
        fs::rename(&self.temporary, &self.target).map_err(at(&self.target))?;
        if let Some(folder) = self.target.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
        }
        Ok(self.rows)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Gone if it was renamed.
        drop(self.writer.take());
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        model::{ModelName, Signature, TensorSpec, VersionId},
        serve::{SampleSettings, Samples},
        tensor::DataType,
    };

    /// Columns of a version with these inputs.
    fn columns(inputs: &[&str]) -> Columns {
        let spec = |name: &&str| TensorSpec {
            name: (*name).to_owned(),
            datatype: DataType::Fp32,
            dims: Some(vec![-1]),
            view: None,
        };
        let inputs = inputs.iter().map(spec).collect();
        let signature = Signature { inputs, ..Signature::default() };
        let settings =
            SampleSettings { share: 1.0, shares: BTreeMap::new(), waiting_max: 1, bytes_max: 1 };
        let samples = Arc::new(Samples::new(settings));
        let model = ModelName::parse("m").unwrap();
        let of = (&model, VersionId::new(3), "digest");
        let sampling = samples.of(of, (&signature, true), Vec::new(), None).unwrap();
        Columns::new(&sampling, &[], 8).unwrap()
    }

    fn names(columns: &Columns) -> Vec<&str> {
        columns.schema().get_fields().iter().skip(9).map(|field| field.name()).collect()
    }

    #[test]
    fn names_that_are_taken_get_a_prefix() {
        let columns = columns(&["Time", "age", "AGE", "row"]);
        assert_eq!(names(&columns), ["input:Time", "age", "input:AGE", "input:row"]);
    }

    #[test]
    fn files_of_one_folder_have_the_same_columns() {
        let root = tempfile::tempdir().unwrap();
        let (mut folder, lost) = Folder::open(root.path().to_owned(), 7, false).unwrap();
        assert_eq!(lost, Vec::<PathBuf>::new());
        let mut write = |inputs: &[&str], seconds| {
            let now = Duration::from_secs(seconds);
            let file = folder.begin(("predictions", "m", "3"), &columns(inputs), now).unwrap();
            let target = file.target.clone();
            assert!(!target.try_exists().unwrap());
            file.complete().unwrap();
            assert!(target.try_exists().unwrap());
            target.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
        };
        let folders = [(&["x"][..], 1), (&["x"], 2), (&["y"], 3), (&["x"], 4), (&["y"], 5)];
        let folders = folders.map(|(inputs, seconds)| write(inputs, seconds));
        assert_eq!(folders, ["3", "3", "3-2", "3", "3-2"]);
        let mut files = Vec::new();
        collect(root.path(), 3, &mut files).unwrap();
        files.sort();
        let newest = files.last().unwrap().clone();
        assert_eq!(folder.bound(newest.2).unwrap(), 4);
        assert!(newest.1.try_exists().unwrap() && !files[0].1.try_exists().unwrap());
    }

    #[test]
    fn files_that_leave_the_folder_keep_their_columns_in_mind() {
        let root = tempfile::tempdir().unwrap();
        let open = |process| Folder::open(root.path().to_owned(), process, true).unwrap().0;
        let write = |folder: &mut Folder, inputs: &[&str], seconds| {
            let now = Duration::from_secs(seconds);
            let file = folder.begin(("predictions", "m", "3"), &columns(inputs), now).unwrap();
            let target = file.target.clone();
            file.complete().unwrap();
            target
        };
        let name = |path: &Path| path.parent().unwrap().file_name().unwrap().to_owned();
        let mut folder = open(7);
        for (inputs, seconds, expected) in [("x", 1, "3"), ("y", 2, "3-2"), ("x", 3, "3")] {
            let path = write(&mut folder, &[inputs], seconds);
            assert_eq!(name(&path), expected);
            fs::remove_file(path).unwrap();
        }
        // One that was written before files left the folder.
        fs::remove_dir_all(root.path().join(COLUMNS)).unwrap();
        let (mut before, _) = Folder::open(root.path().to_owned(), 8, false).unwrap();
        let path = write(&mut before, &["x"], 4);
        note_columns_of(root.path(), &path).unwrap();
        fs::remove_file(path).unwrap();
        let path = write(&mut open(9), &["y"], 5);
        assert_eq!(name(&path), "3-2");
        let mut files = Vec::new();
        collect(root.path(), 3, &mut files).unwrap();
        assert_eq!(files.len(), 1);
        assert!(fs::read_dir(root.path().join(OPEN)).unwrap().next().is_none());
    }

    #[test]
    fn files_that_nobody_writes_any_more_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let (mut folder, _) = Folder::open(root.path().to_owned(), 7, false).unwrap();
        let place = ("predictions", "m", "3");
        let open = folder.begin(place, &columns(&["x"]), Duration::from_secs(1)).unwrap();
        let left = root.path().join(".open/left.parquet");
        fs::write(&left, "PAR1").unwrap();
        let (_, lost) = Folder::open(root.path().to_owned(), 8, false).unwrap();
        assert_eq!(lost, [left]);
        let temporary = open.temporary.clone();
        assert!(temporary.try_exists().unwrap());
        drop(open);
        assert!(!temporary.try_exists().unwrap());
    }
}
