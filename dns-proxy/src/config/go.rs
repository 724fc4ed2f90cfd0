//! The variables of the original Go proxy, which keep working.

use std::{env, net::SocketAddr};

use super::ConfigError;
use crate::addr::{DOT_PORT, UpstreamAddr};

/// The default upstream server.
const DEFAULT_UPSTREAM: &str = "1.1.1.1";

/// Whether plain listeners have UDP, and TCP.
pub(super) fn transports() -> Result<(bool, bool), ConfigError> {
    Ok((go_switch("DNS_PROXY_ENABLE_UDP", variable)?, go_switch("DNS_PROXY_ENABLE_TCP", variable)?))
}

/// The upstream that they name, or the default.
pub(super) fn upstream() -> Result<UpstreamAddr, ConfigError> {
    go_upstream(variable)
}

fn variable(name: &str) -> Option<String> {
    env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// `DNS_PROXY_UPSTREAM_SERVER` and `DNS_PROXY_UPSTREAM_PORT`, or the default.
fn go_upstream(variable: impl Fn(&str) -> Option<String>) -> Result<UpstreamAddr, ConfigError> {
    const SERVER: &str = "DNS_PROXY_UPSTREAM_SERVER";
    const PORT: &str = "DNS_PROXY_UPSTREAM_PORT";
    let server = variable(SERVER).unwrap_or_else(|| DEFAULT_UPSTREAM.to_owned());
    let port = match variable(PORT) {
        None => DOT_PORT,
        Some(value) => value.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            let problem = "not a port between 1 and 65535";
            ConfigError::Variable { variable: PORT, value, problem }
        })?,
    };
    match server.parse() {
        Ok(ip) => Ok(UpstreamAddr::by_address(SocketAddr::new(ip, port))),
        Err(_) => Err(ConfigError::Variable {
            variable: SERVER,
            problem: "not an IP address; a server with a name goes into DNS_PROXY_UPSTREAM, such \
                      as 1.1.1.1#cloudflare-dns.com",
            value: server,
        }),
    }
}

/// A Go boolean (`strconv.ParseBool`) that is on unless said otherwise.
fn go_switch(
    name: &'static str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<bool, ConfigError> {
    let Some(value) = variable(name) else {
        return Ok(true);
    };
    match value.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(ConfigError::Variable { variable: name, value, problem: "not true or false" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_go_proxys_upstream_variables_keep_working() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[], "1.1.1.1:853"),
            (&[("DNS_PROXY_UPSTREAM_SERVER", "9.9.9.9")], "9.9.9.9:853"),
            (&[("DNS_PROXY_UPSTREAM_PORT", "8853")], "1.1.1.1:8853"),
            (&[("DNS_PROXY_UPSTREAM_SERVER", "2620:fe::fe")], "[2620:fe::fe]:853"),
        ];
        for (variables, expected) in cases {
            let upstream = go_upstream(with(variables)).expect("valid");
            assert_eq!(upstream.to_string(), expected);
        }
    }

    #[test]
    fn their_mistakes_are_named() {
        for (name, value) in [
            ("DNS_PROXY_UPSTREAM_SERVER", "dns.quad9.net"),
            ("DNS_PROXY_UPSTREAM_PORT", "0"),
            ("DNS_PROXY_UPSTREAM_PORT", "port"),
        ] {
            let error = go_upstream(with(&[(name, value)])).expect_err(value).to_string();
            assert!(error.starts_with(&format!("{name}=`{value}`: ")), "{error}");
        }
    }

    #[test]
    fn switches_are_go_booleans() {
        for (value, expected) in
            [("true", Some(true)), ("0", Some(false)), ("F", Some(false)), ("off", None)]
        {
            let parsed =
                go_switch("DNS_PROXY_ENABLE_UDP", with(&[("DNS_PROXY_ENABLE_UDP", value)]));
            assert_eq!(parsed.ok(), expected, "{value}");
        }
        assert_eq!(go_switch("DNS_PROXY_ENABLE_TCP", with(&[])).ok(), Some(true));
    }
}
