//! Child processes: started, waited for, and with them every orphan that is handed to us.
//!
//! In a container we are often process 1, whose office it is to reap whatever its children leave behind. So
//! nobody waits for one process by its id: one task reaps all, and tells those who wait.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::CommandExt as _,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::debug;

type Waiting = BTreeMap<Pid, oneshot::Sender<u8>>;

/// Starts children, and hears of their ends.
#[derive(Clone, Debug)]
pub(super) struct Children(Arc<Mutex<Waiting>>);

/// A child in a process group of its own.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// Its exit code, or 128 and the signal that ended it, as a shell tells it.
    pub(super) ended: oneshot::Receiver<u8>,
}

impl Child {
    /// Sends a signal to it and to what it started.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = killpg(self.pid, signal) {
            debug!(%error, %signal, "a signal did not reach the child");
        }
    }

    /// Its process id.
    pub(super) fn id(&self) -> i32 {
        self.pid.as_raw()
    }
}

impl Children {
    /// Reaps from now on. Must be called within a runtime.
    ///
    /// # Errors
    /// When the handler of SIGCHLD cannot be installed.
    pub(super) fn new() -> io::Result<Self> {
        let waiting = Arc::new(Mutex::new(Waiting::new()));
        let mut died = signal(SignalKind::child())?;
        let shared = Arc::clone(&waiting);
        tokio::spawn(async move {
            while died.recv().await.is_some() {
                reap(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
            }
        });
        Ok(Self(waiting))
    }

    /// Starts a child in a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Held across both: a child that ends at once is not reaped before somebody waits for it.
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.process_group(0).spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let (sender, ended) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok(Child { pid, ended })
    }
}

fn reap(waiting: &mut Waiting) {
    loop {
        let (pid, code) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                (pid, u8::try_from(128 + signal as i32).unwrap_or(u8::MAX))
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => {
                debug!(%error, "cannot wait for children");
                return;
            }
        };
        match waiting.remove(&pid) {
            // Whoever waited may have given up.
            Some(waiter) => drop(waiter.send(code)),
            None => debug!(pid = pid.as_raw(), code, "reaped an orphan"),
        }
    }
}
