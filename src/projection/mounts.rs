//! The mount table: parsing mountinfo, and waking when it changes.
//!
//! The table is the only signal of an unmount that is both prompt and harmless: a descriptor inside the
//! volume would make the driver's umount fail with EBUSY, and IN_UNMOUNT comes only when the last private
//! copy of the mount is gone.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

pub use watch::MountWatch;

use crate::projection::target::pod_volume;

mod watch;

#[cfg(test)]
mod tests;

/// The calling thread's own table. All threads of the agent share one namespace; `/proc/self` would mean
/// the main thread's even in a test that gave its thread another.
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// A snapshot of this process's mount table, in the kernel's order: of mounts stacked on one path, the
/// last one is on top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable {
    entries: Vec<MountEntry>,
}

/// One line of the table, see proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The kernel's short id. It is reused at once after an unmount, so it identifies nothing over time:
    /// that is [`MountIdentity`](super::target::MountIdentity)'s office.
    pub id: u32,
    /// `id` of the mount this one sits on.
    pub parent: u32,
    /// Where, with every symbolic link resolved and octal escapes undone.
    pub mount_point: PathBuf,
    /// Type of the file system: `tmpfs`, `ext4`.
    pub fs_type: String,
    /// Whether mounts and unmounts of others arrive here.
    pub propagation: Propagation,
}

/// The optional fields `shared:N` and `master:N`; neither means private.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Propagation {
    /// Peer group this mount sends to and receives from.
    pub shared: Option<u32>,
    /// Peer group this mount only receives from: what `mountPropagation: HostToContainer` gives.
    pub master: Option<u32>,
}

impl MountEntry {
    /// Whether the host's unmount will be seen here. Under private propagation an old mount looks like a
    /// good tmpfs, takes writes and stays for ever, so volumes must not be written by us there.
    pub const fn propagates(&self) -> bool {
        self.propagation.master.is_some() || self.propagation.shared.is_some()
    }

    /// Whether it is a tmpfs.
    pub fn is_tmpfs(&self) -> bool {
        self.fs_type == "tmpfs"
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let _device = fields.next()?;
        let _root = fields.next()?;
        let mount_point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
        let _options = fields.next()?;
        let mut propagation = Propagation::default();
        // Any number of optional fields, also ones not invented yet, up to a lone hyphen.
        loop {
            let field = fields.next()?;
            if field == b"-" {
                break;
            }
            if let Some(group) = field.strip_prefix(b"shared:") {
                propagation.shared = number(group);
            } else if let Some(group) = field.strip_prefix(b"master:") {
                propagation.master = number(group);
            }
        }
        let fs_type = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
        Some(Self { id, parent, mount_point, fs_type, propagation })
    }
}

impl MountTable {
    /// Reads the table of this process's mount namespace.
    ///
    /// # Errors
    /// When `/proc` is not mounted or not readable.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read(MOUNTINFO)?))
    }

    /// Reads what of the table is at `path` or above it: of a node's thousand mounts a handful is kept.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_above(path: &Path) -> io::Result<Self> {
        let entries =
            lines(&std::fs::read(MOUNTINFO)?).filter(|entry| path.starts_with(&entry.mount_point)).collect();
        Ok(Self { entries })
    }

    /// Parses mountinfo text. Total: a line that is not understood is left out, because one odd mount of
    /// a neighbour must not blind us to all volumes of the node.
    pub fn parse(text: &[u8]) -> Self {
        Self { entries: lines(text).collect() }
    }

    /// Every mount, in the kernel's order.
    pub fn entries(&self) -> &[MountEntry] {
        &self.entries
    }

    /// The topmost mount exactly at `path`, which must be free of symbolic links
    /// (see [`resolve`](super::target::resolve)).
    pub fn find(&self, path: &Path) -> Option<&MountEntry> {
        // By its bytes: the kernel writes a path in one way only, and a node's table has a line per volume.
        let path: PathBuf = path.components().collect();
        self.entries.iter().rfind(|entry| entry.mount_point.as_os_str() == path.as_os_str())
    }

    /// The topmost mount at every path, for who looks for many: a node's table has a line per volume.
    pub fn topmost(&self) -> HashMap<&OsStr, &MountEntry> {
        self.entries.iter().map(|entry| (entry.mount_point.as_os_str(), entry)).collect()
    }

    /// The mount that contains `path`: the topmost one at its longest prefix.
    pub fn covering(&self, path: &Path) -> Option<&MountEntry> {
        path.ancestors().find_map(|prefix| self.find(prefix))
    }

    /// Every tmpfs of the shape `<root>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount`, also those
    /// of other drivers: what a Mount has named, or a journal, tells which are ours.
    pub fn kubelet_volumes<'a>(&'a self, kubelet_root: &'a Path) -> impl Iterator<Item = &'a MountEntry> {
        self.entries
            .iter()
            .filter(move |entry| entry.is_tmpfs() && pod_volume(kubelet_root, &entry.mount_point).is_some())
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(MountEntry::parse)
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

// The kernel writes space, tab, newline, backslash and (for the source) `#` as \ooo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if byte == b'\\' => {
                plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}
