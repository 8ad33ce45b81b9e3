//! Model names: safe in paths, labels, headers and logs.

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
    fn names_keep_the_rule() {
        for good in ["a", "0", "breast_cancer", "a.b-c", &"x".repeat(128)] {
            assert!(ModelName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "_a", "a..b", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(ModelName::parse(bad).is_err(), "{bad}");
        }
    }
}
