//! The in-pod agent's file: the words of a SecretProviderClass, plus how to log in, where to write, and whom
//! to tell. Pure: template files are read by the caller.
//!
//! Strict, where a SecretProviderClass is lax: nobody has such files yet that would break, and a key that is
//! misspelt would leave a pod without what it was meant to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};

use super::{
    ApiPath, FileMode, LoginMethod, LoginSpec, PodIdentity, ProviderName, VolumeSpec,
    object::reader::KNOWN as OBJECT_FIELDS,
    origin::Origin,
    parameters::{self, Defaults},
    values,
    yaml::{Kind, Node},
};
use fields::{Fields, problem};
use merge::Merged;
pub use notify::{Http, OnChange, SignalTo};

mod fields;
mod merge;
mod notify;
#[cfg(test)]
mod tests;

/// Parameters that are the SecretProviderClass's own.
const PARAMETERS: [&str; 12] = [
    "vaultAddress",
    "vaultNamespace",
    "vaultCACertPath",
    "vaultCADirectory",
    "vaultTLSServerName",
    "vaultTLSClientCertPath",
    "vaultTLSClientKeyPath",
    "vaultSkipTLSVerify",
    "vaultAuthMountPath",
    "roleName",
    "audience",
    "fileGroup",
];
const OWN: [&str; 8] = [
    "auth",
    "folders",
    "exec",
    "stateDir",
    "healthAddress",
    "revokeOnShutdown",
    "revokeGrace",
    "exitAfterRender",
];
const AUTH: [&str; 7] = [
    "method",
    "tokenPath",
    "roleIdPath",
    "secretIdPath",
    "secretIdResponseWrapped",
    "secretIdWrappingPath",
    "removeSecretIdFileAfterReading",
];
const FOLDER: [&str; 5] = ["path", "objects", "diskBacked", "fileMode", "onChange"];
const EXEC: [&str; 6] = ["command", "env", "envTemplates", "restartOnChange", "restartSignal", "stopTimeout"];
const TEMPLATE: [&str; 3] = ["name", "template", "templateFile"];

/// Mode of files where nothing else is said: for the agent's user and the pod's fsGroup, which owns the
/// folder and, by its setgid bit, the files in it.
pub const FILE_MODE: FileMode = FileMode::READABLE_BY_GROUP;

/// Where a pod's manifest usually projects its token for Vault.
pub const TOKEN_PATH: &str = "/var/run/secrets/vault/token";

/// How long a child may take to end after the restart signal: Vault Agent's own default.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line of the file, from 1, when known.
    pub line: Option<u64>,
    /// What, and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// A method as the file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum AuthMethod {
    Kubernetes,
    Jwt,
    Token,
    AppRole,
    Cert,
}

impl AuthMethod {
    /// As the file spells it, and as the server names the mount of its kind by default.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Jwt => "jwt",
            Self::Token => "token",
            Self::AppRole => "approle",
            Self::Cert => "cert",
        }
    }

    const fn login(self) -> LoginMethod {
        match self {
            Self::Kubernetes | Self::Jwt => LoginMethod::ServiceAccount,
            Self::Token => LoginMethod::Token,
            Self::AppRole => LoginMethod::AppRole,
            Self::Cert => LoginMethod::Certificate,
        }
    }
}

/// Where the login's credential is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// How to log in.
    pub method: AuthMethod,
    /// The projected token, or the file with a Vault token.
    pub token: PathBuf,
    /// With AppRole.
    pub role_id: Option<PathBuf>,
    /// With AppRole, where the role wants one.
    pub secret_id: Option<PathBuf>,
    /// Whether the secret id's file holds a wrapping token.
    pub wrapped: bool,
    /// Path that the wrapping token must have been made at: anything else was swapped on its way.
    pub wrapping_path: Option<String>,
    /// Whether the secret id's file is removed once read, as Vault Agent does.
    pub remove_secret_id: bool,
}

/// One folder: one volume, one atomic swap.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub spec: VolumeSpec,
    /// Whether it may be on a disk.
    pub disk_backed: bool,
    /// Whom to tell of any change in it.
    pub on_change: OnChange,
    /// Whom to tell of a change of one object.
    pub objects_on_change: BTreeMap<String, OnChange>,
}

/// What happens to the supervised process when its environment changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It is stopped and started anew.
    Always,
    /// It keeps the environment that it was started with.
    Never,
}

