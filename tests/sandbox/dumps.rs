//! What a thief of disks finds: core files, swap, and the disk beneath the volumes.

use std::{fs, os::unix::process::ExitStatusExt as _, path::Path, process::Command};

use nix::sys::{
    resource::{RLIM_INFINITY, Resource, setrlimit},
    signal::Signal,
};
use serde_json::json;

use crate::support::{
    SOON,
    canary::shapes,
    kubelet::Options,
    leasehold::{Launch, Leasehold},
    node::Node,
    stage::{Stage, class},
    temp_dir,
};

/// Tokens that leasehold held: of Vault, and of ServiceAccounts by their signatures.
fn tokens(stage: &Stage) -> Vec<String> {
    let seen = stage.proxy.seen();
    let logins = seen.iter().filter(|seen| seen.path.ends_with("/login")).map(|seen| {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        body["jwt"].as_str().unwrap().rsplit('.').next().unwrap().to_owned()
    });
    let tokens: Vec<_> = seen.iter().filter_map(|seen| seen.token.clone()).chain(logins).collect();
    assert!(tokens.len() >= 2, "tokens were seen on the wire");
    tokens
}

fn holds(bytes: &[u8], secret: &str) -> bool {
    memchr::memmem::find(bytes, secret.as_bytes()).is_some()
}

/// A process that dies by itself leaves no image of its memory.
#[tokio::test]
async fn core_scan() {
    setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY).unwrap();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for allowed in [true, false] {
        let mut stage = Stage::start_with(Options::default(), |launch| {
            // Landlock alone would keep the kernel from writing the file.
            launch.flags = vec!["--no-landlock".into(), format!("--allow-core-dumps={allowed}")];
        })
        .await;
        stage.mount(&stage.volume(), &class()).await;
        let tokens = tokens(&stage);
        stage.leasehold.abort();
        let ended = stage.leasehold.ended(SOON).await;
        assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32));
        assert_eq!(ended.core_dumped(), allowed, "core dumps allowed: {allowed}");
        let cores: Vec<_> = fs::read_dir(stage.node.root())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("core"))
            .collect();
        // Elsewhere or to a program, the kernel's word stands for it.
        if allowed && !pattern.starts_with(['/', '|']) {
            let core = fs::read(&cores[0]).unwrap();
            assert!(tokens.iter().any(|token| holds(&core, token)), "a core file would tell");
        } else {
            assert_eq!(cores, Vec::<std::path::PathBuf>::new());
        }
    }
}

/// An ext4 in a file, mounted.
struct Disk {
    image: tempfile::NamedTempFile,
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let image = tempfile::NamedTempFile::new_in("/tmp").unwrap();
        image.as_file().set_len(64 << 20).unwrap();
        let folder = temp_dir();
        run(Command::new("mkfs.ext4").arg("-q").arg(image.path()));
        run(Command::new("mount").args(["-o", "loop"]).args([image.path(), folder.path()]));
        Self { image, folder }
    }

    /// Every byte of it, once all is written.
    fn bytes(&self) -> Vec<u8> {
        run(Command::new("sync").arg("-f").arg(self.folder.path()));
        fs::read(self.image.path()).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// The node's disk, read raw after mounts, edits, a crash, a restart, a dying process and unmounts, never held
/// a value or a token.
#[tokio::test]
async fn raw_disk_scan() {
    let disk = Disk::new();
    let node = Node::on(tempfile::tempdir_in(disk.folder.path()).unwrap());
    let mut stage = Stage::start_on(node, Options::default(), |_| {}).await;
    let canaries: Vec<_> = (0..3).map(|_| format!("canary-{:032x}", rand::random::<u128>())).collect();
    let put = async |user: &str, password: &str| {
        stage.bao.put_secret("app/db", json!({"username": user, "password": password})).await;
    };
    put(&canaries[0], &canaries[1]).await;
    let (kept, gone) = (stage.volume(), stage.volume());
    stage.mount(&kept, &class()).await;
    stage.mount(&gone, &class()).await;
    put(&canaries[0], &canaries[2]).await;
    let whole = "- {objectName: renamed, secretPath: secret/data/app/db, secretKey: password}";
    stage.mount(&kept, &class().with("objects", whole)).await;
    assert_eq!(stage.kubelet.file(&kept, "renamed"), canaries[2], "it is where it should be");
    stage.leasehold.crash();
    stage.leasehold.restart().await;
    stage.mount(&kept, &class()).await;
    stage.kubelet.unpublish(&gone).unwrap();
    stage.leasehold.abort();
    stage.leasehold.ended(SOON).await;
    stage.leasehold.restart().await;
    stage.kubelet.unpublish(&kept).unwrap();

    let naive = format!("naive-{:032x}", rand::random::<u128>());
    fs::write(stage.node.root().join("naive"), &naive).unwrap();
    let bytes = disk.bytes();
    assert!(holds(&bytes, &naive), "the scan finds what is written to the disk");
    for secret in canaries.iter().cloned().chain(tokens(&stage)) {
        for shape in shapes(&secret) {
            assert!(!holds(&bytes, &shape), "{shape} is on the disk");
        }
    }
}

/// What may be swapped out is the cgroup's to say; where it may, the operator is told. That the node swaps is
/// played by another /proc/swaps: the machine of the test shall not start to.
#[tokio::test]
async fn swap_scan() {
    let node = std::sync::Arc::new(Node::new());
    let launch = || {
        let mut launch = Launch::new("https://127.0.0.1:1");
        launch.names = vec!["vault".into()];
        launch
    };
    let quiet = Leasehold::start(&node, launch()).await;
    assert!(!quiet.http_get("/readyz").await.1.contains("swap"), "this machine swaps");
    drop(quiet);
    let swaps = node.root().join("swaps");
    fs::write(&swaps, "Filename Type Size Used Priority\n/dev/sda2 partition 1048572 0 -2\n").unwrap();
    node.run(move || {
        let none = None::<&str>;
        nix::mount::mount(Some(&swaps), Path::new("/proc/swaps"), none, nix::mount::MsFlags::MS_BIND, none)
    })
    .unwrap();
    let told = Leasehold::start(&node, launch()).await;
    told.is_ready().await;
    let (status, ready) = told.http_get("/readyz").await;
    assert_eq!(status, 200);
    assert!(ready.contains("swap: degraded: the node swaps to /dev/sda2"), "{ready}");
    told.logged("the node swaps to /dev/sda2").await;
}
