//! Shapes: dimensions held inline for the ranks that occur in practice.

use std::{fmt, ops::Deref};

use smallvec::SmallVec;

/// The dimensions of a tensor, outermost first; no dimensions make a scalar.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[i64; 6]>);

impl Shape {
    /// A shape of these dimensions; `None` if one is negative.
    pub fn new(dims: &[i64]) -> Option<Self> {
        dims.iter().all(|dim| *dim >= 0).then(|| Self(SmallVec::from_slice(dims)))
    }

    /// Appends a dimension; `false`, and no change, if it is negative.
    pub fn push(&mut self, dim: i64) -> bool {
        if dim >= 0 {
            self.0.push(dim);
        }
        dim >= 0
    }

    /// The product of the dimensions; 1 for a scalar, `None` when it does not fit.
    ///
    /// A dimension of 0 makes the product 0, and the others must fit all the same: engines multiply in order.
    pub fn element_count(&self) -> Option<usize> {
        let mut others = self.0.iter().filter(|dim| **dim != 0);
        let count = others.try_fold(1usize, |count, dim| {
            let count = count.checked_mul(usize::try_from(*dim).ok()?)?;
            isize::try_from(count).is_ok().then_some(count)
        })?;
        if self.0.contains(&0) { Some(0) } else { Some(count) }
    }
}

impl Deref for Shape {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.0
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As the protocol writes it: `[1,30]`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (axis, dim) in self.0.iter().enumerate() {
            if axis > 0 {
                f.write_str(",")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_count_is_checked() {
        let count = |dims: &[i64]| Shape::new(dims).and_then(|shape| shape.element_count());
        assert_eq!(count(&[]), Some(1));
        assert_eq!(count(&[2, 3]), Some(6));
        assert_eq!(count(&[7, 5, 0]), Some(0));
        assert_eq!(count(&[4, i64::MAX, 0]), None);
        assert_eq!(count(&[i64::MAX, 4]), None);
        assert_eq!(count(&[-1]), None);
    }
}
