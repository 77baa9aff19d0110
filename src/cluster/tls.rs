//! Mutual TLS between driver, scheduler and executors: each shows a certificate that the one authority signed.
//!
//! Ballista connects to `http://`; its hook for connections is where that becomes `https://`. Certificates must name the host
//! that others connect to: the scheduler's in `extract.on`, an executor's as it gives it with `--host`.

use std::sync::Arc;
use std::time::Duration;

use ballista_core::extension::EndpointOverrideFn;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig};

use super::{ClusterError, TlsFiles};

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
        Ok(Tls { ca: Certificate::from_pem(pem(&files.ca)?), identity })
    }

    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.ca.clone())
    }

    /// Makes each connection of Ballista's a TLS connection.
    pub fn client(&self) -> EndpointOverrideFn {
        let config = ClientTlsConfig::new().ca_certificate(self.ca.clone()).identity(self.identity.clone());
        Arc::new(move |endpoint: Endpoint| {
            let authority = endpoint.uri().authority().map(ToString::to_string).unwrap_or_default();
            let endpoint = Endpoint::from_shared(format!("https://{authority}"))?
                .connect_timeout(Duration::from_secs(20))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(300))
                .keep_alive_timeout(Duration::from_secs(20));
            Ok(endpoint.tls_config(config.clone())?)
        })
    }
}
