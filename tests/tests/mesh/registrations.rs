//! Registrations: checked as a whole, and what is wrong is said all at once.

use mesh_tests::{Door, Stage};
use serde_json::json;
use worker_sdk::{Context, ErrorKind, Failure};

async fn nothing(_: Context, (): ()) -> Result<(), Failure> {
    Ok(())
}

#[tokio::test]
async fn every_problem_is_reported_at_once_with_field_and_fix() {
    let stage = Stage::set().await;
    let refused = stage
        .mesh
        .agent("Lead Bot")
        .capability("good", nothing)
        .capability("not.good", nothing)
        .max_concurrent(0)
        .instances(3, 2)
        .depends_on("a/b/c")
        .fallback_static("unoffered", &1)
        .register()
        .await
        .expect_err("there is much wrong with it");
    assert_eq!(refused.kind(), ErrorKind::Registration);
    for field in
        ["agent", "capabilities[1]", "max_concurrent", "min_instances", "dependencies[0]", "fallbacks"]
    {
        let problem = refused.problems().iter().find(|p| p.field.starts_with(field));
        let problem = problem.unwrap_or_else(|| panic!("nothing is said of {field}: {refused}"));
        assert!(!problem.message.is_empty() && !problem.fix.is_empty(), "{problem:?}");
    }
}

#[tokio::test]
async fn a_misspelt_dependency_is_told_with_the_nearest_known_name() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let memory = stage.mesh.agent(&stage.name("memory")).capability("recall", nothing).register().await?;
    let misspelt = memory.name().replacen("memory", "memroy", 1);
    let caller = stage.mesh.agent(&stage.name("caller")).depends_on(&misspelt).register().await?;
    let warning = &caller.warnings()[0];
    assert_eq!(warning.field, "dependencies[0]");
    assert!(format!("{} {}", warning.message, warning.fix).contains(memory.name()), "{warning:?}");
    Ok(())
}

#[tokio::test]
async fn role_quota_and_policy_version_come_from_the_policy() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let agent = stage.mesh.agent(&stage.name("somebody")).register().await?;
    let terms = agent.terms().expect("it is registered");
    assert_eq!(
        (terms.role.as_str(), terms.rate_per_s, terms.burst, terms.policy_version),
        ("tester", 2000, 200, 7)
    );
    Ok(())
}

#[tokio::test]
async fn a_registration_with_an_unknown_field_is_refused_in_words() {
    let stage = Stage::set().await;
    let door = Door::open(&stage).await;
    let verdict = door.register(&json!({"agent": stage.name("eager"), "quota": 1_000_000})).await;
    assert!(!verdict.accepted);
    assert!(verdict.problems[0].message.contains("quota"), "{verdict:?}");
}

#[tokio::test]
async fn changes_of_a_registration_are_recorded() -> anyhow::Result<()> {
    let stage = Stage::set().await;
    let name = stage.name("growing");
    let small = stage.mesh.agent(&name).capability("one", nothing).register().await?;
    let large =
        stage.mesh.agent(&name).capability("one", nothing).capability("two", nothing).register().await?;
    stage.archived().await;
    let notes = "SELECT count(*) FROM audit_note WHERE kind = 'registration' AND agent = $1";
    assert_eq!(stage.number(notes, &[&name]).await, 2);
    drop((small, large));
    Ok(())
}
