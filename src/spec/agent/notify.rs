//! Whom to tell of a change.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::{
    Problem,
    fields::{Fields, problem},
};
use crate::spec::{values, yaml::Node};

const KINDS: [&str; 4] = ["signal", "http", "touch", "command"];
const SIGNAL: [&str; 2] = ["process", "signal"];
const HTTP: [&str; 2] = ["url", "method"];

/// What is done after a change; any of them, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnChange {
    /// A signal.
    pub signal: Option<SignalTo>,
    /// A request.
    pub http: Option<Http>,
    /// A file whose time is set to now; made when it is not there.
    pub touch: Option<PathBuf>,
    /// A program and its arguments; runs only where the command line allows it.
    pub command: Option<Vec<String>>,
}

impl OnChange {
    /// Whether there is nobody to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A signal to a process of the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignalTo {
    /// Its name: of the program's file, of the command, or as it calls itself.
    pub process: String,
    /// Which signal.
    pub signal: Signal,
}

/// A request to the pod itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Http {
    /// `http://` at a loopback address.
    pub url: String,
    /// The method; POST where not given.
    pub method: String,
}

pub(super) fn read(node: Option<&Node>, problems: &mut Vec<Problem>) -> OnChange {
    let Some(node) = node else { return OnChange::default() };
    let mut fields = Fields::new(node, &KINDS, problems);
    let touch = fields.path("touch");
    let command = fields.list("command").filter(|command| !command.is_empty());
    OnChange {
        signal: node.get("signal").and_then(|node| signal(node, problems)),
        http: node.get("http").and_then(|node| http(node, problems)),
        touch,
        command,
    }
}

fn signal(node: &Node, problems: &mut Vec<Problem>) -> Option<SignalTo> {
    let mut fields = Fields::new(node, &SIGNAL, problems);
    let process = fields.text("process");
    let signal = fields.signal("signal").unwrap_or(Signal::SIGHUP);
    if process.is_none() {
        problems.push(problem(node, "onChange.signal needs the name of a \"process\"".to_owned()));
    }
    Some(SignalTo { process: process?, signal })
}

fn http(node: &Node, problems: &mut Vec<Problem>) -> Option<Http> {
    let mut fields = Fields::new(node, &HTTP, problems);
    let url = fields.text("url");
    let method = fields.text("method").unwrap_or_else(|| "POST".to_owned()).to_ascii_uppercase();
    let Some(url) = url else {
        problems.push(problem(node, "onChange.http needs a \"url\"".to_owned()));
        return None;
    };
    if let Err(reason) = loopback(&url) {
        let reason = format!("onChange.http.url {}: {reason}", values::quote(&url));
        problems.push(problem(node, reason));
        return None;
    }
    if !["GET", "POST", "PUT", "HEAD", "PATCH", "DELETE"].contains(&method.as_str()) {
        problems.push(problem(node, format!("onChange.http.method: {} is none", values::quote(&method))));
        return None;
    }
    Some(Http { url, method })
}

/// The pod itself and nothing else: a file that others may write must not turn the agent into their client.
fn loopback(url: &str) -> Result<(), &'static str> {
    let parsed = reqwest::Url::parse(url).map_err(|_| "is no URL")?;
    if parsed.scheme() != "http" {
        return Err("must begin with http:// (the request does not leave the pod)");
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("must have no user and no password in it");
    }
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let loops = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if loops { Ok(()) } else { Err("must be at a loopback address (127.0.0.1, ::1, localhost)") }
}
