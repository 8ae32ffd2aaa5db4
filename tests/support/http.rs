//! A small HTTP/1.1 server for the stand-ins: it can also break off, drip and never end.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{future::BoxFuture, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

use super::background;

/// One request, read to its end.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query, as they came.
    pub target: String,
    /// Headers by lower-case name.
    pub headers: http::HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// A header's value, when it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A whole answer.
    Full {
        /// Status code.
        status: u16,
        /// Headers beside content-length.
        headers: Vec<(String, String)>,
        /// The body.
        body: Bytes,
    },
    /// Closes the connection without an answer.
    Close,
    /// Announces `body` and closes the connection after the first `sent` bytes of it.
    Cut {
        /// The body announced.
        body: Bytes,
        /// Bytes that are sent.
        sent: usize,
    },
    /// Sends one byte of `body` per `every`.
    Drip {
        /// The body.
        body: Bytes,
        /// Time between two bytes.
        every: Duration,
    },
    /// A JSON string of `bytes` bytes, made as it is read.
    Huge {
        /// Length of the body.
        bytes: usize,
    },
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::Full {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.to_string().into(),
        }
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Reply> + Send + Sync>;

/// A listening server on loopback; it stops when dropped.
pub struct Server {
    address: SocketAddr,
    handler: Handler,
    tls: Option<Arc<rustls::ServerConfig>>,
    connections: Arc<AtomicUsize>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a free port of 127.0.0.1.
    pub fn start<F>(tls: Option<rustls::ServerConfig>, handler: F) -> Self
    where
        F: Fn(Request) -> BoxFuture<'static, Reply> + Send + Sync + 'static,
    {
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            handler: Arc::new(handler),
            tls: tls.map(Arc::new),
            connections: Arc::default(),
            accepting: None,
        };
        server.listen();
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far, whether or not a request came.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Stops listening and breaks off every connection: the port refuses from now on.
    pub fn stop(&mut self) {
        if let Some(task) = self.accepting.take() {
            task.abort();
            while !task.is_finished() {
                std::thread::yield_now();
            }
        }
    }

    /// TLS of the connections that are accepted after the next [`Server::listen`].
    pub fn present(&mut self, tls: rustls::ServerConfig) {
        self.tls = Some(Arc::new(tls));
    }

    /// Listens, on the same port as before if there was one.
    pub fn listen(&mut self) {
        assert!(self.accepting.is_none(), "the server listens already");
        let listener = std::net::TcpListener::bind(self.address)
            .unwrap_or_else(|error| panic!("listen on {}: {error}", self.address));
        listener.set_nonblocking(true).expect("a non-blocking listener");
        self.address = listener.local_addr().expect("the address of a bound listener");
        let (handler, tls, connections) =
            (Arc::clone(&self.handler), self.tls.clone(), Arc::clone(&self.connections));
        self.accepting = Some(background().spawn(accept(listener, tls, handler, connections)));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.accepting.take() {
            task.abort();
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    handler: Handler,
    connections: Arc<AtomicUsize>,
) {
    let listener = TcpListener::from_std(listener).expect("a listener for the runtime");
    // Dropped with this task, and every connection with it.
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::SeqCst);
        let _ = stream.set_nodelay(true);
        let (handler, tls) = (Arc::clone(&handler), tls.clone());
        open.spawn(async move {
            match tls {
                None => converse(stream, handler).await,
                Some(config) => {
                    if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
                        converse(stream, handler).await;
                    }
                }
            }
        });
        while open.try_join_next().is_some() {}
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Handler) {
    let service = service_fn(move |request| answer(request, Arc::clone(&handler)));
    // An error is a client that went away, or a reply that breaks off on purpose.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: hyper::Request<Incoming>, handler: Handler) -> io::Result<hyper::Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let reply = handler(Request { method: head.method, target, headers: head.headers, body }).await;
    let mut response = hyper::Response::builder();
    let body = match reply {
        Reply::Close => return Err(io::Error::other("closed on purpose")),
        Reply::Full { status, headers, body } => {
            response = response.status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync()
        }
        Reply::Cut { body, sent } => {
            response = response.header("content-length", body.len());
            let parts = [Ok(body.slice(..sent)), Err(io::Error::other("cut on purpose"))];
            StreamBody::new(stream::iter(parts.map(|part| part.map(Frame::data)))).boxed_unsync()
        }
        Reply::Drip { body, every } => {
            response = response.header("content-length", body.len());
            StreamBody::new(stream::unfold((body, every), async |(mut rest, every)| {
                if rest.is_empty() {
                    return None;
                }
                tokio::time::sleep(every).await;
                let byte = rest.split_to(1);
                Some((Ok(Frame::data(byte)), (rest, every)))
            }))
            .boxed_unsync()
        }
        Reply::Huge { bytes } => {
            response = response.header("content-type", "application/json");
            let open = Bytes::from_static(b"{\"data\":{\"password\":\"");
            let close = Bytes::from_static(b"\"}}");
            let block = Bytes::from(vec![b'x'; 1 << 16]);
            let blocks = std::iter::repeat_n(block, bytes >> 16);
            let parts = std::iter::once(open).chain(blocks).chain([close]);
            StreamBody::new(stream::iter(parts.map(|part| Ok(Frame::data(part))))).boxed_unsync()
        }
    };
    response.body(body).map_err(io::Error::other)
}
