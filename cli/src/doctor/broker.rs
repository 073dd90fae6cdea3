//! The broker: version, streams with their settings, room, dead letters, clock. Compares with what `protocol` says.

use async_nats::Client;
use async_nats::jetstream::{self, Context};
use governance::Timestamp;
use protocol::streams::{self, Retention, Stream};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Check, PATIENCE, clock, coordinators, version};
use crate::mesh::{Mesh, shown};
use crate::moment;

/// The oldest server with all that the mesh uses.
const SERVER_MIN: (u32, u32) = (2, 14);
/// A stream fuller than this is worth a look.
const FULL_WARN_PERCENT: i64 = 80;

const MAKE_STREAMS: &str = "start a coordinator, which makes and updates them";

/// Everything that needs the broker, coordinators included.
pub(super) async fn check(mesh: &Mesh) -> Vec<Check> {
    let client = match mesh.broker().await {
        Ok(client) => client,
        Err(error) => {
            let fix = "start it (./dev up), or name it with MESH_NATS_URL";
            return vec![Check::fail("broker", crate::answer::in_words(&error), fix)];
        }
    };
    let mut checks = vec![server(mesh, &client)];
    checks.extend(health(mesh).await);
    let mut js = jetstream::new(client.clone());
    js.set_timeout(PATIENCE);
    if let Err(error) = js.query_account().await {
        let fix = "start nats-server with -js, or let this account use JetStream";
        checks.push(Check::fail("jetstream", error.to_string(), fix));
        return checks;
    }
    checks.extend(stored(&js).await);
    checks.push(buckets(&js).await);
    checks.extend(Box::pin(coordinators::check(mesh, &client, &js)).await);
    checks
}

fn server(mesh: &Mesh, client: &Client) -> Check {
    let info = client.server_info();
    let text = format!("nats-server {} at {}", info.version, shown(&mesh.nats_url));
    if version(&info.version).is_none_or(|found| found < SERVER_MIN) {
        let fix = format!("install nats-server {}.{} or newer", SERVER_MIN.0, SERVER_MIN.1);
        return Check::fail("broker", text, fix);
    }
    if info.max_payload < streams::MESSAGE_BYTES_MAX {
        let text = format!("{text} takes messages of {} bytes at most", info.max_payload);
        let fix = format!("set max_payload to {} in its configuration", streams::MESSAGE_BYTES_MAX);
        return Check::fail("broker", text, fix);
    }
    Check::ok("broker", text)
}

/// What the nodes say of their own health, where their monitors are known. A stream whose disk failed still answers.
async fn health(mesh: &Mesh) -> Option<Check> {
    let asked = mesh.nats_monitors.iter().map(|url| node_health(url));
    let answers = futures::future::join_all(asked).await;
    let wrong: Vec<String> = answers.into_iter().flatten().collect();
    (!mesh.nats_monitors.is_empty()).then(|| judge_health(mesh.nats_monitors.len(), &wrong))
}

/// What is wrong with a node; nothing where it is well.
async fn node_health(url: &str) -> Option<String> {
    let url = format!("{}/healthz", url.trim_end_matches('/'));
    let asking = async { reqwest::get(&url).await?.json::<Value>().await };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(answer)) => answer.get("error").and_then(Value::as_str).map(str::to_owned),
        Ok(Err(error)) => Some(crate::answer::in_words(&error.into())),
        Err(_) => Some(format!("{url} does not answer in time")),
    }
}

fn judge_health(nodes: usize, wrong: &[String]) -> Check {
    if wrong.is_empty() {
        return Check::ok("broker health", format!("{nodes} asked, all well"));
    }
    let fix = if wrong.iter().any(|why| why.contains("write error")) {
        "make room on its disk, then start nats-server again: a stream whose disk failed stores nothing until then"
    } else {
        "see the log of nats-server"
    };
    Check::fail("broker health", wrong.join("; "), fix)
}

