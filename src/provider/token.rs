//! ServiceAccount tokens as the driver passes them, checked against the pod that the kubelet names.
//!
//! Signatures are the secret store's business. The claims are compared because where the CSIDriver has no
//! `tokenRequests` a pod's author may put a token of his own where the kubelet's would be.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use crate::{
    secret::SecretString,
    spec::PodIdentity,
    volume::{FailureKind, MountFailure, ServiceAccountToken},
};

/// The key of the tokens, in attributes and in secrets (Kubernetes 1.35 with `serviceAccountTokenInSecrets`).
pub const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// How long after its `exp` a token is still tried: the clocks of node and API server differ a little.
const LEEWAY: Duration = Duration::from_secs(10);
/// Largest token looked into; the API server's have about 1 KiB.
const MAX_TOKEN: usize = 64 * 1024;

/// Why there is no token to log in with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The tokens are not the JSON object that the kubelet writes.
    #[error("the driver's {TOKENS_KEY} is no JSON object of audience to token (line {line} column {column})")]
    Malformed {
        /// Line of the mistake.
        line: usize,
        /// Column of the mistake.
        column: usize,
    },
    /// No token for this audience.
    #[error(
        "no ServiceAccount token for audience {audience:?}: add audience {audience:?} to spec.tokenRequests of \
         the CSIDriver secrets-store.csi.k8s.io ({}), or let leasehold ask for it (--token-request; \
         tokenRequest.enabled in the chart)", there(.available)
    )]
    NoAudience {
        /// What the volume logs in with.
        audience: String,
        /// What the driver passed.
        available: Vec<String>,
    },
    /// Not a JWT, or without the claims a ServiceAccount token has.
    #[error("the token for audience {audience:?} is no ServiceAccount token: {problem}")]
    NoServiceAccount {
        /// The audience it was passed for.
        audience: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Issued for somebody else.
    #[error("the token for audience {audience:?} belongs to another {what} than the pod's")]
    Foreign {
        /// The audience it was passed for.
        audience: String,
        /// What differs.
        what: &'static str,
    },
    /// Its `aud` does not hold the audience it was passed for.
    #[error("the token passed for audience {audience:?} was not issued for it")]
    OtherAudience {
        /// The audience it was passed for.
        audience: String,
    },
    /// Its time is over.
    #[error(
        "the token for audience {audience:?} expired {ago} s ago: the driver passes a fresh one at its next call, \
         if enableSecretRotation is on; else restart the pod"
    )]
    Expired {
        /// The audience it was passed for.
        audience: String,
        /// Seconds since.
        ago: u64,
    },
}

fn there(available: &[String]) -> String {
    if available.is_empty() {
        return "it has none now".to_owned();
    }
    let shown: Vec<_> = available.iter().take(8).map(|audience| format!("{audience:?}")).collect();
    format!("it has {}", shown.join(", "))
}

impl From<TokenError> for MountFailure {
    fn from(error: TokenError) -> Self {
        let kind = match error {
            TokenError::Malformed { .. } | TokenError::NoServiceAccount { .. } => {
                FailureKind::InvalidArgument
            }
            TokenError::Foreign { .. } | TokenError::OtherAudience { .. } => FailureKind::PermissionDenied,
            TokenError::NoAudience { .. } | TokenError::Expired { .. } => FailureKind::FailedPrecondition,
        };
        Self::new(kind, error.to_string())
    }
}

/// The pod's tokens by audience; `""` is the API server's own.
#[derive(Clone, Debug, Default)]
pub struct Tokens(BTreeMap<String, SecretString>);

// The expiry beside the token is not read: the token's own claim is what the server goes by.
#[derive(Deserialize)]
struct Entry {
    token: String,
}

impl Tokens {
    /// Reads `{"<audience>": {"token": …}}`.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(json: &SecretString) -> Result<Self, TokenError> {
        let entries: BTreeMap<String, Entry> = serde_json::from_str(json.expose())
            .map_err(|error| TokenError::Malformed { line: error.line(), column: error.column() })?;
        Ok(Self(entries.into_iter().map(|(audience, entry)| (audience, entry.token.into())).collect()))
    }

    /// Whether the driver passed none at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For whom there are tokens.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// One token alone, for `audience`.
    pub fn one(audience: &str, jwt: SecretString) -> Self {
        Self(BTreeMap::from([(audience.to_owned(), jwt)]))
    }

    /// The token for `audience`, whose claims name `pod` and which has not expired at `now`.
    ///
    /// # Errors
    /// What is wrong with it, or which audiences there are.
    pub fn pick(
        &self,
        audience: &str,
        pod: &PodIdentity,
        now: SystemTime,
    ) -> Result<ServiceAccountToken, TokenError> {
        let Some(jwt) = self.0.get(audience) else {
            let available = self.0.keys().cloned().collect();
            return Err(TokenError::NoAudience { audience: audience.to_owned(), available });
        };
        let claims = Claims::of(jwt)
            .map_err(|problem| TokenError::NoServiceAccount { audience: audience.to_owned(), problem })?;
        claims.check(audience, pod, now)?;
        Ok(ServiceAccountToken {
            jwt: jwt.clone(),
            service_account_uid: claims.kubernetes.serviceaccount.uid,
            expires_at: claims.exp.map(|seconds| seconds.0),
            issued_at: claims.iat.or(claims.nbf).map(|seconds| seconds.0),
        })
    }
}

