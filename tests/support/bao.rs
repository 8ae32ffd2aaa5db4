//! A real OpenBao server per test, killed when dropped, and a client for its operator.

use std::{path::PathBuf, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    SOON, cluster::Cluster, free_port, install_tls_provider, process::Process, temp_dir, tool, until,
};

/// How the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Dev mode, in memory, plain HTTP.
    Dev,
    /// Dev mode with a TLS listener of an authority of its own.
    DevTls,
    /// One raft node with storage on disk: survives a restart, sealed.
    Raft,
}

/// A running server. Dereferences to the operator's client.
pub struct Bao {
    process: Process,
    shape: Shape,
    port: u16,
    dir: TempDir,
    unseal_key: String,
    admin: Admin,
}

/// A client with the root token, within one Vault namespace.
#[derive(Clone)]
pub struct Admin {
    client: reqwest::Client,
    address: String,
    namespace: String,
    token: String,
}

/// An answer that the caller judges.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The JSON body, or null.
    pub body: Value,
}

impl Bao {
    /// A dev server over plain HTTP, with KV v2 at `secret/`.
    pub async fn dev() -> Self {
        Self::start(Shape::Dev).await
    }

    /// Starts a server and waits until it answers as the active node.
    pub async fn start(shape: Shape) -> Self {
        install_tls_provider();
        let dir = temp_dir();
        let port = free_port();
        let process = launch(shape, port, &dir);
        let scheme = if shape == Shape::DevTls { "https" } else { "http" };
        let mut bao = Self {
            process,
            shape,
            port,
            unseal_key: String::new(),
            admin: Admin {
                client: reqwest::Client::new(),
                address: format!("{scheme}://127.0.0.1:{port}"),
                namespace: String::new(),
                token: "root".into(),
            },
            dir,
        };
        let mut authorities = Vec::new();
        if shape == Shape::DevTls {
            let path = bao.ca_path();
            let pem = until("the server writes its authority", SOON, async || {
                bao.process.assert_running();
                std::fs::read(&path).ok().filter(|pem| pem.ends_with(b"-----END CERTIFICATE-----\n"))
            })
            .await;
            authorities.push(reqwest::Certificate::from_pem(&pem).expect("the server's authority"));
        }
        bao.admin.client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(authorities)
            // A connection belongs to the runtime that made it, and every test has its own.
            .pool_max_idle_per_host(0)
            .timeout(SOON)
            .build()
            .expect("an HTTP client");
        if shape == Shape::Raft {
            bao.answers(501).await;
            let init = bao.write("sys/init", json!({"secret_shares": 1, "secret_threshold": 1})).await;
            bao.unseal_key = init["keys_base64"][0].as_str().expect("an unseal key").into();
            bao.admin.token = init["root_token"].as_str().expect("a root token").into();
            bao.unseal().await;
            bao.write("sys/mounts/secret", json!({"type": "kv", "options": {"version": "2"}})).await;
        } else {
            bao.answers(200).await;
            let line = until("the server prints its unseal key", SOON, async || {
                let log = bao.process.log();
                log.lines().find_map(|line| line.strip_prefix("Unseal Key: ").map(str::to_owned))
            })
            .await;
            bao.unseal_key = line.trim().into();
        }
        // KV v2 upgrades itself in the background after its mount appears.
        until("KV v2 is ready", SOON, async || {
            let answer = bao.call(Method::POST, "secret/data/ready", Some(json!({"data": {}}))).await;
            (answer.status == 200).then_some(())
        })
        .await;
        bao
    }

    /// The operator's client.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// `http(s)://127.0.0.1:port`.
    pub fn url(&self) -> &str {
        &self.admin.address
    }

    /// `https://localhost:port`: the other name of the TLS certificate.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// PEM of the authority that signed the TLS listener's certificate.
    pub fn ca_path(&self) -> PathBuf {
        self.dir.path().join("vault-ca.pem")
    }

    /// Folder for files of the test that live as long as the server.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Output of the server.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Seals the server: every request answers 503 until [`Bao::unseal`].
    pub async fn seal(&self) {
        self.write("sys/seal", Value::Null).await;
        self.answers(503).await;
    }

    /// Unseals it and waits until it is active again.
    pub async fn unseal(&self) {
        self.write("sys/unseal", json!({"key": self.unseal_key})).await;
        self.answers(200).await;
    }

    /// Ends the server as a crash does. Only raft storage is there after a [`Bao::restart`].
    pub fn crash(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port, and unseals it if it has storage.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = launch(self.shape, self.port, &self.dir);
        if self.shape == Shape::Raft {
            self.answers(503).await;
            self.unseal().await;
        } else {
            self.answers(200).await;
        }
    }

    /// Stops the process without closing its sockets (SIGSTOP): connections hang.
    pub fn freeze(&self) {
        self.process.signal(nix::sys::signal::Signal::SIGSTOP);
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) {
        self.process.signal(nix::sys::signal::Signal::SIGCONT);
    }

    async fn answers(&self, status: u16) {
        until(&format!("OpenBao answers {status} to sys/health\n{}", self.log()), SOON, async || {
            let url = format!("{}/v1/sys/health", self.admin.address);
            let response = self.admin.client.get(url).send().await.ok()?;
            (response.status().as_u16() == status).then_some(())
        })
        .await;
    }
}

