//! The Vault client against servers that lie, stall, flood, redirect and impersonate.
#![allow(clippy::unwrap_used, reason = "a broken stub fails the test")]

#[path = "hostile_vault/answers.rs"]
mod answers;
#[path = "hostile_vault/canary.rs"]
mod canary;
#[path = "hostile_vault/files.rs"]
mod files;
#[path = "hostile_vault/generate.rs"]
mod generate;
#[path = "hostile_vault/ssrf.rs"]
mod ssrf;
#[path = "hostile_vault/stub.rs"]
mod stub;
#[path = "hostile_vault/tls.rs"]
mod tls;
