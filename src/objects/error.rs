//! What can be wrong with an object store, sorted by what a person does about it.

use std::io;

use super::ObjectUrl;

/// Why an object store could not be used. Credentials are in none of the texts.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("{url} cannot be used: {reason}; see docs/object-stores.md for the settings of its store")]
    Settings { url: String, reason: String },
    #[error("{url} is not there: {reason}; check the names of bucket and folder")]
    Missing { url: String, reason: String },
    #[error(
        "{url} may not be read or written: {reason}; check the credentials in the environment, and what they allow"
    )]
    Denied { url: String, reason: String },
    #[error("{url} holds an object whose key cannot be read: {reason}; rename the object, or remove it")]
    Name { url: String, reason: String },
    /// The network, or the server, even when asked again. What is stored was kept.
    #[error("{url} does not answer as it should: {reason}; run again once it does")]
    Unreachable { url: String, reason: String },
}

const AWS_METADATA: &str = "169.254.169.254";
const GOOGLE_METADATA: &str = "metadata.google.internal";

impl ObjectError {
    /// Whether the configuration is at fault rather than network or server.
    pub fn is_usage(&self) -> bool {
        !matches!(self, ObjectError::Unreachable { .. })
    }

    pub(super) fn of(url: &ObjectUrl, error: &object_store::Error) -> ObjectError {
        use object_store::Error::*;
        let (url, reason) = (url.to_string(), short(error));
        match error {
            NotFound { .. } => ObjectError::Missing { url, reason },
            PermissionDenied { .. } | Unauthenticated { .. } => ObjectError::Denied { url, reason },
            InvalidPath { .. } => ObjectError::Name { url, reason },
            _ => {
                // Of a listing, only the text says with what status it was refused.
                let whole = error.to_string();
                let has_status = |statuses: &[&str]| {
                    statuses.iter().any(|status| whole.contains(&format!("status code: {status} ")))
                };
                // The last place where credentials are looked for.
                if [AWS_METADATA, GOOGLE_METADATA].iter().any(|place| whole.contains(place)) {
                    ObjectError::Denied { url, reason: "no credentials were found".to_owned() }
                } else if has_status(&["401", "403"]) {
                    ObjectError::Denied { url, reason }
                } else if has_status(&["404"]) {
                    ObjectError::Missing { url, reason }
                } else {
                    ObjectError::Unreachable { url, reason }
                }
            }
        }
    }
}

/// The same for code that reads files: what is not there, and what may not be read, are told apart from the rest.
pub(super) fn as_io(url: &ObjectUrl, error: &object_store::Error) -> io::Error {
    let kind = match ObjectError::of(url, error) {
        ObjectError::Missing { .. } => io::ErrorKind::NotFound,
        ObjectError::Denied { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{url}: {}", short(error)))
}

/// The server's own words where there are some, else the innermost reason. Never a header, and never the whole of an answer.
pub(super) fn short(error: &object_store::Error) -> String {
    let whole = error.to_string();
    let between = |start: &str, end: &str| {
        let (_, rest) = whole.split_once(start)?;
        Some(rest.split_once(end)?.0.trim().to_owned()).filter(|text| !text.is_empty())
    };
    if let Some(code) = between("<Code>", "</Code>") {
        let message = between("<Message>", "</Message>");
        return scrubbed(message.map_or(code.clone(), |message| format!("{code}: {message}")));
    }
    if let Some(status) = between("non-2xx status code: ", ":") {
        return scrubbed(status);
    }
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    let first = text.lines().next().unwrap_or_default();
    scrubbed(first.chars().take(300).collect())
}

/// Takes the credentials of the environment out of a text: some servers repeat what they were sent.
fn scrubbed(text: String) -> String {
    const SECRETS: [&str; 8] = [
        "SECRET",
        "ACCESS_KEY",
        "SESSION_TOKEN",
        "SAS",
        "CLIENT_SECRET",
        "PASSWORD",
        "SERVICE_ACCOUNT_KEY",
        "BEARER",
    ];
    let is_secret = |name: &str| {
        ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|store| name.starts_with(store))
            && SECRETS.iter().any(|word| name.contains(word))
    };
    let values = std::env::vars_os().filter_map(|(name, value)| {
        is_secret(name.to_str()?).then(|| value.into_string().ok()).flatten().filter(|value| value.len() > 5)
    });
    values.fold(text, |text, value| text.replace(&value, "…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn reasons_are_the_servers_words_without_its_answer() {
        let answer = "Server returned non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code>\
                      <Message>The signature does not match.</Message><StringToSign>AWS4 20 abc</StringToSign></Error>";
        assert_eq!(short(&generic(answer)), "SignatureDoesNotMatch: The signature does not match.");
        let bare = "Error performing GET http://x/y in 1s - Server returned non-2xx status code: 503 Service Unavailable: ";
        assert_eq!(short(&generic(bare)), "503 Service Unavailable");
        assert_eq!(short(&generic("connection reset\nmore")), "connection reset");
    }

    #[test]
    fn what_is_missing_is_told_from_what_does_not_answer() {
        let url = ObjectUrl::parse("s3://shop/a.jpg").expect("valid");
        let source = || "x".to_owned().into();
        let missing = object_store::Error::NotFound { path: "a.jpg".to_owned(), source: source() };
        let denied = object_store::Error::PermissionDenied { path: "a.jpg".to_owned(), source: source() };
        assert_eq!(as_io(&url, &missing).kind(), io::ErrorKind::NotFound);
        assert_eq!(as_io(&url, &denied).kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(as_io(&url, &generic("timed out")).kind(), io::ErrorKind::Other);
        assert!(ObjectError::of(&url, &missing).is_usage());
        assert!(!ObjectError::of(&url, &generic("timed out")).is_usage());
        let listing = generic(
            "Server returned non-2xx status code: 404 Not Found: <Error><Code>NoSuchBucket</Code></Error>",
        );
        assert_eq!(as_io(&url, &listing).kind(), io::ErrorKind::NotFound);
        let nobody = ObjectError::of(
            &url,
            &generic("error sending request for url (http://169.254.169.254/latest/api/token)"),
        );
        assert!(nobody.to_string().contains("no credentials were found"), "{nobody}");
    }
}
