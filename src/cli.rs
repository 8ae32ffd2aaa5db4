//! The command line: clap types, and the spellings of the programs we replace.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};

use crate::{check, config, telemetry::LogFormat};

/// Node-local secrets delivery for Kubernetes.
#[derive(Clone, Debug, Parser)]
#[command(name = "leasehold", about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve the Secrets Store CSI driver on unix sockets (a DaemonSet).
    Provider(Box<ProviderArgs>),
    /// Deliver secrets within a pod: init container, native sidecar, or supervisor of a process.
    Agent(Box<AgentArgs>),
    /// Check SecretProviderClass manifests, offline: every problem with its line. Exit status 1 on errors.
    Check(Box<CheckArgs>),
    /// Convert resources of External Secrets Operator, workloads with the Vault Agent injector's annotations, and
    /// configurations of Vault Agent. Exit status 1 when something cannot be carried over.
    Convert(Box<ConvertArgs>),
    /// Show what a SecretProviderClass would read and write: a dry run against a real server.
    Render(Box<RenderArgs>),
    /// List the volumes of this node, with what they live on and what is due next; never a value.
    Ls(LsArgs),
    /// Check this node's whole chain, from the driver's sockets to Vault: what is wrong and what mends it. Exit
    /// status 1 when something is.
    Doctor(DoctorArgs),
    /// Check values in the store now, instead of at their next interval.
    Refresh(RefreshArgs),
    /// Say which version this is.
    Version(VersionArgs),
}

/// `leasehold version`.
#[derive(Clone, Debug, Args)]
pub struct VersionArgs {
    /// How to say it; one line of text where not given.
    #[arg(long, value_name = "FORMAT")]
    pub output: Option<VersionFormat>,
}

/// The formats of vault-csi-provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VersionFormat {
    /// One line.
    Json,
    /// With line breaks.
    JsonPretty,
    /// A document.
    Yaml,
}

/// Levels as vault-csi-provider names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Off,
}

/// `leasehold provider`. Each flag can be given by the environment variable in brackets; a flag wins.
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct ProviderArgs {
    /// Socket to serve; the file's name is the provider's: leasehold.sock, vault.sock or openbao.sock.
    /// Repeatable. All three in /var/run/secrets-store-csi-providers where not given.
    #[arg(long, value_name = "DIR/NAME.sock", env = "LEASEHOLD_ENDPOINT", value_delimiter = ',', value_parser = path())]
    pub endpoint: Vec<PathBuf>,
    /// Folder for what a restart needs; should be tmpfs of the host.
    #[arg(long, value_name = "DIR", env = "LEASEHOLD_STATE_DIR", default_value = config::STATE_DIR)]
    pub state_dir: PathBuf,
    /// The kubelet's root folder, at the same path as on the host.
    #[arg(long, value_name = "DIR", env = "LEASEHOLD_KUBELET_ROOT", default_value = config::KUBELET_ROOT)]
    pub kubelet_root: PathBuf,
    /// Where /livez, /readyz, /health/ready and /metrics are.
    #[arg(long, value_name = "[HOST]:PORT", env = "LEASEHOLD_HEALTH_ADDR", default_value = config::HEALTH_ADDR)]
    pub health_addr: String,
    /// Do not repair what drivers before 1.6.0 send as :authority; they cannot call then.
    #[arg(
        long, env = "LEASEHOLD_NO_AUTHORITY_SHIM", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = config::parse_bool,
        value_name = "BOOL"
    )]
    pub no_authority_shim: bool,
    /// Measures by which the process confines itself.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Do not tell of swap that may take tokens and values to a disk: it is encrypted, in memory, or of no concern.
    #[arg(
        long, env = "LEASEHOLD_ALLOW_SWAP", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL"
    )]
    pub allow_swap: bool,
    /// The most talkative lines to log.
    #[arg(long, env = "LEASEHOLD_LOG_LEVEL", ignore_case = true, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// How log lines look.
    #[arg(
        long,
        env = "LEASEHOLD_LOG_FORMAT",
        ignore_case = true,
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    /// Log at debug where --log-level is not given.
    #[arg(
        long, env = "LEASEHOLD_DEBUG", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL"
    )]
    pub debug: bool,
    /// How long the driver may leave a mounted volume without a call before that is told of: longer than its
    /// rotationPollInterval.
    #[arg(long, value_name = "DURATION", env = "LEASEHOLD_EXPECT_REPUBLISH", default_value = "20m",
        value_parser = crate::spec::values::duration)]
    pub expect_republish: std::time::Duration,
    /// Write Events to pods: rotated, rotation failing, expired, refused, edit rejected. Needs the right to create
    /// events.
    #[arg(
        long, env = "LEASEHOLD_POD_EVENTS", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL"
    )]
    pub pod_events: bool,
    /// Ask the API server for a pod's token where the driver passes none for the audience. Needs the right to
    /// create serviceaccounts/token.
    #[arg(
        long, env = "LEASEHOLD_TOKEN_REQUEST", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL"
    )]
    pub token_request: bool,
    /// Read pods' securityContext, for `fileOwner: pod`. Needs the right to get pods.
    #[arg(
        long, env = "LEASEHOLD_READ_PODS", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL"
    )]
    pub read_pods: bool,
    /// Print what was understood of flags, environment and files, and exit.
    #[arg(long, env = "LEASEHOLD_PRINT_CONFIG", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = config::parse_bool,
        value_name = "BOOL")]
    pub print_config: bool,
    /// Of vault-csi-provider; ignored: object versions need no Secret.
    #[arg(long, env = "LEASEHOLD_HMAC_SECRET_NAME", hide = true)]
    pub hmac_secret_name: Option<String>,
    /// Of vault-csi-provider; ignored: there is no cache to size.
    #[arg(long, env = "LEASEHOLD_CACHE_SIZE", hide = true)]
    pub cache_size: Option<String>,
    /// Of vault-csi-provider: the format of -version, which is handled before; alone it has no effect.
    #[arg(long, hide = true)]
    pub output: Option<String>,
    /// What it judges by, and what parameters fall back to.
    #[command(flatten)]
    pub tenancy: TenancyArgs,
}

