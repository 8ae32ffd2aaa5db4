//! The node's tenancy rules: what a pod of a namespace may ask for. Evaluated on the merged attributes,
//! before any packet is sent and any file opened.
//!
//! Without a policy file the [`Baseline`] holds: addresses, TLS paths, skip-verify and audiences are the
//! operator's, everything that Vault decides by the pod's own identity is free. A policy file refuses every
//! namespace that none of its rules names:
//!
//! ```yaml
//! rules:
//!   - name: payments
//!     namespaces: [payments, "payments-*"]
//!     serviceAccounts: ["*"]            # default: any
//!     addresses: [https://vault:8200]   # default: the agent's own
//!     vaultNamespaces: [team-a]         # "" or root is the root namespace
//!     authMounts: [kubernetes]
//!     roles: ["${namespace}-*"]
//!     paths:                            # the Vault namespace is the first part of a path
//!       - team-a/secret/data/${namespace}/**
//!       - team-a/database/creds/${namespace}-${serviceAccount}
//!     writes: allow                     # PUT and POST; default: deny
//!     audiences: [vault]                # default: the provider's, and the operator's list
//!     tlsDirs: [/etc/leasehold/tls]     # default: the operator's list
//!     skipTLSVerify: deny               # default: deny
//! generators:                           # what objects may name in `generate`
//!   database-password: {password: {length: 32, symbols: 0}}
//! ```
//!
//! `*` stands for any part of one segment, `**` for one or more whole segments. A list that is left out
//! narrows nothing: what the baseline allows. A pod may have what any one of the rules that name it allows.

use std::{collections::BTreeMap, fmt};

use crate::spec::{
    Object, PodIdentity, ProviderName, SecretRequest, VolumeSpec,
    object::{Generator, Output, Part, Source},
    values::{nearest, quote},
};

pub use address::address_key;

mod address;
mod file;
mod limits;
mod pattern;
#[cfg(test)]
mod tests;

use limits::Limits;
use pattern::Pattern;

/// The end of every refusal.
const ADVICE: &str = "to see the smallest policy that allows it: leasehold check --suggest-policy DIR";

/// What is allowed without a policy file: from the operator's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baseline {
    /// The agent's own addresses and `--allow-vault-address`. One that is no address allows nothing.
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
pub enum Refusal {
    /// A policy file is in force and none of its rules names the pod.
    #[error(
        "no rule of the node's policy is for ServiceAccount {service_account:?} of namespace {namespace:?}; \
         {ADVICE}"
    )]
    NoRule {
        /// The pod's namespace.
        namespace: String,
        /// The pod's ServiceAccount.
        service_account: String,
    },
    /// A rule is for the pod, and does not allow what it asks for.
    #[error("{rule} refuses {asked}: {reason}; {ADVICE}")]
    Refused {
        /// The rule. Of several that are for the pod, the one that allowed most.
        rule: RuleName,
        /// What was asked for: the parameter or the object, and its value.
        asked: Asked,
        /// What the rule allows.
        reason: String,
    },
    /// An object names a generator that the node does not have.
    #[error(
        "object {} generates its value by {}, which is no generator of the node's policy file{}",
        quote(object),
        quote(generator),
        Hint(near)
    )]
    NoGenerator {
        /// `objectName`.
        object: String,
        /// The generator.
        generator: String,
        /// A generator of nearly that name.
        near: Option<String>,
    },
}

struct Hint<'a>(&'a Option<String>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |near| write!(f, ", did you mean {near}?"))
    }
}

/// Names a rule in a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleName {
    /// No policy file: the operator's flags.
    Baseline,
    /// A rule of the file, by its `name`, or by its number from 1.
    File(String),
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Baseline => f.write_str("the node"),
            Self::File(name) => write!(f, "rule {name} of the node's policy"),
        }
    }
}

/// One thing that a volume asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `objectName`, where it is an object's.
    pub object: Option<String>,
    /// What it is, as the policy file spells it in the singular.
    pub what: &'static str,
    /// Its value in canonical form.
    pub value: String,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, quote(&self.value))?;
        self.object.as_ref().map_or(Ok(()), |object| write!(f, " of object {}", quote(object)))
    }
}

/// Why a policy file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy file{}: {reason}", Line(*line))]
pub struct PolicyError {
    /// Line of the mistake, from 1, when known.
    pub line: Option<u64>,
    /// The mistake.
    pub reason: String,
}

struct Line(Option<u64>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, " line {line}"))
    }
}

/// The rules in force.
#[derive(Clone, Debug)]
pub struct Policy {
    baseline: Baseline,
    /// `None` without a file.
    rules: Option<Vec<Rule>>,
    generators: BTreeMap<String, Generator>,
}

