//! What the process gives up at its start: core dumps, files and ports that are none of its business, and
//! the system calls that only a program that was taken over would make.
//!
//! Each measure is tried, and one that the kernel does not have is told of in the log and in /readyz rather
//! than being a reason not to serve: it is a second wall behind the container's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};
use tracing::{info, warn};

mod landlock;
pub mod seccomp;

use seccomp::Profile;

/// What to confine, and what has to stay in reach.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Leave core dumps on: they hold tokens and values.
    pub core_dumps: bool,
    /// Restrict files and ports by Landlock.
    pub landlock: bool,
    /// Restrict system calls.
    pub seccomp: bool,
    /// What the process is for.
    pub profile: Profile,
    /// Files and folders that stay in reach, beside what every name look-up needs.
    pub grants: Vec<Grant>,
    /// TCP ports that may still be bound; 0 is one of the kernel's choice.
    pub listens: Vec<u16>,
}

/// A file, or a folder with all beneath it, also what is mounted there later. What is missing is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where.
    pub path: PathBuf,
    /// What for.
    pub rights: Rights,
}

/// What a grant allows. Nothing allows to execute a file, or to make or control a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read files and list folders.
    Read,
    /// Read; make, change and remove regular files, folders and links.
    Write,
    /// Make, rename and remove sockets and the folders they are bound in.
    Sockets,
}

/// A confined process. What it holds keeps the rules for /proc alive: keep it as long as the process.
#[derive(Debug)]
pub struct Confinement {
    measures: [(&'static str, Outcome); 3],
    _pins: Vec<::landlock::PathFd>,
}

/// What became of a measure.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// In force, and how far.
    On(String),
    /// The operator does without it.
    Off(&'static str),
    /// It could not be had.
    Missing(String),
}

/// Confines the process, as far as the kernel can, and logs how far.
///
/// Must be called while the process has one thread: Landlock holds for the calling thread and those that it
/// starts. Cannot be undone; what is to be opened once should be open by now.
pub fn confine(settings: &Settings) -> Confinement {
    let core_dumps = match settings.core_dumps {
        true => Outcome::Off("--allow-core-dumps"),
        false => forbid_core_dumps(settings.profile),
    };
    let (landlock, pins) = match settings.landlock {
        false => (Outcome::Off("--no-landlock"), Vec::new()),
        // What it starts would be confined to our files.
        true if settings.profile == Profile::Supervisor => {
            (Outcome::Off("--exec or --allow-commands"), Vec::new())
        }
        true if threads() > 1 => (Outcome::Missing("other threads run already".to_owned()), Vec::new()),
        true => landlock::restrict(settings),
    };
    // Last: it takes away the calls that the others are made of.
    let seccomp = match settings.seccomp {
        true => seccomp::install(settings.profile),
        false => Outcome::Off("--no-seccomp"),
    };
    let confinement = Confinement {
        measures: [("no core dumps", core_dumps), ("landlock", landlock), ("seccomp", seccomp)],
        _pins: pins,
    };
    confinement.log();
    confinement
}

impl Confinement {
    /// What is not in force and why, one line; `None` when everything is.
    pub fn shortfall(&self) -> Option<String> {
        let short: Vec<_> = self
            .measures
            .iter()
            .filter_map(|(measure, outcome)| match outcome {
                Outcome::On(_) => None,
                Outcome::Off(flag) => Some(format!("{measure}: off by {flag}")),
                Outcome::Missing(reason) => Some(format!("{measure}: not in force: {reason}")),
            })
            .collect();
        (!short.is_empty()).then(|| short.join("; "))
    }

    fn log(&self) {
        for (measure, outcome) in &self.measures {
            match outcome {
                Outcome::On(detail) => info!(measure, detail, "confined"),
                Outcome::Off(flag) => warn!(measure, flag, "not confined: switched off"),
                Outcome::Missing(reason) => warn!(measure, reason, "not confined"),
            }
        }
    }
}

/// Not dumpable: no core file, no core to a pipe (which no limit stops), and no ptrace by others of its user.
/// The limit alone is inherited, so whoever starts processes that are not its own to confine does without.
fn forbid_core_dumps(profile: Profile) -> Outcome {
    let limit = || match profile {
        Profile::Supervisor => Ok("not dumpable"),
        Profile::Provider | Profile::Agent => {
            setrlimit(Resource::RLIMIT_CORE, 0, 0).map(|()| "not dumpable, core limit 0")
        }
    };
    match prctl::set_dumpable(false).and_then(|()| limit()) {
        Ok(detail) => Outcome::On(detail.to_owned()),
        Err(errno) => Outcome::Missing(errno.to_string()),
    }
}

/// What to grant so that the file at `path` stays readable: one of a ConfigMap or Secret is replaced by a new one
/// behind a link, so its folder.
pub fn around(path: &Path) -> impl Iterator<Item = PathBuf> {
    let linked = fs::canonicalize(path).ok();
    [Some(path.to_owned()), linked].into_iter().flatten().map(|path| match path.parent() {
        _ if path.is_dir() => path,
        Some(parent) if parent.parent().is_some() => parent.to_owned(),
        // In the root folder: that file only.
        _ => path,
    })
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}
