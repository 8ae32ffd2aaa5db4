//! `leasehold doctor`: the whole chain of this node, from the driver's sockets to Vault, each link with what is
//! wrong and what mends it.
//!
//! Settings and findings come from the agent that runs; the rest is looked at from here, in the same container.

use std::{
    fmt::Write as _,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::Serialize;

use crate::{
    backend::vault::{Limits, Probe, ServerState, VaultBackend},
    cli::{DoctorArgs, DoctorFormat},
    clock::wall_now,
    control::{self, Answer, Request, Server, Status},
    provider::{listener::SHADOWING_FOLDER, sightings::Driver},
    spec::{ApiPath, ProviderName},
    startup::{self, ownership, swap},
};

/// A certificate that ends sooner is told of.
const CERTIFICATE_SOON: Duration = Duration::from_secs(14 * 86_400);
/// Clocks that differ by more make tokens look expired, or not valid yet.
const SKEW_WARN: u64 = 10;
const SKEW_FAIL: u64 = 60;
/// A session that lives longer than this leaves leases behind a reboot for as long.
const LONG_SESSION: u64 = 86_400;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Clone, Debug, Serialize)]
struct Check {
    check: String,
    status: Verdict,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn ok(&mut self, check: &str, message: impl Into<String>) {
        self.push(check, Verdict::Ok, message.into(), None);
    }

    fn warn(&mut self, check: &str, message: impl Into<String>, fix: impl Into<String>) {
        self.push(check, Verdict::Warn, message.into(), Some(fix.into()));
    }

    fn fail(&mut self, check: &str, message: impl Into<String>, fix: impl Into<String>) {
        self.push(check, Verdict::Fail, message.into(), Some(fix.into()));
    }

    fn push(&mut self, check: &str, status: Verdict, message: String, fix: Option<String>) {
        self.0.push(Check { check: check.to_owned(), status, message: message.trim().to_owned(), fix });
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for Check { check, status, message, fix } in &self.0 {
            let word = match status {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "fail",
            };
            // Writing into a String does not fail.
            let _infallible = writeln!(text, "{word}  {check}: {message}");
            if let Some(fix) = fix {
                let _infallible = writeln!(text, "      fix: {fix}");
            }
        }
        text
    }
}

