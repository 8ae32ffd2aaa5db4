//! Files as applications want them: templates, forms and absence against a real server.

use std::time::Duration;

use serde_json::json;

use crate::support::{SOON, driver::SecretProviderClass, postgres::Postgres, stage::Stage, until};

fn objects(yaml: &str) -> SecretProviderClass {
    SecretProviderClass::new("vault", "app", yaml)
}

/// User and password of `DATABASE_URL=postgres://user:password@…`.
fn credential(file: &str) -> (String, String) {
    let rest = file.trim().strip_prefix("DATABASE_URL=postgres://").unwrap_or_else(|| panic!("{file}"));
    let (user, rest) = rest.split_once(':').unwrap();
    let (password, host) = rest.split_once('@').unwrap();
    assert!(host.ends_with("/postgres?application_name=app-0"), "{host}");
    (user.to_owned(), password.to_owned())
}

/// The headline: a connection string of database credentials that rotate under a running application.
#[tokio::test]
async fn a_connection_string_rotates_and_always_logs_in() {
    let (stage, postgres) = tokio::join!(Stage::start(), Postgres::start());
    postgres.configure(&stage.bao, "app", "4s", "8s").await;
    stage.bao.put_policy("app", "path \"database/creds/app\" { capabilities = [\"read\"] }").await;
    let class = objects(&format!(
        "- {{as: db, secretPath: database/creds/app, overlap: 2s}}\n\
         - objectName: app.env\n  template: |\n    \
         DATABASE_URL=postgres://{{{{ .db.username | urlquery }}}}:{{{{ .db.password | urlquery }}}}@127.0.0.1:{}/\
         postgres?application_name={{{{ .pod.name }}}}\n\
         - {{objectName: password, secretPath: database/creds/app, secretKey: password, overlap: 2s}}\n",
        postgres.port()
    ));
    let volume = stage.volume();
    stage.mount(&volume, &class).await;
    let minted = || stage.proxy.requests().iter().filter(|it| it.contains("database/creds")).count();
    assert_eq!(minted(), 1, "the template and the raw file are one credential");
    let first = credential(&stage.kubelet.file(&volume, "app.env"));
    assert_eq!(first.1, stage.kubelet.file(&volume, "password"));
    let mut users = vec![first.0];
    until("three more credentials", Duration::from_secs(60), async || {
        // As an application does: read the file, then log in with it.
        let (user, password) = credential(&stage.kubelet.file(&volume, "app.env"));
        let refused = postgres.login(&user, &password).await.err();
        assert_eq!(refused, None, "{}", stage.leasehold.log());
        if users.last() != Some(&user) {
            users.push(user);
        }
        (users.len() > 3).then_some(())
    })
    .await;
    users.sort_unstable();
    users.dedup();
    assert_eq!(users.len(), 4, "no credential came back");
    stage.kubelet.unpublish(&volume).unwrap();
    until("nothing is left", SOON, async || postgres.minted_roles().is_empty().then_some(())).await;
}

/// A template of Vault Agent's documentation and one of External Secrets Operator's, as they stand there.
#[tokio::test]
async fn templates_of_the_peers_work_unchanged() {
    let stage = Stage::start().await;
    stage.bao.put_secret("app/grafana", json!({"user": "admin", "password": "s<3>&"})).await;
    let class = objects(
        "- objectName: config.sh\n  template: |\n    \
         {{- with secret \"secret/data/app/db\" -}}\n    \
         postgresql://{{ .Data.data.username }}:{{ .Data.data.password }}@postgres:5432/wizard\n    \
         {{- end }}\n\
         - objectName: unversioned\n  template: '{{ with secret \"secret/app/db\" }}{{ .Data.data.username }}{{ end }}'\n\
         - {as: ., secretPath: secret/data/app/grafana}\n\
         - objectName: config.yml\n  template: |\n    \
         datasources:\n    - name: Graphite\n      password: \"{{ .password }}\"\n      user: \"{{ .user }}\"\n",
    );
    let volume = stage.volume();
    stage.mount(&volume, &class).await;
    let file = |name: &str| stage.kubelet.file(&volume, name);
    assert_eq!(file("config.sh"), "postgresql://u:p1@postgres:5432/wizard\n");
    assert_eq!(file("unversioned"), "u");
    assert_eq!(
        file("config.yml"),
        "datasources:\n- name: Graphite\n  password: \"s<3>&\"\n  user: \"admin\"\n"
    );

    // That path was denied. Where it may be read, the server says what it lacks, in a warning of a 404.
    let both = "path \"secret/data/app/*\" { capabilities = [\"read\"] }
        path \"secret/app/*\" { capabilities = [\"read\"] }";
    stage.bao.put_policy("app", both).await;
    let volume = stage.volume();
    stage.mount(&volume, &class).await;
    assert_eq!(stage.kubelet.file(&volume, "unversioned"), "u");

    let asked = stage.proxy.requests().len();
    let broken = objects(
        "- {objectName: f, template: '{{ with secret \"secret/data/app/db\" }}{{ .Data.data.pw }}{{ end }}'}",
    );
    let status = stage.kubelet.publish(&stage.volume(), Some(&broken)).await.unwrap_err();
    let message = status.message();
    assert!(message.contains("there is no key \"pw\"") && message.contains("line 1, column"), "{message}");
    assert!(stage.proxy.requests().len() > asked);
    let asked = stage.proxy.requests().len();
    let unknown = objects("- {objectName: f, template: '{{ readFile \"/etc/passwd\" }}'}");
    let status = stage.kubelet.publish(&stage.volume(), Some(&unknown)).await.unwrap_err();
    assert!(status.message().contains("readFile"), "{status:?}");
    assert_eq!(stage.proxy.requests().len(), asked, "refused before any request");
}

