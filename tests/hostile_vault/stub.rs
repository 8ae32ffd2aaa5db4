//! A server made of bytes: it reads a request, and sends whatever the test says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold::{
    backend::{
        BackendError, Credential, Grant, RequestContext, Secret, SecretBackend,
        vault::{Limits, VaultBackend},
    },
    secret::SecretString,
    spec::{ApiPath, Connection, LoginSpec, SecretRequest, TlsSpec},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// In every token and value of these tests: must never be seen outside of an answer.
pub(crate) const CANARY: &str = "canary-7f3a9c";

/// What a connection does after it read one request.
#[derive(Clone)]
pub(crate) enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Repeats these bytes until so many are sent.
    Flood(Vec<u8>, usize),
    /// Repeats this byte, slowly, for ever.
    Drip(u8),
    /// Says nothing, keeps the connection.
    Hang,
    /// Breaks the connection.
    Reset,
}

/// A listener that plays one script for every request.
pub(crate) struct Stub {
    pub(crate) port: u16,
    pub(crate) connects: Arc<AtomicUsize>,
    pub(crate) sent: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    pub(crate) async fn start(script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script)
    }

    pub(crate) fn on(
        listener: TcpListener,
        script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let stub = Self { port, connects: Arc::default(), sent: Arc::default(), requests: Arc::default() };
        let (connects, sent, requests) =
            (Arc::clone(&stub.connects), Arc::clone(&stub.sent), Arc::clone(&stub.requests));
        let script = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connects.fetch_add(1, Ordering::SeqCst);
                let (script, sent, requests) =
                    (Arc::clone(&script), Arc::clone(&sent), Arc::clone(&requests));
                tokio::spawn(serve(stream, script, sent, requests));
            }
        });
        stub
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn connects(&self) -> usize {
        self.connects.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

type Script = Arc<dyn Fn(&str) -> Vec<Step> + Send + Sync>;

async fn serve(mut stream: TcpStream, script: Script, sent: Arc<AtomicUsize>, seen: Arc<Mutex<Vec<String>>>) {
    let Some(request) = read_request(&mut stream).await else { return };
    seen.lock().unwrap().push(request.clone());
    for step in script(&request) {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Step::Flood(bytes, total) => {
                let mut written = 0;
                while written < total && stream.write_all(&bytes).await.is_ok() {
                    written += bytes.len();
                    sent.fetch_add(bytes.len(), Ordering::SeqCst);
                }
            }
            Step::Drip(byte) => {
                while stream.write_all(&[byte]).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Step::Hang => {
                let _ = stream.read(&mut [0; 64]).await;
                return;
            }
            Step::Reset => {
                // What was sent must be on its way, or the reset overtakes it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.set_zero_linger().unwrap();
                return;
            }
        }
    }
    let _ = stream.shutdown().await;
    // Draining keeps unread bytes from turning the close into a reset.
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut [0; 64])).await;
}

/// Head and body of one request.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some(text);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// An HTTP answer with a JSON body.
pub(crate) fn json(status: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    vec![Step::Send(
        format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
            .into_bytes(),
    )]
}

/// A login that succeeds, token and all.
pub(crate) fn good_login() -> Vec<Step> {
    json(
        "200 OK",
        &format!(
            r#"{{"request_id":"d2f5960c-1111-2222-3333-444455556666","auth":{{"client_token":"s.{CANARY}","accessor":"acc","metadata":{{"service_account_uid":"u"}},"lease_duration":3600,"renewable":true,"token_type":"service","num_uses":0}}}}"#
        ),
    )
}

/// A read that succeeds.
pub(crate) fn good_read() -> Vec<Step> {
    json(
        "200 OK",
        &format!(
            r#"{{"request_id":"d2f5960c-1111-2222-3333-444455556666","data":{{"password":"{CANARY}"}}}}"#
        ),
    )
}

pub(crate) fn limits() -> Limits {
    Limits {
        connect: Duration::from_millis(2500),
        first_byte: Duration::from_millis(2500),
        body: 1024 * 1024,
    }
}

pub(crate) fn context(address: &str, tls: TlsSpec) -> RequestContext {
    RequestContext {
        connection: Arc::new(Connection { address: address.to_owned(), namespace: String::new(), tls }),
        timeout: Duration::from_secs(4),
        on_behalf_of: "prod/app-1".into(),
        serves: Arc::default(),
        accessor: Some("acc".into()),
    }
}

pub(crate) fn token() -> SecretString {
    format!("s.{CANARY}").into()
}

pub(crate) async fn login(
    backend: &VaultBackend,
    address: &str,
    tls: TlsSpec,
) -> Result<Grant, BackendError> {
    let login = LoginSpec {
        method: Default::default(),
        mount: ApiPath::parse("kubernetes").unwrap(),
        role: "app".to_owned(),
        audience: "vault".to_owned(),
    };
    backend.login(context(address, tls), &login, &Credential::Jwt(format!("jwt.{CANARY}").into())).await
}

pub(crate) async fn fetch(
    backend: &VaultBackend,
    address: &str,
    tls: TlsSpec,
) -> Result<Secret, BackendError> {
    let request = SecretRequest {
        query: BTreeMap::from([("version".to_owned(), vec!["3".to_owned()])]),
        ..SecretRequest::read(ApiPath::parse("secret/data/app").unwrap())
    };
    backend.fetch(context(address, tls), &token(), &request).await
}

/// The client that one would write without a thought, to show what it does.
pub(crate) fn naive() -> reqwest::ClientBuilder {
    // Fails when another test of this process was first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([])
}
