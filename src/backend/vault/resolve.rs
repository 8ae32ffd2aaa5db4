//! Name resolution that no DNS answer can turn against the node.
//!
//! Policy compares names; an attacker who owns a name owns its addresses, and may change them between the
//! check and the connect. So the addresses are judged here, where the connection is made.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::{Host, forbidden, is_loopback};

/// Why a name was not resolved to something to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResolveError {
    /// No such name, or the name server did not answer.
    #[error("the name does not resolve")]
    Unknown,
    /// Every address behind the name is one that we never connect to.
    #[error("the name resolves to {ip}, {kind}")]
    Forbidden {
        /// The first such address.
        ip: IpAddr,
        /// Of what kind it is.
        kind: &'static str,
    },
}

/// Resolves the host of one address, whatever name TLS verifies.
pub(super) struct HostResolver {
    host: Arc<Host>,
}

impl HostResolver {
    pub(super) fn new(host: Host) -> Self {
        Self { host: Arc::new(host) }
    }
}

impl Resolve for HostResolver {
    // The name asked for is the TLS server name where one is set; the connection goes to the address's host.
    fn resolve(&self, _: Name) -> Resolving {
        let host = Arc::clone(&self.host);
        Box::pin(async move {
            let addresses = match host.as_ref() {
                Host::Ip(ip) => vec![*ip],
                Host::Name(name) => {
                    let found = tokio::net::lookup_host((name.as_str(), 0)).await;
                    judge(name, found.map_err(|_| ResolveError::Unknown)?.map(|address| address.ip()))?
                }
            };
            let addresses: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

/// The addresses of `name` that may be connected to.
fn judge(name: &str, found: impl Iterator<Item = IpAddr>) -> Result<Vec<IpAddr>, ResolveError> {
    // Whoever wrote `localhost` meant this host, and policy let him; any other name that leads here is a
    // rebinding.
    let local = name == "localhost" || name.ends_with(".localhost");
    let mut refused = ResolveError::Unknown;
    let mut kept = Vec::new();
    for ip in found {
        let kind = forbidden(ip).or((is_loopback(ip) && !local).then_some("this host's loopback"));
        match kind {
            Some(kind) => refused = ResolveError::Forbidden { ip, kind },
            None => kept.push(ip),
        }
    }
    if kept.is_empty() { Err(refused) } else { Ok(kept) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "literals in a table")]

    use super::*;

    #[test]
    fn no_name_leads_to_the_node_itself() {
        for (name, found, kept) in [
            ("evil.example", "127.0.0.1", false),
            ("evil.example", "::1", false),
            ("evil.example", "::ffff:127.0.0.1", false),
            ("evil.example", "::ffff:169.254.169.254", false),
            ("evil.example", "64:ff9b::7f00:1", false),
            ("evil.example", "169.254.169.254", false),
            ("evil.example", "fe80::1", false),
            ("evil.example", "fd00:ec2::254", false),
            ("evil.example", "0.0.0.0", false),
            ("evil.example", "::", false),
            ("evil.example", "224.0.0.1", false),
            ("localhost", "169.254.169.254", false),
            ("localhost", "127.0.0.1", true),
            ("vault.localhost", "::1", true),
            ("notlocalhost", "127.0.0.1", false),
            ("vault.example", "10.1.2.3", true),
            ("vault.example", "fd12::1", true),
        ] {
            let ip: IpAddr = found.parse().unwrap();
            assert_eq!(judge(name, [ip].into_iter()).is_ok(), kept, "{name} {found}");
        }
        let mixed: [IpAddr; 2] = ["169.254.169.254".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        assert_eq!(judge("vault.example", mixed.into_iter()).unwrap(), [mixed[1]]);
        assert_eq!(judge("vault.example", [].into_iter()), Err(ResolveError::Unknown));
    }
}
