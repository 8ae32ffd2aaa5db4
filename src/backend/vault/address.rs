//! Addresses of a server: parsed strictly, compared in one canonical form.
//!
//! A tenant may choose the address, so nothing here is repaired: what a URL parser would fold into
//! something else (`127.1`, `0x7f000001`, `a@b`, `\`) is refused, and what is left means the same to the
//! policy that compares it and to the client that dials it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

/// Longest address accepted, bytes: a host name of 253 and room for a base path.
const MAX_LENGTH: usize = 1024;

/// Longest path of a unix socket, bytes: `sun_path` less its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Cloud metadata and host endpoints outside the link-local ranges: AWS over IPv6, Google over IPv6,
/// Alibaba, Oracle, and Azure's wire server. They hand out credentials of the node.
const METADATA: [IpAddr; 5] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// Why an address is refused. Never repeats the address: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Longer than any real one.
    #[error("the server address is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// Spaces, control or non-ASCII bytes, percent signs, backslashes.
    #[error("the server address holds a character that has no place in one: write scheme://host:port only")]
    Character,
    /// Not one of the three.
    #[error("the server address must start with https://, http:// or unix:///")]
    Scheme,
    /// `user:password@`.
    #[error("the server address must not carry a user name or password")]
    UserInfo,
    /// `?…` or `#…`.
    #[error("the server address must not carry a query or fragment")]
    QueryOrFragment,
    /// A base path with an empty, `.` or `..` segment, or unusual characters.
    #[error(
        "the path in the server address is not plain: no empty, `.` or `..` segment, letters, digits and -._~ only"
    )]
    Path,
    /// Not a DNS name, not dotted-quad IPv4, not bracketed IPv6.
    #[error("the host in the server address is neither a DNS name nor an IP address in its usual spelling")]
    Host,
    /// A literal that no server of secrets has.
    #[error("the server address names {ip}, {kind}: refused, no secret store lives there")]
    Forbidden {
        /// The literal.
        ip: IpAddr,
        /// Of what kind it is.
        kind: &'static str,
    },
    /// Not 1 to 65535 in plain decimal.
    #[error("the port in the server address is not a number from 1 to 65535")]
    Port,
    /// Not absolute, not normal, too long.
    #[error(
        "the socket path in the server address must be absolute, normal and at most {MAX_SOCKET_PATH} bytes"
    )]
    SocketPath,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VaultAddress {
    /// Over TCP.
    Tcp {
        /// Whether TLS is spoken.
        tls: bool,
        /// Host.
        host: Host,
        /// Port, the scheme's default when none was written.
        port: u16,
        /// Path in front of `/v1`, with a leading and without a trailing slash; empty mostly.
        base_path: String,
    },
    /// Over a unix socket, in plain HTTP.
    Unix(PathBuf),
}

/// A host in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A DNS name, lower-case, without a final dot.
    Name(String),
    /// A literal, none of the forbidden ones.
    Ip(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

impl fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { tls, host, port, base_path } => {
                f.write_str(if *tls { "https://" } else { "http://" })?;
                write!(f, "{}{base_path}", authority(host, *port, *tls))
            }
        }
    }
}

/// `host:port` as a Host header and a canonical address write it: without the scheme's default port.
pub(super) fn authority(host: &Host, port: u16, tls: bool) -> String {
    if port == default_port(tls) { host.to_string() } else { format!("{host}:{port}") }
}

/// The canonical form of an address: scheme and host in lower case, no trailing slash, the scheme's default
/// port left out. Two addresses are the same server for policy exactly when these are equal.
///
/// # Errors
/// When the address is refused; see [`AddressError`].
pub fn canonical_address(text: &str) -> Result<String, AddressError> {
    VaultAddress::parse(text).map(|address| address.to_string())
}

