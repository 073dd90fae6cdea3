//! `mesh graph`: who may call whom, and who does. Joins registrations and archive; decides nothing about calls.

use std::collections::BTreeMap;

use audit_archiver::archive::Edge;
use clap::Args;
use governance::Timestamp;
use protocol::control::AgentView;
use protocol::text::rfc3339;
use serde::Serialize;

use crate::agents;
use crate::answer::Answer;
use crate::mesh::Mesh;
use crate::moment;
use crate::output::{Column, Output, table};

pub(crate) const EXAMPLES: &str = concat!(
    "MAY says by which declaration a call is allowed: the dependency, `topic` for events that the target subscribed to, ",
    "or `no`. In a drawing a line is drawn through where calls were made, dashed where they are only allowed, and red where ",
    "nothing allows them.\n\n",
    "Examples:\n",
    "  mesh graph --since 15m\n",
    "  mesh graph --dot | dot -Tsvg > mesh.svg",
);

#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    /// Counts the calls since then: a time back, as 15m or 24h, a moment, or `all`.
    #[arg(long, default_value = "24h", value_parser = moment::parse_since, value_name = "TIME")]
    since: Timestamp,
    /// Writes the graph in the language of Graphviz.
    #[arg(long)]
    dot: bool,
}

/// One way from an agent to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Link {
    source: String,
    target: String,
    /// `*` for each capability of the target.
    capability: String,
    /// The declaration that allows it; none where nothing does.
    declared: Option<String>,
    dispatches: u64,
    failures: u64,
    rejected: u64,
}

pub(crate) async fn run(args: &GraphArgs, mesh: &Mesh, output: &Output) -> anyhow::Result<Answer> {
    let views = agents::views(&mesh.broker().await?).await?;
    let edges = match mesh.archive().await {
        Ok(archive) => archive.edges(args.since).await?,
        Err(error) => {
            output.note(&format!(
                "mesh: {}; the graph shows what is declared only",
                crate::answer::in_words(&error)
            ));
            Vec::new()
        }
    };
    let links = join(&views, &edges);
    if args.dot {
        output.text(&dot(&views, &links))?;
        return Ok(Answer::Yes);
    }
    output.show(&links, || render(&links))?;
    if args.since > Timestamp::ZERO {
        output.note(&format!("calls are counted since {}", rfc3339(args.since)));
    }
    Ok(Answer::Yes)
}

/// What is declared, with what was done; what was done without a declaration behind it.
fn join(views: &[AgentView], edges: &[Edge]) -> Vec<Link> {
    let mut links: BTreeMap<(String, String, String), Link> = BTreeMap::new();
    for edge in edges {
        let capability = edge.capability.clone().unwrap_or_else(|| "?".to_owned());
        // An event that became copies is counted by them.
        let Some(target) = edge.target.clone().or_else(|| (edge.rejected > 0).then(|| "?".to_owned())) else {
            continue;
        };
        let declared = declaration(views, &edge.source, &target, &capability);
        let key = (edge.source.clone(), target.clone(), capability.clone());
        let link = links.entry(key).or_insert_with(|| Link {
            source: edge.source.clone(),
            target,
            capability,
            declared,
            ..Link::default()
        });
        link.dispatches += edge.dispatches;
        link.failures += edge.failures;
        link.rejected += edge.rejected;
    }
    for view in views {
        for dependency in &view.registration.dependencies {
            for (target, capability) in allowed(views, dependency) {
                let used = |(s, t, c): &(String, String, String)| {
                    *s == view.agent && *t == target && (capability == "*" || *c == capability)
                };
                if links.keys().any(used) {
                    continue;
                }
                let link = Link {
                    source: view.agent.clone(),
                    target: target.clone(),
                    capability: capability.clone(),
                    declared: Some(dependency.clone()),
                    ..Link::default()
                };
                links.insert((view.agent.clone(), target, capability), link);
            }
        }
    }
    links.into_values().collect()
}

/// What a dependency allows: pairs of target and capability.
fn allowed(views: &[AgentView], dependency: &str) -> Vec<(String, String)> {
    match dependency.split_once('/') {
        None => vec![(dependency.to_owned(), "*".to_owned())],
        Some(("*", capability)) => {
            let offers = |v: &&AgentView| v.registration.capabilities.iter().any(|c| c == capability);
            let found = views.iter().filter(offers).map(|v| (v.agent.clone(), capability.to_owned()));
            found.collect()
        }
        Some((agent, capability)) => vec![(agent.to_owned(), capability.to_owned())],
    }
}

