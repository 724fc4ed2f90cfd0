//! A client that makes exactly the sockets it is told to, and prints what they show of the other
//! end: the shapes that real resolvers use, one at a time.
//!
//! Prints `key=value` lines; exits with 0 if the answer is right and comes from whom it should.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

mod bound;
mod connections;
mod forged;
mod many;
mod messages;
mod raw;
mod ring;
mod shapes;
mod sources;
mod steady;
mod streams;

use anyhow::{Context, Result, bail};
use ring::Who;
use shapes::{Ask, server};
use std::env::args;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use streams::Opening;

const USAGE: &str = "usage: dns-proxy-probe [--timeout SECONDS] COMMAND
  udp-connected SERVER NAME           connect, send, receive
  udp-unconnected NAME SERVER...      one socket asks all servers, as musl does
  tcp SERVER NAME                     a query over TCP
  peer-names SERVER...                what getpeername says on all of these, without a query
  bound-connected SERVER NAME DEVICE    UDP bound to a device (SO_BINDTODEVICE), connected
  bound-unconnected SERVER NAME DEVICE  the same, unconnected
  bound-tcp SERVER NAME DEVICE          TCP, the same
  unicast-if SERVER NAME DEVICE         IP_UNICAST_IF, unconnected
  pktinfo SERVER NAME DEVICE            IP_PKTINFO with an interface, unconnected
  marked SERVER NAME MARK               UDP with SO_MARK, connected
  borrowed SERVER NAME SOURCE           UDP bound to an address that may be somebody else's
  forged SERVER NAME SOURCE             a datagram made by hand; exits with 0 once it is sent
  hold SERVER COUNT                     connects over TCP as often as it can, waits for stdin to end
  from SOURCE SHAPE NAME SERVER       from an address: udp-connected, udp-unconnected, tcp,
                                      pktinfo, pktinfo-connected
  steps NAME STEP...                  one UDP socket connects and asks again and again:
                                      SERVER, ADDRESS:PORT (only connects), dissolve
  raw SOURCE KIND NAME SERVER         a packet of one's own: udp, udp-connected, header, fragment,
                                      options, hop-by-hop, authentication, all, many
  early-udp SERVER NAME               connects, waits for a line on stdin, then asks
  early-tcp SERVER NAME               the same over TCP
  error-queue SERVER NAME             the same over UDP, and what the error queue then says
  tokens N                            asks N different servers in 198.18.0.0/15, without waiting
  recurse N NAME                      asks as many, one after another, again where refused; an old
                                      connection over UDP and one over TCP must last throughout
  many N CONCURRENCY SERVER SUFFIX    N names below SUFFIX, each answer checked
  steady SECONDS RATE SERVER SUFFIX   RATE names below SUFFIX a second, each on its own socket
  flood SECONDS KIND SERVER SUFFIX    names, garbage, giant, slowloris or unread, as hard as it can
  SHAPE NAME SERVER...                where SHAPE is one of: ";

