//! Policy files, good and bad.

use std::time::Duration;

use super::*;

const SHIPPED: &str = include_str!("../../../../mesh.toml");

/// The problems of a file as `line field`.
fn problems(text: &str) -> Vec<String> {
    let problems = Policy::parse(text).expect_err("the file has problems");
    problems.iter().map(|p| format!("{} {}", p.line, p.field)).collect()
}

#[test]
fn the_shipped_file_says_what_the_defaults_say() {
    let shipped = Policy::parse(SHIPPED).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert!(!shipped.agents.is_empty());
    assert_eq!(Policy { agents: BTreeMap::new(), ..shipped }, Policy::default());
}

#[test]
fn the_shipped_file_spells_every_default_out() {
    // A reader of the file sees all rules; it is their first document.
    let spelled = SHIPPED.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count();
    assert!(spelled >= 60, "only {spelled} fields are spelled out");
}

#[test]
fn an_empty_file_is_the_default_policy() {
    assert_eq!(Policy::parse(""), Ok(Policy::default()));
}

#[test]
fn the_article_s_quotas_are_the_defaults() {
    let policy = Policy::default();
    let quota = |role: &str| policy.roles[role].quota;
    assert_eq!(quota("bot"), Rate { per_s: 100, burst: 10 });
    assert_eq!(quota("orchestrator"), Rate { per_s: 200, burst: 20 });
    assert_eq!(quota("analytics"), Rate { per_s: 50, burst: 5 });
    assert_eq!(quota("crm_sync"), Rate { per_s: 10, burst: 1 });
    let budgets = policy.priorities.map(|p| p.budget.as_millis());
    assert_eq!(budgets, [200, 500, 2_000, 10_000]);
    assert_eq!(policy.quota("nobody_named"), Rate { per_s: 100, burst: 10 });
}

#[test]
fn every_problem_is_reported_at_once_with_its_line() {
    let text = r#"
version = 0
default_role = "bott"
[roles.fast]
burst = 10
[breaker]
windows_s = 30
error_rate_percent = 10.5
[priorities.P4]
budget_ms = 5
[agents."Lead.Bot"]
role = "bot"
[agents.crm]
max_burst = 3
"#;
    assert_eq!(
        problems(text),
        [
            "2 version",
            "3 default_role",
            "4 roles.fast.rate_per_s",
            "7 breaker.windows_s",
            "8 breaker.error_rate_percent",
            "9 priorities.P4",
            "11 agents.Lead.Bot",
            "14 agents.crm.max_burst",
        ]
    );
}

#[test]
fn a_problem_names_the_accepted_range_and_the_nearest_name() {
    let problems = Policy::parse("[breaker]\nwindow_s = 900\nsample_min = 3\n").unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "line 2: breaker.window_s: 900 is not accepted; give a whole number from 1 to 60"
    );
    assert_eq!(
        problems[1].to_string(),
        "line 3: breaker.sample_min: unknown key; did you mean \"samples_min\"?"
    );
}

#[test]
fn numbers_that_contradict_each_other_are_problems() {
    let text = "[deferral]\nbegin_percent = 20\nend_percent = 30\n[deadlines]\nrequest_s = 100\nrequest_max_s = 50\n";
    assert_eq!(problems(text), ["3 deferral.end_percent", "5 deadlines.request_s"]);
}

#[test]
fn broken_syntax_does_not_hide_the_other_problems() {
    let found = problems("[breaker]\nwindow_s = = 3\nfailures_in_row = 0\n");
    assert!(found.contains(&"2 syntax".to_owned()), "{found:?}");
    assert!(found.contains(&"3 breaker.failures_in_row".to_owned()), "{found:?}");
}

#[test]
fn a_rate_without_a_burst_has_a_tenth_and_a_hard_rate_has_one() {
    let text = "[agents.crm]\nrole = \"crm_sync\"\nmax_rate_per_s = 10\n[agents.a]\nrate_per_s = 500\n[roles.bot]\nrate_per_s = 50\n";
    let policy = Policy::parse(text).unwrap();
    assert_eq!(policy.max_rate("crm"), Some(Rate { per_s: 10, burst: 1 }));
    assert_eq!(policy.quota("crm"), Rate { per_s: 10, burst: 1 });
    assert_eq!(policy.quota("a"), Rate { per_s: 500, burst: 50 });
    assert_eq!(policy.quota("b"), Rate { per_s: 50, burst: 5 });
}

#[test]
fn calls_that_serve_a_person_are_read_in_three_forms() {
    let text = "[agents.people]\np0 = [\"converse\", \"*/greet\", \"lead_bot/answer\"]\n";
    let policy = Policy::parse(text).unwrap();
    let calls: Vec<_> =
        policy.p0_calls("people").map(|c| (c.agent.as_deref(), c.capability.as_str())).collect();
    assert_eq!(calls, [(None, "converse"), (None, "greet"), (Some("lead_bot"), "answer")]);
    assert_eq!(problems("[agents.people]\np0 = [\"Lead Bot/x\", 3]\n").len(), 2);
}

#[test]
fn fields_keep_their_units() {
    let policy = Policy::parse("[deadlines]\nrequest_s = 45\n[retries]\nbackoff_first_ms = 250\n").unwrap();
    assert_eq!(policy.deadlines.request, Duration::from_secs(45));
    assert_eq!(policy.retries.backoff_first, Duration::from_millis(250));
}

#[test]
fn the_gain_that_a_step_must_bring_is_a_share_of_what_was() {
    let gain = |text| Policy::parse(text).map(|policy| policy.scaling.gain_bp);
    assert_eq!(gain(""), Ok(1_000));
    assert_eq!(gain("[scaling]\ngain_percent = 25\n"), Ok(2_500));
    assert_eq!(problems("[scaling]\ngain_percent = 101\n"), ["2 scaling.gain_percent"]);
}
