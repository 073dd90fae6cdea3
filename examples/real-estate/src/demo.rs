//! Owns the run of the demo from the first registration to the report: agents, people, scenes, archive, books. What is
//! staged is in `scenes`; what is counted, in `books`. Rule kept: the run ends by itself, and whatever goes wrong in it
//! ends up in the report or in an error.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use governance::{Policy, Reason, policy::Rate};
use tokio::time::sleep;
use worker_sdk::Mesh;

use crate::{
    agents::{self, Crew},
    archive::{self, Archive, Note},
    books::{self, Books, Limit, Limits, Record},
    config::{self, Common, Demo},
    dialogues::{self, Dialogue},
    ledger::Ledger,
    llm::Llm,
    messages::PEOPLE,
    people,
    platform::Platform,
    progress::Progress,
    report::{Report, Table, Talk, percentile_ms},
    scenes::{self, Seen, Stage},
    talks::Talks,
};

/// How long nothing new may arrive in the archive before the books are closed as they are.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(45);

/// How long the end waits for a tripped breaker: its probe comes every thirty seconds.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(40);

/// How often the archive is asked whether all has arrived.
const ARCHIVE_POLL: Duration = Duration::from_millis(500);

/// Plays the demo and gives its report.
///
/// # Errors
/// When the input cannot be read, or the mesh or the archive cannot be reached.
pub async fn run(demo: &Demo) -> anyhow::Result<Report> {
    let dialogues = load(demo.common.input.as_deref())?;
    let people = people::cast(&dialogues, demo.messages_min);
    anyhow::ensure!(
        people.iter().any(|person| person.dialogue.said().next().is_some()),
        "nobody says anything in the input"
    );
    let limits = limits(&demo.policy, &agents::NAMES.into_iter().chain([PEOPLE]).collect::<Vec<_>>())?;
    let archive = Archive::open(&demo.postgres_url).await?;
    let platform = Arc::new(Platform::new(&dialogues, llm(&demo.common)?));
    let mesh = connect(&demo.common).await?;
    // Services first, so that nobody declares a dependency that nobody offers yet.
    let crew = Crew::start(&mesh, agents::NAMES.into_iter().rev().chain([PEOPLE]), &platform).await?;

    let (progress, seen) = (Progress::default(), Seen::default());
    let stage = Stage { platform: &platform, crew: &crew, seen: &seen, progress: &progress };
    progress.say(&format!("12 agents have joined; {} people begin to talk", people.len()));
    let talks = Talks::new(&stage, &people);
    let started = Instant::now();
    let (talk, ()) = futures::join!(talks.play(demo), direct(&stage, &talks));
    progress.say("the people have what they wanted; waiting until everything has reached the archive");

    let (books, records) = settle(&archive, &platform.ledger, &limits, &progress).await?;
    let notes = recovered(&archive).await?;
    crew.stop().await?;
    Ok(Report {
        setting: config::setting("demo"),
        books,
        table: table(&records, &notes, &books),
        talk: Talk { seconds: started.elapsed().as_secs_f64(), ..talk },
        scenes: scenes::judge(&seen, &platform, &records),
        example_trace: talks.example(),
        balanced: books.balance(),
    })
}

/// The dialogues of a file, or the built-in ones.
///
/// # Errors
/// Names what is wrong with the file.
pub fn load(input: Option<&Path>) -> anyhow::Result<Vec<Dialogue>> {
    Ok(input.map_or_else(|| Ok(dialogues::built_in()), dialogues::read)?)
}

/// The language model, where one is configured.
///
/// # Errors
/// When no HTTP client can be made.
pub fn llm(common: &Common) -> anyhow::Result<Option<Llm>> {
    let url = common.llm_url.as_deref().filter(|url| !url.is_empty());
    Ok(url.map(|url| Llm::new(url, &common.llm_model, config::llm_key())).transpose()?)
}

/// Connects to the mesh.
///
/// # Errors
/// When the broker cannot be reached.
pub async fn connect(common: &Common) -> anyhow::Result<Mesh> {
    let mesh = match &common.nats_url {
        Some(url) => Mesh::connect(url).await,
        None => Mesh::from_env().await,
    };
    mesh.context("the mesh cannot be reached; `./dev up` starts one")
}