/// The pod that a ServiceAccount token's own claims name, unverified; name and uid are empty in a token that
/// is bound to none. `None` for what is no ServiceAccount token.
pub fn subject(jwt: &SecretString) -> Option<PodIdentity> {
    let Kubernetes { namespace, pod, serviceaccount } = Claims::of(jwt).ok()?.kubernetes;
    Some(PodIdentity { namespace, name: pod.name, uid: pod.uid, service_account: serviceaccount.name })
}

/// A token for a login whose claims nobody compares: the pod's own, which it may use as it likes. `None` for
/// what is no JWT. Its ServiceAccount's uid is its subject where it is no ServiceAccount's.
pub fn unbound(jwt: SecretString) -> Option<ServiceAccountToken> {
    let claims = Claims::decode(&jwt).ok()?;
    let uid = claims.kubernetes.serviceaccount.uid;
    Some(ServiceAccountToken {
        jwt,
        service_account_uid: if uid.is_empty() { claims.sub } else { uid },
        expires_at: claims.exp.map(|seconds| seconds.0),
        issued_at: claims.iat.or(claims.nbf).map(|seconds| seconds.0),
    })
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audiences,
    exp: Option<Seconds>,
    iat: Option<Seconds>,
    nbf: Option<Seconds>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Kubernetes,
    // The layout of tokens kept in a Secret, before bound tokens.
    #[serde(rename = "kubernetes.io/serviceaccount/namespace", default)]
    legacy_namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name", default)]
    legacy_name: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid", default)]
    legacy_uid: String,
}

#[derive(Default, Deserialize)]
struct Kubernetes {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    pod: Reference,
    #[serde(default)]
    serviceaccount: Reference,
}

#[derive(Default, Deserialize)]
struct Reference {
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// A NumericDate (RFC 7519, 2), which may have a fraction.
#[derive(Clone, Copy)]
struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let whole = number.as_u64().or_else(|| number.as_f64().map(|seconds| seconds as u64));
        whole.map(Self).ok_or_else(|| serde::de::Error::custom("no time"))
    }
}