/// Takes away one of the walls of a serving process, to find out whether a fault is the wall's.
#[derive(Args, Clone, Copy, Debug)]
#[group(skip)]
pub struct SandboxArgs {
    /// Do not restrict files and ports by Landlock.
    #[arg(
        long, env = "LEASEHOLD_NO_LANDLOCK", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL"
    )]
    pub no_landlock: bool,
    /// Do not restrict system calls.
    #[arg(
        long, env = "LEASEHOLD_NO_SECCOMP", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL"
    )]
    pub no_seccomp: bool,
    /// Leave core dumps on. They hold tokens and values.
    #[arg(
        long, env = "LEASEHOLD_ALLOW_CORE_DUMPS", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = config::parse_bool,
        value_name = "BOOL"
    )]
    pub allow_core_dumps: bool,
}

/// `leasehold agent`. Each flag can be given by the environment variable in brackets; a flag wins.
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct AgentArgs {
    /// The agent's file, or a folder of files that are one together.
    #[arg(long, value_name = "FILE|DIR", env = "LEASEHOLD_CONFIG",
        required_unless_present_any = ["check", "from_vault_agent", "annotations"])]
    pub config: Option<PathBuf>,
    /// Vault Agent's configuration in place of ours; --print-config shows what it becomes.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_FROM_VAULT_AGENT",
        conflicts_with_all = ["config", "annotations"])]
    pub from_vault_agent: Option<PathBuf>,
    /// The pod's own annotations for Vault Agent's injector in place of it, from a downward API volume.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_ANNOTATIONS", conflicts_with = "config")]
    pub annotations: Option<PathBuf>,
    /// Render once, say until when the credentials live, and end: for init containers and Jobs. Nothing is
    /// revoked.
    #[arg(long)]
    pub once: bool,
    /// Run what follows `--` with variables of the configuration, and start it anew when they change.
    #[arg(long)]
    pub exec: bool,
    /// With --exec: the program and its arguments.
    #[arg(last = true, value_name = "COMMAND", requires = "exec")]
    pub command: Vec<OsString>,
    /// Ask the agent that runs whether everything is in place, and end with status 0 or 1: for probes.
    #[arg(long)]
    pub check: bool,
    /// An emptyDir of the agent's own, medium Memory: what a restart needs is in it, tokens too
    /// [default: /run/leasehold].
    #[arg(long, value_name = "DIR", env = "LEASEHOLD_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where /livez, /readyz and /metrics are; nowhere where not given.
    #[arg(long, value_name = "[HOST]:PORT", env = "LEASEHOLD_HEALTH_ADDR")]
    pub health_addr: Option<String>,
    /// Revoke what was made when told to stop.
    #[arg(long, env = "LEASEHOLD_REVOKE_ON_SHUTDOWN", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = config::parse_bool, value_name = "BOOL")]
    pub revoke_on_shutdown: Option<bool>,
    /// Let onChange.command run programs.
    #[arg(long, env = "LEASEHOLD_ALLOW_COMMANDS", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = config::parse_bool,
        value_name = "BOOL")]
    pub allow_commands: bool,
    /// Let every folder be on a disk.
    #[arg(long, env = "LEASEHOLD_DISK_BACKED", num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = config::parse_bool,
        value_name = "BOOL")]
    pub disk_backed: bool,
    /// Print the configuration in our own words, and exit.
    #[arg(long)]
    pub print_config: bool,
    /// The most talkative lines to log.
    #[arg(long, env = "LEASEHOLD_LOG_LEVEL", ignore_case = true, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// How log lines look.
    #[arg(
        long,
        env = "LEASEHOLD_LOG_FORMAT",
        ignore_case = true,
        default_value = "text",
        value_name = "FORMAT"
    )]
    pub log_format: LogFormat,
    /// Which walls are left out.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// What the configuration falls back to.
    #[command(flatten)]
    pub vault: VaultFlags,
}