/// What the policy allows these agents.
///
/// # Errors
/// When the policy cannot be read.
pub(crate) fn limits(path: &Path, names: &[&str]) -> anyhow::Result<Limits> {
    let text =
        fs::read_to_string(path).with_context(|| format!("the policy {} cannot be read", path.display()))?;
    let policy = Policy::parse(&text).map_err(|problems| {
        anyhow::anyhow!(
            "the policy {} has {} problems; `mesh policy check` lists them",
            path.display(),
            problems.len()
        )
    })?;
    let limit = |rate: Rate| Limit { rate_per_s: rate.per_s, burst: rate.burst };
    let names = || names.iter().copied();
    let target_rate = |name: &str| policy.max_rate(name).map(|rate| (name.to_owned(), limit(rate)));
    Ok(Limits {
        quotas: names().map(|name| (name.to_owned(), limit(policy.quota(name)))).collect(),
        target_rates: names().filter_map(target_rate).collect(),
    })
}

/// The order of the scenes: the short ones at once, the slow handoff service when talk is under way, the burst for the
/// CRM beside it.
async fn direct(stage: &Stage<'_>, talks: &Talks<'_>) {
    stage.undeclared_call().await;
    stage.claimed_p0().await;
    talks.under_way().await;
    futures::join!(stage.slow_handoffs(), stage.crm_burst());
}

/// Waits until every dispatch that was accepted has its end in the archive, or nothing more arrives there.
///
/// # Errors
/// When the archive does not answer.
pub(crate) async fn settle(
    archive: &Archive,
    ledger: &Ledger,
    limits: &Limits,
    progress: &Progress,
) -> anyhow::Result<(Books, Vec<Record>)> {
    let (mut ended, mut changed) = (0, Instant::now());
    loop {
        let now = archive.ended().await?;
        if now != ended {
            (ended, changed) = (now, Instant::now());
        }
        let accepted = ledger.accepted_count() as u64;
        progress.show(|| format!("archived {ended} of at least {accepted} dispatches"));
        let patient = changed.elapsed() < ARCHIVE_PATIENCE;
        if ended >= accepted || !patient {
            let records = archive.records().await?;
            let books = Books::close(&ledger.counts(), &records, limits);
            if books.balance() || !patient {
                return Ok((books, records));
            }
        }
        sleep(ARCHIVE_POLL).await;
    }
}

/// The notes, once every breaker that tripped has been probed, or not come back in time.
async fn recovered(archive: &Archive) -> anyhow::Result<Vec<Note>> {
    let start = Instant::now();
    loop {
        let notes = archive.notes().await?;
        let (trips, recoveries) = archive::breaker_trips(&notes);
        if recoveries >= trips || start.elapsed() > RECOVERY_PATIENCE {
            return Ok(notes);
        }
        sleep(ARCHIVE_POLL).await;
    }
}

/// The article's table.
fn table(records: &[Record], notes: &[Note], books: &Books) -> Table {
    let shares = |wanted: &dyn Fn(&Record) -> bool| {
        let ran = records.iter().filter(|record| record.admitted_us.is_some() && record.outcome.is_some());
        let mut shares: Vec<i64> = ran.filter(|record| wanted(record)).map(Record::own_share_us).collect();
        shares.sort_unstable();
        shares
    };
    let (p0, all) = (shares(&|record| record.priority == "P0"), shares(&|_| true));
    let (trips, recoveries) = archive::breaker_trips(notes);
    let refused = records.iter().filter(|record| is_violation(record)).count();
    Table {
        p50_ms: percentile_ms(&p0, 50),
        p95_ms: percentile_ms(&p0, 95),
        p99_ms: percentile_ms(&p0, 99),
        all_p50_ms: percentile_ms(&all, 50),
        all_p95_ms: percentile_ms(&all, 95),
        all_p99_ms: percentile_ms(&all, 99),
        peak_per_s: books::peak(records.iter().filter_map(|record| record.admitted_us).collect()),
        breaker_trips: trips,
        auto_recovery_pct: share_pct(recoveries, trips),
        violations_blocked: refused as u64,
        audit_completeness_pct: books.completeness_pct(),
    }
}

fn is_violation(record: &Record) -> bool {
    record.reason.parse::<Reason>().is_ok_and(Reason::is_violation)
}

/// `part` of `whole` in percent; a hundred where there is no whole.
fn share_pct(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 100.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
    let share = part.min(whole) as f64 / whole as f64;
    share * 100.0
}
