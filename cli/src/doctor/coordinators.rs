//! The coordinators: who lives, who owns the shards, who answers, and which agents need help.

use std::collections::BTreeMap;

use async_nats::Client;
use async_nats::jetstream::Context;
use futures::TryStreamExt;
use governance::{BreakerState, SHARDS};
use protocol::PROTOCOL_VERSION;
use protocol::control::{AgentView, Owner, Replica};
use protocol::streams;
use serde::de::DeserializeOwned;

use super::{Check, PATIENCE};
use crate::agents;
use crate::answer::in_words;
use crate::mesh::Mesh;

const START: &str = "start a coordinator (./dev up)";

pub(super) async fn check(mesh: &Mesh, client: &Client, js: &Context) -> Vec<Check> {
    let replicas: BTreeMap<String, Replica> = match entries(js, streams::REPLICAS_BUCKET).await {
        Ok(replicas) => replicas,
        Err(error) => return vec![Check::fail("coordinators", in_words(&error), START)],
    };
    let mut checks = vec![live(&replicas)];
    if replicas.is_empty() {
        return checks;
    }
    checks.push(match entries::<Owner>(js, streams::OWNERS_BUCKET).await {
        Ok(owners) => owned(&owners, &replicas),
        Err(error) => Check::fail("shards", in_words(&error), START),
    });
    checks.push(ready(mesh, &replicas).await);
    match agents::views(client).await {
        Ok(views) => checks.extend([running(&views), breakers(&views)]),
        Err(error) => {
            let fix = "see the logs of the coordinator that owns the shards";
            checks.push(Check::fail("agents", in_words(&error), fix));
        }
    }
    checks
}

/// All entries of a bucket.
async fn entries<T: DeserializeOwned>(js: &Context, bucket: &str) -> anyhow::Result<BTreeMap<String, T>> {
    let store = js.get_key_value(bucket).await?;
    let keys: Vec<String> = store.keys().await?.try_collect().await?;
    let mut found = BTreeMap::new();
    for key in keys {
        // What expired since it was listed is gone.
        if let Some(value) = store.get(&key).await? {
            found.insert(key, serde_json::from_slice(&value)?);
        }
    }
    Ok(found)
}

fn live(replicas: &BTreeMap<String, Replica>) -> Check {
    if replicas.is_empty() {
        return Check::fail("coordinators", "none is alive", START);
    }
    let names: Vec<&str> = replicas.keys().map(String::as_str).collect();
    let text = format!("{} alive: {}", replicas.len(), names.join(", "));
    let mut others = replicas.iter().filter(|(_, r)| r.protocol != PROTOCOL_VERSION);
    match others.next() {
        Some((name, r)) => {
            let text =
                format!("{text}; {name} speaks protocol {} and this is {PROTOCOL_VERSION}", r.protocol);
            Check::fail("coordinators", text, "use one version of the mesh everywhere")
        }
        None => Check::ok("coordinators", text),
    }
}

fn owned(owners: &BTreeMap<String, Owner>, replicas: &BTreeMap<String, Replica>) -> Check {
    let is_owned =
        |shard: &u8| owners.get(&shard.to_string()).is_some_and(|o| replicas.contains_key(&o.replica));
    let free = (0..SHARDS).filter(|shard| !is_owned(shard)).count();
    let epoch = owners.values().map(|o| o.epoch).max().unwrap_or_default();
    if free == 0 {
        Check::ok("shards", format!("{SHARDS} owned, newest epoch {epoch}"))
    } else {
        let text =
            format!("{free} of {SHARDS} shards have no live owner; what is sent by their agents waits");
        Check::fail("shards", text, "wait 5 s for a take-over, then see the logs of the coordinators")
    }
}

/// Asks each coordinator that is known by its address.
async fn ready(mesh: &Mesh, replicas: &BTreeMap<String, Replica>) -> Check {
    let announced = replicas.values().filter(|r| !r.http.is_empty()).map(|r| match r.http.contains("://") {
        true => r.http.clone(),
        false => format!("http://{}", r.http),
    });
    let urls: Vec<String> =
        if mesh.coordinators.is_empty() { announced.collect() } else { mesh.coordinators.clone() };
    readiness(&futures::future::join_all(urls.iter().map(|url| get_ready(url))).await)
}

/// One that is ready is enough for the mesh to work.
fn readiness(answers: &[Result<(), String>]) -> Check {
    let wrong: Vec<&str> = answers.iter().filter_map(|a| a.as_ref().err().map(String::as_str)).collect();
    let fix = "see the log of that coordinator, and start it";
    match (wrong.len(), answers.len()) {
        (0, all) => Check::ok("readiness", format!("{all} asked, all ready")),
        (some, all) if some < all => Check::warn("readiness", wrong.join("; "), fix),
        _ => Check::fail("readiness", wrong.join("; "), fix),
    }
}

