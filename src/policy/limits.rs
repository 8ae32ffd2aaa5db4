//! What one rule allows.

use std::path::{Component, Path, PathBuf};

use super::{Asked, Baseline, Pattern, Refusal, RuleName, address_key};
use crate::spec::{Object, PodIdentity, ProviderName, TlsSpec, VolumeSpec, values::quote};

/// Allowed values that a refusal lists.
const MAX_LISTED: usize = 5;

/// The limits of a rule; `None` narrows nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// Keys of addresses.
    pub(super) addresses: Option<Vec<String>>,
    pub(super) vault_namespaces: Option<Vec<Pattern>>,
    pub(super) auth_mounts: Option<Vec<Pattern>>,
    pub(super) roles: Option<Vec<Pattern>>,
    pub(super) paths: Option<Vec<Pattern>>,
    pub(super) audiences: Option<Vec<Pattern>>,
    pub(super) tls_dirs: Option<Vec<PathBuf>>,
    pub(super) writes: bool,
    pub(super) skip_tls_verify: bool,
}

/// What is asked, by whom, over which baseline.
pub(super) struct Request<'a> {
    pub(super) baseline: &'a Baseline,
    pub(super) provider: ProviderName,
    pub(super) pod: &'a PodIdentity,
    pub(super) spec: &'a VolumeSpec,
}

/// A refusal without the name of the rule, and how far the checks had come.
pub(super) struct Refused {
    pub(super) progress: usize,
    asked: Asked,
    reason: String,
}

impl Refused {
    pub(super) fn by(self, rule: RuleName) -> Refusal {
        Refusal::Refused { rule, asked: self.asked, reason: self.reason }
    }
}

impl Limits {
    /// Without a file: only the baseline narrows. Writes are free, because Vault decides on them, and the
    /// incumbents leave them free.
    pub(super) fn free() -> Self {
        Self { writes: true, ..Self::default() }
    }

    pub(super) fn check(&self, request: &Request<'_>) -> Result<(), Refused> {
        let spec = request.spec;
        let mut gate = Gate { progress: 0, object: None, pod: request.pod };
        self.check_address(request, &mut gate)?;
        gate.patterns("vaultNamespace", &spec.connection.namespace, self.vault_namespaces.as_deref())?;
        gate.patterns("authMount", spec.login.mount.as_str(), self.auth_mounts.as_deref())?;
        gate.patterns("role", &spec.login.role, self.roles.as_deref())?;
        self.check_audience(request, &mut gate)?;
        self.check_tls(request, &mut gate)?;
        spec.objects.iter().try_for_each(|object| self.check_object(object, spec, &mut gate))
    }

    fn check_address(&self, request: &Request<'_>, gate: &mut Gate<'_>) -> Result<(), Refused> {
        let address = &request.spec.connection.address;
        let key = address_key(address).map_err(|why| gate.refused("address", address, why))?;
        let own: Vec<String>;
        let allowed = match &self.addresses {
            Some(addresses) => addresses,
            None => {
                own = request.baseline.addresses.iter().filter_map(|own| address_key(own).ok()).collect();
                &own
            }
        };
        gate.pass(allowed.contains(&key), "address", &key, || list(allowed.iter().map(String::as_str)))
    }

    fn check_audience(&self, request: &Request<'_>, gate: &mut Gate<'_>) -> Result<(), Refused> {
        let audience = request.spec.login.audience.as_str();
        if self.audiences.is_some() {
            return gate.patterns("audience", audience, self.audiences.as_deref());
        }
        let allowed: Vec<&str> = std::iter::once(request.provider.default_audience())
            .chain(request.baseline.audiences.iter().map(String::as_str))
            .collect();
        gate.pass(allowed.contains(&audience), "audience", audience, || list(allowed.iter().copied()))
    }

