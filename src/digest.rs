//! sha256, in lower-case hex.

use sha2::{Digest, Sha256};

/// The sha256 of `bytes` in hex (64 characters).
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
