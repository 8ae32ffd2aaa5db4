//! Other surroundings: no propagation, old drivers, OpenBao's names, TLS, jwt, Vault namespaces.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::support::{
    bao::{Bao, Shape},
    cluster::{Cluster, Pod},
    driver::{SecretProviderClass, is_final},
    kubelet::{Kubelet, Options, Volume},
    leasehold::{Launch, Leasehold},
    node::{Node, Propagation},
    provider_client::{Dial, ProviderClient},
    stage::{OBJECTS, Stage, add_role, class, configure},
};

/// Without propagation an old mount takes writes for ever: the driver writes, and an unchanged mount
/// answers without files, which the driver leaves alone.
#[tokio::test]
async fn private_mounts_are_written_by_the_driver() {
    let stage = Stage::start_with(Options::default(), |launch| launch.propagation = Propagation::None).await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    let answer = stage.kubelet.driver.last_response().unwrap();
    assert_eq!(answer.files.len(), 3);
    assert_eq!(stage.kubelet.file(&volume, "password"), "p1");
    let target = stage.kubelet.target(&volume);
    assert_eq!(crate::mode(&stage.node.metadata(&target.join("password"))), 0o400);
    stage.proxy.forget();
    stage.mount(&volume, &class()).await;
    assert!(stage.kubelet.driver.last_response().unwrap().files.is_empty());
    assert_eq!(stage.proxy.requests(), [""; 0]);
    let edited = class().with("objects", &OBJECTS.replace("objectName: username", "objectName: login"));
    stage.mount(&volume, &edited).await;
    assert_eq!(stage.kubelet.driver.last_response().unwrap().files.len(), 3, "a changed one brings all");
    assert_eq!(stage.node.list(&target).unwrap()[1..], ["..data", "api", "login", "password"]);
    // It is not a quiet mode.
    stage.leasehold.logged("driver-written").await;
    let (_, ready) = stage.leasehold.http_get("/readyz").await;
    assert!(ready.contains("driver-written"), "{ready}");
    // An answer above 3.5 MiB would be RESOURCE_EXHAUSTED at the driver, and the pod would start empty.
    let big = "x".repeat(900 << 10);
    for name in ["a", "b", "c", "d", "e"] {
        stage.bao.put_secret(&format!("app/{name}"), json!({ "key": big })).await;
    }
    let objects: Vec<String> = ["a", "b", "c", "d", "e"]
        .map(|name| format!("- {{objectName: {name}, secretPath: secret/data/app/{name}, secretKey: key}}"))
        .into();
    let large = class().with("objects", &objects.join("\n"));
    let status = stage.kubelet.publish(&stage.volume(), Some(&large)).await.unwrap_err();
    assert!(is_final(status.code()), "{status:?}");
    stage.kubelet.unpublish(&volume).unwrap();
}

#[tokio::test]
async fn old_drivers_are_understood() {
    let options = Options { dial: Dial::SocketPath, ..Options::default() };
    let stage = Stage::start_with(options, |_| {}).await;
    for _ in 0..3 {
        let volume = stage.volume();
        stage.mount(&volume, &class()).await;
        assert_eq!(stage.kubelet.file(&volume, "password"), "p1");
    }
    assert_eq!(stage.kubelet.driver.counts().provider_calls, 3);
}

