#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::{
    convert::Severity,
    spec::{
        PodIdentity, TlsSpec,
        agent::{self, AgentFile, Surroundings},
        parameters::Defaults,
    },
};

/// The in-pod agent's own reader takes it.
pub(in crate::convert) fn load(yaml: &str) -> AgentFile {
    let defaults = Defaults {
        address: Some("https://vault:8200".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    };
    let text = |text: &str| text.to_owned();
    let pod =
        PodIdentity { namespace: text("a"), name: text("a"), uid: text("a"), service_account: text("a") };
    let around = Surroundings { defaults: &defaults, pod: &pod, read: &|_| Ok("x".into()) };
    let texts = [(text("agent.yaml"), yaml.to_owned())];
    agent::parse(&texts, &around).unwrap_or_else(|problems| panic!("{problems:?} in\n{yaml}"))
}

fn notes(text: &str) -> Vec<String> {
    let shown = |note: crate::convert::Note| format!("{} {note}", note.line.unwrap_or(0));
    translate(text).unwrap().notes.into_iter().map(shown).collect()
}

const WHOLE: &str = include_str!("../../../tests/convert/vault-agent.hcl");
const EXPECTED: &str = include_str!("../../../tests/convert/vault-agent.yaml");

#[test]
fn a_whole_configuration_becomes_ours() {
    let translation = translate(WHOLE).unwrap();
    assert_eq!(translation.yaml, EXPECTED, "{}", translation.yaml);
    let file = load(&translation.yaml);
    assert_eq!(file.folders.len(), 2);
    assert_eq!(file.exec.unwrap().command, ["./app", "--flag"]);
    assert!(translation.clone().complete().is_ok(), "{:?}", translation.notes);
}

#[test]
fn each_method_logs_in_as_it_did() {
    for (hcl, yaml) in [
        (
            "method \"kubernetes\" {\n mount_path = \"auth/k8s\"\n config = {\n role = \"app\"\n }\n}",
            "vaultAuthMountPath: k8s\nroleName: app\nauth:\n  method: kubernetes\n  tokenPath: \
             /var/run/secrets/kubernetes.io/serviceaccount/token\n",
        ),
        (
            "method {\n type = \"jwt\"\n namespace = \"team/a\"\n config = {\n role = \"app\"\n path = \"/t/vault\"\n }\n}",
            "vaultNamespace: team/a\nroleName: app\nauth:\n  method: jwt\n  tokenPath: /t/vault\n",
        ),
        (
            "method \"approle\" {\n config = {\n role_id_file_path = \"/a/role\"\n secret_id_file_path = \"/a/secret\"\n \
             secret_id_response_wrapping_path = \"auth/approle/role/x/secret-id\"\n \
             remove_secret_id_file_after_reading = false\n }\n}",
            "auth:\n  method: approle\n  roleIdPath: /a/role\n  secretIdPath: /a/secret\n  secretIdWrappingPath: \
             auth/approle/role/x/secret-id\n  removeSecretIdFileAfterReading: false\n",
        ),
        (
            "method \"token_file\" {\n config = {\n token_file_path = \"/t/token\"\n }\n}",
            "auth:\n  method: token\n  tokenPath: /t/token\n",
        ),
        (
            "method \"cert\" {\n config = {\n name = \"web\"\n client_cert = \"/c/crt\"\n client_key = \"/c/key\"\n \
             ca_cert = \"/c/ca\"\n }\n}",
            "vaultTLSClientCertPath: /c/crt\nvaultTLSClientKeyPath: /c/key\nvaultCACertPath: /c/ca\nroleName: web\nauth:\n  \
             method: cert\n",
        ),
    ] {
        let template =
            "template {\n destination = \"/s/a\"\n contents = \"x\"\n error_on_missing_key = true\n}";
        let translation =
            translate(&format!("auto_auth {{\n{hcl}\n}}\n{template}\n")).unwrap().complete().unwrap();
        assert!(translation.yaml.starts_with(yaml), "{}", translation.yaml);
        load(&translation.yaml);
    }
    let refused = notes("auto_auth {\n method \"aws\" {\n config = {\n type = \"iam\"\n }\n }\n}");
    assert!(refused[1].starts_with("2 refused: auto_auth method aws: is left out"), "{refused:?}");
}

/// Every row of the table is walked: what it says is what happens.
#[test]
fn every_field_has_the_fate_that_its_row_says() {
    let base = |section: &str, own: &str| {
        let own_in = |name: &str| if section == name { own } else { "" };
        let unless = |fields: &[&str], line: &'static str| {
            if fields.iter().any(|field| own.starts_with(field)) { "" } else { line }
        };
        let methods = ["kubernetes", "jwt", "approle", "token_file", "cert"];
        let (method, config) = if methods.contains(&section) { (section, own) } else { ("kubernetes", "") };
        let label = if section == "method" && own.starts_with("type") { "" } else { method };
        let exec = match section {
            "template.exec" if own.starts_with("command") => format!("exec {{\n{own}\n}}"),
            "template.exec" => format!("exec {{\ncommand = [\"c\"]\n{own}\n}}"),
            _ => String::new(),
        };
        let blocks = [
            own_in("").to_owned(),
            format!("vault {{\n{}\n}}", own_in("vault")),
            format!("auto_auth {{\n{}\nmethod {label} {{\n{}", own_in("auto_auth"), own_in("method")),
            format!("config = {{\n{config}\n}}\n}}\n}}\ntemplate {{\n{exec}\n{}", own_in("template")),
            unless(&["destination"], "destination = \"/s/a\"").to_owned(),
            unless(&["contents", "source"], "contents = \"x\"").to_owned(),
            format!("}}\ntemplate_config {{\n{}\n}}\nexec {{\n{}", own_in("template_config"), own_in("exec")),
            if section == "exec" {
                unless(&["command"], "command = [\"app\"]")
            } else {
                "command = [\"app\"]"
            }
            .to_owned(),
            "}\n".to_owned(),
        ];
        blocks.join("\n")
    };
    let blocks =
        ["vault", "auto_auth", "template_config", "exec", "template", "method.config", "auto_auth.method"];
    for field in FIELDS {
        let (section, name) = field.name.rsplit_once('.').unwrap_or(("", field.name));
        if blocks.contains(&field.name) {
            continue;
        }
        let value = match name {
            "cache" | "api_proxy" | "listener" | "telemetry" | "retry" | "sink" | "wait" => None,
            "env_template" => Some("{ A = { contents = \"x\" } }"),
            "perms" => Some("\"0600\""),
            "user" | "group" => Some("1000"),
            "exec" | "command" => Some("[\"a\", \"b\"]"),
            "exit_after_auth" | "tls_skip_verify" | "error_on_missing_key" => Some("true"),
            "remove_secret_id_file_after_reading" => Some("false"),
            "static_secret_render_interval" => Some("\"7m\""),
            "restart_on_secret_changes" => Some("\"never\""),
            "restart_stop_signal" => Some("\"SIGINT\""),
            "contents" => Some("\"other\""),
            "type" => Some("\"jwt\""),
            "left_delimiter" => Some("\"<<\""),
            "right_delimiter" => Some("\">>\""),
            _ => Some("\"/own/value\""),
        };
        let own = match value {
            Some(value) => format!("{name} = {value}"),
            None => format!("{name} {{\n}}"),
        };
        let own = match field.name {
            "approle.remove_secret_id_file_after_reading" => format!("{own}\nsecret_id_file_path = \"/x\""),
            _ => own,
        };
        let (with, without) = (base(section, &own), base(section, ""));
        let (with, without) = (translate(&with).unwrap(), translate(&without).unwrap());
        let told = with.notes.iter().find(|note| note.message.starts_with(&format!("{}: ", field.name)));
        match field.fate {
            None => {
                let same = ["template.error_on_missing_key", "template.exec.command", "cert.name"];
                let changed = with.yaml != without.yaml || same.contains(&field.name);
                assert!(changed, "{} changes nothing:\n{}", field.name, with.yaml);
                let not_known = with.notes.iter().find(|note| note.message.contains("not known"));
                assert_eq!(not_known, None, "{}", field.name);
            }
            Some(severity) => {
                let told =
                    told.unwrap_or_else(|| panic!("nothing is told of {}: {:?}", field.name, with.notes));
                assert_eq!(told.severity, severity, "{}", field.name);
                assert!(told.line.is_some() && !field.text.is_empty(), "{told:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_carried_is_said_with_its_line() {
    let text = "auto_auth {\n  method \"kubernetes\" {\n    config = {\n      role = \"${ROLE}\"\n    }\n  }\n  sink \"file\" {\n    \
                config = {\n      path = \"/x\"\n    }\n  }\n}\nlistener \"tcp\" {\n  address = \"x\"\n}\ntemplate {\n  \
                destination = \"a\"\n  contents = \"{{ file \\\"/etc/passwd\\\" }}\"\n  perms = \"9\"\n  user = \"app\"\n  \
                colour = 1\n}\ntemplate {\n  destination = \"/s/a\"\n}\nenv_template \"A\" {\n  contents = \"x\"\n}\n";
    let translation = translate(text).unwrap();
    let refused: Vec<String> = translation
        .notes
        .iter()
        .filter(|note| note.severity == Severity::Refused)
        .map(|note| format!("{} {}", note.line.unwrap(), note.message.split(':').next().unwrap()))
        .collect();
    assert_eq!(
        refused,
        [
            "4 role",
            "7 auto_auth.sink",
            "13 listener",
            "16 destination \"a\"",
            "18 template for a",
            "19 perms",
            "20 user",
            "21 template.colour",
            "23 template for /s/a",
            "26 env_template"
        ]
    );
    let error = translation.complete().unwrap_err().to_string();
    assert!(error.starts_with("10 parts of it cannot be carried over:\n  line 4: role"), "{error}");
    assert!(translate("a = [").is_err());
    assert_eq!(notes("")[0], "1 refused: auto_auth: names no method to log in with");
}
