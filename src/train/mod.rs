//! (being written)

pub mod dialogue;
pub mod format;
