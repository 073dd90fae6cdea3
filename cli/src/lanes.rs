//! `mesh lanes`: what waits, at which rate it goes, why the first one waits. Shows; changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use protocol::control::LaneView;

use crate::answer::Answer;
use crate::control;
use crate::mesh::Mesh;
use crate::moment;
use crate::output::{Column, Output, table};

#[derive(Debug, Args)]
pub(crate) struct LanesArgs {
    /// Shows empty lanes as well.
    #[arg(long)]
    all: bool,
    /// Shows only the lanes of this agent.
    #[arg(long, value_name = "AGENT")]
    source: Option<String>,
}

pub(crate) async fn run(args: &LanesArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let mut lanes: Vec<LaneView> = control::list(&mesh.broker().await?, "lanes").await?;
    lanes.retain(|l| args.source.as_ref().is_none_or(|source| l.source == *source));
    lanes.sort_by(|a, b| (&a.source, a.priority).cmp(&(&b.source, b.priority)));
    let mut seen = BTreeSet::new();
    lanes.retain(|l| seen.insert((l.source.clone(), l.priority)));
    // A lane at work is worth a line, though nothing waits in it at this very moment.
    lanes.retain(|l| args.all || l.held > 0 || l.pending_messages > 0 || l.admitted_last_s > 0);
    output.show(&lanes, || render(&lanes))?;
    if lanes.is_empty() {
        output.note("nothing waits in any lane; --all shows empty ones");
    }
    Ok(Answer::Yes)
}

fn render(lanes: &[LaneView]) -> String {
    if lanes.is_empty() {
        return String::new();
    }
    let columns = [
        Column::Text("SOURCE"),
        Column::Text("LANE"),
        Column::Number("HELD"),
        Column::Number("IN BROKER"),
        Column::Number("ADMITTED/S"),
        Column::Number("QUOTA/S"),
        Column::Number("BURST"),
        Column::Text("WAITS FOR"),
        Column::Text("SINCE"),
    ];
    let rows = lanes.iter().map(|l| {
        let waits = l.waiting.map_or("-", governance::Reason::name);
        let since =
            if l.held > 0 { moment::in_words(Duration::from_millis(l.waited_ms)) } else { "-".to_owned() };
        vec![
            l.source.clone(),
            l.priority.to_string(),
            l.held.to_string(),
            l.pending_messages.to_string(),
            l.admitted_last_s.to_string(),
            l.rate_per_s.to_string(),
            l.burst.to_string(),
            waits.to_owned(),
            since,
        ]
    });
    table(&columns, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use governance::{Priority, Reason};

    #[test]
    fn a_lane_says_why_it_waits() {
        let lane = LaneView {
            source: "lead_bot".into(),
            priority: Priority::P2,
            held: 42,
            pending_messages: 7,
            rate_per_s: 100,
            burst: 10,
            admitted_last_s: 10,
            waiting: Some(Reason::TargetRate),
            waited_ms: 4_200,
        };
        assert_eq!(
            render(&[lane]),
            "SOURCE    LANE  HELD  IN BROKER  ADMITTED/S  QUOTA/S  BURST  WAITS FOR    SINCE\n\
             lead_bot  P2      42          7          10      100     10  target_rate  4 s"
        );
    }
}