#[tokio::test]
async fn version_names_a_runtime() {
    let stage = Stage::start().await;
    for name in ["leasehold", "vault", "openbao"] {
        let client = ProviderClient::new(&stage.leasehold.socket(name), Dial::Localhost);
        let version = client.version().await.unwrap();
        assert_eq!(version.version, "v1alpha1", "{name}");
        assert!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn openbao_classes_work_unchanged() {
    let stage = Stage::start().await;
    let bare = SecretProviderClass::new("openbao", "app-openbao", OBJECTS);
    let address = stage.proxy.url();
    for (what, class) in [
        ("roleName as a fall-back", bare.clone()),
        (
            "bao wins",
            bare.clone()
                .with("roleName", "nope")
                .with("openbaoRoleName", "nope")
                .with("baoRoleName", "app-openbao"),
        ),
        (
            "openbao before vault",
            bare.clone().with("vaultRoleName", "nope").with("openbaoRoleName", "app-openbao"),
        ),
        ("own address", bare.clone().with("baoAddress", &address).with("baoAuthMountPath", "kubernetes")),
    ] {
        let volume = stage.volume();
        if let Err(status) = stage.kubelet.publish(&volume, Some(&class)).await {
            panic!("{what}: {status:?}\n{}", stage.leasehold.log());
        }
        assert_eq!(stage.kubelet.file(&volume, "password"), "p1", "{what}");
    }
    let both = bare.with("baoAuthMountPath", "a").with("vaultKubernetesMountPath", "b");
    let status = stage.kubelet.publish(&stage.volume(), Some(&both)).await.unwrap_err();
    assert!(status.message().contains("cannot set both"), "{status:?}");
}

/// jwt auth, a Vault namespace, tokens that come in `secrets`, and a pod that overrides the role.
#[tokio::test]
async fn jwt_namespaces_and_tokens_in_secrets() {
    let options = Options { tokens_in_secrets: true, ..Options::default() };
    let stage = Stage::start_with(options, |_| {}).await;
    stage.bao.write("sys/namespaces/team-a", json!({})).await;
    let team = stage.bao.in_namespace("team-a");
    team.enable_jwt_auth("jwt", &stage.cluster).await;
    team.put_policy("app", "path \"kv/*\" { capabilities = [\"read\"] }").await;
    team.write("sys/mounts/kv", json!({"type": "kv"})).await;
    team.write("kv/app", json!({"password": "team"})).await;
    let role = json!({"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
        "bound_subject": "system:serviceaccount:prod:app", "token_policies": ["app"], "token_ttl": "1h"});
    team.write("auth/jwt/role/jwt-app", role).await;
    let class = SecretProviderClass::new(
        "vault",
        "nope",
        "- {objectName: password, secretPath: kv/app, secretKey: password}",
    )
    .with("vaultNamespace", "team-a")
    .with("vaultAuthMountPath", "jwt");
    let volume = stage.volume().with("roleName", "jwt-app");
    stage.mount(&volume, &class).await;
    assert_eq!(stage.kubelet.file(&volume, "password"), "team");
    assert!(stage.proxy.seen().iter().all(|seen| seen.namespace.as_deref() == Some("team-a")));
}

#[tokio::test]
async fn tls_by_an_authority_of_the_operator() {
    let node = Arc::new(Node::new());
    let cluster = Arc::new(Cluster::start());
    let bao = Bao::start(Shape::DevTls).await;
    configure(&bao, &cluster).await;
    let tls = node.root().join("tls");
    std::fs::create_dir(&tls).unwrap();
    let ca = tls.join("ca.pem").to_string_lossy().into_owned();
    std::fs::copy(bao.ca_path(), &ca).unwrap();
    let mut launch = Launch::new(bao.url());
    launch.flags = vec!["--allow-tls-dir".into(), tls.to_string_lossy().into_owned()];
    let mut leasehold = Leasehold::start(&node, launch).await;
    let options = Options { deadline: Duration::from_secs(12), ..Options::default() };
    let kubelet = Kubelet::new(Arc::clone(&node), cluster, options);
    let volume = || Volume::new(&Pod::new("prod", "app-0", "app"));
    let folder = tls.to_string_lossy().into_owned();
    for (what, class) in [
        ("a bundle", class().with("vaultCACertPath", &ca)),
        ("a folder", class().with("vaultCADirectory", &folder)),
        ("a name", class().with("vaultCACertPath", &ca).with("vaultTLSServerName", "localhost")),
    ] {
        let volume = volume();
        if let Err(status) = kubelet.publish(&volume, Some(&class)).await {
            panic!("{what}: {status:?}\n{}", leasehold.log());
        }
        assert_eq!(kubelet.file(&volume, "password"), "p1", "{what}");
    }
    for (what, class) in [
        ("no authority", class()),
        ("a wrong name", class().with("vaultCACertPath", &ca).with("vaultTLSServerName", "wrong.example")),
        ("no such file", class().with("vaultCACertPath", &format!("{folder}/absent.pem"))),
    ] {
        let status = kubelet.publish(&volume(), Some(&class)).await.unwrap_err();
        assert!(is_final(status.code()), "{what}: {status:?}");
    }
    leasehold.assert_running();
}

/// The policy file narrows by namespace; what it does not name is refused before a packet is sent.
#[tokio::test]
async fn a_second_role_of_another_mount_works_side_by_side() {
    let stage = Stage::start().await;
    stage.bao.enable_kubernetes_auth("cluster-b", &stage.cluster).await;
    add_role(&stage.bao, "cluster-b", "b", "vault").await;
    let other = class().with("vaultKubernetesMountPath", "cluster-b").with("roleName", "b");
    for class in [class(), other] {
        let volume = stage.volume();
        stage.mount(&volume, &class).await;
        assert_eq!(stage.kubelet.file(&volume, "username"), "u");
    }
    let logins: Vec<_> =
        stage.proxy.requests().into_iter().filter(|request| request.ends_with("/login")).collect();
    assert_eq!(logins.len(), 2, "{logins:?}");
}
