//! What a model is: its configuration, the layout of tokens it works on, its adapter, and the decoder.

pub mod adapter;
pub mod candle;
pub mod config;
pub mod cpu;
pub mod decoder;
pub mod device;
mod dropout;
pub mod files;
pub mod home;
pub mod names;
pub mod neftune;
pub mod packed;
pub mod training;
