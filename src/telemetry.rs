//! Logging: set-up, the panic hook, and how an error is written.

use std::{
    error::Error,
    io::{self, IsTerminal as _},
    panic,
};

use tracing::{Level, error};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object to a line.
    Json,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The most talkative level shown; `None` is off.
    pub level: Option<Level>,
    /// Format.
    pub format: LogFormat,
}

/// Libraries whose own lines concern nobody below a warning; at trace they show up to debug, because some
/// of them trace headers.
const LIBRARIES: [&str; 9] =
    ["h2", "hyper", "hyper_util", "kube_client", "reqwest", "rustls", "tonic", "tower", "tower_http"];

fn filter(level: Option<Level>) -> Targets {
    let Some(level) = level else { return Targets::new() };
    let theirs = match level {
        Level::TRACE => Level::DEBUG,
        Level::ERROR => Level::ERROR,
        _ => Level::WARN,
    };
    Targets::new().with_default(level).with_targets(LIBRARIES.map(|library| (library, theirs)))
}

/// Starts logging to standard error, and makes panics one line of it that never shows what the panic said:
/// that may hold a value. A second call in one process changes nothing.
pub fn init(config: LogConfig) {
    // Not an EnvFilter: it would bring a compiler of regular expressions of its own.
    let logging = tracing_subscriber::registry().with(filter(config.level));
    let lines = fmt::layer().with_writer(io::stderr);
    let started = match config.format {
        LogFormat::Text => logging.with(lines.with_ansi(io::stderr().is_terminal())).try_init(),
        LogFormat::Json => logging.with(lines.json().flatten_event(true)).try_init(),
    };
    if started.is_ok() {
        panic::set_hook(Box::new(|panic| match panic.location() {
            Some(place) => {
                error!(file = place.file(), line = place.line(), "panic: please report this place")
            }
            None => error!("panic at an unknown place"),
        }));
    }
}

/// An error and its sources on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some libraries repeat their source's text in their own.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the policy")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_chain_is_one_line() {
        let error = Outer(io::Error::other("line 3\nunexpected"));
        assert_eq!(chain(&error), "cannot read the policy: line 3 unexpected");
    }

    #[test]
    fn libraries_are_quiet_below_trace() {
        let shown = |level, target, line| filter(level).would_enable(target, &line);
        assert!(!shown(None, "leasehold", Level::ERROR) && !shown(None, "h2", Level::ERROR));
        for (level, theirs) in [
            (Level::ERROR, Level::ERROR),
            (Level::INFO, Level::WARN),
            (Level::DEBUG, Level::WARN),
            (Level::TRACE, Level::DEBUG),
        ] {
            for line in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                assert_eq!(shown(Some(level), "leasehold::audit", line), line <= level, "{level} {line}");
                for library in ["h2::proto", "hyper", "hyper_util", "reqwest", "rustls", "tonic", "tower"] {
                    assert_eq!(shown(Some(level), library, line), line <= theirs, "{library} {level} {line}");
                }
            }
        }
    }
}
