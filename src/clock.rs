//! The only reader of clocks.
//!
//! Lifecycle time is CLOCK_BOOTTIME: it counts suspend and is not moved by NTP or an operator. Wall
//! time is used only for what the outside world dates by it: X.509, JWT and KV times.

use std::{
    ops::Add,
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};

/// Milliseconds of CLOCK_BOOTTIME. Comparable within one boot only (see [`boot_id`]).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct BootTime(u64);

impl BootTime {
    /// A time from milliseconds since boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since boot.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Time since `earlier`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Time until `later`; zero when it has passed.
    pub const fn until(self, later: Self) -> Duration {
        later.since(self)
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Now, on the boot clock.
pub fn boot_now() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .expect("Linux has CLOCK_BOOTTIME since 2.6.39, and the id is a constant");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec() / 1_000_000).unwrap_or(0);
    BootTime(seconds.saturating_mul(1000).saturating_add(millis))
}

/// Now, on the wall.
pub fn wall_now() -> SystemTime {
    SystemTime::now()
}

/// The kernel's id of this boot; boot times of another boot mean nothing.
///
/// # Errors
/// When `/proc` is not readable.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
