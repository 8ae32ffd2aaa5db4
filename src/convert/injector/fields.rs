//! What becomes of each annotation of the injector.

use crate::convert::{
    Severity,
    notes::{Field, carried, changed, ignored, refused},
};

/// An annotation, without `vault.hashicorp.com/`, and what becomes of it on either way.
#[derive(Clone, Copy, Debug)]
pub struct Annotation {
    /// Its name; it ends with `<n>` or `<k>` where a name of the user's follows.
    pub name: &'static str,
    /// In a SecretProviderClass, with its pod patch.
    pub class: Field,
    /// In the in-pod agent's file.
    pub agent: Field,
}

const fn both(field: Field) -> Annotation {
    Annotation { name: field.name, class: field, agent: field }
}

const fn each(class: Field, severity: Option<Severity>, text: &'static str) -> Annotation {
    Annotation { name: class.name, class, agent: Field { name: class.name, fate: severity, text } }
}

const CHANGED: Option<Severity> = Some(Severity::Changed);
const IGNORED: Option<Severity> = Some(Severity::Ignored);

const OWN_POD: &str = "the file must be in leasehold's own pod, and the node's policy must allow its folder";
const NO_SIDECAR: &str = "there is no container of its own in the pod";
const MANIFEST: &str = "of the container: the manifest or policy that puts the sidecar into the pod says it";
const BACKOFF: &str = "requests are tried again with leasehold's own growing pauses";
const CACHE: &str = "a proxy with a cache is left out; an application that asks 127.0.0.1:8200 finds nobody: write what it \
                     asks for as files";
const IMAGE: &str = "of the injector's own container; leasehold has its own image";
const CONNECTIONS: &str = "requests share few connections";

