//! The examples of the injector's documentation (overview, examples, annotations), run from a downward API file
//! beside `bao agent` with what the injector would configure it with: the same files, byte by byte, but for what
//! the server makes anew for each.

use std::{collections::BTreeMap, path::Path};

use nix::sys::signal::Signal;
use regex::Regex;
use serde_json::{Value, json};

use crate::{
    pod::{Pod, USER},
    support::{
        SOON,
        bao::{Bao, Shape},
        tool, until,
    },
};

/// A file that an example renders.
struct File {
    name: &'static str,
    template: &'static str,
    perms: Option<&'static str>,
}

const fn file(name: &'static str, template: &'static str) -> File {
    File { name, template, perms: None }
}

/// What stands in the documentation, and what it renders.
struct Example {
    /// Without the prefix, and without how to reach the server.
    annotations: &'static [(&'static str, &'static str)],
    /// As the injector would write them into Vault Agent's configuration.
    files: &'static [File],
}

/// The injector's own default template, as it puts it together.
macro_rules! default {
    ($path:literal) => {
        concat!(
            "{{ with secret \"",
            $path,
            "\" }}{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}\n{{ end }}{{ end }}"
        )
    };
}

const DB_APP: &str = "{{- with secret \"database/creds/db-app\" -}}\npostgres://{{ .Data.username }}:{{ .Data.password }}\
                      @postgres:5432/mydb?sslmode=disable\n{{- end }}\n";
const EXPORT: &str = "{{- with secret \"secret/data/web\" -}}\n  export api_key=\"{{ .Data.data.payments_api_key }}\"\n\
                      {{- end }}\n";

const EXAMPLES: [Example; 6] = [
    // "Secrets via annotations": the default template, over a map with lists, numbers and nothing in it.
    Example {
        annotations: &[
            ("agent-inject-secret-foo", "database/roles/db-app"),
            ("agent-inject-secret-bar", "secret/data/web"),
            ("agent-inject-secret-foo.txt", "database/roles/db-app"),
        ],
        files: &[
            file("foo", default!("database/roles/db-app")),
            file("bar", default!("secret/data/web")),
            file("foo.txt", default!("database/roles/db-app")),
        ],
    },
    // "Secret templates": one of its own, and credentials by the default one.
    Example {
        annotations: &[
            ("agent-inject-status", "update"),
            ("agent-inject-secret-foo", "database/creds/db-app"),
            ("agent-inject-template-foo", DB_APP),
            ("agent-inject-secret-pg", "database/creds/db-app"),
        ],
        files: &[file("foo", DB_APP), file("pg", default!("database/creds/db-app"))],
    },
    // "Environment variable example".
    Example {
        annotations: &[
            ("agent-inject-secret-config", "secret/data/web"),
            ("agent-inject-template-config", EXPORT),
        ],
        files: &[file("config", EXPORT)],
    },
    // "Annotations": names, permissions, delimiters, the other default template.
    Example {
        annotations: &[
            ("agent-inject-secret-FooBar", "secret/data/web"),
            ("agent-inject-perms-FooBar", "0400"),
            ("agent-inject-secret-lower-Case", "secret/data/web"),
            ("preserve-secret-case-FooBar", "true"),
            ("agent-inject-secret-file", "secret/data/web"),
            ("agent-inject-file-file", "sub/named.json"),
            ("agent-inject-secret-left", "secret/data/web"),
            (
                "agent-inject-template-left",
                "<< with secret \"secret/data/web\" >><< .Data.data.payments_api_key >>{{ }}<< end >>",
            ),
            ("agent-template-left-delim-left", "<<"),
            ("agent-template-right-delim-left", ">>"),
            ("error-on-missing-key-left", "true"),
        ],
        files: &[
            File { name: "FooBar", template: default!("secret/data/web"), perms: Some("0400") },
            file("lower-case", default!("secret/data/web")),
            file("sub/named.json", default!("secret/data/web")),
            file(
                "left",
                "{{ with secret \"secret/data/web\" }}{{ .Data.data.payments_api_key }}{{ \"{{ }}\" }}{{ end }}",
            ),
        ],
    },
    Example {
        annotations: &[
            ("agent-inject-default-template", "json"),
            ("preserve-secret-case", "true"),
            ("agent-inject-secret-Web", "secret/data/web"),
            ("agent-inject-secret-Role", "database/roles/db-app"),
        ],
        files: &[
            file("Web", "{{ with secret \"secret/data/web\" }}{{ .Data | toJSON }}\n{{ end }}"),
            file("Role", "{{ with secret \"database/roles/db-app\" }}{{ .Data | toJSON }}\n{{ end }}"),
        ],
    },
    // A template without a secret of its name, as the injector takes it too.
    Example {
        annotations: &[
            ("agent-inject-template-alone", EXPORT),
            ("template-static-secret-render-interval", "1m"),
        ],
        files: &[file("alone", EXPORT)],
    },
];

