//! One call of the driver, step by step; the only place that makes a status.
//!
//! Kubelet and driver 1.6.0 take Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and Aborted for
//! "may still succeed", keep the empty folder, and start the pod on it at the next try. No such code leaves
//! this module: not for a panic, an oversized request, a time-out, or an end of the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use http_body_util::{BodyExt, combinators::MapFrame};
use hyper::{
    HeaderMap,
    body::{Bytes, Frame, Incoming},
    header::USER_AGENT,
    http::{HeaderValue, Request, Response},
};
use prost::Message;
use tokio::sync::watch;
use tonic::{Code, Status};
use tower_service::Service as _;
use tracing::{Instrument, debug, error_span, warn};

use super::{
    listener::Phase,
    proto::{
        File, MountRequest, MountResponse, ObjectVersion, VersionRequest, VersionResponse,
        csi_driver_provider_server::{CsiDriverProvider, CsiDriverProviderServer},
    },
    request::Call,
    sightings::Sightings,
    token::TokenError,
};
use crate::{
    clock,
    kubernetes::Cluster,
    metrics::{Metrics, MountResult},
    policy::Policy,
    secret::SecretBytes,
    spec::{
        ProviderName, SpecError,
        parameters::{self, Defaults, Parsed},
    },
    volume::{FailureKind, LoginCredential, MountAnswer, MountCommand, MountFailure},
};

/// The interface version the driver speaks; it never negotiates.
const INTERFACE: &str = "v1alpha1";
/// What the driver sends as `:authority` since 1.6.0.
const DRIVER_AUTHORITY: &str = "localhost";
/// Largest request: 16 MiB. etcd admits 1.5 MiB for the SecretProviderClass, the pod's attributes as much;
/// tonic's own limit of 4 MiB answers OutOfRange or ResourceExhausted.
const MAX_REQUEST: usize = 16 << 20;
/// Largest answer: 3.5 MiB. The driver refuses more than 4 MiB (`--max-call-recv-msg-size`) with
/// ResourceExhausted.
const MAX_ANSWER: usize = 3_584 << 10;
/// Longest time for a Mount: the kubelet gives up after 120 s.
const MAX_MOUNT: Duration = Duration::from_secs(90);
/// How long before the caller's own time-out the answer is due.
const MARGIN: Duration = Duration::from_secs(8);
/// How long after the deadline we wait for a volume that answers by it, at most a quarter of the caller's
/// time-out: it knows better than we what it was waiting for.
const GRACE: Duration = Duration::from_secs(1);
/// Calls at once. A node has at most some 250 pods.
const MAX_CALLS: usize = 1024;
/// Calls at once for one namespace: none can keep all others out.
const MAX_CALLS_PER_NAMESPACE: usize = MAX_CALLS / 2;
/// Longest message of a failure, in bytes: it travels in a header.
const MAX_MESSAGE: usize = 2048;
/// Distinct plans whose warnings were logged, before we start to forget and repeat them.
const MAX_WARNED: usize = 4096;

/// Performs a Mount: in production [`crate::volume::VolumeManager::mount`].
pub type Mounter = Arc<
    dyn Fn(MountCommand) -> Pin<Box<dyn Future<Output = Result<MountAnswer, MountFailure>> + Send>>
        + Send
        + Sync,
>;

/// What calls are answered with; the same for all sockets.
pub struct Node {
    /// Who performs a Mount.
    pub mounter: Mounter,
    /// The tenancy rules.
    pub policy: Policy,
    /// What parameters fall back to, by provider.
    pub defaults: BTreeMap<ProviderName, Defaults>,
    /// The kubelet's root folder; target paths are below it.
    pub kubelet_root: PathBuf,
    /// What Mounts may ask the API server for.
    pub cluster: Cluster,
    /// What calls show of the driver.
    pub sightings: Arc<Sightings>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("kubelet_root", &self.kubelet_root).finish_non_exhaustive()
    }
}

