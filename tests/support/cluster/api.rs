//! The API server as an agent inside a pod reaches it: TLS, a ServiceAccount token, RBAC, and the three things
//! that leasehold may ask for: Events, TokenRequest, and a pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use serde_json::{Value, json};

use super::{API_AUDIENCE, Cluster, Pod, audiences, failure, rfc3339, sign, unix_now, verify};
use crate::support::http::{Reply, Request, Server};

/// Who asks.
const ACCOUNT: (&str, &str) = ("leasehold-system", "leasehold");

/// A right that a ClusterRole gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// `create` `events` of `events.k8s.io`.
    CreateEvents,
    /// `create` `serviceaccounts/token`.
    CreateTokens,
    /// `get` `pods`.
    GetPods,
}

/// How the API server goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFault {
    /// 429 with Retry-After.
    Throttled,
    /// 409 AlreadyExists.
    Conflict,
    /// 500.
    InternalError,
    /// Each answer takes so long.
    Slow(Duration),
}

#[derive(Default)]
struct State {
    rights: BTreeSet<Right>,
    fault: Option<ApiFault>,
    pods: BTreeMap<(String, String), Value>,
    events: Vec<Value>,
    requests: Vec<String>,
}

/// The API server of a [`Cluster`]; it stops when dropped.
pub struct Api {
    server: Server,
    state: Arc<Mutex<State>>,
    cluster: Arc<Cluster>,
    ca_pem: String,
}

impl Api {
    /// Serves `cluster` over TLS on loopback; grants nothing yet.
    pub fn start(cluster: &Arc<Cluster>) -> Self {
        crate::support::install_tls_provider();
        let names = vec!["kubernetes.default.svc".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a TLS configuration");
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, serving) = (Arc::clone(&state), Arc::clone(cluster));
        let server = Server::start(Some(tls), move |request| {
            let (shared, serving) = (Arc::clone(&shared), Arc::clone(&serving));
            async move {
                let fault = shared.lock().unwrap().fault;
                if let Some(ApiFault::Slow(pause)) = fault {
                    tokio::time::sleep(pause).await;
                }
                serve(&request, &mut shared.lock().unwrap(), &serving)
            }
            .boxed()
        });
        Self { server, state, cluster: Arc::clone(cluster), ca_pem: made.cert.pem() }
    }

    /// What the kubelet mounts into a pod with `automountServiceAccountToken`: file name and content.
    pub fn service_account_files(&self) -> Vec<(String, String)> {
        let (namespace, name) = ACCOUNT;
        let pod = Pod::new(namespace, "leasehold-x7k2p", name);
        let token = self.cluster.token(&pod, &[API_AUDIENCE], Duration::from_secs(3607));
        [("token", token), ("ca.crt", self.ca_pem.clone()), ("namespace", namespace.to_owned())]
            .map(|(file, text)| (file.to_owned(), text))
            .into()
    }

    /// The variables that every container has.
    pub fn environment(&self) -> Vec<(String, String)> {
        let address = self.server.address();
        vec![
            ("KUBERNETES_SERVICE_HOST".to_owned(), address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), address.port().to_string()),
        ]
    }

    /// Binds a ClusterRole with these rights to leasehold's ServiceAccount, and takes all others.
    pub fn grant(&self, rights: &[Right]) {
        self.state.lock().unwrap().rights = rights.iter().copied().collect();
    }

    /// Goes wrong from now on, or right again.
    pub fn fail(&self, fault: Option<ApiFault>) {
        self.state.lock().unwrap().fault = fault;
    }

    /// Creates a pod with this spec.
    pub fn put_pod(&self, pod: &Pod, spec: Value) {
        let name = (pod.namespace.clone(), pod.name.clone());
        let metadata = json!({"namespace": pod.namespace, "name": pod.name, "uid": pod.uid});
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        self.state.lock().unwrap().pods.insert(name, object);
    }

    /// The Events written so far.
    pub fn events(&self) -> Vec<Value> {
        self.state.lock().unwrap().events.clone()
    }

    /// The reasons of the Events on a pod, in order.
    pub fn reasons(&self, pod: &Pod) -> Vec<String> {
        let of_pod = |event: &Value| event["regarding"]["uid"] == json!(pod.uid);
        let events = self.events();
        let reasons = events.iter().filter(|event| of_pod(event)).map(|event| event["reason"].as_str());
        reasons.map(|reason| reason.expect("a reason").to_owned()).collect()
    }

    /// `METHOD path` of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

