//! The command line; its doc comments are `--help`. Every flag has an environment twin, and is a key
//! of the configuration file ([`layers`]): what is said here of a value holds wherever it is said.
//!
//! The only owner of clap.

pub mod file;
mod keys;
pub mod layers;
mod selection;
mod value;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, builder::BoolishValueParser};
use clap_complete::Shell;
use ipnet::IpNet;
pub use selection::{PresetName, SelectionArgs};
use value::{
    cache_max_ttl, cache_min_ttl, cache_size, duration, listen_addr, log_size, network, qtype,
    rcode, serve_stale, upstream_timeout,
};

use crate::{
    addr::UpstreamAddr,
    admin,
    control::pattern::CgroupPattern,
    control_socket::{DEFAULT_PATH, Place},
    observe::dnstap,
    pin::Pin,
    route::Route,
};

/// Encrypts a container host's DNS without touching a resolv.conf.
///
/// eBPF programs redirect the port-53 traffic of selected cgroups to a local proxy, which forwards
/// it over DNS-over-TLS and answers as if the original nameserver had.
#[derive(Debug, Parser)]
#[command(name = "dns-proxy", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the daemon: intercepts the selected cgroups, serves plain listeners, or both.
    Run(Box<RunArgs>),
    /// Runs one command with its DNS encrypted, in a cgroup of its own.
    ///
    /// Exits with the command's status. What the command leaves running is ended with it, since
    /// nothing would encrypt its DNS any more.
    Exec(Box<ExecArgs>),
    /// Says how the running daemon is: what it intercepts, its upstreams, its counters.
    Status(StatusArgs),
    /// Shows queries as they are answered.
    Watch(WatchArgs),
    /// Shows who asks how much, what for, and through whom, on a screen that keeps up.
    Top(TopArgs),
    /// Gives evidence that nothing left in plaintext that was not to; exit code 1 if something did, or
    /// nobody can tell.
    ///
    /// What the daemon counts is held against the kernel's counters and against the packets that are seen
    /// on the interfaces of the network namespaces in scope. It takes two seconds more than it is for.
    Audit(AuditArgs),
    /// Asks the daemon of this host whether it is well; exits with 0 if so. For containers' health
    /// checks.
    Health {
        /// The daemon's admin address.
        #[arg(long, value_name = "ADDR:PORT", env = "DNS_PROXY_ADMIN")]
        #[arg(default_value = "127.0.0.1:9153")]
        admin: SocketAddr,
    },
    /// Prints a completion script for a shell.
    Completion {
        /// Which shell.
        shell: Shell,
    },
    /// Writes the manual pages, for packages.
    #[command(hide = true)]
    Man {
        /// An existing directory.
        dir: PathBuf,
    },
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Cgroups to intercept, as a path below the cgroup v2 root; `*` matches within one level, and
    /// everything below a match is in. Examples: `/`, `system.slice/nginx.service`,
    /// `system.slice/docker-*.scope`, `kubepods.slice`. Repeatable.
    #[arg(long, value_name = "PATTERN", env = "DNS_PROXY_CGROUP", value_delimiter = ',')]
    #[arg(help_heading = "Interception")]
    pub cgroup: Vec<CgroupPattern>,

    /// Cgroups to leave alone, with everything below them; wins over --cgroup. Repeatable.
    #[arg(long, value_name = "PATTERN", env = "DNS_PROXY_EXCLUDE_CGROUP", value_delimiter = ',')]
    #[arg(help_heading = "Interception")]
    pub exclude_cgroup: Vec<CgroupPattern>,

    /// What becomes of the scope's DNS when the daemon crashes or hangs: with `open` it goes on as if
    /// we were not there; with `closed` it is refused until the daemon is started again, or what it
    /// pinned in the bpf file system is removed. To stop the daemon opens in either case.
    #[arg(long, value_name = "MODE", env = "DNS_PROXY_FAIL", default_value = "open")]
    #[arg(help_heading = "Interception")]
    pub fail: Fail,

    /// Also serve plain UDP and TCP here, for clients that are pointed at us. Repeatable.
    #[arg(long, value_name = "ADDR:PORT", env = "DNS_PROXY_LISTEN", value_delimiter = ',')]
    #[arg(value_parser = listen_addr, help_heading = "Plain listeners")]
    pub listen: Vec<SocketAddr>,

    /// Networks whose clients may use --listen [default: loopback, private and link-local ones].
    #[arg(long, value_name = "CIDR", env = "DNS_PROXY_ALLOW_FROM", value_delimiter = ',')]
    #[arg(value_parser = network, help_heading = "Plain listeners")]
    pub allow_from: Vec<IpNet>,

    /// Where `status` and its kin find the daemon: a socket for root alone. `off` is none.
    #[arg(long, value_name = "PATH", env = "DNS_PROXY_CONTROL", default_value = DEFAULT_PATH)]
    pub control: Place,

    /// Write every query to this file, as a line of JSON: who asked whom for what, what became of it.
    /// SIGHUP opens it anew. Without this no name is in any log.
    #[arg(long, value_name = "FILE", env = "DNS_PROXY_QUERY_LOG", help_heading = "Query log")]
    pub query_log: Option<PathBuf>,

    /// Once the query log has so many octets, such as 100MiB, it is renamed to FILE.1 and begun anew
    /// [default: never].
    #[arg(long, value_name = "BYTES", env = "DNS_PROXY_QUERY_LOG_MAX_SIZE")]
    #[arg(value_parser = log_size, help_heading = "Query log")]
    pub query_log_max_size: Option<u64>,

    /// Write every query and answer as dnstap: `unix:PATH` of a socket on which somebody listens, or
    /// `file:PATH`.
    #[arg(long, value_name = "TARGET", env = "DNS_PROXY_DNSTAP", help_heading = "Query log")]
    pub dnstap: Option<dnstap::Target>,

    /// Where to answer HTTP for probes, scrapers and people: /healthz (the daemon is alive), /readyz
    /// (queries are answered), /metrics (Prometheus). `off` is nowhere. Whoever may connect may read.
    #[arg(long, value_name = "ADDR:PORT|off", env = "DNS_PROXY_ADMIN")]
    #[arg(default_value = "127.0.0.1:9153", help_heading = "Observation")]
    pub admin: admin::Place,

    /// Who is in the scope by what he is.
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Options that `exec` has too.
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// Options of those who ask the daemon something.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", env = "DNS_PROXY_CONTROL", default_value = DEFAULT_PATH)]
    pub control: PathBuf,

    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Options that others have too.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Options of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", env = "DNS_PROXY_CONTROL", default_value = DEFAULT_PATH)]
    pub control: PathBuf,
}

