//! Leases: kept alive, replaced before they die, surviving restarts, given back at unmount. The real binary
//! against real OpenBao, real PostgreSQL and real mounts; every mount is unmounted by the driver's rules, so
//! that a busy one fails the test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "leases/audit.rs"]
mod audit;
#[path = "leases/case.rs"]
mod case;
#[path = "leases/certificates.rs"]
mod certificates;
#[path = "leases/churn.rs"]
mod churn;
#[path = "leases/database.rs"]
mod database;
#[path = "leases/memory.rs"]
mod memory;
#[path = "leases/outage.rs"]
mod outage;
#[path = "leases/restart.rs"]
mod restart;
#[path = "leases/sessions.rs"]
mod sessions;
#[path = "leases/storm.rs"]
mod storm;
#[path = "leases/values.rs"]
mod values;
