//! What the daemon says of itself over HTTP, on the real network stack.

mod health;
mod metrics;
mod place;
mod server;
