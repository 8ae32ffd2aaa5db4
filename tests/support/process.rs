//! Child processes that cannot outlive the test: the kernel kills them when their parent thread ends.

use std::{
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::until;

type Job = Box<dyn FnOnce() + Send>;

/// Between fork and exec a child holds what this process had open, in another test's volume too: an unmount in that
/// moment is refused, and nobody under test is to blame.
static FORKING: RwLock<()> = RwLock::new(());

/// Starts a program in whichever way.
pub fn spawn_with<T>(spawn: impl FnOnce() -> T) -> T {
    let _forking = FORKING.read().unwrap_or_else(PoisonError::into_inner);
    spawn()
}

/// Runs a program to its end.
pub fn output(command: &mut Command) -> io::Result<Output> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn_with(|| command.spawn())?.wait_with_output()
}

/// Does `work` while no child is between fork and exec.
pub fn between_forks<T>(work: impl FnOnce() -> T) -> T {
    let _none = FORKING.write().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// A thread that runs closures one after another and lives until it is dropped.
///
/// PR_SET_PDEATHSIG fires when the *thread* that forked ends, and a mount namespace belongs to a thread
/// too: both want a thread whose life the tests control.
#[derive(Debug)]
pub struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    pub fn new(name: &str) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || queue.into_iter().for_each(|job| job()))
            .expect("a thread");
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Runs `work` on the thread and waits for it; a panic in it is the caller's.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        });
        self.jobs.as_ref().expect("the worker lives").send(job).expect("the worker's thread lives");
        match result.recv().expect("the worker answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A running child with all that it wrote.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// Starts `program` from a thread that lives as long as the test process.
    pub fn spawn(name: &str, program: impl AsRef<OsStr>, configure: impl FnOnce(&mut Command)) -> Self {
        static SPAWNER: OnceLock<Worker> = OnceLock::new();
        Self::spawn_on(SPAWNER.get_or_init(|| Worker::new("spawner")), name, &[], program, configure)
    }

    /// Starts `wrapper... program` from `worker`'s thread, and so in that thread's mount namespace.
    pub fn spawn_on(
        worker: &Worker,
        name: &str,
        wrapper: &[&str],
        program: impl AsRef<OsStr>,
        configure: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(wrapper).arg("--").arg(program.as_ref());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        configure(&mut command);
        let spawned: io::Result<Child> = worker.run(move || spawn_with(|| command.spawn()));
        let mut child = spawned.unwrap_or_else(|error| panic!("start {name} through setpriv: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().expect("a piped stdout"), Arc::clone(&log));
        collect(child.stderr.take().expect("a piped stderr"), Arc::clone(&log));
        Self { child, name: name.into(), log }
    }

    /// The process id; `setpriv` replaced itself by the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All output so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Whether the process has ended, and how.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).unwrap_or_else(|error| panic!("send {signal} to {}: {error}", self.name));
    }

    /// Waits for the end of the process, and until what it wrote is read. Whatever it started may hold its
    /// output open, and is not waited for.
    pub async fn wait(&mut self, bound: Duration) -> ExitStatus {
        let status = until(&format!("{} ends", self.name), bound, async || self.exited()).await;
        let ended = Instant::now();
        // Each of the two readers holds the log while it reads.
        while Arc::strong_count(&self.log) > 1 && ended.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        status
    }

    /// SIGKILL, as a crash or the OOM killer does it, and wait.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Panics with the log when the process is gone.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exited() {
            panic!("{} ended with {status}:\n{}", self.name, self.log());
        }
    }

    /// Waits until `text` was written.
    pub async fn logged(&self, text: &str, bound: Duration) {
        until(&format!("{} writes {text:?}", self.name), bound, async || {
            self.log().contains(text).then_some(())
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            for line in tail.iter().rev() {
                report(&format!("[{}] {line}", self.name));
            }
        }
    }
}

#[allow(clippy::print_stderr, reason = "the harness shows the output of a failed test")]
fn report(line: &str) {
    eprintln!("{line}");
}

fn collect(stream: impl Read + Send + 'static, log: Arc<Mutex<String>>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            log.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
}
