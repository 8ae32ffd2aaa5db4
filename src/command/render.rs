//! `leasehold render`: what a SecretProviderClass would read and write, shown against a real server with a
//! token from a file. Nothing is written, and nothing is asked that does something, unless told to; the
//! session is revoked at the end, whatever happened.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    mem,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};

use crate::{
    app::Signals,
    backend::{
        BackendError, Credential, FailureClass, Grant, RequestContext, Secret, SecretBackend as _,
        SecretBody,
        vault::{Limits, VaultBackend},
    },
    check::{self, Candidate, Judge},
    cli::RenderArgs,
    clock,
    projection::{FileProjection, Payload},
    provider::token::{self, Tokens},
    render::{DigestKey, render},
    secret::SecretString,
    spec::{
        ApiPath, DependencyId, Object, PodIdentity, SecretRequest, VolumeSpec,
        object::{Generator, Part, Source},
    },
    telemetry,
    template::PodContext,
};

/// Largest token file; the API server's tokens have about 1 KiB.
const MAX_TOKEN: u64 = 64 * 1024;
/// For one request: as long as a pod's would take.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Logs in, reads, and prints what would be read and written.
///
/// # Errors
/// What kept it from logging in, or from revoking the session.
pub fn run(arguments: RenderArgs) -> anyhow::Result<ExitCode> {
    let tenancy = match super::tenancy(arguments.tenancy.clone()) {
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

    let jwt = read_token(&arguments.token_file)?;
    let claimed = token::subject(&jwt);
    let pod = identity(&arguments, claimed.as_ref(), namespace);
    // Before the token is shown to anybody: a manifest of somebody else's may name any address.
    tenancy.policy.check(provider, &pod, &spec)?;
    tenancy.policy.narrow(provider, &pod, &mut spec);
    if arguments.write {
        prepare(&arguments.target)?;
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
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read the token file {shown} (--token-file)"))?;
    if text.len() as u64 > MAX_TOKEN || text.trim().is_empty() {
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
    arguments: &'a RenderArgs,
    spec: VolumeSpec,
    backend: VaultBackend,
    context: RequestContext,
}

impl<'a> DryRun<'a> {
    fn new(arguments: &'a RenderArgs, mut spec: VolumeSpec, pod: &PodIdentity) -> Self {
        spec.pod = PodContext {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.clone(),
            service_account: pod.service_account.clone(),
            node: spec.pod.node,
        };
        let context = RequestContext {
            connection: Arc::new(spec.connection.clone()),
            timeout: TIMEOUT,
            on_behalf_of: format!("{}/{}", pod.namespace, pod.name).into(),
            accessor: None,
        };
        Self { arguments, spec, backend: VaultBackend::new(Limits::default()), context }
    }

    async fn perform(mut self, jwt: &SecretString) -> anyhow::Result<ExitCode> {
        // From here on an interrupt ends the reading, and not the revoking.
        let mut signals = Signals::new().context("cannot listen for signals")?;
        let login = &self.spec.login;
        let connection = &self.spec.connection;
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
        for (id, request) in self.spec.requests() {
            let route = format!("{} {}", request.method.as_str(), request.path);
            // What is there is shown; what would be made is made when told to.
            let mut plain = request.clone();
            let wanted =
                if self.arguments.allow_writes { BTreeMap::new() } else { mem::take(&mut plain.generate) };
            let request = &plain;
            let line = match self.side_effect(grant, request).await {
                Some(why) if !self.arguments.allow_writes => {
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

        let (text, payload, missing) = self.render(&secrets, &left_out);
        super::print(&text)?;
        // A skipped request is what was asked for; an object that cannot be rendered is a failure.
        failed |= missing > left_out_objects(&self.spec, &left_out);
        let written = match (self.arguments.write, missing) {
            (false, _) => "nothing was written: --write writes the files\n".to_owned(),
            (true, 0) => {
                write_files(&self.arguments.target, &payload)?;
                format!("written  {} files to {}\n", payload.files.len(), self.arguments.target.display())
            }
            (true, missing) => {
                failed = true;
                format!("nothing was written: {missing} objects are missing\n")
            }
        };
        super::print(&written)?;
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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

    /// The table of files, what they are made of, and how many objects are missing from it. Objects are
    /// rendered one by one: each that fails is shown.
    fn render(
        &self,
        secrets: &BTreeMap<DependencyId, Secret>,
        left_out: &BTreeMap<DependencyId, &str>,
    ) -> (String, Payload, usize) {
        let key = DigestKey::new(&rand::random());
        let mut payload = Payload::default();
        let header = ["FILE", "MODE", "BYTES", "VERSION", "FROM"].map(str::to_owned);
        let mut rows = vec![header.to_vec()];
        let mut missing = Vec::new();
        for object in self.spec.objects.iter().filter(|object| !object.is_input()) {
            if let Some(why) = needs(&self.spec, object).find_map(|it| left_out.get(&it.id())) {
                missing.push(format!("missing  {}: {why}\n", object.name()));
                continue;
            }
            let inputs = inputs_of(&self.spec, object);
            let objects = inputs.chain([object]).cloned().collect();
            let alone = VolumeSpec { objects, ..self.spec.clone() };
            let files = match render(&alone, secrets, &key, clock::wall_now()) {
                Ok(rendered) => rendered.payload.files,
                Err(error) => {
                    missing.push(format!("failed   {}\n", telemetry::chain(&error)));
                    continue;
                }
            };
            let (version, from) = match &object.source {
                Source::Template(_) => (None, "template".to_owned()),
                Source::Secret { request, part } => {
                    let key = match part {
                        Part::Key(key) => format!(" key {key}"),
                        _ => String::new(),
                    };
                    let version = secrets.get(&request.id()).and_then(|secret| secret.kv_version);
                    (version, format!("{} {}{key}", request.method.as_str(), request.path))
                }
            };
            for (path, file) in files {
                rows.push(vec![
                    self.arguments.target.join(path.as_str()).display().to_string(),
                    format!("{:04o}", file.mode.bits()),
                    file.contents.len().to_string(),
                    version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
                    from.clone(),
                ]);
                payload.files.insert(path, file);
            }
        }
        let mut text = String::new();
        if rows.len() > 1 {
            text.push('\n');
            text.push_str(&super::table(&rows));
            text.push_str(&self.values(&payload));
            text.push('\n');
        }
        missing.iter().for_each(|line| text.push_str(line));
        (text, payload, missing.len())
    }

    fn values(&self, payload: &Payload) -> String {
        if !self.arguments.show_values {
            return "the values are not shown: --show-values shows them\n".to_owned();
        }
        payload
            .files
            .iter()
            .map(|(path, file)| {
                let path = self.arguments.target.join(path.as_str());
                format!("--- {}\n{}\n", path.display(), readable(file))
            })
            .collect()
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

/// Objects that are missing because their request was not made or not answered.
fn left_out_objects(spec: &VolumeSpec, left_out: &BTreeMap<DependencyId, &str>) -> usize {
    let files = spec.objects.iter().filter(|object| !object.is_input());
    files.filter(|object| needs(spec, object).any(|it| left_out.contains_key(&it.id()))).count()
}

/// The entries with `as` that an object may use.
fn inputs_of<'a>(spec: &'a VolumeSpec, object: &'a Object) -> impl Iterator<Item = &'a Object> {
    let uses = match &object.source {
        Source::Template(_) => true,
        Source::Secret { part, .. } => matches!(part, Part::Keystore { .. }),
    };
    spec.objects.iter().filter(move |it| uses && it.is_input())
}

/// The requests without which an object cannot be rendered.
fn needs<'a>(spec: &'a VolumeSpec, object: &'a Object) -> impl Iterator<Item = &'a SecretRequest> {
    inputs_of(spec, object).chain([object]).flat_map(Object::requests)
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

/// Text as it is, everything else as base64: it must not steer a terminal.
fn readable(file: &FileProjection) -> String {
    let bytes = file.contents.expose();
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => {
            text.trim_end_matches('\n').to_owned()
        }
        _ => format!("base64: {}", data_encoding::BASE64.encode(bytes)),
    }
}

/// A folder that is there and empty: nothing of the user's is overwritten.
fn prepare(target: &Path) -> anyhow::Result<()> {
    let shown = target.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(target)
        .with_context(|| format!("cannot make the folder {shown}"))?;
    let mut entries = fs::read_dir(target).with_context(|| format!("cannot read the folder {shown}"))?;
    if entries.next().is_some() {
        bail!("{shown} is not empty: --write wants a folder of its own");
    }
    Ok(())
}

/// Plain files for looking at, without the modes and the swap that a volume has.
fn write_files(target: &Path, payload: &Payload) -> anyhow::Result<()> {
    for (path, file) in &payload.files {
        let path = target.join(path.as_str());
        let written = (|| {
            if let Some(parent) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            let mut created = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            created.write_all(file.contents.expose())
        })();
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::FileMode;

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

    #[test]
    fn a_value_cannot_steer_a_terminal() {
        for (bytes, expected) in [
            (&b"a\tb\nc\n"[..], "a\tb\nc"),
            (b"\x1b[2J", "base64: G1sySg=="),
            (b"\xff", "base64: /w=="),
            ("\u{9b}2J".as_bytes(), "base64: wpsySg=="),
        ] {
            let file =
                FileProjection { contents: bytes.to_vec().into(), mode: FileMode::DEFAULT, owner: None };
            assert_eq!(readable(&file), expected);
        }
    }
}
