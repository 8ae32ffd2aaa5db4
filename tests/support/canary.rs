//! What a leaked secret may look like.

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};

/// Every shape in which the bytes could be written down.
pub fn shapes(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let mut shapes = vec![secret.to_owned(), HEXLOWER.encode(bytes), format!("{bytes:?}")];
    // Base64 of text around it differs at the edges only.
    for skip in 0..3 {
        let middle = &bytes[skip..bytes.len() - (bytes.len() - skip) % 3];
        shapes.extend([BASE64.encode(middle), BASE64URL_NOPAD.encode(middle)]);
    }
    shapes
}