/// One rule of a file.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    namespaces: Vec<Pattern>,
    service_accounts: Option<Vec<Pattern>>,
    limits: Limits,
}

impl Rule {
    fn is_for(&self, pod: &PodIdentity) -> bool {
        let matches = |patterns: &[Pattern], text: &str| patterns.iter().any(|it| it.matches(text, pod));
        matches(&self.namespaces, &pod.namespace)
            && self.service_accounts.as_ref().is_none_or(|names| matches(names, &pod.service_account))
    }
}

impl Policy {
    /// The rules without a policy file.
    pub fn baseline(baseline: Baseline) -> Self {
        Self { baseline, rules: None, generators: BTreeMap::new() }
    }

    /// The rules of a policy file over the baseline.
    ///
    /// # Errors
    /// With the line of the mistake.
    pub fn from_yaml(text: &str, baseline: Baseline) -> Result<Self, PolicyError> {
        let (rules, generators) = file::read(text)?;
        Ok(Self { baseline, rules: Some(rules), generators })
    }

    /// Every folder that some pod may name TLS files in.
    pub fn tls_dirs(&self) -> impl Iterator<Item = &std::path::Path> {
        let rules = self.rules.iter().flatten();
        let named = rules.flat_map(|rule| rule.limits.tls_dirs.iter().flatten());
        self.baseline.tls_dirs.iter().chain(named).map(std::path::PathBuf::as_path)
    }

    /// Makes of `spec` what is done for `pod`, after [`Self::check`]: puts the file's generators where they are
    /// named, and takes out the paths that a KV version 2 mount may have us ask for instead of those written, as
    /// far as the pod may not have them: then nobody asks.
    pub fn narrow(&self, provider: ProviderName, pod: &PodIdentity, spec: &mut VolumeSpec) {
        for generator in
            spec.objects.iter_mut().flat_map(Object::requests_mut).flat_map(|it| it.generate.values_mut())
        {
            if let Generator::Named(name) = generator
                && let Some(own) = self.generators.get(name)
            {
                *generator = own.clone();
            }
        }
        if self.rules.is_none() {
            return;
        }
        let mut probe = VolumeSpec { objects: Vec::new(), ..spec.clone() };
        for request in spec.objects.iter_mut().flat_map(Object::requests_mut) {
            let Some(path) = &request.versioned else { continue };
            let source = Source::Secret { request: SecretRequest::read(path.clone()), part: Part::Response };
            probe.objects = vec![Object::new(Output::Inputs, source)];
            if self.check(provider, pod, &probe).is_err() {
                request.versioned = None;
            }
        }
    }

    /// Whether `pod` may have `spec`.
    ///
    /// # Errors
    /// The first thing refused; of several rules that are for the pod, by the one that allowed most.
    pub fn check(&self, provider: ProviderName, pod: &PodIdentity, spec: &VolumeSpec) -> Result<(), Refusal> {
        self.check_rules(provider, pod, spec)?;
        // Last: nobody learns of the node's generators who may not write.
        for object in &spec.objects {
            for generator in object.requests().flat_map(|request| request.generate.values()) {
                if let Generator::Named(name) = generator
                    && !self.generators.contains_key(name)
                {
                    let near = nearest(name, self.generators.keys().map(String::as_str)).map(str::to_owned);
                    let (object, generator) = (object.name().to_owned(), name.clone());
                    return Err(Refusal::NoGenerator { object, generator, near });
                }
            }
        }
        Ok(())
    }

    fn check_rules(
        &self,
        provider: ProviderName,
        pod: &PodIdentity,
        spec: &VolumeSpec,
    ) -> Result<(), Refusal> {
        let request = limits::Request { baseline: &self.baseline, provider, pod, spec };
        let Some(rules) = &self.rules else {
            let refused = Limits::free().check(&request);
            return refused.map_err(|refused| refused.by(RuleName::Baseline));
        };
        let mut nearest: Option<(limits::Refused, &Rule)> = None;
        for rule in rules.iter().filter(|rule| rule.is_for(pod)) {
            match rule.limits.check(&request) {
                Ok(()) => return Ok(()),
                Err(refused) => {
                    if nearest.as_ref().is_none_or(|(best, _)| refused.progress > best.progress) {
                        nearest = Some((refused, rule));
                    }
                }
            }
        }
        Err(match nearest {
            Some((refused, rule)) => refused.by(RuleName::File(rule.name.clone())),
            None => Refusal::NoRule {
                namespace: pod.namespace.clone(),
                service_account: pod.service_account.clone(),
            },
        })
    }
}
