//! `generate` against a real server: made once, whoever comes first, and never again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    SOON,
    cluster::Pod,
    driver::SecretProviderClass,
    kubelet::{Kubelet, Options, Volume},
    leasehold::{Launch, Leasehold},
    node::Node,
    stage::Stage,
    until,
};

const WRITER: &str = "path \"secret/data/app/*\" { capabilities = [\"read\", \"create\", \"update\"] }";

fn class(objects: &str) -> SecretProviderClass {
    SecretProviderClass::new("vault", "app", objects)
}

fn writes(stage: &Stage) -> usize {
    stage.proxy.seen().iter().filter(|it| it.method == "PUT" && it.path.starts_with("secret/data/")).count()
}

/// The newest version of a secret, and its data.
async fn stored(stage: &Stage, path: &str) -> (u64, Value) {
    let answer = stage.bao.read(&format!("secret/data/{path}")).await;
    let data = &answer["data"];
    (data["metadata"]["version"].as_u64().unwrap(), data["data"].clone())
}

#[tokio::test]
async fn values_are_made_once_in_one_write_and_kept() {
    let stage = Stage::start().await;
    stage.bao.put_policy("app", WRITER).await;
    let objects = class(
        "- {objectName: password, secretPath: secret/data/app/new, secretKey: password, \
           generate: {password: {length: 32, digits: 5, symbols: 5}}, refreshInterval: 5s}\n\
         - {objectName: id, secretPath: secret/data/app/new, secretKey: id, generate: uuid}\n\
         - {as: token, secretPath: secret/data/app/new, secretKey: token, generate: {hex: {bytes: 16}}}\n\
         - {objectName: url, template: 'https://:{{ .token }}@host'}\n",
    );
    let volume = stage.volume();
    stage.mount(&volume, &objects).await;
    let (version, data) = stored(&stage, "app/new").await;
    assert_eq!((version, writes(&stage)), (1, 1), "one write for all keys of the path");
    let file = |volume: &Volume, name: &str| stage.kubelet.file(volume, name);
    assert_eq!(json!(file(&volume, "password")), data["password"]);
    assert_eq!(json!(file(&volume, "id")), data["id"]);
    assert_eq!(file(&volume, "url"), format!("https://:{}@host", data["token"].as_str().unwrap()));
    let password = file(&volume, "password");
    let count = |is: fn(&char) -> bool| password.chars().filter(is).count();
    assert_eq!(password.len(), 32);
    assert_eq!((count(char::is_ascii_digit), count(char::is_ascii_punctuation)), (5, 5), "{password}");

    // The next pod reads.
    let second = Volume::new(&Pod::new("prod", "app-1", "app"));
    stage.mount(&second, &objects).await;
    assert_eq!((file(&second, "password"), writes(&stage)), (password.clone(), 1));

    // A key that another class adds follows the version that is there, and keeps its keys.
    let more = class(
        "- {objectName: key, secretPath: secret/data/app/new, secretKey: key, generate: {base64: {bytes: 32}}}\n",
    );
    stage.mount(&Volume::new(&Pod::new("prod", "app-2", "app")), &more).await;
    let (version, kept) = stored(&stage, "app/new").await;
    assert_eq!(version, 2);
    assert_eq!((&kept["password"], &kept["id"]), (&data["password"], &data["id"]));

    // Never on a renewal: the checks of a value that is gone for good write nothing in its place.
    let before = stage.proxy.requests().len();
    stage.bao.delete("secret/metadata/app/new").await;
    until("two checks", Duration::from_secs(60), async || {
        let later = &stage.proxy.requests()[before..];
        (later.iter().filter(|it| *it == "GET secret/data/app/new").count() >= 2).then_some(())
    })
    .await;
    assert_eq!(writes(&stage), 2);
    assert_eq!(file(&volume, "password"), password, "the file stays");
}

