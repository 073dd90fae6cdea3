//! The whole tree of a conversation turn: every hop from its root on.

use std::collections::{BTreeMap, BTreeSet};

use governance::DispatchId;
use serde::Serialize;

use super::dispatches::{self, Dispatch, parse_id};
use super::{Archive, Error};

/// A dispatch at its place in the tree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hop {
    /// 0 for the root.
    pub depth: u32,
    /// Its parent is not in the archive, so that its place is unknown; it stands below the root.
    pub detached: bool,
    /// The dispatch.
    #[serde(flatten)]
    pub dispatch: Dispatch,
}

/// All dispatches with the same root, depth first, siblings by acceptance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tree {
    /// The id of the root.
    pub root: String,
    /// The hops.
    pub hops: Vec<Hop>,
}

impl Archive {
    /// The tree that a dispatch belongs to, found by any of its ids; none where the archive knows nothing of it.
    ///
    /// # Errors
    /// When the text is no id, or a query fails.
    pub async fn tree(&self, id: &str) -> Result<Option<Tree>, Error> {
        let root = match self.dispatch(id).await? {
            Some(dispatch) => parse_id(&dispatch.root)?,
            None => parse_id(id)?,
        };
        let key = [root.instance.0.cast_signed(), root.sequence.cast_signed()];
        let slot = i32::from(root.slot);
        let client = self.client().await?;
        // Two queries, each by its own index. A root that was a topic's event has its copies beside it.
        let own = "SELECT * FROM dispatch WHERE instance = $1 AND sequence = $2 AND slot = $3";
        let below =
            "SELECT * FROM dispatch WHERE root_instance = $1 AND root_sequence = $2 AND root_slot = $3";
        let mut found = client.query(own, &[&key[0], &key[1], &slot]).await?;
        found.extend(client.query(below, &[&key[0], &key[1], &slot]).await?);
        let dispatches = found.iter().map(dispatches::read).collect();
        Ok(arrange(root, dispatches))
    }
}

/// Puts dispatches in the order of the tree.
fn arrange(root: DispatchId, dispatches: Vec<Dispatch>) -> Option<Tree> {
    let mut by_id: BTreeMap<String, Dispatch> = BTreeMap::new();
    for dispatch in dispatches {
        by_id.insert(dispatch.dispatch_id.clone(), dispatch);
    }
    if by_id.is_empty() {
        return None;
    }
    let top = root.to_string();
    let mut children: BTreeMap<&str, Vec<&Dispatch>> = BTreeMap::new();
    let mut detached = BTreeSet::new();
    for dispatch in by_id.values().filter(|d| d.dispatch_id != top) {
        let original = dispatch.dispatch_id.split('.').next().unwrap_or_default();
        let above = match dispatch.parent.as_deref() {
            Some(parent) if by_id.contains_key(parent) => parent,
            // A copy that a topic made stands below the event that it is a copy of.
            None if original != dispatch.dispatch_id && by_id.contains_key(original) => original,
            Some(_) | None => {
                detached.insert(dispatch.dispatch_id.as_str());
                &top
            }
        };
        children.entry(above).or_default().push(dispatch);
    }
    children.values_mut().for_each(|siblings| siblings.sort_by_key(|d| (d.accepted, d.dispatch_id.clone())));

    let mut hops = Vec::with_capacity(by_id.len());
    let mut open: Vec<(u32, &str)> = vec![(0, &top)];
    while let Some((depth, id)) = open.pop() {
        if let Some(dispatch) = by_id.get(id) {
            hops.push(Hop { depth, detached: detached.contains(id), dispatch: dispatch.clone() });
        }
        // Taken out, so that even a forged circle of parents comes to an end.
        for child in children.remove(id).into_iter().flatten().rev() {
            open.push((depth + 1, &child.dispatch_id));
        }
    }
    Some(Tree { root: top.clone(), hops })
}

#[cfg(test)]
mod tests {
    use super::*;
    use governance::Timestamp;

    fn dispatch(id: &str, parent: Option<&str>, ms: u64) -> Dispatch {
        Dispatch {
            dispatch_id: format!("d-00000000000000aa-{id}"),
            root: "d-00000000000000aa-1-0".into(),
            parent: parent.map(|p| format!("d-00000000000000aa-{p}")),
            conversation: None,
            accepted: Timestamp::from_millis(ms),
            decided: Timestamp::from_millis(ms),
            completed: None,
            deadline: Timestamp::MAX,
            source: "lead_bot".into(),
            target: None,
            capability: None,
            kind: "request".into(),
            lane: "P0".into(),
            class: "P0".into(),
            decision: "admitted".into(),
            decision_reason: "ok".into(),
            outcome: None,
            reason: "ok".into(),
            lane_us: 0,
            inbox_us: None,
            ran_us: None,
            latency_us: None,
            attempt: None,
            runner: None,
            payload_hash: String::new(),
            response_hash: None,
            policy_version: 1,
            shard: 0,
            epoch: 1,
            block: 1,
        }
    }

    fn shape(tree: &Tree) -> Vec<(u32, &str, bool)> {
        tree.hops.iter().map(|h| (h.depth, &h.dispatch.dispatch_id[19..], h.detached)).collect()
    }

    fn root() -> DispatchId {
        "d-00000000000000aa-1-0".parse().unwrap()
    }

    #[test]
    fn hops_stand_below_their_parents_in_the_order_of_acceptance() {
        let all = vec![
            dispatch("4-0", Some("2-0"), 40),
            dispatch("3-0", Some("1-0"), 30),
            dispatch("2-0", Some("1-0"), 20),
            dispatch("1-0", None, 10),
        ];
        let tree = arrange(root(), all).unwrap();
        assert_eq!(
            shape(&tree),
            [(0, "1-0", false), (1, "2-0", false), (2, "4-0", false), (1, "3-0", false)]
        );
    }

    #[test]
    fn copies_of_a_topic_stand_below_the_event() {
        let tree = arrange(root(), vec![dispatch("1-0", None, 10), dispatch("1-0.1", None, 10)]).unwrap();
        assert_eq!(shape(&tree), [(0, "1-0", false), (1, "1-0.1", false)]);
    }

    #[test]
    fn a_hop_without_its_parent_is_shown_as_detached() {
        let all = vec![dispatch("1-0", None, 10), dispatch("5-0", Some("9-9"), 20)];
        assert_eq!(shape(&arrange(root(), all).unwrap()), [(0, "1-0", false), (1, "5-0", true)]);
    }

    #[test]
    fn nothing_known_is_no_tree() {
        assert_eq!(arrange(root(), Vec::new()), None);
    }
}
