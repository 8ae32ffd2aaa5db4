//! Secret bytes and strings that cannot be printed.
//!
//! There is no `Display`, no `Serialize`, and `Debug` says `[redacted]`. Memory is wiped on drop; the
//! binary's allocator wipes what libraries free (see `main.rs`).

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes that leave this process only into the pod's files.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes ownership of `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves. Callers must not let them reach a log, an error or a metric.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// A secret string: a token, mostly.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SecretString(String);

impl SecretString {
    /// Takes ownership of `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Callers must not let it reach a log, an error or a metric.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A JSON value whose strings are wiped on drop.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretJson(serde_json::Value);

impl SecretJson {
    /// Takes ownership of `value`.
    pub fn new(value: serde_json::Value) -> Self {
        Self(value)
    }

    /// The value itself. Callers must not let it reach a log, an error or a metric.
    pub fn expose(&self) -> &serde_json::Value {
        &self.0
    }

    /// Removes a key of an object and wipes its value.
    pub fn remove(&mut self, key: &str) {
        let removed = self.0.as_object_mut().and_then(|object| object.remove(key));
        drop(removed.map(Self));
    }
}

impl fmt::Debug for SecretJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Drop for SecretJson {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

// Depth is bounded by the response parser, so recursion is too.
fn wipe(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => text.zeroize(),
        serde_json::Value::Array(items) => items.iter_mut().for_each(wipe),
        serde_json::Value::Object(map) => map.values_mut().for_each(wipe),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_value() {
        let shown = format!(
            "{:?} {:?} {:?}",
            SecretBytes::new(b"canary".to_vec()),
            SecretString::new("canary".into()),
            SecretJson::new(serde_json::json!({"a": "canary"})),
        );
        assert_eq!(shown, "[redacted] [redacted] [redacted]");
    }
}
