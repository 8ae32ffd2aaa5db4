//! `generate` against servers that answer late, otherwise or from a standby that lags.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use leasehold::{
    backend::{BackendError, FailureClass, Secret, SecretBackend, SecretBody, vault::VaultBackend},
    spec::{ApiPath, SecretRequest, TlsSpec, object::Generator},
};

use crate::stub::{CANARY, Step, Stub, context, json, limits, token};

const MOUNT: &str = r#"{"data":{"type":"kv","path":"secret/","options":{"version":"2"}}}"#;
const NOTHING: &str = r#"{"errors":[]}"#;
const LOST: &str = r#"{"errors":["check-and-set parameter did not match the current version"]}"#;

fn version(number: u64, data: &str) -> String {
    let metadata = format!(
        r#"{{"created_time":"2026-11-26T00:00:00Z","deletion_time":"","destroyed":false,"version":{number}}}"#
    );
    format!(r#"{{"data":{{"data":{data},"metadata":{metadata}}}}}"#)
}

async fn generate(
    script: impl Fn(usize, &str) -> Vec<Step> + Send + Sync + 'static,
) -> (Result<Secret, BackendError>, Vec<String>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let stub = Stub::start(move |request| {
        let read = request.starts_with("GET /v1/secret/data/app ");
        script(if read { reads.fetch_add(1, Ordering::SeqCst) } else { usize::MAX }, request)
    })
    .await;
    let request = SecretRequest {
        generate: BTreeMap::from([("token".to_owned(), Generator::Uuid)]),
        ..SecretRequest::read(ApiPath::parse("secret/data/app").unwrap())
    };
    let backend = VaultBackend::new(limits());
    let outcome = backend.fetch(context(&stub.address(), TlsSpec::default()), &token(), &request).await;
    let asked = stub.requests().iter().filter_map(|it| it.split(" HTTP").next().map(str::to_owned)).collect();
    (outcome, asked)
}

fn value(secret: &Secret) -> String {
    let SecretBody::Json(envelope) = &secret.body else { panic!("no JSON") };
    envelope.data.expose()["data"]["token"].as_str().unwrap().to_owned()
}

/// Who loses the race reads until it sees what the winner wrote: never its own value, never an older version.
#[tokio::test]
async fn a_lost_race_ends_with_the_winners_value() {
    let (outcome, asked) = generate(|read, request| match read {
        // The standby does not know of the winner yet, for a while.
        0..=3 => json("404 Not Found", NOTHING),
        4 => json("200 OK", &version(1, &format!(r#"{{"token":"{CANARY}"}}"#))),
        _ if request.starts_with("GET /v1/sys/internal/ui/mounts/secret/data/app ") => json("200 OK", MOUNT),
        _ => json("400 Bad Request", LOST),
    })
    .await;
    let secret = outcome.unwrap();
    assert_eq!((value(&secret).as_str(), secret.kv_version), (CANARY, Some(1)));
    let read = "GET /v1/secret/data/app";
    let expected = [
        read,
        "GET /v1/sys/internal/ui/mounts/secret/data/app",
        "PUT /v1/secret/data/app",
        read,
        read,
        read,
        read,
    ];
    assert_eq!(asked, expected, "one write, and none after it");
}

/// The winner wrote another key: the next write follows its version and keeps its key.
#[tokio::test]
async fn a_winner_of_another_key_is_built_upon() {
    let (outcome, asked) = generate(|read, request| match read {
        0 => json("200 OK", &version(3, r#"{"a":1}"#)),
        1 => json("200 OK", &version(4, r#"{"a":1,"b":2}"#)),
        _ if request.contains(r#""cas":3"#) => json("400 Bad Request", LOST),
        _ if request.contains(r#""cas":4"#) && request.contains(r#""a":1,"b":2,"token":"#) => json(
            "200 OK",
            r#"{"data":{"created_time":"2026-11-26T00:00:00Z","destroyed":false,"version":5}}"#,
        ),
        _ => panic!("{request}"),
    })
    .await;
    let secret = outcome.unwrap();
    assert_eq!((value(&secret).len(), secret.kv_version), (36, Some(5)));
    assert_eq!(asked.iter().filter(|it| it.starts_with("PUT")).count(), 2);
}

/// Nothing is written where the answer is not that of KV version 2, or says that there was something.
#[tokio::test]
#[rustfmt::skip]
async fn nothing_is_written_over_anything_else() {
    let gone = r#"{"data":{"data":null,"metadata":{"created_time":"2026-11-26T00:00:00Z","deletion_time":"2026-11-26T00:00:01Z","destroyed":false,"version":2}}}"#;
    let other = |kind: &str| json("200 OK", &MOUNT.replace("kv", kind));
    let first = MOUNT.replace(r#"{"version":"2"}"#, "null");
    for (read, mount, class, says) in [
        (json("404 Not Found", gone), vec![], FailureClass::NotFound, "version 2 is deleted"),
        (json("404 Not Found", NOTHING), other("pki"), FailureClass::Invalid, "generate needs a KV version 2 secret"),
        (json("404 Not Found", NOTHING), json("200 OK", &first), FailureClass::Invalid, "generate needs a KV version 2 secret"),
        (json("404 Not Found", NOTHING), json("403 Forbidden", r#"{"errors":["preflight capability check returned 403"]}"#), FailureClass::Denied, "403"),
        (json("200 OK", r#"{"data":{"token":"x"}}"#), vec![], FailureClass::Invalid, "generate needs a KV version 2 secret"),
        (json("403 Forbidden", r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#), vec![], FailureClass::Denied, "read of secret/data/app"),
        (json("503 Service Unavailable", r#"{"errors":["Vault is sealed"]}"#), vec![], FailureClass::Sealed, "sealed"),
    ] {
        let (outcome, asked) = generate(move |it, _| if it == usize::MAX { mount.clone() } else { read.clone() }).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.class, class, "{error}");
        assert!(error.message.contains(says), "{error}");
        assert!(asked.iter().all(|it| it.starts_with("GET")), "{asked:?}");
    }
}

/// A server that never shows the winner's version costs the request's time, and no more.
#[tokio::test]
async fn a_version_that_never_comes_is_a_passing_failure() {
    let (outcome, asked) = generate(|read, request| match read {
        usize::MAX if request.starts_with("PUT") => json("400 Bad Request", LOST),
        usize::MAX => json("200 OK", MOUNT),
        _ => json("404 Not Found", NOTHING),
    })
    .await;
    let error = outcome.unwrap_err();
    assert_eq!(error.class, FailureClass::Transient, "{error}");
    assert_eq!(asked.iter().filter(|it| it.starts_with("PUT")).count(), 1);
    assert!(asked.len() < 20, "it pauses between reads: {}", asked.len());
}
