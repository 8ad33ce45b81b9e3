//! Entries of one worker on their way to the thread that tells of them.
//!
//! Two rooms, each behind a mutex that nobody waits for on the path: the reader holds one for the moment in which it
//! exchanges the entries for an empty room, and meanwhile the worker writes into the other. Always true:
//! - The worker finds a room that is free, as the reader never holds both.
//! - Where an entry does not fit, it is not there, and the entries before it are whole.
//! - The memory of two rooms is used again and again while the reader keeps up: it stays in the caches.
//!
//! Not here: the content of entries (`entry`), what becomes of them (`access`).

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::entry::{Entry, Use};

/// Entries of one worker, in words.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Outbox {
    rooms: [Mutex<Vec<u64>>; 2],
    /// Words in one room.
    words_max: usize,
}

impl Outbox {
    /// An empty one, for so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let words_max = bytes_max / size_of::<u64>();
        // At once, as growing copies; the system gives the memory once it is written.
        let rooms = [(); 2].map(|()| Mutex::new(Vec::with_capacity(words_max)));
        Self { rooms, words_max }
    }

    /// A room for [`Outbox::take`].
    pub(super) fn spare(&self) -> Vec<u64> {
        Vec::with_capacity(self.words_max)
    }

    /// Adds an entry; returns the bytes that wait without it and those with it, `None` if there was no room.
    #[inline]
    pub(super) fn add(&self, entry: &Entry<'_>, wanted: Use) -> Option<(usize, usize)> {
        let mut words = self.rooms.iter().find_map(free)?;
        let before = words.len();
        let after = before + entry.words();
        if after > self.words_max {
            return None;
        }
        entry.append(wanted, &mut words);
        Some((before * size_of::<u64>(), after * size_of::<u64>()))
    }

    /// Hands out the entries of each room in turn, through `spare`, which is empty before and after.
    pub(super) fn take(&self, spare: &mut Vec<u64>, mut each: impl FnMut(&[u64])) {
        for room in &self.rooms {
            std::mem::swap(&mut *room.lock().unwrap_or_else(PoisonError::into_inner), spare);
            if !spare.is_empty() {
                each(spare);
                spare.clear();
            }
        }
    }
}

fn free(room: &Mutex<Vec<u64>>) -> Option<MutexGuard<'_, Vec<u64>>> {
    match room.try_lock() {
        Ok(words) => Some(words),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::entry::{Record, tests::of_path};

    const LINE: Use = Use { is_line: true, has_spans: false };

    /// Paths of the entries in a room.
    fn paths(mut words: &[u64]) -> Vec<String> {
        let mut paths = Vec::new();
        while let Some((record, rest)) = Record::first(words) {
            let entry = Entry::read(record.words).unwrap();
            paths.push(String::from_utf8(entry.path.to_vec()).unwrap());
            words = rest;
        }
        assert!(words.is_empty(), "all are whole");
        paths
    }

    fn taken(outbox: &Outbox) -> Vec<String> {
        let mut all = Vec::new();
        outbox.take(&mut Vec::new(), |words| all.extend(paths(words)));
        all
    }

    #[test]
    fn entries_come_out_whole_and_what_does_not_fit_is_refused() {
        let (first, second) = (of_path("/first"), of_path("/second/of/all"));
        let length = Outbox::new(4096).add(&first, LINE).unwrap().1;
        let outbox = Outbox::new(2 * length);
        assert_eq!(outbox.add(&first, LINE), Some((0, length)));
        assert_eq!(outbox.add(&second, LINE), None, "longer by a word");
        assert_eq!(outbox.add(&first, LINE), Some((length, 2 * length)));
        assert_eq!(outbox.add(&first, LINE), None);
        assert_eq!(taken(&outbox), ["/first", "/first"]);
        assert!(taken(&outbox).is_empty());
        assert_eq!(outbox.add(&second, LINE), Some((0, length + 8)));
        assert_eq!(taken(&outbox), ["/second/of/all"]);
    }

    #[test]
    fn a_worker_and_a_reader_on_two_threads_lose_no_entry() {
        const ENTRIES: usize = 20_000;
        let outbox = Outbox::new(1 << 14);
        let mut read: Vec<usize> = Vec::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for number in 0..ENTRIES {
                    let path = format!("/{number}");
                    while outbox.add(&of_path(&path), LINE).is_none() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut spare = Vec::new();
            while read.len() < ENTRIES {
                outbox.take(&mut spare, |words| {
                    read.extend(
                        paths(words).iter().map(|path| path[1..].parse::<usize>().unwrap()),
                    );
                });
                std::thread::yield_now();
            }
        });
        read.sort_unstable();
        assert!(read.into_iter().eq(0..ENTRIES), "each once");
    }
}
