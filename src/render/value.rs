//! Finds an object's bytes in an answer: the rule of vault-csi-provider.

use std::{ops::Range, sync::LazyLock};

use serde_json::Value;

use super::{MAX_NAMED_KEYS, RenderError, json};
use crate::{
    backend::{Envelope, SecretBody},
    spec::{Encoding, Object},
};

// Go's base64.StdEncoding: strict padding, newlines skipped, trailing bits not looked at.
static BASE64: LazyLock<data_encoding::Encoding> = LazyLock::new(|| {
    let mut specification = data_encoding::BASE64.specification();
    specification.ignore.push_str("\r\n");
    specification.check_trailing_bits = false;
    specification.encoding().expect("standard base64 that skips newlines is an encoding")
});

/// A file's bytes, and the part of them that is the store's data rather than its envelope.
pub(super) struct Content {
    pub(super) file: Vec<u8>,
    data: Range<usize>,
}

impl Content {
    fn whole(file: Vec<u8>) -> Self {
        Self { data: 0..file.len(), file }
    }

    /// What the version is about.
    pub(super) fn data(&self) -> &[u8] {
        &self.file[self.data.clone()]
    }
}

pub(super) fn content(object: &Object, body: &SecretBody) -> Result<Content, RenderError> {
    match (body, &object.key) {
        (SecretBody::Raw(bytes), None) => Ok(Content::whole(bytes.expose().to_vec())),
        (SecretBody::Raw(_), Some(_)) => Err(RenderError::RawHasNoKeys {
            object: object.name.as_str().to_owned(),
            path: object.request.path.clone(),
        }),
        (SecretBody::Json(envelope), None) => Ok(response(envelope)),
        (SecretBody::Json(envelope), Some(key)) => {
            let value = decode(object, key, lookup(object, key, envelope.data.expose())?)?;
            Ok(Content::whole(value))
        }
    }
}

/// The bytes of `key`. KV version 2 nests its data in a second `data`, which is descended into whenever it
/// is a map, as upstream does.
fn lookup(object: &Object, key: &str, data: &Value) -> Result<Vec<u8>, RenderError> {
    let data = match data.get("data") {
        Some(nested @ Value::Object(_)) => nested,
        _ => data,
    };
    match data.get(key) {
        Some(Value::String(text)) => Ok(text.as_bytes().to_vec()),
        Some(other) => {
            let mut out = Vec::new();
            json::write(&mut out, other);
            Ok(out)
        }
        None => {
            let mut found: Vec<_> =
                data.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
            found.sort_unstable();
            let total = found.len();
            found.truncate(MAX_NAMED_KEYS);
            Err(RenderError::MissingKey {
                object: object.name.as_str().to_owned(),
                key: key.to_owned(),
                path: object.request.path.clone(),
                found,
                total,
            })
        }
    }
}

fn decode(object: &Object, key: &str, value: Vec<u8>) -> Result<Vec<u8>, RenderError> {
    let decoded = match object.encoding {
        Encoding::Utf8 => return Ok(value),
        Encoding::Base64 => BASE64.decode(&value),
        Encoding::Hex => data_encoding::HEXLOWER_PERMISSIVE.decode(&value),
    };
    decoded.map_err(|_| RenderError::NotEncoded {
        object: object.name.as_str().to_owned(),
        key: key.to_owned(),
        encoding: object.encoding,
    })
}

/// The whole response as Go marshals `api.Secret`: its field order, `null` for no data and no warnings, and
/// absent fields left out.
fn response(envelope: &Envelope) -> Content {
    let mut out = Vec::new();
    out.extend_from_slice(b"{\"request_id\":");
    json::write_string(&mut out, &envelope.request_id);
    out.extend_from_slice(b",\"lease_id\":");
    json::write_string(&mut out, &envelope.lease_id);
    out.extend_from_slice(
        format!(
            ",\"lease_duration\":{},\"renewable\":{},\"data\":",
            envelope.lease_duration, envelope.renewable
        )
        .as_bytes(),
    );
    let start = out.len();
    json::write(&mut out, envelope.data.expose());
    let data = start..out.len();
    out.extend_from_slice(b",\"warnings\":");
    if envelope.warnings.is_empty() {
        out.extend_from_slice(b"null");
    } else {
        let warnings = envelope.warnings.iter().cloned().map(Value::String).collect();
        json::write(&mut out, &Value::Array(warnings));
    }
    const ORDER: [&str; 3] = ["auth", "wrap_info", "mount_type"];
    let known = ORDER.iter().filter_map(|&name| envelope.rest.get_key_value(name));
    let others = envelope.rest.iter().filter(|(name, _)| !ORDER.contains(&name.as_str()));
    for (name, value) in known.chain(others).filter(|(_, value)| !value.expose().is_null()) {
        out.push(b',');
        json::write_string(&mut out, name);
        out.push(b':');
        json::write(&mut out, value.expose());
    }
    out.push(b'}');
    Content { file: out, data }
}
