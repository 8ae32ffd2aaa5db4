//! Optional use of the API server, each only where an option asks for it: Events on pods, tokens that the
//! driver does not bring, and a pod's securityContext. Without such an option nothing here runs, and no
//! ServiceAccount token of the agent's own is mounted.

use std::{error::Error, time::Duration};

use kube::{Client, Config};

pub use events::Recorder;
pub use pods::PodReader;
pub use token_request::TokenRequests;

mod events;
mod pods;
mod token_request;

/// Where the kubelet mounts the pod's own token and the cluster's CA.
pub const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Until TCP and TLS to the API server are up.
const CONNECT: Duration = Duration::from_secs(5);
/// Until an answer is complete. The API server's own admission may take seconds; a Mount has 90 s for
/// everything.
const ANSWER: Duration = Duration::from_secs(10);
/// Characters of the API server's own words in a message.
const MAX_SAID: usize = 300;

/// What of the API server is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Events on pods (`create events` of `events.k8s.io`).
    pub pod_events: bool,
    /// Tokens for audiences that the driver brings none for (`create serviceaccounts/token`).
    pub token_request: bool,
    /// A pod's securityContext for `fileOwner: pod` (`get pods`).
    pub read_pods: bool,
}

impl Options {
    /// Whether the API server is used at all.
    pub const fn any(self) -> bool {
        self.pod_events || self.token_request || self.read_pods
    }
}

/// What Mounts may ask the API server for.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Tokens that the driver does not bring.
    pub token_requests: Option<TokenRequests>,
    /// Owners that are the pod's.
    pub pods: Option<PodReader>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// This is no pod, or it has no ServiceAccount token.
    #[error(
        "--pod-events, --token-request and --read-pods need a pod with a ServiceAccount token \
         (automountServiceAccountToken: true, as the chart sets it with podEvents, tokenRequest or readPods)"
    )]
    NoPod(#[source] Box<kube::config::InClusterError>),
    /// The client cannot be built: the cluster's CA, mostly.
    #[error("cannot build a client of the API server")]
    Client(#[source] Box<kube::Error>),
}

/// A client with the ServiceAccount of this pod, whose token is read anew every minute. Connects to nobody yet.
///
/// # Errors
/// When this is no pod with a token.
pub fn connect() -> Result<Client, ConnectError> {
    let mut config = Config::incluster().map_err(|error| ConnectError::NoPod(Box::new(error)))?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(ANSWER);
    config.write_timeout = Some(ANSWER);
    // Whoever asks knows better whether there is time for another try.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}

/// Why the API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// RBAC or admission.
    #[error("the API server does not let leasehold {what} (403): {said}")]
    Forbidden {
        /// What was asked.
        what: &'static str,
        /// Its own words, which name the missing right.
        said: String,
    },
    /// Our own token is not taken.
    #[error("the API server does not take leasehold's own token (401)")]
    Unauthorized,
    /// No such object.
    #[error("the API server knows no such object (404)")]
    NotFound,
    /// It exists already, or was changed meanwhile.
    #[error("the API server reports a conflict (409)")]
    Conflict,
    /// Too many requests.
    #[error("the API server limits the rate of requests (429)")]
    Throttled,
    /// Any other refusal.
    #[error("the API server answered {code} {reason}")]
    Answered {
        /// The status.
        code: u16,
        /// Its reason, a word of the API's.
        reason: String,
    },
    /// Out of time.
    #[error("the API server did not answer within {} s", ANSWER.as_secs())]
    Timeout,
    /// No exchange.
    #[error("the API server cannot be reached")]
    Unreachable(#[source] Box<dyn Error + Send + Sync>),
}

/// Performs `request`, for `what`, within the usual time.
async fn ask<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER, request).await {
        Err(_) => Err(ApiError::Timeout),
        Ok(answer) => answer.map_err(|error| classify(what, error)),
    }
}

fn classify(what: &'static str, error: kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => ApiError::Unauthorized,
            403 => {
                let plain = status.message.chars().filter(|letter| !letter.is_control());
                ApiError::Forbidden { what, said: plain.take(MAX_SAID).collect() }
            }
            404 => ApiError::NotFound,
            409 => ApiError::Conflict,
            429 => ApiError::Throttled,
            code => ApiError::Answered { code, reason: status.reason.chars().take(64).collect() },
        },
        error => ApiError::Unreachable(Box::new(error)),
    }
}