/// The rules for SecretProviderClasses, and what their parameters fall back to: of `provider`, and of the
/// commands that foretell what it will do.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct TenancyArgs {
    /// File with the rules of what a namespace may ask for.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_POLICY", value_parser = path())]
    pub policy: Option<PathBuf>,
    /// Address that a SecretProviderClass may name, beside our own. Repeatable.
    #[arg(long, value_name = "URL", env = "LEASEHOLD_ALLOW_VAULT_ADDRESS", value_delimiter = ',')]
    pub allow_vault_address: Vec<String>,
    /// Folder below which a SecretProviderClass may name CA and client certificates. Repeatable.
    #[arg(long, value_name = "DIR", env = "LEASEHOLD_ALLOW_TLS_DIR", value_delimiter = ',', value_parser = path())]
    pub allow_tls_dir: Vec<PathBuf>,
    /// Audience that a SecretProviderClass may name, beside the provider's default. Repeatable.
    #[arg(long, value_name = "AUDIENCE", env = "LEASEHOLD_ALLOW_AUDIENCE", value_delimiter = ',')]
    pub allow_audience: Vec<String>,
    /// Defaults for the providers vault and leasehold.
    #[command(flatten)]
    pub vault: VaultFlags,
    /// Defaults for the provider openbao.
    #[command(flatten)]
    pub openbao: OpenbaoFlags,
}

/// `leasehold check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Manifests, or folders of them; - is standard input.
    #[arg(value_name = "FILE", required_unless_present = "suggest_policy")]
    pub files: Vec<PathBuf>,
    /// Print the smallest policy under which the SecretProviderClasses in DIR (and in FILE...) work.
    /// Repeatable.
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub suggest_policy: Vec<PathBuf>,
    /// Namespace of manifests that name none.
    #[arg(long, value_name = "NAME", default_value = check::DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// ServiceAccount for which a policy is asked: manifests do not say whose pods will use them.
    #[arg(long, value_name = "NAME", default_value = check::DEFAULT_SERVICE_ACCOUNT)]
    pub service_account: String,
    /// With --policy, what it would refuse is an error.
    #[command(flatten)]
    pub tenancy: TenancyArgs,
}

