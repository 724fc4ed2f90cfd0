//! Who is measured: ours, and Debian's forwarders as a competent admin would set them up.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use dns_proxy_tests::{Netns, Pki, artifacts, process::Process};

/// The name in the upstreams' certificate.
pub(super) const NAME: &str = "dns.bench.example";
/// Where every one of them listens.
pub(super) const LISTEN: &str = "127.0.0.1:5300";
/// The core that they have to themselves.
const CORE: &str = "0";

/// A forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    DnsProxy,
    Unbound,
    Dnsdist,
    Stubby,
    KnotResolver,
}

impl Contender {
    pub(super) const ALL: [Self; 5] =
        [Self::DnsProxy, Self::Unbound, Self::Dnsdist, Self::Stubby, Self::KnotResolver];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::DnsProxy => "dns-proxy",
            Self::Unbound => "unbound",
            Self::Dnsdist => "dnsdist",
            Self::Stubby => "stubby",
            Self::KnotResolver => "knot-resolver",
        }
    }

    /// What it says of its version, in one line.
    pub(super) fn version(self) -> Result<String> {
        let mut command = match self {
            Self::DnsProxy => Command::new(artifacts::program("dns-proxy")?),
            Self::Unbound => Command::new("unbound"),
            Self::Dnsdist => Command::new("dnsdist"),
            Self::Stubby => Command::new("stubby"),
            Self::KnotResolver => Command::new("kresd"),
        };
        let flag = if matches!(self, Self::DnsProxy | Self::Dnsdist) { "--version" } else { "-V" };
        let output =
            command.arg(flag).output().with_context(|| format!("{}: run it", self.name()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().next().unwrap_or("unknown").trim().to_owned())
    }

    /// Starts it, pinned to its core, with one worker; what it says goes to a file in `dir`.
    pub(super) fn start(
        self,
        netns: &Netns,
        dir: &Path,
        pki: &Pki,
        upstreams: &[SocketAddr],
    ) -> Result<Process> {
        let ca = pki.ca_file();
        // stubby goes by the ending.
        let file = dir.join(format!("{}.yml", self.name()));
        let configuration = self.configuration(&ca, upstreams);
        fs::write(&file, configuration).context("write a configuration")?;
        // Whoever else is on this machine has to wait.
        let mut command = netns.command("chrt");
        command.args(["--rr", "1", "taskset", "-c", CORE]);
        match self {
            Self::DnsProxy => {
                command.arg(artifacts::program("dns-proxy")?);
                command.args(["run", "--workers", "1", "--listen", LISTEN, "--no-system-roots"]);
                command.arg("--ca").arg(&ca);
                for upstream in upstreams {
                    command.args(["--upstream", &format!("{upstream}#{NAME}")]);
                }
            }
            Self::Unbound => {
                command.args(["unbound", "-d", "-p", "-c"]).arg(&file);
            }
            Self::Dnsdist => {
                command.args(["dnsdist", "--supervised", "--disable-syslog", "-C"]).arg(&file);
            }
            Self::Stubby => {
                command.args(["stubby", "-C"]).arg(&file);
            }
            Self::KnotResolver => {
                command.args(["kresd", "-n", "-c"]).arg(&file).arg(dir);
            }
        }
        let log = File::create(dir.join(format!("{}.log", self.name())))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Process::spawn(command)
    }

    fn configuration(self, ca: &Path, upstreams: &[SocketAddr]) -> String {
        let ca = ca.display();
        let each = |line: &dyn Fn(&SocketAddr) -> String| -> String {
            upstreams.iter().map(line).collect()
        };
        match self {
            Self::DnsProxy => String::new(),
            Self::Unbound => {
                let forward =
                    each(&|a| format!("  forward-addr: {}@{}#{NAME}\n", a.ip(), a.port()));
                format!(
                    "server:\n  interface: 127.0.0.1@5300\n  num-threads: 1\n  username: \"\"\n  \
                     chroot: \"\"\n  do-daemonize: no\n  use-syslog: no\n  \
                     do-not-query-localhost: no\n  module-config: \"iterator\"\n  \
                     tls-cert-bundle: \"{ca}\"\n  outgoing-range: 8192\n  \
                     num-queries-per-thread: 4096\n  outgoing-num-tcp: 100\n  \
                     incoming-num-tcp: 100\n  so-rcvbuf: 4m\nremote-control:\n  \
                     control-enable: no\nforward-zone:\n  name: \".\"\n  \
                     forward-tls-upstream: yes\n{forward}"
                )
            }
            Self::Dnsdist => {
                let servers = each(&|a| {
                    format!(
                        "newServer({{address=\"{a}\", tls=\"openssl\", subjectName=\"{NAME}\", \
                         caStore=\"{ca}\", validateCertificates=true}})\n"
                    )
                });
                format!(
                    "setSecurityPollSuffix(\"\")\nsetLocal(\"{LISTEN}\")\n\
                     setServerPolicy(firstAvailable)\nsetMaxTCPClientThreads(1)\n{servers}"
                )
            }
            Self::Stubby => {
                let servers = each(&|a| {
                    format!(
                        "  - address_data: {}\n    tls_port: {}\n    tls_auth_name: \"{NAME}\"\n",
                        a.ip(),
                        a.port()
                    )
                });
                format!(
                    "resolution_type: GETDNS_RESOLUTION_STUB\ndns_transport_list:\n  - \
                     GETDNS_TRANSPORT_TLS\ntls_authentication: \
                     GETDNS_AUTHENTICATION_REQUIRED\ntls_query_padding_blocksize: 128\n\
                     idle_timeout: 10000\nround_robin_upstreams: 0\ntls_ca_file: \"{ca}\"\n\
                     listen_addresses:\n  - 127.0.0.1@5300\nupstream_recursive_servers:\n{servers}"
                )
            }
            Self::KnotResolver => {
                let servers = each(&|a| {
                    format!("{{'{}@{}', hostname='{NAME}', ca_file='{ca}'}}, ", a.ip(), a.port())
                });
                format!(
                    "net.listen('127.0.0.1', 5300, {{kind='dns'}})\nnet.tcp_pipeline(10000)\n\
                     trust_anchors.remove('.')\ncache.size = 100*MB\n\
                     policy.add(policy.all(policy.TLS_FORWARD({{ {servers} }})))\n"
                )
            }
        }
    }
}
