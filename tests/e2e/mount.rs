//! The main job: files in the pod's tmpfs, what they cost, and what a republish costs.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    mode,
    support::{
        SOON,
        cluster::Pod,
        driver::{PublishRequest, mount_request},
        kubelet::{Options, Volume},
        node::Node,
        provider_client::{Dial, ProviderClient},
        proxy::Fault,
        stage::{OBJECTS, Stage, class},
        until,
    },
};

/// No files.
const NOTHING: [PathBuf; 0] = [];

/// Everything that a write would change: names, link targets, inodes.
fn snapshot(node: &Node, target: &Path) -> Vec<(PathBuf, u64, Option<PathBuf>)> {
    let target = target.to_owned();
    node.run(move || {
        let mut found = Vec::new();
        let mut folders = vec![target];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = std::fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    folders.push(path.clone());
                }
                found.push((path.clone(), metadata.ino(), std::fs::read_link(&path).ok()));
            }
        }
        found.sort();
        found
    })
}

#[tokio::test]
async fn first_mount_costs_one_login_and_one_request_per_path() {
    let stage = Stage::start().await;
    stage.proxy.rule(|_| Fault::Delay(Duration::from_millis(150)));
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;

    let (kubelet, target) = (&stage.kubelet, stage.kubelet.target(&volume));
    for (name, contents, bits) in
        [("username", "u", 0o644), ("password", "p1", 0o400), ("api/key", "k1", 0o644)]
    {
        assert_eq!(kubelet.file(&volume, name), contents, "{name}");
        let metadata = stage.node.metadata(&target.join(name));
        assert_eq!((mode(&metadata), metadata.uid(), metadata.gid()), (bits, 0, 0), "{name}");
    }
    let names = stage.node.list(&target).unwrap();
    assert!(names[0].starts_with("..2") && names[0].matches('_').count() == 5, "{names:?}");
    assert_eq!(names[1..], ["..data", "api", "password", "username"]);
    let links = snapshot(&stage.node, &target);
    let link =
        |name: &str| links.iter().find(|entry| entry.0 == target.join(name)).unwrap().2.clone().unwrap();
    assert_eq!(link("..data"), Path::new(&names[0]));
    assert_eq!(link("api"), Path::new("..data/api"));
    assert_eq!(Node::on_disk_beneath(&target), NOTHING, "a byte lies on the node's disk");

    let mut requests = stage.proxy.requests();
    assert!(requests[0].ends_with(" auth/kubernetes/login"), "{requests:?}");
    requests[1..].sort();
    assert_eq!(requests[1..], ["GET secret/data/app/api", "GET secret/data/app/db"]);
    assert_eq!(stage.proxy.rounds(), 2, "the reads go out together");

    let answer = kubelet.driver.last_response().unwrap();
    assert!(answer.files.is_empty() && !answer.object_version.is_empty(), "we write, the driver does not");
    let status = kubelet.driver.statuses().into_values().next().unwrap();
    assert!(status.objects.keys().all(|id| OBJECTS.contains(id.as_str())), "{status:?}");
}

#[tokio::test]
async fn republish_costs_no_request_and_no_write() {
    let stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    let target = stage.kubelet.target(&volume);
    let before = snapshot(&stage.node, &target);
    let versions = stage.kubelet.driver.statuses();
    let calls = stage.kubelet.driver.counts().provider_calls;
    stage.proxy.forget();
    for _ in 0..5 {
        stage.mount(&volume, &class()).await;
    }
    assert_eq!(stage.kubelet.driver.counts().provider_calls, calls + 5, "the calls reached leasehold");
    assert_eq!(stage.proxy.requests(), [""; 0]);
    assert_eq!(snapshot(&stage.node, &target), before);
    assert_eq!(stage.kubelet.driver.statuses(), versions, "versions depend on the data only");
    assert_eq!(stage.kubelet.driver.counts().masked, 0);
}

