//! `fuzz_object_name`: no file's path leaves the volume or takes a name of the atomic writer's.
#![no_main]

use std::path::{Component, Path};

use leasehold::spec::ObjectPath;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(path) = ObjectPath::parse(text) {
        assert_eq!(path.as_str(), text, "accepted as it is or not at all");
        assert!(Path::new(text).components().all(|part| matches!(part, Component::Normal(_))));
        assert!(!text.starts_with("..") && !text.contains('\0'));
    }
});
