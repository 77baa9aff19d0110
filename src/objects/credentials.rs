//! Where the credentials of a store come from, and how it is reached: the environment, as the store's own tools have it.
//!
//! `object_store` knows the environment, web identities, containers and instance metadata. What it lacks are the files of
//! the AWS command line, `~/.aws/credentials` and `~/.aws/config`: static keys and the region of a profile are read here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

use super::url::Scheme;
use super::{ObjectError, ObjectUrl};
use crate::objects::error::short;

/// How often and how long a request is made again: 429, 5xx, and connections that fail. Half a minute or so where nobody
/// answers: pauses are drawn at random, each from up to three times the one before.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(8),
            base: 3.0,
        },
        max_retries: 10,
        retry_timeout: Duration::from_secs(90),
    }
}

/// The longest that one request may take, where `AWS_TIMEOUT` (and alike) says nothing. Large objects come in parts.
const TIMEOUT: &str = "30 seconds";

/// A client for the bucket of `url`.
pub(super) fn open(url: &ObjectUrl) -> Result<Arc<dyn ObjectStore>, ObjectError> {
    let settings =
        |error: object_store::Error| ObjectError::Settings { url: url.to_string(), reason: short(&error) };
    let bucket = url.bucket.as_ref();
    Ok(match url.scheme {
        Scheme::S3 => Arc::new(s3(bucket, url)?.build().map_err(settings)?),
        Scheme::Gs => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            let key = GoogleConfigKey::Client(ClientConfigKey::Timeout);
            if builder.get_config_value(&key).is_none() {
                builder = builder.with_config(key, TIMEOUT);
            }
            Arc::new(builder.with_retry(retries()).build().map_err(settings)?)
        }
        Scheme::Az => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
            let key = AzureConfigKey::Client(ClientConfigKey::Timeout);
            if builder.get_config_value(&key).is_none() {
                builder = builder.with_config(key, TIMEOUT);
            }
            Arc::new(builder.with_retry(retries()).build().map_err(settings)?)
        }
    })
}

fn s3(bucket: &str, url: &ObjectUrl) -> Result<AmazonS3Builder, ObjectError> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retries());
    let has = |builder: &AmazonS3Builder, key: AmazonS3ConfigKey| builder.get_config_value(&key).is_some();
    let timeout = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
    if !has(&builder, timeout) {
        builder = builder.with_config(timeout, TIMEOUT);
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let profile = Profile::read(&variable);
    if !has(&builder, AmazonS3ConfigKey::AccessKeyId) && !has(&builder, AmazonS3ConfigKey::SecretAccessKey) {
        match &profile.keys {
            Some((id, secret)) => {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret);
                if let Some(token) = &profile.token {
                    builder = builder.with_token(token);
                }
            }
            // Nothing is left to ask, and an unsigned request would be refused with words about something else.
            None if is_true(variable("AWS_EC2_METADATA_DISABLED")) && !has_provider(&variable) => {
                let reason = "no credentials were found".to_owned();
                return Err(ObjectError::Denied { url: url.to_string(), reason });
            }
            None => {}
        }
    }
    if !has(&builder, AmazonS3ConfigKey::Region)
        && let Some(region) = variable("AWS_DEFAULT_REGION").or(profile.region)
    {
        builder = builder.with_region(region);
    }
    Ok(builder)
}

fn is_true(value: Option<String>) -> bool {
    value.is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
}

/// Whether something else than instance metadata gives credentials, or none are wanted.
fn has_provider(variable: &dyn Fn(&str) -> Option<String>) -> bool {
    const PROVIDERS: [&str; 3] = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    PROVIDERS.iter().any(|name| variable(name).is_some()) || is_true(variable("AWS_SKIP_SIGNATURE"))
}

/// What the files of the AWS command line say of the profile `AWS_PROFILE`, or `default`.
#[derive(Default)]
struct Profile {
    /// Id and secret.
    keys: Option<(String, String)>,
    token: Option<String>,
    region: Option<String>,
}

impl Profile {
    fn read(variable: &dyn Fn(&str) -> Option<String>) -> Profile {
        let name = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
        let file = |named: &str, default: &str| {
            let home = || Some(PathBuf::from(variable("HOME")?).join(".aws").join(default));
            let path = variable(named).map(PathBuf::from).or_else(home)?;
            std::fs::read_to_string(path).ok()
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials").unwrap_or_default();
        let config = file("AWS_CONFIG_FILE", "config").unwrap_or_default();
        Profile::of(&name, &credentials, &config)
    }

    fn of(name: &str, credentials: &str, config: &str) -> Profile {
        // In the second file all sections but `default` begin with a word.
        let mut values = section(config, &format!("profile {name}"));
        values.extend(section(config, name));
        values.extend(section(credentials, name));
        let mut take = |key: &str| values.remove(key).filter(|value| !value.is_empty());
        let keys = take("aws_access_key_id").zip(take("aws_secret_access_key"));
        Profile { keys, token: take("aws_session_token"), region: take("region") }
    }
}

/// The keys and values of one section of an INI file.
fn section(text: &str, name: &str) -> BTreeMap<String, String> {
    let mut is_inside = false;
    let mut values = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_inside = title.trim() == name;
        } else if let Some((key, value)) =
            line.split_once('=').filter(|_| is_inside && !line.starts_with('#'))
        {
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_its_keys_in_one_file_and_its_region_in_the_other() {
        let credentials = "[default]\naws_access_key_id = a\naws_secret_access_key=b=c\n[shop]\naws_access_key_id=d\n\
                           aws_secret_access_key=e\naws_session_token = f\n";
        let config = "[default]\nregion = eu-west-1\n# [profile shop]\n[profile shop]\nregion=eu-central-1\n";
        let default = Profile::of("default", credentials, config);
        assert_eq!(default.keys, Some(("a".to_owned(), "b=c".to_owned())));
        assert_eq!((default.token, default.region.as_deref()), (None, Some("eu-west-1")));
        let shop = Profile::of("shop", credentials, config);
        assert_eq!(shop.keys, Some(("d".to_owned(), "e".to_owned())));
        assert_eq!((shop.token.as_deref(), shop.region.as_deref()), (Some("f"), Some("eu-central-1")));
        assert!(Profile::of("other", credentials, config).keys.is_none());
    }

    #[test]
    fn the_three_stores_can_be_opened() {
        for text in ["s3://shop/x", "gs://shop/x"] {
            let url = ObjectUrl::parse(text).expect("valid");
            assert!(open(&url).is_ok(), "{text}: {:?}", open(&url).err());
        }
        // Without an account there is no server to ask: said before anything is.
        if std::env::var_os("AZURE_STORAGE_ACCOUNT_NAME").is_none() {
            let url = ObjectUrl::parse("az://container/x").expect("valid");
            let error = open(&url).expect_err("no account").to_string();
            assert!(
                error.contains("az://container/x cannot be used: ") && error.contains("ccount"),
                "{error}"
            );
        }
    }
}
