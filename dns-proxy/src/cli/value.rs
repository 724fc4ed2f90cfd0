//! What values may be, and what is said of those that may not.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::{duration, mnemonic, size};

pub(super) fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.port() != 0 => Ok(addr),
        _ => Err("write ADDR:PORT, such as 127.0.0.1:53 or [::1]:53".to_owned()),
    }
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| "write a network, such as 10.0.0.0/8 or fd00::/8".to_owned())
}

pub(super) fn upstream_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration::parse(text).map_err(|error| error.to_string())?;
    // Below, not even loopback answers reliably; above, every client has long given up.
    let range = Duration::from_millis(10)..=Duration::from_secs(60);
    if range.contains(&timeout) { Ok(timeout) } else { Err("not between 10ms and 60s".to_owned()) }
}

pub(super) fn cache_size(text: &str) -> Result<usize, String> {
    let size = size::parse(text).map_err(|error| error.to_string())?;
    // Below, the workers' shares are too small; above, places in them have no number.
    let range = 1 << 20..=16 << 30;
    let size = (size == 0 || range.contains(&size)).then_some(size);
    let size = size.and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(|| "neither 0 nor between 1MiB and 16GiB".to_owned())
}

pub(super) fn cache_min_ttl(text: &str) -> Result<Duration, String> {
    up_to(text, "1h")
}

pub(super) fn cache_max_ttl(text: &str) -> Result<Duration, String> {
    match up_to(text, "7d")? {
        // RFC 8767 section 4.
        ttl if ttl >= Duration::from_secs(1) => Ok(ttl),
        _ => Err("not between 1s and 7d; --cache-size 0 turns the cache off".to_owned()),
    }
}

pub(super) fn serve_stale(text: &str) -> Result<Duration, String> {
    up_to(text, "7d")
}

/// A duration, or 0, not above the longest.
fn up_to(text: &str, longest: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parse = |text| duration::parse(text).map_err(|error| error.to_string());
    let duration = parse(text)?;
    if duration <= parse(longest)? { Ok(duration) } else { Err(format!("above {longest}")) }
}

pub(super) fn log_size(text: &str) -> Result<u64, String> {
    let size = size::parse(text).map_err(|error| error.to_string())?;
    // Below, it would be renamed all the time.
    if size >= 1 << 16 { Ok(size) } else { Err("below 64KiB".to_owned()) }
}

pub(super) fn qtype(text: &str) -> Result<u16, String> {
    mnemonic::type_number(text).ok_or_else(|| "write a type such as AAAA or TYPE65".to_owned())
}

pub(super) fn rcode(text: &str) -> Result<u8, String> {
    mnemonic::rcode_number(text)
        .ok_or_else(|| "write a code such as NXDOMAIN or SERVFAIL".to_owned())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}
