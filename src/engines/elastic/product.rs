//! Which of the two servers it is: what it is called, which versions are spoken to, where its name and password come from. What
//! the two are told differs in [`super::dialect`].

use std::fmt;
use std::ops::RangeInclusive;

/// A server with the bulk protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Product {
    #[default]
    Elasticsearch,
    OpenSearch,
}

impl Product {
    pub const ALL: [Product; 2] = [Product::Elasticsearch, Product::OpenSearch];

    /// The engine's name in pipeline files and reports.
    pub fn engine(self) -> &'static str {
        match self {
            Product::Elasticsearch => "elasticsearch",
            Product::OpenSearch => "opensearch",
        }
    }

    /// The product of an engine's name.
    pub fn of_engine(name: &str) -> Option<Product> {
        Product::ALL.into_iter().find(|product| product.engine() == name)
    }

    /// A field of its section, as pipeline files have it.
    pub fn key(self, field: &str) -> String {
        format!("load.{}.{field}", self.engine())
    }

    /// Major versions that imagedex speaks to, and how they are said.
    pub fn versions(self) -> (RangeInclusive<u32>, &'static str) {
        match self {
            Product::Elasticsearch => (8..=9, "8 and 9"),
            Product::OpenSearch => (2..=2, "2, tested with 2.19; 3 is not tested yet"),
        }
    }

    /// The environment variables for its URL, a user's name and the password.
    pub fn variables(self) -> [&'static str; 3] {
        match self {
            Product::Elasticsearch => ["ELASTICSEARCH_URL", "ELASTIC_USERNAME", "ELASTIC_PASSWORD"],
            Product::OpenSearch => ["OPENSEARCH_URL", "OPENSEARCH_USERNAME", "OPENSEARCH_PASSWORD"],
        }
    }

    /// Who a password without a name belongs to: the user that the server makes for its administrator.
    pub fn administrator(self) -> &'static str {
        match self {
            Product::Elasticsearch => "elastic",
            Product::OpenSearch => "admin",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Product::Elasticsearch => "Elasticsearch",
            Product::OpenSearch => "OpenSearch",
        })
    }
}
