//! The profile for the container is the process's own list, and what starts a container.

use std::{collections::BTreeSet, fs};

use leasehold::sandbox::seccomp::{
    ALLOWED, ALLOWED_HERE, BEFORE, BEFORE_HERE, Call, FORBIDDEN, FORBIDDEN_HERE,
};
use serde_json::{Value, json};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/seccomp/leasehold.json");

/// In the form of the OCI's runtime specification, which containerd and CRI-O read.
fn profile() -> Value {
    let before: BTreeSet<_> = [BEFORE, BEFORE_HERE].into_iter().flatten().map(Call::name).collect();
    let (mut always, mut rules) = (before.clone(), Vec::new());
    for call in [ALLOWED, ALLOWED_HERE].into_iter().flatten() {
        if call.conditions.is_empty() {
            always.insert(call.name());
        } else if !before.contains(call.name()) {
            rules.extend(call.conditions.iter().map(|condition| {
                json!({
                    "names": [call.name()],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{
                        "index": condition.argument,
                        "value": condition.mask,
                        "valueTwo": condition.value,
                        "op": "SCMP_CMP_MASKED_EQ",
                    }],
                })
            }));
        }
    }
    let forbidden: BTreeSet<_> = [FORBIDDEN, FORBIDDEN_HERE]
        .into_iter()
        .flatten()
        .map(Call::name)
        .filter(|name| !always.contains(name))
        .collect();
    rules.insert(0, json!({ "names": always, "action": "SCMP_ACT_ALLOW" }));
    rules.push(json!({ "names": forbidden, "action": "SCMP_ACT_KILL_PROCESS" }));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": rules,
    })
}

/// `LEASEHOLD_WRITE=1 cargo test --test sandbox profile` writes it.
#[test]
fn the_containers_profile_is_the_process_own() {
    let expected = profile();
    if std::env::var_os("LEASEHOLD_WRITE").is_some() {
        let text = serde_json::to_string_pretty(&expected).unwrap();
        fs::write(FILE, text + "\n").unwrap();
    }
    let found: Value = serde_json::from_slice(&fs::read(FILE).unwrap()).unwrap();
    assert_eq!(found, expected, "deploy/seccomp/leasehold.json is not of this list");
    let kills = &expected["syscalls"].as_array().unwrap().last().unwrap()["names"];
    for name in ["mount", "ptrace", "bpf", "unshare", "keyctl"] {
        assert!(kills.as_array().unwrap().contains(&json!(name)), "{name}");
    }
}
