//! How often a credential may be minted: a broken renewal must never become a stream of new database users.

use std::time::Duration;

use crate::clock::BootTime;

/// At most this many mints of one request within the life of one credential.
const MINTS: usize = 2;
/// The window is never shorter, so that a TTL of seconds cannot make a loop.
const FLOOR: Duration = Duration::from_secs(10);

/// The mints of one request, newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MintBudget {
    mints: Vec<BootTime>,
}

impl MintBudget {
    /// Notes a mint.
    pub fn spend(&mut self, now: BootTime) {
        if self.mints.len() == MINTS {
            self.mints.remove(0);
        }
        self.mints.push(now);
    }

    /// When the next mint is allowed, given the life of one credential.
    pub fn next(&self, ttl: Duration) -> BootTime {
        match self.mints.first() {
            Some(oldest) if self.mints.len() == MINTS => *oldest + ttl.max(FLOOR),
            _ => BootTime::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_window_of_one_ttl_holds_a_third_mint() {
        let mut budget = MintBudget::default();
        let ttl = Duration::from_secs(60);
        let mut now = BootTime::from_millis(0);
        let mut mints: Vec<BootTime> = Vec::new();
        for _ in 0..10_000 {
            if budget.next(ttl) <= now {
                budget.spend(now);
                mints.push(now);
            }
            now = now + Duration::from_millis(137);
        }
        assert!(mints.len() > 20);
        assert!(mints.windows(3).all(|window| window[2].since(window[0]) >= ttl));
    }
}
