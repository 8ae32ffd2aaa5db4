//! The root of a volume: the links the pod sees, and what crashes and older versions left behind.
//!
//! Removal never follows a link, never recurses and holds at most three descriptors, whatever a hostile
//! container has built (CVE-2017-1002102), and its work per pass is bounded: what is left goes next time.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, FileType},
    io::Errno,
};

use super::{
    EntryError,
    layout::Layout,
    on,
    version::{DATA, DATA_TMP, TMP_PREFIX, is_version_name, open_folder, temporary_name},
};

/// Entries looked at in one listing, and entries removed in one tree: about 50 ms of system calls. A volume
/// of ours has hundreds; a container that plants a million must not make the unmount wait for us.
const WORK_LIMIT: usize = 16_384;

/// What a look at the root found and did.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Top-level links of our shape, `name -> ..data/name`.
    pub(super) links: BTreeSet<String>,
    /// Entries that should have gone and could not be removed.
    pub(super) failed: usize,
    /// Whether anything was removed.
    pub(super) changed: bool,
}

/// Removes orphaned version folders, a stale `..data_tmp` and temporary names of ours; everything else
/// that is not ours stays. `current` is the version in use.
pub(super) fn leftovers(root: &OwnedFd, current: Option<&str>) -> Swept {
    let mut swept = Swept::default();
    let Ok(entries) = list(root) else { return Swept { failed: 1, ..swept } };
    for (name, kind) in entries {
        // Every name we ever make is UTF-8.
        let Ok(name) = name.into_string() else { continue };
        let version = is_version_name(&name) && Some(name.as_str()) != current;
        if version || name == DATA_TMP || name.starts_with(TMP_PREFIX) {
            swept.failed += discard(root, [name.as_str()]);
            swept.changed = true;
        } else if kind == FileType::Symlink && links_to_data(root, &name) {
            swept.links.insert(name);
        }
    }
    swept
}

/// What [`link_files`] did.
#[derive(Debug, Default)]
pub(super) struct Linked<'a> {
    /// Links that were not there before.
    pub(super) created: Vec<&'a str>,
    /// Whether something else was in a link's place.
    replaced: bool,
}

impl Linked<'_> {
    /// Whether anything was done.
    pub(super) fn repaired(&self) -> bool {
        self.replaced || !self.created.is_empty()
    }
}

/// Sees that every name of the payload is a link into `..data`, in place of whatever else has the name.
pub(super) fn link_files<'a>(root: &OwnedFd, layout: &Layout<'a>) -> Result<Linked<'a>, EntryError> {
    let mut linked = Linked::default();
    let outcome = layout.tops.iter().try_for_each(|name| link_file(root, name, &mut linked));
    if outcome.is_err() {
        discard(root, linked.created.drain(..));
    }
    outcome.map(|()| linked)
}

fn link_file<'a>(root: &OwnedFd, name: &'a str, linked: &mut Linked<'a>) -> Result<(), EntryError> {
    if links_to_data(root, name) {
        return Ok(());
    }
    let to = format!("{DATA}/{name}");
    match rustix::fs::symlinkat(&to, root, name) {
        Ok(()) => {
            linked.created.push(name);
            return Ok(());
        }
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(on("link", name)(errno)),
    }
    let temporary = temporary_name();
    rustix::fs::symlinkat(&to, root, &temporary).map_err(on("link", &temporary))?;
    linked.replaced = true;
    let mut renamed = rustix::fs::renameat(root, &temporary, root, name);
    if renamed == Err(Errno::ISDIR) {
        discard(root, [name]);
        renamed = rustix::fs::renameat(root, &temporary, root, name);
    }
    renamed.map_err(|errno| {
        discard(root, [temporary.as_str()]);
        on("replace", name)(errno)
    })
}

fn links_to_data(root: &OwnedFd, name: &str) -> bool {
    rustix::fs::readlinkat(root, name, Vec::new())
        .is_ok_and(|link| link.as_bytes().strip_prefix(b"..data/") == Some(name.as_bytes()))
}

/// Removes entries of the root, whatever they are, and counts those that remain.
pub(super) fn discard<'n>(root: &OwnedFd, names: impl IntoIterator<Item = &'n str>) -> usize {
    names.into_iter().filter(|name| !remove(root, name)).count()
}

fn remove(root: &OwnedFd, name: &str) -> bool {
    match rustix::fs::unlinkat(root, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return true,
        Err(Errno::ISDIR) => {}
        Err(_) => return false,
    }
    remove_tree(root, name)
}

/// Flattens instead of recursing: subfolders of subfolders are moved up next to their parent, so depth
/// costs neither stack nor descriptors.
fn remove_tree(root: &OwnedFd, name: &str) -> bool {
    let Ok(top) = open_folder(root, name) else { return false };
    let mut work = WORK_LIMIT;
    loop {
        let Ok(children) = list(&top) else { return false };
        let mut progress = false;
        for (child, kind) in children {
            progress |= if kind == FileType::Directory {
                flatten(&top, &child, &mut work);
                rustix::fs::unlinkat(&top, child, AtFlags::REMOVEDIR).is_ok()
            } else {
                rustix::fs::unlinkat(&top, child, AtFlags::empty()).is_ok()
            };
            work = work.saturating_sub(1);
            if work == 0 {
                return false;
            }
        }
        match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return true,
            Err(Errno::NOTEMPTY) if progress => {}
            Err(_) => return false,
        }
    }
}

fn flatten(top: &OwnedFd, child: &CStr, work: &mut usize) {
    let Ok(folder) = open_folder(top, child) else { return };
    let Ok(entries) = list(&folder) else { return };
    for (name, kind) in entries {
        if *work == 0 {
            return;
        }
        *work -= 1;
        // A failure shows as a folder that is not empty; the caller counts that.
        let _ = if kind == FileType::Directory {
            rustix::fs::renameat(&folder, &name, top, temporary_name())
        } else {
            rustix::fs::unlinkat(&folder, &name, AtFlags::empty())
        };
    }
}

/// Whether the folder's names are exactly `names`.
pub(super) fn holds_exactly(folder: &OwnedFd, names: &BTreeSet<&str>) -> bool {
    list(folder).is_ok_and(|entries| {
        entries.len() == names.len()
            && entries.iter().all(|(name, _)| name.to_str().is_ok_and(|name| names.contains(name)))
    })
}

/// Whether the root has no entry.
pub(super) fn is_empty(root: &OwnedFd) -> Result<bool, EntryError> {
    list(root).map(|entries| entries.is_empty()).map_err(on("list", "."))
}

pub(super) fn list(folder: impl AsFd) -> rustix::io::Result<Vec<(CString, FileType)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder)?.take(WORK_LIMIT) {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(entries)
}
