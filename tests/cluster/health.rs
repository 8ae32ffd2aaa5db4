//! /livez and /readyz, and what start-up and the driver's calls show to be missing.

use std::{fs, sync::mpsc, thread, time::Duration};

use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::support::{
    SOON,
    kubelet::Options,
    node::{Node, Propagation},
    provider_client::Dial,
    stage::{Stage, class},
    until,
};

/// Threads of a process that are stopped, as by a debugger, until this is dropped.
pub(crate) struct Stopped {
    release: Option<mpsc::Sender<()>>,
    tracer: Option<thread::JoinHandle<()>>,
}

impl Stopped {
    pub(crate) fn threads(process: u32, which: impl Fn(&str) -> bool) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let ids: Vec<Pid> = tasks
            .map(|entry| entry.unwrap())
            .filter(|entry| which(fs::read_to_string(entry.path().join("comm")).unwrap().trim()))
            .map(|entry| Pid::from_raw(entry.file_name().to_str().unwrap().parse().unwrap()))
            .collect();
        assert!(!ids.is_empty(), "there are such threads");
        let (release, released) = mpsc::channel();
        let (ready, stopped) = mpsc::channel();
        // Only the thread that traces may let go.
        let tracer = thread::spawn(move || {
            for &id in &ids {
                ptrace::seize(id, ptrace::Options::empty()).unwrap();
                ptrace::interrupt(id).unwrap();
                waitpid(id, Some(WaitPidFlag::__WALL)).unwrap();
            }
            ready.send(()).unwrap();
            let _ = released.recv();
            for id in ids {
                // Gone, if the test ended the process.
                let _ = ptrace::detach(id, None);
            }
        });
        stopped.recv().unwrap();
        Self { release: Some(release), tracer: Some(tracer) }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.release.take();
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

#[tokio::test]
async fn livez_tells_of_a_worker_that_does_not_turn() {
    let stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    assert_eq!(stage.leasehold.http_get("/livez").await, (200, "alive\n".to_owned()));
    let stopped = Stopped::threads(stage.leasehold.pid(), |name| name.starts_with("tokio-"));
    until("/livez tells", Duration::from_secs(15), async || {
        let (status, text) = stage.leasehold.http_get("/livez").await;
        (status == 503 && text.contains("the worker has not turned for")).then_some(())
    })
    .await;
    let (status, text) = stage.leasehold.http_get("/readyz").await;
    assert!(status == 503 && text.contains("worker: blocked: the worker has not turned for"), "{text}");
    drop(stopped);
    until("it recovers", SOON, async || (stage.leasehold.http_get("/livez").await.0 == 200).then_some(()))
        .await;
    stage.mount(&volume, &class()).await;
    assert_eq!(stage.leasehold.ready().await, Some(200));
}

/// A busy worker is no wedged one: a burst of mounts raises no alarm.
#[tokio::test]
async fn livez_stays_well_under_load() {
    let stage = Stage::start().await;
    let volumes: Vec<_> = (0..60).map(|_| stage.volume()).collect();
    let class = class();
    let mounts = futures_util::future::join_all(volumes.iter().map(|volume| stage.mount(volume, &class)));
    tokio::pin!(mounts);
    loop {
        tokio::select! {
            _ = &mut mounts => break,
            (status, text) = stage.leasehold.http_get("/livez") => assert_eq!(status, 200, "{text}"),
        }
    }
}

async fn report(stage: &Stage) -> String {
    stage.leasehold.http_get("/readyz").await.1
}

async fn reported(stage: &Stage, line: &str) {
    until(line, SOON, async || report(stage).await.contains(line).then_some(())).await;
}

#[tokio::test]
async fn an_old_driver_is_told_of_once() {
    let options = Options { dial: Dial::SocketPath, ..Options::default() };
    let stage = Stage::start_with(options, |_| {}).await;
    assert_eq!(report(&stage).await, "ready\n");
    for _ in 0..3 {
        stage.mount(&stage.volume(), &class()).await;
    }
    let text = report(&stage).await;
    assert!(
        text.starts_with("ready\n")
            && text.contains("driver: degraded: the Secrets Store CSI driver is older than 1.6.0"),
        "{text}"
    );
    stage.leasehold.logged("is older than 1.6.0").await;
    assert_eq!(stage.leasehold.log().matches("is older than 1.6.0").count(), 1);
}

#[tokio::test]
async fn a_driver_without_tokens_is_told_of_once() {
    let stage = Stage::start_with(Options { audiences: Vec::new(), ..Options::default() }, |_| {}).await;
    for _ in 0..2 {
        stage.kubelet.publish(&stage.volume(), Some(&class())).await.unwrap_err();
    }
    let line = "tokenRequests: degraded: the driver passes no ServiceAccount tokens: set tokenRequests";
    assert!(report(&stage).await.contains(line), "{}", report(&stage).await);
    stage.leasehold.logged("passes no ServiceAccount tokens").await;
    assert_eq!(stage.leasehold.log().matches("passes no ServiceAccount tokens").count(), 1);
}

#[tokio::test]
async fn a_driver_that_does_not_come_again_is_told_of() {
    let stage = Stage::start_with(Options::default(), |launch| {
        launch.flags.push("--expect-republish=2s".to_owned());
    })
    .await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    reported(&stage, "rotation: degraded: the driver has not called again").await;
    until("it is logged", SOON, async || {
        stage.leasehold.log().contains("is enableSecretRotation on").then_some(())
    })
    .await;
    until("a call clears it", SOON, async || {
        stage.mount(&volume, &class()).await;
        (!report(&stage).await.contains("rotation:")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_state_folder_on_disk_and_a_private_mount_are_told_of() {
    let node = Node::new();
    node.unmount(&node.root().join("run")).unwrap();
    let stage =
        Stage::start_on(node, Options::default(), |launch| launch.propagation = Propagation::None).await;
    let text = report(&stage).await;
    for line in
        ["state: degraded: the state folder is not tmpfs", "propagation: degraded: no mount propagation at"]
    {
        assert!(text.contains(line), "{text}");
        let what = line.rsplit(": ").next().unwrap();
        assert_eq!(stage.leasehold.log().matches(what).count(), 1, "{what}: {}", stage.leasehold.log());
    }
}
