//! docs/troubleshooting.md as the tests read it: each line of its `text` blocks is a message of the program, in
//! which `…` stands for what the program fills in.

use std::{fs, path::Path};

/// A message that none of the scenarios of tests/cluster/troubleshooting.rs brings about, because it takes a clock that
/// leaps or a defect: the line of the page, and the test that does.
pub const SILENT: (&str, &str) = (
    "no Mount for …s: a driver-written volume shows no unmount, so its session is no longer renewed",
    "src/lifecycle/mounting/tests.rs",
);
/// The same.
pub const PANIC: (&str, &str) = ("panic: please report this place", "tests/wire/codes.rs");
/// The same.
pub const FAILED_INSIDE: (&str, &str) =
    ("leasehold failed inside; its log says where. Other volumes are not affected", "tests/wire/codes.rs");

/// All of them.
pub const ELSEWHERE: [(&str, &str); 3] = [SILENT, PANIC, FAILED_INSIDE];

/// The messages of the page, each with the section that it is in.
pub fn messages() -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubleshooting.md");
    let page = fs::read_to_string(page).expect("the page");
    let (mut messages, mut section, mut inside) = (Vec::new(), String::new(), false);
    for line in page.lines() {
        match line {
            "```text" => inside = true,
            "```" => inside = false,
            line if inside => messages.push((section.clone(), line.to_owned())),
            line => {
                if let Some(title) = line.strip_prefix("## ") {
                    title.clone_into(&mut section);
                }
            }
        }
    }
    messages
}

/// The sections of the page.
pub fn sections() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubleshooting.md");
    let page = fs::read_to_string(page).expect("the page");
    page.lines().filter_map(|line| Some(line.strip_prefix("## ")?.to_owned())).collect()
}

/// Whether a line of `heard` has the parts of `message` between its placeholders, in order.
pub fn said(heard: &str, message: &str) -> bool {
    let parts: Vec<&str> = message.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
    heard.lines().any(|line| {
        let mut rest = line;
        parts.iter().all(|part| match rest.find(part) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    })
}

/// The test that calls this brought `message` about, and the page has it.
#[track_caller]
pub fn brought_about((message, _): (&str, &str), heard: &str) {
    assert!(said(heard, message), "{message:?} was not said: {heard}");
    assert!(
        messages().iter().any(|(_, known)| known == message),
        "docs/troubleshooting.md has no line {message:?}"
    );
}
