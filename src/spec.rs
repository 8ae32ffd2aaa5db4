//! What a user asks for, parsed and typed; pure. Nothing here reads a file, a clock or the network.
//!
//! `parameters` reads SecretProviderClass parameters (compatible with the vault and openbao providers),
//! `object` one entry of `objects`, `path` the two kinds of path: the file's and the API's.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc, time::Duration};

pub use object::{Encoding, Object, SecretRequest};
pub use path::{ApiPath, ObjectPath, ObjectPathError};
pub use problem::{SpecError, Warning};

use crate::template::PodContext;

pub mod agent;
pub mod object;
pub mod origin;
pub mod parameters;
pub mod path;
pub mod problem;
pub(crate) mod values;
pub(crate) mod yaml;

/// Which of our sockets a request came in by: it decides parameter prefixes and the default audience.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// Our own name; reads the vault spelling of parameters.
    Leasehold,
    /// hashicorp/vault-csi-provider.
    Vault,
    /// openbao/openbao-csi-provider.
    Openbao,
}

impl ProviderName {
    /// Audience of the ServiceAccount token when the parameters name none: the incumbents' own. `leasehold`
    /// shares the one of `vault`, so that one entry in the CSIDriver's tokenRequests serves both.
    pub const fn default_audience(self) -> &'static str {
        match self {
            Self::Leasehold | Self::Vault => "vault",
            Self::Openbao => "openbao",
        }
    }

    /// The name as a SecretProviderClass writes it in `spec.provider`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leasehold => "leasehold",
            Self::Vault => "vault",
            Self::Openbao => "openbao",
        }
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The pod that the kubelet names in a Mount. Its fields cannot be set by the pod's author.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PodIdentity {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
}

/// TLS towards one server. Paths are in this process's own filesystem and pass policy before they are opened.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct TlsSpec {
    /// PEM bundle of the authorities to trust; replaces the system's.
    pub ca_cert: Option<String>,
    /// Folder of PEM files to trust; replaces the system's.
    pub ca_directory: Option<String>,
    /// Name to ask for and to verify, when it is not the address's host.
    pub server_name: Option<String>,
    /// PEM client certificate chain.
    pub client_cert: Option<String>,
    /// PEM key of `client_cert`.
    pub client_key: Option<String>,
    /// Do not verify the server. Refused unless the operator allows it.
    pub skip_verify: bool,
}

impl TlsSpec {
    /// The files that are read, [`Self::ca_directory`] apart.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.ca_cert, &self.client_cert, &self.client_key].into_iter().flatten().map(Path::new)
    }
}

/// Where requests go: everything that selects a connection, and the Vault namespace on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Connection {
    /// `https://host:port`, `http://…` or `unix:///path`, without a trailing slash.
    pub address: String,
    /// Vault namespace without slashes at its ends; empty for the root.
    pub namespace: String,
    /// TLS settings.
    pub tls: TlsSpec,
}

/// By what a login proves itself. The provider knows the first one only.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum LoginMethod {
    /// A ServiceAccount token: the kubernetes and jwt methods take the same request, `role` and `jwt`; which
    /// one answered is seen in the answer.
    #[default]
    ServiceAccount,
    /// A role id, and a secret id where the role wants one.
    AppRole,
    /// The TLS client certificate of the connection.
    Certificate,
    /// No login at all: a token that somebody else made.
    Token,
}

/// How to log in: `POST auth/<mount>/login`, except with [`LoginMethod::Token`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct LoginSpec {
    /// By what.
    #[serde(default)]
    pub method: LoginMethod,
    /// Path of the auth mount without `auth/`, canonical.
    pub mount: ApiPath,
    /// Role on that mount; may be empty with methods that need none.
    pub role: String,
    /// Audience of the ServiceAccount token to log in with.
    pub audience: String,
}

/// Permission bits of a file: within 0777.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct FileMode(u32);

