//! Logging: set-up, the panic hook, and how an error is written.

use std::{error::Error, fmt::Write, io, panic};

use tracing::{Level, error};
use tracing_subscriber::{EnvFilter, fmt};

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

fn filter(level: Option<Level>) -> String {
    let Some(level) = level else { return "off".to_owned() };
    let mut directives = level.to_string().to_lowercase();
    let theirs = match level {
        Level::TRACE => "debug",
        Level::ERROR => "error",
        _ => "warn",
    };
    for library in LIBRARIES {
        // Writing into a String does not fail.
        let _infallible = write!(directives, ",{library}={theirs}");
    }
    directives
}

/// Starts logging to standard error, and makes panics one line of it that never shows what the panic said:
/// that may hold a value. A second call in one process changes nothing.
pub fn init(config: LogConfig) {
    let builder = fmt().with_env_filter(EnvFilter::new(filter(config.level))).with_writer(io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
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
        assert_eq!(filter(None), "off");
        for (level, theirs) in [(Level::ERROR, "error"), (Level::INFO, "warn"), (Level::TRACE, "debug")] {
            let filter = filter(Some(level));
            assert!(filter.starts_with(&level.to_string().to_lowercase()), "{filter}");
            assert!(filter.ends_with(&format!(",h2={theirs},hyper={theirs},hyper_util={theirs},kube_client={theirs},reqwest={theirs},rustls={theirs},tonic={theirs},tower={theirs},tower_http={theirs}")), "{filter}");
            assert!(EnvFilter::try_new(filter).is_ok());
        }
    }
}
