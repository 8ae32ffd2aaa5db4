//! What the driver's calls show of its settings: nobody else tells us. Each finding is logged once and stands in
//! the readiness report until the calls show otherwise.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::{admin::Readiness, spec::VolumeSpec};

const OLD_DRIVER: &str = "the Secrets Store CSI driver is older than 1.6.0 (its :authority is the socket's path): it \
                          works; it polls by a controller of its own instead of the kubelet's republish, and makes \
                          tokens itself with cluster-wide rights; upgrade it";
const NO_TOKENS: &str = "the driver passes no ServiceAccount tokens: set tokenRequests in the driver's chart (CSIDriver \
                         secrets-store.csi.k8s.io), or let leasehold ask for them (--token-request)";

const NO_CHOWN: &str = "SecretProviderClasses ask for fileOwner or fileGroup, and the container lacks the capability \
                        CHOWN: their mounts fail; add it (in the chart fileOwnership.enabled=true)";

/// Longest name of a gRPC library that is kept, bytes.
const MAX_USER_AGENT: usize = 64;

/// What its calls show of the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// Whether it is 1.6.0 or newer, by its `:authority`; `None` before its first call.
    pub newer: Option<bool>,
    /// What its gRPC library calls itself; empty when it does not say.
    pub user_agent: String,
    /// The audiences that the last call brought tokens for.
    pub audiences: Vec<String>,
}

/// What calls have shown so far.
#[derive(Debug, Default)]
pub struct Sightings {
    readiness: Arc<Readiness>,
    may_chown: bool,
    driver: Mutex<Driver>,
    no_tokens: AtomicBool,
    no_chown: AtomicBool,
}

impl Sightings {
    /// Nothing seen; findings go to `readiness`. `may_chown` is whether this process may give files away.
    pub fn new(readiness: Arc<Readiness>, may_chown: bool) -> Self {
        Self { readiness, may_chown, ..Self::default() }
    }

    /// What is known of the driver.
    pub fn driver(&self) -> Driver {
        self.seen().clone()
    }

    /// A connection sent a socket path as its authority.
    pub fn old_driver(&self) {
        if self.seen().newer.replace(false) != Some(false) {
            warn!("{OLD_DRIVER}");
            self.readiness.degrade("driver", OLD_DRIVER);
        }
    }

    /// A request came by the authority that the driver sends since 1.6.0, or by another.
    pub fn request(&self, newer: bool, user_agent: &str) {
        let mut driver = self.seen();
        if driver.user_agent != user_agent {
            driver.user_agent = user_agent.chars().take(MAX_USER_AGENT).collect();
        }
        if newer && driver.newer.replace(true) == Some(false) {
            info!("the driver is 1.6.0 or newer now");
            self.readiness.clear("driver");
        }
    }

    /// A call brought tokens for these audiences.
    pub fn audiences<'a>(&self, audiences: impl Iterator<Item = &'a str>) {
        self.seen().audiences = audiences.map(str::to_owned).collect();
    }

    /// A Mount asks for these files.
    pub fn asked_for(&self, spec: &VolumeSpec) {
        let gives_away = |id: Option<u32>| id.is_some_and(|id| id != 0);
        let owned = spec
            .objects
            .iter()
            .any(|object| object.owner.is_some_and(|it| gives_away(it.uid) || gives_away(it.gid)));
        if owned && !self.may_chown && !self.no_chown.swap(true, Ordering::Relaxed) {
            warn!("{NO_CHOWN}");
            self.readiness.degrade("ownership", NO_CHOWN);
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
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
