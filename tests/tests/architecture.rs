//! The architecture, checked by a machine: who may depend on whom, what the rules may not touch, how files begin, how long
//! they get, and which words do not belong into them. Needs no servers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Longer files are divided by what they own; a little room is left for the last function.
const LINES_MAX: usize = 650;

/// Crates that would bring a clock, a runtime, a broker, a database or randomness into the rules.
const IMPURE_CRATES: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "futures",
    "async-nats",
    "redis",
    "tokio-postgres",
    "postgres",
    "reqwest",
    "axum",
    "hyper",
    "rand",
    "rand_core",
    "getrandom",
    "fastrand",
    "uuid",
    "time",
    "chrono",
    "tracing",
    "log",
];

/// What the source of the rules may not spell, and what to do instead.
const IMPURE_WORDS: &[(&str, &str)] = &[
    ("Instant::now", "time is passed in as Timestamp"),
    ("SystemTime", "time is passed in as Timestamp"),
    ("f32", "ratios are basis points"),
    ("f64", "ratios are basis points"),
    ("async", "the rules do not wait"),
    ("await", "the rules do not wait"),
    ("tokio", "the rules do not run anything"),
    ("rand", "randomness is passed in"),
    ("thread_local", "the state of the rules is in the governor"),
    ("println", "the rules say what they decide by effects"),
];

/// What no text of the project says. Each is written in two halves, so that this list does not find itself.
const BANNED: &[(&str, &str, &str)] = &[
    ("TO", "DO", "do it, or write down as an invariant that it is absent"),
    ("FIX", "ME", "fix it"),
    ("XX", "X:", "say what it means"),
    (" for ", "now,", "say what holds"),
    (" for ", "now.", "say what holds"),
    (" for ", "now;", "say what holds"),
    ("previ", "ously", "history is in git"),
    ("no longer ", "works", "history is in git"),
    ("/wo", "rk/", "no path of one machine"),
    ("db", "g!(", "take it out"),
    ("todo", "!(", "do it"),
    ("unimple", "mented!(", "implement it"),
    ("#[ig", "nore", "a test that does not run shows nothing"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository").to_owned()
}

/// Names of files that git knows or would take, below the root.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output();
    let known: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).expect("file names are text");
            text.split('\0').filter(|name| !name.is_empty()).map(|name| root().join(name)).collect()
        }
        // An archive of the sources has no git.
        Ok(_) | Err(_) => walk(&root()),
    };
    known.into_iter().filter(|path| path.is_file()).collect()
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the entry can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with(".git") {
            found.extend(walk(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    texts(|path| path.extension().is_some_and(|e| e == "rs"))
}

/// The texts of chosen files, by their names below the root.
fn texts(chosen: impl Fn(&Path) -> bool) -> Vec<(String, String)> {
    let root = root();
    let chosen: Vec<(String, String)> = files()
        .into_iter()
        .filter(|path| chosen(path))
        .filter_map(|path| {
            let name = path.strip_prefix(&root).expect("it lies below the root").display().to_string();
            Some((name, fs::read_to_string(path).ok()?))
        })
        .collect();
    assert!(!chosen.is_empty(), "nothing was looked at");
    chosen
}

/// Fails with all of what was found.
fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// The platform that rustc builds for here.
fn this_platform() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc says what it is").to_owned()
}

/// The dependencies of every package that cargo knows here, tests and build scripts apart.
struct Graph {
    members: BTreeSet<String>,
    names: BTreeMap<String, String>,
    edges: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn read() -> Self {
        let output = Command::new(env!("CARGO"))
            // What other platforms would need is not at hand, and not of interest.
            .args(["metadata", "--format-version", "1", "--locked", "--offline"])
            .args(["--filter-platform", &this_platform()])
            .current_dir(root())
            .output()
            .expect("cargo can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let list = |value: &Value| value.as_array().expect("a list").clone();
        let names: BTreeMap<String, String> =
            list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let is_normal = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let edges = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let deps = list(&node["deps"]);
                let deps = deps.iter().filter(|dep| is_normal(dep)).map(|dep| text(&dep["pkg"]));
                (text(&node["id"]), deps.collect())
            })
            .collect();
        let members =
            list(&metadata["workspace_members"]).iter().map(|id| names[&text(id)].clone()).collect();
        Self { members, names, edges }
    }

    fn direct(&self, package: &str) -> BTreeSet<String> {
        let id = self.names.iter().find(|(_, name)| *name == package).expect("the package is known").0;
        self.edges[id].iter().map(|id| self.names[id].clone()).collect()
    }

    fn all(&self, package: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut open = vec![package.to_owned()];
        while let Some(next) = open.pop() {
            for name in self.direct(&next) {
                if found.insert(name.clone()) {
                    open.push(name);
                }
            }
        }
        found
    }

    fn ours(&self, package: &str) -> BTreeSet<String> {
        self.direct(package).intersection(&self.members).cloned().collect()
    }
}

