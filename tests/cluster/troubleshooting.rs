//! docs/troubleshooting.md: every message there was said by a real process here, and every section has one.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::health::Stopped;
use crate::support::{
    SOON,
    authority::Authority,
    cluster::{
        self, Pod, ReviewFault,
        api::{ApiFault, Right},
        sign,
    },
    driver::{PublishRequest, SecretProviderClass, mount_request},
    http::Reply,
    kubelet::{Options, Volume},
    leasehold::{Launch, Leasehold, binary},
    node::{Node, Propagation},
    page,
    postgres::Postgres,
    process::output,
    provider_client::{Dial, ProviderClient},
    proxy::{Fault, Proxy},
    stage::{Stage, class},
    until,
};

/// Sections whose symptom is in somebody else's words or in nobody's, and why they stand in the page all the same.
const WITHOUT_A_MESSAGE: [(&str, &str); 2] = [
    (
        "A pod stays in ContainerCreating",
        "the words of the kubelet and of the driver, which are emulated here",
    ),
    ("A value does not change", "what the class or the pod asks for; nothing is wrong, so nothing is said"),
];

#[test]
fn the_comparison_can_fail() {
    assert!(page::said("x login at a as role b on c: gone; do d", "login at … on …: gone; do …"));
    assert!(!page::said("x login at a as role b on c: here; do d", "login at … on …: gone; do …"));
    assert!(!page::said("one\ntwo", "one … two"), "parts of one line");
    assert!(!page::said("two one", "one … two"), "in their order");
    assert!(page::messages().len() > 70, "the page has its messages in text blocks");
}

/// Waits for the driver no longer than this: faults that pass are tried again until then.
fn hasty() -> Options {
    Options { deadline: Duration::from_secs(12), ..Options::default() }
}

fn object(fields: &str) -> SecretProviderClass {
    class().with("objects", &format!("- {{objectName: a, {fields}}}"))
}

/// What the pod's events would say.
async fn refused(stage: &Stage, class: &SecretProviderClass) -> String {
    refused_for(stage, &stage.volume(), class).await
}

async fn refused_for(stage: &Stage, volume: &Volume, class: &SecretProviderClass) -> String {
    match stage.kubelet.publish(volume, Some(class)).await {
        Ok(()) => format!("{}: was mounted\n", class.parameters["objects"]),
        Err(status) => format!("{}\n", status.message()),
    }
}

fn role(account: &str, namespace: &str, audience: &str) -> Value {
    json!({"bound_service_account_names": [account], "bound_service_account_namespaces": [namespace],
        "audience": audience, "token_policies": ["app"]})
}

/// A Mount as the driver sends it, for a pod of this stage.
fn call(stage: &Stage, volume: &Volume, class: &SecretProviderClass) -> crate::support::proto::MountRequest {
    let token = stage.cluster.token(&volume.pod, &["vault"], Duration::from_secs(3600));
    let request = PublishRequest {
        pod: volume.pod.clone(),
        volume: volume.name.clone(),
        attributes: volume.attributes.clone(),
        tokens: Some(json!({"vault": {"token": token}}).to_string()),
        tokens_in_secrets: false,
        secrets: std::collections::BTreeMap::new(),
        read_only: true,
    };
    mount_request(&request, class, &stage.kubelet.target(volume))
}

