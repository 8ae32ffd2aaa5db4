//! System calls, by two filters that the kernel asks both (seccomp(2)), on every thread.
//!
//! What only a program that was taken over would call ends the process: it dies by SIGSYS, the container's
//! status is 159, and the kernel's log names the call. Everything else that is not on the list of what we
//! need answers ENOSYS, as an older kernel would: libraries know how to do without a call, and a call that is
//! missed in earnest shows as an error in the log. Killing for those too would let one kernel or C library
//! that goes another way take the node's secrets down.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Outcome;

/// What a process is for, and so what it calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The node's provider.
    #[default]
    Provider,
    /// The in-pod agent, which may signal processes of its pod and starts none.
    Agent,
    /// The in-pod agent with processes that it starts. They inherit its filter, so it has room for them: what no
    /// application of a restricted pod does answers EPERM, as a container runtime's own profile would.
    Supervisor,
}

/// A call that may be made, if any one of the conditions holds, or always when there is none.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// As the C library names it, with `SYS_` before it.
    symbol: &'static str,
    /// On this machine.
    number: i64,
    /// On its arguments.
    pub conditions: &'static [Condition],
}

impl Call {
    /// The call's name.
    pub fn name(&self) -> &'static str {
        self.symbol.trim_start_matches("SYS_")
    }

    /// The call's number on this machine.
    pub const fn number(&self) -> i64 {
        self.number
    }
}

/// The bits of one argument that `mask` selects are `value`.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// The bits looked at.
    pub mask: u64,
    /// What they have to be.
    pub value: u64,
}

const fn equals(argument: u8, value: u64) -> Condition {
    Condition { argument, mask: u64::MAX, value }
}

// The kernel takes these as 32 bits: what stands above is not looked at.
const fn int(argument: u8, value: u32) -> Condition {
    Condition { argument, mask: u32::MAX as u64, value: value as u64 }
}

