//! Who gets nothing: the wrong role, audience, token, address. All answers are final, or the driver would
//! start the pod on an empty folder.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use serde_json::json;
use tonic::{Code, Status};

use crate::support::{
    cluster::{Pod, sign, sign_with_foreign_key},
    driver::{SecretProviderClass, is_final},
    http::{Reply, Server},
    kubelet::{Kubelet, Options, Volume},
    node::Node,
    stage::{OBJECTS, Stage, class},
};

const HOUR: Duration = Duration::from_secs(3600);

/// An answer by the deadline less 8 s: 4 s.
fn hasty() -> Options {
    Options { deadline: Duration::from_secs(12), ..Options::default() }
}

async fn refused(kubelet: &Kubelet, volume: &Volume, class: &SecretProviderClass, what: &str) -> Status {
    let status = match kubelet.publish(volume, Some(class)).await {
        Err(status) => status,
        Ok(()) => panic!("{what}: mounted"),
    };
    assert!(is_final(status.code()), "{what}: {status:?}");
    assert!(kubelet.node.list(&kubelet.target(volume)).is_err(), "{what}: the folder is still there");
    assert_eq!(Node::on_disk_beneath(&kubelet.target(volume)).len(), 0, "{what}");
    status
}

#[tokio::test]
async fn wrong_identity_gets_nothing() {
    let mut stage = Stage::start_with(hasty(), |_| {}).await;
    let kubelet = &stage.kubelet;
    let claims = |pod: &Pod, audience: &str| stage.cluster.claims(pod, &[audience], HOUR);

    let status = refused(kubelet, &stage.volume(), &class().with("roleName", "nope"), "wrong role").await;
    assert!(status.message().contains("nope"), "the role is named: {status:?}");

    stage.proxy.forget();
    for what in ["expired token", "another pod's token", "another namespace's token", "no token at all"] {
        let volume = stage.volume();
        kubelet.force_token(Some(match what {
            "expired token" => {
                let mut claims = claims(&volume.pod, "vault");
                claims["exp"] = json!(claims["iat"].as_u64().unwrap() - 600);
                sign(&claims)
            }
            "another pod's token" => sign(&claims(&Pod::new("prod", "app-1", "app"), "vault")),
            "another namespace's token" => {
                let mut pod = volume.pod.clone();
                pod.namespace = "dev".into();
                sign(&claims(&pod, "vault"))
            }
            _ => "not-a-token".into(),
        }));
        refused(kubelet, &volume, &class(), what).await;
        assert_eq!(stage.proxy.requests(), [""; 0], "{what}: refused before a packet is sent");
    }
    for what in ["forged token", "deleted pod"] {
        let volume = stage.volume();
        let claims = claims(&volume.pod, "vault");
        if what == "deleted pod" {
            stage.cluster.delete(&volume.pod);
        }
        let token = if what == "forged token" { sign_with_foreign_key(&claims) } else { sign(&claims) };
        kubelet.force_token(Some(token));
        let status = refused(kubelet, &volume, &class(), what).await;
        for cause in ["role", "audience", "TokenReview"] {
            assert!(status.message().contains(cause), "a bare 403 names its causes: {status:?}");
        }
    }
    kubelet.force_token(None);
    let stranger = Volume::new(&Pod::new("dev", "app-0", "app"));
    refused(kubelet, &stranger, &class(), "a namespace without the role").await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    stage.leasehold.assert_running();
}

#[tokio::test]
async fn missing_audience_says_what_to_add() {
    let stage = Stage::start().await;
    for audiences in [vec![], vec!["api".to_owned()]] {
        let options = Options { audiences, ..Options::default() };
        let kubelet = Kubelet::new(Arc::clone(&stage.node), Arc::clone(&stage.cluster), options);
        let status = refused(&kubelet, &stage.volume(), &class(), "no token for the audience").await;
        assert!(
            status.message().contains("tokenRequests") && status.message().contains("vault"),
            "{status:?}"
        );
    }
    assert_eq!(stage.proxy.requests(), [""; 0]);
}

