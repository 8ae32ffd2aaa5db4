use std::time::{Duration, Instant};

use leasehold::backend::{FailureClass, vault::VaultBackend};
use tokio::net::TcpListener;

use crate::stub::{Stub, good_login, limits, login, naive};

/// Names other than localhost that this machine's hosts file gives to itself.
fn aliases() -> Vec<String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let local = hosts.lines().filter(|line| line.starts_with("127.") || line.starts_with("::1"));
    let names = local.flat_map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>());
    names.filter(|name| name != "localhost").collect()
}

/// Shapes that reach a listener on this node although no one would say that they name it: refused, and
/// nothing connects. Several of them do connect with a plain URL parser, which is the fault shown first.
#[tokio::test]
async fn ssrf_matrix() {
    let stub = Stub::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), |_| good_login());
    let p = stub.port;
    let mut shapes: Vec<String> = [
        "http://2130706433:{p}",
        "http://0x7f000001:{p}",
        "http://0x7F.0.0.1:{p}",
        "http://0177.0.0.1:{p}",
        "http://0177.0.0.01:{p}",
        "http://127.1:{p}",
        "http://127.0.1:{p}",
        "http://127.0.0.1.:{p}",
        "http://[::ffff:127.0.0.1]:{p}",
        "http://[::ffff:7f00:1]:{p}",
        "http://[0:0:0:0:0:ffff:7f00:0001]:{p}",
        "http://[::127.0.0.1]:{p}",
        "http://[64:ff9b::7f00:1]:{p}",
        "http://0:{p}",
        "http://0.0.0.0:{p}",
        "http://[::]:{p}",
        "http://vault@127.0.0.1:{p}",
        "http://vault:8200@127.0.0.1:{p}",
        "http://127.0.0.1:{p}#@vault",
        "http://127.0.0.1:{p}?@vault",
        "http://127.0.0.1:{p}/../x",
        "http://127.0.0.1:{p}\\@vault",
        "http:127.0.0.1:{p}",
        "http:/127.0.0.1:{p}",
        "http:\\\\127.0.0.1:{p}",
        "http:////127.0.0.1:{p}",
        " http://127.0.0.1:{p}",
        "http://127.0.0.1:{p}\n",
        "http://127.0\t.0.1:{p}",
        "http://%31%32%37.0.0.1:{p}",
        "http://①②⑦.⓪.⓪.①:{p}",
        "http://127。0。0。1:{p}",
        "http://127.0.0.1:0{p}",
        "http://127.0.0.1:{p}:80",
        "http://127.0.0.1:{p}/%2e%2e/",
        "ws://127.0.0.1:{p}",
        "ftp://127.0.0.1:{p}",
        "gopher://127.0.0.1:{p}",
        "file:///etc/passwd",
        "unix:///proc/../run/x.sock",
        "http://169.254.169.254",
        "http://[::ffff:169.254.169.254]",
        "http://2852039166",
        "http://[fe80::1]",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://168.63.129.16",
        "http://224.0.0.1",
        "http://255.255.255.255",
        "http://[ff02::1]",
    ]
    .iter()
    .map(|shape| shape.replace("{p}", &p.to_string()))
    .collect();
    shapes.extend(aliases().iter().map(|name| format!("http://{name}:{p}")));
    assert!(shapes.len() >= 30);

    let naive = naive().timeout(Duration::from_millis(300)).build().unwrap();
    for shape in shapes.iter().take(18) {
        let _ = naive.get(shape).send().await;
    }
    let reached = stub.connects();
    assert!(reached >= 8, "the fault without the guard: only {reached} odd spellings connect");

    let backend = VaultBackend::new(limits());
    for shape in &shapes {
        let started = Instant::now();
        let error = login(&backend, shape, Default::default()).await.expect_err(shape);
        assert_eq!(error.class, FailureClass::Invalid, "{shape}: {error}");
        assert!(started.elapsed() < Duration::from_secs(4), "{shape} was tried");
        assert!(!error.message.contains('\n'), "{error:?}");
    }
    assert_eq!(stub.connects(), reached, "something connected");

    // The plain spellings, which policy must allow first, do work.
    for plain in
        [format!("http://127.0.0.1:{p}"), format!("http://localhost:{p}/"), format!("HTTP://LocalHost:{p}")]
    {
        login(&backend, &plain, Default::default()).await.unwrap();
    }
}

#[tokio::test]
async fn unreachable_servers_are_transient_and_say_why() {
    let backend = VaultBackend::new(limits());
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    for (address, says) in [
        (format!("http://127.0.0.1:{closed}"), "refused"),
        ("http://no-such-host.invalid:8200".to_owned(), "does not resolve"),
        ("unix:///nonexistent/vault.sock".to_owned(), "refused"),
    ] {
        let error = login(&backend, &address, Default::default()).await.unwrap_err();
        assert_eq!(error.class, FailureClass::Transient, "{error}");
        assert!(error.message.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_an_address() {
    use tokio::{io::AsyncWriteExt, net::UnixListener};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = crate::stub::read_request(&mut stream).await.unwrap();
        for step in good_login() {
            let crate::stub::Step::Send(bytes) = step else { continue };
            stream.write_all(&bytes).await.unwrap();
        }
        request
    });
    let backend = VaultBackend::new(limits());
    login(&backend, &format!("unix://{}", path.display()), Default::default()).await.unwrap();
    assert!(server.await.unwrap().starts_with("POST /v1/auth/kubernetes/login"));
}
