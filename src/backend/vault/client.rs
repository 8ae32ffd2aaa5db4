//! HTTP clients, one per server and TLS settings, shared by every mount that talks to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderValue;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    address::{VaultAddress, authority},
    files::Stamp,
    resolve::HostResolver,
    tls::{self, Loaded, ServerNameOverride},
    transport::TransportError,
};
use crate::{
    clock::{BootTime, boot_now},
    spec::{Connection, TlsSpec},
};

/// Most clients kept: a node talks to one or two servers; tenants may multiply TLS settings, not memory.
const MAX_CLIENTS: usize = 64;

/// A client unused for this long goes when another is built.
const IDLE_CLIENT: Duration = Duration::from_secs(600);

/// Idle connections kept per server. Requests of a node come in short bursts; more would only hold sockets
/// and TLS buffers (about 40 KiB each).
const IDLE_CONNECTIONS: usize = 4;

/// How long a connection idles before it is closed: shorter than the usual 90 s or more of servers and load
/// balancers, so that we close first.
const IDLE_CONNECTION: Duration = Duration::from_secs(60);

/// How often TLS files are looked at, at most. A kubelet needs about a minute to bring a new ConfigMap.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// What it takes to send to one server.
#[derive(Clone)]
pub(super) struct Endpoint {
    /// The pooled client.
    pub(super) client: reqwest::Client,
    /// What goes in front of `/v1/…`; its host is the TLS server name where one is set.
    pub(super) base: Arc<str>,
    /// The Host header, where it is not the base's host.
    pub(super) host: Option<HeaderValue>,
}

type Key = (String, TlsSpec);
type Slot = Arc<AsyncMutex<Option<Built>>>;

struct Built {
    endpoint: Endpoint,
    stamps: Vec<Stamp>,
    checked: BootTime,
    warned: bool,
}

/// All clients of this process.
pub(super) struct ClientPool {
    connect_timeout: Duration,
    slots: Mutex<BTreeMap<Key, (BootTime, Slot)>>,
}

