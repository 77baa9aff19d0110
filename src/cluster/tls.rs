//! Connections between driver, scheduler and executors: how long they wait, and mutual TLS, with certificates that one authority signed.
//!
//! Ballista connects to `http://`; its hook for connections is where that becomes `https://`. A certificate must name the host
//! that others connect to: the scheduler's in `extract.on`, an executor's as it gives it with `--host`. Of who connects it must be the
//! authority's alone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ballista_core::extension::EndpointOverrideFn;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

use super::job::whole;
use super::{ClusterError, TlsFiles};

/// How long whoever connects waits for anything at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Certificates and key, read.
#[derive(Clone)]
pub struct Tls {
    ca: Certificate,
    identity: Identity,
}

impl Tls {
    /// Reads the files, which must be PEM.
    pub fn read(files: &TlsFiles) -> Result<Tls, ClusterError> {
        let pem = |path: &std::path::Path| -> Result<Vec<u8>, ClusterError> {
            let wrong = |reason: String| ClusterError::Tls { path: path.to_owned(), reason };
            let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            match bytes.windows(11).any(|part| part == b"-----BEGIN ") {
                true => Ok(bytes),
                false => Err(wrong("it is no PEM file".to_owned())),
            }
        };
        // There are two in this program, and Ballista's client names none. It is set already where this is not the first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let identity = Identity::from_pem(pem(&files.cert)?, pem(&files.key)?);
        let tls = Tls { ca: Certificate::from_pem(pem(&files.ca)?), identity };
        // A key that belongs to another certificate shows here, and not as a member that does not answer.
        let server = Server::builder().tls_config(tls.server()).map(drop);
        let client = Endpoint::from_static("https://localhost").tls_config(tls.client()).map(drop);
        server.and(client).map_err(|error| {
            let reason = format!("not a certificate with its key and authority: {}", whole(&error));
            ClusterError::Tls { path: files.cert.clone(), reason }
        })?;
        Ok(tls)
    }

    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.ca.clone())
    }

    fn client(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().ca_certificate(self.ca.clone()).identity(self.identity.clone());
        // Of the handshake, which is no part of connecting to Tonic.
        config.timeout(PATIENCE)
    }
}

/// Says so where strangers are let in.
pub fn warn_of_strangers(bind: IpAddr, tls: Option<&Tls>) {
    if tls.is_none() && !bind.is_loopback() {
        tracing::warn!(
            "without --ca, --cert and --key whoever reaches {bind} can have files read and written as this user"
        );
    }
}

/// What each connection is made with, whoever makes it. Whoever is gone without a word, as after a power cut, is noticed within half a
/// minute. Requests are answered at once, or that they are under way: their time ends with the first byte.
pub fn endpoint(tls: Option<&Tls>) -> EndpointOverrideFn {
    let tls = tls.map(Tls::client);
    Arc::new(move |endpoint: Endpoint| {
        let endpoint = match &tls {
            None => endpoint,
            Some(tls) => {
                let authority = endpoint.uri().authority().map(ToString::to_string).unwrap_or_default();
                Endpoint::from_shared(format!("https://{authority}"))?.tls_config(tls.clone())?
            }
        };
        Ok(endpoint
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(60)))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(PATIENCE)
            .keep_alive_while_idle(true))
    })
}
