//! Ownership: which replica should be home of which shard, and what this one should do about it.
//!
//! Owns the assignment, the epochs, and one replica's view of the others. Talks to nobody: what is seen is passed in, with
//! the local time at which it was seen, so that no clock of another machine matters. The rule it keeps: a shard is claimed
//! only where nobody holds it, where its holder has been silent for longer than [`EXPIRY`], or where the holder is this very
//! replica; and nobody is taken for dead by a replica that was itself cut off within one [`EXPIRY`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use governance::{SHARDS, Timestamp, names::fnv1a};

/// How often a replica announces itself.
pub const RENEW: Duration = Duration::from_secs(1);
/// After so long without an announcement a replica counts as dead: two may be lost.
pub const EXPIRY: Duration = Duration::from_secs(3);
/// The pause before a shard is claimed again whose take-over failed or whose home ended by itself.
const CLAIM_AGAIN: Duration = Duration::from_millis(200);
/// Shards given away at once. A home goes on until it is its turn, so that each shard stands still for one take-over only and
/// not for those of all others before it.
const HAND_OVERS_MAX: usize = 3;
/// The same while any of them is urgent: a take-over is work for broker and ledger, and two at once take twice as long each.
const URGENT_HAND_OVERS_MAX: usize = 1;
/// After so long without word of the heir's take-over the next shard is given away.
const HAND_OVER_MAX: Duration = Duration::from_millis(500);

/// Who should be home of a shard: the replica whose name, hashed with the shard, comes out highest.
///
/// Rendezvous hashing: when a replica joins, only the shards move for which it comes out highest; when one leaves, only its
/// own do. Over `n` replicas each has 64 / n shards on average, with a spread of about ± √(64 / n).
#[must_use]
pub fn assign<'a>(shard: u8, replicas: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    replicas.into_iter().max_by_key(|name| (weight(shard, name), *name))
}

/// FNV-1a alone spreads short keys badly in its high bits; one round of a 64-bit finaliser mends that.
fn weight(shard: u8, name: &str) -> u64 {
    let key = u64::from(fnv1a(name.as_bytes())) << 8 | u64::from(shard);
    let mixed = (key ^ key >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The epoch of a new ownership: above everything that any place remembers, so that a bucket that was restored or made anew
/// cannot lead back.
#[must_use]
pub fn next_epoch(revision: u64, owner: u64, ledger: u64, fence: u64) -> u64 {
    revision.max(owner).max(ledger).max(fence) + 1
}

/// What should be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Compare-and-set the shard's entry at this revision, then take over.
    Claim {
        /// The shard.
        shard: u8,
        /// The revision of its entry as it was seen; zero for none.
        revision: u64,
    },
    /// Let the shard's home drain, then free its entry.
    Release {
        /// The shard.
        shard: u8,
    },
}

/// An entry of the owners as it was seen last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The replica; empty where the shard is free.
    pub replica: String,
    /// The epoch of its ownership.
    pub epoch: u64,
    /// The revision of the entry.
    pub revision: u64,
    /// The take-over is complete: the home decides.
    pub ready: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Not,
    /// Being claimed or taken over.
    Claiming,
    Home,
    Releasing,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    seen: Timestamp,
    leaving: bool,
}

/// One replica's view of who owns what.
#[derive(Debug)]
pub struct Ownership {
    name: String,
    peers: BTreeMap<String, Peer>,
    entries: Vec<Entry>,
    holds: Vec<Hold>,
    claim_again: Vec<Timestamp>,
    /// Shards that were given away, until when the heir's word is waited for.
    handing_over: BTreeMap<u8, Timestamp>,
    /// Nobody is taken for dead before.
    quiet_until: Timestamp,
    urgent: BTreeSet<u8>,
    stopping: bool,
}

impl Ownership {
    /// The view of a replica that starts now. Tell it what the buckets hold before the first look.
    #[must_use]
    pub fn new(name: impl Into<String>, now: Timestamp) -> Self {
        let shards = usize::from(SHARDS);
        Self {
            name: name.into(),
            peers: BTreeMap::new(),
            entries: vec![Entry::default(); shards],
            holds: vec![Hold::Not; shards],
            claim_again: vec![Timestamp::ZERO; shards],
            handing_over: BTreeMap::new(),
            quiet_until: now.after(EXPIRY),
            urgent: BTreeSet::new(),
            stopping: false,
        }
    }

    /// A replica announced itself, or was found announced.
    pub fn on_announced(&mut self, now: Timestamp, replica: &str, leaving: bool) {
        if replica != self.name {
            self.peers.insert(replica.to_owned(), Peer { seen: now, leaving });
        }
    }

    /// A replica took its announcement back.
    pub fn on_withdrawn(&mut self, replica: &str) {
        self.peers.remove(replica);
    }

