//! `mesh policy check`: a policy and a folder of registrations, judged offline by the rules' own code.
//!
//! The rule it keeps: every problem is reported at once, with the place where it stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use governance::Policy;
use governance::registration::{self, Registration};
use serde::Serialize;

use crate::answer::{Answer, Usage};
use crate::output::Output;

const EXAMPLES: &str = concat!(
    "A registration is the JSON that an agent sends when it registers, one in each *.json file of the folder.\n\n",
    "Examples:\n",
    "  mesh policy check mesh.toml\n",
    "  mesh policy check mesh.toml --registrations registrations/ --strict",
);

#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Reports every problem of a policy file with line, field and accepted range; with a folder of registrations theirs too.
    #[command(after_help = EXAMPLES)]
    Check {
        /// The policy.
        file: PathBuf,
        /// A folder of registrations, which are checked as if all of them had registered.
        #[arg(long, value_name = "DIR")]
        registrations: Option<PathBuf>,
        /// Takes warnings for problems.
        #[arg(long)]
        strict: bool,
    },
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// `problem` or `warning`.
    kind: &'static str,
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    field: String,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

#[derive(Debug, Serialize)]
struct Judgement<'a> {
    good: bool,
    findings: &'a [Finding],
}

pub(crate) fn run(args: &PolicyArgs, output: &Output) -> anyhow::Result<Answer> {
    let Verb::Check { file, registrations, strict } = &args.verb;
    let text = std::fs::read_to_string(file)
        .map_err(|e| Usage(format!("{} cannot be read: {e}", file.display())))?;
    let files = registrations.as_deref().map(read_folder).transpose()?.unwrap_or_default();
    let findings = check(&file.display().to_string(), &text, &files);
    let is_bad = |f: &Finding| *strict || f.kind == PROBLEM;
    let good = !findings.iter().any(is_bad);
    output.show(&Judgement { good, findings: &findings }, || render(&findings))?;
    if !output.is_json() {
        let checked = format!("1 policy and {} registrations", files.len());
        let problems = findings.iter().filter(|f| f.kind == PROBLEM).count();
        output
            .note(&format!("{checked} checked: {problems} problems, {} warnings", findings.len() - problems));
    }
    Ok(Answer::when(good))
}

const PROBLEM: &str = "problem";
const WARNING: &str = "warning";

/// The registrations of a folder, by file, in the order of the names.
fn read_folder(folder: &Path) -> Result<BTreeMap<String, String>, Usage> {
    let failed = |e: std::io::Error| Usage(format!("{} cannot be read: {e}", folder.display()));
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            let text = std::fs::read_to_string(&path).map_err(failed)?;
            files.insert(path.display().to_string(), text);
        }
    }
    if files.is_empty() {
        return Err(Usage(format!("{} holds no *.json file", folder.display())));
    }
    Ok(files)
}

/// Judges a policy and registrations, by file.
fn check(policy_file: &str, policy: &str, files: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let policy = match Policy::parse(policy) {
        Ok(policy) => Some(policy),
        Err(problems) => {
            findings.extend(problems.into_iter().map(|p| Finding {
                kind: PROBLEM,
                file: policy_file.to_owned(),
                line: Some(p.line),
                field: p.field,
                message: p.message,
                fix: String::new(),
            }));
            None
        }
    };
    let mut known: BTreeMap<String, Registration> = BTreeMap::new();
    let mut readable = Vec::new();
    for (file, text) in files {
        match serde_json::from_str::<Registration>(text) {
            Ok(registration) => {
                if known.insert(registration.agent.clone(), registration.clone()).is_some() {
                    let message = format!("{:?} registers in another file as well", registration.agent);
                    findings.push(problem(file, None, "agent", message, "leave one of the files"));
                }
                readable.push((file, registration));
            }
            Err(e) => {
                let line = u32::try_from(e.line()).ok();
                findings.push(problem(
                    file,
                    line,
                    "syntax",
                    e.to_string(),
                    "write what the registration takes",
                ));
            }
        }
    }
    // Where the policy is wrong, what it says of agents is not known; registrations are checked for the rest.
    let rules = policy.clone().unwrap_or_default();
    for (file, registration) in readable {
        let verdict = registration::check(&registration, &known, &rules);
        let found = |kind: &'static str| {
            move |p: registration::Problem| Finding {
                kind,
                file: file.clone(),
                line: None,
                field: p.field,
                message: p.message,
                fix: p.fix,
            }
        };
        findings.extend(verdict.problems.into_iter().map(found(PROBLEM)));
        let worth_saying = |p: &registration::Problem| policy.is_some() || p.field != "agent";
        findings.extend(verdict.warnings.into_iter().filter(worth_saying).map(found(WARNING)));
    }
    findings
}

