//! Which road an answer came, told by the answer alone.

use std::{collections::BTreeSet, net::IpAddr};

use dns_proxy_tests::Zone;

/// A way from a client to a nameserver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// Through the daemon and TLS.
    Tls,
    /// To port 53, for everybody to read.
    Plaintext,
}

/// Which addresses a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// A records.
    V4,
    /// A and AAAA records, as getaddrinfo.
    Both,
}

impl Road {
    /// The road on which this is the whole answer; `None` if there is none.
    pub(crate) fn of(answer: &BTreeSet<IpAddr>, wants: Wants) -> Option<Self> {
        [Self::Tls, Self::Plaintext].into_iter().find(|road| *answer == road.answer(wants))
    }

    /// What a person calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::Plaintext => "plaintext",
        }
    }

    /// The addresses at its end, to read.
    pub(crate) fn answers(self) -> String {
        join(&self.answer(Wants::Both))
    }

    fn answer(self, wants: Wants) -> BTreeSet<IpAddr> {
        let zone = match self {
            Self::Tls => Zone::Encrypted,
            Self::Plaintext => Zone::Plaintext,
        };
        match wants {
            Wants::V4 => [zone.a().into()].into(),
            Wants::Both => [zone.a().into(), zone.aaaa().into()].into(),
        }
    }
}

/// Addresses on one line.
pub(crate) fn join(addresses: &BTreeSet<IpAddr>) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_answer_of_one_road_tells_it() {
        let both = |road: Road| road.answer(Wants::Both);
        let mixed = both(Road::Tls).union(&both(Road::Plaintext)).copied().collect();
        for road in [Road::Tls, Road::Plaintext] {
            assert_eq!(Road::of(&both(road), Wants::Both), Some(road));
            assert_eq!(Road::of(&road.answer(Wants::V4), Wants::V4), Some(road));
            assert_eq!(Road::of(&road.answer(Wants::V4), Wants::Both), None);
        }
        assert_eq!(Road::of(&mixed, Wants::Both), None);
        assert_eq!(Road::of(&BTreeSet::new(), Wants::V4), None);
    }
}
