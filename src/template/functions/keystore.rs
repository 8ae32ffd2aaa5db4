//! External Secrets Operator's certificate, keystore and key functions (its template engine, version 2).
//!
//! Where its own are silent about a key that does not match, these are an error.

use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA512_MGF1SHA512, OaepPrivateDecryptingKey,
    PrivateDecryptingKey,
};
use data_encoding::BASE64;

use super::{Args, Function, function, text};
use crate::{
    format::{Certificate, FormatError, PrivateKey, order_chain, pem, pkcs12},
    template::{fault::Fault, value::Value},
};

/// What a keystore's key derivation costs, in bytes of work: about 3 ms.
const KEYSTORE_WORK: usize = 4 << 20;
/// Largest keystore that is read. Its own key derivations cost time, and it may come from anyone who can
/// write the secret.
const LARGEST_KEYSTORE: usize = 64 << 10;

pub(super) const TABLE: &[Function] = &[
    function("pkcs12key", 1, 1, |args| pkcs12_key(args, "", 0)),
    function("pkcs12keyPass", 2, 2, |args| pkcs12_key(args, args.text(0)?, 1)),
    function("pkcs12cert", 1, 1, |args| pkcs12_cert(args, "", 0)),
    function("pkcs12certPass", 2, 2, |args| pkcs12_cert(args, args.text(0)?, 1)),
    function("pemToPkcs12", 2, 2, |args| to_pkcs12(args, "", false)),
    function("pemToPkcs12Pass", 3, 3, |args| to_pkcs12(args, args.text(2)?, false)),
    function("fullPemToPkcs12", 2, 2, |args| to_pkcs12(args, "", true)),
    function("fullPemToPkcs12Pass", 3, 3, |args| to_pkcs12(args, args.text(2)?, true)),
    function("pemTruststoreToPKCS12", 1, 1, |args| truststore(args, "")),
    function("pemTruststoreToPKCS12Pass", 2, 2, |args| truststore(args, args.text(1)?)),
    function("filterPEM", 2, 2, filter_pem),
    function("filterCertChain", 2, 2, filter_chain),
    function("certSANs", 1, 1, |args| {
        let certificates = Certificate::all_from_pem(args.text(0)?).map_err(fault)?;
        let names = certificates.first().map(Certificate::names).unwrap_or_default();
        Ok(Value::list(names.iter().map(Value::text).collect()))
    }),
    function("jwkPublicKeyPem", 1, 1, |args| {
        text(pem::encode("PUBLIC KEY", &jwk(args)?.public().map_err(fault)?))
    }),
    function("jwkPrivateKeyPem", 1, 1, |args| {
        text(pem::encode("PRIVATE KEY", &jwk(args)?.private().map_err(fault)?))
    }),
    function("rsaDecrypt", 4, 4, rsa_decrypt),
];

/// Reasons of the formats are constants; only their kinds with a key's name are not, and none is used here.
fn fault(error: FormatError) -> Fault {
    Fault::Why(match error {
        FormatError::Pem(why) | FormatError::PrivateKey(why) | FormatError::Certificate(why) => why,
        FormatError::Keystore { why, .. } => why,
        FormatError::Mismatch => "the private key does not match the certificate",
        FormatError::NotAMap { .. } | FormatError::KeyName { .. } | FormatError::Binary { .. } => {
            "the value has no such form"
        }
    })
}

fn read(args: &Args<'_>, password: &str, index: usize) -> Result<pkcs12::Contents, Fault> {
    let bytes = args.bytes(index)?;
    if bytes.len() > LARGEST_KEYSTORE {
        return Err(Fault::Why("the keystore is larger than 64 KiB"));
    }
    args.env.budget.work(KEYSTORE_WORK)?;
    pkcs12::read(bytes, password).map_err(fault)
}

fn pkcs12_key(args: &Args<'_>, password: &str, index: usize) -> Result<Value, Fault> {
    let contents = read(args, password, index)?;
    if contents.keys.is_empty() {
        return Err(Fault::Why("the keystore holds no private key"));
    }
    text(contents.keys.iter().map(|key| pem::encode("PRIVATE KEY", key.pkcs8())).collect::<String>())
}

