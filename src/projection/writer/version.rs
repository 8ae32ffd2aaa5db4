//! Version folders: naming, making, comparing, and the swap.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::SystemTime,
};

use rand::RngExt;
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Uid},
    io::Errno,
    path::Arg,
};
use zeroize::Zeroizing;

use super::{
    EntryError,
    layout::{HERE, Layout},
    on, sweep,
};
use crate::{
    projection::FileProjection,
    spec::{FileMode, FileOwner},
};

/// The link that a swap replaces.
pub(super) const DATA: &str = "..data";

/// The AtomicWriter's own temporary link. One left by a crash makes every later write of the driver fail.
pub(super) const DATA_TMP: &str = "..data_tmp";

/// Temporary names of ours, so that a crash of ours can never block the driver.
pub(super) const TMP_PREFIX: &str = "..lh_tmp_";

/// Mode of every folder we make, whatever the umask: names are no secret, contents have modes of their own.
const FOLDER_MODE: RawMode = 0o755;

/// Kept from the root on: an emptyDir with an fsGroup is setgid, and files are to inherit its group.
const SETGID: RawMode = 0o2000;

/// Tries for a name that is not taken. The kubelet's has 32 random bits, so has ours.
const NAME_TRIES: usize = 16;

/// Nothing beneath a version folder is reached through a link, a mount point or `..`.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens `path` beneath `folder`.
pub(super) fn open_beneath(
    folder: impl AsFd,
    path: impl Arg,
    flags: OFlags,
    mode: u32,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(folder, path, flags, Mode::from_raw_mode(mode), BENEATH)
}

/// Opens the regular file `path` beneath `folder` for reading. What it is is known before it is opened: opening a
/// device or a FIFO is heard by whoever made it. `fits` judges it before a byte is read.
///
/// # Errors
/// [`Errno::INVAL`] when it is no regular file, or `fits` says no; [`Errno::AGAIN`] when somebody holds a lease on it.
pub(super) fn open_regular(
    folder: impl AsFd,
    path: &str,
    fits: impl FnOnce(&Stat) -> bool,
) -> rustix::io::Result<(OwnedFd, Stat)> {
    let found = open_beneath(folder, path, OFlags::PATH, 0)?;
    let stat = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !fits(&stat) {
        return Err(Errno::INVAL);
    }
    // By descriptor: by name it could be another one by now. Whoever holds a lease on it (fcntl F_SETLEASE) would make
    // us wait for 45 seconds.
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(again, flags, Mode::empty())?;
    Ok((file, stat))
}

/// Opens the folder `path` beneath `folder` for listing and for calls relative to it.
pub(super) fn open_folder(folder: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    open_beneath(folder, path, OFlags::RDONLY | OFlags::DIRECTORY, 0)
}

/// A temporary name of ours.
pub(super) fn temporary_name() -> String {
    format!("{TMP_PREFIX}{}", rand::rng().random::<u32>())
}

/// `..YYYY_MM_DD_HH_MM_SS.<random>` in UTC, as the AtomicWriter's `newTimestampDir`.
fn version_name(now: SystemTime, random: u32) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("..{year:04}_{month:02}_{day:02}_{hour:02}_{minute:02}_{second:02}.{random}")
}

// Days since 1970-01-01 in the Gregorian calendar. Years are counted from 1 March 0000, so that the leap
// day is a year's last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Whether `name` is one that an AtomicWriter gives to a version folder.
pub(super) fn is_version_name(name: &str) -> bool {
    let Some((stamp, random)) = name.strip_prefix("..").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let widths = [4, 2, 2, 2, 2, 2];
    let parts: Vec<&str> = stamp.split('_').collect();
    digits(random)
        && parts.len() == widths.len()
        && parts.iter().zip(widths).all(|(part, width)| part.len() == width && digits(part))
}

