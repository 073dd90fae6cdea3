//! Where the mesh is, and connections to its parts. Owns the search through options, environment and file.
//!
//! The rule it keeps: a mesh is found as a whole. Where the broker is named, no file is looked at, so that the parts of
//! two meshes are never mixed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use async_nats::Client;
use audit_archiver::archive::Archive;
use clap::Args;

/// What a local mesh writes, below the folder it was started in.
const FILE: &str = "target/stack/mesh.env";
/// How long a connection may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses on the command line.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Addresses {
    /// The broker [else MESH_NATS_URL].
    #[arg(long, global = true, value_name = "URL", help_heading = "Where the mesh is")]
    nats_url: Option<String>,
    /// The store of the audit trail [else MESH_REDIS_URL].
    #[arg(long, global = true, value_name = "URL", help_heading = "Where the mesh is")]
    redis_url: Option<String>,
    /// The archive [else MESH_POSTGRES_URL].
    #[arg(long, global = true, value_name = "URL", help_heading = "Where the mesh is")]
    postgres_url: Option<String>,
}

/// A mesh that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mesh {
    /// The broker.
    pub(crate) nats_url: String,
    /// The monitors of the broker's nodes, where they are known.
    pub(crate) nats_monitors: Vec<String>,
    /// The store of the trail.
    pub(crate) redis_url: String,
    /// The archive.
    pub(crate) postgres_url: String,
    /// The HTTP addresses of the coordinators, where they are known.
    pub(crate) coordinators: Vec<String>,
    /// The policy file, where it is known.
    pub(crate) policy: Option<PathBuf>,
    /// The file with the audit key, where it is known.
    pub(crate) audit_key_file: Option<PathBuf>,
    /// The folders of signed checkpoints, where they are known.
    pub(crate) checkpoints: Vec<PathBuf>,
    /// The public key that checks their signatures, or the file that holds it, where it is known.
    pub(crate) checkpoint_public_key: Option<String>,
    /// How all this was found, for people.
    pub(crate) found: String,
}

impl Mesh {
    /// Finds the mesh: options first, then the environment, then the nearest file, then the usual ports.
    pub(crate) fn find(addresses: &Addresses) -> Self {
        let environment = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let here = std::env::current_dir().unwrap_or_default();
        Self::choose(addresses, environment, || here.ancestors().find_map(read_file))
    }

    fn choose(
        addresses: &Addresses,
        environment: impl Fn(&str) -> Option<String>,
        file: impl FnOnce() -> Option<(PathBuf, BTreeMap<String, String>)>,
    ) -> Self {
        let named = addresses.nats_url.is_some() || environment("MESH_NATS_URL").is_some();
        let file = if named { None } else { file() };
        let found = match (&addresses.nats_url, &file) {
            (Some(_), _) => "from the command line".to_owned(),
            (None, _) if named => "from the environment".to_owned(),
            (None, Some((path, _))) => format!("from {}", path.display()),
            (None, None) => "the usual one, since nothing names another".to_owned(),
        };
        let values = file.map(|(_, values)| values).unwrap_or_default();
        // The file is of one mesh as a whole: it goes before stray variables of another.
        let value = |name: &str| values.get(name).cloned().or_else(|| environment(name));
        let address = |given: &Option<String>, name: &str, usual: &str| {
            given.clone().or_else(|| value(name)).unwrap_or_else(|| usual.to_owned())
        };
        let list = |name: &str| -> Vec<String> {
            let list = value(name).unwrap_or_default();
            list.split(',').map(str::trim).filter(|one| !one.is_empty()).map(Into::into).collect()
        };
        Self {
            nats_url: address(&addresses.nats_url, "MESH_NATS_URL", "nats://127.0.0.1:4222"),
            redis_url: address(&addresses.redis_url, "MESH_REDIS_URL", "redis://127.0.0.1:6379"),
            postgres_url: address(
                &addresses.postgres_url,
                "MESH_POSTGRES_URL",
                "postgres://user:password@127.0.0.1:5432/mesh",
            ),
            nats_monitors: list("MESH_NATS_MONITOR_URL"),
            coordinators: list("MESH_COORDINATORS"),
            policy: value("MESH_POLICY").map(PathBuf::from),
            audit_key_file: value("MESH_AUDIT_KEY_FILE").map(PathBuf::from),
            checkpoints: value("MESH_CHECKPOINTS").into_iter().map(PathBuf::from).collect(),
            checkpoint_public_key: value("MESH_CHECKPOINT_PUBLIC_KEY"),
            found,
        }
    }

