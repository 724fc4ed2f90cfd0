//! Packets that no socket hook sees: raw sockets and UDP-Lite.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::shapes::{Ask, receive};

const UDP: u8 = 17;
/// IPv6 extension headers (RFC 8200 section 4, RFC 4302 section 2.1).
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Sends one packet of the kind named, to the server's port; nobody waits for an answer.
pub(crate) fn send(ask: &Ask<'_>, kind: &str, source: IpAddr) -> Result<bool> {
    let (server, query) = (ask.server()?, ask.query()?);
    let datagram = udp(server.port(), &query)?;
    let to = SocketAddr::new(server.ip(), 0).into();
    let raw = |protocol: i32| {
        Socket::new(Domain::for_address(server), Type::RAW, Some(Protocol::from(protocol)))
    };
    if let "udp" | "udp-connected" = kind {
        let socket = raw(UDP.into())?;
        if kind == "udp" {
            socket.send_to(&datagram, &to)?;
        } else {
            socket.connect(&to)?;
            socket.send(&datagram)?;
        }
        return Ok(true);
    }
    let packet = match (kind, source, server.ip()) {
        ("header", IpAddr::V4(from), IpAddr::V4(to)) => v4(from, to, 0, &datagram)?,
        ("fragment", IpAddr::V4(from), IpAddr::V4(to)) => v4(from, to, MORE_FRAGMENTS, &datagram)?,
        (_, IpAddr::V6(from), IpAddr::V6(to)) => {
            let extensions = extensions(kind).with_context(|| format!("{kind}: no such kind"))?;
            v6(from, to, &extensions, &datagram)?
        }
        _ => bail!("{kind} from {source} to {server}: no such kind"),
    };
    // IPPROTO_RAW: what is sent has its own header, see raw(7).
    let socket = raw(libc::IPPROTO_RAW)?;
    ensure!(socket.send_to(&packet, &to)? == packet.len());
    Ok(true)
}

/// The extension headers of a kind, each by its number.
fn extensions(kind: &str) -> Option<Vec<u8>> {
    Some(match kind {
        "header" => vec![],
        "options" => vec![DESTINATION],
        "hop-by-hop" => vec![HOP_BY_HOP],
        "authentication" => vec![AUTHENTICATION],
        "fragment" => vec![FRAGMENT],
        "all" => vec![HOP_BY_HOP, DESTINATION, FRAGMENT, DESTINATION],
        "many" => vec![DESTINATION; 7],
        _ => return None,
    })
}

/// A datagram without a checksum.
fn udp(port: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(8 + payload.len())?;
    let header = [5353_u16, port, length, 0].map(u16::to_be_bytes);
    Ok([header.as_flattened(), payload].concat())
}

/// The flag of RFC 791 section 3.1.
const MORE_FRAGMENTS: u16 = 1 << 13;

/// The kernel fills in length, identification and checksum.
fn v4(from: Ipv4Addr, to: Ipv4Addr, fragment: u16, body: &[u8]) -> Result<Vec<u8>> {
    let [high, low] = fragment.to_be_bytes();
    let header = [0x45, 0, 0, 0, 0, 0, high, low, 64, UDP, 0, 0];
    // All but the last fragment are multiples of eight octets.
    let end = if fragment == 0 { body.len() } else { body.len() / 8 * 8 };
    Ok([&header[..], &from.octets(), &to.octets(), &body[..end]].concat())
}

fn v6(from: Ipv6Addr, to: Ipv6Addr, extensions: &[u8], datagram: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    for (index, extension) in extensions.iter().enumerate() {
        let next = extensions.get(index + 1).copied().unwrap_or(UDP);
        body.extend(match *extension {
            // More fragments follow; identification 9.
            FRAGMENT => vec![next, 0, 0, 1, 0, 0, 0, 9],
            // Length in words less two, an index, a sequence number, a value of four octets.
            AUTHENTICATION => vec![next, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4],
            // PadN of six octets (RFC 8200 section 4.2).
            _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
        });
    }
    body.extend(datagram);
    let length = u16::try_from(body.len())?.to_be_bytes();
    let first = extensions.first().copied().unwrap_or(UDP);
    let header = [&[0x60, 0, 0, 0], &length[..], &[first, 64]].concat();
    Ok([&header[..], &from.octets(), &to.octets(), &body].concat())
}

/// Asks over UDP-Lite (RFC 3828).
pub(crate) fn lite(ask: &Ask<'_>, connect: bool) -> Result<bool> {
    let (started, server, query) = (Instant::now(), ask.server()?, ask.query()?);
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDPLITE))?;
    socket.set_read_timeout(Some(ask.limit))?;
    if connect {
        socket.connect(&server.into())?;
        socket.send(&query)?;
    } else {
        socket.send_to(&query, &server.into())?;
    }
    receive(&socket.into(), server, &query, started)
}
