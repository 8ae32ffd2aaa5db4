//! Who was asked for what on whose behalf: one line for every request that may have left this process.

use super::{
    endpoints::Call,
    failure::Target,
    transport::{Answer, TransportError},
};
use crate::{
    backend::{RequestContext, Served},
    clock::{BootTime, boot_now},
};

/// Written when it goes out of scope, so that a request that ran out of time has its line too.
pub(super) struct AuditLine<'a> {
    context: &'a RequestContext,
    call: &'a Call<'a>,
    target: &'a Target<'a>,
    started: BootTime,
    status: String,
    request_id: String,
}

impl<'a> AuditLine<'a> {
    pub(super) fn new(context: &'a RequestContext, call: &'a Call<'a>, target: &'a Target<'a>) -> Self {
        let status = "abandoned".to_owned();
        Self { context, call, target, started: boot_now(), status, request_id: String::new() }
    }

    /// Notes how the exchange ended.
    pub(super) fn close(&mut self, result: &Result<Answer, TransportError>) {
        match result {
            Ok(answer) => {
                self.status = answer.status.to_string();
                self.request_id = request_id(answer.body.expose());
            }
            Err(error) => self.status = format!("no answer: {error}"),
        }
    }
}

impl Drop for AuditLine<'_> {
    fn drop(&mut self) {
        let serves =
            |what: fn(&Served) -> &str| self.context.serves.iter().map(what).collect::<Vec<_>>().join(",");
        tracing::info!(
            target: "leasehold::audit",
            operation = self.call.operation.as_str(),
            path = self.call.path,
            subject = self.call.subject,
            address = self.target.address,
            namespace = self.target.namespace,
            on_behalf_of = %self.context.on_behalf_of,
            pods = serves(|it| &it.pod),
            pod_uids = serves(|it| &it.uid),
            classes = serves(|it| &it.class),
            accessor = self.context.accessor.as_deref().map(fingerprint).unwrap_or_default(),
            status = self.status,
            request_id = self.request_id,
            duration_ms = u64::try_from(self.started.until(boot_now()).as_millis()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

/// Ties the accessor of a new session to the pod it was made for.
pub(super) fn session(context: &RequestContext, accessor: &str) {
    tracing::info!(
        target: "leasehold::audit",
        on_behalf_of = %context.on_behalf_of,
        accessor = fingerprint(accessor),
        "session"
    );
}

/// Names an accessor without giving it: whoever may use accessors may revoke by them. The start of its
/// SHA-256 in hexadecimal.
fn fingerprint(accessor: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, accessor.as_bytes());
    data_encoding::HEXLOWER.encode(&digest.as_ref()[..8])
}

/// The server's id of the request, by which its own audit log names it. Kept only if it looks like one.
fn request_id(body: &[u8]) -> String {
    const KEY: &[u8] = b"\"request_id\":\"";
    const UUID: usize = 36;
    // It comes first in every envelope.
    let head = &body[..body.len().min(128)];
    let Some(start) = head.windows(KEY.len()).position(|window| window == KEY) else { return String::new() };
    let id = head[start + KEY.len()..].split(|byte| *byte == b'"').next().unwrap_or_default();
    let plain = id.len() == UUID && id.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    if plain { String::from_utf8_lossy(id).into_owned() } else { String::new() }
}
