//! SecretProviderClass parameters and pod volumeAttributes, merged by the driver, to a [`super::VolumeSpec`].
//!
//! Names, defaults and error texts are those of vault-csi-provider and openbao-csi-provider, so that their
//! manifests work without an edit. What those providers ignore in silence is ignored here with a warning.

use std::collections::{BTreeMap, BTreeSet};

pub use super::problem::{SpecError, Warning};
use super::{
    ApiPath, Connection, DependencyId, FileMode, FileOwner, LoginMethod, LoginSpec, Object, ProviderName,
    TlsSpec, VolumeSpec,
    object::{
        Absence, Generator, Output, Part, Password, Source,
        reader::{self, Entry},
    },
    problem::Findings,
    values,
    yaml::{Kind, Node},
};
use crate::template::PodContext;

#[cfg(test)]
mod tests;

/// Objects of one volume. The largest real volumes have hundreds; each is a file and maybe a request.
pub const MAX_OBJECTS: usize = 10_000;

/// Bytes of the `objects` parameter: etcd's default limit of a request, which no SecretProviderClass that
/// an API server stores can exceed.
pub const MAX_OBJECTS_TEXT: usize = 1_572_864;

/// Everything after a provider's prefix: `Address` is `vaultAddress`, `baoAddress`, `openbaoAddress`.
const SUFFIXES: [&str; 10] = [
    "Address",
    "Namespace",
    "CACertPath",
    "CADirectory",
    "TLSServerName",
    "TLSClientCertPath",
    "TLSClientKeyPath",
    "KubernetesMountPath",
    "AuthMountPath",
    "SkipTLSVerify",
];

/// Parameters without a prefix. `secretProviderClass` is the driver's own.
const PLAIN: [&str; 7] =
    ["roleName", "audience", "objects", "filePermission", "fileOwner", "fileGroup", "secretProviderClass"];

/// Found in old manifests; vault-csi-provider ignores them in silence. With what to use instead.
const IGNORED: [(&str, &str); 5] = [
    ("vaultCAPem", "put the certificate into the agent's TLS folder and name it in vaultCACertPath"),
    ("kubernetesServiceAccountPath", "the token comes from the driver"),
    ("KubernetesServiceAccountPath", "the token comes from the driver"),
    ("objectPath", "use secretPath within objects"),
    ("objectVersion", "use ?version=N in secretPath"),
];

/// What a parameter falls back to: this process's flags and environment, for one provider name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `-vault-addr`, `VAULT_ADDR` and kin.
    pub address: Option<String>,
    /// `-vault-namespace`, `VAULT_NAMESPACE` and kin.
    pub namespace: String,
    /// `-vault-mount`; `kubernetes`.
    pub auth_mount: String,
    /// Name of the node, for templates; empty when the agent was not told.
    pub node: String,
    /// `-vault-tls-*` and kin.
    pub tls: TlsSpec,
}

/// A parsed SecretProviderClass with what was strange about it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What is asked for.
    pub spec: VolumeSpec,
    /// Unknown parameters and kin: for the log and `check`, never a failure.
    pub warnings: Vec<String>,
}

/// Everything there is to say about a SecretProviderClass.
#[derive(Clone, Debug)]
pub struct Collected {
    /// What is asked for, unless there are errors.
    pub spec: Option<VolumeSpec>,
    /// Every reason to refuse it, in order of their gravity to upstream.
    pub errors: Vec<SpecError>,
    /// Everything strange.
    pub warnings: Vec<Warning>,
}

/// Reads the merged attributes of a Mount, or the parameters of a SecretProviderClass.
///
/// # Errors
/// The first of [`collect`]'s errors. Names the object, the field and the line where there is one.
pub fn parse(
    provider: ProviderName,
    attributes: &BTreeMap<String, String>,
    default_mode: FileMode,
    defaults: &Defaults,
) -> Result<Parsed, SpecError> {
    parse_for(provider, attributes, default_mode, defaults, None)
}

/// Reads like [`parse`], with what `fileOwner: pod` stands for; where that is `None` and asked for, the error
/// is [`SpecError::PodOwner`].
///
/// # Errors
/// As [`parse`].
pub fn parse_for(
    provider: ProviderName,
    attributes: &BTreeMap<String, String>,
    default_mode: FileMode,
    defaults: &Defaults,
    pod_owner: Option<FileOwner>,
) -> Result<Parsed, SpecError> {
    let Collected { spec, errors, warnings } =
        read(provider, attributes, None, default_mode, defaults, pod_owner);
    match (spec, errors.into_iter().next()) {
        (_, Some(error)) => Err(error),
        (Some(spec), None) => {
            Ok(Parsed { spec, warnings: warnings.iter().map(Warning::to_string).collect() })
        }
        (None, None) => Err(SpecError::NoObjects),
    }
}