/// A secret that does not exist yet is no error where it is optional, and comes when it comes.
#[tokio::test]
async fn optional_secrets_come_and_go() {
    let stage = Stage::start().await;
    let class = |first: &str| {
        objects(&format!(
            "- {{objectName: flag, secretPath: secret/data/app/later, secretKey: k, refreshInterval: 5s, {first}}}\n\
             - {{objectName: level, secretPath: secret/data/app/later, jsonPointer: /level, default: info}}\n\
             - {{objectName: all, secretPath: secret/data/app/db, extract: {{exclude: [pass*]}}}}\n"
        ))
    };
    // Without: one object that needs the secret fails the mount.
    let status = stage.kubelet.publish(&stage.volume(), Some(&class("optional: false"))).await.unwrap_err();
    assert!(status.message().contains("secret/data/app/later"), "{status:?}");

    let volume = stage.volume();
    stage.mount(&volume, &class("optional: true")).await;
    let target = stage.kubelet.target(&volume);
    let exists = |name: &'static str| {
        let path = target.join(name);
        stage.node.run(move || path.exists())
    };
    assert!(!exists("flag"));
    assert_eq!(stage.kubelet.file(&volume, "level"), "info");
    assert_eq!(stage.kubelet.file(&volume, "all/username"), "u");
    assert!(!exists("all/password"));
    stage.bao.put_secret("app/later", json!({"k": "v", "level": "debug"})).await;
    until("the secret is read", SOON, async || exists("flag").then_some(())).await;
    assert_eq!(stage.kubelet.file(&volume, "flag"), "v");
    assert_eq!(stage.kubelet.file(&volume, "level"), "debug");
    stage.bao.delete("secret/data/app/later").await;
    until("the secret is gone", SOON, async || (!exists("flag")).then_some(())).await;
    assert_eq!(stage.kubelet.file(&volume, "level"), "info");
}

