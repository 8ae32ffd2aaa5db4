//! The parts themselves: a stand-in that is kinder than the real thing proves nothing.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

use serde_json::json;
use tonic::{Code, Request, Response, Status};

use crate::mode;
use crate::support::{
    bao::{Bao, Shape},
    cluster::{API_AUDIENCE, Cluster, Pod, ReviewFault, rfc3339, sign, sign_with_foreign_key},
    driver::{SecretProviderClass, go_json},
    http::Reply,
    kubelet::{Kubelet, Options, Volume},
    node::{Node, Propagation},
    postgres::Postgres,
    proto::{
        self,
        csi_driver_provider_server::{CsiDriverProvider, CsiDriverProviderServer},
    },
    provider_client::Dial,
    proxy::{Fault, Proxy},
    stage, until,
};

/// Gives one prepared answer to every Mount.
struct Provider {
    answer: Arc<Mutex<Result<proto::MountResponse, Status>>>,
    calls: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl CsiDriverProvider for Provider {
    async fn version(
        &self,
        _: Request<proto::VersionRequest>,
    ) -> Result<Response<proto::VersionResponse>, Status> {
        Ok(Response::new(proto::VersionResponse::default()))
    }

    async fn mount(&self, _: Request<proto::MountRequest>) -> Result<Response<proto::MountResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.answer.lock().unwrap().clone().map(Response::new)
    }
}

/// A node with such a provider on it.
struct Bench {
    kubelet: Kubelet,
    answer: Arc<Mutex<Result<proto::MountResponse, Status>>>,
    calls: Arc<AtomicUsize>,
}

impl Bench {
    fn new(options: Options) -> Self {
        let (node, cluster) = (Arc::new(Node::new()), Arc::new(Cluster::start()));
        let answer = Arc::new(Mutex::new(Ok(files(&[("user", "u1", 0o644), ("deep/key", "k1", 0o400)]))));
        let calls = Arc::new(AtomicUsize::new(0));
        let provider = Provider { answer: Arc::clone(&answer), calls: Arc::clone(&calls) };
        let socket = node.providers_dir().join("vault.sock");
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let incoming = futures_util::stream::unfold(listener, async |listener| {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            Some((stream, listener))
        });
        let server = tonic::transport::Server::builder().add_service(CsiDriverProviderServer::new(provider));
        tokio::spawn(server.serve_with_incoming(Box::pin(incoming)));
        Self { kubelet: Kubelet::new(node, cluster, options), answer, calls }
    }

    fn answers(&self, answer: Result<proto::MountResponse, Status>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn files(files: &[(&str, &str, i32)]) -> proto::MountResponse {
    proto::MountResponse {
        object_version: vec![proto::ObjectVersion { id: "all".into(), version: "1".into() }],
        error: None,
        files: files
            .iter()
            .map(|(path, contents, mode)| proto::File {
                path: (*path).into(),
                mode: *mode,
                contents: contents.as_bytes().into(),
            })
            .collect(),
    }
}

fn class() -> SecretProviderClass {
    SecretProviderClass::new("vault", "csi", "[]")
}

fn volume() -> Volume {
    Volume::new(&Pod::new("ns", "pod", "sa"))
}

/// driver-contract: a non-final error of a first mount, rotation on: the gate then says OK to the retry.
#[tokio::test]
async fn driver_is_fail_open_on_non_final_codes() {
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Aborted, Code::Cancelled] {
        let bench = Bench::new(Options { rotation: Some(Duration::from_secs(120)), ..Options::default() });
        bench.answers(Err(Status::new(code, "later")));
        let started = std::time::Instant::now();
        let start = bench.kubelet.start(&volume(), &class(), 3).await;
        assert!(start.started && start.on_empty_dir, "{code:?}: {start:?}");
        assert_eq!(start.errors[0].code(), code);
        let attempts = if code == Code::Unavailable { 3 } else { 1 };
        assert_eq!(bench.calls(), attempts, "{code:?}: the retry policy is for UNAVAILABLE only");
        assert!(attempts == 1 || started.elapsed() > Duration::from_millis(1500 + 500), "{code:?}");
        assert_eq!(bench.kubelet.driver.counts().gated, 1);
    }
    // A final code: the folder goes, the next attempt reaches the provider, the pod waits.
    let bench = Bench::new(Options { rotation: Some(Duration::from_secs(120)), ..Options::default() });
    bench.answers(Err(Status::internal("sealed")));
    let volume = volume();
    let start = bench.kubelet.start(&volume, &class(), 2).await;
    assert!(!start.started && start.errors.len() == 2, "{start:?}");
    assert!(start.errors[0].message().contains("for pod ns/pod, err: sealed"), "{start:?}");
    assert!(bench.kubelet.node.list(&bench.kubelet.target(&volume)).is_err(), "removeMountDir");
    assert_eq!(bench.calls(), 2);
}

#[tokio::test]
async fn driver_answers_too_large_are_fail_open_too() {
    let bench = Bench::new(Options { rotation: Some(Duration::from_secs(120)), ..Options::default() });
    bench.answers(Ok(files(&[("big", &"x".repeat(5 << 20), 0o644)])));
    let start = bench.kubelet.start(&volume(), &class(), 2).await;
    assert_eq!(start.errors[0].code(), Code::ResourceExhausted);
    assert!(start.on_empty_dir);
}

#[tokio::test]
async fn driver_writes_gates_masks_and_unmounts() {
    let bench = Bench::new(Options { rotation: Some(Duration::from_secs(120)), ..Options::default() });
    let (kubelet, volume) = (&bench.kubelet, volume());
    let target = kubelet.target(&volume);
    kubelet.publish(&volume, Some(&class())).await.unwrap();
    assert_eq!(mode(&kubelet.node.metadata(&target.join("user"))), 0o644);
    assert_eq!(mode(&kubelet.node.metadata(&target.join("deep/key"))), 0o400);
    assert_eq!(mode(&kubelet.node.metadata(&target)), 0o1777);
    let names = kubelet.node.list(&target).unwrap();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names[0].starts_with("..2") && names[1..] == ["..data", "deep", "user"], "{names:?}");

