//! An application that is told of changes.

use std::{os::unix::process::ExitStatusExt as _, time::Instant};

use futures_util::FutureExt as _;
use nix::sys::signal::Signal;

use crate::{
    pod::{GROUP, Pod},
    support::{
        SOON,
        http::{Reply, Server},
        until,
    },
};

#[tokio::test]
async fn a_change_is_told_by_signal_request_and_file() {
    let pod = Pod::new("told").await;
    pod.put("a", "one").await;
    pod.put("b", "one").await;
    // A program of a name that nobody else on this machine has.
    let program = pod.path("config/lh-told-app");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let mut application = pod.run(&program, |command| {
        command.arg("600");
    });
    let (sender, mut reloads) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(None, move |request| {
        let sender = sender.clone();
        async move {
            sender.send((request.method.to_string(), request.target.clone())).unwrap();
            Reply::json(200, &serde_json::json!({}))
        }
        .boxed()
    });
    let touched = pod.path("secrets/.changed");
    let a = pod.kv("a").replacen(
        '}',
        &format!(", onChange: {{http: {{url: \"http://{}/-/reload?x=1\"}}}}}}", server.address()),
        1,
    );
    let folder = format!(
        "{}folders:\n- path: {}\n  onChange:\n    signal: {{process: lh-told-app, signal: SIGUSR1}}\n    touch: {}\n  objects: [{a}, {}]\n",
        pod.head(),
        pod.path("secrets").display(),
        touched.display(),
        pod.kv("b")
    );
    pod.replace("config/agent.yaml", &folder);
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    assert!(
        application.exited().is_none() && pod.read("secrets/.changed").is_err(),
        "the first content is no change"
    );

    pod.put("b", "two").await;
    pod.refresh().await;
    until("the file changes", SOON, async || (pod.read("secrets/b").unwrap() == "two").then_some(())).await;
    let changed = Instant::now();
    let status = application.wait(SOON).await;
    println!("told {} ms after the change", changed.elapsed().as_millis());
    assert_eq!(status.signal(), Some(Signal::SIGUSR1 as i32), "{}", agent.log());
    until("the file is touched", SOON, async || pod.read("secrets/.changed").ok()).await;
    assert_eq!(pod.status("secrets/.changed").2, GROUP);
    assert!(reloads.try_recv().is_err(), "object a did not change");

    pod.put("a", "two").await;
    pod.refresh().await;
    let told = tokio::time::timeout(SOON, reloads.recv()).await.unwrap().unwrap();
    assert_eq!(told, ("POST".to_owned(), "/-/reload?x=1".to_owned()), "{}", agent.log());
    agent.logged("no process named", SOON).await;
}

/// A folder and its objects that change together are one change to the application, which is told until it hears.
#[tokio::test]
async fn a_burst_is_told_once_and_a_failure_again() {
    let pod = Pod::new("burst").await;
    pod.put("a", "one").await;
    let (sender, mut reloads) = tokio::sync::mpsc::unbounded_channel();
    let refusals = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let left = std::sync::Arc::clone(&refusals);
    let server = Server::start(None, move |_request| {
        let refuse = left
            .fetch_update(std::sync::atomic::Ordering::SeqCst, std::sync::atomic::Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok();
        sender.send(refuse).unwrap();
        async move { Reply::json(if refuse { 503 } else { 204 }, &serde_json::json!({})) }.boxed()
    });
    let told = format!("onChange: {{http: {{url: \"http://{}/reload\"}}}}", server.address());
    let object = |name: &str| {
        pod.kv("a").replacen("objectName: a", &format!("objectName: {name}"), 1).replacen(
            '}',
            &format!(", {told}}}"),
            1,
        )
    };
    pod.configure(&[object("a1"), object("a2")], &format!("  {told}\n"));
    let mut agent = pod.agent(&[]);
    pod.ready(&mut agent).await;
    let change = async |value: &'static str| {
        pod.put("a", value).await;
        pod.refresh().await;
        until("both files change", SOON, async || {
            ["a1", "a2"]
                .iter()
                .all(|name| pod.read(&format!("secrets/{name}")).unwrap() == value)
                .then_some(())
        })
        .await;
    };
    refusals.store(2, std::sync::atomic::Ordering::SeqCst);
    change("two").await;
    for refused in [true, true, false] {
        let told = tokio::time::timeout(SOON, reloads.recv()).await.unwrap();
        assert_eq!(told, Some(refused), "{}", agent.log());
    }
    agent.logged("told of the change", SOON).await;
    assert!(agent.log().contains("answered 503 Service Unavailable"), "{}", agent.log());
    // The next change is told with the first try, and nothing of the first burst came in between.
    change("three").await;
    assert_eq!(tokio::time::timeout(SOON, reloads.recv()).await.unwrap(), Some(false));
    until("it is logged", SOON, async || {
        (agent.log().matches("told of the change").count() == 2).then_some(())
    })
    .await;
    assert!(reloads.try_recv().is_err(), "{}", agent.log());
}

#[tokio::test]
async fn what_can_never_work_is_refused_at_the_start() {
    let pod = Pod::new("never").await;
    pod.put("a", "one").await;
    let with = |on_change: &str| {
        pod.replace(
            "config/agent.yaml",
            &format!(
                "{}folders:\n- path: {}\n  onChange: {on_change}\n  objects: [{}]\n",
                pod.head(),
                pod.path("secrets").display(),
                pod.kv("a")
            ),
        );
    };
    // This test's own process runs as root, and the agent does not.
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    with(&format!("{{signal: {{process: {}}}}}", own.trim()));
    let mut agent = pod.agent(&[]);
    assert_eq!(agent.wait(SOON).await.code(), Some(1), "{}", agent.log());
    assert!(agent.log().contains("give the agent's container runAsUser 0"), "{}", agent.log());

    let touched = pod.path("secrets/ran");
    let command = format!("{{command: [touch, {}]}}", touched.display());
    with(&command);
    let mut agent = pod.agent(&[]);
    assert_eq!(agent.wait(SOON).await.code(), Some(1), "{}", agent.log());
    assert!(agent.log().contains("--allow-commands"), "{}", agent.log());
    assert!(!pod.requests().contains_key("auth/k8s-never/login"), "refused before anything is asked");

    let mut agent = pod.agent(&["--allow-commands"]);
    pod.ready(&mut agent).await;
    pod.put("a", "two").await;
    pod.refresh().await;
    until("the command ran", SOON, async || pod.read("secrets/ran").ok()).await;

    with("{http: {url: \"http://10.0.0.1/\"}}");
    let mut agent = pod.agent(&["--once"]);
    assert_eq!(agent.wait(SOON).await.code(), Some(64), "{}", agent.log());
    assert!(agent.log().contains("must be at a loopback address"), "{}", agent.log());
}