/// Classes and tokens that are wrong.
async fn classes_and_tokens() -> String {
    let stage = Stage::start().await;
    let mut heard = String::new();
    let db = "secretPath: secret/data/app/db";
    let wrong = [
        class().without("roleName"),
        class().with("objects", "[]"),
        class().with("objects", &format!("- {{objectName: a, {db}}}\n- {{objectName: a, {db}}}")),
        class().with("vaultAuthMountPath", "a").with("vaultKubernetesMountPath", "b"),
        class().with("vaultSkipTLSVerify", "maybe"),
        object("secretPath: a/../b"),
        object(&format!("{db}, secretKey: nope")),
        object(&format!("{db}, secretKey: password, encoding: base64")),
        class().with("fileOwner", "pod"),
        class().with("vaultAddress", "http://198.51.100.1:8200"),
        class().with("unknownParameter", "x").with("objects", &format!("- {{objectName: a, {db}, nope: 1}}")),
    ];
    for class in &wrong {
        heard += &refused(&stage, class).await;
    }
    let volume = stage.volume();
    let mut claims = stage.cluster.claims(&volume.pod, &["vault"], Duration::from_secs(3600));
    claims["exp"] = json!(cluster::unix_now() - 100);
    let other = Pod::new("prod", "other", "app");
    for token in [sign(&claims), stage.cluster.token(&other, &["vault"], Duration::from_secs(3600))] {
        stage.kubelet.force_token(Some(token));
        heard += &refused_for(&stage, &volume, &class()).await;
    }
    stage.kubelet.force_token(None);
    // A CSIDriver without podInfoOnMount.
    let mut request = call(&stage, &volume, &class());
    let mut attributes: serde_json::Map<String, Value> = serde_json::from_str(&request.attributes).unwrap();
    attributes.retain(|name, _| !name.starts_with("csi.storage.k8s.io/pod."));
    request.attributes = Value::from(attributes).to_string();
    let client = ProviderClient::new(&stage.leasehold.socket("vault"), Dial::Localhost);
    heard += client.mount(&request, Instant::now() + SOON, || {}).await.err().unwrap().message();
    heard + "\n" + &stage.leasehold.log()
}

