//! What the numbers mean: a pure function from what was seen to what is true.

use std::fmt;

use crate::{
    report::Check,
    sighting::{Part, Wire},
};

/// Everything there is to judge by.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// What the daemon says that it did.
    pub(crate) closing: Closing,
    /// What the nameservers have seen.
    pub(crate) told: Told,
    /// What the cameras have seen.
    pub(crate) wires: Vec<Wire>,
}

/// The daemon's last line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closing {
    /// How many queries it intercepted.
    queries: usize,
    /// How many of them it answered from upstream.
    encrypted: usize,
    /// As it was written.
    text: String,
}

/// What the nameservers have seen while each container asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// How many times a client was run in each.
    pub(crate) asked: usize,
    /// While `inside` asked.
    pub(crate) inside: Counts,
    /// While `outside` asked.
    pub(crate) outside: Counts,
}

/// Queries at the two nameservers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// That came out of TLS.
    pub(crate) tls: usize,
    /// That came to port 53.
    pub(crate) plaintext: usize,
}

impl Closing {
    /// Finds and reads it.
    pub(crate) fn find(lines: &[String]) -> Option<Self> {
        let texts = lines.iter().rev().filter_map(|line| line.split_once("stopped "));
        texts.map(|(_, text)| text).find_map(|text| {
            let value = |key: &str| {
                let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
                pairs.into_iter().find_map(|(k, v)| (k == key).then(|| v.parse().ok())?)
            };
            Some(Self {
                queries: value("queries")?,
                encrypted: value("encrypted")?,
                text: text.to_owned(),
            })
        })
    }
}

/// Whether the cameras see what is in plaintext: there is, while nobody encrypts.
pub(crate) fn control(wires: &[Wire]) -> Check {
    let blind: Vec<_> = wires
        .iter()
        .filter(|wire| wire.outside + wire.others == 0)
        .map(|wire| wire.place.as_str())
        .collect();
    Check {
        holds: !wires.is_empty() && blind.is_empty(),
        says: format!("each of {} cameras saw these queries in plaintext", wires.len()),
        otherwise: format!("no plaintext was seen at {blind:?}, so nothing can be proved there"),
    }
}

impl Evidence {
    /// Intercepted, encrypted, nothing in plaintext.
    pub(crate) fn of_inside(&self) -> Check {
        let (intercepted, encrypted) = (self.closing.queries, self.told.inside.tls);
        let leaks = self.wires.iter().map(|wire| wire.others);
        let leaked = leaks.max().unwrap_or(0).max(self.told.inside.plaintext);
        let culprit = self.wires.iter().find_map(|wire| wire.culprit.as_deref());
        let mut uplinks = self.wires.iter().filter(|wire| wire.part == Part::Uplink);
        let tls_was_seen = !self.wires.is_empty() && uplinks.all(|wire| wire.tls > 0);
        Check {
            holds: intercepted >= self.told.asked
                && intercepted > 0
                && intercepted == encrypted
                && intercepted == self.closing.encrypted
                && leaked == 0
                && tls_was_seen,
            says: format!(
                "inside:  {intercepted} queries intercepted, {encrypted} encrypted, {leaked} in \
                 plaintext"
            ),
            otherwise: format!(
                "`inside`: {} clients asked, the daemon intercepted {intercepted} and encrypted \
                 {}, {encrypted} came out of TLS, {} came to the plaintext nameserver, {leaked} \
                 were in plaintext on a wire ({}), TLS was {} on the uplink",
                self.told.asked,
                self.closing.encrypted,
                self.told.inside.plaintext,
                culprit.unwrap_or("none"),
                if tls_was_seen { "seen" } else { "not seen" },
            ),
        }
    }

    /// Left alone: what it asked went all the way, and not through us.
    pub(crate) fn of_outside(&self) -> Check {
        let (answered, through_us) = (self.told.outside.plaintext, self.told.outside.tls);
        let way = self.wires.iter().filter(|wire| wire.part != Part::Inside);
        let on_the_way: Vec<_> = way.map(|wire| wire.queries).collect();
        let sent = on_the_way.first().copied().unwrap_or(0);
        Check {
            holds: sent >= self.told.asked
                && sent > 0
                && on_the_way.iter().all(|&queries| queries == answered)
                && through_us == 0,
            says: format!(
                "outside: {sent} queries in plaintext on its veth, {answered} at the nameserver \
                 they asked, {through_us} through dns-proxy"
            ),
            otherwise: format!(
                "`outside` was not left alone: {} clients asked, {on_the_way:?} queries were seen \
                 along the way, {answered} at the nameserver, {through_us} through dns-proxy",
                self.told.asked
            ),
        }
    }

