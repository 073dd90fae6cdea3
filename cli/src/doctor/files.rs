//! The files that a local mesh is started with: policy and audit key. Reads them; shows no secret.

use std::os::unix::fs::PermissionsExt;

use governance::Policy;
use protocol::AuditKey;

use super::Check;
use crate::mesh::Mesh;

pub(super) fn policy(mesh: &Mesh) -> Check {
    let Some(file) = &mesh.policy else {
        return Check::ok("policy", "no file is named here; coordinators use their own, or the defaults");
    };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) => {
            return Check::warn("policy", format!("{}: {e}", file.display()), "correct MESH_POLICY");
        }
    };
    match Policy::parse(&text) {
        Ok(policy) => Check::ok(
            "policy",
            format!("{}, version {}, {} agents named", file.display(), policy.version, policy.agents.len()),
        ),
        Err(problems) => Check::fail(
            "policy",
            format!("{} has {} problems; a coordinator will not start", file.display(), problems.len()),
            format!("mesh policy check {}", file.display()),
        ),
    }
}

pub(super) fn audit_key(mesh: &Mesh) -> Check {
    let Some(file) = &mesh.audit_key_file else {
        return Check::ok("audit key", "no file is named here; only coordinators need it");
    };
    let shown = file.display();
    match std::fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Check::ok("audit key", format!("{shown}, not readable by you"))
        }
        Err(e) => Check::warn("audit key", format!("{shown}: {e}"), "correct MESH_AUDIT_KEY_FILE"),
        Ok(text) => match AuditKey::parse(&text) {
            Err(e) => Check::fail("audit key", format!("{shown} holds no key"), e.to_string()),
            Ok(_) if is_open(file) => Check::warn(
                "audit key",
                format!("{shown} can be read by others: with it payload hashes can be guessed"),
                format!("chmod 600 {shown}"),
            ),
            Ok(_) => Check::ok("audit key", shown.to_string()),
        },
    }
}

fn is_open(file: &std::path::Path) -> bool {
    std::fs::metadata(file).is_ok_and(|m| m.permissions().mode() & 0o077 != 0)
}
