//! Flags, environment and files to a validated [`Config`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use tracing::Level;

use crate::{
    cli::{LogLevel, ProviderArgs, SandboxArgs, ServerFlags, TenancyArgs},
    kubernetes,
    policy::{Baseline, Policy, PolicyError},
    provider::Endpoint,
    spec::{ProviderName, TlsSpec, parameters::Defaults},
    telemetry::LogConfig,
};

/// Where the name of the node is looked for, `.pod.node` of templates.
const NODE_VARIABLES: [&str; 2] = ["LEASEHOLD_NODE_NAME", "NODE_NAME"];

/// Where the driver's chart looks for sockets (`linux.providersDir`).
pub const PROVIDERS_DIR: &str = "/var/run/secrets-store-csi-providers";
/// On every node a tmpfs, and of the host: it must outlive the pod, but not a boot.
pub const STATE_DIR: &str = "/run/leasehold";
/// The kubelet's own default.
pub const KUBELET_ROOT: &str = "/var/lib/kubelet";
/// vault-csi-provider's own default: its chart's probes go there.
pub const HEALTH_ADDR: &str = ":8080";
/// Where a pod's manifest usually projects its token for Vault.
pub const TOKEN_FILE: &str = "/var/run/secrets/tokens/vault";
/// Auth mount where nobody names one, of both upstream providers.
pub const AUTH_MOUNT: &str = "kubernetes";

/// Largest policy file.
const MAX_POLICY: u64 = 1 << 20;

/// Why the process does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An endpoint's file name is no provider's.
    #[error(
        "--endpoint {}: the file's name is the provider's, so it must be leasehold.sock, vault.sock or \
         openbao.sock", path.display()
    )]
    EndpointName {
        /// The endpoint.
        path: PathBuf,
    },
    /// The same provider is served twice.
    #[error("--endpoint {}: given twice", path.display())]
    EndpointTwice {
        /// The endpoint.
        path: PathBuf,
    },
    /// A path is relative or has `..` in it.
    #[error("--{flag} {}: must be an absolute path without ..", path.display())]
    Path {
        /// The flag.
        flag: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The health address is none.
    #[error("--health-addr {value}: must be HOST:PORT or :PORT")]
    HealthAddress {
        /// Its value.
        value: String,
    },
    /// An environment variable is no boolean.
    #[error("{variable}={value}: {source}")]
    Variable {
        /// The variable.
        variable: String,
        /// Its value.
        value: String,
        /// What it would have to be.
        source: BoolError,
    },
    /// The policy file cannot be read.
    #[error("cannot read the policy {}", path.display())]
    PolicyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The policy file makes no sense.
    #[error("policy {}", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: PolicyError,
    },
}

/// Not one of the words of Go's `strconv.ParseBool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of 1, t, T, TRUE, true, True, 0, f, F, FALSE, false, False")]
pub struct BoolError;

/// Reads what Go's `strconv.ParseBool` reads.
///
/// # Errors
/// For any other word.
pub fn parse_bool(text: &str) -> Result<bool, BoolError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(BoolError),
    }
}

/// What SecretProviderClasses are judged by, and what their parameters fall back to.
#[derive(Clone, Debug)]
pub struct Tenancy {
    /// The tenancy rules.
    pub policy: Policy,
    /// Where the rules came from, beside the flags.
    pub policy_file: Option<PathBuf>,
    /// What is allowed without a policy file.
    pub baseline: Baseline,
    /// What parameters fall back to, for all three providers.
    pub defaults: BTreeMap<ProviderName, Defaults>,
}

/// The switches of [`crate::sandbox`].
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    /// Files and ports.
    pub landlock: bool,
    /// System calls.
    pub seccomp: bool,
    /// Leave core dumps on.
    pub core_dumps: bool,
}

impl From<SandboxArgs> for Sandbox {
    fn from(flags: SandboxArgs) -> Self {
        Self { landlock: !flags.no_landlock, seccomp: !flags.no_seccomp, core_dumps: flags.allow_core_dumps }
    }
}

