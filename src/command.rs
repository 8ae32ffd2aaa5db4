//! The subcommands beside `provider`: each does one thing, prints, and gives an exit status. 0 is well, 1 is
//! what the command is there to tell (errors in a manifest, no agent), 64 a command line that makes no sense.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;

use crate::{
    check::UNKNOWN_ADDRESS,
    cli::TenancyArgs,
    config::{ConfigError, Tenancy},
    startup::BAD_CONFIG,
    telemetry,
};

pub mod check;
pub mod convert;
pub mod doctor;
pub mod ls;
pub mod refresh;
pub mod render;
pub mod version;

/// Writes to standard output. A reader who has seen enough (`| head`) is no failure.
///
/// # Errors
/// When it cannot be written to otherwise.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to standard output"),
    }
}

/// Tells of a configuration that makes no sense.
///
/// # Errors
/// When standard error cannot be written to.
pub fn bad_config(error: &ConfigError) -> anyhow::Result<ExitCode> {
    writeln!(io::stderr(), "leasehold: {}", telemetry::chain(error))?;
    Ok(ExitCode::from(BAD_CONFIG))
}

fn tenancy(flags: TenancyArgs) -> Result<Tenancy, ConfigError> {
    Tenancy::resolve(flags, |name| std::env::var(name).ok())
}

/// The same where nobody is connected to.
fn offline_tenancy(mut flags: TenancyArgs) -> Result<Tenancy, ConfigError> {
    let tenancy = tenancy(flags.clone())?;
    if tenancy.defaults.values().any(|own| own.address.is_some()) {
        return Ok(tenancy);
    }
    // The agent has one that nobody told us, and its policy allows it.
    flags.vault.addr = Some(UNKNOWN_ADDRESS.into());
    self::tenancy(flags)
}

/// Rows under a header, columns aligned; what would break a line or move a terminal's cursor is replaced.
fn table(rows: &[Vec<String>]) -> String {
    let plain: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| cell.replace(char::is_control, "?")).collect()).collect();
    let columns = plain.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        plain.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &plain {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
