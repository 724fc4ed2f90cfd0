//! Programs that we did not write: what Debian has of resolvers, and containers made by real
//! runtimes.

mod clients;
mod engines;
mod pods;
mod runtimes;
