//! The atomic writer: the kubelet's `..data` layout, in one short burst.
//!
//! ```text
//! ..2026_11_23_20_31_02.1783046592/     0755, one per version, UTC
//!     password  nested/cert.pem
//! ..data   -> ..2026_11_23_20_31_02.1783046592
//! password -> ..data/password
//! nested   -> ..data/nested
//! ```
//!
//! The layout is the kubelet's and the driver's AtomicWriter's to the byte, so that either can take over
//! from the other. The differences are in how it is made: beneath one verified directory descriptor, with
//! a private temporary name, and with leftovers of a crash repaired in every pass.
//!
//! **Nothing is written when nothing changed.** The only witness is what is on disk: names, types, modes,
//! owners, sizes and, wherever this process may read them back, bytes. Root without CAP_DAC_OVERRIDE may
//! not read a 0400 file that it gave to another uid. For such a file alone the caller's word counts
//! ([`WriteRequest::contents_as_before`], from the keyed digests it keeps), and only while `..data` links
//! to `previous`. Without that word the file counts as changed: at worst one write too many, never a
//! stale file.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT},
    io::Errno,
};

use crate::projection::{
    Payload,
    target::{MountIdentity, OpenTarget, TargetError},
};
pub use carry::carry_over;
use layout::Layout;
use version::DATA;

mod carry;
mod layout;
mod sweep;
mod version;

/// How far in the future the root's mtime may be before the driver's clock counts as stepped back.
const CLOCK_SLACK: Duration = Duration::from_secs(5);

/// What the mount root's mtime becomes. It is the driver's only rotation clock: the driver calls again when
/// it is older than its rotation interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootMtime {
    /// What it was: a swap of our own must not postpone the driver's next call.
    Restore,
    /// Now: the driver calls again after its rotation interval.
    Now,
    /// The epoch: the driver calls again at the next republish.
    Zero,
}

/// One write.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest<'a> {
    /// Where.
    pub target: &'a Path,
    /// The mount it must be.
    pub identity: &'a MountIdentity,
    /// The version that we wrote last; then `..data` must link to it. `None` takes over whatever is there.
    pub previous: Option<&'a str>,
    /// What.
    pub payload: &'a Payload,
    /// Whether the caller knows, from keyed digests of `previous`, that its contents equal `payload`'s.
    /// Counts only for files that this process may not read back.
    pub contents_as_before: bool,
    /// What becomes of the driver's rotation clock. A write that fails restores it.
    pub root_mtime: RootMtime,
}

/// A write that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// What `..data` links to now: `previous` of the next write.
    pub version_dir: String,
    /// Whether a new version was made.
    pub changed: bool,
    /// Bytes written; 0 when nothing changed.
    pub bytes: usize,
    /// Entries that should have gone and could not be removed; the next pass tries again.
    pub leftovers: usize,
    /// Whether the root's mtime is what was asked for. Not so where the root is another user's, as an
    /// emptyDir's is; no driver reads it there.
    pub mtime_set: bool,
}

