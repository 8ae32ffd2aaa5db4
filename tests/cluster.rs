//! Running on a cluster: what leasehold asks of the API server where an option has it do so, and what it tells
//! whom about itself. The binary, OpenBao and the mounts are real; the API server is emulated.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "cluster/api.rs"]
mod api;
#[path = "cluster/doctor.rs"]
mod doctor;
#[path = "cluster/health.rs"]
mod health;
#[path = "cluster/troubleshooting.rs"]
mod troubleshooting;
