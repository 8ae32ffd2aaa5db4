//! A look at a server without a token: is it there, who is it, and does it have the auth mount? For `doctor`.

use std::time::{Duration, SystemTime};

use reqwest::tls::TlsInfo;

use super::{
    VaultBackend,
    endpoints::Call,
    failure::{self, Target},
    transport::{self, Answer},
};
use crate::{
    backend::BackendError,
    clock::wall_now,
    spec::{ApiPath, Connection},
};

/// For each request of a look.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest body looked at.
const MAX_BODY: usize = 64 * 1024;

/// What the server's health says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It answers requests.
    Active,
    /// It passes them on, or answers reads.
    Standby,
    /// It was never initialised.
    Uninitialised,
    /// It is sealed.
    Sealed,
    /// Something answers, with this status.
    Unclear(u16),
}

/// The server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// DNS names and addresses it is for.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// When it ends.
    pub expires: SystemTime,
}

/// What a look at a server shows.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its health.
    pub state: ServerState,
    /// Seconds that the server's clock is ahead of this node's; negative when behind.
    pub skew: Option<i64>,
    /// Its certificate, over TLS.
    pub certificate: Option<Certificate>,
    /// Whether the auth mount is there; `None` where the answer does not tell.
    pub has_mount: Option<bool>,
}

impl VaultBackend {
    /// Looks at the server of `connection` and at its auth mount. Sends no token.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn probe(&self, connection: &Connection, mount: &ApiPath) -> Result<Probe, BackendError> {
        let health = self.look(connection, &Call::health(), "").await?;
        let date = health.0.header("date").and_then(|text| httpdate::parse_http_date(text).ok());
        // Without a token and a role: whoever has the mount says what is missing.
        let asked = self.look(connection, &Call::empty_login(mount), &connection.namespace).await;
        Ok(Probe {
            state: failure::server_state(&health.0),
            skew: date.map(|date| seconds_ahead(date, wall_now())),
            certificate: health.1.as_deref().and_then(certificate),
            has_mount: asked.ok().and_then(|(answer, _)| failure::has_mount(&answer)),
        })
    }

    async fn look(
        &self,
        connection: &Connection,
        call: &Call<'_>,
        namespace: &str,
    ) -> Result<(Answer, Option<Vec<u8>>), BackendError> {
        let target = Target { address: connection.address.clone(), namespace };
        let attempt = async {
            let endpoint = self.clients.endpoint(connection).await?;
            let request = call.to_request(&endpoint, namespace, None)?;
            let (answer, extensions) = transport::send_for(&endpoint, request, PATIENCE, MAX_BODY).await?;
            let peer = extensions.get::<TlsInfo>().and_then(TlsInfo::peer_certificate);
            Ok((answer, peer.map(<[u8]>::to_vec)))
        };
        attempt.await.map_err(|error| failure::of_transport(call, &target, &error))
    }
}

/// The header has whole seconds: a difference of one means nothing.
fn seconds_ahead(theirs: SystemTime, ours: SystemTime) -> i64 {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match theirs.duration_since(ours) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    }
}

fn certificate(der: &[u8]) -> Option<Certificate> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = parsed.subject_alternative_name().ok().flatten().map(|extension| {
        let names = extension.value.general_names.iter();
        names.map(|name| name.to_string().replace("DNSName(", "").replace(')', "")).collect()
    });
    let expires = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Some(Certificate {
        names: names.unwrap_or_default(),
        issuer: parsed.issuer().to_string(),
        expires: SystemTime::UNIX_EPOCH + Duration::from_secs(expires),
    })
}
