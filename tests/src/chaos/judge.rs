//! The judge: what must hold of a run beyond the books: quotas, waits of people, breakers, and that enough was compared.
//!
//! The rule it keeps: nothing is copied from one side to the other, and how much was compared is part of the verdict.

use std::collections::BTreeMap;
use std::time::Duration;

use governance::Policy;
use serde::Serialize;
use tokio_postgres::Client;

use super::cast;
use super::deeds::{Deed, Deeds};
use super::load::Counted;
use super::plan::{Fault, Process};
use crate::Stage;
use crate::conservation::{self, Books, Effects, Records};

/// The life of each breaker, in the order in which its homes recorded it.
const BREAKERS: &str = "\
SELECT coalesce(agent, '') AS agent, epoch, body::jsonb ->> 'from' AS was, body::jsonb ->> 'to' AS is
FROM audit_note WHERE kind = 'breaker' AND at >= to_timestamp($1) ORDER BY epoch, block, at";

/// What is compared in a second at the least: far less than the load sends, since servers are away for a good part of a run.
const COMPARED_PER_S_MIN: u64 = 850;
/// How long a person may wait for a home that was killed.
const P0_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long it may wait for one that hands over in order, where the broker is one node; and where each of the consumers that
/// move is a group of three nodes that has to elect first. Under a load that keeps all cores of a small machine busy.
const P0_ORDERLY_WAIT_MAX: Duration = Duration::from_millis(500);
const P0_ORDERLY_WAIT_MAX_CLUSTER: Duration = Duration::from_secs(2);
/// After so long a hand-over is over, and the next fault has not come.
const HAND_OVER: Duration = Duration::from_secs(4);

/// What was found. Everything that must be 0 is named in [`Judged::faults`].
#[derive(Debug, Default, Serialize)]
pub(super) struct Judged {
    #[serde(flatten)]
    pub(super) books: Books,
    quota_exceeded: u64,
    undeclared_sent: u64,
    undeclared_delivered: u64,
    breaker_trips: u64,
    /// Notes of a breaker that do not follow from the one before: a trip that was recorded twice, or by two.
    breaker_records_astray: u64,
    quotas_judged: u64,
    admissions_judged: u64,
    p0_judged: u64,
    /// Those of them part of whose wait falls into a time at which a server, or a way to one, was away; the other part counts.
    p0_excused: u64,
    p0_wait_max_ms: u64,
    /// The same for those that were accepted while a coordinator handed over in order.
    p0_orderly_wait_max_ms: u64,
    p0_orderly_judged: u64,
    p0_orderly_wait_allowed_ms: u64,
    p0_reply_max_ms: u64,
    unsure: u64,
    untold: u64,
    withheld: u64,
    compared_least: u64,
}

impl Judged {
    /// What is wrong, in words; nothing where all holds.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.books.faults();
        for (what, count) in [
            ("seconds held more than rate and burst", self.quota_exceeded),
            ("undeclared calls were delivered", self.undeclared_delivered),
            ("breaker records do not follow from the one before", self.breaker_records_astray),
        ] {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        }
        if u128::from(self.p0_wait_max_ms) > P0_WAIT_MAX.as_millis() {
            faults.push(format!("P0 waited {} ms for its home", self.p0_wait_max_ms));
        }
        if self.p0_orderly_wait_max_ms > self.p0_orderly_wait_allowed_ms {
            faults.push(format!("P0 waited {} ms in an orderly hand-over", self.p0_orderly_wait_max_ms));
        }
        for (what, count, least) in [
            ("dispatches", self.books.audited, self.compared_least),
            ("effects", self.books.effects, self.compared_least / 2),
            ("told outcomes", self.books.told, 1),
            ("admissions within quotas", self.admissions_judged, self.compared_least / 2),
            ("blocks", self.books.blocks, 1),
            ("P0 dispatches", self.p0_judged, 1),
            ("undeclared calls", self.undeclared_sent, 1),
            ("breaker trips", self.breaker_trips, 1),
        ] {
            if count < least {
                faults.push(format!("too little was compared: {count} {what}, and not {least}"));
            }
        }
        faults
    }
}

/// The sides of a run.
pub(super) struct Sides<'a> {
    pub(super) counted: &'a Counted,
    pub(super) effects: &'a Effects,
    pub(super) records: &'a Records,
    pub(super) deeds: &'a Deeds,
    /// How long faults went on.
    pub(super) duration: Duration,
}

/// Compares.
pub(super) async fn judge(
    stage: &Stage,
    client: &Client,
    policy: &Policy,
    sides: &Sides<'_>,
) -> anyhow::Result<Judged> {
    let excuse = |former: &_, latter: &_| sides.deeds.excuse(former, latter);
    let mut books =
        conservation::compare(&sides.counted.told, sides.effects, sides.records, cast::notes_effects, excuse);
    conservation::walk_chains(client, &mut books).await?;
    let orderly_max =
        if stage.settings.stream_replicas > 1 { P0_ORDERLY_WAIT_MAX_CLUSTER } else { P0_ORDERLY_WAIT_MAX };
    let mut judged = Judged {
        books,
        undeclared_sent: sides.counted.undeclared,
        unsure: sides.counted.unsure,
        untold: sides.counted.untold,
        withheld: sides.counted.withheld,
        compared_least: COMPARED_PER_S_MIN * sides.duration.as_secs(),
        p0_orderly_wait_allowed_ms: orderly_max.as_millis() as u64,
        p0_reply_max_ms: sides.counted.longest_wait.as_millis() as u64,
        ..Judged::default()
    };
    judge_undeclared(&mut judged, sides);
    judge_waits(&mut judged, sides);
    let limit =
        |agent: &str| sides.counted.senders.iter().any(|name| name == agent).then(|| policy.quota(agent));
    let quota = stage.archive.quota_exceeded(stage.since, limit).await?;
    judged.quota_exceeded = quota.exceeded;
    judged.quotas_judged = quota.agents;
    judged.admissions_judged = quota.admitted;
    for (agent, at, admitted) in quota.examples {
        let what = format!("{admitted} were admitted in the second before {:.3}", at as f64 / 1e9);
        judged.books.find(format!("quota of {agent}"), what);
    }
    (judged.breaker_trips, judged.breaker_records_astray) = breakers(&changes(stage, client).await?);
    Ok(judged)
}