impl std::ops::Deref for Bao {
    type Target = Admin;

    fn deref(&self) -> &Admin {
        &self.admin
    }
}

fn launch(shape: Shape, port: u16, dir: &TempDir) -> Process {
    let home = dir.path().to_owned();
    Process::spawn("bao", tool("bao"), |command| {
        command.arg("server").env_clear().env("HOME", &home);
        let listen = format!("-dev-listen-address=127.0.0.1:{port}");
        let dev = ["-dev-root-token-id=root", "-dev-no-store-token", listen.as_str()];
        match shape {
            Shape::Dev => {
                command.arg("-dev").args(dev);
            }
            Shape::DevTls => {
                command.arg("-dev-tls").arg(format!("-dev-tls-cert-dir={}", home.display())).args(dev);
            }
            Shape::Raft => {
                let config = home.join("config.hcl");
                let data = home.join("raft");
                std::fs::create_dir_all(&data).expect("a folder for raft");
                std::fs::write(
                    &config,
                    format!(
                        "storage \"raft\" {{\n  path = \"{}\"\n  node_id = \"one\"\n}}\n\
                         listener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  tls_disable = true\n}}\n\
                         api_addr = \"http://127.0.0.1:{port}\"\ncluster_addr = \"http://127.0.0.1:{}\"\n",
                        data.display(),
                        free_port(),
                    ),
                )
                .expect("the server's configuration");
                command.arg(format!("-config={}", config.display()));
            }
        }
    })
}

impl Admin {
    /// The same client within a Vault namespace.
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: namespace.into(), ..self.clone() }
    }

    /// The same client with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.into(), ..self.clone() }
    }

    /// One request; the caller judges the answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = format!("{}/v1/{path}", self.address);
        let mut request = self.client.request(method.clone(), url);
        if !self.token.is_empty() {
            request = request.header("x-vault-token", &self.token);
        }
        if !self.namespace.is_empty() {
            request = request.header("x-vault-namespace", &self.namespace);
        }
        if let Some(body) = body.filter(|body| !body.is_null()) {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response =
            request.send().await.unwrap_or_else(|error| panic!("{method} {path} on OpenBao: {error:#}"));
        let status = response.status().as_u16();
        let bytes = response.bytes().await.unwrap_or_else(|error| panic!("{method} {path}: {error:#}"));
        Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
    }

    /// POSTs `body`; anything but 2xx fails the test.
    pub async fn write(&self, path: &str, body: Value) -> Value {
        self.must(Method::POST, path, Some(body)).await
    }

    /// GETs `path`; anything but 2xx fails the test.
    pub async fn read(&self, path: &str) -> Value {
        self.must(Method::GET, path, None).await
    }

    /// DELETEs `path`; anything but 2xx fails the test.
    pub async fn delete(&self, path: &str) {
        self.must(Method::DELETE, path, None).await;
    }

    /// The keys below `path`; none if there are none.
    pub async fn list(&self, path: &str) -> Vec<String> {
        let method = Method::from_bytes(b"LIST").expect("a method");
        let answer = self.call(method, path, None).await;
        if answer.status == 404 {
            return Vec::new();
        }
        assert_eq!(answer.status, 200, "LIST {path}: {}", answer.body);
        let keys = answer.body["data"]["keys"].as_array().cloned().unwrap_or_default();
        keys.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect()
    }

    /// Writes a KV v2 secret below the mount `secret/`.
    pub async fn put_secret(&self, path: &str, data: Value) {
        self.write(&format!("secret/data/{path}"), json!({ "data": data })).await;
    }

    /// Writes an ACL policy.
    pub async fn put_policy(&self, name: &str, hcl: &str) {
        self.write(&format!("sys/policies/acl/{name}"), json!({ "policy": hcl })).await;
    }

    /// How many tokens the server holds, the root token among them.
    pub async fn token_count(&self) -> usize {
        self.list("auth/token/accessors").await.len()
    }

    /// Enables a kubernetes auth mount that asks `cluster` for its TokenReviews.
    pub async fn enable_kubernetes_auth(&self, mount: &str, cluster: &Cluster) {
        self.write(&format!("sys/auth/{mount}"), json!({"type": "kubernetes"})).await;
        let config = json!({
            "kubernetes_host": cluster.url(),
            // Required even for a host without TLS.
            "kubernetes_ca_cert": cluster.ca_pem(),
            "token_reviewer_jwt": cluster.reviewer_token(),
            "disable_local_ca_jwt": true,
        });
        self.write(&format!("auth/{mount}/config"), config).await;
    }

    /// Enables a jwt auth mount that trusts the cluster's key.
    pub async fn enable_jwt_auth(&self, mount: &str, cluster: &Cluster) {
        self.write(&format!("sys/auth/{mount}"), json!({"type": "jwt"})).await;
        let config =
            json!({"jwt_validation_pubkeys": [cluster.public_key_pem()], "bound_issuer": cluster.issuer()});
        self.write(&format!("auth/{mount}/config"), config).await;
    }

    async fn must(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let answer = self.call(method.clone(), path, body).await;
        assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.body);
        answer.body
    }
}

/// How long the server may take to drop what a revoked token held: it does so after answering.
pub const REVOCATION: Duration = SOON;
