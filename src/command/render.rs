//! `leasehold render`: what a SecretProviderClass would read and write, shown against a real server with a
//! token from a file, or offline with sample data. Nothing is written, and nothing is asked that does something, unless told to; the
//! session is revoked at the end, whatever happened.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    mem,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};

use crate::{
    backend::{
        BackendError, Credential, FailureClass, Grant, RequestContext, Secret, SecretBackend as _,
        SecretBody,
        vault::{Limits, VaultBackend},
    },
    check::{self, Candidate, Judge},
    cli::RenderArgs,
    clock,
    provider::token::{self, Tokens},
    secret::SecretString,
    spec::{ApiPath, DependencyId, PodIdentity, SecretRequest, VolumeSpec, object::Generator},
    startup::Signals,
    template::PodContext,
};

mod preview;
mod sample;

use preview::Preview;
use sample::Sample;

/// Largest token file; the API server's tokens have about 1 KiB.
const MAX_TOKEN: u64 = 64 * 1024;
/// For one request: as long as a pod's would take.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Logs in, reads, and prints what would be read and written.
///
/// # Errors
/// What kept it from logging in, or from revoking the session.
pub fn run(arguments: RenderArgs) -> anyhow::Result<ExitCode> {
    let tenancy = match &arguments.data {
        None => super::tenancy(arguments.tenancy.clone()),
        Some(_) => super::offline_tenancy(arguments.tenancy.clone()),
    };
    let tenancy = match tenancy {
        Ok(tenancy) => tenancy,
        Err(error) => return super::bad_config(&error),
    };
    let judge = Judge { defaults: tenancy.defaults, ..Judge::default() };
    let (candidates, report) = check::candidates(&arguments.file, &judge);
    if !report.findings.is_empty() {
        report.write(&mut io::stderr())?;
    }
    let Candidate { name, namespace, provider, spec } = choose(candidates, arguments.name.as_deref())?;
    let Some(mut spec) = spec else { bail!("SecretProviderClass {name} has errors, see above") };

    if let Some(data) = &arguments.data {
        return offline(&arguments, data, spec, namespace, |pod, spec| {
            // Nobody is connected to: the policy matters where somebody asks what it would say.
            if tenancy.policy_file.is_some() {
                tenancy.policy.check(provider, pod, spec)?;
            }
            tenancy.policy.narrow(provider, pod, spec);
            Ok(())
        });
    }
    let jwt = read_token(&arguments.token_file)?;
    let claimed = token::subject(&jwt);
    let pod = identity(&arguments, claimed.as_ref(), namespace);
    // Before the token is shown to anybody: a manifest of somebody else's may name any address.
    tenancy.policy.check(provider, &pod, &spec)?;
    tenancy.policy.narrow(provider, &pod, &mut spec);
    if arguments.write {
        preview::prepare(&arguments.target)?;
    }

    let mut out = format!(
        "SecretProviderClass {name} (provider {provider}), as ServiceAccount {} in namespace {}, pod {}\n",
        pod.service_account,
        pod.namespace,
        if pod.name.is_empty() { "-" } else { &pod.name },
    );
    // The server decides; what we know better than its bare 403 is said before.
    let audience = &spec.login.audience;
    if let Err(error) = Tokens::one(audience, jwt.clone()).pick(audience, &pod, clock::wall_now()) {
        out.push_str(&format!("warning: {error}\n"));
    }
    super::print(&out)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(DryRun::new(&arguments, spec, &pod).perform(&jwt))
}

/// The same with sample data: nobody is asked, and no token is needed.
fn offline(
    arguments: &RenderArgs,
    data: &Path,
    mut spec: VolumeSpec,
    namespace: Option<String>,
    judge: impl Fn(&PodIdentity, &mut VolumeSpec) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let sample = Sample::read(data)?;
    let pod = identity(arguments, None, namespace);
    judge(&pod, &mut spec)?;
    spec.pod = context_of(&pod, spec.pod.node);
    if arguments.write {
        preview::prepare(&arguments.target)?;
    }
    let (secrets, left_out, text) = sample.answer(&spec);
    super::print(&text)?;
    Preview { arguments, spec }.finish(&secrets, &left_out, !left_out.is_empty())
}

