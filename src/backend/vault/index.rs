//! Read after write over a cluster whose standbys answer by themselves.
//!
//! OpenBao answers writes with `X-Vault-Index`. A read that sends it back is refused by a standby that has
//! not come that far, instead of answered with an older state (300 of 300 reads straight after a write were
//! stale without it).

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderValue;

use crate::clock::{BootTime, boot_now};

/// How long an index is sent. Standbys were never behind by more than 2.3 s; an index from before a restored
/// snapshot would be refused for ever.
const LIFE: Duration = Duration::from_secs(30);

/// Longest index kept, bytes; OpenBao's have about 80.
const MAX_LENGTH: usize = 512;

/// Most namespaces remembered.
const MAX_ENTRIES: usize = 256;

/// The newest index seen of each server and namespace.
#[derive(Default)]
pub(super) struct Indexes(Mutex<BTreeMap<(String, String), Seen>>);

struct Seen {
    header: HeaderValue,
    position: Option<u64>,
    at: BootTime,
}

impl Indexes {
    /// What to send with a read.
    pub(super) fn get(&self, address: &str, namespace: &str) -> Option<HeaderValue> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get(&(address.to_owned(), namespace.to_owned()))?;
        (seen.at.until(boot_now()) < LIFE).then(|| seen.header.clone())
    }

    /// Remembers what an answer carried, unless it is older than what is known.
    pub(super) fn put(&self, address: &str, namespace: &str, header: &HeaderValue) {
        if header.len() > MAX_LENGTH {
            return;
        }
        let (position, now) = (position(header), boot_now());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_owned(), namespace.to_owned());
        let newer = all.get(&key).is_some_and(|seen| position < seen.position && seen.at.until(now) < LIFE);
        if newer {
            return;
        }
        all.retain(|_, seen| seen.at.until(now) < LIFE);
        if all.len() < MAX_ENTRIES {
            all.insert(key, Seen { header: header.clone(), position, at: now });
        }
    }
}

/// The position in OpenBao's log: `{"cluster":"…","value":"2654"}` in base64. `None` for other servers.
fn position(header: &HeaderValue) -> Option<u64> {
    let json = data_encoding::BASE64.decode(header.as_bytes()).ok()?;
    let json: BTreeMap<String, String> = serde_json::from_slice(&json).ok()?;
    json.get("value")?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "literals")]

    use super::*;

    fn index(value: u64) -> HeaderValue {
        let json = format!(r#"{{"cluster":"c","value":"{value}"}}"#);
        HeaderValue::from_str(&data_encoding::BASE64.encode(json.as_bytes())).unwrap()
    }

    #[test]
    fn the_newest_index_of_each_namespace_is_sent_back() {
        let indexes = Indexes::default();
        assert_eq!(indexes.get("a", ""), None);
        indexes.put("a", "", &index(10));
        indexes.put("a", "", &index(9));
        assert_eq!(indexes.get("a", ""), Some(index(10)));
        assert_eq!(indexes.get("a", "team"), None);
        indexes.put("a", "", &index(11));
        assert_eq!(indexes.get("a", ""), Some(index(11)));
        for n in 0..2 * MAX_ENTRIES {
            indexes.put("a", &n.to_string(), &index(1));
        }
        assert_eq!(indexes.0.lock().unwrap().len(), MAX_ENTRIES);
        indexes.put("b", "", &HeaderValue::from_str(&"x".repeat(MAX_LENGTH + 1)).unwrap());
        assert_eq!(indexes.get("b", ""), None);
    }
}
