//! A node at scale, and the same work done by `bao agent` from the same package, side by side: memory, CPU in
//! steady state, and a restart to full control. LEASEHOLD_BENCH_MOUNTS names the sizes (`1000,5000`),
//! LEASEHOLD_BENCH_SECONDS the time of the steady state, LEASEHOLD_BINARY what is measured: the image's binary
//! (`scripts/image binary`) has half the code of this profile's, and what the kernel maps of it counts as resident.

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
    stage::{self, Stage},
    tool, until,
};

#[path = "../tests/support/mod.rs"]
mod support;

/// Pods of so many ServiceAccounts, as on a node of the load model.
const IDENTITIES: usize = 12;
/// One mount in five holds a lease.
const LEASED: usize = 5;
/// Agents beside it: each does the work of one mount.
const AGENTS: usize = 5;
/// The driver mounts so many at once.
const AT_ONCE: usize = 16;

/// One process after some time.
struct Usage {
    /// Resident set size, what of it is memory of its own rather than its file's, and proportional, KiB.
    rss: u64,
    anonymous: u64,
    pss: u64,
    /// CPU time used.
    cpu: Duration,
}

fn usage(pid: u32) -> Usage {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // Nanoseconds, of every thread: `stat` counts in hundredths of a second.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let used = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    let cpu = used.map(|text| text.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum();
    Usage {
        rss: field("Rss:"),
        anonymous: field("Anonymous:"),
        pss: field("Pss:"),
        cpu: Duration::from_nanos(cpu),
    }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

impl Usage {
    fn memory(&self) -> String {
        format!("{:.1} ({:.1}; {:.1})", mib(self.rss), mib(self.anonymous), mib(self.pss))
    }
}

#[tokio::main]
async fn main() {
    let sizes = std::env::var("LEASEHOLD_BENCH_MOUNTS").unwrap_or_else(|_| "1000,5000".to_owned());
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.trim().parse().unwrap()).collect();
    let seconds = std::env::var("LEASEHOLD_BENCH_SECONDS").map_or(60, |text| text.parse().unwrap());
    let mut stage = Stage::start_with(Options::default(), |launch| launch.log_level = "warn".into()).await;
    prepare(&stage).await;
    println!(
        "One mount in {LEASED} holds a lease; {IDENTITIES} identities; every value is checked every 60 s.\n"
    );
    println!("| | resident (anonymous; proportional), MiB | CPU, millicores | requests |\n|---|---|---|---|");
    let idle = usage(stage.leasehold.pid());
    println!("| idle | {} | | |", idle.memory());
    let mut volumes = Vec::new();
    for size in &sizes {
        at_size(&mut stage, &mut volumes, *size, Duration::from_secs(seconds)).await;
    }
    for volume in &volumes {
        stage.kubelet.unpublish(volume).unwrap();
    }
}

async fn at_size(stage: &mut Stage, volumes: &mut Vec<Volume>, size: usize, window: Duration) {
    let begun = Instant::now();
    stage.proxy.forget();
    let more: Vec<(usize, Volume)> = (volumes.len()..size)
        .map(|index| {
            let account = format!("app-{}", index % IDENTITIES);
            (index, Volume::new(&Pod::new("prod", &format!("pod-{index}"), &account)))
        })
        .collect();
    let running = &*stage;
    stream::iter(&more)
        .for_each_concurrent(AT_ONCE, async |(index, volume)| {
            running.mount(volume, &class(index.is_multiple_of(LEASED))).await;
        })
        .await;
    let (storm, requests) = (begun.elapsed(), stage.proxy.count());
    let more_mounts = more.len();
    volumes.extend(more.into_iter().map(|(_, volume)| volume));
    let agents = agents(stage).await;
    // Sessions that the burst made and nobody shares are given back meanwhile.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let before: Vec<Usage> = agents.iter().map(|agent| usage(agent.pid())).collect();
    let (began, loaded) = (Instant::now(), usage(stage.leasehold.pid()));
    stage.proxy.forget();
    tokio::time::sleep(window).await;
    let took = began.elapsed().as_secs_f64();
    let steady = usage(stage.leasehold.pid());
    let millicores = |used: Duration| used.as_secs_f64() / took * 1e3;
    println!(
        "| {size} mounts, {more_mounts} of them in {:.1} s | {} | {:.2} | {requests}; then {} in {took:.0} s |",
        storm.as_secs_f64(),
        steady.memory(),
        millicores(steady.cpu - loaded.cpu),
        stage.proxy.count(),
    );
    let each = |sum: f64| sum / AGENTS as f64;
    let after: Vec<Usage> = agents.iter().map(|agent| usage(agent.pid())).collect();
    let cpu: Duration = after.iter().zip(&before).map(|(after, before)| after.cpu - before.cpu).sum();
    let sum = |of: fn(&Usage) -> u64| mib(after.iter().map(of).sum());
    let (rss, anonymous, pss) = (sum(|it| it.rss), sum(|it| it.anonymous), sum(|it| it.pss));
    println!(
        "| `bao agent`, mean of {AGENTS} with one mount's work each | {:.1} ({:.1}; {:.1}) | {:.2} | |",
        each(rss),
        each(anonymous),
        each(pss),
        each(millicores(cpu)),
    );
    let cpu = millicores(cpu);
    println!(
        "| the same for {size} pods | {:.0} | {:.0} | |",
        each(rss) * size as f64,
        each(cpu) * size as f64
    );
    drop(agents);

    stage.proxy.forget();
    stage.leasehold.crash();
    let begun = Instant::now();
    stage.leasehold.restart().await;
    let restart = begun.elapsed();
    // A check that came due meanwhile is none of the restart's.
    let requests: Vec<String> =
        stage.proxy.requests().into_iter().filter(|request| !request.starts_with("GET secret/")).collect();
    let restarted = usage(stage.leasehold.pid());
    println!(
        "| kill to full control in {:.0} ms | {} | | {} beside checks that came due {requests:?} |",
        restart.as_secs_f64() * 1e3,
        restarted.memory(),
        requests.len(),
    );
}

