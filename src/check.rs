//! Offline checks of manifests: every problem of every SecretProviderClass, with its line, and the smallest
//! policy under which they work. Pure but for reading the files it is given; talks to nobody.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use crate::{
    config::AUTH_MOUNT,
    policy::Policy,
    spec::{
        FileMode, PodIdentity, ProviderName, TlsSpec, VolumeSpec,
        parameters::{self, Collected, Defaults},
    },
};

pub(crate) use suggest::literal;
pub use suggest::suggest_policy;

mod manifest;
mod suggest;
#[cfg(test)]
mod tests;

use manifest::Class;

/// Stands for the agent's own address where it is not known; never connected to.
pub const UNKNOWN_ADDRESS: &str = "https://agent.invalid";
/// What kubectl applies a manifest to that names no namespace.
pub const DEFAULT_NAMESPACE: &str = "default";
/// What a pod runs as that names no ServiceAccount.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// Largest file read; a folder of manifests has none that an API server would take beyond 1.5 MiB.
const MAX_FILE: u64 = 16 << 20;

/// What classes are examined by.
#[derive(Clone, Debug)]
pub struct Judge {
    /// What parameters fall back to.
    pub defaults: BTreeMap<ProviderName, Defaults>,
    /// What a policy refuses is an error, where there is one.
    pub policy: Option<Policy>,
    /// Of manifests that name none.
    pub namespace: String,
    /// Whom the policy is asked for.
    pub service_account: String,
}

impl Default for Judge {
    /// Knows of no agent and no policy.
    fn default() -> Self {
        let defaults = Defaults {
            address: Some(UNKNOWN_ADDRESS.into()),
            namespace: String::new(),
            auth_mount: AUTH_MOUNT.into(),
            node: String::new(),
            tls: TlsSpec::default(),
        };
        let all = [ProviderName::Leasehold, ProviderName::Vault, ProviderName::Openbao];
        Self {
            defaults: all.into_iter().map(|name| (name, defaults.clone())).collect(),
            policy: None,
            namespace: DEFAULT_NAMESPACE.into(),
            service_account: DEFAULT_SERVICE_ACCOUNT.into(),
        }
    }
}

/// A SecretProviderClass of one of our provider names, as a manifest has it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// `metadata.name`; empty when the manifest names none.
    pub name: String,
    /// `metadata.namespace`, when the manifest names one.
    pub namespace: Option<String>,
    /// `spec.provider`.
    pub provider: ProviderName,
    /// What it asks for, unless it has errors.
    pub spec: Option<VolumeSpec>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A pod that mounts it does not start.
    Error,
    /// It mounts, and something in it does nothing.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File as it was named.
    pub file: String,
    /// Line in the file, from 1.
    pub line: u64,
    /// Column on that line, from 1, where it is about a character.
    pub column: Option<u64>,
    /// How bad.
    pub severity: Severity,
    /// One line.
    pub message: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Every problem, in order of files and lines.
    pub findings: Vec<Finding>,
    /// SecretProviderClasses of our provider names.
    pub classes: usize,
    /// Documents of other kinds, and SecretProviderClasses of other providers.
    pub skipped: usize,
}

impl Report {
    /// Whether a finding is an error: the caller's exit status.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// Writes `file:line: error|warning: message` lines, with `:column` behind the line where there is one, and
    /// a summary.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        for Finding { file, line, column, severity, message } in &self.findings {
            let severity = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            let column = column.map(|column| format!(":{column}")).unwrap_or_default();
            writeln!(out, "{file}:{line}{column}: {severity}: {message}")?;
        }
        writeln!(
            out,
            "{} SecretProviderClass(es) checked, {} error(s), {} warning(s), {} other document(s) skipped",
            self.classes,
            self.count(Severity::Error),
            self.count(Severity::Warning),
            self.skipped
        )
    }

    fn add(&mut self, file: &str, line: u64, severity: Severity, message: impl ToString) {
        self.add_at(file, (line, None), severity, message);
    }

    fn add_at(
        &mut self,
        file: &str,
        (line, column): (u64, Option<u64>),
        severity: Severity,
        message: impl ToString,
    ) {
        let (file, message) = (file.to_owned(), message.to_string());
        self.findings.push(Finding { file, line, column, severity, message });
    }
}