fn pkcs12_cert(args: &Args<'_>, password: &str, index: usize) -> Result<Value, Fault> {
    let certificates = read(args, password, index)?.certificates;
    if certificates.is_empty() {
        return Err(Fault::Why("the keystore holds no certificate"));
    }
    let ordered = order_chain(&certificates).unwrap_or(certificates);
    text(ordered.iter().map(certificate_pem).collect::<String>())
}

fn certificate_pem(certificate: &Certificate) -> String {
    pem::encode("CERTIFICATE", certificate.der())
}

fn to_pkcs12(args: &Args<'_>, password: &str, full: bool) -> Result<Value, Fault> {
    let mut chain = Certificate::all_from_pem(args.text(0)?).map_err(fault)?;
    if !full {
        chain.truncate(1);
    }
    let key = PrivateKey::from_pem(args.text(1)?).map_err(fault)?;
    args.env.budget.work(KEYSTORE_WORK)?;
    // Java finds an entry by its name; go-pkcs12 gives none, and Java then calls it 1.
    let store = pkcs12::write(&key, &chain, "1", password).map_err(fault)?;
    text(BASE64.encode(store.expose()))
}

fn truststore(args: &Args<'_>, password: &str) -> Result<Value, Fault> {
    let certificates = Certificate::all_from_pem(args.text(0)?).map_err(fault)?;
    args.env.budget.work(KEYSTORE_WORK)?;
    let store = pkcs12::write_truststore(&certificates, "ca", password).map_err(fault)?;
    text(BASE64.encode(store.expose()))
}

fn filter_pem(args: &Args<'_>) -> Result<Value, Fault> {
    let (label, input) = (args.text(0)?, args.text(1)?);
    let blocks = pem::blocks(input).map_err(fault)?;
    if blocks.is_empty() && !input.trim().is_empty() {
        return Err(Fault::Why("there is no PEM in the string"));
    }
    let wanted = blocks.iter().filter(|block| block.label.eq_ignore_ascii_case(label));
    text(wanted.map(|block| pem::encode(&block.label, block.der.expose())).collect::<String>())
}

/// `leaf`, `intermediate` or `root` of a chain.
fn filter_chain(args: &Args<'_>) -> Result<Value, Fault> {
    let certificates = Certificate::all_from_pem(args.text(1)?).map_err(fault)?;
    let chain = order_chain(&certificates).ok_or(Fault::Why("the certificates are not one chain"))?;
    let roots = |certificate: &&Certificate| certificate.is_self_issued();
    let wanted: Vec<&Certificate> = match args.text(0)? {
        "leaf" => chain.iter().take(1).filter(|certificate| !certificate.is_self_issued()).collect(),
        "intermediate" => chain.iter().skip(1).take_while(|certificate| !roots(certificate)).collect(),
        "root" => chain.last().into_iter().filter(roots).collect(),
        _ => return Err(Fault::Why("takes leaf, intermediate or root first")),
    };
    text(wanted.into_iter().map(certificate_pem).collect::<String>())
}

fn jwk(args: &Args<'_>) -> Result<crate::format::jwk::Jwk, Fault> {
    crate::format::jwk::Jwk::from_json(args.text(0)?).map_err(fault)
}

/// `rsaDecrypt scheme hash ciphertext key`.
fn rsa_decrypt(args: &Args<'_>) -> Result<Value, Fault> {
    const FAILED: Fault = Fault::Why("the text is not encrypted for this key");
    let (scheme, hash, input) = (args.text(0)?, args.text(1)?, args.bytes(2)?);
    match scheme {
        "None" => return text(input),
        "RSA-OAEP" => {}
        _ => return Err(Fault::Why("knows the schemes None and RSA-OAEP")),
    }
    let algorithm = match hash {
        "SHA1" => &OAEP_SHA1_MGF1SHA1,
        "SHA512" => &OAEP_SHA512_MGF1SHA512,
        _ => &OAEP_SHA256_MGF1SHA256,
    };
    args.env.budget.work(KEYSTORE_WORK)?;
    let key = PrivateKey::from_pem(args.text(3)?).map_err(fault)?;
    let key = PrivateDecryptingKey::from_pkcs8(key.pkcs8()).map_err(|_| Fault::Why("the key is not RSA"))?;
    let key = OaepPrivateDecryptingKey::new(key).map_err(|_| Fault::Why("the key is not RSA"))?;
    let mut out = vec![0; key.min_output_size()];
    let plain = key.decrypt(algorithm, input, &mut out, None).map_err(|_| FAILED)?;
    text(plain)
}
