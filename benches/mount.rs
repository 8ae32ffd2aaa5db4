//! Latency of a Mount beside the bare round trips of the same HTTP client against the same server, in the
//! same run, and requests per Mount. Three objects on two paths: one login and two reads in two rounds.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use leasehold::{
    backend::{
        Credential, RequestContext, SecretBackend,
        vault::{Limits, VaultBackend},
    },
    secret::SecretString,
    spec::{ApiPath, Connection, LoginSpec, SecretRequest, TlsSpec},
};
use serde_json::json;
use support::{
    bao::{Bao, Shape},
    cluster::{Cluster, Pod},
    kubelet::{Kubelet, Options, Volume},
    leasehold::{Launch, Leasehold},
    node::Node,
    proxy::Fault,
    stage::{self, Stage, class},
};

#[path = "../tests/support/mod.rs"]
mod support;

const ROUNDS: usize = 300;
const WARM_UP: usize = 30;
const HOUR: Duration = Duration::from_secs(3600);

/// Login and the two reads in parallel, with nothing around them.
struct Bare {
    backend: VaultBackend,
    connection: Arc<Connection>,
    login: LoginSpec,
    requests: [SecretRequest; 2],
}

impl Bare {
    fn new(address: &str) -> Self {
        let request = |path: &str| SecretRequest::read(ApiPath::parse(path).unwrap());
        Self {
            backend: VaultBackend::new(Limits::default()),
            connection: Arc::new(Connection {
                address: address.to_owned(),
                namespace: String::new(),
                tls: TlsSpec::default(),
            }),
            login: LoginSpec {
                method: Default::default(),
                mount: ApiPath::parse("kubernetes").unwrap(),
                role: "app".into(),
                audience: "vault".into(),
            },
            requests: [request("secret/data/app/db"), request("secret/data/app/api")],
        }
    }

    fn context(&self) -> RequestContext {
        RequestContext {
            connection: Arc::clone(&self.connection),
            timeout: Duration::from_secs(10),
            on_behalf_of: "bench/bench".into(),
            serves: Arc::default(),
            accessor: None,
        }
    }

    /// A login and the two reads in parallel.
    async fn both(&self, jwt: String) -> Duration {
        let start = Instant::now();
        let token = self.session(jwt).await;
        self.read(&token).await;
        start.elapsed()
    }

    async fn session(&self, jwt: String) -> SecretString {
        let credential = Credential::Jwt(SecretString::new(jwt));
        self.backend.login(self.context(), &self.login, &credential).await.unwrap().token
    }

    /// The two reads in parallel.
    async fn read(&self, token: &SecretString) -> Duration {
        let start = Instant::now();
        let [one, two] = [0, 1].map(|i| self.backend.fetch(self.context(), token, &self.requests[i]));
        let (one, two) = tokio::join!(one, two);
        one.unwrap();
        two.unwrap();
        start.elapsed()
    }
}

#[tokio::main]
async fn main() {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    requests().await;
    latency().await;
}

async fn requests() {
    let stage = Stage::start().await;
    // Rounds are told apart when answers take longer than what sends the next request.
    stage.proxy.rule(|_| Fault::Delay(Duration::from_millis(100)));
    let mut counts = Vec::new();
    for what in ["cold", "warm identity", "republish"] {
        stage.proxy.forget();
        let volume = stage.volume();
        stage.mount(&volume, &class()).await;
        if what == "republish" {
            stage.proxy.forget();
            stage.mount(&volume, &class()).await;
        }
        counts.push((what, stage.proxy.count(), stage.proxy.rounds()));
    }
    println!("| Mount of 3 objects on 2 paths | requests | sequential rounds |\n|---|---|---|");
    for (what, requests, rounds) in counts {
        println!("| {what} | {requests} | {rounds} |");
    }
    println!();
}

async fn latency() {
    let node = Arc::new(Node::new());
    let cluster = Arc::new(Cluster::start());
    let bao = Bao::start(Shape::Dev).await;
    stage::configure(&bao, &cluster).await;
    let any = json!({
        "bound_service_account_names": ["*"], "bound_service_account_namespaces": ["*"],
        "audience": "vault", "token_policies": ["app"], "token_ttl": "1h",
    });
    bao.write("auth/kubernetes/role/app", any).await;
    let launch = Launch { log_level: "warn".into(), ..Launch::new(bao.url()) };
    let _leasehold = Leasehold::start(&node, launch).await;
    let options = Options { rotation: Some(Duration::ZERO), ..Options::default() };
    let kubelet = Kubelet::new(Arc::clone(&node), Arc::clone(&cluster), options);
    let bare = Bare::new(bao.url());

    let held = bare.session(cluster.token(&Pod::new("prod", "bare", "app"), &["vault"], HOUR)).await;

    let mut times: [Vec<Duration>; 5] = Default::default();
    // Interleaved, so that a slow moment of the machine falls on all alike; and before every bare round the node
    // does what it does before a Mount, because server and kernel answer faster when they were just asked.
    let scratch = Volume::new(&Pod::new("prod", "scratch", "app"));
    let target = kubelet.target(&scratch);
    node.create_dir(&target).unwrap();
    let prepare = || {
        node.mount_tmpfs(&target).unwrap();
        node.unmount(&target).unwrap();
    };
    for round in 0..WARM_UP + ROUNDS {
        let cold = Pod::new("prod", &format!("cold-{round}"), &format!("account-{round}"));
        let jwt = cluster.token(&cold, &["vault"], HOUR);
        let mut volumes =
            vec![Volume::new(&cold), Volume::new(&Pod::new("prod", &format!("warm-{round}"), "app"))];
        let mut took = Vec::new();
        prepare();
        took.push(bare.both(jwt).await);
        kubelet.publish(&volumes[0], Some(&class())).await.unwrap();
        took.push(kubelet.driver.last_took());
        prepare();
        took.push(bare.read(&held).await);
        kubelet.publish(&volumes[1], Some(&class())).await.unwrap();
        took.push(kubelet.driver.last_took());
        kubelet.publish(&volumes[1], Some(&class())).await.unwrap();
        took.push(kubelet.driver.last_took());
        for volume in volumes.drain(..) {
            kubelet.unpublish(&volume).unwrap();
        }
        if round >= WARM_UP {
            took.into_iter().zip(&mut times).for_each(|(took, times)| times.push(took));
        }
    }
    let [bare, cold, reads, warm, republish] = times.map(|mut times| {
        times.sort();
        [times[ROUNDS / 2], times[ROUNDS * 99 / 100]].map(|time| time.as_secs_f64() * 1e3)
    });
    println!("{ROUNDS} rounds; times in ms. Over: minus the bare round trips of the same kind.");
    println!("| | p50 | p99 | over p50 | over p99 | ratio p50 |\n|---|---|---|---|---|---|");
    for (what, [p50, p99], base) in [
        ("bare login + reads", bare, bare),
        ("Mount, cold", cold, bare),
        ("bare reads", reads, reads),
        ("Mount, warm identity", warm, reads),
    ] {
        let (over, over99) = (p50 - base[0], p99 - base[1]);
        println!("| {what} | {p50:.2} | {p99:.2} | {over:.2} | {over99:.2} | {:.2} |", p50 / base[0]);
    }
    println!("| Mount, republish | {:.2} | {:.2} | - | - | - |", republish[0], republish[1]);
}
