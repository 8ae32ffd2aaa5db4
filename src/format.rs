//! Pure: from the data of a secret to the bytes of a file, in a form that applications read.
//!
//! Everything here is deterministic, keystores too: equal input makes equal bytes, so that a refresh that
//! changed nothing writes nothing.

pub mod env;
pub mod jks;
pub mod json;
pub mod jwk;
pub mod pem;
pub mod pkcs12;
pub mod properties;
pub mod toml;
pub mod yaml;

mod der;
mod keys;
mod quote;

use serde_json::{Map, Value as Json};

pub use keys::{Certificate, PrivateKey, check_key_matches_certificate, order_chain};

use crate::secret::SecretBytes;

/// Why data has no such form. Names keys, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The secret's data is no map of keys and values.
    #[error("cannot write as {format}: the secret's data is not a map; choose format json or yaml")]
    NotAMap {
        /// The form asked for.
        format: &'static str,
    },
    /// A key's name cannot be a name in this form.
    #[error(
        "cannot write as {format}: key {key:?} is not a name there; leave it out or rename it, or choose format json"
    )]
    KeyName {
        /// The form asked for.
        format: &'static str,
        /// The key.
        key: String,
    },
    /// A value holds bytes that this form cannot carry.
    #[error("cannot write as {format}: the value of key {key:?} is binary; write it to a file of its own")]
    Binary {
        /// The form asked for.
        format: &'static str,
        /// The key.
        key: String,
    },
    /// What should be PEM is not, or lacks a block.
    #[error("cannot read PEM: {0}")]
    Pem(&'static str),
    /// A private key of a kind that is not known here.
    #[error("cannot read the private key: {0}")]
    PrivateKey(&'static str),
    /// What should be a certificate is not.
    #[error("cannot read the certificate: {0}")]
    Certificate(&'static str),
    /// Key and certificate do not belong together.
    #[error(
        "the private key does not match the certificate; the old files stay until both come from one answer"
    )]
    Mismatch,
    /// A keystore cannot be made or read.
    #[error("cannot {doing} the {format} keystore: {why}")]
    Keystore {
        /// "write" or "read".
        doing: &'static str,
        /// pkcs12 or jks.
        format: &'static str,
        /// What is wrong; without any value.
        why: &'static str,
    },
}

/// A form of a whole data map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// One JSON object, keys sorted, indented by two spaces, with a line end.
    Json,
    /// One YAML map, keys sorted.
    Yaml,
    /// `NAME=value` lines for shells and dotenv readers (`env`).
    Env,
    /// Java's .properties ([`properties`]).
    Properties,
    /// Private key, certificate and chain of a PKI answer ([`pem::bundle`]).
    PemBundle,
}

impl DataFormat {
    /// Writes `data` in this form.
    ///
    /// # Errors
    /// A key or value that has no place in the form.
    pub fn write(self, data: &Json) -> Result<SecretBytes, FormatError> {
        let text = match self {
            Self::Json => json::to_pretty_text(data) + "\n",
            Self::Yaml => yaml::to_text(data),
            Self::Env => env::to_text(map(data, "env")?)?,
            Self::Properties => properties::to_text(map(data, "properties")?)?,
            Self::PemBundle => return pem::bundle(data),
        };
        Ok(SecretBytes::new(text.into_bytes()))
    }
}

fn map<'a>(data: &'a Json, format: &'static str) -> Result<&'a Map<String, Json>, FormatError> {
    data.as_object().ok_or(FormatError::NotAMap { format })
}

/// A value as the flat forms write it: strings as they are, null as nothing, all else as JSON.
fn flat(value: &Json) -> std::borrow::Cow<'_, str> {
    match value {
        Json::String(text) => text.into(),
        Json::Null => "".into(),
        other => json::to_raw_text(other).into(),
    }
}