/// What `leasehold provider` runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sockets to serve, at least one.
    pub endpoints: Vec<Endpoint>,
    /// Folder for what a restart needs.
    pub state_dir: PathBuf,
    /// The kubelet's root folder.
    pub kubelet_root: PathBuf,
    /// The tenancy rules.
    pub policy: Policy,
    /// Where the rules came from, beside the flags.
    pub policy_file: Option<PathBuf>,
    /// What is allowed without a policy file.
    pub baseline: Baseline,
    /// What parameters fall back to, for all three providers.
    pub defaults: BTreeMap<ProviderName, Defaults>,
    /// `HOST:PORT` or `:PORT`.
    pub health_addr: String,
    /// Whether drivers before 1.6.0 are let in.
    pub authority_shim: bool,
    /// How the process confines itself; what it has to reach is added where it starts.
    pub sandbox: Sandbox,
    /// Whether swap that may take this process's memory is no matter to tell of.
    pub allow_swap: bool,
    /// How long the driver may leave a mounted volume without a call.
    pub expect_republish: std::time::Duration,
    /// Whom Events name as their reporter: the node, else this pod.
    pub instance: String,
    /// What of the API server is used.
    pub kubernetes: kubernetes::Options,
    /// What is logged.
    pub log: LogConfig,
    /// What to tell the operator once logging works.
    pub warnings: Vec<String>,
}

impl Config {
    /// Validates `flags`; `environment` looks up the upstream programs' variables.
    ///
    /// # Errors
    /// The first flag, variable or file that is wrong.
    pub fn resolve(
        flags: ProviderArgs,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let warnings = warnings(&flags);
        let endpoints = endpoints(flags.endpoint)?;
        let state_dir = absolute("state-dir", flags.state_dir)?;
        let kubelet_root = absolute("kubelet-root", flags.kubelet_root)?;
        let health_addr = health_address(flags.health_addr)?;

        let instance = NODE_VARIABLES.iter().chain(&["HOSTNAME"]).find_map(|name| environment(name));
        let Tenancy { policy, policy_file, baseline, defaults } =
            Tenancy::resolve(flags.tenancy, environment)?;
        Ok(Self {
            endpoints,
            state_dir,
            kubelet_root,
            policy,
            policy_file,
            baseline,
            defaults,
            health_addr,
            authority_shim: !flags.no_authority_shim,
            sandbox: flags.sandbox.into(),
            allow_swap: flags.allow_swap,
            expect_republish: flags.expect_republish,
            instance: instance.unwrap_or_else(|| env!("CARGO_PKG_NAME").to_owned()),
            kubernetes: kubernetes::Options {
                pod_events: flags.pod_events,
                token_request: flags.token_request,
                read_pods: flags.read_pods,
            },
            log: LogConfig { level: level(flags.log_level, flags.debug), format: flags.log_format },
            warnings,
        })
    }

    /// One line for each setting, for `--print-config`.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            // Writing into a String does not fail.
            let _infallible = writeln!(text, "{key}: {value}");
        };
        for endpoint in &self.endpoints {
            line("endpoint", &format!("{} ({})", endpoint.path.display(), endpoint.provider));
        }
        line("state-dir", &self.state_dir.display().to_string());
        line("kubelet-root", &self.kubelet_root.display().to_string());
        line("policy", &self.policy_file.as_ref().map_or("-".into(), |path| path.display().to_string()));
        line("health-addr", &self.health_addr);
        let mut switch = |key, on| line(key, if on { "on" } else { "off" });
        switch("authority-shim", self.authority_shim);
        switch("landlock", self.sandbox.landlock);
        switch("seccomp", self.sandbox.seccomp);
        switch("core-dumps", self.sandbox.core_dumps);
        switch("allow-swap", self.allow_swap);
        switch("pod-events", self.kubernetes.pod_events);
        switch("token-request", self.kubernetes.token_request);
        switch("read-pods", self.kubernetes.read_pods);
        line("log-level", &self.log.level.map_or("off".into(), |level| level.to_string().to_lowercase()));
        line("log-format", &format!("{:?}", self.log.format).to_lowercase());
        self.baseline.addresses.iter().for_each(|address| line("allowed address", address));
        self.baseline.tls_dirs.iter().for_each(|dir| line("allowed tls-dir", &dir.display().to_string()));
        self.baseline.audiences.iter().for_each(|audience| line("allowed audience", audience));
        for (provider, Defaults { address, namespace, auth_mount, node, tls }) in &self.defaults {
            let mut setting = |key: &str, value: Option<&str>| {
                value
                    .filter(|value| !value.is_empty())
                    .inspect(|value| line(&format!("{provider} {key}"), value));
            };
            setting("address", address.as_deref());
            setting("namespace", Some(namespace));
            setting("mount", Some(auth_mount));
            setting("node", Some(node));
            setting("ca-cert", tls.ca_cert.as_deref());
            setting("ca-directory", tls.ca_directory.as_deref());
            setting("server-name", tls.server_name.as_deref());
            setting("client-cert", tls.client_cert.as_deref());
            setting("client-key", tls.client_key.as_deref());
            setting("skip-verify", tls.skip_verify.then_some("true"));
        }
        text
    }
}

