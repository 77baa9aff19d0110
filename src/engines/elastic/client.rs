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
use super::product::Product;
use super::retry::{self, ServerError, Verdict};
use crate::engines::EngineError;
use crate::interrupt;

/// A connection to one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    product: Product,
    transport: Transport,
    handle: Handle,
    /// For messages; without credentials.
    address: String,
    give_up: Duration,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    product: Product,
    pub status: u16,
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, EngineError> {
        let shown = || String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).into_owned();
        serde_json::from_slice(&self.body).map_err(|error| {
            let reason = format!("its answer is not what {} answers ({error}): {}", self.product, shown());
            failed(self.product, reason)
        })
    }

    /// What the whole answer means.
    pub fn verdict(&self) -> Verdict {
        retry::request(self.product, self.status, self.error().as_ref())
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
pub fn failed(product: Product, reason: impl Into<String>) -> EngineError {
    EngineError::Failed { engine: product.engine().to_owned(), reason: reason.into() }
}

impl Client {
    /// Makes a client; nothing is sent yet. Secrets come from the environment.
    pub fn open(config: &ElasticConfig, handle: &Handle) -> Result<Client, EngineError> {
        let usage = |reason: String| EngineError::Usage(reason);
        let product = config.product;
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
            (None, None) => Url::parse("http://localhost:9200").map_err(|error| failed(product, error.to_string()))?,
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
                |reason: String| usage(format!("{} {}: {reason}", product.key("ca"), path.display()));
            let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let chain = Certificate::from_pem(&pem).map_err(|error| unusable(error.to_string()))?;
            if !is_https {
                return Err(unusable(format!("{address} is not https, so no certificate is checked")));
            }
            builder = builder.cert_validation(CertificateValidation::Full(chain));
        } else if !config.verify_certificates {
            tracing::warn!(
                "{} is false: anyone between here and {address} can read along",
                product.key("verify_certificates")
            );
            builder = builder.cert_validation(CertificateValidation::None);
        }
        let transport = builder
            .build()
            .map_err(|error| failed(product, format!("cannot make a client: {}", chain(&error))))?;
        let give_up = Duration::from_secs(config.give_up_seconds);
        Ok(Client { product, transport, handle: handle.clone(), address, give_up })
    }

    /// The server that it was made for.
    pub fn product(&self) -> Product {
        self.product
    }

    /// An error of this engine.
    pub fn failed(&self, reason: impl Into<String>) -> EngineError {
        failed(self.product, reason)
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
            let product = self.product;
            Ok::<_, elasticsearch::Error>(Reply { product, status, body: response.bytes().await? })
        };
        self.handle.block_on(async {
            tokio::select! {
                answer = sent => answer.map_err(|error| NoAnswer(self.unreachable(&error))),
                () = out_of_patience() => {
                    Err(NoAnswer(format!("{} does not answer, and the run was asked to end", self.address)))
                }
            }
        })
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
                Ok(reply) => match reply.verdict() {
                    Verdict::Retry(reason) => reason,
                    Verdict::Stop(reason) => return Err(self.failed(format!("{}: {reason}", self.address))),
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
        match reply.verdict() {
            Verdict::Done => reply.parse(),
            Verdict::Reject(reason) | Verdict::Retry(reason) | Verdict::Stop(reason) => {
                Err(self.failed(format!("{} {path} was refused: {reason}", name(method))))
            }
        }
    }

    /// The same where 404 means that there is none.
    pub fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, EngineError> {
        let reply = self.answer(Method::Get, path, Kind::Json, None)?;
        match reply.verdict() {
            Verdict::Done => reply.parse().map(Some),
            _ if reply.status == 404 => Ok(None),
            Verdict::Reject(reason) | Verdict::Retry(reason) | Verdict::Stop(reason) => {
                Err(self.failed(format!("GET {path} was refused: {reason}")))
            }
        }
    }

    /// Pauses before try `attempt`, unless that is too late or the run was asked to end.
    pub fn wait(&self, attempt: u32, since: Instant, reason: &str) -> Result<(), EngineError> {
        if since.elapsed() >= self.give_up {
            let seconds = self.give_up.as_secs();
            return Err(self.failed(format!(
                "given up after {seconds} s without progress ({}): {reason}",
                self.product.key("give_up_seconds")
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
            format!("no answer in {}", self.product.key("timeout_seconds"))
        } else {
            chain(error)
        };
        let remedy = if reason.contains("certificate") || reason.contains("UnknownIssuer") {
            format!("; name the authority that signed the server's certificate in {}", self.product.key("ca"))
        } else {
            String::new()
        };
        format!("{} does not answer: {reason}{remedy}", self.address)
    }
}

/// Once a run was asked to end, what is under way and what has to be cleaned up gets so long in all: service managers kill after two
/// minutes or less.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends when there is no more time for a request; one that begins later still has a moment.
async fn out_of_patience() {
    while interrupt::since().is_none_or(|since| since < PATIENCE) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
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

/// Who we are: an API key (of Elasticsearch), else a user with a password, else nobody.
fn credentials(
    config: &ElasticConfig,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Credentials>, EngineError> {
    let secret = |name: &str| environment(name).filter(|value| !value.is_empty());
    let product = config.product;
    if product == Product::Elasticsearch
        && let Some(key) = secret("ELASTIC_API_KEY")
    {
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "ELASTIC_API_KEY holds spaces or characters that no API key has; paste it again";
            return Err(EngineError::Usage(reason.to_owned()));
        }
        return Ok(Some(match key.split_once(':') {
            Some((id, key)) => Credentials::ApiKey(id.to_owned(), key.to_owned()),
            None => Credentials::EncodedApiKey(key),
        }));
    }
    let [_, _, variable] = product.variables();
    match (&config.user, secret(variable)) {
        (Some(user), Some(password)) => Ok(Some(Credentials::Basic(user.clone(), password))),
        (Some(user), None) => {
            let reason = format!("{} is {user}, but {variable} is not set", product.key("user"));
            Err(EngineError::Usage(reason))
        }
        (None, Some(password)) => Ok(Some(Credentials::Basic(product.administrator().to_owned(), password))),
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
    fn each_product_has_its_own_password() {
        let variables =
            [("ELASTIC_API_KEY", "abc=="), ("ELASTIC_PASSWORD", "e"), ("OPENSEARCH_PASSWORD", "o")];
        let config = ElasticConfig { product: Product::OpenSearch, ..ElasticConfig::default() };
        let found = credentials(&config, &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        let Ok(Some(Credentials::Basic(user, password))) = found else { panic!("a user") };
        assert_eq!((user.as_str(), password.as_str()), ("admin", "o"));
    }

    #[test]
    fn a_user_without_password_and_a_broken_key_are_said_without_repeating_secrets() {
        let error = found(Some("u"), &[]).expect_err("no password").to_string();
        assert!(error.contains("ELASTIC_PASSWORD"), "{error}");
        let error = found(None, &[("ELASTIC_API_KEY", "s3 cret\n")]).expect_err("spaces").to_string();
        assert!(!error.contains("s3"), "{error}");
    }
}
