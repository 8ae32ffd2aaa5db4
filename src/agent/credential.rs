//! What the agent logs in with, read from the pod's files each time it is wanted.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};

use crate::{
    backend::{Credential, RequestContext, Secret, SecretBackend, SecretBody},
    clock::wall_now,
    provider::token,
    secret::SecretString,
    spec::{
        ApiPath, Connection, SecretRequest,
        agent::{Auth, AuthMethod},
        object::Method,
    },
    volume::{FailureKind, LoginCredential, MountFailure},
};

/// Largest file with a token or an id.
const MAX_FILE: u64 = 64 * 1024;
/// For one request that unwraps.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is nothing to log in with.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialError {
    /// A file cannot be read.
    #[error("cannot read {what} {}", path.display())]
    File {
        /// What it holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds nothing, or too much.
    #[error("{what} {} must be one line of at most 64 KiB", path.display())]
    Content {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The token's time is over.
    #[error(
        "the token in {} expired {ago} s ago: the kubelet writes a fresh one if it is a projected ServiceAccount \
         token", path.display()
    )]
    Expired {
        /// The file.
        path: PathBuf,
        /// Seconds since.
        ago: u64,
    },
    /// The secret id could not be unwrapped.
    #[error("cannot unwrap the secret id of {}: {reason}", path.display())]
    Unwrap {
        /// The file.
        path: PathBuf,
        /// Why, and what it may mean.
        reason: String,
    },
}

impl From<&CredentialError> for MountFailure {
    fn from(error: &CredentialError) -> Self {
        Self::new(FailureKind::FailedPrecondition, crate::telemetry::chain(error))
    }
}

/// A secret id that was read, and from what.
#[derive(Debug)]
struct Known {
    /// Digest of the file's content.
    from: [u8; 32],
    secret_id: SecretString,
}

/// Reads credentials, and keeps a secret id whose file is gone.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    known: Option<Known>,
}

impl Keeper {
    /// What to log in with now.
    ///
    /// # Errors
    /// What is wrong with a file.
    pub(super) async fn read<B: SecretBackend>(
        &mut self,
        auth: &Auth,
        connection: &Arc<Connection>,
        backend: &B,
    ) -> Result<LoginCredential, CredentialError> {
        match auth.method {
            AuthMethod::Kubernetes | AuthMethod::Jwt => service_account(&auth.token),
            AuthMethod::Token => {
                let token = line("the Vault token", &auth.token)?;
                // A token that follows another is another identity: nothing of the former's is used on.
                let service_account_uid = data_encoding::HEXLOWER.encode(&digest(&token)[..16]);
                Ok(unending(Credential::Token(token), service_account_uid))
            }
            AuthMethod::Cert => Ok(unending(Credential::Certificate, String::new())),
            AuthMethod::AppRole => {
                let path = auth.role_id.as_deref().unwrap_or(Path::new(""));
                let role_id = line("the role id", path)?;
                let secret_id = match &auth.secret_id {
                    Some(path) => Some(self.secret_id(path, auth, connection, backend).await?),
                    None => None,
                };
                Ok(unending(Credential::AppRole { role_id, secret_id }, String::new()))
            }
        }
    }

    async fn secret_id<B: SecretBackend>(
        &mut self,
        path: &Path,
        auth: &Auth,
        connection: &Arc<Connection>,
        backend: &B,
    ) -> Result<SecretString, CredentialError> {
        let content = match line("the secret id", path) {
            Ok(content) => content,
            Err(error) => {
                // Read before, and removed since: by us, or by whom brought it.
                return self.known.as_ref().map(|known| known.secret_id.clone()).ok_or(error);
            }
        };
        let from = digest(&content);
        if let Some(known) = self.known.as_ref().filter(|known| known.from == from) {
            return Ok(known.secret_id.clone());
        }
        let secret_id = if auth.wrapped {
            unwrap(path, &content, auth.wrapping_path.as_deref(), connection, backend).await?
        } else {
            content
        };
        self.known = Some(Known { from, secret_id: secret_id.clone() });
        if auth.remove_secret_id
            && let Err(error) = fs::remove_file(path)
        {
            warn!(path = %path.display(), %error, "the secret id's file was read and could not be removed");
        }
        Ok(secret_id)
    }
}