/// A server as the documentation has it, behind TLS.
struct Stage {
    pod: Pod,
    bao: Bao,
}

impl Stage {
    async fn new(name: &'static str) -> Self {
        let pod = Pod::new(name).await;
        let bao = Bao::start(Shape::DevTls).await;
        bao.enable_kubernetes_auth("kubernetes", &pod.ground.cluster).await;
        let policy = "path \"database/*\" { capabilities = [\"read\"] }\npath \"secret/data/*\" { capabilities = \
                      [\"read\"] }\npath \"pki/issue/*\" { capabilities = [\"update\"] }";
        bao.put_policy("app", policy).await;
        let role = json!({
            "bound_service_account_names": ["app"], "bound_service_account_namespaces": ["prod"],
            "audience": "vault", "token_policies": ["app"], "token_ttl": "1h", "token_max_ttl": "24h",
        });
        bao.write("auth/kubernetes/role/app", role).await;
        pod.ground.postgres.configure(&bao, "db-app", "1h", "24h").await;
        let web = json!({
            "payments_api_key": "p1 <&>\"'", "number": 42, "large": 12_345_678, "list": ["a", 1, null], "none": null,
            "map": {"b": true, "a": "1"},
        });
        bao.put_secret("web", web).await;
        // What the annotation tls-secret has mounted, and the pod's own token.
        pod.replace("token/ca.crt", &std::fs::read_to_string(bao.ca_path()).unwrap());
        Self { pod, bao }
    }

    fn file(&self, name: &str) -> String {
        self.pod.path(&format!("token/{name}")).display().to_string()
    }

    /// The pod's annotations as the kubelet writes them: sorted, quoted as Go does.
    fn annotate(&self, annotations: &[(&str, &str)]) {
        let (service, ca, token) = (self.bao.url().to_owned(), self.file("ca.crt"), self.file("vault"));
        let folder = self.pod.path("secrets/ours").display().to_string();
        let mut all: BTreeMap<&str, &str> = BTreeMap::from([
            ("agent-inject", "true"),
            ("role", "app"),
            ("service", &service),
            ("tls-secret", "vault-tls-client"),
            ("ca-cert", &ca),
            ("auth-config-token-path", &token),
            ("secret-volume-path", &folder),
        ]);
        all.extend(annotations.iter().copied());
        let mut text = String::from("kubernetes.io/config.source=\"api\"\n");
        for (name, value) in all.iter().filter(|(_, value)| !value.is_empty()) {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            text.push_str(&format!("vault.hashicorp.com/{name}=\"{quoted}\"\n"));
        }
        self.pod.replace("config/annotations", &text);
    }

