//! HTTP only: a request in, a status and a body out. Small requests are tried again here; bulk requests, of which only a part
//! may have failed, in [`super::senders`].

use std::time::{Duration, Instant};

use bytes::Bytes;
use elasticsearch::auth::Credentials;
use elasticsearch::cert::{Certificate, CertificateValidation};
pub use elasticsearch::http::Method;
use elasticsearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use elasticsearch::http::transport::{CloudId, SingleNodeConnectionPool, Transport, TransportBuilder};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Handle;
use url::Url;

use super::config::ElasticConfig;
use super::retry::{self, ServerError, Verdict};
use crate::engines::EngineError;
use crate::interrupt;

/// A connection to one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
    handle: Handle,
    /// For messages; without credentials.
    address: String,
    give_up: Duration,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, EngineError> {
        let shown = || String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).into_owned();
        serde_json::from_slice(&self.body).map_err(|error| {
            failed(format!("its answer is not what Elasticsearch answers ({error}): {}", shown()))
        })
    }

    /// The body's `error`, where there is one.
    pub fn error(&self) -> Option<ServerError> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        match body.get("error")? {
            Value::String(text) => Some(ServerError { kind: text.clone(), ..ServerError::default() }),
            error => serde_json::from_value(error.clone()).ok(),
        }
    }
}

/// No answer came.
#[derive(Debug)]
pub struct NoAnswer(pub String);

/// An error of this engine.
pub fn failed(reason: impl Into<String>) -> EngineError {
    EngineError::Failed { engine: super::NAME.to_owned(), reason: reason.into() }
}

impl Client {
    /// Makes a client; nothing is sent yet. Secrets come from the environment.
    pub fn open(config: &ElasticConfig, handle: &Handle) -> Result<Client, EngineError> {
        let usage = |reason: String| EngineError::Usage(reason);
        let url = match (&config.url, &config.cloud_id) {
            (Some(address), _) => address.url().clone(),
            // The identifier holds no secret, but the crate's error may repeat what was given in its place.
            (None, Some(id)) => {
                CloudId::parse(id)
                    .map_err(|_| {
                        usage("load.elasticsearch.cloud_id is not of the form name:base64, as Elastic Cloud shows it".into())
                    })?
                    .url
            }
            (None, None) => Url::parse("http://localhost:9200").map_err(|error| failed(error.to_string()))?,
        };
        let address = url.to_string();
        let is_https = url.scheme() == "https";
        let mut builder = TransportBuilder::new(SingleNodeConnectionPool::new(url))
            .timeout(Duration::from_secs(config.timeout_seconds));
        if let Some(credentials) = credentials(config, &|name| std::env::var(name).ok())? {
            builder = builder.auth(credentials);
        }
        if let Some(path) = &config.ca {
            let unusable =
                |reason: String| usage(format!("load.elasticsearch.ca {}: {reason}", path.display()));
            let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let chain = Certificate::from_pem(&pem).map_err(|error| unusable(error.to_string()))?;
            if !is_https {
                return Err(unusable(format!("{address} is not https, so no certificate is checked")));
            }
            builder = builder.cert_validation(CertificateValidation::Full(chain));
        } else if !config.verify_certificates {
            tracing::warn!(
                "load.elasticsearch.verify_certificates is false: anyone between here and {address} can read along"
            );
            builder = builder.cert_validation(CertificateValidation::None);
        }
        let transport =
            builder.build().map_err(|error| failed(format!("cannot make a client: {}", chain(&error))))?;
        let give_up = Duration::from_secs(config.give_up_seconds);
        Ok(Client { transport, handle: handle.clone(), address, give_up })
    }

    /// Where it connects to, without credentials.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// One request, one answer.
    pub fn once(
        &self,
        method: Method,
        path: &str,
        kind: Kind,
        body: Option<Bytes>,
    ) -> Result<Reply, NoAnswer> {
        let mut headers = HeaderMap::new();
        if kind == Kind::Lines {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        }
        let sent = async {
            let response = self.transport.send(method, path, headers, None::<&()>, body, None).await?;
            let status = response.status_code().as_u16();
            Ok::<_, elasticsearch::Error>(Reply { status, body: response.bytes().await? })
        };
        self.handle.block_on(sent).map_err(|error| NoAnswer(self.unreachable(&error)))
    }

