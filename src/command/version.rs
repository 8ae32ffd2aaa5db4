//! `leasehold version`.

use std::process::ExitCode;

use crate::cli::{VersionArgs, VersionFormat};

/// Says which version this is, in the formats of vault-csi-provider.
///
/// # Errors
/// When standard output cannot be written to.
pub fn run(arguments: &VersionArgs) -> anyhow::Result<ExitCode> {
    super::print(&format!("{}\n", version(arguments.output)))?;
    Ok(ExitCode::SUCCESS)
}

fn version(format: Option<VersionFormat>) -> String {
    let (name, version, interface) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), "v1alpha1");
    match format {
        None => format!("{name} {version}"),
        Some(VersionFormat::Json) => {
            format!(r#"{{"name":"{name}","version":"{version}","providerInterface":"{interface}"}}"#)
        }
        Some(VersionFormat::JsonPretty) => format!(
            "{{\n  \"name\": \"{name}\",\n  \"version\": \"{version}\",\n  \"providerInterface\": \"{interface}\"\n}}"
        ),
        Some(VersionFormat::Yaml) => {
            format!("name: {name}\nversion: {version}\nproviderInterface: {interface}")
        }
    }
}
