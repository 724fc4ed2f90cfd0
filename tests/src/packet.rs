//! What a captured frame says, as far as our tests ask: who, to whom, which ports, what payload.
//!
//! Every IP packet gives a [`Packet`], also one that is neither UDP nor TCP and one whose ports are
//! in an earlier fragment; those have the ports 0.

use crate::wire;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How much of a payload is kept.
const KEPT: usize = 512;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// UDP, and UDP-Lite, whose ports are in the same place.
    Udp,
    /// TCP.
    Tcp,
    /// Anything else, by its IANA number.
    Other(u8),
}

/// A captured IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it carries.
    pub protocol: Protocol,
    /// Where it comes from.
    pub src: SocketAddr,
    /// Where it goes.
    pub dst: SocketAddr,
    /// How long the transport's payload is.
    pub length: usize,
    /// The first 512 bytes of the payload.
    pub payload: Vec<u8>,
}

/// The packets to or from port 53.
pub fn port53(packets: &[Packet]) -> Vec<&Packet> {
    packets.iter().filter(|p| p.src.port() == 53 || p.dst.port() == 53).collect()
}

/// The packets to a port.
pub fn to_port(packets: &[Packet], port: u16) -> Vec<&Packet> {
    packets.iter().filter(|packet| packet.dst.port() == port).collect()
}

impl Packet {
    /// Reads an Ethernet frame; `None` if there is no IP packet in it.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let mut ether_type = be16(frame, 12)?;
        let mut rest = frame.get(14..)?;
        while ether_type == 0x8100 || ether_type == 0x88a8 {
            ether_type = be16(rest, 2)?;
            rest = rest.get(4..)?;
        }
        match ether_type {
            0x0800 => ipv4(rest),
            0x86dd => ipv6(rest),
            _ => None,
        }
    }
}

fn ipv4(packet: &[u8]) -> Option<Packet> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(be16(packet, 2)?);
    // Segmentation offload leaves 0 in what is too long for the field.
    let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
    let first_fragment = be16(packet, 6)? & 0x1fff == 0;
    let src = Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?);
    let dst = Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?);
    let body = packet.get(header..end)?;
    Some(transport(*packet.get(9)?, src.into(), dst.into(), body, first_fragment))
}

fn ipv6(packet: &[u8]) -> Option<Packet> {
    let src = Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?);
    let dst = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
    let total = usize::from(be16(packet, 4)?);
    let end = if total == 0 { packet.len() } else { (40 + total).min(packet.len()) };
    let mut next = *packet.get(6)?;
    let mut body = packet.get(40..end)?;
    let mut first_fragment = true;
    // RFC 8200 section 4: hop-by-hop, routing, fragment, authentication, destination options.
    while let (0 | 43 | 44 | 51 | 60, &[following, length, ..]) = (next, body) {
        let length = match next {
            44 => {
                first_fragment &= be16(body, 2)? & 0xfff8 == 0;
                8
            }
            51 => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        (next, body) = (following, body.get(length..)?);
        if !first_fragment {
            break;
        }
    }
    Some(transport(next, src.into(), dst.into(), body, first_fragment))
}

