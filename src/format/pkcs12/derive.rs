//! RFC 7292, appendix B.2: keys of the MAC and of the older ciphers.

use aws_lc_rs::digest::{self, Algorithm};

/// What the bytes are for; the RFC's ID.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Key = 1,
    Iv = 2,
    Mac = 3,
}

/// A password as these derivations take it: UTF-16, big-endian, with its terminator.
pub(super) fn password_bytes(password: &str) -> Vec<u8> {
    let mut bytes = super::utf16(password);
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

/// `length` bytes from a password (as [`password_bytes`] gives it) and a salt.
pub(super) fn derive(
    algorithm: &'static Algorithm,
    purpose: Purpose,
    password: &[u8],
    salt: &[u8],
    iterations: u32,
    length: usize,
) -> Vec<u8> {
    let block = algorithm.block_len();
    let repeated = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().copied().cycle().take(bytes.len().div_ceil(block) * block).collect()
    };
    let mut input = [repeated(salt), repeated(password)].concat();
    let mut out = Vec::with_capacity(length + block);
    while out.len() < length {
        let mut hash = digest::digest(algorithm, &[vec![purpose as u8; block], input.clone()].concat());
        for _ in 1..iterations {
            hash = digest::digest(algorithm, hash.as_ref());
        }
        out.extend_from_slice(hash.as_ref());
        // Each block of the input grows by the repeated hash and one, modulo its size.
        let added: Vec<u8> = hash.as_ref().iter().copied().cycle().take(block).collect();
        for chunk in input.chunks_mut(block) {
            let mut carry = 1_u16;
            for (byte, add) in chunk.iter_mut().zip(&added).rev() {
                let sum = u16::from(*byte) + u16::from(*add) + carry;
                *byte = sum.to_be_bytes()[1];
                carry = sum >> 8;
            }
        }
    }
    out.truncate(length);
    out
}
