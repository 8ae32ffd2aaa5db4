//! Answers as they come, from a server that may be anyone: total parsing, bounded before it starts.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value};

use crate::{
    backend::{Envelope, LeaseTerms},
    secret::SecretJson,
};

/// Deepest JSON accepted. Secrets nest two or three levels; recursion below costs stack.
pub(super) const MAX_DEPTH: usize = 64;

/// Most values, keys and elements accepted: a parsed `0,` takes 60 bytes of memory for two on the wire.
/// OpenBao itself takes at most 1000 strings in a request.
const MAX_NODES: usize = 200_000;

/// Longest lifetime that is told apart from for ever: ten years. Also keeps sums of times far from overflow.
pub(super) const MAX_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Longest lease id accepted, bytes: a path and a random name. It goes into the journal.
const MAX_LEASE_ID: usize = 4096;

/// Warnings kept of an answer, and bytes of each: they end up in logs.
const MAX_WARNINGS: usize = 16;
const MAX_WARNING: usize = 512;

/// Why an answer with a good status cannot be used. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    #[error("the answer is empty")]
    Empty,
    #[error("the answer is not JSON")]
    NotJson,
    #[error("the answer is JSON nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the answer is JSON of more than {MAX_NODES} values")]
    TooMany,
    #[error("the answer is JSON, but not an object")]
    NotObject,
    #[error("the answer has no data")]
    NoData,
    #[error("the answer's data is not an object")]
    DataNotObject,
    #[error("the answer has an unusable lease id")]
    LeaseId,
    #[error("the answer has no auth section")]
    NoAuth,
    #[error("the answer's auth section has no usable client_token")]
    NoToken,
    #[error("the answer wants a second factor, which a pod has not")]
    Mfa,
    #[error("the answer has no lease_duration")]
    NoDuration,
    #[error("the answer is a web page or plain text, as something in front of the server would send")]
    Page,
}

/// Parses a body that has passed a scan for depth and size.
pub(super) fn parse(body: &[u8]) -> Result<Map<String, Value>, AnswerError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(AnswerError::Empty);
    }
    scan(body)?;
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(AnswerError::NotObject),
        Err(_) => Err(AnswerError::NotJson),
    }
}

/// Counts brackets and separators outside of strings, so that nothing is built of a hostile document.
fn scan(body: &[u8]) -> Result<(), AnswerError> {
    let (mut depth, mut nodes, mut string, mut escaped) = (0_usize, 0_usize, false, false);
    for byte in body {
        if string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string = true,
            b'[' | b'{' => {
                depth += 1;
                nodes += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' => nodes += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(AnswerError::TooDeep);
        }
        if nodes > MAX_NODES {
            return Err(AnswerError::TooMany);
        }
    }
    Ok(())
}

/// The envelope of an answer; a field of a strange type counts as absent.
pub(super) fn envelope(body: &[u8]) -> Result<Envelope, AnswerError> {
    let mut map = parse(body)?;
    let envelope = Envelope {
        request_id: text(map.remove("request_id")),
        lease_id: text(map.remove("lease_id")),
        lease_duration: seconds(map.get("lease_duration")).unwrap_or(0),
        renewable: map.get("renewable").and_then(Value::as_bool).unwrap_or(false),
        data: SecretJson::new(map.remove("data").unwrap_or_default()),
        warnings: warnings(map.get("warnings")),
        rest: BTreeMap::new(),
    };
    for known in ["lease_duration", "renewable", "warnings"] {
        map.remove(known);
    }
    let rest = map.into_iter().filter(|(_, value)| !value.is_null());
    Ok(Envelope { rest: rest.map(|(key, value)| (key, SecretJson::new(value))).collect(), ..envelope })
}

/// The lease of an answer, if it has one.
pub(super) fn lease(envelope: &Envelope) -> Result<Option<LeaseTerms>, AnswerError> {
    let id = &envelope.lease_id;
    if id.is_empty() {
        return Ok(None);
    }
    if id.len() > MAX_LEASE_ID || id.chars().any(char::is_control) {
        return Err(AnswerError::LeaseId);
    }
    let ttl = lifetime(envelope.lease_duration);
    Ok(Some(LeaseTerms { id: id.clone(), ttl, renewable: envelope.renewable }))
}

/// What a renewal granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    /// TTL, clamped.
    pub(super) ttl: Duration,
    /// Whether it can go on.
    pub(super) renewable: bool,
}

/// What a renewal of a lease granted.
pub(super) fn renewed_lease(body: &[u8]) -> Result<Granted, AnswerError> {
    granted(&parse(body)?)
}

/// What a renewal of a session granted.
pub(super) fn renewed_session(body: &[u8]) -> Result<Granted, AnswerError> {
    granted(parse(body)?.get("auth").and_then(Value::as_object).ok_or(AnswerError::NoAuth)?)
}

fn granted(map: &Map<String, Value>) -> Result<Granted, AnswerError> {
    let ttl = seconds(map.get("lease_duration")).ok_or(AnswerError::NoDuration)?;
    let renewable = map.get("renewable").and_then(Value::as_bool).unwrap_or(false);
    Ok(Granted { ttl: lifetime(ttl), renewable })
}

