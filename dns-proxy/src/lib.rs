//! A container host's DNS, encrypted: see ARCHITECTURE.md for the way of a query.
//!
//! Dependencies point one way: `main → config → cli`, `app → everything`, `control → datapath →
//! upstream → wire`, `datapath → route → wire`, `datapath → cache → parts → wire`.

pub mod addr;
pub mod admin;
pub mod app;
pub mod audit;
pub mod cache;
mod circles;
pub mod cli;
pub mod config;
pub mod confine;
pub mod control;
pub mod control_socket;
pub mod datapath;
pub mod duration;
pub mod escape;
pub mod exec;
pub mod health;
pub mod host;
pub mod meter;
pub mod mnemonic;
pub mod moment;
pub mod observe;
pub mod parts;
pub mod pin;
mod polled;
pub mod pulse;
pub mod route;
pub mod size;
pub mod status;
pub mod top;
pub mod upstream;
pub mod wire;
