//! The forwarder on the real network stack: what clients send, what reaches the upstream, and what
//! comes back, byte for byte; and what the command line says to mistakes.

mod authentication;
mod cache;
mod circles;
mod cli;
mod client;
mod configuration;
mod distance;
mod faults;
mod message;
mod packets;
mod pins;
mod place;
mod plain;
mod real_servers;
mod routes;
mod sessions;
mod shares;
mod upstream;
mod upstreams;