/// The node and what its calls share.
#[derive(Debug)]
pub struct Shared {
    node: Node,
    phase: watch::Receiver<Phase>,
    /// Calls in flight by namespace.
    admitted: Mutex<BTreeMap<String, usize>>,
    /// Plans whose warnings were logged: the driver repeats each call every 75 s.
    warned: Mutex<BTreeSet<[u8; 32]>>,
}

impl Shared {
    /// With no call in flight; in-flight calls are answered at once when `phase` comes to [`Phase::Closing`].
    pub fn new(node: Node, phase: watch::Receiver<Phase>) -> Self {
        Self { node, phase, admitted: Mutex::default(), warned: Mutex::default() }
    }
}

/// One socket's service.
#[derive(Debug)]
pub struct Service {
    sightings: Arc<Sightings>,
    grpc: CsiDriverProviderServer<Provider>,
    metrics: Arc<Metrics>,
}

/// The body of an answer, with its trailers made final.
type Body = MapFrame<tonic::body::Body, fn(Frame<Bytes>) -> Frame<Bytes>>;

/// When a call came, and how long its caller waits.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Instant,
    timeout: Option<Duration>,
}

impl Service {
    /// The service of `name`'s socket.
    pub fn new(name: ProviderName, shared: Arc<Shared>) -> Self {
        let metrics = Arc::clone(&shared.node.metrics);
        let sightings = Arc::clone(&shared.node.sightings);
        let grpc =
            CsiDriverProviderServer::new(Provider { name, shared }).max_decoding_message_size(MAX_REQUEST);
        Self { sightings, grpc, metrics }
    }

    /// What calls show of the driver.
    pub fn sightings(&self) -> Arc<Sightings> {
        Arc::clone(&self.sightings)
    }

    /// Answers one HTTP/2 request, always with a final code.
    ///
    /// # Errors
    /// Never: an error here would reset the stream.
    pub async fn call(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let arrival = Arrival { at: Instant::now(), timeout: grpc_timeout(request.headers()) };
        let user_agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
        let newer = request.uri().authority().is_some_and(|authority| authority == DRIVER_AUTHORITY);
        self.sightings.request(newer, user_agent.unwrap_or_default());
        request.extensions_mut().insert(arrival);
        let mut grpc = self.grpc.clone();
        let answer = AssertUnwindSafe(async move { grpc.call(request).await }).catch_unwind().await;
        let mut response = match answer {
            Ok(Ok(response)) => response,
            Err(_panic) => {
                // The hook has logged where; what it said may hold a value.
                self.metrics.panicked();
                Status::internal(
                    "leasehold failed inside; its log says where. Other volumes are not affected",
                )
                .into_http()
            }
        };
        make_final(response.headers_mut());
        Ok(response.map(|body| body.map_frame(final_trailers as fn(_) -> _)))
    }
}

fn final_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            make_final(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// Turns a code that is not final into INTERNAL: whatever a library answers on our behalf, an oversized
/// request above all.
fn make_final(headers: &mut HeaderMap) {
    let Some(code) = headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes())) else {
        return;
    };
    if matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Unavailable
    ) {
        headers.insert("grpc-status", HeaderValue::from(Code::Internal as i32));
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit. Nothing else in this process acts on it.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u32 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit.saturating_mul(value))
}

impl Arrival {
    /// When the work is due.
    fn deadline(self) -> Instant {
        self.at + self.timeout.map_or(MAX_MOUNT, |timeout| timeout.saturating_sub(MARGIN).min(MAX_MOUNT))
    }

    /// When the answer is given, whatever it is.
    fn answer_by(self) -> Instant {
        self.deadline() + self.timeout.map_or(GRACE, |timeout| GRACE.min(timeout / 4))
    }
}

#[derive(Debug)]
struct Provider {
    name: ProviderName,
    shared: Arc<Shared>,
}

