//! A proxy between leasehold and the server: it counts requests, records them and injects faults.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use hyper::body::Bytes;
use tokio::sync::Semaphore;

use super::{
    http::{Reply, Request, Server},
    install_tls_provider,
};

/// What happens to a request on its way.
#[derive(Clone, Debug, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    Pass,
    /// It waits, and passes then.
    Delay(Duration),
    /// It waits for a permit, and passes then.
    Hold(Arc<Semaphore>),
    /// The server answers at once; the answer is on its way for so long.
    Late(Duration),
    /// The server never sees it; this is the answer.
    Answer(Reply),
    /// The server answers; the first bytes of its body arrive and the connection ends.
    CutAfter(usize),
    /// The server answers; its body arrives a byte at a time.
    Drip(Duration),
}

/// One request as the proxy saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The path without `/v1/` and without the query.
    pub path: String,
    /// What follows `?`.
    pub query: Option<String>,
    /// `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// `X-Vault-Token`.
    pub token: Option<String>,
    /// The body.
    pub body: Bytes,
    /// When it arrived.
    pub started: Instant,
    /// When the answer was there; `None` while it is not.
    pub finished: Option<Instant>,
    /// Status of the answer that the client gets; `None` if it gets none.
    pub status: Option<u16>,
}

type Rule = Arc<dyn Fn(&Seen) -> Fault + Send + Sync>;

struct State {
    seen: Vec<Seen>,
    rule: Rule,
}

/// The proxy; it stops when dropped.
pub struct Proxy {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts a plain HTTP proxy towards `upstream` (`http://host:port`).
    pub fn start(upstream: &str) -> Self {
        Self::start_with(upstream, None)
    }

    /// Starts a proxy that itself speaks TLS if given a configuration.
    pub fn start_with(upstream: &str, tls: Option<rustls::ServerConfig>) -> Self {
        install_tls_provider();
        let state = Arc::new(Mutex::new(State { seen: Vec::new(), rule: Arc::new(|_| Fault::Pass) }));
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([])
            .build()
            .expect("an HTTP client");
        let (shared, upstream) = (Arc::clone(&state), upstream.to_owned());
        let server = Server::start(tls, move |request| {
            handle(request, Arc::clone(&shared), client.clone(), upstream.clone()).boxed()
        });
        Self { server, state }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Decides the fate of every request from now on.
    pub fn rule(&self, rule: impl Fn(&Seen) -> Fault + Send + Sync + 'static) {
        self.state.lock().unwrap().rule = Arc::new(rule);
    }

    /// Lets every request pass.
    pub fn heal(&self) {
        self.rule(|_| Fault::Pass);
    }

    /// Refuses connections and breaks off the open ones, as a server that went away.
    pub fn down(&mut self) {
        self.server.stop();
    }

    /// Listens again, on the same port.
    pub fn up(&mut self) {
        self.server.listen();
    }

    /// Breaks off every connection and shows another certificate from now on.
    pub fn present(&mut self, tls: rustls::ServerConfig) {
        self.server.stop();
        self.server.present(tls);
        self.server.listen();
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// All requests since the start or the last [`Proxy::forget`], in order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// `METHOD path` of all requests, in order of arrival.
    pub fn requests(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    /// How many requests there were.
    pub fn count(&self) -> usize {
        self.state.lock().unwrap().seen.len()
    }

    /// Starts to count anew.
    pub fn forget(&self) {
        self.state.lock().unwrap().seen.clear();
    }

    /// How many round trips one after another the requests took: a request that arrived when all earlier
    /// ones were answered begins a new one. Exact only when a rule delays every request.
    pub fn rounds(&self) -> usize {
        let mut rounds = 0;
        let mut busy_until: Option<Instant> = None;
        for seen in self.seen() {
            let finished = seen.finished.unwrap_or_else(Instant::now);
            if busy_until.is_none_or(|until| seen.started >= until) {
                rounds += 1;
                busy_until = Some(finished);
            } else {
                busy_until = busy_until.max(Some(finished));
            }
        }
        rounds
    }
}

async fn handle(
    request: Request,
    state: Arc<Mutex<State>>,
    client: reqwest::Client,
    upstream: String,
) -> Reply {
    let (path, query) = match request.target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (request.target.as_str(), None),
    };
    let seen = Seen {
        method: request.method.to_string(),
        path: path.strip_prefix("/v1/").unwrap_or(path).to_owned(),
        query,
        namespace: request.header("x-vault-namespace").map(str::to_owned),
        token: request.header("x-vault-token").map(str::to_owned),
        body: request.body.clone(),
        started: Instant::now(),
        finished: None,
        status: None,
    };
    let (index, rule) = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        (state.seen.len() - 1, Arc::clone(&state.rule))
    };
    let fault = rule(&seen);
    match &fault {
        Fault::Delay(time) => tokio::time::sleep(*time).await,
        Fault::Hold(gate) => drop(gate.acquire().await),
        _ => {}
    }
    let reply = match fault {
        Fault::Answer(reply) => reply,
        Fault::CutAfter(sent) => match forward(&request, &client, &upstream).await {
            Reply::Full { body, .. } => Reply::Cut { sent: sent.min(body.len()), body },
            other => other,
        },
        Fault::Drip(every) => match forward(&request, &client, &upstream).await {
            Reply::Full { body, .. } => Reply::Drip { body, every },
            other => other,
        },
        Fault::Late(time) => {
            let reply = forward(&request, &client, &upstream).await;
            tokio::time::sleep(time).await;
            reply
        }
        _ => forward(&request, &client, &upstream).await,
    };
    let mut state = state.lock().unwrap();
    // `forget` may have emptied the record while the request was on its way.
    if let Some(record) = state.seen.get_mut(index).filter(|record| record.started == seen.started) {
        record.finished = Some(Instant::now());
        record.status = match &reply {
            Reply::Full { status, .. } => Some(*status),
            Reply::Close => None,
            _ => Some(200),
        };
    }
    reply
}

async fn forward(request: &Request, client: &reqwest::Client, upstream: &str) -> Reply {
    let mut headers = request.headers.clone();
    headers.remove("host");
    headers.remove("content-length");
    let url = format!("{upstream}{}", request.target);
    let sent =
        client.request(request.method.clone(), url).headers(headers).body(request.body.clone()).send().await;
    // A server that is not there looks to the client as it would without the proxy: no answer.
    let Ok(response) = sent else { return Reply::Close };
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "content-length" | "transfer-encoding" | "connection"))
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect();
    match response.bytes().await {
        Ok(body) => Reply::Full { status, headers, body },
        Err(_) => Reply::Close,
    }
}
