//! `generate`: values that nobody has written yet are made and written once, by whoever comes first.
//!
//! The store decides who that is: every write is a check-and-set on the version that was read, so that of any
//! number of pods on any number of nodes one writes and the others read what it wrote. What is there, or was
//! there and is deleted, is never written over.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    Outcome, VaultBackend,
    endpoints::Call,
    failure::{self, Failure, Says, Target},
    kv, response,
    response::AnswerError,
    target,
    transport::TransportError,
};
use crate::{
    backend::{
        BackendError, ClientToken, Envelope, FailureClass, RequestContext, Secret, SecretBody,
        generator::{self, GenerateError},
    },
    secret::SecretJson,
    spec::{ApiPath, SecretRequest},
};

/// Pause before a version is looked for that a standby does not show yet; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is at a path: the version that a write must follow, and its data.
struct Found {
    version: u64,
    data: Map<String, Value>,
}

impl VaultBackend {
    /// Reads the secret of `request`, and writes the generated keys that it lacks.
    pub(super) async fn agree(
        &self,
        context: &RequestContext,
        token: &ClientToken,
        request: &SecretRequest,
    ) -> Result<Secret, BackendError> {
        let work = self.read_or_write(context, token, request);
        match tokio::time::timeout(context.timeout, work).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => {
                let call = Call::generate(request, 0, &Value::Null);
                Err(failure::of_transport(&call, &target(context), &TransportError::Timeout))
            }
        }
    }

    async fn read_or_write(
        &self,
        context: &RequestContext,
        token: &ClientToken,
        request: &SecretRequest,
    ) -> Result<Secret, Failure> {
        // The version that somebody is known to have written; an older answer is a standby's that lags.
        let mut known = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let found = match self.read(context, token, request).await {
                Ok(secret) => {
                    let found = found(&secret).ok_or_else(|| not_versioned(context, request))?;
                    if request.generate.keys().all(|key| found.data.contains_key(key)) {
                        return Ok(secret);
                    }
                    found
                }
                Err(failure) if failure.says == Says::Absent => {
                    if known == 0 && !self.is_versioned(context, token, request).await? {
                        return Err(not_versioned(context, request).into());
                    }
                    Found { version: 0, data: Map::new() }
                }
                Err(failure) => return Err(failure),
            };
            if found.version >= known {
                let version = found.version;
                match self.write(context, token, request, found).await {
                    Err(failure) if failure.says == Says::Outdated => known = version + 1,
                    outcome => return outcome,
                }
            } else {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Whether the path is in a KV version 2 mount: elsewhere the write would store its own envelope. Every
    /// session may ask that of a mount in which it may do anything.
    async fn is_versioned(
        &self,
        context: &RequestContext,
        token: &ClientToken,
        request: &SecretRequest,
    ) -> Result<bool, Failure> {
        let path = request.path.as_str();
        let Ok(question) = ApiPath::parse(&format!("sys/internal/ui/mounts/{path}")) else {
            return Ok(false);
        };
        let secret = self.read(context, token, &SecretRequest::read(question)).await?;
        let SecretBody::Json(envelope) = &secret.body else { return Ok(false) };
        let mount = envelope.data.expose();
        let of = |pointer| mount.pointer(pointer).and_then(Value::as_str);
        let below = of("/path").and_then(|mount| path.strip_prefix(mount));
        Ok(of("/type") == Some("kv")
            && of("/options/version") == Some("2")
            && below.is_some_and(|below| below.starts_with("data/")))
    }

    /// Writes `found` with the keys it lacks as the next version.
    async fn write(
        &self,
        context: &RequestContext,
        token: &ClientToken,
        request: &SecretRequest,
        found: Found,
    ) -> Result<Secret, Failure> {
        let target = target(context);
        let mut data = found.data;
        for (key, value) in make(context, request, &data).await? {
            data.insert(key, value);
        }
        let data = SecretJson::new(Value::Object(data));
        let call = Call::generate(request, found.version, data.expose());
        let Outcome::Answered(answer) = self.perform(context, &call, Some(token)).await? else {
            return Err(failure::of_content(&call, &target, AnswerError::Empty).into());
        };
        let invalid = |error| failure::of_content(&call, &target, error);
        let answered = response::envelope(answer.body.expose()).map_err(invalid)?;
        // What a read of the version would answer: a standby may not show it for a while.
        let whole = json!({ "data": data.expose(), "metadata": answered.data.expose() });
        let version = kv::version(&whole).ok_or_else(|| invalid(AnswerError::NoData))?;
        let envelope =
            Envelope { request_id: answered.request_id, data: SecretJson::new(whole), ..Envelope::default() };
        Ok(Secret {
            body: SecretBody::Json(Arc::new(envelope)),
            lease: None,
            lifetime: None,
            kv_version: Some(version.number),
            warnings: answered.warnings,
            since: answer.since,
        })
    }
}

/// The values that `data` lacks. Beside the runtime's threads: a large key takes seconds.
async fn make(
    context: &RequestContext,
    request: &SecretRequest,
    data: &Map<String, Value>,
) -> Result<Map<String, Value>, BackendError> {
    let lacking: Vec<_> = request.generate.iter().filter(|(key, _)| !data.contains_key(*key)).collect();
    let mut written = lacking.iter().flat_map(|(key, generator)| generator::keys(key, generator));
    if let Some(key) = written.find(|key| data.contains_key(key)) {
        let what = format!("the key {key:?} is there already, and would be written with its other half");
        return Err(impossible(context, request, &what, "remove it, or choose another secretKey"));
    }
    let lacking: Vec<_> =
        lacking.into_iter().map(|(key, generator)| (key.clone(), generator.clone())).collect();
    let making = tokio::task::spawn_blocking(move || {
        let mut made = Map::new();
        for (key, generator) in &lacking {
            for (key, value) in generator::make(key, generator)? {
                made.insert(key, Value::String(value.expose().to_owned()));
            }
        }
        Ok::<_, GenerateError>(made)
    });
    match making.await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error)) => {
            Err(impossible(context, request, &error.to_string(), "correct generate, or the policy file"))
        }
        Err(_) => Err(impossible(context, request, "a defect in leasehold", "see its log")),
    }
}

/// The data of an answer of KV version 2.
fn found(secret: &Secret) -> Option<Found> {
    let (version, SecretBody::Json(envelope)) = (secret.kv_version?, &secret.body) else { return None };
    let data = envelope.data.expose().get("data")?.as_object()?.clone();
    Some(Found { version, data })
}

fn impossible(context: &RequestContext, request: &SecretRequest, what: &str, advice: &str) -> BackendError {
    let Target { address, .. } = target(context);
    BackendError {
        class: FailureClass::Invalid,
        message: format!("write of generated values to {} on {address}: {what}; {advice}", request.path),
        retry_after: None,
        worth_retrying: false,
    }
}

fn not_versioned(context: &RequestContext, request: &SecretRequest) -> BackendError {
    impossible(
        context,
        request,
        "generate needs a KV version 2 secret, and this path is none",
        "write <mount>/data/<name> in secretPath, or enable version 2 on the mount",
    )
}