impl Claims {
    fn of(jwt: &SecretString) -> Result<Self, &'static str> {
        let claims = Self::decode(jwt)?;
        let account = &claims.kubernetes.serviceaccount;
        if claims.kubernetes.namespace.is_empty() || account.name.is_empty() || account.uid.is_empty() {
            return Err("its claims name no namespace and ServiceAccount");
        }
        Ok(claims)
    }

    fn decode(jwt: &SecretString) -> Result<Self, &'static str> {
        let jwt = jwt.expose();
        if jwt.len() > MAX_TOKEN {
            return Err("it has more than 64 KiB");
        }
        let mut parts = jwt.split('.');
        let (Some(_), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("it has not three parts");
        };
        let payload =
            BASE64URL_NOPAD.decode(payload.as_bytes()).map_err(|_| "its claims are not base64url")?;
        let mut claims: Self = serde_json::from_slice(&payload).map_err(|_| "its claims cannot be read")?;
        if claims.kubernetes.namespace.is_empty() {
            claims.kubernetes.namespace = std::mem::take(&mut claims.legacy_namespace);
            claims.kubernetes.serviceaccount.name = std::mem::take(&mut claims.legacy_name);
            claims.kubernetes.serviceaccount.uid = std::mem::take(&mut claims.legacy_uid);
        }
        Ok(claims)
    }

    fn check(&self, audience: &str, pod: &PodIdentity, now: SystemTime) -> Result<(), TokenError> {
        let foreign = |what| Err(TokenError::Foreign { audience: audience.to_owned(), what });
        let Kubernetes { namespace, pod: bound, serviceaccount } = &self.kubernetes;
        if *namespace != pod.namespace {
            return foreign("namespace");
        }
        if serviceaccount.name != pod.service_account {
            return foreign("ServiceAccount");
        }
        // Absent from a token that is not bound to a pod.
        if (!bound.uid.is_empty() && bound.uid != pod.uid)
            || (!bound.name.is_empty() && bound.name != pod.name)
        {
            return foreign("pod");
        }
        let audiences = match &self.aud {
            Audiences::One(one) => std::slice::from_ref(one),
            Audiences::Many(many) => many,
        };
        // A token without audiences is a legacy one, and `""` stands for whatever the API server's are.
        if !audience.is_empty() && !audiences.is_empty() && !audiences.iter().any(|one| one == audience) {
            return Err(TokenError::OtherAudience { audience: audience.to_owned() });
        }
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match self.exp {
            Some(Seconds(end)) if end.saturating_add(LEEWAY.as_secs()) < seconds => {
                Err(TokenError::Expired { audience: audience.to_owned(), ago: seconds - end })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::{Value, json};

    use super::*;

    fn pod() -> PodIdentity {
        PodIdentity {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: "1-2-3".into(),
            service_account: "web".into(),
        }
    }

    fn claims() -> Value {
        json!({
            "aud": ["vault"], "exp": 2_000, "iat": 1_000, "nbf": 1_000,
            "kubernetes.io": {
                "namespace": "shop",
                "pod": {"name": "web-0", "uid": "1-2-3"},
                "serviceaccount": {"name": "web", "uid": "sa-uid"},
            },
        })
    }

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()))
    }

    fn pick(token: &str, at: u64) -> Result<ServiceAccountToken, TokenError> {
        let json = json!({"vault": {"token": token, "expirationTimestamp": "2026-11-23T15:00:00Z"}});
        let tokens = Tokens::parse(&json.to_string().into()).unwrap();
        tokens.pick("vault", &pod(), UNIX_EPOCH + Duration::from_secs(at))
    }

    #[test]
    fn a_bound_token_is_taken_until_ten_seconds_after_its_end() {
        let token = pick(&jwt(&claims()), 2_010).unwrap();
        assert_eq!(token.service_account_uid, "sa-uid");
        assert_eq!(subject(&token.jwt), Some(pod()));
        assert_eq!((token.expires_at, token.issued_at), (Some(2_000), Some(1_000)));
        let error = pick(&jwt(&claims()), 2_011).unwrap_err();
        assert_eq!(error, TokenError::Expired { audience: "vault".into(), ago: 11 });
    }

    #[test]
    fn other_layouts_are_read() {
        let legacy = json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": "shop",
            "kubernetes.io/serviceaccount/service-account.name": "web",
            "kubernetes.io/serviceaccount/service-account.uid": "sa-uid",
        });
        assert_eq!(pick(&jwt(&legacy), 9_999).unwrap().expires_at, None);
        let mut one = claims();
        one["aud"] = json!("vault");
        one["exp"] = json!(2_000.75);
        one["kubernetes.io"]["pod"].take();
        one["kubernetes.io"].as_object_mut().unwrap().remove("pod");
        assert_eq!(pick(&jwt(&one), 1_500).unwrap().expires_at, Some(2_000));
    }

    #[test]
    fn every_mismatch_is_refused_and_never_shows_the_token() {
        let with = |path: &str, value: Value| {
            let mut changed = claims();
            *changed.pointer_mut(path).unwrap() = value;
            jwt(&changed)
        };
        let cases = [
            (with("/kubernetes.io/namespace", json!("canary")), "another namespace"),
            (with("/kubernetes.io/pod/uid", json!("canary")), "another pod"),
            (with("/kubernetes.io/pod/name", json!("canary")), "another pod"),
            (with("/kubernetes.io/serviceaccount/name", json!("canary")), "another ServiceAccount"),
            (with("/kubernetes.io/serviceaccount/uid", json!("")), "name no namespace and ServiceAccount"),
            (with("/kubernetes.io", json!({})), "name no namespace and ServiceAccount"),
            (with("/kubernetes.io", json!("canary")), "claims cannot be read"),
            (with("/aud", json!(["canary"])), "was not issued for it"),
            (with("/exp", json!("canary")), "claims cannot be read"),
            ("canary".into(), "has not three parts"),
            ("a.canary!.b".into(), "not base64url"),
            ("a.Y2FuYXJ5.b".into(), "claims cannot be read"),
            (format!("a.{}.b", "A".repeat(MAX_TOKEN)), "more than 64 KiB"),
        ];
        for (token, expected) in cases {
            let error = format!("{0} {0:?}", pick(&token, 1_500).unwrap_err());
            assert!(error.contains(expected) && !error.contains("canary"), "{error}");
        }
        let error = Tokens::parse(&r#"{"vault": "canary"}"#.to_owned().into()).unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }

    #[test]
    fn a_missing_audience_says_what_to_add_and_what_is_there() {
        let token = jwt(&claims());
        let tokens =
            Tokens::parse(&json!({"": {"token": token}, "x": {"token": ""}}).to_string().into()).unwrap();
        let error = tokens.pick("vault", &pod(), UNIX_EPOCH).unwrap_err().to_string();
        assert_eq!(
            error,
            "no ServiceAccount token for audience \"vault\": add audience \"vault\" to spec.tokenRequests of the \
             CSIDriver secrets-store.csi.k8s.io (it has \"\", \"x\"), or let leasehold ask for it (--token-request; \
             tokenRequest.enabled in the chart)"
        );
        tokens.pick("", &pod(), UNIX_EPOCH).unwrap();
        let error = Tokens::default().pick("vault", &pod(), UNIX_EPOCH).unwrap_err().to_string();
        assert!(error.contains("(it has none now)"), "{error}");
    }
}
