//! Whether a load can succeed, asked before a picture is decoded.

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Kind, Method};
use super::config::ElasticConfig;
use super::dialect::Version;
use super::indices::Indices;
use super::product::Product;
use super::{lock, retry};
use crate::engines::EngineError;

/// What a load needs to be allowed to do.
const CLUSTER: [&str; 1] = ["monitor"];
const INDEX: [&str; 5] = ["create_index", "manage", "read", "view_index_metadata", "write"];

#[derive(Debug, Deserialize)]
struct Root {
    #[serde(default)]
    version: RootVersion,
}

#[derive(Debug, Default, Deserialize)]
struct RootVersion {
    #[serde(default)]
    number: String,
    #[serde(default)]
    distribution: Option<String>,
}

/// The server's version, if it is one that this engine speaks to. Asked once: a server that is not there is said at once.
pub fn version(client: &Client) -> Result<Version, EngineError> {
    let product = client.product();
    let start = format!("start it, or set {} or {}", product.variables()[0], product.key("url"));
    let reply = client
        .once(Method::Get, "", Kind::Json, None)
        .map_err(|error| client.failed(format!("{}; {start}", error.0)))?;
    let address = client.address();
    match reply.verdict() {
        retry::Verdict::Done => {}
        retry::Verdict::Stop(reason) | retry::Verdict::Retry(reason) | retry::Verdict::Reject(reason) => {
            return Err(client.failed(format!("{address} answers: {reason}")));
        }
    }
    let not_ours = || client.failed(format!("what answers at {address} is not {product}; {start}"));
    let root: Root = reply.parse().map_err(|_| not_ours())?;
    // Elasticsearch names no distribution.
    let named = root.version.distribution.as_deref().unwrap_or(Product::Elasticsearch.engine());
    let number = root.version.number;
    let version = Version::parse(&number).ok_or_else(not_ours)?;
    match Product::of_engine(named) {
        Some(found) if found == product => {}
        Some(other) => {
            let engine = other.engine();
            return Err(EngineError::Usage(format!(
                "{address} is {other} {number}, not {product}; set load.engine = \"{engine}\" and [load.{engine}]"
            )));
        }
        None => return Err(client.failed(format!("{address} is {named} {number}, not {product}; {start}"))),
    }
    let (majors, said) = product.versions();
    if !majors.contains(&version.major) {
        return Err(client.failed(format!("{address} is {product} {version}; imagedex speaks to {said}")));
    }
    Ok(version)
}

/// Every check; what was found, a line each.
pub fn check(client: &Client, config: &ElasticConfig, version: Version) -> Result<Vec<String>, EngineError> {
    let oversample = config.knn.as_ref().and_then(|knn| knn.oversample);
    if let Some(oversample) = oversample.filter(|oversample| !version.rescores(*oversample)) {
        let key = client.product().key("knn.oversample");
        let least = if oversample == 0.0 { "8.19, or 9.1," } else { "8.18" };
        return Err(client.failed(format!(
            "{key} = {oversample} needs Elasticsearch {least} and this is {version}; leave it away"
        )));
    }
    let mut lines = vec![format!("{} {version} at {}", client.product(), client.address())];
    lines.push(match client.product() {
        Product::Elasticsearch => privileges(client, config)?,
        Product::OpenSearch => plugin(client, config, version)?,
    });
    let indices = Indices::new(client, &config.alias);
    let alias = &config.alias;
    lines.push(match indices.check_alias()? {
        Some(index) => {
            blocked(client, &index)?;
            format!("alias {alias} stands for {index}")
        }
        None => format!("alias {alias} is not there yet"),
    });
    lines.push(disk(client)?);
    Ok(lines)
}

