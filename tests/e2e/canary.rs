//! No secret leaves by a side door, with everything logged that can be.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;

use crate::support::{
    canary::shapes,
    kubelet::Options,
    proxy::Fault,
    stage::{Stage, class},
};

#[tokio::test]
async fn canary_all_sinks_trace() {
    let options =
        Options { tokens_in_secrets: true, deadline: Duration::from_secs(12), ..Options::default() };
    let stage = Stage::start_with(options, |launch| launch.log_level = "trace".into()).await;
    let canary = "canary-7f3e9b52-secret-value";
    stage.bao.put_secret("app/db", json!({"username": "u", "password": canary})).await;
    let mut errors = String::new();
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    assert_eq!(stage.kubelet.file(&volume, "password"), canary, "the canary lives where it should");
    stage.mount(&volume, &class()).await;
    stage.mount(&volume, &class().with("objects", "broken: [")).await;
    // Failures are where bodies and tokens like to show up.
    let whole = "- {objectName: f, secretPath: secret/data/app/db, secretKey: nope}";
    for (class, fault) in [
        (class().with("objects", whole), Fault::Pass),
        (class().with("roleName", "nope"), Fault::Pass),
        (class().with("objects", &whole.replace("nope", "password")), Fault::CutAfter(200)),
        (class().with("vaultAddress", "http://127.0.0.1:1"), Fault::Pass),
    ] {
        stage.proxy.rule(
            move |seen| {
                if seen.path.starts_with("secret/") { fault.clone() } else { Fault::Pass }
            },
        );
        let status = stage.kubelet.publish(&stage.volume(), Some(&class)).await.unwrap_err();
        errors.push_str(&format!("{status:?}\n"));
    }
    stage.proxy.heal();

    let mut tokens: Vec<String> = stage.proxy.seen().into_iter().filter_map(|seen| seen.token).collect();
    let sent = stage.kubelet.driver.last_request().unwrap();
    let attributes: BTreeMap<String, String> = serde_json::from_str(&sent.attributes).unwrap();
    let passed: serde_json::Value =
        serde_json::from_str(&attributes[crate::support::driver::TOKENS]).unwrap();
    tokens.push(passed["vault"]["token"].as_str().unwrap().to_owned());
    for seen in stage.proxy.seen().iter().filter(|seen| seen.path.ends_with("/login")) {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        tokens.push(body["jwt"].as_str().unwrap().to_owned());
    }
    // A JWT's head and claims may be told apart; its signature is what opens doors.
    let tokens: Vec<String> =
        tokens.iter().map(|token| token.rsplit('.').next().unwrap_or(token).to_owned()).collect();
    assert!(tokens.len() >= 3, "tokens were seen on the wire");

    let state = stage.node.text_below(&stage.node.state_dir());
    let (_, metrics) = stage.leasehold.http_get("/metrics").await;
    let (_, ready) = stage.leasehold.http_get("/readyz").await;
    let log = stage.leasehold.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is at its most talkative");
    let statuses = format!(
        "{:?} {:?}",
        stage.kubelet.driver.statuses(),
        stage.kubelet.driver.last_response().map(|answer| answer.object_version)
    );
    for (sink, text) in [
        ("log", &log),
        ("metrics", &metrics),
        ("readyz", &ready),
        ("errors", &errors),
        ("status object", &statuses),
        ("state folder", &state),
    ] {
        for shape in shapes(canary) {
            assert!(!text.contains(&shape), "the secret is in the {sink} as {shape}");
        }
        // The journal is where tokens live across a restart, in memory-backed files of root.
        if sink != "state folder" {
            for token in &tokens {
                assert!(!text.contains(token.as_str()), "a token is in the {sink}");
            }
        }
    }
}
