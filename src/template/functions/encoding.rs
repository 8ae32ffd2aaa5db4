//! Encodings and digests.

use aws_lc_rs::digest;
use data_encoding::{BASE32, BASE64, BASE64URL, Encoding, HEXLOWER, HEXLOWER_PERMISSIVE};

use super::{Args, Function, function, text};
use crate::template::{fault::Fault, value::Value};

pub(super) const TABLE: &[Function] = &[
    function("b64enc", 1, 1, |args| encode(args, &BASE64)),
    function("b64dec", 1, 1, |args| decode(args, &BASE64)),
    function("b32enc", 1, 1, |args| encode(args, &BASE32)),
    function("b32dec", 1, 1, |args| decode(args, &BASE32)),
    function("base64Encode", 1, 1, |args| encode(args, &BASE64)),
    function("base64Decode", 1, 1, |args| decode(args, &BASE64)),
    function("base64URLEncode", 1, 1, |args| encode(args, &BASE64URL)),
    function("base64URLDecode", 1, 1, |args| decode(args, &BASE64URL)),
    function("hexdec", 1, 1, |args| decode(args, &HEXLOWER_PERMISSIVE)),
    function("sha1sum", 1, 1, |args| digest(args, &digest::SHA1_FOR_LEGACY_USE_ONLY)),
    function("sha256sum", 1, 1, |args| digest(args, &digest::SHA256)),
    function("sha256Hex", 1, 1, |args| digest(args, &digest::SHA256)),
    function("sha512sum", 1, 1, |args| digest(args, &digest::SHA512)),
    function("adler32sum", 1, 1, adler32),
    function("hmacSHA256Hex", 2, 2, |args| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, args.bytes(1)?);
        text(HEXLOWER.encode(aws_lc_rs::hmac::sign(&key, args.bytes(0)?).as_ref()))
    }),
];

fn encode(args: &Args<'_>, encoding: &Encoding) -> Result<Value, Fault> {
    text(encoding.encode(args.bytes(0)?))
}

/// Go's decoders skip line ends. sprig answers the error's text where this is an error.
fn decode(args: &Args<'_>, encoding: &Encoding) -> Result<Value, Fault> {
    let bytes: Vec<u8> = args.bytes(0)?.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect();
    match encoding.decode(&bytes) {
        Ok(bytes) => text(bytes),
        Err(_) => Err(Fault::Why("the string is not of that encoding")),
    }
}

fn digest(args: &Args<'_>, algorithm: &'static digest::Algorithm) -> Result<Value, Fault> {
    text(HEXLOWER.encode(digest::digest(algorithm, args.bytes(0)?).as_ref()))
}

fn adler32(args: &Args<'_>) -> Result<Value, Fault> {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in args.bytes(0)?.iter() {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    text((b << 16 | a).to_string())
}
