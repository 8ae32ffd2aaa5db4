//! Finds an object's bytes in an answer: the rule of vault-csi-provider.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, LazyLock},
};

use serde_json::Value;

use super::{RenderError, error::KeyNames, inputs::Inputs, json};
use crate::{
    backend::{Envelope, Secret, SecretBody},
    format::{Certificate, FormatError, PrivateKey, jks, pem, pkcs12},
    secret::SecretBytes,
    spec::{
        DependencyId, Encoding, Object, SecretRequest,
        object::{Keystore, Part, Password, Source},
        values::quote,
    },
};

/// Name of the one entry of a keystore: cert-manager's.
const ALIAS: &str = "certificate";

// Go's base64.StdEncoding: strict padding, newlines skipped, trailing bits not looked at.
static BASE64: LazyLock<data_encoding::Encoding> = LazyLock::new(|| {
    let mut specification = data_encoding::BASE64.specification();
    specification.ignore.push_str("\r\n");
    specification.check_trailing_bits = false;
    specification.encoding().expect("standard base64 that skips newlines is an encoding")
});

static BASE64_URL: LazyLock<data_encoding::Encoding> = LazyLock::new(|| {
    let mut specification = data_encoding::BASE64URL_NOPAD.specification();
    specification.ignore.push_str("\r\n");
    specification.check_trailing_bits = false;
    specification.encoding().expect("base64url that skips newlines is an encoding")
});

/// A file's bytes, and the part of them that is the store's data rather than its envelope.
pub(super) struct Content {
    file: Vec<u8>,
    data: Range<usize>,
}

impl Content {
    pub(super) fn whole(file: Vec<u8>) -> Self {
        Self { data: 0..file.len(), file }
    }

    pub(super) fn into_file(self) -> Vec<u8> {
        self.file
    }

    /// What the version is about.
    pub(super) fn data(&self) -> &[u8] {
        &self.file[self.data.clone()]
    }
}

/// A value for templates.
pub(super) enum Found<'a> {
    Json(&'a Value),
    Bytes(Arc<SecretBytes>),
}

/// The answer to the object's own request.
pub(super) fn answer<'a>(
    object: &Object,
    request: &SecretRequest,
    secrets: &'a BTreeMap<DependencyId, Secret>,
) -> Result<&'a SecretBody, RenderError> {
    let (name, path) = (|| object.name().to_owned(), || request.path.clone());
    match secrets.get(&request.id()).map(|secret| &secret.body) {
        None => Err(RenderError::Unread { object: name(), path: path() }),
        Some(SecretBody::Absent) => Err(RenderError::Absent { object: name(), path: path() }),
        Some(body) => Ok(body),
    }
}

/// The value of an entry with `as`.
pub(super) fn found<'a>(
    object: &Object,
    secrets: &'a BTreeMap<DependencyId, Secret>,
) -> Result<Found<'a>, RenderError> {
    let Source::Secret { request, part } = &object.source else {
        unreachable!("an entry with \"as\" has no template: the reader refuses it")
    };
    let body = answer(object, request, secrets)?;
    let (value, name) = match (part, body) {
        (Part::Key(key), _) => {
            (lookup(object, request, key, data(object, request, body, "secretKey")?)?, key)
        }
        (Part::Pointer(pointer), _) => {
            (point(object, request, pointer, data(object, request, body, "jsonPointer")?)?, pointer)
        }
        (_, SecretBody::Raw(bytes)) => return Ok(Found::Bytes(Arc::clone(bytes))),
        (_, _) => return data(object, request, body, "as").map(Found::Json),
    };
    if object.encoding == Encoding::Utf8 {
        return Ok(Found::Json(value));
    }
    let bytes = decode(object, name, raw_bytes(value))?;
    Ok(Found::Bytes(Arc::new(SecretBytes::new(bytes))))
}

/// The content of a file from one answer.
pub(super) fn content(
    object: &Object,
    request: &SecretRequest,
    part: &Part,
    body: &SecretBody,
    inputs: &Inputs<'_>,
) -> Result<Content, RenderError> {
    let format_error = |error| RenderError::Format { object: object.name().to_owned(), error };
    let data = |field| data(object, request, body, field);
    Ok(Content::whole(match part {
        Part::Response | Part::Data | Part::Extract(_) => {
            return match body {
                SecretBody::Raw(bytes) => Ok(Content::whole(bytes.expose().to_vec())),
                SecretBody::Json(envelope) => Ok(response(envelope)),
                SecretBody::Absent => {
                    Err(RenderError::Absent { object: object.name().to_owned(), path: request.path.clone() })
                }
            };
        }
        Part::Key(key) => decode(object, key, raw_bytes(lookup(object, request, key, data("secretKey")?)?))?,
        Part::Pointer(pointer) => {
            decode(object, pointer, raw_bytes(point(object, request, pointer, data("jsonPointer")?)?))?
        }
        Part::Format(format) => format.write(data("format")?).map_err(format_error)?.expose().to_vec(),
        Part::Keystore { kind, password } => {
            let data = data("format")?;
            let refused = |reason| RenderError::Password { object: object.name().to_owned(), reason };
            let password = match password {
                Password::Key(key) => data.get(key).and_then(Value::as_str).ok_or_else(|| {
                    refused(format!(
                        "there is no text at key {}; {} has {}",
                        quote(key),
                        request.path,
                        KeyNames::of(data)
                    ))
                })?,
                Password::Input(name) => inputs.text(name).ok_or_else(|| {
                    refused(format!("the input {} is no text: give it a secretKey", quote(name)))
                })?,
            };
            keystore(*kind, data, password).map_err(format_error)?.expose().to_vec()
        }
    }))
}

