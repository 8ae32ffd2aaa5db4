//! A pod as the kubelet makes it for the restricted Pod Security Standard: two memory-backed emptyDirs with an
//! fsGroup, a projected token, a read-only root, no capability, a user of its own, and a seccomp filter that
//! refuses what RuntimeDefault refuses.

#![allow(unreachable_pub, reason = "one binary, several modules")]

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use seccompiler::{SeccompAction, SeccompFilter};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    SOON, cluster, free_port,
    ground::Ground,
    leasehold::binary,
    process::{Process, Worker},
    proxy::Proxy,
    require_root, temp_dir, until,
};

/// The image's user.
pub const USER: u32 = 65532;
/// The pod's fsGroup.
pub const GROUP: u32 = 2000;

/// Whose processes a container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// Those of all containers, as with `shareProcessNamespace`.
    Shared,
    /// Its own: the first program that is run is process 1, and the last.
    Own,
}

/// One pod, with a role and secrets of its own.
pub struct Pod {
    pub ground: Arc<Ground>,
    pub name: &'static str,
    pub proxy: Proxy,
    pub identity: cluster::Pod,
    worker: Worker,
    dir: TempDir,
    _disk: TempDir,
    pub health: u16,
}

impl Pod {
    /// `name`: at most eight characters. The processes of all containers see each other.
    pub async fn new(name: &'static str) -> Self {
        Self::with(name, Processes::Shared).await
    }

    /// `name`: at most eight characters.
    pub async fn with(name: &'static str, processes: Processes) -> Self {
        require_root();
        let ground = Ground::get().await;
        let admin = ground.bao.admin();
        admin.enable_kubernetes_auth(&format!("k8s-{name}"), &ground.cluster).await;
        let policy = format!(
            "path \"database/creds/{name}\" {{ capabilities = [\"read\"] }}\n\
             path \"secret/data/{name}/*\" {{ capabilities = [\"read\"] }}\n"
        );
        admin.put_policy(&format!("pod-{name}"), &policy).await;
        let role = json!({
            "bound_service_account_names": ["app"], "bound_service_account_namespaces": ["prod"],
            "audience": "vault", "token_policies": [format!("pod-{name}")], "token_ttl": "1h",
            "token_max_ttl": "24h",
        });
        admin.write(&format!("auth/k8s-{name}/role/app"), role).await;
        ground.postgres.configure(admin, name, "1h", "24h").await;
        let proxy = Proxy::start(ground.bao.url());
        let dir = temp_dir();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["secrets", "state", "token", "config", "disk"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            fs::set_permissions(dir.path().join(folder), fs::Permissions::from_mode(0o755)).unwrap();
        }
        // On some machines /tmp is no disk.
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        chown(disk.path(), Some(0), Some(GROUP)).unwrap();
        fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o2777)).unwrap();
        let worker = Worker::new("pod");
        let (root, on_disk) = (dir.path().to_owned(), disk.path().to_owned());
        worker
            .run(move || isolate(&root, &on_disk, processes))
            .unwrap_or_else(|error| panic!("make the pod's namespace: {error}"));
        let identity = cluster::Pod::new("prod", "app-0", "app");
        let pod = Self { ground, name, proxy, identity, worker, dir, _disk: disk, health: free_port() };
        pod.project_token(Duration::from_secs(3600));
        pod
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A fresh token, put in place as the kubelet does it.
    pub fn project_token(&self, lifetime: Duration) -> String {
        let token = self.ground.cluster.token(&self.identity, &["vault"], lifetime);
        self.replace("token/vault", &token);
        token
    }

    /// A whole new file under the name.
    pub fn replace(&self, name: &str, text: &str) {
        let path = self.path(name);
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// A ConfigMap's folder with these files, or its next version: written beside the old one, and put in its
    /// place by swapping one link.
    pub fn config_map(&self, name: &str, version: u32, files: &[(&str, &str)]) {
        let folder = self.path(name);
        let fresh = folder.join(format!("..version_{version}"));
        fs::create_dir_all(&fresh).unwrap();
        for (file, text) in files {
            fs::write(fresh.join(file), text).unwrap();
        }
        let before = fs::read_link(folder.join("..data")).ok();
        symlink(fresh.file_name().unwrap(), folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        for (file, _) in files {
            let link = folder.join(file);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(file), link).unwrap();
            }
        }
        if let Some(before) = before {
            fs::remove_dir_all(folder.join(before)).unwrap();
        }
    }

    pub async fn put(&self, key: &str, value: &str) {
        self.ground.bao.put_secret(&format!("{}/{key}", self.name), json!({ "value": value })).await;
    }

    /// The head of a configuration that logs in with the projected token.
    pub fn head(&self) -> String {
        format!(
            "vaultAddress: {}\nvaultAuthMountPath: k8s-{}\nroleName: app\nauth: {{tokenPath: {}}}\n",
            self.proxy.url(),
            self.name,
            self.path("token/vault").display()
        )
    }

    /// An object with one value of a KV secret, looked at as often as is allowed.
    pub fn kv(&self, key: &str) -> String {
        format!(
            "{{objectName: {key}, secretPath: secret/data/{}/{key}, secretKey: value, refreshInterval: 5s}}",
            self.name
        )
    }

    /// An object with a connection string of a database user.
    pub fn database(&self) -> String {
        format!(
            "{{objectName: dsn, template: '{{{{ with secret \"database/creds/{}\" }}}}{{{{ .Data.username \
             }}}}:{{{{ .Data.password }}}}{{{{ end }}}}', overlap: 2s}}",
            self.name
        )
    }

    /// Writes the configuration: one folder with these objects, and what else there is.
    pub fn configure(&self, objects: &[String], more: &str) {
        let folder = format!(
            "{}folders:\n- path: {}\n  objects: [{}]\n{more}",
            self.head(),
            self.path("secrets").display(),
            objects.join(", ")
        );
        self.replace("config/agent.yaml", &folder);
    }

    /// The agent as a container of the pod.
    pub fn agent(&self, arguments: &[&str]) -> Process {
        self.agent_with("--config", "config/agent.yaml", arguments)
    }

    /// The same with another kind of file.
    pub fn agent_with(&self, kind: &str, file: &str, arguments: &[&str]) -> Process {
        self.run(&binary(), |command| {
            command.arg("agent").arg(kind).arg(self.path(file));
            command.arg("--state-dir").arg(self.path("state")).args(["--log-level", "debug"]);
            if !arguments.contains(&"--once") {
                command.args(["--health-addr", &format!("127.0.0.1:{}", self.health)]);
            }
            command.args(arguments);
        })
    }

    /// Any program as a container of the pod, under the same restrictions.
    pub fn run(&self, program: &Path, configure: impl FnOnce(&mut Command)) -> Process {
        let (user, group) = (USER.to_string(), GROUP.to_string());
        let wrapper = [
            "--reuid",
            &user,
            "--regid",
            &user,
            "--groups",
            &group,
            "--bounding-set",
            "-all",
            "--inh-caps",
            "-all",
            "--ambient-caps",
            "-all",
            "--no-new-privs",
            "--pdeathsig",
            "KILL",
        ];
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        // The outer setpriv sets what a change of user takes away again, so the inner one does all.
        let mut all = vec!["--", "setpriv"];
        all.extend(wrapper);
        Process::spawn_on(&self.worker, &name, &all, program, |command| {
            command.env_clear().env("PATH", "/usr/bin:/bin");
            configure(command);
        })
    }

    /// Waits until the agent says that everything is in place.
    pub async fn ready(&self, agent: &mut Process) {
        until("the agent is ready", SOON, async || {
            agent.assert_running();
            (self.check().await.0.code() == Some(0)).then_some(())
        })
        .await;
    }

    /// `--check`, as a probe runs it: a program of the image without a shell.
    pub async fn check(&self) -> (ExitStatus, String) {
        let mut probe = self.run(&binary(), |command| {
            command.args(["agent", "--check"]).arg("--state-dir").arg(self.path("state"));
        });
        let status = probe.wait(SOON).await;
        (status, probe.log())
    }

    /// Makes the agent look at every value now.
    pub async fn refresh(&self) {
        let mut command = self.run(&binary(), |command| {
            command.args(["refresh", "--all"]).arg("--state-dir").arg(self.path("state/agent"));
        });
        assert!(command.wait(SOON).await.success(), "{}", command.log());
    }

    /// A file as a container of the pod sees it.
    pub fn read(&self, name: &str) -> io::Result<String> {
        let path = self.path(name);
        self.worker.run(move || fs::read_to_string(path))
    }

    /// Mode, owner and group of what a path leads to.
    pub fn status(&self, name: &str) -> (u32, u32, u32) {
        let path = self.path(name);
        self.worker.run(move || {
            let status = fs::metadata(path).unwrap();
            (status.mode() & 0o7777, status.uid(), status.gid())
        })
    }

    /// Runs in the pod's namespace, as root.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.worker.run(work)
    }

    /// The database user in the file.
    pub fn credential(&self) -> (String, String) {
        let text = self.read("secrets/dsn").unwrap();
        let (user, password) = text.split_once(':').unwrap();
        (user.to_owned(), password.to_owned())
    }

    /// Requests by path, counted.
    pub fn requests(&self) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for seen in self.proxy.seen() {
            *counted.entry(seen.path).or_default() += 1;
        }
        counted
    }
}