    /// The entry of a shard, as it is now. An older view of it changes nothing.
    pub fn on_entry(&mut self, shard: u8, entry: Entry) {
        let known = &mut self.entries[usize::from(shard)];
        if entry.revision >= known.revision {
            if entry.ready {
                self.handing_over.remove(&shard);
            }
            *known = entry;
        }
    }

    /// This replica was cut off from the broker, or is connected again.
    pub fn on_cut_off(&mut self, now: Timestamp) {
        self.quiet_until = self.quiet_until.max(now.after(EXPIRY));
    }

    /// The shards to take over first: those of agents that serve waiting people.
    pub fn set_urgent(&mut self, shards: impl IntoIterator<Item = u8>) {
        self.urgent = shards.into_iter().collect();
    }

    /// This replica stops: it claims nothing more and gives everything back.
    pub const fn stop(&mut self) {
        self.stopping = true;
    }

    /// The claim succeeded, which made this entry, and the take-over is complete.
    pub fn on_home(&mut self, shard: u8, entry: Entry) {
        self.on_entry(shard, entry);
        self.holds[usize::from(shard)] = Hold::Home;
    }

    /// A claim was lost, a take-over failed, a home was deposed, or a release is complete.
    pub fn on_ended(&mut self, now: Timestamp, shard: u8) {
        let at = usize::from(shard);
        if self.holds[at] == Hold::Releasing {
            self.handing_over.insert(shard, now.after(HAND_OVER_MAX));
        } else {
            self.claim_again[at] = now.after(CLAIM_AGAIN);
        }
        self.holds[at] = Hold::Not;
    }

    /// What should be done now; each is said once. Urgent shards come first.
    pub fn next_actions(&mut self, now: Timestamp) -> Vec<Action> {
        let live: Vec<String> = self.live(now).map(str::to_owned).collect();
        let urgent = |shard: &u8| !self.urgent.contains(shard);
        let mut shards: Vec<u8> = (0..SHARDS).collect();
        shards.sort_by_key(urgent);
        self.handing_over.retain(|_, until| now < *until);
        let releasing = self.holds.iter().filter(|hold| **hold == Hold::Releasing).count();
        let is_mine = |shard: u8| assign(shard, live.iter().map(String::as_str)) == Some(self.name.as_str());
        let leaves = |shard: u8| {
            let hold = self.holds[usize::from(shard)];
            let given = hold == Hold::Releasing || self.handing_over.contains_key(&shard);
            given || (hold == Hold::Home && !is_mine(shard))
        };
        let at_once = match self.urgent.iter().any(|shard| leaves(*shard)) {
            // With nobody to take them there is nothing to wait for.
            _ if live.is_empty() => usize::from(SHARDS),
            true => URGENT_HAND_OVERS_MAX,
            false => HAND_OVERS_MAX,
        };
        let mut turns = at_once.saturating_sub(releasing + self.handing_over.len());
        let mut actions = Vec::new();
        for shard in shards {
            let deposed = self.entries[usize::from(shard)].replica != self.name;
            // What this replica holds by name and not in fact nobody else may claim while it lives: it takes it up again, and
            // gives it away in its turn.
            let orphan = !deposed && !self.stopping;
            let mine = assign(shard, live.iter().map(String::as_str)) == Some(self.name.as_str());
            match self.holds[usize::from(shard)] {
                Hold::Not if (mine || orphan) && self.may_claim(now, shard) => {
                    self.holds[usize::from(shard)] = Hold::Claiming;
                    let revision = self.entries[usize::from(shard)].revision;
                    actions.push(Action::Claim { shard, revision });
                }
                // An entry that names another replica says that this one was deposed, and has not noticed for lack of work.
                Hold::Home if deposed || (!mine && turns > 0) => {
                    turns = turns.saturating_sub(1);
                    self.holds[usize::from(shard)] = Hold::Releasing;
                    actions.push(Action::Release { shard });
                }
                Hold::Not | Hold::Claiming | Hold::Home | Hold::Releasing => {}
            }
        }
        actions
    }

    fn may_claim(&self, now: Timestamp, shard: u8) -> bool {
        let owner = &self.entries[usize::from(shard)].replica;
        if now < self.claim_again[usize::from(shard)] {
            return false;
        }
        owner.is_empty() || *owner == self.name || (!self.is_alive(now, owner) && now >= self.quiet_until)
    }

    /// Whether a replica announced itself within the last [`EXPIRY`], leaving or not.
    #[must_use]
    pub fn is_alive(&self, now: Timestamp, replica: &str) -> bool {
        self.peers.get(replica).is_some_and(|peer| now.since(peer.seen) <= EXPIRY)
    }

