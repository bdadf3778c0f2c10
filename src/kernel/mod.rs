//! Kernels: plain slices in, plain slices out, no model and no file in sight.
//!
//! Everything is a product of rows (activations) and panels: 64 columns of a weight (or of keys, or of values) laid out
//! for one micro-kernel ([`tile`]), made while packing from whatever the numbers are stored as ([`matrix`]). Around it
//! stand the few row operations of a decoder ([`rows`]), attention ([`attention`]) and the head ([`head`]).
//!
//! Invariant: a row of a result depends on that row alone. Depth is cut at fixed places, lanes are summed in a fixed order,
//! and no decision looks at how many rows or threads there are; so a row has the same bits in any company.

pub mod attention;
pub mod backward;
mod element;
pub mod head;
mod isa;
mod lines;
mod math;
pub mod matrix;
pub mod nf4;
mod panel;
mod pool;
pub mod product;
pub mod rows;
mod shared;
mod tile;
mod unit;

pub use element::{Element, bytes_of};
pub use isa::Isa;
pub use lines::Lines;
pub use matrix::{Blocks, Matrix, Numbers};
pub use pool::Pool;
pub use shared::{Shared, Strip};
pub use tile::WIDTH as PANEL_WIDTH;
pub use unit::prefetch;