    kubelet.publish(&volume, Some(&class())).await.unwrap();
    assert_eq!((bench.calls(), kubelet.driver.counts().gated), (1, 1), "the gate is closed");
    kubelet.node.age(&target, Duration::from_secs(121));
    bench.answers(Err(Status::unknown("vault is away")));
    kubelet.publish(&volume, Some(&class())).await.unwrap();
    assert_eq!((bench.calls(), kubelet.driver.counts().masked), (2, 1));
    assert_eq!(kubelet.file(&volume, "user"), "u1", "a masked error keeps the files");

    bench.answers(Ok(files(&[("user", "u2", 0o600), (".x", "", 0)])));
    kubelet.publish(&volume, Some(&class())).await.unwrap();
    assert_eq!(kubelet.file(&volume, "user"), "u2");
    assert_eq!(kubelet.node.list(&target).unwrap()[2..], [".x", "user"], "`deep` went with its file");
    assert_eq!(mode(&kubelet.node.metadata(&target.join(".x"))), 0, "mode 0 is taken as it is");

    // A descriptor anywhere in the mount keeps it from going, an O_PATH one too: the kernel's doing.
    let folder = target.clone();
    let held = kubelet.node.run(move || {
        use std::os::unix::fs::OpenOptionsExt as _;
        fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(folder).unwrap()
    });
    let refused = kubelet.unpublish(&volume).unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert!(refused.message().contains("EBUSY") || refused.message().contains("busy"), "{refused:?}");
    drop(held);
    kubelet.unpublish(&volume).unwrap();
    assert!(kubelet.node.list(&target).is_err());
    assert!(kubelet.driver.statuses().is_empty());
}

#[tokio::test]
async fn driver_refuses_bad_answers_and_requests() {
    let bench = Bench::new(Options::default());
    let refuse = async |answer, volume: Volume| {
        bench.answers(Ok(answer));
        bench.kubelet.publish(&volume, Some(&class())).await.unwrap_err()
    };
    let none = proto::MountResponse { object_version: Vec::new(), ..files(&[]) };
    assert!(refuse(none, volume()).await.message().contains("missing object versions"));
    for path in ["", "/a", "a/../b", "a//b", "./a", "a/", "..", "..x"] {
        let status = refuse(files(&[("ok", "1", 0o644), (path, "x", 0o644)]), volume()).await;
        assert!(status.message().contains("invalid file path"), "{path}: {status:?}");
    }
    let status = refuse(files(&[("a", "1", 0o644), ("a/b", "2", 0o644)]), volume()).await;
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    let mut writable = volume();
    writable.read_only = false;
    assert_eq!(refuse(files(&[]), writable).await.code(), Code::InvalidArgument);
    let absent = SecretProviderClass::new("nobody", "csi", "[]");
    let status = bench.kubelet.publish(&volume(), Some(&absent)).await.unwrap_err();
    assert!(status.message().contains("provider not found"), "{status:?}");
    // A stale `..data_tmp` of a crashed writer blocks every later write.
    bench.answers(Ok(files(&[("user", "u1", 0o644)])));
    let volume = volume();
    bench.kubelet.publish(&volume, Some(&class())).await.unwrap();
    let target = bench.kubelet.target(&volume);
    bench.kubelet.node.run(move || std::os::unix::fs::symlink("x", target.join("..data_tmp")).unwrap());
    bench.answers(Ok(files(&[("user", "u2", 0o644)])));
    bench.kubelet.publish(&volume, Some(&class())).await.unwrap();
    assert_eq!(bench.kubelet.file(&volume, "user"), "u1");
    assert!(bench.kubelet.driver.masked()[0].message().contains("File exists"));
}