/// The declaration that allows a call.
fn declaration(views: &[AgentView], source: &str, target: &str, capability: &str) -> Option<String> {
    let registration = |name: &str| views.iter().find(|v| v.agent == name).map(|v| &v.registration);
    let dependencies = registration(source).map(|r| &r.dependencies[..]).unwrap_or_default();
    let found = dependencies.iter().find(|d| match d.split_once('/') {
        None => *d == target,
        Some((agent, c)) => (agent == "*" || agent == target) && c == capability,
    });
    let subscribed =
        || registration(target)?.topics.iter().any(|t| t == capability).then(|| "topic".to_owned());
    found.cloned().or_else(subscribed)
}

fn render(links: &[Link]) -> String {
    let columns = [
        Column::Text("SOURCE"),
        Column::Text("TARGET"),
        Column::Text("CAPABILITY"),
        Column::Text("MAY"),
        Column::Number("CALLS"),
        Column::Number("FAILED"),
        Column::Number("REFUSED"),
    ];
    let rows = links.iter().map(|l| {
        vec![
            l.source.clone(),
            l.target.clone(),
            l.capability.clone(),
            l.declared.clone().unwrap_or_else(|| "no".to_owned()),
            l.dispatches.to_string(),
            l.failures.to_string(),
            l.rejected.to_string(),
        ]
    });
    table(&columns, rows)
}

fn dot(views: &[AgentView], links: &[Link]) -> String {
    let mut text = "digraph mesh {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n".to_owned();
    for view in views {
        // Names consist of letters, digits, '_' and '-': nothing in them needs an escape.
        text.push_str(&format!("  \"{}\" [label=\"{0}\\n{}\"];\n", view.agent, view.role));
    }
    for l in links {
        let style = match (l.declared.is_some(), l.dispatches) {
            (true, 0) => "style=dashed, color=gray".to_owned(),
            (true, n) => format!("style=solid, penwidth={:.1}", 1.0 + (n as f64).log10() / 2.0),
            (false, _) => "style=solid, color=red".to_owned(),
        };
        let count = if l.dispatches == 0 { String::new() } else { format!("\\n{}", l.dispatches) };
        text.push_str(&format!(
            "  \"{}\" -> \"{}\" [label=\"{}{count}\", {style}];\n",
            l.source, l.target, l.capability
        ));
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::tests::view;
    use serde_json::json;

    fn edge(source: &str, target: Option<&str>, capability: &str, dispatches: u64, rejected: u64) -> Edge {
        Edge {
            source: source.into(),
            target: target.map(Into::into),
            capability: Some(capability.into()),
            dispatches,
            failures: 0,
            rejected,
        }
    }

    fn platform() -> Vec<AgentView> {
        vec![
            view("bi_dashboard", json!({"topics": ["lead_scored"]})),
            view("lead_bot", json!({"dependencies": ["memory_service", "scoring_engine/score", "*/locate"]})),
            view("market_intelligence", json!({"capabilities": ["locate"]})),
            view("memory_service", json!({"capabilities": ["recall", "remember"]})),
            view("scoring_engine", json!({"capabilities": ["score"]})),
        ]
    }

    #[test]
    fn what_may_be_and_what_is_stand_side_by_side() {
        let edges = [
            edge("lead_bot", Some("memory_service"), "recall", 12, 0),
            edge("lead_bot", Some("billing"), "charge", 3, 3),
            edge("lead_bot", None, "lead_scored", 5, 0),
            edge("lead_bot", Some("bi_dashboard"), "lead_scored", 5, 0),
        ];
        assert_eq!(
            render(&join(&platform(), &edges)),
            "SOURCE    TARGET               CAPABILITY   MAY                   CALLS  FAILED  REFUSED\n\
             lead_bot  bi_dashboard         lead_scored  topic                     5       0        0\n\
             lead_bot  billing              charge       no                        3       0        3\n\
             lead_bot  market_intelligence  locate       */locate                  0       0        0\n\
             lead_bot  memory_service       recall       memory_service           12       0        0\n\
             lead_bot  scoring_engine       score        scoring_engine/score      0       0        0"
        );
    }

    #[test]
    fn a_drawing_tells_used_allowed_and_refused_apart() {
        let edges = [
            edge("lead_bot", Some("memory_service"), "recall", 100, 0),
            edge("lead_bot", Some("billing"), "charge", 3, 3),
        ];
        let views = platform();
        let text = dot(&views, &join(&views, &edges));
        assert!(text.starts_with("digraph mesh {\n") && text.ends_with('}'), "{text}");
        assert!(text.contains(
            "\"lead_bot\" -> \"memory_service\" [label=\"recall\\n100\", style=solid, penwidth=2.0];"
        ));
        assert!(
            text.contains("\"lead_bot\" -> \"scoring_engine\" [label=\"score\", style=dashed, color=gray];")
        );
        assert!(text.contains("\"lead_bot\" -> \"billing\" [label=\"charge\\n3\", style=solid, color=red];"));
    }
}
