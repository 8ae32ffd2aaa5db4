//! The supervisor of an application that reads only its environment.

use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    pod::Pod,
    support::{SOON, bao::REVOCATION, until},
};

fn configuration(pod: &Pod, more: &str) -> String {
    let name = pod.name;
    format!(
        "{}exec:\n  env:\n  - {{objectName: settings, secretPath: secret/data/{name}/settings, format: env, \
         refreshInterval: 5s}}\n  envTemplates:\n  - {{name: DSN, template: '{{{{ with secret \
         \"database/creds/{name}\" }}}}{{{{ .Data.username }}}}:{{{{ .Data.password }}}}{{{{ end }}}}'}}\n{more}",
        pod.head()
    )
}

#[tokio::test]
async fn a_process_gets_its_environment_and_a_new_one_when_it_changes() {
    let pod = Pod::new("exec").await;
    let quoted = "it's \"quoted\" $HOME\nline two";
    pod.ground
        .bao
        .put_secret("exec/settings", json!({"COLOUR": "red", "QUOTED": quoted, "PORT": 8080}))
        .await;
    pod.replace("config/agent.yaml", &configuration(&pod, ""));
    let script = "trap 'echo asked to end; exit 0' TERM; echo \"colour=$COLOUR port=$PORT\"; echo \"quoted=$QUOTED\"; \
                  echo \"dsn=$DSN\"; while :; do sleep 0.05; done";
    let mut agent = pod.agent(&["--exec", "--", "bash", "-c", script]);
    agent.logged("colour=red port=8080", SOON).await;
    agent.logged(&format!("quoted={quoted}"), SOON).await;
    let dsn = until("the process prints its database user", SOON, async || {
        agent.log().lines().find_map(|line| line.strip_prefix("dsn=").map(str::to_owned))
    })
    .await;
    let (user, password) = dsn.split_once(':').unwrap();
    pod.ground.postgres.login(user, password).await.unwrap();

    pod.ground.bao.put_secret("exec/settings", json!({"COLOUR": "blue", "PORT": 8080})).await;
    pod.refresh().await;
    agent.logged("asked to end", SOON).await;
    agent.logged("colour=blue port=8080", SOON).await;
    assert_eq!(
        agent.log().matches(&format!("dsn={user}")).count(),
        2,
        "the credential is the same one: {}",
        agent.log()
    );

    // SIGTERM goes to the process, and only then is what it used given back.
    agent.signal(Signal::SIGTERM);
    let status = agent.wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", agent.log());
    assert_eq!(agent.log().matches("asked to end").count(), 2);
    until("the database user is gone", REVOCATION, async || {
        pod.ground.postgres.login(user, password).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn exit_codes_signals_and_orphans_are_the_supervisors_business() {
    let pod = Pod::new("exits").await;
    pod.ground.bao.put_secret("exits/settings", json!({"A": "1"})).await;
    pod.replace("config/agent.yaml", &configuration(&pod, ""));
    let mut agent = pod.agent(&["--exec", "--", "bash", "-c", "exit 7"]);
    assert_eq!(agent.wait(SOON).await.code(), Some(7), "{}", agent.log());
    let mut agent = pod.agent(&["--exec", "--", "bash", "-c", "kill -KILL $$"]);
    assert_eq!(agent.wait(SOON).await.code(), Some(137), "as a shell tells it: {}", agent.log());

    let script = "trap 'echo told by usr1; exit 3' USR1; echo waiting; while :; do sleep 0.05; done";
    let mut agent = pod.agent(&["--exec", "--", "bash", "-c", script]);
    agent.logged("waiting", SOON).await;
    agent.signal(Signal::SIGUSR1);
    assert_eq!(agent.wait(SOON).await.code(), Some(3), "{}", agent.log());
    assert!(agent.log().contains("told by usr1"));

    let mut agent = pod.agent(&["--exec", "--", "/does/not/exist"]);
    let status = agent.wait(SOON).await;
    assert_eq!((status.code(), status.signal()), (Some(1), None));
    assert!(agent.log().contains("cannot start /does/not/exist"), "{}", agent.log());
}
