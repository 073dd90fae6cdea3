//! Subjects: where everything lies on the broker. Owns their forms, in both directions; publishes nothing.
//!
//! The rule it keeps: no other file spells a subject.

use governance::{AgentId, InstanceId, Priority};

/// Stands for "no target named" in a lane subject.
pub const NO_TARGET: &str = "_";

/// The token of a priority in subjects.
#[must_use]
pub const fn token(p: Priority) -> &'static str {
    match p {
        Priority::P0 => "p0",
        Priority::P1 => "p1",
        Priority::P2 => "p2",
        Priority::P3 => "p3",
    }
}

/// The priority of a token.
#[must_use]
pub fn priority(token: &str) -> Option<Priority> {
    match token {
        "p0" => Some(Priority::P0),
        "p1" => Some(Priority::P1),
        "p2" => Some(Priority::P2),
        "p3" => Some(Priority::P3),
        _ => None,
    }
}

/// Where a source sends: its lane, and in it the subject of one target, or of none.
#[must_use]
pub fn lane(p: Priority, source: &AgentId, target: Option<&AgentId>) -> String {
    format!("mesh.in.{}.{source}.{}", token(p), target.map_or(NO_TARGET, |t| t.as_str()))
}

/// All subjects of one lane.
#[must_use]
pub fn lane_filter(p: Priority, source: &AgentId) -> String {
    format!("mesh.in.{}.{source}.*", token(p))
}

/// The inbox of a target in one priority.
#[must_use]
pub fn inbox(p: Priority, target: &AgentId) -> String {
    format!("mesh.out.{}.{target}", token(p))
}

/// The fence subject of a shard in the stream of one priority.
#[must_use]
pub fn fence(p: Priority, shard: u8) -> String {
    format!("mesh.fence.{}.{shard}", token(p))
}

/// Where a target reports completions of a source's dispatches.
#[must_use]
pub fn done(p: Priority, source: &AgentId, target: &AgentId) -> String {
    done_between(p, source.as_str(), target.as_str())
}

/// [`done`] for names that were checked elsewhere.
pub(crate) fn done_between(p: Priority, source: &str, target: &str) -> String {
    format!("mesh.done.{}.{source}.{target}", token(p))
}

/// All completions for one source in one priority.
#[must_use]
pub fn done_filter(p: Priority, source: &AgentId) -> String {
    format!("mesh.done.{}.{source}.*", token(p))
}

/// The dead-letter queue of a target.
#[must_use]
pub fn dlq(target: &AgentId) -> String {
    format!("mesh.dlq.{target}")
}

/// Where an instance waits for replies.
#[must_use]
pub fn reply(source: &AgentId, instance: InstanceId) -> String {
    format!("mesh.reply.{source}.{instance}")
}

/// Where a JSON caller waits for replies under a token of its own.
#[must_use]
pub fn reply_token(source: &AgentId, token: &str) -> String {
    format!("mesh.reply.{source}.{token}")
}

/// Where a source hears that it should slow down or may resume.
#[must_use]
pub fn signal(agent: &AgentId) -> String {
    format!("mesh.signal.{agent}")
}

/// Where instances say that they live.
#[must_use]
pub fn beat(agent: &AgentId) -> String {
    format!("mesh.beat.{agent}")
}

/// All heartbeats.
pub const BEATS: &str = "mesh.beat.*";

/// Where a caller withdraws a dispatch of its own.
#[must_use]
pub fn cancel(source: &AgentId) -> String {
    format!("mesh.cancel.{source}")
}

/// All withdrawals.
pub const CANCELS: &str = "mesh.cancel.*";

/// Where instances of a target hear which dispatches ended.
#[must_use]
pub fn revoke(target: &AgentId) -> String {
    format!("mesh.revoke.{target}")
}

/// Where a handler asks for more time, from the home of the source.
#[must_use]
pub fn extend(source: &AgentId) -> String {
    format!("mesh.extend.{source}")
}

/// All wishes for more time.
pub const EXTENDS: &str = "mesh.extend.*";