    /// What the injector would configure: its own shape, JSON.
    async fn reference(&self, method: Value, files: &[File]) {
        let folder = self.pod.path("secrets/theirs");
        let templates: Vec<Value> = files
            .iter()
            .map(|file| {
                let mut stanza = json!({
                    "destination": folder.join(file.name), "contents": file.template, "left_delimiter": "{{",
                    "right_delimiter": "}}",
                });
                if let Some(perms) = file.perms {
                    stanza["perms"] = json!(perms);
                }
                stanza
            })
            .collect();
        let config = json!({
            "vault": {"address": self.bao.url(), "ca_cert": self.file("ca.crt")},
            "auto_auth": {"method": [method]}, "exit_after_auth": true, "template": templates,
            "template_config": {"exit_on_retry_failure": true},
        });
        self.pod.replace("config/theirs.json", &config.to_string());
        let mut theirs = self.pod.run(&tool("bao"), |command| {
            command.arg("agent").arg(format!("-config={}", self.pod.path("config/theirs.json").display()));
            command.env("HOME", self.pod.path("state"));
        });
        let status = theirs.wait(SOON).await;
        assert!(status.success(), "bao agent: {}", theirs.log());
    }

    fn kubernetes(&self) -> Value {
        json!({
            "type": "kubernetes", "mount_path": "auth/kubernetes",
            "config": {"role": "app", "token_path": self.file("vault")},
        })
    }

    /// Every file below a folder: its text and its mode.
    fn files(&self, folder: &str) -> BTreeMap<String, (String, u32)> {
        let root = self.pod.path(folder);
        self.pod.within(move || {
            let mut found = BTreeMap::new();
            walk(&root, &root, &mut found);
            found
        })
    }

    fn assert_same(&self, expected: usize) {
        let theirs = self.files("secrets/theirs");
        let ours = self.files("secrets/ours");
        let names = |files: &BTreeMap<String, (String, u32)>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!((names(&ours), ours.len()), (names(&theirs), expected));
        for (name, (text, mode)) in &theirs {
            let (our_text, our_mode) = &ours[name];
            assert_eq!(settled(our_text), settled(text), "{name}");
            assert_eq!(our_mode, mode, "{name}: {our_mode:o} {mode:o}");
        }
    }

    /// Empties both folders.
    fn clear(&self) {
        let (ours, theirs, state) =
            (self.pod.path("secrets/ours"), self.pod.path("secrets/theirs"), self.pod.path("state/agent"));
        self.pod.within(move || {
            for folder in [ours, theirs, state] {
                let _absent = std::fs::remove_dir_all(folder);
            }
        });
    }
}

fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, (String, u32)>) {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        // The version folders of an atomic swap.
        if entry.file_name().as_encoded_bytes().starts_with(b"..") {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, (std::fs::read_to_string(&path).unwrap(), mode));
        }
    }
}

/// Without what each login gets anew: a database user, its password, keys and certificates.
fn settled(text: &str) -> String {
    let replace =
        |text: &str, pattern: &str, by: &str| Regex::new(pattern).unwrap().replace_all(text, by).into_owned();
    let text = replace(text, "v-[A-Za-z0-9-]{20,}", "(user)");
    let text = replace(&text, r"([ :])[A-Za-z0-9-]{20}(@|\n)", "$1(password)$2");
    replace(&text, r"(?s)(-----BEGIN [A-Z ]+-----).*?(-----END)", "$1(drawn)$2")
}

#[tokio::test]
async fn the_documented_examples_render_to_the_same_files() {
    let stage = Stage::new("inject").await;
    for example in EXAMPLES {
        stage.clear();
        stage.annotate(example.annotations);
        stage.reference(stage.kubernetes(), example.files).await;
        let mut once = stage.pod.agent_with("--annotations", "config/annotations", &["--once"]);
        assert!(once.wait(SOON).await.success(), "{}", once.log());
        stage.assert_same(example.files.len());
    }
    // What was rendered as a database user is one.
    stage.clear();
    stage.annotate(EXAMPLES[1].annotations);
    let mut agent = stage.pod.agent_with("--annotations", "config/annotations", &[]);
    stage.pod.ready(&mut agent).await;
    let text = stage.pod.read("secrets/ours/foo").unwrap();
    let login = Regex::new("^postgres://([^:]+):([^@]+)@").unwrap();
    let found = login.captures(&text).unwrap();
    stage.pod.ground.postgres.login(&found[1], &found[2]).await.unwrap();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success(), "{}", agent.log());
}