    /// A request that may be sent twice, until it is answered with something else than "busy" or given up. Every answer that
    /// is not a retry comes back, errors too.
    pub fn answer(
        &self,
        method: Method,
        path: &str,
        kind: Kind,
        body: Option<Bytes>,
    ) -> Result<Reply, EngineError> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let reason = match self.once(method, path, kind, body.clone()) {
                Ok(reply) => match retry::request(reply.status, reply.error().as_ref()) {
                    Verdict::Retry(reason) => reason,
                    Verdict::Stop(reason) => return Err(failed(format!("{}: {reason}", self.address))),
                    Verdict::Done | Verdict::Reject(_) => return Ok(reply),
                },
                Err(NoAnswer(reason)) => reason,
            };
            attempt += 1;
            self.wait(attempt, started, &reason)?;
        }
    }

    /// The same for requests that must succeed: the body of the answer.
    pub fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, EngineError> {
        let reply = self.answer(method, path, Kind::Json, body.map(|body| Bytes::from(body.to_string())))?;
        match retry::request(reply.status, reply.error().as_ref()) {
            Verdict::Done => reply.parse(),
            Verdict::Reject(reason) | Verdict::Retry(reason) | Verdict::Stop(reason) => {
                Err(failed(format!("{} {path} was refused: {reason}", name(method))))
            }
        }
    }

    /// The same where 404 means that there is none.
    pub fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, EngineError> {
        let reply = self.answer(Method::Get, path, Kind::Json, None)?;
        match retry::request(reply.status, reply.error().as_ref()) {
            Verdict::Done => reply.parse().map(Some),
            _ if reply.status == 404 => Ok(None),
            Verdict::Reject(reason) | Verdict::Retry(reason) | Verdict::Stop(reason) => {
                Err(failed(format!("GET {path} was refused: {reason}")))
            }
        }
    }

    /// Pauses before try `attempt`, unless that is too late or the run was asked to end.
    pub fn wait(&self, attempt: u32, since: Instant, reason: &str) -> Result<(), EngineError> {
        if since.elapsed() >= self.give_up {
            let seconds = self.give_up.as_secs();
            return Err(failed(format!(
                "given up after {seconds} s without progress (load.elasticsearch.give_up_seconds): {reason}"
            )));
        }
        if attempt == 1 {
            tracing::warn!("trying again: {reason}");
        }
        let until = Instant::now() + retry::pause(attempt, fastrand::f64());
        while Instant::now() < until {
            if interrupt::is_set() {
                return Err(EngineError::Interrupted);
            }
            std::thread::sleep(
                Duration::from_millis(20).min(until.saturating_duration_since(Instant::now())),
            );
        }
        Ok(())
    }

    fn unreachable(&self, error: &elasticsearch::Error) -> String {
        let reason = if error.is_timeout() {
            "no answer in load.elasticsearch.timeout_seconds".to_owned()
        } else {
            chain(error)
        };
        let remedy = if reason.contains("certificate") || reason.contains("UnknownIssuer") {
            "; name the authority that signed the server's certificate in load.elasticsearch.ca"
        } else {
            ""
        };
        format!("{} does not answer: {reason}{remedy}", self.address)
    }
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Json,
    /// NDJSON
    Lines,
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Put => "PUT",
        Method::Post => "POST",
        Method::Delete => "DELETE",
        Method::Head => "HEAD",
    }
}

/// An error's innermost cause: the layers above it say the same in vaguer words, and repeat the whole address.
fn chain(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Who we are: an API key, else a user with a password, else nobody.
fn credentials(
    config: &ElasticConfig,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Credentials>, EngineError> {
    let secret = |name: &str| environment(name).filter(|value| !value.is_empty());
    if let Some(key) = secret("ELASTIC_API_KEY") {
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "ELASTIC_API_KEY holds spaces or characters that no API key has; paste it again";
            return Err(EngineError::Usage(reason.to_owned()));
        }
        return Ok(Some(match key.split_once(':') {
            Some((id, key)) => Credentials::ApiKey(id.to_owned(), key.to_owned()),
            None => Credentials::EncodedApiKey(key),
        }));
    }
    match (&config.user, secret("ELASTIC_PASSWORD")) {
        (Some(user), Some(password)) => Ok(Some(Credentials::Basic(user.clone(), password))),
        (Some(user), None) => {
            let reason = format!("load.elasticsearch.user is {user}, but ELASTIC_PASSWORD is not set");
            Err(EngineError::Usage(reason))
        }
        (None, Some(password)) => Ok(Some(Credentials::Basic("elastic".to_owned(), password))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(user: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Credentials>, EngineError> {
        let config = ElasticConfig { user: user.map(str::to_owned), ..ElasticConfig::default() };
        credentials(&config, &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn an_api_key_goes_before_a_password() {
        let both = [("ELASTIC_API_KEY", "abc=="), ("ELASTIC_PASSWORD", "p")];
        assert!(
            matches!(found(Some("u"), &both), Ok(Some(Credentials::EncodedApiKey(key))) if key == "abc==")
        );
        let pair = [("ELASTIC_API_KEY", "id:key")];
        assert!(
            matches!(found(None, &pair), Ok(Some(Credentials::ApiKey(id, key))) if id == "id" && key == "key")
        );
        let password = [("ELASTIC_PASSWORD", "p")];
        assert!(matches!(found(None, &password), Ok(Some(Credentials::Basic(user, _))) if user == "elastic"));
        assert!(matches!(found(None, &[]), Ok(None)));
    }

    #[test]
    fn a_user_without_password_and_a_broken_key_are_said_without_repeating_secrets() {
        let error = found(Some("u"), &[]).expect_err("no password").to_string();
        assert!(error.contains("ELASTIC_PASSWORD"), "{error}");
        let error = found(None, &[("ELASTIC_API_KEY", "s3 cret\n")]).expect_err("spaces").to_string();
        assert!(!error.contains("s3"), "{error}");
    }
}