fn isolate(root: &Path, disk: &Path, processes: Processes) -> io::Result<()> {
    let none = None::<&str>;
    if processes == Processes::Own {
        unshare(CloneFlags::CLONE_NEWPID)?;
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for folder in ["secrets", "state"] {
        let path = root.join(folder);
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), none)?;
        // As the kubelet prepares an emptyDir of a pod with an fsGroup.
        chown(&path, Some(0), Some(GROUP))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2777))?;
    }
    mount(Some(disk), &root.join("disk"), none, MsFlags::MS_BIND, none)?;
    mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)?;
    refuse_system_calls()
}

/// What Docker's and containerd's default profiles refuse to a container without capabilities.
fn refuse_system_calls() -> io::Result<()> {
    let refused = [
        libc::SYS_acct,
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_clock_settime,
        libc::SYS_delete_module,
        libc::SYS_finit_module,
        libc::SYS_init_module,
        libc::SYS_ioperm,
        libc::SYS_iopl,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_mount,
        libc::SYS_move_pages,
        libc::SYS_open_by_handle_at,
        libc::SYS_perf_event_open,
        libc::SYS_pivot_root,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_request_key,
        libc::SYS_setns,
        libc::SYS_settimeofday,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_syslog,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
    ];
    let filter = SeccompFilter::new(
        refused.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap()),
        std::env::consts::ARCH.try_into().map_err(io::Error::other)?,
    );
    let program: seccompiler::BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
