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
    FileMode, PodIdentity, VolumeSpec,
    parameters::Defaults,
    yaml::{Kind, Node},
};
pub use auth::{Auth, AuthMethod, TOKEN_PATH};
pub use exec::{Exec, Restart, STOP_TIMEOUT, is_variable};
use fields::{Fields, problem};
use merge::Merged;
pub use notify::{Http, OnChange, SignalTo};

mod auth;
mod exec;
mod fields;
mod merge;
mod notify;
mod objects;
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
const FOLDER: [&str; 5] = ["path", "objects", "diskBacked", "fileMode", "onChange"];
/// Mode of files where nothing else is said: for the agent's user and the pod's fsGroup, which owns the
/// folder and, by its setgid bit, the files in it.
pub const FILE_MODE: FileMode = FileMode::READABLE_BY_GROUP;

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
}