/// Whatever is wrong with what is asked for or with what is stored is a clear error of that mount alone, before a
/// file of it is there.
#[tokio::test]
async fn bad_objects_fail_their_own_mount_and_no_other() {
    let stage = Stage::start().await;
    let canary = "c4n4ry";
    let odd = json!({"B": format!("{canary}\u{1}"), "../../etc/x": canary, "t": "{{ fail `x` }}"});
    stage.bao.put_secret("app/odd", odd).await;
    let neighbour = stage.volume();
    let good = objects("- {objectName: t, secretPath: secret/data/app/odd, secretKey: t}");
    stage.mount(&neighbour, &good).await;
    let many: String = (0..10_001)
        .map(|n| format!("- {{objectName: f{n}, secretPath: secret/data/app/db, secretKey: username}}\n"))
        .collect();
    for (yaml, says) in [
        ("- objectName: f\n  template: |\n    ok\n    {{ if }}", "\"f\" (line 4, column "),
        ("- {objectName: f, template: '{{ uper 1 }}'}", "no function uper; did you mean upper?"),
        (
            "- {objectName: d, secretPath: secret/data/app/db, extract: {}}\n\
             - {objectName: d/username, secretPath: secret/data/app/db, secretKey: username}",
            "both write the file \"d/username\"",
        ),
        (
            "- {objectName: d, secretPath: secret/data/app/db, extract: {rename: [{from: username, to: ../../x}]}}",
            "an element \"..\", which would leave the volume",
        ),
        ("- {objectName: d, secretPath: secret/data/app/odd, extract: {}}", "which would leave the volume"),
        ("- {objectName: e, secretPath: secret/data/app/odd, format: env}", "cannot write as env: "),
        (
            "- {objectName: j, secretPath: secret/data/app/odd, format: jks, passwordKey: nope}",
            "the keystore's password: there is no text at key \"nope\"",
        ),
        (
            "- {objectName: f, template: '{{ range until 100000 }}{{ range until 100000 }}x{{ end }}{{ end }}'}",
            "too many rounds of range; does it end?",
        ),
        (
            "- {objectName: f, template: '{{ define \"t\" }}{{ template \"t\" }}{{ end }}{{ template \"t\" }}'}",
            "nested too deep; does one call itself?",
        ),
        ("- {objectName: f, template: '{{ repeat 5000000 \"x\" }}'}", "would be too large"),
        (&many, "has 10001 entries, more than 10000"),
    ] {
        let volume = stage.volume();
        let status = stage.kubelet.publish(&volume, Some(&objects(yaml))).await.unwrap_err();
        let message = status.message();
        assert!(message.contains(says), "{says}: {message}");
        assert!(!message.contains(canary), "{message}");
        assert!(stage.node.list(&stage.kubelet.target(&volume)).is_err(), "{says}: there are files");
        assert_eq!(stage.kubelet.file(&neighbour, "t"), "{{ fail `x` }}", "never evaluated again: {says}");
    }
    stage.mount(&neighbour, &good).await;
}

/// Owners and modes by number, from the pod's own attributes before the class's before the driver's.
#[tokio::test]
async fn a_pod_has_private_files() {
    use std::os::unix::fs::MetadataExt as _;
    let stage = Stage::start().await;
    let class = objects(
        "- {objectName: plain, secretPath: secret/data/app/db, secretKey: username}\n\
         - {objectName: moded, secretPath: secret/data/app/db, secretKey: username, filePermission: 0444}\n\
         - {objectName: own, secretPath: secret/data/app/db, secretKey: username, fileOwner: {uid: 7, gid: 8}}\n\
         - {objectName: dir, secretPath: secret/data/app/db, extract: {include: [password]}, fileGroup: 9}\n",
    );
    let look = |volume: &crate::support::kubelet::Volume, name: &str| {
        let stat = stage.node.metadata(&stage.kubelet.target(volume).join(name));
        (stat.uid(), stat.gid(), crate::mode(&stat))
    };
    let volume = |pod: &str| {
        crate::support::kubelet::Volume::new(&crate::support::cluster::Pod::new("prod", pod, "app"))
    };
    let plain = volume("app-0");
    stage.mount(&plain, &class).await;
    assert_eq!(look(&plain, "plain"), (0, 0, 0o644), "nobody asked for anything");
    assert_eq!(look(&plain, "own"), (7, 8, 0o440));
    assert_eq!(look(&plain, "dir/password"), (0, 9, 0o440));

    let owned = volume("app-1").with("fileOwner", "10001");
    stage.mount(&owned, &class).await;
    assert_eq!(look(&owned, "plain"), (10001, 0, 0o400));
    assert_eq!(look(&owned, "moded"), (10001, 0, 0o444));
    assert_eq!(look(&owned, "own"), (7, 8, 0o440), "the object's own wins");
    let grouped = volume("app-2").with("fileOwner", "10001").with("fileGroup", "10002");
    stage.mount(&grouped, &class).await;
    assert_eq!(look(&grouped, "plain"), (10001, 10002, 0o440));

    // The class's own, and the pod's over it; a mode for all.
    let class = class.with("fileOwner", "500:501").with("filePermission", "0600");
    let by_class = volume("app-3");
    stage.mount(&by_class, &class).await;
    assert_eq!(look(&by_class, "plain"), (500, 501, 0o600));
    assert_eq!(look(&by_class, "moded"), (500, 501, 0o444));
    let by_pod = volume("app-4").with("fileOwner", "600").with("filePermission", "0400");
    stage.mount(&by_pod, &class).await;
    assert_eq!(look(&by_pod, "plain"), (600, 0, 0o400));

    // A changed owner of a running pod is a change like any other.
    let moved = owned.with("fileOwner", "10003:10003");
    stage.mount(&moved, &class).await;
    assert_eq!(look(&moved, "plain"), (10003, 10003, 0o600));
}