/// The version folder that `..data` names; `None` where there is no such link, or one to anything else.
pub(super) fn current(root: &OwnedFd) -> Result<Option<String>, EntryError> {
    match rustix::fs::readlinkat(root, DATA, Vec::new()) {
        Ok(link) => Ok(link.into_string().ok().filter(|name| is_version_name(name))),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(on("read the link", DATA)(errno)),
    }
}

/// Whether `name` is a folder in the root.
pub(super) fn exists(root: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_folder(&stat))
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Writes a whole version, invisible to the pod until [`swap`]. Leaves nothing behind when it fails.
pub(super) fn create(root: &OwnedFd, layout: &Layout<'_>, now: SystemTime) -> Result<String, EntryError> {
    let mut tries = 0;
    let name = loop {
        let name = version_name(now, rand::rng().random());
        match rustix::fs::mkdirat(root, &name, Mode::from_raw_mode(FOLDER_MODE)) {
            Ok(()) => break name,
            Err(Errno::EXIST) if tries < NAME_TRIES => tries += 1,
            Err(errno) => return Err(on("make the version folder", &name)(errno)),
        }
    };
    fill(root, &name, layout).inspect_err(|_| {
        sweep::discard(root, [name.as_str()]);
    })?;
    Ok(name)
}

fn fill(root: &OwnedFd, name: &str, layout: &Layout<'_>) -> Result<(), EntryError> {
    let version = open_folder(root, name).map_err(on("open the version folder", name))?;
    let mode = folder_mode(root).map_err(on("stat the root above", name))?;
    rustix::fs::fchmod(&version, mode).map_err(on("set the mode of", name))?;
    for folder in layout.folders.keys().filter(|folder| **folder != HERE) {
        let (parent, last) = folder.rsplit_once('/').unwrap_or((HERE, folder));
        // mkdirat alone would follow links in front of the last element; openat2 does not.
        let parent = open_folder(&version, parent).map_err(on("open the folder above", folder))?;
        rustix::fs::mkdirat(&parent, last, mode).map_err(on("make the folder", folder))?;
        let made = open_folder(&parent, last).map_err(on("open the folder", folder))?;
        rustix::fs::fchmod(&made, mode).map_err(on("set the mode of", folder))?;
    }
    for (path, file) in &layout.files {
        let made = write_file(&version, path, file).map_err(on("write", path))?;
        if let Some(owner) = file.owner {
            let (uid, gid) = (owner.uid.map(Uid::from_raw), owner.gid.map(Gid::from_raw));
            rustix::fs::fchown(&made, uid, gid).map_err(on(GIVE, path))?;
        }
    }
    Ok(())
}

fn folder_mode(root: &OwnedFd) -> rustix::io::Result<Mode> {
    Ok(Mode::from_raw_mode(FOLDER_MODE | (rustix::fs::fstat(root)?.st_mode & SETGID)))
}

/// What is done to a file last: chmod of another's file would need CAP_FOWNER.
pub(super) const GIVE: &str = "give its owner to";