impl Tenancy {
    /// Validates `flags`; `environment` looks up the upstream programs' variables.
    ///
    /// # Errors
    /// The first flag, variable or file that is wrong.
    pub fn resolve(
        flags: TenancyArgs,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut vault = defaults(&flags.vault.into(), &["VAULT_"], &environment)?;
        // OpenBao's own client library reads Vault's variables where its own are not set.
        let mut openbao = defaults(&flags.openbao.into(), &["BAO_", "VAULT_"], &environment)?;
        // One process serves both names, and mostly one server: the name that nothing was said about has the
        // other's settings.
        let unsaid = Defaults {
            address: None,
            namespace: String::new(),
            auth_mount: AUTH_MOUNT.to_owned(),
            node: String::new(),
            tls: TlsSpec::default(),
        };
        if openbao == unsaid && vault.address.is_some() {
            openbao.clone_from(&vault);
        } else if vault == unsaid && openbao.address.is_some() {
            vault.clone_from(&openbao);
        }
        // From the downward API: templates may write it.
        let node = NODE_VARIABLES.iter().find_map(|name| environment(name)).unwrap_or_default();
        vault.node.clone_from(&node);
        openbao.node = node;
        let baseline = baseline(
            &[&vault, &openbao],
            flags.allow_vault_address,
            flags.allow_tls_dir,
            flags.allow_audience,
        )?;
        let policy_file = flags.policy.filter(|path| !path.as_os_str().is_empty());
        let policy = match &policy_file {
            None => Policy::baseline(baseline.clone()),
            Some(path) => policy(path, baseline.clone())?,
        };
        Ok(Self {
            policy,
            policy_file,
            baseline,
            defaults: BTreeMap::from([
                (ProviderName::Leasehold, vault.clone()),
                (ProviderName::Vault, vault),
                (ProviderName::Openbao, openbao),
            ]),
        })
    }
}

fn warnings(flags: &ProviderArgs) -> Vec<String> {
    let mut warnings = Vec::new();
    if flags.hmac_secret_name.is_some() {
        warnings.push("--hmac-secret-name is ignored: object versions need no Kubernetes Secret".to_owned());
    }
    if flags.cache_size.is_some() {
        warnings.push(
            "--cache-size is ignored: sessions are shared by identity and bounded by the node".to_owned(),
        );
    }
    if flags.debug {
        warnings.push("--debug is deprecated upstream: use --log-level=debug".to_owned());
    }
    warnings
}

/// What is logged, of commands that have these two flags.
pub(crate) fn log(level: Option<LogLevel>, format: crate::telemetry::LogFormat) -> LogConfig {
    LogConfig { level: self::level(level, false), format }
}

fn level(level: Option<LogLevel>, debug: bool) -> Option<Level> {
    match level {
        None if debug => Some(Level::DEBUG),
        None | Some(LogLevel::Info) => Some(Level::INFO),
        Some(LogLevel::Trace) => Some(Level::TRACE),
        Some(LogLevel::Debug) => Some(Level::DEBUG),
        Some(LogLevel::Warn) => Some(Level::WARN),
        Some(LogLevel::Error) => Some(Level::ERROR),
        Some(LogLevel::Off) => None,
    }
}