/// Options of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Options that others have too.
    #[command(flatten)]
    pub control: ControlArgs,

    /// How long to look.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub length: Duration,
}

/// Options of `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Options that others have too.
    #[command(flatten)]
    pub control: ControlArgs,

    /// Only of this container, pod, unit or cgroup: its name, the beginning of its id, or a path.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,

    /// Only this name and those below it.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Only those answered so, such as NXDOMAIN.
    #[arg(long, value_name = "RCODE", value_parser = rcode)]
    pub rcode: Option<u8>,

    /// Only those of this type, such as AAAA.
    #[arg(long = "type", value_name = "TYPE", value_parser = qtype)]
    pub qtype: Option<u16>,

    /// Only those that took so long at least, such as 100ms.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub slow: Option<Duration>,

    /// Only those that went out in plaintext.
    #[arg(long)]
    pub plaintext: bool,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Options that `run` has too.
    #[command(flatten)]
    pub shared: SharedArgs,

    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of both.
#[derive(Debug, Args)]
pub struct SharedArgs {
    /// A TOML file with any of these options, named as here with `_` for `-`; then whatever
    /// FILE.d/*.toml say, in the order of their names. What a flag or the environment says wins.
    #[arg(long, value_name = "FILE", env = "DNS_PROXY_CONFIG")]
    pub config: Option<PathBuf>,

    /// Which way queries go.
    #[command(flatten)]
    pub policy: PolicyArgs,

    /// Memory for answers that need not be asked for again, such as 64MiB or 1GiB; 0 turns the cache
    /// off, and with it all below.
    #[arg(long, value_name = "BYTES", env = "DNS_PROXY_CACHE_SIZE", default_value = "64MiB")]
    #[arg(value_parser = cache_size, help_heading = "Cache")]
    pub cache_size: usize,

    /// Answers are kept so long at least, even if they say less.
    #[arg(long, value_name = "DURATION", env = "DNS_PROXY_CACHE_MIN_TTL", default_value = "0")]
    #[arg(value_parser = cache_min_ttl, help_heading = "Cache")]
    pub cache_min_ttl: Duration,

    /// Answers are kept so long at most, even if they say more.
    #[arg(long, value_name = "DURATION", env = "DNS_PROXY_CACHE_MAX_TTL", default_value = "1d")]
    #[arg(value_parser = cache_max_ttl, help_heading = "Cache")]
    pub cache_max_ttl: Duration,

    /// How long after its time an answer may still be given if no upstream gives a new one; 0 is
    /// never.
    #[arg(long, value_name = "DURATION", env = "DNS_PROXY_SERVE_STALE", default_value = "1d")]
    #[arg(value_parser = serve_stale, help_heading = "Cache")]
    pub serve_stale: Duration,

    /// What becomes of port-53 traffic of the scope that the redirection could not catch, such as
    /// that of sockets connected before: `on` refuses it, and breaks such connections so that their
    /// owners connect anew; `count` only counts; `off` does not look.
    #[arg(long, value_name = "MODE", env = "DNS_PROXY_GUARD", default_value = "on")]
    pub guard: Guard,