/// Refuses where OpenSearch's k-NN plugin, whose vector field and score functions are used, is not on every node. Privileges
/// cannot be asked for: what is lacking is said when it is needed.
fn plugin(client: &Client, config: &ElasticConfig, version: Version) -> Result<String, EngineError> {
    // Before, a search could not say how many candidates it looks at.
    let least = Version { major: 2, minor: 16 };
    if config.knn.is_some() && version < least {
        let key = client.product().key("knn");
        return Err(client.failed(format!("{key} needs OpenSearch {least}; the exact arm needs none of it")));
    }
    let path = "_nodes/plugins?filter_path=nodes.*.name,nodes.*.plugins.name,nodes.*.modules.name";
    let found: Value = client.call(Method::Get, path, None)?;
    let has_it = |node: &&Value| {
        let parts = [&node["plugins"], &node["modules"]].into_iter().filter_map(Value::as_array).flatten();
        parts.into_iter().any(|part| part["name"] == "opensearch-knn")
    };
    let nodes = found["nodes"].as_object().into_iter().flat_map(|nodes| nodes.values());
    let lacking: Vec<&str> =
        nodes.filter(|node| !has_it(node)).filter_map(|node| node["name"].as_str()).collect();
    match lacking.is_empty() {
        true => Ok("every node has the k-NN plugin".to_owned()),
        false => Err(client.failed(format!(
            "no plugin opensearch-knn on {}; install it (bin/opensearch-plugin install opensearch-knn) and start the node again",
            lacking.join(", ")
        ))),
    }
}

fn privileges(client: &Client, config: &ElasticConfig) -> Result<String, EngineError> {
    let names = [config.alias.clone(), format!("{}-*", config.alias), lock::INDEX.to_owned()];
    let body = json!({ "cluster": CLUSTER, "index": [{ "names": names, "privileges": INDEX }] });
    let path = "_security/user/_has_privileges";
    let reply = client.answer(Method::Post, path, Kind::Json, Some(body.to_string().into()))?;
    if reply.status != 200 {
        // A cluster without security has no such question.
        return Ok("security is off, or does not tell: every privilege is assumed".to_owned());
    }
    let answer: Value = reply.parse()?;
    if answer["has_all_requested"] == true {
        return Ok(format!("user {} has the privileges", answer["username"].as_str().unwrap_or("?")));
    }
    let missing = |of: &Value, on: &str| -> Vec<String> {
        let privileges = of.as_object().into_iter().flatten().filter(|(_, has)| **has == false);
        privileges.map(|(name, _)| format!("{name} on {on}")).collect()
    };
    let mut lacking = missing(&answer["cluster"], "the cluster");
    for (index, privileges) in answer["index"].as_object().into_iter().flatten() {
        lacking.extend(missing(privileges, index));
    }
    let user = answer["username"].as_str().unwrap_or("?");
    Err(client.failed(format!("user {user} lacks privileges: {}", lacking.join(", "))))
}

/// Refuses where the live index is read-only: the disk ran full, and a load would make it worse.
fn blocked(client: &Client, index: &str) -> Result<(), EngineError> {
    let path = format!("{index}/_settings?flat_settings=true");
    let settings: Value = client.call(Method::Get, &path, None)?;
    let of_index = &settings[index]["settings"];
    if of_index["index.blocks.read_only_allow_delete"] == "true" {
        return Err(client.failed(format!(
            "index {index} is read-only because its disk ran full; free disk space and set index.blocks.read_only_allow_delete \
             to null, then run again"
        )));
    }
    Ok(())
}

/// Refuses where no node has room by its own watermark: no shard would be put anywhere.
fn disk(client: &Client) -> Result<String, EngineError> {
    let stats: Value = client.call(Method::Get, "_nodes/stats/fs?filter_path=nodes.*.fs.data", None)?;
    let nodes = stats["nodes"].as_object().into_iter().flat_map(|nodes| nodes.values());
    let paths = nodes.flat_map(|node| node["fs"]["data"].as_array().into_iter().flatten());
    // Older servers do not say their watermark; they will say so themselves when it is reached.
    let spaces: Vec<(u64, u64)> = paths
        .filter_map(|path| {
            let watermark = path["low_watermark_free_space_in_bytes"].as_u64().unwrap_or(0);
            Some((path["available_in_bytes"].as_u64()?, watermark))
        })
        .collect();
    match spaces.iter().filter(|(free, needed)| free >= needed).map(|(free, _)| *free).max() {
        None if !spaces.is_empty() => {
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            let (free, needed) = spaces.iter().max().copied().unwrap_or_default();
            Err(client.failed(format!(
                "no node has more free disk than its low watermark asks for ({:.1} GB are free, {:.1} GB are asked for by \
                 cluster.routing.allocation.disk.watermark.low), so the server would put no shard anywhere; free disk space, or set \
                 that to less",
                gigabytes(free),
                gigabytes(needed)
            )))
        }
        free => Ok(format!("{:.1} GB of disk are free", free.unwrap_or(0) as f64 / 1e9)),
    }
}