impl VaultAddress {
    /// Parses `https://host[:port][/base]`, `http://…` or `unix:///path`.
    ///
    /// # Errors
    /// Names the rule that the address breaks.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.len() > MAX_LENGTH {
            return Err(AddressError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(AddressError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            "unix" => return socket(rest),
            _ => return Err(AddressError::Scheme),
        };
        if rest.contains('@') {
            return Err(AddressError::UserInfo);
        }
        if rest.contains(['?', '#']) {
            return Err(AddressError::QueryOrFragment);
        }
        if !rest.bytes().all(plain) {
            return Err(AddressError::Character);
        }
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (host, port) = host_and_port(authority)?;
        let port = match port {
            Some(text) => parse_port(text)?,
            None => default_port(tls),
        };
        Ok(Self::Tcp { tls, host, port, base_path: base_path(path)? })
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: true, .. })
    }
}

/// Why this process never connects to `ip`, whoever asks: link-local and cloud metadata hand out the node's
/// identity, the others are no one's address. `None` for an ordinary address, loopback included.
pub(super) fn forbidden(ip: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&ip) {
        return Some("a cloud metadata endpoint");
    }
    match ip {
        IpAddr::V4(ip) if ip.is_link_local() => Some("a link-local address"),
        // 0.0.0.0/8 reaches this host on Linux.
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Some("an unspecified address"),
        IpAddr::V4(ip) if ip.is_multicast() || ip.octets()[0] >= 240 => {
            Some("a multicast or reserved address")
        }
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) if ip.is_unspecified() => Some("an unspecified address"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(ip) if ip.is_multicast() => Some("a multicast or reserved address"),
        IpAddr::V6(ip) => embedded(ip).and_then(|inner| forbidden(IpAddr::V4(inner))),
    }
}

/// Whether `ip` is this host.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || embedded(ip).is_some_and(|inner| inner.is_loopback()),
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64 and 6to4 reach it.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., high, low] = ip.segments();
    let tail = {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(tail),
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => Some(tail),
        [0x2002, high, next, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), next.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

const fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte)
}

fn socket(path: &str) -> Result<VaultAddress, AddressError> {
    let normal = path.starts_with('/')
        && path.len() <= MAX_SOCKET_PATH
        && path[1..].split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    let readable = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\\@".contains(&byte));
    if normal && readable {
        Ok(VaultAddress::Unix(Path::new(path).to_owned()))
    } else {
        Err(AddressError::SocketPath)
    }
}

fn host_and_port(authority: &str) -> Result<(Host, Option<&str>), AddressError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (ip, rest) = rest.split_once(']').ok_or(AddressError::Host)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| AddressError::Host)?;
        // An IPv4 address in IPv6 clothes is an odd spelling of another address.
        if embedded(ip).is_some() {
            return Err(AddressError::Host);
        }
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or(AddressError::Host)?),
        };
        return Ok((literal(IpAddr::V6(ip))?, port));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok((literal(IpAddr::V4(ip))?, port));
    }
    Ok((Host::Name(dns_name(host).ok_or(AddressError::Host)?), port))
}

fn literal(ip: IpAddr) -> Result<Host, AddressError> {
    match forbidden(ip) {
        Some(kind) => Err(AddressError::Forbidden { ip, kind }),
        None => Ok(Host::Ip(ip)),
    }
}

/// `text` in lower case if it is a DNS name that no URL parser reads as a number.
pub(super) fn dns_name(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A last label that is a number is how decimal, hex, octal and short IPv4 spellings end.
    let numeric = text.rsplit('.').next().is_none_or(|last| {
        last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X")
    });
    (text.len() <= 253 && !numeric && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    if text.is_empty() || text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::Port);
    }
    text.parse().map_err(|_| AddressError::Port)
}

