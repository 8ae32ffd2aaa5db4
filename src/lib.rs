//! leasehold: node-local secrets delivery for Kubernetes.
//!
//! Data flows one way through the rooms: edge ([`provider`]), [`spec`], [`policy`], core ([`lifecycle`]),
//! shell ([`volume`]), [`render`], [`projection`]. [`backend`] is what the shell talks to. The core and
//! everything before it is pure; only the shell performs requests, and only [`projection`] writes files.

pub mod admin;
pub mod agent;
pub mod app;
pub mod backend;
pub mod check;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod convert;
pub mod format;
pub mod kubernetes;
pub mod lifecycle;
pub mod metrics;
#[cfg(test)]
#[path = "../tests/support/page.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the test binaries")]
mod page;
pub mod policy;
pub mod projection;
pub mod provider;
pub mod render;
pub mod sandbox;
pub mod secret;
pub mod spec;
pub mod startup;
pub mod telemetry;
pub mod template;
pub mod volume;
