//! Requests to Milvus: answered, tried again where that can help, or one error with the server's own words.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use milvus::v2::prelude::{
    ClientV2, ConnectConfig, Error, GetServerVersionRequest, RetryConfig, ServerError, TelemetryConfig,
};
use tokio::runtime::Handle;

use super::{MilvusConfig, NAME};
use crate::engines::EngineError;
use crate::interrupt;

/// Between two tries of one request: this at first, then twice as long each time, up to five seconds.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// To remove what was begun: a server that is away keeps it, and the next run removes it.
const CLEAN_UP: Duration = Duration::from_secs(5);
/// To connect: a server that is there answers at once.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Clone)]
pub struct Client {
    connected: ClientV2,
    handle: Handle,
    address: String,
    give_up: Duration,
    /// Whether a run that was asked to end stops waiting at once.
    heeds_interrupt: bool,
    retried: Arc<Mutex<u64>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Milvus at {}", self.address)
    }
}

/// An error of this engine.
pub fn failed(reason: impl Into<String>) -> EngineError {
    EngineError::Failed { engine: NAME.to_owned(), reason: reason.into() }
}

impl Client {
    /// Connects. Secrets come from the environment.
    pub fn connect(config: &MilvusConfig, handle: &Handle) -> Result<Client, EngineError> {
        let address = config.uri.as_ref().map_or_else(
            || "http://localhost:19530".to_owned(),
            |uri| uri.url().as_str().trim_end_matches('/').to_owned(),
        );
        let mut how = ConnectConfig::new()
            .uri(&address)
            .connect_timeout(CONNECT)
            .rpc_timeout(Duration::from_secs(config.timeout_seconds))
            // Tries are ours: they end when the user asks, and say what they wait for.
            .retry(RetryConfig::new().max_attempts(1))
            .telemetry(TelemetryConfig::new().enabled(false));
        if let Some(token) = token(config, &|name| std::env::var(name).ok())? {
            how = how.token(token);
        }
        if let Some(database) = &config.database {
            how = how.database(database);
        }
        if let Some(path) = &config.ca {
            let unusable =
                |reason: &str| EngineError::Usage(format!("load.milvus.ca {}: {reason}", path.display()));
            if !address.starts_with("https://") {
                return Err(unusable(&format!("{address} is not https, so no certificate is checked")));
            }
            std::fs::metadata(path).map_err(|error| unusable(&error.to_string()))?;
            how = how.ca_certificate(path.to_string_lossy());
        }
        if address.starts_with("https://") {
            // There are two in this program, and the client names none. It is set already where this is not the first connection.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let connected = wait_for(handle, until_interrupted(ClientV2::new(&how)))?
            .map_err(|error| failed(refused_connection(&address, &error)))?;
        Ok(Client {
            connected,
            handle: handle.clone(),
            address,
            give_up: Duration::from_secs(config.give_up_seconds),
            heeds_interrupt: true,
            retried: Arc::default(),
        })
    }

    /// The same for what must be done even when the run was asked to end, and is given up soon.
    pub fn for_clean_up(&self) -> Client {
        Client { heeds_interrupt: false, give_up: self.give_up.min(CLEAN_UP), ..self.clone() }
    }

    /// Where it connects to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Requests that were sent again so far.
    pub fn retried(&self) -> u64 {
        *self.retried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's version, as it says it.
    pub fn version(&self) -> Result<String, EngineError> {
        let answer = self.call("its version was not told", |client| async move {
            client.server_version(GetServerVersionRequest::builder().build()?).await
        })?;
        Ok(answer.version().to_owned())
    }

    /// A request that may be sent twice, tried until it is answered, refused, or given up. `what` says what failed then.
    pub fn call<T, F>(&self, what: &str, request: impl Fn(ClientV2) -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.ask(what, request)?.map_err(|error| failed(format!("{what}: {}", error.reason())))
    }

    /// The same, with a refusal of the server's as an answer.
    pub fn ask<T, F>(
        &self,
        what: &str,
        request: impl Fn(ClientV2) -> F,
    ) -> Result<Result<T, ServerError>, EngineError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let since = Instant::now();
        let mut wait = FIRST_WAIT;
        loop {
            let answer = self.wait_unless_interrupted(request(self.connected.clone()))?;
            let error = match answer {
                Ok(answer) => return Ok(Ok(answer)),
                Err(error) => error,
            };
            if !is_passing(&error) {
                return match refusal(&error) {
                    Some(refusal) => Ok(Err(refusal)),
                    None => Err(failed(format!("{what}: {}", said(&error)))),
                };
            }
            if since.elapsed() + wait > self.give_up {
                return Err(failed(format!(
                    "{what}, tried for {} s (load.milvus.give_up_seconds): {}",
                    since.elapsed().as_secs(),
                    said(&error)
                )));
            }
            tracing::info!("{what}, trying again in {:.1} s: {}", wait.as_secs_f64(), said(&error));
            *self.retried.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            self.pause(wait)?;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// One try, whatever comes of it: for where there is no time for more.
    pub fn once<T, F>(&self, request: impl Fn(ClientV2) -> F) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let answer = async { tokio::time::timeout(LONGEST_WAIT, request(self.connected.clone())).await };
        match wait_for(&self.handle, answer) {
            Ok(answer) => answer.map_err(|error| failed(said(&error))),
            Err(_) => Err(failed("no answer came")),
        }
    }

    /// Waits, unless the run is asked to end.
    pub fn pause(&self, time: Duration) -> Result<(), EngineError> {
        self.wait_unless_interrupted(async { tokio::time::sleep(time).await })
    }

    fn wait_unless_interrupted<T>(&self, work: impl Future<Output = T>) -> Result<T, EngineError> {
        match self.heeds_interrupt {
            true => wait_for(&self.handle, until_interrupted(work)),
            false => Ok(wait_for(&self.handle, work)),
        }
    }
}

/// Waits for an outcome. A load runs inside the feature table's asynchronous reading, where a thread may only wait if it says so.
fn wait_for<T>(handle: &Handle, work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| handle.block_on(work))
}

/// The outcome, or that the run was asked to end.
async fn until_interrupted<T>(work: impl Future<Output = T>) -> Result<T, EngineError> {
    let asked = async {
        while !interrupt::is_set() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        biased;
        () = asked => Err(EngineError::Interrupted),
        outcome = work => Ok(outcome),
    }
}

/// The server's refusal, where the error is one.
fn refusal(error: &Error) -> Option<ServerError> {
    match error {
        Error::Server(server) => Some(server.clone()),
        Error::RetryExhausted { source, .. } => refusal(source),
        _ => None,
    }
}

/// Whether it may be over in a moment: the server starts, restarts, has too much to do, or the network failed.
fn is_passing(error: &Error) -> bool {
    // Milvus' `merr`: not ready, unavailable, too many requests, rate limit; a node that is gone, a channel without one.
    const PASSING: [i32; 8] = [1, 2, 4, 8, 500, 503, 901, 902];
    match error {
        Error::Grpc(status) => {
            // By its number: this crate has no `tonic` of its own. 1 cancelled, 2 unknown (a connection that broke), 4 deadline,
            // 10 aborted, 14 unavailable.
            match status.code() as i32 {
                1 | 4 | 10 | 14 => true,
                2 => status.message().contains("transport error"),
                _ => false,
            }
        }
        Error::Timeout(_) => true,
        Error::Server(refusal) => PASSING.contains(&refusal.code()),
        Error::RetryExhausted { source, .. } => is_passing(source),
        _ => false,
    }
}

/// What a failed first word with the server says, and what to do.
fn refused_connection(address: &str, error: &Error) -> String {
    let said = said(error);
    let is_about = |texts: &[&str]| texts.iter().any(|text| said.to_ascii_lowercase().contains(text));
    if is_about(&["auth", "password", "token"]) {
        format!(
            "{address} does not let us in: {said}; set MILVUS_TOKEN, or load.milvus.user and MILVUS_PASSWORD"
        )
    } else if address.starts_with("https://") {
        // The client tries again until it is late, and then says no more than that.
        format!(
            "{address} does not answer, or is not trusted: {said}; load.milvus.ca names the authority of its certificate, MILVUS_URI or \
             load.milvus.uri says where it is"
        )
    } else {
        format!("{address} does not answer: {said}; MILVUS_URI or load.milvus.uri says where the server is")
    }
}

/// What an error says, without what only developers of the client need.
fn said(error: &Error) -> String {
    match error {
        Error::Grpc(status) => {
            let mut innermost: &dyn std::error::Error = status;
            while let Some(source) = innermost.source() {
                innermost = source;
            }
            let inner = innermost.to_string();
            match status.message() {
                "" => inner,
                message if std::ptr::eq(innermost, status as &dyn std::error::Error) => message.to_owned(),
                message => format!("{message}: {inner}"),
            }
        }
        Error::Server(refusal) => refusal.reason().to_owned(),
        Error::RetryExhausted { source, .. } => said(source),
        other => other.to_string(),
    }
}

/// Who we are: a token, else a user with a password, else nobody.
fn token(
    config: &MilvusConfig,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<String>, EngineError> {
    let secret = |name: &str| environment(name).filter(|value| !value.is_empty());
    if let Some(token) = secret("MILVUS_TOKEN") {
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "MILVUS_TOKEN holds spaces or characters that no token has; paste it again";
            return Err(EngineError::Usage(reason.to_owned()));
        }
        return Ok(Some(token));
    }
    match (&config.user, secret("MILVUS_PASSWORD")) {
        (Some(user), Some(password)) => Ok(Some(format!("{user}:{password}"))),
        (Some(user), None) => {
            Err(EngineError::Usage(format!("load.milvus.user is {user}, but MILVUS_PASSWORD is not set")))
        }
        (None, Some(password)) => Ok(Some(format!("root:{password}"))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_before_a_password_and_no_secret_is_repeated() {
        let found = |user: Option<&str>, variables: &[(&str, &str)]| {
            let config = MilvusConfig { user: user.map(str::to_owned), ..MilvusConfig::default() };
            token(&config, &|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let both = [("MILVUS_TOKEN", "t:1"), ("MILVUS_PASSWORD", "p")];
        assert_eq!(found(Some("me"), &both).expect("a token").as_deref(), Some("t:1"));
        assert_eq!(found(Some("me"), &both[1..]).expect("a user").as_deref(), Some("me:p"));
        assert_eq!(found(None, &both[1..]).expect("the administrator").as_deref(), Some("root:p"));
        assert_eq!(found(None, &[]).expect("nobody"), None);
        let error = found(Some("me"), &[]).expect_err("no password").to_string();
        assert!(error.contains("MILVUS_PASSWORD"), "{error}");
        let error = found(None, &[("MILVUS_TOKEN", "s3 cret")]).expect_err("a space").to_string();
        assert!(!error.contains("s3"), "{error}");
    }
}
