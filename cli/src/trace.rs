//! `mesh trace`: the tree of a dispatch, or of each turn of a conversation. Owns how a tree is drawn.
//!
//! The rule it keeps: every hop has its line, with where the time went and why it ended so.

use std::collections::BTreeSet;
use std::time::Duration;

use audit_archiver::archive::{self, Archive, Dispatch, Hop, Tree};
use clap::Args;
use protocol::text::rfc3339;

use crate::answer::Answer;
use crate::mesh::Mesh;
use crate::moment::millis;
use crate::output::{Column, Output, table};

pub(crate) const EXAMPLES: &str = concat!(
    "Any id of the tree will do, that of a reply (…/reply) as well.\n\n",
    "AT is when a hop was accepted, after the first of its tree. Of its TOTAL it waited in its LANE for quota, room and rate, ",
    "and in the INBOX for a free handler, which then RAN; what a handler waits for its own calls is part of that. ",
    "The rest is the mesh's: passing it on and recording the outcome.\n\n",
    "Examples:\n",
    "  mesh trace d-1c0ffee5ca1ab1e0-2a-0\n",
    "  mesh trace --conversation sms-17\n",
    "  mesh trace d-1c0ffee5ca1ab1e0-2a-0 --json | jq '.[].hops[] | [.source, .target, .outcome]'",
);

/// How long to wait for the archive when it does not know a dispatch yet, or not its end.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TraceArgs {
    /// The id of any dispatch of the tree.
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Shows the tree of each turn of this conversation.
    #[arg(long, value_name = "KEY")]
    conversation: Option<String>,
}

pub(crate) async fn run(args: &TraceArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let archive = mesh.archive().await?;
    let mut trees = find(args, &archive).await?;
    let open = |tree: &Tree| tree.hops.iter().any(|hop| hop.dispatch.outcome.is_none());
    if trees.is_empty() || trees.iter().any(open) {
        // It may be only a moment ago. What cannot be waited for is shown as it stands.
        if let Err(error) = archive.until_archived(&mesh.redis_url, ARCHIVE_PATIENCE).await {
            output.note(&format!("mesh: {error}; the newest may be missing here"));
        }
        trees = find(args, &archive).await?;
    }
    if trees.is_empty() {
        let what = args.id.as_deref().or(args.conversation.as_deref()).unwrap_or_default();
        output.note(&format!("the archive knows nothing of {what}"));
        return Ok(Answer::No);
    }
    output.show(&trees, || trees.iter().map(render).collect::<Vec<_>>().join("\n\n"))?;
    Ok(Answer::Yes)
}

/// The trees that are asked for, oldest first.
async fn find(args: &TraceArgs, archive: &Archive) -> Result<Vec<Tree>, archive::Error> {
    if let Some(id) = &args.id {
        return Ok(archive.tree(id).await?.into_iter().collect());
    }
    let key = args.conversation.as_deref().unwrap_or_default();
    let mut trees = Vec::new();
    let mut known = BTreeSet::new();
    for dispatch in archive.by_conversation(key).await? {
        if known.insert(dispatch.root.clone()) {
            trees.extend(archive.tree(&dispatch.root).await?);
        }
    }
    Ok(trees)
}

fn render(tree: &Tree) -> String {
    let columns = [
        Column::Text("HOP"),
        Column::Number("AT"),
        Column::Text("PRIORITY"),
        Column::Number("TOTAL"),
        Column::Number("LANE"),
        Column::Number("INBOX"),
        Column::Number("RAN"),
        Column::Text("OUTCOME"),
        Column::Text("ID"),
    ];
    let begin = tree.hops.iter().map(|h| h.dispatch.accepted).min().unwrap_or_default();
    let rows = branches(&tree.hops).into_iter().zip(&tree.hops).map(|(branch, hop)| {
        let d = &hop.dispatch;
        let time = |us: Option<i64>| us.map_or_else(|| "-".to_owned(), millis);
        let at = i64::try_from(d.accepted.since(begin).as_micros()).unwrap_or(i64::MAX);
        vec![
            format!("{branch}{}", called(hop)),
            format!("+{}", millis(at)),
            if d.lane == d.class { d.class.clone() } else { format!("{}→{}", d.lane, d.class) },
            time(d.latency_us),
            millis(d.lane_us),
            time(d.inbox_us),
            time(d.ran_us),
            ended(d),
            d.dispatch_id.clone(),
        ]
    });
    format!("{}\n{}", head(tree), table(&columns, rows))
}

