//! Every kind of resolver that Debian has, in a container that a test made: over an IPv4 and an
//! IPv6 nameserver it finds the encrypted answer, and cameras see nothing but TLS leave.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Container, Stage, Zone, artifacts,
    clients::{go_program, java_classes},
    process::output,
    world::NAMESERVERS,
};

/// What a program is asked for, and so what it must print.
#[derive(Clone, Copy)]
enum Wanted {
    /// The address of `example.test`.
    Address,
    /// All of the 3 kB at `big.example.test`.
    Large,
}
use Wanted::{Address, Large};

/// One test for each line: its name, what it is to find, and the shell command that asks.
macro_rules! clients {
    ($($name:ident $wanted:ident $command:literal)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            check($wanted, $command)
        }
    )*};
}

clients! {
    glibc_over_tcp              Address "RES_OPTIONS=use-vc getent ahosts example.test"
    glibc_with_edns             Address "RES_OPTIONS=edns0 getent ahosts example.test"
    glibc_by_nscd               Address "sh $CLIENTS/nscd.sh example.test"
    curl                        Address "curl -4sv --connect-timeout 2 example.test 2>&1 || true"
    python_getaddrinfo          Address "$PYTHON -c 'import socket; print(socket.getaddrinfo(\"example.test\", 80))'"
    dnspython                   Address "$PYTHON $CLIENTS/dnspython.py A example.test udp"
    dnspython_over_tcp          Address "$PYTHON $CLIENTS/dnspython.py A example.test tcp"
    dnspython_truncated         Large   "$PYTHON $CLIENTS/dnspython.py TXT big.example.test udp"
    dnspython_with_edns         Large   "$PYTHON $CLIENTS/dnspython.py TXT big.example.test udp 4096"
    c_ares                      Address "$PYTHON $CLIENTS/cares.py A example.test"
    c_ares_over_tcp             Address "$PYTHON $CLIENTS/cares.py A example.test usevc"
    c_ares_truncated            Large   "$PYTHON $CLIENTS/cares.py TXT big.example.test"
    node_lookup                 Address "node -e 'dns.lookup(\"example.test\", {all: true}, console.log)'"
    node_resolve4               Address "node -e 'dns.resolve4(\"example.test\", console.log)'"
    node_resolve_txt            Large   "node -e 'dns.resolveTxt(\"big.example.test\", console.log)'"
    go                          Address "GODEBUG=netdns=go $GO A example.test"
    go_truncated                Large   "GODEBUG=netdns=go $GO TXT big.example.test"
    go_over_tcp                 Large   "echo options use-vc >>/etc/resolv.conf; GODEBUG=netdns=go $GO TXT big.example.test"
    go_by_the_c_library         Address "GODEBUG=netdns=cgo $GO A example.test"
    java                        Address "java $JAVA Resolve inet example.test"
    java_naming                 Address "java $JAVA Resolve A example.test"
    java_naming_truncated       Large   "java $JAVA Resolve TXT big.example.test"
    perl                        Address "perl -MNet::DNS -e 'print Net::DNS::Resolver->new->query(\"example.test\")->string'"
    perl_over_tcp               Address "perl -MNet::DNS -e 'print Net::DNS::Resolver->new(usevc => 1)->query(\"example.test\")->string'"
    perl_truncated              Large   "perl -MNet::DNS -e 'print Net::DNS::Resolver->new->query(\"big.example.test\", \"TXT\")->string'"
    ruby                        Address "ruby -rresolv -e 'puts Resolv::DNS.new.getaddress(\"example.test\")'"
    ruby_truncated              Large   "ruby -rresolv -e 'puts Resolv::DNS.new.getresource(\"big.example.test\", Resolv::DNS::Resource::IN::TXT).strings'"
    php                         Address "php -r 'echo gethostbyname(\"example.test\");'"
    php_dns_get_record          Address "php -r 'echo json_encode(dns_get_record(\"example.test\", DNS_A));'"
    php_truncated               Large   "php -r 'echo json_encode(dns_get_record(\"big.example.test\", DNS_TXT));'"
    host                        Address "host -t A example.test"
    host_over_tcp               Address "host -T -t A example.test"
    host_truncated              Large   "host -t TXT big.example.test"
    drill                       Address "drill example.test"
    drill_over_tcp              Address "drill -t example.test"
    drill_with_edns             Large   "drill -b 4096 big.example.test TXT"
    drill_truncated             Large   "drill -a big.example.test TXT"
    kdig_over_tcp               Address "kdig +tcp example.test"
    kdig_with_edns              Large   "kdig +bufsize=4096 +ignore big.example.test TXT"
    kdig_truncated              Large   "kdig big.example.test TXT"
    unbound_host                Address "$UNBOUND_HOST -t A example.test"
    unbound_host_truncated      Large   "$UNBOUND_HOST -t TXT big.example.test"
    busybox                     Address "busybox nslookup example.test"
    dnsmasq                     Address "$FORWARDER example.test A $DNSMASQ"
    dnsmasq_truncated           Large   "$FORWARDER big.example.test TXT $DNSMASQ"
    systemd_resolved            Address "sh $CLIENTS/resolved.sh example.test A"
    systemd_resolved_truncated  Large   "sh $CLIENTS/resolved.sh big.example.test TXT"
    unbound                     Address "$FORWARDER example.test A sh $CLIENTS/unbound.sh"
    unbound_over_tcp            Address "$FORWARDER example.test A sh $CLIENTS/unbound.sh 'tcp-upstream: yes'"
    unbound_truncated           Large   "$FORWARDER big.example.test TXT sh $CLIENTS/unbound.sh"
    unbound_with_edns           Large   "$FORWARDER big.example.test TXT sh $CLIENTS/unbound.sh 'edns-buffer-size: 4096' 'tcp-upstream: no'"
}

