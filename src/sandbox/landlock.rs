//! Files and ports, by Landlock (landlock(7)).

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, make_bitflags,
};
use tracing::debug;

use super::{Outcome, Rights, Settings, seccomp::Profile};

/// The newest interface whose rights we know and have tried. Newer ones would also restrict connecting to
/// unix sockets (a server may be one) and UDP (names are looked up by it).
const KNOWN: ABI = ABI::V6;

/// What looking up a name, trusting the system's authorities and drawing random numbers take, and our own
/// entries of /proc.
const SYSTEM: [&str; 12] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ssl",
    "/var/run/secrets/kubernetes.io/serviceaccount",
    // A static binary may draw random numbers from here.
    "/dev/random",
    "/dev/urandom",
    // The mount table; statistics of our own.
    "/proc/self",
    "/proc/sys/kernel/random/boot_id",
];

/// Restricts the calling thread and all that it will start. Outgoing connections are left free: servers are
/// at any port, named by each SecretProviderClass within the policy, which is checked before connecting.
pub(super) fn restrict(settings: &Settings) -> (Outcome, Vec<PathFd>) {
    // Entries of /proc are made anew when the kernel has forgotten them, and a rule is for the old one: held
    // open, they are not forgotten.
    let pins: Vec<_> =
        SYSTEM.into_iter().filter(|path| path.starts_with("/proc/")).flat_map(PathFd::new).collect();
    let outcome = match enforce(settings) {
        Ok(status) => judge(&status),
        Err(error) => Outcome::Missing(error.to_string()),
    };
    (outcome, pins)
}

fn enforce(settings: &Settings) -> Result<RestrictionStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        // The first version forbids every rename between folders, and a socket is moved into place by one.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::BindTcp)?
        .scope(scope(settings.profile))?
        .create()?
        .set_compatibility(CompatLevel::BestEffort);
    let own = settings.grants.iter().map(|grant| (grant.path.as_path(), rights(grant.rights)));
    for (path, rights) in SYSTEM.into_iter().map(|path| (Path::new(path), rights(Rights::Read))).chain(own) {
        match PathFd::new(path) {
            Ok(file) if path.is_dir() => ruleset = ruleset.add_rule(PathBeneath::new(file, rights))?,
            Ok(file) => {
                ruleset = ruleset.add_rule(PathBeneath::new(file, rights & AccessFs::from_file(KNOWN)))?
            }
            Err(error) => debug!(path = %path.display(), %error, "not there, so not in reach"),
        }
    }
    for port in &settings.listens {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    ruleset.restrict_self()
}

/// The agent tells the processes of its pod of changes, by signals.
fn scope(profile: Profile) -> BitFlags<Scope> {
    match profile {
        Profile::Agent => Scope::AbstractUnixSocket.into(),
        Profile::Provider | Profile::Supervisor => Scope::from_all(KNOWN),
    }
}

fn rights(rights: Rights) -> BitFlags<AccessFs> {
    match rights {
        Rights::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
        Rights::Write => make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | MakeSym | RemoveFile | RemoveDir | Refer
        }),
        Rights::Sockets => make_bitflags!(AccessFs::{
            ReadDir | MakeSock | MakeDir | RemoveFile | RemoveDir | Refer
        }),
    }
}

fn judge(status: &RestrictionStatus) -> Outcome {
    let version = match status.landlock {
        LandlockStatus::NotImplemented => {
            return Outcome::Missing(
                "the kernel has no Landlock (Linux 5.19, CONFIG_SECURITY_LANDLOCK)".into(),
            );
        }
        LandlockStatus::NotEnabled => {
            return Outcome::Missing("Landlock is not among the kernel's active modules (lsm=)".into());
        }
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced => Outcome::On(format!("files and ports, Landlock {version}")),
        RulesetStatus::PartiallyEnforced => {
            Outcome::On(format!("files, as far as Landlock {version} of this kernel goes"))
        }
        RulesetStatus::NotEnforced => {
            Outcome::Missing(format!("Landlock {version} of this kernel is too old, it needs Linux 5.19"))
        }
    }
}