#[tonic::async_trait]
impl CsiDriverProvider for Provider {
    async fn version(
        &self,
        _: tonic::Request<VersionRequest>,
    ) -> Result<tonic::Response<VersionResponse>, Status> {
        Ok(tonic::Response::new(VersionResponse {
            version: INTERFACE.to_owned(),
            runtime_name: env!("CARGO_PKG_NAME").to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn mount(
        &self,
        request: tonic::Request<MountRequest>,
    ) -> Result<tonic::Response<MountResponse>, Status> {
        let arrival = request.extensions().get().copied();
        let arrival = arrival.unwrap_or_else(|| Arrival { at: Instant::now(), timeout: None });
        let answer = self.answer(request.into_inner(), arrival).await;
        let result = match &answer {
            Ok(_) => MountResult::Ok,
            Err(failure) => MountResult::Failed(failure.kind),
        };
        self.shared.node.metrics.mounted(self.name, result, arrival.at.elapsed());
        answer.map(tonic::Response::new).map_err(|failure| status(&failure))
    }
}

impl Provider {
    async fn answer(&self, request: MountRequest, arrival: Arrival) -> Result<MountResponse, MountFailure> {
        let call = Call::parse(self.name, request, &self.shared.node.kubelet_root).inspect_err(|error| {
            warn!(provider = %self.name, %error, "refused a call");
        })?;
        // At the highest level, so that its fields stand beside every line that is shown at all.
        let span = error_span!(
            "mount",
            pod = call.pod.name,
            namespace = call.pod.namespace,
            class = call.class,
            target = %call.key,
        );
        let answered = async {
            let answer = self.mount_call(call, arrival).await.and_then(response);
            match &answer {
                Ok(_) => debug!(provider = %self.name, "mount answered"),
                Err(failure) => warn!(provider = %self.name, kind = ?failure.kind, "mount failed: {failure}"),
            }
            answer
        };
        answered.instrument(span).await
    }

    async fn mount_call(&self, call: Call, arrival: Arrival) -> Result<MountAnswer, MountFailure> {
        let _admission = Admission::take(&self.shared, &call.pod.namespace)?;
        let class = call.class.clone();
        let mut server = "the API server".to_owned();
        let answer = async {
            let command = self.plan(call, arrival.deadline()).await;
            server =
                command.plan.as_ref().map_or_else(|_| "-".to_owned(), |spec| spec.connection.address.clone());
            (self.shared.node.mounter)(command).await
        };
        let mut phase = self.shared.phase.clone();
        let in_time = tokio::select! {
            // First, also where no time is left: only then is it known whom we wait for.
            biased;
            answer = answer => Some(answer),
            () = tokio::time::sleep_until(arrival.answer_by().into()) => None,
            () = Phase::Closing.reached(&mut phase) => Some(Err(MountFailure::new(
                FailureKind::Internal,
                "leasehold is shutting down; the driver will call again",
            ))),
        };
        in_time.unwrap_or_else(|| {
            Err(MountFailure::new(
                FailureKind::Internal,
                format!(
                    "SecretProviderClass {class}: still logging in to or reading from {server} after {:.0} s; the \
                     work goes on, and the driver's next call joins it: try again",
                    arrival.at.elapsed().as_secs_f64(),
                ),
            ))
        })
    }

    /// Parses and judges what the call asks for. A volume that lives survives a plan or a token that cannot
    /// be had, so neither ends the call here.
    async fn plan(&self, call: Call, deadline: Instant) -> MountCommand {
        let plan = self.parse(&call).await;
        let Call { key, pod, class, attributes, tokens, digest, .. } = call;
        let sightings = &self.shared.node.sightings;
        if let Ok(tokens) = &tokens {
            sightings.audiences(tokens.audiences());
        }
        let has_tokens = tokens.as_ref().map_or(true, |tokens| !tokens.is_empty());
        sightings.call(has_tokens || self.shared.node.cluster.token_requests.is_some());
        if let Ok(parsed) = &plan {
            sightings.asked_for(&parsed.spec);
        }
        let audience = match &plan {
            Ok(parsed) => parsed.spec.login.audience.clone(),
            // For the old plan, which goes on: very likely it has the same.
            Err(_) => audience_of(self.name, &attributes).to_owned(),
        };
        let token = tokens.and_then(|tokens| tokens.pick(&audience, &pod, clock::wall_now()));
        let token = match (token, &self.shared.node.cluster.token_requests) {
            // Of a plan that policy refuses, nobody has allowed the audience.
            (Err(TokenError::NoAudience { .. }), Some(requests)) if plan.is_ok() => {
                requests.token(&pod, &audience).await.map_err(MountFailure::from)
            }
            (token, _) => token.map_err(MountFailure::from),
        };
        let token = token.map(LoginCredential::from);
        MountCommand {
            key,
            pod,
            provider: self.name,
            class,
            plan: plan.map(|parsed| Arc::new(parsed.spec)),
            attributes_digest: digest,
            token,
            deadline,
        }
    }

    async fn parse(&self, call: &Call) -> Result<Parsed, MountFailure> {
        let Call { pod, attributes, default_mode, .. } = call;
        let Some(defaults) = self.shared.node.defaults.get(&self.name) else {
            return Err(MountFailure::new(
                FailureKind::Internal,
                "leasehold has no defaults for this socket",
            ));
        };
        let parse = |owner| parameters::parse_for(self.name, attributes, *default_mode, defaults, owner);
        let parsed = match (parse(None), &self.shared.node.cluster.pods) {
            (Err(SpecError::PodOwner { .. }), Some(pods)) => {
                parse(Some(pods.owner(pod, call.key.volume_name()).await?))
            }
            (parsed, _) => parsed,
        };
        let mut parsed = parsed.map_err(|error| {
            MountFailure::new(FailureKind::InvalidArgument, crate::telemetry::chain(&error))
        })?;
        self.warn_once(call.digest, &parsed.warnings);
        self.shared.node.policy.check(self.name, pod, &parsed.spec).map_err(|refusal| {
            self.shared.node.metrics.refused(self.name);
            MountFailure::new(FailureKind::PermissionDenied, crate::telemetry::chain(&refusal))
        })?;
        self.shared.node.policy.narrow(self.name, pod, &mut parsed.spec);
        Ok(parsed)
    }

    fn warn_once(&self, digest: [u8; 32], warnings: &[String]) {
        if warnings.is_empty() {
            return;
        }
        let mut warned = self.shared.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.len() >= MAX_WARNED {
            warned.clear();
        }
        if warned.insert(digest) {
            for warning in warnings {
                warn!(provider = %self.name, "{warning}");
            }
        }
    }
}

/// The audience of parameters that do not parse: what they say, or the provider's default.
fn audience_of(name: ProviderName, attributes: &BTreeMap<String, String>) -> &str {
    attributes
        .get("audience")
        .filter(|audience| !audience.is_empty())
        .map_or(name.default_audience(), String::as_str)
}

/// A place among the calls in flight, given back on drop.
struct Admission<'a> {
    shared: &'a Shared,
    namespace: String,
}

impl<'a> Admission<'a> {
    fn take(shared: &'a Shared, namespace: &str) -> Result<Self, MountFailure> {
        let mut admitted = shared.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = admitted.values().sum();
        let own = admitted.get(namespace).copied().unwrap_or(0);
        if all >= MAX_CALLS || own >= MAX_CALLS_PER_NAMESPACE {
            return Err(MountFailure::new(
                FailureKind::Internal,
                format!(
                    "leasehold is busy with {all} mounts, {own} of this namespace; the kubelet will call again"
                ),
            ));
        }
        admitted.insert(namespace.to_owned(), own + 1);
        Ok(Self { shared, namespace: namespace.to_owned() })
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let mut admitted = self.shared.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = admitted.get_mut(&self.namespace) {
            *own -= 1;
            if *own == 0 {
                admitted.remove(&self.namespace);
            }
        }
    }
}

fn response(answer: MountAnswer) -> Result<MountResponse, MountFailure> {
    if answer.versions.is_empty() {
        // The driver would say "missing object versions", which helps nobody.
        return Err(MountFailure::new(FailureKind::Internal, "the volume has no object versions"));
    }
    let total: usize = answer.files.iter().map(|file| file.contents.len()).sum();
    let too_large = |size: usize| {
        MountFailure::new(
            FailureKind::FailedPrecondition,
            format!(
                "the files have {size} bytes, more than the driver takes in an answer: give leasehold the kubelet's \
                 pods folder (hostPath, HostToContainer) so that it writes them itself; maxCallRecvMsgSize of the \
                 driver's chart does not change leasehold's limit of {MAX_ANSWER}"
            ),
        )
    };
    if total > MAX_ANSWER {
        return Err(too_large(total));
    }
    let response = MountResponse {
        object_version: answer
            .versions
            .into_iter()
            .map(|(id, version)| ObjectVersion { id, version })
            .collect(),
        error: None,
        files: answer
            .files
            .into_iter()
            .map(|file| File {
                path: file.path,
                // Within 0777, so it fits.
                mode: i32::try_from(file.mode).unwrap_or(0o400),
                contents: exposed(&file.contents),
            })
            .collect(),
    };
    match response.encoded_len() {
        size if size > MAX_ANSWER => Err(too_large(size)),
        _ => Ok(response),
    }
}

/// The driver is to write the file, so here its contents leave the process.
fn exposed(contents: &SecretBytes) -> Vec<u8> {
    contents.expose().to_vec()
}

fn status(failure: &MountFailure) -> Status {
    let code = match failure.kind {
        FailureKind::InvalidArgument => Code::InvalidArgument,
        FailureKind::PermissionDenied => Code::PermissionDenied,
        FailureKind::NotFound => Code::NotFound,
        FailureKind::FailedPrecondition => Code::FailedPrecondition,
        FailureKind::Internal => Code::Internal,
    };
    let message = &failure.message;
    let end =
        (0..=message.len().min(MAX_MESSAGE)).rev().find(|&end| message.is_char_boundary(end)).unwrap_or(0);
    Status::new(code, &message[..end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_answer_is_due_before_the_callers_time_out() {
        let at = Instant::now();
        for (timeout, deadline, answer_by) in [
            (None, 90.0, 91.0),
            (Some("2M"), 90.0, 91.0),
            (Some("98S"), 90.0, 91.0),
            (Some("60000m"), 52.0, 53.0),
            (Some("9S"), 1.0, 2.0),
            (Some("8S"), 0.0, 1.0),
            (Some("2000000u"), 0.0, 0.5),
            (Some("1n"), 0.0, 0.0),
            (Some("99999999H"), 90.0, 91.0),
            (Some("999999999S"), 90.0, 91.0),
            (Some("S"), 90.0, 91.0),
            (Some("5X"), 90.0, 91.0),
            (Some(""), 90.0, 91.0),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(timeout) = timeout {
                headers.insert("grpc-timeout", timeout.parse().unwrap());
            }
            let arrival = Arrival { at, timeout: grpc_timeout(&headers) };
            let seconds = |instant: Instant| instant.duration_since(at).as_secs_f64();
            assert_eq!(seconds(arrival.deadline()), deadline, "{timeout:?}");
            assert_eq!(seconds(arrival.answer_by()), answer_by, "{timeout:?}");
        }
    }

    #[test]
    fn only_final_codes_pass() {
        for code in 0..=16 {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", HeaderValue::from(code));
            make_final(&mut headers);
            let expected = if [1, 4, 8, 10, 14].contains(&code) { 13 } else { code };
            assert_eq!(headers["grpc-status"], HeaderValue::from(expected));
        }
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let message = "ä".repeat(2000);
        let status = status(&MountFailure::new(FailureKind::Internal, format!("x{message}")));
        assert_eq!(status.message().len(), MAX_MESSAGE - 1);
    }
}