/// A process to supervise.
#[derive(Clone, Debug)]
pub struct Exec {
    /// Program and arguments; empty where the command line gives them.
    pub command: Vec<String>,
    /// Variables: an object each, or the keys of an object in the form `env`.
    pub environment: Option<VolumeSpec>,
    /// Objects whose content is a map of variables.
    pub maps: BTreeSet<String>,
    /// On a change of the environment.
    pub restart: Restart,
    /// By which it is asked to end then, or told of the change.
    pub restart_signal: nix::sys::signal::Signal,
    /// Until SIGKILL.
    pub stop_timeout: Duration,
}

impl Exec {
    /// A process whose environment is not ours to make.
    pub fn plain() -> Self {
        Self {
            command: Vec::new(),
            environment: None,
            maps: BTreeSet::new(),
            restart: Restart::Always,
            restart_signal: nix::sys::signal::Signal::SIGTERM,
            stop_timeout: STOP_TIMEOUT,
        }
    }
}

/// A file of the in-pod agent, understood.
#[derive(Clone, Debug)]
pub struct AgentFile {
    /// Where the login's credential is.
    pub auth: Auth,
    /// Folders to keep true; may be empty with `exec`.
    pub folders: Vec<Folder>,
    /// A process to supervise.
    pub exec: Option<Exec>,
    /// An emptyDir of the agent's own.
    pub state_dir: Option<PathBuf>,
    /// Where /livez, /readyz and /metrics are, if anywhere.
    pub health_address: Option<String>,
    /// Whether sessions are revoked at the end.
    pub revoke_on_shutdown: Option<bool>,
    /// How long the end waits before it revokes.
    pub revoke_grace: Duration,
    /// Render once and end.
    pub exit_after_render: bool,
    /// Strange, but no reason to refuse.
    pub warnings: Vec<String>,
}

/// What a file falls back to, and whose it is.
#[allow(missing_debug_implementations, reason = "holds a function")]
pub struct Surroundings<'a> {
    /// Flags and environment.
    pub defaults: &'a Defaults,
    /// The pod, for templates.
    pub pod: &'a PodIdentity,
    /// Reads a template file.
    pub read: &'a dyn Fn(&str) -> Result<String, String>,
}

/// Reads one file, or several of one folder that are one together: of each key but `folders` there is one.
///
/// # Errors
/// Everything that is wrong.
pub fn parse(texts: &[(String, String)], around: &Surroundings<'_>) -> Result<AgentFile, Vec<Problem>> {
    let (root, merged) = Merged::read(texts)?;
    let mut reader = Reader {
        around,
        merged,
        file: None,
        problems: Vec::new(),
        warnings: Vec::new(),
        attributes: BTreeMap::new(),
    };
    let file = reader.file(&root);
    match file {
        Some(file) if reader.problems.is_empty() => Ok(AgentFile { warnings: reader.warnings, ..file }),
        _ => Err(reader.problems),
    }
}

struct Reader<'a> {
    around: &'a Surroundings<'a>,
    merged: Merged,
    /// The one that is being read, where there are several.
    file: Option<String>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    attributes: BTreeMap<String, String>,
}

