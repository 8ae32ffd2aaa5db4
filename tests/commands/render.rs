//! `leasehold render`, against a real server.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{
    leasehold,
    support::{
        SOON,
        bao::{Bao, REVOCATION, Shape},
        cluster::{Cluster, Pod},
        postgres::Postgres,
        proxy::{Fault, Proxy},
        stage::configure,
        temp_dir, until,
    },
    told,
};

const CANARY: &str = "canary-4c1d-value";

/// A server, a token in a file, and a folder for manifests.
struct Bench {
    proxy: Proxy,
    bao: Bao,
    _cluster: Arc<Cluster>,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let cluster = Arc::new(Cluster::start());
        let bao = Bao::start(Shape::Dev).await;
        configure(&bao, &cluster).await;
        bao.put_secret("app/db", json!({"username": "u", "password": CANARY})).await;
        let dir = temp_dir();
        let token = cluster.token(&Pod::new("prod", "app-0", "app"), &["vault"], Duration::from_secs(3600));
        fs::write(dir.path().join("token"), token + "\n").unwrap();
        let proxy = Proxy::start(bao.url());
        Self { proxy, bao, _cluster: cluster, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A manifest with these objects.
    fn manifest(&self, objects: &str) -> String {
        let mut text = String::from(
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
             metadata: {name: app-secrets}\nspec:\n  provider: vault\n  parameters:\n    roleName: app\n    objects: |\n",
        );
        objects.trim().lines().for_each(|line| text.push_str(&format!("      {line}\n")));
        let path = self.path("class.yaml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, manifest: &str, arguments: &[&str]) -> std::process::Command {
        let mut command = leasehold(&["render", manifest, "--vault-addr", &self.proxy.url()]);
        command.arg("--target").arg(self.path("out")).args(arguments);
        if !arguments.contains(&"--token-file") {
            command.arg("--token-file").arg(self.path("token"));
        }
        command
    }

    async fn render(&self, manifest: &str, arguments: &[&str]) -> (i32, String, String) {
        let mut command = self.command(manifest, arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let (code, out, error) = told(output);
        assert_eq!(self.sessions().await, 0, "a session is left behind: {out}{error}");
        (code, out, error)
    }

    /// Tokens that the auth mount gave, of which none should be left.
    async fn sessions(&self) -> usize {
        // The root token is the operator's.
        self.bao.token_count().await - 1
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

const OBJECTS: &str = "
- {objectName: username, secretPath: secret/data/app/db, secretKey: username}
- {objectName: sub/password, secretPath: secret/data/app/db, secretKey: password, filePermission: 0400}
- {objectName: key, secretPath: secret/data/app/api, secretKey: key}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn render_shows_what_would_be_and_writes_only_when_told() {
    let bench = Bench::start().await;
    let manifest = bench.manifest(OBJECTS);
    let out = bench.path("out");
    let (code, text, error) = bench.render(&manifest, &[]).await;
    assert_eq!((code, error.as_str()), (0, ""), "{text}");
    let mut shown = lines(&text);
    // The order of reads is that of their digests.
    shown[2..4].sort();
    let target = out.display();
    assert_eq!(
        shown,
        [
            "SecretProviderClass app-secrets (provider vault), as ServiceAccount app in namespace prod, pod app-0",
            &format!(
                "login POST auth/kubernetes/login, role app, audience vault, at {}: a session for 3600 s, renewable",
                bench.proxy.url()
            ),
            "read GET secret/data/app/api: version 1, no lease",
            "read GET secret/data/app/db: version 2, no lease",
            "",
            "FILE MODE BYTES VERSION FROM",
            &format!("{target}/username 0644 1 2 GET secret/data/app/db key username"),
            &format!("{target}/sub/password 0400 {} 2 GET secret/data/app/db key password", CANARY.len()),
            &format!("{target}/key 0644 2 1 GET secret/data/app/api key key"),
            "the values are not shown: --show-values shows them",
            "",
            "nothing was written: --write writes the files",
            "session revoked, with every lease made in it",
        ]
    );
    assert!(!text.contains(CANARY) && !out.exists());
    let requests = bench.proxy.requests();
    let reads = requests.iter().filter(|request| request.starts_with("GET secret/")).count();
    assert_eq!(reads, 2, "one for each distinct request: {requests:?}");
    assert!(requests.last().unwrap().ends_with("auth/token/revoke-self"), "{requests:?}");

    let (code, text, _) = bench.render(&manifest, &["--show-values", "--write"]).await;
    assert!(code == 0 && text.contains(&format!("--- {target}/sub/password\n{CANARY}\n")), "{text}");
    assert_eq!(fs::read_to_string(out.join("sub/password")).unwrap(), CANARY);
    for (path, mode) in [("sub/password", 0o600), ("username", 0o600), ("sub", 0o700), ("", 0o700)] {
        assert_eq!(fs::metadata(out.join(path)).unwrap().permissions().mode() & 0o7777, mode, "{path:?}");
    }
    bench.proxy.forget();
    let (code, _, error) = bench.render(&manifest, &["--write"]).await;
    assert!(code == 1 && error.contains("is not empty"), "{error}");
    assert_eq!(bench.proxy.requests(), [""; 0], "found before anybody was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn render_mints_nothing_unless_told_and_gives_it_back_then() {
    let bench = Bench::start().await;
    let postgres = Postgres::start().await;
    postgres.configure(&bench.bao, "app", "1h", "24h").await;
    let policy = "path \"secret/data/app/*\" { capabilities = [\"read\", \"update\", \"create\"] }\n\
                  path \"database/creds/app\" { capabilities = [\"read\"] }";
    bench.bao.put_policy("app", policy).await;
    let manifest = bench.manifest(
        "
- {objectName: user, secretPath: database/creds/app, secretKey: username}
- {objectName: pass, secretPath: database/creds/app, secretKey: password}
- {objectName: made, secretPath: secret/data/app/made, method: PUT, secretArgs: {data: {a: b}}}
- {objectName: key, secretPath: secret/data/app/api, secretKey: key}
",
    );
    let (code, text, error) = bench.render(&manifest, &[]).await;
    assert_eq!(code, 0, "{text}{error}");
    for line in [
        "skipped  GET database/creds/app: a read from a secret engine of type database makes a lease; --allow-writes makes it",
        "skipped  PUT secret/data/app/made: a PUT may do something; --allow-writes makes it",
        "missing  user: its request was skipped",
        "missing  made: its request was skipped",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
    let minted = |requests: Vec<String>| requests.iter().any(|it| it == "GET database/creds/app");
    assert!(!minted(bench.proxy.requests()) && postgres.minted_roles().is_empty());

    let (code, text, error) = bench.render(&manifest, &["--allow-writes", "--write"]).await;
    assert_eq!(code, 0, "{text}{error}");
    assert!(text.contains("read     GET database/creds/app: a lease for 3600 s, renewable\n"), "{text}");
    assert!(minted(bench.proxy.requests()) && bench.path("out/user").exists(), "it was minted");
    until("the role is dropped with the session", REVOCATION, async || {
        postgres.minted_roles().is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn render_fails_clearly_and_leaves_no_session() {
    let bench = Bench::start().await;
    let db = "- {objectName: f, secretPath: secret/data/app/db, secretKey: password}";
    let secret = |path: &str| db.replace("app/db", path);
    for (objects, arguments, expected) in [
        (
            db.replace("password", "nope"),
            vec![],
            "key \"nope\" does not exist at the secret path secret/data/app/db",
        ),
        (secret("app/none"), vec![], "failed   GET secret/data/app/none"),
        (secret("other/x"), vec![], "failed   GET secret/data/other/x"),
        (db.to_owned(), vec!["--name", "other"], "no SecretProviderClass other, it has app-secrets"),
        (db.to_owned(), vec!["--token-file", "/nowhere"], "cannot read the token file /nowhere"),
        (format!("{db}\n{db}"), vec![], "class.yaml:10: error: "),
    ] {
        let manifest = bench.manifest(&objects);
        let (code, out, error) = bench.render(&manifest, &arguments).await;
        let all = out + &error;
        assert!(code == 1 && all.contains(expected) && !all.contains(CANARY), "{expected}: {all}");
    }

    // A manifest of somebody else's sends the token nowhere.
    let manifest = bench.manifest(db);
    let text = fs::read_to_string(&manifest).unwrap();
    let elsewhere = format!("parameters:\n    vaultAddress: {}/", bench.bao.url());
    fs::write(&manifest, text.replace("parameters:", &elsewhere)).unwrap();
    bench.proxy.forget();
    let (code, _, error) = bench.render(&manifest, &[]).await;
    assert!(code == 1 && error.contains("the node refuses address"), "{error}");
    let (code, out, error) = bench.render(&manifest, &["--allow-vault-address", bench.bao.url()]).await;
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(bench.proxy.requests(), [""; 0]);
}

/// Ctrl-C in the middle of a read ends the session too. Killed, it cannot: that is what is being avoided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn render_interrupted_revokes_its_session() {
    let bench = Bench::start().await;
    let manifest = bench.manifest(OBJECTS);
    let never = Arc::new(Semaphore::new(0));
    bench.proxy.rule(move |seen| {
        if seen.path.starts_with("secret/") { Fault::Hold(Arc::clone(&never)) } else { Fault::Pass }
    });
    for (signal, left) in [(Signal::SIGKILL, 1), (Signal::SIGINT, 1), (Signal::SIGTERM, 1)] {
        bench.proxy.forget();
        let mut command = bench.command(&manifest, &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("it reads", SOON, async || {
            bench.proxy.requests().iter().any(|it| it.starts_with("GET secret/")).then_some(())
        })
        .await;
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let status = until("it ends", SOON, async || child.try_wait().unwrap()).await;
        assert!(!status.success(), "{signal}");
        // What the kill left is there to the end.
        assert_eq!(bench.sessions().await, left, "{signal}");
    }
    assert!(!Path::new(&bench.path("out")).exists());
}

/// Every kind of object, without a server and without a token.
#[test]
fn sample_data_stands_in_for_the_store() {
    let dir = temp_dir();
    let class = dir.path().join("class.yaml");
    let write = |objects: &str| {
        let objects: String = objects.trim().lines().map(|line| format!("      {line}\n")).collect();
        let text = format!(
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {{name: a, namespace: shop}}\n\
             spec:\n  provider: vault\n  parameters:\n    roleName: app\n    objects: |\n{objects}"
        );
        fs::write(&class, text).unwrap();
    };
    let data = dir.path().join("data.yaml");
    let run = |more: &[&str]| {
        let mut command = leasehold(&["render", class.to_str().unwrap(), "--target", "/secrets"]);
        let output = command.arg("--data").arg(&data).args(more).output().unwrap();
        told(output)
    };
    write(
        "- {objectName: password, secretPath: secret/data/db, secretKey: password, filePermission: 0400}\n\
         - {objectName: owned, secretPath: secret/data/db, secretKey: password, fileOwner: {uid: 7, gid: 8}}\n\
         - {objectName: all, secretPath: secret/data/db, extract: {}}\n\
         - {objectName: host, secretPath: kv/app, jsonPointer: /hosts/0}\n\
         - {objectName: env, secretPath: kv/app, format: env}\n\
         - {objectName: ca.pem, secretPath: pki/ca/pem}\n\
         - {objectName: later, secretPath: secret/data/none, secretKey: k, default: nothing yet}\n\
         - {objectName: pin, secretPath: secret/data/pins, secretKey: pin, generate: {hex: {bytes: 16}}}\n\
         - {as: db, secretPath: database/creds/app}\n\
         - objectName: url\n\
         \x20 template: 'postgres://{{ .db.username }}@{{ with secret \"kv/app\" }}{{ .Data.port }}{{ end }}/{{ .pod.namespace }}'\n",
    );
    let sample = "secret/data/db: {data: {password: p-1, n: 12345678901234567890123}}\n\
                  kv/app: {hosts: [db-1, db-2], port: 5432}\n\
                  pki/ca/pem: PEM\n\
                  database/creds/app: {username: v-1, password: x}\n";
    fs::write(&data, sample).unwrap();
    let (code, out, err) = run(&["--show-values"]);
    assert_eq!(code, 0, "{out}{err}");
    for part in [
        "--- /secrets/password\np-1\n",
        "--- /secrets/all/n\n12345678901234567890123\n",
        "--- /secrets/host\ndb-1\n",
        "--- /secrets/ca.pem\nPEM\n",
        "--- /secrets/later\nnothing yet\n",
        "--- /secrets/url\npostgres://v-1@5432/shop\n",
        "sample   GET secret/data/none: absent\n",
        "sample   GET secret/data/pins: 1 keys, pin as they would be generated\n",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let line = |name: &str| out.lines().find(|line| line.starts_with(&format!("/secrets/{name} "))).unwrap();
    assert!(line("password").contains(" 0400 ") && line("owned").contains(" 0440 "), "{out}");
    assert!(line("host").contains(" 0644 ") && line("pin").contains(" 32 "), "{out}");

    // Values are shown to those who ask.
    let (_, out, _) = run(&[]);
    assert!(!out.contains("p-1") && out.contains("--show-values"), "{out}");

    fs::write(&data, "secret/data/db: {data: {password: p-1}}\nother: {}\n").unwrap();
    let (code, out, _) = run(&[]);
    assert_eq!(code, 1);
    assert!(out.contains("failed   GET kv/app: there is no data for this path in "), "{out}");
    assert!(out.contains("unused   other of "), "{out}");
    for (text, says) in [
        ("- a", "is a list, expected a mapping of paths"),
        ("a: 1", "a is neither a mapping, text nor null"),
        ("a: {b: 1,\n  b: 2}", "line 2"),
    ] {
        fs::write(&data, text).unwrap();
        let (code, _, err) = run(&[]);
        assert!(code != 0 && err.contains(says), "{text}: {err}");
    }

    // Two objects that come to one file, which shows in the data alone.
    write(
        "- {objectName: db/password, secretPath: kv/one, secretKey: p}\n\
         - {objectName: db, secretPath: kv/two, extract: {}}\n",
    );
    fs::write(&data, "{kv/one: {p: 1}, kv/two: {password: 2}}").unwrap();
    let (code, out, _) = run(&[]);
    assert_eq!(code, 1);
    assert!(out.contains("\"db/password\"") && out.contains("failed"), "{out}");
}