fn endpoints(paths: Vec<PathBuf>) -> Result<Vec<Endpoint>, ConfigError> {
    const ALL: [ProviderName; 3] = [ProviderName::Leasehold, ProviderName::Vault, ProviderName::Openbao];
    let given: Vec<_> = paths.into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
    if given.is_empty() {
        let path = |provider| Path::new(PROVIDERS_DIR).join(format!("{provider}.sock"));
        return Ok(ALL.into_iter().map(|provider| Endpoint { path: path(provider), provider }).collect());
    }
    let (mut endpoints, mut seen) = (Vec::new(), BTreeSet::new());
    for path in given {
        let path = absolute("endpoint", path)?;
        let file =
            path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_suffix(".sock"));
        let Some(provider) = ALL.into_iter().find(|provider| file == Some(provider.as_str())) else {
            return Err(ConfigError::EndpointName { path });
        };
        if !seen.insert(path.clone()) {
            return Err(ConfigError::EndpointTwice { path });
        }
        endpoints.push(Endpoint { path, provider });
    }
    Ok(endpoints)
}

fn absolute(flag: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    let plain = !path.components().any(|component| component == std::path::Component::ParentDir);
    if path.is_absolute() && plain {
        // Without a slash at the end or doubled: paths are compared as text later.
        Ok(path.components().collect())
    } else {
        Err(ConfigError::Path { flag, path })
    }
}

fn health_address(value: String) -> Result<String, ConfigError> {
    let port = value.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_some() { Ok(value) } else { Err(ConfigError::HealthAddress { value }) }
}

/// One provider's defaults: the flag, else the first variable that is set and not empty.
///
/// # Errors
/// When a variable is no boolean.
pub(crate) fn defaults(
    flags: &ServerFlags,
    prefixes: &[&str],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Defaults, ConfigError> {
    let variable = |suffix: &str| {
        prefixes
            .iter()
            .map(|prefix| format!("{prefix}{suffix}"))
            .find_map(|name| environment(&name).filter(|value| !value.is_empty()).map(|value| (name, value)))
    };
    let pick = |flag: &Option<String>, suffix: &str| {
        flag.clone().filter(|value| !value.is_empty()).or_else(|| variable(suffix).map(|(_, value)| value))
    };
    let skip_verify = match (flags.tls_skip_verify, variable("SKIP_VERIFY")) {
        (Some(flag), _) => flag,
        (None, None) => false,
        (None, Some((variable, value))) => {
            parse_bool(&value).map_err(|source| ConfigError::Variable { variable, value, source })?
        }
    };
    Ok(Defaults {
        address: pick(&flags.addr, "ADDR"),
        namespace: pick(&flags.namespace, "NAMESPACE").unwrap_or_default(),
        auth_mount: flags.mount.clone().filter(|mount| !mount.is_empty()).unwrap_or(AUTH_MOUNT.to_owned()),
        node: String::new(),
        tls: TlsSpec {
            ca_cert: pick(&flags.tls_ca_cert, "CACERT"),
            ca_directory: pick(&flags.tls_ca_directory, "CAPATH"),
            server_name: pick(&flags.tls_server_name, "TLS_SERVER_NAME"),
            client_cert: pick(&flags.tls_client_cert, "CLIENT_CERT"),
            client_key: pick(&flags.tls_client_key, "CLIENT_KEY"),
            skip_verify,
        },
    })
}

fn baseline(
    own: &[&Defaults],
    addresses: Vec<String>,
    tls_dirs: Vec<PathBuf>,
    audiences: Vec<String>,
) -> Result<Baseline, ConfigError> {
    let own_addresses = own.iter().filter_map(|defaults| defaults.address.clone());
    let mut all: Vec<_> =
        own_addresses.chain(addresses).filter(|address| !address.trim().is_empty()).collect();
    all.sort();
    all.dedup();
    let mut own_tls: Vec<_> = own.iter().map(|defaults| defaults.tls.clone()).collect();
    own_tls.dedup();
    let tls_dirs = tls_dirs.into_iter().filter(|dir| !dir.as_os_str().is_empty());
    Ok(Baseline {
        addresses: all,
        tls_dirs: tls_dirs.map(|dir| absolute("allow-tls-dir", dir)).collect::<Result<_, _>>()?,
        own_tls,
        audiences: audiences.into_iter().filter(|audience| !audience.is_empty()).collect(),
    })
}

fn policy(path: &Path, baseline: Baseline) -> Result<Policy, ConfigError> {
    let unreadable = |source| ConfigError::PolicyFile { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_POLICY + 1).read_to_string(&mut text))
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_POLICY {
        return Err(unreadable(io::Error::other("it has more than 1 MiB")));
    }
    Policy::from_yaml(&text, baseline).map_err(|source| ConfigError::Policy { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