#[tokio::test]
async fn driver_sends_the_attributes_of_1_6_0() {
    let bench = Bench::new(Options { audiences: vec!["vault".into()], ..Options::default() });
    bench.kubelet.force_token(Some("eyJ".into()));
    let class = class().with("objects", "- objectName: \"<a>&b\"\n\u{2028}").with("roleName", "spc");
    let volume = volume().with("roleName", "pod").with("csi.storage.k8s.io/pod.name", "spoofed");
    bench.kubelet.publish(&volume, Some(&class)).await.unwrap();
    let sent = bench.kubelet.driver.last_request().unwrap();
    let expiry = sent.attributes.split("expirationTimestamp\\\":\\\"").nth(1).unwrap()[..20].to_owned();
    let expected = format!(
        concat!(
            r#"{{"csi.storage.k8s.io/ephemeral":"true","csi.storage.k8s.io/pod.name":"pod","#,
            r#""csi.storage.k8s.io/pod.namespace":"ns","csi.storage.k8s.io/pod.uid":"{uid}","#,
            r#""csi.storage.k8s.io/serviceAccount.name":"sa","#,
            r#""csi.storage.k8s.io/serviceAccount.tokens":"#,
            r#""{{\"vault\":{{\"token\":\"eyJ\",\"expirationTimestamp\":\"{expiry}\"}}}}","#,
            r#""objects":"- objectName: \"\u003ca\u003e\u0026b\"\n\u2028","roleName":"pod","#,
            r#""secretProviderClass":"app-secrets"}}"#
        ),
        uid = volume.pod.uid,
        expiry = expiry,
    );
    assert_eq!(sent.attributes, expected);
    assert_eq!((sent.secrets.as_str(), sent.permission.as_str()), ("null", "420"));
    assert!(sent.current_object_version.is_empty());
    assert_eq!(
        go_json(&BTreeMap::from([("k".into(), "\u{8}\u{c}\u{1}\t\u{7f}é".into())])),
        "{\"k\":\"\\b\\f\\u0001\\t\u{7f}é\"}"
    );
    assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
    assert_eq!(rfc3339(1_795_446_000), "2026-11-23T15:00:00Z");
}

/// tonic alone refuses what drivers up to 1.5.6 say: the reason for the listener's shim.
#[tokio::test]
async fn old_drivers_are_refused_by_a_plain_server() {
    let bench = Bench::new(Options { dial: Dial::SocketPath, ..Options::default() });
    let status = bench.kubelet.publish(&volume(), Some(&class())).await.unwrap_err();
    assert!(
        status.message().contains("PROTOCOL_ERROR") || status.message().contains("protocol error"),
        "{status:?}"
    );
    assert_eq!(bench.calls(), 0);
}

