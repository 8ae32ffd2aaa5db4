//! leasehold end to end: the real binary against a real OpenBao, in real mounts, called as the driver calls.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "e2e/selftest.rs"]
mod selftest;
