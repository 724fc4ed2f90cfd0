//! The harness tested by itself, on the real kernel and without the daemon: what later tests
//! conclude from it is worth what this proves.

mod capture;
mod client;
mod daemon;
mod documents;
mod dot;
mod faults;
mod leftovers;
mod plaintext;
mod probe;
