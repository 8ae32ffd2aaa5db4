#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::{
    check,
    convert::{Part, Severity, convert, vault_agent::tests::load},
    policy::{Baseline, Policy},
};

/// The annotations of the injector's documentation ("Secret injection", "Agent sidecar injector: examples").
const DEPLOYMENT: &str = include_str!("../../../tests/convert/injector.yaml");
const EXPECTED: &str = include_str!("../../../tests/convert/injector-converted.yaml");

fn joined(converted: &crate::convert::Converted) -> String {
    let texts: Vec<&str> = converted.documents.iter().map(|document| document.text.as_str()).collect();
    texts.join("---\n")
}

/// The result of a conversion is good for the program itself, and its policy admits its classes.
pub(in crate::convert) fn assert_usable(converted: &crate::convert::Converted, service_account: &str) {
    let all = joined(converted);
    let policy = converted.documents.iter().find(|document| document.part == Part::Policy).unwrap();
    let own = vec![check::UNKNOWN_ADDRESS.to_owned()];
    let policy = Policy::from_yaml(&policy.text, Baseline { addresses: own, ..Baseline::default() })
        .unwrap_or_else(|error| panic!("{error:?}\n{}", policy.text));
    let judge = check::Judge {
        policy: Some(policy),
        service_account: service_account.into(),
        ..check::Judge::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.yaml");
    std::fs::write(&file, &all).unwrap();
    let report = check::check_files(&[file], &judge);
    let mut out = Vec::new();
    report.write(&mut out).unwrap();
    assert!(!report.has_errors() && report.classes > 0, "{}\n{all}", String::from_utf8(out).unwrap());
}

#[test]
fn a_deployment_becomes_a_class_a_patch_and_a_rule() {
    let converted = convert(&[("injector.yaml".into(), DEPLOYMENT.into())], "default");
    assert_eq!(joined(&converted), EXPECTED, "{}", joined(&converted));
    assert!(!converted.is_incomplete());
    assert_usable(&converted, "web");
    // Whatever the order of files, and as often as one likes.
    assert_eq!(convert(&[("injector.yaml".into(), DEPLOYMENT.into())], "default"), converted);
}

#[test]
fn the_downward_file_becomes_the_agents() {
    let file = "kubernetes.io/config.seen=\"2026-01-01\"\nvault.hashicorp.com/agent-inject=\"true\"\n\
                vault.hashicorp.com/agent-inject-secret-DB-Creds=\"database/creds/app\"\n\
                vault.hashicorp.com/agent-inject-template-DB-Creds=\"{{- with secret \\\"database/creds/app\\\" -}}\\n\
                \\u00e9 {{ .Data.username }}\\n{{- end }}\\n\"\nvault.hashicorp.com/agent-inject-secret-cfg=\"secret/data/cfg\"\n\
                vault.hashicorp.com/agent-inject-perms-cfg=\"0400\"\nvault.hashicorp.com/agent-inject-file-cfg=\"sub/cfg.txt\"\n\
                vault.hashicorp.com/secret-volume-path-cfg=\"/etc/cfg/\"\nvault.hashicorp.com/agent-inject-command-cfg=\"kill -HUP 1\"\n\
                vault.hashicorp.com/role=\"app\"\nvault.hashicorp.com/service=\"https://vault:8200\"\n\
                vault.hashicorp.com/agent-pre-populate-only=\"true\"\nvault.hashicorp.com/agent-revoke-on-shutdown=\"true\"\n\
                vault.hashicorp.com/agent-revoke-grace=\"5\"\n";
    let translation = translate(file).unwrap().complete().unwrap();
    assert_eq!(
        translation.yaml,
        "vaultAddress: https://vault:8200\nroleName: app\nauth:\n  method: kubernetes\nexitAfterRender: true\nfolders:\n  \
         - path: /etc/cfg\n    fileMode: 0644\n    objects:\n      - objectName: sub/cfg.txt\n        template: |-\n          \
         {{ with secret \"secret/data/cfg\" }}{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}\n          {{ end }}{{ end }}\n        \
         filePermission: 0400\n        onChange:\n          command: [sh, \"-c\", \"kill -HUP 1\"]\n  - path: \
               /vault/secrets\n    fileMode: 0644\n    objects:\n      - objectName: db-creds\n        template: |\n          {{- with \
               secret \"database/creds/app\" -}}\n          é {{ .Data.username }}\n          {{- end }}\nrevokeOnShutdown: \
               true\nrevokeGrace: \"5s\"\n",
        "{}",
        translation.yaml
    );
    let file = load(&translation.yaml);
    assert_eq!(file.folders.len(), 2);
    for (text, line) in
        [("a", 1), ("a=\"x\"\nb=\"\\q\"", 2), ("a=\"x\"y\"", 1), ("a=\"\\xff\"", 1), ("a=\"\\u12\"", 1)]
    {
        let ConvertError::Syntax { line: found, message } = translate(text).unwrap_err() else { panic!() };
        assert_eq!((found, message.contains("as the kubelet writes")), (Some(line), true));
    }
}

/// Every row of the table is walked, both ways: what it says is what happens.
#[test]
fn every_annotation_has_the_fate_that_its_row_says() {
    let base = [("agent-inject", "true"), ("agent-inject-secret-a", "secret/data/a"), ("role", "app")];
    let given = |all: &[(&str, &str)]| -> Vec<Given> {
        all.iter()
            .enumerate()
            .map(|(line, (name, value))| ((*name).into(), (*value).into(), line as u64 + 1))
            .collect()
    };
    let run = |all: &[(&str, &str)], target: Target| {
        let mut notes = Notes::default();
        let text = match target {
            Target::Agent => agent_file::text(read(&given(all), target, &mut notes)),
            Target::Class => format!("{:?}", classes(&given(all), &mut notes)),
        };
        (text, notes.into_sorted())
    };
    for row in ANNOTATIONS {
        let name = match row.name {
            "agent-inject-secret-<n>" => "agent-inject-secret-b".to_owned(),
            "auth-config-<k>" => "auth-config-role".to_owned(),
            other => other.replace("<n>", "a").replace("<k>", "enable"),
        };
        let value = match row.name {
            "auth-type" => "jwt",
            "agent-inject-perms-<n>" => "0400",
            "agent-inject-default-template" => "json",
            "agent-revoke-grace" => "7",
            "template-static-secret-render-interval" => "7m",
            "preserve-secret-case"
            | "preserve-secret-case-<n>"
            | "tls-skip-verify"
            | "agent-pre-populate-only"
            | "agent-inject-token"
            | "error-on-missing-key-<n>"
            | "agent-revoke-on-shutdown" => "true",
            _ => "/own/value",
        };
        let mut with: Vec<(&str, &str)> = base.iter().copied().filter(|(known, _)| *known != name).collect();
        if row.name.starts_with("preserve-secret-case") {
            with[1] = ("agent-inject-secret-A", "secret/data/a");
        }
        let name =
            if row.name == "preserve-secret-case-<n>" { "preserve-secret-case-A".to_owned() } else { name };
        let without = with.clone();
        with.push((&name, value));
        for target in [Target::Class, Target::Agent] {
            let field = if target == Target::Class { row.class } else { row.agent };
            let ((with, notes), (without, _)) = (run(&with, target), run(&without, target));
            let told = notes.iter().find(|note| note.message.starts_with(&format!("{PREFIX}{name}: ")));
            match field.fate {
                None => {
                    assert_eq!(told, None);
                    let elsewhere = matches!(
                        row.name,
                        "agent-inject" | "error-on-missing-key-<n>" | "agent-inject-containers"
                    );
                    // A class logs in alike with both methods.
                    let alike = target == Target::Class && row.name == "auth-type";
                    assert!(
                        with != without || elsewhere || alike,
                        "{target:?} {name} changes nothing: {with}"
                    );
                }
                Some(severity) => {
                    let told =
                        told.unwrap_or_else(|| panic!("{target:?} nothing is told of {name}: {notes:?}"));
                    assert_eq!((told.severity, told.line.is_some()), (severity, true), "{name}");
                }
            }
        }
    }
    let (_, notes) = run(&[("agent-inject-secrte-a", "x"), ("role", "a")], Target::Agent);
    assert!(notes.iter().any(|note| note.message.contains("no such annotation")), "{notes:?}");
}

#[test]
fn what_a_node_cannot_do_is_refused_for_the_class_alone() {
    let manifest = DEPLOYMENT.replace(
        "vault.hashicorp.com/role: \"web\"",
        "vault.hashicorp.com/role: \"web\"\n        vault.hashicorp.com/agent-inject-command-database-config: \"x\"\n        \
         vault.hashicorp.com/auth-type: approle\n        vault.hashicorp.com/agent-inject-template-file-tls: /t/tls.tmpl",
    );
    let converted = convert(&[("m.yaml".into(), manifest)], "default");
    let refused: Vec<&str> = converted
        .notes
        .iter()
        .filter(|(_, note)| note.severity == Severity::Refused)
        .map(|(_, note)| note.message.split(':').next().unwrap())
        .collect();
    assert_eq!(
        refused,
        [
            "vault.hashicorp.com/auth-type",
            "vault.hashicorp.com/agent-inject-command-database-config",
            "vault.hashicorp.com/agent-inject-template-file-tls"
        ]
    );
    let class = &converted.documents[0].text;
    assert!(!class.contains("onChange") && !class.contains("templateFile"), "{class}");
    assert!(class.contains("# refused: vault.hashicorp.com/agent-inject-command"), "{class}");
}
