//! The coordinators: who lives, who owns the shards, who answers, and which agents need help.

use std::collections::BTreeMap;

use async_nats::Client;
use async_nats::jetstream::Context;
use governance::BreakerState;
use protocol::PROTOCOL_VERSION;
use protocol::control::{AgentView, READY_WITHOUT_AUDIT, Replica};
use protocol::streams;

use super::{Check, PATIENCE};
use crate::agents;
use crate::answer::in_words;
use crate::mesh::Mesh;
use crate::shards::{Shard, entries, put_together, spread};

/// Replicas one version apart work together, so that a mesh is upgraded replica by replica.
const SKEW_MAX: u8 = 1;
/// A replica with more than so many times its even share of the shards has not given away what it should: hashing alone
/// does not bring that about.
const SHARE_MAX: usize = 2;

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
    match entries(js, streams::OWNERS_BUCKET).await {
        Ok(owners) => {
            let shards = put_together(&replicas, &owners, &[]);
            checks.extend([owned(&shards), balance(&replicas, &shards)]);
        }
        Err(error) => checks.push(Check::fail("shards", in_words(&error), START)),
    }
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

fn live(replicas: &BTreeMap<String, Replica>) -> Check {
    if replicas.is_empty() {
        return Check::fail("coordinators", "none is alive", START);
    }
    let mut versions: Vec<u8> = replicas.values().map(|r| r.protocol).collect();
    versions.push(PROTOCOL_VERSION);
    versions.sort_unstable();
    let (oldest, newest) = (versions[0], versions[versions.len() - 1]);
    if oldest == newest {
        let names: Vec<&str> = replicas.keys().map(String::as_str).collect();
        let text = format!("{} alive: {}; protocol {newest}", replicas.len(), names.join(", "));
        return Check::ok("coordinators", text);
    }
    let speaks = replicas.iter().map(|(name, r)| format!("{name} {}", r.protocol));
    let speaks = speaks.collect::<Vec<_>>().join(", ");
    let text = format!(
        "{} alive; they speak different protocols: {speaks}; this command {PROTOCOL_VERSION}",
        replicas.len()
    );
    if newest - oldest <= SKEW_MAX {
        Check::warn("coordinators", text, "go on with the upgrade: neighbouring versions work together")
    } else {
        let fix = "versions further apart than one do not work together: stop the oldest, then upgrade it";
        Check::fail("coordinators", text, fix)
    }
}

fn owned(shards: &[Shard]) -> Check {
    let free: Vec<String> = shards.iter().filter(|s| !s.is_owned).map(|s| s.shard.to_string()).collect();
    let epoch = shards.iter().map(|s| s.epoch).max().unwrap_or_default();
    if free.is_empty() {
        return Check::ok("shards", format!("{} owned, newest epoch {epoch}", shards.len()));
    }
    let text = format!(
        "{} of {} shards have no live owner; what is sent by their agents waits: {}",
        free.len(),
        shards.len(),
        free.join(", ")
    );
    Check::fail("shards", text, "wait 5 s for a take-over, then see the logs of the coordinators")
}

/// How evenly the live replicas share the shards. Hashing spreads them by chance; what is far off has another cause.
fn balance(replicas: &BTreeMap<String, Replica>, shards: &[Shard]) -> Check {
    let spread = spread(replicas, shards);
    let text = spread.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ");
    let most = spread.values().max().copied().unwrap_or_default();
    let is_idle = |name: &str| spread.get(name) == Some(&0) && !replicas[name].leaving;
    let idle = spread.keys().any(|name| is_idle(name));
    // Replicas beyond the shards have nothing to do, and those that stop give away what they have.
    if (idle && spread.len() < shards.len()) || most * spread.len() > shards.len() * SHARE_MAX {
        let fix = "one that has just started gets its shards within seconds; after that see its log";
        return Check::warn("balance", text, fix);
    }
    Check::ok("balance", text)
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
        Ok(Ok((status, text))) if status.is_success() && text != READY_WITHOUT_AUDIT => Ok(()),
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
    use crate::shards::tests::{owners, replicas};
    use protocol::control::Owner;

    #[test]
    fn a_shard_without_a_live_owner_is_a_failure() {
        let replicas = replicas(&["a"]);
        let mut owners = owners(&["a"]);
        assert_eq!(owned(&put_together(&replicas, &owners, &[])).state, State::Ok);
        owners.insert("7".into(), Owner { replica: "gone".into(), epoch: 3, ready: true });
        owners.insert("9".into(), Owner { replica: String::new(), epoch: 3, ready: true });
        let check = owned(&put_together(&replicas, &owners, &[]));
        assert_eq!(check.state, State::Fail);
        assert!(check.text.starts_with("2 of 64") && check.text.ends_with("7, 9"), "{}", check.text);
    }

    #[test]
    fn a_replica_that_has_nothing_or_far_too_much_is_named() {
        let state = |live: &[&str], owning: &[&str]| {
            let replicas = replicas(live);
            balance(&replicas, &put_together(&replicas, &owners(owning), &[])).state
        };
        assert_eq!(state(&["a"], &["a"]), State::Ok);
        assert_eq!(state(&["a", "b"], &["a", "b", "a"]), State::Ok);
        assert_eq!(state(&["a", "b"], &["a"]), State::Warn);
        assert_eq!(state(&["a", "b", "c"], &["a", "a", "a", "b", "b", "c"]), State::Ok);
        assert_eq!(state(&["a", "b", "c"], &["a", "a", "a", "a", "a", "a", "b", "c"]), State::Warn);
    }

    #[test]
    fn neighbouring_versions_are_an_upgrade_under_way_and_others_a_failure() {
        let mut replicas = replicas(&["a", "b"]);
        assert_eq!(live(&replicas).state, State::Ok);
        replicas.entry("b".into()).and_modify(|r| r.protocol = PROTOCOL_VERSION + 1);
        let check = live(&replicas);
        assert_eq!(check.state, State::Warn);
        assert!(check.text.contains(&format!("b {}", PROTOCOL_VERSION + 1)), "{}", check.text);
        replicas.entry("b".into()).and_modify(|r| r.protocol = PROTOCOL_VERSION + 2);
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
