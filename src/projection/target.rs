//! A pod volume on the host: opened, checked to be the tmpfs we think it is, identified.
//!
//! Everything here opens, looks and closes within one call. Even an O_PATH descriptor that outlives the
//! call would make the driver's umount fail with EBUSY and leave the pod Terminating.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, Timespec};

#[cfg(test)]
mod tests;

/// `f_type` of a tmpfs, from linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Path elements from the kubelet's root to a volume's mount.
const VOLUME_DEPTH: usize = 6;

/// Tells one mount from the next one on the same path. The kernel reuses the mount id of mountinfo, st_dev
/// and the root's inode number at once, so none of them is in here. Nor is STATX_MNT_ID_UNIQUE: it names the
/// copy of the mount in one mount namespace, and a restarted agent is in another, so that each restart would
/// take every live volume for a new one. The file system's own id is the same in all.
///
/// One kernel always yields the same kind, so equality is enough; identities do not outlive a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountIdentity {
    /// statfs `f_fsid`: random for each tmpfs, since kernel 5.14.
    FsId(u64),
    /// When the root directory was made. Two mounts within one tick of the kernel's clock share it, which
    /// is why later writes also require `..data` to link to the version that we last wrote.
    BirthTime {
        /// Seconds since the epoch.
        seconds: i64,
        /// And nanoseconds.
        nanos: u32,
    },
    /// A plain folder of the pod that we run in, an emptyDir or below one: nobody unmounts it.
    Folder {
        /// statfs `f_fsid` of what it is on.
        file_system: u64,
        /// Its inode.
        inode: u64,
        /// Whether the user allows it to be on a disk.
        disk_backed: bool,
    },
}

impl fmt::Display for MountIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FsId(id) => write!(f, "file system {id:016x}"),
            Self::BirthTime { seconds, nanos } => write!(f, "born {seconds}.{nanos:09}"),
            Self::Folder { file_system, inode, .. } => {
                write!(f, "folder {inode} of file system {file_system:016x}")
            }
        }
    }
}

/// Why a target is not written to, or not looked at.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The path has not the shape of a CSI volume below the kubelet's root.
    #[error(
        "{path} is not <root>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount below {root}; is --kubelet-root the kubelet's own?"
    )]
    NotAVolume {
        /// As the caller gave it.
        path: PathBuf,
        /// The kubelet's root.
        root: PathBuf,
    },
    /// Nothing is mounted there: the volume was unmounted, or propagation does not reach us.
    #[error(
        "nothing is mounted at {path}: the volume is gone, or the pods folder lacks mountPropagation HostToContainer"
    )]
    NotMounted {
        /// The target.
        path: PathBuf,
    },
    /// Something is mounted there that would keep secrets on a disk or on a network.
    #[error("{path} is mounted, but not as tmpfs (f_type {found:#x}): secrets are written to memory only")]
    NotTmpfs {
        /// The target.
        path: PathBuf,
        /// `f_type` of what is there.
        found: u64,
    },
    /// A folder of the pod that is not in memory, and was not said to be.
    #[error(
        "{path} is not in memory (f_type {found:#x}), so the secrets would reach the node's disk: give the emptyDir \
         medium: Memory, or set diskBacked: true for the folder"
    )]
    OnDisk {
        /// The folder.
        path: PathBuf,
        /// `f_type` of what it is on.
        found: u64,
    },
    /// There is no such folder, or a symbolic link is in its path.
    #[error("{path} is no folder, or a symbolic link is in its path: mount an emptyDir there")]
    NoFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another mount took the place of the recorded one; only a new Mount call may write to it.
    #[error(
        "{path} was mounted anew since it was recorded ({found}, not {recorded}): the driver's next call decides"
    )]
    Changed {
        /// The target.
        path: PathBuf,
        /// What the caller knew.
        recorded: MountIdentity,
        /// What is there.
        found: MountIdentity,
    },
    /// A system call failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The target.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a target path says about its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodVolume<'a> {
    /// The pod's uid, as the kubelet wrote it into the path.
    pub pod_uid: &'a str,
    /// Name of the volume in the pod's spec.
    pub volume: &'a str,
}

