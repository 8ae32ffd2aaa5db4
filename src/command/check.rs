//! `leasehold check`: manifests examined offline.

use std::{io, process::ExitCode};

use crate::{
    check::{self, Judge},
    cli::CheckArgs,
};

/// Prints what is wrong with the manifests, or the smallest policy for them; fails on errors.
///
/// # Errors
/// When the output cannot be written.
pub fn run(arguments: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs { files, suggest_policy, namespace, service_account, tenancy: flags } = arguments;
    let tenancy = match super::offline_tenancy(flags) {
        Ok(tenancy) => tenancy,
        Err(error) => return super::bad_config(&error),
    };
    let policy = tenancy.policy_file.is_some().then_some(tenancy.policy);
    let judge = Judge { defaults: tenancy.defaults, policy, namespace, service_account };

    let mut out = Vec::new();
    let report = if suggest_policy.is_empty() {
        let report = check::check_files(&files, &judge);
        report.write(&mut out)?;
        report
    } else {
        let paths: Vec<_> = suggest_policy.into_iter().chain(files).collect();
        let report = check::suggest_policy(&paths, &judge, &mut out)?;
        if !report.findings.is_empty() {
            // Standard output is the policy's alone.
            report.write(&mut io::stderr())?;
        }
        report
    };
    super::print(&String::from_utf8_lossy(&out))?;
    Ok(if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
