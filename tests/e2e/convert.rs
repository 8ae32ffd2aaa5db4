//! What `leasehold convert` makes of the peers' configurations gives the files that the peers give. Vault Agent's are
//! those of `bao agent` on the same server, the injector's those of `bao agent` with the configuration that the injector
//! writes for it, External Secrets Operator's those of its documentation.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    SOON,
    driver::SecretProviderClass,
    leasehold::binary,
    postgres::Postgres,
    process::{Process, output},
    stage::Stage,
    temp_dir, tool,
};

/// What the command makes of a file; nothing may be refused.
fn converted(arguments: &[&str], name: &str, text: &str) -> String {
    let dir = temp_dir();
    let file = dir.path().join(name);
    fs::write(&file, text).unwrap();
    let Output { status, stdout, stderr } =
        output(Command::new(binary()).arg("convert").args(arguments).arg(&file).env_clear()).unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The classes that it makes of a manifest.
fn classes(manifest: &str) -> Vec<SecretProviderClass> {
    let class = |document: &str| {
        let value: Value = serde_saphyr::from_str(document).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let parameters = value["spec"]["parameters"].as_object().unwrap();
        SecretProviderClass {
            name: text(&value["metadata"]["name"]),
            provider: text(&value["spec"]["provider"]),
            parameters: parameters.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        }
    };
    converted(&["-o", "class"], "in.yaml", manifest).split("---\n").map(class).collect()
}

/// In memory, as an emptyDir, with the pod's token.
fn pod_folder(stage: &Stage) -> TempDir {
    let dir = tempfile::Builder::new().prefix("lhconv").tempdir_in("/dev/shm").unwrap();
    let token = stage.cluster.token(&stage.volume().pod, &["vault"], Duration::from_secs(3600));
    fs::write(dir.path().join("token"), token).unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    dir
}

async fn ended_well(mut process: Process) {
    let status = process.wait(SOON).await;
    assert!(status.success(), "{status}: {}", process.log());
}

/// Has `bao agent` render a configuration once.
async fn peer(dir: &Path, configuration: &str) {
    let file = dir.join("agent.hcl");
    fs::write(&file, configuration).unwrap();
    let agent = Process::spawn("bao agent", tool("bao"), |command| {
        command.args(["agent", "-exit-after-auth"]).arg(format!("-config={}", file.display()));
        command.env_clear().env("HOME", dir);
    });
    ended_well(agent).await;
}

/// Contents and mode of a file.
fn file(path: &Path) -> (String, u32) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (text, crate::mode(&fs::metadata(path).unwrap()))
}

