//! Reads PKCS#12 as OpenSSL, Java and Windows write it: PBES2 with AES, and the older 3DES and RC2.
//!
//! Our own, because a keystore may come from anyone who can write a secret, and its rounds of key
//! derivation must be bounded over the whole file.

use std::num::NonZeroU32;

use aws_lc_rs::{
    cipher::{AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey},
    digest, hmac,
    iv::FixedLength,
    pbkdf2,
};
use cbc::cipher::{BlockCipherDecrypt, BlockModeDecrypt, KeyInit, KeyIvInit, block_padding::Pkcs7};

use super::{
    Contents, DATA, ENCRYPTED_DATA, PBES2, PBKDF2, SHA256, X509, broken,
    derive::{Purpose, derive, password_bytes},
};
use crate::{
    format::{
        Certificate, FormatError, PrivateKey,
        der::{INTEGER, OCTET_STRING, OID, Reader, SEQUENCE},
    },
    secret::SecretBytes,
};

/// Rounds of all derivations of one file: a second of work at the most, ten times what OpenSSL writes.
const MOST_ITERATIONS: u64 = 1_000_000;

const SHA1: &[u8] = &[0x2b, 0x0e, 3, 2, 26];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3];
/// 1.2.840.113549.2: its last arcs 7, 9, 10 and 11 are HMAC with SHA-1, 256, 384 and 512.
const HMAC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2];
/// 2.16.840.1.101.3.4.1: its last arcs 2, 22 and 42 are AES-128, 192 and 256 in CBC mode.
const AES: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1];
/// 1.2.840.113549.1.12.1: its last arcs 3 and 6 are 3DES and RC2 of 40 bits.
const PBE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 1];
/// 1.2.840.113549.1.12.10.1: its last arcs 1, 2 and 3 are key, shrouded key and certificate.
const BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 12, 10, 1];

/// Reads a keystore.
///
/// # Errors
/// It is no PKCS#12 file, the password is another, or opening it would take too long.
pub fn read(bytes: &[u8], password: &str) -> Result<Contents, FormatError> {
    let mut opener = Opener {
        password,
        legacy: password_bytes(password),
        left: MOST_ITERATIONS,
        keys: vec![],
        certificates: vec![],
    };
    opener.file(bytes)?;
    Ok(Contents { keys: opener.keys, certificates: opener.certificates })
}

struct Opener<'a> {
    password: &'a str,
    /// The password for derivations other than PBKDF2; none at all is tried for an empty one.
    legacy: Vec<u8>,
    left: u64,
    keys: Vec<PrivateKey>,
    certificates: Vec<Certificate>,
}

fn wrong() -> FormatError {
    broken("read", "it is not PKCS#12, or the password is another")
}

fn unknown() -> FormatError {
    broken("read", "its encryption is not known here")
}

fn expect<'a>(reader: &mut Reader<'a>, tag: u8) -> Result<&'a [u8], FormatError> {
    reader.expect(tag).map_err(|_| wrong())
}

