//! When to renew, replace or check, as one pure function of what the server granted.
//!
//! The answers that carry a lifetime: a lease, a session token, a certificate's notAfter, a static role's
//! rotation. A lifetime counts from when the request was *sent*; the end is near when the server grants less
//! than was granted first, while `renewable` stays true (OpenBao 2.7: 10, 10, 10, 8, 5, 2, gone).

use std::time::Duration;

use crate::{backend::DataLifetime, clock::BootTime, lifecycle::backoff::permille};

/// A granted lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Term {
    /// When the request that was granted it was sent.
    pub since: BootTime,
    /// Life from then.
    pub ttl: Duration,
    /// The longest life the server ever granted for it: less than this means the maximum is near.
    pub full: Duration,
    /// Whether asking prolongs it.
    pub renewable: bool,
    /// Thousandths in 0..=1000, drawn at the grant: spreads a node's renewals.
    pub jitter: u32,
}

impl Term {
    /// A first grant.
    pub const fn new(since: BootTime, ttl: Duration, renewable: bool, jitter: u32) -> Self {
        Self { since, ttl, full: ttl, renewable, jitter }
    }

    /// The same lifetime after a renewal.
    #[must_use]
    pub fn renewed(self, since: BootTime, ttl: Duration, renewable: bool, jitter: u32) -> Self {
        Self { since, ttl, full: self.full.max(ttl), renewable, jitter }
    }

    /// When it ends.
    pub fn ends(self) -> BootTime {
        self.since + self.ttl
    }

    /// Whether the server granted clearly less than before: the maximum is near.
    pub fn shrunk(self) -> bool {
        self.ttl < permille(self.full, 900)
    }
}

/// What to do next about a lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for more life.
    Renew,
    /// Get another one in its place.
    Replace,
    /// Read again and compare.
    Check,
}

/// A step, its time and its reason, for the timers, `ls` and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub step: Step,
    /// Not before.
    pub at: BootTime,
    /// Why, for a person.
    pub why: &'static str,
}

/// The latest moment to replace `term` so that its successor overlaps it: a tenth of its life before the
/// end, at least `overlap` before where the life allows, and never before half of it is used.
pub fn replace_by(term: Term, overlap: Duration) -> BootTime {
    let margin = permille(term.ttl, 100).max(overlap).min(term.ttl / 2);
    term.since + term.ttl.saturating_sub(margin)
}

/// Decides for a lease or a session. `None`: it lives for ever (a TTL of zero, a root token).
pub fn decide(term: Term, overlap: Duration) -> Option<Decision> {
    if term.ttl.is_zero() {
        return None;
    }
    let limit = replace_by(term, overlap);
    // An outage of a third of its life is survived, with a little to spare for finding its end; spread.
    let before_last_third = term.since + permille(term.ttl, 600 + term.jitter * 50 / 1000);
    Some(if !term.renewable {
        Decision { step: Step::Replace, at: limit.min(before_last_third), why: "cannot be renewed" }
    } else if term.shrunk() {
        let spread = permille(term.ttl, 300 + term.jitter * 150 / 1000);
        Decision { step: Step::Replace, at: limit.min(term.since + spread), why: "its maximum TTL is near" }
    } else {
        Decision {
            step: Step::Renew,
            at: limit.min(before_last_third),
            why: "before the last third of its TTL",
        }
    })
}

/// Decides for an answer without a lease whose data carry a lifetime.
pub fn decide_data(lifetime: DataLifetime, since: BootTime, overlap: Duration, jitter: u32) -> Decision {
    match lifetime {
        // The server may answer ttl 0 with the old password for some seconds: look again each second.
        DataLifetime::Rotates { ttl } => Decision {
            step: Step::Check,
            at: since + ttl + Duration::from_millis(500 + u64::from(jitter) / 2),
            why: "the static role rotates",
        },
        DataLifetime::Expires { ttl } => {
            let term = Term::new(since, ttl, false, jitter);
            decide(term, overlap).map_or(
                // Already over: not sooner than a minute, or a clock that is wrong would mint in a loop.
                Decision { step: Step::Replace, at: since + Duration::from_secs(60), why: "expired" },
                |decision| Decision { why: "notAfter", ..decision },
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(ttl: u64, full: u64, renewable: bool) -> Term {
        Term {
            since: BootTime::from_millis(1_000_000),
            ttl: Duration::from_secs(ttl),
            full: Duration::from_secs(full),
            renewable,
            jitter: 500,
        }
    }

    #[test]
    fn each_kind_of_lifetime_has_its_rule() {
        let overlap = Duration::from_secs(30);
        for (name, term, step, after) in [
            (
                "a lease in its prime is renewed before the last third",
                term(3600, 3600, true),
                Step::Renew,
                2250,
            ),
            ("a lease that cannot be renewed is replaced", term(3600, 3600, false), Step::Replace, 2250),
            ("a shrunk lease is replaced, early in what is left", term(2000, 3600, true), Step::Replace, 750),
            ("a small loss to latency is no shrink", term(3500, 3600, true), Step::Renew, 2187),
            ("the overlap bounds a short life", term(60, 60, false), Step::Replace, 30),
            ("a very short life still gets half of it", term(8, 10, true), Step::Replace, 3),
        ] {
            let decision = decide(term, overlap).expect("a finite life");
            assert_eq!(decision.step, step, "{name}");
            assert_eq!(decision.at.since(term.since).as_secs(), after, "{name}");
        }
        assert_eq!(decide(term(0, 0, false), overlap), None, "a root token lives for ever");
    }

    #[test]
    fn data_lifetimes_have_theirs() {
        let since = BootTime::from_millis(0);
        let at = |lifetime| decide_data(lifetime, since, Duration::from_secs(30), 0);
        let zero = at(DataLifetime::Rotates { ttl: Duration::ZERO });
        assert_eq!((zero.step, zero.at.as_millis()), (Step::Check, 500));
        let certificate = at(DataLifetime::Expires { ttl: Duration::from_secs(86_400) });
        assert_eq!((certificate.step, certificate.at.as_millis() / 1000), (Step::Replace, 51_840));
        let expired = at(DataLifetime::Expires { ttl: Duration::ZERO });
        assert_eq!(
            (expired.step, expired.at.as_millis()),
            (Step::Replace, 60_000),
            "no loop on a wrong clock"
        );
    }

    proptest::proptest! {
        #[test]
        fn fuzz_lease_math(since: u64, ttl: u64, full: u64, renewable: bool, jitter in 0_u32..=1000, overlap: u64) {
            let term = Term {
                since: BootTime::from_millis(since),
                ttl: Duration::from_millis(ttl),
                full: Duration::from_millis(full),
                renewable,
                jitter,
            };
            if let Some(decision) = decide(term, Duration::from_millis(overlap)) {
                proptest::prop_assert!(decision.at >= term.since);
                proptest::prop_assert!(decision.at <= term.ends());
            }
        }
    }
}
