//! `leasehold doctor` in the container of a real agent, against real OpenBao: well, and each link broken once.

use std::{fs, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::support::{
    SOON,
    bao::{Bao, Shape},
    cluster::Cluster,
    http::{Reply, Server},
    kubelet::{Kubelet, Options},
    leasehold::{Launch, Leasehold},
    node::{Node, Propagation},
    process::output,
    provider_client::Dial,
    proxy::Proxy,
    stage::{Stage, class, configure},
    until,
};

/// The checks as JSON, and the exit code.
async fn checks(leasehold: &Leasehold) -> (i32, Vec<Value>) {
    let (code, out, error) = leasehold.exec(&["doctor", "-o", "json"]).await;
    let checks = serde_json::from_str(&out).unwrap_or_else(|problem| panic!("{problem}: {out}{error}"));
    (code, checks)
}

/// The check says this, with this status, and how to mend it.
#[track_caller]
fn says(found: &(i32, Vec<Value>), status: &str, check: &str, message: &str) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = found.1.iter().find(|line| {
        text(&line["check"]).contains(check)
            && text(&line["message"]).contains(message)
            && line["status"] == status
    });
    let line = line.unwrap_or_else(|| panic!("no {status} {check}: {message} in {:#?}", found.1));
    assert_eq!(line.get("fix").is_some(), status != "ok", "what is wrong has a fix: {line}");
    let failed = found.1.iter().any(|line| line["status"] == "fail");
    assert_eq!(found.0, i32::from(failed), "the exit code says whether something failed: {:#?}", found.1);
}