fn base_path(path: &str) -> Result<String, AddressError> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some(rest) = path.strip_prefix('/') else { return Ok(String::new()) };
    let segment = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains([':', '[', ']']);
    if rest.split('/').all(segment) { Ok(path.to_owned()) } else { Err(AddressError::Path) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed parse fails the test")]

    use super::*;

    #[test]
    fn one_server_has_one_canonical_form() {
        for (text, canonical) in [
            ("https://vault.example.com:8200", "https://vault.example.com:8200"),
            ("HTTPS://Vault.Example.COM:8200/", "https://vault.example.com:8200"),
            ("https://vault:443", "https://vault"),
            ("https://vault/", "https://vault"),
            ("http://vault:80", "http://vault"),
            ("http://vault:443", "http://vault:443"),
            ("http://10.0.0.1:8200", "http://10.0.0.1:8200"),
            ("https://[2001:DB8:0::1]:8200", "https://[2001:db8::1]:8200"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("http://[::1]:8200", "http://[::1]:8200"),
            ("http://localhost:8200", "http://localhost:8200"),
            ("https://lb.example.com/vault/", "https://lb.example.com/vault"),
            ("unix:///run/vault/proxy.sock", "unix:///run/vault/proxy.sock"),
            ("https://vault_0.vault-internal:8200", "https://vault_0.vault-internal:8200"),
        ] {
            assert_eq!(canonical_address(text).as_deref(), Ok(canonical), "{text}");
            assert_eq!(canonical_address(canonical).as_deref(), Ok(canonical), "stable: {canonical}");
        }
    }

    #[test]
    fn every_odd_spelling_is_refused() {
        for text in [
            "",
            "vault:8200",
            "//vault",
            "ftp://vault",
            "file:///etc/passwd",
            "https:/vault",
            "https:vault",
            "https://",
            "https:///v1",
            "https://user@vault",
            "https://user:canary@vault",
            "https://vault?x=1",
            "https://vault#f",
            "https://vault/#f",
            "https://vault/../x",
            "https://vault/./x",
            "https://vault//x",
            "https://vault/x//",
            "https://vault/%2e%2e",
            "https://va%75lt",
            "https://vault\\@evil",
            "https://vault ",
            " https://vault",
            "https://vault\n",
            "https://vault\t:1",
            "https://vaült",
            "https://vault.",
            "https://.",
            "https://-vault",
            "https://vault-",
            "https://a..b",
            "https://vault:",
            "https://vault:0",
            "https://vault:08200",
            "https://vault:65536",
            "https://vault:+1",
            "https://vault:1:2",
            "http://2130706433",
            "http://0x7f000001",
            "http://0x7f.1",
            "http://0177.0.0.1",
            "http://127.1",
            "http://127.0.1",
            "http://1.2.3.4.5",
            "http://256.0.0.1",
            "http://127.0.0.1.",
            "http://0",
            "http://169.254.169.254",
            "http://169.254.0.1:80",
            "http://0.0.0.0",
            "http://0.1.2.3",
            "http://224.0.0.1",
            "http://255.255.255.255",
            "http://[::]",
            "http://[fe80::1]",
            "http://[fe80::1%25eth0]",
            "http://[fe80::1%eth0]",
            "http://[ff02::1]",
            "http://[::ffff:169.254.169.254]",
            "http://[::ffff:a9fe:a9fe]",
            "http://[::ffff:127.0.0.1]",
            "http://[::127.0.0.1]",
            "http://[64:ff9b::a9fe:a9fe]",
            "http://[2002:a9fe:a9fe::1]",
            "http://[fd00:ec2::254]",
            "http://168.63.129.16",
            "http://100.100.100.200",
            "http://192.0.0.192",
            "http://[::1",
            "http://::1",
            "http://[::1]x",
            "http://[vault]",
            "unix://run/x",
            "unix:///",
            "unix:///a/../b",
            "unix:///a//b",
            "unix:///a/./b",
            "unix:///a?b",
            "unix:///a%2fb",
            "unix:///a b",
        ] {
            let error = VaultAddress::parse(text).expect_err(text).to_string();
            assert!(!error.contains("canary"), "{error}");
        }
        assert_eq!(VaultAddress::parse(&format!("https://{}", "a".repeat(2000))), Err(AddressError::TooLong));
    }
}