/// External Secrets Operator's documentation: the HashiCorp Vault provider's nested values, fetching all keys,
/// and a template.
#[tokio::test]
async fn an_external_secret_gives_the_same_files() {
    let (stage, postgres) = tokio::join!(Stage::start(), Postgres::start());
    postgres.configure(&stage.bao, "app", "1h", "24h").await;
    let policy = "path \"secret/data/app/*\" { capabilities = [\"read\"] }\n\
                  path \"database/creds/app\" { capabilities = [\"read\"] }\n";
    stage.bao.put_policy("app", policy).await;
    stage.bao.put_secret("app/tls", json!({"crt": "Y2VydGlmaWNhdGU="})).await;
    let foo = json!({
        "name": {"first": "Tom", "last": "Anderson"},
        "friends": [{"first": "Dale", "last": "Murphy"}, {"first": "Roger", "last": "Craig"}],
        "html": "<a&b>",
    });
    stage.bao.put_secret("app/foo", foo).await;
    stage.bao.put_secret("app/all", json!({"user": "admin", "pass/word": "s3cr3t", "api_key": "k"})).await;
    let store = format!(
        "apiVersion: external-secrets.io/v1\nkind: SecretStore\nmetadata: {{name: vault-backend}}\nspec:\n  provider:\n    \
         vault:\n      server: {}\n      path: secret\n      version: v2\n      auth: {{kubernetes: {{mountPath: kubernetes, role: \
         app, serviceAccountRef: {{name: my-sa}}}}}}\n",
        stage.proxy.url()
    );
    let secrets = "---\napiVersion: external-secrets.io/v1\nkind: ExternalSecret\nmetadata: {name: vault-example}\nspec:\n  \
        refreshInterval: 15s\n  secretStoreRef: {name: vault-backend, kind: SecretStore}\n  data:\n  - secretKey: firstname\n    \
        remoteRef: {key: app/foo, property: name.first}\n  - secretKey: first_friend\n    remoteRef: {key: app/foo, property: \
        friends.1.first}\n  - secretKey: foobar\n    remoteRef: {key: app/foo}\n  - secretKey: tls.crt\n    remoteRef: {key: app/tls, property: crt, decodingStrategy: \
        Base64}\n  dataFrom:\n  - extract: {key: app/all}\n    \
        rewrite: [{regexp: {source: '^api_(.*)$', target: '$1'}}]\n---\napiVersion: external-secrets.io/v1\nkind: \
        ExternalSecret\nmetadata: {name: template}\nspec:\n  secretStoreRef: {name: vault-backend}\n  target:\n    template:\n      \
        engineVersion: v2\n      data:\n        config.yml: |\n          datasources:\n          - name: Graphite\n            \
        password: \"{{ .password }}\"\n            user: \"{{ .user }}\"\n  data:\n  - secretKey: user\n    remoteRef: {key: \
        app/db, property: username}\n  - secretKey: password\n    remoteRef: {key: app/db, property: password}\n";
    let generated = "---\napiVersion: generators.external-secrets.io/v1alpha1\nkind: VaultDynamicSecret\nmetadata: {name: \
        database}\nspec:\n  path: /database/creds/app\n  method: GET\n  provider:\n    server: URL\n    auth: {kubernetes: \
        {mountPath: kubernetes, role: app}}\n---\napiVersion: external-secrets.io/v1\nkind: ExternalSecret\nmetadata: {name: \
        generated}\nspec:\n  dataFrom:\n  - sourceRef:\n      generatorRef: {apiVersion: \
        generators.external-secrets.io/v1alpha1, kind: VaultDynamicSecret, name: database}\n"
        .replace("URL", &stage.proxy.url());
    let classes = classes(&(store + secrets + &generated));
    let volume = stage.volume();
    stage.mount(&volume, &classes[0]).await;
    let file = |name: &str| stage.kubelet.file(&volume, name);
    assert_eq!((file("firstname"), file("first_friend")), ("Tom".into(), "Roger".into()));
    let whole = "{\"friends\":[{\"first\":\"Dale\",\"last\":\"Murphy\"},{\"first\":\"Roger\",\"last\":\"Craig\"}],\"html\":\"<a&b>\",\
                 \"name\":{\"first\":\"Tom\",\"last\":\"Anderson\"}}";
    assert_eq!(file("foobar"), whole);
    assert_eq!(file("tls.crt"), "certificate");
    assert_eq!([file("user"), file("pass_word"), file("key")], ["admin", "s3cr3t", "k"]);
    let volume = stage.volume();
    stage.mount(&volume, &classes[1]).await;
    assert_eq!(
        stage.kubelet.file(&volume, "config.yml"),
        "datasources:\n- name: Graphite\n  password: \"p1\"\n  user: \"u\"\n"
    );
    let target = stage.kubelet.target(&volume);
    assert!(
        !stage.node.run(move || target.join("user").exists()),
        "with a template, what is read is no file"
    );
    // A generator's answer is the pod's own, and a real one.
    let volume = stage.volume();
    stage.mount(&volume, &classes[2]).await;
    let file = |name: &str| stage.kubelet.file(&volume, name);
    postgres.login(&file("username"), &file("password")).await.unwrap();
}

/// What the injector writes for Vault Agent, of the annotations of [`an_injected_workload_gives_the_same_files`].
fn injected(url: &str, dir: &Path) -> String {
    let default = |path: &str| {
        format!(
            "{{{{ with secret \"{path}\" }}}}{{{{ range $k, $v := .Data }}}}{{{{ $k }}}}: {{{{ $v }}}}\n{{{{ end }}}}{{{{ end }}}}"
        )
    };
    let template = |name: &str, contents: String| {
        json!({"destination": dir.join("out").join(name), "contents": contents, "left_delimiter": "{{",
            "right_delimiter": "}}"})
    };
    let mut credentials = template("db-creds", CREDENTIALS.to_owned());
    credentials["perms"] = json!("0400");
    let configuration = json!({
        "vault": {"address": url},
        "auto_auth": {"method": [{"type": "kubernetes", "mount_path": "auth/kubernetes",
            "config": {"role": "app", "token_path": dir.join("token")}}]},
        "template_config": {"exit_on_retry_failure": true},
        "template": [
            template("foo", default("secret/data/app/db")), credentials,
            template("key.txt", KEY.to_owned()),
        ],
    });
    configuration.to_string()
}