fn head(tree: &Tree) -> String {
    let Some(first) = tree.hops.first().map(|h| &h.dispatch) else { return tree.root.clone() };
    let hops = match tree.hops.len() {
        1 => "1 hop".to_owned(),
        n => format!("{n} hops"),
    };
    let conversation =
        first.conversation.as_ref().map_or_else(String::new, |key| format!(" · conversation {key}"));
    format!("{} · {hops}{conversation} · {}", rfc3339(first.accepted), tree.root)
}

/// The branch before each hop, found from the last one back: a line goes on where a sibling follows.
fn branches(hops: &[Hop]) -> Vec<String> {
    let mut more: Vec<bool> = Vec::new();
    let mut drawn: Vec<String> = Vec::with_capacity(hops.len());
    for hop in hops.iter().rev() {
        let depth = hop.depth as usize;
        more.resize(depth + 1, false);
        let above = more.iter().take(depth).skip(1);
        let mut branch: String = above.map(|more| if *more { "│  " } else { "   " }).collect();
        if depth > 0 {
            branch.push_str(if more[depth] { "├─ " } else { "└─ " });
        }
        more[depth] = true;
        drawn.push(branch);
    }
    drawn.reverse();
    drawn
}

fn called(hop: &Hop) -> String {
    let d = &hop.dispatch;
    let capability = d.capability.as_deref().unwrap_or("?");
    let target = match (&d.target, d.decision.as_str()) {
        (Some(target), _) => format!("{target}/{capability}"),
        (None, "fanned_out") => format!("topic {capability}"),
        (None, _) => format!("?/{capability}"),
    };
    let event = if d.kind == "event" { " (event)" } else { "" };
    let detached = if hop.detached { " (its parent is not in the archive)" } else { "" };
    format!("{} → {target}{event}{detached}", d.source)
}

