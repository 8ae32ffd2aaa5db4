//! The in-pod agent: the real binary as a restricted container, against real OpenBao and PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "agent/auth.rs"]
mod auth;
#[path = "agent/compare.rs"]
mod compare;
#[path = "agent/exec.rs"]
mod exec;
#[path = "agent/injector.rs"]
mod injector;
#[path = "agent/life.rs"]
mod life;
#[path = "agent/pod.rs"]
mod pod;
#[path = "agent/reload.rs"]
mod reload;
#[path = "agent/told.rs"]
mod told;
