//! The commands beside `provider`, from outside: exact lines, exit statuses, and what they leave behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "commands/check.rs"]
mod check;
#[path = "commands/control.rs"]
mod control;
#[path = "commands/convert.rs"]
mod convert;
#[path = "commands/render.rs"]
mod render;

use std::process::{Command, Output};

/// The binary without an environment of ours.
fn leasehold(arguments: &[&str]) -> Command {
    let mut command = Command::new(support::leasehold::binary());
    command.args(arguments).env_clear();
    command
}

/// Exit status, standard output, standard error.
fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}
