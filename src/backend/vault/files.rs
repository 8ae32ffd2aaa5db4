//! Reading the files that TLS needs, when a tenant may have chosen their paths.
//!
//! Policy decides which folders are allowed; here a path that leads to a device, a FIFO or `/proc` costs
//! nothing and tells nothing. Symbolic links are followed: that is how the kubelet lays out ConfigMaps.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::statfs::{PROC_SUPER_MAGIC, fstatfs},
};

/// Largest TLS file read, bytes: five times Debian's whole certificate bundle.
pub(super) const MAX_TLS_FILE: u64 = 1024 * 1024;

/// Most files read from one CA folder: a hashed system folder holds about 300.
const MAX_DIRECTORY_FILES: usize = 1024;

/// Why a file cannot be used. Says nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    /// Not there, or not readable by this process.
    #[error("{path} cannot be read: {kind}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        kind: io::ErrorKind,
    },
    /// A device, FIFO, socket, folder, or of a pseudo file system.
    #[error("{path} is not a regular file")]
    NotRegular {
        /// Which.
        path: PathBuf,
    },
    /// Larger than [`MAX_TLS_FILE`].
    #[error("{path} is larger than {MAX_TLS_FILE} bytes, which no certificate bundle is")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
}

/// What changes when a file does, however it was replaced. A missing file has a stamp too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    path: PathBuf,
    seen: Option<[i64; 6]>,
}

impl Stamp {
    /// The stamp of what `path` leads to now.
    pub(super) fn of(path: &Path) -> Self {
        let seen = fs::metadata(path).ok().map(|meta| {
            let (dev, ino) = (meta.dev().cast_signed(), meta.ino().cast_signed());
            // Size and both times: a file rewritten in place keeps its inode.
            let time = meta.mtime().wrapping_mul(1_000_000_000).wrapping_add(meta.mtime_nsec());
            let change = meta.ctime().wrapping_mul(1_000_000_000).wrapping_add(meta.ctime_nsec());
            [dev, ino, meta.size().cast_signed(), time, change, i64::from(meta.mode())]
        });
        Self { path: path.to_owned(), seen }
    }

    /// Whether `path` leads to something else by now.
    pub(super) fn is_stale(&self) -> bool {
        *self != Self::of(&self.path)
    }
}

/// The content of a regular file of at most [`MAX_TLS_FILE`] bytes.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, FileError> {
    let read = |error: io::Error| FileError::Read { path: path.to_owned(), kind: error.kind() };
    let refuse = || FileError::NotRegular { path: path.to_owned() };
    // Looked at before it is opened: opening some devices already does something.
    let kind = fs::metadata(path).map_err(read)?.file_type();
    if !kind.is_file() {
        return Err(refuse());
    }
    let file = OpenOptions::new()
        .read(true)
        // Should it have become a FIFO in between, the open must not wait for a writer.
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits())
        .open(path)
        .map_err(read)?;
    check(&file, path)?;
    let mut content = Vec::new();
    file.take(MAX_TLS_FILE + 1).read_to_end(&mut content).map_err(read)?;
    if content.len() as u64 > MAX_TLS_FILE {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(content)
}

fn check(file: &File, path: &Path) -> Result<(), FileError> {
    let read = |kind| FileError::Read { path: path.to_owned(), kind };
    let meta = file.metadata().map_err(|error| read(error.kind()))?;
    let system = fstatfs(file).map_err(|error| read(io::Error::from(error).kind()))?.filesystem_type();
    // Files of /proc are regular, of size 0, and hold this process's own secrets.
    if !meta.is_file() || system == PROC_SUPER_MAGIC {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    if meta.len() > MAX_TLS_FILE {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(())
}

/// The regular files of a folder by name, the kubelet's own `..data` entries left out.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let read = |error: io::Error| FileError::Read { path: directory.to_owned(), kind: error.kind() };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(read)?.take(MAX_DIRECTORY_FILES) {
        let path = entry.map_err(read)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.metadata().is_ok_and(|meta| meta.is_file()) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
