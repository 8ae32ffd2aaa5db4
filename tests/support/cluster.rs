//! What leasehold's world needs of a Kubernetes API server: ServiceAccount tokens with the claims of a real
//! one, TokenReview, and a public key for jwt auth.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey},
};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use futures_util::FutureExt as _;
use serde_json::{Value, json};

use super::{
    http::{Reply, Request, Server},
    uuid,
};

pub mod api;

/// Audience of the API server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// A pod as its author and the API server made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
}

impl Pod {
    /// A new pod; its uid is random.
    pub fn new(namespace: &str, name: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            uid: uuid(),
            service_account: service_account.into(),
        }
    }
}

/// The ways in which a TokenReview goes wrong without the token being bad. Vault answers all five with the
/// same bare 403 (vault: `permission denied`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReviewFault {
    /// The API server answers 500.
    InternalError,
    /// Vault's ServiceAccount has no right to review tokens.
    Forbidden,
    /// The connection is reset.
    Reset,
    /// Vault's own token is expired.
    Unauthorized,
}

#[derive(Default)]
struct State {
    accounts: BTreeMap<(String, String), String>,
    deleted: BTreeSet<String>,
    fault: Option<ReviewFault>,
    reviews: usize,
}

/// The stand-in for a cluster; it stops when dropped.
pub struct Cluster {
    server: Server,
    state: Arc<Mutex<State>>,
    ca_pem: String,
}

impl Cluster {
    /// Starts the API server over plain HTTP on loopback.
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = Server::start(None, move |request| {
            let reply = serve(&request, &mut shared.lock().unwrap());
            async move { reply }.boxed()
        });
        let ca =
            rcgen::generate_simple_self_signed(["kubernetes.default.svc".to_owned()]).expect("a certificate");
        Self { server, state, ca_pem: ca.cert.pem() }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// PEM of an authority, as every cluster has one.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The `iss` of its tokens.
    pub fn issuer(&self) -> &'static str {
        API_AUDIENCE
    }

    /// PEM of the key that its tokens are signed with.
    pub fn public_key_pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = key().public_key().as_der().expect("a public key");
        pem("PUBLIC KEY", der.as_ref())
    }

    /// A token that may ask for TokenReviews.
    pub fn reviewer_token(&self) -> String {
        self.token(&Pod::new("openbao", "openbao-0", "openbao"), &[API_AUDIENCE], Duration::from_secs(86_400))
    }

    /// A token as the kubelet gets it from TokenRequest for `pod`.
    pub fn token(&self, pod: &Pod, audiences: &[&str], lifetime: Duration) -> String {
        sign(&self.claims(pod, audiences, lifetime))
    }

    /// The claims of [`Cluster::token`], for tests that bend them.
    pub fn claims(&self, pod: &Pod, audiences: &[&str], lifetime: Duration) -> Value {
        let now = unix_now();
        json!({
            "aud": audiences,
            "exp": now + lifetime.as_secs(),
            "iat": now,
            "iss": self.issuer(),
            "jti": uuid(),
            "kubernetes.io": {
                "namespace": pod.namespace,
                "node": {"name": "node-1", "uid": "6d5b5a0e-7a1f-4d0c-9a55-2f6f0f8f1c11"},
                "pod": {"name": pod.name, "uid": pod.uid},
                "serviceaccount": {"name": pod.service_account, "uid": self.account_uid(pod)},
            },
            "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account),
        })
    }

    /// Uid of the pod's ServiceAccount.
    pub fn account_uid(&self, pod: &Pod) -> String {
        let account = (pod.namespace.clone(), pod.service_account.clone());
        self.state.lock().unwrap().accounts.entry(account).or_insert_with(uuid).clone()
    }

    /// Deletes a pod: its tokens are no longer authenticated.
    pub fn delete(&self, pod: &Pod) {
        self.state.lock().unwrap().deleted.insert(pod.uid.clone());
    }

    /// Makes every TokenReview from now on go wrong, or right again.
    pub fn fail_reviews(&self, fault: Option<ReviewFault>) {
        self.state.lock().unwrap().fault = fault;
    }

    /// The fifth way to fail: nobody listens.
    pub fn down(&mut self) {
        self.server.stop();
    }

    /// Listens again.
    pub fn up(&mut self) {
        self.server.listen();
    }

    /// TokenReviews answered so far.
    pub fn reviews(&self) -> usize {
        self.state.lock().unwrap().reviews
    }
}

/// Signs claims with the cluster's key, RS256.
pub fn sign(claims: &Value) -> String {
    sign_with(key(), claims)
}

/// Signs claims with a key that nobody knows.
pub fn sign_with_foreign_key(claims: &Value) -> String {
    static FOREIGN: OnceLock<KeyPair> = OnceLock::new();
    sign_with(FOREIGN.get_or_init(|| KeyPair::generate(KeySize::Rsa2048).expect("an RSA key")), claims)
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs()
}