/// Checks, prints, and tells by the exit status whether something is wrong.
///
/// # Errors
/// When the checks cannot be made at all.
pub fn run(arguments: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    let status = agent(&mut report, &arguments.state_dir);
    state(&mut report, &arguments.state_dir, status.is_some());
    let fallback = Status::default();
    let known = status.as_ref().unwrap_or(&fallback);
    findings(&mut report, known);
    sockets(&mut report, &known.about.sockets);
    if status.is_some() {
        propagation(&mut report, &known.about.kubelet_root);
        driver(&mut report, known);
    }
    swapping(&mut report, known);
    chown(&mut report, known);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(servers(&mut report, &known.about.servers));
    if status.is_some() {
        orphans(&mut report, known);
    }
    let text = match arguments.output {
        DoctorFormat::Text => report.text(),
        DoctorFormat::Json => {
            serde_json::to_string_pretty(&report.0).context("cannot write the report as JSON")? + "\n"
        }
    };
    super::print(&text)?;
    let failed = report.0.iter().any(|check| check.status == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn agent(report: &mut Report, state_dir: &Path) -> Option<Status> {
    let fix = "kubectl -n leasehold-system get pods -o wide; kubectl -n leasehold-system logs POD --previous";
    match control::ask(state_dir, &Request::Status) {
        Ok(Answer::Status(status)) => {
            let version = &status.about.version;
            report.ok("agent", format!("leasehold {version} answers and holds {} volumes", status.volumes));
            if *version != env!("CARGO_PKG_VERSION") {
                report.warn(
                    "agent",
                    format!("the agent that runs is {version}, this command {}", env!("CARGO_PKG_VERSION")),
                    "run the doctor in the agent's own container",
                );
            }
            Some(*status)
        }
        Ok(_) => {
            report.fail("agent", "the agent answered something else: is it of this version?", fix);
            None
        }
        Err(error) => {
            report.fail("agent", error.to_string(), fix);
            None
        }
    }
}

fn state(report: &mut Report, folder: &Path, answers: bool) {
    let shown = folder.display();
    match statfs(folder) {
        Err(error) => report.fail(
            "state",
            format!("the state folder {shown} cannot be looked at: {error}"),
            "mount the node's /run/leasehold there (daemonSet.stateDir), or say where it is with --state-dir",
        ),
        Ok(found) if found.filesystem_type() != TMPFS_MAGIC => report.warn(
            "state",
            format!("the state folder {shown} is not tmpfs: every restart logs in again and leaves leases to expire"),
            fix_of("state"),
        ),
        Ok(_) => report.ok("state", format!("the state folder {shown} is tmpfs")),
    }
    if answers {
        return;
    }
    let lock = fs::File::open(folder.join("lock")).map_err(|error| error.to_string()).and_then(|file| {
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockSharedNonblock)
            .map_err(|(_, error)| error.to_string())
    });
    match lock {
        Ok(_) => report.fail(
            "lock",
            "nobody holds the state folder's lock: no agent runs on this node",
            "kubectl -n leasehold-system get pods -o wide",
        ),
        Err(error) => report.warn(
            "lock",
            format!("the state folder's lock is held, or cannot be tried ({error}): an agent starts, stops or hangs"),
            "kubectl -n leasehold-system delete pod POD, if it stays so",
        ),
    }
}

/// What the agent itself found. Its sockets are looked at from here too.
fn findings(report: &mut Report, status: &Status) {
    for (part, blocks, reason) in &status.findings {
        if *blocks {
            report.fail(part, reason.as_str(), fix_of(part));
        } else {
            report.warn(part, reason.as_str(), fix_of(part));
        }
    }
}

/// What mends a part that the agent found not well.
fn fix_of(part: &str) -> &'static str {
    match part {
        "worker" => "kubectl -n leasehold-system delete pod POD; please report its log",
        "propagation" => {
            "set daemonSet.kubeletRootDir to the kubelet's --root-dir; on the node: findmnt -o TARGET,PROPAGATION \
             /var/lib/kubelet must say shared"
        }
        "state" => "set daemonSet.stateDir to a folder below the node's /run",
        "driver" => {
            "helm upgrade csi-secrets-store secrets-store-csi-driver/secrets-store-csi-driver -n kube-system \
                     --reuse-values --version 1.6.0"
        }
        "tokenRequests" => {
            "helm upgrade csi-secrets-store secrets-store-csi-driver/secrets-store-csi-driver -n kube-system \
             --reuse-values --set 'tokenRequests[0].audience=vault'"
        }
        "rotation" => {
            "helm upgrade csi-secrets-store secrets-store-csi-driver/secrets-store-csi-driver -n kube-system \
             --reuse-values --set enableSecretRotation=true"
        }
        "ownership" => {
            "helm upgrade leasehold deploy/charts/leasehold -n leasehold-system --reuse-values --set \
             fileOwnership.enabled=true"
        }
        "swap" => {
            "leave memorySwap.swapBehavior of the kubelet's configuration at NoSwap, or swapoff -a on the node; where the \
             swap area is encrypted: allowSwap=true"
        }
        _ => "kubectl -n leasehold-system logs POD says more",
    }
}