/// Why nothing was swapped. In every case the version that was there is there still, complete.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The target is not, or no longer, a tmpfs that we may write to.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A file's path could lead out of its place.
    #[error("file path {path:?} {rule}: rename the object")]
    Path {
        /// The path.
        path: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// One path is another one's folder.
    #[error("file {path:?} is a folder of another file: rename one of the objects")]
    Clash {
        /// The shorter path.
        path: String,
    },
    /// Permission bits outside 0777; the driver's tmpfs is mounted without nosuid.
    #[error("file {path:?} asks for mode {mode:o}: use bits within 0777")]
    Mode {
        /// The file.
        path: String,
        /// The mode.
        mode: u32,
    },
    /// An owner that chown(2) takes to mean "leave as it is".
    #[error("file {path:?} asks for uid or gid 4294967295: use an id below")]
    Owner {
        /// The file.
        path: String,
    },
    /// Only CAP_CHOWN gives files to another user.
    #[error(
        "cannot give file {path:?} its owner: the agent lacks the capability CAP_CHOWN; add it (in the chart \
         fileOwnership.enabled=true), or leave out fileOwner and fileGroup"
    )]
    NotPermitted {
        /// The file.
        path: String,
    },
    /// `..data` of a volume that we wrote is gone, or what it links to: the driver deletes the files just
    /// before it unmounts. Write nothing until the mount table decides.
    #[error("{path} is being unpublished: its ..data is gone; waiting for the unmount")]
    BeingUnpublished {
        /// The target.
        path: PathBuf,
    },
    /// Somebody else swapped since our last write.
    #[error(
        "{path} no longer links ..data to {expected}: another writer was there; the driver's next call decides"
    )]
    Displaced {
        /// The target.
        path: PathBuf,
        /// The version that we wrote last.
        expected: String,
    },
    /// A file that is carried over is not as we wrote it: a container that may write has changed it.
    #[error("{name:?} in {path} is not the file that was written there: {what}; it is read and written anew")]
    Tampered {
        /// The target.
        path: PathBuf,
        /// The file.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The tmpfs is full; the old version stays.
    #[error("{path} is full: {needed} bytes do not fit; the old version stays")]
    Full {
        /// The target.
        path: PathBuf,
        /// Bytes of all contents.
        needed: usize,
    },
    /// A system call failed; the old version stays.
    #[error("cannot {doing} {name:?} in {path}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The entry within the volume.
        name: String,
        /// The target.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A system call on an entry of a volume that failed. The caller knows which volume.
#[derive(Debug)]
struct EntryError {
    doing: &'static str,
    name: String,
    errno: Errno,
}

/// Names the call and the entry of an errno.
fn on(doing: &'static str, name: &str) -> impl FnOnce(Errno) -> EntryError {
    move |errno| EntryError { doing, name: name.to_owned(), errno }
}

impl EntryError {
    fn within(self, path: &Path, needed: usize) -> WriteError {
        match self.errno {
            Errno::NOSPC | Errno::DQUOT => WriteError::Full { path: path.to_owned(), needed },
            Errno::PERM if self.doing == version::GIVE => WriteError::NotPermitted { path: self.name },
            errno => WriteError::Io {
                doing: self.doing,
                name: self.name,
                path: path.to_owned(),
                source: errno.into(),
            },
        }
    }
}

/// Makes `payload` the volume's content: all files at once, or nothing.
///
/// Blocking, and short by design: it opens the target, verifies it, and works only beneath that descriptor,
/// so that an unmount in between can neither redirect a byte to the disk beneath nor be refused for longer
/// than the call lasts.
///
/// # Errors
/// See [`WriteError`].
pub fn write(request: WriteRequest<'_>) -> Result<Swap, WriteError> {
    let layout = Layout::new(request.payload)?;
    let target = OpenTarget::open_recorded(request.target, request.identity)?;
    check_previous(&target, &request)?;
    // The driver's RemoveAll takes files from under us as well: its errors are not ours to report.
    let outcome = burst(&target, &request, &layout).or_else(|error| {
        check_previous(&target, &request)?;
        Err(match error {
            // In the order of names it may come to what is being made first.
            WriteError::Io { source, path, .. }
                if request.previous.is_some() && source.kind() == io::ErrorKind::NotFound =>
            {
                WriteError::BeingUnpublished { path }
            }
            error => error,
        })
    });
    // What a failed pass made and removed again has moved the clock as well.
    let (mtime, touched) =
        outcome.as_ref().map_or((RootMtime::Restore, true), |(_, touched)| (request.root_mtime, *touched));
    let mtime_set = apply_mtime(&target, mtime, touched).is_ok();
    outcome.map(|(swap, _)| Swap { mtime_set, ..swap })
}

/// Everything that changes entries; also says whether any was.
fn burst(
    target: &OpenTarget,
    request: &WriteRequest<'_>,
    layout: &Layout<'_>,
) -> Result<(Swap, bool), WriteError> {
    let root = &target.root;
    let failed = |error: EntryError| error.within(request.target, request.payload.len());
    let current = version::current(root).map_err(failed)?;
    // Before anything is made: orphans of a crash may be what fills the tmpfs.
    let mut swept = sweep::leftovers(root, current.as_deref());
    let unchanged = current.as_deref().filter(|name| {
        let trusted = request.contents_as_before && request.previous == Some(*name);
        version::equals(root, name, layout, trusted)
    });
    let version_dir = match unchanged {
        Some(name) => {
            swept.changed |= sweep::link_files(root, layout).map_err(failed)?.repaired();
            name.to_owned()
        }
        None => {
            let made = version::create(root, layout, clock_now()).map_err(failed)?;
            if let Err(error) = publish(target, request, layout, &made) {
                sweep::discard(root, [made.as_str()]);
                return Err(error);
            }
            swept.failed += sweep::discard(root, current.as_deref());
            made
        }
    };
    let changed = unchanged.is_none();
    let obsolete: Vec<&str> =
        swept.links.iter().map(String::as_str).filter(|name| !layout.tops.contains(name)).collect();
    swept.changed |= changed || !obsolete.is_empty();
    swept.failed += sweep::discard(root, obsolete);
    let bytes = if changed { request.payload.len() } else { 0 };
    Ok((Swap { version_dir, changed, bytes, leftovers: swept.failed, mtime_set: false }, swept.changed))
}

/// Links before the swap, so that everything that may fail for want of space comes before the one step
/// that cannot be undone.
fn publish(
    target: &OpenTarget,
    request: &WriteRequest<'_>,
    layout: &Layout<'_>,
    made: &str,
) -> Result<(), WriteError> {
    let failed = |error: EntryError| error.within(request.target, request.payload.len());
    let linked = sweep::link_files(&target.root, layout).map_err(failed)?;
    check_previous(target, request)
        .and_then(|()| version::swap(&target.root, made).map_err(failed))
        .inspect_err(|_| {
            sweep::discard(&target.root, linked.created.iter().copied());
        })
}

/// Sets the driver's rotation clock without writing: after an answered Mount, say.
///
/// # Errors
/// When the target is not the recorded mount, or the call fails.
pub fn set_root_mtime(
    target: &Path,
    identity: &MountIdentity,
    root_mtime: RootMtime,
) -> Result<(), TargetError> {
    let open = OpenTarget::open_recorded(target, identity)?;
    apply_mtime(&open, root_mtime, false).map_err(|errno| TargetError::Io {
        doing: "set the mtime of",
        path: target.to_owned(),
        source: errno.into(),
    })
}

/// What a volume looks like from outside its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Which mount it is.
    pub identity: MountIdentity,
    /// The version folder that `..data` links to; `None` when there is no `..data`, when it links to
    /// anything but a version folder, or to one that is gone. For a volume that we wrote that means it is
    /// being unpublished; with `empty`, that its first mount never finished (driver issue #1051).
    pub data: Option<String>,
    /// Whether the volume has no entry at all.
    pub empty: bool,
    /// The root's mtime: the driver's rotation clock.
    pub root_mtime: SystemTime,
}

