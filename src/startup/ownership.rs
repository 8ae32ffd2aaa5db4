//! Whether this process may give files to other users.

use std::fs;

/// CAP_CHOWN of capabilities(7).
const CAP_CHOWN: u32 = 0;

/// Whether the capability CHOWN is in effect; `None` when it cannot be read.
pub(crate) fn may_chown() -> Option<bool> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(effective.trim(), 16).ok()? >> CAP_CHOWN & 1 == 1)
}
