//! Names for predictions: unique in the fleet, made without a lock.

use std::cell::Cell;

use crate::monitor::WorkerId;

/// Makes the names of one worker: 8 digits of the process's start, 4 of the worker, 3 of how many had its number before
/// it, 9 of its count, all hexadecimal.
#[derive(Debug)]
pub struct Names {
    prefix: u64,
    count: Cell<u64>,
}

/// The name of a prediction: 24 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PredictionId([u8; 24]);

impl Names {
    /// `start` tells processes apart: 32 random bits; `before` workers had this number before.
    #[must_use]
    pub fn new(start: u32, worker: WorkerId, before: u64) -> Self {
        let worker = u64::try_from(worker.0 & 0xffff).expect("16 bits fit");
        Self { prefix: u64::from(start) << 16 | worker, count: Cell::new(before << 36) }
    }

    /// The name of the worker's next prediction.
    pub fn next(&self) -> PredictionId {
        let count = self.count.get();
        self.count.set(count.wrapping_add(1));
        let mut name = [0; 24];
        write_hex(&mut name[..12], self.prefix);
        write_hex(&mut name[12..], count);
        PredictionId(name)
    }
}

impl PredictionId {
    /// Stands for the name of a prediction that nobody knows any more.
    pub(super) const UNKNOWN: Self = Self([b'0'; 24]);

    /// Its digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are text")
    }
}

/// Writes the lowest digits that fit.
fn write_hex(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 0xf) as usize];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_process_worker_and_count() {
        let names = Names::new(0xdead_beef, WorkerId(1), 0);
        assert_eq!(names.next().as_str(), "deadbeef0001000000000000");
        assert_eq!(names.next().as_str(), "deadbeef0001000000000001");
        let names = Names::new(0xdead_beef, WorkerId(1), 2);
        assert_eq!(names.next().as_str(), "deadbeef0001002000000000");
    }
}
