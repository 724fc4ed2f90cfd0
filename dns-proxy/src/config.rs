//! What the daemon is to do: command line and environment, parsed once.

use std::{env, net::SocketAddr, num::NonZero, path::PathBuf, sync::Arc, thread, time::Duration};

use dns_proxy_common::{FailMode, GuardMode};
use ipnet::IpNet;
use thiserror::Error;

use crate::{
    addr::{DOT_PORT, UpstreamAddr},
    cache::{self, Limits},
    cli::{self, Fail, Guard, RunArgs, SharedArgs},
    control::{
        cgroup::Scope,
        mounts::{self, MountError},
    },
    pin::Pin,
    route::{Contradiction, ResolvConf, Route, Routes},
    upstream::{Profile, RootSources, Tls, TlsError, TlsVersion, Trust},
};

/// The default upstream server.
const DEFAULT_UPSTREAM: &str = "1.1.1.1";

/// Who may use plain listeners if nothing else is said: the networks of [`addr::is_private`].
const DEFAULT_ALLOW_FROM: [&str; 9] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// What `run` and `exec` share.
#[derive(Clone, Debug)]
pub struct Config {
    /// Upstream servers, in order of preference; at least one.
    pub upstreams: Vec<UpstreamAddr>,
    /// The whole time that a query may take upstream.
    pub upstream_timeout: Duration,
    /// How upstreams are authenticated.
    pub tls: Arc<Tls>,
    /// Whether clients' subnets are kept back.
    pub strip_subnets: bool,
    /// `--route`, none of which contradicts another.
    pub routes: Vec<Route>,
    /// Whether the built-in routes hold.
    pub default_routes: bool,
    /// What all workers keep together.
    pub cache: cache::Settings,
    /// `--cgroup-root`, which is a cgroup v2 directory.
    pub cgroup_root: Option<PathBuf>,
    /// Threads on the query path.
    pub workers: usize,
    /// What the leak guard does; `None` is off.
    pub guard: Option<GuardMode>,
    /// What becomes of the scope's queries without the daemon.
    pub fail: FailMode,
    /// Whether the kernel programs log.
    pub kernel_log: bool,
    /// What to intercept; nothing if it selects nothing.
    pub scope: Scope,
    /// Plain listeners.
    pub plain: Plain,
}

/// Plain listeners and who may use them.
#[derive(Clone, Debug)]
pub struct Plain {
    /// Where.
    pub listen: Vec<SocketAddr>,
    /// For whom.
    pub allow_from: Arc<[IpNet]>,
    /// With UDP.
    pub udp: bool,
    /// With TCP.
    pub tcp: bool,
}