/// `seconds` as a duration that can be calculated with.
pub(super) fn lifetime(seconds: u64) -> Duration {
    Duration::from_secs(seconds).min(MAX_LIFETIME)
}

/// A number of seconds: negative is 0, huge is the most there is, a fraction is cut. `None` for what is no
/// number.
pub(super) fn seconds(value: Option<&Value>) -> Option<u64> {
    let Value::Number(number) = value? else { return None };
    // Beyond u64 the cast saturates, and no one counts seconds there.
    Some(number.as_u64().unwrap_or_else(|| number.to_string().parse::<f64>().unwrap_or(0.0) as u64))
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn warnings(value: Option<&Value>) -> Vec<String> {
    let all = value.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).take(MAX_WARNINGS).map(|text| shorten(text, MAX_WARNING)).collect()
}

/// `text` on one line and of at most `max` characters.
fn shorten(text: &str, max: usize) -> String {
    text.chars().take(max).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "literals in a table")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_leave_as_they_came() {
        let body =
            br#"{"request_id":"r","data":{"n":12345678901234567890.5,"big":123456789012345678901234567890},
            "wrap_info":null,"mount_type":"kv","warnings":["a\nb",7],"lease_duration":"x","renewable":1}"#;
        let envelope = envelope(body).unwrap();
        let data = envelope.data.expose().to_string();
        assert_eq!(data, r#"{"big":123456789012345678901234567890,"n":12345678901234567890.5}"#);
        assert_eq!((envelope.lease_duration, envelope.renewable), (0, false));
        assert_eq!(envelope.warnings, ["a b"]);
        assert_eq!(envelope.rest.keys().collect::<Vec<_>>(), ["mount_type"], "null is absent");
    }

    #[test]
    fn hostile_documents_are_refused_before_they_are_built() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        for (body, error) in [
            (String::new(), AnswerError::Empty),
            (" \n".to_owned(), AnswerError::Empty),
            ("null".to_owned(), AnswerError::NotObject),
            ("[]".to_owned(), AnswerError::NotObject),
            ("{".to_owned(), AnswerError::NotJson),
            ("{}x".to_owned(), AnswerError::NotJson),
            ("\u{feff}{}".to_owned(), AnswerError::NotJson),
            (deep(100_000), AnswerError::TooDeep),
            (format!("{{\"a\":{}}}", deep(MAX_DEPTH)), AnswerError::TooDeep),
            (format!("[{}0]", "0,".repeat(MAX_NODES + 1)), AnswerError::TooMany),
        ] {
            assert_eq!(parse(body.as_bytes()), Err(error));
        }
        assert!(parse(format!("{{\"a\":{}}}", deep(MAX_DEPTH - 1)).as_bytes()).is_ok());
        let brackets_in_text = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
        assert!(parse(brackets_in_text.as_bytes()).is_ok());
    }

    #[test]
    fn every_duration_is_clamped() {
        for (number, expected) in [
            ("0", 0),
            ("1", 1),
            ("-1", 0),
            ("-9223372036854775808", 0),
            ("9223372036854775807", MAX_LIFETIME.as_secs()),
            ("9223372036854775808", MAX_LIFETIME.as_secs()),
            ("1e400", MAX_LIFETIME.as_secs()),
            ("99999999999999999999999", MAX_LIFETIME.as_secs()),
            ("59.9", 59),
            ("3.6e3", 3600),
        ] {
            let Granted { ttl, .. } =
                renewed_lease(format!(r#"{{"lease_duration":{number}}}"#).as_bytes()).unwrap();
            assert_eq!(ttl.as_secs(), expected, "{number}");
        }
        for body in [r#"{"lease_duration":null}"#, r#"{"lease_duration":"3600"}"#, "{}"] {
            assert_eq!(renewed_lease(body.as_bytes()), Err(AnswerError::NoDuration));
        }
        assert_eq!(renewed_session(br#"{"auth":null}"#), Err(AnswerError::NoAuth));
    }

    proptest! {
        #[test]
        fn fuzz_lease_math(digits in "-?[0-9]{1,40}(\\.[0-9]{1,5})?(e-?[0-9]{1,3})?", id in ".{0,40}", renewable: bool) {
            let id = serde_json::to_string(&id).unwrap();
            let body = format!(r#"{{"data":{{}},"lease_id":{id},"lease_duration":{digits},"renewable":{renewable}}}"#);
            // Leading zeros are no JSON.
            if let Ok(envelope) = envelope(body.as_bytes())
                && let Ok(Some(lease)) = lease(&envelope)
            {
                prop_assert!(lease.ttl <= MAX_LIFETIME);
                prop_assert_eq!(lease.renewable, renewable);
                let end = crate::clock::BootTime::from_millis(u64::MAX / 2) + lease.ttl * 3;
                prop_assert!(end > crate::clock::BootTime::default());
            }
        }

        #[test]
        fn no_body_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = envelope(&body);
            let _ = renewed_session(&body);
        }
    }
}