/// Reads like [`parse`], and goes on after an error: for `check`, which shows all of them. Of an owner that is
/// the pod's it knows no number.
pub fn collect(
    provider: ProviderName,
    attributes: &BTreeMap<String, String>,
    default_mode: FileMode,
    defaults: &Defaults,
) -> Collected {
    read(provider, attributes, None, default_mode, defaults, Some(FileOwner::default()))
}

/// The same with the objects as the list itself, whose lines then are those of the file around it.
pub(crate) fn collect_around(
    provider: ProviderName,
    attributes: &BTreeMap<String, String>,
    objects: &Node,
    default_mode: FileMode,
    defaults: &Defaults,
) -> Collected {
    read(provider, attributes, Some(objects), default_mode, defaults, None)
}

fn read(
    provider: ProviderName,
    attributes: &BTreeMap<String, String>,
    objects: Option<&Node>,
    default_mode: FileMode,
    defaults: &Defaults,
    pod_owner: Option<FileOwner>,
) -> Collected {
    let findings = Findings { pod_owner, ..Findings::default() };
    Reader { provider, attributes, objects, findings }.collect(default_mode, defaults)
}

/// Parameter prefixes of a provider, first found wins.
const fn prefixes(provider: ProviderName) -> &'static [&'static str] {
    match provider {
        ProviderName::Leasehold | ProviderName::Vault => &["vault"],
        ProviderName::Openbao => &["bao", "openbao", "vault"],
    }
}

struct Reader<'a> {
    provider: ProviderName,
    attributes: &'a BTreeMap<String, String>,
    /// In place of the parameter.
    objects: Option<&'a Node>,
    findings: Findings,
}

impl<'a> Reader<'a> {
    fn collect(mut self, default_mode: FileMode, defaults: &Defaults) -> Collected {
        let reader = &mut self;
        reader.warn_unknown();
        let login = reader.login(defaults);
        let connection = reader.connection(defaults);
        let owner = reader.owner();
        let pod = reader.pod(defaults);
        let mode = reader.mode();
        let mut objects = reader.objects(owner, &pod);
        for object in objects.iter_mut().flatten().filter(|object| !object.is_input()) {
            object.mode = object.mode.or(mode);
        }
        let Findings { errors, warnings, .. } = self.findings;
        let spec = match (login, connection, objects) {
            (Some(login), Some(connection), Some(objects)) if errors.is_empty() => {
                let is_template = |object: &Object| matches!(object.source, Source::Template(_));
                let pod = if objects.iter().any(is_template) { pod } else { PodContext::default() };
                Some(VolumeSpec { connection, login, objects, default_mode, pod })
            }
            _ => None,
        };
        Collected { spec, errors, warnings }
    }

    /// A parameter by its suffix: the first prefix that is present.
    fn present(&self, suffix: &str) -> Option<(String, &'a str)> {
        prefixes(self.provider).iter().find_map(|prefix| {
            let name = format!("{prefix}{suffix}");
            self.attributes.get(&name).map(|value| (name, value.as_str()))
        })
    }

    /// A parameter by its suffix: the first prefix that is not empty.
    fn given(&self, suffix: &str) -> Option<(String, String)> {
        prefixes(self.provider).iter().find_map(|prefix| {
            let name = format!("{prefix}{suffix}");
            let value = self.attributes.get(&name).filter(|value| !value.is_empty())?;
            Some((name, value.clone()))
        })
    }

    fn value(&self, suffix: &str) -> Option<String> {
        self.given(suffix).map(|(_, value)| value)
    }

    fn warn_unknown(&mut self) {
        let mut known: BTreeSet<String> = PLAIN.iter().map(|&name| name.to_owned()).collect();
        for prefix in prefixes(self.provider) {
            known.extend(SUFFIXES.iter().map(|suffix| format!("{prefix}{suffix}")));
        }
        if self.provider == ProviderName::Openbao {
            known.extend(prefixes(self.provider).iter().map(|prefix| format!("{prefix}RoleName")));
        }
        for name in self.attributes.keys() {
            // The driver's and the kubelet's own.
            if known.contains(name) || name.starts_with("csi.storage.k8s.io/") {
                continue;
            }
            let ignored = IGNORED.iter().find(|(ignored, _)| ignored == name);
            self.findings.warn(name, None, || match ignored {
                Some((_, instead)) => {
                    format!("parameter {name} is ignored, as vault-csi-provider ignores it: {instead}")
                }
                None => {
                    let near = values::nearest(name, known.iter().map(String::as_str));
                    let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                    format!("unknown parameter {} is ignored{hint}", values::quote(name))
                }
            });
        }
    }

