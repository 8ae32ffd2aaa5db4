//! `leasehold convert`: other people's configuration in, ours out.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use crate::{
    check::{self, Report},
    cli::{ConvertArgs, ConvertPart, ConvertTo},
    convert::{self, Converted, Note, Part, Severity},
};

/// Prints documents, and on standard error what changes its meaning; fails when something cannot be carried.
///
/// # Errors
/// When the output cannot be written.
pub fn run(arguments: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let mut unread = Report::default();
    let texts = check::read(&arguments.files, &mut unread);
    let mut converted = match arguments.to {
        ConvertTo::Class => convert::convert(&texts, &arguments.namespace),
        ConvertTo::Agent => agent(&arguments.files, &texts),
    };
    for finding in unread.findings {
        let note = Note { line: None, severity: Severity::Refused, message: finding.message };
        converted.notes.push((finding.file, note));
    }
    let chosen = |part: Part| {
        arguments.to == ConvertTo::Agent
            || arguments.output.is_empty()
            || arguments.output.iter().any(|it| {
                matches!(
                    (it, part),
                    (ConvertPart::Class, Part::Class)
                        | (ConvertPart::Policy, Part::Policy)
                        | (ConvertPart::Patch, Part::Patch)
                )
            })
    };
    let printed: Vec<&str> = converted
        .documents
        .iter()
        .filter(|document| chosen(document.part))
        .map(|it| it.text.as_str())
        .collect();
    super::print(&printed.join("---\n"))?;
    tell(&converted, printed.len())?;
    Ok(if converted.is_incomplete() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One file as the in-pod agent's.
fn agent(files: &[PathBuf], texts: &[(String, String)]) -> Converted {
    let mut converted = Converted::default();
    let mut refuse = |file: &str, message: String, line| {
        converted.notes.push((file.to_owned(), Note { line, severity: Severity::Refused, message }));
    };
    match texts {
        [(file, text)] => match convert::to_agent(text) {
            Ok(translation) => {
                converted.documents.push(translation.document());
                converted.notes = translation.notes.into_iter().map(|note| (file.clone(), note)).collect();
            }
            Err(convert::ConvertError::Syntax { line, message }) => refuse(file, message, line),
            Err(error) => refuse(file, error.to_string(), None),
        },
        [] => {}
        _ => {
            let first = files.first().map(|file| file.display().to_string()).unwrap_or_default();
            refuse(&first, "--to agent takes one file: each agent has its own".into(), None);
        }
    }
    converted
}

fn tell(converted: &Converted, printed: usize) -> io::Result<()> {
    let mut out = io::stderr().lock();
    for (file, note) in &converted.notes {
        let line = note.line.map(|line| format!(":{line}")).unwrap_or_default();
        writeln!(out, "{file}{line}: {note}")?;
    }
    let count = |severity| converted.notes.iter().filter(|(_, note)| note.severity == severity).count();
    writeln!(
        out,
        "{printed} document(s) made; {} refused, {} changed, {} ignored; {} other document(s) skipped",
        count(Severity::Refused),
        count(Severity::Changed),
        count(Severity::Ignored),
        converted.skipped
    )
}
