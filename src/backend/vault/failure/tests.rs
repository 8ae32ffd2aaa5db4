#![allow(clippy::unwrap_used, reason = "literals in a table")]

use std::time::UNIX_EPOCH;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::{
    backend::Credential,
    clock::BootTime,
    secret::SecretString,
    spec::{ApiPath, LoginSpec, SecretRequest, object::Method},
};

fn target() -> Target<'static> {
    Target { address: "https://vault:8200".to_owned(), namespace: "team-a" }
}

fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Answer {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    Answer { status, headers, body: body.as_bytes().to_vec().into(), since: BootTime::default() }
}

/// The class, or what else it comes to, and the message.
fn judge(operation: Operation, status: u16, body: &str) -> (String, String) {
    let login = LoginSpec {
        method: Default::default(),
        mount: ApiPath::parse("kubernetes").unwrap(),
        role: "app".to_owned(),
        audience: "vault".to_owned(),
    };
    let request = SecretRequest {
        method: Method::Get,
        path: ApiPath::parse("secret/data/app").unwrap(),
        query: Default::default(),
        args: None,
        optional: false,
        versioned: None,
        generate: Default::default(),
    };
    let jwt = Credential::Jwt(SecretString::default());
    let lease = "database/creds/app/QWYK";
    let call = match operation {
        Operation::Login => Call::login(&login, &jwt),
        Operation::Fetch => Call::fetch(&request),
        Operation::Generate => Call::generate(&request, 0, &serde_json::json!({})),
        Operation::RenewSession => Call::renew_session(),
        Operation::RenewLease => Call::renew_lease(lease),
        Operation::RevokeSession => Call::revoke_session(),
        Operation::RevokeLease => Call::revoke_lease(lease),
        Operation::AdoptSession => Call::adopt_session(),
        Operation::LookupSession => Call::lookup_session(),
        Operation::Look => Call::health(),
    };
    match of_answer(&call, &target(), &answer(status, &[], body), false) {
        Verdict::Failed(error, says) => {
            let again = match (error.worth_retrying, says) {
                (_, Says::LacksData) => " (data/)",
                (_, Says::Outdated) => " (cas)",
                (true, Says::Absent) => "+ (absent)",
                (true, _) => "+",
                (false, _) => "",
            };
            (format!("{}{again}", error.class), error.message)
        }
        Verdict::AlreadyGone => ("gone".to_owned(), String::new()),
        Verdict::TokenOrRights(error) => (format!("ask/{}", error.class), error.message),
        Verdict::Lagging(error) => (format!("lag/{}", error.class), error.message),
    }
}

