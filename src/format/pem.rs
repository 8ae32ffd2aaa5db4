//! PEM: blocks, and the bundle of a PKI answer.

use data_encoding::BASE64;
use serde_json::Value as Json;

use super::{FormatError, keys};
use crate::secret::SecretBytes;

/// One block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    /// `CERTIFICATE`, `PRIVATE KEY`, ….
    pub label: String,
    /// The DER within.
    pub der: SecretBytes,
}

/// The blocks of a text, in its order; what stands between them is skipped.
///
/// # Errors
/// A block that is not closed, or not base64.
pub fn blocks(text: &str) -> Result<Vec<Block>, FormatError> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ") {
        rest = &rest[at + 11..];
        let Some((label, after)) = rest.split_once("-----") else {
            return Err(FormatError::Pem("a BEGIN line is not complete"));
        };
        let end = format!("-----END {label}-----");
        let Some((body, after)) = after.split_once(end.as_str()) else {
            return Err(FormatError::Pem("a block has no END line"));
        };
        // Headers (Proc-Type) stand before an empty line: encrypted keys, which nobody here can open.
        if body.contains(':') {
            return Err(FormatError::Pem(
                "a block has headers, so it is encrypted; store it without a passphrase",
            ));
        }
        let compact: Vec<u8> = body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let der = BASE64.decode(&compact).map_err(|_| FormatError::Pem("a block is not base64"))?;
        found.push(Block { label: label.to_owned(), der: SecretBytes::new(der) });
        rest = after;
    }
    Ok(found)
}

/// One block as text: lines of 64, and a line end.
pub fn encode(label: &str, der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Key, certificate and chain of a PKI answer (`private_key`, `certificate`, `ca_chain` or `issuing_ca`),
/// in this order, which HAProxy, MongoDB, nginx and Envoy read. The key stays in the form it came in; line
/// ends become one `\n`. A root in the chain is left out, as is a second copy of anything: servers do not
/// send it. An answer of `format: pem_bundle`, with all of it in `certificate`, comes out in the same order.
///
/// # Errors
/// No certificate, something that is not PEM, or a key that does not match.
pub fn bundle(data: &Json) -> Result<SecretBytes, FormatError> {
    let field = |name: &str| data.get(name).and_then(Json::as_str).unwrap_or_default();
    let mut text = String::new();
    for part in [field("private_key"), field("certificate")] {
        text.push_str(part);
        text.push('\n');
    }
    match data.get("ca_chain") {
        Some(Json::Array(chain)) if !chain.is_empty() => {
            for certificate in chain.iter().filter_map(Json::as_str) {
                text.push_str(certificate);
                text.push('\n');
            }
        }
        _ => text.push_str(field("issuing_ca")),
    }
    let found = blocks(&text)?;
    drop(SecretBytes::new(text.into_bytes()));
    let mut out = String::new();
    let key = found.iter().find(|block| block.label.ends_with("PRIVATE KEY"));
    if let Some(key) = key {
        out.push_str(&encode(&key.label, key.der.expose()));
    }
    let certificates: Vec<&Block> = found.iter().filter(|block| block.label == "CERTIFICATE").collect();
    let Some(leaf) = certificates.first() else {
        return Err(FormatError::Pem("the answer holds no certificate; is it from pki/issue or pki/sign?"));
    };
    if let Some(key) = key {
        let key = keys::PrivateKey::from_block(key)?;
        key.matches(&keys::Certificate::from_der(leaf.der.expose())?)?;
    }
    for (index, certificate) in certificates.iter().enumerate() {
        let repeated = certificates[..index].contains(certificate);
        let root = index > 0 && keys::Certificate::from_der(certificate.der.expose())?.is_self_issued();
        if !(repeated || root) {
            out.push_str(&encode("CERTIFICATE", certificate.der.expose()));
        }
    }
    Ok(SecretBytes::new(out.into_bytes()))
}