#[tokio::test]
async fn what_is_deleted_denied_or_no_kv_is_left_alone() {
    let stage = Stage::start().await;
    stage.bao.put_policy("app", WRITER).await;
    let objects = |path: &str| {
        class(&format!("- {{objectName: f, secretPath: {path}, secretKey: k, generate: password}}\n"))
    };
    let refused = async |path: &str| {
        let status = stage.kubelet.publish(&stage.volume(), Some(&objects(path))).await.unwrap_err();
        status.message().to_owned()
    };
    stage.bao.put_secret("app/gone", json!({"other": 1})).await;
    stage.bao.delete("secret/data/app/gone").await;
    let message = refused("secret/data/app/gone").await;
    assert!(message.contains("version 1 is deleted") && message.contains("\"f\""), "{message}");
    stage.bao.write("secret/destroy/app/gone", json!({"versions": [1]})).await;
    let message = refused("secret/data/app/gone").await;
    assert!(message.contains("version 1 is destroyed"), "{message}");
    assert_eq!(writes(&stage), 0);

    stage.bao.put_policy("app", "path \"secret/data/app/*\" { capabilities = [\"read\"] }").await;
    let message = refused("secret/data/app/new").await;
    for part in ["secret/data/app/new", "capabilities create and update", "writes: allow", "403"] {
        assert!(message.contains(part), "{part}: {message}");
    }

    // A KV version 1 mount would take the envelope of the write for the secret.
    stage.bao.write("sys/mounts/kv1", json!({"type": "kv", "options": {"version": "1"}})).await;
    stage.bao.put_policy("app", "path \"kv1/*\" { capabilities = [\"read\", \"create\", \"update\"] }").await;
    let message = refused("kv1/data/app").await;
    assert!(message.contains("generate needs a KV version 2 secret"), "{message}");
    assert_eq!(stage.bao.list("kv1/data").await, [""; 0]);
}

#[tokio::test]
async fn the_nodes_policy_decides_who_may_write_and_names_generators() {
    let policy = |writes: &str| {
        format!(
            "rules:\n- {{name: prod, namespaces: [prod], paths: [\"secret/data/app/**\"], writes: {writes}}}\n\
             generators:\n  pin: {{password: {{length: 8, digits: 8, symbols: 0, allowRepeat: true}}}}\n"
        )
    };
    let objects = |generator: &str| {
        class(&format!(
            "- {{objectName: f, secretPath: secret/data/app/pin, secretKey: pin, generate: {generator}}}\n"
        ))
    };
    for (verdict, generator, says) in [
        ("deny", "pin", "writes: allow"),
        ("allow", "pinn", "no generator of the node's policy file, did you mean pin?"),
    ] {
        let stage =
            Stage::start_with(Options::default(), |launch| launch.policy = Some(policy(verdict))).await;
        stage.bao.put_policy("app", WRITER).await;
        let status = stage.kubelet.publish(&stage.volume(), Some(&objects(generator))).await.unwrap_err();
        assert!(status.message().contains(says), "{status:?}");
        assert_eq!(stage.proxy.count(), 0, "refused before any request");
    }
    let stage = Stage::start_with(Options::default(), |launch| launch.policy = Some(policy("allow"))).await;
    stage.bao.put_policy("app", WRITER).await;
    let volume = stage.volume();
    stage.mount(&volume, &objects("pin")).await;
    let pin = stage.kubelet.file(&volume, "f");
    assert!(pin.len() == 8 && pin.bytes().all(|byte| byte.is_ascii_digit()), "{pin}");
}

/// Twenty pods on two nodes at once: one value, one version.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_pods_on_two_nodes_agree_on_one_value() {
    let stage = Stage::start().await;
    stage.bao.put_policy("app", WRITER).await;
    let other_node = Arc::new(Node::new());
    let _other = Leasehold::start(&other_node, Launch::new(&stage.proxy.url())).await;
    let other = Kubelet::new(Arc::clone(&other_node), Arc::clone(&stage.cluster), Options::default());
    let objects = class(
        "- {objectName: a, secretPath: secret/data/app/shared, secretKey: a, generate: password}\n\
         - {objectName: b, secretPath: secret/data/app/shared, secretKey: b, generate: uuid}\n",
    );
    let pods: Vec<Volume> =
        (0..20).map(|pod| Volume::new(&Pod::new("prod", &format!("app-{pod}"), "app"))).collect();
    let kubelet = |pod: usize| if pod.is_multiple_of(2) { &stage.kubelet } else { &other };
    let mounts = pods.iter().enumerate().map(|(pod, volume)| kubelet(pod).publish(volume, Some(&objects)));
    let outcomes = tokio::time::timeout(SOON * 4, futures_util::future::join_all(mounts)).await.unwrap();
    for outcome in outcomes {
        assert!(outcome.is_ok(), "{outcome:?}\n{}", stage.leasehold.log());
    }
    let seen: BTreeSet<(String, String)> = pods
        .iter()
        .enumerate()
        .map(|(pod, volume)| (kubelet(pod).file(volume, "a"), kubelet(pod).file(volume, "b")))
        .collect();
    assert_eq!(seen.len(), 1, "every pod has the same");
    let (version, data) = stored(&stage, "app/shared").await;
    let (a, b) = seen.into_iter().next().unwrap();
    assert_eq!((version, data), (1, json!({"a": a, "b": b})));
    let lost = stage.proxy.seen().iter().filter(|it| it.method == "PUT" && it.status == Some(400)).count();
    assert!(lost > 0, "nobody raced: the test shows nothing");
}