fn unending(credential: Credential, service_account_uid: String) -> LoginCredential {
    LoginCredential { credential, service_account_uid, expires_at: None, issued_at: None }
}

fn service_account(path: &Path) -> Result<LoginCredential, CredentialError> {
    let jwt = line("the token", path)?;
    let token = token::unbound(jwt)
        .ok_or_else(|| CredentialError::Content { what: "the token (a JWT)", path: path.to_owned() })?;
    let now = wall_now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    match token.expires_at {
        Some(end) if end.saturating_add(10) < now => {
            Err(CredentialError::Expired { path: path.to_owned(), ago: now - end })
        }
        _ => Ok(token.into()),
    }
}

/// A file of one line, which is looked at as what it is before it is read.
pub(super) fn line(what: &'static str, path: &Path) -> Result<SecretString, CredentialError> {
    let failed = |source| CredentialError::File { what, path: path.to_owned(), source };
    let content = || CredentialError::Content { what, path: path.to_owned() };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(content());
    }
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    let whole = SecretString::new(text);
    let line = whole.expose().trim();
    if line.is_empty() || whole.expose().len() as u64 > MAX_FILE || line.chars().any(char::is_control) {
        return Err(content());
    }
    Ok(SecretString::new(line.to_owned()))
}

fn digest(text: &SecretString) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.expose().as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Unwraps once. A wrapping token that does not unwrap was used before us, and that is to be told loudly.
async fn unwrap<B: SecretBackend>(
    path: &Path,
    wrapping: &SecretString,
    made_at: Option<&str>,
    connection: &Arc<Connection>,
    backend: &B,
) -> Result<SecretString, CredentialError> {
    let failed = |reason: String| CredentialError::Unwrap { path: path.to_owned(), reason };
    let context = || RequestContext {
        connection: Arc::clone(connection),
        timeout: TIMEOUT,
        on_behalf_of: "agent/secret-id".into(),
        serves: Arc::default(),
        accessor: None,
    };
    if let Some(expected) = made_at {
        let arguments = serde_json::json!({ "token": wrapping.expose() }).to_string();
        let request = SecretRequest { args: Some(arguments), ..post("sys/wrapping/lookup") };
        // Without a token of our own: using the wrapping token would use it up.
        let answer = backend.fetch(context(), &SecretString::default(), &request).await;
        let answer = answer.map_err(|error| failed(error.message))?;
        let found = text(&answer, "creation_path").unwrap_or_default();
        if found.expose() != expected {
            return Err(failed(format!(
                "the wrapping token was not made at {expected}: somebody may have put another in its place"
            )));
        }
    }
    let answer = backend.fetch(context(), wrapping, &post("sys/wrapping/unwrap")).await.map_err(|error| {
        failed(format!(
            "{}; a wrapping token is good for once: if nobody of yours used this one, somebody else has the secret id",
            error.message
        ))
    })?;
    let secret_id = text(&answer, "secret_id")
        .ok_or_else(|| failed("what was wrapped is no secret id (no field secret_id)".to_owned()))?;
    info!(path = %path.display(), "unwrapped the secret id");
    Ok(secret_id)
}

fn post(path: &str) -> SecretRequest {
    let path = ApiPath::parse_mount(path).expect("a literal in canonical form");
    SecretRequest { method: Method::Post, ..SecretRequest::read(path) }
}

fn text(secret: &Secret, field: &str) -> Option<SecretString> {
    let SecretBody::Json(envelope) = &secret.body else { return None };
    let value = envelope.data.expose().get(field)?.as_str()?;
    Some(SecretString::new(value.to_owned()))
}
