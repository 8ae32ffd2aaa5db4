//! What can be read, and how: versions, arguments, raw endpoints, a unix socket, owned files.

use std::os::unix::fs::MetadataExt;

use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, UnixListener},
};

use crate::support::{
    driver::{SecretProviderClass, is_final},
    kubelet::Options,
    node::Propagation,
    process,
    stage::{OBJECTS, Stage, class},
};

fn objects(yaml: &str) -> SecretProviderClass {
    SecretProviderClass::new("vault", "app", yaml)
}

/// A deleted or destroyed version is said to be one; a deletion to come is none yet.
#[tokio::test]
async fn versions_that_are_gone_say_so_and_later_deletions_do_not_matter() {
    let stage = Stage::start().await;
    for name in ["deleted", "destroyed", "later"] {
        stage.bao.put_secret(&format!("app/{name}"), json!({ "k": "old" })).await;
        stage.bao.put_secret(&format!("app/{name}"), json!({ "k": "new" })).await;
    }
    stage.bao.delete("secret/data/app/deleted").await;
    stage.bao.write("secret/destroy/app/destroyed", json!({ "versions": [2] })).await;
    stage.bao.write("secret/metadata/app/later", json!({ "delete_version_after": "3h" })).await;
    stage.bao.put_secret("app/later", json!({ "k": "newest" })).await;
    let object = |path: &str| objects(&format!("- {{objectName: f, secretPath: {path}, secretKey: k}}"));
    for (path, says) in [
        ("secret/data/app/deleted", "deleted"),
        ("secret/data/app/destroyed", "destroyed"),
        ("secret/data/app/nothing", "secret/data/app/nothing"),
    ] {
        let status = stage.kubelet.publish(&stage.volume(), Some(&object(path))).await.unwrap_err();
        assert!(is_final(status.code()), "{path}: {status:?}");
        assert!(status.message().contains(says) && status.message().contains("\"f\""), "{path}: {status:?}");
    }
    for (path, content) in [
        ("secret/data/app/later", "newest"),
        ("secret/data/app/deleted?version=1", "old"),
        ("/v1/secret/data/app/destroyed?version=1", "old"),
    ] {
        let volume = stage.volume();
        stage.mount(&volume, &object(path)).await;
        assert_eq!(stage.kubelet.file(&volume, "f"), content, "{path}");
    }
}

/// The same path with other arguments is another request; the same twice is one.
#[tokio::test]
async fn arguments_are_part_of_a_request_and_raw_endpoints_are_files() {
    let stage = Stage::start().await;
    stage.bao.write("sys/mounts/pki", json!({ "type": "pki" })).await;
    stage.bao.write("pki/root/generate/internal", json!({ "common_name": "root", "ttl": "24h" })).await;
    let role = json!({ "allow_any_name": true, "enforce_hostnames": false, "max_ttl": "12h" });
    stage.bao.write("pki/roles/web", role).await;
    let policy = "path \"pki/issue/web\" { capabilities = [\"update\"] }
        path \"pki/ca/pem\" { capabilities = [\"read\"] }
        path \"secret/data/app/*\" { capabilities = [\"read\"] }";
    stage.bao.put_policy("app", policy).await;
    let issue = |name: &str, key: &str, file: &str| {
        format!(
            "- {{objectName: {file}, secretPath: pki/issue/web, method: PUT, secretKey: {key},\n   \
             secretArgs: {{common_name: {name}, ttl: 1h}}}}\n"
        )
    };
    let class = objects(&format!(
        "{}{}{}- {{objectName: ca.pem, secretPath: pki/ca/pem}}\n- {{objectName: all, secretPath: secret/data/app/db}}\n",
        issue("one", "certificate", "one.pem"),
        issue("one", "private_key", "one.key"),
        issue("two", "certificate", "two.pem"),
    ));
    let volume = stage.volume();
    stage.mount(&volume, &class).await;
    let issued = stage.proxy.requests().iter().filter(|request| request.contains("pki/issue")).count();
    assert_eq!(issued, 2, "{:?}", stage.proxy.requests());
    let file = |name: &str| stage.kubelet.file(&volume, name);
    assert_ne!(file("one.pem"), file("two.pem"), "two names, two certificates");
    assert!(file("ca.pem").starts_with("-----BEGIN CERTIFICATE-----"), "{}", file("ca.pem"));
    assert!(file("one.key").contains("PRIVATE KEY"));
    let pairs = ["one.pem", "one.key"].map(|name| {
        let target = stage.kubelet.target(&volume);
        stage.node.run(move || std::fs::read(target.join(name)).unwrap())
    });
    // openssl reads the key's and the certificate's public halves alike: they came from one answer.
    let public = |bytes: &[u8], arguments: &[&str]| {
        use std::{
            io::Write,
            process::{Command, Stdio},
        };
        let mut openssl = Command::new("openssl");
        openssl.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process::spawn_with(|| openssl.spawn()).unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let certificate = public(&pairs[0], &["x509", "-noout", "-pubkey"]);
    assert!(certificate.contains("PUBLIC KEY"));
    assert_eq!(certificate, public(&pairs[1], &["pkey", "-pubout"]));
    let all: serde_json::Value = serde_json::from_str(&file("all")).unwrap();
    assert_eq!(all["data"]["data"]["password"], "p1");
    assert!(file("all").starts_with("{\"request_id\":"), "the order of Go's struct: {}", file("all"));
}

#[tokio::test]
async fn a_unix_socket_serves_as_an_address() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault-agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address = format!("unix://{}", path.display());
    let stage = Stage::start_with(Options::default(), |launch| {
        launch.flags.push(format!("--allow-vault-address={address}"));
    })
    .await;
    let port = stage.bao.port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _closed = copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    let volume = stage.volume();
    stage.mount(&volume, &class().with("vaultAddress", &address)).await;
    assert_eq!(stage.kubelet.file(&volume, "password"), "p1");
    assert_eq!(stage.proxy.count(), 0, "nothing went to the other address");
}

/// Private files for a pod that does not run as root, in the mode that can give them.
#[tokio::test]
async fn owned_files_are_the_pods_own_and_refused_where_the_driver_writes() {
    let owned = objects(
        &OBJECTS
            .replace("filePermission: 0400", "filePermission: 0400\n  fileOwner: {uid: 10001, gid: 10002}"),
    );
    let stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &owned).await;
    let metadata = stage.node.metadata(&stage.kubelet.target(&volume).join("password"));
    assert_eq!((metadata.uid(), metadata.gid(), crate::mode(&metadata)), (10001, 10002, 0o400));
    let stage = Stage::start_with(Options::default(), |launch| launch.propagation = Propagation::None).await;
    let status = stage.kubelet.publish(&stage.volume(), Some(&owned)).await.unwrap_err();
    assert!(is_final(status.code()) && status.message().contains("HostToContainer"), "{status:?}");
}
