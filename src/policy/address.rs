//! Addresses in the form in which they are compared.

use crate::spec::ApiPath;

/// The canonical form of an address: lower-case scheme and host, the port always written, no slash at the
/// end. Two spellings of one address have one key; what a URL parser could read in two ways has none, so
/// that what is compared here is what is connected to.
///
/// # Errors
/// Says what makes it no address.
pub fn address_key(address: &str) -> Result<String, &'static str> {
    let (scheme, rest) = address.split_once("://").ok_or("it is not http://, https:// or unix://")?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        "unix" => {
            let path = rest.strip_prefix('/').ok_or("the path of a socket is absolute")?;
            let path = ApiPath::parse_mount(path).map_err(|_| "the path of the socket is not canonical")?;
            return Ok(format!("unix:///{path}"));
        }
        _ => return Err("it is not http://, https:// or unix://"),
    };
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
    if authority.contains('@') {
        return Err("it carries user information");
    }
    let (host, port) = match authority.rsplit_once(':') {
        // A colon within brackets belongs to an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None => default_port,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u16>().ok().filter(|port| *port > 0).ok_or("its port is not a port")?
        }
        Some(_) => return Err("its port is not a port"),
    };
    let host = host_key(host)?;
    let path = match path.trim_end_matches('/') {
        "" => String::new(),
        path => format!("/{}", ApiPath::parse_mount(path).map_err(|_| "its path is not canonical")?),
    };
    Ok(format!("{scheme}://{host}:{port}{path}"))
}

fn host_key(host: &str) -> Result<String, &'static str> {
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address: std::net::Ipv6Addr = inner.parse().map_err(|_| "its host is not an IPv6 address")?;
        return Ok(format!("[{address}]"));
    }
    if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return Err("its host is not a host name");
    }
    // URL parsers read a host that ends in a number as IPv4 in any of its many spellings; one is enough.
    let numeric = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_digit()) || label.to_ascii_lowercase().starts_with("0x")
    };
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if numeric(last) && host.parse::<std::net::Ipv4Addr>().is_err() {
        return Err("its host is not a canonical IPv4 address");
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_address_are_one() {
        for (address, key) in [
            ("https://vault", "https://vault:443"),
            ("HTTPS://Vault.Example:443/", "https://vault.example:443"),
            ("http://vault:8200//", "http://vault:8200"),
            ("http://vault:0080", "http://vault:80"),
            ("https://h/pre/fix/", "https://h:443/pre/fix"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            ("http://[::1]:8200", "http://[::1]:8200"),
            ("http://[0:0::1]", "http://[::1]:80"),
            ("http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]:80"),
            ("unix:///run/vault.sock", "unix:///run/vault.sock"),
        ] {
            assert_eq!(address_key(address).as_deref(), Ok(key), "{address}");
            assert_eq!(address_key(key).as_deref(), Ok(key), "a key is its own key");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_has_no_key() {
        for address in [
            "",
            "vault",
            "vault:8200",
            "//vault",
            "ftp://vault",
            "file:///etc/passwd",
            "https:vault",
            "https:/vault",
            "https://",
            "https://:443",
            "https://u@vault",
            "https://u:p@vault",
            "https://vault@evil",
            "https://vault:443@evil",
            "https://vault:",
            "https://vault:x",
            "https://vault:0",
            "https://vault:65536",
            "https://vault:+443",
            "https://vault\\evil",
            "https://vault\\@evil",
            "https://va ult",
            " https://vault",
            "https://vault\t",
            "https://vault\n.evil",
            "https://vault?x",
            "https://vault/?x",
            "https://vault#x",
            "https://vault/#x",
            "https://vault/../x",
            "https://vault/%2e%2e",
            "https://vault/a//b",
            "https://váult",
            "https://vault。evil",
            "https://vault%2eevil",
            "http://2130706433",
            "http://0x7f000001",
            "http://0177.0.0.1",
            "http://127.1",
            "http://127.0.0.01",
            "http://127.0.0.1.",
            "http://[::1",
            "http://::1",
            "http://[::1%25eth0]",
            "http://[127.0.0.1]",
            "unix://run/x",
            "unix:///a/../b",
            "unix:///",
            "http://a,b",
        ] {
            assert!(address_key(address).is_err(), "{address:?} -> {:?}", address_key(address));
        }
    }
}
