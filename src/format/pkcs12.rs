//! PKCS#12 keystores.
//!
//! Written with AES-256-CBC under PBKDF2 with HMAC-SHA-256, and a SHA-256 MAC, which OpenSSL 1.1 and
//! Java 8u301 and later read. Salts and IVs are derived from the content under the password, not drawn: an
//! equal keystore is an equal file. What salts are for still holds, as other content or another password
//! gives others.
//!
//! Read with what older tools wrote too ([`read()`]).

mod derive;
mod read;

use std::num::NonZeroU32;

use aws_lc_rs::{
    cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey},
    digest, hmac,
    iv::FixedLength,
    pbkdf2,
};

use super::{
    Certificate, FormatError, PrivateKey,
    der::{self, BMP_STRING, NULL, OCTET_STRING, OID, SEQUENCE, SET},
};
use crate::secret::SecretBytes;
use derive::{Purpose, derive, password_bytes};

pub use read::read;

/// Rounds of key derivation: go-pkcs12's Modern, and so External Secrets Operator, takes 2000. A keystore
/// lies on tmpfs beside its password; more rounds would only cost the node.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(2_000).expect("2000 is not zero");

const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const ENCRYPTED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 6];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 12];
const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 9];
const AES256_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 42];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const KEY_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 2];
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1, 3];
const X509: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 22, 1];
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 20];
const LOCAL_KEY_ID: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 21];
/// Java's mark of a trusted certificate, with anyExtendedKeyUsage.
const TRUSTED: &[u8] = &[0x60, 0x86, 0x48, 1, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 1, 1];
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0];

fn broken(doing: &'static str, why: &'static str) -> FormatError {
    FormatError::Keystore { doing, format: "pkcs12", why }
}

/// A keystore of a key and its chain, leaf first, under `alias`.
///
/// # Errors
/// The chain is empty, or the key does not match its first certificate.
pub fn write(
    key: &PrivateKey,
    chain: &[Certificate],
    alias: &str,
    password: &str,
) -> Result<SecretBytes, FormatError> {
    let Some(leaf) = chain.first() else {
        return Err(broken("write", "there is no certificate"));
    };
    key.matches(leaf)?;
    let id = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, leaf.der());
    let key_id = attribute(LOCAL_KEY_ID, &der::tlv(OCTET_STRING, id.as_ref()));
    let named = attribute(FRIENDLY_NAME, &der::tlv(BMP_STRING, &utf16(alias)));
    let sealer = Sealer::new(
        password,
        &[key.pkcs8(), &chain.iter().flat_map(Certificate::der).copied().collect::<Vec<_>>()],
    );
    let certificates = chain.iter().enumerate().map(|(index, certificate)| {
        let attributes = if index == 0 { vec![named.clone(), key_id.clone()] } else { Vec::new() };
        certificate_bag(certificate, &attributes)
    });
    let certificates: Vec<u8> = certificates.flatten().collect();
    let (algorithm, sealed) = sealer.seal("key", key.pkcs8())?;
    let shrouded = der::sequence(&[&algorithm, &der::tlv(OCTET_STRING, &sealed)]);
    let bag = bag(KEY_BAG, &shrouded, &[named, key_id]);
    let safes = [sealer.encrypted(&der::tlv(SEQUENCE, &certificates))?, plain(&der::tlv(SEQUENCE, &bag))];
    sealer.finish(&safes.concat())
}

/// A keystore of trusted certificates only, named `alias-0`, `alias-1`, ….
///
/// # Errors
/// There is no certificate.
pub fn write_truststore(
    certificates: &[Certificate],
    alias: &str,
    password: &str,
) -> Result<SecretBytes, FormatError> {
    if certificates.is_empty() {
        return Err(broken("write", "there is no certificate"));
    }
    let all: Vec<u8> = certificates.iter().flat_map(Certificate::der).copied().collect();
    let sealer = Sealer::new(password, &[&all]);
    let bags = certificates.iter().enumerate().map(|(index, certificate)| {
        let name = attribute(FRIENDLY_NAME, &der::tlv(BMP_STRING, &utf16(&format!("{alias}-{index}"))));
        certificate_bag(certificate, &[name, attribute(TRUSTED, &der::tlv(OID, ANY_USAGE))])
    });
    let bags: Vec<u8> = bags.flatten().collect();
    let safe = sealer.encrypted(&der::tlv(SEQUENCE, &bags))?;
    sealer.finish(&safe)
}