/// "AppRole authentication", and a template from a file (`agent-inject-template-file`), both with what
/// `agent-extra-secret` mounts.
#[tokio::test]
async fn an_approle_and_a_template_file_are_read_from_an_extra_secret() {
    let stage = Stage::new("inj-role").await;
    let bao = &stage.bao;
    bao.write("sys/auth/approle", json!({"type": "approle"})).await;
    bao.write("auth/approle/role/app", json!({"token_policies": ["app"]})).await;
    let role_id = bao.read("auth/approle/role/app/role-id").await["data"]["role_id"].clone();
    stage.pod.replace("token/role-id", role_id.as_str().unwrap());
    // Both agents would remove the file once read, and neither can: a Secret's folder is read-only.
    let secret_id = bao.write("auth/approle/role/app/secret-id", json!({})).await;
    stage.pod.replace("token/secret-id", secret_id["data"]["secret_id"].as_str().unwrap());
    stage.pod.replace("token/web.tmpl", EXPORT);
    let (role_id, secret_id, template) =
        (stage.file("role-id"), stage.file("secret-id"), stage.file("web.tmpl"));
    stage.annotate(&[
        ("auth-config-token-path", ""),
        ("agent-extra-secret", "approle-example"),
        ("auth-type", "approle"),
        ("auth-path", "auth/approle"),
        ("auth-config-role-id-file-path", &role_id),
        ("auth-config-secret-id-file-path", &secret_id),
        ("agent-inject-secret-db-creds", "database/creds/db-app"),
        ("agent-inject-template-db-creds", DB_APP),
        ("agent-inject-secret-web", "secret/data/web"),
        ("agent-inject-template-file-web", &template),
        ("role", "my-role"),
    ]);
    let files = &[file("db-creds", DB_APP), file("web", EXPORT)];
    let method = json!({
        "type": "approle", "mount_path": "auth/approle",
        "config": {"role_id_file_path": role_id, "secret_id_file_path": secret_id},
    });
    stage.reference(method, files).await;
    let mut once = stage.pod.agent_with("--annotations", "config/annotations", &["--once"]);
    assert!(once.wait(SOON).await.success(), "{}", once.log());
    stage.assert_same(files.len());
}

/// "PKI cert example": one template writes the certificate and its key to files of their own.
#[tokio::test]
async fn a_certificate_is_written_to_files_of_its_own() {
    let stage = Stage::new("inj-pki").await;
    let bao = &stage.bao;
    bao.write("sys/mounts/pki", json!({"type": "pki"})).await;
    bao.write("pki/root/generate/internal", json!({"common_name": "root of the test", "ttl": "24h"})).await;
    bao.write("pki/roles/cert", json!({"allow_any_name": true, "max_ttl": "12h"})).await;
    let template = |folder: &str, owner: &str| {
        let folder = stage.pod.path(&format!("secrets/{folder}")).display().to_string();
        format!(
            "{{{{- with pkiCert \"pki/issue/cert\" \"common_name=test.example.com\" \"ttl=2h\" -}}}}\n\
             {{{{ .Cert }}}}{{{{ .CA }}}}{{{{ .Key }}}}\n\
             {{{{ .Key | writeToFile \"{folder}/cert.key\" \"{owner}\" \"{owner}\" \"0640\" }}}}\n\
             {{{{ .CA | writeToFile \"{folder}/cert.pem\" \"{owner}\" \"{owner}\" \"0644\" }}}}\n\
             {{{{ .Cert | writeToFile \"{folder}/cert.pem\" \"{owner}\" \"{owner}\" \"0644\" \"append\" }}}}\n\
             {{{{- end -}}}}\n"
        )
    };
    stage.annotate(&[
        ("agent-inject-secret-certs", "pki/issue/cert"),
        // The injector's image has a user of that name.
        ("agent-inject-template-certs", &template("ours", "vault")),
    ]);
    let theirs: &'static str = template("theirs", "").leak();
    stage.reference(stage.kubernetes(), &[file("certs", theirs)]).await;
    let mut once = stage.pod.agent_with("--annotations", "config/annotations", &["--once"]);
    assert!(once.wait(SOON).await.success(), "{}", once.log());
    stage.assert_same(3);
    let read = |name: &str| stage.pod.read(&format!("secrets/ours/{name}")).unwrap();
    let all = read("certs");
    assert!(all.contains(read("cert.key").trim()), "all three are of one certificate");
    for part in read("cert.pem").split_inclusive("-----END CERTIFICATE-----") {
        assert!(all.contains(part.trim()), "{part}");
    }
    assert_eq!(stage.bao.list("pki/certs").await.len(), 3, "the root, theirs and ours: {}", once.log());
}

