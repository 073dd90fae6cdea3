//! Payloads. Owns their bytes.