fn serve(request: &Request, state: &mut State, cluster: &Cluster) -> Reply {
    let path = request.target.split('?').next().unwrap_or_default().to_owned();
    state.requests.push(format!("{} {path}", request.method));
    let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let claims = bearer.and_then(|token| verify(token).ok());
    let Some(claims) = claims.filter(|claims| audiences(claims).iter().any(|it| it == API_AUDIENCE)) else {
        return failure(401, "Unauthorized", "Unauthorized");
    };
    let user = claims["sub"].as_str().unwrap_or_default();
    match state.fault {
        Some(ApiFault::Throttled) => {
            return failure(429, "TooManyRequests", "the server has received too many requests");
        }
        Some(ApiFault::Conflict) => return failure(409, "AlreadyExists", "events \"x\" already exists"),
        Some(ApiFault::InternalError) => return failure(500, "InternalError", "etcdserver: timed out"),
        Some(ApiFault::Slow(_)) | None => {}
    }
    let forbidden = |verb: &str, resource: &str, group: &str, namespace: &str, object: &str| {
        let name = if object.is_empty() { String::new() } else { format!(" \"{object}\"") };
        let message = format!(
            "{resource}{name} is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \
             \"{group}\" in the namespace \"{namespace}\""
        );
        failure(403, "Forbidden", &message)
    };
    let body = serde_json::from_slice::<Value>(&request.body).unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("POST", ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events"]) => {
            if !state.rights.contains(&Right::CreateEvents) {
                return forbidden("create", "events", "events.k8s.io", namespace, "");
            }
            if let Some(problem) = event_problem(&body, namespace) {
                return failure(422, "Invalid", &format!("Event is invalid: {problem}"));
            }
            state.events.push(body.clone());
            Reply::json(201, &body)
        }
        ("POST", ["api", "v1", "namespaces", namespace, "serviceaccounts", account, "token"]) => {
            if !state.rights.contains(&Right::CreateTokens) {
                return forbidden("create", "serviceaccounts/token", "", namespace, account);
            }
            token(&body, state, cluster, namespace, account)
        }
        ("GET", ["api", "v1", "namespaces", namespace, "pods", name]) => {
            if !state.rights.contains(&Right::GetPods) {
                return forbidden("get", "pods", "", namespace, name);
            }
            match state.pods.get(&((*namespace).to_owned(), (*name).to_owned())) {
                Some(pod) => Reply::json(200, pod),
                None => failure(404, "NotFound", &format!("pods \"{name}\" not found")),
            }
        }
        _ => failure(404, "NotFound", "the server could not find the requested resource"),
    }
}

/// What the API server's validation of events.k8s.io/v1 says first (pkg/apis/core/validation/events.go).
fn event_problem(event: &Value, namespace: &str) -> Option<&'static str> {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let qualified = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    [
        (event["metadata"]["namespace"] != json!(namespace), "metadata.namespace: does not match"),
        (event["regarding"]["namespace"] != json!(namespace), "involvedObject.namespace: does not match"),
        (event["metadata"]["name"].as_str().is_none_or(|name| name.len() > 253), "metadata.name"),
        (text("eventTime").is_empty(), "eventTime: Required value"),
        (text("reportingController").is_empty(), "reportingController: Required value"),
        (!qualified(text("reportingController")), "reportingController: must be a qualified name"),
        (text("reportingInstance").is_empty(), "reportingInstance: Required value"),
        (text("reportingInstance").len() > 128, "reportingInstance: can have at most 128 characters"),
        (text("action").is_empty(), "action: Required value"),
        (text("action").len() > 128, "action: can have at most 128 characters"),
        (text("reason").is_empty(), "reason: Required value"),
        (text("reason").len() > 128, "reason: can have at most 128 characters"),
        (text("note").len() > 1024, "note: can have at most 1024 bytes"),
        (!["Normal", "Warning"].contains(&text("type")), "type: Invalid value"),
    ]
    .into_iter()
    .find_map(|(wrong, problem)| wrong.then_some(problem))
}

fn token(body: &Value, state: &State, cluster: &Cluster, namespace: &str, account: &str) -> Reply {
    let spec = &body["spec"];
    let (bound, life) = (&spec["boundObjectRef"], spec["expirationSeconds"].as_u64().unwrap_or(3600));
    if life < 600 {
        return failure(
            422,
            "Invalid",
            "spec.expirationSeconds: may not specify a duration less than 10 minutes",
        );
    }
    let named = |field: &str| bound[field].as_str().unwrap_or_default().to_owned();
    let pod = Pod {
        namespace: namespace.to_owned(),
        name: named("name"),
        uid: named("uid"),
        service_account: account.to_owned(),
    };
    // A pod that a test never put is one whose spec nobody asks for.
    let known = state.pods.get(&(pod.namespace.clone(), pod.name.clone()));
    if known.is_some_and(|known| known["metadata"]["uid"] != json!(pod.uid)) {
        return failure(
            409,
            "Conflict",
            "the UID in the bound object reference does not match the UID in record",
        );
    }
    let asked: Vec<&str> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let token = sign(&cluster.claims(&pod, &asked, Duration::from_secs(life)));
    let status = json!({"token": token, "expirationTimestamp": rfc3339(unix_now() + life)});
    let answer = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": {"name": account, "namespace": namespace}, "spec": spec, "status": status,
    });
    Reply::json(201, &answer)
}
