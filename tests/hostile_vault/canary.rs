use std::{
    fmt::Write as _,
    io,
    sync::{Arc, Mutex},
};

use leasehold::backend::{RequestContext, SecretBackend, vault::VaultBackend};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

use crate::stub::{CANARY, Step, Stub, context, fetch, good_login, good_read, json, limits, login, token};

/// Everything that anyone said.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl io::Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Heard {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

static LOGGED: Mutex<String> = Mutex::new(String::new());

type Script = Box<dyn Fn(&str) -> Vec<Step> + Send + Sync>;

/// Listens to the libraries that log without tracing.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        writeln!(LOGGED.lock().unwrap(), "{} {}", record.target(), record.args()).unwrap();
    }

    fn flush(&self) {}
}

/// Tokens and values go through succeeding and failing exchanges, with every log at TRACE: none is heard,
/// and none is in a Debug or Display.
#[tokio::test]
async fn canary() {
    let heard = Heard::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(heard.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    log::set_logger(&Log).unwrap();
    log::set_max_level(log::LevelFilter::Trace);

    let echo =
        |request: &str| json("400 Bad Request", &serde_json::json!({ "errors": [request] }).to_string());
    let mut shown = String::new();
    let scripts: Vec<Script> = vec![
        Box::new(|request| if request.starts_with("POST") { good_login() } else { good_read() }),
        // A server that throws back at us what we sent.
        Box::new(echo),
        Box::new(|request| json("403 Forbidden", request)),
        Box::new(|request| json("200 OK", request)),
        Box::new(|request| json("200 OK", &format!(r#"{{"auth":"{CANARY}","data":{:?}}}"#, request))),
        Box::new(|request| vec![Step::Send(request.as_bytes().to_vec())]),
        Box::new(|request| {
            vec![
                Step::Send(
                    format!(
                        "HTTP/1.1 200 {CANARY}\r\nlocation: {}\r\n\r\n",
                        request.lines().last().unwrap_or_default()
                    )
                    .into_bytes(),
                ),
                Step::Reset,
            ]
        }),
        Box::new(|_| vec![Step::Reset]),
    ];
    for (turn, script) in scripts.into_iter().enumerate() {
        let stub = Stub::start(script).await;
        let backend = VaultBackend::new(limits());
        let tls = Default::default;
        let mut addresses = vec![stub.address(), format!("http://u:{CANARY}@vault")];
        if turn == 0 {
            addresses.push(format!("https://127.0.0.1:{}", stub.port));
        }
        for address in addresses {
            let ctx = || -> RequestContext { context(&address, tls()) };
            write!(shown, "{:?}", login(&backend, &address, tls()).await).unwrap();
            write!(shown, "{:?}", fetch(&backend, &address, tls()).await).unwrap();
            for outcome in [
                backend.renew_session(ctx(), &token()).await.map(drop),
                backend.renew_lease(ctx(), &token(), "db/creds/app/x").await.map(drop),
                backend.revoke_lease(ctx(), &token(), "db/creds/app/x").await,
                backend.revoke_session(ctx(), &token()).await,
                backend.revoke_session(ctx(), &format!("{CANARY}\n").into()).await,
            ] {
                let error = outcome.err();
                write!(shown, "{error:?} {}", error.as_ref().map(ToString::to_string).unwrap_or_default())
                    .unwrap();
            }
            write!(shown, "{backend:?}").unwrap();
        }
    }
    let heard = String::from_utf8_lossy(&heard.0.lock().unwrap()).into_owned();
    let logged = LOGGED.lock().unwrap().clone();
    assert!(heard.contains("leasehold::audit") && heard.contains("prod/app-1"), "we listen to tracing");
    assert!(heard.contains("d2f5960c-1111-2222-3333-444455556666"), "and find the server's request id");
    assert!(logged.contains("reqwest") && logged.contains("rustls"), "and to log");
    for (place, text) in [("errors", &shown), ("tracing", &heard), ("log", &logged)] {
        if let Some(at) = text.find(CANARY) {
            let from = text[..at].char_indices().rev().nth(200).map_or(0, |(index, _)| index);
            panic!("{place}: {}", &text[from..at + CANARY.len()]);
        }
    }
    // Once per request, also for those that never left.
    let lines =
        heard.lines().filter(|line| line.contains("leasehold::audit") && line.contains("revoke-session"));
    assert_eq!(lines.count(), (8 * 2 + 1) * 2);
}
