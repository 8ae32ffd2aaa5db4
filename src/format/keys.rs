//! Private keys and certificates: whether they belong together, and in what order.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256K1_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::{
    FormatError,
    der::{self, INTEGER, OCTET_STRING, OID, Reader, SEQUENCE},
    pem,
};
use crate::secret::SecretBytes;

pub(super) const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
pub(super) const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
pub(super) const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
pub(super) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
pub(super) const P384: &[u8] = &[0x2b, 0x81, 4, 0, 34];
pub(super) const P521: &[u8] = &[0x2b, 0x81, 4, 0, 35];
const SECP256K1: &[u8] = &[0x2b, 0x81, 4, 0, 10];

/// A private key, as PKCS#8.
#[derive(Clone)]
pub struct PrivateKey {
    pkcs8: SecretBytes,
}

impl PrivateKey {
    /// From the first private key of a PEM text: PKCS#8, PKCS#1 (`RSA PRIVATE KEY`) or SEC1
    /// (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// There is none, or it is encrypted or broken.
    pub fn from_pem(text: &str) -> Result<Self, FormatError> {
        let blocks = pem::blocks(text)?;
        match blocks.iter().find(|block| block.label.ends_with("PRIVATE KEY")) {
            Some(block) => Self::from_block(block),
            None => Err(FormatError::Pem("there is no private key in it")),
        }
    }

    /// From one block.
    ///
    /// # Errors
    /// It is no private key, or encrypted or broken.
    pub fn from_block(block: &pem::Block) -> Result<Self, FormatError> {
        let der = block.der.expose();
        let pkcs8 = match block.label.as_str() {
            "PRIVATE KEY" => der.to_vec(),
            "RSA PRIVATE KEY" => wrap(&[&der::tlv(OID, RSA), der::NULL], der),
            "EC PRIVATE KEY" => {
                let curve = sec1(der)?.curve.ok_or(FormatError::PrivateKey("the EC key names no curve"))?;
                wrap(&[&der::tlv(OID, EC), &der::tlv(OID, curve)], der)
            }
            "ENCRYPTED PRIVATE KEY" => {
                return Err(FormatError::PrivateKey("it is encrypted; store it without a passphrase"));
            }
            _ => return Err(FormatError::PrivateKey("its PEM label is not known here")),
        };
        Self::from_pkcs8(pkcs8)
    }

    /// From PKCS#8 DER. What version 2 adds, attributes and a public key, is dropped: OpenSSL 3.0 opens no
    /// keystore that holds it.
    ///
    /// # Errors
    /// It is not PKCS#8.
    pub fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, FormatError> {
        let whole = SecretBytes::new(pkcs8);
        let mut fields = Reader(Reader(whole.expose()).expect(SEQUENCE)?);
        fields.expect(INTEGER)?;
        let algorithm = fields.expect(SEQUENCE)?;
        let inner = fields.expect(OCTET_STRING)?;
        let key = Self { pkcs8: SecretBytes::new(wrap(&[algorithm], inner)) };
        key.parts()?;
        Ok(key)
    }

    /// The key as PKCS#8 DER.
    pub fn pkcs8(&self) -> &[u8] {
        self.pkcs8.expose()
    }

    fn parts(&self) -> Result<Parts<'_>, FormatError> {
        let mut outer = Reader(Reader(self.pkcs8.expose()).expect(SEQUENCE)?);
        outer.expect(INTEGER)?;
        let mut algorithm = Reader(outer.expect(SEQUENCE)?);
        let name = algorithm.expect(OID)?;
        let parameter = algorithm.next().filter(|(tag, _)| *tag == OID).map(|(_, content)| content);
        Ok(Parts { algorithm: name, parameter, inner: outer.expect(OCTET_STRING)? })
    }

    /// Algorithm and bytes of the public key, as a certificate carries them.
    fn public(&self) -> Result<(&[u8], Vec<u8>), FormatError> {
        const BROKEN: FormatError = FormatError::PrivateKey("its numbers make no key");
        let Parts { algorithm, parameter, inner } = self.parts()?;
        let public = match algorithm {
            RSA => {
                let mut numbers = Reader(Reader(inner).expect(SEQUENCE)?);
                numbers.expect(INTEGER)?;
                let (modulus, exponent) = (numbers.expect(INTEGER)?, numbers.expect(INTEGER)?);
                der::sequence(&[&der::tlv(INTEGER, modulus), &der::tlv(INTEGER, exponent)])
            }
            EC => {
                let signing = match parameter.or(sec1(inner)?.curve) {
                    Some(P256) => &ECDSA_P256_SHA256_ASN1_SIGNING,
                    Some(P384) => &ECDSA_P384_SHA384_ASN1_SIGNING,
                    Some(P521) => &ECDSA_P521_SHA512_ASN1_SIGNING,
                    Some(SECP256K1) => &ECDSA_P256K1_SHA256_ASN1_SIGNING,
                    _ => return Err(FormatError::PrivateKey("its curve is not known here")),
                };
                let pair =
                    EcdsaKeyPair::from_private_key_der(signing, self.pkcs8.expose()).map_err(|_| BROKEN)?;
                pair.public_key().as_ref().to_vec()
            }
            ED25519 => {
                let seed = Reader(inner).expect(OCTET_STRING)?;
                let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| BROKEN)?;
                pair.public_key().as_ref().to_vec()
            }
            _ => return Err(FormatError::PrivateKey("its algorithm is not RSA, EC or Ed25519")),
        };
        Ok((algorithm, public))
    }

    /// Whether the certificate is for this key.
    ///
    /// # Errors
    /// [`FormatError::Mismatch`], or a key of a kind that cannot be compared.
    pub fn matches(&self, certificate: &Certificate) -> Result<(), FormatError> {
        let (algorithm, public) = self.public()?;
        if algorithm == certificate.algorithm && public == certificate.public {
            Ok(())
        } else {
            Err(FormatError::Mismatch)
        }
    }
}

