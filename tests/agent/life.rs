//! From the first render to the end.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    pod::{GROUP, Pod, USER},
    support::{SOON, bao::REVOCATION, http::Reply, proxy::Fault, until},
};

#[tokio::test]
async fn a_restricted_pod_gets_its_files_and_gives_all_back_at_sigterm() {
    let pod = Pod::new("restrict").await;
    pod.put("password", "one").await;
    pod.configure(&[pod.kv("password"), pod.database()], "");
    let refused = pod.within(|| nix::mount::umount2("/nowhere", nix::mount::MntFlags::empty()));
    assert_eq!(refused, Err(nix::errno::Errno::EPERM), "the filter is in force");

    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(line("Uid:").split_whitespace().next(), Some("65532"), "{}", agent.log());
    assert_eq!((line("CapEff:"), line("CapBnd:")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".into(), "2".into()));

    assert_eq!(pod.read("secrets/password").unwrap(), "one");
    assert_eq!(pod.status("secrets/password"), (0o440, USER, GROUP), "for the pod's fsGroup");
    let (user, password) = pod.credential();
    pod.ground.postgres.login(&user, &password).await.unwrap();
    let logins = pod.requests()["auth/k8s-restrict/login"];
    assert_eq!(logins, 1, "one set of credentials: {:?}", pod.requests());

    agent.signal(Signal::SIGTERM);
    let ended = agent.wait(SOON).await;
    assert!(ended.success(), "{ended}: {}", agent.log());
    until("the database user is gone", REVOCATION, async || {
        pod.ground.postgres.login(&user, &password).await.is_err().then_some(())
    })
    .await;
    assert_eq!(pod.requests()["auth/token/revoke-self"], 1);
}

#[tokio::test]
async fn revoking_at_the_end_can_be_switched_off() {
    let pod = Pod::new("keep").await;
    pod.configure(&[pod.database()], "revokeOnShutdown: false\n");
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let (user, password) = pod.credential();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success(), "{}", agent.log());
    pod.ground.postgres.login(&user, &password).await.unwrap();
    assert!(!pod.requests().contains_key("auth/token/revoke-self"), "{:?}", pod.requests());
}

#[tokio::test]
async fn a_killed_agent_comes_back_without_a_second_credential() {
    let pod = Pod::new("killed").await;
    pod.put("password", "one").await;
    pod.configure(&[pod.kv("password"), pod.database()], "");
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let before = pod.credential();
    agent.kill();
    pod.proxy.forget();
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    assert_eq!(pod.credential(), before);
    assert_eq!(pod.proxy.requests(), Vec::<String>::new(), "a restart asks for nothing");

    // What it took up it still keeps true, and gives back.
    pod.put("password", "two").await;
    pod.refresh().await;
    until("the new value is there", SOON, async || {
        (pod.read("secrets/password").unwrap() == "two").then_some(())
    })
    .await;
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success());
    until("the database user is gone", REVOCATION, async || {
        pod.ground.postgres.login(&before.0, &before.1).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn once_says_until_when_and_a_sidecar_takes_over() {
    let pod = Pod::new("once").await;
    pod.configure(&[pod.database()], "");
    let mut once = pod.agent(&["--once"]);
    assert!(once.wait(SOON).await.success(), "{}", once.log());
    once.logged("1 objects rendered; its credentials live until 20", SOON).await;
    let before = pod.credential();
    pod.ground.postgres.login(&before.0, &before.1).await.unwrap();
    pod.proxy.forget();
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    assert_eq!(
        (pod.credential(), pod.proxy.count()),
        (before, 0),
        "the init container's credential serves on"
    );
}

#[tokio::test]
async fn a_rotated_token_is_what_the_next_login_uses() {
    let pod = Pod::new("rotate").await;
    pod.put("a", "one").await;
    pod.configure(&[pod.kv("a"), pod.database()], "");
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let before = pod.credential();
    // Its iat must differ from the first one's, in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let fresh = pod.project_token(Duration::from_secs(7200));
    until("the agent holds the fresh token", SOON, async || {
        let held = pod.within({
            let state = pod.path("state/agent/volumes");
            move || {
                let entry = fs::read_dir(state).unwrap().next().unwrap().unwrap();
                fs::read_to_string(entry.path()).unwrap()
            }
        });
        held.contains(&fresh).then_some(())
    })
    .await;
    assert_eq!(pod.credential(), before, "a fresh token alone changes nothing");
    pod.proxy.forget();
    let accessors = pod.ground.bao.list("auth/token/accessors").await;
    for accessor in accessors {
        let found = pod.ground.bao.call(
            reqwest::Method::POST,
            "auth/token/lookup-accessor",
            Some(serde_json::json!({"accessor": accessor})),
        );
        if found.await.body["data"]["path"] == "auth/k8s-rotate/login" {
            pod.ground
                .bao
                .write("auth/token/revoke-accessor", serde_json::json!({"accessor": accessor}))
                .await;
        }
    }
    pod.refresh().await;
    let login = until("the agent logs in anew", SOON, async || {
        pod.proxy.seen().into_iter().find(|seen| seen.path == "auth/k8s-rotate/login")
    })
    .await;
    assert!(String::from_utf8_lossy(&login.body).contains(&fresh), "with the fresh token");
    until("the credential is replaced", SOON, async || (pod.credential() != before).then_some(())).await;
    let (user, password) = pod.credential();
    pod.ground.postgres.login(&user, &password).await.unwrap();
}

#[tokio::test]
async fn a_folder_on_disk_is_refused_unless_asked_for() {
    let pod = Pod::new("disk").await;
    pod.put("password", "one").await;
    let folder = |more: &str| {
        format!(
            "{}folders:\n- path: {}\n  objects: [{}]\n{more}",
            pod.head(),
            pod.path("disk").display(),
            pod.kv("password")
        )
    };
    pod.replace("config/agent.yaml", &folder(""));
    let mut once = pod.agent(&["--once"]);
    assert_eq!(once.wait(SOON).await.code(), Some(1));
    assert!(once.log().contains("medium: Memory, or set diskBacked: true"), "{}", once.log());
    assert!(pod.read("disk/password").is_err());
    pod.replace("config/agent.yaml", &folder("  diskBacked: true\n"));
    let mut once = pod.agent(&["--once"]);
    assert!(once.wait(SOON).await.success(), "{}", once.log());
    assert_eq!(pod.read("disk/password").unwrap(), "one");
}

#[tokio::test]
async fn not_ready_before_the_first_render() {
    let pod = Pod::new("probe").await;
    pod.put("a", "one").await;
    pod.configure(&[pod.kv("a")], "");
    pod.proxy.rule(|_| Fault::Answer(Reply::json(503, &serde_json::json!({"errors": ["Vault is sealed"]}))));
    let mut agent = pod.agent(&[]);
    let report = until("the probe is answered", SOON, async || {
        agent.assert_running();
        let (status, report) = pod.check().await;
        report.contains("folders: blocked").then_some((status, report))
    })
    .await;
    assert_eq!(report.0.code(), Some(1), "{}", report.1);
    pod.proxy.heal();
    pod.ready(&mut agent).await;
    assert_eq!(pod.read("secrets/a").unwrap(), "one");
}

#[tokio::test]
async fn a_vault_agent_configuration_runs_as_it_is() {
    let pod = Pod::new("hcl").await;
    pod.put("app", "one").await;
    let hcl = format!(
        r#"vault {{ address = "{}" }}
auto_auth {{
  method "kubernetes" {{
    mount_path = "auth/k8s-hcl"
    config = {{ role = "app", token_path = "{}" }}
  }}
}}
template {{
  destination = "{}"
  contents = "{{{{ with secret \"secret/data/hcl/app\" }}}}{{{{ .Data.data.value }}}}{{{{ end }}}}"
  perms = "0400"
}}
"#,
        pod.proxy.url(),
        pod.path("token/vault").display(),
        pod.path("secrets/app.conf").display()
    );
    pod.replace("config/agent.hcl", &hcl);
    let translated = |more: &[&str]| {
        pod.run(&crate::support::leasehold::binary(), |command| {
            command.args(["agent", "--from-vault-agent"]).arg(pod.path("config/agent.hcl"));
            command.arg("--state-dir").arg(pod.path("state")).args(more);
        })
    };
    let mut shown = translated(&["--print-config"]);
    assert!(shown.wait(SOON).await.success(), "{}", shown.log());
    assert!(shown.log().contains("vaultAuthMountPath: k8s-hcl"), "{}", shown.log());
    let mut once = translated(&["--once"]);
    assert!(once.wait(SOON).await.success(), "{}", once.log());
    assert_eq!(pod.read("secrets/app.conf").unwrap(), "one");
    assert_eq!(pod.status("secrets/app.conf").0, 0o400);

    pod.replace(
        "config/agent.hcl",
        &hcl.replace("auto_auth {", "auto_auth {\n  sink \"file\" { config = { path = \"/x\" } }"),
    );
    let mut refused = translated(&["--once"]);
    assert_eq!(refused.wait(SOON).await.code(), Some(64), "{}", refused.log());
    assert!(refused.log().contains("sink"), "{}", refused.log());
}

#[tokio::test]
async fn a_link_planted_above_a_folder_leads_nothing_astray() {
    let pod = Pod::new("planted").await;
    pod.put("a", "one").await;
    let folder = |below: &str| {
        format!(
            "{}folders:\n- path: {}/{below}\n  objects: [{}]\n",
            pod.head(),
            pod.path("secrets").display(),
            pod.kv("a")
        )
    };
    pod.replace("config/agent.yaml", &folder("sub/folder"));
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    assert_eq!(pod.read("secrets/sub/folder/a").unwrap(), "one");

    // Whoever may write to the emptyDir moves the folder away and leaves a link in its place.
    let (sub, away, elsewhere) =
        (pod.path("secrets/sub"), pod.path("secrets/away"), pod.path("secrets/elsewhere"));
    let root = pod.path("secrets");
    pod.within(move || {
        fs::create_dir_all(elsewhere.join("folder")).unwrap();
        fs::rename(&sub, &away).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &sub).unwrap();
        // What a write by path would do.
        fs::write(root.join("sub/folder/naive"), "").unwrap();
        assert!(elsewhere.join("folder/naive").exists());
    });
    pod.put("a", "two").await;
    pod.refresh().await;
    agent.logged("a symbolic link is in its path", SOON).await;
    assert!(pod.read("secrets/elsewhere/folder/a").is_err(), "{}", agent.log());

    let (sub, away) = (pod.path("secrets/sub"), pod.path("secrets/away"));
    pod.within(move || {
        fs::remove_file(&sub).unwrap();
        fs::rename(&away, &sub).unwrap();
    });
    pod.refresh().await;
    until("the folder is true again", SOON, async || {
        (pod.read("secrets/sub/folder/a").ok()? == "two").then_some(())
    })
    .await;
}

#[tokio::test]
async fn files_that_somebody_removed_come_back() {
    let pod = Pod::new("removed").await;
    pod.put("a", "one").await;
    pod.configure(&[pod.kv("a")], "");
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let secrets = pod.path("secrets");
    pod.within(move || {
        for entry in fs::read_dir(secrets).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }
            .unwrap();
        }
    });
    assert!(pod.read("secrets/a").is_err());
    // Asking again is what finds it; the agent does so every half minute, and when told.
    agent.signal(Signal::SIGHUP);
    until("the file is back", SOON, async || pod.read("secrets/a").ok()).await;
}
