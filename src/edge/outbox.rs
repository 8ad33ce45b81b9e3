//! Lines of one worker on their way to the thread that writes them.
//!
//! Two rooms, each behind a mutex that nobody waits for on the path: the reader holds one for the moment in which it
//! exchanges the lines for an empty room, and meanwhile the worker writes into the other. Always true:
//! - The worker finds a room that is free, as the reader never holds both.
//! - Where a line does not fit, it is not there, and the lines before it are whole.
//! - The memory of two rooms is used again and again while the reader keeps up: it stays in the caches.
//!
//! Not here: the content of lines (`line`), what becomes of them (`access`).

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::{entry::Entry, line::Lines};

/// Lines of one worker.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Outbox {
    rooms: [Mutex<Lines>; 2],
    /// Bytes of lines in one room.
    bytes_max: usize,
}

impl Outbox {
    /// An empty one, for so many bytes of lines.
    pub(super) fn new(bytes_max: usize) -> Self {
        // At once, as growing copies; the system gives the memory once it is written.
        let rooms = [(); 2].map(|()| Mutex::new(Lines::with_room(bytes_max)));
        Self { rooms, bytes_max }
    }

    /// A room for [`Outbox::take`].
    pub(super) fn spare(&self) -> Vec<u8> {
        Vec::with_capacity(self.bytes_max)
    }

    /// Adds the line of an entry; returns the bytes that wait with it and those without, `None` if there was no room.
    pub(super) fn add(&self, entry: &Entry<'_>) -> Option<(usize, usize)> {
        let mut lines = self.rooms.iter().find_map(free)?;
        let before = lines.text().len();
        // Some lines are longer than is left; where nothing is, none needs to be written.
        if before < self.bytes_max {
            lines.add(entry);
        }
        let bytes = lines.text().len();
        if bytes > self.bytes_max || bytes == before {
            lines.cut(before);
            return None;
        }
        Some((bytes, before))
    }

    /// Hands out the lines of each room in turn, through `spare`, which is empty before and after.
    pub(super) fn take(&self, spare: &mut Vec<u8>, mut each: impl FnMut(&[u8])) {
        for room in &self.rooms {
            room.lock().unwrap_or_else(PoisonError::into_inner).swap(spare);
            if !spare.is_empty() {
                each(spare);
                spare.clear();
            }
        }
    }
}

fn free(room: &Mutex<Lines>) -> Option<MutexGuard<'_, Lines>> {
    match room.try_lock() {
        Ok(lines) => Some(lines),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::entry;

    fn taken(outbox: &Outbox) -> String {
        let mut text = Vec::new();
        outbox.take(&mut Vec::new(), |lines| text.extend_from_slice(lines));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn lines_come_out_whole_and_what_does_not_fit_is_refused() {
        let (first, second) = (entry::tests::of_path("/first"), entry::tests::of_path("/second"));
        let length = Outbox::new(4096).add(&first).unwrap().0;
        let outbox = Outbox::new(2 * length);
        assert_eq!(outbox.add(&first), Some((length, 0)));
        assert_eq!(outbox.add(&second), None, "longer by a letter");
        assert_eq!(outbox.add(&first), Some((2 * length, length)));
        assert_eq!(outbox.add(&first), None);
        let text = taken(&outbox);
        assert_eq!((text.len(), text.matches("/first").count()), (2 * length, 2));
        assert!(text.ends_with("}\n") && !text.contains("/second"));
        assert_eq!(taken(&outbox), "");
        assert_eq!(outbox.add(&second), Some((length + 1, 0)));
        assert!(taken(&outbox).contains("/second"));
    }

    #[test]
    fn a_worker_and_a_reader_on_two_threads_lose_no_line() {
        const LINES: usize = 20_000;
        let outbox = Outbox::new(1 << 14);
        let mut read: Vec<usize> = Vec::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for number in 0..LINES {
                    let path = format!("/{number}");
                    while outbox.add(&entry::tests::of_path(&path)).is_none() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut spare = Vec::new();
            while read.len() < LINES {
                outbox.take(&mut spare, |lines| {
                    for line in lines.split_inclusive(|byte| *byte == b'\n') {
                        let line: serde_json::Value = serde_json::from_slice(line).unwrap();
                        let number = line["path"].as_str().and_then(|path| path[1..].parse().ok());
                        read.push(number.unwrap());
                    }
                });
                std::thread::yield_now();
            }
        });
        read.sort_unstable();
        assert!(read.into_iter().eq(0..LINES), "each once");
    }
}
