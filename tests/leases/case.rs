//! One server with one database for the whole process, and a node of its own for every test.

#![allow(unreachable_pub, reason = "one binary, several modules")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    SOON,
    bao::Admin,
    cluster::Pod,
    driver::SecretProviderClass,
    ground::Ground,
    kubelet::{Kubelet, Options, Volume},
    leasehold::{Launch, Leasehold},
    node::Node,
    proxy::{Proxy, Seen},
    until,
};

/// What a test asks for.
pub struct Setup {
    /// At most eight characters: names the database role, the auth mount and the paths.
    pub name: &'static str,
    /// Overrides of the auth role's fields.
    pub login: Value,
    /// Added to the pod's Vault policy.
    pub policy: String,
    /// TTL and maximum of the database role.
    pub database: (&'static str, &'static str),
}

impl Setup {
    /// Logins and leases that outlive the test, and the default policy.
    pub fn new(name: &'static str) -> Self {
        Self { name, login: json!({}), policy: String::new(), database: ("1h", "24h") }
    }

    #[must_use]
    pub fn login(mut self, login: Value) -> Self {
        self.login = login;
        self
    }

    #[must_use]
    pub fn database(mut self, ttl: &'static str, max: &'static str) -> Self {
        self.database = (ttl, max);
        self
    }

    /// The one policy line that lets leases be revoked one by one.
    #[must_use]
    pub fn may_revoke(mut self) -> Self {
        self.policy += "path \"sys/leases/revoke\" { capabilities = [\"update\"] }\n";
        self
    }

    #[must_use]
    pub fn policy(mut self, line: &str) -> Self {
        self.policy += line;
        self
    }

    /// On the process's ground.
    pub async fn start(self) -> Case {
        let ground = Ground::get().await;
        let admin = ground.bao.admin().clone();
        let url = ground.bao.url().to_owned();
        self.start_on(ground, admin, &url).await
    }

    /// On the process's ground, with a volume that holds one database credential.
    pub async fn mounted(self) -> (Case, Volume) {
        let case = self.start().await;
        let volume = case.volume();
        case.mounted(&volume, &case.database()).await;
        (case, volume)
    }

    /// On another server.
    pub async fn start_on(self, ground: Arc<Ground>, admin: Admin, url: &str) -> Case {
        let proxy = Proxy::start(url);
        let launch = Launch::new(&proxy.url());
        self.start_behind(ground, admin, proxy, launch).await
    }

    /// Behind a proxy of the test's own, with flags of its own.
    pub async fn start_behind(self, ground: Arc<Ground>, admin: Admin, proxy: Proxy, launch: Launch) -> Case {
        let Self { name, login, policy, database } = self;
        assert!(name.len() <= 8, "OpenBao cuts the role in a user's name to eight characters");
        let mount = format!("k8s-{name}");
        admin.enable_kubernetes_auth(&mount, &ground.cluster).await;
        let read = |path: String| format!("path \"{path}\" {{ capabilities = [\"read\"] }}\n");
        let policy = [
            read(format!("database/creds/{name}")),
            read(format!("database/static-creds/st-{name}")),
            read(format!("secret/data/{name}/*")),
            policy,
        ]
        .concat();
        // A name of its own: `default` is what gives pods renew-self and revoke-self.
        admin.put_policy(&format!("pod-{name}"), &policy).await;
        let mut role = json!({
            "bound_service_account_names": ["app", "other"],
            "bound_service_account_namespaces": ["prod"],
            "audience": "vault",
            "token_policies": [format!("pod-{name}")],
            "token_ttl": "1h",
            "token_max_ttl": "24h",
        });
        for (field, value) in login.as_object().expect("fields of a role") {
            role[field] = value.clone();
        }
        admin.write(&format!("auth/{mount}/role/app"), role).await;
        ground.postgres.configure(&admin, name, database.0, database.1).await;
        let node = Arc::new(Node::new());
        let leasehold = Leasehold::start(&node, launch).await;
        let kubelet = Kubelet::new(Arc::clone(&node), Arc::clone(&ground.cluster), Options::default());
        proxy.forget();
        Case { name, mount, ground, admin, node, proxy, leasehold, kubelet }
    }
}

/// A node with leasehold, for one test.
pub struct Case {
    pub name: &'static str,
    pub mount: String,
    pub ground: Arc<Ground>,
    pub admin: Admin,
    pub node: Arc<Node>,
    pub proxy: Proxy,
    pub leasehold: Leasehold,
    pub kubelet: Kubelet,
}

