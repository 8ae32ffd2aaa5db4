//! Events, TokenRequest and the pod's securityContext.

use std::{os::unix::fs::MetadataExt as _, time::Duration};

use serde_json::json;
use tonic::Code;

use crate::support::{
    SOON,
    cluster::{
        Pod,
        api::{Api, ApiFault, Right},
    },
    driver::SecretProviderClass,
    kubelet::{Options, Volume},
    stage::{OBJECTS, Stage, class},
    until,
};

const ALL: [&str; 3] = ["--pod-events", "--token-request", "--read-pods"];

/// A driver whose CSIDriver has no tokenRequests.
fn no_tokens() -> Options {
    Options { audiences: Vec::new(), ..Options::default() }
}

/// Fast enough to see several rotations.
fn watched() -> SecretProviderClass {
    let object =
        "- {objectName: password, secretPath: secret/data/app/db, secretKey: password, refreshInterval: 5s}";
    SecretProviderClass::new("vault", "app", object)
}

async fn event(api: &Api, pod: &Pod, reason: &str) {
    until(&format!("an event {reason}"), Duration::from_secs(60), async || {
        api.reasons(pod).iter().any(|told| told == reason).then_some(())
    })
    .await;
}

async fn dropped(stage: &Stage, outcome: &str) -> u64 {
    let (_, text) = stage.leasehold.http_get("/metrics").await;
    let name = format!("leasehold_pod_events_total{{outcome=\"{outcome}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn events_tell_the_first_of_each_streak() {
    let (mut stage, api) = Stage::start_with_api(Options::default(), &["--pod-events"]).await;
    api.grant(&[Right::CreateEvents]);
    let volume = stage.volume();
    let pod = &volume.pod;
    stage.mount(&volume, &watched()).await;
    for value in ["p2", "p3"] {
        stage.bao.put_secret("app/db", json!({"username": "u", "password": value})).await;
        until("the file follows", Duration::from_secs(60), async || {
            (stage.kubelet.file(&volume, "password") == value).then_some(())
        })
        .await;
    }
    event(&api, pod, "SecretsRotated").await;
    stage.bao.put_policy("app", "path \"nothing\" { capabilities = [\"read\"] }").await;
    event(&api, pod, "SecretsRotationFailing").await;
    let edit = watched().with("objects", "- {objectName: password, secretPath: a/../b}");
    stage.mount(&volume, &edit).await;
    event(&api, pod, "EditRejected").await;
    // The operator's new policy does not know the namespace.
    stage
        .leasehold
        .restart_with(|launch| launch.policy = Some("rules: [{namespaces: [other]}]".to_owned()))
        .await;
    until("the driver finds the new socket, and policy refuses", SOON, async || {
        stage.mount(&volume, &watched()).await;
        stage.leasehold.log().contains("refused by policy").then_some(())
    })
    .await;
    event(&api, pod, "PolicyRefused").await;
    let reasons = api.reasons(pod);
    assert_eq!(
        reasons,
        ["SecretsRotated", "SecretsRotationFailing", "EditRejected", "PolicyRefused"],
        "each once, the second rotation too: {reasons:?}"
    );
    for event in api.events() {
        assert_eq!(event["regarding"]["kind"], "Pod");
        assert_eq!(event["metadata"]["namespace"], pod.namespace.as_str());
        assert_eq!(event["reportingController"], "leasehold");
        let (kind, reason) = (event["type"].as_str().unwrap(), event["reason"].as_str().unwrap());
        assert_eq!(kind == "Normal", reason == "SecretsRotated", "{event}");
        let note = event["note"].as_str().unwrap();
        assert!(note.starts_with("app-secrets: "), "the class is named: {note}");
        for secret in ["p1", "p2", "p3", "eyJ"] {
            assert!(!note.contains(secret), "{note}");
        }
    }
    let failing = api.events().into_iter().find(|event| event["reason"] == "SecretsRotationFailing").unwrap();
    assert!(failing["note"].as_str().unwrap().contains("failing since 20"), "{failing}");
    // The API server has it before its answer is counted.
    until("the new process counts its event", SOON, async || {
        (dropped(&stage, "sent").await == 1).then_some(())
    })
    .await;
    // Nothing but events was asked for.
    let requests = api.requests();
    assert!(
        requests.iter().all(|it| it == "POST /apis/events.k8s.io/v1/namespaces/prod/events"),
        "{requests:?}"
    );
}

#[tokio::test]
async fn an_api_server_that_refuses_or_sleeps_holds_up_no_mount() {
    let (stage, api) = Stage::start_with_api(Options::default(), &["--pod-events"]).await;
    let volume = stage.volume();
    stage.mount(&volume, &watched()).await;
    // No right: said once, counted each time.
    stage.mount(&volume, &watched().with("roleName", "")).await;
    stage.leasehold.logged("events on pods cannot be written").await;
    // The API server's own words.
    stage.leasehold.logged("cannot create resource").await;
    api.grant(&[Right::CreateEvents]);
    for (fault, outcome) in [(ApiFault::Throttled, "failed"), (ApiFault::InternalError, "failed")] {
        api.fail(Some(fault));
        let before = dropped(&stage, outcome).await;
        let other = stage.volume();
        stage.mount(&other, &watched()).await;
        stage.mount(&other, &watched().with("roleName", "")).await;
        until(&format!("{fault:?} is counted"), SOON, async || {
            (dropped(&stage, outcome).await > before).then_some(())
        })
        .await;
    }
    stage.leasehold.logged("events on pods cannot be written").await;
    let refusals = stage.leasehold.log().matches("events on pods cannot be written").count();
    assert_eq!(refusals, 1, "said once while it lasts:\n{}", stage.leasehold.log());

    // While one event waits for the API server, Mounts and further events do not.
    api.fail(Some(ApiFault::Slow(Duration::from_secs(3600))));
    let volumes: Vec<Volume> = (0..300).map(|_| stage.volume().named("v")).collect();
    for volume in &volumes {
        stage.mount(volume, &watched()).await;
        stage.mount(volume, &watched().with("roleName", "")).await;
    }
    until("events are dropped", SOON, async || (dropped(&stage, "dropped").await > 0).then_some(())).await;
    let late = stage.volume();
    stage.mount(&late, &class()).await;
    assert_eq!(stage.kubelet.file(&late, "password"), "p1");
}

#[tokio::test]
async fn a_token_is_asked_for_where_the_driver_brings_none() {
    let (stage, api) = Stage::start_with_api(no_tokens(), &["--token-request"]).await;
    let volume = stage.volume();
    let status = stage.kubelet.publish(&volume, Some(&class())).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    for part in
        ["no ServiceAccount token for audience \"vault\"", "serviceaccounts/token", "tokenRequest.enabled"]
    {
        assert!(status.message().contains(part), "{status:?}");
    }
    api.grant(&[Right::CreateTokens]);
    stage.mount(&volume, &class()).await;
    assert_eq!(stage.kubelet.file(&volume, "password"), "p1");
    let asked = "POST /api/v1/namespaces/prod/serviceaccounts/app/token";
    let count = || api.requests().iter().filter(|it| *it == asked).count();
    assert_eq!(count(), 2, "refused once, given once: {:?}", api.requests());
    for _ in 0..3 {
        stage.mount(&volume, &class()).await;
    }
    assert_eq!(count(), 2, "a token serves while it is fresh");
    // Outside the audiences that policy allows, nothing is asked.
    let foreign = class().with("audience", "https://kubernetes.default.svc.cluster.local");
    let status = stage.kubelet.publish(&stage.volume(), Some(&foreign)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert_eq!(count(), 2, "{:?}", api.requests());
    // An API server that is gone is said so, and the pod waits.
    api.fail(Some(ApiFault::InternalError));
    let status = stage.kubelet.publish(&stage.volume(), Some(&class())).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    assert!(status.message().contains("the API server answered 500 InternalError"), "{status:?}");
    stage.mount(&volume, &class()).await;
}

#[tokio::test]
async fn an_api_server_that_is_down_takes_nothing_from_a_live_volume() {
    let (mut stage, api) = Stage::start_with_api(Options::default(), &["--read-pods"]).await;
    api.grant(&[Right::GetPods]);
    let volume = stage.volume();
    let owned = class().with("fileOwner", "pod");
    api.put_pod(&volume.pod, json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "app"}]}));
    stage.mount(&volume, &owned).await;
    // The new process knows the pod no more, and cannot ask.
    api.fail(Some(ApiFault::InternalError));
    stage.leasehold.restart().await;
    stage.proxy.forget();
    for _ in 0..2 {
        stage.mount(&volume, &owned).await;
    }
    assert!(!stage.leasehold.log().contains("refused by policy"), "{}", stage.leasehold.log());
    stage.bao.put_secret("app/db", json!({"username": "u", "password": "p2"})).await;
    let (code, refresh, _) = stage.leasehold.exec(&["refresh", "--all"]).await;
    assert!(code == 0 && refresh.contains("checking 1 volume"), "{refresh}");
    until("it is kept true", SOON, async || (stage.kubelet.file(&volume, "password") == "p2").then_some(()))
        .await;
}

