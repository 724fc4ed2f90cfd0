//! The way of a query, one file per stage, in the order in which a query meets them.
//!
//! ```text
//! udp / tcp ─► gate (who may ask) ─► query ─► handler ─► upstream pool
//!     ▲                                          │
//!     └──────────────── response ◄───────────────┘
//! ```
//!
//! `query` and `response` are pure: bytes in, bytes out. A [`worker`] is a thread with a runtime of
//! its own, which owns its listeners and its upstream connections and shares nothing on the way.

pub mod batch;
pub mod gate;
pub mod handler;
mod opt_last;
pub mod query;
pub mod response;
pub mod stats;
pub mod tcp;
pub mod udp;
pub mod worker;
