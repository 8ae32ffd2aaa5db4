//! The mount table: parsing /proc/self/mountinfo, and waking when it changes.