fn transport(number: u8, src: IpAddr, dst: IpAddr, body: &[u8], first_fragment: bool) -> Packet {
    let protocol = match number {
        6 => Protocol::Tcp,
        17 | 136 => Protocol::Udp,
        other => Protocol::Other(other),
    };
    let header = match protocol {
        _ if !first_fragment => 0,
        Protocol::Udp => 8,
        Protocol::Tcp => body.get(12).map_or(20, |offset| usize::from(offset >> 4) * 4),
        Protocol::Other(_) => 0,
    };
    let port = |at| {
        if header > 0 { be16(body, at).unwrap_or(0) } else { 0 }
    };
    let payload = body.get(header..).unwrap_or_default();
    Packet {
        protocol,
        src: SocketAddr::new(src, port(0)),
        dst: SocketAddr::new(dst, port(2)),
        length: payload.len(),
        payload: payload.get(..KEPT).unwrap_or(payload).to_vec(),
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} > {} {} bytes", self.protocol, self.src, self.dst, self.length)?;
        let message = match self.protocol {
            Protocol::Tcp => self.payload.get(2..),
            Protocol::Udp | Protocol::Other(_) => Some(self.payload.as_slice()),
        };
        match message.and_then(wire::Question::of) {
            Some(question) if port53(std::slice::from_ref(self)).len() == 1 => {
                write!(f, " {question}")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ether_type: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &ether_type.to_be_bytes(), packet].concat()
    }

    fn v4(protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&u16::try_from(20 + body.len()).expect("short").to_be_bytes());
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header[9] = protocol;
        header[12..20].copy_from_slice(&[10, 0, 0, 1, 8, 8, 8, 8]);
        [&header, body].concat()
    }

    fn v6(next: u8, body: &[u8]) -> Vec<u8> {
        let mut header = [0; 40];
        header[0] = 0x60;
        header[4..6].copy_from_slice(&u16::try_from(body.len()).expect("short").to_be_bytes());
        header[6] = next;
        header[23] = 1;
        header[39] = 2;
        [&header, body].concat()
    }

    fn udp(payload: &[u8]) -> Vec<u8> {
        [&[0x12, 0x34, 0, 53, 0, 0, 0, 0], payload].concat()
    }

    #[track_caller]
    fn check(frame: &[u8], protocol: Protocol, ports: (u16, u16), payload: &[u8]) {
        let packet = Packet::parse(frame).expect("an IP packet");
        assert_eq!(packet.protocol, protocol);
        assert_eq!((packet.src.port(), packet.dst.port()), ports);
        assert_eq!((packet.payload.as_slice(), packet.length), (payload, payload.len()));
    }

    #[test]
    fn udp_over_ipv4_is_read_and_padding_of_short_frames_is_not_payload() {
        let mut bytes = frame(0x0800, &v4(17, 0, &udp(b"hi")));
        bytes.extend([0; 16]);
        check(&bytes, Protocol::Udp, (0x1234, 53), b"hi");
    }

    #[test]
    fn tcp_options_are_not_payload() {
        let mut segment = vec![0, 53, 0, 99];
        segment.extend([0; 8]);
        segment.extend([0x60, 0]);
        segment.extend([0; 10]);
        segment.extend(b"data");
        check(&frame(0x86dd, &v6(6, &segment)), Protocol::Tcp, (53, 99), b"data");
    }

    #[test]
    fn a_first_fragment_shows_its_ports_and_a_later_one_has_none() {
        check(&frame(0x0800, &v4(17, 0x2000, &udp(b"x"))), Protocol::Udp, (0x1234, 53), b"x");
        check(&frame(0x0800, &v4(17, 0x0010, b"rest")), Protocol::Udp, (0, 0), b"rest");
    }

    #[test]
    fn extension_headers_and_vlan_tags_hide_nothing() {
        let destination_options = [&[44, 0, 1, 4, 0, 0, 0, 0][..], &[17, 0, 0, 1, 0, 0, 0, 9]];
        let packet = v6(60, &[&destination_options.concat(), &udp(b"y")[..]].concat());
        let tagged = [&[0, 7, 0x86, 0xdd], &packet[..]].concat();
        check(&frame(0x8100, &tagged), Protocol::Udp, (0x1234, 53), b"y");
    }

    #[test]
    fn what_is_not_ip_gives_nothing_and_cut_off_packets_do_not_panic() {
        assert_eq!(Packet::parse(&frame(0x0806, &[0; 28])), None);
        let whole = frame(0x86dd, &v6(17, &udp(b"z")));
        for cut in 0..whole.len() {
            let _ = Packet::parse(&whole[..cut]);
        }
    }
}
