//! One exchange over HTTP, bounded in size and time; knows nothing of what is asked.

use std::{error::Error, io, net::IpAddr, time::Duration};

use reqwest::{
    Request,
    header::{HOST, HeaderMap},
};
use rustls::{AlertDescription, CertificateError};

use super::{address::AddressError, client::Endpoint, resolve::ResolveError, tls::TlsError};
use crate::clock::{BootTime, boot_now};

/// An answer, whatever its status. Holds a body: never printed.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: crate::secret::SecretBytes,
    /// When the request was sent.
    pub(super) since: BootTime,
}

impl Answer {
    /// A header's text; `None` when absent or not printable ASCII.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The media type without its parameters, in lower case.
    pub(super) fn media_type(&self) -> String {
        let text = self.header("content-type").unwrap_or_default();
        text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TransportError {
    /// The address is not one.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The request cannot be put into HTTP: a token or namespace with control bytes, a path that a URL
    /// would change.
    #[error("the {0} holds characters that cannot be sent")]
    Unsendable(&'static str),
    /// The name does not resolve.
    #[error("the host name does not resolve")]
    UnknownHost,
    /// The name leads where we do not go.
    #[error("the host name resolves to {ip}, {kind}")]
    ForbiddenAddress {
        /// Where to.
        ip: IpAddr,
        /// Of what kind it is.
        kind: &'static str,
    },
    /// Nobody listens.
    #[error("the connection was refused")]
    Refused,
    /// No connection in time.
    #[error("no connection within the connect time-out")]
    ConnectTimeout,
    /// The server's certificate, or ours.
    #[error("TLS failed: {0}")]
    Handshake(Handshake),
    /// Connected, and no status line in time.
    #[error("no answer began within the time-out")]
    FirstByteTimeout,
    /// The answer was not complete in time.
    #[error("no complete answer within the time-out")]
    Timeout,
    /// The answer is larger than what is accepted.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::ErrorKind),
    /// What came is not HTTP/1.1, or has endless headers.
    #[error("the answer is not valid HTTP")]
    NotHttp,
}

/// What went wrong between two TLS stacks, as far as it tells which setting to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Handshake {
    /// Not after is past.
    #[error("the server's certificate has expired")]
    Expired,
    /// Not before is ahead.
    #[error("the server's certificate is not valid yet")]
    NotYetValid,
    /// No CA of ours signed it.
    #[error("the server's certificate is signed by an authority that is not trusted here")]
    UnknownIssuer,
    /// For another name.
    #[error("the server's certificate is for another name")]
    WrongName,
    /// Revoked, malformed, with a bad signature.
    #[error("the server's certificate is not acceptable")]
    BadCertificate,
    /// The server wants ours.
    #[error("the server requires a client certificate")]
    ClientCertificateRequired,
    /// The server does not take ours.
    #[error("the server refuses the client certificate")]
    ClientCertificateRefused,
    /// Nothing in common: TLS 1.1 and older.
    #[error("the server offers no TLS version or cipher that is still safe")]
    Incompatible,
    /// Plain text on the TLS port.
    #[error("the server does not speak TLS on this port")]
    NotTls,
    /// Anything else.
    #[error("the handshake failed")]
    Other,
}

/// Sends `request` and reads the whole answer. The caller bounds the total time.
pub(super) async fn send(
    endpoint: &Endpoint,
    request: Request,
    first_byte: Duration,
    max_body: usize,
) -> Result<Answer, TransportError> {
    send_for(endpoint, request, first_byte, max_body).await.map(|(answer, _)| answer)
}

/// Sends like [`send`], and gives what is known of the connection too.
pub(super) async fn send_for(
    endpoint: &Endpoint,
    mut request: Request,
    first_byte: Duration,
    max_body: usize,
) -> Result<(Answer, hyper::http::Extensions), TransportError> {
    if let Some(host) = &endpoint.host {
        request.headers_mut().insert(HOST, host.clone());
    }
    let since = boot_now();
    let mut response = tokio::time::timeout(first_byte, endpoint.client.execute(request))
        .await
        .map_err(|_| TransportError::FirstByteTimeout)?
        .map_err(|error| classify(&error))?;
    let announced = response.content_length().unwrap_or(0);
    if announced > max_body as u64 {
        return Err(TransportError::TooLarge(max_body));
    }
    // Announced is not sent: memory grows with what arrives.
    let mut body = zeroize::Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error))? {
        if body.len() + chunk.len() > max_body {
            return Err(TransportError::TooLarge(max_body));
        }
        body.extend_from_slice(&chunk);
    }
    let headers = std::mem::take(response.headers_mut());
    let body = std::mem::take(&mut *body).into();
    let extensions = std::mem::take(response.extensions_mut());
    Ok((Answer { status: response.status().as_u16(), headers, body, since }, extensions))
}

/// Finds the cause that tells most in an error's chain. Texts of the library are not passed on: they may
/// quote what was sent.
fn classify(error: &reqwest::Error) -> TransportError {
    let mut kind = None;
    if let Some(found) = search(error, &mut kind) {
        return found;
    }
    match kind {
        Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => TransportError::Refused,
        Some(io::ErrorKind::TimedOut) if error.is_connect() => TransportError::ConnectTimeout,
        _ if error.is_timeout() && error.is_connect() => TransportError::ConnectTimeout,
        _ if error.is_timeout() => TransportError::Timeout,
        Some(kind) => TransportError::Broken(kind),
        None if error.is_connect() => TransportError::Broken(io::ErrorKind::Other),
        None => TransportError::NotHttp,
    }
}

/// Walks the chain for a cause that we know; `kind` is the innermost I/O error's on the way.
fn search(error: &(dyn Error + 'static), kind: &mut Option<io::ErrorKind>) -> Option<TransportError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = known(error) {
            return Some(found);
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            *kind = Some(error.kind());
            // An io::Error hides what it wraps from `source`.
            if let Some(inner) = error.get_ref() {
                return search(inner, kind);
            }
        }
        cause = error.source();
    }
    None
}

fn known(error: &(dyn Error + 'static)) -> Option<TransportError> {
    if let Some(error) = error.downcast_ref::<ResolveError>() {
        return Some(match *error {
            ResolveError::Unknown => TransportError::UnknownHost,
            ResolveError::Forbidden { ip, kind } => TransportError::ForbiddenAddress { ip, kind },
        });
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            return Some(TransportError::Broken(io::ErrorKind::UnexpectedEof));
        }
        return error.is_parse().then_some(TransportError::NotHttp);
    }
    error.downcast_ref::<rustls::Error>().map(|error| TransportError::Handshake(handshake(error)))
}

fn handshake(error: &rustls::Error) -> Handshake {
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => Handshake::Expired,
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => Handshake::NotYetValid,
            Bad::UnknownIssuer => Handshake::UnknownIssuer,
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Handshake::WrongName,
            // A self-signed server certificate that is no authority, and kin.
            _ => Handshake::BadCertificate,
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => Handshake::ClientCertificateRequired,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied => Handshake::ClientCertificateRefused,
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity => Handshake::Incompatible,
            AlertDescription::UnrecognisedName => Handshake::WrongName,
            _ => Handshake::Other,
        },
        rustls::Error::PeerIncompatible(_) => Handshake::Incompatible,
        rustls::Error::InvalidMessage(_) => Handshake::NotTls,
        _ => Handshake::Other,
    }
}
