//! leasehold end to end: the real binary against a real OpenBao, in real mounts, called as the driver calls.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "e2e/canary.rs"]
mod canary;
#[path = "e2e/convert.rs"]
mod convert;
#[path = "e2e/documents.rs"]
mod documents;
#[path = "e2e/faults.rs"]
mod faults;
#[path = "e2e/generate.rs"]
mod generate;
#[path = "e2e/modes.rs"]
mod modes;
#[path = "e2e/mount.rs"]
mod mount;
#[path = "e2e/objects.rs"]
mod objects;
#[path = "e2e/reading.rs"]
mod reading;
#[path = "e2e/refusals.rs"]
mod refusals;
#[path = "e2e/selftest.rs"]
mod selftest;

/// Permission bits, with the sticky bit and its kin.
fn mode(metadata: &std::fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777
}
