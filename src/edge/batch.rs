//! Lines that are written together, in large pages of memory where the system has such.
//!
//! Of small pages the processor looks up a new one every ten lines, and the system each one again that it hands to the
//! disk. Always true: lines begin where they do in a page of the file, so that whole pages of it are whole ones of
//! memory.
//!
//! Not here: the content of lines (`line`), the file (`rolling`).

use std::io;

use memmap2::{MmapMut, MmapOptions};

use super::rolling::PAGE;

/// Bytes of a large page on most machines; where it is another, small ones do as well.
const LARGE_PAGE: usize = 2 << 20;

/// Most bytes of lines that are written at once, unless one is longer: two large pages, wherever the lines begin in the
/// first small one. A write past the system's cache costs the same however long it is, as much as some hundred lines.
pub(super) const BATCH_BYTES: usize = 2 * LARGE_PAGE - PAGE;

/// Lines that are written together.
#[derive(Debug)]
pub(super) struct Batch {
    /// One large page more than is used, as it may begin anywhere; what is never written takes no memory.
    memory: MmapMut,
    start: usize,
    end: usize,
}

impl Batch {
    /// No lines yet, at the beginning of a page.
    pub(super) fn new() -> io::Result<Self> {
        let memory = MmapOptions::new().len(3 * LARGE_PAGE).map_anon()?;
        // A system without large pages has small ones.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let mut batch = Self { memory, start: 0, end: 0 };
        batch.begin(0);
        Ok(batch)
    }

    /// Begins anew, so many bytes behind the beginning of a page.
    pub(super) fn begin(&mut self, phase: usize) {
        self.start = self.memory.as_ptr().align_offset(LARGE_PAGE) + phase;
        self.end = self.start;
    }

    /// All lines.
    pub(super) fn lines(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// Adds a line, which with those before it is not longer than [`BATCH_BYTES`].
    pub(super) fn put(&mut self, line: &[u8]) {
        let end = self.end + line.len();
        self.memory[self.end..end].copy_from_slice(line);
        self.end = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_where_they_do_in_a_page_and_fill_large_pages() {
        let mut batch = Batch::new().unwrap();
        for phase in [0, 1, PAGE - 1] {
            batch.begin(phase);
            batch.put(b"a line\n");
            batch.put(&vec![b'x'; BATCH_BYTES - 7]);
            let lines = batch.lines();
            assert_eq!((&lines[..8], lines.len()), (&b"a line\nx"[..], BATCH_BYTES));
            assert_eq!(lines.as_ptr().addr() % LARGE_PAGE, phase);
        }
    }
}
