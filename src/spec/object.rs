//! One entry of `objects`: a file, and the request its content comes from.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{ApiPath, DependencyId, FileMode, FileOwner, ObjectPath, RefreshPolicy};

pub(super) mod reader;

/// HTTP methods a secret may be read with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Method {
    /// A read.
    Get,
    /// A write that answers, such as PKI issue.
    Put,
    /// The same, in the spelling of the HTTP API documentation.
    Post,
}

impl Method {
    /// As HTTP spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
        }
    }
}

/// One request to the secret store. Equal requests of a volume are made once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct SecretRequest {
    /// HTTP method.
    pub method: Method,
    /// Path below `/v1/`, canonical.
    pub path: ApiPath,
    /// Query parameters.
    pub query: BTreeMap<String, Vec<String>>,
    /// Arguments as canonical JSON text (sorted keys); the body of a PUT or POST.
    pub args: Option<String>,
}

impl SecretRequest {
    /// The request's digest: SHA-256 over all of it, length-prefixed, first 16 bytes.
    pub fn id(&self) -> DependencyId {
        let text = serde_json::to_vec(self).expect("a request of strings is JSON");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_ref()[..16]);
        DependencyId(id)
    }

    /// Whether asking twice may do something twice: anything but a plain read.
    pub fn is_write(&self) -> bool {
        self.method != Method::Get || self.args.is_some()
    }
}

/// How a value of `secretKey` is encoded in the store, and must be decoded for the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Encoding {
    /// Bytes as they are.
    #[default]
    Utf8,
    /// Standard base64.
    Base64,
    /// Hexadecimal.
    Hex,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Utf8 => "utf-8",
            Self::Base64 => "base64",
            Self::Hex => "hex",
        })
    }
}

/// One file, and where its content comes from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Object {
    /// Path of the file within the volume.
    pub name: ObjectPath,
    /// The request that answers it.
    pub request: SecretRequest,
    /// Key within the answer's data; `None` writes the whole response as JSON.
    pub key: Option<String>,
    /// Applied to the value of `key`.
    pub encoding: Encoding,
    /// Mode; the volume's default otherwise.
    pub mode: Option<FileMode>,
    /// Owner; root otherwise.
    pub owner: Option<FileOwner>,
    /// How long a replaced credential lives on beside its successor.
    pub overlap: Duration,
    /// How often a value without a lease is checked; `None` is the default of its kind.
    pub refresh_interval: Option<Duration>,
    /// Whether it is checked at all.
    pub refresh_policy: RefreshPolicy,
}
