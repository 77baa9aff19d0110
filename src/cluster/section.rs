//! The section `[extract]` of a pipeline file.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ClusterConfig, NOT_BUILT, TlsFiles, parse_address};

/// `[extract]`, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractSection {
    on: Option<String>,
    part: Option<usize>,
    in_flight: Option<usize>,
    limit_seconds: Option<u64>,
    tries: Option<usize>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl ExtractSection {
    /// Nothing where pictures are embedded on this machine. On an error the key at fault, and why.
    pub fn finish(self) -> Result<Option<ClusterConfig>, (&'static str, String)> {
        let between = |key, value: Option<usize>, default, most| match value.unwrap_or(default) {
            value if (1..=most).contains(&value) => Ok(value),
            value => Err((key, format!("{value} is not between 1 and {most}"))),
        };
        let part = between("extract.part", self.part, 256, 4_096)?;
        let in_flight = between("extract.in_flight", self.in_flight, 16, 1_024)?;
        let tries = between("extract.tries", self.tries, 3, 100)?;
        let limit = self.limit_seconds.unwrap_or(600);
        if limit == 0 {
            return Err(("extract.limit_seconds", "must be at least 1".to_owned()));
        }
        let tls = match (self.ca, self.cert, self.key) {
            (None, None, None) => None,
            (Some(ca), Some(cert), Some(key)) => Some(TlsFiles { ca, cert, key }),
            _ => return Err(("extract.ca", "ca, cert and key belong together".to_owned())),
        };
        let on = match self.on.as_deref() {
            None | Some("local") => return Ok(None),
            Some(on) => on,
        };
        let (host, port) =
            parse_address(on).map_err(|reason| ("extract.on", format!("{reason}, and not \"local\"")))?;
        if cfg!(not(feature = "distributed")) {
            return Err(("extract.on", NOT_BUILT.to_owned()));
        }
        let limit = Duration::from_secs(limit);
        Ok(Some(ClusterConfig { host, port, part, in_flight, limit, tries, tls }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(text: &str) -> Result<Option<ClusterConfig>, String> {
        let section: ExtractSection = toml::from_str(text).expect("known keys");
        section.finish().map_err(|(key, reason)| format!("{key}: {reason}"))
    }

    #[test]
    fn extracting_is_local_unless_a_scheduler_is_named() {
        for text in ["", "on = 'local'", "part = 8"] {
            assert_eq!(finish(text), Ok(None), "{text}");
        }
    }

    #[cfg(feature = "distributed")]
    #[test]
    fn a_scheduler_has_a_host_and_a_port() {
        let config = finish("on = 'df://ten'").expect("valid").expect("a cluster");
        assert_eq!((config.address().as_str(), config.part, config.tls), ("df://ten:50050", 256, None));
        let config = finish("on = 'df://10.0.0.1:7'\nca = 'a'\ncert = 'b'\nkey = 'c'").expect("valid");
        let config = config.expect("a cluster");
        assert_eq!((config.host.as_str(), config.port, config.tls.is_some()), ("10.0.0.1", 7, true));
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, expected) in [
            (
                "on = 'ten:50050'",
                "extract.on: `ten:50050` is not of the form df://host:50050, and not \"local\"",
            ),
            ("on = 'http://ten:50050'", "extract.on"),
            ("on = 'df://ten/x'", "extract.on"),
            ("on = 'df://:secret@ten'", "extract.on"),
            ("on = 'df://ten#x'", "extract.on"),
            ("on = 'df://ten:0'", "extract.on"),
            ("on = 'df://%20'", "extract.on"),
            ("part = 0", "extract.part: 0 is not between 1 and 4096"),
            ("tries = 0", "extract.tries"),
            ("limit_seconds = 0", "extract.limit_seconds"),
            ("ca = 'a'\ncert = 'b'", "extract.ca: ca, cert and key belong together"),
        ] {
            let error = finish(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