/// design: after an answered Mount the root's clock says now, so that the rotation interval means itself.
#[tokio::test]
async fn answered_mount_closes_the_gate_for_an_interval() {
    let options = Options { rotation: Some(Duration::from_secs(120)), ..Options::default() };
    let stage = Stage::start_with(options, |_| {}).await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    let target = stage.kubelet.target(&volume);
    for round in 1..=2 {
        stage.mount(&volume, &class()).await;
        assert_eq!(stage.kubelet.driver.counts().provider_calls, round);
        stage.node.age(&target, Duration::from_secs(121));
        stage.mount(&volume, &class()).await;
        assert_eq!(stage.kubelet.driver.counts().provider_calls, round + 1);
    }
}

#[tokio::test]
async fn edited_class_is_rendered_in_place() {
    let stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    let edited = class().with(
        "objects",
        "- {objectName: username, secretPath: secret/data/app/db, secretKey: username, filePermission: 0600}\n\
         - {objectName: whole.json, secretPath: secret/data/app/api}\n",
    );
    stage.mount(&volume, &edited).await;
    let target = stage.kubelet.target(&volume);
    assert_eq!(stage.node.list(&target).unwrap()[1..], ["..data", "username", "whole.json"]);
    assert_eq!(
        mode(&stage.node.metadata(&target.join("username"))),
        0o600,
        "a mode alone counts as a change"
    );
    let whole = stage.kubelet.file(&volume, "whole.json");
    assert!(whole.contains("\"key\":\"k1\"") && whole.starts_with("{\"request_id\":"), "{whole}");
    stage.proxy.forget();
    stage.mount(&volume, &edited).await;
    assert_eq!(stage.proxy.requests(), [""; 0]);
}

#[tokio::test]
async fn refused_or_broken_edit_keeps_what_is_there() {
    let stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    let target = stage.kubelet.target(&volume);
    let before = snapshot(&stage.node, &target);
    let versions = stage.kubelet.driver.statuses();
    stage.proxy.forget();
    for (what, edited) in [
        ("not YAML", class().with("objects", "- objectName: [")),
        ("no objects", class().with("objects", "[]")),
        ("no role", class().without("roleName")),
        ("a name that leaves the folder", class().with("objects", "- {objectName: ../x, secretPath: a/b}")),
        ("an address that policy refuses", class().with("vaultAddress", "http://127.0.0.1:1")),
    ] {
        stage.mount(&volume, &edited).await;
        assert_eq!(snapshot(&stage.node, &target), before, "{what}");
        assert_eq!(stage.kubelet.driver.statuses(), versions, "{what}");
        stage.leasehold.logged("edit rejected").await;
    }
    assert_eq!(stage.kubelet.driver.counts().masked, 0, "it answers OK with the old versions");
    assert_eq!(stage.proxy.requests(), [""; 0]);
}

#[tokio::test]
async fn mounts_in_parallel_do_not_disturb_each_other() {
    let stage = Stage::start().await;
    // The first mount teaches that these paths give no leases; a cold node may not share before it knows.
    stage.mount(&stage.volume(), &class()).await;
    stage.proxy.forget();
    stage.proxy.rule(|_| Fault::Delay(Duration::from_millis(50)));
    let volumes: Vec<Volume> =
        (0..16).map(|index| Volume::new(&Pod::new("prod", &format!("app-{index}"), "app"))).collect();
    let class = class();
    futures_util::future::join_all(volumes.iter().map(|volume| stage.mount(volume, &class))).await;
    for volume in &volumes {
        assert_eq!(stage.kubelet.file(volume, "password"), "p1");
    }
    let logins = stage.proxy.requests().iter().filter(|request| request.ends_with("/login")).count();
    assert_eq!(logins, 0, "mounts without leases share one login of their identity");
    // Two volumes of one pod share a status object: equal data gives equal versions.
    let second = volumes[0].clone().named("second");
    let before = stage.kubelet.driver.statuses();
    stage.mount(&second, &class).await;
    let objects = |statuses: &std::collections::BTreeMap<String, crate::support::driver::PodStatus>| {
        statuses.values().map(|status| status.objects.clone()).collect::<Vec<_>>()
    };
    assert_eq!(objects(&stage.kubelet.driver.statuses()), objects(&before));
}

