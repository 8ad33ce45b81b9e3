//! The projection: the log's records in `SQLite`, for questions and for people with `sqlite3`.
//!
//! It knows how far it has come, and catches up from the log. It holds nothing that the log does not: what cannot be
//! used is deleted and made anew, and while that does not work the log itself answers.
//!
//! Not here: the truth (`log`).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{
    error::StateError,
    log::{Chosen, Entry, Head, scan},
    record::{Filter, Hash, Record},
};
use crate::model::{ModelName, VersionId};

/// The projection's name in its folder.
pub(super) const PROJECTION: &str = "records.sqlite";

/// Each step leads from the schema version that is its place to the next. Steps are added, never changed.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE record (
        sequence INTEGER PRIMARY KEY,
        hash TEXT NOT NULL,
        unix_nanos INTEGER NOT NULL,
        actor TEXT NOT NULL,
        kind TEXT NOT NULL,
        model TEXT,
        version TEXT,
        reason TEXT NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX record_by_model ON record (model, sequence);
    CREATE INDEX record_by_time ON record (unix_nanos);
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        sequence INTEGER NOT NULL,
        hash TEXT NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;"];

/// How large `SQLite`'s own log may grow: on a small disk it must not take the place of ours.
const WAL_PAGES: u32 = 64;

/// How long somebody else's `sqlite3` may hold it.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// Why the projection was of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    #[error("{0}")]
    File(#[from] io::Error),
    #[error("{}", .0.chain())]
    Log(#[from] StateError),
    #[error("{0}")]
    Misfit(&'static str),
}

impl Trouble {
    /// Whether it says nothing about what is already there: no space, or somebody else's lock.
    fn may_pass(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
        let code = match self {
            Self::Sql(error) => error.sqlite_error_code(),
            Self::File(_) | Self::Log(_) | Self::Misfit(_) => None,
        };
        matches!(code, Some(DiskFull | DatabaseBusy | DatabaseLocked))
    }
}

#[derive(Debug)]
pub(super) struct Projection {
    path: PathBuf,
    log: PathBuf,
    open: Option<Open>,
    /// Why it is behind or closed, and the time of the record at which it was tried last.
    trouble: Option<(String, u64)>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    applied: Head,
}

/// How far a projection says it has come.
pub(super) fn applied(folder: &Path) -> Option<Head> {
    let path = folder.join(PROJECTION);
    fs::metadata(&path).ok()?;
    Some(Open::at(&path).ok()?.applied)
}

impl Projection {
    /// Opens it and brings it up to `head`; also why it was made anew, or why it cannot be used. With `distrust` it
    /// is made anew in any case.
    pub(super) fn open(
        folder: &Path,
        log: &Path,
        head: Head,
        distrust: Option<&'static str>,
    ) -> (Self, Option<String>) {
        let path = folder.join(PROJECTION);
        let existed = path.try_exists().unwrap_or(true);
        let mut projection = Self { path, log: log.to_owned(), open: None, trouble: None };
        let first = match distrust {
            Some(why) => Err(Trouble::Misfit(why)),
            None => projection.reach(head),
        };
        let Err(trouble) = first else {
            let anew = (!existed && head.sequence > 0).then(|| "it was not there".to_owned());
            return (projection, anew);
        };
        projection.mend(&trouble, head, 0);
        (projection, Some(trouble.to_string()))
    }

    /// Why it cannot be used now.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(why, _)| why.as_str())
    }

    /// Takes records that were just acknowledged.
    pub(super) fn follow(&mut self, entries: &[Entry], retry_after: Duration) {
        let Some(last) = entries.last() else { return };
        let now = last.record.unix_nanos;
        if let Some((_, tried)) = &self.trouble
            && Duration::from_nanos(now.abs_diff(*tried)) < retry_after
        {
            return;
        }
        let next = self.open.as_ref().map(|open| open.applied.sequence + 1);
        let result = match &mut self.open {
            Some(open) if next == Some(entries[0].record.sequence) => open.apply(entries),
            _ => self.reach(last.head),
        };
        match result {
            Ok(()) => self.trouble = None,
            Err(trouble) => self.mend(&trouble, last.head, now),
        }
    }

    /// The records up to `head` that are asked for.
    pub(super) fn records(
        &mut self,
        filter: &Filter,
        head: Head,
    ) -> Result<Vec<Record>, StateError> {
        if self.trouble.is_none() {
            match self.reach(head).and_then(|()| self.query(filter)) {
                Ok(records) => return Ok(records),
                Err(trouble) => self.mend(&trouble, head, 0),
            }
            if self.trouble.is_none()
                && let Ok(records) = self.query(filter)
            {
                return Ok(records);
            }
        }
        let mut chosen = Chosen::new(filter);
        scan(&self.log, Head::start(), Some(head.bytes), &mut |entry| chosen.offer(entry))?;
        Ok(chosen.records.into())
    }

    fn query(&self, filter: &Filter) -> Result<Vec<Record>, Trouble> {
        let open = self.open.as_ref().ok_or(Trouble::Misfit("it is closed"))?;
        open.query(filter)
    }

    /// Deletes everything and begins again, unless the trouble may pass. Says so until it works.
    fn mend(&mut self, trouble: &Trouble, head: Head, unix_nanos: u64) {
        if trouble.may_pass() {
            self.trouble = Some((trouble.to_string(), unix_nanos));
            return;
        }
        self.open = None;
        let result = remove(&self.path).map_err(Trouble::File).and_then(|()| self.reach(head));
        self.trouble = result.err().map(|trouble| (trouble.to_string(), unix_nanos));
    }

    /// Applies what the log has and this has not.
    fn reach(&mut self, head: Head) -> Result<(), Trouble> {
        if self.open.is_none() {
            self.open = Some(Open::at(&self.path)?);
        }
        let open = self.open.as_mut().expect("it was just opened");
        if open.applied.sequence >= head.sequence {
            return Ok(());
        }
        let from = open.applied;
        let from = if from.sequence == 0 { Head::start() } else { from };
        let transaction = open.connection.unchecked_transaction()?;
        let mut failed = None;
        let mut reached = from;
        scan(&self.log, from, Some(head.bytes), &mut |entry| {
            if failed.is_none() {
                failed = insert(&transaction, &entry).err();
                reached = entry.head;
            }
            Ok(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        mark(&transaction, reached)?;
        transaction.commit()?;
        open.applied = reached;
        Ok(())
    }
}

impl Open {
    fn at(path: &Path) -> Result<Self, Trouble> {
        make_private(path)?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_MAX)?;
        // What a power cut takes away is caught up from the log.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
        migrate(&connection)?;
        let applied = connection
            .query_row("SELECT sequence, hash, bytes FROM meta", (), |row| {
                let (sequence, hash, bytes) = (row.get(0)?, row.get::<_, String>(1)?, row.get(2)?);
                Ok((sequence, hash, bytes))
            })
            .optional()?;
        let Some((sequence, hash, bytes)) = applied else {
            return Ok(Self { connection, applied: Head::start() });
        };
        // A flipped bit in `meta` must not speak of records that never were.
        let last: Option<(u64, String)> = connection
            .query_row("SELECT sequence, hash FROM record ORDER BY sequence DESC", (), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        if last != Some((sequence, hash.clone())) {
            return Err(Trouble::Misfit("it contradicts itself"));
        }
        let hash = Hash::parse(&hash).ok_or(Trouble::Misfit("it holds a hash that is none"))?;
        Ok(Self { connection, applied: Head { sequence, hash, bytes } })
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), Trouble> {
        let transaction = self.connection.transaction()?;
        for entry in entries {
            insert(&transaction, entry)?;
        }
        let Some(last) = entries.last() else { return Ok(()) };
        mark(&transaction, last.head)?;
        transaction.commit()?;
        self.applied = last.head;
        Ok(())
    }

    fn query(&self, filter: &Filter) -> Result<Vec<Record>, Trouble> {
        let mut sql = "SELECT sequence, unix_nanos, actor, kind, model, version, reason, body \
                       FROM record WHERE sequence > ?1"
            .to_owned();
        let after = i64::try_from(filter.after).unwrap_or(i64::MAX);
        let limit = i64::try_from(filter.limit.min(Filter::LIMIT_MAX)).unwrap_or(i64::MAX);
        let mut values: Vec<&dyn rusqlite::ToSql> = vec![&after, &limit];
        let (model, kind) = (filter.model.as_deref(), filter.kind.as_deref());
        for (column, value) in [("model", &model), ("kind", &kind)] {
            if value.is_some() {
                values.push(value);
                sql += &format!(" AND {column} = ?{}", values.len());
            }
        }
        sql += if filter.newest { " ORDER BY sequence DESC" } else { " ORDER BY sequence" };
        sql += " LIMIT ?2";
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(values.as_slice(), |row| Ok(record(row)))?;
        let mut records = rows.map(|row| row?).collect::<Result<Vec<_>, Trouble>>()?;
        if filter.newest {
            records.reverse();
        }
        Ok(records)
    }
}

fn record(row: &Row) -> Result<Record, Trouble> {
    let misfit = |what| move || Trouble::Misfit(what);
    let model: Option<String> = row.get(4)?;
    let version: Option<String> = row.get(5)?;
    let body: String = row.get(7)?;
    let model = model.as_deref().map(ModelName::parse).transpose();
    let version =
        version.map(|text| VersionId::parse(&text).ok_or_else(misfit("a version is none")));
    Ok(Record {
        sequence: row.get(0)?,
        unix_nanos: row.get(1)?,
        actor: row.get(2)?,
        kind: row.get(3)?,
        model: model.ok().ok_or_else(misfit("a model's name is none"))?,
        version: version.transpose()?,
        reason: row.get(6)?,
        body: serde_json::from_str(&body).ok().ok_or_else(misfit("a body is no JSON"))?,
    })
}

fn insert(transaction: &Transaction, entry: &Entry) -> Result<(), Trouble> {
    let Entry { record, head } = entry;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO record (sequence, hash, unix_nanos, actor, kind, model, version, reason, body) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    statement.execute(params![
        record.sequence,
        head.hash.to_string(),
        record.unix_nanos,
        record.actor,
        record.kind,
        record.model.as_deref(),
        record.version.map(|version| version.to_string()),
        record.reason,
        record.body.to_string(),
    ])?;
    Ok(())
}

fn mark(transaction: &Transaction, head: Head) -> Result<(), Trouble> {
    let hash = head.hash.to_string();
    transaction.execute(
        "INSERT OR REPLACE INTO meta (one, sequence, hash, bytes) VALUES (1, ?1, ?2, ?3)",
        params![head.sequence, hash, head.bytes],
    )?;
    Ok(())
}

fn migrate(connection: &Connection) -> Result<(), Trouble> {
    let version: usize = connection.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    let Some(steps) = MIGRATIONS.get(version..) else {
        return Err(Trouble::Misfit("its schema is newer than this program"));
    };
    for (step, next) in steps.iter().zip(version + 1..) {
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", next)?;
        transaction.commit()?;
    }
    Ok(())
}

/// `SQLite` gives its side files the mode of the main one.
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(drop)
}

/// Deletes a projection with what belongs to it.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
