//! A node to play on: a folder on disk, shared as the kubelet's pods folder is, in a namespace of its own.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use leasehold::{
    projection::{
        FileProjection, Payload,
        target::{self, MountIdentity},
        writer::{self, RootMtime, Swap, WriteError, WriteRequest},
    },
    spec::{FileMode, FileOwner, ObjectPath},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{TMPFS_MAGIC, statfs},
};

const NONE: Option<&str> = None;

pub(crate) struct Stage {
    pub(crate) kubelet: PathBuf,
}

impl Stage {
    /// Runs `body` as the host: on a thread with a mount namespace of its own.
    pub(crate) fn run<T: Send>(body: impl FnOnce(&Self) -> T + Send) -> T {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        assert_ne!(statfs(folder.path()).unwrap().filesystem_type(), TMPFS_MAGIC, "needs a disk beneath");
        let kubelet = folder.path().to_owned();
        std::thread::scope(|scope| {
            let host = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
                mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
                mount(Some(&kubelet), &kubelet, NONE, MsFlags::MS_BIND, NONE).unwrap();
                mount(NONE, &kubelet, NONE, MsFlags::MS_SHARED, NONE).unwrap();
                let outcome = body(&Self { kubelet: kubelet.clone() });
                umount2(&kubelet, MntFlags::MNT_DETACH).unwrap();
                outcome
            });
            host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The target path of a volume; nothing is mounted there yet.
    pub(crate) fn target(&self, volume: &str) -> PathBuf {
        let path = self.kubelet.join(format!("pods/0b1c-2d/volumes/kubernetes.io~csi/{volume}/mount"));
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A volume, mounted as the driver mounts it.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        let path = self.target(name);
        mount_tmpfs(&path, "");
        path
    }
}

/// Enters a namespace as the provider's pod has it: HostToContainer.
pub(crate) fn become_provider() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE).unwrap();
}

pub(crate) fn mount_tmpfs(path: &Path, options: &str) {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

pub(crate) fn umount(path: &Path) -> nix::Result<()> {
    umount2(path, MntFlags::empty())
}

/// How often a race is run; the release gate sets it higher.
pub(crate) fn cycles(default: u64) -> u64 {
    std::env::var("LEASEHOLD_RACE_CYCLES").map_or(default, |text| text.parse().expect("a number of cycles"))
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < limit, "waited 30 s for {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn file(contents: impl Into<Vec<u8>>, mode: u32, owner: Option<(u32, u32)>) -> FileProjection {
    FileProjection {
        contents: contents.into().into(),
        mode: FileMode::new(mode).unwrap(),
        owner: owner.map(|(uid, gid)| FileOwner { uid: Some(uid), gid: Some(gid) }),
    }
}

/// Files of the default mode.
pub(crate) fn payload<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Payload {
    let files = files
        .iter()
        .map(|(path, contents)| (ObjectPath::parse(path).unwrap(), file(contents.as_ref(), 0o644, None)));
    Payload { files: files.collect() }
}

/// A write as the worker would make it, with what a test wants to vary.
pub(crate) struct Writer<'a> {
    pub(crate) target: &'a Path,
    pub(crate) identity: MountIdentity,
    pub(crate) root_mtime: RootMtime,
}

impl<'a> Writer<'a> {
    pub(crate) fn of(target: &'a Path) -> Self {
        Self { target, identity: target::identify(target).unwrap(), root_mtime: RootMtime::Restore }
    }

    pub(crate) fn request<'b>(&'b self, payload: &'b Payload, previous: Option<&'b str>) -> WriteRequest<'b> {
        WriteRequest {
            target: self.target,
            identity: &self.identity,
            previous,
            payload,
            contents_as_before: false,
            root_mtime: self.root_mtime,
        }
    }

    pub(crate) fn write(&self, payload: &Payload, previous: Option<&str>) -> Result<Swap, WriteError> {
        writer::write(self.request(payload, previous))
    }

    pub(crate) fn take_over(&self, payload: &Payload) -> Swap {
        self.write(payload, None).unwrap()
    }
}

/// Everything beneath `folder`, links not followed: type, mode and content or destination by path.
pub(crate) fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            let mode = stat.permissions().mode() & 0o7777;
            let shown = if stat.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if stat.is_dir() {
                open.push(path);
                format!("{mode:04o} {}:{} /", stat.uid(), stat.gid())
            } else {
                let contents = fs::read(&path).unwrap();
                format!("{mode:04o} {}:{} {}", stat.uid(), stat.gid(), String::from_utf8_lossy(&contents))
            };
            found.insert(name, shown);
        }
    }
    found
}

/// Top-level names of a volume.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Asserts that the volume is exactly what an AtomicWriter leaves after writing `payload` at `version`.
pub(crate) fn assert_layout(target: &Path, version: &str, payload: &Payload) {
    let mut expected = BTreeMap::from([
        (version.to_owned(), "0755 0:0 /".to_owned()),
        ("..data".to_owned(), format!("-> {version}")),
    ]);
    for (path, file) in &payload.files {
        let path = path.as_str();
        let top = path.split('/').next().unwrap();
        expected.insert(top.to_owned(), format!("-> ..data/{top}"));
        for (slash, _) in path.match_indices('/') {
            expected.insert(format!("{version}/{}", &path[..slash]), "0755 0:0 /".to_owned());
        }
        let owner = file.owner.unwrap_or_default();
        let (uid, gid) = (owner.uid.unwrap_or(0), owner.gid.unwrap_or(0));
        let contents = String::from_utf8_lossy(file.contents.expose());
        expected
            .insert(format!("{version}/{path}"), format!("{:04o} {uid}:{gid} {contents}", file.mode.bits()));
    }
    assert_eq!(tree(target), expected);
}