    fn check_tls(&self, request: &Request<'_>, gate: &mut Gate<'_>) -> Result<(), Refused> {
        let (tls, own) = (&request.spec.connection.tls, &request.baseline.own_tls);
        let skip = !tls.skip_verify || self.skip_tls_verify || own.iter().any(|own| own.skip_verify);
        gate.pass(skip, "skipTLSVerify", "true", || "the server must be verified".into())?;
        let dirs = self.tls_dirs.as_ref().unwrap_or(&request.baseline.tls_dirs);
        type Field = fn(&TlsSpec) -> Option<&String>;
        let fields: [(&'static str, Field); 4] = [
            ("CA path", |tls| tls.ca_cert.as_ref()),
            ("CA directory", |tls| tls.ca_directory.as_ref()),
            ("client certificate path", |tls| tls.client_cert.as_ref()),
            ("client key path", |tls| tls.client_key.as_ref()),
        ];
        for (what, field) in fields {
            let Some(path) = field(tls) else { continue };
            // Field by field, so that no tenant can name the operator's key as an authority to be shown.
            let is_own = own.iter().any(|own| field(own) == Some(path));
            gate.pass(is_own || is_below(path, dirs), what, path, || {
                let dirs: Vec<String> = dirs.iter().map(|dir| format!("{}/**", dir.display())).collect();
                list(dirs.iter().map(String::as_str))
            })?;
        }
        Ok(())
    }

    fn check_object(&self, object: &Object, spec: &VolumeSpec, gate: &mut Gate<'_>) -> Result<(), Refused> {
        gate.object = Some(object.name().to_owned());
        let namespace = &spec.connection.namespace;
        object.requests().try_for_each(|request| {
            let path = &request.path;
            // Vault takes the namespace from the header or from the front of the path: one form for both.
            let joined = if namespace.is_empty() { path.to_string() } else { format!("{namespace}/{path}") };
            gate.patterns("path", &joined, self.paths.as_deref())?;
            let allowed = self.writes || !request.may_write();
            gate.pass(allowed, "write", &format!("{} {joined}", request.method.as_str()), || {
                "it has no \"writes: allow\"".into()
            })
        })
    }
}

// One check after the other; counts those passed.
struct Gate<'a> {
    progress: usize,
    object: Option<String>,
    pod: &'a PodIdentity,
}

impl Gate<'_> {
    fn refused(&self, what: &'static str, value: &str, reason: impl Into<String>) -> Refused {
        let asked = Asked { object: self.object.clone(), what, value: value.to_owned() };
        Refused { progress: self.progress, asked, reason: reason.into() }
    }

    fn pass(
        &mut self,
        allowed: bool,
        what: &'static str,
        value: &str,
        reason: impl FnOnce() -> String,
    ) -> Result<(), Refused> {
        if allowed {
            self.progress += 1;
            Ok(())
        } else {
            Err(self.refused(what, value, reason()))
        }
    }

    fn patterns(
        &mut self,
        what: &'static str,
        value: &str,
        patterns: Option<&[Pattern]>,
    ) -> Result<(), Refused> {
        let patterns =
            patterns.map(|patterns| (patterns.iter().any(|it| it.matches(value, self.pod)), patterns));
        let allowed = patterns.is_none_or(|(matched, _)| matched);
        self.pass(allowed, what, value, || {
            list(patterns.iter().flat_map(|(_, patterns)| patterns.iter().map(Pattern::as_str)))
        })
    }
}

fn list<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let values: Vec<&str> = values.collect();
    if values.is_empty() {
        return "none is allowed".into();
    }
    let shown: Vec<String> = values.iter().take(MAX_LISTED).map(|value| quote(value).to_string()).collect();
    match values.len() - shown.len() {
        0 => format!("allowed: {}", shown.join(", ")),
        more => format!("allowed: {} and {more} more", shown.join(", ")),
    }
}

/// Lexically below one of `dirs`. Links that lead out are refused when the file is opened.
fn is_below(path: &str, dirs: &[PathBuf]) -> bool {
    let path = Path::new(path);
    let normal = path.is_absolute()
        && !path.components().any(|part| part == Component::ParentDir)
        && !path.as_os_str().as_encoded_bytes().iter().any(u8::is_ascii_control);
    normal && dirs.iter().any(|dir| path.starts_with(dir))
}
