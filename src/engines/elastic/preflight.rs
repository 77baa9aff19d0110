//! Whether a load can succeed, asked before a picture is decoded.

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Kind, Method, failed};
use super::config::ElasticConfig;
use super::dialect::Version;
use super::indices::Indices;
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
    let start = "start it, or set ELASTICSEARCH_URL or load.elasticsearch.url";
    let reply = client
        .once(Method::Get, "", Kind::Json, None)
        .map_err(|error| failed(format!("{}; {start}", error.0)))?;
    let address = client.address();
    match retry::request(reply.status, reply.error().as_ref()) {
        retry::Verdict::Done => {}
        retry::Verdict::Stop(reason) | retry::Verdict::Retry(reason) | retry::Verdict::Reject(reason) => {
            return Err(failed(format!("{address} answers: {reason}")));
        }
    }
    let not_ours = || failed(format!("what answers at {address} is not Elasticsearch; {start}"));
    let root: Root = reply.parse().map_err(|_| not_ours())?;
    if let Some(distribution) = root.version.distribution {
        return Err(failed(format!(
            "{address} is {distribution} {}, not Elasticsearch; this engine speaks to Elasticsearch 8 and 9",
            root.version.number
        )));
    }
    let version = Version::parse(&root.version.number).ok_or_else(not_ours)?;
    if !(8..=9).contains(&version.major) {
        return Err(failed(format!("{address} is Elasticsearch {version}; imagedex speaks to 8 and 9")));
    }
    Ok(version)
}

/// Every check; what was found, a line each.
pub fn check(client: &Client, config: &ElasticConfig, version: Version) -> Result<Vec<String>, EngineError> {
    let mut lines = vec![format!("Elasticsearch {version} at {}", client.address())];
    lines.push(privileges(client, config)?);
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
    Err(failed(format!("user {user} lacks privileges: {}", lacking.join(", "))))
}

/// Refuses where the live index is read-only: the disk ran full, and a load would make it worse.
fn blocked(client: &Client, index: &str) -> Result<(), EngineError> {
    let path = format!("{index}/_settings?flat_settings=true");
    let settings: Value = client.call(Method::Get, &path, None)?;
    let of_index = &settings[index]["settings"];
    if of_index["index.blocks.read_only_allow_delete"] == "true" {
        return Err(failed(format!(
            "index {index} is read-only because its disk ran full; free disk space and set index.blocks.read_only_allow_delete \
             to null, then run again"
        )));
    }
    Ok(())
}

/// Refuses where no node has room by its own watermark: no shard would be put anywhere.
fn disk(client: &Client) -> Result<String, EngineError> {
    let path = "_nodes/stats/fs?filter_path=nodes.*.name,nodes.*.fs.total";
    let stats: Value = client.call(Method::Get, path, None)?;
    // All of them: a filter would take the dots of flat names for levels.
    let path = "_cluster/settings?include_defaults=true&flat_settings=true";
    let settings: Value = client.call(Method::Get, path, None)?;
    let setting = |name: &str| {
        ["transient", "persistent", "defaults"].iter().find_map(|level| settings[*level][name].as_str())
    };
    let is_watched = setting("cluster.routing.allocation.disk.threshold_enabled") != Some("false");
    let low = setting("cluster.routing.allocation.disk.watermark.low").unwrap_or("85%");
    let mut most_free = None;
    for node in stats["nodes"].as_object().into_iter().flat_map(|nodes| nodes.values()) {
        let (total, free) =
            (&node["fs"]["total"]["total_in_bytes"], &node["fs"]["total"]["available_in_bytes"]);
        let (Some(total), Some(free)) = (total.as_u64(), free.as_u64()) else { continue };
        if !is_watched || has_room(total, free, low) {
            most_free = most_free.max(Some(free));
        }
    }
    match most_free {
        Some(free) => Ok(format!("{:.1} GB of disk are free", free as f64 / 1e9)),
        None => Err(failed(format!(
            "no node has free disk above the watermark ({low} used, cluster.routing.allocation.disk.watermark.low), so the server \
             would put no shard anywhere; free disk space"
        ))),
    }
}

/// Whether a node may get new shards. The watermark is a share used (`85%`, `0.85`) or a size left free (`50gb`); of a share the
/// server keeps at most 200 GB free.
fn has_room(total: u64, free: u64, watermark: &str) -> bool {
    const MOST_HEADROOM: f64 = 200.0 * 1024.0 * 1024.0 * 1024.0;
    let text = watermark.trim().to_ascii_lowercase();
    let share =
        text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok()).map(|percent| percent / 100.0);
    if let Some(share) = share.or_else(|| text.parse::<f64>().ok().filter(|share| *share <= 1.0)) {
        return free as f64 >= ((1.0 - share) * total as f64).min(MOST_HEADROOM);
    }
    let units = [("pb", 50), ("tb", 40), ("gb", 30), ("mb", 20), ("kb", 10), ("b", 0)];
    let needed = units.iter().find_map(|(unit, shift)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Some(number * (1u64 << shift) as f64)
    });
    // What we cannot read the server will judge.
    needed.is_none_or(|needed| free as f64 >= needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_are_read_as_the_server_reads_them() {
        const GB: u64 = 1 << 30;
        assert!(has_room(100 * GB, 16 * GB, "85%") && !has_room(100 * GB, 14 * GB, "85%"));
        assert!(has_room(100 * GB, 16 * GB, "0.85") && !has_room(100 * GB, 14 * GB, "0.85"));
        assert!(has_room(100 * GB, 6 * GB, "5gb") && !has_room(100 * GB, 4 * GB, "5gb"));
        assert!(has_room(9000 * GB, 250 * GB, "85%"), "at most 200 GB are kept free");
        assert!(has_room(1, 0, "a riddle"));
    }
}
