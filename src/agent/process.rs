//! Processes of the pod, found by name, and signals to them.

use std::{fs, path::Path};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, getpid},
};

/// The kernel cuts a process's own name to so many bytes.
const COMM: usize = 15;

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignalError {
    /// We see our own processes only.
    #[error(
        "onChange.signal needs the pod's process namespace: set shareProcessNamespace: true, or tell the \
         application by http or touch"
    )]
    NotShared,
    /// No such process.
    #[error("no process named {name:?} runs in the pod")]
    Absent {
        /// The name.
        name: String,
    },
    /// The kernel refuses.
    #[error(
        "may not signal process {pid} ({name}), which runs as uid {theirs}, and the agent as {ours}: give the \
         agent's container runAsUser {theirs}, or tell the application by http or touch"
    )]
    Forbidden {
        /// The name.
        name: String,
        /// Of the process.
        pid: i32,
        /// Its user.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
}

/// Whether signals to others of the pod can work at all.
///
/// # Errors
/// When the process namespace is not shared, or the process is there and another user's.
pub(super) fn check(name: &str) -> Result<(), SignalError> {
    // With a namespace of our own we are its first process.
    if getpid() == Pid::from_raw(1) {
        return Err(SignalError::NotShared);
    }
    match send(name, None) {
        // It starts after us.
        Err(SignalError::Absent { .. }) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Signals every process of that name whose parent has another name: workers are their master's business.
/// Says how many.
///
/// # Errors
/// When there is none, or one that we may not signal.
pub(super) fn send(name: &str, signal: impl Into<Option<Signal>>) -> Result<usize, SignalError> {
    let signal = signal.into();
    let mut sent = 0;
    for (pid, owner) in find(name) {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) => sent += 1,
            Err(Errno::EPERM) => {
                let ours = nix::unistd::geteuid().as_raw();
                return Err(SignalError::Forbidden { name: name.to_owned(), pid, theirs: owner, ours });
            }
            // It ended meanwhile.
            Err(_) => {}
        }
    }
    if sent == 0 { Err(SignalError::Absent { name: name.to_owned() }) } else { Ok(sent) }
}

fn find(name: &str) -> Vec<(i32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let own = getpid().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named: Vec<i32> = pids.filter(|pid| *pid != own && is_named(*pid, name)).collect();
    let owner = |pid: i32| fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid());
    named
        .iter()
        .filter(|pid| parent(**pid).is_none_or(|parent| !named.contains(&parent)))
        .filter_map(|pid| Some((*pid, owner(*pid)?)))
        .collect()
}

fn is_named(pid: i32, name: &str) -> bool {
    let folder = format!("/proc/{pid}");
    let file = |path: &Path| path.file_name().is_some_and(|file| file.as_encoded_bytes() == name.as_bytes());
    let comm = fs::read(format!("{folder}/comm")).unwrap_or_default();
    let short = &name.as_bytes()[..name.len().min(COMM)];
    if comm.strip_suffix(b"\n").unwrap_or(&comm) == short {
        return true;
    }
    if fs::read_link(format!("{folder}/exe")).is_ok_and(|path| file(&path)) {
        return true;
    }
    // Of another user's process the kernel does not tell the file, but what it was called by.
    let line = fs::read(format!("{folder}/cmdline")).unwrap_or_default();
    let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(first).is_ok_and(|first| file(Path::new(first)))
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    #[test]
    fn a_process_is_found_by_its_name_and_signalled() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lh-told-by-agent");
        fs::copy("/bin/sleep", &program).unwrap();
        let name = "lh-told-by-agent";
        assert!(matches!(send(name, Signal::SIGUSR1), Err(SignalError::Absent { .. })));
        let mut child = Command::new(&program).arg("60").spawn().unwrap();
        // The new program is there once its name is.
        while !is_named(i32::try_from(child.id()).unwrap(), name) {
            std::thread::yield_now();
        }
        check(name).unwrap();
        assert_eq!(send(name, Signal::SIGUSR1).unwrap(), 1);
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGUSR1 as i32));
    }
}
