//! The proof: every packet that passed an interface, in both directions.
//!
//! The kernel taps a packet before the call that sent it returns, and on the way in before anybody
//! can read it. So whatever a test has seen happen is in the capture, without waiting.

use crate::netns::Netns;
use crate::packet::Packet;
use crate::sockopt;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, setsockopt, socket};
use std::os::fd::{AsRawFd, OwnedFd};

/// Room in the kernel for about a hundred thousand small packets between two looks.
const BUFFER_BYTES: usize = 128 << 20;
/// Stands for every interface, and is none's name.
const EVERYWHERE: &str = "";
/// The longest packet there is, and its Ethernet header.
const FRAME_BYTES: usize = 65_536 + 64;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    interface: String,
    packets: Vec<Packet>,
    keeps: fn(&Packet) -> bool,
}

impl Capture {
    /// Starts to capture on the interface; what passes after this returns is not missed.
    pub fn on(netns: &Netns, interface: &str) -> Result<Self> {
        Self::with_buffer(netns, interface, BUFFER_BYTES)
    }

    /// Starts to capture on every interface of the namespace, also those that are still to come.
    pub fn everywhere(netns: &Netns) -> Result<Self> {
        Self::with_buffer(netns, EVERYWHERE, BUFFER_BYTES)
    }

    /// The same with another amount of room in the kernel.
    pub fn with_buffer(netns: &Netns, interface: &str, bytes: usize) -> Result<Self> {
        let socket = netns
            .run(|| open(interface, bytes))?
            .with_context(|| format!("capture on {interface}"))?;
        let interface = interface.to_owned();
        let packets = Vec::new();
        Ok(Self { socket, interface, packets, keeps: |_| true })
    }

    /// Forgets all other packets as soon as they have been looked at.
    pub fn only(self, keeps: fn(&Packet) -> bool) -> Self {
        Self { keeps, ..self }
    }

    /// What has passed so far.
    pub fn packets(&mut self) -> Result<&[Packet]> {
        let mut frame = vec![0; FRAME_BYTES];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let packet = Packet::parse(&frame[..length]);
                    self.packets.extend(packet.filter(self.keeps));
                }
                Err(Errno::EAGAIN) => break,
                // The interface went away; what passed before is still to be read.
                Err(Errno::ENETDOWN) => {}
                Err(error) => return Err(error).context("read a captured packet"),
            }
        }
        let lost = lost(&self.socket)?;
        ensure!(lost == 0, "the capture on {} lost {lost} packets", self.interface);
        Ok(&self.packets)
    }

    /// Ends the capture and gives what passed.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        self.packets()?;
        Ok(self.packets)
    }
}

fn open(interface: &str, buffer: usize) -> Result<OwnedFd> {
    let index = match interface {
        EVERYWHERE => 0,
        name => if_nametoindex(name).with_context(|| format!("no interface {name}"))?,
    };
    // Protocol 0: nothing arrives before the socket is bound to its interface.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, RcvBufForce, &buffer).context("SO_RCVBUFFORCE")?;
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: u16::try_from(libc::ETH_P_ALL)?.to_be(),
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of_val(&address))?;
    // SAFETY: bind(2) reads `length` bytes, which is the size of `address`.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(bound).context("bind a packet socket")?;
    Ok(socket)
}

/// How many packets the kernel had no room for since the last look.
fn lost(socket: &OwnedFd) -> Result<u32> {
    // struct tpacket_stats: how many packets came, and how many of them were dropped.
    let stats: [u8; 8] = sockopt::get(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
    let [.., a, b, c, d] = stats;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}