/// `leasehold convert`.
#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// Manifests, or folders of them; - is standard input. With --to agent, one file: Vault Agent's
    /// configuration (HCL or JSON), a workload, or annotations as the downward API has them.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What to make.
    #[arg(long, value_name = "KIND", default_value = "class")]
    pub to: ConvertTo,
    /// Which documents to print; all where not given. Repeatable.
    #[arg(long, short, value_name = "PART", value_delimiter = ',')]
    pub output: Vec<ConvertPart>,
    /// Namespace of manifests that name none.
    #[arg(long, value_name = "NAME", default_value = check::DEFAULT_NAMESPACE)]
    pub namespace: String,
}

/// What `leasehold convert` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConvertTo {
    /// SecretProviderClasses, rules for the node's policy, and patches of workloads.
    Class,
    /// The in-pod agent's file.
    Agent,
}

/// What `leasehold convert` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConvertPart {
    /// SecretProviderClasses, and the ConfigMaps that they need.
    Class,
    /// The node's policy.
    Policy,
    /// Patches of workloads.
    Patch,
}

/// `leasehold render`.
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct RenderArgs {
    /// Manifest with the SecretProviderClass; - is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Folder that the files would be in.
    #[arg(long, value_name = "DIR")]
    pub target: PathBuf,
    /// Name of the SecretProviderClass, where the manifest has several.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Sample data instead of a server: a YAML or JSON mapping of paths to what would be answered there.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// ServiceAccount token to log in with.
    #[arg(long, value_name = "FILE", env = "LEASEHOLD_TOKEN_FILE", default_value = config::TOKEN_FILE)]
    pub token_file: PathBuf,
    /// Namespace of the pod; the token's own where not given.
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Name of the pod; the token's own where not given.
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// ServiceAccount of the pod; the token's own where not given.
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// Print the values too.
    #[arg(long)]
    pub show_values: bool,
    /// Make requests that do something as well: PUT, POST, and those that make a lease.
    #[arg(long)]
    pub allow_writes: bool,
    /// Write the files, with mode 0600, into DIR, which must be empty or missing.
    #[arg(long)]
    pub write: bool,
    /// The agent's own rules hold here too.
    #[command(flatten)]
    pub tenancy: TenancyArgs,
}

/// `leasehold ls`.
#[derive(Args, Clone, Debug)]
pub struct LsArgs {
    /// How to show it.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub output: ListFormat,
    /// The agent's state folder, where its control socket is.
    #[arg(long, value_name = "DIR", env = "LEASEHOLD_STATE_DIR", default_value = config::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// The formats of `leasehold ls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// One line for each volume.
    Table,
    /// The same with more columns.
    Wide,
    /// Everything there is.
    Json,
}

/// `leasehold doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// How to show it.
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub output: DoctorFormat,
    /// The agent's state folder, where its control socket is.
    #[arg(long, value_name = "DIR", env = "LEASEHOLD_STATE_DIR", default_value = config::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// The formats of `leasehold doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    /// A line for each check, and what mends it below.
    Text,
    /// A list of objects.
    Json,
}

/// `leasehold refresh`.
#[derive(Args, Clone, Debug)]
pub struct RefreshArgs {
    /// The volumes of one pod.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_name,
        required_unless_present = "all", conflicts_with = "all")]
    pub pod: Option<(String, String)>,
    /// Every volume of the node.
    #[arg(long)]
    pub all: bool,
    /// The agent's state folder, where its control socket is.
    #[arg(long, value_name = "DIR", env = "LEASEHOLD_STATE_DIR", default_value = config::STATE_DIR)]
    pub state_dir: PathBuf,
}

fn pod_name(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("a pod is named NAMESPACE/NAME"),
    }
}

/// Takes an empty path, which clap refuses: an empty variable in a pod's manifest is one that is not set.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// What one provider's parameters fall back to, as flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFlags {
    /// Address of the server.
    pub addr: Option<String>,
    /// Path of the auth mount.
    pub mount: Option<String>,
    /// Vault namespace.
    pub namespace: Option<String>,
    /// PEM bundle of authorities.
    pub tls_ca_cert: Option<String>,
    /// Folder of PEM files of authorities.
    pub tls_ca_directory: Option<String>,
    /// Name to verify.
    pub tls_server_name: Option<String>,
    /// PEM client certificate.
    pub tls_client_cert: Option<String>,
    /// PEM key of the client certificate.
    pub tls_client_key: Option<String>,
    /// Do not verify.
    pub tls_skip_verify: Option<bool>,
}

