//! The supervisor of an application that reads only its environment.

use std::{fs, os::unix::process::ExitStatusExt as _, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid as Id,
};
use serde_json::json;

use crate::{
    pod::{Pod, Processes},
    support::{SOON, bao::REVOCATION, process::Process, until},
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
    until("the credential is the same one", SOON, async || {
        (agent.log().matches(&format!("dsn={user}")).count() == 2).then_some(())
    })
    .await;

    // SIGTERM goes to the process, and only then is what it used given back.
    agent.signal(Signal::SIGTERM);
    let status = agent.wait(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", agent.log());
    until("it was asked to end again", SOON, async || {
        (agent.log().matches("asked to end").count() == 2).then_some(())
    })
    .await;
    until("the database user is gone", REVOCATION, async || {
        pod.ground.postgres.login(user, password).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn exit_codes_and_signals_are_passed_through() {
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
    agent.logged("told by usr1", SOON).await;

    let mut agent = pod.agent(&["--exec", "--", "/does/not/exist"]);
    let status = agent.wait(SOON).await;
    assert_eq!((status.code(), status.signal()), (Some(1), None));
    agent.logged("cannot start /does/not/exist", SOON).await;
}

#[tokio::test]
async fn vault_agents_own_variables_are_a_supervisors_too() {
    let pod = Pod::new("envhcl").await;
    pod.put("app", "one").await;
    let hcl = format!(
        r#"vault {{ address = "{}" }}
auto_auth {{
  method "kubernetes" {{
    mount_path = "auth/k8s-envhcl"
    config = {{ role = "app", token_path = "{}" }}
  }}
}}
template_config {{ static_secret_render_interval = "5s" }}
env_template "VALUE" {{
  contents             = "{{{{ with secret \"secret/data/envhcl/app\" }}}}{{{{ .Data.data.value }}}}{{{{ end }}}}"
  error_on_missing_key = true
}}
exec {{
  command             = ["bash", "-c", "trap 'echo told; exit 0' INT; echo value=$VALUE; while :; do sleep 0.05; done"]
  restart_stop_signal = "SIGINT"
}}
"#,
        pod.proxy.url(),
        pod.path("token/vault").display()
    );
    pod.replace("config/agent.hcl", &hcl);
    let mut agent = pod.agent_with("--from-vault-agent", "config/agent.hcl", &[]);
    agent.logged("value=one", SOON).await;
    pod.put("app", "two").await;
    pod.refresh().await;
    agent.logged("told", SOON).await;
    agent.logged("value=two", SOON).await;
    agent.signal(Signal::SIGINT);
    assert_eq!(agent.wait(SOON).await.code(), Some(0), "{}", agent.log());
}

/// Starts two processes whose parent ends at once, and waits for the word to end itself.
const ORPHANS: &str = "trap 'exit 5' USR1; ($0 600 & $0 600 &); echo waiting; while :; do sleep 0.05; done";

/// The children of a process that bear the program's name, with the kernel's letter for what they do.
fn children(parent: u32, program: &Path) -> Vec<(i32, char)> {
    let name = program.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let child = |id: i32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (before, after) = stat.rsplit_once(')')?;
        let mut fields = after.split_whitespace();
        let (state, of) = (fields.next()?.chars().next()?, fields.next()?.parse::<u32>().ok()?);
        (before.ends_with(name) && of == parent).then_some((id, state))
    };
    ids.filter_map(child).collect()
}

/// Waits until both are the first process's, and ends them.
async fn end_orphans(first: &mut Process, program: &Path) {
    let orphans = until("the orphans are handed over", SOON, async || {
        first.assert_running();
        Some(children(first.pid(), program)).filter(|found| found.len() == 2)
    })
    .await;
    for (id, _) in orphans {
        kill(Id::from_raw(id), Signal::SIGKILL).unwrap();
    }
}

#[tokio::test]
async fn orphans_are_reaped_by_the_first_process_of_a_container() {
    let program = |pod: &Pod| {
        let program = pod.path("config/lh-orphan");
        fs::copy("/bin/sleep", &program).unwrap();
        program
    };
    // timeout(1) waits for its own child alone, as a supervisor does that was not made to be process 1.
    let pod = Pod::with("orphan-a", Processes::Own).await;
    let sleeper = program(&pod);
    let mut naive = pod.run(Path::new("timeout"), |command| {
        command.args(["600", "bash", "-c", ORPHANS]).arg(&sleeper);
    });
    end_orphans(&mut naive, &sleeper).await;
    until("they stay as zombies", SOON, async || {
        let found = children(naive.pid(), &sleeper);
        (found.len() == 2 && found.iter().all(|(_, state)| *state == 'Z')).then_some(())
    })
    .await;

    let pod = Pod::with("orphan-b", Processes::Own).await;
    let sleeper = program(&pod);
    pod.ground.bao.put_secret("orphan-b/settings", json!({"A": "1"})).await;
    pod.replace("config/agent.yaml", &configuration(&pod, ""));
    let mut agent = pod.agent(&["--exec", "--", "bash", "-c", ORPHANS, sleeper.to_str().unwrap()]);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert_eq!(ids.split_whitespace().last(), Some("1"), "it is process 1: {ids}");
    end_orphans(&mut agent, &sleeper).await;
    until("nothing is left of them", SOON, async || {
        agent.assert_running();
        children(agent.pid(), &sleeper).is_empty().then_some(())
    })
    .await;
    // Nor is one of them taken for the process itself.
    agent.signal(Signal::SIGUSR1);
    assert_eq!(agent.wait(SOON).await.code(), Some(5), "{}", agent.log());
}
