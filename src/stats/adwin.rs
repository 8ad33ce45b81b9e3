//! A window over a stream that shrinks when its mean has changed.

use std::collections::VecDeque;

use libm::log;

use super::special::number;

/// Cells of one size that are kept; one more, and the two oldest become one of twice the size.
const CELLS_MAX: usize = 5;

/// Values in each part of the window, at least, and in the whole before it is looked at.
const PART_MIN: u64 = 5;
const WINDOW_MIN: u64 = 10;

/// Adaptive windowing (Bifet & Gavaldà, "Learning from time-changing data with adaptive windowing", 2007): keeps a
/// window of the last values for as long as no cut into an older and a newer part shows two different means.
///
/// At a cut with `n0` and `n1` values the means must differ by more than
/// `sqrt(2 v d / m) + 2 d / (3 m)`, `1/m = 1/(n0 - 4) + 1/(n1 - 4)`, `d = ln(2 ln(n) / delta)`, with `v` the variance
/// of the window, as in river. For errors, which are 0 or 1, and other bounded values: it sees changes of the mean
/// only.
/// A stream of unbounded length takes memory in proportion to the logarithm of the window. Unlike river, which
/// starts anew after a detection, the newer part is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Adwin {
    delta: f64,
    clock: u64,
    values: u64,
    width: u64,
    total: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
    /// Cells of 1, 2, 4 ... values, the oldest first: their sum and their sum of squared distances.
    levels: Vec<VecDeque<(f64, f64)>>,
}

impl Adwin {
    /// An empty window. A change is looked for at every `clock`-th value (river: 32); `delta` bounds the chance of
    /// a false one at each look (usually .002).
    ///
    /// # Panics
    ///
    /// If `delta` does not lie strictly between 0 and 1, or `clock` is 0.
    pub fn new(delta: f64, clock: u64) -> Self {
        assert!(delta > 0.0 && delta < 1.0, "an error probability of {delta}");
        assert!(clock > 0, "a clock that never ticks");
        let levels = vec![VecDeque::new()];
        Self { delta, clock, values: 0, width: 0, total: 0.0, squares: 0.0, levels }
    }

    /// Adds a value; true if the window was cut, as its mean has changed. A value that is not finite is passed over.
    pub fn update(&mut self, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        if self.width > 0 {
            let width = number(self.width);
            let distance = value - self.total / width;
            self.squares += width * distance * distance / (width + 1.0);
        }
        self.total += value;
        self.width += 1;
        self.values += 1;
        self.levels[0].push_back((value, 0.0));
        self.compress();
        if !self.values.is_multiple_of(self.clock) || self.width <= WINDOW_MIN {
            return false;
        }
        let width = self.width;
        while self.has_changed() {
            self.drop_oldest();
        }
        self.width < width
    }

    /// Values in the window.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// Mean of the values in the window; `None` of none.
    pub fn mean(&self) -> Option<f64> {
        (self.width > 0).then(|| self.total / number(self.width))
    }

    /// Sum of squared distances of the window's values from their mean.
    pub fn squares(&self) -> f64 {
        self.squares
    }

    /// Forgets all values.
    pub fn reset(&mut self) {
        *self = Self::new(self.delta, self.clock);
    }

    /// Merges the two oldest cells of each size of which there are too many.
    fn compress(&mut self) {
        let mut level = 0;
        while self.levels[level].len() > CELLS_MAX {
            let cells = &mut self.levels[level];
            let (Some(first), Some(second)) = (cells.pop_front(), cells.pop_front()) else {
                return;
            };
            let size = cell_size(level);
            let distance = (first.0 - second.0) / size;
            let squares = first.1 + second.1 + size * 0.5 * distance * distance;
            level += 1;
            if level == self.levels.len() {
                self.levels.push(VecDeque::new());
            }
            self.levels[level].push_back((first.0 + second.0, squares));
        }
    }

    /// True if some cut shows two different means.
    fn has_changed(&self) -> bool {
        let width = number(self.width);
        let confidence = log(2.0 * log(width) / self.delta);
        let (mut older, mut older_total) = (0, 0.0);
        for (level, cells) in self.levels.iter().enumerate().rev() {
            for (total, _) in cells {
                older += 1 << level;
                older_total += total;
                let newer = self.width - older;
                if older < PART_MIN || newer < PART_MIN {
                    continue;
                }
                let part = |values: u64| 1.0 / number(values - PART_MIN + 1);
                let inverse = part(older) + part(newer);
                let spread = (2.0 * inverse * (self.squares / width) * confidence).sqrt();
                let newer_mean = (self.total - older_total) / number(newer);
                let difference = older_total / number(older) - newer_mean;
                if difference.abs() > spread + 2.0 / 3.0 * confidence * inverse {
                    return true;
                }
            }
        }
        false
    }

    fn drop_oldest(&mut self) {
        let level = self.levels.len() - 1;
        let Some((total, squares)) = self.levels[level].pop_front() else { return };
        let size = cell_size(level);
        self.width -= 1 << level;
        self.total -= total;
        let rest = number(self.width);
        let distance = total / size - self.total / rest;
        let apart = size * rest * distance * distance / (size + rest);
        self.squares = (self.squares - squares - apart).max(0.0);
        if self.levels[level].is_empty() && level > 0 {
            self.levels.pop();
        }
    }
}

/// Values in a cell of a level.
fn cell_size(level: usize) -> f64 {
    number(1 << level)
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, *};

    #[test]
    fn window_keeps_what_has_one_mean() {
        let (mut random, mut window) = (Random::new(3), Adwin::new(0.002, 1));
        let mut bit = |share: f64| if random.unit() < share { 1.0 } else { 0.0 };
        assert_eq!(window.mean(), None);
        assert!((0..5000).all(|_| !window.update(bit(0.1))));
        assert_eq!(window.width(), 5000);
        assert!(window.levels.iter().map(VecDeque::len).sum::<usize>() < 70);
        let found = (0..500).position(|_| window.update(bit(0.4))).unwrap();
        assert!(found < 120, "{found}");
        for _ in 0..500 {
            window.update(bit(0.4));
        }
        assert!((400..1100).contains(&window.width()), "{}", window.width());
        assert!((window.mean().unwrap() - 0.4).abs() < 0.08);
        window.reset();
        assert_eq!(window, Adwin::new(0.002, 1));
    }

    #[test]
    fn constants_and_odd_values_are_no_change() {
        let mut window = Adwin::new(0.002, 1);
        for value in [f64::NAN, f64::INFINITY] {
            assert!(!window.update(value));
        }
        assert!((0..3000).all(|_| !window.update(1.0)));
        assert_eq!((window.width(), window.squares().to_bits()), (3000, 0));
    }
}
