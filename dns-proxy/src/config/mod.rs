//! What the daemon is to do: command line, environment and file, parsed once.

mod error;
mod go;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZero,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use dns_proxy_common::{FailMode, GuardMode, Token};
pub use error::ConfigError;
use ipnet::IpNet;

use crate::{
    addr::UpstreamAddr,
    admin,
    cache::{self, Limits},
    circles,
    cli::{self, Fail, Guard, PolicyArgs, RunArgs, SharedArgs},
    control::{cgroup::Scope, discover::Places, mounts, sockets},
    control_socket::Place,
    observe::dnstap,
    pin::Pin,
    route::{ResolvConf, Route, Routes},
    upstream::{Profile, RootSources, Tls, TlsVersion, Trust},
};

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
    /// Which way queries go.
    pub policy: Policy,
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
    /// Where to ask for who is selected by what he is.
    pub places: Places,
    /// Plain listeners.
    pub plain: Plain,
    /// Whom to tell what happens.
    pub telling: Telling,
}

/// Whom to tell what happens.
#[derive(Clone, Debug)]
pub struct Telling {
    /// Where the control socket is to be, if anywhere.
    pub control: Place,
    /// `--query-log`.
    pub query_log: Option<PathBuf>,
    /// Octets after which it is begun anew.
    pub query_log_max_size: Option<u64>,
    /// `--dnstap`.
    pub dnstap: Option<dnstap::Target>,
    /// Where health is told.
    pub admin: admin::Place,
}

/// Which way queries go, and whom to trust.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Upstream servers, in order of preference; at least one.
    pub upstreams: Vec<UpstreamAddr>,
    /// The whole time that a query may take upstream.
    pub timeout: Duration,
    /// How upstreams are authenticated.
    pub tls: Arc<Tls>,
    /// Whether clients' subnets are kept back.
    pub strip_subnets: bool,
    /// `--route`, none of which contradicts another.
    pub routes: Vec<Route>,
    /// Whether the built-in routes hold.
    pub default_routes: bool,
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

impl Config {
    /// The configuration of `run`.
    ///
    /// # Errors
    /// What no single value shows is wrong.
    pub fn run(args: RunArgs) -> Result<Self, ConfigError> {
        let mut config = Self::exec(args.shared)?;
        let (select, exclude) = (args.cgroup, args.exclude_cgroup);
        config.scope = Scope { select, selectors: Vec::new(), exclude };
        args.selection.add_to(&mut config.scope);
        let intercepts = !config.scope.is_empty();
        if !intercepts && args.listen.is_empty() {
            return Err(ConfigError::NothingToDo);
        }
        if !intercepts && !config.scope.exclude.is_empty() {
            return Err(ConfigError::ExcludeFromNothing);
        }
        config.places = args.selection.places()?;
        if args.fail == Fail::Closed {
            if !intercepts {
                return Err(ConfigError::ClosedWithoutScope);
            }
            if config.guard != Some(GuardMode::On) {
                return Err(ConfigError::ClosedWithoutGuard);
            }
            config.fail = FailMode::Closed;
        }
        config.telling = Telling {
            control: args.control,
            admin: args.admin,
            query_log: args.query_log,
            query_log_max_size: args.query_log_max_size,
            dnstap: args.dnstap,
        };
        config.plain.listen = args.listen;
        if !config.plain.listen.is_empty() && !config.plain.udp && !config.plain.tcp {
            return Err(ConfigError::NothingToListen);
        }
        config.go_round()?;
        if !args.allow_from.is_empty() {
            if config.plain.listen.is_empty() {
                return Err(ConfigError::AllowToNothing);
            }
            config.plain.allow_from = args.allow_from.into();
        }
        Ok(config)
    }

    /// The configuration of `exec`, whose scope is made later.
    ///
    /// # Errors
    /// What no single value shows is wrong.
    pub fn exec(args: SharedArgs) -> Result<Self, ConfigError> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        if let Some(dir) = &args.cgroup_root {
            mounts::check_cgroup2(dir)?;
        }
        let limits = Limits {
            min_ttl: args.cache_min_ttl,
            max_ttl: args.cache_max_ttl,
            max_stale: args.serve_stale,
        };
        if limits.min_ttl > limits.max_ttl {
            return Err(ConfigError::CacheTtl);
        }
        let (udp, tcp) = go::transports()?;
        Ok(Self {
            policy: Policy::new(args.policy)?,
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
            places: Places::default(),
            plain: Plain { listen: Vec::new(), allow_from: default_allow_from(), udp, tcp },
            telling: Telling {
                control: Place::Off,
                admin: admin::Place::Off,
                query_log: None,
                query_log_max_size: None,
                dnstap: None,
            },
        })
    }
}

impl Config {
    /// Refuses what can be seen to lead back to us.
    fn go_round(&self) -> Result<(), ConfigError> {
        let routed = self.policy.routes.iter();
        let routed = routed.filter_map(|route| Some(("--route to", route.target.address()?)));
        let of_routes = self.policy.routes.iter().filter_map(|route| route.target.upstream());
        let over_tls = self.policy.upstreams.iter().cloned().chain(of_routes);
        let over_tls = over_tls.map(|upstream| ("--upstream", upstream.socket_addr()));
        for (what, addr) in routed.chain(over_tls) {
            let listener = self.plain.listen.iter().find(|own| circles::is_ours(**own, addr));
            let listener = match listener {
                Some(own) => format!("--listen {own} is there"),
                None if is_token(addr) => {
                    "such addresses stand for the nameservers that are intercepted".to_owned()
                }
                None => continue,
            };
            return Err(ConfigError::Circular { what, addr, listener });
        }
        Ok(())
    }
}

/// Whether a token may be at an address, with a listener of ours.
fn is_token(addr: SocketAddr) -> bool {
    let token = match addr.ip() {
        IpAddr::V4(v4) => Token::from_v4(v4.octets()),
        IpAddr::V6(v6) => Token::from_v6(v6.octets()),
    };
    token.is_some() && sockets::PORTS.contains(&addr.port())
}

impl Policy {
    fn new(args: PolicyArgs) -> Result<Self, ConfigError> {
        Routes::new(&args.route, false, &ResolvConf::default())?;
        let upstreams =
            if args.upstream.is_empty() { vec![go::upstream()?] } else { args.upstream };
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
            timeout: args.upstream_timeout,
            tls: Arc::new(Tls::new(trust)?),
            strip_subnets: args.strip_ecs,
            routes: args.route,
            default_routes: !args.no_default_routes,
        })
    }
}

fn default_allow_from() -> Arc<[IpNet]> {
    DEFAULT_ALLOW_FROM.iter().map(|net| net.parse().expect("a network in the source")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr;

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