/// `agent-inject-command`, `agent-pre-populate-only` and `agent-service-account-token-volume-name`.
#[tokio::test]
async fn a_command_runs_on_a_change_where_it_is_allowed_and_a_pod_may_be_populated_only() {
    let stage = Stage::new("inj-cmd").await;
    let ran = stage.pod.path("secrets/ran");
    let command = format!("/bin/sh -c 'echo ran >> {}'", ran.display());
    let mut annotations = vec![
        ("agent-inject-secret-config", "secret/data/web"),
        ("agent-inject-template-config", EXPORT),
        ("agent-inject-command-config", command.as_str()),
        ("template-static-secret-render-interval", "5s"),
        ("agent-service-account-token-volume-name", "token-vol"),
    ];
    stage.annotate(&annotations);
    let mut refused = stage.pod.agent_with("--annotations", "config/annotations", &[]);
    assert_eq!(refused.wait(SOON).await.code(), Some(1), "{}", refused.log());
    assert!(refused.log().contains("--allow-commands"), "{}", refused.log());

    let mut agent = stage.pod.agent_with("--annotations", "config/annotations", &["--allow-commands"]);
    stage.pod.ready(&mut agent).await;
    let told = "mount the volume there, or set auth-config-token-path";
    assert!(agent.log().contains(told), "{}", agent.log());
    assert!(stage.pod.read("secrets/ran").is_err(), "the first content is no change");
    stage.bao.put_secret("web", json!({"payments_api_key": "p2"})).await;
    until("the command ran", SOON, async || stage.pod.read("secrets/ran").ok()).await;
    assert_eq!(stage.pod.read("secrets/ours/config").unwrap().trim(), "export api_key=\"p2\"");
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait(SOON).await.success(), "{}", agent.log());

    // Renders, and ends by itself: nothing is left to revoke it.
    stage.clear();
    annotations.retain(|(name, _)| *name != "agent-inject-command-config");
    annotations.push(("agent-pre-populate-only", "true"));
    stage.annotate(&annotations);
    let mut only = stage.pod.agent_with("--annotations", "config/annotations", &["--once"]);
    assert!(only.wait(SOON).await.success(), "{}", only.log());
    let mut only = stage.pod.run(&crate::support::leasehold::binary(), |command| {
        command.args(["agent", "--annotations"]).arg(stage.pod.path("config/annotations"));
        command.arg("--state-dir").arg(stage.pod.path("state"));
    });
    assert!(only.wait(SOON).await.success(), "{}", only.log());
    assert_eq!(stage.pod.read("secrets/ours/config").unwrap().trim(), "export api_key=\"p2\"");
    assert_eq!(stage.pod.status("secrets/ours/config").1, USER);
}
