//! `mesh shards`: which coordinator is home of what. Owns reading the buckets of replicas and owners, and how they are put
//! together; assigns nothing.

use std::collections::BTreeMap;

use anyhow::Context as _;
use async_nats::jetstream::kv::Store;
use async_nats::jetstream::{self, Context};
use futures::TryStreamExt;
use governance::{SHARDS, shard_of};
use protocol::control::{Owner, Replica};
use protocol::streams;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::answer::Answer;
use crate::mesh::Mesh;
use crate::output::{Column, Output, table};

/// One shard, with what it is the home of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Shard {
    pub(crate) shard: u8,
    /// The replica that claimed it last; none after a release, and before the first claim.
    pub(crate) owner: Option<String>,
    /// The epoch of the last claim.
    pub(crate) epoch: u64,
    /// Whether its owner is alive.
    pub(crate) is_owned: bool,
    /// The agents whose home it is.
    pub(crate) agents: Vec<String>,
}

pub(crate) async fn run(mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let js = jetstream::new(mesh.broker().await?);
    let replicas: BTreeMap<String, Replica> = entries(&js, streams::REPLICAS_BUCKET).await?;
    let owners = entries(&js, streams::OWNERS_BUCKET).await?;
    let agents = keys(&open(&js, streams::AGENTS_BUCKET).await?).await?;
    let shards = put_together(&replicas, &owners, &agents);
    output.show(&shards, || render(&shards))?;
    let free = shards.iter().filter(|s| !s.is_owned).count();
    if !output.is_json() {
        output.note(&summary(&replicas, &shards));
    }
    Ok(Answer::when(free == 0))
}

/// All entries of a bucket.
///
/// # Errors
/// When it is not there, or holds what cannot be read.
pub(crate) async fn entries<T: DeserializeOwned>(
    js: &Context,
    bucket: &str,
) -> anyhow::Result<BTreeMap<String, T>> {
    let store = open(js, bucket).await?;
    let mut found = BTreeMap::new();
    for key in keys(&store).await? {
        // What expired since it was listed is gone.
        if let Some(value) = store.get(&key).await? {
            found.insert(key, serde_json::from_slice(&value)?);
        }
    }
    Ok(found)
}

async fn open(js: &Context, bucket: &str) -> anyhow::Result<Store> {
    js.get_key_value(bucket)
        .await
        .with_context(|| format!("no bucket {bucket}; the first coordinator makes it"))
}

async fn keys(store: &Store) -> anyhow::Result<Vec<String>> {
    Ok(store.keys().await?.try_collect().await?)
}

/// The shards in their order.
pub(crate) fn put_together(
    replicas: &BTreeMap<String, Replica>,
    owners: &BTreeMap<String, Owner>,
    agents: &[String],
) -> Vec<Shard> {
    let mut shards: Vec<Shard> = (0..SHARDS)
        .map(|shard| {
            let entry = owners.get(&shard.to_string());
            let owner = entry.map(|o| o.replica.clone()).filter(|replica| !replica.is_empty());
            let is_owned = owner.as_ref().is_some_and(|replica| replicas.contains_key(replica));
            Shard { shard, owner, epoch: entry.map_or(0, |o| o.epoch), is_owned, agents: Vec::new() }
        })
        .collect();
    for agent in agents {
        shards[usize::from(shard_of(agent))].agents.push(agent.clone());
    }
    shards.iter_mut().for_each(|s| s.agents.sort());
    shards
}

/// How many shards each live replica owns.
pub(crate) fn spread<'a>(
    replicas: &'a BTreeMap<String, Replica>,
    shards: &[Shard],
) -> BTreeMap<&'a str, usize> {
    let of = |name: &str| shards.iter().filter(|s| s.owner.as_deref() == Some(name)).count();
    replicas.keys().map(|name| (name.as_str(), of(name))).collect()
}

fn render(shards: &[Shard]) -> String {
    let columns =
        [Column::Number("SHARD"), Column::Text("OWNER"), Column::Number("EPOCH"), Column::Text("AGENTS")];
    let rows = shards.iter().map(|s| {
        let owner = match (&s.owner, s.is_owned) {
            (Some(owner), true) => owner.clone(),
            (Some(owner), false) => format!("{owner} (gone)"),
            (None, _) => "nobody".to_owned(),
        };
        let agents = if s.agents.is_empty() { "-".to_owned() } else { s.agents.join(", ") };
        vec![s.shard.to_string(), owner, s.epoch.to_string(), agents]
    });
    table(&columns, rows)
}

fn summary(replicas: &BTreeMap<String, Replica>, shards: &[Shard]) -> String {
    let of: Vec<String> = spread(replicas, shards).iter().map(|(name, n)| format!("{name} {n}")).collect();
    let owned = shards.iter().filter(|s| s.is_owned).count();
    if of.is_empty() {
        return "no coordinator is alive".to_owned();
    }
    format!("{owned} of {} shards are owned: {}", shards.len(), of.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn replicas(names: &[&str]) -> BTreeMap<String, Replica> {
        let (protocol, http) = (protocol::PROTOCOL_VERSION, String::new());
        let replica = Replica { protocol, http, since_ns: 0, leaving: false };
        names.iter().map(|name| ((*name).to_owned(), replica.clone())).collect()
    }

    /// Shard by shard, the names taken in turn.
    pub(crate) fn owners(names: &[&str]) -> BTreeMap<String, Owner> {
        let owner =
            |shard: usize| Owner { replica: names[shard % names.len()].to_owned(), epoch: 7, ready: true };
        (0..usize::from(SHARDS)).map(|shard| (shard.to_string(), owner(shard))).collect()
    }

    #[test]
    fn each_shard_is_shown_with_its_owner_and_agents() {
        let mut owners = owners(&["a", "b"]);
        owners.insert("2".into(), Owner { replica: String::new(), epoch: 9, ready: false });
        let agents = ["lead_bot".to_owned(), "crm_client".to_owned()];
        let shards = put_together(&replicas(&["a"]), &owners, &agents);
        assert_eq!(shards.len(), 64);
        let home = &shards[usize::from(shard_of("lead_bot"))];
        assert!(home.agents.contains(&agents[0]));
        let text = render(&shards[..3]);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().take(4).collect()).collect();
        assert_eq!(lines[1][..3], ["0", "a", "7"]);
        assert_eq!(lines[2][..3], ["1", "b", "(gone)"]);
        assert_eq!(lines[3][..3], ["2", "nobody", "9"]);
    }

    #[test]
    fn the_spread_counts_live_replicas_and_those_without_a_shard() {
        let replicas = replicas(&["a", "b", "c"]);
        let shards = put_together(&replicas, &owners(&["a", "b", "gone", "a"]), &[]);
        assert_eq!(spread(&replicas, &shards), BTreeMap::from([("a", 32), ("b", 16), ("c", 0)]));
        assert_eq!(summary(&replicas, &shards), "48 of 64 shards are owned: a 32, b 16, c 0");
        assert_eq!(summary(&BTreeMap::new(), &shards), "no coordinator is alive");
    }
}
