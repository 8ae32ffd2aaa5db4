//! Makes another process call the kernel: its main thread, stopped while it waits, gets registers of ours and
//! one instruction to run. What it may do is then decided by that thread's own filter, rules and user.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::support::SOON;

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what was asked; its result.
    Done(i64),
    /// It was refused.
    Refused(Errno),
    /// The process was ended for it.
    Killed(Signal),
}

/// One argument of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument<'a> {
    /// As it is.
    Number(i64),
    /// The address of these bytes, which end with a zero more.
    Bytes(&'a [u8]),
}

/// A process that waits for us to say what it calls. Must stay on the thread that made it.
pub(crate) struct Victim {
    process: Pid,
    registers: libc::user_regs_struct,
    memory: File,
}

impl Victim {
    /// Stops the main thread of a process of ours that has nothing to do.
    pub(crate) fn stop(pid: u32) -> Self {
        let process = Pid::from_raw(i32::try_from(pid).unwrap());
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
        let started = Instant::now();
        loop {
            ptrace::attach(process).unwrap();
            let stopped = waitpid(process, Some(WaitPidFlag::__WALL)).unwrap();
            assert_eq!(stopped, WaitStatus::Stopped(process, Signal::SIGSTOP));
            let registers = ptrace::getregs(process).unwrap();
            let mut instruction = [0; 2];
            memory.read_exact_at(&mut instruction, registers.rip - 2).unwrap();
            if instruction == [0x0f, 0x05] {
                return Self { process, registers, memory };
            }
            // It has still something to do.
            ptrace::detach(process, None).unwrap();
            assert!(started.elapsed() < SOON, "it never waits in a system call");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has it make one system call.
    pub(crate) fn call(&self, number: i64, arguments: &[Argument<'_>]) -> Outcome {
        // Beneath the stack, and beneath the 128 bytes that code may use there.
        let mut free = self.registers.rsp - 4096;
        let mut values = [0_u64; 6];
        for (value, argument) in values.iter_mut().zip(arguments) {
            *value = match argument {
                Argument::Number(number) => number.cast_unsigned(),
                Argument::Bytes(bytes) => {
                    let text = [bytes, &[0_u8][..]].concat();
                    free = (free - text.len() as u64) & !15;
                    self.memory.write_all_at(&text, free).unwrap();
                    free
                }
            };
        }
        let [rdi, rsi, rdx, r10, r8, r9] = values;
        let rip = self.registers.rip - 2;
        // Without the mark of an interrupted call, which the kernel would make again.
        let (rax, orig_rax) = (number.cast_unsigned(), u64::MAX);
        let registers =
            libc::user_regs_struct { rip, rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..self.registers };
        ptrace::setregs(self.process, registers).unwrap();
        ptrace::step(self.process, None).unwrap();
        match waitpid(self.process, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Signaled(_, signal, _) => Outcome::Killed(signal),
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                match ptrace::getregs(self.process).unwrap().rax.cast_signed() {
                    result @ -4095..0 => Outcome::Refused(Errno::from_raw(-i32::try_from(result).unwrap())),
                    result => Outcome::Done(result),
                }
            }
            other => panic!("system call {number}: {other:?}"),
        }
    }
}