#[test]
#[rustfmt::skip]
fn measured_answers_have_their_class_and_advice() {
    use Operation::{Fetch, Generate, Login, LookupSession, RenewLease, RenewSession, RevokeLease, RevokeSession};
    let bare = r#"{"errors":["permission denied"]}"#;
    let acl = r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;
    // HashiCorp Vault's text for a token it does not know.
    let invalid = r#"{"errors":["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}"#;
    let none = r#"{"errors":[]}"#;
    let sealed = r#"{"errors":["Vault is sealed"]}"#;
    let errors = |text: &str| serde_json::json!({"errors": [text]}).to_string();
    let deleted = r#"{"data":{"data":null,"metadata":{"created_time":"2026-11-23T14:00:23Z","deletion_time":"2026-11-23T14:00:23.429949399Z","destroyed":false,"version":2}}}"#;
    let destroyed = r#"{"data":{"data":null,"metadata":{"created_time":"2026-11-23T14:00:23Z","deletion_time":"","destroyed":true,"version":1}}}"#;
    let not_v2 = r#"{"data":null,"warnings":["Invalid path for a versioned K/V secrets engine. See the API docs."]}"#;
    let postgres = errors("1 error occurred: * unable to start transaction: failed to connect to `user=canary`");
    for (operation, status, body, class, says) in [
        (Login, 400, errors("invalid role name \"nope\""), "invalid", "correct roleName"),
        (Login, 400, errors("role \"nope\" could not be found"), "invalid", "correct roleName"),
        (Login, 400, errors("missing role"), "invalid", "set roleName"),
        (Login, 400, errors("error validating token: invalid audience (aud) claim: audience claim does not match"), "denied", "audience"),
        (Login, 400, errors("audience claim found in JWT but no audiences bound to the role"), "denied", "audience"),
        (Login, 400, errors("error validating token: invalid expiration time (exp) claim: token is expired"), "denied", "expired"),
        (Login, 400, errors("error validating token: invalid subject (sub) claim"), "denied", "bound_subject"),
        (Login, 400, errors("error verifying token: failed to verify id token signature"), "denied", "issuer or keys"),
        (Login, 400, errors("what is this"), "invalid", "check roleName"),
        (Login, 400, "Client sent an HTTP request to an HTTPS server.\n".into(), "invalid", "use https://"),
        (Login, 403, bare.into(), "denied+", "TokenReviews"),
        (Login, 403, errors("invalid audience (aud) claim: audience claim does not match any expected audience"), "denied", "set audience"),
        (Login, 403, errors("invalid expiration time (exp) claim: token is expired"), "denied", "expired"),
        (Login, 403, errors("service account name not authorized"), "denied", "bound_service_account_names"),
        (Login, 403, errors("namespace not authorized"), "denied", "bound_service_account_namespaces"),
        (Login, 404, errors("namespace not found"), "not-found", "correct vaultNamespace"),
        (Login, 500, errors("could not load backend configuration"), "transient", "write its config"),
        (Login, 503, sealed.into(), "sealed", "unseal"),
        (Login, 307, String::new(), "transient", "not followed"),
        (Login, 429, errors("request path \"auth/kubernetes/login\": rate limit quota exceeded"), "throttled", "rate"),
        (Fetch, 403, acl.into(), "denied", "add it to a policy of the role (path \"secret/data/app\")"),
        (Fetch, 403, bare.into(), "ask/denied", "secret/data/app"),
        (Fetch, 403, invalid.into(), "ask/denied", ""),
        (Fetch, 403, errors("preflight capability check returned 403, please ensure client's policies grant access"), "denied", ""),
        (Fetch, 403, "<html>WAF canary</html>".into(), "denied", "in front of the server"),
        (Fetch, 404, none.into(), "not-found+ (absent)", "nothing at this path"),
        (Generate, 400, errors("check-and-set parameter did not match the current version"), "transient (cas)", "somebody else"),
        (Fetch, 400, errors("check-and-set parameter did not match the current version"), "invalid", "arguments"),
        (Generate, 403, acl.into(), "denied", "capabilities create and update for \"secret/data/app\" in a policy of the role, and \"writes: allow\" in the node's policy"),
        (Generate, 403, bare.into(), "ask/denied", "create and update"),
        (Fetch, 404, deleted.into(), "not-found", "version 2 is deleted at 2026-11-23T14:00:23.429949399Z"),
        (Fetch, 404, destroyed.into(), "not-found", "version 1 is destroyed"),
        (Fetch, 404, not_v2.into(), "not-found (data/)", "<mount>/data/<name>"),
        (Fetch, 404, errors("no handler for route \"nomount/x\". route entry not found."), "not-found", "mounted"),
        (Fetch, 404, errors("1 error occurred:\n\t* unsupported path\n\n"), "not-found", "mounted"),
        (Fetch, 404, "<html>".into(), "not-found", "no such page"),
        (Fetch, 400, errors("common name a.evil.com not allowed by this role"), "invalid", "correct secretArgs or the role"),
        (Fetch, 400, errors("canary"), "invalid", "secretArgs"),
        (Fetch, 401, String::new(), "denied", "401"),
        (Fetch, 405, errors("1 error occurred:\n\t* unsupported operation\n\n"), "invalid", "method"),
        (Fetch, 412, String::new(), "lag/transient", "caught up"),
        (Fetch, 413, String::new(), "invalid", "too large"),
        (Fetch, 418, String::new(), "invalid", "418"),
        (Fetch, 472, String::new(), "transient", "standby"),
        (Fetch, 473, String::new(), "transient", "standby"),
        (Fetch, 500, postgres, "transient", "database"),
        (Fetch, 501, String::new(), "sealed", "not initialized"),
        (Fetch, 502, "<html>bad gateway".into(), "transient", "502"),
        (Fetch, 503, "<html>no backend".into(), "transient", "503"),
        (Fetch, 599, String::new(), "transient", "599"),
        (Fetch, 999, String::new(), "transient", "999"),
        (RenewSession, 403, bare.into(), "lease-gone", "new login"),
        (RenewSession, 403, invalid.into(), "lease-gone", "new login"),
        (RenewSession, 403, acl.into(), "denied", "auth/token/renew-self"),
        (RenewSession, 400, errors("batch tokens cannot be renewed"), "invalid", "cannot be renewed"),
        (RenewLease, 400, errors("lease not found"), "lease-gone", "new credential"),
        (RenewLease, 400, errors("invalid lease"), "lease-gone", "new credential"),
        (RenewLease, 400, errors("lease is not renewable"), "invalid", "replaced"),
        (RenewLease, 403, acl.into(), "denied", "sys/leases/renew"),
        (RenewLease, 403, bare.into(), "ask/denied", "database/creds/app"),
        (RevokeSession, 403, bare.into(), "gone", ""),
        (RevokeSession, 403, invalid.into(), "gone", ""),
        (RevokeSession, 403, acl.into(), "denied", "auth/token/revoke-self"),
        (RevokeSession, 403, "<html>".into(), "denied", "in front"),
        (RevokeSession, 400, errors("batch tokens cannot be revoked"), "invalid", "ends by its TTL"),
        (RevokeLease, 403, acl.into(), "denied", "sys/leases/revoke"),
        (RevokeLease, 403, bare.into(), "ask/denied", ""),
        (RevokeLease, 400, errors("invalid lease"), "gone", ""),
        (LookupSession, 403, bare.into(), "lease-gone", ""),
        (LookupSession, 403, acl.into(), "denied", ""),
    ] {
        let (found, message) = judge(operation, status, &body);
        assert_eq!(found, class, "{operation:?} {status} {body}: {message}");
        assert!(message.contains(says), "{operation:?} {status} {body}: {message}");
        assert!(!message.contains("canary") && !message.contains('\n'), "{message}");
        assert!(message.is_empty() || message.contains("on https://vault:8200, namespace \"team-a\": "), "{message}");
    }
}

#[test]
fn an_empty_429_to_a_read_with_an_index_is_a_standby_that_lags() {
    let call = Call::lookup_session();
    let late = answer(429, &[("retry-after", "1")], r#"{"errors":[]}"#);
    let Verdict::Lagging(error) = of_answer(&call, &target(), &late, true) else { panic!("not seen as lag") };
    assert_eq!((error.class, error.retry_after), (FailureClass::Transient, Some(Duration::from_secs(1))));
    let Verdict::Failed(error, _) = of_answer(&call, &target(), &late, false) else { panic!("seen as lag") };
    assert_eq!(error.class, FailureClass::Throttled);
}

#[test]
fn retry_after_is_seconds_or_a_date_and_bounded() {
    let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
    for (text, seconds) in [
        ("0", Some(0)),
        (" 4 ", Some(4)),
        ("99999999999999999999999999", Some(3600)),
        ("86400", Some(3600)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        ("Tue, 31 Dec 2999 23:59:59 GMT", Some(3600)),
        ("-1", None),
        ("soon", None),
        ("", None),
    ] {
        assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
    }
}