#[test]
fn the_rules_depend_on_nothing_of_ours_and_on_nothing_impure() {
    let graph = Graph::read();
    assert_eq!(graph.ours("governance"), BTreeSet::new());
    let reachable = graph.all("governance");
    let impure: Vec<&str> = IMPURE_CRATES.iter().copied().filter(|name| reachable.contains(*name)).collect();
    assert!(impure.is_empty(), "governance reaches {impure:?}");
}

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("governance", &[] as &[&str]),
        ("protocol", &["governance"]),
        ("broker", &["governance", "protocol"]),
        ("worker-sdk", &["governance", "protocol", "broker"]),
        ("audit-archiver", &["governance", "protocol"]),
        ("home", &["governance", "protocol"]),
        ("coordinator", &["governance", "protocol", "broker", "home"]),
        ("simulator", &["governance", "protocol", "home"]),
    ]);
    let graph = Graph::read();
    let mut found = Vec::new();
    for (package, allowed) in &allowed {
        for name in graph.ours(package) {
            if !allowed.contains(&name.as_str()) {
                found.push(format!("{package} depends on {name}"));
            }
        }
    }
    for package in &graph.members {
        if graph.all(package).contains("coordinator") {
            found.push(format!("{package} depends on the coordinator"));
        }
    }
    none("dependencies against the architecture", &found);
}

#[test]
fn every_package_takes_lints_and_versions_from_the_workspace() {
    let mut found = Vec::new();
    for (name, text) in texts(|path| path.ends_with("Cargo.toml")) {
        if name.contains("fuzz/") || name.contains("fixtures/") || text.contains("[workspace]\n") {
            continue;
        }
        for line in ["[lints]\nworkspace = true", "version.workspace = true", "edition.workspace = true"] {
            if !text.contains(line) {
                found.push(format!("{name} lacks {line:?}"));
            }
        }
    }
    none("packages that go their own way", &found);
}

#[test]
fn every_source_file_says_first_what_it_owns() {
    let found: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| {
            !text.lines().find(|line| !line.starts_with("#!")).unwrap_or("").starts_with("//! ")
        })
        .map(|(name, _)| name)
        .collect();
    none("files that do not begin with `//!`", &found);
}

#[test]
fn no_source_file_grows_without_end() {
    let found: Vec<String> = sources()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    none("files that are too long", &found);
}

#[test]
fn the_project_speaks_of_what_is() {
    let kinds = ["rs", "md", "toml", "sql", "sh", "py", "yml", "conf"];
    let ours = |path: &Path| {
        path.extension().is_some_and(|e| kinds.iter().any(|kind| e == *kind)) || path.ends_with("dev")
    };
    let mut found = Vec::new();
    for (name, text) in texts(ours) {
        for (number, line) in text.lines().enumerate() {
            for (first, second, instead) in BANNED {
                if line.contains(&format!("{first}{second}")) {
                    found.push(format!("{name}:{}: {first}{second}: {instead}", number + 1));
                }
            }
            if let Some(words) = numbered_task(line) {
                found.push(format!("{name}:{}: {words}: the text must do without it", number + 1));
            }
        }
    }
    none("words that do not belong here", &found);
}

/// A task list's number, as a reader of the project cannot know it.
fn numbered_task(line: &str) -> Option<String> {
    let lower = line.to_lowercase();
    for word in ["issue ", "issue #", "phase "] {
        for (at, _) in lower.match_indices(word) {
            let rest = &lower[at + word.len()..];
            if rest.starts_with(|c: char| c.is_ascii_digit()) {
                return Some(lower[at..].chars().take(word.len() + 2).collect());
            }
        }
    }
    None
}

#[test]
fn the_rules_touch_no_clock_no_chance_and_no_float() {
    let mut found = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| name.starts_with("governance/src/")) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (word, instead) in IMPURE_WORDS {
                if has_word(code, word) {
                    found.push(format!("{name}:{}: {word}: {instead}", number + 1));
                }
            }
        }
    }
    none("impure rules", &found);
}

/// Whether a word stands in a line, and not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

/// The bans that clippy enforces in the rules, tried on a crate that breaks each of them.
#[test]
fn clippy_finds_every_impurity_that_the_rules_ban() {
    let config = fs::read_to_string(root().join("governance/clippy.toml")).expect("the rules have lints");
    let reasons: BTreeMap<&str, &str> = config
        .lines()
        .filter_map(|line| Some((between(line, "path = \"", "\"")?, between(line, "reason = \"", "\"")?)))
        .collect();
    assert!(reasons.len() > 20, "only {} bans were read", reasons.len());

    let folder = scratch("impure");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/impure");
    fs::write(folder.join("clippy.toml"), &config).expect("the folder can be written");
    fs::write(folder.join("Cargo.toml"), MANIFEST).expect("the folder can be written");
    fs::create_dir_all(folder.join("src")).expect("the folder can be written");
    fs::copy(fixture.join("impure.rs"), folder.join("src/lib.rs")).expect("the fixture is there");
    let output = Command::new(env!("CARGO"))
        .args(["clippy", "--offline", "--quiet"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    let mut missed = String::new();
    for (path, reason) in &reasons {
        let fired =
            said.lines().any(|line| line.contains("disallowed") && line.contains(&format!("`{path}`")));
        if !fired || !said.contains(reason) {
            writeln!(missed, "  {path}: {reason}").expect("a text takes what is written");
        }
    }
    fs::remove_dir_all(&folder).expect("the folder is ours");
    assert!(missed.is_empty(), "clippy let pass:\n{missed}{said}");
}

const MANIFEST: &str = "[package]\nname = \"impure\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n";

fn between<'a>(line: &'a str, from: &str, to: &str) -> Option<&'a str> {
    line.split_once(from)?.1.split_once(to).map(|(inside, _)| inside)
}

/// A folder of this process, below what the build may write to.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the build's folder can be written");
    folder
}