fn write_file(version: &OwnedFd, path: &str, file: &FileProjection) -> rustix::io::Result<OwnedFd> {
    // 0600 until it is complete: nobody reads a file before it has its own mode.
    let made = open_beneath(version, path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o600)?;
    let mut rest = file.contents.expose();
    while !rest.is_empty() {
        match rustix::io::write(&made, rest) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::fchmod(&made, Mode::from_raw_mode(file.mode.bits()))?;
    Ok(made)
}

/// Makes `name` the version that the pod sees.
pub(super) fn swap(root: &OwnedFd, name: &str) -> Result<(), EntryError> {
    let temporary = temporary_name();
    rustix::fs::symlinkat(name, root, &temporary).map_err(on("link", &temporary))?;
    let mut renamed = rustix::fs::renameat(root, &temporary, root, DATA);
    // A folder planted at `..data` by a container that may write; no AtomicWriter leaves one.
    if renamed == Err(Errno::ISDIR) {
        sweep::discard(root, [DATA]);
        renamed = rustix::fs::renameat(root, &temporary, root, DATA);
    }
    renamed.map_err(|errno| {
        sweep::discard(root, [temporary.as_str()]);
        on("swap", DATA)(errno)
    })
}

/// Whether the version folder `name` is exactly `layout`. `trusted`: whether contents that we may not read
/// back count as equal. Anything odd counts as different, and is replaced.
pub(super) fn equals(root: &OwnedFd, name: &str, layout: &Layout<'_>, trusted: bool) -> bool {
    let Ok(version) = open_folder(root, name) else { return false };
    let (Ok(mode), Ok(own)) = (folder_mode(root), rustix::fs::fstat(&version)) else { return false };
    let folders_equal = layout.folders.iter().all(|(path, names)| {
        open_folder(&version, *path).is_ok_and(|folder| {
            rustix::fs::fstat(&folder).is_ok_and(|stat| permissions(&stat) == mode.as_raw_mode())
                && sweep::holds_exactly(&folder, names)
        })
    });
    folders_equal && layout.files.iter().all(|(path, file)| file_equals(&version, &own, path, file, trusted))
}

/// `own`: of the version folder, whose owner and group a file without an owner of its own has too.
fn file_equals(version: &OwnedFd, own: &Stat, path: &str, file: &FileProjection, trusted: bool) -> bool {
    let fits = |stat: &Stat| {
        is_as_written(stat, own, file.mode, file.owner)
            && usize::try_from(stat.st_size) == Ok(file.contents.len())
    };
    match open_regular(version, path, fits) {
        Ok((readable, _)) => holds(&readable, file.contents.expose()),
        // Looked at, and then not ours to read.
        Err(Errno::ACCESS) => trusted,
        Err(_) => false,
    }
}

/// Whether a file has the permissions and the owner that [`create`] gives to it. `own`: of its version folder.
pub(super) fn is_as_written(stat: &Stat, own: &Stat, mode: FileMode, owner: Option<FileOwner>) -> bool {
    let owner = owner.unwrap_or_default();
    permissions(stat) == mode.bits()
        && (stat.st_uid, stat.st_gid) == (owner.uid.unwrap_or(own.st_uid), owner.gid.unwrap_or(own.st_gid))
}

fn permissions(stat: &Stat) -> RawMode {
    stat.st_mode & 0o7777
}

fn holds(file: &OwnedFd, mut expected: &[u8]) -> bool {
    let mut chunk = Zeroizing::new([0u8; 4096]);
    loop {
        match rustix::io::read(file, chunk.as_mut_slice()) {
            Ok(0) => return expected.is_empty(),
            Ok(length) => match expected.strip_prefix(&chunk[..length]) {
                Some(rest) => expected = rest,
                None => return false,
            },
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::{is_version_name, version_name};

    #[test]
    fn names_are_utc_and_recognised() {
        for (seconds, name) in [
            (0, "..1970_01_01_00_00_00.7"),
            (951_827_696, "..2000_02_29_12_34_56.7"),
            (1_709_251_199, "..2024_02_29_23_59_59.7"),
            (1_795_442_807, "..2026_11_23_14_06_47.7"),
            (4_107_542_400, "..2100_03_01_00_00_00.7"),
        ] {
            assert_eq!(version_name(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), 7), name);
            assert!(is_version_name(name));
        }
        for other in
            ["..data", "..", "..2026_11_23_14_06_47", "..2026_11_23_14_06_47.", "..2026_11_23_14_06_47.x"]
        {
            assert!(!is_version_name(other), "{other}");
        }
        for other in [
            "2026_11_23_14_06_47.1",
            "..2026_11_23_14_06.1",
            "..2026_11_23_14_06_47.1/../x",
            "..26_11_23_14_06_47.1",
        ] {
            assert!(!is_version_name(other), "{other}");
        }
    }
}
