//! Notes of one worker on their way to the thread that tells of them.
//!
//! Two rooms, each behind a lock that nobody waits for on the path: the reader holds one for the moment in which it
//! exchanges the notes for an empty room, and meanwhile the worker writes into the other. The lock is given back with a
//! plain store; a mutex is given back by an exchange, which waits until all that was stored before is in the cache.
//! Always true:
//! - The worker finds a room that is free, as the reader never holds both, and passes from one to the other but once.
//! - Where a note does not fit, it is not there, and the notes before it are whole.
//! - The memory of two rooms is used again and again while the reader keeps up: it stays in the caches.
//!
//! Not here: the content of notes (`note`), what becomes of them (`access`).

use try_lock::TryLock;

use crate::model::Trace;

use super::note::{Note, Texts};

/// Notes of one worker.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Outbox {
    rooms: [TryLock<Room>; 2],
    bytes_max: usize,
}

/// Notes, the oldest first; apart from them what only some have, and what has no fixed length.
#[derive(Debug, Default)]
pub(super) struct Room {
    notes: Vec<Note>,
    texts: Vec<u8>,
    traces: Vec<Trace>,
}

impl Room {
    /// An empty one, for so many bytes.
    fn new(bytes_max: usize) -> Self {
        // At once, as growing copies; the system gives the memory once it is written. All together never hold more than
        // `bytes_max`, though each may have held most of it at some time.
        Self {
            notes: Vec::with_capacity(bytes_max / size_of::<Note>()),
            texts: Vec::with_capacity(bytes_max),
            traces: Vec::with_capacity(bytes_max / size_of::<Note>()),
        }
    }

    /// Bytes of all that is here.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.notes) + self.texts.len() + size_of_val(&*self.traces)
    }

    /// All notes with what belongs to them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Note, Texts<'_>, Option<Trace>)> {
        let (mut left, mut traces) = (&*self.texts, self.traces.iter());
        self.notes.iter().map_while(move |note| {
            let (texts, behind) = Texts::first(note.lengths, left)?;
            left = behind;
            Some((note, texts, if note.has_trace { traces.next().copied() } else { None }))
        })
    }

    fn clear(&mut self) {
        self.notes.clear();
        self.texts.clear();
        self.traces.clear();
    }
}

impl Outbox {
    /// An empty one, for so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { rooms: [(); 2].map(|()| TryLock::new(Room::new(bytes_max))), bytes_max }
    }

    /// A room for [`Outbox::take`].
    pub(super) fn spare(&self) -> Room {
        Room::new(self.bytes_max)
    }

    /// Adds a note with its texts, which are cut; returns the bytes that wait without it and those with it, `None` if
    /// there was no room.
    #[inline]
    pub(super) fn add(
        &self,
        note: &mut Note,
        texts: Texts<'_>,
        trace: Option<Trace>,
    ) -> Option<(usize, usize)> {
        (note.lengths, note.has_trace) = (texts.lengths(), trace.is_some());
        let texts = texts.all();
        // The reader may have gone from the first to the second between two tries.
        let mut room = [0, 1, 0].into_iter().find_map(|room| self.rooms[room].try_lock())?;
        let before = room.bytes();
        let added: usize = texts.iter().map(|text| text.len()).sum();
        let added = added + if note.has_trace { size_of::<Trace>() } else { 0 };
        let after = before + size_of::<Note>() + added;
        if after > self.bytes_max {
            return None;
        }
        room.notes.extend_from_slice(std::slice::from_ref(note));
        // Most have no name of their client's, and no arm that failed.
        texts
            .iter()
            .filter(|text| !text.is_empty())
            .for_each(|text| room.texts.extend_from_slice(text));
        room.traces.extend(trace);
        Some((before, after))
    }

    /// Hands out the notes of each room in turn, through `spare`, which is empty before and after.
    pub(super) fn take(&self, spare: &mut Room, mut each: impl FnMut(&Room)) {
        for room in &self.rooms {
            let mut held = loop {
                match room.try_lock() {
                    Some(held) => break held,
                    // The worker is done in a moment.
                    None => std::thread::yield_now(),
                }
            };
            std::mem::swap(&mut *held, spare);
            drop(held);
            if !spare.notes.is_empty() {
                each(spare);
                spare.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;
    use crate::edge::note::Use;

    const LINE: Use = Use { is_line: true, has_spans: false };

    fn trace_of(path: &str) -> Trace {
        let id = path.bytes().fold(0, |id, byte| id << 8 | u128::from(byte));
        Trace::begun(1.0, id, 1).unwrap()
    }

    fn add(outbox: &Outbox, path: &str) -> Option<(usize, usize)> {
        // Every other one has a place in a trace.
        let trace = path.len().is_multiple_of(2).then(|| trace_of(path));
        let texts = Texts { method: b"GET", path: path.as_bytes(), arm: b"a", ..Texts::NONE };
        let mut note = Note { wanted: LINE, ..Note::open(Version::HTTP_11, None) };
        outbox.add(&mut note, texts, trace)
    }

    /// Paths of the notes in a room.
    fn paths(room: &Room) -> Vec<String> {
        let paths = room.all().map(|(note, texts, trace)| {
            assert_eq!((note.wanted, texts.method, texts.arm), (LINE, &b"GET"[..], &b"a"[..]));
            let path = String::from_utf8(texts.path.to_vec()).unwrap();
            assert_eq!(trace, path.len().is_multiple_of(2).then(|| trace_of(&path)));
            path
        });
        let paths: Vec<_> = paths.collect();
        assert_eq!(paths.len(), room.notes.len(), "all are whole");
        paths
    }

    fn taken(outbox: &Outbox) -> Vec<String> {
        let mut all = Vec::new();
        outbox.take(&mut Room::default(), |room| all.extend(paths(room)));
        all
    }

    #[test]
    fn notes_come_out_whole_and_what_does_not_fit_is_refused() {
        let (first, second) = ("/first", "/seconds");
        let length = add(&Outbox::new(4096), first).unwrap().1;
        let outbox = Outbox::new(2 * length);
        assert_eq!(add(&outbox, first), Some((0, length)));
        assert_eq!(add(&outbox, second), None, "longer by two bytes");
        assert_eq!(add(&outbox, first), Some((length, 2 * length)));
        assert_eq!(add(&outbox, first), None);
        assert_eq!(taken(&outbox), [first, first]);
        assert!(taken(&outbox).is_empty());
        assert_eq!(add(&outbox, second), Some((0, length + 2)));
        assert_eq!(taken(&outbox), [second]);
    }

    #[test]
    fn a_worker_and_a_reader_on_two_threads_lose_no_note() {
        const NOTES: usize = 20_000;
        let outbox = Outbox::new(1 << 14);
        let mut read: Vec<usize> = Vec::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for number in 0..NOTES {
                    let path = format!("/{number}");
                    while add(&outbox, &path).is_none() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut spare = Room::default();
            while read.len() < NOTES {
                outbox.take(&mut spare, |room| {
                    read.extend(paths(room).iter().map(|path| path[1..].parse::<usize>().unwrap()));
                });
                std::thread::yield_now();
            }
        });
        read.sort_unstable();
        assert!(read.into_iter().eq(0..NOTES), "each once");
    }
}