impl ClientPool {
    pub(super) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, slots: Mutex::default() }
    }

    /// The client for `connection`, built or rebuilt when its TLS files changed.
    pub(super) async fn endpoint(&self, connection: &Connection) -> Result<Endpoint, TransportError> {
        let (address, tls) = parts(connection)?;
        let slot = self.slot((address.to_string(), tls.clone()));
        // Held while files are read: a hundred mounts that start together build one client.
        let mut slot = slot.lock().await;
        // What no file went into cannot go stale.
        let fresh =
            |built: &&Built| built.stamps.is_empty() || built.checked.until(boot_now()) < RELOAD_INTERVAL;
        if let Some(built) = slot.as_ref().filter(fresh) {
            return Ok(built.endpoint.clone());
        }
        let name = address.to_string();
        match (self.look(&mut slot, address, tls).await, slot.as_mut()) {
            (Ok(_), Some(built)) => Ok(built.endpoint.clone()),
            (Ok(_), None) => Err(TransportError::Tls(tls::TlsError::Unusable)),
            (Err(error), Some(built)) => {
                if !std::mem::replace(&mut built.warned, true) {
                    tracing::warn!(
                        address = name,
                        %error,
                        "TLS files changed and cannot be used; connections keep the previous ones"
                    );
                }
                Ok(built.endpoint.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Looks at the TLS files now, whenever that was done last. Whether connections are other ones from here on.
    pub(super) async fn reload(&self, connection: &Connection) -> Result<bool, TransportError> {
        let (address, tls) = parts(connection)?;
        let slot = self.slot((address.to_string(), tls.clone()));
        let mut slot = slot.lock().await;
        let outcome = self.look(&mut slot, address, tls).await;
        if let (Err(_), Some(built)) = (&outcome, slot.as_mut()) {
            // Whoever asked tells of it.
            built.warned = true;
        }
        outcome
    }

    /// Builds the slot's client where its files are others than when it was built last. Whether it did.
    async fn look(
        &self,
        slot: &mut Option<Built>,
        address: VaultAddress,
        tls: TlsSpec,
    ) -> Result<bool, TransportError> {
        let now = boot_now();
        if let Some(built) = slot {
            built.checked = now;
        }
        let known = slot.as_ref().map(|built| built.stamps.clone());
        let connect_timeout = self.connect_timeout;
        let task = tokio::task::spawn_blocking(move || {
            if known.is_some_and(|stamps| !stamps.iter().any(Stamp::is_stale)) {
                return Ok(None);
            }
            build(&address, &tls, connect_timeout).map(Some)
        });
        // A panic while parsing a certificate is that certificate's fault, and no reason to take others down.
        let outcome = task.await.unwrap_or(Err(TransportError::Tls(tls::TlsError::Unusable)));
        let Some((endpoint, stamps)) = outcome? else { return Ok(false) };
        *slot = Some(Built { endpoint, stamps, checked: now, warned: false });
        Ok(true)
    }

    fn slot(&self, key: Key) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let now = boot_now();
        if let Some((used, slot)) = slots.get_mut(&key) {
            *used = now;
            return Arc::clone(slot);
        }
        slots.retain(|_, (used, _)| used.until(now) < IDLE_CLIENT);
        if slots.len() >= MAX_CLIENTS {
            let oldest = slots.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| slots.remove(&key));
        }
        let slot = Slot::default();
        slots.insert(key, (now, Arc::clone(&slot)));
        slot
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Where to connect to, and what of TLS matters there.
fn parts(connection: &Connection) -> Result<(VaultAddress, TlsSpec), TransportError> {
    let address = VaultAddress::parse(&connection.address)?;
    let tls = if address.is_tls() { connection.tls.clone() } else { TlsSpec::default() };
    Ok((address, tls))
}

type BuiltParts = (Endpoint, Vec<Stamp>);

fn build(address: &VaultAddress, tls: &TlsSpec, connect: Duration) -> Result<BuiltParts, TransportError> {
    let Loaded { config, stamps } = if address.is_tls() { tls::load(tls)? } else { tls::none()? };
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        // reqwest would send X-Vault-Token along to any host a redirect names.
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        // For `doctor`: the names and the end of the server's certificate.
        .tls_info(true)
        .http1_only()
        .connect_timeout(connect)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_CONNECTION)
        .user_agent(concat!("leasehold/", env!("CARGO_PKG_VERSION")));
    let (builder, base, host) = match address {
        VaultAddress::Unix(path) => {
            (builder.unix_socket(path.as_path()), "http://localhost".to_owned(), None)
        }
        VaultAddress::Tcp { tls: secure, host, port, base_path } => {
            let builder = builder.dns_resolver(HostResolver::new(host.clone()));
            match ServerNameOverride::of(tls)? {
                ServerNameOverride::Name(name) => {
                    let base = format!("https://{name}:{port}{base_path}");
                    let header = HeaderValue::from_str(&authority(host, *port, *secure));
                    (builder, base, header.ok())
                }
                ServerNameOverride::None | ServerNameOverride::Ip(_) => (builder, address.to_string(), None),
            }
        }
    };
    let client = builder.build().map_err(|_| TransportError::Tls(tls::TlsError::Unusable))?;
    Ok((Endpoint { client, base: base.into(), host }, stamps))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed build fails the test")]

    use super::*;

    #[tokio::test]
    async fn clients_are_shared_and_bounded() {
        let pool = ClientPool::new(Duration::from_secs(1));
        let connection = |host: usize, namespace: &str| Connection {
            address: format!("http://vault-{host}:8200"),
            namespace: namespace.to_owned(),
            tls: TlsSpec::default(),
        };
        for host in 0..MAX_CLIENTS + 40 {
            pool.endpoint(&connection(host, "a")).await.unwrap();
            pool.endpoint(&connection(host, "b")).await.unwrap();
        }
        assert_eq!(pool.len(), MAX_CLIENTS);
        let plain =
            Connection { tls: TlsSpec { skip_verify: true, ..TlsSpec::default() }, ..connection(100, "a") };
        pool.endpoint(&plain).await.unwrap();
        assert_eq!(pool.len(), MAX_CLIENTS, "TLS settings do not multiply plain-text clients");
    }
}
