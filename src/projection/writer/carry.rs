//! Files that go from one version to the next as they are.

use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
};

use super::{
    EntryError, WriteError, on,
    sweep::list,
    version::{open_beneath, open_folder},
};
use crate::{
    projection::{
        FileProjection, MAX_PAYLOAD_LEN, Payload,
        target::{MountIdentity, OpenTarget},
    },
    secret::SecretBytes,
    spec::{FileMode, Object, ObjectPath, object::Absence},
};

/// Folders below one that is carried over: an object's name and the keys of its secret.
const MAX_DEPTH: usize = 16;

/// Adds the files of `objects` to `payload`, with the contents that the version `previous` has. What a container
/// that may write has put in their place is not followed and not taken.
///
/// # Errors
/// When the target is not the recorded mount, or a file is not there as a file.
pub fn carry_over(
    target: &Path,
    identity: &MountIdentity,
    previous: &str,
    objects: &[Object],
    payload: &mut Payload,
) -> Result<(), WriteError> {
    let open = OpenTarget::open_recorded(target, identity)?;
    let version = match open_folder(&open.root, previous) {
        Ok(version) => version,
        Err(Errno::NOENT) => return Err(WriteError::BeingUnpublished { path: target.to_owned() }),
        Err(errno) => return Err(on("open the version folder", previous)(errno).within(target, 0)),
    };
    let mut room = MAX_PAYLOAD_LEN.saturating_sub(payload.len());
    for object in objects {
        let Some(path) = object.file() else { continue };
        let mut found = Vec::new();
        let taken = if object.is_folder() {
            folder(&version, path.as_str(), MAX_DEPTH, &mut room, &mut found)
        } else {
            file(&version, path.as_str(), &mut room).map(|file| found.push((path.as_str().to_owned(), file)))
        };
        match taken {
            Ok(()) => {}
            // It had no file.
            Err(Refusal::Missing) if object.absence == Absence::Skips => {}
            Err(refusal) => return Err(refusal.of(target, path)),
        }
        for (name, (contents, mode)) in found {
            let path = ObjectPath::parse(&name).map_err(|_| Refusal::Odd.of(target, path))?;
            payload.files.insert(path, FileProjection { contents, mode, owner: object.owner });
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
            Self::Odd => "it is of another kind or size",
        };
        WriteError::Tampered { path: target.to_owned(), name: name.to_string(), what }
    }

    fn from_errno(errno: Errno, name: &str) -> Self {
        match errno {
            Errno::NOENT => Self::Missing,
            // A link, a mount, or a file where a folder was.
            Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NXIO => Self::Odd,
            errno => Self::Call(on("read", name)(errno)),
        }
    }
}

fn file(version: &OwnedFd, name: &str, room: &mut usize) -> Result<(SecretBytes, FileMode), Refusal> {
    let failed = |errno| Refusal::from_errno(errno, name);
    let open = open_beneath(version, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, 0);
    let open = open.map_err(failed)?;
    let stat = rustix::fs::fstat(&open).map_err(failed)?;
    let len = usize::try_from(stat.st_size).ok().filter(|len| len <= room).ok_or(Refusal::Odd)?;
    let mode = FileMode::new(stat.st_mode & 0o7777).ok_or(Refusal::Odd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Refusal::Odd);
    }
    *room -= len;
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
    Ok((SecretBytes::new(contents), mode))
}

fn folder(
    version: &OwnedFd,
    name: &str,
    depth: usize,
    room: &mut usize,
    found: &mut Vec<(String, (SecretBytes, FileMode))>,
) -> Result<(), Refusal> {
    let failed = |errno| Refusal::from_errno(errno, name);
    let open = match open_folder(version, name) {
        // A secret without a key has no folder.
        Err(Errno::NOENT) => return Ok(()),
        open => open.map_err(failed)?,
    };
    for (entry, _) in list(&open).map_err(failed)? {
        let path = format!("{name}/{}", entry.to_str().map_err(|_| Refusal::Odd)?);
        match file(version, &path, room) {
            Ok(file) => found.push((path, file)),
            Err(Refusal::Odd) if depth > 0 => folder(version, &path, depth - 1, room, found)?,
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(())
}