    /// Connects to the broker.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn broker(&self) -> anyhow::Result<Client> {
        let connecting = broker::connect(&self.nats_url, "mesh");
        let Ok(client) = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await else {
            anyhow::bail!("the broker at {} does not answer in time", shown(&self.nats_url));
        };
        client.with_context(|| {
            format!("no broker at {} (the address is {})", shown(&self.nats_url), self.found)
        })
    }

    /// Connects to the archive.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn archive(&self) -> anyhow::Result<Archive> {
        Archive::connect(&self.postgres_url)
            .await
            .with_context(|| format!("no archive at {}", shown(&self.postgres_url)))
    }
}

/// An address as it may be shown: what stands before `@` is secret.
pub(crate) fn shown(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (Some(_) | None, Some(_) | None) => url.to_owned(),
    }
}

fn read_file(folder: &Path) -> Option<(PathBuf, BTreeMap<String, String>)> {
    let path = folder.join(FILE);
    let text = std::fs::read_to_string(&path).ok()?;
    Some((path, parse_file(&text)))
}

/// Plain `NAME=value` lines; a value is taken as it stands.
fn parse_file(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Option<(PathBuf, BTreeMap<String, String>)> {
        let text = "# local\nMESH_NATS_URL=nats://127.0.0.1:4333\nMESH_REDIS_URL=redis://127.0.0.1:6444\n\
                    MESH_COORDINATORS=http://127.0.0.1:7070,http://127.0.0.1:7071\nMESH_POLICY=/x/mesh.toml\n";
        Some((PathBuf::from("/x/mesh.env"), parse_file(text)))
    }

    #[test]
    fn a_file_names_the_mesh_as_a_whole() {
        let stray = |name: &str| (name == "MESH_REDIS_URL").then(|| "redis://elsewhere".to_owned());
        let mesh = Mesh::choose(&Addresses::default(), stray, file);
        assert_eq!(mesh.nats_url, "nats://127.0.0.1:4333");
        assert_eq!(mesh.redis_url, "redis://127.0.0.1:6444");
        assert_eq!(mesh.coordinators.len(), 2);
        assert_eq!(mesh.found, "from /x/mesh.env");
    }

    #[test]
    fn a_named_broker_keeps_files_out() {
        let environment = |name: &str| (name == "MESH_NATS_URL").then(|| "nats://there".to_owned());
        let mesh = Mesh::choose(&Addresses::default(), environment, file);
        assert_eq!(
            (mesh.nats_url.as_str(), mesh.redis_url.as_str()),
            ("nats://there", "redis://127.0.0.1:6379")
        );
        let addresses = Addresses { nats_url: Some("nats://here".into()), ..Addresses::default() };
        assert_eq!(Mesh::choose(&addresses, environment, file).nats_url, "nats://here");
    }

    #[test]
    fn an_option_goes_before_the_file() {
        let addresses = Addresses { postgres_url: Some("postgres://db/mesh".into()), ..Addresses::default() };
        let mesh = Mesh::choose(&addresses, |_| None, file);
        assert_eq!(mesh.postgres_url, "postgres://db/mesh");
        assert_eq!(mesh.nats_url, "nats://127.0.0.1:4333");
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(shown("postgres://mesh:secret@127.0.0.1:5432/mesh"), "postgres://…@127.0.0.1:5432/mesh");
        assert_eq!(shown("nats://127.0.0.1:4222"), "nats://127.0.0.1:4222");
    }
}
