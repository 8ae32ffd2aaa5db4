//! `leasehold convert` from outside: streams, exit statuses, what is chosen.

use std::{fs, io::Write as _, process::Stdio};

use super::{leasehold, support::temp_dir, told};

const INJECTED: &str = include_str!("../convert/injector.yaml");
const AGENT: &str = include_str!("../convert/vault-agent.hcl");

#[test]
fn folders_and_standard_input_are_read_and_parts_chosen() {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/web.yaml"), INJECTED).unwrap();
    fs::write(dir.path().join("notes.txt"), "no manifest").unwrap();
    let path = dir.path().to_str().unwrap();
    let (code, all, errors) = told(leasehold(&["convert", path]).output().unwrap());
    assert_eq!(code, 0, "{errors}");
    assert!(
        errors
            .ends_with("4 document(s) made; 0 refused, 2 changed, 1 ignored; 0 other document(s) skipped\n"),
        "{errors}"
    );
    let (_, again, _) = told(leasehold(&["convert", path]).output().unwrap());
    assert_eq!(all, again);
    for (part, kind, count) in
        [("class", "kind: SecretProviderClass", 2), ("patch", "kind: Deployment", 1), ("policy", "rules:", 1)]
    {
        let (_, chosen, _) = told(leasehold(&["convert", "-o", part, path]).output().unwrap());
        let documents: Vec<&str> = chosen.split("---\n").collect();
        assert_eq!(documents.len(), count);
        assert!(documents.iter().all(|document| document.contains(kind)), "{chosen}");
    }
    let mut child = leasehold(&["convert", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(INJECTED.as_bytes()).unwrap();
    let (code, piped, _) = told(child.wait_with_output().unwrap());
    let web = format!("{path}/sub/web.yaml");
    assert_eq!((code, piped), (0, all.replace(&web, "-")));
}

#[test]
fn what_is_refused_is_told_on_its_line_and_ends_with_one() {
    let dir = temp_dir();
    let file = dir.path().join("web.yaml");
    fs::write(&file, INJECTED.replace("agent-inject-status: update", "agent-inject-token: \"true\""))
        .unwrap();
    let file = file.to_str().unwrap();
    let (code, out, errors) = told(leasehold(&["convert", file]).output().unwrap());
    assert_eq!(code, 1);
    let refused =
        format!("{file}:14: refused: vault.hashicorp.com/agent-inject-token: a session's token never leaves");
    assert!(
        errors.contains(&refused) && out.contains("# refused: vault.hashicorp.com/agent-inject-token"),
        "{errors}{out}"
    );
    let (code, _, errors) = told(leasehold(&["convert", "/does/not/exist"]).output().unwrap());
    assert!(code == 1 && errors.starts_with("/does/not/exist: refused: cannot read it"), "{errors}");
}

#[test]
fn an_agent_is_made_of_each_of_its_descriptions() {
    let dir = temp_dir();
    let run = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        told(leasehold(&["convert", "--to", "agent", path.to_str().unwrap()]).output().unwrap())
    };
    let (code, out, errors) = run("agent.hcl", AGENT);
    assert_eq!(code, 0, "{errors}");
    assert!(
        out.starts_with("# ignored: pid_file: ")
            && out.ends_with(include_str!("../convert/vault-agent.yaml")),
        "{out}"
    );
    let (code, out, errors) = run("web.yaml", INJECTED);
    assert!(code == 0 && out.contains("folders:\n  - path: /etc/api\n"), "{errors}{out}");
    let annotations =
        "vault.hashicorp.com/role=\"app\"\nvault.hashicorp.com/agent-inject-secret-a=\"secret/data/a\"\n";
    let (code, out, errors) = run("annotations", annotations);
    assert!(code == 0 && out.contains("- objectName: a\n"), "{errors}{out}");
    let (code, out, errors) = run("bad.hcl", "a {\n  b = c\n}\n");
    assert!(
        code == 1 && out.is_empty() && errors.contains("bad.hcl:2: refused: here is a name without quotes"),
        "{errors}"
    );
}
