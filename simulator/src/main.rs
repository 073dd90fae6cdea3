//! The command: runs seeds, says what was compared, and how to see a failure again.
#![expect(clippy::print_stdout, reason = "the figures for people are this program's output")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use simulator::{Faults, Report, Scene, Settings, run};

/// Runs the real homes and rules in a modelled world with faults, and judges what they do.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// As many seeds as this time allows, in seconds, instead of a number of them.
    #[arg(long, conflicts_with = "seeds")]
    seconds: Option<u64>,
    /// For how many steps there are load and faults; what is under way then is followed to its end [default: as the scene is
    /// long].
    #[arg(long)]
    steps: Option<u64>,
    /// What is played.
    #[arg(long, value_enum, default_value_t)]
    scene: Scene,
    /// Which faults: all, none, or some of crash,stop,pause,partition,skew,broker,redis,acks,slow,agents,archive,ambush.
    #[arg(long, default_value = "all")]
    faults: Faults,
    /// Where the event log goes, for `mesh replay`. With several seeds that of the failing one, or of the last.
    #[arg(long)]
    log: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let begun = Instant::now();
    let mut totals = std::collections::BTreeMap::<&'static str, u64>::new();
    let (mut steps, mut longest) = (0, Duration::ZERO);
    let (mut seeds, time) = (0, args.seconds.map(Duration::from_secs));
    let is_over = |seeds: u64| time.map_or(seeds >= args.seeds, |time| begun.elapsed() >= time);
    while !is_over(seeds) {
        let seed = args.seed + seeds;
        seeds += 1;
        let log = args.log.is_some() && is_alone(&args);
        let (scene, faults) = (args.scene, args.faults.clone());
        let settings =
            Settings { seed, steps: args.steps.unwrap_or_else(|| scene.steps()), faults, log, scene };
        let report = run(settings.clone());
        steps += report.steps;
        longest = longest.max(report.longest_urgent_wait);
        for (what, count) in &report.compared {
            *totals.entry(what).or_default() += count;
        }
        if let Some(path) = args.log.as_ref().filter(|_| log) {
            std::fs::write(path, &report.log)
                .with_context(|| format!("failed to write {}", path.display()))?;
        }
        if let Some(why) = &report.broken {
            tell_failure(&args, &settings, &report, why)?;
            return Ok(ExitCode::FAILURE);
        }
        if is_alone(&args) {
            println!(
                "seed {seed}: {} steps, {:.1} s of the mesh's time",
                report.steps,
                report.lasted.as_secs_f64()
            );
        }
    }
    println!("compared:");
    for (what, count) in &totals {
        println!("  {count:>9}  {what}");
    }
    println!("the longest wait of a person's dispatch without an excuse: {longest:?}");
    let took = begun.elapsed().as_secs_f64();
    println!("{seeds} seeds, {steps} steps in {took:.1} s: {:.1} seeds/s", seeds as f64 / took);
    Ok(ExitCode::SUCCESS)
}

/// Whether one seed is looked at, and not many of them gone through.
const fn is_alone(args: &Args) -> bool {
    args.seeds == 1 && args.seconds.is_none()
}

fn tell_failure(args: &Args, settings: &Settings, report: &Report, why: &str) -> anyhow::Result<()> {
    println!("seed {} broke a promise after {} steps:", settings.seed, report.steps);
    println!("  {why}");
    println!("see it again with:");
    println!(
        "  cargo run -p simulator -- --seed {} --steps {} --faults {} --scene {} --log events.jsonl",
        settings.seed,
        settings.steps,
        settings.faults,
        settings.scene.to_possible_value().map_or_else(String::new, |scene| scene.get_name().to_owned())
    );
    println!("  mesh replay events.jsonl");
    if let Some(path) = args.log.as_ref().filter(|_| !is_alone(args)) {
        let again = run(Settings { log: true, ..settings.clone() });
        std::fs::write(path, again.log).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}
