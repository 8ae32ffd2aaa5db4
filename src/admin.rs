//! Health and metrics over HTTP/1.1: read-only, bounded, and nothing else on TCP (CVE-2026-115364 was a
//! quit endpoint).

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::{debug, warn};

use crate::{
    clock::{BootTime, boot_now},
    metrics::Metrics,
    volume::VolumeManager,
};

/// Connections at once: the kubelet's probes, a scraper, and room.
const MAX_CONNECTIONS: usize = 64;
/// Longest life of a connection, one request each.
const MAX_LIFE: Duration = Duration::from_secs(10);
/// Largest request head.
const MAX_HEAD: usize = 16 * 1024;
/// How often the worker is asked whether it turns, and how long it may take: together less than the 15 s within
/// which a stall has to be seen.
const PING: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What stands between the process and a Mount, by part. Ready is when nothing does.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<BTreeMap<&'static str, Obstacle>>);

#[derive(Debug)]
struct Obstacle {
    blocks: bool,
    reason: String,
}

impl Readiness {
    /// Not ready because of `part`, until [`Self::clear`].
    pub fn block(&self, part: &'static str, reason: impl Into<String>) {
        self.set(part, Obstacle { blocks: true, reason: reason.into() });
    }

    /// Ready, but something is wrong that the operator should see.
    pub fn degrade(&self, part: &'static str, reason: impl Into<String>) {
        self.set(part, Obstacle { blocks: false, reason: reason.into() });
    }

    /// `part` is well.
    pub fn clear(&self, part: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    fn set(&self, part: &'static str, obstacle: Obstacle) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, obstacle);
    }

    /// The parts that are not well.
    pub fn parts(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Whether a Mount could be served, and each part that is not well: whether it blocks, and why.
    pub fn findings(&self) -> (bool, Vec<(String, bool, String)>) {
        let obstacles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let findings: Vec<_> = obstacles
            .iter()
            .map(|(part, obstacle)| ((*part).to_owned(), obstacle.blocks, obstacle.reason.clone()))
            .collect();
        (!findings.iter().any(|(_, blocks, _)| *blocks), findings)
    }

    /// Whether a Mount could be served, and a line for each part that is not well.
    pub fn report(&self) -> (bool, String) {
        let obstacles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = !obstacles.values().any(|obstacle| obstacle.blocks);
        let mut text = String::from(if ready { "ready\n" } else { "not ready\n" });
        for (part, Obstacle { blocks, reason }) in obstacles.iter() {
            let word = if *blocks { "blocked" } else { "degraded" };
            text.push_str(&format!("{part}: {word}: {reason}\n"));
        }
        (ready, text)
    }
}

/// Whether the worker turns: it is asked again and again, and has to answer.
#[derive(Debug, Default)]
pub struct Liveness {
    /// When the question was put that has no answer yet, milliseconds on the boot clock; zero without one.
    asked: AtomicU64,
}

impl Liveness {
    /// Asks `manager` until its worker has ended. Runs beside the
    /// worker, on the thread of [`spawn`].
    pub async fn watch(self: Arc<Self>, manager: VolumeManager) {
        loop {
            self.asked.store(boot_now().as_millis().max(1), Ordering::Relaxed);
            if manager.ping().await.is_none() {
                return;
            }
            self.asked.store(0, Ordering::Relaxed);
            tokio::time::sleep(PING).await;
        }
    }

    /// For how long the worker has not answered, once that is too long.
    pub fn stalled(&self, now: BootTime) -> Option<Duration> {
        match self.asked.load(Ordering::Relaxed) {
            0 => None,
            asked => Some(now.since(BootTime::from_millis(asked))).filter(|waited| *waited >= PATIENCE),
        }
    }
}

/// Serves on a thread of its own, so that a worker that holds all threads of the runtime is told of. The
/// runtime of that thread is given back.
///
/// # Errors
/// When there can be no thread.
pub fn spawn(admin: Admin, listener: std::net::TcpListener) -> io::Result<tokio::runtime::Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new().name("health".to_owned()).spawn(move || {
        runtime.block_on(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => admin.serve(listener).await,
                Err(error) => warn!(%error, "health and metrics cannot be served"),
            }
        });
    })?;
    Ok(handle)
}

/// What the endpoint shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// For /metrics.
    pub metrics: Arc<Metrics>,
    /// For /readyz and /health/ready.
    pub readiness: Arc<Readiness>,
    /// For /livez.
    pub liveness: Arc<Liveness>,
}

impl Admin {
    /// Answers until dropped.
    pub async fn serve(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "accept failed at the health address");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // With no place left the connection is closed: a probe comes again.
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let admin = self.clone();
            tokio::spawn(async move {
                let served = tokio::time::timeout(MAX_LIFE, admin.connection(TokioIo::new(stream))).await;
                if !matches!(served, Ok(Ok(()))) {
                    debug!("a connection to the health address was cut");
                }
                drop(place);
            });
        }
    }

    async fn connection<I>(&self, io: I) -> hyper::Result<()>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin,
    {
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(MAX_LIFE / 2)
            .keep_alive(false)
            .max_buf_size(MAX_HEAD)
            .serve_connection(
                io,
                service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request)) }),
            )
            .await
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "read-only\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => match self.liveness.stalled(boot_now()) {
                None => text(StatusCode::OK, "alive\n".to_owned()),
                Some(stall) => text(StatusCode::SERVICE_UNAVAILABLE, stalled(stall)),
            },
            // The second is where the chart of vault-csi-provider points its probes.
            "/readyz" | "/health/ready" => {
                let (mut ready, mut report) = self.readiness.report();
                if let Some(stall) = self.liveness.stalled(boot_now()) {
                    (ready, report) = (false, format!("not ready\nworker: blocked: {}", stalled(stall)));
                }
                text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, report)
            }
            "/metrics" => {
                let mut response =
                    text(StatusCode::OK, self.metrics.render(boot_now(), &self.readiness.parts()));
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                response
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /livez, /readyz, /health/ready and /metrics\n".to_owned(),
            ),
        }
    }
}

pub(crate) fn stalled(stall: Duration) -> String {
    format!("the worker has not turned for {} s\n", stall.as_secs())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Binds Go's spelling of an address: `:8080` is every interface, of IPv6 too where the node has it.
///
/// # Errors
/// When nothing could be bound.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    let Some(port) = address.strip_prefix(':') else { return TcpListener::bind(address).await };
    match TcpListener::bind(format!("[::]:{port}")).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind(format!("0.0.0.0:{port}")).await
        }
        bound => bound,
    }
}

#[cfg(test)]
mod tests;
