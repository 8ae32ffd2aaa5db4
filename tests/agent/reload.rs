//! Files that change under a running agent: configuration, templates, TLS. A broken one changes nothing.

use crate::{
    pod::Pod,
    support::{SOON, authority::Authority, process::Process, proxy::Proxy, until},
};

async fn becomes(pod: &Pod, name: &str, text: &str) {
    until(&format!("{name} becomes {text:?}"), SOON, async || {
        (pod.read(&format!("secrets/{name}")).ok()? == text).then_some(())
    })
    .await;
}

/// What the probe tells, which still succeeds: the old files are good.
async fn degraded(pod: &Pod, agent: &mut Process, part: &str) {
    until(&format!("{part} is told of"), SOON, async || {
        agent.assert_running();
        let (status, report) = pod.check().await;
        (status.success() && report.contains(&format!("{part}: degraded"))).then_some(())
    })
    .await;
}

async fn well(pod: &Pod, part: &str) {
    until(&format!("{part} is well"), SOON, async || {
        let (_, report) = pod.check().await;
        (!report.contains(&format!("{part}: degraded"))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_edit_is_taken_up_and_a_broken_one_is_told_of() {
    let pod = Pod::new("edit").await;
    pod.put("a", "one").await;
    pod.put("b", "two").await;
    pod.configure(&[pod.kv("a")], "");
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    pod.configure(&[pod.kv("a").replace("secretKey", "secretkey")], "");
    agent.logged("did you mean secretKey?", SOON).await;
    degraded(&pod, &mut agent, "configuration").await;
    assert_eq!(pod.read("secrets/a").unwrap(), "one", "the old one goes on");
    pod.configure(&[pod.kv("b")], "");
    becomes(&pod, "b", "two").await;
    assert!(pod.read("secrets/a").is_err());
    well(&pod, "configuration").await;
}

/// The kubelet swaps a link: no file that is named in the configuration is touched itself.
#[tokio::test]
async fn a_config_map_with_a_template_is_followed_through_the_kubelets_swaps() {
    let pod = Pod::new("swap").await;
    pod.put("a", "one").await;
    let config = |objects: &str| {
        format!("{}folders:\n- path: {}\n  objects: [{objects}]\n", pod.head(), pod.path("secrets").display())
    };
    let file = format!("{{objectName: app.conf, templateFile: {}}}", pod.path("map/app.tmpl").display());
    let template = |before: &str, end: &str| {
        format!("{before} {{{{ with secret \"secret/data/swap/a\" }}}}{{{{ .Data.data.value }}}}{end}")
    };
    let end = "{{ end }}";
    let map = |version, config: &str, template: &str| {
        pod.config_map("map", version, &[("agent.yaml", config), ("app.tmpl", template)]);
    };
    map(1, &config(&file), &template("first", end));
    let mut agent = pod.agent_with("--config", "map", &[]);
    pod.ready(&mut agent).await;
    becomes(&pod, "app.conf", "first one").await;

    // A template alone; the configuration has the same text as before.
    map(2, &config(&file), &template("second", end));
    becomes(&pod, "app.conf", "second one").await;

    // One that cannot be parsed: told with where it is from, and the old one goes on, also for new values.
    map(3, &config(&file), &template("third", ""));
    agent.logged("cannot be used: the old one goes on", SOON).await;
    degraded(&pod, &mut agent, "configuration").await;
    pod.put("a", "two").await;
    pod.refresh().await;
    becomes(&pod, "app.conf", "second two").await;

    // Both at once, and whole again.
    let both = format!("{file}, {}", pod.kv("a"));
    map(4, &config(&both), &template("fourth", end));
    becomes(&pod, "app.conf", "fourth two").await;
    becomes(&pod, "a", "two").await;
    well(&pod, "configuration").await;

    // A template file that is gone is an edit too.
    pod.config_map("map", 5, &[("agent.yaml", &config(&both))]);
    degraded(&pod, &mut agent, "configuration").await;
    assert!(agent.log().contains("app.tmpl"), "{}", agent.log());
    assert_eq!(pod.read("secrets/app.conf").unwrap(), "fourth two");
}

#[tokio::test]
async fn a_new_authority_is_trusted_without_a_restart_and_a_broken_one_keeps_the_old() {
    let pod = Pod::new("ca").await;
    pod.put("a", "one").await;
    let (first, second) = (Authority::new(), Authority::new());
    let mut proxy = Proxy::start_with(pod.ground.bao.url(), Some(first.valid()));
    let bundle = |version, text: &str| pod.config_map("bundle", version, &[("ca.crt", text)]);
    bundle(1, &first.pem());
    let head = pod.head().replacen(&pod.proxy.url(), &format!("https://127.0.0.1:{}", proxy.port()), 1);
    let config = format!(
        "{head}vaultCACertPath: {}\nfolders:\n- path: {}\n  objects: [{}]\n",
        pod.path("bundle/ca.crt").display(),
        pod.path("secrets").display(),
        pod.kv("a")
    );
    pod.replace("config/agent.yaml", &config);
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    becomes(&pod, "a", "one").await;

    bundle(2, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    agent.logged("the TLS files changed and cannot be used: connections keep the old ones", SOON).await;
    degraded(&pod, &mut agent, "tls").await;
    pod.put("a", "two").await;
    pod.refresh().await;
    becomes(&pod, "a", "two").await;

    // The server shows a certificate of another authority, which nobody trusts yet.
    proxy.present(second.valid());
    pod.put("a", "three").await;
    pod.refresh().await;
    agent.logged("the server's certificate is not acceptable", SOON).await;
    assert_eq!(pod.read("secrets/a").unwrap(), "two");
    bundle(3, &second.pem());
    agent.logged("the TLS files changed: connections use them from now on", SOON).await;
    well(&pod, "tls").await;
    becomes(&pod, "a", "three").await;
    assert!(agent.exited().is_none());
}

/// What keeps the first render from being done is mended without a restart, and without waiting for the next try.
#[tokio::test]
async fn a_configuration_is_mended_before_the_first_render() {
    let pod = Pod::new("mend").await;
    pod.put("a", "one").await;
    pod.configure(&[pod.kv("a").replace("mend/a", "mend/absent")], "");
    let mut agent = pod.agent(&[]);
    agent.logged("not rendered yet", SOON).await;
    pod.configure(&[pod.kv("a")], "");
    pod.ready(&mut agent).await;
    assert_eq!(pod.read("secrets/a").unwrap(), "one");
    drop(agent);

    // While a server that does not answer is asked again and again: the right one is asked at once.
    let (state, secrets) = (pod.path("state/agent"), pod.path("secrets"));
    pod.within(move || {
        std::fs::remove_dir_all(state).unwrap();
        for entry in std::fs::read_dir(secrets).unwrap().flatten() {
            let path = entry.path();
            let _gone = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
    });
    let right = std::fs::read_to_string(pod.path("config/agent.yaml")).unwrap();
    pod.replace("config/agent.yaml", &right.replace(&pod.proxy.url(), "http://127.0.0.1:1"));
    let mut agent = pod.agent(&[]);
    agent.logged("first mount failing", SOON).await;
    pod.replace("config/agent.yaml", &right);
    pod.ready(&mut agent).await;
    assert!(!agent.log().contains("not rendered yet"), "{}", agent.log());
}

/// An edit may use what the agent was confined to at its start, also a disk; what is elsewhere is refused, with the
/// reason, and changes nothing.
#[tokio::test]
async fn an_edit_reaches_no_further_than_the_start_did() {
    let pod = Pod::new("reach").await;
    pod.put("a", "one").await;
    pod.put("b", "two").await;
    let folders = |all: &[(&std::path::Path, &str)]| {
        let mut text = format!("{}folders:\n", pod.head());
        for (path, key) in all {
            let (path, object) = (path.display(), pod.kv(key));
            text.push_str(&format!("- {{path: {path}, diskBacked: true, objects: [{object}]}}\n"));
        }
        pod.replace("config/agent.yaml", &text);
    };
    let (first, second) = (pod.path("disk/first"), pod.path("disk/second"));
    folders(&[(&first, "a")]);
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    folders(&[(&first, "a"), (&second, "b")]);
    until("the new folder is served", SOON, async || {
        (pod.read("disk/second/b").ok()? == "two").then_some(())
    })
    .await;

    // Whoever may write there may make it: no right of the files' own stands in the way.
    let elsewhere =
        std::path::Path::new("/dev/shm").join(pod.path("").parent().unwrap().file_name().unwrap());
    folders(&[(&elsewhere, "a"), (&second, "b")]);
    degraded(&pod, &mut agent, "configuration").await;
    let (_, report) = pod.check().await;
    assert!(report.contains("the agent is confined to the folders"), "{report}");
    assert!(!elsewhere.exists());
    assert_eq!(pod.read("disk/first/a").unwrap(), "one");
    drop(agent);
    let mut agent = pod.agent(&["--no-landlock"]);
    pod.ready(&mut agent).await;
    assert!(elsewhere.join("a").exists(), "without the wall it is");
    std::fs::remove_dir_all(elsewhere).unwrap();
}