macro_rules! server_flags {
    ($name:ident, $flag:literal, $env:literal, $upstream:literal, $heading:literal) => {
        #[doc = concat!("The flags `--", $flag, "-…`.")]
        #[derive(Args, Clone, Debug)]
        #[command(next_help_heading = $heading)]
        #[group(skip)]
        #[allow(missing_docs, reason = "the help says it")]
        pub struct $name {
            #[arg(id = concat!($flag, "-addr"), long, env = concat!($env, "ADDR"), value_name = "URL",
                help = concat!("Address of the server, https://, http:// or unix:// [also: ", $upstream, "ADDR]"))]
            pub addr: Option<String>,
            #[arg(id = concat!($flag, "-mount"), long, env = concat!($env, "MOUNT"), value_name = "PATH",
                help = "Path of the auth mount to log in at [default: kubernetes]")]
            pub mount: Option<String>,
            #[arg(id = concat!($flag, "-namespace"), long, env = concat!($env, "NAMESPACE"), value_name = "NAME",
                help = concat!("Vault namespace [also: ", $upstream, "NAMESPACE]"))]
            pub namespace: Option<String>,
            #[arg(id = concat!($flag, "-tls-ca-cert"), long, env = concat!($env, "TLS_CA_CERT"), value_name = "FILE",
                help = concat!("PEM bundle of the authorities to trust [also: ", $upstream, "CACERT]"))]
            pub tls_ca_cert: Option<String>,
            #[arg(id = concat!($flag, "-tls-ca-directory"), long, env = concat!($env, "TLS_CA_DIRECTORY"),
                value_name = "DIR",
                help = concat!("Folder of PEM files of the authorities to trust [also: ", $upstream, "CAPATH]"))]
            pub tls_ca_directory: Option<String>,
            #[arg(id = concat!($flag, "-tls-server-name"), long, env = concat!($env, "TLS_SERVER_NAME"),
                value_name = "NAME",
                help = concat!("Name that the server's certificate must have [also: ", $upstream, "TLS_SERVER_NAME]"))]
            pub tls_server_name: Option<String>,
            #[arg(id = concat!($flag, "-tls-client-cert"), long, env = concat!($env, "TLS_CLIENT_CERT"),
                value_name = "FILE",
                help = concat!("PEM client certificate [also: ", $upstream, "CLIENT_CERT]"))]
            pub tls_client_cert: Option<String>,
            #[arg(id = concat!($flag, "-tls-client-key"), long, env = concat!($env, "TLS_CLIENT_KEY"),
                value_name = "FILE",
                help = concat!("PEM key of the client certificate [also: ", $upstream, "CLIENT_KEY]"))]
            pub tls_client_key: Option<String>,
            #[arg(id = concat!($flag, "-tls-skip-verify"), long, env = concat!($env, "TLS_SKIP_VERIFY"),
                value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
                value_parser = config::parse_bool,
                help = concat!("Do not verify the server [also: ", $upstream, "SKIP_VERIFY]"))]
            pub tls_skip_verify: Option<bool>,
        }

        impl From<$name> for ServerFlags {
            fn from(flags: $name) -> Self {
                let $name {
                    addr, mount, namespace, tls_ca_cert, tls_ca_directory, tls_server_name, tls_client_cert,
                    tls_client_key, tls_skip_verify,
                } = flags;
                Self {
                    addr, mount, namespace, tls_ca_cert, tls_ca_directory, tls_server_name, tls_client_cert,
                    tls_client_key, tls_skip_verify,
                }
            }
        }
    };
}

