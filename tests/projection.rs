//! The writer against a real kernel: real tmpfs, real mount namespaces, real crashes and real adversaries.
//! Needs root. Each test has mount namespaces of its own and a disk beneath its mounts.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that fails may panic and may say so")]

#[path = "projection/adversary.rs"]
mod adversary;
#[path = "projection/carried.rs"]
mod carried;
#[path = "projection/crash.rs"]
mod crash;
#[path = "projection/driver.rs"]
mod driver;
#[path = "projection/layout.rs"]
mod layout;
#[path = "projection/races.rs"]
mod races;
#[path = "projection/repair.rs"]
mod repair;
#[path = "projection/stage.rs"]
mod stage;
#[path = "projection/watch.rs"]
mod watch;
