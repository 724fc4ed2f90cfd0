//! The load: one thread on one core that makes system calls and measures them.
//!
//! It is a process of its own, so that it can be moved between cgroups, and is told over a pipe
//! what to measure. Both ends of a round trip are this thread's, so that no wake-up of another one
//! is measured, which would be most of it and all of the noise.

use std::{
    io::{BufRead, BufReader, Write, stdin, stdout},
    net::{SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    process::{ChildStdin, ChildStdout, Stdio},
    str::FromStr,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use dns_proxy_tests::{Cgroup, Netns, process::Process};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
        SockaddrIn, connect, recvfrom, recvmsg, send, sendmsg, sendto, setsockopt, socket,
        sockopt::Ipv4PacketInfo,
    },
    unistd::Pid,
};

use crate::stats::Spread;

/// The argument that makes this program the load.
pub(crate) const COMMAND: &str = "load";

/// Where answers come from: the nameserver's own port, the listener's, and one of neither.
pub(crate) const PORTS: [u16; 3] = [53, LISTENER, OTHER];
/// The listener's port, as the daemon would choose it.
pub(crate) const LISTENER: u16 = 61_053;
/// A port that is nobody's business.
pub(crate) const OTHER: u16 = 9_953;

/// A measurement is the lower quartile of so many slices: what interrupts a slice only adds to it.
const SLICES: usize = 25;
/// Calls in a slice; what they send fits into a receive buffer.
const CALLS: usize = 128;
/// As long as a small query.
const MESSAGE: [u8; 32] = [0; 32];

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A new UDP socket, connected and closed.
    Connect,
    /// A datagram with an address, out of an unconnected socket.
    Sendto,
    /// A new connected socket, a datagram, an answer from this thread, and close.
    RoundTrip,
}

/// The load process, seen from the harness.
#[derive(Debug)]
pub(crate) struct Load {
    process: Process,
    orders: ChildStdin,
    results: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it in a network namespace, outside all test cgroups: its answering sockets belong
    /// where the daemon's would.
    pub(crate) fn start(netns: &Netns) -> Result<Self> {
        let mut command = netns.command(std::env::current_exe()?);
        command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command)?;
        let pipes = process.pipes();
        let orders = pipes.stdin.take().context("piped")?;
        let results = BufReader::new(pipes.stdout.take().context("piped")?);
        let mut load = Self { process, orders, results };
        load.result().context("start the load")?;
        Ok(load)
    }

    /// Moves it into a cgroup; the sockets that it makes from now on belong there.
    pub(crate) fn enter(&self, cgroup: &Cgroup) -> Result<()> {
        cgroup.add(self.process.pid())
    }

    /// Nanoseconds that one call takes, answered, if at all, on this port.
    pub(crate) fn measure(&mut self, call: Call, to: SocketAddrV4, answer: u16) -> Result<f64> {
        writeln!(self.orders, "{call:?} {to} {answer}")?;
        self.result().with_context(|| format!("measure {call:?} to {to}"))
    }

    fn result(&mut self) -> Result<f64> {
        let mut line = String::new();
        self.results.read_line(&mut line)?;
        line.trim().parse().context("the load failed; it says why above")
    }
}

impl FromStr for Call {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Connect, Self::Sendto, Self::RoundTrip];
        let found = all.into_iter().find(|call| format!("{call:?}") == text);
        found.with_context(|| format!("no call {text:?}"))
    }
}

/// What the load process does.
pub(crate) fn serve() -> Result<()> {
    pin()?;
    let responders =
        PORTS.into_iter().map(Responder::new).collect::<Result<Vec<_>>>().context("responders")?;
    let mut out = stdout();
    writeln!(out, "0")?;
    for order in stdin().lines() {
        let order = order?;
        let [call, to, answer] = order.split(' ').collect::<Vec<_>>()[..] else {
            bail!("order {order:?}");
        };
        let to: SocketAddrV4 = to.parse()?;
        let port: u16 = answer.parse()?;
        let responder = responders.iter().find(|responder| responder.port == port);
        let responder = responder.with_context(|| format!("nobody answers on {port}"))?;
        writeln!(out, "{}", measure(call.parse()?, SockaddrIn::from(to), responder)?)?;
    }
    Ok(())
}

/// To the last core that we may use: interrupts tend to go to the first.
fn pin() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let usable = (0..CpuSet::count()).rev().find(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(usable.context("no core is allowed")?)?;
    sched_setaffinity(this, &one).context("pin to one core")
}

fn measure(call: Call, to: SockaddrIn, responder: &Responder) -> Result<f64> {
    let mut slices = Vec::with_capacity(SLICES);
    // The first warms up caches, routes and, with nft, the flow.
    for slice in 0..=SLICES {
        let took = match call {
            Call::Connect => timed(|| connected(to).map(drop))?,
            Call::Sendto => {
                let socket = udp()?;
                let took = timed(|| {
                    sendto(socket.as_raw_fd(), &MESSAGE, &to, MsgFlags::empty())?;
                    Ok(())
                })?;
                responder.drain();
                took
            }
            Call::RoundTrip => timed(|| round_trip(to, responder))?,
        };
        if slice > 0 {
            slices.push(took);
        }
    }
    Ok(Spread::of(slices).low)
}

/// Nanoseconds for each of many calls.
fn timed(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..CALLS {
        call()?;
    }
    Ok(started.elapsed().as_nanos() as f64 / CALLS as f64)
}

fn round_trip(to: SockaddrIn, responder: &Responder) -> Result<()> {
    let socket = connected(to)?;
    send(socket.as_raw_fd(), &MESSAGE, MsgFlags::empty()).context("send")?;
    responder.answer()?;
    let mut buffer = [0; 64];
    // With the address, as resolvers do, which is what must be restored. An answer that is not there
    // by now has come from an address that this socket does not accept.
    let (length, from) =
        recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut buffer).context("receive the answer")?;
    ensure!(length == MESSAGE.len() && from == Some(to), "{length} bytes from {from:?}, not {to}");
    Ok(())
}

fn udp() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Inet, SockType::Datagram, flags, None)?)
}

fn connected(to: SockaddrIn) -> Result<OwnedFd> {
    let socket = udp()?;
    connect(socket.as_raw_fd(), &to)?;
    Ok(socket)
}

/// A socket that sends back what it gets, from the address it was sent to, as the daemon's
/// listeners must; the one for unredirected queries does the same, so that the cost is the same.
struct Responder {
    port: u16,
    socket: UdpSocket,
}

impl Responder {
    fn new(port: u16) -> Result<Self> {
        let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
        Ok(Self { port, socket })
    }

    fn answer(&self) -> Result<()> {
        let mut buffer = [0; 64];
        let mut into = [std::io::IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrIn>(fd, &mut into, Some(&mut control), MsgFlags::empty())
            .with_context(|| format!("nothing came to port {}", self.port))?;
        let (length, client) = (message.bytes, message.address.context("no sender")?);
        let Some(ControlMessageOwned::Ipv4PacketInfo(info)) = message.cmsgs()?.next() else {
            bail!("no packet info");
        };
        let from = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: info.ipi_spec_dst,
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let answer = [std::io::IoSlice::new(&buffer[..length])];
        let from = [ControlMessage::Ipv4PacketInfo(&from)];
        sendmsg(fd, &answer, &from, MsgFlags::empty(), Some(&client)).context("answer")?;
        Ok(())
    }

    fn drain(&self) {
        let mut buffer = [0; 64];
        // Until nothing is left. Where the responder was not the destination nothing ever came.
        while self.socket.recv(&mut buffer).is_ok() {}
    }
}