/// Why the configuration makes no sense. Always the operator's to mend.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A variable of the original Go proxy; clap checks all others.
    #[error("{variable}=`{value}`: {problem}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with that.
        problem: &'static str,
    },
    /// Listeners without a transport.
    #[error(
        "DNS_PROXY_ENABLE_UDP and DNS_PROXY_ENABLE_TCP are both off, so --listen would serve \
         nothing; turn one of them on"
    )]
    NothingToListen,
    /// A guard that lets plaintext through.
    #[error(
        "--fail closed needs --guard on: without the guard, sockets that were connected while the \
         daemon was gone could go on in plaintext"
    )]
    ClosedWithoutGuard,
    /// Bounds that contradict each other.
    #[error("--cache-min-ttl is above --cache-max-ttl; lower the one or raise the other")]
    CacheTtl,
    /// `--route`.
    #[error("--route: {0}")]
    Route(#[from] Contradiction),
    /// `--pin`.
    #[error("--pin {0}: no upstream is at that address, so it would pin nothing")]
    Pin(Pin),
    /// `--ca` and its kin.
    #[error(transparent)]
    Trust(#[from] TlsError),
    /// `--cgroup-root`.
    #[error(transparent)]
    CgroupRoot(#[from] MountError),
}

impl Config {
    /// The configuration of `run`.
    ///
    /// # Errors
    /// What clap cannot see is wrong.
    pub fn run(args: RunArgs) -> Result<Self, ConfigError> {
        let mut config = Self::exec(args.shared)?;
        config.scope = Scope { select: args.cgroup, exclude: args.exclude_cgroup };
        if args.fail == Fail::Closed {
            if config.guard != Some(GuardMode::On) {
                return Err(ConfigError::ClosedWithoutGuard);
            }
            config.fail = FailMode::Closed;
        }
        config.plain.listen = args.listen;
        if !config.plain.listen.is_empty() && !config.plain.udp && !config.plain.tcp {
            return Err(ConfigError::NothingToListen);
        }
        if !args.allow_from.is_empty() {
            config.plain.allow_from = args.allow_from.into();
        }
        Ok(config)
    }

    /// The configuration of `exec`, whose scope is made later.
    ///
    /// # Errors
    /// What clap cannot see is wrong.
    pub fn exec(args: SharedArgs) -> Result<Self, ConfigError> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        if let Some(dir) = &args.cgroup_root {
            mounts::check_cgroup2(dir)?;
        }
        Routes::new(&args.route, false, &ResolvConf::default())?;
        let limits = Limits {
            min_ttl: args.cache_min_ttl,
            max_ttl: args.cache_max_ttl,
            max_stale: args.serve_stale,
        };
        if limits.min_ttl > limits.max_ttl {
            return Err(ConfigError::CacheTtl);
        }
        let upstreams =
            if args.upstream.is_empty() { vec![go_upstream(variable)?] } else { args.upstream };
        let of_routes: Vec<_> = args.route.iter().filter_map(|r| r.target.upstream()).collect();
        let pins_nothing = |pin: &&Pin| !upstreams.iter().chain(&of_routes).any(|u| pin.is_for(u));
        if let Some(pin) = args.pin.iter().find(pins_nothing) {
            return Err(ConfigError::Pin(*pin));
        }
        let trust = Trust {
            roots: RootSources {
                ca_files: args.ca,
                no_system_roots: args.no_system_roots,
                optional: !args.pin.is_empty(),
            },
            pins: args.pin,
            profile: match args.profile {
                cli::Profile::Strict => Profile::Strict,
                cli::Profile::Opportunistic => Profile::Opportunistic,
            },
            min_version: match args.tls_min {
                cli::TlsMin::V1_2 => TlsVersion::V1_2,
                cli::TlsMin::V1_3 => TlsVersion::V1_3,
            },
        };
        Ok(Self {
            upstreams,
            upstream_timeout: args.upstream_timeout,
            tls: Arc::new(Tls::new(trust)?),
            strip_subnets: args.strip_ecs,
            routes: args.route,
            default_routes: !args.no_default_routes,
            cache: cache::Settings { size: args.cache_size, limits },
            cgroup_root: args.cgroup_root,
            workers: args.workers.map_or(cores, usize::from),
            guard: match args.guard {
                Guard::On => Some(GuardMode::On),
                Guard::Count => Some(GuardMode::Count),
                Guard::Off => None,
            },
            fail: FailMode::Open,
            kernel_log: args.log == Some(tracing::Level::TRACE),
            scope: Scope::default(),
            plain: Plain {
                listen: Vec::new(),
                allow_from: default_allow_from(),
                udp: go_switch("DNS_PROXY_ENABLE_UDP", variable)?,
                tcp: go_switch("DNS_PROXY_ENABLE_TCP", variable)?,
            },
        })
    }
}

fn variable(name: &str) -> Option<String> {
    env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn default_allow_from() -> Arc<[IpNet]> {
    DEFAULT_ALLOW_FROM.iter().map(|net| net.parse().expect("a network in the source")).collect()
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
    use crate::addr;

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

    #[test]
    fn the_default_networks_are_the_private_ones() {
        for net in default_allow_from().iter() {
            assert!(addr::is_private(net.network()) && addr::is_private(net.broadcast()), "{net}");
        }
        for ip in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "fec0::1"] {
            let ip = ip.parse().expect("an address");
            assert!(!addr::is_private(ip) && default_allow_from().iter().all(|n| !n.contains(&ip)));
        }
    }
}
