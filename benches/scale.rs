//! A node at scale: memory idle and with 1,000 live mounts (LEASEHOLD_BENCH_MOUNTS for more), CPU in steady
//! state, and a restart to full control; `bao agent` from the same package beside it.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    fs,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use serde_json::json;
use support::{
    cluster::Pod,
    driver::SecretProviderClass,
    kubelet::{Options, Volume},
    process::Process,
    stage::{Stage, class},
    tool, until,
};

#[path = "../tests/support/mod.rs"]
mod support;

/// Pods of so many ServiceAccounts, as on a node of the load model.
const IDENTITIES: usize = 12;
/// One mount in five holds a lease.
const LEASED: usize = 5;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Resident and proportional set size, KiB.
fn memory(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("Rss:"), field("Pss:"))
}

/// CPU time used, in clock ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[tokio::main]
async fn main() {
    let mounts = number("LEASEHOLD_BENCH_MOUNTS", 1000);
    let seconds = number("LEASEHOLD_BENCH_SECONDS", 60);
    let mut stage = Stage::start_with(Options::default(), |launch| launch.log_level = "warn".into()).await;
    prepare(&stage).await;
    let idle = memory(stage.leasehold.pid());
    let volumes: Vec<(Volume, SecretProviderClass)> = (0..mounts)
        .map(|index| {
            let account = format!("app-{}", index % IDENTITIES);
            let pod = Pod::new("prod", &format!("pod-{index}"), &account);
            (Volume::new(&pod), if index % LEASED == 0 { leased() } else { class() })
        })
        .collect();
    let begun = Instant::now();
    stream::iter(&volumes)
        .for_each_concurrent(16, async |(volume, class)| stage.mount(volume, class).await)
        .await;
    let storm = begun.elapsed();
    let requests = stage.proxy.count();
    let logins = stage.proxy.requests().iter().filter(|request| request.ends_with("/login")).count();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let loaded = memory(stage.leasehold.pid());

    stage.proxy.forget();
    let before = ticks(stage.leasehold.pid());
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let cpu = ticks(stage.leasehold.pid()) - before;
    let steady = stage.proxy.count();

    stage.proxy.forget();
    stage.leasehold.crash();
    let begun = Instant::now();
    stage.leasehold.restart().await;
    let restart = begun.elapsed();
    let restart_requests = stage.proxy.count();
    let restarted = memory(stage.leasehold.pid());
    let peer = agent(&stage).await;

    println!("| {mounts} mounts of {IDENTITIES} identities, one in {LEASED} with a lease | |\n|---|---|");
    println!("| resident, idle (proportional) | {:.1} MiB ({:.1}) |", mib(idle.0), mib(idle.1));
    println!("| resident, all mounted | {:.1} MiB ({:.1}) |", mib(loaded.0), mib(loaded.1));
    println!("| resident, after a restart | {:.1} MiB ({:.1}) |", mib(restarted.0), mib(restarted.1));
    println!("| `bao agent`, one template (proportional) | {:.1} MiB ({:.1}) |", mib(peer.0), mib(peer.1));
    println!("| all mounted in | {:.1} s, {requests} requests, {logins} logins |", storm.as_secs_f64());
    let millicores = cpu as f64 * 10.0 / seconds as f64;
    println!("| CPU in steady state | {millicores:.1} millicores over {seconds} s, {steady} requests |");
    println!("| kill to full control | {:.0} ms, {restart_requests} requests |", restart.as_secs_f64() * 1e3);
    for (volume, _) in &volumes {
        stage.kubelet.unpublish(volume).unwrap();
    }
}

async fn prepare(stage: &Stage) {
    let any = json!({
        "bound_service_account_names": ["*"], "bound_service_account_namespaces": ["*"],
        "audience": "vault", "token_policies": ["app"], "token_ttl": "1h", "token_max_ttl": "24h",
    });
    stage.bao.write("auth/kubernetes/role/app", any).await;
    stage.bao.write("sys/mounts/pki", json!({ "type": "pki" })).await;
    stage
        .bao
        .write(
            "pki/root/generate/internal",
            json!({ "common_name": "root", "ttl": "24h", "key_type": "ec", "key_bits": 256 }),
        )
        .await;
    let role = json!({
        "allow_any_name": true, "enforce_hostnames": false, "max_ttl": "12h", "generate_lease": true,
        "key_type": "ec", "key_bits": 256,
    });
    stage.bao.write("pki/roles/web", role).await;
    let policy = "path \"pki/issue/web\" { capabilities = [\"update\"] }
        path \"secret/data/app/*\" { capabilities = [\"read\"] }";
    stage.bao.put_policy("app", policy).await;
}

/// A certificate with a lease, beside a static value.
fn leased() -> SecretProviderClass {
    let objects = "- {objectName: tls.crt, secretPath: pki/issue/web, method: PUT, secretKey: certificate,
   secretArgs: {common_name: web, ttl: 2h}}
- {objectName: tls.key, secretPath: pki/issue/web, method: PUT, secretKey: private_key,
   secretArgs: {common_name: web, ttl: 2h}}
- {objectName: password, secretPath: secret/data/app/db, secretKey: password}
";
    SecretProviderClass::new("vault", "app", objects)
}

/// `bao agent` with one template of one secret, once it has rendered.
async fn agent(stage: &Stage) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let pod = Pod::new("prod", "agent", "app-0");
    fs::write(path("token"), stage.cluster.token(&pod, &["vault"], Duration::from_secs(3600))).unwrap();
    let config = format!(
        "vault {{ address = \"{}\" }}\nauto_auth {{ method \"kubernetes\" {{ config = {{ role = \"app\", token_path = \"{}\" }} }} }}\n\
         template {{ contents = \"{{{{ with secret \\\"secret/data/app/db\\\" }}}}{{{{ .Data.data.password }}}}{{{{ end }}}}\"\n destination = \"{}\" }}\n",
        stage.bao.url(),
        path("token").display(),
        path("out").display(),
    );
    fs::write(path("agent.hcl"), config).unwrap();
    let process = Process::spawn("agent", tool("bao"), |command| {
        command.arg("agent").arg(format!("-config={}", path("agent.hcl").display()));
    });
    until("bao agent rendered", Duration::from_secs(20), async || fs::read(path("out")).ok()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    memory(process.pid())
}
