//! Registrations, good and bad.

use super::*;

fn registration(json: &[(&str, &[&str])]) -> Registration {
    let mut made = Registration {
        agent: "lead_bot".to_owned(),
        capabilities: Vec::new(),
        topics: Vec::new(),
        dependencies: Vec::new(),
        max_concurrent: 50,
        sla_p95_ms: 500,
        fallbacks: BTreeMap::new(),
        min_instances: 1,
        max_instances: 1,
        encoding: Encoding::Binary,
    };
    for (field, values) in json {
        let mut values = values.iter().map(|v| (*v).to_owned());
        match *field {
            "agent" => made.agent = values.next().unwrap(),
            "capabilities" => made.capabilities = values.collect(),
            "topics" => made.topics = values.collect(),
            "dependencies" => made.dependencies = values.collect(),
            other => panic!("no list {other}"),
        }
    }
    made
}

fn directory(registrations: &[Registration]) -> BTreeMap<String, Registration> {
    registrations.iter().map(|r| (r.agent.clone(), r.clone())).collect()
}

fn fields(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|p| p.field.as_str()).collect()
}

#[test]
fn the_article_s_lead_bot_may_join_before_those_it_needs() {
    let lead_bot = registration(&[
        ("capabilities", &["lead_qualification", "temperature_scoring", "intent_routing"]),
        ("dependencies", &["intent_decoder", "handoff_service/evaluate", "*/sync_contact"]),
    ]);
    let verdict = check(&lead_bot, &directory(&[]), &Policy::default());
    assert!(verdict.is_good(), "{verdict:#?}");
    assert_eq!(fields(&verdict.warnings), ["dependencies[0]", "dependencies[1]", "dependencies[2]", "agent"]);
}

#[test]
fn in_strict_mode_a_dependency_that_nobody_offers_refuses() {
    let policy = Policy { strict_dependencies: true, ..Policy::default() };
    let decoder = registration(&[("agent", &["intent_decoder"]), ("capabilities", &["analyze_lead"])]);
    let known = directory(&[decoder]);
    let good = registration(&[(
        "dependencies",
        &["intent_decoder", "intent_decoder/analyze_lead", "*/analyze_lead"],
    )]);
    assert!(check(&good, &known, &policy).is_good());
    let slips = registration(&[(
        "dependencies",
        &["intent_decoderr", "intent_decoder/analyse_lead", "*/analyze_leads"],
    )]);
    let verdict = check(&slips, &known, &policy);
    let fixes: Vec<&str> = verdict.problems.iter().map(|p| p.fix.as_str()).collect();
    assert_eq!(
        fixes,
        [
            "did you mean \"intent_decoder\"?",
            "did you mean \"analyze_lead\"?",
            "did you mean \"analyze_lead\"?"
        ]
    );
}

#[test]
fn every_problem_is_reported_at_once() {
    let bad = Registration {
        max_concurrent: 0,
        sla_p95_ms: 0,
        min_instances: 5,
        max_instances: 2,
        fallbacks: BTreeMap::from([("reply".to_owned(), Fallback::Agent("Bot.2".to_owned()))]),
        ..registration(&[
            ("agent", &["Lead Bot"]),
            ("capabilities", &["a.b", "score", "score"]),
            ("topics", &[""]),
            ("dependencies", &["*", "x/", "crm", "crm"]),
        ])
    };
    let verdict = check(&bad, &directory(&[]), &Policy::default());
    assert_eq!(
        fields(&verdict.problems),
        [
            "agent",
            "capabilities[0]",
            "capabilities[2]",
            "topics[0]",
            "max_concurrent",
            "sla_p95_ms",
            "min_instances",
            "dependencies[0]",
            "dependencies[1]",
            "dependencies[3]",
            "fallbacks.reply",
            "fallbacks.reply",
        ]
    );
    assert!(verdict.problems.iter().all(|p| !p.fix.is_empty() && !p.message.is_empty()));
}

#[test]
fn a_fallback_agent_must_offer_the_same_capability() {
    let backup = registration(&[("agent", &["backup"]), ("capabilities", &["other"])]);
    let agent = |name: &str| Registration {
        fallbacks: BTreeMap::from([("evaluate".to_owned(), Fallback::Agent(name.to_owned()))]),
        ..registration(&[("agent", &["handoff"]), ("capabilities", &["evaluate"])])
    };
    let verdict = |name| check(&agent(name), &directory(std::slice::from_ref(&backup)), &Policy::default());
    assert_eq!(fields(&verdict("backup").problems), ["fallbacks.evaluate"]);
    assert_eq!(fields(&verdict("handoff").problems), ["fallbacks.evaluate"]);
    assert!(verdict("not_yet").is_good());
}

#[test]
fn an_agent_may_depend_on_itself() {
    let recursive = registration(&[("capabilities", &["plan"]), ("dependencies", &["lead_bot/plan"])]);
    let verdict =
        check(&recursive, &directory(&[]), &Policy { strict_dependencies: true, ..Policy::default() });
    assert!(verdict.is_good());
}
