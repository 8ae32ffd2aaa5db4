#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::spec::{LoginMethod, TlsSpec};

fn read(text: &str) -> Result<AgentFile, Vec<String>> {
    let defaults = Defaults {
        address: None,
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: "node-1".into(),
        tls: TlsSpec::default(),
    };
    let pod = PodIdentity {
        namespace: "prod".into(),
        name: "app-0".into(),
        uid: "u".into(),
        service_account: "app".into(),
    };
    let read = |path: &str| match path {
        "/etc/templates/db" => Ok("{{ .db.username }}".to_owned()),
        "/etc/templates/bad" => Ok("first\n  {{ .db.username | uper }}".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let around = Surroundings { defaults: &defaults, pod: &pod, read: &read };
    parse(&[("agent.yaml".into(), text.into())], &around)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

const WHOLE: &str = r#"vaultAddress: https://vault.vault.svc:8200
roleName: app
vaultAuthMountPath: auth/k8s
auth: {method: kubernetes, tokenPath: /var/run/secrets/tokens/vault}
stateDir: /run/leasehold
revokeOnShutdown: false
folders:
  - path: /vault/secrets/
    onChange:
      signal: {process: nginx, signal: hup}
      touch: /vault/secrets/.changed
    objects:
      - {objectName: password, secretPath: secret/data/app, secretKey: password, filePermission: 0400}
      - {as: db, secretPath: database/creds/app}
      - objectName: dsn
        templateFile: /etc/templates/db
        onChange: {http: {url: "http://127.0.0.1:8080/-/reload"}}
  - path: /vault/other
    fileMode: 0444
    objects: |
      - objectName: whole
        secretPath: secret/data/other
exec:
  command: [app, --flag]
  env:
    - {objectName: settings, secretPath: secret/data/app, format: env}
  envTemplates:
    - {name: DATABASE_URL, template: "{{ with secret \"database/creds/app\" }}{{ .Data.username }}{{ end }}"}
"#;

#[test]
fn a_whole_file_is_understood() {
    let file = read(WHOLE).unwrap();
    let folder = &file.folders[0];
    assert_eq!(folder.path, PathBuf::from("/vault/secrets"));
    assert_eq!(folder.spec.login.mount.as_str(), "k8s", "auth/ is the injector's spelling");
    assert_eq!(folder.spec.default_mode.bits(), 0o440);
    assert_eq!(folder.on_change.signal.as_ref().unwrap().signal, nix::sys::signal::Signal::SIGHUP);
    assert_eq!(folder.objects_on_change["dsn"].http.as_ref().unwrap().method, "POST");
    assert_eq!(folder.spec.requests().len(), 2);
    assert_eq!(file.folders[1].spec.default_mode.bits(), 0o444);
    let exec = file.exec.unwrap();
    assert_eq!((exec.command.len(), exec.maps.len()), (2, 1));
    assert_eq!(exec.environment.unwrap().objects.len(), 2);
    assert_eq!(file.revoke_on_shutdown, Some(false));
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (change, message) in [
        (("roleName:", "rolName:"), "line 2: unknown key \"rolName\", did you mean roleName?"),
        (("tokenPath", "tokenpath"), "line 4: unknown key \"tokenpath\", did you mean tokenPath?"),
        (
            ("secretKey: password", "secretkey: password"),
            "line 13: unknown key \"secretkey\", did you mean secretKey?",
        ),
        (("/etc/templates/db", "/nowhere"), "line 16: templateFile \"/nowhere\": no such file"),
        (("process: nginx", "proces: nginx"), "line 10: unknown key \"proces\", did you mean process?"),
        (("signal: hup", "signal: hop"), "line 10: signal: \"hop\" is no signal, write one like SIGHUP"),
        (("127.0.0.1", "10.0.0.1"), "must be at a loopback address"),
        (("method: kubernetes", "method: kubernets"), "did you mean kubernetes?"),
        (
            ("path: /vault/other", "path: vault/other"),
            "line 18: path: \"vault/other\" must be an absolute path",
        ),
        (("path: /vault/other", "path: /vault/secrets"), "folder /vault/secrets is given twice"),
        (
            ("objectName: whole", "objectname: whole"),
            "line 21: unknown key \"objectname\", did you mean objectName?",
        ),
        (("name: DATABASE_URL", "name: database-url"), "\"database-url\" cannot be a variable's name"),
    ] {
        let text = WHOLE.replacen(change.0, change.1, 1);
        assert_ne!(text, WHOLE, "{change:?}");
        let problems = read(&text).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains(message)), "{change:?}: {problems:#?}");
    }
    let problems = read(&WHOLE.replace("templates/db", "templates/bad")).unwrap_err();
    assert_eq!(
        problems,
        [
            "object \"dsn\" (line 16): template: line 2, column 21 of \"/etc/templates/bad\": there is no function uper; \
          did you mean upper?"
        ]
    );
    let problems = read("vaultAddress: https://x\nfolders: [{path: /a, objects: []}]").unwrap_err();
    assert!(
        problems.iter().any(|problem| problem.starts_with("missing 'roleName', the role")),
        "{problems:#?}"
    );
    assert!(problems.iter().any(|problem| problem == "objects is empty"), "{problems:#?}");
}

#[test]
fn each_method_says_what_it_lacks() {
    let with = |auth: &str, more: &str| {
        read(&format!(
            "vaultAddress: https://x\n{more}auth: {auth}\nfolders: [{{path: /a, objects: [{{objectName: a, \
             secretPath: b, secretKey: c}}]}}]\n"
        ))
    };
    let login = |auth: &str, more: &str| with(auth, more).unwrap().folders[0].spec.login.clone();
    assert!(with("{method: approle}", "").unwrap_err()[0].contains("roleIdPath is missing"));
    assert!(with("{method: token}", "").unwrap_err()[0].contains("tokenPath is missing"));
    assert!(with("{method: cert}", "").unwrap_err()[0].contains("vaultTLSClientCertPath"));
    assert!(
        with("{method: jwt, roleIdPath: /x}", "roleName: a\n").unwrap_err()[0].contains("are of approle")
    );
    let approle = login("{method: approle, roleIdPath: /r, secretIdPath: /s}", "");
    assert_eq!(
        (approle.method, approle.mount.as_str(), approle.role.as_str()),
        (LoginMethod::AppRole, "approle", "")
    );
    assert_eq!(login("{method: token, tokenPath: /t}", "").method, LoginMethod::Token);
    assert_eq!(login("{method: jwt}", "roleName: a\n").mount.as_str(), "jwt");
    let wrapped =
        with("{method: approle, roleIdPath: /r, secretIdPath: /s, secretIdResponseWrapped: true}", "");
    assert!(wrapped.unwrap().auth.remove_secret_id);
}

#[test]
fn files_of_a_folder_are_one_together() {
    let defaults = Defaults {
        address: Some("https://x".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    };
    let pod = PodIdentity {
        namespace: String::new(),
        name: String::new(),
        uid: String::new(),
        service_account: String::new(),
    };
    let read = |_: &str| Err("no".to_owned());
    let around = Surroundings { defaults: &defaults, pod: &pod, read: &read };
    let folder = |path: &str| {
        format!("folders: [{{path: {path}, objects: [{{objectName: a, secretPath: b, secretKey: c}}]}}]\n")
    };
    let texts = |second: String| {
        [("a".to_owned(), format!("roleName: app\n{}", folder("/a"))), ("b".to_owned(), second)]
    };
    assert_eq!(parse(&texts(folder("/b")), &around).unwrap().folders.len(), 2);
    let problems = parse(&texts("roleName: other\n".into()), &around).unwrap_err();
    assert_eq!(problems[0].to_string(), "line 1: b: \"roleName\" is in another file of the folder too");
    let wrong = "folders:\n- {path: /b, diskbacked: true, objects: [{objectName: a, template: '{{ x }}'}]}\n";
    let problems = parse(&texts(wrong.into()), &around).unwrap_err();
    let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "line 2: b: unknown key \"diskbacked\", did you mean diskBacked?",
            "b: object \"a\" (line 2, column 72): template: there is no function x",
        ]
    );
    let strange =
        "folders:\n- {path: /b, objects: [{objectName: a, secretPath: b, secretKey: c, passwordKey: d}]}\n";
    let warnings = parse(&texts(strange.into()), &around).unwrap().warnings;
    assert_eq!(
        warnings,
        ["b: object \"a\" (line 2): passwordKey is ignored without format: pkcs12 or format: jks"]
    );
}