/// A database user as the pod's files have it, both from one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub username: String,
    pub password: String,
}

impl Case {
    /// A volume of a new pod.
    pub fn volume(&self) -> Volume {
        Volume::new(&Pod::new("prod", "app-0", "app"))
    }

    /// Two files of one database credential.
    pub fn database(&self) -> String {
        let name = self.name;
        ["username", "password"]
            .map(|key| {
                format!(
                    "- {{objectName: {key}, secretPath: database/creds/{name}, secretKey: {key}, overlap: 2s}}\n"
                )
            })
            .concat()
    }

    /// One file of a KV secret, looked at as often as is allowed.
    pub fn kv(&self, file: &str) -> String {
        let name = self.name;
        format!(
            "- {{objectName: {file}, secretPath: secret/data/{name}/{file}, secretKey: value, \
             refreshInterval: 5s, overlap: 2s}}\n"
        )
    }

    /// Writes what [`Case::kv`] reads.
    pub async fn put(&self, file: &str, value: &str) {
        self.admin.put_secret(&format!("{}/{file}", self.name), json!({ "value": value })).await;
    }

    pub fn class(&self, objects: &str) -> SecretProviderClass {
        SecretProviderClass::new("vault", "app", objects).with("vaultAuthMountPath", &self.mount)
    }

    pub async fn mounted(&self, volume: &Volume, objects: &str) {
        if let Err(status) = self.kubelet.publish(volume, Some(&self.class(objects))).await {
            panic!("mount: {status:?}\n{}", self.leasehold.log());
        }
    }

    /// The driver's unmount, without any flag that would hide a busy mount.
    #[track_caller]
    pub fn unmount(&self, volume: &Volume) {
        self.kubelet.unpublish(volume).unwrap_or_else(|status| panic!("umount was refused: {status:?}"));
    }

    /// Files of a volume, all of one version.
    pub fn files<const N: usize>(&self, volume: &Volume, names: [&str; N]) -> [String; N] {
        let target = self.kubelet.target(volume);
        let names = names.map(str::to_owned);
        self.node.run(move || {
            loop {
                let version = fs::read_link(target.join("..data")).expect("..data");
                let folder = target.join(&version);
                let read = names.clone().map(|name| fs::read_to_string(folder.join(name)));
                if read.iter().all(Result::is_ok) {
                    return read.map(|file| file.expect("checked"));
                }
                // Replaced while we read: the link has moved on, or the test should hear why.
                assert_ne!(fs::read_link(target.join("..data")).expect("..data"), version, "{read:?}");
            }
        })
    }

    /// The credential that the pod would use now.
    pub fn credential(&self, volume: &Volume) -> Credential {
        let [username, password] = self.files(volume, ["username", "password"]);
        Credential { username, password }
    }

    pub async fn login(&self, credential: &Credential) -> Result<(), String> {
        self.ground.postgres.login(&credential.username, &credential.password).await
    }

    /// Database users that pods of this test hold.
    pub fn roles(&self) -> Vec<String> {
        let mark = format!("-{}-", self.name);
        let mut roles = self.ground.postgres.minted_roles();
        roles.retain(|role| role.contains(&mark) && role.starts_with("v-k8s"));
        roles
    }

    /// Leases of the test's database role.
    pub async fn leases(&self) -> usize {
        self.admin.list(&format!("sys/leases/lookup/database/creds/{}", self.name)).await.len()
    }

    /// Live logins of the test's auth mount.
    pub async fn tokens(&self) -> usize {
        self.admin.list(&format!("sys/leases/lookup/auth/{}/login", self.mount)).await.len()
    }

    /// Requests that fit.
    pub fn seen(&self, fits: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        self.proxy.seen().into_iter().filter(fits).collect()
    }

    /// Requests whose path ends like this and that were answered with success.
    pub fn done(&self, path: &str) -> usize {
        self.seen(|seen| {
            seen.path.ends_with(path) && seen.status.is_some_and(|status| (200..300).contains(&status))
        })
        .len()
    }

    /// Database credentials made for this test through leasehold.
    pub fn mints(&self) -> usize {
        self.done(&format!("database/creds/{}", self.name))
    }

    pub fn logins(&self) -> usize {
        self.done("/login")
    }