impl Opener<'_> {
    fn file(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let mut file = Reader(expect(&mut Reader(bytes), SEQUENCE)?);
        if expect(&mut file, INTEGER)? != [3] {
            return Err(wrong());
        }
        let mut content = Reader(expect(&mut file, SEQUENCE)?);
        if expect(&mut content, OID)? != DATA {
            return Err(wrong());
        }
        let safe = expect(&mut Reader(expect(&mut content, 0xa0)?), OCTET_STRING)?;
        if let Some((SEQUENCE, mac)) = file.next() {
            self.verify(mac, safe)?;
        }
        let mut safes = Reader(expect(&mut Reader(safe), SEQUENCE)?);
        while let Some((SEQUENCE, content)) = safes.next() {
            let mut content = Reader(content);
            let kind = expect(&mut content, OID)?;
            let inner = expect(&mut content, 0xa0)?;
            if kind == DATA {
                self.bags(expect(&mut Reader(inner), OCTET_STRING)?)?;
            } else if kind == ENCRYPTED_DATA {
                let mut data = Reader(expect(&mut Reader(inner), SEQUENCE)?);
                expect(&mut data, INTEGER)?;
                let mut info = Reader(expect(&mut data, SEQUENCE)?);
                expect(&mut info, OID)?;
                let algorithm = expect(&mut info, SEQUENCE)?;
                let opened = self.decrypt(algorithm, expect(&mut info, 0x80)?)?;
                self.bags(opened.expose())?;
            } else {
                return Err(unknown());
            }
        }
        Ok(())
    }

    fn spend(&mut self, iterations: &[u8]) -> Result<NonZeroU32, FormatError> {
        let count = iterations
            .iter()
            .try_fold(0_u32, |sum, byte| sum.checked_mul(256)?.checked_add(u32::from(*byte)));
        let count = count.and_then(NonZeroU32::new);
        let left = count.and_then(|count| self.left.checked_sub(u64::from(count.get())));
        match (count, left) {
            (Some(count), Some(left)) => {
                self.left = left;
                Ok(count)
            }
            _ => Err(broken("read", "opening it would take too long")),
        }
    }

    fn verify(&mut self, mac: &[u8], safe: &[u8]) -> Result<(), FormatError> {
        let mut mac = Reader(mac);
        let mut info = Reader(expect(&mut mac, SEQUENCE)?);
        let name = expect(&mut Reader(expect(&mut info, SEQUENCE)?), OID)?;
        let wanted = expect(&mut info, OCTET_STRING)?;
        let salt = expect(&mut mac, OCTET_STRING)?;
        let iterations = self.spend(mac.next().map_or(&[1][..], |(_, count)| count))?.get();
        let (hash, keyed) = match name {
            SHA1 => (&digest::SHA1_FOR_LEGACY_USE_ONLY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
            SHA256 => (&digest::SHA256, hmac::HMAC_SHA256),
            SHA384 => (&digest::SHA384, hmac::HMAC_SHA384),
            SHA512 => (&digest::SHA512, hmac::HMAC_SHA512),
            _ => return Err(unknown()),
        };
        let matches = |password: &[u8]| {
            let key = derive(hash, Purpose::Mac, password, salt, iterations, hash.output_len());
            hmac::verify(&hmac::Key::new(keyed, &key), safe, wanted).is_ok()
        };
        if matches(&self.legacy) {
            return Ok(());
        }
        // Some tools take an empty password for none.
        if self.password.is_empty() && matches(&[]) {
            self.legacy = Vec::new();
            return Ok(());
        }
        Err(wrong())
    }

    fn bags(&mut self, content: &[u8]) -> Result<(), FormatError> {
        let mut bags = Reader(expect(&mut Reader(content), SEQUENCE)?);
        while let Some((SEQUENCE, bag)) = bags.next() {
            let mut bag = Reader(bag);
            let kind = expect(&mut bag, OID)?;
            let value = expect(&mut bag, 0xa0)?;
            match kind.strip_prefix(BAG) {
                Some([1]) => self.keys.push(PrivateKey::from_pkcs8(value.to_vec())?),
                Some([2]) => {
                    let mut shrouded = Reader(expect(&mut Reader(value), SEQUENCE)?);
                    let algorithm = expect(&mut shrouded, SEQUENCE)?;
                    let key = self.decrypt(algorithm, expect(&mut shrouded, OCTET_STRING)?)?;
                    self.keys.push(PrivateKey::from_pkcs8(key.expose().to_vec())?);
                }
                Some([3]) => {
                    let mut certificate = Reader(expect(&mut Reader(value), SEQUENCE)?);
                    if expect(&mut certificate, OID)? == X509 {
                        let der = expect(&mut Reader(expect(&mut certificate, 0xa0)?), OCTET_STRING)?;
                        self.certificates.push(Certificate::from_der(der)?);
                    }
                }
                // CRLs, secrets and nested bags: nothing that is asked for.
                _ => {}
            }
        }
        Ok(())
    }

    fn decrypt(&mut self, algorithm: &[u8], data: &[u8]) -> Result<SecretBytes, FormatError> {
        let mut algorithm = Reader(algorithm);
        let name = expect(&mut algorithm, OID)?;
        let mut parameters = Reader(expect(&mut algorithm, SEQUENCE)?);
        if name == PBES2 {
            return self.pbes2(&mut parameters, data);
        }
        let salt = expect(&mut parameters, OCTET_STRING)?;
        let iterations = self.spend(expect(&mut parameters, INTEGER)?)?.get();
        let derived = |purpose, length| {
            derive(&digest::SHA1_FOR_LEGACY_USE_ONLY, purpose, &self.legacy, salt, iterations, length)
        };
        match name.strip_prefix(PBE) {
            Some([3]) => open::<des::TdesEde3>(&derived(Purpose::Key, 24), &derived(Purpose::Iv, 8), data),
            Some([6]) => open::<rc2::Rc2>(&derived(Purpose::Key, 5), &derived(Purpose::Iv, 8), data),
            _ => Err(unknown()),
        }
    }

    fn pbes2(&mut self, parameters: &mut Reader<'_>, data: &[u8]) -> Result<SecretBytes, FormatError> {
        let mut derivation = Reader(expect(parameters, SEQUENCE)?);
        let mut encryption = Reader(expect(parameters, SEQUENCE)?);
        if expect(&mut derivation, OID)? != PBKDF2 {
            return Err(unknown());
        }
        let mut derivation = Reader(expect(&mut derivation, SEQUENCE)?);
        let salt = expect(&mut derivation, OCTET_STRING)?;
        let iterations = self.spend(expect(&mut derivation, INTEGER)?)?;
        let mut function = pbkdf2::PBKDF2_HMAC_SHA1;
        while let Some((tag, content)) = derivation.next() {
            // A key length may stand here too; the cipher says it as well.
            if tag == SEQUENCE {
                function = match expect(&mut Reader(content), OID)?.strip_prefix(HMAC) {
                    Some([7]) => pbkdf2::PBKDF2_HMAC_SHA1,
                    Some([9]) => pbkdf2::PBKDF2_HMAC_SHA256,
                    Some([10]) => pbkdf2::PBKDF2_HMAC_SHA384,
                    Some([11]) => pbkdf2::PBKDF2_HMAC_SHA512,
                    _ => return Err(unknown()),
                };
            }
        }
        let (cipher, length) = match expect(&mut encryption, OID)?.strip_prefix(AES) {
            Some([2]) => (&AES_128, 16),
            Some([22]) => (&AES_192, 24),
            Some([42]) => (&AES_256, 32),
            _ => return Err(unknown()),
        };
        let iv = <[u8; 16]>::try_from(expect(&mut encryption, OCTET_STRING)?).map_err(|_| wrong())?;
        let mut key = vec![0; length];
        pbkdf2::derive(function, iterations, salt, self.password.as_bytes(), &mut key);
        let key = UnboundCipherKey::new(cipher, &key).and_then(PaddedBlockDecryptingKey::cbc_pkcs7);
        let mut data = data.to_vec();
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        let opened = key.and_then(|key| key.decrypt(&mut data, context).map(|plain| plain.to_vec()));
        opened.map(SecretBytes::new).map_err(|_| wrong())
    }
}

fn open<C: KeyInit + BlockCipherDecrypt>(
    key: &[u8],
    iv: &[u8],
    data: &[u8],
) -> Result<SecretBytes, FormatError> {
    let cipher = cbc::Decryptor::<C>::new_from_slices(key, iv).map_err(|_| wrong())?;
    cipher.decrypt_padded_vec::<Pkcs7>(data).map(SecretBytes::new).map_err(|_| wrong())
}
