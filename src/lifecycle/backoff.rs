//! Waiting between attempts: exponential, jittered, never zero.

use std::time::Duration;

/// A deterministic source of jitter (splitmix64): seeded from the system at start, from the seed in the
/// simulator, so that a failing run replays.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A source that starts at `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in 0..=1000.
    pub fn thousandths(&mut self) -> u32 {
        u32::try_from(self.next_u64() % 1001).unwrap_or(0)
    }

    /// A duration in `[low, high]`, to the millisecond.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_millis()).unwrap_or(u64::MAX);
        low.saturating_add(Duration::from_millis(self.next_u64() % span.saturating_add(1)))
    }

    /// `duration` scaled by a factor in `[low, high]`, both in thousandths.
    pub fn scale(&mut self, duration: Duration, low: u32, high: u32) -> Duration {
        self.between(permille(duration, low), permille(duration, high))
    }
}

/// `duration` times `thousandths` / 1000, saturating.
pub fn permille(duration: Duration, thousandths: u32) -> Duration {
    let millis = duration.as_millis().saturating_mul(u128::from(thousandths)) / 1000;
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// How fast a kind of failure is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Delay after the first failure, before jitter. Never zero.
    pub first: Duration,
    /// Longest delay, before jitter.
    pub cap: Duration,
}

impl Pace {
    /// A pod is waiting to start: quick, the call's own patience bounds it.
    pub const FOREGROUND: Self = Self { first: Duration::from_millis(250), cap: Duration::from_secs(4) };
    /// Upkeep of something that still works: nobody notices a minute.
    pub const BACKGROUND: Self = Self { first: Duration::from_secs(2), cap: Duration::from_secs(60) };
    /// The server said no: asking again helps only after a person acted.
    pub const REFUSED: Self = Self { first: Duration::from_secs(30), cap: Duration::from_secs(300) };
    /// A server that does not answer, probed by one request at a time for the whole node.
    pub const OUTAGE: Self = Self { first: Duration::from_secs(1), cap: Duration::from_secs(45) };
    /// Revocations owed: soon while a pod has just gone, then rarely.
    pub const REVOKE: Self = Self { first: Duration::from_secs(1), cap: Duration::from_secs(120) };
}

/// Counts failures in a row and says how long to wait after each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Failures since the last success.
    pub const fn failures(self) -> u32 {
        self.failures
    }

    /// Notes a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Notes a failure and gives the wait before the next try: between half and the whole of the
    /// exponential step, and not before the server's own `retry_after` (which may be zero, as OpenBao sends
    /// it for sub-second windows: the step is then the floor).
    pub fn next(&mut self, pace: Pace, retry_after: Option<Duration>, jitter: &mut Jitter) -> Duration {
        let step = pace.first.saturating_mul(1 << self.failures.min(16)).min(pace.cap);
        self.failures = self.failures.saturating_add(1);
        let wait = jitter.scale(step, 500, 1000);
        match retry_after {
            // A herd told the same second must not come back in it.
            Some(asked) => wait.max(jitter.scale(asked.min(Duration::from_secs(600)), 1000, 1250)),
            None => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_is_never_shorter_than_half_the_step_nor_than_asked(
            seed: u64, failures in 0_u32..40, asked in proptest::option::of(0_u64..1000),
        ) {
            let mut jitter = Jitter::new(seed);
            for pace in [Pace::FOREGROUND, Pace::BACKGROUND, Pace::REFUSED, Pace::OUTAGE, Pace::REVOKE] {
                let mut backoff = Backoff { failures };
                let asked = asked.map(Duration::from_secs);
                let wait = backoff.next(pace, asked, &mut jitter);
                prop_assert!(wait >= pace.first / 2);
                prop_assert!(wait >= asked.unwrap_or_default().min(Duration::from_secs(600)));
                prop_assert!(wait <= pace.cap.max(Duration::from_secs(750)));
            }
        }
    }
}