    fn login(&mut self, defaults: &Defaults) -> Option<LoginSpec> {
        let prefixed = match self.provider {
            ProviderName::Openbao => self.value("RoleName"),
            ProviderName::Leasehold | ProviderName::Vault => None,
        };
        let plain = || self.attributes.get("roleName").cloned().filter(|role| !role.is_empty());
        let role = prefixed.or_else(plain);
        if role.is_none() {
            self.findings.error(SpecError::MissingRole);
        }
        if let (Some((kubernetes, _)), Some((auth, _))) =
            (self.present("KubernetesMountPath"), self.present("AuthMountPath"))
        {
            self.findings.error(SpecError::BothMounts { kubernetes, auth });
        }
        let (name, mount) = self
            .given("AuthMountPath")
            .or_else(|| self.given("KubernetesMountPath"))
            .unwrap_or_else(|| (self.name("AuthMountPath"), defaults.auth_mount.clone()));
        let mount = ApiPath::parse_mount(&mount)
            .map_err(|error| self.findings.parameter_error(&name, format_args!("the path {error}")));
        let audience = self.attributes.get("audience").filter(|audience| !audience.is_empty());
        let audience = audience.map_or(self.provider.default_audience(), String::as_str).to_owned();
        Some(LoginSpec { method: LoginMethod::ServiceAccount, mount: mount.ok()?, role: role?, audience })
    }