/// What the commands may say.
const SHORTHAND: &str = "
    PYTHON=/usr/bin/python3 # Debian's, which has Debian's modules, whatever comes first in PATH
    UNBOUND_HOST=\"unbound-host -C $CLIENTS/unbound-host.conf -r\"
    FORWARDER=\"sh $CLIENTS/forwarder.sh\"
    DNSMASQ='dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --user=root --port=5399'
    JAVA=\"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp $CLASSES\"
";

/// The scripts that are too long for the table.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients");

/// Seconds that a program may take, on a busy machine too.
const LIMIT: &str = "60";

fn check(wanted: Wanted, command: &str) -> Result<()> {
    let stage = Stage::new()?;
    let container = |name: &str, server: IpAddr| {
        stage.world.container_with(name, &format!("nameserver {server}\n"))
    };
    let containers = [container("v4", NAMESERVERS[0])?, container("v6", NAMESERVERS[4])?];
    let _daemon = stage.daemon(&containers.each_ref())?;

    for container in &containers {
        let witness = stage.witness(container)?;
        let server = container.cgroup().path()?;
        let printed = ask(container, command).with_context(|| server.clone())?;
        let found = wanted.strings();
        let missing = found.iter().find(|string| !printed.contains(string.as_str()));
        ensure!(missing.is_none(), "{server}: no {missing:?} in what it printed:\n{printed}");
        witness.saw_only_tls().context(server)?;
    }
    ensure!(stage.nameserver.queries().is_empty(), "the plaintext nameserver was asked");
    Ok(())
}

fn ask(container: &Container, command: &str) -> Result<String> {
    let mut shell = container.command("timeout")?;
    shell.args([LIMIT, "sh", "-c", &format!("{SHORTHAND}\n{command}")]).env("CLIENTS", SCRIPTS);
    // Only those who need a compiler wait for it.
    if command.contains("$GO") {
        shell.env("GO", go_program()?);
    }
    if command.contains("resolved.sh") {
        shell.env("RESOLVED", artifacts::tool("systemd-resolved", "lib/systemd/systemd-resolved")?);
    }
    if command.contains("$JAVA") {
        shell.env("CLASSES", java_classes()?);
    }
    output(&mut shell).context("if a program is missing: cargo xtask setup")
}

impl Wanted {
    /// What shows that all of it arrived, and over which road.
    fn strings(self) -> Vec<String> {
        match self {
            Address => vec![Zone::Encrypted.a().to_string()],
            Large => (0..12).map(|n| format!("{n:02} xxxxxxxx")).collect(),
        }
    }
}
