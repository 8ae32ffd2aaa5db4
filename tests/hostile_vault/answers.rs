use std::time::{Duration, Instant};

use leasehold::backend::{FailureClass, SecretBackend, vault::VaultBackend};

use crate::stub::{
    CANARY, Step, Stub, context, fetch, good_login, good_read, json, limits, login, naive, token,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ask {
    Login,
    Fetch,
    Renew,
    RenewLease,
}

fn send(head: &str, body: impl Into<Vec<u8>>) -> Step {
    let mut bytes = head.replace('\n', "\r\n").into_bytes();
    bytes.extend(body.into());
    Step::Send(bytes)
}

/// Peak memory of this process, KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
#[rustfmt::skip]
async fn evil_vault_matrix() {
    use Ask::{Fetch, Login, Renew, RenewLease};
    use FailureClass::{Denied, Invalid, LeaseGone, NotFound, Sealed, Throttled, Transient};
    let ok = |body: &str| json("200 OK", body);
    let status = |status: &str, body: &str| json(status, body);
    let raw = |bytes: &str| vec![send(bytes, "")];
    let auth = |token: &str| ok(&format!(r#"{{"auth":{{"client_token":{token}}}}}"#));
    let length = |n: &str| format!("HTTP/1.1 200 OK\ncontent-type: application/json\ncontent-length: {n}\n\n");
    let chunked = "HTTP/1.1 200 OK\ncontent-type: application/json\ntransfer-encoding: chunked\n\n";
    let deep = "[".repeat(100_000);
    let unknown = r#"{"errors":["permission denied"]}"#;
    let cases: Vec<(&str, Ask, Vec<Step>, FailureClass)> = vec![
        ("204", Login, raw("HTTP/1.1 204 No Content\n\n"), Invalid),
        ("empty object", Login, ok("{}"), Invalid),
        ("null", Login, ok("null"), Invalid),
        ("array", Login, ok("[]"), Invalid),
        ("text", Login, ok("\"x\""), Invalid),
        ("empty body", Login, ok(""), Invalid),
        ("blank body", Login, ok("  \n"), Invalid),
        ("null auth", Login, ok(r#"{"auth":null}"#), Invalid),
        ("array auth", Login, ok(r#"{"auth":[{"client_token":"x"}]}"#), Invalid),
        ("number token", Login, auth("7"), Invalid),
        ("null token", Login, auth("null"), Invalid),
        ("empty token", Login, auth("\"\""), Invalid),
        ("token with a newline", Login, auth(r#""a\r\nx-evil: 1""#), Invalid),
        ("token with NUL", Login, auth(r#""a\u0000b""#), Invalid),
        ("token of 9 kB", Login, auth(&format!("\"{}\"", "a".repeat(9000))), Invalid),
        ("second factor", Login, ok(r#"{"auth":{"client_token":"","mfa_requirement":{}}}"#), Invalid),
        ("truncated JSON", Login, ok(r#"{"auth":{"client_token":"s.abc"#), Invalid),
        ("invalid UTF-8", Login, vec![send(&length("13"), b"{\"auth\":\"\xff\xfe\"}".to_vec())], Invalid),
        ("byte order mark", Login, ok("\u{feff}{}"), Invalid),
        ("100k deep", Login, ok(&format!("{{\"auth\":{deep}")), Invalid),
        ("million numbers", Login, ok(&format!("{{\"auth\":[{}0]}}", "0,".repeat(400_000))), Invalid),
        ("web page", Login, vec![send("HTTP/1.1 200 OK\ncontent-type: text/html\nconnection: close\n\n", "<html>canary-7f3a9c")], Invalid),
        ("gzip nobody asked for", Login, vec![send("HTTP/1.1 200 OK\ncontent-encoding: gzip\ncontent-length: 10\n\n", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec())], Invalid),
        ("truncated body", Login, vec![send(&length("1000"), "{\"auth\"")], Transient),
        ("reset in the body", Login, vec![send(&length("1000"), "{\"auth\""), Step::Reset], Transient),
        ("reset at once", Login, vec![Step::Reset], Transient),
        ("close at once", Login, vec![], Transient),
        ("silence", Login, vec![Step::Hang], Transient),
        ("half a status line", Login, vec![send("HTTP/1.1 20", ""), Step::Hang], Transient),
        ("silence after the headers", Login, vec![send(&length("10"), ""), Step::Hang], Transient),
        ("drip", Login, vec![send(&length("100000"), ""), Step::Drip(b' ')], Transient),
        ("drip of headers", Login, vec![send("HTTP/1.1 200 OK\nx: ", ""), Step::Drip(b'a')], Transient),
        ("drip of interim answers", Login, vec![Step::Flood(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), 1 << 30)], Transient),
        ("1 GiB unannounced", Login, vec![send("HTTP/1.1 200 OK\n\n", ""), Step::Flood(vec![b'a'; 65536], 1 << 30)], Invalid),
        ("1 TiB announced", Login, vec![send(&length("1099511627776"), ""), Step::Hang], Invalid),
        ("endless chunks", Login, vec![send(chunked, ""), Step::Flood([&b"400\r\n"[..], &[b'a'; 1024], b"\r\n"].concat(), 1 << 30)], Invalid),
        ("endless headers", Login, vec![send("HTTP/1.1 200 OK\n", ""), Step::Flood(b"x: y\r\n".repeat(1000), 1 << 30)], Transient),
        ("one endless header", Login, vec![send("HTTP/1.1 200 OK\nx: ", ""), Step::Flood(vec![b'a'; 65536], 1 << 30)], Transient),
        ("endless status line", Login, vec![Step::Flood(vec![b'H'; 65536], 1 << 30)], Transient),
        ("garbage chunk size", Login, vec![send(chunked, "zz\r\n")], Transient),
        ("overflowing chunk size", Login, vec![send(chunked, "ffffffffffffffffff\r\n")], Transient),
        ("endless chunk extension", Login, vec![send(chunked, "1;"), Step::Flood(vec![b'x'; 65536], 1 << 30)], Transient),
        ("negative length", Login, vec![send(&length("-5"), "{}")], Transient),
        ("two lengths", Login, raw("HTTP/1.1 200 OK\ncontent-length: 1\ncontent-length: 2\n\n{}"), Transient),
        ("SSH", Login, raw("SSH-2.0-OpenSSH_9.2\n"), Transient),
        ("HTTP/2", Login, vec![Step::Send(b"\0\0\x12\x04\0\0\0\0\0".to_vec()), Step::Hang], Transient),
        ("TLS", Login, vec![Step::Send(b"\x15\x03\x01\0\x02\x02\x46".to_vec())], Transient),
        ("switching protocols", Login, raw("HTTP/1.1 101 Switching Protocols\nupgrade: x\nconnection: upgrade\n\n"), Invalid),
        ("status 999", Login, status("999 X", "{}"), Transient),
        ("plain HTTP on a TLS port", Login, raw("HTTP/1.0 400 Bad Request\n\nClient sent an HTTP request to an HTTPS server.\n"), Invalid),
        ("forbidden", Login, status("403 Forbidden", unknown), Denied),
        ("sealed", Login, status("503 Service Unavailable", r#"{"errors":["Vault is sealed"]}"#), Sealed),
        ("throttled", Login, status("429 Too Many Requests", r#"{"errors":["canary-7f3a9c"]}"#), Throttled),
        ("errors of the wrong type", Login, status("400 Bad Request", r#"{"errors":{"canary-7f3a9c":[1]}}"#), Invalid),
        ("errors too large", Login, status("400 Bad Request", &format!(r#"{{"errors":["{}"]}}"#, "a".repeat(900_000))), Invalid),
        ("data is text", Fetch, ok(r#"{"data":"canary-7f3a9c"}"#), Invalid),
        ("data is a list", Fetch, ok(r#"{"data":["canary-7f3a9c"]}"#), Invalid),
        ("no data", Fetch, ok(r#"{"data":null}"#), Invalid),
        ("204 to a read", Fetch, raw("HTTP/1.1 204 No Content\n\n"), Invalid),
        ("lease id with a newline", Fetch, ok(r#"{"data":{},"lease_id":"a\nb","lease_duration":1}"#), Invalid),
        ("lease id of 10 kB", Fetch, ok(&format!(r#"{{"data":{{}},"lease_id":"{}"}}"#, "a".repeat(10_000))), Invalid),
        ("destroyed with 200", Fetch, ok(r#"{"data":{"data":null,"metadata":{"created_time":"x","version":1,"destroyed":true}}}"#), NotFound),
        ("a page with 200", Fetch, vec![send("HTTP/1.1 200 OK\ncontent-type: text/html\nconnection: close\n\n", "<html>")], Invalid),
        ("dead token", Fetch, status("403 Forbidden", unknown), LeaseGone),
        ("raw of 1 GiB", Fetch, vec![send("HTTP/1.1 200 OK\ncontent-type: application/pkix-cert\n\n", ""), Step::Flood(vec![0; 65536], 1 << 30)], Invalid),
        ("no TTL", Renew, ok(r#"{"auth":{"renewable":true}}"#), Invalid),
        ("no auth", Renew, ok(r#"{"auth":7}"#), Invalid),
        ("no TTL of a lease", RenewLease, ok(r#"{"lease_id":"a"}"#), Invalid),
        ("TTL is text", RenewLease, ok(r#"{"lease_duration":"3600"}"#), Invalid),
        ("204 to a renewal", RenewLease, raw("HTTP/1.1 204 No Content\n\n"), Invalid),
    ];
    assert!(cases.len() >= 40);
    let backend = VaultBackend::new(limits());
    let before = peak_kib();
    for (name, ask, script, class) in cases {
        let stub = Stub::start(move |_| script.clone()).await;
        let address = stub.address();
        let started = Instant::now();
        let tls = Default::default;
        let result = match ask {
            Login => login(&backend, &address, tls()).await.map(drop),
            Fetch => fetch(&backend, &address, tls()).await.map(drop),
            Renew => backend.renew_session(context(&address, tls()), &token()).await.map(drop),
            RenewLease => backend.renew_lease(context(&address, tls()), &token(), "db/creds/a/x").await.map(drop),
        };
        let error = result.expect_err(name);
        assert_eq!(error.class, class, "{name}: {error}");
        assert!(!error.message.contains(CANARY) && !error.message.contains('\n'), "{name}: {error}");
        assert!(started.elapsed() < Duration::from_secs(8), "{name} took {:?}", started.elapsed());
        let sent = stub.sent.load(std::sync::atomic::Ordering::SeqCst);
        // What lies in socket buffers was sent and never read.
        if name != "drip of interim answers" {
            assert!(sent < 32 << 20, "{name}: {sent} bytes were taken");
        }
    }
    let grown = peak_kib() - before;
    assert!(grown < 64 * 1024, "peak memory grew by {grown} KiB");
}

#[tokio::test]
async fn extreme_terms_are_clamped_not_refused() {
    for (number, seconds) in
        [("-5", 0), ("0", 0), ("1", 1), ("9223372036854775808", 315_360_000), ("1e300", 315_360_000)]
    {
        let stub = Stub::start(move |_| {
            json(
                "200 OK",
                &format!(
                    r#"{{"data":{{}},"lease_id":"db/a","lease_duration":{number},"renewable":true,"auth":{{"client_token":"t","accessor":"a","lease_duration":{number},"renewable":true}}}}"#
                ),
            )
        })
        .await;
        let backend = VaultBackend::new(limits());
        let expected = Duration::from_secs(seconds);
        let grant = login(&backend, &stub.address(), Default::default()).await.unwrap();
        assert_eq!((grant.terms.ttl, grant.terms.shareable), (expected, false), "{number}");
        let secret = fetch(&backend, &stub.address(), Default::default()).await.unwrap();
        assert_eq!(secret.lease.unwrap().ttl, expected, "{number}");
    }
}

/// The fault first: a client that follows redirects hands its token to the second server.
#[tokio::test]
async fn a_redirect_takes_no_token_along() {
    for status in
        ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
    {
        let thief = Stub::start(|_| good_login()).await;
        let location = thief.address();
        let stub = Stub::start(move |_| {
            vec![send(
                &format!(
                    "HTTP/1.1 {status}\nlocation: {location}/v1/x\ncontent-length: 0\nconnection: close\n\n"
                ),
                "",
            )]
        })
        .await;
        let naive = naive().build().unwrap();
        let request = naive.get(stub.address()).header("x-vault-token", CANARY);
        request.send().await.unwrap();
        assert_eq!(thief.connects(), 1, "the fault without the guard: {status}");
        assert!(thief.requests()[0].contains(CANARY));

        let backend = VaultBackend::new(limits());
        let error = login(&backend, &stub.address(), Default::default()).await.unwrap_err();
        assert_eq!(error.class, FailureClass::Transient);
        fetch(&backend, &stub.address(), Default::default()).await.unwrap_err();
        assert_eq!(thief.connects(), 1, "{status}");
    }
}

#[tokio::test]
async fn requests_carry_what_the_server_needs_and_nothing_else() {
    let stub =
        Stub::start(|request| if request.starts_with("POST") { good_login() } else { good_read() }).await;
    let backend = VaultBackend::new(limits());
    let grant = login(&backend, &stub.address(), Default::default()).await.unwrap();
    assert!(grant.terms.shareable && grant.terms.renewable && grant.terms.revocable);
    fetch(&backend, &stub.address(), Default::default()).await.unwrap();
    backend.revoke_session(context(&stub.address(), Default::default()), &token()).await.unwrap();
    let requests = stub.requests();
    let host = format!("host: 127.0.0.1:{}", stub.port);
    for (request, line) in requests.iter().zip([
        "POST /v1/auth/kubernetes/login HTTP/1.1",
        "GET /v1/secret/data/app?version=3 HTTP/1.1",
        "PUT /v1/auth/token/revoke-self HTTP/1.1",
    ]) {
        assert!(request.starts_with(line), "{request}");
        assert!(request.contains("x-vault-request: true") && request.contains(&host), "{request}");
        assert!(!request.contains("accept-encoding") && !request.contains("x-vault-namespace"), "{request}");
    }
    assert!(
        requests[0].ends_with(&format!(r#"{{"role":"app","jwt":"jwt.{CANARY}"}}"#))
            || requests[0].contains(r#""role":"app""#)
    );
    assert!(
        !requests[0].contains("x-vault-token") && requests[1].contains(&format!("x-vault-token: s.{CANARY}"))
    );
}

#[tokio::test]
async fn a_standby_that_lags_is_asked_to_forward() {
    let index = data_encoding::BASE64.encode(br#"{"cluster":"c","value":"7"}"#);
    let sent_back = format!("x-vault-index: {index}");
    let stub = Stub::start(move |request| {
        if request.starts_with("POST") {
            let Some(Step::Send(bytes)) = good_login().pop() else { unreachable!("one step") };
            let with = String::from_utf8(bytes).unwrap().replacen(
                "\r\n",
                &format!("\r\nX-Vault-Index: {index}\r\n"),
                1,
            );
            vec![Step::Send(with.into_bytes())]
        } else if request.contains("forward-active-node") || !request.contains(&sent_back) {
            good_read()
        } else {
            vec![send(
                "HTTP/1.1 429 Too Many Requests\nretry-after: 1\ncontent-length: 13\nconnection: close\n\n",
                r#"{"errors":[]}"#,
            )]
        }
    })
    .await;
    let backend = VaultBackend::new(limits());
    login(&backend, &stub.address(), Default::default()).await.unwrap();
    fetch(&backend, &stub.address(), Default::default()).await.unwrap();
    let requests = stub.requests();
    assert_eq!(requests.len(), 3, "login, refused read, forwarded read");
    assert!(requests[2].contains("x-vault-inconsistent: forward-active-node"));
}

#[tokio::test]
async fn a_403_is_settled_by_asking_about_the_token() {
    let bare = || json("403 Forbidden", r#"{"errors":["permission denied"]}"#);
    for (lookup, class) in [
        (bare(), FailureClass::LeaseGone),
        (good_read(), FailureClass::Denied),
        (
            json("403 Forbidden", r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#),
            FailureClass::Denied,
        ),
        (json("500 X", "{}"), FailureClass::Transient),
        (vec![Step::Reset], FailureClass::Transient),
    ] {
        let stub =
            Stub::start(move |request| if request.contains("lookup-self") { lookup.clone() } else { bare() })
                .await;
        let backend = VaultBackend::new(limits());
        let error = fetch(&backend, &stub.address(), Default::default()).await.unwrap_err();
        assert_eq!(error.class, class, "{error}");
        let context = || context(&stub.address(), Default::default());
        assert_eq!(backend.renew_lease(context(), &token(), "db/a/b").await.unwrap_err().class, class);
        backend.revoke_session(context(), &token()).await.unwrap();
        assert_eq!(
            backend.renew_session(context(), &token()).await.unwrap_err().class,
            FailureClass::LeaseGone
        );
    }
}
