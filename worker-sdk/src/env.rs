//! Where the mesh is: the one place that reads the environment, and the file that a local mesh leaves behind.

use std::path::Path;

/// The address when nothing else is known.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
/// The variable that names the broker.
const VARIABLE: &str = "MESH_NATS_URL";
/// What a local mesh writes, below the folder it was started in.
const FILE: &str = "target/stack/mesh.env";

/// The address of the broker: from the environment, or from the nearest `target/stack/mesh.env` at or above the current
/// folder, or the usual one on this machine.
pub(crate) fn nats_url() -> String {
    if let Ok(url) = std::env::var(VARIABLE)
        && !url.is_empty()
    {
        return url;
    }
    let here = std::env::current_dir().unwrap_or_default();
    here.ancestors().find_map(from_file).unwrap_or_else(|| DEFAULT_URL.to_owned())
}

fn from_file(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(FILE)).ok()?;
    value(&text).map(str::to_owned)
}

fn value(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim().strip_prefix(VARIABLE)?.strip_prefix('=')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_among_other_lines() {
        let text = "MESH_HTTP=127.0.0.1:1\nMESH_NATS_URL=nats://127.0.0.1:4333\n";
        assert_eq!(value(text), Some("nats://127.0.0.1:4333"));
        assert_eq!(value("MESH_NATS_URLS=x"), None);
    }
}
