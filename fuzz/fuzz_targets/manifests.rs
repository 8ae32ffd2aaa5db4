//! Files of manifests for the offline check: every line it names is in the file.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let report = leasehold::check::check_texts(&[("m".to_owned(), text.to_owned())]);
    // A carriage return alone ends a line of YAML too.
    let lines = text.matches(['\n', '\r']).count() as u64;
    assert!(report.findings.iter().all(|finding| finding.line >= 1 && finding.line <= lines + 2));
});