    /// Where cgroup v2 is mounted [default: found in /proc/self/mounts].
    #[arg(long, value_name = "DIR", env = "DNS_PROXY_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,

    /// Threads on the query path [default: one for each core].
    #[arg(long, value_name = "N", env = "DNS_PROXY_WORKERS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// error, warn, info, debug or trace; with trace the kernel programs log too.
    #[arg(long, value_name = "LEVEL", env = "DNS_PROXY_LOG")]
    pub log: Option<tracing::Level>,
}

/// Which way queries go, and whom to trust.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// A DNS-over-TLS server, in order of preference: `1.1.1.1`, `1.1.1.1#cloudflare-dns.com`,
    /// `[2620:fe::fe]:853#dns.quad9.net`. Its certificate must hold NAME, or without one the
    /// address. Repeatable [default: 1.1.1.1].
    #[arg(long, value_name = "ADDR[:PORT][#NAME]", env = "DNS_PROXY_UPSTREAM")]
    #[arg(value_delimiter = ',', help_heading = "Upstream")]
    pub upstream: Vec<UpstreamAddr>,

    /// The whole time that a query may take upstream, such as 2s or 1500ms.
    #[arg(long, value_name = "DURATION", env = "DNS_PROXY_UPSTREAM_TIMEOUT")]
    #[arg(default_value = "2s", value_parser = upstream_timeout, allow_hyphen_values = true)]
    #[arg(help_heading = "Upstream")]
    pub upstream_timeout: Duration,

    /// A PEM file with further root certificates to trust. Repeatable.
    #[arg(long, value_name = "FILE", env = "DNS_PROXY_CA", value_delimiter = ',')]
    #[arg(help_heading = "Upstream")]
    pub ca: Vec<PathBuf>,

    /// Trust only the certificates of --ca, not the system's.
    #[arg(long, env = "DNS_PROXY_NO_SYSTEM_ROOTS", value_parser = BoolishValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Upstream")]
    pub no_system_roots: bool,

    /// The SHA-256 fingerprint of a key that an upstream may have: its own, or that of an authority
    /// in its chain. For an upstream without #NAME it stands for the roots; of one with it both must
    /// be right. Repeatable: any of several pins of one upstream will do.
    #[arg(long, value_name = "ADDR[:PORT]=sha256/BASE64", env = "DNS_PROXY_PIN")]
    #[arg(value_delimiter = ',', help_heading = "Upstream")]
    pub pin: Vec<Pin>,

    /// What becomes of an upstream that cannot be authenticated (RFC 8310): `strict` asks it nothing;
    /// `opportunistic` uses it all the same, encrypted, and says so. Neither falls back to plaintext.
    #[arg(long, value_name = "PROFILE", env = "DNS_PROXY_PROFILE", default_value = "strict")]
    #[arg(help_heading = "Upstream")]
    pub profile: Profile,

    /// The oldest version of TLS that is spoken.
    #[arg(long, value_name = "VERSION", env = "DNS_PROXY_TLS_MIN", default_value = "1.2")]
    #[arg(help_heading = "Upstream")]
    pub tls_min: TlsMin,

    /// Do not pass on what clients say of their subnet (EDNS Client Subnet, RFC 7871). We never add any
    /// ourselves.
    #[arg(long, env = "DNS_PROXY_STRIP_ECS", value_parser = BoolishValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Upstream")]
    pub strip_ecs: bool,

    /// Where the names of a zone go instead, the longest zone of a name being the one that counts:
    /// `original` (the nameserver that was asked, in plaintext), `ADDR[:PORT]` (this one, in
    /// plaintext, from the host's network), `tls://ADDR[:PORT][#NAME]`, `refuse` or `nxdomain`.
    /// Several addresses, or several tls:// upstreams, of one zone are tried in order. Repeatable.
    #[arg(long, value_name = "ZONE=TARGET", env = "DNS_PROXY_ROUTE", value_delimiter = ',')]
    #[arg(help_heading = "Routes")]
    pub route: Vec<Route>,

    /// Drop the built-in routes: names of internal networks (such as internal, cluster.local, lan,
    /// corp, docker), single-label names, the host's search domains and the reverse zones of private
    /// addresses go to the nameserver that was asked if that is itself private or a neighbour.
    #[arg(long, env = "DNS_PROXY_NO_DEFAULT_ROUTES", value_parser = BoolishValueParser::new())]
    #[arg(action = ArgAction::SetTrue, help_heading = "Routes")]
    pub no_default_routes: bool,
}

/// `--guard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guard {
    /// Refuse and count.
    On,
    /// Do not look.
    Off,
    /// Count only.
    Count,
}

/// `--fail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fail {
    /// As if we were not there.
    Open,
    /// Refuse.
    Closed,
}

/// `--profile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Authenticate or fail.
    Strict,
    /// Encrypt at least.
    Opportunistic,
}

/// `--tls-min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsMin {
    /// TLS 1.2.
    #[value(name = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[value(name = "1.3")]
    V1_3,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
