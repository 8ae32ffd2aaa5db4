//! The commands that a newcomer copies, run in their order against a real server, and the classes beside them mounted.
//! What needs a cluster (kubectl, helm) is checked by scripts/check-deploy as far as it can be.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::support::{
    cluster::Pod, driver::SecretProviderClass, kubelet::Volume, postgres::Postgres, process, stage::Stage,
    temp_dir, tool,
};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Runs `script` where `bao` and `vault` are the client of `bao`, with a token that may do everything. The cluster is
/// outside of the server here, so its auth mount is told what it finds by itself in a pod.
fn run(stage: &Stage, script: &str) {
    let dir = temp_dir();
    for name in ["bao", "vault"] {
        std::os::unix::fs::symlink(tool("bao"), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("ca.pem"), stage.cluster.ca_pem()).unwrap();
    fs::write(dir.path().join("reviewer"), stage.cluster.reviewer_token()).unwrap();
    let here = "kubernetes_host=https://kubernetes.default.svc";
    assert!(script.contains(here), "{script}");
    let there = format!(
        "kubernetes_host={} kubernetes_ca_cert=@ca.pem token_reviewer_jwt=@reviewer disable_local_ca_jwt=true",
        stage.cluster.url()
    );
    let output = process::output(
        Command::new("sh")
            .args(["-eu", "-c", &script.replace(here, &there)])
            .current_dir(dir.path())
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
            .env("HOME", dir.path())
            .env("BAO_ADDR", stage.bao.url())
            .env("BAO_TOKEN", "root"),
    )
    .unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

/// A server on which nothing is set up yet.
async fn bare() -> Stage {
    let stage = Stage::start().await;
    stage.bao.delete("sys/auth/kubernetes").await;
    stage
}

/// The SecretProviderClass of a file with YAML documents, and the identity of the pods that it is for.
fn class(documents: &str, account: &str) -> (SecretProviderClass, Volume) {
    let class: Value = documents
        .split("---\n")
        .find(|document| document.contains("kind: SecretProviderClass"))
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let parameters = class["spec"]["parameters"].as_object().unwrap();
    let pod = Pod::new(&text(&class["metadata"]["namespace"]), "web-0", account);
    let class = SecretProviderClass {
        name: text(&class["metadata"]["name"]),
        provider: text(&class["spec"]["provider"]),
        parameters: parameters.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
    };
    (class, Volume::new(&pod))
}

/// The commands of a section: its indented lines, without those for the cluster.
fn commands(page: &str, section: &str) -> String {
    let text = page.split("\n## ").find(|part| part.starts_with(section)).unwrap();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    lines.into_iter().filter(|line| !line.starts_with("kubectl ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn the_commands_of_the_install_page_give_the_file_it_names() {
    let page = read("docs/install.md");
    let script = commands(&page, "4. Vault or OpenBao");
    let stage = bare().await;
    run(&stage, &script);
    let yaml = page.split("```yaml\n").find(|block| block.contains("kind: SecretProviderClass")).unwrap();
    let (class, volume) = class(yaml.split("```").next().unwrap(), "web");
    stage.mount(&volume, &class).await;
    assert_eq!(stage.kubelet.file(&volume, "api-key"), "first-value");
    assert!(script.contains("key=first-value"), "{script}");
}

#[tokio::test]
async fn the_bookstore_gets_its_value_and_a_database_user_of_its_own() {
    let (stage, postgres) = tokio::join!(bare(), Postgres::start());
    postgres.sql("create role root superuser login password 'first-and-soon-replaced'");
    postgres.sql("create database bookstore");
    let script = read("examples/bookstore/configure.sh");
    let database = "postgres.bookstore.svc:5432";
    assert!(script.contains(database));
    let script = script.replace(database, &format!("127.0.0.1:{}", postgres.port()));
    run(&stage, &script);
    // As after a mistake: a second time changes nothing.
    run(&stage, &script);
    let (class, volume) = class(&read("examples/bookstore/secretproviderclass.yaml"), "web");
    stage.mount(&volume, &class).await;
    let file = |name: &str| stage.kubelet.file(&volume, name);
    assert_eq!(file("greeting"), "hello from OpenBao");
    let user = file("db/username");
    postgres.login(&user, &file("db/password")).await.unwrap();
    assert_eq!(postgres.minted_roles(), [user]);
    stage.kubelet.unpublish(&volume).unwrap();
    crate::support::until("its user goes with the pod", crate::support::SOON, async || {
        postgres.minted_roles().is_empty().then_some(())
    })
    .await;
}