/// Every annotation of the injector.
pub const ANNOTATIONS: &[Annotation] = &[
    both(carried("agent-inject", "`true` is what makes a pod be looked at")),
    both(carried("agent-inject-secret-<n>", "an object with the default template over the secret")),
    both(carried("agent-inject-template-<n>", "`template`")),
    each(
        refused(
            "agent-inject-template-file-<n>",
            "a node's agent cannot read files of the pod's image: write the template into agent-inject-template-<n>",
        ),
        None,
        "`templateFile`; the file must be mounted into leasehold's container",
    ),
    both(carried("agent-inject-file-<n>", "`objectName`")),
    both(carried("agent-inject-perms-<n>", "`filePermission`; 0644, as there")),
    each(
        refused(
            "agent-inject-command-<n>",
            "a node's agent runs nothing in a pod: watch the folder, or use the in-pod agent, which can signal a process",
        ),
        CHANGED,
        "`onChange.command`, run only with `--allow-commands`; a signal, a request or a touched file need no such permission",
    ),
    both(carried("agent-inject-default-template", "`map` or `json`, the template of secrets that have none")),
    both(carried("secret-volume-path", "where the folder is; /vault/secrets, as there")),
    both(carried("secret-volume-path-<n>", "a folder of its own")),
    both(carried("preserve-secret-case", "file names; lower case otherwise, as there")),
    both(carried("preserve-secret-case-<n>", "file names; lower case otherwise, as there")),
    both(carried("error-on-missing-key-<n>", "always so: a missing key is an error, never `<no value>`")),
    both(carried("agent-template-left-delim-<n>", "`leftDelimiter`")),
    both(carried("agent-template-right-delim-<n>", "`rightDelimiter`")),
    both(carried("role", "`roleName`")),
    both(carried("namespace", "`vaultNamespace`")),
    both(carried("service", "`vaultAddress`")),
    both(carried("auth-path", "`vaultAuthMountPath`; kubernetes, as there")),
    each(
        carried("auth-type", "kubernetes and jwt: the driver hands over the pod's token; others are refused"),
        None,
        "`auth.method`: kubernetes, jwt, approle, token_file or cert; others are refused",
    ),
    each(
        carried("auth-config-<k>", "the role; where the token is has no meaning"),
        None,
        "`auth`: role, token_path, path and the fields of approle, token_file and cert",
    ),
    each(
        changed(
            "ca-cert",
            "`vaultCACertPath`: the file must be in leasehold's own pod, and the node's policy must allow its folder",
        ),
        None,
        "`vaultCACertPath`",
    ),
    both(ignored("ca-key", "no key of an authority is needed")),
    each(changed("client-cert", OWN_POD), None, "`vaultTLSClientCertPath`"),
    each(changed("client-key", OWN_POD), None, "`vaultTLSClientKeyPath`"),
    each(
        changed(
            "tls-secret",
            "mounts nothing into leasehold's own pod: give it the files there (allow.tlsConfigMaps)",
        ),
        CHANGED,
        "the Secret must be mounted at /vault/tls by the manifest; the policy in deploy/ does it",
    ),
    both(carried("tls-server-name", "`vaultTLSServerName`")),
    each(
        changed("tls-skip-verify", "`vaultSkipTLSVerify`: the node's policy must allow it"),
        None,
        "`vaultSkipTLSVerify`",
    ),
    each(
        ignored("agent-service-account-token-volume-name", "the driver hands over a token made for Vault"),
        CHANGED,
        "the token is read at /var/run/secrets/vault/token: mount the volume there, or set auth-config-token-path",
    ),
    each(
        ignored("agent-pre-populate", "the files are always there before any container starts"),
        IGNORED,
        "the start-up probe holds the application back until the files are there",
    ),
    each(
        changed("agent-pre-populate-only", "the files are there at the start and kept true afterwards too"),
        None,
        "`exitAfterRender`",
    ),
    each(
        ignored("agent-init-first", "volumes are there before any init container"),
        IGNORED,
        "the sidecar's place among the init containers is the manifest's matter; the policy in deploy/ puts it first",
    ),
    each(
        ignored("agent-revoke-on-shutdown", "sessions and leases are always revoked when the pod goes"),
        None,
        "`revokeOnShutdown`",
    ),
    each(ignored("agent-revoke-grace", "the revocation needs no time of the pod's"), None, "`revokeGrace`"),
    both(refused(
        "agent-inject-token",
        "a session's token never leaves leasehold: write what the application read with it as files, or let it log in by \
         itself",
    )),
    each(
        carried("agent-inject-containers", "which containers the patch gives the mount; all, as there"),
        IGNORED,
        MANIFEST,
    ),
    both(carried("template-static-secret-render-interval", "`refreshInterval` of every object")),
    both(ignored(
        "template-lease-renewal-threshold",
        "a lease is renewed before the last third of its life, a certificate replaced then",
    )),
    both(ignored(
        "template-config-exit-on-retry-failure",
        "leasehold keeps the old files and tries on; it never ends for that",
    )),
    both(ignored("auth-min-backoff", BACKOFF)),
    both(ignored("auth-max-backoff", BACKOFF)),
    both(ignored("client-timeout", BACKOFF)),
    both(ignored("client-max-retries", BACKOFF)),
    each(ignored("log-level", NO_SIDECAR), IGNORED, "the flag `--log-level`"),
    each(ignored("log-format", NO_SIDECAR), IGNORED, "the flag `--log-format`"),
    each(ignored("agent-run-as-user", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-run-as-group", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-run-as-same-user", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-set-security-context", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-share-process-namespace", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-limits-cpu", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-limits-mem", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-limits-ephemeral", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-requests-cpu", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-requests-mem", NO_SIDECAR), IGNORED, MANIFEST),
    each(ignored("agent-requests-ephemeral", NO_SIDECAR), IGNORED, MANIFEST),
    each(
        ignored("agent-extra-secret", "a node's agent reads no Secret of the pod's"),
        CHANGED,
        "the Secret must be mounted at /vault/custom by the manifest; the policy in deploy/ does it",
    ),
    both(ignored("agent-inject-status", "the injector's own mark")),
    both(ignored("agent-image", IMAGE)),
    both(ignored(
        "agent-configmap",
        "its files are another program's: convert each with leasehold convert --to agent",
    )),
    both(ignored("agent-copy-volume-mounts", IMAGE)),
    both(ignored("agent-cache-<k>", CACHE)),
    both(ignored("agent-json-patch", "of the injector's own container: say it in the manifest")),
    both(ignored("agent-init-json-patch", "of the injector's own container: say it in the manifest")),
    both(ignored(
        "agent-enable-quit",
        "there is no endpoint to end it; as a native sidecar it ends with the pod",
    )),
    both(ignored(
        "agent-auto-auth-exit-on-err",
        "a failed login is tried again; the start-up probe tells of it",
    )),
    both(ignored("agent-telemetry-<k>", "metrics are for Prometheus, at /metrics")),
    both(ignored("agent-disable-idle-connections", CONNECTIONS)),
    both(ignored("agent-disable-keep-alives", CONNECTIONS)),
    both(ignored("template-max-connections-per-host", CONNECTIONS)),
    both(ignored("proxy-address", "requests go to the server itself")),
    both(ignored("go-max-procs", "it is no Go program")),
    both(ignored("agent-request-namespace", "the injector's own mark")),
];

/// The row of an annotation, and what follows its prefix.
pub(super) fn find(name: &str) -> Option<(&'static Annotation, &str)> {
    let exact = ANNOTATIONS.iter().find(|row| row.name == name).map(|row| (row, ""));
    exact.or_else(|| {
        let prefixed = ANNOTATIONS.iter().filter_map(|row| {
            let prefix = row.name.strip_suffix("<n>").or_else(|| row.name.strip_suffix("<k>"))?;
            let rest = name.strip_prefix(prefix).filter(|rest| !rest.is_empty())?;
            Some((row, rest))
        });
        prefixed.max_by_key(|(row, _)| row.name.len())
    })
}
