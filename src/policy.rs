//! The node's tenancy rules: what a pod of a namespace may ask for. Evaluated on the merged attributes,
//! before any packet is sent and any file opened.

use crate::spec::{PodIdentity, ProviderName, VolumeSpec};

/// What is allowed without a policy file: from the operator's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// The agent's own addresses and `--allow-vault-address`.
    pub addresses: Vec<String>,
    /// `--allow-tls-dir`.
    pub tls_dirs: Vec<std::path::PathBuf>,
    /// The operator's own TLS defaults: always allowed, they are his.
    pub own_tls: Vec<crate::spec::TlsSpec>,
    /// Audiences beside the providers' defaults.
    pub audiences: Vec<String>,
}

/// Why a volume is refused: names the rule and the command that suggests the smallest policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {}

/// Why a policy file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {}

/// The rules in force.
#[derive(Clone, Debug)]
pub struct Policy {}

impl Policy {
    /// The rules without a policy file.
    pub fn baseline(baseline: Baseline) -> Self {
        let _ = baseline;
        Self {}
    }

    /// The rules of a policy file over the baseline.
    ///
    /// # Errors
    /// With the line of the mistake.
    pub fn from_yaml(text: &str, baseline: Baseline) -> Result<Self, PolicyError> {
        let _ = text;
        Ok(Self::baseline(baseline))
    }

    /// Whether `pod` may have `spec`.
    ///
    /// # Errors
    /// The first rule that refuses it.
    pub fn check(&self, provider: ProviderName, pod: &PodIdentity, spec: &VolumeSpec) -> Result<(), Refusal> {
        let _ = (provider, pod, spec);
        Ok(())
    }
}