async fn get_ready(url: &str) -> Result<(), String> {
    let url = format!("{}/readyz", url.trim_end_matches('/'));
    let asking = async {
        let response = reqwest::get(&url).await?;
        Ok::<_, reqwest::Error>((response.status(), response.text().await?))
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok((status, _))) if status.is_success() => Ok(()),
        Ok(Ok((_, text))) => Err(format!("{url} says: {}", text.trim())),
        Ok(Err(error)) => Err(format!("{url}: {}", anyhow::Error::from(error).root_cause())),
        Err(_) => Err(format!("{url} does not answer")),
    }
}

fn running(views: &[AgentView]) -> Check {
    let is_away = |v: &&AgentView| v.instances == 0 && !v.registration.capabilities.is_empty();
    let away: Vec<&str> = views.iter().filter(is_away).map(|v| v.agent.as_str()).collect();
    let paused: Vec<&str> = views.iter().filter(|v| v.paused).map(|v| v.agent.as_str()).collect();
    let mut words = vec![format!("{} registered", views.len())];
    if !away.is_empty() {
        words.push(format!("without an instance: {}", away.join(", ")));
    }
    if !paused.is_empty() {
        words.push(format!("paused: {}", paused.join(", ")));
    }
    let text = words.join("; ");
    if words.len() == 1 {
        return Check::ok("agents", text);
    }
    Check::warn("agents", text, "start them, or mesh resume; what is sent to them waits")
}

fn breakers(views: &[AgentView]) -> Check {
    let is_cut_off = |v: &&AgentView| v.breaker != BreakerState::Passing;
    let cut_off = views.iter().filter(is_cut_off).map(|v| format!("{} ({})", v.agent, v.breaker_reason));
    let cut_off: Vec<String> = cut_off.collect();
    if cut_off.is_empty() {
        Check::ok("breakers", "all pass")
    } else {
        Check::warn("breakers", format!("not passing: {}", cut_off.join(", ")), "mesh breakers")
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::agents::tests::view;

    fn replica(protocol: u8) -> Replica {
        Replica { protocol, http: String::new(), since_ns: 0 }
    }

    #[test]
    fn a_shard_without_a_live_owner_is_a_failure() {
        let replicas = BTreeMap::from([("a".to_owned(), replica(PROTOCOL_VERSION))]);
        let mut owners: BTreeMap<String, Owner> =
            (0..SHARDS).map(|s| (s.to_string(), Owner { replica: "a".into(), epoch: 3 })).collect();
        assert_eq!(owned(&owners, &replicas).state, State::Ok);
        owners.insert("7".into(), Owner { replica: "gone".into(), epoch: 3 });
        let check = owned(&owners, &replicas);
        assert_eq!(check.state, State::Fail);
        assert!(check.text.starts_with("1 of 64"), "{}", check.text);
    }

    #[test]
    fn a_replica_of_another_version_is_a_failure() {
        let mut replicas = BTreeMap::from([("a".to_owned(), replica(PROTOCOL_VERSION))]);
        assert_eq!(live(&replicas).state, State::Ok);
        replicas.insert("b".into(), replica(PROTOCOL_VERSION + 1));
        assert_eq!(live(&replicas).state, State::Fail);
        assert_eq!(live(&BTreeMap::new()).state, State::Fail);
    }

    #[test]
    fn one_coordinator_that_is_ready_keeps_the_mesh_going() {
        let away = || Err("http://h:1/readyz: refused".to_owned());
        assert_eq!(readiness(&[Ok(()), Ok(())]).state, State::Ok);
        assert_eq!(readiness(&[Ok(()), away()]).state, State::Warn);
        assert_eq!(readiness(&[away(), away()]).state, State::Fail);
    }

    #[test]
    fn agents_that_do_not_run_and_breakers_that_do_not_pass_are_named() {
        let mut away = view("crm_client", serde_json::json!({"capabilities": ["sync"]}));
        away.instances = 0;
        let mut tripped = view("handoff_service", serde_json::json!({"capabilities": ["hand_over"]}));
        tripped.breaker = BreakerState::Tripped;
        assert_eq!(running(&[away.clone()]).text, "1 registered; without an instance: crm_client");
        assert_eq!(running(&[tripped.clone()]).state, State::Ok);
        assert_eq!(breakers(&[away, tripped]).text, "not passing: handoff_service (ok)");
    }
}
