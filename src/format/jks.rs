//! Java's own keystore format, for applications that read nothing newer.
//!
//! Its protection is SHA-1 in a stream, as weak as it is old: prefer [`super::pkcs12`], which every Java
//! since 8u301 reads, even where a file is called .jks. Salt and creation date come from the content, so
//! that an equal keystore is an equal file.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::{
    Certificate, FormatError, PrivateKey,
    der::{self, NULL, OCTET_STRING, OID},
};
use crate::secret::SecretBytes;

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const KEY_ENTRY: u32 = 1;
const CERTIFICATE_ENTRY: u32 = 2;
/// Sun's key protection.
const PROTECTION: &[u8] = &[0x2b, 6, 1, 4, 1, 42, 2, 17, 1, 1];
/// What the file's digest begins with after the password, in every JKS there is.
const WHITENER: &[u8] = b"Mighty Aphrodite";

fn broken(why: &'static str) -> FormatError {
    FormatError::Keystore { doing: "write", format: "jks", why }
}

/// A keystore of a key and its chain, leaf first, under `alias`; the password protects file and key.
///
/// # Errors
/// The chain is empty, the key does not match it, or the password has fewer than six characters, which
/// keytool refuses.
pub fn write(
    key: &PrivateKey,
    chain: &[Certificate],
    alias: &str,
    password: &str,
) -> Result<SecretBytes, FormatError> {
    let Some(leaf) = chain.first() else { return Err(broken("there is no certificate")) };
    key.matches(leaf)?;
    let password = checked(password)?;
    let mut out = header(1);
    entry(&mut out, KEY_ENTRY, alias, leaf)?;
    sized(&mut out, &protect(key.pkcs8(), &password))?;
    out.extend_from_slice(&length(chain.len())?);
    for certificate in chain {
        self::certificate(&mut out, certificate)?;
    }
    Ok(sealed(out, &password))
}

/// A keystore of trusted certificates only, named `alias-0`, `alias-1`, ….
///
/// # Errors
/// There is no certificate, or the password is too short.
pub fn write_truststore(
    certificates: &[Certificate],
    alias: &str,
    password: &str,
) -> Result<SecretBytes, FormatError> {
    if certificates.is_empty() {
        return Err(broken("there is no certificate"));
    }
    let password = checked(password)?;
    let mut out = header(u32::try_from(certificates.len()).map_err(|_| broken("it is too large"))?);
    for (index, certificate) in certificates.iter().enumerate() {
        entry(&mut out, CERTIFICATE_ENTRY, &format!("{alias}-{index}"), certificate)?;
        self::certificate(&mut out, certificate)?;
    }
    Ok(sealed(out, &password))
}

fn checked(password: &str) -> Result<Vec<u8>, FormatError> {
    if password.chars().count() < 6 {
        return Err(broken("its password needs six characters at least"));
    }
    Ok(password.encode_utf16().flat_map(u16::to_be_bytes).collect())
}

fn header(entries: u32) -> Vec<u8> {
    [MAGIC, VERSION, entries].iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn length(length: usize) -> Result<[u8; 4], FormatError> {
    u32::try_from(length).map(u32::to_be_bytes).map_err(|_| broken("it is too large"))
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), FormatError> {
    out.extend_from_slice(&length(bytes.len())?);
    out.extend_from_slice(bytes);
    Ok(())
}

/// Kind, alias and creation date. Java lowers aliases; its UTF is ours for what an alias may hold.
fn entry(out: &mut Vec<u8>, kind: u32, alias: &str, dated: &Certificate) -> Result<(), FormatError> {
    if alias.is_empty() || !alias.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(broken("its alias must be printable ASCII"));
    }
    out.extend_from_slice(&kind.to_be_bytes());
    utf(out, &alias.to_ascii_lowercase())?;
    out.extend_from_slice(&dated.not_before().saturating_mul(1000).to_be_bytes());
    Ok(())
}

fn utf(out: &mut Vec<u8>, text: &str) -> Result<(), FormatError> {
    let length = u16::try_from(text.len()).map_err(|_| broken("its alias is too long"))?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn certificate(out: &mut Vec<u8>, certificate: &Certificate) -> Result<(), FormatError> {
    utf(out, "X.509")?;
    sized(out, certificate.der())
}

/// Sun's JKS key protection: salt, key XOR a SHA-1 stream, SHA-1 of password and key.
fn protect(key: &[u8], password: &[u8]) -> Vec<u8> {
    let sha1 = |parts: &[&[u8]]| {
        let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        parts.iter().for_each(|part| context.update(part));
        context.finish()
    };
    let salt = sha1(&[b"leasehold jks salt", password, key]);
    let mut out = salt.as_ref().to_vec();
    let mut block = salt;
    for chunk in key.chunks(20) {
        block = sha1(&[password, block.as_ref()]);
        out.extend(chunk.iter().zip(block.as_ref()).map(|(byte, mask)| byte ^ mask));
    }
    out.extend_from_slice(sha1(&[password, key]).as_ref());
    let algorithm = der::sequence(&[&der::tlv(OID, PROTECTION), NULL]);
    der::sequence(&[&algorithm, &der::tlv(OCTET_STRING, &out)])
}

fn sealed(mut out: Vec<u8>, password: &[u8]) -> SecretBytes {
    let seal = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[password, WHITENER, &out].concat());
    out.extend_from_slice(seal.as_ref());
    SecretBytes::new(out)
}