/// Checks files, folders (recursively, `.yaml`, `.yml` and `.json`) and standard input (`-`). A file that
/// cannot be read is a finding.
pub fn check_files(paths: &[PathBuf], judge: &Judge) -> Report {
    let mut report = Report::default();
    let texts = read(paths, &mut report);
    check_into(&texts, judge, &mut report);
    report
}

/// Checks texts under the names given, knowing of no agent and no policy.
pub fn check_texts(texts: &[(String, String)]) -> Report {
    let mut report = Report::default();
    check_into(texts, &Judge::default(), &mut report);
    report
}

/// The classes of one file (`-` is standard input), and what is wrong with them.
pub fn candidates(path: &Path, judge: &Judge) -> (Vec<Candidate>, Report) {
    let mut report = Report::default();
    let texts = read(&[path.to_owned()], &mut report);
    let candidates = check_into(&texts, judge, &mut report);
    (candidates, report)
}

fn check_into(texts: &[(String, String)], judge: &Judge, report: &mut Report) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (file, text) in texts {
        for class in manifest::classes(file, text, report) {
            let spec = examine(&class, judge, report);
            let Class { name, namespace, provider, .. } = class;
            candidates.push(Candidate { name, namespace, provider, spec });
        }
    }
    report.findings.sort_by(|a, b| (&a.file, a.line, a.severity).cmp(&(&b.file, b.line, b.severity)));
    candidates
}

/// Adds what is wrong with a class to the report, and gives its spec if it has one.
fn examine(class: &Class, judge: &Judge, report: &mut Report) -> Option<VolumeSpec> {
    report.classes += 1;
    let defaults = judge.defaults.get(&class.provider)?;
    let Collected { spec, errors, warnings } =
        parameters::collect(class.provider, &class.parameters, FileMode::DEFAULT, defaults);
    for error in errors {
        let place = class.place_of(error.parameter(), error.line(), error.column());
        report.add_at(&class.file, place, Severity::Error, error);
    }
    for warning in warnings {
        let place = class.place_of(Some(&warning.parameter), warning.line, None);
        report.add_at(&class.file, place, Severity::Warning, warning);
    }
    if let (Some(policy), Some(spec)) = (&judge.policy, &spec) {
        let pod = PodIdentity {
            namespace: class.namespace.clone().unwrap_or_else(|| judge.namespace.clone()),
            name: String::new(),
            uid: String::new(),
            service_account: judge.service_account.clone(),
        };
        if let Err(refusal) = policy.check(class.provider, &pod, spec) {
            let of = if class.name.is_empty() { String::new() } else { format!(" {}", class.name) };
            let message = format!(
                "the policy refuses SecretProviderClass{of} in namespace {} for ServiceAccount {}: {refusal}",
                pod.namespace, pod.service_account
            );
            report.add(&class.file, class.line, Severity::Error, message);
        }
    }
    spec
}

pub(crate) fn read(paths: &[PathBuf], report: &mut Report) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for path in paths {
        read_one(path, true, &mut texts, report);
    }
    texts
}

// Links are followed when named, never when found: a loop of links would have no end.
fn read_one(path: &Path, named: bool, texts: &mut Vec<(String, String)>, report: &mut Report) {
    let shown = path.display().to_string();
    if named && shown == "-" {
        match bounded(io::stdin()) {
            Ok(text) => texts.push((shown, text)),
            Err(error) => report.add(&shown, 1, Severity::Error, format!("cannot read it: {error}")),
        }
        return;
    }
    let kind = if named { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let outcome = kind.and_then(|kind| {
        if kind.is_dir() {
            let mut entries =
                fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
            entries.sort();
            entries.iter().for_each(|entry| read_one(entry, false, texts, report));
        } else if named || (kind.is_file() && is_manifest(path)) {
            texts.push((shown.clone(), bounded(fs::File::open(path)?)?));
        }
        Ok(())
    });
    if let Err(error) = outcome {
        report.add(&shown, 1, Severity::Error, format!("cannot read it: {error}"));
    }
}

fn bounded(file: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it has more than 16 MiB"));
    }
    Ok(text)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}
