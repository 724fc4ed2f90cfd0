//! A certificate that a stranger shows: whatever is in it, it is refused in few words on one line.
#![no_main]

use std::sync::LazyLock;

use dns_proxy::{
    addr::UpstreamAddr,
    upstream::{RootSources, Tls, Trust},
};
use libfuzzer_sys::fuzz_target;

static TLS: LazyLock<Tls> = LazyLock::new(|| {
    let roots = RootSources { no_system_roots: true, optional: true, ..RootSources::default() };
    Tls::new(Trust { roots, ..Trust::default() }).expect("no roots are needed")
});
static UPSTREAM: LazyLock<UpstreamAddr> =
    LazyLock::new(|| "9.9.9.9#dns.test".parse().expect("an upstream"));

fuzz_target!(|certificate: &[u8]| {
    let said = TLS.judge(&UPSTREAM, certificate).expect_err("no root vouches for it");
    assert!(said.len() < 4_000, "{} octets", said.len());
    assert!(!said.chars().any(char::is_control), "{said:?}");
});