#[tokio::test]
async fn a_node_that_is_well_has_no_failures() {
    let stage = Stage::start().await;
    stage.mount(&stage.volume(), &class()).await;
    until("the agent has counted", SOON, async || {
        let found = checks(&stage.leasehold).await;
        found.1.iter().any(|line| line["check"] == "rotation").then_some(())
    })
    .await;
    let found = checks(&stage.leasehold).await;
    assert_eq!(found.0, 0, "{:#?}", found.1);
    let unknown =
        found.1.iter().any(|line| line["message"].as_str().unwrap().contains("unless they name another"));
    assert!(!unknown, "both audiences are passed: {:#?}", found.1);
    for (check, message) in [
        ("agent", "answers and holds 1 volumes"),
        ("state", "is tmpfs"),
        ("socket", "vault.sock answers"),
        ("propagation", "are seen here"),
        ("ownership", "can be given to other users"),
        ("swap", "nothing of this container can be swapped out"),
        ("driver", "1.6.0 or newer, by its :authority; its gRPC is grpc-go/1.79.3"),
        ("tokenRequests", "the driver passes tokens for openbao, vault"),
        ("rotation", "it called for every mounted volume within the last"),
        ("vault http", "reachable, unsealed"),
        ("auth", "the auth mount kubernetes answers"),
        ("clock", "of the server's"),
        ("orphans", "for at most 3600 s"),
    ] {
        says(&found, "ok", check, message);
    }
    says(&found, "warn", "TLS", "plain http");
    let (_, text, _) = stage.leasehold.exec(&["doctor"]).await;
    assert!(
        text.starts_with("ok    agent: leasehold 0.1.0 answers") && text.contains("\n      fix: "),
        "{text}"
    );
    for secret in ["eyJ", "hvs.", "s.", "p1"].iter().filter(|secret| secret.len() > 2) {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn the_servers_faults_are_told() {
    let mut stage = Stage::start_with(Options::default(), |launch| {
        launch.flags.push("--vault-mount=nope".to_owned());
    })
    .await;
    let found = checks(&stage.leasehold).await;
    says(&found, "fail", "auth", "there is no auth mount nope");
    stage.bao.seal().await;
    says(&checks(&stage.leasehold).await, "fail", "vault http", "sealed");
    stage.proxy.down();
    says(&checks(&stage.leasehold).await, "fail", "vault http", "the connection was refused");
}

#[tokio::test]
async fn the_agents_and_the_nodes_faults_are_told() {
    let node = Node::new();
    // A file of our name where the driver looks first; seen in this node's namespace only.
    node.run(|| {
        mount(Some("tmpfs"), "/etc", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::create_dir_all("/etc/kubernetes/secrets-store-csi-providers").unwrap();
        fs::write("/etc/kubernetes/secrets-store-csi-providers/vault.sock", "").unwrap();
    });
    node.unmount(&node.root().join("run")).unwrap();
    let options = Options { dial: Dial::SocketPath, audiences: Vec::new(), ..Options::default() };
    let mut stage = Stage::start_on(node, options, |launch| launch.propagation = Propagation::None).await;
    stage.kubelet.publish(&stage.volume(), Some(&class())).await.unwrap_err();
    fs::remove_file(stage.leasehold.socket("openbao")).unwrap();
    let found = checks(&stage.leasehold).await;
    says(&found, "fail", "socket", "shadows");
    says(&found, "fail", "socket", "openbao.sock does not answer");
    says(&found, "warn", "state", "not tmpfs");
    says(&found, "warn", "propagation", "no mount propagation");
    says(&found, "warn", "driver", "older than 1.6.0");
    says(&found, "warn", "tokenRequests", "passes no ServiceAccount tokens");
    let pid = stage.leasehold.pid();
    stage.leasehold.terminate();
    let gone = stage.leasehold.ended(SOON).await;
    assert!(gone.success() && pid > 0);
    // No container to exec into any more: the command runs where the state folder is seen.
    let state = stage.node.state_dir();
    let binary = crate::support::leasehold::binary();
    let output = stage.node.run(move || {
        let mut doctor = std::process::Command::new(binary);
        output(doctor.args(["doctor", "-o", "json", "--state-dir"]).arg(state)).unwrap()
    });
    let found = (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap());
    says(&found, "fail", "agent", "no agent answers");
    says(&found, "fail", "lock", "nobody holds the state folder's lock");
}

#[tokio::test]
async fn a_driver_that_never_comes_again_and_long_sessions_are_told() {
    let stage = Stage::start_with(Options::default(), |launch| {
        launch.flags.push("--expect-republish=1s".to_owned());
    })
    .await;
    let role = serde_json::json!({
        "bound_service_account_names": ["app"], "bound_service_account_namespaces": ["prod"],
        "audience": "vault", "token_policies": ["app"], "token_ttl": "48h", "token_max_ttl": "96h",
    });
    stage.bao.write("auth/kubernetes/role/app", role).await;
    stage.mount(&stage.volume(), &class()).await;
    until("the driver is missed", SOON, async || {
        let found = checks(&stage.leasehold).await;
        found.1.iter().any(|line| line["check"] == "rotation" && line["status"] == "warn").then_some(())
    })
    .await;
    let found = checks(&stage.leasehold).await;
    says(&found, "warn", "rotation", "has not called again");
    says(&found, "warn", "orphans", "for up to 172800 s");
}

/// A node with a swap area, and what the container's cgroup says of it (`memory.swap.max`).
pub(crate) fn swapping(limit: &'static str) -> Node {
    let node = Node::new();
    let swaps = node.root().join("swaps");
    fs::write(&swaps, "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2\tpartition\t1\t0\t-2\n").unwrap();
    node.run(move || {
        let none = None::<&str>;
        mount(Some(&swaps), "/proc/swaps", none, MsFlags::MS_BIND, none).unwrap();
        mount(Some("tmpfs"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::write("/sys/fs/cgroup/memory.swap.max", limit).unwrap();
    });
    node
}

#[tokio::test]
async fn swap_is_told_of_unless_the_operator_takes_it() {
    let mut stage = Stage::start_on(swapping("max\n"), Options::default(), |_| {}).await;
    stage.leasehold.is_ready().await;
    let told = "the node swaps to /dev/sda2 and may swap this container out";
    let report = stage.leasehold.http_get("/readyz").await.1;
    assert!(
        report.contains(&format!("swap: degraded: {told}")) && report.contains("--allow-swap"),
        "{report}"
    );
    assert_eq!(stage.leasehold.log().matches(told).count(), 1);
    says(&checks(&stage.leasehold).await, "warn", "swap", told);

    stage.leasehold.restart_with(|launch| launch.flags.push("--allow-swap".to_owned())).await;
    stage.leasehold.is_ready().await;
    let report = stage.leasehold.http_get("/readyz").await.1;
    assert_eq!(report, "ready\n");
    says(&checks(&stage.leasehold).await, "ok", "swap", "taken so by --allow-swap");

    // The kubelet's NoSwap.
    let stage = Stage::start_on(swapping("0\n"), Options::default(), |_| {}).await;
    stage.leasehold.is_ready().await;
    assert_eq!(stage.leasehold.http_get("/readyz").await.1, "ready\n");
    says(&checks(&stage.leasehold).await, "ok", "swap", "nothing of this container can be swapped out");
}

#[tokio::test]
async fn a_missing_capability_is_told_of_where_ownership_is_asked_for() {
    let stage = Stage::start_with(Options::default(), |launch| launch.without_chown = true).await;
    stage.mount(&stage.volume(), &class()).await;
    says(&checks(&stage.leasehold).await, "ok", "ownership", "no class has asked for it");
    // Root's own files need none.
    stage.mount(&stage.volume(), &class().with("fileOwner", "0:0")).await;
    says(&checks(&stage.leasehold).await, "ok", "ownership", "no class has asked for it");
    for _ in 0..2 {
        let owned = class().with("fileOwner", "10001");
        let status = stage.kubelet.publish(&stage.volume(), Some(&owned)).await.unwrap_err();
        assert!(status.message().contains("lacks the capability CAP_CHOWN"), "{status:?}");
    }
    let told = "SecretProviderClasses ask for fileOwner or fileGroup";
    says(&checks(&stage.leasehold).await, "warn", "ownership", told);
    let report = stage.leasehold.http_get("/readyz").await.1;
    assert!(report.contains(&format!("ownership: degraded: {told}")), "{report}");
    assert_eq!(stage.leasehold.log().matches(told).count(), 1);
}

#[tokio::test]
async fn what_the_drivers_calls_show_is_told() {
    let vault_only = || vec!["vault".to_owned()];
    let options = Options { dial: Dial::SocketPath, audiences: vault_only(), ..Options::default() };
    let stage = Stage::start_with(options, |_| {}).await;
    says(&checks(&stage.leasehold).await, "ok", "driver", "it has not called yet");
    stage.mount(&stage.volume(), &class()).await;
    let found = checks(&stage.leasehold).await;
    says(&found, "warn", "driver", "older than 1.6.0");
    says(&found, "ok", "tokenRequests", "tokens for vault; classes of the provider openbao want openbao");
    // The driver of the node is upgraded.
    let options = Options { audiences: vault_only(), ..Options::default() };
    let newer = Kubelet::new(Arc::clone(&stage.node), Arc::clone(&stage.cluster), options);
    newer.publish(&stage.volume(), Some(&class())).await.unwrap();
    says(&checks(&stage.leasehold).await, "ok", "driver", "1.6.0 or newer");
    assert_eq!(stage.leasehold.http_get("/readyz").await.1, "ready\n");
}

/// An agent of a node, of a server at `address`.
async fn agent(address: &str, flags: &[String]) -> (Arc<Node>, Leasehold) {
    let node = Arc::new(Node::new());
    let mut launch = Launch::new(address);
    launch.flags.extend(flags.iter().cloned());
    let leasehold = Leasehold::start(&node, launch).await;
    (node, leasehold)
}

#[tokio::test]
async fn a_clock_that_differs_is_told() {
    for (ahead, status, message) in
        [(3600_i64, "fail", "behind the server's"), (-30, "warn", "ahead of the server's")]
    {
        let server = Server::start(None, move |_| {
            async move {
                let now = crate::support::cluster::unix_now().saturating_add_signed(ahead);
                let date = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(now));
                Reply::Full { status: 200, headers: vec![("date".to_owned(), date)], body: "{}".into() }
            }
            .boxed()
        });
        let (_node, leasehold) = agent(&format!("http://{}", server.address()), &[]).await;
        says(&checks(&leasehold).await, status, "clock", message);
    }
}

#[tokio::test]
async fn certificates_are_looked_at() {
    let bao = Bao::start(Shape::Dev).await;
    configure(&bao, &Cluster::start()).await;
    for (days, status) in [(3, "warn"), (90, "ok")] {
        let mut parameters =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "vault.example".to_owned()]).unwrap();
        let now = std::time::SystemTime::now();
        parameters.not_after = (now + Duration::from_secs(days * 86_400 + 3600)).into();
        let key = rcgen::KeyPair::generate().unwrap();
        let made = parameters.self_signed(&key).unwrap();
        crate::support::install_tls_provider();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let proxy = Proxy::start_with(bao.url(), Some(tls));
        let folder = crate::support::temp_dir();
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, made.pem()).unwrap();
        let flags = ["vault", "openbao"].map(|name| format!("--{name}-tls-ca-cert={}", ca.display()));
        let address = format!("https://127.0.0.1:{}", proxy.url().rsplit(':').next().unwrap());
        let (_node, leasehold) = agent(&address, &flags).await;
        let found = checks(&leasehold).await;
        says(&found, status, "TLS", &format!("ends in {days} days"));
        says(&found, status, "TLS", "vault.example");
        // Without the authority, nothing of it is taken.
        let (_other, strangers) = agent(&address, &[]).await;
        says(&checks(&strangers).await, "fail", "vault https", "authority that is not trusted here");
    }
}
