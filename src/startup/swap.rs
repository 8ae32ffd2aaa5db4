//! Whether what is in memory may reach a disk by swapping.
//!
//! A process without capabilities can lock no more than the container's limit, a few megabytes, so what
//! protects its memory is its cgroup. Pages of a tmpfs count for who wrote them: for the volumes, that is us.

use std::{fmt, fs};

const SWAPS: &str = "/proc/swaps";
/// Of the container's own cgroup, version 2.
const LIMIT: &str = "/sys/fs/cgroup/memory.swap.max";

/// That pages of this process may be swapped out, and to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exposure(String);

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let areas = &self.0;
        write!(
            f,
            "the node swaps to {areas} and may swap this container out, tokens and the volumes' files with it"
        )
    }
}

impl Exposure {
    /// What is exposed, and what to do.
    pub(crate) fn advice(&self) -> String {
        format!(
            "{self}: leave the kubelet's memorySwap.swapBehavior at NoSwap, or give the container a memory request equal \
             to its limit; where the swap area is encrypted or in memory, say so with --allow-swap"
        )
    }
}

/// What is exposed; `None` when nothing of this process can be swapped out.
pub(crate) fn exposure() -> Option<Exposure> {
    let swaps = fs::read_to_string(SWAPS).unwrap_or_default();
    explain(&swaps, fs::read_to_string(LIMIT).ok().as_deref())
}

fn explain(swaps: &str, limit: Option<&str>) -> Option<Exposure> {
    let areas: Vec<_> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() || limit.is_some_and(|limit| limit.trim() == "0") {
        return None;
    }
    Some(Exposure(areas.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_counts_where_the_cgroup_may_use_it() {
        let none = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let some = format!("{none}/dev/sda2                               partition\t1\t0\t-2\n");
        assert_eq!(explain("", None), None);
        assert_eq!(explain(none, Some("max\n")), None);
        assert_eq!(explain(&some, Some("0\n")), None);
        for limit in [None, Some("max\n"), Some("4096\n")] {
            assert!(
                explain(&some, limit).is_some_and(|it| it.to_string().contains("to /dev/sda2 and")),
                "{limit:?}"
            );
        }
    }
}
