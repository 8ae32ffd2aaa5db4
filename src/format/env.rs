//! `NAME=value` lines, sorted by name.
//!
//! A value of letters, digits and `_ @ % + = : , . / -` is written bare and means the same to every reader.
//! Any other value is quoted: in `'…'`, or, when it holds a `'`, in `"…"` with `\`, `"`, `$` and `` ` ``
//! escaped by a backslash. `set -a; . ./file` in a POSIX shell and the dotenv libraries read that back, line
//! ends included. `docker run --env-file` and Kubernetes' own env files take quotes literally and have no
//! form at all for a line end: for them keep values to the bare set, or use a file for each value.

use serde_json::{Map, Value as Json};

use super::{FormatError, flat};

/// Writes a data map.
///
/// # Errors
/// A key that is no shell variable's name, a value with a control character other than tab and line ends.
pub fn to_text(data: &Map<String, Json>) -> Result<String, FormatError> {
    let mut out = String::new();
    for (key, value) in data {
        let name = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && key.bytes().next().is_some_and(|first| !first.is_ascii_digit());
        if !name {
            return Err(FormatError::KeyName { format: "env", key: key.clone() });
        }
        let value = flat(value);
        if value.chars().any(|c| c.is_control() && !"\t\r\n".contains(c)) {
            return Err(FormatError::Binary { format: "env", key: key.clone() });
        }
        out.push_str(key);
        out.push('=');
        let bare = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b));
        if bare {
            out.push_str(&value);
        } else if value.contains('\'') {
            out.push('"');
            for character in value.chars() {
                if "\\\"$`".contains(character) {
                    out.push('\\');
                }
                out.push(character);
            }
            out.push('"');
        } else {
            out.push('\'');
            out.push_str(&value);
            out.push('\'');
        }
        out.push('\n');
    }
    Ok(out)
}
