//! Names of models, and aliases of their versions: safe in paths, labels, headers and logs.

use std::{fmt, ops::Deref, sync::Arc};

/// The name of a model: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}` without `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

/// A name that breaks the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not a model name: it needs 1 to {} letters, digits, `.`, `_` or `-`, begins with a letter or digit and \
     holds no `..`",
    name.escape_debug(),
    ModelName::LENGTH_MAX
)]
pub struct ModelNameError {
    name: String,
}

/// A name for a version of a model, such as `stable`: `[A-Za-z][A-Za-z0-9._-]{0,63}` without `..`.
///
/// It begins with a letter, so that it is never taken for a version's number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alias(Arc<str>);

/// An alias that breaks the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not an alias: it needs 1 to {} letters, digits, `.`, `_` or `-`, begins with a letter and holds no `..`",
    name.escape_debug(),
    Alias::LENGTH_MAX
)]
pub struct AliasError {
    name: String,
}

impl Alias {
    /// The longest alias, in bytes.
    pub const LENGTH_MAX: usize = 64;
    /// The alias of the version that requests without a version get, unless it was set to another.
    pub const STABLE: &str = "stable";

    /// Reads an alias.
    pub fn parse(name: &str) -> Result<Self, AliasError> {
        let short = name.len() <= Self::LENGTH_MAX;
        let letter = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if short && letter && ModelName::parse(name).is_ok() {
            return Ok(Self(name.into()));
        }
        Err(AliasError { name: name.chars().take(Self::LENGTH_MAX).collect() })
    }

    /// The alias as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lets maps with aliases as keys be asked with text.
impl std::borrow::Borrow<str> for Alias {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ModelName {
    /// The longest name, in bytes.
    pub const LENGTH_MAX: usize = 128;

    /// Reads a name.
    pub fn parse(name: &str) -> Result<Self, ModelNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let holds = (1..=Self::LENGTH_MAX).contains(&name.len())
            && name.as_bytes()[0].is_ascii_alphanumeric()
            && name.bytes().all(allowed)
            && !name.contains("..");
        if holds {
            return Ok(Self(name.into()));
        }
        Err(ModelNameError { name: name.chars().take(Self::LENGTH_MAX).collect() })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for ModelName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Lets maps with names as keys be asked with text.
impl std::borrow::Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_never_numbers() {
        for good in ["stable", "canary", "a.b-c", "V1", &"x".repeat(64)] {
            assert!(Alias::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "1", "1a", "_a", "a..b", "a/b", "ä", &"x".repeat(65)] {
            assert!(Alias::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_keep_the_rule() {
        for good in ["a", "0", "breast_cancer", "a.b-c", &"x".repeat(128)] {
            assert!(ModelName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "_a", "a..b", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }
}
