//! What callers see on the wire and on the command line: codes, callers and targets that are refused, old
//! drivers, floods, flags. The volumes behind are scripted; the sockets, the HTTP/2 and the binary are real.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "wire/cli.rs"]
mod cli;
#[path = "wire/codes.rs"]
mod codes;
#[path = "support/old_driver.rs"]
#[allow(unreachable_pub, reason = "shared with the other test binaries")]
mod old_driver;
#[path = "support/page.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the other test binaries")]
mod page;
#[path = "wire/peers.rs"]
mod peers;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use hyper::body::Bytes;
use leasehold::{
    config::AUTH_MOUNT,
    kubernetes::Cluster,
    metrics::Metrics,
    policy::{Baseline, Policy},
    provider::{Edge, Endpoint, Node, proto},
    spec::{ProviderName, TlsSpec, parameters::Defaults},
    volume::{MountAnswer, MountCommand, MountFailure},
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

/// Bound for what takes the machine at most a second when it is not busy.
const SOON: Duration = Duration::from_secs(30);
const MOUNT: &str = "/v1alpha1.CSIDriverProvider/Mount";
const VERSION: &str = "/v1alpha1.CSIDriverProvider/Version";
/// Stands in every test for what must not be seen: part of every token and of what a panic says.
const CANARY: &str = "canary-7f3a";

type Outcome = Result<MountAnswer, MountFailure>;

/// One socket, `vault.sock`, before scripted volumes.
struct Bench {
    folder: tempfile::TempDir,
    edge: Edge,
    calls: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn start(script: impl Fn(MountCommand) -> BoxFuture<'static, Outcome> + Send + Sync + 'static) -> Self {
        Self::start_with(true, script)
    }

    fn start_with(
        authority_shim: bool,
        script: impl Fn(MountCommand) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (calls, metrics) = (Arc::new(AtomicUsize::new(0)), Arc::new(Metrics::new()));
        let counted = Arc::clone(&calls);
        let defaults = Defaults {
            address: Some("http://127.0.0.1:1".into()),
            namespace: String::new(),
            auth_mount: AUTH_MOUNT.into(),
            node: String::new(),
            tls: TlsSpec::default(),
        };
        let baseline = Baseline { addresses: vec!["http://127.0.0.1:1".into()], ..Baseline::default() };
        let node = Node {
            mounter: Arc::new(move |command| {
                counted.fetch_add(1, Ordering::SeqCst);
                script(command)
            }),
            policy: Policy::baseline(baseline),
            defaults: BTreeMap::from([(ProviderName::Vault, defaults)]),
            kubelet_root: folder.path().join("kubelet"),
            cluster: Cluster::default(),
            sightings: Arc::default(),
            metrics: Arc::clone(&metrics),
        };
        let endpoint = Endpoint { path: folder.path().join("vault.sock"), provider: ProviderName::Vault };
        let edge = Edge::start(node, &[endpoint], authority_shim).unwrap();
        Self { folder, edge, calls, metrics }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vault.sock")
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// A Mount as driver 1.6.0 sends it, for a pod of `namespace`.
    fn request(&self, namespace: &str) -> proto::MountRequest {
        proto::MountRequest {
            attributes: attributes(namespace).to_string(),
            secrets: "null".into(),
            target_path: target(&self.folder.path().join("kubelet")),
            permission: "420".into(),
            current_object_version: Vec::new(),
        }
    }

    async fn client(&self) -> Wire {
        Wire::connect(UnixStream::connect(self.socket()).await.unwrap(), "localhost").await
    }
}

fn target(kubelet: &Path) -> String {
    format!("{}/pods/pod-uid/volumes/kubernetes.io~csi/secrets/mount", kubelet.display())
}

fn attributes(namespace: &str) -> Value {
    let claims = json!({
        "aud": ["vault"], "exp": 4_000_000_000_u64, "iat": 1_000, "canary": CANARY,
        "kubernetes.io": {
            "namespace": namespace,
            "pod": {"name": "web-0", "uid": "pod-uid"},
            "serviceaccount": {"name": "web", "uid": "sa-uid"},
        },
    });
    let jwt =
        format!("e30.{}.{CANARY}", data_encoding::BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
    json!({
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "web-0",
        "csi.storage.k8s.io/pod.namespace": namespace,
        "csi.storage.k8s.io/pod.uid": "pod-uid",
        "csi.storage.k8s.io/serviceAccount.name": "web",
        "csi.storage.k8s.io/serviceAccount.tokens":
            json!({"vault": {"token": jwt, "expirationTimestamp": "2096-10-02T07:06:40Z"}}).to_string(),
        "objects": "- {objectName: a, secretPath: secret/data/a, secretKey: k}\n",
        "roleName": "web",
        "secretProviderClass": "db",
    })
}

fn one_version() -> MountAnswer {
    MountAnswer { versions: vec![("a".into(), "1".into())], files: Vec::new() }
}

fn forever() -> BoxFuture<'static, Outcome> {
    std::future::pending().boxed()
}

/// A client that hides nothing of what the server does.
struct Wire {
    send: h2::client::SendRequest<Bytes>,
    authority: String,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    code: i32,
    message: String,
    body: Bytes,
}

impl Wire {
    async fn connect(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, authority: &str) -> Self {
        let (send, connection) = h2::client::handshake(io).await.unwrap();
        // Its error comes out of the calls as well.
        tokio::spawn(async move { connection.await.ok() });
        Self { send, authority: authority.to_owned() }
    }

    async fn mount(&self, request: &proto::MountRequest) -> Answer {
        self.call(MOUNT, None, &request.encode_to_vec()).await.unwrap()
    }

    /// One call, at most 30 s; an error is a stream or connection that the server broke.
    async fn call(&self, path: &str, timeout: Option<&str>, message: &[u8]) -> Result<Answer, h2::Error> {
        tokio::time::timeout(SOON, self.exchange(path, timeout, message))
            .await
            .expect("an answer within 30 s")
    }

    async fn exchange(&self, path: &str, timeout: Option<&str>, message: &[u8]) -> Result<Answer, h2::Error> {
        let mut request = http::Request::post(format!("http://{}{path}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let framed: Bytes = [&[0], length.as_slice(), message].concat().into();
        let mut send = self.send.clone().ready().await?;
        let (response, mut body) = send.send_request(request.body(()).unwrap(), false)?;
        // Refused before the data left: the answer, or the reset, says why.
        let _refused_early = body.send_data(framed, true);
        let (head, mut body) = response.await?.into_parts();
        let mut data = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            data.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        let text = |name: &str| trailers.get(name).map(|value| value.to_str().unwrap().to_owned());
        Ok(Answer {
            code: text("grpc-status").expect("a gRPC status").parse().unwrap(),
            message: text("grpc-message").unwrap_or_default().replace("%20", " ").replace("%22", "\""),
            body: Bytes::from(data),
        })
    }
}

impl Answer {
    fn decode<M: Message + Default>(&self) -> M {
        assert_eq!(self.code, 0, "{self:?}");
        M::decode(&self.body[5..]).unwrap()
    }

    /// Whether the kubelet takes it for a failure (isFinalError of its CSI client).
    fn is_final(&self) -> bool {
        ![1, 4, 8, 10, 14].contains(&self.code)
    }
}

/// Waits for a condition, with a bound.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waited).await.unwrap_or_else(|_| panic!("not within 30 s: {what}"));
}