macro_rules! calls {
    ($($symbol:ident $(if $conditions:expr)?),* $(,)?) => {
        &[$(Call {
            symbol: stringify!($symbol),
            number: libc::$symbol,
            conditions: { let _none: &'static [Condition] = &[]; $(let _none = $conditions;)? _none },
        }),*]
    };
}

const NOT_EXECUTABLE: &[Condition] = &[Condition { argument: 2, mask: libc::PROT_EXEC as u64, value: 0 }];
const THREAD: &[Condition] =
    &[Condition { argument: 0, mask: libc::CLONE_THREAD as u64, value: libc::CLONE_THREAD as u64 }];
const DOMAINS: &[Condition] = &[
    int(0, libc::AF_UNIX as u32),
    int(0, libc::AF_INET as u32),
    int(0, libc::AF_INET6 as u32),
    // Looking up a name asks which addresses the machine has.
    int(0, libc::AF_NETLINK as u32),
];
const REQUESTS: &[Condition] =
    &[int(1, libc::FIONBIO as u32), int(1, libc::FIONREAD as u32), int(1, libc::TCGETS as u32)];

/// What the process needs while it serves: seen with strace under the tests, and what the C library does for
/// them where the kernel or the machine is another one. `clone3` is left out, because a filter cannot see its
/// flags: the C library falls back to `clone`.
pub const ALLOWED: &[Call] = calls![
    // Files.
    SYS_close, SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fcntl, SYS_flock, SYS_fstat,
    SYS_fstatfs, SYS_getdents64, SYS_ioctl if REQUESTS, SYS_lseek, SYS_mkdirat,
    SYS_newfstatat, SYS_openat, SYS_openat2, SYS_pread64, SYS_read, SYS_readlinkat, SYS_readv, SYS_renameat,
    SYS_statfs, SYS_statx, SYS_symlinkat, SYS_unlinkat, SYS_utimensat, SYS_write, SYS_writev,
    // Connections.
    SYS_accept4, SYS_bind, SYS_connect, SYS_getpeername, SYS_getsockname, SYS_getsockopt, SYS_listen,
    SYS_recvfrom, SYS_recvmsg, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_setsockopt, SYS_shutdown,
    SYS_socket if DOMAINS, SYS_socketpair if DOMAINS,
    // Waiting.
    SYS_clock_nanosleep, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_eventfd2, SYS_futex,
    SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_ppoll, SYS_restart_syscall,
    SYS_sched_yield,
    // Memory.
    SYS_brk, SYS_madvise, SYS_mmap if NOT_EXECUTABLE, SYS_mprotect if NOT_EXECUTABLE, SYS_mremap, SYS_munmap,
    // Threads and signals of our own.
    SYS_clone if THREAD, SYS_exit, SYS_exit_group, SYS_getpid, SYS_gettid,
    SYS_prctl if &[int(0, libc::PR_SET_NAME as u32)], SYS_prlimit64 if &[equals(2, 0)], SYS_rseq,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_set_robust_list,
    SYS_sigaltstack, SYS_tgkill,
    // About the machine and ourselves.
    SYS_clock_gettime, SYS_geteuid, SYS_getrandom,
    SYS_gettimeofday, SYS_uname,
];

/// The same by their first names, which newer machines have no more.
#[cfg(target_arch = "x86_64")]
pub const ALLOWED_HERE: &[Call] = calls![
    SYS_access,
    SYS_chmod,
    SYS_epoll_wait,
    SYS_lstat,
    SYS_mkdir,
    SYS_open,
    SYS_poll,
    SYS_readlink,
    SYS_rename,
    SYS_rmdir,
    SYS_stat,
    SYS_unlink,
];
/// Calls that only this kind of machine has.
#[cfg(not(target_arch = "x86_64"))]
pub const ALLOWED_HERE: &[Call] = calls![SYS_faccessat];

/// What the agent needs beside: signals to the processes of its pod. Whom it may signal is the kernel's business.
const SIGNALS: &[Call] = calls![SYS_kill];

/// What a container takes beside [`ALLOWED`] until the process confines itself: the runtime's last steps, the
/// start of a program, and the confinement. For the profile of the container, which is in force from outside.
pub const BEFORE: &[Call] = calls![
    SYS_capget,
    SYS_capset,
    SYS_chdir,
    SYS_clone3,
    SYS_close_range,
    SYS_execve,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getcwd,
    SYS_getppid,
    SYS_landlock_add_rule,
    SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self,
    SYS_nanosleep,
    SYS_prctl,
    SYS_prlimit64,
    SYS_seccomp,
    SYS_set_tid_address,
    SYS_setgid,
    SYS_setgroups,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setsid,
    SYS_setuid,
    SYS_umask,
];

/// The same of this kind of machine only.
#[cfg(target_arch = "x86_64")]
pub const BEFORE_HERE: &[Call] = calls![SYS_arch_prctl];
/// The same of this kind of machine only.
#[cfg(not(target_arch = "x86_64"))]
pub const BEFORE_HERE: &[Call] = calls![];

/// What nothing in this program ever calls, and every way out of it would: it ends the process.
pub const FORBIDDEN: &[Call] = calls![
    // Other programs and processes.
    SYS_execve,
    SYS_execveat,
    SYS_kcmp,
    SYS_memfd_create,
    SYS_pidfd_getfd,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_process_madvise,
    SYS_process_mrelease,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_ptrace,
    // Mounts, roots and namespaces.
    SYS_chroot,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fsopen,
    SYS_fspick,
    SYS_mount,
    SYS_mount_setattr,
    SYS_move_mount,
    SYS_open_tree,
    SYS_pivot_root,
    SYS_setns,
    SYS_umount2,
    SYS_unshare,
    // Files past their folders, and devices.
    SYS_fanotify_init,
    SYS_mknodat,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    // The kernel.
    SYS_add_key,
    SYS_bpf,
    SYS_delete_module,
    SYS_finit_module,
    SYS_init_module,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_io_uring_setup,
    SYS_kexec_load,
    SYS_keyctl,
    SYS_perf_event_open,
    SYS_personality,
    SYS_request_key,
    SYS_syslog,
    SYS_userfaultfd,
    // Other users and capabilities.
    SYS_capset,
    SYS_setfsgid,
    SYS_setfsuid,
    SYS_setgid,
    SYS_setgroups,
    SYS_setregid,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setreuid,
    SYS_setuid,
    // The machine.
    SYS_acct,
    SYS_adjtimex,
    SYS_clock_adjtime,
    SYS_clock_settime,
    SYS_quotactl,
    SYS_quotactl_fd,
    SYS_reboot,
    SYS_setdomainname,
    SYS_sethostname,
    SYS_settimeofday,
    SYS_swapoff,
    SYS_swapon,
    SYS_vhangup,
];

/// Of those, what only some machines have.
#[cfg(target_arch = "x86_64")]
pub const FORBIDDEN_HERE: &[Call] =
    calls![SYS_fork, SYS_ioperm, SYS_iopl, SYS_kexec_file_load, SYS_mknod, SYS_modify_ldt, SYS_vfork];
/// Of those, what only some machines have.
#[cfg(not(target_arch = "x86_64"))]
pub const FORBIDDEN_HERE: &[Call] = calls![];

/// Of those, what applications do in good faith, and so what a supervisor's filter leaves to its own.
const APPLICATIONS: [&str; 30] = [
    "capset",
    "chroot",
    "execve",
    "execveat",
    "fork",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "memfd_create",
    "mknod",
    "mknodat",
    "modify_ldt",
    "name_to_handle_at",
    "personality",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "process_madvise",
    "process_mrelease",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setuid",
    "vfork",
];

pub(super) fn install(profile: Profile) -> Outcome {
    match filters(profile) {
        Ok(filters) => {
            for filter in filters {
                if let Err(error) = seccompiler::apply_filter_all_threads(&filter) {
                    return Outcome::Missing(describe(&error));
                }
            }
            Outcome::On(match profile {
                Profile::Provider | Profile::Agent => {
                    format!("{} system calls are left", allowed(profile).map(<[Call]>::len).sum::<usize>())
                }
                Profile::Supervisor => format!("{} system calls are refused", refused().len()),
            })
        }
        Err(error) => Outcome::Missing(error.to_string()),
    }
}

fn describe(error: &seccompiler::Error) -> String {
    match error {
        seccompiler::Error::Seccomp(source) | seccompiler::Error::Prctl(source) => {
            format!("the kernel or the container's own profile refuses a filter: {source}")
        }
        other => other.to_string(),
    }
}

/// The lists of what is left.
fn allowed(profile: Profile) -> impl Iterator<Item = &'static [Call]> {
    let own = if profile == Profile::Agent { SIGNALS } else { &[] };
    [ALLOWED, ALLOWED_HERE, own].into_iter()
}

