use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use leasehold::{
    backend::{FailureClass, vault::VaultBackend},
    spec::TlsSpec,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::TlsAcceptor;

use crate::stub::{Step, Stub, fetch, good_login, limits, login, read_request};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Ca {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

struct Leaf {
    pem: String,
    key_pem: String,
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn leaf(ca: &Ca, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    Leaf {
        pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        der: certificate.der().clone(),
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    }
}

fn config(leaf: Leaf, clients: Option<&Ca>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.as_ref().der().clone()).unwrap();
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap(),
            )
        }
    };
    Arc::new(builder.with_single_cert(vec![leaf.der], leaf.key).unwrap())
}

/// SNI and request.
type Seen = (Option<String>, String);

/// Answers logins over TLS; notes the SNI and the request of each.
struct TlsStub {
    port: u16,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl TlsStub {
    async fn start(config: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stub = Self { port, config: Arc::new(Mutex::new(config)), seen: Arc::default() };
        let (config, seen) = (Arc::clone(&stub.config), Arc::clone(&stub.seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (TlsAcceptor::from(config.lock().unwrap().clone()), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let name = stream.get_ref().1.server_name().map(str::to_owned);
                    let Some(request) = read_request(&mut stream).await else { return };
                    seen.lock().unwrap().push((name, request));
                    for step in good_login() {
                        let Step::Send(bytes) = step else { continue };
                        stream.write_all(&bytes).await.unwrap();
                    }
                    let _ = stream.shutdown().await;
                });
            }
        });
        stub
    }

    fn address(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: &str) -> Option<String> {
        let path: PathBuf = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        Some(path.to_str().unwrap().to_owned())
    }
}

