//! A node: a mount namespace in which the driver mounts, and a slave of it in which leasehold runs.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

use super::{
    process::{Process, Worker, between_forks},
    require_root, temp_dir,
};

/// How leasehold's namespace hangs on the node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// `mountPropagation: HostToContainer`: mounts and unmounts of the node are seen.
    #[default]
    HostToContainer,
    /// `mountPropagation: None`: they are not, and an old mount takes writes for ever.
    None,
}

/// A node of the test's own. Its mounts are seen by nobody else and end with it.
#[derive(Debug)]
pub struct Node {
    worker: Worker,
    dir: TempDir,
}

impl Node {
    /// Makes the namespace: `kubelet/` shared as on a real host, `run/` a tmpfs.
    pub fn new() -> Self {
        Self::on(temp_dir())
    }

    /// The same in a folder of its own.
    pub fn on(dir: TempDir) -> Self {
        require_root();
        for folder in ["kubelet/pods", "providers", "run"] {
            fs::create_dir_all(dir.path().join(folder)).expect("a folder of the node");
        }
        let node = Self { worker: Worker::new("node"), dir };
        let (kubelet, run) = (node.kubelet_root(), node.dir.path().join("run"));
        let made = node.run(move || -> nix::Result<()> {
            // Affects this one thread, and what is spawned from it.
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(&kubelet), &kubelet, none, MsFlags::MS_BIND, none)?;
            mount(none, &kubelet, none, MsFlags::MS_SHARED, none)?;
            mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        });
        made.unwrap_or_else(|error| panic!("make a mount namespace (needs CAP_SYS_ADMIN): {error}"));
        node
    }

    /// Gives the containers of this node what the kubelet mounts into a pod with
    /// `automountServiceAccountToken`.
    pub fn mount_service_account(&self, files: Vec<(String, String)>) {
        self.run(move || {
            // Over the machine's /run, which is /var/run too: seen in this namespace only.
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            let folder = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
            fs::create_dir_all(folder)?;
            for (file, text) in files {
                fs::write(folder.join(file), text)?;
            }
            Ok::<_, io::Error>(())
        })
        .expect("a ServiceAccount's files");
    }

    /// Runs `work` where the node's mounts are seen.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.worker.run(work)
    }

    /// The kubelet's root folder.
    pub fn kubelet_root(&self) -> PathBuf {
        self.dir.path().join("kubelet")
    }

    /// The folder of the providers' sockets.
    pub fn providers_dir(&self) -> PathBuf {
        self.dir.path().join("providers")
    }

    /// A folder for leasehold's state, on tmpfs.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("run/leasehold")
    }

    /// The node's folder itself, on disk.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a program as a container of this node would start it.
    pub fn spawn(
        &self,
        name: &str,
        propagation: Propagation,
        program: &Path,
        configure: impl FnOnce(&mut Command),
    ) -> Process {
        let propagation = match propagation {
            Propagation::HostToContainer => "slave",
            Propagation::None => "private",
        };
        let wrapper = ["--", "unshare", "--mount", "--propagation", propagation];
        Process::spawn_on(&self.worker, name, &wrapper, program, configure)
    }

    /// Mounts a tmpfs as driver 1.6.0 does: no options, so `rw,relatime` and mode 1777.
    pub fn mount_tmpfs(&self, target: &Path) -> io::Result<()> {
        let target = target.to_owned();
        self.run(move || mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), None::<&str>))
            .map_err(io::Error::from)
    }

    /// Unmounts, without any of the flags that would hide a busy mount.
    pub fn unmount(&self, target: &Path) -> io::Result<()> {
        let target = target.to_owned();
        self.run(move || between_forks(|| umount2(&target, MntFlags::empty()))).map_err(io::Error::from)
    }

    /// Whether something is mounted there: its device is not its parent's, as mount-utils decides.
    pub fn is_mount_point(&self, target: &Path) -> io::Result<bool> {
        let target = target.to_owned();
        self.run(move || {
            let parent = target.parent().expect("a mount point has a parent").to_owned();
            Ok(fs::metadata(&target)?.dev() != fs::metadata(parent)?.dev())
        })
    }

    /// `mkdir -p -m 0750`.
    pub fn create_dir(&self, target: &Path) -> io::Result<()> {
        let target = target.to_owned();
        self.run(move || fs::DirBuilder::new().recursive(true).mode(0o750).create(&target))
    }

    /// Reads a file as a pod would.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let path = path.to_owned();
        self.run(move || fs::read(&path))
    }

    /// Reads a text file as a pod would; the test fails when it is not there.
    #[track_caller]
    pub fn read_text(&self, path: &Path) -> String {
        let bytes = self.read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Metadata of what `path` leads to, as a pod sees it.
    #[track_caller]
    pub fn metadata(&self, path: &Path) -> fs::Metadata {
        let target = path.to_owned();
        self.run(move || fs::metadata(&target))
            .unwrap_or_else(|error| panic!("stat {}: {error}", path.display()))
    }

    /// Names of the entries of a folder, in order.
    pub fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let path = path.to_owned();
        self.run(move || {
            let mut names = fs::read_dir(&path)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        })
    }

    /// The text of all files below a folder, one after another.
    pub fn text_below(&self, path: &Path) -> String {
        let mut folders = vec![path.to_owned()];
        self.run(move || {
            let mut text = String::new();
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                    match entry.file_type() {
                        Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                        Ok(kind) if kind.is_file() => {
                            // A file may be replaced meanwhile.
                            let bytes = fs::read(entry.path()).unwrap_or_default();
                            text.push_str(&String::from_utf8_lossy(&bytes));
                        }
                        _ => {}
                    }
                }
            }
            text
        })
    }

    /// Everything that lies on the disk beneath `path`, where no pod mount of this node is seen.
    pub fn on_disk_beneath(path: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found
    }

    /// Moves the mount root's clock back, so that the driver's rotation interval has passed.
    pub fn age(&self, target: &Path, by: std::time::Duration) {
        let target = target.to_owned();
        self.run(move || {
            let folder = fs::File::open(&target)?;
            folder.set_modified(fs::metadata(&target)?.modified()? - by)
        })
        .expect("set the mount root's time");
    }
}