/// What PKCS#8 says of a key.
struct Parts<'a> {
    algorithm: &'a [u8],
    /// The algorithm's parameter, if that is an OID: the curve.
    parameter: Option<&'a [u8]>,
    inner: &'a [u8],
}

fn wrap(algorithm: &[&[u8]], key: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::integer(0), &der::sequence(algorithm), &der::tlv(OCTET_STRING, key)])
}

struct Sec1<'a> {
    curve: Option<&'a [u8]>,
}

fn sec1(key: &[u8]) -> Result<Sec1<'_>, FormatError> {
    let mut fields = Reader(Reader(key).expect(SEQUENCE)?);
    fields.expect(INTEGER)?;
    fields.expect(OCTET_STRING)?;
    let mut curve = None;
    while let Some((tag, content)) = fields.next() {
        if tag == 0xa0 {
            curve = Some(Reader(content).expect(OID)?);
        }
    }
    Ok(Sec1 { curve })
}

/// A certificate, as far as it is looked at here.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    algorithm: Vec<u8>,
    public: Vec<u8>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    subject_key: Option<Vec<u8>>,
    authority_key: Option<Vec<u8>>,
    names: Vec<String>,
    not_before: i64,
}

impl Certificate {
    /// From DER.
    ///
    /// # Errors
    /// It is no X.509 certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, FormatError> {
        let (rest, parsed) = X509Certificate::from_der(der)
            .map_err(|_| FormatError::Certificate("it is not an X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(FormatError::Certificate("bytes follow after it"));
        }
        let spki = parsed.public_key();
        let (mut subject_key, mut authority_key) = (None, None);
        let (mut dns, mut addresses, mut mails, mut uris) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => subject_key = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    authority_key = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                            GeneralName::RFC822Name(name) => mails.push((*name).to_owned()),
                            GeneralName::URI(name) => uris.push((*name).to_owned()),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(Self {
            der: der.to_vec(),
            algorithm: spki.algorithm.algorithm.as_bytes().to_vec(),
            public: spki.subject_public_key.data.to_vec(),
            subject: parsed.subject().as_raw().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
            subject_key,
            authority_key,
            names: [dns, addresses, mails, uris].concat(),
            not_before: parsed.validity().not_before.timestamp(),
        })
    }

    /// All certificates of a PEM text, in its order.
    ///
    /// # Errors
    /// There is none, or one is broken.
    pub fn all_from_pem(text: &str) -> Result<Vec<Self>, FormatError> {
        let blocks = pem::blocks(text)?;
        let certificates = blocks.iter().filter(|block| block.label == "CERTIFICATE");
        let found =
            certificates.map(|block| Self::from_der(block.der.expose())).collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() { Err(FormatError::Pem("there is no certificate in it")) } else { Ok(found) }
    }

    /// The DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Subject alternative names: DNS names, addresses, mail addresses, URIs.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Start of validity, in seconds since 1970.
    pub fn not_before(&self) -> i64 {
        self.not_before
    }

    /// Whether subject and issuer are the same: a root.
    pub fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    fn is_issued_by(&self, other: &Self) -> bool {
        match (&self.authority_key, &other.subject_key) {
            (Some(wanted), Some(found)) => wanted == found && self.issuer == other.subject,
            _ => self.issuer == other.subject,
        }
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| std::net::Ipv6Addr::from(sixteen).to_string())
}

/// Orders certificates leaf first, each followed by its issuer. `None` when they are not one chain: more
/// than one leaf, or none.
pub fn order_chain(certificates: &[Certificate]) -> Option<Vec<Certificate>> {
    let parent = |index: usize| {
        certificates
            .iter()
            .enumerate()
            .position(|(other, candidate)| other != index && certificates[index].is_issued_by(candidate))
    };
    let parents: Vec<Option<usize>> = (0..certificates.len()).map(parent).collect();
    let mut leaves = (0..certificates.len()).filter(|index| !parents.contains(&Some(*index)));
    let leaf = leaves.next()?;
    if leaves.next().is_some() {
        return None;
    }
    let mut ordered = Vec::new();
    let mut at = Some(leaf);
    while let Some(index) = at {
        if ordered.len() == certificates.len() {
            return None;
        }
        ordered.push(certificates[index].clone());
        at = parents[index];
    }
    Some(ordered)
}

/// Whether the first private key of `key_pem` belongs to the first certificate of `certificate_pem`: RSA,
/// EC (P-256, P-384, P-521, secp256k1) and Ed25519, by their public keys.
///
/// # Errors
/// [`FormatError::Mismatch`]; or either text is not what it should be.
pub fn check_key_matches_certificate(key_pem: &str, certificate_pem: &str) -> Result<(), FormatError> {
    let certificates = Certificate::all_from_pem(certificate_pem)?;
    let Some(leaf) = certificates.first() else {
        return Err(FormatError::Pem("there is no certificate in it"));
    };
    PrivateKey::from_pem(key_pem)?.matches(leaf)
}