/// Derives salts and IVs from password and content, and seals with them.
struct Sealer<'a> {
    password: &'a str,
    seed: hmac::Key,
}

impl<'a> Sealer<'a> {
    fn new(password: &'a str, content: &[&[u8]]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, password.as_bytes());
        let mut context = hmac::Context::with_key(&key);
        for part in content {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Self { password, seed: hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref()) }
    }

    fn derived(&self, label: &str) -> [u8; 16] {
        let mut out = [0; 16];
        out.copy_from_slice(&hmac::sign(&self.seed, label.as_bytes()).as_ref()[..16]);
        out
    }

    /// The algorithm's identifier, and `content` encrypted.
    fn seal(&self, label: &str, content: &[u8]) -> Result<(Vec<u8>, Vec<u8>), FormatError> {
        let (salt, iv) = (self.derived(&format!("{label} salt")), self.derived(&format!("{label} iv")));
        let mut key = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, self.password.as_bytes(), &mut key);
        let failed = |_| broken("write", "encryption failed");
        let cipher = UnboundCipherKey::new(&AES_256, &key).map_err(failed)?;
        let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(cipher).map_err(failed)?;
        let mut sealed = content.to_vec();
        cipher
            .less_safe_encrypt(&mut sealed, EncryptionContext::Iv128(FixedLength::from(iv)))
            .map_err(failed)?;
        let derivation = der::sequence(&[
            &der::tlv(OID, PBKDF2),
            &der::sequence(&[
                &der::tlv(OCTET_STRING, &salt),
                &der::integer(ITERATIONS.get()),
                &der::sequence(&[&der::tlv(OID, HMAC_SHA256), NULL]),
            ]),
        ]);
        let encryption = der::sequence(&[&der::tlv(OID, AES256_CBC), &der::tlv(OCTET_STRING, &iv)]);
        let algorithm = der::sequence(&[&der::tlv(OID, PBES2), &der::sequence(&[&derivation, &encryption])]);
        Ok((algorithm, sealed))
    }

    /// An EncryptedData content.
    fn encrypted(&self, content: &[u8]) -> Result<Vec<u8>, FormatError> {
        let (algorithm, sealed) = self.seal("certificates", content)?;
        let inner = der::sequence(&[&der::tlv(OID, DATA), &algorithm, &der::tlv(0x80, &sealed)]);
        let data = der::sequence(&[&der::integer(0), &inner]);
        Ok(der::sequence(&[&der::tlv(OID, ENCRYPTED_DATA), &der::tlv(0xa0, &data)]))
    }

    /// The whole file around its safes.
    fn finish(&self, safes: &[u8]) -> Result<SecretBytes, FormatError> {
        let safe = der::tlv(SEQUENCE, safes);
        let salt = self.derived("mac salt");
        let password = password_bytes(self.password);
        let mac_key = derive(&digest::SHA256, Purpose::Mac, &password, &salt, ITERATIONS.get(), 32);
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &mac_key), &safe);
        let digest = der::sequence(&[
            &der::sequence(&[&der::tlv(OID, SHA256), NULL]),
            &der::tlv(OCTET_STRING, mac.as_ref()),
        ]);
        let mac = der::sequence(&[&digest, &der::tlv(OCTET_STRING, &salt), &der::integer(ITERATIONS.get())]);
        Ok(SecretBytes::new(der::sequence(&[&der::integer(3), &plain(&safe), &mac])))
    }
}

/// A Data content.
fn plain(content: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::tlv(OID, DATA), &der::tlv(0xa0, &der::tlv(OCTET_STRING, content))])
}

fn attribute(name: &[u8], value: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::tlv(OID, name), &der::tlv(SET, value)])
}

fn bag(kind: &[u8], content: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let attributes = if attributes.is_empty() { Vec::new() } else { der::tlv(SET, &attributes.concat()) };
    der::sequence(&[&der::tlv(OID, kind), &der::tlv(0xa0, content), &attributes])
}

fn certificate_bag(certificate: &Certificate, attributes: &[Vec<u8>]) -> Vec<u8> {
    let inner = der::tlv(0xa0, &der::tlv(OCTET_STRING, certificate.der()));
    bag(CERT_BAG, &der::sequence(&[&der::tlv(OID, X509), &inner]), attributes)
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// What a keystore holds.
pub struct Contents {
    /// Its private keys.
    pub keys: Vec<PrivateKey>,
    /// Its certificates, in the order of the file.
    pub certificates: Vec<Certificate>,
}
