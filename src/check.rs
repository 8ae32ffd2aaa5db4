//! Offline checks of manifests: every problem of every SecretProviderClass, with its line, and the smallest
//! policy under which they work. Pure but for reading the files it is given; talks to nobody.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::spec::{
    FileMode, TlsSpec, VolumeSpec,
    parameters::{self, Collected, Defaults},
};

pub use suggest::suggest_policy;

mod manifest;
mod suggest;
#[cfg(test)]
mod tests;

use manifest::Class;

/// Stands for the agent's own address where it is not known; never connected to.
const UNKNOWN_ADDRESS: &str = "https://agent.invalid";

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

    /// Writes `file:line: error|warning: message` lines and a summary.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        for Finding { file, line, severity, message } in &self.findings {
            let severity = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(out, "{file}:{line}: {severity}: {message}")?;
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
        self.findings.push(Finding { file: file.to_owned(), line, severity, message: message.to_string() });
    }
}

/// Checks files and folders (recursively, `.yaml`, `.yml` and `.json`), writes the report to `out` and says
/// whether all is well.
///
/// # Errors
/// Those of `out`. A file that cannot be read is a finding.
pub fn run(paths: &[PathBuf], out: &mut dyn io::Write) -> io::Result<bool> {
    let report = check_files(paths);
    report.write(out)?;
    Ok(!report.has_errors())
}

/// Checks files and folders; see [`run`].
pub fn check_files(paths: &[PathBuf]) -> Report {
    let mut report = Report::default();
    let texts = read(paths, &mut report);
    check_into(&texts, &mut report);
    report
}

/// Checks texts under the names given.
pub fn check_texts(texts: &[(String, String)]) -> Report {
    let mut report = Report::default();
    check_into(texts, &mut report);
    report
}

fn check_into(texts: &[(String, String)], report: &mut Report) {
    let defaults = Defaults {
        address: Some(UNKNOWN_ADDRESS.into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    };
    for (file, text) in texts {
        for class in manifest::classes(file, text, report) {
            examine(&class, &defaults, report);
        }
    }
    report.findings.sort_by(|a, b| (&a.file, a.line, a.severity).cmp(&(&b.file, b.line, b.severity)));
}

/// Adds what is wrong with a class to the report, and gives its spec if it has one.
fn examine(class: &Class, defaults: &Defaults, report: &mut Report) -> Option<VolumeSpec> {
    report.classes += 1;
    let Collected { spec, errors, warnings } =
        parameters::collect(class.provider, &class.parameters, FileMode::DEFAULT, defaults);
    for error in errors {
        let line = class.line_of(error.parameter(), error.line());
        report.add(&class.file, line, Severity::Error, error);
    }
    for warning in warnings {
        let line = class.line_of(Some(&warning.parameter), warning.line);
        report.add(&class.file, line, Severity::Warning, warning);
    }
    spec
}

fn read(paths: &[PathBuf], report: &mut Report) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for path in paths {
        read_one(path, true, &mut texts, report);
    }
    texts
}

// Links are followed when named, never when found: a loop of links would have no end.
fn read_one(path: &Path, named: bool, texts: &mut Vec<(String, String)>, report: &mut Report) {
    let shown = path.display().to_string();
    let kind = if named { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let outcome = kind.and_then(|kind| {
        if kind.is_dir() {
            let mut entries =
                fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
            entries.sort();
            entries.iter().for_each(|entry| read_one(entry, false, texts, report));
        } else if named || (kind.is_file() && is_manifest(path)) {
            texts.push((shown.clone(), fs::read_to_string(path)?));
        }
        Ok(())
    });
    if let Err(error) = outcome {
        report.add(&shown, 1, Severity::Error, format!("cannot read it: {error}"));
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}
