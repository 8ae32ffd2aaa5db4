//! Makes the values that `generate` asks for.

use std::collections::BTreeMap;

use aws_lc_rs::{
    encoding::{AsBigEndian as _, AsDer as _, Curve25519SeedBin, Pkcs8V1Der},
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _,
    },
};
use rand::{Rng as _, seq::SliceRandom as _};

use crate::{
    format::pem,
    secret::SecretString,
    spec::object::{Generator, KeyKind, PasswordRules},
};

#[cfg(test)]
mod tests;

/// Why no value can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GenerateError {
    /// It names a generator that no policy file defined.
    #[error(
        "generator {0:?} is not defined: it is none of the kinds, and the node's policy file has none of this name"
    )]
    Undefined(String),
    /// The system's source of keys failed.
    #[error("a key could not be made")]
    Key,
}

/// The keys that a generator writes when it makes the value of `key`.
pub(crate) fn keys<'a>(key: &'a str, generator: &Generator) -> impl Iterator<Item = String> + use<'a> {
    let public = matches!(generator, Generator::SshKey { .. }).then(|| public(key));
    [key.to_owned()].into_iter().chain(public)
}

/// Where the public half of an SSH key goes, as ssh-keygen names it.
fn public(key: &str) -> String {
    format!("{key}.pub")
}

/// Makes the value of `key`, and of the keys that come with it.
pub(crate) fn make(
    key: &str,
    generator: &Generator,
) -> Result<BTreeMap<String, SecretString>, GenerateError> {
    let mut made = BTreeMap::new();
    let value = match generator {
        Generator::Password(rules) => password(rules),
        Generator::Uuid => uuid(),
        Generator::Hex { bytes } => data_encoding::HEXLOWER.encode(&random(*bytes)),
        Generator::Base64 { bytes } => data_encoding::BASE64.encode(&random(*bytes)),
        Generator::TlsKey(kind) => pem::encode("PRIVATE KEY", &pkcs8(*kind)?),
        Generator::SshKey { comment } => {
            let (private, line) = ssh_key(comment)?;
            made.insert(public(key), SecretString::new(line));
            private
        }
        Generator::Named(name) => return Err(GenerateError::Undefined(name.clone())),
    };
    made.insert(key.to_owned(), SecretString::new(value));
    Ok(made)
}

/// As go-password makes it for External Secrets Operator: so many of each class, in random order.
fn password(rules: &PasswordRules) -> String {
    let mut letters: Vec<char> = ('a'..='z').collect();
    if !rules.no_upper {
        letters.extend('A'..='Z');
    }
    let mut text = Vec::new();
    for (alphabet, count) in [
        (letters, rules.letters()),
        (('0'..='9').collect(), rules.digits),
        (rules.symbol_characters.chars().collect(), rules.symbols),
    ] {
        text.extend(pick(alphabet, count as usize, rules.allow_repeat));
    }
    text.shuffle(&mut rand::rng());
    text.into_iter().collect()
}

fn pick(mut alphabet: Vec<char>, count: usize, allow_repeat: bool) -> Vec<char> {
    let mut rng = rand::rng();
    if allow_repeat {
        return (0..count)
            .filter_map(|_| rand::seq::IndexedRandom::choose(&alphabet[..], &mut rng).copied())
            .collect();
    }
    alphabet.sort_unstable();
    alphabet.dedup();
    alphabet.shuffle(&mut rng);
    alphabet.truncate(count);
    alphabet
}

fn random(count: u32) -> Vec<u8> {
    let mut bytes = vec![0; count as usize];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

fn uuid() -> String {
    let mut bytes = random(16);
    // RFC 9562: version 4, variant 10.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn pkcs8(kind: KeyKind) -> Result<Vec<u8>, GenerateError> {
    let system = SystemRandom::new();
    let made = match kind {
        KeyKind::Ed25519 => Ed25519KeyPair::generate_pkcs8v1(&system),
        KeyKind::P256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &system),
        KeyKind::P384 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &system),
        KeyKind::Rsa2048 => return rsa_pkcs8(rsa::KeySize::Rsa2048),
        KeyKind::Rsa3072 => return rsa_pkcs8(rsa::KeySize::Rsa3072),
        KeyKind::Rsa4096 => return rsa_pkcs8(rsa::KeySize::Rsa4096),
    };
    made.map(|document| document.as_ref().to_vec()).map_err(|_| GenerateError::Key)
}

fn rsa_pkcs8(size: rsa::KeySize) -> Result<Vec<u8>, GenerateError> {
    let pair = rsa::KeyPair::generate(size).map_err(|_| GenerateError::Key)?;
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| GenerateError::Key)?;
    Ok(der.as_ref().to_vec())
}

/// An Ed25519 key in OpenSSH's own form (PROTOCOL.key), the only one in which every release reads it, and its
/// line for authorized_keys.
fn ssh_key(comment: &str) -> Result<(String, String), GenerateError> {
    const TYPE: &str = "ssh-ed25519";
    let pair = Ed25519KeyPair::generate().map_err(|_| GenerateError::Key)?;
    let seed = pair.seed().map_err(|_| GenerateError::Key)?;
    let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| GenerateError::Key)?;
    let point = pair.public_key().as_ref();
    let mut blob = Vec::new();
    put(&mut blob, TYPE.as_bytes());
    put(&mut blob, point);

    let mut private = Vec::new();
    // The same number twice tells a right passphrase from a wrong one; there is none.
    let check = random(4);
    private.extend_from_slice(&check);
    private.extend_from_slice(&check);
    put(&mut private, TYPE.as_bytes());
    put(&mut private, point);
    put(&mut private, &[seed.as_ref(), point].concat());
    put(&mut private, comment.as_bytes());
    let padding = (8 - private.len() % 8) % 8;
    private.extend((1..=8).take(padding));

    let mut file = b"openssh-key-v1\0".to_vec();
    for text in [&b"none"[..], b"none", b""] {
        put(&mut file, text);
    }
    file.extend_from_slice(&1_u32.to_be_bytes());
    put(&mut file, &blob);
    put(&mut file, &private);
    Ok((pem::encode("OPENSSH PRIVATE KEY", &file), public_line(TYPE, &blob, comment)))
}

fn public_line(kind: &str, blob: &[u8], comment: &str) -> String {
    let line = format!("{kind} {} {comment}", data_encoding::BASE64.encode(blob));
    format!("{}\n", line.trim_end())
}

/// A string of RFC 4251.
fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(bytes);
}