/// Templates in the file itself: in a list, in a text with a list, and of the environment.
#[test]
fn mistakes_in_templates_name_line_and_column() {
    let file = |objects: &str| {
        format!(
            "vaultAddress: https://x\nroleName: app\nfolders:\n  - path: /a\n    objects:{objects}exec:\n  \
             envTemplates:\n    - {{name: A, template: \"\\x41{{{{ uper 1 }}}}\"}}\n"
        )
    };
    let env = "there is no function uper; did you mean upper?";
    for (objects, place) in [
        (
            "\n      - objectName: a\n        template: |\n          x\n          é{{ uper 1 }}\n",
            "line 9, column 15",
        ),
        (
            " |\n      - objectName: a\n        template: |-\n          x\n          é{{ uper 1 }}\n",
            "line 9, column 15",
        ),
        (
            " |\n      - objectName: a\n        template: >\n          x\n          é{{ uper 1 }}\n",
            "line 9, column 15",
        ),
        ("\n      - {objectName: a, template: 'it''s {{ uper 1 }}'}\n", "line 6, column 45"),
    ] {
        let problems = read(&file(objects)).unwrap_err();
        let found = format!("object \"a\" ({place}): template: {env}");
        assert_eq!(problems[0], found, "{objects}");
        let line = file(objects).lines().count();
        assert_eq!(problems[1], format!("object \"A\" (line {line}, column 35): template: {env}"));
    }
}