/// What templates know of their pod.
fn context_of(pod: &PodIdentity, node: String) -> PodContext {
    PodContext {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: pod.uid.clone(),
        service_account: pod.service_account.clone(),
        node,
    }
}

/// The text of a file that is not longer than `most` bytes.
fn read_bounded(path: &Path, most: u64) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(text)
}

fn choose(mut candidates: Vec<Candidate>, name: Option<&str>) -> anyhow::Result<Candidate> {
    let names: Vec<String> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    if let Some(name) = name {
        candidates.retain(|candidate| candidate.name == name);
    }
    match (candidates.pop(), candidates.is_empty(), name) {
        (Some(candidate), true, _) => Ok(candidate),
        (Some(_), false, None) => {
            bail!("the file has several SecretProviderClasses ({}): name one with --name", names.join(", "))
        }
        (Some(_), false, Some(name)) => {
            bail!("the file has several SecretProviderClasses of the name {name}")
        }
        (None, _, Some(name)) if !names.is_empty() => {
            bail!("the file has no SecretProviderClass {name}, it has {}", names.join(", "))
        }
        (None, ..) => bail!("the file has no SecretProviderClass of provider vault, openbao or leasehold"),
    }
}

fn read_token(path: &Path) -> anyhow::Result<SecretString> {
    let shown = path.display();
    let text = read_bounded(path, MAX_TOKEN)
        .with_context(|| format!("cannot read the token file {shown} (--token-file)"))?;
    if text.trim().is_empty() {
        bail!("the token file {shown} holds no token: it must have one line of at most 64 KiB");
    }
    Ok(SecretString::new(text.trim().to_owned()))
}

/// Whom the policy is asked for: as told, else as the token says, else as the manifest.
fn identity(arguments: &RenderArgs, claimed: Option<&PodIdentity>, namespace: Option<String>) -> PodIdentity {
    let pick = |told: &Option<String>, claimed: Option<&String>, else_: Option<String>| {
        told.clone()
            .or_else(|| claimed.filter(|text| !text.is_empty()).cloned())
            .or(else_)
            .unwrap_or_default()
    };
    let namespace = namespace.or_else(|| Some(check::DEFAULT_NAMESPACE.into()));
    PodIdentity {
        namespace: pick(&arguments.namespace, claimed.map(|pod| &pod.namespace), namespace),
        name: pick(&arguments.pod, claimed.map(|pod| &pod.name), None),
        uid: claimed.map(|pod| pod.uid.clone()).unwrap_or_default(),
        service_account: pick(
            &arguments.service_account,
            claimed.map(|pod| &pod.service_account),
            Some(check::DEFAULT_SERVICE_ACCOUNT.into()),
        ),
    }
}

/// One dry run.
struct DryRun<'a> {
    preview: Preview<'a>,
    backend: VaultBackend,
    context: RequestContext,
}

impl<'a> DryRun<'a> {
    fn new(arguments: &'a RenderArgs, mut spec: VolumeSpec, pod: &PodIdentity) -> Self {
        spec.pod = context_of(pod, spec.pod.node);
        let context = RequestContext {
            connection: Arc::new(spec.connection.clone()),
            timeout: TIMEOUT,
            on_behalf_of: format!("{}/{}", pod.namespace, pod.name).into(),
            serves: Arc::default(),
            accessor: None,
        };
        let preview = Preview { arguments, spec };
        Self { preview, backend: VaultBackend::new(Limits::default()), context }
    }

