//! Shape 1, the gRPC edge: what the Secrets Store CSI driver calls over our unix sockets.
//!
//! `listener` owns the sockets, `authority` lets drivers before 1.6.0 in, `request` and `token` turn what
//! the driver sent into typed values, `service` runs a call and is the only place that makes a status.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet, time::timeout};
use tracing::{info, warn};

pub use listener::ListenError;
use listener::{Phase, Socket};
pub use service::{Mounter, Node};
use service::{Service, Shared};

use crate::spec::ProviderName;

pub mod authority;
pub mod listener;
pub mod request;
pub mod service;
pub mod sightings;
pub mod token;

/// The driver's interface, generated from `proto/v1alpha1/service.proto`. Messages that carry tokens or
/// secrets have no `Debug`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("v1alpha1");
}

/// Time for answers to leave after the calls in flight were told to end.
const CLOSING: Duration = Duration::from_secs(2);

/// A socket to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the driver finds it.
    pub path: PathBuf,
    /// As whom it serves: the file's name.
    pub provider: ProviderName,
}

/// The sockets, being served.
#[derive(Debug)]
pub struct Edge {
    phase: watch::Sender<Phase>,
    sockets: JoinSet<()>,
}

impl Edge {
    /// Binds every endpoint and serves it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The first endpoint that cannot be bound; those before it are unlinked again.
    pub fn start(node: Node, endpoints: &[Endpoint], authority_shim: bool) -> Result<Self, ListenError> {
        let (phase, watched) = watch::channel(Phase::Serving);
        let shared = Arc::new(Shared::new(node, watched.clone()));
        let mut bound: Vec<(ProviderName, Socket)> = Vec::new();
        for endpoint in endpoints {
            listener::warn_if_shadowed(
                endpoint.provider,
                &endpoint.path,
                Path::new(listener::SHADOWING_FOLDER),
            );
            match Socket::bind(&endpoint.path) {
                Ok(socket) => bound.push((endpoint.provider, socket)),
                Err(error) => {
                    bound.iter().for_each(|(_, socket)| socket.unlink());
                    return Err(error);
                }
            }
        }
        let mut sockets = JoinSet::new();
        for (provider, socket) in bound {
            info!(%provider, path = %socket.path().display(), "listening");
            let service = Arc::new(Service::new(provider, Arc::clone(&shared)));
            sockets.spawn(listener::serve(socket, service, authority_shim, watched.clone()));
        }
        Ok(Self { phase, sockets })
    }

    /// Unlinks the sockets, gives the calls in flight `patience` to end, and answers the rest INTERNAL: the
    /// kubelet calls again, and the driver waits for the next socket at the path.
    pub async fn drain(mut self, patience: Duration) {
        self.phase.send_replace(Phase::Draining);
        if timeout(patience, self.ended()).await.is_ok() {
            return;
        }
        self.phase.send_replace(Phase::Closing);
        if timeout(CLOSING, self.ended()).await.is_err() {
            warn!("connections of the driver are still open at the end");
        }
    }

    async fn ended(&mut self) {
        while self.sockets.join_next().await.is_some() {}
    }
}
