//! Tokens for audiences that the driver brings none for: TokenRequest for the pod's own ServiceAccount, bound to
//! the pod, so that the token ends with it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Semaphore;

use super::{ApiError, ask};
use crate::{
    clock::wall_now,
    provider::token::{TokenError, Tokens},
    secret::SecretString,
    spec::PodIdentity,
    volume::{FailureKind, MountFailure, ServiceAccountToken},
};

/// Life of a token, seconds: the kubelet's own default. The API server may shorten it, to 600 at the least.
const LIFE: i64 = 3600;
/// Requests at once: a node that reboots starts all its pods together.
const AT_ONCE: usize = 8;
/// Tokens kept: a node has some 250 pods, each with an audience or two.
const MAX_KEPT: usize = 1024;
/// A kept token serves until this much of its life has passed, in thousandths: as long as the kubelet's do.
const SERVES: u32 = 800;

/// Why the API server gave no token that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenRequestError {
    /// It gave none.
    #[error("no ServiceAccount token for audience {audience:?}: {error}{}", remedy(.error))]
    Api {
        /// The audience asked for.
        audience: String,
        /// Why.
        error: ApiError,
    },
    /// Its answer holds none.
    #[error("the API server's answer holds no token for audience {audience:?}")]
    Empty {
        /// The audience asked for.
        audience: String,
    },
    /// It is not the pod's.
    #[error(transparent)]
    Token(#[from] TokenError),
}

// Display shows what the API server said, so it is no `source`: both would show it.
fn remedy(error: &ApiError) -> &'static str {
    match error {
        ApiError::Forbidden { .. } => {
            "; grant it (tokenRequest.enabled in the chart), or add the audience to spec.tokenRequests of the \
             CSIDriver secrets-store.csi.k8s.io"
        }
        ApiError::NotFound => "; the pod's ServiceAccount or the pod itself is gone",
        _ => "; the kubelet will call again",
    }
}

impl From<TokenRequestError> for MountFailure {
    fn from(error: TokenRequestError) -> Self {
        let kind = match error {
            TokenRequestError::Api { error: ApiError::Forbidden { .. }, .. } => {
                FailureKind::FailedPrecondition
            }
            TokenRequestError::Token(error) => return error.into(),
            TokenRequestError::Api { .. } | TokenRequestError::Empty { .. } => FailureKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

type Key = (String, String);

/// Asks for tokens, and keeps each until most of its life has passed: the driver calls every two minutes.
pub struct TokenRequests {
    client: Client,
    places: Semaphore,
    kept: Mutex<BTreeMap<Key, ServiceAccountToken>>,
}

impl std::fmt::Debug for TokenRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRequests").finish_non_exhaustive()
    }
}

impl TokenRequests {
    /// Asks through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, places: Semaphore::new(AT_ONCE), kept: Mutex::default() }
    }

    /// A token of `pod` for `audience`, which policy allows.
    ///
    /// # Errors
    /// What the API server said, or what is wrong with the token it gave.
    pub async fn token(
        &self,
        pod: &PodIdentity,
        audience: &str,
    ) -> Result<ServiceAccountToken, TokenRequestError> {
        let key = (pod.uid.clone(), audience.to_owned());
        if let Some(token) = self.kept(&key) {
            return Ok(token);
        }
        // Never closed.
        let _place = self.places.acquire().await;
        if let Some(token) = self.kept(&key) {
            return Ok(token);
        }
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
                expiration_seconds: Some(LIFE),
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &pod.namespace);
        let parameters = PostParams::default();
        let asked = accounts.create_token_request(&pod.service_account, &parameters, &request);
        let answer = ask("make a token of the pod's ServiceAccount", asked)
            .await
            .map_err(|error| TokenRequestError::Api { audience: audience.to_owned(), error })?;
        let jwt = answer.status.map(|status| SecretString::new(status.token));
        let jwt = jwt.ok_or_else(|| TokenRequestError::Empty { audience: audience.to_owned() })?;
        let token = Tokens::one(audience, jwt).pick(audience, pod, wall_now())?;
        self.keep(key, token.clone());
        Ok(token)
    }

    fn kept(&self, key: &Key) -> Option<ServiceAccountToken> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|token| serves(token)).cloned()
    }

    fn keep(&self, key: Key, token: ServiceAccountToken) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, token| serves(token));
        if kept.len() < MAX_KEPT {
            kept.insert(key, token);
        }
    }
}

fn serves(token: &ServiceAccountToken) -> bool {
    let (Some(issued), Some(expires)) = (token.issued_at, token.expires_at) else { return false };
    let now = wall_now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let until = issued.saturating_add(expires.saturating_sub(issued) * u64::from(SERVES) / 1000);
    now < until
}