#[tokio::test]
async fn without_the_option_a_missing_audience_names_both_ways() {
    let stage = Stage::start_with(no_tokens(), |_| {}).await;
    let status = stage.kubelet.publish(&stage.volume(), Some(&class())).await.unwrap_err();
    for part in ["add audience \"vault\" to spec.tokenRequests", "--token-request"] {
        assert!(status.message().contains(part), "{status:?}");
    }
}

#[tokio::test]
async fn files_belong_to_whom_the_pod_runs_as() {
    let (stage, api) = Stage::start_with_api(Options::default(), &["--read-pods"]).await;
    let volume = stage.volume();
    let owned = class().with("fileOwner", "pod");
    let spec = json!({
        "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3},
        "containers": [
            {"name": "app", "securityContext": {"runAsUser": 10001}, "volumeMounts": [{"name": "secrets", "mountPath": "/s"}]},
            {"name": "other"},
        ],
    });
    api.put_pod(&volume.pod, spec);
    let status = stage.kubelet.publish(&volume, Some(&owned)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    for part in ["cannot get resource \"pods\"", "readPods.enabled", "volumeAttributes"] {
        assert!(status.message().contains(part), "{status:?}");
    }
    api.grant(&[Right::GetPods]);
    stage.mount(&volume, &owned).await;
    let file = stage.node.metadata(&stage.kubelet.target(&volume).join("password"));
    assert_eq!((file.uid(), file.gid()), (10_001, 3));
    let reads = api.requests().len();
    stage.mount(&volume, &owned).await;
    assert_eq!(api.requests().len(), reads, "a pod is read once");

    // Of one object only, the group by hand.
    let objects =
        OBJECTS.replace("filePermission: 0400", "filePermission: 0400\n  fileOwner: pod\n  fileGroup: 77");
    let one = stage.volume();
    api.put_pod(&one.pod, json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "app"}]}));
    stage.mount(&one, &class().with("objects", &objects)).await;
    let owner = |name: &str| {
        let file = stage.node.metadata(&stage.kubelet.target(&one).join(name));
        (file.uid(), file.gid())
    };
    assert_eq!((owner("password"), owner("username")), ((5, 77), (0, 0)));

    // Another pod of the name, and one that says nothing.
    let gone = stage.volume();
    let status = stage.kubelet.publish(&gone, Some(&owned)).await.unwrap_err();
    assert!(status.message().contains("another pod of this name"), "{status:?}");
    api.put_pod(&gone.pod, json!({"containers": [{"name": "app"}]}));
    let status = stage.kubelet.publish(&gone, Some(&owned)).await.unwrap_err();
    assert!(status.message().contains("no runAsUser and no fsGroup"), "{status:?}");
}

