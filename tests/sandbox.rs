//! The walls of the provider's process and the agent's, seen from inside: what a program that was taken over would try.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "sandbox/dumps.rs"]
mod dumps;
#[path = "sandbox/escape.rs"]
mod escape;
#[path = "sandbox/inject.rs"]
mod inject;
#[path = "sandbox/profile.rs"]
mod profile;
#[path = "sandbox/serving.rs"]
mod serving;