fn sockets(report: &mut Report, sockets: &[PathBuf]) {
    for path in sockets {
        let (shown, file) = (path.display(), path.file_name().unwrap_or_default());
        match UnixStream::connect(path) {
            Ok(_) => report.ok("socket", format!("{shown} answers")),
            Err(error) => report.fail(
                "socket",
                format!("{shown} does not answer: {error}"),
                "is another provider of this name on the node? kubectl get pods -A -o wide | grep -i csi; else restart \
                 leasehold's pod",
            ),
        }
        let shadow = Path::new(SHADOWING_FOLDER).join(file);
        if shadow != *path && shadow.symlink_metadata().is_ok() {
            let shadow = shadow.display();
            report.fail(
                "socket",
                format!("{shadow} shadows {shown}: the driver looks there first, and keeps its first choice"),
                format!("on the node: rm {shadow}; then restart the driver's pod on the node"),
            );
        }
    }
    if !sockets.is_empty() && !Path::new(SHADOWING_FOLDER).exists() {
        report.ok(
            "socket",
            format!(
                "{SHADOWING_FOLDER} is not seen from here: on the node, it should hold none of these names"
            ),
        );
    }
}

fn propagation(report: &mut Report, kubelet_root: &Path) {
    // Told of by the agent already, where it is missing.
    if startup::missing_propagation(kubelet_root).is_none() {
        let pods = kubelet_root.join("pods");
        report.ok("propagation", format!("the node's mounts below {} are seen here", pods.display()));
    }
}

fn driver(report: &mut Report, status: &Status) {
    let Driver { newer, user_agent, audiences } = &status.driver;
    match newer {
        Some(true) => {
            report.ok("driver", format!("1.6.0 or newer, by its :authority; its gRPC is {user_agent}"));
        }
        None => report.ok("driver", "it has not called yet: start a pod that mounts a SecretProviderClass"),
        // Found by the agent.
        Some(false) => {}
    }
    if !audiences.is_empty() {
        report.ok("tokenRequests", passed(audiences, &status.about.sockets));
    }
    if let Some(silence) = status.longest_silence_seconds.filter(|_| !found(status, "rotation")) {
        report
            .ok("rotation", format!("it called for every mounted volume within the last {} s", silence + 1));
    }
}

/// For whom the driver passes tokens, and which of the providers here would want another one.
fn passed(audiences: &[String], sockets: &[PathBuf]) -> String {
    let mut text = format!("the driver passes tokens for {}", audiences.join(", "));
    for name in [ProviderName::Leasehold, ProviderName::Vault, ProviderName::Openbao] {
        let served =
            sockets.iter().any(|socket| socket.file_stem().is_some_and(|stem| stem == name.as_str()));
        if !served || audiences.iter().any(|audience| audience == name.default_audience()) {
            continue;
        }
        let _infallible = write!(
            text,
            "; classes of the provider {name} want {} unless they name another audience",
            name.default_audience()
        );
    }
    text
}

fn found(status: &Status, part: &str) -> bool {
    status.findings.iter().any(|(name, _, _)| name == part)
}

fn swapping(report: &mut Report, status: &Status) {
    match swap::exposure() {
        // Told of by the agent already.
        Some(_) if found(status, "swap") => {}
        Some(exposure) if status.about.allow_swap => {
            report.ok("swap", format!("{exposure}: taken so by --allow-swap"));
        }
        Some(exposure) => report.warn("swap", exposure.advice(), fix_of("swap")),
        None => report.ok("swap", "nothing of this container can be swapped out"),
    }
}

fn chown(report: &mut Report, status: &Status) {
    match ownership::may_chown() {
        // Told of by the agent already.
        Some(false) if found(status, "ownership") => {}
        Some(true) => report.ok("ownership", "files can be given to other users"),
        Some(false) => report.ok(
            "ownership",
            "no capability CHOWN, and no class has asked for it: fileOwner would fail (fileOwnership.enabled adds it)",
        ),
        None => {
            report.warn("ownership", "the capabilities cannot be read", "look at CapEff in /proc/self/status");
        }
    }
}

async fn servers(report: &mut Report, servers: &[Server]) {
    let backend = VaultBackend::new(Limits::default());
    for server in servers {
        let Server { connection, auth_mount, providers } = server;
        let name = format!("vault {} ({})", connection.address, providers.join(", "));
        let Ok(mount) = ApiPath::parse_mount(auth_mount) else {
            report.fail(
                &name,
                format!("the auth mount {auth_mount:?} is no path"),
                "correct vault.authMount",
            );
            continue;
        };
        match backend.probe(connection, &mount).await {
            Err(error) => {
                let fix = "from a pod on this node: can it resolve and reach the address? then vault.address, \
                           vault.tls.caConfigMap, networkPolicy.egressPorts";
                report.fail(&name, error.message, fix);
            }
            Ok(probe) => server_checks(report, &name, server, &probe),
        }
    }
}