#[tokio::test]
#[rustfmt::skip]
async fn tls_matrix() {
    let (ca, other) = (authority("right"), authority("wrong"));
    let files = Files::new();
    let right = files.put("right.pem", &ca.as_ref().pem());
    let wrong = files.put("wrong.pem", &other.as_ref().pem());
    let both = files.put("both.pem", &format!("# comment\n{}\n{}", other.as_ref().pem(), ca.as_ref().pem()));
    files.put("folder/a.pem", &other.as_ref().pem());
    files.put("folder/b.pem", &ca.as_ref().pem());
    files.put("folder/hash.0", &ca.as_ref().pem());
    let folder = files.put("folder/README", "not a certificate").map(|path| path.replace("/README", ""));
    let not_pem = files.put("note.txt", "canary-7f3a9c");
    let client = leaf(&ca, &[], |_| {});
    let (cert, key) = (files.put("client.pem", &client.pem), files.put("client.key", &client.key_pem));
    let stranger = leaf(&other, &[], |_| {});
    let (bad_cert, bad_key) = (files.put("stranger.pem", &stranger.pem), files.put("stranger.key", &stranger.key_pem));

    let trusts = |ca: &Option<String>| TlsSpec { ca_cert: ca.clone(), ..TlsSpec::default() };
    let named = |name: &str| TlsSpec { server_name: Some(name.to_owned()), ..trusts(&right) };
    let shows = |cert: &Option<String>, key: &Option<String>| TlsSpec { client_cert: cert.clone(), client_key: key.clone(), ..trusts(&right) };
    let skip = |tls: TlsSpec| TlsSpec { skip_verify: true, ..tls };

    let good = TlsStub::start(config(leaf(&ca, &["localhost", "127.0.0.1"], |_| {}), None)).await;
    let elsewhere = TlsStub::start(config(leaf(&ca, &["vault.internal", "10.9.8.7"], |_| {}), None)).await;
    let expired = TlsStub::start(config(leaf(&ca, &["localhost"], |p| p.not_after = date_time_ymd(2020, 1, 1)), None)).await;
    let early = TlsStub::start(config(leaf(&ca, &["localhost"], |p| p.not_before = date_time_ymd(2999, 1, 1)), None)).await;
    let mutual = TlsStub::start(config(leaf(&ca, &["localhost"], |_| {}), Some(&ca))).await;
    let plain = Stub::start(|_| good_login()).await;
    // A server that has only TLS 1.1 answers our hello with the alert protocol_version.
    let old = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut hello = [0; 4096];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut hello).await;
                let _ = stream.write_all(b"\x15\x03\x02\x00\x02\x02\x46").await;
            }
        });
        port
    };

    let ok = "";
    for (name, address, tls, says) in [
        ("right CA", good.address("localhost"), trusts(&right), ok),
        ("right CA, IP address", good.address("127.0.0.1"), trusts(&right), ok),
        ("bundle of two", good.address("localhost"), trusts(&both), ok),
        ("CA folder", good.address("localhost"), TlsSpec { ca_directory: folder, ..TlsSpec::default() }, ok),
        ("wrong CA", good.address("localhost"), trusts(&wrong), "set vaultCACertPath"),
        ("wrong name", elsewhere.address("localhost"), trusts(&right), "set vaultTLSServerName"),
        ("server name", elsewhere.address("localhost"), named("vault.internal"), ok),
        ("server name, IP address", elsewhere.address("127.0.0.1"), named("vault.internal"), ok),
        ("server name is an IP address", elsewhere.address("localhost"), named("10.9.8.7"), ok),
        ("wrong server name", elsewhere.address("localhost"), named("vault.other"), "set vaultTLSServerName"),
        ("odd server name", elsewhere.address("localhost"), named("a/b"), "vaultTLSServerName is neither"),
        ("expired", expired.address("localhost"), trusts(&right), "renew the certificate on the server"),
        ("not yet valid", early.address("localhost"), trusts(&right), "check the clocks"),
        ("client certificate", mutual.address("localhost"), shows(&cert, &key), ok),
        ("no client certificate", mutual.address("localhost"), trusts(&right), "set vaultTLSClientCertPath"),
        ("strange client certificate", mutual.address("localhost"), shows(&bad_cert, &bad_key), "vaultTLSClientCertPath"),
        ("key of another", mutual.address("localhost"), shows(&cert, &bad_key), "does not belong"),
        ("half an identity", mutual.address("localhost"), shows(&cert, &None), "set together"),
        ("no key in the file", mutual.address("localhost"), shows(&cert, &not_pem), "no usable PEM private key"),
        ("no certificate in the file", good.address("localhost"), trusts(&not_pem), "no usable PEM certificate"),
        ("missing file", good.address("localhost"), trusts(&Some("/nonexistent/ca.pem".into())), "vaultCACertPath: /nonexistent/ca.pem cannot be read"),
        ("skip-verify, expired", expired.address("localhost"), skip(TlsSpec::default()), ok),
        ("skip-verify, wrong CA and name", elsewhere.address("localhost"), skip(trusts(&wrong)), ok),
        ("skip-verify, client certificate", mutual.address("localhost"), skip(shows(&cert, &key)), ok),
        ("TLS 1.1 only", format!("https://localhost:{old}"), trusts(&right), "enable TLS 1.2"),
        ("plain text on the port", format!("https://localhost:{}", plain.port), trusts(&right), ""),
    ] {
        let backend = VaultBackend::new(limits());
        let result = login(&backend, &address, tls).await;
        if name == "plain text on the port" {
            assert_eq!(result.unwrap_err().class, FailureClass::Transient);
            continue;
        }
        match result {
            Ok(_) => assert_eq!(says, ok, "{name} succeeded"),
            Err(error) => {
                assert!(says != ok && error.message.contains(says), "{name}: {error}");
                assert!(!error.message.contains("canary"), "{name}: {error}");
            }
        }
    }
    let seen = elsewhere.seen.lock().unwrap().clone();
    let host = format!("host: localhost:{}", elsewhere.port);
    let (sni, request) = &seen[0];
    assert_eq!(sni.as_deref(), Some("vault.internal"), "asked for by SNI");
    assert!(request.contains(&host), "and the Host header is the address's: {request}");
    assert_eq!(seen[2].0, None, "an IP address is not asked for by SNI");
    assert!(plain.requests().iter().all(|request| !request.contains("POST")), "no request in plain text");
}

/// A certificate authority rotates under a running client: server first, file after, then a broken file.
#[tokio::test]
async fn a_new_ca_file_is_used_and_a_broken_one_is_not() {
    let (old, new) = (authority("old"), authority("new"));
    let files = Files::new();
    let path = files.put("ca.pem", &old.as_ref().pem());
    let tls = TlsSpec { ca_cert: path, ..TlsSpec::default() };
    let stub = TlsStub::start(config(leaf(&old, &["localhost"], |_| {}), None)).await;
    let address = stub.address("localhost");
    let backend = VaultBackend::new(limits());
    login(&backend, &address, tls.clone()).await.unwrap();

    *stub.config.lock().unwrap() = config(leaf(&new, &["localhost"], |_| {}), None);
    let error = login(&backend, &address, tls.clone()).await.unwrap_err();
    assert!(error.message.contains("vaultCACertPath"), "the fault before the file is new: {error}");

    files.put("ca.pem", &new.as_ref().pem());
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = login(&backend, &address, tls.clone()).await {
        assert!(Instant::now() < deadline, "the new file was not read: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    files.put("ca.pem", "broken");
    // Longer than the interval in which files are looked at.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        login(&backend, &address, tls.clone()).await.expect("the previous authorities stay");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let fresh = VaultBackend::new(limits());
    fetch(&fresh, &address, tls).await.expect_err("a new client has no previous authorities");
}
