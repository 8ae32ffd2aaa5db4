//! Why a Mount cannot be had.

/// Why a Mount failed, as the pod's events show it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountFailure {
    /// Class, for the wire and for metrics.
    pub kind: FailureKind,
    /// One line for the person who reads the pod's events.
    pub message: String,
}

/// Classes of failed Mounts. The edge maps each to a *final* gRPC code (Unavailable, DeadlineExceeded,
/// ResourceExhausted, Aborted and Canceled make driver 1.6.0 start the pod on an empty directory).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The SecretProviderClass or the request is wrong: INVALID_ARGUMENT.
    InvalidArgument,
    /// Policy or Vault refuses: PERMISSION_DENIED.
    PermissionDenied,
    /// Nothing at the path: NOT_FOUND.
    NotFound,
    /// The node is not as it must be (no tmpfs, no token for the audience): FAILED_PRECONDITION.
    FailedPrecondition,
    /// Everything that may pass: Vault down, out of time, a shutdown, a panic: INTERNAL.
    Internal,
}

impl MountFailure {
    /// A failure of `kind` that says `message`.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
