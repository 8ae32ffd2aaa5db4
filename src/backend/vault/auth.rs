//! What a login grants.

use serde_json::Value;

use super::response::{AnswerError, lifetime, parse, seconds};
use crate::{
    backend::{Grant, SessionTerms},
    clock::BootTime,
    secret::SecretString,
};

/// Longest token accepted, bytes: OpenBao's service tokens have 26 to 100, batch tokens a few hundred. A
/// token becomes a header.
const MAX_TOKEN: usize = 8192;

/// Reads the answer of a login. Only the token is required: a login that Vault granted and we fail over a
/// missing list of policies leaves a token behind that no one revokes.
pub(super) fn grant(body: &[u8], since: BootTime) -> Result<Grant, AnswerError> {
    let mut map = parse(body)?;
    let Some(Value::Object(mut auth)) = map.remove("auth") else { return Err(AnswerError::NoAuth) };
    let token = match auth.remove("client_token") {
        Some(Value::String(token)) => SecretString::new(token),
        _ => SecretString::default(),
    };
    let usable = (1..=MAX_TOKEN).contains(&token.expose().len())
        && token.expose().bytes().all(|b| b.is_ascii_graphic());
    if !usable {
        // With a second factor outstanding the token comes later.
        let waits = auth.get("mfa_requirement").is_some_and(|mfa| !mfa.is_null());
        return Err(if waits { AnswerError::Mfa } else { AnswerError::NoToken });
    }
    let text = |key: &str| auth.get(key).and_then(Value::as_str).unwrap_or_default();
    let accessor = text("accessor").to_owned();
    // Batch tokens have no accessor and live in no storage: nothing to renew or revoke.
    let stored = !accessor.is_empty() && text("token_type") != "batch";
    let num_uses = seconds(auth.get("num_uses")).unwrap_or(0);
    // Only the kubernetes method reports it, after the API server confirmed the pod.
    let uid =
        auth.get("metadata").and_then(|metadata| metadata.get("service_account_uid")).and_then(Value::as_str);
    let terms = SessionTerms {
        ttl: lifetime(seconds(auth.get("lease_duration")).unwrap_or(0)),
        renewable: stored && auth.get("renewable") == Some(&Value::Bool(true)),
        revocable: stored,
        num_uses,
        shareable: stored
            && num_uses == 0
            && text("token_type") == "service"
            && uid.is_some_and(|uid| !uid.is_empty()),
    };
    Ok(Grant { token, accessor, terms, since })
}

/// Reads what lookup-self says of `token`, which was made elsewhere and is therefore never revoked here.
pub(super) fn adopted(body: &[u8], token: &SecretString, since: BootTime) -> Result<Grant, AnswerError> {
    let mut map = parse(body)?;
    let Some(Value::Object(data)) = map.remove("data") else { return Err(AnswerError::NoData) };
    let text = |key: &str| data.get(key).and_then(Value::as_str).unwrap_or_default();
    let terms = SessionTerms {
        ttl: lifetime(seconds(data.get("ttl")).unwrap_or(0)),
        renewable: text("type") != "batch" && data.get("renewable") == Some(&Value::Bool(true)),
        revocable: false,
        num_uses: seconds(data.get("num_uses")).unwrap_or(0),
        shareable: false,
    };
    Ok(Grant { token: token.clone(), accessor: text("accessor").to_owned(), terms, since })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed parse fails the test")]

    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn login(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Result<Grant, AnswerError> {
        let mut body = json!({
            "request_id": "r", "lease_id": "", "renewable": false, "lease_duration": 0, "data": null,
            "wrap_info": null, "warnings": null,
            "auth": {"client_token": "s.kbmAJg07ftYN5p5djRJSSCr7", "accessor": "0z01y5jB59vMZqkTjp5VaiCs",
                "policies": ["app", "default"], "token_policies": ["app", "default"],
                "metadata": {"role": "app", "service_account_name": "app", "service_account_namespace": "prod",
                    "service_account_secret_name": "", "service_account_uid": "58ae6b55"},
                "lease_duration": 3600, "renewable": true, "entity_id": "b2f5960c", "token_type": "service",
                "orphan": true, "mfa_requirement": null, "num_uses": 0}
        });
        change(body["auth"].as_object_mut().unwrap());
        grant(body.to_string().as_bytes(), BootTime::from_millis(7))
    }

    #[test]
    fn terms_as_measured() {
        let full = login(|_| {}).unwrap();
        let service = SessionTerms {
            ttl: Duration::from_secs(3600),
            renewable: true,
            revocable: true,
            num_uses: 0,
            shareable: true,
        };
        assert_eq!((full.terms, full.accessor.as_str()), (service, "0z01y5jB59vMZqkTjp5VaiCs"));
        assert_eq!(full.since, BootTime::from_millis(7));
        let terms = |change: fn(&mut serde_json::Map<String, Value>)| login(change).unwrap().terms;
        assert_eq!(terms(|auth| drop(auth.remove("token_policies"))), service);
        let alone = SessionTerms { shareable: false, ..service };
        assert_eq!(terms(|auth| auth["metadata"] = json!({"role": "app"})), alone, "jwt method");
        assert_eq!(terms(|auth| auth["metadata"] = json!(null)), alone);
        assert_eq!(terms(|auth| auth["num_uses"] = json!(2)), SessionTerms { num_uses: 2, ..alone });
        let batch = SessionTerms { renewable: false, revocable: false, ..alone };
        assert_eq!(terms(|auth| auth["token_type"] = json!("batch")), batch);
        assert_eq!(terms(|auth| auth["accessor"] = json!("")), batch);
        assert_eq!(terms(|auth| auth.retain(|key, _| key == "client_token")).ttl, Duration::ZERO);
    }

    #[test]
    fn a_login_without_a_token_is_no_login() {
        for token in [json!(null), json!(""), json!(7), json!("a\nb"), json!("é"), json!("x".repeat(9000))] {
            assert_eq!(login(|auth| auth["client_token"] = token).unwrap_err(), AnswerError::NoToken);
        }
        let mfa = login(|auth| {
            auth["client_token"] = json!("");
            auth["mfa_requirement"] = json!({"mfa_request_id": "x"});
        });
        assert_eq!(mfa.unwrap_err(), AnswerError::Mfa);
        for body in [r"{}", r#"{"auth":null}"#, r#"{"auth":[]}"#, r#"{"auth":"x"}"#] {
            assert_eq!(grant(body.as_bytes(), BootTime::default()).unwrap_err(), AnswerError::NoAuth);
        }
    }
}
