//! Who plays in a run: the agents that take work, the processes they live in, and what both sides must know of them.

use std::time::Duration;

use governance::Timestamp;

/// What workers and the others do.
pub(super) const WORK: &str = "work";
/// What workers do while a person waits.
pub(super) const URGENT: &str = "urgent";
/// What workers hear of.
pub(super) const NEWS: &str = "news";
/// Fails for a time, and is well for as long.
pub(super) const FRAGILE: &str = "fragile";
/// Takes its time.
pub(super) const SLUGGISH: &str = "sluggish";
/// May be called by nobody.
pub(super) const SECRET: &str = "secret";
/// The agents that do what they are asked at once.
pub(super) const WORKERS: [&str; 3] = ["worker-0", "worker-1", "worker-2"];
/// The processes: each agent but one has an instance in two of them, so that it is there while one is away.
const CREWS: [&[&str]; 4] = [&WORKERS, &WORKERS, &[FRAGILE, SLUGGISH], &[FRAGILE, SLUGGISH, SECRET]];
/// A process that was killed is back before its instances count as lost.
pub(super) const INSTANCES_MAX: u32 = 8;
/// How long the sluggish one takes.
pub(super) const SLUGGISH_FOR: Duration = Duration::from_millis(200);
/// How long the fragile one is ill, and then well.
const ILL_FOR: Duration = Duration::from_secs(6);

/// The name of a process.
pub(super) fn crew(index: usize) -> String {
    format!("crew-{index}")
}

/// How many processes there are.
pub(super) const fn crews() -> usize {
    CREWS.len()
}

/// The agents with an instance in a process.
pub(super) fn agents_of(crew: usize) -> &'static [&'static str] {
    CREWS.get(crew).copied().unwrap_or_default()
}

/// Whether an agent lives in these processes, and so notes what it does.
pub(super) fn notes_effects(agent: &str) -> bool {
    CREWS.iter().any(|agents| agents.contains(&agent))
}

/// Whether the fragile one is ill: by the clock, so that both of its instances are.
pub(super) fn is_ill(now: Timestamp) -> bool {
    (u128::from(now.0) / ILL_FOR.as_nanos()).is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ill_gets_well_again() {
        let ill = |second: u64| is_ill(Timestamp::from_millis(second * 1_000));
        assert_eq!([ill(0), ill(5), ill(6), ill(11), ill(12)], [true, true, false, false, true]);
    }
}