/// A driver without rotation calls once; a provider that is away holds the call until the deadline.
#[tokio::test]
async fn driver_without_rotation_and_without_provider() {
    let options = Options { rotation: None, deadline: Duration::from_secs(2), ..Options::default() };
    let bench = Bench::new(options);
    let volume = volume();
    for _ in 0..3 {
        bench.kubelet.publish(&volume, Some(&class())).await.unwrap();
    }
    assert_eq!(bench.calls(), 1);
    let dead = bench.kubelet.node.providers_dir().join("openbao.sock");
    drop(std::os::unix::net::UnixListener::bind(dead).unwrap());
    let class = SecretProviderClass::new("openbao", "csi", "[]");
    let started = std::time::Instant::now();
    let status = bench.kubelet.publish(&volume.clone().named("other"), Some(&class)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(bench.kubelet.driver.counts().provider_calls, 1, "no call left");
}

#[tokio::test]
async fn node_mounts_reach_a_slave_and_nobody_else() {
    let node = Node::new();
    let watch = |propagation| {
        node.spawn("watcher", propagation, "/bin/sh".as_ref(), |command| {
            command.args([
                "-c",
                "echo ready; while :; do grep /kubelet/ /proc/self/mountinfo; sleep 0.02; done",
            ]);
        })
    };
    let (slave, private) = (watch(Propagation::HostToContainer), watch(Propagation::None));
    slave.logged("ready", crate::support::SOON).await;
    private.logged("ready", crate::support::SOON).await;
    let target = node.kubelet_root().join("pods/p/mount");
    node.create_dir(&target).unwrap();
    assert!(!node.is_mount_point(&target).unwrap());
    node.mount_tmpfs(&target).unwrap();
    assert!(node.is_mount_point(&target).unwrap());
    slave.logged("pods/p/mount", crate::support::SOON).await;
    let line = slave.log().lines().find(|line| line.contains("pods/p/mount")).unwrap().to_owned();
    assert!(line.contains("master:") && line.contains(" - tmpfs tmpfs rw"), "{line}");
    assert!(!private.log().contains("pods/p/mount"));
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("pods/p/mount"));
    let file = target.join("f");
    node.run(move || fs::write(file, "secret").unwrap());
    assert!(!Node::on_disk_beneath(node.root()).iter().any(|path| path.ends_with("f")));
    node.unmount(&target).unwrap();
    assert!(!node.is_mount_point(&target).unwrap());
}

#[tokio::test]
async fn bao_logs_in_through_token_review() {
    let mut cluster = Cluster::start();
    let bao = Bao::dev().await;
    stage::configure(&bao, &cluster).await;
    bao.enable_jwt_auth("jwt", &cluster).await;
    let role = json!({"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
        "bound_subject": "system:serviceaccount:prod:app", "token_policies": ["app"]});
    bao.write("auth/jwt/role/app", role).await;
    let pod = Pod::new("prod", "app-0", "app");
    let hour = Duration::from_secs(3600);
    let login = async |mount: &str, role: &str, jwt: String| {
        let anonymous = bao.admin().with_token("");
        let body = json!({"role": role, "jwt": jwt});
        let answer = anonymous.call(reqwest::Method::POST, &format!("auth/{mount}/login"), Some(body)).await;
        (answer.status, answer.body["errors"][0].as_str().unwrap_or_default().to_owned(), answer.body)
    };
    let token = cluster.token(&pod, &["vault"], hour);
    let (status, _, body) = login("kubernetes", "app", token.clone()).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["auth"]["metadata"]["service_account_uid"], cluster.account_uid(&pod));
    assert_eq!(cluster.reviews(), 1);
    let client = bao.admin().with_token(body["auth"]["client_token"].as_str().unwrap());
    assert_eq!(client.read("secret/data/app/db").await["data"]["data"]["username"], "u");
    assert_eq!(login("jwt", "app", token.clone()).await.0, 200);

    let mut expired = cluster.claims(&pod, &["vault"], hour);
    expired["exp"] = json!(expired["iat"].as_u64().unwrap() - 600);
    let mut just_expired = expired.clone();
    just_expired["exp"] = json!(expired["iat"].as_u64().unwrap() - 10);
    let foreign = sign_with_foreign_key(&cluster.claims(&pod, &["vault"], hour));
    let gone = Pod::new("prod", "app-1", "app");
    cluster.delete(&gone);
    let other = Pod::new("dev", "app-0", "app");
    for (jwt, status, text) in [
        (cluster.token(&pod, &["zzz"], hour), 403, "invalid audience (aud) claim"),
        (sign(&expired), 403, "token is expired"),
        (sign(&just_expired), 403, "permission denied"),
        (foreign, 403, "permission denied"),
        (cluster.token(&gone, &["vault"], hour), 403, "permission denied"),
        (cluster.token(&other, &["vault"], hour), 403, "namespace not authorized"),
    ] {
        let answer = login("kubernetes", "app", jwt).await;
        assert!(answer.0 == status && answer.1.contains(text), "{text}: {answer:?}");
    }
    for fault in
        [ReviewFault::InternalError, ReviewFault::Forbidden, ReviewFault::Reset, ReviewFault::Unauthorized]
    {
        cluster.fail_reviews(Some(fault));
        let answer = login("kubernetes", "app", token.clone()).await;
        assert_eq!((answer.0, answer.1.as_str()), (403, "permission denied"), "{fault:?}");
    }
    cluster.fail_reviews(None);
    cluster.down();
    assert_eq!(login("kubernetes", "app", token.clone()).await.0, 403);
    cluster.up();
    assert_eq!(login("kubernetes", "app", token).await.0, 200);
    assert_ne!(API_AUDIENCE, "vault");
    bao.seal().await;
    assert_eq!(login("kubernetes", "app", "x".into()).await.0, 503);
    bao.unseal().await;
}

