//! The table of docs/agent.md: this agent and `bao agent` side by side, in one run, on one server.
//!
//! Figures are printed, never asserted: they are the machine's of the day. `make compare` runs it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    SOON,
    bao::Admin,
    cluster::{Cluster, Pod},
    ground::Ground,
    leasehold::binary,
    process::Process,
    proxy::Proxy,
    tool, until,
};

/// Instances whose memory is shared out.
const INSTANCES: usize = 30;
/// Starts whose median is shown.
const STARTS: usize = 31;
/// For one instance to have its files, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long behaviour is watched.
const WATCH: Duration = Duration::from_secs(60);
/// Both look at values this often.
const INTERVAL: &str = "10s";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Leasehold,
    Bao,
}

/// Where one instance reads and writes: in memory, as an emptyDir.
struct Place {
    dir: TempDir,
    process: Process,
    started: Instant,
}

struct Bench {
    ground: std::sync::Arc<Ground>,
    proxy: Proxy,
    identity: Pod,
}

impl Bench {
    async fn new() -> Self {
        let ground = Ground::get().await;
        let admin = ground.bao.admin();
        admin.enable_kubernetes_auth("compare", &ground.cluster).await;
        admin
            .put_policy(
                "compare",
                "path \"database/creds/*\" { capabilities = [\"read\"] }\npath \"secret/data/compare/*\" { capabilities = [\"read\"] }\n",
            )
            .await;
        let role = json!({
            "bound_service_account_names": ["app"], "bound_service_account_namespaces": ["prod"],
            "audience": "vault", "token_policies": ["compare"], "token_ttl": "1h", "token_max_ttl": "24h",
        });
        admin.write("auth/compare/role/app", role).await;
        for (name, ttl) in [("plain", "1h"), ("short", "20s"), ("broken-l", "10s"), ("broken-b", "10s")] {
            ground.postgres.configure(admin, name, ttl, "24h").await;
        }
        let proxy = Proxy::start(ground.bao.url());
        Self { ground, proxy, identity: Pod::new("prod", "app-0", "app") }
    }

    fn token(cluster: &Cluster, identity: &Pod) -> String {
        cluster.token(identity, &["vault"], Duration::from_secs(3600))
    }

    /// One instance with a KV value and a database user of `role`.
    fn start(&self, which: Which, url: &str, role: &str) -> Place {
        let dir = tempfile::Builder::new().prefix("lhcmp").tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(path("out")).unwrap();
        fs::write(path("token"), Self::token(&self.ground.cluster, &self.identity)).unwrap();
        let dsn = format!(
            "{{{{ with secret \"database/creds/{role}\" }}}}{{{{ .Data.username }}}}:{{{{ .Data.password }}}}{{{{ end }}}}"
        );
        let program = match which {
            Which::Leasehold => {
                let text = format!(
                    "vaultAddress: {url}\nvaultAuthMountPath: compare\nroleName: app\nauth: {{tokenPath: {}}}\n\
                     stateDir: {}\nfolders:\n- path: {}\n  objects:\n  - {{objectName: password, secretPath: \
                     secret/data/compare/app, secretKey: value, refreshInterval: {INTERVAL}}}\n  - {{objectName: dsn, \
                     template: '{dsn}'}}\n",
                    path("token"),
                    path("state"),
                    path("out")
                );
                fs::write(path("agent"), text).unwrap();
                compared()
            }
            Which::Bao => {
                let quoted = dsn.replace('"', "\\\"");
                let text = format!(
                    "vault {{ address = \"{url}\" }}\nauto_auth {{ method \"kubernetes\" {{ mount_path = \
                     \"auth/compare\"\n config = {{ role = \"app\", token_path = \"{}\" }} }} }}\ntemplate_config {{ \
                     static_secret_render_interval = \"{INTERVAL}\" }}\ntemplate {{ destination = \"{}\"\n contents = \
                     \"{{{{ with secret \\\"secret/data/compare/app\\\" }}}}{{{{ .Data.data.value }}}}{{{{ end }}}}\" \
                     }}\ntemplate {{ destination = \"{}\"\n contents = \"{quoted}\" }}\n",
                    path("token"),
                    path("out/password"),
                    path("out/dsn")
                );
                fs::write(path("agent"), text).unwrap();
                tool("bao")
            }
        };
        let started = Instant::now();
        let process = Process::spawn("compared", program, |command| {
            command.arg("agent").env_clear().env("HOME", dir.path());
            match which {
                Which::Leasehold => command.arg("--config").arg(path("agent")).args(["--log-level", "error"]),
                Which::Bao => command.arg(format!("-config={}", path("agent"))).arg("-log-level=error"),
            };
        });
        Place { dir, process, started }
    }

