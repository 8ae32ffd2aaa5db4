//! TLS towards one server: which authorities, which client certificate, which name.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use super::{
    address::dns_name,
    files::{FileError, Stamp, list, read_bounded},
};
use crate::spec::TlsSpec;

/// Where distributions keep the authorities they trust; the first that exists is read. A scratch image has
/// none of them, and then an error says so.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// TLS sessions remembered per server, for resumption: one per idle connection is plenty.
const RESUMABLE_SESSIONS: usize = 8;

/// Why TLS cannot be set up. Names the parameter and the file, never their content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TlsError {
    /// A file cannot be read.
    #[error("{parameter}: {source}")]
    File {
        /// The parameter that names it.
        parameter: &'static str,
        /// Why.
        source: FileError,
    },
    /// A file has no certificate in it.
    #[error("{parameter}: {path} holds no usable PEM certificate")]
    NoCertificate {
        /// The parameter that names it.
        parameter: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// A file has no private key in it.
    #[error("vaultTLSClientKeyPath: {path} holds no usable PEM private key")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Only one of certificate and key is set.
    #[error("vaultTLSClientCertPath and vaultTLSClientKeyPath must be set together")]
    HalfIdentity,
    /// The key is another certificate's.
    #[error(
        "vaultTLSClientKeyPath: the key in {path} does not belong to the certificate of vaultTLSClientCertPath"
    )]
    WrongKey {
        /// The key's file.
        path: PathBuf,
    },
    /// Not a DNS name or IP address.
    #[error("vaultTLSServerName is neither a DNS name nor an IP address")]
    ServerName,
    /// No CA was named and the system has none.
    #[error(
        "no CA is configured and this image has no system certificates: set vaultCACertPath or SSL_CERT_FILE"
    )]
    NoSystemRoots,
    /// The library refuses the combination.
    #[error("TLS cannot be set up with these settings")]
    Unusable,
}

/// The name that TLS asks for and verifies, when it is not the address's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerNameOverride {
    /// None.
    None,
    /// A DNS name: asked for by SNI.
    Name(String),
    /// An IP address: verified, and never asked for.
    Ip(ServerName<'static>),
}

impl ServerNameOverride {
    /// What `tls` asks for.
    pub(super) fn of(tls: &TlsSpec) -> Result<Self, TlsError> {
        let Some(name) = tls.server_name.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(Self::None);
        };
        if let Ok(ip) = name.parse::<std::net::IpAddr>() {
            return Ok(Self::Ip(ServerName::from(ip)));
        }
        dns_name(name).map(Self::Name).ok_or(TlsError::ServerName)
    }
}

/// A client configuration, and what its files looked like when they were read.
pub(super) struct Loaded {
    pub(super) config: ClientConfig,
    pub(super) stamps: Vec<Stamp>,
}

/// Reads every file that `tls` names and builds the configuration. Blocks on the file system.
pub(super) fn load(tls: &TlsSpec) -> Result<Loaded, TlsError> {
    let mut stamps = Vec::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|_| TlsError::Unusable)?;
    let verifier: Arc<dyn ServerCertVerifier> = if tls.skip_verify {
        Arc::new(AcceptAny { provider })
    } else {
        let roots = Arc::new(roots(tls, &mut stamps)?);
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|_| TlsError::Unusable)?;
        match ServerNameOverride::of(tls)? {
            ServerNameOverride::Ip(name) => Arc::new(AsName { inner, name }),
            ServerNameOverride::None | ServerNameOverride::Name(_) => inner,
        }
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match identity(tls, &mut stamps)? {
        Some((chain, key, path)) => {
            builder.with_client_auth_cert(chain, key).map_err(|_| TlsError::WrongKey { path })?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(RESUMABLE_SESSIONS);
    config.enable_sni = !matches!(ServerNameOverride::of(tls)?, ServerNameOverride::Ip(_));
    Ok(Loaded { config, stamps })
}

/// A configuration that trusts no one, for addresses that do not speak TLS.
pub(super) fn none() -> Result<Loaded, TlsError> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| TlsError::Unusable)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Ok(Loaded { config, stamps: Vec::new() })
}

