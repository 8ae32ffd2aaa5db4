//! The sockets that the driver finds us by.
//!
//! A socket is bound under a private name and renamed over the final path: it is never reachable with
//! another mode than 0600, a planted symlink or file is replaced instead of followed, and a client finds
//! the old socket or the new one, never none. Everything goes through a descriptor of the folder.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::fs::{self as rfs, AtFlags, Dir, FileType, Mode, OFlags};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};
use tracing::{debug, info, warn};

use super::{authority::AuthorityShim, service::Service};
use crate::spec::ProviderName;

/// Where drivers look first (`--additional-provider-volume-paths`): a file of our name in there shadows our
/// socket, even if it is no socket, and the driver keeps that choice for its whole life.
pub const SHADOWING_FOLDER: &str = "/etc/kubernetes/secrets-store-csi-providers";

/// Connections at once per socket. A driver keeps one open.
const MAX_CONNECTIONS: usize = 64;
/// Calls at once per connection, above what [`super::service`] admits: a refused stream reaches the driver
/// as Unavailable, which is not final.
const MAX_STREAMS: u32 = 4096;
/// Pause after a failed accept (out of descriptors): the queue is not going away.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Prefix of the private folders that a socket is bound in before it is renamed.
const PRIVATE_PREFIX: &str = ".leasehold-";

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}: {step}", path.display())]
pub struct ListenError {
    path: PathBuf,
    step: &'static str,
    source: io::Error,
}

/// How far the process is with ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Calls are taken.
    Serving,
    /// No new connections; calls in flight go on.
    Draining,
    /// Calls in flight are answered now.
    Closing,
}

impl Phase {
    /// Waits until `watched` is here or beyond; a sender that is gone has nothing to serve any more.
    pub async fn reached(self, watched: &mut watch::Receiver<Self>) {
        let _gone = watched.wait_for(|phase| *phase >= self).await;
    }
}

/// A bound socket at its final path.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    folder: OwnedFd,
    file: String,
    path: PathBuf,
    identity: (u64, u64),
}

impl Socket {
    /// Binds `path`, whatever is there now. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the folder is missing or not writable, or a folder is at the path.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let fail = |step| move |error: io::Error| ListenError { path: path.to_owned(), step, source: error };
        let (Some(parent), Some(file)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Err(fail("the path names no file")(io::ErrorKind::InvalidInput.into()));
        };
        let folder = rfs::open(parent, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| {
            fail("its folder cannot be opened: create it or correct --endpoint")(error.into())
        })?;
        sweep(&folder);
        warn_if_in_use(path);