#[tokio::test]
async fn second_call_for_a_target_joins_the_first() {
    let stage = Stage::start().await;
    stage.proxy.rule(|_| Fault::Delay(Duration::from_millis(200)));
    let volume = stage.volume();
    let target = stage.kubelet.target(&volume);
    stage.node.create_dir(&target).unwrap();
    stage.node.mount_tmpfs(&target).unwrap();
    let token = stage.cluster.token(&volume.pod, &["vault"], Duration::from_secs(3600));
    let request = PublishRequest {
        pod: volume.pod.clone(),
        volume: volume.name.clone(),
        attributes: volume.attributes.clone(),
        tokens: Some(
            json!({"vault": {"token": token, "expirationTimestamp": "2099-01-01T00:00:00Z"}}).to_string(),
        ),
        tokens_in_secrets: false,
        secrets: [].into(),
        read_only: true,
    };
    let request = mount_request(&request, &class(), &target);
    let client = ProviderClient::new(&stage.leasehold.socket("vault"), Dial::Localhost);
    let deadline = Instant::now() + SOON;
    let (one, two) =
        tokio::join!(client.mount(&request, deadline, || {}), client.mount(&request, deadline, || {}));
    assert_eq!(one.unwrap().object_version, two.unwrap().object_version);
    assert_eq!(stage.proxy.count(), 3, "{:?}", stage.proxy.requests());
    // A caller that goes away does not take the work with it: the next call finds it done or in flight.
    let away = volume.clone().named("away");
    let target = stage.kubelet.target(&away);
    stage.node.create_dir(&target).unwrap();
    stage.node.mount_tmpfs(&target).unwrap();
    let mut request = request;
    request.target_path = target.to_string_lossy().into_owned();
    stage.proxy.forget();
    let _ = tokio::time::timeout(Duration::from_millis(100), client.mount(&request, deadline, || {})).await;
    client.mount(&request, deadline, || {}).await.unwrap();
    assert_eq!(stage.node.read_text(&target.join("username")), "u");
    assert!(stage.proxy.count() <= 3, "{:?}", stage.proxy.requests());
}

/// No descriptor of ours keeps the driver from unmounting, and a new mount of the same path is a new mount.
#[tokio::test]
async fn unmount_is_noticed_and_never_hindered() {
    let stage = Stage::start().await;
    let volume = stage.volume();
    let target = stage.kubelet.target(&volume);
    for round in 0..5 {
        stage.mount(&volume, &class()).await;
        assert_eq!(stage.kubelet.file(&volume, "username"), "u", "round {round}");
        assert!(journal(&stage).contains(&volume.pod.uid), "round {round}: a live mount is journalled");
        stage.kubelet.unpublish(&volume).unwrap();
        assert_eq!(Node::on_disk_beneath(&target), NOTHING);
    }
    until("the journal of the last mount is gone", SOON, async || {
        (!journal(&stage).contains(&volume.pod.uid)).then_some(())
    })
    .await;
}

/// A crash costs a running pod nothing: no login, no read, no write, and the republish after it neither.
#[tokio::test]
async fn restart_costs_no_request_and_no_write() {
    let mut stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    assert!(!stage.leasehold.log().contains("cannot write a record"), "{}", stage.leasehold.log());
    let target = stage.kubelet.target(&volume);
    let before = snapshot(&stage.node, &target);
    let versions = stage.kubelet.driver.statuses();
    stage.proxy.forget();
    stage.leasehold.crash();
    stage.leasehold.restart().await;
    stage.mount(&volume, &class()).await;
    assert_eq!(stage.proxy.requests(), [""; 0]);
    assert_eq!(snapshot(&stage.node, &target), before);
    assert_eq!(stage.kubelet.driver.statuses(), versions);
    assert_eq!(stage.kubelet.driver.counts().masked, 0);
    // It watches the mount again: the unmount is neither hindered nor missed.
    stage.kubelet.unpublish(&volume).unwrap();
    until("the journal of the mount is gone", SOON, async || {
        (!journal(&stage).contains(&volume.pod.uid)).then_some(())
    })
    .await;
}

/// All text of the mounts' records. A shared session keeps for its audit lines for whom it was made.
fn journal(stage: &Stage) -> String {
    stage.node.text_below(&stage.node.state_dir().join("volumes"))
}