fn set(text: Option<&String>) -> Option<&Path> {
    text.filter(|text| !text.is_empty()).map(|text| Path::new(text.as_str()))
}

fn roots(tls: &TlsSpec, stamps: &mut Vec<Stamp>) -> Result<RootCertStore, TlsError> {
    // The precedence of Vault's own clients: a bundle wins over a folder, both over the system.
    if let Some(path) = set(tls.ca_cert.as_ref()) {
        return bundle("vaultCACertPath", path, stamps);
    }
    if let Some(path) = set(tls.ca_directory.as_ref()) {
        return folder("vaultCADirectory", path, stamps);
    }
    if let Some(path) = std::env::var_os("SSL_CERT_FILE") {
        return bundle("SSL_CERT_FILE", Path::new(&path), stamps);
    }
    if let Some(path) = std::env::var_os("SSL_CERT_DIR") {
        return folder("SSL_CERT_DIR", Path::new(&path), stamps);
    }
    let found = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.is_file());
    bundle("system certificates", found.ok_or(TlsError::NoSystemRoots)?, stamps)
}

fn bundle(parameter: &'static str, path: &Path, stamps: &mut Vec<Stamp>) -> Result<RootCertStore, TlsError> {
    stamps.push(Stamp::of(path));
    let pem = read_bounded(path).map_err(|source| TlsError::File { parameter, source })?;
    let mut roots = RootCertStore::empty();
    // A bundle may hold authorities that this library cannot parse; the others still count.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(TlsError::NoCertificate { parameter, path: path.to_owned() });
    }
    Ok(roots)
}

fn folder(parameter: &'static str, path: &Path, stamps: &mut Vec<Stamp>) -> Result<RootCertStore, TlsError> {
    stamps.push(Stamp::of(path));
    let mut roots = RootCertStore::empty();
    for file in list(path).map_err(|source| TlsError::File { parameter, source })? {
        stamps.push(Stamp::of(&file));
        // A folder may hold other things beside certificates: what cannot be read is not trusted.
        let Ok(pem) = read_bounded(&file) else { continue };
        for certificate in CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok) {
            let (before, _) = (roots.len(), roots.add_parsable_certificates([certificate]));
            // Hashed folders link every certificate a second time.
            let twice = roots.roots.last().is_some_and(|last| roots.roots[..before].contains(last));
            if roots.len() > before && twice {
                roots.roots.pop();
            }
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoCertificate { parameter, path: path.to_owned() });
    }
    Ok(roots)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, PathBuf);

fn identity(tls: &TlsSpec, stamps: &mut Vec<Stamp>) -> Result<Option<Identity>, TlsError> {
    let (certificate, key) = match (set(tls.client_cert.as_ref()), set(tls.client_key.as_ref())) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        _ => return Err(TlsError::HalfIdentity),
    };
    stamps.extend([Stamp::of(certificate), Stamp::of(key)]);
    let parameter = "vaultTLSClientCertPath";
    let pem = read_bounded(certificate).map_err(|source| TlsError::File { parameter, source })?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { parameter, path: certificate.to_owned() });
    }
    let pem =
        read_bounded(key).map_err(|source| TlsError::File { parameter: "vaultTLSClientKeyPath", source })?;
    let private =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::NoKey { path: key.to_owned() })?;
    Ok(Some((chain, private, key.to_owned())))
}

/// Verifies against a name of our choosing. Only for IP addresses, which SNI cannot carry.
#[derive(Debug)]
struct AsName {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for AsName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Verifies nothing but that the server holds the key it shows: `vaultSkipTLSVerify`, which policy must allow.
#[derive(Debug)]
struct AcceptAny {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
