//! Real parts for end-to-end tests and for the demo: an OpenBao server, a PostgreSQL server, a cluster's
//! TokenReview, a node with a kubelet and a Secrets Store CSI driver, and the leasehold binary itself.
//!
//! Nothing here stands in for the kernel: mounts, sockets, namespaces and processes are real. Whatever is
//! missing (root, a binary) stops the test that needs it with a message that says what to do.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses its own part of this tree")]
#![allow(clippy::unwrap_used, reason = "a helper that cannot do its work fails the test it works for")]

pub mod atomic_writer;
pub mod authority;
pub mod bao;
pub mod canary;
pub mod cluster;
pub mod driver;
pub mod ground;
pub mod http;
pub mod kubelet;
pub mod leasehold;
pub mod node;
pub mod old_driver;
pub mod page;
pub mod postgres;
pub mod process;
pub mod provider_client;
pub mod proxy;
pub mod stage;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

/// The driver's interface, compiled by the package's build script.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("v1alpha1");
}

/// Bound for anything that takes the machine at most a second when it is not busy.
pub const SOON: Duration = Duration::from_secs(30);

/// Fails the test unless the process is root: mounts and namespaces need it.
#[track_caller]
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts tmpfs in a mount namespace of its own: run it as root (`make test` says how)"
    );
}

/// The process-wide TLS provider; every client of ours needs one, also for plain HTTP.
pub fn install_tls_provider() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // An error means that the code under test was faster, with the same provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

/// The runtime of all stand-in servers: they keep answering while a test blocks its own thread.
pub fn background() -> &'static tokio::runtime::Handle {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .thread_name("stand-in")
                .build()
                .expect("a runtime for the stand-in servers")
        })
        .handle()
}

/// Asks `condition` until it answers, for `bound` at the most; panics with `what` when it never does.
#[track_caller]
pub fn until<T>(
    what: &str,
    bound: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(started.elapsed() < bound, "{caller}: not within {bound:?}: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A loopback port that is free and that nobody else of this process was given: below the range from which
/// the kernel serves outgoing connections, so that none of those takes it before its server does.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap();
    loop {
        let port = rand::random_range(20_000..32_000);
        if !given.contains(&port) && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
}

/// A random lower-case UUID, as the API server gives to every object.
pub fn uuid() -> String {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A folder of its own below /tmp: short, because a unix socket's path may have 107 bytes only.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("lh").rand_bytes(5).tempdir_in("/tmp").expect("a folder below /tmp")
}

/// A tool that `scripts/setup` puts under target/tools.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(name);
    assert!(path.exists(), "{} is not there: run scripts/setup (or `make test`, which does)", path.display());
    path
}