/// Looks at a volume and writes nothing.
///
/// # Errors
/// When nothing or no tmpfs is mounted there.
pub fn inspect(target: &Path) -> Result<Inspection, TargetError> {
    look(target, OpenTarget::open(target)?)
}

/// Looks at a plain folder of our own pod and writes nothing. `disk_backed`: whether it may be on a disk.
///
/// # Errors
/// When there is no such folder, or it is not in memory and may not be elsewhere.
pub fn inspect_folder(folder: &Path, disk_backed: bool) -> Result<Inspection, TargetError> {
    look(folder, OpenTarget::open_folder(folder, disk_backed)?)
}

fn look(target: &Path, open: OpenTarget) -> Result<Inspection, TargetError> {
    let failed = |error: EntryError| TargetError::Io {
        doing: error.doing,
        path: target.join(error.name),
        source: error.errno.into(),
    };
    let data = version::current(&open.root).map_err(failed)?.filter(|name| version::exists(&open.root, name));
    let empty = sweep::is_empty(&open.root).map_err(failed)?;
    let root_mtime =
        since_epoch(open.mtime).map_or(SystemTime::UNIX_EPOCH, |age| SystemTime::UNIX_EPOCH + age);
    Ok(Inspection { identity: open.identity, data, empty, root_mtime })
}

/// The driver's RemoveAll goes by name: the version folder first, `..data` after it. Either one missing
/// means it has begun.
fn check_previous(target: &OpenTarget, request: &WriteRequest<'_>) -> Result<(), WriteError> {
    let Some(previous) = request.previous else { return Ok(()) };
    let path = || request.target.to_owned();
    match rustix::fs::readlinkat(&target.root, DATA, Vec::new()) {
        Ok(link) if link.as_bytes() != previous.as_bytes() => {
            Err(WriteError::Displaced { path: path(), expected: previous.to_owned() })
        }
        Ok(_) if version::exists(&target.root, previous) => Ok(()),
        Ok(_) | Err(Errno::NOENT) => Err(WriteError::BeingUnpublished { path: path() }),
        Err(Errno::INVAL) => Err(WriteError::Displaced { path: path(), expected: previous.to_owned() }),
        Err(errno) => Err(on("read the link", DATA)(errno).within(request.target, 0)),
    }
}

/// `touched`: whether this pass changed an entry of the root, and with it the mtime.
fn apply_mtime(target: &OpenTarget, wanted: RootMtime, touched: bool) -> rustix::io::Result<()> {
    const ZERO: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let stepped_back = || {
        let limit = clock_now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + CLOCK_SLACK;
        since_epoch(target.mtime).is_some_and(|mtime| mtime > limit)
    };
    let mtime = match wanted {
        RootMtime::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        RootMtime::Zero => ZERO,
        // The driver compares with its own clock: an mtime it has yet to reach would silence it till then.
        RootMtime::Restore if stepped_back() => ZERO,
        RootMtime::Restore if touched => target.mtime,
        RootMtime::Restore => return Ok(()),
    };
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    rustix::fs::futimens(&target.root, &Timestamps { last_access, last_modification: mtime })
}

fn since_epoch(time: Timespec) -> Option<Duration> {
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

fn clock_now() -> SystemTime {
    crate::clock::wall_now()
}
