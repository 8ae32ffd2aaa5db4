//! Whether what is in memory may reach a disk by swapping.
//!
//! A process without capabilities can lock no more than the container's limit, a few megabytes, so what
//! protects its memory is its cgroup. Pages of a tmpfs count for who wrote them: for the volumes, that is us.

use std::fs;

const SWAPS: &str = "/proc/swaps";
/// Of the container's own cgroup, version 2.
const LIMIT: &str = "/sys/fs/cgroup/memory.swap.max";

/// What is exposed and what to do; `None` when nothing of this process can be swapped out.
pub(crate) fn exposure() -> Option<String> {
    let swaps = fs::read_to_string(SWAPS).unwrap_or_default();
    explain(&swaps, fs::read_to_string(LIMIT).ok().as_deref())
}

fn explain(swaps: &str, limit: Option<&str>) -> Option<String> {
    let areas: Vec<_> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() || limit.is_some_and(|limit| limit.trim() == "0") {
        return None;
    }
    Some(format!(
        "the node swaps to {} and may swap this container out, tokens and the volumes' files with it: leave the \
         kubelet's memorySwap.swapBehavior at NoSwap, or give the container a memory request equal to its limit, or \
         encrypt the swap area",
        areas.join(", ")
    ))
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
                explain(&some, limit).is_some_and(|reason| reason.contains("to /dev/sda2 and")),
                "{limit:?}"
            );
        }
    }
}