fn server_checks(report: &mut Report, name: &str, server: &Server, probe: &Probe) {
    let Server { connection, auth_mount, .. } = server;
    match probe.state {
        ServerState::Active => report.ok(name, "reachable, unsealed"),
        ServerState::Standby => report.ok(name, "reachable, a standby that passes requests on"),
        ServerState::Sealed => report.fail(name, "sealed: no pod gets a secret", "vault operator unseal"),
        ServerState::Uninitialised => {
            report.fail(name, "not initialised", "vault operator init, or correct vault.address");
        }
        ServerState::Unclear(status) => report.fail(
            name,
            format!("something answers sys/health with {status}, as no Vault or OpenBao does"),
            "correct vault.address",
        ),
    }
    match &probe.certificate {
        Some(certificate) => {
            let left = certificate.expires.duration_since(wall_now()).unwrap_or_default();
            let days = left.as_secs() / 86_400;
            let names = certificate.names.join(", ");
            let issuer = &certificate.issuer;
            let text = format!("the certificate is for {names}, signed by {issuer}, and ends in {days} days");
            if left < CERTIFICATE_SOON {
                report.warn(&format!("{name} TLS"), text, "renew the server's certificate");
            } else {
                report.ok(&format!("{name} TLS"), text);
            }
        }
        None if connection.address.starts_with("http://") => report.warn(
            &format!("{name} TLS"),
            "plain http: whoever is on the path reads tokens and secrets",
            "vault.address=https://… and vault.tls.caConfigMap",
        ),
        None => {}
    }
    match probe.has_mount {
        Some(true) => report.ok(&format!("{name} auth"), format!("the auth mount {auth_mount} answers")),
        Some(false) => report.fail(
            &format!("{name} auth"),
            format!("there is no auth mount {auth_mount}{}", in_namespace(&connection.namespace)),
            format!("vault auth enable -path={auth_mount} kubernetes, or correct vault.authMount"),
        ),
        None => report.warn(
            &format!("{name} auth"),
            format!("whether there is an auth mount {auth_mount} cannot be seen now"),
            "try again when the server is well",
        ),
    }
    match probe.skew {
        Some(skew) if skew.unsigned_abs() >= SKEW_WARN => {
            let direction = if skew > 0 { "behind" } else { "ahead of" };
            let text = format!("this node's clock is {} s {direction} the server's", skew.unsigned_abs());
            let fix = "on the node: chronyc tracking, or timedatectl timesync-status";
            if skew.unsigned_abs() >= SKEW_FAIL {
                report.fail("clock", text, fix);
            } else {
                report.warn("clock", text, fix);
            }
        }
        Some(skew) => report.ok("clock", format!("within {} s of the server's", skew.unsigned_abs() + 1)),
        None => report.ok("clock", "the server does not say its time"),
    }
}

fn in_namespace(namespace: &str) -> String {
    if namespace.is_empty() { String::new() } else { format!(" in namespace {namespace}") }
}

fn orphans(report: &mut Report, status: &Status) {
    match status.longest_session_seconds {
        Some(seconds) if seconds > LONG_SESSION => report.warn(
            "orphans",
            format!("a reboot of this node leaves sessions and leases alive for up to {seconds} s: nobody revokes them"),
            "vault write auth/kubernetes/role/ROLE … token_ttl=20m token_max_ttl=2h",
        ),
        Some(seconds) => {
            report.ok("orphans", format!("a reboot of this node leaves sessions alive for at most {seconds} s"));
        }
        None => report.ok("orphans", "no session lives: a reboot of this node leaves nothing behind"),
    }
}
