//! What a camera's packets are: sorted and counted.

use std::{fmt, net::IpAddr};

use dns_proxy_tests::{
    Packet,
    packet::Protocol,
    stage::{UPSTREAM, is_token},
    wire::Question,
};

/// The name that is asked for, as it stands in a message and as nothing encrypted would have it.
const NAME_IN_CLEAR: &[u8] = b"\x07example\x04test";
/// The IANA number of ICMPv6: neighbours and multicast groups, which the kernel sees to.
const ICMPV6: u8 = 58;

/// Whose packets pass there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Part {
    /// Those of the container in scope.
    #[default]
    Inside,
    /// Those of the container that is not.
    Outside,
    /// Everybody's.
    Uplink,
}

/// What passed one end of one veth.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wire {
    /// What a person calls it.
    pub(crate) place: String,
    /// Whose packets should pass there.
    pub(crate) part: Part,
    /// All packets.
    pub(crate) packets: usize,
    /// Of these, to and from the upstream's port.
    pub(crate) tls: usize,
    /// DNS in plaintext with an address of `outside`.
    pub(crate) outside: usize,
    /// The queries in it.
    pub(crate) queries: usize,
    /// DNS in plaintext of everybody else, so of `inside` or of the daemon.
    pub(crate) others: usize,
    /// With an address that redirection uses, which must not leave its namespace.
    pub(crate) tokens: usize,
    /// What the kernel says to its neighbours.
    pub(crate) icmpv6: usize,
    /// The first packet that should not be there.
    pub(crate) culprit: Option<String>,
}

impl Wire {
    /// Sorts what passed there.
    pub(crate) fn of(place: &str, part: Part, packets: &[Packet], outside: [IpAddr; 2]) -> Self {
        let place = place.to_owned();
        let mut wire = Self { place, part, packets: packets.len(), ..Self::default() };
        for packet in packets {
            wire.count(packet, outside);
        }
        wire
    }

    fn count(&mut self, packet: &Packet, outside: [IpAddr; 2]) {
        let ends = [packet.src, packet.dst];
        let outsiders = ends.iter().any(|end| outside.contains(&end.ip()));
        let plaintext = is_plaintext(packet);
        let token = ends.iter().any(|end| is_token(end.ip()));
        self.tls += usize::from(ends.contains(&UPSTREAM));
        self.outside += usize::from(plaintext && outsiders);
        self.queries += usize::from(outsiders && is_query(packet));
        self.others += usize::from(plaintext && !outsiders);
        self.tokens += usize::from(token);
        self.icmpv6 += usize::from(packet.protocol == Protocol::Other(ICMPV6));
        if (plaintext && !outsiders || token) && self.culprit.is_none() {
            self.culprit = Some(format!("{packet} at {}", self.place));
        }
    }
}

/// The first line of the table of wires.
pub(crate) fn header() -> String {
    let titles = ["packets", "TLS", "plaintext of outside", "of others", "token", "ICMPv6"];
    columns("at", titles.map(str::to_owned))
}

/// On port 53, or with the question in it for everybody to read.
fn is_plaintext(packet: &Packet) -> bool {
    let mut windows = packet.payload.windows(NAME_IN_CLEAR.len());
    packet.src.port() == 53
        || packet.dst.port() == 53
        || windows.any(|window| window.eq_ignore_ascii_case(NAME_IN_CLEAR))
}

/// On its way to a nameserver, with a question.
fn is_query(packet: &Packet) -> bool {
    let message = match packet.protocol {
        // Clients write the length and the message at once.
        Protocol::Tcp => packet.payload.get(2..),
        Protocol::Udp => Some(packet.payload.as_slice()),
        Protocol::Other(_) => None,
    };
    packet.dst.port() == 53 && message.and_then(Question::of).is_some()
}

fn columns(place: &str, [packets, tls, outside, others, tokens, icmpv6]: [String; 6]) -> String {
    format!("{place:<23} {packets:>8} {tls:>5} {outside:>22} {others:>11} {tokens:>7} {icmpv6:>8}")
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, tls, outside, others, tokens, icmpv6, .. } = self;
        let numbers = [packets, tls, outside, others, tokens, icmpv6];
        f.write_str(&columns(&self.place, numbers.map(ToString::to_string)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dns_proxy_tests::wire::{frame, query};
    use hickory_proto::rr::RecordType;

    use super::*;
    use crate::ask::NAME;

    fn wire(src: &str, dst: &str, protocol: Protocol, payload: &[u8]) -> Wire {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (src, dst, payload, length) = (at(src), at(dst), payload.to_vec(), payload.len());
        let outside = ["10.88.2.2", "fd88:0:0:2::2"].map(|text| text.parse().expect("an address"));
        let packet = Packet { protocol, src, dst, length, payload };
        Wire::of("here", Part::Inside, &[packet], outside)
    }

    fn question() -> Vec<u8> {
        query(7, NAME, RecordType::A).expect("a query")
    }

    #[test]
    fn plaintext_is_told_by_its_port_or_by_the_question_in_it() {
        for (src, dst, payload) in [
            ("10.88.1.2:5000", "8.8.8.8:53", &b"?"[..]),
            ("8.8.8.8:53", "10.88.1.2:5000", b"!"),
            ("192.0.2.2:5000", "1.1.1.1:853", &question()),
        ] {
            let leak = wire(src, dst, Protocol::Udp, payload);
            assert_eq!((leak.others, leak.outside, leak.queries), (1, 0, 0), "{src} > {dst}");
            assert!(leak.culprit.is_some());
        }
        let secret = wire("192.0.2.2:5000", "1.1.1.1:853", Protocol::Tcp, b"secret");
        assert_eq!((secret.tls, secret.others, secret.culprit), (1, 0, None));
    }

    #[test]
    fn queries_of_outside_are_counted_and_its_other_packets_are_not_queries() {
        let (me, there) = ("[fd88:0:0:2::2]:5000", "[2001:4860:4860::8888]:53");
        for (src, dst, protocol, payload, queries) in [
            (me, there, Protocol::Udp, question(), 1),
            (me, there, Protocol::Tcp, frame(&question()), 1),
            (me, there, Protocol::Tcp, Vec::new(), 0),
            (there, me, Protocol::Udp, question(), 0),
        ] {
            let wire = wire(src, dst, protocol, &payload);
            assert_eq!((wire.queries, wire.outside, wire.others), (queries, 1, 0));
            assert_eq!(wire.culprit, None);
        }
    }

    #[test]
    fn an_address_of_redirection_is_found_also_with_outside() {
        for address in ["127.53.0.1:53", "[fd90:2c8e:591c::1]:53", "[fe90:2c8e:591c::1]:53"] {
            let wire = wire("10.88.2.2:5000", address, Protocol::Udp, b"");
            assert_eq!((wire.tokens, wire.culprit.is_some()), (1, true));
        }
    }
}