const CREDENTIALS: &str = "{{- with secret \"secret/data/app/db\" -}}
postgres://{{ .Data.data.username }}:{{ .Data.data.password }}@postgres:5432/appdb?sslmode=disable
{{- end }}
";
const KEY: &str = "{{ with secret \"secret/data/app/api\" }}{{ .Data.data.key }}{{ end }}";

/// The injector's documentation: a secret with the default template, a template, a mode, a folder of its own.
#[tokio::test]
async fn an_injected_workload_gives_the_same_files() {
    let stage = Stage::start().await;
    let dir = pod_folder(&stage);
    peer(dir.path(), &injected(&stage.proxy.url(), dir.path())).await;
    let annotation = |name: &str, value: &str| (format!("vault.hashicorp.com/{name}"), value.to_owned());
    let annotations: serde_json::Map<String, Value> = [
        annotation("agent-inject", "true"),
        annotation("role", "app"),
        annotation("service", &stage.proxy.url()),
        annotation("agent-inject-secret-Foo", "secret/data/app/db"),
        annotation("agent-inject-secret-db-creds", "secret/data/app/db"),
        annotation("agent-inject-perms-db-creds", "0400"),
        annotation("agent-inject-template-db-creds", CREDENTIALS),
        annotation("secret-volume-path-api", "/etc/api"),
        annotation("agent-inject-secret-api", "secret/data/app/api"),
        annotation("agent-inject-file-api", "key.txt"),
        annotation("agent-inject-template-api", KEY),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.into()))
    .collect();
    let manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
        "spec": {"template": {"metadata": {"annotations": annotations},
            "spec": {"containers": [{"name": "app", "image": "app"}]}}},
    });
    let classes = classes(&manifest.to_string());
    let mut seen = 0;
    for (class, names) in classes.iter().zip([vec!["key.txt"], vec!["db-creds", "foo"]]) {
        let volume = stage.volume();
        stage.mount(&volume, class).await;
        for name in names {
            let path = stage.kubelet.target(&volume).join(name);
            assert_eq!(
                stage.node.run(move || file(&path)),
                file(&dir.path().join("out").join(name)),
                "{name}"
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
    let foo = file(&dir.path().join("out/foo")).0;
    assert!(
        foo.starts_with("data: map[password:p1 username:u]\nmetadata: map["),
        "Go's maps, as the peer prints them: {foo}"
    );
}

/// One file for both: what `bao agent` renders of it, and what this agent makes of its conversion and of itself.
#[tokio::test]
async fn a_vault_agent_configuration_gives_the_same_files() {
    let stage = Stage::start().await;
    stage.bao.put_secret("app/web", json!({"api_key": "k<&>", "port": 8080, "tags": ["a", "b"]})).await;
    let dirs = [(); 3].map(|()| pod_folder(&stage));
    let configurations = dirs.each_ref().map(|dir| {
        let dir = dir.path().to_str().unwrap();
        fs::write(
            format!("{dir}/source.tmpl"),
            "<< with secret \"secret/data/app/web\" >><< .Data.data.port >><< end >>",
        )
        .unwrap();
        include_str!("../convert/rendered.hcl").replace("URL", &stage.proxy.url()).replace("DIR", dir)
    });
    peer(dirs[0].path(), &configurations[0]).await;

    let agent = |arguments: Vec<String>| {
        Process::spawn("leasehold agent", binary(), |command| {
            command.args(["agent", "--once"]).args(arguments).env_clear();
        })
    };
    let own = dirs[1].path().join("agent.yaml");
    fs::write(&own, converted(&["--to", "agent"], "agent.hcl", &configurations[1])).unwrap();
    ended_well(agent(vec![
        format!("--config={}", own.display()),
        format!("--state-dir={}", dirs[1].path().join("state").display()),
    ]))
    .await;
    let theirs = dirs[2].path().join("agent.hcl");
    fs::write(&theirs, &configurations[2]).unwrap();
    ended_well(agent(vec![
        format!("--from-vault-agent={}", theirs.display()),
        format!("--state-dir={}", dirs[2].path().join("state").display()),
    ]))
    .await;

    for name in ["config.sh", "port", "all.json", "sub/lines"] {
        let rendered = |dir: &TempDir| file(&dir.path().join("out").join(name));
        let expected = rendered(&dirs[0]);
        assert!(!expected.0.is_empty(), "{name}");
        assert_eq!(rendered(&dirs[1]), expected, "converted: {name}");
        assert_eq!(rendered(&dirs[2]), expected, "--from-vault-agent: {name}");
    }
    assert_eq!(file(&dirs[0].path().join("out/config.sh")).1, 0o600);
}
