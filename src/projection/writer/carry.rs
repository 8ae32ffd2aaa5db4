//! Files that go from one version to the next as they are.
//!
//! They are read back as root (or as the pod's agent) from a place where a container may have been. So a file counts
//! only if it is the one kind of thing that we make there, with the permissions and the owner that we gave to it, in a
//! folder of ours. Its bytes are the container's own affair.

use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{FileType, Stat},
    io::Errno,
};

use super::{
    EntryError, WriteError, on,
    sweep::list,
    version::{is_as_written, open_folder, open_regular},
};
use crate::{
    projection::{
        FileProjection, MAX_PAYLOAD_LEN, Payload,
        target::{MountIdentity, OpenTarget},
    },
    secret::SecretBytes,
    spec::{FileMode, Object, ObjectPath, object::Absence, parameters::MAX_OBJECTS},
};

/// Folders below one that is carried over: an object's name and the keys of its secret.
const MAX_DEPTH: usize = 16;

/// Adds the files of `objects` to `payload`, with the contents that the version `previous` has. What a container
/// that may write has put in their place is not followed, not opened and not taken. `default_mode`: of files whose
/// object names none.
///
/// # Errors
/// When the target is not the recorded mount, or a file is not there as we wrote it.
pub fn carry_over(
    target: &Path,
    identity: &MountIdentity,
    previous: &str,
    (objects, default_mode): (&[Object], FileMode),
    payload: &mut Payload,
) -> Result<(), WriteError> {
    let open = OpenTarget::open_recorded(target, identity)?;
    let failed = |doing| move |errno| on(doing, previous)(errno).within(target, 0);
    let version = match open_folder(&open.root, previous) {
        Ok(version) => version,
        Err(Errno::NOENT) => return Err(WriteError::BeingUnpublished { path: target.to_owned() }),
        Err(errno) => return Err(failed("open the version folder")(errno)),
    };
    let own = rustix::fs::fstat(&version).map_err(failed("stat the version folder"))?;
    if own.st_uid != nix::unistd::geteuid().as_raw() {
        let (path, name) = (target.to_owned(), previous.to_owned());
        return Err(WriteError::Tampered { path, name, what: "its owner is another" });
    }
    let mut found = Found {
        version,
        own,
        room: MAX_PAYLOAD_LEN.saturating_sub(payload.len()),
        entries: MAX_OBJECTS,
        files: Vec::new(),
    };
    for object in objects {
        let Some(path) = object.file() else { continue };
        let (mode, owner) = (object.mode_or(default_mode), object.owner);
        let fits = |stat: &Stat, own: &Stat| is_as_written(stat, own, mode, owner);
        let taken = if object.is_folder() {
            found.folder(path.as_str(), MAX_DEPTH, &fits)
        } else {
            found.file(path.as_str(), &fits)
        };
        match taken {
            Ok(()) => {}
            // It had no file.
            Err(Refusal::Missing) if object.absence == Absence::Skips => {}
            Err(refusal) => return Err(refusal.of(target, path)),
        }
        for (name, contents) in found.files.drain(..) {
            let path = ObjectPath::parse(&name).map_err(|_| Refusal::Odd.of(target, path))?;
            payload.files.insert(path, FileProjection { contents, mode, owner });
        }
    }
    Ok(())
}

enum Refusal {
    Missing,
    Odd,
    Call(EntryError),
}

impl Refusal {
    fn of(self, target: &Path, name: &ObjectPath) -> WriteError {
        let what = match self {
            Self::Call(error) => return error.within(target, 0),
            Self::Missing => "it is gone",
            Self::Odd => "its kind, size, mode or owner is another",
        };
        WriteError::Tampered { path: target.to_owned(), name: name.to_string(), what }
    }

    fn from_errno(errno: Errno, name: &str) -> Self {
        match errno {
            Errno::NOENT => Self::Missing,
            // A link, a mount, a file where a folder was, one that somebody claims, or nothing of ours.
            Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::AGAIN | Errno::INVAL => Self::Odd,
            errno => Self::Call(on("read", name)(errno)),
        }
    }
}

/// What is read of a version, within bounds.
struct Found {
    version: OwnedFd,
    own: Stat,
    /// Bytes that may still be read.
    room: usize,
    /// Entries that may still be looked at: a container can make millions.
    entries: usize,
    files: Vec<(String, SecretBytes)>,
}

type Fits<'a> = dyn Fn(&Stat, &Stat) -> bool + 'a;

impl Found {
    fn file(&mut self, name: &str, fits: &Fits<'_>) -> Result<(), Refusal> {
        let failed = |errno| Refusal::from_errno(errno, name);
        let len = |stat: &Stat| usize::try_from(stat.st_size).ok();
        let fits = |stat: &Stat| {
            // We make no second name: it would be one file in another's place.
            stat.st_nlink == 1 && fits(stat, &self.own) && len(stat).is_some_and(|len| len <= self.room)
        };
        let (open, stat) = open_regular(&self.version, name, fits).map_err(failed)?;
        let len = len(&stat).ok_or(Refusal::Odd)?;
        self.room -= len;
        let mut contents = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match rustix::io::read(&open, &mut contents[filled..]) {
                Ok(0) => return Err(Refusal::Odd),
                Ok(read) => filled += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        self.files.push((name.to_owned(), SecretBytes::new(contents)));
        Ok(())
    }

    fn folder(&mut self, name: &str, depth: usize, fits: &Fits<'_>) -> Result<(), Refusal> {
        let failed = |errno| Refusal::from_errno(errno, name);
        let open = match open_folder(&self.version, name) {
            // A secret without a key has no folder.
            Err(Errno::NOENT) => return Ok(()),
            open => open.map_err(failed)?,
        };
        let entries = list(&open).map_err(failed)?;
        self.entries = self.entries.checked_sub(entries.len()).ok_or(Refusal::Odd)?;
        for (entry, kind) in entries {
            let path = format!("{name}/{}", entry.to_str().map_err(|_| Refusal::Odd)?);
            let file = match kind {
                FileType::Directory => Err(Refusal::Odd),
                _ => self.file(&path, fits),
            };
            match file {
                // Not every file system tells the kind.
                Err(Refusal::Odd) if depth > 0 && matches!(kind, FileType::Directory | FileType::Unknown) => {
                    self.folder(&path, depth - 1, fits)?;
                }
                file => file?,
            }
        }
        Ok(())
    }
}