fn keystore(kind: Keystore, data: &Value, password: &str) -> Result<SecretBytes, FormatError> {
    let bundle = pem::bundle(data)?;
    let bundle = std::str::from_utf8(bundle.expose()).map_err(|_| FormatError::Pem("it is no text"))?;
    let key = PrivateKey::from_pem(bundle)?;
    let chain = Certificate::all_from_pem(bundle)?;
    match kind {
        Keystore::Pkcs12 => pkcs12::write(&key, &chain, ALIAS, password),
        Keystore::Jks => jks::write(&key, &chain, ALIAS, password),
    }
}

/// The data of an answer. KV version 2 nests its data in a second `data`, which is descended into whenever
/// it is a map, as upstream does.
pub(super) fn data<'a>(
    object: &Object,
    request: &SecretRequest,
    body: &'a SecretBody,
    field: &'static str,
) -> Result<&'a Value, RenderError> {
    match body {
        SecretBody::Json(envelope) => Ok(descend(envelope.data.expose())),
        SecretBody::Raw(_) => Err(RenderError::RawHasNoKeys {
            object: object.name().to_owned(),
            path: request.path.clone(),
            field,
        }),
        SecretBody::Absent => {
            Err(RenderError::Absent { object: object.name().to_owned(), path: request.path.clone() })
        }
    }
}

pub(super) fn descend(data: &Value) -> &Value {
    match data.get("data") {
        Some(nested @ Value::Object(_)) => nested,
        _ => data,
    }
}

fn lookup<'a>(
    object: &Object,
    request: &SecretRequest,
    key: &str,
    data: &'a Value,
) -> Result<&'a Value, RenderError> {
    data.get(key).ok_or_else(|| RenderError::MissingKey {
        object: object.name().to_owned(),
        key: key.to_owned(),
        path: request.path.clone(),
        found: KeyNames::of(data),
    })
}

/// RFC 6901.
fn point<'a>(
    object: &Object,
    request: &SecretRequest,
    pointer: &str,
    data: &'a Value,
) -> Result<&'a Value, RenderError> {
    let mut value = data;
    let mut reached = 0;
    for token in pointer.split('/').skip(1) {
        let name = token.replace("~1", "/").replace("~0", "~");
        let next = match value {
            Value::Object(map) => map.get(&name),
            // No sign and no zero in front, as the RFC has it.
            Value::Array(items) if name == "0" || !name.starts_with(['0', '+']) => {
                name.parse::<usize>().ok().and_then(|index| items.get(index))
            }
            _ => None,
        };
        value = next.ok_or_else(|| RenderError::MissingPointer {
            object: object.name().to_owned(),
            pointer: pointer.to_owned(),
            path: request.path.clone(),
            found: match &pointer[..reached] {
                "" => format!("the data has {}", KeyNames::of(value)),
                reached => format!("{} has {}", quote(reached), KeyNames::of(value)),
            },
        })?;
        reached += 1 + token.len();
    }
    Ok(value)
}

/// A value as a file holds it: text as it is, all else as JSON.
pub(super) fn raw_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.as_bytes().to_vec(),
        other => {
            let mut out = Vec::new();
            json::write(&mut out, other);
            out
        }
    }
}

pub(super) fn decode(object: &Object, key: &str, value: Vec<u8>) -> Result<Vec<u8>, RenderError> {
    let decoded = match object.encoding {
        Encoding::Utf8 => return Ok(value),
        Encoding::Base64 => BASE64.decode(&value),
        Encoding::Base64Url => BASE64_URL.decode(unpadded(&value)),
        Encoding::Hex => data_encoding::HEXLOWER_PERMISSIVE.decode(&value),
    };
    decoded.map_err(|_| RenderError::NotEncoded {
        object: object.name().to_owned(),
        key: key.to_owned(),
        encoding: object.encoding,
    })
}

/// Without the padding, which half of the writers of base64url leave out.
fn unpadded(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| !matches!(byte, b'=' | b'\r' | b'\n'));
    &value[..end.map_or(0, |end| end + 1)]
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