/// The outcome with all that explains it.
fn ended(d: &Dispatch) -> String {
    let mut words = d.outcome.clone().unwrap_or_else(|| "open".to_owned());
    let mut add = |reason: &str| {
        if reason != "ok" {
            words = format!("{words}, {reason}");
        }
    };
    add(&d.reason);
    if d.decision_reason != d.reason {
        add(&d.decision_reason);
    }
    if let Some(attempt @ 2..) = d.attempt {
        words = format!("{words}, attempt {attempt}");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use governance::Timestamp;

    fn hop(depth: u32, number: u32, who: [&str; 3], ms: u64) -> Hop {
        let [source, target, capability] = who;
        let dispatch = Dispatch {
            dispatch_id: format!("d-00000000000000aa-{number}-0"),
            root: "d-00000000000000aa-1-0".into(),
            parent: None,
            conversation: Some("sms-17".into()),
            accepted: Timestamp::from_millis(1_771_060_995_482 + ms),
            decided: Timestamp::ZERO,
            completed: None,
            deadline: Timestamp::MAX,
            source: source.into(),
            target: (!target.is_empty()).then(|| target.into()),
            capability: Some(capability.into()),
            kind: "request".into(),
            lane: "P0".into(),
            class: "P0".into(),
            decision: "admitted".into(),
            decision_reason: "ok".into(),
            outcome: Some("success".into()),
            reason: "ok".into(),
            lane_us: 250,
            inbox_us: Some(120),
            ran_us: Some(4_000),
            latency_us: Some(4_700),
            attempt: Some(1),
            runner: None,
            payload_hash: String::new(),
            response_hash: None,
            policy_version: 1,
            shard: 0,
            epoch: 1,
            block: 1,
        };
        Hop { depth, detached: false, dispatch }
    }

    #[test]
    fn a_tree_shows_every_hop_with_its_waits_and_outcome() {
        let mut slow = hop(2, 4, ["lead_bot", "handoff_service", "hand_over"], 9);
        slow.dispatch.outcome = Some("circuit_broken".into());
        slow.dispatch.reason = "fallback_static".into();
        slow.dispatch.decision_reason = "fallback_static".into();
        (slow.dispatch.inbox_us, slow.dispatch.ran_us, slow.dispatch.latency_us) = (None, None, Some(250));
        let mut event = hop(1, 5, ["lead_bot", "crm_client", "sync_contact"], 12);
        event.dispatch.kind = "event".into();
        event.dispatch.outcome = None;
        event.dispatch.class = "P1".into();
        event.dispatch.decision_reason = "demoted_from_p0".into();
        let tree = Tree {
            root: "d-00000000000000aa-1-0".into(),
            hops: vec![
                hop(0, 1, ["people", "lead_bot", "converse"], 0),
                hop(1, 2, ["lead_bot", "intent_decoder", "analyze_lead"], 1),
                hop(2, 3, ["intent_decoder", "memory_service", "recall"], 2),
                slow,
                event,
            ],
        };
        assert_eq!(
            render(&tree),
            "2026-02-14T09:23:15.482Z · 5 hops · conversation sms-17 · d-00000000000000aa-1-0\n\
             HOP                                                  AT  PRIORITY    TOTAL     LANE    INBOX      RAN  OUTCOME                          ID\n\
             people → lead_bot/converse                     +0.00 ms  P0        4.70 ms  0.25 ms  0.12 ms  4.00 ms  success                          d-00000000000000aa-1-0\n\
             ├─ lead_bot → intent_decoder/analyze_lead      +1.00 ms  P0        4.70 ms  0.25 ms  0.12 ms  4.00 ms  success                          d-00000000000000aa-2-0\n\
             │  ├─ intent_decoder → memory_service/recall   +2.00 ms  P0        4.70 ms  0.25 ms  0.12 ms  4.00 ms  success                          d-00000000000000aa-3-0\n\
             │  └─ lead_bot → handoff_service/hand_over     +9.00 ms  P0        0.25 ms  0.25 ms        -        -  circuit_broken, fallback_static  d-00000000000000aa-4-0\n\
             └─ lead_bot → crm_client/sync_contact (event)    +12 ms  P0→P1     4.70 ms  0.25 ms  0.12 ms  4.00 ms  open, demoted_from_p0            d-00000000000000aa-5-0"
        );
    }

    #[test]
    fn branches_go_on_where_siblings_follow() {
        let depths = [0, 1, 2, 2, 1, 2, 3, 1];
        let hops: Vec<Hop> = depths.iter().map(|d| hop(*d, 1, ["a", "b", "c"], 0)).collect();
        assert_eq!(branches(&hops), ["", "├─ ", "│  ├─ ", "│  └─ ", "├─ ", "│  └─ ", "│     └─ ", "└─ "]);
    }

    #[test]
    fn an_outcome_is_explained() {
        let mut d = hop(0, 1, ["a", "b", "c"], 0).dispatch;
        assert_eq!(ended(&d), "success");
        d.outcome = Some("failure".into());
        d.reason = "attempts_exhausted".into();
        d.decision_reason = "aged_up".into();
        d.attempt = Some(5);
        assert_eq!(ended(&d), "failure, attempts_exhausted, aged_up, attempt 5");
    }

    #[test]
    fn an_event_of_a_topic_names_the_topic() {
        let mut fanned = hop(0, 1, ["scoring_engine", "", "lead_scored"], 0);
        fanned.dispatch.decision = "fanned_out".into();
        fanned.dispatch.kind = "event".into();
        assert_eq!(called(&fanned), "scoring_engine → topic lead_scored (event)");
    }
}