/// What a supervisor refuses to itself and to what it starts.
fn refused() -> Vec<Call> {
    let all = [FORBIDDEN, FORBIDDEN_HERE].into_iter().flatten();
    all.filter(|call| !APPLICATIONS.contains(&call.name())).copied().collect()
}

/// In the order in which they are installed: the second leaves no call to install another.
fn filters(profile: Profile) -> Result<Vec<BpfProgram>, BackendError> {
    let errno = |errno| SeccompAction::Errno(u32::try_from(errno).expect("error numbers are positive"));
    if profile == Profile::Supervisor {
        return Ok(vec![filter(&[&refused()], SeccompAction::Allow, errno(libc::EPERM))?]);
    }
    let left: Vec<_> = allowed(profile).collect();
    Ok(vec![
        filter(&[FORBIDDEN, FORBIDDEN_HERE], SeccompAction::Allow, SeccompAction::KillProcess)?,
        filter(&left, errno(libc::ENOSYS), SeccompAction::Allow)?,
    ])
}

fn filter(
    calls: &[&[Call]],
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut rules = BTreeMap::new();
    for call in calls.iter().copied().flatten() {
        let any = call.conditions.iter().map(|condition| SeccompRule::new(vec![condition.compile()?]));
        rules.insert(call.number, any.collect::<Result<Vec<_>, _>>()?);
    }
    // The machine's kind is compared first; a call by the numbers of another kind ends the process.
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, action, machine)?.try_into()
}

impl Condition {
    fn compile(&self) -> Result<SeccompCondition, BackendError> {
        let operator = SeccompCmpOp::MaskedEq(self.mask);
        SeccompCondition::new(self.argument, SeccompCmpArgLen::Qword, operator, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_needed_and_forbidden() {
        let forbidden: Vec<_> = [FORBIDDEN, FORBIDDEN_HERE].into_iter().flatten().map(Call::name).collect();
        let allowed: Vec<_> = [ALLOWED, ALLOWED_HERE].into_iter().flatten().map(Call::name).collect();
        for name in &allowed {
            assert!(!forbidden.contains(name), "{name}");
            assert_eq!(allowed.iter().filter(|other| *other == name).count(), 1, "{name} is there twice");
        }
        assert!(allowed.len() <= 100, "{} calls are left", allowed.len());
    }

    #[test]
    fn a_supervisor_refuses_what_leads_out_of_a_pod_and_nothing_that_starts_programs() {
        let refused: Vec<_> = refused().iter().map(Call::name).collect();
        for name in
            ["mount", "ptrace", "bpf", "unshare", "setns", "keyctl", "init_module", "open_by_handle_at"]
        {
            assert!(refused.contains(&name), "{name}");
        }
        for name in APPLICATIONS {
            assert!(!refused.contains(&name), "{name}");
        }
        let forbidden = FORBIDDEN.len() + FORBIDDEN_HERE.len();
        // On other machines some of them are missing.
        assert!(refused.len() >= forbidden - APPLICATIONS.len(), "{refused:?}");
    }

    #[test]
    fn the_filters_compile() {
        for profile in [Profile::Provider, Profile::Agent, Profile::Supervisor] {
            for filter in filters(profile).unwrap() {
                // The kernel's limit (BPF_MAXINSNS).
                assert!((10..4096).contains(&filter.len()), "{}", filter.len());
            }
        }
    }
}