/// What Vault refuses.
async fn refusals() -> String {
    let stage = Stage::start_with(hasty(), |_| {}).await;
    let (bao, mut heard) = (&stage.bao, String::new());
    let policy = ["secret/*", "nomount/*", "identity/lookup/entity"]
        .map(|path| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n"))
        .concat();
    bao.put_policy("app", &policy).await;
    bao.write("auth/kubernetes/role/other-account", role("other", "prod", "vault")).await;
    bao.write("auth/kubernetes/role/other-namespace", role("app", "other", "vault")).await;
    bao.write("auth/kubernetes/role/other-audience", role("app", "prod", "elsewhere")).await;
    bao.write("sys/auth/bare", json!({"type": "kubernetes"})).await;
    bao.write("auth/bare/role/app", role("app", "prod", "vault")).await;
    bao.put_secret("app/gone", json!({"a": "b"})).await;
    bao.delete("secret/data/app/gone").await;
    for role in ["other-account", "other-namespace", "other-audience", "none"] {
        heard += &refused(&stage, &class().with("roleName", role)).await;
    }
    heard += &refused(&stage, &class().with("vaultAuthMountPath", "bare")).await;
    for path in [
        "sys/raw/x",
        "secret/data/app/none",
        "secret/app/db",
        "nomount/a",
        "identity/lookup/entity",
        "secret/data/app/gone",
    ] {
        heard += &refused(&stage, &object(&format!("secretPath: {path}"))).await;
    }
    // Another identity, whose session is not shared yet.
    stage.cluster.fail_reviews(Some(ReviewFault::Forbidden));
    bao.write("auth/kubernetes/role/late", role("app", "prod", "vault")).await;
    heard += &refused(&stage, &class().with("roleName", "late")).await;
    bao.seal().await;
    heard + &refused(&stage, &class()).await
}

/// Servers that do not answer, or not as they should.
async fn servers() -> String {
    let authority = Authority::new();
    let node = Node::new();
    let ca = node.root().join("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    // Names of the test's own, and no name server.
    let (hosts, switch) = (node.root().join("hosts"), node.root().join("nsswitch.conf"));
    fs::write(&hosts, "127.0.0.1 vault.leasehold.test\n").unwrap();
    fs::write(&switch, "hosts: files\n").unwrap();
    node.run(move || {
        for (file, place) in [(hosts, "/etc/hosts"), (switch, "/etc/nsswitch.conf")] {
            mount(Some(&file), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
    });
    // Takes no connection any more: its queue is full.
    let full = tokio::net::TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
    }
    let names = ["http://none.leasehold.test:8200", "http://vault.leasehold.test:8200"];
    let stuck = format!("http://{address}");
    let folder = node.root().to_owned();
    let mut stage = Stage::start_on(node, hasty(), |launch| {
        let addresses =
            names.into_iter().map(str::to_owned).chain([stuck.clone(), "https://127.0.0.1".to_owned()]);
        launch.flags.extend(addresses.map(|it| format!("--allow-vault-address={it}")));
        launch.flags.push(format!("--allow-tls-dir={}", folder.display()));
    })
    .await;
    let mut heard = String::new();
    let secure = Proxy::start_with(stage.bao.url(), Some(authority.valid()));
    let at = |address: &str| class().with("vaultAddress", address);
    let secure = format!("https://127.0.0.1:{}", secure.port());
    let trusting = at(&secure).with("vaultCACertPath", &ca.display().to_string());
    let plain = format!("https://127.0.0.1:{}", stage.proxy.port());
    let allow = [secure.clone(), plain.clone()].map(|it| format!("--allow-vault-address={it}"));
    stage.leasehold.restart_with(|launch| launch.flags.extend(allow)).await;
    let classes = [
        at(names[0]),
        at(names[1]),
        at(&stuck),
        at(&secure),
        trusting.clone().with("vaultTLSServerName", "other.example"),
        at(&plain),
        at(&secure).with("vaultCACertPath", &folder.join("missing.pem").display().to_string()),
    ];
    let all = classes.iter().map(|class| refused(&stage, class));
    heard += &futures_util::future::join_all(all).await.concat();
    for status in [429, 500] {
        let answer = Reply::json(status, &json!({"errors": ["no"]}));
        stage.proxy.rule(move |seen| match seen.path.starts_with("secret/") {
            true => Fault::Answer(answer.clone()),
            false => Fault::Pass,
        });
        heard += &refused(&stage, &class()).await;
    }
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    stage.proxy.rule(move |_| Fault::Hold(Arc::clone(&gate)));
    heard += &refused(&stage, &class()).await;
    stage.proxy.down();
    heard += &refused(&stage, &class()).await;
    drop((full, waiting));
    heard + &stage.leasehold.log()
}

/// What the operator's rules refuse.
async fn policy() -> String {
    let rules = "rules: [{name: mine, namespaces: [prod], paths: [secret/data/app/api]}]";
    let stage = Stage::start_with(Options::default(), |launch| launch.policy = Some(rules.to_owned())).await;
    let stranger = Volume::new(&Pod::new("other", "app-0", "app"));
    refused(&stage, &class()).await + &refused_for(&stage, &stranger, &class()).await
}

/// A driver that is old and brings no token, a node without propagation and without a tmpfs for state.
async fn driver_and_node() -> String {
    let node = Node::new();
    node.unmount(&node.root().join("run")).unwrap();
    let options = Options { dial: Dial::SocketPath, audiences: Vec::new(), ..Options::default() };
    let stage = Stage::start_on(node, options, |launch| launch.propagation = Propagation::None).await;
    let heard = refused(&stage, &class()).await + &stage.leasehold.log();
    let stage = Stage::start_with(Options::default(), |launch| launch.propagation = Propagation::None).await;
    stage.bao.put_secret("app/large", json!({"value": "x".repeat(900_000)})).await;
    let large = (0..5).map(|number| {
        format!("- {{objectName: a{number}, secretPath: secret/data/app/large, secretKey: value}}\n")
    });
    let large = class().with("objects", &large.collect::<String>());
    heard
        + &refused(&stage, &large).await
        + &refused(&stage, &class().with("fileOwner", "5")).await
        + &stage.leasehold.log()
}

/// What the API server refuses, and a driver that does not come again.
async fn api_server() -> String {
    let options = Options { audiences: Vec::new(), ..hasty() };
    let flags = ["--pod-events", "--token-request", "--read-pods", "--expect-republish=1s"];
    let (stage, api) = Stage::start_with_api(options, &flags).await;
    let owned = class().with("fileOwner", "pod");
    let mut heard = refused(&stage, &class()).await + &refused(&stage, &owned).await;
    api.grant(&[Right::CreateTokens, Right::GetPods]);
    let volume = stage.volume();
    let mounting = |user: i64| {
        json!({"name": format!("c{user}"), "securityContext": {"runAsUser": user},
            "volumeMounts": [{"name": "secrets", "mountPath": "/s"}]})
    };
    for spec in [json!({"containers": [{"name": "app"}]}), json!({"containers": [mounting(1), mounting(2)]})]
    {
        api.put_pod(&volume.pod, spec);
        heard += &refused_for(&stage, &volume, &owned).await;
    }
    stage.mount(&volume, &class()).await;
    stage.mount(&volume, &class().with("roleName", "")).await;
    stage.leasehold.logged("events on pods cannot be written").await;
    stage.leasehold.logged("has not called again").await;
    // One pod's owner is asked for and not told: its Mount, and then one too many of its namespace.
    api.fail(Some(ApiFault::Slow(Duration::from_secs(3600))));
    heard += &refused(&stage, &owned).await;
    let client = ProviderClient::new(&stage.leasehold.socket("vault"), Dial::Localhost);
    let mut calls: FuturesUnordered<_> = (0..520)
        .map(|_| {
            let (client, request) = (client.clone(), call(&stage, &stage.volume(), &owned));
            async move { client.mount(&request, Instant::now() + SOON, || {}).await }
        })
        .collect();
    heard += calls.next().await.unwrap().err().unwrap().message();
    heard + "\n" + &stage.leasehold.log()
}

/// A launch that has the flags and nothing else of its own.
fn flagged(flags: &[&str]) -> Launch {
    let mut launch = Launch::new("http://127.0.0.1:1");
    launch.names.clear();
    launch.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    launch
}

/// Processes that do not start.
async fn starts() -> String {
    let node = Arc::new(Node::new());
    let mut heard = String::new();
    let mut policy = flagged(&[]);
    policy.policy = Some("rules:\n- {namespaces: 5}\n".to_owned());
    for launch in [
        flagged(&["--endpoint=/run/x.sock"]),
        flagged(&["--policy=/nonexistent"]),
        flagged(&["--endpoint=/nonexistent/vault.sock"]),
        flagged(&["--pod-events"]),
        policy,
    ] {
        heard += &Leasehold::start_refused(&node, &launch).await.1;
    }
    let nowhere =
        output(Command::new(binary()).args(["provider", "--health-addr=nowhere"]).env_clear()).unwrap();
    heard += &String::from_utf8_lossy(&nowhere.stderr);
    let state = node.state_dir();
    node.run(move || {
        fs::remove_dir_all(&state).unwrap();
        fs::write(state, "").unwrap();
    });
    heard + &Leasehold::start_refused(&node, &flagged(&["--endpoint=/run/vault.sock"])).await.1
}

/// Others who want what is leasehold's: a provider of its name, a caller that is not the driver, a second leasehold, a
/// disk that is full.
async fn neighbours() -> String {
    let node = Node::new();
    let run = node.root().join("run");
    node.unmount(&run).unwrap();
    node.run(move || {
        let none = None::<&str>;
        mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=256k")).unwrap();
        mount(Some("tmpfs"), "/etc", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::create_dir_all("/etc/kubernetes/secrets-store-csi-providers").unwrap();
        fs::write("/etc/kubernetes/secrets-store-csi-providers/vault.sock", "").unwrap();
    });
    let squatter = UnixListener::bind(node.providers_dir().join("openbao.sock")).unwrap();
    let mut stage = Stage::start_on(node, Options::default(), |launch| launch.without_chown = true).await;
    // It accepts connections as well, so those say nothing yet.
    stage.leasehold.logged("taking over a socket that somebody serves").await;
    stage.leasehold.is_ready().await;
    drop(squatter);
    let mut heard = refused(&stage, &class().with("fileOwner", "10001")).await;
    stage.mount(&stage.volume(), &class()).await;
    // As anybody on the node whom the modes of the folders let through.
    let socket = stage.leasehold.socket("vault");
    for path in [stage.node.root().to_owned(), stage.node.providers_dir(), socket.clone()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let knock = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)";
    let mut knocking = Command::new("setpriv");
    knocking
        .args(["--reuid=65532", "--regid=65532", "--clear-groups", "/usr/bin/python3", "-c", knock])
        .arg(&socket);
    assert!(output(&mut knocking).unwrap().status.success(), "the connection is closed");
    let mut second = Launch::new(&stage.proxy.url());
    second.names = vec!["leasehold".to_owned()];
    let second = Leasehold::start_waiting(&stage.node, second);
    second.logged("waiting for it to end").await;
    heard += &second.log();
    // No room for another record.
    let fill = stage.node.root().join("run/fill");
    stage.node.run(move || {
        let mut size = 256 << 10;
        while size > 0 {
            let mut whole = fs::read(&fill).unwrap_or_default();
            whole.resize(whole.len() + size, 0);
            if fs::write(&fill, whole).is_err() {
                size /= 2;
            }
        }
    });
    let _ = stage.kubelet.publish(&stage.volume(), Some(&class())).await;
    let fill = stage.node.root().join("run/fill");
    stage.node.run(move || fs::remove_file(fill).unwrap());
    let records: PathBuf = stage.node.state_dir().join("volumes");
    stage.node.run(move || {
        for record in fs::read_dir(records).unwrap() {
            fs::write(record.unwrap().path(), "{").unwrap();
        }
    });
    drop(second);
    stage.leasehold.restart().await;
    heard + &stage.leasehold.log()
}

/// A node that swaps, without the sandbox; a worker that is stopped.
async fn wedged() -> String {
    let node = super::doctor::swapping("max\n");
    let stage = Stage::start_on(node, Options::default(), |launch| {
        launch.flags.extend(["--no-landlock", "--no-seccomp"].map(str::to_owned));
    })
    .await;
    let before = stage.leasehold.http_get("/readyz").await.1;
    let stopped = Stopped::threads(stage.leasehold.pid(), |name| name.starts_with("tokio-"));
    let livez = until("/livez tells", SOON, async || {
        let (status, text) = stage.leasehold.http_get("/livez").await;
        (status == 503).then_some(text)
    })
    .await;
    drop(stopped);
    before + &livez + &stage.leasehold.log()
}

/// Leases that cannot be given back, that cannot be renewed, and that end; what is owed afterwards; edits that are
/// refused.
async fn leases() -> String {
    let flags = ["--pod-events"];
    let ((mut stage, api), postgres) =
        tokio::join!(Stage::start_with_api(Options::default(), &flags), Postgres::start());
    api.grant(&[Right::CreateEvents]);
    postgres.configure(&stage.bao, "app", "4s", "8s").await;
    let policy = ["database/creds/app", "secret/data/app/*"]
        .map(|path| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n"));
    stage.bao.put_policy("app", &policy.concat()).await;
    let mut long = role("app", "prod", "vault");
    (long["token_ttl"], long["token_max_ttl"]) = ("48h".into(), "96h".into());
    stage.bao.write("auth/kubernetes/role/app", long).await;
    let leased = object("secretPath: database/creds/app, secretKey: password, overlap: 1s");
    let volume = stage.volume();
    stage.mount(&volume, &leased).await;
    stage.leasehold.logged("left to expire").await;

    let metric = async |stage: &Stage, line: &str| {
        until(line, Duration::from_secs(60), async || {
            let text = stage.leasehold.http_get("/metrics").await.1;
            text.contains(line).then_some(text)
        })
        .await
    };
    stage.proxy.down();
    stage.leasehold.logged("expired: ").await;
    metric(&stage, "leasehold_volume_states{state=\"expired\"} 1").await;
    let mut heard = metric(&stage, "leasehold_stale_volumes 1").await;
    until("an event", SOON, async || {
        api.reasons(&volume.pod).iter().any(|it| it == "CredentialExpired").then_some(())
    })
    .await;
    // The first of a streak: the second end of it is not told.
    let told = api.reasons(&volume.pod);
    assert_eq!(told.iter().filter(|it| *it == "CredentialExpired").count(), 1, "{told:?}");
    let note = api.events().into_iter().find(|it| it["reason"] == "CredentialExpired").unwrap();
    assert_eq!((note["type"].as_str(), note["action"].as_str()), (Some("Warning"), Some("Renew")));
    assert!(note["note"].as_str().unwrap().starts_with("app-secrets: expired: "), "{note}");
    heard += &format!("{} {}\n", note["reason"].as_str().unwrap(), note["note"].as_str().unwrap());
    stage.kubelet.unpublish(&volume).unwrap();
    heard += &metric(&stage, "leasehold_revocations_owed{kind=\"session\"} 1").await;
    stage.proxy.up();

    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    stage.mount(&volume, &class().with("roleName", "")).await;
    let rules = "rules: [{namespaces: [other]}]";
    stage.leasehold.restart_with(|launch| launch.policy = Some(rules.to_owned())).await;
    until("policy refuses", SOON, async || {
        stage.mount(&volume, &class()).await;
        stage.leasehold.log().contains("refused by policy").then_some(())
    })
    .await;
    heard + &stage.leasehold.log()
}

/// A volume whose token ends and whose driver brings no other; an operator who named no server.
async fn ends() -> String {
    let options = Options { token_lifetime: Duration::from_secs(30), ..Options::default() };
    let stage = Stage::start_with(options, |_| {}).await;
    stage.mount(&stage.volume(), &class()).await;
    let homeless = Stage::start_with(Options::default(), |launch| launch.vault_addr = String::new()).await;
    let heard = refused(&homeless, &class()).await;
    let line = "leasehold_nearest_login_end_seconds -";
    heard
        + &until(line, Duration::from_secs(90), async || {
            let text = stage.leasehold.http_get("/metrics").await.1;
            text.contains(line).then_some(text)
        })
        .await
}

/// A scenario on a thread of its own: some wait by blocking it.
fn begin<F: Future<Output = String>>(scenario: impl FnOnce() -> F + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(scenario())
    })
}

#[test]
fn messages_of_the_page_are_the_programs() {
    let scenarios = [
        begin(classes_and_tokens),
        begin(refusals),
        begin(servers),
        begin(policy),
        begin(driver_and_node),
        begin(api_server),
        begin(starts),
        begin(neighbours),
        begin(wedged),
        begin(leases),
        begin(ends),
    ];
    let heard: String = scenarios.map(|scenario| scenario.join().unwrap()).concat();
    let messages = page::messages();
    let elsewhere = |message: &str| page::ELSEWHERE.iter().any(|(known, _)| *known == message);
    let unsaid: Vec<_> =
        messages.iter().filter(|(_, message)| !page::said(&heard, message) && !elsewhere(message)).collect();
    if let Some(path) = std::env::var_os("LEASEHOLD_HEARD") {
        fs::write(path, &heard).unwrap();
    }
    assert!(unsaid.is_empty(), "nothing said these: {unsaid:#?}");
    let shown: BTreeSet<&str> = messages.iter().map(|(section, _)| section.as_str()).collect();
    let bare: Vec<_> = page::sections()
        .into_iter()
        .filter(|section| !shown.contains(section.as_str()))
        .filter(|section| !WITHOUT_A_MESSAGE.iter().any(|(known, _)| known == section))
        .collect();
    assert!(bare.is_empty(), "sections without a message that was brought about: {bare:?}");
}

/// What no scenario here brings about, the test named with it does.
#[test]
fn the_rest_is_brought_about_elsewhere() {
    for (name, (message, file)) in ["SILENT", "PANIC", "FAILED_INSIDE"].into_iter().zip(page::ELSEWHERE) {
        let text = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        assert!(
            text.contains(&format!("brought_about(page::{name}")),
            "{file} does not bring about {message:?}"
        );
    }
}
