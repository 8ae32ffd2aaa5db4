//! Pure: from a volume's spec and the answers of the store to the files and their versions.
//!
//! `value` finds an object's bytes in an answer, `json` writes JSON as the incumbents do.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;

use crate::{
    backend::{DataLifetime, Secret, SecretBody},
    projection::{FileProjection, Payload},
    secret::SecretBytes,
    spec::{ApiPath, DependencyId, Encoding, Object, VolumeSpec},
};

mod json;
#[cfg(test)]
mod tests;
mod value;

/// Bytes of one file. Etcd, KV and PKI values are far smaller; a tmpfs file counts as the pod's memory.
pub const MAX_OBJECT_LEN: usize = 16 << 20;

/// Bytes of one volume's files. A swap holds the old and the new version at once.
pub const MAX_PAYLOAD_LEN: usize = 32 << 20;

/// Key names that an error lists: enough to see the typing mistake in any real secret.
const MAX_NAMED_KEYS: usize = 20;

/// Bytes of a version: no two contents collide by accident, and it cannot be guessed without the key.
const VERSION_LEN: usize = 16;

/// Key of the version digests: random per node, kept in the journal, so that versions are stable over
/// restarts and say nothing about a value to those who read them.
#[derive(Clone)]
pub struct DigestKey(hmac::Key);

impl DigestKey {
    /// A key from 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// A digest of an answer's data: equal digests are equal data. Its envelope (request id, lease) is not in it.
    pub fn digest(&self, secret: &Secret) -> [u8; VERSION_LEN] {
        let mut context = hmac::Context::with_key(&self.0);
        match &secret.body {
            SecretBody::Json(envelope) => {
                context.update(b"json");
                let mut data = envelope.data.clone();
                if matches!(secret.lifetime, Some(DataLifetime::Rotates { .. })) {
                    // The time left until the rotation is not part of what is rotated.
                    data.remove("ttl");
                }
                let text = serde_json::to_vec(data.expose()).map(SecretBytes::new);
                context.update(text.as_ref().map(SecretBytes::expose).unwrap_or_default());
                context.update(&secret.kv_version.unwrap_or_default().to_be_bytes());
            }
            SecretBody::Raw(bytes) => {
                context.update(b"raw");
                context.update(bytes.expose());
            }
        }
        let mut digest = [0; VERSION_LEN];
        digest.copy_from_slice(&context.sign().as_ref()[..VERSION_LEN]);
        digest
    }

    // Lengths in front keep (`ab`, `c`) and (`a`, `bc`) apart.
    fn version(&self, object: &str, content: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&(object.len() as u64).to_be_bytes());
        context.update(object.as_bytes());
        context.update(content);
        data_encoding::HEXLOWER.encode(&context.sign().as_ref()[..VERSION_LEN])
    }
}

/// What a render gives.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The files.
    pub payload: Payload,
    /// Object name and opaque version, one per object, in the order of the spec. A version says something
    /// about the data only: a new lease or request of the same data has the same version.
    pub versions: Vec<(String, String)>,
}

/// Why a volume cannot be rendered: the object, and what it lacks; key names, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The read set has no answer to the object's request.
    #[error("object {object:?}: {path} has not been read")]
    Unread {
        /// `objectName`.
        object: String,
        /// Path of the request.
        path: ApiPath,
    },
    /// The answer's data has no such key.
    #[error(
        "object {object:?}: key {key:?} does not exist at the secret path {path}; {}",
        Keys { names: found, total: *total }
    )]
    MissingKey {
        /// `objectName`.
        object: String,
        /// `secretKey`.
        key: String,
        /// Path of the request.
        path: ApiPath,
        /// The first of the keys that exist, sorted.
        found: Vec<String>,
        /// How many exist.
        total: usize,
    },
    /// A `secretKey` into an answer that is no JSON.
    #[error("object {object:?}: {path} answers with a raw body that has no keys, remove secretKey")]
    RawHasNoKeys {
        /// `objectName`.
        object: String,
        /// Path of the request.
        path: ApiPath,
    },
    /// The value is not in the encoding that the object names.
    #[error("object {object:?}: the value of key {key:?} is not valid {encoding}, check the field encoding")]
    NotEncoded {
        /// `objectName`.
        object: String,
        /// `secretKey`.
        key: String,
        /// `base64` or `hex`.
        encoding: Encoding,
    },
    /// One file over [`MAX_OBJECT_LEN`].
    #[error("object {object:?} has {len} bytes, more than {MAX_OBJECT_LEN}")]
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

struct Keys<'a> {
    names: &'a [String],
    total: usize,
}

impl std::fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.names.is_empty() {
            return f.write_str("it has no keys");
        }
        write!(f, "it has the keys {}", self.names.join(", "))?;
        match self.total.saturating_sub(self.names.len()) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Renders every file of a volume from one read set.
///
/// # Errors
/// The first object that cannot be rendered.
pub fn render(
    spec: &VolumeSpec,
    secrets: &BTreeMap<DependencyId, Secret>,
    key: &DigestKey,
) -> Result<Rendered, RenderError> {
    let mut payload = Payload::default();
    let mut versions = Vec::with_capacity(spec.objects.len());
    let mut total = 0usize;
    for object in &spec.objects {
        let name = object.name.as_str();
        let content = content(object, secrets)?;
        total = total.saturating_add(content.file.len());
        if content.file.len() > MAX_OBJECT_LEN {
            return Err(RenderError::ObjectTooLarge { object: name.to_owned(), len: content.file.len() });
        }
        if total > MAX_PAYLOAD_LEN {
            return Err(RenderError::PayloadTooLarge);
        }
        versions.push((name.to_owned(), key.version(name, content.data())));
        let file = FileProjection {
            contents: content.file.into(),
            mode: object.mode.unwrap_or(spec.default_mode),
            owner: object.owner,
        };
        payload.files.insert(object.name.clone(), file);
    }
    Ok(Rendered { payload, versions })
}

fn content(object: &Object, secrets: &BTreeMap<DependencyId, Secret>) -> Result<value::Content, RenderError> {
    let Some(secret) = secrets.get(&object.request.id()) else {
        return Err(RenderError::Unread {
            object: object.name.as_str().to_owned(),
            path: object.request.path.clone(),
        });
    };
    value::content(object, &secret.body)
}
