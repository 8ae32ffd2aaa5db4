//! The server in trouble: a pod waits for its secrets, never starts without, and others are not disturbed.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{
    SOON,
    cluster::ReviewFault,
    driver::is_final,
    http::Reply,
    kubelet::{Options, Volume},
    proxy::Fault,
    stage::{Stage, add_role, class},
    until,
};

/// leasehold answers 8 s before this.
const DEADLINE: Duration = Duration::from_secs(13);

fn hasty() -> Options {
    Options { rotation: Some(Duration::from_secs(120)), deadline: DEADLINE, ..Options::default() }
}

fn answer(status: u16, body: &'static str) -> Fault {
    Fault::Answer(Reply::Full { status, headers: Vec::new(), body: Bytes::from_static(body.as_bytes()) })
}

fn error(status: u16, text: &str) -> Fault {
    Fault::Answer(Reply::json(status, &json!({"errors": [text]})))
}

/// One file, of a path that the fault's name makes its own.
fn class_for(name: &str) -> crate::support::driver::SecretProviderClass {
    class().with(
        "objects",
        &format!("- {{objectName: file, secretPath: secret/data/app/{name}, secretKey: key}}"),
    )
}

#[tokio::test]
async fn no_broken_answer_starts_a_pod_or_disturbs_another() {
    let mut stage = Stage::start_with(hasty(), |_| {}).await;
    let healthy = stage.volume();
    stage.mount(&healthy, &class()).await;
    let faults: Vec<(&str, Fault)> = vec![
        ("forbidden", error(403, "1 error occurred:\n\t* permission denied\n\n")),
        ("absent", Fault::Answer(Reply::json(404, &json!({"errors": []})))),
        (
            "deleted",
            Fault::Answer(Reply::json(
                404,
                &json!({"data": {"data": null, "metadata": {"version": 2, "destroyed": false,
                    "deletion_time": "2026-11-23T14:00:23.429949399Z"}}}),
            )),
        ),
        ("throttled", error(429, "rate limit quota exceeded")),
        (
            "standby",
            Fault::Answer(Reply::Full {
                status: 307,
                headers: vec![("location".into(), "http://127.0.0.1:1/v1/x".into())],
                body: Bytes::new(),
            }),
        ),
        ("internal", error(500, "internal error")),
        ("bad-gateway", answer(502, "<html>bad gateway</html>")),
        ("sealed", error(503, "Vault is sealed")),
        ("no-content", answer(204, "")),
        ("empty-object", answer(200, "{}")),
        ("truncated", answer(200, "{\"data\": {\"data\": {\"key\": \"v")),
        ("not-json", answer(200, "Client sent an HTTP request to an HTTPS server.\n")),
        ("closed", Fault::Answer(Reply::Close)),
        ("cut", Fault::Answer(Reply::Cut { body: Bytes::from_static(b"{\"data\":{}}"), sent: 4 })),
        (
            "drip",
            Fault::Answer(Reply::Drip {
                body: Bytes::from_static(b"{\"data\":{\"data\":{\"key\":\"v\"}}}"),
                every: Duration::from_secs(1),
            }),
        ),
        ("huge", Fault::Answer(Reply::Huge { bytes: 1 << 30 })),
        (
            "deep",
            Fault::Answer(Reply::Full { status: 200, headers: Vec::new(), body: "[".repeat(1 << 20).into() }),
        ),
        ("hang", Fault::Hold(Arc::new(Semaphore::new(0)))),
    ];
    let rules = faults.clone();
    stage.proxy.rule(move |seen| {
        let fault = rules.iter().find(|(name, _)| seen.path == format!("secret/data/app/{name}"));
        fault.map(|(_, fault)| fault.clone()).unwrap_or_default()
    });
    let stage_ref = &stage;
    join_all(faults.iter().map(async |(name, _)| {
        let started = std::time::Instant::now();
        let volume = stage_ref.volume();
        let status = stage_ref.kubelet.publish(&volume, Some(&class_for(name))).await.unwrap_err();
        assert!(started.elapsed() < DEADLINE, "{name}: after {:?}", started.elapsed());
        assert!(is_final(status.code()), "{name}: {status:?}");
        assert!(status.message().contains(name), "{name}: the path is named: {status:?}");
        assert!(!status.message().contains("xxxx"), "{name}: no body in an error: {status:?}");
        assert!(stage_ref.node.list(&stage_ref.kubelet.target(&volume)).is_err(), "{name}");
        // Another mount goes on meanwhile.
        stage_ref.node.age(&stage_ref.kubelet.target(&healthy), Duration::from_secs(121));
        stage_ref.mount(&healthy, &class()).await;
    }))
    .await;
    stage.leasehold.assert_running();
    assert_eq!(stage.kubelet.file(&healthy, "password"), "p1");
    assert_eq!(stage.kubelet.driver.counts().masked, 0);
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
}

#[tokio::test]
async fn broken_login_answers_are_final_too() {
    let stage = Stage::start_with(hasty(), |_| {}).await;
    for (name, fault) in [
        ("no auth", answer(200, "{}")),
        ("auth null", answer(200, "{\"auth\":null}")),
        ("no token", answer(200, "{\"auth\":{\"accessor\":\"a\",\"lease_duration\":1}}")),
        ("no content", answer(204, "")),
        ("teapot", answer(418, "")),
    ] {
        stage.proxy.rule(move |seen| if seen.path.ends_with("/login") { fault.clone() } else { Fault::Pass });
        let status = stage.kubelet.publish(&stage.volume(), Some(&class())).await.unwrap_err();
        assert!(is_final(status.code()), "{name}: {status:?}");
    }
}