    /// The bare requests of one start: a login, and what it is for at once.
    async fn bare(&self) -> Duration {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let url = self.ground.bao.url();
        let login =
            json!({"role": "app", "jwt": Self::token(&self.ground.cluster, &self.identity)}).to_string();
        let started = Instant::now();
        let answer = client.post(format!("{url}/v1/auth/compare/login")).body(login).send().await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        let token = answer["auth"]["client_token"].as_str().unwrap().to_owned();
        let read = async |path: &str| {
            let request = client.get(format!("{url}/v1/{path}")).header("x-vault-token", &token);
            request.send().await.unwrap().bytes().await.unwrap()
        };
        tokio::join!(read("secret/data/compare/app"), read("database/creds/plain"));
        started.elapsed()
    }
}

/// The release build, where `make compare` made one.
fn compared() -> PathBuf {
    std::env::var_os("LEASEHOLD_COMPARED").map_or_else(binary, PathBuf::from)
}

impl Place {
    fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.path().join("out").join(name)).ok().filter(|text| !text.is_empty())
    }

    fn complete(&self) -> bool {
        self.file("dsn").is_some() && self.file("password").is_some()
    }

    async fn rendered(&mut self) {
        until("both files are there", PATIENCE, async || {
            self.process.assert_running();
            self.complete().then_some(())
        })
        .await;
    }

    /// From the start of the process until both files are there, looked at without a pause.
    fn time(&self) -> Duration {
        while !self.complete() {
            assert!(self.started.elapsed() < PATIENCE, "{}", self.process.log());
            std::thread::sleep(Duration::from_micros(200));
        }
        self.started.elapsed()
    }

    fn user(&self) -> (String, String) {
        let text = self.file("dsn").unwrap();
        let (user, password) = text.split_once(':').unwrap();
        (user.to_owned(), password.to_owned())
    }

    fn pss(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }

    /// User and system time so far, in ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.process.pid())).unwrap();
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

async fn memory(bench: &Bench, which: Which) -> f64 {
    let mut places: Vec<Place> = Vec::new();
    for _ in 0..INSTANCES {
        let mut place = bench.start(which, bench.ground.bao.url(), "plain");
        place.rendered().await;
        places.push(place);
    }
    // What start-up needed is given back by then, if it is.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let total: u64 = places.iter().map(Place::pss).sum();
    total as f64 / INSTANCES as f64 / 1024.0
}