/// What was sent without having been declared: neither admitted nor run.
fn judge_undeclared(judged: &mut Judged, sides: &Sides<'_>) {
    for (id, record) in sides.records {
        if record.source == "trespasser" && record.admitted {
            judged.undeclared_delivered += 1;
            judged.books.find(id, "undeclared, and admitted");
        }
    }
    for (id, runs) in sides.effects {
        if runs.iter().any(|run| run.agent == cast::SECRET) {
            judged.undeclared_delivered += 1;
            judged.books.find(id, "undeclared, and run");
        }
    }
}

/// A change of a breaker, as one of its homes recorded it.
struct Change {
    agent: String,
    epoch: i64,
    from: String,
    to: String,
}

async fn changes(stage: &Stage, client: &Client) -> anyhow::Result<Vec<Change>> {
    let rows = client.query(BREAKERS, &[&(stage.since.0 as f64 / 1e9)]).await?;
    let change = |row: &tokio_postgres::Row| Change {
        agent: row.get("agent"),
        epoch: row.get("epoch"),
        from: row.get::<_, Option<String>>("was").unwrap_or_default(),
        to: row.get::<_, Option<String>>("is").unwrap_or_default(),
    };
    Ok(rows.iter().map(change).collect())
}

/// How long P0 waited for its home, in all and while one handed over in order.
fn judge_waits(judged: &mut Judged, sides: &Sides<'_>) {
    let of_coordinators = |deed: &&Deed| {
        matches!(
            deed.fault,
            Fault::Kill(Process::Coordinator(_))
                | Fault::End(Process::Coordinator(_))
                | Fault::Freeze(Process::Coordinator(_), _)
        )
    };
    let homes: Vec<&Deed> = sides.deeds.0.iter().filter(of_coordinators).collect();
    for (id, record) in sides.records.iter().filter(|(_, record)| record.is_p0 && record.admitted) {
        let decided = record.accepted.after(record.lane);
        let excused = sides.deeds.excused_wait(record.accepted, decided);
        let waited = record.lane.saturating_sub(excused).as_millis() as u64;
        judged.p0_judged += 1;
        judged.p0_excused += u64::from(!excused.is_zero());
        judged.p0_wait_max_ms = judged.p0_wait_max_ms.max(waited);
        if u128::from(waited) > P0_WAIT_MAX.as_millis() {
            let whole = record.lane.as_millis();
            judged.books.find(
                id,
                format!(
                    "P0 of {}, waited {whole} ms, {waited} ms of them without a server away",
                    record.source
                ),
            );
        }
        let mut touching = homes.iter().filter(|deed| deed.touches(record.accepted, decided, HAND_OVER));
        let orderly = touching.next().is_some_and(|deed| matches!(deed.fault, Fault::End(_)));
        // Where one was killed as well, or a server away, a person waits for that.
        if orderly && touching.next().is_none() && excused.is_zero() {
            judged.p0_orderly_judged += 1;
            judged.p0_orderly_wait_max_ms = judged.p0_orderly_wait_max_ms.max(waited);
            if waited > judged.p0_orderly_wait_allowed_ms {
                judged.books.find(id, format!("P0, and waited {waited} ms in an orderly hand-over"));
            }
        }
    }
}

/// How often breakers tripped, and how many records do not begin where the one before them ended. A probe is lost with the
/// home that granted it: the next home begins with a tripped breaker where the former one left a probing one.
fn breakers(changes: &[Change]) -> (u64, u64) {
    let mut states: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
    let (mut trips, mut astray) = (0, 0);
    for Change { agent, epoch, from, to } in changes {
        let (before, state) = states.get(agent.as_str()).copied().unwrap_or((*epoch, "passing"));
        let lost_probe = before != *epoch && state == "probing" && from == "tripped";
        astray += u64::from(from == to || (state != from && !lost_probe));
        trips += u64::from(from == "passing" && to == "tripped");
        states.insert(agent, (*epoch, to));
    }
    (trips, astray)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(epoch: i64, from: &str, to: &str) -> Change {
        Change { agent: "fragile".to_owned(), epoch, from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn a_trip_that_is_recorded_by_two_is_found() {
        let life = [
            change(1, "passing", "tripped"),
            change(1, "tripped", "probing"),
            change(1, "probing", "tripped"),
            change(1, "tripped", "probing"),
            change(1, "probing", "passing"),
        ];
        assert_eq!(breakers(&life), (1, 0));
        let twice = [change(1, "passing", "tripped"), change(2, "passing", "tripped")];
        assert_eq!(breakers(&twice), (2, 1));
    }

    #[test]
    fn a_probe_may_be_lost_with_its_home_and_only_with_it() {
        let life = |epoch| {
            [
                change(1, "passing", "tripped"),
                change(1, "tripped", "probing"),
                change(epoch, "tripped", "probing"),
            ]
        };
        assert_eq!(breakers(&life(2)), (1, 0));
        assert_eq!(breakers(&life(1)), (1, 1));
    }

    #[test]
    fn a_run_that_compared_nothing_is_no_success() {
        let empty = Judged { compared_least: 100, ..Judged::default() };
        assert_eq!(empty.faults().len(), 8, "{:?}", empty.faults());
    }
}
