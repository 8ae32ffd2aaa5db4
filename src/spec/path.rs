//! The two kinds of path: of a file within a volume, and of an endpoint of the secret store.

use std::fmt;

#[cfg(test)]
mod tests;

/// Longest path of a file, in bytes: what the driver accepts (`fileutil.Validate`), and PATH_MAX.
const MAX_OBJECT_PATH: usize = 4096;

/// Longest element of a file's path, in bytes: NAME_MAX, and the driver's limit.
const MAX_ELEMENT: usize = 255;

/// Longest API path, in bytes. Servers and proxies refuse longer request lines.
const MAX_API_PATH: usize = 4096;

/// Path of a file within a volume: relative, normal, no element that is `..` and none at the top that
/// begins with it (the driver's rules), no control character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectPath(String);

/// Path below `/v1/` (or of an auth mount) in its one canonical form: no empty, `.` or `..` segment, no
/// `%`, `#`, `?`, backslash, control or non-ASCII byte, no slash at either end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApiPath(String);

/// Why a file's path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectPathError {
    /// Nothing.
    #[error("is empty, name the file to write")]
    Empty,
    /// A slash in front.
    #[error("is absolute, name a file below the volume")]
    Absolute,
    /// Over 4096 bytes.
    #[error("is longer than 4096 bytes")]
    TooLong,
    /// An element over 255 bytes.
    #[error("has an element longer than 255 bytes")]
    ElementTooLong,
    /// `..` as an element.
    #[error("has an element \"..\", which would leave the volume")]
    Parent,
    /// The top element begins with `..`: such names belong to the atomic writer.
    #[error("begins with \"..\", which is reserved for the versions of the volume")]
    Reserved,
    /// `.`, `//` or a slash at the end.
    #[error("is not in its shortest form: no \".\", \"//\" or slash at the end")]
    NotClean,
    /// A NUL, newline or other control character.
    #[error("has a control character")]
    Control,
}

/// Why an API path is refused. Refused rather than repaired: the path that policy matched must be the path
/// that the server sees, and servers and clients repair differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiPathError {
    /// Nothing, or only a prefix.
    #[error("is empty, name a path such as secret/data/app")]
    Empty,
    /// Over 4096 bytes.
    #[error("is longer than 4096 bytes")]
    TooLong,
    /// Two slashes in a row.
    #[error("has an empty segment (\"//\")")]
    EmptySegment,
    /// A slash at the end, which in Vault names a folder.
    #[error("ends with a slash, name a secret rather than a folder")]
    TrailingSlash,
    /// A segment `.` or `..`.
    #[error("has a segment \".\" or \"..\"")]
    Dots,
    /// `%`: servers decode it, and `%2F` becomes a slash behind the policy's back.
    #[error("has a \"%\", write the characters themselves")]
    Percent,
    /// `#`.
    #[error("has a \"#\", which begins a fragment in a URL")]
    Fragment,
    /// `?`, where no query may be.
    #[error("has a \"?\" where no query is allowed")]
    Query,
    /// `\`, which some clients turn into a slash.
    #[error("has a backslash")]
    Backslash,
    /// A NUL, newline or other control byte.
    #[error("has a control character")]
    Control,
    /// Anything that is not ASCII, such as a look-alike letter.
    #[error("has a character that is not ASCII")]
    NotAscii,
    /// A segment with a space at an end, which URL libraries strip.
    #[error("has a segment that begins or ends with a space")]
    Space,
}

impl ObjectPath {
    /// Parses and validates.
    ///
    /// # Errors
    /// Says which rule the path breaks.
    pub fn parse(text: &str) -> Result<Self, ObjectPathError> {
        use ObjectPathError as Error;
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.starts_with('/') {
            return Err(Error::Absolute);
        }
        if text.len() > MAX_OBJECT_PATH {
            return Err(Error::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(Error::Control);
        }
        for (index, element) in text.split('/').enumerate() {
            match element {
                ".." => return Err(Error::Parent),
                "" | "." => return Err(Error::NotClean),
                _ if index == 0 && element.starts_with("..") => return Err(Error::Reserved),
                _ if element.len() > MAX_ELEMENT => return Err(Error::ElementTooLong),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ApiPath {
    /// Parses, strips one leading `/v1/`, `v1/` or `/` (spellings that vault-csi-provider accepts), and
    /// validates.
    ///
    /// # Errors
    /// Says which rule the path breaks.
    pub fn parse(text: &str) -> Result<Self, ApiPathError> {
        let path = text.strip_prefix('/').unwrap_or(text);
        Self::canonical(path.strip_prefix("v1/").unwrap_or(path))
    }

    /// Parses the path of a mount or of a Vault namespace: slashes at both ends are usual there and mean
    /// nothing, and a leading `v1/` is part of the name.
    ///
    /// # Errors
    /// Says which rule the path breaks.
    pub fn parse_mount(text: &str) -> Result<Self, ApiPathError> {
        let path = text.strip_prefix('/').unwrap_or(text);
        Self::canonical(path.strip_suffix('/').unwrap_or(path))
    }

    fn canonical(path: &str) -> Result<Self, ApiPathError> {
        use ApiPathError as Error;
        if path.is_empty() {
            return Err(Error::Empty);
        }
        if path.len() > MAX_API_PATH {
            return Err(Error::TooLong);
        }
        for character in path.chars() {
            match character {
                '%' => return Err(Error::Percent),
                '#' => return Err(Error::Fragment),
                '?' => return Err(Error::Query),
                '\\' => return Err(Error::Backslash),
                _ if character.is_control() => return Err(Error::Control),
                _ if !character.is_ascii() => return Err(Error::NotAscii),
                _ => {}
            }
        }
        if path.contains("//") || path.starts_with('/') {
            return Err(Error::EmptySegment);
        }
        if path.ends_with('/') {
            return Err(Error::TrailingSlash);
        }
        for segment in path.split('/') {
            match segment {
                "." | ".." => return Err(Error::Dots),
                _ if segment.starts_with(' ') || segment.ends_with(' ') => return Err(Error::Space),
                _ => {}
            }
        }
        Ok(Self(path.to_owned()))
    }

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

impl TryFrom<String> for ObjectPath {
    type Error = ObjectPathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

// Only what is canonical already: a stored path must come back as it was, without a prefix stripped.
impl TryFrom<String> for ApiPath {
    type Error = ApiPathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::canonical(&text)
    }
}

impl From<ObjectPath> for String {
    fn from(path: ObjectPath) -> Self {
        path.0
    }
}

impl From<ApiPath> for String {
    fn from(path: ApiPath) -> Self {
        path.0
    }
}