    /// The replicas over which shards are spread: those that live and do not leave.
    fn live(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        let others =
            self.peers.iter().filter(move |(_, peer)| !peer.leaving && now.since(peer.seen) <= EXPIRY);
        let me = (!self.stopping).then_some(self.name.as_str());
        others.map(|(name, _)| name.as_str()).chain(me)
    }

    /// How many replicas live, this one included.
    #[must_use]
    pub fn replicas(&self, now: Timestamp) -> u32 {
        let others = self.peers.values().filter(|peer| now.since(peer.seen) <= EXPIRY).count();
        u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// The owner of a shard as seen last, other than this replica; empty for none.
    #[must_use]
    pub fn owner(&self, shard: u8) -> &Entry {
        &self.entries[usize::from(shard)]
    }

    /// How many shards this replica is home of.
    #[must_use]
    pub fn homes(&self) -> usize {
        self.holds.iter().filter(|hold| **hold == Hold::Home).count()
    }

    /// Whether nothing is left to claim, take over or give back: every shard that should be here is, or a live replica
    /// still holds it.
    #[must_use]
    pub fn is_settled(&self, now: Timestamp) -> bool {
        let live: Vec<&str> = self.live(now).collect();
        (0..SHARDS).all(|shard| {
            let hold = self.holds[usize::from(shard)];
            if assign(shard, live.iter().copied()) == Some(self.name.as_str()) {
                let owner = &self.entries[usize::from(shard)].replica;
                hold == Hold::Home || (hold == Hold::Not && self.is_alive(now, owner))
            } else {
                hold == Hold::Not
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    fn owned(replica: &str, revision: u64) -> Entry {
        Entry { replica: replica.into(), epoch: revision, revision, ready: !replica.is_empty() }
    }

    fn claims(actions: &[Action]) -> Vec<u8> {
        let claim = |a: &Action| match a {
            Action::Claim { shard, .. } => Some(*shard),
            Action::Release { .. } => None,
        };
        actions.iter().filter_map(claim).collect()
    }

    #[test]
    fn shards_spread_evenly_and_a_join_moves_only_what_it_takes() {
        let three = ["c-0", "c-1", "c-2"];
        let four = ["c-0", "c-1", "c-2", "c-3"];
        let mut counts = BTreeMap::new();
        for shard in 0..SHARDS {
            let before = assign(shard, three).unwrap();
            let after = assign(shard, four).unwrap();
            assert!(after == before || after == "c-3", "shard {shard} moved from {before} to {after}");
            *counts.entry(before).or_insert(0) += 1;
        }
        assert!(counts.values().all(|n| (12..=32).contains(n)), "{counts:?}");
        assert_eq!(counts.values().sum::<i32>(), i32::from(SHARDS));
    }

    #[test]
    fn the_spread_over_many_names_is_what_chance_gives() {
        let mut largest = 0;
        for trial in 0..100 {
            let names: Vec<String> = (0..3).map(|n| format!("host-{trial}-{n}")).collect();
            let mut counts = BTreeMap::new();
            for shard in 0..SHARDS {
                *counts.entry(assign(shard, names.iter().map(String::as_str)).unwrap()).or_insert(0) += 1;
            }
            largest = largest.max(counts.into_values().max().unwrap());
        }
        assert!(largest <= 38, "one of three replicas got {largest} of 64 shards");
    }

    #[test]
    fn a_replica_alone_claims_what_is_free_at_once_and_urgent_shards_first() {
        let mut alone = Ownership::new("a", at(0));
        alone.set_urgent([60, 7]);
        let claimed = claims(&alone.next_actions(at(0)));
        assert_eq!(claimed.len(), usize::from(SHARDS));
        assert_eq!(claimed[..2], [7, 60]);
        assert_eq!(alone.next_actions(at(1)), [], "each action is said once");
    }

    #[test]
    fn the_shards_of_the_dead_are_claimed_after_the_expiry_and_not_before() {
        let mut a = Ownership::new("a", at(0));
        for shard in 0..SHARDS {
            a.on_entry(shard, owned("b", 5));
        }
        a.on_announced(at(9_000), "b", false);
        assert!(claims(&a.next_actions(at(12_000))).is_empty());
        assert_eq!(claims(&a.next_actions(at(12_001))).len(), usize::from(SHARDS));
    }

    #[test]
    fn who_was_cut_off_itself_takes_nobody_for_dead() {
        let mut a = Ownership::new("a", at(0));
        a.on_entry(3, owned("b", 5));
        a.on_cut_off(at(10_000));
        assert!(!claims(&a.next_actions(at(12_999))).contains(&3));
        assert!(claims(&a.next_actions(at(13_000))).contains(&3));
    }

    #[test]
    fn a_leaving_replica_keeps_its_shards_until_it_frees_them() {
        let mut a = Ownership::new("a", at(0));
        let mine = (0..SHARDS).find(|s| assign(*s, ["a", "b"]) == Some("b")).unwrap();
        a.on_entry(mine, owned("b", 5));
        a.on_announced(at(5_000), "b", true);
        assert!(!claims(&a.next_actions(at(5_001))).contains(&mine));
        a.on_entry(mine, owned("", 6));
        assert_eq!(claims(&a.next_actions(at(5_002))), [mine]);
    }

    #[test]
    fn a_join_is_answered_by_releasing_what_the_other_should_have() {
        let mut a = Ownership::new("a", at(0));
        for shard in claims(&a.next_actions(at(0))) {
            a.on_home(shard, owned("a", 1));
        }
        a.on_announced(at(100), "b", false);
        let mut expected = (0..SHARDS).filter(|s| assign(*s, ["a", "b"]) == Some("b")).peekable();
        let mut revision = 1;
        while expected.peek().is_some() {
            let turn: Vec<Action> =
                expected.by_ref().take(HAND_OVERS_MAX).map(|shard| Action::Release { shard }).collect();
            assert_eq!(a.next_actions(at(100)), turn, "a few at a time");
            assert_eq!(a.next_actions(at(101)), [], "the others wait for the heir's word");
            for action in turn {
                let Action::Release { shard } = action else { panic!("nothing is claimed") };
                a.on_ended(at(102), shard);
                revision += 2;
                a.on_entry(shard, owned("", revision - 1));
                a.on_entry(shard, owned("b", revision));
            }
        }
        assert_eq!(a.next_actions(at(103)), []);
    }

    #[test]
    fn urgent_shards_leave_one_after_the_other_before_the_rest() {
        let mut a = Ownership::new("a", at(0));
        for shard in claims(&a.next_actions(at(0))) {
            a.on_home(shard, owned("a", 1));
        }
        let theirs: Vec<u8> = (0..SHARDS).filter(|s| assign(*s, ["a", "b"]) == Some("b")).collect();
        let urgent = [theirs[5], theirs[9]];
        a.set_urgent(urgent);
        a.on_announced(at(100), "b", false);
        for shard in urgent {
            assert_eq!(a.next_actions(at(100)), [Action::Release { shard }]);
            assert_eq!(a.next_actions(at(101)), [], "it is waited for alone");
            a.on_ended(at(102), shard);
            a.on_entry(shard, owned("", 2));
            a.on_entry(shard, owned("b", 3));
        }
        assert_eq!(a.next_actions(at(103)).len(), HAND_OVERS_MAX);
    }

    #[test]
    fn a_home_that_was_deposed_without_noticing_is_let_go() {
        let mut a = Ownership::new("a", at(0));
        let shard = claims(&a.next_actions(at(0)))[0];
        a.on_home(shard, owned("a", 4));
        a.on_entry(shard, owned("b", 3));
        assert_eq!(a.next_actions(at(1)), [], "an older view says nothing");
        a.on_entry(shard, owned("b", 5));
        assert_eq!(a.next_actions(at(2)), [Action::Release { shard }]);
    }

    #[test]
    fn a_shard_whose_home_ended_by_itself_is_taken_up_again_also_where_another_should_have_it() {
        let mut a = Ownership::new("a", at(0));
        a.on_announced(at(0), "b", false);
        let shard = (0..SHARDS).find(|s| assign(*s, ["a", "b"]) == Some("b")).unwrap();
        a.on_entry(shard, owned("a", 7));
        assert!(claims(&a.next_actions(at(0))).contains(&shard));
        a.on_home(shard, owned("a", 8));
        assert!(a.next_actions(at(1)).contains(&Action::Release { shard }));
    }

    #[test]
    fn an_heir_that_says_nothing_holds_up_nobody_for_long() {
        let mut a = Ownership::new("a", at(0));
        for shard in claims(&a.next_actions(at(0))) {
            a.on_home(shard, owned("a", 1));
        }
        a.on_announced(at(100), "b", false);
        for action in a.next_actions(at(100)) {
            let Action::Release { shard } = action else { panic!("nothing is claimed") };
            a.on_entry(shard, owned("", 2));
            a.on_ended(at(100), shard);
        }
        assert_eq!(a.next_actions(at(599)), []);
        assert_eq!(a.next_actions(at(600)).len(), HAND_OVERS_MAX);
    }

    #[test]
    fn a_take_over_that_failed_is_tried_again_after_a_pause() {
        let mut a = Ownership::new("a", at(0));
        let shard = claims(&a.next_actions(at(0)))[0];
        a.on_ended(at(10), shard);
        assert_eq!(a.next_actions(at(209)), []);
        assert_eq!(claims(&a.next_actions(at(210))), [shard]);
    }

    #[test]
    fn an_epoch_is_above_everything_that_is_remembered() {
        assert_eq!(next_epoch(1, 9, 3, 2), 10);
        assert_eq!(next_epoch(0, 0, 0, 41), 42);
    }
}
