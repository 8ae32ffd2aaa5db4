//! Every way a Mount can fail, by the code that leaves the socket (threats 37).

use std::time::Instant;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasehold::{
    backend::Credential,
    provider::proto::csi_driver_provider_server::{CsiDriverProvider, CsiDriverProviderServer},
    secret::SecretBytes,
    startup::Signals,
    telemetry::{LogConfig, LogFormat},
    volume::{DriverFile, FailureKind},
};
use nix::sys::signal::{Signal, raise};
use tonic::{Request, Response, Status};
use tower_service::Service as _;

use super::*;

/// A provider as a tutorial writes it: what ours would be without its guards.
struct Naive;

#[tonic::async_trait]
impl CsiDriverProvider for Naive {
    async fn version(
        &self,
        _: Request<proto::VersionRequest>,
    ) -> Result<Response<proto::VersionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn mount(&self, _: Request<proto::MountRequest>) -> Result<Response<proto::MountResponse>, Status> {
        panic!("{CANARY}")
    }
}

async fn naive() -> Wire {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = CsiDriverProviderServer::new(Naive);
    let serve = service_fn(move |request| {
        let mut server = server.clone();
        async move { server.call(request).await }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(theirs), serve);
    tokio::spawn(async move { connection.await.ok() });
    Wire::connect(ours, "localhost").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wire_codes_are_final() {
    let mebibytes =
        |count: usize| proto::MountRequest { attributes: " ".repeat(count << 20), ..Default::default() };

    // Without the guards: a panic breaks the stream or the connection, which grpc-go reports as Canceled or
    // Unavailable, and 5 MiB are too much.
    naive().await.call(MOUNT, None, &[]).await.expect_err("a panic was answered");
    let refused = naive().await.call(MOUNT, None, &mebibytes(5).encode_to_vec()).await.unwrap();
    assert!(refused.message.contains("message length too large"), "{refused:?}");

    let bench = Bench::start(|_| async { panic!("{CANARY}") }.boxed());
    let client = bench.client().await;
    let request = bench.request("shop");
    let panicked = client.mount(&request).await;
    assert_eq!(panicked.code, 13, "{panicked:?}");
    assert!(!panicked.message.contains(CANARY), "{panicked:?}");
    assert!(bench.metrics.render(leasehold::clock::boot_now(), &[]).contains("leasehold_panics_total 1"));

    // 5 MiB are read; 17 MiB refused, finally; the connection serves on after either.
    let read = client.mount(&mebibytes(5)).await;
    assert!(read.code == 3 && read.message.contains("attributes is no JSON"), "{read:?}");
    let oversized = client.mount(&mebibytes(17)).await;
    assert!(oversized.is_final() && oversized.code != 0, "{oversized:?}");
    let garbage = client.call(MOUNT, None, b"\xff\xff\xff").await.unwrap();
    assert_eq!(garbage.code, 13, "{garbage:?}");
    let unknown = client.call("/v1alpha1.CSIDriverProvider/Unmount", None, &[]).await.unwrap();
    assert_eq!(unknown.code, 12, "{unknown:?}");
    let version: proto::VersionResponse = client.call(VERSION, None, &[]).await.unwrap().decode();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("v1alpha1", "leasehold"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_grpc_timeout_is_answered_before_it_and_finally() {
    let bench = Bench::start(|_| forever());
    let client = bench.client().await;
    let message = bench.request("shop").encode_to_vec();
    for (timeout, at_least, at_most) in [("1n", 0, 5_000), ("4000m", 900, 4_000), ("9S", 1_900, 9_000)] {
        let asked = Instant::now();
        let answer = client.call(MOUNT, Some(timeout), &message).await.unwrap();
        let took = asked.elapsed().as_millis();
        assert_eq!(answer.code, 13, "{timeout}: {answer:?}");
        assert!(
            answer.message.contains("SecretProviderClass db: still logging in to or reading from http://127")
        );
        assert!((at_least..=at_most).contains(&took), "{timeout}: {took} ms");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_in_flight_is_answered_finally() {
    let release = Arc::new(tokio::sync::Notify::new());
    let released = Arc::clone(&release);
    let bench = Bench::start(move |command| match command.pod.namespace.as_str() {
        "quick" => {
            let released = Arc::clone(&released);
            async move {
                released.notified().await;
                Ok(one_version())
            }
            .boxed()
        }
        _ => forever(),
    });
    let mut signals = Signals::new().unwrap();
    let (quick, slow) = (bench.client().await, bench.client().await);
    let idle = bench.client().await;
    let _: proto::VersionResponse = idle.call(VERSION, None, &[]).await.unwrap().decode();
    let (quick_request, slow_request) = (bench.request("quick"), bench.request("slow"));
    let quick = tokio::spawn(async move { quick.mount(&quick_request).await });
    let slow = tokio::spawn(async move { slow.mount(&slow_request).await });
    until("both calls are in flight", || bench.calls() == 2).await;

    raise(Signal::SIGTERM).unwrap();
    tokio::time::timeout(SOON, signals.terminated()).await.unwrap();
    let socket = bench.socket();
    let Bench { edge, folder, .. } = bench;
    let drained = tokio::spawn(edge.drain(Duration::from_secs(2)));
    until("the socket is gone", || !socket.exists()).await;
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err());

    release.notify_waiters();
    assert_eq!(quick.await.unwrap().decode::<proto::MountResponse>().object_version.len(), 1);
    let cut = slow.await.unwrap();
    assert_eq!(
        (cut.code, cut.message.as_str()),
        (13, "leasehold is shutting down; the driver will call again")
    );
    tokio::time::timeout(SOON, drained).await.unwrap().unwrap();
    drop(folder);
}

#[tokio::test]
async fn outcomes_have_their_codes() {
    let kinds = [
        (FailureKind::InvalidArgument, 3),
        (FailureKind::PermissionDenied, 7),
        (FailureKind::NotFound, 5),
        (FailureKind::FailedPrecondition, 9),
        (FailureKind::Internal, 13),
    ];
    for (kind, code) in kinds {
        let bench =
            Bench::start(move |_| async move { Err(MountFailure::new(kind, "role \"x\": no")) }.boxed());
        let answer = bench.client().await.mount(&bench.request("shop")).await;
        assert_eq!((answer.code, answer.message.as_str()), (code, "role \"x\": no"));
    }

    let file = |size: usize| DriverFile {
        path: "a".into(),
        mode: 0o440,
        contents: SecretBytes::new(vec![b'x'; size]),
    };
    let bench = Bench::start(move |command| {
        let large = command.pod.namespace == "large";
        let files = vec![file(if large { 3_584 << 10 } else { 3 << 20 })];
        let versions = if command.pod.namespace == "none" { Vec::new() } else { one_version().versions };
        async move { Ok(MountAnswer { versions, files }) }.boxed()
    });
    let client = bench.client().await;
    let answer = client.mount(&bench.request("shop")).await.decode::<proto::MountResponse>();
    assert_eq!((answer.files[0].path.as_str(), answer.files[0].mode), ("a", 0o440));
    assert_eq!(answer.files[0].contents.len(), 3 << 20);
    let large = client.mount(&bench.request("large")).await;
    assert!(large.code == 9 && large.message.contains("maxCallRecvMsgSize"), "{large:?}");
    assert_eq!(client.mount(&bench.request("none")).await.code, 13);
}

/// What the edge found wrong with plan or token comes to the volume, which may live on without them.
#[tokio::test]
async fn plans_and_tokens_reach_the_volume_with_their_failures() {
    let bench = Bench::start(|command| {
        async move {
            let MountCommand { plan, token, class, provider, .. } = command;
            assert_eq!((class.as_str(), provider), ("db", ProviderName::Vault));
            plan.map_err(|failure| MountFailure::new(failure.kind, format!("plan: {failure}")))?;
            let token =
                token.map_err(|failure| MountFailure::new(failure.kind, format!("token: {failure}")))?;
            let Credential::Jwt(jwt) = &token.credential else { panic!("no token") };
            assert!(jwt.expose().ends_with(CANARY));
            Ok(one_version())
        }
        .boxed()
    });
    let client = bench.client().await;
    client.mount(&bench.request("shop")).await.decode::<proto::MountResponse>();
    let with = |key: &str, value: Value| {
        let mut attributes = attributes("shop");
        attributes[key] = value;
        proto::MountRequest { attributes: attributes.to_string(), ..bench.request("shop") }
    };
    for (request, code, message) in [
        (with("roleName", json!("")), 3, "plan: missing 'roleName' in SecretProviderClass definition"),
        (with("objects", json!("- [")), 3, "plan: "),
        (with("audience", json!("other")), 7, "plan: the node refuses audience \"other\""),
        (
            with("csi.storage.k8s.io/serviceAccount.tokens", json!("{}")),
            9,
            "token: no ServiceAccount token for audience \"vault\": add audience \"vault\" to spec.tokenRequests",
        ),
        (with("csi.storage.k8s.io/serviceAccount.tokens", json!("{")), 3, "token: the driver's"),
        (with("csi.storage.k8s.io/serviceAccount.name", json!("api")), 7, "token: the token for audience"),
        // These name no volume that could live on.
        (with("csi.storage.k8s.io/pod.uid", json!(null)), 3, "the call's attributes is no JSON object"),
        (with("csi.storage.k8s.io/pod.uid", json!("")), 3, "the call's attributes have no csi"),
    ] {
        let answer = client.mount(&request).await;
        assert!(answer.code == code && answer.message.starts_with(message), "{message}: {answer:?}");
        assert!(!answer.message.contains(CANARY), "{answer:?}");
    }
}

/// Set for the copy of this program that panics before its own log.
const TO_PANIC: &str = "LEASEHOLD_TEST_PANIC";

/// A panic is one line of the log that says where and not what, and an answer that says where to look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_told_as_the_page_has_it() {
    if std::env::var_os(TO_PANIC).is_some() {
        let log = LogConfig { level: Some(tracing::Level::INFO), format: LogFormat::Text };
        leasehold::telemetry::init(log);
        let bench = Bench::start(|_| async { panic!("{CANARY}") }.boxed());
        println!("answered: {}", bench.client().await.mount(&bench.request("shop")).await.message);
        return;
    }
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "codes::a_panic_is_told_as_the_page_has_it", "--nocapture"])
        .env(TO_PANIC, "1")
        .output()
        .await
        .unwrap();
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(output.status.success(), "{told}");
    page::brought_about(page::PANIC, &told);
    page::brought_about(page::FAILED_INSIDE, &told);
    assert!(!told.contains(CANARY), "{told}");
}
