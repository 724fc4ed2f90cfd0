//! The way of a query, one file per stage, in the order in which a query meets them.
//!
//! ```text
//! udp / tcp ─► gate (who may ask) ─► query ─► handler ─► route ─► known ─┬─► upstream, over TLS
//!     ▲                                                    │      │     └─► original, in plaintext
//!     └──────────────── response ◄───────────────── local ◄┴──────┘
//! ```
//!
//! `query`, `response` and `local` are pure: bytes in, bytes out. A [`worker`] is a thread with a runtime of
//! its own, which owns its listeners and its upstream connections and shares nothing on the way.

mod asked;
pub mod batch;
pub mod echo;
pub mod gate;
pub mod handler;
mod known;
mod local;
mod opt_last;
pub mod original;
pub mod outcome;
pub mod query;
pub mod response;
pub mod stats;
pub mod stream;
pub mod tap;
pub mod tcp;
pub mod transfer;
pub mod udp;
pub mod worker;
