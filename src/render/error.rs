//! Why a volume cannot be rendered.

use std::fmt;

use super::MAX_OBJECT_LEN;
use crate::{
    format::FormatError,
    projection::MAX_PAYLOAD_LEN,
    spec::{ApiPath, Encoding, ObjectPathError, problem::Place, values::quote},
};

/// Key names that an error lists: enough to see the typing mistake in any real secret.
const MAX_NAMED_KEYS: usize = 20;

/// Why a volume cannot be rendered: the object, and what it lacks; key names, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The read set has no answer to the object's request.
    #[error("object {}: {path} has not been read", quote(object))]
    Unread {
        /// `objectName`.
        object: String,
        /// Path of the request.
        path: ApiPath,
    },
    /// There is no such secret, and the object needs it.
    #[error("object {}: there is nothing at the secret path {path}", quote(object))]
    Absent {
        /// `objectName`.
        object: String,
        /// Path of the request.
        path: ApiPath,
    },
    /// The answer's data has no such key.
    #[error(
        "object {}: key {} does not exist at the secret path {path}; it has {found}",
        quote(object),
        quote(key)
    )]
    MissingKey {
        /// `objectName`.
        object: String,
        /// `secretKey`.
        key: String,
        /// Path of the request.
        path: ApiPath,
        /// Those that exist.
        found: KeyNames,
    },
    /// The pointer leads nowhere.
    #[error(
        "object {}: jsonPointer {} leads to nothing at the secret path {path}; {found}",
        quote(object),
        quote(pointer)
    )]
    MissingPointer {
        /// `objectName`.
        object: String,
        /// `jsonPointer`.
        pointer: String,
        /// Path of the request.
        path: ApiPath,
        /// As far as it leads to something, and what is there.
        found: String,
    },
    /// A field that takes a key or the keys of an answer that is no JSON.
    #[error("object {}: {path} answers with a raw body that has no keys, remove {field}", quote(object))]
    RawHasNoKeys {
        /// `objectName`.
        object: String,
        /// Path of the request.
        path: ApiPath,
        /// The field.
        field: &'static str,
    },
    /// The value is not in the encoding that the object names.
    #[error(
        "object {}: the value of key {} is not valid {encoding}, check the field encoding",
        quote(object),
        quote(key)
    )]
    NotEncoded {
        /// `objectName`.
        object: String,
        /// `secretKey`, `jsonPointer` or the extracted key.
        key: String,
        /// `base64`, `base64url` or `hex`.
        encoding: Encoding,
    },
    /// The data has no such form.
    #[error("object {}: {error}", quote(object))]
    Format {
        /// `objectName`.
        object: String,
        /// Why.
        error: FormatError,
    },
    /// The keystore's password is not where the object says.
    #[error("object {}: the keystore's password: {reason}", quote(object))]
    Password {
        /// `objectName`.
        object: String,
        /// What is missing.
        reason: String,
    },
    /// An extracted key whose name is no file's.
    #[error(
        "object {}: key {} cannot be extracted: the path {} {reason}",
        quote(object),
        quote(key),
        quote(name)
    )]
    ExtractedName {
        /// `objectName`.
        object: String,
        /// The key.
        key: String,
        /// The path that it would have.
        name: String,
        /// The rule it breaks.
        reason: ObjectPathError,
    },
    /// Two contents for one file.
    #[error(
        "object {} and object {} both write the file {}; rename or exclude one",
        quote(first),
        quote(second),
        quote(file)
    )]
    Clash {
        /// The file.
        file: String,
        /// `objectName` of the earlier.
        first: String,
        /// `objectName` of the later; the same for two keys of one folder.
        second: String,
    },
    /// A file of one object is a folder of another.
    #[error(
        "object {} writes {} as a file, and object {} writes below it",
        quote(first),
        quote(file),
        quote(second)
    )]
    FileAndFolder {
        /// The file.
        file: String,
        /// `objectName` of what writes it.
        first: String,
        /// `objectName` of what needs it to be a folder.
        second: String,
    },
    /// A template that the data does not allow.
    #[error("object {}{}: template: {reason}", quote(object), Place(*line, *column))]
    Template {
        /// `objectName`.
        object: String,
        /// Line within `objects`, when known.
        line: Option<u64>,
        /// Column on that line, from 1.
        column: Option<u64>,
        /// Why; with the place in the template where that is all that is known.
        reason: String,
    },
    /// Key and certificate of one answer do not belong together.
    #[error("object {}: {path}: {}", quote(object), FormatError::Mismatch)]
    Mismatch {
        /// The first `objectName` that takes something of it.
        object: String,
        /// Path of the request.
        path: ApiPath,
    },
    /// One file over [`MAX_OBJECT_LEN`].
    #[error("object {} has {len} bytes, more than {MAX_OBJECT_LEN}", quote(object))]
    ObjectTooLarge {
        /// `objectName`.
        object: String,
        /// Its bytes.
        len: usize,
    },
    /// All files over [`MAX_PAYLOAD_LEN`].
    #[error(
        "the volume's objects have more than {MAX_PAYLOAD_LEN} bytes together, split the SecretProviderClass"
    )]
    PayloadTooLarge,
}

impl RenderError {
    /// Whether it says that the store lacks something, rather than that something is wrong.
    pub(super) const fn is_absence(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::MissingKey { .. } | Self::MissingPointer { .. })
    }
}

/// Names of keys, for an error: the first few, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyNames {
    names: Vec<String>,
    total: usize,
}

impl KeyNames {
    /// The keys of `data`, if it is a map.
    pub(super) fn of(data: &serde_json::Value) -> Self {
        let mut names: Vec<String> =
            data.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
        names.sort_unstable();
        let total = names.len();
        names.truncate(MAX_NAMED_KEYS);
        Self { names, total }
    }
}

impl fmt::Display for KeyNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("no keys");
        }
        // Keys are names that a writer of the store chose: shown on one line and with an end.
        let names: Vec<String> = self.names.iter().map(|name| quote(name).to_string()).collect();
        write!(f, "the keys {}", names.join(", "))?;
        match self.total.saturating_sub(self.names.len()) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