/// Checks that `path` is `<root>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount`, absolute and normal
/// (the shape of the driver's `fileutil.targetPathRe`, anchored).
///
/// # Errors
/// [`TargetError::NotAVolume`].
pub fn validate_target_path<'a>(kubelet_root: &Path, path: &'a Path) -> Result<PodVolume<'a>, TargetError> {
    pod_volume(kubelet_root, path)
        .ok_or_else(|| TargetError::NotAVolume { path: path.to_owned(), root: kubelet_root.to_owned() })
}

pub(crate) fn pod_volume<'a>(kubelet_root: &Path, path: &'a Path) -> Option<PodVolume<'a>> {
    // Components forgive `//`, `/./` and a trailing slash; the kubelet writes none of them.
    let rebuilt: PathBuf = path.components().collect();
    if !path.is_absolute() || rebuilt.as_os_str() != path.as_os_str() {
        return None;
    }
    let mut names = path.strip_prefix(kubelet_root).ok()?.components().map(|component| match component {
        Component::Normal(name) => name.to_str().filter(|name| !name.contains(char::is_control)),
        _ => None,
    });
    let mut next = || names.next().flatten();
    let (pods, pod_uid, volumes, driver, volume, mount) =
        (next()?, next()?, next()?, next()?, next()?, next()?);
    (pods == "pods" && volumes == "volumes" && driver == "kubernetes.io~csi" && mount == "mount")
        .then_some(())
        .filter(|()| names.next().is_none())
        .map(|()| PodVolume { pod_uid, volume })
}

/// `path` with the symbolic links of its trusted part resolved, as the mount table spells it.
///
/// # Errors
/// [`TargetError::Io`] when the trusted part does not exist.
pub fn resolve(path: &Path) -> Result<PathBuf, TargetError> {
    let (anchor, tail) = split(path);
    let anchor = anchor.canonicalize().map_err(|source| TargetError::Io {
        doing: "resolve the kubelet's root of",
        path: path.to_owned(),
        source,
    })?;
    Ok(anchor.join(tail))
}

/// Identifies the tmpfs mounted at `path`.
///
/// # Errors
/// When nothing or no tmpfs is mounted there, or the path below the kubelet's root holds a symbolic link.
pub fn identify(path: &Path) -> Result<MountIdentity, TargetError> {
    Ok(OpenTarget::open(path)?.identity)
}

/// Splits into the part whose symbolic links are the operator's own business (the kubelet's root, often a
/// link to a bigger disk) and the part in which no link is followed. A target of another shape, an
/// emptyDir inside our own pod, is trusted up to its last element.
fn split(path: &Path) -> (&Path, &Path) {
    let anchor = path
        .ancestors()
        .nth(VOLUME_DEPTH)
        .filter(|root| pod_volume(root, path).is_some())
        .or_else(|| path.parent())
        .unwrap_or(path);
    (anchor, path.strip_prefix(anchor).unwrap_or(path))
}

/// A target, open and known to be a mounted tmpfs. While it lives the driver's umount fails: it must not
/// be kept, and no caller may await while it has one.
#[derive(Debug)]
pub(super) struct OpenTarget {
    /// The root of the volume.
    pub(super) root: OwnedFd,
    /// Which mount it is.
    pub(super) identity: MountIdentity,
    /// The root's mtime before we touched anything: the driver's rotation clock.
    pub(super) mtime: Timespec,
}