#[tokio::test]
async fn without_the_option_the_pods_owner_shows_the_alternatives() {
    let stage = Stage::start().await;
    let owned = class().with("fileOwner", "pod");
    let status = stage.kubelet.publish(&stage.volume(), Some(&owned)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for part in ["fileOwner: \"10001:10001\"", "volumeAttributes", "--read-pods"] {
        assert!(status.message().contains(part), "{status:?}");
    }
    // The second alternative works: the pod's own attributes win over the class.
    let volume = stage.volume().with("fileOwner", "10001:10002");
    stage.mount(&volume, &owned).await;
    let file = stage.node.metadata(&stage.kubelet.target(&volume).join("password"));
    assert_eq!((file.uid(), file.gid()), (10_001, 10_002));
}

#[tokio::test]
async fn options_without_a_service_account_keep_the_process_from_starting() {
    let node = std::sync::Arc::new(crate::support::node::Node::new());
    for flag in ALL {
        let mut launch = crate::support::leasehold::Launch::new("http://127.0.0.1:1");
        launch.flags.push(flag.to_owned());
        let (status, log) = crate::support::leasehold::Leasehold::start_refused(&node, &launch).await;
        assert!(!status.success() && log.contains("need a pod with a ServiceAccount token"), "{flag}: {log}");
    }
}
