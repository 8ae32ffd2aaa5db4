//! What the driver's calls show of its settings: nobody else tells us. Each finding is logged once and stands in
//! the readiness report until the calls show otherwise.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tracing::{info, warn};

use crate::admin::Readiness;

const OLD_DRIVER: &str = "the Secrets Store CSI driver is older than 1.6.0 (its :authority is the socket's path): it \
                          works; it polls by a controller of its own instead of the kubelet's republish, and makes \
                          tokens itself with cluster-wide rights; upgrade it";
const NO_TOKENS: &str = "the driver passes no ServiceAccount tokens: set tokenRequests in the driver's chart (CSIDriver \
                         secrets-store.csi.k8s.io), or let leasehold ask for them (--token-request)";

/// What calls have shown so far.
#[derive(Debug, Default)]
pub struct Sightings {
    readiness: Arc<Readiness>,
    old_driver: AtomicBool,
    no_tokens: AtomicBool,
}

impl Sightings {
    /// Nothing seen; findings go to `readiness`.
    pub fn new(readiness: Arc<Readiness>) -> Self {
        Self { readiness, ..Self::default() }
    }

    /// A connection sent a socket path as its authority.
    pub fn old_driver(&self) {
        if !self.old_driver.swap(true, Ordering::Relaxed) {
            warn!("{OLD_DRIVER}");
            self.readiness.degrade("driver", OLD_DRIVER);
        }
    }

    /// A call came, with tokens or without any.
    pub fn call(&self, has_tokens: bool) {
        if self.no_tokens.swap(!has_tokens, Ordering::Relaxed) != has_tokens {
            return;
        }
        if has_tokens {
            info!("the driver passes ServiceAccount tokens now");
            self.readiness.clear("tokenRequests");
        } else {
            warn!("{NO_TOKENS}");
            self.readiness.degrade("tokenRequests", NO_TOKENS);
        }
    }

    /// The volume that the driver neglects longest had its last call `since` ago, and `expected` is usual.
    pub fn neglected(readiness: &Readiness, since: Option<Duration>, expected: Duration) {
        match since.filter(|since| *since > expected) {
            None => readiness.clear("rotation"),
            Some(since) => readiness.degrade("rotation", no_rotation(since)),
        }
    }
}

/// Said of a driver that does not call again.
pub fn no_rotation(since: Duration) -> String {
    format!(
        "the driver has not called again for a mounted volume in {} s: is enableSecretRotation on in the driver's chart? \
         Without it tokens are not refreshed and edits of a SecretProviderClass are not seen; if rotationPollInterval \
         is long on purpose, raise --expect-republish",
        since.as_secs()
    )
}
