//! (being written)

pub mod adamw;
pub mod dialogue;
pub mod format;
pub mod gradients;
pub mod initial;
pub mod order;
pub mod recipe;
pub mod schedule;