    async fn perform(mut self, jwt: &SecretString) -> anyhow::Result<ExitCode> {
        // From here on an interrupt ends the reading, and not the revoking.
        let mut signals = Signals::new().context("cannot listen for signals")?;
        let login = &self.preview.spec.login;
        let connection = &self.preview.spec.connection;
        let whither = format!(
            "POST auth/{}/login, role {}, audience {}, at {}{}",
            login.mount,
            login.role,
            login.audience,
            connection.address,
            if connection.namespace.is_empty() {
                String::new()
            } else {
                format!(" in Vault namespace {}", connection.namespace)
            },
        );
        let grant = self
            .backend
            .login(self.context.clone(), login, &Credential::Jwt(jwt.clone()))
            .await
            .with_context(|| format!("cannot log in ({whither})"))?;
        self.context.accessor = Some(grant.accessor.as_str().into());
        let ttl = grant.terms.ttl.as_secs();
        let life = if ttl == 0 { "for ever".to_owned() } else { format!("for {ttl} s") };
        let renewable = if grant.terms.renewable { ", renewable" } else { "" };
        let shown = super::print(&format!("login    {whither}: a session {life}{renewable}\n"));

        let outcome = match shown {
            Ok(()) => tokio::select! {
                outcome = self.read_and_show(&grant) => outcome,
                () = signals.terminated() => Err(anyhow!("interrupted")),
            },
            Err(error) => Err(error),
        };
        let revoked = self.revoke(&grant).await;
        match (outcome, revoked) {
            (Err(error), Err(also)) => Err(error.context(format!("{also:#}; and before that"))),
            (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
            (Ok(code), Ok(())) => Ok(code),
        }
    }

    async fn revoke(&self, grant: &Grant) -> anyhow::Result<()> {
        if !grant.terms.revocable {
            return super::print("session  cannot be revoked (a batch token): it ends by itself\n");
        }
        self.backend
            .revoke_session(self.context.clone(), &grant.token)
            .await
            .context("cannot revoke the session: it and its leases end by their TTL")?;
        super::print("session  revoked, with every lease made in it\n")
    }

    async fn read_and_show(&self, grant: &Grant) -> anyhow::Result<ExitCode> {
        let mut secrets = BTreeMap::new();
        let mut left_out: BTreeMap<DependencyId, &str> = BTreeMap::new();
        let mut failed = false;
        for (id, request) in self.preview.spec.requests() {
            let route = format!("{} {}", request.method.as_str(), request.path);
            // What is there is shown; what would be made is made when told to.
            let mut plain = request.clone();
            let wanted = if self.preview.arguments.allow_writes {
                BTreeMap::new()
            } else {
                mem::take(&mut plain.generate)
            };
            let request = &plain;
            let line = match self.side_effect(grant, request).await {
                Some(why) if !self.preview.arguments.allow_writes => {
                    left_out.insert(id, "its request was skipped");
                    format!("skipped  {route}: {why}; --allow-writes makes it\n")
                }
                _ => match self.fetch(grant, request).await {
                    answer if would_generate(&answer, &wanted) => {
                        left_out.insert(id, "its value would be generated");
                        let keys = wanted.keys().cloned().collect::<Vec<_>>().join(", ");
                        format!(
                            "skipped  {route}: {keys} would be generated and written; --allow-writes does it\n"
                        )
                    }
                    Ok(secret) => {
                        let line = format!("read     {route}: {}\n", describe(&secret));
                        secrets.insert(id, secret);
                        line
                    }
                    Err(error) => {
                        failed = true;
                        left_out.insert(id, "its request failed");
                        format!("failed   {route}: {error}\n")
                    }
                },
            };
            super::print(&line)?;
        }

        self.preview.finish(&secrets, &left_out, failed)
    }

    async fn fetch(&self, grant: &Grant, request: &SecretRequest) -> Result<Secret, BackendError> {
        let sent = clock::boot_now();
        match self.backend.fetch(self.context.clone(), &grant.token, request).await {
            Err(error) if request.optional && error.class == FailureClass::NotFound => {
                Ok(Secret::absent(sent))
            }
            answer => answer,
        }
    }

    /// Why making a request does more than to read, as far as can be seen without making it.
    async fn side_effect(&self, grant: &Grant, request: &SecretRequest) -> Option<String> {
        if request.is_write() {
            return Some(format!("a {} may do something", request.method.as_str()));
        }
        let path = request.path.as_str();
        // Mounted in every server, and no secret engines.
        if ["sys/", "auth/", "identity/", "cubbyhole/"].iter().any(|mount| path.starts_with(mount)) {
            return None;
        }
        match self.engine(grant, path).await {
            Ok(engine) => makes_lease(&engine, path)
                .then(|| format!("a read from a secret engine of type {engine} makes a lease")),
            // The shape of KV v2, which every policy for it spells out.
            Err(error) if error.class == FailureClass::Denied && path.contains("/data/") => None,
            Err(error) => Some(format!("whether it makes a lease cannot be seen ({error})")),
        }
    }

    /// The type of the secret engine at `path`: the one question about mounts that needs no policy of its own,
    /// only access to something in the mount.
    async fn engine(&self, grant: &Grant, path: &str) -> Result<String, BackendError> {
        let unknown = |message: String| BackendError {
            class: FailureClass::Invalid,
            message,
            retry_after: None,
            worth_retrying: false,
        };
        let path = ApiPath::parse(&format!("sys/internal/ui/mounts/{path}"))
            .map_err(|error| unknown(format!("the path {error}")))?;
        let request = SecretRequest::read(path);
        let secret = self.fetch(grant, &request).await?;
        let SecretBody::Json(envelope) = &secret.body else {
            return Err(unknown("the server answers no JSON".into()));
        };
        let engine = envelope.data.expose().get("type").and_then(serde_json::Value::as_str);
        engine.map(str::to_owned).ok_or_else(|| unknown("the server does not name its type".into()))
    }
}

/// Whether an answer lacks a value that a pod's mount would make.
fn would_generate(answer: &Result<Secret, BackendError>, wanted: &BTreeMap<String, Generator>) -> bool {
    match answer {
        // A version that is deleted is not worth retrying, and nothing is written over it.
        Err(error) => error.class == FailureClass::NotFound && error.worth_retrying && !wanted.is_empty(),
        Ok(Secret { body: SecretBody::Json(envelope), .. }) => {
            let data = envelope.data.expose().get("data");
            wanted.keys().any(|key| data.is_none_or(|data| data.get(key).is_none()))
        }
        Ok(_) => false,
    }
}

/// Whether a read makes a lease, by type of secret engine. Unknown types are taken to.
fn makes_lease(engine: &str, path: &str) -> bool {
    match engine {
        "kv" | "generic" | "cubbyhole" | "identity" | "system" | "pki" | "ssh" | "transit" | "totp" => false,
        // Static roles are read as often as one likes.
        "database" | "ldap" | "openldap" | "ad" => !path.contains("/static-cred"),
        _ => true,
    }
}

fn describe(secret: &Secret) -> String {
    let version = secret.kv_version.map(|version| format!("version {version}, "));
    let lease = match &secret.lease {
        None => "no lease".to_owned(),
        Some(lease) => {
            let renewable = if lease.renewable { ", renewable" } else { "" };
            format!("a lease for {} s{renewable}", lease.ttl.as_secs())
        }
    };
    let warnings: String =
        secret.warnings.iter().map(|warning| format!("; the server warns: {warning}")).collect();
    format!("{}{lease}{warnings}", version.unwrap_or_default()).replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_known_to_make_no_lease_are_made() {
        for (engine, path, expected) in [
            ("kv", "secret/data/a", false),
            ("pki", "pki/cert/ca", false),
            ("database", "database/creds/app", true),
            ("database", "database/static-creds/app", false),
            ("aws", "aws/creds/app", true),
            ("something-new", "x/y", true),
        ] {
            assert_eq!(makes_lease(engine, path), expected, "{engine} {path}");
        }
    }
}