async fn prepare(stage: &Stage) {
    let any = json!({
        "bound_service_account_names": ["*"], "bound_service_account_namespaces": ["*"],
        "audience": "vault", "token_policies": ["app"], "token_ttl": "1h", "token_max_ttl": "24h",
    });
    stage.bao.write("auth/kubernetes/role/app", any).await;
    stage::offer_leased_certificates(&stage.bao).await;
}

/// Two static values; or a certificate with a lease beside a static value.
fn class(leased: bool) -> SecretProviderClass {
    let password = "- {objectName: password, secretPath: secret/data/app/db, secretKey: password, refreshInterval: 60s}\n";
    let rest = if leased {
        ["certificate", "private_key"]
            .map(|key| {
                format!(
                    "- {{objectName: {key}, secretPath: pki/issue/web, method: PUT, secretKey: {key},
   secretArgs: {{common_name: web, ttl: 2h}}}}\n"
                )
            })
            .concat()
    } else {
        "- {objectName: key, secretPath: secret/data/app/api, secretKey: key, refreshInterval: 60s}\n"
            .to_owned()
    };
    SecretProviderClass::new("vault", "app", &(password.to_owned() + &rest))
}

/// Agents that each keep two static values in files, once they have rendered.
async fn agents(stage: &Stage) -> Vec<Process> {
    let mut agents = Vec::new();
    for index in 0..AGENTS {
        let folder = stage.bao.dir().join(format!("agent-{index}"));
        fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        let pod = Pod::new("prod", &format!("agent-{index}"), "app-0");
        fs::write(path("token"), stage.cluster.token(&pod, &["vault"], Duration::from_secs(3600))).unwrap();
        let template = |secret: &str, key: &str| {
            format!(
                "template {{\n contents = \"{{{{ with secret \\\"secret/data/app/{secret}\\\" }}}}{{{{ .Data.data.{key} }}}}\
                 {{{{ end }}}}\"\n destination = \"{}\"\n}}\n",
                path(key).display()
            )
        };
        let config = format!(
            "vault {{\n address = \"{}\"\n}}\n\
             template_config {{\n static_secret_render_interval = \"60s\"\n}}\n\
             auto_auth {{\n method \"kubernetes\" {{\n config = {{ role = \"app\", token_path = \"{}\" }}\n }}\n}}\n{}{}",
            stage.bao.url(),
            path("token").display(),
            template("db", "password"),
            template("api", "key"),
        );
        fs::write(path("agent.hcl"), config).unwrap();
        let _ = (fs::remove_file(path("key")), fs::remove_file(path("password")));
        agents.push(Process::spawn("agent", tool("bao"), |command| {
            command.arg("agent").arg(format!("-config={}", path("agent.hcl").display()));
        }));
        until("bao agent rendered", Duration::from_secs(30), async || {
            fs::read(path("key")).ok().and(fs::read(path("password")).ok())
        })
        .await;
    }
    agents
}
