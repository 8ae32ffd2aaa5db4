//! `leasehold refresh`: the agent of this node checks values now.

use std::process::ExitCode;

use anyhow::bail;

use crate::{
    cli::RefreshArgs,
    control::{self, Answer, Request},
    volume::Selector,
};

/// Has the agent check values, and says how many volumes that concerns. What changed is in the files soon
/// after; what goes wrong is shown by `leasehold ls`.
///
/// # Errors
/// When no agent answers, or none of its volumes is meant.
pub fn run(arguments: RefreshArgs) -> anyhow::Result<ExitCode> {
    let selector = match &arguments.pod {
        Some((namespace, name)) => Selector::Pod { namespace: namespace.clone(), name: name.clone() },
        None => Selector::All,
    };
    match (control::ask(&arguments.state_dir, &Request::Refresh(selector))?, arguments.pod) {
        (Answer::Refreshed(0), Some((namespace, name))) => {
            bail!("this node has no volume of pod {namespace}/{name}; leasehold ls shows those it has")
        }
        (Answer::Refreshed(count), _) => {
            super::print(&format!("checking {count} volume{}\n", if count == 1 { "" } else { "s" }))?;
            Ok(ExitCode::SUCCESS)
        }
        (Answer::Error(message), _) => bail!("{message}"),
        (Answer::Volumes(_) | Answer::Ready { .. } | Answer::Status(_), _) => {
            bail!("the agent answered something else: is it of this version?")
        }
    }
}
