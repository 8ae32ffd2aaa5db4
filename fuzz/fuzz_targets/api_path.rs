//! What is accepted is canonical, and is its own canonical form.
#![no_main]

use leasehold::spec::ApiPath;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(path) = ApiPath::parse(text) {
        let path = path.as_str();
        assert!(text.ends_with(path), "only a prefix is stripped");
        assert!(path.split('/').all(|segment| !matches!(segment, "" | "." | "..")));
        assert!(path.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"%#?\\".contains(&byte)));
        assert_eq!(ApiPath::parse_mount(path).unwrap().as_str(), path);
    }
});