/// RFC 3339 in UTC with seconds, as the API server writes times.
pub fn rfc3339(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    // Civil date from days since 1970, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn key() -> &'static KeyPair {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    KEY.get_or_init(|| KeyPair::generate(KeySize::Rsa2048).expect("an RSA key"))
}

fn sign_with(key: &KeyPair, claims: &Value) -> String {
    let header = json!({"alg": "RS256", "kid": "stand-in"});
    let message = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(header.to_string().as_bytes()),
        BASE64URL_NOPAD.encode(claims.to_string().as_bytes())
    );
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
        .expect("an RSA signature");
    format!("{message}.{}", BASE64URL_NOPAD.encode(&signature))
}

/// The claims of a token that this cluster signed, and that has not expired.
fn verify(token: &str) -> Result<Value, &'static str> {
    let (message, signature) =
        token.rsplit_once('.').ok_or("token contains an invalid number of segments")?;
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| "illegal base64 data")?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key().public_key().as_ref())
        .verify(message.as_bytes(), &signature)
        .map_err(|_| "invalid signature")?;
    let (_, payload) = message.split_once('.').ok_or("token contains an invalid number of segments")?;
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| "illegal base64 data")?;
    let claims: Value = serde_json::from_slice(&payload).map_err(|_| "malformed claims")?;
    match claims["exp"].as_u64() {
        Some(expiry) if expiry <= unix_now() => Err("service account token has expired"),
        _ => Ok(claims),
    }
}

fn audiences(claims: &Value) -> Vec<String> {
    let many = claims["aud"].as_array().cloned().unwrap_or_default();
    many.iter().filter_map(|audience| audience.as_str().map(str::to_owned)).collect()
}

fn serve(request: &Request, state: &mut State) -> Reply {
    if request.method != "POST" || request.target != "/apis/authentication.k8s.io/v1/tokenreviews" {
        return failure(404, "NotFound", "the server could not find the requested resource");
    }
    state.reviews += 1;
    match state.fault {
        Some(ReviewFault::InternalError) => return failure(500, "InternalError", "etcdserver: timed out"),
        Some(ReviewFault::Forbidden) => {
            let message = "tokenreviews.authentication.k8s.io is forbidden: User \
                           \"system:serviceaccount:openbao:openbao\" cannot create resource \"tokenreviews\"";
            return failure(403, "Forbidden", message);
        }
        Some(ReviewFault::Unauthorized) => return failure(401, "Unauthorized", "Unauthorized"),
        Some(ReviewFault::Reset) => return Reply::Close,
        None => {}
    }
    let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let reviewer = bearer.and_then(|token| verify(token).ok());
    if !reviewer.is_some_and(|claims| audiences(&claims).iter().any(|audience| audience == API_AUDIENCE)) {
        return failure(401, "Unauthorized", "Unauthorized");
    }
    let Ok(review) = serde_json::from_slice::<Value>(&request.body) else {
        return failure(400, "BadRequest", "the object provided is unrecognized");
    };
    Reply::json(
        201,
        &json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {"creationTimestamp": null},
            "spec": review["spec"], "status": review_status(&review["spec"], state),
        }),
    )
}

fn review_status(spec: &Value, state: &State) -> Value {
    let refused = |reason: &str| json!({"user": {}, "error": format!("[invalid bearer token, {reason}]")});
    let claims = match verify(spec["token"].as_str().unwrap_or_default()) {
        Ok(claims) => claims,
        Err(reason) => return refused(reason),
    };
    let mut asked: Vec<&str> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if asked.is_empty() {
        asked.push(API_AUDIENCE);
    }
    let granted: Vec<String> =
        audiences(&claims).into_iter().filter(|audience| asked.contains(&audience.as_str())).collect();
    if granted.is_empty() {
        return refused("token audiences is invalid for the target audiences");
    }
    let kubernetes = &claims["kubernetes.io"];
    let pod_uid = kubernetes["pod"]["uid"].as_str().unwrap_or_default();
    if state.deleted.contains(pod_uid) {
        return refused("service account token has been invalidated");
    }
    let namespace = kubernetes["namespace"].as_str().unwrap_or_default();
    json!({
        "authenticated": true,
        "user": {
            "username": claims["sub"],
            "uid": kubernetes["serviceaccount"]["uid"],
            "groups": [
                "system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated",
            ],
            "extra": {
                "authentication.kubernetes.io/credential-id":
                    [format!("JTI={}", claims["jti"].as_str().unwrap_or_default())],
                "authentication.kubernetes.io/node-name": [kubernetes["node"]["name"]],
                "authentication.kubernetes.io/node-uid": [kubernetes["node"]["uid"]],
                "authentication.kubernetes.io/pod-name": [kubernetes["pod"]["name"]],
                "authentication.kubernetes.io/pod-uid": [pod_uid],
            },
        },
        "audiences": granted,
    })
}

fn failure(status: u16, reason: &str, message: &str) -> Reply {
    Reply::json(
        status,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": status,
        }),
    )
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