    /// The preferred spelling of a parameter, for messages.
    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", prefixes(self.provider)[0])
    }

    fn connection(&mut self, defaults: &Defaults) -> Option<Connection> {
        let address =
            self.value("Address").or_else(|| defaults.address.clone().filter(|own| !own.is_empty()));
        let address = address.map(|address| address.trim().trim_end_matches('/').to_owned());
        if address.is_none() {
            let parameter = match self.provider {
                ProviderName::Leasehold | ProviderName::Vault => "vaultAddress",
                ProviderName::Openbao => "baoAddress",
            };
            self.findings.error(SpecError::MissingAddress { parameter });
        }
        let (name, namespace) =
            self.given("Namespace").unwrap_or_else(|| (self.name("Namespace"), defaults.namespace.clone()));
        let namespace = match namespace.trim_matches('/') {
            // The server's own name of the root namespace.
            "" | "root" => Some(String::new()),
            _ => match ApiPath::parse_mount(&namespace) {
                Ok(path) => Some(path.as_str().to_owned()),
                Err(error) => {
                    self.findings.parameter_error(&name, format_args!("the namespace {error}"));
                    None
                }
            },
        };
        let tls = self.tls(&defaults.tls);
        Some(Connection { address: address?, namespace: namespace?, tls: tls? })
    }

    // Each group is taken as a whole from the parameters or from the defaults: half of one and half of the
    // other would trust what nobody meant, or pair a certificate with another's key.
    fn tls(&mut self, defaults: &TlsSpec) -> Option<TlsSpec> {
        let (ca_cert, ca_directory) = match (self.value("CACertPath"), self.value("CADirectory")) {
            (None, None) => (defaults.ca_cert.clone(), defaults.ca_directory.clone()),
            own => own,
        };
        let (client_cert, client_key) =
            match (self.value("TLSClientCertPath"), self.value("TLSClientKeyPath")) {
                (None, None) => (defaults.client_cert.clone(), defaults.client_key.clone()),
                own => own,
            };
        if client_cert.is_some() != client_key.is_some() {
            let (given, other) = match client_cert {
                Some(_) => ("TLSClientCertPath", "TLSClientKeyPath"),
                None => ("TLSClientKeyPath", "TLSClientCertPath"),
            };
            let given = self.given(given).map_or_else(|| self.name(given), |(name, _)| name);
            self.findings.parameter_error(&given, format_args!("needs {} beside it", self.name(other)));
            return None;
        }
        let skip_verify = match self.present("SkipTLSVerify") {
            None => defaults.skip_verify,
            Some((name, text)) => match values::boolean(text) {
                Ok(skip) => skip,
                Err(reason) => {
                    self.findings.parameter_error(&name, reason);
                    return None;
                }
            },
        };
        let server_name = self.value("TLSServerName").or_else(|| defaults.server_name.clone());
        Some(TlsSpec { ca_cert, ca_directory, server_name, client_cert, client_key, skip_verify })
    }

    fn owner(&mut self) -> Option<FileOwner> {
        let given = |name| self.attributes.get(name).filter(|value| !value.is_empty());
        let owner_text = given("fileOwner");
        let owner = owner_text.map(|text| values::owner(text));
        let group = given("fileGroup").map(|text| values::id(text));
        let mut found = FileOwner::default();
        let of_pod = owner_text.is_some_and(|text| text == values::POD_OWNER);
        match owner {
            _ if of_pod => match self.findings.pod_owner {
                Some(owner) => found = owner,
                None => self.findings.error(SpecError::PodOwner { place: String::new(), line: None }),
            },
            Some(Ok(owner)) => found = owner,
            Some(Err(reason)) => self.findings.parameter_error("fileOwner", reason),
            None => {}
        }
        match group {
            Some(Ok(_)) if found.gid.is_some() && !of_pod => {
                self.findings.parameter_error("fileGroup", "the group is given in fileOwner already");
            }
            Some(Ok(gid)) => found.gid = Some(gid),
            Some(Err(reason)) => self.findings.parameter_error("fileGroup", reason),
            None => {}
        }
        (found != FileOwner::default()).then_some(found)
    }

    /// The pod as the kubelet names it. A manifest that is checked offline has none: a star stands for any.
    fn pod(&self, defaults: &Defaults) -> PodContext {
        let field = |name: &str| {
            let value = self.attributes.get(&format!("csi.storage.k8s.io/{name}"));
            value.cloned().unwrap_or_else(|| "*".to_owned())
        };
        PodContext {
            name: field("pod.name"),
            namespace: field("pod.namespace"),
            uid: field("pod.uid"),
            service_account: field("serviceAccount.name"),
            node: defaults.node.clone(),
        }
    }

    /// Mode of objects without one of their own.
    fn mode(&mut self) -> Option<FileMode> {
        let text = self.attributes.get("filePermission").filter(|value| !value.is_empty())?;
        match values::mode(text) {
            Ok((mode, warning)) => {
                if let Some(warning) = warning {
                    self.findings
                        .warn("filePermission", None, || format!("parameter filePermission: {warning}"));
                }
                mode
            }
            Err(reason) => {
                self.findings.parameter_error("filePermission", reason);
                None
            }
        }
    }

    fn objects(&mut self, owner: Option<FileOwner>, pod: &PodContext) -> Option<Vec<Object>> {
        if let Some(node) = self.objects {
            return self.objects_of(node, owner, pod);
        }
        let text = self.attributes.get("objects").map(String::as_str).unwrap_or_default();
        if text.len() > MAX_OBJECTS_TEXT {
            let reason = format!("has {} bytes, more than {MAX_OBJECTS_TEXT}", text.len());
            self.findings.error(SpecError::Objects { line: None, reason });
            return None;
        }
        match Node::parse(text) {
            Ok(node) => self.objects_of(&node, owner, pod),
            Err(error) => {
                self.findings.error(SpecError::Objects { line: error.line, reason: error.message });
                None
            }
        }
    }

    fn objects_of(&mut self, node: &Node, owner: Option<FileOwner>, pod: &PodContext) -> Option<Vec<Object>> {
        let items = match &node.kind {
            Kind::Null => &[][..],
            Kind::List(items) => items,
            _ => {
                let reason = if node.get("array").is_some() {
                    "is in the form of vault-csi-provider's first releases, which nothing reads any more: \
                     remove the line \"array:\" and write each entry as a mapping in a list"
                        .to_owned()
                } else {
                    format!("is {}, expected a list of objects", node.describe())
                };
                self.findings.error(SpecError::Objects { line: Some(node.line), reason });
                return None;
            }
        };
        if items.is_empty() {
            self.findings.error(SpecError::NoObjects);
        }
        if items.len() > MAX_OBJECTS {
            let reason = format!("has {} entries, more than {MAX_OBJECTS}", items.len());
            self.findings.error(SpecError::Objects { line: None, reason });
            return None;
        }
        let findings = &mut self.findings;
        let entries: Vec<Entry> = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| reader::read(item, index, owner, pod, findings))
            .collect();
        check_names(&entries, findings);
        check_inputs(&entries, findings);
        let generate = generators(&entries, findings);
        let mut objects: Vec<Object> = entries.into_iter().map(|entry| entry.object).collect();
        let required = required(&objects);
        if required.len() > MAX_OBJECTS {
            let reason = format!("needs {} requests, more than {MAX_OBJECTS}", required.len());
            self.findings.error(SpecError::Objects { line: None, reason });
            return None;
        }
        for request in objects.iter_mut().flat_map(Object::requests_mut) {
            let id = request.id();
            request.optional = required.get(&id) == Some(&false);
            request.generate = generate.get(&id).cloned().unwrap_or_default();
        }
        Some(objects)
    }
}