    /// The addresses that the redirection uses stay in their namespace.
    pub(crate) fn of_tokens(&self) -> Check {
        let tokens: usize = self.wires.iter().map(|wire| wire.tokens).sum();
        let culprit = self.wires.iter().find_map(|wire| wire.culprit.as_deref());
        Check {
            holds: tokens == 0 && !self.wires.is_empty(),
            says: format!(
                "tokens:  {tokens} packets with an address that redirection uses (127/8, \
                 fd90:2c8e:591c::/48, fe90:2c8e:591c::/48) on any wire"
            ),
            otherwise: format!(
                "{tokens} packets with an address that redirection uses left their namespace: {}",
                culprit.unwrap_or("none")
            ),
        }
    }
}

impl fmt::Display for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "2026-01-01T00:00:00Z  INFO stopped queries=12 encrypted=12 failed=0";

    fn wire(part: Part, tls: usize, plaintext: usize) -> Wire {
        Wire { part, tls, outside: plaintext, queries: plaintext, ..Wire::default() }
    }

    /// As it should be: one query each.
    fn good() -> Evidence {
        let counts = |tls, plaintext| Counts { tls, plaintext };
        Evidence {
            closing: Closing { queries: 1, encrypted: 1, text: String::new() },
            told: Told { asked: 1, inside: counts(1, 0), outside: counts(0, 1) },
            wires: vec![
                wire(Part::Inside, 0, 0),
                wire(Part::Outside, 0, 1),
                wire(Part::Uplink, 1, 1),
            ],
        }
    }

    fn holds(change: impl FnOnce(&mut Evidence)) -> [bool; 3] {
        let mut evidence = good();
        change(&mut evidence);
        [evidence.of_inside(), evidence.of_outside(), evidence.of_tokens()].map(|check| check.holds)
    }

    #[test]
    fn the_truth_passes_and_every_lie_is_found_out() {
        const INSIDE: [bool; 3] = [false, true, true];
        const OUTSIDE: [bool; 3] = [true, false, true];
        assert_eq!(holds(|_| {}), [true; 3]);
        assert_eq!(holds(|it| it.closing.queries = 2), INSIDE);
        assert_eq!(holds(|it| it.closing.encrypted = 0), INSIDE);
        assert_eq!(holds(|it| it.told.inside.tls = 0), INSIDE);
        assert_eq!(holds(|it| it.told.inside.plaintext = 1), INSIDE);
        assert_eq!(holds(|it| it.wires[2].tls = 0), INSIDE);
        assert_eq!(holds(|it| it.wires[0].others = 1), INSIDE);
        assert_eq!(holds(|it| it.wires[2].tokens = 1), [true, true, false]);
        assert_eq!(holds(|it| it.told.asked = 2), [false, false, true]);
        assert_eq!(holds(|it| it.told.outside.tls = 1), OUTSIDE);
        assert_eq!(holds(|it| it.told.outside.plaintext = 0), OUTSIDE);
        assert_eq!(holds(|it| it.wires[1].queries = 0), OUTSIDE);
        assert_eq!(holds(|it| it.wires.clear()), [false; 3]);
        let nothing = Evidence {
            closing: Closing { queries: 0, encrypted: 0, text: String::new() },
            told: Told::default(),
            wires: good().wires,
        };
        assert!(!nothing.of_inside().holds && !nothing.of_outside().holds);
    }

    #[test]
    fn a_blind_camera_is_found() {
        assert!(!control(&good().wires).holds);
        assert!(control(&good().wires[1..]).holds);
        assert!(!control(&[]).holds);
    }

    #[test]
    fn the_closing_line_is_read() {
        let closing = Closing::find(&[LINE.to_owned(), "bye".to_owned()]).expect("found");
        assert_eq!((closing.queries, closing.encrypted), (12, 12));
        assert_eq!(closing.to_string(), "queries=12 encrypted=12 failed=0");
        assert_eq!(Closing::find(&["INFO stopped queries=x encrypted=1".to_owned()]), None);
        assert_eq!(Closing::find(&["INFO ready queries=1 encrypted=1".to_owned()]), None);
    }
}