impl Reader<'_> {
    fn file(&mut self, root: &Node) -> Option<AgentFile> {
        let known: Vec<&str> = PARAMETERS.iter().chain(&OWN).copied().collect();
        let mut top = Fields::new(root, &known, &mut self.problems);
        for name in PARAMETERS {
            if let Some(text) = top.text(name) {
                self.attributes.insert(name.to_owned(), text);
            }
        }
        let state_dir = top.path("stateDir");
        let health_address = top.text("healthAddress");
        let revoke_on_shutdown = top.boolean("revokeOnShutdown");
        let revoke_grace = top.duration("revokeGrace").unwrap_or_default();
        let exit_after_render = top.boolean("exitAfterRender").unwrap_or(false);
        let file = self.merged.file_of("auth").cloned();
        let auth = self.of_file(file, |it| it.auth(root.get("auth")))?;
        self.pod();
        let folders: Vec<Folder> = match root.get("folders") {
            None => Vec::new(),
            Some(Node { kind: Kind::List(items), .. }) => {
                let files = std::mem::take(&mut self.merged.folders).into_iter().map(Some);
                let files = files.chain(std::iter::repeat(None));
                let read = |(item, file)| self.of_file(file, |it| it.folder(item, &auth));
                items.iter().zip(files).filter_map(read).collect()
            }
            Some(other) => {
                let reason = format!("folders is {}, expected a list", other.describe());
                self.problems.push(problem(other, reason));
                Vec::new()
            }
        };
        let file = self.merged.file_of("exec").cloned();
        let exec = self.of_file(file, |it| root.get("exec").and_then(|node| it.exec(node, &auth)));
        let mut paths = BTreeSet::new();
        for folder in &folders {
            if !paths.insert(&folder.path) {
                let reason = format!("folder {} is given twice", folder.path.display());
                self.problems.push(Problem { line: None, reason });
            }
        }
        Some(AgentFile {
            auth,
            folders,
            exec,
            state_dir,
            health_address,
            revoke_on_shutdown,
            revoke_grace,
            exit_after_render,
            warnings: Vec::new(),
        })
    }

    /// Reads a part that is of one file: where there are several, what is wrong on a line names the file.
    fn of_file<T>(&mut self, file: Option<String>, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.problems.len();
        self.file = file;
        let part = read(self);
        if let Some(file) = self.file.take() {
            for problem in self.problems[before..].iter_mut().filter(|it| it.line.is_some()) {
                problem.reason = format!("{file}: {}", problem.reason);
            }
        }
        part
    }

    /// As the kubelet would name it.
    fn pod(&mut self) {
        let pod = self.around.pod;
        for (name, value) in [
            ("pod.name", &pod.name),
            ("pod.namespace", &pod.namespace),
            ("pod.uid", &pod.uid),
            ("serviceAccount.name", &pod.service_account),
        ] {
            self.attributes.insert(format!("csi.storage.k8s.io/{name}"), value.clone());
        }
    }

    fn auth(&mut self, node: Option<&Node>) -> Option<Auth> {
        let empty = Node { line: 1, kind: Kind::Map(Vec::new()) };
        let node = node.unwrap_or(&empty);
        let mut fields = Fields::new(node, &AUTH, &mut self.problems);
        let method = match fields.text("method").as_deref() {
            None | Some("kubernetes") => AuthMethod::Kubernetes,
            Some("jwt") => AuthMethod::Jwt,
            Some("token" | "token_file") => AuthMethod::Token,
            Some("approle") => AuthMethod::AppRole,
            Some("cert") => AuthMethod::Cert,
            Some(other) => {
                let near = values::nearest(other, ["kubernetes", "jwt", "token", "approle", "cert"]);
                let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                let reason = format!(
                    "auth.method {} is none of kubernetes, jwt, token, approle, cert{hint}",
                    values::quote(other)
                );
                self.problems.push(problem(node, reason));
                return None;
            }
        };
        let token = fields.path("tokenPath");
        let role_id = fields.path("roleIdPath");
        let secret_id = fields.path("secretIdPath");
        let wrapping_path = fields.text("secretIdWrappingPath");
        let wrapped = fields.boolean("secretIdResponseWrapped").unwrap_or(wrapping_path.is_some());
        let remove_secret_id = fields.boolean("removeSecretIdFileAfterReading");
        if method == AuthMethod::AppRole && role_id.is_none() {
            self.problems
                .push(problem(node, "auth.roleIdPath is missing: approle needs the role's id".to_owned()));
        }
        if method == AuthMethod::Token && token.is_none() {
            self.problems
                .push(problem(node, "auth.tokenPath is missing: the file with the Vault token".to_owned()));
        }
        if method != AuthMethod::AppRole && (role_id.is_some() || secret_id.is_some()) {
            let reason =
                format!("auth.roleIdPath and auth.secretIdPath are of approle, not of {}", method.as_str());
            self.problems.push(problem(node, reason));
        }
        Some(Auth {
            method,
            token: token.unwrap_or_else(|| TOKEN_PATH.into()),
            role_id,
            secret_id,
            wrapped,
            wrapping_path,
            // A wrapped one is good for once and of no use to anybody afterwards; others may be mounted anew.
            remove_secret_id: remove_secret_id.unwrap_or(wrapped),
        })
    }

    fn folder(&mut self, node: &Node, auth: &Auth) -> Option<Folder> {
        let mut fields = Fields::new(node, &FOLDER, &mut self.problems);
        let path = fields.path("path");
        let disk_backed = fields.boolean("diskBacked").unwrap_or(false);
        let mode = fields.mode("fileMode");
        if path.is_none() && node.get("path").is_none() {
            self.problems.push(problem(node, "a folder needs the field \"path\"".to_owned()));
        }
        let on_change = notify::read(node.get("onChange"), &mut self.problems);
        let (objects, objects_on_change) = self.objects(node, "objects")?;
        let spec = self.spec(&objects, mode.unwrap_or(FILE_MODE), auth)?;
        Some(Folder { path: path?, spec, disk_backed, on_change, objects_on_change })
    }

    /// The list at `field`, template files read and what is ours taken out.
    fn objects(&mut self, node: &Node, field: &str) -> Option<(Node, BTreeMap<String, OnChange>)> {
        let value = match node.get(field) {
            None => {
                let reason = format!("the field {field:?} is missing: what to write");
                self.problems.push(problem(node, reason));
                return None;
            }
            Some(node @ Node { kind: Kind::Text(text, _), .. }) => self.parsed(text, node)?,
            Some(other) => other.clone(),
        };
        let Kind::List(items) = value.kind else {
            let reason = format!("{field} is {}, expected a list of objects", value.describe());
            self.problems.push(Problem { line: Some(value.line), reason });
            return None;
        };
        let mut told = BTreeMap::new();
        let items = items.into_iter().map(|item| self.object(item, &mut told)).collect();
        Some((Node { line: value.line, kind: Kind::List(items) }, told))
    }

    /// The text of `around`, which stands in the file.
    fn parsed(&mut self, text: &str, around: &Node) -> Option<Node> {
        match Node::parse(text) {
            Ok(mut node) => {
                node.embed(around);
                Some(node)
            }
            Err(error) => {
                let line = error.line.and_then(|line| around.origin().line(line)).or(Some(around.line));
                self.problems.push(Problem { line, reason: error.message });
                None
            }
        }
    }

    fn object(&mut self, item: Node, told: &mut BTreeMap<String, OnChange>) -> Node {
        let Kind::Map(entries) = item.kind else { return item };
        let name = entries.iter().find(|(key, _)| key.as_text() == Some("objectName"));
        let name = name.and_then(|(_, value)| value.as_text()).unwrap_or_default().to_owned();
        let mut kept = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            match key.as_text() {
                Some("onChange") => {
                    told.insert(name.clone(), notify::read(Some(&value), &mut self.problems));
                }
                Some("templateFile") => {
                    if let Some(template) = self.template_file(&value) {
                        kept.push((Node { line: key.line, kind: Kind::text("template") }, template));
                    }
                }
                Some(field) if !OBJECT_FIELDS.contains(&field) => {
                    let ours = OBJECT_FIELDS.iter().copied().chain(["onChange", "templateFile"]);
                    self.problems.push(fields::unknown(&key, ours));
                }
                _ => kept.push((key, value)),
            }
        }
        Node { line: item.line, kind: Kind::Map(kept) }
    }

    fn template_file(&mut self, value: &Node) -> Option<Node> {
        let path = value.as_text().unwrap_or_default();
        match (self.around.read)(path) {
            Ok(text) => {
                let origin = Origin::File(path.to_owned());
                Some(Node { line: value.line, kind: Kind::Text(text, origin) })
            }
            Err(reason) => {
                let reason = format!("templateFile {}: {reason}", values::quote(path));
                self.problems.push(problem(value, reason));
                None
            }
        }
    }

    fn spec(&mut self, objects: &Node, mode: FileMode, auth: &Auth) -> Option<VolumeSpec> {
        let mut attributes = self.attributes.clone();
        let role = attributes.get("roleName").cloned().unwrap_or_default();
        if auth.method.login() != LoginMethod::ServiceAccount && role.is_empty() {
            // Its absence is an error of the two other methods only.
            attributes.insert("roleName".to_owned(), "-".to_owned());
        }
        let defaults =
            Defaults { auth_mount: auth.method.as_str().to_owned(), ..self.around.defaults.clone() };
        let collected =
            parameters::collect_around(ProviderName::Leasehold, &attributes, objects, mode, &defaults);
        self.warnings.extend(collected.warnings.iter().map(ToString::to_string));
        for error in collected.errors {
            // The object's own message has its line.
            let reason = in_our_words(&error.to_string());
            let reason = match &self.file {
                Some(file) if error.line().is_some() => format!("{file}: {reason}"),
                _ => reason,
            };
            let found = Problem { line: None, reason };
            if !self.problems.contains(&found) {
                self.problems.push(found);
            }
        }
        let mut spec = collected.spec?;
        spec.login = LoginSpec { method: auth.method.login(), role, ..spec.login };
        if let Some(Ok(stripped)) = spec.login.mount.as_str().strip_prefix("auth/").map(ApiPath::parse_mount)
        {
            spec.login.mount = stripped;
        }
        if auth.method == AuthMethod::Cert && spec.connection.tls.client_cert.is_none() {
            let reason = "auth.method cert needs vaultTLSClientCertPath and vaultTLSClientKeyPath".to_owned();
            self.problems.push(Problem { line: None, reason });
        }
        Some(spec)
    }

    fn exec(&mut self, node: &Node, auth: &Auth) -> Option<Exec> {
        let mut fields = Fields::new(node, &EXEC, &mut self.problems);
        let command = fields.list("command").unwrap_or_default();
        let restart = match fields.text("restartOnChange").as_deref() {
            None | Some("always") => Restart::Always,
            Some("never") => Restart::Never,
            Some(other) => {
                let reason = format!("restartOnChange is {}, expected always or never", values::quote(other));
                self.problems.push(problem(node, reason));
                Restart::Always
            }
        };
        let mut fields = Fields::new(node, &EXEC, &mut self.problems);
        let restart_signal = fields.signal("restartSignal").unwrap_or(nix::sys::signal::Signal::SIGTERM);
        let stop_timeout = fields.duration("stopTimeout").unwrap_or(STOP_TIMEOUT);
        let mut maps = BTreeSet::new();
        let mut all = Vec::new();
        if node.get("env").is_some() {
            let (objects, _) = self.objects(node, "env")?;
            if let Kind::List(items) = objects.kind {
                all.extend(items.into_iter().map(|item| as_map(item, &mut maps)));
            }
        }
        match node.get("envTemplates") {
            None => {}
            Some(Node { kind: Kind::List(items), .. }) => {
                all.extend(items.iter().filter_map(|item| self.env_template(item)));
            }
            Some(other) => {
                let reason = format!("envTemplates is {}, expected a list", other.describe());
                self.problems.push(problem(other, reason));
            }
        }
        let environment = if all.is_empty() {
            None
        } else {
            let objects = Node { line: node.line, kind: Kind::List(all) };
            Some(self.spec(&objects, FileMode::PRIVATE, auth)?)
        };
        if let Some(spec) = &environment {
            for object in spec.objects.iter().filter(|object| object.file().is_some()) {
                let name = object.name();
                if !maps.contains(name) && !is_variable(name) {
                    let reason = format!(
                        "exec.env: {} cannot be a variable's name: letters, digits and _, not first a digit",
                        values::quote(name)
                    );
                    self.problems.push(problem(node, reason));
                }
            }
        }
        Some(Exec { command, environment, maps, restart, restart_signal, stop_timeout })
    }

    fn env_template(&mut self, item: &Node) -> Option<Node> {
        let mut fields = Fields::new(item, &TEMPLATE, &mut self.problems);
        let name = fields.text("name");
        let text = |text: &str| Node { line: item.line, kind: Kind::text(text) };
        let template = match (item.get("template"), item.get("templateFile")) {
            (Some(template), None) => template.clone(),
            (None, Some(file)) => self.template_file(file)?,
            _ => {
                let reason =
                    "an entry of envTemplates needs either \"template\" or \"templateFile\"".to_owned();
                self.problems.push(problem(item, reason));
                return None;
            }
        };
        let Some(name) = name else {
            self.problems.push(problem(item, "an entry of envTemplates needs a \"name\"".to_owned()));
            return None;
        };
        let entries = vec![(text("objectName"), text(&name)), (text("template"), template)];
        Some(Node { line: item.line, kind: Kind::Map(entries) })
    }
}

/// An object in the form `env` is rendered as a JSON map: nothing is quoted that would have to be read back.
fn as_map(item: Node, maps: &mut BTreeSet<String>) -> Node {
    if item.get("format").and_then(Node::as_text) != Some("env") {
        return item;
    }
    maps.extend(item.get("objectName").and_then(Node::as_text).map(str::to_owned));
    let Kind::Map(entries) = item.kind else { return item };
    let json = |value: Node| Node { line: value.line, kind: Kind::text("json") };
    let entries = entries
        .into_iter()
        .map(|(key, value)| if key.as_text() == Some("format") { (key, json(value)) } else { (key, value) });
    Node { line: item.line, kind: Kind::Map(entries.collect()) }
}

/// Whether a shell could say the name.
pub fn is_variable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn in_our_words(text: &str) -> String {
    text.replace(" in SecretProviderClass definition", ", the role of the auth mount to log in as")
        .replace("in the SecretProviderClass, or the agent's own address", "or the variable VAULT_ADDR")
        .replace("no secrets configured - the provider will not read any secret material", "objects is empty")
        .replace("within a SecretProviderClass", "within a folder")
}