        let private = format!("{PRIVATE_PREFIX}{:016x}", rand::random::<u64>());
        rfs::mkdirat(&folder, &private, Mode::RWXU)
            .map_err(|error| fail("no private folder can be made beside it")(error.into()))?;
        let bound = bind_in(&folder, &private, file);
        // Renamed away or never there: the folder is empty, unless binding failed half-way.
        remove_private(&folder, &private);
        let (listener, identity) = bound.map_err(|(step, error)| fail(step)(error))?;
        let listener = UnixListener::from_std(listener).map_err(fail("the runtime refuses it"))?;
        Ok(Self { listener, folder, file: file.to_owned(), path: path.to_owned(), identity })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, of whomever.
    ///
    /// # Errors
    /// Those of accept(2), which pass.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Removes the socket from its folder, unless a successor has taken the path: a missing file gives the
    /// driver a fast final error, a dead socket a two-minute one that is not final.
    pub fn unlink(&self) {
        let Ok(stat) = rfs::statat(&self.folder, &self.file, AtFlags::SYMLINK_NOFOLLOW) else { return };
        if (stat.st_dev, stat.st_ino) != self.identity {
            return;
        }
        if let Err(error) = rfs::unlinkat(&self.folder, &self.file, AtFlags::empty()) {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

type Bound = (StdListener, (u64, u64));

fn bind_in(folder: &OwnedFd, private: &str, file: &str) -> Result<Bound, (&'static str, io::Error)> {
    // Binding by the descriptor's path: no length limit of sockaddr_un (108 bytes), no second look-up of the
    // folder.
    let inner = format!("{private}/s");
    let listener = StdListener::bind(format!("/proc/self/fd/{}/{inner}", folder.as_raw_fd()))
        .map_err(|error| ("bind", error))?;
    let done = (|| {
        rfs::chmodat(folder, &inner, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        let stat = rfs::statat(folder, &inner, AtFlags::SYMLINK_NOFOLLOW)?;
        rfs::renameat(folder, &inner, folder, file)?;
        Ok((stat.st_dev, stat.st_ino))
    })();
    let identity = done.map_err(|error: rustix::io::Errno| ("its place cannot be taken", error.into()))?;
    listener.set_nonblocking(true).map_err(|error| ("set it non-blocking", error))?;
    Ok((listener, identity))
}

fn remove_private(folder: &OwnedFd, private: &str) {
    // Absent after the rename, which is what we want.
    let _absent = rfs::unlinkat(folder, format!("{private}/s"), AtFlags::empty());
    if let Err(error) = rfs::unlinkat(folder, private, AtFlags::REMOVEDIR) {
        debug!(private, %error, "cannot remove a private folder");
    }
}

/// Removes private folders that a crash left behind.
fn sweep(folder: &OwnedFd) {
    let Ok(entries) = Dir::read_from(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy();
        if name.starts_with(PRIVATE_PREFIX) && entry.file_type() == FileType::Directory {
            remove_private(folder, &name);
        }
    }
}

fn warn_if_in_use(path: &Path) {
    let in_use = std::fs::symlink_metadata(path).is_ok_and(|found| {
        use std::os::unix::fs::FileTypeExt;
        found.file_type().is_socket() && std::os::unix::net::UnixStream::connect(path).is_ok()
    });
    if in_use {
        warn!(
            path = %path.display(),
            "taking over a socket that somebody serves: is another provider of this name on the node?"
        );
    }
}

/// Warns when a file in [`SHADOWING_FOLDER`] hides the socket of `name` from the driver.
pub fn warn_if_shadowed(name: ProviderName, own: &Path, folder: &Path) {
    let shadow = folder.join(format!("{name}.sock"));
    if shadow != own && shadow.symlink_metadata().is_ok() {
        warn!(
            path = %shadow.display(),
            "the driver looks here before {}: remove the file and restart the driver's pods, which keep their \
             first choice",
            own.display()
        );
    }
}

/// Serves `socket` until `phase` leaves [`Phase::Serving`]; then unlinks it, lets the calls in flight end,
/// and returns when they have.
pub async fn serve(
    socket: Socket,
    service: Arc<Service>,
    authority_shim: bool,
    mut phase: watch::Receiver<Phase>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = Phase::Draining.reached(&mut phase) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok(stream) => {
                if connections.len() >= MAX_CONNECTIONS {
                    warn!(path = %socket.path.display(), "refused a connection: {MAX_CONNECTIONS} are open");
                } else if is_trusted(&stream, &socket.path) {
                    let sightings = service.sightings();
                    connections.spawn(connection(
                        AuthorityShim::new(stream, authority_shim).telling(move || sightings.old_driver()),
                        Arc::clone(&service),
                        phase.clone(),
                    ));
                }
            }
            Err(error) => {
                warn!(path = %socket.path.display(), %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    socket.unlink();
    info!(path = %socket.path.display(), in_flight = connections.len(), "socket closed");
    drop(socket);
    while connections.join_next().await.is_some() {}
}

/// The driver runs as root. Whoever else reaches a socket of ours may not name a pod, nor see one.
pub(crate) fn is_trusted(stream: &UnixStream, path: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            warn!(path = %path.display(), uid = peer.uid(), pid = peer.pid(), "refused a caller that is not root");
            false
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "refused a caller whose identity the kernel does not tell");
            false
        }
    }
}

async fn connection(
    stream: AuthorityShim<UnixStream>,
    service: Arc<Service>,
    mut phase: watch::Receiver<Phase>,
) {
    let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| Arc::clone(&service).call(request)),
        );
    tokio::pin!(serve);
    let ended = tokio::select! {
        ended = serve.as_mut() => ended,
        () = Phase::Draining.reached(&mut phase) => {
            serve.as_mut().graceful_shutdown();
            serve.await
        }
    };
    if let Err(error) = ended {
        debug!(error = %crate::telemetry::chain(&error), "a driver's connection ended with an error");
    }
}

#[cfg(test)]
mod tests;
