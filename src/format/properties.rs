//! Java's .properties, as `java.util.Properties.store` escapes them, keys sorted: ASCII only, so that a
//! reader of ISO 8859-1 and one of UTF-8 see the same.

use serde_json::{Map, Value as Json};

use super::{FormatError, flat};

/// Writes a data map.
///
/// # Errors
/// A value with a NUL, which no Java application means to read from there.
pub fn to_text(data: &Map<String, Json>) -> Result<String, FormatError> {
    let mut out = String::new();
    for (key, value) in data {
        let value = flat(value);
        if value.contains('\0') || key.contains('\0') {
            return Err(FormatError::Binary { format: "properties", key: key.clone() });
        }
        escape(&mut out, key, true);
        out.push('=');
        escape(&mut out, &value, false);
        out.push('\n');
    }
    Ok(out)
}

fn escape(out: &mut String, text: &str, key: bool) {
    for (index, character) in text.chars().enumerate() {
        match character {
            // Leading space would be skipped by a reader; in a key any space ends it.
            ' ' if key || index == 0 => out.push_str("\\ "),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\u{c}' => out.push_str("\\f"),
            '\\' | '=' | ':' | '#' | '!' => {
                out.push('\\');
                out.push(character);
            }
            ' '..='~' => out.push(character),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
}