/// Where an instance asks whether redelivered dispatches of a source are still open.
#[must_use]
pub fn open(source: &AgentId) -> String {
    format!("mesh.open.{source}")
}

/// All such questions.
pub const OPENS: &str = "mesh.open.*";

/// Where a handler reports progress to the waiting instance.
#[must_use]
pub fn progress(source: &AgentId, instance: InstanceId) -> String {
    format!("mesh.progress.{source}.{instance}")
}

/// Where instances of a target are asked for a heartbeat at once.
#[must_use]
pub fn ping(target: &AgentId) -> String {
    format!("mesh.ping.{target}")
}

/// Where agents register.
pub const REGISTER: &str = "mesh.register";

/// The queue group in which replicas share registrations.
pub const REGISTER_GROUP: &str = "registrars";

/// Where alerts of one kind appear.
#[must_use]
pub fn alert(kind: &str) -> String {
    format!("mesh.alert.{kind}")
}

/// All alerts.
pub const ALERTS: &str = "mesh.alert.*";

/// An operator's command.
#[must_use]
pub fn control(verb: &str) -> String {
    format!("mesh.ctl.{verb}")
}

/// All operator's commands.
pub const CONTROLS: &str = "mesh.ctl.*";

/// Where the home of a shard hears what other homes saw of its targets.
#[must_use]
pub fn know(shard: u8) -> String {
    format!("mesh.know.{shard}")
}

/// Where all homes hear that P0 waits somewhere.
pub const KNOW_P0: &str = "mesh.know.p0";

/// All that homes tell each other.
pub const KNOWLEDGE: &str = "mesh.know.*";

/// Where the home of a target is asked for a share of what it limits.
#[must_use]
pub fn grant(target: &str) -> String {
    format!("mesh.grant.{target}")
}

/// All such questions.
pub const GRANTS: &str = "mesh.grant.*";

/// Where every replica hears of a new registration, and answers when its homes know it.
pub const REGISTERED: &str = "mesh.registered";

/// What a subject under `mesh.in`, `mesh.done` or a per-agent subject names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    /// The priority.
    pub priority: Priority,
    /// The source.
    pub source: &'a str,
    /// The target; none for `_`.
    pub target: Option<&'a str>,
}

/// Reads a lane or done subject.
#[must_use]
pub fn route(subject: &str) -> Option<Route<'_>> {
    let mut parts = subject.split('.');
    if parts.next() != Some("mesh") || !matches!(parts.next(), Some("in" | "done")) {
        return None;
    }
    let route = Route {
        priority: priority(parts.next()?)?,
        source: parts.next()?,
        target: parts.next().map(|t| (t != NO_TARGET).then_some(t))?,
    };
    parts.next().is_none().then_some(route)
}

/// Whether a text may stand as the last token of a reply subject: letters, digits, `_` and `-`.
///
/// It is published by a home under the home's own permissions, so that anything wider would let a source choose a subject.
#[must_use]
pub fn is_reply_token(token: &str) -> bool {
    token.len() <= REPLY_TOKEN_BYTES_MAX
        && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The longest reply token, in bytes.
pub const REPLY_TOKEN_BYTES_MAX: usize = 64;

/// The stream and consumer that an acknowledgement subject belongs to; none where the text is no such subject.
///
/// A home that acknowledges in the place of a target checks both first: the text comes from that target.
#[must_use]
pub fn acknowledges(subject: &str) -> Option<(&str, &str)> {
    let clean = subject.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>');
    let tokens: Vec<&str> = subject.strip_prefix("$JS.ACK.").filter(|_| clean)?.split('.').collect();
    let (stream, consumer) = match tokens.as_slice() {
        [stream, consumer, _, _, _, _, _] => (*stream, *consumer),
        // The longer form puts domain and account in front, and may end in a random token.
        [_, _, stream, consumer, _, _, _, _, _] | [_, _, stream, consumer, _, _, _, _, _, _] => {
            (*stream, *consumer)
        }
        _ => return None,
    };
    tokens.iter().all(|t| !t.is_empty()).then_some((stream, consumer))
}

/// The last token of a subject.
#[must_use]
pub fn last_token(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or(subject)
}