#[tokio::test]
async fn bad_parameters_are_refused_with_their_name() {
    let stage = Stage::start().await;
    let object = |text: &str| class().with("objects", text);
    for (class, named) in [
        (class().without("roleName"), "missing 'roleName' in SecretProviderClass definition"),
        (class().without("objects"), "no secrets configured"),
        (object("[]"), "no secrets configured"),
        (object("- objectName: ["), "line"),
        (object("- {objectName: a, secretPath: s/a}\n- {objectName: a, secretPath: s/b}"), "unique"),
        (object("- {objectName: a, secretPath: s/a}\n- {objectName: a/b, secretPath: s/b}"), "a/b"),
        (object("- {objectName: /etc/passwd, secretPath: s/a}"), "/etc/passwd"),
        (object("- {objectName: a/../../b, secretPath: s/a}"), "a/../../b"),
        (object("- {objectName: ..data, secretPath: s/a}"), "..data"),
        (object("- {objectName: \"\", secretPath: s/a}"), "objectName"),
        (object("- {objectName: a, secretPath: s/a, filePermission: 04755}"), "a"),
        (
            object("- {objectName: a, secretPath: s/a, secretKey: k, encoding: rot13}"),
            "invalid encoding type. Should be utf-8, base64, or hex",
        ),
        (object("- {objectName: a, secretPath: secret/data/app/../other}"), "secretPath"),
        (object("- {objectName: a, secretPath: secret/data%2Fapp}"), "secretPath"),
        (class().with("vaultKubernetesMountPath", "a").with("vaultAuthMountPath", "a"), "cannot set both"),
        (class().with("vaultSkipTLSVerify", "maybe"), "vaultSkipTLSVerify"),
    ] {
        let status = refused(&stage.kubelet, &stage.volume(), &class, named).await;
        assert!(status.message().contains(named), "{named}: {status:?}");
    }
    assert_eq!(stage.proxy.requests(), [""; 0], "refused before a packet is sent");
    let missing = object("- {objectName: a, secretPath: secret/data/app/db, secretKey: nope}");
    let status = refused(&stage.kubelet, &stage.volume(), &missing, "unknown key").await;
    let message = status.message();
    assert!(message.contains("nope") && message.contains("password"), "it names the keys: {status:?}");
    assert!(!message.contains("p1"), "and no value: {status:?}");
}

/// threats: a SecretProviderClass, or the pod's own attributes over it, points leasehold elsewhere.
#[tokio::test]
async fn evil_spc_no_packet() {
    let stage = Stage::start().await;
    let evil = Server::start(None, |_| async { Reply::json(200, &json!({})) }.boxed());
    let address = format!("http://{}", evil.address());
    let shadow = "/etc/shadow";
    for (what, volume, class) in [
        ("address in the class", stage.volume(), class().with("vaultAddress", &address)),
        ("address in the pod", stage.volume().with("vaultAddress", &address), class()),
        ("skip-verify", stage.volume(), class().with("vaultSkipTLSVerify", "true")),
        ("a CA path", stage.volume(), class().with("vaultCACertPath", shadow)),
        ("a CA folder", stage.volume(), class().with("vaultCADirectory", "/etc")),
        (
            "a client key",
            stage.volume(),
            class().with("vaultTLSClientCertPath", shadow).with("vaultTLSClientKeyPath", shadow),
        ),
        ("an audience", stage.volume(), class().with("audience", "https://kubernetes.default.svc")),
    ] {
        let status = refused(&stage.kubelet, &volume, &class, what).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status:?}");
        assert!(status.message().contains("leasehold check --suggest-policy"), "{what}: {status:?}");
        assert!(!status.message().contains("root:"), "{what}: a file's contents came back");
    }
    assert_eq!((evil.connections(), stage.proxy.requests().len()), (0, 0));
    // What the operator allows goes out.
    let options = Options::default();
    let allowed = Stage::start_with(options, |launch| {
        launch.flags = vec!["--allow-vault-address".into(), address.clone()];
    })
    .await;
    let class = SecretProviderClass::new("vault", "app", OBJECTS).with("vaultAddress", &address);
    refused(&allowed.kubelet, &allowed.volume(), &class, "an answer without auth").await;
    assert!(evil.connections() > 0);
}