/// The distinct requests, and whether an object cannot do without its answer.
fn required(objects: &[Object]) -> BTreeMap<DependencyId, bool> {
    let mut required = BTreeMap::new();
    for object in objects {
        for request in object.requests() {
            *required.entry(request.id()).or_insert(false) |= object.absence == Absence::Fails;
        }
    }
    required
}

/// What is made, by request: one write for all keys of a secret.
fn generators(
    entries: &[Entry],
    findings: &mut Findings,
) -> BTreeMap<DependencyId, BTreeMap<String, Generator>> {
    let mut all: BTreeMap<DependencyId, BTreeMap<String, Generator>> = BTreeMap::new();
    for entry in entries {
        for request in entry.object.requests() {
            for (key, generator) in &request.generate {
                let keys = all.entry(request.id()).or_default();
                let other = keys.insert(key.clone(), generator.clone());
                if other.is_some_and(|other| other != *generator) {
                    let reason = format!("makes {} of the same secret otherwise above", values::quote(key));
                    findings.error(object_error(entry, "generate", reason));
                }
            }
        }
    }
    all
}

fn object_error(entry: &Entry, field: &'static str, reason: String) -> SpecError {
    let object = values::quote(entry.object.name()).to_string();
    SpecError::Object { object, field, line: entry.line, column: None, reason }
}

/// Files and folders: no two of one name, and no file where another needs a folder.
fn check_names(entries: &[Entry], findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    let files = || entries.iter().filter(|entry| !entry.object.is_input());
    let repeated: Vec<&Entry> = files().filter(|entry| !seen.insert(entry.object.name())).collect();
    if let Some(first) = repeated.first() {
        let names = repeated.iter().map(|entry| entry.object.name().to_owned()).collect();
        findings.error(SpecError::DuplicateNames { names, line: first.line });
    }
    let plain: BTreeSet<&str> =
        files().filter(|entry| !entry.object.is_folder()).map(|entry| entry.object.name()).collect();
    for entry in files() {
        let name = entry.object.name();
        let mut parents = name.match_indices('/').map(|(end, _)| &name[..end]);
        if let Some(file) = parents.find(|parent| plain.contains(parent)) {
            let reason =
                format!("{} is the file of another object and cannot be a folder too", values::quote(file));
            findings.error(object_error(entry, "objectName", reason));
        }
    }
    let mut written: BTreeMap<String, &str> = plain.iter().map(|&name| (name.to_owned(), name)).collect();
    for entry in files() {
        let name = entry.object.name();
        for file in certain_files(&entry.object) {
            if let Some(other) = written.insert(file.clone(), name) {
                let reason =
                    format!("{} is the file of object {} too", values::quote(&file), values::quote(other));
                findings.error(object_error(entry, "extract", reason));
            }
        }
    }
    // An entry that did not parse may be the file.
    if findings.errors.is_empty() && !entries.is_empty() && files().next().is_none() {
        let reason = "has only entries with \"as\", none of which writes a file".to_owned();
        findings.error(SpecError::Objects { line: None, reason });
    }
}

/// Files of a folder that are known before its secret is read: keys that it takes by their very names.
fn certain_files(object: &Object) -> Vec<String> {
    let Source::Secret { part: Part::Extract(extract), .. } = &object.source else { return Vec::new() };
    let literal = |key: &&String| !key.contains(['*', '?']);
    let keys: BTreeSet<&String> = extract.include.iter().filter(literal).collect();
    if !extract.exclude.is_empty() || !extract.rename.is_empty() {
        return Vec::new();
    }
    let folder = object.file();
    keys.into_iter()
        .map(|key| folder.map_or_else(|| key.clone(), |folder| format!("{folder}/{key}")))
        .collect()
}

/// Inputs: no two of one name, and one for every password that is taken from one.
fn check_inputs(entries: &[Entry], findings: &mut Findings) {
    let mut names = BTreeSet::new();
    for entry in entries {
        if let Output::Input(name) = &entry.object.output
            && !names.insert(name.as_str())
        {
            findings.error(object_error(entry, "as", "is the name of an entry above too".to_owned()));
        }
    }
    for entry in entries {
        if let Source::Secret { part: Part::Keystore { password: Password::Input(name), .. }, .. } =
            &entry.object.source
            && !names.contains(name.as_str())
        {
            let near = values::nearest(name, names.iter().copied());
            let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
            let reason = format!("no entry has \"as: {}\"{hint}", name.escape_debug());
            findings.error(object_error(entry, "passwordFrom", reason));
        }
    }
}