impl FileMode {
    /// What the driver asks for when nobody says otherwise.
    pub const DEFAULT: Self = Self(0o644);
    /// For owner and group, nobody writes.
    pub const READABLE_BY_GROUP: Self = Self(0o440);
    /// For the owner alone, nobody writes.
    pub const PRIVATE: Self = Self(0o400);

    /// `bits`, if none is outside 0777: setuid in a tmpfs mounted without nosuid is an escalation.
    pub const fn new(bits: u32) -> Option<Self> {
        if bits & !0o777 == 0 { Some(Self(bits)) } else { None }
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// Numeric owner of a file; `None` leaves it root's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct FileOwner {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

impl FileOwner {
    /// Mode of a file with this owner that nobody gave one: its owner's, and its group's where one is given.
    /// The driver's 0644 would make an owner pointless.
    pub const fn default_mode(self) -> FileMode {
        FileMode(if self.gid.is_some() { 0o440 } else { 0o400 })
    }
}

/// When an object without a lease is read again (External Secrets Operator's meanings).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum RefreshPolicy {
    /// Every refresh interval.
    #[default]
    Periodic,
    /// Never after the first time.
    CreatedOnce,
    /// Only when the SecretProviderClass changes or someone asks.
    OnChange,
}

/// Everything one volume asks for: the unit of planning, policy and rendering.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VolumeSpec {
    /// Where to.
    pub connection: Connection,
    /// As whom.
    pub login: LoginSpec,
    /// What, in the order given; names are unique and do not clash.
    pub objects: Vec<Object>,
    /// Mode of files whose object names none.
    pub default_mode: FileMode,
    /// What templates may know of their pod; empty where there are none.
    #[serde(default)]
    pub pod: PodContext,
}

impl VolumeSpec {
    /// The distinct requests of all objects, those in templates too: two keys of one credential are one read.
    pub fn requests(&self) -> BTreeMap<DependencyId, &SecretRequest> {
        self.objects.iter().flat_map(Object::requests).map(|request| (request.id(), request)).collect()
    }

    /// The first object that needs a request, and the request.
    pub fn user_of(&self, id: DependencyId) -> Option<(&Object, &SecretRequest)> {
        let users = self.objects.iter().flat_map(|object| object.requests().map(move |it| (object, it)));
        users.into_iter().find(|(_, request)| request.id() == id)
    }

    /// The same without generators: what is kept true is read, and nothing is written in its place.
    #[must_use]
    pub fn settled(self: Arc<Self>) -> Arc<Self> {
        if self.requests().values().all(|request| request.generate.is_empty()) {
            return self;
        }
        let mut spec = Self::clone(&self);
        spec.objects.iter_mut().flat_map(Object::requests_mut).for_each(|request| request.generate.clear());
        Arc::new(spec)
    }

    /// Whether rendering may take milliseconds: templates have a budget of up to a second, and keystores
    /// derive keys.
    pub fn is_costly(&self) -> bool {
        self.objects.iter().any(|object| {
            matches!(
                object.source,
                object::Source::Template(_)
                    | object::Source::Secret { part: object::Part::Keystore { .. }, .. }
            )
        })
    }
}

/// Names a distinct request of a volume: a digest over method, path, query and arguments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DependencyId(pub [u8; 16]);

// As text, because it is a key of maps in the journal.
impl From<DependencyId> for String {
    fn from(id: DependencyId) -> Self {
        data_encoding::HEXLOWER.encode(&id.0)
    }
}

impl TryFrom<String> for DependencyId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| "not hexadecimal")?;
        bytes.try_into().map(Self).map_err(|_| "not 16 bytes")
    }
}

impl fmt::Debug for DependencyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// How long a replaced credential lives on beside its successor. Long enough for an application that
/// reads the file at each connect; short enough that two never pile up.
pub const DEFAULT_OVERLAP: Duration = Duration::from_secs(30);

/// The shortest refresh interval: below, polling costs more than it tells.
pub const MIN_REFRESH: Duration = Duration::from_secs(5);

/// How often a KV value is checked unless an object says otherwise: the field's common default.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(300);