/// Streams, their room, dead letters, and the broker's clock, which comes with each answer about a stream.
async fn stored(js: &Context) -> Vec<Check> {
    let (mut wrong, mut full, mut letters) = (Vec::new(), Vec::new(), 0);
    let mut skew = None;
    for stream in streams::all() {
        let asked = moment::now();
        let info: Value = match js.request(format!("STREAM.INFO.{}", stream.name), &json!({})).await {
            Ok(info) => info,
            Err(error) => json!({"error": {"description": error.to_string()}}),
        };
        if let Some(error) = info.pointer("/error/description").and_then(Value::as_str) {
            wrong.push(format!("{}: {error}", stream.name));
            continue;
        }
        skew = skew.or_else(|| Some(clock("clock", "the broker", server_time(&info)?, asked, moment::now())));
        wrong.extend(differences(&stream, &info["config"]));
        let (used, bound) = (number(&info, "/state/bytes"), number(&info, "/config/max_bytes"));
        if bound > 0 && used >= bound / 100 * FULL_WARN_PERCENT {
            full.push(format!("{} has {} of {} MB", stream.name, used >> 20, bound >> 20));
        }
        if stream.name == streams::DLQ {
            letters = number(&info, "/state/messages");
        }
    }
    let mut checks = vec![if wrong.is_empty() {
        Check::ok("streams", format!("{}, set as they should be", streams::all().len()))
    } else {
        Check::fail("streams", wrong.join("; "), MAKE_STREAMS)
    }];
    if !full.is_empty() {
        let fix = "see which lanes wait: mesh lanes; a full stream refuses what is sent";
        checks.push(Check::warn("room", full.join("; "), fix));
    }
    checks.push(match letters {
        0 => Check::ok("dead letters", "none"),
        n => Check::warn("dead letters", format!("{n} events failed in every attempt"), "mesh dlq"),
    });
    checks.extend(skew);
    checks
}

fn number(info: &Value, pointer: &str) -> i64 {
    info.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

fn server_time(info: &Value) -> Option<Timestamp> {
    let at = OffsetDateTime::parse(info.get("ts")?.as_str()?, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos()).ok().map(Timestamp)
}

/// What a stream is set to otherwise than it should be.
fn differences(stream: &Stream, config: &Value) -> Vec<String> {
    let retention = match stream.retention {
        Retention::WorkQueue => "workqueue",
        Retention::Limits => "limits",
    };
    let window = u64::try_from(streams::DUPLICATE_WINDOW.as_nanos()).unwrap_or(u64::MAX);
    let wanted = json!({
        "subjects": stream.subjects,
        "retention": retention,
        "discard": "new",
        "discard_new_per_subject": true,
        "max_msgs_per_subject": stream.messages_per_subject_max,
        "max_bytes": streams::STREAM_BYTES_MAX,
        "max_msg_size": streams::MESSAGE_BYTES_MAX,
        "max_consumers": streams::CONSUMERS_MAX,
        "duplicate_window": window,
    });
    let wanted = wanted.as_object().into_iter().flatten();
    wanted
        .filter(|(field, value)| config.get(*field) != Some(*value))
        .map(|(field, value)| {
            let found = config.get(field).unwrap_or(&Value::Null);
            format!("{}: {field} is {found} instead of {value}", stream.name)
        })
        .collect()
}

async fn buckets(js: &Context) -> Check {
    let all = [
        streams::AGENTS_BUCKET,
        streams::POLICY_BUCKET,
        streams::OWNERS_BUCKET,
        streams::REPLICAS_BUCKET,
        streams::BREAKERS_BUCKET,
        streams::SCALE_BUCKET,
    ];
    let mut missing = Vec::new();
    for bucket in all {
        if let Err(error) = js.get_key_value(bucket).await {
            missing.push(format!("{bucket}: {error}"));
        }
    }
    if missing.is_empty() {
        Check::ok("buckets", format!("{}, all there", all.len()))
    } else {
        Check::fail("buckets", missing.join("; "), MAKE_STREAMS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_with_other_settings_is_described() {
        let stream = &streams::all()[0];
        let good = json!({
            "subjects": stream.subjects, "retention": "workqueue", "discard": "new", "discard_new_per_subject": true,
            "max_msgs_per_subject": streams::LANE_MESSAGES_MAX, "max_bytes": streams::STREAM_BYTES_MAX,
            "max_msg_size": streams::MESSAGE_BYTES_MAX, "max_consumers": streams::CONSUMERS_MAX,
            "duplicate_window": streams::DUPLICATE_WINDOW.as_nanos() as u64, "storage": "file",
        });
        assert!(differences(stream, &good).is_empty(), "{:?}", differences(stream, &good));
        let mut bad = good;
        bad["discard"] = "old".into();
        assert_eq!(differences(stream, &bad), ["MESH_IN_P0: discard is \"old\" instead of \"new\""]);
    }

    #[test]
    fn a_stream_whose_disk_failed_needs_room_and_another_start() {
        assert_eq!(judge_health(3, &[]), Check::ok("broker health", "3 asked, all well"));
        let failed =
            judge_health(1, &["JetStream stream 'A' write error: no space left on device".to_owned()]);
        assert!(failed.fix.contains("make room on its disk"), "{failed:?}");
        assert_eq!(judge_health(1, &["no quorum".to_owned()]).fix, "see the log of nats-server");
    }

    #[test]
    fn the_broker_tells_its_time_with_each_answer() {
        let info = json!({"ts": "2026-02-14T09:23:15.482Z"});
        assert_eq!(server_time(&info), Some(Timestamp::from_millis(1_771_060_995_482)));
        assert_eq!(server_time(&json!({})), None);
    }
}