/// Asks in one way; whether all was right.
type Shape = fn(&Ask<'_>) -> Result<bool>;

/// Shapes that need no more than a name and servers.
const SHAPES: [(&str, Shape); 23] = [
    ("sendmsg", messages::one_by_one),
    ("sendmmsg", messages::all_at_once),
    ("uring-connect", |ask| ring::connected(ask, Who::Caller)),
    ("uring-connect-worker", |ask| ring::connected(ask, Who::Worker)),
    ("uring-connect-poller", |ask| ring::connected(ask, Who::Poller)),
    ("uring-tcp", |ask| ring::tcp(ask, Who::Caller)),
    ("uring-tcp-worker", |ask| ring::tcp(ask, Who::Worker)),
    ("uring-tcp-poller", |ask| ring::tcp(ask, Who::Poller)),
    ("uring-sendmsg", |ask| ring::messages(ask, Who::Caller, false)),
    ("uring-sendmsg-worker", |ask| ring::messages(ask, Who::Worker, false)),
    ("uring-sendmsg-poller", |ask| ring::messages(ask, Who::Poller, false)),
    ("uring-sendmsg-zc", |ask| ring::messages(ask, Who::Caller, true)),
    ("uring-sendmsg-zc-worker", |ask| ring::messages(ask, Who::Worker, true)),
    ("uring-sendmsg-zc-poller", |ask| ring::messages(ask, Who::Poller, true)),
    ("fast-open-sendto", |ask| streams::fast_open(ask, Opening::SendTo)),
    ("fast-open-sendmsg", |ask| streams::fast_open(ask, Opening::SendMsg)),
    ("fast-open-connect", |ask| streams::fast_open(ask, Opening::Connect)),
    ("mptcp", streams::multipath),
    ("shared-port", connections::shared_port),
    ("elsewhere", connections::elsewhere),
    ("only-v6", connections::only_v6),
    ("udplite-connected", |ask| raw::lite(ask, true)),
    ("udplite-unconnected", |ask| raw::lite(ask, false)),
];

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
        ["udp-connected", at, name] => shapes::udp_connected(server(at)?, name, limit),
        ["udp-unconnected", name, ref servers @ ..] => {
            shapes::udp_unconnected(&all(servers)?, name, limit)
        }
        ["tcp", at, name] => shapes::tcp(server(at)?, name, limit),
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
        ["forged", at, name, source] => forged::raw(server(at)?, name, source.parse()?),
        ["hold", at, count] => many::hold(server(at)?, count.parse()?, limit),
        ["from", source, shape, name, at] => {
            let (source, servers) = (source.parse()?, [server(at)?]);
            let ask = Ask { name, servers: &servers, limit };
            match shape {
                "udp-connected" => sources::connected(&ask, source),
                "udp-unconnected" => sources::unconnected(&ask, source),
                "tcp" => sources::tcp(&ask, source),
                "pktinfo" => sources::packet_info(&ask, source, false),
                "pktinfo-connected" => sources::packet_info(&ask, source, true),
                _ => bail!("{shape}: no such shape"),
            }
        }
        ["steps", name, ref steps @ ..] => connections::steps(name, steps, limit),
        ["raw", source, kind, name, at] => {
            let servers = [server(at)?];
            raw::send(&Ask { name, servers: &servers, limit }, kind, source.parse()?)
        }
        ["error-queue", at, name] => shapes::error_queue(server(at)?, name, limit),
        ["early-udp", at, name] => shapes::early_udp(server(at)?, name, limit),
        ["early-tcp", at, name] => shapes::early_tcp(server(at)?, name, limit),
        ["tokens", count] => many::servers(count.parse()?),
        ["recurse", count, name] => many::recurse(count.parse()?, name, limit),
        ["many", count, concurrency, at, suffix] => {
            many::run(count.parse()?, concurrency.parse()?, server(at)?, suffix, limit)
        }
        ["steady", seconds, rate, at, suffix] => {
            steady::run(steady::number(seconds)?, steady::number(rate)?, server(at)?, suffix, limit)
        }
        ["flood", seconds, kind, at, suffix] => {
            steady::flood(steady::number(seconds)?, kind, server(at)?, suffix)
        }
        [shape, name, ref servers @ ..] => {
            let known = SHAPES.iter().find(|(known, _)| *known == shape);
            let (_, ask) = known.with_context(usage)?;
            ask(&Ask { name, servers: &all(servers)?, limit })
        }
        [] | [_] => bail!(usage()),
    }
}

fn usage() -> String {
    let shapes: Vec<_> = SHAPES.iter().map(|(name, _)| *name).collect();
    let servers = "SERVER is ADDRESS, ADDRESS%INTERFACE or ADDRESS:PORT; the port is 53 otherwise.";
    format!("{USAGE}\n    {}\n{servers}", shapes.join("\n    "))
}

fn all(servers: &[&str]) -> Result<Vec<SocketAddr>> {
    servers.iter().map(|at| server(at)).collect()
}
