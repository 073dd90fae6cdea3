//! Faults: their names, and which of them a run has. Owns the list; strikes nobody.

use std::str::FromStr;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A coordinator is killed, and started again.
    Crash,
    /// A coordinator is asked to stop, and started again.
    Stop,
    /// A coordinator stands still and wakes up.
    Pause,
    /// A process is cut off from a server.
    Partition,
    /// The clocks of coordinators differ.
    Skew,
    /// The broker is killed, and comes back.
    Broker,
    /// Redis is away, and answers are lost.
    Redis,
    /// Acknowledgements, of publishes and of messages, are lost.
    Acks,
    /// A server is slow.
    Slow,
    /// Instances of agents are killed, stopped and stand still; handlers fail and hang.
    Agents,
    /// Archivers are killed, PostgreSQL is away.
    Archive,
    /// A coordinator falls asleep with a durable block that it has not published, and wakes as a former home.
    Ambush,
}

/// All kinds, with their names.
const NAMES: [(&str, Fault); 12] = [
    ("crash", Fault::Crash),
    ("stop", Fault::Stop),
    ("pause", Fault::Pause),
    ("partition", Fault::Partition),
    ("skew", Fault::Skew),
    ("broker", Fault::Broker),
    ("redis", Fault::Redis),
    ("acks", Fault::Acks),
    ("slow", Fault::Slow),
    ("agents", Fault::Agents),
    ("archive", Fault::Archive),
    ("ambush", Fault::Ambush),
];

/// The kinds of faults that a run has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Every kind.
    #[must_use]
    pub fn all() -> Self {
        Self(NAMES.iter().map(|(_, fault)| *fault).collect())
    }

    /// None at all.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Whether a kind is among them.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }

    /// Those that strike at a moment that is drawn for all of them, in their order.
    #[must_use]
    pub fn striking(&self) -> Vec<Fault> {
        let strikes = |f: &Fault| !matches!(f, Fault::Skew | Fault::Acks | Fault::Ambush);
        self.0.iter().copied().filter(strikes).collect()
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => return Ok(Self::all()),
            "none" => return Ok(Self::none()),
            _ => {}
        }
        let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        let mut faults = Vec::new();
        for part in text.split(',') {
            let found = NAMES.iter().find(|(name, _)| *name == part).map(|(_, fault)| *fault);
            faults.push(
                found.ok_or_else(|| {
                    format!("{part:?} is no fault; known are all, none, {}", known.join(", "))
                })?,
            );
        }
        faults.sort_unstable();
        faults.dedup();
        Ok(Self(faults))
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::all() {
            return f.write_str("all");
        }
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let names = NAMES.iter().filter(|(_, fault)| self.has(*fault)).map(|(name, _)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_written_as_they_are_read() {
        for text in ["all", "none", "crash,pause", "skew"] {
            assert_eq!(text.parse::<Faults>().unwrap().to_string(), text);
        }
        assert!("crash,meteor".parse::<Faults>().unwrap_err().contains("meteor"));
    }
}
