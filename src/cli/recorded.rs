//! Recorded predictions where they lie: in a folder, or in an object store, of which a copy is made for as long as a
//! command needs it.
//!
//! Of a store only what may matter is copied: files of one model, or those that may hold one prediction.

use std::path::{Path, PathBuf};

use crate::model::PredictionId;

/// Files that a command reads.
#[derive(Debug)]
pub(super) struct Recorded {
    path: PathBuf,
    /// Removes a copy in the end.
    #[cfg(feature = "mirror")]
    _copy: Option<tempfile::TempDir>,
}

/// Aim of a command.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// Predictions and outcomes of this model.
    Model(&'a str),
    /// This prediction and its outcomes.
    Prediction(PredictionId),
}

/// The store holds nothing of what is wanted.
#[derive(Debug, thiserror::Error)]
#[error("there is no {what} at `{address}`")]
pub(super) struct NothingThere {
    address: String,
    what: String,
}

impl Wanted<'_> {
    fn what(self) -> String {
        match self {
            Self::Model(model) => format!("complete file of `{model}`"),
            Self::Prediction(id) => format!("file that may hold {}", id.as_str()),
        }
    }
}

impl Recorded {
    /// Files that are wanted at a place: a path, or the address of an object store.
    pub(super) fn open(place: &Path, wanted: Wanted<'_>) -> anyhow::Result<Self> {
        match place.to_str().filter(|place| place.contains("://")) {
            Some(address) => copied(address, wanted),
            None => Ok(Self {
                path: place.to_owned(),
                #[cfg(feature = "mirror")]
                _copy: None,
            }),
        }
    }

    /// The file or folder to read.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(not(feature = "mirror"))]
fn copied(address: &str, wanted: Wanted<'_>) -> anyhow::Result<Recorded> {
    anyhow::bail!(
        "no {} can be looked for at `{address}`: this build has no client for object stores; build with \
         `--features object-store`, or copy the files into a folder",
        wanted.what()
    )
}

#[cfg(feature = "mirror")]
fn copied(address: &str, wanted: Wanted<'_>) -> anyhow::Result<Recorded> {
    use anyhow::Context as _;
    use indicatif::{ProgressBar, ProgressStyle};

    use crate::source::Bucket;

    // A file is taken from the folder that it lies in.
    let is_file =
        |name: &str| [".parquet", ".csv", ".tsv", ".npy"].iter().any(|it| name.ends_with(it));
    let file = address.rsplit_once('/');
    let file = file.filter(|(folder, name)| folder.contains("://") && is_file(name));
    let (folder, name) = file.map_or((address, None), |(folder, name)| (folder, Some(name)));
    let failed = || format!("recorded predictions in `{address}` cannot be read");
    let bucket = Bucket::open(folder, super::commands::variables()).with_context(failed)?;
    let files = bucket.list().with_context(failed)?;
    let is_wanted = |path: &str, changed| match name {
        Some(name) => path == name,
        None => wanted.may_be_in(path, changed),
    };
    let files: Vec<_> =
        files.into_iter().filter(|file| is_wanted(file.path(), file.changed())).collect();
    // Outcomes alone say nothing.
    let is_one = matches!(wanted, Wanted::Prediction(_));
    if !files.iter().any(|file| !is_one || file.path().starts_with("predictions/")) {
        let what = name.map_or_else(|| wanted.what(), |_| "such file".to_owned());
        return Err(NothingThere { address: address.to_owned(), what }.into());
    }
    let copy = tempfile::tempdir().context("the copy has no folder")?;
    let style = "{spinner} {bytes} of {total_bytes} from the store, {eta} left";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(files.iter().map(crate::source::BucketFile::bytes).sum());
    let bar = bar.with_style(style);
    for file in &files {
        let target = copy.path().join(file.path());
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).context("the copy has no folder")?;
        }
        bucket.take(file, &target, |bytes| bar.inc(bytes)).with_context(failed)?;
    }
    bar.finish_and_clear();
    let path = name.map_or_else(|| copy.path().to_owned(), |name| copy.path().join(name));
    Ok(Recorded { path, _copy: Some(copy) })
}

/// Time by which the clocks of a server and of a store may differ.
#[cfg(feature = "mirror")]
const CLOCKS_APART: std::time::Duration = std::time::Duration::from_mins(5);

/// Time that a prediction may wait for its file.
#[cfg(feature = "mirror")]
const WAITS_MAX: std::time::Duration = std::time::Duration::from_hours(1);

#[cfg(feature = "mirror")]
impl Wanted<'_> {
    /// True unless a file of the table, at this path below an address and put there at this time, cannot hold it.
    fn may_be_in(self, path: &str, changed: std::time::Duration) -> bool {
        if !path.ends_with(".parquet") {
            return false;
        }
        let of_table = ["predictions", "outcomes"].into_iter().find_map(|table| {
            let rest = path.strip_prefix(table)?.strip_prefix('/')?;
            Some((table, rest))
        });
        match (self, of_table) {
            (Self::Model(model), Some((_, rest))) => rest.split('/').next() == Some(model),
            // The address leads into the table.
            (Self::Model(_), None) => true,
            (Self::Prediction(_), None) => false,
            (Self::Prediction(id), Some((table, _))) => {
                let name = path.rsplit('/').next().unwrap_or_default();
                let begun_by = id.made_at() + WAITS_MAX;
                changed + CLOCKS_APART >= id.made_at()
                    // Outcomes come whenever they do.
                    && (table == "outcomes" || crate::predictions::is_begun_by(name, begun_by))
            }
        }
    }
}

#[cfg(all(test, feature = "mirror"))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_may_matter_is_copied() {
        let hour = |hour: u64| Duration::from_hours(494_000 + hour);
        let id = PredictionId::from_bits(u128::from(hour(5).as_secs()) << 96 | 7);
        let name = |hours| format!("{}-0a-1.parquet", crate::predictions::stamp(hour(hours)));
        let check = |wanted: Wanted<'_>, path: &str, put_at, expected| {
            assert_eq!(wanted.may_be_in(path, hour(put_at)), expected, "{wanted:?} {path}");
        };
        let (one, model) = (Wanted::Prediction(id), Wanted::Model("m"));
        let predictions = |hours| format!("predictions/m/1/{}", name(hours));
        check(one, &predictions(4), 5, true);
        check(one, &predictions(3), 4, false);
        check(one, &predictions(7), 8, false);
        check(one, &format!("outcomes/m/{}", name(9)), 10, true);
        check(one, &format!("outcomes/m/{}", name(1)), 2, false);
        check(one, "notes.txt", 5, false);
        check(model, &predictions(1), 1, true);
        check(model, "predictions/other/1/x.parquet", 1, false);
        check(model, "predictions/m/1/x.txt", 1, false);
        check(model, "3/x.parquet", 1, true);
    }
}

#[cfg(all(test, not(feature = "mirror")))]
mod tests {
    use super::*;

    #[test]
    fn a_store_without_a_client_is_refused_with_what_would_be_right() {
        let refused = Recorded::open(Path::new("s3://bucket/table"), Wanted::Model("m"));
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("`m`") && said.contains("--features object-store"), "{said}");
    }
}
