//! The driver's gRPC client: its authority, deadline, retry policy and limits.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    time::Instant,
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    old_driver::{SocketPathAuthority, placeholder},
    proto::{self, csi_driver_provider_client::CsiDriverProviderClient},
};

/// Helm `maxCallRecvMsgSize`.
pub const MAX_RECEIVE: usize = 4_194_304;

/// Which driver dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dial {
    /// 1.6.0: `:authority: localhost`.
    #[default]
    Localhost,
    /// Up to 1.5.6: `:authority` is the socket's path.
    SocketPath,
}

/// A client for one socket, as the driver caches it for its whole life.
#[derive(Clone, Debug)]
pub struct ProviderClient {
    grpc: CsiDriverProviderClient<Channel>,
}

impl ProviderClient {
    /// A client that connects when it is first used.
    pub fn new(socket: &Path, dial: Dial) -> Self {
        let origin = match dial {
            Dial::Localhost => "http://localhost".to_owned(),
            Dial::SocketPath => format!("http://{}", placeholder(socket)),
        };
        let channel = Endpoint::from_shared(origin)
            .expect("a URI")
            .user_agent("grpc-go/1.79.3")
            .expect("a user agent")
            .connect_with_connector_lazy(Connector { socket: socket.to_owned(), dial });
        Self { grpc: CsiDriverProviderClient::new(channel).max_decoding_message_size(MAX_RECEIVE) }
    }

    /// `Version`, once.
    pub async fn version(&self) -> Result<proto::VersionResponse, Status> {
        let request = proto::VersionRequest { version: "v1alpha1".into() };
        Ok(self.grpc.clone().version(request).await?.into_inner())
    }

    /// `Mount` under the driver's service config: wait for ready, three attempts on UNAVAILABLE. `calls`
    /// counts the attempts that went out.
    pub async fn mount(
        &self,
        request: &proto::MountRequest,
        deadline: Instant,
        mut calls: impl FnMut(),
    ) -> Result<proto::MountResponse, Status> {
        const ATTEMPTS: u32 = 3;
        let work = async {
            let mut attempt = 1;
            let mut reconnect = Duration::from_secs(1);
            loop {
                let mut call = Request::new(request.clone());
                call.set_timeout(deadline.saturating_duration_since(Instant::now()));
                let status = match self.grpc.clone().mount(call).await {
                    Ok(response) => {
                        calls();
                        return Ok(response.into_inner());
                    }
                    Err(status) => status,
                };
                if nobody_listens(&status) {
                    // grpc-go: waitForReady, 1 s * 1.6, at most 120 s.
                    tokio::time::sleep(reconnect).await;
                    reconnect = reconnect.mul_f64(1.6).min(Duration::from_secs(120));
                    continue;
                }
                calls();
                let status = as_grpc_go(status);
                if status.code() != Code::Unavailable || attempt == ATTEMPTS {
                    return Err(status);
                }
                attempt += 1;
                // initialBackoff 1 s, factor 1.1; grpc-go takes a random part of it.
                tokio::time::sleep(Duration::from_millis(rand::random_range(800..1_100))).await;
            }
        };
        match tokio::time::timeout_at(deadline, work).await {
            Ok(Err(_)) | Err(_) if Instant::now() >= deadline => {
                Err(Status::deadline_exceeded("context deadline exceeded"))
            }
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
        }
    }
}

/// Whether the call failed before it left, because there is no server behind the socket.
fn nobody_listens(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        }
        source = error.source();
    }
    false
}

/// Codes that tonic gives to what grpc-go names otherwise.
fn as_grpc_go(status: Status) -> Status {
    if status.code() == Code::OutOfRange && status.message().contains("message length too large") {
        return Status::resource_exhausted("grpc: received message larger than max");
    }
    if std::error::Error::source(&status).is_some() && status.code() == Code::Unknown {
        return Status::unavailable(format!("error reading from server: {}", status.message()));
    }
    status
}

#[derive(Clone, Debug)]
struct Connector {
    socket: PathBuf,
    dial: Dial,
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Pin<Box<dyn Stream>>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { socket, dial } = self.clone();
        Box::pin(async move {
            let stream = UnixStream::connect(&socket).await?;
            let stream: Pin<Box<dyn Stream>> = match dial {
                Dial::Localhost => Box::pin(stream),
                Dial::SocketPath => Box::pin(SocketPathAuthority::new(stream, &socket)),
            };
            Ok(TokioIo::new(stream))
        })
    }
}