fn problem(file: &str, line: Option<u32>, field: &str, message: String, fix: &str) -> Finding {
    Finding {
        kind: PROBLEM,
        file: file.to_owned(),
        line,
        field: field.to_owned(),
        message,
        fix: fix.to_owned(),
    }
}

/// One finding in a line, with its place in front as editors know it.
fn render(findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let line = f.line.map_or_else(String::new, |line| format!(":{line}"));
        let fix = if f.fix.is_empty() { String::new() } else { format!("; {}", f.fix) };
        format!("{}{line}: {}: {}: {}{fix}", f.file, f.kind, f.field, f.message)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[(&str, serde_json::Value)]) -> BTreeMap<String, String> {
        texts.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
    }

    #[test]
    fn the_policy_as_shipped_is_good() {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../mesh.toml");
        assert_eq!(check("mesh.toml", &std::fs::read_to_string(shipped).unwrap(), &BTreeMap::new()), []);
    }

    #[test]
    fn every_problem_of_a_policy_is_reported_with_line_field_and_range() {
        let findings = check("mesh.toml", "[breaker]\nwindow_s = 90\nsample_min = 3\n", &BTreeMap::new());
        let text = render(&findings);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("mesh.toml:2: problem: breaker.window_s: ") && lines[0].contains("60"),
            "{text}"
        );
        assert!(lines[1].starts_with("mesh.toml:3: ") && lines[1].contains("samples_min"), "{text}");
    }

    #[test]
    fn registrations_are_judged_together() {
        let good = files(&[
            ("a.json", serde_json::json!({"agent": "lead_bot", "dependencies": ["crm_client/sync_contact"]})),
            ("b.json", serde_json::json!({"agent": "crm_client", "capabilities": ["sync_contact"]})),
        ]);
        let policy = "[agents.lead_bot]\nrole = \"bot\"\n[agents.crm_client]\nrole = \"crm_sync\"\n";
        assert_eq!(check("mesh.toml", policy, &good), []);

        let mut bad = good;
        bad.insert("c.json".into(), "{\"agent\": \"crm_client\", \"max_concurrent\": 0}".into());
        bad.insert("d.json".into(), "{\"agent\": 7}".into());
        let text = render(&check("mesh.toml", policy, &bad));
        assert!(text.contains("c.json: problem: agent: \"crm_client\" registers in another file"), "{text}");
        assert!(
            text.contains("c.json: problem: max_concurrent: 0 is not accepted; give a whole number"),
            "{text}"
        );
        assert!(text.contains("d.json:1: problem: syntax: "), "{text}");
        assert!(text.contains("a.json: warning: dependencies[0]: "), "the last of a name counts: {text}");
    }

    #[test]
    fn registrations_are_checked_under_a_bad_policy_too() {
        let files = files(&[("a.json", serde_json::json!({"agent": "lead_bot", "sla_p95_ms": 0}))]);
        let findings = check("mesh.toml", "version = \"one\"\n", &files);
        assert!(findings.iter().all(|f| f.kind == PROBLEM), "{findings:?}");
        assert_eq!(findings.len(), 2);
    }
}
