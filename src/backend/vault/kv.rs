//! What the data of an answer says about itself: KV versions, rotation, expiry.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::response::{lifetime, seconds};
use crate::backend::DataLifetime;

/// A version of a KV v2 secret, as `data.metadata` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// `version`.
    pub(super) number: u64,
    /// What is left of it.
    pub(super) state: State,
}

/// Whether a version can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It holds data. A `deletion_time` ahead (`delete_version_after`) changes nothing yet.
    Alive,
    /// Soft-deleted: an undelete brings it back.
    Deleted {
        /// `deletion_time` as the server wrote it; empty when it makes no sense.
        at: String,
    },
    /// Gone for good.
    Destroyed,
}

/// The version, when `data` is an answer of a KV v2 data path.
pub(super) fn version(data: &Value) -> Option<Version> {
    let (content, metadata) = (data.get("data")?, data.get("metadata")?);
    metadata.get("created_time")?;
    let number = seconds(metadata.get("version"))?;
    let state = if metadata.get("destroyed") == Some(&Value::Bool(true)) {
        State::Destroyed
    } else if content.is_null() {
        State::Deleted { at: timestamp(metadata.get("deletion_time")) }
    } else {
        State::Alive
    };
    Some(Version { number, state })
}

/// Only what looks like a time may be shown: the rest could be anything.
fn timestamp(value: Option<&Value>) -> String {
    let text = value.and_then(Value::as_str).unwrap_or_default();
    let plausible =
        text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_digit() || b"TZ:.+-".contains(&byte));
    if plausible { text.to_owned() } else { String::new() }
}

/// A lifetime in data that came without a lease: a database static role's next rotation, or a certificate's
/// end (PKI answers `expiration` in seconds since the epoch).
pub(super) fn data_lifetime(data: &Value, now: SystemTime) -> Option<DataLifetime> {
    let has = |key| data.get(key).is_some_and(|value| !value.is_null());
    if has("last_vault_rotation") && (has("rotation_period") || has("rotation_schedule")) {
        return Some(DataLifetime::Rotates { ttl: lifetime(seconds(data.get("ttl"))?) });
    }
    if data.get("certificate").is_some_and(Value::is_string) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let left = seconds(data.get("expiration"))?.saturating_sub(now);
        return Some(DataLifetime::Expires { ttl: lifetime(left) });
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_as_measured() {
        let metadata = |deleted: &str, destroyed: bool| {
            json!({"created_time": "2026-11-23T14:00:23.382042115Z", "custom_metadata": null,
                   "deletion_time": deleted, "destroyed": destroyed, "version": 3})
        };
        let deleted = |at: &str| State::Deleted { at: at.to_owned() };
        let past = "2026-11-23T14:00:23.429949399Z";
        for (content, metadata, state) in [
            (json!({"a": "b"}), metadata("", false), State::Alive),
            // delete_version_after: alive until then. bao agent takes this for "no secret exists".
            (json!({"a": "b"}), metadata("2999-12-25T00:00:00Z", false), State::Alive),
            (Value::Null, metadata(past, false), deleted(past)),
            (Value::Null, metadata("canary <script>", false), deleted("")),
            (Value::Null, metadata("", true), State::Destroyed),
        ] {
            let data = json!({"data": content, "metadata": metadata});
            assert_eq!(version(&data), Some(Version { number: 3, state }), "{data}");
        }
        for data in [
            json!(null),
            json!({"data": {"a": 1}}),
            json!({"data": 1, "metadata": {"version": 1}}),
            json!([]),
        ] {
            assert_eq!(version(&data), None, "{data}");
        }
    }

    #[test]
    fn lifetimes_as_measured() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_529_000);
        let rotates = |ttl| Some(DataLifetime::Rotates { ttl: Duration::from_secs(ttl) });
        let expires = |ttl| Some(DataLifetime::Expires { ttl: Duration::from_secs(ttl) });
        let fixed = |ttl: i64| {
            json!({"last_vault_rotation": "2026-11-23T14:06:47.504830728Z", "password": "x",
                   "rotation_period": 30, "ttl": ttl, "username": "staticuser"})
        };
        for (data, expected) in [
            (fixed(28), rotates(28)),
            (fixed(0), rotates(0)),
            (fixed(-1), rotates(0)),
            (json!({"last_vault_rotation": "x", "rotation_schedule": "0 0 * * *", "ttl": 5}), rotates(5)),
            (json!({"certificate": "PEM", "expiration": 1_795_529_397}), expires(397)),
            (json!({"certificate": "PEM", "expiration": 1}), expires(0)),
            (json!({"certificate": "PEM"}), None),
            // A KV v1 secret may hold a key of that name.
            (json!({"ttl": "5m", "password": "x"}), None),
            (json!({"ttl": 28, "password": "x"}), None),
            (json!(null), None),
        ] {
            assert_eq!(data_lifetime(&data, now), expected, "{data}");
        }
    }
}
