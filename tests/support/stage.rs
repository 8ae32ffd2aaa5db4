//! Everything together: one OpenBao behind a counting proxy, one cluster, one node with leasehold on it.

use std::sync::Arc;

use serde_json::json;

use super::{
    bao::{Admin, Bao, Shape},
    cluster::{Cluster, Pod, api::Api},
    driver::SecretProviderClass,
    kubelet::{Kubelet, Options, Volume},
    leasehold::{Launch, Leasehold},
    node::Node,
    proxy::Proxy,
};

/// The objects of [`class`]: two files of one secret, and one of another.
pub const OBJECTS: &str = r#"
- objectName: username
  secretPath: secret/data/app/db
  secretKey: username
- objectName: password
  secretPath: secret/data/app/db
  secretKey: password
  filePermission: 0400
- objectName: api/key
  secretPath: secret/data/app/api
  secretKey: key
"#;

/// A node on which pods of the namespace `prod` with the ServiceAccount `app` get secrets.
pub struct Stage {
    /// The provider.
    pub leasehold: Leasehold,
    /// The kubelet and its driver.
    pub kubelet: Kubelet,
    /// What leasehold takes for the server.
    pub proxy: Proxy,
    /// The server.
    pub bao: Bao,
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The node.
    pub node: Arc<Node>,
}

impl Stage {
    /// The usual stage.
    pub async fn start() -> Self {
        Self::start_with(Options::default(), |_| {}).await
    }

    /// A stage with other settings of the driver, and of leasehold.
    pub async fn start_with(options: Options, launch: impl FnOnce(&mut Launch)) -> Self {
        Self::start_on(Node::new(), options, launch).await
    }

    /// A stage on a node of the test's own.
    pub async fn start_on(node: Node, options: Options, launch: impl FnOnce(&mut Launch)) -> Self {
        Self::start_in(Arc::new(node), Arc::new(Cluster::start()), options, launch).await
    }

    /// A stage whose leasehold has a ServiceAccount token, and these flags.
    pub async fn start_with_api(options: Options, flags: &[&str]) -> (Self, Api) {
        let (node, cluster) = (Arc::new(Node::new()), Arc::new(Cluster::start()));
        let api = Api::start(&cluster);
        node.mount_service_account(api.service_account_files());
        let stage = Self::start_in(node, cluster, options, |launch| {
            launch.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
            launch.env.extend(api.environment());
        })
        .await;
        (stage, api)
    }

    async fn start_in(
        node: Arc<Node>,
        cluster: Arc<Cluster>,
        options: Options,
        launch: impl FnOnce(&mut Launch),
    ) -> Self {
        let bao = Bao::start(Shape::Dev).await;
        configure(&bao, &cluster).await;
        let proxy = Proxy::start(bao.url());
        let mut settings = Launch::new(&proxy.url());
        launch(&mut settings);
        let leasehold = Leasehold::start(&node, settings).await;
        let kubelet = Kubelet::new(Arc::clone(&node), Arc::clone(&cluster), options);
        proxy.forget();
        Self { leasehold, kubelet, proxy, bao, cluster, node }
    }

    /// A new pod that may read the secrets, and its volume.
    pub fn volume(&self) -> Volume {
        Volume::new(&Pod::new("prod", "app-0", "app"))
    }

    /// Mounts a volume; the test fails with leasehold's log when it does not work.
    pub async fn mount(&self, volume: &Volume, class: &SecretProviderClass) {
        if let Err(status) = self.kubelet.publish(volume, Some(class)).await {
            panic!("mount: {status:?}\n{}", self.leasehold.log());
        }
    }
}

/// The usual SecretProviderClass.
pub fn class() -> SecretProviderClass {
    SecretProviderClass::new("vault", "app", OBJECTS)
}

/// Certificates with a lease at pki/issue/web, and a policy that gives the pods of [`configure`] those too.
pub async fn offer_leased_certificates(bao: &Admin) {
    bao.write("sys/mounts/pki", json!({ "type": "pki" })).await;
    let root = json!({ "common_name": "root", "ttl": "24h", "key_type": "ec", "key_bits": 256 });
    bao.write("pki/root/generate/internal", root).await;
    let role = json!({
        "allow_any_name": true, "enforce_hostnames": false, "max_ttl": "12h", "generate_lease": true,
        "key_type": "ec", "key_bits": 256,
    });
    bao.write("pki/roles/web", role).await;
    let policy = "path \"pki/issue/web\" { capabilities = [\"update\"] }
        path \"secret/data/app/*\" { capabilities = [\"read\"] }";
    bao.put_policy("app", policy).await;
}

/// What an operator sets up: a kubernetes auth mount, a policy, roles, two secrets.
pub async fn configure(bao: &Admin, cluster: &Cluster) {
    bao.enable_kubernetes_auth("kubernetes", cluster).await;
    bao.put_policy("app", "path \"secret/data/app/*\" { capabilities = [\"read\"] }").await;
    for (role, audience) in [("app", "vault"), ("app-openbao", "openbao")] {
        add_role(bao, "kubernetes", role, audience).await;
    }
    bao.put_secret("app/db", json!({"username": "u", "password": "p1"})).await;
    bao.put_secret("app/api", json!({"key": "k1"})).await;
}

/// Adds a role for `prod/app` with the policy `app`.
pub async fn add_role(bao: &Admin, mount: &str, role: &str, audience: &str) {
    let body = json!({
        "bound_service_account_names": ["app"],
        "bound_service_account_namespaces": ["prod"],
        "audience": audience,
        "token_policies": ["app"],
        "token_ttl": "1h",
        "token_max_ttl": "24h",
    });
    bao.write(&format!("auth/{mount}/role/{role}"), body).await;
}
