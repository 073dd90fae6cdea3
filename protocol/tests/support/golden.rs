//! Golden files: bytes in hexadecimal with a remark on each part, committed in `tests/golden`.
//!
//! A line is `<hex> # <remark>`; the bytes of a file are its hex digits one after the other. With `MESH_GOLDEN=write` the
//! files are written anew: only for a new format, since what is in them is a promise to stored and travelling bytes.

use std::fmt::Write as _;
use std::path::PathBuf;

use protocol::text::{hex, unhex};

/// Bytes of one line.
const LINE_BYTES: usize = 32;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Whether golden files are to be written anew.
pub(crate) fn writing() -> bool {
    std::env::var("MESH_GOLDEN").is_ok_and(|v| v == "write")
}

/// The text of a golden file; written first where asked.
pub(crate) fn text(name: &str, fresh: &str) -> String {
    if writing() {
        std::fs::write(path(name), fresh).unwrap();
    }
    std::fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{}: {e}", path(name).display()))
}

/// The bytes of a golden file; written first from `fresh` where asked.
pub(crate) fn bytes(name: &str, fresh: &[u8]) -> Vec<u8> {
    let text = text(&format!("{name}.hex"), &remarked(name, fresh));
    let digits: String =
        text.lines().filter_map(|l| l.split('#').next()).flat_map(str::split_whitespace).collect();
    unhex(&digits).expect("a golden file holds hexadecimal digits")
}

/// Bytes with a remark on each part.
fn remarked(name: &str, bytes: &[u8]) -> String {
    let mut out = Page(String::new());
    match name {
        "inbox" => out.inbox(bytes),
        "lineage" => out.lineage(bytes),
        "audit_block" => out.block(bytes),
        _ => out.frame(bytes),
    }
    out.0
}

struct Page(String);

impl Page {
    fn part(&mut self, bytes: &[u8], remark: &str) {
        if bytes.is_empty() {
            writeln!(self.0, "# (no bytes) {remark}").unwrap();
        }
        for (i, line) in bytes.chunks(LINE_BYTES).enumerate() {
            let remark = if i == 0 { remark } else { "  ..." };
            writeln!(self.0, "{:<width$} # {remark}", hex(line), width = LINE_BYTES * 2).unwrap();
        }
    }

    /// Parts of given lengths, one after the other; returns the rest.
    fn parts<'b>(&mut self, mut bytes: &'b [u8], parts: &[(usize, &str)]) -> &'b [u8] {
        for (len, remark) in parts {
            let (part, rest) = bytes.split_at(*len);
            self.part(part, remark);
            bytes = rest;
        }
        bytes
    }

    fn frame(&mut self, bytes: &[u8]) {
        const ENCODINGS: [&str; 6] =
            ["fixed, same", "fixed", "text, same", "text", "text, uniform", "text, dictionary"];
        let rest = self.parts(
            bytes,
            &[(2, "magic AM"), (1, "version"), (1, "kind"), (4, "rows"), (1, "columns"), (3, "zero")],
        );
        let columns = usize::from(bytes[8]);
        let (directory, mut data) = rest.split_at(columns * 8);
        let mut lengths = Vec::new();
        for entry in directory.chunks_exact(8) {
            let len = u32::from_le_bytes(entry[4..].try_into().unwrap()) as usize;
            let encoding = ENCODINGS[usize::from(entry[1])];
            self.part(
                entry,
                &format!("column {}: {encoding}; id u8, encoding u8, width u16, bytes u32", entry[0]),
            );
            lengths.push((entry[0], len));
        }
        for (id, len) in lengths {
            let (column, rest) = data.split_at(len);
            self.part(column, &format!("data of column {id}"));
            data = rest;
        }
        assert!(data.is_empty(), "a frame ends with its last column");
    }

    fn inbox(&mut self, bytes: &[u8]) {
        let mut rest = self.parts(bytes, &[(2, "magic AX"), (1, "version"), (1, "zero"), (4, "parcels")]);
        while let Some((len, tail)) = rest.split_at_checked(4) {
            self.part(len, "bytes of the parcel");
            let (parcel, tail) = tail.split_at(u32::from_le_bytes(len.try_into().unwrap()) as usize);
            self.frame(parcel);
            rest = tail;
        }
    }

    fn lineage(&mut self, bytes: &[u8]) {
        let rest = self.parts(
            bytes,
            &[
                (20, "root: instance u64, sequence u64, slot u16, copy u16"),
                (20, "parent, in the same form"),
                (8, "deadline, nanoseconds u64"),
                (1, "serves a person"),
                (1, "hops"),
                (1, "zero"),
            ],
        );
        let (hops, seal) = rest.split_at(rest.len() - 8);
        self.part(hops, "fnv1a of agent/capability for each hop, u32");
        self.part(seal, "seal: SipHash-2-4 of holder, zero byte and all above, u64");
    }

    fn block(&mut self, bytes: &[u8]) {
        let rest = self.parts(
            bytes,
            &[
                (2, "magic AB"),
                (1, "version"),
                (1, "shard"),
                (8, "epoch u64"),
                (8, "sequence u64"),
                (8, "at, nanoseconds u64"),
                (32, "hash of the block before"),
                (4, "bytes of the body"),
            ],
        );
        let body = u32::from_le_bytes(bytes[60..64].try_into().unwrap()) as usize;
        let rest = self.parts(
            rest,
            &[(body, "body: zstd over decisions, completions, notes, each behind its length u32")],
        );
        for hash in rest.chunks_exact(16) {
            self.part(hash, "hash of a payload, then of a response");
        }
    }
}