/// In turn, so that all three meet the same machine: the bare round trips, and what each took over those of its turn.
async fn starts(bench: &Bench) -> [f64; 3] {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let mut turns = Vec::new();
    for _ in 0..STARTS {
        let bare = milliseconds(bench.bare().await);
        let mut over = [0.0; 2];
        for (slot, which) in over.iter_mut().zip([Which::Leasehold, Which::Bao]) {
            let time = bench.start(which, bench.ground.bao.url(), "plain").time();
            *slot = milliseconds(time) - bare;
            // The server is done with what the last one left.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        turns.push((bare, over));
    }
    [
        median(turns.iter().map(|(bare, _)| *bare)),
        median(turns.iter().map(|(_, over)| over[0])),
        median(turns.iter().map(|(_, over)| over[1])),
    ]
}

async fn requests(bench: &Bench, which: Which) -> usize {
    bench.proxy.forget();
    let mut place = bench.start(which, &bench.proxy.url(), "plain");
    place.rendered().await;
    bench.proxy.count()
}

async fn revoke_logins(admin: &Admin) {
    for accessor in admin.list("auth/token/accessors").await {
        let body = json!({ "accessor": accessor });
        let found = admin.call(Method::POST, "auth/token/lookup-accessor", Some(body.clone())).await;
        if found.body["data"]["path"] == "auth/compare/login" {
            admin.call(Method::POST, "auth/token/revoke-accessor", Some(body)).await;
        }
    }
}

async fn works(bench: &Bench, place: &Place) -> bool {
    let (user, password) = place.user();
    bench.ground.postgres.login(&user, &password).await.is_ok()
}

async fn watch(mut condition: impl AsyncFnMut() -> bool) -> Option<Duration> {
    let started = Instant::now();
    while started.elapsed() < WATCH {
        if condition().await {
            return Some(started.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

fn told(found: Option<Duration>, well: &str, badly: &str) -> String {
    match found {
        Some(after) => format!("{well} after {:.1} s", after.as_secs_f64()),
        None => format!("{badly} ({} s watched)", WATCH.as_secs()),
    }
}

async fn after_revocation(bench: &Bench) -> [String; 2] {
    let mut ours = bench.start(Which::Leasehold, bench.ground.bao.url(), "plain");
    let mut theirs = bench.start(Which::Bao, bench.ground.bao.url(), "plain");
    ours.rendered().await;
    theirs.rendered().await;
    revoke_logins(bench.ground.bao.admin()).await;
    for place in [&ours, &theirs] {
        until("the database user is gone", SOON, async || (!works(bench, place).await).then_some(())).await;
    }
    let look = async |place: &Place| {
        told(
            watch(async || works(bench, place).await).await,
            "a credential that works",
            "a dead credential stays",
        )
    };
    let (ours, theirs) = tokio::join!(look(&ours), look(&theirs));
    [ours, theirs]
}

async fn after_delete_version_after(bench: &Bench) -> [String; 2] {
    let admin = bench.ground.bao.admin();
    let mut ours = bench.start(Which::Leasehold, bench.ground.bao.url(), "plain");
    let mut theirs = bench.start(Which::Bao, bench.ground.bao.url(), "plain");
    ours.rendered().await;
    theirs.rendered().await;
    admin.write("secret/metadata/compare/app", json!({"delete_version_after": "24h"})).await;
    admin.put_secret("compare/app", json!({"value": "new"})).await;
    let look = async |place: &Place| {
        let found = watch(async || place.file("password").as_deref() == Some("new")).await;
        told(found, "the new value", "the old value stays")
    };
    let (ours, theirs) = tokio::join!(look(&ours), look(&theirs));
    [ours, theirs]
}

async fn roles_minted(bench: &Bench, which: Which, role: &str) -> usize {
    let admin = bench.ground.bao.admin();
    let mut body = admin.read(&format!("database/roles/{role}")).await["data"].clone();
    body["renew_statements"] = json!(["SELECT no_such_function()"]);
    admin.write(&format!("database/roles/{role}"), body).await;
    let proxy = Proxy::start(bench.ground.bao.url());
    let mut place = bench.start(which, &proxy.url(), role);
    place.rendered().await;
    tokio::time::sleep(WATCH).await;
    let path = format!("database/creds/{role}");
    proxy.seen().iter().filter(|seen| seen.path == path && seen.status == Some(200)).count()
}

async fn cpu(bench: &Bench) -> [f64; 2] {
    let mut ours = bench.start(Which::Leasehold, bench.ground.bao.url(), "short");
    let mut theirs = bench.start(Which::Bao, bench.ground.bao.url(), "short");
    ours.rendered().await;
    theirs.rendered().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = [ours.ticks(), theirs.ticks()];
    tokio::time::sleep(Duration::from_secs(60)).await;
    [ours.ticks() - before[0], theirs.ticks() - before[1]].map(|ticks| ticks as f64 * 10.0)
}

#[tokio::test]
#[ignore = "takes minutes and prints figures: make compare"]
async fn compare() {
    let bench = Bench::new().await;
    bench.ground.bao.put_secret("compare/app", json!({"value": "old"})).await;
    println!("\n| | leasehold agent | bao agent |\n|---|---|---|");
    let row = |what: &str, ours: String, theirs: String| println!("| {what} | {ours} | {theirs} |");
    let [bare, ours, theirs] = starts(&bench).await;
    row(
        &format!("start to both files, over {bare:.1} ms of bare round trips (medians of {STARTS} turns)"),
        format!("{ours:.1} ms"),
        format!("{theirs:.1} ms"),
    );
    let counted = [requests(&bench, Which::Leasehold).await, requests(&bench, Which::Bao).await];
    row("requests per start", counted[0].to_string(), counted[1].to_string());
    let pss = [memory(&bench, Which::Leasehold).await, memory(&bench, Which::Bao).await];
    row(
        &format!("proportional set size, mean of {INSTANCES}"),
        format!("{:.1} MiB", pss[0]),
        format!("{:.1} MiB", pss[1]),
    );
    let cpu = cpu(&bench).await;
    row("CPU over a minute of checks and renewals", format!("{:.0} ms", cpu[0]), format!("{:.0} ms", cpu[1]));
    let (ours, theirs) = tokio::join!(
        roles_minted(&bench, Which::Leasehold, "broken-l"),
        roles_minted(&bench, Which::Bao, "broken-b")
    );
    row(
        "database users minted in a minute with broken `renew_statements`",
        ours.to_string(),
        theirs.to_string(),
    );
    let [ours, theirs] = after_revocation(&bench).await;
    row("after its token was revoked", ours, theirs);
    // Last: `bao agent` renders nothing of such a value any more.
    let [ours, theirs] = after_delete_version_after(&bench).await;
    row("after `delete_version_after` was set and a value written", ours, theirs);
}
