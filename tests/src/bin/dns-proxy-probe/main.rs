//! A client that makes exactly the sockets it is told to, and prints what they show of the other
//! end: the shapes that real resolvers use, one at a time.
//!
//! Prints `key=value` lines; exits with 0 if the answer is right and comes from whom it should.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

mod bound;
mod forged;
mod many;
mod shapes;

use anyhow::{Context, Result, bail};
use shapes::Family;
use std::env::args;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: dns-proxy-probe [--timeout SECONDS] COMMAND
  udp-connected SERVER NAME           connect, send, receive
  udp-unconnected NAME SERVER...      one socket asks all servers, as musl does
  udp6-mapped SERVER NAME             the same two with an AF_INET6 socket
  udp6-mapped-unconnected NAME SERVER...    and an IPv4 server
  tcp SERVER NAME                     a query over TCP
  tcp6-mapped SERVER NAME             with an AF_INET6 socket and an IPv4 server
  peer-names SERVER...                what getpeername says on all of these, without a query
  bound-connected SERVER NAME DEVICE    UDP bound to a device (SO_BINDTODEVICE), connected
  bound-unconnected SERVER NAME DEVICE  the same, unconnected
  bound-tcp SERVER NAME DEVICE          TCP, the same
  unicast-if SERVER NAME DEVICE         IP_UNICAST_IF, unconnected
  pktinfo SERVER NAME DEVICE            IP_PKTINFO with an interface, unconnected
  marked SERVER NAME MARK               UDP with SO_MARK, connected
  borrowed SERVER NAME SOURCE           UDP bound to an address that may be somebody else's
  raw SERVER NAME SOURCE                a datagram made by hand; exits with 0 once it is sent
  hold SERVER COUNT                     connects over TCP as often as it can, waits for stdin to end
  early-udp SERVER NAME               connects, waits for a line on stdin, then asks
  early-tcp SERVER NAME               the same over TCP
  tokens N                            asks N different servers in 198.18.0.0/15, without waiting
  recurse N NAME                      asks as many, one after another, again where refused; an old
                                      connection over UDP and one over TCP must last throughout
  many N CONCURRENCY SERVER SUFFIX    N names below SUFFIX, each answer checked
SERVER is ADDRESS or ADDRESS:PORT; the port is 53 otherwise.";

fn main() -> ExitCode {
    let mut args: Vec<String> = args().skip(1).collect();
    match run(&mut args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            match error.downcast_ref::<io::Error>() {
                Some(io) => println!("error={:?}", io.kind()),
                None => println!("error=Other"),
            }
            eprintln!("dns-proxy-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was right.
fn run(args: &mut Vec<String>) -> Result<bool> {
    let mut limit = Duration::from_secs(5);
    if let [flag, seconds, ..] = args.as_slice()
        && flag == "--timeout"
    {
        limit = Duration::try_from_secs_f64(seconds.parse().context("--timeout")?)?;
        args.drain(..2);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["udp-connected", at, name] => shapes::udp_connected(Family::Own, server(at)?, name, limit),
        ["udp6-mapped", at, name] => {
            shapes::udp_connected(Family::Mapped, server(at)?, name, limit)
        }
        ["udp-unconnected", name, ref servers @ ..] => {
            shapes::udp_unconnected(Family::Own, &all(servers)?, name, limit)
        }
        ["udp6-mapped-unconnected", name, ref servers @ ..] => {
            shapes::udp_unconnected(Family::Mapped, &all(servers)?, name, limit)
        }
        ["tcp", at, name] => shapes::tcp(Family::Own, server(at)?, name, limit),
        ["tcp6-mapped", at, name] => shapes::tcp(Family::Mapped, server(at)?, name, limit),
        ["peer-names", ref servers @ ..] => shapes::peer_names(&all(servers)?, limit),
        ["bound-connected", at, name, device] => bound::connected(server(at)?, name, device, limit),
        ["bound-unconnected", at, name, device] => {
            bound::unconnected(bound::How::BindToDevice, server(at)?, name, device, limit)
        }
        ["bound-tcp", at, name, device] => bound::tcp(server(at)?, name, device, limit),
        ["unicast-if", at, name, device] => {
            bound::unconnected(bound::How::UnicastIf, server(at)?, name, device, limit)
        }
        ["pktinfo", at, name, device] => {
            bound::unconnected(bound::How::PacketInfo, server(at)?, name, device, limit)
        }
        ["marked", at, name, mark] => forged::marked(server(at)?, name, mark.parse()?, limit),
        ["borrowed", at, name, source] => {
            forged::borrowed(server(at)?, name, source.parse()?, limit)
        }
        ["raw", at, name, source] => forged::raw(server(at)?, name, source.parse()?),
        ["hold", at, count] => many::hold(server(at)?, count.parse()?, limit),
        ["early-udp", at, name] => shapes::early_udp(server(at)?, name, limit),
        ["early-tcp", at, name] => shapes::early_tcp(server(at)?, name, limit),
        ["tokens", count] => many::servers(count.parse()?),
        ["recurse", count, name] => many::recurse(count.parse()?, name, limit),
        ["many", count, concurrency, at, suffix] => {
            many::run(count.parse()?, concurrency.parse()?, server(at)?, suffix, limit)
        }
        _ => bail!("{USAGE}"),
    }
}

fn all(servers: &[&str]) -> Result<Vec<SocketAddr>> {
    servers.iter().map(|at| server(at)).collect()
}

fn server(text: &str) -> Result<SocketAddr> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    address.or_else(|_| text.parse()).with_context(|| format!("{text} is no server"))
}
