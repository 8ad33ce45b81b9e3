//! Places of bins among those of a feature.

/// Place of a bin among those of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinRole {
    /// Numbers between two edges, in ascending order of the bins.
    Ordered,
    /// Numbers below the smallest of the reference.
    Below,
    /// Numbers above the largest of the reference.
    Above,
    /// Infinities.
    NonFinite,
    /// Missing values.
    Missing,
    /// One category.
    Category,
    /// Categories of the reference that have no bin of their own.
    Other,
    /// Categories that the reference has not.
    Unseen,
}