#[tokio::test]
async fn bao_in_its_other_shapes() {
    let tls = Bao::start(Shape::DevTls).await;
    assert!(tls.url().starts_with("https://"));
    tls.put_secret("x", json!({"a": 1})).await;
    tls.write("sys/namespaces/team-a", json!({})).await;
    let team = tls.in_namespace("team-a");
    team.write("sys/mounts/kv", json!({"type": "kv"})).await;
    team.write("kv/x", json!({"n": 7})).await;
    assert_eq!(tls.read("team-a/kv/x").await["data"]["n"], 7);
    drop(tls);
    let mut raft = Bao::start(Shape::Raft).await;
    raft.put_secret("x", json!({"a": "kept"})).await;
    raft.crash();
    raft.restart().await;
    assert_eq!(raft.read("secret/data/x").await["data"]["data"]["a"], "kept");
}

#[tokio::test]
async fn proxy_counts_and_breaks() {
    let bao = Bao::dev().await;
    let mut proxy = Proxy::start(bao.url());
    let base = proxy.url();
    let get = async |path: &str| {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let url = format!("{base}/v1/{path}");
        let response = client.get(url).header("x-vault-token", "root").send().await?;
        Ok::<_, reqwest::Error>((response.status().as_u16(), response.bytes().await?.len()))
    };
    proxy.rule(|_| Fault::Delay(Duration::from_millis(100)));
    get("sys/health?x=1").await.unwrap();
    let (one, two) = tokio::join!(get("secret/data/ready"), get("sys/mounts"));
    assert_eq!((one.unwrap().0, two.unwrap().0), (200, 200));
    assert_eq!((proxy.count(), proxy.rounds()), (3, 2), "{:?}", proxy.requests());
    assert_eq!(proxy.seen()[0].query.as_deref(), Some("x=1"));
    proxy.forget();
    let health = get("sys/health").await.unwrap().1;
    proxy.rule(|_| Fault::CutAfter(10));
    assert!(get("sys/health").await.is_err());
    proxy.rule(|_| Fault::Drip(Duration::from_micros(10)));
    assert_eq!(get("sys/health").await.unwrap().1, health);
    proxy.rule(|_| Fault::Answer(Reply::json(429, &json!({"errors": ["slow down"]}))));
    assert_eq!(get("sys/health").await.unwrap().0, 429);
    proxy.rule(|_| Fault::Answer(Reply::Close));
    assert!(get("sys/health").await.is_err());
    proxy.rule(|_| Fault::Answer(Reply::Huge { bytes: 10 << 20 }));
    assert!(get("sys/health").await.unwrap().1 > 10 << 20);
    proxy.heal();
    assert_eq!(proxy.count(), 6);
    let connections = proxy.connections();
    proxy.down();
    assert!(get("sys/health").await.is_err_and(|error| error.is_connect()));
    proxy.up();
    assert_eq!(get("sys/health").await.unwrap().0, 200);
    assert_eq!(proxy.connections(), connections + 1);
}

#[tokio::test]
async fn postgres_mints_and_drops_roles() {
    let (bao, postgres) = (Bao::dev().await, Postgres::start().await);
    postgres.configure(&bao, "app", "1h", "24h").await;
    let minted = bao.read("database/creds/app").await;
    let (user, password) =
        (minted["data"]["username"].as_str().unwrap(), minted["data"]["password"].as_str().unwrap());
    assert_eq!(postgres.minted_roles(), [user]);
    assert_eq!(postgres.psql(user, password, "select 1").unwrap(), "1");
    assert!(postgres.psql(user, "wrong", "select 1").unwrap_err().contains("password authentication failed"));
    bao.write("sys/leases/revoke", json!({"lease_id": minted["lease_id"]})).await;
    until("the role is dropped", crate::support::SOON, async || {
        postgres.minted_roles().is_empty().then_some(())
    })
    .await;
}