/// A pod waits while the server cannot answer, and starts with all its files when it can.
#[tokio::test]
async fn pod_waits_for_a_server_in_trouble_and_never_starts_empty() {
    let mut stage = Stage::start_with(hasty(), |_| {}).await;
    for trouble in ["sealed", "stopped", "frozen", "token reviews fail"] {
        // A role of its own: nobody is logged in for it yet.
        let role = trouble.replace(' ', "-");
        add_role(&stage.bao, "kubernetes", &role, "vault").await;
        let class = class().with("roleName", &role);
        match trouble {
            "sealed" => stage.bao.seal().await,
            "stopped" => stage.proxy.down(),
            "frozen" => stage.bao.freeze(),
            _ => stage.cluster.fail_reviews(Some(ReviewFault::Forbidden)),
        }
        let volume = stage.volume();
        let start = stage.kubelet.start(&volume, &class, 2).await;
        assert!(!start.started, "{trouble}: {start:?}");
        for status in &start.errors {
            assert!(is_final(status.code()), "{trouble}: {status:?}");
        }
        match trouble {
            "sealed" => stage.bao.unseal().await,
            "stopped" => stage.proxy.up(),
            "frozen" => stage.bao.thaw(),
            _ => stage.cluster.fail_reviews(None),
        }
        let start = stage.kubelet.start(&volume, &class, 6).await;
        assert!(start.started && !start.on_empty_dir, "{trouble}: {start:?}\n{}", stage.leasehold.log());
        assert_eq!(stage.kubelet.file(&volume, "password"), "p1", "{trouble}");
    }
    stage.leasehold.assert_running();
}

/// A server that comes back within the deadline is waited for: the kubelet sees one call.
#[tokio::test]
async fn short_outage_costs_no_failed_mount() {
    let stage = Stage::start().await;
    stage.bao.seal().await;
    let volume = stage.volume();
    let (class, mount) = (class(), async {
        // The first answers are 503; then the operator unseals.
        until("leasehold asked a sealed server", SOON, async || {
            stage.proxy.seen().iter().any(|seen| seen.status == Some(503)).then_some(())
        })
        .await;
        stage.bao.unseal().await;
    });
    let (result, ()) = tokio::join!(stage.kubelet.publish(&volume, Some(&class)), mount);
    result.unwrap();
    assert_eq!(stage.kubelet.file(&volume, "password"), "p1");
}

/// One re-login: the token of a shared session may have been revoked behind our back.
#[tokio::test]
async fn revoked_session_logs_in_once_more() {
    let stage = Stage::start().await;
    stage.mount(&stage.volume(), &class()).await;
    let seen = stage.proxy.seen();
    let token = seen.iter().find_map(|seen| seen.token.clone()).expect("a request with a token");
    stage.bao.write("auth/token/revoke", json!({ "token": token })).await;
    stage.proxy.forget();
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    assert_eq!(stage.kubelet.file(&volume, "password"), "p1");
    let logins = stage.proxy.requests().iter().filter(|request| request.ends_with("/login")).count();
    assert_eq!(logins, 1, "{:?}", stage.proxy.requests());
}

/// SIGTERM while a Mount waits: it is answered, with files or with a final code, and the socket is gone.
#[tokio::test]
async fn sigterm_in_flight_never_starts_a_pod_empty() {
    let mut stage = Stage::start_with(hasty(), |_| {}).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    stage.proxy.rule(move |seen| {
        if seen.path.starts_with("secret/") { Fault::Hold(Arc::clone(&held)) } else { Fault::Pass }
    });
    let volume: Volume = stage.volume();
    let class = class();
    let meanwhile = async {
        until("the reads are on their way", SOON, async || (stage.proxy.count() >= 3).then_some(())).await;
        stage.leasehold.terminate();
        gate.add_permits(100);
    };
    let (result, ()) = tokio::join!(stage.kubelet.publish(&volume, Some(&class)), meanwhile);
    match result {
        Ok(()) => assert_eq!(stage.kubelet.file(&volume, "password"), "p1"),
        Err(status) => assert!(is_final(status.code()), "{status:?}"),
    }
    let status = stage.leasehold.ended(SOON).await;
    assert!(status.success(), "{status}: {}", stage.leasehold.log());
    assert!(!stage.leasehold.socket("vault").exists(), "a dead socket would hold the driver for two minutes");
}

/// KV v1 keeps numbers as they were written (v2 does not), and so do we.
#[tokio::test]
async fn numbers_arrive_as_they_were_written() {
    let stage = Stage::start().await;
    stage.bao.write("sys/mounts/kv", json!({"type": "kv"})).await;
    stage.bao.put_policy("app", "path \"kv/*\" { capabilities = [\"read\"] }").await;
    let body: Value =
        serde_json::from_str("{\"n\":12345678901234567890123,\"f\":1.10,\"t\":\"<&>\"}").unwrap();
    stage.bao.write("kv/numbers", body).await;
    let class = class().with(
        "objects",
        "- {objectName: n, secretPath: /v1/kv/numbers, secretKey: n}\n\
         - {objectName: f, secretPath: kv/numbers?x=1, secretKey: f}\n\
         - {objectName: t, secretPath: kv/numbers, secretKey: t, encoding: utf-8}\n",
    );
    let volume = stage.volume();
    stage.mount(&volume, &class).await;
    let files = ["n", "f", "t"].map(|name| stage.kubelet.file(&volume, name));
    assert_eq!(files, ["12345678901234567890123", "1.10", "<&>"]);
    let queried = stage.proxy.seen().into_iter().filter(|seen| seen.query.as_deref() == Some("x=1")).count();
    assert_eq!((queried, stage.proxy.count()), (1, 3), "{:?}", stage.proxy.requests());
}