    /// Waits until nothing of the test is left on the server: no lease, no user, no login.
    pub async fn nothing_left(&self, bound: Duration) {
        let started = Instant::now();
        loop {
            let left = (self.leases().await, self.roles(), self.tokens().await);
            if left == (0, Vec::new(), 0) {
                return;
            }
            let log = self.leasehold.log();
            assert!(started.elapsed() < bound, "left after {bound:?}: {left:?}\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything that a write would change: names, inodes, times, link targets.
    pub fn snapshot(&self, volume: &Volume) -> Vec<(PathBuf, u64, i64, i64, Option<PathBuf>)> {
        use std::os::unix::fs::MetadataExt as _;
        fn walk(folder: &Path, found: &mut Vec<(PathBuf, u64, i64, i64, Option<PathBuf>)>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let at = fs::symlink_metadata(&path).unwrap();
                found.push((path.clone(), at.ino(), at.mtime(), at.mtime_nsec(), fs::read_link(&path).ok()));
                if at.is_dir() {
                    walk(&path, found);
                }
            }
        }
        let target = self.kubelet.target(volume);
        self.node.run(move || {
            let mut found = Vec::new();
            walk(&target, &mut found);
            found.sort();
            found
        })
    }

    /// Logs in every 50 ms with what the files say.
    pub async fn probe(&self, volume: &Volume, duration: Duration) -> Probe {
        self.probe_every(Duration::from_millis(50), volume, duration).await
    }

    /// Logs in at intervals with what the files say.
    pub async fn probe_every(&self, interval: Duration, volume: &Volume, duration: Duration) -> Probe {
        let mut probe = Probe::default();
        let started = Instant::now();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut last: Option<Credential> = None;
        while started.elapsed() < duration {
            ticks.tick().await;
            let credential = self.credential(volume);
            if let Err(error) = self.login(&credential).await {
                probe.failures.push(format!("{:?}: {}: {error}", started.elapsed(), credential.username));
            }
            probe.logins += 1;
            if last.as_ref() != Some(&credential) {
                if let Some(last) = last.replace(credential.clone()) {
                    // A pod that read the file a moment ago still gets in.
                    if let Err(error) = self.login(&last).await {
                        probe.failures.push(format!("{:?}: no overlap: {error}", started.elapsed()));
                    }
                }
                probe.users.push(credential.username);
            }
            if probe.logins % 20 == 0 {
                probe.most_roles = probe.most_roles.max(self.roles().len());
            }
        }
        probe
    }

    /// Waits for something that leasehold is to bring about; its log is shown when it does not.
    pub async fn until<T>(
        &self,
        what: &str,
        bound: Duration,
        mut condition: impl AsyncFnMut() -> Option<T>,
    ) -> T {
        let started = Instant::now();
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            let late = started.elapsed() >= bound;
            assert!(!late, "not within {bound:?}: {what}\n{}", self.leasehold.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The pod's folder goes too, as the kubelet does it at last.
    pub fn remove_pod(&self, volume: &Volume) {
        let folder = self.node.kubelet_root().join("pods").join(&volume.pod.uid);
        self.node.run(move || {
            let _ = fs::remove_dir_all(folder);
        });
    }

    /// A session of the pod's own, as an application would log in by hand.
    pub async fn by_hand(&self, volume: &Volume) -> Admin {
        let jwt = self.ground.cluster.token(&volume.pod, &["vault"], SOON);
        let answer = self
            .admin
            .with_token("")
            .write(&format!("auth/{}/login", self.mount), json!({"role": "app", "jwt": jwt}))
            .await;
        self.admin.with_token(answer["auth"]["client_token"].as_str().expect("a token"))
    }

    /// A credential that nobody looks after, and its lease.
    pub async fn unattended(&self, admin: &Admin) -> (Credential, String) {
        let answer = admin.read(&format!("database/creds/{}", self.name)).await;
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let credential = Credential {
            username: text(&answer["data"]["username"]),
            password: text(&answer["data"]["password"]),
        };
        (credential, text(&answer["lease_id"]))
    }

    /// Waits until an unattended credential is dead: the fault that leasehold is to prevent.
    pub async fn dies(&self, credential: &Credential) {
        until("an unattended credential dies", SOON, async || self.login(credential).await.err()).await;
    }
}

/// What [`Case::probe`] saw.
#[derive(Debug, Default)]
pub struct Probe {
    pub logins: usize,
    pub failures: Vec<String>,
    /// Users in the order in which the files named them.
    pub users: Vec<String>,
    pub most_roles: usize,
}

impl Probe {
    /// Not one login failed.
    #[track_caller]
    pub fn never_failed(&self, log: &str) {
        assert!(self.failures.is_empty(), "{:#?} of {} logins\n{log}", self.failures, self.logins);
    }
}