server_flags!(
    VaultFlags,
    "vault",
    "LEASEHOLD_VAULT_",
    "VAULT_",
    "Defaults for the providers vault and leasehold"
);
server_flags!(OpenbaoFlags, "openbao", "LEASEHOLD_OPENBAO_", "BAO_", "Defaults for the provider openbao");

/// Arguments as clap takes them, from those of vault-csi-provider and openbao-csi-provider, which Go's flag
/// package reads: long flags with one dash, no subcommand, and `-version` as a flag.
pub fn normalise(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next();
    // What follows `--` is another program's.
    let mut ours = true;
    let mut rest: Vec<OsString> = arguments
        .map(|argument| {
            ours &= argument != "--";
            if ours { two_dashes(argument) } else { argument }
        })
        .collect();
    let is = |argument: &OsString, names: &[&str]| names.iter().any(|name| argument == name);
    let flags_first = rest.first().is_some_and(|first| first.to_string_lossy().starts_with('-'));
    if flags_first && !is(&rest[0], &["--help", "-h"]) {
        if rest.iter().any(|argument| is(argument, &["--version", "--version=true", "-V"])) {
            rest = version_arguments(&rest);
        } else {
            rest.insert(0, "provider".into());
        }
    }
    program.into_iter().chain(rest).collect()
}

fn two_dashes(argument: OsString) -> OsString {
    match argument.to_str().map(str::as_bytes) {
        Some([b'-', first, _, ..]) if first.is_ascii_alphabetic() => {
            let mut long = OsString::from("-");
            long.push(argument);
            long
        }
        _ => argument,
    }
}

fn version_arguments(arguments: &[OsString]) -> Vec<OsString> {
    let mut version = vec![OsString::from("version")];
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--output" {
            version.push(argument.clone());
            version.extend(rest.next().cloned());
        } else if argument.to_string_lossy().starts_with("--output=") {
            version.push(argument.clone());
        }
    }
    version
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use clap::CommandFactory;

    use super::*;

    fn normalised(arguments: &str) -> String {
        let all = std::iter::once("leasehold").chain(arguments.split_whitespace()).map(OsString::from);
        let normal = normalise(all);
        normal[1..].iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn spellings_of_go_are_taken() {
        for (given, expected) in [
            ("", ""),
            ("-help", "--help"),
            ("-h", "-h"),
            ("version -output json", "version --output json"),
            ("-version", "version"),
            ("-debug -version -output=yaml", "version --output=yaml"),
            ("--version --output json-pretty -debug", "version --output json-pretty"),
            ("-vault-addr=http://x -debug", "provider --vault-addr=http://x --debug"),
            (
                "--endpoint=/provider/vault.sock --log-level=info",
                "provider --endpoint=/provider/vault.sock --log-level=info",
            ),
            ("provider -state-dir /run/x", "provider --state-dir /run/x"),
            ("agent -config f --exec -- java -version", "agent --config f --exec -- java -version"),
        ] {
            assert_eq!(normalised(given), expected);
        }
    }

    #[test]
    fn refresh_wants_one_pod_or_all() {
        for (arguments, taken) in [
            ("refresh --all", true),
            ("refresh --pod=shop/web-0 --state-dir=/x", true),
            ("refresh", false),
            ("refresh --all --pod=shop/web-0", false),
            ("refresh --pod=web-0", false),
            ("refresh --pod=a/b/c", false),
            ("check", false),
            ("check --suggest-policy=x", true),
            ("check -", true),
        ] {
            let all = std::iter::once("leasehold").chain(arguments.split_whitespace()).map(OsString::from);
            assert_eq!(Cli::try_parse_from(normalise(all)).is_ok(), taken, "{arguments}");
        }
    }

    #[test]
    fn the_definition_holds_together_and_every_flag_has_its_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        let provider = command.find_subcommand("provider").unwrap();
        let mut seen = 0;
        for argument in provider.get_arguments() {
            let Some(long) = argument.get_long().filter(|long| !["help", "output"].contains(long)) else {
                continue;
            };
            let variable = format!("LEASEHOLD_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(argument.get_env().unwrap().to_str().unwrap(), variable);
            seen += 1;
        }
        assert_eq!(seen, 23 + 2 * 9, "a flag was added: say so here");
    }
}