impl OpenTarget {
    /// Opens the volume at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, TargetError> {
        let failed = |doing| {
            move |errno: rustix::io::Errno| TargetError::Io {
                doing,
                path: path.to_owned(),
                source: errno.into(),
            }
        };
        let missing = |doing| {
            move |errno| match errno {
                // EXDEV: what the walk had reached was unmounted under it.
                rustix::io::Errno::NOENT | rustix::io::Errno::XDEV => {
                    TargetError::NotMounted { path: path.to_owned() }
                }
                errno => failed(doing)(errno),
            }
        };
        let (anchor, tail) = split(path);
        let anchor =
            rustix::fs::open(anchor, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(missing("open the kubelet's root of"))?;
        let root = rustix::fs::openat2(
            &anchor,
            tail,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
        .map_err(missing("open"))?;
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let here = rustix::fs::statx(&root, "", AtFlags::EMPTY_PATH, mask).map_err(failed("stat"))?;
        let above = rustix::fs::statx(&root, "..", AtFlags::empty(), StatxFlags::BASIC_STATS)
            .map_err(failed("stat the parent of"))?;
        // A lazily unmounted root is its own parent, so this also finds that we came too late.
        if (here.stx_dev_major, here.stx_dev_minor) == (above.stx_dev_major, above.stx_dev_minor) {
            return Err(TargetError::NotMounted { path: path.to_owned() });
        }
        let found = u64::try_from(rustix::fs::fstatfs(&root).map_err(failed("statfs"))?.f_type).unwrap_or(0);
        if found != TMPFS_MAGIC {
            return Err(TargetError::NotTmpfs { path: path.to_owned(), found });
        }
        let identity = Self::identity_of(&root, &here).map_err(failed("statvfs"))?;
        let mtime = Timespec { tv_sec: here.stx_mtime.tv_sec, tv_nsec: here.stx_mtime.tv_nsec.into() };
        Ok(Self { root, identity, mtime })
    }

    /// Opens a plain folder of our own pod. The path has no symbolic link in it, also above the folder: another
    /// container may share what is above, and could lead the secrets astray.
    pub(super) fn open_folder(path: &Path, disk_backed: bool) -> Result<Self, TargetError> {
        let failed = |doing| {
            move |errno: rustix::io::Errno| TargetError::Io {
                doing,
                path: path.to_owned(),
                source: errno.into(),
            }
        };
        let top = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("open the root above"))?;
        let root = rustix::fs::openat2(
            &top,
            path.strip_prefix("/").unwrap_or(path),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
        .map_err(|errno| match errno {
            rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => {
                TargetError::NoFolder { path: path.to_owned(), source: errno.into() }
            }
            errno => failed("open")(errno),
        })?;
        let found = u64::try_from(rustix::fs::fstatfs(&root).map_err(failed("statfs"))?.f_type).unwrap_or(0);
        if found != TMPFS_MAGIC && !disk_backed {
            return Err(TargetError::OnDisk { path: path.to_owned(), found });
        }
        let here = rustix::fs::fstat(&root).map_err(failed("stat"))?;
        let file_system = rustix::fs::fstatvfs(&root).map_err(failed("statvfs"))?.f_fsid;
        let mtime =
            Timespec { tv_sec: here.st_mtime, tv_nsec: i64::try_from(here.st_mtime_nsec).unwrap_or(0) };
        Ok(Self {
            root,
            identity: MountIdentity::Folder { file_system, inode: here.st_ino, disk_backed },
            mtime,
        })
    }

    /// Opens the volume at `path` if it is still the mount that the caller recorded.
    pub(super) fn open_recorded(path: &Path, recorded: &MountIdentity) -> Result<Self, TargetError> {
        let target = match recorded {
            MountIdentity::Folder { disk_backed, .. } => Self::open_folder(path, *disk_backed)?,
            MountIdentity::FsId(_) | MountIdentity::BirthTime { .. } => Self::open(path)?,
        };
        if target.identity != *recorded {
            return Err(TargetError::Changed {
                path: path.to_owned(),
                recorded: *recorded,
                found: target.identity,
            });
        }
        Ok(target)
    }

    fn identity_of(root: &OwnedFd, stat: &rustix::fs::Statx) -> rustix::io::Result<MountIdentity> {
        let fsid = rustix::fs::fstatvfs(root)?.f_fsid;
        Ok(if fsid == 0 {
            MountIdentity::BirthTime { seconds: stat.stx_btime.tv_sec, nanos: stat.stx_btime.tv_nsec }
        } else {
            MountIdentity::FsId(fsid)
        })
    }
}
